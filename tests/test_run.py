"""load_run, export and predict.py: what a person does with a trained model. The models here are hardly trained ones."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import evaluate
import predict
import seqvae
from datasets import load_dataset
from datasets.videos import fit, read_video
from seqvae import export, folders, weights
from seqvae.build import build_model
from seqvae.config import (
    DigitsConfig,
    GaussianConfig,
    GecoConfig,
    OptimalSigmaConfig,
    RunConfig,
    to_json,
    variant,
)
from seqvae.evaluation.prediction_file import SavedPredictions
from seqvae.objectives import build_objective
from seqvae.training import checkpoint
from tests.families import SMALL, far_from_start, run_of, small

pytestmark = pytest.mark.usefixtures("no_charts")

ROOT = Path(__file__).parent.parent
DIGITS = DigitsConfig(image_size=32, digit_size=12, n_past=2, n_future=3)


def make_run(folder: Path, family: str = "svg", channels: int = 1, **parts) -> Path:
    """A run folder as train.py leaves it, without the training."""
    cfg = RunConfig(data=DIGITS, likelihood=GaussianConfig())
    cfg = dataclasses.replace(run_of(cfg, small(family)), **parts)
    model = far_from_start(build_model(cfg, channels))
    model.likelihood.calibrate(0.01)
    objective = build_objective(cfg.objective, n_frames=cfg.data.n_predicted, dims=channels * cfg.data.image_size**2)
    sizes = {"step": 7, "channels": channels, "image_size": cfg.data.image_size}
    state = sizes | {"model": model.state_dict(), "ema": None, "objective": objective.state_dict(), "optimizer": {}}
    checkpoint.save(folder / "checkpoints", state, best=True)
    whole = {
        "config": to_json(cfg),
        "command": "python /home/me/train.py demo --run-dir=/tmp/a",
        "versions": {"a": "1"},
    }
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "metrics.jsonl").write_text('{"step": 7, "valid/rmse": 0.125}\n')
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def run(run_dir) -> seqvae.Run:
    return seqvae.load_run(run_dir, device="cpu")


def video(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_three_lines_from_another_folder_without_datasets(run_dir, tmp_path):
    (tmp_path / "seqvae").symlink_to(ROOT / "seqvae")
    code = f"""
import sys; sys.modules["datasets"] = None
import numpy as np, seqvae
run = seqvae.load_run({str(run_dir)!r})
frames = np.arange(5 * 40 * 50).reshape(5, 40, 50).astype(np.uint8)
futures = run.predict(frames, n_future=4, n_samples=3, seed=1)
assert futures.shape == (3, 4, 32, 32) and futures.dtype == np.uint8, futures.shape
assert (futures == run.predict(frames, n_future=4, n_samples=3, seed=1)).all()
assert (futures != run.predict(frames, n_future=4, n_samples=3, seed=2)).any()
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_layouts_agree(run):
    grey = video(4, 32, 32)
    futures = run.predict(grey, 3, 2)
    assert (run.predict(grey[..., None], 3, 2)[..., 0] == futures).all()
    assert (run.predict(np.repeat(grey[..., None], 3, -1), 3, 2) == futures[..., None]).all()
    batch = run.predict(np.stack([grey, video(4, 32, 32)[::-1]])[..., None], 3, 2)
    assert batch.shape == (2, 2, 3, 32, 32, 1) and (np.abs(batch[:, 0, ..., 0].astype(int) - futures) <= 1).all()
    floats = run.predict(grey.astype(np.float64) / 255, 3, 2)
    assert floats.dtype == np.float32 and ((255 * floats).round() == futures).all()
    assert (run.predict(torch.from_numpy(grey), 3, 2) == futures).all()
    assert run.predict(grey).shape == (1, 3, 32, 32)


def test_any_size_is_cropped_and_scaled_as_for_training(run):
    from PIL import Image

    wide = video(3, 45, 71, 3)
    expected = np.stack([fit(Image.fromarray(frame), 32) for frame in wide])
    for frames in (wide, wide.astype(np.float32) / 255):
        scaled = (255 * run._video(frames)[0]).numpy()
        np.testing.assert_allclose(scaled[0, :, 0], expected.mean(-1), atol=1)
    assert (run.predict(wide) == run.predict(expected)).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "per-image-sigma", "per-pixel-sigma", "shared-sigma"])
