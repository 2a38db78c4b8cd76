import dataclasses
import json
from typing import Literal, get_args, get_type_hints

import pytest

from datasets import LOADERS, dataset_options
from seqvae.build import build_model
from seqvae.config import (
    MAY_CHANGE,
    VARIANTS,
    ComputeConfig,
    DigitsConfig,
    ElboConfig,
    GaussianConfig,
    GecoConfig,
    ImageConfig,
    IwaeConfig,
    MnistConfig,
    OptimConfig,
    RunConfig,
    SvgConfig,
    WandbConfig,
    differences,
    from_json,
    read_config,
    to_json,
    variant,
)
from seqvae.likelihoods import LIKELIHOODS
from seqvae.models import FAMILIES
from seqvae.networks import NETWORKS
from seqvae.presets import PRESETS

GAUSSIAN = GaussianConfig()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_json(preset):
    cfg = PRESETS[preset][1]
    assert from_json(json.loads(json.dumps(to_json(cfg)))) == cfg
    assert differences(cfg, cfg) == []
    assert build_model(cfg, channels=1).has_latent == cfg.model.has_latent


def test_the_names_offered_are_the_names_that_exist():
    names = {group: set(classes) for group, (_, classes) in VARIANTS.items()}
    assert names["model"] == set(FAMILIES) and names["likelihood"] == set(LIKELIHOODS) and names["data"] <= set(LOADERS)
    for group, (key, classes) in VARIANTS.items():
        for name in classes:
            required = {"tolerance": 0.1} if "geco" in name else {}
            assert getattr(variant(group, name, **required), key) == name
    for config in VARIANTS["model"][1].values():
        assert set(get_args(get_type_hints(config).get("network", Literal[()]))) in (set(), set(NETWORKS))


@pytest.mark.parametrize("name", VARIANTS["data"][1])
def test_a_datasets_settings_are_its_loaders_options_with_the_same_defaults(name):
    assert variant("data", name).options() == dataset_options(name)


def test_unknown_keys_of_a_settings_file_are_errors():
    for path in ([], ["data"], ["model"], ["likelihood"], ["objective"], ["optim"], ["compute"], ["run"], ["wandb"]):
        tree = to_json(PRESETS["demo-svg"][1])
        node = tree
        for name in path:
            node = node[name]
        node["typo"] = 1
        with pytest.raises(ValueError, match="typo"):
            from_json(tree)


def test_a_folder_without_a_run_and_a_damaged_one_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_config(tmp_path)
    for content in (
        b"",
        b"[" * 200_000,
        b"\xff",
        b"3",
        b"[]",
        b"{}",
        b'{"config": 3}',
        b'{"config": {"data": {"x": 1}}}',
    ):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match="config.json is") as error:
            read_config(tmp_path)
        assert "\n" not in str(error.value)


def test_only_what_changes_no_number_may_differ_on_resume():
    paper = GecoConfig(tolerance=0.06, rule="paper")
    old = dataclasses.replace(PRESETS["smmnist-geco"][1], objective=paper, optim=OptimConfig())
    replaced = {  # one other value of every field of a run that could be resumed with it
        "data": {"root": "elsewhere", "n_past": 3, "n_future": 4, "image_size": 128, "seed": 1, "glyphs": "drawn"}
        | {"digit_size": 32, "n_digits": 1, "deterministic": True, "min_speed": 1, "max_speed": 2},
        "model": {"norm": "group", "prior": "fixed", "width": 8, "g_dim": 8, "rnn_size": 8, "predictor_layers": 1}
        | {
            "z_dim": 3,
            "posterior_layers": 2,
            "prior_layers": 2,
            "last_frame_skip": True,
            "network": "vgg",
            "actions": 4,
        },
        "objective": {"tolerance": 0.2, "decay": 0.9, "step_size": 0.1, "per_frame": True, "lambda_init": 2.0}
        | {"rule": "adaptive", "loss_on": "future"},
        "optim": {"steps": 7, "batch_size": 7, "accumulate": 2, "lr": 0.1, "beta2": 0.9, "schedule": "cosine"}
        | {"warmup": 7, "grad_clip": 1.0, "ema": 0.9, "train": "prior"},
        "compute": {"device": "cpu", "amp": "off", "compile": "off", "workers": 0, "timeout": 7}
        | {"data": "host", "checkpoint_activations": True},
        "run": {"seed": 1, "log_every": 7, "sample_every": 7, "checkpoint_every": 7, "n_valid": 7},
        "wandb": {"mode": "offline"},
    }
    for group, values in replaced.items():
        part = getattr(old, group)
        others = {"name", "family", "project", "lambda_start"}  # of other variants, or another field's
        missing = {f.name for f in dataclasses.fields(part)} - set(values) - others
        assert not missing, f"{group}: this test forgets {missing}"
        for name, value in values.items():
            new = dataclasses.replace(old, **{group: dataclasses.replace(part, **{name: value})})
            found = differences(old, new)
            assert bool(found) != (f"{group}.{name}" in MAY_CHANGE), (group, name, found)
            if found:
                assert any(line.startswith(f"{group}.{name}: ") and f"-> {value}" in line for line in found)


