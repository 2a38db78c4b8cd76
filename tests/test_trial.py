"""A seeded slice of the trial (python -m tests.trial), so that the trial itself keeps working."""

from collections import Counter

from tests.trial import bad_inputs, child, flips, fuzz, kills


def test_killed_runs_end_as_one_that_was_not_killed(tmp_path):
    results = list(kills.trial(2, 1, tmp_path))
    assert sum(killed for killed, _ in results) >= 2
    assert [fault for _, faults in results for fault in faults] == []


def test_flipped_bits_are_found_or_have_no_effect(tmp_path):
    results = list(flips.trial(40, 0, tmp_path))
    assert Counter(outcome for outcome, _ in results).keys() <= {"found", "no effect"}, results
    assert sum(outcome == "found" for outcome, _ in results) > 20


def test_bad_inputs_are_one_line(tmp_path):
    results = list(bad_inputs.trial(10, 0, tmp_path))
    assert len(results) == 10 and {group for group, _ in results} == bad_inputs.GROUPS.keys()
    assert [fault for _, fault in results if fault] == []


def test_mutated_files_are_read_or_refused(tmp_path):
    results = list(fuzz.trial(2, 0, tmp_path))
    assert sum(n for _, n, _ in results) > 0
    assert [fault for _, _, fault in results if fault] == []


def test_a_child_that_fails_is_seen(tmp_path):
    def hang() -> None:
        child.signal.alarm(1)
        child.time.sleep(60)

    assert child.run(lambda: 2).fault is None and child.run(lambda: 2).code == 2
    assert child.run(lambda: 1 // 0).fault == "a traceback"
    assert "hung" in child.run(hang).fault
    assert child.run(lambda: child.os.kill(child.os.getpid(), child.signal.SIGTERM)).fault == "ended by SIGTERM"
    assert child.run(lambda: bytearray(10 << 30) and 0).fault == "a traceback"
    assert child.run(lambda: child.time.sleep(60), kill_after=0.1).code == -child.signal.SIGKILL
