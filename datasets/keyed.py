"""Uniform random numbers that are a function of (key, index, draw) alone, for a whole batch of indices at once."""

import functools
from collections.abc import Sequence

import numpy as np
from numpy import ndarray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the step between the states of SplitMix64


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
