"""Speed and memory of BAIR's conversion and of its reader, on made files, as JSON lines.

    python -m benchmarks.data [FOLDER]    FOLDER: for the files, 0.3 GB, deleted afterwards; /tmp if left out

What is read lies in the page cache; what is written is synced to the disk. Where other programs keep the cores busy,
the seconds of CPU time say what is left of the wall-clock rates.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tfrecord.writer import TFRecordWriter
from torch.utils.data import DataLoader, Subset

from datasets import convert_bair, load_dataset
from datasets.bair import FRAME_SHAPE, N_FRAMES

N_VIDEOS = 256  # of a published file
N_CLIPS, SEQ_LEN, BATCH = 5000, 12, 16
N_REPEATS = 3


def write_published(path: Path, n_videos: int) -> None:
    """A TFRecord file in the published layout, of noise."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    writer = TFRecordWriter(str(path))
    for _ in range(n_videos):
        record = {}
        for i in range(N_FRAMES):
            for camera in ("main", "aux1"):
                record[f"{i}/image_{camera}/encoded"] = (rng.bytes(int(np.prod(FRAME_SHAPE))), "byte")
            record[f"{i}/action"] = (rng.random(4), "float")
            record[f"{i}/endeffector_pos"] = (rng.random(3), "float")
        writer.write(record)
    writer.close()


def memory(line: str) -> float:
    """VmRSS or VmHWM, resident memory of this process now or at its peak, MB; NaN where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return int(status.split(f"{line}:")[1].split()[0]) / 1024


def conversion(folder: Path) -> dict:
    """The whole command with its SHA-256 of the arrays, the median of N_REPEATS; MB of the TFRecord file.

    The peak of memory is of the first time, so what is loaded at first use counts too.
    """
    path = folder / "src" / "train" / f"traj_0_to_{N_VIDEOS - 1}.tfrecords"
    write_published(path, N_VIDEOS)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, peaks, times = memory("VmRSS"), [], []
    for _ in range(N_REPEATS):
        shutil.rmtree(folder / "dst", ignore_errors=True)
        start, cpu_start = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            assert convert_bair.main([str(folder / "src"), str(folder / "dst"), "--allow-partial"]) == 0
        times.append((time.perf_counter() - start, time.process_time() - cpu_start))
        peaks.append(memory("VmHWM"))
    (wall, cpu), size = np.median(times, axis=0), path.stat().st_size / 1e6
    return {
        "mb": round(size),
        "mb_per_s": round(size / wall),
        "cpu_s": round(cpu, 2),
        "memory_growth_mb": round(peaks[0] - before, 1),
    }


def reading(root: Path) -> dict:
    """Random training clips through a DataLoader without workers, the median of N_REPEATS."""
    dataset = load_dataset("bair", root, "train", seq_len=SEQ_LEN)
    chosen = np.random.default_rng(0).integers(len(dataset), size=N_CLIPS)
    loader = DataLoader(Subset(dataset, chosen.tolist()), batch_size=BATCH)
    times = []
    for _ in range(N_REPEATS + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        assert sum(len(batch) for batch in loader) == N_CLIPS
        times.append((time.perf_counter() - start, time.process_time() - cpu_start))
    wall, cpu = np.median(times[1:], axis=0)  # the first warms up
    return {"clips": N_CLIPS, "frames": SEQ_LEN, "clips_per_s": round(N_CLIPS / wall), "cpu_s": round(cpu, 2)}


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as folder:
        print(json.dumps({"benchmark": "convert_bair"} | conversion(Path(folder))))
        print(json.dumps({"benchmark": "bair"} | reading(Path(folder) / "dst")))


if __name__ == "__main__":
    main(sys.argv[1:])
