"""Score predictions under a list of protocols and write files, pictures and text."""

import contextlib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seqvae.distributed import is_main
from seqvae.evaluation import bounds
from seqvae.evaluation.config import EvalConfig
from seqvae.evaluation.prediction_file import writing
from seqvae.evaluation.predictions import Predictions
from seqvae.evaluation.request import Request
from seqvae.evaluation.results import Results, plot
from seqvae.evaluation.scores import Oracle, Scorer, score_all
from seqvae.memory import check_memory
from seqvae.metrics import published
from seqvae.metrics.frechet import FrechetDistance, VideoFeatures, i3d, r3d18
from seqvae.metrics.protocols import Metric, Protocol, build_metrics, label
from seqvae.report.page import write_page
from seqvae.report.tables import evaluation_text

load_i3d, load_r3d18 = functools.cache(i3d), functools.cache(r3d18)  # once for all protocols


@dataclass
class Plan:
    """One protocol on one set of predictions: how much of it, its metrics, and the folder of the results."""

    protocol: Protocol
    n_samples: int
    n_videos: int
    out: Path
    metrics: dict[str, Metric]
    networks: list[VideoFeatures]
    left_out: list[str]  # a sentence for each row that cannot be made
    before: dict[str, object]  # facts of the evaluation that this one replaces
    facts: dict[str, object] = field(default_factory=dict)  # of this protocol alone: bounds

    @property
    def name(self) -> str:
        """The protocol and which part of it, to print."""
        return label(self.protocol, self.n_samples, self.n_videos)


def make_plan(request: Request, protocol: Protocol, *, n_samples: int, n_videos: int, out: Path) -> Plan:
    """Load the networks that metrics need; whatever is missing becomes a sentence with the remedy.

    Raises:
        ValueError: more samples or videos than the protocol has or memory can hold, weights that cannot be read, or a
            larger evaluation in `out`.
        FileNotFoundError: a weights file that was named and is not there.
    """
    args, n_frames = request.args, protocol.n_past + protocol.n_future
    _check_memory(args, n_samples, n_videos, n_frames)
    label(protocol, n_samples, n_videos)  # raises
    before = facts_before(out)
    if before and (before["n_samples"] > n_samples or before["n_videos"] > n_videos):
        raise ValueError(
            f"{out} holds an evaluation of {before['n_samples']} samples of {before['n_videos']} videos, and "
            f"{n_samples} of {n_videos} would replace it; choose another --out, or move it away"
        )
    metrics, left_out = build_metrics(protocol, args.lpips, request.device, vgg=args.lpips_vgg)
    networks: list[VideoFeatures] = []
    if protocol.frechet_samples == 0:
        left_out.append(f"FVD: left out, {protocol.name} defines none")
    elif args.fvd_weights is not None:
        networks.append(load_i3d(args.fvd_weights, request.device))
    else:
        left_out.append("FVD: left out, it needs a TorchScript I3D file: --fvd-weights FILE")
    if args.r3d18 and protocol.frechet_samples == 0:
        left_out.append(f"Frechet distance on r3d_18 features: left out, {protocol.name} defines none")
    elif args.r3d18:
        try:
            networks.append(load_r3d18(request.device))
        except FileNotFoundError as error:
            left_out.append(f"Frechet distance on r3d_18 features: left out, {error}")
    for network in list(networks):
        if n_videos < 2 or n_frames < network.min_frames:
            networks.remove(network)
            needed = f"it needs 2 videos of {network.min_frames} frames, and there are {n_videos} of {n_frames}"
            left_out.append(f"{network.name}: left out, {needed}")
    return Plan(protocol, n_samples, n_videos, out, metrics, networks, left_out, before)


