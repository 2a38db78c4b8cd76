"""Two processes in one run folder: the second is refused, and the folder is free once the first has gone."""

import errno
import fcntl
import os
import signal

import pytest

import train
from seqvae.training import session
from seqvae.training.lock import RunLock
from seqvae.training.logger import read_metrics
from tests.helpers import GECO_FLAGS, final, start, wait_for, without


def test_a_second_process_is_refused_and_a_killed_one_leaves_the_folder_free(tmp_path, capsys):
    command = [*without(GECO_FLAGS, "--compute.workers"), "--compute.workers", "2", "--run-dir", str(tmp_path)]
    command += ["--optim.schedule", "constant"]
    process = start("train", *command, "--optim.steps", "100000")
    wait_for((tmp_path / "checkpoints" / "previous.pt").exists, process)
    assert train.main(command) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} is in use by process {process.pid} on" in error and error.count(chr(10)) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()  # its data loading workers may live on for seconds
    reached = final(tmp_path)["step"]
    assert train.main([*command, "--optim.steps", str(reached + 1)]) == 0
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert steps == list(range(1, reached + 2))
    process.communicate()


def test_a_refused_new_run_leaves_no_lock(tmp_path):
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path), "--init-from", str(tmp_path / "none")]) == 2
    assert not list(tmp_path.iterdir())


def test_a_run_that_another_process_has_just_started_is_not_started_again(tmp_path, capsys, monkeypatch):
    real = session.prepare

    def slow(*args):
        prepared = real(*args)
        (tmp_path / "config.json").write_text("{}")
        return prepared

    monkeypatch.setattr(session, "prepare", slow)
    assert train.main([*GECO_FLAGS, "--run-dir", str(tmp_path)]) == 2
    assert "another process has just started" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_file_system_without_locks_is_said_and_used(tmp_path, capsys, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    lock = RunLock()
    lock.acquire(tmp_path)
    lock.release()
    assert "cannot be locked (No locks available): start no second run in it" in capsys.readouterr().err


def test_a_lock_is_released_and_taken_again(tmp_path):
    lock = RunLock()
    for _ in range(2):
        lock.acquire(tmp_path)
        lock.acquire(tmp_path)
        lock.release()
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("text", ["", "x" * 10_000])
def test_whatever_an_older_lock_file_says_is_replaced(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    lock = RunLock()
    lock.acquire(tmp_path)
    lock.release()
    assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
