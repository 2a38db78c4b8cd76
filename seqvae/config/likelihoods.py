"""Settings of the decoder distributions: one variant per set of settings."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from seqvae.config.base import Settings, union, variants


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(Settings):
    """What every decoder has."""

    group = "likelihood"

    # the decoder: gaussian (fixed sigma), shared-sigma (learned), optimal-sigma (the sigma-VAE),
    # optimal-sigma-per-image, per-image-sigma, per-pixel-sigma, bernoulli, categorical, bitwise or logistic-mixture
    name: str

    fixed_sigma: ClassVar[bool] = False  # whether sigma is chosen by hand, so that other weights of the KL make sense
    analytic: ClassVar[bool] = False  # whether sigma is the measured error itself
    dequantise: ClassVar[bool] = False

    def options(self) -> dict[str, float]:
        """What `build_likelihood` is given beside name and channels; dequantising is the caller's."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in ("name", "dequantise")}


@dataclass(frozen=True, kw_only=True)
class DensityConfig(LikelihoodConfig):
    """A density of pixels in [0, 1]."""

    dequantise: bool = False  # score byte k as (k + u) / 256, u uniform, so that bits per dim bound those of the bytes


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(DensityConfig):
    """One sigma, chosen by hand: squared error with a weight."""

    fixed_sigma = True

    name: Literal["gaussian"] = "gaussian"
    sigma: float = 1.0  # pixels in [0, 1]

    def __post_init__(self) -> None:
        self.require("finite and > 0", lambda value: 0 < value < math.inf, "sigma")


@dataclass(frozen=True, kw_only=True)
class SharedSigmaConfig(DensityConfig):
    """One sigma, learned."""

    name: Literal["shared-sigma"] = "shared-sigma"
    sigma: float = 1.0  # where it starts, pixels in [0, 1]

    def __post_init__(self) -> None:
        self.require("finite and > 0", lambda value: 0 < value < math.inf, "sigma")


@dataclass(frozen=True, kw_only=True)
class OptimalSigmaConfig(DensityConfig):
    """Sigma is the error of the batch, or of each image: the sigma-VAE."""

    analytic = True

    name: Literal["optimal-sigma", "optimal-sigma-per-image"] = "optimal-sigma"
    soft_clip: bool = False  # the authors' soft floor of sigma in place of the hard one


@dataclass(frozen=True, kw_only=True)
class PredictedSigmaConfig(DensityConfig):
    """The decoder predicts sigma for each image or pixel."""

    name: Literal["per-image-sigma", "per-pixel-sigma"] = "per-image-sigma"


@dataclass(frozen=True, kw_only=True)
class DiscreteConfig(LikelihoodConfig):
    """A probability for each of the 256 bytes, or for their bits; bernoulli: black against white."""

    name: Literal["bernoulli", "categorical", "bitwise"] = "bernoulli"


@dataclass(frozen=True, kw_only=True)
class LogisticMixtureConfig(LikelihoodConfig):
    """A mixture of logistic densities, integrated over each byte."""

    name: Literal["logistic-mixture"] = "logistic-mixture"
    mixtures: int = 10  # components per pixel and channel

    def __post_init__(self) -> None:
        self.require(">= 1", lambda value: value >= 1, "mixtures")


_CLASSES = (
    *(GaussianConfig, SharedSigmaConfig, OptimalSigmaConfig),
    *(PredictedSigmaConfig, DiscreteConfig, LogisticMixtureConfig),
)
BY_NAME = variants("name", *_CLASSES)
AnyLikelihoodConfig = union("name", *_CLASSES)
