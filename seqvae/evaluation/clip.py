"""Futures of one clip that a person brings: GIF and strip, beside the truth where the clip is long enough."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqvae.evaluation.predictions import POSTERIOR_KEY
from seqvae.gaussian import keyed_noise
from seqvae.metrics.frame import without_tf32
from seqvae.models import VideoModel
from seqvae.training.trainer import as_float
from seqvae.visualize import Panel, write_animation, write_strip


@torch.no_grad()
@without_tf32()
def predict(
    model: VideoModel,
    video: Tensor,
    out: Path,
    *,
    n_past: int,
    n_future: int,
    n_samples: int,
    seed: int,
    formats: Sequence[str] = ("gif",),
    scale: int | None = None,
) -> list[str]:
    """Predicts n_future frames after the first n_past, and writes prediction.gif and prediction.png into `out`.

    Args:
        video: (T, C, H, W) uint8, T >= n_past; frames after the context are the truth, shown if there are n_future.
        out: folder, made if it is missing.
        formats, scale: of the moving picture.

    Returns:
        Lines for the terminal.
    """
    device = next(model.parameters()).device
    frames = as_float(video[None], device)
    context, whole = frames[:, :n_past], frames[:, : n_past + n_future]
    noise = keyed_noise(seed, [0], range(n_samples), n_past - 1 + n_future, model.z_dim).to(device)
    futures = model.rollout(context, n_future, noise)[:, 0]  # (N, F, C, H, W)
    panels = []
    if whole.shape[1] == n_past + n_future:
        eps = keyed_noise(seed, [0], [POSTERIOR_KEY], n_past - 1 + n_future, model.z_dim)[0].to(device)
        posterior = torch.cat([whole[:, :1], model.reconstruct(whole, eps, n_past)], dim=1)
        panels += [Panel("truth", _array(whole[0]), False), Panel("posterior", _array(posterior[0]), False)]
    panels += [Panel(f"sample {i + 1}", _array(torch.cat([context[0], future]))) for i, future in enumerate(futures)]
    for ending in formats:
        write_animation(out / f"prediction.{ending}", panels, n_past, scale=scale)
    write_strip(out / "prediction.png", panels, n_past)
    lines = [f"{n_past} frames seen, {n_future} predicted, {n_samples} samples"]
    if len(panels) == n_samples:
        lines.append(
            f"the clip has {len(video)} frames of {n_past + n_future}: its end is not known, so no truth beside"
        )
    return [*lines, f"wrote {out}"]


def _array(frames: Tensor) -> np.ndarray:
    return frames.cpu().numpy()
