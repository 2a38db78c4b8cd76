"""Futures of test videos: predicted, scored, drawn, and laid out as a table.

Letters: N samples, V videos, F predicted frames. A video's predictions are a function of (seed, video, sample), so they
do not depend on the batch size or on the other videos.
"""

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seqvae.evaluation.bounds import POSTERIOR_KEY
from seqvae.gaussian import keyed_noise
from seqvae.metrics.best_of_n import BestOfN, Estimate, Summary, over_videos
from seqvae.metrics.frame import psnr, ssim, without_tf32
from seqvae.metrics.protocols import Protocol
from seqvae.model import SequenceVAE
from seqvae.training.checkpoint import write_atomically
from seqvae.training.trainer import as_float
from seqvae.visualize import Curve, Panel, write_curves, write_gif, write_gif_grid, write_strip

METRICS = {"psnr": psnr, "ssim": ssim}
AXES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
ROLLOUT_ROWS = 256  # samples x videos predicted at once: bounds the memory, changes no number
SHOWN = 8  # videos that get a GIF and a strip
MEAN_IMAGE_CLIPS = 256  # training clips whose frames make the mean training image
RANDOM = 3  # samples shown beside the best one, the first of the N


@dataclass
class Scores:
    """What scoring leaves behind; frames are kept for the shown videos alone."""

    predictions: BestOfN
    others: dict[str, dict[str, np.ndarray]]  # method -> metric -> (V, F)
    shown: list[dict[str, np.ndarray]]  # per shown video: truth, posterior (T, C, H, W), samples (N, F, C, H, W)
    content_hash: str  # SHA-256 of the scored videos, uint8


