"""The non-anticipating optimum against recursion and enumeration of policies."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base import make_agent, public_problem
from agents.playing import evaluate_exact
from roi_env.exact.bellman import bounds, evaluate_policy, solve
from roi_env.exact.hindsight import NEVER, hindsight, hindsight_curve
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import informed_values, references
from roi_env.sources.source import Laws, laws_from_cells


def random_laws(rng: np.random.Generator, laws: int, tiers: int, support: int, most: int) -> Laws:
    cells = []
    for _ in range(laws * tiers):
        size = int(rng.integers(1, support + 1))
        cost = np.sort(rng.choice(np.arange(1, most + 1), size, replace=False)).astype(np.int32)
        prob = rng.dirichlet(np.ones(size))
        cells.append((cost, prob, prob * rng.random(size)))
    return laws_from_cells(cells, tiers)


def recursion(
    laws: Laws, index: npt.NDArray[np.int64], weights: npt.NDArray[np.float64], budget: int, decision_cost: int
) -> float:
    @cache
    def value(n: int, b: int) -> float:
        if n == len(index):
            return 0.0
        best = value(n + 1, b - decision_cost) if b >= decision_cost else 0.0
        for k in range(laws.num_tiers):
            total = 0.0
            for c, q, r in zip(*laws.cell(int(index[n]), k), strict=True):
                if c + decision_cost <= b:
                    total += q * value(n + 1, b - int(c) - decision_cost) + weights[n] * r
            best = max(best, total)
        return best

    return value(0, budget)


@pytest.mark.parametrize("decision_cost", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_optimum_equals_recursion(decision_cost: int, dtype: type) -> None:
    rng = np.random.default_rng(decision_cost)
    for _ in range(25):
        laws = random_laws(rng, 4, int(rng.integers(1, 5)), 6, 15)
        index = rng.integers(0, 4, (3, int(rng.integers(1, 6))))
        weights = rng.choice([1.0, 2.0, 4.0], index.shape)
        budget = int(rng.integers(1, 50))
        solution = solve(
            laws,
            index,
            weights,
            budget,
            decision_cost=decision_cost,
            dtype=dtype,
            return_policy=True,
            return_values=True,
        )
        expected = [recursion(laws, index[e], weights[e], budget, decision_cost) for e in range(3)]
        np.testing.assert_allclose(solution.value, expected, rtol=1e-12 if dtype is np.float64 else 1e-5)
        np.testing.assert_allclose(
            evaluate_policy(laws, index, weights, budget, solution.policy, decision_cost=decision_cost),
            expected,
            rtol=1e-9 if dtype is np.float64 else 1e-5,
        )
        assert (np.diff(solution.values, axis=2) >= -1e-6).all()


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
            best = max(best, float(evaluate_policy(laws, index, weights, budget, policy)[0]))
        assert solve(laws, index, weights, budget).value[0] == pytest.approx(best, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), grid=st.integers(2, 9))
def test_coarse_bounds_hold_the_optimum_between_them(seed: int, grid: int) -> None:
    rng = np.random.default_rng(seed)
    laws = random_laws(rng, 3, 2, 8, 60)
    index, weights = rng.integers(0, 3, (4, 5)), np.ones((4, 5))
    exact = solve(laws, index, weights, 120).value
    found = bounds(laws, index, weights, 120, grid)
    assert (found.lower <= exact + 1e-9).all()
    assert (found.upper >= exact - 1e-9).all()


def test_published_minimum_restricts_the_choice() -> None:
    rng = np.random.default_rng(3)
    laws = random_laws(rng, 2, 2, 4, 10)
    index, weights = np.array([[0, 1, 1]]), np.ones((1, 3))
    free = solve(laws, index, weights, 20).value[0]
    never = np.full((2, 2), 10**6)
    assert solve(laws, index, weights, 20, min_cost=never).value[0] == 0
    assert solve(laws, index, weights, 20, min_cost=laws.min_cost.astype(np.int64)).value[0] == pytest.approx(free)


def test_references_and_agents_agree_with_the_solver() -> None:
    """Two implementations of each value: the agents' tables and forward pass, and the array solvers."""
    spec = exam_spec("heavy", num_tasks=4, budget=0.3)
    batch = draw_exams(spec, 0, np.arange(20))
    source = spec.source
    thresholds = spec.min_cost
    exact = solve(source.published, batch.groups, batch.weights, spec.budget, min_cost=thresholds).value
    np.testing.assert_allclose(references(batch, replicates=2).optimum, exact, rtol=1e-9)
    bellman = evaluate_exact(make_agent("bellman", public_problem(spec)), batch)
    np.testing.assert_allclose(bellman.score, exact, rtol=1e-9)
    informed = solve(source.laws, batch.law_index, batch.weights, spec.budget).value
    np.testing.assert_allclose(informed_values(batch), informed, rtol=1e-9)
    tokens, correct = batch.outcomes()
    rewards = correct * batch.weights[:, :, None]
    cheapest = np.where(correct, tokens, np.int64(NEVER)).min(2)
    for budget in (0, 7, spec.budget // 2, spec.budget):
        best = [hindsight_curve(cheapest[e, None], batch.weights[e, None], budget)[-1] for e in range(len(batch))]
        np.testing.assert_allclose(hindsight(tokens, rewards, budget), best, rtol=1e-12)
    with pytest.raises(ValueError, match="cheapest"):
        hindsight_curve(-cheapest, batch.weights, spec.budget)
