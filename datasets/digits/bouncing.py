"""Digits that bounce in a box: start, motion and drawing of a whole batch of clips at once, in NumPy.

Two flavours of Moving MNIST:
    exact  reflected where the path crosses the border, float positions (SRVP, Franceschi et al. 2020, arXiv:2002.09219)
    svg    set back onto the border, integer positions (SVG, Denton & Fergus 2018, arXiv:1802.07687)

Letters: B clips, D digits per clip, T frames, S digit size, H image size.
Units:   positions in pixels, of the digit's upper left corner; speeds in pixels per frame. Row first, then column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from datasets.base import SPLITS, check_int, keyed_uniform

EPS = 1e-8  # how far outside still counts as on the border, as in SRVP
MAX_BOUNCES = 8  # per digit and frame; a corner at high speed may ask for more: the digit is then set onto the border


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How digits move. A speed component is uniform over the integers v with min_speed <= |v| <= max_speed."""

    flavour: str = "exact"  # or "svg"
    image_size: int = 64
    digit_size: int = 28
    n_digits: int = 2
    deterministic: bool = False  # True: a bounce changes signs alone; False: it draws a new speed
    min_speed: int = 0  # px/frame, per component
    max_speed: int = 4  # px/frame, per component; 0 makes the digits stand still

    def __post_init__(self) -> None:
        for name, lowest in (("image_size", 1), ("digit_size", 1), ("n_digits", 1), ("min_speed", 0), ("max_speed", 0)):
            check_int(name, getattr(self, name), lowest)
        if self.deterministic not in (True, False):
            raise ValueError(f"deterministic must be True or False, got {self.deterministic!r}")
        if self.largest < 0:
            sign = ">" if self.flavour == "svg" else ">="
            raise ValueError(f"image_size must be {sign} digit_size = {self.digit_size}, got {self.image_size}")
        if self.max_speed < self.min_speed:
            raise ValueError(f"max_speed must be >= min_speed = {self.min_speed}, got {self.max_speed}")
        if self.max_speed >= self.largest and self.max_speed > 0:
            raise ValueError(
                f"max_speed must be 0 or < {self.largest}, the largest position of a {self.digit_size} px digit "
                f"in a {self.image_size} px image, got {self.max_speed}"
            )

    @property
    def largest(self) -> int:
        """Largest position, px. SVG's digits never touch the last row and column."""
        return self.image_size - self.digit_size - (self.flavour == "svg")

    @property
    def speeds(self) -> ndarray:
        """Values of a speed component, each as likely as the others; min 0, max 4 is randint(-4, 5)."""
        values = np.arange(-self.max_speed, self.max_speed + 1, dtype=np.float64)
        return values[np.abs(values) >= self.min_speed]

    @property
    def speeds_inward(self) -> ndarray:
        """Values of a component that must lead off the border it hit (svg flavour): never 0 unless max_speed is."""
        return np.arange(min(max(1, self.min_speed), self.max_speed), self.max_speed + 1, dtype=np.float64)


def choose(values: ndarray, u: ndarray) -> ndarray:
    """Elements of values at uniform numbers u in [0, 1)."""
    return values[(u * len(values)).astype(np.intp)]


def clip_noise(seed: int, split: str, indices: Sequence[int], n_frames: int, n_digits: int) -> tuple[ndarray, ndarray]:
    """All the randomness of clips, a function of (seed, split, index) alone, whatever the batch.

    Returns:
        Uniform numbers in [0, 1): (5, B, D) for glyph, start position and start speed; (T, MAX_BOUNCES, 2, B, D) for
        the speeds after bounces. More frames continue the block, so a longer clip begins as the shorter one does.
    """
    n_start, n_bounce = 5 * n_digits, n_frames * MAX_BOUNCES * 2 * n_digits
    u = keyed_uniform((seed, SPLITS.index(split)), indices, n_start + n_bounce)  # (draws, B)
    start, bounces = u[:n_start].reshape(5, n_digits, -1), u[n_start:].reshape(n_frames, MAX_BOUNCES, 2, n_digits, -1)
    return start.swapaxes(-1, -2), bounces.swapaxes(-1, -2)


