"""Hindsight optimisation: the future is worth what a clairvoyant would make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import ExamsView, Problem
from agents.parameters import Count, Natural
from agents.planners.tables import TableAgent
from roi_env.exact.hindsight import NEVER, hindsight_curve
from roi_env.exact.policy_tables import Curve, Tables, auto_grid, blind_tables, compile_laws, preview_tables, spendable
from roi_env.exams import random


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
    """(M,) next nodes given the states (M,); the arrays of :class:`roi_env.exams.arrivals.Mixture` come first."""
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
        clairvoyant a fresh chance per tier. Chosen on training exams (``benchmarks/choose_hindsight_coupling.py``):
        common draws were ahead in all 18 settings of signal, heavy and cap with N = 3, 10 and t = .15, .3, .6 (60 exams
        and three scenario seeds each); on signal, N = 10 they reached .986 / .995 / .985 of the optimum, independent ones .979 / .992 / .978.
    :param seed: of the scenarios.
    :param grid: tokens per step of the budget grid; 0 chooses 1 up to 16384 tokens of budget.
    :raises ValueError: where the problem publishes no beliefs, or for bad parameters.
    """

    def __init__(
        self, problem: Problem, scenarios: Count = 64, coupling: str = "common", seed: Natural = 0, grid: Natural = 0
    ) -> None:
        super().__init__(problem)
        if scenarios < 1 or coupling not in ("independent", "common"):
            raise ValueError(
                f"scenarios must be >= 1 and coupling 'independent' or 'common', got {scenarios} and {coupling!r}"
            )
        self._params = {"scenarios": scenarios, "coupling": coupling, "seed": seed, "grid": grid}
        self.scenarios, self.seed = scenarios, seed
        laws = problem.require_beliefs("hindsight-optimisation")
        self.budget = spendable(problem.budget, laws, problem.num_tasks, problem.decision_cost)
        self.grid = grid or auto_grid(self.budget, laws, problem.num_tasks, problem.decision_cost)
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
        return hindsight_curve(cheapest, weights, self.budget, decision_cost=problem.decision_cost, grid=self.grid)

    def tables(self, exams: ExamsView) -> Tables:
        """Solve a batch of exams."""
        problem = self.problem
        laws, weights = problem.require_beliefs("hindsight-optimisation"), problem.group_weight
        cells = compile_laws(laws, problem.min_cost, problem.decision_cost, self.grid)
        if problem.preview:

            def continuation(position: int, heads: npt.NDArray[np.int64]) -> list[Curve]:
                return [self.curve(position, exams.groups[e, position:]) for e in heads]

            return preview_tables(exams.groups, weights, cells, self.budget, self.grid, continuation)
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

        return blind_tables(arrivals, weights, cells, self.budget, self.grid, blind)

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return dict(self._params)
