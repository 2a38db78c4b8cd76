"""Frechet distance between real and predicted videos, on features of a video network.

Shapes: B videos, T frames (context and prediction together), C channels; F features.
Units:  squared feature units; lower is better. Comparable only between equal networks, T and numbers of videos: the
        distance of finite sets is biased upwards, by about 1 / number of videos.
Only I3D's logits make it FVD (Unterthiner et al. 2018, arXiv:1812.01717).
"""

import functools
import hashlib
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.distributed import collect
from seqvae.metrics.frame import check_frames, without_tf32
from seqvae.metrics.perceptual import load_pretrained, weights_file

CHUNK_VALUES = 2**24  # of resized video, 64 MB: four videos of 25 frames in I3D
I3D_LOGITS = 400  # Kinetics-400
I3D_FRAMES = 9  # the last pooling spans two frames, each made of eight
I3D_SOURCE = "i3d_torchscript.pt of github.com/universome/fvd-comparison"
# StyleGAN-V's file resizes and applies softmax unless told not to.
I3D_OPTIONS = {"rescale": False, "resize": False, "return_features": True}


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """A video network with its preprocessing, under the name its distance may be printed with."""

    name: str
    definition: str  # to print beside the number
    sha256: str  # of the weights file
    num_features: int
    net: Callable[[Tensor], Tensor]  # (B, 3, T, size, size) -> (B, num_features)
    size: int  # px
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    min_frames: int = 1

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """(B, T, C, H, W), floating point in [0, 1], C 1 or 3 -> (B, num_features) float32, in chunks of videos.

        Raises:
            ValueError: another shape, too few frames, integers, NaN.
        """
        check_frames(videos=videos)
        if videos.ndim != 5 or videos.shape[2] not in (1, 3) or videos.shape[1] < self.min_frames:
            raise ValueError(
                f"videos are {tuple(videos.shape)}, expected (B, T, C, H, W) with C 1 or 3 "
                f"and T >= {self.min_frames} for {self.name}"
            )
        at_once = max(1, CHUNK_VALUES // (videos.shape[1] * 3 * self.size**2))
        with torch.autocast(self.device.type, enabled=False), without_tf32():
            chunks = [self.net(self._prepare(v)) for v in videos.split(at_once)]
        return torch.cat(chunks)

    def _prepare(self, videos: Tensor) -> Tensor:
        n, t = videos.shape[:2]
        frames = videos.to(self.device, torch.float32).flatten(0, 1)  # (n T, C, H, W)
        frames = F.interpolate(frames, (self.size, self.size), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(x, device=self.device).view(3, 1, 1) for x in (self.mean, self.std))
        frames = (frames - mean) / std  # grey becomes three channels
        return frames.unflatten(0, (n, t)).transpose(1, 2)  # (n, 3, T, size, size)


def i3d(path: Path | str, device: torch.device | str = "cpu") -> VideoFeatures:
    """FVD's features: 400 Kinetics logits of a TorchScript I3D, 224x224 bilinear, values in [-1, 1].

    Args:
        path: a file the person names; none comes with this program.
        device: where the network lives; videos are moved there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no TorchScript, does not take (1, 3, 16, 224, 224), or gives something else than 400 logits.
    """
    path, device = Path(path), torch.device(device)
    remedy = f"expected a TorchScript I3D, for example {I3D_SOURCE}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file, {remedy}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated; published I3D files need it
            net = torch.jit.load(str(path), map_location=device).eval()
        arguments = {a.name for a in net.forward.schema.arguments}
        options = {name: value for name, value in I3D_OPTIONS.items() if name in arguments}
    except (RuntimeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no TorchScript network ({_reason(error)}), {remedy}") from error
    features = VideoFeatures(
        name="FVD",
        definition="Frechet distance on 400 Kinetics logits of I3D, 224x224 bilinear, context and prediction",
        sha256=_sha256(path),
        num_features=I3D_LOGITS,
        net=functools.partial(net, **options),
        size=224,
        mean=(0.5, 0.5, 0.5),  # [0, 1] to [-1, 1]
        std=(0.5, 0.5, 0.5),
        device=device,
        min_frames=I3D_FRAMES,
    )
    try:
        logits = features(torch.zeros(1, 16, 3, 224, 224))
        shape = tuple(logits.shape)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError) as error:  # AttributeError: the output is not a tensor
        raise ValueError(f"{path} failed on a video (1, 3, 16, 224, 224) ({_reason(error)}), {remedy}") from error
    if shape != (1, I3D_LOGITS):
        raise ValueError(f"{path} gives {shape} for one video, expected (1, {I3D_LOGITS}); {remedy}")
    if (logits >= 0).all() and abs(float(logits.sum()) - 1) < 1e-3:
        raise ValueError(f"{path} gives probabilities that sum to 1, expected logits before the softmax; {remedy}")
    return features


def r3d18(device: torch.device | str = "cpu") -> VideoFeatures:
    """512 pooled features of torchvision's r3d_18 (Kinetics-400), 112x112 bilinear, its own mean and deviation.

    A stand-in that needs no file from elsewhere. Its numbers are no FVD and are never called so.
    torchvision's preset resizes to 128x171 and crops the middle; here the whole square frame is kept.

    Raises:
        FileNotFoundError: the weights are neither in torch.hub's folder nor to be downloaded.

    Source: Tran et al. 2018, arXiv:1711.11248.
    """
    from torchvision.models.video import R3D_18_Weights, r3d_18  # takes a second, and few evaluations ask for it

    weights, device = R3D_18_Weights.KINETICS400_V1, torch.device(device)
    net = load_pretrained(weights.url, lambda: r3d_18(weights=weights))
    num_features, net.fc = net.fc.in_features, nn.Identity()
    preset = weights.transforms()
    return VideoFeatures(
        name="Frechet distance on r3d_18 features",
        definition="512 pooled features of torchvision's r3d_18, 112x112 bilinear, context and prediction; not FVD",
        sha256=_sha256(weights_file(weights.url)),
        num_features=num_features,
        net=net.to(device).eval(),
        size=112,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        device=device,
    )


class Moments:
    """Count, sum and sum of outer products of features, in float64 on the CPU: mean and covariance in one pass."""

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self.total = torch.zeros(num_features, dtype=torch.float64)
        self.outer = torch.zeros(num_features, num_features, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """features: (n, F)."""
        features = features.detach().cpu().double()
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    def __add__(self, other: "Moments") -> "Moments":
        both = Moments(len(self.total))
        for m in (self, other):
            both.count, both.total, both.outer = both.count + m.count, both.total + m.total, both.outer + m.outer
        return both

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """(F,) and (F, F), the sample covariance."""
        mean = self.total / self.count
        return mean, (self.outer - self.count * mean.outer(mean)) / (self.count - 1)


class FrechetResult(NamedTuple):
    """One distance and what is needed to read it."""

    distance: float
    floor: float | None  # between two halves of the real videos; None below four of them
    n_real: int
    n_fake: int
    warning: str | None  # to print beside the number


class FrechetDistance:
    """Collects features of real and predicted videos, in any number of batches; holds no video.

    Example:
        >>> frechet = FrechetDistance(r3d18())
        >>> frechet.add(truth, real=True)  # (B, T, C, H, W) in [0, 1], context and future
        >>> frechet.add(torch.cat([context, future], dim=1), real=False)
        >>> frechet.result().distance

    Args:
        features: maps (B, T, C, H, W) to (B, num_features); anything with that attribute and call will do.
    """

    def __init__(self, features: VideoFeatures) -> None:
        self.features = features
        self.halves = [Moments(features.num_features) for _ in range(2)]  # real videos 0, 2, 4, .. and 1, 3, 5, ..
        self.fake = Moments(features.num_features)

    def add(self, videos: Tensor, *, real: bool) -> None:
        """videos: (B, T, C, H, W) in [0, 1], context and prediction (or truth). More samples of a video: more calls.

        Raises:
            ValueError: as the features, or features of wrong shape or not finite.
        """
        features = self.features(videos)
        expected, finite = (len(videos), self.features.num_features), bool(features.isfinite().all())
        if features.shape != expected or not finite:
            found = f"{tuple(features.shape)}{'' if finite else ' with NaN or infinities'}"
            raise ValueError(f"features are {found}, expected finite {expected}")
        if not real:
            self.fake.add(features)
            return
        odd = sum(half.count for half in self.halves) % 2
        self.halves[odd].add(features[::2])
        self.halves[1 - odd].add(features[1::2])

    def gather(self) -> None:
        """Adds up what several processes have collected, each a range of videos that starts with an even one."""
        parts = collect((*self.halves, self.fake))
        *self.halves, self.fake = (functools.reduce(operator.add, moments) for moments in zip(*parts))

    def result(self) -> FrechetResult:
        """The distance, the floor that real videos have to themselves, and a warning where the numbers are few.

        The floor compares half as many videos as the distance does, so it lies above the floor of all of them.

        Raises:
            ValueError: fewer than two real or predicted videos.
        """
        real, fake, size = self.halves[0] + self.halves[1], self.fake, self.features.num_features
        if min(real.count, fake.count) < 2:
            raise ValueError(
                f"a Frechet distance needs at least 2 real and 2 predicted videos, got {real.count} and {fake.count}"
            )
        warning = None
        if min(real.count, fake.count) <= size:  # n videos give a covariance of rank n - 1
            warning = (
                f"{real.count} real and {fake.count} predicted videos for {size} features: covariances are singular "
                f"and the distance is biased upwards; compare it only at these numbers"
            )
        distance = frechet_distance(*real.mean_and_covariance(), *fake.mean_and_covariance())
        floor = None
        if min(half.count for half in self.halves) >= 2:
            a, b = (half.mean_and_covariance() for half in self.halves)
            floor = frechet_distance(*a, *b)
        return FrechetResult(distance, floor, real.count, fake.count, warning)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    With S = R R^T for each, the eigenvalues of S_a S_b are the squared singular values of R_a^T R_b, so the trace of
    the root is the sum of those: also for singular covariances, where a matrix square root is ill-conditioned.

    Args:
        mean_a, mean_b: (F,) float64.
        cov_a, cov_b: (F, F) float64, symmetric, positive semi-definite.

    Returns:
        >= 0; rounding below 0 is cut.

    Source: Dowson & Landau 1982, doi:10.1016/0047-259X(82)90077-X.
    """
    roots = []
    for cov in (cov_a, cov_b):
        values, vectors = torch.linalg.eigh(cov)
        roots.append(vectors * values.clamp(min=0).sqrt())  # (F, F)
    trace_of_root = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_of_root
    return max(0.0, float(distance))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript puts the cause last, after a traceback of its own; to a broken file it adds a paragraph of guesses.
    return (lines or [type(error).__name__])[-1].split(". ")[0][:200]
