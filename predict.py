"""Predict possible futures of one clip.

    python predict.py runs/videos-sigma mine.gif                  a GIF, a film strip and the numbers
    python predict.py smmnist-transport digits.mp4 --n-samples 8  with weights that come with the repository
    python predict.py runs/demo frames/ --n-future 20             a folder of frames; a longer future
    python predict.py runs/robot one.gif --actions left.npy right.npy    a model told what the robot does: one context,
                                                                  a future under each file of actions

Writes prediction.gif, prediction.png and prediction.npz (docs/python.md) into RUN/predictions/CLIP/.
The first frames of the clip are observed; the rest is the truth, shown beside the samples if it is long enough.
"""

import dataclasses

from seqvae import cli
from seqvae.config import read_config
from seqvae.evaluation.config import PredictConfig
from seqvae.folders import find_run


def main(argv: list[str]) -> int:
    """Exit code, as in `seqvae.cli`."""
    return cli.finish("predict.py", lambda: predict(argv))


def predict(argv: list[str]) -> int:
    """Read the arguments before anything that takes time to import."""
    with cli.preparing():
        args = cli.parse_flat(
            PredictConfig,
            argv,
            usage="predict.py RUN CLIP [--FLAG VALUE ...]",
            description=__doc__,
            common=[field.name.replace("_", "-") for field in dataclasses.fields(PredictConfig)],
            positional=("run", "clip"),
        )
        read_config(find_run(args.run))
    from datasets.videos import picture_size, read_video
    from seqvae.evaluation import clip

    return clip.run_prediction(args, read_video, picture_size)


if __name__ == "__main__":
    cli.run_program(main)
