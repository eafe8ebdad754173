"""Graders judge as a person would; what hangs, crashes or eats memory is killed, counted wrong and reported."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="needs the extra [live]")

from roi_env.solvers.base import Question
from roi_env.solvers.grading import GradingError, GradingPool, boxed, choice, exact, extract, math, number


def question(answer: str, **extra: int | str) -> Question:
    return Question("d", "1", "?", answer, extra)


# What graders of users may do: named here as "tests.roi_env.solvers.test_grading:hostile".
def hostile(asked: Question, text: str) -> bool:
    if text == "hang":
        time.sleep(1000)
    if text == "die":
        os._exit(1)
    if text == "eat":
        return len(bytearray(1 << 40)) > 0
    if text == "raise":
        raise RuntimeError("no")
    return text == asked.answer


def partly(asked: Question, text: str) -> float:
    return {"whole": 1.0, "half": 0.5}.get(text, 0.0)


def test_extraction() -> None:
    assert boxed(r"so \boxed{\frac{1}{2}} is it") == r"\frac{1}{2}"
    assert boxed(r"\boxed{42") is None
    assert boxed(r"\boxed{7} and \boxed{42") == "7"
    assert extract(r"first \boxed{1}, no: <answer> 42 </answer>") == "42"
    assert extract(r"<answer>1</answer></think> the answer is \boxed{5}") == "5"
    assert extract("work\n#### 18\n") == "18"
    assert extract("It is 7.<|end|>\n\n") == "It is 7."
    assert extract("") == ""


@pytest.mark.parametrize(
    ("grader", "answer", "text", "right"),
    [
        (exact, "Paris", "it is\n paris. ", True),
        (exact, "Paris", "Paris, maybe", False),
        (number, "1,234.50", "That makes $1234.5", True),
        (number, "-4", "<answer>-4</answer>", True),
        (number, "-4", "<answer>4</answer>", False),
        (number, "18", "no idea", False),
        (choice, "B", r"\boxed{B}", True),
        (choice, "B", "The answer is (B) because A is wrong", True),
        (choice, "(B)", "Answer: b", True),
        (choice, "B", "<answer>C</answer>", False),
        (choice, "B", "", False),
        (math, r"\frac{1}{2}", r"\boxed{0.5}", True),
        (math, r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", True),
        (math, "x<5", r"\boxed{(-\infty,5)}", True),
        (math, "1/3", r"\boxed{.3333}", False),
        (math, "-4", "<answer>-4</answer>", True),
        (math, "42", r"\boxed{42", False),
    ],
)
def test_graders(grader: object, answer: str, text: str, right: bool) -> None:
    assert grader(question(answer), text) is right  # type: ignore[operator]


def test_reasoning_gym_scores_its_own_questions() -> None:
    pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")
    from roi_env.solvers.grading import reasoning_gym_score
    from roi_env.solvers.questions import read_questions

    asked = read_questions("rg:leg_counting?size=3&seed=5")
    assert len({q.question_id for q in asked}) == 3
    for one in asked:
        assert reasoning_gym_score(one, f"so <answer>{one.answer}</answer>") == 1.0
        assert reasoning_gym_score(one, "<answer>0</answer>") < 1.0


def test_hanging_dying_and_greedy_graders_are_killed_and_the_rest_is_graded() -> None:
    texts = ["right", "hang", "right", "die", "wrong", "eat", "raise", "right"]
    with GradingPool("tests.roi_env.solvers.test_grading:hostile", workers=2, seconds=1.0) as pool:
        grades = pool.grade([(question("right"), text) for text in texts])
        assert [grade.correct for grade in grades] == [text == "right" for text in texts]
        problems = {text: grade.problem for text, grade in zip(texts, grades, strict=True)}
        assert problems["hang"] == "no grade within 1 s"
        assert problems["die"] == "the grader's process died"
        assert "MemoryError" in str(problems["eat"])
        assert problems["raise"] == "RuntimeError: no"
        assert problems["right"] is None
        assert problems["wrong"] is None
        assert pool(question("a"), "a"), "the pool goes on"


def test_hostile_expressions_are_stopped() -> None:
    texts = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{10000000!}", r"\boxed{" + "(" * 400 + "1" + ")" * 400 + "}", "\x00" * 9]
    with GradingPool("math", seconds=1.0) as pool:
        grades = pool.grade([(question("42"), text) for text in [*texts, r"\boxed{42}"]])
    assert [grade.correct for grade in grades] == [False] * len(texts) + [True]
    assert any(grade.problem for grade in grades[:3])


def test_scores_below_one_are_wrong() -> None:
    with GradingPool("tests.roi_env.solvers.test_grading:partly") as pool:
        assert [pool(question(""), text) for text in ("whole", "half", "none")] == [True, False, False]


def test_graders_that_are_none_are_named(tmp_path: Path) -> None:
    for name in ("maths", "no.such.module:f", "tests.roi_env.solvers.test_grading:none"):
        with pytest.raises(GradingError, match="grader"):
            GradingPool(name)
