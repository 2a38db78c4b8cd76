"""Rendered robot pushing, from one compressed file to one memory-mappable array per split.

    python -m datasets.pushing.convert PUSHING.npz DST

PUSHING.npz is what the renderer writes, with any number of trajectories. Writes into DST, for train and test:
    pushing_{split}.npy             (N, 30, 64, 64, 3) uint8
    pushing_{split}_actions.npy     (N, 30, 4) float32
    pushing_{split}_positions.npy   (N, 30, 3) float32, of the point between the fingertips
"""

import argparse
import os
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from datasets.bair import ARRAYS
from datasets.files import failure, one_line, sha256


def convert(src: Path, dst: Path) -> None:
    """Writes the arrays, frames last, and prints what they are."""
    file = np.load(src, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    with file:
        for split in ("test", "train"):  # the small one first, so that what is wrong shows early
            values = {kind: read(file, f"{split}{kind or '_frames'}", *ARRAYS[kind]) for kind in ARRAYS}
            lengths = {f"{split}{kind or '_frames'}": len(array) for kind, array in values.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"its arrays differ in length, {lengths}")
            dst.mkdir(parents=True, exist_ok=True)
            print(f"{split}: {len(values[''])} videos")
            for kind, array in values.items():
                path = dst / f"pushing_{split}{kind}.npy"
                part = path.with_name(path.name + ".part")
                with part.open("wb") as out:
                    np.save(out, array)
                os.replace(part, path)
                print(f"  {sha256(path)}  {path}")


def read(file: np.lib.npyio.NpzFile, key: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """(N, *shape) of a key of the file; ValueError unless it is there, whole, of that dtype and finite."""
    if key not in file:
        raise ValueError(f"it has no array {key}, only {', '.join(file) or 'none'}")
    array = file[key]
    if array.shape[1:] != shape or array.dtype != np.dtype(dtype):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{key} is {array.shape} {array.dtype}, expected (N, {expected}) {np.dtype(dtype)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{key} holds values that are not finite")
    return array


def main(arguments: list[str]) -> int:
    """Exits with one line and code 2 unless everything is converted."""
    parser = argparse.ArgumentParser(
        prog="datasets.pushing.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="PUSHING.npz", type=Path)
    parser.add_argument("dst", metavar="DST", type=Path, help="folder of the arrays")
    args = parser.parse_args(arguments)
    try:
        try:
            convert(args.src, args.dst)
        except FileNotFoundError:
            raise ValueError(f"{args.src} does not exist; give the renderer's pushing.npz") from None
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ValueError(f"{args.src} is not a usable pushing.npz ({one_line(error)})") from None
    except (ValueError, OSError) as error:
        return failure("datasets.pushing.convert", error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
