"""Rendered robot pushing: `pushing`, BAIR's stand-in, 64 px colour videos of 30 frames with actions.

A Sawyer arm pushes household objects through a tray (MuJoCo's physics; robosuite's arm and objects). 512 trajectories
to train and validate on and 64 to test on are what `python -m datasets.pushing.convert` reads; more can be rendered.
"""

from pathlib import Path

import numpy as np
from numpy import ndarray

from datasets.bair import RobotClips, open_values

# The camera looks down on the tray from one side: where it is, and where it looks, metres, as the renderer has it.
CAMERA, TARGET = np.array([0.58, -0.36, 0.80]), np.array([0.02, -0.01, 0.01])


def pushing(
    root: str | Path | None, split: str, *, seq_len: int, image_size: int = 64, seed: int = 0, flip: bool = False
) -> RobotClips:
    """Clips, split and cut as `bair`'s are. Actions are the fingertips' (dx, dy, dz) in metres and the grip, -1 or 1.

    Args:
        root: folder of pushing_train.npy and pushing_test.npy, and of their actions and positions.
        seq_len: T, at most 30.
        flip: mirror half of the training clips, left to right, with their actions and positions.

    Raises:
        ValueError: a setting that cannot work.
        FileNotFoundError: data that is missing or damaged, with the command that makes it.
    """
    settings = dict(seq_len=seq_len, image_size=image_size, seed=seed, flip=flip)
    return RobotClips("pushing", open_pushing, root, split, **settings, mirror=camera_mirror(CAMERA, TARGET))


def open_pushing(root: Path, published: str, kind: str = "") -> ndarray:
    """(N, 30, ...) of the training or the test trajectories, as open_values."""
    remedy = f"make it with `python -m datasets.pushing.convert PUSHING.npz {root}`"
    return open_values(root / f"pushing_{published}{kind}.npy", kind, remedy)


def camera_mirror(camera: ndarray, target: ndarray) -> tuple[ndarray, ndarray]:
    """The reflection of space that mirrors a camera's picture: in the upright plane that its line of sight lies in.

    Exact but for the light, which would be reflected too.

    Returns:
        Matrix (3, 3) and offset (3,): a displacement d becomes M d, a point p becomes M p + offset.
    """
    back = camera - target
    right = np.array([-back[1], back[0], 0.0]) / np.hypot(back[0], back[1])
    return np.eye(3) - 2 * np.outer(right, right), 2 * right * (right @ camera)
