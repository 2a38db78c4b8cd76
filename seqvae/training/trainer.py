"""A run's state and what is done with it: one optimizer step, validation, a GIF of samples.

All randomness of step s is a function of (seed, s), so nothing about it has to be saved. Videos come as uint8
(B, T, C, H, W) and are turned into float [0, 1] in one place, `as_float`.
"""

import contextlib
import copy
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from seqvae import distributed
from seqvae.config import ComputeConfig, OptimConfig, RunConfig
from seqvae.diagnostics import active_units
from seqvae.gaussian import Gaussian, keyed_noise
from seqvae.likelihoods.gaussian import gaussian_log_prob
from seqvae.models import Prediction, VideoModel
from seqvae.objectives import Geco, Numbers, Terms, bits_per_dim, iwae_bound, masked_mean, sum_frames
from seqvae.training.checkpoint import ForeignCheckpoint, check_like
from seqvae.training.recompute import frozen_statistics, recompute_in_backward
from seqvae.training.terms import FrameTerms, batch_terms, complete, frame_terms
from seqvae.visualize import Panel, write_animation_grid, write_strip

SIGMA_LR = 10.0  # learning rate of a learned log sigma, relative to the rest: it has far to go
N_SAMPLE_VIDEOS, N_SAMPLE_IMAGES = 4, 12  # shown in a sample picture
BATCHES, NOISE = 101, 102  # streams of step_rng; datasets take small numbers


def as_float(video: Tensor, device: torch.device) -> Tensor:
    """uint8 (..., C, H, W) -> float32 in [0, 1] on the device: the one conversion."""
    return video.to(device, non_blocking=True).float() / 255


def step_rng(seed: int, stream: int, step: int) -> np.random.Generator:
    """Random numbers of one step; the streams are independent."""
    return np.random.default_rng([seed, stream, step])


def learning_rate(cfg: OptimConfig, step: int) -> float:
    """Of the step that follows `step` finished ones: linear warm-up, then constant or a half cosine down to 0."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    if cfg.schedule == "constant":
        return cfg.lr
    progress = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def choose_device(name: str, flag: str) -> torch.device:
    """`auto` is CUDA where there is one; ValueError naming the flag for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{flag} is cuda, and torch finds no CUDA device; pass {flag} cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, n_devices = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    if local is None:
        return torch.device("cuda")
    if not local.isdecimal() or int(local) >= n_devices:
        raise ValueError(f"LOCAL_RANK is {local}, and this machine has {n_devices} GPUs; start one process for each")
    return torch.device("cuda", int(local))


def resolve_amp(cfg: ComputeConfig, device: torch.device) -> bool:
    """Whether the convolutions run in bfloat16."""
    return cfg.amp == "bf16" or (cfg.amp == "auto" and device.type == "cuda")


def resolve_compile(cfg: ComputeConfig, device: torch.device) -> bool:
    """Whether encoder and decoder are compiled; `auto` needs CUDA and the C compiler that torch.compile calls."""
    compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda" and compiler)


