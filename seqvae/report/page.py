"""report.html: an evaluation as one page that needs no other file, or several evaluations side by side.

Pictures are inlined; there is no script and no request. tables.py and plots.py say what is on the page,
report.html.j2 how it looks.
"""

import base64
import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import jinja2
from PIL import Image

from seqvae.metrics.published import MARKS
from seqvae.report import plots
from seqvae.report.evaluated import Evaluated, read_evaluations
from seqvae.report.tables import (
    APART,
    BASELINES,
    Table,
    cell_text,
    comparable,
    compared,
    differences,
    flat,
    number,
    scores_table,
    title_of,
)
from seqvae.training.checkpoint import write_atomically

SHOWN = 8  # videos whose animation and strip a page holds: a few MB


def write_report(path: Path, folders: Sequence[Path]) -> None:
    """The page about one evaluation, or about several side by side, as `write_page`; raises as `read_evaluations`."""
    write_page(path, read_evaluations(folders))


def write_page(path: Path, evaluations: Sequence[Evaluated]) -> None:
    """Writes one self-contained page about one evaluation, or about several side by side.

    Args:
        path: ends in .html; whole or absent. Its folder must exist.
        evaluations: pictures that are missing or damaged in their folders are left out. Several evaluations are
            compared, in groups of one protocol and test set.

    Raises:
        OSError: the page cannot be written.
    """
    alone = len(evaluations) == 1
    groups = [_view(group, alone) for group in comparable(evaluations)]
    page = _template().render(groups=groups, alone=alone, n_runs=len(evaluations))
    write_atomically(Path(path), page.encode())


@functools.cache  # compiling it takes longer than filling it
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # most entries of metrics.json may be absent
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "flat": flat, "svg": plots.svg}
    environment.globals |= {"cell_text": cell_text, "MARKS": MARKS, "APART": APART, "COLOURS": plots.COLOURS}
    return environment.get_template("report.html.j2")


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
        "figures": plots.figures(group, alone),
        "differences": differences(group),
    }


def headline(e: Evaluated) -> list[str]:
    """What was predicted, and how good that is beside what needs no model and beside the simulator."""
    facts, d, n = e.facts, e.definitions, e.facts.get("n_samples")
    if e.images:
        error, rate = e.score("squared_error", "posterior mean"), e.score("bounds", "rate_nats_per_frame")
        text = f"{facts.get('n_images', 'Some')} test images of {e.find('test_set', 'name')}, coded and reconstructed."
        code = f" A code of {number(rate[0])} nats holds what it needs." if rate else ""
        return [text, f"A reconstruction has a summed squared error of {number(error[0])}.{code}"] if error else [text]
    futures = "one future" if n == 1 else f"{n} futures" if n else "futures"
    lines = [
        f"Shown {d.get('n_past')} frames of a video, the model predicts the next {d.get('n_future')}: {futures} for "
        f"each of {facts.get('n_videos', 'the')} test videos of {e.find('test_set', 'name')}."
    ]
    for i, key in enumerate(e.metrics):
        lines += _standing(e, key, in_full=i == 0)
    return lines


def _standing(e: Evaluated, key: str, in_full: bool) -> list[str]:
    """A metric's sentences: a typical future beside the best guess without a model; in full, also black and oracle."""
    metric, n = e.metrics[key], e.facts.get("n_samples")
    better, digits, unit = 1 if metric.higher_is_better else -1, metric.digits, metric.unit and f" {metric.unit}"
    scores = {m: s for m in ("best", "mean", "oracle best", *BASELINES) if (s := e.score("results", m, key))}

    def beside(ours: str, theirs: str) -> str:
        (a, a_half), (b, b_half) = scores[ours], scores[theirs]
        if abs(a - b) <= math.hypot(a_half or 0, b_half or 0):
            return "level, within the intervals, with"
        return f"{number(abs(a - b), digits)}{unit} {'better' if better * (a - b) > 0 else 'worse'} than"

    lines = []
    if "mean" in scores:
        text = f"A typical future scores {number(scores['mean'][0], digits)}{unit} in {metric.name}"
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
    past, future = (e.definitions.get(name) or 0 for name in ("n_past", "n_future"))
    n = e.facts.get("n_samples")
    panels = ["the truth", *(["the posterior's reconstruction"] if e.find("results", "posterior") else [])]
    panels += (["the best future"] if n and n > 1 else []) + ["single futures"]
    seen = (
        f"{', '.join(panels)}; frames 0 to {past - 1} are observed (green border), "
        f"{past} to {past + future - 1} predicted (red border; grey: to compare with)."
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
        main["alt"] = (
            f"{e.name}: rows of test images, their reconstructions from the posterior, and images from the prior."
        )
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
