"""Decoder distributions p(x_t | z), by name: `build_likelihood(name, channels, **options)`."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import ConfigDict

from seqvae.likelihoods.base import Likelihood
from seqvae.likelihoods.gaussian import FixedSigma, OptimalSigma, SharedSigma

LikelihoodName = Literal["gaussian", "shared-sigma", "optimal-sigma"]
LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": FixedSigma,
    "shared-sigma": SharedSigma,
    "optimal-sigma": OptimalSigma,
}
WITH_SIGMA = ("gaussian", "shared-sigma")  # those that are given one
assert tuple(LIKELIHOODS) == get_args(LikelihoodName)


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """What the decoder's picture is compared with, and how surprised it may be."""

    name: LikelihoodName = "optimal-sigma"  # gaussian: fixed sigma; shared-sigma: learned; optimal-sigma: the sigma-VAE
    sigma: float | None = (
        None  # pixels in [0, 1]. gaussian: its value; shared-sigma: where it starts; both 1 unless set
    )

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.sigma is not None and self.name not in WITH_SIGMA:
            raise ValueError(
                f"likelihood.sigma is not used by {self.name}, which finds its own; drop it (or pass None)"
            )
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"likelihood.sigma must be finite and > 0, got {self.sigma}")


def build_likelihood(name: str, channels: int, **options: float) -> Likelihood:
    """The likelihood `name` for frames of `channels` channels; ValueError for an unknown name."""
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood.name is {name!r}, expected one of {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name](channels, **options)
