"""Stochastic video prediction that trains without tuning beta."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqvae.run import Run, load_run

__version__ = "0.1.0"
__all__ = ["Run", "load_run"]


def __getattr__(name: str) -> object:
    """Import what `__all__` names when it is first asked for: train.py and others need none of it."""
    if name in __all__:
        from seqvae import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
