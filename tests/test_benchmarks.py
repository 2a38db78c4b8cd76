import json
import operator

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks import breakdown, digit_counts, evaluate, geco_grid, measure, pushed, rollout, train_step
from benchmarks.measure import matmul_flops, peak_memory_mb, ratio, turns
from benchmarks.reference_svg import ReferenceTraining
from datasets import load_dataset
from seqvae.config import ElboConfig, SvgConfig
from seqvae.likelihoods import build_likelihood
from seqvae.models import SVG
from seqvae.objectives import build_objective
from seqvae.training.terms import batch_terms

pytestmark = pytest.mark.usefixtures("no_charts")

CPU = torch.device("cpu")
TINY = ["--width=4", "--batch-size=2", "--image-size=32", "--rounds=1", "--threads=1", "--device=cpu"]


@pytest.fixture
def no_new_process(monkeypatch):
    """Peak memory takes a new process, and seconds; one test of it is enough."""
    monkeypatch.setattr(measure, "peak_memory_mb", lambda part, *args: part(*args) and None)


def printed(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_reference_loop_has_the_gradients_of_our_objective():
    torch.manual_seed(0)
    sizes = {"image_size": 32, "channels": 1, "n_past": 2}
    model = SVG(SvgConfig(width=4, g_dim=6, rnn_size=8), build_likelihood("gaussian", 1, sigma=1.0), **sizes)
    model = model.double().eval()
    video, noise = torch.rand(2, 5, 1, 32, 32).double(), torch.randn(2, 4, 10).double()
    weights = dict(model.named_parameters())
    theirs = ReferenceTraining(model).loss(video, noise, beta=0.3)
    theirs = dict(zip(weights, torch.autograd.grad(theirs, weights.values())))

    objective = build_objective(ElboConfig(svg_beta=0.3), n_frames=4, dims=32 * 32, sigma=1.0)
    loss, _ = objective(batch_terms(model, video, noise[None], torch.ones(4).double())[1])
    ours = dict(zip(weights, torch.autograd.grad(loss, weights.values())))
    for name in weights:  # nats per frame against a mean over pixels, summed over frames
        assert ours[name].abs().max() > 0, name
        scale = theirs[name].abs().max().item() * 32 * 32 / (2 * 4)
        assert_close(ours[name], theirs[name] * 32 * 32 / (2 * 4), rtol=0, atol=1e-5 * scale, msg=name)


def test_the_reference_loop_moves_every_weight_and_lowers_its_loss():
    torch.manual_seed(0)
    sizes = {"image_size": 32, "channels": 1, "n_past": 2}
    model = SVG(SvgConfig(width=4, g_dim=6, rnn_size=8), build_likelihood("gaussian", 1), **sizes).train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    training, video = ReferenceTraining(model), torch.rand(2, 5, 1, 32, 32)
    losses = [training.step(video, torch.randn(2, 4, 10)).item() for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all((weight - before[name]).abs().max() > 0 for name, weight in model.named_parameters())


@pytest.mark.parametrize("amp, data, network", [("off", "smmnist", "dcgan"), ("bf16", "bair", "vgg")])
def test_train_step_prints_what_it_measured(capsys, amp, data, network, no_new_process):
    train_step.main([*TINY, "--n-frames=7", f"--amp={amp}", f"--data={data}"])
    (line,) = printed(capsys)
    assert line["network"] == network
    assert line["ratio"]["median"] > 0 and line["seconds_per_step"].keys() == {"ours", "reference"}
    assert line["gflop_per_step"]["reference"] > line["gflop_per_step"]["ours"] > 0
    assert line["peak_memory_mb"].keys() == {"ours", "reference"}
    assert {"frames_per_second", "gflop_per_second", "matmul_gflop_per_second", "fraction_of_matmul"} <= line.keys()


def test_train_steps_sweep_has_a_line_per_point(capsys, monkeypatch):
    monkeypatch.setattr(train_step, "SWEEP", {"n_frames": (7, 9), "batch_size": (1, 2)})
    train_step.main([*TINY, "--n-frames=7", "--sweep"])
    lines = printed(capsys)
    assert [set(line) - {"seconds_per_step"} for line in lines] == [
        *[{"n_frames"}] * 2,
        {"cost grows as"},
        *[{"batch_size"}] * 2,
        {"cost grows as"},
    ]


@pytest.mark.parametrize("data", ["smmnist", "bair"])
def test_rollout_prints_what_it_measured(capsys, data, no_new_process):
    rollout.main([*TINY, "--n-frames=8", "--n-samples=2", "--amp=bf16", "--train-steps=1", f"--data={data}"])
    (line,) = printed(capsys)
    assert line["frames_per_second"].keys() == {"ours", "reference"}
    assert abs(line["psnr_bf16_minus_float32"]) < 0.1


def test_rollouts_sweep_has_a_line_per_number_of_samples(capsys, monkeypatch, no_new_process):
    monkeypatch.setattr(rollout, "SWEEP", (1, 3))
    rollout.main([*TINY, "--n-frames=8", "--sweep"])
    assert [line["n_samples"] for line in printed(capsys)] == [1, 3]


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_evaluate_prints_what_it_measured(capsys, amp, no_new_process, monkeypatch):
    models, predict = [], evaluate.ModelPredictions
    monkeypatch.setattr(evaluate, "ModelPredictions", lambda *a, **k: models.append(k["amp"]) or predict(*a, **k))
    evaluate.main([*TINY, "--n-frames=17", "--n-videos=2", "--n-samples=2", f"--amp={amp}"])
    (line,) = printed(capsys)
    assert line["frames"] == 2 * 2 * 12 and line["metric_frames_per_second"].keys() >= {"psnr", "ssim"}
    assert "peak_memory_mb" in line and set(models) == {amp == "bf16"}


def test_turns_take_turns_and_ratios_are_of_the_same_round():
    calls = []
    times = turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, CPU)
    assert calls == ["a", "b"] * 5 and [len(values) for values in times.values()] == [3, 3]
    assert ratio([1.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == {"median": 3.0, "min": 1.0, "max": 4.0}


def test_peak_memory_is_that_of_the_part_alone():
    kept = torch.ones(10**9, dtype=torch.uint8)  # of this process, not of the part's
    small, large = (peak_memory_mb(operator.mul, b"x", n_bytes) for n_bytes in (10**6, 3 * 10**8))
    assert 250 < large - small < 350 and len(kept) == 10**9
    assert matmul_flops(torch.float32, CPU, 64) > 0


def test_the_transport_model_is_timed_beside_svgs_loop(capsys, no_new_process):
    train_step.main([*TINY, "--n-frames=7", "--family=transport"])
    rollout.main([*TINY, "--n-frames=8", "--n-samples=2", "--family=transport"])
    step, futures = printed(capsys)
    assert step["family"] == futures["family"] == "transport"
    assert step["ratio"]["median"] > 0 and futures["ratio"]["median"] > 0


def test_the_grid_of_geco_compares_with_the_best_of_the_fixed_weights():
    found = {0.015: (0.18, 4.0), 0.2: (0.14, 16.0), 1.0: (0.12, 36.0), 25.0: (0.13, 70.0)}
    runs = {("mnist", "constant", "fixed", weight, 0): {"rmse": rmse, "kl": kl} for weight, (rmse, kl) in found.items()}
    points = geco_grid.front(runs, "mnist", "constant")
    assert points == [(0.12, 36.0), (0.14, 16.0), (0.18, 4.0)], "a weight of 25 costs more for a larger error"
    assert geco_grid.front_kl(points, 0.16) == pytest.approx(8) and geco_grid.front_kl(points, 0.2) is None
    trace = [(1.0, 0.3), (1.0, 0.16), (1.0, 0.151), (1.0, 0.15)]
    assert geco_grid.settled({"trace": trace}, 0.15) == 2 * geco_grid.LOG_EVERY
    assert geco_grid.settled({"trace": trace}, 0.1) is None


def test_digits_counts_are_scored_and_shown(mnist_root, tmp_path, capsys):
    out = tmp_path / "counts.gif"
    sizes = ["--counts", "1", "--n-videos=2", "--n-samples=3"]
    digit_counts.main(["smmnist-transport", f"--root={mnist_root}", *sizes, f"--out={out}"])
    best, mean, posterior, copied = (
        float(cell.split("+-")[0]) for cell in capsys.readouterr().out.splitlines()[-1].split("|")[2:6]
    )
    assert posterior > best > mean > copied and out.exists()

    video = np.full((2, digit_counts.N_FRAMES, 4, 4, 1), 100, np.uint8)
    future = video[:, digit_counts.N_PAST :]
    off = np.stack([future + 10, future + 20])  # samples that are 10 and 20 grey levels off
    cells = digit_counts.scores(video, off, future + 5)
    best, mean, posterior = (float(cell.split("+-")[0]) for cell in cells[:3])
    expected = [20 * np.log10(255 / error) for error in (10, 20, 5)]
    assert (best, posterior) == pytest.approx((expected[0], expected[2]), abs=0.01)
    assert mean == pytest.approx(sum(expected[:2]) / 2, abs=0.01)


def test_bounces_and_overlaps_are_counted_on_the_true_trajectories():
    dataset, videos = (
        load_dataset("digits", None, "test", seq_len=12, image_size=32, n_digits=2, digit_size=12),
        range(40),
    )
    chosen, states = dataset.latents(videos)
    bounces, overlap = (
        count(dataset, videos, n_past=4) for count in (breakdown.future_bounces, breakdown.context_overlap)
    )
    for v in videos:
        moved = np.diff(states[:, :2, v], axis=0)  # (T - 1, 2, D): a straight path moves by the same step every time
        straight = np.isclose(moved[3:], states[3:-1, 2:, v]).all(1)  # from frames 3.. to 4..
        assert bounces[v] == (~straight).sum()
        far = (np.abs(np.diff(np.rint(states[:4, :2, v]), axis=-1)) >= 12).any((1, 2))
        assert overlap[v] <= (~far).sum(), "digits whose boxes lie apart share no pixel"
    assert bounces.max() > bounces.min() and overlap.max() > 0 and overlap.min() == 0


def test_the_breakdowns_row_of_all_videos_is_the_evaluation(mnist_root, tmp_path, capsys):
    import evaluate as command

    sizes = ["--n-videos=6", "--n-samples=3", "--device=cpu"]
    breakdown.main(["smmnist-transport", f"--root={mnist_root}", *sizes, "--batch-size=4", "--oracle"])
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:-2]]
    columns, rows = table[0][1:], {row[0]: dict(zip(table[0][1:], row[1:], strict=True)) for row in table[2:]}
    assert columns[:3] == ["videos", "PSNR best", "PSNR mean"] and "oracle: SSIM mean" in columns
    for subject in ("bounces", "overlap"):
        assert sum(int(row["videos"]) for name, row in rows.items() if name.startswith(subject)) == 6
    horizon = [float(row["PSNR best"].split()[0]) for name, row in rows.items() if name.startswith("horizon")]
    assert len(horizon) == 4 and horizon[0] > horizon[-1]
    assert np.mean(horizon) == pytest.approx(float(rows["all"]["PSNR best"].split()[0]), abs=0.01)

    flags = [f"--data-root={mnist_root}", "--protocol=srvp-2020", f"--out={tmp_path}", "--lpips=off"]
    assert command.main(["smmnist-transport", *sizes, *flags]) == 0
    scored = json.loads((tmp_path / "metrics.json").read_text())["results"]
    for name, method in (("", ""), ("oracle: ", "oracle ")):
        for metric, digits in (("psnr", 2), ("ssim", 4)):
            for of in ("best", "mean"):
                value = scored[f"{method}{of}"][metric]
                expected = f"{value['mean']:.{digits}f} +- {value['interval95']:.{digits}f}"
                assert rows["all"][f"{name}{metric.upper()} {of}"] == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere is neither a run folder"),
        (["smmnist-transport", "--n-videos=5001"], "srvp-2020 has 5000 videos, got 5001"),
        (["smmnist-transport", "--n-samples=0"], "srvp-2020 has 100 samples, got 0"),
    ],
)
def test_the_breakdown_refuses_what_it_cannot_score_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        breakdown.main([*arguments, "--root=data", "--device=cpu"])
    error = capsys.readouterr().err
    assert error.startswith("breakdown: ") and message in error and error.count("\n") == 1


