"""evaluate.py as a person starts it, on a run that was hardly trained: scores need not be good, only right."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

import evaluate
import train
from datasets import load_dataset
from seqvae.config import read_config
from seqvae.evaluation import futures
from tests.test_train_cli import GECO, SIGMA, TINY, without


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "geco"
    assert train.main([*GECO, "--data.n-future", "8", "--run-dir", str(folder)]) == 0
    for path in (folder / "checkpoints").glob("*.pt"):  # larger weights, so that samples differ as a trained model's do
        state = torch.load(path, weights_only=True)
        for name, weight in state["model"].items():
            if weight.ndim > 1:
                weight.mul_(2 if "lstm" in name else 12)
        torch.save(state, path)
    return folder


def rows(out: Path) -> dict[tuple[int, str], list[float]]:
    with (out / "metrics.csv").open() as file:
        return {(int(r["video"]), r["method"]): [float(r["psnr"]), float(r["ssim"])] for r in csv.DictReader(file)}


def test_scores_do_not_depend_on_the_batch_size(trained, tmp_path, monkeypatch):
    results = []
    for batch, at_once in ((1, 256), (8, 256), (8, 16)):
        monkeypatch.setattr(futures, "ROLLOUT_ROWS", at_once)
        out = tmp_path / f"{batch}_{at_once}"
        command = [str(trained), "--n-videos", "10", "--n-samples", "5", "--batch-size", str(batch), "--out", str(out)]
        assert evaluate.main(command) == 0
        results.append(rows(out))
    for other in results[1:]:
        assert other.keys() == results[0].keys() and len(other) == 10 * 8
        for key, values in other.items():
            np.testing.assert_allclose(values, results[0][key], atol=1e-4, rtol=0)
    best, worst = (np.array([v[0] for (_, method), v in results[0].items() if method == m]) for m in ("best", "worst"))
    assert (best > worst).all()


def test_every_file_is_there_and_baselines_are_what_they_say(trained, tmp_path, capsys):
    assert evaluate.main([str(trained), "--n-videos", "9", "--n-samples", "2", "--out", str(tmp_path)]) == 0
    assert len(list((tmp_path / "gifs").glob("video_*.gif"))) == 8 == len(list((tmp_path / "strips").glob("*.png")))
    for path in [*tmp_path.glob("gifs/*.gif"), *tmp_path.glob("strips/*.png"), tmp_path / "curves.png"]:
        with Image.open(path) as image:
            image.verify()
    with Image.open(tmp_path / "gifs" / "video_000.gif") as gif:
        assert gif.n_frames == 10 and gif.info["loop"] == 0 and gif.info["duration"] == 120

    cfg = read_config(trained)
    clips = load_dataset(split="test", **cfg.data.arguments())
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["protocol"] == "own" and report["step"] in (3, 6) and report["test_set"]["name"] == "digits"
    assert report["test_set"]["sha256"] == clips.content_hash(9)
    table = rows(tmp_path)
    for i in range(9):
        frames = clips[i].numpy()[:, 0] / 255.0
        for method, guess in {
            "copy last frame": frames[1],
            "mean of context": frames[:2].mean(0),
            "black": np.zeros_like(frames[0]),
        }.items():
            expected = np.mean([peak_signal_noise_ratio(f, guess, data_range=1) for f in frames[2:]])
            assert table[i, method][0] == pytest.approx(expected, abs=1e-3)
    for method in ("best", "mean", "worst", "posterior", "black"):
        mean = np.mean([table[i, method][0] for i in range(9)])
        assert report["results"][method]["psnr"]["mean"] == pytest.approx(mean, abs=1e-4)
        assert len(report["results"][method]["psnr"]["per_frame"]["mean"]) == 8
    out = capsys.readouterr().out
    for words in ("best of 2", "mean training image", "PSNR: per frame and channel", "SSIM: 11x11 Gaussian window"):
        assert words in out


def test_seed_checkpoint_and_device_are_used(trained, tmp_path):
    reports = []
    for i, flags in enumerate([[], ["--seed", "1"], ["--checkpoint", "last", "--device", "cpu"]]):
        command = [str(trained), "--n-videos", "2", "--n-samples", "2", "--out", str(tmp_path / str(i)), *flags]
        assert evaluate.main(command) == 0
        reports.append(json.loads((tmp_path / str(i) / "metrics.json").read_text()))
    assert reports[0]["results"]["mean"] != reports[1]["results"]["mean"]
    assert reports[0]["results"]["black"] == reports[1]["results"]["black"]
    assert reports[2]["checkpoint"] == "last" and reports[2]["step"] == 6


def test_averaged_weights_are_the_ones_evaluated(tmp_path, capsys):
    assert train.main([*GECO, "--optim.ema", "0.9", "--run-dir", str(tmp_path)]) == 0
    args = evaluate.EvalConfig(run_dir=tmp_path, checkpoint="last")
    model, state = evaluate.load_model(args, read_config(tmp_path), torch.device("cpu"))
    assert state["step"] == 6 and not torch.equal(
        state["ema"]["encoder.head.0.weight"], state["model"]["encoder.head.0.weight"]
    )
    torch.testing.assert_close(model.state_dict(), state["ema"])


def test_a_model_without_latent_has_one_future(tmp_path, capsys):
    command = [*without(SIGMA, "--model.z-dim"), "--model.prior", "none", "--run-dir", str(tmp_path)]
    assert train.main(command) == 0
    assert evaluate.main([str(tmp_path), "--n-videos", "2", "--n-samples", "3"]) == 2
    assert "one future per video" in capsys.readouterr().err
    assert evaluate.main([str(tmp_path), "--n-videos", "2"]) == 0
    assert "best of 1" in capsys.readouterr().out


def test_moving_mnist_is_scored_on_the_published_test_set(tmp_path, mnist_root, capsys):
    small = without(without(TINY, "--data.digit-size"), "--data.image-size")
    run_dir = tmp_path / "run"
    command = ["smmnist-sigma", *small, "--data.root", str(mnist_root), "--run-dir", str(run_dir)]
    assert train.main([*command, "--optim.steps", "3"]) == 0
    assert evaluate.main([str(run_dir), "--n-videos", "4", "--n-samples", "2", "--data-root", str(mnist_root)]) == 0
    assert "srvp-2020 (2 of 100 samples, 4 of 5000 videos)" in capsys.readouterr().out
    report = json.loads((run_dir / "evaluation" / "srvp-2020" / "metrics.json").read_text())
    assert report["test_set"]["name"] == "smmnist_srvp"
    assert len(report["results"]["best"]["psnr"]["per_frame"]["mean"]) == 20
    assert evaluate.main([str(run_dir), "--protocol", "own", "--n-videos", "4", "--n-samples", "2"]) == 0
    assert (run_dir / "evaluation" / "own" / "metrics.csv").exists()


@pytest.mark.parametrize("n_past", [2, 30])
def test_the_protocol_decides_how_much_is_seen_whatever_the_run_saw(n_past, tmp_path, mnist_root):
    small = TINY
    for name in ("--data.digit-size", "--data.image-size", "--data.n-past", "--optim.steps"):
        small = without(small, name)
    command = ["smmnist-sigma", *small, "--data.n-past", str(n_past), "--optim.steps", "1"]
    assert train.main([*command, "--data.root", str(mnist_root), "--run-dir", str(tmp_path)]) == 0
    assert evaluate.main([str(tmp_path), "--n-videos", "2", "--n-samples", "2"]) == 0
    report = json.loads((tmp_path / "evaluation" / "srvp-2020" / "metrics.json").read_text())
    assert [report["definitions"][name] for name in ("n_past", "n_future")] == [5, 20]
    assert len(report["results"]["best"]["psnr"]["per_frame"]["mean"]) == 20


@pytest.mark.parametrize(
    "flags, name",
    [
        ([], "srvp-2020"),
        (["--data.n-past", "2", "--data.n-future", "4"], "srvp-2020"),
        (["--data.n-digits", "1"], "own"),
        (["--data.glyphs", "drawn"], "own"),
        (["--data.max-speed", "3"], "own"),
        (["--data.name", "digits"], "own"),
    ],
)
def test_a_published_protocol_is_chosen_only_for_the_published_digits(flags, name):
    cfg = train.parse(["smmnist-geco", *flags])
    assert evaluate.choose_protocol(evaluate.EvalConfig(run_dir=Path("run")), cfg).name == name


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--n-samples", "0"], "--n-samples must be >= 1, got 0"),
        (["--protocol", "srvp-2020"], "--protocol srvp-2020 is defined on 64-px stochastic Moving MNIST"),
        (["--protocol", "nonsense"], "nonsense"),
        (["--n-videos", "1000000"], "--n-videos 1000000: the test split of digits has 10000"),
    ],
)
def test_bad_arguments_are_one_message_and_exit_code_2(trained, flags, words, capsys):
    try:
        code = evaluate.main([str(trained), *flags])
    except SystemExit as end:
        code = end.code
    text = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert code == 2 and words in text and "Traceback" not in text


def test_a_folder_without_a_run_or_without_a_checkpoint_is_refused(trained, tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    assert evaluate.main([str(tmp_path)]) == 2
    assert "best.pt is missing" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"half a file")
    assert evaluate.main([str(tmp_path)]) == 2
    assert "best.pt cannot be read" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "best.pt").unlink()
    assert train.main([*GECO, "--model.width", "8", "--run-dir", str(tmp_path / "wider")]) == 0
    wider = tmp_path / "wider" / "checkpoints" / "best.pt"
    (tmp_path / "checkpoints" / "best.pt").write_bytes(wider.read_bytes())
    assert evaluate.main([str(tmp_path)]) == 2
    assert "best.pt is of another model than" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_any_work(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert evaluate.main([str(trained), "--out", str(tmp_path / "file")]) == 2
    assert "cannot use" in capsys.readouterr().err
