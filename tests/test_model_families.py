"""What holds for every model family, whatever is inside it."""

import copy
import dataclasses
import json

import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from seqvae.config import VARIANTS, ComputeConfig, DigitsConfig, ModelConfig, OptimConfig, RunConfig, from_json, to_json
from seqvae.gaussian import Gaussian
from seqvae.likelihoods import LIKELIHOODS
from seqvae.models import FAMILIES, SVG, Prediction
from seqvae.training.session import build_train_state
from seqvae.training.step import train_step
from tests.families import IMAGES, build, clips, noise, run_of, small, variants
from tests.helpers import assert_bitwise_equal

CPU = torch.device("cpu")
RUN = RunConfig(
    data=DigitsConfig(image_size=32, n_past=2, n_future=2), optim=OptimConfig(steps=6, batch_size=3, lr=1e-3)
)


def n_latent_frames(cfg: ModelConfig, n_past: int, n_future: int) -> int:
    """Frames with a latent in a prediction."""
    return max(n_past - 1, 0) + n_future


@pytest.mark.parametrize("cfg", variants())
@pytest.mark.parametrize("n_past", [1, 3])
def test_start_and_step_equal_forward_on_the_frames_they_predict(cfg, n_past):
    model, n_future = build(cfg), 3
    n_past = n_past if cfg.needs_context else 0
    n_observed = max(n_past - 1, 0)
    eps = noise(1, 2, n_observed + n_future, model.z_dim)
    video, stepped = clips(2, n_past), []
    with torch.no_grad():
        state = model.start(video, eps[:, :, :n_observed])
        for t in range(n_observed, n_observed + n_future):
            params, state = model.step(state, eps[0, :, t])
            stepped.append(params)
            video = torch.cat([video, model.likelihood.mean(params)[:, None]], dim=1)
        assert torch.stack(stepped).std() > 0.1, "pictures without contrast would prove nothing"
        as_posterior = eps.clone()  # the noise with which the posterior draws the latents that the prior drew
        for t in [t for t in range(n_observed, n_observed + n_future) for _ in range(2)]:  # q of z may see z before it
            if latents := model(video, as_posterior, n_past).first_latents():
                q, p = latents
                z = p.mu[:, t] + (p.logvar[:, t] / 2).exp() * eps[0, :, t]
                as_posterior[0, :, t] = (z - q.mu[:, t]) / (q.logvar[:, t] / 2).exp()
        out = model(video, as_posterior, n_past)
    assert_close(out.params[0, :, n_observed:], torch.stack(stepped, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg", variants())
def test_predictions_do_not_depend_on_the_other_videos_or_samples(cfg):
    model, n_past = build(cfg), 2 if cfg.needs_context else 0
    video, eps = clips(4, n_past), noise(3, 4, n_latent_frames(cfg, n_past, 3), model.z_dim)
    together, alone = model.rollout(video, 3, eps), model.rollout(video[2:3], 3, eps[1:2, 2:3])
    assert together.shape == (3, 4, 3, 1, 32, 32)
    assert_close(together[1, 2], alone[0, 0], atol=1e-6, rtol=0)
    assert not model.has_latent or (together[0] - together[1]).abs().max() > 1e-3, "samples must differ"


@pytest.mark.parametrize("cfg", variants())
def test_a_state_holds_tensors_batch_first(cfg):
    model, n_past = build(cfg), 2 if cfg.needs_context else 0
    with torch.no_grad():
        state = model.start(clips(5, n_past), noise(3, 5, max(n_past - 1, 0), model.z_dim))
        states = [state, model.step(state, noise(15, model.z_dim))[1]]
    for state in states:
        assert isinstance(state, tuple) and hasattr(state, "_fields")
        for leaf in tree_leaves(state):
            assert leaf is None or len(leaf) in (5, 15)  # a row per video, shared by its samples, or one per sample


@pytest.mark.parametrize("cfg", variants())
def test_every_parameter_gets_a_finite_gradient(cfg):
    model, video = build(cfg).train(), clips(frames=6)
    n_frames = 5 if cfg.needs_context else 6
    out = model(video, noise(2, 2, n_frames, model.z_dim))
    assert out.params.shape == (2, 2, n_frames, model.likelihood.param_channels, 32, 32)
    assert (out.q is None) == (not model.has_latent) and model.has_latent == cfg.has_latent
    (out.kl().sum(-1).mean() - model.likelihood.log_prob(out.params, video[:, -n_frames:]).mean()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_in_one_parameter_group_and_the_likelihoods_in_none(family):
    model = build(small(family), "shared-sigma")
    grouped = [id(weight) for group in model.parameter_groups() for weight in group["params"]]
    sigma = {id(weight) for weight in model.likelihood.parameters()}
    assert len(grouped) == len(set(grouped)) and sigma
    assert set(grouped) == {id(weight) for weight in model.parameters()} - sigma


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_predicts_with_every_likelihood_in_colour(family, likelihood):
    cfg = small(family)
    model, n_past = build(cfg, likelihood, channels=3), 2 if cfg.needs_context else 0
    frames, sigma = model.predict(clips(2, n_past, 3), 2, noise(3, 2, n_latent_frames(cfg, n_past, 2), model.z_dim))
    assert frames.shape == (3, 2, 2, 3, 32, 32) and 0 <= frames.min() <= frames.max() <= 1
    assert sigma is None or sigma.ndim == 0 or torch.broadcast_shapes(sigma.shape, frames.shape) == frames.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_refuse_training_mode(family):
    cfg = small(family)
    model, n_past = build(cfg).train(), 2 if cfg.needs_context else 0
    video, eps = clips(2, n_past + 1), noise(1, 2, n_latent_frames(cfg, n_past, 1), model.z_dim)
    for draw in (lambda: model.reconstruct(video, eps[0]), lambda: model.rollout(video[:, :n_past], 1, eps)):
        with pytest.raises(AssertionError, match="eval mode"):
            draw()


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_that_training_compiles_and_recomputes_exist(family):
    model = build(small(family))
    assert all(isinstance(getattr(model, name), torch.nn.Module) for name in model.compiled)
    assert all(callable(getattr(model, name)) for name in model.recomputed)


def test_flags_that_a_family_has_no_part_for_are_refused(monkeypatch):
    monkeypatch.setattr(SVG, "compiled", ())
    monkeypatch.setattr(SVG, "recomputed", ())
    for option, message in (({"compile": "on"}, "no part to compile"), ({"checkpoint_activations": True}, "recompute")):
        with pytest.raises(ValueError, match=message):
            build_train_state(dataclasses.replace(RUN, compute=ComputeConfig(**option)), 1, CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_resumes_bit_for_bit_and_its_state_says_the_size_of_videos(family):
    cfg = run_of(RUN, small(family))
    video = torch.rand(3, cfg.data.seq_len, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    whole, resumed = build_train_state(cfg, 1, CPU), build_train_state(cfg, 1, CPU)
    train_step(whole, video)
    state = copy.deepcopy(whole.state_dict())
    assert (state["channels"], state["image_size"]) == (1, 32)
    resumed.load_state_dict(state)
    for train_state in (whole, resumed):
        train_step(train_state, video)
    assert_bitwise_equal(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_json_names_the_family_and_holds_its_fields_alone(family):
    cfg = run_of(RUN, small(family))
    tree = json.loads(json.dumps(to_json(cfg)))
    assert tree["model"]["family"] == family and from_json(tree) == cfg
    with pytest.raises(ValueError, match="model.*typo"):
        from_json(tree | {"model": tree["model"] | {"typo": 1}})
    for other in FAMILIES.keys() - {family}:
        unknown = {f.name for f in dataclasses.fields(VARIANTS["model"][1][other])} - tree["model"].keys()
        for name in unknown:
            with pytest.raises(ValueError, match=f"model.{name.replace('_', '-')} is not a setting of {family}"):
                from_json(tree | {"model": tree["model"] | {name: 1}})
    del tree["model"]["family"]
    with pytest.raises(ValueError, match="model.family is missing"):
        from_json(tree)


def test_latents_that_depend_on_the_sample_give_the_mean_kl_and_every_samples_log_ratio():
    q, p = (Gaussian(*each.unbind()) for each in noise(2, 2, 3, 4, 5, 6))  # (K, B, F, Z)
    z = noise(3, 4, 5, 6)
    whole, kls = Prediction(torch.empty(0), q, p, z), []
    for k in range(3):
        one = Prediction(torch.empty(0), Gaussian(*(x[k] for x in q)), Gaussian(*(x[k] for x in p)), z[k : k + 1])
        assert_close(whole.log_ratio()[k], one.log_ratio()[0])
        kls.append(one.kl())
    assert_close(whole.kl(), torch.stack(kls).mean(0))


def test_a_family_is_refused_on_data_that_it_is_not_for():
    for data, family in ((IMAGES, "svg"), (RUN.data, "image")):
        with pytest.raises(ValueError, match=f"data.name {data.name} holds .* models of family {family} are for"):
            RunConfig(data=data, model=small(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_width_that_does_not_divide_into_groups_of_16_channels_builds(family):
    group = {"norm": "group"} if small(family).norm != "group" else {}
    norms = [m for m in build(small(family, width=56, **group)).modules() if isinstance(m, torch.nn.GroupNorm)]
    assert any(norm.num_channels == 56 for norm in norms)
