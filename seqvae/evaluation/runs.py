"""Evaluations of a run: test sets of videos under protocols, or the test split of single images."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from seqvae import distributed
from seqvae.config import RunConfig, read_config, to_json
from seqvae.evaluation import bounds, images
from seqvae.evaluation.choose import choose_protocol, test_set_of
from seqvae.evaluation.plan import Plan, execute, facts_before, make_plan
from seqvae.evaluation.predictions import ModelPredictions, OtherActions
from seqvae.evaluation.request import Evaluation, Request
from seqvae.folders import find_run, results_folder
from seqvae.metrics import published
from seqvae.metrics.protocols import MEAN_IMAGE_CLIPS, Protocol
from seqvae.models import VideoModel
from seqvae.provenance import provenance
from seqvae.report.page import write_report
from seqvae.weights import load_model

# Settings that nothing would read where no test set of videos is predicted.
ABOUT_VIDEOS = (
    *("protocol", "test_set", "actions", "save_predictions", "lpips", "lpips_vgg", "fvd_weights", "r3d18", "oracle"),
    *("amp", "compile", "n_samples", "formats", "gif_scale"),
)


@dataclass(frozen=True)
class Subject:
    """A run with its weights."""

    path: Path  # as it was given
    cfg: RunConfig
    model: VideoModel  # on the device
    state: dict  # the checkpoint's
    training: dict[str, object]  # how its training ended


def prepare_run(request: Request, path: Path) -> list[Evaluation]:
    """What there is to do for one run."""
    args, cfg = request.args, read_config(find_run(path))
    if (cfg.data.images or args.save_predictions) and distributed.world_size() > 1:
        raise ValueError("images and --save-predictions take one process; start them without torchrun")
    return [prepare_images(request, path, cfg)] if cfg.data.images else prepare_videos(request, path, cfg)


# ---- videos


def prepare_videos(request: Request, path: Path, cfg: RunConfig) -> list[Evaluation]:
    """One evaluation per test set and kind of actions: protocols that share both, and the observed frames, share it."""
    args = request.args
    if not cfg.model.actions:
        args.refuse(("actions",), f"is about runs trained with actions, and {path} was not; drop it")
    if not cfg.model.has_latent and args.n_importance not in (None, 1):
        raise ValueError(
            f"--n-importance {args.n_importance}: a model without latent has no importance weights; drop it"
        )
    # --n-samples is meant for the other runs: without a latent there is one future.
    n_samples = None if not cfg.model.has_latent and len(args.run_dirs) > 1 else args.n_samples
    asked = dict(n_samples=n_samples, n_videos=args.n_videos, test_set=args.test_set)
    protocols = [choose_protocol(cfg, name, **asked) for name in args.protocol]
    if not cfg.model.has_latent:
        n_samples = 1
    subject = load(request, path, cfg)
    if args.compile == "on":
        subject.model.compile_parts()
    mean_image = mean_training_image(request, cfg)
    groups: dict[tuple[str, str], list[tuple[Plan, Dataset]]] = {}
    for actions, protocol in itertools.product(args.actions, protocols):
        clips = request.load_dataset(split="test", root=data_root(request, cfg), **test_set_of(protocol, cfg.data))
        if protocol.name == "own" and args.n_videos is None:
            protocol = dataclasses.replace(protocol, n_videos=min(protocol.n_videos, len(clips)))
        sizes = sizes_of(request, protocol, n_samples)
        if sizes["n_videos"] > len(clips):
            raise ValueError(f"--n-videos {sizes['n_videos']}: the test split of {protocol.test_set} has {len(clips)}")
        name = protocol.name if args.test_set is None else f"{protocol.name}-{args.test_set}"
        if actions != "true":
            name = f"{name}-actions-{actions}"
            clips = under_actions(clips, actions, subject)
        home, several = results_folder(path) / "evaluation", len(protocols) * len(args.actions) > 1
        plan = make_plan(request, protocol, **sizes, out=request.out_folder(path, home, name, several))
        key = repr((protocol.test_set, sorted(protocol.options.items()), protocol.n_past))
        groups.setdefault((actions, key), []).append((plan, clips))
    return [evaluation_of(request, subject, mean_image, actions, group) for (actions, _), group in groups.items()]


def under_actions(clips: Dataset, actions: str, subject: Subject) -> Dataset:
    """Test clips under other actions than were taken: none, which a model scales to zeros, or shuffled."""
    if actions == "none":
        return OtherActions(clips, subject.model.action_scale.mean.cpu())
    if len(clips) < 2:
        raise ValueError(f"--actions shuffled takes another test video's, and {subject.path} has one; drop it")
    return OtherActions(clips, None)


def evaluation_of(
    request: Request, subject: Subject, mean_image: Tensor, actions: str, group: list[tuple[Plan, Dataset]]
) -> Evaluation:
    """Plans of one test set, each with its clips, which differ in length alone."""
    args, cfg = request.args, subject.cfg
    plans = [plan for plan, _ in group]
    longest, clips = max(group, key=lambda pair: pair[0].protocol.n_future)
    protocol = longest.protocol
    predictions = ModelPredictions(
        subject.model,
        clips,
        n_past=protocol.n_past,
        n_future=protocol.n_future,
        n_samples=max(plan.n_samples for plan in plans),
        n_videos=max(plan.n_videos for plan in plans),
        seed=args.seed,
        device=request.device,
        mean_image=mean_image,
        amp=args.amp == "bf16",
    )

    def run() -> list[str]:
        facts = run_facts(request, subject)
        facts |= {
            "amp": args.amp,
            "data": cfg.data.name,
            "root": data_root(request, cfg),
            "test_set": test_set_of(protocol, cfg.data),
        }
        if cfg.model.actions:
            facts["actions"] = actions
        for plan, own_clips in group:  # before the predictions: what wants more memory than there is fails early
            plan.facts = {"bounds": measured_bounds(request, subject, own_clips, plan.n_videos, plan.protocol.n_past)}
        return execute(
            request,
            predictions,
            plans,
            facts,
            oracle=request.oracle(clips, protocol, args.seed),
            save=plans[0].out / "predictions.h5" if args.save_predictions else None,
        )

    return Evaluation([plan.out for plan in plans], run)


def sizes_of(request: Request, protocol: Protocol, n_samples: int | None) -> dict[str, int]:
    """n_samples and n_videos to score, of those asked for; of several protocols each takes as many as it has."""
    several = len(request.args.protocol) > 1

    def size(asked: int | None, full: int) -> int:
        return full if asked is None else min(asked, full) if several else asked

    return {
        "n_samples": size(n_samples, protocol.n_samples),
        "n_videos": size(request.args.n_videos, protocol.n_videos),
    }


def mean_training_image(request: Request, cfg: RunConfig) -> Tensor:
    """(C, H, W) mean of the first training clips' frames, in [0, 1]."""
    clips = request.load_dataset(split="train", **cfg.data.arguments() | {"root": data_root(request, cfg)})
    chosen = range(min(MEAN_IMAGE_CLIPS, len(clips)))
    batches = (clips.__getitems__(chosen[first : first + 32]) for first in chosen[::32])  # faster than one by one
    return torch.stack([clip.float().mean(0) for batch in batches for clip in batch]).mean(0) / 255


