"""torchvision's Moving MNIST test file as a test set, on a file of its shape with fewer videos."""

import json

import numpy as np
import pytest
import torch
from torchvision.datasets import MovingMNIST

import evaluate
import train
from datasets import load_dataset
from tests.helpers import SIGMA_FLAGS, without

pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data" / "MovingMNIST"
    folder.mkdir(parents=True)
    np.save(folder / "mnist_test_seq.npy", np.random.default_rng(0).integers(256, size=(20, 6, 64, 64), dtype=np.uint8))
    return tmp_path / "data"


def test_the_videos_are_those_torchvision_reads(root):
    ours, theirs = load_dataset("mnist_test_seq", root, "test", seq_len=20), MovingMNIST(root, split=None)
    assert len(ours) == len(theirs) == 6
    for i in range(6):
        torch.testing.assert_close(ours[i], theirs[i], rtol=0, atol=0)  # (20, 1, 64, 64) uint8
    assert torch.equal(load_dataset("mnist_test_seq", root, "test", seq_len=7)[3], theirs[3][:7])


@pytest.mark.long
def test_a_run_is_scored_on_it_under_own(root, tmp_path, capsys):
    run_dir = tmp_path / "run"
    small = without(SIGMA_FLAGS, "--data.image-size")
    assert train.main([*small, "--optim.steps", "1", "--run-dir", str(run_dir)]) == 0
    few = ["--test-set", "mnist_test_seq", "--n-videos", "3", "--n-samples", "2", "--n-importance", "1"]
    assert evaluate.main([str(run_dir), *few, "--data-root", str(root), "--save-predictions"]) == 0
    folder = run_dir / "evaluation" / "own-mnist_test_seq"
    report = json.loads((folder / "metrics.json").read_text())
    assert report["test_set"]["name"] == "mnist_test_seq" and "oracle_best_of_n" not in report
    assert report["definitions"]["n_past"] + report["definitions"]["n_future"] == 20
    again = ["--from-predictions", str(folder / "predictions.h5"), "--out", str(tmp_path / "again")]
    assert evaluate.main(again) == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["results"] == report["results"]
    assert evaluate.main([str(run_dir), *few, "--n-videos", "7", "--data-root", str(root)]) == 2
    assert "--n-videos 7: the test split of mnist_test_seq has 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, error, words",
    [
        (dict(split="train", seq_len=5), ValueError, "has the split test alone"),
        (dict(split="test", seq_len=21), ValueError, "seq_len must be <= 20"),
        (dict(split="test", seq_len=5, image_size=32), ValueError, "image_size of mnist_test_seq must be 64"),
    ],
)
def test_what_it_does_not_hold_is_refused(root, options, error, words):
    with pytest.raises(error, match=words):
        load_dataset("mnist_test_seq", root, **options)


def test_a_missing_or_wrong_file_is_one_line(root):
    with pytest.raises(FileNotFoundError, match="mnist_test_seq.npy is missing; download http"):
        load_dataset("mnist_test_seq", root / "elsewhere", "test", seq_len=5)
    path = root / "MovingMNIST" / "mnist_test_seq.npy"
    np.save(path, np.zeros((6, 20, 64, 64), np.uint8))
    with pytest.raises(ValueError, match="expected .20, 10000, 64, 64. uint8"):
        load_dataset("mnist_test_seq", root, "test", seq_len=5)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_dataset("mnist_test_seq", root, "test", seq_len=5)
