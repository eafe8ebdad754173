"""Copies and comparisons of rows of any length, against NumPy: exactly what is asked for is written."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env.exams.simd import at_most, copy_row


@njit
def copied(
    target: npt.NDArray[np.float32], column: int, source: npt.NDArray[np.float32], start: int, length: int
) -> None:
    copy_row(target, np.uint64(1), np.uint64(column), source, np.uint64(2), np.uint64(start), np.uint64(length))


@njit
def compared(target: npt.NDArray[np.int8], source: npt.NDArray[np.int32], limit: int, length: int) -> None:
    at_most(target, np.uint64(1), source, np.uint64(2), np.int32(limit), np.uint64(length))


def test_rows_are_copied_exactly() -> None:
    source = np.arange(300, dtype=np.float32).reshape(3, 100)
    for length in range(70):
        for column, start in ((0, 0), (3, 5), (100 - length, 100 - length)):
            target = np.full((3, 100), -1, np.float32)
            expected = target.copy()
            expected[1, column : column + length] = source[2, start : start + length]
            copied(target, column, source, start, length)
            assert target.tobytes() == expected.tobytes(), (length, column, start)


def test_rows_are_compared_exactly() -> None:
    rng = np.random.default_rng(0)
    for length in range(1, 70):
        source = rng.integers(-3, 4, (3, length)).astype(np.int32)
        source[2, rng.integers(length)] = np.iinfo(np.int32).max
        for limit in (-(2**31), -1, 0, 2, 2**31 - 1):
            target = np.full((3, length), 7, np.int8)
            expected = target.copy()
            expected[1] = source[2] <= limit
            compared(target, source, limit, length)
            assert target.tobytes() == expected.tobytes(), (length, limit)
