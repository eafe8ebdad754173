"""The variants made of real models' recorded outcomes: what the tables promise, the paper's exams, and their defaults."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import roi_env  # noqa: F401 - registers
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import optimum_tables
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import PAPER_TIERS, math_table, packaged_table

SETS = ("gsm8k", "math-500", "aime-2024")


@pytest.fixture(params=["math", "paper"])
def table(request: pytest.FixtureRequest) -> OutcomeTable:
    return packaged_table(request.param)


def columns(table: OutcomeTable, *names: str) -> tuple[Any, ...]:
    return tuple(np.array(table.rows[name].to_pylist()) for name in names)


def test_defaults() -> None:
    spec = gym.make("ROIReasoning-Math-v0").unwrapped.exam_spec  # type: ignore[attr-defined]
    assert (spec.num_tasks, spec.decision_cost, spec.source.coupling) == (10, 0, "common")
    assert [tier.name for tier in spec.source.tiers] == ["at-once", "128", *PAPER_TIERS]
    assert spec.source.group_names == SETS
    with pytest.raises(ValueError, match="brings its own table"):
        exam_spec("math", table=math_table())


def test_no_text_of_aime_and_all_texts_of_the_others(table: OutcomeTable) -> None:
    dataset, question, answer, number = columns(table, "dataset", "question", "answer", "question_id")
    aime = dataset == "aime-2024"
    assert set(question[aime]) == set(answer[aime]) == {""}
    assert len(set(number[aime])) == 30
    assert all(question[~aime])
    assert all(answer[~aime])


def test_one_reasoning_serves_all_tiers_of_a_sample(table: OutcomeTable) -> None:
    """No cap is exceeded, reasoning that ended by itself is the same answer at all higher caps, and a cut one goes on there."""
    cap = table.tier_caps[table.menus[0]]
    dataset, number, tier, sample, tokens, correct = columns(
        table, "dataset", "question_id", "tier", "sample", "tokens", "correct"
    )
    assert (tokens <= [cap[name] for name in tier]).all()
    generations: dict[Any, dict[str, tuple[int, bool]]] = {}
    for key, name, cost, right in zip(zip(dataset, number, sample, strict=True), tier, tokens, correct, strict=True):
        generations.setdefault(key, {})[name] = (cost, right)
    forced = 32
    for made in generations.values():
        assert len(made) == 5
        for low, high in pairwise(("128", *PAPER_TIERS)):
            (cheap, _), (dear, _) = made[low], made[high]
            assert cheap <= dear + forced
            if cheap < cap[low] - forced:
                assert made[low] == made[high]


def test_reasoning_pays_where_it_can(table: OutcomeTable) -> None:
    dataset, tier, correct = columns(table, "dataset", "tier", "correct")

    def right(name: str, level: str) -> float:
        return float(correct[(dataset == name) & (tier == level)].mean())

    assert right("gsm8k", "512") > 1.2 * right("gsm8k", "256") > 3 * right("gsm8k", "128")
    assert right("aime-2024", "1024") < 0.05


def test_the_paper_s_exams_take_one_problem_of_each_set_and_refuse_aime() -> None:
    env = gym.make("ROIReasoning-Paper-v0").unwrapped
    spec = env.exam_spec  # type: ignore[attr-defined]
    assert (spec.num_tasks, spec.budget, spec.order) == (3, 1024, "easy_first")
    assert tuple(tier.name for tier in spec.source.tiers) == PAPER_TIERS
    assert [tier.level_edge for tier in spec.source.tiers] == [256, 512, 1024]
    assert not spec.source.synthetic
    groups = draw_exams(spec, 0, range(50)).groups
    assert {tuple(sorted(row)) for row in groups.tolist()} == {(0, 1, 2)}
    assert (groups[:, 2] == SETS.index("aime-2024")).all(), "the hardest comes last"
    # With both others to come the best policy leaves AIME's tokens to them; what is left at the end may go into anything.
    for budget in (512, 1024):
        batch = draw_exams(spec.replace(order="hard_first", budget=budget), 0, range(6))
        assert (batch.groups[:, 0] == SETS.index("aime-2024")).all()
        assert (optimum_tables(batch).lookup(0, np.arange(6), np.full(6, budget)) == 0).all()
