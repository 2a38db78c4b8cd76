"""A predictor that keeps what it saw and moves it: canvases of pixels under latent velocities (family `transport`).

Redrawing every frame from a feature vector forgets what a digit looked like and takes days to learn. Here the context
is written onto L canvases once; from then on a latent per canvas decides only how it moves. Precedents: dynamic neural
advection (Finn et al. 2016, arXiv:1605.07157), DDPAE (Hsieh et al. 2018, arXiv:1806.04166), SLAMP (Akan et al. 2021,
arXiv:2108.02760).

Shapes: K importance samples, N generated samples, B videos, R rows (K * B or N * B), L layers, T frames, C H W,
D = 2 * max_displacement + 1 displacements per axis, Z = L * z_dim latents per frame.
Units: positions, displacements and velocities are in pixels, (row, column); velocities per frame.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.config.models import TransportConfig
from seqvae.gaussian import Gaussian, standard_normal_like
from seqvae.likelihoods import Likelihood
from seqvae.likelihoods.base import at_least_float32
from seqvae.models.base import Prediction, VideoModel, float32

EDGE = 1 / 512  # pictures lie in [EDGE, 1 - EDGE], half a grey level, so that their logits are finite
LOGVAR_RANGE = 8.0  # of the latents, reached smoothly
PRIOR_LR = 3.0  # learning rate of the prior over that of the rest
HISTORY = 3  # displacements that the prior is shown
PATCH = 4  # the write gate works on patches of 4x4 pixels


class Core(nn.Module):
    """An LSTM cell between two small layers; the last one also sees the input directly."""

    def __init__(self, in_features: int, rnn_size: int, out_features: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(in_features, rnn_size), nn.LeakyReLU(0.2))
        self.cell = nn.LSTMCell(rnn_size, rnn_size)
        self.mix = nn.Sequential(nn.Linear(2 * rnn_size, rnn_size), nn.LeakyReLU(0.2))
        self.head = nn.Linear(rnn_size, out_features)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(R, L, in_features) and the state, two of (R, L, rnn_size), to (R, L, out_features) and the next state."""
        rows = x.shape[:2]
        embedded = self.embed(x.flatten(0, 1))
        hidden, cell = self.cell(embedded, (state[0].flatten(0, 1), state[1].flatten(0, 1)))
        out = self.head(self.mix(torch.cat([hidden, embedded], -1)))
        return out.unflatten(0, rows), (hidden.unflatten(0, rows), cell.unflatten(0, rows))


class Prior(nn.Module):
    """p(z): an LSTM core, corrected by a network that is shown the last displacements and where they began.

    Whether a velocity is about to change, just changed or is not fully known yet is a matter of the last three frames:
    a bounce shows a part of the new velocity, the frame after it all.
    """

    def __init__(self, in_features: int, history_features: int, rnn_size: int, z_dim: int) -> None:
        super().__init__()
        self.core = Core(in_features, rnn_size, 2 * z_dim)
        _scale(self.core.head, 0.3)
        self.correction = nn.Sequential(
            *(nn.Linear(in_features + history_features, 256), nn.LeakyReLU(0.2)),
            *(nn.Linear(256, 256), nn.LeakyReLU(0.2), nn.Linear(256, 2 * z_dim)),
        )
        _scale(self.correction[-1], 0.0)

    def forward(
        self, features: Tensor, history: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Gaussian, tuple[Tensor, Tensor]]:
        """(R, L, in_features), (R, L, history_features) and the state, to p (R, L, z_dim) and the next state."""
        out, state = self.core(features, state)
        mu, logvar = (out + self.correction(torch.cat([features, history], -1))).chunk(2, -1)
        return Gaussian(mu, _bounded(logvar)), state


