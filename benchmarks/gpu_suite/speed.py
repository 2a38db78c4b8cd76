"""How fast the GPU trains and predicts, and where the time goes."""

import contextlib
import io
import json
from collections.abc import Callable
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks import data, evaluate, measure, rollout, train_step
from benchmarks.gpu_suite.correctness import first_clips, loss_of, preset_run
from benchmarks.gpu_suite.record import Cases, Numbers, Setting, Skip, at_least
from benchmarks.measure import rounded, seconds, spread, turns
from seqvae.training import session
from seqvae.training.state import TrainState
from seqvae.training.step import train_step as take_step

TINY = ("--width=4", "--batch-size=2", "--image-size=32", "--rounds=1")
VIDEO_FAMILIES = ("svg", "transport")


def printed(main: Callable[[list[str]], None], setting: Setting, *flags: str) -> dict:
    """The line that a benchmark prints; in a rehearsal the tiny sizes come last and win.

    Without the new processes in which benchmarks measure memory: each takes as long to start as a part may have.
    """
    no_processes = mock.patch.object(measure, "peak_memory_mb", lambda *_: None)
    with no_processes, contextlib.redirect_stdout(io.StringIO()) as out:
        main([*flags, f"--device={setting.device.type}", *(TINY if setting.tiny else ())])
    return json.loads(out.getvalue().splitlines()[-1])


def needs_cuda(setting: Setting) -> None:
    """Compilation takes a CPU minutes, and graphs are CUDA's."""
    if setting.device.type != "cuda":
        raise Skip("needs a CUDA device")


def train_step_cases(setting: Setting) -> Cases:
    """A training step of `svg` against SVG's loop, at batch 100."""

    def run(*flags: str, goal: bool = False) -> Numbers:
        if "--compile=on" in flags:
            needs_cuda(setting)
        line = printed(train_step.main, setting, "--rounds=5", *flags)
        numbers = {
            "times_svgs_loop": line["ratio"]["median"],
            "steps_per_second": rounded(1 / line["seconds_per_step"]["ours"]["median"]),
            "svgs_steps_per_second": rounded(1 / line["seconds_per_step"]["reference"]["median"]),
            "fraction_of_matmul": line["fraction_of_matmul"],
        }
        return numbers | (at_least(setting, numbers["times_svgs_loop"], 12) if goal else {})

    size = ["--batch-size=100", "--n-frames=7" if setting.tiny else "--n-frames=15"]
    return {
        "svg, bfloat16, compiled": lambda: run(*size, "--compile=on", "--amp=bf16", goal=True),
        "svg, bfloat16": lambda: run(*size, "--amp=bf16"),
        "svg, float32": lambda: run(*size),
    }


def rollout_cases(setting: Setting) -> Cases:
    """100 predicted futures against SVG's loop, which predicts one after the other."""

    def run(*flags: str) -> Numbers:
        if "--compile=on" in flags:
            needs_cuda(setting)
        samples, frames = (2, 8) if setting.tiny else (100, 25)
        size = [f"--n-samples={samples}", f"--n-frames={frames}"]
        line = printed(rollout.main, setting, *size, "--rounds=2", "--amp=bf16", *flags)
        ratio, frames = line["ratio"]["median"], line["frames_per_second"]["ours"]
        return {"times_svgs_loop": ratio, "frames_per_second": frames} | at_least(setting, ratio, 20)

    return {
        "svg, 100 samples, bfloat16": run,
        "svg, 100 samples, bfloat16, compiled": lambda: run("--compile=on"),
    }


