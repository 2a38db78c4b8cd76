"""What every dataset is made of: splits, clips by index, random numbers by name."""

import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.utils.data import Dataset

SPLITS = ("train", "valid", "test")
# Made on the fly, a training clip costs nothing until it is asked for, so there are more of them than any run looks at
# (2**24 is 170,000 steps of batch 100) and no clip comes twice. Valid and test are fixed sets to measure on.
N_CLIPS = {"train": 2**24, "valid": 4096, "test": 10_000}
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the step between the states of SplitMix64


class ClipDataset(Dataset):
    """Map-style dataset of uint8 (T, C, H, W) clips that are made a whole batch at a time.

    A subclass sets n_clips, and channels unless it is 1, and makes clips in `clips`; clip i must not depend on the
    other indices of its batch.
    """

    channels = 1
    action_size = 0  # numbers of an action, where the dataset has `actions`
    n_clips: int

    def clips(self, indices: Sequence[int]) -> ndarray:
        """(B, T, C, H, W) uint8; indices in [0, n_clips)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.n_clips

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """(T, C, H, W) uint8 each; DataLoader fetches its batches here."""
        return list(torch.from_numpy(self.clips(self.check_indices(indices))))  # B x (T, C, H, W)

    def check_indices(self, indices: Iterable[int]) -> list[int]:
        """Raises IndexError unless every index is that of a clip."""
        indices = [int(index) for index in indices]
        for index in indices:
            if not 0 <= index < self.n_clips:
                raise IndexError(f"clip {index} is not in 0..{self.n_clips - 1}")
        return indices

    def content_hash(self, n: int) -> str:
        """SHA-256, hexadecimal, of the first n clips as uint8 (N, T, C, H, W)."""
        check_int("n", n, 0)
        if n > self.n_clips:
            raise ValueError(f"n must be <= {self.n_clips}, the number of clips, got {n}")
        digest = hashlib.sha256()
        for first in range(0, n, 64):
            digest.update(self.clips(range(first, min(first + 64, n))).tobytes())
        return digest.hexdigest()


def check_int(name: str, value: object, lowest: int) -> None:
    """Raises ValueError unless value is an integer (not a bool) of at least lowest."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < lowest:
        raise ValueError(f"{name} must be an integer >= {lowest}, got {value!r}")


def keyed_uniform(key: tuple[int, ...], indices: Sequence[int], n_draws: int) -> ndarray:
    """(n_draws, B) float64 in [0, 1), multiples of 2**-53; more draws continue fewer.

    A NumPy generator for each index would cost 10 us per index, more than the clip that is made from it. Here a hash
    of counters takes its place: number j of index i is mix(mix(a + i * GOLDEN) ^ mix(b + j * GOLDEN)), where a and b
    are two words that NumPy's SeedSequence makes of the key. So no two indices of a key share a state.

    Source: SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195; it passes TestU01's BigCrush.
    """
    a, b = _stream(key)
    states = mix(a + np.asarray(indices, np.uint64) * GOLDEN)
    counters = mix(b + np.arange(n_draws, dtype=np.uint64) * GOLDEN)
    words = mix(counters[:, None] ^ states)
    words >>= np.uint64(11)
    return words * 2.0**-53


def mix(words: ndarray) -> ndarray:
    """SplitMix64's bijection of 64-bit words, in place: each bit of the result depends on every bit of the word."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words


@functools.cache
def _stream(key: tuple[int, ...]) -> ndarray:
    """(2, 1) words that nothing but chance could make equal for two keys."""
    return np.random.SeedSequence(key).generate_state(2, np.uint64)[:, None]
