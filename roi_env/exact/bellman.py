"""One backward step of the non-anticipating optimum, compiled; :mod:`roi_env.exact.policy_tables` makes whole exams of it.

With tokens as states, and ``q_s`` = P(cost ``c_s``), ``r_s`` = P(cost ``c_s`` and correct) of tier ``k`` of task ``i``:

    V_i(b) = max( V_{i+1}(b - d),  max_k sum_{s: c_s + d <= b} [ q_s V_{i+1}(b - c_s - d) + w_i r_s ] ),    V_N = 0,

where ``d`` is the decision cost, ``w_i`` the task's weight, and a skip with ``b < d`` is worth 0. An attempt that does
not fit earns nothing and ends the exam. Only one tier of a task is ever played, so the coupling between tiers does not
enter; the joint law of cost and correctness does. This is the stochastic knapsack of Dean, Goemans and Vondrak
("Approximating the stochastic knapsack problem", 2008) with a fixed order and several tiers per item.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

_BLOCK = 2048
"""Budgets per block: the accumulator and the running maximum stay in L1."""


class Cells(NamedTuple):
    """Laws as compiled code reads them: costs in grid units with the decision cost included."""

    indptr: npt.NDArray[np.int64]
    cost: npt.NDArray[np.int64]
    prob: npt.NDArray[np.float64]
    success: npt.NDArray[np.float64]
    floor: npt.NDArray[np.int64]
    """(L, K) least budget (grid units) at which a tier is legal."""
    skip: npt.NDArray[np.float64]
    """(2,) probability that a skip costs ``skip_cost`` or one grid unit more."""
    skip_cost: int


@njit(cache=True)
def _add_points(acc, size, value, base, cost, prob, first, last):  # type: ignore[no-untyped-def]
    """``acc[j] += sum_s prob[s] * value[base + j - cost[s]]`` for ``j < size``, in a fixed order of summation."""
    m = np.uint64(size)
    s = first
    # Several points a pass: one load and store of the accumulator for all of them. The indices are unsigned because
    # signed ones cost a wraparound test that keeps the loop from being vectorised.
    while s + 4 <= last:
        q0, q1, q2, q3 = prob[s], prob[s + 1], prob[s + 2], prob[s + 3]
        o0, o1 = np.uint64(base - cost[s]), np.uint64(base - cost[s + 1])
        o2, o3 = np.uint64(base - cost[s + 2]), np.uint64(base - cost[s + 3])
        for j in range(m):
            acc[j] += (q0 * value[o0 + j] + q1 * value[o1 + j]) + (q2 * value[o2 + j] + q3 * value[o3 + j])
        s += 4
    while s < last:
        q0 = prob[s]
        o0 = np.uint64(base - cost[s])
        for j in range(m):
            acc[j] += q0 * value[o0 + j]
        s += 1


@njit(cache=True)
def _fill_gains(acc, left, size, weight, cost, success, first, last):  # type: ignore[no-untyped-def]
    """``acc[j] = weight * sum_{s: cost[s] <= left + j} success[s]``: a step function, filled step by step."""
    total = 0.0
    at = np.uint64(0)
    end = np.uint64(size)
    for s in range(first, last):
        if cost[s] > left:
            stop = np.uint64(cost[s] - left)
            level = weight * total
            for j in range(at, stop):
                acc[j] = level
            at = stop
        total += success[s]
    level = weight * total
    for j in range(at, end):
        acc[j] = level


@njit(cache=True)
def backup(
    following: npt.NDArray[np.float64],
    weight: float,
    law: int,
    cells: Cells,
    value: npt.NDArray[np.float64],
    action: npt.NDArray[np.int8],
) -> None:
    """One step of the backward pass: write ``value`` and ``action`` (B' + 1,) of one task from ``following``.

    Ties go to skip, then to the cheaper tier (compared exactly, so that a tie of real numbers may be broken by rounding).
    """
    # Zeros before V(0) stand for attempts that do not fit.
    row = np.zeros(_BLOCK + len(following))
    row[_BLOCK:] = following
    acc = np.empty(_BLOCK)
    num_tiers = cells.floor.shape[1]
    for left in range(0, len(following), _BLOCK):
        right = min(left + _BLOCK, len(following))
        size = right - left
        m = np.uint64(size)
        best, act = value[left:right], action[left:right]
        best[:] = 0
        act[:] = 0
        begin = max(cells.skip_cost - left, 0)
        if begin < size:
            o = np.uint64(_BLOCK + left - cells.skip_cost)
            for j in range(np.uint64(begin), m):
                best[j] = cells.skip[0] * row[o + j] + cells.skip[1] * row[o + j - np.uint64(1)]
        for k in range(num_tiers):
            first, last = cells.indptr[law * num_tiers + k], cells.indptr[law * num_tiers + k + 1]
            fits = first + np.searchsorted(cells.cost[first:last], right)  # points below the block's end
            begin = max(cells.floor[law, k] - left, 0)
            if fits == first or begin >= size:
                continue
            _fill_gains(acc, left, size, weight, cells.cost, cells.success, first, fits)
            _add_points(acc, size, row, _BLOCK + left, cells.cost, cells.prob, first, fits)
            tier = np.int8(k + 1)
            for j in range(np.uint64(begin), m):
                act[j] = tier if acc[j] > best[j] else act[j]
                best[j] = acc[j] if acc[j] > best[j] else best[j]
