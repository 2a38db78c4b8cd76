"""The published test set, compared with its first 64 videos and with the SHA-256 of these."""

from pathlib import Path

import numpy as np
import pytest

from datasets import load_dataset

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "srvp_smmnist_first64.npz"
FIRST_64 = {  # deterministic -> SHA-256 of the first 64 videos, uint8 (N, T, H, W)
    False: "d9dc09f4054a1d93dcbb67478c4ff994f963afaec9ff132bd60f57149756f9e0",
    True: "6532ac4fe4d642cca3c5388da0170238ae795ae31d6b86405d0253fd2582ac5b",
}


@pytest.mark.parametrize("deterministic, seq_len", [(False, 25), (True, 100)])
def test_first_videos_have_the_published_hash(mnist_root, deterministic, seq_len):
    dataset = load_dataset("smmnist_srvp", mnist_root, "test", seq_len=seq_len, deterministic=deterministic)
    assert len(dataset) == 5000
    assert dataset.content_hash(64) == FIRST_64[deterministic]


def test_first_videos_and_their_latents_equal_the_published_ones(mnist_root):
    if not PUBLISHED.is_file():
        pytest.skip(f"{PUBLISHED.name} is not beside the checkout")
    published = np.load(PUBLISHED)
    dataset = load_dataset("smmnist_srvp", mnist_root, "test", seq_len=25)
    videos = np.stack([video.squeeze(1).numpy() for video in dataset.__getitems__(range(64))])
    np.testing.assert_array_equal(videos, published["videos"])
    latents = dataset.states[:, :, :64].transpose(2, 3, 0, 1)  # (N, D, T, 4)
    np.testing.assert_array_equal(np.rint(latents), published["latents"])


def test_shorter_videos_are_the_beginning_of_the_published_ones(mnist_root):
    short, long = (load_dataset("smmnist_srvp", mnist_root, "test", seq_len=n) for n in (10, 25))
    assert short[4999].shape == (10, 1, 64, 64)
    assert short[4999].equal(long[4999][:10])


def test_digits_never_leave_the_image_in_any_video(mnist_root):
    for deterministic in (False, True):
        dataset = load_dataset("smmnist_srvp", mnist_root, "test", seq_len=25, deterministic=deterministic)
        assert dataset.states[:, :2].min() > -1e-7 and dataset.states[:, :2].max() < 36 + 1e-7


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "train"}, "smmnist_srvp has the split test alone, got 'train'"),
        ({"image_size": 32}, "image_size of smmnist_srvp must be 64, got 32"),
        ({"seq_len": 26}, "seq_len must be <= 25, the length of these videos, got 26"),
        ({"seq_len": 101, "deterministic": True}, "seq_len must be <= 100, the length of these videos, got 101"),
        ({"seq_len": 0}, "seq_len must be an integer >= 1, got 0"),
        ({"deterministic": "yes"}, "deterministic must be True or False, got 'yes'"),
    ],
)
def test_what_the_set_does_not_hold_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("smmnist_srvp", None, **{"split": "test", "seq_len": 25} | arguments)
