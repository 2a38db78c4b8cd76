"""A person's own videos: `video_folder` trains on a folder of them, and `read_video` reads one.

    python -m datasets.videos.convert SRC DST    converts a folder ahead of training, see there

Letters: T frames, S image size (H = W), B clips of a batch.
"""

import functools
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy import ndarray
from PIL import Image, ImageOps

from datasets.base import N_CLIPS, SPLITS, ClipDataset, check_int
from datasets.files import one_line, open_array

if TYPE_CHECKING:
    import av

ANIMATIONS = (".gif", ".png", ".apng", ".webp")  # Pillow reads these
MOVIES = (".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv")  # PyAV reads these, the extra `mp4`
FRAMES = (".png", ".jpg", ".jpeg")


def read_video(path: str | Path, image_size: int, stride: int = 1, max_frames: int | None = None) -> ndarray:
    """Every stride-th frame of a video, from the first one on, as a model sees it.

    A frame's transparent parts turn black, its largest centred square is cut out and resized with Pillow's bilinear
    filter, which averages over the pixels it shrinks; a square of image_size is kept as it is. Frames come one by one
    as they are stored, whatever time each is shown for.

    Args:
        path: a GIF, APNG or WebP animation; with the extra `mp4` a movie; or a folder of .png and .jpg frames, taken in
            natural order: frame_2 before frame_10.
        image_size: S, px.
        stride: 2 takes every second frame.
        max_frames: stop after so many; the rest of the file is not decoded.

    Returns:
        (T, S, S, 3) uint8; a grey video's three channels are equal.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no video, a damaged one, or a movie without the extra. A movie that is merely cut off at its end is
            no error where its container allows that, but a shorter video.
    """
    check_int("image_size", image_size, 1)
    check_int("stride", stride, 1)
    path = Path(path)
    pictures = pictures_of(path)
    stop = None if max_frames is None else stride * (max_frames - 1) + 1
    try:
        frames = [fit(picture, image_size) for picture in itertools.islice(pictures, 0, stop, stride)]
    except Exception as error:  # damaged data makes decoders raise anything, from SyntaxError to MemoryError
        raise ValueError(f"{path} cannot be read ({one_line(error)})") from None
    if not frames:
        raise ValueError(f"{path} has no frame that can be read")
    return np.stack(frames)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a video's first frame, px, before it is cropped; of one that `read_video` has read."""
    return next(pictures_of(path)).size


def pictures_of(path: Path) -> Iterator[Image.Image]:
    """Frames of a video or a folder as they are stored; raises as `read_video` where it cannot be one."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a video or a folder of frames")
    if path.is_dir():
        return stills(path)
    if not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path} is not a regular file")
    if path.suffix.lower() in MOVIES:
        require_pyav(path)
        return movie(path)
    if path.suffix.lower() in ANIMATIONS:
        return animation(path)
    raise ValueError(f"{path} is not a kind of video that can be read, expected {', '.join(ANIMATIONS + MOVIES)}")


def require_pyav(path: Path) -> None:
    """ValueError that names the extra where PyAV is missing."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise ValueError(f'{path} needs PyAV; install it with `pip install -e ".[mp4]"`, or make it a GIF') from None


def movie(path: Path) -> Iterator[Image.Image]:
    """Frames of a movie file, turned upright; ValueError for a damaged one."""
    with path.open("rb") as file:
        for frame in decoded(file):
            # Phones store upright pictures lying down, and the angle to turn them by, counter-clockwise (new in PyAV).
            yield frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True)


def decoded(file: BinaryIO) -> "Iterator[av.VideoFrame]":
    """Frames of a movie as PyAV has them; ValueError at the first that is damaged."""
    import av  # not imageio's plugin, which says nothing of damage or of the way the camera was held

    # FFmpeg goes by a file's content, and a playlist named .mp4 would make it read other files, or the network.
    options = {"format_whitelist": "mov,avi,matroska", "protocol_whitelist": ""}
    with av.open(file, options=options) as container:
        if not container.streams.video:
            raise ValueError("it has no picture track")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise ValueError(f"frame {number} is damaged")
            yield frame


def animation(path: Path) -> Iterator[Image.Image]:
    """Frames of a GIF, APNG or WebP."""
    with Image.open(path, formats=["GIF", "PNG", "WEBP"]) as image:
        # An APNG may begin with a picture that is not part of it, for viewers that show stills alone.
        for number in range(int(bool(image.info.get("default_image"))), image.n_frames):
            image.seek(number)
            yield image


def stills(folder: Path) -> Iterator[Image.Image]:
    """Pictures of a folder in natural order; ValueError names the one that cannot be read."""
    for path in sorted(frame_files(folder), key=lambda path: natural_order(path.name)):
        try:
            if not path.is_file():
                raise ValueError("it is not a regular file")
            with Image.open(path, formats=["PNG", "JPEG"]) as image:
                if image.format == "PNG" and image.n_frames > 1:
                    raise ValueError("it is an animation among frames; name it .apng, in another folder")
                yield ImageOps.exif_transpose(image)
        except Exception as error:
            raise ValueError(f"{path.name}: {one_line(error)}") from None


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder, unsorted by number."""
    return [path for path in visible(folder) if path.suffix.lower() in FRAMES and not path.is_dir()]


def visible(folder: Path) -> list[Path]:
    """Entries by name; hidden ones are caches, and the ._ files of macOS."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts frame_2 before frame_10."""
    parts: list[str | int] = list(re.split("([0-9]+)", name))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def fit(picture: Image.Image, size: int) -> ndarray:
    """(S, S, 3) uint8, the centre of a picture; of an odd margin the larger half is cut at the right and the bottom."""
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


