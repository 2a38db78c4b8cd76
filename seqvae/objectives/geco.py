"""Minimise KL subject to a reconstruction error: GECO, and GECO with importance weights. State in float64 buffers."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from seqvae.likelihoods.gaussian import gaussian_log_prob
from seqvae.objectives.base import Numbers, Terms, effective_samples, iwae_bound, masked_mean, report, sum_frames
from seqvae.objectives.base import n_frames as count_frames

LAMBDA_RANGE = 1e6  # log lambda stays within +-ln(1e6) of its start: the anti-windup
NEAR = 0.1025  # a moving average of MSE within 10.25 % of tolerance^2 is an RMSE within 5 % of the tolerance


class Geco(nn.Module):
    """Minimise KL subject to MSE <= tolerance^2 (Rezende & Viola 2018, arXiv:1810.00597, Algorithm 1).

    loss = KL + lambda D C, C = MSE - tolerance^2 in value the moving average, in gradient this batch. lambda weighs the
    squared error summed over pixels, so it compares with 1 / (2 sigma^2). After each step log lambda moves by
    step_size * clip(C / tolerance^2, -1, 1): up while the constraint is violated. With `per_frame` there is one C and
    one lambda for each of the F predicted frames (the vector form), so every frame meets the tolerance by itself.
    """

    separable = True  # in its gradient, where lambda is a constant; the value is the average's

    def __init__(
        self,
        tolerance: float,
        decay: float,
        step_size: float,
        lambda_init: float,
        lambda_warmup: int = 0,
        n_frames: int | None = None,
    ) -> None:
        """n_frames: F for one multiplier per frame, None for one in all. The rest as in ObjectiveConfig."""
        super().__init__()
        self.tolerance, self.decay, self.step_size = tolerance, decay, step_size
        self.lambda_warmup = lambda_warmup
        self.center = math.log(lambda_init)
        shape = () if n_frames is None else (n_frames,)
        self.register_buffer("log_lambda", torch.full(shape, self.center, dtype=torch.float64))
        self.register_buffer("constraint", torch.zeros(shape, dtype=torch.float64))  # moving average of C
        self.register_buffer("n_updates", torch.zeros(shape, dtype=torch.int64))
        self._pending: tuple[Tensor, Tensor] | None = None

    def forward(self, terms: Terms) -> tuple[Tensor, Numbers]:
        """Returns the loss, nats per frame, and the numbers to log. State moves in `after_step` alone."""
        now, average, count = self._constraint(terms, terms.sse[0])
        straight_through = now + (average - now).detach()  # value of the average, gradient of this batch
        penalty = self._penalty(straight_through, count, terms)
        loss = masked_mean(terms.kl.sum(-1), terms.mask) + penalty
        return loss, self._report(terms, average, loss)

    def _constraint(self, terms: Terms, sse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C of this batch from (B, F) squared errors, its moving average and the frames in it: scalars, or (F,)."""
        per_frame = self.log_lambda.ndim == 1
        weight = terms.mask.to(sse).expand_as(sse)
        count = weight.sum(0) if per_frame else weight.sum()
        violation = torch.where(weight > 0, weight * (sse / terms.dims - self.tolerance**2), 0.0)
        now = (violation.sum(0) if per_frame else violation.sum()) / count.clamp(min=1)

        average = self.decay * self.constraint + (1 - self.decay) * now.detach()
        average = torch.where(self.n_updates == 0, now.detach(), average)
        average = torch.where(count > 0, average, self.constraint)  # a frame nobody saw stays where it was
        if self.training:
            self._pending = (average, count > 0)
        return now, average, count

    def _penalty(self, constraint: Tensor, count: Tensor, terms: Terms) -> Tensor:
        """lambda D C per masked frame."""
        return (count * self.log_lambda.exp() * terms.dims * constraint).sum() / count_frames(terms)

    def _report(self, terms: Terms, average: Tensor, loss: Tensor) -> Numbers:
        """GECO has no sigma; its ELBO is quoted at the one that its own squared errors call for."""
        mse = (average + self.tolerance**2).clamp(min=1e-12)
        return report(terms, gaussian_log_prob(terms.sse, terms.dims, mse), loss)

    def status(self) -> Numbers:
        """lambda, the moving average of MSE - tolerance^2, and 2 lambda MSE: scalars, or (F,) with one per frame."""
        weight = self.log_lambda.exp()
        calibration = 2 * weight * (self.constraint + self.tolerance**2)
        return {"geco/lambda": weight, "geco/constraint": self.constraint, "geco/calibration": calibration}

    def after_step(self) -> None:
        """Moves the average, then lambda; called once after each optimizer step."""
        assert self._pending is not None, "after_step without a training-mode forward before it"
        average, seen = self._pending
        violation = (average / self.tolerance**2).clamp(-1, 1)
        moving = seen & (self.n_updates >= self.lambda_warmup)
        self.log_lambda += torch.where(moving, self.step_size * violation, 0.0)
        self.log_lambda.clamp_(self.center - math.log(LAMBDA_RANGE), self.center + math.log(LAMBDA_RANGE))
        self.constraint.copy_(average)
        self.n_updates += seen
        self._pending = None

    def verdict(self) -> str:
        """`met` (RMSE within 5 % of the tolerance or below), `infeasible` (lambda at its upper limit), or `not yet`."""
        if (self.constraint <= NEAR * self.tolerance**2).all():  # a frame that no loss looks at stays at 0
            return "met"
        at_limit = self.log_lambda >= self.center + math.log(LAMBDA_RANGE) - 1e-9
        return "infeasible" if (at_limit & (self.constraint > 0)).any() else "not yet"

    def rmse(self) -> Tensor:
        """Per-pixel error that the moving average amounts to, of the worst frame with one multiplier per frame."""
        return (self._seen(self.constraint) + self.tolerance**2).clamp(min=0).sqrt().max()

    def _seen(self, values: Tensor) -> Tensor:
        """Without the entries of frames that no loss has looked at, unless that is all of them."""
        seen = self.n_updates > 0
        return values[seen] if seen.any() else values

    def summary(self) -> str:
        """The verdict in words, and how far from a calibrated decoder the solution is."""
        calibration = self._seen(self.status()["geco/calibration"]).max().item()
        words = {"met": "met", "not yet": "not yet met", "infeasible": "infeasible at this capacity"}[self.verdict()]
        if (self._seen(self.constraint) < -NEAR * self.tolerance**2).all():
            words = "met with room to spare, so that lambda is falling as far as it may"
        elif self.rmse() > self.tolerance and self.verdict() == "met":
            words = "met within 5 %"
        return (
            f"RMSE {self.rmse().item():.4f} for a tolerance of {self.tolerance}: {words}; 2 lambda MSE is "
            f"{calibration:.3g} (1: also the ELBO's optimum, more: reconstruction weighs more than there)"
        )


