"""GECO on a grid of tolerances, data sets, learning-rate schedules and seeds, against a sweep of fixed weights.

    python -m benchmarks.geco_grid --root data --out runs/geco_grid           train what is missing, one JSON line a run
    python -m benchmarks.geco_grid --out runs/geco_grid --report              tables and the rate-distortion figure

The data sets of `SMALL` take a quarter of a minute to one minute a run on one CPU core; `transport`, the model and
data of `demo`, 5 to 7. Tolerances are multiples of the RMSE that the sigma-VAE ends with, and the fixed weights are
multiples of the weight that this RMSE amounts to, so nothing is chosen by hand for a data set. Rates and errors are
those of eval mode on 2,000 test clips that no run has seen.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from datasets import load_dataset
from seqvae.config import (
    ComputeConfig,
    DigitsConfig,
    ElboConfig,
    GaussianConfig,
    GecoConfig,
    ImageConfig,
    MnistConfig,
    ObjectiveConfig,
    OptimalSigmaConfig,
    OptimConfig,
    RunConfig,
    RunSettings,
    SvgConfig,
    TransportConfig,
)
from seqvae.device import as_float
from seqvae.objectives.geco import Geco, PaperRule
from seqvae.presets import PRESETS
from seqvae.training.session import build_train_state
from seqvae.training.step import BATCHES, step_rng, train_step
from seqvae.training.validation import note_validation, validate

FACTORS = (0.7, 0.85, 1.0, 1.2, 1.5)  # tolerance over the sigma-VAE's final RMSE
WEIGHTS = (0.015, 0.05, 0.2, 1.0, 4.0, 25.0)  # fixed weights over the calibrated weight at that RMSE
FIRST_SEED = 0  # whose sigma-VAE run the tolerances are multiples of
SCHEDULES = ("constant", "cosine")
N_TRAIN, N_VALID, N_TEST = 6_000, 512, 2_000
LOG_EVERY, VALIDATIONS = 20, 10  # steps between records of lambda; validations of a run
CPU = torch.device("cpu")

_DIGITS = DigitsConfig(image_size=32, digit_size=16, max_speed=6, n_past=1, n_future=3)
_PREDICTOR = SvgConfig(width=8, z_dim=8, g_dim=64, rnn_size=64, predictor_layers=1)
_MNIST = MnistConfig()
_IMAGES = ImageConfig(width=8, z_dim=16, g_dim=64)
_SHORT = OptimConfig(steps=1_600, batch_size=8, lr=2e-3, warmup=50)
DATA = {  # what the clips are, model, channels, optimizer
    "mnist": (_MNIST, _IMAGES, 1, OptimConfig(steps=1_200, batch_size=32, lr=6e-3, warmup=50)),
    "digits": (_DIGITS, _PREDICTOR, 1, _SHORT),
    "colour": (_DIGITS, _PREDICTOR, 3, _SHORT),  # three clips of digits, one for each colour
    "transport": (PRESETS["demo"][1].data, TransportConfig(), 1, PRESETS["demo"][1].optim),
}
SMALL = ("mnist", "digits", "colour")


class PiRule(PaperRule):
    """PI control of the log error from the first step on, as Stooke et al. 2020, arXiv:2007.03964, control a cost."""

    proportional, integral = 1.0, 3e-3

    def __init__(self, shape: tuple[int, ...], tolerance: float) -> None:
        super().__init__(shape, tolerance, decay=0.99, step_size=0.0, lambda_init=1 / (2 * tolerance**2))
        self.register_buffer("last", torch.zeros(shape, dtype=torch.float64))

    def move(self, log_lambda: Tensor, error: Tensor, gap: Tensor, n: Tensor, lr: float, remaining: int) -> Tensor:
        change = torch.where(n == 0, error, error - self.last)
        self.last.copy_(error)
        log_lambda = log_lambda + self.integral * error + self.proportional * change
        return log_lambda.clamp(self.start - self.limit, self.start + self.limit)


RULES = {"adaptive": None, "paper": None, "pi": PiRule}  # other than objective.rule's own: what takes its place
METHODS = ("sigma", "fixed", *RULES)


def load_clips(name: str, root: str | None, split: str, n: int) -> Tensor:
    """(n, T, C, H, W) uint8."""
    data, _, channels, *_ = DATA[name]
    data = dataclasses.replace(data, root=root) if name == "mnist" else data
    clips = load_dataset(split=split, **data.arguments())
    if channels == 1:
        return torch.stack([clips[i] for i in range(min(n, len(clips)))])
    return torch.stack([torch.cat([clips[3 * i + c] for c in range(3)], dim=1) for i in range(n)])


def settings(name: str, schedule: str, seed: int, objective: ObjectiveConfig, sigma: float | None) -> RunConfig:
    """A run's settings; `sigma` makes a fixed weight of 1 / (2 sigma^2), which GECO needs none of."""
    data, model, _, optim = DATA[name]
    likelihood = OptimalSigmaConfig() if sigma is None else GaussianConfig(sigma=sigma)
    return RunConfig(
        data=data,
        model=model,
        likelihood=GaussianConfig() if objective.name == "geco" else likelihood,
        objective=objective,
        optim=dataclasses.replace(optim, schedule=schedule),
        compute=ComputeConfig(amp="native" if name == "transport" else "off", compile="off", workers=0),
        run=RunSettings(seed=seed, n_valid=N_VALID),
    )


