"""Predict futures of a run's test videos, score them and draw them.

    python evaluate.py runs/demo                                        GIFs, strips, curves, metrics.json, metrics.csv
    python evaluate.py runs/smmnist-geco --n-samples 10 --n-videos 256  part of the protocol, and said so

Everything lands in RUN/evaluation/PROTOCOL/. A video's predictions are a function of (seed, video, sample), so they do
not depend on the batch size or on the other videos. Letters: N samples, V videos, F predicted frames.
"""

import csv
import dataclasses
import hashlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from datasets import load_dataset
from seqvae.config import RunConfig, build_model, read_config
from seqvae.gaussian import keyed_noise
from seqvae.metrics.best_of_n import BestOfN, Estimate, Summary, over_videos
from seqvae.metrics.frame import psnr, ssim, without_tf32
from seqvae.metrics.protocols import Protocol, find_protocol, label, own_protocol
from seqvae.model import SequenceVAE
from seqvae.training import checkpoint
from seqvae.training.checkpoint import write_atomically
from seqvae.training.trainer import as_float, choose_device
from seqvae.visualize import Curve, Panel, write_curves, write_gif, write_gif_grid, write_strip

METRICS = {"psnr": psnr, "ssim": ssim}
AXES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
ROLLOUT_ROWS = 256  # samples x videos predicted at once: bounds the memory, changes no number
SHOWN = 8  # videos that get a GIF and a strip
RANDOM = 3  # samples shown beside the best one, the first of the N
POSTERIOR_KEY = 2**32  # sample number of the reconstruction's noise, so that it is none of the predictions'
# What a run's data has to be for the published Moving MNIST test set to be its own.
PUBLISHED_DIGITS = dict(glyphs="mnist", digit_size=28, n_digits=2, deterministic=False, min_speed=0, max_speed=4)
MEAN_IMAGE_CLIPS = 256  # training clips whose frames make the mean training image


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Predict a run's test videos, score them and draw them."""

    run_dir: tyro.conf.Positional[Path]  # a folder that train.py made
    protocol: Literal["auto", "srvp-2020", "own"] = "auto"  # auto: the published one for its data, or else own
    n_samples: int | None = None  # futures per video; the protocol's (own: 10)
    n_videos: int | None = None  # test videos, from the first; the protocol's (own: 64)
    batch_size: int = 16  # videos at once; changes no number
    seed: int = 0  # of the predictions' noise
    checkpoint: Literal["best", "last"] = "best"  # best on validation, or the last one
    out: Path | None = None  # where to write; RUN/evaluation/PROTOCOL
    data_root: Path | None = None  # folder of downloaded data, if it is not where the run had it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self) -> None:
        for name in ("n_samples", "n_videos", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2^32), got {self.seed}")


