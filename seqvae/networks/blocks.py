"""What the encoders and decoders share: widths of their levels, norm layers, and adding what frames have in common."""

from math import log2

from torch import Tensor, nn

LEAK = 0.2


def level_channels(image_size: int, width: int) -> list[int]:
    """Channels of each level, fine to coarse: W, 2W, 4W, 8W, 8W; 3 levels at 32 px, 4 at 64, 5 at 128."""
    return [width * min(2**i, 8) for i in range(int(log2(image_size)) - 2)]


def build_norm(norm: str, channels: int) -> nn.Module:
    """`batch` as in SVG, or `group`: 16 channels a group or a few more, blind to the other frames of the batch."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(max(n for n in range(1, max(1, channels // 16) + 1) if channels % n == 0), channels)
    raise ValueError(f"model.norm is {norm!r}, expected batch or group")


def head_norm(norm: str, g_dim: int) -> nn.Module:
    """The feature is 1x1: group norm there would give every frame's code the same statistics, so it has none."""
    return build_norm(norm, g_dim) if norm == "batch" else nn.Identity()


def normed(layer: nn.Module, norm: str, channels: int) -> nn.Sequential:
    """The layer, its norm and leaky ReLU."""
    return nn.Sequential(layer, build_norm(norm, channels), nn.LeakyReLU(LEAK, inplace=True))


def add_shared(d: Tensor, half: Tensor) -> Tensor:
    """d (B, ...) + half (B / N, ...), which N equal runs of d share."""
    n_runs = d.shape[0] // half.shape[0]  # not -1 below: compiled, torch 2.15 then returns a single run
    return d + half if n_runs == 1 else (d.unflatten(0, (n_runs, half.shape[0])) + half).flatten(0, 1)
