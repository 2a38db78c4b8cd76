"""DCGAN encoder and decoder with skips (SVG's dcgan_64.py and dcgan_128.py; 32 px is the same with a level fewer).

Shapes: B frames in any order (videos x time), C channels, S image size, W width, G = g_dim. The encoder halves the
picture until it is 4x4: W, 2W, 4W, 8W, 8W channels; 3 levels at 32 px, 4 at 64, 5 at 128.
"""

from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2


def level_channels(image_size: int, width: int) -> list[int]:
    """Channels after each stride-2 level, fine to coarse."""
    return [width * min(2**i, 8) for i in range(int(log2(image_size)) - 2)]


def build_norm(norm: str, channels: int) -> nn.Module:
    """`batch` as in SVG, or `group`: 16 channels a group or a few more, blind to the other frames of the batch."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(max(n for n in range(1, max(1, channels // 16) + 1) if channels % n == 0), channels)
    raise ValueError(f"model.norm is {norm!r}, expected batch or group")


class DCGANEncoder(nn.Module):
    """Frames (B, C, S, S) -> features (B, G) in [-1, 1] and one skip per level, fine to coarse."""

    def __init__(self, image_size: int, channels: int, g_dim: int, width: int, norm: str) -> None:
        super().__init__()
        widths = level_channels(image_size, width)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 4, 2, 1), build_norm(norm, c_out), nn.LeakyReLU(LEAK, inplace=True))
            for c_in, c_out in zip([channels, *widths], widths)
        )
        self.head = nn.Sequential(nn.Conv2d(widths[-1], g_dim, 4), _head_norm(norm, g_dim), nn.Tanh())

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for level in self.levels:
            frames = level(frames)  # (B, W * 2^i, S / 2^(i+1), S / 2^(i+1))
            skips.append(frames)
        return self.head(frames).flatten(1), skips  # (B, G)


class DCGANDecoder(nn.Module):
    """Features (B, G) and skips -> likelihood parameters (B, C, S, S); without skips a plain DCGAN generator.

    Each level is a transposed convolution of concat(d, skip). It is linear, so it is computed as conv_d(d) +
    conv_s(skip), and conv_s runs once per distinct skip frame (`skip_halves`), however many frames share it.
    """

    def __init__(
        self, image_size: int, channels: int, g_dim: int, width: int, norm: str, with_skips: bool = True
    ) -> None:
        super().__init__()
        widths, inputs = level_channels(image_size, width)[::-1], 2 if with_skips else 1  # coarse to fine
        self.head = nn.Sequential(
            nn.ConvTranspose2d(g_dim, widths[0], 4), build_norm(norm, widths[0]), nn.LeakyReLU(LEAK, inplace=True)
        )
        self.levels = nn.ModuleList(
            nn.ConvTranspose2d(inputs * c_in, c_out, 4, 2, 1) for c_in, c_out in zip(widths, [*widths[1:], channels])
        )
        self.norms = nn.ModuleList(
            nn.Sequential(build_norm(norm, c_out), nn.LeakyReLU(LEAK, inplace=True)) for c_out in widths[1:]
        )

    def skip_halves(self, skips: list[Tensor]) -> list[Tensor]:
        """Encoder skips of B frames, fine to coarse -> what they add at each level, coarse to fine, bias included."""
        return [
            F.conv_transpose2d(skip, conv.weight[skip.shape[1] :], conv.bias, stride=2, padding=1)
            for conv, skip in zip(self.levels, skips[::-1])
        ]

    def forward(self, g: Tensor, halves: list[Tensor] | None = None) -> Tensor:
        """
        Args:
            g: (B, G).
            halves: of `skip_halves`, for B frames or for B / N of them that N equal runs of g share; None: no skips.
        """
        d = self.head(g[:, :, None, None])  # (B, W', 4, 4)
        if halves is None:
            for i, conv in enumerate(self.levels):
                d = conv(d)
                d = self.norms[i](d) if i < len(self.norms) else d
            return d
        n_runs = g.shape[0] // halves[0].shape[0]  # not -1 below: compiled, torch 2.15 then returns a single run
        for i, (conv, half) in enumerate(zip(self.levels, halves)):
            d = F.conv_transpose2d(d, conv.weight[: d.shape[1]], stride=2, padding=1)
            d = d + half if n_runs == 1 else (d.unflatten(0, (n_runs, half.shape[0])) + half).flatten(0, 1)
            if i < len(self.norms):
                d = self.norms[i](d)
        return d


def _head_norm(norm: str, g_dim: int) -> nn.Module:
    """The feature is 1x1: group norm there would give every frame's code the same statistics, so it has none."""
    return build_norm(norm, g_dim) if norm == "batch" else nn.Identity()
