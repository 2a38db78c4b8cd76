"""Other numbers of digits than a run was trained on: one table, and a GIF with the first test clip of each.

    python -m benchmarks.digit_counts smmnist-transport --root data --out docs/digit_counts.gif

Clips are the test split of Moving MNIST, made on the fly (`moving_mnist`, 28 px digits): 5 frames seen, 20 predicted.
PSNR of the best sample and of the mean over samples, of the posterior, and of the last observed frame copied; +- is a
95 % interval over videos.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from datasets import load_dataset
from seqvae.evaluation.clip import reconstruct
from seqvae.metrics.best_of_n import over_videos, plus_minus
from seqvae.metrics.frame import psnr
from seqvae.run import load_run
from seqvae.visualize import Panel, write_animation_grid

N_PAST, N_FRAMES = 5, 25
SHOWN = 3  # samples in the GIF


def scores(video: np.ndarray, futures: np.ndarray, posterior: np.ndarray) -> list[str]:
    """Cells of one row, from (V, T, H, W, 1), (N, V, F, H, W, 1) and (V, F, H, W, 1) uint8."""

    def mean_psnr(frames: np.ndarray) -> np.ndarray:
        target = np.broadcast_to(video[:, N_PAST:], frames.shape)
        pair = (torch.from_numpy(x.copy()).movedim(-1, -3).float() / 255 for x in (frames, target))
        return psnr(*pair).double().mean(-1).numpy()  # (..., V)

    samples = mean_psnr(futures)
    copied = np.repeat(video[:, N_PAST - 1 : N_PAST], N_FRAMES - N_PAST, 1)
    columns = (samples.max(0), samples.mean(0), mean_psnr(posterior), mean_psnr(copied))
    intervals = (over_videos(column) for column in columns)
    return [f"{mean:.2f}{plus_minus(float(half_width), 2)}" for mean, half_width in intervals]


def main(argv: list[str] | None = None) -> None:
    """Prints the table and writes the GIF."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or a name in pretrained/")
    parser.add_argument("--root", required=True, help="folder of MNIST")
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--n-videos", type=int, default=64)
    parser.add_argument("--n-samples", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("digit_counts.gif"))
    args = parser.parse_args(argv)

    run, table, pictures = load_run(args.run), [], []
    for count in args.counts:
        clips = load_dataset("moving_mnist", args.root, "test", seq_len=N_FRAMES, n_digits=count)
        video = torch.stack(clips.__getitems__(range(args.n_videos))).movedim(2, -1).numpy()  # (V, T, H, W, 1)
        futures = run.predict(video[:, :N_PAST], n_future=N_FRAMES - N_PAST, n_samples=args.n_samples)
        posterior = np.stack([reconstruct(run, clip, seed=0) for clip in video])[:, N_PAST:]
        table.append([count, *scores(video, futures, posterior)])
        panels = [("truth", video[0, N_PAST:], False), ("posterior", posterior[0], False)]
        panels += [(f"sample {n + 1}", frames, True) for n, frames in enumerate(futures[:SHOWN, 0])]
        whole = [np.concatenate([video[0, :N_PAST], frames]) for _, frames, _ in panels]
        pictures.append([Panel(name, np.moveaxis(x, -1, 1), new) for x, (name, _, new) in zip(whole, panels)])
    heads = ["digits", f"PSNR, best of {args.n_samples}", "mean", "posterior", "copy last frame"]
    print(tabulate(table, heads, "pipe", disable_numparse=True))
    write_animation_grid(args.out, pictures, N_PAST)


if __name__ == "__main__":
    main()
