import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_suite import __main__ as suite
from benchmarks.gpu_suite.record import Record, Setting, Skip
from benchmarks.gpu_suite.weights import MAX_FILES, PIECE, fill_home, pack
from benchmarks.gpu_suite.weights import main as unpack
from seqvae.training import checkpoint
from tests.helpers import GECO_FLAGS, wait_for
from train import main as train

CPU = torch.device("cpu")
FLAGS = ["--device=cpu", "--root=nowhere"]


def broken():
    raise ValueError("this one is broken")


def skipped():
    raise Skip("not here")


def stopped_once(setting: Setting) -> dict:
    marker = setting.out / "was here"
    if marker.exists():
        return {"n": 2}
    marker.touch()
    time.sleep(60)


CASES = {
    "first": lambda s: {"ok": lambda: {"n": 1, "ok": True}, "broken": broken, "skipped": skipped},
    "crash": lambda s: {"good": lambda: {"n": 1}, "crash": lambda: os._exit(3), "after": lambda: {"n": 2}},
    "slow": lambda s: {"sleeps": lambda: time.sleep(60), "never": lambda: {"n": 1}},
    "last": lambda s: {"stopped once": lambda: stopped_once(s)},
}


@pytest.fixture
def parts(monkeypatch):
    """Parts that end in every way; their processes are forks, so that they know these cases and start at once."""
    limits = {"slow": 0.25}
    monkeypatch.setattr(suite, "PARTS", {name: suite.Part(c, limits.get(name, 20)) for name, c in CASES.items()})
    monkeypatch.setattr(suite, "RESERVE", 0)
    monkeypatch.setattr(suite, "LEAST", 0.1)
    monkeypatch.setattr(suite.signal, "signal", lambda *_: None)
    monkeypatch.setattr(suite.subprocess, "Popen", Fork)


class Fork:
    """A process of a part, as far as run_part knows Popen."""

    def __init__(self, command, stdout, stderr, process_group):
        self.code, self.pid = None, os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.dup2(stdout.fileno(), 1)
            try:
                suite.main(command[3:])
                os._exit(0)
            finally:
                os._exit(9)

    def wait(self, timeout=60):
        end = time.monotonic() + timeout
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise subprocess.TimeoutExpired("part", timeout)
            time.sleep(0.01)
        return self.code


def test_a_part_that_fails_leaves_its_reason_and_a_second_call_continues(parts, tmp_path, monkeypatch, capsys):
    call = [*FLAGS, "--out", str(tmp_path)]
    assert suite.main([*call, "--budget=5"]) == 0
    record = Record(tmp_path)
    first, crash = record.results("first"), record.results("crash")
    assert first["ok"]["n"] == 1 and "this one is broken" in first["broken"]["error"]
    assert first["skipped"]["skipped"] == "not here" and record.ended("first")
    assert "exit code 3" in crash["crash"]["error"] and crash["good"]["n"] == 1 and crash["after"]["n"] == 2
    assert "time limit" in record.results("slow")["sleeps"]["error"] and "never" not in record.results("slow")
    assert record.ended("slow") and not record.ended("last")
    assert "left for another call with --resume: last" in capsys.readouterr().out

    assert suite.main(call) == 2 and "--resume" in capsys.readouterr().err
    before = len(record.lines())
    assert suite.main([*call, "--resume"]) == 0
    assert record.results("last")["stopped once"]["n"] == 2 and record.ended("last")
    new = record.lines()[before:]
    assert {line["part"] for line in new} == {"machine", "last"} and "nothing is left" in capsys.readouterr().out
    before = len(record.lines())
    suite.main([*call, "--resume"])
    assert [line["part"] for line in record.lines()[before:]] == ["machine"]
    table = (tmp_path / "table.md").read_text()
    assert "| first | broken | ValueError: this one is broken |  | FAILED |" in table and "### crash: crash" in table


def test_a_line_that_was_cut_short_costs_no_other(tmp_path):
    record = Record(tmp_path)
    record.add("a", case="one", n=1)
    with record.path.open("a") as file:
        file.write('{"part": "a", "case": "tw')
    record.add("a", case="three", n=3)
    assert record.results("a").keys() == {"one", "three"}


def test_every_part_has_cases_and_a_killed_call_takes_its_part_along(tmp_path):
    setting = Setting(tmp_path, CPU, True, "nowhere")
    assert all(part.cases(setting) for part in suite.PARTS.values())
    command = [sys.executable, "-m", "benchmarks.gpu_suite", *FLAGS, f"--out={tmp_path}", "--only=same-step"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
    record = Record(tmp_path)
    wait_for(lambda: len(record.results("same-step")) > 0, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)
    n = len(record.lines())
    time.sleep(2)
    assert len(record.lines()) == n and not record.ended("same-step")


def test_weights_come_home_in_pieces_and_evaluate_as_before(tmp_path, monkeypatch):
    run_dir, home = tmp_path / "runs" / "a", tmp_path / "home"
    assert train([*GECO_FLAGS, "--run-dir", str(run_dir), "--optim.ema=0.9"]) == 0
    Record(tmp_path).add("machine", case="call")
    monkeypatch.setattr("benchmarks.gpu_suite.weights.PIECE", len(pack(run_dir)) // 4 + 1)
    fill_home(tmp_path, home)
    assert len(list(home.iterdir())) == 5 <= MAX_FILES and PIECE < 16 * 2**20
    unpack([str(home), str(tmp_path / "unpacked")])
    before, after = (checkpoint.load(p / "checkpoints" / "best.pt") for p in (run_dir, tmp_path / "unpacked" / "a"))
    for name, weight in before["ema"].items():
        torch.testing.assert_close(after["ema"][name], weight, rtol=1e-3, atol=1e-6)
    fill_home(tmp_path, home)  # nothing has changed since
    assert sorted(path.name for path in home.iterdir()) == ["results.jsonl"]
    assert json.loads((tmp_path / "unpacked" / "a" / "config.json").read_text())["config"]["model"]["family"] == "svg"
