"""Converts a folder of videos into one array of frames that training maps into memory.

    python -m datasets.videos.convert SRC DST [--image-size 64] [--stride 1] [--min-frames 2]

SRC is searched with its subfolders. A file is a video; a subfolder with .png or .jpg pictures and no other video file
is one video too, its pictures the frames. Hidden names are passed over. DST receives, for image size S and stride R:

    videos_S_R.npy     (frames of all videos, S, S, 3) uint8, one video after the other
    videos_S_R.json    each video's name, split and number of frames, in the array's order; what was skipped, and why

Then `--data.name video_folder --data.root DST` trains on them. With the folder of videos itself as root this happens on
first use, into SRC/.seqvae_cache. Needs memory for one converted video, twice.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, TypeAdapter
from tqdm import tqdm
from typing_extensions import TypedDict

from datasets.base import SPLITS, check_int
from datasets.files import failure, npy_header, one_line, read_json
from datasets.videos import ANIMATIONS, FRAMES, MOVIES, frame_files, read_video, require_pyav, visible

FORMAT = 2  # of the files written; a new number makes caches of older code be made again
CACHE = ".seqvae_cache"
MIN_FRAMES = 2  # one picture is not a video


class Video(TypedDict):
    name: str
    split: Literal["train", "valid", "test"]
    frames: Annotated[int, Field(ge=1, lt=2**40)]


class Index(TypedDict):
    """What videos_S_R.json holds."""

    format: Literal[FORMAT]
    image_size: Annotated[int, Field(ge=1, lt=2**20)]
    stride: Annotated[int, Field(ge=1)]
    min_frames: Annotated[int, Field(ge=1)]
    fingerprint: str
    source: str
    videos: Annotated[list[Video], Field(min_length=1)]
    skipped: list[dict[str, str]]


INDEX = TypeAdapter(Index)


def find_index(root: Path, image_size: int, stride: int) -> Path:
    """The index of root's videos: root's own if it was made by a conversion, else that of its cache, made if need be.

    Raises:
        FileNotFoundError: no such folder, or no videos in it.
        ValueError: a conversion at another size or stride, a cache that cannot be written, and what `convert` raises.
    """
    check_folder(root)
    index = index_path(root, image_size, stride)
    if index.is_file():
        return index
    if others := sorted(path.stem for path in root.glob("videos_*_*.json")):
        raise ValueError(
            f"{root} holds {', '.join(others)}, and image_size {image_size} with stride {stride} is asked for; make it "
            f"with `python -m datasets.videos.convert SRC {root} --image-size {image_size} --stride {stride}`"
        )
    try:
        return convert(root, root / CACHE, image_size, stride)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"cannot convert {root} into {root / CACHE} ({one_line(error)}); make another folder the root, "
            f"with `python -m datasets.videos.convert {root} DST --image-size {image_size} --stride {stride}`"
        ) from None


def convert(src: Path, dst: Path, image_size: int = 64, stride: int = 1, min_frames: int = MIN_FRAMES) -> Path:
    """Converts src's videos into dst, unless the same files were already; returns the index's path.

    Skipped and named: videos that cannot be read, have fewer than min_frames frames after the stride, or show the same
    frames as another.

    Raises:
        FileNotFoundError: no such folder, or no videos in it.
        ValueError: fewer than three usable videos, or movies without the extra `mp4`.
    """
    for name, value in (("image_size", image_size), ("stride", stride), ("min_frames", min_frames)):
        check_int(name, value, 1)
    videos, left_out = find_videos(src)
    for name in videos:
        if Path(name).suffix.lower() in MOVIES:
            require_pyav(src / name)
    facts = {"format": FORMAT, "image_size": image_size, "stride": stride, "min_frames": min_frames}
    fingerprint = fingerprint_of(src, videos, facts)
    index = index_path(dst, image_size, stride)
    dst.mkdir(parents=True, exist_ok=True)
    with alone(dst):
        if is_current(index, fingerprint):
            return index
        facts |= {"fingerprint": fingerprint, "source": str(src)}
        with replacing(array_path(index), index) as (array_part, index_part):
            with array_part.open("wb") as file:
                converted, skipped = write_frames(file, src, videos, image_size, stride, min_frames)
            skipped = left_out + skipped
            if len(converted) < len(SPLITS):
                raise ValueError(too_few(src, len(converted), min_frames, skipped))
            splits = split_videos(converted)
            entries = [{"name": name, "split": splits[name], "frames": n} for name, n in converted.items()]
            facts |= {"videos": entries, "skipped": skipped}
            index_part.write_text(json.dumps(facts, indent=1) + "\n")
    print(summary(index, facts))
    return index


def find_videos(src: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names, relative to src and with slashes, of its video files and folders of frames; what was skipped, and why.

    Every file and folder counts once, however many links lead to it, and under its own name where it has one in src.
    """
    check_folder(src)
    found, skipped, seen = [], [], {}
    folders, links = [src], []

    def skip(path: Path, reason: str) -> None:
        skipped.append({"name": path.relative_to(src).as_posix(), "reason": f"{path} {reason}"})

    def is_new(path: Path) -> bool:
        status = path.stat()
        first = seen.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            skip(path, f"is {first} under another name")
        return first == path

    is_new(src)
    while folders or links:
        if not folders:
            link = links.pop(0)
            if not is_new(link):
                continue
            if not link.is_dir():
                found.append(link)
                continue
            folders.append(link)
        folder = folders.pop()
        entries = visible(folder)
        files = [p for p in entries if p.suffix.lower() in ANIMATIONS + MOVIES + FRAMES and not p.is_dir()]
        if folder != src and files and all(path.suffix.lower() in FRAMES for path in files):
            found.append(folder)
            files = []
        for path in entries:
            if path.is_dir() and path.is_symlink() and src.resolve().is_relative_to(path.resolve()):
                skip(path, "is a link to a folder above")
            elif path.is_dir():
                if path.is_symlink():
                    links.append(path)
                elif is_new(path):
                    folders.append(path)
            elif path not in files or path.suffix.lower() not in ANIMATIONS + MOVIES:
                continue
            elif not path.is_file():
                skip(path, "is not a regular file")
            elif path.is_symlink():
                links.append(path)
            elif is_new(path):
                found.append(path)
    if found:
        return sorted(path.relative_to(src).as_posix() for path in found), skipped
    reasons = f" ({len(skipped)} skipped: {'; '.join(entry['reason'] for entry in skipped[:5])})" if skipped else ""
    raise FileNotFoundError(
        f"no videos in {src}{reasons}: expected files ({', '.join(ANIMATIONS + MOVIES)}) or a folder per video with "
        f"its frames ({', '.join(FRAMES)})"
    )


