"""LPIPS: distance between deep features of two frames, and how pretrained weights are found or reported missing.

Shapes: (..., C, H, W) frames in [0, 1] -> (...) distances >= 0. Lower is better.
"""

import http.client
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.extras import require
from seqvae.metrics.frame import score_frames

# Where torchvision gets its ImageNet weights, 233 and 528 MB; torchvision itself takes a second to import.
BACKBONES = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
SMALLEST = {"alex": 31, "vgg": 16}  # px; below, a pooling layer has nothing left
# Pixel values compared at once. Features of both frames, normalised and squared, take about 13 (alex) and 200 (vgg)
# values for each: 55 and 105 MB.
CHUNK_VALUES = {"alex": 2**20, "vgg": 2**17}


class Lpips:
    """LPIPS v0.1 with AlexNet ("alex") or VGG16 ("vgg") features; grey frames are repeated to three channels.

    Args:
        net: "alex" or "vgg".
        device: where the network lives; frames are moved there.
        resize: None compares frames as they are (srvp-2020). 128 is mcvd-2022, see `resize_8_bit`.

    Raises:
        FileNotFoundError: the backbone is neither in torch.hub's folder nor to be downloaded.
        ValueError: the extra `lpips` is not installed.

    Source: Zhang et al. 2018, arXiv:1801.03924. The linear weights come with torchmetrics.
    """

    def __init__(self, net: str = "alex", device: torch.device | str = "cpu", *, resize: int | None = None) -> None:
        if net not in BACKBONES:
            raise ValueError(f"no LPIPS of {net}, there are: {', '.join(BACKBONES)}")
        require("torchmetrics", "lpips", "LPIPS")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.name, self.device, self.resize = net, torch.device(device), resize
        metric = load_pretrained(
            BACKBONES[net], lambda: LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)
        )
        self.net = metric.net.to(self.device)

    @torch.no_grad()
    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        """Distance of each frame.

        Args:
            pred, target: (..., C, H, W), floating point in [0, 1], one shape, C 1 or 3, H and W >= 31 (alex), 16 (vgg).

        Returns:
            (...,) float32 on the network's device.

        Raises:
            ValueError: as seqvae.metrics.frame, other channels, or frames too small.
        """
        size = pred.shape[-2:] if self.resize is None else (self.resize, self.resize)
        if pred.ndim >= 3 and (pred.shape[-3] not in (1, 3) or min(size) < SMALLEST[self.name]):
            least = SMALLEST[self.name]
            raise ValueError(
                f"LPIPS ({self.name}) takes 1 or 3 channels of at least {least}x{least} px, got {tuple(pred.shape)}"
            )
        pred, target = pred.to(self.device), target.to(self.device)
        return score_frames(self._distance, pred, target, CHUNK_VALUES[self.name])

    def _distance(self, pred: Tensor, target: Tensor) -> Tensor:
        pred, target = self._prepare(pred), self._prepare(target)
        return self.net(pred, target, normalize=True).flatten()  # (n, 1, 1, 1) -> (n,)

    def _prepare(self, frames: Tensor) -> Tensor:
        frames = frames.float()
        if self.resize is not None:
            frames = resize_8_bit(frames, self.resize)
        return frames.expand(-1, 3, -1, -1)


def resize_8_bit(frames: Tensor, size: int) -> Tensor:
    """Bilinear resize between 8-bit images: floor(255 x) before, rounded after.

    What mcvd-2022 does through PIL (torchvision's Resize of a PIL image), to within one level of 255: PIL also rounds
    between its horizontal and vertical pass. Antialiased where frames get smaller, as PIL's is.

    Args:
        frames: (n, C, H, W) in [0, 1].

    Returns:
        (n, C, size, size), multiples of 1/255.
    """
    levels = (255 * frames).floor()
    return F.interpolate(levels, (size, size), mode="bilinear", antialias=True).round() / 255


def load_pretrained(url: str, build: Callable[[], nn.Module]) -> nn.Module:
    """build(), after making sure that the weights of `url` lie where torchvision looks for them.

    Raises:
        FileNotFoundError: they do not, and the download failed; one line with file, folder, reason and URL.
        ValueError: a file lies there that cannot be read.
    """
    file = weights_file(url)
    if not file.exists():
        prefix = torch.hub.HASH_REGEX.search(file.name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), prefix and prefix.group(1), progress=sys.stderr.isatty())
        except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network, wrong hash, broken answer
            raise FileNotFoundError(
                f"{file.name} is not in {file.parent} and could not be downloaded ({_first_line(error)}); "
                f"copy it there from {url}"
            ) from error
    try:
        return build()
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{file} cannot be read as weights ({_first_line(error)}); delete it and run again, "
            f"or replace it from {url}"
        ) from error


def weights_file(url: str) -> Path:
    """Where torchvision keeps the weights of `url`: torch.hub's checkpoints folder, under TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
