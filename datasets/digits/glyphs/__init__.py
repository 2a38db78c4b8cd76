"""Pictures of digits, uint8 (N, S, S): `mnist` is downloaded, `drawn` is made from the font that comes with Pillow.

The train, valid and test glyphs of a source have no member in common.

    python -m datasets.digits.glyphs ROOT    downloads MNIST into ROOT/MNIST/raw, or replaces a damaged copy

The published .gz files in ROOT/MNIST/raw are read as they are; nothing is unpacked.
"""

import functools
import gzip
import hashlib
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from datasets.files import DATA_ERRORS, download_beside, download_command, one_line

N_MNIST_TRAIN = 57_000  # 95 % of MNIST's 60,000 training digits; the other 3,000 are the valid split
RAW = Path("MNIST", "raw")  # where torchvision keeps MNIST in its root
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_IMAGES = {True: MNIST_FILES[0], False: MNIST_FILES[2]}  # by `train`
MNIST_SHA256 = {  # of the unpacked files: others packed them again
    MNIST_IMAGES[True]: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    MNIST_IMAGES[False]: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
}
N_DRAWN = {"train": 3_800, "valid": 200, "test": 1_000}


def load_glyphs(source: str, root: str | Path | None, split: str, size: int) -> ndarray:
    """(N, size, size) uint8 glyphs of a split, made once per process; root matters to `mnist` alone.

    Raises:
        ValueError: unknown source.
        FileNotFoundError: MNIST is missing or damaged and cannot be downloaded.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown glyphs {source!r}, expected one of {', '.join(SOURCES)}")
    return SOURCES[source](root, split, size)


@functools.cache
def mnist(root: str | Path | None, split: str, size: int) -> ndarray:
    """MNIST's digits; train and valid come from its training split, test from its test split."""
    if root is None:
        raise ValueError("root must be the folder that holds MNIST or receives it, got None")
    root = Path(root)
    try:
        if not is_unpacked(root) and not all((root / RAW / f"{name}.gz").is_file() for name in MNIST_IMAGES.values()):
            download_mnist(root)
        digits = _read_mnist(root, split != "test")
    except DATA_ERRORS as error:
        raise FileNotFoundError(
            f"no usable MNIST in {root / RAW} ({one_line(error)}); download it with "
            f"`python -m datasets.digits.glyphs {root}`, or use `--data.name digits`, drawn digits without a download"
        ) from None
    digits = {"train": digits[:N_MNIST_TRAIN], "valid": digits[N_MNIST_TRAIN:], "test": digits}[split]
    if size == 28:
        return digits
    # Pillow's bilinear filter is what torchvision's Resize applies to images, and so what SVG's digits went through.
    resize = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(digit).resize((size, size), resize)) for digit in digits])


@functools.cache
def _read_mnist(root: Path, train: bool) -> ndarray:
    """(N, 28, 28) uint8; ValueError if what is in the file is not what was published."""
    path = root / RAW / MNIST_IMAGES[train]
    # torchvision reads unpacked files too, but takes two seconds to import.
    content = path.read_bytes() if is_unpacked(root) else gzip.decompress(Path(f"{path}.gz").read_bytes())
    if hashlib.sha256(content).hexdigest() != MNIST_SHA256[path.name]:
        raise ValueError(f"the SHA-256 of what is in {path.name} is not that of MNIST")
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def is_unpacked(root: Path) -> bool:
    """Whether the four files are there as torchvision reads them."""
    return all((root / RAW / name).is_file() for name in MNIST_FILES)


def download_mnist(root: Path) -> None:
    """Downloads MNIST's four files into root/MNIST/raw, in place of those that are there."""
    from torchvision.datasets import MNIST

    download_beside(root, lambda folder: MNIST(folder, download=True), [RAW / name for name in MNIST_FILES])


@functools.cache
def drawn(root: str | Path | None, split: str, size: int) -> ndarray:
    """Digits in Pillow's font, each turned, slanted, stretched and thickened in its own way; root is not used."""
    rng = np.random.default_rng([0, tuple(N_DRAWN).index(split), size])
    n, canvas, scale = N_DRAWN[split], 4 * size, 2 if size <= 32 else 1  # large glyphs need no supersampling
    strokes = size * np.array([0.0, 0.04, 0.08, 0.12])  # thickening, in px of the canvas
    stamps = [[_stamp(str(digit), canvas, round(stroke)) for stroke in strokes] for digit in range(10)]
    digits, weights = np.arange(n) % 10, rng.integers(len(strokes), size=n)

    # Each glyph reads a quadrilateral of its stamp: the unit square, sheared, rotated, scaled, its corners shaken.
    corners = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])  # NW, SW, SE, NE as (x, y)
    angle, shear = rng.normal(0, 0.14, n), rng.normal(0.1, 0.18, n)  # radians; x per y, slanted right on average
    shrink = 1 / np.stack([rng.uniform(0.75, 1.15, n), rng.uniform(0.85, 1.1, n)], axis=-1)  # (N, 2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    slant = np.eye(2) + shear[:, None, None] * np.array([[0.0, 1.0], [0.0, 0.0]])
    quads = np.einsum("nij,njk,nk,ck->nci", rotation, slant, shrink, corners)  # (N, 4, 2)
    quads = canvas * (0.5 + quads + rng.uniform(-0.1, 0.1, quads.shape))

    glyphs = np.empty((n, size, size), np.uint8)
    for glyph, digit, weight, quad in zip(glyphs, digits, weights, quads.reshape(n, 8), strict=True):
        large = (scale * size, scale * size)
        image = stamps[digit][weight].transform(large, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
        glyph[:] = image.reduce(scale)
    return glyphs


def _stamp(text: str, canvas: int, stroke: int) -> Image.Image:
    """One upright character, white on black, centred, about two thirds as high as its canvas."""
    image, middle = Image.new("L", (canvas, canvas)), canvas / 2
    font = ImageFont.load_default(0.8 * canvas)
    box = font.getbbox(text, anchor="ls", stroke_width=stroke)
    at = (middle - (box[0] + box[2]) / 2, middle - (box[1] + box[3]) / 2)
    ImageDraw.Draw(image).text(at, text, fill=255, font=font, anchor="ls", stroke_width=stroke)
    return image


SOURCES = {"mnist": mnist, "drawn": drawn}


def main(arguments: list[str]) -> None:
    """Downloads MNIST into a folder; exits with one line unless it is whole there afterwards."""
    download_command(arguments, "datasets.digits.glyphs", "MNIST", RAW, _read_mnist, download_mnist)
