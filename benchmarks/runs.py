"""Train and evaluate a list of runs through the command line's own entry points, and print markdown tables of them."""

import json
import math
import platform
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch

import evaluate
import train
from seqvae.config import read_config
from seqvae.training import checkpoint
from seqvae.training.logger import read_metrics


def train_and_evaluate(run_dir: Path, flags: Sequence[str], evaluation: Sequence[str]) -> dict:
    """evaluation's metrics.json, with `minutes` of training and `end`, the reason if training failed ("" if not).

    An existing run folder is resumed, so the same command finishes an interrupted table.
    """
    code = train.main([*flags, "--run-dir", str(run_dir)])
    if code == 2:
        raise SystemExit(2)  # the settings are wrong, and train.py has said how
    cfg = read_config(run_dir)
    if code == 0 and checkpoint.load(run_dir / "checkpoints" / "last.pt")["step"] < cfg.optim.steps:
        raise SystemExit("stopped by a signal; the same command resumes it")
    report = {"end": "training failed"}
    if code == 0:
        out = run_dir / "table"
        evaluated = evaluate.main([str(run_dir), *evaluation, "--out", str(out)]) == 0
        report = json.loads((out / "metrics.json").read_text()) if evaluated else {"end": "evaluation failed"}
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "train/frames_per_second" in line]
    return report | {
        "minutes": training_seconds(run_dir) / 60,
        "skipped": max((line["train/skipped_steps"] for line in lines), default=0),
    }


def training_seconds(run_dir: Path, until: float = math.inf) -> float:
    """Seconds of training up to step `until`, without validation, samples and checkpoints."""
    cfg, metrics = read_config(run_dir), read_metrics(run_dir / "metrics.jsonl")
    lines = [line for line in metrics if "train/frames_per_second" in line and line["step"] <= until]
    frames = cfg.optim.batch_size * cfg.data.n_predicted  # of a step
    steps = [b - a for a, b in pairwise([0, *(line["step"] for line in lines)])]
    return sum(n * frames / line["train/frames_per_second"] for n, line in zip(steps, lines, strict=True))


def markdown(columns: dict[str, Callable[[dict], str]], rows: dict[str, dict]) -> list[str]:
    """One line per row, one column per entry, whose function reads the row's report."""
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, report in rows.items():
        cells = [cell(report) if "bounds" in report else report["end"] for cell in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def machine() -> str:
    """What the table was made on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
