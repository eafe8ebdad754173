"""Hindsight optimisation: the future is worth what a clairvoyant would make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import ExamsView, Problem
from agents.planners.tables import (
    Curve,
    TableAgent,
    Tables,
    auto_grid,
    blind_tables,
    compile_laws,
    preview_tables,
)
from roi_env import random

NEVER = np.iinfo(np.int64).max // 4
"""Cheapest correct cost of a task that no tier solves."""


@njit(cache=True)
def hindsight_frontier(
    cheapest: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    decision_cost: int,
    budget: int,
    cost: npt.NDArray[np.int64],
    profit: npt.NDArray[np.float64],
) -> int:
    """Pareto list (tokens, score) of one exam whose outcomes are known; returns its length.

    With outcomes known only the cheapest correct tier of a task matters (a dearer one earns the same): a 0/1 knapsack
    solved by the list of Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation", Management
    Science 15(9), 1969. Every task before the last one attempted also costs the decision cost.

    :param cheapest: (n,) tokens of the cheapest correct tier, decision cost excluded; ``NEVER``: none.
    :param cost: (2, size) int64 scratch; row 0 is the result, ascending. ``profit`` (2, size) likewise.
    """
    length: int = 1
    cost[0, 0], profit[0, 0] = 0, 0.0
    for n in range(len(cheapest) - 1, -1, -1):
        take = cheapest[n] + decision_cost
        # Merge the list shifted by a skip (dropping nothing to do: state 0) with the list shifted by the attempt.
        i, j, out = 0, 0, 0
        best = -1.0
        while i < length or j < length:
            skip_cost = cost[0, i] + (decision_cost if i > 0 else 0) if i < length else NEVER
            take_cost = cost[0, j] + take if j < length and cheapest[n] < NEVER else NEVER
            if skip_cost >= NEVER and take_cost >= NEVER:
                break
            if skip_cost <= take_cost:
                c, p = skip_cost, profit[0, i]
                i += 1
            else:
                c, p = take_cost, profit[0, j] + weights[n]
                j += 1
            if c > budget:
                break
            if p > best:
                if out > 0 and cost[1, out - 1] == c:
                    out -= 1
                cost[1, out], profit[1, out] = c, p
                out += 1
                best = p
        length = out
        for m in range(length):
            cost[0, m], profit[0, m] = cost[1, m], profit[1, m]
    return int(length)


def frontier_size(weights: npt.NDArray[np.float64], budget: int) -> int:
    """Most entries of a Pareto list of tasks with ``weights`` (n,)."""
    most = min(2 ** min(len(weights), 62), budget + 1)
    if (weights == np.rint(weights)).all():
        most = min(most, int(weights.sum()) + 1)
    return most + 1


@njit(cache=True)
def _mean_curve(
    cheapest: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    decision_cost: int,
    budget: int,
    grid: int,
    size: int,
) -> npt.NDArray[np.float64]:
    """(budget // grid + 1,) mean over scenarios of the hindsight value; ``cheapest`` and ``weights`` are (M, n)."""
    scenarios = len(cheapest)
    curve = np.zeros(budget // grid + 1)
    cost, profit = np.empty((2, size), np.int64), np.empty((2, size))
    for s in range(scenarios):
        length = hindsight_frontier(cheapest[s], weights[s], decision_cost, budget, cost, profit)
        for m in range(1, length):
            at = -(-cost[0, m] // grid)
            if at < len(curve):
                curve[at] += profit[0, m] - profit[0, m - 1]
    total = 0.0
    for b in range(len(curve)):
        total += curve[b]
        curve[b] = total / scenarios
    return curve


@njit(cache=True)
def _unit(number: np.uint64) -> float:
    return float(number >> np.uint64(11)) * 2.0**-53


@njit(cache=True)
def _draw_cheapest(
    seed: np.uint64,
    scenarios: int,
    num_tasks: int,
    indptr: npt.NDArray[np.int64],
    cost: npt.NDArray[np.int32],
    prob: npt.NDArray[np.float64],
    success: npt.NDArray[np.float64],
    offered: npt.NDArray[np.bool_],
    common: bool,
) -> npt.NDArray[np.int64]:
    """(M, N, G) tokens of the cheapest correct tier in every scenario, ``NEVER`` where there is none."""
    groups, num_tiers = offered.shape
    out = np.full((scenarios, num_tasks, groups), NEVER, np.int64)
    for s in range(scenarios):
        for n in range(num_tasks):
            key = random.outcome_key(seed, np.int64(s), np.int64(n))
            for g in range(groups):
                for k in range(num_tiers):
                    if not offered[g, k]:
                        continue
                    u = _unit(random.draw(key, np.uint64(0 if common else k)))
                    cell = g * num_tiers + k
                    for j in range(indptr[cell], indptr[cell + 1]):
                        # Inside a cost the correct part comes first.
                        if u < prob[j]:
                            if u < success[j] and cost[j] < out[s, n, g]:
                                out[s, n, g] = cost[j]
                            break
                        u -= prob[j]
    return out


@njit(cache=True)
def _draw_numbers(seed: np.uint64, scenarios: int, num_tasks: int) -> npt.NDArray[np.float64]:
    """(N, M) numbers that draw the task at a position of a scenario."""
    out = np.empty((num_tasks, scenarios))
    for s in range(scenarios):
        key = random.exam_key(seed, np.int64(s))
        for n in range(num_tasks):
            out[n, s] = _unit(random.draw(key, np.uint64(n)))
    return out


@njit(cache=True)
def _draw_nodes(
    start: npt.NDArray[np.int64],
    node: npt.NDArray[np.int64],
    prob: npt.NDArray[np.float64],
    state: npt.NDArray[np.int64],
    number: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """(M,) next nodes given the states (M,); the arrays of :class:`roi_env.blind.Mixture` come first."""
    out = np.empty(len(state), np.int64)
    for s in range(len(state)):
        total = 0.0
        for j in range(start[state[s]], start[state[s] + 1]):
            total += prob[j]
            out[s] = node[j]
            if number[s] < total:
                break
    return out


class HindsightOptimisation(TableAgent):
    """One-step expectation, then the expected clairvoyant value: argmax_k E[w right_k + H_{i+1}(b - cost_k)].

    H_{i+1}(b) is the mean, over ``scenarios`` draws of the later tasks' outcomes, of the best score in hindsight:
    algorithm E of Bent and Van Hentenryck, "Regrets Only! Online Stochastic Optimization under Time Constraints", AAAI
    2004; Chong, Givan and Chang, "A framework for simulation-based network control via hindsight optimization", CDC
    2000. Hindsight overprices the budget, the more the longer the exam. The curve over all budgets is computed at once.

    :param scenarios: scenarios drawn from the beliefs, the same for all exams (named by seed, scenario and position).
    :param coupling: how a scenario draws the tiers of a task, which beliefs do not say: "common" (one number picks the
        cost quantile of every tier) or "independent". Tiers share the task's difficulty, and independent draws give the
        clairvoyant a fresh chance per tier: on signal, N = 10, t = .15 / .3 / .6 the policy reaches .983 / .993 / .978
        of the optimum with independent draws, .989 / .994 / .985 with common ones.
    :param seed: of the scenarios.
    :param grid: tokens per step of the budget grid; 0 chooses 1 up to 16384 tokens of budget.
    :raises ValueError: where the problem publishes no beliefs, or for bad parameters.
    """

    def __init__(
        self, problem: Problem, scenarios: int = 64, coupling: str = "common", seed: int = 0, grid: int = 0
    ) -> None:
        super().__init__(problem)
        if scenarios < 1 or coupling not in ("independent", "common"):
            raise ValueError(
                f"scenarios must be >= 1 and coupling 'independent' or 'common', got {scenarios} and {coupling!r}"
            )
        self._params = {"scenarios": scenarios, "coupling": coupling, "seed": seed, "grid": grid}
        self.scenarios, self.seed = scenarios, seed
        self.grid = grid or auto_grid(problem.budget)
        laws = problem.require_beliefs("hindsight-optimisation")
        self._cheapest = _draw_cheapest(
            np.uint64(seed),
            scenarios,
            problem.num_tasks,
            laws.indptr,
            laws.cost,
            laws.prob,
            laws.success,
            problem.min_cost <= problem.budget,
            coupling == "common",
        )

    def curve(self, position: int, groups: npt.NDArray[np.integer]) -> Curve:
        """Expected hindsight value of the tasks from ``position`` on; ``groups`` (n,), or (M, n) by scenario."""
        problem = self.problem
        groups = np.broadcast_to(groups, (self.scenarios, groups.shape[-1]))
        places = np.arange(position, position + groups.shape[1])
        cheapest = self._cheapest[np.arange(self.scenarios)[:, None], places, groups]
        weights = problem.group_weight[groups]
        size = max(frontier_size(row, problem.budget) for row in np.unique(weights, axis=0))
        return _mean_curve(cheapest, weights, problem.decision_cost, problem.budget, self.grid, size)

    def tables(self, exams: ExamsView) -> Tables:
        """Solve a batch of exams."""
        problem = self.problem
        cells = compile_laws(problem.require_beliefs("hindsight-optimisation"), problem, self.grid)
        if problem.preview:

            def continuation(position: int, heads: npt.NDArray[np.int64]) -> list[Curve]:
                return [self.curve(position, exams.groups[e, position:]) for e in heads]

            return preview_tables(exams.groups, problem.group_weight, cells, problem.budget, self.grid, continuation)
        arrivals = problem.arrivals
        numbers = _draw_numbers(np.uint64(self.seed), self.scenarios, problem.num_tasks)

        def blind(position: int) -> list[Curve]:
            curves = []
            for known in range(int(arrivals.states[position].max()) + 1):
                state, path = np.full(self.scenarios, known), []
                for n in range(position + 1, problem.num_tasks):
                    node = _draw_nodes(*arrivals.laws[n], state, numbers[n])
                    state = arrivals.states[n][node]
                    path.append(arrivals.groups[n][node])
                curves.append(self.curve(position + 1, np.stack(path, 1)))
            return curves

        return blind_tables(problem, cells, self.grid, blind)

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return dict(self._params)
