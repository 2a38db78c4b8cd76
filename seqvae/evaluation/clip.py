"""Futures of one's own clip, written as pictures and numbers. The command is predict.py."""

from collections.abc import Callable, Sequence
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
from seqvae.run import Run, check_actions, load_run
from seqvae.visualize import Panel, whole_file, write_animation, write_strip

ReadVideo = Callable[[Path, int, int, int], np.ndarray]  # datasets.videos.read_video
PictureSize = Callable[[Path], tuple[int, int]]  # datasets.videos.picture_size


def run_prediction(args: PredictConfig, read_video: ReadVideo, picture_size: PictureSize) -> int:
    """Predict and write; exit code 0, other ends raise `cli.Ended`."""
    with cli.preparing():
        run = load_run(args.run, checkpoint=args.checkpoint, device=args.device)
        if run.config.data.images:
            raise ValueError(f"{args.run} is a model of single images, which predicts no futures")
        n_future = args.n_future or run.config.data.n_future
        actions = read_actions(run, args.run, args.actions, n_future)
        video = read_clip(run, args.clip, run.n_past + n_future, read_video)
        fitted = how_fitted(*picture_size(args.clip), run.model.image_size)
        n_samples = args.n_samples or (4 if run.model.has_latent and len(actions) < 2 else 1)
        width = max(128, run.model.image_size * (args.gif_scale or 1))
        pictures = 3 * (n_samples * max(1, len(actions)) + 2) * (run.n_past + n_future) * width**2
        check_memory(pictures, f"{n_samples} samples, {n_future} frames, pictures {width} wide")
        out = args.out or results_folder(args.run) / "predictions" / args.clip.resolve().name
    with cli.working(lambda: out, "--n-samples, or pass --device cpu"):
        try:
            numbers = predict(run, video, n_future, n_samples, args.seed, actions)
        except (ValueError, BadPredictions) as error:
            raise cli.Ended(str(error), 2) from None
        write(run, video, numbers, out, args.formats, args.gif_scale)
    if fitted:
        print(fitted)
    samples = f"{n_samples} sample{'s' if n_samples > 1 else ''}"
    under = f" under each of {', '.join(actions)}" if len(actions) > 1 else ""
    print(f"{run.n_past} frames observed, {n_future} predicted, {samples}{under}")
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


def how_fitted(width: int, height: int, size: int) -> str:
    """What `read_clip` does to frames of this size, px; "" where it keeps them as they are."""
    side = min(width, height)
    steps = [f"cropped to {side}x{side}"] if width != height else []
    steps += [f"scaled to {size}x{size}"] if side != size else []
    return f"clip is {width}x{height}, {', '.join(steps)}" if steps else ""


def read_actions(run: Run, name: Path, files: Sequence[Path], n_future: int) -> dict[str, np.ndarray]:
    """(n_past - 1 + n_future, A) float32 by the file's stem, empty for a model that takes none.

    Raises:
        ValueError, FileNotFoundError: files for a model that takes none, none for one that does, or one that does not
            hold such an array.
    """
    shape = (run.n_past - 1 + n_future, run.model.n_actions)
    expected = f"an .npy file of {shape} numbers, row t leading from frame t to frame t + 1"
    if not run.model.n_actions and files:
        raise ValueError(f"--actions {files[0]}: {name} was trained without actions; drop it")
    if run.model.n_actions and not files:
        raise ValueError(f"{name} takes actions, and a clip holds none; pass --actions FILE, {expected}")
    found = {}
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; expected {expected}")
        try:
            given = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # NumPy parses the header as Python, and a damaged one fails in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} cannot be read ({reason}); expected {expected}") from None
        try:
            found[path.stem] = check_actions(given, shape)
        except ValueError as error:
            rows = f"; a row for each frame after the first, {run.n_past} observed and {n_future} predicted"
            raise ValueError(f"{path}: {error}{rows if given.shape != shape else ''}") from None
    return found


def predict(
    run: Run, video: np.ndarray, n_future: int, n_samples: int, seed: int, actions: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What prediction.npz holds; futures under different actions have the same noise."""
    context, arguments = video[: run.n_past], {"n_future": n_future, "n_samples": n_samples, "seed": seed}
    samples, sigmas = [], []
    for given in actions.values() or [None]:
        samples.append(run.predict(context, **arguments, actions=given))
        sigmas.append(run.sample_sigma(context, **arguments, actions=given))
    several = len(samples) > 1
    numbers = {
        "context": context,
        "samples": np.stack(samples) if several else samples[0],
        "seeds": np.array([(seed, 0, sample) for sample in range(n_samples)]),
    }
    if len(video) == run.n_past + n_future:
        numbers["truth"] = video[run.n_past :]
    if sigmas[0] is not None:
        numbers["sigma"] = np.stack(sigmas) if several and np.ndim(sigmas[0]) else np.asarray(sigmas[0])
    if actions:
        rows = list(actions.values())
        numbers |= {"actions": np.stack(rows) if several else rows[0], "names": np.array(list(actions))}
    return numbers


def write(run: Run, video: np.ndarray, numbers: dict, out: Path, formats: tuple[str, ...], scale: int | None) -> None:
    """prediction.gif (or other formats), prediction.png and prediction.npz."""
    out.mkdir(parents=True, exist_ok=True)
    panels = []  # (T, C, S, S)
    if "truth" in numbers:
        panels.append(Panel("truth", np.moveaxis(video, -1, 1), False))
    if "truth" in numbers and not run.model.n_actions:  # what led to the clip's own frames need not be in the files
        seen = reconstruct(run, video, seed=numbers["seeds"][0, 0])
        panels.append(Panel("posterior", np.moveaxis(seen, -1, 1), False))
    for label, sample in labelled(numbers):
        panels.append(Panel(label, np.moveaxis(np.concatenate([numbers["context"], sample]), -1, 1)))
    for ending in formats:
        write_animation(out / f"prediction.{ending}", panels, run.n_past, scale=scale)
    write_strip(out / "prediction.png", panels, run.n_past)
    with whole_file(out / "prediction.npz") as partial:
        np.savez_compressed(partial, **numbers)


def labelled(numbers: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Label and (F, S, S, C) frames of each future; those of one noise under several actions are neighbours."""
    samples = numbers["samples"]
    if samples.ndim == 5:
        return [(f"sample {i + 1}", sample) for i, sample in enumerate(samples)]
    n_samples, names = samples.shape[1], numbers["names"]
    return [
        (str(name) if n_samples == 1 else f"{name} {i + 1}", samples[k, i])
        for i in range(n_samples)
        for k, name in enumerate(names)
    ]


@torch.no_grad()
@without_tf32()
def reconstruct(run: Run, video: np.ndarray, seed: int) -> np.ndarray:
    """(T, S, S, C) uint8: the first frame, then what the model makes of each frame that it has seen."""
    frames = as_float(torch.from_numpy(video).permute(0, 3, 1, 2)[None], run.device)
    noise = keyed_noise(seed, [0], [POSTERIOR_KEY], len(video) - 1, run.model.z_dim)[0].to(run.device)
    predicted = as_bytes(run.model.reconstruct(frames, noise, run.n_past)[0])
    return np.concatenate([video[:1], predicted.permute(0, 2, 3, 1).cpu().numpy()])
