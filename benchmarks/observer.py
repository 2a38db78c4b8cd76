"""What cannot be predicted: nats per frame of an observer who knows the simulator, but sees only whole pixels.

    python -m benchmarks.observer --root data --n-videos 24
    python -m benchmarks.observer --root data --n-videos 64 --n-samples 10      and scores of its futures

It keeps every state that the positions seen so far allow, with its probability, and is charged -log of the probability
that it gave to the next positions of the digits. Glyphs and overlaps cost it nothing. So its nats are a floor, on
average over videos, for the KL of a model of SRVP's Moving MNIST that draws every frame exactly. At first it knows
where a digit is, and nothing of its speed. States that weigh less than `LEAST`, and those beyond the `MOST` most
likely, are dropped; the largest sum of their weights in a frame is printed.

With --n-samples it also predicts: from states drawn from what it believes after the context, with the true digits. No
model can be expected to do better; the row `oracle` of evaluate.py is told the true state.
"""

import argparse
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray

from datasets import load_dataset
from datasets.digits import bouncing
from datasets.digits.moving_mnist import SimulatedDigits
from seqvae.metrics.frame import psnr, ssim

MOST, LEAST = 300, 1e-6
N_FRAMES, N_PAST = 25, 5


class Belief(NamedTuple):
    """States that a digit may be in."""

    position: ndarray  # (2, n) px
    speed: ndarray  # (2, n) px per frame
    weight: ndarray  # (n,) sums to 1


def moved(belief: Belief, speeds: ndarray, largest: int, max_bounces: int) -> Belief:
    """The belief one frame later: every bounce branches into every new speed, (2, S)."""
    position, speed, weight = belief.position + belief.speed, belief.speed, belief.weight
    for _ in range(max_bounces):
        out = bouncing.is_outside(position, largest)
        if not out.any():
            break
        n = speeds.shape[1]
        before = (np.repeat(part[:, out], n, 1) for part in (position, speed))
        after = bouncing.bounce(*before, np.tile(speeds, out.sum()), largest)
        position, speed = (np.concatenate(parts, 1) for parts in zip((position[:, ~out], speed[:, ~out]), after))
        weight = np.concatenate([weight[~out], np.repeat(weight[out], n) / n])
        # Two ways into one state are one state; positions are fractions with denominators up to 4.
        keys = np.rint(5040 * np.concatenate([position, speed]))
        _, first, which = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        weight = np.bincount(which.ravel(), weight)
        kept = weight > LEAST
        position, speed, weight = position[:, first[kept]], speed[:, first[kept]], weight[kept]
    return Belief(position.clip(0, largest), speed, weight)


def surprise(path: ndarray, speeds: ndarray, largest: int, max_bounces: int) -> tuple[ndarray, float, Belief]:
    """-log p of a digit's next place, (T - 1,) nats, the largest sum of weights dropped, and the last belief.

    Args:
        path: (T, 2) whole pixels.
    """
    n = speeds.shape[1]
    belief, nats, dropped = Belief(np.repeat(path[0][:, None], n, 1), speeds, np.full(n, 1 / n)), [], 0.0
    for place in path[1:]:
        belief = moved(belief, speeds, largest, max_bounces)
        dropped = max(dropped, 1 - belief.weight.sum())
        fits = (np.rint(belief.position) == place[:, None]).all(0)
        belief = Belief(belief.position[:, fits], belief.speed[:, fits], belief.weight[fits])
        nats.append(-np.log(belief.weight.sum()))
        kept = np.argsort(-belief.weight)[:MOST]
        total = belief.weight.sum()
        dropped = max(dropped, 1 - belief.weight[kept].sum() / total)
        belief = Belief(belief.position[:, kept], belief.speed[:, kept], belief.weight[kept])
        belief = belief._replace(weight=belief.weight / belief.weight.sum())
    return np.array(nats), dropped, belief