def test_sigma_of_the_samples(likelihood, tmp_path):
    run = seqvae.load_run(make_run(tmp_path, likelihood=variant("likelihood", likelihood)))
    sigma, futures = (f(video(2, 32, 32), 3, 2) for f in (run.sample_sigma, run.predict))
    if likelihood == "bernoulli":
        assert sigma is None
    else:
        assert np.broadcast_shapes(np.shape(sigma), futures.shape) == futures.shape and (np.asarray(sigma) > 0).all()
        assert np.ndim(sigma) == (0 if likelihood == "shared-sigma" else 4)


@pytest.mark.parametrize("dequantise", [False, True])
def test_score_is_the_bound_that_evaluation_quotes(dequantise, tmp_path):
    folder = make_run(tmp_path, likelihood=OptimalSigmaConfig(dequantise=dequantise))
    assert evaluate.main([str(folder), "--n-videos", "3", "--n-samples", "1", "--n-importance", "1"]) == 0
    bounds = json.loads((folder / "evaluation" / "own" / "metrics.json").read_text())["bounds"]
    run = seqvae.load_run(folder)
    clips = load_dataset(split="test", **run.config.data.arguments())
    batch = torch.stack([clips[i] for i in range(3)]).permute(0, 1, 3, 4, 2)
    score = run.score(batch)
    assert score.nats.shape == (3, 4) == score.kl.shape
    np.testing.assert_allclose(-score.nats.sum(1).mean(), bounds["elbo_all"]["mean"], rtol=1e-6)
    np.testing.assert_allclose(score.bits_per_dim.mean(), bounds["bits_per_dim"], rtol=1e-6)
    np.testing.assert_allclose(run.score(batch[0]).nats, score.nats[0], rtol=1e-5)
    surprising = batch.numpy().copy()
    surprising[0, 3] = 255 - surprising[0, 3]
    assert run.score(surprising).nats[0].argmax() == 2 and run.score(surprising).nats[0, 2] > score.nats[0, 2]


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_export_and_back_for_every_family(family, dtype, tmp_path, capsys):
    images = family == "image"
    objective = {} if images else {"objective": GecoConfig(tolerance=0.07)}
    folder = make_run(tmp_path / "run", family, **objective)
    assert export.main([str(folder), str(tmp_path / "out"), "--dtype", dtype]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    before, after = seqvae.load_run(folder), seqvae.load_run(tmp_path / "out")
    assert after.step == 7 and after.config == before.config
    for name, weight in before.model.state_dict().items():
        other = after.model.state_dict()[name]
        assert weight.dtype == other.dtype
        rounded = dtype == "float16" and name in dict(before.model.named_parameters())
        assert other.equal(weight.half().to(weight.dtype) if rounded else weight), name
    frames = video(3, 32, 32)
    score = [run.score(frames).nats for run in (before, after)]
    assert score[0].shape == (3 if images else 2,) == after.encode(frames).mean.shape[:1]
    np.testing.assert_allclose(*score, rtol=1e-9 if dtype == "float32" else 0.05)
    if dtype == "float32" and not images:
        assert (before.predict(frames, 2, 2) == after.predict(frames, 2, 2)).all()
    states = [weights.read_state(path)["objective"] for path in (folder, tmp_path / "out")]
    assert states[0].keys() == states[1].keys() and all(states[0][k].equal(states[1][k]) for k in states[0])
    text = (tmp_path / "out" / "README.md").read_text() + (tmp_path / "out" / "config.json").read_text()
    assert "/home" not in text and "/tmp" not in text and "python train.py demo --run-dir=a" in text
    assert f"| `valid/rmse` | {0.125} |" in text and "license: mit" in text
    assert export.main([str(tmp_path / "out"), str(tmp_path / "again"), "--dtype", dtype]) == 0
    described = [json.loads((tmp_path / name / "config.json").read_text())["weights"] for name in ("out", "again")]
    assert described[0] == described[1]


def test_an_export_replaces_no_file_that_no_export_wrote(run_dir, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert export.main([str(run_dir), str(tmp_path)]) == 2
    assert "holds a README.md that no export wrote; choose another folder" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("folder", sorted(folders.PRETRAINED.iterdir()), ids=lambda folder: folder.name)
def test_weights_in_the_repository_predict_by_name_and_their_card_has_their_hash(folder):
    weights = (folder / "model.safetensors").read_bytes()
    assert len(weights) < 20e6 and hashlib.sha256(weights).hexdigest() in (folder / "README.md").read_text()
    run = seqvae.load_run(folder.name)
    size, channels, n_actions = run.model.image_size, run.model.channels, run.model.n_actions
    frames = np.random.default_rng(0).integers(0, 256, (run.n_past, size, size, channels), dtype=np.uint8)
    actions = np.zeros((run.n_past + 1, n_actions), np.float32) if n_actions else None
    assert run.predict(frames, n_future=2, n_samples=2, actions=actions).shape == (2, 2, size, size, channels)


def test_pretrained_names_are_runs_everywhere(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    clip = tmp_path / "clip.gif"
    iio.imwrite(clip, np.repeat(video(6, 32, 32, 1), 3, -1), duration=100)
    assert export.main([str(run_dir), "pretrained/tiny-digits", "--dtype", "float16"]) == 0
    assert seqvae.load_run("tiny-digits").predict(video(2, 8, 8)).shape == (1, 3, 32, 32)
    assert evaluate.main(["tiny-digits", "--n-videos", "2", "--n-samples", "2"]) == 0
    facts = json.loads(Path("runs/pretrained/tiny-digits/evaluation/own/metrics.json").read_text())
    assert facts["run"] == "tiny-digits" and facts["checkpoint"] == "best" and facts["step"] == 7
    assert predict.main(["tiny-digits", str(clip)]) == 0
    assert Path("runs/pretrained/tiny-digits/predictions/clip.gif/prediction.npz").exists()
    capsys.readouterr()
    assert evaluate.main(["tiny-digits", "--checkpoint", "last"]) == 2
    assert "tiny-digits holds the weights of best.pt alone; drop the choice of last" in capsys.readouterr().err
    assert evaluate.main(["tiny-digit"]) == 2 and predict.main(["tiny-digit", str(clip)]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.endswith(
            "tiny-digit is neither a run folder nor the name of pretrained weights; nearest: tiny-digits"
        )
    with pytest.raises(FileNotFoundError, match="pretrained: tiny-digits"):
        seqvae.load_run("something else")


def test_all_three_ways_predict_the_same_bytes(run, run_dir, tmp_path):
    clips = load_dataset(split="test", **run.config.data.arguments())
    out = ["--n-videos", "2", "--n-samples", "3", "--seed", "5", "--save-predictions", "--out", str(tmp_path)]
    assert evaluate.main([str(run_dir), *out]) == 0
    saved = SavedPredictions(tmp_path / "predictions.h5", torch.device("cpu"))
    stored = saved.futures(range(2), range(3))[0].numpy()  # (N, B, F, C, H, W)
    batch = torch.stack([clips[i] for i in range(2)]).permute(0, 1, 3, 4, 2).numpy()
    futures = run.predict(batch[:, :2], n_samples=3, seed=5)
    assert (np.moveaxis(futures, -1, 3) == stored).all()

    iio.imwrite(tmp_path / "clip.apng", batch[0].repeat(3, -1), plugin="pillow", duration=100)
    assert (read_video(tmp_path / "clip.apng", 32) == batch[0]).all()
    command = [str(run_dir), str(tmp_path / "clip.apng"), "--n-samples", "3", "--seed", "5", "--out", str(tmp_path)]
    assert predict.main(command) == 0
    with np.load(tmp_path / "prediction.npz") as numbers:
        assert (numbers["context"] == batch[0, :2]).all() and (numbers["truth"] == batch[0, 2:]).all()
        assert (numbers["samples"] == run.predict(batch[0, :2], n_samples=3, seed=5)).all()
        assert numbers["seeds"].tolist() == [[5, 0, 0], [5, 0, 1], [5, 0, 2]]
        assert numbers["sigma"] == pytest.approx(0.1)
    assert iio.improps(tmp_path / "prediction.gif").n_images == 5


OK = video(3, 32, 32)


@pytest.mark.parametrize(
    "frames, options, words",
    [
        (OK[0], {}, r"\(32, 32\) uint8, expected \(T, H, W\)"),
        (video(3, 32, 32, 4), {}, "C 1 or 3"),
        (video(1, 3, 32, 32), {}, "C 1 or 3"),
        (OK[None, None, None], {}, "expected"),
        (OK[:0], {}, "nothing in them"),
        (OK[:, :0], {}, "nothing in them"),
        (video(3, 32, 32, 2), {}, r"\(3, 32, 32, 2\) uint8, expected .* C 1 or 3"),
        (video(3, 3, 32, 32), {}, r"\(3, 3, 32, 32\) uint8, expected .* C 1 or 3"),
        (video(0, 3, 32, 32, 1), {}, r"\(0, 3, 32, 32, 1\): there is nothing in them, expected"),
        ([], {}, r"frames are \(0,\) float64, expected"),
        (None, {}, "frames are a NoneType, expected one array of numbers"),
        ("mine.gif", {}, "frames are a str, expected one array of numbers"),
        (np.broadcast_to(OK[0], (10**12, 32, 32)), {}, r"frames are \(1000000000000, 32, 32\): needs at least"),
        ([OK[0], OK[0, :16]], {}, "frames are a list, expected one array of numbers"),
        (torch.rand(3, 32, 32, requires_grad=True), {}, "frames are a Tensor, expected one array of numbers"),
        (torch.rand(3, 32, 32).bfloat16(), {}, "frames are a Tensor, expected one array of numbers"),
        (OK[:1], {}, "frames are 1, and the model observes at least 2"),
        (OK.astype(int), {}, "int64, expected uint8"),
        (OK > 9, {}, "bool, expected uint8"),
        (OK.astype(complex), {}, "complex128, expected uint8"),
        (OK.astype(object), {}, "object, expected uint8"),
        (OK.astype(np.uint16), {}, "uint16, expected uint8"),
        (np.full((3, 32, 32), 1.00001), {}, r"range from 1.00001 to 1.00001, expected \[0, 1\]"),
        (np.full((3, 32, 32), -np.inf), {}, r"range from -inf to -inf, expected \[0, 1\]"),
        (OK.astype(np.float32), {}, r"range from 0 to 255, expected \[0, 1\]"),
        (OK / 255 - 0.5, {}, r"expected \[0, 1\]"),
        (np.where(OK > 9, np.nan, 0.5), {}, "without NaN"),
        (np.where(OK > 9, np.inf, 0.5), {}, r"expected \[0, 1\]"),
        ([["a"]], {}, "expected"),
        (OK, {"n_future": 0}, "n_future must be an integer >= 1, got 0"),
        (OK, {"n_future": 2.5}, "n_future must be an integer >= 1, got 2.5"),
        (OK, {"n_future": "3"}, "n_future must be an integer >= 1, got '3'"),
        (OK, {"n_future": True}, "n_future must be an integer >= 1, got True"),
        (OK, {"n_future": 10**30}, "needs at least .* GB of memory"),
        (OK, {"n_samples": -1}, "n_samples must be an integer >= 1, got -1"),
        (OK, {"n_samples": None}, "n_samples must be an integer >= 1, got None"),
        (OK, {"n_samples": 10**9}, "needs at least .* GB of memory"),
        *(
            (OK, {"seed": x}, rf"seed must be an integer in \[0, 2\^32\), got {x!r}")
            for x in (-1, "x", 1.0, None, 2**32)
        ),
        (OK, {"actions": np.zeros((5, 4))}, "actions are given, and this model takes none; drop them"),
    ],
)
def test_bad_calls_are_one_clear_exception(frames, options, words, run):
    with pytest.raises(ValueError, match=words):
        run.predict(frames, **options)


@pytest.fixture(scope="module")
def obedient(tmp_path_factory) -> seqvae.Run:
    """A run with three numbers for each action."""
    return seqvae.load_run(make_run(tmp_path_factory.mktemp("runs") / "a", model=small("svg", actions=3)), device="cpu")


@pytest.mark.parametrize(
    "actions, words",
    [
        (None, r"pass actions=, numbers of shape \(5, 3\)"),
        (np.zeros((4, 3)), r"actions are \(4, 3\) float64, expected numbers of shape \(5, 3\)"),
        (np.zeros((5, 4)), r"actions are \(5, 4\) float64, expected numbers of shape \(5, 3\)"),
        (np.zeros((2, 5, 3)), r"actions are \(2, 5, 3\) float64, expected numbers"),
        (np.zeros((5, 3), complex), r"actions are \(5, 3\) complex128, expected numbers"),
        (np.full((5, 3), None), r"actions are \(5, 3\) object, expected numbers"),
        ("left.npy", "actions are a str, expected one array of numbers"),
        ([[1, 2, 3], [1, 2]], "actions are a list, expected one array of numbers"),
        (np.full((5, 3), np.nan), "actions hold NaN or infinities, expected finite numbers"),
        (np.full((5, 3), 1e300), "actions hold NaN or infinities, expected finite numbers"),
    ],
)
def test_bad_actions_are_one_clear_exception(actions, words, obedient):
    with pytest.raises(ValueError, match=words):
        obedient.predict(OK, actions=actions)


@pytest.mark.parametrize(
    "method, arguments, words",
    [
        ("score", {"seed": 0.5}, r"seed must be an integer in \[0, 2\^32\), got 0.5"),
        ("score", {"actions": 3}, "actions are given"),
        ("encode", {"video": OK[:2]}, "frames are 2, and the model observes 2, so one more is needed"),
        ("encode", {"video": OK.astype(int)}, "int64, expected uint8"),
    ],
)
def test_bad_calls_of_score_and_encode_are_too(method, arguments, words, run):
    with pytest.raises(ValueError, match=words):
        getattr(run, method)(**{"video": OK} | arguments)


@pytest.mark.parametrize("options", [{"checkpoint": "first"}, {"device": "tpu"}, {"device": torch.device("cpu")}])
def test_bad_choices_of_load_run_name_what_there_is(options, run_dir):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .* or .*, got {re.escape(repr(value))}"):
        seqvae.load_run(run_dir, **options)


@pytest.mark.parametrize("which", [None, 3, b"runs/a"])
def test_a_run_is_named_by_a_string_or_a_path(which):
    with pytest.raises(ValueError, match=f"run must be a folder or .*, got {which!r}"):
        seqvae.load_run(which)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"channels": 3}, r"weights.encoder.\S+ is \(4, 1, 4, 4\) float32, expected \(4, 3, 4, 4\)"),
        ({"image_size": 64}, "image_size is 64, expected 32"),
    ],
)
def test_weights_of_another_model_are_named(changes, words, run_dir, tmp_path):
    (tmp_path / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    state = checkpoint.load(run_dir / "checkpoints" / "best.pt")
    checkpoint.save(tmp_path / "checkpoints", state | changes, best=True)
    with pytest.raises(ValueError, match=f"best.pt is of another model than .*config.json describes .*{words}"):
        seqvae.load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="last.pt is missing"):
        (tmp_path / "checkpoints" / "last.pt").unlink()
        seqvae.load_run(tmp_path, checkpoint="last")


