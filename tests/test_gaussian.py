import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from seqvae.gaussian import LOGVAR_LIMIT, Gaussian, gaussian_kl, keyed_noise, limit_logvar, standard_normal_like


def _pair(*shape: int) -> tuple[Gaussian, Gaussian]:
    generator = torch.Generator().manual_seed(0)
    return tuple(Gaussian(*torch.randn(2, *shape, dtype=torch.float64, generator=generator)) for _ in range(2))


def _normal(g: Gaussian) -> Normal:
    return Normal(g.mu, (g.logvar / 2).exp())


def test_kl_equals_torch_distributions():
    q, p = _pair(4, 7, 5)
    assert_close(gaussian_kl(q, p), kl_divergence(_normal(q), _normal(p)).sum(-1))
    assert_close(gaussian_kl(q, standard_normal_like(q)), kl_divergence(_normal(q), Normal(0.0, 1.0)).sum(-1))


def test_samples_have_the_moments_of_the_gaussian():
    q = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.0, -2.0]))
    z = q.sample(torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)))
    assert_close(z.mean(0), q.mu, atol=0.01, rtol=0)
    assert_close(z.var(0), q.logvar.exp(), atol=0.02, rtol=0)
    assert_close(q.log_prob(z), _normal(q).log_prob(z).sum(-1))


def test_keyed_noise_does_not_depend_on_its_neighbours():
    whole = keyed_noise(3, range(5), range(4), steps=6, z_dim=2)
    assert_close(keyed_noise(3, [4], [2], steps=6, z_dim=2)[0, 0], whole[2, 4], rtol=0, atol=0)
    assert not torch.equal(keyed_noise(4, [4], [2], steps=6, z_dim=2)[0, 0], whole[2, 4])
    assert whole.flatten().unique().numel() == whole.numel()


def test_limited_logvars_stay_in_range_and_keep_their_gradient():
    x = torch.tensor([-30.0, -12.0, -4.0, 0.0, 4.0, 12.0, 30.0], dtype=torch.float64, requires_grad=True)
    limited = limit_logvar(x)
    (gradient,) = torch.autograd.grad(limited.sum(), x)
    assert (limited.abs() <= LOGVAR_LIMIT).all() and (gradient > 0).all()
    assert_close(limited[2:5], x[2:5], atol=3e-3, rtol=0)
    assert (limited.diff() > 0).all()
