"""evaluate.py as a person starts it, on a run that was hardly trained: scores need not be good, only right."""

import csv
import functools
import json
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

import evaluate
import train
from datasets import load_dataset
from datasets.digits.oracle import oracle_futures
from seqvae.config import read_config
from seqvae.evaluation import predictions, request, runs, session
from seqvae.evaluation.choose import choose_protocol
from seqvae.evaluation.config import EvalConfig
from seqvae.evaluation.scores import Scorer
from seqvae.metrics.protocols import find_protocol
from seqvae.weights import load_model
from tests.helpers import GECO_FLAGS, SIGMA_FLAGS, TINY_FLAGS, without

pytestmark = pytest.mark.usefixtures("no_charts")


def rows(out: Path) -> dict[tuple[int, str], list[float]]:
    with (out / "metrics.csv").open() as file:
        return {(int(r["video"]), r["method"]): [float(r["psnr"]), float(r["ssim"])] for r in csv.DictReader(file)}


def test_scores_do_not_depend_on_the_batch_size(trained, tmp_path, monkeypatch):
    results = []
    for batch, at_once in ((1, 256), (3, 256), (3, 4)):
        monkeypatch.setattr(predictions, "ROLLOUT_ROWS", at_once)
        out = tmp_path / f"{batch}_{at_once}"
        few = ["--n-videos", "5", "--n-samples", "3", "--n-importance", "1", "--no-oracle"]
        assert evaluate.main([str(trained), *few, "--batch-size", str(batch), "--out", str(out)]) == 0
        results.append(rows(out))
    for other in results[1:]:
        assert other.keys() == results[0].keys() and len(other) == 5 * 8
        for key, values in other.items():
            np.testing.assert_allclose(values, results[0][key], atol=1e-4, rtol=0)
    best, worst = (np.array([v[0] for (_, method), v in results[0].items() if method == m]) for m in ("best", "worst"))
    assert (best > worst).all()


@pytest.mark.charts
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
            with np.errstate(divide="ignore"):  # a digit that stands still is copied without error
                values = [peak_signal_noise_ratio(f, guess, data_range=1) for f in frames[2:]]
            expected = np.mean(np.minimum(values, 100))
            assert table[i, method][0] == pytest.approx(expected, abs=1e-3)
    assert report["diversity"]["mean"] > 1e-5
    for method in ("best", "mean", "worst", "posterior", "black"):
        mean = np.mean([table[i, method][0] for i in range(9)])
        assert report["results"][method]["psnr"]["mean"] == pytest.approx(mean, abs=1e-4)
        assert len(report["results"][method]["psnr"]["per_frame"]["mean"]) == 8
    out = capsys.readouterr().out
    for words in ("best of 2", "mean training image", "PSNR (dB): per frame and", "SSIM: 11x11 Gaussian window"):
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
    assert train.main([*GECO_FLAGS, "--optim.ema", "0.9", "--run-dir", str(tmp_path)]) == 0
    model, state = load_model(tmp_path, read_config(tmp_path), "last")
    assert state["step"] == 6 and not torch.equal(
        state["ema"]["encoder.head.0.weight"], state["model"]["encoder.head.0.weight"]
    )
    torch.testing.assert_close(model.state_dict(), state["ema"])


def test_a_model_without_latent_has_one_future(tmp_path, capsys):
    command = [*without(SIGMA_FLAGS, "--model.z-dim"), "--model.prior", "none", "--run-dir", str(tmp_path)]
    assert train.main(command) == 0
    assert evaluate.main([str(tmp_path), "--n-videos", "2", "--n-samples", "3"]) == 2
    assert "one future per video" in capsys.readouterr().err
    assert evaluate.main([str(tmp_path), "--n-videos", "2"]) == 0
    assert "best of 1" in capsys.readouterr().out


def test_moving_mnist_is_scored_on_the_published_test_set(tmp_path, mnist_root, capsys):
    small = without(without(TINY_FLAGS, "--data.digit-size"), "--data.image-size")
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


def test_the_order_of_protocols_does_not_change_what_each_is_scored_on(tmp_path, mnist_root, monkeypatch):
    small, real = without(without(TINY_FLAGS, "--data.digit-size"), "--data.image-size"), runs.make_plan
    command = ["smmnist-sigma", *small, "--data.root", str(mnist_root), "--run-dir", str(tmp_path)]
    assert train.main([*command, "--optim.steps", "1"]) == 0
    found = []
    for order in (("own", "srvp-2020", "mcvd-2022"), ("mcvd-2022", "srvp-2020", "own")):
        plans = {}

        def noted(asked, protocol, *, plans=plans, **options):
            plans[protocol.name] = options["n_samples"], options["n_videos"]
            return real(asked, protocol, **options)

        monkeypatch.setattr(runs, "make_plan", noted)
        args = EvalConfig(run_dirs=(tmp_path,), protocol=order)
        session.prepare(request.Request(args, torch.device("cpu"), load_dataset, evaluate.simulator))
        found.append(plans)
    assert found[0] == found[1] and found[0]["srvp-2020"] == (100, 5000)


def test_several_protocols_score_a_run_in_one_command(tmp_path, mnist_root, capsys):
    small = without(without(TINY_FLAGS, "--data.digit-size"), "--data.image-size")
    command = ["smmnist-sigma", *small, "--data.root", str(mnist_root), "--run-dir", str(tmp_path)]
    assert train.main([*command, "--optim.steps", "1"]) == 0
    few = ["--n-videos", "2", "--n-samples", "2", "--n-importance", "1"]
    assert evaluate.main([str(tmp_path), *few, "--protocol", "srvp-2020", "svg-2018", "mcvd-2022"]) == 0
    out = capsys.readouterr().out
    frames = {"srvp-2020": 20, "svg-2018": 25, "mcvd-2022": 10}
    reports = {name: json.loads((tmp_path / "evaluation" / name / "metrics.json").read_text()) for name in frames}
    for name, n_future in frames.items():
        assert reports[name]["definitions"]["n_future"] == n_future and f"{n_future} predicted" in out
        assert len(reports[name]["results"]["best"]["ssim"]["per_frame"]["mean"]) == n_future
        assert (
            10 < reports[name]["results"]["oracle best"]["psnr"]["mean"] <= 40 and "oracle_best_of_n" in reports[name]
        )
        assert len(reports[name]["diversity"]["per_frame"]["mean"]) == n_future
        assert any("LPIPS" in line for line in reports[name]["left_out"]) == (name != "svg-2018")
    assert reports["svg-2018"]["test_set"]["name"] == "moving_mnist"
    black = {name: reports[name]["results"]["black"]["ssim"]["mean"] for name in frames}
    assert len(set(black.values())) == 3, "three definitions of SSIM"
    assert "per_frame" not in reports["mcvd-2022"]["results"]["best"]["psnr"], "one number per video"
    assert evaluate.main([str(tmp_path), *few, "--protocol", "own", "srvp-2020", "--out", str(tmp_path / "x")]) == 0
    assert all((tmp_path / "x" / name / "metrics.json").exists() for name in ("own", "srvp-2020"))
    assert evaluate.main([str(tmp_path), "--protocol", "own", "own"]) == 2
    assert "written twice" in capsys.readouterr().err


