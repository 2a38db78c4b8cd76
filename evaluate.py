"""Predict futures of a run's test videos, score them and draw them.

    python evaluate.py runs/demo                                        GIFs, strips, curves, report.html, metrics.json
    python evaluate.py runs/smmnist-geco --n-samples 10 --n-videos 256  part of the protocol, and said so
    python evaluate.py runs/a runs/b                                    several runs, and a page that compares them
    python evaluate.py smmnist-transport                                weights that come with the repository
    python evaluate.py runs/a --save-predictions                        keep the predictions in one file
    python evaluate.py --from-predictions FILE                          score it again; no model, no GPU
    python evaluate.py runs/mnist-geco                                  single images: errors, bounds, pictures
    torchrun --nproc-per-node 4 evaluate.py runs/a                      videos shared out over processes

Everything lands in RUN/evaluation/PROTOCOL/ (images: RUN/evaluation/images/). A video's predictions are a function of
(seed, video, sample), so they do not depend on the batch size or on the other videos.
"""

import dataclasses
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from torch.utils.data import Dataset

from datasets import load_dataset
from datasets.moving_mnist import SimulatedDigits
from datasets.oracle import oracle_futures
from seqvae import distributed
from seqvae.config import RunConfig, read_config, to_json
from seqvae.device import choose_device
from seqvae.evaluation import bounds, images
from seqvae.evaluation.choose import choose_protocol, test_set_of
from seqvae.evaluation.from_file import measured_before, protocol_of_file, test_set_of_file
from seqvae.evaluation.plan import Plan, execute, make_plan
from seqvae.evaluation.prediction_file import SavedPredictions
from seqvae.evaluation.predictions import BadPredictions, ModelPredictions
from seqvae.evaluation.report import comparison_table, write_report
from seqvae.evaluation.results import MEAN_IMAGE_CLIPS
from seqvae.evaluation.scores import Oracle
from seqvae.memory import check_memory, is_out_of_memory, keep_memory
from seqvae.metrics import published
from seqvae.metrics.protocols import Protocol
from seqvae.models import VideoModel
from seqvae.provenance import provenance
from seqvae.weights import find_run, load_model, results_folder

