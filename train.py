"""Train a stochastic video predictor.

    python train.py demo                                      a few CPU minutes, nothing to download
    python train.py smmnist-geco --data.root data             Moving MNIST, GECO
    python train.py smmnist-sigma --optim.batch-size 32       every setting is a flag; train.py PRESET --help lists them
    python train.py mnist-geco --data.root data               single images, for the papers' tables
    python train.py smmnist-geco --dry-run                    settings, sizes and cost, without training
    torchrun --standalone --nproc-per-node 8 train.py bair-sigma --data.root data      on 8 GPUs (docs/scaling.md)

The same command again goes on where the run folder (runs/PRESET, or --run-dir) ends.
"""

import dataclasses
import json
import math
import os
import signal
import sys
from pathlib import Path

import torch
import tyro
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from datasets import dataset_options, load_dataset
from datasets.on_device import BatchMaker, device_batches
from seqvae import distributed
from seqvae.config import RunConfig, build_model, differences, read_config, to_json
from seqvae.device import choose_device, resolve_amp
from seqvae.memory import check_memory, is_out_of_memory, keep_memory
from seqvae.objectives import build_objective
from seqvae.presets import PRESETS
from seqvae.provenance import provenance
from seqvae.training import checkpoint
from seqvae.training.checkpoint import write_atomically
from seqvae.training.lock import RunLock
from seqvae.training.logger import LoggingFailed
from seqvae.training.loop import TrainingFailed, run
from seqvae.training.state import TrainState
from seqvae.weights import find_run, read_state

UNFINISHED = 75  # exit code after SIGTERM: sysexits.h's "temporary failure, try again"


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 the run failed, 2 the settings or the data are wrong; saved and not finished: 75 or 130.

    75 follows SIGTERM, so that a scheduler's script can queue the run again (docs/train.sbatch), and 130 Ctrl-C. The
    same command resumes after both.
    """
    lock = RunLock()
    try:
        code = train(argv, lock)
    except distributed.PeerLost as error:
        print(f"train.py: {error}; the same command goes on from the last checkpoint", file=sys.stderr)
        return 1
    finally:
        lock.release()
    if code != 1:  # then others may not be there any more
        distributed.stop()
    return code


def train(argv: list[str], lock: RunLock) -> int:
    """Exit code; PeerLost when another process of this run has ended."""
    try:
        cfg = parse(argv)
        if cfg.dry_run:
            if distributed.is_first():
                dry_run(cfg)
            return 0
        distributed.start(cfg.compute.device != "cpu" and torch.cuda.is_available(), cfg.compute.timeout)
        device = distributed.on_all(lambda: choose_device(cfg.compute.device, "--compute.device"))
        if device.index is not None:
            torch.cuda.set_device(device)
        run_dir = Path(cfg.run_dir)
        distributed.on_main(lambda: lock_existing(run_dir, lock))
        trainer, train_clips, valid_clips = prepare(cfg, device)
        source = distributed.on_all(lambda: clip_source(cfg, train_clips, device))
        if trainer.step >= cfg.optim.steps:
            distributed.say(f"{run_dir} is finished at step {trainer.step}; raise --optim.steps to go on")
            return 0
        distributed.on_main(lambda: make_run_dir(run_dir, lock))
    except (ValueError, FileNotFoundError) as error:
        distributed.say(f"train.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file where a folder is meant, a folder that may not be read
        distributed.say(f"train.py: cannot use {error.filename or cfg.run_dir}: {error.strerror}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"train.py: no room for model and data on {device}; see what else uses it", file=sys.stderr)
        return 1
    try:
        if distributed.is_main():
            write_atomically(run_dir / "config.json", json.dumps(description(cfg), indent=1).encode())
        signal_name = run(trainer, run_dir, train_clips, valid_clips, source)
    except TrainingFailed as error:  # on every process alike
        return failed(cfg, str(error)) if distributed.is_main() else 1
    except LoggingFailed as error:
        return failed(cfg, str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return failed(cfg, f"the device's memory is too small; lower --optim.batch-size ({cfg.optim.batch_size})")
    except OSError as error:
        if error.errno is None:  # a dataset's own, perhaps behind the traceback of a loading process
            failed(cfg, str(error).splitlines()[-1])
            return 2
        return failed(cfg, f"cannot write {error.filename or run_dir}: {error.strerror}; earlier checkpoints are whole")
    if signal_name is not None:
        distributed.say(f"{signal_name}: saved at step {trainer.step}; the same command goes on from there")
        return UNFINISHED if signal_name == "SIGTERM" else 128 + signal.Signals[signal_name]
    for line in ending(trainer):
        distributed.say(line)
    distributed.say(f"{run_dir} is finished. Look at {run_dir}/samples, then: python evaluate.py {run_dir}")
    return 0


def parse(argv: list[str]) -> RunConfig:
    """Preset and flags -> settings. ValueError for an unknown preset; other errors tyro explains, exit code 2."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__ + "\nPresets:\n" + "\n".join(f"  {name:<22} {text}" for name, (text, _) in PRESETS.items()))
        raise SystemExit(0 if argv else 2)
    preset = argv[0]
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; the first word must be one of {', '.join(PRESETS)}")
    text, default = PRESETS[preset]
    options = {"prog": f"train.py {preset}", "description": text, "console_outputs": distributed.is_first()}
    options["config"] = (tyro.conf.AvoidSubcommands,)  # of the models, the preset's family alone has flags
    cfg = tyro.cli(RunConfig, default=default, args=argv[1:], **options)
    data = cfg.data  # its defaults are the dataset's, and config.json is to hold them all
    unset = {name: value for name, value in dataset_options(data.name).items() if name not in data.options()}
    if data.root is None and data.name != "digits":
        unset["root"] = "data"
    resolved = dataclasses.replace(cfg, data=dataclasses.replace(data, **unset)).resolved()
    return dataclasses.replace(resolved, run_dir=cfg.run_dir or f"runs/{preset}")


