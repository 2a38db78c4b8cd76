"""VGG encoder and decoder with skips (SVG's vgg_64.py and vgg_128.py, which it uses on BAIR).

Shapes: B frames in any order (videos x time), C channels, S image size, W width, G = g_dim. 3x3 convolutions, two a
level in the first two levels and three in the others; the skips are full-size: S, S / 2, ... 8 px.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.networks.blocks import (
    add_shared,
    features,
    first_maps,
    head_norm,
    level_channels,
    norm_and_leak,
    normed,
    normed_conv,
)


class VGGEncoder(nn.Module):
    """Frames (B, C, S, S) -> features (B, G) in [-1, 1] and one skip per level, fine to coarse."""

    def __init__(self, image_size: int, channels: int, g_dim: int, width: int, norm: str) -> None:
        super().__init__()
        widths = level_channels(image_size, width)
        self.levels = nn.ModuleList(
            nn.Sequential(
                normed_conv(c_in, c_out, norm), *(normed_conv(c_out, c_out, norm) for _ in range(1 if i < 2 else 2))
            )
            for i, (c_in, c_out) in enumerate(zip([channels, *widths], widths))
        )
        self.head = nn.Sequential(nn.Conv2d(widths[-1], g_dim, 4), head_norm(norm, g_dim), nn.Tanh())

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips, frames = [], frames.to(memory_format=torch.channels_last)
        for level in self.levels:
            skips.append(level(frames))  # (B, W * 2^i, S / 2^i, S / 2^i)
            frames = F.max_pool2d(skips[-1], 2)
        return features(frames, self.head), skips  # (B, G)


class VGGDecoder(nn.Module):
    """Features (B, G) and skips -> likelihood parameters (B, C, S, S).

    Each level starts with a convolution of concat(d enlarged, skip), computed as conv_d(d) + conv_s(skip); conv_s runs
    once per distinct skip frame (`skip_terms`), however many frames share it.
    """

    def __init__(
        self, image_size: int, channels: int, g_dim: int, width: int, norm: str, with_skips: bool = True
    ) -> None:
        super().__init__()
        widths, inputs = level_channels(image_size, width)[::-1], 2 if with_skips else 1  # coarse to fine
        self.head = normed(nn.ConvTranspose2d(g_dim, widths[0], 4), norm, widths[0])
        self.firsts = nn.ModuleList(nn.Conv2d(inputs * c, c, 3, padding=1) for c in widths)
        self.rests = nn.ModuleList()
        for i, (c, c_next) in enumerate(zip(widths, [*widths[1:], channels])):
            finest, from_fine = i == len(widths) - 1, len(widths) - 1 - i
            # As the encoder's levels, mirrored: three convolutions, two in the two finest; the last one has no norm.
            middle = [] if from_fine < 2 else [normed_conv(c, c, norm)]
            last = nn.Conv2d(c, c_next, 3, padding=1) if finest else normed_conv(c, c_next, norm)
            self.rests.append(nn.Sequential(*norm_and_leak(norm, c), *middle, last))

    def skip_terms(self, skips: list[Tensor]) -> list[Tensor]:
        """Encoder skips of B frames, fine to coarse -> what they add at each level, coarse to fine, bias included."""
        return [
            F.conv2d(skip, conv.weight[:, skip.shape[1] :], conv.bias, padding=1)
            for conv, skip in zip(self.firsts, skips[::-1])
        ]

    def forward(self, g: Tensor, skip_terms: list[Tensor] | None = None) -> Tensor:
        """See `DCGANDecoder.forward`."""
        d = first_maps(g, self.head)  # (B, W', 4, 4)
        for i, (first, rest) in enumerate(zip(self.firsts, self.rests)):
            d = F.interpolate(d, scale_factor=2, mode="nearest")
            if skip_terms is None:
                d = first(d)
            else:
                d = add_shared(F.conv2d(d, first.weight[:, : d.shape[1]], padding=1), skip_terms[i])
            d = rest(d)  # (B, W' / 2, ...), finally (B, C, S, S)
        return d
