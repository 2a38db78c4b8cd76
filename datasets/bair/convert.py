"""BAIR robot pushing, from the published TFRecord files to one memory-mappable array per split.

    python -m datasets.bair.convert SRC DST                 SRC: the published tar, or the folder unpacked from it
    python -m datasets.bair.convert SRC DST --download      downloads the tar into the folder SRC first; 32 GB
    python -m datasets.bair.convert SRC DST --camera main   the other of the two cameras

Writes into DST, for the splits train (43,264 videos; 15.9 GB) and test (256):
    bair_{split}.npy             (N, 30, 64, 64, 3) uint8
    bair_{split}_actions.npy     (N, 30, 4) float32
    bair_{split}_positions.npy   (N, 30, 3) float32, of the end effector
    bair_{split}.json            what they were made of, and their SHA-256
Videos stand in the order of the numbers in their file's name. The tar is read where it lies, not unpacked, one record
at a time. The same command resumes a conversion that was cut short, not a download.
"""

import argparse
import itertools
import json
import os
import re
import struct
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple, NotRequired

import numpy as np
from pydantic import Field, TypeAdapter
from torch.hub import download_url_to_file
from tqdm import tqdm
from typing_extensions import TypedDict

from datasets.bair import ACTION_SIZE, ARRAYS, N_FRAMES, POSITION_SIZE
from datasets.files import failure, npy_header, one_line, read_json, sha256

try:
    from crc32c import crc32c
    from google.protobuf.message import DecodeError
    from tfrecord.example_pb2 import Example
except ImportError:  # `main` says so
    Example = None

URL = "http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar"
TAR_BYTES = 32_274_964_480
TAR_SHA256 = "c6f8d164ab2be07174ef597e3e070d7466f3142caddc467b6af119b9458cd9cd"
N_PUBLISHED = {"test": 256, "train": 43_264}  # videos; the small split first, so that what is wrong shows early
FOLDER = "softmotion30_44k"
FILE_NAME = re.compile(r"traj_(\d+)_to_(\d+)\.tfrecords")
FRAME_BYTES = 64 * 64 * 3


class State(TypedDict):
    """What bair_{split}.json holds, and its .part while a conversion is under way."""

    camera: str
    videos: Annotated[int, Field(ge=0, lt=2**40)]
    files: list[list[str | int]]  # RecordFile.identity
    records: list[Annotated[int, Field(ge=0)]]  # of each file
    sha256: NotRequired[dict[str, str]]  # of each array, once all are written


STATE = TypeAdapter(State)


class RecordFile(NamedTuple):
    """A published TFRecord file: `size` bytes of `path` from `offset` on, which is 0 unless path is the tar."""

    split: str
    first: int  # traj_{first}_to_{last}.tfrecords holds last - first + 1 records
    last: int
    path: Path
    offset: int
    size: int

    @property
    def name(self) -> str:
        inside = f":{FOLDER}/{self.split}/traj_{self.first}_to_{self.last}.tfrecords" if self.offset else ""
        return f"{self.path}{inside}"

    @property
    def n_promised(self) -> int:
        return self.last - self.first + 1

    def identity(self) -> list:
        """Equal for the same bytes in the same place; JSON."""
        return [str(self.path.resolve()), self.path.stat().st_mtime_ns, self.offset, self.size, self.first, self.last]


