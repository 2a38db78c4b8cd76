"""From a model and a batch to the per-frame terms of every objective: shared by training, validation and evaluation."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqvae.likelihoods import Likelihood
from seqvae.likelihoods.base import bits_offset, dequantise
from seqvae.likelihoods.gaussian import Calibrated
from seqvae.models import Prediction, VideoModel
from seqvae.objectives import Terms


class FrameTerms(NamedTuple):
    """What the pixels of some clips come to, float64: a few numbers a frame, from which the whole loss follows.

    Those of one batch may come from several processes or forward passes: packed, they are put together clip by clip,
    and whatever is averaged over the batch (an analytic sigma, GECO's constraint) is so over all of it.
    """

    sse: Tensor  # (K, B, F) squared error of the mean, summed over pixels
    log_ratio: Tensor  # (K, B, F) log p(z) - log q(z)
    kl: Tensor  # (B, F, Z)
    log_px: Tensor | None  # (K, B, F); None where all the batch's squared errors decide it (`Calibrated`)
    log_density: Tensor | None  # (K, B, F), detached; None where it is log_px, or follows as that does
    dims: int
    bits_offset: float

    def pack(self) -> Tensor:
        """(M, B, F), with its gradient."""
        parts = (self.sse, self.log_ratio, self.kl.movedim(-1, 0), self.log_px, self.log_density)
        return torch.cat([part for part in parts if part is not None])

    def unpack(self, packed: Tensor) -> "FrameTerms":
        """Of (M, any number of clips, F) that `pack` made under the same settings."""
        k = len(self.sse)
        sse, log_ratio, kl, *rest = packed.split(
            [k, k, self.kl.shape[-1], *[k] * (self.log_px is not None), *[k] * (self.log_density is not None)]
        )
        log_px, log_density = [*rest, None, None][:2]
        return self._replace(sse=sse, log_ratio=log_ratio, kl=kl.movedim(0, -1), log_px=log_px, log_density=log_density)


def frame_terms(
    model: VideoModel,
    video: Tensor,
    noise: Tensor,
    *,
    uniform: Tensor | None = None,
    amp: bool = False,
    n_past: int | None = None,
    network: nn.Module | None = None,
) -> tuple[Prediction, FrameTerms]:
    """The model's output and what it comes to, frame by frame; reductions run outside autocast.

    Args:
        video: (B, T, C, H, W) in [0, 1].
        noise: (K, B, F, Z) standard normal, for z; F is T - 1, or 1 for an image.
        uniform: (B, F, C, H, W) in [0, 1): dequantises the frames that are scored. The model sees them as they are.
        amp: run the model under bfloat16 autocast.
        n_past: observed frames of a video; None: as many as in training.
        network: called in the model's place, which it wraps.
    """
    network, likelihood = network or model, model.likelihood
    with torch.autocast(video.device.type, torch.bfloat16, enabled=amp):
        out = network(video, noise, n_past)
    frames = video[:, -noise.shape[2] :]
    if uniform is not None:
        frames = dequantise(frames, uniform)
    by_error = isinstance(likelihood, Calibrated)
    log_px = None if by_error else likelihood.log_prob(out.params, frames)
    # Only where it decides the likelihood, or as GECO's constraint, which goes with such a likelihood alone.
    with torch.set_grad_enabled(torch.is_grad_enabled() and by_error):
        sse = likelihood.squared_error(out.params, frames)
    with torch.no_grad():  # it is reported, never minimised
        log_density = likelihood.log_density(out.params, frames) if likelihood.surrogate and not by_error else None
    offset = bits_offset(likelihood.discrete, uniform is not None)
    return out, FrameTerms(sse, out.log_ratio(), out.kl(), log_px, log_density, frames.shape[-3:].numel(), offset)


def complete(likelihood: Likelihood, frames: FrameTerms, mask: Tensor) -> Terms:
    """The terms of a whole batch: (F,) mask is 1 for the frames that count."""
    log_px, log_density = frames.log_px, frames.log_density
    if log_px is None:
        log_px = likelihood.log_prob_of_error(frames.sse, frames.dims, mask)
        if likelihood.surrogate:
            log_density = likelihood.log_density_of_error(frames.sse, frames.dims, mask)
    return Terms(
        log_px=log_px,
        log_density=log_px if log_density is None else log_density,
        log_ratio=frames.log_ratio,
        kl=frames.kl,
        sse=frames.sse,
        mask=mask,
        dims=frames.dims,
        bits_offset=frames.bits_offset,
    )


def batch_terms(
    model: VideoModel, video: Tensor, noise: Tensor, mask: Tensor, **options: Tensor | bool | int | None
) -> tuple[Prediction, Terms]:
    """The model's output and the terms of a batch that is whole; arguments as in `frame_terms` and `complete`."""
    out, frames = frame_terms(model, video, noise, **options)
    return out, complete(model.likelihood, frames, mask)
