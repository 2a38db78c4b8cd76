import dataclasses
import errno
import math
import random
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from datasets import load_dataset
from seqvae.config import (
    GaussianConfig,
    GecoIwaeConfig,
    ImageConfig,
    IwaeConfig,
    MnistConfig,
    OptimConfig,
    SharedSigmaConfig,
)
from seqvae.training import checkpoint
from seqvae.training.checkpoint import (
    DamagedCheckpoint,
    ForeignCheckpoint,
    load,
    load_latest,
    save,
    set_aside_damaged,
    write_atomically,
)
from seqvae.training.logger import Logger, read_metrics
from seqvae.training.loop import MAX_SKIPPED, StepSampler, TrainingFailed, run
from seqvae.training.session import build_train_state, init_from
from seqvae.training.state import TrainState
from seqvae.training.step import learning_rate, train_step
from seqvae.training.terms import batch_terms, frame_statistics
from seqvae.training.validation import note_validation, validate
from tests.helpers import CPU, FOREIGN, GECO, TINY, change, combinations, flat, video


def snapshot(train_state: TrainState) -> dict:
    """Bytes of every tensor in the state, for comparing."""
    state = {
        name: value for name, value in train_state.state_dict().items() if name not in ("step", "counters", "best")
    }
    leaves = flat(state).items()
    return {name: leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else leaf for name, leaf in leaves}


@pytest.mark.parametrize("cfg", combinations())
def test_every_objective_and_likelihood_trains_saves_and_resumes(cfg, tmp_path):
    whole = build_train_state(cfg, 1, CPU)
    for i in range(3):
        numbers = train_step(whole, video(i))
        assert all(torch.isfinite(value).all() for value in numbers.values())
        gradients = {name: weight.grad for name, weight in whole.model.named_parameters()}
        assert all(g is not None and torch.isfinite(g).all() for g in gradients.values()), gradients.keys()
    save(tmp_path, whole.state_dict(), best=True)
    resumed = build_train_state(cfg, 1, CPU)
    resumed.load_state_dict(load(tmp_path / "last.pt"))
    for train_state in (whole, resumed):
        train_step(train_state, video(3))
    assert snapshot(whole) == snapshot(resumed)


@pytest.mark.parametrize(
    "cfg, bad",
    [
        *(pytest.param(cfg.values[0], math.nan, id=cfg.id) for cfg in combinations()),
        pytest.param(GECO, math.inf, id="infinity"),
    ],
)
def test_a_step_that_is_not_finite_is_skipped_whole(cfg, bad):
    cfg = change(cfg, "optim", ema=0.5)
    train_state = build_train_state(cfg, 1, CPU)
    train_step(train_state, video())
    before = snapshot(train_state)
    broken = video()
    broken[0, 1, 0, 3, 3] = bad
    train_step(train_state, broken)
    assert snapshot(train_state) == before
    assert train_state.counters.tolist() == [1, 1, 1] and train_state.step == 2
    train_step(train_state, video())
    assert snapshot(train_state) != before and train_state.counters.tolist() == [1, 0, 1]


class Broken(torch.utils.data.Dataset):
    """Clips that are fine; what breaks is the model."""

    channels = 1

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.full((4, 1, 32, 32), i, dtype=torch.uint8)


def test_ten_skipped_steps_in_a_row_end_the_run_and_name_the_last_checkpoint(tmp_path):
    train_state = build_train_state(change(change(TINY, "optim", steps=40), "run", checkpoint_every=100), 1, CPU)
    save(tmp_path / "checkpoints", train_state.state_dict(), best=False)
    with torch.no_grad():
        train_state.model.frame_predictor.head.bias.fill_(math.nan)
    with pytest.raises(
        TrainingFailed, match=rf"{MAX_SKIPPED} steps in a row up to step 10 .*last.pt \(step 0\).*--init-from"
    ):
        run(train_state, tmp_path, Broken(), Broken())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1]["train/skipped_steps"] == 10 and lines[-1]["train/loss"] is None
    assert load(tmp_path / "checkpoints" / "last.pt")["step"] == 0, "broken weights must not be saved"


