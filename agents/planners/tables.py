"""Policies as tables over (task, remaining budget): one backward pass, one lookup a decision.

The backward pass of every planner here is one step of

    Q_i(b, k) = sum over costs c <= b of  w s(c) + q(c) F_{i+1}(b - c),      Q_i(b, skip) = F_{i+1}(b - decision cost)

with q(c) = P(cost = c), s(c) = P(cost = c and correct), w the task's weight. Planners differ in the law and in the
value F of what remains: the Bellman value, or the expected hindsight value.

Ties go to skip, then to the cheaper tier. Sums run in a fixed order without fast-math: tables are identical everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import Agent, DecisionView, ExamsView, Problem, Probs, State, one_hot
from roi_env.source import NOT_OFFERED, Laws

Curve: TypeAlias = npt.NDArray[np.float64]
"""(B' + 1,) value by remaining budget in grid units."""
Actions: TypeAlias = npt.NDArray[np.int8]
Continuation: TypeAlias = Callable[[int, npt.NDArray[np.int64]], list[Curve]]

Rounding = Literal["split", "up", "down"]

MAX_GRID_POINTS = 16_384
"""Automatic grids keep at most this many budget levels (measured error about 1e-4 of the value)."""


def auto_grid(budget: int) -> int:
    """Tokens per grid step: 1 (exact) up to ``MAX_GRID_POINTS`` tokens of budget."""
    return -(-budget // MAX_GRID_POINTS)


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


def compile_laws(
    laws: Laws,
    problem: Problem,
    grid: int,
    group: npt.NDArray[np.int64] | None = None,
    rounding: Rounding = "split",
) -> Cells:
    """Laws on a grid of ``grid`` tokens.

    :param group: (L,) published group of every law (default: law g belongs to group g), for the mask.
    :param rounding: of costs between grid points: "split" over both neighbours, keeping the mean (most accurate); "up"
        (the value is a lower bound, and the policy earns at least that with true costs); "down" (an upper bound).
    """
    group = np.arange(problem.num_groups) if group is None else group
    low = problem.min_cost[group]
    floor = np.where(low == NOT_OFFERED, NOT_OFFERED, low // grid if rounding == "down" else -(-low // grid))

    def share(rest: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Probability of the upper neighbour of a cost ``rest`` tokens above a grid point."""
        return rest / grid if rounding == "split" else np.where(rest > 0, float(rounding == "up"), 0.0)

    whole, part = divmod(problem.decision_cost, grid)
    more = float(share(np.array(part)))
    skip = np.array([1 - more, more])
    cost = laws.cost.astype(np.int64) + problem.decision_cost
    if grid == 1:
        return Cells(laws.indptr, cost, laws.prob, laws.success, floor, skip, whole)
    indptr, costs, probs, wins = [0], [], [], []
    for first, stop in zip(laws.indptr[:-1], laws.indptr[1:], strict=True):
        base, rest = np.divmod(cost[first:stop], grid)
        up = share(rest)
        at = np.concatenate([base, base + 1])
        used, inverse = np.unique(at, return_inverse=True)
        prob, win = laws.prob[first:stop], laws.success[first:stop]
        q = np.bincount(inverse, np.concatenate([prob * (1 - up), prob * up]), minlength=len(used))
        s = np.bincount(inverse, np.concatenate([win * (1 - up), win * up]), minlength=len(used))
        keep = q > 0
        costs.append(used[keep])
        probs.append(q[keep])
        wins.append(s[keep])
        indptr.append(indptr[-1] + int(keep.sum()))
    return Cells(
        np.array(indptr, np.int64),
        np.concatenate(costs),
        np.concatenate(probs),
        np.concatenate(wins),
        floor,
        skip,
        whole,
    )


@njit(cache=True)
def backup(
    following: npt.NDArray[np.float64],
    weight: float,
    law: int,
    cells: Cells,
    value: npt.NDArray[np.float64],
    action: npt.NDArray[np.int8],
    scratch: npt.NDArray[np.float64],
) -> None:
    """One step of the backward pass: write ``value`` and ``action`` (B' + 1,) of one task from ``following``."""
    top = len(following) - 1
    num_tiers = cells.floor.shape[1]
    value[:] = 0.0
    action[:] = 0
    for more in range(2):
        cost = cells.skip_cost + more
        if cells.skip[more] > 0:
            for b in range(cost, top + 1):
                value[b] += cells.skip[more] * following[b - cost]
    for k in range(num_tiers):
        lowest = cells.floor[law, k]
        if lowest > top:
            continue
        cell = law * num_tiers + k
        scratch[:] = 0.0
        for j in range(cells.indptr[cell], cells.indptr[cell + 1]):
            cost = cells.cost[j]
            if cost > top:
                break
            q, gain = cells.prob[j], weight * cells.success[j]
            for b in range(cost, top + 1):
                scratch[b] += gain + q * following[b - cost]
        for b in range(lowest, top + 1):
            if scratch[b] > value[b]:
                value[b] = scratch[b]
                action[b] = k + 1


@dataclass(frozen=True)
class Tables:
    """Action tables of a batch of exams.

    :param actions: N arrays (nodes, B' + 1) int8.
    :param index: (N, E) int64 node of every exam at every position; None: the node is the current task's group.
    :param grid: tokens per grid step.
    :param value: value of the whole exam by the pass (E,), or (G,) by first group.
    """

    actions: list[Actions]
    index: npt.NDArray[np.int64] | None
    grid: int
    value: npt.NDArray[np.float64]

    def lookup(self, view: DecisionView) -> npt.NDArray[np.int64]:
        """(D,) int64 actions."""
        out = np.zeros(len(view), np.int64)
        for n in np.unique(view.position):
            at = np.flatnonzero(view.position == n)
            node = view.group[at] if self.index is None else self.index[n, view.exam[at]]
            out[at] = self.actions[n][node, view.remaining[at] // self.grid]
        return out


def preview_tables(
    groups: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float64],
    cells: Cells,
    budget: int,
    grid: int,
    continuation: Continuation | None = None,
    law: npt.NDArray[np.int64] | None = None,
) -> Tables:
    """Backward pass over E exams whose tasks are all shown; equal suffixes of exams are solved once.

    :param groups: (E, N) kinds of the tasks (published groups).
    :param weights: reward weight by kind.
    :param continuation: value of what follows task n for suffixes of laws (one curve a suffix), instead of Bellman's.
    :param law: law by kind (default: kind g has law g).
    """
    law = np.arange(len(weights)) if law is None else law
    size, num_tasks = groups.shape
    points = budget // grid + 1
    actions: list[Actions] = []
    index = np.empty((num_tasks, size), np.int64)
    after, curves = np.zeros(size, np.int64), [np.zeros(points)]
    scratch = np.empty(points)
    for n in range(num_tasks - 1, -1, -1):
        pairs = np.stack([groups[:, n].astype(np.int64), after], 1)
        nodes, inverse = np.unique(pairs, axis=0, return_inverse=True)
        following = curves
        if continuation is not None and n + 1 < num_tasks:
            _, heads = np.unique(after, return_index=True)
            following = continuation(n + 1, heads)
        values = np.empty((len(nodes), points))
        action = np.empty((len(nodes), points), np.int8)
        for node, (kind, rest) in enumerate(nodes):
            backup(following[rest], weights[kind], law[kind], cells, values[node], action[node], scratch)
        actions.append(action)
        curves = list(values)
        after = inverse.ravel().astype(np.int64)
        index[n] = after
    start = np.array([curve[-1] for curve in curves])[after]
    return Tables(actions[::-1], index, grid, start)


def blind_tables(
    problem: Problem, cells: Cells, grid: int, continuation: Callable[[int], list[Curve]] | None = None
) -> Tables:
    """Backward pass where only the current task is shown: a node is its group, what follows is an expectation.

    :param continuation: value of what follows task n, a curve by current group, instead of Bellman's.
    """
    points = problem.budget // grid + 1
    scratch = np.empty(points)
    actions: list[Actions] = []
    values = np.zeros((problem.num_groups, points))
    for n in range(problem.num_tasks - 1, -1, -1):
        if n + 1 == problem.num_tasks:
            following = np.zeros((problem.num_groups, points))
        elif continuation is not None:
            following = np.stack(continuation(n))
        else:
            following = expected_next(next_group(problem, n), values)
        values = np.empty((problem.num_groups, points))
        action = np.empty((problem.num_groups, points), np.int8)
        for group in range(problem.num_groups):
            backup(following[group], problem.group_weight[group], group, cells, values[group], action[group], scratch)
        actions.append(action)
    return Tables(actions[::-1], None, grid, values[:, -1])


def expected_next(transition: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(G, B' + 1) expectation of the next task's values; equal rows of ``transition`` (G, G) are computed once."""
    rows, inverse = np.unique(transition, axis=0, return_inverse=True)
    mixed = np.stack([np.einsum("g,gb->b", row, values, optimize=False) for row in rows])
    return mixed[inverse.ravel()]


def next_group(problem: Problem, position: int) -> npt.NDArray[np.float64]:
    """(G, G) probability of the next task's group given the current one, for task ``position`` < N - 1.

    Random order: tasks are independent draws. Sorted orders: order statistics of N draws are a Markov chain (David and
    Nagaraja, Order Statistics, 2003, section 2.5) with, in ascending order and for keys k < k',

        P(X_(i) = k, X_(i+1) = k') = binom(N, i) (F(k)^i - F(k-)^i) (S(k'-)^(N-i) - S(k')^(N-i)),  S = 1 - F;

    ties make the discrete sequence depend on the length of the current run, which is ignored here. Strata are mixed,
    except for order "given", where the next slot's stratum is used.
    """
    num_tasks, probability = problem.num_tasks, problem.group_probability
    groups = problem.num_groups
    mixed = probability.mean(0)
    if problem.order in ("random", "given"):
        row = probability[(position + 1) % len(probability)] if problem.order == "given" else mixed
        return np.tile(row, (groups, 1))
    keys = problem.group_key if problem.order == "easy_first" else -problem.group_key
    unique, inverse = np.unique(keys, return_inverse=True)
    mass = np.bincount(inverse, mixed, minlength=len(unique))
    above = np.concatenate([[0.0], np.minimum(np.cumsum(mass), 1.0)])
    above[-1] = 1.0
    i, j = position + 1, num_tasks - position - 1
    left = above[1:] ** i - above[:-1] ** i
    right = (1 - above[:-1]) ** j - (1 - above[1:]) ** j
    joint = np.triu(comb(num_tasks, i) * left[:, None] * right[None, :], 1)
    at_most = sum(comb(num_tasks, m) * above**m * (1 - above) ** (num_tasks - m) for m in range(i, num_tasks + 1))
    marginal = np.diff(at_most)
    joint[np.diag_indices(len(unique))] = np.maximum(marginal - joint.sum(1), 0.0)
    total = joint.sum(1, keepdims=True)
    chain = np.where(total > 0, joint / np.where(total > 0, total, 1.0), mass)
    inside = mixed / np.where(mass[inverse] > 0, mass[inverse], 1.0)
    return np.asarray(chain[inverse][:, inverse] * inside)


class TableAgent(Agent):
    """An agent that looks its actions up in :class:`Tables` made in :meth:`start`."""

    def tables(self, exams: ExamsView) -> Tables:
        """Solve a batch of exams."""
        raise NotImplementedError

    def start(self, exams: ExamsView) -> State:
        """Solve the batch."""
        return self.tables(exams)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Look the actions up."""
        return one_hot(state.lookup(view), view.problem.num_tiers + 1), state
