"""PSNR and SSIM of single frames, as srvp-2020 defines them (Franceschi et al. 2020, arXiv:2002.09219).

Shapes: (..., C, H, W) frames in [0, 1] -> (...) scores; a frame's score does not depend on its neighbours.
Units:  PSNR in dB; SSIM in [-1, 1]. Higher is better for both.
Always float32, outside autocast and without TF32: bfloat16 moves SSIM by up to 0.03.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

MAX_PSNR = 100.0  # dB; identical frames are infinitely good, and a digit that stands still makes them
WINDOW = 11  # px, the Gaussian of sigma 1.5
CHUNK_VALUES = 2**20  # pixel values scored at once; SSIM keeps about 15 float32 maps, so 64 MB


def psnr(pred: Tensor, target: Tensor) -> Tensor:
    """10 log10(1 / mse) per frame and channel, at most 100 dB, then the mean over channels.

    Args:
        pred, target: (..., C, H, W), floating point in [0, 1], one shape.

    Returns:
        (...,) dB, float32.

    Raises:
        ValueError: the shapes differ, have fewer than three axes, or the frames are integers.
    """
    _check(pred, target)
    with torch.autocast(pred.device.type, enabled=False):
        mse = (pred.float() - target.float()).square().mean((-2, -1))  # (..., C)
        return (-10 * mse.clamp(min=10 ** (-MAX_PSNR / 10)).log10()).mean(-1)


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Structural similarity with an 11x11 Gaussian window of sigma 1.5, data range 1, per channel, then the mean.

    Only windows inside the frame count ("valid"). torchmetrics' own mean includes a reflected border and is off by up
    to 0.077, so the border is cropped from its full map.

    Args:
        pred, target: (..., C, H, W), floating point in [0, 1], one shape, H and W >= 11.

    Returns:
        (...,) in [-1, 1], float32.

    Raises:
        ValueError: as psnr, or frames smaller than the window.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    _check(pred, target)
    if min(pred.shape[-2:]) < WINDOW:
        raise ValueError(f"ssim needs frames of at least {WINDOW}x{WINDOW} px, got {tuple(pred.shape)}")
    lead, border = pred.shape[:-3], WINDOW // 2
    pred, target = pred.reshape(-1, *pred.shape[-3:]), target.reshape(-1, *target.shape[-3:])  # (frames, C, H, W)
    step = max(1, CHUNK_VALUES // pred[:1].numel())
    scores = []
    with torch.autocast(pred.device.type, enabled=False), without_tf32():
        for p, t in zip(pred.split(step), target.split(step), strict=True):
            _, full = structural_similarity_index_measure(
                p.float(), t.float(), data_range=1.0, reduction="none", return_full_image=True
            )
            scores.append(full[..., border:-border, border:-border].mean((1, 2, 3)))
    return torch.cat(scores).reshape(lead)


def _check(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape or pred.ndim < 3 or 0 in pred.shape:
        raise ValueError(
            f"pred is {tuple(pred.shape)}, target is {tuple(target.shape)}, expected one shape (..., C, H, W)"
        )
    if not (pred.is_floating_point() and target.is_floating_point()):
        raise ValueError(f"pred is {pred.dtype}, target is {target.dtype}, expected floating point in [0, 1]")


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in full float32: TF32 moves SSIM, and a rollout that feeds on itself even more."""
    # Not cudnn.flags(): it raises where TF32 was set through the per-operator switches.
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before