def test_adams_second_moment_decays_as_asked():
    video = torch.rand(3, TINY.data.seq_len, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    train_state = build_train_state(change(TINY, "optim", beta2=0.5), 1, CPU)
    train_step(train_state, video)
    for weight in train_state.model.parameters():
        moments = train_state.optimizer.state[weight]
        # After one step the means are (1 - beta) of the gradient and of its square: beta1 is 0.9.
        assert_close(moments["exp_avg_sq"], 0.5 * (moments["exp_avg"] / 0.1).square(), rtol=1e-4, atol=1e-30)


def test_averaged_weights_quote_the_sigma_of_the_weights_between_validations():
    train_state = build_train_state(change(GECO, "optim", ema=0.9), 1, CPU)
    train_step(train_state, video(0))
    train_state.eval_model.likelihood.calibrate(0.25)  # as a validation does
    assert_close(train_state.ema.likelihood.quoted_variance().item(), 0.25)
    train_step(train_state, video(1))
    quoted = [model.likelihood.quoted_variance().item() for model in (train_state.ema, train_state.model)]
    assert quoted[0] == quoted[1] != 0.25


def test_averaged_weights_follow_with_the_decay():
    train_state = build_train_state(change(TINY, "optim", ema=0.9), 1, CPU)
    expected = [p.detach().clone() for p in train_state.model.parameters()]
    for step in range(4):
        train_step(train_state, video(step))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, train_state.model.parameters())]
    assert train_state.eval_model is train_state.ema
    for e, p in zip(expected, train_state.ema.parameters()):
        assert_close(p, e)


@pytest.mark.long
def test_averaged_weights_predict_with_averaged_statistics_of_the_norms():
    images = MnistConfig()
    cfg = dataclasses.replace(TINY, data=images, model=ImageConfig(width=4, g_dim=8, z_dim=3))
    cfg = change(cfg, "optim", ema=0.98, lr=1e-2, batch_size=16, steps=300)
    train_state = build_train_state(cfg, 1, CPU)
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(0, 3, 32)

    def waves(n: int) -> torch.Tensor:
        x, y = (1 + 2 * torch.rand(2, n, 1, generator=generator)).unbind()
        return (0.5 + 0.5 * torch.sin(x * axis)[:, :, None] * torch.sin(y * axis)[:, None])[:, None, None]

    for _ in range(cfg.optim.steps):
        train_step(train_state, waves(16))
    held_out = waves(64)

    def rmse(model) -> float:
        return (model.eval().reconstruct(held_out, torch.zeros(64, 1, 3)) - held_out).square().mean().sqrt().item()

    raw, averaged = rmse(train_state.model), rmse(train_state.ema)
    for average, buffer in zip(train_state.ema.buffers(), train_state.model.buffers()):
        average.copy_(buffer)
    assert averaged < raw  # measured: 0.104 and 0.109
    assert averaged < 0.97 * rmse(train_state.ema), "the newest statistics do not fit the averaged weights"


def test_the_weighted_objectives_validate_with_their_own_bound_and_choose_by_it():
    cfg = dataclasses.replace(
        TINY,
        likelihood=GaussianConfig(),
        objective=GecoIwaeConfig(tolerance=0.1, n_importance=3),
    )
    iwae = dataclasses.replace(TINY, likelihood=SharedSigmaConfig(), objective=IwaeConfig(n_importance=3))
    clips = load_dataset(split="valid", **TINY.data.arguments())
    for settings, suffix in ((cfg, "at_best_sigma_nats_per_frame"), (iwae, "nats_per_frame")):
        train_state = build_train_state(settings, 1, CPU)
        train_step(train_state, video())
        numbers = validate(train_state, clips)
        bounds = (numbers[f"valid/{name}_{suffix}"] for name in ("iwae", "elbo"))
        assert 0 < abs(next(bounds) - next(bounds)) < 1  # they hardly differ in an untrained model
        assert note_validation(train_state, numbers) and train_state.best == numbers[f"valid/iwae_{suffix}"]


