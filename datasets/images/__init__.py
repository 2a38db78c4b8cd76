"""Still images as videos of one frame, uint8 (1, C, 32, 32): `mnist` and `cifar10`.

    python -m datasets.images ROOT    downloads CIFAR-10 into ROOT/cifar-10-batches-py, or replaces a damaged copy

Letters: N images, B images of a batch, C channels.
"""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image

from datasets.base import ClipDataset
from datasets.digits.glyphs import load_glyphs
from datasets.files import DATA_ERRORS, download_beside, download_command, one_line

IMAGE_SIZE = 32  # px; MNIST's 28 are padded
FOLDER = Path("cifar-10-batches-py")  # where torchvision keeps CIFAR-10 in its root
JPEG_COPY = "cifar10_jpeg.npz"


class StillImages(ClipDataset):
    """One-frame clips from a table of images.

    It pickles to a few hundred bytes: the images are looked up in the process's own table, which forked workers inherit
    and spawned ones read again.

    Args:
        images: (root, split) -> (N, C, S, S) uint8 with S <= 32; a function of a module that caches what it returns.
    """

    def __init__(self, images: Callable[[Path, str], ndarray], root: Path, split: str) -> None:
        self.images, self.root, self.split = images, root, split
        self.n_clips, self.channels = self.table().shape[:2]  # a missing download is an error here

    def table(self) -> ndarray:
        """(N, C, S, S) uint8, every image of the split as it was published."""
        return self.images(self.root, self.split)

    def clips(self, indices: Sequence[int]) -> ndarray:
        chosen = self.table()[list(indices)]  # (B, C, S, S)
        margin = (IMAGE_SIZE - chosen.shape[-1]) // 2
        return np.pad(chosen, [(0, 0), (0, 0), (margin, margin), (margin, margin)])[:, None]  # (B, 1, C, 32, 32)


def mnist(
    root: str | Path | None, split: str, *, seq_len: int, image_size: int = IMAGE_SIZE, seed: int = 0
) -> StillImages:
    """MNIST's digits with a border of 2 black pixels: 57,000 for training, the next 3,000 valid, 10,000 test.

    Nothing is drawn at random, so `seed`, which every dataset takes, changes nothing.
    """
    check_still("mnist", seq_len, image_size)
    return StillImages(mnist_images, None if root is None else Path(root), split)


def cifar10(
    root: str | Path | None,
    split: str,
    *,
    seq_len: int,
    image_size: int = IMAGE_SIZE,
    seed: int = 0,
    source: str = "torchvision",
) -> StillImages:
    """CIFAR-10's colour images: 47,500 for training, the next 2,500 valid, 10,000 test.

    Args:
        source: torchvision | jpeg. The first reads root/cifar-10-batches-py, downloaded when missing. The second reads
            root/cifar10_jpeg.npz, images compressed with loss: a stand-in to try things on where CIFAR-10 cannot be
            downloaded. No number measured on it compares with CIFAR-10's.
        seed: nothing is drawn at random, so it changes nothing; every dataset takes it.
    """
    check_still("cifar10", seq_len, image_size)
    if source not in CIFAR10_SOURCES:
        raise ValueError(f"source of cifar10 must be one of {', '.join(CIFAR10_SOURCES)}, got {source!r}")
    if root is None:
        raise ValueError("root must be the folder that holds CIFAR-10 or receives it, got None")
    return StillImages(CIFAR10_SOURCES[source], Path(root), split)


def check_still(name: str, seq_len: int, image_size: int) -> None:
    """Raises ValueError unless the clips asked for are single frames of 32 px."""
    if seq_len != 1:
        raise ValueError(f"seq_len of {name} must be 1, as an image is one frame, got {seq_len!r}")
    if image_size != IMAGE_SIZE:
        raise ValueError(f"image_size of {name} must be {IMAGE_SIZE}, got {image_size!r}")


