"""A training run from its settings: check them, prepare or resume, train, say how it ended. The command is train.py.

`load_dataset` and `device_batches` are those of the folder `datasets`, which this package knows nothing of.
"""

import dataclasses
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from seqvae import cli, distributed
from seqvae.build import build_model, build_objective
from seqvae.config import RunConfig, differences, read_config, to_json
from seqvae.device import choose_device, describe, resolve_amp
from seqvae.folders import find_run
from seqvae.memory import check_memory, is_out_of_memory
from seqvae.provenance import provenance
from seqvae.training import checkpoint
from seqvae.training.checkpoint import write_atomically
from seqvae.training.lock import RunLock
from seqvae.training.logger import LoggingFailed
from seqvae.training.loop import TrainingFailed, run
from seqvae.training.state import TrainState
from seqvae.weights import read_state

UNFINISHED = 75  # exit code after SIGTERM: sysexits.h's "temporary failure, try again"
ACTION_CLIPS = 4096  # training clips whose actions say how large actions are
LoadDataset = Callable[..., Dataset]  # datasets.load_dataset
DeviceBatches = Callable[[Dataset, torch.device], object]  # datasets.on_device.device_batches


def run_training(cfg: RunConfig, load_dataset: LoadDataset, device_batches: DeviceBatches) -> int:
    """Train or resume; exit code 0, or that of the signal that stopped it. Other ends raise `cli.Ended`."""
    lock = RunLock()
    try:
        with cli.together("the same command resumes from the last checkpoint"):
            return train(cfg, lock, load_dataset, device_batches)
    finally:
        lock.release()


def train(cfg: RunConfig, lock: RunLock, load_dataset: LoadDataset, device_batches: DeviceBatches) -> int:
    """As `run_training`, holding a lock on the run folder once that exists."""
    run_dir, device = Path(cfg.run_dir), cfg.compute.device
    with cli.preparing(lambda: device):
        distributed.join(cfg.compute.device != "cpu" and torch.cuda.is_available(), cfg.compute.timeout)
        device = distributed.on_all(lambda: choose_device(cfg.compute.device, "--compute.device"))
        if device.index is not None:
            torch.cuda.set_device(device)
        distributed.on_main(lambda: lock_existing(run_dir, lock))
        train_state, train_clips, valid_clips = prepare(cfg, device, load_dataset)
        source = distributed.on_all(lambda: clip_source(cfg, train_clips, device, device_batches))
        if train_state.step >= cfg.optim.steps:
            distributed.say(f"{run_dir} is finished at step {train_state.step}; raise --optim.steps to train longer")
            return 0
        distributed.on_main(lambda: make_run_dir(run_dir, lock))
    try:
        if distributed.is_main():
            settings = {"config": to_json(cfg), **provenance()}
            write_atomically(run_dir / "config.json", json.dumps(settings, indent=1).encode())
        signal_name = run(train_state, run_dir, train_clips, valid_clips, source)
    except TrainingFailed as error:  # on every process alike
        raise failed(cfg, str(error), everywhere=False) from None
    except LoggingFailed as error:
        raise failed(cfg, str(error)) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"the device's memory is too small; lower --optim.batch-size ({cfg.optim.batch_size})"
        raise failed(cfg, reason) from None
    except OSError as error:
        if error.errno is None:  # a dataset's own, perhaps behind the traceback of a loading process
            raise failed(cfg, str(error).splitlines()[-1], code=2) from None
        place = error.filename or run_dir
        raise failed(cfg, f"cannot write {place}: {error.strerror}; earlier checkpoints are whole") from None
    if signal_name is not None:
        distributed.say(f"{signal_name}: saved at step {train_state.step}; the same command resumes from there")
        return UNFINISHED if signal_name == "SIGTERM" else 128 + signal.Signals[signal_name]
    if summary := train_state.objective.summary():
        distributed.say(f"{cfg.objective.name}: {summary}")
    distributed.say(f"{run_dir} is finished. Look at {run_dir}/samples, then: python evaluate.py {run_dir}")
    return 0


def failed(cfg: RunConfig, reason: str, code: int = 1, everywhere: bool = True) -> cli.Ended:
    """The end of a run that had begun."""
    return cli.Ended(f"{cfg.run_dir} ended: {reason}", code, everywhere)


def prepare(cfg: RunConfig, device: torch.device, load_dataset: LoadDataset) -> tuple[TrainState, Dataset, Dataset]:
    """State, from the run folder's last checkpoint if it has one, and training and validation clips.

    Nothing is written, but a damaged last.pt that is not resumed from is renamed.
    """
    data = cfg.data
    distributed.on_main(lambda: check_run_dir(cfg))
    check_sizes(cfg)
    check_start(cfg)
    train_clips, valid_clips = distributed.on_all(
        lambda: [load_dataset(split=split, **data.arguments()) for split in ("train", "valid")]
    )
    check_actions(cfg, train_clips)
    train_state = build_train_state(cfg, train_clips.channels, device)
    if cfg.model.actions:
        actions = distributed.on_all(lambda: train_clips.actions(range(min(ACTION_CLIPS, len(train_clips)))))
        for model in (train_state.model, train_state.ema):
            if model is not None:
                model.action_scale.fit(actions)
    saved, note = distributed.on_main(lambda: saved_state(Path(cfg.run_dir)))
    if saved is not None:
        distributed.on_all(lambda: train_state.load_state_dict(saved))
        if note:
            distributed.on_main(lambda: checkpoint.set_aside_damaged(Path(cfg.run_dir) / "checkpoints"))
        distributed.say(note or f"resuming {cfg.run_dir} from step {train_state.step}")
    elif cfg.init_from is not None:
        init_from(train_state, Path(cfg.init_from))
    for line in cfg.objective.announcement(dims=train_clips.channels * data.image_size**2):
        distributed.say(line)
    distributed.say(f"computes on {describe(device, train_state.amp)}")
    return train_state, train_clips, valid_clips


