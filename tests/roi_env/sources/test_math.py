"""The variants made of a real model's recorded outcomes: what the table promises, the paper's exams, and their defaults."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest

import roi_env  # noqa: F401 - registers
from roi_env.exams.config import Order, exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import optimum_tables
from roi_env.sources.packaged import PAPER_TIERS, math_table

SETS = ("gsm8k", "math-500", "aime-2024")


def columns(*names: str) -> tuple[Any, ...]:
    return tuple(np.array(math_table().rows[name].to_pylist()) for name in names)


def test_defaults() -> None:
    spec = gym.make("ROIReasoning-Math-v0").unwrapped.exam_spec  # type: ignore[attr-defined]
    assert (spec.num_tasks, spec.decision_cost, spec.source.coupling) == (10, 0, "common")
    assert [tier.name for tier in spec.source.tiers] == ["at-once", "128", *PAPER_TIERS]
    assert spec.source.group_names == SETS
    with pytest.raises(ValueError, match="brings its own table"):
        exam_spec("math", table=math_table())


def test_no_text_of_aime_and_all_texts_of_the_others() -> None:
    dataset, question, answer, number = columns("dataset", "question", "answer", "question_id")
    aime = dataset == "aime-2024"
    assert set(question[aime]) == set(answer[aime]) == {""}
    assert len(set(number[aime])) == 30
    assert all(question[~aime])
    assert all(answer[~aime])


def test_one_reasoning_serves_all_tiers_of_a_sample() -> None:
    """No cap is exceeded, reasoning that ended by itself is the same answer at all higher caps, and a cut one goes on there."""
    cap = math_table().tier_caps[math_table().menus[0]]
    dataset, number, tier, sample, tokens, correct = columns(
        "dataset", "question_id", "tier", "sample", "tokens", "correct"
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


def test_reasoning_pays_where_it_can() -> None:
    dataset, tier, correct = columns("dataset", "tier", "correct")

    def right(name: str, level: str) -> float:
        return float(correct[(dataset == name) & (tier == level)].mean())

    assert right("gsm8k", "512") > 1.2 * right("gsm8k", "256") > 3 * right("gsm8k", "128")
    assert right("aime-2024", "1024") < 0.05


def test_the_paper_s_exams_take_one_problem_of_each_set_and_refuse_the_last() -> None:
    env = gym.make("ROIReasoning-Paper-v0").unwrapped
    spec = env.exam_spec  # type: ignore[attr-defined]
    assert (spec.num_tasks, spec.budget, spec.order) == (3, 1024, "easy_first")
    assert tuple(tier.name for tier in spec.source.tiers) == PAPER_TIERS
    assert [tier.level_edge for tier in spec.source.tiers] == [256, 512, 1024]
    assert not spec.source.synthetic
    groups = draw_exams(spec, 0, range(50)).groups
    assert {tuple(sorted(row)) for row in groups.tolist()} == {(0, 1, 2)}
    assert (groups[:, 2] == SETS.index("aime-2024")).all(), "the hardest comes last"
    # Whatever the order and the budget, the best policy leaves AIME's tokens to the others.
    for order in get_args(Order):
        for budget in (512, 1024):
            batch = draw_exams(spec.replace(order=order, budget=budget), 0, range(6))
            exam = np.arange(6)
            position = (batch.groups == SETS.index("aime-2024")).argmax(1)
            for at in range(3):
                here = exam[position == at]
                found = optimum_tables(batch).lookup(at, here, np.full(len(here), budget))
                assert (found == 0).all()
