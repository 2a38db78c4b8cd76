"""A Gaussian code for a choice: the line of z ~ N(0, 1) is cut into intervals, one per choice, each as likely as it.

However many modes a prior over choices has, they lie in the cuts: p(z) stays N(0, 1), and a posterior that is sure of a
choice is a Gaussian inside its interval, at a KL of little more than -log p(choice).

Letters: D choices. Computed in float64, where the cuts of unlikely choices still differ.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 8.0  # instead of infinity, where the density is 0 in float32


def cuts(p: Tensor) -> Tensor:
    """Probabilities (..., D) to the borders of the intervals (..., D + 1), ascending from -FAR to FAR."""
    inner = torch.special.ndtri(p.cumsum(-1)[..., :-1].clamp(1e-12, 1 - 1e-12)).clamp(-FAR, FAR)
    return F.pad(F.pad(inner, (1, 0), value=-FAR), (0, 1), value=FAR)


def moments(borders: Tensor, p: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (...,) of z where the choice follows `chosen` (..., D) and z is N(0, 1) within its interval.

    With chosen = p they are 0 and 1: a posterior that adds no information costs no KL.
    """
    density = (-0.5 * borders.square()).exp() / math.sqrt(2 * math.pi)
    ratio = chosen / p
    mean = -(ratio * density.diff(dim=-1)).sum(-1)
    square = 1 - (ratio * (borders * density).diff(dim=-1)).sum(-1)
    return mean, (square - mean.square()).clamp(min=1e-8)


def choose(p: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The choice (...,) int64 in whose interval z (...,) lies, and the share of the interval's probability below z."""
    upper = p.cumsum(-1)
    below = torch.special.ndtr(z)
    choice = (below[..., None] > upper[..., :-1]).sum(-1)
    width = _pick(p, choice)
    return choice, ((below - _pick(upper, choice) + width) / width).clamp(0, 1)


def _pick(values: Tensor, choice: Tensor) -> Tensor:
    return values.gather(-1, choice[..., None]).squeeze(-1)
