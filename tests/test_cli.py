"""The parser that the commands share, and what they answer before anything heavy is imported."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import predict
import train
from seqvae import __version__, cli
from seqvae.config import VARIANTS, GaussianConfig, IwaeConfig, RunConfig, to_json
from seqvae.evaluation.config import EvalConfig, PredictConfig
from seqvae.flags import comments, flags_of
from seqvae.presets import PRESETS

ROOT = Path(__file__).parent.parent
COMMANDS = {"train.py": train.main, "evaluate.py": evaluate.main, "predict.py": predict.main}


def settings_classes() -> set[type]:
    groups = {type(getattr(PRESETS["demo"][1], f.name)) for f in dataclasses.fields(RunConfig)}
    variants = {cls for _, classes in VARIANTS.values() for cls in classes.values()}
    return {RunConfig, EvalConfig, PredictConfig} | variants | {cls for cls in groups if dataclasses.is_dataclass(cls)}


@pytest.mark.parametrize("cls", sorted(settings_classes(), key=lambda cls: cls.__name__))
def test_every_flag_has_help_text(cls):
    for field in dataclasses.fields(cls):
        if cls is RunConfig and dataclasses.is_dataclass(getattr(PRESETS["demo"][1], field.name)):
            continue
        assert len(comments(cls).get(field.name, "")) > 8, f"{cls.__name__}.{field.name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_version_and_help_are_printed_and_end_well(command, capsys):
    first = ["demo"] if command == "train.py" else []
    assert COMMANDS[command](["--version"]) == 0
    assert capsys.readouterr().out == f"seqvae {__version__}\n"
    assert COMMANDS[command]([*first, "--help"]) == 0
    short = capsys.readouterr().out
    assert COMMANDS[command]([*first, "--help-all"]) == 0
    assert short.startswith(f"usage: {command}") and len(short) <= len(capsys.readouterr().out)


def test_train_without_a_preset_lists_them(capsys):
    assert train.main(["--help"]) == 0
    assert all(f"  {name} " in capsys.readouterr().out for name in ["demo"])
    assert train.main([]) == 2
    assert "smmnist-geco-iwae" in capsys.readouterr().err


def test_short_help_shows_what_people_use_and_the_variants_own_settings(capsys):
    def shown(*argv: str) -> set[str]:
        assert train.main([*argv]) == 0
        return {word for word in capsys.readouterr().out.split() if word.startswith("--") and "." in word}

    short = shown("smmnist-geco", "--help")
    assert 10 <= len(short) <= 16 and {"--objective.tolerance", "--optim.steps", "--data.root"} <= short
    whole = shown("smmnist-geco", "--help-all")
    assert short < whole and "--objective.rule" in whole and "--objective.beta" not in whole
    other = shown("smmnist-geco", "--objective.name", "elbo", "--help-all")
    assert "--objective.beta" in other and "--objective.tolerance" not in other
    offered = {name for _, cfg in PRESETS.values() for name in flags_of(RunConfig, to_json(cfg))}
    assert set(train.COMMON) <= offered
    assert set(evaluate.COMMON) <= {field.name.replace("_", "-") for field in dataclasses.fields(EvalConfig)}


def test_another_variant_keeps_what_the_preset_set_and_it_has_too():
    geco = train.parse(["smmnist-geco", "--objective.name", "geco-iwae"]).objective
    assert (geco.name, geco.tolerance, geco.n_importance) == ("geco-iwae", 0.06, 5)
    iwae = train.parse(["smmnist-beta", "--objective.name=iwae", "--objective.n-importance=3"])
    assert iwae.objective == IwaeConfig(n_importance=3) and iwae.likelihood == GaussianConfig()
    bair = train.parse(["bair-sigma", "--data.name", "video_folder", "--data.stride", "2"]).data
    assert (bair.n_past, bair.n_future, bair.stride) == (2, 10, 2)
    digits = train.parse(["smmnist-sigma", "--data.name", "digits"]).data
    assert digits.n_digits == 1, "a default of the old variant is no choice"
    assert train.parse(["demo", "--data.name", "moving_mnist"]).data.digit_size == 28
    assert train.parse(["smmnist-geco", "--model.family", "transport"]).model.layers == 2
    twice = ["smmnist-sigma", "--likelihood.name", "bernoulli", "--likelihood.name", "logistic-mixture"]
    assert train.parse([*twice, "--likelihood.mixtures", "4"]).likelihood.mixtures == 4


def test_own_videos_have_a_preset_and_a_run_folder_of_their_own():
    cfg = train.parse(["videos-sigma", "--data.root", "clips"])
    assert (cfg.data.name, cfg.data.root, cfg.run_dir) == ("video_folder", "clips", "runs/videos-sigma")


def test_values_are_written_as_people_write_them():
    def flip(*argv: str) -> bool:
        return train.parse(["bair-sigma", *argv]).data.flip

    assert flip("--data.flip") and flip("--data.flip", "True") and flip("--data.flip=true")
    assert not (flip("--no-data.flip") or flip("--data.flip", "False") or flip("--data.flip=False") or flip())
    assert train.parse(["demo", "--optim.grad_clip", "None"]).optim.grad_clip is None
    assert train.parse(["demo", "--optim.lr=1e-4", "--optim.lr", "3e-4"]).optim.lr == 3e-4
    args = cli.parse_flat(
        EvalConfig, ["a", "--no-oracle", "b", "--protocol", "own", "srvp-2020", "--seed", "3", "c"],
        usage="", description="", common=(), positional=("run-dirs",),
    )  # fmt: skip
    assert args.run_dirs == (Path("a"), Path("b"), Path("c")) and args.protocol == ("own", "srvp-2020")
    assert not args.oracle and args.seed == 3


@pytest.mark.parametrize(
    "command, flag, hint",
    [(evaluate, "--data.root", "the nearest is --data-root"), (predict, "--model.layers", "--help-all lists them")],
)
def test_a_setting_of_train_given_to_another_command_is_an_unknown_flag(command, flag, hint, capsys):
    assert command.main(["a", flag, "2"]) == 2
    assert capsys.readouterr().err.strip() == f"{command.__name__}.py: unknown flag {flag}; {hint}"


def test_a_run_can_start_with_another_runs_settings(tmp_path, capsys):
    settings = tmp_path / "a" / "config.json"
    settings.parent.mkdir()
    cfg = train.parse(["smmnist-geco", "--optim.lr", "0.1", "--run-dir", str(settings.parent)])
    settings.write_text(json.dumps({"config": to_json(cfg)}))
    again = train.parse([str(settings), "--run-dir", str(tmp_path / "b"), "--optim.steps", "7"])
    expected = dataclasses.replace(cfg, run_dir=str(tmp_path / "b"), optim=dataclasses.replace(cfg.optim, steps=7))
    assert again == expected
    assert train.parse([str(settings), "--objective.name", "elbo", "--run-dir", "b"]).objective.beta == 1
    pretrained = train.parse([str(ROOT / "pretrained" / "smmnist-transport" / "config.json")])
    assert pretrained.run_dir == "runs/smmnist-transport" and pretrained.objective.tolerance == 0.025
    assert train.main([str(settings), "--run-dir", str(settings.parent)]) == 2
    assert "give the new run another folder with --run-dir" in capsys.readouterr().err
    settings.write_text("{")
    assert train.main([str(settings), "--run-dir", str(tmp_path / "b")]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "code",
    [
        "import seqvae",
        "import train; assert train.main(['demo', '--help']) == 0",
        "import train; assert train.main(['demo', '--optim.lr', 'fast']) == 2",
        "import evaluate; assert evaluate.main(['--help']) == 0",
        "import evaluate; assert evaluate.main(['runs/nowhere']) == 2",
        "import predict; assert predict.main(['runs/nowhere', 'clip.gif']) == 2",
    ],
)
def test_answers_about_arguments_import_nothing_heavy(code):
    heavy = "{'torch', 'torchvision', 'torchmetrics', 'numpy', 'matplotlib', 'wandb', 'PIL'}"
    check = f"{code}; import sys; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