def test_missing_weights_leave_their_row_out_with_the_reason_and_the_remedy(trained, tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    few = ["--n-videos", "2", "--n-samples", "2", "--out", str(tmp_path / "out")]
    assert evaluate.main([str(trained), *few, "--lpips", "on", "--r3d18"]) == 0
    out = capsys.readouterr().out
    for words in (
        "LPIPS: left out, alexnet",
        "r3d_18 features: left out",
        "no network",
        "FVD: left out",
        "--fvd-weights",
    ):
        assert words in out
    assert evaluate.main([str(trained), *few, "--fvd-weights", str(tmp_path / "none.pt")]) == 2
    assert "none.pt is not a file" in capsys.readouterr().err


def test_lpips_and_fvd_are_scored_where_there_are_weights(trained, torch_home, tmp_path, monkeypatch, capsys):
    class TinyI3D(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 3, T, 224, 224) -> (B, 400)
            return x.mean((2, 3, 4)).repeat(1, 134)[:, :400] - x.std()

    torch.jit.script(TinyI3D()).save(str(tmp_path / "i3d.pt"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    checkpoints, whole = tmp_path / "hub" / "hub" / "checkpoints", torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "alexnet-owt-7be5be79.pth").symlink_to(whole / "alexnet-owt-7be5be79.pth")
    few = ["--n-videos", "3", "--n-samples", "2", "--n-importance", "1", "--out", str(tmp_path / "out")]
    assert evaluate.main([str(trained), *few, "--fvd-weights", str(tmp_path / "i3d.pt")]) == 0
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["results"]["best"]["lpips"]["mean"] <= report["results"]["worst"]["lpips"]["mean"]
    assert report["frechet"]["FVD"]["n_fake"] == 3 and len(report["frechet"]["FVD"]["sha256"]) == 64
    out = capsys.readouterr().out
    assert "LPIPS v0.1" in out and "FVD: " in out and "covariances are singular" in out
    assert evaluate.main([str(trained), *few, "--lpips-vgg"]) == 0
    assert "LPIPS (VGG): left out, vgg16-397923af.pth is not in" in capsys.readouterr().out
    (checkpoints / "vgg16-397923af.pth").symlink_to(whole / "vgg16-397923af.pth")
    assert evaluate.main([str(trained), *few, "--lpips-vgg"]) == 0
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]["mean"]
    assert scores["lpips_vgg"]["mean"] > 0 and scores["lpips_vgg"]["mean"] != scores["lpips"]["mean"]


@pytest.mark.parametrize("n_past", [2, 30])
def test_the_protocol_decides_how_much_is_seen_whatever_the_run_saw(n_past, tmp_path, mnist_root):
    small = TINY_FLAGS
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
        (["--data.digit-size", "32"], "svg-2018"),
        (["--data.n-digits", "1"], "own"),
        (["--data.glyphs", "drawn"], "own"),
        (["--data.max-speed", "3"], "own"),
        (["--data.name", "digits"], "own"),
    ],
)
def test_a_published_protocol_is_chosen_only_for_the_published_digits(flags, name):
    cfg = train.parse(["smmnist-geco", *flags])
    assert choose_protocol(cfg, "auto").name == name


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--n-samples", "0"], "--n-samples must be >= 1, got 0"),
        (["--protocol", "srvp-2020"], "--protocol srvp-2020 is defined on moving_mnist {'image_size': 64"),
        (["--protocol", "nonsense"], "--protocol: invalid choice: 'nonsense' (choose from 'auto', 'srvp-2020'"),
        (["--n-samples", "many"], "--n-samples should be a valid integer"),
        (["--n-videos", "1000000"], "--n-videos 1000000: the test split of digits has 10000"),
    ],
)
def test_bad_arguments_are_one_message_and_exit_code_2(trained, flags, words, capsys):
    assert evaluate.main([str(trained), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count(chr(10)) == 1


def test_a_run_without_a_checkpoint_of_its_own_is_refused(trained, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    assert evaluate.main([str(tmp_path)]) == 2
    assert "best.pt is missing" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"half a file")
    assert evaluate.main([str(tmp_path)]) == 2
    assert "best.pt cannot be read" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "best.pt").unlink()
    assert train.main([*GECO_FLAGS, "--model.width", "8", "--run-dir", str(tmp_path / "wider")]) == 0
    wider = tmp_path / "wider" / "checkpoints" / "best.pt"
    (tmp_path / "checkpoints" / "best.pt").write_bytes(wider.read_bytes())
    assert evaluate.main([str(tmp_path)]) == 2
    assert "best.pt is of another model than" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_is_refused_in_one_line(trained, tmp_path, capsys):
    tree = json.loads((trained / "config.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(tree))
    state = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    assert (state["channels"], state["image_size"]) == (1, 32)
    for image_size, words in ((64, "is of another model than"), (None, "does not say the size of its videos")):
        state["image_size"] = image_size
        if image_size is None:
            del state["image_size"], state["channels"]
        torch.save(state, tmp_path / "checkpoints" / "best.pt")
        assert evaluate.main([str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count(chr(10)) == 1


def test_a_place_that_cannot_be_written_is_refused_before_any_work(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert evaluate.main([str(trained), "--out", str(tmp_path / "file")]) == 2
    assert "cannot use" in capsys.readouterr().err


def test_a_folder_that_was_used_shows_nothing_older_and_formats_and_scale_are_as_asked(trained, tmp_path):
    few = ["--n-samples", "2", "--n-importance", "1", "--out", str(tmp_path)]
    (tmp_path / "gifs").mkdir()
    (tmp_path / "gifs" / "video_003.gif").write_text("of an older evaluation")
    assert evaluate.main([str(trained), *few, "--n-videos", "2", "--formats", "apng", "mp4", "--gif-scale", "1"]) == 0
    names = {path.name for path in (tmp_path / "gifs").iterdir()}
    assert names == {f"{name}.{ending}" for name in ("grid", "video_000", "video_001") for ending in ("apng", "mp4")}
    assert len(list((tmp_path / "strips").iterdir())) == 2
    with Image.open(tmp_path / "gifs" / "video_000.apng") as small:
        size = small.size
    assert evaluate.main([str(trained), *few, "--n-videos", "2", "--formats", "apng", "--gif-scale", "6"]) == 0
    with Image.open(tmp_path / "gifs" / "video_000.apng") as large:
        assert large.size[0] > 3 * size[0] / 2 and large.n_frames == 10
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/apng") + page.count("data:image/png") >= 3 and "data:image/gif" not in page


def test_a_larger_evaluation_is_not_replaced_and_another_one_is_replaced_with_a_line(trained, tmp_path, capsys):
    command = [str(trained), "--n-importance", "1", "--no-oracle", "--out", str(tmp_path)]
    assert evaluate.main([*command, "--n-samples", "2", "--n-videos", "3"]) == 0
    before = (tmp_path / "metrics.json").read_bytes()
    for fewer in (["--n-samples", "1", "--n-videos", "3"], ["--n-samples", "9", "--n-videos", "2"]):
        capsys.readouterr()
        assert evaluate.main([*command, *fewer]) == 2
        error = capsys.readouterr().err
        assert "holds an evaluation of 2 samples of 3 videos, and" in error and error.count(chr(10)) == 1
        assert (tmp_path / "metrics.json").read_bytes() == before
    assert evaluate.main([*command, "--n-samples", "3", "--n-videos", "3", "--seed", "1"]) == 0
    assert f"{tmp_path}: replaced an earlier evaluation (seed 0 -> 1, n_samples 2 -> 3)" in capsys.readouterr().out
    (tmp_path / "metrics.json").write_text('{"n_images": 5}')
    assert evaluate.main([*command, "--n-samples", "3", "--n-videos", "3"]) == 2
    assert f"{tmp_path} holds an evaluation of images, not videos; choose another --out" in capsys.readouterr().err
    (tmp_path / "metrics.json").write_text("[" * 100_000)
    assert evaluate.main([*command, "--n-samples", "1", "--n-videos", "2"]) == 0


def test_one_video_has_no_interval(trained, tmp_path, capsys):
    command = [str(trained), "--n-importance", "2", "--out", str(tmp_path), "--n-samples", "2", "--n-videos", "1"]
    assert evaluate.main(command) == 0
    out = capsys.readouterr().out
    assert "+- 0.0" not in out and "nan" not in out.lower()
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert (
        results["best"]["psnr"]["interval95"] is None and results["best"]["psnr"]["per_frame"]["interval95"][0] is None
    )
    assert "\u00b1 0" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--n-samples", "1000000000"], "1000000000 samples of 64 videos, 10 frames: needs at least"),
        (["--n-importance", "9" * 30], "needs at least"),
    ],
)
def test_more_than_the_memory_holds_is_refused_with_the_estimate(flags, words, trained, tmp_path, capsys):
    assert evaluate.main([str(trained), *flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and "GB of memory, and this machine has" in error and error.count(chr(10)) == 1


def test_several_runs_are_put_side_by_side(tmp_path, monkeypatch, capsys):
    latent, plain = tmp_path / "latent", tmp_path / "plain"
    assert train.main([*SIGMA_FLAGS, "--run-dir", str(latent)]) == 0
    command = [*without(SIGMA_FLAGS, "--model.z-dim"), "--model.prior", "none", "--run-dir", str(plain)]
    assert train.main(command) == 0
    monkeypatch.chdir(tmp_path)
    few = ["--n-videos", "2", "--n-samples", "3"]
    assert evaluate.main([str(latent), str(plain), *few]) == 0
    out = capsys.readouterr().out
    assert "wrote comparison/report.html" in out and "plain" in out.split("wrote")[-2]
    page = (tmp_path / "comparison" / "report.html").read_text()
    assert "Comparison of 2 runs" in page and "do not compare" not in page + out, "one group: the same videos"
    (tmp_path / "file").write_text("")
    assert evaluate.main([str(latent), str(plain), *few, "--out", str(tmp_path / "file")]) == 2


def test_predictions_that_are_not_finite_are_no_score(trained, tmp_path, capsys):
    for name in ("config.json", "checkpoints/best.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    state = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    name = next(name for name in state["model"] if name.startswith("decoder") and name.endswith("running_var"))
    state["model"][name][0] = -1  # a number, but its root is none
    torch.save(state, tmp_path / "checkpoints" / "best.pt")
    assert evaluate.main([str(tmp_path), "--n-videos", "2", "--n-samples", "2"]) == 2
    assert "the model predicts NaN" in capsys.readouterr().err
    assert not (tmp_path / "evaluation" / "own" / "metrics.json").exists()


def test_the_oracle_is_the_published_ceiling(mnist_root):
    # Of 300 videos it is 17.1 +- 0.5 dB and 0.710 +- 0.010 (benchmarks/results); of 64 the interval is twice as wide.
    clips = load_dataset("smmnist_srvp", mnist_root, "test", seq_len=25)
    protocol = find_protocol("srvp-2020", "moving_mnist")
    scorer = Scorer(protocol, protocol.frame_metrics, 2, 64)
    videos = range(64)
    scorer.begin(videos, torch.stack([clips[i] for i in videos]), torch.device("cpu"))
    scorer.add_oracle(range(2), torch.from_numpy(oracle_futures(clips, videos, 5, 20, range(2), 0)))
    scores = scorer.oracle.scores
    assert scores["psnr"].max() <= 40 and abs(scores["psnr"].mean() - 17.14) < 1.2
    assert abs(scores["ssim"].mean() - 0.710) < 0.03


@pytest.mark.parametrize("flags", [["--amp", "bf16"], ["--compile", "on"]])
def test_faster_predictions_score_as_the_plain_ones(trained, tmp_path, flags, monkeypatch):
    # Traced as ever, but not turned into C++, which takes a minute; the GPU suite compiles for real.
    backend = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda module, *_, **options: backend(module, **options))
    few = ["--n-videos", "2", "--n-samples", "2", "--n-importance", "1"]
    results = []
    for name, more in (("plain", []), ("fast", flags)):
        assert evaluate.main([str(trained), *few, *more, "--out", str(tmp_path / name)]) == 0
        results.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    plain, fast = (r["results"]["mean"]["psnr"]["mean"] for r in results)
    assert abs(plain - fast) < 0.05 and results[1]["amp"] == ("bf16" if "bf16" in flags else "off")
    if "bf16" in flags:
        assert (tmp_path / "plain" / "metrics.csv").read_bytes() != (tmp_path / "fast" / "metrics.csv").read_bytes()
