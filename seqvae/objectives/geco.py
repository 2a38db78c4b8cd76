"""What training minimises, from per-frame log-likelihoods, KLs and squared errors.

Shapes: B videos, F = T - 1 predicted frames. Units: nats per frame, averaged once over the masked frames of the batch;
squared errors are summed over the D = C H W pixels in [0, 1]. State lives in float64 buffers.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple, get_args

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from seqvae.likelihoods.gaussian import gaussian_log_prob

ObjectiveName = Literal["elbo", "geco"]
# The fields each objective reads, with their defaults; REQUIRED has none. Anything else that is set is refused.
REQUIRED = object()
FIELDS_OF: dict[str, dict[str, object]] = {
    "elbo": {"beta": 1.0, "svg_beta": None},
    "geco": {
        "tolerance": REQUIRED,
        "decay": 0.99,
        "step_size": 1e-3,
        "per_frame": False,
        "lambda_init": None,
        "lambda_warmup": 0,
    },
}
LAMBDA_RANGE = 1e6  # log lambda stays within +-ln(1e6) of its start: the anti-windup
MIN_TOLERANCE = 1e-6
NEAR = 0.1025  # a moving average of MSE within 10.25 % of tolerance^2 is an RMSE within 5 % of the tolerance


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """How rate (KL) and distortion (reconstruction) are weighed. Unset fields take their objective's default."""

    name: ObjectiveName = "elbo"  # elbo: -log p + beta KL; geco: KL subject to reconstruction RMSE <= tolerance
    loss_on: Literal["all", "future"] = "all"  # frames that count: all predicted ones (as SVG), or those after n_past
    beta: float | None = None  # elbo: weight of the KL in nats, 1 unless set; other than 1 only with a fixed sigma
    svg_beta: float | None = None  # elbo: SVG's beta on pixel-mean squared error (1e-4 in the paper), instead of beta
    tolerance: float | None = None  # geco: per-pixel RMSE to reach, pixels in [0, 1]; no default, it decides the result
    decay: float | None = None  # geco: of the constraint's moving average, per step; 0.99
    step_size: float | None = None  # geco: largest change of log(lambda) per step; 1e-3. Keep it <= 0.3 (1 - decay)
    per_frame: bool | None = None  # geco: one multiplier per predicted frame instead of one for all; False
    lambda_init: float | None = None  # geco: first weight of the squared error summed over pixels; 1 / (2 tolerance^2)
    lambda_warmup: int | None = None  # geco: steps for which lambda is held at its first value; 0

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        used = FIELDS_OF[self.name]
        for field in fields(self):
            if field.name in ("name", "loss_on"):
                continue
            flag, value = f"objective.{field.name.replace('_', '-')}", getattr(self, field.name)
            if field.name not in used and value is not None:
                owner = next(name for name, names in FIELDS_OF.items() if field.name in names)
                raise ValueError(f"{flag} is not used by objective {self.name} but by {owner}; drop it (or pass None)")
            if used.get(field.name) is REQUIRED and value is None:
                raise ValueError(f"{flag} is required by objective {self.name}: there is no value that suits all data")
        for name in ("beta", "svg_beta", "tolerance", "step_size", "lambda_init"):
            value = getattr(self, name)
            minimum_allowed = name in ("beta", "svg_beta")
            if value is not None and not (value > 0 or (minimum_allowed and value == 0)) or value == math.inf:
                bound = ">= 0" if minimum_allowed else "> 0"
                raise ValueError(f"objective.{name.replace('_', '-')} must be finite and {bound}, got {value}")
        if self.tolerance is not None and self.tolerance < MIN_TOLERANCE:
            raise ValueError(f"objective.tolerance is {self.tolerance}; an RMSE below {MIN_TOLERANCE} is no picture's")
        if self.beta is not None and self.svg_beta is not None:
            raise ValueError("objective.beta and objective.svg-beta are two units of one weight; give one of them")
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"objective.decay must be in [0, 1), got {self.decay}")
        if self.lambda_warmup is not None and self.lambda_warmup < 0:
            raise ValueError(f"objective.lambda-warmup must be >= 0 steps, got {self.lambda_warmup}")

    def resolved(self) -> "ObjectiveConfig":
        """The same with this objective's defaults filled in; beta and svg_beta stay as given."""
        defaults = {name: value for name, value in FIELDS_OF[self.name].items() if value is not REQUIRED}
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.svg_beta is not None:
            del unset["beta"]
        if self.name == "geco" and "lambda_init" in unset:
            unset["lambda_init"] = 1 / (2 * self.tolerance**2)
        return replace(self, **unset)


class Terms(NamedTuple):
    """Per-frame terms of a batch, (B, F) float64 each, and what they were summed over."""

    log_px: Tensor  # nats, of the model's likelihood
    kl: Tensor  # nats, >= 0
    sse: Tensor  # squared error of the mean, summed over pixels
    mask: Tensor  # (F,) or (B, F): 1 for the frames that count
    dims: int  # D = C H W


