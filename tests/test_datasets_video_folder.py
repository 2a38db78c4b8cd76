"""Own videos: pixels against Pillow and NumPy done apart, splits, the cache, and what happens to wrong files."""

import hashlib
import json
import multiprocessing
import os
import pickle
import re
import signal
import struct
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from datasets import load_dataset
from datasets import videos as video_folder
from datasets.videos import convert as convert_videos
from datasets.videos import read_video
from tests.data_files import bucket, movie, smooth_movie, write_animated, write_folder, write_movie

SPLITS = ("train", "valid", "test")


def write_frames(folder, frames, suffix=".png", name="frame_{}"):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / (name.format(number) + suffix))
    return folder


def load(root, split="train", **options):
    return load_dataset("video_folder", root, split, **{"seq_len": 4, "image_size": 16} | options)


def as_frames(clip):
    """(T, 3, S, S) tensor -> (T, S, S, 3) array."""
    return clip.permute(0, 2, 3, 1).numpy()


def index_of(root, size=16, stride=1):
    return json.loads((root / ".seqvae_cache" / f"videos_{size}_{stride}.json").read_text())


@pytest.fixture
def conversions(monkeypatch):
    """Names of the videos that are decoded, as they are."""
    names = []

    def spy(path, *args):
        names.append(path.name)
        return read_video(path, *args)

    monkeypatch.setattr(convert_videos, "read_video", spy)
    return names


@pytest.mark.parametrize("name", ["clip.gif", "clip.png", "clip.apng", "CLIP.GIF", "clip.webp"])
def test_an_animation_of_the_right_size_comes_out_as_it_went_in(tmp_path, name):
    frames = movie(7)
    options = {"lossless": True} if name.endswith("webp") else {}
    path = write_animated(tmp_path / name.lower(), frames, **options | ({"format": "PNG"} if "png" in name else {}))
    path = path.rename(tmp_path / name)
    video = read_video(path, 16)
    assert video.dtype == np.uint8 and (video == frames).all()
    assert (read_video(str(path), 16, stride=3) == frames[::3]).all()


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_frames_of_a_folder_are_taken_in_natural_order(tmp_path, stride):
    frames = movie(12)
    folder = write_frames(tmp_path / "clip", frames)
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".frame_3.png").write_bytes(b"hidden")
    assert sorted(path.name for path in folder.glob("frame*"))[1:3] == ["frame_1.png", "frame_10.png"]
    assert (read_video(folder, 16, stride) == frames[::stride]).all()


def test_natural_order_counts_in_every_part_of_a_name():
    names = ["a2b10", "a10b1", "a2b9", "b1", "a02b9", "10", "9", "a"]
    expected = ["9", "10", "a", "a02b9", "a2b9", "a2b10", "a10b1", "b1"]
    assert sorted(names, key=video_folder.natural_order) == expected


def test_jpeg_frames_are_read_about_right(tmp_path):
    smooth = np.linspace(0, 255, 5 * 16 * 16 * 3).reshape(5, 16, 16, 3).astype(np.uint8)
    video = read_video(write_frames(tmp_path / "clip", smooth, ".JPG"), 16)
    assert np.abs(video.astype(int) - smooth).mean() < 3


def test_a_photo_taken_upright_stands_upright(tmp_path):
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    orientation = Image.Exif()
    orientation[0x0112] = 6  # EXIF: the top of what was seen is at the right
    Image.fromarray(smooth).save(tmp_path / "frame.jpg", exif=orientation)
    assert np.abs(read_video(tmp_path, 16)[0].astype(int) - np.rot90(smooth, -1)).mean() < 3


@pytest.mark.parametrize("height, width", [(40, 65), (65, 40), (33, 33), (10, 12)])
def test_the_largest_centred_square_is_cut_out_and_resized(tmp_path, height, width):
    frames = movie(3, height, width)
    side, top, left = min(height, width), max(0, height - width) // 2, max(0, width - height) // 2
    square = np.ascontiguousarray(frames[:, top : top + side, left : left + side])
    expected = [np.asarray(Image.fromarray(frame).resize((16, 16), Image.Resampling.BILINEAR)) for frame in square]
    assert (read_video(write_animated(tmp_path / "clip.gif", frames), 16) == np.stack(expected)).all()


