"""Bellman on beliefs, on the source's own laws, and on laws learned from logged attempts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.base import Agent, Attempts, ExamsView, Practice, Problem
from agents.made_for import QUESTIONS
from agents.parameters import Count, Natural
from agents.planners.tables import TableAgent
from roi_env.exact.policy_tables import Rounding, Tables, auto_grid, blind_tables, compile_laws, preview_tables
from roi_env.sources.source import Laws, laws_from_cells


class Bellman(TableAgent):
    """The dynamic programme over (task, remaining budget) on the published beliefs: the optimum where they are exact.

    Dean, Goemans and Vondrak, "Approximating the Stochastic Knapsack Problem: The Benefit of Adaptivity", Math. OR
    33(4), 2008, treat this model (the overflowing item is worthless) with a free order; here the order is given, and

        V_i(b) = max(V_{i+1}(b - d), max_k sum over c <= b - d of w_i s_ik(c) + q_ik(c) V_{i+1}(b - d - c)),

    d = decision cost. With preview the exam's own tasks are planned for, blind the population's.

    :param grid: tokens per step of the budget grid; 0 chooses 1 (exact) up to 16384 tokens of budget.
    :raises ValueError: where the problem publishes no beliefs.
    """

    rounding: Rounding = "split"
    relies_on: ClassVar[tuple[str, ...]] = (QUESTIONS,)

    def __init__(self, problem: Problem, grid: Natural = 0) -> None:
        super().__init__(problem)
        self._grid = grid

    def laws(self) -> Laws:
        """(G,) laws to plan with."""
        return self.problem.require_beliefs(getattr(self, "name", "bellman"))

    def tables(self, exams: ExamsView) -> Tables:
        """Solve a batch of exams."""
        problem, weights = exams.problem, exams.problem.group_weight
        laws = self.laws()
        grid = self._grid or auto_grid(problem.budget, laws, problem.num_tasks, problem.decision_cost)
        cells = compile_laws(laws, problem.min_cost, problem.decision_cost, grid, self.rounding)
        if not problem.preview:
            return blind_tables(problem.arrivals, weights, cells, problem.budget, grid)
        return preview_tables(exams.groups, weights, cells, problem.budget, grid)

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return {"grid": self._grid}


class TrueBellman(Bellman):
    """:class:`Bellman` on given laws (the evaluated source's own): a reference, not a contestant.

    :param laws: G laws given the group, exact for the evaluated source.
    :param grid: as for :class:`Bellman`.
    :param rounding: on a coarse grid, see :func:`roi_env.exact.policy_tables.compile_laws`.
    """

    name: ClassVar[str] = "optimum"

    def __init__(self, problem: Problem, laws: Laws, grid: int = 0, rounding: Rounding = "split") -> None:
        super().__init__(problem, grid)
        self._laws = laws
        self.rounding = rounding

    def laws(self) -> Laws:
        """The given laws."""
        return self._laws

    def params(self) -> dict[str, Any]:
        """Not savable: the laws belong to the evaluated source.

        :raises ValueError: always.
        """
        raise ValueError("'optimum' holds the evaluated source's own laws and cannot be saved; make it again")


def optimum(problem: Problem, laws: Laws, grid: int = 0) -> Agent:
    """The best policy for the evaluated source's own published laws.

    :param laws: ``source.published``: law ``latent * G + group``. With an exam-level latent state the policy updates a
        belief (:class:`agents.planners.belief.BeliefBellman`, a lower bound of the optimum), else it is exact.
    :param grid: tokens per step of the budget grid; 0 chooses.
    """
    if problem.num_latent > 1:
        from agents.planners.belief import BeliefBellman

        return BeliefBellman(problem, grid=grid, laws=laws)
    return TrueBellman(problem, laws, grid)


def key_buckets(problem: Problem, count: int) -> npt.NDArray[np.int64]:
    """(G,) at most ``count`` buckets of groups, numbered 0, 1, ...: equal shares of the population by published key.

    Groups of one key (they differ in their weight only) share a bucket: weights are known, laws are not.
    """
    keys, inverse = np.unique(problem.group_key, return_inverse=True)
    mass = np.bincount(inverse, problem.group_probability.mean(0), minlength=len(keys))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    bucket = np.minimum((middle * count).astype(np.int64), count - 1)
    return np.unique(bucket, return_inverse=True)[1].astype(np.int64)[inverse]


def empirical_laws(attempts: Attempts, bucket: npt.NDArray[np.int64], num_tiers: int) -> Laws:
    """Counted laws per (bucket, tier). A cell without attempts takes all attempts at its tier; a tier never tried stays
    empty, and a planner never plays it.

    :param bucket: (G,) bucket of every group.
    """
    where = bucket[attempts.group]
    cells = []
    for b in range(int(bucket.max()) + 1):
        for tier in range(num_tiers):
            mine = attempts.tier == tier
            if (mine & (where == b)).any():
                mine &= where == b
            cost, inverse = np.unique(attempts.tokens[mine], return_inverse=True)
            size = max(int(mine.sum()), 1)
            counts = np.bincount(inverse, minlength=len(cost))
            right = np.bincount(inverse, attempts.correct[mine], minlength=len(cost))
            cells.append((cost.astype(np.int32), counts / size, right / size))
    return laws_from_cells(cells, num_tiers)


class PluginBellman(Bellman):
    """Bellman on the empirical laws of ``attempts`` logged attempts: the learner an agent should beat on equal data.

    Certainty equivalence: the laws of each (bucket of the published key, tier) are the counts of its attempts; nothing
    is smoothed. An empty cell uses the attempts at its tier in all buckets; a tier never tried is never played.

    How much it loses varies with the log: on signal, N = 10, t = .15 / .3, 240 logs of 540 attempts reach .973 / .975 of
    the optimum on average with a standard deviation of .020 / .017 between logs; the median log reaches .980 / .978
    (``benchmarks/measure_plugin_bellman.py``). With the buckets' exact laws it would be .996 / .998.

    :param attempts: logged attempts, equally many a bucket and tier: every task of the log is tried at all its tiers.
    :param buckets: most buckets of the published key.
    :param grid: as for :class:`Bellman`.
    """

    def __init__(self, problem: Problem, attempts: Count = 540, buckets: Count = 6, grid: Natural = 0) -> None:
        super().__init__(problem, grid)
        if attempts < 1 or buckets < 1:
            raise ValueError(f"attempts and buckets must be >= 1, got {attempts} and {buckets}")
        self.attempts, self.buckets = attempts, buckets
        self._bucket = key_buckets(problem, buckets)
        self._learned: Laws | None = None

    def train(self, practice: Practice, seed: int) -> None:
        """Count a log of attempts (``seed`` is not used: the practice decides which attempts are logged)."""
        self._learned = empirical_laws(
            practice.attempts(self.attempts, self._bucket), self._bucket, self.problem.num_tiers
        )

    def laws(self) -> Laws:
        """The learned laws by group.

        :raises ValueError: before :meth:`train`.
        """
        if self._learned is None:
            raise ValueError("agent 'plugin-bellman' has learned nothing yet: call train(practice, seed) first")
        tiers = range(self.problem.num_tiers)
        return laws_from_cells([self._learned.cell(int(b), k) for b in self._bucket for k in tiers], len(tiers))

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return {"attempts": self.attempts, "buckets": self.buckets, "grid": self._grid}

    def learned(self) -> dict[str, npt.NDArray[Any]]:
        """The counted laws."""
        laws = self._learned
        if laws is None:
            return {}
        return {"indptr": laws.indptr, "cost": laws.cost, "prob": laws.prob, "success": laws.success}

    def restore(self, learned: dict[str, npt.NDArray[Any]]) -> None:
        """Put the counted laws back."""
        if learned:
            self._learned = Laws(
                learned["indptr"], learned["cost"], learned["prob"], learned["success"], self.problem.num_tiers
            )
