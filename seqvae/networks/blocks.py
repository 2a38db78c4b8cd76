"""Parts of encoders and decoders: widths of the levels, norms, heads, and the sum with terms that frames share."""

from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.networks.cpu_kernels import strided

LEAK = 0.2


def level_channels(image_size: int, width: int) -> list[int]:
    """Channels of each level, fine to coarse: W, 2W, 4W, 8W, 8W; 3 levels at 32 px, 4 at 64, 5 at 128, 6 at 256."""
    return [width * min(2**i, 8) for i in range(int(log2(image_size)) - 2)]


def build_norm(norm: str, channels: int) -> nn.Module:
    """`batch` as in SVG, or `group`: 16 channels a group or a few more, blind to the other frames of the batch."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(max(n for n in range(1, max(1, channels // 16) + 1) if channels % n == 0), channels)
    raise ValueError(f"model.norm is {norm!r}, expected batch or group")


def head_norm(norm: str, g_dim: int) -> nn.Module:
    """Norm of the 1x1 feature: none for group norm, which would give every frame's feature the same statistics."""
    return build_norm(norm, g_dim) if norm == "batch" else nn.Identity()


def norm_and_leak(norm: str, channels: int) -> nn.Sequential:
    """A norm and leaky ReLU."""
    return nn.Sequential(build_norm(norm, channels), nn.LeakyReLU(LEAK, inplace=True))


def normed(layer: nn.Module, norm: str, channels: int) -> nn.Sequential:
    """The layer, its norm and leaky ReLU."""
    return nn.Sequential(layer, *norm_and_leak(norm, channels))


def normed_conv(c_in: int, c_out: int, norm: str = "group", kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution with padding 1, its norm and leaky ReLU."""
    return normed(nn.Conv2d(c_in, c_out, kernel, stride, 1), norm, c_out)


def add_shared(d: Tensor, term: Tensor) -> Tensor:
    """d (B, ...) + term (B / N, ...), shared by N equal runs of d."""
    n_runs = d.shape[0] // term.shape[0]  # not -1 below: compiled, torch 2.15 then returns a single run
    return d + term if n_runs == 1 else (d.unflatten(0, (n_runs, term.shape[0])) + term).flatten(0, 1)


def features(maps: Tensor, head: nn.Sequential) -> Tensor:
    """An encoder's head, (B, C, 4, 4) -> (B, G): its 4x4 convolution covers the map, so it is a matrix product."""
    conv, norm, squash = head
    h = F.linear(maps.permute(0, 2, 3, 1).flatten(1), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
    return squash(norm(h[:, :, None, None])).flatten(1)


def first_maps(g: Tensor, head: nn.Sequential) -> Tensor:
    """A decoder's head, (B, G) -> (B, C, 4, 4): a transposed convolution of one pixel is a matrix product."""
    conv, norm, leak = head
    d = F.linear(g, conv.weight.flatten(1).t(), conv.bias.repeat_interleave(16)).unflatten(1, (-1, 4, 4))
    return leak(norm(d.to(memory_format=torch.channels_last)))


class Halving(nn.Conv2d):
    """4x4 convolution that halves height and width: `strided` as a module."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return strided(x, self.weight, self.bias)
