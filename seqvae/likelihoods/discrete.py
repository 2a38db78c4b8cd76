"""Decoders that assign a probability to each of the 256 levels k of a pixel x = k / 255; sub-pixels are independent.

Shapes: C channels, M mixture components. An axis of levels, bits or components sits right before H and W, so what is
summed over it is (..., C, H, W). Units: nats for frames, [0, 1] for pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seqvae.likelihoods.base import PerFrame, Statistics, at_least_float32, sum_pixels

LEVELS, BITS = 256, 8


class Bernoulli(PerFrame):
    """Cross-entropy with logits l: a density for black and white pixels only, on grey ones a popular heuristic.

    So `log_prob` is a surrogate. `log_density` is the same exponential family, e^(x l), normalised over the levels:
    P(k) = e^(l k / 255) / sum_j e^(l j / 255). `mean` and `sample` are those of the Bernoulli that was trained.
    """

    discrete = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.param_channels = self.mean_channels = channels

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = at_least_float32(params)
        return sum_pixels(frames * F.logsigmoid(logits) + (1 - frames) * F.logsigmoid(-logits))

    def statistics(self, params: Tensor, frames: Tensor) -> Statistics:
        with torch.no_grad():  # reported, not trained through
            log_density = self.log_density(params, frames)
        return super().statistics(params, frames) | {"log_density": log_density}

    def log_density(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = at_least_float32(params)
        return sum_pixels(frames * logits - _log_geometric_sum(logits))

    def mean(self, params: Tensor) -> Tensor:
        return at_least_float32(params).sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample black or white pixels from the Bernoulli that was trained; not a sample of `log_density`."""
        return torch.bernoulli(self.mean(params), generator=generator)


class Categorical(PerFrame):
    """Softmax over 256 logits for each sub-pixel; log_prob is minus the cross-entropy."""

    discrete = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.param_channels = LEVELS * channels

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = self._logits(params)
        index = _level(frames).unsqueeze(-3).expand(*logits.shape[:-3], 1, *logits.shape[-2:])
        return sum_pixels(logits.gather(-3, index).squeeze(-3) - logits.logsumexp(-3))

    def mean(self, params: Tensor) -> Tensor:
        levels = torch.arange(LEVELS, device=params.device)[:, None, None]
        return ((self._logits(params).softmax(-3) * levels).sum(-3) / 255).clamp(0, 1)  # rounding may exceed 1

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits = self._logits(params)
        return _draw(logits, generator).squeeze(-3).to(logits.dtype) / 255

    def _logits(self, params: Tensor) -> Tensor:
        return at_least_float32(params).unflatten(-3, (self.channels, LEVELS))  # (..., C, 256, H, W)


class Bitwise(PerFrame):
    """The byte's 8 bits as independent Bernoullis, bit b worth 2^b: 8 logits for each sub-pixel in place of 256."""

    discrete = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.param_channels = BITS * channels

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        exponent = torch.arange(BITS, device=frames.device)[:, None, None]
        bits = _level(frames).unsqueeze(-3) >> exponent & 1  # (..., C, 8, H, W)
        return sum_pixels(F.logsigmoid((2 * bits - 1) * self._logits(params)).sum(-3))

    def mean(self, params: Tensor) -> Tensor:
        return self._pixels(self._logits(params).sigmoid())

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._pixels(torch.bernoulli(self._logits(params).sigmoid(), generator=generator))

    def _logits(self, params: Tensor) -> Tensor:
        return at_least_float32(params).unflatten(-3, (self.channels, BITS))  # (..., C, 8, H, W)

    def _pixels(self, bits: Tensor) -> Tensor:
        """(..., C, 8, H, W) -> (..., C, H, W) in [0, 1]."""
        return (bits * 2 ** torch.arange(BITS, device=bits.device)[:, None, None]).sum(-3) / 255


