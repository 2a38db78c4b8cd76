import copy
from itertools import product
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.reference_svg import ReferenceSVG
from seqvae.config import SvgConfig
from seqvae.likelihoods import LIKELIHOODS, build_likelihood
from seqvae.models import SVG
from seqvae.networks import IMAGE_SIZES, NETWORKS
from seqvae.networks.cpu_kernels import strided
from tests.families import clips, far_from_start, noise

HINTS = get_type_hints(SvgConfig)
PRIORS, NORMS = get_args(HINTS["prior"]), get_args(HINTS["norm"])
SMALL = {"width": 4, "g_dim": 6, "rnn_size": 8}


def build(*, image_size=32, channels=1, n_past=2, likelihood="gaussian", **model) -> SVG:
    """Tiny, in float64, with weights and norm statistics far from their start, so that every path shows."""
    torch.manual_seed(0)
    cfg = SvgConfig(**SMALL | model)
    vae = SVG(cfg, build_likelihood(likelihood, channels), image_size=image_size, channels=channels, n_past=n_past)
    return far_from_start(vae).double().eval()


@pytest.mark.parametrize("network, prior, last_frame_skip", list(product(NETWORKS, PRIORS, (False, True))))
@pytest.mark.parametrize("size, n_past", [(32, 1), (32, 3), (64, 2)])
def test_batched_forward_and_rollout_equal_the_frame_by_frame_reference(network, prior, last_frame_skip, size, n_past):
    vae = build(network=network, prior=prior, last_frame_skip=last_frame_skip, image_size=size, n_past=n_past)
    video = clips(size=size)
    eps = noise(2, 5, vae.z_dim)
    with torch.no_grad():
        ours, slow = vae(video, eps[None]), ReferenceSVG(vae).forward(video, eps)
    assert ours.params.std() > 0.1, "a picture without contrast would prove nothing"
    assert_close(ours.params[0], slow["params"], atol=1e-5, rtol=0)
    for name, gaussian in (("q", ours.q), ("p", ours.p)):
        if f"{name}_mu" in slow:
            assert_close(gaussian.mu, slow[f"{name}_mu"], atol=1e-5, rtol=0)
            assert_close(gaussian.logvar, slow[f"{name}_logvar"], atol=1e-5, rtol=0)

    eps = noise(3, 2, n_past - 1 + 4, vae.z_dim)
    futures = vae.rollout(video[:, :n_past], 4, eps)
    assert_close(futures, ReferenceSVG(vae).rollout(video[:, :n_past], 4, eps), atol=1e-5, rtol=0, check_dtype=False)
    assert futures.shape == (3, 2, 4, 1, size, size)
    if vae.z_dim:
        assert (futures[0] - futures[1]).abs().max() > 1e-3, "samples must differ"


@pytest.mark.parametrize("network, norm, size", list(product(NETWORKS, NORMS, IMAGE_SIZES)))
@pytest.mark.long
def test_every_network_norm_and_size_agrees_with_the_reference_in_colour(network, norm, size):
    vae = build(network=network, norm=norm, image_size=size, channels=3, n_past=2)
    video, eps = clips(frames=4, channels=3, size=size), noise(2, 3, vae.z_dim)
    with torch.no_grad():  # the pictures of these weights reach 1e5 at 256 px
        assert_close(
            vae(video, eps[None]).params[0], ReferenceSVG(vae).forward(video, eps)["params"], atol=1e-5, rtol=1e-7
        )