Numbers = dict[str, Tensor]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, F) values over the frames whose mask is 1: the one place where terms are averaged."""
    weight = mask.to(values).expand_as(values)
    return torch.where(weight > 0, weight * values, 0.0).sum() / weight.sum()


def beta_from_svg(svg_beta: float, dims: int, sigma: float = 1.0) -> float:
    """SVG's beta, on pixel-mean squared error, as a weight of the KL in nats beside -log p of a Gaussian.

    MSE + b KL, times D / (2 sigma^2), is SSE / (2 sigma^2) + b D / (2 sigma^2) KL.
    """
    return svg_beta * dims / (2 * sigma**2)


def bits_per_dim(elbo: Tensor | float, dims: int) -> Tensor | float:
    """Bound in nats per frame -> bits per pixel and channel, for pixels k / 255: a density's, no bound on the bytes."""
    return -elbo / (dims * math.log(2)) + math.log2(255)


def report(terms: Terms, log_px: Tensor, loss: Tensor) -> Numbers:
    """The numbers that every objective logs, detached; `log_px` (B, F) is the one that the ELBO is reported with."""
    kl, elbo = masked_mean(terms.kl, terms.mask), masked_mean(log_px - terms.kl, terms.mask)
    numbers = {
        "loss": loss,
        "rmse": (masked_mean(terms.sse, terms.mask) / terms.dims).sqrt(),
        "kl_nats_per_frame": kl,
        "elbo_nats_per_frame": elbo,
        "bits_per_dim": bits_per_dim(elbo, terms.dims),
    }
    return {name: value.detach() for name, value in numbers.items()}


class Elbo(nn.Module):
    """-log p(x | z) + beta KL. beta = 1 is minus the ELBO; any other beta is not a bound (Higgins et al. 2017)."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, terms: Terms) -> tuple[Tensor, Numbers]:
        """Returns the loss, nats per frame, and the numbers to log."""
        loss = masked_mean(self.beta * terms.kl - terms.log_px, terms.mask)
        return loss, report(terms, terms.log_px, loss)

    def status(self) -> Numbers:
        """Nothing: it has no state."""
        return {}

    def after_step(self) -> None:
        pass


class Geco(nn.Module):
    """Minimise KL subject to MSE <= tolerance^2 (Rezende & Viola 2018, arXiv:1810.00597, Algorithm 1).

    loss = KL + lambda D C, C = MSE - tolerance^2 in value the moving average, in gradient this batch. lambda weighs the
    squared error summed over pixels, so it compares with 1 / (2 sigma^2). After each step log lambda moves by
    step_size * clip(C / tolerance^2, -1, 1): up while the constraint is violated. With `per_frame` there is one C and
    one lambda for each of the F predicted frames (the vector form), so every frame meets the tolerance by itself.
    """

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
        per_frame = self.log_lambda.ndim == 1
        weight = terms.mask.to(terms.sse).expand_as(terms.sse)
        count = weight.sum(0) if per_frame else weight.sum()
        violation = torch.where(weight > 0, weight * (terms.sse / terms.dims - self.tolerance**2), 0.0)
        now = (violation.sum(0) if per_frame else violation.sum()) / count.clamp(min=1)

        average = self.decay * self.constraint + (1 - self.decay) * now.detach()
        average = torch.where(self.n_updates == 0, now.detach(), average)
        average = torch.where(count > 0, average, self.constraint)  # a frame nobody saw stays where it was
        if self.training:
            self._pending = (average, count > 0)

        straight_through = now + (average - now).detach()  # value of the average, gradient of this batch
        penalty = (count * self.log_lambda.exp() * terms.dims * straight_through).sum() / weight.sum()
        loss = masked_mean(terms.kl, terms.mask) + penalty
        # GECO has no sigma; its ELBO is quoted at the one that its own squared errors call for.
        mse = (average + self.tolerance**2).clamp(min=1e-12)
        return loss, report(terms, gaussian_log_prob(terms.sse, terms.dims, mse), loss)

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
        if (self.constraint <= NEAR * self.tolerance**2).all():
            return "met"
        at_limit = self.log_lambda >= self.center + math.log(LAMBDA_RANGE) - 1e-9
        return "infeasible" if (at_limit & (self.constraint > 0)).any() else "not yet"


def build_objective(cfg: ObjectiveConfig, *, n_frames: int, dims: int, sigma: float = 1.0) -> Elbo | Geco:
    """
    Args:
        cfg: checked and resolved settings.
        n_frames: F, predicted frames of a training clip.
        dims: D = C H W.
        sigma: of the fixed-sigma likelihood, for converting svg_beta.
    """
    cfg = cfg.resolved()
    if cfg.name == "elbo":
        return Elbo(cfg.beta if cfg.svg_beta is None else beta_from_svg(cfg.svg_beta, dims, sigma))
    return Geco(
        tolerance=cfg.tolerance,
        decay=cfg.decay,
        step_size=cfg.step_size,
        lambda_init=cfg.lambda_init,
        lambda_warmup=cfg.lambda_warmup,
        n_frames=n_frames if cfg.per_frame else None,
    )


assert tuple(FIELDS_OF) == get_args(ObjectiveName)
