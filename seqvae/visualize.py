"""Arrays to pictures: animations for a README or a talk, film strips for a paper. Knows no model.

Frames: (T, C, H, W) with C 1 or 3, uint8 or floating point in [0, 1] (values outside are clipped).
Time:   t counts from 0; frames t < n_past condition the model (green), later ones are predicted (red).
Files are whole or absent: written under a temporary name in their folder, then renamed.
"""

import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAST, FUTURE, NEUTRAL = "#2fbf71", "#f0524f", "#727b8a"  # conditioning, predicting, merely shown
HOLD_MS = 1000  # added to the last frame of an animation
MARGIN, GAP, BORDER = 18, 12, 4  # px
SMALLEST_FONT = 11  # px


class Theme(NamedTuple):
    background: str
    text: str
    faint: str


DARK = Theme("#15181e", "#eef0f4", "#333945")
LIGHT = Theme("#ffffff", "#1c2027", "#e3e6eb")


class Panel(NamedTuple):
    """One column of an animation or one row of a strip."""

    label: str
    frames: np.ndarray  # (T, C, H, W)
    predicting: bool = True  # False: shown as it is from n_past on (the truth), with a grey border


def write_animation(
    path: Path, panels: Sequence[Panel], n_past: int, *, fps: float = 8, scale: int | None = None
) -> None:
    """One video: labelled panels side by side. See `write_animation_grid`."""
    write_animation_grid(path, [panels], n_past, fps=fps, scale=scale)


