"""Read the weights of a run or of an exported folder, and build their model.

A run folder (train.py) holds checkpoints, an exported one (`seqvae.export`) model.safetensors; both hold config.json.
"""

import hashlib
import json
from pathlib import Path

import torch

from seqvae.build import build_model
from seqvae.config import RunConfig
from seqvae.models import VideoModel
from seqvae.training import checkpoint
from seqvae.training.checkpoint import DamagedCheckpoint, ForeignCheckpoint

WEIGHTS_FILE = "model.safetensors"
OBJECTIVE = "objective."  # prefix of the objective's tensors there; the model's have their own names
RETIRED = ("wander", "log_spread")  # weights of `transport` from before displacements were whole pixels
# What config.json says of the weights beside it; the rest of the state is tensors.
DESCRIBED = {"step": int, "channels": int, "image_size": int, "checkpoint": str}


def load_model(run_dir: Path, cfg: RunConfig, which: str = "best") -> tuple[VideoModel, dict]:
    """The run's model on the CPU in eval mode, averaged weights if it has them, and the state they come from.

    Args:
        run_dir: from `find_run`.
        cfg: its settings.
        which: checkpoint, best or last; exported weights are of one checkpoint, which the state names.

    Raises:
        FileNotFoundError: no weights there.
        ValueError: weights that are damaged, or of another model than the settings describe.
    """
    state = read_state(run_dir, which)
    another = f"{state['path']} is of another model than {run_dir / 'config.json'} describes"
    if state["image_size"] != cfg.data.image_size:
        raise ValueError(f"{another} (image_size is {state['image_size']}, expected {cfg.data.image_size})")
    model = build_model(cfg, state["channels"])
    weights = state["ema"] or state["model"]
    try:
        checkpoint.check_like(weights, model.state_dict(), "weights")
        model.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{another} ({' '.join(str(error).split())})") from None
    return model.eval(), state


def read_state(run_dir: Path, which: str = "best") -> dict:
    """The checkpoint's state, or what of it was exported, with `path`, `checkpoint`, `averaged` saying what it is."""
    state = _read_state(run_dir, which)
    for name in ("model", "ema"):
        if state[name] is not None:
            state[name] = {key: value for key, value in state[name].items() if key not in RETIRED}
    return state


def _read_state(run_dir: Path, which: str) -> dict:
    if (run_dir / WEIGHTS_FILE).exists():
        state = _read_exported(run_dir)
        if which == "last" != state["checkpoint"]:
            raise ValueError(f"{run_dir} holds the weights of {state['checkpoint']}.pt alone; drop the choice of last")
        return state
    path = run_dir / "checkpoints" / f"{which}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; train the run to its first checkpoint, or choose --checkpoint")
    state = checkpoint.load(path)
    if "channels" not in state:
        raise ValueError(f"{path} does not say the size of its videos, so an earlier version made it; use that version")
    return state | {"path": path, "checkpoint": which, "averaged": state["ema"] is not None}


def _read_exported(folder: Path) -> dict:
    from safetensors import SafetensorError  # here, because runs do without it
    from safetensors.torch import load

    path = folder / WEIGHTS_FILE
    content = path.read_bytes()
    try:
        described = json.loads((folder / "config.json").read_text())["weights"]
        facts = {name: described[name] for name, kind in DESCRIBED.items() if isinstance(described[name], kind)}
        if facts.keys() != DESCRIBED.keys():
            raise ValueError
        expected = described["sha256"]
    except (ValueError, LookupError, TypeError):
        raise ForeignCheckpoint(f"{folder / 'config.json'} does not describe {WEIGHTS_FILE}; export it again") from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise DamagedCheckpoint(f"{path} is damaged or incomplete: its SHA-256 is not the one in config.json")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error})") from None
    tensors = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    objective = {name.removeprefix(OBJECTIVE): v for name, v in tensors.items() if name.startswith(OBJECTIVE)}
    model = {name: v for name, v in tensors.items() if not name.startswith(OBJECTIVE)}
    named = checkpoint.with_present_names(objective)
    return facts | {
        "path": path,
        "model": model,
        "ema": None,
        "averaged": described.get("averaged", False),
        "objective": named,
    }
