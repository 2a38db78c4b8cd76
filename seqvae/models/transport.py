"""A predictor that keeps what it saw and moves it: canvases of pixels under latent displacements (family `transport`).

Redrawing every frame from a feature vector forgets what a digit looked like and takes days to learn. Here the context
is written onto L canvases once; from then on two latents per canvas decide only where it moves. Precedents: dynamic
neural advection (Finn et al. 2016, arXiv:1605.07157), DDPAE (Hsieh et al. 2018, arXiv:1806.04166), SLAMP (Akan et al.
2021, arXiv:2108.02760).

Shapes: K importance samples, N generated samples, B videos, R rows (K * B or N * B), L layers, T frames, C H W,
D = 2 * max_displacement + 1 displacements per axis, Z = 2 * L latents per frame.
Units: positions are in pixels, displacements in pixels per frame, (row, column).
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqvae.config.models import TransportConfig
from seqvae.gaussian import Gaussian, standard_normal_like
from seqvae.likelihoods import Likelihood
from seqvae.models import cuts
from seqvae.models.base import (
    ActionScale,
    ParameterHead,
    Prediction,
    VideoModel,
    actions_by_frame,
    float32,
    stack_frames,
)
from seqvae.models.evidence import VELOCITY_WAVES, Evidence, fourier
from seqvae.networks.transport import Core, WriteGate

FLOOR = 1e-3  # probability that the prior spreads evenly, so that no displacement costs more than some 12 nats
REACH_BACK = 0.7  # px, width of a displacement in the backward pass: gradients of neighbouring pixels
MOST_EVIDENCE = 40.0  # nats, so that the network of the posterior can still object
PRIOR_LR = 3.0  # learning rate of the prior over that of the rest
HISTORY = 3  # displacements that the prior is shown
LOOKS = 4  # at the context, in eval mode


class TransportState(NamedTuple):
    """What the model knows after a frame."""

    canvases: Tensor  # (R, L, C, H, W) in [0, 1]
    path: Tensor  # (R, L, HISTORY, 2) the last displacements, latest first
    memory: tuple[Tensor, Tensor]  # LSTM state of the prior, (R, L, rnn_size) each
    seen: tuple[Tensor, Tensor]  # the posterior's, likewise

    def repeat(self, n: int) -> "TransportState":
        """n samples of each video, sample by sample."""
        memory, seen = (tuple(x.repeat(n, 1, 1) for x in cell) for cell in (self.memory, self.seen))
        return TransportState(self.canvases.repeat(n, 1, 1, 1, 1), self.path.repeat(n, 1, 1, 1), memory, seen)


class Transport(VideoModel[TransportState]):
    """Canvases under latent displacements.

    Observing a frame x:            canvas_l += gate_l (x - picture); at the first frame canvas_l = gate_l x.
    Predicting one, in every layer: p(d) over the D^2 displacements, given the past,
                                    z ~ N(0, 1), or from the posterior, which has evidence of the displacement,
                                    d = the displacement in whose interval of z it lies (`cuts`): rows, then columns,
                                    canvas_l moved by d, whole pixels,
                                    picture = 1 - prod_l (1 - canvas_l), which suits bright things on black.

    Where p is sure of a displacement its interval is the whole line: whatever z is, a future without surprise stays
    exact for ever, and costs no KL. One set of weights serves all layers, so nothing depends on which thing lies on
    which canvas. The prior learns slowly next to the rest, and tracks of earlier clips cost little: it rehearses them.

    In eval mode the context is seen several times. What was one blob in the first frame has often come apart by the
    last one, so the canvases of one look, moved back to where they were, are what the next one begins with. Futures
    follow the last; in all z is the posterior's mean, so samples share them. Predictions of the context's own frames
    are made as in training, by a look that has seen no later frame.
    """

    compiled = ("write_gate",)
    recomputed = ("write",)

    def __init__(
        self, cfg: TransportConfig, likelihood: Likelihood, *, image_size: int, channels: int, n_past: int
    ) -> None:
        z_dim = 2 * cfg.layers if cfg.has_latent else 0  # a row and a column
        super().__init__(channels=channels, image_size=image_size, n_past=n_past, z_dim=z_dim)
        self.layers, self.reach, self.rnn_size = cfg.layers, cfg.max_displacement, cfg.rnn_size
        self.action_scale = ActionScale(cfg.actions) if cfg.actions else None
        self.register_buffer("displacements", torch.arange(-self.reach, self.reach + 1.0), persistent=False)
        self.register_buffer("pixels", torch.arange(image_size) - (image_size - 1) / 2, persistent=False)
        shift = torch.arange(image_size)[:, None] - torch.arange(image_size)  # row moved to minus row moved from
        bands = (shift == self.displacements[:, None, None]).to(self.displacements)  # (D, H, H)
        self.register_buffer("bands", bands.flatten(1), persistent=False)
        self.register_buffer("position_waves", 2.0 * image_size / 2 ** torch.arange(6), persistent=False)
        self.register_buffer("velocity_waves", torch.tensor(VELOCITY_WAVES), persistent=False)

        n, n_waves = len(self.displacements), (len(self.position_waves), len(self.velocity_waves))
        self.write_gate = WriteGate((2 + self.layers) * channels, self.layers, cfg.width, image_size)
        features = 8 * n_waves[0] + 5 + HISTORY * (4 * sum(n_waves) + 4) + HISTORY - 1 + cfg.actions  # see `_describe`
        self.prior = self.posterior = self.changes = None
        if cfg.prior == "learned":
            self.rehearsals, self.track_size = cfg.rehearsals, self.layers * (6 + 2 * HISTORY + cfg.actions)
        if cfg.prior == "fixed":
            self.changes = nn.Parameter(torch.zeros(2, 4 * self.reach + 1))  # log p of a change, by axis
        else:
            self.prior = Core(features, cfg.rnn_size, n * n)
            _scale(self.prior.head, 0.3)
        if cfg.has_latent:
            self.evidence = Evidence(image_size, cfg.layers, self.reach)
            self.posterior = Core(features + self.evidence.n_features, cfg.rnn_size, n * n)
            _scale(self.posterior.head, 0.01)
            self.log_trust = nn.Parameter(torch.full((2,), math.log(0.5)))  # in the frame, and in what others leave
            self.fit = nn.Sequential(nn.Linear(5, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
            _scale(self.fit[-1], 0.01)
        self.head = ParameterHead(likelihood, channels)
        self.likelihood = likelihood

    # ---- the VideoModel interface

    def forward(
        self, video: Tensor, noise: Tensor, n_past: int | None = None, actions: Tensor | None = None
    ) -> Prediction:
        """See `VideoModel.forward`. Each sample has its own q, which sees earlier z in the displacements."""
        n_samples, n_seen = noise.shape[0], (n_past or self.n_past) - 1  # n_seen of the predicted frames are observed
        context, told = video[:, : n_seen + 1], None if actions is None else actions[:, :n_seen]
        rest = None if actions is None else actions[:, n_seen:]
        state = self._first(context[:, 0]).repeat(n_samples)
        state, *seen = self._follow(state, context[:, 1:], noise[:, :, :n_seen], told, write=True)
        if not self.training:
            state = self._observe(context, told).repeat(n_samples)
        _, *future = self._follow(state, video[:, n_seen + 1 :], noise[:, :, n_seen:], rest, write=False)
        pictures, latents, tracks = (a + b for a, b in zip(seen[1:], future[1:]))
        params = self.head(stack_frames(pictures, n_samples))
        if not latents:
            return Prediction(params, None, None, noise)
        qs, zs = zip(*latents)
        q = Gaussian(*(stack_frames(x, n_samples).flatten(3) for x in zip(*qs)))
        rehearsed = self.training and self.rehearsals > 0
        first = stack_frames(tracks, n_samples)[0].flatten(2) if rehearsed else None
        return Prediction(params, q, standard_normal_like(q), stack_frames(zs, n_samples).flatten(3), first)

    def rehearse(self, tracks: Tensor) -> Tensor:
        """See `VideoModel.rehearse`: -log p of the displacements that were chosen, of all layers together."""
        tracks = tracks.unflatten(-1, (self.layers, -1))  # (B, F, L, track_size / L)
        situations, chosen = tracks[..., :-1], tracks[..., -1:].long()
        memory = (tracks.new_zeros(len(tracks), self.layers, self.rnn_size),) * 2
        nats = []
        with float32(tracks):
            for t, features in enumerate(self._describe(situations).unbind(1)):
                logits, memory = self.prior(features, memory)
                nats.append(-self._probabilities(logits).gather(-1, chosen[:, t]).log().sum((1, 2)))
        return torch.stack(nats, -1)

    def start(self, context: Tensor, noise: Tensor, actions: Tensor | None = None) -> TransportState:
        """See `VideoModel.start`. Samples begin alike: the context's z is the posterior's mean, whatever the noise."""
        return self._observe(context, actions).repeat(len(noise))

    def step(
        self, state: TransportState, noise: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, TransportState]:
        """See `VideoModel.step`."""
        with float32(noise):
            p, memory = self._prior(self._describe(self._situation(state, actions)), state)
            displacement = None
            if self.posterior is not None:
                displacement, _, _, _ = self._displacement(p, noise.unflatten(-1, (self.layers, 2)))
            picture, state = self._move(state, p, displacement)
            return self.head(picture), state._replace(memory=memory)

    def parameter_groups(self) -> list[dict[str, object]]:
        """The prior has gradients of its own size, none from pictures, and much to learn: a group of its own."""
        groups = [{"params": self._parameters_outside("likelihood.", "prior."), "scale": 1.0}]
        if self.prior is not None:
            groups.append({"params": list(self.prior.parameters()), "scale": PRIOR_LR})
        return groups

    # ---- one frame

    def _observe(self, context: Tensor, actions: Tensor | None) -> TransportState:
        """The state after the last of several looks at the context (B, T, C, H, W), R = B."""
        n_videos, n_frames = context.shape[:2]
        mean = context.new_zeros(1, n_videos, n_frames - 1, self.z_dim)
        canvases = None
        for _ in range(LOOKS if n_frames > 1 else 1):
            first = self._first(context[:, 0], canvases)
            state, moved = self._follow(first, context[:, 1:], mean, actions, write=True)[:2]
            canvases = shift(state.canvases, -moved)
        return state

    def _first(self, frame: Tensor, canvases: Tensor | None = None) -> TransportState:
        """The state after the first frame (B, C, H, W), R = B; canvases (B, L, C, H, W) of an earlier look at it."""
        if canvases is None:
            empty = frame.new_zeros(len(frame), self.layers, *frame.shape[1:])
            gates = self.write_gate(torch.cat([frame, frame, empty.flatten(1, 2)], 1))  # (B, L, H, W)
            canvases = gates[:, :, None] * frame[:, None]
        else:
            canvases = self.write(frame, compose(canvases), canvases)
        rows = canvases.shape[:2]
        memory = (frame.new_zeros(*rows, self.rnn_size),) * 2
        return TransportState(canvases, frame.new_zeros(*rows, HISTORY, 2), memory, memory)

    def _follow(
        self, state: TransportState, frames: Tensor, noise: Tensor, actions: Tensor | None, *, write: bool
    ) -> tuple[TransportState, Tensor, list[Tensor], list[tuple[Gaussian, Tensor]], list[Tensor]]:
        """Predict the next frames with z from the posterior.

        Args:
            frames: (B, F, C, H, W).
            noise: (K, B, F, Z).
            actions: (B, F, A) or None.
            write: each frame onto the canvases, once it is predicted.

        Returns:
            The state after the last frame; how far layers have moved, (R, L, 2) whole pixels; each frame's picture
            (R, C, H, W); with a latent, its q and z (R, L, 2), and what `rehearse` needs (R, L, track_size / L).
        """
        n_samples, n_frames = noise.shape[0], frames.shape[1]
        rows = noise.flatten(0, 1)  # (R, F, Z)
        by_frame = actions_by_frame(actions, n_samples, n_frames)  # (R, A) each
        moved = torch.zeros_like(state.path[:, :, 0])
        pictures, latents, tracks = [], [], []
        for t in range(n_frames):
            with float32(frames):
                situation = self._situation(state, by_frame[t])
                features = self._describe(situation)
                p, memory = self._prior(features, state)
                displacement, seen = None, state.seen
                if self.posterior is not None:
                    spectrum = self.evidence.spectrum(frames[:, t]).repeat(n_samples, 1, 1, 1)
                    evidence = self.evidence(spectrum, state.canvases, state.path[:, :, 0], p, self.log_trust.exp())
                    chosen, seen = self._posterior(features, evidence, p, state)
                    eps = rows[:, t].unflatten(-1, (self.layers, 2))
                    displacement, q, z, choice = self._displacement(p, eps, chosen)
                    latents.append((q, z))
                    tracks.append(torch.cat([situation, choice], -1))
                picture, state = self._move(state, p, displacement)
            pictures.append(picture)
            canvases = state.canvases
            if write:
                canvases = self.write(frames[:, t].repeat(n_samples, 1, 1, 1), picture, canvases)
            state = state._replace(canvases=canvases, memory=memory, seen=seen)
            moved = moved + state.path[:, :, 0].round()
        return state, moved, pictures, latents, tracks

    def write(self, frame: Tensor, picture: Tensor, canvases: Tensor) -> Tensor:
        """Correct the canvases where the frame differs from the picture expected."""
        gates = self.write_gate(torch.cat([frame, picture, canvases.flatten(1, 2)], 1))
        return (canvases + gates[:, :, None] * (frame - picture)[:, None]).clamp(0, 1)

    def _situation(self, state: TransportState, actions: Tensor | None) -> Tensor:
        """Where layers lie and how they moved, (R, L, 5 + 2 * HISTORY + A), without gradient to the past."""
        with torch.no_grad():
            ink = state.canvases.sum(2) + 1e-7  # (R, L, H, W)
            profiles = torch.stack([ink.sum(-1), ink.sum(-2)], 2)  # (R, L, 2, H)
            profiles = profiles / profiles.sum(-1, keepdim=True)
            center = profiles @ self.pixels  # (R, L, 2)
            extent = ((profiles * (self.pixels - center[..., None]) ** 2).sum(-1) + 1e-4).sqrt()
            mass = state.canvases.square().sum((2, 3, 4))[..., None] + 1e-4
            situation = [center, extent, mass.log(), state.path.flatten(2)]
            if self.action_scale is not None:
                situation.append(self.action_scale(actions)[:, None].expand(-1, self.layers, -1))
            return torch.cat(situation, -1)

    def _describe(self, situation: Tensor) -> Tensor:
        """What `_situation` says (..., L, n), spread over waves for a network, (..., L, features)."""
        center, extent, mass, path, actions = situation.split([2, 2, 1, 2 * HISTORY, self.n_actions], -1)
        path = path.unflatten(-1, (HISTORY, 2))
        began = center[..., None, :] - path.cumsum(-2)  # (..., L, HISTORY, 2) where each displacement began
        changed = (path[..., 1:, :] - path[..., :-1, :]).abs().amax(-1) > 0.5  # (..., L, HISTORY - 1)
        history = [fourier(path, self.velocity_waves), fourier(began, self.position_waves), path / 4, began / 16]
        features = [
            *(fourier(center, self.position_waves), fourier(center + path[..., 0, :], self.position_waves)),
            *(center / 16, extent / 8, mass / 4, torch.cat(history, -1).flatten(-2), changed.to(path), actions),
        ]
        return torch.cat(features, -1)

    def _prior(self, features: Tensor, state: TransportState) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """p of every displacement, (R, L, D, D) float64, and the next memory."""
        n, memory = len(self.displacements), state.memory
        if self.prior is None:
            change = self.displacements - state.path[:, :, 0, :, None]  # (R, L, 2, D)
            index = (change + 2 * self.reach).long().clamp(0, 4 * self.reach)
            rows, columns = (self.changes[axis][index[:, :, axis]] for axis in (0, 1))
            logits = (rows[..., :, None] + columns[..., None, :]).flatten(2)
        else:
            logits, memory = self.prior(features, memory)
        return self._probabilities(logits).unflatten(-1, (n, n)), memory

    def _probabilities(self, logits: Tensor) -> Tensor:
        """(..., D * D) -> p of every displacement, float64."""
        p = logits.double().softmax(-1)
        return (1 - FLOOR) * p + FLOOR / p.shape[-1]

    def _posterior(
        self, features: Tensor, evidence: tuple[Tensor, Tensor], p: Tensor, state: TransportState
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Probability of every displacement once the frame is seen, (R, L, D, D) float64: prior times evidence.

        The prior is detached: it learns from the KL, as SVG's does, and from rehearsals, not from the pictures.
        """
        found, summary = evidence  # (R, L, 2, D, D), (R, L, ...)
        out, memory = self.posterior(torch.cat([features, summary], -1), state.seen)
        trusted = (found * self.log_trust.exp()[:, None, None]).sum(2)
        logits = out.unflatten(-1, p.shape[-2:]) + MOST_EVIDENCE * (trusted / MOST_EVIDENCE).tanh()
        logits = logits.double() + p.detach().log()
        return logits.flatten(2).softmax(-1).unflatten(-1, p.shape[-2:]), memory

    def _displacement(
        self, p: Tensor, noise: Tensor, chosen: Tensor | None = None
    ) -> tuple[Tensor, Gaussian | None, Tensor, Tensor]:
        """Whole displacements (R, L, 2) that z stands for; z is the noise, or from the posterior if that is given.

        The choice itself has no gradient. Instead z counts as if displacements were continuous within a pixel, and
        `chosen` as if their mean were taken.

        Args:
            p, chosen: (R, L, D, D) float64, prior and posterior.
            noise: (R, L, 2).

        Returns:
            Displacements, q (R, L, 2) or None, z (R, L, 2), and the whole displacement chosen, of D * D, (R, L, 1).
        """
        displacements, qs, zs, choices = [], [], [], []
        p_axis, chosen_axis = p.sum(-1), None if chosen is None else chosen.sum(-1)
        for axis in (0, 1):
            code = z = noise[..., axis]
            if chosen is not None:
                q, code, z = self._code(p_axis, chosen_axis, z)
                qs.append(q)
            zs.append(z)
            choice, share = cuts.choose(p_axis.detach(), code.double())
            choices.append(choice)
            continuous = share if chosen is None else share + chosen_axis @ self.displacements.double()
            continuous = continuous.to(noise.dtype)
            displacements.append(self.displacements[choice] + (continuous - continuous.detach()))
            row = choice[..., None, None].expand(*choice.shape, 1, p.shape[-1])
            p_axis, chosen_axis = (
                None if x is None else (x / x.sum(-1, keepdim=True)).gather(-2, row).squeeze(-2) for x in (p, chosen)
            )
        q = Gaussian(*(torch.stack(x, -1) for x in zip(*qs))) if qs else None
        chosen_pair = choices[0] * len(self.displacements) + choices[1]
        return torch.stack(displacements, -1), q, torch.stack(zs, -1), chosen_pair[..., None]

    def _code(self, p: Tensor, chosen: Tensor, noise: Tensor) -> tuple[Gaussian, Tensor, Tensor]:
        """q(z) of one axis, (R, L), from p and the posterior over displacements (R, L, D); and z twice.

        The first z is for the pictures: without gradient to p and `chosen`. The second, for the KL, has it.
        """
        borders = cuts.cuts(p)
        mean, variance = cuts.moments(borders, p, chosen)
        with torch.no_grad():
            near = borders.clamp(-4, 4)
            low, high = (chosen * near[..., :-1]).sum(-1), (chosen * near[..., 1:]).sum(-1)
            surprise, doubt = -(chosen * p.log()).sum(-1), -(chosen * (chosen + 1e-12).log()).sum(-1)
            off = chosen @ self.displacements.double() - self.displacements[chosen.argmax(-1)]
            situation = torch.stack([low / 2, high / 2, surprise / 4, doubt, off], -1).to(noise.dtype)
        shift, tight = self.fit(situation).unbind(-1)
        mean, deviation = mean.to(noise.dtype), variance.to(noise.dtype).sqrt()
        q = Gaussian(mean + deviation * shift, variance.log().to(noise.dtype) + 2 * tight)
        code = mean.detach() + deviation.detach() * (shift + tight.exp() * noise)
        return q, code, q.sample(noise)

    def _move(self, state: TransportState, p: Tensor, displacement: Tensor | None) -> tuple[Tensor, TransportState]:
        """The next picture (R, C, H, W) and its canvases and path; without a latent canvases spread out as p does."""
        if displacement is None:
            weights = torch.stack([p.sum(-1), p.sum(-2)], 2).to(state.path)
            displacement = weights @ self.displacements
        else:
            weights = self._weights(displacement)
        bands = (weights @ self.bands).unflatten(-1, (len(self.pixels), -1))[:, :, :, None]  # (R, L, 2, 1, H, H)
        canvases = bands[:, :, 0] @ state.canvases @ bands[:, :, 1].transpose(-1, -2)
        picture = compose(canvases)
        path = torch.cat([displacement.detach()[:, :, None], state.path[:, :, :-1]], 2)
        return picture, state._replace(canvases=canvases, path=path)

    def _weights(self, displacement: Tensor) -> Tensor:
        """Whole displacements (R, L, 2) as distributions over displacements, (R, L, 2, D): one of them is certain.

        Rows and columns get a band matrix each. The backward pass sees wider distributions, or the gradient of a
        displacement that is a pixel off would be 0.
        """
        off = self.displacements - displacement[..., None]
        wide = (-0.5 * off**2 / REACH_BACK**2).softmax(-1)
        return (off == 0).to(wide) + (wide - wide.detach())


def compose(canvases: Tensor) -> Tensor:
    """(R, L, C, H, W) -> picture (R, C, H, W)."""
    return 1 - functools.reduce(torch.mul, (1 - canvases).unbind(1))


def shift(canvases: Tensor, by: Tensor) -> Tensor:
    """(R, L, C, H, W) moved by whole pixels (R, L, 2), row and column; 0 comes in, and what goes out is lost."""
    for axis in (0, 1):
        places = torch.arange(canvases.shape[axis - 2], device=canvases.device)
        source = places - by[..., axis, None].long()  # (R, L, H)
        inside = source == source.clamp(0, len(places) - 1)
        shape = (*source.shape[:2], 1, -1, 1) if axis == 0 else (*source.shape[:2], 1, 1, -1)
        index = source.clamp(0, len(places) - 1).view(shape).expand_as(canvases)
        canvases = canvases.gather(axis - 2, index) * inside.view(shape)
    return canvases


def _scale(layer: nn.Linear, factor: float) -> None:
    with torch.no_grad():
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)
