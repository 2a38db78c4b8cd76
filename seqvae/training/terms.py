"""From a model and a batch to the per-frame terms of every objective: shared by training, validation and evaluation."""

import torch
from torch import Tensor

from seqvae.image_model import ImageVAE
from seqvae.likelihoods.base import bits_offset, dequantise
from seqvae.likelihoods.gaussian import FixedSigma
from seqvae.model import Prediction, SequenceVAE
from seqvae.objectives import Terms

Model = SequenceVAE | ImageVAE


def batch_terms(
    model: Model,
    video: Tensor,
    noise: Tensor,
    mask: Tensor,
    *,
    uniform: Tensor | None = None,
    amp: bool = False,
    n_past: int | None = None,
) -> tuple[Prediction, Terms]:
    """The model's output and its terms; reductions run outside autocast.

    Args:
        video: (B, T, C, H, W) in [0, 1].
        noise: (K, B, F, Z) standard normal, for z; F is T - 1, or 1 for an image.
        mask: (F,) 1 for the frames that count.
        uniform: (B, F, C, H, W) in [0, 1): dequantises the frames that are scored. The model sees them as they are.
        amp: run the model under bfloat16 autocast.
        n_past: observed frames of a video, whose last one the skips come from; None: as many as in training.
    """
    with torch.autocast(video.device.type, torch.bfloat16, enabled=amp):
        out = model(video, noise) if n_past is None else model(video, noise, n_past)
    frames, likelihood = video[:, -noise.shape[2] :], model.likelihood
    if uniform is not None:
        frames = dequantise(frames, uniform)
    log_px = likelihood.log_prob(out.params, frames, mask)
    # Only GECO takes its gradient, and goes with FixedSigma alone; others would carry a graph that nobody uses.
    with torch.set_grad_enabled(torch.is_grad_enabled() and isinstance(likelihood, FixedSigma)):
        sse = likelihood.squared_error(out.params, frames)
    return out, Terms(
        log_px=log_px,
        log_density=likelihood.log_density(out.params, frames, mask) if likelihood.surrogate else log_px,
        log_ratio=out.log_ratio(),
        kl=out.kl(),
        sse=sse,
        mask=mask,
        dims=frames.shape[-3:].numel(),
        bits_offset=bits_offset(likelihood.discrete, uniform is not None),
    )
