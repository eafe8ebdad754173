"""The variant made of the small language model's recorded outcomes: the structure it promises, and its defaults."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import roi_env  # noqa: F401 - registers
from roi_env.exams.config import exam_spec
from roi_env.sources.packaged import tinylm_table


def test_defaults() -> None:
    spec = gym.make("ROIReasoning-TinyLM-v0").unwrapped.exam_spec  # type: ignore[attr-defined]
    assert spec.decision_cost == 1
    assert spec.source.coupling == "common", "one thought serves all tiers"
    assert [tier.name for tier in spec.source.tiers] == ["answer", "short", "long"]
    assert "sum2 5" in spec.source.group_names
    assert any(" + " in text for text in spec.source.texts)
    with pytest.raises(ValueError, match="brings its own table"):
        exam_spec("tinylm", table=tinylm_table())


def test_tiers_cost_and_solve_as_the_environment_needs() -> None:
    """Per kind and tier: at once right on easy and wrong on hard ones; more thought solves more; cost is random and grows."""
    rows = tinylm_table().split("test").rows
    kind, tier = (np.array(rows[name].to_pylist()) for name in ("kind", "tier"))
    tokens, correct = (np.array(rows[name].to_pylist(), float) for name in ("tokens", "correct"))

    def cell(which: str, name: str) -> tuple[float, float, float]:
        here = (kind == which) & (tier == name)
        return float(correct[here].mean()), float(tokens[here].mean()), float(tokens[here].std())

    assert cell("sum1 2", "answer")[0] > 0.9
    assert cell("legs 6", "answer")[0] < 0.1
    assert cell("sum1 6", "short")[0] > 0.8 > 0.3 > cell("sum1 6", "answer")[0]
    assert cell("sum1 12", "long")[0] > 0.7 > 0.1 > cell("sum1 12", "short")[0]
    for family, sizes in {"legs": (1, 3, 6, 10), "sum1": (2, 5, 8, 12), "ab": (4, 7, 10)}.items():
        costs = [cell(f"{family} {size}", "long")[1] for size in sizes]
        assert costs == sorted(costs)
        assert all(cell(f"{family} {size}", "long")[2] > 1 for size in sizes), "costs are random"
    for hopeless in ("prod 4", "sum2 20", "legs 15"):
        assert cell(hopeless, "long")[0] < 0.05
