"""Predict futures of a run's test videos, score them and draw them.

    python evaluate.py runs/demo                                        GIFs, strips, curves, metrics.json, metrics.csv
    python evaluate.py runs/smmnist-geco --n-samples 10 --n-videos 256  part of the protocol, and said so
    python evaluate.py runs/mnist-geco                                  single images: errors, bounds, pictures

Everything lands in RUN/evaluation/PROTOCOL/ (images: RUN/evaluation/images/). A video's predictions are a function of
(seed, video, sample), so they do not depend on the batch size or on the other videos.
"""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from torch.utils.data import Dataset

from datasets import load_dataset
from seqvae.config import RunConfig, build_model, read_config
from seqvae.evaluation import bounds, futures, images
from seqvae.image_model import ImageVAE
from seqvae.metrics.protocols import Protocol, find_protocol, label, own_protocol
from seqvae.model import SequenceVAE
from seqvae.training import checkpoint
from seqvae.training.trainer import choose_device

# What a run's data has to be for the published Moving MNIST test set to be its own.
PUBLISHED_DIGITS = dict(glyphs="mnist", digit_size=28, n_digits=2, deterministic=False, min_speed=0, max_speed=4)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Predict a run's test videos, score them and draw them."""

    run_dir: tyro.conf.Positional[Path]  # a folder that train.py made
    protocol: Literal["auto", "srvp-2020", "own"] = "auto"  # auto: the published one for its data, or else own
    n_samples: int | None = None  # futures per video; the protocol's (own: 10)
    n_videos: int | None = None  # test videos, from the first; the protocol's (own: 64)
    n_importance: int = 10  # posterior samples per video of the importance-weighted bound; 1 leaves it out
    batch_size: int = 16  # videos at once; changes no number
    seed: int = 0  # of the predictions' noise
    checkpoint: Literal["best", "last"] = "best"  # best on validation, or the last one
    out: Path | None = None  # where to write; RUN/evaluation/PROTOCOL
    data_root: Path | None = None  # folder of downloaded data, if it is not where the run had it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self) -> None:
        for name in ("n_samples", "n_videos", "n_importance", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2^32), got {self.seed}")


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 the results could not be written, 2 the arguments, the run or the data are wrong."""
    try:
        args = tyro.cli(EvalConfig, args=argv, prog="evaluate.py", description=__doc__)
        device = choose_device(args.device, "--device")
        cfg = read_config(args.run_dir)
        evaluation = (prepare_images if cfg.data.images else prepare_videos)(args, cfg, device)
        evaluation.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file where a folder is meant, a folder that may not be read
        print(f"evaluate.py: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        lines = evaluation.run()
    except torch.OutOfMemoryError:
        print(f"evaluate.py: the device's memory is too small; lower --batch-size {args.batch_size}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or evaluation.out
        print(f"evaluate.py: cannot write {where}: {error.strerror}", file=sys.stderr)
        return 1
    print("\n".join([*lines, f"wrote {evaluation.out}"]))
    return 0


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run: whatever can be wrong about its arguments has been found out."""

    out: Path
    run: Callable[[], list[str]]  # measures, writes into `out`, and returns the terminal's lines


def prepare_videos(args: EvalConfig, cfg: RunConfig, device: torch.device) -> Evaluation:
    """Predictions, their scores and pictures, and the bounds, under one protocol."""
    protocol = choose_protocol(args, cfg)
    n_samples, n_videos = args.n_samples or protocol.n_samples, args.n_videos or protocol.n_videos
    name = label(protocol, n_samples, n_videos)
    clips = test_clips(args, cfg, protocol)
    model, state = load_model(args, cfg, clips.channels, device)
    mean_image = mean_training_image(args, cfg)
    out = args.out or args.run_dir / "evaluation" / protocol.name

    def run() -> list[str]:
        scores = futures.score(
            model, clips, mean_image, protocol, n_samples, n_videos, args.batch_size, args.seed, device
        )
        summaries = {m: scores.predictions.summary(m, chosen_by=protocol.best_by) for m in futures.METRICS}
        facts = {
            "protocol": name,
            "definitions": dataclasses.asdict(protocol),
            "n_samples": n_samples,
            "n_videos": n_videos,
            "test_set": {"name": protocol.test_set, "sha256": scores.content_hash},
            **common_facts(args, cfg, model, state, clips, n_videos, protocol.n_past, device),
        }
        futures.write_results(out, facts, summaries, scores)
        futures.draw(out, protocol, summaries, scores)
        return [*futures.table(name, protocol, summaries, scores), "", *bounds.describe(facts, n_videos)]

    return Evaluation(out, run)


