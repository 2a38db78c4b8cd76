"""Bring trained weights home in small files: in float16, cut into pieces.

python -m benchmarks.gpu_suite.weights gpu/home runs/gpu     run folders of what --home holds, for evaluate.py
"""

import io
import json
import sys
from pathlib import Path

import torch

from benchmarks.gpu_suite.record import Record
from seqvae.training import checkpoint
from seqvae.training.checkpoint import write_atomically

MAX_FILES, PIECE, MAX_BYTES = 8, 16 * 2**20 - 4096, 62 * 2**20
TEXTS = ("config.json", "metrics.jsonl")


def pack(run_dir: Path) -> bytes:
    """The best checkpoint's weights for evaluation, matrices in float16, and the run's texts."""
    state = checkpoint.load(run_dir / "checkpoints" / "best.pt")
    weights = state["ema"] or state["model"]
    weights = {name: w.half() if w.dtype == torch.float32 and w.ndim > 1 else w for name, w in weights.items()}
    state |= {"model": weights, "ema": weights if state["ema"] else None}  # the same tensors, stored once
    buffer = io.BytesIO()
    torch.save({"state": state, "texts": {name: (run_dir / name).read_text() for name in TEXTS}}, buffer)
    return buffer.getvalue()


def unpack(content: bytes, run_dir: Path) -> None:
    """A run folder that evaluate.py reads."""
    packed = torch.load(io.BytesIO(content), weights_only=True)
    state = packed["state"]
    for name in ("model", "ema"):
        if state[name]:
            state[name] = {key: w.float() if w.dtype == torch.float16 else w for key, w in state[name].items()}
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name, text in packed["texts"].items():
        (run_dir / name).write_text(text)
    torch.save(state, run_dir / "checkpoints" / "best.pt")


def fill_home(out: Path, home: Path) -> None:
    """Results and table, and the weights of runs that have changed since they were last brought home, if they fit."""
    home.mkdir(parents=True, exist_ok=True)
    for old in home.glob("*.weights.*"):
        old.unlink()
    for name in ("results.jsonl", "table.md"):
        if (out / name).exists():
            write_atomically(home / name, (out / name).read_bytes())
    record, sent = Record(out), {}
    for line in record.lines():
        if "brought_home" in line:
            sent[line["brought_home"]] = line["step"]
    files, size = 2, sum(path.stat().st_size for path in home.iterdir())
    for run_dir in sorted((out / "runs").glob("*")):
        if not (run_dir / "checkpoints" / "best.pt").exists():
            continue
        step = checkpoint.load(run_dir / "checkpoints" / "best.pt")["step"]
        if sent.get(run_dir.name) == step:
            continue
        content = pack(run_dir)
        pieces = [content[i : i + PIECE] for i in range(0, len(content), PIECE)]
        if files + len(pieces) > MAX_FILES or size + len(content) > MAX_BYTES:
            continue
        files, size = files + len(pieces), size + len(content)
        for i, piece in enumerate(pieces):
            write_atomically(home / f"{run_dir.name}.weights.{i}", piece)
        record.add("home", brought_home=run_dir.name, step=step)


def main(argv: list[str]) -> None:
    home, runs = map(Path, argv)
    for first in sorted(home.glob("*.weights.0")):
        name = first.name.removesuffix(".weights.0")
        pieces = sorted(home.glob(f"{name}.weights.*"), key=lambda path: int(path.suffix[1:]))
        unpack(b"".join(path.read_bytes() for path in pieces), runs / name)
        print(json.dumps({"run": str(runs / name)}))


if __name__ == "__main__":
    main(sys.argv[1:])
