"""Planning with a belief about the exam-level latent state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import Agent, DecisionView, ExamsView, Feedback, Problem, Probs, State, one_hot
from agents.planners.tables import Actions, by_first_group, compile_laws, find_node
from roi_env.bellman import Cells
from roi_env.blind import Arrivals
from roi_env.source import Laws

MAX_GRID_POINTS = 1024
"""Automatic grids keep at most this many budget levels: the belief multiplies the work."""


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
class BeliefState:
    """Beliefs (E,) in state 1 and the action tables of a batch of exams: N arrays (nodes, P, B' + 1).

    ``index``: as in :class:`agents.planners.tables.Tables`. ``bound`` (E,), or (G,) by first group: the grid's value of
    the exam, an upper bound of the optimum on an exact budget grid.
    """

    belief: npt.NDArray[np.float64]
    actions: list[Actions]
    index: npt.NDArray[np.int64] | Arrivals
    bound: npt.NDArray[np.float64]


class BeliefBellman(Agent):
    """The dynamic programme over (task, remaining budget, belief) for exams with a two-valued latent state.

    Kaelbling, Littman and Cassandra, "Planning and acting in partially observable stochastic domains", Artificial
    Intelligence 101, 1998; belief grid with linear interpolation: Lovejoy, "Computationally feasible bounds for
    partially observed Markov decision processes", Operations Research 39(1), 1991. The belief moves by Bayes' rule with
    what the feedback shows: the tokens paid, and with "cost+correct" whether the answer was right. Actions are those of
    the nearest grid point, so the policy is a lower bound of the optimum and :attr:`BeliefState.bound` an upper one.

    :param points: grid points of the belief.
    :param grid: tokens per step of the budget grid; 0 chooses 1 up to 1024 tokens of budget.
    :param laws: laws by (latent state, group) instead of the published beliefs (then it cannot be saved).
    :raises ValueError: where the problem has no two-valued latent state or publishes no beliefs about it.
    """

    name: ClassVar[str] = "belief-bellman"
    markov: ClassVar[bool] = False

    def __init__(self, problem: Problem, points: int = 41, grid: int = 0, laws: Laws | None = None) -> None:
        super().__init__(problem)
        given = problem.latent_beliefs if laws is None else laws
        if given is None or problem.num_latent != 2:
            raise ValueError(
                "agent 'belief-bellman' needs published beliefs about a two-valued exam-level latent state (source "
                f"'latent', beliefs='published'); this problem has {problem.num_latent} latent state(s)"
            )
        if points < 2:
            raise ValueError(f"points must be >= 2, got {points}")
        self.points, self._grid, self._given = points, grid, laws
        self.grid = grid or -(-problem.budget // MAX_GRID_POINTS)
        self.sees_correct = problem.feedback == "cost+correct"
        group = np.tile(np.arange(problem.num_groups), 2)
        size = problem.num_groups, problem.num_tiers
        self._cells = compile_laws(given, problem, self.grid, group)
        self._evidence = collect_evidence(self._cells, *size, self.sees_correct)
        exact = self._cells if self.grid == 1 else compile_laws(given, problem, 1, group)
        self._exact = self._evidence if self.grid == 1 else collect_evidence(exact, *size, self.sees_correct)

    def _solve(self, groups: npt.NDArray[np.int64], following: npt.NDArray[np.float64]) -> tuple[Any, Actions]:
        """Backward step of tasks of ``groups`` (n,), ``following`` (n, P, B' + 1)."""
        value = np.empty_like(following)
        action = np.empty(following.shape, np.int8)
        scratch = np.empty(following.shape[2])
        for node, group in enumerate(groups):
            belief_backup(
                following[node],
                self.problem.group_weight[group],
                group,
                self._evidence,
                self._cells.floor[: self.problem.num_groups],
                self._cells.skip,
                self._cells.skip_cost,
                value[node],
                action[node],
                scratch,
            )
        return value, action

    def start(self, exams: ExamsView) -> State:
        """Solve the batch; equal suffixes of exams are solved once."""
        problem, size = self.problem, len(exams)
        shape = self.points, problem.budget // self.grid + 1
        actions: list[Actions] = []
        middle = (self.points - 1) / 2
        index: npt.NDArray[np.int64] | Arrivals
        if problem.preview:
            index = np.empty((problem.num_tasks, size), np.int64)
            after, values = np.zeros(size, np.int64), np.zeros((1, *shape))
            for n in range(problem.num_tasks - 1, -1, -1):
                pairs = np.stack([exams.groups[:, n].astype(np.int64), after], 1)
                nodes, inverse = np.unique(pairs, axis=0, return_inverse=True)
                values, action = self._solve(nodes[:, 0], values[nodes[:, 1]])
                actions.append(action)
                after = index[n] = inverse.ravel()
        else:
            index = arrivals = problem.arrivals
            values = np.zeros((int(arrivals.states[-1].max()) + 1, *shape))
            for n in range(problem.num_tasks - 1, -1, -1):
                if n + 1 < problem.num_tasks:
                    values = arrivals.expect(n + 1, values)
                values, action = self._solve(arrivals.groups[n], values[arrivals.states[n]])
                actions.append(action)
        whole = values[:, :, -1]
        bound = (whole[:, int(np.floor(middle))] + whole[:, int(np.ceil(middle))]) / 2
        bound = bound[after] if problem.preview else by_first_group(problem.arrivals, bound)
        return BeliefState(np.full(size, 0.5), actions[::-1], index, bound)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Action of the nearest grid point of the belief."""
        place = np.rint(state.belief[view.exam] * (self.points - 1)).astype(np.int64)
        action = np.zeros(len(view), np.int64)
        for n in np.unique(view.position):
            at = np.flatnonzero(view.position == n)
            node = find_node(state.index, view, n, at)
            best = state.actions[n][node, place[at], view.remaining[at] // self.grid]
            action[at] = np.where(node >= 0, best, 0)
        return one_hot(action, self.problem.num_tiers + 1), state

    def observe(self, feedback: Feedback, state: State) -> State:
        """Bayes' rule on finished attempts (after one that was cut the exam is over)."""
        done = (feedback.action > 0) & ~feedback.overspent
        exam = feedback.view.exam[done]
        cell = feedback.view.group[done].astype(np.int64) * self.problem.num_tiers + feedback.action[done] - 1
        shown = feedback.correct is not None and self.sees_correct
        correct = feedback.correct[done] if feedback.correct is not None else np.zeros(len(exam), bool)
        belief = state.belief.copy()
        belief[exam] = update_beliefs(belief[exam], cell, feedback.tokens[done], correct, shown, self._exact)
        return replace(state, belief=belief)

    def params(self) -> dict[str, Any]:
        """Constructor parameters.

        :raises ValueError: with laws that are not the published beliefs.
        """
        if self._given is not None:
            raise ValueError("'optimum' holds the evaluated source's own laws and cannot be saved; make it again")
        return {"points": self.points, "grid": self._grid}