def find_files(src: Path) -> list[RecordFile]:
    """The TFRecord files of a tar, of a folder that holds softmotion30_44k or a tar, or of softmotion30_44k itself.

    Sorted by their numbers, whatever their order in the tar.
    """
    if not src.exists():
        raise ValueError(f"{src} does not exist; give the published tar or its folder, or get it with --download")
    tar = src / Path(URL).name if src.is_dir() else src
    folder = src / FOLDER if (src / FOLDER).is_dir() else src
    if src.is_dir() and any((folder / split).is_dir() for split in N_PUBLISHED):
        paths = [path for split in N_PUBLISHED for path in (folder / split).glob("*")]
        found = [(path.parent.name, path.name, path, 0, path.stat().st_size) for path in paths if path.is_file()]
    elif tar.is_file():
        try:
            with tarfile.open(tar, "r:") as members:  # plain, so that reading the headers skips over the data
                found = [
                    (*Path(member.name).parts[-2:], tar, member.offset_data, member.size)
                    for member in members
                    if member.isfile() and Path(member.name).parts[-3:-2] == (FOLDER,)
                ]
        except tarfile.TarError as error:
            raise ValueError(f"{tar} is not a whole tar file ({error}); download it again") from None
    else:
        raise ValueError(f"{src} holds neither {FOLDER}/train or test nor {tar.name}; get it with --download")

    files = []
    for split, name, path, offset, size in found:
        if split not in N_PUBLISHED or name.startswith(".") or ".tfrecord" not in name:
            continue
        numbers = FILE_NAME.fullmatch(name)
        if numbers is None or int(numbers[2]) < int(numbers[1]):
            raise ValueError(
                f"{path}: {split}/{name} should be named traj_A_to_B.tfrecords, A and B its first and last"
            )
        files.append(RecordFile(split, int(numbers[1]), int(numbers[2]), path, offset, size))
    return sorted(files)


def check_totals(src: Path, files: list[RecordFile], allow_partial: bool) -> None:
    """Raises ValueError unless the files' names promise what was published, or with allow_partial anything."""
    if not files:
        raise ValueError(f"{src} holds no traj_A_to_B.tfrecords in {FOLDER}/train or test; get them with --download")
    promised = {split: sum(file.n_promised for file in files if file.split == split) for split in N_PUBLISHED}
    if promised != N_PUBLISHED and not allow_partial:
        given, expected = (
            " + ".join(f"{n[split]:,} {split}" for split in ("train", "test")) for n in (promised, N_PUBLISHED)
        )
        raise ValueError(
            f"{src} holds {given} videos by its file names, expected {expected}; get the rest, or accept what is there "
            "with --allow-partial"
        )


def read_records(file: BinaryIO, size: int, name: str) -> Iterator[bytes]:
    """The records of a TFRecord file of `size` bytes; each is length (uint64), its CRC, data, its CRC; little endian.

    Records are counted from 0, as the numbers in the file names are.
    """
    cut = "the file ends inside it; download it again"
    for n in itertools.count():
        if size == 0:
            return
        head = file.read(min(size, 12))
        if len(head) < 12:
            raise ValueError(f"{name}, record {n}: {cut}")
        length, crc = struct.unpack("<QI", head)
        if crc != masked_crc(head[:8]):
            raise ValueError(
                f"{name}, record {n}: wrong CRC of its length, so it is damaged or no TFRecord file; it begins {head!r}"
            )
        size -= 12 + length + 4
        if size < 0:  # asked before `length` bytes of memory are
            raise ValueError(f"{name}, record {n}: {cut}")
        data, tail = file.read(length), file.read(4)
        if len(data) + len(tail) < length + 4:
            raise ValueError(f"{name}, record {n}: {cut}")
        if tail != struct.pack("<I", masked_crc(data)):
            raise ValueError(f"{name}, record {n}: wrong CRC of its data, so it is damaged; download the file again")
        yield data


def masked_crc(data: bytes) -> int:
    """TFRecord's: a CRC next to what it is computed of would make the CRC of both a constant, so it is masked."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_video(record: bytes, camera: str, where: str) -> tuple[bytes, bytes, bytes]:
    """One video's bytes of each of ARRAYS; `where` names the record in errors."""
    try:
        features = Example.FromString(record).features.feature
    except DecodeError:
        raise ValueError(f"{where}: no Example message, though its CRC is right; not a file of BAIR's") from None

    def values(key: str, kind: str, expected: str) -> list:
        if key not in features:  # indexing would make an empty one
            raise ValueError(f"{where}: it has no {key}, expected {expected}; not a file of BAIR's")
        return getattr(features[key], kind).value

    def floats(what: str, n: int) -> bytes:
        flat = []
        for i in range(N_FRAMES):
            row = values(f"{i}/{what}", "float_list", f"{n} floats")
            if len(row) != n:
                raise ValueError(f"{where}: {i}/{what} has {len(row)} floats, expected {n}; not a file of BAIR's")
            flat += row
        numbers = np.array(flat, "<f4")
        if not np.isfinite(numbers).all():
            raise ValueError(f"{where}: {what} holds values that are not finite; not a file of BAIR's")
        return numbers.tobytes()

    frames = []
    for i in range(N_FRAMES):
        key = f"{i}/image_{camera}/encoded"
        frame = values(key, "bytes_list", f"{FRAME_BYTES} bytes")
        if len(frame) != 1 or len(frame[0]) != FRAME_BYTES:
            sizes = " + ".join(str(len(value)) for value in frame) or 0
            raise ValueError(f"{where}: {key} has {sizes} bytes, expected {FRAME_BYTES}, 64 x 64 RGB")
        frames.append(frame[0])
    return floats("action", ACTION_SIZE), floats("endeffector_pos", POSITION_SIZE), b"".join(frames)


