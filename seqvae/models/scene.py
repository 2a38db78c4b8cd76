"""A predictor for a camera that stands still: what moves is carried along, the rest stays (family `scene`).

Each frame is a mixture, pixel by pixel, of the last one, the last one under a few displacements, a remembered picture
of the scene (what the robot hides comes back from there), and drawn content. Precedents: CDNA (Finn et al. 2016,
arXiv:1605.07157) and SAVP (Lee et al. 2018, arXiv:1804.01523), which mixes in the first frame and drawn content too.

Shapes: K importance samples, N generated samples, B videos, R rows (K * B or N * B), T frames, C H W, G features,
M displacements of the last frame, D = 2 * max_displacement + 1 whole pixels per axis, Z latents per frame, A numbers
per action, W = width.
Units: displacements are in pixels per frame, (row, column).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.config.models import SceneConfig
from seqvae.gaussian import Gaussian, standard_normal_like
from seqvae.likelihoods import Likelihood
from seqvae.models.base import ActionScale, Prediction, VideoModel, float32
from seqvae.models.transport import ParameterHead

PATCH = 4  # networks see patches of 4x4 pixels
LOGVAR_RANGE = 8.0  # of the latents, reached smoothly


class SceneState(NamedTuple):
    """What the model knows after a frame."""

    picture: Tensor  # (R, C, H, W) in [0, 1], the last frame
    scene: Tensor  # (R, C, H, W), the first frame, updated where the predictor says so
    memory: Tensor  # (R, 2 W, H / 8, W / 8) of the frame predictor
    prior: tuple[Tensor, Tensor]  # LSTM state, (R, rnn_size) each


class Core(nn.Module):
    """LSTM cell from features to a Gaussian's parameters."""

    def __init__(self, in_features: int, rnn_size: int, z_dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(in_features, rnn_size), nn.LeakyReLU(0.2))
        self.cell = nn.LSTMCell(rnn_size, rnn_size)
        self.head = nn.Linear(2 * rnn_size, 2 * z_dim)
        with torch.no_grad():
            self.head.weight.mul_(0.3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Gaussian, tuple[Tensor, Tensor]]:
        embedded = self.embed(x)
        state = self.cell(embedded, state)
        mu, logvar = self.head(torch.cat([state[0], embedded], -1)).chunk(2, -1)
        return Gaussian(mu, LOGVAR_RANGE * (logvar / LOGVAR_RANGE).tanh()), state


