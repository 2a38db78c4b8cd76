"""train.py as a person starts it: every error a message and exit code 2, every run resumable."""

import functools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

import datasets
import evaluate
import train
from seqvae.config import variant
from seqvae.evaluation import session as evaluation_session
from seqvae.likelihoods import DISCRETE, LIKELIHOODS
from seqvae.presets import PRESETS
from seqvae.training import session
from seqvae.training.logger import read_metrics
from tests.data_files import write_jpeg_copy
from tests.helpers import (
    GECO_FLAGS,
    SIGMA_FLAGS,
    TIMES,
    TINY_FLAGS,
    assert_bitwise_equal,
    final,
    start,
    wait_for,
    without,
)

pytestmark = pytest.mark.usefixtures("no_charts")

ELBO = ["--objective.name", "elbo"]
GECO_IWAE = ["--objective.name", "geco-iwae", "--objective.n-importance", "2"]


def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [*without(SIGMA_FLAGS, "--optim.steps"), "--optim.schedule", "constant", "--optim.steps", "40"]
    process = start("train", *command, "--run-dir", str(killed))
    wait_for((killed / "checkpoints" / "previous.pt").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    reached = final(killed)["step"]

    resumed = start("train", *command, "--run-dir", str(killed), fork=False)
    out, error = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, error
    assert f"resuming {killed} from step {reached}" in out
    assert train.main([*command, "--run-dir", str(whole)]) == 0
    assert_bitwise_equal(final(whole), final(killed))
    lines = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (whole, killed)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(name, tmp_path):
    command = [*GECO_FLAGS, "--run-dir", str(tmp_path), "--optim.steps", "100000", "--run.checkpoint-every", "100000"]
    # At the exit the workers, which ignore both signals, have to be ended: SIGTERM is tried on a program of its own.
    process = start("train", *command, "--compute.workers", "1", new_session=True, fork=name != signal.SIGTERM)
    metrics = tmp_path / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(read_metrics(metrics)) > 2, process)
    os.killpg(process.pid, name)  # as a terminal or a scheduler does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == (session.UNFINISHED if name == signal.SIGTERM else 130) and "Traceback" not in err, err
    step = final(tmp_path)["step"]
    assert f"{name.name}: saved at step {step}" in out
    assert read_metrics(metrics)[-1]["step"] == step


def test_a_kill_between_picture_and_checkpoint_loses_neither_and_means_start_anew_at_checkpoints(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    # The paper's rule: the adaptive one follows the number of steps, as a cosine does.
    command = [*GECO_FLAGS, "--run.log-every", "2", "--run.sample-every", "3", "--optim.schedule", "constant"]
    command += ["--objective.rule", "paper"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train.main([*command, "--run-dir", str(whole), "--optim.steps", "8"]) == 0
    assert train.main([*command, "--run-dir", str(resumed), "--optim.steps", "3"]) == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.checkpoint, "save", killed)
        train.main([*command, "--run-dir", str(resumed), "--optim.steps", "8"])
    assert final(resumed)["step"] == 3 and (resumed / "samples" / "step_0000006.gif").exists()
    assert train.main([*command, "--run-dir", str(resumed), "--optim.steps", "8"]) == 0
    for path in (whole / "samples").iterdir():
        assert path.read_bytes() == (resumed / "samples" / path.name).read_bytes()
    lines = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (whole, resumed)
    ]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [2, 3, 3, 4, 6, 6, 8, 8]


def test_a_run_leaves_what_the_readme_says(tmp_path, capsys):
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path)]) == 0
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    with Image.open(tmp_path / "samples" / "step_0000006.gif") as gif:
        assert gif.n_frames == 5
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"]["objective"]["rule"] == "adaptive"
    assert config["versions"]["torch"] == torch.__version__
    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert line.keys() >= {
        *("step", "train/loss", "train/rmse", "train/kl_nats_per_frame", "train/elbo_nats_per_frame"),
        *("train/bits_per_dim", "train/frames_per_second", "geco/lambda", "geco/constraint", "geco/calibration"),
    }
    out = capsys.readouterr().out
    assert "squared 0.0049, summed over 1024 pixels 5.018; calibrated lambda there 102" in out
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path)]) == 0
    assert "is finished at step 6; raise --optim.steps to train longer" in capsys.readouterr().out


