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
    """The command, and the versions of everything that could change its numbers; commit is None outside a checkout."""
    commit = None
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = git.stdout.strip() or None
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {
            "seqvae": seqvae.__version__,
            "commit": commit,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
