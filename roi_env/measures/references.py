"""The values that scores are measured against: oracle, informed, optimum.

>>> import numpy as np
>>> from roi_env.exams.config import exam_spec
>>> from roi_env.exams.exam import draw_exams
>>> from roi_env.measures.references import informed_values, optimum_tables, oracle_values, references
>>> exams = draw_exams(exam_spec("signal", num_tasks=3), seed=0, exam_ids=np.arange(2))
>>> optimum_tables(exams).value.round(6)  # the best policy for what is shown
array([1.336625, 1.895989])
>>> informed_values(exams).round(6)  # knows the difficulties
array([1.426916, 1.855466])
>>> oracle_values(exams)  # knows the outcomes of this replicate
array([1., 2.])
>>> values = references(exams, replicates=20)  # all of them under one law, with noise; latent families: the bracket
>>> bool((values.optimum <= values.optimum_upper).all())
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from roi_env.exact.belief import BeliefModel, belief_model, belief_tables, observe_attempts
from roi_env.exact.evaluation import (
    MAX_STATES,
    Decide,
    Evaluation,
    Law,
    Probs,
    TooManyStates,
    default_law,
    evaluate_markov,
)
from roi_env.exact.hindsight import hindsight
from roi_env.exact.policy_tables import Rounding, Tables, auto_grid, blind_tables, by_exam, compile_laws, preview_tables
from roi_env.exams.arrivals import Arrivals
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch
from roi_env.measures.episodes import Enter, Outcome, Player, redraw_hidden, sample, standard_error, summarise
from roi_env.sources.source import NOT_OFFERED, Laws, published_laws


@dataclass(frozen=True)
class References:
    """Reference values of E exams, (E,) each, all under one law.

    :param law: "published" or "true", as in :class:`roi_env.exact.evaluation.Evaluation`.
    :param oracle: knows the outcomes; mean over replicates.
    :param oracle_noise: its standard error (nan: one replicate).
    :param informed: knows the true laws; under the published law mean over redraws of the hidden tasks.
    :param informed_noise: its standard error (0: nothing to redraw; nan: one redraw).
    :param optimum: value of the best policy for what is shown (latent families: of the belief-grid policy).
    :param optimum_upper: bound on what any policy of what is shown can reach under the published law; equal to
        ``optimum`` where that is exact.
    :param optimum_noise: standard error of ``optimum`` (0: exact).
    :param optimum_mode: how that policy was evaluated.
    :param grid: tokens per step of the budget grid that ``informed`` and ``optimum`` were solved on (1: exact).
    :param reachable: value of the best policy for the published beliefs: what a user can reach. Recorded sources: the
        optimum of the train laws, on the evaluated questions; agent ``bellman``. Synthetic ones: ``optimum``.
    :param optimism: by how much ``optimum`` is too high for having been planned on the very questions that it is scored
        on, see :func:`in_sample_optimism` (0 for synthetic sources: their laws are no estimates).
    """

    law: Law
    oracle: npt.NDArray[np.float64]
    oracle_noise: npt.NDArray[np.float64]
    informed: npt.NDArray[np.float64]
    informed_noise: npt.NDArray[np.float64]
    optimum: npt.NDArray[np.float64]
    optimum_upper: npt.NDArray[np.float64]
    optimum_noise: npt.NDArray[np.float64]
    optimum_mode: Literal["exact", "sampled"]
    grid: int
    reachable: npt.NDArray[np.float64]
    optimism: npt.NDArray[np.float64]


def oracle_values(batch: ExamBatch) -> npt.NDArray[np.float64]:
    """(E,) best score in hindsight, with all outcomes known."""
    tokens, correct = batch.outcomes()
    rewards = correct * batch.weights[:, :, None]
    return hindsight(tokens, rewards, batch.spec.budget, decision_cost=batch.spec.decision_cost)


def informed_values(batch: ExamBatch, grid: int = 1) -> npt.NDArray[np.float64]:
    """(E,) value of the best policy that knows every task's true law (and the latent state), all tasks shown.

    :param grid: tokens per step; above 1 costs are split between grid points (error about 1e-4 at 16384 points).
    """
    return informed_tables(batch, grid).value


def informed_tables(batch: ExamBatch, grid: int = 1, laws: Laws | None = None, rounding: Rounding = "split") -> Tables:
    """The best policy that knows every task's law, all tasks shown; ``value`` is by exam (E,).

    :param grid: tokens per step, see :func:`informed_values`.
    :param laws: of items and latent states, as ``source.laws``, to plan with instead.
    :param rounding: of costs on a coarse grid.
    """
    spec, source = batch.spec, batch.spec.source
    laws = laws or source.laws
    free = np.where(laws.offered, np.int64(1), np.int64(NOT_OFFERED))
    cells = compile_laws(laws, free, spec.decision_cost, grid, rounding)
    # Weights belong to groups, laws to items: a kind of task is a pair that occurs.
    pairs, kind = np.unique(
        np.stack([batch.groups.ravel().astype(np.int64), batch.law_index.ravel()]), axis=1, return_inverse=True
    )
    kinds = kind.reshape(batch.groups.shape).astype(np.int32)
    return preview_tables(kinds, source.group_weight[pairs[0]], cells, spec.budget, grid, law=pairs[1])


def optimum_tables(batch: ExamBatch, grid: int = 0, rounding: Rounding = "split", laws: Laws | None = None) -> Tables:
    """The best policy for what is shown, by Bellman on the source's published laws; ``value`` is by exam (E,).

    Exact at grid 1 for sources without an exam-level latent state (those: :func:`latent_model`).

    :param grid: tokens per step; 0 chooses 1 (exact) up to 16384 tokens of budget.
    :param rounding: of costs on a coarse grid, see :func:`roi_env.exact.policy_tables.compile_laws`.
    :param laws: (G,) laws to plan with instead.
    :raises ValueError: for a source with a latent state.
    """
    spec, source = batch.spec, batch.spec.source
    if source.num_latent > 1:
        raise ValueError(
            f"source {source.name!r} has a latent state: use latent_model and roi_env.exact.belief.belief_tables"
        )
    laws = laws or source.published
    grid = grid or auto_grid(spec.budget, laws, spec.num_tasks, spec.decision_cost)
    cells = compile_laws(laws, spec.min_cost, spec.decision_cost, grid, rounding)
    if spec.preview:
        return preview_tables(batch.groups, source.group_weight, cells, spec.budget, grid)
    tables = blind_tables(spec.arrivals, source.group_weight, cells, spec.budget, grid)
    return dataclasses.replace(tables, value=by_exam(tables.index, tables.value, batch.groups))


def in_sample_optimism(batch: ExamBatch, grid: int = 0, splits: int = 4) -> npt.NDArray[np.float64]:
    """(E,) estimate of how much the optimum of a recorded source gains by being planned on the questions it is scored on.

    The best policy for a finite sample of questions is worth more on that sample than any policy is worth on others. That
    gain shrinks about as 1 / (number of questions): it is the optimum of half of the questions on that half, minus the
    optimum of all on all (M. H. Quenouille, "Notes on bias in estimation", Biometrika 43, 1956, with halves), a mean over
    random halves of every group. A group of one question is in both halves. The halves are named by a fixed seed: equal
    batches give equal numbers.

    :param grid: as for :func:`optimum_tables`.
    :param splits: pairs of halves.
    """
    source = batch.spec.source
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(source.row_group == group) for group in range(source.num_groups)]
    halves = np.zeros(len(batch))
    for _ in range(splits):
        half = np.zeros((2, len(source.row_group)), np.bool_)
        for rows in members:
            shuffled, middle = rng.permutation(rows), (len(rows) + int(rng.integers(2))) // 2
            half[0, shuffled[: middle or 1]] = half[1, shuffled[min(middle, len(rows) - 1) :]] = True
        for chosen in half:
            laws = published_laws(source.laws, source.row_item[chosen], source.row_group[chosen], source.num_groups, 1)
            halves += optimum_tables(batch, grid, laws=laws).value / (2 * splits)
    return halves - optimum_tables(batch, grid).value


def reachable_values(
    batch: ExamBatch,
    *,
    grid: int = 0,
    law: Law | None = None,
    max_states: int = MAX_STATES,
    replicates: int = 100,
) -> npt.NDArray[np.float64]:
    """(E,) score of the best policy for the published beliefs; parameters as for :func:`references`."""
    beliefs = batch.spec.source.beliefs
    return _evaluate_tables(
        lambda some: optimum_tables(some, grid, laws=beliefs),
        batch,
        law or default_law(batch.spec),
        max_states,
        replicates,
    ).score


def latent_model(spec: ExamSpec, grid: int = 0) -> BeliefModel:
    """The model of the belief-grid policy for a source with a two-valued latent state.

    :param grid: tokens per step of the budget grid; 0 chooses, see :func:`roi_env.exact.belief.belief_model`.
    :raises ValueError: for a source without one.
    """
    source = spec.source
    sees_correct = spec.feedback == "cost+correct"
    return belief_model(
        source.published, source.group_weight, spec.min_cost, spec.budget, spec.decision_cost,
        sees_correct=sees_correct, grid=grid,
    )  # fmt: skip


def _shown(batch: ExamBatch) -> npt.NDArray[np.int32] | Arrivals:
    """What is known of the sequences of groups before an exam."""
    return batch.groups if batch.spec.preview else batch.spec.arrivals


def _evaluate_tables(
    solve: Callable[[ExamBatch], Tables], batch: ExamBatch, law: Law, max_states: int, replicates: int
) -> Evaluation:
    """Exact where ``max_states`` allow it, else sampled."""
    actions = np.eye(batch.spec.num_tiers + 1)

    def policy(some: ExamBatch) -> Decide:
        tables = solve(some)

        def decide(position: int, exam: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]) -> Probs:
            return actions[tables.lookup(position, exam, remaining, some.groups[exam, : position + 1])]

        return decide

    def enter(some: ExamBatch, episodes: ExamBatch, exam: npt.NDArray[np.int64]) -> Player:
        tables = solve(some)

        def decide(
            position: int, episode: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]
        ) -> npt.NDArray[np.int64]:
            e = exam[episode]
            return tables.lookup(position, e, remaining, some.groups[e, : position + 1])

        return Player(decide, lambda outcome: None)

    try:
        return evaluate_markov(policy, batch, law=law, max_states=max_states)
    except TooManyStates:
        return summarise(sample(enter, batch, replicates=replicates, law=law), batch, law)


def _latent_player(model: BeliefModel) -> Enter:
    """Takes exams by the belief-grid policy."""

    def enter(some: ExamBatch, episodes: ExamBatch, exam: npt.NDArray[np.int64]) -> Player:
        tables = belief_tables(model, _shown(some))
        belief = np.full(len(episodes), 0.5)

        def decide(
            position: int, episode: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]
        ) -> npt.NDArray[np.int64]:
            e = exam[episode]
            return tables.lookup(position, e, remaining, belief[episode], some.groups[e, : position + 1])

        def learn(outcome: Outcome) -> None:
            done = (outcome.action > 0) & ~outcome.overspent
            episode = outcome.episode[done]
            belief[episode] = observe_attempts(
                model,
                belief[episode],
                episodes.groups[episode, outcome.position],
                outcome.action[done],
                outcome.tokens[done],
                outcome.correct[done],
            )

        return Player(decide, learn)

    return enter


def references(
    batch: ExamBatch,
    *,
    law: Law | None = None,
    replicates: int = 100,
    informed_draws: int = 32,
    max_states: int = MAX_STATES,
    grid: int = 0,
) -> References:
    """Oracle, informed value and optimum of every exam, under the law that agents are evaluated with.

    Under the published law the hidden tasks belong to what is averaged over: the oracle redraws them in every
    replicate, ``informed`` in ``informed_draws`` replicates. A coarse grid plans with costs rounded up; with V_up and
    V_down the grid's values with costs rounded up and down, ``optimum_upper = optimum + V_down - V_up``.

    Blind, ``optimum`` plans with the law of the tasks to come given those seen (:mod:`roi_env.exams.arrivals`).

    :param law: default :func:`roi_env.exact.evaluation.default_law`.
    :param replicates: outcome draws for the oracle, and episodes where the optimum has to be sampled.
    :param informed_draws: redraws of hidden tasks and latent state for ``informed``.
    :param grid: tokens per step; 0 chooses 1 (exact) up to 16384 tokens of budget.
    """
    source = batch.spec.source
    law, given, spec = law or default_law(batch.spec), grid, batch.spec
    grid = grid or auto_grid(spec.budget, source.laws, spec.num_tasks, spec.decision_cost)

    def replicate(number: int) -> ExamBatch:
        drawn = dataclasses.replace(batch, replicates=batch.replicates + number)
        return redraw_hidden(drawn) if law == "published" else drawn

    strata = source.num_latent if law == "published" else 1
    oracle = np.stack([oracle_values(replicate(r)) for r in range(replicates)], 1)
    pairs = np.unique(np.stack([source.row_group, source.row_item]), axis=1)
    hides = law == "published" and (strata > 1 or pairs.shape[1] > len(np.unique(source.row_group)))
    informed = np.stack([informed_values(replicate(r), grid) for r in range(informed_draws if hides else 1)], 1)
    if source.num_latent > 1:
        model = latent_model(batch.spec, given)
        tables = belief_tables(model, _shown(batch))
        upper = by_exam(tables.index, tables.bound, batch.groups)
        evaluation = summarise(sample(_latent_player(model), batch, replicates=replicates, law=law), batch, law)
    else:
        evaluation = _evaluate_tables(lambda some: optimum_tables(some, grid, "up"), batch, law, max_states, replicates)
        upper = evaluation.score
        if grid > 1:
            high, low = (optimum_tables(batch, grid, rounding).value for rounding in ("down", "up"))
            upper = upper + (high - low)
    reachable, optimism = evaluation.score, np.zeros(len(batch))
    if not source.synthetic:
        reachable = reachable_values(batch, grid=given, law=law, max_states=max_states, replicates=replicates)
        optimism = in_sample_optimism(batch, grid)
    return References(
        law=law,
        oracle=oracle.mean(1),
        oracle_noise=standard_error(oracle, strata),
        informed=informed.mean(1),
        informed_noise=standard_error(informed, strata) if hides else np.zeros(len(batch)),
        optimum=evaluation.score,
        optimum_upper=upper,
        optimum_noise=evaluation.noise,
        optimum_mode=evaluation.mode,
        grid=grid,
        reachable=reachable,
        optimism=optimism,
    )
