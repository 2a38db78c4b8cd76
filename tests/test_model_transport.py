"""The transport family's parts, each against something simpler."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from seqvae.config import TransportConfig
from seqvae.likelihoods import build_likelihood
from seqvae.models import Transport
from seqvae.models.transport import TransportState
from tests.families import build, clips, noise, small


def moved(model: Transport, canvases: torch.Tensor, displacement: list[float]) -> torch.Tensor:
    rows = canvases.shape[:2]
    narrow = torch.full((*rows, 1), -1.8, dtype=canvases.dtype)
    return model._displace(canvases, torch.tensor(displacement, dtype=canvases.dtype).expand(*rows, 2), narrow)


def blob(size: int = 32) -> torch.Tensor:
    """(1, 1, 1, H, W): an asymmetric patch in the middle of nothing."""
    canvas = torch.zeros(1, 1, 1, size, size, dtype=torch.float64)
    canvas[..., 12:18, 14:18] = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return canvas


def state_of(canvases: torch.Tensor, velocity: list[float], rnn_size: int) -> TransportState:
    rows = canvases.shape[:2]
    memory = (torch.zeros(*rows, rnn_size, dtype=canvases.dtype),) * 2
    velocities = torch.tensor(velocity, dtype=canvases.dtype).expand(*rows, 2)
    return TransportState(canvases, velocities, torch.zeros(*rows, 1, dtype=canvases.dtype), memory, memory)


@pytest.mark.parametrize("displacement", [(2, -1), (0, 0), (-2, 2)])
def test_whole_pixels_are_moved_exactly(displacement):
    model = build(small("transport"))
    expected = blob().roll(displacement, (-2, -1))
    assert_close(moved(model, blob(), list(displacement)), expected, atol=1e-5, rtol=0)


def test_what_leaves_the_picture_does_not_come_back_on_the_other_side():
    model, canvas = build(small("transport")), torch.zeros(1, 1, 1, 32, 32, dtype=torch.float64)
    canvas[..., 0, 5] = 1
    assert moved(model, canvas, [-2, 0]).sum() < 1e-5


def test_snaps_are_one_pull_as_many_times():
    once, often = (build(dataclasses.replace(small("transport"), snaps=snaps)) for snaps in (1, 5))
    velocity = torch.linspace(-2, 2, 41, dtype=torch.float64).view(1, 41, 1).repeat(1, 1, 2)
    expected = velocity
    for _ in range(5):
        expected = once._snapped(expected)
    assert_close(often._snapped(velocity), expected)
    assert not torch.allclose(once._snapped(velocity), expected, atol=1e-2)


def test_velocities_snap_to_whole_pixels_with_a_slope_of_at_most_one():
    model = build(small("transport"))
    model.snap.data.fill_(1.0)
    v = torch.linspace(-2, 2, 81, dtype=torch.float64, requires_grad=True)
    snapped = model._snapped(v)
    (slope,) = torch.autograd.grad(snapped.sum(), v)
    near = (v - v.round()).abs() < 0.31
    assert_close(snapped[near], v[near].round(), atol=0.01, rtol=0)
    assert slope.min() >= 0 and slope.max() <= 1 + 1e-12
    model.snap.data.fill_(0.0)
    assert_close(model._snapped(v), v)


@pytest.mark.parametrize("displacement", [(2, -1), (-1, 0)])
def test_evidence_peaks_at_the_displacement_of_a_layer(displacement):
    model = build(small("transport", layers=1))
    canvas = blob()
    frame = canvas[:, 0].roll(displacement, (-2, -1))
    state = state_of(canvas, [0.0, 0.0], model.rnn_size)
    _, mass = model._features(state)
    evidence = model._evidence(state, mass, model._spectrum(frame))
    n = 2 * model.reach + 1
    share = evidence[0, 0, : n * n].unflatten(0, (n, n))  # of the frame itself, its peak subtracted
    row, column = divmod(share.argmax().item(), n)
    assert (row - model.reach, column - model.reach) == displacement


def test_evidence_of_a_hidden_layer_is_what_the_others_leave_of_the_frame():
    # The second thing lies where the first one goes, so the whole frame misleads about the first.
    model = build(small("transport", layers=2))
    one, two = torch.zeros(2, 1, 1, 1, 32, 32, dtype=torch.float64)
    one[..., 10:14, 10:14], two[..., 10:14, 12:16] = 1, 1
    canvases = torch.cat([one, two], 1)
    state = state_of(canvases, [0.0, 0.0], model.rnn_size)
    frame = (one + two)[:, 0]  # nothing moves
    _, mass = model._features(state)
    evidence = model._evidence(state, mass, model._spectrum(frame))
    n = 2 * model.reach + 1
    left = evidence[0, 0, n * n : 2 * n * n].unflatten(0, (n, n))
    assert divmod(left.argmax().item(), n) == (model.reach, model.reach)


def test_a_layer_keeps_its_velocity_while_no_event_opens_the_gate():
    model = build(small("transport"))
    state = state_of(clips(1, 2)[:, :, :], [1.0, -2.0], model.rnn_size)
    features, _ = model._features(state)
    z = noise(1, 2, model.z_dim // 2)
    z[..., 0] = -100
    _, after = model._move(features, z, state)
    assert_close(after.velocity, model._snapped(state.velocity))
    z[..., 0] = 100
    _, after = model._move(features, z, state)
    assert (after.velocity - model._snapped(state.velocity)).abs().max() > 0.01


def test_the_prior_learns_from_the_kl_alone():
    model = build(small("transport")).train()
    out = model(clips(), noise(1, 2, 5, model.z_dim))
    out.params.sum().backward(retain_graph=True)
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.prior.parameters())
    out.kl().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.prior.parameters())


@pytest.mark.parametrize("image_size, channels, layers", [(32, 3, 1), (64, 1, 3), (128, 1, 2)])
def test_any_size_number_of_channels_and_layers(image_size, channels, layers):
    cfg = TransportConfig(layers=layers, rnn_size=8, width=4)
    sizes = {"image_size": image_size, "channels": channels, "n_past": 2}
    model = Transport(cfg, build_likelihood("gaussian", channels), **sizes).eval()
    video = torch.rand(2, 3, channels, image_size, image_size)
    futures = model.rollout(video[:, :2], 2, torch.randn(3, 2, 3, model.z_dim))
    assert futures.shape == (3, 2, 2, channels, image_size, image_size)


def test_the_whole_model_compiles_without_a_graph_break():
    model = build(small("transport"))
    video, eps = clips(2, 4), noise(1, 2, 3, model.z_dim)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(video, eps).params, model(video, eps).params)


def test_settings_that_no_model_could_have_are_refused():
    with pytest.raises(ValueError, match="model.z-dim is not used with model.prior none"):
        TransportConfig(prior="none", z_dim=4)
    with pytest.raises(ValueError, match="model.z-dim must be >= 2"):
        TransportConfig(z_dim=1)
    with pytest.raises(ValueError, match="model.layers must be >= 1, got 0"):
        dataclasses.replace(TransportConfig(), layers=0)
