"""What a perfect model would predict: the true simulator, continued from the true state at the last context frame.

An oracle knows what no model can see exactly: which digits there are, where each is, and how fast, as floats. It does
not know the speeds that bounces after the context will draw, so its futures differ from the truth as far as the world
itself is unpredictable. The row `oracle` in our tables is their score: how far an honest sampler can get.
"""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from datasets.digits import bouncing
from datasets.digits.moving_mnist import SimulatedDigits

STREAM = 0x07AC1E  # keeps the noise apart from that of the clips, which is keyed by (seed, split, index)


def oracle_futures(
    dataset: SimulatedDigits,
    videos: Sequence[int],
    n_past: int,
    n_future: int,
    samples: int | Sequence[int],
    seed: int,
) -> ndarray:
    """Futures of videos as if every bounce after the context were drawn anew.

    Sample k of video v is a function of (seed, v, k) alone, so the futures can be made in any chunks; more frames
    continue them. Where bounces are deterministic every sample is the truth itself.

    Args:
        dataset: moving_mnist, digits or smmnist_srvp, with at least n_past frames.
        videos: indices into the dataset; V of them.
        n_past: context frames; the state at frame n_past - 1 is known.
        n_future: frames to predict, not limited by the dataset's length.
        samples: numbers of the samples, N of them; an integer N stands for range(N).

    Returns:
        (N, V, n_future, 1, H, W) uint8, 80 kB per sample of 20 frames of 64 px.

    Raises:
        ValueError: data without a simulator, or a number out of range.

    Example:
        >>> from datasets import load_dataset
        >>> dataset = load_dataset("digits", None, "test", seq_len=10, image_size=32)
        >>> oracle_futures(dataset, [3, 7], n_past=5, n_future=5, samples=range(10, 14), seed=0).shape
        (4, 2, 5, 1, 32, 32)
    """
    glyphs, states = future_states(dataset, videos, n_past, n_future, samples, seed)  # (V, D), (F, 4, N, V, D)
    _, _, n, v, d = states.shape
    glyphs = np.broadcast_to(dataset.glyph_table()[glyphs], (n, *glyphs.shape, *(dataset.motion.digit_size,) * 2))
    size = dataset.motion.image_size
    frames = bouncing.render(glyphs.reshape(n * v, *glyphs.shape[2:]), states.reshape(n_future, 4, n * v, d), size)
    return frames.reshape(n, v, n_future, 1, size, size)


def future_states(
    dataset: SimulatedDigits,
    videos: Sequence[int],
    n_past: int,
    n_future: int,
    samples: int | Sequence[int],
    seed: int,
) -> tuple[ndarray, ndarray]:
    """What oracle_futures draws: glyph numbers (V, D) and states (n_future, 4, N, V, D), row, column, their speeds."""
    if not isinstance(dataset, SimulatedDigits):
        raise ValueError(f"only simulated digits have an oracle, {type(dataset).__name__} has no simulator")
    for name, value, lowest in (("n_past", n_past, 1), ("n_future", n_future, 1), ("seed", seed, 0)):
        bouncing.check_int(name, value, lowest)
    videos, samples = list(videos), list(range(samples) if isinstance(samples, int | np.integer) else samples)
    for name, numbers in (("videos", videos), ("samples", samples)):
        if not numbers:
            raise ValueError(f"{name} must name at least one, got none")
        for number in numbers:
            bouncing.check_int(name, number, 0)
    if max(videos) >= len(dataset):
        raise ValueError(f"videos must be < {len(dataset)}, the length of the dataset, got {max(videos)}")

    glyphs, states = dataset.latents(videos)
    if n_past > len(states):
        raise ValueError(f"n_past must be <= {len(states)}, the frames of a clip of this dataset, got {n_past}")
    position, speed = states[n_past - 1].reshape(2, 2, *glyphs.shape)  # of the last context frame, bounces resolved
    shape = (2, len(samples), *glyphs.shape)
    position, speed = np.broadcast_to((position + speed)[:, None], shape), np.broadcast_to(speed[:, None], shape)
    noise = bounce_noise(seed, videos, samples, (n_future, dataset.max_bounces, 2, glyphs.shape[1]))
    return glyphs, bouncing.move(dataset.motion, position, speed, noise)


def bounce_noise(seed: int, videos: list[int], samples: list[int], shape: tuple[int, int, int, int]) -> ndarray:
    """Uniform numbers in [0, 1), (F, R, 2, N, V, D) from the shape (F, R, 2, D), keyed by (seed, video, sample)."""
    noise = np.empty((len(samples), len(videos), *shape))
    for i, sample in enumerate(samples):
        for j, video in enumerate(videos):
            np.random.default_rng([STREAM, seed, video, sample]).random(out=noise[i, j])
    return noise.transpose(2, 3, 4, 0, 1, 5)
