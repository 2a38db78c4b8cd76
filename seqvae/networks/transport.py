"""The networks of the family `transport`: what names the next displacement, and what writes onto the canvases.

Shapes: R rows (samples by videos), L layers, H W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.networks.blocks import normed_conv

PATCH = 4  # the write gate works on patches of 4x4 pixels


class Core(nn.Module):
    """An LSTM cell between two small layers; the last one also sees the input directly."""

    def __init__(self, in_features: int, rnn_size: int, out_features: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(in_features, rnn_size), nn.LeakyReLU(0.2))
        self.cell = nn.LSTMCell(rnn_size, rnn_size)
        self.mix = nn.Sequential(nn.Linear(2 * rnn_size, rnn_size), nn.LeakyReLU(0.2))
        self.head = nn.Linear(rnn_size, out_features)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(R, L, in_features) and the state, two of (R, L, rnn_size), to (R, L, out_features) and the next state."""
        rows = x.shape[:2]
        embedded = self.embed(x.flatten(0, 1))
        hidden, cell = self.cell(embedded, (state[0].flatten(0, 1), state[1].flatten(0, 1)))
        out = self.head(self.mix(torch.cat([hidden, embedded], -1)))
        return out.unflatten(0, rows), (hidden.unflatten(0, rows), cell.unflatten(0, rows))


class WriteGate(nn.Module):
    """A small U-Net: from a frame, the picture expected in its place and the canvases to a gate per pixel and layer."""

    def __init__(self, in_channels: int, layers: int, width: int, image_size: int) -> None:
        super().__init__()
        coarsest = (image_size // (4 * PATCH)) ** 2
        self.fine = nn.Sequential(nn.PixelUnshuffle(PATCH), normed_conv(PATCH**2 * in_channels, width))
        self.down_half = normed_conv(width, width, kernel=4, stride=2)
        self.down_quarter = normed_conv(width, width, kernel=4, stride=2)
        self.everywhere = nn.Sequential(
            *(nn.Flatten(), nn.Linear(coarsest * width, 256), nn.ReLU()),
            *(nn.Linear(256, coarsest * width), nn.ReLU()),
        )
        self.up_half = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.up_fine = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.head = nn.Sequential(
            normed_conv(2 * width, width), nn.Conv2d(width, PATCH**2 * layers, 3, 1, 1), nn.PixelShuffle(PATCH)
        )

    def forward(self, seen: Tensor) -> Tensor:
        """(R, in_channels, H, W) -> (R, L, H, W) in [0, 1], float32 whatever autocast does."""
        fine = self.fine(seen)
        half = self.down_half(fine)
        quarter = self.down_quarter(half)
        up = torch.cat([self.everywhere(quarter).view_as(quarter), quarter], 1)
        up = torch.cat([F.relu(self.up_half(up)), half], 1)
        return self.head(torch.cat([F.relu(self.up_fine(up)), fine], 1)).to(seen.dtype).sigmoid()
