"""Arrays to pictures: animations for a README or a talk, film strips and plots for a paper. Knows no model.

Frames: (T, C, H, W) with C 1 or 3, uint8 or floating point in [0, 1] (values outside are clipped).
Time:   t counts from 0; frames t < n_past condition the model (green), later ones are predicted (red).
Files are whole or absent: written under a temporary name in their folder, then renamed.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
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


class Curve(NamedTuple):
    """One line of a plot, or a horizontal reference line: a single value, without x or interval."""

    label: str
    values: np.ndarray | float  # (points,) in the unit of its axis
    interval: np.ndarray | None = None  # drawn as a band: (points,) half widths or (2, points) low and high values
    muted: bool = False  # dashed, thin and grey: baselines and reconstructions
    x: np.ndarray | None = None  # (points,); None: as the function that draws it says


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
    with _whole_file(path) as partial:
        if ending == ".gif":
            _encode_gif(partial, pictures, fps, _palette(videos))
        elif ending == ".mp4":
            _encode_mp4(partial, pictures, fps)
        else:
            _encode_apng(partial, pictures, fps)


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


def _encode_gif(path: Path, pictures: np.ndarray, fps: float, palette: Image.Image) -> None:
    images = (Image.fromarray(picture) for picture in pictures)
    indexed = np.stack([np.asarray(image.quantize(palette=palette, dither=Image.Dither.NONE)) for image in images])
    colours, duration = bytes(palette.getpalette()), _durations(len(pictures), 10 * round(100 / fps))
    iio.imwrite(path, indexed, mode="P", is_batch=True, palette=colours, optimize=True, duration=duration, loop=0)


def _encode_apng(path: Path, pictures: np.ndarray, fps: float) -> None:
    duration = _durations(len(pictures), round(1000 / fps))
    iio.imwrite(path, pictures, plugin="pillow", is_batch=True, format="PNG", duration=duration, loop=0)


def _encode_mp4(path: Path, pictures: np.ndarray, fps: float) -> None:
    """Holds the last frame by repeating it, and pads to even sizes.

    yuv420p, the one pixel format that every player shows, halves the resolution of colour.
    """
    hold = max(1, round(fps * HOLD_MS / 1000))
    height, width = pictures.shape[1:3]
    even = np.empty((len(pictures) + hold, height + height % 2, width + width % 2, 3), np.uint8)
    even[:] = _hex(DARK.background)
    even[: len(pictures), :height, :width] = pictures
    even[len(pictures) :, :height, :width] = pictures[-1]
    iio.imwrite(path, even, plugin="pyav", codec="libx264", fps=fps, out_pixel_format="yuv420p")


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
    with _whole_file(path) as partial:
        iio.imwrite(partial, np.asarray(image))


def write_curves(path: Path, plots: dict[str, Sequence[Curve]], n_past: int, *, title: str | None = None) -> None:
    """Per-frame curves, one subplot per entry; x is the frame index t, by default from n_past on.

    Args:
        path: ends in .png (or any format of matplotlib).
        plots: axis label with its unit, such as "PSNR (dB)", to curves. A label has one look in all subplots.
        n_past: t of the first predicted frame; where curves begin earlier, the frames before it are shaded.

    Raises:
        ValueError: nothing to draw, or values, x and interval whose shapes do not agree.
    """
    _save(path, _curves_figure(plots, n_past, title))


def write_scores_by_n(
    path: Path, plots: dict[str, Sequence[Curve]], n_samples: Sequence[int], *, title: str | None = None
) -> None:
    """Best-of-N scores against N on a logarithmic axis, one subplot per metric.

    Args:
        path, plots, title: as in `write_curves`; baselines, which draw no samples, are single values.
        n_samples: (points,) the values of N, > 0, which are also the axis's ticks, such as 1, 2, 5, 10, 20, 50, 100.

    Raises:
        ValueError: as write_curves, or an N < 1.
    """
    if min(n_samples, default=0) < 1:
        raise ValueError(f"n_samples must be one or more numbers >= 1, got {list(n_samples)}")
    figure = _figure(
        {name: [_at(curve, n_samples) for curve in curves] for name, curves in plots.items()},
        "number of samples N (logarithmic)",
        title,
    )
    for axes in figure.axes:
        axes.set_xscale("log")
        axes.set_xticks(list(n_samples), labels=[str(n) for n in n_samples])
        axes.minorticks_off()
        axes.set_xlim(min(n_samples) / 1.15, max(n_samples) * 1.15)
    _save(path, figure)


def write_calibration(
    path: Path,
    ratios: Sequence[Curve],
    coverages: Sequence[Curve],
    n_past: int,
    *,
    nominal: Sequence[float] = (0.5, 0.9),
    title: str | None = None,
) -> None:
    """Whether a decoder's sigma is true, per frame: squared residual against sigma^2, and coverage of its intervals.

    Args:
        path, n_past, title: as in `write_curves`.
        ratios: mean squared residual / sigma^2, ideally 1; on a logarithmic axis where they span more than a decade.
        coverages: fraction of pixels inside the central interval that should hold a fraction `nominal` of them.
        nominal: those fractions, drawn as horizontal lines.

    Raises:
        ValueError: as write_curves.
    """
    plots = {
        "squared residual / sigma$^2$ (ratio)": [*ratios, Curve("ideal", 1.0, muted=True)],
        "coverage of central intervals (fraction)": [*coverages, *(Curve("ideal", f, muted=True) for f in nominal)],
    }
    figure = _curves_figure(plots, n_past, title)
    ratio, coverage = figure.axes
    drawn = np.concatenate([[1.0], *(curve.values for curve in ratios)])
    if np.nanmin(drawn) > 0 and np.nanmax(drawn) > 10 * np.nanmin(drawn):
        ratio.set_yscale("log")
        ratio.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ratio.yaxis.set_major_formatter("{x:g}")
        ratio.yaxis.set_minor_locator(NullLocator())
    coverage.set_ylim(0, 1.02)
    _save(path, figure)


def _curves_figure(plots: dict[str, Sequence[Curve]], n_past: int, title: str | None) -> Figure:
    plots = {
        name: [_at(curve, n_past + np.arange(np.size(curve.values))) for curve in curves]
        for name, curves in plots.items()
    }
    figure = _figure(plots, f"frame index t (predicted from t = {n_past})", title)
    for axes, curves in zip(figure.axes, plots.values(), strict=True):
        frames = np.concatenate([[n_past], *(curve.x for curve in curves if curve.x is not None)])
        first, last = frames.min(), frames.max()
        if first < n_past:
            axes.axvspan(first - 0.5, n_past - 0.5, color=PAST, alpha=0.10, linewidth=0, zorder=0)
            axes.axvline(n_past - 0.5, color=PAST, linewidth=1, zorder=1)
        axes.set_xlim(first - 0.5, last + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _at(curve: Curve, x: Sequence[int]) -> Curve:
    """The curve with x, unless it has its own or is a horizontal line."""
    return curve if curve.x is not None or np.ndim(curve.values) == 0 else curve._replace(x=np.asarray(x))


def _figure(plots: dict[str, Sequence[Curve]], x_label: str, title: str | None) -> Figure:
    """One subplot per entry, a legend below. Labels differ in marker and dashes besides colour, for print in grey."""
    curves = [curve for subplot in plots.values() for curve in subplot]
    if not curves:
        raise ValueError("a plot needs at least one curve")
    for curve in curves:
        _check_shapes(curve)
    # Okabe & Ito's palette, which the common forms of colour blindness can tell apart.
    colours = ["#0072b2", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#56b4e9"]
    solid = [
        {"linestyle": dashes, "color": colour, "marker": marker, "linewidth": 2, "zorder": 3}
        for dashes in ("-", "-.", ":")
        for colour, marker in zip(colours, "osD^vP", strict=True)
    ]
    dashed = [
        {"linestyle": dashes, "color": colour, "linewidth": 1.3, "zorder": 2}
        for colour in ("#5b6370", "#9aa3b0")
        for dashes in ((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
    ]
    vivid = list(dict.fromkeys(curve.label for curve in curves if not curve.muted))
    muted = list(dict.fromkeys(curve.label for curve in curves if curve.muted))

    figure = Figure(figsize=(5.2 * len(plots), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    handles = {}
    for axes, (name, subplot) in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots.items(), strict=True):
        for curve in subplot:
            styles, labels = (dashed, muted) if curve.muted else (solid, vivid)
            style = styles[labels.index(curve.label) % len(styles)]
            if curve.x is None:
                handles[curve.label] = axes.axhline(curve.values, **style)
                continue
            every = -(-len(curve.x) // 12)  # at most 12 markers on a line
            (handles[curve.label],) = axes.plot(curve.x, curve.values, markersize=4.5, markevery=every, **style)
            if curve.interval is not None:
                half = np.ndim(curve.interval) == 1
                low, high = (curve.values - curve.interval, curve.values + curve.interval) if half else curve.interval
                axes.fill_between(curve.x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(name)
        axes.grid(color=LIGHT.faint, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    order = vivid + muted
    lines = [handles[label] for label in order]
    for columns in range(min(4, len(order)), 0, -1):
        legend = figure.legend(lines, order, loc="outside lower center", ncols=columns, frameon=False)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    return figure


def _check_shapes(curve: Curve) -> None:
    """ValueError unless values, x and interval fit each other."""
    points, x, interval = np.shape(curve.values), np.shape(curve.x), np.shape(curve.interval)
    if points == ():
        if curve.x is not None or curve.interval is not None:
            raise ValueError(f"curve {curve.label!r} is one value, a horizontal line, which takes no x or interval")
    elif len(points) != 1 or x != points or interval not in ((), points, (2, *points)):
        raise ValueError(
            f"curve {curve.label!r} has values {points}, x {x} and interval {interval}, "
            "expected (points,), (points,) and nothing, (points,) or (2, points)"
        )


def _save(path: Path, figure: Figure) -> None:
    with _whole_file(path) as partial:
        figure.savefig(partial, dpi=150)


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
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
