"""The fixed stochastic Moving MNIST test set of SRVP, bit for bit: 5000 videos of two digits.

Source: Franceschi et al. 2020, arXiv:2002.09219, whose published numbers, and those of later papers, rest on this set.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray
from numpy.random import RandomState

from datasets.base import check_int
from datasets.digits import bouncing
from datasets.digits.glyphs import load_glyphs
from datasets.digits.moving_mnist import SimulatedDigits

N_VIDEOS, N_DIGITS = 5000, 2
IMAGE_SIZE, LARGEST, MAX_SPEED = 64, 36, 4  # px, px, px/frame
N_FRAMES = {False: 25, True: 100}  # by deterministic


class SmmnistSrvp(SimulatedDigits):
    """Videos of the test set, cut to seq_len frames.

    Attributes:
        states: (T, 4, N, D) float64, row, column and their speeds, exact.
        chosen: (N, D), numbers of the digits in MNIST's test split.
    """

    n_clips = N_VIDEOS
    # SRVP's rule has no bound. Of 4 million simulated frames of a digit 56 took more than 8 bounces, in a corner, and
    # another bounce follows 4 times in 10: all but about one frame in 10^8 do with 16.
    max_bounces = 16

    def __init__(self, root: str | Path | None, *, seq_len: int, deterministic: bool) -> None:
        self.root, self.motion = root, bouncing.Motion(deterministic=bool(deterministic))
        self.glyph_table()
        self.chosen, states = all_latents(deterministic)
        self.states = states[:seq_len]

    def glyph_table(self) -> ndarray:
        return load_glyphs("mnist", self.root, "test", 28)

    def latents(self, indices: Sequence[int]) -> tuple[ndarray, ndarray]:
        indices = list(indices)
        return self.chosen[indices], self.states[:, :, indices]


@functools.cache
def all_latents(deterministic: bool) -> tuple[ndarray, ndarray]:
    """Digit numbers (N, D) and states (T, 4, N, D), drawn from one sequential stream as the original does."""
    rng = RandomState(42)
    chosen = rng.permutation(10_000).reshape(N_VIDEOS, N_DIGITS)
    if deterministic:
        start = np.array([_start(rng) for _ in range(chosen.size)]).T  # (4, N * D)
        states = bouncing.simulate_exact(start[:2], start[2:], LARGEST, N_FRAMES[True])
    else:
        # How many numbers a digit takes from the stream depends on its bounces, so the next one has to wait for it.
        states = np.array([_wander(rng) for _ in range(chosen.size)]).transpose(1, 2, 0)
    return chosen, states.reshape(-1, 4, N_VIDEOS, N_DIGITS)


def _start(rng: RandomState) -> list[float]:
    return [float(rng.randint(0, LARGEST + 1)) for _ in range(2)] + _speed(rng)


def _speed(rng: RandomState) -> list[float]:
    return [float(rng.randint(-MAX_SPEED, MAX_SPEED + 1)) for _ in range(2)]


def _wander(rng: RandomState) -> list[list[float]]:
    """(T, 4) states of the stream's next digit."""
    x, y, dx, dy = _start(rng)
    low, high = -bouncing.EPS, LARGEST + bouncing.EPS
    states = []
    for _ in range(N_FRAMES[False]):
        while not (low <= x <= high and low <= y <= high):
            before, redrawn = (
                np.array([[x, y], [dx, dy]])[..., None],
                np.array(_speed(rng))[:, None],
            )  # (2, 2, 1), (2, 1)
            (x, y), (dx, dy) = (after[:, 0].tolist() for after in bouncing.bounce(*before, redrawn, LARGEST))
        states.append([x, y, dx, dy])
        x, y = x + dx, y + dy
    return states


def smmnist_srvp(
    root: str | Path | None,
    split: str,
    *,
    seq_len: int,
    image_size: int = 64,
    seed: int = 0,
    deterministic: bool = False,
) -> SmmnistSrvp:
    """The published videos of up to 25 frames, or with deterministic=True their sibling of up to 100.

    There is only a test split of 64 px. The set is fixed by its own seed, 42, so `seed` changes nothing.
    """
    if split != "test":
        raise ValueError(f"smmnist_srvp has the split test alone, got {split!r}; train on moving_mnist")
    if image_size != IMAGE_SIZE:
        raise ValueError(f"image_size of smmnist_srvp must be {IMAGE_SIZE}, got {image_size!r}")
    if deterministic not in (True, False):
        raise ValueError(f"deterministic must be True or False, got {deterministic!r}")
    check_int("seq_len", seq_len, 1)
    if seq_len > N_FRAMES[deterministic]:
        raise ValueError(f"seq_len must be <= {N_FRAMES[deterministic]}, the length of these videos, got {seq_len}")
    return SmmnistSrvp(root, seq_len=seq_len, deterministic=deterministic)
