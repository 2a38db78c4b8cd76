"""Predicted futures of test videos as 8-bit videos, straight from a model or out of a file (`prediction_file`).

Letters: N samples, V videos, B of them at once, T frames in all, F predicted ones. Predictions are rounded to bytes, as
the truth is and as any stored video is, so that what is scored can be saved, and scored again elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from seqvae.device import as_float
from seqvae.distributed import shard
from seqvae.gaussian import keyed_noise
from seqvae.models import VideoModel
from seqvae.training.terms import actions_of

POSTERIOR_KEY = 2**32  # number of the first posterior sample: a separate random stream, so predictions are unaffected
ROLLOUT_ROWS = 256  # samples x videos predicted at once: bounds the memory, changes no number


class BadPredictions(ValueError):
    """Frames that cannot be scored: not finite, or from a damaged file."""


class Predictions(ABC):
    """N futures of each of V videos. Every array of a video is a function of the video alone, not of its batch.

    Sigmas are the decoder's, in pixels in [0, 1], float32 rounded through float16, broadcastable to the frames beside
    them; a scalar, rounded nowhere, where the decoder has one sigma; None where it has none.
    """

    n_past: int
    n_future: int
    n_samples: int
    n_videos: int
    mean_image: Tensor | None  # (C, H, W) float32 in [0, 1], mean frame of the training set, if known

    @abstractmethod
    def truth(self, videos: range) -> Tensor:
        """(B, T, C, H, W) uint8, context and future."""

    @abstractmethod
    def futures(self, videos: range, samples: range) -> tuple[Tensor, Tensor | None]:
        """(n, B, F, C, H, W) uint8, and sigma."""

    @abstractmethod
    def posterior(self, videos: range) -> tuple[Tensor, Tensor | None] | None:
        """(B, F, C, H, W) uint8, the model's reconstruction of the future frames, and sigma; None if unknown."""


class OtherActions(Dataset):
    """The same clips, under actions that were not taken.

    Args:
        mean: (A,) every action; None: the actions of the next clip, after the last one those of the first.
    """

    def __init__(self, clips: Dataset, mean: Tensor | None) -> None:
        self.clips, self.mean = clips, mean

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return self.clips[index]

    def actions(self, indices: Sequence[int]) -> Tensor:
        """(B, T, A) float32."""
        if self.mean is None:
            return self.clips.actions([(index + 1) % len(self.clips) for index in indices])
        return self.mean.expand_as(self.clips.actions(indices))


class ModelPredictions(Predictions):
    """What a model predicts, given the clips' actions if it takes any. Noise is keyed by (seed, video, sample)."""

    def __init__(
        self,
        model: VideoModel,
        clips: Dataset,
        *,
        n_past: int,
        n_future: int,
        n_samples: int,
        n_videos: int,
        seed: int,
        device: torch.device,
        mean_image: Tensor | None,
        amp: bool = False,
    ) -> None:
        self.amp = amp  # convolutions in bfloat16
        self.model, self.clips, self.seed, self.device, self.mean_image = model, clips, seed, device, mean_image
        self.n_past, self.n_future, self.n_samples, self.n_videos = n_past, n_future, n_samples, n_videos
        self._last: tuple[range, Tensor] | None = None  # clips that are asked for again, for each portion of samples

    def truth(self, videos: range) -> Tensor:
        if self._last is None or self._last[0] != videos:
            self._last = videos, torch.stack([self.clips[i][: self.n_past + self.n_future] for i in videos])
        return self._last[1]

    def futures(self, videos: range, samples: range) -> tuple[Tensor, Tensor | None]:
        context = as_float(self.truth(videos)[:, : self.n_past], self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            frames, sigma = self.model.predict(
                context, self.n_future, self._noise(videos, samples), self._actions(videos)
            )
        return as_bytes(frames), rounded(sigma)

    def posterior(self, videos: range) -> tuple[Tensor, Tensor | None]:
        video = as_float(self.truth(videos), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            params = self.model(video, self._noise(videos, [POSTERIOR_KEY]), self.n_past, self._actions(videos)).params
        params = params[0, :, self.n_past - 1 :]  # (B, F, param_channels, H, W)
        likelihood = self.model.likelihood
        return as_bytes(likelihood.mean(params)), rounded(likelihood.sigma(params))

    def _actions(self, videos: range) -> Tensor | None:
        return actions_of(self.model, self.clips, videos, self.n_past - 1 + self.n_future)

    def _noise(self, videos: range, samples: Sequence[int]) -> Tensor:
        steps = self.n_past - 1 + self.n_future
        return keyed_noise(self.seed, videos, samples, steps, self.model.z_dim).to(self.device)


def sample_chunks(n_samples: int, n_videos: int) -> list[range]:
    """Samples in portions for n_videos at once; even portions, so that pairs of samples stay together."""
    at_once = max(2, ROLLOUT_ROWS // n_videos // 2 * 2)
    return [range(i, min(i + at_once, n_samples)) for i in range(0, n_samples, at_once)]


def own_videos(n_videos: int) -> range:
    """Which videos this process scores: all, or its share in whole pairs, so that each knows odd from even ones."""
    part = shard(-(-n_videos // 2))
    return range(min(2 * part.start, n_videos), min(2 * part.stop, n_videos))


def as_bytes(frames: Tensor) -> Tensor:
    """[0, 1] -> uint8, rounded to the nearest; BadPredictions for NaN."""
    if not frames.sum().isfinite():
        raise BadPredictions("the model predicts NaN or infinities; train it again, or take an earlier --checkpoint")
    return (255 * frames).round().byte()


def rounded(sigma: Tensor | None) -> Tensor | None:
    """A sigma of each frame as a file holds it; one sigma for all stays as it is."""
    return sigma if sigma is None or sigma.ndim == 0 else sigma.half().float()


def array(frames: Tensor) -> np.ndarray:
    """On the CPU, as NumPy."""
    return frames.cpu().numpy()
