"""Still images as videos of one frame: contents, splits, and what happens when the files cannot be had or are wrong."""

import hashlib
import pickle
import re
import runpy
import sys
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import DataLoader

from datasets import images, load_dataset
from tests.data_files import write_jpeg_copy

SPLITS = ("train", "valid", "test")


def load(name, root, split="train", **options):
    return load_dataset(name, root, split, **{"seq_len": 1, "image_size": 32} | options)


def noise(n, seed=0):
    """(N, 3, 32, 32) uint8."""
    return np.random.default_rng(seed).integers(256, size=(n, 3, 32, 32), dtype=np.uint8)


def write_batches(folder, published):
    """CIFAR-10's files in its published format: pickled rows of 3072 bytes, all of red, then green, then blue."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = np.split(published, 6)  # five of training images, one of test images
    for name, batch in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], batches, strict=True):
        entry = {"data": batch.reshape(len(batch), 3072), "labels": [0] * len(batch)}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane"]}))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """(120, 3, 32, 32) images, 20 of each file, whose checksums torchvision takes for CIFAR-10's."""
    pixels = noise(120)
    write_batches(tmp_path / "checksums", pixels)

    def md5(name):
        return hashlib.md5((tmp_path / "checksums" / name).read_bytes()).hexdigest()

    cifar = torchvision.datasets.CIFAR10
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(cifar, files, [[name, md5(name)] for name, _ in getattr(cifar, files)])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5("batches.meta")})
    return pixels


