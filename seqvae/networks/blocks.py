"""What encoders and decoders share: widths of their levels, norms, heads, and adding what frames have in common."""

from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2
FEW = 3  # channels of a picture


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
    h = F.linear(maps.permute(0, 2, 3, 1).flatten(1), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
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
    amp, few = torch.is_autocast_enabled("cpu"), transposed and weight.shape[1] <= FEW
    if x.device.type == "cpu" and (few or (amp and x.shape[-1] <= (8 if transposed else 16))):
        if amp:
            x, weight = x.bfloat16(), weight.bfloat16()
        y = _Strided.apply(x, weight, transposed)
    elif transposed:
        y = F.conv_transpose2d(x, weight, None, 2, 1)
    else:
        return F.conv2d(x, weight, bias, 2, 1)
    # Apart: with oneDNN the gradient of a transposed convolution's bias takes as long as that of its weight.
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


class _Strided(torch.autograd.Function):
    """`strided` on the CPU, as products of matrices where oneDNN's convolution is slower.

    So it is at drawing few channels, the picture's, in any precision (three times as slow), and in bfloat16 at the
    gradient of weights up to 8x8 pixels on the coarse side, and at all that ends in 4x4 (by a quarter to a half).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        if not transposed:
            return _halved(_patches(x), weight) if x.shape[-1] == 8 else F.conv2d(x, weight, None, 2, 1)
        if weight.shape[1] > FEW:
            return F.conv_transpose2d(x, weight, None, 2, 1)
        y = x.new_empty(len(x), weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
        n = len(x) if torch.compiler.is_compiling() else 8  # few at a time stay in the cache; compiled, one graph
        for frames, drawn in zip(x.split(n), y.split(n)):
            drawn.copy_(_drawn(frames, weight))
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        fine, coarse = (grad, x) if ctx.transposed else (x, grad)
        by_product = x.dtype == torch.bfloat16 and coarse.shape[-1] <= 8
        dx_too = by_product and ctx.transposed and coarse.shape[-1] == 4
        shape = ([2, 2], [1, 1], [1, 1], ctx.transposed, [0, 0], 1)  # stride, padding, dilation, ., padding out, groups
        which = [not dx_too, not by_product, False]
        dx, dw, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *shape, which)
        if by_product:
            patches = _patches(fine)
            dw = coarse.permute(0, 2, 3, 1).flatten(0, 2).t() @ patches.flatten(0, 2)
            dw = dw.unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # (channels of coarse, of fine, 4, 4)
            if dx_too:
                dx = _halved(patches, weight)
        return dx, dw, None


def _drawn(x: Tensor, weight: Tensor) -> Tensor:
    """The transposed convolution; every input pixel is 4x4 of the output's, and four are added in each."""
    parts = weight.flatten(1).t() @ x.flatten(2)  # (B, C * 16, H * W)
    parts = parts.to(torch.promote_types(x.dtype, torch.float32))
    return F.fold(parts, (2 * x.shape[2], 2 * x.shape[3]), 4, stride=2, padding=1).to(x.dtype)


def _patches(fine: Tensor) -> Tensor:
    """(B, C, 2S, 2S) -> (B, S, S, 16 * C), what each pixel of the coarse side is made from."""
    fine = F.pad(fine.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return fine.unfold(1, 4, 2).unfold(2, 4, 2).movedim(3, -1).flatten(3)


def _halved(patches: Tensor, weight: Tensor) -> Tensor:
    """The convolution of what `_patches` cut up, (B, C', S, S), channels-last."""
    return (patches @ weight.permute(0, 2, 3, 1).flatten(1).t()).permute(0, 3, 1, 2)
