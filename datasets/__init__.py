"""Video and image datasets by name. A clip is uint8 (T, C, H, W), and clip i is a function of (seed, split, i) alone.

A still image is a video of one frame: T = 1.
"""

import inspect
from pathlib import Path

from torch.utils.data import Dataset

from datasets import bair, images, kth, pushing, videos
from datasets.base import SPLITS
from datasets.digits import mnist_test_seq, moving_mnist, smmnist_srvp

LOADERS = {
    "digits": moving_mnist.digits,
    "moving_mnist": moving_mnist.moving_mnist,
    "smmnist_srvp": smmnist_srvp.smmnist_srvp,
    "mnist_test_seq": mnist_test_seq.mnist_test_seq,
    "mnist": images.mnist,
    "cifar10": images.cifar10,
    "bair": bair.bair,
    "pushing": pushing.pushing,
    "kth": kth.kth,
    "video_folder": videos.video_folder,
}


def dataset_options(name: str) -> dict[str, object]:
    """The options that a dataset takes besides load_dataset's own arguments, and their defaults."""
    if name not in LOADERS:
        raise ValueError(f"unknown dataset {name!r}, expected one of {', '.join(LOADERS)}")
    own = ("root", "split", "seq_len", "image_size", "seed")
    parameters = inspect.signature(LOADERS[name]).parameters
    return {option: parameter.default for option, parameter in parameters.items() if option not in own}


def load_dataset(
    name: str, root: str | Path | None, split: str, *, seq_len: int, image_size: int = 64, seed: int = 0, **options
) -> Dataset:
    """Map-style dataset of uint8 (T, C, H, W) clips.

    Args:
        name: a key of LOADERS; the loader it names documents the options.
        root: folder of the data, or None where the dataset needs none.
        split: train | valid | test. Their clips, and the digits or videos these are made of, have nothing in common.
        seq_len: T, frames per clip; 1 for still images.
        image_size: H = W, px; 32 for still images.
        seed: of datasets that are made on the fly.

    Raises:
        ValueError: a name, split or option that does not exist, or a value that cannot work.
        FileNotFoundError: data that is missing, with the command that gets it.
    """
    known = dataset_options(name)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
    for option in options:
        if option not in known:
            expected = f"expected one of {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"{name} has no option {option!r}, {expected}")
    return LOADERS[name](root, split, seq_len=seq_len, image_size=image_size, seed=seed, **options)
