"""Predict possible futures of one clip.

    python predict.py runs/bair-sigma mine.gif                    a GIF, a film strip and the numbers
    python predict.py smmnist-transport digits.mp4 --n-samples 8  with weights that come with the repository
    python predict.py runs/demo frames/ --n-future 20             a folder of frames; a longer future

They land in RUN/predictions/CLIP/: prediction.gif, prediction.png and prediction.npz (docs/predictions.md).
The first frames of the clip are observed; the rest is the truth, shown beside the samples if it is long enough.
"""

import importlib.util
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from datasets.video_folder import read_video
from seqvae.device import as_float
from seqvae.evaluation.predictions import POSTERIOR_KEY, BadPredictions
from seqvae.gaussian import keyed_noise
from seqvae.memory import check_memory, is_out_of_memory, keep_memory
from seqvae.metrics.frame import without_tf32
from seqvae.run import Run, load_run
from seqvae.visualize import Panel, whole_file, write_animation, write_strip
from seqvae.weights import results_folder

MAX_SCALE = 32  # screen pixels per pixel: 64 px are 2048 then


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Predict possible futures of one clip."""

    run: tyro.conf.Positional[Path]  # folder that train.py or seqvae.export made, or a name in pretrained/
    clip: tyro.conf.Positional[Path]  # video file, or folder of frames
    n_samples: int | None = None  # futures; 4, of a model without latent 1
    n_future: int | None = None  # frames to predict; as many as in training
    seed: int = 0  # of the predictions' noise
    checkpoint: Literal["best", "last"] = "best"  # best on validation, or the last one
    formats: tuple[Literal["gif", "apng", "mp4"], ...] = ("gif",)  # of moving pictures; mp4 needs the extra `mp4`
    gif_scale: int | None = None  # screen pixels per pixel; as many as make a picture 128 wide
    out: Path | None = None  # where to write; RUN/predictions/CLIP (pretrained: runs/NAME/predictions/CLIP)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self) -> None:
        for name in ("n_samples", "n_future", "gif_scale"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(self, name)}")
        if self.gif_scale is not None and self.gif_scale > MAX_SCALE:
            raise ValueError(f"--gif-scale must be <= {MAX_SCALE}, got {self.gif_scale}")
        if "mp4" in self.formats and importlib.util.find_spec("av") is None:
            raise ValueError('--formats mp4 needs PyAV; pip install -e ".[mp4]", or drop it')


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 the results could not be written, 2 the arguments, the run or the clip are wrong."""
    try:
        args = tyro.cli(PredictConfig, args=argv, prog="predict.py", description=__doc__)
        run = load_run(args.run, checkpoint=args.checkpoint, device=args.device)
        if run.config.data.images:
            raise ValueError(f"{args.run} is a model of single images, which predicts no futures")
        n_future = args.n_future or run.config.data.n_future
        video = read_clip(run, args.clip, run.n_past + n_future)
        n_samples = args.n_samples or (4 if run.model.has_latent else 1)
        width = max(128, run.model.image_size * (args.gif_scale or 1))
        pictures = 3 * (n_samples + 2) * (run.n_past + n_future) * width**2
        check_memory(pictures, f"{n_samples} samples, {n_future} frames, pictures {width} wide")
        numbers = predict(run, video, n_future, n_samples, args.seed)
    except (ValueError, FileNotFoundError, BadPredictions) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"predict.py: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print("predict.py: the memory is too small; lower --n-samples, or pass --device cpu", file=sys.stderr)
        return 1
    out = args.out or results_folder(args.run) / "predictions" / args.clip.resolve().name
    try:
        write(run, video, numbers, out, args.formats, args.gif_scale)
    except OSError as error:
        print(f"predict.py: cannot write {error.filename or out}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{run.n_past} frames seen, {n_future} predicted, {n_samples} samples")
    if len(video) < run.n_past + n_future:
        print(f"the clip has {len(video)} frames of {run.n_past + n_future}: too few to show the truth beside")
    print(f"wrote {out}")
    return 0


def read_clip(run: Run, path: Path, max_frames: int) -> np.ndarray:
    """(T, S, S, C) uint8 at the run's stride, grey for a model of grey videos; ValueError for too few frames."""
    video = read_video(path, run.model.image_size, run.config.data.stride or 1, max_frames)
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
    drawn = run.model.reconstruct(frames, noise, run.n_past)[0]
    return np.concatenate([video[:1], (255 * drawn).round().byte().permute(0, 2, 3, 1).cpu().numpy()])


def picture(frames: np.ndarray) -> np.ndarray:
    """(T, S, S, C) uint8 -> (T, C, S, S) in [0, 1], as panels are."""
    return np.moveaxis(frames, -1, 1).astype(np.float32) / 255


if __name__ == "__main__":
    keep_memory()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an orderly end: no half-written file stays
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
