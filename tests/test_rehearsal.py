"""What training remembers of earlier clips, and what it learns from them again."""

import dataclasses
import math

import numpy as np
import torch
from torch.testing import assert_close

from seqvae.training.rehearsal import BATCHES
from seqvae.training.session import build_train_state
from seqvae.training.state import TrainState
from seqvae.training.step import train_step
from seqvae.training.terms import frame_statistics
from tests.families import small
from tests.helpers import CPU, GECO, change, video


def state_of(**settings) -> TrainState:
    cfg = change(dataclasses.replace(GECO, model=small("transport", **settings)), "optim", batch_size=3)
    return build_train_state(cfg, 1, CPU)


def test_every_finite_step_is_remembered_and_the_oldest_forgotten():
    state = state_of(rehearsals=2)
    memory = state.rehearsal
    model, clips = state.model, video(0)
    noise = torch.zeros(1, len(clips), clips.shape[1] - 1, model.z_dim)
    tracks = frame_statistics(model.train(), clips, noise)[1]["tracks"]
    yes, no = torch.tensor(True), torch.tensor(False)
    memory.remember(tracks, 3, no)
    assert memory.known.sum() == 0 and memory.tracks.abs().sum() == 0
    memory.remember(tracks, 3, yes)
    memory.remember(tracks * math.nan, 3 + BATCHES, no)
    assert memory.known.nonzero().tolist() == [[3]]
    assert_close(memory.tracks[3], tracks.float())
    memory.remember(tracks + 1, 3 + BATCHES, yes)
    assert_close(memory.tracks[3], tracks.float() + 1)


def test_the_loss_is_the_mean_over_the_frames_of_remembered_clips_that_count():
    state = state_of(rehearsals=8)
    memory, model = state.rehearsal, state.model
    n_clips, n_frames = memory.tracks.shape[2:]
    for place in range(3):
        for clip in range(n_clips):
            memory.tracks[place, :, clip] = 0.1 * place + clip  # any number is a place of something
        memory.known[place] = float(place != 1)  # step 1 was skipped
    memory.tracks[:, -1] = memory.tracks[:, memory.tracks.shape[1] // 2 - 1] = 3  # the displacement chosen
    mask = torch.ones(n_frames, dtype=torch.float64)
    mask[0] = 0
    loss = memory.loss(model, mask, 3, np.random.default_rng(5))
    drawn = np.random.default_rng(5).integers([[3], [n_clips]], size=(2, 8 * n_clips)).T
    chosen = [(batch, clip) for batch, clip in drawn if batch != 1]
    assert 0 < len(chosen) < len(drawn)
    nats = [model.rehearse(memory.tracks[batch, :, clip].T[None])[0, 1:].mean() for batch, clip in chosen]
    assert_close(loss, torch.stack(nats).mean())
    memory.known.zero_()
    assert memory.loss(model, mask, 3, np.random.default_rng(5)) == 0


def test_rehearsals_change_the_prior_alone_from_the_second_step_on():
    with_them, without = state_of(rehearsals=4), state_of(rehearsals=0)
    assert without.rehearsal is None and "rehearsal" not in without.state_dict()
    for step in range(2):
        for state in (with_them, without):
            train_step(state, video(step))
        same = {
            name: torch.equal(weight, dict(without.model.named_parameters())[name])
            for name, weight in with_them.model.named_parameters()
        }
        if step == 0:
            assert all(same.values())
    assert {name for name, equal in same.items() if not equal} == {
        f"prior.{name}" for name, _ in with_them.model.prior.named_parameters()
    }
