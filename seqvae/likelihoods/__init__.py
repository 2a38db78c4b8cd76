"""Decoder distributions p(x_t | z), by name: `build_likelihood(name, channels, **options)`."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from pydantic import ConfigDict

from seqvae.likelihoods.base import Likelihood, bits_offset, dequantise
from seqvae.likelihoods.discrete import Bernoulli, Bitwise, Categorical, LogisticMixture
from seqvae.likelihoods.gaussian import (
    FixedSigma,
    OptimalSigma,
    OptimalSigmaPerImage,
    PerImageSigma,
    PerPixelSigma,
    SharedSigma,
)

__all__ = [
    "ANALYTIC",
    "DISCRETE",
    "FIELDS_OF",
    "LIKELIHOODS",
    "WITH_SIGMA",
    "Likelihood",
    "LikelihoodConfig",
    "LikelihoodName",
    "bits_offset",
    "build_likelihood",
    "dequantise",
]

LikelihoodName = Literal[
    "gaussian",
    "shared-sigma",
    "optimal-sigma",
    "optimal-sigma-per-image",
    "per-image-sigma",
    "per-pixel-sigma",
    "bernoulli",
    "categorical",
    "bitwise",
    "logistic-mixture",
]
LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": FixedSigma,
    "shared-sigma": SharedSigma,
    "optimal-sigma": OptimalSigma,
    "optimal-sigma-per-image": OptimalSigmaPerImage,
    "per-image-sigma": PerImageSigma,
    "per-pixel-sigma": PerPixelSigma,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "bitwise": Bitwise,
    "logistic-mixture": LogisticMixture,
}
# The fields each likelihood reads. Anything else that is set is refused.
FIELDS_OF: dict[str, tuple[str, ...]] = {
    "gaussian": ("sigma", "dequantise"),
    "shared-sigma": ("sigma", "dequantise"),
    "optimal-sigma": ("soft_clip", "dequantise"),
    "optimal-sigma-per-image": ("soft_clip", "dequantise"),
    "per-image-sigma": ("dequantise",),
    "per-pixel-sigma": ("dequantise",),
    "bernoulli": (),
    "categorical": (),
    "bitwise": (),
    "logistic-mixture": ("mixtures",),
}
WITH_SIGMA = tuple(name for name, used in FIELDS_OF.items() if "sigma" in used)  # those that are given one
ANALYTIC = ("optimal-sigma", "optimal-sigma-per-image")  # those whose sigma is a measured error
DISCRETE = tuple(name for name, likelihood in LIKELIHOODS.items() if likelihood.discrete)  # a mass over the bytes
assert tuple(LIKELIHOODS) == get_args(LikelihoodName) == tuple(FIELDS_OF)


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """What the decoder's picture is compared with, and how surprised it may be. None leaves a field unset."""

    # gaussian: fixed sigma; shared-sigma: learned; optimal-sigma: the sigma-VAE; the rest as their classes say
    name: LikelihoodName = "optimal-sigma"
    sigma: float | None = None  # pixels in [0, 1]. gaussian: its value; shared-sigma: where it starts; 1 unless set
    soft_clip: bool | None = None  # optimal-sigma*: the authors' soft floor of sigma in place of the hard one; False
    mixtures: int | None = None  # logistic-mixture: components per pixel and channel; 10
    dequantise: bool | None = None  # densities: (k + u) / 256 for pixels, so that bits per dim bound the bytes'; False

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name == "name" or field.name in FIELDS_OF[self.name] or getattr(self, field.name) is None:
                continue
            flag = f"likelihood.{field.name.replace('_', '-')}"
            owners = ", ".join(name for name, used in FIELDS_OF.items() if field.name in used)
            raise ValueError(f"{flag} is not used by {self.name} but by {owners}; drop it (or pass None)")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"likelihood.sigma must be finite and > 0, got {self.sigma}")
        if self.mixtures is not None and self.mixtures < 1:
            raise ValueError(f"likelihood.mixtures must be >= 1, got {self.mixtures}")

    def resolved(self) -> "LikelihoodConfig":
        """The same with the defaults of the fields that it uses filled in; sigma stays as given."""
        defaults = {"soft_clip": False, "mixtures": 10, "dequantise": False}
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **{name: value for name, value in unset.items() if name in FIELDS_OF[self.name]})

    def options(self) -> dict[str, float]:
        """What `build_likelihood` is given beside name and channels; dequantising is the caller's."""
        options = {name: getattr(self, name) for name in ("sigma", "soft_clip", "mixtures")}
        return {name: value for name, value in options.items() if value is not None}


def build_likelihood(name: str, channels: int, **options: float) -> Likelihood:
    """The likelihood `name` for frames of `channels` channels; ValueError for an unknown name."""
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood.name is {name!r}, expected one of {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name](channels, **options)
