"""What a result was made with: written beside every run and every evaluation."""

import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import seqvae


def provenance() -> dict[str, object]:
    """The command, and the versions of everything that could change its numbers."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {
            "seqvae": seqvae.__version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _commit() -> str | None:
    """Of this checkout, `-dirty` at its end where files differ from it; None outside a checkout."""
    if not shutil.which("git"):
        return None

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], capture_output=True, text=True, cwd=Path(__file__).parent).stdout

    if not git("ls-files", Path(__file__).name):  # an installed copy, perhaps inside another checkout
        return None
    changed = "-dirty" if git("status", "--porcelain", "--untracked-files=no").strip() else ""
    return git("rev-parse", "HEAD").strip() + changed or None