def check_actions(cfg: RunConfig, clips: Dataset) -> None:
    """ValueError for a model that expects other actions than the data has."""
    asked, has = cfg.model.actions, getattr(clips, "action_size", 0)
    if asked not in (0, has):
        found = f"actions of {cfg.data.name} have {has} numbers" if has else f"{cfg.data.name} has none"
        raise ValueError(f"model.actions is {asked}, and {found}; pass {has}")


def check_start(cfg: RunConfig) -> None:
    """ValueError where a prior would be trained on top of weights that nobody trained."""
    if cfg.optim.train == "prior" and cfg.init_from is None:
        raise ValueError("optim.train prior keeps all other weights; pass --init-from RUN, a run that has trained them")


def check_sizes(cfg: RunConfig) -> None:
    """ValueError for settings whose batch or weights cannot fit this machine's memory, before anything is made."""
    data, k = cfg.data, cfg.objective.n_importance
    pixels = cfg.optim.batch_size * data.seq_len * data.image_size**2
    check_memory(
        4 * pixels * max(k, getattr(data, "n_digits", 1)),
        f"optim.batch-size {cfg.optim.batch_size}, {data.seq_len} frames of {data.image_size} px"
        + (f", objective.n-importance {k}" if k > 1 else ""),
    )
    sizes = [(f.name, getattr(cfg.model, f.name)) for f in dataclasses.fields(cfg.model)]
    given = (f"{name.replace('_', '-')} {value}" for name, value in sizes if type(value) is int and value)
    check_memory(16 * cfg.model.least_weights(), "model." + ", ".join(given))


def clip_source(cfg: RunConfig, clips: Dataset, device: torch.device, device_batches: DeviceBatches) -> object | None:
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


def build_train_state(cfg: RunConfig, channels: int, device: torch.device) -> TrainState:
    """Freshly initialised."""
    return TrainState(cfg, build_model(cfg, channels), build_objective(cfg, channels), device)


def init_from(train_state: TrainState, other: Path) -> None:
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
    ours = {name: value for name, value in train_state.model.state_dict().items() if not name.startswith("likelihood.")}
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = (tuple(d[name].shape) if name in d else "nothing" for d in (ours, theirs))
        if here != there:
            raise ValueError(
                f"--init-from {other}: {name} is {there} there and {here} here; give it the same --model flags"
            )
    for model in (train_state.model, train_state.ema):
        if model is not None:
            model.load_state_dict(theirs, strict=False)
    distributed.say(f"weights of {state['path']}, step {state['step']}")


def dry_run(cfg: RunConfig, load_dataset: LoadDataset) -> None:
    """Prints what would be trained, and its cost, from one clip's forward pass."""
    device = choose_device(cfg.compute.device, "--compute.device")
    check_sizes(cfg)
    check_start(cfg)
    data = cfg.data
    clips = load_dataset(split="train", **data.arguments())
    check_actions(cfg, clips)
    model = build_model(cfg, clips.channels)
    print(json.dumps(to_json(cfg), indent=1))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    video = torch.rand(1, data.seq_len, clips.channels, data.image_size, data.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        noise = torch.randn(cfg.objective.n_importance, 1, data.n_predicted, model.z_dim)
        model.eval()(video, noise, None, torch.zeros(1, data.n_predicted, model.n_actions))
    whole = cfg.optim.train == "all"
    # The backward pass costs twice the forward one; a prior's alone next to nothing.
    flops = (3 if whole else 1) * cfg.optim.batch_size * counter.get_total_flops()
    n_weights = sum(sizes.values())
    n_trained = n_weights if whole else sizes["prior"]
    megabytes = (4 * n_weights + 12 * n_trained) / 1e6  # weight, gradient and Adam's two moments, 4 bytes each
    clip_kb = video[0].numel() / 1e3
    print("weights        " + ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in sizes.items()))
    print(f"               {n_weights / 1e6:.2f} M in all, {megabytes:.0f} MB with gradients and Adam's moments")
    print(f"batch          {cfg.optim.batch_size} clips of {tuple(video.shape[1:])}, {clip_kb:.0f} kB each")
    n_processes, k = distributed.launched()[1], cfg.optim.accumulate
    if n_processes * k > 1:
        at_once = math.ceil(cfg.optim.batch_size / (n_processes * k))
        print(f"passes         {n_processes} processes x {k} passes a step, of {at_once} clips each at most")
    print(f"cost           {flops / 1e12:.3f} TFLOP per step, {flops * cfg.optim.steps / 1e15:.2f} PFLOP in all")
    print(f"device         {describe(device, resolve_amp(cfg.compute, device))}")
    print(f"run folder     {cfg.run_dir}")