def split_videos(names: Iterable[str]) -> dict[str, str]:
    """Split of each video, by the SHA-256 of its name: modulo 100, 0..89 train, 90..94 valid, 95..99 test.

    So a file that is added moves no other. Small folders are the exception: a split that would be empty takes, in the
    order train, valid, test, the video with the smallest hash from the split that has most, and gives it back once the
    folder has a video of its own for it. Needs three names.
    """
    hashes = {name: int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) for name in names}
    splits = {
        name: "train" if number % 100 < 90 else "valid" if number % 100 < 95 else "test"
        for name, number in hashes.items()
    }
    for split in SPLITS:
        members = {other: [name for name in splits if splits[name] == other] for other in SPLITS}
        if not members[split]:
            splits[min(max(members.values(), key=len), key=hashes.__getitem__)] = split
    return splits


def fingerprint_of(src: Path, videos: list[str], settings: dict[str, int]) -> str:
    """SHA-256 of the settings and of name, size and time of change of every file that is read."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name in videos:
        path = src / name
        for file in frame_files(path) if path.is_dir() else [path]:
            status = file.stat() if file.exists() else file.lstat()
            digest.update(os.fsencode(f"{name}\0{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def write_frames(
    file: BinaryIO, src: Path, videos: list[str], image_size: int, stride: int, min_frames: int
) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Writes a .npy file of all frames; returns the number of frames of each video, and what was skipped and why."""
    converted, skipped, contents = {}, [], {}
    shape = (image_size, image_size, 3)
    file.write(npy_header(0, shape, "|u1"))
    for name in tqdm(videos, desc=f"converting {src}", unit="video", disable=None):
        try:
            frames = read_video(src / name, image_size, stride)
            if len(frames) < min_frames:
                raise ValueError(f"{src / name} is too short: {len(frames)} of {min_frames} frames at stride {stride}")
            first = contents.setdefault(hashlib.sha256(frames).digest(), name)
            if first != name:  # it could be in training and test at once
                raise ValueError(f"{src / name} shows the same frames as {src / first}")
        except (ValueError, FileNotFoundError) as error:
            skipped.append({"name": name, "reason": str(error)})
            continue
        file.write(frames.data)
        converted[name] = len(frames)
    file.seek(0)
    file.write(npy_header(sum(converted.values()), shape, "|u1"))
    return converted, skipped


