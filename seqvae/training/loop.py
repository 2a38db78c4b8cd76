"""The training loop: step, log, validate, checkpoint; ends at optim.steps, at a signal, or when steps keep failing."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from seqvae import distributed
from seqvae.training import checkpoint
from seqvae.training.logger import Logger
from seqvae.training.trainer import BATCHES, Trainer, as_float, step_rng

Source = Callable[[list[int]], Tensor]  # clip indices -> uint8 (B, T, C, H, W) on the device
MAX_SKIPPED = 10  # non-finite steps in a row that end a run


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says why and what is left."""


class StepSampler(Sampler[list[int]]):
    """This process's clip indices of each step, drawn with replacement from (seed, step): no epochs to resume.

    All processes together have the same clips, in the same order, however many they are.
    """

    def __init__(self, n_clips: int, batch_size: int, seed: int, steps: range) -> None:
        self.n_clips, self.batch_size, self.seed, self.steps = n_clips, batch_size, seed, steps
        self.own = distributed.shard(batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield step_rng(self.seed, BATCHES, step).integers(self.n_clips, size=self.batch_size)[self.own].tolist()

    def __len__(self) -> int:
        return len(self.steps)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Within it SIGINT and SIGTERM only leave their number, for the loop to find between two steps; 0 until then."""
    seen: list[int] = []
    old = {
        number: signal.signal(number, lambda received, _: seen.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _worker_signals(_: int) -> None:
    """A Ctrl-C, or a scheduler's SIGTERM, reaches every process: loading goes on until the main process has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Interval:
    """What is logged of the steps since the last line: means, over the steps that were not skipped, and speed."""

    def __init__(self) -> None:
        self.totals: dict[str, tuple[Tensor, Tensor]] = {}  # sum and count, on the device until `means` reads them
        self.frames, self.waited, self.since = 0, 0.0, time.perf_counter()

    def add(self, numbers: dict[str, Tensor], frames: int) -> None:
        """Numbers of one step, on its way through `frames` predicted frames."""
        for name, value in numbers.items():
            finite = torch.isfinite(value)
            total, count = self.totals.get(name, (0, 0))
            self.totals[name] = total + torch.where(finite, value, 0), count + finite
        self.frames += frames

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is spent waiting for clips."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def means(self) -> dict[str, float | None]:
        """None where every step was skipped; data_wait is the share of the time in which there were no clips."""
        values = {name: (total.item(), count.item()) for name, (total, count) in self.totals.items()}
        means = {f"train/{name}": total / count if count else None for name, (total, count) in values.items()}
        seconds = time.perf_counter() - self.since
        return means | {"train/frames_per_second": self.frames / seconds, "train/data_wait": self.waited / seconds}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is no training time."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start


def batches(trainer: Trainer, clips: Dataset, source: Source | None) -> Iterator[Tensor]:
    """This process's clips of every step to come, uint8 (B, T, C, H, W) on the device.

    On CUDA the copy of a batch runs beside the step before it, which the GPU is still computing when the loop asks.
    """
    cfg, device = trainer.cfg, trainer.device
    steps = range(trainer.step, cfg.optim.steps)
    sampler = StepSampler(len(clips), cfg.optim.batch_size, cfg.run.seed, steps)
    if source is not None:
        yield from map(source, sampler)
        return
    loader = DataLoader(
        clips,
        batch_sampler=sampler,
        num_workers=cfg.compute.workers,
        worker_init_fn=_worker_signals,
        pin_memory=device.type == "cuda",
    )
    if device.type != "cuda":
        yield from loader
        return
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch in loader:
        with torch.cuda.stream(copying):
            batch = batch.to(device, non_blocking=True)
        computing.wait_stream(copying)
        batch.record_stream(computing)  # its memory is free when the step is done, not the copy
        yield batch


def run(
    trainer: Trainer, run_dir: Path, train_clips: Dataset, valid_clips: Dataset, source: Source | None = None
) -> str | None:
    """Trains from trainer.step up to optim.steps; returns the signal that ended it early, or None.

    Of several processes each calls it; all end after the same step, and process 0 alone writes. `source` turns a
    step's clip indices into the clips on the device, uint8 (B, T, C, H, W); None: they are read from train_clips.

    TrainingFailed after ten non-finite steps in a row; OSError when the run folder cannot be written; PeerLost when
    another process has ended.
    """
    cfg, main = trainer.cfg, distributed.is_main()
    checkpoints, interval, vote = run_dir / "checkpoints", Interval(), distributed.Vote()
    clips, signal_number, done = batches(trainer, train_clips, source), 0, True
    bar = tqdm(total=cfg.optim.steps, initial=trainer.step, unit="step", disable=None if main else True)
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stop_signals())
        logger = stack.enter_context(contextlib.closing(Logger(run_dir, cfg, trainer.step))) if main else None
        for context in (bar, contextlib.closing(clips), distributed.peers()):
            stack.enter_context(context)
        while trainer.step < cfg.optim.steps:
            with interval.waiting():
                batch = next(clips)
            numbers = trainer.train_step(as_float(batch, trainer.device))
            interval.add(numbers, cfg.optim.batch_size * trainer.n_drawn)
            bar.update()
            step, done = trainer.step, trainer.step == cfg.optim.steps
            signal_number = vote(stopped())

            saving = done or step % cfg.run.checkpoint_every == 0
            # Also at a checkpoint: the means since then are what a resumed run has.
            if saving or signal_number or step % cfg.run.log_every == 0:
                if main:
                    line = interval.means() | trainer.status()
                    logger.log(step, line)
                    bar.set_postfix(rmse=line["train/rmse"], kl=line["train/kl_nats_per_frame"])
                interval = Interval()
                if trainer.take_longest_streak() >= MAX_SKIPPED:
                    raise TrainingFailed(_broken(run_dir, f"{MAX_SKIPPED} steps in a row up to step {step} had a"))
            with interval.paused():
                if (saving or signal_number) and not trainer.weights_are_finite():
                    raise TrainingFailed(_broken(run_dir, f"step {step} left weights, and so a"))
                if main and (done or step % cfg.run.sample_every == 0):  # first: a kill after it draws it once more
                    logger.picture(step, trainer.sample_pictures(valid_clips, run_dir / "samples"))
                if saving:
                    validated = distributed.on_main(lambda: trainer.validate(valid_clips))
                    better = trainer.note_validation(validated)
                if main and saving:
                    logger.log(step, validated)
                    numbers = {name: value for name, value in validated.items() if not isinstance(value, list)}
                    words = ", ".join(f"{name.split('/')[1]} {value:.4g}" for name, value in numbers.items())
                    for sentence in (f"step {step}/{cfg.optim.steps}  validation: {words}", *trainer.warnings()):
                        tqdm.write(sentence)
                    checkpoint.save(checkpoints, trainer.state(), best=better)
                elif main and signal_number:
                    checkpoint.save(checkpoints, trainer.state(), best=False)
            if signal_number and not done:
                break
        vote.close()
    return signal.Signals(signal_number).name if signal_number and not done else None


def _broken(run_dir: Path, what: str) -> str:
    last, kept = run_dir / "checkpoints" / "last.pt", "no checkpoint was saved"
    if last.exists():
        try:
            kept = f"{last} (step {checkpoint.load(last)['step']}) is the last checkpoint"
        except ValueError as error:
            kept = str(error)
    return (
        f"{what} loss or gradient that is not finite; {kept}; start anew in another --run-dir, with a lower --optim.lr "
        f"or with --optim.grad-clip{f' (--init-from {run_dir} keeps the weights)' if last.exists() else ''}"
    )
