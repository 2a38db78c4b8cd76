"""Minimise KL subject to a reconstruction error: GECO, and GECO with importance weights. State in float64 buffers."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from seqvae.likelihoods.gaussian import gaussian_log_prob
from seqvae.objectives.base import (
    Numbers,
    Objective,
    Terms,
    effective_samples,
    held_out_bound,
    iwae_bound,
    masked_mean,
    report,
    sum_frames,
)

MET = 1.01  # of the tolerance: a larger RMSE on held-out clips does not meet it where checkpoints are compared
MAX_GAP = 0.5  # in log MSE of held-out clips that lambda follows: early on, running statistics can be far off
NEAR = 0.1025  # a moving average of MSE within 10.25 % of tolerance^2 is an RMSE within 5 % of the tolerance


class PaperRule(nn.Module):
    """log lambda += step_size clip(C / tolerance^2, -1, 1), with C = MSE - tolerance^2 (Algorithm 1 of the paper).

    It integrates whatever limits the error, so while the model is still learning lambda winds up.
    """

    limit = math.log(1e6)  # log lambda stays within +-limit of its start

    def __init__(self, shape: tuple[int, ...], tolerance: float, decay: float, step_size: float, lambda_init: float):
        super().__init__()
        self.tolerance, self.decay, self.step_size = tolerance, decay, step_size
        self.start = math.log(lambda_init)  # of log lambda

    def weight(self, n: Tensor) -> Tensor:
        """Weight of the newest batch in the moving average of the error, after n updates."""
        return torch.where(n == 0, 1.0, 1 - self.decay).double()

    def move(self, log_lambda: Tensor, error: Tensor, gap: Tensor, n: Tensor, lr: float, remaining: int) -> Tensor:
        """log lambda after a step; arguments as in `AdaptiveRule.move`, of which it uses the error alone."""
        log_lambda = log_lambda + self.step_size * error.expm1().clamp(-1, 1)
        return log_lambda.clamp(self.start - self.limit, self.start + self.limit)

    def at_limit(self, log_lambda: Tensor) -> Tensor:
        """Where lambda can rise no further."""
        return log_lambda >= self.start + self.limit - 1e-9


class AdaptiveRule(nn.Module):
    """The calibrated decoder's weight for the error reached so far, steered by the error still expected.

    lambda = exp(integral + c) / (2 max(lowest MSE, tolerance^2)), the lowest moving average of MSE so far. While the
    model learns, c = 0 and this is a sigma-VAE's weight times `lambda_start`, which cannot wind up. Once the tolerance
    was reached, or after a quarter of the run, c is the error expected at the end of the run, and the integral follows
    it. With e = log(MSE / tolerance^2), in eval mode on held-out clips as far as `Geco.steer` knows it, and a learning
    curve MSE ~ t^-p, whose p is measured over the last part of the run, c = e - p log(1 + remaining / t) within
    [-0.3, 0.1]: no weight is added for what learning will do by itself. Within 5 % of the tolerance lambda falls as
    fast as it rises. Above that, learning is the limit and not lambda, which rises no faster, and the integral 30-fold
    at most. The integral's rate fades with the learning rate; c does not.
    """

    lowest, highest = -math.log(3000.0), math.log(30.0)  # of the integral
    slowest, fastest = 2.5e-3, 6e-2  # of the integral, per step and unit of error; between them 100 / steps of the run
    downwards, upwards = 0.3, 0.1  # bounds of c
    window = 100  # steps that the moving average spans at most; before, 1/20 of the steps made

    def __init__(self, shape: tuple[int, ...], tolerance: float, lambda_start: float = 1.0):
        super().__init__()
        self.log_calibrated = -math.log(2 * tolerance**2)  # log lambda of a sigma-VAE with this error
        self.start = self.log_calibrated + math.log(lambda_start)  # of log lambda
        self.register_buffer("integral", torch.full(shape, math.log(lambda_start), dtype=torch.float64))
        for name in ("lowest_error", "past"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def weight(self, n: Tensor) -> Tensor:
        """Weight of the newest batch in the moving average of the error, after n updates."""
        return (20 / (n + 20).double()).clamp(min=1 / self.window)

    def move(self, log_lambda: Tensor, error: Tensor, gap: Tensor, n: Tensor, lr: float, remaining: int) -> Tensor:
        """log lambda after a step.

        Args:
            error: log(MSE / tolerance^2) of the moving average.
            gap: what has to be added to it to get the error of held-out clips in eval mode.
            n: updates before this one.
            lr, remaining: as in `Geco.after_step`.
        """
        first, t = n == 0, (n + 1).double()
        # Polynomial weights (s / t)^4: for MSE ~ t^-p this average of log MSE lies p / 4 above the present one.
        self.past.copy_(torch.where(first, error, self.past + 5 / (t + 4) * (error - self.past)))
        self.lowest_error.copy_(torch.where(first, error, torch.minimum(error, self.lowest_error)))
        power = 4 * (self.past - error)
        error = error + gap
        expected = error - power * torch.log1p(remaining / t)
        # Reached is judged on the training error, without the gap; after a quarter of the run it no longer matters.
        learning = (self.lowest_error > 0) & (3 * t < remaining)
        counted = torch.where(learning, 0.0, expected.clamp(-self.downwards, self.upwards))
        rate = (100 / (t + remaining)).clamp(self.slowest, self.fastest) * min(1.0, 5 * lr)
        self.integral.add_(rate * counted).clamp_(self.lowest, self.highest)
        return self.integral + counted + self.log_calibrated - self.lowest_error.clamp(min=0)

    def at_limit(self, log_lambda: Tensor) -> Tensor:
        """Where lambda can rise no further."""
        return self.integral >= self.highest - 1e-9


class Geco(Objective):
    """Minimise KL subject to MSE <= tolerance^2 (Rezende & Viola 2018, arXiv:1810.00597).

    loss = KL + lambda D C, C = MSE - tolerance^2 in value the moving average, in gradient this batch. lambda weighs the
    squared error summed over pixels, so it compares with 1 / (2 sigma^2). After each step a rule moves log lambda. With
    `n_frames` there is one C and one lambda for each of the F predicted frames (the vector form), so every frame meets
    the tolerance by itself.
    """

    def __init__(self, tolerance: float, rule: Callable[..., nn.Module] = AdaptiveRule, n_frames: int | None = None):
        """
        Args:
            tolerance: RMSE per pixel.
            rule: makes what moves lambda, from the shape of lambda and the tolerance.
            n_frames: F for one multiplier per frame, None for one in all.
        """
        super().__init__()
        shape = () if n_frames is None else (n_frames,)
        self.tolerance, self.rule = tolerance, rule(shape, tolerance)
        self.register_buffer("log_lambda", torch.full(shape, self.rule.start, dtype=torch.float64))
        self.register_buffer("constraint", torch.zeros(shape, dtype=torch.float64))  # moving average of C
        # log(MSE of held-out clips in eval mode / MSE of training), from the last validation; 0 before the first
        self.register_buffer("held_out_gap", torch.zeros(shape, dtype=torch.float64))
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

        average = self.constraint.lerp(now.detach(), self.rule.weight(self.n_updates))
        average = torch.where(count > 0, average, self.constraint)  # a frame masked out of this batch keeps its average
        if self.training:
            self._pending = (average, count > 0)
        return now, average, count

    def _penalty(self, constraint: Tensor, count: Tensor, terms: Terms) -> Tensor:
        """lambda D C per masked frame."""
        return (count * self.log_lambda.exp() * terms.dims * constraint).sum() / terms.n_frames()

    def _report(self, terms: Terms, average: Tensor, loss: Tensor) -> Numbers:
        """GECO has no sigma; its ELBO is quoted at the one that its own squared errors call for."""
        mse = (average + self.tolerance**2).clamp(min=1e-12)
        return report(terms, gaussian_log_prob(terms.sse, terms.dims, mse), loss)

    def status(self) -> Numbers:
        """lambda, the moving average of MSE - tolerance^2, and 2 lambda MSE: scalars, or (F,) with one per frame."""
        weight = self.log_lambda.exp()
        calibration = 2 * weight * (self.constraint + self.tolerance**2)
        return {"geco/lambda": weight, "geco/constraint": self.constraint, "geco/calibration": calibration}

    def after_step(self, lr: float = 1.0, remaining: int = 0) -> None:
        """Moves the average, then lambda; called once after each optimizer step.

        Args:
            lr: that step's learning rate, relative to the largest of the run.
            remaining: steps of the run still to come.
        """
        assert self._pending is not None, "after_step without a training-mode forward before it"
        average, seen = self._pending
        self.constraint.copy_(average)
        state = [self.log_lambda, *self.rule.buffers()]
        before = [buffer.clone() for buffer in state]
        gap = self.held_out_gap.clamp(-MAX_GAP, MAX_GAP)
        self.log_lambda.copy_(self.rule.move(self.log_lambda, self.error(), gap, self.n_updates, lr, remaining))
        for buffer, old in zip(state, before):
            buffer.copy_(torch.where(seen, buffer, old))
        self.n_updates += seen
        self._pending = None

    def error(self) -> Tensor:
        """log(MSE / tolerance^2) of the moving average."""
        return (self.constraint / self.tolerance**2 + 1).clamp(min=1e-12).log()

    def squared_error(self, terms: Terms) -> Tensor:
        """(B, F) squared errors that the constraint is about, summed over pixels."""
        return terms.sse.mean(0)

    def constrained_rmse(self, sse: Tensor, terms: Terms) -> Tensor:
        """RMSE per pixel of (V, F) squared errors, of all frames together or, with a multiplier for each, (F,)."""
        weight = terms.mask.to(sse).expand_as(sse)
        dim = 0 if self.log_lambda.ndim else (0, 1)
        return ((weight * sse).sum(dim) / (weight.sum(dim).clamp(min=1) * terms.dims)).sqrt()

    def held_out(self, terms: Terms) -> dict[str, float | list[float]]:
        """`constrained_rmse` of the held-out clips."""
        return {"valid/constraint_rmse": self.constrained_rmse(self.squared_error(terms), terms).tolist()}

    def merit(self, numbers: dict) -> float:
        """What best.pt is chosen by, larger is better: the lowest KL within the tolerance, else the lowest RMSE."""
        worst = torch.as_tensor(numbers["valid/constraint_rmse"]).max().item() / self.tolerance
        return -numbers["valid/kl_nats_per_frame"] if worst <= MET else -1e6 * worst

    def verdict(self) -> str:
        """`met` (RMSE within 5 % of the tolerance or below), `infeasible` (lambda at its upper limit), or `not yet`."""
        error = self._seen(self.error() + self.held_out_gap)
        if (error <= NEAR).all():
            return "met"
        at_limit = self._seen(self.rule.at_limit(self.log_lambda))
        return "infeasible" if (at_limit & (error > 0)).any() else "not yet"

    def steer(self, numbers: dict) -> None:
        """Note how far the error of held-out clips in eval mode lies from that of training.

        Until the next validation the adaptive rule adds this gap, at most `MAX_GAP`, to the training error.
        """
        squared = torch.as_tensor(
            numbers["valid/constraint_rmse"], dtype=torch.float64, device=self.held_out_gap.device
        ).square()
        gap = (squared / (self.constraint + self.tolerance**2)).log()
        self.held_out_gap.copy_(torch.where((self.n_updates > 0) & gap.isfinite(), gap, self.held_out_gap))

    def rmse(self) -> Tensor:
        """Per-pixel error that the moving average amounts to, of the worst frame with one multiplier per frame."""
        return (self._seen(self.constraint) + self.tolerance**2).clamp(min=0).sqrt().max()

    def held_out_rmse(self) -> Tensor:
        """`rmse`, in eval mode on held-out clips: exact right after a validation, an estimate between two."""
        return self.tolerance * (0.5 * self._seen(self.error() + self.held_out_gap)).exp().max()

    def _seen(self, values: Tensor) -> Tensor:
        """Drop the entries of frames that no loss has used yet, unless that is all of them."""
        seen = self.n_updates > 0
        return values[seen] if seen.any() else values

    def warnings(self) -> list[str]:
        """Says so where no lambda reaches the tolerance."""
        if self.verdict() != "infeasible":
            return []
        return [
            f"geco: lambda is at its limit and the RMSE still above {self.tolerance}: "
            "infeasible at this capacity; raise --objective.tolerance or the model's sizes"
        ]

    def facts(self) -> dict[str, object]:
        """How the constraint ended, under `geco`."""
        status = {name.split("/")[1]: value.tolist() for name, value in self.status().items()}
        return {
            "geco": {
                "verdict": self.verdict(),
                "tolerance": self.tolerance,
                "rmse": self.rmse().item(),
                "held_out_rmse": self.held_out_rmse().item(),
                **status,
                "summary": self.summary(),
            }
        }

    def summary(self) -> str:
        """The verdict in words, and how far from a calibrated decoder the solution is."""
        calibration = self._seen(self.status()["geco/calibration"]).max().item()
        words = {"met": "met", "not yet": "not yet met", "infeasible": "infeasible at this capacity"}[self.verdict()]
        if (self._seen(self.error() + self.held_out_gap) < -NEAR).all():
            words = "met with room to spare"
        elif self.held_out_rmse() > self.tolerance and self.verdict() == "met":
            words = "met within 5 %"
        return (
            f"RMSE {self.held_out_rmse().item():.4f} on held-out clips, {self.rmse().item():.4f} in training, for a "
            f"tolerance of {self.tolerance}: {words}; 2 lambda MSE is "
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
        value, log_w, weighted = self._bound(terms)
        loss = -value.sum() / terms.n_frames()
        chosen = weighted if self.constraint_on == "iw" else terms.sse.detach().mean(0)
        now, average, count = self._constraint(terms, chosen)
        loss = loss + self._penalty(average - now, count, terms)  # a constant: as GECO's, the value is the average's
        return loss, self._report(terms, average, loss) | {
            "rmse_iw": (masked_mean(weighted, terms.mask) / terms.dims).sqrt(),
            "effective_samples": effective_samples(log_w.detach()).mean(),
        }

    def _bound(self, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
        """The bound (B,), log-weights (K, B) and the squared error under the weights (B, F), without a gradient."""
        excess = terms.sse - terms.dims * self.tolerance**2  # (K, B, F) nats at lambda = 1
        bound = coherent_bound if self.form == "coherent" else additive_bound
        value, log_w = bound(terms.log_ratio, excess, self.log_lambda.exp(), terms.mask)
        return value, log_w, (log_w.detach().softmax(0)[..., None] * terms.sse.detach()).sum(0)

    def squared_error(self, terms: Terms) -> Tensor:
        """(B, F) squared errors that the constraint is about, summed over pixels."""
        return self._bound(terms)[2] if self.constraint_on == "iw" else super().squared_error(terms)

    def merit(self, numbers: dict) -> float:
        """What best.pt is chosen by, larger is better: the importance-weighted bound on held-out clips."""
        return held_out_bound(numbers, "iwae")


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
