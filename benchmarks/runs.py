"""Train and evaluate a list of runs through the command line's own entry points, and print markdown tables of them."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import evaluate
import train


def train_and_evaluate(run_dir: Path, flags: Sequence[str], evaluation: Sequence[str]) -> dict:
    """evaluation's metrics.json, with `minutes` of training and `end`, the reason if training failed ("" if not).

    A run folder that is there already is gone on with, so a broken table is finished by the same command.
    """
    start = time.perf_counter()
    code = train.main([*flags, "--run-dir", str(run_dir)])
    minutes = (time.perf_counter() - start) / 60
    if code == 2:
        raise SystemExit(2)  # the settings are wrong, and train.py has said how
    report = {"minutes": minutes, "end": "" if code == 0 else "training failed"}
    if code == 0 and evaluate.main([str(run_dir), *evaluation]) == 0:
        (path,) = (run_dir / "evaluation").glob("*/metrics.json")
        report |= json.loads(path.read_text())
    skipped = [json.loads(line).get("train/skipped_steps", 0) for line in (run_dir / "metrics.jsonl").open()]
    return report | {"skipped": max(skipped, default=0)}


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
