"""GECO on a grid of tolerances, data sets, learning-rate schedules and seeds, against a sweep of fixed weights.

    python -m benchmarks.geco_grid --root data --out runs/geco_grid           train what is missing, one JSON line a run
    python -m benchmarks.geco_grid --out runs/geco_grid --report              tables and the rate-distortion figure

Each data set is small enough that a run takes 15 to 30 seconds on one CPU core. Tolerances are multiples of the RMSE
that the sigma-VAE ends with, and the fixed weights are multiples of the weight that this RMSE amounts to, so nothing
is chosen by hand for a data set. Rates and errors are those of eval mode on 512 test clips that no run has seen.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from datasets import load_dataset
from seqvae.config import (
    ComputeConfig,
    DataConfig,
    LikelihoodConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    RunSettings,
)
from seqvae.models import ImageConfig, SvgConfig
from seqvae.objectives.geco import Geco, PaperRule
from seqvae.training.trainer import BATCHES, as_float, step_rng
from train import build_trainer

FACTORS = (0.7, 0.85, 1.0, 1.2, 1.5)  # tolerance over the sigma-VAE's final RMSE
WEIGHTS = (0.015, 0.05, 0.2, 1.0, 4.0, 25.0)  # fixed weights over the calibrated weight at that RMSE
SCHEDULES = ("constant", "cosine")
N_TRAIN, N_VALID, N_TEST = 6_000, 256, 512
LOG_EVERY, VALIDATIONS = 20, 10  # steps between records of lambda; validations of a run
CPU = torch.device("cpu")

_DIGITS = DataConfig(name="digits", image_size=32, digit_size=16, max_speed=6, n_past=1, n_future=3)
_PREDICTOR = SvgConfig(width=8, z_dim=8, g_dim=64, rnn_size=64, predictor_layers=1)
_MNIST = DataConfig(name="mnist", n_past=0, n_future=1, image_size=32)
_IMAGES = ImageConfig(width=8, z_dim=16, g_dim=64)
DATA = {  # what the clips are, model, channels, steps, batch, learning rate
    "mnist": (_MNIST, _IMAGES, 1, 1_200, 32, 6e-3),
    "digits": (_DIGITS, _PREDICTOR, 1, 800, 8, 2e-3),
    "colour": (_DIGITS, _PREDICTOR, 3, 800, 8, 2e-3),  # three clips of digits, one for each colour
}


class PiRule(PaperRule):
    """PI control of the log error from the first step on, as Stooke et al. 2020, arXiv:2007.03964, control a cost."""

    proportional, integral = 1.0, 3e-3

    def __init__(self, shape: tuple[int, ...], tolerance: float) -> None:
        super().__init__(shape, tolerance, decay=0.99, step_size=0.0, lambda_init=1 / (2 * tolerance**2))
        self.register_buffer("last", torch.zeros(shape, dtype=torch.float64))

    def move(self, log_lambda: Tensor, error: Tensor, gap: Tensor, n: Tensor, lr: float, remaining: float) -> Tensor:
        change = torch.where(n == 0, error, error - self.last)
        self.last.copy_(error)
        log_lambda = log_lambda + self.integral * error + self.proportional * change
        return log_lambda.clamp(self.center - self.limit, self.center + self.limit)


RULES = {"adaptive": None, "paper": None, "pi": PiRule}  # other than objective.rule's own: what takes its place


def load_clips(name: str, root: str | None, split: str, n: int) -> Tensor:
    """(n, T, C, H, W) uint8."""
    data, _, channels, *_ = DATA[name]
    data = dataclasses.replace(data, root=root) if name == "mnist" else data
    clips = load_dataset(split=split, **data.arguments())
    if channels == 1:
        return torch.stack([clips[i] for i in range(min(n, len(clips)))])
    return torch.stack([torch.cat([clips[3 * i + c] for c in range(3)], dim=1) for i in range(n)])


def settings(name: str, schedule: str, seed: int, objective: ObjectiveConfig, sigma: float | None) -> RunConfig:
    """A run's settings; `sigma` makes a fixed weight of 1 / (2 sigma^2)."""
    data, model, _, steps, batch, lr = DATA[name]
    gaussian = objective.name == "geco" or sigma is not None
    return RunConfig(
        data=data,
        model=model,
        likelihood=LikelihoodConfig(name="gaussian", sigma=sigma) if gaussian else LikelihoodConfig(),
        objective=objective,
        optim=OptimConfig(steps=steps, batch_size=batch, lr=lr, schedule=schedule, warmup=50),
        compute=ComputeConfig(amp="off", compile="off", workers=0),
        run=RunSettings(seed=seed, n_valid=N_VALID),
    )


