import pytest
import torch
from torch.testing import assert_close

from seqvae.config import ImageConfig
from seqvae.gaussian import gaussian_kl, standard_normal_like
from seqvae.likelihoods import LIKELIHOODS, build_likelihood
from seqvae.models import ImageVAE

SMALL = {"width": 4, "g_dim": 6, "z_dim": 3}


def build(channels: int = 1, likelihood: str = "gaussian", **model) -> ImageVAE:
    torch.manual_seed(0)
    vae = ImageVAE(
        ImageConfig(**SMALL | model), build_likelihood(likelihood, channels), image_size=32, channels=channels
    )
    with torch.no_grad():
        for weight in vae.parameters():
            weight.mul_(12 if weight.ndim > 1 else 1)
    return vae.double().eval()


def images(batch: int = 4, channels: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, channels, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_forward_has_a_leading_sample_axis_and_a_gradient_for_every_weight(likelihood, norm):
    vae, x = build(3, likelihood, norm=norm).train(), images(channels=3)
    out = vae(x, noise(2, 4, 1, 3))
    assert out.params.shape == (2, 4, 1, vae.likelihood.param_channels, 32, 32)
    assert out.q.mu.shape == (4, 1, 3) and out.z.shape == (2, 4, 1, 3)
    assert_close(out.kl().sum(-1), gaussian_kl(out.q, standard_normal_like(out.q)))
    (out.kl().sum() - vae.likelihood.log_prob(out.params, x).sum()).backward()
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in vae.parameters())


def test_each_sample_is_decoded_as_if_it_were_alone():
    vae, x, eps = build(), images(), noise(3, 4, 1, 3)
    together = vae(x, eps).params
    assert together.std() > 0.1, "a picture without contrast would prove nothing"
    for k in range(3):
        assert_close(vae(x[1:2], eps[k : k + 1, 1:2]).params[0, 0], together[k, 1], atol=1e-9, rtol=0)


def test_the_log_ratio_averages_to_minus_the_kl():
    vae, x = build(), images(2)
    out = vae(x, noise(2000, 2, 1, 3))
    error = 4 * out.log_ratio().std(0) / 2000**0.5
    assert ((out.log_ratio().mean(0) + out.kl().sum(-1)).abs() < error).all()


def test_reconstructions_with_the_posterior_as_noise_are_the_priors_samples():
    vae, x = build(), images()
    q = vae(x, noise(1, 4, 1, 3)).q
    z = noise(1, 4, 1, 3)
    as_posterior = (z[0] - q.mu) / (0.5 * q.logvar).exp()
    assert_close(vae.reconstruct(x, as_posterior), vae.rollout(x[:, :0], 1, z)[0], atol=1e-9, rtol=0)


def test_frames_of_a_video_are_images_of_their_own():
    vae, x, eps = build(), images(), noise(2, 4, 1, 3)
    together = vae(x.transpose(0, 1), eps.transpose(1, 2))
    assert_close(together.params.transpose(1, 2), vae(x, eps).params, atol=1e-9, rtol=0)
    assert_close(together.kl().transpose(0, 1), vae(x, eps).kl(), atol=1e-9, rtol=0)
