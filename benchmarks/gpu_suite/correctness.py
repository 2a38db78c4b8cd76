"""Whether CUDA computes what the CPU does."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import evaluate
import train
from benchmarks.gpu_suite.record import Cases, Numbers, Setting, Skip, at_most
from datasets import load_dataset
from datasets.on_device import device_batches
from seqvae.config import RunConfig
from seqvae.device import as_float
from seqvae.metrics.frame import without_tf32
from seqvae.models import FAMILIES
from seqvae.training import checkpoint, session
from seqvae.training.state import TrainState
from seqvae.training.step import train_step
from seqvae.training.terms import batch_terms
from tests.families import SMALL, run_of, small
from tests.helpers import GECO_FLAGS, SIGMA_FLAGS, combinations

CPU = torch.device("cpu")
PRESET_OF = dict.fromkeys(("transport", "scene"), "smmnist-transport-sigma")
PRESET_OF |= {"svg": "smmnist-sigma", "image": "mnist-sigma"}
STEP_TOLERANCE = 1e-4  # relative, float32 against float64


def marked_tests(setting: Setting) -> Cases:
    """The tests that need a GPU."""

    def run() -> Numbers:
        files = [str(path) for path in Path("tests").glob("test_*.py") if "mark.cuda" in path.read_text()]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", *files]
        done = subprocess.run(command, env=os.environ | {"SEQVAE_DATA": setting.root}, capture_output=True, text=True)
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)}
        if done.returncode == 0 and "passed" not in counts:
            raise Skip(f"{counts.get('skipped', 0)} tests need a CUDA device")
        text = {} if done.returncode == 0 else {"text": (done.stdout + done.stderr)[-4_000:]}
        return counts | {"ok": done.returncode == 0} | text

    return {"pytest -m cuda": run}


# ---- one training step


def all_combinations() -> dict[str, RunConfig]:
    """Every model family x objective x likelihood at tiny sizes."""
    return {
        f"{family} {param.id}": run_of(param.values[0], small(family))
        for family in FAMILIES
        for param in combinations()
    }


def clips_of(cfg: RunConfig) -> Tensor:
    """(B, T, 1, S, S) uint8 of noise, on the CPU."""
    shape = (cfg.optim.batch_size, cfg.data.seq_len, 1, cfg.data.image_size, cfg.data.image_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def plain(cfg: RunConfig) -> RunConfig:
    """The same run in float32, not compiled."""
    return dataclasses.replace(cfg, compute=dataclasses.replace(cfg.compute, amp="off", compile="off"))


def loss_of(train_state: TrainState, video: Tensor, noise: Tensor) -> Tensor:
    """The loss of a training step."""
    _, terms = batch_terms(train_state.model, video, noise, train_state.mask, amp=train_state.amp)
    return train_state.objective(terms)[0]


def loss_and_gradient(train_state: TrainState, video: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a training step with fixed noise, float64 on the CPU."""
    shape = (train_state.n_importance, len(video), train_state.n_predicted, train_state.model.z_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = loss_of(train_state, video, noise.to(video))
    loss.backward()
    gradient = torch.cat([weight.grad.double().cpu().flatten() for weight in train_state.model.parameters()])
    return loss.detach().double().cpu(), gradient


def same_step(setting: Setting) -> Cases:
    """Loss and gradient in float32 on the device, against float64 on the CPU."""

    def step(cfg: RunConfig, weights: dict, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        torch.set_default_dtype(dtype)
        try:
            train_state = session.build_train_state(plain(cfg), 1, device)
            train_state.model.to(dtype).load_state_dict(weights)  # `to` for buffers made as float32
            return loss_and_gradient(train_state, as_float(clips_of(cfg), CPU).to(device, dtype))
        finally:
            torch.set_default_dtype(torch.float32)

    def compare(cfg: RunConfig) -> Numbers:
        weights = session.build_train_state(plain(cfg), 1, CPU).model.state_dict()
        with without_tf32():
            ours = step(cfg, weights, setting.device, torch.float32)
            exact = step(cfg, weights, CPU, torch.float64)
        errors = [relative(*pair) for pair in zip(ours, exact)]
        return {"loss": errors[0], "gradient": errors[1]} | at_most(max(errors), STEP_TOLERANCE)

    return {name: lambda cfg=cfg: compare(cfg) for name, cfg in all_combinations().items()}


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


# ---- whole runs


def same_results(setting: Setting) -> Cases:
    """bfloat16, resuming, clips made on the device, and evaluation."""
    cases: Cases = {
        f"bfloat16 against float32, {family}": lambda f=family: half_precision(setting, f) for family in FAMILIES
    }
    cases["resume"] = lambda: in_folder(resume, setting)
    for name, options in (("moving_mnist", {"digit_size": 28}), ("moving_mnist", {"digit_size": 32}), ("digits", {})):
        title = " ".join([name, *map(str, options.values())])
        cases[f"clips on the device, {title}"] = lambda n=name, o=options: same_clips(setting, n, o)
    cases["evaluation"] = lambda: in_folder(same_scores, setting)
    return cases


def in_folder(case: Callable[[Setting, Path], Numbers], setting: Setting) -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        return case(setting, Path(folder))


def preset_run(setting: Setting, family: str, *flags: str) -> RunConfig:
    """Settings of a family's sigma preset, made of the model's and the data's tiny sizes in a rehearsal."""
    options = {"data.root": setting.root, "compute.device": setting.device.type}
    if setting.tiny:
        options |= {f"model.{name.replace('_', '-')}": value for name, value in SMALL[family].items()}
        options |= {"optim.batch-size": 2, "optim.steps": 20, "data.image-size": 32}
        if family != "image":
            options |= {"data.max-speed": 3, "data.n-past": 2, "data.n-future": 3}
    return train.parse(
        [
            PRESET_OF[family],
            f"--model.family={family}",
            *(f"--{name}={value}" for name, value in options.items()),
            *flags,
        ]
    )


def first_clips(cfg: RunConfig, device: torch.device) -> Tensor:
    """(B, T, C, S, S) floats on the device: the first training clips."""
    dataset = load_dataset(split="train", **cfg.data.arguments())
    return as_float(torch.stack([dataset[i] for i in range(cfg.optim.batch_size)]), device)


def half_precision(setting: Setting, family: str) -> Numbers:
    """RMSE of the last steps of short trainings on one batch, with the same noise."""
    n_steps, last = (6, 3) if setting.tiny else (50, 10)
    rmse = {}
    for amp in ("off", "bf16"):
        size = [] if setting.tiny else ["--optim.batch-size=32"]
        cfg = preset_run(setting, family, f"--compute.amp={amp}", "--compute.compile=off", *size)
        train_state, video = session.build_train_state(cfg, 1, setting.device), first_clips(cfg, setting.device)
        values = torch.stack([train_step(train_state, video)["rmse"] for _ in range(n_steps)])
        rmse[amp] = values[-last:].mean().item()
    difference = abs(rmse["bf16"] / rmse["off"] - 1)
    return {"float32_rmse": rmse["off"], "bf16_rmse": rmse["bf16"], "relative": difference} | at_most(difference, 0.05)


def resume(setting: Setting, folder: Path) -> Numbers:
    """Six steps at once against three, a checkpoint and three more, and against another six: the noise of CUDA."""
    common = [*SIGMA_FLAGS, "--compute.amp=off", "--compute.compile=off", f"--compute.device={setting.device.type}"]
    common.append("--optim.schedule=constant")  # a cosine would stretch with the number of steps

    def weights(name: str, *stops: int) -> Tensor:
        for steps in stops:
            assert train.main([*common, f"--optim.steps={steps}", f"--run-dir={folder / name}"]) == 0
        state = checkpoint.load(folder / name / "checkpoints" / "last.pt")["model"]
        return torch.cat([value.double().flatten() for value in state.values()])

    whole, resumed, again = weights("whole", 6), weights("resumed", 3, 6), weights("again", 6)
    error = relative(resumed, whole)
    return {"resumed": error, "run_again": relative(again, whole)} | at_most(error, 1e-4)


def same_clips(setting: Setting, name: str, options: dict) -> Numbers:
    """`--compute.data device` against the dataset's clips."""
    n_clips = 20 if setting.tiny else 1_000
    root = None if name == "digits" else setting.root
    dataset = load_dataset(name, root, "train", seq_len=15, **options)
    clips = device_batches(dataset, setting.device)(range(n_clips)).cpu()
    expected = torch.stack([dataset[i] for i in range(n_clips)])
    return {"clips": n_clips, "ok": clips.equal(expected)}


def same_scores(setting: Setting, folder: Path) -> Numbers:
    """A run evaluated on the CPU and on the device; then one file of predictions, scored on both."""
    run_dir = folder / "run"
    assert train.main([*GECO_FLAGS, "--compute.device=cpu", f"--run-dir={run_dir}"]) == 0

    def scores(what: list[str], device: str, out: Path) -> dict[str, float]:
        flags = ["--device", device, "--n-videos", "4", "--n-samples", "3", "--lpips", "off", "--out", str(out)]
        assert evaluate.main([*what, *flags]) == 0
        best = json.loads((out / "metrics.json").read_text())["best_of_n"]
        return {f"{metric}{n}": value["mean"] for metric in best for n, value in best[metric].items()}

    cpu = scores([str(run_dir), "--save-predictions"], "cpu", folder / "cpu")
    ours = scores([str(run_dir)], setting.device.type, folder / "device")
    file = scores(["--from-predictions", str(folder / "cpu" / "predictions.h5")], setting.device.type, folder / "file")
    predicted, scored = (max(abs(other[key] - cpu[key]) for key in cpu) for other in (ours, file))
    verdict = at_most(max(predicted, 100 * scored), 0.01)
    return {"predicted_difference": predicted, "scored_difference": scored} | verdict
