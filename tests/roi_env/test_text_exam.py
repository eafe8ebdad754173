"""An exam in words is the environment's."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import roi_env  # noqa: F401 - registers the ids
from roi_env.integrations.text_exam import TextExam
from roi_env.integrations.trl import exam_rows, exam_tools, example_conversations


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("signal", {}),
        ("heavy", {"num_tasks": 5, "budget": 0.15}),
        ("tinylm", {"decision_cost": 1, "num_tasks": 8, "feedback": "cost+correct"}),
        ("known", {"beliefs": "none", "preview": False}),
    ],
)
def test_the_same_exam_as_the_environment(family: str, settings: dict[str, Any]) -> None:
    exam, env = TextExam(3, family=family, **settings), gym.make("ROIReasoning-v0", family=family, **settings)
    rng = np.random.default_rng(0)
    for number in (7, 0, 7):
        text = exam.begin(number, 2)
        env.reset(seed=3, options={"exam_ids": number, "replicates": 2})
        assert f"{exam.budget} tokens" in text
        terminated, position = False, 0
        while not terminated:
            assert re.search(rf"Task {position + 1}/{exam.spec.num_tasks}, {exam.remaining} left", text)
            assert ("%" in text) == (settings.get("beliefs") != "none")
            action = int(rng.integers(4))
            text = exam.attempt(action) if action else exam.skip()
            _, _, terminated, _, info = env.step(action)
            position += 1
            if action:
                assert text.startswith(f"{info['tokens']} tokens")
            if action and settings.get("feedback") and not info["overspent"]:
                assert (", right" in text) == info["correct"]
            assert ("budget is gone" in text) == info["overspent"]
            assert exam.legal == [bool(one) for one in info["action_mask"]]
        assert (exam.done, exam.score, exam.spent) == (True, info["score"], info["spent"])


@pytest.mark.parametrize("level", [0, 4, -1, True, 1.0, "1", None])
def test_levels_that_there_are_not(level: Any) -> None:
    exam = TextExam()
    exam.begin(0)
    with pytest.raises(ValueError, match="from 1 to 3"):
        exam.attempt(level)
    assert exam.spent == 0


def test_an_exam_that_is_over() -> None:
    exam = TextExam(num_tasks=1)
    with pytest.raises(ValueError, match="over"):
        exam.skip()
    exam.begin(0)
    exam.skip()
    with pytest.raises(ValueError, match="over"):
        exam.attempt(1)


def test_tools_take_the_exam_of_their_row() -> None:
    settings: dict[str, Any] = {"family": "heavy", "num_tasks": 4, "preview": False}
    tools, exam = exam_tools(seed=5, **settings)(), TextExam(5, **settings)
    for row in exam_rows(4, start=6, prompt="Spend well. "):
        assert row["prompt"] == [{"role": "user", "content": "Spend well. "}]
        assert tools.reset(**row) == exam.begin(row["exam_id"])
        for level in (2, 0, 1, 3):
            if exam.done:
                with pytest.raises(ValueError, match="over"):
                    tools.skip()
                continue
            assert (tools.attempt(level) if level else tools.skip()) == (exam.attempt(level) if level else exam.skip())
        assert tools.get_reward() == exam.score
    with pytest.raises(ValueError, match="budget"):
        exam_tools(budget=-1)


def test_example_conversations_are_legal_exams() -> None:
    exam, replay = TextExam(seed=2, num_tasks=5), TextExam(seed=2, num_tasks=5)
    names = set()
    for number, made in enumerate(example_conversations(exam, 30, start=4)):
        turns = made["messages"]
        assert turns[0] == {"role": "user", "content": replay.begin(4 + number)}
        for call, told in zip(turns[1:-1:2], turns[2::2], strict=True):
            function = call["tool_calls"][0]["function"]
            names.add((function["name"], *function["arguments"].values()))
            level = function["arguments"].get("level", 0)
            assert replay.legal[level]
            assert told["content"] == (replay.attempt(level) if level else replay.skip())
        assert replay.done
        assert turns[-1]["tool_calls"] == []
    assert names == {("skip",), ("attempt", 1), ("attempt", 2), ("attempt", 3)}
