"""A trained model in three lines: `load_run(...).predict(...)`.

Letters: N samples, B videos, T frames given, F predicted, S the model's image size, Z latents per frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from seqvae.config import MAX_SEED, RunConfig, read_config
from seqvae.device import as_float, choose_device
from seqvae.evaluation.predictions import POSTERIOR_KEY, as_bytes, sample_chunks
from seqvae.folders import find_run
from seqvae.gaussian import keyed_noise
from seqvae.memory import check_memory
from seqvae.metrics.frame import without_tf32
from seqvae.models import VideoModel
from seqvae.objectives import bits_per_dim
from seqvae.training.terms import batch_terms
from seqvae.weights import load_model


class Score(NamedTuple):
    """How surprising each frame after the first was: float64, (T - 1,) of a video or (B, T - 1) of a batch."""

    nats: ndarray  # -log p(frame | frames before it), from above: minus the frame's ELBO, one posterior sample
    bits_per_dim: ndarray  # the same per pixel and channel
    kl: ndarray  # nats of it that the latents cost: what the past did not tell about this frame


class Latents(NamedTuple):
    """The posterior of each frame after the first: float32, (T - 1, Z) of a video or (B, T - 1, Z) of a batch."""

    mean: ndarray
    std: ndarray


@dataclass(frozen=True)
class Run:
    """A trained model with its settings. Frames go in and come out as NumPy arrays.

    Frames are uint8, or floating point in [0, 1]: (T, H, W), (T, H, W, C) or (B, T, H, W, C) with 1 or 3 channels.
    As in training, the largest centred square is cut out and scaled to S x S, and colours are averaged for a model of
    grey videos (grey is repeated for one of colour videos).
    """

    path: Path  # folder of the weights
    config: RunConfig
    model: VideoModel  # in eval mode
    step: int  # optimizer steps that the weights have seen

    @property
    def n_past(self) -> int:
        """Frames observed in training, and the fewest that `predict` takes; 0 for a model of images."""
        return self.config.data.n_past

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def predict(
        self,
        frames: ArrayLike,
        n_future: int | None = None,
        n_samples: int = 1,
        seed: int = 0,
        *,
        actions: ArrayLike | None = None,
    ) -> ndarray:
        """Possible futures after `frames`, all of which are observed.

        Sample n of video b depends on its frames and (seed, b, n) alone, as in evaluate.py. Frames are the decoder's
        means, without its noise (`sample_sigma`).

        Args:
            frames: at least n_past of them.
            n_future: frames to predict; None: as many as in training.
            actions: for a model that takes them, A numbers each in the data set's units: (T - 1 + n_future, A), or
                (B, T - 1 + n_future, A) for (B, T, H, W, C). Row t leads from frame t to frame t + 1.

        Returns:
            (n_samples, ...) with n_future frames of S x S pixels, laid out as the input; uint8 for uint8, else float32.

        Raises:
            ValueError: frames or numbers that cannot work.
        """
        video, given = self._video(frames)
        futures, _ = self._futures(video, n_future, n_samples, seed, actions)
        return _as_given(futures if given.dtype != np.uint8 else as_bytes(futures), given)

    def sample_sigma(
        self,
        frames: ArrayLike,
        n_future: int | None = None,
        n_samples: int = 1,
        seed: int = 0,
        *,
        actions: ArrayLike | None = None,
    ) -> float | ndarray | None:
        """Standard deviation of the decoder's noise around the frames that `predict` returns, pixels in [0, 1].

        A number where it is the same for every pixel, None for a decoder without one; else float32, with the axes of
        the futures, which it broadcasts to.
        """
        if self.model.likelihood.quoted_variance() is not None:
            return self.model.likelihood.quoted_variance().sqrt().item()
        video, given = self._video(frames)
        sigma = self._futures(video, n_future, n_samples, seed, actions)[1]
        return None if sigma is None else _as_given(sigma.float(), given)

    @torch.no_grad()
    @without_tf32()
    def score(self, video: ArrayLike, seed: int = 0, *, actions: ArrayLike | None = None) -> Score:
        """How surprising a video was, frame by frame: high where something happened that training did not show.

        The first frame is only conditioned on; a model of images scores every frame, as an image. `nats` and
        `bits_per_dim` are those of evaluate.py's `elbo_all`, which bound the bytes for discrete decoders and
        dequantised densities only.

        Args:
            video: more than n_past frames.
            seed: of the posterior sample.
            actions: for a model that takes them, (T - 1, A) or (B, T - 1, A).
        """
        frames, given = self._video(video)
        n_predicted = self._n_predicted(frames)
        videos, uniform = range(len(frames)), None
        noise = keyed_noise(_check_seed(seed), videos, [POSTERIOR_KEY], n_predicted, self.model.z_dim).to(self.device)
        if self.config.likelihood.dequantise:
            shape = frames[0, -n_predicted:].shape
            draws = [np.random.default_rng([seed, POSTERIOR_KEY, v]).random(shape, dtype=np.float32) for v in videos]
            uniform = torch.from_numpy(np.stack(draws)).to(self.device)
        mask = torch.ones(n_predicted, dtype=torch.float64, device=self.device)
        own_actions = self._actions(actions, frames, n_predicted)
        _, terms = batch_terms(
            self.model, frames, noise, mask, uniform=uniform, n_past=self.n_past, actions=own_actions
        )
        kl = terms.kl.sum(-1)
        elbo = terms.log_density[0] - kl
        parts = (-elbo, bits_per_dim(elbo, terms.dims, terms.bits_offset), kl)
        return Score(*(part.cpu().numpy() if given.ndim == 5 else part[0].cpu().numpy() for part in parts))

    @torch.no_grad()
    @without_tf32()
    def encode(self, video: ArrayLike, *, actions: ArrayLike | None = None) -> Latents:
        """What the model infers of each frame after the first beyond what the past told it; Z = 0 without a latent.

        Where the posterior depends on earlier latents, those are at their means.

        Args:
            video: more than n_past frames.
            actions: for a model that takes them, (T - 1, A) or (B, T - 1, A).
        """
        frames, given = self._video(video)
        noise = torch.zeros(1, len(frames), self._n_predicted(frames), self.model.z_dim, device=self.device)
        out = self.model(frames, noise, self.n_past, self._actions(actions, frames, noise.shape[2]))
        mean = std = out.z[0]
        if out.q is not None:
            q, _ = out.first_latents()
            mean, std = q.mu, (0.5 * q.logvar).exp()
        return Latents(*(part.cpu().numpy() if given.ndim == 5 else part[0].cpu().numpy() for part in (mean, std)))

    @torch.no_grad()
    @without_tf32()
    def _futures(
        self, video: Tensor, n_future: int | None, n_samples: int, seed: int, actions: ArrayLike | None
    ) -> tuple[Tensor, Tensor | None]:
        """(N, B, F, C, S, S) in [0, 1], and sigma, as `VideoModel.predict`."""
        n_future = self.config.data.n_future if n_future is None else n_future
        if not self.config.model.needs_context:
            raise ValueError("a model of single images predicts no futures; it can score and encode")
        for name, value in (("n_future", n_future), ("n_samples", n_samples)):
            if not _is_integer(value) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if n_samples > 1 and not self.model.has_latent:
            raise ValueError(f"n_samples is {n_samples}, and a model without latent has one future; pass 1")
        if video.shape[1] < self.n_past:
            raise ValueError(f"frames are {video.shape[1]}, and the model observes at least {self.n_past}")
        n_bytes = 4 * int(n_samples) * int(n_future) * video[:, 0].numel()
        check_memory(n_bytes, f"{n_samples} samples of {len(video)} videos, {n_future} frames each")
        steps, videos = video.shape[1] - 1 + int(n_future), range(len(video))
        own_actions, parts = self._actions(actions, video, steps), []
        for samples in sample_chunks(int(n_samples), len(video)):
            noise = keyed_noise(_check_seed(seed), videos, samples, steps, self.model.z_dim).to(self.device)
            parts.append(self.model.predict(video, int(n_future), noise, own_actions))
        futures, sigmas = zip(*parts)
        return torch.cat(futures), sigmas[0] if sigmas[0] is None or sigmas[0].ndim == 0 else torch.cat(sigmas)

    def _video(self, frames: ArrayLike) -> tuple[Tensor, ndarray]:
        """(B, T, C, S, S) float32 in [0, 1] on the device, and the frames as an array."""
        given = _array("frames", frames)
        _check_frames(given)
        video = given[..., None] if given.ndim == 3 else given
        video = video[None] if video.ndim == 4 else video
        n_bytes = 4 * video.shape[0] * video.shape[1] * self.model.channels * self.model.image_size**2
        check_memory(n_bytes, f"frames are {given.shape}")
        square = np.moveaxis(_fit(video, self.model.image_size), -1, 2)
        if square.shape[2] != self.model.channels:
            square = _other_channels(square)
        tensor = torch.from_numpy(np.ascontiguousarray(square))
        return (as_float(tensor, self.device) if given.dtype == np.uint8 else tensor.to(self.device)), given

    def _actions(self, actions: ArrayLike | None, video: Tensor, n_frames: int) -> Tensor | None:
        """(B, n_frames, A) on the device, None for a model that takes none; ValueError unless they fit."""
        size = self.model.n_actions
        if size == 0:
            if actions is not None:
                raise ValueError("actions are given, and this model takes none; drop them")
            return None
        shapes = ((n_frames, size), (len(video), n_frames, size))
        if actions is None:
            raise ValueError(f"this model takes actions; pass actions=, {_numbers_of(shapes)}")
        given = check_actions(_array("actions", actions), *shapes)
        return torch.from_numpy(given).to(self.device).expand(len(video), -1, -1)

    def _n_predicted(self, video: Tensor) -> int:
        """Frames of a video that the model predicts; ValueError for too few."""
        if video.shape[1] <= self.n_past:
            raise ValueError(
                f"frames are {video.shape[1]}, and the model observes {self.n_past}, so one more is needed"
            )
        return video.shape[1] - self.config.model.needs_context


def load_run(run: str | Path, *, checkpoint: str = "best", device: str = "auto") -> Run:
    """A trained model, ready to predict.

    Args:
        run: a run folder of train.py, a folder that `python -m seqvae.export` wrote, or a name in pretrained/.
        checkpoint: best on validation, or last.
        device: auto (CUDA where there is one), cpu or cuda.

    Raises:
        FileNotFoundError: nothing is there, with the nearest names.
        ValueError: settings or weights that are damaged or do not fit each other.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint must be best or last, got {checkpoint!r}")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    path = find_run(run)
    config = read_config(path)
    model, state = load_model(path, config, checkpoint)
    return Run(path, config, model.to(choose_device(device, "device")), state["step"])