def test_a_pushed_object_is_the_farthest_one_that_is_seen():
    labels = np.zeros((4, 2, 12, 12), np.uint8)
    labels[0, 0, :4, :4], labels[0, 1, :4, 4:8] = 1, 1  # moves by its width
    labels[0, :, 8:, :4] = 2  # went farther, it is said, and no pixel shows it
    labels[1, 0, :4, :4], labels[1, 1, :4, 4:8] = 1, 1  # not far enough
    labels[2, 0, :4, :4], labels[2, 1, :4, 4:8] = 1, 1
    labels[2, 0, :2, 4:8] = pushed.ARM  # stood on half of where it goes
    distances = np.array([[0.1, 0.2], [0.01, np.nan], [0.1, np.nan], [np.nan, np.nan]])
    found = pushed.pushed_objects(labels, distances)
    assert [(each.video, each.distance) for each in found] == [(0, 0.1), (2, 0.1)]
    assert (found[0].left == (labels[0, 0] == 1)).all() and (found[0].arrived == (labels[0, 1] == 1)).all()
    assert found[1].left.sum() == 16 and found[1].arrived.sum() == 8


def test_an_object_went_along_where_it_left_and_arrived():
    video = np.zeros((pushed.N_FRAMES, 3, 12, 12), np.uint8)
    video[pushed.N_PAST - 1, :, :4, :4], video[-1, :, :4, 4:8] = 100, 100
    object_ = pushed.Pushed(0, 0.1, video[pushed.N_PAST - 1, 0] > 0, video[-1, 0] > 0)
    still, moved, gone = video[pushed.N_PAST - 1], video[-1], np.zeros_like(video[0])
    twice = still | moved
    off = moved.copy()
    off[:, 4:] = 255  # elsewhere, which is none of the object's business
    for frame, left, arrived in ((still, 0, 0), (moved, 1, 1), (gone, 1, 0), (twice, 0, 1), (off, 1, 1)):
        found = pushed.outcome(frame[None], video, object_)
        assert found == (left, arrived, left and arrived, 1 - left, 1 - arrived), frame
    found = pushed.outcome(np.stack([still, moved, gone, twice, moved // 10 * 7]), video, object_)
    assert found == pytest.approx((0.6, 0.6, 0.4, 0.4, (1 + 0 + 1 + 0 + 0.3**2) / 5))


def test_the_pushed_objects_are_those_of_the_test_videos(tmp_path, capsys):
    with np.load(pushed.OBJECTS) as file:
        found = pushed.pushed_objects(file["labels"], file["distances"])
    assert len(found) > 30 and max(each.video for each in found) < 64
    assert all(pushed.FAR < each.distance < 0.6 for each in found)
    with pytest.raises(SystemExit, match="2"):
        pushed.main(["smmnist-transport", f"--root={tmp_path}", "--device=cpu"])
    assert "pushed: smmnist-transport is a run on moving_mnist" in capsys.readouterr().err