class WriteGate(nn.Module):
    """A small U-Net: from a frame, the picture expected in its place and the canvases to a gate per pixel and layer."""

    def __init__(self, in_channels: int, layers: int, width: int, image_size: int) -> None:
        super().__init__()
        coarsest = (image_size // (4 * PATCH)) ** 2
        self.fine = nn.Sequential(nn.PixelUnshuffle(PATCH), _block(PATCH**2 * in_channels, width, 3, 1))
        self.down_half = _block(width, width, 4, 2)
        self.down_quarter = _block(width, width, 4, 2)
        self.everywhere = nn.Sequential(
            *(nn.Flatten(), nn.Linear(coarsest * width, 256), nn.ReLU()),
            *(nn.Linear(256, coarsest * width), nn.ReLU()),
        )
        self.up_half = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.up_fine = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.head = nn.Sequential(
            _block(2 * width, width, 3, 1), nn.Conv2d(width, PATCH**2 * layers, 3, 1, 1), nn.PixelShuffle(PATCH)
        )

    def forward(self, seen: Tensor) -> Tensor:
        """(R, in_channels, H, W) -> (R, L, H, W) in [0, 1], float32 whatever autocast does."""
        fine = self.fine(seen)
        half = self.down_half(fine)
        quarter = self.down_quarter(half)
        up = torch.cat([self.everywhere(quarter).view_as(quarter), quarter], 1)
        up = torch.cat([F.relu(self.up_half(up)), half], 1)
        return self.head(torch.cat([F.relu(self.up_fine(up)), fine], 1)).to(seen.dtype).sigmoid()


class TransportState(NamedTuple):
    """What the model knows after a frame."""

    canvases: Tensor  # (R, L, C, H, W) in [0, 1]
    velocity: Tensor  # (R, L, 2)
    log_spread: Tensor  # (R, L, 1) log of the standard deviation of the last displacement
    path: Tensor  # (R, L, HISTORY, 2) the last displacements, latest first
    prior: tuple[Tensor, Tensor]  # LSTM states, (R, L, rnn_size) each
    frame_predictor: tuple[Tensor, Tensor]  # the same


class Transport(VideoModel[TransportState]):
    """Canvases under latent velocities.

    Observing a frame x:            canvas_l += gate_l (x - picture); at the first frame canvas_l = gate_l x.
    Predicting one, in every layer: z from the prior, or from the posterior, which has evidence of the displacement,
                                    velocity += event(z) change(z),
                                    displacement = velocity + event(z) detour(z), for this frame alone,
                                    canvas_l moved by a narrow distribution around the displacement,
                                    picture = 1 - prod_l (1 - canvas_l), which suits bright things on black.

    `event` in [0, 1] is a gate that the first latent opens. While it is closed a layer keeps its velocity whatever the
    other latents are, so they cost no KL and add no noise: a future without surprise stays exact for ever. One set of
    weights serves all layers, so nothing depends on which thing lies on which canvas.
    """

    compiled = ("write_gate",)
    recomputed = ("write",)

    def __init__(
        self, cfg: TransportConfig, likelihood: Likelihood, *, image_size: int, channels: int, n_past: int
    ) -> None:
        z_dim = cfg.z_dim if cfg.has_latent else 0  # per layer
        super().__init__(channels=channels, image_size=image_size, n_past=n_past, z_dim=cfg.layers * z_dim)
        self.layers, self.reach, self.rnn_size, self.snaps = cfg.layers, cfg.max_displacement, cfg.rnn_size, cfg.snaps
        self.register_buffer("displacements", torch.arange(-self.reach, self.reach + 1.0), persistent=False)
        self.register_buffer("pixels", torch.arange(image_size) - (image_size - 1) / 2, persistent=False)
        shift = torch.arange(image_size)[:, None] - torch.arange(image_size)  # row moved to minus row moved from
        bands = (shift == self.displacements[:, None, None]).float()  # (D, H, H)
        self.register_buffer("bands", bands.flatten(1), persistent=False)
        padded = 16 * math.ceil((image_size + self.reach) / 16)  # so that displacements do not wrap
        self.register_buffer("row_frequencies", torch.fft.fftfreq(padded), persistent=False)
        self.register_buffer("column_frequencies", torch.fft.rfftfreq(padded), persistent=False)
        self.register_buffer("position_waves", 2.0 * image_size / 2 ** torch.arange(6), persistent=False)
        self.register_buffer("velocity_waves", 2.0 ** torch.arange(4, 0, -1), persistent=False)

        n_displacements, n_waves = len(self.displacements), (len(self.position_waves), len(self.velocity_waves))
        self.write_gate = WriteGate((2 + self.layers) * channels, self.layers, cfg.width, image_size)
        features = 4 * (2 * n_waves[0] + n_waves[1]) + 8  # see `_features`
        evidence = 2 * (n_displacements**2 + 2 * n_displacements + 4 * n_waves[1] + 5)  # see `_evidence`
        self.prior = self.posterior = self.gain = None
        if z_dim:
            self.posterior = Core(features + evidence + 2 * z_dim, cfg.rnn_size, 2 * z_dim + 1)
            self.log_temperature = nn.Parameter(torch.zeros(()))  # of the evidence
            self.gain = nn.Linear(z_dim - 1, 2, bias=False)
            nn.init.orthogonal_(self.gain.weight, 2.0)
            _scale(self.posterior.head, 0.3)
        if cfg.prior == "learned":
            self.prior = Prior(features, HISTORY * (4 * sum(n_waves) + 4) + HISTORY - 1, cfg.rnn_size, z_dim)
        self.frame_predictor = Core(features + z_dim, cfg.rnn_size, 6)
        _scale(self.frame_predictor.head, 0.01)  # velocities start out nearly constant
        self.snap = nn.Parameter(torch.tensor(0.5))  # in [0, 1]: how strongly velocities are pulled to whole pixels
        self.head = ParameterHead(likelihood, channels)
        self.likelihood = likelihood

    # ---- the seam

    def forward(
        self, video: Tensor, noise: Tensor, n_past: int | None = None, actions: Tensor | None = None
    ) -> Prediction:
        """See `VideoModel.forward`. Each sample has its own q and p, which see earlier z in the velocities."""
        n_samples = noise.shape[0]
        _, pictures, q, p, z = self._follow(video, noise, n_past or self.n_past)
        params = self.head(pictures)
        if n_samples > 1 and q is not None:
            q, p = (Gaussian(*(x.unflatten(0, (n_samples, -1)) for x in g)) for g in (q, p))
        return Prediction(params.unflatten(0, (n_samples, -1)), q, p, z.unflatten(0, (n_samples, -1)))

    def start(self, context: Tensor, noise: Tensor, actions: Tensor | None = None) -> TransportState:
        """See `VideoModel.start`."""
        return self._follow(context, noise, context.shape[1])[0]

    def step(
        self, state: TransportState, noise: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, TransportState]:
        """See `VideoModel.step`."""
        z = noise.unflatten(-1, (self.layers, -1))  # (R, L, z_dim)
        with float32(noise):
            features, center, _ = self._features(state)
            p, state = self._prior(features, center, state)
            z = z if p is None else p.sample(z)
            picture, state = self._move(features, z, state)
            return self.head(picture), state

    def parameter_groups(self) -> list[dict[str, object]]:
        """The prior has gradients of its own size, from the KL alone, and much to learn: a group of its own."""
        groups = [{"params": self._parameters_outside("likelihood.", "prior."), "scale": 1.0}]
        if self.prior is not None:
            groups.append({"params": list(self.prior.parameters()), "scale": PRIOR_LR})
        return groups

    # ---- one frame

    def _follow(
        self, video: Tensor, noise: Tensor, n_written: int
    ) -> tuple[TransportState, Tensor, Gaussian | None, Gaussian | None, Tensor]:
        """Predict frames 1..T-1 with z from the posterior; write the first n_written frames onto the canvases.

        Args:
            video: (B, T, C, H, W).
            noise: (K, B, T-1, Z).

        Returns:
            The state after the last frame, pictures (R, T-1, C, H, W), q and p (R, T-1, Z) or None, z (R, T-1, Z).
        """
        n_samples = noise.shape[0]
        noise = noise.flatten(0, 1).unflatten(-1, (self.layers, -1))  # (R, T-1, L, z_dim)
        state, seen = self._first(video[:, 0], n_samples), None
        spectra = self._spectrum(video)
        pictures, qs, ps, zs = [], [], [], []
        for t in range(video.shape[1] - 1):
            with float32(video):
                features, center, mass = self._features(state)
                p, state = self._prior(features, center, state)
                z, q = noise[:, t], None
                if self.posterior is not None:
                    p = p or standard_normal_like(Gaussian(z, z))
                    evidence = self._evidence(state, mass, spectra[:, t + 1].repeat(n_samples, 1, 1, 1))
                    q, seen = self._posterior(torch.cat([features, evidence], -1), p, seen)
                    z = q.sample(z)
                picture, state = self._move(features, z, state)
            for values, value in ((pictures, picture), (qs, q), (ps, p), (zs, z)):
                values.append(value)
            if t + 1 < n_written:
                frame = video[:, t + 1].repeat(n_samples, 1, 1, 1)
                state = state._replace(canvases=self.write(frame, picture, state.canvases))
        if not pictures:  # a context of one frame
            return state, video[:, 1:], None, None, noise.flatten(2)
        q = p = None
        if self.posterior is not None:
            q, p = (Gaussian(*(torch.stack(x, 1).flatten(2) for x in zip(*gs))) for gs in (qs, ps))
        return state, torch.stack(pictures, 1), q, p, torch.stack(zs, 1).flatten(2)

    def _first(self, frame: Tensor, n_samples: int) -> TransportState:
        """The state after the first frame (B, C, H, W), for n_samples rows of each video."""
        empty = frame.new_zeros(len(frame), self.layers, *frame.shape[1:])
        gates = self.write_gate(torch.cat([frame, frame, empty.flatten(1, 2)], 1))  # (B, L, H, W)
        canvases = (gates[:, :, None] * frame[:, None]).repeat(n_samples, 1, 1, 1, 1)
        velocity, log_spread, memory = (frame.new_zeros(*canvases.shape[:2], n) for n in (2, 1, self.rnn_size))
        path = frame.new_zeros(*canvases.shape[:2], HISTORY, 2)
        return TransportState(canvases, velocity, log_spread, path, (memory, memory), (memory, memory))

    def write(self, frame: Tensor, picture: Tensor, canvases: Tensor) -> Tensor:
        """Correct the canvases where the frame differs from the picture expected."""
        gates = self.write_gate(torch.cat([frame, picture, canvases.flatten(1, 2)], 1))
        return (canvases + gates[:, :, None] * (frame - picture)[:, None]).clamp(0, 1)

    def _features(self, state: TransportState) -> tuple[Tensor, Tensor, Tensor]:
        """Where layers lie and how they move, (R, L, features), their centers and mass; no gradient to the past."""
        with torch.no_grad():
            weight = state.canvases.square().sum(2) + 1e-7  # (R, L, H, W)
            profiles = torch.stack([weight.sum(-1), weight.sum(-2)], 2)  # (R, L, 2, H)
            mass = profiles[:, :, 0].sum(-1, keepdim=True)
            profiles = profiles / mass[..., None]
            middle = profiles @ self.pixels  # (R, L, 2)
            extent = ((profiles * (self.pixels - middle[..., None]) ** 2).sum(-1) + 1e-4).sqrt()
            ink = state.canvases.sum(2) + 1e-7
            profiles = torch.stack([ink.sum(-1), ink.sum(-2)], 2)
            center = profiles @ self.pixels / profiles.sum(-1)
            velocity = state.velocity
            features = [
                *(_fourier(center, self.position_waves), _fourier(center + velocity, self.position_waves)),
                *(_fourier(velocity, self.velocity_waves), center / 16, extent / 8, mass.log() / 4),
                *(velocity / 4, state.log_spread),
            ]
            return torch.cat(features, -1), center, mass

    def _prior(
        self, features: Tensor, center: Tensor, state: TransportState
    ) -> tuple[Gaussian | None, TransportState]:
        """p(z) of the next frame, (R, L, z_dim), None unless it is learned."""
        if self.prior is None:
            return None, state
        with torch.no_grad():
            began = center[:, :, None] - state.path.cumsum(2)  # (R, L, HISTORY, 2) where each displacement began
            history = [_fourier(state.path, self.velocity_waves), _fourier(began, self.position_waves)]
            changed = (state.path[:, :, 1:] - state.path[:, :, :-1]).abs().amax(-1) > 0.5  # (R, L, HISTORY - 1)
            history = torch.cat([*history, state.path / 4, began / 16], -1).flatten(2)
            history = torch.cat([history, changed.to(history)], -1)
        p, memory = self.prior(features, history, state.prior)
        return p, state._replace(prior=memory)

    def _posterior(
        self, seen: Tensor, p: Gaussian, memory: tuple[Tensor, Tensor] | None
    ) -> tuple[Gaussian, tuple[Tensor, Tensor]]:
        """q(z) given the evidence: the prior itself where a gate is closed, so that what is expected costs nothing.

        The prior is detached: it learns from the KL alone, as SVG's does, and not from the pictures.
        """
        if memory is None:
            memory = (seen.new_zeros(*seen.shape[:2], self.rnn_size),) * 2
        expected = Gaussian(p.mu.detach(), p.logvar.detach())
        out, memory = self.posterior(torch.cat([seen, *expected], -1), memory)
        mu, logvar = out[..., :-1].chunk(2, -1)
        gate = (out[..., -1:] + 1).sigmoid()
        q = Gaussian(expected.mu.lerp(mu, gate), expected.logvar.lerp(_bounded(logvar - 2), gate))
        return q, memory

    def _move(self, features: Tensor, z: Tensor, state: TransportState) -> tuple[Tensor, TransportState]:
        """The next picture (R, C, H, W) and the state after it; z is (R, L, z_dim)."""
        out, memory = self.frame_predictor(torch.cat([features, z], -1), state.frame_predictor)
        change, detour, spread, opening = out.split([2, 2, 1, 1], -1)
        if self.gain is not None:
            event = (3 * z[..., :1] + opening).sigmoid()
            change, detour = event * (change + self.gain(z[..., 1:])), event * detour
        velocity = (state.velocity + change).clamp(-self.reach, self.reach)
        displacement = (state.velocity + change + detour).clamp(-self.reach, self.reach)
        log_spread = 1.4 * spread.tanh() - 0.4  # 0.17 to 2.7 px
        displacement = self._snapped(displacement)
        canvases = self._displace(state.canvases, displacement, log_spread)
        picture = 1 - functools.reduce(torch.mul, (1 - canvases).unbind(1))
        path = torch.cat([displacement.detach()[:, :, None], state.path[:, :, :-1]], 2)
        return picture, TransportState(canvases, self._snapped(velocity), log_spread, path, state.prior, memory)

    def _displace(self, canvases: Tensor, displacement: Tensor, log_spread: Tensor) -> Tensor:
        """Spread every canvas over displacements in proportion to exp(-(d - displacement)^2 / (2 spread^2)).

        Rows and columns by a band matrix each: exact for whole pixels, and the gradient reaches `max_displacement` far.
        """
        squares = (self.displacements - displacement[..., None]) ** 2  # (R, L, 2, D)
        weights = (-0.5 * squares * (-2 * log_spread).exp()[..., None]).softmax(-1)
        bands = (weights @ self.bands).unflatten(-1, (len(self.pixels), -1))[:, :, :, None]  # (R, L, 2, 1, H, H)
        return bands[:, :, 0] @ canvases @ bands[:, :, 1].transpose(-1, -2)

    def _snapped(self, velocity: Tensor) -> Tensor:
        """Velocities pulled towards whole pixels, v - snap sin(2 pi v) / (2 pi), a few times over.

        Half-way between two pixels the pull's slope is above 1, and frame after frame gradients would explode: there
        it counts as 1.
        """
        snap = self.snap.clamp(0, 1)
        for _ in range(self.snaps):
            v = velocity.detach()
            slope = (1 - snap.detach() * (2 * math.pi * v).cos()).clamp(max=1)
            velocity = v - snap * (2 * math.pi * v).sin() / (2 * math.pi) + slope * (velocity - v)
        return velocity

    # ---- evidence of motion

    @torch.no_grad()
    def _spectrum(self, frames: Tensor) -> Tensor:
        """Fourier transform (..., C, H, W) -> (..., C, S, S // 2 + 1), padded so that displacements do not wrap."""
        size = len(self.row_frequencies)
        with float32(frames):
            return torch.fft.rfft2(at_least_float32(frames), s=(size, size))

    def _evidence(self, state: TransportState, mass: Tensor, spectrum: Tensor) -> Tensor:
        """What the frame says about the displacement of every layer, (R, L, evidence); no gradient to the canvases.

        The correlation of the frame with a canvas displaced by d equals the canvas's own mass where all of it is found.
        It is given twice: for the frame, and for what the other layers leave of it if they keep their velocities.
        """
        n = 2 * self.reach + 1
        with torch.no_grad():
            canvases = self._spectrum(state.canvases)  # (R, L, C, S, S // 2 + 1)
            size = canvases.shape[-2]
            angle = -2 * math.pi * state.velocity  # (R, L, 2)
            rows, columns = (
                torch.polar(torch.ones_like(a), a)
                for a in (angle[..., :1] * self.row_frequencies, angle[..., 1:] * self.column_frequencies)
            )
            moved = canvases * (rows[..., None] * columns[:, :, None])[:, :, None]
            left = spectrum[:, None] - (moved.sum(1, keepdim=True) - moved)
            seen = torch.stack([spectrum[:, None].expand_as(left), left], 2)  # (R, L, 2, C, ...)
            found = torch.fft.irfft2((seen * canvases[:, :, None].conj()).sum(3), s=(size, size))
            found = found.roll((self.reach, self.reach), (-2, -1))[..., :n, :n]  # (R, L, 2, D, D)
            share = found / (mass[..., None, None] + 1)
            peak = share.amax((-2, -1))  # (R, L, 2)
        chance = (found * self.log_temperature.exp()).flatten(3).softmax(-1).unflatten(-1, (n, n))
        rows, columns = chance.sum(-1), chance.sum(-2)  # (R, L, 2, D)
        mean = torch.stack([rows @ self.displacements, columns @ self.displacements], -1)  # (R, L, 2, 2)
        parts = [
            2 * (share - peak[..., None, None]).flatten(2),
            rows.flatten(2),
            columns.flatten(2),
            mean.flatten(2) / 4,
        ]
        parts += [(mean - state.velocity.detach()[:, :, None]).flatten(2), peak]
        return torch.cat([*parts, _fourier(mean.flatten(2), self.velocity_waves)], -1)


class ParameterHead(nn.Module):
    """Pictures to likelihood parameters: their logits, and whatever else the likelihood wants from 1x1 convolutions."""

    def __init__(self, likelihood: Likelihood, channels: int) -> None:
        super().__init__()
        self.channels, self.mean_channels = channels, likelihood.mean_channels
        rest = likelihood.param_channels - self.mean_channels
        self.rest = None
        if rest:
            self.rest = nn.Sequential(nn.Conv2d(2 * channels, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, rest, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """(..., C, H, W) in [0, 1] -> (..., param_channels, H, W)."""
        logits = torch.logit(EDGE + (1 - 2 * EDGE) * pictures)
        if self.rest is None:
            return logits
        rest = self.rest(torch.cat([pictures, logits / 4], -3).flatten(0, -4)).to(logits.dtype)
        rest = rest.unflatten(0, pictures.shape[:-3])
        return torch.cat([logits[..., : self.mean_channels, :, :], rest], -3)


def _block(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, 1)
    return nn.Sequential(conv, nn.GroupNorm(max(1, out_channels // 16), out_channels), nn.LeakyReLU(0.2))


def _fourier(x: Tensor, wavelengths: Tensor) -> Tensor:
    """Sines and cosines of (..., n) at every wavelength, (..., 2 * n * len(wavelengths))."""
    angle = x[..., None] * (2 * math.pi / wavelengths)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def _bounded(logvar: Tensor) -> Tensor:
    return LOGVAR_RANGE * (logvar / LOGVAR_RANGE).tanh()


def _scale(layer: nn.Linear, factor: float) -> None:
    with torch.no_grad():
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)
