"""What a launcher (torchrun, or anything that sets the same variables) says of this process; no torch."""

import os

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """(rank, number of processes) as the launcher says, (0, 1) without one; ValueError if it says half of it."""
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        return 0, 1
    if os.environ.get("WORLD_SIZE") == "1":
        return 0, 1
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not set, and other variables of a launcher are; start with torchrun")
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        rank, size = -1, -1
    if not 0 <= rank < size:
        raise ValueError(
            f"RANK {os.environ['RANK']} and WORLD_SIZE {os.environ['WORLD_SIZE']} describe no process of a launcher; "
            "start with torchrun, or unset both"
        )
    return rank, size


def is_first() -> bool:
    """Whether this process is the one that prints; also before joining, and where the launcher says nonsense."""
    try:
        return launched()[0] == 0
    except ValueError:
        return True


def say(text: str, **options) -> None:
    """Prints it, once for all processes."""
    if is_first():
        print(text, **options)