def simulate(motion: Motion, start: ndarray, bounces: ndarray) -> ndarray:
    """Motion of digits from uniform noise in [0, 1).

    Args:
        start: (4, B, D) start row, column and their speeds.
        bounces: (T, MAX_BOUNCES, 2, B, D), for the speeds after bounces.

    Returns:
        (T, 4, B, D) float64: row, column and their speeds at every frame, positions within [0, motion.largest].
    """
    position = np.floor(start[:2] * (motion.largest + 1))
    speed = choose(motion.speeds, start[2:])
    return move(motion, position, speed, bounces)


def move(motion: Motion, position: ndarray, speed: ndarray, bounces: ndarray) -> ndarray:
    """Motion of digits from a state on; frame 0 resolves the bounces of `position`, so that may lie outside.

    Args:
        position, speed: (2, ..., D) float64.
        bounces: (T, R, 2, ..., D) uniform noise in [0, 1), for the speeds after bounces; R is the most bounces a digit
            makes in one frame of stochastic motion.

    Returns:
        (T, 4, ..., D) float64, as simulate.
    """
    if motion.flavour == "svg":
        return _simulate_svg(motion, position, speed, bounces)
    if motion.deterministic:
        return simulate_exact(position, speed, motion.largest, len(bounces))
    return simulate_exact(position, speed, motion.largest, len(bounces), (bounces, motion.speeds))


def simulate_exact(
    position: ndarray, speed: ndarray, largest: int, n_frames: int, noise: tuple[ndarray, ndarray] | None = None
) -> ndarray:
    """Exact reflection off the borders of [0, largest]^2; each frame resolves its bounces, is noted, and then moves.

    Args:
        position, speed: (2, ...) float64 at the start.
        noise: uniform (T, R, 2, ...) that chooses the speed after bounce r of frame t, its signs still to be turned
            inward, and the values there are to choose from; None keeps the magnitudes (deterministic motion) and
            allows MAX_BOUNCES.

    Returns:
        (T, 4, ...) float64, positions and speeds.
    """
    shape = position.shape[1:]
    position, speed = position.reshape(2, -1).copy(), speed.reshape(2, -1).copy()  # (2, N)
    if noise is not None:
        uniform, values = noise[0].reshape(*noise[0].shape[:3], -1), noise[1]  # (T, R, 2, N)
    states = np.empty((n_frames, 4, position.shape[1]))
    for t in range(n_frames):
        out = np.flatnonzero(is_outside(position, largest))
        for r in range(MAX_BOUNCES if noise is None else uniform.shape[1]):
            if not out.size:
                break
            redrawn = speed[:, out] if noise is None else choose(values, uniform[t, r][:, out])
            after, speed[:, out] = bounce(position[:, out], speed[:, out], redrawn, largest)
            position[:, out] = after
            out = out[is_outside(after, largest)]  # nobody else has moved
        else:
            position[:, out] = position[:, out].clip(0, largest)
        states[t, :2], states[t, 2:] = position, speed
        position += speed
    return states.reshape(n_frames, 4, *shape)


def is_outside(position: ndarray, largest: int) -> ndarray:
    """(2, ...) positions -> (...) bool, outside [0, largest]^2 by more than EPS."""
    return (np.abs(position - largest / 2) > largest / 2 + EPS).any(0)