def train_one(cfg: RunConfig, clips: dict[str, Tensor], rule: Callable | None = None) -> dict:
    """Trains and returns final numbers on the test clips, with lambda and the training error over time."""
    trainer = build_trainer(cfg, clips["train"].shape[2], CPU)
    if rule is not None:
        trainer.objective = Geco(cfg.objective.tolerance, rule)
    started, trace, n = time.time(), [], len(clips["train"])
    while trainer.step < cfg.optim.steps:
        chosen = step_rng(cfg.run.seed, BATCHES, trainer.step).integers(n, size=cfg.optim.batch_size)
        trainer.train_step(as_float(clips["train"][chosen], CPU))
        if trainer.step % LOG_EVERY == 0 and cfg.objective.name == "geco":
            trace.append((trainer.objective.log_lambda.exp().item(), trainer.objective.rmse().item()))
        if trainer.step % (cfg.optim.steps // VALIDATIONS) == 0:
            validated = trainer.validate(clips["valid"])
            trainer.note_validation(validated)
    result = {"minutes": (time.time() - started) / 60, "valid_rmse": validated["valid/rmse"]}
    if cfg.objective.name == "geco":
        result |= {"verdict": trainer.objective.verdict(), "trace": trace}
    trainer.cfg = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, n_valid=N_TEST))
    tested = trainer.validate(clips["test"])
    return result | {"rmse": tested["valid/rmse"], "kl": tested["valid/kl_nats_per_frame"]}


def read(path: Path) -> dict[tuple, dict]:
    """Finished runs by (data, schedule, method, value, seed)."""
    lines = path.read_text().splitlines() if path.exists() else []
    runs = [json.loads(line) for line in lines]
    return {(r["data"], r["schedule"], r["method"], r["value"], r["seed"]): r for r in runs}


def sigma_rmse(runs: dict[tuple, dict], name: str, schedule: str, seeds: list[int]) -> float:
    """Mean RMSE that the sigma-VAE's runs end with."""
    return sum(runs[name, schedule, "sigma", None, seed]["rmse"] for seed in seeds) / len(seeds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/geco_grid"))
    parser.add_argument("--methods", nargs="+", default=["sigma", "fixed", *RULES])
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES, choices=SCHEDULES)
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "runs.jsonl"
    loaded: dict[str, dict[str, Tensor]] = {}
    for method in args.methods:
        values = {"sigma": [None], "fixed": WEIGHTS}.get(method, args.factors)
        cells = [
            (name, schedule, method, value, seed)
            for seed in (args.seeds if method != "fixed" else args.seeds[:1])
            for name in args.data
            for schedule in args.schedules
            for value in values
        ]
        for cell in cells:
            runs = read(path)
            if cell in runs:
                continue
            name, schedule, _, value, seed = cell
            if name not in loaded:
                counts = {"train": N_TRAIN, "valid": N_VALID, "test": N_TEST}
                loaded[name] = {split: load_clips(name, args.root, split, n) for split, n in counts.items()}
            objective, sigma = ObjectiveConfig(), None
            if method != "sigma":
                rmse = sigma_rmse(runs, name, schedule, args.seeds)
                if method == "fixed":
                    sigma = rmse / math.sqrt(value)
                else:
                    rule = "paper" if method == "paper" else "adaptive"
                    objective = ObjectiveConfig(name="geco", tolerance=value * rmse, rule=rule)
            cfg = settings(name, schedule, seed, objective, sigma)
            result = train_one(cfg, loaded[name], RULES.get(method))
            line = dict(zip(("data", "schedule", "method", "value", "seed"), cell)) | result
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            short = {k: v for k, v in line.items() if k != "trace"}
            print(json.dumps(short), flush=True)


if __name__ == "__main__":
    main()
