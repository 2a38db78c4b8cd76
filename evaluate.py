"""Predict the test videos of one or several runs, score them, and show them on a page.

    python evaluate.py runs/demo                                        GIFs, strips, curves, report.html, metrics.json
    python evaluate.py runs/smmnist-geco --n-samples 10 --n-videos 256  part of the protocol, and said so
    python evaluate.py runs/a runs/b                                    several runs, and a page that compares them
    python evaluate.py smmnist-transport                                weights that come with the repository
    python evaluate.py runs/a --save-predictions                        keep the predictions in one file
    python evaluate.py --from-predictions FILE                          score it again; no model, no GPU
    python evaluate.py runs/mnist-geco                                  single images: errors, bounds, pictures
    torchrun --nproc-per-node 4 evaluate.py runs/a                      videos shared out over processes

Everything lands in RUN/evaluation/PROTOCOL/ (images: RUN/evaluation/images/). A video's predictions are a function of
(seed, video, sample), so they do not depend on the batch size or on the other videos.
"""

from seqvae import cli
from seqvae.config import read_config
from seqvae.evaluation.config import EvalConfig
from seqvae.folders import find_run

# What --help shows; --help-all shows every flag.
COMMON = (
    *("run-dirs", "protocol", "n-samples", "n-videos", "save-predictions", "from-predictions", "lpips"),
    *("fvd-weights", "batch-size", "seed", "checkpoint", "out", "data-root", "device"),
)


def main(argv: list[str]) -> int:
    """Exit code, as in `seqvae.cli`."""
    return cli.finish("evaluate.py", lambda: evaluate(argv))


def evaluate(argv: list[str]) -> int:
    """Read the arguments before anything that takes time to import."""
    with cli.preparing():
        args = cli.parse_flat(
            EvalConfig,
            argv,
            usage="evaluate.py RUN [RUN ...] [--FLAG VALUE ...]",
            description=__doc__,
            common=COMMON,
            positional=("run-dirs",),
        )
        for run in args.run_dirs:
            read_config(find_run(run))
    from datasets import load_dataset
    from seqvae.evaluation import session

    return session.run_evaluation(args, load_dataset, simulator)


def simulator(clips, n_past: int, n_future: int, seed: int):
    """Futures of the true simulator; None for clips without one, or without chance: the truth is the only one then."""
    from datasets.digits.moving_mnist import SimulatedDigits
    from datasets.digits.oracle import oracle_futures

    if not isinstance(clips, SimulatedDigits) or clips.motion.deterministic:
        return None
    return lambda videos, samples: oracle_futures(clips, videos, n_past, n_future, samples, seed)


if __name__ == "__main__":
    cli.run_program(main)