def convert_split(files: list[RecordFile], dst: Path, camera: str, allow_partial: bool, bar: tqdm) -> dict:
    """Writes the arrays of one split and the JSON beside them, and returns what that says.

    Until all is written, the arrays are .part files and the JSON says which files are in them, safe on the disk. A run
    that finds them resumes behind these. One that finds them made of other files, or of the other camera, starts over;
    so does one after a kill between the renamings below, which take microseconds.
    """
    split = files[0].split
    outputs = [dst / f"bair_{split}{suffix}.npy" for suffix in ARRAYS]
    parts = [path.with_name(path.name + ".part") for path in outputs]
    summary, progress = dst / f"bair_{split}.json", dst / f"bair_{split}.json.part"

    finished = read_state(summary, camera, files, outputs)
    if finished is not None and len(finished["files"]) == len(files):
        check_counts(files, finished["records"], allow_partial)
        bar.update(sum(file.size for file in files))
        return finished
    nothing_done = {"camera": camera, "videos": 0, "files": [], "records": []}
    state = read_state(progress, camera, files, parts) or nothing_done
    check_counts(files, state["records"], allow_partial)
    n_done = len(state["files"])
    bar.update(sum(file.size for file in files[:n_done]))

    with ExitStack() as stack:
        arrays = [stack.enter_context(open(part, "r+b" if n_done else "wb")) for part in parts]
        for array, size in zip(arrays, sizes(state["videos"]), strict=True):
            array.truncate(size)  # what stands behind the finished files, or room for the header
            array.seek(size)
        for file in files[n_done:]:
            n = 0
            with file.path.open("rb") as source:
                source.seek(file.offset)
                for n, record in enumerate(read_records(source, file.size, file.name), 1):
                    if n > file.n_promised:
                        raise ValueError(f"{file.name}, record {n - 1}: its name promises {file.n_promised} records")
                    for array, data in zip(arrays, read_video(record, camera, f"{file.name}, record {n - 1}")):
                        array.write(data)
                    bar.update(len(record) + 16)
            check_counts([file], [n], allow_partial)
            for array in arrays:
                sync(array)
            state["videos"] += n
            state["files"].append(file.identity())
            state["records"].append(n)
            write_json(progress, state)
        if state["videos"] == 0:
            raise ValueError(f"{files[0].path}: not one video for the split {split}")
        for array, (shape, dtype) in zip(arrays, ARRAYS.values(), strict=True):
            array.seek(0)
            array.write(npy_header(state["videos"], shape, dtype))
            sync(array)
    bar.set_description("SHA-256")
    state["sha256"] = {path.name: sha256(part) for path, part in zip(outputs, parts, strict=True)}
    for path, part in zip(outputs, parts, strict=True):
        os.replace(part, path)
    write_json(progress, state)
    os.replace(progress, summary)
    return state


def check_counts(files: list[RecordFile], records: list[int], allow_partial: bool) -> None:
    """Raises ValueError if a file ended before the records that its name promises, unless that is allowed."""
    for file, n in zip(files, records):
        if n < file.n_promised and not allow_partial:
            raise ValueError(
                f"{file.name}, record {n}: the file ends before it, its name promises {file.n_promised} records; "
                "download it again, or accept what is there with --allow-partial"
            )


