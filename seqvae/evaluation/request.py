"""What an evaluation was asked for, and what follows from it alike for runs and for files of predictions.

Datasets come in as functions: this package knows nothing of the folder `datasets`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from seqvae.evaluation.config import EvalConfig
from seqvae.evaluation.plan import Plan, make_plan
from seqvae.evaluation.scores import Oracle
from seqvae.memory import check_memory
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

    def plan(self, protocol: Protocol, n_samples: int, n_videos: int, out: Path) -> Plan:
        """The plan of one protocol, with the networks that were asked for."""
        args = self.args
        self._check_sizes(n_samples, n_videos, protocol.n_past + protocol.n_future)
        networks = dict(lpips=args.lpips, lpips_vgg=args.lpips_vgg, fvd_weights=args.fvd_weights, use_r3d18=args.r3d18)
        return make_plan(protocol, n_samples, n_videos, out, **networks, device=self.device)

    def out_folder(self, subject: Path, home: Path, name: str, several: bool = False) -> Path:
        """Folder of one result: HOME/NAME, or --out, with a folder for each subject and each of several names."""
        if self.args.out is None:
            return home / name
        subject_name = subject.resolve().stem if self.args.from_predictions else subject.resolve().name
        parts = [subject_name] if len(self.args.subjects) > 1 else []
        return self.args.out.joinpath(*parts, *([name] if several else []))

    def execution(self) -> dict[str, object]:
        """Arguments of `execute` that change no number."""
        args = self.args
        return dict(batch_size=args.batch_size, device=self.device, formats=args.formats, scale=args.gif_scale)

    def oracle(self, clips: Dataset | None, protocol: Protocol, seed: int) -> Oracle | None:
        """The oracle of these clips, if there is one and it was not refused."""
        if not self.args.oracle or clips is None:
            return None
        return self.simulator(clips, protocol.n_past, protocol.n_future, seed)

    def _check_sizes(self, n_samples: int, n_videos: int, n_frames: int) -> None:
        """ValueError where scores and pictures cannot fit this machine's memory: a lower bound, in bytes."""
        args = self.args
        columns, width = min(6, n_samples + 2), max(128, 64 * (args.gif_scale or 1))
        pictures = 3 * min(4, n_videos) * columns * n_frames * width**2
        scores = 12 * n_samples * n_videos * n_frames + n_samples * min(8, n_videos) * n_frames * 64**2
        scale = f", --gif-scale {args.gif_scale}" if args.gif_scale else ""
        what = f"{n_samples} samples of {n_videos} videos, {n_frames} frames{scale}"
        check_memory(pictures + scores + 8 * (args.n_importance or 1) * n_videos * n_frames, what)
