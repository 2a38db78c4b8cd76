"""Seconds of a training step, and of SVG's released loop on the same clips, in turns in one process: one JSON line.

    python -m benchmarks.train_step                     full-size DCGAN, batch 16, 15 frames, float32
    python -m benchmarks.train_step --amp bf16          convolutions in bfloat16; the reference stays in float32
    python -m benchmarks.train_step --data bair --n-frames 12 --batch-size 4    SVG's sizes on BAIR: VGG, 3 channels
    python -m benchmarks.train_step --family transport  the transport model's step, beside SVG's loop with SVG's model
    python -m benchmarks.train_step --sweep --width 16  cost against frames, batch and image size: a line per point

Ours is the Trainer's own step, with the settings of `train.py smmnist-beta` or `bair-beta`, SVG's objective. The clips,
drawn digits, lie in memory before it starts. FLOPs are those of convolutions and products of matrices; the LSTMs' are
left out. The fraction of a matrix product's rate in the same type can exceed 1 on a CPU whose float32 products (MKL)
are slower than its convolutions (oneDNN).
"""

import argparse
import json
import math
from collections.abc import Callable

import torch

from benchmarks import measure
from benchmarks.reference_svg import ReferenceTraining
from seqvae.build import build_model
from seqvae.networks import IMAGE_SIZES
from seqvae.training.step import train_step

SWEEP = {"n_frames": (8, 15, 30, 60), "batch_size": (4, 8, 16, 32), "image_size": IMAGE_SIZES}


def ours(args: argparse.Namespace) -> Callable[[], object]:
    """One step of a new run, as train.py makes it."""
    train_state, video = measure.new_run(args, args.family)
    return lambda: train_step(train_state, video)


def reference(args: argparse.Namespace) -> Callable[[], object]:
    """One step of SVG's loop, with a model of the same sizes and its weights."""
    device = measure.start(args)
    cfg = measure.settings(args)
    model = build_model(cfg, measure.CHANNELS[args.data]).to(device).train()
    training, video = ReferenceTraining(model), measure.clips(args, cfg, device)
    noise = torch.randn(args.batch_size, args.n_frames - 1, training.model.z_dim, device=device)
    return lambda: training.step(video, noise)


PARTS = {"ours": ours, "reference": reference}


def two_steps(part: str, args: argparse.Namespace) -> None:
    """For peak memory: the second step has the optimizer's moments."""
    step = PARTS[part](args)
    step()
    step()


def compare(args: argparse.Namespace) -> dict:
    device = measure.start(args)
    steps = {name: make(args) for name, make in PARTS.items()}
    times = measure.turns(steps, args.rounds, device)
    flops = {}
    eager = argparse.Namespace(**vars(args) | {"compile": "off"})  # compiled kernels would not be counted
    for name, make in PARTS.items():
        step = steps[name] if args.compile == "off" else make(eager)
        flops[name] = measure.count_flops(step)
    rate = flops["ours"] / measure.spread(times["ours"])["median"]
    frames = args.batch_size * (args.n_frames - 1)
    dtype = torch.bfloat16 if args.amp == "bf16" else torch.float32
    peak = measure.matmul_flops(dtype, device, 8192 if device.type == "cuda" else 1024)
    return {
        "seconds_per_step": {name: measure.spread(values) for name, values in times.items()},
        "ratio": measure.ratio(times["reference"], times["ours"]),
        "frames_per_second": measure.rounded(frames / measure.spread(times["ours"])["median"]),
        "peak_memory_mb": {name: measure.peak_memory_mb(two_steps, name, args) for name in PARTS},
        "gflop_per_step": {name: measure.rounded(value / 1e9) for name, value in flops.items()},
        "gflop_per_second": measure.rounded(rate / 1e9),
        "matmul_gflop_per_second": measure.rounded(peak / 1e9),
        "fraction_of_matmul": measure.rounded(rate / peak),
    }


def sweep(args: argparse.Namespace) -> None:
    """One line per point, then one per size with the exponent of the cost between its first and last point."""
    device = measure.start(args)
    for size, points in SWEEP.items():
        costs = []
        for point in points:
            each = argparse.Namespace(**vars(args) | {size: point})
            costs.append(measure.spread(measure.turns({"ours": ours(each)}, args.rounds, device)["ours"]))
            print(json.dumps({size: point, "seconds_per_step": costs[-1]}), flush=True)
        exponent = math.log(costs[-1]["median"] / costs[0]["median"]) / math.log(points[-1] / points[0])
        print(json.dumps({"cost grows as": f"{size} ** {exponent:.2f}"}), flush=True)


def main(argv: list[str] | None = None) -> None:
    flags = measure.parser(__doc__, batch_size=16, n_frames=15)
    measure.model_flags(flags)
    flags.add_argument("--sweep", action="store_true", help="ours alone, one size varied at a time")
    args = flags.parse_args(argv)
    device = measure.start(args)
    if args.sweep:
        sweep(args)
    else:
        print(json.dumps({"benchmark": "train_step"} | vars(args) | measure.machine(device) | compare(args)))


if __name__ == "__main__":
    main()
