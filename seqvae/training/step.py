"""One optimizer step. All its randomness is a function of (seed, step), so none of it has to be saved."""

import contextlib
import math

import numpy as np
import torch
from torch import Tensor, nn

from seqvae import distributed
from seqvae.config import OptimConfig
from seqvae.likelihoods.base import Statistics
from seqvae.objectives import Numbers
from seqvae.training.recompute import frozen_statistics
from seqvae.training.state import TrainState
from seqvae.training.terms import complete, frame_statistics, join

BATCHES, NOISE, REHEARSED = 101, 102, 103  # streams of step_rng; datasets take small numbers


def step_rng(seed: int, stream: int, step: int) -> np.random.Generator:
    """Random numbers of one step; the streams are independent."""
    return np.random.default_rng([seed, stream, step])


def learning_rate(cfg: OptimConfig, step: int) -> float:
    """Learning rate for step number `step` (0-based): linear warm-up, then constant or a half cosine down to 0."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    if cfg.schedule == "constant":
        return cfg.lr
    progress = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train_step(state: TrainState, video: Tensor, actions: Tensor | None = None) -> dict[str, Tensor]:
    """Take one optimizer step; returns detached numbers of the whole batch, on the device, NaN if skipped.

    A step whose loss or gradient is not finite is skipped entirely: weights, optimizer, norm statistics, multiplier and
    sigma stay as they were, without waiting for the device to find out. Loss and gradient are those of the whole batch,
    so all processes skip it together.

    Args:
        video: (B, T, C, H, W) floats, this process's clips of the batch (`distributed.shard`).
        actions: (B, F, A) of these clips, for a model that takes them.
    """
    model, objective, optim = state.model, state.objective.train(), state.cfg.optim
    state.train_mode()
    buffers = [*model.buffers(), *objective.buffers()]
    before = [buffer.clone() for buffer in buffers]

    state.optimizer.zero_grad(set_to_none=True)
    loss, numbers, tracks = _backward(state, video, actions)
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    finite = torch.isfinite(loss) & torch.isfinite(norm)

    lr = learning_rate(optim, state.step)
    for group in state.optimizer.param_groups:
        if optim.grad_clip is not None:
            nn.utils.clip_grad_norm_(group["params"], optim.grad_clip)
        group["lr"] = group["scale"] * lr
    state.optimizer.found_inf = (~finite).float()  # fused Adam leaves weights and moments alone where it is 1
    state.optimizer.step()
    model.likelihood.after_step()
    objective.after_step(lr / optim.lr, max(0, optim.steps - state.step - 1))
    for buffer, old in zip(buffers, before):
        buffer.copy_(torch.where(finite, buffer, old))
    if state.ema is not None:
        _average_weights(state, finite)
    if state.rehearsal is not None:
        state.rehearsal.remember(tracks, state.step, finite)

    skipped, streak, longest = state.counters
    streak = torch.where(finite, 0, streak + 1)
    state.counters = torch.stack([skipped + ~finite, streak, torch.maximum(longest, streak)])
    state.step += 1
    numbers = numbers | {"grad_norm": norm.detach()}
    return {name: torch.where(finite, value, math.nan) for name, value in numbers.items()}


def _backward(state: TrainState, video: Tensor, actions: Tensor | None) -> tuple[Tensor, Numbers, Tensor | None]:
    """Leave the gradient of the whole batch's loss in the weights; returns that loss, detached, its numbers and tracks.

    The loss may depend on the batch as a whole (an analytic sigma, free bits), and no process and no pass of
    `optim.accumulate` has all of it. So the gradient goes through the frames' statistics: those of the whole batch give
    the loss and its gradient by each statistic, from which every process and pass continues to the weights. Several
    passes are run twice, at first without gradient: one pass's memory for the time of another forward pass.

    What is rehearsed has a gradient of its own, which no objective weighs.
    """
    model, n_passes, world = state.model, state.cfg.optim.accumulate, distributed.world_size()
    # Every process draws the noise of the whole batch, so a clip's does not depend on their number.
    n_clips = len(video) if world == 1 else state.cfg.optim.batch_size
    own = distributed.shard(n_clips)
    generator = torch.Generator(state.device)
    generator.manual_seed(int(step_rng(state.cfg.run.seed, NOISE, state.step).integers(2**63)))
    shape = (state.n_importance, n_clips, state.n_predicted, model.z_dim)
    noise = torch.randn(shape, generator=generator, device=state.device)[:, own]
    uniform = state.dequantisation_noise(video, n_clips, generator)

    videos, noises = video.tensor_split(n_passes), noise.tensor_split(n_passes, dim=1)
    uniforms = [None] * n_passes if uniform is None else uniform[own].tensor_split(n_passes)
    actions_of_pass = [None] * n_passes if actions is None else actions.tensor_split(n_passes)

    def statistics(i: int) -> Statistics:
        options = {"uniform": uniforms[i], "actions": actions_of_pass[i], "amp": state.amp, "network": state.network}
        return frame_statistics(model, videos[i], noises[i], **options)[1]

    if n_passes == 1:
        parts = [statistics(0)]
    else:
        with torch.no_grad(), frozen_statistics(model):
            parts = [statistics(i) for i in range(n_passes)]
    batch = distributed.gather(join(parts), n_clips)
    tracks = batch.pop("tracks", None)
    batch = {name: value.requires_grad_() for name, value in batch.items()}
    loss, numbers = state.objective(complete(model, batch, state.mask, dequantised=uniform is not None))

    weights = list(model.likelihood.parameters())  # `densities` may use them directly, as a learned sigma
    inputs = [*batch.values(), *weights]
    # DistributedDataParallel averages gradients over processes, and each holds the part of its own clips: scaled by
    # the number of processes first, the average is a sum.
    gradients = torch.autograd.grad(loss, inputs, torch.full_like(loss, world), allow_unused=True)
    by_statistic = {name: g[:, own].tensor_split(n_passes, dim=1) for name, g in zip(batch, gradients) if g is not None}
    by_weight = [(w, g / world) for w, g in zip(weights, gradients[len(batch) :]) if g is not None]
    for i in range(n_passes):
        last = i == n_passes - 1  # gradients are exchanged in the last pass only
        with contextlib.nullcontext() if last or world == 1 else state.network.no_sync():
            part = parts[0] if n_passes == 1 else statistics(i)
            pairs = [(part[name], g[i]) for name, g in by_statistic.items() if part[name].requires_grad]
            if last:
                pairs += by_weight
                if state.rehearsal is not None and state.step:
                    rng = step_rng(state.cfg.run.seed, REHEARSED, state.step)
                    again = state.rehearsal.loss(model, state.mask, state.step, rng)
                    pairs.append((again, torch.full_like(again, world)))
            torch.autograd.backward(*zip(*pairs))
    return loss.detach(), numbers, tracks


def _average_weights(state: TrainState, finite: Tensor) -> None:
    """Move the averaged weights towards the current ones, unless the step was skipped."""
    # The average starts as the weights themselves and lengthens with the run, up to the decay asked for.
    decay = min(state.cfg.optim.ema, (1 + state.step) / (10 + state.step))
    for average, weight in zip(state.ema.parameters(), state.model.parameters()):
        average.lerp_(weight.detach(), (1 - decay) * finite.to(weight.dtype))
    # A norm's running statistics belong to the weights, so they are averaged in the same way; a decoder's do not.
    for (name, average), buffer in zip(state.ema.named_buffers(), state.model.buffers()):
        if buffer.is_floating_point() and not name.startswith("likelihood."):
            average.lerp_(buffer, (1 - decay) * finite.to(buffer.dtype))
        else:
            average.copy_(buffer)
