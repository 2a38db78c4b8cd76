"""Speed of Moving MNIST; speed and memory of BAIR's conversion and of its reader, on made files: as JSON lines.

    python -m benchmarks.data [FOLDER]    FOLDER: for the files, 0.3 GB, deleted afterwards; /tmp if left out

Moving MNIST is made of drawn digits, which are of MNIST's size and need no download, on one CPU core and, where there
is one, on the GPU. BAIR's files lie in the page cache when they are read, and are synced to the disk when they are
written. Where other programs keep the cores busy, the seconds of CPU time say what is left of the wall-clock rates.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tfrecord.writer import TFRecordWriter
from torch.utils.data import DataLoader, Subset

from benchmarks.measure import resident_mb
from datasets import load_dataset
from datasets.bair import FRAME_SHAPE, N_FRAMES
from datasets.bair import convert as convert_bair
from datasets.digits.glyphs import load_glyphs
from datasets.on_device import device_batches

N_VIDEOS = 256  # of a published file
N_CLIPS, SEQ_LEN, BATCH = 5000, 12, 16
N_REPEATS = 3
DIGIT_FRAMES, DIGIT_BATCH, DIGIT_REPEATS = 15, 100, 31
FLAVOURS = {"exact": 28, "svg": 32}  # digit_size


def svg_clip(glyphs: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """(15, 64, 64, 1) float32 in [0, 1], made as SVG's released loader makes it: two 32 px digits, one at a time.

    Each digit is resized when it is drawn from the 28 px glyphs (N, 28, 28); it moves by whole pixels, and past a
    border it is set back onto it and takes a new speed.
    """
    size, digit_size = 64, 32
    frames = np.zeros((DIGIT_FRAMES, size, size, 1), np.float32)
    for _ in range(2):
        glyph = Image.fromarray(glyphs[rng.randint(len(glyphs))])
        digit = np.asarray(glyph.resize((digit_size, digit_size), Image.Resampling.BILINEAR), np.float32) / 255
        row, column = rng.randint(size - digit_size), rng.randint(size - digit_size)
        down, right = rng.randint(-4, 5), rng.randint(-4, 5)
        for frame in frames:
            if row < 0 or row >= size - digit_size:
                inward = 1 if row < 0 else -1
                row = 0 if row < 0 else size - digit_size - 1
                down, right = inward * rng.randint(1, 5), rng.randint(-4, 5)
            if column < 0 or column >= size - digit_size:
                inward = 1 if column < 0 else -1
                column = 0 if column < 0 else size - digit_size - 1
                right, down = inward * rng.randint(1, 5), rng.randint(-4, 5)
            frame[row : row + digit_size, column : column + digit_size, 0] += digit
            row, column = row + down, column + right
    frames[frames > 1] = 1
    return frames


def digits_on_cpu() -> dict:
    """Clips per second of one core: both flavours in batches of 100, and svg_clip in the same turns.

    Medians over the turns, with the quartiles; `ratio` is the median over the turns of the ratio to svg_clip.
    """
    glyphs, rng = load_glyphs("drawn", None, "train", 28), np.random.RandomState(0)
    sources = {"svg_loader": lambda: [svg_clip(glyphs, rng) for _ in range(DIGIT_BATCH)]}
    for flavour, dataset in moving_digits().items():
        sources[flavour] = lambda dataset=dataset: dataset.__getitems__(rng.randint(len(dataset), size=DIGIT_BATCH))
    rates = {name: [] for name in sources}  # per second of the wall clock, and of CPU time
    for _ in range(DIGIT_REPEATS + 1):
        for name, make in sources.items():
            n_batches = 1 if name == "svg_loader" else 5
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(n_batches):
                make()
            end, cpu_end = time.perf_counter(), time.process_time()
            rates[name].append(n_batches * DIGIT_BATCH / np.array([end - start, cpu_end - cpu_start]))
    result = {}
    reference = np.array(rates["svg_loader"][1:])  # the first turn warms up
    for name, turns in rates.items():
        wall, cpu = np.array(turns[1:]).T
        low, median, high = np.percentile(wall, (25, 50, 75)).round().astype(int).tolist()
        result[name] = {"clips_per_s": median, "quartiles": [low, high], "clips_per_cpu_s": round(np.median(cpu))}
        if name != "svg_loader":
            result[name]["ratio"] = round(float(np.median(wall / reference[:, 0])), 2)
    return result


def moving_digits() -> dict:
    """Both flavours by name."""
    options = {"seq_len": DIGIT_FRAMES, "glyphs": "drawn"}
    return {
        flavour: load_dataset("moving_mnist", None, "train", digit_size=digit_size, **options)
        for flavour, digit_size in FLAVOURS.items()
    }


def digits_on_device(batch_size: int, device: torch.device, repeats: int = DIGIT_REPEATS) -> dict:
    """Clips per second of device_batches, medians over the turns; host_ms is what a batch takes before it returns."""
    result, rng = {}, np.random.default_rng(0)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for flavour, dataset in moving_digits().items():
        make, rates, host = device_batches(dataset, device), [], []
        for _ in range(repeats + 1):
            batches = rng.integers(len(dataset), size=(10, batch_size)).tolist()
            wait()
            start = time.perf_counter()
            for batch in batches:
                make(batch)
            host.append((time.perf_counter() - start) / len(batches))
            wait()
            rates.append(len(batches) * batch_size / (time.perf_counter() - start))
        clips_per_s, host_ms = round(np.median(rates[1:])), round(1000 * float(np.median(host[1:])), 2)
        result[flavour] = {"clips_per_s": clips_per_s, "host_ms": host_ms}
    return result


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


def conversion(folder: Path) -> dict:
    """The whole command with its SHA-256 of the arrays, the median of N_REPEATS; MB of the TFRecord file.

    The peak of memory is of the first time, so what is loaded at first use counts too.
    """
    path = folder / "src" / "train" / f"traj_0_to_{N_VIDEOS - 1}.tfrecords"
    write_published(path, N_VIDEOS)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, peaks, times = resident_mb("VmRSS"), [], []
    for _ in range(N_REPEATS):
        shutil.rmtree(folder / "dst", ignore_errors=True)
        start, cpu_start = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            assert convert_bair.main([str(folder / "src"), str(folder / "dst"), "--allow-partial"]) == 0
        times.append((time.perf_counter() - start, time.process_time() - cpu_start))
        peaks.append(resident_mb("VmHWM"))
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="where temporary files go; the system's folder if left out")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for source, result in digits_on_cpu().items():
        print(json.dumps({"benchmark": "moving_mnist", "device": "cpu", "source": source} | result))
    for batch_size in (100, 1000) if torch.cuda.is_available() else ():
        for source, result in digits_on_device(batch_size, torch.device("cuda")).items():
            line = {"benchmark": "moving_mnist", "device": torch.cuda.get_device_name(), "source": source}
            print(json.dumps(line | {"batch": batch_size} | result))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(json.dumps({"benchmark": "convert_bair"} | conversion(Path(folder))))
        print(json.dumps({"benchmark": "bair"} | reading(Path(folder) / "dst")))


if __name__ == "__main__":
    main()
