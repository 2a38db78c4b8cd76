"""PSNR and SSIM under the definitions of the published protocols, which give different numbers under one name.

Shapes: (..., C, H, W) frames in [0, 1] -> (...) scores; a frame's score does not depend on its neighbours.
Units:  PSNR in dB; SSIM in [-1, 1]. Higher is better for both.
Always outside autocast and without TF32 (bfloat16 moves SSIM by up to 0.03): in float64 if a video is float64, else in
float32, which moves them by at most 1e-5.

    protocol    PSNR            SSIM
    srvp-2020   psnr            ssim
    svg-2018    psnr            ssim_svg
    mcvd-2022   psnr_of_video   ssim_mcvd, on Moving MNIST ssim_mcvd_binary

All of them raise ValueError, in one line, for two shapes, integer frames, NaN and infinities.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

CHANGE = 10 / 255  # of a pixel's channel, from which on it counts as one that changes
MAX_PSNR = 100.0  # dB; identical frames are infinitely good, and a digit that stands still makes them
GAUSSIAN = (-0.5 * (torch.arange(-5, 6, dtype=torch.float64) / 1.5) ** 2).softmax(0)  # (11,), sigma 1.5, sums to 1
UNIFORM = torch.full((7,), 1 / 7, dtype=torch.float64)
CHUNK_VALUES = 2**20  # pixel values scored at once; SSIM keeps about 25 float32 maps, so 100 MB


def psnr(pred: Tensor, target: Tensor) -> Tensor:
    """10 log10(1 / mse) per frame and channel, at most 100 dB, then the mean over channels (srvp-2020, svg-2018).

    Args:
        pred, target: (..., C, H, W), floating point in [0, 1], one shape.

    Returns:
        (...,) dB.
    """
    return score_frames(lambda p, t: _decibel((p - t).square().mean((-2, -1))).mean(-1), pred, target)


def psnr_of_video(pred: Tensor, target: Tensor) -> Tensor:
    """10 log10(1 / mse), the mse taken over all frames and channels of a video, at most 100 dB (mcvd-2022).

    Never above the mean of `psnr`: one bad frame weighs more in a mean of errors than in a mean of logarithms.

    Args:
        pred, target: (..., T, C, H, W), floating point in [0, 1], one shape.

    Returns:
        (...,) dB, one number per video.

    Source: Voleti et al. 2022, arXiv:2205.09853; public code, runners/ncsn_runner.py, video_gen.
    """
    if pred.ndim < 4:
        raise ValueError(f"psnr_of_video scores whole videos (..., T, C, H, W), got {tuple(pred.shape)}")
    mse = score_frames(lambda p, t: (p - t).square().mean((-3, -2, -1)), pred, target)  # (..., T)
    return _decibel(mse.mean(-1))


def psnr_of_changes(pred: Tensor, target: Tensor) -> Tensor:
    """As `psnr`, over the pixels that change in the target, in any channel by more than CHANGE between any two frames.

    What stands still is most of a video before a still camera, and a copy of the last frame scores well there. Where
    nothing changes the whole frame counts.

    Args:
        pred, target: (..., T, C, H, W), floating point in [0, 1], one shape.

    Returns:
        (..., T) dB.
    """
    return _psnr_where(pred, target, changing=True)


def psnr_of_rest(pred: Tensor, target: Tensor) -> Tensor:
    """As `psnr_of_changes`, over the other pixels: whether what nothing touches stays as it is."""
    return _psnr_where(pred, target, changing=False)


def _psnr_where(pred: Tensor, target: Tensor, *, changing: bool) -> Tensor:
    """`psnr` over the pixels that change, or over the others; over all of a video's that has none of them."""
    if pred.ndim < 4:
        raise ValueError(f"expected whole videos (..., T, C, H, W), got {tuple(pred.shape)}")
    check_frames(pred=pred, target=target)
    changes = (target.amax(-4) - target.amin(-4)).amax(-3) > CHANGE  # (..., H, W)
    pixels = changes == changing
    pixels = pixels | ~pixels.any(-1, keepdim=True).any(-2, keepdim=True)
    weight = (pixels / pixels.double().mean((-2, -1), keepdim=True)).sqrt()[..., None, None, :, :]  # of differences
    weight = weight.to(torch.promote_types(target.dtype, torch.float32))
    return psnr(pred * weight, target * weight)


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """11x11 Gaussian window of sigma 1.5, data range 1, per channel, then the mean (srvp-2020).

    Only windows inside the frame count ("valid"). torchmetrics' mean includes a reflected border: off by up to 0.077.

    Args:
        pred, target: (..., C, H, W), floating point in [0, 1], one shape, H and W >= 11.

    Returns:
        (...,) in [-1, 1].

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861; Franceschi et al. 2020, arXiv:2002.09219.
    """
    return _ssim(pred, target, GAUSSIAN)


