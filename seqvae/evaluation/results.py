"""Scores as files: metrics.json, metrics.csv, GIFs, film strips and plots.

Letters: N samples, V videos, F predicted frames.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from seqvae.evaluation.scores import Scorer
from seqvae.metrics.best_of_n import Estimate, Summary, over_videos
from seqvae.report.evaluated import Evaluated, evaluated
from seqvae.report.plots import figures, write_png
from seqvae.training.checkpoint import write_atomically
from seqvae.visualize import Panel, write_animation, write_animation_grid, write_strip

RANDOM = 3  # samples shown beside the best one, the first of the N
GRID_ROWS = 4
PLOTS = {"frames": "curves.png", "n": "score_by_n.png", "calibration": "calibration.png"}
KINDS = ("best", "mean", "worst")
CALIBRATION = (
    "ratio: squared residual / sigma^2, mean over pixels and samples, 1 is ideal and more is overconfident; coverage: "
    "share of pixels inside the central interval of that level of the mixture of all samples' Gaussians"
)


class Results:
    """One protocol's scores, laid out: method -> metric -> numbers."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.summaries = scorer, scorer.summaries()
        self.diversity, self.calibration = scorer.diversity, scorer.calibration
        others = scorer.others
        self.framewise = [name for name, metric in scorer.metrics.items() if metric.per_frame]
        ours, oracle = self.summaries["predictions"], self.summaries.get("oracle")
        sampled: dict[str, tuple[dict[str, Summary], str]] = {kind: (ours, kind) for kind in KINDS}
        if oracle is not None:
            sampled |= {f"oracle {kind}": (oracle, kind) for kind in KINDS[:2]}
        # (V,) mean over predicted frames: what the table and metrics.csv hold.
        self.per_video: dict[str, dict[str, np.ndarray]] = {
            method: {m: getattr(s, kind) for m, s in summaries.items()} for method, (summaries, kind) in sampled.items()
        } | {method: {m: values.mean(1) for m, values in metrics.items()} for method, metrics in others.items()}
        # (F,) mean over videos, with its 95 % interval.
        self.per_frame: dict[str, dict[str, Estimate]] = {
            method: {m: getattr(s, f"{kind}_curve") for m, s in summaries.items()}
            for method, (summaries, kind) in sampled.items()
        } | {method: {m: over_videos(values) for m, values in metrics.items()} for method, metrics in others.items()}

    def as_json(self) -> dict[str, object]:
        """What metrics.json holds beside the facts."""
        content: dict[str, object] = {
            "metrics": {
                key: {"label": m.label, "definition": m.definition, "higher_is_better": m.higher_is_better}
                for key, m in self.scorer.metrics.items()
            },
            "results": {
                method: {
                    metric: over_videos(values).as_json()
                    | ({"per_frame": self.per_frame[method][metric].as_json()} if metric in self.framewise else {})
                    for metric, values in metrics.items()
                }
                for method, metrics in self.per_video.items()
            },
        }
        for name, metrics in self.summaries.items():
            content["best_of_n" if name == "predictions" else f"{name}_best_of_n"] = {
                metric: {n: interval._asdict() for n, interval in summary.by_n.items()}
                for metric, summary in metrics.items()
            }
        for key, values in self.diversity.items():
            metric = self.scorer.metrics.get(key)
            name, what = (
                (f"diversity_{key}", metric.name) if metric else ("diversity", "mean squared difference per pixel")
            )
            content[name] = {"definition": f"{what} between two samples of a video", **_per_frame(values)}
        if self.calibration:
            content["calibration"] = {"definition": CALIBRATION} | {
                name: {
                    "ratio": _per_frame(found.ratio),
                    "coverage": {str(level): _per_frame(values) for level, values in found.coverage.items()},
                }
                for name, found in self.calibration.items()
            }
        return content

    def write(self, out: Path, facts: dict[str, object]) -> Evaluated:
        """metrics.json (means, intervals, curves, score against N) and metrics.csv (a line per video and method)."""
        out.mkdir(parents=True, exist_ok=True)
        content = json.dumps({**facts, **self.as_json()}, indent=1, allow_nan=False).encode()
        write_atomically(out / "metrics.json", content)
        rows: list[list[object]] = [["video", "method", *self.scorer.metrics]]
        for method, metrics in self.per_video.items():
            for video, values in enumerate(zip(*(metrics[metric] for metric in self.scorer.metrics))):
                rows.append([video, method, *(f"{value:.6f}" for value in values)])
        write_csv(out / "metrics.csv", rows)
        return evaluated(out, content)

    def draw(self, out: Path, *, formats: Sequence[str], scale: int | None) -> None:
        """gifs/ (in each of the formats) and strips/; pictures of an earlier evaluation go."""
        for pattern in ("gifs/video_*", "gifs/grid.*", "strips/video_*"):
            for old in out.glob(pattern):
                old.unlink()
        n_past, rows = self.scorer.protocol.n_past, self._panels()
        for i, panels in enumerate(rows):
            for ending in formats:
                write_animation(out / "gifs" / f"video_{i:03d}.{ending}", panels, n_past, scale=scale)
            write_strip(out / "strips" / f"video_{i:03d}.png", panels, n_past)
        for ending in formats:
            write_animation_grid(out / "gifs" / f"grid.{ending}", rows[:GRID_ROWS], n_past, scale=scale)

    def _panels(self) -> list[list[Panel]]:
        """A row of each shown video."""
        n_past, n_samples = self.scorer.protocol.n_past, self.scorer.n_samples
        by = self.scorer.protocol.best_by or next(iter(self.scorer.metrics))
        best_index = self.summaries["predictions"][by].best_index
        rows = []
        for i, shown in enumerate(self.scorer.shown):
            context = shown.truth[:n_past]

            def whole(frames: np.ndarray, context: np.ndarray = context) -> np.ndarray:
                return np.concatenate([context, frames])

            panels = [Panel("truth", shown.truth, False)]
            if shown.posterior is not None:
                panels.append(Panel("posterior", whole(shown.posterior), False))
            if n_samples > 1:
                name = self.scorer.metrics[by].name
                panels.append(Panel(f"best {name} of {n_samples}", whole(shown.samples[best_index[i]])))
            panels += [Panel(f"sample {k + 1}", whole(shown.samples[k])) for k in range(min(RANDOM, n_samples))]
            rows.append(panels)
        return rows


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """A table, its head first; OSError if it cannot be written."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def plot(e: Evaluated) -> None:
    """Writes the PLOTS of an evaluation into its folder; those of an earlier evaluation go."""
    for name in PLOTS.values():
        (e.folder / name).unlink(missing_ok=True)
    for found in figures([e], alone=True):
        if found.key in PLOTS:
            write_png(e.folder / PLOTS[found.key], found)


def _per_frame(values: np.ndarray) -> dict[str, object]:
    """(V, F) -> mean over frames and videos, and per frame, for metrics.json."""
    return {**over_videos(values.mean(1)).as_json(), "per_frame": over_videos(values).as_json()}
