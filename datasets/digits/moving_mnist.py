"""Moving MNIST made on the fly: `moving_mnist` with handwritten digits, `digits` with drawn ones and no download."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.base import N_CLIPS, ClipDataset, check_int
from datasets.digits import bouncing
from datasets.digits.glyphs import load_glyphs

MOVING_MNIST_FLAVOURS = {28: "exact", 32: "svg"}  # digit_size -> flavour


class SimulatedDigits(ClipDataset):
    """Bouncing digits whose true state is known, so `datasets.digits.oracle` can draw other futures from it.

    A subclass sets motion, and says which glyphs there are and what every clip shows.
    """

    motion: bouncing.Motion
    max_bounces = bouncing.MAX_BOUNCES  # per digit and frame, where bounces draw new speeds

    def glyph_table(self) -> np.ndarray:
        """(N, S, S) uint8, every glyph of the split."""
        raise NotImplementedError

    def latents(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What the clips show: glyph numbers (B, D) and states (T, 4, B, D), row, column and their speeds, exact."""
        raise NotImplementedError

    def clips(self, indices: Sequence[int]) -> np.ndarray:
        chosen, states = self.latents(indices)
        return bouncing.render(self.glyph_table()[chosen], states, self.motion.image_size)[:, :, None]


class MovingDigits(SimulatedDigits):
    """Bouncing digits made on the fly; clip i is a function of (seed, split, i) alone.

    It pickles to a few hundred bytes: the glyphs are looked up in the process's own table, which forked workers inherit
    and spawned ones make again.
    """

    def __init__(
        self, glyphs: str, root: str | Path | None, split: str, motion: bouncing.Motion, *, seq_len: int, seed: int
    ) -> None:
        check_int("seq_len", seq_len, 1)
        check_int("seed", seed, 0)
        self.glyphs, self.root, self.split, self.motion = glyphs, root, split, motion
        self.seq_len, self.seed, self.n_clips = seq_len, seed, N_CLIPS[split]
        self.glyph_table()  # a missing download is an error here, not in the first batch

    def glyph_table(self) -> np.ndarray:
        return load_glyphs(self.glyphs, self.root, self.split, self.motion.digit_size)

    def latents(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        noise, bounces = bouncing.clip_noise(self.seed, self.split, indices, self.seq_len, self.motion.n_digits)
        chosen = (noise[0] * len(self.glyph_table())).astype(np.int64)
        return chosen, bouncing.simulate(self.motion, noise[1:], bounces)


def moving_mnist(
    root: str | Path | None,
    split: str,
    *,
    seq_len: int,
    image_size: int = 64,
    seed: int = 0,
    glyphs: str = "mnist",
    n_digits: int = 2,
    deterministic: bool = False,
    min_speed: int = 0,
    max_speed: int = 4,
    digit_size: int = 28,
) -> MovingDigits:
    """Stochastic Moving MNIST; digit_size 28 moves as in SRVP's test set (exact flavour), 32 as in SVG's (svg)."""
    if digit_size not in MOVING_MNIST_FLAVOURS:
        raise ValueError(f"digit_size of moving_mnist must be 28 (SRVP) or 32 (SVG), got {digit_size!r}")
    motion = bouncing.Motion(
        flavour=MOVING_MNIST_FLAVOURS[digit_size],
        image_size=image_size,
        digit_size=digit_size,
        n_digits=n_digits,
        deterministic=deterministic,
        min_speed=min_speed,
        max_speed=max_speed,
    )
    return MovingDigits(glyphs, root, split, motion, seq_len=seq_len, seed=seed)


def digits(
    root: str | Path | None,
    split: str,
    *,
    seq_len: int,
    image_size: int = 64,
    seed: int = 0,
    n_digits: int = 1,
    deterministic: bool = False,
    min_speed: int = 0,
    max_speed: int = 4,
    digit_size: int | None = None,
) -> MovingDigits:
    """Drawn digits in the exact flavour, of any digit_size from 8 to image_size, half of image_size unless given."""
    check_int("image_size", image_size, 8)
    if digit_size is None:
        digit_size = max(8, image_size // 2)
    check_int("digit_size", digit_size, 8)
    motion = bouncing.Motion(
        image_size=image_size,
        digit_size=digit_size,
        n_digits=n_digits,
        deterministic=deterministic,
        min_speed=min_speed,
        max_speed=max_speed,
    )
    return MovingDigits("drawn", root, split, motion, seq_len=seq_len, seed=seed)