def others(setting: Setting) -> Cases:
    """Clips made on the device, VGG at BAIR's sizes, evaluation."""

    def clips() -> Numbers:
        batch_size, repeats = (10, 1) if setting.tiny else (100, 10)
        rates = data.digits_on_device(batch_size, setting.device, repeats)
        return {f"{name}_{key}": value for name, line in rates.items() for key, value in line.items()}

    def vgg() -> Numbers:
        size = ["--batch-size=20", "--n-frames=5" if setting.tiny else "--n-frames=12"]
        line = printed(train_step.main, setting, "--data=bair", *size, "--rounds=3", "--amp=bf16")
        return {
            "times_svgs_loop": line["ratio"]["median"],
            "steps_per_second": rounded(1 / line["seconds_per_step"]["ours"]["median"]),
            "fraction_of_matmul": line["fraction_of_matmul"],
        }

    def scoring() -> Numbers:
        n_videos, n_samples, frames = (2, 2, 17) if setting.tiny else (64, 100, 25)
        size = [f"--n-videos={n_videos}", f"--n-samples={n_samples}", f"--n-frames={frames}"]
        line = printed(evaluate.main, setting, *size, "--rounds=2", "--amp=bf16")
        return {key: value for key, value in line.items() if key.endswith("per_second") and isinstance(value, float)}

    return {"clips on the device": clips, "vgg, bair, bfloat16": vgg, "evaluation, 100 samples": scoring}


# ---- ways to run a step


def stepper(setting: Setting, family: str, mode: str) -> Callable[[], object]:
    """A training step of the family's preset in bfloat16, batch 100."""
    size = [] if setting.tiny else ["--optim.batch-size=100"]
    compiled = "on" if mode == "compiled" else "off"
    cfg = preset_run(setting, family, "--compute.amp=bf16", f"--compute.compile={compiled}", *size)
    train_state, video = session.build_train_state(cfg, 1, setting.device), first_clips(cfg, setting.device)
    if mode == "whole step as a CUDA graph":
        return graphed(train_state, video)
    if mode == "compiled with CUDA graphs":
        for name in train_state.model.compiled:
            getattr(train_state.model, name).compile(mode="reduce-overhead")
    return lambda: take_step(train_state, video)


def graphed(train_state: TrainState, video: torch.Tensor) -> Callable[[], object]:
    """Loss, gradient and optimizer captured as one graph, always with the same noise: what launches cost."""
    shape = (train_state.n_importance, len(video), train_state.n_predicted, train_state.model.z_dim)
    noise = torch.randn(shape, device=video.device)
    for group in train_state.optimizer.param_groups:
        group["capturable"] = True

    def step() -> None:
        train_state.optimizer.zero_grad(set_to_none=True)
        loss_of(train_state, video, noise).backward()
        train_state.optimizer.step()

    train_state.model.train()
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    train_state.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def modes(setting: Setting) -> Cases:
    """Steps per second of each way; `eager` is train.py without compilation."""

    cuda = setting.device.type == "cuda"

    def run(family: str, mode: str) -> Numbers:
        if mode != "eager":
            needs_cuda(setting)
        step = stepper(setting, family, mode)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        rounds = 2 if setting.tiny else 20
        rate = rounded(1 / spread(turns({mode: step}, rounds, setting.device)[mode])["median"])
        goal = at_least(setting, rate, 100) if (family, mode) == ("svg", "compiled") else {}
        memory = {"peak_mb": round(torch.cuda.max_memory_allocated() / 1e6)} if cuda else {}
        return {"steps_per_second": rate} | memory | goal

    names = ("eager", "compiled", "compiled with CUDA graphs", "whole step as a CUDA graph")
    return {f"{family}, {mode}": lambda f=family, m=mode: run(f, m) for mode in names for family in VIDEO_FAMILIES}


def profile(setting: Setting) -> Cases:
    """The 15 operations that take longest, and the share of the time in which the GPU works."""

    def run(family: str) -> Numbers:
        step, cuda = stepper(setting, family, "eager"), setting.device.type == "cuda"
        turns({"step": step}, 1, setting.device)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        n_steps = 2 if setting.tiny else 10
        with torch.profiler.profile(activities=activities) as found:
            spent = sum(seconds(step, setting.device) for _ in range(n_steps))
        events = found.key_averages()
        by = "self_device_time_total" if cuda else "self_cpu_time_total"
        kind = DeviceType.CUDA if cuda else DeviceType.CPU
        busy = sum(getattr(event, by) for event in events if event.device_type == kind) / 1e6
        text = events.table(sort_by=by, row_limit=15, max_name_column_width=60)
        return {"steps_per_second": rounded(n_steps / spent), "busy": rounded(busy / spent), "text": text}

    return {family: lambda f=family: run(f) for family in VIDEO_FAMILIES}
