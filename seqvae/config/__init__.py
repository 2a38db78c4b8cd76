"""The settings of a run: one tree of frozen dataclasses, and JSON both ways. Nothing here imports torch.

Every field is a flag of train.py (`--model.z-dim 32`), explained by the comment on its line. Of four groups there are
variants, each with the fields that it reads and no others: a dataset, a model family, a decoder, an objective.
"""

# ruff: noqa: F401 -- the variants are imported from here

import dataclasses
import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from seqvae.config import data, likelihoods, models, objectives
from seqvae.config.base import MAX_SEED, Settings
from seqvae.config.data import (
    IMAGE_SIZES,
    AnyDataConfig,
    BairConfig,
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    KthConfig,
    MnistConfig,
    MovingMnistConfig,
    PushingConfig,
    VideoFolderConfig,
)
from seqvae.config.likelihoods import (
    AnyLikelihoodConfig,
    DiscreteConfig,
    GaussianConfig,
    LikelihoodConfig,
    LogisticMixtureConfig,
    OptimalSigmaConfig,
    PredictedSigmaConfig,
    SharedSigmaConfig,
)
from seqvae.config.models import AnyModelConfig, ImageConfig, ModelConfig, SceneConfig, SvgConfig, TransportConfig
from seqvae.config.objectives import (
    AnyObjectiveConfig,
    ElboConfig,
    GecoConfig,
    GecoIwaeConfig,
    IwaeConfig,
    ObjectiveConfig,
)

# The groups that come in variants: the field that names one, and the class of each name.
VARIANTS: dict[str, tuple[str, dict[str, type[Settings]]]] = {
    "data": ("name", data.BY_NAME),
    "model": ("family", models.BY_NAME),
    "likelihood": ("name", likelihoods.BY_NAME),
    "objective": ("name", objectives.BY_NAME),
}