def test_geco_follows_held_out_clips_of_every_frame():
    train_state = build_train_state(change(GECO, "objective", per_frame=True), 1, CPU)
    train_step(train_state, video())
    numbers = validate(train_state, load_dataset(split="valid", **GECO.data.arguments()))
    assert math.sqrt(sum(x**2 for x in numbers["valid/constraint_rmse"]) / 3) == pytest.approx(numbers["valid/rmse"])
    note_validation(train_state, numbers)
    assert train_state.objective.held_out_rmse().item() == pytest.approx(max(numbers["valid/constraint_rmse"]))


def test_gradient_clipping_changes_the_step_and_reports_the_norm_before_it():
    plain, clipped = build_train_state(TINY, 1, CPU), build_train_state(change(TINY, "optim", grad_clip=1e-9), 1, CPU)
    norms = [train_step(train_state, video())["grad_norm"] for train_state in (plain, clipped)]
    assert_close(norms[0], norms[1])
    moved = [
        (t.model.decoder.levels[0].weight - build_train_state(TINY, 1, CPU).model.decoder.levels[0].weight)
        .abs()
        .max()
        .item()
        for t in (plain, clipped)
    ]
    assert moved[1] < 0.9 * moved[0]  # Adam's epsilon is no longer small beside such a gradient


def test_the_context_can_be_left_out_of_the_loss():
    future = build_train_state(change(TINY, "objective", loss_on="future"), 1, CPU)
    assert future.mask.tolist() == [0, 1, 1]
    results = []
    for filler in (0.0, 1.0):
        train_state, clip = build_train_state(change(TINY, "objective", loss_on="future"), 1, CPU), video()
        train_state.model.eval()
        _, terms = batch_terms(train_state.model, clip, torch.zeros(1, 3, 3, 3), train_state.mask)
        terms.sse[..., 0], terms.kl[:, 0], terms.log_px[..., 0] = filler, filler, filler
        results.append(train_state.objective(terms)[0])
    assert_close(results[0], results[1])