@pytest.fixture
def offline(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no network")

    for module in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", fail)


def test_mnist_is_torchvisions_with_a_black_border_of_2_pixels(mnist_root):
    published = torchvision.datasets.MNIST(mnist_root, train=False).data
    dataset = load("mnist", mnist_root, "test")
    assert len(dataset) == 10_000 and dataset.channels == 1
    every = torch.stack(dataset.__getitems__(range(10_000)))
    assert every.equal(torch.nn.functional.pad(published, (2, 2, 2, 2))[:, None, None])
    assert dataset[7].shape == (1, 1, 32, 32) and dataset[7].dtype == torch.uint8


def test_mnist_trains_on_57000_digits_and_validates_on_the_other_3000(mnist_root):
    published = torchvision.datasets.MNIST(mnist_root, train=True).data
    train, valid = (load("mnist", mnist_root, split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (57_000, 3_000)
    for dataset, index, digit in ((train, 0, 0), (train, 56_999, 56_999), (valid, 0, 57_000), (valid, 2_999, 59_999)):
        assert dataset[index][0, 0, 2:-2, 2:-2].equal(published[digit])


def test_cifar10_is_what_the_published_files_hold(tmp_path, published, offline):
    write_batches(tmp_path / "cifar-10-batches-py", published)
    datasets = [load("cifar10", tmp_path, split) for split in SPLITS]
    assert [len(dataset) for dataset in datasets] == [95, 5, 20]
    assert all(dataset.channels == 3 for dataset in datasets)
    every = torch.cat([torch.stack(dataset.__getitems__(range(len(dataset)))) for dataset in datasets])
    assert every.equal(torch.from_numpy(published)[:, None])  # (N, 1, 3, 32, 32)
    images_of_torchvision = torchvision.datasets.CIFAR10(tmp_path, train=False)
    assert (every[107, 0].permute(1, 2, 0).numpy() == np.asarray(images_of_torchvision[7][0])).all()
    assert datasets[2].content_hash(20) == hashlib.sha256(published[100:].tobytes()).hexdigest()


def test_cifar10s_splits_have_the_sizes_that_are_promised():
    every = np.arange(50_000)
    train, valid = (images.part(every, split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (47_500, 2_500)
    assert (np.concatenate([train, valid]) == every).all()
    assert images.part(every[:10_000], "test").tolist() == list(range(10_000))


def test_the_jpeg_copy_is_read_only_when_it_is_asked_for(tmp_path, offline):
    write_jpeg_copy(tmp_path)
    with pytest.raises(FileNotFoundError, match="or use `--data.source jpeg`, the lossy cifar10_jpeg.npz there"):
        load("cifar10", tmp_path)
    datasets = [load("cifar10", tmp_path, split, source="jpeg") for split in SPLITS]
    assert [len(dataset) for dataset in datasets] == [57, 3, 20]
    every = torch.cat([torch.stack(dataset.__getitems__(range(len(dataset)))) for dataset in datasets])
    coarse = np.concatenate([noise(60, seed=60), noise(20, seed=20)])[:, :, :4, :4]
    shrunk = torch.nn.functional.avg_pool2d(every[:, 0].float(), 8)  # about what was enlarged to 32 px
    assert every.shape == (80, 1, 3, 32, 32)
    assert np.corrcoef(shrunk.flatten(), coarse.ravel())[0, 1] > 0.8
    assert len(every.flatten(1).unique(dim=0)) == 80


def test_reading_the_jpeg_copy_a_second_time_costs_nothing(tmp_path):
    write_jpeg_copy(tmp_path)
    train = load("cifar10", tmp_path, source="jpeg")
    assert load("cifar10", tmp_path, "valid", source="jpeg").table().base is train.table().base


def test_missing_cifar10_without_network_is_one_line_with_the_remedies(tmp_path, offline, capsys):
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", tmp_path)
    message = str(error.value)
    assert "\n" not in message and str(tmp_path / "cifar-10-batches-py") in message and "no network" in message
    assert f"python -m datasets.images {tmp_path}" in message and "--data.name digits" in message
    assert error.value.__suppress_context__ and error.value.__cause__ is None
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_the_dataset_that_the_errors_offer_instead_gives_still_images_too():
    assert load("digits", None)[0].shape == (1, 1, 32, 32)


def test_missing_mnist_without_network_is_one_line_with_the_remedies(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match="python -m datasets.digits.glyphs.*--data.name digits") as error:
        load("mnist", tmp_path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_damaged_cifar10_is_one_line_with_the_remedies(tmp_path, published, offline, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    write_batches(folder, published)
    (folder / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="no usable CIFAR-10.*python -m datasets.images") as error:
        load("cifar10", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="2"):
        images.main([str(tmp_path)])
    assert re.search("no CIFAR-10 in .*no network", capsys.readouterr().err)


def test_download_command_replaces_damaged_files_and_keeps_whole_ones(tmp_path, published, monkeypatch, capsys):
    def fetch(url, download_root, filename, md5):
        assert len(md5) == 32
        write_batches(Path(download_root) / "cifar-10-batches-py", published)
        (Path(download_root) / filename).write_bytes(b"archive")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fetch)
    root = tmp_path / "root"
    (root / "cifar-10-batches-py").mkdir(parents=True)
    for file in images.cifar10_files():
        (root / file).write_bytes(b"damaged")
    images.main([str(root)])
    assert capsys.readouterr().out == f"CIFAR-10 is in {root / 'cifar-10-batches-py'}\n"
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]  # no archive, nothing partial
    assert load("cifar10", root, "test")[0].equal(torch.from_numpy(published[100:101]))

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", None)
    images.main([str(root)])


def test_the_command_without_a_folder_says_how_it_is_used_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["datasets.images"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("datasets.images", run_name="__main__")
    assert capsys.readouterr() == ("", "usage: python -m datasets.images ROOT\n")


def test_a_missing_or_wrong_jpeg_copy_is_one_line_with_the_remedy(tmp_path):
    path = tmp_path / "cifar10_jpeg.npz"

    def refused(reason):
        with pytest.raises(FileNotFoundError, match=f"{reason}.*--data.source torchvision") as error:
            load("cifar10", tmp_path, source="jpeg")
        assert str(path) in str(error.value) and "\n" not in str(error.value) and error.value.__suppress_context__

    refused("No such file")
    for content in (b"", b"not a table", b"PK\x03\x04 not a zip file"):
        path.write_bytes(content)
        refused("no usable JPEG copy")
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    refused("TypeError")
    np.savez(path, videos=np.zeros(3))
    refused("KeyError")
    np.savez(path, train_jpeg=np.zeros(9, np.uint8), train_offsets=np.array([0, 4, 9]))
    refused("cannot identify image file")
    np.savez(path, train_jpeg=np.zeros(9, np.uint8), train_offsets=np.array([0]))
    refused("need at least one array")
    write_jpeg_copy(tmp_path, size=28)
    refused(r"images are \(28, 28, 3\), expected \(32, 32, 3\)")
    whole = write_jpeg_copy(tmp_path) and path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("BadZipFile")
    with zipfile.ZipFile(path, "w") as archive:  # a header that Python's tokenizer, not its parser, gives up on
        archive.writestr("train_jpeg.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': (".ljust(15) + b"\n")
    refused("TokenError")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mnist", {"seq_len": 15}, "seq_len of mnist must be 1, as an image is one frame, got 15"),
        ("cifar10", {"seq_len": 2}, "seq_len of cifar10 must be 1, as an image is one frame, got 2"),
        ("mnist", {"image_size": 28}, "image_size of mnist must be 32, got 28"),
        ("cifar10", {"image_size": 64}, "image_size of cifar10 must be 32, got 64"),
        ("cifar10", {"source": "png"}, "source of cifar10 must be one of torchvision, jpeg, got 'png'"),
        ("cifar10", {"glyphs": "mnist"}, "cifar10 has no option 'glyphs', expected one of source"),
        ("mnist", {"source": "jpeg"}, "mnist has no option 'source', it takes none"),
        ("mnist", {}, "root must be the folder that holds MNIST or receives it, got None"),
        ("cifar10", {}, "root must be the folder that holds CIFAR-10 or receives it, got None"),
        ("cifar10", {"split": "val"}, "unknown split 'val', expected one of train, valid, test"),
    ],
)
def test_bad_settings_are_refused_by_name_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(name, None, **options)
    assert "\n" not in str(error.value)


def test_a_dataset_pickles_without_its_images_and_workers_give_the_same(tmp_path):
    write_jpeg_copy(tmp_path)
    dataset = load("cifar10", tmp_path, source="jpeg")
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[7].equal(dataset[7])
    expected = torch.stack(dataset.__getitems__(range(57)))
    assert torch.cat(list(DataLoader(dataset, batch_size=20, num_workers=2))).equal(expected)


def test_the_seed_changes_nothing(mnist_root):
    assert load("mnist", mnist_root, seed=1).content_hash(9) == load("mnist", mnist_root).content_hash(9)
