"""Model families by name.

docs/extending.md lists what a new family needs.
"""

from seqvae.config.models import ModelConfig
from seqvae.likelihoods import Likelihood
from seqvae.models.base import Prediction, VideoModel
from seqvae.models.image import ImageVAE
from seqvae.models.scene import Scene
from seqvae.models.svg import SVG
from seqvae.models.transport import Transport

FAMILIES: dict[str, type[VideoModel]] = {"svg": SVG, "transport": Transport, "scene": Scene, "image": ImageVAE}

__all__ = ["FAMILIES", "SVG", "ImageVAE", "Prediction", "Scene", "Transport", "VideoModel", "build_model"]


def build_model(cfg: ModelConfig, likelihood: Likelihood, *, channels: int, image_size: int, n_past: int) -> VideoModel:
    """The model of the config's family, freshly initialised."""
    return FAMILIES[cfg.family](cfg, likelihood, channels=channels, image_size=image_size, n_past=n_past)