class Trainer:
    """A run's whole state and the things done with it.

    `skipped` counts the non-finite steps, `streak` those in a row, on the device: they are read with the metrics.
    """

    def __init__(self, cfg: RunConfig, model: VideoModel, objective: nn.Module, device: torch.device) -> None:
        n_parts, n_clips = distributed.world_size() * cfg.optim.accumulate, cfg.optim.batch_size
        if n_clips < n_parts:
            raise ValueError(
                f"optim.batch-size {n_clips} is less than a clip for each of {distributed.world_size()} processes x "
                f"optim.accumulate {cfg.optim.accumulate}; pass --optim.batch-size {n_parts} or more"
            )
        if cfg.model.batch_statistics and cfg.data.seq_len * n_clips < 2 * n_parts:
            raise ValueError(
                "model.norm batch needs 2 images in every pass; pass --model.norm group or "
                f"--optim.batch-size {2 * n_parts} or more"
            )
        self.n_at_once = math.ceil(n_clips / n_parts)  # clips in a forward pass
        if distributed.world_size() > 1 and cfg.model.batch_statistics:
            if device.type == "cpu":
                raise ValueError(
                    "model.norm batch needs statistics over all processes, which torch has on CUDA alone; "
                    "pass --model.norm group"
                )
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.cfg, self.device = cfg, device
        self.model, self.objective = model.to(device), objective.to(device)
        self.step, self.best = 0, -math.inf  # finished optimizer steps; the best validation's `merit`
        self.counters = torch.zeros(3, dtype=torch.int64, device=device)  # skipped, streak, longest streak
        groups = model.parameter_groups()
        if sigma := list(model.likelihood.parameters()):
            groups.append({"params": sigma, "scale": SIGMA_LR})
        self.optimizer = torch.optim.Adam(groups, lr=cfg.optim.lr, betas=(0.9, cfg.optim.beta2), fused=True)
        # .to() after the copy joins the LSTMs' weights again, which cuDNN wants in one piece.
        self.ema = copy.deepcopy(model).requires_grad_(False).eval().to(device) if cfg.optim.ema else None
        self.amp = resolve_amp(cfg.compute, device)
        self.n_importance = cfg.objective.n_importance
        if cfg.compute.compile == "on" or (model.compiled and resolve_compile(cfg.compute, device)):
            model.compile_parts()
        if cfg.compute.checkpoint_activations:  # around what is compiled, as the model calls it
            recompute_in_backward(model)
        self.network = distributed.parallel(self.model, device)  # what is called in training

        self.n_drawn = cfg.data.n_drawn
        self.mask = torch.ones(self.n_drawn, dtype=torch.float64, device=device)
        if cfg.objective.loss_on == "future":
            self.mask[: cfg.data.n_past - 1] = 0

    # ---- state

    def state(self) -> dict:
        """Everything that decides the next step, as tensors and plain values."""
        return {
            "step": self.step,
            "best": self.best,
            "counters": self.counters,
            "channels": self.model.channels,
            "image_size": self.model.image_size,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict) -> None:
        """Resume from `state`; ForeignCheckpoint where it is not the state of a run with these settings."""
        name = f"the checkpoint in {self.cfg.run_dir}: "
        check_like({**state, "optimizer": None}, {**self.state(), "optimizer": None}, f"{name}state")
        groups = [{**group, "params": None, "lr": None} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            same = [{**group, "params": None, "lr": None} for group in self.optimizer.param_groups] == groups
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError):
            same = False
        if not same:
            raise ForeignCheckpoint(f"{name}optimizer is not Adam's state for these weights; it is from another run")
        for weight in self.model.parameters() if state["step"] else ():
            expected = {"step": torch.zeros(()), "exp_avg": weight, "exp_avg_sq": weight}
            check_like(self.optimizer.state.get(weight), expected, f"{name}optimizer")
        self.step, self.best = state["step"], state["best"]
        self.counters.copy_(state["counters"])
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    @property
    def eval_model(self) -> VideoModel:
        """The weights that validation and evaluation use: averaged ones where there are any."""
        return self.ema if self.ema is not None else self.model

    # ---- one step

    def terms(
        self, model: VideoModel, video: Tensor, noise: Tensor, generator: torch.Generator
    ) -> tuple[Prediction, Terms]:
        """`batch_terms` with this run's settings; the generator dequantises, where that is asked for."""
        uniform = self._uniform(video, len(video), generator)
        return batch_terms(model, video, noise, self.mask, uniform=uniform, amp=self.amp)

    def _uniform(self, video: Tensor, n_clips: int, generator: torch.Generator) -> Tensor | None:
        """(n_clips, F, C, H, W) in [0, 1) where frames are dequantised; `video` says how large they are."""
        if not self.cfg.likelihood.dequantise:
            return None
        shape = (n_clips, *video[0, -self.n_drawn :].shape)
        return torch.rand(shape, generator=generator, device=video.device)

    def train_step(self, video: Tensor) -> dict[str, Tensor]:
        """One optimizer step; returns detached numbers of the whole batch, still on the device, nan if skipped.

        A step whose loss or gradient is not finite is skipped whole: weights, optimizer, norm statistics, multiplier
        and sigma stay as they were, and nothing waits for the device to find that out. As loss and gradient are those
        of the whole batch, so it is on every process.

        Args:
            video: (B, T, C, H, W) floats, this process's clips of the batch (`distributed.shard`).
        """
        self.model.train()
        self.objective.train()
        buffers = [*self.model.buffers(), *self.objective.buffers()]
        before = [buffer.clone() for buffer in buffers]
        generator = torch.Generator(self.device)
        generator.manual_seed(int(step_rng(self.cfg.run.seed, NOISE, self.step).integers(2**63)))
        # Every process draws the noise of the whole batch, and so a clip's does not depend on how many there are.
        n_clips = len(video) if distributed.world_size() == 1 else self.cfg.optim.batch_size
        own = distributed.shard(n_clips)
        shape = (self.n_importance, n_clips, self.n_drawn, self.model.z_dim)
        noise = torch.randn(shape, generator=generator, device=self.device)[:, own]
        uniform = self._uniform(video, n_clips, generator)

        self.optimizer.zero_grad(set_to_none=True)
        loss, numbers = self._backward(video, noise, None if uniform is None else uniform[own], n_clips)
        limit = self.cfg.optim.grad_clip
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if limit is not None:
            for group in self.optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], limit)
        finite = torch.isfinite(loss.detach()) & torch.isfinite(norm)

        lr = learning_rate(self.cfg.optim, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * lr
        self.optimizer.found_inf = (~finite).float()  # fused Adam leaves weights and moments alone where it is 1
        self.optimizer.step()
        self.model.likelihood.after_step()
        self.objective.after_step(lr / self.cfg.optim.lr, max(0, self.cfg.optim.steps - self.step - 1))
        for buffer, old in zip(buffers, before):
            buffer.copy_(torch.where(finite, buffer, old))
        if self.ema is not None:
            # The average starts as the weights themselves and lengthens with the run, up to the decay asked for.
            decay = min(self.cfg.optim.ema, (1 + self.step) / (10 + self.step))
            for average, weight in zip(self.ema.parameters(), self.model.parameters()):
                average.lerp_(weight.detach(), (1 - decay) * finite.to(weight.dtype))
            # A norm's running statistics belong to the weights, so they are averaged alike.
            for average, buffer in zip(self.ema.buffers(), self.model.buffers()):
                if buffer.is_floating_point():
                    average.lerp_(buffer, (1 - decay) * finite.to(buffer.dtype))
                else:
                    average.copy_(buffer)
        skipped, streak, longest = self.counters
        streak = torch.where(finite, 0, streak + 1)
        self.counters = torch.stack([skipped + ~finite, streak, torch.maximum(longest, streak)])
        self.step += 1
        numbers = numbers | {"grad_norm": norm.detach()}
        return {name: torch.where(finite, value, math.nan) for name, value in numbers.items()}

    def _backward(
        self, video: Tensor, noise: Tensor, uniform: Tensor | None, n_clips: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Leaves the gradient of the whole batch's loss in the weights; returns that loss and its numbers.

        The loss follows from the FrameTerms of all n_clips clips, which are put together first, from all processes and
        from all of a process's forward passes; so whatever the objective averages, its gradient is that of one pass
        over the batch. Where a clip's gradient depends on the others' terms (an analytic sigma, free bits), forward
        passes without gradient find the terms of all before each is run again with it.
        """
        k, world = self.cfg.optim.accumulate, distributed.world_size()
        videos, noises = video.tensor_split(k), noise.tensor_split(k, dim=1)
        uniforms = [None] * k if uniform is None else uniform.tensor_split(k)

        def frames_of(i: int) -> FrameTerms:
            options = {"uniform": uniforms[i], "amp": self.amp, "network": self.network}
            return frame_terms(self.model, videos[i], noises[i], **options)[1]

        def loss_of(frames: FrameTerms) -> tuple[Tensor, Numbers]:
            return self.objective(complete(self.model.likelihood, frames, self.mask))

        def passes() -> Iterator[int]:
            """Processes exchange gradients in the last pass alone, after which they divide them by their number."""
            for i in range(k):
                with self.network.no_sync() if world > 1 and i < k - 1 else contextlib.nullcontext():
                    yield i

        if k == 1:
            frames = frames_of(0)
            if world > 1:
                frames = frames.unpack(distributed.gather(frames.pack(), n_clips))
            loss, numbers = loss_of(frames)
            loss.backward(torch.full_like(loss, world))
            return loss, numbers

        if self.objective.separable and self.model.likelihood.separable:
            packed = []
            for i in passes():
                frames = frames_of(i)
                loss, _ = loss_of(frames)
                loss.backward(torch.full_like(loss, world * len(videos[i]) / n_clips))
                packed.append(frames.pack().detach())
            with torch.no_grad():
                return loss_of(frames.unpack(distributed.gather(torch.cat(packed, dim=1), n_clips)))

        with torch.no_grad(), frozen_statistics(self.model):
            each = [frames_of(i) for i in range(k)]
        packed = torch.cat([frames.pack() for frames in each], dim=1).requires_grad_()
        loss, numbers = loss_of(each[0].unpack(distributed.gather(packed, n_clips)))
        (gradient,) = torch.autograd.grad(loss, packed)
        gradients = gradient.split([len(part) for part in videos], dim=1)
        for i in passes():
            frames_of(i).pack().backward(world * gradients[i])
        return loss.detach(), numbers

    # ---- looking at it

    @torch.no_grad()
    def validate(self, clips: Dataset) -> dict[str, float | list[float]]:
        """RMSE, KL, bounds and use of the latents on held-out clips, sampled z, eval mode; calibrates sigma.

        A decoder whose sigma is not learned by gradients (fixed, as for GECO, or analytic) has its ELBO quoted at the
        sigma that is best over these very clips, and stores it (`calibrate`) for evaluation; so runs compare, and the
        best checkpoint is not a matter of lambda or beta.
        """
        model, batch = self.eval_model.eval(), self.n_at_once
        n_clips = min(self.cfg.run.n_valid, len(clips))
        generator = torch.Generator(self.device)
        generator.manual_seed(self.cfg.run.seed)
        whole, constrained, latents = [], [], []
        for start in range(0, n_clips, batch):
            chosen = range(start, min(start + batch, n_clips))
            video = as_float(torch.stack([clips[i] for i in chosen]), self.device)
            noise = keyed_noise(self.cfg.run.seed, chosen, range(self.n_importance), self.n_drawn, model.z_dim)
            noise = noise.to(self.device)
            out, terms = self.terms(model, video, noise, generator)
            whole.append((terms.sse, terms.log_ratio, terms.log_density, terms.kl.sum(-1)[None]))
            if isinstance(self.objective, Geco):
                constrained.append(self.objective.squared_error(terms))
            if model.has_latent:
                q, p = out.first_latents()
                latents.append((q.mu, p.mu, p.logvar, terms.kl))
        sse, log_ratio, log_density, kl = (torch.cat(parts, dim=1) for parts in zip(*whole))  # (K or 1, V, F)
        mse, rate = ((masked_mean(x, self.mask).item()) for x in (sse / terms.dims, kl))
        model.likelihood.calibrate(mse)
        suffix = "nats_per_frame"
        if model.likelihood.calibrates:
            suffix = "at_best_sigma_nats_per_frame"
            log_density = gaussian_log_prob(sse, terms.dims, max(mse, 1e-12))
        elbo = masked_mean(log_density, self.mask).item() - rate
        numbers = {
            "valid/rmse": math.sqrt(mse),
            "valid/kl_nats_per_frame": rate,
            f"valid/elbo_{suffix}": elbo,
            "valid/bits_per_dim": bits_per_dim(elbo, terms.dims, terms.bits_offset),
        }
        if len(sse) > 1:
            log_w = sum_frames(log_density + log_ratio, self.mask)
            numbers[f"valid/iwae_{suffix}"] = (iwae_bound(log_w).mean() / self.mask.sum()).item()
        if constrained:
            numbers["valid/constraint_rmse"] = self.objective.constrained_rmse(torch.cat(constrained), terms).tolist()
        if latents:
            q_mu, p_mu, p_logvar, per_latent = (torch.cat(parts) for parts in zip(*latents))
            numbers["valid/active_units"] = (
                active_units(Gaussian(q_mu, p_logvar), Gaussian(p_mu, p_logvar)).sum().item()
            )
            numbers["valid/kl_per_frame"] = per_latent.sum(-1).mean(0).tolist()
            numbers["valid/kl_per_latent"] = per_latent.mean((0, 1)).tolist()
        return numbers

    @torch.no_grad()
    def sample_pictures(self, clips: Dataset, folder: Path) -> Path:
        """Truth, posterior and predicted futures of the first validation clips as a GIF; of images a PNG."""
        model, n_past = self.eval_model.eval(), self.cfg.data.n_past
        n_shown = N_SAMPLE_IMAGES if n_past == 0 else N_SAMPLE_VIDEOS
        video = as_float(torch.stack([clips[i] for i in range(min(n_shown, len(clips)))]), self.device)
        n_samples = 3 if model.has_latent else 1
        noise = keyed_noise(self.cfg.run.seed, range(len(video)), range(n_samples), self.n_drawn, model.z_dim)
        noise = noise.to(self.device)
        name = f"step_{self.step:07d}"
        context = video[:, :n_past]
        futures = model.rollout(context, video.shape[1] - n_past, noise)
        posterior = torch.cat([video[:, : -self.n_drawn], model.reconstruct(video, noise[0])], dim=1)
        columns = [("truth", video, False), ("posterior", posterior, False)]
        columns += [(f"sample {i + 1}", torch.cat([context, future], dim=1), True) for i, future in enumerate(futures)]
        if n_past == 0:
            path = folder / f"{name}.png"
            write_strip(path, [Panel(label, v[:, 0].cpu().numpy(), False) for label, v, _ in columns], 0)
            return path
        path = folder / f"{name}.gif"
        rows = [
            [Panel(label, v[i].cpu().numpy(), predicting) for label, v, predicting in columns]
            for i in range(len(video))
        ]
        write_animation_grid(path, rows, n_past)
        return path

    def note_validation(self, numbers: dict[str, float | list[float]]) -> bool:
        """Steers GECO by the error on held-out clips; returns whether this is the best validation so far.

        Every process calls it with the numbers that process 0 found.
        """
        if isinstance(self.objective, Geco):
            self.objective.steer(numbers["valid/constraint_rmse"])
        merit = self.objective.merit(numbers)
        better = merit > self.best
        self.best = merit if better else self.best
        return better

    def status(self) -> dict[str, float | list[float]]:
        """State as it is after the last step: multiplier or sigma, skipped steps, and that step's learning rate."""
        state = self.objective.status() | self.model.likelihood.status()
        return {name: value.tolist() for name, value in state.items()} | {
            "train/skipped_steps": self.counters[0].item(),
            "train/lr": learning_rate(self.cfg.optim, self.step - 1),
        }

    def take_longest_streak(self) -> int:
        """Most non-finite steps in a row since this was last asked."""
        longest = self.counters[2].item()
        self.counters[2] = self.counters[1]
        return longest

    def weights_are_finite(self) -> bool:
        """False after an update that overflowed: such weights are not worth a checkpoint."""
        return all(torch.isfinite(weight).all().item() for weight in self.model.parameters())

    def warnings(self) -> list[str]:
        """Sentences about settings that cannot work out, for the log."""
        if isinstance(self.objective, Geco) and self.objective.verdict() == "infeasible":
            return [
                f"geco: lambda is at its limit and the RMSE still above {self.objective.tolerance}: "
                "infeasible at this capacity; raise --objective.tolerance or the model's sizes"
            ]
        return []
