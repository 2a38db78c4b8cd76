"""Export a run's weights to a folder that can be shared.

    python -m seqvae.export runs/demo shared/demo                     model.safetensors, config.json, README.md (card)
    python -m seqvae.export runs/demo pretrained/demo --dtype float16 half the size; float32 again when loaded
    python -m seqvae.export runs/demo shared/demo --push NAME/demo    to the Hugging Face hub too (the extra `hub`)

The folder is accepted wherever a run folder is: `seqvae.load_run("shared/demo")`, `python evaluate.py shared/demo`.
"""

import dataclasses
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from seqvae import cli
from seqvae.config import RunConfig, read_config, to_json
from seqvae.extras import require
from seqvae.folders import find_run
from seqvae.metrics.best_of_n import plus_minus
from seqvae.report.evaluated import of_actions
from seqvae.training.checkpoint import write_atomically
from seqvae.training.logger import read_metrics
from seqvae.weights import OBJECTIVE, WEIGHTS_FILE, load_model

CARD = "README.md"  # the name under which the hub shows it


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export, and how."""

    run: Path  # folder that train.py made
    out: Path  # folder to write; its last part names the weights
    checkpoint: Literal["best", "last"] = "best"  # best on validation, or the last one
    dtype: Literal["float32", "float16"] = "float32"  # of the weights on disk; float16 rounds them
    license: str = "mit"  # of the weights, as the hub spells it
    push: str | None = None  # upload the folder to this repository of the hub, OWNER/NAME, too
    private: bool = False  # with --push: make a new repository private


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 the folder could not be written or uploaded, 2 the arguments or the run are wrong."""
    return cli.finish("export", lambda: _export(argv))


def _export(argv: list[str]) -> None:
    with cli.preparing():
        args = cli.parse_flat(
            ExportConfig,
            argv,
            usage="python -m seqvae.export RUN OUT [--FLAG VALUE ...]",
            description=__doc__,
            common=[field.name for field in dataclasses.fields(ExportConfig)],
            positional=("run", "out"),
        )
        if args.push is not None:
            require("huggingface_hub", "hub", "--push")
    try:
        written = export(args.run, args.out, checkpoint=args.checkpoint, dtype=args.dtype, licence=args.license)
    except (ValueError, FileNotFoundError) as error:
        raise cli.Ended(str(error), 2) from None
    except OSError as error:
        raise cli.Ended(f"cannot write {error.filename or args.out}: {error.strerror or error}", 1) from None
    for path in written:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.3g} MB)")
    if args.push is None:
        return
    try:
        print(f"pushed to {push(args.out, args.push, private=args.private)}")
    except Exception as error:  # the hub's client raises anything, from HTTP errors to ValueError
        raise cli.Ended(f"{args.out} is written, but not pushed: {' '.join(str(error).split())}", 1) from None


