"""Line charts of evaluations, drawn by matplotlib: as SVG inside the page, in the page's colours, and as PNG files.

A chart's size is in px of its picture, which are points to matplotlib.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from seqvae.report.evaluated import Evaluated, finite
from seqvae.report.tables import BASELINES
from seqvae.visualize import whole_file

WIDTH, HEIGHT = 360, 256
LEFT, TOP, RIGHT, BOTTOM = 54, 34, 348, 214  # of the axes
FEW = 8  # points of a line that get a dot each
PNG_COLUMNS, PNG_DPI = 3, 150
# Colour -> on a light page, on a dark page. c0 to c5: runs, or one run's kinds of futures.
COLOURS = {
    "page": ("#fcfcfb", "#15181e"),
    "text": ("#1c2027", "#e8eaee"),
    "soft": ("#596170", "#a2aab7"),
    "rule": ("#e2e5e9", "#2d333d"),
    "c0": ("#0067a8", "#5cb6f2"),
    "c1": ("#c24e00", "#ff9a57"),
    "c2": ("#a8467f", "#eb9cc8"),
    "c3": ("#8a6a00", "#e8c353"),
    "c4": ("#5b4fc0", "#aaa2ff"),
    "c5": ("#1c2028", "#e8eaef"),  # a shade off the text's: a colour of the drawing names one of the page
    "ceiling": ("#00795a", "#3ecfa2"),
    "muted": ("#7b8492", "#8b94a3"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
SOLID, DASHED, DASH_DOT, DOTTED = DASHES = ((), (6, 4), (9, 3, 2, 3), (1.5, 4))  # px on, px off, ..


class Style(NamedTuple):
    """Look of a line: a name of COLOURS, and px on and off."""

    colour: str
    dashes: tuple[float, ...] = SOLID

    @property
    def width(self) -> float:
        return 1.4 if self.colour == "muted" else 2.0


CEILING = Style("ceiling", DOTTED)


def style(i: int) -> Style:
    """Of the i-th run: 24 that differ."""
    return Style(f"c{i % 6}", DASHES[i // 6 % 4])


class Line(NamedTuple):
    """One curve, with its 95 % interval if low and high are given."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    style: Style = style(0)


class Chart(NamedTuple):
    """One picture. `lines` hold finite values only."""

    title: str
    x_label: str
    lines: list[Line]
    log_x: bool
    zero: bool  # the y axis starts at 0

    @property
    def description(self) -> str:
        """For those who cannot see it."""
        ends = [f"{n.label} from {n.y[0]:.4g} at {n.x[0]:g} to {n.y[-1]:.4g} at {n.x[-1]:g}" for n in self.lines]
        return f"{self.title} by {self.x_label}: {'; '.join(ends)}."


class Figures(NamedTuple):
    """Charts of one kind, under one legend."""

    key: str
    charts: list[Chart]

    @property
    def legend(self) -> dict[str, Style]:
        return {line.label: line.style for chart in self.charts for line in chart.lines}


def chart(title: str, x_label: str, lines: Sequence[Line], *, log_x: bool = False, zero: bool = False) -> list[Chart]:
    """One chart; none if no line has a finite value. What is not finite is left out of its line."""
    kept = [line for line in map(_finite_part, lines) if line.y]
    return [Chart(title, x_label, kept, log_x, zero)] if kept else []


def _finite_part(line: Line) -> Line:
    keep = [i for i, (x, y) in enumerate(zip(line.x, line.y)) if finite(x) and finite(y)]
    sides = [line.low, line.high]
    if None in sides or not all(finite(side[i]) for side in sides for i in keep):
        sides = [None, None]
    return Line(line.label, *([s and [s[i] for i in keep] for s in (line.x, line.y, *sides)]), line.style)


