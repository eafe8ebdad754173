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
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from agents.base import Agent, DecisionView, ExamsView, Problem, Probs, State, one_hot
from roi_env.bellman import Cells, backup
from roi_env.blind import Arrivals
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


@dataclass(frozen=True)
class Tables:
    """Action tables of a batch of exams.

    :param actions: N arrays (nodes, B' + 1) int8.
    :param index: (N, E) int64 node of every exam at every position, or the law that leads from the groups seen so far
        to a node.
    :param grid: tokens per grid step.
    :param value: value of the whole exam by the pass (E,), or (G,) by first group.
    """

    actions: list[Actions]
    index: npt.NDArray[np.int64] | Arrivals
    grid: int
    value: npt.NDArray[np.float64]

    def lookup(self, view: DecisionView) -> npt.NDArray[np.int64]:
        """(D,) int64 actions."""
        out = np.zeros(len(view), np.int64)
        for n in np.unique(view.position):
            at = np.flatnonzero(view.position == n)
            node = find_node(self.index, view, n, at)
            out[at] = np.where(node >= 0, self.actions[n][node, view.remaining[at] // self.grid], 0)
        return out


def find_node(
    index: npt.NDArray[np.int64] | Arrivals, view: DecisionView, position: int, at: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Node of decisions ``at`` (all at ``position``); see :attr:`Tables.index`. -1: what was seen cannot happen."""
    exam = view.exam[at]
    if not isinstance(index, Arrivals):
        return index[position, exam]
    _, first, inverse = np.unique(exam, return_index=True, return_inverse=True)
    return index.walk(view.groups[at[first], : position + 1])[inverse.ravel()]


def by_first_group(arrivals: Arrivals, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(G,) values of the first position's nodes by group; 0 for groups that cannot come first."""
    out = np.zeros(arrivals.num_groups)
    out[arrivals.groups[0]] = values
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
            backup(following[rest], weights[kind], law[kind], cells, values[node], action[node])
        actions.append(action)
        curves = list(values)
        after = inverse.ravel().astype(np.int64)
        index[n] = after
    start = np.array([curve[-1] for curve in curves])[after]
    return Tables(actions[::-1], index, grid, start)


def blind_tables(
    problem: Problem, cells: Cells, grid: int, continuation: Callable[[int], list[Curve]] | None = None
) -> Tables:
    """Backward pass where later tasks are not shown: what follows is an expectation given what was seen.

    :param continuation: value of what follows task n, a curve by state (:class:`roi_env.blind.Arrivals`), instead of
        Bellman's.
    """
    arrivals = problem.arrivals
    points = problem.budget // grid + 1
    actions: list[Actions] = []
    values = np.empty((0, points))
    for n in range(problem.num_tasks - 1, -1, -1):
        groups, states = arrivals.groups[n], arrivals.states[n]
        if n + 1 == problem.num_tasks:
            following = np.zeros((int(states.max()) + 1, points))
        elif continuation is not None:
            following = np.stack(continuation(n))
        else:
            following = arrivals.expect(n + 1, values)
        values = np.empty((len(groups), points))
        action = np.empty((len(groups), points), np.int8)
        for node, (group, state) in enumerate(zip(groups, states, strict=True)):
            backup(following[state], problem.group_weight[group], group, cells, values[node], action[node])
        actions.append(action)
    return Tables(actions[::-1], arrivals, grid, by_first_group(arrivals, values[:, -1]))


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
