"""Line charts of finished evaluations as plain geometry; report.html.j2 draws them, in the page's colours."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from seqvae.evaluation.tables import BASELINES, Evaluated, finite

SIZE = (360, 256)  # px of the picture; the page scales it
PLOT = (46, 34, 348, 214)  # px: left, top, right, bottom of the axes


class Line(NamedTuple):
    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # of the 95 % interval
    high: Sequence[float] | None = None
    # Classes of the page's stylesheet: c0..c5 colours, muted, ceiling (the simulator); d0..d3 dashes.
    style: str = "c0 d0"


def chart(title: str, x_label: str, lines: Sequence[Line], *, log_x: bool = False, zero: bool = False) -> dict | None:
    """One chart; None if no line has a finite value. What is not finite is left out of its line.

    The simulator's lines may leave the picture, so that they do not squash the models'; `above` then says where to.

    Args:
        zero: the y axis starts at 0.
    """
    kept = [line for line in map(_finite_part, lines) if line.y]
    if not kept:
        return None
    xs = sorted({x for line in kept for x in line.x})
    models = [line for line in kept if "ceiling" not in line.style] or kept
    inner = [v for line in models for side in (line.y, line.low, line.high) for v in side or ()]
    outer = [v for line in kept for v in line.y]
    low, high = min(inner), max(inner)
    low, high = min(low, max(min(outer), 2 * low - high)), max(high, min(max(outer), 2 * high - low))
    low = min(low, 0) if zero else low
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low if zero and low == 0 else low - pad, high + pad
    left, top, right, bottom = PLOT
    to_x = math.log if log_x else float
    x0, x1 = to_x(xs[0]), to_x(xs[-1])

    def points(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
        across = [(to_x(a) - x0) / (x1 - x0) if x1 > x0 else 0.5 for a in x]
        up = [(b - low) / (high - low) for b in y]
        return [
            (round(left + (right - left) * a, 1), round(bottom - (bottom - top) * b, 1)) for a, b in zip(across, up)
        ]

    drawn = [
        {
            "label": line.label,
            "style": line.style,
            "points": points(line.x, line.y),
            "band": points(line.x, line.low) + points(line.x, line.high)[::-1] if line.low else [],
            "dots": len(line.x) <= 8,
        }
        for line in kept
    ]
    shown = xs if log_x else [x for x in MaxNLocator(6, integer=True).tick_values(xs[0], xs[-1]) if x in xs]
    ticks = [y for y in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= y <= high]
    ends = [f"{n.label} from {n.y[0]:.4g} at {n.x[0]:g} to {n.y[-1]:.4g} at {n.x[-1]:g}" for n in kept]
    return {
        "title": title,
        "x_label": x_label,
        "lines": drawn,
        "x_ticks": [(points([x], [low])[0][0], f"{x:g}") for x in shown],
        "y_ticks": [(points(xs[:1], [y])[0][1], f"{round(y, 9):g}") for y in ticks],
        "above": [f"{line.label}: {line.y[-1]:.3g} \u2191" for line in kept if line.y[-1] > high],
        "description": f"{title} by {x_label}: {'; '.join(ends)}.",
    }


def _finite_part(line: Line) -> Line:
    keep = [i for i, (x, y) in enumerate(zip(line.x, line.y)) if finite(x) and finite(y)]
    sides = [line.low, line.high]
    if None in sides or not all(finite(side[i]) for side in sides for i in keep):
        sides = [None, None]
    return Line(line.label, *([s and [s[i] for i in keep] for s in (line.x, line.y, *sides)]), line.style)


def figures(group: Sequence[Evaluated], alone: bool) -> list[dict]:
    """Charts by `key`, with one legend each: runs overlaid, or if `alone` one run's kinds of futures."""
    first = group[0]
    simulated = [e for e in group if e.find("results", "oracle best")]
    ceiling = max(simulated, key=lambda e: e.facts.get("n_samples") or 0, default=first)
    metrics = {key: m["label"] for e in reversed(group) for key, m in e.metrics.items()}
    n_past = first.definitions.get("n_past") or 0
    time = f"frame t (predicted from t = {n_past})"

    def over_runs(*path: str, start: int = n_past) -> list[Line]:
        return [_curve(e.name, e.find(*path), f"c{i % 6} d{i // 6 % 4}", start) for i, e in enumerate(group)]

    def by_frame(key: str) -> list[Line]:
        lines = []
        for i, e in enumerate(group):
            for k, kind in enumerate(("best", "mean", "worst", "posterior") if alone else ("best", "mean")):
                name, style = (kind, f"c{k} d0") if alone else (f"{e.name}, {kind}", f"c{i % 6} d{k}")
                lines.append(_curve(name, e.find("results", kind, key, "per_frame"), style, n_past))
        lines.append(
            _curve("simulator, best", ceiling.find("results", "oracle best", key, "per_frame"), _CEILING, n_past)
        )
        for i, name in enumerate(BASELINES):
            estimate = first.find("results", name, key, "per_frame", "mean")
            lines.append(_curve(name, {"mean": estimate}, f"muted d{i}", n_past))
        return lines

    def by_n(key: str) -> list[Line]:
        tables = [(e.name, e.find("best_of_n", key), f"c{i % 6} d{i // 6 % 4}") for i, e in enumerate(group)]
        tables.append(("simulator", ceiling.find("oracle_best_of_n", key), _CEILING))
        lines = []
        for name, table, style in tables:
            sides = [[entry.get(k) for entry in (table or {}).values()] for k in ("mean", "low", "high")]
            lines.append(Line(name, [int(n) for n in table or ()], *sides, style))
        return lines

    def calibration(kind: str, *path: str) -> dict | None:
        lines = over_runs("calibration", kind, *path, "per_frame")
        target = float(path[1]) if path[0] == "coverage" else 1.0
        what = f"share inside the {target:.0%} interval" if path[0] == "coverage" else "error\u00b2 / sigma\u00b2"
        x = max((line.x for line in lines), key=len)
        return chart(
            f"{what}, {kind}",
            time,
            [*lines, Line("as it should be", x, [target] * len(x), style="muted d1")] if x else [],
        )

    parts = (("ratio",), ("coverage", "0.5"), ("coverage", "0.9"))
    spread = {"diversity": "mean squared difference", "diversity_lpips": "LPIPS difference"}
    kl = [] if first.images else over_runs("bounds", "kl_per_frame", start=1)
    found = {
        "frames": [chart(label, time, by_frame(key)) for key, label in metrics.items()],
        "n": [chart(label, "N futures", by_n(key), log_x=True) for key, label in metrics.items()],
        "calibration": [calibration(kind, *part) for kind in ("prediction", "posterior") for part in parts],
        "diversity": [chart(label, time, over_runs(key, "per_frame"), zero=True) for key, label in spread.items()],
        "kl": [chart("KL (nats)", "frame t", kl, zero=True)],
    }
    kept = {key: [c for c in charts if c] for key, charts in found.items()}
    return [
        {
            "key": key,
            "charts": charts,
            "legend": list({n["label"]: n["style"] for c in charts for n in c["lines"]}.items()),
        }
        for key, charts in kept.items()
        if charts
    ]


_CEILING = "ceiling d3"


def _curve(label: str, estimate: object, style: str, start: int) -> Line:
    """Of {mean, interval95} or a plain list per frame, the first at t = start; without points if there is none."""
    if not isinstance(estimate, dict):
        estimate = {"mean": estimate}
    y, half = estimate.get("mean") or [], estimate.get("interval95")
    sides = [
        [None if v is None else v + sign * (h or 0) for v, h in zip(y, half)] if half else None for sign in (-1, 1)
    ]
    return Line(label, range(start, start + len(y)), y, *sides, style)
