"""Futures of test videos: predicted, scored, drawn, and laid out as a table.

Letters: N samples, V videos, F predicted frames. A video's predictions are a function of (seed, video, sample), so they
do not depend on the batch size or on the other videos.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seqvae.evaluation.bounds import POSTERIOR_KEY
from seqvae.gaussian import keyed_noise
from seqvae.metrics.best_of_n import BestOfN, Estimate, Summary, over_videos
from seqvae.metrics.frame import without_tf32
from seqvae.metrics.frechet import FrechetDistance
from seqvae.metrics.protocols import Metric, Protocol
from seqvae.model import SequenceVAE
from seqvae.training.checkpoint import write_atomically
from seqvae.training.trainer import as_float
from seqvae.visualize import Curve, Panel, write_curves, write_gif, write_gif_grid, write_strip

ROLLOUT_ROWS = 256  # samples x videos predicted at once: bounds the memory, changes no number
SHOWN = 8  # videos that get a GIF and a strip
MEAN_IMAGE_CLIPS = 256  # training clips whose frames make the mean training image
Oracle = Callable[[range, range], np.ndarray]
RANDOM = 3  # samples shown beside the best one, the first of the N


@dataclass
class Scores:
    """What scoring leaves behind; frames are kept for the shown videos alone."""

    metrics: dict[str, Metric]
    predictions: BestOfN
    oracle: BestOfN | None  # the true simulator's futures, scored as ours
    diversity: np.ndarray | None  # (V, F) mean squared difference per pixel between two samples; None for one sample
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
    metrics: dict[str, Metric],
    n_samples: int,
    n_videos: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    oracle: Oracle | None = None,
    frechet: Sequence[FrechetDistance] = (),
) -> Scores:
    """Predicts and scores video by video; no frames are held but those of the shown videos.

    Args:
        oracle: videos and samples, as ranges -> (N, V, F, C, H, W) uint8, the true simulator's futures.
        frechet: collect the real videos and the first sample of each, context included.
    """
    n_past, n_future = protocol.n_past, protocol.n_future
    predictions = BestOfN(n_samples, n_videos, n_future)
    oracle_scores = BestOfN(n_samples, n_videos, n_future) if oracle else None
    diversity: list[np.ndarray] = []
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
        total = square = 0.0  # of the samples, for their variance
        for start in range(0, n_samples, at_once):
            chosen = range(start, min(start + at_once, n_samples))
            noise = keyed_noise(seed, videos, chosen, n_past - 1 + n_future, model.z_dim).to(device)
            futures = model.rollout(context, n_future, noise)  # (n, B, F, C, H, W)
            predictions.add(start, first, **_measure(metrics, futures, target.expand_as(futures)))
            kept.append(_as_uint8(futures[:, :n_shown]))
            total, square = total + futures.double().sum(0), square + futures.double().square().sum(0)
            if oracle_scores is not None:
                drawn = as_float(torch.from_numpy(oracle(videos, chosen)), device)
                oracle_scores.add(start, first, **_measure(metrics, drawn, target.expand_as(drawn)))
            if start == 0:
                for distance in frechet:
                    distance.add(video, real=True)
                    distance.add(torch.cat([context, futures[0]], dim=1), real=False)
        if n_samples > 1:  # the mean squared difference of two samples is twice their variance
            variance = (square - total.square() / n_samples) / (n_samples - 1)
            diversity.append(2 * variance.mean((-3, -2, -1)).cpu().numpy())

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
            for metric, values in _measure(metrics, guess.expand_as(target), target).items():
                others.setdefault(method, {}).setdefault(metric, []).append(values.cpu().numpy())
        for i in range(n_shown):
            samples = np.concatenate([chunk[:, i] for chunk in kept])
            shown.append({"truth": raw[i].numpy(), "posterior": _as_uint8(posterior[i]), "samples": samples})
    joined = {
        method: {metric: np.concatenate(parts) for metric, parts in values.items()} for method, values in others.items()
    }
    spread = np.concatenate(diversity) if diversity else None
    return Scores(metrics, predictions, oracle_scores, spread, joined, shown, digest.hexdigest())


def summaries_of(scores: Scores, protocol: Protocol) -> dict[str, dict[str, Summary]]:
    """`predictions`, and `oracle` where there is one -> metric -> its summary, the best chosen as the protocol says."""
    found = {}
    for name, samples in (("predictions", scores.predictions), ("oracle", scores.oracle)):
        if samples is not None:
            found[name] = {
                key: samples.summary(
                    key,
                    chosen_by=protocol.best_by,
                    higher_is_better=scores.metrics[protocol.best_by or key].higher_is_better,
                )
                for key in scores.metrics
            }
    return found


def _measure(metrics: dict[str, Metric], pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {name: metric.score(pred, target) for name, metric in metrics.items()}


def _as_uint8(frames: Tensor) -> np.ndarray:
    return (255 * frames).round().byte().cpu().numpy()


KINDS = ("best", "mean", "worst")


def per_video(summaries: dict[str, dict[str, Summary]], scores: Scores) -> dict[str, dict[str, np.ndarray]]:
    """method -> metric -> (V,) mean over predicted frames: what the table and metrics.csv hold."""
    rows = {kind: {m: getattr(s, kind) for m, s in summaries["predictions"].items()} for kind in KINDS}
    if "oracle" in summaries:
        rows |= {f"oracle {kind}": {m: getattr(s, kind) for m, s in summaries["oracle"].items()} for kind in KINDS[:2]}
    return rows | {
        method: {m: values.mean(1) for m, values in metrics.items()} for method, metrics in scores.others.items()
    }


def per_frame(summaries: dict[str, dict[str, Summary]], scores: Scores) -> dict[str, dict[str, Estimate]]:
    """method -> metric -> (F,) mean over videos, with its 95 % interval."""
    curves = {kind: {m: getattr(s, f"{kind}_curve") for m, s in summaries["predictions"].items()} for kind in KINDS}
    for kind in KINDS[:2] if "oracle" in summaries else ():
        curves[f"oracle {kind}"] = {m: getattr(s, f"{kind}_curve") for m, s in summaries["oracle"].items()}
    return curves | {
        method: {m: over_videos(v) for m, v in metrics.items()} for method, metrics in scores.others.items()
    }


def write_results(out: Path, facts: dict, summaries: dict[str, dict[str, Summary]], scores: Scores) -> None:
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
    by_n = {
        ("best_of_n" if name == "predictions" else f"{name}_best_of_n"): {
            metric: {n: _estimate(e) for n, e in summary.by_n.items()} for metric, summary in metrics.items()
        }
        for name, metrics in summaries.items()
    }
    content = {**facts, "results": results, **by_n}
    if scores.diversity is not None:
        content["diversity"] = {
            "definition": "mean squared difference per pixel between two samples of a video",
            **_estimate(over_videos(scores.diversity.mean(1))),
            "per_frame": _estimate(over_videos(scores.diversity)),
        }
    write_atomically(out / "metrics.json", json.dumps(content, indent=1).encode())

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "method", *scores.metrics])
    for method, metrics in videos.items():
        for video, values in enumerate(zip(*(metrics[metric] for metric in scores.metrics))):
            writer.writerow([video, method, *(f"{value:.6f}" for value in values)])
    write_atomically(out / "metrics.csv", text.getvalue().encode())


def _estimate(estimate: Estimate) -> dict[str, object]:
    return {"mean": estimate.mean.tolist(), "interval95": estimate.half_width.tolist()}


def draw(out: Path, protocol: Protocol, summaries: dict[str, dict[str, Summary]], scores: Scores) -> None:
    """gifs/, strips/ and curves.png."""
    n_past, n_samples = protocol.n_past, scores.predictions.shape[0]
    rows = []
    for i, video in enumerate(scores.shown):
        context, samples = video["truth"][:n_past], video["samples"]
        whole = {"posterior": video["posterior"], "best": samples[summaries["predictions"]["psnr"].best_index[i]]}
        whole |= {f"sample {k + 1}": samples[k] for k in range(min(RANDOM, n_samples))}
        whole = {name: np.concatenate([context, frames]) for name, frames in whole.items()}
        panels = [Panel("truth", video["truth"], False), Panel("posterior", whole.pop("posterior"), False)]
        if n_samples > 1:
            panels.append(Panel(f"best {(protocol.best_by or 'psnr').upper()} of {n_samples}", whole["best"]))
        panels += [Panel(name, frames) for name, frames in whole.items() if name != "best"]
        rows.append(panels)
        write_gif(out / "gifs" / f"video_{i:03d}.gif", panels, n_past)
        write_strip(out / "strips" / f"video_{i:03d}.png", panels, n_past)
    write_gif_grid(out / "gifs" / "grid.gif", rows[:4], n_past)

    curves = per_frame(summaries, scores)
    names = {"best": f"best of {n_samples}", "mean": "mean", "worst": f"worst of {n_samples}"}
    plots = {
        scores.metrics[metric].label: [
            Curve(
                names.get(method, method),
                c[metric].mean,
                c[metric].half_width if method in names else None,
                method not in names,
            )
            for method, c in curves.items()
        ]
        for metric in scores.metrics
    }
    write_curves(out / "curves.png", plots, n_past)


def table(name: str, protocol: Protocol, summaries: dict[str, dict[str, Summary]], scores: Scores) -> list[str]:
    """The terminal's summary, each number's definition below it."""
    n_samples, n_videos, n_future = scores.predictions.shape
    names = {kind: f"{kind} of {n_samples}" for kind in KINDS} | {
        f"oracle {kind}": f"oracle, {kind} of {n_samples}" for kind in KINDS
    }
    lines = [name, f"{protocol.test_set}: {n_videos} videos, {protocol.n_past} frames seen, {n_future} predicted", ""]
    lines.append(" " * 22 + "".join(f"{metric.label:>20}" for metric in scores.metrics.values()))
    for method, values in per_video(summaries, scores).items():
        row = f"{names.get(method, method):<22}"
        for key in scores.metrics:
            mean, half_width = over_videos(values[key])
            digits = 2 if key == "psnr" else 4
            row += f"{f'{mean:.{digits}f} +- {half_width:.{digits}f}':>20}"
        lines.append(row)
    lines += ["", *(f"{metric.label.split()[0]}: {metric.definition}." for metric in scores.metrics.values())]
    lines += [
        "All: mean over predicted frames, then over videos, +- 95 % interval over videos.",
        "Best and worst: chosen per video, "
        + (f"by {scores.metrics[protocol.best_by].label}." if protocol.best_by else "for each metric by itself."),
        "posterior: each frame drawn from the real one before it and latents that have seen it; no other row has.",
        f"mean training image: of the first {MEAN_IMAGE_CLIPS} training clips; mean of context: of the frames seen.",
    ]
    if scores.oracle is not None:
        lines.append(
            "oracle: the true simulator, continued from the true digits, places and speeds of the last frame seen."
        )
    if scores.diversity is not None:
        mean, half_width = over_videos(scores.diversity.mean(1))
        lines.append(f"diversity: {mean:.5f} +- {half_width:.5f} mean squared difference per pixel of two samples.")
    return lines
