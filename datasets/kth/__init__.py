"""KTH's human actions (Schuldt et al. 2004): `kth`, grey videos of 25 people who box, clap, wave, jog, run and walk.

Reads the arrays that `python -m datasets.kth.convert` makes. Sizes, people and test clips are SRVP's (Franceschi et al.
2020, arXiv:2002.09219), whose published numbers rest on them.

Letters: N videos, B clips of a batch, T frames of a clip.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy import ndarray
from numpy.random import RandomState
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from datasets.base import N_CLIPS, SPLITS, ClipDataset, check_int, keyed_uniform
from datasets.files import one_line, open_array, read_json

ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
N_TRIALS = 4  # videos of a person's action
# SRVP trains on 20 people and tests on the last five; we validate on the twentieth, a twentieth of the training videos.
PEOPLE = {"train": range(1, 20), "valid": range(20, 21), "test": range(21, 26)}
IMAGE_SIZE = 64
N_TEST_CLIPS, TEST_FRAMES = 1000, 40  # of SRVP's test set


class Video(TypedDict):
    name: str  # person01_boxing_d1
    frames: Annotated[int, Field(ge=1, lt=2**40)]


class Index(TypedDict):
    """What kth.json holds: each split's videos in the order of its array, and the arrays' SHA-256."""

    videos: dict[str, list[Video]]
    sha256: dict[str, str]


INDEX = TypeAdapter(Index)


def video_name(person: int, action: str, trial: int) -> str:
    """As the published files are named."""
    return f"person{person:02d}_{action}_d{trial}"


class KthClips(ClipDataset):
    """Training clips start anywhere in a video that is long enough, valid ones at its start, test ones as in SRVP.

    It pickles to a few hundred bytes: each process opens the videos itself, when it first reads one.
    """

    def __init__(self, root: Path, split: str, *, seq_len: int, seed: int) -> None:
        self.root, self.split, self.seq_len, self.seed = root, split, seq_len, seed
        _, firsts, _ = self.table()  # missing data is an error here, not in the first batch
        self.n_clips = N_CLIPS["train"] if split == "train" else len(firsts)

    def table(self) -> tuple[ndarray, ndarray, ndarray]:
        """The split's frames (all, 64, 64); where its videos or test clips begin (N,); numbers of starts there (N,)."""
        return _open(self.root, self.split, self.seq_len)

    def clips(self, indices: Sequence[int]) -> ndarray:
        frames, firsts, n_starts = self.table()
        numbers = np.asarray(indices, np.int64)
        starts = firsts[numbers % len(firsts)]
        if self.split == "train":
            u = keyed_uniform((self.seed, SPLITS.index(self.split)), indices, 2)  # (2, B)
            videos = (u[0] * len(firsts)).astype(np.int64)
            starts = firsts[videos] + (u[1] * n_starts[videos]).astype(np.int64)
        return np.stack([frames[start : start + self.seq_len] for start in starts])[:, :, None]  # (B, T, 1, 64, 64)


def kth(root: str | Path | None, split: str, *, seq_len: int, image_size: int = IMAGE_SIZE, seed: int = 0) -> KthClips:
    """Clips of people 1 to 19 to train on, 20 to validate on, and SRVP's 1000 clips of people 21 to 25 to test on.

    A training clip is drawn as SRVP draws it: a video, then where it starts. Nothing else is random.

    Args:
        root: folder of kth_train.npy, kth_valid.npy, kth_test.npy and kth.json.
        seq_len: T, at most 40 in the test split.
        seed: of the clips drawn in training.

    Raises:
        ValueError: a setting that cannot work.
        FileNotFoundError: data that is missing or damaged, with the command that makes it.
    """
    if root is None:
        raise ValueError("root must be the folder that holds KTH's converted videos, got None")
    if image_size != IMAGE_SIZE:
        raise ValueError(f"image_size of kth must be {IMAGE_SIZE}, got {image_size!r}")
    check_int("seq_len", seq_len, 1)
    check_int("seed", seed, 0)
    if split == "test" and seq_len > TEST_FRAMES:
        raise ValueError(f"seq_len must be <= {TEST_FRAMES}, the length of the test clips, got {seq_len}")
    return KthClips(Path(root), split, seq_len=seq_len, seed=seed)


@functools.cache
def _open(root: Path, split: str, seq_len: int) -> tuple[ndarray, ndarray, ndarray]:
    path, index = root / f"kth_{split}.npy", root / "kth.json"
    remedy = f"make it with `python -m datasets.kth.convert SRC {root}`, SRC being the folder of the published archives"
    try:
        if not index.is_file():
            raise FileNotFoundError(f"{index} is missing")
        videos = read_json(index, INDEX, "convert again")["videos"].get(split, [])
        lengths = np.array([video["frames"] for video in videos], np.int64)
        frames = open_array(path, "c")  # read alone; but torch warns of memory it could not write to
        expected = (lengths.sum(), IMAGE_SIZE, IMAGE_SIZE)
        if frames.shape != expected or frames.dtype != np.uint8:
            raise ValueError(f"it is {frames.shape} {frames.dtype}, and {index.name} says {expected} uint8")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no usable KTH in {path} ({one_line(error)}); {remedy}") from None
    begins = np.cumsum(lengths) - lengths
    if split == "test":
        return frames, _test_starts({video["name"]: (b, video["frames"]) for video, b in zip(videos, begins)}), lengths
    usable = lengths >= seq_len
    if not usable.any():
        longest = lengths.max(initial=0)
        raise ValueError(f"no {split} video of {root} has seq_len = {seq_len} frames, the longest has {longest}")
    return frames, begins[usable], (lengths - seq_len + 1)[usable]


def _test_starts(videos: dict[str, tuple[int, int]]) -> ndarray:
    """(1000,) first frames of SRVP's test clips, drawn from one sequential stream as the original does.

    Args:
        videos: name -> where it begins among the frames, and its length.
    """
    rng, starts = RandomState(42), []
    for _ in range(N_TEST_CLIPS):
        action = ACTIONS[rng.randint(len(ACTIONS))]
        person = rng.randint(PEOPLE["test"].start, PEOPLE["test"].stop)
        name = video_name(person, action, rng.randint(1, N_TRIALS + 1))
        begin, length = videos.get(name, (0, 0))
        if length < TEST_FRAMES:
            raise ValueError(
                f"the test set needs {TEST_FRAMES} frames of {name}, and there are {length}; convert the published "
                "archives of all six actions"
            )
        starts.append(begin + rng.randint(length - TEST_FRAMES + 1))
    return np.array(starts)
