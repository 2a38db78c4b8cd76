"""Train a stochastic video predictor.

    python train.py demo                                      a few CPU minutes, nothing to download
    python train.py smmnist-geco --data.root data             Moving MNIST, GECO
    python train.py smmnist-sigma --optim.batch-size 32       every setting is a flag: train.py PRESET --help
    python train.py smmnist-beta --objective.name iwae        another objective; likewise --likelihood.name, --data.name
    python train.py mnist-geco --data.root data               single images, for the papers' tables
    python train.py runs/a/config.json --run-dir runs/b       another run's settings
    python train.py smmnist-geco --dry-run                    settings, sizes and cost, without training
    torchrun --standalone --nproc-per-node 8 train.py bair-sigma --data.root data      on 8 GPUs (docs/scaling.md)

The same command again resumes from where the run folder (runs/PRESET, or --run-dir) ends.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from seqvae import cli
from seqvae.config import RunConfig, from_json, read_settings, to_json
from seqvae.flags import choose_variants, nearest
from seqvae.launch import is_first, say
from seqvae.presets import PRESETS

# What --help shows; --help-all shows every setting.
COMMON = (
    *("run-dir", "dry-run", "data.name", "data.root", "data.n-past", "data.n-future", "likelihood.name"),
    *("objective.name", "objective.tolerance", "objective.svg-beta", "objective.n-importance", "optim.steps"),
    *("optim.batch-size", "optim.lr", "compute.device", "compute.amp", "run.seed"),
)


def main(argv: list[str]) -> int:
    """Exit code: those of `seqvae.cli`, and after SIGTERM 75, so that a scheduler's script can queue the run again."""
    return cli.finish("train.py", lambda: train(argv))


def train(argv: list[str]) -> int:
    """Read the arguments before anything that takes time to import."""
    if not argv:
        show_help(sys.stderr)
        return 2
    with cli.preparing():
        cfg = parse(argv)
    from datasets import load_dataset
    from datasets.on_device import device_batches
    from seqvae.training import session

    if cfg.dry_run:
        with cli.preparing():
            if is_first():
                session.dry_run(cfg, load_dataset)
        return 0
    return session.run_training(cfg, load_dataset, device_batches)


def parse(argv: Sequence[str]) -> RunConfig:
    """Preset, or a run's config.json, and flags -> settings; ValueError with one line."""
    start, flags = argv[0], argv[1:]
    if start in ("-h", "--help", "--help-all"):
        show_help(sys.stdout)
        raise SystemExit(0)
    if start == "--version":
        cli.show_version()
    text, default, run_dir = settings_of(start)
    cfg = cli.parse(
        RunConfig,
        flags,
        choose_variants(to_json(default), flags),
        from_json,
        usage=f"train.py {start} [--GROUP.SETTING VALUE ...]",
        description=text,
        common=COMMON,
    )
    cfg = dataclasses.replace(cfg, run_dir=cfg.run_dir or run_dir)
    if Path(start).exists() and Path(cfg.run_dir).resolve() == Path(start).resolve().parent:
        raise ValueError(f"{start} belongs to the run in {cfg.run_dir}; give the new run another folder with --run-dir")
    return cfg


def settings_of(start: str) -> tuple[str, RunConfig, str]:
    """Of a preset or a settings file: what it is for, the settings, and the default run folder."""
    if start in PRESETS:
        return *PRESETS[start], f"runs/{start}"
    path = Path(start)
    if path.suffix == ".json" and path.is_file():
        cfg = dataclasses.replace(read_settings(path), run_dir=None, dry_run=False)
        return f"settings of {path}", cfg, f"runs/{path.resolve().parent.name}"
    if path.suffix == ".json":
        raise FileNotFoundError(f"{path} is not a file; the first word is a preset or a run's config.json")
    if start.startswith("-"):
        raise ValueError(f"the first word is a preset or a run's config.json, not {start}; see train.py --help")
    raise ValueError(f"unknown preset {start!r}; {nearest(start, PRESETS) or 'train.py --help lists them'}")


def show_help(file) -> None:
    """The presets; a preset's settings follow it."""
    presets = "\n".join(f"  {name:<24} {text}" for name, (text, _) in PRESETS.items())
    say(f"{__doc__}\nPresets (train.py PRESET --help lists their settings):\n{presets}", file=file)


if __name__ == "__main__":
    cli.run_program(main, orderly=False)  # training saves at SIGTERM
