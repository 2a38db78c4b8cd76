"""Model families by name.

A new family is a module with a `ModelConfig` and a `VideoModel`, a line of FAMILIES here, a preset that selects it, and
its tiny sizes in tests/families.py. Nothing else has to know it: the preset decides which `--model` flags exist.
"""

import functools
import operator
from typing import Annotated

from pydantic import Field

from seqvae.likelihoods import Likelihood
from seqvae.models.base import ModelConfig, Prediction, VideoModel
from seqvae.models.image import ImageConfig, ImageVAE
from seqvae.models.svg import SVG, SvgConfig
from seqvae.models.transport import Transport, TransportConfig

FAMILIES: dict[str, tuple[type[ModelConfig], type[VideoModel]]] = {
    "svg": (SvgConfig, SVG),
    "transport": (TransportConfig, Transport),
    "image": (ImageConfig, ImageVAE),
}
# The type of a run's model settings: those of one family, which JSON names.
_any_config = functools.reduce(operator.or_, (config for config, _ in FAMILIES.values()))
AnyModelConfig = Annotated[_any_config, Field(discriminator="family")]

__all__ = [
    "FAMILIES",
    "SVG",
    "AnyModelConfig",
    "ImageConfig",
    "ImageVAE",
    "ModelConfig",
    "Prediction",
    "SvgConfig",
    "Transport",
    "TransportConfig",
    "VideoModel",
    "build_model",
]


def build_model(cfg: ModelConfig, likelihood: Likelihood, *, channels: int, image_size: int, n_past: int) -> VideoModel:
    """The model of the config's family, freshly initialised."""
    _, model = FAMILIES[cfg.family]
    return model(cfg, likelihood, channels=channels, image_size=image_size, n_past=n_past)
