"""KTH's human actions, from the published archives of AVI files to one memory-mappable array per split.

    python -m datasets.kth.convert SRC DST               SRC: folder of boxing.zip, handclapping.zip, ... walking.zip
    python -m datasets.kth.convert SRC DST --download    downloads into SRC those that are missing

Folders boxing/ ... walking/ of AVI files are read in place of archives. Every frame is stretched to 64 x 64 by FFmpeg's
bicubic scaling, as in SVG's and SRVP's conversion, and its first channel kept. Writes into DST, for train, valid, test:

    kth_{split}.npy     (frames of all videos, 64, 64) uint8, one video after the other
    kth.json            each video's name and number of frames, in the arrays' order; their SHA-256

One video was never published, and one was published cut short, so its end is missing. Any other that is missing or
damaged ends the conversion, unless --allow-partial leaves out what is missing. Needs PyAV, the extra `mp4`.
"""

import argparse
import io
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import numpy as np
from torch.hub import download_url_to_file
from tqdm import tqdm

from datasets.files import failure, npy_header, one_line, sha256
from datasets.kth import ACTIONS, IMAGE_SIZE, N_TRIALS, PEOPLE, video_name
from datasets.videos import decoded, require_pyav

URL = "http://www.csc.kth.se/cvap/actions/{action}.zip"
SUFFIX = "_uncomp.avi"
NEVER_PUBLISHED = "person13_handclapping_d3"
CUT_SHORT = "person01_boxing_d4"  # 304 of 370 frames can be decoded


def published_videos() -> dict[str, list[str]]:
    """By split, the names of its videos in the order of the array."""
    return {
        split: [
            name
            for action in ACTIONS
            for person in people
            for trial in range(1, N_TRIALS + 1)
            if (name := video_name(person, action, trial)) != NEVER_PUBLISHED
        ]
        for split, people in PEOPLE.items()
    }


class Archive:
    """The AVI files of one action: SRC/ACTION.zip, or the folder SRC/ACTION."""

    def __init__(self, src: Path, action: str) -> None:
        self.path = src / f"{action}.zip"
        self.zip, self.files = None, {}
        if self.path.is_file():
            try:
                self.zip = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{self.path} is not a whole zip file ({error}); get it again") from None
            self.files = {Path(name).name: name for name in self.zip.namelist()}
        elif (src / action).is_dir():
            self.path = src / action
            self.files = {path.name: path for path in sorted(self.path.rglob(f"*{SUFFIX}"))}

    def __contains__(self, name: str) -> bool:
        return name + SUFFIX in self.files

    def read(self, name: str) -> bytes:
        """The bytes of a video's file, compared with the archive's CRC."""
        file = self.files[name + SUFFIX]
        try:
            return file.read_bytes() if self.zip is None else self.zip.read(file)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{self.path}: {name}{SUFFIX} is damaged ({one_line(error)}); get it again") from None


def read_frames(data: bytes, where: str, cut_short: bool = False) -> np.ndarray:
    """(T, 64, 64) uint8 of an AVI file; ValueError unless every frame is whole.

    Args:
        cut_short: the file is known to end early; what comes before the damage is read.
    """
    frames = []
    try:
        for frame in decoded(io.BytesIO(data)):
            picture = frame.reformat(IMAGE_SIZE, IMAGE_SIZE, "rgb24", interpolation="BICUBIC")
            frames.append(picture.to_ndarray()[..., 0])
    except Exception as error:  # damaged data makes decoders raise anything
        if not (cut_short and frames):
            raise ValueError(f"{where} cannot be read ({one_line(error)}); get it again") from None
    if not frames:
        raise ValueError(f"{where} has no frame that can be read; get it again")
    return np.stack(frames)


def convert(src: Path, dst: Path, allow_partial: bool = False) -> None:
    """Writes the arrays, the index last, and prints what was made of what."""
    require_pyav(src)
    archives = {action: Archive(src, action) for action in ACTIONS}
    found, missing = {}, []
    for split, names in published_videos().items():
        found[split] = [name for name in names if name in archives[name.split("_")[1]]]
        missing += [name for name in names if name not in found[split]]
    if missing and not allow_partial:
        raise ValueError(
            f"{src} lacks {len(missing)} of the published videos, {missing[0]}{SUFFIX} first; get the archives with "
            "--download, or accept what is there with --allow-partial"
        )
    for split, names in found.items():
        if not names:
            raise ValueError(f"{src} holds no video of the people of split {split}, {list(PEOPLE[split])}")
    dst.mkdir(parents=True, exist_ok=True)
    index = dst / "kth.json"
    index.unlink(missing_ok=True)  # it must not describe arrays that it was not made with
    facts = {"videos": {}, "sha256": {}}
    with tqdm(total=sum(map(len, found.values())), unit="video", disable=None) as bar:
        for split, names in found.items():
            path = dst / f"kth_{split}.npy"
            facts["videos"][split] = write(path, videos(archives, names, bar))
            facts["sha256"][path.name] = sha256(path)
    part = index.with_name(index.name + ".part")
    part.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(part, index)
    for split, names in found.items():
        n_frames = sum(video["frames"] for video in facts["videos"][split])
        print(f"{split}: {len(names)} of {len(published_videos()[split])} published videos, {n_frames} frames")
        print(f"  {facts['sha256'][f'kth_{split}.npy']}  {dst / f'kth_{split}.npy'}")


def videos(archives: dict[str, Archive], names: list[str], bar: tqdm) -> Iterator[tuple[str, np.ndarray]]:
    """Name and frames of each."""
    for name in names:
        archive = archives[name.split("_")[1]]
        where = f"{archive.path}: {name}{SUFFIX}"
        yield name, read_frames(archive.read(name), where, cut_short=name == CUT_SHORT)
        bar.update()


def write(path: Path, named: Iterator[tuple[str, np.ndarray]]) -> list[dict]:
    """One .npy file of all frames, whole or absent; returns each video's name and number of frames."""
    entries, part, shape = [], path.with_name(path.name + ".part"), (IMAGE_SIZE, IMAGE_SIZE)
    with part.open("wb") as file:
        file.write(npy_header(0, shape, "|u1"))
        for name, frames in named:
            file.write(frames.data)
            entries.append({"name": name, "frames": len(frames)})
        file.seek(0)
        file.write(npy_header(sum(entry["frames"] for entry in entries), shape, "|u1"))
    os.replace(part, path)
    return entries


def download(src: Path) -> None:
    """The archives that are missing in src; each is whole or absent. Their checksums were never published."""
    src.mkdir(parents=True, exist_ok=True)
    for action in ACTIONS:
        url, path = URL.format(action=action), src / f"{action}.zip"
        if path.exists() or (src / action).is_dir():
            continue
        try:
            download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        except (OSError, HTTPException) as error:
            raise ValueError(f"cannot download {url} ({one_line(error)}); put the file into {src} yourself") from None


def main(arguments: list[str]) -> int:
    """Exits with one line and code 2 unless everything asked for is converted."""
    parser = argparse.ArgumentParser(
        prog="datasets.kth.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="SRC", type=Path, help="folder of the six archives")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder of the arrays")
    parser.add_argument("--allow-partial", action="store_true", help="leave out videos that are missing")
    parser.add_argument("--download", action="store_true", help="download archives that are missing into SRC")
    args = parser.parse_args(arguments)
    try:
        if args.download:
            download(args.src)
        convert(args.src, args.dst, args.allow_partial)
    except (ValueError, OSError) as error:
        return failure("datasets.kth.convert", error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
