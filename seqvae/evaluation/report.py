"""report.html: an evaluation as one page that needs no other file, or several evaluations side by side.

Pictures are inlined; there is no script and no request. tables.py and charts.py say what is on the page,
report.html.j2 how it looks.
"""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import jinja2
from PIL import Image

from seqvae.evaluation.charts import PLOT, SIZE, figures
from seqvae.evaluation.tables import (
    BASELINES,
    Evaluated,
    Table,
    cell_text,
    comparable,
    compared,
    differences,
    flat,
    number,
    read_evaluations,
    scores_table,
    title_of,
)
from seqvae.metrics.published import MARKS
from seqvae.training.checkpoint import write_atomically

SHOWN = 8  # videos whose animation and strip a page holds: a few MB
WIDTH = 110  # columns of a terminal's table
APART = (
    "These runs were scored under different protocols or on different test data, so their numbers do not compare; "
    "each group below compares within itself alone."
)


def write_report(path: Path, folders: Sequence[Path]) -> None:
    """Writes one self-contained page about one evaluation, or about several side by side.

    Args:
        path: ends in .html; whole or absent. Its folder must exist.
        folders: of evaluations, each with a metrics.json; pictures that are missing or damaged are left out. Several
            are compared, in groups of one protocol and test set.

    Raises:
        FileNotFoundError: a folder without metrics.json.
        ValueError: no folders, or a metrics.json that cannot be read or lacks what every evaluation has.
        OSError: the page cannot be written.
    """
    groups = comparable(read_evaluations(folders))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # most entries of metrics.json may be absent
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "flat": flat}
    environment.globals |= {"cell_text": cell_text, "MARKS": MARKS, "APART": APART, "PLOT": PLOT, "SIZE": SIZE}
    template = environment.get_template("report.html.j2")
    alone = len(folders) == 1
    page = template.render(groups=[_view(group, alone) for group in groups], alone=alone, n_runs=len(folders))
    write_atomically(Path(path), page.encode())


def comparison_table(folders: Sequence[Path]) -> list[str]:
    """The comparison for the terminal, at most WIDTH columns wide; raises as write_report does."""
    groups = comparable(read_evaluations(folders))
    lines = [*wrap(APART, WIDTH), ""] if len(groups) > 1 else []
    for group in groups:
        table = compared(group)
        marks = dict.fromkeys(row.mark for _, rows in table.sections for row in rows if row.mark)
        notes = [
            f"{c.label.removesuffix(', best')}: {c.note}." for c in table.columns if c.note and "mean" not in c.key
        ]
        notes += [f"{title}." for title, _ in table.sections if title.startswith("Published")]
        notes += [f"[{mark}] {MARKS[mark]}." for mark in marks]
        lines += [*wrap(title_of(group), WIDTH), "", *_aligned(table), "Mean over the test set +- 95 % interval."]
        lines += [line for note in notes for line in wrap(note, WIDTH)] + [""]
    return lines[:-1]


def _aligned(table: Table) -> list[str]:
    """Blocks of aligned columns, each as wide as fits in WIDTH, with the rows that have something there."""
    rows = [row for _, rows in table.sections for row in rows]
    marks = [f" [{row.mark}]" if row.mark else "" for row in rows]
    names = [(r.name if len(r.name + m) <= 38 else f"{r.name[: 37 - len(m)]}\u2026") + m for r, m in zip(rows, marks)]
    left = 2 + max(map(len, names), default=0)
    cells = [[" +- ".join(filter(None, cell_text(r, c))).replace("\u2212", "-") for r in rows] for c in table.columns]
    widths = [2 + max(map(len, [column.label, *texts])) for column, texts in zip(table.columns, cells)]
    blocks: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if blocks[-1] and left + sum(widths[k] for k in blocks[-1]) + width > WIDTH:
            blocks.append([])
        blocks[-1].append(i)
    lines = []
    for block in blocks:
        lines.append(" " * left + "".join(f"{table.columns[i].label:>{widths[i]}}" for i in block))
        for r, name in enumerate(names):
            if any(cells[i][r] for i in block):
                lines.append(f"{name:<{left}}" + "".join(f"{cells[i][r]:>{widths[i]}}" for i in block))
        lines.append("")
    return [line.rstrip() for line in lines]


def _view(group: Sequence[Evaluated], alone: bool) -> dict[str, object]:
    """What the template shows of a group; alone: it is one evaluation, and the page is about nothing else."""
    first, table = group[0], compared(group)
    return {
        "title": title_of(group),
        "images": first.images,
        "runs": [{"name": e.name, "facts": e.facts, "metrics": e.metrics, **_pictures(e)} for e in group],
        "headline": headline(first) if alone else leader(table),
        "table": scores_table(first) if alone else table,
        "part": any(first.facts.get(k) != first.definitions.get(k) for k in ("n_samples", "n_videos")),
        "figures": figures(group, alone),
        "differences": differences(group),
    }


def headline(e: Evaluated) -> list[str]:
    """What was predicted, and how good that is beside what needs no model and beside the simulator."""
    facts, d, n = e.facts, e.definitions, e.facts.get("n_samples")
    if e.images:
        error, rate = e.score("squared_error", "posterior mean"), e.score("bounds", "rate_nats_per_frame")
        text = f"{facts.get('n_images', 'Some')} test images of {e.find('test_set', 'name')}, coded and redrawn."
        code = f" A code of {number(rate[0])} nats holds what it needs." if rate else ""
        return [text, f"A redrawn image has a summed squared error of {number(error[0])}.{code}"] if error else [text]
    futures = "one future" if n == 1 else f"{n} futures" if n else "futures"
    lines = [
        f"Shown {d.get('n_past')} frames of a video, the model draws the next {d.get('n_future')}: {futures} for "
        f"each of {facts.get('n_videos', 'the')} test videos of {e.find('test_set', 'name')}."
    ]
    for i, key in enumerate(e.metrics):
        lines += _standing(e, key, in_full=i == 0)
    return lines