def mnist_images(root: Path | None, split: str) -> ndarray:
    """(N, 1, 28, 28) uint8."""
    return load_glyphs("mnist", root, split, 28)[:, None]


def cifar10_images(root: Path, split: str) -> ndarray:
    """(N, 3, 32, 32) uint8, read from torchvision's files, which are downloaded when missing."""
    try:
        if not all((root / file).is_file() for file in cifar10_files()):
            download_cifar10(root)
        images = _read_cifar10(root, split != "test")
    except DATA_ERRORS as error:
        instead = "--data.name digits`, drawn digits that need no download"
        if (root / JPEG_COPY).is_file():
            instead = f"--data.source jpeg`, the lossy {JPEG_COPY} there"
        raise FileNotFoundError(
            f"no usable CIFAR-10 in {root / FOLDER} ({one_line(error)}); download it with "
            f"`python -m datasets.images {root}`, or use `{instead}"
        ) from None
    return part(images, split)


def jpeg_images(root: Path, split: str) -> ndarray:
    """(N, 3, 32, 32) uint8, read from the lossy copy; another version of the JPEG decoder may round differently."""
    try:
        images = _read_jpeg(root / JPEG_COPY, "test" if split == "test" else "train")
    except Exception as error:  # NumPy parses headers as Python: damage raises anything, tokenize.TokenError too
        raise FileNotFoundError(
            f"no usable JPEG copy of CIFAR-10 in {root / JPEG_COPY} ({one_line(error)}); "
            "use `--data.source torchvision`, which downloads CIFAR-10 itself"
        ) from None
    return part(images, split)


CIFAR10_SOURCES = {"torchvision": cifar10_images, "jpeg": jpeg_images}


def part(images: ndarray, split: str) -> ndarray:
    """The images of a split, out of all test images, or of all others: these are 95 % train, then 5 % valid."""
    n_train = len(images) * 95 // 100
    return {"train": images[:n_train], "valid": images[n_train:], "test": images}[split]


def cifar10_files() -> list[Path]:
    """torchvision's files, relative to its root."""
    from torchvision.datasets import CIFAR10  # not at the top: it takes seconds to import

    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    return [FOLDER / name for name in (*names, CIFAR10.meta["filename"])]


@functools.cache
def _read_cifar10(root: Path, train: bool) -> ndarray:
    from torchvision.datasets import CIFAR10

    # torchvision verifies checksums and gives (N, 32, 32, 3), a view of the published (N, 3, 32, 32).
    return np.ascontiguousarray(CIFAR10(root, train=train).data.transpose(0, 3, 1, 2))


@functools.cache
def _read_jpeg(path: Path, published: str) -> ndarray:
    """Decodes the images of a published split, train or test, which takes 0.1 ms each.

    The file holds, by split, the JPEG files one after the other, `{split}_jpeg` (bytes,) uint8, and where each begins
    and the last one ends, `{split}_offsets` (N + 1,).
    """
    with np.load(path) as file:
        data, offsets = file[f"{published}_jpeg"].tobytes(), file[f"{published}_offsets"].tolist()
    files = (io.BytesIO(data[start:end]) for start, end in zip(offsets, offsets[1:]))
    images = np.stack([np.asarray(Image.open(file, formats=["JPEG"])) for file in files])  # (N, 32, 32, 3)
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"images are {images.shape[1:]}, expected {(IMAGE_SIZE, IMAGE_SIZE, 3)}")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def download_cifar10(root: Path) -> None:
    """Downloads CIFAR-10, 170 MB, into root/cifar-10-batches-py, in place of the files that are there."""
    from torchvision.datasets import CIFAR10

    download_beside(root, lambda folder: CIFAR10(folder, download=True), cifar10_files())


def main(arguments: list[str]) -> None:
    """Downloads CIFAR-10 into a folder; exits with one line unless it is whole there afterwards."""
    download_command(arguments, "datasets.images", "CIFAR-10", FOLDER, _read_cifar10, download_cifar10)