@dataclass
class Scores:
    """What scoring leaves behind; frames are kept for the shown videos alone."""

    predictions: BestOfN
    others: dict[str, dict[str, np.ndarray]]  # method -> metric -> (V, F)
    shown: list[dict[str, np.ndarray]]  # per shown video: truth, posterior (T, C, H, W), samples (N, F, C, H, W)
    content_hash: str  # SHA-256 of the scored videos, uint8


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 the results could not be written, 2 the arguments, the run or the data are wrong."""
    try:
        args = tyro.cli(EvalConfig, args=argv, prog="evaluate.py", description=__doc__)
        device = choose_device(args.device, "--device")
        cfg = read_config(args.run_dir)
        protocol = choose_protocol(args, cfg)
        n_samples, n_videos = args.n_samples or protocol.n_samples, args.n_videos or protocol.n_videos
        name = label(protocol, n_samples, n_videos)
        clips = test_clips(args, cfg, protocol)
        model, step = load_model(args, cfg, clips.channels, device)
        mean_image = mean_training_image(args, cfg)
        out = args.out or args.run_dir / "evaluation" / protocol.name
        out.mkdir(parents=True, exist_ok=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file where a folder is meant, a folder that may not be read
        print(f"evaluate.py: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        scores = score(model, clips, mean_image, protocol, n_samples, n_videos, args.batch_size, args.seed, device)
    except torch.OutOfMemoryError:
        print(f"evaluate.py: the device's memory is too small; lower --batch-size {args.batch_size}", file=sys.stderr)
        return 1
    summaries = {metric: scores.predictions.summary(metric, chosen_by=protocol.best_by) for metric in METRICS}
    facts = {
        "protocol": name,
        "definitions": dataclasses.asdict(protocol),
        "run": str(args.run_dir),
        "checkpoint": args.checkpoint,
        "step": step,
        "n_samples": n_samples,
        "n_videos": n_videos,
        "seed": args.seed,
        "test_set": {"name": protocol.test_set, "sha256": scores.content_hash},
    }
    try:
        write_results(out, facts, summaries, scores)
        draw(out, protocol, summaries, scores)
    except OSError as error:
        print(f"evaluate.py: cannot write {error.filename or out}: {error.strerror}", file=sys.stderr)
        return 1
    print("\n".join(table(name, protocol, summaries, scores)))
    print(f"wrote {out}")
    return 0


def choose_protocol(args: EvalConfig, cfg: RunConfig) -> Protocol:
    """The published protocol where the run's data has one; ValueError where it does not fit."""
    data, n_samples = cfg.data, 1 if cfg.model.prior == "none" else None
    if n_samples and args.n_samples not in (None, 1):
        raise ValueError(f"--n-samples {args.n_samples}: a model without latent has one future per video; drop it")
    own_digits = {name: getattr(data, name) for name in PUBLISHED_DIGITS if getattr(data, name) is not None}
    fixed = data.name == "moving_mnist" and data.image_size == 64 and own_digits.items() <= PUBLISHED_DIGITS.items()
    name = ("srvp-2020" if fixed else "own") if args.protocol == "auto" else args.protocol
    if name == "own":
        wanted = (args.n_samples or n_samples or 10, args.n_videos or 64)
        return own_protocol(data.name, data.n_past, data.n_future, *wanted)
    if not fixed:
        raise ValueError(
            f"--protocol {name} is defined on 64-px stochastic Moving MNIST, and this run was trained on {data.name}, "
            f"image-size {data.image_size}, {data.options()}; use --protocol own"
        )
    protocol = find_protocol(name, "smmnist_srvp")
    return dataclasses.replace(protocol, n_samples=n_samples) if n_samples else protocol


def test_clips(args: EvalConfig, cfg: RunConfig, protocol: Protocol):
    """The protocol's test set, or the run's own test split, at the protocol's length."""
    arguments = data_arguments(args, cfg)
    if protocol.test_set != cfg.data.name:
        arguments = {k: v for k, v in arguments.items() if k not in cfg.data.options()}
    arguments |= {"name": protocol.test_set, "seq_len": protocol.n_past + protocol.n_future}
    clips = load_dataset(split="test", **arguments)
    if protocol.n_videos > len(clips):
        raise ValueError(f"--n-videos {protocol.n_videos}: the test split of {protocol.test_set} has {len(clips)}")
    return clips


def data_arguments(args: EvalConfig, cfg: RunConfig) -> dict[str, object]:
    """Of load_dataset, as the run had them, but for --data-root."""
    if args.data_root and cfg.data.root is None:
        raise ValueError(f"--data-root is not used by a run on {cfg.data.name}; drop it")
    return cfg.data.arguments() | ({"root": str(args.data_root)} if args.data_root else {})


def load_model(args: EvalConfig, cfg: RunConfig, channels: int, device: torch.device) -> tuple[SequenceVAE, int]:
    """The run's model in eval mode, averaged weights where it has them, and the checkpoint's step."""
    path = args.run_dir / "checkpoints" / f"{args.checkpoint}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; train the run to its first checkpoint, or choose --checkpoint")
    state = checkpoint.load(path)
    model = build_model(cfg, channels)
    try:
        model.load_state_dict(state["ema"] or state["model"])
    except RuntimeError:
        raise ValueError(f"{path} is of another model than {args.run_dir}/config.json describes") from None
    return model.to(device).eval(), state["step"]


def mean_training_image(args: EvalConfig, cfg: RunConfig) -> Tensor:
    """(C, H, W) mean of the first training clips' frames, in [0, 1]."""
    clips = load_dataset(split="train", **data_arguments(args, cfg))
    chosen = [clips[i].float().mean(0) for i in range(min(MEAN_IMAGE_CLIPS, len(clips)))]
    return torch.stack(chosen).mean(0) / 255


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


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