def test_learning_rate_schedules():
    constant = OptimConfig(steps=100, lr=1.0, warmup=10)
    cosine = dataclasses.replace(constant, schedule="cosine")
    assert [learning_rate(constant, s) for s in (0, 4, 9, 10, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert_close([learning_rate(cosine, s) for s in (0, 10, 55, 100)], [0.1, 1.0, 0.5, 0.0], atol=1e-12, rtol=0)


def test_a_learned_sigma_has_its_own_learning_rate():
    train_state = build_train_state(dataclasses.replace(TINY, likelihood=SharedSigmaConfig()), 1, CPU)
    train_step(train_state, video())
    assert [group["lr"] for group in train_state.optimizer.param_groups] == [1e-3, 1e-2]
    assert abs(train_state.model.likelihood.log_sigma.item()) > 5e-3


def test_the_clips_of_a_step_depend_on_the_seed_and_the_step_alone():
    whole = list(StepSampler(1000, 4, 0, range(6)))
    assert list(StepSampler(1000, 4, 0, range(3, 6))) == whole[3:]
    assert list(StepSampler(1000, 4, 1, range(6))) != whole
    assert len({tuple(batch) for batch in whole}) == 6


def test_validation_is_a_function_of_weights_and_clips_and_leaves_the_state():
    train_state = build_train_state(GECO, 1, CPU)
    train_step(train_state, video())
    clips = load_dataset(split="valid", **GECO.data.arguments())
    before = snapshot(train_state)
    first, second = validate(train_state, clips), validate(train_state, clips)
    assert_close(train_state.model.likelihood.quoted_variance().sqrt().item(), first["valid/rmse"])  # it is calibrated
    train_state.model.likelihood.calibrated_mse.zero_()
    assert first == second and snapshot(train_state) == before
    # The ELBO at the best sigma of these clips: compare with a search over sigma.
    mse, kl, dims = first["valid/rmse"] ** 2, first["valid/kl_nats_per_frame"], 32 * 32
    grid = torch.linspace(0.01, 1, 100_000, dtype=torch.float64) ** 2
    best = (-0.5 * dims * (mse / grid + (2 * math.pi * grid).log())).max().item() - kl
    assert_close(first["valid/elbo_at_best_sigma_nats_per_frame"], best, rtol=1e-6, atol=0)


# ---- checkpoints and logs


STATE = {
    "step": 3,
    "channels": 1,
    "image_size": 32,
    "model": {"w": torch.arange(4.0)},
    "ema": None,
    "objective": {},
    "optimizer": {},
}


def test_a_checkpoint_comes_back_as_it_was_and_the_one_before_is_kept(tmp_path):
    save(tmp_path, STATE, best=True)
    save(tmp_path, STATE | {"step": 4}, best=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    steps = [load(tmp_path / f"{name}.pt")["step"] for name in ("last", "previous", "best")]
    assert steps == [4, 3, 3]
    assert_close(load(tmp_path / "last.pt")["model"]["w"], torch.arange(4.0))
    state, note = load_latest(tmp_path)
    assert state["step"] == 4 and note is None


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>"])
def test_a_damaged_last_checkpoint_gives_way_to_the_previous_one(tmp_path, damage):
    save(tmp_path, STATE, best=False)
    save(tmp_path, STATE | {"step": 4}, best=False)
    last = tmp_path / "last.pt"
    last.write_bytes(damage(last.read_bytes()))
    state, note = load_latest(tmp_path)
    assert state["step"] == 3 and "resuming from" in note and "previous.pt, step 3" in note
    assert last.exists(), "nothing is renamed before the state is accepted"
    set_aside_damaged(tmp_path)
    save(tmp_path, STATE | {"step": 5}, best=False)
    assert load(tmp_path / "previous.pt")["step"] == 3, "the damaged file must not take the good one's place"


def test_one_flipped_bit_is_found_or_lies_where_nothing_is_stored(tmp_path):
    path = tmp_path / "last.pt"
    save(tmp_path, STATE | {"model": {"w": torch.randn(64)}}, best=False)
    whole, content = load(path), path.read_bytes()
    n_found, bits = 0, random.Random(0).sample(range(8 * len(content)), 200)
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            state = load(path)
        except DamagedCheckpoint:
            n_found += 1
            continue
        assert torch.equal(state.pop("model")["w"], whole["model"]["w"])
        assert state == {name: value for name, value in whole.items() if name != "model"}
    assert n_found > 50  # in so small a file most of the rest is padding


@pytest.mark.parametrize("name", FOREIGN)
def test_a_whole_file_that_is_not_this_runs_state_is_one_line_and_nothing_is_touched(name, tmp_path):
    train_state = build_train_state(TINY, 1, CPU)
    train_step(train_state, video())
    state = train_state.state_dict()
    save(tmp_path, state, best=False)
    torch.save(FOREIGN[name](state), tmp_path / "last.pt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ForeignCheckpoint) as caught:
        build_train_state(TINY, 1, CPU).load_state_dict(load_latest(tmp_path)[0])
    assert chr(10) not in str(caught.value) and len(str(caught.value)) < 300
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_when_no_checkpoint_can_be_read_nothing_is_overwritten(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"half")
    with pytest.raises(DamagedCheckpoint, match="there is no other"):
        load_latest(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == b"half"


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"step": 1, "model": Path("x")}, tmp_path / "last.pt")
    with pytest.raises(DamagedCheckpoint):
        load(tmp_path / "last.pt")


def test_a_full_disk_leaves_the_older_files_whole(tmp_path, monkeypatch):
    save(tmp_path, STATE, best=True)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, STATE | {"step": 4}, best=True)
    assert load(tmp_path / "last.pt")["step"] == 3 and load(tmp_path / "best.pt")["step"] == 3
    assert not list(tmp_path.glob("*.partial"))


def test_metrics_are_cut_back_to_the_step_a_run_goes_on_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_atomically(path, b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    logger = Logger(tmp_path, TINY, start_step=2)
    logger.log(3, {"x": 1.0})
    logger.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "x": 1.0}]


def test_an_infeasible_tolerance_is_said_in_the_log():
    train_state = build_train_state(change(GECO, "objective", tolerance=1e-4, rule="paper", step_size=5.0), 1, CPU)
    assert train_state.objective.warnings() == []
    for i in range(4):
        train_step(train_state, video(i))
    (sentence,) = train_state.objective.warnings()
    assert "infeasible at this capacity" in sentence and "0.0001" in sentence


def test_weights_that_overflowed_are_never_saved(tmp_path):
    train_state = build_train_state(TINY, 1, CPU)
    save(tmp_path / "checkpoints", train_state.state_dict(), best=True)
    train_step(train_state, video())
    with torch.no_grad():
        train_state.model.prior.head.bias[0] = math.inf
    with pytest.raises(TrainingFailed, match=r"left weights.*last.pt \(step 0\) is the last checkpoint"):
        run(train_state, tmp_path, Broken(), Broken())
    assert load(tmp_path / "checkpoints" / "last.pt")["step"] == 0


def test_a_streak_that_is_over_does_not_end_a_later_part_of_the_run():
    train_state = build_train_state(TINY, 1, CPU)
    for _ in range(MAX_SKIPPED):
        train_step(train_state, torch.full((3, 4, 1, 32, 32), math.nan))
    train_step(train_state, video())
    assert train_state.take_longest_streak() == MAX_SKIPPED
    train_step(train_state, video())
    assert train_state.take_longest_streak() == 0 and train_state.counters[0] == MAX_SKIPPED


def test_averaged_weights_start_as_the_weights_taken_from_another_run(tmp_path):
    other = build_train_state(change(TINY, "run", seed=5), 1, CPU)
    save(tmp_path / "checkpoints", other.state_dict(), best=True)
    train_state = build_train_state(change(TINY, "optim", ema=0.9), 1, CPU)
    init_from(train_state, tmp_path)
    for theirs, ours, average in zip(
        other.model.parameters(), train_state.model.parameters(), train_state.ema.parameters()
    ):
        assert torch.equal(theirs, ours) and torch.equal(ours, average)


def test_a_checkpoint_that_cannot_be_opened_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    save(tmp_path, STATE, best=False)
    save(tmp_path, STATE | {"step": 4}, best=False)

    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(PermissionError):
        load_latest(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_weights_alone_are_nothing_to_go_on_from(tmp_path):
    save(tmp_path, STATE, best=True)
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(ForeignCheckpoint, match="holds weights alone"):
        load_latest(tmp_path)


def test_broken_lines_of_the_log_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{}\n3\n\xff\n{"step": 2, "x": 1}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "x": 1}]


