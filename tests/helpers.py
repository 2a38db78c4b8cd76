"""Shared by test modules: tiny runs and their flags, comparisons of their states, and processes that run them."""

import dataclasses
import importlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from seqvae import cli
from seqvae.config import (
    VARIANTS,
    DigitsConfig,
    GaussianConfig,
    GecoConfig,
    OptimConfig,
    RunConfig,
    RunSettings,
    SvgConfig,
    variant,
)
from seqvae.likelihoods import LIKELIHOODS

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")

# ---- settings of tiny runs

TINY = RunConfig(
    data=DigitsConfig(image_size=32, n_past=2, n_future=2, digit_size=12),
    model=SvgConfig(width=4, g_dim=8, rnn_size=8, z_dim=3),
    optim=OptimConfig(steps=6, batch_size=3, lr=1e-3),
    run=RunSettings(log_every=1, sample_every=100, checkpoint_every=3, n_valid=4),
)
GECO = dataclasses.replace(TINY, likelihood=GaussianConfig(), objective=GecoConfig(tolerance=0.1))


TINY_FLAGS = [
    *("--data.image-size", "32", "--data.n-past", "2", "--data.n-future", "3", "--data.digit-size", "12"),
    *("--model.width", "4", "--model.g-dim", "8", "--model.rnn-size", "8", "--model.z-dim", "3"),
    *("--optim.steps", "6", "--optim.batch-size", "3", "--optim.warmup", "0", "--compute.workers", "0"),
    *("--run.log-every", "1", "--run.sample-every", "6", "--run.checkpoint-every", "3", "--run.n-valid", "4"),
]
GECO_FLAGS = ["demo-svg", *TINY_FLAGS]
SIGMA_FLAGS = ["smmnist-sigma", "--data.name", "digits", *TINY_FLAGS]
TIMES = ("train/frames_per_second", "train/data_wait")  # numbers of a log that differ between equal runs


def without(flags: list[str], name: str) -> list[str]:
    """The flags without one of them and its value."""
    at = flags.index(name)
    return flags[:at] + flags[at + 2 :]


def change(cfg: RunConfig, group: str, **values) -> RunConfig:
    return dataclasses.replace(cfg, **{group: dataclasses.replace(getattr(cfg, group), **values)})


