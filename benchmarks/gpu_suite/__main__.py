"""Tests, speed, profile and training runs on a GPU, ranked, within a time that is given: JSON lines and a table.

    python -m benchmarks.gpu_suite --budget 540 --out gpu --root data            at most 9 minutes
    python -m benchmarks.gpu_suite --budget 540 --out gpu --root data --resume   9 more: what is left, then training
    python -m benchmarks.gpu_suite --budget 360 --out rehearsal --size tiny --device cpu --root data

Parts run in order, each in a process of its own with a time limit. A part or case that fails leaves its traceback in
results.jsonl, and the next one follows. Training starts in a session of its own once speed is measured; it outlasts the
call, and later calls watch it. docs/gpu.md has the commands for half an hour, and how to bring the weights home.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_suite import blind_spots, correctness, speed, training
from benchmarks.gpu_suite.record import Cases, Record, Setting
from benchmarks.gpu_suite.weights import fill_home
from benchmarks.measure import machine
from seqvae.device import choose_device
from seqvae.memory import keep_memory
from seqvae.training.lock import RunLock

RESERVE = 15  # seconds of a call for the table and the weights
LEAST = 10  # seconds that are worth starting a part for
LOG_TAIL = 4_000  # characters of a part's output kept where it was stopped


@dataclass(frozen=True)
class Part:
    """Cases, and how many seconds they may take together; None: they outlast the call, in a session of their own."""

    cases: Callable[[Setting], Cases]
    limit: int | None


PARTS = {
    "cuda-tests": Part(correctness.marked_tests, 60),
    "same-step": Part(correctness.same_step, 90),
    "same-results": Part(correctness.same_results, 120),
    "train-step": Part(speed.train_step_cases, 120),
    "modes": Part(speed.modes, 120),
    "rollout": Part(speed.rollout_cases, 60),
    "other-speeds": Part(speed.others, 60),
    "profile": Part(speed.profile, 40),
    "training": Part(training.cases, None),
    "blind-spots": Part(blind_spots.cases, 120),
}


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--budget", type=float, default=540, help="seconds this call may take")
    flags.add_argument("--out", type=Path, required=True, help="folder of the results and the training runs")
    flags.add_argument("--resume", action="store_true", help="go on with the results in --out")
    flags.add_argument(
        "--home", type=Path, help="folder to fill with at most 8 files of at most 16 MiB: results, weights"
    )
    flags.add_argument("--size", choices=("full", "tiny"), help="full on CUDA, tiny on a CPU unless given")
    flags.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    flags.add_argument("--root", default="data", help="folder of MNIST")
    flags.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="parts to run")
    flags.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)  # how the suite calls itself
    args = flags.parse_args(argv)
    deadline = time.monotonic() + args.budget
    device = choose_device(args.device, "--device")
    tiny = args.size == "tiny" if args.size else device.type == "cpu"
    setting = Setting(args.out.resolve(), device, tiny, str(Path(args.root).resolve()))
    if args.part:
        run_cases(setting, args.part)
        return 0
    record = Record(setting.out)
    if record.path.exists() and not args.resume:
        print(f"{args.out} holds results; pass --resume to go on with them, or another --out", file=sys.stderr)
        return 2
    setting.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that `finally` ends the part
    record.add("machine", case="call", tiny=tiny, text=str(machine(device)))
    try:
        call(setting, record, args.only, deadline - RESERVE)
    finally:
        text = record.table()
        (setting.out / "table.md").write_text(text)
        if args.home:
            fill_home(setting.out, args.home)
        print(text)
    left = [name for name in args.only if not record.ended(name)]
    print(f"left for another call with --resume: {', '.join(left)}" if left else "nothing is left to do")
    return 0


def call(setting: Setting, record: Record, names: tuple[str, ...], deadline: float) -> None:
    """Run the parts that have not ended, in order, then watch the training until the deadline."""
    training, process = False, None
    for name in names:
        if record.ended(name):
            continue
        if PARTS[name].limit is None:
            training, process = True, start_training(setting, name)
        elif not run_part(setting, record, name, deadline):
            break  # what follows waits for its turn: speeds are measured before training starts
        (setting.out / "table.md").write_text(record.table())
    while training and time.monotonic() < deadline and is_running(setting, process):
        time.sleep(1)


def run_part(setting: Setting, record: Record, name: str, deadline: float) -> bool:
    """Run a part's cases in a process of their own; False if the call's time ends before they do."""
    log = setting.out / f"{name}.log"
    while True:
        allowed = PARTS[name].limit * setting.patience
        start, limit = time.monotonic(), allowed - record.seconds_spent(name)
        before = len(record.results(name))
        left = min(limit, deadline - start)
        if left < min(LEAST, limit):
            return False
        with log.open("wb") as file:
            process = subprocess.Popen(command(setting, name), stdout=file, stderr=file, process_group=0)
        try:
            code = process.wait(left)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            record.add(name, spent=round(time.monotonic() - start, 1))
        if code == 0:
            record.add(name, end="done")
            return True
        if code is None and left < limit:
            return False  # the case that was stopped runs again
        reason = f"time limit of {allowed} s" if code is None else f"exit code {code}"
        said = log.read_text(errors="replace")[-LOG_TAIL:]
        case = record.unfinished_case(name)
        if case is not None:
            record.add(name, case=case, ok=False, error=f"{said}\n{reason}")
        if code is None or len(record.results(name)) == before:
            record.add(name, end=reason, error=said)
            return True
        # A case ended its process and is recorded as failed; the others get a new process.


def start_training(setting: Setting, name: str) -> subprocess.Popen | None:
    """Start the training runs unless they are running; None if they are."""
    if is_running(setting, None):
        return None
    with (setting.out / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command(setting, name), stdout=log, stderr=log, start_new_session=True)


def is_running(setting: Setting, started: subprocess.Popen | None) -> bool:
    """Whether the training process lives: this call's, or one that an earlier call started."""
    if started is not None:
        return started.poll() is None
    lock = RunLock()
    try:
        lock.acquire(setting.out)
    except ValueError:
        return True
    lock.release()
    return False


def command(setting: Setting, part: str) -> list[str]:
    size = "tiny" if setting.tiny else "full"
    flags = {"part": part, "out": setting.out, "device": setting.device.type, "size": size, "root": setting.root}
    return [sys.executable, "-m", "benchmarks.gpu_suite", *(f"--{name}={value}" for name, value in flags.items())]


def run_cases(setting: Setting, name: str) -> None:
    """The process of a part: run each of its cases that has no result."""
    keep_memory()
    detached = PARTS[name].limit is None
    if detached:
        lock = RunLock()
        lock.acquire(setting.out)
    else:
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    record = Record(setting.out)
    for case, run in PARTS[name].cases(setting).items():
        record.run(name, case, run)
    if detached:
        record.add(name, end="done")


def end_with_parent(parent: int) -> None:
    """Kill this process and those it started once the call that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
