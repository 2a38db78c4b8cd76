"""The interface of objectives and their shared parts: per-frame terms, averages, importance-weighted bound, report.

Shapes: K importance samples, B videos, F predicted frames, Z latents. Units: nats per frame, averaged once over the
masked frames of the batch; squared errors are summed over the D = C H W pixels in [0, 1].
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

Numbers = dict[str, Tensor]


class Terms(NamedTuple):
    """Terms of a batch, float64, and what they were summed over. K = 1 unless the objective weighs several samples."""

    log_px: Tensor  # (K, B, F) nats: what the likelihood trains on
    log_density: Tensor  # (K, B, F) nats: a normalised log p(x | z), which bounds are quoted with; mostly log_px itself
    log_ratio: Tensor  # (K, B, F) nats: log p(z) - log q(z) of the sampled z
    kl: Tensor  # (B, F, Z) nats per latent, >= 0, in closed form
    sse: Tensor  # (K, B, F) squared error of the mean, summed over pixels
    mask: Tensor  # (F,) or (B, F): 1 for the frames that count
    dims: int  # D = C H W
    bits_offset: float  # of the likelihood, see likelihoods.base.bits_offset

    def n_frames(self) -> Tensor:
        """Number of frames in the batch whose mask is 1: the divisor of a sum over videos."""
        return self.mask.to(self.sse).expand(self.sse.shape[1:]).sum()


class Objective(nn.Module):
    """Turns the terms of a batch into a scalar to minimise, and reports on its own state.

    The batch is whole when `forward` sees its terms, however many processes or passes computed them, so an objective
    may average over it freely. Its state is in float64 buffers, equal on every process.
    """

    def forward(self, terms: Terms) -> tuple[Tensor, Numbers]:
        """Returns the loss, nats per frame, and the numbers to log. State changes in `after_step` only."""
        raise NotImplementedError

    def after_step(self, lr: float = 1.0, remaining: int = 0) -> None:
        """Update the state; called once after each optimizer step.

        Args:
            lr: that step's learning rate, relative to the largest of the run.
            remaining: steps of the run still to come.
        """

    def status(self) -> Numbers:
        """State for the log, by name."""
        return {}

    def held_out(self, terms: Terms) -> dict[str, float | list[float]]:
        """Further numbers of a validation, from the terms of all held-out clips in eval mode."""
        return {}

    def merit(self, numbers: dict) -> float:
        """What best.pt is chosen by, from the numbers of a validation; larger is better."""
        raise NotImplementedError

    def steer(self, numbers: dict) -> None:
        """Adjust to the numbers of a validation."""

    def warnings(self) -> list[str]:
        """Warnings about settings that cannot succeed, for the log."""
        return []

    def summary(self) -> str | None:
        """How training went, in words."""
        return None

    def facts(self) -> dict[str, object]:
        """The same for metrics.json: JSON values by name."""
        return {}


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (..., B, F) values over the frames whose mask is 1. Terms are averaged nowhere else."""
    weight = mask.to(values).expand_as(values)
    return torch.where(weight > 0, weight * values, 0.0).sum() / weight.sum()


def sum_frames(values: Tensor, mask: Tensor) -> Tensor:
    """(K, B, F) -> (K, B): sum over the frames whose mask is 1."""
    weight = mask.to(values).expand_as(values)
    return torch.where(weight > 0, weight * values, 0.0).sum(-1)


def iwae_bound(log_w: Tensor) -> Tensor:
    """Importance-weighted bound on log p(x); the ELBO's one-sample estimate when K = 1.

    Args:
        log_w: (K, B) log p(x, z_k) - log q(z_k | x), summed over the whole video: a bound taken frame by frame is one
            on another density, and can exceed log p(x).

    Returns:
        (B,) nats per video, larger is better. The loss is -bound.mean().

    Source: Burda et al. 2016, arXiv:1509.00519, Section 3.
    """
    return torch.logsumexp(log_w, dim=0) - math.log(log_w.shape[0])


def effective_samples(log_w: Tensor) -> Tensor:
    """(K, B) -> (B,): 1 / sum of squared normalised weights, 1 when one sample has all the weight, K when all share."""
    return 1 / log_w.softmax(0).square().sum(0)


def bits_per_dim(elbo: Tensor | float, dims: int, offset: float) -> Tensor | float:
    """Bound in nats per frame -> bits per pixel and channel; `offset` is 0 for probabilities of bytes."""
    return -elbo / (dims * math.log(2)) + offset


def held_out_bound(numbers: dict[str, float], name: str) -> float:
    """The bound `name` (elbo, iwae) among the numbers of a validation; with one sample, iwae is the elbo."""
    found = [value for key, value in numbers.items() if key.startswith((f"valid/{name}_", "valid/elbo_"))]
    return found[-1]  # an iwae, if there is one, is written after the elbo


def report(terms: Terms, log_density: Tensor, loss: Tensor) -> Numbers:
    """Numbers that every objective logs, detached; `log_density` (K, B, F) is what its bounds are quoted with.

    The ELBO is the plain one, its KL weighed by 1, whatever the loss is.
    """
    kl = terms.kl.sum(-1)
    elbo = masked_mean(log_density.mean(0) - kl, terms.mask)
    numbers = {
        "loss": loss,
        "rmse": (masked_mean(terms.sse, terms.mask) / terms.dims).sqrt(),
        "kl_nats_per_frame": masked_mean(kl, terms.mask),
        "elbo_nats_per_frame": elbo,
        "bits_per_dim": bits_per_dim(elbo, terms.dims, terms.bits_offset),
    }
    if len(terms.sse) > 1:
        log_w = sum_frames(log_density + terms.log_ratio, terms.mask)
        numbers["iwae_nats_per_frame"] = iwae_bound(log_w).sum() / terms.n_frames()
    return {name: value.detach() for name, value in numbers.items()}