def draw(axes: Axes, chart: Chart) -> None:
    """Draws a chart into axes of RIGHT - LEFT by BOTTOM - TOP px.

    The simulator's lines may leave the picture, so that they do not squash the models'; a note then says where to.
    """
    for i, line in enumerate(chart.lines):
        colour, front = LIGHT[line.style.colour], 3 - i / len(chart.lines)
        if line.low:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0, zorder=1)
        look = dict(color=colour, linewidth=line.style.width, marker="o" * (len(line.x) <= FEW), markersize=5.2)
        look |= dict(solid_capstyle="round", dash_capstyle="round")
        (drawn,) = axes.plot(line.x, line.y, markeredgewidth=0, zorder=front, gid=f"line-{i}", **look)
        if line.style.dashes:
            drawn.set_dashes([px / line.style.width for px in line.style.dashes])  # in line widths
    xs = sorted({x for line in chart.lines for x in line.x})
    low, high = _limits(chart)
    if chart.log_x:
        axes.set_xscale("log")
        axes.set_xticks(xs, labels=[f"{x:g}" for x in xs])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(*(xs[0], xs[-1]) if len(xs) > 1 else (0.9 * xs[0] - 0.1, 1.1 * xs[0] + 0.1))
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{round(y, 9):g}"))
    axes.set_facecolor("none")
    axes.set_frame_on(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=1)
    axes.tick_params(left=False, bottom=False, labelsize=11, labelcolor=LIGHT["soft"], pad=5)
    axes.set_xlabel(chart.x_label, fontsize=11, color=LIGHT["soft"], va="baseline", parse_math=False)
    axes.xaxis.set_label_coords(0.5, -35 / (BOTTOM - TOP))
    above = ", ".join(f"{line.label}: {line.y[-1]:.3g} \u2191" for line in chart.lines if line.y[-1] > high)
    title, note = dict(fontsize=12.5, fontweight="bold"), dict(fontsize=11, ha="right", color=LIGHT["soft"])
    for x, text, look in ((4 - LEFT, chart.title, title), (RIGHT - LEFT, above, note)):
        place = x / (RIGHT - LEFT), 1 + (TOP - 18) / (BOTTOM - TOP)
        axes.text(*place, text, transform=axes.transAxes, parse_math=False, **{"color": LIGHT["text"], **look})


def _limits(chart: Chart) -> tuple[float, float]:
    """Of the y axis: what the models need, and up to twice as much for the simulator."""
    models = [line for line in chart.lines if line.style != CEILING] or chart.lines
    inner = [v for line in models for side in (line.y, line.low, line.high) for v in side or ()]
    outer = [v for line in chart.lines for v in line.y]
    low, high = min(inner), max(inner)
    low, high = min(low, max(min(outer), 2 * low - high)), max(high, min(max(outer), 2 * high - low))
    low = min(low, 0) if chart.zero else low
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low if chart.zero and low == 0 else low - pad, high + pad


def _axes(figure: Figure, row: int, column: int) -> Axes:
    """Axes of the chart in that place of a figure of WIDTH x HEIGHT px charts."""
    width, height = 72 * figure.get_size_inches()
    left, bottom = column * WIDTH + LEFT, height - row * HEIGHT - BOTTOM
    return figure.add_axes((left / width, bottom / height, (RIGHT - LEFT) / width, (BOTTOM - TOP) / height))


