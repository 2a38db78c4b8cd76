"""The interface of decoder distributions. Frames are (..., C, H, W) in [0, 1]; log-likelihoods nats per frame.

A byte k is the pixel k / 255. Discrete decoders give each of the 256 bytes a probability; continuous ones give a
density, whose bits per dim bound those of the bytes only if the frames were dequantised.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """float32, or float64 if x is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sum_pixels(x: Tensor) -> Tensor:
    """(..., C, H, W) -> (...) float64."""
    return x.sum((-3, -2, -1), dtype=torch.float64)


def dequantise(frames: Tensor, noise: Tensor) -> Tensor:
    """Add noise: frames k / 255 and u, uniform in [0, 1), give (k + u) / 256.

    Then E_u[log p] - D log 256 <= log P(bytes), P(k) being the density's integral over [k / 256, (k + 1) / 256)
    (Theis et al. 2016, arXiv:1511.01844, Section 3.1).
    """
    return ((255 * frames).round() + noise) / 256


def bits_offset(discrete: bool, dequantised: bool) -> float:
    """Bits to add to -log_density / (D log 2) to get bits per dim of the bytes.

    0 for a mass over bytes; 8 for a density of pixels (k + u) / 256, which gives an upper bound; log2 255 for a density
    of pixels k / 255, which is not a bound on the bytes.
    """
    if discrete:
        return 0.0
    return 8.0 if dequantised else math.log2(255)


Statistics = dict[str, Tensor]  # numbers about each frame, (...) float64 each


class Densities(NamedTuple):
    """Scores of every frame, (...) nats, float64."""

    log_px: Tensor  # what training maximises
    log_density: Tensor  # log p(x | params), normalised: what bounds and bits per dim are quoted with


class Likelihood(nn.Module):
    """p(x | params), params (..., param_channels, H, W) as the decoder emits them, in any float dtype.

    A batch is scored in two stages, because it may be spread over processes and over the passes of one step.
    `statistics` reduces each frame to a few numbers, looking at that frame alone; `densities` then scores the frames
    from the statistics of the whole batch, so it may average over the batch. Training puts the batch together between
    the two. Where the score of a frame depends on that frame alone, subclass `PerFrame`, which needs `log_prob` only.

    Elementwise work runs in float32, in float64 if params are, and sums over pixels in float64, outside autocast or
    inside it, whatever the dtype of params.
    """

    param_channels: int
    mean_channels: int = 0  # leading channels of params that are the logits of the mean; 0 if none are
    discrete: bool = False  # True: log_density is a mass over the 256 bytes; False: a density over pixels in [0, 1]
    calibrates: bool = False  # True: `calibrate` sets the sigma that bounds are quoted with

    def statistics(self, params: Tensor, frames: Tensor) -> Statistics:
        """First stage: numbers about each frame, from that frame alone.

        Args:
            params: (..., param_channels, H, W).
            frames: (..., C, H, W).

        Returns:
            (...) float64 each; `sse` is among them. Leave the gradient on those that `densities` trains through.
        """
        raise NotImplementedError

    def densities(self, statistics: Statistics, dims: int, mask: Tensor | None = None) -> Densities:
        """Second stage: scores of every frame, from the statistics of the whole batch.

        In training mode it gets the whole batch. In eval mode a batch may come in parts, so anything averaged over it
        then has to be a stored value: see `OptimalSigma`, whose sigma `calibrate` measures.

        Args:
            statistics: (...) each.
            dims: D = C H W.
            mask: broadcastable to (...), 1 for the frames that count; None: all. Masked frames are scored too, but
                must not influence the others.
        """
        raise NotImplementedError

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """`Densities.log_px` of a whole batch: (..., param_channels, H, W), (..., C, H, W) -> (...)."""
        return self.densities(self.statistics(params, frames), frames.shape[-3:].numel(), mask).log_px

    def log_density(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """`Densities.log_density` of a whole batch; shapes as in `log_prob`."""
        return self.densities(self.statistics(params, frames), frames.shape[-3:].numel(), mask).log_density

    def mean(self, params: Tensor) -> Tensor:
        """Expected frame, (..., C, H, W) float32 in [0, 1]."""
        raise NotImplementedError

    def sigma(self, params: Tensor) -> Tensor | None:
        """Standard deviation of Gaussian noise around the mean, for pixels in [0, 1]; None for any other distribution.

        Scalar or broadcastable to (..., C, H, W). Evaluation asks how well a Gaussian of this width covers the truth.
        """
        return None

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample from p(x | params), (..., C, H, W) float32: k / 255 if discrete, else not clipped to [0, 1]."""
        raise NotImplementedError

    def squared_error(self, params: Tensor, frames: Tensor) -> Tensor:
        """Squared error of the mean, summed over C, H and W: (...) float64, pixels in [0, 1]."""
        return sum_pixels((self.mean(params) - frames).square())

    def status(self) -> dict[str, Tensor]:
        """Learned or tracked values for the log, by name."""
        return {}

    def after_step(self) -> None:
        """Update whatever is tracked over training; called once after each optimizer step."""

    def quoted_variance(self) -> Tensor | None:
        """sigma^2 that evaluation quotes bounds with, where it is a single number."""
        return None

    def calibrate(self, mse: float | Tensor) -> None:
        """Receive the mean squared error per pixel on held-out clips, for likelihoods that set a sigma by it."""


class PerFrame(Likelihood):
    """A likelihood that scores each frame by itself. Subclasses define `log_prob`, `mean` and `sample`."""

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | params): (..., param_channels, H, W), (..., C, H, W) -> (...) nats, float64; ignores the mask."""
        raise NotImplementedError

    def log_density(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Same as `log_prob`, which is normalised. A subclass that trains on a surrogate overrides `statistics` too."""
        return self.log_prob(params, frames)

    def statistics(self, params: Tensor, frames: Tensor) -> Statistics:
        with torch.no_grad():  # reported, not trained through
            sse = self.squared_error(params, frames)
        return {"sse": sse, "log_px": self.log_prob(params, frames)}

    def densities(self, statistics: Statistics, dims: int, mask: Tensor | None = None) -> Densities:
        log_px = statistics["log_px"]
        return Densities(log_px, statistics.get("log_density", log_px))
