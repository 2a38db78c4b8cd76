"""What every decoder distribution offers. Frames are (..., C, H, W) in [0, 1]; log-likelihoods nats per frame."""

import torch
from torch import Tensor, nn


class Likelihood(nn.Module):
    """p(x | params), params (..., param_channels, H, W) as the decoder emits them, in any float dtype.

    Subclasses give `log_prob`, `mean` and `sample`. Sums run in float32 elementwise and float64 over pixels, outside
    autocast, whatever the dtype of params.
    """

    param_channels: int

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """(..., param_channels, H, W), (..., C, H, W) -> (...) nats, float64.

        `mask`, broadcastable to (...), holds 1 for the frames that count; only likelihoods that estimate something
        from the batch read it. Masked frames get a value too: the caller drops them.
        """
        raise NotImplementedError

    def mean(self, params: Tensor) -> Tensor:
        """Expected frame, (..., C, H, W) float32 in [0, 1]."""
        raise NotImplementedError

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw from p(x | params), (..., C, H, W) float32; not clipped to [0, 1]."""
        raise NotImplementedError

    def squared_error(self, params: Tensor, frames: Tensor) -> Tensor:
        """Squared error of the mean, summed over C, H and W: (...) float64, pixels in [0, 1]."""
        return (self.mean(params) - frames).square().sum((-3, -2, -1), dtype=torch.float64)

    def status(self) -> dict[str, Tensor]:
        """What it has learned or tracks, named, for the log."""
        return {}

    def after_step(self) -> None:
        """Moves whatever the likelihood tracks over training; called once after each optimizer step."""
