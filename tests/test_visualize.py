import gc
import os
import sys
from pathlib import Path

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
    Panel,
    write_animation,
    write_animation_grid,
    write_strip,
)
from tests.helpers import rgb


def moving_square(channels: int = 1, size: int = 32, n_frames: int = 8, shift: int = 0) -> np.ndarray:
    """(T, C, H, W) uint8 with a square that moves 2 px to the right per frame."""
    video = np.zeros((n_frames, channels, size, size), np.uint8)
    for t in range(n_frames):
        video[t, :, 8:16, 2 * t + shift : 2 * t + shift + 8] = np.array([250, 120, 60])[:channels, None, None]
    return video


def read_animation(path) -> tuple[list[np.ndarray], list[int], int]:
    """RGB frames, milliseconds of each, loop count, of a GIF or APNG."""
    with Image.open(path) as file:
        frames = [(np.asarray(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(file)]
        return [f for f, _ in frames], [ms for _, ms in frames], file.info["loop"]


def where(picture: np.ndarray, frame: np.ndarray, atol: int = 0) -> list[tuple[int, int]]:
    """(y, x) of each place where the picture shows the frame."""
    windows = np.lib.stride_tricks.sliding_window_view(picture.astype(int), frame.shape)[:, :, 0]
    return [(y, x) for y, x in np.argwhere(np.abs(windows - frame).max((2, 3, 4)) <= atol).tolist()]


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
    write_animation(tmp_path / "a.gif", panels, n_past=3, fps=10)
    frames, durations, loop = read_animation(tmp_path / "a.gif")
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
    write_animation_grid(tmp_path / "a.gif", [[Panel("a", video), Panel("b", video)]] * 2, n_past=2, scale=3)
    frames, _, _ = read_animation(tmp_path / "a.gif")
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
    write_animation(tmp_path / "a.gif", [Panel("a", moving_square())], n_past=1, fps=fps)
    assert read_animation(tmp_path / "a.gif")[1] == [ms] * 7 + [ms + 1000]


@pytest.mark.parametrize("n_frames", [1, 30])
def test_a_video_that_stands_still_keeps_every_frame(n_frames, tmp_path):
    write_animation(tmp_path / "a.gif", [Panel("black", np.zeros((n_frames, 1, 64, 64)))], n_past=1)
    assert len(read_animation(tmp_path / "a.gif")[0]) == n_frames


@pytest.mark.long
def test_an_apng_read_back_is_exact_and_lasts_as_long_as_it_should(tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(6, 3, 10, 14), dtype=np.uint8)  # more than 256 colours
    path = tmp_path / "a.apng"
    write_animation_grid(path, [[Panel("a", noise), Panel("b", noise[::-1])]] * 2, n_past=2, fps=8, scale=2)
    frames, durations, loop = read_animation(path)
    assert durations == [125] * 5 + [1125] and loop == 0
    for t, frame in enumerate(frames):
        for column, video in enumerate((noise, noise[::-1])):
            found = where(frame, video[t].transpose(1, 2, 0).repeat(2, 0).repeat(2, 1))
            assert len(found) == 2 and found[0][1] == found[1][1]  # once per row of panels, below each other
            assert (found[0][1] > frame.shape[1] / 2) == bool(column)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["png", "APNG"])
def test_an_apng_may_be_called_otherwise(tmp_path, ending):
    for name in ("a.apng", f"b.{ending}"):
        write_animation(tmp_path / name, [Panel("a", moving_square())], n_past=3)
    assert (tmp_path / "a.apng").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


@pytest.mark.parametrize("fps, held", [(8, 8), (12.5, 12), (0.4, 1)])
@pytest.mark.long
def test_an_mp4_read_back_has_every_frame_and_repeats_the_last_for_a_second(tmp_path, fps, held):
    av = pytest.importorskip("av")
    panels = [Panel("truth", moving_square(3), False), Panel("sample", moving_square(3))]
    write_animation(tmp_path / "a.mp4", panels, n_past=3, fps=fps, scale=4)
    write_animation(tmp_path / "a.apng", panels, n_past=3, fps=fps, scale=4)
    exact = np.stack(read_animation(tmp_path / "a.apng")[0]).astype(int)
    height, width = exact.shape[1:3]
    assert height % 2 == 1  # so that a row is added
    with av.open(str(tmp_path / "a.mp4")) as file:
        (stream,) = file.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == fps
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]).astype(int)
    assert frames.shape == (8 + held, height + 1, width, 3)
    np.testing.assert_allclose(
        frames[:, height], np.broadcast_to(rgb(visualize.DARK.background), (8 + held, width, 3)), atol=8
    )
    for t, frame in enumerate(frames):
        error = np.abs(frame[:height] - exact[min(t, 7)])
        assert error.mean() < 4 and (error.max(-1) > 40).mean() < 0.05  # halved colour blurs edges alone
    assert (np.abs(frames[0, :height] - exact[4]).max(-1) > 40).mean() > 0.01  # so the bound above tells frames apart