def prepare(cfg: RunConfig, device: torch.device) -> tuple[TrainState, Dataset, Dataset]:
    """State, from the run folder's last checkpoint if it has one, and training and validation clips; writes nothing."""
    data = cfg.data
    distributed.on_main(lambda: check_run_dir(cfg))
    check_sizes(cfg)
    train_clips, valid_clips = distributed.on_all(
        lambda: [load_dataset(split=split, **data.arguments()) for split in ("train", "valid")]
    )
    trainer = build_trainer(cfg, train_clips.channels, device)
    saved, note = distributed.on_main(lambda: saved_state(Path(cfg.run_dir)))
    if saved is not None:
        distributed.on_all(lambda: trainer.load_state_dict(saved))
        if note:
            distributed.on_main(lambda: checkpoint.set_aside_damaged(Path(cfg.run_dir) / "checkpoints"))
        distributed.say(note or f"resuming {cfg.run_dir} from step {trainer.step}")
    elif cfg.init_from is not None:
        init_from(trainer, Path(cfg.init_from))
    if text := trainer.objective.introduction(train_clips.channels * data.image_size**2):
        distributed.say(f"{cfg.objective.name}: {text}")
    return trainer, train_clips, valid_clips


def check_sizes(cfg: RunConfig) -> None:
    """ValueError for settings whose batch or weights cannot fit this machine's memory, before anything is made."""
    data, k = cfg.data, cfg.objective.n_importance or 1
    pixels = cfg.optim.batch_size * data.seq_len * data.image_size**2
    check_memory(
        4 * pixels * max(k, data.n_digits or 1),
        f"optim.batch-size {cfg.optim.batch_size}, {data.seq_len} frames of {data.image_size} px"
        + (f", objective.n-importance {k}" if k > 1 else ""),
    )
    sizes = [(f.name, getattr(cfg.model, f.name)) for f in dataclasses.fields(cfg.model)]
    given = (f"{name.replace('_', '-')} {value}" for name, value in sizes if type(value) is int)
    check_memory(16 * cfg.model.least_weights(), "model." + ", ".join(given))


def clip_source(cfg: RunConfig, clips: Dataset, device: torch.device) -> BatchMaker | None:
    """What makes training clips on the device, where that is wanted and there is such a thing; the same clips."""
    wanted = cfg.compute.data
    if wanted == "host" or (wanted == "auto" and device.type == "cpu"):
        return None
    source = device_batches(clips, device)
    if source is None and wanted == "device":
        raise ValueError(f"clips of {cfg.data.name} cannot be made on the device; pass --compute.data auto or host")
    return source


def lock_existing(run_dir: Path, lock: RunLock) -> None:
    """Lock the folder of a run that is resumed; a new run locks its folder once its settings and data have passed."""
    if (run_dir / "config.json").exists():
        lock.acquire(run_dir)


def make_run_dir(run_dir: Path, lock: RunLock) -> None:
    """Make the folder if it is missing, and lock it; ValueError if another process did so meanwhile."""
    run_dir.mkdir(parents=True, exist_ok=True)
    new = lock.file is None
    lock.acquire(run_dir)
    if new and (run_dir / "config.json").exists():
        raise ValueError(f"another process has just started {run_dir}; run the same command again to resume it")


def check_run_dir(cfg: RunConfig) -> None:
    """ValueError where the run folder holds a run of other settings."""
    if (Path(cfg.run_dir) / "config.json").exists():
        other = differences(read_config(Path(cfg.run_dir)), cfg)
        if other:
            raise ValueError(
                f"{cfg.run_dir} holds a run of other settings ({'; '.join(other)}); choose another --run-dir"
            )


