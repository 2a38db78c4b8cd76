"""A table of bad inputs: each is accepted or is exit code 2 and one line, without traceback, hang or code run."""

import copy
import dataclasses
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import evaluate
import train
from datasets import load_dataset
from datasets.videos import convert as convert_videos
from datasets.videos import read_video
from seqvae.config import RunConfig
from seqvae.evaluation.config import EvalConfig
from seqvae.evaluation.prediction_file import SavedPredictions
from seqvae.presets import PRESETS
from seqvae.report.page import write_report
from seqvae.report.tables import comparison_table
from seqvae.training import checkpoint
from seqvae.training.session import build_train_state
from seqvae.training.step import train_step
from tests.data_files import write_folder
from tests.helpers import CPU, FOREIGN, GECO_FLAGS, TINY, video
from tests.results import STORED_ELSEWHERE, facts, foreign, image_facts
from tests.trial import child

Case = tuple[str, Callable[[Path], int | None]]  # name, and what is run in a folder of its own
NUMBERS = ("-1", "0", "nan", "inf", "-inf", "1e99", "9" * 30, "x", "", "1.5", "None", "[1]", "\u0663", "../..")
JSON = (None, "x", -1, 10**30, 1e400, [], {}, [[]], {"x": 1}, True, "\ud800", "\0")


def refused(act: Callable[[], object]) -> int:
    """2 where a reader raises what the commands turn into one line, 0 where it accepts."""
    try:
        act()
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        print(text)
        return 2 if len(text.splitlines()) == 1 and len(text) < 2000 else 98
    return 0


def flags() -> Iterator[Case]:
    """Every field of train.py and evaluate.py with values that are no good."""
    for group in dataclasses.fields(RunConfig):
        settings = getattr(PRESETS["demo-svg"][1], group.name)
        if dataclasses.is_dataclass(settings):
            for field in dataclasses.fields(settings):
                flag = f"--{group.name}.{field.name}".replace("_", "-")
                for value in NUMBERS:
                    command = ["demo-svg", f"{flag}={value}", "--dry-run"]
                    yield (
                        f"train.py {flag}={value}",
                        lambda folder, c=command: train.main([*c, "--run-dir", str(folder)]),
                    )
    for field in dataclasses.fields(EvalConfig):
        flag = f"--{field.name}".replace("_", "-")
        for value in NUMBERS[:8]:
            yield (
                f"evaluate.py {flag}={value}",
                lambda folder, c=f"{flag}={value}": evaluate.main([str(folder / "none"), c]),
            )


