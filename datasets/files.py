"""Files that torchvision downloads, checksums verified: each is whole or absent, and what goes wrong fits one line."""

import contextlib
import errno
import hashlib
import io
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

Kind = TypeVar("Kind")

# What torchvision, gzip, urllib and http raise for a file or a download that is damaged, and for no network at all.
DATA_ERRORS = (RuntimeError, OSError, EOFError, HTTPException, AssertionError, ValueError, LookupError, zlib.error)


def one_line(error: Exception) -> str:
    """An error on one line, with its type."""
    return " ".join(f"{type(error).__name__} {error}".split())


def read_json(path: Path, kind: TypeAdapter[Kind], remedy: str) -> Kind:
    """The content of a JSON file; ValueError naming the first entry that is not as `kind` says, and the remedy."""
    try:
        return kind.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"{part}: " for part in first["loc"][:3])
        raise ValueError(f"{path} is damaged ({where}{first['msg']}); {remedy}") from None


def open_array(path: Path, mode: str) -> np.memmap:
    """A .npy file as an array whose values are read when they are used; ValueError unless it is a whole one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or not a file")
    try:
        array = np.lib.format.open_memmap(path, mode=mode)
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python, and a damaged one fails in many ways
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    if not array.flags.c_contiguous:
        raise ValueError("its values are in Fortran order")
    return array


def npy_header(n: int, shape: tuple[int, ...], dtype: str) -> bytes:
    """Header of an .npy file of n values of a shape; as long for every n, so it can be written once n is known."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": (n, *shape), "fortran_order": False, "descr": dtype})
    return file.getvalue()


def sha256(path: Path) -> str:
    """Of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def failure(program: str, error: Exception) -> int:
    """Print the error on one line; returns the exit code: 1 for a full disk, 2 for data or arguments that are wrong."""
    message = str(error) if isinstance(error, ValueError | FileNotFoundError) else one_line(error)
    print(f"{program}: {message}", file=sys.stderr)
    return 1 if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else 2


def download_beside(root: Path, fetch: Callable[[str], object], files: Iterable[str | Path]) -> None:
    """Calls fetch with a new folder in root, then moves the files, named relative to it, to their places in root."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as partial:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints each mirror it gives up
            fetch(partial)
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(partial) / file, root / file)


def download_command(
    arguments: list[str],
    module: str,
    what: str,
    folder: Path,
    read: Callable[[Path, bool], object],
    download: Callable[[Path], None],
) -> None:
    """`python -m module ROOT`: exits with one line unless `what` is whole in ROOT/folder afterwards.

    Args:
        read: (root, train) reads the published training images, or the test images; raises one of DATA_ERRORS.
        download: puts both into a root.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: python -m {module} ROOT", file=sys.stderr)
        sys.exit(2)
    root = Path(arguments[0])

    def check() -> None:
        for train in (True, False):
            read(root, train)

    try:
        try:
            check()
        except DATA_ERRORS:
            download(root)
            check()
    except DATA_ERRORS as error:
        sys.exit(failure(f"{module}: no {what} in {root / folder}", error))
    print(f"{what} is in {root / folder}")
