"""What the benchmarks of speed share: turns, clocks, memory, the machine and the settings of the full-size model."""

import argparse
import multiprocessing
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import train
from datasets import load_dataset
from seqvae.config import RunConfig
from seqvae.device import as_float, choose_device
from seqvae.memory import keep_memory
from seqvae.networks import IMAGE_SIZES, NETWORKS
from seqvae.presets import PRESETS
from seqvae.training import session
from seqvae.training.state import TrainState

CHANNELS = {"smmnist": 1, "bair": 3}


def parser(doc: str, **defaults: int) -> argparse.ArgumentParser:
    """Flags that the benchmarks of the model have in common; SVG's sizes on Moving MNIST unless told otherwise."""
    given = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--network", choices=tuple(NETWORKS), help="SVG's: dcgan on Moving MNIST, vgg on BAIR")
    given.add_argument("--width", type=int, default=64)
    given.add_argument("--batch-size", type=int, default=defaults["batch_size"])
    given.add_argument("--n-frames", type=int, default=defaults["n_frames"], help="of a clip; 5 are seen, 2 on BAIR")
    given.add_argument("--image-size", type=int, choices=IMAGE_SIZES, default=64)
    given.add_argument("--amp", choices=("bf16", "off"), default="off")
    given.add_argument("--rounds", type=int, default=10, help="turns that count, after 2 that warm up")
    given.add_argument("--threads", type=int, default=torch.get_num_threads())
    given.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return given


def start(args: argparse.Namespace) -> torch.device:
    """The device, with what the entry points set for it; the network is filled in."""
    args.network = args.network or PRESETS[f"{args.data}-beta"][1].model.network
    torch.set_num_threads(args.threads)
    keep_memory()
    return choose_device(args.device, "--device")


def model_flags(given: argparse.ArgumentParser) -> None:
    """Flags of the benchmarks that run the model against SVG's loop."""
    given.add_argument("--data", choices=tuple(CHANNELS), default="smmnist", help="whose sizes; shown are drawn digits")
    given.add_argument("--family", choices=("svg", "transport"), default="svg", help="of our model; SVG's loop has SVG")
    given.add_argument("--compile", choices=("on", "off"), default="off")


def settings(args: argparse.Namespace, *flags: str, family: str = "svg") -> RunConfig:
    """Of a run on drawn digits of `train.py smmnist-beta` or `bair-beta`, SVG's own objective, or smmnist-transport."""
    preset = f"{args.data}-beta" if family == "svg" else f"{args.data}-transport-geco"
    if preset not in PRESETS:
        raise SystemExit(f"--family {family} is not measured on --data {args.data}; leave one of them out")
    options = {
        "data.name": "moving_mnist",
        "data.glyphs": "drawn",
        "data.max-speed": 3,  # the highest that 32 px leave room for
        "data.n-future": args.n_frames - PRESETS[preset][1].data.n_past,
        "data.image-size": args.image_size,
        "optim.batch-size": args.batch_size,
        "compute.amp": args.amp,
        "compute.device": args.device,
    }
    if family == "svg":
        options |= {"model.network": args.network, "model.width": args.width}
    return train.parse([preset, *(f"--{name}={value}" for name, value in options.items()), *flags])


def clips(args: argparse.Namespace, cfg: RunConfig, device: torch.device) -> Tensor:
    """(B, T, C, H, W) floats on the device: the first batch-size training clips, in grey where C is 3."""
    dataset = load_dataset(split="train", **cfg.data.arguments())
    video = torch.stack([dataset[i] for i in range(cfg.optim.batch_size)])
    return as_float(video.repeat(1, 1, CHANNELS[args.data], 1, 1), device)


def new_run(args: argparse.Namespace, family: str) -> tuple[TrainState, Tensor]:
    """A run of our model as train.py starts it, and its first clips."""
    device = start(args)
    cfg = settings(args, f"--compute.compile={args.compile}", family=family)
    return session.build_train_state(cfg, CHANNELS[args.data], device), clips(args, cfg, device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device has finished it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def turns(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every round, in which each has its turn: what else the machine does then meets all of them."""
    for _ in range(2):
        for run in runs.values():
            seconds(run, device)
    times = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(rounds)]
    return {name: [each[name] for each in times] for name in runs}


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest, of 4 significant digits."""
    return {"median": rounded(median(values)), "min": rounded(min(values)), "max": rounded(max(values))}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Of the same rounds."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def peak_memory_mb(part: Callable[..., object], *args: object) -> float:
    """Highest memory of a new process that calls part(*args): on CUDA what torch took, else all of the process's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return round(pool.submit(_peak_of, part, *args).result())


def _peak_of(part: Callable[..., object], *args: object) -> float:
    part(*args)
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    return resident_mb("VmHWM")


def resident_mb(line: str) -> float:
    """VmRSS or VmHWM, resident memory of this process now or at its peak; Linux alone says it, 0 elsewhere."""
    status = Path("/proc/self/status")  # not ru_maxrss, which a new process inherits from its parent
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(each.split()[1]) * 1024 / 1e6 for each in lines if each.startswith(line)), 0.0)


class FlopCounter(FlopCounterMode):
    """Counts all of a call in one sum: hooks of the count by module do not work within `torch.autograd.grad`."""

    class OneModule:
        parents = frozenset(["Global"])

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error) -> None:
            pass

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = self.OneModule()


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call, as PyTorch counts them."""
    with FlopCounter() as counter:
        call()
    return counter.get_total_flops()


def matmul_flops(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """FLOP/s of a square product of matrices, the best of 20: what this machine can do at all."""
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / min(seconds(lambda: a @ a, device) for _ in range(20))


def machine(device: torch.device) -> dict[str, str | int | float]:
    """What was measured on, and how busy it was with other things."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    load = rounded(float(Path("/proc/loadavg").read_text().split()[0])) if Path("/proc/loadavg").exists() else None
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "load_average": load}
