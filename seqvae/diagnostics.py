"""What a model's latents do over a whole set of videos. Shapes: N videos, F frames, Z latents. Units: nats."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from seqvae.gaussian import Gaussian

ACTIVE = 0.01  # variance of the posterior mean above which a latent counts as used (Burda et al. 2016, Section 5.2)
ROWS = 512  # samples compared with all posteriors at once: bounds the memory, changes no number


def active_units(q: Gaussian, p: Gaussian) -> Tensor:
    """Which latents carry anything: (Z,) bool.

    The posterior mean, in units of the prior, varies over videos and frames by more than 0.01. With a fixed prior it
    is the count of Burda et al. 2016, arXiv:1509.00519, Section 5.2. Under a learned prior the mean is taken relative
    to the prior's, so that a latent which only repeats what the prior knows is not active.

    Args:
        q, p: (N, F, Z).
    """
    whitened = (q.mu - p.mu) * (-0.5 * p.logvar).exp()
    return whitened.flatten(0, -2).var(0, correction=0) > ACTIVE


class MarginalKL(NamedTuple):
    """KL between the aggregated posterior and the aggregated prior of each frame, (F,) nats, and what limits it."""

    rate: Tensor  # mean KL(q || p)
    mutual_information: Tensor  # of video and latent under q, at most log N
    marginal: Tensor  # KL(mean of q || mean of p), 0 <= marginal <= rate up to sampling error
    n: int  # videos in the aggregates

    @property
    def cap(self) -> float:
        """log N: no estimate of the mutual information exceeds it, and marginal >= rate - cap."""
        return math.log(self.n)

    @property
    def capped(self) -> Tensor:
        """(F,) bool: the information is within 1 nat of the cap, so the marginal KL is too high: use more videos."""
        return self.mutual_information > self.cap - 1


def marginal_kl(q: Gaussian, p: Gaussian, z: Tensor) -> MarginalKL:
    """KL(E_x q(z_t | x) || E_x p(z_t | x)) per frame, both aggregates mixtures over all N videos.

    It is what is left of the rate when the latents' information about x is taken out, and not the rate itself. Its sum
    over frames is not the KL of the joint.

    Args:
        q, p: (N, F, Z); a fixed prior is one that is the same for every video.
        z: (N, F, Z) one sample of each posterior.

    Source: Hoffman & Johnson 2016, "ELBO surgery".
    """
    n, rows = z.shape[0], []
    q, p, z = Gaussian(q.mu.double(), q.logvar.double()), Gaussian(p.mu.double(), p.logvar.double()), z.double()
    own = q.log_prob(z) - p.log_prob(z)  # (N, F), the rate's estimate
    for t in range(z.shape[1]):
        aggregated = [_mixture_log_prob(Gaussian(g.mu[:, t], g.logvar[:, t]), z[:, t]) for g in (q, p)]
        information = q.log_prob(z)[:, t] - aggregated[0]
        rows.append(torch.stack([own[:, t].mean(), information.mean(), (aggregated[0] - aggregated[1]).mean()]))
    return MarginalKL(*torch.stack(rows, dim=1), n)


def _mixture_log_prob(g: Gaussian, z: Tensor) -> Tensor:
    """log 1/N sum_j g_j(z_i), (N,), for g and z of shape (N, Z)."""
    precision = (-g.logvar).exp()
    constant = (g.mu.square() * precision + g.logvar + math.log(2 * math.pi)).sum(-1)  # (N,)
    parts = []
    for rows in z.split(ROWS):
        squares = rows.square() @ precision.T - 2 * rows @ (g.mu * precision).T + constant  # (rows, N)
        parts.append((-0.5 * squares).logsumexp(-1))
    return torch.cat(parts) - math.log(len(z))