def test_a_checkpoint_of_another_objective_is_refused_before_anything_is_measured(run_dir, tmp_path, capsys):
    whole = json.loads((run_dir / "config.json").read_text())
    whole["config"]["objective"] = {"name": "geco", "tolerance": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    checkpoint.save(tmp_path / "checkpoints", checkpoint.load(run_dir / "checkpoints" / "best.pt"), best=True)
    assert evaluate.main([str(tmp_path), "--n-videos", "1", "--n-samples", "1"]) == 2
    error = capsys.readouterr().err
    assert "the checkpoint's objective" in error and error.count("\n") == 1


def test_bad_folders_are_one_clear_exception(run_dir, run, tmp_path):
    with pytest.raises(ValueError, match="observes 2, so one more"):
        run.score(OK[:2])
    with pytest.raises(FileNotFoundError, match="nearest: .*tiny"):
        seqvae.load_run(run_dir.parent / "tinny")
    with pytest.raises(ValueError, match="is a run folder"):
        export.export(run_dir, run_dir)
    out = tmp_path / "out"
    export.export(run_dir, out)
    whole, config = (out / "model.safetensors").read_bytes(), json.loads((out / "config.json").read_text())
    (out / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        seqvae.load_run(out)
    (out / "model.safetensors").write_bytes(whole)
    config["config"]["model"]["rnn_size"] += 1
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is of another model than .*config.json describes"):
        seqvae.load_run(out)
    del config["weights"]["step"]
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not describe model.safetensors"):
        seqvae.load_run(out)
    images = seqvae.load_run(make_run(tmp_path / "images", "image"))
    with pytest.raises(ValueError, match="single images predicts no futures"):
        images.predict(OK)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["RUN"], "the following arguments are required: CLIP"),
        (["RUN", "nowhere.gif"], "nowhere.gif does not exist"),
        (["RUN", "short.gif"], "has 1 frames, and the model observes 2"),
        (["RUN", "short.gif", "--n-samples", "0"], "--n-samples must be >= 1"),
        (["RUN", "long.gif", "--n-future", "1000000000"], "4 samples, 1000000000 frames, pictures 128 wide: needs at"),
        (["RUN", "long.gif", "--actions", "a.npy"], "--actions a.npy: RUN was trained without actions; drop it"),
        (["RUN", "long.gif", "--gif-scale", "32", "--n-future", "100000"], "pictures 1024 wide: needs at least"),
    ],
)
def test_bad_clips_are_one_line_and_exit_code_2(flags, words, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    iio.imwrite("short.gif", video(1, 32, 32, 3))
    iio.imwrite("long.gif", video(5, 32, 32, 3))
    assert predict.main([str(run_dir) if flag == "RUN" else flag for flag in flags]) == 2
    error = capsys.readouterr().err
    assert words.replace("RUN", str(run_dir)) in error and error.count(chr(10)) == 1


@pytest.mark.parametrize(
    "height, width, line",
    [
        (45, 71, "clip is 71x45, cropped to 45x45, scaled to 32x32"),
        (40, 32, "clip is 32x40, cropped to 32x32"),
        (16, 16, "clip is 16x16, scaled to 32x32"),
        (32, 32, None),
    ],
)
def test_what_is_done_to_a_clip_to_fit_the_model_is_said(height, width, line, run_dir, tmp_path, capsys):
    clip = tmp_path / "clip"
    clip.mkdir()
    for i, frame in enumerate(video(2, height, width, 3)):
        iio.imwrite(clip / f"{i}.png", frame)
    assert predict.main([str(run_dir), str(clip), "--n-samples", "1", "--n-future", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [found for found in lines if found.startswith("clip is")] == ([line] if line else [])


def test_push_uploads_the_three_files_and_says_what_went_wrong(tmp_path, monkeypatch, capsys):
    class Hub:
        calls = []

        def create_repo(self, repository, **options):
            self.calls.append((repository, options))

        def upload_folder(self, **options):
            if options["repo_id"] == "me/full":
                raise RuntimeError("quota\nexceeded")
            self.calls.append(options)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=Hub, __spec__=True))
    out = tmp_path / "weights"
    monkeypatch.setattr(export, "export", lambda *_, **__: [])
    assert export.main(["runs/a", str(out), "--push", "me/weights", "--private"]) == 0
    assert "https://huggingface.co/me/weights" in capsys.readouterr().out
    made, uploaded = Hub.calls
    assert made == ("me/weights", {"private": True, "exist_ok": True}) and uploaded["folder_path"] == out
    assert set(uploaded["allow_patterns"]) == {"model.safetensors", "config.json", "README.md"}
    assert export.main(["runs/a", str(out), "--push", "me/full"]) == 1
    assert "not pushed: quota exceeded" in capsys.readouterr().err
