"""Tasks: disjoint splits, verification that fails closed, and solutions that really lead to the answer."""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")

from agents.llm.small_model.solutions import solution
from agents.llm.small_model.tasks import FAMILIES, Task, TaskSplit, distinct_tasks, tasks
from roi_env.sources.outcome_tables import split_of

KINDS = [(family.name, difficulty) for family in FAMILIES.values() for difficulty in family.difficulties]
SPLITS: tuple[TaskSplit, ...] = get_args(TaskSplit)


def some(family: str, difficulty: int, split: TaskSplit = "pretrain", count: int = 20) -> list[Task]:
    return list(islice(tasks(family, difficulty, split), count))


@pytest.mark.parametrize(("family", "difficulty"), KINDS)
def test_the_verifier_accepts_the_answer_and_nothing_else(family: str, difficulty: int) -> None:
    for task in some(family, difficulty):
        assert task.check(task.answer)
        assert not task.check(None)
        assert not task.check(task.answer + "7")
        assert not task.check("no idea")


@given(answer=st.text(alphabet=st.characters(codec="utf-8"), max_size=40), kind=st.sampled_from(KINDS))
def test_no_answer_makes_the_verifier_fail(answer: str, kind: tuple[str, int]) -> None:
    task = some(*kind, count=1)[0]
    assert isinstance(task.check(answer), bool)


def test_huge_numbers_are_wrong_and_no_error() -> None:
    for kind in KINDS:
        assert not some(*kind, count=1)[0].check("9" * 5000)


@pytest.mark.parametrize(("family", "difficulty"), [("prod", 1), ("ab", 4), ("factor", 3), ("sum2", 7)])
def test_splits_share_no_text(family: str, difficulty: int) -> None:
    texts = {split: {task.question for task in some(family, difficulty, split, 300)} for split in SPLITS}
    for split, mine in texts.items():
        assert mine
        assert all(not mine & others for other, others in texts.items() if other != split)


def test_a_table_splits_tasks_as_they_were_drawn() -> None:
    for split in ("train", "validation", "test"):
        assert {split_of(task.question_id) for task in some("sum2", 5, split)} == {split}  # type: ignore[arg-type]


def test_tasks_are_the_same_every_time_and_ids_name_texts() -> None:
    first, again = some("gcd", 3), some("gcd", 3)
    assert [task.question for task in first] == [task.question for task in again]
    found = distinct_tasks("prod", 1, "test", 50)
    assert 3 < len(found) < 50, "there are 100 texts in all"
    assert len({task.question for task in found}) == len({task.question_id for task in found}) == len(found)


@pytest.mark.parametrize(("family", "difficulty"), KINDS)
def test_solutions_end_in_the_answer(family: str, difficulty: int) -> None:
    rng = Random(0)
    for task in some(family, difficulty):
        text = solution(task, rng)
        end = text.split(" check ")[0]
        if family == "factor":
            named = [step.split("=")[1].split("*")[0] for step in end.split("; ") if "*" in step]
            assert " × ".join([*named, end.split("; ")[-1].removesuffix(" prime")]) == task.answer
        elif family == "ab":
            assert end.split(">")[-1].strip() == (task.answer or "empty")
        elif family == "gcd":
            # The last step divides by the answer.
            assert end.split("; ")[-1].replace("*", "%").replace("+", "=").split("%")[1].split("=")[0] == task.answer
        else:
            assert end.replace(", ", "=").split("=")[-1] == task.answer


@pytest.mark.parametrize("family", [family.name for family in FAMILIES.values() if family.hidden])
def test_in_hidden_families_equal_looks_need_unequal_work(family: str) -> None:
    for difficulty in FAMILIES[family].taught:
        lengths = [len(solution(task, Random(1))) for task in some(family, difficulty, count=100)]
        assert max(lengths) >= 2 * min(lengths)