def test_shrinking_averages_instead_of_picking_pixels(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255  # a checkerboard of single pixels, grey from afar
    frames = np.stack([board, 255 - board])[..., None].repeat(3, -1).astype(np.uint8)
    inside = read_video(write_frames(tmp_path / "clip", frames), 16)[:, 1:-1, 1:-1].astype(int)
    assert np.abs(inside - 127.5).max() < 2


def test_grey_is_repeated_and_what_is_transparent_turns_black(tmp_path):
    grey, alpha = movie(4)[..., 0], np.zeros((4, 16, 16), np.uint8)
    grey[0, 0, 0], alpha[:, 4:], alpha[:, 8:] = 200, 128, 255
    assert (read_video(write_frames(tmp_path / "grey", grey), 16) == grey[..., None]).all()
    deep = write_frames(tmp_path / "deep", grey.astype(np.uint16) * 256 + 77)
    assert Image.open(deep / "frame_0.png").mode == "I;16"
    assert (read_video(deep, 16) == grey[..., None]).all()
    expected = grey * (alpha / 255)
    for folder in (
        write_frames(tmp_path / "la", np.stack([grey, alpha], axis=-1)),
        write_frames(tmp_path / "rgba", np.stack([grey, grey, grey, alpha], axis=-1)),
    ):
        video = read_video(folder, 16)
        assert np.abs(video - expected[..., None]).max() <= 1
        assert (video[:, :4] == 0).all() and (video[:, 8:] == grey[:, 8:, :, None]).all()


def test_transparent_pixels_of_a_gif_show_the_frame_before_or_black(tmp_path):
    palette = [0, 0, 0, 255, 0, 0, 0, 0, 255, 9, 9, 9]  # black, red, blue, and the one that is transparent
    pictures = []
    for column, colour in ((0, 1), (1, 2)):
        indices = np.full((16, 16), 3, np.uint8)
        indices[:, column] = colour
        picture = Image.fromarray(indices, "P")
        picture.putpalette(palette)
        pictures.append(picture)
    pictures[0].save(
        tmp_path / "clip.gif", save_all=True, append_images=pictures[1:], transparency=3, disposal=1, optimize=False
    )
    expected = np.zeros((2, 16, 16, 3), np.uint8)
    expected[:, :, 0, 0], expected[1, :, 1, 2] = 255, 255
    assert (read_video(tmp_path / "clip.gif", 16) == expected).all()


def test_the_still_picture_before_an_apng_is_no_frame_of_it(tmp_path):
    frames = movie(4)
    path = write_animated(tmp_path / "clip.apng", frames, format="PNG", default_image=True)
    assert (read_video(path, 16) == frames[1:]).all()


MOVIES = [("mp4", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"), ("mov", "libx264"), ("mkv", "libx264")]


@pytest.mark.parametrize("suffix, codec", MOVIES)
@pytest.mark.long
def test_a_movie_is_read_about_right(tmp_path, suffix, codec):
    frames = smooth_movie(11, 48, 64)
    video = read_video(write_movie(tmp_path / f"clip.{suffix}", frames, codec), 48)
    assert video.shape == (11, 48, 48, 3)
    errors = np.abs(video.astype(int) - frames[:, :, 8:56])
    assert errors.mean() < 6 and errors.mean() < 0.5 * np.abs(video[1:].astype(int) - frames[:-1, :, 8:56]).mean() + 3
    assert (read_video(tmp_path / f"clip.{suffix}", 48, stride=4) == video[::4]).all()


def test_a_movie_that_a_phone_took_upright_stands_upright(tmp_path):
    frames = smooth_movie(3, 48, 48)
    path = write_movie(tmp_path / "clip.mp4", frames)
    upright = np.rot90(read_video(path, 48), -1, axes=(1, 2))
    data, identity = path.read_bytes(), struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(identity, data.index(b"tkhd"))
    # (x, y) -> (-y, x), a quarter turn clockwise with y downwards, in the track's display matrix.
    turned = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + turned + data[at + 36 :])
    assert (read_video(path, 48) == upright).all()


def test_a_movie_without_the_extra_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # makes `import av` fail
    write_folder(tmp_path, n_others=3)
    (tmp_path / "a.mp4").write_bytes(b"")
    for attempt in (lambda: read_video(tmp_path / "a.mp4", 16), lambda: load(tmp_path)):
        with pytest.raises(
            ValueError, match=r'a.mp4 needs PyAV; install it with `pip install -e "\.\[mp4\]"`'
        ) as error:
            attempt()
        assert "\n" not in str(error.value)


def damaged(path, name, cut=None):
    """A copy whose last bytes are gone, or with every byte of its middle turned over."""
    data = path.read_bytes()
    third = len(data) // 3
    flipped = data[:third] + bytes(255 - byte for byte in data[third : 2 * third]) + data[2 * third :]
    copy = path.with_name(name)
    copy.write_bytes(flipped if cut is None else data[: int(len(data) * cut)])
    return copy


def test_damaged_files_are_one_line_that_names_the_file(tmp_path):
    gif = write_animated(tmp_path / "whole.gif", movie(6))
    apng = write_animated(tmp_path / "whole.apng", movie(6), format="PNG")
    folder = write_frames(tmp_path / "frames", movie(4))
    damaged(folder / "frame_2.png", "frame_2.png", cut=0.5)
    (tmp_path / "empty.gif").write_bytes(b"")
    (tmp_path / "page.gif").write_text("<html>404</html>")
    (tmp_path / "jpeg.png").write_bytes(b"")
    Image.fromarray(movie(1)[0]).save(tmp_path / "jpeg.png", "JPEG")
    (tmp_path / "bare").mkdir()
    paths = [damaged(gif, "cut.gif", 0.5), damaged(apng, "cut.apng", 0.5), damaged(apng, "flipped.apng"), folder]
    paths += [tmp_path / name for name in ("empty.gif", "page.gif", "jpeg.png", "bare")]
    for path in paths:
        with pytest.raises(ValueError, match="cannot be read|no frame that can be read") as error:
            read_video(path, 16)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        assert error.value.__suppress_context__ or path.name == "bare"
    with pytest.raises(ValueError, match="frame_2.png"):
        read_video(folder, 16)


def test_damaged_movies_are_one_line_that_names_the_file(tmp_path, capfd):
    whole = write_movie(tmp_path / "whole.mp4", smooth_movie(8, 32, 32))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "page.webm").write_text("<html>404</html>")
    for path in (damaged(whole, "cut.mp4", 0.6), tmp_path / "empty.mp4", tmp_path / "page.webm"):
        with pytest.raises(ValueError, match="cannot be read") as error:
            read_video(path, 16)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_movie_whose_decoder_had_to_guess_pixels_is_damaged(tmp_path):
    av = pytest.importorskip("av")
    data = write_movie(tmp_path / "whole.avi", smooth_movie(20, 32, 32), "mpeg4").read_bytes()
    start, end = data.index(b"movi"), data.index(b"idx1")
    guessed = 0
    for number, at in enumerate(np.linspace(start, end - 20, 20).astype(int)):
        path = tmp_path / f"{number}.avi"
        path.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
        try:
            with av.open(str(path)) as container:
                if not any(frame.is_corrupt for frame in container.decode(video=0)):
                    continue
        except av.error.FFmpegError:
            continue
        guessed += 1
        with pytest.raises(ValueError, match=r"avi cannot be read \(ValueError frame \d+ is damaged\)"):
            read_video(path, 32)
    assert guessed > 0


def test_an_animated_png_among_frames_is_not_taken_for_one_of_them(tmp_path):
    folder = write_frames(tmp_path / "clip", movie(3))
    write_animated(folder / "frame_1.png", movie(3))
    with pytest.raises(ValueError, match="frame_1.png: ValueError it is an animation among frames; name it .apng"):
        read_video(folder, 16)


def test_what_is_no_video_is_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="not a kind of video that can be read, expected .gif, .png, .*.mkv"):
        read_video(tmp_path / "notes.txt", 16)
    with pytest.raises(FileNotFoundError, match="none.gif does not exist"):
        read_video(tmp_path / "none.gif", 16)
    for size, stride, message in ((0, 1, "image_size must be an integer >= 1"), (16, 0, "stride must be an integer")):
        with pytest.raises(ValueError, match=message):
            read_video(tmp_path / "notes.txt", size, stride)