def mutations(tree: object, path: tuple = ()) -> Iterator[tuple[str, object]]:
    """(what was changed, the tree with one entry replaced or missing) for every entry."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in list(items):
        for new in JSON:
            changed = copy.copy(tree)
            changed[key] = new
            yield ".".join(map(str, (*path, key, repr(new)[:12]))), changed
        if isinstance(tree, dict):
            yield ".".join(map(str, (*path, key, "missing"))), {k: v for k, v in tree.items() if k != key}
        for what, inner in mutations(value, (*path, key)):
            changed = copy.copy(tree)
            changed[key] = inner
            yield what, changed


def json_files(home: Path) -> Iterator[Case]:
    """Every entry of every JSON that is read back, replaced by every other type."""
    run_dir, clips = home / "run", home / "videos"
    config = json.loads((run_dir / "config.json").read_text())

    def resume(folder: Path, tree: object) -> int:
        (folder / "config.json").write_text(json.dumps(tree))
        return train.main([*GECO_FLAGS, "--optim.steps", "1", "--run-dir", str(folder)])

    def report(folder: Path, tree: object) -> int:
        (folder / "metrics.json").write_text(json.dumps(tree))

        def read() -> None:
            write_report(folder / "report.html", [folder])
            comparison_table([folder])

        return refused(read)

    def index(folder: Path, tree: object) -> int:
        (folder / "videos_16_1.json").write_text(json.dumps(tree))
        (folder / "videos_16_1.npy").write_bytes((clips / ".seqvae_cache" / "videos_16_1.npy").read_bytes())
        return refused(lambda: load_dataset("video_folder", folder, "train", seq_len=4, image_size=16)[0])

    def predictions(folder: Path, tree: object) -> int:
        path = foreign(folder / "p.h5", facts=json.dumps(tree))
        return evaluate.main(["--from-predictions", str(path), "--out", str(folder / "out")])

    kept = {"source": "x", "data": "moving_mnist", "root": "x", "seed": 1, "step": 3, "sigma": 0.1, "geco": {"x": 1}}
    kept |= {"test_set": {"name": "digits"}, "protocols": {"own": {"n_samples": 3, "n_videos": 2, "bounds": {}}}}
    made = json.loads((clips / ".seqvae_cache" / "videos_16_1.json").read_text())
    for name, tree, act in (
        ("config.json", config, resume),
        ("metrics.json", facts(), report),
        ("metrics.json of images", image_facts(), report),
        ("videos_16_1.json", made, index),
        ("facts", kept, predictions),
    ):
        for what, changed in mutations(tree):
            yield f"{name}: {what}", lambda folder, act=act, changed=changed: act(folder, changed)


def checkpoints(home: Path) -> Iterator[Case]:
    """Whole files that hold something else, pickles that would run code, and no files at all."""

    def resume(folder: Path, write: Callable[[Path], object]) -> int:
        (folder / "checkpoints").mkdir()
        write(folder / "checkpoints" / "last.pt")

        def read() -> None:
            state, _ = checkpoint.load_latest(folder / "checkpoints")
            build_train_state(TINY, 1, CPU).load_state_dict(state)

        code = refused(read)
        return 97 if (folder / "run").exists() or code == 0 else code

    class Code:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __reduce__(self):
            return os.mkdir, (str(self.path),)

    def state() -> dict:
        train_state = build_train_state(TINY, 1, CPU)
        train_step(train_state, video())
        return train_state.state_dict()

    for name, change in FOREIGN.items():
        yield f"checkpoint: {name}", lambda f, c=change: resume(f, lambda p: torch.save(c(state()), p))
    writers = {
        "code": lambda p: torch.save({**state(), "model": Code(p.parents[1] / "run")}, p),
        "code, plain pickle": lambda p: p.write_bytes(pickle.dumps(Code(p.parents[1] / "run"))),
        "code, old format": lambda p: torch.save(
            {"model": Code(p.parents[1] / "run")}, p, _use_new_zipfile_serialization=False
        ),
        "a whole model": lambda p: torch.save(build_train_state(TINY, 1, CPU).model, p),
        "nothing": lambda p: p.write_bytes(b""),
        "HTML": lambda p: p.write_text("<html>"),
        "a Git LFS pointer": lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a NumPy archive": lambda p: np.savez(p.open("wb"), a=np.zeros(3)),
    }
    for name, write in writers.items():
        yield f"checkpoint: {name}", lambda f, w=write: resume(f, w)


def videos(home: Path) -> Iterator[Case]:
    """Files that are no videos, and folders with something in them that is not a file."""
    whole = next(iter((home / "videos").glob("*.gif"))).read_bytes()
    contents = {
        "nothing": b"",
        "HTML": b"<html>",
        "zeros": bytes(5000),
        "half": whole[: len(whole) // 2],
        "playlist": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        "stream": b"#EXTM3U\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        "picture": b"P6 9 9 255\n" + bytes(243),
        "script": b"#!/bin/sh\ntouch run\n",
    }
    endings = (".gif", ".png", ".apng", ".webp", ".mp4", ".avi", ".mkv", ".mov", ".webm", ".txt", "")

    def read(folder: Path, name: str, content: bytes) -> int:
        (folder / name).write_bytes(content)
        return refused(lambda: read_video(folder / name, 16))

    for name, content in contents.items():
        for ending in endings:
            if (name, ending) != ("half", ".gif"):
                yield f"video: {name}{ending}", lambda f, n=f"x{ending}", c=content: read(f, n, c)

    def odd(folder: Path, make: Callable[[Path], object]) -> int:
        for path in (home / "videos").glob("*.gif"):
            os.link(path, folder / path.name)
        make(folder / "odd.gif")
        options = {"seq_len": 4, "image_size": 16}
        return refused(lambda: load_dataset("video_folder", folder, "train", **options)[0])

    makers = {
        "pipe": os.mkfifo,
        "dangling link": lambda p: p.symlink_to("nowhere"),
        "link to itself": lambda p: p.symlink_to(p),
        "link to a device": lambda p: p.symlink_to("/dev/zero"),
        "link to the folder": lambda p: p.symlink_to(p.parent),
        "link to the folder above": lambda p: p.symlink_to(p.parent.parent),
        "folder": lambda p: p.mkdir(),
        "hard link": lambda p: os.link(next(p.parent.glob("*.gif")), p),
        "name with a newline": lambda p: (p.parent / "a\nb.gif").write_bytes(b""),
        "name that is not UTF-8": lambda p: open(os.fsencode(p.parent) + b"/\xff.gif", "wb").close(),
        "name with a colon": lambda p: (p.parent / "http:x.mp4").write_bytes(b""),
        "cache that is a file": lambda p: (p.parent / ".seqvae_cache").write_bytes(b""),
    }
    for name, make in makers.items():
        yield f"folder of videos: {name}", lambda f, m=make: odd(f, m)
    for name in ("videos_16_1.npy", "videos_16_1.json"):
        for what, content in contents.items():

            def cache(folder: Path, name: str = name, content: bytes = content) -> int:
                for path in (home / "videos" / ".seqvae_cache").glob("videos*"):
                    (folder / path.name).write_bytes(path.read_bytes())
                (folder / name).write_bytes(content)
                return refused(lambda: load_dataset("video_folder", folder, "train", seq_len=4, image_size=16)[0])

            yield f"{name}: {what}", cache


def predictions(home: Path) -> Iterator[Case]:
    """Datasets that lie elsewhere, and shapes, types and attributes that do not fit."""
    import h5py

    def read(folder: Path, write: Callable[[h5py.File, Path], object]) -> int:
        path = foreign(folder / "p.h5", truth=None)
        with h5py.File(path, "r+") as file:
            write(file, folder)
        return refused(lambda: SavedPredictions(path, CPU).truth(range(1)))

    for name, (write, _) in STORED_ELSEWHERE.items():
        yield f"predictions: {name}", lambda f, w=write: read(f, w)
    values = {"n_past": NUMBERS, "version": NUMBERS, "format": NUMBERS, "sigma": NUMBERS}
    arrays = [np.zeros(0), np.zeros(3), np.array(["x"], "S"), np.full(2, np.nan), -1, 10**18, 0.0, np.inf, b"\xff"]
    for name in values:
        for i, value in enumerate([*values[name], *arrays]):

            def attribute(folder: Path, name: str = name, value: object = value) -> int:
                path = foreign(folder / "p.h5", **{name: None})
                with h5py.File(path, "r+") as file:
                    file.attrs[name] = value
                return refused(lambda: SavedPredictions(path, CPU))

            yield f"predictions: {name} {i}", attribute
    for name in ("truth", "samples", "posterior", "mean_image", "sigma", "posterior_sigma"):
        for shape in ((), (0,), (1,), (2, 5, 1, 32, 32), (2, 3, 3, 1, 32, 32), (1, 1, 1, 1, 1), (2, 3, 3, 1, 1, 1)):
            for kind in (np.uint8, np.float16, np.float32, np.int64, "S3"):
                array = np.zeros(shape, kind)

                def dataset(folder: Path, name: str = name, array: np.ndarray = array) -> int:
                    path = foreign(folder / "p.h5", **{name: None})
                    with h5py.File(path, "r+") as file:
                        file[name] = array
                    return refused(lambda: SavedPredictions(path, CPU).truth(range(1)))

                yield f"predictions: {name} {shape} {array.dtype}", dataset


def prepare(home: Path) -> None:
    """A run, its videos and their index, for the cases to start from."""

    train.main([*GECO_FLAGS, "--optim.steps", "1", "--run-dir", str(home / "run")])
    convert_videos.find_index(write_folder(home / "videos"), 16, 1)


GROUPS = {
    "flags": lambda home: flags(),
    "JSON": json_files,
    "checkpoints": checkpoints,
    "videos": videos,
    "predictions": predictions,
}


def trial(n_cases: int, seed: int, folder: Path) -> Iterator[tuple[str, str | None]]:
    """For n_cases of the table, as many of each group as there are, the group and what went wrong."""
    home, rng = folder / "home", random.Random(seed)
    home.mkdir()
    made = child.run(lambda: prepare(home))
    assert made.code == 0, made.text
    tables = {name: list(make(home)) for name, make in GROUPS.items()}
    for cases in tables.values():
        rng.shuffle(cases)
    number = 0
    while number < n_cases and any(tables.values()):
        for group, cases in tables.items():
            if not cases or number >= n_cases:
                continue
            name, act = cases.pop()
            number += 1
            place = folder / str(number)
            place.mkdir()
            outcome = child.run(lambda act=act, place=place: act(place))
            fault = outcome.fault
            if fault is None and outcome.code not in (0, 2):
                fault = f"exit code {outcome.code}"
            yield group, fault and f"{name}: {fault}: {outcome.text[-600:]}"