@pytest.mark.parametrize("layers", [{"predictor_layers": 1, "posterior_layers": 2, "prior_layers": 3, "z_dim": 5}])
def test_layer_counts_agree_with_the_reference(layers):
    vae = build(**layers)
    eps = noise(2, 5, 5)
    with torch.no_grad():
        assert_close(
            vae(clips(), eps[None]).params[0], ReferenceSVG(vae).forward(clips(), eps)["params"], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_parameter_gets_a_finite_gradient(likelihood):
    vae = build(likelihood=likelihood, channels=3).train()
    video = clips(channels=3)
    out = vae(video, noise(1, 2, 5, vae.z_dim))
    (out.kl().sum(-1) - vae.likelihood.log_prob(out.params, video[:, 1:])).mean().backward()
    for name, weight in vae.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("batch, n_samples", [(1, 1), (1, 3), (2, 3)])
def test_the_lstms_states_are_contiguous_as_cudnn_wants_them(batch, n_samples):
    vae, seen = build(n_past=3), []
    for module in vae.modules():
        if isinstance(module, nn.LSTM):
            module.register_forward_pre_hook(lambda _, args: seen.extend(args[1] or ()))
    vae.rollout(clips(batch)[:, :3], 2, noise(n_samples, batch, 4, vae.z_dim))
    assert seen and all(state.is_contiguous() for state in seen)


def test_a_prediction_sees_nothing_of_the_future():
    vae, video = build(), clips()
    eps = noise(2, 5, vae.z_dim)
    changed = video.clone()
    changed[:, 4:] = 0
    with torch.no_grad():
        before, after = vae(video, eps[None]), vae(changed, eps[None])
    assert_close(before.params[:, :, :3], after.params[:, :, :3], rtol=0, atol=0)  # frames 1..3
    assert_close(before.p.mu[:, :4], after.p.mu[:, :4], rtol=0, atol=0)  # the prior of frame 4 saw frames 0..3
    assert (before.q.mu[:, 3] - after.q.mu[:, 3]).abs().max() > 0  # the posterior of frame 4 saw frame 4


def test_the_first_rollout_frame_is_the_forward_pass_with_the_priors_latent():
    vae, video = build(prior="fixed"), clips()
    eps = noise(1, 2, 2, vae.z_dim)
    with torch.no_grad():
        q, _ = vae.posterior(vae.encode(video)[0][:, 1:])
        # The posterior's noise that turns its sample into the fixed prior's.
        as_posterior = torch.stack([eps[0, :, 0], (eps[0, :, 1] - q.mu[:, 1]) / (q.logvar[:, 1] / 2).exp()], dim=1)
        rest = torch.zeros(2, 3, vae.z_dim, dtype=torch.float64)
        frames = vae.reconstruct(video, torch.cat([as_posterior, rest], dim=1), n_past=2)
    assert_close(vae.rollout(video[:, :2], 1, eps)[0, :, 0], frames[:, 1], atol=1e-6, rtol=0)


def test_reconstruction_sees_the_frames_it_is_told_to_whatever_the_model_was_trained_with():
    video, eps = clips(), noise(2, 5, 10)
    with torch.no_grad():
        two, four = (build(n_past=n).reconstruct(video, eps, 4) for n in (2, 4))
        fewer = build(n_past=2).reconstruct(video, eps, 2)
    assert_close(two, four, atol=0, rtol=0)
    assert (fewer - four).abs().max() > 1e-3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prior": "none", "z_dim": 4}, "model.z-dim is not used with model.prior none"),
        ({"prior": "fixed", "prior_layers": 2}, "model.prior-layers is not used with model.prior fixed"),
        ({"width": 0}, "model.width must be >= 1, got 0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        SvgConfig(**settings)


def test_unknown_sizes_and_names_are_refused():
    with pytest.raises(ValueError, match="data.image-size is 48; dcgan exists for 32, 64, 128, 256"):
        build(image_size=48)
    with pytest.raises(ValueError, match="model.network is 'resnet'"):
        build(network="resnet")
    with pytest.raises(ValueError, match="model.norm is 'layer'"):
        build(norm="layer")


@pytest.mark.parametrize("transposed, size, channels", list(product((False, True), (4, 8, 16), (1, 3, 5))))
@pytest.mark.parametrize("amp", [False, True])
def test_strided_convolutions_and_their_gradients_are_those_of_torch_in_float64(transposed, size, channels, amp):
    torch.manual_seed(0)
    x = torch.randn(6, 8, *((size, size) if transposed else (2 * size, 2 * size)))
    weight, bias = torch.randn(*((8, channels) if transposed else (channels, 8)), 4, 4), torch.randn(channels)
    inputs = [each.requires_grad_() for each in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        out = strided(*inputs, transposed=transposed)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    conv = nn.functional.conv_transpose2d if transposed else nn.functional.conv2d
    expected, grad = conv(*exact, stride=2, padding=1), torch.randn_like(out)
    assert out.dtype == (torch.bfloat16 if amp else torch.float32)
    pairs = zip(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, exact, grad.double()))
    for ours, theirs in ((out.float(), expected), *pairs):
        assert ours.dtype == torch.float32
        assert_close(ours.double(), theirs, rtol=0, atol=(0.01 if amp else 1e-5) * max(1, theirs.abs().max().item()))


@pytest.mark.parametrize("transposed, size, channels", [(True, 4, 5), (True, 32, 1), (False, 8, 5), (False, 16, 5)])
@pytest.mark.parametrize("amp", [False, True])
def test_gradients_of_strided_convolutions_have_gradients(transposed, size, channels, amp):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, size, size), torch.randn(*((6, channels) if transposed else (channels, 6)), 4, 4)
    conv, found = nn.functional.conv_transpose2d if transposed else nn.functional.conv2d, []
    for dtype in (torch.float32, torch.float64):
        inputs = [each.to(dtype).requires_grad_() for each in (x, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=amp and dtype == torch.float32):
            exact = dtype == torch.float64
            out = conv(*inputs, stride=2, padding=1) if exact else strided(*inputs, transposed=transposed)
        (slope,) = torch.autograd.grad(out.to(dtype).square().sum(), inputs[0], create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), inputs))
    for ours, theirs in zip(*found):
        assert_close(ours.double(), theirs, rtol=0, atol=(0.03 if amp else 1e-5) * theirs.abs().max().item())


@pytest.mark.parametrize("network, amp", [("dcgan", True), ("vgg", False)])
@pytest.mark.long
def test_encoder_and_decoder_compile_without_a_graph_break(network, amp):
    torch._dynamo.reset()
    plain = build(network=network).float().train()
    compiled = copy.deepcopy(plain)
    compiled.encoder.compile(fullgraph=True, backend="aot_eager")  # all of torch.compile but the kernels
    compiled.decoder.compile(fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        video, eps, found = clips(batch).float(), noise(1, batch, 5, plain.z_dim).float(), []
        for vae in (plain, compiled):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                params = vae(video, eps).params
            found.append([params, *torch.autograd.grad(params.square().mean(), list(vae.decoder.parameters()))])
        for ours, theirs in zip(*found):
            assert_close(ours, theirs, rtol=0, atol=(0.1 if amp else 1e-4) * theirs.abs().max().item())
