"""Gaussian decoders: mean = sigmoid(params), one sigma for all pixels. They differ in where sigma comes from.

Per frame: log p(x) = -SSE / (2 sigma^2) - D/2 log(2 pi sigma^2), D = C H W, SSE the squared error summed over pixels.
Sigma is in units of pixels in [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.likelihoods.base import Likelihood

MIN_LOG_SIGMA = -6.0  # sigma 0.0025, 0.63 grey levels: without a floor static pixels send the density to infinity


def gaussian_log_prob(sse: Tensor, dims: int, variance: Tensor | float) -> Tensor:
    """log N(x; mean, variance I) from the squared error alone: (...) nats, `dims` pixels and channels a frame."""
    variance = torch.as_tensor(variance, dtype=sse.dtype, device=sse.device)
    return -0.5 * (sse / variance + dims * (variance.log() + math.log(2 * math.pi)))


class GaussianLikelihood(Likelihood):
    """Common part; a subclass says what `variance` is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.param_channels = channels

    def variance(self) -> Tensor:
        """sigma^2 for evaluation, scalar."""
        raise NotImplementedError

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        sse = self.squared_error(params, frames)
        return gaussian_log_prob(sse, frames.shape[-3:].numel(), self.variance())

    def mean(self, params: Tensor) -> Tensor:
        return params.to(torch.promote_types(params.dtype, torch.float32)).sigmoid()

    def status(self) -> dict[str, Tensor]:
        return {"decoder/sigma": self.variance().detach().sqrt()}

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(params)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.variance().sqrt().to(mean) * noise


class FixedSigma(GaussianLikelihood):
    """Sigma chosen by hand: a beta-VAE in disguise, beta = sigma^2 on half the squared error (sigma = 1: plain VAE)."""

    def __init__(self, channels: int, sigma: float = 1.0) -> None:
        super().__init__(channels)
        self.register_buffer("fixed_variance", torch.tensor(sigma**2, dtype=torch.float64))

    def variance(self) -> Tensor:
        return self.fixed_variance

    def status(self) -> dict[str, Tensor]:
        return {}  # a constant is no news, and with GECO it plays no part


class SharedSigma(GaussianLikelihood):
    """One learned sigma (the shared sigma-VAE of Rybkin et al. 2021, arXiv:2006.13202, Section 3.1).

    log sigma is bounded below smoothly, -6 + softplus(log_sigma + 6), so that its gradient never vanishes at once.
    """

    def __init__(self, channels: int, sigma: float = 1.0) -> None:
        super().__init__(channels)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)))

    def variance(self) -> Tensor:
        return (2 * (MIN_LOG_SIGMA + F.softplus(self.log_sigma.double() - MIN_LOG_SIGMA))).exp()


class OptimalSigma(GaussianLikelihood):
    """The sigma-VAE: sigma^2 is the batch's own mean squared error, its optimum (arXiv:2006.13202, Section 3.2).

    Training mode: variance = masked SSE / (D * masked frames), floored at e^-12 and constant for the gradient, which
    loses nothing: at the optimum d log p / d sigma = 0. Evaluation uses the stored variance, a moving average, because
    a variance measured on the very frames it scores is optimistic.
    """

    DECAY = 0.999  # of the stored MSE, per optimizer step; arithmetic, so the stored sigma is not biased low

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("mse_average", torch.zeros((), dtype=torch.float64))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))
        self._batch_mse: Tensor | None = None

    def variance(self) -> Tensor:
        corrected = self.mse_average / (1 - self.DECAY ** self.n_updates.clamp(min=1).double())
        return torch.where(self.n_updates > 0, corrected.clamp(min=math.exp(2 * MIN_LOG_SIGMA)), 1.0)

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.training:
            return super().log_prob(params, frames)
        sse, dims = self.squared_error(params, frames), frames.shape[-3:].numel()
        weight = torch.ones_like(sse) if mask is None else mask.to(sse).expand_as(sse)
        self._batch_mse = (weight * sse.detach()).sum() / (dims * weight.sum())
        return gaussian_log_prob(sse, dims, self._batch_mse.clamp(min=math.exp(2 * MIN_LOG_SIGMA)))

    def after_step(self) -> None:
        assert self._batch_mse is not None, "after_step without a training-mode log_prob before it"
        self.mse_average.lerp_(self._batch_mse, 1 - self.DECAY)
        self.n_updates += 1
        self._batch_mse = None
