"""Training objectives by name: `build_objective(cfg)`."""

from functools import partial

from seqvae.config.objectives import ElboConfig, GecoConfig, IwaeConfig, ObjectiveConfig
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
    "build_objective",
    "iwae_bound",
    "masked_mean",
    "sum_frames",
]


def beta_from_svg(svg_beta: float, dims: int, sigma: float = 1.0) -> float:
    """SVG's beta, on pixel-mean squared error, as a weight of the KL in nats beside -log p of a Gaussian.

    MSE + b KL, times D / (2 sigma^2), is SSE / (2 sigma^2) + b D / (2 sigma^2) KL.
    """
    return svg_beta * dims / (2 * sigma**2)


def build_objective(cfg: ObjectiveConfig, *, n_frames: int, dims: int, sigma: float = 1.0) -> Objective:
    """The objective that cfg describes.

    Args:
        cfg: settings of an objective.
        n_frames: F, predicted frames of a training clip.
        dims: D = C H W.
        sigma: of the fixed-sigma likelihood, for converting svg_beta.
    """
    if isinstance(cfg, ElboConfig):
        beta = cfg.beta if cfg.svg_beta is None else beta_from_svg(cfg.svg_beta, dims, sigma)
        return Elbo(beta, kl_warmup=cfg.kl_warmup, kl_cycle=cfg.kl_cycle, free_bits=cfg.free_bits)
    if isinstance(cfg, IwaeConfig):
        return Iwae()
    constraint = dict(tolerance=cfg.tolerance, rule=_rule(cfg), n_frames=n_frames if cfg.per_frame else None)
    if cfg.name == "geco":
        return Geco(**constraint)
    return GecoIwae(**constraint, form=cfg.form, constraint_on=cfg.constraint_on)


def _rule(cfg: GecoConfig) -> partial:
    """How lambda moves."""
    if cfg.rule == "adaptive":
        return partial(AdaptiveRule, lambda_start=cfg.lambda_start)
    calibrated = 1 / (2 * cfg.tolerance**2)
    lambda_init = calibrated if cfg.lambda_init is None else cfg.lambda_init
    return partial(PaperRule, decay=cfg.decay, step_size=cfg.step_size, lambda_init=lambda_init)
