"""What a frame says about where layers have moved: correlations of the frame with every canvas, by Fourier transform.

Shapes: R rows, L layers, C H W, D = 2 * reach + 1 displacements per axis. Displacements are in pixels, (row, column).
"""

import math

import torch
from torch import Tensor, nn

from seqvae.likelihoods.base import at_least_float32
from seqvae.models.base import float32

VELOCITY_WAVES = (16.0, 8.0, 4.0, 2.0)  # px per frame


class Evidence(nn.Module):
    """Correlations and features of them, without weights; no gradient to the canvases.

    The correlation of a frame with a canvas displaced by d equals the canvas's own mass when the whole canvas appears
    there. It is given twice: for the frame, and for what the other layers leave of it. Where those have moved is
    guessed one layer after the other, each at its likeliest displacement, or two layers would follow the same thing.
    """

    def __init__(self, image_size: int, layers: int, reach: int) -> None:
        super().__init__()
        self.layers, self.reach = layers, reach
        self.padded = 16 * math.ceil((image_size + 2 * reach) / 16)  # so that displacements do not wrap
        self.register_buffer("displacements", torch.arange(-reach, reach + 1.0), persistent=False)
        self.register_buffer("velocity_waves", torch.tensor(VELOCITY_WAVES), persistent=False)
        n = len(self.displacements)
        self.n_features = 2 * (n * n + 2 * n + 4 * len(VELOCITY_WAVES) + 5)

    @torch.no_grad()
    def forward(
        self, spectrum: Tensor, canvases: Tensor, velocity: Tensor, p: Tensor, trust: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Evidence of one frame.

        Args:
            spectrum: (R, C, S, S // 2 + 1) of the frame, see `spectrum`.
            canvases: (R, L, C, H, W).
            velocity: (R, L, 2) the last displacements.
            p: (R, L, D, D) probabilities of the displacements, from the prior.
            trust: (2,) nats per unit of correlation with the frame, and with what the others leave.

        Returns:
            The correlations less their maxima, (R, L, 2, D, D), and features of them, (R, L, n_features).
        """
        n = len(self.displacements)
        mass = canvases.square().sum((2, 3, 4)) + 1e-4  # (R, L)
        seen = self.spectrum(canvases)  # (R, L, C, S, S // 2 + 1)
        found = self._correlation(spectrum[:, None], seen, self.reach)  # (R, L, D, D)
        overlaps = found.new_zeros(len(found), self.layers, self.layers, 4 * self.reach + 1, 4 * self.reach + 1)
        if self.layers > 1:
            first, second = torch.triu_indices(self.layers, self.layers, 1, device=found.device)
            pairs = self._correlation(seen[:, first], seen[:, second], 2 * self.reach)
            overlaps[:, first, second], overlaps[:, second, first] = pairs, pairs.flip((-2, -1))
        where, expected = list(velocity.round().long().unbind(1)), p.log().to(found)
        for layer in range(self.layers):
            left = found[:, layer] - self._hidden(overlaps, where)[:, layer]
            likely = (trust[0] * found[:, layer] + trust[1] * left + expected[:, layer]).flatten(1).argmax(-1)
            where[layer] = torch.stack([likely // n, likely % n], -1) - self.reach
        found = torch.stack([found, found - self._hidden(overlaps, where)], 2)  # (R, L, 2, D, D)

        share = found / (mass[..., None, None, None] + 1)
        peak = share.amax((-2, -1))  # (R, L, 2)
        found = found - found.amax((-2, -1), keepdim=True)
        chance = found.flatten(3).softmax(-1).unflatten(-1, (n, n))
        rows, columns = chance.sum(-1), chance.sum(-2)  # (R, L, 2, D)
        mean = torch.stack([rows @ self.displacements, columns @ self.displacements], -1)  # (R, L, 2, 2)
        parts = [2 * (share - peak[..., None, None]).flatten(2), rows.flatten(2), columns.flatten(2)]
        parts += [mean.flatten(2) / 4, (mean - velocity[:, :, None]).flatten(2), peak]
        return found, torch.cat([*parts, fourier(mean.flatten(2), self.velocity_waves)], -1)

    @torch.no_grad()
    def spectrum(self, frames: Tensor) -> Tensor:
        """Fourier transform (..., C, H, W) -> (..., C, S, S // 2 + 1), padded so that displacements do not wrap."""
        with float32(frames):
            return torch.fft.rfft2(at_least_float32(frames), s=(self.padded, self.padded))

    def _correlation(self, seen: Tensor, canvases: Tensor, reach: int) -> Tensor:
        """From spectra: what is seen against canvases displaced by up to `reach`, (..., 2 reach + 1, same)."""
        found = torch.fft.irfft2((seen * canvases.conj()).sum(-3), s=(self.padded, self.padded))
        return found.roll((reach, reach), (-2, -1))[..., : 2 * reach + 1, : 2 * reach + 1]

    def _hidden(self, overlaps: Tensor, where: list[Tensor]) -> Tensor:
        """Part of each correlation due to the other canvases, (R, L, D, D), if those moved by `where`, L of (R, 2).

        Args:
            overlaps: (R, L, L, 2 D - 1, 2 D - 1) correlation of canvas j with canvas l at every difference.
        """
        n = len(self.displacements)
        places = torch.arange(n, device=overlaps.device) - torch.stack(where, 1)[..., None] + self.reach  # (R, L, 2, D)
        rows, columns = (places[:, :, axis, None].expand(-1, -1, self.layers, -1) for axis in (0, 1))
        rows = rows[..., None].expand(*rows.shape, overlaps.shape[-1])
        columns = columns[..., None, :].expand(*columns.shape[:3], n, n)
        return overlaps.gather(-2, rows).gather(-1, columns).sum(1)


def fourier(x: Tensor, wavelengths: Tensor) -> Tensor:
    """Sines and cosines of (..., n) at every wavelength, (..., 2 * n * len(wavelengths))."""
    angle = x[..., None] * (2 * math.pi / wavelengths)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
