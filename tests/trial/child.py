"""Run something in a forked process, so that a crash, a hang or a kill -9 ends it and not the trial."""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

SECONDS = 120  # after which a child counts as hung
MEMORY = 8 << 30  # bytes of address space that a child may ask for


class Outcome(NamedTuple):
    code: int  # exit code; -N: ended by signal N
    text: str  # stdout and stderr
    seconds: float

    @property
    def fault(self) -> str | None:
        """What no input may cause."""
        if self.code == -signal.SIGALRM:
            return f"hung for {SECONDS} s"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        return "a traceback" if "Traceback" in self.text else None


def run(act: Callable[[], int | None], kill_after: float | None = None, memory: int = MEMORY) -> Outcome:
    """Outcome of `act` in a forked process, killed with SIGKILL after `kill_after` seconds."""
    with tempfile.TemporaryFile() as output:
        begin, pid = time.monotonic(), os.fork()
        if pid == 0:
            _child(act, output.fileno(), memory)
        status = None
        while status is None:
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(code)
            elif kill_after is not None and time.monotonic() - begin >= kill_after:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                status = -signal.SIGKILL
            else:
                time.sleep(0.002)
        output.seek(0)
        return Outcome(status, output.read().decode(errors="replace"), time.monotonic() - begin)


def _child(act: Callable[[], int | None], output: int, memory: int) -> None:
    code = 99
    try:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        code = act() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
