"""Glyph tables: contents, separation of the splits, and what happens when MNIST cannot be had."""

import gzip
import os
import re
import time
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image

from datasets import load_dataset
from datasets.digits.glyphs import MNIST_FILES, SOURCES, load_glyphs, main

SPLITS = ("train", "valid", "test")


@pytest.fixture
def offline(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", fail)


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
def test_drawn_glyphs_are_distinct_and_visible_in_every_split(size):
    tables = [load_glyphs("drawn", None, split, size) for split in SPLITS]
    for table in tables:
        assert table.dtype == np.uint8 and table.shape[1:] == (size, size)
        assert table.max((1, 2)).min() > 60  # thin strokes of 8 px glyphs are grey
        assert table.mean((1, 2)).max() < 128
    every = np.concatenate(tables)
    assert len({glyph.tobytes() for glyph in every}) == len(every)


def test_drawn_glyphs_are_made_in_no_time_and_only_once():
    start = time.perf_counter()
    table = load_glyphs("drawn", None, "train", 30)
    assert time.perf_counter() - start < 4  # 0.25 s on an idle core
    assert load_glyphs("drawn", None, "train", 30) is table


def test_mnist_splits_cover_the_published_ones_without_overlap(mnist_root):
    train, valid, test = (load_glyphs("mnist", mnist_root, split, 28) for split in SPLITS)
    published = torchvision.datasets.MNIST(mnist_root, train=True).data.numpy()
    np.testing.assert_array_equal(np.concatenate([train, valid]), published)
    assert len(valid) == 3000
    np.testing.assert_array_equal(test, torchvision.datasets.MNIST(mnist_root, train=False).data.numpy())


def test_mnist_at_32_px_equals_torchvision_resize(mnist_root):
    resize = torchvision.transforms.Resize(32)
    small, large = (load_glyphs("mnist", mnist_root, "valid", size) for size in (28, 32))
    for i in (0, 7, 2999):
        np.testing.assert_array_equal(large[i], np.asarray(resize(Image.fromarray(small[i]))))


def test_unknown_glyphs_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown glyphs 'emnist', expected one of mnist, drawn"):
        load_glyphs("emnist", None, "train", 28)
    assert set(SOURCES) == {"mnist", "drawn"}


@pytest.mark.parametrize("name", ["moving_mnist", "smmnist_srvp"])
def test_missing_mnist_without_network_is_one_line_with_the_remedies(name, tmp_path, offline, capsys):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, tmp_path, "test", seq_len=5)
    message = str(error.value)
    assert "\n" not in message and str(tmp_path / "MNIST" / "raw") in message and "no network" in message
    assert f"python -m datasets.digits.glyphs {tmp_path}" in message and "--data.name digits" in message
    assert error.value.__suppress_context__ and error.value.__cause__ is None
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08\x03" + bytes(12), bytes(100), "short"])
def test_damaged_mnist_is_one_line_with_the_remedies(content, tmp_path, offline, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (60_000, 28, 28))
        (raw / name).write_bytes(header + bytes(999) if content == "short" else content)
    with pytest.raises(
        FileNotFoundError, match="no usable MNIST.*python -m datasets.digits.glyphs.*--data.name digits"
    ) as error:
        load_glyphs("mnist", tmp_path, "train", 28)
    assert "\n" not in str(error.value) and error.value.__suppress_context__
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert re.search("no MNIST in .*no network.*$", capsys.readouterr().err)


def test_download_command_replaces_damaged_files_and_keeps_whole_ones(mnist_root, tmp_path, monkeypatch, capsys):
    def link(url, download_root, filename, md5):
        assert len(md5) == 32
        name = filename.removesuffix(".gz")
        os.symlink((mnist_root / "MNIST" / "raw" / name).resolve(), Path(download_root) / name)

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", link)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        (raw / name).write_bytes(b"damaged")
    main([str(tmp_path)])
    assert capsys.readouterr().out == f"MNIST is in {raw}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    np.testing.assert_array_equal(*(load_glyphs("mnist", root, "test", 28) for root in (mnist_root, tmp_path)))

    def fail(*args, **kwargs):
        raise AssertionError("downloaded again")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", fail)
    main([str(tmp_path)])


def test_gz_files_are_read_as_they_are_and_damage_is_named(mnist_root, tmp_path, offline):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (raw / f"{name}.gz").write_bytes(gzip.compress((mnist_root / "MNIST" / "raw" / name).read_bytes(), 1))
    before = sorted(raw.iterdir())
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(*(load_glyphs("mnist", root, split, 28) for root in (mnist_root, tmp_path)))
    assert sorted(raw.iterdir()) == before


@pytest.mark.parametrize(
    "content", [b"", b"text", gzip.compress(b"other digits", mtime=0), gzip.compress(bytes(99), mtime=0)[:20]]
)
def test_gz_files_that_are_not_mnist_are_refused(content, tmp_path, offline):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        (raw / name).write_bytes(content)
    with pytest.raises(FileNotFoundError, match="no usable MNIST.*; download it with") as error:
        load_glyphs("mnist", tmp_path, "test", 28)
    assert "\n" not in str(error.value)


def test_download_command_without_a_folder_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().err == "usage: python -m datasets.digits.glyphs ROOT\n"