def futures(dataset: SimulatedDigits, speeds: ndarray, n_videos: int, n_samples: int) -> ndarray:
    """(N, V, F, 1, H, W) uint8, from states that are as likely as the context makes them."""
    rng, motion = np.random.default_rng(0), dataset.motion
    glyphs, states = dataset.latents(range(n_videos))  # (V, D), (T, 4, V, D)
    position, speed = np.empty((2, 2, n_samples, *glyphs.shape))
    for video, digit in np.ndindex(*glyphs.shape):
        path = np.rint(states[:N_PAST, :2, video, digit])
        belief = surprise(path, speeds, motion.largest, dataset.max_bounces)[2]
        chosen = rng.choice(len(belief.weight), n_samples, p=belief.weight)
        position[:, :, video, digit], speed[:, :, video, digit] = belief.position[:, chosen], belief.speed[:, chosen]
    n_future = N_FRAMES - N_PAST
    bounces = rng.random((n_future, dataset.max_bounces, *position.shape))
    later = bouncing.move(motion, position + speed, speed, bounces).reshape(n_future, 4, -1, glyphs.shape[1])
    digits = np.broadcast_to(dataset.glyph_table()[glyphs], (n_samples, *glyphs.shape, *(motion.digit_size,) * 2))
    frames = bouncing.render(digits.reshape(-1, *digits.shape[2:]), later, motion.image_size)
    return frames.reshape(n_samples, n_videos, n_future, 1, *frames.shape[2:])


def show_scores(dataset: SimulatedDigits, predicted: ndarray) -> None:
    """Print mean and best PSNR (frames of at most 40 dB, as the oracle's) and SSIM."""
    n_samples, n_videos = predicted.shape[:2]
    truth = torch.stack(dataset.__getitems__(range(n_videos)))[:, N_PAST:].float() / 255
    scores = {"PSNR": [], "SSIM": []}
    for sample in predicted:
        frames = torch.from_numpy(sample).float() / 255
        scores["PSNR"].append(psnr(frames, truth).clamp(max=40).mean(1))
        scores["SSIM"].append(ssim(frames, truth).mean(1))
    for name, values in scores.items():
        mean, best = torch.stack(values).mean(), torch.stack(values).amax(0).mean()
        print(f"futures of {n_videos} videos, {name}: mean {mean:.4f}, best of {n_samples} {best:.4f}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of MNIST")
    parser.add_argument("--n-videos", type=int, default=24)
    parser.add_argument("--n-samples", type=int, default=0, help="futures per video to score")
    args = parser.parse_args(argv)
    dataset = load_dataset("smmnist_srvp", args.root, "test", seq_len=N_FRAMES)
    _, states = dataset.latents(range(args.n_videos))  # (T, 4, V, D)
    values = dataset.motion.speeds
    speeds = np.stack(np.meshgrid(values, values, indexing="ij")).reshape(2, -1)
    nats, dropped = np.zeros((args.n_videos, N_FRAMES - 1)), 0.0
    for video in range(args.n_videos):
        for digit in range(states.shape[3]):
            path = np.rint(states[:, :2, video, digit])
            found, lost, _ = surprise(path, speeds, dataset.motion.largest, dataset.max_bounces)
            nats[video] += found
            dropped = max(dropped, lost)
    mean = nats.mean(0)
    print("nats a frame, both digits, from the second frame on:", " ".join(f"{n:.2f}" for n in mean))
    for name, part in (("all", nats), (f"predicted from {N_PAST} frames", nats[:, N_PAST - 1 :])):
        half = 1.96 * part.mean(1).std(ddof=1) / np.sqrt(len(part)) if len(part) > 1 else np.nan
        print(f"{name}: {part.mean():.3f} +- {half:.3f} nats a frame, {args.n_videos} videos")
    print(f"largest weight dropped: {dropped:.1e}")
    if args.n_samples:
        show_scores(dataset, futures(dataset, speeds, args.n_videos, args.n_samples))


if __name__ == "__main__":
    main()
