"""BAIR robot pushing (Ebert et al. 2017, arXiv:1710.05268): `bair`, 64 px colour videos of 30 frames with actions.

Reads the arrays that `python -m datasets.bair.convert` makes, or the PNG folders that SVG's released code makes, which
hold no actions.

Letters: N videos, B clips of a batch, T frames of a clip.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from PIL import Image
from torch import Tensor

from datasets.base import N_CLIPS, SPLITS, ClipDataset, check_int, keyed_uniform
from datasets.files import one_line, open_array

N_FRAMES = 30  # of every published video
FRAME_SHAPE = (64, 64, 3)  # rows, columns, RGB
ACTION_SIZE, POSITION_SIZE = 4, 3
# What an array's name ends in: one video's shape and the dtype. Frames are written last, so they imply the rest.
ARRAYS = {
    "_actions": ((N_FRAMES, ACTION_SIZE), "<f4"),
    "_positions": ((N_FRAMES, POSITION_SIZE), "<f4"),
    "": ((N_FRAMES, *FRAME_SHAPE), "|u1"),
}
PNG_FOLDER = "processed_data"


def bair(
    root: str | Path | None, split: str, *, seq_len: int, image_size: int = 64, seed: int = 0, flip: bool = False
) -> "RobotClips":
    """Clips of the published videos: the first 95 % of its training videos train, the others valid; its 256 test.

    Training clip i shows video i modulo N from a random frame on, so that no two of a run's passes over the videos are
    the same. Valid and test hold each video once, from its first frame on.

    Args:
        root: folder of bair_train.npy and bair_test.npy; failing those, of processed_data/{train,test}/traj_*/*/*.png.
            SVG's conversion stretched each frame's contrast, so scores on its PNGs are not quite those on the arrays.
        seq_len: T, at most 30.
        flip: mirror half of the training clips, left to right.

    Raises:
        ValueError: a setting that cannot work.
        FileNotFoundError: data that is missing or damaged, with the command that makes it.
    """
    return RobotClips("bair", open_bair, root, split, seq_len=seq_len, image_size=image_size, seed=seed, flip=flip)


class RobotClips(ClipDataset):
    """Clips of robot videos of 30 frames, and what the robot was told and where it was at each frame.

    It pickles to a few hundred bytes: each process opens the videos itself, when it first reads one.

    Args:
        open_values: (root, train or test, a key of ARRAYS) -> (N, 30, ...); a function of a module, so that it pickles.
        mirror: reflection of actions and positions that goes with a mirrored picture, (3, 3) on their first three
            entries, and the (3,) offset that positions take; None where it is not known.
    """

    channels = 3
    action_size = ACTION_SIZE

    def __init__(
        self,
        name: str,
        open_values: Callable[[Path, str, str], "ndarray | PngVideos"],
        root: str | Path | None,
        split: str,
        *,
        seq_len: int,
        image_size: int,
        seed: int,
        flip: bool,
        mirror: tuple[ndarray, ndarray] | None = None,
    ) -> None:
        if root is None:
            raise ValueError(f"root must be the folder that holds {name}'s converted videos, got None")
        if image_size != FRAME_SHAPE[0]:
            raise ValueError(f"image_size of {name} must be {FRAME_SHAPE[0]}, got {image_size!r}")
        if flip not in (True, False):
            raise ValueError(f"flip must be True or False, got {flip!r}")
        check_int("seq_len", seq_len, 1)
        if seq_len > N_FRAMES:
            raise ValueError(f"seq_len must be <= {N_FRAMES}, the length of these videos, got {seq_len}")
        check_int("seed", seed, 0)
        self.name, self.open_values, self.root, self.split = name, open_values, Path(root), split
        self.seq_len, self.seed, self.flip, self.mirror = seq_len, seed, bool(flip), mirror
        self._opened: dict[str, ndarray | PngVideos] = {}
        n_published = len(self.videos)  # missing data is an error here, not in the first batch
        n_train = n_published * 95 // 100
        span = {"train": (0, n_train), "valid": (n_train, n_published), "test": (0, n_published)}
        self.first_video, last = span[split]
        self.n_videos = last - self.first_video
        if self.n_videos == 0:
            raise ValueError(f"{root} holds {n_published} videos to train and validate on, too few to split 95 to 5")
        self.n_clips = N_CLIPS["train"] if split == "train" else self.n_videos

    def values(self, kind: str) -> "ndarray | PngVideos":
        """(N, 30, ...) of a key of ARRAYS, for every video of the published split that this one is part of."""
        if kind not in self._opened:
            values = self.open_values(self.root, "test" if self.split == "test" else "train", kind)
            if kind and len(values) != len(self.videos):
                raise ValueError(
                    f"{self.root} holds {kind[1:]} of {len(values)} videos and frames of {len(self.videos)}, so they "
                    "do not belong together; convert them again"
                )
            self._opened[kind] = values
        return self._opened[kind]

    @property
    def videos(self) -> "ndarray | PngVideos":
        """(N, 30, 64, 64, 3) uint8."""
        return self.values("")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": {}}

    def cuts(self, indices: Sequence[int]) -> tuple[ndarray, ndarray, ndarray]:
        """Which of `videos` each clip shows, its first frame, and whether it is mirrored; (B,) each."""
        numbers = np.asarray(indices, np.int64)
        if self.split != "train":
            return self.first_video + numbers, np.zeros_like(numbers), np.zeros(len(numbers), bool)
        u = keyed_uniform((self.seed, SPLITS.index(self.split)), indices, 2)  # (2, B)
        starts = (u[0] * (N_FRAMES - self.seq_len + 1)).astype(np.int64)
        return numbers % self.n_videos, starts, self.flip & (u[1] < 0.5)

    def clips(self, indices: Sequence[int]) -> ndarray:
        clips = np.empty((len(indices), self.seq_len, 3, *FRAME_SHAPE[:2]), np.uint8)
        for clip, video, start, mirrored in zip(clips, *self.cuts(indices), strict=True):
            frames = np.asarray(self.videos[video, start : start + self.seq_len])  # (T, 64, 64, 3)
            if mirrored:
                frames = frames[:, :, ::-1]
            for c in range(3):  # 1.5 times as fast as one copy of frames.transpose(0, 3, 1, 2)
                clip[:, c] = frames[..., c]
        return clips

    def actions(self, indices: Sequence[int]) -> Tensor:
        """(B, T, 4) float32, in the units of the published files; row t is the command that leads to frame t + 1."""
        return torch.from_numpy(self._rows("_actions", self.check_indices(indices)))

    def positions(self, indices: Sequence[int]) -> Tensor:
        """(B, T, 3) float32: where the end effector is at each frame, in the units of the published files."""
        return torch.from_numpy(self._rows("_positions", self.check_indices(indices)))

    def _rows(self, kind: str, indices: Sequence[int]) -> ndarray:
        if self.flip and self.split == "train" and self.mirror is None:
            raise ValueError(
                f"flip mirrors pictures of {self.name}, and how its {kind[1:]} would mirror is not known; drop flip"
            )
        videos, starts, mirrored = self.cuts(indices)
        rows = self.values(kind)[videos[:, None], starts[:, None] + np.arange(self.seq_len)]  # (B, T, 4 or 3), a copy
        if mirrored.any():
            matrix, offset = self.mirror
            rows[mirrored, :, :3] = rows[mirrored, :, :3] @ matrix.T + (offset if kind == "_positions" else 0)
        return rows


def open_values(path: Path, kind: str, remedy: str) -> ndarray:
    """(N, 30, ...) of a key of ARRAYS; frames are not read until they are indexed. The error ends with the remedy."""
    shape, dtype = ARRAYS[kind]
    try:
        values = open_array(path, "c")  # read alone; but torch warns of memory it could not write to
        if values.shape[1:] != shape or values.dtype != np.dtype(dtype):
            expected = ", ".join(map(str, shape))
            raise ValueError(f"it is {values.shape} {values.dtype}, expected (N, {expected}) {np.dtype(dtype)}")
        if kind and not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{path} is not usable ({one_line(error)}); {remedy}") from None
    return values


def open_bair(root: Path, published: str, kind: str = "") -> "ndarray | PngVideos":
    """(N, 30, ...) of a published split, train or test, as open_values."""
    path = root / f"bair_{published}{kind}.npy"
    if not kind and not path.exists() and (root / PNG_FOLDER / published).is_dir():
        return PngVideos(root / PNG_FOLDER / published)
    remedy = (
        f"make it with `python -m datasets.bair.convert SRC {root}`, SRC being the published tar or its folder; "
        "--help says how to download it"
    )
    return open_values(path, kind, remedy)


class PngVideos:
    """SVG's folder of a split, traj_A_to_B.tfrecords or traj_A_to_B / video / frame.png, indexed as the array is."""

    def __init__(self, folder: Path) -> None:
        # In the order of the numbers in their names, which is that of the converted array.
        trajectories = sorted((path for path in folder.iterdir() if path.is_dir()), key=numbers)
        self.folders = [video for path in trajectories for video in sorted(path.iterdir(), key=numbers)]

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, key: tuple[int, slice]) -> ndarray:
        """(T, 64, 64, 3) uint8."""
        video, frames = key
        return np.stack([self.read(video, t) for t in range(N_FRAMES)[frames]])

    def read(self, video: int, t: int) -> ndarray:
        """(64, 64, 3) uint8."""
        path = self.folders[video] / f"{t}.png"
        try:
            frame = np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))
            if frame.shape != FRAME_SHAPE:
                raise ValueError(f"it is {frame.shape}, expected {FRAME_SHAPE}")
        except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow's, for a damaged PNG
            raise FileNotFoundError(f"no usable frame in {path} ({one_line(error)}); convert BAIR again") from None
        return frame


def numbers(path: Path) -> tuple[list[int], str]:
    """Sorts traj_512_to_767 before traj_1024_to_1279, and video 2 before 10."""
    return [int(digits) for digits in re.findall(r"\d+", path.name)], path.name
