"""Best, mean and worst of N sampled futures, and how the best grows with N.

Shapes: N samples, V videos, T predicted frames. Scores are held as (N, V, T) numbers; the frames themselves never are.
A sample's score is its mean over predicted frames; "best" is chosen per video.
Best-of-N PSNR rewards variance, so it is to be read beside the mean and the worst.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SIZES = (1, 2, 5, 10, 20, 50, 100)  # N at which the score is reported
RESAMPLES = 1000  # of the bootstrap


class Estimate(NamedTuple):
    """Mean over videos and the half width of its 95 % interval, NaN where it is not known; arrays of one shape."""

    mean: np.ndarray
    half_width: np.ndarray

    def as_json(self) -> dict[str, object]:
        """For metrics.json, with None where the interval is not known."""
        half_width = np.where(np.isnan(self.half_width), None, self.half_width)
        return {"mean": self.mean.tolist(), "interval95": half_width.tolist()}


class Interval(NamedTuple):
    """Mean over videos, and the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One metric over N samples of V videos, in the metric's own unit. `over_videos(summary.best)` is the headline."""

    best: np.ndarray  # (V,)
    mean: np.ndarray  # (V,)
    worst: np.ndarray  # (V,)
    best_index: np.ndarray  # (V,) which sample is the best one
    best_curve: Estimate  # (T,) of the best samples
    mean_curve: Estimate  # (T,) of all samples
    worst_curve: Estimate  # (T,) of the worst samples
    by_n: dict[int, Interval]  # expected score of the best of n samples, for n in SIZES below N, and N itself


class BestOfN:
    """Collects per-frame scores of any number of metrics, in chunks of samples and videos that come in any order.

    Example:
        >>> scores = BestOfN(n_samples=2, n_videos=1, n_frames=3)
        >>> scores.add(0, 0, psnr=torch.tensor([[[20.0, 18.0, 16.0]]]))
        >>> scores.add(1, 0, psnr=torch.tensor([[[21.0, 20.0, 19.0]]]))
        >>> float(scores.summary("psnr").best[0])
        20.0
    """

    def __init__(self, n_samples: int, n_videos: int, n_frames: int) -> None:
        self.shape = (n_samples, n_videos, n_frames)
        self.scores: dict[str, np.ndarray] = {}  # each (N, V, T) float32, nan where nothing was added yet

    def add(self, first_sample: int, first_video: int, **scores: Tensor) -> None:
        """Store scores (n, v, T) of samples first_sample.. and videos first_video.., one keyword per metric."""
        for name, value in scores.items():
            chunk = torch.as_tensor(value, dtype=torch.float32, device="cpu").numpy()
            start = np.array((first_sample, first_video, 0))
            if chunk.ndim != 3 or chunk.shape[2] != self.shape[2] or (start + chunk.shape > self.shape).any():
                raise ValueError(
                    f"{name} is {chunk.shape} from sample {first_sample}, video {first_video}, "
                    f"expected (samples, videos, frames) inside {self.shape}"
                )
            table = self.scores.setdefault(name, np.full(self.shape, np.nan, np.float32))
            n, v, _ = chunk.shape
            table[first_sample : first_sample + n, first_video : first_video + v] = chunk

    def summary(self, metric: str, *, chosen_by: str | None = None, higher_is_better: bool = True) -> Summary:
        """As `summarise`; `chosen_by` names the metric that picks the best sample, by default this one."""
        for name in (metric, chosen_by or metric):
            if name not in self.scores:
                raise ValueError(f"no scores of {name} were added, there are {sorted(self.scores)}")
            bad = np.argwhere(~np.isfinite(self.scores[name]).all(2))
            if len(bad):
                raise ValueError(f"{name} of sample {bad[0][0]}, video {bad[0][1]} is missing or not finite")
        return summarise(
            self.scores[metric], chosen_by=self.scores[chosen_by or metric], higher_is_better=higher_is_better
        )


def summarise(scores: np.ndarray, *, chosen_by: np.ndarray | None = None, higher_is_better: bool = True) -> Summary:
    """Best, mean and worst of N.

    Args:
        scores: (N, V, T) of one metric.
        chosen_by: (N, V, T) of the metric that picks the best sample; None: `scores` itself, as in srvp-2020.
        higher_is_better: of the metric that picks.

    Raises:
        ValueError: shapes that differ or are not (N, V, T).
    """
    chosen_by = scores if chosen_by is None else chosen_by
    if scores.ndim != 3 or scores.shape != chosen_by.shape or 0 in scores.shape:
        raise ValueError(f"scores are {scores.shape}, chosen by {chosen_by.shape}, expected one shape (N, V, T)")
    sign = -1 if higher_is_better else 1
    order = np.argsort(sign * chosen_by.mean(2, dtype=np.float64), axis=0, kind="stable")  # (N, V), best first
    ranked = np.take_along_axis(scores.mean(2, dtype=np.float64), order, axis=0)  # (N, V)
    n_samples, videos = len(scores), np.arange(scores.shape[1])
    return Summary(
        best=ranked[0],
        mean=ranked.mean(0),
        worst=ranked[-1],
        best_index=order[0],
        best_curve=over_videos(scores[order[0], videos]),
        mean_curve=over_videos(scores.mean(0, dtype=np.float64)),
        worst_curve=over_videos(scores[order[-1], videos]),
        by_n={n: bootstrap(expected_best(ranked, n)) for n in sorted({*SIZES, n_samples}) if n <= n_samples},
    )


def expected_best(ranked: np.ndarray, n: int) -> np.ndarray:
    """Expected score of the best of n samples drawn from N without replacement, exact.

    The k-th best of N (k = 0 is the best) wins when it is drawn and the other n - 1 come from the N - 1 - k worse ones:
    with probability C(N - 1 - k, n - 1) / C(N, n).

    Args:
        ranked: (N, V), best first.
        n: subset size, 1 <= n <= N.

    Returns:
        (V,); n = 1 is the mean, n = N the best.
    """
    n_samples = len(ranked)
    if not 1 <= n <= n_samples:
        raise ValueError(f"n must be in [1, {n_samples}], got {n}")
    total = math.comb(n_samples, n)
    weights = np.array([math.comb(n_samples - 1 - k, n - 1) / total for k in range(n_samples)])
    return weights @ ranked


def over_videos(values: np.ndarray) -> Estimate:
    """(V, ...) -> mean over videos and 1.96 standard errors, each (...). Of one video none is known: NaN."""
    values = np.asarray(values, np.float64)
    mean = values.mean(0)
    if len(values) == 1:
        return Estimate(mean, np.full_like(mean, np.nan))
    return Estimate(mean, 1.96 * values.std(0, ddof=1) / math.sqrt(len(values)))


def plus_minus(half_width: float | None, digits: int) -> str:
    """ " +- 0.12" to print after a mean; nothing where the interval is not known."""
    return "" if half_width is None or math.isnan(half_width) else f" +- {half_width:.{digits}f}"


def bootstrap(values: np.ndarray) -> Interval:
    """(V,) -> mean with its 95 % percentile interval over resampled videos. The resamples depend on V alone.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, Section 13.3.
    """
    values = np.asarray(values, np.float64)
    low, high = np.percentile(_resamples(len(values)) @ values / len(values), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


@lru_cache(maxsize=2)
def _resamples(n_videos: int) -> np.ndarray:
    """(RESAMPLES, V) how often each video is drawn, V draws with replacement."""
    rng = np.random.default_rng([0, n_videos])
    return rng.multinomial(n_videos, np.full(n_videos, 1 / n_videos), size=RESAMPLES).astype(np.float64)
