"""kill -9 at random moments: a resumed run ends as one that was never killed, bit for bit."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import train
from seqvae.config import RunConfig
from seqvae.training import checkpoint
from seqvae.training.logger import read_metrics
from tests.helpers import TIMES, TINY, assert_bitwise_equal, change, combinations
from tests.trial import child

MAX_KILLS = 4  # of one run


def runs() -> Iterator[tuple[str, RunConfig]]:
    """Every objective with every likelihood, then one option at a time."""
    short = change(TINY, "optim", steps=12)
    plain = change(change(short, "run", log_every=2, sample_every=4, checkpoint_every=3), "compute", workers=0)
    options = {
        "ema": ("optim", {"ema": 0.9}),
        "cosine": ("optim", {"schedule": "cosine", "warmup": 2}),
        "accumulate": ("optim", {"accumulate": 3}),
        "grad-clip": ("optim", {"grad_clip": 1.0}),
        "group norm": ("model", {"norm": "group"}),
        "fixed prior": ("model", {"prior": "fixed"}),
        "no latent": ("model", {"prior": "none", "z_dim": 10}),
        "vgg": ("model", {"network": "vgg"}),
        "free skips": ("model", {"last_frame_skip": True}),
        "loss on the future": ("objective", {"loss_on": "future"}),
        "workers": ("compute", {"workers": 2}),
        "recompute": ("compute", {"checkpoint_activations": True}),
    }
    for parameter in combinations():
        (cfg,) = parameter.values
        yield parameter.id, dataclasses.replace(cfg, optim=plain.optim, run=plain.run, compute=plain.compute)
    for name, (group, values) in options.items():
        yield name, change(plain, group, **values)


def train_in(cfg: RunConfig, folder: Path) -> int:
    """What train.py does, with settings that are made already."""
    train.parse = lambda argv: dataclasses.replace(cfg, run_dir=str(folder))
    return train.main(["settings"])


def differences(whole: Path, killed: Path) -> list[str]:
    """What is not as in the run that was never killed."""
    found = []
    states = [checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (whole, killed)]
    try:
        assert_bitwise_equal(*states)
    except AssertionError as error:
        found.append(f"last.pt: {error}")
    lines = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (whole, killed)
    ]
    if lines[0] != lines[1]:
        found.append("metrics.jsonl")
    for path in (whole / "samples").iterdir():
        other = killed / "samples" / path.name
        if not other.exists() or other.read_bytes() != path.read_bytes():
            found.append(f"samples/{path.name}")
    return found


def trial(n_kills: int, seed: int, folder: Path) -> Iterator[tuple[int, list[str]]]:
    """For one run after the other, the kills it took and what was wrong."""
    rng, total, choices = random.Random(seed), 0, list(runs())
    rng.shuffle(choices)
    for number in range(10 * n_kills):
        if total >= n_kills:
            return
        name, cfg = choices[number % len(choices)]
        whole, killed, faults = folder / f"{number}_whole", folder / f"{number}_killed", []
        uninterrupted = child.run(lambda cfg=cfg, whole=whole: train_in(cfg, whole))
        if uninterrupted.code != 0:
            yield 0, [f"{name}: {uninterrupted.text[-300:]}"]
            continue
        kills = 0
        while True:
            after = rng.uniform(0, uninterrupted.seconds) if kills < MAX_KILLS else None
            outcome = child.run(lambda cfg=cfg, killed=killed: train_in(cfg, killed), kill_after=after)
            if "Traceback" in outcome.text:
                faults.append(f"{name}: {outcome.text[-500:]}")
            if outcome.code != -9:
                break
            kills += 1
            for path in (killed / "checkpoints").glob("[lpb]*.pt"):
                checkpoint.load(path)  # whole, or absent
        if outcome.code != 0:
            faults.append(f"{name}: exit code {outcome.code}: {outcome.text[-300:]}")
        else:
            faults += [f"{name}: {difference}" for difference in differences(whole, killed)]
        total += kills
        yield kills, faults