def _standing(e: Evaluated, key: str, in_full: bool) -> list[str]:
    """A metric's sentences: a typical future beside the best guess without a model; in full, also black and oracle."""
    better, n = 1 if e.metrics[key]["higher_is_better"] else -1, e.facts.get("n_samples")
    name, unit, digits = ("PSNR", " dB", 2) if key == "psnr" else (e.metrics[key]["label"], "", 4)
    scores = {m: s for m in ("best", "mean", "oracle best", *BASELINES) if (s := e.score("results", m, key))}

    def beside(ours: str, theirs: str) -> str:
        (a, a_half), (b, b_half) = scores[ours], scores[theirs]
        if abs(a - b) <= math.hypot(a_half or 0, b_half or 0):
            return "level, within the intervals, with"
        return f"{number(abs(a - b), digits)}{unit} {'better' if better * (a - b) > 0 else 'worse'} than"

    lines = []
    if "mean" in scores:
        text = f"A typical future scores {number(scores['mean'][0], digits)}{unit} in {name}"
        guesses = sorted((m for m in BASELINES if m in scores), key=lambda m: -better * scores[m][0])
        if guesses:
            text += f": {beside('mean', guesses[0])} {BASELINES[guesses[0]]}, the best guess without a model"
        if in_full and "black" in guesses[1:]:
            text += f", and {beside('mean', 'black')} black frames"
        lines.append(f"{text}.")
    if in_full and "best" in scores and n != 1:
        text = f"The best of {n or 'its futures'} scores {number(scores['best'][0], digits)}{unit}"
        if "oracle best" in scores:
            ceiling = number(scores["oracle best"][0], digits)
            text += f": {beside('best', 'oracle best')} the true simulator, the ceiling ({ceiling}{unit})"
        lines.append(f"{text}.")
    return lines


def leader(table: Table) -> list[str]:
    """Which run is the best in the first column, and by how much."""
    column, rows = table.columns[0], table.sections[0][1]
    scores = {row.name: row.cells[column.key] for row in rows if row.cells.get(column.key)}
    first = next((row.name for row in rows if column.key in row.best), None)
    if first is None:
        return []
    gaps = {name: abs(score[0] - scores[first][0]) for name, score in scores.items() if name != first}
    second = min(gaps, key=gaps.get)
    doubt = gaps[second] <= math.hypot(scores[first][1] or 0, scores[second][1] or 0)
    return [
        f"{first} leads in {column.label.replace(', ', ' of the ')}: {number(scores[first][0], column.digits)}, "
        f"{number(gaps[second], column.digits)} ahead of {second}" + (", within the intervals." if doubt else ".")
    ]


def _pictures(e: Evaluated) -> dict[str, object]:
    """The grid, and an animation and a strip per shown video, inlined, with what is seen on them."""
    past, n = e.definitions.get("n_past", 0), e.facts.get("n_samples")
    panels = ["the truth", *(["the posterior's redrawing"] if e.find("results", "posterior") else [])]
    panels += (["the best future"] if n and n > 1 else []) + ["single futures"]
    seen = (
        f"{', '.join(panels)}; frames 0 to {past - 1} are seen (green border), "
        f"{past} to {past + e.definitions.get('n_future', 0) - 1} predicted (red border; grey: to compare with)."
    )
    stems = {p.stem for kind in ("gifs", "strips") for p in (e.folder / kind).glob("video_*.*")}
    videos = []
    for stem in sorted(stems)[:SHOWN]:
        name = f"video {int(stem[6:])}" if stem[6:].isdecimal() else stem
        animation, strip = _animation(e.folder / "gifs", stem), _picture(e.folder / "strips" / f"{stem}.png")
        if animation:
            animation["alt"] = f"Animation of test {name}, side by side: {seen}"
        if strip:
            strip["alt"] = f"Film strip of test {name}, time from left to right, rows from the top: {seen}"
        videos.append({"name": name, "animation": animation, "strip": strip})
    if main := _animation(e.folder / "gifs", "grid"):
        main["alt"] = f"Animation of {e.name}: a test video per row, side by side: {seen}"
    elif main := _picture(e.folder / "images.png"):
        main["alt"] = f"{e.name}: rows of test images, their redrawings from the posterior, and images from the prior."
    return {"main": main, "videos": videos}


def _animation(folder: Path, stem: str) -> dict[str, object] | None:
    """In the first format of those that an image element shows."""
    return next((p for ending in ("gif", "apng", "png") if (p := _picture(folder / f"{stem}.{ending}"))), None)


def _picture(path: Path) -> dict[str, object] | None:
    """A data: URI and the size, of an animation its last frame as well; None if it is missing or no whole picture."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["GIF", "PNG"]) as image:
            found = {"uri": _data_uri(content, image.format), "width": image.width, "height": image.height}
            image.load()
            if getattr(image, "n_frames", 1) > 1:
                image.seek(image.n_frames - 1)
                still = io.BytesIO()
                image.save(still, "PNG")
                found["still"] = _data_uri(still.getvalue(), "PNG")
            return found
    except (OSError, SyntaxError, EOFError):  # what Pillow raises for files that are cut short or no pictures
        return None


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
