"""The clairvoyant oracle against enumeration and HiGHS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from roi_env.exact.hindsight import hindsight


def instance(rng: np.random.Generator, kind: str, tasks: int, tiers: int) -> tuple[np.ndarray, np.ndarray, int]:
    costs = rng.integers(1, 12, (1, tasks, tiers))
    correct = rng.random((1, tasks, tiers)) < 0.5
    if kind == "equal":
        rewards = correct * 1.0
    elif kind == "weights":
        rewards = correct * rng.choice([1.0, 2.0, 4.0, 8.0], (1, tasks, 1))
    else:
        rewards = correct * rng.random((1, tasks, tiers))
    return costs, rewards, int(rng.integers(1, 30))


def value(costs: np.ndarray, rewards: np.ndarray, budget: int, decision_cost: int, actions: tuple[int, ...]) -> float:
    """Score of fixed actions by the rules; a cost above what remains ends the exam."""
    score = 0.0
    for n, action in enumerate(actions):
        cost = decision_cost + (int(costs[0, n, action - 1]) if action else 0)
        if cost > budget:
            break
        budget -= cost
        score += float(rewards[0, n, action - 1]) if action else 0.0
    return score


@pytest.mark.parametrize("kind", ["equal", "weights", "tiers"])
@pytest.mark.parametrize("decision_cost", [0, 2])
def test_oracle_equals_enumeration(kind: str, decision_cost: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(350):
        tasks, tiers = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        costs, rewards, budget = instance(rng, kind, tasks, tiers)
        best = max(
            value(costs, rewards, budget, decision_cost, actions)
            for actions in itertools.product(range(tiers + 1), repeat=tasks)
        )
        assert hindsight(costs, rewards, budget, decision_cost=decision_cost)[0] == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("kind", ["equal", "weights", "tiers"])
def test_oracle_equals_highs(kind: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(350):
        tasks, tiers = int(rng.integers(2, 12)), int(rng.integers(1, 5))
        costs, rewards, budget = instance(rng, kind, tasks, tiers)
        one_each = np.kron(np.eye(tasks), np.ones(tiers))
        solution = milp(
            -rewards.ravel(),
            constraints=[LinearConstraint(one_each, ub=1), LinearConstraint(costs.reshape(1, -1), ub=budget)],
            integrality=np.ones(tasks * tiers),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0},
        )
        assert hindsight(costs, rewards, budget)[0] == pytest.approx(-solution.fun, abs=1e-6)


def test_batches_and_unaffordable_costs() -> None:
    rng = np.random.default_rng(2)
    costs = rng.integers(1, 100, (50, 6, 3))
    rewards = (rng.random((50, 6, 3)) < 0.4) * 1.0
    costs[:, 0, 2] = np.iinfo(np.int32).max
    together = hindsight(costs, rewards, 150)
    apart = [hindsight(costs[e : e + 1], rewards[e : e + 1], 150)[0] for e in range(50)]
    assert together.tolist() == apart
    assert (hindsight(costs, rewards, 300) >= together).all()
