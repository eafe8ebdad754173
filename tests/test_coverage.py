"""The coverage simulations of docs/statistics.md, in small: intervals hold the known truth as often as they claim."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SIMULATION = runpy.run_path(str(ROOT / "benchmarks" / "coverage.py"))


def test_the_train_laws_optimum_is_covered_and_the_in_sample_optimum_is_biased() -> None:
    trials = list(SIMULATION["recorded_trials"](0, 80, questions=30, num_tasks=3, groups=1, sets=2))
    interval, coverage = SIMULATION["share_interval"], SIMULATION["coverage"]

    def covers(agent: str, of: str | None) -> float:
        rng = np.random.default_rng(0)
        return float(coverage([interval(trial, agent, of, rng) for trial in trials]))

    # 3 standard errors of a coverage of .95 over 80 tables are .073.
    assert covers("bellman", None) > 0.877
    assert covers("lp-lookahead", "bellman") > 0.877
    assert covers("fixed-1", "bellman") > 0.877
    high = [
        t.scores["optimum"].mean() - t.scores["bellman"].mean() - t.truth["optimum"] + t.truth["bellman"]
        for t in trials
    ]
    error = np.std(high) / np.sqrt(len(high))
    assert np.mean(high) > 3 * error
    estimated = np.mean([trial.optimism for trial in trials])
    assert 0.3 * np.mean(high) < estimated < 2 * np.mean(high)


@pytest.mark.parametrize(("kind", "least"), [("normal", 0.92), ("skewed", 0.92), ("one in five .03 lower", 0.85)])
def test_intervals_over_five_seeds(kind: str, least: float) -> None:
    rng = np.random.default_rng(1)
    made = [SIMULATION["seed_intervals"](rng, kind, 5, resamples=300) for _ in range(300)]
    covers = {
        method: SIMULATION["coverage"]([(intervals[method], truth) for intervals, truth in made])
        for method in made[0][0]
    }
    assert covers["the same, logit (used)"] > least
    assert covers["the same, logit (used)"] >= covers["t over seeds + exams"] - 0.02
    assert covers["bootstrap of seeds"] < covers["the same, logit (used)"] - 0.08


def test_no_method_sees_a_failure_that_no_seed_had() -> None:
    """With one failing seed in five a third of all comparisons has none among its five."""
    rng = np.random.default_rng(2)
    made = [SIMULATION["seed_intervals"](rng, "one in five fails (.3 lower)", 5, resamples=200) for _ in range(300)]
    covers = {
        method: SIMULATION["coverage"]([(intervals[method], truth) for intervals, truth in made])
        for method in made[0][0]
    }
    bounded = covers.pop("no assumption but 0 to 1")
    assert bounded > 0.95
    assert all(value < 0.8 for value in covers.values())
