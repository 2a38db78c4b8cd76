"""Do digits stay themselves? A classifier reads both digits of the last frame, of the truth and of predicted futures.

    python -m benchmarks.identity runs/smmnist-transport-geco runs/smmnist-geco --root data

A small convolutional network learns to count the digits of each class in a 64x64 frame, from one or two MNIST training
digits at random places. It reads the fixed test set of SRVP; a frame is right where all ten counts are. Printed: its
accuracy on single test digits, then, for the true last frame (the 25th) and for that of every run's futures, how often
both digits are read right, +- a 95 % interval over videos.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import load_dataset
from datasets.digits.glyphs import load_glyphs
from seqvae.metrics.best_of_n import over_videos
from seqvae.run import load_run

SIZE, GLYPH, N_PAST, N_FRAMES = 64, 28, 5, 25
STEPS, BATCH = 2_000, 128


class Reader(nn.Sequential):
    """(B, 1, 64, 64) -> (B, 10, 3): logits of how often each class is there, 0, 1 or 2 times."""

    def __init__(self) -> None:
        layers, channels = [], 1
        for width in (16, 32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(128 * 16, 30), nn.Unflatten(1, (10, 3)))


def frames_of(glyphs: Tensor, labels: Tensor, n_digits: int, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """n frames of n_digits digits at random places, (n, 1, 64, 64) in [0, 1], and their counts (n, 10)."""
    frames, counts = torch.zeros(n, 1, SIZE, SIZE), torch.zeros(n, 10, dtype=torch.long)
    for _ in range(n_digits):
        chosen = torch.randint(len(glyphs), (n,), generator=rng)
        places = torch.randint(SIZE - GLYPH + 1, (n, 2), generator=rng).tolist()
        for i, (row, column) in enumerate(places):
            frames[i, 0, row : row + GLYPH, column : column + GLYPH] += glyphs[chosen[i]]
        counts[torch.arange(n), labels[chosen]] += 1
    return frames.clamp(max=1), counts


def train_reader(root: str, steps: int) -> Reader:
    """A reader that has seen `steps` batches, half of single digits and half of pairs, in eval mode."""
    torch.manual_seed(0)
    reader, rng = Reader(), torch.Generator().manual_seed(0)
    glyphs, labels = digits(root, "train")
    optimizer = torch.optim.Adam(reader.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        halves = [frames_of(glyphs, labels, n_digits, BATCH // 2, rng) for n_digits in (1, 2)]
        frames, counts = (torch.cat(parts) for parts in zip(*halves))
        loss = F.cross_entropy(reader(frames).flatten(0, 1), counts.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval()


def digits(root: str, split: str) -> tuple[Tensor, Tensor]:
    """MNIST digits (N, 28, 28) in [0, 1] and their classes (N,)."""
    from torchvision.datasets import MNIST

    glyphs = torch.from_numpy(np.array(load_glyphs("mnist", root, split, GLYPH))).float() / 255
    return glyphs, MNIST(root, train=split != "test").targets[: len(glyphs)]


@torch.no_grad()
def right(reader: Reader, frames: Tensor, counts: Tensor) -> Tensor:
    """(n, 1, 64, 64) and (n, 10) -> (n,) whether all counts are read right."""
    return torch.cat([reader(part).argmax(-1) for part in frames.split(256)]).eq(counts).all(-1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders or names in pretrained/")
    parser.add_argument("--root", required=True, help="folder of MNIST")
    parser.add_argument("--n-videos", type=int, default=256)
    parser.add_argument("--n-samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the reader's training")
    args = parser.parse_args(argv)

    reader = train_reader(args.root, args.steps)
    glyphs, labels = digits(args.root, "test")
    single = right(reader, *frames_of(glyphs, labels, 1, 2_000, torch.Generator().manual_seed(1)))
    print(f"single test digits: {100 * single.float().mean():.2f} % read right\n")

    dataset = load_dataset("smmnist_srvp", args.root, "test", seq_len=N_FRAMES)
    video = torch.stack(dataset.__getitems__(range(args.n_videos)))  # (V, T, 1, 64, 64) uint8
    counts = F.one_hot(labels[torch.from_numpy(dataset.chosen[: args.n_videos])], 10).sum(1)  # (V, 10)
    print("| last frame of | both digits read right |\n|---|---|")
    row("the truth", right(reader, video[:, -1].float() / 255, counts)[None])
    for name in args.runs:
        run, read = load_run(name), []
        for first in range(0, args.n_videos, 32):
            context = video[first : first + 32, :N_PAST].permute(0, 1, 3, 4, 2).numpy()
            futures = run.predict(context, n_future=N_FRAMES - N_PAST, n_samples=args.n_samples)[:, :, -1]
            frames = torch.from_numpy(futures).permute(0, 1, 4, 2, 3).float() / 255  # (N, B, 1, 64, 64)
            expected = counts[first : first + 32].repeat(args.n_samples, 1)
            read.append(right(reader, frames.flatten(0, 1), expected).unflatten(0, frames.shape[:2]))
        row(name, torch.cat(read, 1))


def row(name: str, read: Tensor) -> None:
    """Print the share of (N, V) that is true."""
    mean, half_width = over_videos(100 * read.float().mean(0).numpy())
    print(f"| {name} | {mean:.1f} +- {half_width:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
