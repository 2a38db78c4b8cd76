"""Training runs one after the other: the best preset and the scores it passes on its way, then SVG's by objective."""

import ctypes
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import evaluate
from benchmarks.gpu_suite.record import Cases, Numbers, Record, Setting
from benchmarks.runs import training_seconds
from seqvae.config import read_config
from seqvae.metrics.published import published_rows
from seqvae.training import checkpoint
from seqvae.training.session import UNFINISHED
from tests.families import SMALL

MARKS = ("SVG", "SRVP", "SLAMP")  # published, all under srvp-2020
STOP = 1.3  # a run that takes this many times its seconds is stopped, for the sake of those after it


@dataclass(frozen=True)
class Run:
    """A preset at batch 100, for about so many seconds; `steps` where no rate was measured."""

    preset: str
    family: str
    seconds: int
    steps: int
    watched: bool = False  # evaluated at each checkpoint


RUNS = {
    "transport-geco": Run("smmnist-transport-geco", "transport", 480, 3_000, watched=True),
    "svg-sigma": Run("smmnist-sigma", "svg", 170, 6_000),
    "svg-geco": Run("smmnist-geco", "svg", 170, 6_000),
    "svg-beta": Run("smmnist-beta", "svg", 170, 6_000),
}


def cases(setting: Setting) -> Cases:
    """One for each run. A case that was stopped resumes its run."""
    return {name: lambda n=name, r=run: train_and_watch(setting, n, r) for name, run in RUNS.items()}


def number_of_steps(setting: Setting, name: str, run: Run) -> int:
    """Steps for the run's seconds at the rate measured by the part `modes`; settled once, when the run starts."""
    config = setting.out / "runs" / name
    if (config / "config.json").exists():
        return read_config(config).optim.steps
    if setting.tiny:
        return 8
    measured = Record(setting.out).results("modes")
    rates = [measured.get(f"{run.family}, {mode}", {}).get("steps_per_second") for mode in ("compiled", "eager")]
    rate = next((rate for rate in rates if rate), None)
    return run.steps if rate is None else max(500, round(0.9 * run.seconds * rate, -2))


def command(setting: Setting, name: str, run: Run, steps: int) -> list[str]:
    options = {
        "run-dir": setting.out / "runs" / name,
        "data.root": setting.root,
        "compute.device": setting.device.type,
        "optim.steps": int(steps),
        "optim.batch-size": 100,
        "run.checkpoint-every": max(1, int(steps) // 8),
        "run.sample-every": int(steps),
    }
    if setting.tiny:
        options |= {f"model.{option.replace('_', '-')}": value for option, value in SMALL[run.family].items()}
        options |= {"optim.batch-size": 2, "run.checkpoint-every": 4, "run.n-valid": 4, "compute.workers": 0}
        options |= {"run.log-every": 2}
    return [sys.executable, "train.py", run.preset, *(f"--{option}={value}" for option, value in options.items())]


def end_with_parent() -> None:
    """Called in a new process: SIGTERM, on which train.py saves, when the process that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def train_and_watch(setting: Setting, name: str, run: Run) -> Numbers:
    """Train, score new best checkpoints meanwhile, and say when each published mark was passed."""
    run_dir = setting.out / "runs" / name
    steps = number_of_steps(setting, name, run)
    process = subprocess.Popen(command(setting, name, run, steps), preexec_fn=end_with_parent)
    try:
        begin = time.monotonic()
        while process.poll() is None:
            time.sleep(1)
            if time.monotonic() - begin > STOP * run.seconds + 60:
                process.send_signal(signal.SIGTERM)  # saves first
                process.wait()
            elif run.watched:
                score_new(setting, name)
    finally:
        process.kill()
        process.wait()
    if process.returncode not in (0, UNFINISHED):
        return {"ok": False, "error": f"train.py ended with exit code {process.returncode}; see training.log"}
    score_new(setting, name)
    last = checkpoint.load(run_dir / "checkpoints" / "last.pt")["step"]
    numbers = {"steps": last, "of": int(steps), "training_seconds": round(training_seconds(run_dir, last), 1)}
    return numbers | best_score(setting, name) | passed(setting, name)


def score_new(setting: Setting, name: str) -> None:
    """Score the best checkpoint, unless that has been done; each is a case."""
    best = setting.out / "runs" / name / "checkpoints" / "best.pt"
    if not best.exists():
        return
    snapshot = setting.out / "snapshot"
    shutil.rmtree(snapshot, ignore_errors=True)
    (snapshot / "checkpoints").mkdir(parents=True)
    shutil.copy(best, snapshot / "checkpoints")  # training replaces the file, never rewrites it
    shutil.copy(best.parent.parent / "config.json", snapshot)
    step = checkpoint.load(snapshot / "checkpoints" / "best.pt")["step"]
    Record(setting.out).run("scores", f"{name}, step {step}", lambda: score(setting, name, snapshot, step))


def score(setting: Setting, name: str, snapshot: Path, step: int) -> Numbers:
    """srvp-2020 on 256 test videos, best of 100 samples, and the seconds of training until then."""
    n_videos, n_samples = ("2", "2") if setting.tiny else ("256", "100")
    flags = ["--protocol", "srvp-2020", "--n-videos", n_videos, "--n-samples", n_samples, "--n-importance", "1"]
    flags += ["--no-oracle", "--lpips", "off", "--device", setting.device.type, "--out", str(snapshot / "scores")]
    if evaluate.main([str(snapshot), *flags]) != 0:
        raise RuntimeError("evaluate.py failed; see training.log")
    best = json.loads((snapshot / "scores" / "metrics.json").read_text())["best_of_n"]
    numbers = {metric: best[metric][n_samples]["mean"] for metric in ("psnr", "ssim")}
    seconds = training_seconds(setting.out / "runs" / name, step)
    return {"run": name, "step": step, "training_seconds": round(seconds, 1), **numbers}


def scores_of(setting: Setting, name: str) -> list[dict]:
    return [line for line in Record(setting.out).results("scores").values() if line.get("run") == name]


def best_score(setting: Setting, name: str) -> Numbers:
    """Scores of the latest of the best checkpoints."""
    found = scores_of(setting, name)
    return {metric: found[-1][metric] for metric in ("psnr", "ssim")} if found else {}


def passed(setting: Setting, name: str) -> Numbers:
    """Seconds of training after which a checkpoint was first at or above each mark in PSNR, and in SSIM."""
    numbers: Numbers = {}
    for row in published_rows("srvp-2020", "moving_mnist"):
        for metric in ("psnr", "ssim") if row.name in MARKS else ():
            mark = getattr(row, metric)[0]
            times = [line["training_seconds"] for line in scores_of(setting, name) if line[metric] >= mark]
            if times:
                numbers[f"seconds_to_{row.name}s_{metric}"] = min(times)
    return numbers
