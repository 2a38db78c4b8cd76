"""What an evaluation was asked for, and what follows from it alike for runs and for files of predictions.

Datasets come in as functions: this package knows nothing of the folder `datasets`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from seqvae.evaluation.config import EvalConfig
from seqvae.evaluation.scores import Oracle
from seqvae.metrics.protocols import Protocol


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run: whatever can be wrong about its arguments has been found out."""

    outs: list[Path]  # folders of its results
    run: Callable[[], list[str]]  # measures, writes into `outs`, and returns the terminal's lines


@dataclass(frozen=True)
class Request:
    """Settings, device and the data sets."""

    args: EvalConfig
    device: torch.device
    load_dataset: Callable[..., Dataset]  # datasets.load_dataset
    # (clips, n_past, n_future, seed) -> futures of the true simulator, None for clips that have none
    simulator: Callable[[Dataset, int, int, int], Oracle | None]

    def out_folder(self, subject: Path, home: Path, name: str, several: bool = False) -> Path:
        """Folder of one result: HOME/NAME, or --out, with a folder for each subject and each of several names."""
        if self.args.out is None:
            return home / name
        subject_name = subject.resolve().stem if self.args.from_predictions else subject.resolve().name
        parts = [subject_name] if len(self.args.subjects) > 1 else []
        return self.args.out.joinpath(*parts, *([name] if several else []))

    def oracle(self, clips: Dataset | None, protocol: Protocol, seed: int) -> Oracle | None:
        """The oracle of these clips, if there is one and it was not refused."""
        if not self.args.oracle or clips is None:
            return None
        return self.simulator(clips, protocol.n_past, protocol.n_future, seed)
