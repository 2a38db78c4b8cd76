"""Checkpoints, whole or absent: last.pt, the one before it (previous.pt), and the best on validation (best.pt)."""

import io
import os
from pathlib import Path

import torch


class DamagedCheckpoint(ValueError):
    """No readable checkpoint where there should be one."""


def write_atomically(path: Path, content: bytes) -> None:
    """A crash or a full disk leaves the old file or the new one, never half of one; OSError if it cannot be written."""
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
    """Writes last.pt, keeping the one before as previous.pt; if `best`, its weights to best.pt as well.

    OSError if the disk is full; what was there before is whole then.
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


def load(path: Path) -> dict:
    """The state in `path`, tensors (on the CPU) and plain values only; DamagedCheckpoint if it is not a whole one.

    A file that cannot be opened, or memory that runs out, is not the checkpoint's fault: OSError and MemoryError pass.
    """
    content = path.read_bytes()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # zip, pickle and runtime errors alike: torch has no single type for a broken file
        raise DamagedCheckpoint(f"{path} cannot be read: damaged or cut short ({type(error).__name__})") from None
    if not isinstance(state, dict) or not {"step", "model", "ema"} <= state.keys():
        raise DamagedCheckpoint(f"{path} is no checkpoint of a run: it lacks step and model")
    return state


def load_latest(folder: Path) -> tuple[dict | None, str | None]:
    """State to go on from, and a sentence if that was not simply last.pt. (None, None) in a folder without any.

    A last.pt that cannot be read (a crash of the machine, a copy that broke off) is set aside as last.damaged.pt and
    previous.pt is taken. DamagedCheckpoint if neither can be read: nothing is overwritten then.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    damage = []
    for path in (last, previous):
        if not path.exists():
            continue
        try:
            state = load(path)
            if "optimizer" not in state:
                raise DamagedCheckpoint(f"{path} holds weights alone, nothing to go on from")
        except DamagedCheckpoint as error:
            damage.append(str(error))
            continue
        if damage:
            os.replace(last, folder / "last.damaged.pt")
        if path == last:
            return state, None
        return state, f"{damage[0] if damage else f'{last} is missing'}: going on from {path}, step {state['step']}"
    if damage:
        raise DamagedCheckpoint(f"{'; '.join(damage)}; there is no other: move {folder} away to start again")
    return None, None
