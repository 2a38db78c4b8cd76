"""Futures of one's own clip, written as pictures and numbers. The command is predict.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from seqvae import cli
from seqvae.device import as_float
from seqvae.evaluation.config import PredictConfig
from seqvae.evaluation.predictions import POSTERIOR_KEY, BadPredictions, as_bytes
from seqvae.folders import results_folder
from seqvae.gaussian import keyed_noise
from seqvae.memory import check_memory
from seqvae.metrics.frame import without_tf32
from seqvae.run import Run, load_run
from seqvae.visualize import Panel, whole_file, write_animation, write_strip

ReadVideo = Callable[[Path, int, int, int], np.ndarray]  # datasets.videos.read_video


def start(args: PredictConfig, read_video: ReadVideo) -> int:
    """Predict and write; exit code 0, other ends raise `cli.Ended`."""
    with cli.preparing():
        run = load_run(args.run, checkpoint=args.checkpoint, device=args.device)
        if run.config.data.images:
            raise ValueError(f"{args.run} is a model of single images, which predicts no futures")
        if run.model.n_actions:
            raise ValueError(
                f"{args.run} takes actions, and a clip holds none; from Python: run.predict(frames, actions=...)"
            )
        n_future = args.n_future or run.config.data.n_future
        video = read_clip(run, args.clip, run.n_past + n_future, read_video)
        n_samples = args.n_samples or (4 if run.model.has_latent else 1)
        width = max(128, run.model.image_size * (args.gif_scale or 1))
        pictures = 3 * (n_samples + 2) * (run.n_past + n_future) * width**2
        check_memory(pictures, f"{n_samples} samples, {n_future} frames, pictures {width} wide")
        out = args.out or results_folder(args.run) / "predictions" / args.clip.resolve().name
    with cli.working(lambda: out, "--n-samples, or pass --device cpu"):
        try:
            numbers = predict(run, video, n_future, n_samples, args.seed)
        except (ValueError, BadPredictions) as error:
            raise cli.Ended(str(error), 2) from None
        write(run, video, numbers, out, args.formats, args.gif_scale)
    print(f"{run.n_past} frames observed, {n_future} predicted, {n_samples} samples")
    if len(video) < run.n_past + n_future:
        print(f"the clip has {len(video)} frames of {run.n_past + n_future}: too few to show the truth beside")
    print(f"wrote {out}")
    return 0


def read_clip(run: Run, path: Path, max_frames: int, read_video: ReadVideo) -> np.ndarray:
    """(T, S, S, C) uint8 at the run's stride, grey for a model of grey videos; ValueError for too few frames."""
    video = read_video(path, run.model.image_size, getattr(run.config.data, "stride", 1), max_frames)
    if run.model.channels == 1:
        video = video.mean(-1, keepdims=True, dtype=np.float32).round().astype(np.uint8)
    if len(video) < run.n_past:
        raise ValueError(f"{path} has {len(video)} frames, and the model observes {run.n_past}")
    return video


def predict(run: Run, video: np.ndarray, n_future: int, n_samples: int, seed: int) -> dict[str, np.ndarray]:
    """What prediction.npz holds."""
    context, arguments = video[: run.n_past], {"n_future": n_future, "n_samples": n_samples, "seed": seed}
    numbers = {
        "context": context,
        "samples": run.predict(context, **arguments),
        "seeds": np.array([(seed, 0, sample) for sample in range(n_samples)]),
    }
    if len(video) == run.n_past + n_future:
        numbers["truth"] = video[run.n_past :]
    sigma = run.sample_sigma(context, **arguments)
    return numbers if sigma is None else numbers | {"sigma": np.asarray(sigma)}


def write(run: Run, video: np.ndarray, numbers: dict, out: Path, formats: tuple[str, ...], scale: int | None) -> None:
    """prediction.gif (or other formats), prediction.png and prediction.npz."""
    out.mkdir(parents=True, exist_ok=True)
    panels = []
    if "truth" in numbers:
        seen = reconstruct(run, video, seed=numbers["seeds"][0, 0])
        panels += [Panel("truth", picture(video), False), Panel("posterior", picture(seen), False)]
    panels += [
        Panel(f"sample {i + 1}", picture(np.concatenate([numbers["context"], sample])))
        for i, sample in enumerate(numbers["samples"])
    ]
    for ending in formats:
        write_animation(out / f"prediction.{ending}", panels, run.n_past, scale=scale)
    write_strip(out / "prediction.png", panels, run.n_past)
    with whole_file(out / "prediction.npz") as partial:
        np.savez_compressed(partial, **numbers)


@torch.no_grad()
@without_tf32()
def reconstruct(run: Run, video: np.ndarray, seed: int) -> np.ndarray:
    """(T, S, S, C) uint8: the first frame, then what the model makes of each frame that it has seen."""
    frames = as_float(torch.from_numpy(video).permute(0, 3, 1, 2)[None], run.device)
    noise = keyed_noise(seed, [0], [POSTERIOR_KEY], len(video) - 1, run.model.z_dim)[0].to(run.device)
    predicted = as_bytes(run.model.reconstruct(frames, noise, run.n_past)[0])
    return np.concatenate([video[:1], predicted.permute(0, 2, 3, 1).cpu().numpy()])


def picture(frames: np.ndarray) -> np.ndarray:
    """(T, S, S, C) uint8 -> (T, C, S, S) in [0, 1], as panels are."""
    return np.moveaxis(frames, -1, 1).astype(np.float32) / 255