# ---- images


def prepare_images(request: Request, path: Path, cfg: RunConfig) -> Evaluation:
    """Errors, bounds and pictures of a model of single images, on the whole test split unless --n-videos says less."""
    args = request.args
    args.refuse(ABOUT_VIDEOS, "is about predicted videos, and this run is on images; drop it")
    clips = request.load_dataset(split="test", **cfg.data.arguments() | {"root": data_root(request, cfg)})
    n_images = args.n_videos or len(clips)
    if n_images > len(clips):
        raise ValueError(f"--n-videos {n_images}: the test split of {cfg.data.name} has {len(clips)}")
    subject = load(request, path, cfg)
    out = request.out_folder(path, results_folder(path) / "evaluation", "images")
    before = facts_before(out, ["n_images"])
    if before and before["n_images"] > n_images:
        raise ValueError(
            f"{out} holds an evaluation of {before['n_images']} images, and {n_images} would replace it; "
            "choose another --out, or move it away"
        )

    def run() -> list[str]:
        errors = images.measure(subject.model, clips, n_images, args.batch_size, args.seed, request.device)
        facts = {
            "n_images": n_images,
            "test_set": {"name": cfg.data.name, "sha256": errors.content_hash},
            **run_facts(request, subject),
            "bounds": measured_bounds(request, subject, clips, n_images, n_past=0),
            "published": published.to_json(published.published_rows("images", cfg.data.name)),
        }
        images.write(out, facts, errors)
        write_report(out / "report.html", [out])
        return [*images.table(cfg.data.name, errors), *bounds.describe(facts, n_images), f"wrote {out}"]

    return Evaluation([out], run)


# ---- both


def load(request: Request, path: Path, cfg: RunConfig) -> Subject:
    """The run with the weights that were asked for."""
    model, state = load_model(find_run(path), cfg, request.args.checkpoint)
    training = bounds.training_facts(cfg, model, state)
    return Subject(path, cfg, model.to(request.device), state, training)


def run_facts(request: Request, subject: Subject) -> dict[str, object]:
    """What was evaluated, how its training ended, and with which program."""
    return {
        "run": str(subject.path),
        "checkpoint": subject.state["checkpoint"],
        "step": subject.state["step"],
        "seed": request.args.seed,
        **subject.training,
        "config": to_json(subject.cfg),
        **provenance(),
    }


def measured_bounds(
    request: Request, subject: Subject, clips: Dataset, n_videos: int, n_past: int
) -> dict[str, object]:
    """The model's bounds on the test videos (n_past 0: images)."""
    args = request.args
    measured = bounds.measure_bounds(
        subject.model,
        clips,
        n_videos,
        n_past=n_past,
        n_importance=(args.n_importance or 10) if subject.model.has_latent else 1,
        seed=args.seed,
        batch_size=args.batch_size,
        device=request.device,
        dequantise=subject.cfg.likelihood.dequantise,
    )
    return bounds.summarise(measured, n_past)


def data_root(request: Request, cfg: RunConfig) -> str | None:
    """Folder of the data: the run's, but for --data-root."""
    given = request.args.data_root
    if given and cfg.data.root is None and request.args.test_set is None:
        raise ValueError(f"--data-root is not used by a run on {cfg.data.name}; drop it")
    return str(given) if given else cfg.data.root
