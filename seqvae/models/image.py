"""A VAE of single images: the encoder, decoder and likelihoods of SVG without recurrence, context or skips.

It is what the two papers' image tables are about. An image is a video of one frame, which is predicted from nothing.
Shapes: K importance samples, N generated samples, B videos, F frames, C H W, G = g_dim, Z = z_dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqvae.config.models import ImageConfig
from seqvae.gaussian import Gaussian, limit_logvar, standard_normal_like
from seqvae.likelihoods import Likelihood
from seqvae.models.base import Prediction, VideoModel, float32
from seqvae.models.svg import init_as_svg
from seqvae.networks import build_decoder, build_encoder


class State(NamedTuple):
    """Images have no past."""


class ImageVAE(VideoModel[State]):
    """q(z | x) from the encoder, p(z) = N(0, I), p(x | z) from the decoder (Kingma & Welling 2014, arXiv:1312.6114)."""

    compiled = ("encoder", "decoder")
    recomputed = ("encode", "decode")

    def __init__(
        self, cfg: ImageConfig, likelihood: Likelihood, *, channels: int, image_size: int, n_past: int = 0
    ) -> None:
        super().__init__(channels=channels, image_size=image_size, n_past=n_past, z_dim=cfg.z_dim)
        sizes = (cfg.g_dim, cfg.width, cfg.norm)
        self.encoder = build_encoder(cfg.network, image_size, channels, *sizes)
        self.posterior = nn.Linear(cfg.g_dim, 2 * cfg.z_dim)
        self.embed = nn.Linear(cfg.z_dim, cfg.g_dim)
        self.decoder = build_decoder(cfg.network, image_size, likelihood.param_channels, *sizes, with_skips=False)
        self.apply(init_as_svg)
        self.likelihood = likelihood

    def forward(
        self, video: Tensor, noise: Tensor, n_past: int | None = None, actions: Tensor | None = None
    ) -> Prediction:
        """See `VideoModel.forward`: video (B, F, C, H, W), each frame an image of its own; n_past is always 0."""
        h = self.encode(video)
        with float32(video):
            mu, logvar = self.posterior(h.to(self.posterior.weight.dtype)).chunk(2, dim=-1)
            q = Gaussian(mu, limit_logvar(logvar))  # (B, F, Z)
            z = q.sample(noise)  # (K, B, F, Z)
        params = self.decode(z.flatten(0, 2)).unflatten(0, z.shape[:3])
        return Prediction(params, q, standard_normal_like(q), z)

    def start(self, context: Tensor, noise: Tensor, actions: Tensor | None = None) -> State:
        """See `VideoModel.start`; there is nothing to observe."""
        return State()

    def step(self, state: State, noise: Tensor, actions: Tensor | None = None) -> tuple[Tensor, State]:
        """See `VideoModel.step`: an image from the prior."""
        return self.decode(noise), state

    def encode(self, video: Tensor) -> Tensor:
        """(B, F, C, H, W) -> features (B, F, G)."""
        return self.encoder(video.flatten(0, 1))[0].unflatten(0, video.shape[:2])

    def decode(self, z: Tensor) -> Tensor:
        """(B, Z) -> likelihood parameters (B, param_channels, H, W), in the weights' dtype."""
        with float32(z):
            g = torch.tanh(self.embed(z))  # (B, G)
        return self.decoder(g).to(g.dtype)
