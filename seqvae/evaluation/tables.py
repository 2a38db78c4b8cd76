"""Tables of finished evaluations, of one or of several side by side, from the metrics.json in their folders.

Measures nothing. Evaluations share a table only under one protocol on the same test videos.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from seqvae.metrics.published import MARKS, caption

LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}
BASELINES = {
    "copy last frame": "the last frame seen, repeated",
    "mean of context": "the average of the frames seen",
    "mean training image": "the average picture of the training set",
    "black": "black frames",
}
NOTES = BASELINES | {
    "best": "of the futures drawn, the nearest to the truth, chosen by looking at it",
    "mean": "a typical future: the average score",
    "worst": "of the futures drawn, the farthest from the truth",
    "posterior": "redrawn after seeing each frame: what the decoder can draw, not a prediction",
    "oracle best": "the program that made the videos, continued from the true state",
    "oracle mean": "a typical future of that program",
}

Count = Annotated[int, Field(ge=0, lt=2**63)] | None
Number = float | None


class Entry(TypedDict, total=False):
    """Of metrics.json; here and below any entry may be absent, and others are kept as they are."""

    __pydantic_config__ = ConfigDict(extra="allow")


class Curve(Entry, total=False):
    mean: list[Number]
    interval95: list[Number]


class Estimated(Entry, total=False):
    mean: Number
    interval95: Number
    per_frame: Curve


class Calibrated(Entry, total=False):
    ratio: Estimated
    coverage: dict[Annotated[str, Field(pattern=r"^0\.\d+$")], Estimated]


class Interval(Entry, total=False):
    mean: Number
    low: Number
    high: Number


class Metric(Entry, total=False):
    label: str
    definition: str | None
    higher_is_better: bool


class Definitions(Entry, total=False):
    name: str
    data: str | None
    n_past: Count
    n_future: Count


class TestSet(Entry, total=False):
    name: str | None
    sha256: str | None


class Distance(Entry, total=False):
    distance: Number
    floor: Number
    n_fake: Count
    n_real: Count
    sha256: str | None


class Published(Entry):
    name: str
    mark: Literal[tuple(MARKS)]


class Bounds(Entry, total=False):
    rate_nats_per_frame: Number
    distortion_nats_per_frame: Number
    rmse: Number
    bits_per_dim: Number
    bits_bound_the_bytes: bool
    active_units: Count
    kl_per_frame: list[Number]
    kl_per_latent: list[float]


class Facts(Entry, total=False):
    """metrics.json of one evaluation."""

    protocol: str
    definitions: Definitions
    metrics: dict[str, Metric]
    n_samples: Count
    n_videos: Count
    n_images: Count
    test_set: TestSet
    results: dict[str, dict[str, Estimated | Number]]
    best_of_n: dict[str, dict[Annotated[int, Field(ge=1, lt=2**63)], Interval]]
    oracle_best_of_n: dict[str, dict[Annotated[int, Field(ge=1, lt=2**63)], Interval]]
    squared_error: dict[str, Estimated]
    diversity: Estimated
    diversity_lpips: Estimated
    calibration: dict[str, str | Calibrated]
    published: list[Published]
    frechet: dict[str, Distance]
    left_out: list[str]
    bounds: Bounds
    geco: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, Any]
    predictions: dict[str, Any]
    run: str
    checkpoint: str
    command: str
    step: Count
    seed: Count
    sigma: Number


FACTS = TypeAdapter(Facts)

Score = tuple[float, float | None]  # mean, half width of its 95 % interval if known


@dataclass(frozen=True)
class Evaluated:
    """One evaluation's folder and what its metrics.json says; most entries may be absent."""

    folder: Path
    facts: dict
    name: str  # of the run, or of the program that made the predictions

    @property
    def images(self) -> bool:
        """Of single images, not of videos."""
        return "squared_error" in self.facts

    @property
    def definitions(self) -> dict:
        return self.facts.get("definitions") or {}

    @property
    def metrics(self) -> dict[str, dict]:
        """Key -> label, definition, higher_is_better, of the frame metrics that were scored."""
        known = self.facts.get("metrics") or {}
        return {
            key: {"label": LABELS.get(key, key), "definition": self.definitions.get(key)}
            | {"higher_is_better": key != "lpips"}
            | known.get(key, {})
            for key in self.facts.get("best_of_n", {})
        }

    def find(self, *path: str) -> object:
        """The entry below these keys; None where one of them is absent."""
        value: object = self.facts
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def score(self, *path: str) -> Score | None:
        """The entry's mean and half width, of {mean, interval95} or a number; None if it is absent or not finite."""
        return _score(self.find(*path))