def video(seed: int = 0) -> torch.Tensor:
    """A batch of TINY's clips, (3, 4, 1, 32, 32)."""
    return torch.rand(3, 4, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def few_samples(objective: str) -> dict[str, int]:
    """Settings of an objective, for few importance samples if it has any."""
    return {"n_importance": 2} if "iwae" in objective else {}


def combinations() -> list[RunConfig]:
    """Every objective with every likelihood that goes with it."""
    found = []
    for objective in VARIANTS["objective"][1]:
        for likelihood in LIKELIHOODS:
            settings = {"tolerance": 0.1} if "geco" in objective else {}
            try:
                cfg = dataclasses.replace(
                    TINY,
                    likelihood=variant("likelihood", likelihood),
                    objective=variant("objective", objective, **settings, **few_samples(objective)),
                )
            except ValueError:
                continue
            found.append(pytest.param(cfg, id=f"{objective}-{likelihood}"))
    return found


# ---- checkpoints


def changed(state: dict, *path: str, to: object) -> dict:
    """A copy of nested dicts with one entry replaced."""
    return state | {path[0]: to if len(path) == 1 else changed(state[path[0]], *path[1:], to=to)}


# Changes that make a state another run's, or none at all.
FOREIGN = {
    "a list": lambda s: [1, 2],
    "no step": lambda s: {name: value for name, value in s.items() if name != "step"},
    "a step in words": lambda s: changed(s, "step", to="ten"),
    "a negative step": lambda s: changed(s, "step", to=-5),
    "an empty model": lambda s: changed(s, "model", to={}),
    "a list as model": lambda s: changed(s, "model", to=[torch.zeros(3)]),
    "a number as weight": lambda s: changed(s, "model", first_weight(s), to=1.0),
    "another shape": lambda s: changed(s, "model", first_weight(s), to=torch.zeros(99)),
    "another type": lambda s: changed(s, "model", first_weight(s), to=s["model"][first_weight(s)].long()),
    "NaN in a weight": lambda s: changed(s, "model", first_weight(s), to=s["model"][first_weight(s)] * math.nan),
    "a weight too many": lambda s: changed(s, "model", "extra", to=torch.zeros(1)),
    "averages of none": lambda s: changed(s, "ema", to=s["model"]),
    "no optimizer": lambda s: changed(s, "optimizer", to=None),
    "an empty optimizer": lambda s: changed(s, "optimizer", "state", to={}),
    "moments of other weights": lambda s: changed(s, "optimizer", "state", 0, "exp_avg", to=torch.zeros(2)),
    "another beta": lambda s: changed(s, "optimizer", "param_groups", to=[g | {"betas": "x"} for g in groups(s)]),
    "other groups": lambda s: changed(s, "optimizer", "param_groups", to=groups(s) * 2),
    "best in words": lambda s: changed(s, "best", to="x"),
    "best NaN": lambda s: changed(s, "best", to=math.nan),
    "no counters": lambda s: {name: value for name, value in s.items() if name != "counters"},
    "no objective": lambda s: changed(s, "objective", to=None),
}


def first_weight(state: dict) -> str:
    return next(iter(state["model"]))


def groups(state: dict) -> list[dict]:
    return state["optimizer"]["param_groups"]


def final(run_dir: Path) -> dict:
    """The last checkpoint."""
    return torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    """Leaves of nested dicts and lists by their path."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    return {name: leaf for key, value in items for name, leaf in flat(value, f"{prefix}/{key}").items()}


def assert_bitwise_equal(a: dict, b: dict) -> None:
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys() and any(isinstance(value, torch.Tensor) for value in a.values())
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, f"{name} differs"


# ---- pretrained networks


def without_storage(build: Callable[[], nn.Module]) -> nn.Module:
    """A network of shapes alone: drawing VGG16's initial weights takes two seconds."""
    with torch.device("meta"):
        return build()


def backbone(net: str) -> Callable[[], nn.Module]:
    """torchvision's network behind LPIPS's `net`."""
    from torchvision import models  # takes two seconds, and few tests need it

    return {"alex": models.alexnet, "vgg": models.vgg16}[net]


# ---- processes


class Forked:
    """A command in a process forked from this one, with as much of Popen as tests need.

    It starts at once, where a new interpreter takes four seconds to import torch.
    """

    def __init__(self, program: str, args: tuple[str, ...], env: dict[str, str], new_session: bool) -> None:
        self.output, self.errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.returncode: int | None = None
        main = importlib.import_module(program).main
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if new_session:
                    os.setsid()
                os.environ |= env
                for stream, file in enumerate((self.output, self.errors), 1):
                    os.dup2(file.fileno(), stream)
                sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
                sys.argv = [f"{program}.py", *args]
                cli.run_program(main, orderly=program != "train")
            except SystemExit as end:
                os._exit(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        self.wait(timeout)
        texts = []
        for file in (self.output, self.errors):
            file.seek(0)
            texts.append(file.read().decode())
        return tuple(texts)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    program: str, *args: str, new_session: bool = False, fork: bool = True, **env: str
) -> Forked | subprocess.Popen:
    """`program` ("train", "evaluate") in a process of its own, `env` added to its environment.

    A fork leaves out what happens at a program's exit, and CUDA does not survive it.
    """
    if fork and not torch.cuda.is_available():
        return Forked(program, args, env, new_session)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, f"{program}.py", *args]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, start_new_session=new_session, **pipes)


def start_two(program: str, first: list[str], second: list[str]) -> list[Forked | subprocess.Popen]:
    """Two processes of one launch."""
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [start(program, *args, **launch, **rank) for args, rank in zip((first, second), ranks)]


def wait_for(condition, process: Forked | subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def rgb(colour: str) -> list[int]:
    """#rrggbb as three bytes."""
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
