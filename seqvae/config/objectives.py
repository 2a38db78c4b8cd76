"""How rate (KL) and distortion (reconstruction) are weighed: one variant per objective."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from seqvae.config.base import Settings, union, variants
from seqvae.config.likelihoods import LikelihoodConfig
from seqvae.config.models import ModelConfig

MIN_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings):
    """What every objective has."""

    group = "objective"

    # elbo: -log p + beta KL; geco: KL subject to RMSE <= tolerance; iwae: the importance-weighted
    # bound; geco-iwae: both
    name: str
    loss_on: Literal["all", "future"] = "all"  # frames that count: all predicted ones (as SVG), or those after n_past

    n_importance: ClassVar[int] = 1  # samples per video, K

    def announcement(self, dims: int) -> list[str]:
        """Lines to print before training; `dims` are the pixels and channels of a frame."""
        return []

    def check_with(self, likelihood: LikelihoodConfig, model: ModelConfig) -> None:
        """ValueError where the objective does not go with this decoder or model."""
        if not model.has_latent:
            raise ValueError(f"objective {self.name} weighs latents, and this model has none; use objective.name elbo")


@dataclass(frozen=True, kw_only=True)
class ElboConfig(ObjectiveConfig):
    """-log p(x | z) + beta KL."""

    name: Literal["elbo"] = "elbo"
    beta: float = 1.0  # weight of the KL in nats; other than 1 only with a fixed sigma
    svg_beta: float | None = None  # SVG's beta on pixel-mean squared error (1e-4 in the paper), instead of beta
    kl_warmup: int = 0  # steps over which the KL's weight rises from 0 to beta (no bound before)
    kl_cycle: int = 0  # steps of a cycle, in whose first half that weight rises from 0 to beta; 0: none
    free_bits: float = 0.0  # least that the KL of each latent costs, nats per frame (above 0: no bound)

    def __post_init__(self) -> None:
        names = ("beta", "svg_beta", "free_bits", "kl_warmup", "kl_cycle")
        self.require("finite and >= 0", lambda value: 0 <= value < math.inf, *names)
        if self.svg_beta is not None and self.beta != 1:
            raise ValueError("objective.beta and objective.svg-beta are two units of one weight; give one of them")
        if self.kl_cycle == 1:
            raise ValueError("objective.kl-cycle must be 0 (none) or >= 2 steps: in a cycle of 1 the KL never counts")
        if self.kl_warmup and self.kl_cycle:
            raise ValueError(
                "objective.kl-warmup and objective.kl-cycle are two schedules of one weight; give one of them"
            )

    def check_with(self, likelihood: LikelihoodConfig, model: ModelConfig) -> None:
        if not likelihood.fixed_sigma:
            why = f"goes with likelihood.name gaussian: {likelihood.name} calibrates itself, its KL weighs 1"
            self.refuse(why, "beta", "svg_beta")
        if not model.has_latent:
            why = "weighs a KL, and this model has no latent"
            self.refuse(why, "beta", "svg_beta", "kl_warmup", "kl_cycle", "free_bits")


@dataclass(frozen=True, kw_only=True)
class IwaeConfig(ObjectiveConfig):
    """Minus the importance-weighted bound."""

    name: Literal["iwae"] = "iwae"
    n_importance: int = 5  # samples per video, K

    def __post_init__(self) -> None:
        self.require(">= 1 sample", lambda value: value >= 1, "n_importance")

    def check_with(self, likelihood: LikelihoodConfig, model: ModelConfig) -> None:
        super().check_with(likelihood, model)
        if likelihood.analytic:
            raise ValueError(
                f"objective iwae weighs samples under one density, and {likelihood.name} takes its sigma from the "
                "samples themselves; use likelihood.name shared-sigma"
            )


@dataclass(frozen=True, kw_only=True)
class GecoConfig(ObjectiveConfig):
    """KL subject to a reconstruction error of at most `tolerance`."""

    name: Literal["geco"] = "geco"
    tolerance: float  # per-pixel RMSE to reach, pixels in [0, 1]; no default, it decides the result
    per_frame: bool = False  # one multiplier per predicted frame instead of one for all
    rule: Literal["adaptive", "paper"] = "adaptive"  # how lambda moves (docs/methods.md)
    lambda_start: float = 1.0  # rule adaptive: first lambda, as a multiple of a calibrated decoder's weight
    decay: float = 0.99  # rule paper: decay of the constraint's moving average, per step
    step_size: float = 1e-3  # rule paper: largest change of log(lambda) per step
    lambda_init: float | None = None  # rule paper: first weight of the summed error; None: 1 / (2 tolerance^2)

    def __post_init__(self) -> None:
        positive = ("tolerance", "step_size", "lambda_init", "lambda_start")
        self.require("finite and > 0", lambda value: 0 < value < math.inf, *positive)
        if self.tolerance < MIN_TOLERANCE:
            raise ValueError(f"objective.tolerance is {self.tolerance}; expected at least {MIN_TOLERANCE}")
        self.require("in [0, 1)", lambda value: 0 <= value < 1, "decay")
        if self.rule == "paper":
            self.refuse("is used by objective.rule adaptive alone", "lambda_start")
        else:
            self.refuse("is used by objective.rule paper alone", "decay", "step_size", "lambda_init")

    def announcement(self, dims: int) -> list[str]:
        squared = self.tolerance**2
        return [
            f"{self.name}: tolerance {self.tolerance} RMSE per pixel, squared {squared:.3g}, "
            f"summed over {dims} pixels {dims * squared:.4g}; calibrated lambda there {1 / (2 * squared):.4g}"
        ]

    def check_with(self, likelihood: LikelihoodConfig, model: ModelConfig) -> None:
        super().check_with(likelihood, model)
        if not likelihood.fixed_sigma:
            raise ValueError(
                f"objective {self.name} bounds a squared error: use likelihood.name gaussian, not {likelihood.name}"
            )
        unused = f"is not used by objective {self.name}"
        likelihood.refuse(f"{unused}, its multiplier takes sigma's place", "sigma")
        likelihood.refuse(f"{unused}, it has no density", "dequantise")


@dataclass(frozen=True, kw_only=True)
class GecoIwaeConfig(GecoConfig):
    """GECO over several importance samples."""

    name: Literal["geco-iwae"] = "geco-iwae"
    n_importance: int = 5  # samples per video, K
    form: Literal["coherent", "additive"] = "coherent"  # how GECO and IWAE are joined (docs/methods.md)
    constraint_on: Literal["iw", "q"] = "iw"  # error that moves lambda: under the samples' weights, or without them

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(">= 1 sample", lambda value: value >= 1, "n_importance")


_CLASSES = (ElboConfig, GecoConfig, IwaeConfig, GecoIwaeConfig)
BY_NAME = variants("name", *_CLASSES)
AnyObjectiveConfig = union("name", *_CLASSES)
