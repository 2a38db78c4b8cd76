import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from seqvae.plots import Curve, write_calibration, write_curves, write_scores_by_n
from tests.helpers import rgb


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    saved, savefig = [], Figure.savefig

    def remember(figure, *args, **kwargs):
        saved.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


def test_curves_are_a_png_as_wide_as_there_are_metrics(tmp_path):
    x = np.linspace(0, 1, 20)
    curves = [
        Curve("best of 100", 20 - x, 0.1 + x),
        Curve("posterior", np.full(24, 25.0), muted=True, x=np.arange(1, 25)),
    ]
    for n, plots in enumerate([{"PSNR (dB)": curves}, {"PSNR (dB)": curves, "SSIM": curves[:1]}], start=1):
        write_curves(tmp_path / "c.png", plots, n_past=5, title="own")
        with Image.open(tmp_path / "c.png") as image:
            assert (image.format, image.size) == ("PNG", (780 * n, 600))
            assert (np.abs(np.asarray(image.convert("RGB")).astype(int) - rgb("#0072b2")).max(-1) < 3).sum() > 100
    many = {"SSIM": [Curve(f"run {i}", x, muted=i % 2 == 0) for i in range(40)]}
    write_curves(tmp_path / "c.png", many, n_past=5)
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def lines_of(axes) -> dict[str, tuple[list[float], list[float]]]:
    """Colour and marker -> x, y of the lines of a subplot that are not dashed."""
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    return {(line.get_color(), line.get_marker()): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def bands_of(axes) -> list[tuple[list[float], list[float], list[float]]]:
    """x, low and high of the bands of a subplot."""
    found = []
    for band in axes.collections:
        corners = np.unique(band.get_paths()[0].vertices, axis=0)
        xs = np.unique(corners[:, 0])
        ys = [corners[corners[:, 0] == x, 1] for x in xs]
        found.append((xs.tolist(), [y.min() for y in ys], [y.max() for y in ys]))
    return found


def test_curves_stand_at_their_frames_with_symmetric_or_asymmetric_bands(tmp_path, figures):
    values, low_high = np.array([3.0, 2.0, 4.0]), np.array([[2.0, 1.5, 1.0], [3.5, 6.0, 4.0]])
    plots = {
        "PSNR (dB)": [
            Curve("a", values, np.array([0.5, 0.25, 1.0])),
            Curve("b", values, low_high, x=np.array([1, 4, 6])),
        ],
        "SSIM": [Curve("b", values), Curve("black", 0.5, muted=True)],
    }
    write_curves(tmp_path / "c.png", plots, n_past=5, title="own")
    psnr, ssim = figures[0].axes
    assert [axes.get_ylabel() for axes in (psnr, ssim)] == ["PSNR (dB)", "SSIM"]
    assert psnr.get_xlabel() == "frame index t (predicted from t = 5)"
    a, b = lines_of(psnr)
    assert lines_of(psnr) == {a: ([5, 6, 7], [3, 2, 4]), b: ([1, 4, 6], [3, 2, 4])}
    assert a[0] != b[0] and a[1] != b[1]  # told apart by colour, and in grey by marker
    assert list(lines_of(ssim)) == [b]  # the same look in each subplot
    assert bands_of(psnr)[0] == ([5, 6, 7], [2.5, 1.75, 3], [3.5, 2.25, 5])
    assert bands_of(psnr)[1] == ([1, 4, 6], *low_high.tolist())
    assert list(ssim.lines[-1].get_ydata()) == [0.5, 0.5] and ssim.lines[-1].get_linestyle() == "--"
    assert psnr.get_xlim() == (0.5, 7.5) and ssim.get_xlim() == (4.5, 7.5)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a", "b", "black"]


def test_scores_by_n_have_a_logarithmic_axis_with_a_tick_at_each_n(tmp_path, figures):
    n = [1, 2, 5, 10, 20, 50, 100]
    ours, oracle = np.log(n), 2 + np.log(n)
    subplot = [
        Curve("ours", ours, np.stack([ours - 0.1, ours + 0.3])),
        Curve("oracle", oracle),
        Curve("black", 1.0, muted=True),
    ]
    write_scores_by_n(tmp_path / "n.png", {"PSNR (dB)": subplot, "SSIM": subplot[:1]}, n)
    for axes in figures[0].axes:
        assert axes.get_xscale() == "log" and "number of samples N" in axes.get_xlabel()
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "5", "10", "20", "50", "100"]
        assert axes.get_xticks().tolist() == n and not list(axes.get_xticks(minor=True))
    psnr = figures[0].axes[0]
    assert [y for _, y in lines_of(psnr).values()] == [ours.tolist(), oracle.tolist()]
    assert [x for x, _ in lines_of(psnr).values()] == [n, n]
    assert bands_of(psnr) == [(n, (ours - 0.1).tolist(), (ours + 0.3).tolist())]
    with Image.open(tmp_path / "n.png") as image:
        assert (image.format, image.size) == ("PNG", (1560, 600))