def test_the_settings_of_a_run_reach_its_terms():
    iwae = dataclasses.replace(TINY, likelihood=SharedSigmaConfig(dequantise=True), objective=IwaeConfig())
    for cfg, n_samples, bits in ((iwae, 5, 8.0), (GECO, 1, math.log2(255))):
        train_state = build_train_state(cfg, 1, CPU)
        seen = []
        forward = train_state.objective.forward
        train_state.objective.forward = lambda terms: seen.append(terms) or forward(terms)  # noqa: B023
        train_step(train_state, video())
        assert seen[0].log_ratio.shape[0] == n_samples and seen[0].bits_offset == bits
    # Dequantising changes what is scored, not what the model sees.
    statistics = []
    for cfg in (iwae, change(iwae, "likelihood", dequantise=False)):
        train_state = build_train_state(cfg, 1, CPU)
        noise, generator = torch.zeros(1, 3, 3, 3), torch.Generator().manual_seed(0)
        uniform = train_state.dequantisation_noise(video(), 3, generator)
        statistics.append(frame_statistics(train_state.model.eval(), video(), noise, uniform=uniform)[1])
    noisy, exact = statistics
    assert (noisy["sse"] != exact["sse"]).all() and torch.equal(noisy["kl"], exact["kl"])


def test_a_run_saved_between_validations_quotes_bounds_at_the_moving_average_of_its_errors():
    train_state = build_train_state(GECO, 1, CPU)
    numbers = [train_step(train_state, video(i)) for i in range(2)]
    mse = [n["rmse"].item() ** 2 for n in numbers]
    expected = (0.999 * mse[0] + mse[1]) / 1.999
    likelihood = train_state.model.eval().likelihood
    assert_close(likelihood.quoted_variance().item(), expected)
    params = torch.zeros(1, 1, 100, 100)
    assert_close(
        likelihood.sample(params, torch.Generator().manual_seed(0)).std().item(), expected**0.5, rtol=0.05, atol=0
    )