def check_actions(actions: ndarray, *shapes: tuple[int, ...]) -> ndarray:
    """As float32; ValueError unless they are finite numbers of one of these shapes, of which a second is a batch's."""
    if actions.shape not in shapes or actions.dtype.kind not in "fiu":
        raise ValueError(f"actions are {actions.shape} {actions.dtype}, expected {_numbers_of(shapes)}")
    with np.errstate(over="ignore"):  # a double may be too large
        actions = actions.astype(np.float32)
    if not np.isfinite(actions).all():
        raise ValueError("actions hold NaN or infinities, expected finite numbers")
    return actions


def _numbers_of(shapes: Sequence[tuple[int, ...]]) -> str:
    return f"numbers of shape {', or '.join(map(str, shapes))}" + (" for a batch" if len(shapes) > 1 else "")


def _array(name: str, given: ArrayLike) -> ndarray:
    """As NumPy has it; ValueError for rows of unequal length, tensors that NumPy cannot take, and no array at all."""
    wrong = f"{name} are a {type(given).__name__}, expected one array of numbers"
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{wrong} ({' '.join(str(error).split())})") from None
    if array.ndim == 0:
        raise ValueError(wrong)
    return array


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_seed(seed: int) -> int:
    if not _is_integer(seed) or not 0 <= seed < MAX_SEED:
        raise ValueError(f"seed must be an integer in [0, 2^32), got {seed!r}")
    return int(seed)


