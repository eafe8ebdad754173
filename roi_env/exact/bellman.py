"""The non-anticipating optimum of an exam by exact backward recursion, and exact values of Markov policies.

With tokens as states, and ``q_s`` = P(cost ``c_s``), ``r_s`` = P(cost ``c_s`` and correct) of tier ``k`` of task ``i``:

    V_i(b) = max( V_{i+1}(b - d),  max_k sum_{s: c_s + d <= b} [ q_s V_{i+1}(b - c_s - d) + w_i r_s ] ),    V_N = 0,

where ``d`` is the decision cost, ``w_i`` the task's weight, and a skip with ``b < d`` is worth 0. An attempt that does
not fit earns nothing and ends the exam. Only one tier of a task is ever played, so the coupling between tiers does not
enter; the joint law of cost and correctness does. This is the stochastic knapsack of Dean, Goemans and Vondrak
("Approximating the stochastic knapsack problem", 2008) with a fixed order and several tiers per item.

>>> import numpy as np
>>> from roi_env.exact.bellman import evaluate_policy, solve
>>> from roi_env.exams.config import exam_spec
>>> from roi_env.exams.exam import draw_exams
>>> spec = exam_spec("signal", num_tasks=3)
>>> exams = draw_exams(spec, seed=0, exam_ids=np.arange(2))
>>> laws = spec.source.published  # what is known of a task from what is shown; source.laws with exams.law_index: informed
>>> best = solve(laws, exams.groups, exams.weights, spec.budget, min_cost=spec.min_cost, return_policy=True)
>>> best.value.round(6)
array([1.336625, 1.895989])
>>> evaluate_policy(laws, exams.groups, exams.weights, spec.budget, best.policy).round(6)
array([1.336625, 1.895989])

Hidden later tasks, latent states and the clairvoyant: :mod:`roi_env.measures.references`. Policies that mix actions, and what
they do beside their value: :func:`roi_env.exact.evaluation.evaluate_markov`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env.sources.source import Laws

_BLOCK = 2048
"""Budgets per block: the accumulator and the running maximum stay in L1."""


class Solution(NamedTuple):
    """What :func:`solve` returns."""

    value: npt.NDArray[np.float64]
    """(E,) optimal expected score at the full budget."""
    values: npt.NDArray[np.floating] | None
    """(E, N + 1, B + 1) ``V_i(b)``, or None."""
    policy: npt.NDArray[np.int8] | None
    """(E, N, B + 1) optimal action at (position, remaining tokens): 0 skip, k tier k; or None."""


class Bounds(NamedTuple):
    """What :func:`bounds` returns, each (E,) float64: ``lower <= V <= upper`` up to rounding of the arithmetic."""

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    estimate: npt.NDArray[np.float64]


class _Points(NamedTuple):
    """Support points of all cells: sorted total costs (decision cost included), probabilities, success masses."""

    start: npt.NDArray[np.int64]
    cost: npt.NDArray[np.int64]
    prob: npt.NDArray[np.floating]
    success: npt.NDArray[np.float64]


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
def _step(  # type: ignore[no-untyped-def]
    start, cost, prob, success, cell, weight, floor, skip, skip_share, low, row, work, act, action
):
    """One backward step in place: ``row`` holds ``_BLOCK`` zeros, then V_{i+1}, which V_i overwrites from ``low`` on.

    Zeros before V(0) stand for attempts that do not fit. Blocks go downwards and a block reads only budgets at or below
    its own, so one row is enough. ``work`` (2, _BLOCK) and ``act`` are scratch; ``action`` is filled unless empty.
    """
    block = _BLOCK
    acc, best = work[0], work[1]
    share = row.dtype.type(skip_share)
    stay = row.dtype.type(1.0 - skip_share)
    right = len(row) - block
    while right > low:
        left = max(right - block, low)
        size = right - left
        m = np.uint64(size)
        for j in range(m):
            best[j] = 0
        if action.size:
            for j in range(m):
                act[j] = 0
        begin = max(skip - left, 0)
        if begin < size:
            o = np.uint64(block + left - skip)
            if skip_share == 0.0:
                for j in range(np.uint64(begin), m):
                    best[j] = row[o + j]
            else:
                for j in range(np.uint64(begin), m):
                    best[j] = stay * row[o + j] + share * row[o + j - np.uint64(1)]
        for k in range(len(floor)):
            first, last = start[cell + k], start[cell + k + 1]
            lo, hi = first, last
            while lo < hi:
                mid = (lo + hi) // 2
                if cost[mid] < right:
                    lo = mid + 1
                else:
                    hi = mid
            begin = max(floor[k] - left, 0)
            if lo == first or begin >= size:
                continue
            _fill_gains(acc, left, size, weight, cost, success, first, lo)
            _add_points(acc, size, row, block + left, cost, prob, first, lo)
            if action.size:
                tier = np.int8(k + 1)
                for j in range(np.uint64(begin), m):
                    act[j] = tier if acc[j] > best[j] else act[j]
            for j in range(np.uint64(begin), m):
                best[j] = acc[j] if acc[j] > best[j] else best[j]
        o = np.uint64(block + left)
        for j in range(m):
            row[o + j] = best[j]
        o = np.uint64(left)
        if action.size:
            for j in range(m):
                action[o + j] = act[j]
        right = left


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
def backup(
    following: npt.NDArray[np.float64],
    weight: float,
    law: int,
    cells: Cells,
    value: npt.NDArray[np.float64],
    action: npt.NDArray[np.int8],
) -> None:
    """One step of the backward pass: write ``value`` and ``action`` (B' + 1,) of one task from ``following``."""
    row = np.zeros(_BLOCK + len(following))
    row[_BLOCK:] = following
    _step(
        cells.indptr,
        cells.cost,
        cells.prob,
        cells.success,
        law * cells.floor.shape[1],
        weight,
        cells.floor[law],
        cells.skip_cost,
        cells.skip[1],
        0,
        row,
        np.empty((2, _BLOCK)),
        np.empty(_BLOCK, np.int8),
        action,
    )
    value[:] = row[_BLOCK:]


@njit(cache=True)
def _solve(  # type: ignore[no-untyped-def]
    start,
    cost,
    prob,
    success,
    num_tiers,
    law_index,
    weights,
    budget,
    skip,
    skip_share,
    floor,
    low,
    keep,
    top,
    values,
    policy,
):
    """Solve a batch; writes ``top[e] = (V_0(B - 1), V_0(B))`` and, where they are not empty, ``values`` and ``policy``.

    A skip costs ``skip`` tokens, or ``skip + 1`` with probability ``skip_share`` (coarse grids only). ``floor[cell]``:
    fewest tokens at which the tier is legal. ``low[e, i]``: fewest tokens worth computing at position i.
    """
    exams, tasks = law_index.shape
    block = _BLOCK
    row = np.zeros(block + budget + 1, prob.dtype)
    work = np.empty((2, block), prob.dtype)
    act = np.empty(block, np.int8)
    for e in range(exams):
        row[:] = 0
        if keep:
            for j in range(budget + 1):
                values[e, tasks, j] = 0
        for i in range(tasks - 1, -1, -1):
            cell = law_index[e, i] * num_tiers
            weight = weights[e, i]
            _step(
                start,
                cost,
                prob,
                success,
                cell,
                weight,
                floor[cell : cell + num_tiers],
                skip,
                skip_share,
                low[e, i],
                row,
                work,
                act,
                policy[e, i] if policy.size else act[:0],
            )
            if keep:
                for j in range(low[e, i], budget + 1):
                    values[e, i, j] = row[block + j]
        top[e, 0] = row[block + budget - 1]
        top[e, 1] = row[block + budget]


@njit(cache=True)
def _evaluate(start, cost, prob, success, num_tiers, law_index, weights, budget, skip, low, policy, out):  # type: ignore[no-untyped-def]
    """Backward recursion of a fixed policy; the row is overwritten from high budgets to low ones."""
    exams, tasks = law_index.shape
    row = np.zeros(budget + 1)
    for e in range(exams):
        row[:] = 0.0
        for i in range(tasks - 1, -1, -1):
            weight = weights[e, i]
            for b in range(budget, low[e, i] - 1, -1):
                action = policy[e, i, b]
                total = 0.0
                if action == 0:
                    if b >= skip:
                        total = row[np.uint64(b - skip)]
                else:
                    cell = law_index[e, i] * num_tiers + action - 1
                    for s in range(start[cell], start[cell + 1]):
                        if cost[s] > b:
                            break
                        total += prob[s] * row[np.uint64(b - cost[s])] + weight * success[s]
                row[b] = total
        out[e] = row[budget]


def _check(
    laws: Laws, law_index: npt.ArrayLike, weights: npt.ArrayLike, budget: int, decision_cost: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    index = np.ascontiguousarray(law_index, np.int64)
    weight = np.ascontiguousarray(weights, np.float64)
    if index.ndim != 2 or weight.shape != index.shape:
        raise ValueError(f"law_index and weights must have one shape (E, N), got {index.shape} and {weight.shape}")
    if index.size and (index.min() < 0 or index.max() >= laws.num_laws):
        raise ValueError(f"law_index must lie in [0, {laws.num_laws}), got {index.min()} to {index.max()}")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("weights must be finite and not negative")
    if budget < 0 or decision_cost < 0:
        raise ValueError(f"budget and decision_cost must not be negative, got {budget} and {decision_cost}")
    return index, weight


def _points(
    laws: Laws,
    total: npt.NDArray[np.int64],
    prob: npt.NDArray[np.float64],
    success: npt.NDArray[np.float64],
    cell: npt.NDArray[np.int64],
    dtype: npt.DTypeLike,
) -> _Points:
    """Sort points by (cell, cost) and merge equal ones."""
    order = np.lexsort((total, cell))
    cell, total, prob, success = cell[order], total[order], prob[order], success[order]
    fresh = np.ones(len(cell), np.bool_)
    fresh[1:] = (cell[1:] != cell[:-1]) | (total[1:] != total[:-1])
    at = np.flatnonzero(fresh)
    if len(at):
        prob, success = np.add.reduceat(prob, at), np.add.reduceat(success, at)
    start = np.searchsorted(cell[at], np.arange(laws.num_laws * laws.num_tiers + 1))
    return _Points(start.astype(np.int64), total[at], prob.astype(dtype), success)


def _cells(laws: Laws) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(laws.num_laws * laws.num_tiers), np.diff(laws.indptr))


def _exact_points(laws: Laws, decision_cost: int, dtype: npt.DTypeLike) -> _Points:
    # Laws are sorted and free of duplicates already.
    total = laws.cost.astype(np.int64) + decision_cost
    return _Points(laws.indptr.astype(np.int64), total, laws.prob.astype(dtype), laws.success.astype(np.float64))


def _distinct(
    index: npt.NDArray[np.int64], weight: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First row of every distinct exam, in order of appearance, and the distinct exam of every row."""
    if len(index) < 2:
        return np.arange(len(index)), np.arange(len(index))
    keys = np.concatenate([index, weight.view(np.int64)], 1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]


def _reachable(
    points: _Points, num_tiers: int, index: npt.NDArray[np.int64], budget: int, skip: int
) -> npt.NDArray[np.int64]:
    """(E, N) fewest tokens that can be left at a position of an exam that began with ``budget`` (or one less)."""
    dearest = np.full(len(points.start) - 1, skip, np.int64)
    filled = np.diff(points.start) > 0
    dearest[filled] = np.maximum(points.cost[points.start[1:][filled] - 1], skip)
    spend = dearest.reshape(-1, num_tiers).max(1)[index]
    low = np.maximum(budget - 1 - (np.cumsum(spend, 1) - spend), 0)
    return np.ascontiguousarray(low, np.int64)


def _run(
    points: _Points,
    num_tiers: int,
    index: npt.NDArray[np.int64],
    weight: npt.NDArray[np.float64],
    budget: int,
    skip: int,
    *,
    skip_share: float = 0.0,
    floor: npt.NDArray[np.int64] | None = None,
    return_values: bool = False,
    return_policy: bool = False,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.floating] | None, npt.NDArray[np.int8] | None]:
    exams, tasks = index.shape
    first, inverse = _distinct(index, weight)
    alone = len(first) == exams
    index, weight = np.ascontiguousarray(index[first]), np.ascontiguousarray(weight[first])
    if return_values or return_policy:
        low = np.zeros_like(index)
    else:
        low = _reachable(points, num_tiers, index, budget, skip + (skip_share > 0))
    values = np.empty((len(first), tasks + 1, budget + 1) if return_values else (0, 0, 0), points.prob.dtype)
    policy = np.empty((len(first), tasks, budget + 1) if return_policy else (0, 0, 0), np.int8)
    top = np.empty((len(first), 2))
    if floor is None:
        floor = np.zeros(len(points.start) - 1, np.int64)
    _solve(*points, num_tiers, index, weight, budget, skip, skip_share, floor, low, return_values, top, values, policy)
    return (
        top[inverse],
        (values if alone else values[inverse]) if return_values else None,
        (policy if alone else policy[inverse]) if return_policy else None,
    )


def solve(
    laws: Laws,
    law_index: npt.ArrayLike,
    weights: npt.ArrayLike,
    budget: int,
    *,
    decision_cost: int = 0,
    min_cost: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike = np.float64,
    return_policy: bool = False,
    return_values: bool = False,
) -> Solution:
    """Optimal expected score of E exams of N tasks, exact at one-token resolution.

    Exams that are equal are solved once. Ties go to skip, then to the cheaper tier (compared exactly, so that a tie of
    real numbers may be broken by rounding). Time is O(N K S B) per exam with S support points per cell; memory is one
    row of B values, unless values or the policy are asked for.

    :param laws: laws of one attempt.
    :param law_index: (E, N) law of every task, in the order of the exam.
    :param weights: (E, N) reward of a correct answer, not negative.
    :param budget: B, tokens.
    :param decision_cost: d, tokens that every action costs on top, skip included.
    :param min_cost: (L, K) tier k of law l is legal with b tokens left where ``min_cost[l, k] <= b`` (decision cost
        included); None: always legal.
    :param dtype: float64, or float32 (about 1.5 times as fast, relative error about 1e-6).
    :param return_policy: also return the policy, E * N * (B + 1) bytes.
    :param return_values: also return all values, E * (N + 1) * (B + 1) numbers of ``dtype``.
    :raises ValueError: for arguments of wrong shape, type or sign.
    """
    index, weight = _check(laws, law_index, weights, budget, decision_cost)
    points = _exact_points(laws, decision_cost, _float_type(dtype))
    floor = None
    if min_cost is not None:
        floor = np.ascontiguousarray(min_cost, np.int64)
        if floor.shape != (laws.num_laws, laws.num_tiers):
            raise ValueError(f"min_cost must have shape {(laws.num_laws, laws.num_tiers)}, got {floor.shape}")
        floor = floor.reshape(-1)
    top, values, policy = _run(
        points, laws.num_tiers, index, weight, int(budget), int(decision_cost),
        floor=floor, return_values=return_values, return_policy=return_policy,
    )  # fmt: skip
    return Solution(np.ascontiguousarray(top[:, 1]), values, policy)


def _float_type(dtype: npt.DTypeLike) -> np.dtype:
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float64), np.dtype(np.float32)):
        raise ValueError(f"dtype must be float64 or float32, got {kind}")
    return kind


def bounds(
    laws: Laws,
    law_index: npt.ArrayLike,
    weights: npt.ArrayLike,
    budget: int,
    grid: int,
    *,
    decision_cost: int = 0,
    dtype: npt.DTypeLike = np.float64,
) -> Bounds:
    """Bracket of the optimal value from a coarse grid of ``grid`` tokens: about ``grid`` to ``grid**2`` times cheaper.

    V is non-decreasing in the budget, hence by induction: costs rounded up to the grid give a certified lower bound
    (also of the policy that plays that solution with true costs), costs rounded down a certified upper bound. Splitting
    every cost between its two neighbours so that its mean is kept gives the estimate, clipped to the bracket.

    :param grid: tokens per grid step, at least 1 (1: all three equal the optimum).
    :raises ValueError: as :func:`solve`, and for a grid below 1.
    """
    index, weight = _check(laws, law_index, weights, budget, decision_cost)
    kind = _float_type(dtype)
    if grid < 1:
        raise ValueError(f"grid must be at least 1 token, got {grid}")
    total = laws.cost.astype(np.int64) + decision_cost
    cell = _cells(laws)
    below, above = total // grid, -(-total // grid)
    tiers, coarse = laws.num_tiers, int(budget) // grid

    points = _points(laws, above, laws.prob, laws.success, cell, kind)
    lower = _run(points, tiers, index, weight, coarse, -(-decision_cost // grid))[0][:, 1]
    points = _points(laws, below, laws.prob, laws.success, cell, kind)
    upper = _run(points, tiers, index, weight, coarse, decision_cost // grid)[0][:, 1]

    up = total / grid - below
    twice = np.concatenate([cell, cell]), np.concatenate([below, below + 1])
    keep = np.concatenate([up < 1, up > 0])
    prob = np.concatenate([laws.prob * (1 - up), laws.prob * up])
    success = np.concatenate([laws.success * (1 - up), laws.success * up])
    points = _points(laws, twice[1][keep], prob[keep], success[keep], twice[0][keep], kind)
    ceiling = -(-int(budget) // grid)
    share = decision_cost / grid - decision_cost // grid
    top = _run(points, tiers, index, weight, ceiling, decision_cost // grid, skip_share=share)[0]
    inside = budget / grid - coarse
    estimate = top[:, 1] if inside == 0 else (1 - inside) * top[:, 0] + inside * top[:, 1]
    return Bounds(np.ascontiguousarray(lower), np.ascontiguousarray(upper), np.clip(estimate, lower, upper))


def evaluate_policy(
    laws: Laws,
    law_index: npt.ArrayLike,
    weights: npt.ArrayLike,
    budget: int,
    policy: npt.NDArray[np.int8],
    *,
    decision_cost: int = 0,
) -> npt.NDArray[np.float64]:
    """Exact expected score of a deterministic Markov policy.

    :param policy: (E, N, B + 1) action at (position, remaining tokens): 0 skip, k tier k. An action that does not fit,
        or a tier that is not offered, overspends: it earns nothing and ends the exam.
    :returns: (E,) float64.
    :raises ValueError: for arguments of wrong shape or sign, or actions outside 0..K.
    """
    index, weight = _check(laws, law_index, weights, budget, decision_cost)
    policy = np.asarray(policy)
    if policy.shape != (*index.shape, budget + 1) or policy.dtype != np.int8:
        raise ValueError(
            f"policy must be int8 of shape {(*index.shape, budget + 1)}, got {policy.dtype} {policy.shape}"
        )
    if policy.size and (policy.min() < 0 or policy.max() > laws.num_tiers):
        raise ValueError(f"actions must lie in 0..{laws.num_tiers}, got {policy.min()} to {policy.max()}")
    points = _exact_points(laws, decision_cost, np.float64)
    low = _reachable(points, laws.num_tiers, index, budget, decision_cost)
    out = np.empty(len(index))
    _evaluate(*points, laws.num_tiers, index, weight, int(budget), int(decision_cost), low, policy, out)
    return out