MAX_SCALE = 32  # screen pixels per pixel: 64 px are 2048 then
# Fields that nothing would read where no test set of videos is predicted.
ABOUT_VIDEOS = (
    "protocol",
    "test_set",
    "save_predictions",
    "lpips",
    "lpips_vgg",
    "fvd_weights",
    "r3d18",
    "oracle",
    "amp",
    "compile",
)
TIMEOUT = 3600  # seconds that processes wait for one another: their shares of the videos may differ in speed


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Predict runs' test videos, score them and draw them."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]] = ()  # folders of train.py or seqvae.export, names in pretrained/
    # auto: the published one for its data, or else own; several: each in its own folder
    protocol: tuple[Literal["auto", "srvp-2020", "svg-2018", "mcvd-2022", "own"], ...] = ("auto",)
    n_samples: int | None = None  # futures per video; the protocol's (own: 10)
    n_videos: int | None = None  # test videos, from the first; the protocol's (own: 64)
    test_set: Literal["mnist_test_seq"] | None = None  # with own: the published 10,000 x 20 frames of Moving MNIST
    save_predictions: bool = False  # keep every predicted frame in predictions.h5, beside the results
    from_predictions: tuple[Path, ...] = ()  # score such files (docs/predictions.md) instead of runs
    lpips: Literal["auto", "on", "off"] = "auto"  # on: download its backbone (233 MB) if need be; auto: if it is there
    lpips_vgg: bool = False  # LPIPS on VGG16 features (backbone 528 MB) beside the protocol's AlexNet
    fvd_weights: Path | None = None  # TorchScript I3D file, for FVD; no file, no number
    r3d18: bool = False  # Frechet distance on torchvision's r3d_18, which is no FVD
    oracle: bool = True  # Moving MNIST: score the true simulator's futures too, the ceiling of every model
    n_importance: int | None = None  # posterior samples per video of the importance-weighted bound; 10, 1: without it
    batch_size: int = 16  # videos at once; changes no number
    seed: int = 0  # of the predictions' noise
    checkpoint: Literal["best", "last"] = "best"  # best on validation, or the last one
    formats: tuple[Literal["gif", "apng", "mp4"], ...] = ("gif",)  # of moving pictures; mp4 needs the extra `mp4`
    gif_scale: int | None = None  # screen pixels per pixel; as many as make a picture 128 wide
    out: Path | None = None  # where to write; RUN/evaluation/PROTOCOL, for a page that compares runs `comparison`
    data_root: Path | None = None  # folder of downloaded data, if it is not where the run had it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    amp: Literal["bf16", "off"] = "off"  # bf16: predict with convolutions in bfloat16, faster; scores stay float32
    compile: Literal["on", "off"] = "off"  # on: torch.compile encoder and decoder, which pays on a GPU

    def __post_init__(self) -> None:
        for name in ("n_samples", "n_videos", "n_importance", "batch_size", "gif_scale"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(self, name)}")
        if not self.run_dirs and not self.from_predictions:
            raise ValueError("nothing to evaluate; name a run's folder (python evaluate.py runs/demo)")
        if self.run_dirs and self.from_predictions:
            raise ValueError("runs and --from-predictions at once; evaluate them one after the other")
        if self.from_predictions:
            names = ("save_predictions", "test_set", "checkpoint", "n_importance", "seed", "amp", "compile")
            self.refuse(names, "is about a model, and --from-predictions has none; drop it")
        if self.lpips_vgg and self.lpips == "off":
            raise ValueError("--lpips-vgg asks for LPIPS and --lpips off for none; drop one")
        if self.gif_scale is not None and self.gif_scale > MAX_SCALE:
            raise ValueError(f"--gif-scale must be <= {MAX_SCALE}, got {self.gif_scale}")
        if self.test_set is not None and self.protocol not in (("auto",), ("own",)):
            raise ValueError(f"--test-set {self.test_set} is scored under own, not {' '.join(self.protocol)}; drop one")
        if "mp4" in self.formats and importlib.util.find_spec("av") is None:
            raise ValueError('--formats mp4 needs PyAV; pip install -e ".[mp4]", or drop it')
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2^32), got {self.seed}")

    def refuse(self, names: Sequence[str], why: str) -> None:
        """ValueError for the first of these fields that was given."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"--{'no-' if defaults[name] is True else ''}{name.replace('_', '-')} {why}")

    @property
    def subjects(self) -> tuple[Path, ...]:
        """What is evaluated: runs or files."""
        return self.run_dirs or self.from_predictions


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run: whatever can be wrong about its arguments has been found out."""

    outs: list[Path]  # folders of its results
    run: Callable[[], list[str]]  # measures, writes into `outs`, and returns the terminal's lines


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 the results could not be written, 2 the arguments, the run or the data are wrong."""
    try:
        code = evaluate(argv)
    except distributed.PeerLost as error:
        print(f"evaluate.py: {error}; start it again", file=sys.stderr)
        return 1
    if code != 1:  # then others may not be there any more
        distributed.stop()
    return code


def evaluate(argv: list[str]) -> int:
    """Exit code, as `main`'s; PeerLost when another process has ended."""
    try:
        options = {"prog": "evaluate.py", "description": __doc__, "console_outputs": distributed.is_first()}
        args = tyro.cli(EvalConfig, args=argv, **options)
        distributed.start(args.device != "cpu" and torch.cuda.is_available(), TIMEOUT)
        device = distributed.on_all(lambda: choose_device(args.device, "--device"))
        if device.index is not None:
            torch.cuda.set_device(device)
        evaluations = distributed.on_all(
            lambda: [evaluation for subject in args.subjects for evaluation in prepare(args, subject, device)]
        )
        outs = [out for evaluation in evaluations for out in evaluation.outs]
        for out in outs:
            if outs.count(out) > 1:
                raise ValueError(
                    f"{out} would be written twice; name each run, file and protocol once, or evaluate them one by one"
                )
        page = None  # that compares
        if len(args.subjects) > 1:
            page = args.out or Path("comparison")
        distributed.on_main(lambda: [check_folder(out) for out in [*outs, page] if out is not None])
    except (ValueError, FileNotFoundError) as error:
        distributed.say(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file where a folder is meant, a folder that may not be read
        distributed.say(f"evaluate.py: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"evaluate.py: no room for the model on {device}; see what else uses it", file=sys.stderr)
        return 1
    where = outs[0]
    try:
        for evaluation in evaluations:
            where = evaluation.outs[0]
            distributed.say("\n".join(evaluation.run()), flush=True)
        if page is not None and distributed.is_main():
            where = page
            write_report(page / "report.html", outs)
            distributed.say("\n".join(["", *comparison_table(outs), f"wrote {page / 'report.html'}"]))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"evaluate.py: the device's memory is too small; lower --batch-size {args.batch_size}", file=sys.stderr)
        return 1
    except BadPredictions as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"evaluate.py: cannot write {error.filename or where}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def check_folder(out: Path) -> None:
    """Makes it; OSError where nothing can be written into it."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def prepare(args: EvalConfig, subject: Path, device: torch.device) -> list[Evaluation]:
    """What there is to do for one run or one file."""
    if args.from_predictions:
        return [prepare_file(args, subject, device)]
    cfg = read_config(find_run(subject))
    if (cfg.data.images or args.save_predictions) and distributed.world_size() > 1:
        raise ValueError("images and --save-predictions take one process; start them without torchrun")
    if cfg.data.images:
        return [prepare_images(args, subject, cfg, device)]
    return prepare_videos(args, subject, cfg, device)


# ---- runs on videos


def prepare_videos(args: EvalConfig, run_dir: Path, cfg: RunConfig, device: torch.device) -> list[Evaluation]:
    """One evaluation per test set: protocols that share one, and the frames seen, share its predictions."""
    if not cfg.model.has_latent and args.n_importance not in (None, 1):
        raise ValueError(
            f"--n-importance {args.n_importance}: a model without latent has no importance weights; drop it"
        )
    # Beside runs that draw many futures, one without latent has its one.
    n_samples = None if not cfg.model.has_latent and len(args.run_dirs) > 1 else args.n_samples
    asked = dict(n_samples=n_samples, n_videos=args.n_videos, test_set=args.test_set)
    protocols = [choose_protocol(cfg, name, **asked) for name in args.protocol]
    if not cfg.model.has_latent:
        n_samples = 1
    model, state = load_model(find_run(run_dir), cfg, args.checkpoint)
    model.to(device)
    if args.compile == "on":
        model.compile_parts()
    mean_image = mean_training_image(args, cfg)
    groups: dict[str, list[tuple[Plan, Dataset]]] = {}
    for protocol in protocols:
        clips = load_dataset(split="test", root=data_root(args, cfg), **test_set_of(protocol, cfg.data))
        if protocol.name == "own" and args.n_videos is None:
            protocol = dataclasses.replace(protocol, n_videos=min(protocol.n_videos, len(clips)))
        n_drawn, n_videos = counted(args, protocol, n_samples)
        if n_videos > len(clips):
            raise ValueError(f"--n-videos {n_videos}: the test split of {protocol.test_set} has {len(clips)}")
        name = protocol.name if args.test_set is None else f"{protocol.name}-{args.test_set}"
        out = place(args, run_dir, results_folder(run_dir) / "evaluation", name, several=len(protocols) > 1)
        plan = plan_for(args, protocol, n_drawn, n_videos, out, device)
        key = repr((protocol.test_set, sorted(protocol.options.items()), protocol.n_past))
        groups.setdefault(key, []).append((plan, clips))
    return [evaluation_of(args, run_dir, cfg, model, state, mean_image, group, device) for group in groups.values()]


def evaluation_of(
    args: EvalConfig,
    run_dir: Path,
    cfg: RunConfig,
    model: VideoModel,
    state: dict,
    mean_image: Tensor,
    group: list[tuple[Plan, Dataset]],
    device: torch.device,
) -> Evaluation:
    """Plans of one test set, each with its clips, which differ in length alone."""
    plans = [plan for plan, _ in group]
    longest, clips = max(group, key=lambda pair: pair[0].protocol.n_future)
    protocol = longest.protocol
    predictions = ModelPredictions(
        model,
        clips,
        n_past=protocol.n_past,
        n_future=protocol.n_future,
        n_samples=max(plan.n_samples for plan in plans),
        n_videos=max(plan.n_videos for plan in plans),
        seed=args.seed,
        device=device,
        mean_image=mean_image,
        amp=args.amp == "bf16",
    )

    def run() -> list[str]:
        facts = run_facts(args, run_dir, cfg, model, state)
        facts |= {
            "amp": args.amp,
            "data": cfg.data.name,
            "root": data_root(args, cfg),
            "test_set": test_set_of(protocol, cfg.data),
        }
        for plan, own_clips in group:  # the cheaper half first: what wants more memory than there is fails early
            n_past = plan.protocol.n_past
            plan.facts = {"bounds": measured_bounds(args, cfg, model, own_clips, plan.n_videos, n_past, device)}
        return execute(
            predictions,
            plans,
            facts,
            oracle=simulator(args, clips, protocol, args.seed),
            save=plans[0].out / "predictions.h5" if args.save_predictions else None,
            **how(args, device),
        )

    return Evaluation([plan.out for plan in plans], run)


def counted(args: EvalConfig, protocol: Protocol, n_samples: int | None) -> tuple[int, int]:
    """Samples and videos to score, of n_samples asked for; of several protocols each takes as many as it has."""
    pairs = ((n_samples, protocol.n_samples), (args.n_videos, protocol.n_videos))
    n_samples, n_videos = (
        full if asked is None else min(asked, full) if len(args.protocol) > 1 else asked for asked, full in pairs
    )
    return n_samples, n_videos


def plan_for(
    args: EvalConfig, protocol: Protocol, n_samples: int, n_videos: int, out: Path, device: torch.device
) -> Plan:
    """The plan of one protocol, with the networks that were asked for."""
    check_sizes(args, n_samples, n_videos, protocol.n_past + protocol.n_future)
    networks = dict(lpips=args.lpips, lpips_vgg=args.lpips_vgg, fvd_weights=args.fvd_weights, use_r3d18=args.r3d18)
    return make_plan(protocol, n_samples, n_videos, out, **networks, device=device)


def check_sizes(args: EvalConfig, n_samples: int, n_videos: int, n_frames: int) -> None:
    """ValueError where scores and pictures cannot fit this machine's memory: a lower bound, in bytes."""
    columns, width = min(6, n_samples + 2), max(128, 64 * (args.gif_scale or 1))
    pictures = 3 * min(4, n_videos) * columns * n_frames * width**2
    scores = 12 * n_samples * n_videos * n_frames + n_samples * min(8, n_videos) * n_frames * 64**2
    scale = f", --gif-scale {args.gif_scale}" if args.gif_scale else ""
    what = f"{n_samples} samples of {n_videos} videos, {n_frames} frames{scale}"
    check_memory(pictures + scores + 8 * (args.n_importance or 1) * n_videos * n_frames, what)


def place(args: EvalConfig, subject: Path, home: Path, name: str, several: bool = False) -> Path:
    """Folder of one result: HOME/NAME, or --out, with a folder for each subject and each of several names."""
    if args.out is None:
        return home / name
    name_of = subject.resolve().stem if args.from_predictions else subject.resolve().name
    parts = [name_of] if len(args.subjects) > 1 else []
    return args.out.joinpath(*parts, *([name] if several else []))


def how(args: EvalConfig, device: torch.device) -> dict[str, object]:
    """Arguments of `execute` that change no number."""
    return dict(batch_size=args.batch_size, device=device, formats=args.formats, scale=args.gif_scale)


def simulator(args: EvalConfig, clips: Dataset | None, protocol: Protocol, seed: int) -> Oracle | None:
    """The oracle of these clips; None without a simulator, or without chance: its future is the truth itself then."""
    if not args.oracle or not isinstance(clips, SimulatedDigits) or clips.motion.deterministic:
        return None
    return lambda videos, samples: oracle_futures(clips, videos, protocol.n_past, protocol.n_future, samples, seed)


# ---- files of predictions


# What metrics.json says of a run, and a file keeps.
RUN_FACTS = ("run", "checkpoint", "step", "seed", "amp", "sigma", "geco", "config", "data")


def prepare_file(args: EvalConfig, path: Path, device: torch.device) -> Evaluation:
    """Saved predictions, ours or another program's, under the protocols asked for, or those they were made for."""
    saved = SavedPredictions(path, device)
    made_for = saved.facts.get("protocols", {})
    names = (tuple(made_for) or ("own",)) if args.protocol == ("auto",) else args.protocol
    plans, clips, longest = [], None, None
    for name in names:
        protocol = protocol_of_file(saved, name)
        has = {"samples": saved.n_samples, "videos": saved.n_videos}
        sizes = {}
        for (what, available), asked in zip(has.items(), (args.n_samples, args.n_videos)):
            if asked is not None and asked > available:
                raise ValueError(f"--n-{what} {asked}: {path} has {available}")
            sizes[f"n_{what}"] = min(asked or available, getattr(protocol, f"n_{what}"))
        home = path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-scores")
        out = place(args, path, home, name, several=len(names) > 1)
        plan = plan_for(args, protocol, **sizes, out=out, device=device)
        plan.facts = measured_before(saved, name, plan)
        found, doubt = test_set_of_file(saved, protocol, sizes["n_videos"], args.data_root, load_dataset)
        plan.left_out += doubt
        if longest is None or protocol.n_future > longest.n_future:
            clips, longest = found, protocol
        plans.append(plan)
    facts = {key: saved.facts[key] for key in RUN_FACTS if key in saved.facts}
    others = {key: value for key, value in saved.facts.items() if key not in (*RUN_FACTS, "protocols")}
    facts |= {"predictions": {"file": str(path), **others}, **provenance()}
    oracle = simulator(args, clips, longest, facts.get("seed", 0))
    return Evaluation(
        [plan.out for plan in plans], lambda: execute(saved, plans, facts, oracle=oracle, **how(args, device))
    )


# ---- images


def prepare_images(args: EvalConfig, run_dir: Path, cfg: RunConfig, device: torch.device) -> Evaluation:
    """Errors, bounds and pictures of a model of single images, on the whole test split unless --n-videos says less."""
    about_videos = (*ABOUT_VIDEOS, "n_samples", "formats", "gif_scale")
    args.refuse(about_videos, "is about predicted videos, and this run is on images; drop it")
    clips = load_dataset(split="test", **cfg.data.arguments() | {"root": data_root(args, cfg)})
    n_images = args.n_videos or len(clips)
    if n_images > len(clips):
        raise ValueError(f"--n-videos {n_images}: the test split of {cfg.data.name} has {len(clips)}")
    model, state = load_model(find_run(run_dir), cfg, args.checkpoint)
    model.to(device)
    out = place(args, run_dir, results_folder(run_dir) / "evaluation", "images")

    def run() -> list[str]:
        errors = images.measure(model, clips, n_images, args.batch_size, args.seed, device)
        facts = {
            "n_images": n_images,
            "test_set": {"name": cfg.data.name, "sha256": errors.content_hash},
            **run_facts(args, run_dir, cfg, model, state),
            "bounds": measured_bounds(args, cfg, model, clips, n_images, 0, device),
            "published": published.to_json(published.published_rows("images", cfg.data.name)),
        }
        images.write(out, facts, errors)
        write_report(out / "report.html", [out])
        return [*images.table(cfg.data.name, errors), *bounds.describe(facts, n_images), f"wrote {out}"]

    return Evaluation([out], run)


# ---- what all of them need


def run_facts(args: EvalConfig, run_dir: Path, cfg: RunConfig, model: VideoModel, state: dict) -> dict[str, object]:
    """What was evaluated, how its training ended, and with which program."""
    return {
        "run": str(run_dir),
        "checkpoint": state["checkpoint"],
        "step": state["step"],
        "seed": args.seed,
        **bounds.training_facts(cfg, model, state),
        "config": to_json(cfg),
        **provenance(),
    }


def measured_bounds(
    args: EvalConfig,
    cfg: RunConfig,
    model: VideoModel,
    clips: Dataset,
    n_videos: int,
    n_past: int,
    device: torch.device,
) -> dict[str, object]:
    """The model's bounds on the test videos (n_past 0: images)."""
    measured = bounds.measure_bounds(
        model,
        clips,
        n_videos,
        n_past=n_past,
        n_importance=(args.n_importance or 10) if model.has_latent else 1,
        seed=args.seed,
        batch_size=args.batch_size,
        device=device,
        dequantise=bool(cfg.likelihood.dequantise),
    )
    return bounds.summarise(measured, n_past)


def data_root(args: EvalConfig, cfg: RunConfig) -> str | None:
    """Folder of the data: the run's, but for --data-root."""
    if args.data_root and cfg.data.root is None and args.test_set is None:
        raise ValueError(f"--data-root is not used by a run on {cfg.data.name}; drop it")
    return str(args.data_root) if args.data_root else cfg.data.root


def mean_training_image(args: EvalConfig, cfg: RunConfig) -> Tensor:
    """(C, H, W) mean of the first training clips' frames, in [0, 1]."""
    clips = load_dataset(split="train", **cfg.data.arguments() | {"root": data_root(args, cfg)})
    chosen = [clips[i].float().mean(0) for i in range(min(MEAN_IMAGE_CLIPS, len(clips)))]
    return torch.stack(chosen).mean(0) / 255


if __name__ == "__main__":
    keep_memory()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an orderly end: no half-written file stays
    try:
        code = main(sys.argv[1:])
        if code == 1 and distributed.launched()[1] > 1:
            sys.stdout.flush()
            os._exit(code)  # an orderly exit would wait for a process that has gone
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