def test_videos_are_found_in_subfolders_and_folders_of_pictures_are_videos(tmp_path):
    clip = movie(2)
    for name in ("a.gif", "b.png", "deep/er/c.apng", "mixed/d.gif", "mixed/e.png", ".hidden/f.gif", "._g.gif"):
        write_animated(tmp_path / name, clip, **{"format": "PNG"} if "png" in name else {})
    write_frames(tmp_path / "deep" / "frames", clip)
    write_frames(tmp_path / "deep" / "frames" / "more", clip, ".jpg")
    Image.fromarray(clip[0]).save(tmp_path / "thumbnail.jpg")
    Image.fromarray(clip[0]).save(tmp_path / "mixed" / "thumbnail.jpg")
    (tmp_path / "deep" / "above").symlink_to(tmp_path)
    found, skipped = convert_videos.find_videos(tmp_path)
    assert [entry["reason"] for entry in skipped] == [f"{tmp_path}/deep/above is a link to a folder above"]
    assert found == [
        *("a.gif", "b.png", "deep/er/c.apng", "deep/frames", "deep/frames/more", "mixed/d.gif", "mixed/e.png")
    ]


def reasons(root):
    return {entry["name"]: entry["reason"] for entry in index_of(root)["skipped"]}


def test_links_count_once_and_what_is_not_a_file_is_skipped_and_named(tmp_path):
    root = write_folder(tmp_path / "videos")
    names = {video.name for video in root.iterdir()}
    outside = write_animated(tmp_path / "elsewhere" / "new.gif", movie(12, seed=999))
    (root / "a_folder").symlink_to(root / "z_folder")  # sorts before the folder itself
    write_animated(root / "z_folder" / "own.gif", movie(12, seed=998))
    (root / "z_folder" / "back").symlink_to(root / "a_folder")
    (root / "twin.gif").symlink_to(root / min(names))
    os.link(root / "z_folder" / "own.gif", root / "z_folder" / "second_name.gif")
    (root / "new.gif").symlink_to(outside)
    (root / "dangling.gif").symlink_to(root / "nothing.gif")
    (root / "dangling_too").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.gif")
    write_frames(root / "frames", movie(3, seed=997))
    os.mkfifo(root / "frames" / "frame_9.png")
    load(root)
    assert {video["name"] for video in index_of(root)["videos"]} == names | {"new.gif", "z_folder/own.gif"}
    said = reasons(root)
    assert said.keys() == {
        *("a_folder", "z_folder/back", "twin.gif", "z_folder/second_name.gif", "dangling.gif", "pipe.gif", "frames")
    }
    assert "under another name" in said["a_folder"] and "not a regular file" in said["pipe.gif"]
    assert said["dangling.gif"].endswith("dangling.gif is not a regular file") and "frame_9.png" in said["frames"]
    for pipe in (root / "pipe.gif", root / "frames"):
        with pytest.raises(ValueError, match="not a regular file"):
            read_video(pipe, 16)