def bounce(position: ndarray, speed: ndarray, redrawn: ndarray, largest: int) -> tuple[ndarray, ndarray]:
    """One bounce of digits that have left [0, largest]^2, at the point where their straight path crossed the border.

    Args:
        position, speed: (2, n) float64, the position outside and the speed that led there.
        redrawn: (2, n) speed after the bounce; the components at borders that were hit are turned inward.

    Returns:
        Position (2, n) after the time left since the bounce, possibly outside another border, and speed (2, n).

    Source: SRVP's Moving MNIST, arXiv:2002.09219; its published test set fixes the order of the operations.
    """
    (x, y), (dx, dy) = position, speed
    beyond = position > largest / 2  # which of an axis's two borders is near
    border = largest * beyond
    straight = dx == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = dy / dx
        offset = y - slope * x
        # Where the path crosses the border of an axis, on the other axis.
        along = np.array([slope * border[0] + offset, np.where(straight, x, (border[1] - offset) / slope)])
        # Near a corner one of two borders is missed.
        hit = (position < -EPS) | (position > largest + EPS)
        hit &= (along >= -EPS) & (along <= largest + EPS)
        cx = np.where(hit[1], along[1], np.where(hit[0], border[0], x.clip(0, largest)))  # the second axis wins
        cy = np.where(hit[1], border[1], np.where(hit[0], along[0], y.clip(0, largest)))
        time_left = np.where(straight, (y - cy) / dy, (x - cx) / dx)
    speed = np.where(hit, np.where(beyond, -1, 1) * np.abs(redrawn), redrawn)
    return np.array([cx, cy]) + speed * time_left, speed


def _simulate_svg(motion: Motion, position: ndarray, speed: ndarray, bounces: ndarray) -> ndarray:
    """SVG's motion, (T, 4, ...): a digit past a border is set onto it; rows first, then columns.

    Unless the motion is deterministic both components are drawn anew, the one across the border leading inward. Then
    the next axis is tested, so the speed may still lead outside; the next frame corrects that.

    Source: data/moving_mnist.py of SVG's released code, where y is the row.
    """
    position, speed = position.copy(), speed.copy()
    states = np.empty((len(bounces), 4, *position.shape[1:]))
    for t, noise in enumerate(bounces):
        for axis in (0, 1):
            low, high = position[axis] < 0, position[axis] > motion.largest
            hit, inward = low | high, np.where(high, -1, 1)
            position[axis] = position[axis].clip(0, motion.largest)
            if motion.deterministic:
                speed[axis, hit] *= -1
            else:
                speed[axis, hit] = (inward * choose(motion.speeds_inward, noise[axis, 0]))[hit]
                speed[1 - axis, hit] = choose(motion.speeds, noise[axis, 1])[hit]
        states[t, :2], states[t, 2:] = position, speed
        position += speed
    return states


def to_pixels(states: ndarray) -> ndarray:
    """(T, >= 2, B, D) states -> (2, T, B, D) integers, the row and column a digit is drawn at; halves go to even."""
    return np.rint(states[:, :2]).astype(np.int64).swapaxes(0, 1)


def render(glyphs: ndarray, states: ndarray, image_size: int) -> ndarray:
    """Sum of the digits, clipped at 255.

    Args:
        glyphs: (B, D, S, S) uint8.
        states: (T, >= 2, B, D), rows and columns first; rounded to pixels, halves to even.

    Returns:
        (B, T, H, W) uint8.
    """
    n_frames, (n_clips, n_digits, size, _) = len(states), glyphs.shape
    # A digit whose rows are padded to the image's width is one run of pixels in the flat frame, wherever it lies.
    wide = np.zeros((n_digits, n_clips, size, image_size), np.uint8)
    wide[..., :size] = glyphs.swapaxes(0, 1)
    runs = wide.reshape(n_digits, n_clips, -1)[..., : (size - 1) * image_size + size]
    rows, columns = to_pixels(states)
    first = rows * image_size + columns  # (T, B, D)
    frames = np.zeros((n_clips, n_frames, image_size**2), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(frames, runs.shape[-1], axis=2, writeable=True)
    every = np.arange(n_clips)
    for t in range(n_frames):  # not all at once: what is added would leave the cache
        for d, run in enumerate(runs):
            place = every, t, first[t, :, d]
            if d > 0:
                below = windows[place]
                run = below + np.minimum(run, ~below)  # ~below is 255 - below: no overflow
            windows[place] = run
    return frames.reshape(n_clips, n_frames, image_size, image_size)
