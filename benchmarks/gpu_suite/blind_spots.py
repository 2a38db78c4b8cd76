"""What the tests on a CPU can only assume about CUDA."""

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import train
from benchmarks.gpu_suite.correctness import all_combinations, clips_of, in_folder, loss_and_gradient, plain, relative
from benchmarks.gpu_suite.record import Cases, Numbers, Setting, Skip, at_most
from datasets import load_dataset
from datasets.on_device import device_batches
from seqvae.device import as_float
from seqvae.models import FAMILIES
from seqvae.training import session
from seqvae.training.logger import read_metrics
from seqvae.training.loop import batches
from seqvae.training.step import train_step
from tests.families import small
from tests.helpers import GECO_FLAGS, TINY, free_port

PATIENCE = 60  # seconds for processes that should end by themselves


def cases(setting: Setting) -> Cases:
    waiting = {f"no step waits, {family}": lambda f=family: no_waiting(setting, f) for family in FAMILIES}
    return waiting | {
        "pinned copies": lambda: pinned_copies(setting),
        "SyncBatchNorm, one process": lambda: in_folder(sync_batch_norm, setting),
        "two processes": lambda: in_folder(two_processes, setting),
        "a lost process": lambda: in_folder(lost_process, setting),
    }


def no_waiting(setting: Setting, family: str) -> Numbers:
    """Training steps with every objective and likelihood, in bfloat16, while torch refuses to wait for the GPU."""
    waits, chosen = {}, {name: cfg for name, cfg in all_combinations().items() if name.startswith(f"{family} ")}
    for name, cfg in chosen.items():
        compute = dataclasses.replace(cfg.compute, amp="bf16", compile="off")
        train_state = session.build_train_state(dataclasses.replace(cfg, compute=compute), 1, setting.device)
        video = as_float(clips_of(cfg), setting.device)
        train_step(train_state, video)  # libraries wait when they are first used
        try:
            with refuse_to_wait(setting):
                train_step(train_state, video)
        except RuntimeError as error:
            waits[name] = str(error).splitlines()[0]
    text = {"text": "\n".join(f"{name}: {error}" for name, error in waits.items())} if waits else {}
    return {"combinations": len(chosen), "that_wait": len(waits), "ok": not waits} | text


@contextmanager
def refuse_to_wait(setting: Setting) -> Iterator[None]:
    if setting.device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pinned_copies(setting: Setting) -> Numbers:
    """Batches that the host loads, and those made on the device, while the GPU is busy: the bytes of the data set."""
    n_steps = 3 if setting.tiny else 30
    cfg = dataclasses.replace(TINY, optim=dataclasses.replace(TINY.optim, steps=n_steps, batch_size=50))
    clips = load_dataset(split="train", **cfg.data.arguments())
    train_state = session.build_train_state(cfg, 1, setting.device)
    size = 64 if setting.tiny else 8192
    large = torch.randn(size, size, device=setting.device)
    found = {}
    for name, source in (("loaded", None), ("made", device_batches(clips, setting.device))):
        found[name] = []
        for batch, _ in itertools.islice(batches(train_state, clips, source), n_steps):
            large = torch.tanh(large @ large)
            found[name].append(batch + 0)  # read by the GPU once it is done with the product
    wrong = sum(not one.equal(other) for one, other in zip(found["loaded"], found["made"]))
    return {"batches": len(found["loaded"]), "wrong": wrong, "ok": wrong == 0 and len(found["loaded"]) == n_steps}


def sync_batch_norm(setting: Setting, folder: Path) -> Numbers:
    """The gradient with SyncBatchNorm in a group of one process, against batch norm."""
    if setting.device.type != "cuda":
        raise Skip("torch has SyncBatchNorm on CUDA alone")
    cfg = plain(dataclasses.replace(TINY, model=small("svg", norm="batch")))
    results = []
    dist.init_process_group("nccl", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        for convert in (False, True):
            train_state = session.build_train_state(cfg, 1, setting.device)
            if convert:
                train_state.model = nn.SyncBatchNorm.convert_sync_batchnorm(train_state.model)
            results.append(loss_and_gradient(train_state, as_float(clips_of(cfg), setting.device))[1])
    finally:
        dist.destroy_process_group()
    error = relative(results[1], results[0])
    return {"gradient": error} | at_most(error, 1e-4)


# ---- two processes that share the GPU


def start_two(setting: Setting, folder: Path, *flags: str) -> list[subprocess.Popen]:
    """train.py twice, as a launcher starts it; both use the one GPU."""
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_RANK": "0"}
    command = [sys.executable, "-m", "benchmarks.gpu_suite.gloo", *GECO_FLAGS, f"--run-dir={folder / 'two'}"]
    command += [f"--compute.device={setting.device.type}", "--compute.timeout=30", *flags]
    started = []
    for rank in range(2):
        with (folder / f"{rank}.log").open("wb") as log:
            env = os.environ | launch | {"RANK": str(rank)}
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    return started


def end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-2_000:] for path in sorted(folder.glob("*.log")))


def two_processes(setting: Setting, folder: Path) -> Numbers:
    """Two processes train as one does; on CUDA with SyncBatchNorm."""
    norm = "--model.norm=batch" if setting.device.type == "cuda" else "--model.norm=group"
    started = start_two(setting, folder, norm)
    try:
        codes = [process.wait(PATIENCE * setting.patience) for process in started]
    except subprocess.TimeoutExpired:
        codes = [process.poll() for process in started]
    finally:
        end(started)
    if codes != [0, 0]:
        return {"ok": False, "error": f"exit codes {codes}\n{logs(folder)}"}
    flags = [*GECO_FLAGS, norm, f"--compute.device={setting.device.type}", f"--run-dir={folder / 'one'}"]
    assert train.main(flags) == 0

    def rmse(run: str) -> torch.Tensor:
        lines = read_metrics(folder / run / "metrics.jsonl")
        return torch.tensor([line["train/rmse"] for line in lines if "train/rmse" in line])

    error = relative(rmse("two"), rmse("one"))
    return {"steps": len(rmse("two")), "rmse": error} | at_most(error, 1e-3)


def lost_process(setting: Setting, folder: Path) -> Numbers:
    """Seconds after which a process whose peer was killed has ended, with exit code 1 and one line."""
    started = start_two(setting, folder, "--model.norm=group", "--optim.steps=100000", "--optim.schedule=constant")
    try:
        begin = time.monotonic()
        while not (folder / "two" / "checkpoints" / "previous.pt").exists():
            if started[0].poll() is not None or time.monotonic() > begin + PATIENCE * setting.patience:
                return {"ok": False, "error": f"no training\n{logs(folder)}"}
            time.sleep(0.2)
        started[1].kill()
        begin = time.monotonic()
        code = started[0].wait(PATIENCE * setting.patience)
        seconds = time.monotonic() - begin
    finally:
        end(started)
    said = "has lost the others" in logs(folder)
    return {
        "exit_code": code,
        "seconds_to_end": round(seconds, 1),
        "ok": code == 1 and said,
        "text": logs(folder)[-1_000:],
    }
