"""The non-anticipating optimum against recursion and enumeration of policies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base import make_agent, public_problem
from agents.playing import evaluate_exact
from roi_env.exact.hindsight import NEVER, hindsight, hindsight_curve
from roi_env.exact.policy_tables import Tables, compile_laws, preview_tables
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import informed_values, references
from roi_env.sources.source import Laws, laws_from_cells
from tests.roi_env.exact.plain import optimum, policy_value


def random_laws(rng: np.random.Generator, laws: int, tiers: int, support: int, most: int) -> Laws:
    cells = []
    for _ in range(laws * tiers):
        size = int(rng.integers(1, support + 1))
        cost = np.sort(rng.choice(np.arange(1, most + 1), size, replace=False)).astype(np.int32)
        prob = rng.dirichlet(np.ones(size))
        cells.append((cost, prob, prob * rng.random(size)))
    return laws_from_cells(cells, tiers)


def tables(
    laws: Laws,
    index: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    budget: int,
    decision_cost: int = 0,
    min_cost: npt.NDArray[np.int64] | None = None,
    grid: int = 1,
    rounding: Any = "split",
) -> Tables:
    """Tables of exams whose tasks have any law and any weight: a kind is a pair of both."""
    pairs, kinds = np.unique(np.stack([index.ravel(), weights.ravel()]), axis=1, return_inverse=True)
    least = laws.min_cost.astype(np.int64) + decision_cost if min_cost is None else min_cost
    cells = compile_laws(laws, least, decision_cost, grid, rounding)
    groups, law = kinds.reshape(index.shape).astype(np.int32), pairs[0].astype(np.int64)
    return preview_tables(groups, pairs[1], cells, budget, grid, law=law)


def as_policy(of: Tables, exams: int, budget: int) -> npt.NDArray[np.int64]:
    """(E, N, B + 1) actions."""
    left = np.arange(budget + 1)
    return np.array(
        [[of.lookup(n, np.full(budget + 1, e), left) for n in range(len(of.actions))] for e in range(exams)]
    )


@pytest.mark.parametrize("decision_cost", [0, 1, 3])
def test_optimum_equals_recursion(decision_cost: int) -> None:
    rng = np.random.default_rng(decision_cost)
    for _ in range(25):
        laws = random_laws(rng, 4, int(rng.integers(1, 5)), 6, 15)
        index = rng.integers(0, 4, (3, int(rng.integers(1, 6))))
        weights = rng.choice([1.0, 2.0, 4.0], index.shape)
        budget = int(rng.integers(1, 50))
        found = tables(laws, index, weights, budget, decision_cost)
        expected = optimum(laws, index, weights, budget, decision_cost)
        np.testing.assert_allclose(found.value, expected, rtol=1e-12)
        policy = as_policy(found, 3, budget)
        np.testing.assert_allclose(
            policy_value(laws, index, weights, budget, policy, decision_cost), expected, rtol=1e-9
        )


def test_budgets_beyond_one_block() -> None:
    """Compiled in blocks of budgets: values on both sides of their edges."""
    rng = np.random.default_rng(5)
    laws = random_laws(rng, 2, 2, 5, 900)
    index, weights = np.array([[0, 1, 1, 0, 1]]), np.array([[1.0, 2.0, 1.0, 4.0, 1.0]])
    for budget in (2046, 2047, 2048, 2049, 4096):
        assert tables(laws, index, weights, budget).value == pytest.approx(optimum(laws, index, weights, budget))


def test_optimum_equals_the_best_of_all_policies() -> None:
    rng = np.random.default_rng(7)
    for _ in range(10):
        laws = random_laws(rng, 2, 1, 2, 3)
        index, weights, budget = np.array([[0, 1, 0]]), np.array([[1.0, 2.0, 1.0]]), 4
        states = [(n, b) for n in range(3) for b in range(1, budget + 1)]
        best = 0.0
        for choice in itertools.product((0, 1), repeat=len(states)):
            policy = np.zeros((1, 3, budget + 1), np.int8)
            for (n, b), action in zip(states, choice, strict=True):
                policy[0, n, b] = action
            best = max(best, float(policy_value(laws, index, weights, budget, policy)[0]))
        assert tables(laws, index, weights, budget).value[0] == pytest.approx(best, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), grid=st.integers(2, 9), decision_cost=st.integers(0, 3))
def test_coarse_grids_hold_the_optimum_between_them(seed: int, grid: int, decision_cost: int) -> None:
    rng = np.random.default_rng(seed)
    laws = random_laws(rng, 3, 2, 8, 60)
    index, weights = rng.integers(0, 3, (4, 5)), np.ones((4, 5))
    exact = tables(laws, index, weights, 120, decision_cost).value
    lower, upper = (
        tables(laws, index, weights, 120, decision_cost, grid=grid, rounding=rounding).value
        for rounding in ("up", "down")
    )
    assert (lower <= exact + 1e-9).all()
    assert (upper >= exact - 1e-9).all()


def test_published_minimum_restricts_the_choice() -> None:
    rng = np.random.default_rng(3)
    laws = random_laws(rng, 2, 2, 4, 10)
    index, weights = np.array([[0, 1, 1]]), np.ones((1, 3))
    never = np.full((2, 2), 10**6)
    assert tables(laws, index, weights, 20, min_cost=never).value[0] == 0
    for seed in range(10):
        least = np.random.default_rng(seed).integers(0, 20, (2, 2))
        expected = optimum(laws, index, weights, 20, min_cost=least)
        assert tables(laws, index, weights, 20, min_cost=least).value == pytest.approx(expected)


def test_references_and_agents_agree_with_the_solver() -> None:
    """Two implementations of each value: tables with a forward pass, and the equations as they read."""
    spec = exam_spec("heavy", num_tasks=4, budget=0.3)
    batch = draw_exams(spec, 0, np.arange(20))
    source = spec.source
    exact = optimum(source.published, batch.groups, batch.weights, spec.budget, min_cost=spec.min_cost)
    np.testing.assert_allclose(references(batch, replicates=2).optimum, exact, rtol=1e-9)
    bellman = evaluate_exact(make_agent("bellman", public_problem(spec)), batch)
    np.testing.assert_allclose(bellman.score, exact, rtol=1e-9)
    informed = optimum(source.laws, batch.law_index, batch.weights, spec.budget)
    np.testing.assert_allclose(informed_values(batch), informed, rtol=1e-9)
    tokens, correct = batch.outcomes()
    rewards = correct * batch.weights[:, :, None]
    cheapest = np.where(correct, tokens, np.int64(NEVER)).min(2)
    for budget in (0, 7, spec.budget // 2, spec.budget):
        best = [hindsight_curve(cheapest[e, None], batch.weights[e, None], budget)[-1] for e in range(len(batch))]
        np.testing.assert_allclose(hindsight(tokens, rewards, budget), best, rtol=1e-12)
    with pytest.raises(ValueError, match="cheapest"):
        hindsight_curve(-cheapest, batch.weights, spec.budget)