def svg(chart: Chart) -> Markup:
    """The chart as an SVG element. Colours are the page's variables, text is text in the page's font."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    draw(_axes(figure, 0, 0), chart)
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.description}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue().split("</defs>", 1)[1]  # after the head and a style that would apply to the whole page
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"font: (\d+) ([\d.]+)px [^;\"]*", r"font: 600 \2px var(--font)", text)  # bold
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    for i, line in enumerate(chart.lines):
        text = text.replace(f'<g id="line-{i}">', f"<g><title>{escape(line.label)}</title>")
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # of groups: the same in every chart
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, chart.description)
    return opening + Markup("<title>{}</title>").format(chart.title) + Markup(text)


def write_png(path: Path, figures: Figures) -> None:
    """All charts of one kind and their legend, as on a light page; whole or absent."""
    columns = min(PNG_COLUMNS, len(figures.charts))
    rows = -(-len(figures.charts) // columns)
    figure = Figure(figsize=(columns * WIDTH / 72, rows * HEIGHT / 72), dpi=PNG_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    handles = {}
    for i, chart in enumerate(figures.charts):
        axes = _axes(figure, *divmod(i, columns))
        draw(axes, chart)
        drawn = [line for line in axes.get_lines() if line.get_gid()]
        handles |= {line.label: handle for line, handle in zip(chart.lines, drawn, strict=True)}
    legend = figure.legend(
        handles.values(),
        handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncols=2 * columns,
        frameon=False,
        fontsize=11,
        labelcolor=LIGHT["soft"],
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    with whole_file(path) as partial:
        figure.savefig(partial, bbox_inches="tight", pad_inches=0.1)


def figures(group: Sequence[Evaluated], alone: bool) -> list[Figures]:
    """What there is to draw of runs, overlaid, or if `alone` of one run's kinds of futures."""
    first = group[0]
    simulated = [e for e in group if e.find("results", "oracle best")]
    ceiling = max(simulated, key=lambda e: e.facts.get("n_samples") or 0, default=first)
    metrics = {key: m.label for e in reversed(group) for key, m in e.metrics.items()}
    n_past = first.definitions.get("n_past") or 0
    time = f"frame t (predicted from t = {n_past})"

    def over_runs(*path: str, start: int = n_past) -> list[Line]:
        return [_curve(e.name, e.find(*path), style(i), start) for i, e in enumerate(group)]

    def by_frame(key: str) -> list[Line]:
        lines = []
        for i, e in enumerate(group):
            for k, kind in enumerate(("best", "mean", "worst", "posterior") if alone else ("best", "mean")):
                name, look = (kind, style(k)) if alone else (f"{e.name}, {kind}", Style(f"c{i % 6}", DASHES[k]))
                lines.append(_curve(name, e.find("results", kind, key, "per_frame"), look, n_past))
        simulator = ceiling.find("results", "oracle best", key, "per_frame")
        lines.append(_curve("simulator, best", simulator, CEILING, n_past))
        for name, dashes in zip(BASELINES, ((12, 4), DASHED, DASH_DOT, DOTTED)):
            estimate = first.find("results", name, key, "per_frame", "mean")
            lines.append(_curve(name, estimate, Style("muted", dashes), n_past))
        return lines

    def by_n(key: str) -> list[Line]:
        tables = [(e.name, e.find("best_of_n", key), style(i)) for i, e in enumerate(group)]
        tables.append(("simulator", ceiling.find("oracle_best_of_n", key), CEILING))
        lines = []
        for name, table, look in tables:
            sides = [[entry.get(k) for entry in (table or {}).values()] for k in ("mean", "low", "high")]
            lines.append(Line(name, [int(n) for n in table or ()], *sides, look))
        return lines

    def calibration(kind: str, *path: str) -> list[Chart]:
        lines = over_runs("calibration", kind, *path, "per_frame")
        target = float(path[1]) if path[0] == "coverage" else 1.0
        what = f"share inside the {target:.0%} interval" if path[0] == "coverage" else "error\u00b2 / sigma\u00b2"
        x = max((line.x for line in lines), key=len)
        ideal = [Line("as it should be", x, [target] * len(x), style=Style("muted", DASHED))]
        return chart(f"{what}, {kind}", time, lines + ideal) if x else []

    parts = (("ratio",), ("coverage", "0.5"), ("coverage", "0.9"))
    spread = {"diversity": "mean squared difference"}
    spread |= {f"diversity_{key}": f"{label} difference" for key, label in metrics.items()}
    kl = [] if first.images else over_runs("bounds", "kl_per_frame", start=1)
    found = {
        "frames": [chart(label, time, by_frame(key)) for key, label in metrics.items()],
        "n": [chart(label, "N futures", by_n(key), log_x=True) for key, label in metrics.items()],
        "calibration": [calibration(kind, *part) for kind in ("prediction", "posterior") for part in parts],
        "diversity": [chart(label, time, over_runs(key, "per_frame"), zero=True) for key, label in spread.items()],
        "kl": [chart("KL (nats)", "frame t", kl, zero=True)],
    }
    kept = [Figures(key, sum(charts, [])) for key, charts in found.items()]
    return [figures for figures in kept if figures.charts]


def _curve(label: str, estimate: object, look: Style, start: int) -> Line:
    """Of {mean, interval95} or a plain list per frame, the first at t = start; without points if there is none."""
    if not isinstance(estimate, dict):
        estimate = {"mean": estimate}
    y, half = estimate.get("mean") or [], estimate.get("interval95")
    sides = [
        [None if v is None else v + sign * (h or 0) for v, h in zip(y, half)] if half else None for sign in (-1, 1)
    ]
    return Line(label, range(start, start + len(y)), y, *sides, look)