def test_the_same_frames_under_two_names_are_one_video(tmp_path):
    root = write_folder(tmp_path)
    frames = movie(12, seed=1234)
    write_animated(root / "one.gif", frames)
    write_animated(root / "two.apng", frames, format="PNG")
    write_frames(root / "z", frames)
    load(root)
    assert [v["name"] for v in index_of(root)["videos"] if v["name"] in ("one.gif", "two.apng", "z")] == ["one.gif"]
    assert reasons(root) == {
        name: f"{root / name} shows the same frames as {root / 'one.gif'}" for name in ("two.apng", "z")
    }


def test_a_folder_without_any_file_that_can_be_opened_says_why(tmp_path):
    os.mkfifo(tmp_path / "pipe.gif")
    with pytest.raises(FileNotFoundError, match=r"no videos in .*\(1 skipped: .*pipe.gif is not a regular file\)"):
        load(tmp_path)


def test_a_playlist_named_as_a_movie_opens_no_other_file(tmp_path, monkeypatch):
    frames = smooth_movie(3, 32, 32)
    secret = write_movie(tmp_path / "secret.mp4", frames)
    playlists = {
        "concat.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            read_video(tmp_path / name, 32)
    monkeypatch.chdir(tmp_path)
    secret.rename(tmp_path / "file:it.mp4")  # would be a protocol, were it given to FFmpeg as a name
    assert read_video("file:it.mp4", 32).shape == (3, 32, 32, 3)


@pytest.mark.parametrize("stride, max_frames", [(1, 1), (1, 3), (3, 2), (2, 99)])
def test_no_more_frames_are_decoded_than_asked_for(tmp_path, monkeypatch, stride, max_frames):
    path = write_animated(tmp_path / "clip.gif", movie(12))
    decoded, real = [], video_folder.animation
    monkeypatch.setattr(video_folder, "animation", lambda p: (decoded.append(1) or frame for frame in real(p)))
    video = read_video(path, 16, stride, max_frames)
    assert (video == movie(12)[::stride][:max_frames]).all()
    assert len(decoded) == min(12, stride * (max_frames - 1) + 1)


def test_a_video_keeps_its_split_when_others_come():
    names = [f"{i}.gif" for i in range(400)]
    splits = convert_videos.split_videos(names)
    for name, split in splits.items():
        assert split == ("train" if bucket(name) < 90 else "valid" if bucket(name) < 95 else "test")
    counts = [list(splits.values()).count(split) for split in SPLITS]
    assert counts[0] > 320 and min(counts[1:]) > 8
    assert convert_videos.split_videos(names[:300]).items() <= splits.items()
    assert convert_videos.split_videos(names[::-1]) == splits


@pytest.mark.parametrize("n", [3, 4, 10, 40])
def test_no_split_of_a_small_folder_is_empty(n):
    names = [name for i in range(100) if bucket(name := f"{i}.gif") < 90][:n]
    splits = convert_videos.split_videos(names)
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert splits == dict.fromkeys(names, "train") | {by_hash[0]: "valid", by_hash[1]: "test"}
    own = next(name for i in range(1000) if 90 <= bucket(name := f"{i}.gif") < 95)
    assert convert_videos.split_videos([*names, own])[own] == "valid"
    tests = [name for i in range(1000) if bucket(name := f"{i}.gif") >= 95][:n]
    assert set(convert_videos.split_videos(tests).values()) == set(SPLITS)


def test_valid_and_test_clips_are_the_first_frames_of_each_video(tmp_path):
    write_folder(tmp_path)
    names = {split: [] for split in SPLITS}
    for path in sorted(tmp_path.glob("*.gif")):
        names[convert_videos.split_videos([p.name for p in tmp_path.glob("*.gif")])[path.name]].append(path.name)
    for split in ("valid", "test"):
        dataset = load(tmp_path, split)
        assert len(dataset) == len(names[split]) > 0 and dataset.channels == 3
        for name, clip in zip(names[split], dataset.__getitems__(range(len(dataset))), strict=True):
            assert clip.dtype == torch.uint8 and clip.shape == (4, 3, 16, 16)
            assert (as_frames(clip) == movie(12, seed=int(name[:-4]))[:4]).all()


def test_training_clips_are_drawn_uniformly_from_every_window_of_every_training_video(tmp_path):
    for number, n_frames in enumerate((4, 9, 14, 5, 5)):  # of the five, one becomes valid and one test
        write_animated(tmp_path / f"{number}.gif", movie(n_frames, seed=number))
    dataset = load(tmp_path)
    assert len(dataset) == 2**24
    training = [video for video in index_of(tmp_path)["videos"] if video["split"] == "train"]
    windows = {}
    for video in training:
        frames = movie(video["frames"], seed=int(video["name"][:-4]))
        for start in range(video["frames"] - 3):
            windows[frames[start : start + 4].tobytes()] = 0
    n = 100 * len(windows)
    for clip in dataset.__getitems__(range(n)):
        windows[as_frames(clip).tobytes()] += 1  # a KeyError: a clip of another split, or across two videos
    assert len(training) == 3 and len(windows) >= 5
    assert 50 < min(windows.values()) and max(windows.values()) < 150


def test_a_clip_depends_on_seed_split_and_index_alone(tmp_path):
    write_folder(tmp_path)
    indices = [5, 0, 3, 2**24 - 1, 5]
    batch = load(tmp_path).__getitems__(indices)
    for index, clip in zip(indices, batch, strict=True):
        assert clip.equal(load(tmp_path)[index])
    assert not torch.stack(batch).equal(torch.stack(load(tmp_path, seed=1).__getitems__(indices)))
    assert load(tmp_path, "test", seed=1).content_hash(4) == load(tmp_path, "test").content_hash(4)


def test_the_stride_skips_frames_before_the_clip_is_cut(tmp_path):
    write_folder(tmp_path)
    whole, strided = load(tmp_path, "test", seq_len=12), load(tmp_path, "test", seq_len=4, stride=3)
    assert all(strided[i].equal(whole[i][::3]) for i in range(len(whole)))
    with pytest.raises(ValueError, match="no test video in .* has seq_len = 5 frames at stride 3: .* has 4, of all 4"):
        load(tmp_path, "test", seq_len=5, stride=3)


def test_the_cache_is_used_again_until_a_file_changes(tmp_path, conversions, capsys):
    write_folder(tmp_path)
    first = load(tmp_path, "test").content_hash(4)
    assert sorted(conversions) == sorted(path.name for path in tmp_path.glob("*.gif"))
    assert "10 videos" in capsys.readouterr().out

    def again(expected, **options):
        conversions.clear()
        dataset = load(tmp_path, "test", **options)
        assert len(conversions) == expected
        return dataset

    assert again(0).content_hash(4) == first
    assert capsys.readouterr().out == ""
    for split in ("train", "valid"):
        load(tmp_path, split)
    again(0, seed=3, seq_len=7)
    again(10, image_size=8)
    again(10, stride=2)
    again(0)
    changed = next(path for path in tmp_path.glob("*.gif") if bucket(path.name) >= 95)
    write_animated(changed, movie(12, seed=999))
    dataset = again(10)  # the same length, maybe the same size: the time of change tells
    assert any((as_frames(clip) == movie(12, seed=999)[:4]).all() for clip in dataset.__getitems__(range(4)))
    write_frames(tmp_path / "frames", movie(5))
    again(11)
    os.utime(tmp_path / "frames" / "frame_3.png", ns=(1, 1))
    again(11)
    (tmp_path / "frames" / "frame_4.png").unlink()
    again(11)
    changed.rename(changed.with_name("other.gif"))
    again(11)
    (tmp_path / ".seqvae_cache" / "videos_16_1.npy").unlink()
    again(11)
    (tmp_path / ".seqvae_cache" / "videos_16_1.json").write_text("{")
    again(11)
    again(0)


def test_corrupt_and_short_videos_are_named_counted_and_left_out(tmp_path, capsys):
    write_folder(tmp_path)
    (tmp_path / "corrupt.gif").write_bytes(b"not a gif")
    write_animated(tmp_path / "still.gif", movie(1))
    load(tmp_path)
    out = capsys.readouterr().out
    assert "10 videos" in out and "2 skipped:" in out
    assert f"{tmp_path / 'corrupt.gif'} cannot be read (UnidentifiedImageError" in out
    assert f"{tmp_path / 'still.gif'} is too short: 1 of 2 frames at stride 1" in out
    assert [video["name"] for video in index_of(tmp_path)["skipped"]] == ["corrupt.gif", "still.gif"]


def test_videos_shorter_than_a_clip_are_left_out_with_a_count(tmp_path, capsys):
    write_folder(tmp_path)
    short = [path for path in sorted(tmp_path.glob("*.gif")) if bucket(path.name) >= 95][0]
    write_animated(short, movie(3))
    assert len(load(tmp_path, "test", seq_len=10)) == 3
    assert capsys.readouterr().err.endswith("1 of 4 test videos have fewer than 10 frames and are left out\n")
    assert len(load(tmp_path, "test", seq_len=3)) == 4
    assert capsys.readouterr().err == ""
    with pytest.raises(
        ValueError, match="no test video in .* has seq_len = 13 frames at stride 1: .* 12, of all 12; ask"
    ):
        load(tmp_path, "test", seq_len=13)
    for path in tmp_path.glob("*.gif"):
        if bucket(path.name) >= 95:
            write_animated(path, movie(3))
    message = r"longest of the test split has 3, of all 12; .* or share .* `(python -m datasets.videos.convert .*)`"
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, "test", seq_len=10)
    assert "\n" not in str(error.value)
    convert_videos.main(str(error.value).split("`")[1].replace("DST", str(tmp_path / "long")).split()[3:])
    assert len(load(tmp_path / "long", "test", seq_len=10)) == 1


