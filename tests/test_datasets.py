"""load_dataset: every name, what a clip depends on, and which settings are refused."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from datasets import LOADERS, dataset_options, load_dataset
from tests.data_files import write_bair_arrays, write_folder, write_jpeg_copy, write_kth_arrays

STILL = ("mnist", "cifar10")
MADE_ON_THE_FLY = ("digits", "moving_mnist")


def load(name, split="train", *, seq_len=8, **options):
    """Moving MNIST with drawn glyphs, so that it runs everywhere."""
    if name == "moving_mnist":
        options = {"glyphs": "drawn"} | options
    return load_dataset(name, None, split, seq_len=seq_len, **options)


def write_test_seq(root, n):
    """The published Moving MNIST file's layout, noise; returns root."""
    (root / "MovingMNIST").mkdir()
    videos = np.random.default_rng(0).integers(256, size=(20, n, 64, 64), dtype=np.uint8)
    np.save(root / "MovingMNIST" / "mnist_test_seq.npy", videos)
    return root


@pytest.mark.parametrize("name", LOADERS)
def test_every_dataset_gives_uint8_clips(name, mnist_root, tmp_path):
    root, seq_len, size, options = mnist_root, *((1, 32) if name in STILL else (12, 64)), {}
    if name == "cifar10":
        root, options = write_jpeg_copy(tmp_path, n_test=80), {"source": "jpeg"}
    if name in ("bair", "pushing"):
        root = write_bair_arrays(tmp_path, n_test=70, name=name)
    if name == "kth":
        root = write_kth_arrays(tmp_path)
    if name == "mnist_test_seq":
        root = write_test_seq(tmp_path, n=70)
    if name == "video_folder":
        root = write_folder(tmp_path, n_test=80)
    dataset = load_dataset(name, root, "test", seq_len=seq_len, image_size=size, **options)
    clip = dataset[len(dataset) - 1]
    assert clip.dtype == torch.uint8 and clip.shape == (seq_len, dataset.channels, size, size)
    assert clip.flatten(1).amax(1).min() > 60  # something to see in every frame
    expected = hashlib.sha256(b"".join(dataset[i].numpy().tobytes() for i in range(70)))
    assert dataset.content_hash(70) == expected.hexdigest()


@pytest.mark.parametrize("name", MADE_ON_THE_FLY)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_clip_depends_on_seed_split_and_index_alone(name, split):
    indices = [5, 0, 3, 4000, 5]
    batch = load(name, split).__getitems__(indices)
    for index, clip in zip(indices, batch, strict=True):
        assert clip.equal(load(name, split)[index])
    assert not batch[0].equal(batch[1])
    assert not batch[0].equal(load(name, split, seed=1)[5])


@pytest.mark.parametrize("name", MADE_ON_THE_FLY)
def test_loader_workers_give_the_same_clips(name):
    dataset = load(name)
    expected = torch.stack(dataset.__getitems__(range(10)))
    for workers in (0, 2):
        batches = list(DataLoader(Subset(dataset, range(10)), batch_size=4, num_workers=workers))
        assert torch.cat(batches).equal(expected)


@pytest.mark.long
def test_spawned_workers_give_the_same_clips():
    dataset = load("moving_mnist")
    loader = DataLoader(Subset(dataset, range(6)), batch_size=3, num_workers=1, multiprocessing_context="spawn")
    assert torch.cat(list(loader)).equal(torch.stack(dataset.__getitems__(range(6))))


def test_no_two_of_many_clips_start_alike():
    chosen, states = load("moving_mnist", seq_len=1).latents(range(100_000))
    starts = np.concatenate([chosen, *states[0]], axis=1)  # (N, 2 + 4 * 2)
    assert len(np.unique(starts, axis=0)) == 100_000


@pytest.mark.parametrize("name", MADE_ON_THE_FLY)
def test_splits_share_no_clip(name):
    clips = [torch.stack(load(name, split).__getitems__(range(20))) for split in ("train", "valid", "test")]
    every = torch.cat(clips).flatten(1)
    assert len(every.unique(dim=0)) == 60


@pytest.mark.parametrize("name", MADE_ON_THE_FLY)
def test_a_longer_sequence_continues_the_shorter_one(name):
    assert load(name, seq_len=20)[3][:8].equal(load(name)[3])


@pytest.mark.parametrize("image_size", [32, 64, 128, 256])
@pytest.mark.parametrize("n_digits", [1, 2, 3])
def test_numbers_of_digits_and_image_sizes(image_size, n_digits):
    names = ("digits",) if image_size == 32 else MADE_ON_THE_FLY  # a 28 px digit of speed 4 needs more than 32 px
    for name in names:
        dataset = load(name, image_size=image_size, n_digits=n_digits)
        chosen, states = dataset.latents([0, 1])
        assert chosen.shape == (2, n_digits) and states.shape == (8, 4, 2, n_digits)
        assert dataset[0].shape == (8, 1, image_size, image_size)
        total = dataset.glyph_table()[chosen].sum((1, 2, 3), dtype=int)  # less only where digits overlap
        for clip, ink in zip(dataset.__getitems__([0, 1]), total, strict=True):
            assert clip.sum((1, 2, 3)).max() <= ink and clip.sum() > 0.5 * 8 * ink