def _check_frames(frames: ndarray) -> None:
    layouts = "expected (T, H, W), (T, H, W, C) or (B, T, H, W, C) with C 1 or 3"
    if frames.ndim not in (3, 4, 5) or (frames.ndim > 3 and frames.shape[-1] not in (1, 3)):
        raise ValueError(f"frames are {frames.shape} {frames.dtype}, {layouts}")
    if 0 in frames.shape:
        raise ValueError(f"frames are {frames.shape}: there is nothing in them, {layouts}")
    if frames.dtype != np.uint8 and frames.dtype.kind != "f":
        raise ValueError(f"frames are {frames.dtype}, expected uint8, or floating point in [0, 1]")
    if frames.dtype.kind == "f" and not (frames.min() >= 0 and frames.max() <= 1):  # NaN is neither
        raise ValueError(f"frames range from {frames.min():.9g} to {frames.max():.9g}, expected [0, 1] without NaN")


def _fit(video: ndarray, size: int) -> ndarray:
    """(B, T, H, W, C) -> (B, T, S, S, C): the centred square, resized as own videos are for training."""
    height, width = video.shape[2:4]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = video[:, :, top : top + side, left : left + side]
    if square.dtype != np.uint8:
        square = square.astype(np.float32)
    if side == size:
        return square
    planes = np.moveaxis(square, -1, 2).reshape(-1, side, side)
    resized = [np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)) for plane in planes]
    return np.moveaxis(np.stack(resized).reshape(*video.shape[:2], -1, size, size), 2, -1)


def _other_channels(video: ndarray) -> ndarray:
    """(..., 3, H, W) -> (..., 1, H, W), averaged, or the reverse, repeated; bytes stay bytes."""
    if video.shape[-3] == 1:
        return np.repeat(video, 3, axis=-3)
    grey = video.mean(-3, keepdims=True, dtype=np.float32)
    return grey.round().astype(np.uint8) if video.dtype == np.uint8 else grey


def _as_given(futures: Tensor, given: ndarray) -> ndarray:
    """(N, B, F, C, H, W) -> N in front of the layout that was given, with as many channels."""
    frames = futures.cpu().numpy()
    if frames.shape[3] != (given.shape[-1] if given.ndim > 3 else 1) and frames.shape[3:] != (1, 1, 1):
        frames = _other_channels(frames)
    frames = frames[..., 0, :, :] if given.ndim == 3 else np.moveaxis(frames, 3, -1)
    return frames if given.ndim == 5 else frames[:, 0]
