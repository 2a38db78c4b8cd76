"""DCGAN encoder and decoder with skips (SVG's dcgan_64.py and dcgan_128.py; 32 px has a level fewer, 256 px one more).

Shapes: B frames in any order (videos x time), C channels, S image size, W width, G = g_dim. The encoder halves the
picture until it is 4x4.
"""

import torch
from torch import Tensor, nn

from seqvae.networks.blocks import (
    Halving,
    add_shared,
    features,
    first_maps,
    head_norm,
    level_channels,
    norm_and_leak,
    normed,
)
from seqvae.networks.cpu_kernels import strided


class DCGANEncoder(nn.Module):
    """Frames (B, C, S, S) -> features (B, G) in [-1, 1] and one skip per level, fine to coarse."""

    def __init__(self, image_size: int, channels: int, g_dim: int, width: int, norm: str) -> None:
        super().__init__()
        widths = level_channels(image_size, width)
        self.levels = nn.ModuleList(
            normed(Halving(c_in, c_out), norm, c_out) for c_in, c_out in zip([channels, *widths], widths)
        )
        self.head = nn.Sequential(nn.Conv2d(widths[-1], g_dim, 4), head_norm(norm, g_dim), nn.Tanh())

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips, frames = [], frames.to(memory_format=torch.channels_last)
        for level in self.levels:
            frames = level(frames)  # (B, W * 2^i, S / 2^(i+1), S / 2^(i+1))
            skips.append(frames)
        return features(frames, self.head), skips  # (B, G)


class DCGANDecoder(nn.Module):
    """Features (B, G) and skips -> likelihood parameters (B, C, S, S); without skips a plain DCGAN generator.

    Each level is a transposed convolution of concat(d, skip). It is linear, so it is computed as conv_d(d) +
    conv_s(skip), and conv_s runs once per distinct skip frame (`skip_terms`), however many frames share it.
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
        self.norms = nn.ModuleList(norm_and_leak(norm, c_out) for c_out in widths[1:])

    def skip_terms(self, skips: list[Tensor]) -> list[Tensor]:
        """Encoder skips of B frames, fine to coarse -> what they add at each level, coarse to fine, bias included."""
        return [
            strided(skip, conv.weight[skip.shape[1] :], conv.bias, transposed=True)
            for conv, skip in zip(self.levels, skips[::-1])
        ]

    def forward(self, g: Tensor, skip_terms: list[Tensor] | None = None) -> Tensor:
        """
        Args:
            g: (B, G).
            skip_terms: of the method, for B frames or for B / N of them, shared by N equal runs of g; None: no skips.
        """
        d = first_maps(g, self.head)  # (B, W', 4, 4)
        for i, conv in enumerate(self.levels):
            d = strided(d, conv.weight[: d.shape[1]], conv.bias if skip_terms is None else None, transposed=True)
            if skip_terms is not None:
                d = add_shared(d, skip_terms[i])
            if i < len(self.norms):
                d = self.norms[i](d)
        return d
