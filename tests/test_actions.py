"""A model that is told what the robot does: another action, another future."""

from itertools import product

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import evaluate
import predict
import seqvae
import train
from datasets import load_dataset
from seqvae.config import MovingMnistConfig, RunConfig
from seqvae.evaluation.prediction_file import SavedPredictions
from seqvae.models import VideoModel
from seqvae.models.base import ActionScale
from seqvae.training.session import check_actions
from tests.families import build, clips, noise, small
from tests.results import metrics

pytestmark = pytest.mark.usefixtures("no_charts")

SIZE, STEP = 64, 8  # px
OBEDIENT = ("svg", "scene", "transport")  # families that take actions


def commands(n: int, seed: int) -> np.ndarray:
    """(N, 30, 4) float32: a hundredth to the left or right, two numbers that mean nothing, and a constant."""
    rng = np.random.default_rng(seed)
    moves = rng.choice([-0.01, 0.01], (n, 30, 1))
    return np.concatenate([moves, rng.normal(size=(n, 30, 2)), np.ones((n, 30, 1))], -1).astype(np.float32)


def obey(actions: np.ndarray) -> np.ndarray:
    """(N, 30, 64, 64, 3) uint8: a bar that goes STEP px where it is told, from the middle, around the edges."""
    told = np.round(100 * actions[:, :-1, 0]).astype(int).cumsum(1)
    at = SIZE // 2 + STEP * np.concatenate([np.zeros_like(told[:, :1]), told], 1)  # (N, 30)
    bars = np.where((np.arange(SIZE) - at[..., None]) % SIZE < 20, 255, 0).astype(np.uint8)  # (N, 30, 64)
    return np.broadcast_to(bars[:, :, None, :, None], (*at.shape, SIZE, SIZE, 3))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Arrays in the layout of rendered pushing."""
    folder = tmp_path_factory.mktemp("data")
    for split, n in (("train", 80), ("test", 4)):
        actions = commands(n, seed=n)
        np.save(folder / f"pushing_{split}.npy", obey(actions))
        np.save(folder / f"pushing_{split}_actions.npy", actions)
        np.save(folder / f"pushing_{split}_positions.npy", actions[..., :3])
    return folder


def flags(root, run_dir, steps):
    sizes = ["--model.width", "4", "--model.g-dim", "32", "--model.rnn-size", "64", "--model.z-dim", "2"]
    return [
        *("pushing-sigma", "--model.actions", "4", *sizes, "--data.root", str(root), "--data.flip", "False"),
        *("--data.n-future", "3", "--optim.batch-size", "16", "--optim.lr", "3e-3", "--optim.steps", str(steps)),
        *("--optim.warmup", "10", "--run.n-valid", "4", "--compute.amp", "off", "--run-dir", str(run_dir)),
    ]


@pytest.fixture(scope="module")
def run_dir(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "obedient"
    assert train.main(flags(root, folder, 300)) == 0
    return folder


def obedient(family: str = "svg", prior: str = "learned") -> VideoModel:
    model = build(small(family, actions=3, prior=prior))
    model.action_scale.fit(3 * noise(50, 3) + 1)
    return model


@pytest.mark.parametrize(
    "family, prior",
    [*product(("svg", "scene"), ("learned", "fixed", "none")), *product(["transport"], ("learned", "none"))],
)
@pytest.mark.parametrize("n_past", [1, 3])
def test_start_and_step_equal_forward_with_actions(family, prior, n_past):
    model, n_future = obedient(family, prior), 3
    eps, actions = noise(1, 2, n_past - 1 + n_future, model.z_dim), 3 * noise(2, n_past - 1 + n_future, 3) + 1
    video, stepped = clips(2, n_past), []
    with torch.no_grad():
        state = model.start(video, eps[:, :, : n_past - 1], actions[:, : n_past - 1])
        for t in range(n_past - 1, n_past - 1 + n_future):
            params, state = model.step(state, eps[0, :, t], actions[:, t])
            stepped.append(params)
            video = torch.cat([video, model.likelihood.mean(params)[:, None]], dim=1)
        as_posterior = eps.clone()  # the noise with which the posterior draws the latents that the prior drew
        for t in [t for t in range(n_past - 1, n_past - 1 + n_future) for _ in range(2)]:  # q of z may see z before it
            if latents := model(video, as_posterior, n_past, actions).first_latents():
                q, p = latents
                z = p.mu[:, t] + (p.logvar[:, t] / 2).exp() * eps[0, :, t]
                as_posterior[0, :, t] = (z - q.mu[:, t]) / (q.logvar[:, t] / 2).exp()
        out = model(video, as_posterior, n_past, actions)
    assert_close(out.params[0, :, n_past - 1 :], torch.stack(stepped, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", OBEDIENT)
def test_predictions_with_actions_do_not_depend_on_the_other_videos_or_samples(family):
    model = obedient(family)
    video, eps, actions = clips(4, 2), noise(3, 4, 4, model.z_dim), noise(4, 4, 3)
    together = model.rollout(video, 3, eps, actions)
    assert_close(together[1, 2], model.rollout(video[2:3], 3, eps[1:2, 2:3], actions[2:3])[0, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", OBEDIENT)
def test_an_action_changes_the_frames_that_follow_it_and_no_earlier_ones(family):
    model = obedient(family)
    video, eps, actions = clips(1, 2), noise(32, 1, 5, model.z_dim), noise(1, 5, 3)
    other = actions.clone()
    other[:, 3] += 3  # leads to the third predicted frame
    a, b = (model.rollout(video, 4, eps, given)[:, 0] for given in (actions, other))
    assert a[:, :2].equal(b[:, :2]) and ((a - b)[:, 2:].abs().amax((0, 2, 3, 4)) > 1e-4).all()  # in some sample


def test_the_unit_of_actions_does_not_matter_and_constants_do_not_blow_up():
    actions = noise(40, 6, 3) * torch.tensor([1.0, 50.0, 0.0]) + 7
    scale, other = ActionScale(3), ActionScale(3)
    scale.fit(actions)
    other.fit(1000 * actions)
    assert_close(scale(actions), other(1000 * actions), atol=1e-4, rtol=0, check_dtype=False)
    assert_close(scale(actions).std((0, 1), correction=0), torch.tensor([1.0, 1.0, 0.0]).double(), check_dtype=False)


def test_a_model_without_actions_has_the_weights_it_had():
    names = build(small("svg")).state_dict().keys()
    assert obedient().state_dict().keys() - names == {"action_scale.mean", "action_scale.std"}


def test_the_trained_model_does_as_it_is_told(run_dir, root):
    """Under the actions that were taken its futures are nearer to the truth than under the opposite ones."""
    run = seqvae.load_run(run_dir, device="cpu")
    clips = load_dataset("pushing", root, "test", seq_len=5)
    video = torch.stack(clips.__getitems__(range(4))).movedim(2, -1).numpy()  # (B, T, H, W, C)
    actions = clips.actions(range(4))[:, :4].numpy()
    opposite = actions * np.float32([-1, 1, 1, 1])
    errors = []
    for given in (actions, opposite):
        futures = run.predict(video[:, :2], 3, 1, actions=given)
        errors.append(np.square(futures[0] / 255.0 - video[:, 2:] / 255.0).mean())
    assert errors[0] < 0.5 * errors[1], errors
    alone = run.predict(video[1, :2], 3, 1, actions=actions[1])
    assert alone.shape == (1, 3, 64, 64, 3)
    honest, lying = (run.score(video, actions=given).nats.sum() for given in (actions, opposite))
    assert honest < lying
    assert run.encode(video, actions=actions).mean.shape == (4, 4, 2)


def test_the_scale_is_that_of_the_training_clips_and_kept(run_dir):
    scale = seqvae.load_run(run_dir, device="cpu").model.action_scale
    assert scale.std[0] == pytest.approx(0.01, rel=0.05) and scale.std[3] == 1
    assert scale.mean[3] == pytest.approx(1)


def test_runs_are_scored_under_the_true_actions_or_under_none_or_other_ones(run_dir, root, tmp_path, capsys):
    """Futures and bounds are those that `load_run` gives under the same actions."""
    out, kinds = tmp_path / "out", ("true", "none", "shuffled")
    few = [str(run_dir), "--n-samples", "2", "--n-videos", "2", "--n-importance", "1", "--lpips", "off"]
    assert evaluate.main([*few, "--actions", *kinds, "--save-predictions", "--out", str(out)]) == 0
    names = [run_dir.name, f"{run_dir.name} (no actions)", f"{run_dir.name} (another video's actions)"]
    table = capsys.readouterr().out
    assert all(f"\n{name}  " in table for name in names)
    assert all(name in (out / "report.html").read_text().replace("&#39;", "'") for name in names)
    run, clips = seqvae.load_run(run_dir, device="cpu"), load_dataset("pushing", root, "test", seq_len=30)
    video = torch.stack(clips.__getitems__(range(2))).movedim(2, -1).numpy()  # (B, T, H, W, C)
    given = {
        "true": clips.actions([0, 1]),
        "none": run.model.action_scale.mean.expand(2, 30, 4),
        "shuffled": clips.actions([1, 2]),
    }
    psnr = {}
    for kind in kinds:
        folder, actions = out / ("own" if kind == "true" else f"own-actions-{kind}"), given[kind][:, :29]
        saved, facts = SavedPredictions(folder / "predictions.h5", torch.device("cpu")), metrics(folder)
        expected = run.predict(video[:, :2], 28, 2, actions=actions)
        assert (saved.futures(range(2), range(2))[0].movedim(3, -1).numpy() == expected).all()
        nats = run.score(video, actions=actions).nats.sum(1).mean()
        assert facts["bounds"]["elbo_all"]["mean"] == pytest.approx(-nats)
        psnr[kind] = facts["results"]["mean"]["psnr"]["mean"]
    assert psnr["true"] > max(psnr["none"], psnr["shuffled"]), psnr
    assert evaluate.main(few) == 0
    assert metrics(run_dir / "evaluation" / "own") == metrics(out / "own"), "the default is true"
    again = tmp_path / "again"
    assert evaluate.main(["--from-predictions", str(folder / "predictions.h5"), "--out", str(again)]) == 0
    assert "28 predicted, another video's actions" in capsys.readouterr().out and metrics(again) == metrics(folder)


def test_a_run_without_actions_is_not_scored_under_others(trained, capsys):
    assert evaluate.main([str(trained), "--actions", "none"]) == 2
    error = capsys.readouterr().err
    assert f"--actions is about runs trained with actions, and {trained} was not; drop it" in error
    assert error.count(chr(10)) == 1


@pytest.fixture
def clip(root, tmp_path):
    """Five frames of a test video, beside left.npy and right.npy: what the bar is told once two have been seen."""
    for name, told in (("left", -0.01), ("right", 0.01)):
        actions = np.load(root / "pushing_test_actions.npy")[0, :4]
        actions[1:, 0] = told
        np.save(tmp_path / f"{name}.npy", actions.astype(np.float64))
    path = tmp_path / "clip.apng"
    iio.imwrite(path, np.load(root / "pushing_test.npy")[0, :5], plugin="pillow", duration=100)
    return path


def test_a_clip_holds_no_actions(run_dir, clip, capsys):
    assert predict.main([str(run_dir), str(clip)]) == 2
    assert "takes actions, and a clip holds none; pass --actions FILE" in capsys.readouterr().err


def predicted(run_dir, clip, *names, out="out", flags=()):
    """prediction.npz of predict.py under these files of actions."""
    files, out = [str(clip.parent / f"{name}.npy") for name in names], clip.parent / out
    assert predict.main([str(run_dir), str(clip), "--actions", *files, "--out", str(out), *flags]) == 0
    with np.load(out / "prediction.npz") as numbers:
        return dict(numbers)


def test_a_clip_is_continued_with_each_file_of_actions(run_dir, clip, capsys):
    both = predicted(run_dir, clip, "left", "right", flags=["--n-samples", "2"])
    assert "2 samples under each of left, right" in capsys.readouterr().out
    assert both["names"].tolist() == ["left", "right"] and both["samples"].shape == (2, 2, 3, 64, 64, 3)
    run = seqvae.load_run(run_dir, device="cpu")
    for name, rows, samples in zip(both["names"], both["actions"], both["samples"], strict=True):
        assert (rows == np.load(clip.parent / f"{name}.npy").astype(np.float32)).all()
        assert (samples == run.predict(both["context"], 3, 2, actions=rows)).all()  # so the noise is one for both
        alone = predicted(run_dir, clip, name, out="alone", flags=["--n-samples", "2"])
        assert (alone["samples"] == samples).all() and (alone["actions"] == rows).all()
    columns = both["samples"][:, 0, -1].mean((1, 3))  # (2, 64) how white those of the last frame are
    bars = obey(np.pad(both["actions"], ((0, 0), (0, 1), (0, 0))))[:, -1, 0, :, 0]
    for own, other in ((0, 1), (1, 0)):
        assert np.abs(columns[own] - bars[own]).mean() < np.abs(columns[own] - bars[other]).mean()


def test_one_file_of_actions_gives_the_same_bytes_each_time_and_no_posterior(run_dir, clip):
    first, again = (predicted(run_dir, clip, "left", out=out) for out in ("a", "b"))
    assert first.keys() == {"context", "samples", "seeds", "truth", "sigma", "actions", "names"}
    assert all((first[name] == again[name]).all() for name in first) and first["samples"].shape == (4, 3, 64, 64, 3)
    for name in ("prediction.gif", "prediction.png"):
        assert (clip.parent / "a" / name).read_bytes() == (clip.parent / "b" / name).read_bytes()
    predicted(run_dir, clip, "left", "right", out="c", flags=["--n-samples", "2"])
    shapes = [iio.improps(clip.parent / out / "prediction.gif").shape for out in ("a", "c")]
    assert shapes[0][2] == shapes[1][2], "the truth and four futures each"


@pytest.mark.parametrize(
    "content, words",
    [
        (
            np.zeros((3, 4)),
            "bad.npy: actions are (3, 4) float64, expected numbers of shape (4, 4); a row for each frame",
        ),
        (np.zeros((4, 3), np.float32), "actions are (4, 3) float32, expected numbers of shape (4, 4)"),
        (np.full((4, 4), np.nan), "bad.npy: actions hold NaN or infinities"),
        (np.full((4, 4), 1e300), "bad.npy: actions hold NaN or infinities"),
        (np.full((4, 4), "left"), "bad.npy: actions are (4, 4) <U4"),
        (np.full((4, 4), None), "bad.npy cannot be read"),
        (b"", "bad.npy cannot be read"),
        (b"no array", "bad.npy cannot be read"),
        (None, "bad.npy is not a file; expected an .npy file of (4, 4) numbers"),
    ],
)
def test_a_bad_file_of_actions_is_one_line(content, words, run_dir, clip, capsys):
    path = clip.parent / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    assert predict.main([str(run_dir), str(clip), "--actions", str(clip.parent / "left.npy"), str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count(chr(10)) == 1


def test_files_of_one_name_are_refused(run_dir, clip, capsys):
    assert predict.main([str(run_dir), str(clip), "--actions", "a/left.npy", "b/left.npy"]) == 2
    assert "--actions: 2 files are named left" in capsys.readouterr().err


def test_data_without_such_actions_is_refused():
    clips = load_dataset("digits", None, "train", seq_len=15)
    with pytest.raises(ValueError, match="model.actions is 4, and moving_mnist has none; pass 0"):
        check_actions(RunConfig(data=MovingMnistConfig(), model=small("svg", actions=4)), clips)
