"""How far a perfect model would get on SRVP's Moving MNIST, under srvp-2020, as markdown tables.

    python -m benchmarks.oracle --root data                     300 videos x 100 futures: 600,000 frames
    python -m benchmarks.oracle --root data --n-videos 10       a look

The oracle knows the true state at the last context frame, and draws the later bounces anew. Frames are made and scored
25 samples of a video at a time, so memory does not grow with --n-samples or --n-videos. Scores are the expected best of
n of the N futures, averaged over videos, +- the half width of a 95 % interval. The published row (EVALUATION.md section
4, 300 videos, frames capped at 40 dB) is 17.2 / 19.5 / 23.7 dB and 0.713 / 0.774 / 0.834 for n = 1 / 10 / 100.
"""

import argparse
import resource
import time

import torch

from datasets import load_dataset
from datasets.digits.oracle import oracle_futures
from seqvae.metrics.best_of_n import BestOfN, over_videos
from seqvae.metrics.frame import psnr, ssim
from seqvae.metrics.protocols import find_protocol, label

CAP = 40.0  # dB, of the published row; a frame that is guessed exactly would otherwise count 100
SIZES = (1, 10, 100)
CHUNK = 25  # samples made and scored at once


def measure(guess: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """(n, v, F, C, H, W) in [0, 1] -> metric -> (n, v, F)."""
    values = psnr(guess, target)
    # One channel, so capping after the mean over channels is the same as capping before.
    return {"PSNR": values, f"PSNR, frames <= {CAP:.0f} dB": values.clamp(max=CAP), "SSIM": ssim(guess, target)}


def cell(estimate) -> str:
    return f"{float(estimate.mean):.4f} +- {float(estimate.half_width):.4f}"


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Prints the oracle's table, then that of the baselines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of MNIST")
    parser.add_argument("--n-videos", type=int, default=300, help="of the oracle, the first of the test set")
    parser.add_argument("--n-samples", type=int, default=100)
    parser.add_argument("--n-baseline-videos", type=int, default=5000, help="0 leaves the baselines out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    protocol = find_protocol("srvp-2020", "moving_mnist")
    n_past, n_future = protocol.n_past, protocol.n_future
    dataset = load_dataset(protocol.test_set, args.root, "test", seq_len=n_past + n_future)

    start, scores = time.perf_counter(), BestOfN(args.n_samples, args.n_videos, n_future)
    print(f"oracle, {label(protocol, args.n_samples, args.n_videos)}, seed {args.seed}\n")
    for v in range(args.n_videos):
        target = dataset[v][n_past:] / 255  # (F, C, H, W)
        for first in range(0, args.n_samples, CHUNK):
            samples = range(first, min(first + CHUNK, args.n_samples))
            futures = torch.from_numpy(oracle_futures(dataset, [v], n_past, n_future, samples, args.seed)) / 255
            scores.add(first, v, **measure(futures, target.expand_as(futures)))
    sizes = [n for n in SIZES if n <= args.n_samples]
    print("| expected best of | " + " | ".join(map(str, sizes)) + " |\n|---" + "|---" * len(sizes) + "|")
    for metric in scores.scores:
        by_n = scores.summary(metric).by_n
        print(f"| {metric} | " + " | ".join(cell(by_n[n]) for n in sizes) + " |")
    report(start)

    if args.n_baseline_videos:
        start, tables = time.perf_counter(), {}
        for first in range(0, args.n_baseline_videos, 50):
            videos = range(first, min(first + 50, args.n_baseline_videos))
            clips = torch.stack(dataset.__getitems__(videos)) / 255  # (v, T, C, H, W)
            context, target = clips[:, :n_past], clips[:, n_past:]
            guesses = {
                "black": torch.zeros_like(target),
                "copy last frame": context[:, -1:].expand_as(target),
                "mean of context": context.mean(1, keepdim=True).expand_as(target),
            }
            for name, guess in guesses.items():
                table = tables.setdefault(name, BestOfN(1, args.n_baseline_videos, n_future))
                table.add(0, first, **measure(guess[None], target[None]))
        print(f"\nbaselines, {label(protocol, protocol.n_samples, args.n_baseline_videos)}\n")
        metrics = list(next(iter(tables.values())).scores)
        print("| | " + " | ".join(metrics) + " |\n|---" + "|---" * len(metrics) + "|")
        for name, table in tables.items():
            print(f"| {name} | " + " | ".join(cell(over_videos(table.summary(m).best)) for m in metrics) + " |")
        report(start)


def report(start: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
    print(f"\n{time.perf_counter() - start:.0f} s on one thread, peak memory so far {peak:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
