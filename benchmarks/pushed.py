"""Does a model move what the robot pushes? Scores of the last predicted frame where objects left or arrived.

    python -m benchmarks.pushed pushing-transport --root data

pushing_objects.npz, beside this file, says which pixels of the test videos are which object, in the last observed
frame and in the last predicted one, and how far each object went in between. It comes from rendering the videos once
more (MuJoCo 4.0.0, robosuite 1.5.2) with `mujoco.Renderer.enable_segmentation_rendering`, the label of a pixel being
that of the middle of the 3x3 that are averaged; the 10 of 64 videos that did not render to the same bytes have no
objects there. Of each video one object counts: the one that went farthest, over 2 cm, of those with at least 8 pixels
left and 8 arrived at. Pixels that the arm covers in either frame do not count.

It left, or arrived, in a future that is nearer there, in squared error, to the true last frame than to the last
observed one; it went along if it did both. Error: the squared distance to the truth over that of the last observed
frame, so 1 for a copy of it. Futures under the next video's actions are scored at the same pixels, where that arm
need not come by. +- is a 95 % interval over videos.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from tabulate import tabulate
from tqdm import tqdm

from datasets import load_dataset
from seqvae.evaluation.predictions import ModelPredictions, OtherActions, array, sample_chunks
from seqvae.metrics.best_of_n import over_videos, plus_minus
from seqvae.run import load_run

OBJECTS = Path(__file__).with_name("pushing_objects.npz")
N_PAST, N_FRAMES = 2, 30
FAR, ENOUGH = 0.02, 8  # metres; pixels left, and pixels arrived at
ARM = 255  # label of the arm; 0 is the tray, 1.. are objects


class Pushed(NamedTuple):
    """An object that was pushed."""

    video: int
    distance: float  # metres
    left: ndarray  # (H, W) bool: where it was in the last observed frame, and is no more in the last one
    arrived: ndarray  # (H, W) bool: the reverse


class Outcome(NamedTuple):
    """Of one object in N futures: shares of them, and mean errors."""

    left: float
    arrived: float
    went_along: float
    error_left: float
    error_arrived: float


def pushed_objects(labels: ndarray, distances: ndarray) -> list[Pushed]:
    """The farthest one that can be seen, of each video that has one.

    Args:
        labels: (V, 2, H, W) uint8 of the last observed frame and the last one.
        distances: (V, objects) metres between the two; NaN where there is no such object.
    """
    found = []
    for video, (first, last) in enumerate(labels):
        uncovered = (first != ARM) & (last != ARM)
        for i in np.argsort(-np.nan_to_num(distances[video])):
            before, after = uncovered & (first == i + 1), uncovered & (last == i + 1)
            left, arrived = before & ~after, after & ~before
            if distances[video, i] > FAR and min(left.sum(), arrived.sum()) >= ENOUGH:
                found.append(Pushed(video, float(distances[video, i]), left, arrived))
                break
    return found


def outcome(frames: ndarray, video: ndarray, pushed: Pushed) -> Outcome:
    """What became of the object.

    Args:
        frames: (N, C, H, W) uint8, predicted last frames.
        video: (T, C, H, W) uint8, the truth.
    """
    first, last = video[N_PAST - 1].astype(float), video[-1].astype(float)
    done, errors = [], []
    for pixels in (pushed.left, pushed.arrived):
        to_truth, to_first = (((frames - x)[:, :, pixels] ** 2).sum((1, 2)) for x in (last, first))  # (N,)
        done.append(to_truth < to_first)
        errors.append(to_truth.mean() / ((last - first)[:, pixels] ** 2).sum())
    return Outcome(*(each.mean() for each in done), (done[0] & done[1]).mean(), *errors)


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or a name in pretrained/, trained on pushing")
    parser.add_argument("--root", required=True, help="folder of pushing_test.npy")
    parser.add_argument("--n-samples", type=int, default=20)
    parser.add_argument("--amp", choices=("bf16", "off"), default="off")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args(argv)
    try:
        run = load_run(args.run, device=args.device)
        if run.config.data.name not in ("pushing", "bair") or run.model.image_size != 64:
            raise ValueError(f"{args.run} is a run on {run.config.data.name}; name one on 64-px pushing")
        clips = load_dataset("pushing", args.root, "test", seq_len=N_FRAMES)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"pushed: {error}\n")

    with np.load(OBJECTS) as file:
        objects = pushed_objects(file["labels"], file["distances"])
    sizes = dict(n_past=N_PAST, n_future=N_FRAMES - N_PAST, n_samples=args.n_samples, n_videos=len(clips))
    how = dict(seed=0, device=run.device, mean_image=None, amp=args.amp == "bf16")
    told = {"futures": clips}
    if run.model.n_actions:
        told["futures under another video's actions"] = OtherActions(clips, None)
    rows: dict[str, list[Outcome]] = {}
    for name, given in told.items():
        predictions = ModelPredictions(run.model, given, **sizes, **how)
        for pushed in tqdm(objects, desc=name, disable=None):
            one = range(pushed.video, pushed.video + 1)
            video = predictions.truth(one)[0].numpy()
            frames = [predictions.futures(one, samples)[0][:, 0, -1] for samples in sample_chunks(args.n_samples, 1)]
            rows.setdefault(name, []).append(outcome(array(torch.cat(frames)), video, pushed))
            if given is clips:
                posterior = array(predictions.posterior(one)[0][:, -1])
                rows.setdefault("posterior", []).append(outcome(posterior, video, pushed))

    distance = np.median([pushed.distance for pushed in objects])
    print(f"{len(objects)} of {len(clips)} videos have such an object; it goes {100 * distance:.0f} cm (median)\n")
    table = []
    for name, outcomes in rows.items():
        estimates = [over_videos(np.array(column)) for column in zip(*outcomes)]
        shares = [f"{100 * e.mean:.0f}{plus_minus(100 * float(e.half_width), 0)} %" for e in estimates[:3]]
        table.append([name, *shares, *(f"{e.mean:.2f}{plus_minus(float(e.half_width), 2)}" for e in estimates[3:])])
    heads = ["", "left", "arrived", "went along", "error where left", "where arrived"]
    print(tabulate(table, heads, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