class Encoder(nn.Module):
    """A picture and the scene to features at a quarter and an eighth of its size, and to a vector."""

    def __init__(self, channels: int, width: int, image_size: int, g_dim: int) -> None:
        super().__init__()
        places = image_size // PATCH
        self.place = nn.Parameter(torch.empty(width, places, places).normal_(std=0.02))  # the camera stands still
        self.fine = nn.Sequential(nn.PixelUnshuffle(PATCH), nn.Conv2d(PATCH**2 * 2 * channels, width, 3, 1, 1))
        self.norm = nn.Sequential(nn.GroupNorm(max(1, width // 16), width), nn.LeakyReLU(0.2))
        self.coarse = _block(width, 2 * width, 4, 2)
        self.vector = None
        if g_dim:
            narrow = nn.Conv2d(2 * width, 16, 1), nn.LeakyReLU(0.2), nn.Flatten()
            self.vector = nn.Sequential(*narrow, nn.Linear(16 * (places // 2) ** 2, g_dim))

    def forward(self, picture: Tensor, scene: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(R, C, H, W) twice -> (R, W, H/4, W/4), (R, 2 W, H/8, W/8), (R, G) in the pictures' dtype or None."""
        fine = self.norm(self.fine(torch.cat([picture, picture - scene], 1)) + self.place)
        coarse = self.coarse(fine)
        return fine, coarse, None if self.vector is None else self.vector(coarse).to(picture.dtype)


class ConvGRU(nn.Module):
    """A GRU cell whose products are 3x3 convolutions (Ballas et al. 2016, arXiv:1511.06432)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1)
        self.candidate = nn.Conv2d(2 * channels, channels, 3, 1, 1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(R, channels, H, W) twice -> the next memory."""
        update, reset = self.gates(torch.cat([x, memory], 1)).sigmoid().chunk(2, 1)
        candidate = self.candidate(torch.cat([x, reset * memory], 1)).tanh()
        return memory + update * (candidate - memory)


class FramePredictor(nn.Module):
    """Features of the last frame, latents and action to where each pixel of the next one comes from."""

    def __init__(self, channels: int, width: int, n_given: int, n_motions: int, image_size: int) -> None:
        super().__init__()
        wide, places = 2 * width, image_size // (2 * PATCH)
        self.join = nn.Conv2d(wide, wide, 3, 1, 1)
        self.given = nn.Linear(n_given, 2 * wide) if n_given else None
        self.norm = nn.Sequential(nn.GroupNorm(max(1, wide // 16), wide), nn.LeakyReLU(0.2))
        self.gru = ConvGRU(wide)
        self.motion = nn.Sequential(
            *(nn.Conv2d(2 * wide, 16, 1), nn.LeakyReLU(0.2), nn.Flatten()),
            *(nn.Linear(16 * places**2, 128), nn.LeakyReLU(0.2), nn.Linear(128, 3 * n_motions)),
        )
        self.up = nn.ConvTranspose2d(2 * wide, width, 4, 2, 1)
        self.mix = _block(2 * width, wide)
        self.pixels = nn.Sequential(nn.Conv2d(wide, PATCH**2 * (n_motions + 4 + channels), 1), nn.PixelShuffle(PATCH))
        with torch.no_grad():
            self.pixels[0].weight.mul_(0.3)
            angle = 2 * math.pi * torch.arange(n_motions) / n_motions
            self.motion[-1].bias.copy_(torch.stack([2 * angle.sin(), 2 * angle.cos(), 0 * angle], 1).flatten())

    def forward(self, fine: Tensor, coarse: Tensor, given: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> motions (R, 3 M), what `Scene._compose` makes of pixels (R, M + 4 + C, H, W), memory."""
        seen = self.join(coarse)
        if self.given is not None:
            scale, shift = self.given(given)[..., None, None].chunk(2, 1)
            seen = seen * (1 + scale) + shift
        seen = self.norm(seen)
        memory = self.gru(seen, memory)
        both = torch.cat([memory, seen], 1)
        up = F.leaky_relu(self.up(both), 0.2)
        return self.motion(both), self.pixels(self.mix(torch.cat([up, fine], 1))), memory


class Scene(VideoModel[SceneState]):
    """A scene before a still camera, and what moves in it.

    scene += gate (last frame - scene),
    frame = m_1 last frame + m_2 scene + sum_j m_(j+2) last frame displaced by motion j + m_(M+3) drawn content,
    with gate and masks m from the frame predictor, m >= 0 with sum 1 at each pixel.
    """

    compiled = ("encoder", "frame_predictor")

    def __init__(
        self, cfg: SceneConfig, likelihood: Likelihood, *, image_size: int, channels: int, n_past: int
    ) -> None:
        z_dim = cfg.z_dim if cfg.has_latent else 0
        super().__init__(channels=channels, image_size=image_size, n_past=n_past, z_dim=z_dim)
        self.n_motions, self.rnn_size, self.width = cfg.motions, cfg.rnn_size, cfg.width
        displacements = torch.arange(-cfg.max_displacement, cfg.max_displacement + 1)
        sources = (torch.arange(image_size)[:, None] - displacements[:, None, None]).clamp(0, image_size - 1)
        bands = (sources == torch.arange(image_size)).float()  # (D, H, H): row moved to, row moved from
        self.register_buffer("displacements", displacements.float(), persistent=False)
        self.register_buffer("bands", bands.flatten(1), persistent=False)
        self.action_scale = ActionScale(cfg.actions) if cfg.actions else None
        g_dim = 128 if z_dim else 0
        self.encoder = Encoder(channels, cfg.width, image_size, g_dim)
        self.frame_predictor = FramePredictor(channels, cfg.width, z_dim + cfg.actions, cfg.motions, image_size)
        self.prior = self.posterior = None
        if z_dim:
            self.posterior = Core(2 * g_dim + 2 * z_dim + cfg.actions, cfg.rnn_size, z_dim)
        if cfg.prior == "learned":
            self.prior = Core(g_dim + cfg.actions, cfg.rnn_size, z_dim)
        self.head = ParameterHead(likelihood, channels)
        self.to(memory_format=torch.channels_last)  # an eighth less time on a CPU
        self.likelihood = likelihood

    def forward(
        self, video: Tensor, noise: Tensor, n_past: int | None = None, actions: Tensor | None = None
    ) -> Prediction:
        """See `VideoModel.forward`. Frames after the context follow the model's own; so do q and p."""
        n_samples = noise.shape[0]
        _, pictures, q, p, z = self._follow(video, noise, n_past or self.n_past, actions)
        if n_samples > 1 and q is not None:
            q, p = (Gaussian(*(x.unflatten(0, (n_samples, -1)) for x in g)) for g in (q, p))
        params = self.head(pictures)
        return Prediction(params.unflatten(0, (n_samples, -1)), q, p, z.unflatten(0, (n_samples, -1)))

    def start(self, context: Tensor, noise: Tensor, actions: Tensor | None = None) -> SceneState:
        """See `VideoModel.start`."""
        return self._follow(context, noise, context.shape[1], actions)[0]

    def step(self, state: SceneState, noise: Tensor, actions: Tensor | None = None) -> tuple[Tensor, SceneState]:
        """See `VideoModel.step`."""
        *features, vector = self.encoder(state.picture, state.scene)
        p, state = self._prior(vector, actions, state)
        state = self._move(features, noise if p is None else p.sample(noise), actions, state)
        return self.head(state.picture), state

    def mean_frame(self, params: Tensor, state: SceneState) -> Tensor:
        return state.picture

    def _follow(
        self, video: Tensor, noise: Tensor, n_observed: int, actions: Tensor | None
    ) -> tuple[SceneState, Tensor, Gaussian | None, Gaussian | None, Tensor]:
        """Predict frames 1..T-1 with z from the posterior; the first n_observed frames are observed.

        Returns:
            The state after the last frame, pictures (R, T-1, C, H, W), q and p (R, T-1, Z) or None, z (R, T-1, Z).
        """
        n_samples, n_frames = noise.shape[0], video.shape[1] - 1
        noise = noise.flatten(0, 1)  # (R, T-1, Z)
        first = video[:, 0].repeat(n_samples, 1, 1, 1)
        empty = first.new_zeros(len(first), self.rnn_size)
        memory = first.new_zeros(len(first), 2 * self.width, *(self.image_size // (2 * PATCH),) * 2)
        state = SceneState(first, first, memory, (empty, empty))
        if n_frames == 0:  # a context of one frame
            return state, video[:, 1:], None, None, noise
        if self.posterior is not None:
            pairs = video[:, 1:].flatten(0, 1), video[:, :1].expand_as(video[:, 1:]).flatten(0, 1)
            seen = self.encoder(*pairs)[2].unflatten(0, (-1, n_frames)).repeat(n_samples, 1, 1)  # (R, T-1, G)
        led = [None] * n_frames if actions is None else actions.repeat(n_samples, 1, 1).unbind(1)
        pictures, qs, ps, zs, memory = [], [], [], [], (empty, empty)
        for t in range(n_frames):
            *features, vector = self.encoder(state.picture, state.scene)
            p, state = self._prior(vector, led[t], state)
            z, q = noise[:, t], None
            if self.posterior is not None:
                with float32(video):
                    p = p or standard_normal_like(Gaussian(z, z))
                    known = torch.cat([vector, seen[:, t], p.mu.detach(), p.logvar.detach()], -1)
                    q, memory = self.posterior(self.with_actions(known, led[t]), memory)
                    z = q.sample(z)
            state = self._move(features, z, led[t], state)
            for values, value in ((pictures, state.picture), (qs, q), (ps, p), (zs, z)):
                values.append(value)
            if t + 1 < n_observed:
                state = state._replace(picture=video[:, t + 1].repeat(n_samples, 1, 1, 1))
        q = p = None
        if self.posterior is not None:
            q, p = (Gaussian(*(torch.stack(x, 1) for x in zip(*gs))) for gs in (qs, ps))
        return state, torch.stack(pictures, 1), q, p, torch.stack(zs, 1)

    def _prior(
        self, vector: Tensor | None, action: Tensor | None, state: SceneState
    ) -> tuple[Gaussian | None, SceneState]:
        """p(z) of the next frame, (R, Z), None unless it is learned."""
        if self.prior is None:
            return None, state
        with float32(vector):
            p, memory = self.prior(self.with_actions(vector, action), state.prior)
        return p, state._replace(prior=memory)

    def _move(self, features: list[Tensor], z: Tensor, action: Tensor | None, state: SceneState) -> SceneState:
        """The state after the next frame."""
        motions, pixels, memory = self.frame_predictor(*features, self.with_actions(z, action), state.memory)
        with float32(z):
            picture, dtype = state.picture, state.picture.dtype
            pixels = pixels.to(dtype)
            n_masks = self.n_motions + 3
            scene = state.scene + (pixels[:, n_masks : n_masks + 1] - 4).sigmoid() * (picture - state.scene)
            drawn = pixels[:, n_masks + 1 :].sigmoid()
            moved = self._displace(picture, motions.to(dtype).unflatten(-1, (-1, 3)))
            sources = torch.cat([torch.stack([picture, scene, drawn], 1), moved], 1)  # (R, M + 3, C, H, W)
            start = pixels.new_tensor([2.0, 2.0] + [0.0] * (self.n_motions + 1))[:, None, None]
            masks = (pixels[:, :n_masks] + start).softmax(1)
            picture = (masks[:, :, None] * sources).sum(1)
        return SceneState(picture, scene, memory.to(dtype), state.prior)

    def _displace(self, picture: Tensor, motions: Tensor) -> Tensor:
        """The picture under each motion (row, column, log spread), (R, C, H, W) and (R, M, 3) -> (R, M, C, H, W).

        Each spreads it over whole displacements d in proportion to exp(-(d - motion)^2 / (2 spread^2)), rows and
        columns by a band matrix each: exact for whole pixels, and the gradient reaches `max_displacement` far.
        """
        reach, size = self.displacements[-1], self.image_size
        center = reach * F.softsign(motions[..., :2] / reach)
        spread = (1.4 * F.softsign(motions[..., 2:]) - 0.4).exp()  # 0.17 to 2.7 px
        weights = (-0.5 * ((self.displacements - center[..., None]) / spread[..., None]).square()).softmax(-1)
        bands = (weights @ self.bands).unflatten(-1, (size, size))  # (R, M, 2, H, H)
        rows = bands[:, :, 0].flatten(1, 2) @ picture.transpose(1, 2).flatten(2)  # (R, M H, C W)
        rows = rows.unflatten(-1, (self.channels, size)).unflatten(1, (-1, size))  # (R, M, H, C, W)
        columns = rows.flatten(2, 3) @ bands[:, :, 1].transpose(-1, -2)  # (R, M, H C, W)
        return columns.unflatten(2, (size, self.channels)).transpose(2, 3)


def _block(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, 1)
    return nn.Sequential(conv, nn.GroupNorm(max(1, out_channels // 16), out_channels), nn.LeakyReLU(0.2))
