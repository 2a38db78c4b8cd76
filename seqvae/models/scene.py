"""A predictor for a camera that stands still: a figure before a ground (family `scene`).

The ground is a picture of the scene, kept from the first frame on: each of its pixels stays, is carried along by one of
a few displacements (what is pushed), or is drawn (what comes into view). The figure, which is what moves by itself, is
drawn anew in each frame from a recurrent state, so that it need not be copied from frame to frame and stays sharp. (The
ground's mixture is offered the last frame, figure and all: what an observed frame uncovers comes from there.)
Precedents for the ground's mixture: CDNA (Finn et al. 2016, arXiv:1605.07157) and SAVP (Lee et al. 2018,
arXiv:1804.01523).

Shapes: K importance samples, N generated samples, B videos, R rows (K * B or N * B), T frames, C H W, G features,
M displacements of the ground, D = 2 * max_displacement + 1 whole pixels per axis, Z latents per frame, A numbers
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
from seqvae.models.base import (
    ActionScale,
    ParameterHead,
    Prediction,
    VideoModel,
    actions_by_frame,
    float32,
    stack_frames,
)
from seqvae.networks.blocks import norm_and_leak, normed_conv

PATCH = 4  # networks see patches of 4x4 pixels
LOGVAR_RANGE = 8.0  # of the latents, reached smoothly
STAYS, UNSEEN = 5.0, -3.0  # logits at the start: a pixel of the ground stays as it is, the figure is all but clear


class SceneState(NamedTuple):
    """What the model knows after a frame."""

    picture: Tensor  # (R, C, H, W) in [0, 1], the last frame
    ground: Tensor  # (R, C, H, W) in [0, 1], what lies behind the figure
    pose: tuple[Tensor, Tensor]  # LSTM state, (R, 2 rnn_size) each
    prior: tuple[Tensor, Tensor]  # LSTM state, (R, rnn_size) each


class GaussianCore(nn.Module):
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
    """A picture and the ground behind it to features at a quarter and an eighth of its size, and to a vector."""

    def __init__(self, channels: int, width: int, image_size: int, g_dim: int) -> None:
        super().__init__()
        places = image_size // PATCH
        self.place = nn.Parameter(torch.empty(width, places, places).normal_(std=0.02))  # the camera stands still
        self.fine = nn.Sequential(nn.PixelUnshuffle(PATCH), nn.Conv2d(PATCH**2 * 2 * channels, width, 3, 1, 1))
        self.norm = norm_and_leak("group", width)
        self.coarse = normed_conv(width, 2 * width, kernel=4, stride=2)
        narrow = nn.Conv2d(2 * width, 16, 1), nn.LeakyReLU(0.2), nn.Flatten()
        self.vector = nn.Sequential(*narrow, nn.Linear(16 * (places // 2) ** 2, g_dim))

    def forward(self, picture: Tensor, ground: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, C, H, W) twice -> (R, W, H/4, W/4), (R, 2 W, H/8, W/8), (R, G) in the pictures' dtype."""
        fine = self.norm(self.fine(torch.cat([picture, picture - ground], 1)) + self.place)
        coarse = self.coarse(fine)
        return fine, coarse, self.vector(coarse).to(picture.dtype)


