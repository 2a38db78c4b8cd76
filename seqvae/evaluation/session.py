"""An evaluation from its settings: prepare everything, so that mistakes show first; then predict, score, write."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset

from seqvae import cli, distributed
from seqvae.device import choose_device
from seqvae.evaluation.config import EvalConfig
from seqvae.evaluation.files import prepare_file
from seqvae.evaluation.predictions import BadPredictions
from seqvae.evaluation.request import Evaluation, Request
from seqvae.evaluation.runs import prepare_run
from seqvae.evaluation.scores import Oracle
from seqvae.report.page import write_report
from seqvae.report.tables import comparison_table

TIMEOUT = 3600  # seconds that processes wait for one another: their shares of the videos may differ in speed


def run_evaluation(
    args: EvalConfig, load_dataset: Callable[..., Dataset], simulator: Callable[..., Oracle | None]
) -> int:
    """Evaluate all that was asked for, and compare it; exit code 0, other ends raise `cli.Ended`."""
    device = args.device
    with cli.together("start it again"):
        with cli.preparing(lambda: device):
            distributed.join(args.device != "cpu" and torch.cuda.is_available(), TIMEOUT)
            device = distributed.on_all(lambda: choose_device(args.device, "--device"))
            if device.index is not None:
                torch.cuda.set_device(device)
            request = Request(args, device, load_dataset, simulator)
            evaluations = distributed.on_all(lambda: prepare(request))
            outs = [out for evaluation in evaluations for out in evaluation.outs]
            several = len(args.subjects) > 1 or len(args.actions) > 1
            page = (args.out or Path("comparison")) if several else None
            distributed.on_main(lambda: [check_folder(out) for out in [*outs, page] if out is not None])
        evaluate(evaluations, page, args.batch_size)
    return 0


def prepare(request: Request) -> list[Evaluation]:
    """An evaluation for each test set of each run, or for each file; ValueError if two would write one folder."""
    args, evaluations = request.args, []
    for subject in args.subjects:
        evaluations += [prepare_file(request, subject)] if args.from_predictions else prepare_run(request, subject)
    outs = [out for evaluation in evaluations for out in evaluation.outs]
    for out in outs:
        if outs.count(out) > 1:
            raise ValueError(
                f"{out} would be written twice; name each run, file and protocol once, or evaluate them one by one"
            )
    return evaluations


def check_folder(out: Path) -> None:
    """Make it; OSError where nothing can be written into it."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def evaluate(evaluations: list[Evaluation], page: Path | None, batch_size: int) -> None:
    """Run each, then write the page that compares them."""
    where = evaluations[0].outs[0]
    with cli.working(lambda: where, f"--batch-size {batch_size}"):
        try:
            for evaluation in evaluations:
                where = evaluation.outs[0]
                distributed.say("\n".join(evaluation.run()), flush=True)
        except BadPredictions as error:
            raise cli.Ended(str(error), 2, everywhere=True) from None
        if page is not None and distributed.is_main():
            where = page
            outs = [out for evaluation in evaluations for out in evaluation.outs]
            write_report(page / "report.html", outs)
            distributed.say("\n".join(["", *comparison_table(outs), f"wrote {page / 'report.html'}"]))
