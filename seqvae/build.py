"""What a run's settings describe: its model and its objective."""

import torch

from seqvae import models, objectives
from seqvae.config import RunConfig
from seqvae.likelihoods import build_likelihood
from seqvae.models import VideoModel
from seqvae.objectives import Objective


def build_model(cfg: RunConfig, channels: int) -> VideoModel:
    """The model, with the weights that run.seed gives it; `channels` is the dataset's."""
    torch.manual_seed(cfg.run.seed)
    likelihood = build_likelihood(cfg.likelihood.name, channels, **cfg.likelihood.options())
    sizes = {"channels": channels, "image_size": cfg.data.image_size, "n_past": cfg.data.n_past}
    return models.build_model(cfg.model, likelihood, **sizes)


def build_objective(cfg: RunConfig, channels: int) -> Objective:
    """The objective, as it starts."""
    return objectives.build_objective(
        cfg.objective,
        n_frames=cfg.data.n_predicted,
        dims=channels * cfg.data.image_size**2,
        sigma=cfg.likelihood.sigma if cfg.likelihood.fixed_sigma else 1.0,
    )
