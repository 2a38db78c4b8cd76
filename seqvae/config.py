"""The settings of a run: one tree of frozen dataclasses, its presets, and JSON both ways.

Every field is a flag of train.py (`--model.z-dim 32`). A field that nothing would read is refused by name.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from seqvae import models
from seqvae.likelihoods import ANALYTIC, WITH_SIGMA, LikelihoodConfig, build_likelihood
from seqvae.models import AnyModelConfig, SvgConfig, VideoModel
from seqvae.networks import IMAGE_SIZES
from seqvae.objectives import ObjectiveConfig

MAX_SEED = 2**32


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which videos, and how they are cut. Unset options take the dataset's default."""

    # digits: drawn here, nothing to download; moving_mnist: real ones; bair, pushing: robot pushing, filmed or
    # rendered; kth: people who move; video_folder: your own; mnist, cifar10: single images
    name: Literal["digits", "moving_mnist", "bair", "pushing", "kth", "video_folder", "mnist", "cifar10"] = "digits"
    root: str | None = None  # all but digits: folder of the files; data
    n_past: int = 5  # frames to condition on; 0 for images
    n_future: int = 10  # frames to predict in training; 1 for images
    image_size: int = 64  # 32, 64, 128 or 256 pixels
    seed: int = 0  # clip i of a split is a function of (seed, split, i) alone
    glyphs: Literal["mnist", "drawn"] | None = None  # moving_mnist: where the digits come from; mnist
    digit_size: int | None = None  # moving_mnist: 28 (exact reflection, the fixed test set) or 32 (SVG); digits: any
    n_digits: int | None = None  # digits per clip; moving_mnist 2, digits 1
    deterministic: bool | None = None  # keep the speed at a bounce instead of drawing a new one; False
    min_speed: int | None = None  # smallest |dx| and |dy|, pixels per frame; 0
    max_speed: int | None = None  # largest |dx| and |dy|, pixels per frame; 4
    flip: bool | None = None  # bair, pushing: turn training clips left to right at random; False
    stride: int | None = None  # video_folder: take every stride-th frame of a video; 1
    source: Literal["torchvision", "jpeg"] | None = None  # cifar10: the published files, or a lossy copy; torchvision

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.images:
            if (self.n_past, self.n_future) != (0, 1):
                raise ValueError(
                    f"{self.name} holds single images, not videos of data.n-past {self.n_past} and data.n-future "
                    f"{self.n_future} frames; pass --data.n-past 0 --data.n-future 1"
                )
            if self.seed != 0:
                raise ValueError(f"data.seed is not used by {self.name}, whose images are fixed; drop it")
        elif self.n_past < 1:
            raise ValueError(f"data.n-past must be >= 1 frame to condition on, got {self.n_past}")
        if self.n_future < 1:
            raise ValueError(
                f"data.n-past is {self.n_past} of the clip's {self.seq_len} frames (data.n-future {self.n_future}): "
                "none is left to predict; give data.n-future >= 1"
            )
        if self.root is not None and self.name == "digits":
            raise ValueError("data.root is not used by digits, which are drawn; drop it (or pass None)")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"data.seed must be in [0, 2^32), got {self.seed}")
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(
                f"data.image-size is {self.image_size}; networks exist for {', '.join(map(str, IMAGE_SIZES))}"
            )

    def options(self) -> dict[str, object]:
        """The dataset's own options, those that were set."""
        names = (
            "glyphs",
            "digit_size",
            "n_digits",
            "deterministic",
            "min_speed",
            "max_speed",
            "flip",
            "stride",
            "source",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def arguments(self) -> dict[str, object]:
        """Of datasets.load_dataset, all but the split."""
        whole = {"name": self.name, "root": self.root, "seq_len": self.seq_len}
        return whole | {"image_size": self.image_size, "seed": self.seed} | self.options()

    @property
    def images(self) -> bool:
        """Whether clips are single images: no context, no recurrence."""
        return self.name in ("mnist", "cifar10")

    @property
    def n_drawn(self) -> int:
        """F, frames of a training clip that the model draws: all but the first, or the image itself."""
        return self.seq_len - (not self.images)

    @property
    def seq_len(self) -> int:
        """Frames of a training clip."""
        return self.n_past + self.n_future


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam, as every method here uses it."""

    steps: int = 180_000  # optimizer steps in all; SVG: 300 epochs of 600
    batch_size: int = 100  # clips per step, over all processes
    accumulate: int = 1  # passes a step is made in, each of batch-size / accumulate clips: less memory, the same step
    lr: float = 2e-3  # SVG's; a learned sigma takes ten times as much
    beta2: float = 0.999  # decay of Adam's mean of squared gradients; lower where their size changes fast
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate after warm-up; cosine ends at 0
    warmup: int = 0  # steps of linear warm-up
    grad_clip: float | None = None  # largest gradient norm of each parameter group, nats per frame; None: no clipping
    ema: float | None = None  # decay of averaged weights, used for validation and evaluation; None: none are kept

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "lr", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"optim.{name.replace('_', '-')} must be finite and > 0, got {value}")
        if self.warmup < 0:
            raise ValueError(f"optim.warmup must be >= 0 steps, got {self.warmup}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"optim.beta2 must be in [0, 1), got {self.beta2}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"optim.ema must be in (0, 1), got {self.ema}")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where and how fast; none of it changes what is computed, up to rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    amp: Literal["auto", "bf16", "off"] = "auto"  # bfloat16 convolutions; auto: on CUDA; off: float32, there TF32
    compile: Literal["auto", "on", "off"] = (
        "auto"  # torch.compile of the model's parts that gain by it; auto: on CUDA with a C compiler
    )
    checkpoint_activations: bool = False  # compute frame features and pictures again in the backward pass: less memory
    data: Literal["auto", "host", "device"] = "auto"  # where training clips are made; auto: on CUDA there, if it can be
    workers: int = 2  # data loading processes on the host, for each training process; 0 makes clips between steps
    timeout: int = 600  # seconds that processes wait for one another; validation and samples have to fit in

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.timeout < 1:
            raise ValueError(f"compute.timeout must be >= 1 second, got {self.timeout}")
        if not 0 <= self.workers <= 1024:
            raise ValueError(f"compute.workers must be in [0, 1024], got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Seed and intervals, in optimizer steps."""

    seed: int = 0  # weights, noise and the order of clips
    log_every: int = 50  # a line of metrics.jsonl: means over the steps since the line before
    sample_every: int = 5_000  # a GIF of predictions for validation clips
    checkpoint_every: int = 2_000  # validation, then a checkpoint
    n_valid: int = 256  # validation clips

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name in ("log_every", "sample_every", "checkpoint_every", "n_valid"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name.replace('_', '-')} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"run.seed must be in [0, 2^32), got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases; metrics.jsonl is written in any case."""

    mode: Literal["off", "offline", "online"] = "off"  # offline needs no network: files under the run folder
    project: str | None = None  # name of the project there; seqvae

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.project is not None and self.mode == "off":
            raise ValueError("wandb.project is not used with wandb.mode off; drop it (or pass None)")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run of train.py, whole."""

    run_dir: str | None = None  # where it is kept, and resumed from; runs/<preset>
    init_from: str | None = None  # another run's folder, whose weights a new run starts from (all but the likelihood's)
    dry_run: bool = False  # print the settings, sizes and cost, and stop
    data: DataConfig = field(default_factory=DataConfig)
    model: AnyModelConfig = field(default_factory=SvgConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    run: RunSettings = field(default_factory=RunSettings)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        objective, likelihood = self.objective, self.likelihood
        if self.data.images == self.model.needs_context:
            holds = "single images" if self.data.images else "videos"
            predicts = "videos" if self.model.needs_context else "single images"
            raise ValueError(
                f"data.name {self.data.name} holds {holds}, and models of family {self.model.family} are for "
                f"{predicts}; take another preset, train.py --help lists them"
            )
        if self.data.images and objective.loss_on == "future":
            raise ValueError("objective.loss-on future needs context frames, and an image has none; pass all")
        if objective.name != "elbo" and not self.model.has_latent:
            raise ValueError(
                f"objective {objective.name} weighs latents, and this model has none; use objective.name elbo"
            )
        if objective.name == "iwae" and likelihood.name in ANALYTIC:
            raise ValueError(
                f"objective iwae weighs samples under one density, and {likelihood.name} takes its sigma from the "
                "samples themselves; use likelihood.name shared-sigma"
            )
        if objective.name in ("geco", "geco-iwae"):
            if likelihood.name != "gaussian":
                raise ValueError(
                    f"objective {objective.name} bounds a squared error: use likelihood.name gaussian, "
                    f"not {likelihood.name}"
                )
            for name, why in (("sigma", "its multiplier takes sigma's place"), ("dequantise", "it has no density")):
                if getattr(likelihood, name):
                    raise ValueError(f"likelihood.{name} is not used by objective {objective.name}, {why}; drop it")
        elif likelihood.name != "gaussian":
            for name, neutral in (("beta", (None, 1.0)), ("svg_beta", (None,))):
                if getattr(objective, name) not in neutral:
                    raise ValueError(
                        f"objective.{name.replace('_', '-')} goes with likelihood.name gaussian: {likelihood.name} "
                        "calibrates itself, its KL weighs 1; drop it (or pass None)"
                    )
        if not self.model.has_latent:
            for name, unset in (("beta", 1.0), ("svg_beta", None), ("kl_warmup", 0), ("kl_cycle", 0), ("free_bits", 0)):
                if getattr(objective, name) not in (None, unset):
                    flag = f"objective.{name.replace('_', '-')}"
                    raise ValueError(f"{flag} weighs a KL, and this model has no latent; drop it (or pass None)")

    def resolved(self) -> "RunConfig":
        """The same with every default that depends on another field written out (the dataset's own: train.py)."""
        likelihood = self.likelihood
        if likelihood.name in WITH_SIGMA and likelihood.sigma is None and "geco" not in self.objective.name:
            likelihood = dataclasses.replace(likelihood, sigma=1.0)
        return dataclasses.replace(
            self,
            model=self.model.resolved(),
            likelihood=likelihood.resolved(),
            objective=self.objective.resolved(),
        )


def build_model(cfg: RunConfig, channels: int) -> VideoModel:
    """The model of a run, with the weights that run.seed gives it; `channels` is the dataset's."""
    torch.manual_seed(cfg.run.seed)
    likelihood = build_likelihood(cfg.likelihood.name, channels, **cfg.likelihood.options())
    sizes = {"channels": channels, "image_size": cfg.data.image_size, "n_past": cfg.data.n_past}
    return models.build_model(cfg.model, likelihood, **sizes)


# May differ when a run goes on: how long (which stretches a cosine schedule, and the time GECO has to reach its
# tolerance), how often (GECO takes the error of held-out clips from validations), where.
MAY_CHANGE = {
    *("optim.steps", "run.log_every", "run.sample_every", "run.checkpoint_every", "wandb.mode", "wandb.project"),
    *("compute.workers", "compute.device", "compute.data", "compute.checkpoint_activations", "compute.timeout"),
    *("data.root", "run_dir", "dry_run"),
}


def to_json(cfg: RunConfig) -> dict[str, object]:
    """Plain nested dict, for json.dump."""
    return TypeAdapter(RunConfig).dump_python(cfg, mode="json")


def from_json(tree: dict[str, object]) -> RunConfig:
    """The reverse; ValueError naming the first bad field if it is not one of ours."""
    model = tree.get("model") if isinstance(tree, dict) else None
    if isinstance(model, dict) and "family" not in model:
        raise ValueError("model.family is missing, so an earlier version made it; train again, or use that version")
    try:
        return TypeAdapter(RunConfig).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def read_config(run_dir: Path) -> RunConfig:
    """Settings of a run folder; FileNotFoundError where there is no run, ValueError where they cannot be read."""
    path = run_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{run_dir} holds no run ({path.name} is missing); train.py makes one, see train.py --help"
        )
    try:
        return from_json(json.loads(path.read_text())["config"])
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: it does not hold the settings of a run") from None
    except ValueError as error:
        raise ValueError(f"{path} is no settings file of this version: {error}") from None


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`field: old -> new` for each field that differs and may not when a run goes on."""
    flat_old, flat_new = _flat(to_json(old.resolved())), _flat(to_json(new.resolved()))
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