class Figure(nn.Module):
    """The pose to what is drawn anew in each frame: content and its opacity."""

    def __init__(self, channels: int, width: int, pose_size: int, image_size: int) -> None:
        super().__init__()
        wide, places = 2 * width, image_size // (2 * PATCH)
        self.lay = nn.Sequential(nn.Linear(pose_size, wide * places**2), nn.Unflatten(1, (wide, places, places)))
        self.norm = norm_and_leak("group", wide)
        self.up = nn.ConvTranspose2d(wide, wide, 4, 2, 1)
        self.mix = nn.Sequential(*norm_and_leak("group", wide), normed_conv(wide, wide))
        self.pixels = nn.Sequential(nn.Conv2d(wide, PATCH**2 * (1 + channels), 1), nn.PixelShuffle(PATCH))

    def forward(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """(R, pose_size) -> features (R, 2 W, H/8, W/8); opacity and content before their sigmoids (R, 1 + C, H, W)."""
        features = self.norm(self.lay(pose))
        return features, self.pixels(self.mix(self.up(features)))


class Ground(nn.Module):
    """Map features of the last frame and of the pose to the sources of each ground pixel."""

    def __init__(self, channels: int, width: int, n_motions: int, image_size: int) -> None:
        super().__init__()
        wide, places = 2 * width, image_size // (2 * PATCH)
        self.join = normed_conv(2 * wide, wide)
        self.motion = nn.Sequential(
            *(nn.Conv2d(wide, 16, 1), nn.LeakyReLU(0.2), nn.Flatten()),
            *(nn.Linear(16 * places**2, 128), nn.LeakyReLU(0.2), nn.Linear(128, 3 * n_motions)),
        )
        self.up = nn.ConvTranspose2d(wide, width, 4, 2, 1)
        self.mix = normed_conv(2 * width, wide)
        self.pixels = nn.Sequential(nn.Conv2d(wide, PATCH**2 * (n_motions + 3 + channels), 1), nn.PixelShuffle(PATCH))
        with torch.no_grad():
            self.pixels[0].weight.mul_(0.3)
            angle = 2 * math.pi * torch.arange(n_motions) / n_motions
            self.motion[-1].bias.copy_(torch.stack([2 * angle.sin(), 2 * angle.cos(), 0 * angle], 1).flatten())

    def forward(self, fine: Tensor, coarse: Tensor, figure: Tensor) -> tuple[Tensor, Tensor]:
        """-> motions (R, 3 M), masks and content before softmax and sigmoid (R, M + 3 + C, H, W)."""
        seen = self.join(torch.cat([coarse, figure], 1))
        up = F.leaky_relu(self.up(seen), 0.2)
        return self.motion(seen), self.pixels(self.mix(torch.cat([up, fine], 1)))


class Scene(VideoModel[SceneState]):
    """A scene before a still camera, and the figure that moves in it.

    ground' = m_1 ground + m_2 last frame + m_3 drawn content + sum_j m_(j+3) ground displaced by motion j,
    frame = ground' + opacity (figure - ground'), with masks m >= 0 of sum 1 at each pixel.
    """

    compiled = ("encoder", "figure", "ground")

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
        g_dim, pose_size = 128, 2 * cfg.rnn_size
        self.encoder = Encoder(channels, cfg.width, image_size, g_dim)
        self.pose = nn.LSTMCell(g_dim + z_dim + cfg.actions, pose_size)
        self.figure = Figure(channels, cfg.width, pose_size, image_size)
        self.ground = Ground(channels, cfg.width, cfg.motions, image_size)
        self.prior = self.posterior = None
        if z_dim:
            self.posterior = GaussianCore(2 * g_dim + 2 * z_dim + cfg.actions, cfg.rnn_size, z_dim)
        if cfg.prior == "learned":
            self.prior = GaussianCore(g_dim + cfg.actions, cfg.rnn_size, z_dim)
        self.head = ParameterHead(likelihood, channels)
        self.to(memory_format=torch.channels_last)  # an eighth less time on a CPU
        self.likelihood = likelihood

    def forward(
        self, video: Tensor, noise: Tensor, n_past: int | None = None, actions: Tensor | None = None
    ) -> Prediction:
        """See `VideoModel.forward`. Frames after the context follow the model's own; so do q and p."""
        n_samples = noise.shape[0]
        _, pictures, latents = self._follow(video, noise, n_past or self.n_past, actions)
        params = self.head(stack_frames(pictures, n_samples))
        if not latents:
            return Prediction(params, None, None, noise)
        qs, ps, zs = zip(*latents)
        q, p = (Gaussian(*(stack_frames(x, n_samples) for x in zip(*gs))) for gs in (qs, ps))
        return Prediction(params, q, p, stack_frames(zs, n_samples))

    def start(self, context: Tensor, noise: Tensor, actions: Tensor | None = None) -> SceneState:
        """See `VideoModel.start`."""
        return self._follow(context, noise, context.shape[1], actions)[0]

    def step(self, state: SceneState, noise: Tensor, actions: Tensor | None = None) -> tuple[Tensor, SceneState]:
        """See `VideoModel.step`."""
        features = self.encoder(state.picture, state.ground)
        p, state = self._prior(features[2], actions, state)
        state = self._move(features, noise if p is None else p.sample(noise), actions, state)
        return self.head(state.picture), state

    def mean_frame(self, params: Tensor, state: SceneState) -> Tensor:
        return state.picture

    def _follow(
        self, video: Tensor, noise: Tensor, n_observed: int, actions: Tensor | None
    ) -> tuple[SceneState, list[Tensor], list[tuple[Gaussian, Gaussian, Tensor]]]:
        """Predict frames 1..T-1 with z from the posterior; the first n_observed frames are observed.

        Returns:
            The state after the last frame; each predicted frame's picture (R, C, H, W); with a latent, its q, p and z
            (R, Z).
        """
        n_samples, n_frames = noise.shape[0], video.shape[1] - 1
        noise = noise.flatten(0, 1)  # (R, T-1, Z)
        first = video[:, 0].repeat(n_samples, 1, 1, 1)
        empty = first.new_zeros(len(first), self.rnn_size)
        pose = first.new_zeros(len(first), 2 * self.rnn_size)
        state = SceneState(first, first, (pose, pose), (empty, empty))
        if self.posterior is not None and n_frames > 0:
            pairs = video[:, 1:].flatten(0, 1), video[:, :1].expand_as(video[:, 1:]).flatten(0, 1)
            seen = self.encoder(*pairs)[2].unflatten(0, (-1, n_frames)).repeat(n_samples, 1, 1)  # (R, T-1, G)
        by_frame = actions_by_frame(actions, n_samples, n_frames)  # (R, A) each
        pictures, latents, memory = [], [], (empty, empty)
        for t in range(n_frames):
            features = self.encoder(state.picture, state.ground)
            p, state = self._prior(features[2], by_frame[t], state)
            z = noise[:, t]
            if self.posterior is not None:
                with float32(video):
                    p = standard_normal_like(Gaussian(z, z)) if p is None else p
                    known = torch.cat([features[2], seen[:, t], p.mu.detach(), p.logvar.detach()], -1)
                    q, memory = self.posterior(self.with_actions(known, by_frame[t]), memory)
                    z = q.sample(z)
                latents.append((q, p, z))
            state = self._move(features, z, by_frame[t], state)
            pictures.append(state.picture)
            if t + 1 < n_observed:
                state = state._replace(picture=video[:, t + 1].repeat(n_samples, 1, 1, 1))
        return state, pictures, latents

    def _prior(self, vector: Tensor, action: Tensor | None, state: SceneState) -> tuple[Gaussian | None, SceneState]:
        """p(z) of the next frame, (R, Z), None unless it is learned."""
        if self.prior is None:
            return None, state
        with float32(vector):
            p, memory = self.prior(self.with_actions(vector, action), state.prior)
        return p, state._replace(prior=memory)

    def _move(
        self, features: tuple[Tensor, Tensor, Tensor], z: Tensor, action: Tensor | None, state: SceneState
    ) -> SceneState:
        """The state after the next frame."""
        fine, coarse, vector = features
        with float32(z):
            pose = self.pose(torch.cat([vector, self.with_actions(z, action)], -1), state.pose)
        posed, figure = self.figure(pose[0])
        motions, pixels = self.ground(fine, coarse, posed)
        with float32(z):
            ground, dtype, n_masks = state.ground, state.ground.dtype, self.n_motions + 3
            pixels, figure = pixels.to(dtype), figure.to(dtype)
            moved = self._displace(ground, motions.to(dtype).unflatten(-1, (-1, 3)))
            drawn = pixels[:, n_masks:].sigmoid()
            sources = torch.cat([torch.stack([ground, state.picture, drawn], 1), moved], 1)  # (R, M + 3, C, H, W)
            start = pixels.new_tensor([STAYS] + [0.0] * (self.n_motions + 2))[:, None, None]
            masks = (pixels[:, :n_masks] + start).softmax(1)
            ground = (masks[:, :, None] * sources).sum(1)
            picture = ground + (figure[:, :1] + UNSEEN).sigmoid() * (figure[:, 1:].sigmoid() - ground)
        return SceneState(picture, ground, pose, state.prior)

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
