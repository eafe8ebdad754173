"""Budgets that nobody can spend, and costs that are coarse, as dollars are: the same values, in no more time or room."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base import make_agent, public_problem
from agents.playing import evaluate_exact
from roi_env.exact import policy_tables
from roi_env.exact.policy_tables import MAX_GRID_POINTS, auto_grid
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import optimum_tables, references
from roi_env.sources.source import Laws, Source
from tests.agents.test_evaluation import Mixed, enumerate_exam
from tests.agents.tiny_sources import tiny_spec

HUGE = 2**30 - 1


def times(source: Source, factor: int) -> Source:
    """The same source with every cost multiplied."""

    def scaled(laws: Laws) -> Laws:
        return dataclasses.replace(laws, cost=laws.cost * np.int32(factor))

    outcomes = (source.outcomes >> 1) * factor << 1 | source.outcomes & 1
    tiers = tuple(dataclasses.replace(tier, level_edge=tier.level_edge * factor) for tier in source.tiers)
    published, beliefs = scaled(source.published), scaled(source.beliefs)
    changed: dict[str, Any] = {"published": published, "beliefs": beliefs, "tiers": tiers}
    return dataclasses.replace(source, outcomes=outcomes.astype(np.uint32), **changed)


def coarse(spec: ExamSpec, factor: int, rest: int = 0) -> ExamSpec:
    """The same exams in a unit that is ``factor`` times smaller, ``rest`` of which are left over."""
    decision_cost = spec.decision_cost * factor
    return dataclasses.replace(
        spec, source=times(spec.source, factor), budget=spec.budget * factor + rest, decision_cost=decision_cost
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2]), st.sampled_from([1, 7, 50]), st.booleans())
def test_evaluation_is_enumeration_at_any_budget(seed: int, latent: int, factor: int, large: bool) -> None:
    spec = coarse(tiny_spec(seed, latent), factor, seed % factor)
    if large:
        spec = dataclasses.replace(spec, budget=HUGE - seed % 97)
    agent = Mixed(public_problem(spec))
    batch = draw_exams(spec, seed, np.arange(1))
    for law in ("published", "true"):
        found = evaluate_exact(agent, batch, law=law)  # type: ignore[arg-type]
        told = float(found.score[0]), float(found.spent[0]), float(found.overspent.sum())
        np.testing.assert_allclose(told, enumerate_exam(agent, batch, law), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 50]))
def test_coarse_costs_are_evaluated_to_the_same_bits(seed: int, factor: int) -> None:
    spec = tiny_spec(seed)
    fine = coarse(spec, factor)
    for name in ("bellman", "lp-lookahead"):
        one, other = (
            evaluate_exact(make_agent(name, public_problem(s)), draw_exams(s, seed, np.arange(5))) for s in (spec, fine)
        )
        assert (one.value == other.value).all()
        np.testing.assert_allclose(one.tokens * factor, other.tokens, rtol=1e-12)
        assert one.states == other.states


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(0, 400))
def test_tables_are_those_of_the_whole_budget(seed: int, preview: bool, more: int) -> None:
    spec = dataclasses.replace(tiny_spec(seed), preview=preview)
    spec = dataclasses.replace(spec, budget=spec.budget + more)
    exams = draw_exams(spec, seed, np.arange(6))
    clipped = optimum_tables(exams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_tables, "_points", lambda budget, grid, cells, num_tasks: budget // grid + 1)
        whole = optimum_tables(exams)
    assert (clipped.value == whole.value).all()
    row = np.repeat(np.arange(6), spec.budget + 1)
    left = np.tile(np.arange(spec.budget + 1), 6)
    for n in range(spec.num_tasks):
        seen = None if preview else exams.groups[row, : n + 1]
        assert (clipped.lookup(n, row, left, seen) == whole.lookup(n, row, left, seen)).all()
    most = spec.num_tasks * (int(spec.source.published.cost.max(initial=0)) + spec.decision_cost + 1) + 1
    assert clipped.actions[0].shape[1] <= most


@pytest.mark.parametrize(
    "name", ["bellman", "lp-lookahead", "ce-dp", "zcl", "resolve", "bid-price", "hindsight-optimisation", "fixed-1"]
)
def test_planners_take_budgets_that_nobody_can_spend(name: str) -> None:
    spec = dataclasses.replace(tiny_spec(5, num_tasks=3), preview=True)
    most = spec.num_tasks * (int(spec.source.laws.cost.max()) + spec.decision_cost)
    scores = []
    for budget in (3 * most, HUGE):
        given = dataclasses.replace(spec, budget=budget)
        found = evaluate_exact(make_agent(name, public_problem(given)), draw_exams(given, 0, np.arange(8)))
        scores.append(found.score)
        assert (found.spent <= most).all()
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-12)


def test_the_grid_is_exact_where_costs_are_coarse() -> None:
    spec = tiny_spec(5, num_tasks=3)
    laws, tasks = spec.source.published, spec.num_tasks
    most = tasks * (int(laws.cost.max()) + spec.decision_cost)
    fine = coarse(spec, 10**6)
    grid = auto_grid(fine.budget, fine.source.published, tasks, fine.decision_cost)
    assert grid % 10**6 == 0
    exact, whole = references(draw_exams(fine, 1, np.arange(5))), references(draw_exams(spec, 1, np.arange(5)))
    np.testing.assert_array_equal(exact.optimum, whole.optimum)
    np.testing.assert_array_equal(exact.optimum_upper, whole.optimum_upper)
    assert auto_grid(HUGE, laws, tasks, spec.decision_cost) == 1, "what is never spent needs no grid"
    assert auto_grid(most, laws, tasks, spec.decision_cost) == 1
    # Costs without a common divisor: as coarse as it must be.
    odd = dataclasses.replace(laws, cost=laws.cost * np.int32(10**6) + np.arange(len(laws.cost), dtype=np.int32))
    assert auto_grid(HUGE, odd, tasks) == -(-tasks * int(odd.cost.max()) // MAX_GRID_POINTS)