class GecoIwae(Geco):
    """GECO over K importance samples; with K = 1 it is GECO with the KL's one-sample estimate.

    `coherent`: -log 1/K sum_k p(z_k) / q(z_k) exp(-sum_t lambda_t D C_kt), the importance-weighted bound of GECO's own
    Lagrangian: its derivative by lambda is the constraint under the samples' weights, and with lambda = 1 and
    C = -log p(x | z) / D it is IWAE.
    `additive`: (lambda - 1) sum_k w_k D C_k - L_K, the form in which GECO + IWAE circulates, made sound: weights w and
    bound L_K at lambda = 1, and gradients through w (without them it is unbounded below for lambda < 1).

    The multiplier follows the constraint under the weights (`iw`) or under plain posterior samples (`q`), which is
    larger: a tolerance met by `iw` may be missed by an ordinary reconstruction.
    """

    def __init__(
        self,
        *args,
        form: Literal["coherent", "additive"] = "coherent",
        constraint_on: Literal["iw", "q"] = "iw",
        **options,
    ) -> None:
        super().__init__(*args, **options)
        self.form, self.constraint_on = form, constraint_on

    def forward(self, terms: Terms) -> tuple[Tensor, Numbers]:
        """Returns the loss, nats per frame, and the numbers to log. State moves in `after_step` alone."""
        excess = terms.sse - terms.dims * self.tolerance**2  # (K, B, F) nats at lambda = 1
        bound = coherent_bound if self.form == "coherent" else additive_bound
        value, log_w = bound(terms.log_ratio, excess, self.log_lambda.exp(), terms.mask)
        loss = -value.sum() / count_frames(terms)

        weights = log_w.detach().softmax(0)[..., None]  # (K, B, 1)
        weighted = (weights * terms.sse.detach()).sum(0)
        chosen = weighted if self.constraint_on == "iw" else terms.sse.detach().mean(0)
        now, average, count = self._constraint(terms, chosen)
        loss = loss + self._penalty(average - now, count, terms)  # a constant: as GECO's, the value is the average's
        return loss, self._report(terms, average, loss) | {
            "rmse_iw": (masked_mean(weighted, terms.mask) / terms.dims).sqrt(),
            "effective_samples": effective_samples(log_w.detach()).mean(),
        }


def coherent_bound(log_ratio: Tensor, cost: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """log 1/K sum_k exp(sum_t log_ratio - weight cost).

    Args:
        log_ratio: (K, B, F) log p(z) - log q(z).
        cost: (K, B, F), in any unit.
        weight: of the cost, scalar or (F,).
        mask: (F,) or (B, F).

    Returns:
        (B,) nats per video, larger is better, and the log-weights (K, B).
    """
    log_w = sum_frames(log_ratio - weight * cost, mask)
    return iwae_bound(log_w), log_w


def additive_bound(log_ratio: Tensor, cost: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """L_K - (weight - 1) sum_k w_k cost_k with w and L_K of the log-weights log_ratio - cost; as `coherent_bound`."""
    log_w = sum_frames(log_ratio - cost, mask)
    rest = sum_frames((weight - 1) * cost, mask)
    return iwae_bound(log_w) - (log_w.softmax(0) * rest).sum(0), log_w
