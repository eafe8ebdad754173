"""The optimum and the value of a policy as their equations read: references for compiled code."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from roi_env.sources.source import Laws


def values(
    laws: Laws, index: npt.NDArray[Any], weights: npt.NDArray[Any], budget: int, decision_cost: int, choose: Any
) -> float:
    """Expected score of one exam, where ``choose(n, b, totals)`` picks a place in the values of all actions."""

    @cache
    def value(n: int, b: int) -> float:
        if n == len(index):
            return 0.0
        totals = [value(n + 1, b - decision_cost) if b >= decision_cost else 0.0]
        for k in range(laws.num_tiers):
            points = zip(*laws.cell(int(index[n]), k), strict=True)
            fitting = [(int(c) + decision_cost, q, r) for c, q, r in points if c + decision_cost <= b]
            totals.append(sum(q * value(n + 1, b - c) + weights[n] * r for c, q, r in fitting))
        return float(totals[choose(n, b, totals)])

    return value(0, budget)


def optimum(
    laws: Laws,
    index: npt.NDArray[Any],
    weights: npt.NDArray[Any],
    budget: int,
    decision_cost: int = 0,
    min_cost: npt.NDArray[Any] | None = None,
) -> npt.NDArray[np.float64]:
    """(E,) best expected score; tier k of law l may be chosen while ``min_cost[l, k]`` tokens are left."""

    def of(e: int) -> float:
        def best(n: int, b: int, totals: list[float]) -> int:
            legal = [0] + [
                k + 1 for k in range(laws.num_tiers) if min_cost is None or min_cost[int(index[e][n]), k] <= b
            ]
            return max(legal, key=totals.__getitem__)

        return values(laws, index[e], weights[e], budget, decision_cost, best)

    return np.array([of(e) for e in range(len(index))])


def policy_value(
    laws: Laws,
    index: npt.NDArray[Any],
    weights: npt.NDArray[Any],
    budget: int,
    policy: npt.NDArray[Any],
    decision_cost: int = 0,
) -> npt.NDArray[np.float64]:
    """(E,) expected score of ``policy`` (E, N, B + 1), the action at (position, tokens left)."""
    return np.array(
        [
            values(laws, index[e], weights[e], budget, decision_cost, lambda n, b, _, e=e: policy[e, n, b])
            for e in range(len(index))
        ]
    )
