"""Lock a run folder against a second process; a killed process leaves nothing to clean up."""

import errno
import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import BinaryIO


class RunLock:
    """Lock of a run folder, held until `release` or until the process ends in any way.

    It is a POSIX record lock, not flock (which the package filelock uses): data loading workers inherit a flock, so
    after a kill -9 of the run the folder would stay locked while an orphaned worker lives. The file .lock names the
    holder.
    """

    def __init__(self) -> None:
        self.file: BinaryIO | None = None

    def acquire(self, run_dir: Path) -> None:
        """Take the lock, if this process does not have it yet; ValueError naming the holder if another process has."""
        if self.file is not None:
            return
        file = os.fdopen(os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with file:
                holder = file.read(200).decode(errors="replace").strip() or "another process"
            raise ValueError(f"{run_dir} is in use by {holder}; wait for it, or choose another --run-dir") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            print(f"{run_dir} cannot be locked ({error.strerror}): start no second run in it", file=sys.stderr)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
        self.file = file

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        if self.file is not None:
            self.file.close()
            self.file = None
