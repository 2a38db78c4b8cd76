"""Checkpoints: last.pt, the one before it (previous.pt), and the best on validation (best.pt), each whole or absent."""

import io
import os
import zipfile
from pathlib import Path

import torch
from torch import Tensor


class DamagedCheckpoint(ValueError):
    """A checkpoint file was damaged after it was written, or cut short."""


class ForeignCheckpoint(ValueError):
    """An undamaged file that does not hold this run's state."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old or the new one whole; OSError if that fails."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def save(folder: Path, state: dict, *, best: bool) -> None:
    """Write last.pt, keeping the one before as previous.pt; if `best`, write its weights to best.pt as well.

    OSError if the disk is full; the earlier files are intact then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.pt"
    if best:  # first: last.pt says which validation was the best, so it must not be ahead of best.pt
        kept = ("step", "channels", "image_size", "model", "ema", "objective")
        write_atomically(folder / "best.pt", _serialised({name: state[name] for name in kept}))
    write_atomically(folder / "new.pt", _serialised(state))
    if last.exists():
        os.replace(last, folder / "previous.pt")
    os.replace(folder / "new.pt", last)


def _serialised(state: dict) -> bytes:
    buffer = io.BytesIO()  # in memory first: torch.save hides a full disk behind an error of its own
    torch.save(state, buffer)
    return buffer.getvalue()


EARLIER_NAMES = {"gap": "held_out_gap", "rule.best": "rule.lowest_error"}  # of the objective's tensors


def with_present_names(objective: dict[str, Tensor]) -> dict[str, Tensor]:
    """The objective's tensors, those of earlier versions too, under the names that they have now."""
    return {EARLIER_NAMES.get(name, name): value for name, value in objective.items()}


def load(path: Path) -> dict:
    """Read the state in `path`: tensors (on the CPU) and plain values only.

    torch.save stores a CRC-32 of every tensor, which torch.load ignores. Here it is verified first, so a single flipped
    bit is found.

    Raises:
        DamagedCheckpoint: the file is not what was written.
        ForeignCheckpoint: the file is intact, but not a run's.
        OSError, MemoryError: the file cannot be opened or does not fit into memory.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as records:
            if (damaged := records.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong CRC-32 of {damaged}")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # zip, pickle and runtime errors alike: torch has no single type for a broken file
        raise DamagedCheckpoint(f"{path} cannot be read: damaged or cut short ({type(error).__name__})") from None
    if not isinstance(state, dict) or not {"step", "model", "ema", "objective"} <= state.keys():
        raise ForeignCheckpoint(f"{path} is not a checkpoint of a run: it lacks step, model, ema or objective")
    if type(state["step"]) is not int or state["step"] < 0:
        raise ForeignCheckpoint(f"{path}: step is {state['step']!r:.40}, expected a number of steps")
    for name in ("model", "objective", *(["ema"] if state["ema"] is not None else [])):
        tensors = state[name]
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ForeignCheckpoint(f"{path}: {name} is not a dict of tensors")
        if not tensors and name != "objective":
            raise ForeignCheckpoint(f"{path}: {name} is empty")
    return state | {"objective": with_present_names(state["objective"])}


def check_like(found: object, expected: object, name: str) -> None:
    """Raise ForeignCheckpoint unless both have equal keys, types and shapes, and `found` no NaN; errors say `name`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *found]:
            if key not in expected or key not in found:
                where = "is missing" if key not in found else "does not belong there"
                raise ForeignCheckpoint(f"{name}.{key} {where}; these settings do not describe it")
            check_like(found[key], expected[key], f"{name}.{key}")
        return
    if _kind(found) != _kind(expected):
        raise ForeignCheckpoint(f"{name} is {_kind(found)}, expected {_kind(expected)}; it is from another run")
    if not (found.isfinite().all() if isinstance(found, Tensor) else found == found):
        raise ForeignCheckpoint(f"{name} holds NaN or infinity")


def _kind(value: object) -> str:
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def load_latest(folder: Path) -> tuple[dict | None, str | None]:
    """State to resume from, and a sentence if it is not simply last.pt's; (None, None) in a folder without any.

    Falls back to previous.pt if last.pt is damaged (a crash of the machine, a bad disk) or missing. Changes no file:
    `set_aside_damaged` does, once the state is accepted.

    Raises:
        DamagedCheckpoint: neither can be read.
        ForeignCheckpoint: an intact file that no run can resume from.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    damage = []
    for path in (last, previous):
        if not path.exists():
            continue
        try:
            state = load(path)
        except DamagedCheckpoint as error:
            damage.append(str(error))
            continue
        if "optimizer" not in state:
            raise ForeignCheckpoint(f"{path} holds weights alone, nothing to resume from")
        if path == last:
            return state, None
        return state, f"{damage[0] if damage else f'{last} is missing'}: resuming from {path}, step {state['step']}"
    if damage:
        raise DamagedCheckpoint(f"{'; '.join(damage)}; there is no other: move {folder} away to start again")
    return None, None


def set_aside_damaged(folder: Path) -> None:
    """Rename a last.pt that `load_latest` found damaged, so that it never replaces the good previous.pt."""
    if (folder / "last.pt").exists():
        os.replace(folder / "last.pt", folder / "last.damaged.pt")
