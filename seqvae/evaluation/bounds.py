"""Bounds and latent statistics of a trained model on test videos, given the true frames.

Shapes: K importance samples, V videos, F predicted frames (1..T-1 of a video, or the image itself), Z latents.
Units:  nats.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from seqvae.build import build_objective
from seqvae.config import RunConfig
from seqvae.device import as_float
from seqvae.diagnostics import active_units, marginal_kl
from seqvae.distributed import collect, world_size
from seqvae.evaluation.predictions import POSTERIOR_KEY, own_videos
from seqvae.gaussian import Gaussian, keyed_noise
from seqvae.likelihoods.base import bits_offset
from seqvae.metrics.best_of_n import over_videos, plus_minus
from seqvae.metrics.frame import without_tf32
from seqvae.models import VideoModel
from seqvae.objectives import bits_per_dim, iwae_bound
from seqvae.objectives.base import effective_samples
from seqvae.training.checkpoint import check_like
from seqvae.training.terms import actions_of, batch_terms

SAMPLED = ("log_density", "log_ratio")  # with a leading axis of samples
FRAMES_AT_ONCE = 1024  # decoded at once, of up to 16 parameters a pixel: bounds the memory, changes no number


@dataclass(frozen=True)
class Bounds:
    """Per video and frame, float64 on the CPU."""

    log_density: Tensor  # (K, V, F) normalised log p(x_t | z)
    log_ratio: Tensor  # (K, V, F) log p(z_t) - log q(z_t)
    kl: Tensor  # (V, F, Z) per latent; Z = 0 without a latent
    sse: Tensor  # (V, F) squared error of the first sample, summed over pixels
    q: Gaussian | None  # (V, F, Z)
    p: Gaussian | None
    z: Tensor  # (V, F, Z) the first sample
    dims: int
    bits_offset: float

    def elbo(self, first: int = 0) -> Tensor:
        """(V,) nats per video, over frames first..F-1: the first sample's log density, the KL in closed form."""
        return (self.log_density[0] - self.kl.sum(-1))[:, first:].sum(-1)

    def log_w(self, first: int = 0) -> Tensor:
        """(K, V) importance log-weights of whole videos, over frames first..F-1."""
        return (self.log_density + self.log_ratio)[..., first:].sum(-1)


