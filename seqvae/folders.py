"""Where a run is: a folder, or a name in pretrained/. No torch."""

import difflib
import os
from pathlib import Path

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"  # shipped with the repository


def pretrained_names() -> list[str]:
    """Weights that come with the repository; none in an installed package."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))


def find_run(run: str | Path) -> Path:
    """The folder of a run: a path, or the name of pretrained weights. FileNotFoundError lists the nearest names."""
    if not isinstance(run, str | os.PathLike):
        raise ValueError(f"run must be a folder or the name of pretrained weights, got {run!r}")
    path = Path(run)
    if (path / "config.json").exists():
        return path
    if str(run) in pretrained_names():
        return PRETRAINED / path
    if path.exists():
        return path  # no run, which whoever reads it reports
    beside = [str(found.parent) for found in sorted(path.parent.glob("*/config.json"))]
    near = difflib.get_close_matches(str(run), [*pretrained_names(), *beside], n=3)
    known = [f"nearest: {', '.join(near)}"] if near else []
    if not near and pretrained_names():
        known = [f"pretrained: {', '.join(pretrained_names())}"]
    raise FileNotFoundError("; ".join([f"{run} is neither a run folder nor the name of pretrained weights", *known]))


def results_folder(run: str | Path) -> Path:
    """Where results of a run go by default: its own folder, or runs/pretrained/NAME for pretrained weights."""
    return Path("runs", "pretrained", run) if find_run(run).parent == PRETRAINED else Path(run)
