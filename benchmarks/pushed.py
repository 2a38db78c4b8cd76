"""Did the pushed object go with the arm? Predicted last frames, looked at where an object came to or went from.

    python -m benchmarks.pushed pushing-transport --root data

pushing_objects.npz, beside this file, says which pixels of the test videos are which object, in the last observed frame
and in the last predicted one, and how far each object went in between. It comes from rendering them once more, with
MuJoCo's segmentation; the 10 of 64 videos that did not come out to the same bytes have no objects there. Of each video
the object that went farthest counts, if that is over 2 cm and if enough of it is seen; of its pixels, those that it
came to or went from and that the arm covers in neither frame.

It went along where the prediction is nearer there, in squared error, to the true last frame than to the last observed
one. Error: that distance to the truth over that of the last observed frame, so 1 for a copy of it.
Printed: both for the futures, for the posterior, and for futures under the next video's actions; +- is a 95 %
interval over videos.
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
from seqvae.evaluation.predictions import ModelPredictions, OtherActions, sample_chunks
from seqvae.metrics.best_of_n import over_videos, plus_minus
from seqvae.run import load_run

OBJECTS = Path(__file__).with_name("pushing_objects.npz")
N_PAST, N_FRAMES = 2, 30
FAR, ENOUGH = 0.02, 10  # metres, pixels
ARM = 255  # label of the arm; 0 is the tray, 1.. are objects


class Pushed(NamedTuple):
    """The object of one video that went farthest."""

    video: int
    distance: float  # metres
    pixels: ndarray  # (H, W) bool: where it came to or went from


def pushed_objects(labels: ndarray, distances: ndarray) -> list[Pushed]:
    """One for each video with an object that was pushed far enough and is seen.

    Args:
        labels: (V, 2, H, W) uint8 of the last observed frame and the last one.
        distances: (V, objects) metres between the two; NaN where there is no such object.
    """
    found = []
    for video, (first, last) in enumerate(labels):
        uncovered = (first != ARM) & (last != ARM)
        for i in np.argsort(-np.nan_to_num(distances[video])):
            pixels = uncovered & ((first == i + 1) != (last == i + 1))
            if not distances[video, i] > FAR:
                break
            if pixels.sum() >= ENOUGH:
                found.append(Pushed(video, float(distances[video, i]), pixels))
                break
    return found


def went_along(frames: ndarray, video: ndarray, pixels: ndarray) -> tuple[float, float]:
    """Share of samples in which the object went along, and their mean error.

    Args:
        frames: (N, C, H, W) uint8, predicted last frames.
        video: (T, C, H, W) uint8, the truth.
    """
    first, last = (video[t][:, pixels].astype(float) for t in (N_PAST - 1, -1))
    predicted = frames[:, :, pixels].astype(float)  # (N, C, pixels)
    to_truth, to_first = (((predicted - x) ** 2).sum((1, 2)) for x in (last, first))
    return (to_truth < to_first).mean(), to_truth.mean() / ((last - first) ** 2).sum()


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or a name in pretrained/, trained on pushing")
    parser.add_argument("--root", required=True, help="folder of pushing_test.npy")
    parser.add_argument("--n-samples", type=int, default=20)
    parser.add_argument("--amp", choices=("bf16", "off"), default="off")
    args = parser.parse_args(argv)

    run, clips = load_run(args.run), load_dataset("pushing", args.root, "test", seq_len=N_FRAMES)
    with np.load(OBJECTS) as file:
        objects = pushed_objects(file["labels"], file["distances"])
    sizes = dict(n_past=N_PAST, n_future=N_FRAMES - N_PAST, n_samples=args.n_samples, n_videos=len(clips))
    how = dict(seed=0, device=run.device, mean_image=None, amp=args.amp == "bf16")
    told = {"futures": clips}
    if run.model.n_actions:
        told["futures under another video's actions"] = OtherActions(clips, None)
    rows: dict[str, list[tuple[float, float]]] = {}
    for name, given in told.items():
        predictions = ModelPredictions(run.model, given, **sizes, **how)
        for pushed in tqdm(objects, desc=name, disable=None):
            one = range(pushed.video, pushed.video + 1)
            video = predictions.truth(one)[0].numpy()
            frames = [predictions.futures(one, samples)[0][:, 0, -1] for samples in sample_chunks(args.n_samples, 1)]
            rows.setdefault(name, []).append(went_along(torch.cat(frames).numpy(), video, pushed.pixels))
            if given is clips:
                last = predictions.posterior(one)[0][:, -1].numpy()
                rows.setdefault("posterior", []).append(went_along(last, video, pushed.pixels))

    distance = np.median([pushed.distance for pushed in objects])
    print(f"{len(objects)} of {len(clips)} videos have such an object; it goes {100 * distance:.0f} cm (median)\n")
    table = []
    for name, values in rows.items():
        share, error = (over_videos(np.array(column)) for column in zip(*values))
        along = f"{100 * share.mean:.0f}{plus_minus(100 * float(share.half_width), 0)} %"
        table.append([name, along, f"{error.mean:.2f}{plus_minus(float(error.half_width), 2)}"])
    print(tabulate(table, ["", "went along", "error"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
