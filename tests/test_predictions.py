"""Saved predictions score as the model's own do, other programs' too, and bad files are one-line errors."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch.distributions import Categorical, MixtureSameFamily, Normal

import evaluate
import train
from seqvae.evaluation import prediction_file
from seqvae.evaluation import predictions as predictions_module
from seqvae.evaluation.files import protocol_of_file
from seqvae.evaluation.prediction_file import SavedPredictions, writing
from seqvae.evaluation.results import Results
from seqvae.evaluation.scores import Scorer, score_all
from seqvae.metrics.protocols import own_protocol
from tests.helpers import SIGMA_FLAGS, TINY_FLAGS, without
from tests.results import STORED_ELSEWHERE, Made, foreign, metrics, scored

pytestmark = pytest.mark.usefixtures("no_charts")

CPU = torch.device("cpu")


@pytest.mark.parametrize("sigma", [None, "one", "image", "pixel"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_gives_the_same_frames_and_the_same_numbers(sigma, channels, tmp_path):
    made = Made(sigma, channels)
    with writing(tmp_path / "p.h5", made, {"source": "test"}) as writer:
        direct = scored(made, writer=writer).as_json()
    saved = SavedPredictions(tmp_path / "p.h5", CPU)
    assert saved.facts == {"source": "test"}
    for batch_size in (1, 5):
        assert scored(saved, batch_size).as_json() == direct
    assert ("calibration" in direct) == (sigma is not None)
    assert [p.name for p in tmp_path.iterdir()] == ["p.h5"]


def test_everything_that_is_stored_has_a_checksum(tmp_path):
    with writing(tmp_path / "p.h5", Made("pixel"), {}) as writer:
        scored(Made("pixel"), writer=writer)
    with h5py.File(tmp_path / "p.h5") as file:
        assert {name: file[name].fletcher32 for name in file} == dict.fromkeys(file, True)
    assert (tmp_path / "p.h5").read_bytes()[8] >= 2, "the superblock's version: from 2 on, metadata have checksums"


def test_no_number_depends_on_batches_or_chunks(monkeypatch):
    expected = scored(Made("pixel"), 5).as_json()
    monkeypatch.setattr(predictions_module, "ROLLOUT_ROWS", 2)
    found = scored(Made("pixel"), 2).as_json()
    np.testing.assert_equal(found.keys(), expected.keys())

    def compare(a, b):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                compare(a[key], b[key])
        elif not isinstance(a, str):
            np.testing.assert_allclose(a, b, rtol=1e-6)

    compare(found, expected)


@pytest.mark.parametrize("sigma", ["one", "image", "pixel"])
def test_calibration_is_that_of_the_mixture_written_out(sigma):
    made, found = Made(sigma), scored(Made(sigma)).calibration
    truth = made.video[:, 2:].double() / 255
    centres = made.samples.double() / 255  # (7, 5, 3, 1, 12, 12)
    sigmas = made.sigma.double().expand(centres.shape)
    mixture = MixtureSameFamily(
        Categorical(torch.ones(7)), Normal(centres.movedim(0, -1), sigmas.movedim(0, -1), validate_args=False)
    )
    ratio = ((truth - centres) / sigmas).square().mean((0, 3, 4, 5))
    np.testing.assert_allclose(found["prediction"].ratio, ratio, rtol=1e-5)
    below = mixture.cdf(truth)
    for level in (0.5, 0.9):
        inside = (below > (1 - level) / 2) & (below < (1 + level) / 2)
        np.testing.assert_allclose(found["prediction"].coverage[level], inside.double().mean((2, 3, 4)), atol=1e-9)
    drawn, sigmas = made.drawn.double() / 255, made.posterior_sigma.double().expand(truth.shape)
    np.testing.assert_allclose(found["posterior"].ratio, ((truth - drawn) / sigmas).square().mean((2, 3, 4)), rtol=1e-5)


def test_a_calibrated_decoder_has_ratio_one_and_covers_its_levels():
    made = Made("one")
    generator = torch.Generator().manual_seed(1)
    made.video = torch.full((5, 5, 1, 64, 64), 128).byte()
    made.sigma = made.posterior_sigma = torch.tensor(20 / 255, dtype=torch.float64)
    noise = 20 * torch.randn(5, 3, 1, 64, 64, generator=generator)
    made.samples = (128 + noise).round().byte().expand(7, 5, 3, 1, 64, 64)
    made.drawn, made.mean_image = made.samples[0], torch.zeros(1, 64, 64)
    found = scored(made).calibration
    for kind in ("prediction", "posterior"):
        np.testing.assert_allclose(found[kind].ratio, 1, atol=0.08)
        for level in (0.5, 0.9):
            np.testing.assert_allclose(found[kind].coverage[level], level, atol=0.04)


def test_diversity_is_the_mean_over_all_pairs_of_samples():
    samples = Made().samples.double() / 255
    pairs = [(samples[i] - samples[j]).square().mean((2, 3, 4)) for i in range(7) for j in range(i)]
    np.testing.assert_allclose(scored(Made()).diversity["mse"], torch.stack(pairs).mean(0), rtol=1e-12)


def test_protocols_that_share_predictions_score_as_each_alone():
    short, whole = own_protocol("made", 2, 2, 4, 3), own_protocol("made", 2, 3, 7, 5)

    def results(protocols) -> list[dict]:
        scorers = [Scorer(p, p.frame_metrics, p.n_samples, p.n_videos) for p in protocols]
        score_all(Made("one"), scorers, batch_size=2, device=CPU)
        return [Results(scorer).as_json() | {"hash": scorer.content_hash} for scorer in scorers]

    both = results([short, whole])
    assert both == results([short]) + results([whole])
    assert both[0]["hash"] != both[1]["hash"] and list(both[0]["best_of_n"]["psnr"]) == [1, 2, 4]


@pytest.mark.charts
def test_a_saved_run_is_scored_again_without_the_model(trained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    few = ["--n-videos", "3", "--n-samples", "4", "--save-predictions", "--batch-size", "2"]
    assert evaluate.main([str(run_dir), *few]) == 0
    direct, again = run_dir / "evaluation" / "own", tmp_path / "again"
    file = tmp_path / "moved.h5"
    (direct / "predictions.h5").rename(file)
    shutil.rmtree(run_dir / "checkpoints")
    assert evaluate.main(["--from-predictions", str(file), "--out", str(again)]) == 0
    assert metrics(again) == metrics(direct) and "calibration" in metrics(direct)
    names = {p.relative_to(direct) for p in direct.rglob("*") if p.is_file()}
    assert names == {p.relative_to(again) for p in again.rglob("*") if p.is_file()}
    for name in names:
        if name.suffix in (".gif", ".png", ".csv"):
            assert (again / name).read_bytes() == (direct / name).read_bytes(), name
    report = json.loads((again / "metrics.json").read_text())
    assert report["predictions"]["file"] == str(file) and report["config"]["data"]["name"] == "digits"
    assert evaluate.main(["--from-predictions", str(file), "--n-samples", "5"]) == 2
    assert f"--n-samples 5: {file} has 4" in capsys.readouterr().err
    assert evaluate.main(["--from-predictions", str(file), "--n-samples", "2"]) == 0
    assert (tmp_path / "moved" / "own" / "metrics.json").exists()


@pytest.mark.parametrize("decoder", ["per-pixel-sigma", "per-image-sigma", "bernoulli"])
def test_every_kind_of_sigma_goes_through_the_file(decoder, tmp_path):
    run_dir, out = tmp_path / "run", tmp_path / "out"
    command = [*SIGMA_FLAGS, "--likelihood.name", decoder, "--run-dir", str(run_dir)]
    assert train.main(command) == 0
    few = ["--n-videos", "3", "--n-samples", "3", "--n-importance", "1"]
    assert evaluate.main([str(run_dir), *few, "--save-predictions"]) == 0
    direct = run_dir / "evaluation" / "own"
    assert evaluate.main(["--from-predictions", str(direct / "predictions.h5"), "--out", str(out)]) == 0
    assert metrics(out) == metrics(direct) and ("calibration" in metrics(out)) == (decoder != "bernoulli")


def test_published_protocols_and_the_oracle_are_scored_from_one_file(tmp_path, mnist_root, capsys):
    small = without(without(TINY_FLAGS, "--data.digit-size"), "--data.image-size")
    run_dir = tmp_path / "run"
    command = ["smmnist-sigma", *small, "--data.root", str(mnist_root), "--run-dir", str(run_dir)]
    assert train.main([*command, "--optim.steps", "1"]) == 0
    few = ["--n-videos", "2", "--n-samples", "3", "--n-importance", "1"]
    assert evaluate.main([str(run_dir), *few, "--protocol", "svg-2018", "mcvd-2022", "--save-predictions"]) == 0
    home = run_dir / "evaluation"
    assert len(list(home.rglob("*.h5"))) == 1, "one set of predictions for both"
    file = home / "svg-2018" / "predictions.h5"
    assert "trained on 28-px digits, tested on 32-px ones" in metrics(home / "mcvd-2022")["protocol"]
    assert evaluate.main(["--from-predictions", str(file), "--out", str(tmp_path / "again")]) == 0
    assert evaluate.main([str(run_dir), *few, "--protocol", "mcvd-2022", "--out", str(tmp_path / "alone")]) == 0
    for name in ("svg-2018", "mcvd-2022"):
        assert metrics(tmp_path / "again" / name) == metrics(home / name) and "oracle_best_of_n" in metrics(home / name)
    assert metrics(tmp_path / "alone") == metrics(home / "mcvd-2022")
    capsys.readouterr()
    short = home / "short" / "predictions.h5"
    assert (
        evaluate.main([str(run_dir), *few, "--protocol", "srvp-2020", "--save-predictions", "--out", str(short.parent)])
        == 0
    )
    capsys.readouterr()
    assert evaluate.main(["--from-predictions", str(short), "--protocol", "svg-2018"]) == 2
    assert "svg-2018 counts 5 and 25; use --protocol own" in capsys.readouterr().err

    with h5py.File(file, "r+") as stored:
        stored["truth"][1, 3] = 7
    assert evaluate.main(["--from-predictions", str(file)]) == 2
    assert "video 1 is not that of moving_mnist" in capsys.readouterr().err
    assert evaluate.main(["--from-predictions", str(file), "--data-root", str(tmp_path)]) == 0, "no MNIST to compare"
    assert "its videos were not compared with moving_mnist" in capsys.readouterr().out


def test_another_programs_predictions_are_scored(tmp_path, capsys):
    path = foreign(tmp_path / "theirs.h5", facts=json.dumps({"source": "another program 1.0"}))
    assert evaluate.main(["--from-predictions", str(path)]) == 0
    report = json.loads((tmp_path / "theirs" / "own" / "metrics.json").read_text())
    assert report["predictions"]["source"] == "another program 1.0" and "bounds" not in report
    with h5py.File(path) as file:
        truth, samples = file["truth"][:], file["samples"][:]
    psnr = [
        [np.mean([peak_signal_noise_ratio(t, f) for t, f in zip(truth[v, 2:], s)]) for s in samples[v]] for v in (0, 1)
    ]
    assert report["results"]["best"]["psnr"]["mean"] == pytest.approx(np.max(psnr, 1).mean(), abs=1e-4)
    assert report["results"]["mean"]["psnr"]["mean"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert not {"posterior", "mean training image"} & report["results"].keys()
    of_pushing = foreign(tmp_path / "pushing.h5", facts=json.dumps({"source": "another", "data": "pushing"}))
    assert evaluate.main(["--from-predictions", str(of_pushing)]) == 0
    assert "psnr_of_rest" in json.loads((tmp_path / "pushing" / "own" / "metrics.json").read_text())["results"]["best"]
    capsys.readouterr()
    assert evaluate.main(["--from-predictions", str(path), "--protocol", "srvp-2020"]) == 2
    assert "does not say which data it predicts" in capsys.readouterr().err


ZEROS = np.zeros((2, 5, 1, 32, 32), np.uint8)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"truth": None}, "truth is missing, expected 5 axes of uint8"),
        ({"truth": ZEROS[0]}, "truth is (5, 1, 32, 32) uint8, expected 5 axes of uint8"),
        ({"truth": ZEROS / 255}, "truth is (2, 5, 1, 32, 32) float64, expected 5 axes of uint8"),
        ({"truth": ZEROS[:, :, [0, 0]]}, "expected (V, T, C, H, W) with C 1 or 3"),
        ({"truth": ZEROS[:1]}, "samples is (2, 3, 3, 1, 32, 32), expected (1, 3, 3, 1, 32, 32) beside truth"),
        ({"truth": ZEROS[..., :16]}, "samples is (2, 3, 3, 1, 32, 32), expected (2, 3, 3, 1, 32, 16) beside truth"),
        ({"samples": np.zeros((2, 0, 3, 1, 32, 32), np.uint8)}, "nothing empty"),
        ({"samples": np.full((2, 3, 3, 1, 32, 32), np.nan)}, "float64, expected 6 axes of uint8"),
        ({"truth": ZEROS[..., :1, :1]}, "H and W of 11 px or more"),
        ({"facts": '{"source": NaN}'}, "the attribute facts"),
        ({"facts": '{"extra": {"deeper": [Infinity]}}'}, "facts holds NaN or infinity"),
        ({"facts": '{"step": "ten"}'}, "the attribute facts.step"),
        ({"facts": "[" * 10_000}, "the attribute facts: Invalid JSON"),
        ({"facts": 3}, "the attribute facts"),
        ({"posterior": ZEROS}, "posterior is (2, 5, 1, 32, 32), expected (2, 3, 1, 32, 32) beside truth"),
        ({"mean_image": np.full((1, 32, 32), np.nan, np.float32)}, "mean_image has values outside [0, 1], or NaN"),
        ({"mean_image": np.full((1, 32, 32), 255, np.float32)}, "mean_image has values outside [0, 1], or NaN"),
        ({"n_past": 5}, "n_past is 5, expected an integer in [1, 4]"),
        ({"n_past": None}, "n_past is None"),
        ({"version": 2}, "version 2, expected format 'seqvae predictions', version 1"),
        ({"format": None}, "format None"),
        ({"sigma": -1.0}, "the attribute sigma is -1.0, expected a number > 0"),
        ({"sigma": np.ones((2, 3, 3, 1, 32, 16), np.float16)}, "sigma is (2, 3, 3, 1, 32, 16), expected"),
        ({"sigma": np.full((2, 3, 3, 1, 1, 1), np.nan, np.float16)}, "sigma has values that are not finite and > 0"),
        ({"facts": "no json"}, "the attribute facts: Invalid JSON"),
        ({"facts": "[1]"}, "the attribute facts: Input should be an object"),
        ({"facts": '{"protocols": [1]}'}, "the attribute facts.protocols: Input should be an object"),
        ({"facts": '{"protocols": {"own": {"n_samples": "x"}}}'}, "facts.protocols.own.n_samples: Input should be"),
        ({"facts": '{"test_set": "bair"}'}, "the attribute facts.test_set: Input should be an object"),
        ({"facts": '{"seed": -1}'}, "the attribute facts.seed: Input should be greater"),
        (
            {"facts": '{"protocols": {"own": {"n_videos": 2, "bounds": {"elbo_all": 3}}}}'},
            "the bounds in facts are not",
        ),
    ],
)
def test_a_wrong_file_is_one_line_that_names_what_is_wrong(changes, words, tmp_path, capsys):
    path = foreign(tmp_path / "theirs.h5", **changes)
    assert evaluate.main(["--from-predictions", str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate.py:")]
    assert words in line and str(path) in line


@pytest.mark.parametrize("name", STORED_ELSEWHERE)
def test_frames_that_are_not_in_the_file_are_refused_before_any_is_read(name, tmp_path, capsys, monkeypatch):
    write, words = STORED_ELSEWHERE[name]
    path = foreign(tmp_path / "theirs.h5", truth=None)
    with h5py.File(path, "r+") as file:
        write(file, tmp_path)
    monkeypatch.setattr(SavedPredictions, "_read", None)
    assert evaluate.main(["--from-predictions", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count(chr(10)) == 1 and not (tmp_path / "out").exists()


def test_a_file_of_pushing_may_show_more_frames_than_our_videos_have(tmp_path):
    frames = {"truth": np.zeros((2, 33, 1, 32, 32), np.uint8), "samples": np.zeros((2, 3, 2, 1, 32, 32), np.uint8)}
    path = foreign(tmp_path / "p.h5", **frames, n_past=31, facts='{"data": "pushing"}')
    protocol = protocol_of_file(SavedPredictions(path, CPU), "own")
    assert (protocol.n_past, protocol.n_future) == (31, 2) and "psnr_of_changes" in protocol.frame_metrics


def test_a_truncated_damaged_or_missing_file_is_one_line(tmp_path, capsys):
    made, path = Made("one"), tmp_path / "p.h5"
    with writing(path, made, {"source": "somebody"}) as writer:
        scored(made, writer=writer)
    content = path.read_bytes()
    with h5py.File(path) as file:
        chunk = file["samples"].id.get_chunk_info(4)
    damaged = bytearray(content)
    damaged[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    for broken, words in (
        (content[: len(content) // 2], "is not a whole HDF5 file"),
        (b"", "is not a whole HDF5 file"),
        (b"text", "is not a whole HDF5 file"),
        (bytes(damaged), "samples is damaged"),
        (content.replace(b"somebody", b"somebodz"), "is not a whole HDF5 file"),
    ):
        path.write_bytes(broken)
        assert evaluate.main(["--from-predictions", str(path), "--out", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
    assert evaluate.main(["--from-predictions", str(tmp_path / "none.h5")]) == 2
    assert "none.h5 is not a file" in capsys.readouterr().err


def test_text_of_a_fixed_length_and_a_name_without_ending_are_read(tmp_path):
    path = foreign(tmp_path / "theirs", format=np.bytes_(b"seqvae predictions"))
    assert evaluate.main(["--from-predictions", str(path)]) == 0
    assert (tmp_path / "theirs-scores" / "own" / "metrics.json").exists()


def test_bounds_go_only_with_the_videos_they_were_measured_on(trained, tmp_path, capsys):
    few = ["--n-videos", "3", "--n-samples", "2", "--n-importance", "1", "--save-predictions"]
    assert evaluate.main([str(trained), *few, "--out", str(tmp_path / "out")]) == 0
    file = ["--from-predictions", str(tmp_path / "out" / "predictions.h5")]
    assert evaluate.main([*file, "--out", str(tmp_path / "all")]) == 0 and "bounds" in metrics(tmp_path / "all")
    capsys.readouterr()
    assert evaluate.main([*file, "--n-videos", "2", "--out", str(tmp_path / "two")]) == 0
    assert "bounds: left out, the file's are of 3 videos" in capsys.readouterr().out
    assert "bounds" not in metrics(tmp_path / "two")


def test_a_file_neither_makes_folders_nor_downloads(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    facts = {"data": "moving_mnist", "root": str(elsewhere), "test_set": {"name": "smmnist_srvp"}}
    path = foreign(tmp_path / "theirs.h5", facts=json.dumps(facts))
    assert evaluate.main(["--from-predictions", str(path), "--data-root", str(tmp_path / "nowhere")]) == 0
    assert evaluate.main(["--from-predictions", str(path)]) == 0
    assert not elsewhere.exists() and not (tmp_path / "nowhere").exists()


class Full:
    """A disk that takes 100 kB."""

    def __init__(self, file) -> None:
        self.file, self.left = file, 100_000

    def write(self, data: bytes) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, monkeypatch):
    wrapped = prediction_file._Disk
    monkeypatch.setattr(prediction_file, "_Disk", lambda file: wrapped(Full(file)))
    made = Made(None)
    made.samples = torch.randint(256, (7, 5, 3, 1, 64, 64)).byte()
    made.video, made.drawn = torch.zeros(5, 5, 1, 64, 64).byte(), torch.zeros(5, 3, 1, 64, 64).byte()
    with pytest.raises(OSError, match="No space left"), writing(tmp_path / "p.h5", made, {}) as writer:
        for _ in range(10):
            writer.add_futures(range(5), range(7), made.samples, None)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_no_half_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "p.h5", Made(), {}) as writer:
        writer.add_truth(range(2), Made().video[:2])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, words",
    [
        (["RUN", "--from-predictions", "x.h5"], "runs and --from-predictions at once"),
        ([], "nothing to evaluate"),
        (["--from-predictions", "x.h5", "--save-predictions"], "--save-predictions is about a model"),
        (["--from-predictions", "x.h5", "--seed", "3"], "--seed is about a model"),
        (["RUN", "--gif-scale", "0"], "--gif-scale must be >= 1, got 0"),
        (["RUN", "--lpips-vgg", "--lpips", "off"], "--lpips-vgg asks for LPIPS and --lpips off for none"),
        (["RUN", "--gif-scale", "1000"], "--gif-scale must be <= 32, got 1000"),
        (["RUN", "--test-set", "mnist_test_seq", "--protocol", "srvp-2020"], "is scored under own, not srvp-2020"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, words, capsys):
    try:
        code = evaluate.main(flags)
    except SystemExit as end:
        code = end.code
    text = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert code == 2 and words in text and "Traceback" not in text