def test_a_truncated_checkpoint_is_no_error(tmp_path, capsys):
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path)]) == 0
    last = tmp_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path)]) == 0
    assert "previous.pt, step 3" in capsys.readouterr().out
    assert final(tmp_path)["step"] == 6
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--objective.per-frame", "True", "--objective.loss-on", "future"], id="one multiplier per frame"),
        pytest.param(["--compute.amp", "bf16"], id="bfloat16"),
        pytest.param(["--optim.accumulate", "3", "--compute.data", "device"], id="passes"),
        pytest.param(["--optim.ema", "0.9", "--optim.grad-clip", "1", "--optim.schedule", "constant"], id="ema"),
        pytest.param(["--model.norm", "group", "--model.prior", "fixed", "--model.last-frame-skip"], id="model"),
        pytest.param(["--data.n-digits", "2", "--data.deterministic", "False", "--compute.workers", "2"], id="data"),
        pytest.param([*GECO_IWAE, "--objective.form", "coherent", "--objective.per-frame", "True"], id="coherent"),
        pytest.param([*GECO_IWAE, "--objective.form", "additive", "--objective.constraint-on", "q"], id="additive"),
        pytest.param([*ELBO, "--objective.kl-warmup", "4"], id="linear warm-up of the KL"),
        pytest.param([*ELBO, "--objective.kl-cycle", "4", "--objective.beta", "0.5"], id="cyclic weight of the KL"),
        pytest.param([*ELBO, "--objective.free-bits", "0.1"], id="free bits"),
        pytest.param(["--objective.name", "iwae", "--objective.n-importance", "3"], id="iwae"),
    ],
)
def test_options_train_resume_and_show(flags, tmp_path):
    command = [*GECO_FLAGS, *flags, "--run-dir", str(tmp_path)]
    assert train.main([*command, "--optim.steps", "3"]) == 0
    assert train.main(command) == 0
    assert final(tmp_path)["step"] == 6
    loss = [line["train/loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert len(loss) == 6 and all(value is not None for value in loss)


def test_compiled_networks_train_and_resume(tmp_path, monkeypatch):
    # Traced as ever, but not turned into C++, which takes a minute; the GPU suite compiles for real.
    backend = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda module, *_, **options: backend(module, **options))
    test_options_train_resume_and_show(["--compute.compile", "on", "--compute.checkpoint-activations"], tmp_path)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("smmnist")])
def test_the_mnist_presets_train_on_real_digits(preset, tmp_path, mnist_root):
    cfg = PRESETS[preset][1]
    small = without(without(TINY_FLAGS, "--data.digit-size"), "--data.image-size")  # Moving MNIST has its own
    for flag in [flag for flag in small[::2] if flag.startswith("--model.")]:
        name = flag.removeprefix("--model.").replace("-", "_")
        if not hasattr(cfg.model, name) or (name == "z_dim" and not cfg.model.has_latent):
            small = without(small, flag)
    assert train.main([preset, *small, "--data.root", str(mnist_root), "--run-dir", str(tmp_path)]) == 0
    line = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert line["step"] == 6 and line["valid/rmse"] > 0
    sigma = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "decoder/sigma" in line]
    assert bool(sigma) != cfg.likelihood.fixed_sigma


IMAGES = ["--model.width", "4", "--model.g-dim", "8", "--model.z-dim", "3", "--optim.batch-size", "3"]
IMAGES += ["--optim.steps", "2", "--compute.workers", "0", "--run.n-valid", "3", "--run.log-every", "1"]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith(("mnist", "cifar10"))])
def test_the_image_presets_train_resume_show_and_are_evaluated(preset, tmp_path, request, capsys):
    if preset.startswith("mnist"):
        data = ["--data.root", str(request.getfixturevalue("mnist_root"))]
    else:
        data = ["--data.root", str(write_jpeg_copy(tmp_path)), "--data.source", "jpeg"]
    run_dir = tmp_path / "run"
    command = [preset, *IMAGES, *data, "--run-dir", str(run_dir)]
    assert train.main(command) == 0
    assert train.main([*command, "--optim.steps", "3"]) == 0
    assert final(run_dir)["step"] == 3
    with Image.open(run_dir / "samples" / "step_0000003.png") as image:
        image.verify()
    few = ["--n-videos", "5", "--batch-size", "2", "--n-importance", "3", "--checkpoint", "last"]
    assert evaluate.main([str(run_dir), *few]) == 0
    report = json.loads((run_dir / "evaluation" / "images" / "metrics.json").read_text())
    assert report["step"] == 3 and report["n_images"] == 5 and ("geco" in report) == ("geco" in preset)
    assert report["bounds"]["elbo_all"]["mean"] <= report["bounds"]["iwae_3_all"]["mean"] + 50
    assert {"posterior mean", "posterior sample"} == report["squared_error"].keys()
    with Image.open(run_dir / "evaluation" / "images" / "images.png") as image:
        image.verify()
    assert "active units" in capsys.readouterr().out
    assert evaluate.main([str(run_dir), *few, "--n-videos", "4"]) == 2
    assert "holds an evaluation of 5 images, and 4 would replace it" in capsys.readouterr().err


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_decoder_trains_and_is_evaluated_in_bits_that_bound_the_bytes(name, tmp_path):
    flags = [*SIGMA_FLAGS, "--likelihood.name", name, "--optim.steps", "2", "--run-dir", str(tmp_path)]
    if name not in DISCRETE:
        flags += ["--likelihood.dequantise", "True"]
    if "soft_clip" in variant("likelihood", name).options():
        flags += ["--likelihood.soft-clip", "True"]
    if name == "logistic-mixture":
        flags += ["--likelihood.mixtures", "2"]
    assert train.main(flags) == 0
    assert evaluate.main([str(tmp_path), "--n-videos", "2", "--n-samples", "2", "--n-importance", "2"]) == 0
    bounds = json.loads((tmp_path / "evaluation" / "own" / "metrics.json").read_text())["bounds"]
    assert bounds["bits_bound_the_bytes"] and 0 < bounds["bits_per_dim"] < 20
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert all(line["train/bits_per_dim"] > 0 for line in lines if "train/loss" in line)


