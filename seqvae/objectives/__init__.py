"""Training objectives and their settings: `build_objective(cfg)`."""

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal, get_args

from pydantic import ConfigDict

from seqvae.objectives.base import Numbers, Objective, Terms, bits_per_dim, iwae_bound, masked_mean, sum_frames
from seqvae.objectives.elbo import Elbo, Iwae
from seqvae.objectives.geco import AdaptiveRule, Geco, GecoIwae, PaperRule

__all__ = [
    "Elbo",
    "Geco",
    "GecoIwae",
    "Iwae",
    "Numbers",
    "Objective",
    "Terms",
    "bits_per_dim",
    "iwae_bound",
    "masked_mean",
    "sum_frames",
]

ObjectiveName = Literal["elbo", "geco", "iwae", "geco-iwae"]
# The fields each objective reads, with their defaults; REQUIRED has none. Anything else that is set is refused.
REQUIRED = object()
_GECO = {
    "tolerance": REQUIRED,
    "per_frame": False,
    "rule": "adaptive",
    "lambda_start": None,
    "decay": None,
    "step_size": None,
    "lambda_init": None,
}
ADAPTIVE = {"lambda_start": 1.0}  # read with objective.rule adaptive alone
PAPER = {"decay": 0.99, "step_size": 1e-3}  # read with objective.rule paper alone, as is lambda_init
FIELDS_OF: dict[str, dict[str, object]] = {
    "elbo": {"beta": 1.0, "svg_beta": None, "kl_warmup": 0, "kl_cycle": 0, "free_bits": 0.0},
    "geco": _GECO,
    "iwae": {"n_importance": 5},
    "geco-iwae": _GECO | {"n_importance": 5, "form": "coherent", "constraint_on": "iw"},
}
MIN_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """How rate (KL) and distortion (reconstruction) are weighed. Unset fields take their objective's default."""

    name: ObjectiveName = "elbo"  # elbo: -log p + beta KL; geco: KL subject to RMSE <= tolerance; iwae; geco-iwae
    loss_on: Literal["all", "future"] = "all"  # frames that count: all predicted ones (as SVG), or those after n_past
    beta: float | None = None  # elbo: weight of the KL in nats, 1 unless set; other than 1 only with a fixed sigma
    svg_beta: float | None = None  # elbo: SVG's beta on pixel-mean squared error (1e-4 in the paper), instead of beta
    kl_warmup: int | None = None  # elbo: steps over which the KL's weight rises from 0 to beta (no bound before); 0
    kl_cycle: int | None = None  # elbo: steps of a cycle, in whose first half that weight rises from 0 to beta; 0: none
    free_bits: float | None = None  # elbo: nats per latent and frame that cost nothing less (no bound); 0
    tolerance: float | None = None  # geco: per-pixel RMSE to reach, pixels in [0, 1]; no default, it decides the result
    per_frame: bool | None = None  # geco: one multiplier per predicted frame instead of one for all; False
    rule: Literal["adaptive", "paper"] | None = None  # geco: how lambda moves (docs/methods.md); adaptive
    lambda_start: float | None = None  # geco, rule adaptive: first lambda over a calibrated decoder's weight; 1
    decay: float | None = None  # geco, rule paper: of the constraint's moving average, per step; 0.99
    step_size: float | None = None  # geco, rule paper: largest change of log(lambda) per step; 1e-3
    lambda_init: float | None = None  # geco, rule paper: first weight of the summed squared error; 1 / (2 tolerance^2)
    n_importance: int | None = None  # iwae, geco-iwae: samples per video, K; 5
    form: Literal["coherent", "additive"] | None = None  # geco-iwae: how the two are joined (docs/methods.md); coherent
    constraint_on: Literal["iw", "q"] | None = (
        None  # geco-iwae: error that moves lambda, weighted or plain samples'; iw
    )

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        used = FIELDS_OF[self.name]
        for field in fields(self):
            if field.name in ("name", "loss_on"):
                continue
            flag, value = _flag(field.name), getattr(self, field.name)
            if field.name not in used and value is not None:
                owners = " and ".join(name for name, names in FIELDS_OF.items() if field.name in names)
                raise ValueError(f"{flag} is not used by objective {self.name} but by {owners}; drop it (or pass None)")
            if used.get(field.name) is REQUIRED and value is None:
                raise ValueError(f"{flag} is required by objective {self.name}: there is no value that suits all data")
        if "geco" in self.name:
            rule, others = ("adaptive", ADAPTIVE) if self.rule == "paper" else ("paper", (*PAPER, "lambda_init"))
            for name in others:
                if getattr(self, name) is not None:
                    raise ValueError(f"{_flag(name)} is used by objective.rule {rule} alone; drop it (or pass None)")
        for name in ("tolerance", "step_size", "lambda_init", "lambda_start"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{_flag(name)} must be finite and > 0, got {value}")
        for name in ("beta", "svg_beta", "free_bits", "kl_warmup", "kl_cycle"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{_flag(name)} must be finite and >= 0, got {value}")
        if self.tolerance is not None and self.tolerance < MIN_TOLERANCE:
            raise ValueError(f"objective.tolerance is {self.tolerance}; an RMSE below {MIN_TOLERANCE} is no picture's")
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"objective.decay must be in [0, 1), got {self.decay}")
        if self.n_importance is not None and self.n_importance < 1:
            raise ValueError(f"objective.n-importance must be >= 1 sample, got {self.n_importance}")
        if self.beta is not None and self.svg_beta is not None:
            raise ValueError("objective.beta and objective.svg-beta are two units of one weight; give one of them")
        if self.kl_cycle == 1:
            raise ValueError("objective.kl-cycle must be 0 (none) or >= 2 steps: in a cycle of 1 the KL never counts")
        if self.kl_warmup and self.kl_cycle:
            raise ValueError(
                "objective.kl-warmup and objective.kl-cycle are two schedules of one weight; give one of them"
            )

    def resolved(self) -> "ObjectiveConfig":
        """The same with this objective's defaults filled in; beta and svg_beta stay as given."""
        defaults = {name: value for name, value in FIELDS_OF[self.name].items() if value is not REQUIRED}
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.svg_beta is not None:
            del unset["beta"]
        if self.rule == "paper":
            unset |= PAPER | {"lambda_init": 1 / (2 * self.tolerance**2)}
        elif self.tolerance is not None:
            unset |= ADAPTIVE
        unset = {name: value for name, value in unset.items() if getattr(self, name) is None}
        return replace(self, **unset)


def _flag(field: str) -> str:
    return f"objective.{field.replace('_', '-')}"


def beta_from_svg(svg_beta: float, dims: int, sigma: float = 1.0) -> float:
    """SVG's beta, on pixel-mean squared error, as a weight of the KL in nats beside -log p of a Gaussian.

    MSE + b KL, times D / (2 sigma^2), is SSE / (2 sigma^2) + b D / (2 sigma^2) KL.
    """
    return svg_beta * dims / (2 * sigma**2)


def build_objective(cfg: ObjectiveConfig, *, n_frames: int, dims: int, sigma: float = 1.0) -> Objective:
    """The objective that cfg describes.

    Args:
        cfg: checked settings.
        n_frames: F, predicted frames of a training clip.
        dims: D = C H W.
        sigma: of the fixed-sigma likelihood, for converting svg_beta.
    """
    cfg = cfg.resolved()
    if cfg.name == "elbo":
        beta = cfg.beta if cfg.svg_beta is None else beta_from_svg(cfg.svg_beta, dims, sigma)
        return Elbo(beta, kl_warmup=cfg.kl_warmup, kl_cycle=cfg.kl_cycle, free_bits=cfg.free_bits)
    if cfg.name == "iwae":
        return Iwae()
    rule = partial(AdaptiveRule, lambda_start=cfg.lambda_start)
    if cfg.rule == "paper":
        rule = partial(PaperRule, decay=cfg.decay, step_size=cfg.step_size, lambda_init=cfg.lambda_init)
    constraint = dict(tolerance=cfg.tolerance, rule=rule, n_frames=n_frames if cfg.per_frame else None)
    if cfg.name == "geco":
        return Geco(**constraint)
    return GecoIwae(**constraint, form=cfg.form, constraint_on=cfg.constraint_on)


assert tuple(FIELDS_OF) == get_args(ObjectiveName)
