"""The settings of evaluate.py and predict.py; no torch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seqvae.extras import require

MAX_SCALE = 32  # screen pixels per pixel: 64 px are 2048 then
Format = Literal["gif", "apng", "mp4"]


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to evaluate, and how."""

    run_dirs: tuple[Path, ...] = ()  # folders that train.py or seqvae.export made, or names in pretrained/
    # auto: the published one for its data, or else own; several: each in its own folder
    protocol: tuple[Literal["auto", "srvp-2020", "svg-2018", "mcvd-2022", "own"], ...] = ("auto",)
    n_samples: int | None = None  # futures per video; None: the protocol's (own: 10)
    n_videos: int | None = None  # test videos, from the first; None: the protocol's (own: 64)
    # with own: the published 10,000 x 20 frames of Moving MNIST instead of the run's test split
    test_set: Literal["mnist_test_seq"] | None = None
    # for a run trained with actions: predict under the true ones, their training mean, or the next test video's;
    # several: each in its own folder, and a table that compares them
    actions: tuple[Literal["true", "none", "shuffled"], ...] = ("true",)
    save_predictions: bool = False  # keep every predicted frame in predictions.h5, beside the results
    from_predictions: tuple[Path, ...] = ()  # score such files (docs/predictions.md) instead of runs
    lpips: Literal["auto", "on", "off"] = "auto"  # on: download its backbone (233 MB) if need be; auto: if it is there
    lpips_vgg: bool = False  # LPIPS on VGG16 features (backbone 528 MB) beside the protocol's AlexNet
    fvd_weights: Path | None = None  # TorchScript I3D file, for FVD; None: no FVD
    r3d18: bool = False  # Frechet distance on torchvision's r3d_18, which is no FVD
    oracle: bool = True  # Moving MNIST: score the true simulator's futures too, the ceiling of every model
    # posterior samples per video of the importance-weighted bound; 1: without it; None: 10
    n_importance: int | None = None
    batch_size: int = 16  # videos at once; changes no number
    seed: int = 0  # of the predictions' noise
    checkpoint: Literal["best", "last"] = "best"  # best on validation, or the last one
    formats: tuple[Format, ...] = ("gif",)  # of moving pictures; mp4 needs the extra `mp4`
    gif_scale: int | None = None  # screen pixels per pixel; None: as many as make a picture 128 wide
    # where to write; None: RUN/evaluation/PROTOCOL, for a page that compares runs `comparison`
    out: Path | None = None
    data_root: Path | None = None  # folder of downloaded data, if it is not where the run had it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    amp: Literal["bf16", "off"] = "off"  # bf16: predict with convolutions in bfloat16, faster; scores stay float32
    compile: Literal["on", "off"] = "off"  # on: torch.compile encoder and decoder, which pays on a GPU

    def __post_init__(self) -> None:
        check_at_least_1(self, "n_samples", "n_videos", "n_importance", "batch_size")
        check_pictures(self.formats, self.gif_scale)
        if not self.run_dirs and not self.from_predictions:
            raise ValueError("nothing to evaluate; name a run's folder (python evaluate.py runs/demo)")
        if self.run_dirs and self.from_predictions:
            raise ValueError("runs and --from-predictions at once; evaluate them one after the other")
        if self.from_predictions:
            names = ("save_predictions", "test_set", "actions", "checkpoint", "n_importance", "seed", "amp", "compile")
            self.refuse(names, "is about a model, and --from-predictions has none; drop it")
        if self.lpips_vgg and self.lpips == "off":
            raise ValueError("--lpips-vgg asks for LPIPS and --lpips off for none; drop one")
        if self.test_set is not None and self.protocol not in (("auto",), ("own",)):
            raise ValueError(f"--test-set {self.test_set} is scored under own, not {' '.join(self.protocol)}; drop one")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2^32), got {self.seed}")
        if self.save_predictions or self.from_predictions:
            require("h5py", "hdf5", f"--{'save' if self.save_predictions else 'from'}-predictions")
        if self.lpips == "on" or self.lpips_vgg:
            require("torchmetrics", "lpips", "--lpips-vgg" if self.lpips_vgg else "--lpips on")

    def refuse(self, names: Sequence[str], why: str) -> None:
        """ValueError for the first of these fields that was given."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"--{'no-' if defaults[name] is True else ''}{name.replace('_', '-')} {why}")

    @property
    def subjects(self) -> tuple[Path, ...]:
        """What is evaluated: runs or files."""
        return self.run_dirs or self.from_predictions


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What to predict, and how."""

    run: Path  # folder that train.py or seqvae.export made, or a name in pretrained/
    clip: Path  # video file, or folder of frames
    # .npy file of the actions that lead to each frame after the first, for a model trained with actions; several: a
    # future under each of them, side by side
    actions: tuple[Path, ...] = ()
    n_samples: int | None = None  # futures; None: 4, or 1 without a latent, or 1 per file of several --actions
    n_future: int | None = None  # frames to predict; None: as many as in training
    seed: int = 0  # of the predictions' noise
    checkpoint: Literal["best", "last"] = "best"  # best on validation, or the last one
    formats: tuple[Format, ...] = ("gif",)  # of moving pictures; mp4 needs the extra `mp4`
    gif_scale: int | None = None  # screen pixels per pixel; None: as many as make a picture 128 wide
    out: Path | None = None  # where to write; None: RUN/predictions/CLIP (weights by name: below runs/pretrained)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self) -> None:
        check_at_least_1(self, "n_samples", "n_future")
        check_pictures(self.formats, self.gif_scale)
        names = [path.stem for path in self.actions]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"--actions: {names.count(name)} files are named {name}; they are told apart by name")


def check_at_least_1(settings: object, *names: str) -> None:
    """ValueError for the first of these fields that is set and less than 1."""
    for name in names:
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(settings, name)}")


def check_pictures(formats: Sequence[str], gif_scale: int | None) -> None:
    """ValueError for pictures that cannot be made."""
    if gif_scale is not None and not 1 <= gif_scale <= MAX_SCALE:
        raise ValueError(f"--gif-scale must be {'<= ' + str(MAX_SCALE) if gif_scale > 1 else '>= 1'}, got {gif_scale}")
    if "mp4" in formats:
        require("av", "mp4", "--formats mp4")