@pytest.mark.parametrize(
    "ratio, scale",
    [([0.5, 1.2, 4.0], "linear"), ([0.9, 3.0, 9.5], "log"), ([2.0, 5.0, 11.0], "log"), ([0.0, 1.0, 50], "linear")],
)
def test_calibration_shows_the_ideal_and_a_logarithmic_ratio_beyond_a_decade_from_it(tmp_path, figures, ratio, scale):
    ratios = [Curve("prediction", np.array(ratio)), Curve("posterior", np.full(3, ratio[1]))]
    coverages = [
        Curve("prediction, 90 %", np.array([0.9, 0.8, 0.7])),
        Curve("prediction, 50 %", np.array([0.5, 0.4, 0.3])),
    ]
    write_calibration(tmp_path / "c.png", ratios, coverages, n_past=2)
    left, right = figures[0].axes
    assert left.get_yscale() == scale and right.get_yscale() == "linear"
    assert [list(line.get_ydata()) for line in left.lines if line.get_linestyle() == "--"] == [[1, 1]]
    assert [list(line.get_ydata()) for line in right.lines if line.get_linestyle() == "--"] == [[0.5] * 2, [0.9] * 2]
    assert [y for _, y in lines_of(left).values()] == [ratio, [ratio[1]] * 3]
    assert [y for _, y in lines_of(right).values()] == [[0.9, 0.8, 0.7], [0.5, 0.4, 0.3]]
    assert right.get_ylim()[0] == 0 and right.get_ylim()[1] > 1
    low, high = left.get_ylim()
    assert low <= min(1, *ratio) and max(1, *ratio) <= high


def test_the_legend_of_a_single_plot_stays_inside_the_picture(tmp_path, figures):
    labels = ["ours", "oracle (ceiling)", "copy last frame", "mean of context", "mean training image", "black"]
    write_scores_by_n(tmp_path / "n.png", {"SSIM": [Curve(label, np.ones(2)) for label in labels]}, [1, 2])
    (legend,) = figures[0].legends
    box, picture = legend.get_window_extent(), figures[0].bbox
    assert box.x0 >= 0 and box.x1 <= picture.x1 and box.y0 >= 0
    assert [text.get_text() for text in legend.get_texts()] == labels


def test_curves_that_do_not_fit_are_refused_in_one_line(tmp_path):
    path = tmp_path / "c.png"
    for shape in ((2,), (1, 3), (3, 2)):
        with pytest.raises(
            ValueError, match=r"^curve 'a' has values \(3,\), x \(3,\) and interval \([0-9, ]+\), expected"
        ):
            write_curves(path, {"SSIM": [Curve("a", np.zeros(3), np.zeros(shape))]}, 3)
    with pytest.raises(ValueError, match=r"^curve 'a' has values \(3,\), x \(2,\) and interval \(\), expected"):
        write_scores_by_n(path, {"SSIM": [Curve("a", np.zeros(3))]}, [1, 2])
    with pytest.raises(ValueError, match="^curve 'a' is one value, a horizontal line, which takes no x or interval$"):
        write_curves(path, {"SSIM": [Curve("a", 1.0, np.zeros(3))]}, 3)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: write_curves(path, {"SSIM": []}, 3), "at least one curve"),
        (lambda path: write_scores_by_n(path, {}, []), r"numbers >= 1, got \[\]"),
        (lambda path: write_scores_by_n(path, {}, [0, 1]), r"numbers >= 1, got \[0, 1\]"),
    ],
)
def test_nothing_to_draw_is_refused(tmp_path, write, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "c.png")
    assert not list(tmp_path.iterdir())