def read_evaluations(folders: Sequence[Path]) -> list[Evaluated]:
    """Names are the runs', with their folder where two are alike.

    Raises:
        FileNotFoundError: a folder without metrics.json.
        ValueError: no folders, or a metrics.json that cannot be read or lacks what every evaluation has.
    """
    if not folders:
        raise ValueError("there is no evaluation to report: name at least one folder with a metrics.json")
    found = []
    for folder in map(Path, folders):
        path = folder / "metrics.json"
        try:
            facts = FACTS.validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{path} is missing; evaluate the run first: python evaluate.py RUN") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"][:4])) or "metrics.json"
            raise ValueError(f"{path} cannot be read: {where}: {first['msg']}; evaluate the run again") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}; evaluate the run again") from None
        needed = {"test_set"} if "squared_error" in facts else {"protocol", "definitions", "results", "best_of_n"}
        if missing := sorted((needed | {"test_set"}) - facts.keys()):
            raise ValueError(f"{path} has no {', '.join(missing)}: evaluate the run again")
        e = Evaluated(folder, facts, "")
        name = Path(str(facts.get("run") or "")).name or e.find("predictions", "source") or folder.resolve().name
        found.append(Evaluated(folder, facts, str(name)))
    names = [e.name for e in found]
    return [e if names.count(e.name) == 1 else Evaluated(e.folder, e.facts, f"{e.name} ({e.folder})") for e in found]