def test_drawn_digits_fill_half_of_the_image_unless_told_otherwise():
    assert load("digits", image_size=32).motion.digit_size == 16
    assert load("digits", image_size=32, digit_size=8).glyph_table().shape[1:] == (8, 8)
    still = load("digits", image_size=32, digit_size=32, max_speed=0)[0]
    assert still.eq(still[0]).all()


@pytest.mark.parametrize("digit_size, whole", [(28, False), (32, True)])
def test_only_svgs_flavour_keeps_to_whole_pixels(digit_size, whole):
    _, states = load("moving_mnist", digit_size=digit_size, seq_len=30).latents(range(50))
    assert (states[:, :2] == np.rint(states[:, :2])).all() == whole


@pytest.mark.parametrize("name", MADE_ON_THE_FLY)
def test_each_option_changes_the_clips(name):
    changed = {"n_digits": 3, "deterministic": True, "min_speed": 2, "max_speed": 6, "glyphs": "mnist"}
    changed["digit_size"] = 32 if name == "moving_mnist" else 20
    for option in dataset_options(name):
        if option != "glyphs":
            before, after = load(name, seq_len=30), load(name, seq_len=30, **{option: changed[option]})
            assert before.content_hash(4) != after.content_hash(4), option


def test_mnist_glyphs_are_the_default_and_make_other_clips_than_drawn_ones(mnist_root):
    default = load_dataset("moving_mnist", mnist_root, "train", seq_len=8)
    assert default.glyphs == "mnist" and default.motion.n_digits == 2 and not default.motion.deterministic
    assert not default[0].equal(load("moving_mnist")[0])


@pytest.mark.parametrize("name", MADE_ON_THE_FLY)
def test_a_dataset_pickles_without_its_glyphs(name):
    dataset = load(name)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[7].equal(dataset[7])


def test_indices_and_hashes_beyond_the_last_clip_are_refused():
    dataset = load("digits", "valid")
    assert len(dataset) == 4096
    for index in (4096, -1):
        with pytest.raises(IndexError, match=f"clip {index} is not in 0..4095"):
            dataset[index]
    with pytest.raises(ValueError, match="n must be <= 4096, the number of clips, got 4097"):
        dataset.content_hash(4097)


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "mnst",
            {},
            "unknown dataset 'mnst', expected one of digits, moving_mnist, smmnist_srvp, mnist_test_seq, mnist",
        ),
        ("digits", {"split": "val"}, "unknown split 'val', expected one of train, valid, test"),
        ("digits", {"glyphs": "mnist"}, "digits has no option 'glyphs', expected one of n_digits, deterministic"),
        ("smmnist_srvp", {"n_digits": 2}, "smmnist_srvp has no option 'n_digits', expected one of deterministic"),
        ("moving_mnist", {"glyphs": "emnist"}, "unknown glyphs 'emnist', expected one of mnist, drawn"),
        ("moving_mnist", {"glyphs": "mnist"}, "root must be the folder that holds MNIST or receives it, got None"),
        ("moving_mnist", {"digit_size": 30}, r"digit_size of moving_mnist must be 28 \(SRVP\) or 32 \(SVG\), got 30"),
        ("moving_mnist", {"image_size": 16}, "image_size must be >= digit_size = 28, got 16"),
        ("moving_mnist", {"image_size": 32, "digit_size": 32}, "image_size must be > digit_size = 32, got 32"),
        ("moving_mnist", {"image_size": 32}, "max_speed must be 0 or < 4, the largest position of a 28 px digit"),
        ("moving_mnist", {"digit_size": 32, "max_speed": 31}, "max_speed must be 0 or < 31, .* 32 px .* got 31"),
        ("digits", {"digit_size": 7}, "digit_size must be an integer >= 8, got 7"),
        ("digits", {"digit_size": 65}, "image_size must be >= digit_size = 65, got 64"),
        ("digits", {"image_size": 7}, "image_size must be an integer >= 8, got 7"),
        ("digits", {"n_digits": 0}, "n_digits must be an integer >= 1, got 0"),
        ("digits", {"n_digits": 1.5}, "n_digits must be an integer >= 1, got 1.5"),
        ("digits", {"deterministic": "no"}, "deterministic must be True or False, got 'no'"),
        ("digits", {"min_speed": -1}, "min_speed must be an integer >= 0, got -1"),
        ("digits", {"max_speed": -1}, "max_speed must be an integer >= 0, got -1"),
        ("digits", {"min_speed": 3, "max_speed": 2}, "max_speed must be >= min_speed = 3, got 2"),
        ("digits", {"max_speed": 32}, "max_speed must be 0 or < 32, .* got 32"),
        ("digits", {"seq_len": 0}, "seq_len must be an integer >= 1, got 0"),
        ("digits", {"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_settings_are_refused_by_name_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(name, **options)
    assert "\n" not in str(error.value)
