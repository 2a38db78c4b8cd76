"""How much memory there is, and what the process does with memory that a step has freed."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_memory() -> None:
    """Keeps freed memory for the next step, instead of handing it back to the system; nothing where there is no glibc.

    glibc gives every tensor above 32 MB fresh pages, which the kernel clears one fault at a time: 300,000 faults and a
    quarter of the time of a float32 training step of the full-size model. The peak stays as it is, but is held until
    the process ends. It matters where the CPU computes; the device's memory torch keeps itself.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def release_memory() -> None:
    """Hands all free memory back to the system; nothing where there is no glibc.

    For a loop that keeps a little of each round: with `keep_memory`, what it keeps lies between the large blocks, which
    then no longer fit where they lay.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def check_memory(need: int, what: str) -> None:
    """ValueError where `need` bytes, a lower bound, are more than the machine has; `what` names the settings."""
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > has:
        raise ValueError(f"{what}: needs at least {_size(need)} of memory, and this machine has {_size(has)}")


def _size(n: int) -> str:
    return f"{n // 10**9:,} GB" if n >= 10**10 else f"{n / 1e9:.1f} GB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or NumPy could not allocate; torch has an error type of its own for CUDA alone."""
    import torch  # here, because the commands read their arguments without it

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
