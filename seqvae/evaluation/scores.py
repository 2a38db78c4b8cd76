"""Score predictions under one or several protocols, video by video; only the frames that are shown are kept.

Letters: N samples, V videos, B of them at once, T frames in all, F predicted ones.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seqvae.device import as_float
from seqvae.distributed import collect, is_main, world_size
from seqvae.evaluation.prediction_file import Writer
from seqvae.evaluation.predictions import Predictions, array, own_videos, sample_chunks
from seqvae.memory import release_memory
from seqvae.metrics.best_of_n import BestOfN, Summary
from seqvae.metrics.frame import without_tf32
from seqvae.metrics.frechet import FrechetDistance
from seqvae.metrics.protocols import Metric, Protocol

SHOWN = 8  # videos that get a GIF and a strip
TRIM_EVERY = 8  # batches, after which freed memory goes back to the system
LEVELS = (0.5, 0.9)  # of the central intervals whose coverage is measured
Oracle = Callable[[range, range], np.ndarray]  # videos, samples -> (n, B, F, C, H, W) uint8


class Shown(NamedTuple):
    """Frames of one video, uint8."""

    truth: np.ndarray  # (T, C, H, W)
    posterior: np.ndarray | None  # (F, C, H, W)
    samples: np.ndarray  # (N, F, C, H, W)


class Calibration(NamedTuple):
    """Errors compared with the decoder's own sigma; (V, F) each.

    ratio: squared residual / sigma^2, mean over pixels and samples; 1 where sigma is right, above it where the decoder
        is overconfident. coverage: share of pixels inside the central interval of the mixture of all samples'
        Gaussians, by the interval's level; above the level where the prediction is too wide.
    """

    ratio: np.ndarray
    coverage: dict[float, np.ndarray]


class Scorer:
    """Scores under one protocol. The predictions may have more samples, videos and frames than it uses."""

    def __init__(
        self,
        protocol: Protocol,
        metrics: dict[str, Metric],
        n_samples: int,
        n_videos: int,
        frechet: Sequence[FrechetDistance] = (),
    ) -> None:
        self.protocol, self.metrics, self.frechet = protocol, metrics, frechet
        self.n_samples, self.n_videos = n_samples, n_videos
        self.sample_scores = BestOfN(n_samples, n_videos, protocol.n_future)
        self.oracle = BestOfN(n_samples, n_videos, protocol.n_future)  # the true simulator's futures, empty without it
        self.shown: list[Shown] = []
        self._digest = hashlib.sha256()
        # An entry for each batch of videos.
        self._diversity: dict[str, list[np.ndarray]] = defaultdict(list)
        self._calibration: dict[str, list[tuple[np.ndarray, ...]]] = defaultdict(list)
        self._others: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)  # by method and metric

    # ---- one batch of videos: begin, add its samples in chunks, finish

    def begin(self, videos: range, truth: Tensor, device: torch.device) -> None:
        """truth: (B, T, C, H, W) uint8."""
        n_past, n_frames = self.protocol.n_past, self.protocol.n_past + self.protocol.n_future
        self.videos = videos[: max(0, self.n_videos - videos.start)]
        self.raw = truth[: len(self.videos), :n_frames]
        self._hash(self.raw)
        self.video = as_float(self.raw, device)
        self.context, self.target = self.video[:, :n_past], self.video[:, n_past:]
        self.n_shown = max(0, min(SHOWN - videos.start, len(self.videos)))
        self._kept: list[np.ndarray] = []
        self._sum = self._squares = 0  # over samples, of byte values: exact, in whatever chunks they come
        self._distances = dict.fromkeys((key for key, m in self.metrics.items() if m.between_samples), 0.0)
        self._residuals = _Residuals(self.target)

    def add(self, samples: range, frames: Tensor, sigma: Tensor | None) -> None:
        """frames: (n, B, F, C, H, W) uint8; sigma as in `Predictions`."""
        n, b, f = max(0, min(self.n_samples - samples.start, len(frames))), len(self.videos), self.protocol.n_future
        if n * b == 0:
            return
        frames = frames[:n, :b, :f]
        futures = as_float(frames, self.video.device)
        self.sample_scores.add(samples.start, self.videos.start, **self._measure(futures, self.target))
        self._kept.append(array(frames[:, : self.n_shown]).copy())  # a view would keep the frames of all videos
        self._sum = self._sum + frames.sum(0, dtype=torch.int64)
        self._squares = self._squares + frames.int().square().sum(0, dtype=torch.int64)
        pairs = n // 2 * 2
        for key in self._distances if pairs else ():
            distance = self.metrics[key].score(futures[0:pairs:2], futures[1:pairs:2])  # (n / 2, B, F)
            self._distances[key] = self._distances[key] + distance.double().sum(0)
        if sigma is not None:
            self._residuals.add(futures, sigma if sigma.ndim == 0 else sigma[:n, :b, :f])
        for distance in self.frechet:
            for future in futures[: max(0, self.protocol.frechet_samples - samples.start)]:
                distance.add(torch.cat([self.context, future], dim=1), real=False)

    def add_oracle(self, samples: range, frames: Tensor) -> None:
        """frames: (n, B, F, C, H, W) uint8. Their scores count the metric's `oracle_limit` at most."""
        n, b, f = max(0, min(self.n_samples - samples.start, len(frames))), len(self.videos), self.protocol.n_future
        if n * b == 0:
            return
        scores = self._measure(as_float(frames[:n, :b, :f], self.video.device), self.target)
        for key, metric in self.metrics.items():
            if metric.oracle_limit is not None:
                scores[key] = scores[key].clamp(max=metric.oracle_limit)
        self.oracle.add(samples.start, self.videos.start, **scores)

    def finish(self, posterior: tuple[Tensor, Tensor | None] | None, mean_image: Tensor | None) -> None:
        """posterior: (B, F, C, H, W) uint8 and its sigma; mean_image: (C, H, W) in [0, 1]."""
        b, f = len(self.videos), self.protocol.n_future
        if b == 0:
            return
        for distance in self.frechet:
            distance.add(self.video, real=True)
        if self.n_samples > 1:
            self._add_diversity()
        if self._residuals.count:
            self._calibration["prediction"].append(self._residuals.result())
        guesses = {}
        if posterior is not None:
            frames, sigma = posterior
            guesses["posterior"] = as_float(frames[:b, :f], self.video.device)
            if sigma is not None:
                residuals = _Residuals(self.target)
                residuals.add(guesses["posterior"][None], sigma if sigma.ndim == 0 else sigma[None, :b, :f])
                self._calibration["posterior"].append(residuals.result())
        guesses["copy last frame"] = self.context[:, -1:]
        guesses["mean of context"] = self.context.mean(1, keepdim=True)
        if mean_image is not None:
            guesses["mean training image"] = mean_image.to(self.video)[None, None]
        guesses["black"] = torch.zeros_like(self.target[:, :1])
        for method, guess in guesses.items():
            for metric, values in self._measure(guess.expand_as(self.target), self.target).items():
                self._others[method, metric].append(array(values))
        for i in range(self.n_shown):
            drawn = array(posterior[0][i, :f]) if posterior is not None else None
            samples = np.concatenate([chunk[:, i] for chunk in self._kept])
            self.shown.append(Shown(array(self.raw[i]), drawn, samples))

    def _add_diversity(self) -> None:
        n = self.n_samples
        # The mean squared difference of two samples is twice their variance; the numerator is an exact integer.
        variance = (n * self._squares - self._sum.square()).double() / (n * (n - 1) * 255**2)
        self._diversity["mse"].append(array(2 * variance.mean((-3, -2, -1))))
        for key, distance in self._distances.items():
            self._diversity[key].append(array(distance / (n // 2)))

    def _measure(self, frames: Tensor, target: Tensor) -> dict[str, Tensor]:
        target = target.expand_as(frames)
        return {name: metric.score(frames, target) for name, metric in self.metrics.items()}

    def gather(self, predictions: Predictions, batch_size: int) -> None:
        """Join the scores of several processes, each of a range of videos, in the order of the videos."""
        lists = (self.shown, self._diversity, self._calibration, self._others)
        mine = own_videos(predictions.n_videos)
        mine = slice(min(mine.start, self.n_videos), min(mine.stop, self.n_videos))
        tables = [
            {metric: table[:, mine] for metric, table in scores.scores.items()}
            for scores in (self.sample_scores, self.oracle)
        ]
        shown, diversity, calibration, others, ours, oracles = zip(*collect((*lists, *tables)))
        self.shown = [video for part in shown for video in part]
        self._diversity, self._calibration, self._others = map(_joined, (diversity, calibration, others))
        self.sample_scores.scores, self.oracle.scores = _side_by_side(ours), _side_by_side(oracles)
        for distance in self.frechet:
            distance.gather()
        if not is_main():
            return
        self._digest = hashlib.sha256()
        n_frames = self.protocol.n_past + self.protocol.n_future
        for first in range(0, self.n_videos, batch_size):
            self._hash(predictions.truth(range(first, min(first + batch_size, self.n_videos)))[:, :n_frames])

    def _hash(self, truth: Tensor) -> None:
        self._digest.update(array(truth).tobytes())

    # ---- results

    @property
    def content_hash(self) -> str:
        """SHA-256 of the scored videos, uint8."""
        return self._digest.hexdigest()

    @property
    def diversity(self) -> dict[str, np.ndarray]:
        """`mse` per pixel, and metrics `between_samples`, of two samples of a video: (V, F). Empty for N = 1."""
        return {name: np.concatenate(parts) for name, parts in self._diversity.items()}

    @property
    def others(self) -> dict[str, dict[str, np.ndarray]]:
        """Posterior and baselines: method -> metric -> (V, F)."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for (method, metric), parts in self._others.items():
            found.setdefault(method, {})[metric] = np.concatenate(parts)
        return found

    @property
    def calibration(self) -> dict[str, Calibration]:
        """Of `prediction` and `posterior`; empty for a decoder without sigma."""
        found = {}
        for name, parts in self._calibration.items():
            ratio, *coverage = (np.concatenate(part) for part in zip(*parts))
            found[name] = Calibration(ratio, dict(zip(LEVELS, coverage)))
        return found

    def summaries(self) -> dict[str, dict[str, Summary]]:
        """`predictions`, and `oracle` where there is one -> metric -> summary, the best chosen as the protocol says."""
        found, best_by = {}, self.protocol.best_by
        for name, scores in (("predictions", self.sample_scores), ("oracle", self.oracle)):
            if scores.scores:
                found[name] = {
                    key: scores.summary(
                        key, chosen_by=best_by, higher_is_better=self.metrics[best_by or key].higher_is_better
                    )
                    for key in self.metrics
                }
        return found


class _Residuals:
    """Running sums over samples for `Calibration`."""

    def __init__(self, target: Tensor) -> None:
        self.target, self.count, self.ratio, self.below = target, 0, 0.0, 0.0

    def add(self, frames: Tensor, sigma: Tensor) -> None:
        """frames: (n, B, F, C, H, W) in [0, 1]."""
        residual = (self.target - frames) / sigma.float()
        self.count += len(frames)
        self.ratio = self.ratio + residual.square().mean((-3, -2, -1)).sum(0, dtype=torch.float64)  # (B, F)
        self.below = self.below + torch.special.ndtr(residual).sum(0, dtype=torch.float64)  # (B, F, C, H, W)

    def result(self) -> tuple[np.ndarray, ...]:
        """ratio, and the coverage of each level, (B, F)."""
        off_centre = (self.below / self.count - 0.5).abs()
        inside = [(off_centre <= level / 2).double().mean((-3, -2, -1)) for level in LEVELS]
        return tuple(array(x) for x in (self.ratio / self.count, *inside))


def _keys(parts: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(key for part in parts for key in part))


def _side_by_side(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Tables (N, V, F) of all videos from those of ranges of them."""
    return {key: np.concatenate([part[key] for part in parts if key in part], axis=1) for key in _keys(parts)}


def _joined(parts: Sequence[dict]) -> dict:
    """The lists of all parts, end to end."""
    return {key: [item for part in parts for item in part.get(key, [])] for key in _keys(parts)}


@torch.no_grad()
@without_tf32()
def score_all(
    predictions: Predictions,
    scorers: Sequence[Scorer],
    *,
    batch_size: int,
    device: torch.device,
    oracle: Oracle | None = None,
    writer: Writer | None = None,
) -> None:
    """Feed all predictions to the scorers, and to the writer of a file, in one pass.

    Several processes score a range of the videos each, and then all have all scores.

    Args:
        oracle: the true simulator's futures, as many frames as are predicted.
    """
    assert writer is None or world_size() == 1, "a file has one writer"
    mine = own_videos(predictions.n_videos)
    for i, first in enumerate(tqdm(mine[::batch_size], unit="batch", disable=None)):
        videos = range(first, min(first + batch_size, mine.stop))
        truth = predictions.truth(videos)
        for scorer in scorers:
            scorer.begin(videos, truth, device)
        for samples in sample_chunks(predictions.n_samples, len(videos)):
            frames, sigma = predictions.futures(videos, samples)
            drawn = torch.from_numpy(oracle(videos, samples)) if oracle is not None else None
            for scorer in scorers:
                scorer.add(samples, frames, sigma)
                if drawn is not None:
                    scorer.add_oracle(samples, drawn)
            if writer is not None:
                writer.add_futures(videos, samples, frames, sigma)
        posterior = predictions.posterior(videos)
        if writer is not None:
            writer.add_truth(videos, truth)
            writer.add_posterior(videos, *posterior)
        for scorer in scorers:
            scorer.finish(posterior, predictions.mean_image)
        if i % TRIM_EVERY == TRIM_EVERY - 1:
            release_memory()
    if world_size() > 1:
        for scorer in scorers:
            scorer.gather(predictions, batch_size)
