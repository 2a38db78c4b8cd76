"""Plots of scores: per frame, against the number of samples, and of calibration. Files are whole or absent."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from seqvae.visualize import LIGHT, PAST, whole_file


class Curve(NamedTuple):
    """One line of a plot, or a horizontal reference line: a single value, without x or interval."""

    label: str
    values: np.ndarray | float  # (points,) in the unit of its axis
    interval: np.ndarray | None = None  # drawn as a band: (points,) half widths or (2, points) low and high values
    muted: bool = False  # dashed, thin and grey: baselines and reconstructions
    x: np.ndarray | None = None  # (points,); None: as the function that draws it says


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
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150)
