"""Runs the trial and prints counts per group; exit code 1 if anything was found. Ctrl-C ends a part early.

python -m tests.trial                                          the whole of it: about an hour on one core
python -m tests.trial --kills 0 --flips 0 --minutes 0          bad inputs alone
"""

import argparse
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.trial import bad_inputs, flips, fuzz, kills

Result = tuple[str, int, list[str | None]]  # group, how many of it, what was wrong


def run_flips(args: argparse.Namespace, folder: Path) -> Iterator[Result]:
    for outcome, fault in flips.trial(args.flips, args.seed, folder):
        yield outcome, 1, [fault]


def run_bad(args: argparse.Namespace, folder: Path) -> Iterator[Result]:
    for group, fault in bad_inputs.trial(args.bad, args.seed, folder):
        yield group, 1, [fault]


def run_kills(args: argparse.Namespace, folder: Path) -> Iterator[Result]:
    for killed, faults in kills.trial(args.kills, args.seed, folder):
        yield "kills", killed, faults
        yield "runs", 1, []


def run_fuzz(args: argparse.Namespace, folder: Path) -> Iterator[Result]:
    for name, n, fault in fuzz.trial(60 * args.minutes, args.seed, folder):
        yield name, n, [fault]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.trial", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=1000, help="single flipped bits; 1000")
    parser.add_argument("--bad", type=int, default=500, help="distinct bad inputs; 500")
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at random moments; 200")
    parser.add_argument("--minutes", type=float, default=20, help="of reading mutated files; 20")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    home, n_found = Path(tempfile.mkdtemp(prefix="trial-")), 0
    parts = {"flips": (args.flips, run_flips), "bad": (args.bad, run_bad), "kills": (args.kills, run_kills)}
    parts["fuzz"] = args.minutes, run_fuzz
    for name, (wanted, run) in parts.items():
        if not wanted:
            continue
        counts, found, begin, folder = Counter(), [], time.monotonic(), home / name
        folder.mkdir()
        stopped = ""
        try:
            for group, n, faults in run(args, folder):
                counts[group] += n
                found += [fault for fault in faults if fault]
        except KeyboardInterrupt:
            stopped = ", stopped"
        text = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        print(f"{name}: {text}; {len(found)} findings in {time.monotonic() - begin:.0f} s{stopped}", flush=True)
        print("".join(f"  {fault}\n" for fault in found), end="", flush=True)
        n_found += len(found)
        if not found:
            shutil.rmtree(folder, ignore_errors=True)  # a child may still write after Ctrl-C
    print(f"{n_found} findings{f', files in {home}' if n_found else ''}")
    return int(n_found > 0)


if __name__ == "__main__":
    raise SystemExit(main())