def test_the_command_makes_arrays_that_are_used_as_they_are(tmp_path, conversions, capsys):
    src, dst = write_folder(tmp_path / "src"), tmp_path / "dst"
    command = [str(src), str(dst), "--image-size", "16", "--stride", "2", "--min-frames", "3"]
    convert_videos.main(command)
    out = capsys.readouterr().out
    assert f"{dst / 'videos_16_2.npy'}: 10 videos (" in out and f"--data.root {dst} trains" in out
    index = json.loads((dst / "videos_16_2.json").read_text())
    frames = np.load(dst / "videos_16_2.npy", mmap_mode="r")
    assert frames.shape == (10 * 6, 16, 16, 3) and frames.dtype == np.uint8
    names = [video["name"] for video in index["videos"]]
    assert names == sorted(names) and len(names) == 10
    for number, name in enumerate(names):
        assert (frames[6 * number : 6 * number + 6] == movie(12, seed=int(name[:-4]))[::2]).all()
    direct = load(dst, "test", stride=2)
    assert direct.content_hash(4) == load(src, "test", stride=2).content_hash(4)
    conversions.clear()
    convert_videos.main(command)  # nothing has changed
    for path in src.glob("*.gif"):
        path.unlink()
    assert load(dst, "test", stride=2).content_hash(4) == direct.content_hash(4)
    assert not (dst / ".seqvae_cache").exists() and conversions == []


