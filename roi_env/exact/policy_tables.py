"""Policies as tables over (task, remaining budget): one backward pass, one lookup a decision.

The backward pass is one step of

    Q_i(b, k) = sum over costs c <= b of  w s(c) + q(c) F_{i+1}(b - c),      Q_i(b, skip) = F_{i+1}(b - decision cost)

with q(c) = P(cost = c), s(c) = P(cost = c and correct), w the task's weight. Policies differ in the law and in the
value F of what remains: the Bellman value, or another one given as a *continuation*.

Where all tasks are shown, a *node* is a suffix of the exam: equal suffixes are solved once. Where later tasks are
hidden it is a group and a state of :class:`roi_env.exams.arrivals.Arrivals`.

Ties go to skip, then to the cheaper tier. Sums run in a fixed order without fast-math: tables are identical everywhere.

>>> import numpy as np
>>> from roi_env.exact.policy_tables import compile_laws, preview_tables
>>> from roi_env.exams.config import exam_spec
>>> from roi_env.exams.exam import draw_exams
>>> spec = exam_spec("signal", num_tasks=3)
>>> exams = draw_exams(spec, seed=0, exam_ids=np.arange(2))
>>> laws = spec.source.published  # what is known of a task from what is shown; source.laws with exams.law_index: informed
>>> cells = compile_laws(laws, spec.min_cost, spec.decision_cost)
>>> best = preview_tables(exams.groups, spec.source.group_weight, cells, spec.budget, grid=1)
>>> best.value.round(6)
array([1.336625, 1.895989])
>>> best.lookup(0, np.arange(2), np.full(2, spec.budget))  # the first action of both exams
array([0, 2])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from roi_env.exact.bellman import Cells, backup
from roi_env.exams.arrivals import Arrivals
from roi_env.sources.source import NOT_OFFERED, Laws

Curve: TypeAlias = npt.NDArray[np.float64]
"""(B' + 1,) value by remaining budget in grid units."""
Actions: TypeAlias = npt.NDArray[np.int8]
Nodes: TypeAlias = npt.NDArray[np.int64] | Arrivals
"""(N, E) int64 node of every exam at every position, or the law that leads from the groups seen so far to a node."""
Following: TypeAlias = Sequence[Curve] | npt.NDArray[np.float64]
"""Values of what follows, one a state."""
Step: TypeAlias = Callable[
    [npt.NDArray[np.int64], Following, npt.NDArray[np.int64]], tuple[npt.NDArray[np.float64], Actions]
]
"""(kinds (n,), what follows, its row for every node (n,)) -> (values (n, ...), actions (n, ...))."""

Rounding = Literal["split", "up", "down"]

MAX_GRID_POINTS = 16_384
"""Automatic grids keep at most this many budget levels (measured error about 1e-4 of the value)."""


def spendable(budget: int, laws: Laws, num_tasks: int, decision_cost: int = 0) -> int:
    """What an exam can spend of a budget at most: with more, nothing changes."""
    return min(budget, num_tasks * (int(laws.cost.max(initial=0)) + decision_cost))


def auto_grid(budget: int, laws: Laws, num_tasks: int, decision_cost: int = 0) -> int:
    """Cost per grid step: 1 (exact) up to ``MAX_GRID_POINTS`` of what an exam can spend; beyond, what all costs are
    multiples of where that is enough (exact too), else what it takes (costs are rounded)."""
    step = -(-spendable(budget, laws, num_tasks, decision_cost) // MAX_GRID_POINTS)
    common = int(np.gcd.reduce(laws.cost, initial=decision_cost))
    return common if 1 < step <= common else max(step, 1)


def compile_laws(
    laws: Laws,
    min_cost: npt.NDArray[np.int64],
    decision_cost: int = 0,
    grid: int = 1,
    rounding: Rounding = "split",
) -> Cells:
    """Laws on a grid of ``grid`` tokens.

    :param min_cost: (L, K) tokens (decision cost included) from which on a tier is legal.
    :param rounding: of costs between grid points: "split" over both neighbours, keeping the mean (most accurate); "up"
        (the value is a lower bound, and the policy earns at least that with true costs); "down" (an upper bound).
    :raises ValueError: where ``min_cost`` has another shape.
    """
    if min_cost.shape != (laws.num_laws, laws.num_tiers):
        raise ValueError(f"min_cost must have shape {(laws.num_laws, laws.num_tiers)}, got {min_cost.shape}")
    floor = np.where(
        min_cost == NOT_OFFERED, NOT_OFFERED, min_cost // grid if rounding == "down" else -(-min_cost // grid)
    )

    def share(rest: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Probability of the upper neighbour of a cost ``rest`` tokens above a grid point."""
        return rest / grid if rounding == "split" else np.where(rest > 0, float(rounding == "up"), 0.0)

    whole, part = divmod(decision_cost, grid)
    more = float(share(np.array(part)))
    skip = np.array([1 - more, more])
    cost = laws.cost.astype(np.int64) + decision_cost
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


class Pass(NamedTuple):
    """A backward pass over the nodes of every position."""

    actions: list[Actions]
    """N arrays (nodes, ...)."""
    nodes: Nodes
    values: npt.NDArray[np.float64]
    """(nodes at position 0, ...)."""


def shown_pass(
    groups: npt.NDArray[np.integer],
    shape: tuple[int, ...],
    step: Step,
    continuation: Callable[[int, npt.NDArray[np.int64]], Following] | None = None,
) -> Pass:
    """Backward pass over E exams whose tasks are all shown.

    :param groups: (E, N) kinds of the tasks (published groups).
    :param shape: of the value of one node.
    :param continuation: ``(n, exams)``: value of the tasks from n on, one row for each of these exams, instead of the
        pass's own; every distinct suffix is asked for once.
    """
    size, num_tasks = groups.shape
    actions: list[Actions] = []
    index = np.empty((num_tasks, size), np.int64)
    after, values = np.zeros(size, np.int64), np.zeros((1, *shape))
    for n in range(num_tasks - 1, -1, -1):
        pairs = np.stack([groups[:, n].astype(np.int64), after], 1)
        nodes, inverse = np.unique(pairs, axis=0, return_inverse=True)
        following: Following = values
        if continuation is not None and n + 1 < num_tasks:
            following = continuation(n + 1, np.unique(after, return_index=True)[1])
        values, action = step(nodes[:, 0], following, nodes[:, 1])
        actions.append(action)
        after = index[n] = inverse.ravel()
    return Pass(actions[::-1], index, values)


def hidden_pass(
    arrivals: Arrivals, shape: tuple[int, ...], step: Step, continuation: Callable[[int], Following] | None = None
) -> Pass:
    """Backward pass where later tasks are hidden: what follows is an expectation given what was seen.

    :param shape: of the value of one node.
    :param continuation: ``n``: value of what follows task n, one row a state of ``arrivals``, instead of the pass's own.
    """
    actions: list[Actions] = []
    values = np.empty((0, *shape))
    last = len(arrivals.groups) - 1
    for n in range(last, -1, -1):
        groups, states = arrivals.groups[n], arrivals.states[n]
        following: Following
        if n == last:
            following = np.zeros((int(states.max()) + 1, *shape))
        elif continuation is not None:
            following = continuation(n)
        else:
            following = arrivals.expect(n + 1, values)
        values, action = step(groups, following, states)
        actions.append(action)
    return Pass(actions[::-1], arrivals, values)


def find_node(
    index: Nodes, position: int, exam: npt.NDArray[np.int64], seen: npt.NDArray[np.integer] | None
) -> npt.NDArray[np.int64]:
    """(D,) node of decisions at ``position``; -1: what was seen cannot happen.

    :param exam: (D,) row of the exam.
    :param seen: (D, position + 1) groups seen so far; read where later tasks are hidden, None elsewhere.
    """
    if not isinstance(index, Arrivals):
        return index[position, exam]
    if seen is None:
        raise ValueError("seen must hold the groups seen so far: these tables were made for hidden tasks")
    _, first, inverse = np.unique(exam, return_index=True, return_inverse=True)
    return index.walk(seen[first])[inverse.ravel()]


def at_start(index: Nodes, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values of the first position's nodes by exam (E,); by first group (G,) where later tasks are hidden, 0 for groups
    that cannot come first."""
    if not isinstance(index, Arrivals):
        return values[index[0]]
    out = np.zeros(index.num_groups)
    out[index.groups[0]] = values
    return out


def by_exam(index: Nodes, values: npt.NDArray[np.float64], groups: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """(E,) what :func:`at_start` gave, for exams whose tasks are ``groups`` (E, N)."""
    return values[groups[:, 0]] if isinstance(index, Arrivals) else values


@dataclass(frozen=True)
class Tables:
    """Action tables of a batch of exams.

    :param actions: N arrays (nodes, B' + 1) int8; with more left than the last one, its action stays the same.
    :param index: where an exam's node is.
    :param grid: tokens per grid step.
    :param value: value of the whole exam by the pass, see :func:`at_start`.
    """

    actions: list[Actions]
    index: Nodes
    grid: int
    value: npt.NDArray[np.float64]

    def lookup(
        self,
        position: int,
        exam: npt.NDArray[np.int64],
        remaining: npt.NDArray[np.int64],
        seen: npt.NDArray[np.integer] | None = None,
    ) -> npt.NDArray[np.int64]:
        """(D,) int64 actions of decisions at one position; ``seen`` as in :func:`find_node`.

        :param remaining: (D,) tokens left.
        """
        node, actions = find_node(self.index, position, exam, seen), self.actions[position]
        left = np.minimum(remaining // self.grid, actions.shape[1] - 1)
        return np.where(node >= 0, actions[node, left], 0).astype(np.int64)


def _points(budget: int, grid: int, cells: Cells, num_tasks: int) -> int:
    """Points of a grid up to the budget, or to what can be spent of it."""
    dearest = max(int(cells.cost.max(initial=0)), cells.skip_cost + 1)
    return min(budget // grid, num_tasks * dearest) + 1


def _bellman_step(weights: npt.NDArray[np.float64], law: npt.NDArray[np.int64], cells: Cells, points: int) -> Step:
    def step(
        kinds: npt.NDArray[np.int64], following: Following, rest: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], Actions]:
        values = np.empty((len(kinds), points))
        action = np.empty((len(kinds), points), np.int8)
        for node, kind in enumerate(kinds):
            backup(following[rest[node]], weights[kind], law[kind], cells, values[node], action[node])
        return values, action

    return step


def preview_tables(
    groups: npt.NDArray[np.integer],
    weights: npt.NDArray[np.float64],
    cells: Cells,
    budget: int,
    grid: int,
    continuation: Callable[[int, npt.NDArray[np.int64]], list[Curve]] | None = None,
    law: npt.NDArray[np.int64] | None = None,
) -> Tables:
    """Tables of E exams whose tasks are all shown.

    :param groups: (E, N) kinds of the tasks (published groups).
    :param weights: reward weight by kind.
    :param cells: from :func:`compile_laws`, on the same grid.
    :param continuation: as in :func:`shown_pass`, instead of Bellman's values.
    :param law: law by kind (default: kind g has law g).
    """
    points = _points(budget, grid, cells, groups.shape[1]) if continuation is None else budget // grid + 1
    law = np.arange(len(weights)) if law is None else law
    done = shown_pass(groups, (points,), _bellman_step(weights, law, cells, points), continuation)
    return Tables(done.actions, done.nodes, grid, at_start(done.nodes, done.values[:, -1]))


def blind_tables(
    arrivals: Arrivals,
    weights: npt.NDArray[np.float64],
    cells: Cells,
    budget: int,
    grid: int,
    continuation: Callable[[int], list[Curve]] | None = None,
) -> Tables:
    """Tables where later tasks are hidden; ``weights`` (G,), law g belongs to group g, ``continuation`` as in
    :func:`hidden_pass`."""
    points = _points(budget, grid, cells, len(arrivals.groups)) if continuation is None else budget // grid + 1
    done = hidden_pass(
        arrivals, (points,), _bellman_step(weights, np.arange(len(weights)), cells, points), continuation
    )
    return Tables(done.actions, done.nodes, grid, at_start(done.nodes, done.values[:, -1]))
