"""Rows of a table told apart by integer keys."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["by_first_appearance", "differing", "joint_keys"]


def by_first_appearance(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``(codes, first)``: codes 0, 1, ... for the distinct keys as they appear, and where each appears first."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[inverse], first[order].astype(np.int64)


def joint_keys(key: npt.NDArray[np.int64], *columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(rows,) keys that are equal where all columns are."""
    # Compressed after every column: the product of all their sizes may not fit 64 bits.
    for codes in columns:
        _, small = np.unique(codes, return_inverse=True)
        _, key = np.unique(key * (small.max() + 1) + small, return_inverse=True)
    return key


def differing(key: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(rows,) rows whose value differs from that of the first row with their key."""
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return np.asarray(values != values[first][inverse])