@torch.no_grad()
@without_tf32()
def score(
    model: SequenceVAE,
    clips,
    mean_image: Tensor,
    protocol: Protocol,
    n_samples: int,
    n_videos: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Scores:
    """Predicts and scores video by video; no frames are held but those of the shown videos."""
    n_past, n_future = protocol.n_past, protocol.n_future
    predictions = BestOfN(n_samples, n_videos, n_future)
    others: dict[str, dict[str, list[np.ndarray]]] = {}
    shown, digest = [], hashlib.sha256()
    for first in tqdm(range(0, n_videos, batch_size), unit="batch", disable=None):
        videos = range(first, min(first + batch_size, n_videos))
        raw = torch.stack([clips[i] for i in videos])  # (B, T, C, H, W) uint8
        digest.update(raw.numpy().tobytes())
        video = as_float(raw, device)
        context, target = video[:, :n_past], video[:, n_past:]

        n_shown = max(0, min(SHOWN - first, len(videos)))
        kept: list[np.ndarray] = []
        at_once = max(1, ROLLOUT_ROWS // len(videos))
        for start in range(0, n_samples, at_once):
            chosen = range(start, min(start + at_once, n_samples))
            noise = keyed_noise(seed, videos, chosen, n_past - 1 + n_future, model.z_dim).to(device)
            futures = model.rollout(context, n_future, noise)  # (n, B, F, C, H, W)
            predictions.add(start, first, **_measure(futures, target.expand_as(futures)))
            kept.append(_as_uint8(futures[:, :n_shown]))

        noise = keyed_noise(seed, videos, [POSTERIOR_KEY], n_past - 1 + n_future, model.z_dim)[0].to(device)
        posterior = model.reconstruct(video, noise, n_past)[:, n_past - 1 :]
        guesses = {
            "posterior": posterior,
            "copy last frame": context[:, -1:],
            "mean of context": context.mean(1, keepdim=True),
            "mean training image": mean_image.to(device)[None, None],
            "black": torch.zeros_like(target[:, :1]),
        }
        for method, guess in guesses.items():
            for metric, values in _measure(guess.expand_as(target), target).items():
                others.setdefault(method, {}).setdefault(metric, []).append(values.cpu().numpy())
        for i in range(n_shown):
            samples = np.concatenate([chunk[:, i] for chunk in kept])
            shown.append({"truth": raw[i].numpy(), "posterior": _as_uint8(posterior[i]), "samples": samples})
    joined = {
        method: {metric: np.concatenate(parts) for metric, parts in metrics.items()}
        for method, metrics in others.items()
    }
    return Scores(predictions, joined, shown, digest.hexdigest())


def _measure(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {name: metric(pred, target) for name, metric in METRICS.items()}


def _as_uint8(frames: Tensor) -> np.ndarray:
    return (255 * frames).round().byte().cpu().numpy()


def per_video(summaries: dict[str, Summary], scores: Scores) -> dict[str, dict[str, np.ndarray]]:
    """method -> metric -> (V,) mean over predicted frames: what the table and metrics.csv hold."""
    rows = {kind: {metric: getattr(s, kind) for metric, s in summaries.items()} for kind in ("best", "mean", "worst")}
    return rows | {
        method: {m: values.mean(1) for m, values in metrics.items()} for method, metrics in scores.others.items()
    }


def per_frame(summaries: dict[str, Summary], scores: Scores) -> dict[str, dict[str, Estimate]]:
    """method -> metric -> (F,) mean over videos, with its 95 % interval."""
    curves = {
        kind: {metric: getattr(s, f"{kind}_curve") for metric, s in summaries.items()}
        for kind in ("best", "mean", "worst")
    }
    return curves | {
        method: {m: over_videos(v) for m, v in metrics.items()} for method, metrics in scores.others.items()
    }


def write_results(out: Path, facts: dict, summaries: dict[str, Summary], scores: Scores) -> None:
    """metrics.json (means, intervals, per-frame curves, score against N); metrics.csv (a line per video and method)."""
    out.mkdir(parents=True, exist_ok=True)
    videos, frames = per_video(summaries, scores), per_frame(summaries, scores)
    results = {
        method: {
            metric: {
                **_estimate(over_videos(values)),
                "per_frame": _estimate(frames[method][metric]),
            }
            for metric, values in metrics.items()
        }
        for method, metrics in videos.items()
    }
    by_n = {metric: {n: _estimate(e) for n, e in summary.by_n.items()} for metric, summary in summaries.items()}
    content = {**facts, "results": results, "best_of_n": by_n}
    write_atomically(out / "metrics.json", json.dumps(content, indent=1).encode())

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "method", *METRICS])
    for method, metrics in videos.items():
        for video, values in enumerate(zip(*(metrics[metric] for metric in METRICS))):
            writer.writerow([video, method, *(f"{value:.6f}" for value in values)])
    write_atomically(out / "metrics.csv", text.getvalue().encode())


def _estimate(estimate: Estimate) -> dict[str, object]:
    return {"mean": estimate.mean.tolist(), "interval95": estimate.half_width.tolist()}


def draw(out: Path, protocol: Protocol, summaries: dict[str, Summary], scores: Scores) -> None:
    """gifs/, strips/ and curves.png."""
    n_past, n_samples = protocol.n_past, scores.predictions.shape[0]
    rows = []
    for i, video in enumerate(scores.shown):
        context, samples = video["truth"][:n_past], video["samples"]
        whole = {"posterior": video["posterior"], "best": samples[summaries["psnr"].best_index[i]]}
        whole |= {f"sample {k + 1}": samples[k] for k in range(min(RANDOM, n_samples))}
        whole = {name: np.concatenate([context, frames]) for name, frames in whole.items()}
        panels = [Panel("truth", video["truth"], False), Panel("posterior", whole.pop("posterior"), False)]
        if n_samples > 1:
            panels.append(Panel(f"best PSNR of {n_samples}", whole["best"]))
        panels += [Panel(name, frames) for name, frames in whole.items() if name != "best"]
        rows.append(panels)
        write_gif(out / "gifs" / f"video_{i:03d}.gif", panels, n_past)
        write_strip(out / "strips" / f"video_{i:03d}.png", panels, n_past)
    write_gif_grid(out / "gifs" / "grid.gif", rows[:4], n_past)

    curves = per_frame(summaries, scores)
    names = {"best": f"best of {n_samples}", "mean": "mean", "worst": f"worst of {n_samples}"}
    plots = {
        axis: [
            Curve(
                names.get(method, method),
                c[metric].mean,
                c[metric].half_width if method in names else None,
                method not in names,
            )
            for method, c in curves.items()
        ]
        for metric, axis in AXES.items()
    }
    write_curves(out / "curves.png", plots, n_past)


def table(name: str, protocol: Protocol, summaries: dict[str, Summary], scores: Scores) -> list[str]:
    """The terminal's summary, each number's definition below it."""
    n_samples, n_videos, n_future = scores.predictions.shape
    names = {"best": f"best of {n_samples}", "mean": f"mean of {n_samples}", "worst": f"worst of {n_samples}"}
    lines = [name, f"{protocol.test_set}: {n_videos} videos, {protocol.n_past} frames seen, {n_future} predicted", ""]
    lines.append(f"{'':<22}{'PSNR (dB)':>18}{'SSIM':>20}")
    for method, metrics in per_video(summaries, scores).items():
        cells = [over_videos(metrics[metric]) for metric in METRICS]
        (db, db_range), (s, s_range) = cells
        lines.append(f"{names.get(method, method):<22}{db:>9.2f} +- {db_range:<5.2f}{s:>11.4f} +- {s_range:<6.4f}")
    return [
        *lines,
        "",
        f"PSNR: {protocol.psnr}.",
        f"SSIM: {protocol.ssim}.",
        "Both: mean over predicted frames, then over videos, +- 95 % interval over videos.",
        "Best and worst: chosen per video, "
        + (f"by {protocol.best_by}." if protocol.best_by else "for each metric by itself."),
        "posterior: each frame drawn from the real one before it and latents that have seen it; no other row has.",
        f"mean training image: of the first {MEAN_IMAGE_CLIPS} training clips; mean of context: of the frames seen.",
    ]
