"""Named evaluation protocols: every choice that moves a published number, in one table.

A number is comparable only under one protocol, so each is printed with `label` and the definitions kept here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from seqvae.metrics import frame
from seqvae.metrics.perceptual import BACKBONES, Lpips, weights_file


class Metric(NamedTuple):
    """A score of predicted frames. The definition is printed beside its numbers."""

    label: str
    score: Callable[[Tensor, Tensor], Tensor]  # (..., F, C, H, W) twice -> (..., F)
    definition: str
    higher_is_better: bool = True
    per_frame: bool = True  # False: one number per video, which each of its frames has


def _of_video(pred: Tensor, target: Tensor) -> Tensor:
    """`psnr_of_video` in the shape of a frame metric: each frame has its video's number."""
    return frame.psnr_of_video(pred, target)[..., None].expand(pred.shape[:-3])


_PSNR = Metric("PSNR (dB)", frame.psnr, "per frame and channel, 10 log10(1 / mse), at most 100 dB, then the mean")
_SSIM = Metric(
    "SSIM",
    frame.ssim,
    "11x11 Gaussian window, sigma 1.5, valid convolution, data range 1, per channel, then the mean",
)
_SSIM_SVG = Metric(
    "SSIM",
    frame.ssim_svg,
    "7x7 uniform window, sample covariance, data range 2 (scikit-image's old default), per channel, then the mean",
)
_PSNR_MCVD = Metric(
    "PSNR (dB)",
    _of_video,
    "10 log10(1 / mse), mse over all predicted frames and channels of a video, at most 100 dB; one number per video",
    per_frame=False,
)
_SSIM_MCVD = Metric(
    "SSIM", frame.ssim_mcvd, "11x11 Gaussian window, sigma 1.5, valid convolution, of 8-bit grey frames"
)
_SSIM_MCVD_BINARY = Metric("SSIM", frame.ssim_mcvd_binary, _SSIM_MCVD.definition + ", pixels rounded to 0 or 1 first")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How predictions are made and scored."""

    name: str
    data: str  # what the run was trained on
    test_set: str  # name of the dataset whose test split is predicted
    options: dict[str, object] = field(default_factory=dict)  # of that dataset, where they are part of the protocol
    n_past: int  # frames the model sees
    n_future: int  # frames it predicts and is scored on
    n_samples: int  # futures per video
    n_videos: int
    best_by: str | None = None  # the metric that picks the best sample of a video; None: each metric for itself
    psnr: Metric = _PSNR
    ssim: Metric = _SSIM
    lpips: tuple[str, int | None] | None = ("alex", None)  # network, and the size frames are resized to; None: no LPIPS
    frechet_samples: int = 1  # predicted videos per real one in a Frechet distance; 0: the protocol has none
    norm: str = "eval mode"  # normalisation layers while predicting
    source: str = ""
    note: str = ""  # about the run it is applied to, printed with the name

    def __post_init__(self) -> None:
        for name in ("n_past", "n_future", "n_samples", "n_videos"):
            if getattr(self, name) < 1:
                raise ValueError(f"protocol {self.name}: {name} must be >= 1, got {getattr(self, name)}")

    def definitions(self) -> dict[str, object]:
        """Plain values, for metrics.json."""
        plain = {name: value for name, value in vars(self).items() if not isinstance(value, Metric | dict)}
        return plain | {"psnr": self.psnr.definition, "ssim": self.ssim.definition, "options": dict(self.options)}


_SRVP = dict(name="srvp-2020", source="Franceschi et al. 2020, arXiv:2002.09219")
_SVG = dict(
    name="svg-2018",
    source="Denton & Fergus 2018, arXiv:1802.07687",
    best_by="ssim",
    ssim=_SSIM_SVG,
    lpips=None,
    frechet_samples=0,
    norm="eval mode (the original predicts with batch statistics, so that its predictions depend on the batch)",
)
_MCVD = dict(
    name="mcvd-2022",
    source="Voleti et al. 2022, arXiv:2205.09853",
    n_samples=10,
    n_videos=256,
    psnr=_PSNR_MCVD,
    lpips=("alex", 128),
    frechet_samples=10,
)
_BAIR = dict(data="bair", test_set="bair", n_past=2, n_future=28)
_KTH = dict(data="kth", test_set="kth", n_past=10, n_future=30)
# The fixed set where a protocol has none of its own; svg-2018 never fixed one, so ours is.
_FIXED = dict(data="moving_mnist", test_set="smmnist_srvp", n_past=5)
_SVG_DIGITS = dict(data="moving_mnist", test_set="moving_mnist", n_past=5, n_future=25)
_SVG_OPTIONS = {
    "glyphs": "mnist",
    "digit_size": 32,
    "n_digits": 2,
    "deterministic": False,
    "min_speed": 0,
    "max_speed": 4,
}
PROTOCOLS = {
    (p.name, p.data): p
    for p in (
        Protocol(**_SRVP, **_FIXED, n_future=20, n_samples=100, n_videos=5000),
        Protocol(**_SRVP, **_BAIR, n_samples=100, n_videos=256),
        Protocol(**_SRVP, **_KTH, n_samples=100, n_videos=1000),
        Protocol(**_SVG, **_SVG_DIGITS, options=_SVG_OPTIONS, n_samples=100, n_videos=256),
        Protocol(**_SVG, **_BAIR, n_samples=100, n_videos=256),
        Protocol(**_MCVD, **_SVG_DIGITS | {"n_future": 10}, options=_SVG_OPTIONS, ssim=_SSIM_MCVD_BINARY),
        Protocol(**_MCVD, **_BAIR, ssim=_SSIM_MCVD),
    )
}
VIDEO_LENGTHS = {"pushing": 30}  # frames
NAMES = tuple(dict.fromkeys(name for name, _ in PROTOCOLS))


def own_protocol(data: str, n_past: int, n_future: int, n_samples: int, n_videos: int) -> Protocol:
    """For data without a published protocol: lengths of the run's config, metrics as srvp-2020.

    Videos of VIDEO_LENGTHS are predicted to their end, as BAIR's are.
    """
    n_future = VIDEO_LENGTHS[data] - n_past if data in VIDEO_LENGTHS else n_future
    sizes = dict(n_past=n_past, n_future=n_future, n_samples=n_samples, n_videos=n_videos)
    return Protocol(name="own", data=data, test_set=data, **sizes)


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
        vgg: LPIPS on VGG16 as well, which no protocol here counts.
    """
    metrics, left_out = {"psnr": protocol.psnr, "ssim": protocol.ssim}, []
    net, resize = protocol.lpips or ("alex", None)
    wanted = {"lpips": net} if protocol.lpips is not None else {}
    for key, net in (wanted | ({"lpips_vgg": "vgg"} if vgg else {})).items() if lpips != "off" else ():
        name = "LPIPS" if key == "lpips" else "LPIPS (VGG)"
        file = weights_file(BACKBONES[net])
        if lpips == "auto" and not file.exists():
            left_out.append(f"{name}: left out, {file.name} is not in {file.parent}; --lpips on downloads it")
            continue
        try:
            score = Lpips(net, device, resize=resize)
        except FileNotFoundError as error:
            left_out.append(f"{name}: left out, {error}")
            continue
        size = "at their own size" if resize is None else f"resized to {resize}"
        definition = f"LPIPS v0.1, {net}net features, frames {size}, grey repeated to three channels; lower is better"
        metrics[key] = Metric(name, score, definition, higher_is_better=False)
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
