"""Named evaluation protocols: every choice that moves a published number, in one table.

A number is comparable only under one protocol, so each is printed with `label` and the definitions kept here.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How predictions are made and scored. The strings are definitions to print beside the numbers."""

    name: str
    test_set: str  # name of the dataset whose test split is predicted
    n_past: int  # frames the model sees
    n_future: int  # frames it predicts and is scored on
    n_samples: int  # futures per video
    n_videos: int
    best_by: str | None = None  # the metric that picks the best sample of a video; None: each metric for itself
    psnr: str = "per frame and channel, 10 log10(1 / mse), at most 100 dB, then the mean"
    ssim: str = "11x11 Gaussian window, sigma 1.5, valid convolution, data range 1, per channel, then the mean"
    norm: str = "eval mode"  # normalisation layers while predicting
    source: str = ""

    def __post_init__(self) -> None:
        for field in ("n_past", "n_future", "n_samples", "n_videos"):
            if getattr(self, field) < 1:
                raise ValueError(f"protocol {self.name}: {field} must be >= 1, got {getattr(self, field)}")


# One entry per (protocol, test set): the lengths differ between test sets of one protocol.
PROTOCOLS = {
    (p.name, p.test_set): p
    for p in (
        Protocol(
            name="srvp-2020",
            test_set="smmnist_srvp",
            n_past=5,
            n_future=20,
            n_samples=100,
            n_videos=5000,
            source="Franceschi et al. 2020, arXiv:2002.09219",
        ),
        Protocol(
            name="srvp-2020",
            test_set="bair",
            n_past=2,
            n_future=28,
            n_samples=100,
            n_videos=256,
            source="Franceschi et al. 2020, arXiv:2002.09219",
        ),
    )
}


def own_protocol(test_set: str, n_past: int, n_future: int, n_samples: int, n_videos: int) -> Protocol:
    """For data without a published protocol: lengths of the run's config, metrics as srvp-2020."""
    return Protocol(
        name="own", test_set=test_set, n_past=n_past, n_future=n_future, n_samples=n_samples, n_videos=n_videos
    )


def find_protocol(name: str, test_set: str) -> Protocol:
    """The published protocol of that name on that test set; ValueError lists what there is."""
    if (name, test_set) not in PROTOCOLS:
        known = ", ".join(f"{n} on {t}" for n, t in PROTOCOLS)
        raise ValueError(f"no protocol {name} on {test_set}, there are: {known}; any data can be scored under own")
    return PROTOCOLS[name, test_set]


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
    return f"{protocol.name} ({', '.join(parts)})" if parts else protocol.name
