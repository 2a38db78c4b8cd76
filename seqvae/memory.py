"""What the process does with memory that a step has freed."""

import ctypes
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
