"""Mutated files for every reader, for a stated time: an error is one line of a kind that the commands know."""

import json
import os
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import load_dataset
from datasets.bair import convert as convert_bair
from datasets.images import jpeg_images
from datasets.videos import read_video
from datasets.videos.convert import find_index
from seqvae.config import read_config, to_json
from seqvae.evaluation.prediction_file import SavedPredictions, writing
from seqvae.evaluation.predictions import BadPredictions
from seqvae.report.page import write_report
from seqvae.report.tables import comparison_table
from seqvae.training import checkpoint
from seqvae.training.logger import read_metrics
from seqvae.training.session import build_train_state
from seqvae.training.step import train_step
from tests.data_files import (
    make_bair,
    movie,
    smooth_movie,
    write_animated,
    write_bair_records,
    write_folder,
    write_jpeg_copy,
    write_movie,
)
from tests.helpers import CPU, TINY, video
from tests.results import Made, facts, scored
from tests.trial import child

AT_ONCE = 40  # files that one child reads
Reader = Callable[[Path], object]  # reads all of a file


def everything(path: Path) -> None:
    saved = SavedPredictions(path, CPU)
    videos = range(saved.n_videos)
    saved.truth(videos)
    saved.futures(videos, range(saved.n_samples))
    saved.posterior(videos)


def report_of(path: Path) -> None:
    write_report(path.parent / "report.html", [path.parent])
    comparison_table([path.parent])


def records_of(path: Path) -> None:
    with path.open("rb") as file:
        for record in convert_bair.read_records(file, path.stat().st_size, path.name):
            convert_bair.read_video(record, "aux1", path.name)


def find_records(path: Path) -> None:
    for file in convert_bair.find_files(path):
        file.identity()


def seeds(folder: Path) -> dict[str, Reader]:
    """Writes a whole file of each kind into the folder; returns the readers by name."""
    train_state = build_train_state(TINY, 1, CPU)
    train_step(train_state, video())
    checkpoint.save(folder, train_state.state_dict(), best=False)
    (folder / "config.json").write_text(json.dumps({"config": to_json(TINY)}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.5, "x": [1, null]}\n' * 5)
    (folder / "metrics.json").write_text(json.dumps(facts()))
    made = Made("image")
    with writing(folder / "p.h5", made, {"source": "trial"}) as writer:
        scored(made, writer=writer)
    write_animated(folder / "a.gif", movie(5))
    write_animated(folder / "a.webp", movie(5), lossless=True)
    write_animated(folder / "a.apng", movie(5), format="PNG")
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")):
        write_movie(folder / name, smooth_movie(5, 32, 32), codec)
    find_index(write_folder(folder / "videos"), 16, 1)
    for path in (folder / "videos" / ".seqvae_cache").glob("videos*"):
        path.rename(folder / path.name)
    shutil.rmtree(folder / "videos")
    write_bair_records(folder / "softmotion30_44k" / "train" / "traj_0_to_0.tfrecords", make_bair(1, 0))
    with tarfile.open(folder / "bair.tar", "w") as tar:
        tar.add(folder / "softmotion30_44k", "softmotion30_44k")
    (folder / "softmotion30_44k" / "train" / "traj_0_to_0.tfrecords").rename(folder / "traj_0_to_0.tfrecords")
    shutil.rmtree(folder / "softmotion30_44k")
    write_jpeg_copy(folder, 6, 4)

    def own_videos(path: Path) -> None:
        load_dataset("video_folder", path.parent, "train", seq_len=4, image_size=16)[0]

    readers: dict[str, Reader] = {
        "last.pt": lambda path: build_train_state(TINY, 1, CPU).load_state_dict(checkpoint.load(path)),
        "config.json": lambda path: read_config(path.parent),
        "metrics.jsonl": read_metrics,
        "metrics.json": report_of,
        "p.h5": everything,
        "videos_16_1.json": own_videos,
        "videos_16_1.npy": own_videos,
        "traj_0_to_0.tfrecords": records_of,
        "bair.tar": find_records,
        "cifar10_jpeg.npz": lambda path: jpeg_images(path.parent, "train"),
    }
    return readers | {path.name: lambda path: read_video(path, 16) for path in folder.glob("a.*")}


def mutate(content: bytes, rng: random.Random) -> bytes:
    """A few changes of the kinds that disks, networks and people make."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 32, 512))
        part = bytes(data[at : at + length])
        match rng.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + length] = rng.randbytes(len(part))
            case 2:
                data[at : at + length] = rng.choice((b"\0", b"\xff", b"9", b"-", b"[", b'"')) * len(part)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = part * rng.choice((1, 2, 50))
            case 5 if len(data) > 1:
                del data[rng.randrange(1, len(data)) :]
            case 6:
                other = rng.randrange(len(data) + 1)
                data[at : at + length] = data[other : other + length]
            case 7:
                data += rng.randbytes(length)
    return bytes(data)


def read_all(reader: Reader, paths: list[Path]) -> int:
    """97 if an error is not one that the commands turn into one line; the name of the file is printed first."""
    for path in paths:
        print("file", path)
        try:
            reader(path)
        except (ValueError, OSError, BadPredictions) as error:
            if len(str(error).splitlines()) > 1:
                print("more than one line:", error)
                return 97
    return 0


def trial(seconds: float, seed: int, folder: Path) -> Iterator[tuple[str, int, str | None]]:
    """For one batch of mutated files after the other: the kind, how many were read, and what went wrong."""
    rng, source = random.Random(seed), folder / "seeds"
    source.mkdir()
    readers, end = seeds(source), time.monotonic() + seconds
    while time.monotonic() < end:
        for name, reader in readers.items():
            if time.monotonic() >= end:
                return
            place = folder / "now"
            shutil.rmtree(place, ignore_errors=True)
            content, paths = (source / name).read_bytes(), []
            for i in range(AT_ONCE):
                paths.append(place / str(i) / name)
                paths[-1].parent.mkdir(parents=True)
                for beside in source.glob("videos_16_1.*" if name.startswith("videos") else "nothing"):
                    os.link(beside, paths[-1].parent / beside.name)
                paths[-1].unlink(missing_ok=True)
                paths[-1].write_bytes(mutate(content, rng))
            outcome = child.run(lambda reader=reader, paths=paths: read_all(reader, paths))
            fault = outcome.fault or (f"exit code {outcome.code}" if outcome.code else None)
            if fault is not None:  # kept, to be looked at
                last = Path(outcome.text.rsplit("file ", 1)[-1].split("\n")[0])
                kept = folder / f"found_{rng.randrange(10**9)}_{name}"
                shutil.copy(last, kept)
                fault = f"{name}: {fault}: {kept}: {outcome.text[-600:]}"
            yield name, AT_ONCE, fault