def test_all_formats_show_the_same_pictures(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(
        visualize.iio, "imwrite", lambda _, images, plugin, **__: written.update({plugin: images}) or b""
    )
    panels = [Panel("truth", moving_square(3), False), Panel("sample", moving_square(3))]
    for ending in (".apng", ".mp4"):
        write_animation(tmp_path / f"a{ending}", panels, n_past=3)
    height, width = written["pillow"].shape[1:3]
    np.testing.assert_array_equal(written["pyav"][:8, :height, :width], written["pillow"])


@pytest.mark.parametrize("name", ["a.webm", "a.jpg", "a"])
def test_an_unknown_ending_is_refused_with_those_that_are_known(tmp_path, name):
    with pytest.raises(
        ValueError, match=rf"{name} ends in '[.a-z]*'; an animation ends in .gif, .apng \(or .png\) or .mp4$"
    ):
        write_animation(tmp_path / "folder" / name, [Panel("a", moving_square())], 3)
    assert not list(tmp_path.iterdir())


def test_an_mp4_without_pyav_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails
    with pytest.raises(
        ValueError, match=r'^.*a.mp4 needs PyAV; install it with `pip install -e "\.\[mp4\]"`, or name it'
    ):
        write_animation(tmp_path / "a.mp4", [Panel("a", moving_square())], 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [8, 32, 64])
def test_labels_of_neighbouring_columns_are_whole_and_keep_apart(tmp_path, size):
    # Above the panels, the pixels of text form one line and separate columns, inside the picture.
    labels = ["posterior", "conditioned", "reconstruction"]
    video = np.zeros((2, 1, size, size), np.uint8)
    write_animation(tmp_path / "a.apng", [Panel(label, video) for label in labels], n_past=1, scale=1)
    picture = read_animation(tmp_path / "a.apng")[0][0].astype(int)
    top = np.flatnonzero((picture == rgb(PAST)).all(-1).any(1))[0]
    text = np.abs(picture[:top] - rgb(visualize.DARK.background)).max(-1) > 30
    rows, columns = (np.flatnonzero(text.any(axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] < 16  # one line: no word is cut
    assert (np.diff(columns) > 10).sum() == 2  # wider than any space between letters: three labels
    assert 10 < columns[0] and columns[-1] < picture.shape[1] - 10


def test_the_texts_below_the_narrowest_picture_keep_apart(tmp_path):
    write_animation(tmp_path / "a.apng", [Panel("a", np.zeros((20, 1, 8, 8), np.uint8))], n_past=20, scale=1)
    below = read_animation(tmp_path / "a.apng")[0][10][-24:].astype(int)  # "t = 10" and "conditioning"
    columns = np.flatnonzero((np.abs(below - rgb(visualize.DARK.background)).max(-1) > 30).any(0))
    assert (np.diff(columns) > 10).sum() == 1


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


def test_frames_that_do_not_fit_are_refused_in_one_line(tmp_path):
    video, path = moving_square(), tmp_path / "a.gif"
    with pytest.raises(ValueError, match=r"^panel 'a' is \(8, 2, 32, 32\), expected \(T, C, H, W\) with C 1 or 3$"):
        write_animation(path, [Panel("a", video.repeat(2, 1))], 3)
    with pytest.raises(ValueError, match=r"^panel 'b' has \(T, H, W\) \(7, 32, 32\), panel 'a' has \(8, 32, 32\)$"):
        write_animation(path, [Panel("a", video), Panel("b", video[:7])], 3)
    with pytest.raises(ValueError, match="^panel 'a' is int64, expected uint8 or floating point"):
        write_strip(path, [Panel("a", video.astype(np.int64))], 3)
    with pytest.raises(ValueError, match=r"^every row must have the labels of the first, \['a'\]$"):
        write_animation_grid(path, [[Panel("a", video)], [Panel("b", video)]], 3)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path, panels: write_animation(path, panels, 9), r"n_past must be in \[0, 8\].*got 9"),
        (lambda path, panels: write_animation(path, panels, 3, fps=0), r"fps must be in \(0, 50\].*got 0"),
        (lambda path, panels: write_animation(path, panels, 3, scale=0), "scale must be >= 1, got 0"),
        (lambda path, panels: write_strip(path, panels, 3, every=0), "every must be >= 1, got 0"),
        (lambda path, panels: write_animation(path, [], 3), "no panels"),
        (lambda path, panels: write_animation_grid(path, [], 3), "no panels"),
    ],
)
def test_a_bad_setting_is_refused_by_name(tmp_path, write, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.gif", [Panel("a", moving_square())])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("ending", ["gif", "apng", "mp4"])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, ending, old):
    path = tmp_path / f"a.{ending}"
    if old is not None:
        path.write_bytes(old)

    def full_disk(partial, content):
        with partial.open("wb") as file:
            file.write(content[:99])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_animation(path, [Panel("a", moving_square())], 3)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", ["a.gif", "a.apng", "a.mp4", "strip.png"])
@pytest.mark.long
def test_a_full_disk_is_one_error_without_a_second_one_behind_it(tmp_path, name, capfd):
    stem, suffix = name.split(".")
    (tmp_path / f".{stem}.partial.{suffix}").symlink_to("/dev/full")
    panel = Panel("truth", np.zeros((3, 1, 8, 8), np.uint8))
    with pytest.raises(OSError, match="No space left"):
        write_strip(tmp_path / name, [panel], 1) if suffix == "png" else write_animation(tmp_path / name, [panel], 1)
    gc.collect()
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())