@contextlib.contextmanager
def replacing(array: Path, index: Path) -> Iterator[tuple[Path, Path]]:
    """Gives the paths to write; on success these become the array and its index, else they vanish.

    The old index goes before the new array comes, so an index never lies beside an array that it does not describe.
    """
    parts = [path.with_name(path.name + ".part") for path in (array, index)]
    try:
        yield parts[0], parts[1]
        index.unlink(missing_ok=True)
        os.replace(parts[0], array)
        os.replace(parts[1], index)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: under torchrun all ask for the cache at once. The lock ends with its process."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def index_path(folder: Path, image_size: int, stride: int) -> Path:
    """Of the conversion to this size and stride."""
    return folder / f"videos_{image_size}_{stride}.json"


def array_path(index: Path) -> Path:
    """The array that an index describes."""
    return index.with_suffix(".npy")


def read_index(index: Path) -> Index:
    """What the index says; ValueError if it is not one of ours."""
    return read_json(index, INDEX, "delete it and convert again")


def is_current(index: Path, fingerprint: str) -> bool:
    """Whether the conversion is there and was made of videos with this fingerprint."""
    try:
        return array_path(index).is_file() and read_index(index)["fingerprint"] == fingerprint
    except (OSError, ValueError):
        return False


def check_folder(path: Path) -> None:
    """FileNotFoundError unless it is a folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the one that holds your videos")


def too_few(src: Path, n: int, min_frames: int, skipped: list[dict[str, str]]) -> str:
    """The message when a split would stay empty."""
    some = "; ".join(video["reason"] for video in skipped[:5])
    reasons = f" ({len(skipped)} skipped: {some}{'; ...' if len(skipped) > 5 else ''})" if skipped else ""
    return (
        f"{src} has {n} usable videos of {min_frames} frames or more{reasons}, and train, valid and test need one "
        "each; add videos, or cut a long one into pieces"
    )


def summary(index: Path, facts: dict) -> str:
    """What was converted and what was skipped, for the terminal."""
    splits = [video["split"] for video in facts["videos"]]
    n_frames, size = sum(video["frames"] for video in facts["videos"]), array_path(index).stat().st_size
    shares = ", ".join(f"{splits.count(split)} {split}" for split in SPLITS)
    lines = [f"{array_path(index)}: {len(splits)} videos ({shares}), {n_frames} frames, {size / 1e6:.1f} MB"]
    if facts["skipped"]:
        lines += [f"{len(facts['skipped'])} skipped:", *(f"  {video['reason']}" for video in facts["skipped"])]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Converts a folder; one line and exit code 2 for what is wrong with it."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.videos.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("src", type=Path, metavar="SRC")
    parser.add_argument("dst", type=Path, metavar="DST")
    parser.add_argument("--image-size", type=int, default=64, help="px; 64")
    parser.add_argument("--stride", type=int, default=1, help="take every stride-th frame; 1")
    parser.add_argument("--min-frames", type=int, default=MIN_FRAMES, help="skip shorter videos, after the stride; 2")
    args = parser.parse_args(arguments)
    if args.dst.resolve() == args.src.resolve():
        parser.error(f"DST must be another folder than SRC, got {args.dst} twice")
    try:
        index = convert(args.src, args.dst, args.image_size, args.stride, args.min_frames)
    except (OSError, ValueError) as error:
        sys.exit(failure("datasets.videos.convert", error))
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"--data.name video_folder --data.root {index.parent} trains on them")


if __name__ == "__main__":
    main()
