"""Where a run's futures on SRVP's Moving MNIST are good and where not, as one markdown table.

    python -m benchmarks.breakdown RUN --root data --n-videos 256 --n-samples 100
    python -m benchmarks.breakdown smmnist-transport --root data --n-videos 16 --n-samples 10     a look, on a CPU

Scores are those of `evaluate.py RUN --protocol srvp-2020` with the same seed, grouped by what the true trajectories of
the test videos tell:

    bounces   in the future frames; a digit that bounces twice in one frame, in a corner, counts once
    overlap   context frames in which the two digits share a pixel
    horizon   the future frames that are scored

"best" is the sample with the best mean over all future frames, chosen for each metric by itself, in the horizon rows
too. Each number is a mean over the group's videos, +- the half width of its 95 % interval. With --oracle the futures of
the true simulator (`datasets.digits.oracle`) are scored as well: how far a perfect model would get in that group.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from tabulate import tabulate

from datasets import load_dataset
from datasets.digits import bouncing
from datasets.digits.moving_mnist import SimulatedDigits
from datasets.digits.oracle import oracle_futures
from seqvae.evaluation.predictions import ModelPredictions
from seqvae.evaluation.scores import Scorer, score_all
from seqvae.metrics.best_of_n import BestOfN, over_videos, plus_minus
from seqvae.metrics.protocols import Metric, Protocol, find_protocol, label
from seqvae.run import Run, load_run

FEW, MANY = 2, 6  # bounces: the videos with at most so few are one group, those with at least so many another
HORIZON = 5  # frames of a group


def future_bounces(dataset: SimulatedDigits, videos: range, n_past: int) -> ndarray:
    """(V,) bounces in the frames after n_past, at most one per digit and frame.

    A bounce always changes the speed, because the component across the border turns inward.
    """
    speed = dataset.latents(videos)[1][n_past - 1 :, 2:]  # (F + 1, 2, V, D)
    return (speed[1:] != speed[:-1]).any(1).sum((0, 2))


def context_overlap(dataset: SimulatedDigits, videos: range, n_past: int) -> ndarray:
    """(V,) how many of the context frames have a pixel to which more than one digit contributes."""
    chosen, states = dataset.latents(videos)
    glyphs, states = dataset.glyph_table()[chosen], states[:n_past]
    size = dataset.motion.image_size
    drawn = [bouncing.render(glyphs[:, [d]], states[..., [d]], size) > 0 for d in range(glyphs.shape[1])]
    return (np.sum(drawn, axis=0) > 1).any((2, 3)).sum(1)


def groups(dataset: SimulatedDigits, videos: range, protocol: Protocol) -> dict[str, tuple[ndarray, slice]]:
    """Row of the table -> which videos (V,) bool, and which future frames."""
    n_past, whole, every = protocol.n_past, slice(None), np.ones(len(videos), bool)
    rows: dict[str, tuple[ndarray, slice]] = {"all": (every, whole)}
    bounces, overlap = future_bounces(dataset, videos, n_past), context_overlap(dataset, videos, n_past)
    rows[f"bounces: at most {FEW}"] = bounces <= FEW, whole
    rows |= {f"bounces: {n}": (bounces == n, whole) for n in range(FEW + 1, MANY)}
    rows[f"bounces: at least {MANY}"] = bounces >= MANY, whole
    rows["overlap: in no context frame"] = overlap == 0, whole
    rows["overlap: in some"] = (overlap > 0) & (overlap < n_past), whole
    rows[f"overlap: in all {n_past}"] = overlap == n_past, whole
    for first in range(0, protocol.n_future, HORIZON):
        last = min(first + HORIZON, protocol.n_future)
        rows[f"horizon: future frames {first + 1}-{last}"] = every, slice(first, last)
    return {row: group for row, group in rows.items() if group[0].any()}


def columns(scores: BestOfN, metrics: Iterable[Metric], chosen: ndarray, frames: slice) -> list[str]:
    """Best and mean of every metric over the chosen videos and frames, ready to print."""
    cells = []
    for metric in metrics:
        table = scores.scores[metric.key][:, chosen].astype(np.float64)  # (N, V, F)
        best = table.mean(2).argmax(0)  # (V,)
        for values in (table[best, np.arange(table.shape[1])], table.mean(0)):
            mean, half_width = over_videos(values[:, frames].mean(1))
            cells.append(f"{mean:.{metric.digits}f}{plus_minus(float(half_width), metric.digits)}")
    return cells


@torch.no_grad()
def score_futures(run: Run, dataset: SimulatedDigits, protocol: Protocol, args: argparse.Namespace) -> Scorer:
    """Scores of every sample, video and future frame."""
    sizes = {"n_samples": args.n_samples, "n_videos": args.n_videos}
    predictions = ModelPredictions(
        run.model,
        dataset,
        n_past=protocol.n_past,
        n_future=protocol.n_future,
        seed=args.seed,
        device=run.device,
        mean_image=None,
        **sizes,
    )
    scorer = Scorer(protocol, protocol.frame_metrics, **sizes)

    def oracle(videos: range, samples: range) -> ndarray:
        return oracle_futures(dataset, videos, protocol.n_past, protocol.n_future, samples, args.seed)

    score_all(
        predictions,
        [scorer],
        batch_size=args.batch_size,
        device=run.device,
        oracle=oracle if args.oracle else None,
    )
    return scorer


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of train.py or seqvae.export, or a name in pretrained/")
    parser.add_argument("--root", required=True, type=Path, help="folder of MNIST")
    parser.add_argument("--n-videos", type=int, default=256, help="the first of the test set")
    parser.add_argument("--n-samples", type=int, default=100, help="futures per video; a model without latent has 1")
    parser.add_argument("--batch-size", type=int, default=16, help="videos at once; changes no number")
    parser.add_argument("--seed", type=int, default=0, help="of the futures' noise, as in evaluate.py")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--oracle", action="store_true", help="score the true simulator's futures too")
    args = parser.parse_args(argv)
    protocol = find_protocol("srvp-2020", "moving_mnist")
    try:
        run = load_run(args.run, checkpoint=args.checkpoint, device=args.device)
        expected = (protocol.n_past, 1, 64)
        found = (run.n_past, run.model.channels, run.model.image_size)
        if found != expected:
            raise ValueError(
                f"{args.run} has n-past, channels and image size {found}, and the videos of srvp-2020 {expected}; "
                "name a run on 64-px Moving MNIST"
            )
        if not run.model.has_latent:
            args.n_samples = 1
        name = label(protocol, args.n_samples, args.n_videos)  # refuses more than the protocol has
        dataset = load_dataset(protocol.test_set, args.root, "test", seq_len=protocol.n_past + protocol.n_future)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"breakdown: {error}\n")

    scorer = score_futures(run, dataset, protocol, args)
    tables = {"": scorer.sample_scores} | ({"oracle: ": scorer.oracle} if args.oracle else {})
    metrics = protocol.frame_metrics.values()
    rows = [
        [row, chosen.sum(), *(cell for scores in tables.values() for cell in columns(scores, metrics, chosen, frames))]
        for row, (chosen, frames) in groups(dataset, range(args.n_videos), protocol).items()
    ]
    heads = ["", "videos", *(f"{who}{m.name} {of}" for who in tables for m in metrics for of in ("best", "mean"))]
    print(f"{args.run}, step {run.step}, {name}, seed {args.seed}\n")
    print(tabulate(rows, heads, "pipe", disable_numparse=True))
    if args.oracle:
        limits = [f"{m.oracle_limit:g} {m.unit} in {m.name}" for m in metrics if m.oracle_limit]
        print(f"\nThe oracle's frames count at most {', '.join(limits)}.")


if __name__ == "__main__":
    main()
