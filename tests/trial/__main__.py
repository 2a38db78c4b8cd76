"""Runs the trial and prints counts per group; exit code 1 if anything was found.

python -m tests.trial                                          the whole of it: about an hour on one core
python -m tests.trial --kills 0 --flips 0 --minutes 0          bad inputs alone
"""

import argparse
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from tests.trial import bad_inputs, flips, fuzz, kills


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.trial", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at random moments; 200")
    parser.add_argument("--flips", type=int, default=1000, help="single flipped bits; 1000")
    parser.add_argument("--bad", type=int, default=500, help="distinct bad inputs; 500")
    parser.add_argument("--minutes", type=float, default=20, help="of reading mutated files; 20")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: list[str] = []
    home = Path(tempfile.mkdtemp(prefix="trial-"))
    for name, run in (("kills", run_kills), ("flips", run_flips), ("bad", run_bad), ("fuzz", run_fuzz)):
        folder, begin, before = home / name, time.monotonic(), len(found)
        folder.mkdir()
        counts = run(args, folder, found)
        if counts:
            text = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            print(f"{name}: {text}; {len(found) - before} findings in {time.monotonic() - begin:.0f} s", flush=True)
            print("".join(f"  {fault}\n" for fault in found[before:]), end="", flush=True)
        if len(found) == before:
            shutil.rmtree(folder)
    print(f"{len(found)} findings{f', files in {home}' if found else ''}")
    return int(bool(found))


def run_kills(args: argparse.Namespace, folder: Path, found: list[str]) -> Counter:
    counts: Counter = Counter()
    for killed, faults in kills.trial(args.kills, args.seed, folder):
        counts += Counter({"kills": killed, "runs": 1})
        found += faults
    return counts


def run_flips(args: argparse.Namespace, folder: Path, found: list[str]) -> Counter:
    counts: Counter = Counter()
    for outcome, fault in flips.trial(args.flips, args.seed, folder):
        counts[outcome] += 1
        found += [fault] if fault else []
    return counts


def run_bad(args: argparse.Namespace, folder: Path, found: list[str]) -> Counter:
    counts: Counter = Counter()
    for group, fault in bad_inputs.trial(args.bad, args.seed, folder) if args.bad else ():
        counts[group] += 1
        found += [fault] if fault else []
    return counts


def run_fuzz(args: argparse.Namespace, folder: Path, found: list[str]) -> Counter:
    counts: Counter = Counter()
    for name, n, fault in fuzz.trial(60 * args.minutes, args.seed, folder) if args.minutes else ():
        counts[name] += n
        found += [fault] if fault else []
    return counts


if __name__ == "__main__":
    raise SystemExit(main())
