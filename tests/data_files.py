"""Shared by test modules: data sets written to disk, of noise or simple pictures."""

import hashlib
import io
import json

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from tfrecord.writer import TFRecordWriter

from datasets.kth import convert as converter


def write_jpeg_copy(root, n_train=60, n_test=20, size=32):
    """Smooth colour images, and where each one's file begins in the bytes of all; returns root."""
    arrays = {}
    for split, n in (("train", n_train), ("test", n_test)):
        files = []
        pixels = np.random.default_rng(n).integers(256, size=(n, 3, 32, 32), dtype=np.uint8)
        for coarse in pixels[:, :, :4, :4].transpose(0, 2, 3, 1):
            file = io.BytesIO()
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR).save(file, "JPEG")
            files.append(file.getvalue())
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
    np.savez(root / "cifar10_jpeg.npz", **arrays)
    return root


def bair_noise(n, seed=0):
    """(N, 30, 64, 64, 3) uint8."""
    return np.random.default_rng(seed).integers(256, size=(n, 30, 64, 64, 3), dtype=np.uint8)


def make_bair(n, seed):
    """What n records hold, and arrays of the published shapes."""
    rng = np.random.default_rng([seed, 1])
    return {
        "aux1": bair_noise(n, seed),
        "main": bair_noise(n, seed + 1000),
        "actions": rng.normal(size=(n, 30, 4)).astype(np.float32),
        "positions": rng.normal(size=(n, 30, 3)).astype(np.float32),
    }


def write_bair_records(path, videos, change=lambda record: record):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = TFRecordWriter(str(path))
    for aux1, main, actions, positions in zip(*videos.values(), strict=True):
        record = {}
        for i in range(30):
            record[f"{i}/image_aux1/encoded"] = (aux1[i].tobytes(), "byte")
            record[f"{i}/image_main/encoded"] = (main[i].tobytes(), "byte")
            record[f"{i}/action"] = (actions[i], "float")
            record[f"{i}/endeffector_pos"] = (positions[i], "float")
        writer.write(change(record))
    writer.close()


def write_bair_arrays(root, n_train=40, n_test=3, name="bair"):
    """The reader's input, noise; returns root."""
    for split, n in (("train", n_train), ("test", n_test)):
        np.save(root / f"{name}_{split}.npy", bair_noise(n, seed=n))
        for what, size in (("actions", 4), ("positions", 3)):
            np.save(root / f"{name}_{split}_{what}.npy", numbered_by_clip(n, size))
    return root


def numbered_by_clip(n, size):
    """(N, 30, size) float32: entry k of frame t of video i is i + t / 100 + 1000 k."""
    i, t, k = np.ogrid[:n, :30, :size]
    return (i + t / 100 + 1000 * k).astype(np.float32)


def movie(n_frames, height=16, width=16, seed=0):
    """(T, H, W, 3) uint8 noise of 200 colours at most, so that a GIF is lossless."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(256, size=(200, 3), dtype=np.uint8)
    frames = palette[rng.integers(200, size=(n_frames, height, width))]
    frames[:, 0, 0] = palette[
        np.arange(n_frames) % 200
    ]  # no frame equals the one before, or the writer would merge them
    return frames


def write_animated(path, frames, **options):
    """GIF or APNG with Pillow, one palette per frame and no dithering; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(frame) for frame in frames]
    if path.suffix == ".gif":
        images = [with_own_palette(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], format=options.pop("format", None), **options)
    return path


def with_own_palette(frame):
    colours, indices = np.unique(frame.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(indices.reshape(frame.shape[:2]).astype(np.uint8))  # 256 colours at most
    image.putpalette(colours.tobytes())
    return image


def write_folder(root, n_test=4, n_others=6, n_frames=12, size=16):
    """GIFs named by number, at least n_test of them in the test split; returns root."""
    names, number = [], 0
    while len(names) < n_test:
        if bucket(f"{number}.gif") >= 95:
            names.append(f"{number}.gif")
        number += 1
    names += [name for i in range(10 * n_others) if bucket(name := f"{i}.gif") < 95][:n_others]
    for name in names:
        write_animated(root / name, movie(n_frames, size, size, seed=int(name[:-4])))
    return root


def bucket(name):
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100


def smooth_movie(n_frames, height, width):
    """A bright disc that moves right by 2 px a frame, on a gradient: what codecs are made for."""
    y, x = np.indices((height, width))
    gradient = np.stack([x * 200 / width, y * 200 / height, np.full_like(x, 60)], axis=-1)
    discs = [((x - 10 - 2 * t) ** 2 + (y - height / 3) ** 2 < 64)[..., None] for t in range(n_frames)]
    return np.stack([np.where(disc, 230, gradient) for disc in discs]).astype(np.uint8)


def write_movie(path, frames, codec="libx264"):
    pytest.importorskip("av")
    iio.imwrite(path, frames, plugin="pyav", codec=codec, fps=10)
    return path


def write_kth_arrays(root):
    """The reader's input for the test split, noise: 40 frames of each video; returns root."""
    names = converter.published_videos()["test"]
    frames = np.random.default_rng(0).integers(256, size=(40 * len(names), 64, 64), dtype=np.uint8)
    np.save(root / "kth_test.npy", frames)
    videos = {"test": [{"name": name, "frames": 40} for name in names]}
    (root / "kth.json").write_text(json.dumps({"videos": videos, "sha256": {}}))
    return root
