"""What is installed without extras is enough for training, evaluation and prediction; what an extra adds says so."""

import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from datasets.bair import convert
from seqvae import export
from seqvae.metrics.protocols import build_metrics, find_protocol
from tests.helpers import GECO_FLAGS

ROOT = Path(__file__).parent.parent
MODULES = ("tfrecord", "crc32c", "h5py", "torchmetrics", "huggingface_hub", "av")


def install(extra):
    return f'install it with `pip install -e ".[{extra}]"`'


@pytest.mark.long
def test_the_three_jobs_run_without_extras(tmp_path):
    """In a process in which no extra can be imported."""
    code = f"""
import sys
sys.modules |= dict.fromkeys({MODULES!r})
import evaluate, predict, train
run, gif = {str(tmp_path / "run")!r}, {str(tmp_path / "run/evaluation/own/gifs/video_000.gif")!r}
assert train.main([*{GECO_FLAGS!r}, "--run-dir", run]) == 0
assert evaluate.main([run, "--n-videos", "2", "--n-samples", "2"]) == 0
assert predict.main([run, gif]) == 0
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "LPIPS: left out, it needs torchmetrics" in (tmp_path / "run/evaluation/own/metrics.json").read_text()


@pytest.mark.parametrize(
    "flags, module, message",
    [
        (["--save-predictions"], "h5py", f"--save-predictions needs h5py; {install('hdf5')}"),
        (["--lpips", "on"], "torchmetrics", f"--lpips on needs torchmetrics; {install('lpips')}"),
        (["--lpips-vgg"], "torchmetrics", f"--lpips-vgg needs torchmetrics; {install('lpips')}"),
        (["--formats", "mp4"], "av", f"--formats mp4 needs av; {install('mp4')}"),
    ],
)
def test_evaluate_names_the_extra_that_a_flag_needs(flags, module, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    assert evaluate.main(["smmnist-transport", *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"evaluate.py: {message}"


def test_reading_predictions_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert evaluate.main(["--from-predictions", "a.h5"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"evaluate.py: --from-predictions needs h5py; {install('hdf5')}"


def test_lpips_is_left_out_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    protocol = find_protocol("srvp-2020", "moving_mnist")
    metrics, left_out = build_metrics(protocol, "auto", "cpu")
    assert metrics == protocol.frame_metrics
    assert left_out == ['LPIPS: left out, it needs torchmetrics: pip install -e ".[lpips]"']


def test_the_converter_of_bair_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(convert, "Example", None)
    assert convert.main([str(tmp_path), str(tmp_path / "out"), "--download"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'pip install -e ".[bair]"' in error
    assert not list(tmp_path.iterdir())


def test_pushing_names_the_extra_before_anything_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert export.main(["smmnist-transport", str(tmp_path / "out"), "--push", "me/weights"]) == 2
    assert f"--push needs huggingface_hub; {install('hub')}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