def train_one(cfg: RunConfig, clips: dict[str, Tensor], rule: Callable | None = None) -> dict:
    """Trains and returns final numbers on the test clips, with lambda and the training error over time."""
    train_state = build_train_state(cfg, clips["train"].shape[2], CPU)
    if rule is not None:
        train_state.objective = Geco(cfg.objective.tolerance, rule)
    started, trace, n = time.time(), [], len(clips["train"])
    while train_state.step < cfg.optim.steps:
        chosen = step_rng(cfg.run.seed, BATCHES, train_state.step).integers(n, size=cfg.optim.batch_size)
        train_step(train_state, as_float(clips["train"][chosen], CPU))
        if train_state.step % LOG_EVERY == 0 and cfg.objective.name == "geco":
            trace.append((train_state.objective.log_lambda.exp().item(), train_state.objective.rmse().item()))
        if train_state.step % (cfg.optim.steps // VALIDATIONS) == 0:
            validated = validate(train_state, clips["valid"])
            note_validation(train_state, validated)
    result = {"minutes": (time.time() - started) / 60, "valid_rmse": validated["valid/rmse"]}
    if cfg.objective.name == "geco":
        result |= {"verdict": train_state.objective.verdict(), "trace": trace}
    train_state.cfg = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, n_valid=N_TEST))
    tested = validate(train_state, clips["test"])
    return result | {"rmse": tested["valid/rmse"], "kl": tested["valid/kl_nats_per_frame"]}


def read(path: Path) -> dict[tuple, dict]:
    """Finished runs by (data, schedule, method, value, seed)."""
    lines = path.read_text().splitlines() if path.exists() else []
    runs = [json.loads(line) for line in lines]
    return {(r["data"], r["schedule"], r["method"], r["value"], r["seed"]): r for r in runs}


# ---- what the runs say


def front(runs: dict[tuple, dict], name: str, schedule: str) -> list[tuple[float, float]]:
    """(RMSE, KL) of the fixed-weight runs that no other one beats in both, by rising RMSE."""
    points = sorted(
        (r["rmse"], r["kl"]) for key, r in runs.items() if key[:3] == (name, schedule, "fixed") and r["kl"] > 0
    )
    return [p for i, p in enumerate(points) if all(p[1] < other[1] for other in points[:i])]


def front_kl(points: list[tuple[float, float]], rmse: float) -> float | None:
    """KL of the front at an RMSE, its logarithm linear between two points; None outside the front."""
    for (left, high), (right, low) in pairwise(points):
        if left <= rmse <= right:
            return math.exp(math.log(high) + (rmse - left) / (right - left) * math.log(low / high))
    return None


def settled(run: dict, tolerance: float) -> int | None:
    """Step from which the training error stays within 5 % of its last value; None if that is not the tolerance."""
    errors = [rmse / run["trace"][-1][1] for _, rmse in run["trace"]]
    if abs(run["trace"][-1][1] / tolerance - 1) > 0.1:
        return None
    outside = [i for i, error in enumerate(errors) if abs(error - 1) > 0.05]
    return LOG_EVERY * (outside[-1] + 1 if outside else 0)