def comparable(evaluated: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Groups of one protocol, test set, context and N; a model without latent, which has one future, joins any N."""

    def rules(e: Evaluated) -> tuple:
        # Not the printed protocol: it says "4 of 100 samples", where a model without latent has one in all.
        protocol = e.definitions.get("name"), e.definitions.get("n_past"), e.definitions.get("n_future")
        return e.images, protocol, e.find("test_set", "sha256"), e.facts.get("n_videos")

    def one_future(e: Evaluated) -> bool:
        return "bounds" in e.facts and "active_units" not in e.facts["bounds"]

    groups: dict[tuple, list[Evaluated]] = {}
    for e in evaluated:
        others = [x.facts.get("n_samples") for x in evaluated if rules(x) == rules(e) and not one_future(x)]
        n_samples = others[0] if one_future(e) and others else e.facts.get("n_samples")
        groups.setdefault((*rules(e), n_samples), []).append(e)
    return list(groups.values())


def title_of(group: Sequence[Evaluated]) -> str:
    """What a group was scored on."""
    facts, d = group[0].facts, group[0].definitions
    if group[0].images:
        return f"{facts['test_set'].get('name')}: {facts.get('n_images', 'some')} test images"
    return (
        f"{facts['protocol']} on {facts['test_set'].get('name')}: {facts.get('n_videos', 'some')} videos, "
        f"{d.get('n_past')} frames seen, {d.get('n_future')} predicted"
    )


class Column(NamedTuple):
    key: str
    label: str
    digits: int
    better: str = ""  # "higher", "lower", "one" (nearest to 1); "": neither, nothing is bold
    note: str = ""  # the definition


class Row(NamedTuple):
    name: str
    cells: dict[str, Score | None]  # by the column's key
    note: str = ""
    mark: str = ""  # a published row's
    best: frozenset[str] = frozenset()  # columns in which it is the best run


class Table(NamedTuple):
    caption: str
    columns: list[Column]
    sections: list[tuple[str, list[Row]]]  # heading, rows


def cell_text(row: Row, column: Column) -> tuple[str, str]:
    """Mean and half width, '' for what there is none of; a published mean without interval has its own digits."""
    score = row.cells.get(column.key)
    if score is None:
        return "", ""
    mean = f"{score[0]:g}" if row.mark and score[1] is None else number(score[0], column.digits)
    return mean, "" if score[1] is None else number(score[1], column.digits)


def number(value: object, digits: int = 2) -> str:
    """With thousands and a true minus sign; a dash for what is missing or not finite."""
    return f"{value:,.{digits}f}".replace("-", "\u2212") if finite(value) else "\u2013"


def finite(value: object) -> bool:
    """Whether it is a number, and no NaN or infinity."""
    return isinstance(value, int | float) and math.isfinite(value)


def _score(value: object) -> Score | None:
    if isinstance(value, dict):
        value = [value.get("mean"), value.get("interval95")]
    mean, half_width = [*value, None][:2] if isinstance(value, list) else (value, None)
    return (mean, half_width if finite(half_width) else None) if finite(mean) else None


def _table(text: str, columns: list[Column], sections: dict[str, list[Row]]) -> Table:
    """Without empty columns, rows and sections."""
    kept = {title: [r for r in rows if any(r.cells.get(c.key) for c in columns)] for title, rows in sections.items()}
    used = [c for c in columns if any(r.cells.get(c.key) for rows in kept.values() for r in rows)]
    return Table(text, used, [(title, rows) for title, rows in kept.items() if rows])


def _mark_best(rows: list[Row], columns: list[Column]) -> list[Row]:
    order = {"higher": lambda x: -x, "lower": lambda x: x, "one": lambda x: abs(x - 1)}
    for column in columns:
        scores = {i: row.cells[column.key][0] for i, row in enumerate(rows) if row.cells.get(column.key)}
        if column.better and len(scores) > 1:
            best = min(map(order[column.better], scores.values()))
            for i in (i for i, score in scores.items() if order[column.better](score) == best):
                rows[i] = rows[i]._replace(best=rows[i].best | {column.key})
    return rows


def _metric_column(key: str, metric: dict, kind: str = "") -> Column:
    label, better = metric["label"] + (f", {kind}" if kind else ""), "higher" if metric["higher_is_better"] else "lower"
    return Column(f"{key} {kind}".strip(), label, 2 if key == "psnr" else 4, better, metric["definition"] or "")


FVD = Column("fvd", "FVD", 1, "lower", "Fr\u00e9chet distance of I3D features of whole videos; lower is better")


def _published(e: Evaluated, kind: str = "") -> dict[str, list[Row]]:
    """Heading -> rows, with the columns' keys of `_metric_column`."""
    of = e.definitions or {"name": "images", "data": e.find("test_set", "name")}
    keys = {f"{key} {kind}".strip(): key for key in e.metrics}
    keys |= {"fvd": "fvd", "rate": "rate", "squared_error posterior mean": "squared_error"}
    rows = [
        Row(row["name"], {k: _score(row.get(v)) for k, v in keys.items()}, row.get("note") or "", row["mark"])
        for row in e.facts.get("published") or []
    ]
    return {caption(of.get("name"), of.get("data")): rows}


def scores_table(e: Evaluated) -> Table:
    """Every row of one evaluation, and the published ones."""
    if e.images:
        return compared([e])
    n = e.facts.get("n_samples")

    def rows(*methods: str) -> list[Row]:
        scores = {m: {key: e.score("results", m, key) for key in e.metrics} for m in methods}
        counted = {m: n is not None and m.split()[-1] in ("best", "mean", "worst") for m in methods}
        return [Row(f"{m} of {n}" if counted[m] else m, scores[m], NOTES.get(m, "")) for m in methods]

    fvd = {"fvd": e.score("frechet", "FVD", "distance")}
    drawn = (e.find("frechet", "FVD", "n_fake") or 1) // (e.find("frechet", "FVD", "n_real") or 1)
    each = ("one future each", "the first future of each video")
    if drawn > 1:
        each = (f"{drawn} futures each", f"the first {drawn} futures of each video")
    sections = {
        "Predicted": [*rows("best", "mean", "worst"), Row(each[0], fvd, each[1])],
        "Not a prediction": rows("posterior"),
        "The true simulator, the ceiling": rows("oracle best", "oracle mean"),
        "Without a model": rows(*BASELINES),
        "Others": rows(*(m for m in e.facts["results"] if m not in NOTES)),
    }
    text = "Mean over predicted frames, then over videos, \u00b1 95 % interval over videos"
    return _table(text, [*(_metric_column(k, m) for k, m in e.metrics.items()), FVD], sections | _published(e))


def compared(group: Sequence[Evaluated]) -> Table:
    """Runs as rows; below them the simulator, the baselines and the published rows of their common test set."""
    first = group[0]
    metrics = {key: metric for e in reversed(group) for key, metric in e.metrics.items()}
    columns = [_metric_column(key, metric, kind) for key, metric in metrics.items() for kind in ("best", "mean")]
    if first.images:
        text = "summed over an image's pixels in [0, 1]; lower is better"
        kinds = first.facts["squared_error"]
        columns = [Column(f"squared_error {z}", f"squared error, {z}", 2, "lower", text) for z in kinds]
    bounded = {e.find("bounds", "bits_bound_the_bytes") for e in group if e.facts.get("bounds")}
    bits = {
        (True,): "what a lossless code would need at most; lower is better",
        (False,): "of the decoder's density, no bound on the bytes; lower is better",
    }.get(tuple(bounded), "bounds on the bytes for some runs, of densities for others: these do not compare")
    columns += [
        FVD,
        Column("bits", "bits/dim", 3, "lower" if len(bounded) == 1 else "", bits),
        Column("rate", "rate (nats)", 2, "", f"KL per {'image' if first.images else 'frame'}: what the latents say"),
        Column("calibration", "calibration", 2, "one", "squared error of predictions over sigma\u00b2; 1 is right"),
        Column("diversity", "diversity", 5, "", "mean squared difference per pixel of two futures of a video"),
    ]

    def frame_scores(e: Evaluated, best: str, mean: str) -> dict[str, Score | None]:
        kinds = (("best", best), ("mean", mean))
        return {f"{key} {kind}": e.score("results", method, key) for key in e.metrics for kind, method in kinds}

    def run(e: Evaluated) -> Row:
        cells = frame_scores(e, "best", "mean") | {
            "fvd": e.score("frechet", "FVD", "distance"),
            "bits": e.score("bounds", "bits_per_dim"),
            "rate": e.score("bounds", "rate_nats_per_frame"),
            "calibration": e.score("calibration", "prediction", "ratio"),
            "diversity": e.score("diversity"),
        }
        cells |= {f"squared_error {z}": e.score("squared_error", z) for z in e.facts.get("squared_error", ())}
        sizes = {"n_samples": "N", "n_images": "images", "step": "step", "seed": "seed"}
        return Row(e.name, cells, ", ".join(f"{sizes[k]} {e.facts[k]}" for k in sizes if e.facts.get(k) is not None))

    def other(name: str, best: str, mean: str) -> list[Row]:
        """From the run with the most samples: their test videos are the same."""
        have = [e for e in group if e.find("results", best)]
        if not have:
            return []
        e = max(have, key=lambda e: e.facts.get("n_samples") or 0)
        n = f", N {e.facts['n_samples']}" if best.startswith("oracle") and e.facts.get("n_samples") else ""
        return [Row(name + n, frame_scores(e, best, mean), NOTES[best])]

    sections = {
        "Models": _mark_best([run(e) for e in group], columns),
        "The true simulator, the ceiling": other("simulator", "oracle best", "oracle mean"),
        "Without a model": [row for name in BASELINES for row in other(name, name, name)],
    }
    text = "Mean over the test set \u00b1 95 % interval" + (
        "; bold: the best run of a column" if len(group) > 1 else ""
    )
    return _table(text, columns, sections | _published(first, "best"))


def differences(group: Sequence[Evaluated]) -> list[tuple[str, list[str]]]:
    """(setting, its value per run) where settings, steps or seeds differ; one that is absent or None is a dash."""
    settings = [
        {k: v for k, v in flat(e.facts.get("config") or {}).items() if k != "run_dir"}
        | {k: e.facts.get(k) for k in ("checkpoint", "step", "seed")}
        for e in group
    ]
    rows = []
    for name in sorted({name for s in settings for name in s}):
        values = ["\u2013" if s.get(name) is None else json.dumps(s[name]).strip('"') for s in settings]
        rows += [(name, values)] if len(set(values)) > 1 else []
    return rows


def flat(settings: object, prefix: str = "") -> dict[str, object]:
    """{"data": {"name": x}} -> {"data.name": x}."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    return {k: v for key, part in settings.items() for k, v in flat(part, f"{prefix}.{key}".lstrip(".")).items()}
