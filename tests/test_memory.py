"""What the process does with freed memory: seqvae.memory."""

import platform
import subprocess
import sys

import pytest

RESIDENT = """
from seqvae.memory import keep_memory, release_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

keep_memory()
large, small = zip(*((bytearray(2**21), bytes(100)) for _ in range(100)))
full = resident()
del large
kept = resident()
release_memory()
print(full - kept, full - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="glibc's malloc on Linux")
def test_freed_memory_is_kept_until_it_is_released():
    ended = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    after_free, after_release = map(int, ended.stdout.split())
    assert after_free < 2**24 and after_release > 150 * 2**20
