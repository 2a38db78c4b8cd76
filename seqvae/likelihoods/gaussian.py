"""Gaussian decoders: mean = sigmoid of the first C channels of params. They differ in the source of sigma.

Per frame: log p(x) = -SSE / (2 sigma^2) - D/2 log(2 pi sigma^2), D = C H W, SSE the squared error summed over pixels.
Sigma is in units of pixels in [0, 1]. The names are those of Rybkin et al. 2021, arXiv:2006.13202.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.likelihoods.base import Densities, Likelihood, PerFrame, Statistics, at_least_float32, sum_pixels

MIN_LOG_SIGMA = -6.0  # sigma 0.0025, 0.63 grey levels: without a floor static pixels send the density to infinity
MIN_VARIANCE = math.exp(2 * MIN_LOG_SIGMA)


def gaussian_log_prob(sse: Tensor, dims: int, variance: Tensor | float) -> Tensor:
    """log N(x; mean, variance I) from the squared error summed over `dims` pixels and channels: (...) nats."""
    variance = torch.as_tensor(variance, dtype=sse.dtype, device=sse.device)
    return -0.5 * (sse / variance + dims * (variance.log() + math.log(2 * math.pi)))


def soft_floor(log_sigma: Tensor) -> Tensor:
    """Bound log sigma below by -6 smoothly, so that its gradient never vanishes abruptly.

    This raises every log sigma, by log(1 + e^(-6 - log sigma)): 0.05 at -3, 0.69 at -6.
    """
    return MIN_LOG_SIGMA + F.softplus(log_sigma - MIN_LOG_SIGMA)


class GaussianLikelihood(Likelihood):
    """The mean and samples of a Gaussian; subclasses define `sigma` and how frames are scored."""

    def __init__(self, channels: int, sigma_channels: int = 0) -> None:
        super().__init__()
        self.channels = self.mean_channels = channels
        self.param_channels = channels + sigma_channels

    def sigma(self, params: Tensor) -> Tensor:
        """Standard deviation of the pixels in evaluation, scalar or broadcastable to (..., C, H, W)."""
        raise NotImplementedError

    def mean(self, params: Tensor) -> Tensor:
        return at_least_float32(params[..., : self.channels, :, :]).sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(params)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.sigma(params).to(mean) * noise


class OneSigma(GaussianLikelihood):
    """One sigma for all pixels of all frames, so a frame's squared error is a sufficient statistic.

    Subclasses define `variance`, and `densities` where training scores frames at another variance.
    """

    def variance(self) -> Tensor:
        """sigma^2 in evaluation, scalar."""
        raise NotImplementedError

    def sigma(self, params: Tensor) -> Tensor:
        return self.variance().sqrt()

    def quoted_variance(self) -> Tensor:
        return self.variance()

    def statistics(self, params: Tensor, frames: Tensor) -> Statistics:
        return {"sse": self.squared_error(params, frames)}

    def densities(self, statistics: Statistics, dims: int, mask: Tensor | None = None) -> Densities:
        log_px = gaussian_log_prob(statistics["sse"], dims, self.variance())
        return Densities(log_px, log_px)

    def status(self) -> dict[str, Tensor]:
        return {"decoder/sigma": self.variance().detach().sqrt()}


class SharedSigma(OneSigma):
    """One learned sigma (the shared sigma-VAE of Section 3.1), with the soft floor."""

    def __init__(self, channels: int, sigma: float = 1.0) -> None:
        super().__init__(channels)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)))

    def variance(self) -> Tensor:
        return (2 * soft_floor(self.log_sigma.double())).exp()


class Calibrated(OneSigma):
    """A sigma that gradients do not learn: bounds are quoted at the MSE of held-out clips (`calibrate`).

    Once the weights have moved on, a moving average of the training MSE replaces it.
    """

    calibrates = True
    DECAY = 0.999  # of the stored MSE, per optimizer step; arithmetic, so the stored sigma is not biased low

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("mse_average", torch.zeros((), dtype=torch.float64))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calibrated_mse", torch.zeros((), dtype=torch.float64))  # 0: not calibrated
        self._batch_mse: Tensor | None = None

    def quoted_variance(self) -> Tensor:
        average = self.mse_average / (1 - self.DECAY ** self.n_updates.clamp(min=1).double())
        average = torch.where(self.n_updates > 0, average.clamp(min=MIN_VARIANCE), 1.0)
        return torch.where(self.calibrated_mse > 0, self.calibrated_mse.clamp(min=MIN_VARIANCE), average)

    def calibrate(self, mse: float | Tensor) -> None:
        tiny = torch.finfo(torch.float64).tiny  # 0 stands for none
        self.calibrated_mse.copy_(torch.as_tensor(mse, dtype=torch.float64).detach()).clamp_(min=tiny)

    def after_step(self) -> None:
        assert self._batch_mse is not None, "after_step without training-mode densities before it"
        self.mse_average.lerp_(self._batch_mse, 1 - self.DECAY)
        self.n_updates += 1
        self.calibrated_mse.zero_()  # the weights have moved
        self._batch_mse = None

    def _track(self, sse: Tensor, dims: int, mask: Tensor | None) -> Tensor:
        """MSE of the batch's frames that count, scalar, with its gradient; remembered for `after_step`."""
        weight = torch.ones_like(sse) if mask is None else mask.to(sse).expand_as(sse)
        mse = torch.where(weight > 0, weight * sse, 0.0).sum() / (dims * weight.sum())
        self._batch_mse = mse.detach()
        return mse


