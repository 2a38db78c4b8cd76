"""Several processes, several passes per step, activations computed again: all of them the step of one process."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.testing import assert_close

import train
from datasets.on_device import device_batches
from seqvae import distributed
from seqvae.build import build_model
from seqvae.config import (
    ComputeConfig,
    DiscreteConfig,
    ElboConfig,
    GaussianConfig,
    GecoConfig,
    GecoIwaeConfig,
    ImageConfig,
    IwaeConfig,
    LikelihoodConfig,
    MnistConfig,
    ObjectiveConfig,
    OptimalSigmaConfig,
    RunConfig,
    SharedSigmaConfig,
)
from seqvae.likelihoods.base import Densities
from seqvae.likelihoods.gaussian import OneSigma, gaussian_log_prob
from seqvae.objectives import Elbo
from seqvae.training import session
from seqvae.training.logger import read_metrics
from seqvae.training.loop import StepSampler, TrainingFailed
from seqvae.training.session import UNFINISHED, build_train_state
from seqvae.training.state import TrainState
from seqvae.training.step import train_step
from seqvae.training.terms import batch_terms
from tests.families import small
from tests.helpers import (
    TINY,
    TINY_FLAGS,
    assert_bitwise_equal,
    change,
    combinations,
    final,
    flat,
    free_port,
    start_two,
    wait_for,
)

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
GROUP = change(change(TINY, "model", norm="group"), "optim", batch_size=5)
STEPS, BROKEN_STEP = 10, 4


def cases() -> dict[str, RunConfig]:
    geco = GecoConfig(tolerance=0.1)
    gaussian = GaussianConfig()

    def case(objective: ObjectiveConfig, likelihood: LikelihoodConfig) -> RunConfig:
        return dataclasses.replace(GROUP, objective=objective, likelihood=likelihood)

    found = {
        "geco": case(geco, gaussian),
        "geco-per-frame": case(dataclasses.replace(geco, per_frame=True), gaussian),
        "optimal-sigma": case(ElboConfig(), OptimalSigmaConfig(dequantise=True)),
        "optimal-sigma-soft-clip": case(ElboConfig(), OptimalSigmaConfig(soft_clip=True)),
        "iwae": case(IwaeConfig(n_importance=2), SharedSigmaConfig()),
        "geco-iwae": case(GecoIwaeConfig(n_importance=2, tolerance=0.1), gaussian),
        "batch-scale": GROUP,
        "free-bits": case(ElboConfig(free_bits=1e-4, kl_warmup=5), DiscreteConfig()),
    }
    clipped = change(change(found["geco"], "optim", ema=0.5), "optim", grad_clip=1.0)
    found["a-step-of-nan"] = clipped
    found["geco-two-passes"] = change(clipped, "optim", accumulate=2)
    found["optimal-sigma-two-passes"] = change(found["optimal-sigma"], "optim", accumulate=2)
    found["rehearsals"] = dataclasses.replace(found["geco-two-passes"], model=small("transport", rehearsals=3))
    found["prior-alone"] = change(found["rehearsals"], "optim", train="prior")
    return found


def trained(name: str, cfg: RunConfig) -> dict:
    """State and numbers after some steps of this process's part of the batch."""
    torch.manual_seed(1)
    train_state, log = with_batch_scale(cfg) if name == "batch-scale" else build_train_state(cfg, 1, CPU), []
    for step in range(STEPS):
        video = torch.rand(5, 4, 1, 32, 32, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        if name == "a-step-of-nan" and step == BROKEN_STEP:
            video[4, 2, 0, 5, 5] = torch.nan  # the last clip, which process 1 has
        numbers = train_step(train_state, video[distributed.shard(5)])
        log.append({key: value.tolist() for key, value in numbers.items()})
    return {"state": train_state.state_dict(), "status": train_state.status(), "log": log}


def one_of_two(rank: int, port: int, folder: Path) -> None:
    join(rank, port)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    results = {name: trained(name, cfg) for name, cfg in cases().items()}
    torch.save(results, folder / f"{rank}.pt")
    distributed.leave()


def join(rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.join(cuda=False, timeout=60)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    """What each of two processes, with 3 and 2 of 5 clips, made of every case."""
    folder = tmp_path_factory.mktemp("two")
    method = "spawn" if torch.cuda.is_available() else "fork"  # CUDA does not survive a fork
    torch.multiprocessing.start_processes(one_of_two, (free_port(), folder), nprocs=2, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", cases())
def test_two_processes_with_unequal_shares_train_as_one(name, two_processes, float64):
    first, second = (results[name] for results in two_processes)
    same = [{part: results["state"][part] for part in ("objective", "counters")} for results in (first, second)]
    assert_bitwise_equal(*same)  # equal, not close: nothing would bring two multipliers together again
    cfg = change(cases()[name], "optim", accumulate=1)
    alone = trained(name, cfg)
    for ours in (first, second):
        theirs, mine = flat(alone["state"]), flat(ours["state"])
        assert theirs.keys() == mine.keys()
        for key, value in theirs.items():
            assert_close(mine[key], value, rtol=1e-6, atol=1e-6, msg=lambda text: f"{key}: {text}")  # noqa: B023
        assert_close(ours["status"], alone["status"], rtol=1e-6, atol=1e-6)
        assert_close(ours["log"], alone["log"], rtol=1e-6, atol=1e-6, equal_nan=True)
    if name == "a-step-of-nan":
        assert second["state"]["counters"].tolist() == [1, 0, 1]
        assert [line["loss"] != line["loss"] for line in second["log"]].index(True) == BROKEN_STEP
    before, after = dict(build_train_state(cfg, 1, CPU).model.named_parameters()), alone["state"]["model"]
    assert max((after[key] - before[key]).abs().max() for key in before.keys() & after.keys()) > 1e-3


# ---- several passes per step


def with_passes(cfg: RunConfig, k: int) -> TrainState:
    cfg = change(change(cfg, "model", norm="group"), "optim", accumulate=k, batch_size=5)
    return build_train_state(cfg, 1, CPU)


def more_combinations() -> list:
    settings = [("per_frame", "geco-gaussian", True), ("form", "geco-iwae-gaussian", "additive")]
    settings += [("constraint_on", "geco-iwae-gaussian", "q"), ("free_bits", "elbo-gaussian", 1e-4)]
    settings += [("loss_on", "geco-gaussian", "future")]
    known = {param.id: param.values[0] for param in combinations()}
    found = [pytest.param(change(known[id], "objective", **{f: value}), id=f"{id}-{f}") for f, id, value in settings]
    for name in ("optimal-sigma", "optimal-sigma-per-image"):
        cfg = change(known[f"elbo-{name}"], "likelihood", soft_clip=True, dequantise=True)
        found.append(pytest.param(cfg, id=f"{name}-soft-clip-dequantised"))
    return found


@pytest.mark.parametrize("cfg", [*combinations(), *more_combinations()])
def test_a_step_in_several_passes_is_the_step_of_one(cfg, float64):
    whole, parts = with_passes(cfg, 1), with_passes(cfg, 3)
    for step in range(2):
        video = torch.rand(5, 4, 1, 32, 32, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        assert_close(*(train_step(train_state, video) for train_state in (parts, whole)), rtol=1e-9, atol=1e-9)
        for (name, one), other in zip(parts.model.named_parameters(), whole.model.parameters()):
            assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9, msg=lambda text: f"{name}: {text}")  # noqa: B023
    assert_close(*(flat(train_state.state_dict()) for train_state in (parts, whole)), rtol=1e-6, atol=1e-8)


def test_batch_norms_running_statistics_move_once_for_each_pass():
    train_state = build_train_state(change(TINY, "optim", accumulate=3), 1, CPU)
    train_step(train_state, torch.rand(3, 4, 1, 32, 32))
    assert train_state.model.encoder.levels[0][1].num_batches_tracked == 3


class BatchScale(OneSigma):
    """A likelihood of no registry, with a parameter, whose every frame is scored by the batch's largest error."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def variance(self) -> torch.Tensor:
        return (2 * self.log_scale.double()).exp()

    def densities(self, statistics, dims, mask=None) -> Densities:
        variance = self.variance() * (statistics["sse"] * mask).max() / dims
        log_px = gaussian_log_prob(statistics["sse"], dims, variance)
        return Densities(log_px, log_px)


def with_batch_scale(cfg: RunConfig) -> TrainState:
    """A run of `cfg` with a likelihood that the training code has never heard of."""
    model = build_model(cfg, 1)
    model.likelihood = BatchScale(1)
    return TrainState(cfg, model, Elbo(1.0), CPU)


def test_a_new_likelihood_that_looks_at_the_batch_is_right_in_several_passes(float64):
    whole, parts = (with_batch_scale(change(GROUP, "optim", accumulate=k)) for k in (1, 3))
    video = torch.rand(5, 4, 1, 32, 32, dtype=torch.float64)
    assert_close(*(train_step(train_state, video) for train_state in (parts, whole)), rtol=1e-9, atol=1e-9)
    for one, other in zip(parts.model.parameters(), whole.model.parameters()):
        assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9)
    assert parts.model.likelihood.log_scale.grad.abs() > 1


# ---- activations computed again


def kept_bytes(train_state: TrainState, video: torch.Tensor) -> int:
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        batch_terms(train_state.model, video, torch.zeros(1, 3, 3, 3), train_state.mask)
    return sum(kept.values())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("network", ["dcgan", "vgg"])
def test_activations_computed_again_give_the_same_step_and_take_less_memory(network, norm):
    cfg = change(change(TINY, "model", norm=norm, network=network), "optim", ema=0.5)
    plain = build_train_state(cfg, 1, CPU)
    again = build_train_state(change(cfg, "compute", checkpoint_activations=True), 1, CPU)
    for step in range(2):
        video = torch.rand(3, 4, 1, 32, 32, generator=torch.Generator().manual_seed(step))
        assert_close(*(train_step(train_state, video) for train_state in (again, plain)), rtol=0, atol=0)
    assert_bitwise_equal(plain.state_dict(), again.state_dict())  # running statistics and their counts too
    assert kept_bytes(again, video) < 0.5 * kept_bytes(plain, video)


def test_activations_are_computed_again_for_images_and_in_several_passes():
    data = MnistConfig()
    model = ImageConfig(width=4, g_dim=8, z_dim=3)
    cfg = change(dataclasses.replace(TINY, data=data, model=model), "optim", accumulate=2, batch_size=4)
    plain, again = (
        build_train_state(change(cfg, "compute", checkpoint_activations=on), 1, CPU) for on in (False, True)
    )
    video = torch.rand(4, 1, 1, 32, 32)
    assert_close(*(train_step(train_state, video) for train_state in (again, plain)), rtol=0, atol=0)
    assert_bitwise_equal(plain.state_dict(), again.state_dict())
    with pytest.raises(ValueError, match="needs 2 images in every pass.*--optim.batch-size 4 or more"):
        build_train_state(change(cfg, "optim", batch_size=3), 1, CPU)


# ---- which clips, and who is who


def test_processes_share_the_clips_of_a_step_whatever_their_number(monkeypatch):
    whole = list(StepSampler(1000, 7, 0, range(4)))
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(distributed, "world_size", lambda: size)  # noqa: B023
        parts = []
        for rank in range(size):
            monkeypatch.setattr(distributed, "rank", lambda: rank)  # noqa: B023
            parts.append(list(StepSampler(1000, 7, 0, range(4))))
        assert [sum(step, []) for step in zip(*parts)] == whole
        assert {len(step) for part in parts for step in part} <= {7 // size, 7 // size + 1}


def test_a_run_that_failed_by_itself_has_not_lost_the_others(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(distributed.PeerLost, match="process 0 of 2"), distributed.peers():
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(TrainingFailed), distributed.peers():
        raise TrainingFailed("10 steps in a row; runs/gloo/checkpoints/last.pt is the last checkpoint")


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT not set"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "RANK 2 and WORLD_SIZE 2 describe no",
        ),
        (
            {"RANK": "a", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "RANK a and WORLD_SIZE 2 describe no",
        ),
    ],
)
def test_half_a_launch_is_one_message(variables, words, monkeypatch, capsys, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train.main(["demo-svg", *TINY_FLAGS, "--run-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert words in err and "torchrun" in err and err.count("\n") == 1


def test_one_process_under_a_launcher_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    distributed.join(cuda=False, timeout=1)
    assert distributed.launched() == (0, 1) and distributed.world_size() == 1


@pytest.mark.parametrize(
    "change_cfg, words",
    [
        (lambda cfg: change(cfg, "model", norm="batch"), "pass --model.norm group"),
        (lambda cfg: change(cfg, "optim", accumulate=3), "pass --optim.batch-size 6 or more"),
    ],
)
def test_what_processes_cannot_do_names_the_remedy(change_cfg, words, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=words):
        build_train_state(change_cfg(GROUP), 1, CPU)


# ---- where clips are made


def test_clips_made_on_the_device_are_those_of_the_host(tmp_path, capsys):
    for where in ("host", "device"):
        assert train.main(["demo-svg", *TINY_FLAGS, "--run-dir", str(tmp_path / where), "--compute.data", where]) == 0
    assert_bitwise_equal(*(final(tmp_path / where) for where in ("host", "device")))
    assert 0 < read_metrics(tmp_path / "device" / "metrics.jsonl")[0]["train/data_wait"] < 1
    cfg = change(RunConfig(), "compute", data="device")
    with pytest.raises(ValueError, match="clips of digits cannot be made on the device; pass --compute.data auto"):
        session.clip_source(cfg, torch.utils.data.TensorDataset(), CPU, device_batches)
    assert (
        session.clip_source(change(cfg, "compute", data="auto"), torch.utils.data.TensorDataset(), CPU, device_batches)
        is None
    )
    assert ComputeConfig().data == "auto"


# ---- train.py, several times at once


def two_trainings(folder: Path, *flags: str) -> list:
    """Each process has a run folder of its own, so that it shows who writes."""
    command = ["demo-svg", *TINY_FLAGS, "--model.norm", "group", *flags, "--compute.timeout", "30", "--run-dir"]
    return start_two("train", *([*command, str(folder / str(rank))] for rank in range(2)))


def test_a_killed_process_ends_the_others_a_signal_to_one_stops_all_and_one_process_goes_on(tmp_path):
    # The adaptive rule and a cosine aim at the last step, which differs below.
    rule = ("--optim.schedule", "constant", "--objective.rule", "paper")
    checkpoints, flags = tmp_path / "0" / "checkpoints", ("--optim.steps", "100000", *rule)
    first, second = two_trainings(tmp_path, *flags)
    wait_for((checkpoints / "previous.pt").exists, first)
    second.kill()
    out, err = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 1 and err.count("\n") == 1, err
    assert "process 0 of 2 has lost the others" in err and "the same command resumes" in err
    reached = final(tmp_path / "0")["step"]

    metrics = tmp_path / "0" / "metrics.jsonl"
    logged = read_metrics(metrics)[-1]["step"]  # may be ahead of the checkpoint
    first, second = two_trainings(tmp_path, *flags)
    wait_for(lambda: read_metrics(metrics)[-1]["step"] > logged, first)
    second.send_signal(signal.SIGTERM)
    (out, err), (quiet, second_err) = (process.communicate(timeout=60) for process in (first, second))
    assert first.returncode == second.returncode == UNFINISHED, (err, second_err)
    stopped = final(tmp_path / "0")["step"]
    assert f"step {reached}" in out and f"SIGTERM: saved at step {stopped}" in out and quiet == ""
    assert not (tmp_path / "1").exists(), "process 0 alone writes"

    # One process goes on where two stopped; all steps by one process come to the same, up to rounding.
    command = ["demo-svg", *TINY_FLAGS, "--model.norm", "group", *rule]
    command += ["--optim.steps", str(stopped + 2)]
    for name in ("0", "whole"):
        assert train.main([*command, "--run-dir", str(tmp_path / name)]) == 0
    lines = [
        {line["step"]: line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "train/rmse" in line}
        for name in ("0", "whole")
    ]
    assert lines[0].keys() == lines[1].keys() == set(range(1, stopped + 3))
    for key in ("train/rmse", "geco/lambda", "geco/constraint"):
        assert_close(*([line[key] for line in run.values()] for run in lines), rtol=1e-3, atol=1e-5)


def test_dry_run_under_torchrun_prints_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    command += ["demo-svg", *TINY_FLAGS, "--run-dir", str(tmp_path / "run"), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights        ") == 1 and not (tmp_path / "run").exists()
    settings, end = json.JSONDecoder().raw_decode(done.stdout)
    assert settings["optim"]["accumulate"] == 1 and "2 processes x 1 passes a step, of 2 clips" in done.stdout[end:]


def test_a_process_that_never_comes_ends_the_wait_with_one_line(tmp_path, monkeypatch, capsys):
    launch = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    begin = time.monotonic()
    assert train.main(["demo-svg", *TINY_FLAGS, "--compute.timeout", "1", "--run-dir", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert "process 0 of 2 has lost the others" in err and err.count("\n") == 1
    assert time.monotonic() - begin < 60 and not (tmp_path / "run").exists()