def test_arrays_of_another_size_or_stride_are_not_mistaken_for_the_ones_asked_for(tmp_path):
    dst = tmp_path / "dst"
    convert_videos.main([str(write_folder(tmp_path / "src")), str(dst), "--image-size", "16"])
    for options, flags in (({"image_size": 32}, "32 --stride 1"), ({"stride": 2}, "16 --stride 2")):
        with pytest.raises(ValueError, match=f"dst holds videos_16_1, and .* --image-size {flags}`") as error:
            load(dst, **options)
        assert "\n" not in str(error.value)


def test_arrays_that_do_not_fit_their_index_are_refused(tmp_path):
    convert_videos.main([str(write_folder(tmp_path / "src")), str(tmp_path), "--image-size", "16"])
    array = tmp_path / "videos_16_1.npy"
    whole = array.read_bytes()
    for content in (whole[:-1], b"", b"no array"):
        array.write_bytes(content)
        with pytest.raises(
            ValueError, match="videos_16_1.npy is damaged .*; delete .*videos_16_1.json and convert again"
        ):
            load(tmp_path)
    np.save(array, np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(3, 16, 16, 3\) uint8 is not what videos_16_1.json says"):
        load(tmp_path)
    array.write_bytes(whole)
    assert len(load(tmp_path, "test")) == 4
    index = tmp_path / "videos_16_1.json"
    facts = json.loads(index.read_text())
    for content in (b"{}", b"[" * 200_000, b"\xff", b"[1]", *(json.dumps(facts | {k: None}).encode() for k in facts)):
        index.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"videos_16_1.json is damaged \(.*\); delete it and convert again"
        ) as error:
            load(tmp_path)
        assert "\n" not in str(error.value)


