"""The recurrent latent video predictor (SVG: Denton & Fergus 2018, arXiv:1802.07687) around any likelihood.

Shapes: K importance samples, N generated samples, B videos, T frames, C H W, G = g_dim, Z = z_dim. Frame 0 is only
conditioned on: frames 1..T-1 are predicted, the one at t from h_{t-1}, z_t and the skips of an observed frame. The
recurrent cores read real frames and z, never their own pictures, so training has no loop over time; only `rollout` has.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from pydantic import ConfigDict
from torch import Tensor, nn

from seqvae.gaussian import Gaussian, kl_per_latent, standard_normal_like
from seqvae.likelihoods import Likelihood
from seqvae.networks import build_decoder, build_encoder
from seqvae.networks.recurrent import FramePredictor, GaussianLSTM

# Fields with no use in some models, and their defaults elsewhere.
RECURRENT_DEFAULTS = {"rnn_size": 256, "predictor_layers": 2}
LATENT_DEFAULTS = {"z_dim": 10, "posterior_layers": 1, "prior_layers": 1}
IMAGE_FIELDS = ("network", "norm", "prior", "width", "g_dim", "z_dim")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the predictor; the defaults are SVG's for Moving MNIST."""

    network: Literal["dcgan", "vgg"] = "dcgan"  # encoder and decoder, with skips; SVG: dcgan on digits, vgg on BAIR
    norm: Literal["batch", "group"] = "batch"  # of the convolutions; batch as in SVG, group is blind to the batch
    prior: Literal["learned", "fixed", "none"] = "learned"  # SVG-LP, SVG-FP, or no latent: a deterministic predictor
    width: int = 64  # channels of the finest level
    g_dim: int = 128  # frame feature
    rnn_size: int | None = None  # hidden units of every LSTM, 256 unless set; unused on images
    predictor_layers: int | None = None  # LSTM layers of the frame predictor, 2 unless set; unused on images
    z_dim: int | None = None  # latents per frame, 10 unless set; unused with prior none
    posterior_layers: int | None = None  # LSTM layers, 1 unless set; unused with prior none
    prior_layers: int | None = None  # LSTM layers, 1 unless set; used with prior learned alone
    last_frame_skip: bool = False  # skips from the frame before, predicted ones too, instead of the last observed frame

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        unused = {"none": ("z_dim", "posterior_layers", "prior_layers"), "fixed": ("prior_layers",), "learned": ()}
        for name in unused[self.prior]:
            if getattr(self, name) is not None:
                flag = f"model.{name.replace('_', '-')}"
                raise ValueError(f"{flag} is not used with model.prior {self.prior}; drop it (or pass None)")
        for name in ("width", "g_dim", "rnn_size", "predictor_layers", "z_dim", "posterior_layers", "prior_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"model.{name.replace('_', '-')} must be >= 1, got {value}")

    def check_for_images(self) -> None:
        """ValueError naming the first field that a model of single images does not use."""
        if self.prior != "fixed":
            raise ValueError(f"model.prior {self.prior} needs earlier frames, and an image has none; pass fixed")
        for field in fields(self):
            if field.name not in IMAGE_FIELDS and getattr(self, field.name) not in (None, False):
                flag = f"model.{field.name.replace('_', '-')}"
                raise ValueError(f"{flag} is not used on images, which have no recurrence; drop it (or pass None)")

    def resolved(self, images: bool = False) -> "ModelConfig":
        """The same with the defaults of the fields that this prior, on videos or images, uses filled in."""
        used = {"none": (), "fixed": ("z_dim", "posterior_layers"), "learned": tuple(LATENT_DEFAULTS)}[self.prior]
        defaults = {name: LATENT_DEFAULTS[name] for name in used} | RECURRENT_DEFAULTS
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **{name: value for name, value in unset.items() if not images or name in IMAGE_FIELDS})


@dataclass(frozen=True)
class Prediction:
    """What `forward` returns, for each of the F frames it draws, in the weights' dtype whatever autocast does."""

    params: Tensor  # (K, B, F, likelihood.param_channels, H, W) likelihood parameters
    q: Gaussian | None  # (B, F, Z) posterior; None without a latent
    p: Gaussian | None  # (B, F, Z) prior
    z: Tensor  # (K, B, F, Z) sampled from q

    def kl(self) -> Tensor:
        """KL(q || p) per frame and latent, (B, F, Z) nats, float64; Z = 0 without a latent."""
        if self.q is None:
            return self.z[0].double()
        return kl_per_latent(*(Gaussian(*(x.double() for x in g)) for g in (self.q, self.p)))

    def log_ratio(self) -> Tensor:
        """log p(z) - log q(z) per frame, (K, B, F) nats, float64: minus the KL, estimated from each sample alone."""
        if self.q is None:
            return self.z.new_zeros(self.z.shape[:3], dtype=torch.float64)
        q, p = (Gaussian(*(x.double() for x in g)) for g in (self.q, self.p))
        return p.log_prob(self.z.double()) - q.log_prob(self.z.double())