def ssim_svg(pred: Tensor, target: Tensor) -> Tensor:
    """7x7 uniform window, sample covariance, data range 2, per channel, then the mean (svg-2018).

    The range is not a choice: scikit-image assumed [-1, 1] for floats when SVG called it without one. Doubling it makes
    the stabilising constants four times as large and the score of the same frames higher.

    Args:
        pred, target: (..., C, H, W), floating point in [0, 1], one shape, H and W >= 7.

    Returns:
        (...,) in [-1, 1].

    Source: Denton & Fergus 2018, arXiv:1802.07687; public code, utils.py, eval_seq.
    """
    return _ssim(pred, target, UNIFORM, data_range=2.0, sample_covariance=True)


def ssim_mcvd(pred: Tensor, target: Tensor) -> Tensor:
    """As `ssim`, of the frames in 8-bit grey: see `grey` (mcvd-2022).

    Args:
        pred, target: (..., C, H, W), floating point in [0, 1], one shape, C 1 or 3, H and W >= 11.

    Returns:
        (...,) in [-1, 1].

    Source: Voleti et al. 2022, arXiv:2205.09853; public code, runners/ncsn_runner.py, video_gen.
    """
    return _ssim(pred, target, GAUSSIAN, prepare=grey)


def ssim_mcvd_binary(pred: Tensor, target: Tensor) -> Tensor:
    """`ssim_mcvd` of frames rounded to 0 or 1 first, 0.5 to 0: what mcvd-2022 does on Moving MNIST, for SSIM alone."""
    return _ssim(pred, target, GAUSSIAN, prepare=lambda frames: grey(frames.round()))


def grey(frames: Tensor) -> Tensor:
    """Frames as PIL's 8-bit grey: each channel cut, not rounded, to floor(255 x), then ITU-R 601 luma in integers.

    As torchvision's ToPILImage and PIL's convert("L"). k / 255 comes back as k in float32 and float64, so uint8 truth
    is unchanged. (MCVD's own float32 detour over 2x - 1 lowers 63 of the 256 levels by one; that is not copied.)

    Args:
        frames: (..., C, H, W), floating point in [0, 1], C 1 or 3.

    Returns:
        (..., 1, H, W), multiples of 1/255, dtype of frames.
    """
    channels = frames.shape[-3]
    if channels not in (1, 3):
        raise ValueError(f"8-bit grey is defined for 1 or 3 channels, got frames {tuple(frames.shape)}")
    levels = (255 * frames).int()
    if channels == 3:
        r, g, b = levels.split(1, dim=-3)
        levels = (19595 * r + 38470 * g + 7471 * b + 2**15) >> 16  # (..., 1, H, W); the weights sum to 2^16
    return levels.to(frames.dtype) / 255


def _decibel(mse: Tensor) -> Tensor:
    return -10 * mse.clamp(min=10 ** (-MAX_PSNR / 10)).log10()


