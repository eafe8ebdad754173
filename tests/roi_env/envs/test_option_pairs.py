"""Every two values of every two options together, for every id, through both checkers with warnings as errors."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import roi_env
from roi_env.exams.config import Beliefs, Enforcement, Feedback, Order
from roi_env.sources.outcome_tables import OutcomeTable
from tests.roi_env.envs.test_env import checkers
from tests.roi_env.sources.test_recorded import TIERS, grid, table

OPTIONS: dict[str, tuple[Any, ...]] = {
    "order": Order.__args__,
    "preview": (True, False),
    "beliefs": Beliefs.__args__,
    "reward": ("score", "rational", "refusal_bonus(0.1)", "overspend_penalty(1)", "cost_shaped(0.5)"),
    "feedback": Feedback.__args__,
    "coupling": (None, "independent", "common"),
    "tiers": (None, "first and last", "last"),
    "decision_cost": (0, 1),
    "enforcement": Enforcement.__args__,
    "budget": (0.3, "ample", 1, 400),
    "render_mode": (None, "ansi", "rgb_array"),
}

Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs(row: dict[str, Any]) -> set[Pair]:
    return set(itertools.combinations(row.items(), 2))


def pairwise_design(options: dict[str, tuple[Any, ...]], seed: int = 0) -> list[dict[str, Any]]:
    """Rows that hold every pair of values of two options; greedy (Cohen et al., "The AETG system", TSE 1997)."""
    rng = np.random.default_rng(seed)
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(options, 2) for x in options[a] for y in options[b]}
    rows = []
    while missing:
        tries = [_greedy_row(options, missing, rng) for _ in range(30)]
        rows.append(max(tries, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return rows


def _greedy_row(options: dict[str, tuple[Any, ...]], missing: set[Pair], rng: np.random.Generator) -> dict[str, Any]:
    """A missing pair, then option by option in random order the value with most missing pairs."""
    row = dict(sorted(missing, key=repr)[rng.integers(len(missing))])
    for name in rng.permutation([name for name in options if name not in row]):
        candidates = [_ordered({**row, name: options[name][i]}, options) for i in rng.permutation(len(options[name]))]
        row = max(candidates, key=lambda candidate: len(pairs(candidate) & missing))
    return row


def _ordered(row: dict[str, Any], options: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {name: row[name] for name in options if name in row}


ROWS = pairwise_design(OPTIONS)


def test_the_design_holds_every_pair_in_few_rows() -> None:
    covered = set().union(*map(pairs, ROWS))
    for a, b in itertools.combinations(OPTIONS, 2):
        assert {((a, x), (b, y)) for x in OPTIONS[a] for y in OPTIONS[b]} <= covered
    assert len(ROWS) <= 32


@pytest.fixture(scope="module")
def recorded() -> OutcomeTable:
    caps = {"model": {tier: 5 * 10**k for k, tier in enumerate(TIERS)}}
    return table(grid(datasets=("math", "gsm8k")), pairing=True, tier_caps=caps, level_edges=caps)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(roi_env.IDS))
@pytest.mark.filterwarnings("ignore:budget=1 means 1 token")
def test_pairs_of_options_pass_both_checkers(name: str, recorded: OutcomeTable) -> None:
    is_recorded = "Recorded" in name
    fixed: dict[str, Any] = {"table": recorded, "num_tasks": 3} if is_recorded else {}
    names = TIERS if is_recorded else [tier.name for tier in gym.make(name).unwrapped.exam_spec.source.tiers]
    tiers = {None: None, "first and last": [names[0], names[-1]], "last": [names[-1]]}
    for row in ROWS:
        env = gym.make(name, **{**fixed, **row, "tiers": tiers[row["tiers"]]})
        try:
            checkers(env)
        except Exception as error:
            raise AssertionError(f"{name} with {row}: {error}") from error
        finally:
            env.close()
