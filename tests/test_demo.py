"""The demo held to what the README says of it: minutes of training, so it runs with `make test-slow` only."""

import json

import pytest

import evaluate
import train
from seqvae.training.logger import read_metrics

BASELINES = ("copy last frame", "mean of context", "mean training image", "black")


@pytest.mark.slow
def test_the_demo_beats_every_baseline_and_meets_its_tolerance(tmp_path):
    assert train.main(["demo", "--run-dir", str(tmp_path)]) == 0
    assert evaluate.main([str(tmp_path)]) == 0
    results = json.loads((tmp_path / "evaluation" / "own" / "metrics.json").read_text())["results"]
    for metric in ("psnr", "ssim"):
        assert all(results["best"][metric]["mean"] > results[name][metric]["mean"] for name in BASELINES)
    assert all(results["posterior"]["psnr"]["mean"] >= results[name]["psnr"]["mean"] + 3 for name in BASELINES)

    tolerance = json.loads((tmp_path / "config.json").read_text())["config"]["objective"]["tolerance"]
    last = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "valid/rmse" in line][-1]
    assert last["valid/rmse"] == pytest.approx(tolerance, rel=0.05)
    # PSNR is a mean of logarithms, so this is a lower bound on the black frame's RMSE.
    assert tolerance <= 0.6 * 10 ** (-results["black"]["psnr"]["mean"] / 20)
