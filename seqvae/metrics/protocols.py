"""Metrics and named evaluation protocols: every choice that moves a published number, in two tables.

A number is comparable only under one protocol, so each is printed with `label` and the definitions kept here. Tables,
plots and files read all they say of a metric from its entry: a new one is its entry here and its function in `frame`.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seqvae.metrics import frame
from seqvae.metrics.perceptual import BACKBONES, Lpips, weights_file

MEAN_IMAGE_CLIPS = 256  # training clips whose frames make the baseline "mean training image"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of predicted frames, and what to print with it."""

    key: str  # in metrics.json, metrics.csv and published rows
    name: str
    unit: str = ""
    digits: int = 4  # after the point, in tables
    # (..., F, C, H, W) twice -> (..., F); None: `build_metrics` makes it
    score: Callable[[Tensor, Tensor], Tensor] | None
    definition: str
    higher_is_better: bool = True
    per_frame: bool = True  # False: one number per video, which each of its frames has
    oracle_limit: float | None = None  # highest score of an oracle's frame; the simulator may hit frames exactly
    between_samples: bool = False  # also measures how far two samples of a video are apart
    network: tuple[str, int | None] | None = None  # LPIPS's backbone, and the size frames are resized to

    @property
    def label(self) -> str:
        """With the unit: "PSNR (dB)"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


def _of_video(pred: Tensor, target: Tensor) -> Tensor:
    """`psnr_of_video` in the shape of a frame metric: each frame has its video's number."""
    return frame.psnr_of_video(pred, target)[..., None].expand(pred.shape[:-3])


def _lpips(key: str, name: str, net: str, resize: int | None = None) -> Metric:
    size = "at their own size" if resize is None else f"resized to {resize}"
    definition = f"LPIPS v0.1, {net}net features, frames {size}, grey repeated to three channels; lower is better"
    more = dict(higher_is_better=False, between_samples=key == "lpips", network=(net, resize))
    return Metric(key=key, name=name, score=None, definition=definition, **more)


