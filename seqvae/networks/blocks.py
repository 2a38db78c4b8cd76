"""What encoders and decoders share: widths of their levels, norms, heads, and adding what frames have in common."""

from math import log2

import torch
import torch.nn.functional as F
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


def features(maps: Tensor, head: nn.Sequential) -> Tensor:
    """An encoder's head, (B, C, 4, 4) -> (B, G): its 4x4 convolution covers the map, so it is a product of matrices."""
    conv, norm, squash = head
    h = F.linear(maps.flatten(1), conv.weight.flatten(1), conv.bias)
    return squash(norm(h[:, :, None, None])).flatten(1)


def first_maps(g: Tensor, head: nn.Sequential) -> Tensor:
    """A decoder's head, (B, G) -> (B, C, 4, 4): a transposed convolution of one pixel is a product of matrices."""
    conv, norm, leak = head
    d = F.linear(g, conv.weight.flatten(1).t(), conv.bias.repeat_interleave(16)).unflatten(1, (-1, 4, 4))
    return leak(norm(d.to(memory_format=torch.channels_last)))


class Halving(nn.Conv2d):
    """Half the height and width: `strided` as a module."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return strided(x, self.weight, self.bias)


def strided(x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """4x4 (transposed) convolution of stride 2 and padding 1: half (double) the height and width."""
    if x.shape[-1] == (4 if transposed else 8) and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return _Coarse.apply(x, weight, bias, transposed)
    return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, bias, stride=2, padding=1)


class _Coarse(torch.autograd.Function):
    """`strided` between 4x4 and 8x8 in bfloat16 on the CPU.

    The gradient of its weight, which is larger than the maps, is computed as a product of matrices: oneDNN's takes 1.6
    times as long, and a training step so 8 % longer.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, bias, stride=2, padding=1)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        shape = ([2, 2], [1, 1], [1, 1], ctx.transposed, [0, 0], 1)  # stride, padding, dilation, ., padding out, groups
        dx = torch.ops.aten.convolution_backward(grad, x, weight, None, *shape, [True, False, False])[0]
        fine, coarse = (grad, x) if ctx.transposed else (x, grad)
        fine = F.pad(fine.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, 10, 10, C)
        patches = fine.unfold(1, 4, 2).unfold(2, 4, 2).movedim(3, -1).flatten(3).flatten(0, 2)  # (B * 16, 16 * C)
        dw = coarse.permute(0, 2, 3, 1).flatten(0, 2).t() @ patches
        dw = dw.unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # (channels of coarse, of fine, 4, 4)
        return dx, dw, grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None
