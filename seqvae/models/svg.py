"""SVG, the recurrent latent video predictor of Denton & Fergus 2018 (arXiv:1802.07687), around any likelihood.

Shapes: K importance samples, N generated samples, B videos, T frames, C H W, G = g_dim, Z = z_dim, L LSTM layers,
R = rnn_size, A numbers per action. The frame at t is predicted from h_{t-1}, z_t and the skips of an observed frame.
The recurrent cores read real frames and z, never their own pictures, so training has no loop over time; only generation
has. A model with actions gives all three cores the one that leads to the frame.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from seqvae.config.models import SvgConfig
from seqvae.gaussian import Gaussian, standard_normal_like
from seqvae.likelihoods import Likelihood
from seqvae.models.base import ActionScale, Prediction, VideoModel, float32
from seqvae.networks import build_decoder, build_encoder
from seqvae.networks.recurrent import FramePredictor, GaussianLSTM, LSTMState


class State(NamedTuple):
    """What `SVG.step` needs of the past. Rows are n * B + b, unless a field says otherwise."""

    frame: Tensor | None  # (N * B, C, H, W) last predicted frame, which the next step encodes; None after `start`
    h: Tensor | None  # (N * B, 1, G) feature of the last observed frame; None after a step
    skip_terms: list[Tensor]  # one per level: (B, ...) shared by all samples, or (N * B, ...) of predicted frames
    predictor: LSTMState | None  # each (N * B, L, R); None: zeros
    prior: LSTMState | None  # None: zeros, or no learned prior


class SVG(VideoModel[State]):
    """Encoder, posterior, prior, frame predictor, decoder, likelihood."""

    compiled = ("encoder", "decoder")
    recomputed = ("encode", "decode")

    def __init__(self, cfg: SvgConfig, likelihood: Likelihood, *, channels: int, image_size: int, n_past: int) -> None:
        super().__init__(channels=channels, image_size=image_size, n_past=n_past, z_dim=cfg.z_dim * cfg.has_latent)
        self.last_frame_skip = cfg.last_frame_skip
        sizes = (cfg.g_dim, cfg.width, cfg.norm)
        self.encoder = build_encoder(cfg.network, image_size, channels, *sizes)
        self.decoder = build_decoder(cfg.network, image_size, likelihood.param_channels, *sizes)
        self.action_scale = ActionScale(cfg.actions) if cfg.actions else None
        self.frame_predictor = FramePredictor(cfg.g_dim, self.z_dim + cfg.actions, cfg.rnn_size, cfg.predictor_layers)
        self.posterior = self.prior = None
        if cfg.prior != "none":
            self.posterior = GaussianLSTM(cfg.g_dim + cfg.actions, self.z_dim, cfg.rnn_size, cfg.posterior_layers)
        if cfg.prior == "learned":
            self.prior = GaussianLSTM(cfg.g_dim + cfg.actions, self.z_dim, cfg.rnn_size, cfg.prior_layers)
        self.apply(init_as_svg)
        self.likelihood = likelihood

    def forward(
        self, video: Tensor, noise: Tensor, n_past: int | None = None, actions: Tensor | None = None
    ) -> Prediction:
        """See `VideoModel.forward`; skips come from the last of the n_past observed frames."""
        n_samples, n_frames = noise.shape[0], video.shape[1]
        h, skips = self.encode(video)  # (B, T, G)
        with float32(video):
            g, q, p, z, *_ = self._teacher_forced(h, noise, actions)
        n_skips = n_frames - 1 if self.last_frame_skip else n_past or self.n_past
        # The last observed frame, as FitVid. SVG stops one earlier, at n_past - 2, which leaves n_past = 1 undefined.
        cut = (n_frames - n_skips) * len(video)
        params = self.decode(g, [_cut(skip.flatten(0, 1), 0, cut).unflatten(0, (n_skips, -1)) for skip in skips])
        return Prediction(params.unflatten(0, (n_samples, video.shape[0])), q, p, z)

    def _teacher_forced(
        self, h: Tensor, noise: Tensor, actions: Tensor | None
    ) -> tuple[Tensor, Gaussian | None, Gaussian | None, Tensor, LSTMState, LSTMState | None]:
        """Run the cores on real frames: h (B, T, G), noise (K, B, T-1, Z), actions (B, T-1, A).

        Returns:
            g (K * B, T-1, G), q and p (B, T-1, Z), z (K, B, T-1, Z), the states of frame predictor and prior.
        """
        q = p = prior = None
        z = noise
        if self.posterior is not None:
            q, _ = self.posterior(self.with_actions(h[:, 1:], actions))
            p = standard_normal_like(q)
            if self.prior is not None:
                p, prior = self.prior(self.with_actions(h[:, :-1], actions))
            z = q.sample(noise)
        each = repeat(h[:, :-1], "b t g -> (k b) t g", k=len(noise))
        for_each = None if actions is None else actions.repeat(len(noise), 1, 1)
        g, predictor = self.frame_predictor(each, self.with_actions(z.flatten(0, 1), for_each))
        return g, q, p, z, predictor, prior

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
        terms = self.decoder.skip_terms([skip.flatten(0, 1) for skip in skips])
        lasts = [_cut(term, (n - 1) * n_videos, 0) for term in terms]
        terms = [torch.cat([term, *[last] * (n_frames - n)]) for term, last in zip(terms, lasts)]  # (F * B, ...)
        params = self.decoder(rearrange(g, "(k b) f g -> (k f b) g", b=n_videos), terms).to(g.dtype)
        return rearrange(params, "(k f b) ... -> (k b) f ...", f=n_frames, b=n_videos)

    def start(self, context: Tensor, noise: Tensor, actions: Tensor | None = None) -> State:
        """See `VideoModel.start`. The context and its skips are encoded once per video, and shared by its samples."""
        n_samples, n_past = noise.shape[0], context.shape[1]
        h, skips = self.encode(context)  # (B, n_past, G)
        skip_terms = self.decoder.skip_terms([skip[-1] for skip in skips])
        predictor = prior = None
        with float32(context):
            if n_past > 1:
                *_, predictor, prior = self._teacher_forced(h, noise, actions)
                if prior is not None:
                    prior = tuple(repeat(s, "b l r -> (n b) l r", n=n_samples) for s in prior)
            h = repeat(h[:, -1:], "b 1 g -> (n b) 1 g", n=n_samples)
        return State(None, h, skip_terms, predictor, prior)

    def step(self, state: State, noise: Tensor, actions: Tensor | None = None) -> tuple[Tensor, State]:
        """See `VideoModel.step`. The mean of the predicted frame is what the next step encodes."""
        _, h, skip_terms, predictor, prior = state
        if state.frame is not None:
            h, skips = self.encode(state.frame[:, None])  # (N * B, 1, G)
            if self.last_frame_skip:
                skip_terms = self.decoder.skip_terms([skip[0] for skip in skips])
        with float32(noise):
            z = noise[:, None]  # (N * B, 1, Z)
            action = None if actions is None else actions[:, None]  # (N * B, 1, A)
            if self.prior is not None:
                p, prior = self.prior(self.with_actions(h, action), prior)
                z = p.sample(z)
            g, predictor = self.frame_predictor(h, self.with_actions(z, action), predictor)
        params = self.decoder(g[:, 0], skip_terms)  # (N * B, param_channels, H, W)
        return params, State(self.likelihood.mean(params), None, skip_terms, predictor, prior)

    def mean_frame(self, params: Tensor, state: State) -> Tensor:
        return state.frame

    def encode(self, video: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, T, C, H, W) -> h (B, T, G) in the cores' dtype and skips (T, B, ...), every frame in one call."""
        frames = video.transpose(0, 1)
        h, skips = self.encoder(frames.flatten(0, 1))
        h = h.to(self.frame_predictor.embed.weight.dtype).unflatten(0, frames.shape[:2]).transpose(0, 1)
        return h, [skip.unflatten(0, frames.shape[:2]) for skip in skips]


def _cut(frames: Tensor, front: int, back: int) -> Tensor:
    """Drop the first `front` and last `back` frames (B, ...); a copy, as a view would keep them all.

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
