"""DCGAN encoder and decoder with skips (SVG's dcgan_64.py and dcgan_128.py; 32 px is the same with a level fewer).

Shapes: B frames in any order (videos x time), C channels, S image size, W width, G = g_dim. The encoder halves the
picture until it is 4x4.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.networks.blocks import LEAK, add_shared, build_norm, head_norm, level_channels, normed


class DCGANEncoder(nn.Module):
    """Frames (B, C, S, S) -> features (B, G) in [-1, 1] and one skip per level, fine to coarse."""

    def __init__(self, image_size: int, channels: int, g_dim: int, width: int, norm: str) -> None:
        super().__init__()
        widths = level_channels(image_size, width)
        self.levels = nn.ModuleList(
            normed(nn.Conv2d(c_in, c_out, 4, 2, 1), norm, c_out) for c_in, c_out in zip([channels, *widths], widths)
        )
        self.head = nn.Sequential(nn.Conv2d(widths[-1], g_dim, 4), head_norm(norm, g_dim), nn.Tanh())

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
        self.head = normed(nn.ConvTranspose2d(g_dim, widths[0], 4), norm, widths[0])
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
        for i, conv in enumerate(self.levels):
            if halves is None:
                d = conv(d)
            else:
                d = F.conv_transpose2d(d, conv.weight[: d.shape[1]], stride=2, padding=1)
                d = add_shared(d, halves[i])
            if i < len(self.norms):
                d = self.norms[i](d)
        return d