def _ssim(
    pred: Tensor,
    target: Tensor,
    window: Tensor,
    data_range: float = 1.0,
    sample_covariance: bool = False,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """SSIM averaged over the windows inside the frame; `prepare` maps (n, C, H, W) before it."""
    size = len(window)
    if pred.ndim >= 3 and min(pred.shape[-2:]) < size:
        raise ValueError(f"ssim needs frames of at least {size}x{size} px, got {tuple(pred.shape)}")
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    unbiased = size**2 / (size**2 - 1) if sample_covariance else 1.0

    def score(p: Tensor, t: Tensor) -> Tensor:
        if prepare is not None:
            p, t = prepare(p), prepare(t)
        # A variance does not see a shift, but E[x^2] - E[x]^2 of a bright frame cancels: 3e-5 of SSIM in float32.
        shift = t.mean((-2, -1), keepdim=True)  # (n, C, 1, 1)
        p, t = p - shift, t - shift
        mu_p, mu_t, pp, tt, pt = _blur(torch.stack((p, t, p * p, t * t, p * t)), window)
        var_sum, cov = unbiased * (pp + tt - mu_p**2 - mu_t**2), unbiased * (pt - mu_p * mu_t)
        mu_p, mu_t = mu_p + shift, mu_t + shift
        similarity = (2 * mu_p * mu_t + c1) * (2 * cov + c2) / ((mu_p**2 + mu_t**2 + c1) * (var_sum + c2))
        return similarity.mean((-3, -2, -1))

    return score_frames(score, pred, target)


def _blur(maps: Tensor, window: Tensor) -> Tensor:
    """(..., H, W) -> (..., H - size + 1, W - size + 1): weighted means over every window inside."""
    rows, columns = (_band(window, size, maps.dtype, maps.device) for size in maps.shape[-2:])
    return rows.T @ (maps @ columns)  # twice as fast as two convolutions of one channel


@lru_cache(maxsize=32)  # made for every chunk it would be copied each time, and a GPU would wait
def _band(window: Tensor, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, length - size + 1), whose column i holds the window from row i on."""
    size = len(window)
    band = window.new_zeros(length, length - size + 1)
    for i in range(band.shape[1]):
        band[i : i + size, i] = window
    return band.to(device, dtype)


def score_frames(
    score: Callable[[Tensor, Tensor], Tensor], pred: Tensor, target: Tensor, chunk_values: int | None = None
) -> Tensor:
    """Applies `score`, (n, C, H, W) twice -> (n,), to chunks of at most chunk_values (CHUNK_VALUES) pixel values.

    Args:
        pred, target: (..., C, H, W), floating point in [0, 1], one shape.

    Returns:
        (...,), as exact as the module's first lines say.

    Raises:
        ValueError: as `check_frames`.
    """
    check_frames(pred=pred, target=target)
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    lead = pred.shape[:-3]
    pred, target = pred.reshape(-1, *pred.shape[-3:]), target.reshape(-1, *target.shape[-3:])  # (frames, C, H, W)
    step = max(1, (chunk_values or CHUNK_VALUES) // pred[:1].numel())
    with torch.autocast(pred.device.type, enabled=False), without_tf32():
        chunks = zip(pred.split(step), target.split(step), strict=True)
        return torch.cat([score(p.to(dtype), t.to(dtype)) for p, t in chunks]).reshape(lead)


def check_frames(**frames: Tensor) -> None:
    """ValueError that names the argument, unless all are finite floating point (..., C, H, W) of one shape."""
    shapes = {tuple(x.shape) for x in frames.values()}
    if len(shapes) > 1 or any(len(shape) < 3 or 0 in shape for shape in shapes):
        given = ", ".join(f"{name} is {tuple(x.shape)}" for name, x in frames.items())
        raise ValueError(f"{given}, expected one shape (..., C, H, W)")
    if not all(x.is_floating_point() for x in frames.values()):
        given = ", ".join(f"{name} is {x.dtype}" for name, x in frames.items())
        raise ValueError(f"{given}, expected floating point in [0, 1]; divide uint8 by 255")
    for name, x in frames.items():
        # A sum holds no mask of the whole video, and float32 has room for it where float16 has not.
        if not x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32).isfinite():
            bad = (~x.isfinite()).nonzero()
            frame = tuple(bad[0, :-3].tolist()) if len(bad) else "unknown"
            raise ValueError(f"{name} holds {len(bad)} NaN or infinite values, the first in frame {frame}")


@contextmanager
def without_tf32() -> Iterator[None]:
    """Full float32: TF32 moves SSIM, and a rollout that feeds on itself even more."""
    # Not cudnn.flags(): it raises where TF32 was set through the per-operator switches.
    switches = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before):
            switch.fp32_precision = precision
