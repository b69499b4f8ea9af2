"""Seeds derived from seeds, so that every random stream of a run follows from one number and its place in the run."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def derive_seed(seed: int, *path: int) -> int:
    """A 63-bit seed for the place `path` below `seed`: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over the numbers in turn.

    Equal arguments give equal seeds on every platform; neighbouring paths give unrelated ones.
    """
    state = _mix(int(seed) & _MASK)  # int: numpy's integers do not wrap where they should
    for number in path:
        state = _mix((state ^ (int(number) & _MASK)) + 0x9E3779B97F4A7C15 & _MASK)
    return state >> 1


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
