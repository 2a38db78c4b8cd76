"""Single flipped bits in checkpoints and in saved predictions: found, or in bytes that hold nothing."""

import random
from collections.abc import Iterator
from pathlib import Path

import torch

from seqvae.evaluation.prediction_file import SavedPredictions, writing
from seqvae.evaluation.predictions import BadPredictions
from seqvae.training import checkpoint
from seqvae.training.session import build_train_state
from seqvae.training.step import train_step
from tests.helpers import CPU, GECO, change, flat, video
from tests.results import Made, scored


def checkpoint_content(path: Path) -> dict:
    return flat(checkpoint.load(path))


def predictions_content(path: Path) -> dict:
    """Everything that is read of a file of predictions."""
    saved = SavedPredictions(path, CPU)
    videos = range(saved.n_videos)
    content = {"truth": saved.truth(videos), "n_past": saved.n_past, "facts": str(saved.facts)}
    content["samples"], content["sigma"] = saved.futures(videos, range(saved.n_samples))
    content["posterior"], content["posterior sigma"] = saved.posterior(videos)
    return content | {"mean": saved.mean_image}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        for name, value in a.items()
    )


def files(folder: Path) -> dict[Path, object]:
    """Files to damage, and how each is read."""
    train_state = build_train_state(change(GECO, "optim", ema=0.9), 1, CPU)
    train_step(train_state, video())
    checkpoint.save(folder, train_state.state_dict(), best=True)
    made = Made("image")
    with writing(folder / "p.h5", made, {"source": "trial"}) as writer:
        scored(made, writer=writer)
    return {
        folder / "last.pt": checkpoint_content,
        folder / "best.pt": checkpoint_content,
        folder / "p.h5": predictions_content,
    }


def trial(n_flips: int, seed: int, folder: Path) -> Iterator[tuple[str, str | None]]:
    """For every flip "found" or "no effect", or "silent" with what happened."""
    rng, readers = random.Random(seed), files(folder)
    for number in range(n_flips):
        path = list(readers)[0 if number % 2 else number // 2 % len(readers)]
        content, read = path.read_bytes(), readers[path]
        expected, bit = read(path), rng.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        copy = folder / f"damaged{path.suffix}"
        copy.write_bytes(damaged)
        try:
            unchanged = same(read(copy), expected)
        except (checkpoint.DamagedCheckpoint, BadPredictions, ValueError):
            yield "found", None
        except Exception as error:
            yield "traceback", f"{path.name}, bit {bit}: {type(error).__name__} {error}"
        else:
            yield ("no effect", None) if unchanged else ("silent", f"{path.name}, bit {bit}")
