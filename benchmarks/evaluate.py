"""Speed and memory of evaluation by srvp-2020's PSNR and SSIM, each with the model's predictions: one JSON line.

    python -m benchmarks.evaluate                            full-size DCGAN, 4 videos x 20 samples x 20 frames
    python -m benchmarks.evaluate --n-samples 100            five times the samples, in the same memory
    python -m benchmarks.evaluate --n-videos 256 --n-samples 100          what is published: minutes on a GPU

A new model of `train.py smmnist-beta` predicts drawn digits; neither speed nor memory depends on its weights. What is
quoted is `seqvae.evaluation.scores.score_all`, which predicts and scores, and its two metrics alone on as many frames.
"""

import argparse
import dataclasses
import json

import torch

from benchmarks import measure
from datasets import load_dataset
from seqvae.build import build_model
from seqvae.evaluation.predictions import ModelPredictions
from seqvae.evaluation.scores import Scorer, score_all
from seqvae.metrics.frame import without_tf32
from seqvae.metrics.protocols import Protocol, find_protocol

N_PAST, N_SCORED = 5, 256  # frames seen; clips' worth of frames that the metrics alone are timed on


def protocol_of(args: argparse.Namespace) -> Protocol:
    """srvp-2020 over as many frames as are asked for."""
    return dataclasses.replace(find_protocol("srvp-2020", "moving_mnist"), n_future=args.n_frames - N_PAST)


def evaluate(args: argparse.Namespace) -> Scorer:
    """The scores of all videos."""
    device = measure.start(args)
    cfg = measure.settings(args)
    protocol = protocol_of(args)
    sizes = {"n_samples": args.n_samples, "n_videos": args.n_videos}
    predictions = ModelPredictions(
        build_model(cfg, 1).to(device).eval(),
        load_dataset(split="test", **cfg.data.arguments()),
        n_past=N_PAST,
        n_future=protocol.n_future,
        seed=0,
        device=device,
        mean_image=None,
        amp=args.amp == "bf16",
        **sizes,
    )
    scorer = Scorer(protocol, protocol.frame_metrics, **sizes)
    with torch.no_grad(), without_tf32():
        score_all(predictions, [scorer], batch_size=args.batch_size, device=device)
    return scorer


def speeds(args: argparse.Namespace) -> dict:
    device = measure.start(args)
    protocol = protocol_of(args)
    whole = [measure.seconds(lambda: evaluate(args), device) for _ in range(args.rounds)]
    frames = args.n_videos * args.n_samples * protocol.n_future
    video = measure.clips(args, measure.settings(args), device)[:1, N_PAST:]  # (1, F, 1, H, W)
    target = video.expand(N_SCORED // video.shape[1], *video.shape[1:])
    guess = (target + 0.1 * torch.rand_like(target)).clamp(0, 1)
    scored = target.shape[:2].numel()
    runs = {name: lambda m=metric: m.score(guess, target) for name, metric in protocol.frame_metrics.items()}
    alone = measure.turns(runs, args.rounds, device)
    return {
        "seconds": measure.spread(whole),
        "frames": frames,
        "frames_per_second": measure.rounded(frames / measure.spread(whole)["median"]),
        "metric_frames_per_second": {
            name: measure.rounded(scored / measure.spread(times)["median"]) for name, times in alone.items()
        },
        "peak_memory_mb": measure.peak_memory_mb(evaluate, args),
    }


def main(argv: list[str] | None = None) -> None:
    flags = measure.parser(__doc__, batch_size=4, n_frames=25)
    flags.add_argument("--n-videos", type=int, default=4)
    flags.add_argument("--n-samples", type=int, default=20)
    flags.set_defaults(rounds=3, data="smmnist")
    args = flags.parse_args(argv)
    device = measure.start(args)
    print(json.dumps({"benchmark": "evaluate"} | vars(args) | measure.machine(device) | speeds(args)))


if __name__ == "__main__":
    main()
