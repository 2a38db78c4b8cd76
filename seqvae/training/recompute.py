"""Trade time for memory: recompute activations in the backward pass instead of storing them."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, is_grad_enabled, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from seqvae.models import VideoModel


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Context manager: batch norms in training mode leave their running statistics unchanged."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, count


def recompute_in_backward(model: VideoModel) -> None:
    """Store only inputs and outputs of the model's `recomputed` methods; the backward pass runs them again.

    ValueError if the model has none.
    """
    if not model.recomputed:
        raise ValueError(f"{type(model).__name__} has nothing to recompute; drop --compute.checkpoint-activations")
    for method in model.recomputed:
        _recompute(model, method)


def _recompute(module: nn.Module, method: str) -> None:
    computed = getattr(module, method)

    def recomputed(*inputs: Tensor | list[Tensor]):
        if not is_grad_enabled():
            return computed(*inputs)
        return checkpoint(
            computed,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing random in it
            context_fn=lambda: (contextlib.nullcontext(), frozen_statistics(module)),
        )

    setattr(module, method, recomputed)
