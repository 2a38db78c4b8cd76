import numpy as np
import pytest
from PIL import Image, ImageSequence

from seqvae import visualize
from seqvae.visualize import (
    BORDER,
    FUTURE,
    GAP,
    MARGIN,
    NEUTRAL,
    PAST,
    Curve,
    Panel,
    write_curves,
    write_gif,
    write_gif_grid,
    write_strip,
)


def moving_square(channels: int = 1, size: int = 32, n_frames: int = 8, shift: int = 0) -> np.ndarray:
    """(T, C, H, W) uint8 with a square that moves 2 px to the right per frame."""
    video = np.zeros((n_frames, channels, size, size), np.uint8)
    for t in range(n_frames):
        video[t, :, 8:16, 2 * t + shift : 2 * t + shift + 8] = np.array([250, 120, 60])[:channels, None, None]
    return video


def read_gif(path) -> tuple[list[np.ndarray], list[int], int]:
    """RGB frames, milliseconds of each, loop count."""
    with Image.open(path) as gif:
        frames = [(np.asarray(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(gif)]
        return [f for f, _ in frames], [ms for _, ms in frames], gif.info["loop"]


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def panel_tops(frame: np.ndarray, n_panels: int, width: int, row: int = 0, height: int = 128) -> list[np.ndarray]:
    """The border's colour of each panel in a row, and with it where the first row of panels begins."""
    columns = [MARGIN + k * (width + 2 * BORDER + GAP) + 1 for k in range(n_panels)]
    bright = np.flatnonzero((np.abs(frame[:, columns[0]].astype(int) - rgb(visualize.DARK.background)) > 60).any(1))
    top = bright[np.flatnonzero(np.diff(bright, prepend=-9) > 1)]  # where runs of border colour begin
    y = top[0] + row * (height + 2 * BORDER + GAP) + 1
    return [frame[y, x] for x in columns]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_read_back_has_its_frames_speed_and_border_colours(tmp_path, channels):
    video = moving_square(channels)
    panels = [Panel("truth", video, predicting=False), Panel("best of 100", video / 255), Panel("sample", video)]
    write_gif(tmp_path / "a.gif", panels, n_past=3, fps=10)
    frames, durations, loop = read_gif(tmp_path / "a.gif")
    assert durations == [100] * 7 + [1100]
    assert loop == 0
    assert frames[0].shape[1] == 2 * MARGIN + 3 * (128 + 2 * BORDER) + 2 * GAP
    for t, frame in enumerate(frames):
        expected = [PAST] * 3 if t < 3 else [NEUTRAL, FUTURE, FUTURE]
        np.testing.assert_allclose(panel_tops(frame, 3, 128), [rgb(c) for c in expected], atol=8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pictures_in_a_gif_are_the_frames_enlarged(tmp_path, channels):
    video = moving_square(channels)
    write_gif_grid(tmp_path / "a.gif", [[Panel("a", video), Panel("b", video)]] * 2, n_past=2, scale=3)
    frames, _, _ = read_gif(tmp_path / "a.gif")
    expected = np.broadcast_to(video[5].transpose(1, 2, 0), (32, 32, 3)).repeat(3, 0).repeat(3, 1)
    x = MARGIN + BORDER
    strip = frames[5][:, x : x + 96].astype(int)
    errors = [np.abs(strip[y : y + 96] - expected).max() for y in range(len(strip) - 96)]
    assert np.flatnonzero(np.array(errors) <= 8).tolist() == [
        np.argmin(errors),
        np.argmin(errors) + 96 + 2 * BORDER + GAP,
    ]


@pytest.mark.parametrize("fps, ms", [(8, 120), (5, 200), (30, 30), (50, 20)])
def test_a_gif_plays_at_the_nearest_hundredth_of_a_second(tmp_path, fps, ms):
    write_gif(tmp_path / "a.gif", [Panel("a", moving_square())], n_past=1, fps=fps)
    assert read_gif(tmp_path / "a.gif")[1] == [ms] * 7 + [ms + 1000]


def test_a_video_that_stands_still_keeps_every_frame(tmp_path):
    write_gif(tmp_path / "a.gif", [Panel("black", np.zeros((30, 1, 64, 64)))], n_past=5)
    assert len(read_gif(tmp_path / "a.gif")[0]) == 30


@pytest.mark.parametrize("label", ["truth", "best of 100 samples (PSNR 18.1 dB)", "x" * 60, "", "two words"])
def test_a_label_of_any_length_stays_inside_its_width(label):
    font, ((*lines,),) = visualize._fit([label], 136, max_lines=2)
    assert all(font.getlength(line) <= 136 for line in lines)
    assert "".join(lines).replace(" ", "") == label.replace(" ", "")


def test_a_strip_shows_every_kth_frame_with_the_border_of_its_time(tmp_path):
    rows = [Panel("truth", moving_square(), predicting=False), Panel("a long label that has to wrap", moving_square(3))]
    sizes = []
    for every, shown in ((1, 8), (3, 3)):
        write_strip(tmp_path / "a.png", rows, n_past=3, every=every)
        with Image.open(tmp_path / "a.png") as image:
            assert image.format == "PNG"
            picture = np.asarray(image)
        sizes.append((shown, *picture.shape[:2]))
        borders = [tuple(picture[y, -MARGIN - 1]) for y in range(len(picture))]  # last column shown
        assert [borders.count(tuple(rgb(c))) for c in (NEUTRAL, FUTURE)] == [68, 68]
        first = next(x for x in range(picture.shape[1]) if tuple(picture[MARGIN + 20, x]) == tuple(rgb(PAST)))
        assert picture.shape[1] == first + shown * 72 - 4 + MARGIN  # 64 px, two borders of 2 and a gap of 4
    assert sizes[0][2] - sizes[1][2] == 5 * 72 and sizes[0][1] == sizes[1][1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_curves_are_a_png_as_wide_as_there_are_metrics(tmp_path):
    x = np.linspace(0, 1, 20)
    curves = [Curve("best of 100", 20 - x, 0.1 + x), Curve("posterior", np.full(24, 25.0), muted=True, start=1)]
    for n, plots in enumerate([{"PSNR (dB)": curves}, {"PSNR (dB)": curves, "SSIM": curves[:1]}], start=1):
        write_curves(tmp_path / "c.png", plots, n_past=5, title="own")
        with Image.open(tmp_path / "c.png") as image:
            assert (image.format, image.size) == ("PNG", (780 * n, 600))
            assert (np.abs(np.asarray(image.convert("RGB")).astype(int) - rgb("#0072b2")).max(-1) < 3).sum() > 100
    many = {"SSIM": [Curve(f"run {i}", x, muted=i % 2 == 0) for i in range(40)]}
    write_curves(tmp_path / "c.png", many, n_past=5)
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_frames_that_do_not_fit_are_refused_in_one_line(tmp_path):
    video, path = moving_square(), tmp_path / "a.gif"
    with pytest.raises(ValueError, match=r"^panel 'a' is \(8, 2, 32, 32\), expected \(T, C, H, W\) with C 1 or 3$"):
        write_gif(path, [Panel("a", video.repeat(2, 1))], 3)
    with pytest.raises(ValueError, match=r"^panel 'b' has \(T, H, W\) \(7, 32, 32\), panel 'a' has \(8, 32, 32\)$"):
        write_gif(path, [Panel("a", video), Panel("b", video[:7])], 3)
    with pytest.raises(ValueError, match="^panel 'a' is int64, expected uint8 or floating point"):
        write_strip(path, [Panel("a", video.astype(np.int64))], 3)
    with pytest.raises(ValueError, match=r"^every row must have the labels of the first, \['a'\]$"):
        write_gif_grid(path, [[Panel("a", video)], [Panel("b", video)]], 3)
    with pytest.raises(ValueError, match=r"^curve 'a' has values \(3,\) and half width \(2,\), expected"):
        write_curves(path, {"SSIM": [Curve("a", np.zeros(3), np.zeros(2))]}, 3)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path, panels: write_gif(path, panels, 9), r"n_past must be in \[0, 8\].*got 9"),
        (lambda path, panels: write_gif(path, panels, 3, fps=0), r"fps must be in \(0, 50\].*got 0"),
        (lambda path, panels: write_gif(path, panels, 3, scale=0), "scale must be >= 1, got 0"),
        (lambda path, panels: write_strip(path, panels, 3, every=0), "every must be >= 1, got 0"),
        (lambda path, panels: write_gif(path, [], 3), "no panels"),
        (lambda path, panels: write_gif_grid(path, [], 3), "no panels"),
        (lambda path, panels: write_curves(path, {"SSIM": []}, 3), "at least one curve"),
    ],
)
def test_a_bad_setting_is_refused_by_name(tmp_path, write, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.gif", [Panel("a", moving_square())])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, old):
    path = tmp_path / "a.gif"
    if old is not None:
        path.write_bytes(old)

    def full_disk(partial, *_, **__):
        partial.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(visualize.iio, "imwrite", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_gif(path, [Panel("a", moving_square())], 3)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])
