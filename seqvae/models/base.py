"""The interface of every model family: what training, evaluation and export know of a video predictor.

Shapes: K importance samples, N generated samples, B videos, T frames, C H W, Z latents per frame, A numbers per action
(row f of a video's actions leads to its predicted frame f; A = 0 in a family or model that takes none). Frame 0 is only
conditioned on, so a video of T frames has F = T - 1 predicted ones; without any context, as for single images, F = T.

A family is a `VideoModel` with three methods: `forward` trains, `start` and `step` generate. Its settings are a variant
in `seqvae.config.models`. What is built on them (`predict`, `rollout`, `reconstruct`) is written here once.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from seqvae.gaussian import Gaussian, kl_per_latent
from seqvae.likelihoods import Likelihood

State = TypeVar("State")  # a family's NamedTuple of tensors, batch first: everything that `step` needs of the past


# Pictures lie in [EDGE, 1 - EDGE], so that their logits are finite. Half a grey level would cost black 0.03 of SSIM.
EDGE = 1e-4


@dataclass(frozen=True)
class Prediction:
    """What `forward` returns, for each of the F predicted frames, in the weights' dtype whatever autocast does."""

    params: Tensor  # (K, B, F, likelihood.param_channels, H, W) likelihood parameters
    q: Gaussian | None  # (B, F, Z) posterior, or (K, B, F, Z) if it depends on earlier z; None without a latent
    p: Gaussian | None  # prior, of q's shape
    z: Tensor  # (K, B, F, Z) sampled from q
    tracks: Tensor | None = None  # (B, F, S) what `rehearse` needs of these clips, in training of a family that has it

    def first_latents(self) -> tuple[Gaussian, Gaussian] | None:
        """q and p of the first sample, (B, F, Z); None without a latent."""
        if self.q is None:
            return None
        return tuple(Gaussian(*(x[0] if x.ndim == self.z.ndim else x for x in g)) for g in (self.q, self.p))

    def kl(self) -> Tensor:
        """KL(q || p) per frame and latent, (B, F, Z) nats, float64, mean over samples; Z = 0 without a latent."""
        if self.q is None:
            return self.z[0].double()
        kl = kl_per_latent(*(Gaussian(*(x.double() for x in g)) for g in (self.q, self.p)))
        return kl.mean(0) if kl.ndim == self.z.ndim else kl

    def log_ratio(self) -> Tensor:
        """log p(z) - log q(z) per frame, (K, B, F) nats, float64: minus the KL, estimated from each sample alone."""
        if self.q is None:
            return self.z.new_zeros(self.z.shape[:3], dtype=torch.float64)
        q, p = (Gaussian(*(x.double() for x in g)) for g in (self.q, self.p))
        return p.log_prob(self.z.double()) - q.log_prob(self.z.double())


