"""The transport family's parts, each against something simpler."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from datasets import load_dataset
from seqvae.config import TransportConfig
from seqvae.gaussian import gaussian_kl, standard_normal_like
from seqvae.likelihoods import build_likelihood
from seqvae.models import Transport, cuts
from seqvae.models.transport import HISTORY, TransportState, shift
from seqvae.run import load_run
from tests.families import build, clips, noise, small


def moved(model: Transport, canvases: torch.Tensor, displacement: list[float]) -> torch.Tensor:
    rows = canvases.shape[:2]
    state = state_of(canvases, [0.0, 0.0], model.rnn_size)
    displacements = torch.tensor(displacement, dtype=canvases.dtype).expand(*rows, 2)
    return model._move(state, None, displacements)[1].canvases


def blob(size: int = 32) -> torch.Tensor:
    """(1, 1, 1, H, W): an asymmetric patch in the middle of nothing."""
    canvas = torch.zeros(1, 1, 1, size, size, dtype=torch.float64)
    canvas[..., 12:18, 14:18] = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return canvas


def state_of(canvases: torch.Tensor, velocity: list[float], rnn_size: int) -> TransportState:
    rows = canvases.shape[:2]
    memory = (torch.zeros(*rows, rnn_size, dtype=canvases.dtype),) * 2
    path = torch.tensor(velocity, dtype=canvases.dtype).expand(*rows, HISTORY, 2)
    return TransportState(canvases, path, memory, memory)


@pytest.mark.parametrize("displacement", [(2, -1), (0, 0), (-2, 2)])
def test_whole_pixels_are_moved_exactly(displacement):
    model = build(small("transport"))
    expected = blob().roll(displacement, (-2, -1))
    assert_close(moved(model, blob(), list(displacement)), expected, atol=0, rtol=0)


def test_what_leaves_the_picture_does_not_come_back_on_the_other_side():
    model, canvas = build(small("transport")), torch.zeros(1, 1, 1, 32, 32, dtype=torch.float64)
    canvas[..., 0, 5] = 1
    assert moved(model, canvas, [-2, 0]).sum() == 0


def test_canvases_of_a_first_look_go_back_by_whole_pixels_each_its_own_way():
    canvases = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    by = torch.tensor([[[1, -2], [0, 0]], [[-7, 3], [20, -20]]])
    expected = torch.zeros_like(canvases)
    for row, layer in ((0, 0), (0, 1), (1, 0), (1, 1)):
        down, right = by[row, layer].tolist()
        for y, x in ((y, x) for y in range(8) for x in range(8) if 0 <= y - down < 8 and 0 <= x - right < 8):
            expected[row, layer, :, y, x] = canvases[row, layer, :, y - down, x - right]
    assert shift(canvases, by.float()).equal(expected) and expected[1, 1].abs().max() == 0


@torch.no_grad()
def test_a_second_look_at_the_context_places_later_frames_better_and_leaves_the_contexts_own_alone():
    model = load_run("smmnist-transport", device="cpu").model
    clips = load_dataset("digits", None, "test", seq_len=12)
    video = torch.stack(clips.__getitems__(range(64))).float() / 255
    once, twice = (model.train(mode)(video, torch.zeros(1, 64, 11, model.z_dim), 5) for mode in (True, False))
    assert once.params[:, :, :4].equal(twice.params[:, :, :4])
    errors = [(model.likelihood.mean(out.params)[0] - video[:, 1:])[:, 4:].square().mean() for out in (once, twice)]
    assert errors[1] < 0.8 * errors[0]


@torch.no_grad()
def test_samples_begin_alike_with_the_mean_of_what_the_context_says():
    model = load_run("smmnist-transport", device="cpu").model
    context = torch.stack(load_dataset("digits", None, "test", seq_len=5).__getitems__(range(8))).float() / 255
    one, many = (model.start(context, noise(n, 8, 4, model.z_dim)) for n in (1, 3))
    parts = ([x.canvases, x.path, *x.memory, *x.seen] for x in (one, many))
    assert all(b.equal(torch.cat([a] * 3)) for a, b in zip(*parts, strict=True))


def sure_of(displacement: list[int], model: Transport) -> torch.Tensor:
    """(1, L, D, D) probabilities, nearly all at one displacement."""
    n = len(model.displacements)
    p = torch.full((1, model.layers, n, n), 1e-9, dtype=torch.float64)
    p[..., displacement[0] + model.reach, displacement[1] + model.reach] = 1
    return p / p.sum((-2, -1), keepdim=True)


def found_by(model: Transport, state: TransportState, p: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    spectrum, trust = model.evidence.spectrum(frame), model.log_trust.exp()
    return model.evidence(spectrum, state.canvases, state.path[:, :, 0], p, trust)[0]


@pytest.mark.parametrize("displacement", [(2, -1), (-1, 0)])
def test_evidence_peaks_at_the_displacement_of_a_layer(displacement):
    model = build(small("transport", layers=1))
    canvas = blob()
    frame = canvas[:, 0].roll(displacement, (-2, -1))
    state = state_of(canvas, [0.0, 0.0], model.rnn_size)
    found = found_by(model, state, sure_of([0, 0], model), frame)
    row, column = divmod(found[0, 0, 0].argmax().item(), 2 * model.reach + 1)
    assert (row - model.reach, column - model.reach) == displacement


def test_evidence_of_a_hidden_layer_is_what_the_others_leave_of_the_frame():
    # The second thing lies where the first one goes, so the whole frame misleads about the first.
    model = build(small("transport", layers=2))
    one, two = torch.zeros(2, 1, 1, 1, 32, 32, dtype=torch.float64)
    one[..., 10:14, 10:14], two[..., 10:14, 12:16] = 1, 1
    canvases = torch.cat([one, two], 1)
    state = state_of(canvases, [0.0, 0.0], model.rnn_size)
    frame = (one + two)[:, 0]  # nothing moves
    found = found_by(model, state, sure_of([0, 0], model), frame)
    assert divmod(found[0, 0, 1].argmax().item(), 2 * model.reach + 1) == (model.reach, model.reach)


def test_layers_that_hold_both_things_follow_one_each():
    model = build(small("transport", layers=2))
    one, two = torch.zeros(2, 1, 1, 32, 32, dtype=torch.float64)
    one[..., 10:14, 10:13], two[..., 18:21, 18:21] = 1, 1
    state = state_of(0.7 * (one + two)[:, None].repeat(1, 2, 1, 1, 1), [0.0, 0.0], model.rnn_size)
    frame = one.roll((1, 2), (-2, -1)) + two.roll((-2, 0), (-2, -1))
    n = len(model.displacements)
    unsure = torch.full((1, 2, n, n), 1 / n**2, dtype=torch.float64)
    found = found_by(model, state, unsure, frame)
    likely = found[0, :, 1].flatten(1).argmax(-1)
    assert {(k // n - model.reach, k % n - model.reach) for k in likely.tolist()} == {(1, 2), (-2, 0)}


def test_where_the_prior_is_sure_every_z_stands_for_the_same_displacement():
    model = build(small("transport"))
    for z in (-3.0, 0.0, 3.0):
        z = torch.full((1, model.layers, 2), z, dtype=torch.float64)
        displacement, q, *_ = model._displacement(sure_of([1, -2], model), z)
        assert q is None
        assert_close(displacement, torch.tensor([1.0, -2.0]).double().expand(1, model.layers, 2))


def test_displacements_of_the_prior_are_as_frequent_as_it_says():
    model = build(small("transport"))
    n, generator = len(model.displacements), torch.Generator().manual_seed(0)
    p = torch.rand(1, 1, n, n, dtype=torch.float64, generator=generator)
    p = (p / p.sum()).expand(20_000, 1, n, n)
    z = torch.randn(20_000, 1, 2, dtype=torch.float64, generator=generator)
    index = (model._displacement(p, z)[0] + model.reach).long().flatten(0, 1)
    counts = torch.zeros(n, n, dtype=torch.float64).index_put_(tuple(index.T), torch.tensor(1.0).double(), True)
    assert_close(counts / counts.sum(), p[0, 0], atol=0.01, rtol=0)


def test_a_posterior_that_knows_the_displacement_finds_it_at_no_more_than_its_surprise():
    model = build(small("transport"))
    torch.nn.init.zeros_(model.fit[-1].weight)
    torch.nn.init.zeros_(model.fit[-1].bias)
    n = len(model.displacements)
    p = torch.full((4000, model.layers, n, n), 1 / n**2, dtype=torch.float64)
    chosen = sure_of([2, -1], model).expand_as(p)
    z = torch.randn(4000, model.layers, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    displacement, q, *_ = model._displacement(p, z, chosen)
    assert ((displacement - torch.tensor([2.0, -1.0])).abs().amax(-1) < 0.5).double().mean() > 0.8
    kl = gaussian_kl(q, standard_normal_like(q))
    assert kl.min() > 1 and kl.max() < math.log(n**2)  # of all densities with these moments q has the largest entropy


def test_a_posterior_that_knows_nothing_new_costs_nothing():
    model = build(small("transport"))
    torch.nn.init.zeros_(model.fit[-1].weight)
    torch.nn.init.zeros_(model.fit[-1].bias)
    n = len(model.displacements)
    p = torch.rand(3, 2, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = p / p.sum((-2, -1), keepdim=True)
    _, q, *_ = model._displacement(p, torch.zeros(3, 2, 2, dtype=torch.float64), p)
    assert gaussian_kl(q, standard_normal_like(q)).abs().max() < 1e-12


def test_moments_are_those_of_samples():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.02, 0.3, 0.18], dtype=torch.float64)
    chosen = torch.tensor([0.1, 0.6, 0.0, 0.3], dtype=torch.float64)
    z = torch.randn(400_000, dtype=torch.float64, generator=generator)
    choice, share = cuts.choose(p.expand(len(z), -1), z)
    assert share.min() >= 0 and share.max() <= 1
    weight = (chosen / p)[choice]
    mean, variance = cuts.moments(cuts.cuts(p), p, chosen)
    sampled = (weight * z).sum() / weight.sum()
    assert_close(mean, sampled, atol=0.02, rtol=0)
    assert_close(variance, (weight * (z - sampled).square()).sum() / weight.sum(), atol=0.02, rtol=0)


def test_the_prior_learns_from_the_kl_alone():
    model = build(small("transport")).train()
    out = model(clips(), noise(1, 2, 5, model.z_dim))
    out.params.sum().backward(retain_graph=True)
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.prior.parameters())
    out.kl().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.prior.parameters())


@pytest.mark.parametrize("actions", [0, 2])
def test_what_is_rehearsed_is_how_likely_the_displacements_were_to_the_prior(actions, monkeypatch):
    model = build(small("transport", actions=actions)).train()
    told = torch.randn(2, 5, actions, dtype=torch.float64) if actions else None
    priors, displacements = [], []
    prior, move = model._prior, model._move

    def record_prior(*inputs):
        priors.append(prior(*inputs)[0])
        return prior(*inputs)

    def record_move(state, p, displacement):
        displacements.append(displacement.detach())
        return move(state, p, displacement)

    monkeypatch.setattr(model, "_prior", record_prior)
    monkeypatch.setattr(model, "_move", record_move)
    tracks = model(clips(), noise(2, 2, 5, model.z_dim), actions=told).tracks
    assert tracks.shape == (2, 5, model.track_size)
    nats = model.rehearse(tracks)
    for frame, (p, displacement) in enumerate(zip(priors, displacements)):
        for video in range(2):  # the first sample's
            rows, columns = (displacement[video].round().long() + model.reach).T
            expected = -torch.stack([layer[i, j] for layer, i, j in zip(p[video], rows, columns)]).log().sum()
            assert_close(nats[video, frame], expected)


def test_rehearsals_teach_the_prior_alone_and_leave_evaluation_as_it_is():
    model = build(small("transport")).train()
    model.rehearse(model(clips(), noise(1, 2, 5, model.z_dim)).tracks).sum().backward()
    taught = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert taught == {f"prior.{name}" for name, _ in model.prior.named_parameters()}
    assert model.eval()(clips(), noise(1, 2, 5, model.z_dim)).tracks is None
    assert build(small("transport", rehearsals=0)).train()(clips(), noise(1, 2, 5, model.z_dim)).tracks is None


@pytest.mark.parametrize("image_size, channels, layers", [(32, 3, 1), (64, 1, 3), (128, 1, 2)])
def test_any_size_number_of_channels_and_layers(image_size, channels, layers):
    cfg = TransportConfig(layers=layers, rnn_size=8, width=4)
    sizes = {"image_size": image_size, "channels": channels, "n_past": 2}
    model = Transport(cfg, build_likelihood("gaussian", channels), **sizes).eval()
    video = torch.rand(2, 3, channels, image_size, image_size)
    futures = model.rollout(video[:, :2], 2, torch.randn(3, 2, 3, model.z_dim))
    assert futures.shape == (3, 2, 2, channels, image_size, image_size)


@pytest.mark.long
def test_the_whole_model_compiles_without_a_graph_break():
    model = build(small("transport"))
    video, eps = clips(2, 4), noise(1, 2, 3, model.z_dim)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(video, eps).params, model(video, eps).params)


def test_settings_that_no_model_could_have_are_refused():
    with pytest.raises(ValueError, match="model.actions is not used with model.prior fixed"):
        TransportConfig(prior="fixed", actions=4)
    with pytest.raises(ValueError, match="model.rehearsals is not used with model.prior none"):
        TransportConfig(prior="none", rehearsals=2)
    with pytest.raises(ValueError, match="model.rehearsals must be in .0, 64., got 65"):
        TransportConfig(rehearsals=65)
    with pytest.raises(ValueError, match="model.actions must be in"):
        TransportConfig(actions=-1)
    with pytest.raises(ValueError, match="model.layers must be >= 1, got 0"):
        dataclasses.replace(TransportConfig(), layers=0)
