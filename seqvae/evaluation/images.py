"""Evaluate models of single images: squared errors, and pictures of reconstructions and samples."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from seqvae.device import as_float
from seqvae.evaluation.predictions import POSTERIOR_KEY
from seqvae.evaluation.results import write_csv
from seqvae.gaussian import keyed_noise
from seqvae.metrics.best_of_n import over_videos, plus_minus
from seqvae.metrics.frame import without_tf32
from seqvae.models import VideoModel
from seqvae.training.checkpoint import write_atomically
from seqvae.visualize import Panel, write_strip

SHOWN = 12  # images of a row
PRIOR_ROWS = 3


@dataclass
class Errors:
    """Errors and pictures of the test images."""

    squared: dict[str, np.ndarray]  # way of choosing z -> (V,) squared error summed over pixels in [0, 1]
    pictures: dict[str, np.ndarray]  # label -> (SHOWN, C, H, W) in [0, 1]
    content_hash: str  # SHA-256 of the images, uint8


@torch.no_grad()
@without_tf32()
def measure(
    model: VideoModel, clips: Dataset, n_images: int, batch_size: int, seed: int, device: torch.device
) -> Errors:
    """Reconstruct from the posterior's mean and from a sample of it, and sample images from the prior."""
    squared: dict[str, list[np.ndarray]] = {"posterior mean": [], "posterior sample": []}
    digest, kept = hashlib.sha256(), {}
    for first in range(0, n_images, batch_size):
        images = range(first, min(first + batch_size, n_images))
        raw = torch.stack([clips[i] for i in images])  # (B, 1, C, H, W) uint8
        digest.update(raw.numpy().tobytes())
        video = as_float(raw, device)
        noise = keyed_noise(seed, images, [POSTERIOR_KEY], 1, model.z_dim)[0].to(device)
        n_shown = max(0, SHOWN - first)
        kept.setdefault("truth", []).append(video[:n_shown, 0])
        for method, eps in (("posterior mean", torch.zeros_like(noise)), ("posterior sample", noise)):
            output = model.reconstruct(video, eps)
            squared[method].append((output - video).square().sum((1, 2, 3, 4)).cpu().numpy())
            kept.setdefault(method, []).append(output[:n_shown, 0])
    pictures = {label: torch.cat(parts) for label, parts in kept.items()}
    columns = len(pictures["truth"])
    noise = keyed_noise(seed, [0], range(PRIOR_ROWS * columns), 1, model.z_dim).to(device)
    samples = model.rollout(video[:1, :0], 1, noise)[:, 0, 0]  # (PRIOR_ROWS * columns, C, H, W), after no frame
    for i, row in enumerate(samples.split(columns)):
        pictures[f"prior {i + 1}"] = row
    return Errors(
        {method: np.concatenate(parts) for method, parts in squared.items()},
        {label: frames.cpu().numpy() for label, frames in pictures.items()},
        digest.hexdigest(),
    )


def write(out: Path, facts: dict, errors: Errors) -> None:
    """metrics.json, metrics.csv (a line per image) and images.png; OSError if they cannot be written."""
    means = {method: over_videos(values).as_json() for method, values in errors.squared.items()}
    write_atomically(out / "metrics.json", json.dumps({**facts, "squared_error": means}, indent=1).encode())
    head = ["image", *(f"squared_error_{method.replace(' ', '_')}" for method in errors.squared)]
    rows = [[i, *(f"{value:.6f}" for value in row)] for i, row in enumerate(zip(*errors.squared.values()))]
    write_csv(out / "metrics.csv", [head, *rows])
    write_strip(out / "images.png", [Panel(label, x, False) for label, x in errors.pictures.items()], 0)


def table(name: str, errors: Errors) -> list[str]:
    """The terminal's summary."""
    (n_images,) = {len(values) for values in errors.squared.values()}
    lines = [f"{name}: {n_images} test images, pixels in [0, 1], +- 95 % interval over images", ""]
    for method, values in errors.squared.items():
        mean, half_width = over_videos(values)
        lines.append(f"squared error, {method:<18}{mean:>10.3f}{plus_minus(half_width, 3)} summed over pixels")
    return lines