class VideoModel(nn.Module, ABC, Generic[State]):
    """A stochastic video predictor with a Gaussian latent per frame.

    A family's constructor takes (cfg, likelihood, *, channels, image_size, n_past), and assigns the likelihood last, so
    that no initialisation of weights touches it.

    A learned prior is the submodule `prior`, which can be trained alone (`--optim.train prior`).

    Args:
        channels, image_size: of the videos, C and H = W.
        n_past: frames observed in training.
        z_dim: latents per frame, flat whatever their shape inside; 0 without a latent.
    """

    compiled: ClassVar[tuple[str, ...]] = ()  # submodules that torch.compile speeds up (--compute.compile)
    recomputed: ClassVar[tuple[str, ...]] = ()  # methods without randomness for --compute.checkpoint-activations

    likelihood: Likelihood  # whose parameters the model predicts
    action_scale: "ActionScale | None"  # of a model that takes actions
    rehearsals: int = 0  # earlier clips that a training step rehearses for every new one
    track_size: int = 0  # S, numbers of a frame that `rehearse` needs

    def __init__(self, *, channels: int, image_size: int, n_past: int, z_dim: int) -> None:
        super().__init__()
        self.channels, self.image_size, self.n_past, self.z_dim = channels, image_size, n_past, z_dim
        self.action_scale = None

    @property
    def n_actions(self) -> int:
        """A, the numbers of each action; 0 for a model that takes none, whose `actions` are None everywhere."""
        return 0 if self.action_scale is None else len(self.action_scale.mean)

    def with_actions(self, x: Tensor, actions: Tensor | None) -> Tensor:
        """Append scaled actions (..., A) to x (..., G); x itself in a model that takes none."""
        if self.action_scale is None:
            return x
        assert actions is not None, "this model takes actions"
        return torch.cat([x, self.action_scale(actions)], -1)

    @abstractmethod
    def forward(
        self, video: Tensor, noise: Tensor, n_past: int | None = None, actions: Tensor | None = None
    ) -> Prediction:
        """Predict each frame from those before it and z ~ q.

        SVG is given the real frames throughout (teacher forcing); a family that moves what it saw builds on its own
        pictures after the context.

        Args:
            video: (B, T, C, H, W) in [0, 1], T > n_past.
            noise: (K, B, F, Z) standard normal; decides z. What does not depend on z runs once for all K.
            n_past: observed frames; None: as many as in training.
            actions: (B, F, A), unscaled.
        """

    @abstractmethod
    def start(self, context: Tensor, noise: Tensor, actions: Tensor | None = None) -> State:
        """Observe the context; N samples are folded into the batch, sample n of video b in row n * B + b.

        Args:
            context: (B, n_past, C, H, W) in [0, 1], any n_past >= 1; n_past = 0 in a family that needs no context.
            noise: (N, B, max(n_past - 1, 0), Z) standard normal; decides z ~ q of the observed frames after the first.
            actions: (B, max(n_past - 1, 0), A), which led to those frames.
        """

    @abstractmethod
    def step(self, state: State, noise: Tensor, actions: Tensor | None = None) -> tuple[Tensor, State]:
        """Predict one more frame with z from the prior.

        Args:
            state: after the frames so far, from `start` or `step`.
            noise: (N * B, Z) standard normal; decides z.
            actions: (N * B, A), which lead to the frame.

        Returns:
            Likelihood parameters (N * B, param_channels, H, W), and the state after this frame.
        """

    def rehearse(self, tracks: Tensor) -> Tensor:
        """A further loss, (B, F) nats, from the tracks (B, F, S) that `forward` returned for earlier clips."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, object]]:
        """Parameters ("params") that share a learning rate ("scale" times optim.lr) and are clipped together.

        Without the likelihood's, which are a group of their own.
        """
        return [{"params": self._parameters_outside("likelihood."), "scale": 1.0}]

    def _parameters_outside(self, *prefixes: str) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.named_parameters() if not name.startswith(prefixes)]

    def mean_frame(self, params: Tensor, state: State) -> Tensor:
        """Mean of the frame that `step` predicted, (N * B, C, H, W) in [0, 1], from what it returned.

        A family that keeps this frame in its state returns it from there: a mean over 256 levels takes a while.
        """
        return self.likelihood.mean(params)

    @property
    def has_latent(self) -> bool:
        """Whether futures differ from sample to sample."""
        return self.z_dim > 0

    def compile_parts(self) -> None:
        """Compile the submodules named in `compiled`, in place; ValueError if there are none."""
        if not self.compiled:
            raise ValueError(f"{type(self).__name__} has no part to compile; drop the flag that asks for it")
        for name in self.compiled:
            getattr(self, name).compile()

    @torch.no_grad()
    def rollout(self, context: Tensor, n_future: int, noise: Tensor, actions: Tensor | None = None) -> Tensor:
        """The frames of `predict`: (N, B, n_future, C, H, W) float32 in [0, 1]."""
        return self.predict(context, n_future, noise, actions)[0]

    @torch.no_grad()
    def predict(
        self, context: Tensor, n_future: int, noise: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Predict futures with z from the posterior in the context and from the prior after; frames are means.

        Args:
            context: (B, n_past, C, H, W) in [0, 1], any n_past >= 1; n_past = 0 in a family that needs no context.
            n_future: frames to predict.
            noise: (N, B, F, Z) standard normal, F = max(n_past - 1, 0) + n_future; decides the samples.
            actions: (B, F, A), for all samples alike.

        Returns:
            Frames (N, B, n_future, C, H, W) float32 in [0, 1], and the decoder's sigma, broadcastable to them: a scalar
            where it is one number, None without one.
        """
        assert not self.training, "predictions use eval mode: batch statistics would make them depend on the batch"
        n_observed = max(context.shape[1] - 1, 0)  # frames whose z comes from the posterior
        assert noise.shape[2] == n_observed + n_future, (noise.shape, context.shape, n_future)
        n_samples = len(noise)
        by_frame = actions_by_frame(actions, n_samples, noise.shape[2])
        state = self.start(context, noise[:, :, :n_observed], None if actions is None else actions[:, :n_observed])
        frames, sigmas = [], []
        for eps, action in zip(noise.flatten(0, 1).unbind(1)[n_observed:], by_frame[n_observed:], strict=True):
            params, state = self.step(state, eps, action)  # (N * B, param_channels, H, W)
            frames.append(self.mean_frame(params, state))  # (N * B, C, H, W)
            sigmas.append(self.likelihood.sigma(params))
        sigma = sigmas[0]
        if sigma is not None and sigma.ndim:  # differs from frame to frame
            sigma = stack_frames(sigmas, n_samples)
        return stack_frames(frames, n_samples), sigma

    @torch.no_grad()
    def reconstruct(
        self, video: Tensor, noise: Tensor, n_past: int | None = None, actions: Tensor | None = None
    ) -> Tensor:
        """Predict each frame with z from the posterior, which has seen that frame: (B, F, C, H, W) in [0, 1].

        Arguments are those of `forward`, but for noise (B, F, Z), zeros for the posterior's mean.
        """
        assert not self.training, "reconstructions use eval mode, as predictions do"
        return self.likelihood.mean(self(video, noise[None], n_past, actions).params[0])


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


class ActionScale(nn.Module):
    """Actions to numbers of mean 0 and variance 1, by the statistics of the training set."""

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_actions))
        self.register_buffer("std", torch.ones(n_actions))

    def fit(self, actions: Tensor) -> None:
        """Take mean and standard deviation of (..., A); a number that never changes keeps its size."""
        flat = actions.flatten(0, -2).double()
        std = flat.std(0, correction=0)
        self.mean.copy_(flat.mean(0))
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def forward(self, actions: Tensor) -> Tensor:
        """(..., A) -> (..., A)."""
        return (actions - self.mean) / self.std


def actions_by_frame(actions: Tensor | None, n_samples: int, n_frames: int) -> Sequence[Tensor | None]:
    """(B, F, A) -> F of (N * B, A), sample n of video b in row n * B + b; F of None without actions."""
    return [None] * n_frames if actions is None else actions.repeat(n_samples, 1, 1).unbind(1)


def stack_frames(frames: Sequence[Tensor], n_samples: int) -> Tensor:
    """F of (N * B, ...) -> (N, B, F, ...)."""
    return torch.stack(tuple(frames), 1).unflatten(0, (n_samples, -1))


def float32(like: Tensor) -> torch.autocast:
    """Context manager without autocast on the tensor's device: for the heads of Gaussians (see `gaussian_kl`)."""
    return torch.autocast(like.device.type, enabled=False)
