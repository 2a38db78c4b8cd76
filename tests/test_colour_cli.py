"""Colour videos from file to GIF: BAIR's presets on a stand-in of moving coloured shapes, and own videos."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

import evaluate
import predict
import train
from datasets.bair import convert as convert_bair
from seqvae.presets import PRESETS
from tests.data_files import make_bair, write_bair_records

pytestmark = pytest.mark.usefixtures("no_charts")

TINY = ["--model.width", "2", "--model.g-dim", "8", "--model.rnn-size", "8", "--model.z-dim", "3"]
TINY += ["--optim.batch-size", "2", "--compute.workers", "0", "--run.n-valid", "1", "--run.log-every", "1"]


def moving_shapes(n: int, n_frames: int, size: int, seed: int) -> np.ndarray:
    """(N, T, S, S, 3) uint8: a coloured square that moves over a coloured ground, nothing like a robot."""
    rng = np.random.default_rng(seed)
    videos = np.broadcast_to(rng.integers(0, 120, (n, 1, 1, 1, 3)), (n, n_frames, size, size, 3)).astype(np.uint8)
    for video, start, speed, colour in zip(
        videos, rng.integers(0, size, (n, 2)), rng.integers(1, 4, (n, 2)), rng.integers(100, 256, (n, 3))
    ):
        for t, frame in enumerate(video):
            y, x = (start + t * speed) % (size - size // 4)
            frame[y : y + size // 4, x : x + size // 4] = colour
    return videos


@pytest.fixture(scope="module")
def bair(tmp_path_factory):
    """A converted stand-in in BAIR's published layout: 20 training videos, 3 test videos."""
    root = tmp_path_factory.mktemp("bair")
    for split, n in (("train", 20), ("test", 3)):
        videos = make_bair(n, seed=n) | {"aux1": moving_shapes(n, 30, 64, seed=n)}
        write_bair_records(root / "raw" / "softmotion30_44k" / split / f"traj_0_to_{n - 1}.tfrecords", videos)
    assert convert_bair.main([str(root / "raw"), str(root), "--allow-partial"]) in (None, 0)
    return root


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("bair")])
def test_the_bair_presets_train(preset, bair, tmp_path):
    command = [preset, *TINY, "--data.root", str(bair), "--run-dir", str(tmp_path)]
    assert train.main([*command, "--optim.steps", "1"]) == 0


def test_bair_trains_resumes_and_is_evaluated_in_colour(bair, tmp_path, capsys):
    command = ["bair-sigma", *TINY, "--data.root", str(bair), "--run-dir", str(tmp_path)]
    command += ["--data.flip", "True", "--model.norm", "group"]
    for steps in ("1", "2"):
        assert train.main([*command, "--optim.steps", steps]) == 0
    assert evaluate.main([str(tmp_path), "--n-videos", "2", "--n-samples", "2", "--n-importance", "2"]) == 0
    assert "srvp-2020 (2 of 100 samples, 2 of 256 videos)" in capsys.readouterr().out
    report = json.loads((tmp_path / "evaluation" / "srvp-2020" / "metrics.json").read_text())
    assert report["definitions"]["n_past"] == 2 and len(report["results"]["best"]["psnr"]["per_frame"]["mean"]) == 28
    with Image.open(tmp_path / "evaluation" / "srvp-2020" / "gifs" / "video_000.gif") as gif:
        assert gif.n_frames == 30
        pixels = np.asarray(gif.convert("RGB")).astype(int)
    assert (abs(pixels[..., 0] - pixels[..., 2]) > 30).any()
    assert evaluate.main([str(tmp_path)]) == 2
    assert "--n-videos 256: the test split of bair has 3" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_own_videos_train_resume_are_evaluated_and_predicted(suffix, tmp_path, capsys):
    if suffix == "mp4":
        pytest.importorskip("av", reason="mp4 needs the extra: pip install -e '.[mp4]'")
    folder = tmp_path / "videos"
    folder.mkdir()
    for i, video in enumerate(moving_shapes(8, 9, 48, seed=5)):
        iio.imwrite(
            folder / f"{i}.{suffix}", video, plugin="pyav", codec="h264", fps=8
        ) if suffix == "mp4" else iio.imwrite(folder / f"{i}.{suffix}", video, duration=120)
    (folder / f"broken.{suffix}").write_bytes(b"no video")
    run_dir = tmp_path / "run"
    command = ["videos-sigma", *TINY, "--data.root", str(folder), "--data.image-size", "32"]
    command += ["--data.n-past", "2", "--data.n-future", "3", "--run-dir", str(run_dir)]
    assert train.main([*command, "--optim.steps", "1"]) == 0
    assert f"broken.{suffix}" in "".join(capsys.readouterr())
    assert train.main([*command, "--optim.steps", "2"]) == 0
    assert evaluate.main([str(run_dir), "--n-samples", "2"]) == 0
    assert (run_dir / "evaluation" / "own" / "gifs" / "video_000.gif").exists()

    clip = folder / f"3.{suffix}"
    assert predict.main([str(run_dir), str(clip), "--n-samples", "3"]) == 0
    with Image.open(run_dir / "predictions" / clip.name / "prediction.gif") as gif:
        assert gif.n_frames == 5
        with_truth = gif.size
    out = tmp_path / "longer"
    assert predict.main([str(run_dir), str(clip), "--n-samples", "3", "--n-future", "20", "--out", str(out)]) == 0
    assert "the clip has 9 frames of 22" in capsys.readouterr().out
    with Image.open(out / "prediction.gif") as gif:
        assert gif.n_frames == 22 and gif.size[0] < with_truth[0]  # no truth, no posterior beside it


def test_a_model_of_grey_pictures_predicts_a_colour_clip_in_grey(tmp_path):
    iio.imwrite(tmp_path / "mine.gif", moving_shapes(1, 6, 40, seed=1)[0], duration=120)
    small = [*TINY, "--data.image-size", "32", "--data.digit-size", "12", "--data.n-past", "2", "--data.n-future", "2"]
    assert train.main(["demo-svg", *small, "--optim.steps", "1", "--run-dir", str(tmp_path / "run")]) == 0
    assert predict.main([str(tmp_path / "run"), str(tmp_path / "mine.gif")]) == 0
    assert (tmp_path / "run" / "predictions" / "mine.gif" / "prediction.png").exists()