class SequenceVAE(nn.Module):
    """Encoder, posterior, prior, frame predictor, decoder, likelihood. `forward` trains, `rollout` generates."""

    def __init__(
        self, cfg: ModelConfig, likelihood: Likelihood, *, image_size: int, channels: int, n_past: int
    ) -> None:
        super().__init__()
        cfg = cfg.resolved()
        self.channels, self.n_past, self.z_dim = channels, n_past, cfg.z_dim or 0
        self.last_frame_skip = cfg.last_frame_skip
        sizes = (cfg.g_dim, cfg.width, cfg.norm)
        self.encoder = build_encoder(cfg.network, image_size, channels, *sizes)
        self.decoder = build_decoder(cfg.network, image_size, likelihood.param_channels, *sizes)
        self.frame_predictor = FramePredictor(cfg.g_dim, self.z_dim, cfg.rnn_size, cfg.predictor_layers)
        self.posterior = self.prior = None
        if cfg.prior != "none":
            self.posterior = GaussianLSTM(cfg.g_dim, self.z_dim, cfg.rnn_size, cfg.posterior_layers)
        if cfg.prior == "learned":
            self.prior = GaussianLSTM(cfg.g_dim, self.z_dim, cfg.rnn_size, cfg.prior_layers)
        self.apply(init_as_svg)
        self.likelihood = likelihood

    def forward(self, video: Tensor, noise: Tensor, n_past: int | None = None) -> Prediction:
        """Teacher forcing: every frame from the real ones before it and z ~ q.

        Args:
            video: (B, T, C, H, W) in [0, 1], T > n_past.
            noise: (K, B, T-1, Z) standard normal, for z. The encoder, the posterior and the prior run once for all K.
            n_past: observed frames, whose last one the skips come from; None: as many as in training.
        """
        n_samples, n_frames = noise.shape[0], video.shape[1]
        h, skips = self.encode(video)  # (B, T, G)
        with float32(video):
            q = p = None
            z = noise
            if self.posterior is not None:
                q, _ = self.posterior(h[:, 1:])  # (B, T-1, Z)
                p = self.prior(h[:, :-1])[0] if self.prior is not None else standard_normal_like(q)
                z = q.sample(noise)
            each = repeat(h[:, :-1], "b t g -> (k b) t g", k=n_samples)
            g, _ = self.frame_predictor(each, z.flatten(0, 1))  # (K * B, T-1, G)

        n_skips = n_frames - 1 if self.last_frame_skip else n_past or self.n_past
        # The last observed frame, as FitVid. SVG stops one earlier, at n_past - 2, which leaves n_past = 1 undefined.
        cut = (n_frames - n_skips) * len(video)
        params = self.decode(g, [_cut(skip.flatten(0, 1), 0, cut).unflatten(0, (n_skips, -1)) for skip in skips])
        return Prediction(params.unflatten(0, (n_samples, video.shape[0])), q, p, z)

    def decode(self, g: Tensor, skips: list[Tensor]) -> Tensor:
        """Features of all frames -> likelihood parameters; the last of the skips serve every frame after theirs.

        Args:
            g: (K * B, F, G).
            skips: (n, B, ...) of each level, n <= F.

        Returns:
            (K * B, F, param_channels, H, W), in g's dtype.
        """
        n, n_videos = skips[0].shape[:2]
        n_frames = g.shape[1]
        halves = self.decoder.skip_halves([skip.flatten(0, 1) for skip in skips])
        lasts = [_cut(half, (n - 1) * n_videos, 0) for half in halves]
        halves = [torch.cat([half, *[last] * (n_frames - n)]) for half, last in zip(halves, lasts)]  # (F * B, ...)
        params = self.decoder(rearrange(g, "(k b) f g -> (k f b) g", b=n_videos), halves).to(g.dtype)
        return rearrange(params, "(k f b) ... -> (k b) f ...", f=n_frames, b=n_videos)

    @torch.no_grad()
    def rollout(self, context: Tensor, n_future: int, noise: Tensor) -> Tensor:
        """The pictures of `predict`: (N, B, n_future, C, H, W) float32 in [0, 1]."""
        return self.predict(context, n_future, noise)[0]

    @torch.no_grad()
    def predict(self, context: Tensor, n_future: int, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicted futures: z from the posterior while conditioning, from the prior after; each picture is the mean.

        The context is encoded once per video, and so are its skips; samples are a leading axis folded into the batch.

        Args:
            context: (B, n_past, C, H, W) in [0, 1], any n_past >= 1.
            n_future: frames to predict.
            noise: (N, B, n_past - 1 + n_future, Z) standard normal; it decides the samples.

        Returns:
            Frames (N, B, n_future, C, H, W) float32 in [0, 1], and the decoder's sigma, broadcastable to them: a scalar
            where it is one number, None without one.
        """
        assert not self.training, "predictions use eval mode: batch statistics would make them depend on the batch"
        n_samples, n_past = noise.shape[0], context.shape[1]
        h, skips = self.encode(context)  # (B, n_past, G)
        halves = self.decoder.skip_halves([skip[-1] for skip in skips])  # B frames, shared by all samples
        noise = rearrange(noise, "n b t z -> t (n b) 1 z")

        with float32(context):
            state = prior_state = None
            if n_past > 1:
                z = noise[: n_past - 1, :, 0].transpose(0, 1)  # (N * B, n_past - 1, Z)
                if self.posterior is not None:
                    q, _ = self.posterior(h[:, 1:])
                    z = Gaussian(*(repeat(x, "b t z -> (n b) t z", n=n_samples) for x in q)).sample(z)
                if self.prior is not None:
                    _, prior_state = self.prior(h[:, :-1])
                    # Samples of a single video would share its state as a view, which cuDNN refuses.
                    prior_state = tuple(repeat(s, "l b r -> l (n b) r", n=n_samples).contiguous() for s in prior_state)
                _, state = self.frame_predictor(repeat(h[:, :-1], "b t g -> (n b) t g", n=n_samples), z)
            h = repeat(h[:, -1:], "b t g -> (n b) t g", n=n_samples)

        frames, sigmas = [], []
        for t in range(n_past - 1, n_past - 1 + n_future):
            with float32(context):
                z = noise[t]  # (N * B, 1, Z)
                if self.prior is not None:
                    p, prior_state = self.prior(h, prior_state)
                    z = p.sample(z)
                g, state = self.frame_predictor(h, z, state)
            params = self.decoder(g.flatten(0, 1), halves)  # (N * B, param_channels, H, W)
            frames.append(self.likelihood.mean(params))  # (N * B, C, H, W)
            sigmas.append(self.likelihood.sigma(params))
            if len(frames) < n_future:
                h, skips = self.encode(frames[-1][:, None])
                if self.last_frame_skip:
                    halves = self.decoder.skip_halves([skip[0] for skip in skips])
        sigma = sigmas[0]
        if sigma is not None and sigma.ndim:  # of each frame
            sigma = rearrange(torch.stack(sigmas, 1), "(n b) t c h w -> n b t c h w", n=n_samples)
        return rearrange(torch.stack(frames, 1), "(n b) t c h w -> n b t c h w", n=n_samples), sigma

    @torch.no_grad()
    def reconstruct(self, video: Tensor, noise: Tensor, n_past: int) -> Tensor:
        """Frames 1..T-1 with z from the posterior, which sees each frame it draws: (B, T-1, C, H, W) in [0, 1].

        Skips come from the first n_past frames alone, as a prediction's do, or with last_frame_skip from the real frame
        before, where a prediction has its own. noise is (B, T-1, Z), zeros for the posterior's mean; the video is that
        of `forward`.
        """
        assert not self.training, "reconstructions use eval mode, as predictions do"
        return self.likelihood.mean(self(video, noise[None], n_past).params[0])

    def encode(self, video: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, T, C, H, W) -> h (B, T, G) in the cores' dtype and skips (T, B, ...), every frame in one call."""
        frames = video.transpose(0, 1)
        h, skips = self.encoder(frames.flatten(0, 1))
        h = h.to(self.frame_predictor.embed.weight.dtype).unflatten(0, frames.shape[:2]).transpose(0, 1)
        return h, [skip.unflatten(0, frames.shape[:2]) for skip in skips]


def float32(like: Tensor) -> torch.autocast:
    """The recurrent cores are cheap, and their heads need float32 (see `gaussian_kl`)."""
    return torch.autocast(like.device.type, enabled=False)


def _cut(frames: Tensor, front: int, back: int) -> Tensor:
    """Frames (B, ...) without so many at the front and at the back, copied: a view would keep them all.

    Negative padding cuts; unlike a slice's, its gradient is channels-last as the rest, and not reordered everywhere.
    """
    return F.pad(frames, (0, 0, 0, 0, 0, 0, -front, -back))


def init_as_svg(module: nn.Module) -> None:
    """Weights N(0, 0.02), norm scales N(1, 0.02), no bias (SVG's utils.py); LSTMs keep torch's own."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
