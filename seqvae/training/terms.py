"""From a model and a batch to the per-frame terms of every objective: shared by training, validation and evaluation.

Shapes: K importance samples, B videos, F predicted frames, Z latents.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from seqvae.likelihoods.base import Statistics, bits_offset, dequantise
from seqvae.models import Prediction, VideoModel
from seqvae.objectives import Terms


def frame_statistics(
    model: VideoModel,
    video: Tensor,
    noise: Tensor,
    *,
    uniform: Tensor | None = None,
    amp: bool = False,
    n_past: int | None = None,
    actions: Tensor | None = None,
    network: nn.Module | None = None,
) -> tuple[Prediction, Statistics]:
    """Run the model and reduce each frame to a few numbers; reductions run outside autocast.

    Args:
        video: (B, T, C, H, W) in [0, 1].
        noise: (K, B, F, Z) standard normal, for z; F is T - 1, or 1 for an image.
        uniform: (B, F, C, H, W) in [0, 1): dequantises the frames that are scored. The model sees the original ones.
        amp: run the model under bfloat16 autocast.
        n_past: observed frames of a video; None: as many as in training.
        actions: (B, F, A), of a model that takes them.
        network: wrapper of the model to call in its place.

    Returns:
        The model's output, and its statistics: `kl` (Z, B, F) nats, `log_ratio` (K, B, F) nats, the likelihood's
        own, (K, B, F) each, and `tracks` (S, B, F) in training of a family that rehearses. Float64, with the batch as
        the second axis, so that parts of a batch can be joined.
    """
    with torch.autocast(video.device.type, torch.bfloat16, enabled=amp):
        out = (network or model)(video, noise, n_past, actions)
    frames = video[:, -noise.shape[2] :]
    if uniform is not None:
        frames = dequantise(frames, uniform)
    more = {"kl": out.kl().movedim(-1, 0), "log_ratio": out.log_ratio()}
    if out.tracks is not None:
        more["tracks"] = out.tracks.movedim(-1, 0).double()
    return out, more | model.likelihood.statistics(out.params, frames)


def complete(model: VideoModel, statistics: Statistics, mask: Tensor, *, dequantised: bool) -> Terms:
    """Terms of a batch from the statistics of all its frames.

    Args:
        statistics: as `frame_statistics` returns them, of the whole batch.
        mask: (F,) 1 for the frames that count.
        dequantised: whether noise was added to the frames that were scored.
    """
    dims = model.channels * model.image_size**2
    log_px, log_density = model.likelihood.densities(statistics, dims, mask)
    return Terms(
        log_px=log_px,
        log_density=log_density,
        log_ratio=statistics["log_ratio"],
        kl=statistics["kl"].movedim(0, -1).contiguous(),
        sse=statistics["sse"],
        mask=mask,
        dims=dims,
        bits_offset=bits_offset(model.likelihood.discrete, dequantised),
    )


def batch_terms(
    model: VideoModel, video: Tensor, noise: Tensor, mask: Tensor, *, uniform: Tensor | None = None, **options
) -> tuple[Prediction, Terms]:
    """Model output and terms of a batch that is in one piece; arguments as in `frame_statistics` and `complete`."""
    out, statistics = frame_statistics(model, video, noise, uniform=uniform, **options)
    return out, complete(model, statistics, mask, dequantised=uniform is not None)


def actions_of(model: VideoModel, clips: Dataset, indices: Sequence[int], n_frames: int) -> Tensor | None:
    """(B, n_frames, A) float32 on the model's device: what leads to the first predicted frames of these clips.

    None for a model that takes no actions.
    """
    if not model.n_actions:
        return None
    return clips.actions(indices)[:, :n_frames].to(model.action_scale.mean.device)


def join(parts: list[Statistics]) -> Statistics:
    """Statistics of all videos from those of consecutive parts of the batch."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
