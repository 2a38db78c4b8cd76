"""Diagonal-Gaussian latents.

Units: nats, summed over the latent dims Z.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOGVAR_LIMIT = 10.0  # |logvar| beyond it only overflows exp(); sigma stays in [0.007, 148]
NOISE_KEY = 103  # sets keyed_noise apart from every other stream of a seed


class Gaussian(NamedTuple):
    """Diagonal Gaussian; mu and logvar have one shape, (..., Z)."""

    mu: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mu + sigma * noise; noise is standard normal, broadcastable to (..., Z)."""
        return self.mu + (0.5 * self.logvar).exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log density of z, (..., Z) -> (...) nats."""
        squares = (z - self.mu).square() * (-self.logvar).exp()
        return -0.5 * (squares + self.logvar + math.log(2 * math.pi)).sum(-1)


def limit_logvar(logvar: Tensor) -> Tensor:
    """Keep logvar within +-LOGVAR_LIMIT by soft bounds: unlike a clamp's, its gradient is never 0 outside."""
    below = LOGVAR_LIMIT - F.softplus(LOGVAR_LIMIT - logvar)
    return F.softplus(below + LOGVAR_LIMIT) - LOGVAR_LIMIT


def standard_normal_like(q: Gaussian) -> Gaussian:
    """N(0, I) in q's shape: the fixed prior of SVG-FP (Denton & Fergus 2018, arXiv:1802.07687)."""
    return Gaussian(torch.zeros_like(q.mu), torch.zeros_like(q.logvar))


def kl_per_latent(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of each latent, (..., Z) nats, >= 0; `gaussian_kl` is its sum and gives the source."""
    ratio = (q.logvar - p.logvar).exp() + (q.mu - p.mu).square() * (-p.logvar).exp()
    return 0.5 * (ratio - 1 + p.logvar - q.logvar)


def gaussian_kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) summed over latent dims.

    Args:
        q: posterior, (..., Z), float32 or wider: bfloat16 rounds logvar near -10 by up to 3 % of the variance.
        p: prior, broadcastable to q.

    Returns:
        (...,) nats, >= 0.

    Source: Kingma & Welling 2014, arXiv:1312.6114, Appendix B (there p = N(0, I)).
    """
    return kl_per_latent(q, p).sum(-1)


def keyed_noise(seed: int, videos: Sequence[int], samples: Sequence[int], steps: int, z_dim: int) -> Tensor:
    """Standard normal noise whose every entry is a function of (seed, video, sample) and its place alone.

    So a video's predictions do not depend on the batch it is in, nor on how many samples are drawn beside one.

    Returns:
        (len(samples), len(videos), steps, z_dim) float32, on the CPU.
    """
    noise = np.empty((len(samples), len(videos), steps, z_dim), dtype=np.float32)
    for i, sample in enumerate(samples):
        for j, video in enumerate(videos):
            noise[i, j] = np.random.default_rng([seed, NOISE_KEY, video, sample]).standard_normal(
                (steps, z_dim), dtype=np.float32
            )
    return torch.from_numpy(noise)