def test_wandb_offline_gets_scalars_and_gifs(tmp_path):
    process = start("train", *GECO_FLAGS, "--run-dir", str(tmp_path), "--wandb.mode", "offline", WANDB_SILENT="true")
    _, error = process.communicate()
    assert process.returncode == 0, error
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb")) and list(folder.glob("files/media/videos/*.gif"))
    content = next(folder.glob("run-*.wandb")).read_bytes()
    assert b"train/kl_nats_per_frame" in content and b"geco/lambda" in content


def test_wandb_online_that_does_not_start_ends_with_the_reason_and_the_remedy(tmp_path, monkeypatch, capsys):
    import wandb

    def no_key(**options):
        assert options["mode"] == "online" and options["project"] == "mine"
        raise RuntimeError("no API key")

    monkeypatch.setattr(wandb, "init", no_key)
    command = [*GECO_FLAGS, "--run-dir", str(tmp_path), "--wandb.mode", "online", "--wandb.project", "mine"]
    assert train.main(command) == 1
    assert "wandb does not start (no API key); pass --wandb.mode offline or off" in capsys.readouterr().err


def test_a_run_can_start_from_anothers_weights(tmp_path, capsys):
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path / "a")]) == 0
    command = [
        *SIGMA_FLAGS,
        "--run-dir",
        str(tmp_path / "b"),
        "--init-from",
        str(tmp_path / "a"),
        "--optim.lr",
        "1e-12",
    ]
    assert train.main([*command, "--optim.steps", "1"]) == 0
    theirs, ours = final(tmp_path / "a")["model"], final(tmp_path / "b")["model"]
    torch.testing.assert_close(ours["decoder.levels.0.weight"], theirs["decoder.levels.0.weight"])
    assert "weights of" in capsys.readouterr().out
    wider = [*command, "--model.width", "8", "--run-dir", str(tmp_path / "c")]
    assert train.main(wider) == 2
    error = capsys.readouterr().err
    assert "there and" in error and "--model flags" in error and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "amp, native, words",
    [
        ("auto", True, "cpu, float32\n"),
        ("native", True, "cpu, bfloat16 autocast\n"),
        ("native", False, "cpu, float32\n"),
        ("bf16", True, "cpu, bfloat16 autocast\n"),
        ("bf16", False, "cpu, bfloat16 autocast, which this CPU emulates"),
        ("off", True, "cpu, float32\n"),
    ],
)
def test_bfloat16_is_for_cpus_that_compute_in_it(capsys, monkeypatch, amp, native, words):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert train.main([*GECO_FLAGS, "--dry-run", "--compute.device", "cpu", "--compute.amp", amp]) == 0
    assert words in capsys.readouterr().out


def test_no_preset_forces_bfloat16_on_a_machine_without_it():
    assert {name for name, (_, cfg) in PRESETS.items() if cfg.compute.amp == "bf16"} == set()


def test_dry_run_prints_settings_and_cost_and_leaves_nothing(tmp_path, capsys):
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path / "a"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert '"tolerance": 0.07' in out and "TFLOP per step" in out and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["smnist-geco"], ["unknown preset 'smnist-geco'; the nearest is smmnist-geco"]),
        (
            ["nowhere/config.json"],
            ["nowhere/config.json is not a file; the first word is a preset or a"],
        ),
        (["--dry-run"], ["the first word is a preset or a run's config.json, not --dry-run"]),
        (["demo-svg", "more"], ["unexpected argument 'more'"]),
        (["demo-svg", "--model.widht", "3"], ["unknown flag --model.widht; the nearest is --model.width"]),
        (["demo-svg", "--optim.lr", "fast"], ["optim.lr should be a valid number", "got 'fast'"]),
        (["demo-svg", "--optim.lr"], ["--optim.lr: expected one argument"]),
        (["demo-svg", "--compute.amp", "half"], ["--compute.amp: invalid choice: 'half'"]),
        (["demo-svg", "--objective.tolerance", "-0.1"], ["objective.tolerance must be finite and > 0, got -0.1"]),
        (
            ["demo-svg", "--objective.beta", "2"],
            ["--objective.beta is a setting of objective elbo, and this run has geco", "pass --objective.name elbo"],
        ),
        (
            ["smmnist-sigma", "--objective.tolerance", "0.1"],
            ["is a setting of objective geco, geco-iwae"],
        ),
        (["smmnist-sigma", "--objective.name", "geco"], ["objective.tolerance is required"]),
        (["smmnist-sigma", "--objective.name", "iwea"], ["--objective.name is 'iwea'; the nearest is iwae"]),
        (["smmnist-sigma", "--objective.name", "xyz"], ["'xyz'; expected one of elbo, geco, iwae, geco-iwae"]),
        (["demo-svg", "--data.glyphs", "mnist"], ["--data.glyphs is a setting of data moving_mnist"]),
        (["demo-svg", "--data.digit-size", "40"], ["digit_size", "40"]),
        (["demo-svg", "--data.root", "data"], ["--data.root is a setting of data moving_mnist, bair, "]),
        (["smmnist-sigma", "--likelihood.mixtures", "3"], ["is a setting of likelihood logistic-mixture"]),
        (["mnist-vae", "--data.n-past", "2"], ["--data.n-past is a setting of data digits, moving_mnist"]),
        (["mnist-vae", "--model.rnn-size", "8"], ["--model.rnn-size is a setting of model svg, transport, scene"]),
        (["mnist-vae", "--data.seed", "1"], ["--data.seed is a setting of data digits"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, words, tmp_path, capsys):
    assert train.main([*flags, "--run-dir", str(tmp_path / "a")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count(chr(10)) == 1
    for word in words:
        assert word in said.err
    assert not (tmp_path / "a").exists()


def test_a_run_folder_of_other_settings_is_refused_with_both_values(tmp_path, capsys):
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path), "--model.width", "8", "--optim.lr", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "model.width: 4 -> 8" in error and "optim.lr: 0.002 -> 0.5" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "flag, value, words",
    [
        ("--data.n-future", "1000000000", "optim.batch-size 3, 1000000002 frames of 32 px"),
        ("--optim.batch-size", "9" * 30, "5 frames of 32 px"),
        ("--model.rnn-size", "9" * 20, f"rnn-size {'9' * 20}"),
        ("--model.predictor-layers", "9" * 20, "layers"),
        ("--model.width", "9" * 9, f"model.width {'9' * 9}"),
    ],
)
def test_more_than_the_memory_holds_is_refused_with_the_estimate(flag, value, words, tmp_path, capsys):
    assert train.main([*GECO_FLAGS, f"{flag}={value}", "--run-dir", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert words in error and "GB of memory, and this machine has" in error and error.count(chr(10)) == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_no_cuda_is_refused(tmp_path, capsys):
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path), "--compute.device", "cuda"]) == 2
    assert "pass --compute.device cpu" in capsys.readouterr().err


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full on this system")
def test_a_full_disk_ends_the_run_with_the_reason(tmp_path, capsys, monkeypatch):
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path)]) == 0
    real_open = Path.open

    def full(self, mode="r", *args, **kwargs):  # every new checkpoint lands on a device without space
        return real_open(Path("/dev/full") if self.name == "new.pt.partial" else self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path), "--optim.steps", "9"]) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "earlier checkpoints are whole" in error and error.count(chr(10)) == 1
    monkeypatch.undo()
    assert final(tmp_path)["step"] == 6
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path), "--optim.steps", "9"]) == 0
    assert final(tmp_path)["step"] == 9


def test_data_that_vanish_during_training_are_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    class Vanishing(torch.utils.data.Dataset):
        channels = 1

        def __len__(self):
            return 9

        def __getitem__(self, index):
            raise FileNotFoundError("no usable frame in 3.png (it is empty); convert BAIR again")

    monkeypatch.setattr(datasets, "load_dataset", lambda **_: Vanishing())
    for workers in ("0", "1"):
        command = [*without(GECO_FLAGS, "--compute.workers"), "--compute.workers", workers]
        assert train.main([*command, "--run-dir", str(tmp_path / workers)]) == 2
        error = capsys.readouterr().err
        assert "no usable frame in 3.png (it is empty); convert BAIR again" in error and error.count(chr(10)) == 1


def test_a_device_without_room_for_the_model_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    assert train.main([*GECO_FLAGS, "--optim.steps", "1", "--run-dir", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    monkeypatch.setattr(session, "prepare", full)
    monkeypatch.setattr(evaluation_session, "prepare", full)
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path / "b")]) == 1
    assert evaluate.main([str(tmp_path / "a")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("no room for" in line and "cpu" in line for line in said)
    assert not (tmp_path / "b").exists()
