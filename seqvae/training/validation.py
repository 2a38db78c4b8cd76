"""Validation on held-out clips, and pictures of what the model predicts for them."""

import math
from pathlib import Path

import torch
from torch.utils.data import Dataset

from seqvae.device import as_float
from seqvae.diagnostics import active_units
from seqvae.gaussian import Gaussian, keyed_noise
from seqvae.objectives import bits_per_dim, iwae_bound, masked_mean, sum_frames
from seqvae.training.state import TrainState
from seqvae.training.terms import actions_of, complete, frame_statistics, join
from seqvae.visualize import Panel, write_animation_grid, write_strip

N_SAMPLE_VIDEOS, N_SAMPLE_IMAGES = 4, 12  # shown in a sample picture


@torch.no_grad()
def validate(state: TrainState, clips: Dataset) -> dict[str, float | list[float]]:
    """RMSE, KL, bounds and active latents on held-out clips, with sampled z and in eval mode; calibrates sigma.

    A decoder whose sigma is not learned by gradients (fixed, as for GECO, or analytic) has its ELBO quoted at the sigma
    that is best over these very clips, and stores it (`calibrate`) for evaluation. So runs can be compared, and the
    choice of the best checkpoint does not depend on lambda or beta.
    """
    model, seed = state.eval_model.eval(), state.cfg.run.seed
    n_clips = min(state.cfg.run.n_valid, len(clips))
    generator = torch.Generator(state.device)
    generator.manual_seed(seed)
    parts, latents, dequantised = [], [], False
    for start in range(0, n_clips, state.pass_size):
        chosen = range(start, min(start + state.pass_size, n_clips))
        video = as_float(torch.stack([clips[i] for i in chosen]), state.device)
        noise = keyed_noise(seed, chosen, range(state.n_importance), state.n_predicted, model.z_dim).to(state.device)
        uniform = state.dequantisation_noise(video, len(video), generator)
        dequantised = uniform is not None
        actions = actions_of(model, clips, chosen, state.n_predicted)
        out, statistics = frame_statistics(model, video, noise, uniform=uniform, actions=actions, amp=state.amp)
        parts.append(statistics)
        if model.has_latent:
            latents.append(out.first_latents())
    statistics, mask = join(parts), state.mask
    mse = masked_mean(statistics["sse"] / (model.channels * model.image_size**2), mask).item()
    model.likelihood.calibrate(mse)
    terms = complete(model, statistics, mask, dequantised=dequantised)
    rate = masked_mean(terms.kl.sum(-1), mask).item()
    elbo = masked_mean(terms.log_density, mask).item() - rate
    suffix = "at_best_sigma_nats_per_frame" if model.likelihood.calibrates else "nats_per_frame"
    numbers = {
        "valid/rmse": math.sqrt(mse),
        "valid/kl_nats_per_frame": rate,
        f"valid/elbo_{suffix}": elbo,
        "valid/bits_per_dim": bits_per_dim(elbo, terms.dims, terms.bits_offset),
    }
    if state.n_importance > 1:
        log_w = sum_frames(terms.log_density + terms.log_ratio, mask)
        numbers[f"valid/iwae_{suffix}"] = (iwae_bound(log_w).mean() / mask.sum()).item()
    numbers |= state.objective.held_out(terms)
    if latents:
        q_mu, p_mu, p_logvar = (torch.cat(x) for x in zip(*((q.mu, p.mu, p.logvar) for q, p in latents)))
        numbers["valid/active_units"] = active_units(Gaussian(q_mu, p_logvar), Gaussian(p_mu, p_logvar)).sum().item()
        numbers["valid/kl_per_frame"] = terms.kl.sum(-1).mean(0).tolist()
        numbers["valid/kl_per_latent"] = terms.kl.mean((0, 1)).tolist()
    return numbers


def note_validation(state: TrainState, numbers: dict[str, float | list[float]]) -> bool:
    """Let the objective adjust to the numbers of a validation; returns whether it is the best so far.

    Every process calls it, with the numbers that process 0 found.
    """
    state.objective.steer(numbers)
    merit = state.objective.merit(numbers)
    better = merit > state.best
    state.best = merit if better else state.best
    return better


@torch.no_grad()
def sample_pictures(state: TrainState, clips: Dataset, folder: Path) -> Path:
    """Write truth, posterior and predicted futures of the first validation clips as a GIF; a PNG for images."""
    model, n_past = state.eval_model.eval(), state.cfg.data.n_past
    n_shown = N_SAMPLE_IMAGES if n_past == 0 else N_SAMPLE_VIDEOS
    video = as_float(torch.stack([clips[i] for i in range(min(n_shown, len(clips)))]), state.device)
    samples = range(3 if model.has_latent else 1)
    noise = keyed_noise(state.cfg.run.seed, range(len(video)), samples, state.n_predicted, model.z_dim)
    noise = noise.to(state.device)
    name = f"step_{state.step:07d}"
    context = video[:, :n_past]
    actions = actions_of(model, clips, range(len(video)), state.n_predicted)
    futures = model.rollout(context, video.shape[1] - n_past, noise, actions)
    posterior = torch.cat([video[:, : -state.n_predicted], model.reconstruct(video, noise[0], actions=actions)], dim=1)
    columns = [("truth", video, False), ("posterior", posterior, False)]
    columns += [(f"sample {i + 1}", torch.cat([context, future], dim=1), True) for i, future in enumerate(futures)]
    if n_past == 0:
        path = folder / f"{name}.png"
        write_strip(path, [Panel(label, v[:, 0].cpu().numpy(), False) for label, v, _ in columns], 0)
        return path
    path = folder / f"{name}.gif"
    rows = [
        [Panel(label, v[i].cpu().numpy(), predicting) for label, v, predicting in columns] for i in range(len(video))
    ]
    write_animation_grid(path, rows, n_past)
    return path