def variant(group: str, name: str, **settings) -> Settings:
    """The variant `name` of a group, with these settings."""
    key, classes = VARIANTS[group]
    return classes[name](**{key: name}, **settings)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """Adam, as every method here uses it."""

    group = "optim"

    train: Literal["all", "prior"] = "all"  # prior: a learned prior alone; the rest stays as --init-from has it
    steps: int = 180_000  # optimizer steps in all; SVG: 300 epochs of 600
    batch_size: int = 100  # clips per step, over all processes
    accumulate: int = 1  # passes a step is made in, each of batch-size / accumulate clips: less memory, the same step
    lr: float = 2e-3  # learning rate (SVG: 0.002); a learned sigma takes ten times as much
    beta2: float = 0.999  # decay of Adam's mean of squared gradients; lower where their size changes fast
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate after warm-up; cosine ends at 0
    warmup: int = 0  # steps of linear warm-up
    grad_clip: float | None = None  # largest gradient norm of each parameter group, nats per frame; None: no clipping
    ema: float | None = None  # decay of averaged weights, used for validation and evaluation; None: none are kept

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "accumulate", "lr", "grad_clip")
        self.require("finite and > 0", lambda value: 0 < value < math.inf, *positive)
        self.require(">= 0 steps", lambda value: value >= 0, "warmup")
        self.require("in [0, 1)", lambda value: 0 <= value < 1, "beta2")
        self.require("in (0, 1)", lambda value: 0 < value < 1, "ema")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Settings):
    """Where and how fast; none of it changes what is computed, up to rounding."""

    group = "compute"

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    # bfloat16 convolutions; auto: on CUDA; native: also on CPUs that compute in it; off: float32, on CUDA TF32
    amp: Literal["auto", "native", "bf16", "off"] = "auto"
    # torch.compile of the model's parts that gain by it; auto: on CUDA with a C compiler
    compile: Literal["auto", "on", "off"] = "auto"
    checkpoint_activations: bool = False  # compute frame features and pictures again in the backward pass: less memory
    data: Literal["auto", "host", "device"] = "auto"  # where training clips are made; auto: on the GPU, if possible
    workers: int = 2  # data loading processes on the host, for each training process; 0 makes clips between steps
    timeout: int = 600  # seconds that processes wait for one another; validation and samples have to fit in

    def __post_init__(self) -> None:
        self.require(">= 1 second", lambda value: value >= 1, "timeout")
        self.require("in [0, 1024]", lambda value: 0 <= value <= 1024, "workers")


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Seed and intervals, in optimizer steps."""

    group = "run"

    seed: int = 0  # weights, noise and the order of clips
    log_every: int = 50  # a line of metrics.jsonl: means over the steps since the line before
    sample_every: int = 5_000  # a GIF of predictions for validation clips
    checkpoint_every: int = 2_000  # validation, then a checkpoint
    n_valid: int = 256  # validation clips

    def __post_init__(self) -> None:
        self.require(">= 1", lambda value: value >= 1, "log_every", "sample_every", "checkpoint_every", "n_valid")
        self.require("in [0, 2^32)", lambda value: 0 <= value < MAX_SEED, "seed")


@dataclass(frozen=True, kw_only=True)
class WandbConfig(Settings):
    """Weights & Biases; metrics.jsonl is written in any case."""

    group = "wandb"

    mode: Literal["off", "offline", "online"] = "off"  # offline needs no network: files under the run folder
    project: str | None = None  # name of the project there; None: seqvae

    def __post_init__(self) -> None:
        if self.mode == "off":
            self.refuse("is not used with wandb.mode off", "project")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a training run."""

    run_dir: str | None = None  # where it is kept, and resumed from; None: runs/<preset>
    init_from: str | None = None  # another run's folder, whose weights a new run starts from (all but the likelihood's)
    dry_run: bool = False  # print the settings, sizes and cost, and stop
    data: AnyDataConfig = field(default_factory=DigitsConfig)
    model: AnyModelConfig = field(default_factory=SvgConfig)
    likelihood: AnyLikelihoodConfig = field(default_factory=OptimalSigmaConfig)
    objective: AnyObjectiveConfig = field(default_factory=ElboConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    run: RunSettings = field(default_factory=RunSettings)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    __pydantic_config__ = Settings.__pydantic_config__

    def __post_init__(self) -> None:
        if self.data.images == self.model.needs_context:
            holds = "single images" if self.data.images else "videos"
            predicts = "videos" if self.model.needs_context else "single images"
            raise ValueError(
                f"data.name {self.data.name} holds {holds}, and models of family {self.model.family} are for "
                f"{predicts}; take another preset, train.py --help lists them"
            )
        if self.data.images and self.objective.loss_on == "future":
            raise ValueError("objective.loss-on future needs context frames, and an image has none; pass all")
        if self.optim.train == "prior" and self.model.prior != "learned":
            raise ValueError("optim.train prior needs a prior that learns; pass --model.prior learned")
        self.objective.check_with(self.likelihood, self.model)


# May differ when a run is resumed: how long (which stretches a cosine schedule, and the time GECO has to reach its
# tolerance), how often (GECO takes the error of held-out clips from validations), where.
MAY_CHANGE = {
    *("optim.steps", "run.log_every", "run.sample_every", "run.checkpoint_every", "wandb.mode", "wandb.project"),
    *("compute.workers", "compute.device", "compute.data", "compute.checkpoint_activations", "compute.timeout"),
    *("data.root", "run_dir", "dry_run"),
}


@functools.cache
def _adapter() -> TypeAdapter:
    return TypeAdapter(RunConfig)


def to_json(cfg: RunConfig) -> dict[str, object]:
    """Plain nested dict, for json.dump."""
    return _adapter().dump_python(cfg, mode="json")


def from_json(tree: dict[str, object]) -> RunConfig:
    """The reverse; ValueError naming the first bad field if it is not one of ours."""
    for group, (key, _) in VARIANTS.items():
        part = tree.get(group) if isinstance(tree, dict) else None
        if isinstance(part, dict) and key not in part:
            raise ValueError(
                f"{group}.{key} is missing, so an earlier version made it; train again, or use that version"
            )
    try:
        return _adapter().validate_python(tree)
    except ValidationError as error:
        raise ValueError(one_line(error)) from None


def one_line(error: ValidationError, flag: str = "") -> str:
    """The first of the errors that pydantic found, with the field's name as flags have it, `flag` in front."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    chosen = path.pop(1) if path and path[0] in VARIANTS and len(path) > 1 else None
    where = flag + ".".join(path).replace("_", "-") or "a run's settings"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "missing":
        return f"{where} is required: there is no value that suits all data"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} is not a setting" + (f" of {chosen}" if chosen else "")
    if first["type"] == "union_tag_invalid":
        key, classes = VARIANTS[path[0]]
        return f"{where}.{key} is {first['ctx']['tag']!r}, expected one of {', '.join(classes)}"
    message = first["msg"].removeprefix("Input ")
    return f"{where} {message}, got {first['input']!r}"


def read_config(run_dir: Path) -> RunConfig:
    """Settings of a run folder; FileNotFoundError where there is no run, ValueError where they cannot be read."""
    path = run_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{run_dir} holds no run ({path.name} is missing); train.py makes one, see train.py --help"
        )
    return read_settings(path)


def read_settings(path: Path) -> RunConfig:
    """Settings of a run's config.json; ValueError where they cannot be read."""
    try:
        return from_json(json.loads(path.read_text())["config"])
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: it does not hold the settings of a run") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a settings file of this version: {error}") from None


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`field: old -> new` for each field that differs and may not when a run is resumed."""
    flat_old, flat_new = _flat(to_json(old)), _flat(to_json(new))
    # Batch norm takes its statistics from each pass; without it a step is the same in any number of passes.
    may_change = MAY_CHANGE | (set() if new.model.batch_statistics else {"optim.accumulate"})
    return [
        f"{name}: {flat_old[name]} -> {flat_new[name]}"
        for name in flat_old
        if name in flat_new and name not in may_change and flat_old[name] != flat_new[name]
    ]


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    leaves: dict[str, object] = {}
    for name, value in tree.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves
