"""The published Moving MNIST test file, 10,000 videos of 20 frames, as torchvision reads it.

Srivastava et al. 2015, arXiv:1502.04681. Two digits bounce without chance; there is a test split alone.
"""

from pathlib import Path

import numpy as np

from datasets.base import ClipDataset, check_int
from datasets.files import open_array

FILE = Path("MovingMNIST") / "mnist_test_seq.npy"
URL = "http://www.cs.toronto.edu/~nitish/unsupervised_video/mnist_test_seq.npy"
SHAPE = (20, 10_000, 64, 64)  # T, N, H, W


class MnistTestSeq(ClipDataset):
    """Videos of the file, cut to seq_len frames. The file, 819 MB, is mapped and not read whole."""

    def __init__(self, path: Path, seq_len: int) -> None:
        try:
            self.videos = open_array(path, "r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it and download it again") from None
        if self.videos.shape[0] != SHAPE[0] or self.videos.shape[2:] != SHAPE[2:] or self.videos.dtype != np.uint8:
            raise ValueError(f"{path} is {self.videos.shape} {self.videos.dtype}, expected {SHAPE} uint8")
        self.seq_len, self.n_clips = seq_len, self.videos.shape[1]

    def clips(self, indices) -> np.ndarray:
        return np.ascontiguousarray(self.videos[: self.seq_len, list(indices)].swapaxes(0, 1)[:, :, None])


def mnist_test_seq(
    root: str | Path | None, split: str, *, seq_len: int, image_size: int = 64, seed: int = 0
) -> MnistTestSeq:
    """The file in ROOT/MovingMNIST. It is fixed, so `seed` changes nothing.

    Raises:
        FileNotFoundError: it is not there; the message says how to get it.
    """
    if split != "test":
        raise ValueError(f"mnist_test_seq has the split test alone, got {split!r}; train on moving_mnist")
    if image_size != SHAPE[2]:
        raise ValueError(f"image_size of mnist_test_seq must be {SHAPE[2]}, got {image_size!r}")
    check_int("seq_len", seq_len, 1)
    if seq_len > SHAPE[0]:
        raise ValueError(f"seq_len must be <= {SHAPE[0]}, the length of these videos, got {seq_len}")
    if root is None:
        raise FileNotFoundError(f"mnist_test_seq needs a folder that holds {FILE}; give its root")
    path = Path(root) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download {URL} to it (819 MB)")
    return MnistTestSeq(path, seq_len)
