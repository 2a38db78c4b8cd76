"""4x4 convolutions of stride 2, with replacements for those that oneDNN computes slowly on the CPU.

`strided` is what `F.conv2d` and `F.conv_transpose2d` compute, on every device; only the CPU takes the replacements.
Measured in turns on one core (DCGAN at full size, 8 clips of 15 frames, medians of 5 rounds): with plain convolutions a
training step takes 13 % longer in bfloat16, and as long in float32 (-4 to +2 %).
Shapes: B frames, C channels, S image size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 3  # channels of a picture


def strided(x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """4x4 convolution of stride 2 and padding 1, which halves height and width; transposed, it doubles them."""
    amp, few = torch.is_autocast_enabled("cpu"), transposed and weight.shape[1] <= FEW
    if x.device.type == "cpu" and (few or (amp and x.shape[-1] <= (8 if transposed else 16))):
        if amp:
            x, weight = x.bfloat16(), weight.bfloat16()
        y = _Strided.apply(x, weight, transposed)
    elif transposed:
        y = F.conv_transpose2d(x, weight, None, 2, 1)
    else:
        return F.conv2d(x, weight, bias, 2, 1)
    # Added separately: oneDNN takes as long for the gradient of a transposed convolution's bias as for the weight's.
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


class _Strided(torch.autograd.Function):
    """`strided` on the CPU, as matrix products where oneDNN's convolution is slower.

    That is the case for transposed convolutions to few channels, the picture's, in any precision (three times slower).
    In bfloat16 it is the case for the gradient of weights with up to 8x8 pixels on the coarse side, and for everything
    that ends in 4x4 pixels (a quarter to a half slower).
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
        for frames, out in zip(x.split(n), y.split(n)):
            out.copy_(_doubled(frames, weight))
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        fine, coarse = (grad, x) if ctx.transposed else (x, grad)
        by_product = x.dtype == torch.bfloat16 and coarse.shape[-1] <= 8
        dx_too = by_product and ctx.transposed and coarse.shape[-1] == 4
        shape = ([2, 2], [1, 1], [1, 1], ctx.transposed, [0, 0], 1)  # stride, padding, dilation, ., padding out, groups
        needed = [not dx_too, not by_product, False]
        dx, dw, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *shape, needed)
        if by_product:
            patches = _patches(fine)
            dw = coarse.permute(0, 2, 3, 1).flatten(0, 2).t() @ patches.flatten(0, 2)
            dw = dw.unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # (channels of coarse, of fine, 4, 4)
            if dx_too:
                dx = _halved(patches, weight)
        return dx, dw, None


def _doubled(x: Tensor, weight: Tensor) -> Tensor:
    """The transposed convolution: every input pixel adds to 4x4 output pixels."""
    parts = weight.flatten(1).t() @ x.flatten(2)  # (B, C * 16, H * W)
    parts = parts.to(torch.promote_types(x.dtype, torch.float32))
    return F.fold(parts, (2 * x.shape[2], 2 * x.shape[3]), 4, stride=2, padding=1).to(x.dtype)


def _patches(fine: Tensor) -> Tensor:
    """(B, C, 2S, 2S) -> (B, S, S, 16 * C): the inputs of each output pixel."""
    fine = F.pad(fine.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return fine.unfold(1, 4, 2).unfold(2, 4, 2).movedim(3, -1).flatten(3)


def _halved(patches: Tensor, weight: Tensor) -> Tensor:
    """The convolution of `_patches`, (B, C', S, S), channels-last."""
    return (patches @ weight.permute(0, 2, 3, 1).flatten(1).t()).permute(0, 3, 1, 2)