class VideoClips(ClipDataset):
    """Clips of the videos of a split that have seq_len frames: drawn from all of them in training, else their starts.

    A training clip is a window drawn uniformly out of every window of every video, so a long video gives more of them.
    It pickles to a few hundred bytes: frames are in the process's own memory map, opened when the first clip is made.

    Args:
        index: the .json file of a conversion.
    """

    channels = 3

    def __init__(self, index: Path, split: str, *, seq_len: int, seed: int) -> None:
        from datasets.videos.convert import read_index

        self.index, self.split, self.seq_len, self.seed = index, split, seq_len, seed
        self.fingerprint = read_index(index)["fingerprint"]
        n_usable = len(self.table()[1])
        self.n_clips = N_CLIPS["train"] if split == "train" else n_usable

    def table(self) -> tuple[np.memmap, ndarray, ndarray]:
        """Frames (all, S, S, 3), first frame of each video that is long enough (N,), running total of windows (N,)."""
        return _open(self.index, self.fingerprint, self.split, self.seq_len)

    def clips(self, indices: Sequence[int]) -> ndarray:
        frames, firsts, windows = self.table()
        size = frames.shape[1]
        clips = np.empty((len(indices), self.seq_len, 3, size, size), np.uint8)
        for clip, index in zip(clips, indices, strict=True):
            start = firsts[index] if self.split != "train" else self.draw(index, firsts, windows)
            clip[:] = frames[start : start + self.seq_len].transpose(0, 3, 1, 2)  # (T, 3, S, S)
        return clips

    def draw(self, index: int, firsts: ndarray, windows: ndarray) -> int:
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        window = rng.integers(windows[-1])
        video = np.searchsorted(windows, window, side="right")
        return int(firsts[video] + windows[video] - 1 - window)  # windows of a video counted from its end


def video_folder(
    root: str | Path | None, split: str, *, seq_len: int, image_size: int = 64, seed: int = 0, stride: int = 1
) -> VideoClips:
    """Own videos, (T, 3, S, S): 2**24 training clips drawn at random; valid and test take each video's first frames.

    Args:
        root: a folder of videos (see read_video) and of folders of videos or frames, converted on first use into
            root/.seqvae_cache and again when a file changes; or a folder that `python -m datasets.videos.convert` made.
            Each video is in one split, by its name; convert.split_videos says how.
        seq_len: T. Videos that are shorter are left out, and counted on stderr.
        seed: of the clips drawn in training.
        stride: 2 takes every second frame of a video.
    """
    for name, value, lowest in (("seq_len", seq_len, 1), ("image_size", image_size, 1), ("stride", stride, 1)):
        check_int(name, value, lowest)
    check_int("seed", seed, 0)
    if root is None:
        raise ValueError("root must be the folder that holds your videos, got None")
    from datasets.videos.convert import find_index  # not at the top: it imports this file

    return VideoClips(find_index(Path(root), image_size, stride), split, seq_len=seq_len, seed=seed)


@functools.cache
def _open(index: Path, fingerprint: str, split: str, seq_len: int) -> tuple[np.memmap, ndarray, ndarray]:
    from datasets.videos.convert import array_path, read_index

    facts, array = read_index(index), array_path(index)
    if facts["fingerprint"] != fingerprint:
        raise ValueError(f"{array} was made anew while it was in use; start again")
    lengths = np.array([video["frames"] for video in facts["videos"]])
    mine = np.array([video["split"] == split for video in facts["videos"]])
    usable = mine & (lengths >= seq_len)
    if not usable.any():
        raise ValueError(too_short(facts, index, split, seq_len, lengths, mine))
    if n_short := (mine & ~usable).sum():
        note = f"{n_short} of {mine.sum()} {split} videos have fewer than {seq_len} frames and are left out"
        print(f"{facts['source']}: {note}", file=sys.stderr)
    try:
        frames = open_array(array, "r")
        if frames.shape != (lengths.sum(), facts["image_size"], facts["image_size"], 3) or frames.dtype != np.uint8:
            raise ValueError(f"{frames.shape} {frames.dtype} is not what {index.name} says")
    except (OSError, ValueError) as error:
        raise ValueError(f"{array} is damaged ({one_line(error)}); delete {index} and convert again") from None
    return frames, (np.cumsum(lengths) - lengths)[usable], np.cumsum(lengths[usable] - seq_len + 1)


def too_short(facts: dict, index: Path, split: str, seq_len: int, lengths: ndarray, mine: ndarray) -> str:
    """The message when no video of a split is long enough."""
    from datasets.videos.convert import CACHE

    remedy = "ask for fewer frames or a smaller stride, or add longer videos"
    if (lengths >= seq_len).sum() >= len(SPLITS):
        dst = index.parent if index.parent.name != CACHE else "DST"
        remedy += (
            f"; or share out the long ones alone with `python -m datasets.videos.convert {facts['source']} {dst} "
            f"--image-size {facts['image_size']} --stride {facts['stride']} --min-frames {seq_len}`"
        )
    return (
        f"no {split} video in {facts['source']} has seq_len = {seq_len} frames at stride {facts['stride']}: the "
        f"longest of the {split} split has {lengths[mine].max()}, of all {lengths.max()}; {remedy}"
    )
