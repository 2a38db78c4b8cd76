"""Decoder distributions p(x_t | z), by name: `build_likelihood(name, channels, **options)`."""

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
    "DISCRETE",
    "LIKELIHOODS",
    "Likelihood",
    "bits_offset",
    "build_likelihood",
    "dequantise",
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
DISCRETE = tuple(name for name, likelihood in LIKELIHOODS.items() if likelihood.discrete)  # a mass over the bytes


def build_likelihood(name: str, channels: int, **options: float) -> Likelihood:
    """The likelihood `name` for frames of `channels` channels; ValueError for an unknown name."""
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood.name is {name!r}, expected one of {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name](channels, **options)
