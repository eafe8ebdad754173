"""The values that scores are measured against: oracle, informed, optimum."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from agents.base import Problem, exams_view, public_problem
from agents.evaluation import MAX_STATES, Law, default_law, evaluate, evaluate_sampled, redraw_hidden
from agents.planners.belief import BeliefBellman
from agents.planners.dynamic_programming import TrueBellman
from agents.planners.tables import auto_grid, compile_laws, preview_tables
from roi_env.exam import ExamBatch
from roi_env.hindsight import hindsight
from roi_env.source import NOT_OFFERED


@dataclass(frozen=True)
class References:
    """Reference values of E exams, (E,) each, all under one law.

    :param law: "published" or "true", as in :class:`agents.evaluation.Evaluation`.
    :param oracle: knows the outcomes; mean over replicates.
    :param oracle_noise: its standard error (nan: one replicate).
    :param informed: knows the true laws.
    :param optimum: value of the best policy for what is shown (latent families: of the belief-grid policy).
    :param optimum_upper: bound on what any policy of what is shown can reach under the published law; equal to
        ``optimum`` where that is exact.
    :param optimum_noise: standard error of ``optimum`` (0: exact).
    :param optimum_mode: how that policy was evaluated.
    :param grid: tokens per step of the budget grid that ``informed`` and ``optimum`` were solved on (1: exact).
    """

    law: Law
    oracle: npt.NDArray[np.float64]
    oracle_noise: npt.NDArray[np.float64]
    informed: npt.NDArray[np.float64]
    optimum: npt.NDArray[np.float64]
    optimum_upper: npt.NDArray[np.float64]
    optimum_noise: npt.NDArray[np.float64]
    optimum_mode: Literal["exact", "sampled"]
    grid: int


def oracle_values(batch: ExamBatch) -> npt.NDArray[np.float64]:
    """(E,) best score in hindsight, with all outcomes known."""
    tokens, correct = batch.outcomes()
    rewards = correct * batch.weights[:, :, None]
    return hindsight(tokens, rewards, batch.spec.budget, decision_cost=batch.spec.decision_cost)


def informed_values(batch: ExamBatch, grid: int = 1) -> npt.NDArray[np.float64]:
    """(E,) value of the best policy that knows every task's true law (and the latent state), all tasks shown.

    :param grid: tokens per step; above 1 costs are split between grid points (error about 1e-4 at 16384 points).
    """
    spec, source, problem = batch.spec, batch.spec.source, public_problem(batch.spec)
    free = dataclasses.replace(problem, min_cost=np.where(source.laws.offered, np.int64(1), np.int64(NOT_OFFERED)))
    cells = compile_laws(source.laws, free, grid, np.arange(source.laws.num_laws))
    # Weights belong to groups, laws to items: a kind of task is a pair that occurs.
    pairs, kind = np.unique(
        np.stack([batch.groups.ravel().astype(np.int64), batch.law_index.ravel()]), axis=1, return_inverse=True
    )
    kinds = kind.reshape(batch.groups.shape).astype(np.int32)
    weights = problem.group_weight[pairs[0]]
    return preview_tables(kinds, weights, cells, spec.budget, grid, law=pairs[1]).value


def references(
    batch: ExamBatch,
    *,
    law: Law | None = None,
    replicates: int = 100,
    informed_draws: int = 4,
    max_states: int = MAX_STATES,
    grid: int = 0,
) -> References:
    """Oracle, informed value and optimum of every exam, under the law that agents are evaluated with.

    Under the published law the hidden tasks belong to what is averaged over: the oracle redraws them in every
    replicate, ``informed`` in ``informed_draws`` replicates. A coarse grid plans with costs rounded up; with V_up and
    V_down the grid's values with costs rounded up and down, ``optimum_upper = optimum + V_down - V_up``.

    Blind, ``optimum`` plans with the law of the tasks to come given those seen (:mod:`roi_env.blind`).

    :param law: default :func:`agents.evaluation.default_law`.
    :param replicates: outcome draws for the oracle, and episodes where the optimum has to be sampled.
    :param grid: tokens per step; 0 chooses 1 (exact) up to 16384 tokens of budget.
    """
    source, problem = batch.spec.source, public_problem(batch.spec)
    law = law or default_law(batch.spec)
    grid = grid or auto_grid(batch.spec.budget)

    def replicate(number: int) -> ExamBatch:
        drawn = dataclasses.replace(batch, replicates=batch.replicates + number)
        return redraw_hidden(drawn) if law == "published" else drawn

    oracle = np.stack([oracle_values(replicate(r)) for r in range(replicates)])
    noise = oracle.std(0, ddof=1) / np.sqrt(replicates) if replicates > 1 else np.full(len(batch), np.nan)
    rounds = informed_draws if law == "published" else 1
    informed = np.stack([informed_values(replicate(r), grid) for r in range(rounds)]).mean(0)
    view = exams_view(batch, problem)
    if source.num_latent > 1:
        belief = BeliefBellman(problem, laws=source.published, grid=grid)
        upper = _by_exam(belief.start(view).bound, problem, batch)
        evaluation = evaluate_sampled(belief, batch, law=law, replicates=replicates)
    else:
        policy = TrueBellman(problem, source.published, grid, "up")
        evaluation = evaluate(policy, batch, law=law, max_states=max_states, replicates=replicates)
        upper = evaluation.score
        if grid > 1:
            high = TrueBellman(problem, source.published, grid, "down").tables(view).value
            upper = upper + _by_exam(high - policy.tables(view).value, problem, batch)
    return References(
        law=law,
        oracle=oracle.mean(0),
        oracle_noise=noise,
        informed=informed,
        optimum=evaluation.score,
        optimum_upper=upper,
        optimum_noise=evaluation.noise,
        optimum_mode=evaluation.mode,
        grid=grid,
    )


def _by_exam(values: npt.NDArray[np.float64], problem: Problem, batch: ExamBatch) -> npt.NDArray[np.float64]:
    """Values by exam: blind ones come by first group."""
    return values if problem.preview else values[batch.groups[:, 0]]
