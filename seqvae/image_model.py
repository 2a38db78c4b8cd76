"""A VAE of single images: the predictor's encoder, decoder and likelihoods without recurrence, context or skips.

It is what the two papers' image tables are about. An image is a video of one frame, so objectives and training are the
same. Shapes: K importance samples, N generated samples, B images, C H W, G = g_dim, Z = z_dim.
"""

import torch
from torch import Tensor, nn

from seqvae.gaussian import Gaussian, limit_logvar, standard_normal_like
from seqvae.likelihoods import Likelihood
from seqvae.model import ModelConfig, Prediction, float32, init_as_svg
from seqvae.networks import build_decoder, build_encoder


class ImageVAE(nn.Module):
    """q(z | x) from the encoder, p(z) = N(0, I), p(x | z) from the decoder (Kingma & Welling 2014, arXiv:1312.6114)."""

    n_past = 0  # every frame is drawn, none is given

    def __init__(self, cfg: ModelConfig, likelihood: Likelihood, *, image_size: int, channels: int) -> None:
        super().__init__()
        cfg = cfg.resolved(images=True)
        self.channels, self.z_dim = channels, cfg.z_dim
        sizes = (cfg.g_dim, cfg.width, cfg.norm)
        self.encoder = build_encoder(cfg.network, image_size, channels, *sizes)
        self.posterior = nn.Linear(cfg.g_dim, 2 * cfg.z_dim)
        self.embed = nn.Linear(cfg.z_dim, cfg.g_dim)
        self.decoder = build_decoder(cfg.network, image_size, likelihood.param_channels, *sizes, with_skips=False)
        self.apply(init_as_svg)
        self.likelihood = likelihood

    def forward(self, video: Tensor, noise: Tensor) -> Prediction:
        """video (B, 1, C, H, W) in [0, 1], noise (K, B, 1, Z) standard normal; the encoder runs once for all K."""
        h = self.encode(video)
        with float32(video):
            mu, logvar = self.posterior(h.to(self.posterior.weight.dtype)).chunk(2, dim=-1)
            q = Gaussian(mu[:, None], limit_logvar(logvar)[:, None])  # (B, 1, Z)
            z = q.sample(noise)  # (K, B, 1, Z)
        return Prediction(self.decode(z), q, standard_normal_like(q), z)

    @torch.no_grad()
    def reconstruct(self, video: Tensor, noise: Tensor) -> Tensor:
        """(B, 1, C, H, W) in [0, 1] with z from the posterior; noise (B, 1, Z), zeros for the posterior's mean."""
        assert not self.training, "reconstructions use eval mode"
        return self.likelihood.mean(self(video, noise[None]).params[0])

    @torch.no_grad()
    def generate(self, noise: Tensor) -> Tensor:
        """Images from the prior: noise (N, Z) standard normal -> (N, C, H, W) in [0, 1], the decoder's mean."""
        assert not self.training, "samples use eval mode"
        return self.likelihood.mean(self.decode(noise[None, :, None])[0, :, 0])

    def encode(self, video: Tensor) -> Tensor:
        """(B, 1, C, H, W) -> features (B, G)."""
        return self.encoder(video[:, 0])[0]

    def decode(self, z: Tensor) -> Tensor:
        """(K, B, 1, Z) -> likelihood parameters (K, B, 1, param_channels, H, W), in the weights' dtype."""
        with float32(z):
            g = torch.tanh(self.embed(z.flatten(0, 2)))  # (K * B, G)
        return self.decoder(g).to(g.dtype).unflatten(0, z.shape[:3])