def report(runs: dict[tuple, dict]) -> list[str]:
    """Markdown: the sweeps, and a row for each GECO run."""
    lines = ["| data | schedule | weight / calibrated | RMSE / sigma-VAE's | KL |", "|---|---|---|---|---|"]
    base = {key[:2]: r["rmse"] for key, r in runs.items() if key[2] == "sigma" and key[4] == FIRST_SEED}
    for (name, schedule, method, value, _), r in runs.items():
        if method in ("sigma", "fixed"):
            what = f"{value:g}" if method == "fixed" else f"sigma-VAE, RMSE {r['rmse']:.4f}"
            lines.append(f"| {name} | {schedule} | {what} | {r['rmse'] / base[name, schedule]:.3f} | {r['kl']:.2f} |")
    lines += [
        "",
        "| data | schedule | rule | tolerance / sigma-VAE's RMSE | RMSE / tolerance, clips steered by | others | KL "
        "| KL / front at that RMSE | peak lambda / start | settled | verdict |",
        "|---" * 11 + "|",
    ]
    for (name, schedule, method, value, _), r in sorted(runs.items(), key=lambda item: [str(x) for x in item[0]]):
        if method in ("sigma", "fixed"):
            continue
        tolerance = value * base[name, schedule]
        best = front_kl(front(runs, name, schedule), r["rmse"])
        beside = "outside" if best is None else f"{r['kl'] / best:.2f}"
        peak = 2 * tolerance**2 * max(weight for weight, _ in r["trace"])
        step = settled(r, tolerance)
        cells = [name, schedule, method, f"{value:g}", f"{r['valid_rmse'] / tolerance:.3f}"]
        cells += [f"{r['rmse'] / tolerance:.3f}", f"{r['kl']:.2f}", beside, f"{peak:.2f}"]
        lines.append("| " + " | ".join([*cells, "no" if step is None else str(step), r["verdict"]]) + " |")
    return lines


def draw(runs: dict[tuple, dict], names: Sequence[str], path: Path) -> None:
    """Rate against distortion, a panel for each data set; GECO where its tolerance was met with a latent alive."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator

    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        schedule = "constant" if front(runs, name, "constant") else "cosine"
        here = {key: r for key, r in runs.items() if key[:2] == (name, schedule)}
        rmse = here[name, schedule, "sigma", None, FIRST_SEED]["rmse"]
        for method, label, style in (
            ("fixed", "a sweep of fixed weights, one run for each", dict(marker="o", linestyle="-", color="0.6")),
            ("adaptive", "GECO, one run for a tolerance (dotted)", dict(marker="x", linestyle="", color="C0")),
            ("sigma", "sigma-VAE, one run", dict(marker="*", linestyle="", color="C3", markersize=11)),
        ):
            chosen = {key: r for key, r in here.items() if key[2] == method and r["kl"] > 0.05}
            if method == "adaptive":
                chosen = {key: r for key, r in chosen.items() if r["verdict"] == "met"}
                for value in {key[3] for key in chosen}:
                    axes.axvline(value * rmse, color="C0", linewidth=0.8, linestyle=":")
            points = sorted((r["rmse"], r["kl"]) for r in chosen.values())
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, **style)
        axes.set(title=name, xlabel="distortion: RMSE per pixel", ylabel="rate: KL, nats per frame", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter("")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/geco_grid"))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--data", nargs="+", default=SMALL, choices=DATA)
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES, choices=SCHEDULES)
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS)
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[FIRST_SEED])
    parser.add_argument(
        "--report", action="store_true", help="print tables, draw OUT/rate_distortion.png, train nothing"
    )
    args = parser.parse_args(argv)
    if args.report:
        runs = read(args.out / "runs.jsonl")
        if not runs:
            parser.error(f"{args.out} holds no runs to report")
        print("\n".join(report(runs)))
        names = [name for name in args.data if any(key[0] == name for key in runs)]
        draw(runs, names, args.out / "rate_distortion.png")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "runs.jsonl"
    loaded: dict[str, dict[str, Tensor]] = {}
    for method in args.methods:
        values = {"sigma": [None], "fixed": args.weights}.get(method, args.factors)
        cells = [
            (name, schedule, method, value, seed)
            for seed in (args.seeds if method != "fixed" else [FIRST_SEED])
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
            objective, sigma = ElboConfig(), None
            if method != "sigma":
                if (name, schedule, "sigma", None, FIRST_SEED) not in runs:
                    parser.error(
                        f"run --methods sigma on {name} first: tolerances and weights are multiples of its own"
                    )
                rmse = runs[name, schedule, "sigma", None, FIRST_SEED]["rmse"]
                if method == "fixed":
                    sigma = rmse / math.sqrt(value)
                else:
                    rule = "paper" if method == "paper" else "adaptive"
                    objective = GecoConfig(tolerance=value * rmse, rule=rule)
            cfg = settings(name, schedule, seed, objective, sigma)
            result = train_one(cfg, loaded[name], RULES.get(method))
            line = dict(zip(("data", "schedule", "method", "value", "seed"), cell)) | result
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            short = {k: v for k, v in line.items() if k != "trace"}
            print(json.dumps(short), flush=True)


if __name__ == "__main__":
    main()
