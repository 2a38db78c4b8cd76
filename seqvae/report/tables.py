"""Tables of one evaluation or of several side by side: the same for the page and, by tabulate, for the terminal.

Measures nothing. Evaluations share a table only under one protocol on the same test videos.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from tabulate import SEPARATING_LINE, tabulate

from seqvae.metrics.protocols import MEAN_IMAGE_CLIPS, METRICS, Metric
from seqvae.metrics.published import MARKS, caption
from seqvae.report.evaluated import Evaluated, Score, as_score, finite, of_actions, read_evaluations

WIDTH = 112  # columns of the terminal
NAME_WIDTH = 40  # of a row's name there
APART = (
    "These runs were scored under different protocols or on different test data, so their numbers do not compare; "
    "each group below compares within itself alone."
)
BASELINES = {
    "copy last frame": "the last observed frame, repeated",
    "mean of context": "the average of the observed frames",
    "mean training image": "the average picture of the training set",
    "black": "black frames",
}
_LIMITS = "".join(
    f"; {m.name} of a frame, {m.oracle_limit:g} {m.unit} at most" for m in METRICS.values() if m.oracle_limit
)
NOTES = BASELINES | {
    "best": "the future nearest to the truth, chosen per video by looking at it",
    "mean": "a typical future: the average score",
    "worst": "the future farthest from the truth",
    "posterior": "each frame reconstructed by a model that has seen it: what the decoder can do, not a prediction",
    "oracle best": f"the program that made the videos, continued from the true state{_LIMITS}",
    "oracle mean": "a typical future of that program",
    "mean training image": f"the average picture of the training set, or of its first {MEAN_IMAGE_CLIPS} clips",
}


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
    text = (
        f"{facts['protocol']} on {facts['test_set'].get('name')}: {facts.get('n_videos', 'some')} videos, "
        f"{d.get('n_past')} frames observed, {d.get('n_future')} predicted"
    )
    actions, *others = {of_actions(e.facts) for e in group}
    return f"{text}, {actions}" if actions and not others else text


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


def table_text(table: Table) -> list[str]:
    """For the terminal: blocks of columns, at most WIDTH wide, then what columns, rows and marks mean."""
    lines, rest = [], table.columns
    while rest:
        sizes = range(len(rest), 1, -1)
        n = next((n for n in sizes if max(map(len, _block(table, rest[:n]))) <= WIDTH), 1)
        lines, rest = [*lines, *_block(table, rest[:n]), ""], rest[n:]
    rows = [row for _, rows in table.sections for row in rows]
    notes = [
        f"{c.label.removesuffix(', best')}: {c.note}"
        for c in table.columns
        if c.note and not c.label.endswith(", mean")
    ]
    notes += [f"{', '.join(r.name for r in rows if r.note == note)}: {note}" for note in _unique(r.note for r in rows)]
    notes += [title for title, _ in table.sections if title.startswith("Published")]
    notes += [f"[{mark}] {MARKS[mark]}" for mark in _unique(r.mark for r in rows)]
    return lines + [
        line for note in [table.caption.replace("\u00b1", "+-"), *notes] for line in wrap(f"{note}.", WIDTH)
    ]


def _block(table: Table, columns: list[Column]) -> list[str]:
    """These columns, with the rows that have something there; a rule between sections."""
    lines: list = []
    for _, rows in table.sections:
        texts = [[row, *(" +- ".join(filter(None, cell_text(row, c))) for c in columns)] for row in rows]
        kept = [[f"{row.name} [{row.mark}]" if row.mark else row.name, *cells] for row, *cells in texts if any(cells)]
        lines += [SEPARATING_LINE, *kept] if lines and kept else kept
    columns_as = dict(colalign=["left", *["right"] * len(columns)], maxcolwidths=[NAME_WIDTH, *[None] * len(columns)])
    text = tabulate(lines, ["", *(c.label for c in columns)], "simple", disable_numparse=True, **columns_as)
    return [line.rstrip() for line in text.replace("\u2212", "-").splitlines()]


def _unique(texts: Iterable[str]) -> list[str]:
    """In their order, without empty ones."""
    return list(dict.fromkeys(filter(None, texts)))


def number(value: object, digits: int = 2) -> str:
    """With thousands and a true minus sign; a dash for what is missing or not finite."""
    return f"{value:,.{digits}f}".replace("-", "\u2212") if finite(value) else "\u2013"


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


def _metric_column(metric: Metric, kind: str = "") -> Column:
    label, better = metric.label + (f", {kind}" if kind else ""), "higher" if metric.higher_is_better else "lower"
    return Column(f"{metric.key} {kind}".strip(), label, metric.digits, better, metric.definition)


FVD = Column("fvd", "FVD", 1, "lower", "Fr\u00e9chet distance of I3D features of whole videos; lower is better")


def _published(e: Evaluated, kind: str = "") -> dict[str, list[Row]]:
    """Heading -> rows, with the columns' keys of `_metric_column`."""
    of = e.definitions or {"name": "images", "data": e.find("test_set", "name")}
    keys = {f"{key} {kind}".strip(): key for key in e.metrics}
    keys |= {"fvd": "fvd", "rate": "rate", "squared_error posterior mean": "squared_error"}
    rows = [
        Row(row["name"], {k: as_score(row.get(v)) for k, v in keys.items()}, row.get("note") or "", row["mark"])
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
        sampled = {m: n is not None and m.split()[-1] in ("best", "mean", "worst") for m in methods}
        return [Row(f"{m} of {n}" if sampled[m] else m, scores[m], notes.get(m, "")) for m in methods]

    by = e.metrics.get(e.definitions.get("best_by"))
    notes = NOTES | {"best": NOTES["best"] + (f", by {by.name}" if by else ", for each metric by itself")}
    fvd = {"fvd": e.score("frechet", "FVD", "distance")}
    futures = (e.find("frechet", "FVD", "n_fake") or 1) // (e.find("frechet", "FVD", "n_real") or 1)
    each = ("one future each", "the first future of each video")
    if futures > 1:
        each = (f"{futures} futures each", f"the first {futures} futures of each video")
    sections = {
        "Predicted": [*rows("best", "mean", "worst"), Row(each[0], fvd, each[1])],
        "Not a prediction": rows("posterior"),
        "The true simulator, the ceiling": rows("oracle best", "oracle mean"),
        "Without a model": rows(*BASELINES),
        "Others": rows(*(m for m in e.facts["results"] if m not in NOTES)),
    }
    text = "Mean over predicted frames, then over videos, \u00b1 95 % interval over videos"
    return _table(text, [*map(_metric_column, e.metrics.values()), FVD], sections | _published(e))


def compared(group: Sequence[Evaluated]) -> Table:
    """Runs as rows; below them the simulator, the baselines and the published rows of their common test set."""
    first = group[0]
    metrics = {key: metric for e in reversed(group) for key, metric in e.metrics.items()}
    columns = [_metric_column(metric, kind) for metric in metrics.values() for kind in ("best", "mean")]
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
    text = "Mean over the test set, \u00b1 95 % interval"
    return _table(text, columns, sections | _published(first, "best"))


def differences(group: Sequence[Evaluated]) -> list[tuple[str, list[str]]]:
    """(setting, its value per run) where settings, steps or seeds differ; one that is absent or None is a dash."""
    settings = [
        {k: v for k, v in flat(e.facts.get("config") or {}).items() if k != "run_dir"}
        | {k: e.facts.get(k) for k in ("checkpoint", "step", "seed", "actions")}
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


def evaluation_text(e: Evaluated) -> list[str]:
    """One evaluation for the terminal: its table, and what the table does not hold."""
    lines = [*wrap(title_of([e]), WIDTH), "", *table_text(scores_table(e)), ""]
    if e.definitions.get("norm") not in (None, "eval mode"):
        lines += wrap(f"norm layers: {e.definitions['norm']}.", WIDTH)
    for key in e.facts:
        if key.startswith("diversity") and (score := e.score(key)):
            text = " +- ".join(number(part, 5) for part in score if part is not None)
            lines.append(f"{key.replace('_', ', ')}: {text}, {e.find(key, 'definition')}.")
    for kind in ("prediction", "posterior"):
        if ratio := e.score("calibration", kind, "ratio"):
            inside = e.find("calibration", kind, "coverage") or {}
            shares = [
                f"{100 * as_score(share)[0]:.0f} % of pixels in the central {100 * float(level):.0f} %"
                for level, share in inside.items()
            ]
            lines.append(f"calibration, {kind}: squared residual / sigma^2 {ratio[0]:.3g}; {', '.join(shares)}.")
    for name, d in (e.facts.get("frechet") or {}).items():
        futures = d["n_fake"] // d["n_real"]
        floor = "" if d["floor"] is None else f"; real against real, half as many: {d['floor']:.1f}"
        each = f"{futures} future{'s' if futures > 1 else ''} of each video"
        lines.append(f"{name}: {d['distance']:.1f} ({d['definition']}; {each}{floor})")
        lines += [f"  {d['warning']}"] if d["warning"] else []
    return [*lines, *e.facts["left_out"], "test set: {name}, SHA-256 {sha256}".format(**e.facts["test_set"])]


def comparison_table(folders: Sequence[Path]) -> list[str]:
    """Evaluations in several folders, side by side for the terminal; raises as `read_evaluations` does."""
    groups = comparable(read_evaluations(folders))
    lines = [*wrap(APART, WIDTH), ""] if len(groups) > 1 else []
    for group in groups:
        lines += [*wrap(title_of(group), WIDTH), "", *table_text(compared(group)), ""]
    return lines[:-1]
