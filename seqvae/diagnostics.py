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

    rate: Tensor  # mean KL(q || p), estimated from the samples
    mutual_information: Tensor  # of video and latent under q, at most log N
    marginal: Tensor  # KL(mean of q || mean of p); true values lie in [0, rate]
    prior_overlap: Tensor  # mean log of the number of priors that share in the aggregated prior's value at a sample
    n: int  # videos in the aggregates

    @property
    def cap(self) -> float:
        """log N: no estimate of the mutual information exceeds it; with a fixed prior, marginal >= rate - cap."""
        return math.log(self.n)

    @property
    def unreliable(self) -> Tensor:
        """(F,) bool: an aggregate rests on hardly more than one video at a typical sample; more videos are needed.

        Either the information is within 1 nat of its cap (with a fixed prior the marginal KL is then too high), or
        fewer than e of a learned prior's components reach a sample.
        """
        return (self.mutual_information > self.cap - 1) | (self.prior_overlap < 1)


def marginal_kl(q: Gaussian, p: Gaussian, z: Tensor) -> MarginalKL:
    """KL(E_x q(z_t | x) || E_x p(z_t | x)) per frame, both aggregates mixtures over all N videos.

    With a fixed prior, rate = mutual information + marginal KL: it is what is left of the rate when the latents'
    information about x is taken out. With a learned one the prior's own information goes out as well. Its sum over
    frames is not the KL of the joint.

    Args:
        q, p: (N, F, Z); a fixed prior is one that is the same for every video.
        z: (N, F, Z) one sample of each posterior.

    Source: Hoffman & Johnson 2016, "ELBO surgery".
    """
    n, rows = z.shape[0], []
    q, p, z = Gaussian(q.mu.double(), q.logvar.double()), Gaussian(p.mu.double(), p.logvar.double()), z.double()
    own = q.log_prob(z) - p.log_prob(z)  # (N, F), the rate's estimate
    for t in range(z.shape[1]):
        (posterior, _), (prior, overlap) = (_mixture(Gaussian(g.mu[:, t], g.logvar[:, t]), z[:, t]) for g in (q, p))
        information = q.log_prob(z)[:, t] - posterior
        rows.append(torch.stack([x.mean() for x in (own[:, t], information, posterior - prior, overlap)]))
    return MarginalKL(*torch.stack(rows, dim=1), n)


def _mixture(g: Gaussian, z: Tensor) -> tuple[Tensor, Tensor]:
    """log 1/N sum_j g_j(z_i) and the log of the effective number of its components, (N,), for g and z of (N, Z)."""
    precision = (-g.logvar).exp()
    constant = (g.mu.square() * precision + g.logvar + math.log(2 * math.pi)).sum(-1)  # (N,)
    values, overlaps = [], []
    for rows in z.split(ROWS):
        squares = rows.square() @ precision.T - 2 * rows @ (g.mu * precision).T + constant  # (rows, N)
        total = (-0.5 * squares).logsumexp(-1)
        values.append(total - math.log(len(z)))
        overlaps.append(2 * total - (-squares).logsumexp(-1))  # (sum w)^2 / sum w^2
    return torch.cat(values), torch.cat(overlaps)
