"""Results as JSON lines, written as they come, and the markdown table made of them.

A part of the suite has named cases. A case writes one line when it begins and one with its numbers; a part writes one
when it ends. So whatever is killed, the file says what is left to do.
"""

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

Numbers = dict[str, object]
Cases = dict[str, Callable[[], Numbers]]
NOT_NUMBERS = ("part", "case", "seconds", "ok", "goal", "skipped", "error", "text", "at")
MANY = 12  # cases of a part; with more, the table has one row for those that passed


@dataclass(frozen=True)
class Setting:
    """What the parts are given."""

    out: Path  # folder of the results
    device: torch.device
    tiny: bool  # a rehearsal at sizes that a CPU runs in seconds
    root: str  # folder of MNIST

    @property
    def patience(self) -> int:
        """Factor on every time limit: a rehearsal may share its core with others."""
        return 5 if self.tiny else 1


class Skip(Exception):
    """A case that cannot be tried here; the message says why."""


class Record:
    """The file results.jsonl of a folder."""

    def __init__(self, out: Path) -> None:
        self.path = out / "results.jsonl"

    def lines(self) -> list[dict]:
        """All lines so far, without one that was cut short."""
        found = []
        for text in self.path.read_text(errors="replace").splitlines() if self.path.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "part" in line:
                found.append(line)
        return found

    def add(self, part: str, **line: object) -> None:
        """Append a line in one write, on a line of its own even if the one before was cut short."""
        text = json.dumps({"part": part, **line, "at": round(time.time())})
        with self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode() + b"\n")

    def results(self, part: str) -> dict[str, dict]:
        """The line of each finished case."""
        lines = [line for line in self.lines() if line["part"] == part and "case" in line and "begin" not in line]
        return {line["case"]: line for line in lines}

    def unfinished_case(self, part: str) -> str | None:
        """The case that has begun last and has no result."""
        begun = [line["case"] for line in self.lines() if line["part"] == part and "begin" in line]
        return begun[-1] if begun and begun[-1] not in self.results(part) else None

    def ended(self, part: str) -> bool:
        return any("end" in line for line in self.lines() if line["part"] == part)

    def seconds_spent(self, part: str) -> float:
        return sum(line.get("spent", 0.0) for line in self.lines() if line["part"] == part)

    def run(self, part: str, name: str, case: Callable[[], Numbers]) -> None:
        """Run a case that has no result yet; an error becomes its result."""
        if name in self.results(part):
            return
        print(f"{part}: {name}", flush=True)
        self.add(part, case=name, begin=True)
        start, broken = time.perf_counter(), False
        try:
            numbers = case()
        except Skip as reason:
            numbers = {"skipped": str(reason)}
        except Exception:
            numbers = {"ok": False, "error": traceback.format_exc()}
            broken = _device_is_broken()
        self.add(part, case=name, seconds=round(time.perf_counter() - start, 1), **numbers)
        if broken:  # every later case of this process would fail as well
            os._exit(1)

    def table(self) -> str:
        """Markdown: a row per case, then texts and errors."""
        lines, rows, below = self.lines(), [], []
        for part in dict.fromkeys(line["part"] for line in lines):
            results = self.results(part)
            passed = {name: line for name, line in results.items() if line.get("ok")}
            if len(results) > MANY:
                worst = {}
                for line in passed.values():
                    for key, value in _numbers(line).items():
                        worst[key] = max(value, worst.get(key, value))
                rows.append([part, f"{len(passed)} of {len(results)} cases", f"worst: {_cells(worst)}", "", "ok", ""])
            for name, line in results.items():
                if len(results) > MANY and name in passed:
                    continue
                verdict = {True: "ok", False: "FAILED" if "error" in line else "missed"}.get(line.get("ok"), "")
                said = _cells(_numbers(line)) or line.get("skipped", "") or str(line.get("error", "")).strip()
                result = said.splitlines()[-1] if said else ""
                verdict = "skipped" if "skipped" in line else verdict
                rows.append([part, name, result, line.get("goal", ""), verdict, f"{line.get('seconds', 0):g}"])
                if "text" in line or "error" in line:
                    text = line.get("text") or "\n".join(str(line["error"]).splitlines()[-40:])
                    below += ["", f"### {part}: {name}", "", "```", text.rstrip(), "```"]
            for line in lines:
                if line["part"] == part and line.get("end", "done") != "done":
                    rows.append([part, "", line["end"], "", "STOPPED", ""])
                    below += ["", f"### {part}", "", "```", line.get("error", "").rstrip(), "```"]
        head = ["part", "case", "result", "goal", "", "s"]
        table = [head, ["---"] * len(head), *rows]
        return (
            "\n".join(["| " + " | ".join(str(c).replace("|", "/") for c in row) + " |" for row in table] + below) + "\n"
        )


def _numbers(line: dict) -> dict[str, float]:
    return {key: line[key] for key in line if key not in NOT_NUMBERS and isinstance(line[key], int | float)}


def _cells(numbers: dict[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in numbers.items())


def _device_is_broken() -> bool:
    """Whether an error on the GPU has left this process unable to use it."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def at_least(setting: Setting, value: float, least: float) -> Numbers:
    """Goal and verdict of a speed, which tiny sizes do not have."""
    return {} if setting.tiny else {"goal": f"at least {least:g}", "ok": value >= least}


def at_most(value: float, most: float) -> Numbers:
    """Tolerance and verdict of a difference; NaN does not pass."""
    return {"goal": f"at most {most:g}", "ok": bool(value <= most)}
