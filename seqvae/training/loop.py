"""The training loop: step, log, validate, save; ends at optim.steps, at a signal, or when steps keep failing."""

import atexit
import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from seqvae import distributed
from seqvae.device import as_float
from seqvae.training import checkpoint
from seqvae.training.logger import Logger
from seqvae.training.state import TrainState
from seqvae.training.step import BATCHES, step_rng, train_step
from seqvae.training.terms import actions_of
from seqvae.training.validation import note_validation, sample_pictures, validate

Source = Callable[[list[int]], Tensor]  # clip indices -> uint8 (B, T, C, H, W) on the device
MAX_SKIPPED = 10  # non-finite steps in a row that end a run


class TrainingFailed(Exception):
    """The run cannot continue; the message says why and what is left.

    Not a RuntimeError: of those, `distributed.peers` recognises lost connections by the message, and this one holds a
    path.
    """


class StepSampler(Sampler[list[int]]):
    """This process's clip indices for each step, sampled with replacement from (seed, step): no epochs to resume.

    All processes together have the same clips, in the same order, whatever their number.
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
    """Context manager: record SIGINT and SIGTERM for the loop to check between steps; yields a function, 0 for none."""
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
    """Ignore Ctrl-C and a scheduler's SIGTERM, which reach every process: loading continues until the run is saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill_workers() -> None:
    """At exit: multiprocessing would send SIGTERM, which the workers ignore, and then wait for them forever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report their deaths
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class Interval:
    """Means of the numbers since the last line of the log, over the steps that were not skipped, and speed."""

    def __init__(self) -> None:
        self.totals: dict[str, tuple[Tensor, Tensor]] = {}  # sum and count, on the device until `means` reads them
        self.frames, self.waited, self.since = 0, 0.0, time.perf_counter()

    def add(self, numbers: dict[str, Tensor], frames: int) -> None:
        """Add the numbers of a step that predicted `frames` frames."""
        for name, value in numbers.items():
            finite = torch.isfinite(value)
            total, count = self.totals.get(name, (0, 0))
            self.totals[name] = total + torch.where(finite, value, 0), count + finite
        self.frames += frames

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager: count the time inside as waiting for clips."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def means(self) -> dict[str, float | None]:
        """None where every step was skipped; data_wait is the share of time spent waiting for clips."""
        values = {name: (total.item(), count.item()) for name, (total, count) in self.totals.items()}
        means = {f"train/{name}": total / count if count else None for name, (total, count) in values.items()}
        seconds = time.perf_counter() - self.since
        return means | {"train/frames_per_second": self.frames / seconds, "train/data_wait": self.waited / seconds}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager: do not count the time inside as training time."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start


def batches(state: TrainState, clips: Dataset, source: Source | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """This process's clips of every step from state.step on, uint8 (B, T, C, H, W), and their actions, on the device.

    On CUDA the copy of a batch overlaps with the step before it, which the GPU is still computing.
    """
    cfg, device = state.cfg, state.device
    steps = range(state.step, cfg.optim.steps)
    sampler = StepSampler(len(clips), cfg.optim.batch_size, cfg.run.seed, steps)

    def with_actions(videos: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        # A function of the indices, so this process reads them, whatever loads the pictures.
        for indices, video in zip(sampler, videos):
            yield video, actions_of(state.model, clips, indices, state.n_predicted)

    if source is not None:
        yield from with_actions(map(source, sampler))
        return
    atexit.register(_kill_workers)
    loader = DataLoader(
        clips,
        batch_sampler=sampler,
        num_workers=cfg.compute.workers,
        worker_init_fn=_worker_signals,
        pin_memory=device.type == "cuda",
    )
    if device.type != "cuda":
        yield from with_actions(loader)
        return
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch, actions in with_actions(loader):
        with torch.cuda.stream(copying):
            batch = batch.to(device, non_blocking=True)
        computing.wait_stream(copying)
        batch.record_stream(computing)  # its memory is free when the step is done, not the copy
        yield batch, actions


def run(
    state: TrainState, run_dir: Path, train_clips: Dataset, valid_clips: Dataset, source: Source | None = None
) -> str | None:
    """Train from state.step up to optim.steps; returns the name of the signal that ended it early, or None.

    Every process calls it; all end after the same step, and only process 0 writes.

    Args:
        source: turns a step's clip indices into clips on the device, uint8 (B, T, C, H, W); None: read train_clips.

    Raises:
        TrainingFailed: ten non-finite steps in a row, or weights that are not finite.
        OSError: the run folder cannot be written.
        PeerLost: another process has ended.
    """
    cfg, main = state.cfg, distributed.is_main()
    checkpoints, interval, vote = run_dir / "checkpoints", Interval(), distributed.Vote()
    clips, signal_number, done = batches(state, train_clips, source), 0, True
    bar = tqdm(total=cfg.optim.steps, initial=state.step, unit="step", disable=None if main else True)
    with (
        stop_signals() as stopped,
        contextlib.closing(Logger(run_dir, cfg, state.step)) if main else contextlib.nullcontext() as logger,
        bar,
        contextlib.closing(clips),
        distributed.peers(),
    ):
        while state.step < cfg.optim.steps:
            with interval.waiting():
                batch, actions = next(clips)
            numbers = train_step(state, as_float(batch, state.device), actions)
            interval.add(numbers, cfg.optim.batch_size * state.n_predicted)
            bar.update()
            step, done = state.step, state.step == cfg.optim.steps
            signal_number = vote(stopped())

            saving = done or step % cfg.run.checkpoint_every == 0
            # Also at a checkpoint: a resumed run starts its means there.
            if saving or signal_number or step % cfg.run.log_every == 0:
                if main:
                    line = interval.means() | state.status()
                    logger.log(step, line)
                    bar.set_postfix(rmse=line["train/rmse"], kl=line["train/kl_nats_per_frame"])
                interval = Interval()
                if state.take_longest_streak() >= MAX_SKIPPED:
                    raise TrainingFailed(_broken(run_dir, f"{MAX_SKIPPED} steps in a row up to step {step} had a"))
            with interval.paused():
                if (saving or signal_number) and not state.weights_are_finite():
                    raise TrainingFailed(_broken(run_dir, f"step {step} left weights, and so a"))
                if main and (done or step % cfg.run.sample_every == 0):  # before saving: a killed run redraws it
                    logger.picture(step, sample_pictures(state, valid_clips, run_dir / "samples"))
                if saving:
                    validated = distributed.on_main(lambda: validate(state, valid_clips))
                    better = note_validation(state, validated)
                if main and saving:
                    logger.log(step, validated)
                    numbers = {name: value for name, value in validated.items() if not isinstance(value, list)}
                    words = ", ".join(f"{name.split('/')[1]} {value:.4g}" for name, value in numbers.items())
                    tqdm.write(f"step {step}/{cfg.optim.steps}  validation: {words}")
                    for warning in state.objective.warnings():
                        tqdm.write(warning)
                    checkpoint.save(checkpoints, state.state_dict(), best=better)
                elif main and signal_number:
                    checkpoint.save(checkpoints, state.state_dict(), best=False)
            if signal_number and not done:
                break
        vote.close()
    return signal.Signals(signal_number).name if signal_number and not done else None


def _broken(run_dir: Path, what: str) -> str:
    """The message of TrainingFailed."""
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