class FixedSigma(Calibrated):
    """A sigma chosen by hand: a beta-VAE in disguise, beta = sigma^2 on half the squared error (sigma = 1: plain VAE).

    Evaluation quotes bounds (`log_density`) and samples at the calibrated sigma: the one chosen for training says how
    rate and distortion are weighed, not how large the errors are. The same goes for GECO, which has no sigma at all.
    """

    def __init__(self, channels: int, sigma: float = 1.0) -> None:
        super().__init__(channels)
        self.register_buffer("fixed_variance", torch.tensor(sigma**2, dtype=torch.float64))

    def variance(self) -> Tensor:
        return self.fixed_variance

    def sigma(self, params: Tensor) -> Tensor:
        return (self.variance() if self.training else self.quoted_variance()).sqrt()

    def densities(self, statistics: Statistics, dims: int, mask: Tensor | None = None) -> Densities:
        log_px, _ = super().densities(statistics, dims)
        if self.training:
            self._track(statistics["sse"], dims, mask)
            return Densities(log_px, log_px)
        return Densities(log_px, gaussian_log_prob(statistics["sse"], dims, self.quoted_variance()))

    def status(self) -> dict[str, Tensor]:
        return {}  # constants are not logged; with GECO this one is not even used


class OptimalSigma(Calibrated):
    """The sigma-VAE: sigma^2 is the batch's own mean squared error, its optimum (Section 3.2).

    Training mode: variance = masked SSE / (D * masked frames), floored at e^-12 and constant for the gradient, which
    loses nothing: at the optimum d log p / d sigma = 0. Evaluation uses a stored variance, because one measured on
    the very frames it scores is optimistic: the exact MSE of held-out clips from `calibrate` until the weights move
    again, else a moving average.

    `soft_clip` follows the authors' code: the soft floor in training. That sigma is not an optimum (200 nats worse at
    log sigma = -4, D = 12288), so the gradient through it counts and is kept.
    """

    def __init__(self, channels: int, soft_clip: bool = False) -> None:
        super().__init__(channels)
        self.soft_clip = soft_clip

    def variance(self) -> Tensor:
        return self.quoted_variance()

    def densities(self, statistics: Statistics, dims: int, mask: Tensor | None = None) -> Densities:
        if not self.training:
            return super().densities(statistics, dims)
        sse = statistics["sse"]
        log_px = gaussian_log_prob(sse, dims, self._training_variance(self._track(sse, dims, mask)))
        return Densities(log_px, log_px)

    def _training_variance(self, mse: Tensor) -> Tensor:
        """The floored variance for an MSE of any shape."""
        if not self.soft_clip:
            return mse.detach().clamp(min=MIN_VARIANCE)
        log_sigma = 0.5 * mse.clamp(min=1e-30).log()  # a picture without error has no log, hence the clamp
        return (2 * soft_floor(log_sigma)).exp()


class OptimalSigmaPerImage(OptimalSigma):
    """Training maximises -D/2 log MSE of each image: sigma^2 is the image's own mean squared error.

    A surrogate: with a sigma that depends on x it is not a density: its integral diverges. `log_density` is that of
    OptimalSigma, one sigma for the batch; in evaluation `log_prob` is too, at the stored sigma.
    """

    def densities(self, statistics: Statistics, dims: int, mask: Tensor | None = None) -> Densities:
        shared = super().densities(statistics, dims, mask)
        if not self.training:
            return shared
        sse = statistics["sse"]
        return Densities(gaussian_log_prob(sse, dims, self._training_variance(sse / dims)), shared.log_density)


class PerImageSigma(PerFrame, GaussianLikelihood):
    """A learned sigma per image: log sigma is the mean over H and W of one more channel, with the soft floor."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, sigma_channels=1)

    def sigma(self, params: Tensor) -> Tensor:
        # float64: an error in an image's log sigma counts D times
        log_sigma = params[..., self.channels :, :, :].mean((-2, -1), keepdim=True, dtype=torch.float64)
        return soft_floor(log_sigma).exp()  # (..., 1, 1, 1)

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        variance = self.sigma(params).square().flatten(-3).squeeze(-1)  # (...)
        return gaussian_log_prob(self.squared_error(params, frames), frames.shape[-3:].numel(), variance)


class PerPixelSigma(PerFrame, GaussianLikelihood):
    """A learned sigma per pixel and channel: C more channels of log sigma, with the soft floor."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, sigma_channels=channels)

    def sigma(self, params: Tensor) -> Tensor:
        return self._log_sigma(params).exp()

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        log_sigma = self._log_sigma(params)
        error = (self.mean(params) - frames) * (-log_sigma).exp()  # in sigmas
        return -sum_pixels(0.5 * error.square() + log_sigma + 0.5 * math.log(2 * math.pi))

    def _log_sigma(self, params: Tensor) -> Tensor:
        return soft_floor(at_least_float32(params[..., self.channels :, :, :]))  # (..., C, H, W)