def test_passes_of_a_step_may_differ_on_resume_where_no_norm_looks_at_the_batch():
    for norm, found in (("group", []), ("batch", ["optim.accumulate: 1 -> 4"])):
        old = RunConfig(model=SvgConfig(norm=norm))
        assert differences(old, dataclasses.replace(old, optim=OptimConfig(accumulate=4))) == found


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"objective": GecoConfig(tolerance=0.1)}, "use likelihood.name gaussian, not optimal-sigma"),
        (
            {
                "objective": GecoConfig(tolerance=0.1),
                "likelihood": GaussianConfig(sigma=0.1),
            },
            "likelihood.sigma is not used by objective geco",
        ),
        (
            {
                "objective": GecoConfig(tolerance=0.1),
                "likelihood": GAUSSIAN,
                "model": SvgConfig(prior="none"),
            },
            "objective geco weighs latents, and this model has none",
        ),
        (
            {"objective": GecoConfig(tolerance=0.1), "likelihood": GaussianConfig(dequantise=True)},
            "likelihood.dequantise is not used by objective geco",
        ),
        ({"objective": IwaeConfig()}, "objective iwae weighs samples"),
        (
            {"data": MnistConfig(), "model": ImageConfig(), "objective": ElboConfig(loss_on="future")},
            "objective.loss-on future needs context frames",
        ),
        ({"objective": ElboConfig(beta=0.5)}, "objective.beta goes with likelihood.name gaussian"),
        ({"objective": ElboConfig(svg_beta=1.0)}, "objective.svg-beta goes with likelihood.name gaussian"),
        (
            {"objective": ElboConfig(free_bits=1.0), "model": SvgConfig(prior="none")},
            "objective.free-bits weighs",
        ),
        ({"objective": ElboConfig(kl_warmup=1), "model": SvgConfig(prior="none")}, "objective.kl-warmup weighs"),
        (
            {"objective": ElboConfig(beta=2.0), "likelihood": GAUSSIAN, "model": SvgConfig(prior="none")},
            "objective.beta weighs a KL",
        ),
    ],
)
def test_combinations_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**settings)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DigitsConfig(n_past=15, n_future=0), "data.n-past is 15 of the clip's 15 frames"),
        (lambda: DigitsConfig(n_past=0), "data.n-past must be >= 1"),
        (lambda: DigitsConfig(image_size=48), "data.image-size is 48; networks exist for 32, 64, 128, 256"),
        (lambda: OptimConfig(steps=0), "optim.steps must be finite and > 0, got 0"),
        (lambda: OptimConfig(accumulate=0), "optim.accumulate must be finite and > 0, got 0"),
        (lambda: ComputeConfig(timeout=0), "compute.timeout must be >= 1 second, got 0"),
        (lambda: OptimConfig(lr=0), "optim.lr must be finite and > 0, got 0"),
        (lambda: OptimConfig(lr=float("inf")), "optim.lr must be finite and > 0, got inf"),
        (lambda: OptimConfig(warmup=-1), "optim.warmup must be >= 0 steps, got -1"),
        (lambda: DigitsConfig(seed=2**32), r"data.seed must be in \[0, 2\^32\)"),
        (lambda: WandbConfig(project="x"), "wandb.project is not used with wandb.mode off"),
        (lambda: OptimConfig(ema=1.0), r"optim.ema must be in \(0, 1\)"),
    ],
)
def test_bad_values_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