@torch.no_grad()
@without_tf32()
def measure_bounds(
    model: VideoModel,
    clips: Dataset,
    n_videos: int,
    *,
    n_past: int,
    n_importance: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    dequantise: bool,
) -> Bounds:
    """Teacher forcing on test videos; noise is keyed by (seed, video, sample), so no number depends on the batch.

    Several processes measure a range of the videos each, and then all have the whole.

    Args:
        clips: test videos (T, C, H, W) uint8, of which the first n_videos count.
        n_past: observed frames; 0 for images.
        n_importance: K.
        dequantise: add uniform noise to the frames that are scored, as the model was trained.
    """
    n_predicted = clips[0].shape[0] - (n_past > 0)
    parts: dict[str, list[Tensor]] = {}
    mine = own_videos(n_videos)
    for first in tqdm(mine[::batch_size], unit="batch", desc="bounds", disable=None):
        videos = range(first, min(first + batch_size, mine.stop))
        video, uniform = as_float(torch.stack([clips[i] for i in videos]), device), None
        mask = torch.ones(n_predicted, dtype=torch.float64, device=video.device)
        actions = actions_of(model, clips, videos, n_predicted)
        if dequantise:
            shape = video[:, -n_predicted:].shape[1:]
            draws = [np.random.default_rng([seed, POSTERIOR_KEY, v]).random(shape, dtype=np.float32) for v in videos]
            uniform = torch.from_numpy(np.stack(draws)).to(video.device)
        width = max(1, model.likelihood.param_channels // 16)
        at_once = max(1, FRAMES_AT_ONCE // (len(videos) * n_predicted * width))
        chunks: dict[str, list[Tensor]] = {name: [] for name in SAMPLED}
        for start in range(0, n_importance, at_once):
            samples = range(POSTERIOR_KEY + start, POSTERIOR_KEY + min(start + at_once, n_importance))
            noise = keyed_noise(seed, videos, samples, n_predicted, model.z_dim).to(video.device)
            out, terms = batch_terms(model, video, noise, mask, uniform=uniform, n_past=n_past, actions=actions)
            for name in chunks:
                chunks[name].append(getattr(terms, name))
            if start == 0:
                whole = {"kl": terms.kl, "sse": terms.sse[0], "z": out.z[0]}
                if model.has_latent:
                    q, p = out.first_latents()
                    whole |= dict(q_mu=q.mu, q_logvar=q.logvar, p_mu=p.mu, p_logvar=p.logvar)
        for name, value in (whole | {name: torch.cat(chunk) for name, chunk in chunks.items()}).items():
            parts.setdefault(name, []).append(value.cpu())
    if world_size() > 1:
        shares = [share for share in collect(parts) if share]
        parts = {name: [x for share in shares for x in share[name]] for name in shares[0]}
    joined = {name: torch.cat(x, dim=1 if name in SAMPLED else 0) for name, x in parts.items()}
    q = p = None
    if "q_mu" in joined:
        q, p = (Gaussian(joined.pop(f"{name}_mu"), joined.pop(f"{name}_logvar")) for name in "qp")
    offset = bits_offset(model.likelihood.discrete, dequantise)
    return Bounds(**joined, q=q, p=p, dims=model.channels * model.image_size**2, bits_offset=offset)


def summarise(bounds: Bounds, n_past: int) -> dict[str, object]:
    """Numbers for metrics.json; nats per video, each with the half width of its 95 % interval over videos.

    `elbo_all` bounds log p(x_1..T-1 | x_0). `elbo_future` counts the frames after the context alone: it bounds the
    density of what `rollout` samples, with latents of the context from the posterior, and not log p(future | context);
    the difference of two bounds would be no bound. For images (n_past 0) there is `elbo_all` alone.
    """
    # Where the frames that count start among frames 1..T-1.
    parts = {"all": 0} if n_past == 0 else {"all": 0, "future": n_past - 1}
    n_importance = len(bounds.log_density)
    values = {f"elbo_{name}": bounds.elbo(first) for name, first in parts.items()}
    if bounds.q is not None and n_importance > 1:
        values |= {f"iwae_{n_importance}_{name}": iwae_bound(bounds.log_w(first)) for name, first in parts.items()}
    kl = bounds.kl.sum(-1)
    numbers: dict[str, object] = {name: over_videos(value.numpy()).as_json() for name, value in values.items()}
    numbers |= {
        "rate_nats_per_frame": kl.mean().item(),
        "distortion_nats_per_frame": -bounds.log_density[0].mean().item(),
        "rmse": (bounds.sse.mean() / bounds.dims).sqrt().item(),
        "bits_per_dim": bits_per_dim(bounds.elbo().mean().item() / kl.shape[1], bounds.dims, bounds.bits_offset),
        "bits_bound_the_bytes": bounds.bits_offset in (0.0, 8.0),
        "kl_per_frame": kl.mean(0).tolist(),
    }
    if bounds.q is not None:
        marginal = marginal_kl(bounds.q, bounds.p, bounds.z)
        numbers |= {
            "effective_samples": effective_samples(bounds.log_w()).mean().item(),
            "kl_per_latent": bounds.kl.mean((0, 1)).tolist(),
            "active_units": int(active_units(bounds.q, bounds.p).sum()),
            "marginal_kl_per_frame": marginal.marginal.tolist(),
            "mutual_information_per_frame": marginal.mutual_information.tolist(),
            "rate_sampled_per_frame": marginal.rate.tolist(),
            "log_n": marginal.cap,
            "marginal_kl_unreliable": marginal.unreliable.any().item(),
        }
    return numbers


def training_facts(cfg: RunConfig, model: VideoModel, state: dict) -> dict[str, object]:
    """The sigma that bounds are quoted with, where it is one number, and what the objective says of its training."""
    facts: dict[str, object] = {}
    variance = model.likelihood.quoted_variance()
    if variance is not None:
        facts["sigma"] = variance.sqrt().item()
    objective = build_objective(cfg, model.channels)
    check_like(state["objective"], objective.state_dict(), "the checkpoint's objective")
    objective.load_state_dict(state["objective"])
    return facts | objective.facts()


def describe(facts: dict, n_videos: int) -> list[str]:
    """Bounds, latents and GECO's verdict for the terminal, each number with what it is."""
    numbers, lines = facts["bounds"], []
    for name, value in numbers.items():
        if name.startswith(("elbo_", "iwae_")):
            lines.append(f"{name:<22}{value['mean']:>12.1f}{plus_minus(value['interval95'], 1)} nats per video")
    at = f", sigma {facts['sigma']:.4g}" if "sigma" in facts else ""
    kind = "bound on the bytes" if numbers["bits_bound_the_bytes"] else "a density's, no bound on the bytes"
    lines.append(f"{'bits per dim':<22}{numbers['bits_per_dim']:>12.3f} of elbo_all ({kind}{at})")
    lines.append(
        f"rate {numbers['rate_nats_per_frame']:.2f} and distortion {numbers['distortion_nats_per_frame']:.1f} nats per "
        f"frame; RMSE {numbers['rmse']:.4f} (z sampled from the posterior)"
    )
    if "active_units" in numbers:
        marginal, information, rate = (
            float(np.mean(numbers[f"{name}_per_frame"]))
            for name in ("marginal_kl", "mutual_information", "rate_sampled")
        )
        more = "; too few videos tell these latents apart, so the marginal KL is unreliable"
        doubt = more if numbers["marginal_kl_unreliable"] else ""
        lines.append(
            f"active units {numbers['active_units']} of {len(numbers['kl_per_latent'])}; marginal KL {marginal:.3f} "
            f"of a rate of {rate:.3f} nats per frame, mutual information {information:.3f}, N = {n_videos}, "
            f"log N = {numbers['log_n']:.2f}{doubt}"
        )
    return [*lines, f"geco: {facts['geco']['summary']}"] if "geco" in facts else lines
