"""Charts: what is drawn where, as SVG in the page's colours and as PNG."""

import html.parser
import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from seqvae.report.plots import (
    BOTTOM,
    CEILING,
    COLOURS,
    DASHED,
    HEIGHT,
    LEFT,
    LIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Figures,
    Line,
    Style,
    chart,
    draw,
    style,
    svg,
    write_png,
)


def drawn(chart: Chart):
    axes = Figure().add_subplot()
    draw(axes, chart)
    return axes


def test_values_and_bands_stand_where_the_axes_say():
    band = dict(low=[-1.0, 4.0, 8.0], high=[1.0, 6.0, 12.0])
    (found,) = chart("y", "N", [Line("a", [1, 10, 100], [0.0, 5.0, 10.0], **band)], log_x=True)
    axes = drawn(found)
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[1, 0], [10, 5], [100, 10]]
    assert axes.get_xscale() == "log" and axes.get_xticks().tolist() == [1, 10, 100] and axes.get_xlim() == (1, 100)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "10", "100"]
    (polygon,) = axes.collections
    assert {tuple(corner) for corner in polygon.get_paths()[0].vertices} >= {(1, -1), (10, 6), (100, 8), (100, 12)}
    low, high = axes.get_ylim()
    assert low < -1 and high > 12 and axes.get_xlabel() == "N"


def test_what_is_not_finite_is_left_out_and_a_chart_of_nothing_is_none():
    assert chart("y", "x", [Line("b", [1], [math.nan])]) == chart("y", "x", []) == []
    (found,) = chart("y", "x", [Line("a", [1, 2, 3], [1.0, math.inf, 3.0], [0.0, None, 2.0], [2.0, 1.0, 4.0])])
    assert found.lines[0][1:5] == ([1, 3], [1, 3], [0, 2], [2, 4])
    (found,) = chart("y", "x", [Line("a", [1, 2], [1.0, 3.0], [0.0, None], [2.0, 4.0])])
    assert found.lines[0].low is None, "an interval that is known in part is not drawn"


def test_the_simulator_does_not_squash_the_models():
    lines = [Line("m", [0, 1], [1.0, 2.0]), Line("s", [0, 1], [90.0, 100.0], style=CEILING)]
    axes = drawn(chart("y", "x", lines)[0])
    low, high = axes.get_ylim()
    assert 1 / (high - low) > 0.4 and high < 90
    assert "s: 100 \u2191" in [text.get_text() for text in axes.texts]


def test_an_axis_that_starts_at_zero_does_and_one_point_has_a_place():
    axes = drawn(chart("y", "x", [Line("a", [3], [5.0])], zero=True)[0])
    assert axes.get_ylim()[0] == 0 and axes.get_xlim()[0] < 3 < axes.get_xlim()[1]


def test_24_runs_differ_and_every_colour_of_the_drawing_has_one_name():
    assert len({style(i) for i in range(24)}) == 24
    assert len(set(LIGHT.values())) == len(COLOURS)


class Tags(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    handle_startendtag = handle_starttag


def test_svg_is_in_the_pages_colours_and_font_and_touches_nothing_else_of_the_page():
    evil = "<b>a & b</b>"
    lines = [Line(evil, range(20), np.linspace(0, 1, 20).tolist()), Line("c", [1], [0.5], style=Style("muted", DASHED))]
    found, other = (svg(chart("SSIM", x_label, lines)[0]) for x_label in ("frame t", "N"))
    assert found.startswith(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="SSIM by frame t: &lt;b&gt;a')
    for name in ("text", "soft", "rule", "c0", "muted"):
        assert f"var(--{name})" in found
    assert not re.search("#[0-9a-f]{6}", found) and "DejaVu" not in found and "<style" not in found
    assert "<b>" not in found and "<title>&lt;b&gt;a &amp; b&lt;/b&gt;</title>" in found
    ids = [{value for _, name, value in Tags(text).attributes if name == "id"} for text in (found, other)]
    assert ids[0] and not ids[0] & ids[1], "two charts of one page share no id"
    assert svg(chart("SSIM", "N", lines)[0]) == other


def test_png_holds_all_charts_of_a_kind_and_their_legend(tmp_path):
    lines = [Line("a", range(9), list(range(9))), Line("b", [0, 1], [1.0, 2.0])]
    charts = [found for i in range(4) for found in chart(f"chart {i}", "frame t", lines)]
    write_png(tmp_path / "c.png", Figures("frames", charts))
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]
    with Image.open(tmp_path / "c.png") as image:
        width, height = (150 / 72 * n for n in (3 * WIDTH, 2 * HEIGHT))
        assert 0.8 * width < image.width < 1.1 * width and 0.8 * height < image.height < 1.3 * height
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (np.abs(pixels - ImageColor.getrgb(LIGHT["c0"])).max(-1) < 3).sum() > 1000
    assert (pixels[0, 0] == 255).all()


def test_the_axes_lie_inside_the_picture():
    assert 0 < LEFT < RIGHT < WIDTH and 0 < TOP < BOTTOM < HEIGHT


@pytest.mark.parametrize("label", ["$x$", "a_b^c", "100 %"])
def test_names_of_runs_are_text_and_no_formula(label):
    assert f"<title>{label}</title>" in svg(chart(label, label, [Line(label, [1, 2], [1.0, 2.0])])[0])