def read_state(path: Path, camera: str, files: list[RecordFile], arrays: list[Path]) -> dict | None:
    """What a run before has noted, if it holds for the arrays and, as far as it got, for the files given now."""
    if not all(file.exists() for file in (path, *arrays)):
        return None
    state = read_json(path, STATE, "delete it to start again")
    if len(state["files"]) != len(state["records"]) or sum(state["records"]) != state["videos"]:
        raise ValueError(f"{path} is damaged (its counts do not add up); delete it to start again")
    if state["camera"] != camera or state["files"] != [file.identity() for file in files[: len(state["files"])]]:
        return None
    whole = all(array.stat().st_size >= size for array, size in zip(arrays, sizes(state["videos"]), strict=True))
    return state if whole else None


def sizes(n: int) -> list[int]:
    """Of the .npy files of n videos, in bytes."""
    return [
        len(npy_header(0, shape, dtype)) + n * int(np.prod(shape)) * np.dtype(dtype).itemsize
        for shape, dtype in ARRAYS.values()
    ]


def sync(file: BinaryIO) -> None:
    """On the disk, before anything says so."""
    file.flush()
    os.fsync(file.fileno())


def write_json(path: Path, state: dict) -> None:
    """Whole or absent."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(json.dumps(state, indent=1).encode())
        sync(file)
    os.replace(new, path)


def download(src: Path) -> Path:
    """The published tar in the folder src, downloaded unless it is there; whole or absent."""
    tar = src if src.is_file() else src / Path(URL).name
    if not tar.exists():
        src.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(URL, str(tar), hash_prefix=TAR_SHA256, progress=sys.stderr.isatty())
        except (RuntimeError, OSError, HTTPException) as error:  # RuntimeError: torch's, for another SHA-256
            raise ValueError(
                f"cannot download {URL} ({one_line(error)}); put the file into {src} yourself, `wget -c` resumes it"
            ) from None
    return tar


def convert(src: Path, dst: Path, camera: str, allow_partial: bool) -> None:
    """Converts every split that there is, and prints what was made of what."""
    files = find_files(src)
    check_totals(src, files, allow_partial)
    if files[0].offset and files[0].path.stat().st_size != TAR_BYTES:
        print(f"{files[0].path} is not the published tar: {files[0].path.stat().st_size:,} bytes, not {TAR_BYTES:,}")
    dst.mkdir(parents=True, exist_ok=True)
    with tqdm(total=sum(file.size for file in files), unit="B", unit_scale=True, disable=None) as bar:
        states = {}
        for split in N_PUBLISHED:
            if of_split := [file for file in files if file.split == split]:
                bar.set_description(split)
                states[split] = convert_split(of_split, dst, camera, allow_partial, bar)
    for split, n_published in N_PUBLISHED.items():
        n = states[split]["videos"] if split in states else 0
        print(f"{split}: {n:,} of {n_published:,} published videos, camera {camera}{' (partial)' * (n != n_published)}")
        if split in states:
            for file, n in zip((file for file in files if file.split == split), states[split]["records"], strict=True):
                if n < file.n_promised:
                    print(f"  {file.name} has {n} of the {file.n_promised} records that its name promises")
            for name, digest in states[split].get("sha256", {}).items():
                print(f"  {digest}  {dst / name}")


def main(arguments: list[str]) -> int:
    """Exits with one line and code 2 unless everything asked for is converted."""
    parser = argparse.ArgumentParser(
        prog="datasets.bair.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="SRC", type=Path, help=f"tar, {FOLDER}, or a folder that holds either")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder of the arrays")
    parser.add_argument("--camera", choices=("aux1", "main"), default="aux1", help="aux1, which papers predict")
    parser.add_argument("--allow-partial", action="store_true", help="accept missing files and missing records")
    parser.add_argument("--download", action="store_true", help=f"fetch {URL} into the folder SRC")
    args = parser.parse_args(arguments)
    try:
        if Example is None:
            raise ValueError(
                'BAIR\'s TFRecord files need tfrecord and crc32c; install them with `pip install -e ".[bair]"`'
            )
        convert(download(args.src) if args.download else args.src, args.dst, args.camera, args.allow_partial)
    except (ValueError, OSError) as error:
        return failure("datasets.bair.convert", error)
    except KeyboardInterrupt:
        print("datasets.bair.convert: stopped; the same command resumes it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
