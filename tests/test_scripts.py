"""The shell scripts of docs/, with stand-ins for Slurm and for Python."""

import os
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def run(tmp_path: Path, script: str, *args: str, commands: dict[str, str], **env: str) -> subprocess.CompletedProcess:
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), **env}
    return subprocess.run(["bash", DOCS / script, *args], cwd=tmp_path, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_slurm_queues_again_what_a_signal_stopped(code, tmp_path):
    commands = {"srun": f'echo "$@" >> "$LOG"; exit {code}', "scontrol": 'echo "$@" >> "$LOG"'}
    done = run(tmp_path, "train.sbatch", "demo", "--run-dir", "runs/a b", commands=commands, SLURM_JOB_ID="7")
    assert done.returncode == code
    lines = [".venv/bin/python train.py demo --run-dir runs/a b", *(["requeue 7"] if code == 75 else [])]
    assert (tmp_path / "log").read_text().splitlines() == lines


def test_a_sweep_trains_each_beta_and_compares_them(tmp_path):
    commands = {"python": 'echo "$@" >> "$LOG"'}
    assert run(tmp_path, "sweep.sh", "smmnist-beta", commands=commands, PYTHON="python", BETAS="1 2").returncode == 0
    *trained, compared = (tmp_path / "log").read_text().splitlines()
    assert trained == [f"train.py smmnist-beta --objective.svg-beta {b} --run-dir runs/sweep/beta-{b}" for b in (1, 2)]
    assert compared.startswith("evaluate.py runs/sweep/beta-1 runs/sweep/beta-2 ")
    assert compared.endswith("--out runs/sweep/comparison")


def test_a_sweep_stops_where_a_run_does(tmp_path):
    commands = {"python": 'echo "$@" >> "$LOG"; exit 75'}
    assert run(tmp_path, "sweep.sh", "smmnist-beta", commands=commands, PYTHON="python").returncode == 75
    assert len((tmp_path / "log").read_text().splitlines()) == 1
