"""device_batches: the clips of dataset[i], byte for byte, on the CPU and, where there is one, on a GPU."""

import hashlib
import warnings

import numpy as np
import pytest
import torch

from datasets import load_dataset, on_device
from datasets.digits.bouncing import render
from datasets.on_device import device_batches
from tests.data_files import write_bair_arrays, write_jpeg_copy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SIMULATED = {
    "exact": ("moving_mnist", {}),
    "svg": ("moving_mnist", {"digit_size": 32}),
    "exact-deterministic": ("moving_mnist", {"deterministic": True}),
    "svg-deterministic": ("moving_mnist", {"digit_size": 32, "deterministic": True, "glyphs": "drawn"}),
    "fast": ("moving_mnist", {"min_speed": 2, "max_speed": 30, "n_digits": 3}),
    "large": ("moving_mnist", {"image_size": 128, "n_digits": 4, "glyphs": "drawn"}),
    "drawn": ("digits", {}),
    "drawn-small": ("digits", {"image_size": 21, "digit_size": 8, "n_digits": 5, "max_speed": 7}),
    "still": ("digits", {"image_size": 16, "digit_size": 16, "max_speed": 0}),
    "published": ("smmnist_srvp", {}),
}


@pytest.fixture
def load(mnist_root):
    def load(key, split="test", **more):
        name, options = SIMULATED[key]
        return load_dataset(name, mnist_root, split, **{"seq_len": 12} | options | more)

    return load


def some(dataset, n, seed=0):
    return np.random.default_rng(seed).integers(len(dataset), size=n).tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("key", SIMULATED)
def test_digits_are_the_clips_of_the_dataset(load, key, device):
    dataset = load(key)
    make = device_batches(dataset, device)
    for n in (1, 70):
        indices = some(dataset, n)
        clips, expected = make(indices), torch.stack(dataset.__getitems__(indices))
        assert clips.device.type == device and clips.dtype == torch.uint8 and clips.is_contiguous()
        assert clips.cpu().equal(expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("key", ["exact", "svg"])
@pytest.mark.long
def test_many_training_clips_have_the_same_hash(load, key, device):
    dataset = load(key, "train", seq_len=15, seed=2)
    make, digest = device_batches(dataset, device), hashlib.sha256()
    for first in range(0, 500, 100):
        digest.update(make(range(first, first + 100)).cpu().numpy().tobytes())
    assert digest.hexdigest() == dataset.content_hash(500)


@pytest.mark.parametrize("device", DEVICES)
def test_drawing_rounds_half_to_even_and_clips_at_255_on_every_device(device):
    rng = np.random.default_rng(0)  # digits on halves of pixels that cover each other
    glyphs, chosen = rng.integers(256, size=(9, 5, 5), dtype=np.uint8), rng.integers(9, size=(6, 3))
    states = rng.integers(0, 15, size=(4, 4, 6, 3)) / 2
    padded = torch.nn.functional.pad(torch.tensor(glyphs, device=device), (0, 1, 0, 1))
    corners = torch.tensor(np.vectorize(round)(states[:, :2]).transpose(1, 2, 0, 3), device=device)
    frames = on_device.render(padded, torch.tensor(chosen, device=device), corners, torch.arange(12, device=device))
    np.testing.assert_array_equal(frames[:, :, 0].cpu(), render(glyphs[chosen], states, 12))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flip", [False, True])
def test_bair_clips_are_those_of_the_dataset(tmp_path, device, flip):
    write_bair_arrays(tmp_path)
    for split in ("train", "valid", "test"):
        dataset = load_dataset("bair", tmp_path, split, seq_len=12, seed=3, flip=flip)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch's, of an array it must not write to
            make = device_batches(dataset, device)
        indices = some(dataset, 40)
        clips = make(indices)
        assert clips.device.type == device and clips.dtype == torch.uint8 and clips.is_contiguous()
        assert clips.cpu().equal(torch.stack(dataset.__getitems__(indices)))


def test_bair_stays_on_the_host_where_it_takes_more_than_half_of_the_free_memory(tmp_path, monkeypatch):
    dataset = load_dataset("bair", write_bair_arrays(tmp_path), "train", seq_len=12)
    n_bytes = 38 * 30 * 64 * 64 * 3
    for free, expected in ((2 * n_bytes, True), (2 * n_bytes - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80 * 2**30))
        assert on_device.has_room(dataset, torch.device("cuda")) == expected
    assert device_batches(dataset, "cpu").videos.data_ptr() == dataset.videos.ctypes.data  # not a copy of it


@pytest.mark.parametrize("name", ["mnist", "cifar10", "bair"])
def test_other_data_comes_from_the_host(name, mnist_root, tmp_path, monkeypatch):
    root, options = mnist_root, {"seq_len": 1, "image_size": 32}
    if name == "cifar10":
        root, options = write_jpeg_copy(tmp_path, n_test=80), options | {"source": "jpeg"}
    if name == "bair":
        root, options = write_bair_arrays(tmp_path), {"seq_len": 12}
        monkeypatch.setattr(on_device, "has_room", lambda dataset, device: False)
    assert device_batches(load_dataset(name, root, "test", **options), "cpu") is None


def test_indices_may_be_numbers_of_any_kind_and_are_checked(load):
    dataset = load("drawn", "valid")
    make = device_batches(dataset, "cpu")
    expected = make([3, 4095])
    for indices in (torch.tensor([3, 4095]), np.array([3, 4095]), iter([3, 4095])):
        assert make(indices).equal(expected)
    for index in (4096, -1):
        with pytest.raises(IndexError, match=f"clip {index} is not in 0..4095"):
            make([0, index])


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["moving_mnist", "bair"])
def test_nothing_waits_for_the_gpu(name, mnist_root, tmp_path):
    root = write_bair_arrays(tmp_path) if name == "bair" else mnist_root
    dataset = load_dataset(name, root, "train", seq_len=12)
    make = device_batches(dataset, "cuda")
    make(range(16))
    torch.cuda.set_sync_debug_mode("error")
    try:
        clips = [make(range(first, first + 16)) for first in range(0, 160, 16)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cat(clips).cpu().equal(torch.stack(dataset.__getitems__(range(160))))  # no copy overtook another
