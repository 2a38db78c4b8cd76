"""Predicted frames per second of the model, and of SVG's way, one sample and one frame at a time: one JSON line.

    python -m benchmarks.rollout                  full-size DCGAN, 4 videos, 10 samples, 5 + 20 frames, float32
    python -m benchmarks.rollout --amp bf16       ours in bfloat16, and how far its PSNR is from float32's
    python -m benchmarks.rollout --data bair --n-frames 30 --batch-size 2       SVG's sizes on BAIR: VGG, 2 + 28 frames
    python -m benchmarks.rollout --family transport --n-samples 100    the transport model, beside SVG's way with SVG
    python -m benchmarks.rollout --sweep          frames per second and memory against the number of samples

The weights are those of a new model after --train-steps steps on drawn digits (0: none), with the norms' statistics of
those; what is measured does not depend on them, but the PSNR's difference does.
"""

import argparse
import json

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.reference_svg import ReferenceSVG
from seqvae.metrics.frame import psnr, without_tf32
from seqvae.models import VideoModel
from seqvae.training.step import train_step

SWEEP = (1, 10, 50, 100, 200)  # samples
ROWS = 256  # samples x videos at once, as in evaluation


def prepare(args: argparse.Namespace, family: str) -> tuple[VideoModel, Tensor]:
    """The model in eval mode and (B, T, C, H, W) clips."""
    train_state, video = measure.new_run(args, family)
    for _ in range(args.train_steps):
        train_step(train_state, video)
    return train_state.model.eval(), video


def noise_for(args: argparse.Namespace, model: VideoModel, n_samples: int) -> Tensor:
    """(N, B, T-1, Z) standard normal, the same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_samples, args.batch_size, args.n_frames - 1, model.z_dim)
    return torch.randn(shape, generator=generator).to(next(model.parameters()).device)


def rollout(model: VideoModel, video: Tensor, noise: Tensor, amp: bool) -> list[Tensor]:
    """The samples in chunks of at most ROWS rows, (n, B, F, C, H, W) bytes each: what evaluation keeps of them."""
    n_past = model.n_past
    with torch.autocast(video.device.type, torch.bfloat16, enabled=amp):
        return [
            (255 * model.rollout(video[:, :n_past], video.shape[1] - n_past, part)).round().byte()
            for part in noise.split(max(1, ROWS // len(video)))
        ]


def peak(args: argparse.Namespace, n_samples: int) -> None:
    """For peak memory: nothing is kept but the last chunk."""
    model, video = prepare(args, args.family)
    for part in noise_for(args, model, n_samples).split(max(1, ROWS // len(video))):
        rollout(model, video, part, args.amp == "bf16")


def compare(args: argparse.Namespace) -> dict:
    model, video = prepare(args, args.family)
    noise, n_past, n_future = noise_for(args, model, args.n_samples), model.n_past, args.n_frames - model.n_past
    svg, amp = model if args.family == "svg" else prepare(args, "svg")[0], args.amp == "bf16"
    reference, its_noise = ReferenceSVG(svg), noise_for(args, svg, args.n_samples)
    runs = {
        "ours": lambda: rollout(model, video, noise, amp),
        "reference": lambda: reference.rollout(video[:, :n_past], n_future, its_noise),
    }
    times = measure.turns(runs, args.rounds, video.device)
    seconds = {name: measure.spread(values) for name, values in times.items()}
    frames = args.n_samples * args.batch_size * n_future
    report = {
        "seconds": seconds,
        "frames_per_second": {name: measure.rounded(frames / each["median"]) for name, each in seconds.items()},
        "ratio": measure.ratio(times["reference"], times["ours"]),
        "peak_memory_mb": measure.peak_memory_mb(peak, args, args.n_samples),
    }
    if amp:
        target = video[:, n_past:].expand(args.n_samples, *video[:, n_past:].shape)
        scores = []  # of float32 and of bfloat16, (N, B, F)
        for each in (False, True):
            frames = torch.cat(rollout(model, video, noise, each)).float() / 255
            scores.append(psnr(frames, target))
        report["psnr_float32"] = measure.rounded(scores[0].mean().item())
        report["psnr_bf16_minus_float32"] = measure.rounded((scores[1] - scores[0]).mean().item())
    return report


def sweep(args: argparse.Namespace) -> None:
    """One line per number of samples."""
    model, video = prepare(args, args.family)
    for n_samples in SWEEP:
        noise = noise_for(args, model, n_samples)
        run = {"ours": lambda noise=noise: rollout(model, video, noise, args.amp == "bf16")}
        times = measure.spread(measure.turns(run, args.rounds, video.device)["ours"])
        frames = n_samples * args.batch_size * (args.n_frames - model.n_past)
        line = {
            "n_samples": n_samples,
            "seconds": times,
            "frames_per_second": measure.rounded(frames / times["median"]),
            "peak_memory_mb": measure.peak_memory_mb(peak, args, n_samples),
        }
        print(json.dumps(line), flush=True)


def main(argv: list[str] | None = None) -> None:
    flags = measure.parser(__doc__, batch_size=4, n_frames=25)
    measure.model_flags(flags)
    flags.add_argument("--n-samples", type=int, default=10)
    flags.add_argument("--train-steps", type=int, default=0)
    flags.add_argument("--sweep", action="store_true")
    args = flags.parse_args(argv)
    device = measure.start(args)
    with without_tf32():  # as evaluation
        if args.sweep:
            sweep(args)
        else:
            print(json.dumps({"benchmark": "rollout"} | vars(args) | measure.machine(device) | compare(args)))


if __name__ == "__main__":
    main()
