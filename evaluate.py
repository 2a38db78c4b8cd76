"""Predict futures of a run's test videos, score them and draw them.

    python evaluate.py runs/demo                                        GIFs, strips, curves, metrics.json, metrics.csv
    python evaluate.py runs/smmnist-geco --n-samples 10 --n-videos 256  part of the protocol, and said so
    python evaluate.py runs/bair-geco --clip mine.gif                   futures of one's own clip
    python evaluate.py runs/mnist-geco                                  single images: errors, bounds, pictures

Everything lands in RUN/evaluation/PROTOCOL/ (images: RUN/evaluation/images/). A video's predictions are a function of
(seed, video, sample), so they do not depend on the batch size or on the other videos.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.utils.data import Dataset

from datasets import load_dataset
from datasets.oracle import oracle_futures
from datasets.video_folder import read_video
from seqvae.config import DataConfig, RunConfig, build_model, read_config
from seqvae.evaluation import bounds, clip, futures, images
from seqvae.image_model import ImageVAE
from seqvae.metrics.frechet import FrechetDistance, VideoFeatures, i3d, r3d18
from seqvae.metrics.protocols import Protocol, build_metrics, find_protocol, label, own_protocol
from seqvae.model import SequenceVAE
from seqvae.training import checkpoint
from seqvae.training.trainer import choose_device

# What a run's data has to be for the published Moving MNIST test set to be its own.
PUBLISHED_DIGITS = dict(glyphs="mnist", n_digits=2, deterministic=False, min_speed=0, max_speed=4)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Predict a run's test videos, score them and draw them."""

    run_dir: tyro.conf.Positional[Path]  # a folder that train.py made
    # auto: the published one for its data, or else own; several: each in its own folder
    protocol: tuple[Literal["auto", "srvp-2020", "svg-2018", "mcvd-2022", "own"], ...] = ("auto",)
    n_samples: int | None = None  # futures per video; the protocol's (own: 10)
    n_videos: int | None = None  # test videos, from the first; the protocol's (own: 64)
    lpips: Literal["auto", "on", "off"] = "auto"  # on: download its backbone (233 MB) if need be; auto: if it is there
    fvd_weights: Path | None = None  # TorchScript I3D file, for FVD; no file, no number
    r3d18: bool = False  # Frechet distance on torchvision's r3d_18, which is no FVD
    oracle: bool = True  # Moving MNIST: score the true simulator's futures too, the ceiling of every model
    n_importance: int | None = None  # posterior samples per video of the importance-weighted bound; 10, 1: without it
    batch_size: int = 16  # videos at once; changes no number
    seed: int = 0  # of the predictions' noise
    checkpoint: Literal["best", "last"] = "best"  # best on validation, or the last one
    clip: Path | None = None  # predict this video file (or folder of frames) instead of the test set
    n_future: int | None = None  # with --clip: frames to predict; as many as in training
    out: Path | None = None  # where to write; RUN/evaluation/PROTOCOL
    data_root: Path | None = None  # folder of downloaded data, if it is not where the run had it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self) -> None:
        for name in ("n_samples", "n_videos", "n_importance", "batch_size", "n_future"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(self, name)}")
        if self.n_future is not None and self.clip is None:
            raise ValueError("--n-future goes with --clip: a test set's length is the protocol's; drop it")
        if self.clip is not None and (self.n_videos is not None or self.protocol != ("auto",)):
            raise ValueError("--n-videos and --protocol are about a test set, and --clip predicts one video; drop them")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2^32), got {self.seed}")


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 the results could not be written, 2 the arguments, the run or the data are wrong."""
    try:
        args = tyro.cli(EvalConfig, args=argv, prog="evaluate.py", description=__doc__)
        device = choose_device(args.device, "--device")
        cfg = read_config(args.run_dir)
        evaluations = [*prepare(args, cfg, device)]
        for evaluation in evaluations:
            evaluation.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file where a folder is meant, a folder that may not be read
        print(f"evaluate.py: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    for evaluation in evaluations:
        try:
            lines = evaluation.run()
        except torch.OutOfMemoryError:
            print(
                f"evaluate.py: the device's memory is too small; lower --batch-size {args.batch_size}", file=sys.stderr
            )
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


def prepare(args: EvalConfig, cfg: RunConfig, device: torch.device) -> Iterator[Evaluation]:
    """One evaluation, or one per protocol."""
    if cfg.data.images:
        yield prepare_images(args, cfg, device)
    elif args.clip is not None:
        yield prepare_clip(args, cfg, device)
    else:
        if args.out is not None and len(args.protocol) > 1:
            raise ValueError(
                "--out is one folder, and several protocols are asked for; drop it, or give one --protocol"
            )
        for name in args.protocol:
            yield prepare_videos(args, cfg, device, choose_protocol(args, cfg, name))


def prepare_videos(args: EvalConfig, cfg: RunConfig, device: torch.device, protocol: Protocol) -> Evaluation:
    """Predictions, their scores and pictures, and the bounds, under one protocol."""
    clips = test_clips(args, cfg, protocol)
    if protocol.name == "own" and args.n_videos is None:
        protocol = dataclasses.replace(protocol, n_videos=min(protocol.n_videos, len(clips)))
    n_samples, n_videos = args.n_samples or protocol.n_samples, args.n_videos or protocol.n_videos
    if n_videos > len(clips):
        raise ValueError(f"--n-videos {n_videos}: the test split of {protocol.test_set} has {len(clips)}")
    name = label(protocol, n_samples, n_videos)
    model, state = load_model(args, cfg, device)
    mean_image = mean_training_image(args, cfg)
    metrics, left_out = build_metrics(protocol, args.lpips, device)
    networks, reasons = frechet_networks(args, device)
    oracle = None
    # Without chance in the motion, the simulator's future is the truth itself: no row to compare with.
    if args.oracle and cfg.data.name in ("digits", "moving_mnist") and not cfg.data.deterministic:
        lengths = (protocol.n_past, protocol.n_future)

        def oracle(videos: range, samples: range) -> np.ndarray:
            return oracle_futures(clips, videos, *lengths, samples, args.seed)

    out = args.out or args.run_dir / "evaluation" / protocol.name

    def run() -> list[str]:
        # First, being the cheaper half: what goes wrong for want of memory goes wrong before the predictions.
        common = common_facts(args, cfg, model, state, clips, n_videos, protocol.n_past, device)
        distances = [FrechetDistance(network) for network in networks]
        scores = futures.score(
            model,
            clips,
            mean_image,
            protocol,
            metrics,
            n_samples,
            n_videos,
            args.batch_size,
            args.seed,
            device,
            oracle,
            distances,
        )
        summaries = futures.summaries_of(scores, protocol)
        frechet = {d.features.name: d.result()._asdict() | {"sha256": d.features.sha256} for d in distances}
        facts = {
            "protocol": name,
            "definitions": protocol.definitions(),
            "n_samples": n_samples,
            "n_videos": n_videos,
            "test_set": {"name": protocol.test_set, "sha256": scores.content_hash},
            "frechet": frechet,
            "left_out": [*left_out, *reasons],
            **common,
        }
        futures.write_results(out, facts, summaries, scores)
        futures.draw(out, protocol, summaries, scores)
        lines = futures.table(name, protocol, summaries, scores)
        for distance in distances:
            result = frechet[distance.features.name]
            floor = "" if result["floor"] is None else f"; real against real, half as many: {result['floor']:.1f}"
            lines.append(f"{distance.features.name}: {result['distance']:.1f} ({distance.features.definition}{floor})")
            lines += [f"  {result['warning']}"] if result["warning"] else []
        return [*lines, *left_out, *reasons, "", *bounds.describe(facts, n_videos)]

    return Evaluation(out, run)


def prepare_clip(args: EvalConfig, cfg: RunConfig, device: torch.device) -> Evaluation:
    """Futures of the person's own clip, cropped and scaled to the model's size; grey for a model of grey pictures."""
    model, _ = load_model(args, cfg, device)
    frames = torch.from_numpy(read_video(args.clip, cfg.data.image_size, cfg.data.stride or 1))  # (T, S, S, 3) uint8
    video = frames.permute(0, 3, 1, 2)
    if model.channels == 1:
        video = video.float().mean(1, keepdim=True).round().byte()
    if len(video) < cfg.data.n_past:
        raise ValueError(f"--clip {args.clip} has {len(video)} frames, and the model looks at {cfg.data.n_past}")
    out = args.out or args.run_dir / "evaluation" / f"clip_{args.clip.stem}"
    lengths = {"n_past": cfg.data.n_past, "n_future": args.n_future or cfg.data.n_future}
    n_samples = (args.n_samples or 4) if model.z_dim else 1
    return Evaluation(out, lambda: clip.predict(model, video, out, **lengths, n_samples=n_samples, seed=args.seed))


def prepare_images(args: EvalConfig, cfg: RunConfig, device: torch.device) -> Evaluation:
    """Errors, bounds and pictures of a model of single images, on the whole test split unless --n-videos says less."""
    if args.n_samples is not None or args.protocol != ("auto",) or args.clip is not None:
        raise ValueError(
            "--n-samples, --protocol and --clip are about predicted videos, and this run is on images; drop them"
        )
    clips = load_dataset(split="test", **data_arguments(args, cfg))
    n_images = args.n_videos or len(clips)
    if n_images > len(clips):
        raise ValueError(f"--n-videos {n_images}: the test split of {cfg.data.name} has {len(clips)}")
    model, state = load_model(args, cfg, device)
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
        n_importance=(args.n_importance or 10) if model.z_dim else 1,
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
        **bounds.training_facts(cfg, model, state),
        "bounds": bounds.summarise(measured, n_past),
    }


def frechet_networks(args: EvalConfig, device: torch.device) -> tuple[list[VideoFeatures], list[str]]:
    """The video networks that were asked for, and a sentence for each distance that is left out."""
    networks, reasons = [], []
    if args.fvd_weights is not None:
        networks.append(i3d(args.fvd_weights, device))
    else:
        reasons.append("FVD: left out, it needs a TorchScript I3D file: --fvd-weights FILE")
    if args.r3d18:
        try:
            networks.append(r3d18(device))
        except FileNotFoundError as error:
            reasons.append(f"Frechet distance on r3d_18 features: left out, {error}")
    return networks, reasons


def choose_protocol(args: EvalConfig, cfg: RunConfig, name: str) -> Protocol:
    """The published protocol `name` for the run's data (auto: the one it has); ValueError where it does not fit."""
    data, n_samples = cfg.data, 1 if cfg.model.prior == "none" else None
    for option in ("n_samples", "n_importance"):
        if n_samples and getattr(args, option) not in (None, 1):
            flag = f"--{option.replace('_', '-')} {getattr(args, option)}"
            raise ValueError(f"{flag}: a model without latent has one future per video; drop it")
    published = published_protocol(data)
    name = (published or "own") if name == "auto" else name
    if name == "own":
        wanted = (args.n_samples or n_samples or 10, args.n_videos or 64)
        return own_protocol(data.name, data.n_past, data.n_future, *wanted)
    if published is None:
        raise ValueError(
            f"--protocol {name} is defined on 64-px stochastic Moving MNIST and on BAIR, and this run was trained on "
            f"{data.name}, image-size {data.image_size}, {data.options()}; use --protocol own"
        )
    protocol = find_protocol(name, data.name)
    return dataclasses.replace(protocol, n_samples=n_samples) if n_samples else protocol