class LogisticMixture(PerFrame):
    """Mixture of discretised logistics (Salimans et al. 2017, arXiv:1701.05517), without their links between channels.

    Level k takes the mass of ((k - 0.5) / 255, (k + 0.5) / 255); the bins of 0 and 255 are open, so all sum to 1.
    params hold mixture logits, mu - 0.5 and log s + 2, so that a decoder that emits zeros is vague about grey.
    """

    discrete = True
    MIN_LOG_SCALE = -7.0  # 0.23 grey levels

    def __init__(self, channels: int, mixtures: int = 10) -> None:
        super().__init__()
        self.channels, self.mixtures = channels, mixtures
        self.param_channels = 3 * mixtures * channels

    def log_prob(self, params: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        logits, mu, log_s = self._split(params)
        k = _level(frames).unsqueeze(-3).to(mu.dtype)  # (..., C, 1, H, W)
        upper = ((k + 0.5) / 255 - mu) * (-log_s).exp()
        lower = ((k - 0.5) / 255 - mu) * (-log_s).exp()
        # log(sigmoid(upper) - sigmoid(lower)), of three terms of which the open bins lack two. None is ever infinite.
        below = torch.where(k == LEVELS - 1, 0.0, F.logsigmoid(upper))
        above = torch.where(k == 0, 0.0, F.logsigmoid(-lower))
        width = torch.where((k == 0) | (k == LEVELS - 1), 0.0, _log1mexp(-log_s - math.log(255)))
        return sum_pixels((logits.log_softmax(-3) + below + above + width).logsumexp(-3))

    def mean(self, params: Tensor) -> Tensor:
        """Mean of the mixture clipped to [0, 1], within half a grey level of the exact sum_k k P(k) / 255.

        A clipped logistic has mean int_0^1 sigmoid((mu - x) / s) dx = s (softplus(mu / s) - softplus((mu - 1) / s)).
        The exact sum is the midpoint rule for that integral, with 255 steps.
        """
        logits, mu, log_s = self._split(params)
        s = log_s.clamp(max=3).exp()
        # softplus(x) = relu(x) + softplus(-|x|): exact for mu far outside [0, 1]
        closed = mu.clamp(0, 1) + s * (F.softplus(-mu.abs() / s) - F.softplus(-(mu - 1).abs() / s))
        flat = ((mu - 0.5) * (-log_s).exp()).sigmoid()  # s > 20: the closed form cancels, and this is right to 1e-5
        mean = torch.where(log_s < 3, closed, flat)
        return (logits.softmax(-3) * mean).sum(-3).clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits, mu, log_s = self._split(params)
        component = _draw(logits, generator)
        mu, log_s = (x.gather(-3, component).squeeze(-3) for x in (mu, log_s))
        u = torch.rand(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
        return (255 * (mu + log_s.exp() * u.logit(eps=1e-7))).round().clamp(0, 255) / 255

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixture logits, mu and log s, (..., C, M, H, W) each."""
        params = at_least_float32(params).unflatten(-3, (3, self.channels, self.mixtures))
        logits, mu, log_s = params.unbind(-5)
        return logits, mu + 0.5, (log_s - 2).clamp(min=self.MIN_LOG_SCALE)


def _level(frames: Tensor) -> Tensor:
    """Pixels k / 255 -> k, int64; clamped, because a NaN's index would crash the process on a GPU."""
    return (255 * frames).round().long().clamp(0, LEVELS - 1)


def _draw(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sample an index with probability softmax(logits) along dim -3, kept with size 1 (the Gumbel-max trick)."""
    race = torch.empty_like(logits).exponential_(generator=generator).clamp(min=2**-24)  # a 0 would win at any logit
    return (logits - race.log()).argmax(-3, keepdim=True)


def _log1mexp(log_d: Tensor) -> Tensor:
    """log(1 - e^-d) given log d; d may underflow."""
    d = log_d.exp()
    small = d < 1e-3
    return torch.where(small, log_d - d / 2, (-torch.expm1(-torch.where(small, 1.0, d))).log())


def _log_geometric_sum(logits: Tensor) -> Tensor:
    """log sum_{j=0}^{255} e^(l j / 255), elementwise, at any l.

    The sum is e^(l/2) sinh(128 l / 255) / sinh(l / 510). Where l is small this is its series, log(sinh y / y) =
    y^2 / 6 - y^4 / 180 + ..., whose gradient at l = 0 is 1/2; elsewhere the sinhs' exponentials are taken out.
    """

    def series(y: Tensor) -> Tensor:
        return y.square() / 6 - y**4 / 180

    small = logits.abs() < 0.2  # the next term, y^6 / 2835, is below 4e-10
    tiny = torch.where(small, logits, 0.0)
    near = tiny / 2 + math.log(LEVELS) + series(tiny * (128 / 255)) - series(tiny / 510)
    r = torch.where(small, 1.0, logits.abs() / 255)
    far = logits.relu() + (-torch.expm1(-256 * r)).log() - (-torch.expm1(-r)).log()
    return torch.where(small, near, far)