def saved_state(run_dir: Path) -> tuple[dict | None, str | None]:
    """As `checkpoint.load_latest`."""
    state, note = checkpoint.load_latest(run_dir / "checkpoints")
    if state is not None and not (run_dir / "config.json").exists():
        raise ValueError(f"{run_dir} has checkpoints and no config.json; choose another --run-dir")
    return state, note


def build_trainer(cfg: RunConfig, channels: int, device: torch.device) -> TrainState:
    """Freshly initialised."""
    model = build_model(cfg, channels)
    objective = build_objective(
        cfg.objective,
        n_frames=cfg.data.n_drawn,
        dims=channels * cfg.data.image_size**2,
        sigma=cfg.likelihood.sigma or 1.0,
    )
    return TrainState(cfg, model, objective, device)


def init_from(trainer: TrainState, other: Path) -> None:
    """Takes the weights of run folder `other`, averaged ones where it has them, all but the likelihood's."""

    def read() -> dict:
        folder = find_run(other)
        for which in ("best", "last"):
            try:
                return read_state(folder, which)
            except FileNotFoundError:
                continue
        raise FileNotFoundError(
            f"--init-from {other}: it holds no checkpoint (looked for checkpoints/best.pt, last.pt)"
        )

    state = distributed.on_main(read)
    theirs = state["ema"] or state["model"]
    theirs = {name: value for name, value in theirs.items() if not name.startswith("likelihood.")}
    ours = {name: value for name, value in trainer.model.state_dict().items() if not name.startswith("likelihood.")}
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = (tuple(d[name].shape) if name in d else "nothing" for d in (ours, theirs))
        if here != there:
            raise ValueError(
                f"--init-from {other}: {name} is {there} there and {here} here; give it the same --model flags"
            )
    for model in (trainer.model, trainer.ema):
        if model is not None:
            model.load_state_dict(theirs, strict=False)
    distributed.say(f"weights of {state['path']}, step {state['step']}")


def description(cfg: RunConfig) -> dict:
    """config.json: the resolved settings, and what they ran with."""
    return {"config": to_json(cfg), **provenance()}


def dry_run(cfg: RunConfig) -> None:
    """Prints what would be trained, and its cost, from one clip's forward pass."""
    device = choose_device(cfg.compute.device, "--compute.device")
    check_sizes(cfg)
    data = cfg.data
    clips = load_dataset(split="train", **data.arguments())
    model = build_model(cfg, clips.channels)
    print(json.dumps(to_json(cfg), indent=1))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    video = torch.rand(1, data.seq_len, clips.channels, data.image_size, data.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(video, torch.randn(cfg.objective.n_importance or 1, 1, data.n_drawn, model.z_dim))
    flops = 3 * cfg.optim.batch_size * counter.get_total_flops()  # the backward pass costs twice the forward one
    n_weights = sum(sizes.values())
    megabytes = 16 * n_weights / 1e6  # weight, gradient and Adam's two moments, 4 bytes each
    clip_kb = video[0].numel() / 1e3
    print("weights        " + ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in sizes.items()))
    print(f"               {n_weights / 1e6:.2f} M in all, {megabytes:.0f} MB with gradients and Adam's moments")
    print(f"batch          {cfg.optim.batch_size} clips of {tuple(video.shape[1:])}, {clip_kb:.0f} kB each")
    n_processes, k = distributed.launched()[1], cfg.optim.accumulate
    if n_processes * k > 1:
        at_once = math.ceil(cfg.optim.batch_size / (n_processes * k))
        print(f"passes         {n_processes} processes x {k} passes a step, of {at_once} clips each at most")
    print(f"cost           {flops / 1e12:.3f} TFLOP per step, {flops * cfg.optim.steps / 1e15:.2f} PFLOP in all")
    print(f"device         {device}, {'bfloat16 autocast' if resolve_amp(cfg.compute, device) else 'float32'}")
    print(f"run folder     {cfg.run_dir}")


def ending(trainer: TrainState) -> list[str]:
    """The verdict, in words."""
    summary = trainer.objective.summary()
    return [f"{trainer.cfg.objective.name}: {summary}"] if summary else []


def failed(cfg: RunConfig, reason: str) -> int:
    """One line, exit code 1."""
    print(f"train.py: {cfg.run_dir} ended: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    keep_memory()
    try:
        code = main(sys.argv[1:])
        if distributed.launched()[1] > 1 and code == 1:
            sys.stdout.flush()
            os._exit(code)  # the GPU may still wait for a process that has gone, and an orderly exit for the GPU
        sys.exit(code)
    except KeyboardInterrupt:  # before training began; from then on it saves first
        sys.exit(130)
