"""Counter-based random numbers: every number is a function of its name, never of who asked before.

A *key* is a 64-bit integer. ``draw(key, counter)`` is position ``counter`` of the SplitMix64 sequence started at
``key`` (Steele, Lea and Flood, OOPSLA 2014), so it can be read in any order and on any machine with the same result.
Keys form a tree: seed -> exam -> {tasks, order, latent, outcomes -> replicate}.

All functions are compiled; they take and return ``uint64``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_ONE = np.uint64(1)

# Branches of the key tree. Their numbers are part of exam identity: changing one changes every exam.
TASKS = np.uint64(1)
ORDER = np.uint64(2)
LATENT = np.uint64(3)
OUTCOMES = np.uint64(4)
ACTIONS = np.uint64(5)


@njit(cache=True, inline="always")
def draw(key: np.uint64, counter: np.uint64) -> np.uint64:
    """Return number ``counter`` of the sequence named ``key`` (both uint64)."""
    z = key + (counter + _ONE) * GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@njit(cache=True, inline="always")
def below(number: np.uint64, bound: np.uint64) -> np.uint64:
    """Map a 64-bit number to ``0..bound-1`` by multiply-and-shift of its high half; bias below ``bound / 2**32``."""
    return scaled(number >> _S32, bound)


@njit(cache=True, inline="always")
def scaled(half: np.uint64, bound: np.uint64) -> np.uint64:
    """:func:`below` of a number given by its high half."""
    return (half * bound) >> _S32


@njit(cache=True, inline="always")
def exam_key(seed: np.uint64, exam_id: np.int64) -> np.uint64:
    """Key of everything that belongs to one exam."""
    return draw(draw(seed, np.uint64(0)), np.uint64(exam_id))


@njit(cache=True, inline="always")
def outcome_key(seed: np.uint64, exam_id: np.int64, replicate: np.int64) -> np.uint64:
    """Key of one exam's potential outcomes in one replicate."""
    return draw(draw(exam_key(seed, exam_id), OUTCOMES), np.uint64(replicate))
