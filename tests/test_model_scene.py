"""The scene family's parts, each against something simpler."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqvae.config import SceneConfig
from seqvae.likelihoods import build_likelihood
from seqvae.models import Scene
from tests.families import build, clips, noise, small

NARROW = -1e9  # log spread: 0.17 px


def displaced(model: Scene, picture: Tensor, motion: tuple[float, float]) -> Tensor:
    """By one motion that arrives at that displacement: the inverse of softsign, which bounds it."""
    reach = model.displacements[-1]
    raw = [float(m / (1 - abs(m) / reach)) for m in motion]
    return model._displace(picture, picture.new_tensor([[[*raw, NARROW]]]))[:, 0]


@pytest.mark.parametrize("motion", [(0, 0), (1, 0), (0, -1), (-1, 1)])
def test_whole_pixels_are_exact_and_edges_repeat(motion):
    model, picture = build(small("scene")), clips(1, 1)[:, 0]
    dy, dx = motion
    rows, columns = ((torch.arange(32) - d).clamp(0, 31) for d in motion)
    assert_close(displaced(model, picture, (dy, dx)), picture[:, :, rows][..., columns], atol=1e-5, rtol=0)


def test_every_motion_is_a_picture_of_its_own():
    model, picture = build(small("scene"), channels=3), clips(2, 1, 3)[:, 0]
    motions = noise(2, 2, 3)
    moved = model._displace(picture, motions)
    assert moved.shape == (2, 2, 3, 32, 32)
    assert_close(moved[1, 1], model._displace(picture[1:], motions[1:, 1:])[0, 0])


def fixed(pixels: nn.Sequential, logits: dict[int, float]) -> None:
    """Make a network's pictures these numbers by channel, 0 elsewhere, at every pixel and always."""
    last = pixels[0]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        for channel, value in logits.items():
            last.bias.view(-1, 16)[channel] = value


def test_behind_no_figure_lies_the_first_frame_or_the_last_as_the_masks_say():
    model, video, eps = build(small("scene", prior="none")), clips(2, 3), noise(1, 2, 2, 0)
    fixed(model.figure.pixels, {0: -100})
    fixed(model.ground.pixels, {0: 100})
    assert_close(model.step(model.start(video, eps), noise(2, 0))[1].picture, video[:, 0])
    fixed(model.ground.pixels, {1: 200})
    assert_close(model.step(model.start(video, eps), noise(2, 0))[1].picture, video[:, 2])


def test_an_opaque_figure_hides_the_ground_and_leaves_it_as_it_is():
    model, video, eps = build(small("scene", prior="none")), clips(2, 3), noise(1, 2, 2, 0)
    fixed(model.figure.pixels, {0: 100, 1: math.log(3)})
    fixed(model.ground.pixels, {0: 100})
    state = model.start(video, eps)
    assert_close(state.picture, video[:, 2])  # observed
    assert_close(model.step(state, noise(2, 0))[1].picture, torch.full_like(video[:, 0], 0.75))
    assert_close(model.step(state, noise(2, 0))[1].ground, video[:, 0])


def test_a_model_without_a_latent_has_no_part_for_it():
    names = build(small("scene", prior="none")).state_dict().keys()
    assert not any(name.startswith(("prior", "posterior")) for name in names)


@pytest.mark.parametrize("image_size, channels, motions", [(32, 3, 1), (128, 1, 3)])
def test_any_size_number_of_channels_and_motions(image_size, channels, motions):
    cfg = SceneConfig(motions=motions, rnn_size=8, width=4)
    model = Scene(cfg, build_likelihood("gaussian", channels), image_size=image_size, channels=channels, n_past=2)
    futures = model.eval().rollout(
        torch.rand(2, 2, channels, image_size, image_size), 2, torch.randn(3, 2, 3, model.z_dim)
    )
    assert futures.shape == (3, 2, 2, channels, image_size, image_size)


@pytest.mark.long
def test_the_whole_model_compiles_without_a_graph_break():
    model = build(small("scene"))
    video, eps = clips(2, 4), noise(1, 2, 3, model.z_dim)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(video, eps).params, model(video, eps).params)


def test_settings_that_no_model_could_have_are_refused():
    with pytest.raises(ValueError, match="model.z-dim is not used with model.prior none"):
        SceneConfig(prior="none", z_dim=4)
    with pytest.raises(ValueError, match="model.motions must be >= 1, got 0"):
        dataclasses.replace(SceneConfig(), motions=0)
