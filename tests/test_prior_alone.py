"""Training a prior alone (`--optim.train prior`), on top of weights that stay."""

import copy
import dataclasses

import pytest
import torch
from torch.testing import assert_close

import train
from seqvae.config import OptimConfig, RunConfig
from seqvae.models import FAMILIES
from seqvae.training.session import build_train_state
from seqvae.training.state import TrainState
from seqvae.training.step import train_step
from tests.families import small
from tests.helpers import CPU, GECO, GECO_FLAGS, SIGMA_FLAGS, assert_bitwise_equal, change, final, video

LEARNED = [family for family in FAMILIES if small(family).prior == "learned"]


def state_of(model: dict, trained: str, **optim) -> TrainState:
    cfg = dataclasses.replace(GECO, model=small(**model))
    torch.manual_seed(0)
    return build_train_state(change(cfg, "optim", batch_size=3, train=trained, **optim), 1, CPU)


@pytest.mark.parametrize("family", LEARNED)
def test_the_prior_alone_takes_the_step_that_it_takes_with_the_rest(family):
    model = {"family": family} | ({"norm": "group"} if family == "svg" else {})
    whole, alone = (state_of(model, trained) for trained in ("all", "prior"))
    before = copy.deepcopy(alone.model.state_dict())
    numbers = [train_step(state, video())["kl_nats_per_frame"] for state in (whole, alone)]
    assert_close(*numbers)
    learned = 0
    for name, value in alone.model.state_dict().items():
        if name.startswith("prior."):
            assert_close(value, whole.model.state_dict()[name], atol=1e-6, rtol=1e-6)
            learned += not torch.equal(value, before[name])
        elif not name.startswith("likelihood."):
            assert torch.equal(value, before[name]), name
    assert learned and any(not torch.equal(before[name], value) for name, value in whole.model.state_dict().items())


def test_norms_of_the_parts_that_stay_keep_their_statistics():
    state = state_of({"family": "svg", "norm": "batch"}, "prior", ema=0.5)
    statistics = {name: value.clone() for name, value in state.model.named_buffers() if "running" in name}
    for step in range(2):
        train_step(state, video(step))
    assert statistics
    for model in (state.model, state.ema):
        assert all(torch.equal(dict(model.named_buffers())[name], value) for name, value in statistics.items())


def test_the_command_trains_the_prior_on_top_of_another_run_and_resumes(tmp_path, capsys):
    assert train.main([*SIGMA_FLAGS, "--run-dir", str(tmp_path / "a")]) == 0
    command = [*SIGMA_FLAGS, "--likelihood.name", "shared-sigma", "--init-from", str(tmp_path / "a")]
    command += ["--optim.train", "prior", "--optim.ema", "0.9", "--optim.schedule", "constant"]
    whole, parts = ([*command, "--run-dir", str(tmp_path / name)] for name in ("whole", "parts"))
    assert train.main(whole) == 0
    assert train.main([*parts, "--optim.steps", "3"]) == 0 and train.main(parts) == 0
    assert_bitwise_equal(final(tmp_path / "whole"), final(tmp_path / "parts"))
    theirs, ours = final(tmp_path / "a")["model"], final(tmp_path / "whole")["model"]
    changed = {name.split(".")[0] for name in ours if name not in theirs or not torch.equal(theirs[name], ours[name])}
    assert changed == {"prior", "likelihood"}
    assert "resuming" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_prior_without_trained_weights_beside_it_is_refused(tmp_path, capsys, flags):
    command = [*GECO_FLAGS, "--optim.train", "prior", "--run-dir", str(tmp_path / "a"), *flags]
    assert train.main(command) == 2
    assert "pass --init-from RUN, a run that has trained them" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("prior", ["fixed", "none"])
def test_a_prior_that_does_not_learn_is_refused(prior):
    with pytest.raises(ValueError, match="optim.train prior needs a prior that learns; pass --model.prior learned"):
        RunConfig(model=small("svg", prior=prior), optim=OptimConfig(train="prior"))