def export(
    run: str | Path, out: Path, *, checkpoint: str = "best", dtype: str = "float32", licence: str = "mit"
) -> list[Path]:
    """Writes model.safetensors, config.json and the card into `out`, and returns their paths.

    An earlier export there is replaced.

    Raises:
        FileNotFoundError, ValueError: no run, or one that cannot be exported.
        OSError: `out` cannot be written.
    """
    from safetensors.torch import save

    run_dir = find_run(run)
    if out.resolve() == run_dir.resolve() or (out / "checkpoints").exists():
        raise ValueError(f"{out} is a run folder, whose config.json would be replaced; choose another folder")
    theirs = [name for name in ("config.json", CARD) if (out / name).exists()]
    if theirs and not (out / WEIGHTS_FILE).exists():
        raise ValueError(f"{out} holds a {' and a '.join(theirs)} that no export wrote; choose another folder")
    cfg = read_config(run_dir)
    model, state = load_model(run_dir, cfg, checkpoint)
    names = {name for name, _ in model.named_parameters()}  # statistics and sigmas are few, and stay exact
    tensors = {name: _stored(x, dtype if name in names else None, name) for name, x in model.state_dict().items()}
    tensors |= {OBJECTIVE + name: x.contiguous() for name, x in state["objective"].items()}
    content = save(tensors, metadata={"format": "pt"})
    described = {
        "step": state["step"],
        "checkpoint": state["checkpoint"],
        "channels": model.channels,
        "image_size": model.image_size,
        "dtype": dtype,
        "averaged": state["averaged"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    trained = json.loads((run_dir / "config.json").read_text())
    whole = {
        "config": to_json(_without_paths(cfg)),
        "weights": described,
        "command": re.sub(r"(?<![^\s='\"])/[^\s'\"]*/", "", trained.get("command", "")),  # no folders of this machine
        "versions": trained.get("versions", {}),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / WEIGHTS_FILE, content)
    write_atomically(out / "config.json", json.dumps(whole, indent=1).encode())
    write_atomically(out / CARD, card(run_dir, out.resolve().name, cfg, whole, licence).encode())
    return [out / WEIGHTS_FILE, out / "config.json", out / CARD]


def push(out: Path, repository: str, *, private: bool = False) -> str:
    """Uploads the folder's three files to the Hugging Face hub, and returns the address."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    files = [WEIGHTS_FILE, "config.json", CARD]
    api.upload_folder(repo_id=repository, folder_path=out, allow_patterns=files, commit_message=f"Export of {out.name}")
    return f"https://huggingface.co/{repository}"


def card(run_dir: Path, name: str, cfg: RunConfig, described: dict, licence: str) -> str:
    """The model card: what the weights are, how to use them, what they reached, and their hash."""
    weights, data = described["weights"], cfg.data
    if data.images:
        task, use = "images", "run.score(frames)  # of uint8 frames (T, H, W): nats and bits per dim of each"
    else:
        task = f"videos: {data.n_past} frames seen, {data.n_future} predicted in training"
        use = f"futures = run.predict(frames, n_future={data.n_future}, n_samples=5, seed=0)  # frames: uint8 (T, H, W)"
        if cfg.model.actions:
            use = use.replace("seed=0", "actions=actions").replace("(T, H, W)", "(T, H, W, 3), actions as in training")
        if not cfg.model.has_latent:
            use = use.replace("n_samples=5, ", "")
    objective = cfg.objective.name + (f", tolerance {cfg.objective.tolerance}" if "geco" in cfg.objective.name else "")
    lines = [
        "---",
        f"license: {licence}",
        "library_name: seqvae",
        "tags: [video-prediction, variational-autoencoder, seqvae]",
        "---",
        "",
        f"# {name}",
        "",
        f"A `{cfg.model.family}` model of seqvae, trained on `{data.name}` ({task}).",
        "",
        "```python",
        "import seqvae",
        "",
        f'run = seqvae.load_run("{name}")  # this folder',
        use,
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| frames | {weights['image_size']} x {weights['image_size']}, {weights['channels']} channel(s) |",
        f"| objective | {objective} |",
        f"| decoder | {cfg.likelihood.name} |",
        f"| parameters | {weights['parameters']:,}, {weights['dtype']} on disk |",
        f"| steps | {weights['step']:,} of {cfg.optim.steps:,}, checkpoint `{weights['checkpoint']}`"
        f"{', averaged weights' if weights['averaged'] else ''} |",
        f"| command | `{described['command']}` |",
        f"| versions | {', '.join(f'{k} {v}' for k, v in described['versions'].items())} |",
        f"| SHA-256 of {WEIGHTS_FILE} | `{weights['sha256']}` |",
        f"| licence | {licence} |",
        "",
        *_scores(run_dir, weights),
        *_validation(run_dir, weights),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _scores(run_dir: Path, weights: dict) -> list[str]:
    """A table for each evaluation of these weights."""
    lines = []
    for path in sorted(run_dir.glob("evaluation/*/metrics.json")):
        try:
            facts = json.loads(path.read_text())
            if (facts["step"], facts["checkpoint"]) != (weights["step"], weights["checkpoint"]):
                continue
            metrics = list(facts["metrics"])
            rows = [
                [method, *(f"{scores[m]['mean']:.4g}{plus_minus(scores[m]['interval95'], 3)}" for m in metrics)]
                for method, scores in facts["results"].items()
                if all(m in scores for m in metrics)
            ]
            titles = [facts["metrics"][m]["label"] for m in metrics]
            parts = (facts["protocol"], of_actions(facts), f"test set SHA-256 `{facts['test_set']['sha256']}`")
            heading = "; ".join(filter(None, parts))
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # of another version, or of images, which have other numbers
        lines += [f"## {heading}", "", f"| | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
        lines += [*(f"| {' | '.join(row)} |" for row in rows), "", "Mean over test videos, 95 % interval.", ""]
    return lines


def _validation(run_dir: Path, weights: dict) -> list[str]:
    """The numbers of the validation that belongs to these weights."""
    try:
        found = [m for m in read_metrics(run_dir / "metrics.jsonl") if m.get("step") == weights["step"]]
    except (OSError, ValueError):
        return []
    numbers = {k: v for m in found for k, v in m.items() if k.startswith("valid/") and isinstance(v, float)}
    if not numbers:
        return []
    rows = [f"| `{key}` | {value:.4g} |" for key, value in numbers.items()]
    return [f"## Validation at step {weights['step']:,}", "", "| | |", "|---|---|", *rows, ""]


def _stored(tensor: Tensor, dtype: str | None, name: str) -> Tensor:
    """As it is written: contiguous, a parameter in the dtype asked for."""
    if dtype == "float16" and tensor.dtype == torch.float32:
        tensor = tensor.half()
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is too large for float16; export with --dtype float32")
    return tensor.contiguous()


def _without_paths(cfg: RunConfig) -> RunConfig:
    """The settings without folders of the machine they were used on."""
    data = dataclasses.replace(cfg.data, root="data") if cfg.data.root is not None else cfg.data
    return dataclasses.replace(cfg, run_dir=None, init_from=None, data=data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
