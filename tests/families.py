"""Every model family at a tiny size, in each combination of its choices: a new family only needs a line of SMALL."""

import dataclasses
from itertools import product
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn

from seqvae.config import VARIANTS, MnistConfig, ModelConfig, RunConfig, variant
from seqvae.likelihoods import build_likelihood
from seqvae.models import VideoModel, build_model

SMALL: dict[str, dict[str, int]] = {
    "svg": {"width": 4, "g_dim": 6, "rnn_size": 8},
    "transport": {"layers": 2, "rnn_size": 6, "width": 4, "max_displacement": 2},
    "scene": {"width": 4, "rnn_size": 6, "motions": 2, "max_displacement": 2},
    "image": {"width": 4, "g_dim": 6, "z_dim": 3},
}
IMAGES = MnistConfig()


def small(family: str, **settings) -> ModelConfig:
    return variant("model", family, **SMALL[family] | settings)


def variants(*, one_at_a_time: bool = False) -> list:
    """pytest parameters: the configs of every family, over the product of its Literal and bool fields.

    `one_at_a_time`: those that differ from the family's defaults in one such field at most.
    """
    found = []
    for family, config in VARIANTS["model"][1].items():
        choices = {}
        for name, hint in get_type_hints(config).items():
            if get_origin(hint) is Literal and name != "family":
                choices[name] = get_args(hint)
            elif hint is bool:
                choices[name] = (False, True)
        defaults = [getattr(small(family), name) for name in choices]
        for values in product(*choices.values()):
            if one_at_a_time and sum(value != default for value, default in zip(values, defaults)) > 1:
                continue
            found.append(
                pytest.param(small(family, **dict(zip(choices, values))), id="-".join(map(str, [family, *values])))
            )
    return found


def run_of(cfg: RunConfig, model: ModelConfig) -> RunConfig:
    """The same run with another model, on images if it is one of images."""
    return dataclasses.replace(cfg, model=model, data=cfg.data if model.needs_context else IMAGES)


def build(cfg: ModelConfig, likelihood: str = "gaussian", *, channels: int = 1, n_past: int = 2) -> VideoModel:
    """In eval mode and float64, 32 px, with weights and statistics far from their start, so that every path shows."""
    torch.manual_seed(0)
    sizes = {"channels": channels, "image_size": 32, "n_past": n_past if cfg.needs_context else 0}
    model = build_model(cfg, build_likelihood(likelihood, channels), **sizes)
    return far_from_start(model).double().eval()


def far_from_start(model: VideoModel) -> VideoModel:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(2 if "lstm" in name or "pose" in name else 12)
            else:
                weight.add_(0.3 * torch.randn_like(weight))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def clips(batch: int = 2, frames: int = 6, channels: int = 1, size: int = 32) -> torch.Tensor:
    """(B, T, C, H, W) of noise."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, frames, channels, size, size, dtype=torch.float64, generator=generator)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
