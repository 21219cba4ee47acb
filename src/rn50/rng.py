"""Random draws that are pure functions of what they are for.

A draw is addressed by (seed, purpose, epoch or step, sample id) and has no state: it is the same
whatever was drawn before it, on any number of workers and processes, and on any machine. The
generator hashes the address with the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable
Pseudorandom Number Generators, OOPSLA 2014), vectorised over the samples.
"""

import hashlib

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def key(seed: int, purpose: str, *position: int) -> int:
    """Return the 64-bit key of a stream of draws.

    Args:
        seed: The run's seed, at least 0.
        purpose: What is drawn, such as ``"crop"``; two purposes never share draws.
        position: Where in the run: an epoch, a step, or nothing.
    """
    address = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(address.encode(), digest_size=8).digest(), "little")


def bits(
    stream: int, ids: Int64[np.ndarray, " samples"], draws: int
) -> UInt64[np.ndarray, "samples {draws}"]:
    """Return ``draws`` independent 64-bit values for each sample id."""
    with np.errstate(over="ignore"):
        base = _mix(np.uint64(stream) + _GAMMA * (ids.astype(np.uint64) + np.uint64(1)))
        counter = _GAMMA * (np.arange(draws, dtype=np.uint64) + np.uint64(1))
        return _mix(base[:, None] + counter[None, :])


def uniform(
    stream: int, ids: Int64[np.ndarray, " samples"], draws: int
) -> Float64[np.ndarray, "samples {draws}"]:
    """Return ``draws`` independent values in [0, 1) for each sample id."""
    return (bits(stream, ids, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(stream: int, n: int) -> Int64[np.ndarray, "{n}"]:
    """Return a permutation of 0 … n - 1."""
    keys = bits(stream, np.arange(n, dtype=np.int64), 1)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)


def _mix(z: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))
