"""Log a run's numbers and GIFs: metrics.jsonl always, Weights & Biases if asked for."""

import json
import math
import uuid
from pathlib import Path

from seqvae.config import RunConfig, to_json
from seqvae.training.checkpoint import write_atomically

Value = float | list[float] | None


def read_metrics(path: Path) -> list[dict[str, Value]]:
    """Lines of a metrics.jsonl with the numbers of a step; broken lines (a crash, a full disk) are skipped."""
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
    return lines


class LoggingFailed(RuntimeError):
    """Weights & Biases does not start; the message says what to pass instead."""


class Logger:
    """Appends to metrics.jsonl, after removing lines later than `start_step`, so that a resumed run repeats none."""

    def __init__(self, run_dir: Path, cfg: RunConfig, start_step: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= start_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.file = self.path.open("a")
        self.wandb = None
        if cfg.wandb.mode != "off":
            import wandb  # takes a second and is not needed otherwise

            identity = run_dir / "wandb_id.txt"  # a resumed run continues the same page
            if not identity.exists():
                write_atomically(identity, uuid.uuid4().hex[:8].encode())
            try:
                self.wandb = wandb.init(
                    project=cfg.wandb.project or "seqvae",
                    id=identity.read_text(),
                    name=run_dir.name,
                    dir=run_dir,
                    mode=cfg.wandb.mode,
                    resume="allow" if cfg.wandb.mode == "online" else None,
                    config=to_json(cfg),
                )
            except Exception as error:  # its errors share no base: network, login, permissions
                raise LoggingFailed(f"wandb does not start ({error}); pass --wandb.mode offline or off") from None
            self.wandb.define_metric("*", step_metric="step")  # its own counter never goes back; a resumed run does
            self.video, self.image = wandb.Video, wandb.Image

    def log(self, step: int, numbers: dict[str, Value]) -> None:
        """Log numbers after `step` optimizer steps. Weights & Biases gets the entries of a list one by one."""
        numbers = {name: _finite(value) for name, value in numbers.items()}
        self.file.write(json.dumps({"step": step, **numbers}) + "\n")
        self.file.flush()
        if self.wandb is not None:
            flat = {}
            for name, value in numbers.items():
                flat |= {f"{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
            self.wandb.log({"step": step, **flat})

    def picture(self, step: int, path: Path) -> None:
        """Send the GIF or PNG at `path` to Weights & Biases, if it is on."""
        if self.wandb is not None:
            picture = self.video(str(path), format="gif") if path.suffix == ".gif" else self.image(str(path))
            self.wandb.log({"step": step, "samples": picture})

    def close(self) -> None:
        """Finish both logs."""
        self.file.close()
        if self.wandb is not None:
            self.wandb.finish()


def _finite(value: Value) -> Value:
    """Replace NaN and infinity, which JSON cannot hold, by None."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if value is not None and math.isfinite(value) else None