def prepare_images(args: EvalConfig, cfg: RunConfig, device: torch.device) -> Evaluation:
    """Errors, bounds and pictures of a model of single images, on the whole test split unless --n-videos says less."""
    if args.n_samples is not None or args.protocol != "auto":
        raise ValueError("--n-samples and --protocol are about predicted videos, and this run is on images; drop them")
    clips = load_dataset(split="test", **data_arguments(args, cfg))
    n_images = args.n_videos or len(clips)
    if n_images > len(clips):
        raise ValueError(f"--n-videos {n_images}: the test split of {cfg.data.name} has {len(clips)}")
    model, state = load_model(args, cfg, clips.channels, device)
    out = args.out or args.run_dir / "evaluation" / "images"

    def run() -> list[str]:
        errors = images.measure(model, clips, n_images, args.batch_size, args.seed, device)
        facts = {
            "n_images": n_images,
            "test_set": {"name": cfg.data.name, "sha256": errors.content_hash},
            **common_facts(args, cfg, model, state, clips, n_images, None, device),
        }
        images.write(out, facts, errors)
        return [*images.table(cfg.data.name, errors), *bounds.describe(facts, n_images)]

    return Evaluation(out, run)


def common_facts(
    args: EvalConfig,
    cfg: RunConfig,
    model: SequenceVAE | ImageVAE,
    state: dict,
    clips: Dataset,
    n_videos: int,
    n_past: int | None,
    device: torch.device,
) -> dict[str, object]:
    """What was evaluated, how its training ended, and its bounds on the test videos."""
    measured = bounds.measure_bounds(
        model,
        clips,
        n_videos,
        n_past=n_past,
        n_importance=args.n_importance if model.z_dim else 1,
        seed=args.seed,
        batch_size=args.batch_size,
        device=device,
        dequantise=bool(cfg.likelihood.dequantise),
    )
    return {
        "run": str(args.run_dir),
        "checkpoint": args.checkpoint,
        "step": state["step"],
        "seed": args.seed,
        **bounds.training_facts(cfg, model, state, clips.channels),
        "bounds": bounds.summarise(measured, n_past),
    }


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


def load_model(
    args: EvalConfig, cfg: RunConfig, channels: int, device: torch.device
) -> tuple[SequenceVAE | ImageVAE, dict]:
    """The run's model in eval mode, averaged weights where it has them, and the checkpoint's state."""
    path = args.run_dir / "checkpoints" / f"{args.checkpoint}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; train the run to its first checkpoint, or choose --checkpoint")
    state = checkpoint.load(path)
    model = build_model(cfg, channels)
    try:
        model.load_state_dict(state["ema"] or state["model"])
    except RuntimeError:
        raise ValueError(f"{path} is of another model than {args.run_dir}/config.json describes") from None
    return model.to(device).eval(), state


def mean_training_image(args: EvalConfig, cfg: RunConfig) -> Tensor:
    """(C, H, W) mean of the first training clips' frames, in [0, 1]."""
    clips = load_dataset(split="train", **data_arguments(args, cfg))
    chosen = [clips[i].float().mean(0) for i in range(min(futures.MEAN_IMAGE_CLIPS, len(clips)))]
    return torch.stack(chosen).mean(0) / 255


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