def published_protocol(data: DataConfig) -> str | None:
    """The protocol whose test set a run's data belongs to, if there is one: srvp-2020, or with SVG's digits SVG's."""
    if data.name == "bair":
        return "srvp-2020"
    own_digits = {name: getattr(data, name) for name in PUBLISHED_DIGITS if getattr(data, name) is not None}
    if data.name != "moving_mnist" or data.image_size != 64 or not own_digits.items() <= PUBLISHED_DIGITS.items():
        return None
    return "svg-2018" if data.digit_size == 32 else "srvp-2020"


def test_clips(args: EvalConfig, cfg: RunConfig, protocol: Protocol):
    """The protocol's test set, or the run's own test split, at the protocol's length."""
    arguments = data_arguments(args, cfg)
    if protocol.test_set != cfg.data.name:
        arguments = {k: v for k, v in arguments.items() if k not in cfg.data.options()}
    arguments |= {"name": protocol.test_set, "seq_len": protocol.n_past + protocol.n_future} | protocol.options
    if protocol.name != "own":
        arguments["seed"] = 0
    return load_dataset(split="test", **arguments)


def data_arguments(args: EvalConfig, cfg: RunConfig) -> dict[str, object]:
    """Of load_dataset, as the run had them, but for --data-root."""
    if args.data_root and cfg.data.root is None:
        raise ValueError(f"--data-root is not used by a run on {cfg.data.name}; drop it")
    return cfg.data.arguments() | ({"root": str(args.data_root)} if args.data_root else {})


def load_model(args: EvalConfig, cfg: RunConfig, device: torch.device) -> tuple[SequenceVAE | ImageVAE, dict]:
    """The run's model in eval mode, averaged weights where it has them, and the checkpoint's state."""
    path = args.run_dir / "checkpoints" / f"{args.checkpoint}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; train the run to its first checkpoint, or choose --checkpoint")
    state = checkpoint.load(path)
    weights = state["ema"] or state["model"]
    try:
        first = next(weight for name, weight in weights.items() if name.startswith("encoder."))  # (out, C, k, k)
        model = build_model(cfg, first.shape[1])
        model.load_state_dict(weights)
    except (RuntimeError, StopIteration):
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