PSNR = Metric(
    key="psnr",
    name="PSNR",
    unit="dB",
    digits=2,
    score=frame.psnr,
    definition="per frame and channel, 10 log10(1 / mse), at most 100 dB, then the mean",
    oracle_limit=40.0,
)
SSIM = Metric(
    key="ssim",
    name="SSIM",
    score=frame.ssim,
    definition="11x11 Gaussian window, sigma 1.5, valid convolution, data range 1, per channel, then the mean",
)
PSNR_OF_CHANGES = Metric(
    key="psnr_of_changes",
    name="PSNR of changes",
    unit="dB",
    digits=2,
    score=frame.psnr_of_changes,
    definition="PSNR over the pixels that differ by more than 10 of 255 levels between any two predicted frames of the "
    "truth, in any channel",
)
PSNR_OF_REST = dataclasses.replace(
    PSNR_OF_CHANGES,
    key="psnr_of_rest",
    name="PSNR of the rest",
    score=frame.psnr_of_rest,
    definition="PSNR over the pixels that PSNR of changes leaves out",
)
LPIPS = _lpips("lpips", "LPIPS", "alex")
LPIPS_VGG = _lpips("lpips_vgg", "LPIPS (VGG)", "vgg")
# As srvp-2020 and `own` define them.
METRICS = {m.key: m for m in (PSNR, SSIM, PSNR_OF_CHANGES, PSNR_OF_REST, LPIPS, LPIPS_VGG)}
_SSIM_SVG = dataclasses.replace(
    SSIM,
    score=frame.ssim_svg,
    definition="7x7 uniform window, sample covariance, data range 2 (scikit-image's old default), per channel, "
    "then the mean",
)
_PSNR_MCVD = dataclasses.replace(
    PSNR,
    score=_of_video,
    definition="10 log10(1 / mse), mse over all predicted frames and channels of a video, at most 100 dB; "
    "one number per video",
    per_frame=False,
)
_SSIM_MCVD = dataclasses.replace(
    SSIM,
    score=frame.ssim_mcvd,
    definition="11x11 Gaussian window, sigma 1.5, valid convolution, of 8-bit grey frames",
)
_SSIM_MCVD_BINARY = dataclasses.replace(
    SSIM,
    score=frame.ssim_mcvd_binary,
    definition=f"{_SSIM_MCVD.definition}, pixels rounded to 0 or 1 first",
)
_LPIPS_128 = _lpips("lpips", "LPIPS", "alex", resize=128)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How predictions are made and scored, and which runs it is for."""

    name: str
    data: str  # what the run was trained on
    requires: dict[str, object] = field(default_factory=dict)  # settings of that data, or the test set is another kind
    digit_size: int | None = None  # px of the test set's digits; a run trained on others is scored, and says so
    test_set: str  # name of the dataset whose test split is predicted
    options: dict[str, object] = field(default_factory=dict)  # of that dataset, where they are part of the protocol
    n_past: int  # observed frames
    n_future: int  # frames that are predicted and scored
    n_samples: int  # futures per video
    n_videos: int
    metrics: tuple[Metric, ...] = (PSNR, SSIM, LPIPS)
    best_by: str | None = None  # the metric that picks the best sample of a video; None: each metric for itself
    frechet_samples: int = 1  # predicted videos per real one in a Frechet distance; 0: the protocol has none
    norm: str = "eval mode"  # normalisation layers while predicting
    source: str = ""
    note: str = ""  # about the run it is applied to, printed with the name

    def __post_init__(self) -> None:
        for name in ("n_past", "n_future", "n_samples", "n_videos"):
            if getattr(self, name) < 1:
                raise ValueError(f"protocol {self.name}: {name} must be >= 1, got {getattr(self, name)}")

    @property
    def frame_metrics(self) -> dict[str, Metric]:
        """By key, those that need no network."""
        return {metric.key: metric for metric in self.metrics if metric.network is None}

    def definitions(self) -> dict[str, object]:
        """Plain values, for metrics.json."""
        plain = {name: value for name, value in vars(self).items() if name != "metrics"}
        return plain | {metric.key: metric.definition for metric in self.metrics}


_SRVP = dict(name="srvp-2020", source="Franceschi et al. 2020, arXiv:2002.09219")
_SVG = dict(
    name="svg-2018",
    source="Denton & Fergus 2018, arXiv:1802.07687",
    best_by="ssim",
    metrics=(PSNR, _SSIM_SVG),
    frechet_samples=0,
    norm="eval mode (the original predicts with batch statistics, so that its predictions depend on the batch)",
)
_MCVD = dict(
    name="mcvd-2022",
    source="Voleti et al. 2022, arXiv:2205.09853",
    n_samples=10,
    n_videos=256,
    frechet_samples=10,
)
_BAIR = dict(data="bair", test_set="bair", n_past=2, n_future=28)
_KTH = dict(data="kth", test_set="kth", n_past=10, n_future=30)
_DIGITS = dict(glyphs="mnist", n_digits=2, deterministic=False, min_speed=0, max_speed=4)
_MOVING_MNIST = dict(data="moving_mnist", requires={"image_size": 64, **_DIGITS}, n_past=5)
# SRVP's fixed test set. svg-2018 never fixed one, so ours is the first videos of our own test split.
_SRVP_DIGITS = dict(**_MOVING_MNIST, test_set="smmnist_srvp", digit_size=28)
_SVG_DIGITS = dict(**_MOVING_MNIST, test_set="moving_mnist", digit_size=32, options={"digit_size": 32, **_DIGITS})
# Of the protocols that a run's data meets, the first one with its size of digits is the default.
PROTOCOLS = {
    (p.name, p.data): p
    for p in (
        Protocol(**_SRVP, **_SRVP_DIGITS, n_future=20, n_samples=100, n_videos=5000),
        Protocol(**_SRVP, **_BAIR, n_samples=100, n_videos=256),
        Protocol(**_SRVP, **_KTH, n_samples=100, n_videos=1000),
        Protocol(**_SVG, **_SVG_DIGITS, n_future=25, n_samples=100, n_videos=256),
        Protocol(**_SVG, **_BAIR, n_samples=100, n_videos=256),
        Protocol(**_MCVD, **_SVG_DIGITS, n_future=10, metrics=(_PSNR_MCVD, _SSIM_MCVD_BINARY, _LPIPS_128)),
        Protocol(**_MCVD, **_BAIR, metrics=(_PSNR_MCVD, _SSIM_MCVD, _LPIPS_128)),
    )
}
VIDEO_LENGTHS = {"pushing": 30}  # frames; predicted to their end under `own`, as BAIR's are


def own_protocol(
    data: str, n_past: int, n_future: int, n_samples: int, n_videos: int, test_set: str | None = None
) -> Protocol:
    """For data without a published protocol: metrics as srvp-2020.

    The camera of VIDEO_LENGTHS' videos stands still, so what changes in them is scored by itself too.

    Args:
        test_set: None: the data's own.
    """
    metrics = (PSNR, SSIM, PSNR_OF_CHANGES, PSNR_OF_REST, LPIPS) if data in VIDEO_LENGTHS else (PSNR, SSIM, LPIPS)
    sizes = dict(n_past=n_past, n_future=n_future, n_samples=n_samples, n_videos=n_videos)
    return Protocol(name="own", data=data, test_set=test_set or data, metrics=metrics, **sizes)


def find_protocol(name: str, data: str) -> Protocol:
    """The published protocol of that name for models of that data; ValueError lists what there is."""
    if (name, data) not in PROTOCOLS:
        known = ", ".join(f"{n} on {d}" for n, d in PROTOCOLS)
        raise ValueError(f"no protocol {name} on {data}, there are: {known}; any data can be scored under own")
    return PROTOCOLS[name, data]


def build_metrics(
    protocol: Protocol, lpips: str, device: torch.device, *, vgg: bool = False
) -> tuple[dict[str, Metric], list[str]]:
    """The protocol's metrics by key, and a sentence for each that is left out.

    Args:
        lpips: on downloads its backbone if need be, auto uses it where it lies already, off leaves it out.
        vgg: LPIPS on VGG16 as well, which no protocol here counts; frames are resized as for the protocol's own.
    """
    metrics, left_out = protocol.frame_metrics, []
    networks = [metric for metric in protocol.metrics if metric.network is not None]
    if vgg:
        resize = networks[0].network[1] if networks else None
        networks.append(_lpips(LPIPS_VGG.key, LPIPS_VGG.name, "vgg", resize))
    for metric in networks if lpips != "off" else ():
        net, resize = metric.network
        file = weights_file(BACKBONES[net])
        if lpips == "auto" and importlib.util.find_spec("torchmetrics") is None:
            left_out.append(f'{metric.name}: left out, it needs torchmetrics: pip install -e ".[lpips]"')
            continue
        if lpips == "auto" and not file.exists():
            left_out.append(f"{metric.name}: left out, {file.name} is not in {file.parent}; --lpips on downloads it")
            continue
        try:
            metrics[metric.key] = dataclasses.replace(metric, score=Lpips(net, device, resize=resize))
        except FileNotFoundError as error:
            left_out.append(f"{metric.name}: left out, {error}")
    return metrics, left_out


def label(protocol: Protocol, n_samples: int, n_videos: int) -> str:
    """Name to print, with what was left out: 'srvp-2020 (10 of 100 samples, 256 of 5000 videos)'.

    Raises:
        ValueError: more samples or videos than the protocol has; its best-of-N would be another quantity.
    """
    parts = []
    for unit, used, full in (("samples", n_samples, protocol.n_samples), ("videos", n_videos, protocol.n_videos)):
        if not 1 <= used <= full:
            raise ValueError(f"{protocol.name} has {full} {unit}, got {used}")
        if used < full:
            parts.append(f"{used} of {full} {unit}")
    parts += [protocol.note] if protocol.note else []
    return f"{protocol.name} ({', '.join(parts)})" if parts else protocol.name
