"""Policies as tables over (task, remaining budget, belief) for exams with a two-valued exam-level latent state.

Kaelbling, Littman and Cassandra, "Planning and acting in partially observable stochastic domains", Artificial
Intelligence 101, 1998; belief grid with linear interpolation: Lovejoy, "Computationally feasible bounds for partially
observed Markov decision processes", Operations Research 39(1), 1991. The belief moves by Bayes' rule with what is
observed: the tokens paid, and with ``sees_correct`` whether the answer was right. Actions are those of the nearest grid
point: the policy's value is a lower bound of the optimum, the grid's value an upper one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env.exact.bellman import Cells
from roi_env.exact.policy_tables import (
    Actions,
    Following,
    Nodes,
    at_start,
    compile_laws,
    find_node,
    hidden_pass,
    shown_pass,
)
from roi_env.exams.arrivals import Arrivals
from roi_env.sources.source import Laws

MAX_GRID_POINTS = 1024
"""Automatic grids keep at most this many budget levels: the belief multiplies the work."""
POINTS = 41
"""Default grid points of the belief."""


class Evidence(NamedTuple):
    """What can be observed after an attempt, by (group, tier) cell: cost in grid units with the decision cost included,
    likelihood and probability of a right answer together with it under both latent states."""

    indptr: npt.NDArray[np.int64]
    cost: npt.NDArray[np.int64]
    likelihood: npt.NDArray[np.float64]
    """(n, 2)."""
    right: npt.NDArray[np.float64]
    """(n, 2)."""


def collect_evidence(cells: Cells, groups: int, num_tiers: int, sees_correct: bool) -> Evidence:
    """Join the laws of both latent states; with ``sees_correct`` right and wrong are separate observations."""
    indptr, costs, likelihoods, rights = [0], [], [], []
    for cell in range(groups * num_tiers):
        spans = [slice(*cells.indptr[c : c + 2]) for c in (cell, cell + groups * num_tiers)]
        cost = np.unique(np.concatenate([cells.cost[s] for s in spans]))
        prob, success = np.zeros((len(cost), 2)), np.zeros((len(cost), 2))
        for state, span in enumerate(spans):
            at = np.searchsorted(cost, cells.cost[span])
            prob[at, state], success[at, state] = cells.prob[span], cells.success[span]
        if sees_correct:
            wrong = np.maximum(prob - success, 0.0)
            cost = np.repeat(cost, 2)
            prob = np.stack([success, wrong], 1).reshape(-1, 2)
            success = np.stack([success, np.zeros_like(success)], 1).reshape(-1, 2)
        costs.append(cost)
        likelihoods.append(prob)
        rights.append(success)
        indptr.append(indptr[-1] + len(cost))
    return Evidence(
        np.array(indptr, np.int64), np.concatenate(costs), np.concatenate(likelihoods), np.concatenate(rights)
    )


@njit(cache=True)
def belief_backup(
    following: npt.NDArray[np.float64],
    weight: float,
    law: int,
    evidence: Evidence,
    floor: npt.NDArray[np.int64],
    skip: npt.NDArray[np.float64],
    skip_cost: int,
    value: npt.NDArray[np.float64],
    action: npt.NDArray[np.int8],
    scratch: npt.NDArray[np.float64],
) -> None:
    """One backward step; arrays are (P, B' + 1): belief in state 1 on a regular grid, remaining budget in grid units.

    Between grid points the value is interpolated linearly: it is convex in the belief, so the result is an upper bound.
    """
    points, top = following.shape[0], following.shape[1] - 1
    num_tiers = floor.shape[1]
    for p in range(points):
        belief = p / (points - 1)
        value[p] = 0.0
        action[p] = 0
        for more in range(2):
            if skip[more] > 0:
                for b in range(skip_cost + more, top + 1):
                    value[p, b] += skip[more] * following[p, b - skip_cost - more]
        for k in range(num_tiers):
            if floor[law, k] > top:
                continue
            cell = law * num_tiers + k
            scratch[:] = 0.0
            for j in range(evidence.indptr[cell], evidence.indptr[cell + 1]):
                cost = evidence.cost[j]
                if cost > top:
                    break
                one = belief * evidence.likelihood[j, 1]
                prob = (1 - belief) * evidence.likelihood[j, 0] + one
                if prob <= 0.0:
                    continue
                gain = weight * ((1 - belief) * evidence.right[j, 0] + belief * evidence.right[j, 1])
                place = one / prob * (points - 1)
                low = min(int(place), points - 2)
                upper = prob * (place - low)
                lower = prob - upper
                for b in range(cost, top + 1):
                    scratch[b] += gain + (lower * following[low, b - cost] + upper * following[low + 1, b - cost])
            for b in range(floor[law, k], top + 1):
                if scratch[b] > value[p, b]:
                    value[p, b] = scratch[b]
                    action[p, b] = k + 1


@njit(cache=True)
def update_beliefs(
    belief: npt.NDArray[np.float64],
    cell: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.int64],
    correct: npt.NDArray[np.bool_],
    sees_correct: bool,
    evidence: Evidence,
) -> npt.NDArray[np.float64]:
    """(D,) posterior of state 1 by Bayes' rule; an observation impossible under both states changes nothing."""
    out = belief.copy()
    for d in range(len(belief)):
        stop = evidence.indptr[cell[d] + 1]
        j = evidence.indptr[cell[d]]
        j += np.searchsorted(evidence.cost[j:stop], tokens[d])
        if sees_correct and not correct[d]:
            j += 1
        if j < stop and evidence.cost[j] == tokens[d]:
            one = belief[d] * evidence.likelihood[j, 1]
            total = one + (1 - belief[d]) * evidence.likelihood[j, 0]
            if total > 0:
                out[d] = one / total
    return out


@dataclass(frozen=True)
class BeliefTables:
    """Action tables of a batch of exams.

    :param actions: N arrays (nodes, P, B' + 1) int8.
    :param index: where an exam's node is.
    :param grid: tokens per step of the budget grid.
    :param bound: the grid's value of the whole exam, see :func:`roi_env.exact.policy_tables.at_start`: an upper bound of the optimum
        on an exact budget grid.
    """

    actions: list[Actions]
    index: Nodes
    grid: int
    bound: npt.NDArray[np.float64]

    def lookup(
        self,
        position: int,
        exam: npt.NDArray[np.int64],
        remaining: npt.NDArray[np.int64],
        belief: npt.NDArray[np.float64],
        seen: npt.NDArray[np.integer] | None = None,
    ) -> npt.NDArray[np.int64]:
        """(D,) int64 actions, as :meth:`roi_env.exact.policy_tables.Tables.lookup`, of the grid point next to ``belief`` (D,)."""
        actions = self.actions[position]
        place = np.rint(belief * (actions.shape[1] - 1)).astype(np.int64)
        node = find_node(self.index, position, exam, seen)
        return np.where(node >= 0, actions[node, place, remaining // self.grid], 0).astype(np.int64)


class BeliefModel(NamedTuple):
    """Laws under both latent states, compiled once for a kind of exam by :func:`belief_model`."""

    weights: npt.NDArray[np.float64]
    """(G,)."""
    cells: Cells
    evidence: Evidence
    """On the budget grid: for planning."""
    exact: Evidence
    """In tokens: for the belief."""
    budget: int
    grid: int
    points: int
    sees_correct: bool


def belief_model(
    laws: Laws,
    weights: npt.NDArray[np.float64],
    min_cost: npt.NDArray[np.int64],
    budget: int,
    decision_cost: int,
    *,
    sees_correct: bool,
    points: int = POINTS,
    grid: int = 0,
) -> BeliefModel:
    """Compile laws for :func:`belief_tables` and :func:`observe_attempts`.

    :param laws: law ``latent * G + group`` of two equally likely latent states.
    :param weights: (G,) reward of a correct answer.
    :param min_cost: (G, K) tokens (decision cost included) from which on a tier is legal.
    :param budget: tokens.
    :param sees_correct: whether it is shown if an answer was right; the tokens paid always are.
    :param points: grid points of the belief.
    :param grid: tokens per step of the budget grid; 0 chooses 1 up to ``MAX_GRID_POINTS`` tokens of budget.
    :raises ValueError: for fewer than two points, or laws of another number of latent states.
    """
    if points < 2:
        raise ValueError(f"points must be >= 2, got {points}")
    if laws.num_laws != 2 * len(weights):
        raise ValueError(f"laws must be those of two latent states and {len(weights)} groups, got {laws.num_laws} laws")
    grid = grid or -(-budget // MAX_GRID_POINTS)
    both = np.concatenate([min_cost, min_cost])
    size = len(weights), laws.num_tiers
    cells = compile_laws(laws, both, decision_cost, grid)
    evidence = collect_evidence(cells, *size, sees_correct)
    exact = evidence
    if grid > 1:
        exact = collect_evidence(compile_laws(laws, both, decision_cost), *size, sees_correct)
    return BeliefModel(weights, cells, evidence, exact, budget, grid, points, sees_correct)


def belief_tables(model: BeliefModel, exams: npt.NDArray[np.integer] | Arrivals) -> BeliefTables:
    """Solve a batch of exams.

    :param exams: (E, N) groups of exams whose tasks are all shown, or the law of the sequence of groups.
    """
    floor = model.cells.floor[: len(model.weights)]
    shape = model.points, model.budget // model.grid + 1

    def step(
        kinds: npt.NDArray[np.int64], following: Following, rest: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], Actions]:
        value = np.empty((len(kinds), *shape))
        action = np.empty(value.shape, np.int8)
        scratch = np.empty(shape[1])
        for node, group in enumerate(kinds):
            belief_backup(
                following[rest[node]],
                model.weights[group],
                group,
                model.evidence,
                floor,
                model.cells.skip,
                model.cells.skip_cost,
                value[node],
                action[node],
                scratch,
            )
        return value, action

    done = hidden_pass(exams, shape, step) if isinstance(exams, Arrivals) else shown_pass(exams, shape, step)
    middle = (model.points - 1) / 2
    whole = done.values[:, :, -1]
    bound = (whole[:, int(np.floor(middle))] + whole[:, int(np.ceil(middle))]) / 2
    return BeliefTables(done.actions, done.nodes, model.grid, at_start(done.nodes, bound))


def observe_attempts(
    model: BeliefModel,
    belief: npt.NDArray[np.float64],
    group: npt.NDArray[np.integer],
    action: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.int64],
    correct: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.float64]:
    """(D,) posterior of latent state 1 after attempts that were finished.

    :param belief: (D,) probability of state 1 before.
    :param action: (D,) tier played, 1 the cheapest.
    :param tokens: (D,) paid, decision cost included.
    :param correct: (D,), or None where it was not shown.
    """
    cell = group.astype(np.int64) * model.cells.floor.shape[1] + action - 1
    shown = correct is not None and model.sees_correct
    right = np.zeros(len(belief), bool) if correct is None else correct
    return update_beliefs(belief, cell, tokens, right, shown, model.exact)