def write_animation_grid(
    path: Path, rows: Sequence[Sequence[Panel]], n_past: int, *, fps: float = 8, scale: int | None = None
) -> None:
    """Several videos (rows) by panels (columns) in one picture that moves and holds its last frame a second longer.

    Args:
        path: its ending is the format. .gif: 256 colours, loops, shown everywhere. .apng or .png: every colour exact,
            loops, shown by browsers. .mp4: H.264 with halved colour resolution, smallest; needs the extra `mp4`.
        rows: every row has the labels of the first, all panels one T, H, W.
        n_past: number of conditioning frames, 0..T.
        fps: frames per second, at most 50. GIF stores 1/100 s, so 8 plays at 8.3; APNG 1/1000 s.
        scale: pixels per pixel, nearest neighbour; None: the smallest that makes a panel 128 px wide.

    Raises:
        ValueError: another ending, .mp4 without PyAV, no panels, frames that do not agree, a bad n_past, fps or scale.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".gif", ".apng", ".png", ".mp4"):
        raise ValueError(f"{path} ends in {ending!r}; an animation ends in .gif, .apng (or .png) or .mp4")
    if ending == ".mp4":
        _require_pyav(path)
    if not 0 < fps <= 50:
        raise ValueError(f"fps must be in (0, 50], browsers play faster GIFs slowly; got {fps}")
    videos = _rgb_videos([panel for row in rows for panel in row], n_past)  # (R * K, T, H, W, 3)
    pictures = _compose(rows, videos, n_past, _scale(scale, videos, at_least=128))
    if ending == ".gif":
        content = _encode_gif(pictures, fps, _palette(videos))
    else:
        content = _encode_mp4(pictures, fps) if ending == ".mp4" else _encode_apng(pictures, fps)
    with whole_file(path) as partial:
        partial.write_bytes(content)


def _compose(rows: Sequence[Sequence[Panel]], videos: np.ndarray, n_past: int, scale: int) -> np.ndarray:
    """(T, height, width, 3) uint8: labels above the columns, rows of framed panels, the timeline below.

    Args:
        videos: (R * K, T, H, W, 3) uint8, the frames of the panels row by row.
    """
    labels = [panel.label for panel in rows[0]]
    if any([panel.label for panel in row] != labels for row in rows):
        raise ValueError(f"every row must have the labels of the first, {labels}")
    n_frames, height, width = (videos.shape[1], *(scale * size for size in videos.shape[2:4]))
    cell_w, cell_h = width + 2 * BORDER, height + 2 * BORDER
    column = max(cell_w, min(96, _longest_word(labels)))  # px; a longer word is cut rather than pushing panels apart
    font, lines = _fit(labels, column, max_lines=2)
    line_h = round(1.3 * font.size)
    top = MARGIN + max(map(len, lines)) * line_h + 8
    bar = top + len(rows) * (cell_h + GAP) + 2
    content = len(labels) * (column + GAP) - GAP
    size = (max(content, 140) + 2 * MARGIN, bar + 4 + 10 + 18 + MARGIN - 6)  # 140 px: the two texts below the bar
    left = [(size[0] - content) // 2 + k * (column + GAP) for k in range(len(labels))]

    base = Image.new("RGB", size, DARK.background)
    draw = ImageDraw.Draw(base)
    for x, wrapped in zip(left, lines, strict=True):
        for i, line in enumerate(reversed(wrapped)):  # labels stand on one common baseline
            draw.text((x + column / 2, top - 10 - i * line_h), line, DARK.text, font, anchor="ms")
    small = ImageFont.load_default(size=14)
    pictures = np.empty((n_frames, size[1], size[0], 3), np.uint8)
    for t in range(n_frames):
        image = base.copy()
        draw = ImageDraw.Draw(image)
        for i, panel in enumerate(panel for row in rows for panel in row):
            x, y = left[i % len(labels)] + (column - cell_w) // 2, top + i // len(labels) * (cell_h + GAP)
            draw.rectangle((x, y, x + cell_w - 1, y + cell_h - 1), _border(panel, t, n_past))
            image.paste(_enlarge(videos[i, t], scale), (x + BORDER, y + BORDER))
        _draw_timeline(draw, (MARGIN, bar, size[0] - MARGIN), t, n_frames, n_past)
        state, colour = ("conditioning", PAST) if t < n_past else ("predicting", FUTURE)
        draw.text((MARGIN, bar + 28), f"t = {t}", DARK.text, small, anchor="ls")
        draw.text((size[0] - MARGIN, bar + 28), state, colour, small, anchor="rs")
        pictures[t] = np.asarray(image)
    return pictures


# Encoders return bytes: where the disk is full, imageio's own files fail a second time when they are closed.


def _encode_gif(pictures: np.ndarray, fps: float, palette: Image.Image) -> bytes:
    # With Pillow itself: imageio drops the palette of each image, and Pillow then takes 50 ms a frame to restore it.
    images = (Image.fromarray(picture) for picture in pictures)
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    options = dict(palette=bytes(palette.getpalette()), optimize=True, loop=0, save_all=True, append_images=rest)
    file = io.BytesIO()
    first.save(file, "GIF", duration=_durations(len(pictures), 10 * round(100 / fps)), **options)
    return file.getvalue()


def _encode_apng(pictures: np.ndarray, fps: float) -> bytes:
    duration = _durations(len(pictures), round(1000 / fps))
    options = dict(plugin="pillow", is_batch=True, format="PNG", duration=duration, loop=0)
    return iio.imwrite("<bytes>", pictures, extension=".png", **options)


def _encode_mp4(pictures: np.ndarray, fps: float) -> bytes:
    """Holds the last frame by repeating it, and pads to even sizes.

    yuv420p, the one pixel format that every player shows, halves the resolution of colour.
    """
    hold = max(1, round(fps * HOLD_MS / 1000))
    height, width = pictures.shape[1:3]
    even = np.empty((len(pictures) + hold, height + height % 2, width + width % 2, 3), np.uint8)
    even[:] = _hex(DARK.background)
    even[: len(pictures), :height, :width] = pictures
    even[len(pictures) :, :height, :width] = pictures[-1]
    options = dict(plugin="pyav", codec="libx264", fps=fps, out_pixel_format="yuv420p")
    return iio.imwrite("<bytes>", even, extension=".mp4", **options)


def _require_pyav(path: Path) -> None:
    try:
        import av  # noqa: F401
    except ImportError:
        message = f'{path} needs PyAV; install it with `pip install -e ".[mp4]"`, or name it .gif or .apng'
        raise ValueError(message) from None


def _durations(n_frames: int, delay: int) -> list[int]:
    """Milliseconds of each frame."""
    return [delay] * (n_frames - 1) + [delay + HOLD_MS]


def write_strip(path: Path, rows: Sequence[Panel], n_past: int, every: int = 1, *, scale: int | None = None) -> None:
    """PNG film strip: one row per panel, time from left to right, every `every`-th frame from t = 0.

    Args:
        path: ends in .png.
        rows: panels of one T, H, W.
        n_past: number of conditioning frames, 0..T.
        scale: pixels per pixel, nearest neighbour; None: the smallest that makes a frame 64 px wide.

    Raises:
        ValueError: as write_animation_grid, or every < 1.
    """
    if every < 1:
        raise ValueError(f"every must be >= 1, got {every}")
    videos = _rgb_videos(rows, n_past)[:, ::every]  # (R, shown, H, W, 3)
    scale = _scale(scale, videos, at_least=64)
    height, width = (scale * size for size in videos.shape[2:4])
    border, gap = 2, 4
    cell_w, cell_h = width + 2 * border, height + 2 * border
    font, lines = _fit([panel.label for panel in rows], 120, max_lines=max(1, cell_h // 18))
    steps = ImageFont.load_default(size=13)
    line_h = round(1.25 * font.size)
    left = MARGIN + round(max(font.getlength(line) for wrapped in lines for line in wrapped)) + GAP
    row_h = max(cell_h, line_h * max(map(len, lines))) + gap
    top = MARGIN + 16
    size = (left + videos.shape[1] * (cell_w + gap) - gap + MARGIN, top + len(rows) * row_h - gap + MARGIN)

    image = Image.new("RGB", size, LIGHT.background)
    draw = ImageDraw.Draw(image)
    first = "t = 0" if n_past else "0"  # nothing seen: the columns are images, not times
    for j in range(videos.shape[1]):
        x, t = left + j * (cell_w + gap), j * every
        step = first if j == 0 else str(t)
        draw.text((x + cell_w / 2, top - 7), step, LIGHT.text, steps, anchor="ms")
        for i, panel in enumerate(rows):
            y = top + i * row_h
            draw.rectangle((x, y, x + cell_w - 1, y + cell_h - 1), _border(panel, t, n_past))
            image.paste(_enlarge(videos[i, j], scale), (x + border, y + border))
    for i, wrapped in enumerate(lines):
        middle = top + i * row_h + cell_h / 2
        for k, line in enumerate(wrapped):
            y = middle + (k - (len(wrapped) - 1) / 2) * line_h
            draw.text((left - GAP, y), line, LIGHT.text, font, anchor="rm")
    content = iio.imwrite("<bytes>", np.asarray(image), extension=".png")
    with whole_file(path) as partial:
        partial.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when the block succeeds and vanishes when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")  # keeps the ending, which chooses the format
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _rgb_videos(panels: Sequence[Panel], n_past: int) -> np.ndarray:
    """(panels, T, H, W, 3) uint8 of panels that agree in T, H, W."""
    if not panels:
        raise ValueError("there are no panels to draw")
    videos = []
    for label, frames, _ in panels:
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[1] not in (1, 3) or 0 in frames.shape:
            raise ValueError(f"panel {label!r} is {frames.shape}, expected (T, C, H, W) with C 1 or 3")
        if frames.dtype != np.uint8:
            if not np.issubdtype(frames.dtype, np.floating):
                raise ValueError(f"panel {label!r} is {frames.dtype}, expected uint8 or floating point in [0, 1]")
            frames = (255 * frames.clip(0, 1)).round().astype(np.uint8)
        shape = (frames.shape[0], *frames.shape[2:])
        if videos and shape != videos[0].shape[:3]:
            first = videos[0].shape[:3]
            raise ValueError(f"panel {label!r} has (T, H, W) {shape}, panel {panels[0].label!r} has {first}")
        videos.append(np.broadcast_to(frames.transpose(0, 2, 3, 1), (*shape, 3)))
    if not 0 <= n_past <= len(videos[0]):
        raise ValueError(f"n_past must be in [0, {len(videos[0])}], the number of frames, got {n_past}")
    return np.stack(videos)


def _scale(scale: int | None, videos: np.ndarray, at_least: int) -> int:
    if scale is None:
        return -(-at_least // videos.shape[3])
    if scale < 1:
        raise ValueError(f"scale must be >= 1, got {scale}")
    return scale


def _border(panel: Panel, t: int, n_past: int) -> str:
    return PAST if t < n_past else FUTURE if panel.predicting else NEUTRAL


def _enlarge(frame: np.ndarray, scale: int) -> Image.Image:
    return Image.fromarray(frame.repeat(scale, axis=0).repeat(scale, axis=1))


def _draw_timeline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int], t: int, n_frames: int, n_past: int) -> None:
    """One segment per frame, lit up to t; box is (left, top, right)."""
    left, top, right = box
    edges = np.linspace(left, right, n_frames + 1).round().astype(int).tolist()
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        colour = DARK.faint if i > t else PAST if i < n_past else FUTURE
        draw.rectangle((a, top, max(a, b - (3 if b - a > 5 else 1)), top + 3), colour)


def _palette(videos: np.ndarray) -> Image.Image:
    """One palette for the whole GIF, so that colours do not flicker: 30 for the chrome, the others for the pictures."""
    tones = [np.linspace(_hex(DARK.background), _hex(DARK.text), 16)]
    tones += [np.linspace(_hex(DARK.background), _hex(colour), 8) for colour in (PAST, FUTURE)]
    tones += [np.stack([_hex(NEUTRAL), _hex(DARK.faint)])]
    chrome = np.unique(np.concatenate(tones).round().astype(np.uint8), axis=0)
    mosaic = Image.fromarray(videos.reshape(-1, videos.shape[3], 3))
    colours = mosaic.quantize(255 - len(chrome), Image.Quantize.MEDIANCUT).getpalette()  # one left for transparency
    palette = Image.new("P", (1, 1))
    palette.putpalette([*chrome.flatten().tolist(), *colours])
    return palette


def _hex(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float64)


def _fit(labels: Sequence[str], width: int, max_lines: int) -> tuple[ImageFont.FreeTypeFont, list[list[str]]]:
    """The largest font in which every label fits `width` px in `max_lines` lines without cutting a word, and the lines.

    The smallest font cuts words and takes as many lines as it needs.
    """
    words = [word for label in labels for word in label.split()]
    for size in range(16, SMALLEST_FONT - 1, -1):
        font = ImageFont.load_default(size=size)
        lines = [_wrap(label, font, width) for label in labels]
        if max(map(len, lines)) <= max_lines and all(font.getlength(word) <= width for word in words):
            break
    return font, [_balance(wrapped, label, font, width) for wrapped, label in zip(lines, labels, strict=True)]


def _longest_word(labels: Iterable[str]) -> int:
    """Its px in the smallest font."""
    font = ImageFont.load_default(size=SMALLEST_FONT)
    return max((math.ceil(font.getlength(word)) for label in labels for word in label.split()), default=0)


def _balance(lines: list[str], text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """As many lines, of more equal length, cut at the same words at most."""
    while len(lines) > 1 and max(map(font.getlength, text.split())) <= width - 4:
        width -= 4
        narrower = _wrap(text, font, width)
        if len(narrower) > len(lines):
            break
        lines = narrower
    return lines


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