def test_a_failed_conversion_leaves_nothing_under_the_final_names(tmp_path, monkeypatch):
    write_folder(tmp_path)
    load(tmp_path)
    cache = tmp_path / ".seqvae_cache"
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    write_animated(tmp_path / "new.gif", movie(3))

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_videos, "read_video", fail)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_an_index_never_lies_beside_an_array_that_it_does_not_describe(tmp_path, monkeypatch):
    write_folder(tmp_path)
    load(tmp_path)
    write_animated(tmp_path / "new.gif", movie(3))
    replace, moved = os.replace, []

    def crash_after_the_array(source, target):
        replace(source, target)
        moved.append(target.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash_after_the_array)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    assert moved == ["videos_16_1.npy"]
    assert sorted(path.name for path in (tmp_path / ".seqvae_cache").iterdir()) == [".lock", "videos_16_1.npy"]


def slow_read(log):
    """read_video that takes its time and notes each video in a file, which forked processes share."""

    def read(path, *args):
        with log.open("a") as file:
            file.write(path.name + "\n")
        time.sleep(0.02)
        return read_video(path, *args)

    return read


def test_a_killed_conversion_is_no_conversion_and_the_next_one_is_whole(tmp_path, monkeypatch):
    src, dst, whole, log = write_folder(tmp_path / "src"), tmp_path / "dst", tmp_path / "whole", tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(convert_videos, "read_video", slow_read(log))
        process = multiprocessing.get_context("fork").Process(target=convert_videos.convert, args=(src, dst, 16))
        process.start()
        while not (log.exists() and len(log.read_text().splitlines()) > 5):
            assert process.is_alive()
            time.sleep(0.005)
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (dst / "videos_16_1.npy.part").exists() and not list(dst.glob("*.json")) and not list(dst.glob("*.npy"))
    for folder in (dst, whole):
        convert_videos.main([str(src), str(folder), "--image-size", "16"])
    names = [".lock", "videos_16_1.json", "videos_16_1.npy"]
    assert sorted(path.name for path in dst.iterdir()) == names
    assert all((dst / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_processes_that_ask_at_once_convert_once(tmp_path, monkeypatch):
    root, log = write_folder(tmp_path / "src"), tmp_path / "log"
    monkeypatch.setattr(convert_videos, "read_video", slow_read(log))
    context = multiprocessing.get_context("fork")
    hashes = context.Queue()
    processes = [context.Process(target=lambda: hashes.put(load(root, "test").content_hash(4))) for _ in range(3)]
    for process in processes:
        process.start()
    found = [hashes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(log.read_text().splitlines()) == 10
    assert found == [load(root, "test").content_hash(4)] * 3


@pytest.mark.parametrize("context, workers", [("fork", 2), ("spawn", 1)])
@pytest.mark.long
def test_a_dataset_pickles_without_its_frames_and_workers_give_the_same(tmp_path, context, workers):
    write_folder(tmp_path)
    dataset = load(tmp_path)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[7].equal(dataset[7])
    expected = torch.stack(dataset.__getitems__(range(10)))
    batches = DataLoader(Subset(dataset, range(10)), batch_size=4, num_workers=workers, multiprocessing_context=context)
    assert torch.cat(list(batches)).equal(expected)


def test_arrays_made_anew_under_a_dataset_are_noticed_by_a_new_process(tmp_path):
    write_folder(tmp_path)
    pickled = pickle.dumps(load(tmp_path))
    write_animated(tmp_path / "new.gif", movie(9))
    load(tmp_path)
    video_folder._open.cache_clear()  # as in a worker that starts now
    with pytest.raises(ValueError, match="videos_16_1.npy was made anew while it was in use; start again"):
        pickle.loads(pickled)[0]


@pytest.mark.parametrize(
    "files, error, message",
    [
        (None, FileNotFoundError, "videos is not a folder; give the one that holds your videos"),
        ({}, FileNotFoundError, r"no videos in .*videos: expected files \(.gif, .*\) or a folder per video"),
        (
            {"a.gif": 3, "b.gif": 3},
            ValueError,
            "videos has 2 usable videos of 2 frames or more, and train, valid and test",
        ),
        (
            {"a.gif": 3, "b.gif": 3, "c.gif": 1},
            ValueError,
            r"2 usable .*\(1 skipped: .*c.gif is too short.*add videos",
        ),
    ],
)
def test_a_folder_without_enough_videos_is_one_line_with_the_remedy(tmp_path, files, error, message, capsys):
    root = tmp_path / "videos"
    if files is not None:
        root.mkdir()
        for seed, (name, n_frames) in enumerate(files.items()):
            write_animated(root / name, movie(n_frames, seed=seed))
    with pytest.raises(error, match=message) as raised:
        load(root)
    assert "\n" not in str(raised.value)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        convert_videos.main([str(root), str(tmp_path / "dst")])
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1
    assert not list(tmp_path.rglob("videos_*"))


def test_a_cache_that_cannot_be_written_is_one_line_with_the_remedy(tmp_path):
    write_folder(tmp_path)
    (tmp_path / ".seqvae_cache").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="cannot convert .*; make another folder the root, .* --stride 1`") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"root": None}, "root must be the folder that holds your videos, got None"),
        ({"seq_len": 0}, "seq_len must be an integer >= 1, got 0"),
        ({"image_size": 0}, "image_size must be an integer >= 1, got 0"),
        ({"stride": 0}, "stride must be an integer >= 1, got 0"),
        ({"stride": 1.5}, "stride must be an integer >= 1, got 1.5"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"split": "val"}, "unknown split 'val'"),
        ({"speed": 2}, "video_folder has no option 'speed', expected one of stride"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load(**{"root": tmp_path} | options)


def test_the_command_explains_itself_and_refuses_nonsense(tmp_path, capsys):
    for arguments, message in (
        ([], "the following arguments are required: SRC, DST"),
        ([str(tmp_path), str(tmp_path)], "DST must be another folder than SRC"),
        ([str(tmp_path), str(tmp_path / "dst"), "--stride", "x"], "invalid int value: 'x'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            convert_videos.main(arguments)
        assert message in capsys.readouterr().err
    for arguments, message in (
        (
            [tmp_path, tmp_path / "dst", "--stride", "0"],
            "datasets.videos.convert: stride must be an integer >= 1, got 0",
        ),
        ([tmp_path / "none", tmp_path / "dst"], "none is not a folder; give the one that holds"),
    ):
        with pytest.raises(SystemExit, match="2"):
            convert_videos.main(list(map(str, arguments)))
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