def _check_memory(args: EvalConfig, n_samples: int, n_videos: int, n_frames: int) -> None:
    """ValueError where scores and pictures cannot fit this machine's memory: a lower bound, in bytes."""
    columns, width = min(6, n_samples + 2), max(128, 64 * (args.gif_scale or 1))
    pictures = 3 * min(4, n_videos) * columns * n_frames * width**2
    scores = 12 * n_samples * n_videos * n_frames + n_samples * min(8, n_videos) * n_frames * 64**2
    scale = f", --gif-scale {args.gif_scale}" if args.gif_scale else ""
    what = f"{n_samples} samples of {n_videos} videos, {n_frames} frames{scale}"
    check_memory(pictures + scores + 8 * (args.n_importance or 1) * n_videos * n_frames, what)


def facts_before(out: Path, sizes: Sequence[str] = ("n_samples", "n_videos")) -> dict[str, object]:
    """Facts of an earlier evaluation in `out`, which is not to be replaced by a smaller one; empty if there is none.

    Raises:
        ValueError: it is one of images where videos are evaluated, or the reverse.
    """
    try:
        facts = dict(json.loads((out / "metrics.json").read_text()))
        sizes_before = {name: int(facts[name]) for name in sizes if name in facts}
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return {}
    ours, others = ("images", "videos") if "n_images" in sizes else ("videos", "images")
    if f"n_{others}" in facts:
        raise ValueError(f"{out} holds an evaluation of {others}, not {ours}; choose another --out, or move it away")
    return facts | sizes_before if len(sizes_before) == len(sizes) else {}


def execute(
    request: Request,
    predictions: Predictions,
    plans: Sequence[Plan],
    facts: dict[str, object],
    *,
    oracle: Oracle | None,
    save: Path | None = None,
) -> list[str]:
    """Score one set of predictions under every plan, in one pass; process 0 writes the results.

    Args:
        facts: JSON values for metrics.json and for the file: what made the predictions.
        save: keep the predictions in this file.

    Returns:
        Lines for the terminal.
    """
    args = request.args
    scorers = [
        Scorer(p.protocol, p.metrics, p.n_samples, p.n_videos, [FrechetDistance(network) for network in p.networks])
        for p in plans
    ]
    protocols = {
        p.protocol.name: {"n_samples": p.protocol.n_samples, "note": p.protocol.note, "n_videos": p.n_videos, **p.facts}
        for p in plans
    }
    kept = {**facts, "protocols": protocols}
    with writing(save, predictions, kept) if save is not None else contextlib.nullcontext() as writer:
        score_all(predictions, scorers, batch_size=args.batch_size, device=request.device, oracle=oracle, writer=writer)
    if not is_main():
        return []
    lines = [f"wrote {save}"] if save is not None else []
    for p, scorer in zip(plans, scorers):
        results = Results(scorer)
        frechet = {
            d.features.name: d.result()._asdict() | {"definition": d.features.definition, "sha256": d.features.sha256}
            for d in scorer.frechet
        }
        rows = published.published_rows(p.protocol.name, p.protocol.data)
        whole = {
            **facts,
            "protocol": p.name,
            "definitions": p.protocol.definitions(),
            "n_samples": p.n_samples,
            "n_videos": p.n_videos,
            "test_set": {"name": p.protocol.test_set, "sha256": scorer.content_hash},
            "frechet": frechet,
            "left_out": p.left_out,
            "published": published.to_json(rows),
            **p.facts,
        }
        changed = [
            f"{name} {p.before[name]} -> {whole[name]}"
            for name in ("checkpoint", "step", "seed", "amp", "actions", "n_samples", "n_videos")
            if name in p.before and name in whole and p.before[name] != whole[name]
        ]
        lines += [f"{p.out}: replaced an earlier evaluation ({', '.join(changed)})"] if changed else []
        e = results.write(p.out, whole)
        results.draw(p.out, formats=args.formats, scale=args.gif_scale)
        plot(e)
        write_page(p.out / "report.html", [e])
        lines += ["", *evaluation_text(e)]
        if "bounds" in whole:
            lines += ["", *bounds.describe(whole, p.n_videos)]
        lines.append(f"wrote {p.out}")
    return lines
