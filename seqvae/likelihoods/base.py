"""What every decoder distribution offers. Frames are (..., C, H, W) in [0, 1]; log-likelihoods nats per frame.

A byte k is the pixel k / 255. Discrete decoders give each of the 256 bytes a probability; continuous ones give a
density, whose bits per dim bound those of the bytes only if the frames were dequantised.
"""

import math

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """float32, or float64 if x is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sum_pixels(x: Tensor) -> Tensor:
    """(..., C, H, W) -> (...) float64."""
    return x.sum((-3, -2, -1), dtype=torch.float64)


def dequantise(frames: Tensor, noise: Tensor) -> Tensor:
    """Frames k / 255 and noise u, uniform in [0, 1) -> (k + u) / 256.

    With it E_u[log p] - D log 256 <= log P(bytes), P(k) being the density's integral over [k / 256, (k + 1) / 256)
    (Theis et al. 2016, arXiv:1511.01844, Section 3.1).
    """
    return ((255 * frames).round() + noise) / 256


def bits_offset(discrete: bool, dequantised: bool) -> float:
    """What -log_density / (D log 2) lacks to be bits per dim of the bytes.

    0 for a mass over bytes. For a density of pixels (k + u) / 256 it is 8, and the sum an upper bound. For one of
    pixels k / 255 it is log2 255, and the sum a density's: no bound on the bytes.
    """
    if discrete:
        return 0.0
    return 8.0 if dequantised else math.log2(255)


class Likelihood(nn.Module):
    """p(x | params), params (..., param_channels, H, W) as the decoder emits them, in any float dtype.

    Subclasses give `log_prob`, `mean` and `sample`. Elementwise work runs in float32, in float64 if params are, and
    sums over pixels in float64, outside autocast or inside it, whatever the dtype of params.
    """

    param_channels: int
    mean_channels: int = 0  # leading channels of params that are the logits of the mean; 0 if none are
    discrete: bool = False  # True: log_density is a mass over the 256 bytes; False: a density over pixels in [0, 1]
    surrogate: bool = False  # True: log_density is another number than log_prob, which may be no density at all
    calibrates: bool = False  # True: `calibrate` sets the sigma that bounds are quoted with
    separable: bool = True  # False: in training, log_prob of a frame depends on the other frames of the batch

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """What training maximises: (..., param_channels, H, W), (..., C, H, W) -> (...) nats, float64.

        `mask`, broadcastable to (...), holds 1 for the frames that count; only likelihoods that estimate something
        from the batch read it. Masked frames get a value too: the caller drops them.
        """
        raise NotImplementedError

    def log_density(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | params), normalised, which bounds and bits per dim are quoted with; shapes as in `log_prob`."""
        return self.log_prob(params, frames, mask)

    def mean(self, params: Tensor) -> Tensor:
        """Expected frame, (..., C, H, W) float32 in [0, 1]."""
        raise NotImplementedError

    def sigma(self, params: Tensor) -> Tensor | None:
        """Standard deviation of pixels in [0, 1], scalar or broadcastable to (..., C, H, W); None: it has none."""
        return None

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw from p(x | params), (..., C, H, W) float32: k / 255 if discrete, else not clipped to [0, 1]."""
        raise NotImplementedError

    def squared_error(self, params: Tensor, frames: Tensor) -> Tensor:
        """Squared error of the mean, summed over C, H and W: (...) float64, pixels in [0, 1]."""
        return sum_pixels((self.mean(params) - frames).square())

    def status(self) -> dict[str, Tensor]:
        """What it has learned or tracks, named, for the log."""
        return {}

    def after_step(self) -> None:
        """Moves whatever the likelihood tracks over training; called once after each optimizer step."""

    def quoted_variance(self) -> Tensor | None:
        """sigma^2 that evaluation quotes bounds with, where it is one number."""
        return None

    def calibrate(self, mse: float | Tensor) -> None:
        """Takes the exact mean squared error per pixel on held-out clips, where something is to be set by it."""
