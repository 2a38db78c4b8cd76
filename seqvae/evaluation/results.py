"""Scores as files and as text: metrics.json, metrics.csv, GIFs, strips, plots, and the terminal's table.

Letters: N samples, V videos, F predicted frames.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seqvae.evaluation.scores import ORACLE_CAP, Scorer
from seqvae.evaluation.tables import BASELINES
from seqvae.metrics.best_of_n import Estimate, Summary, known, over_videos, plus_minus
from seqvae.plots import Curve, write_calibration, write_curves, write_scores_by_n
from seqvae.training.checkpoint import write_atomically
from seqvae.visualize import Panel, write_animation, write_animation_grid, write_strip

MEAN_IMAGE_CLIPS = 256  # training clips whose frames make the mean training image
RANDOM = 3  # samples shown beside the best one, the first of the N
GRID_ROWS = 4
PLOTS = ("curves.png", "score_by_n.png", "calibration.png")
KINDS = ("best", "mean", "worst")
DIVERSITY = {
    "mse": ("diversity", "mean squared difference per pixel between two samples of a video"),
    "lpips": ("diversity_lpips", "LPIPS between two samples of a video"),
}
CALIBRATION = (
    "ratio: squared residual / sigma^2, mean over pixels and samples, 1 is ideal and more is too sure; coverage: share "
    "of pixels inside the central interval of that level of the mixture of all samples' Gaussians"
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
                    metric: _estimate(over_videos(values))
                    | ({"per_frame": _estimate(self.per_frame[method][metric])} if metric in self.framewise else {})
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
            name, definition = DIVERSITY[key]
            content[name] = {"definition": definition, **_per_frame(values)}
        if self.calibration:
            content["calibration"] = {"definition": CALIBRATION} | {
                name: {
                    "ratio": _per_frame(found.ratio),
                    "coverage": {str(level): _per_frame(values) for level, values in found.coverage.items()},
                }
                for name, found in self.calibration.items()
            }
        return content

    def write(self, out: Path, facts: dict[str, object]) -> None:
        """metrics.json (means, intervals, curves, score against N), metrics.csv (a line per video and method)."""
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(
            out / "metrics.json", json.dumps({**facts, **self.as_json()}, indent=1, allow_nan=False).encode()
        )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["video", "method", *self.scorer.metrics])
        for method, metrics in self.per_video.items():
            for video, values in enumerate(zip(*(metrics[metric] for metric in self.scorer.metrics))):
                writer.writerow([video, method, *(f"{value:.6f}" for value in values)])
        write_atomically(out / "metrics.csv", text.getvalue().encode())

    def draw(self, out: Path, *, formats: Sequence[str] = ("gif",), scale: int | None = None) -> None:
        """gifs/ (in each of the formats), strips/, and PLOTS; pictures of an earlier evaluation go."""
        for pattern in ("gifs/video_*", "gifs/grid.*", "strips/video_*", *PLOTS):
            for old in out.glob(pattern):
                old.unlink()
        n_past, rows = self.scorer.protocol.n_past, self._panels()
        for i, panels in enumerate(rows):
            for ending in formats:
                write_animation(out / "gifs" / f"video_{i:03d}.{ending}", panels, n_past, scale=scale)
            write_strip(out / "strips" / f"video_{i:03d}.png", panels, n_past)
        for ending in formats:
            write_animation_grid(out / "gifs" / f"grid.{ending}", rows[:GRID_ROWS], n_past, scale=scale)
        self._plot(out)

    def _panels(self) -> list[list[Panel]]:
        """A row of each shown video."""
        n_past, n_samples = self.scorer.protocol.n_past, self.scorer.n_samples
        best_index = self.summaries["predictions"]["psnr"].best_index
        rows = []
        for i, shown in enumerate(self.scorer.shown):
            context = shown.truth[:n_past]

            def whole(frames: np.ndarray, context: np.ndarray = context) -> np.ndarray:
                return np.concatenate([context, frames])

            panels = [Panel("truth", shown.truth, False)]
            if shown.posterior is not None:
                panels.append(Panel("posterior", whole(shown.posterior), False))
            if n_samples > 1:
                by = (self.scorer.protocol.best_by or "psnr").upper()
                panels.append(Panel(f"best {by} of {n_samples}", whole(shown.samples[best_index[i]])))
            panels += [Panel(f"sample {k + 1}", whole(shown.samples[k])) for k in range(min(RANDOM, n_samples))]
            rows.append(panels)
        return rows

    def _plot(self, out: Path) -> None:
        scorer, n_past = self.scorer, self.scorer.protocol.n_past
        names = {"best": f"best of {scorer.n_samples}", "mean": "mean", "worst": f"worst of {scorer.n_samples}"}
        plots = {
            scorer.metrics[metric].label: [
                Curve(names[method], *c[metric]) if method in names else Curve(method, c[metric].mean, muted=True)
                for method, c in self.per_frame.items()
            ]
            for metric in self.framewise
        }
        write_curves(out / "curves.png", plots, n_past)
        if scorer.n_samples > 1:
            sizes = [*self.summaries["predictions"]["psnr"].by_n]
            plots = {}
            for metric in scorer.metrics:
                curves = [
                    Curve(
                        name,
                        np.array([e.mean for e in by_n]),
                        np.array([[e.low for e in by_n], [e.high for e in by_n]]),
                    )
                    for name, metrics in self.summaries.items()
                    for by_n in [metrics[metric].by_n.values()]
                ]
                references = [
                    Curve(method, float(values[metric].mean()), muted=True)
                    for method, values in self.per_video.items()
                    if method in BASELINES
                ]
                plots[scorer.metrics[metric].label] = curves + references
            write_scores_by_n(out / "score_by_n.png", plots, sizes)
        if self.calibration:
            ratios, coverages = [], []
            for name, found in self.calibration.items():
                ratios.append(Curve(name, *over_videos(found.ratio)))
                coverages += [
                    Curve(f"{name}, {100 * level:.0f} % interval", *over_videos(values))
                    for level, values in found.coverage.items()
                ]
            write_calibration(out / "calibration.png", ratios, coverages, n_past, nominal=[*found.coverage])

    def table(self, name: str) -> list[str]:
        """The terminal's summary, each number's definition below it."""
        scorer, protocol = self.scorer, self.scorer.protocol
        n_samples = scorer.n_samples
        names = {kind: f"{kind} of {n_samples}" for kind in KINDS}
        names |= {f"oracle {kind}": f"oracle, {name}" for kind, name in names.items()}
        lines = [
            name,
            f"{protocol.test_set}: {scorer.n_videos} videos, {protocol.n_past} frames seen, "
            f"{protocol.n_future} predicted",
            "",
            " " * 22 + "".join(f"{metric.label:>20}" for metric in scorer.metrics.values()),
        ]
        for method, values in self.per_video.items():
            row = f"{names.get(method, method):<22}"
            for key in scorer.metrics:
                mean, half_width = over_videos(values[key])
                digits = 2 if key == "psnr" else 4
                row += f"{f'{mean:.{digits}f}{plus_minus(half_width, digits)}':>20}"
            lines.append(row)
        lines += ["", *(f"{metric.label.split()[0]}: {metric.definition}." for metric in scorer.metrics.values())]
        lines += [
            "All: of predictions rounded to bytes; mean over frames, then over videos, +- 95 % interval over videos.",
            "Best and worst: chosen per video, "
            + (f"by {scorer.metrics[protocol.best_by].label}." if protocol.best_by else "for each metric by itself."),
        ]
        if protocol.norm != "eval mode":
            lines.append(f"Norm layers: {protocol.norm}.")
        if "posterior" in self.per_video:
            lines.append("posterior: each frame drawn from the real one before it and latents that have seen it.")
        if "mean training image" in self.per_video:
            lines.append(f"mean training image: of the training set, or of its first {MEAN_IMAGE_CLIPS} clips.")
        if scorer.oracle is not None:
            lines.append(
                "oracle: the true simulator, continued from the true digits, places and speeds of the last frame seen; "
                f"PSNR of a frame, {ORACLE_CAP:.0f} dB at most."
            )
        for key, values in self.diversity.items():
            mean, half_width = over_videos(values.mean(1))
            what = DIVERSITY[key][1]
            lines.append(f"diversity: {mean:.5f}{plus_minus(half_width, 5)}, {what}.")
        for kind, found in self.calibration.items():
            covered = ", ".join(
                f"{100 * values.mean():.0f} % of pixels in the central {100 * level:.0f} %"
                for level, values in found.coverage.items()
            )
            lines.append(f"calibration, {kind}: squared residual / sigma^2 {found.ratio.mean():.3g}; {covered}.")
        return lines


def _per_frame(values: np.ndarray) -> dict[str, object]:
    """(V, F) -> mean over frames and videos, and per frame, for metrics.json."""
    return {**_estimate(over_videos(values.mean(1))), "per_frame": _estimate(over_videos(values))}


def _estimate(estimate: Estimate) -> dict[str, object]:
    return {"mean": estimate.mean.tolist(), "interval95": known(estimate.half_width)}
