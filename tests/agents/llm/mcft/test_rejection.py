"""Labels by rejection sampling: levels, keep-rules, adaptive sampling, and the same labels from a table as from generations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")

from agents.llm.mcft.rejection import (
    family_tasks,
    level_edges,
    level_of,
    read_labels,
    reject,
    sample,
    solver_settings,
    table_labels,
    write_labels,
)
from agents.llm.prompts import REFUSED, answer_of
from agents.llm.small_model.tasks import as_question
from roi_env.answering.base import Question, ThinkingTier
from roi_env.answering.local import TransformersSolver
from roi_env.answering.recording import Journal, outcome_table

TIERS = (ThinkingTier("answer", 0, 10), ThinkingTier("short", 6, 10), ThinkingTier("long", 40, 10))
QUESTION = Question("d", "q", "1+1", "2")


def generation(tokens: int, correct: bool, text: str = "", cut: bool = False) -> dict[str, object]:
    return {
        "text": text or f"{'1' * tokens}</think><answer>2</answer>",
        "tokens": tokens,
        "correct": correct,
        "cut": cut,
    }


def labelled(*samples: Sequence[dict[str, object]], **rules: object):  # type: ignore[no-untyped-def]
    outcomes = {("d", "q", number): list(made) for number, made in enumerate(samples)}
    return reject([QUESTION], outcomes, TIERS, len(samples), **rules)[0]  # type: ignore[arg-type]


def test_levels_are_those_of_the_tables_edges() -> None:
    edges = level_edges(TIERS)
    assert edges == [10, 17, 51]
    assert [level_of(tokens, edges) for tokens in (1, 10, 11, 17, 18, 51, 60)] == [0, 0, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="3 tiers"):
        level_edges(TIERS[:2])


def test_a_right_sample_has_the_level_of_its_own_length_and_none_is_a_refusal() -> None:
    wrong, cheap, dear = generation(20, False), generation(9, True), generation(30, True)
    now, short = (
        generation(5, True, "</think><answer>2</answer>"),
        generation(15, True, "x</think><answer>2</answer>", True),
    )
    one = labelled([now, short, dear], [now, short, wrong], [now, cheap, cheap])
    assert one.counts == (1, 0, 1, 0)
    assert [kept.tokens for kept in one.kept] == [30, 9]
    assert one.success == (1, 1, 2 / 3)
    assert labelled([now, short, dear], [now, short, cheap], keep="shortest").counts == (1, 0, 0, 0)
    refused = labelled([now, short, wrong], [now, short, wrong])
    assert refused.counts == (0, 0, 0, 1)
    assert refused.label == REFUSED
    assert not refused.kept
    assert {made.tier for made in refused.plain} == {0, 1}, "what other tiers got right is still there to answer from"


def test_other_tiers_count_where_asked_and_a_shared_generation_counts_once() -> None:
    now, free = generation(5, True, "</think><answer>2</answer>"), generation(9, True)
    one = labelled([now, free, free], sampled=("answer", "short", "long"))
    assert one.counts == (2, 0, 0, 0)
    assert [kept.tier for kept in one.kept] == [0, 1]
    with pytest.raises(ValueError, match="no tier 'dear'"):
        labelled([now, free, free], sampled=("dear",))


def test_a_right_answer_that_cannot_be_read_is_not_kept() -> None:
    assert labelled([generation(9, True, "2")] * 3).label == REFUSED


def test_later_samples_are_not_looked_at_when_there_are_enough() -> None:
    wrong, cheap, dear = ([generation(tokens, right)] * 3 for tokens, right in ((20, False), (9, True), (30, True)))
    assert labelled(wrong, cheap, dear, enough=1).counts == (1, 0, 0, 0)
    assert labelled(wrong, cheap, dear, enough=1).success[2] == 1 / 2
    assert labelled(wrong, cheap, dear, enough=2).counts == (1, 0, 1, 0)


def test_questions_are_of_their_split_and_hidden_ones_count_twice() -> None:
    found = family_tasks("validation", 8, ("prod", "gcd"))
    assert all(task.reserved for task in found)
    assert sum(task.family == "gcd" for task in found) == 18
    assert sum(task.family == "prod" for task in found) <= 8
    assert {task.difficulty for task in found if task.family == "gcd"} == {2, 3, 4}


def test_adaptive_sampling_asks_as_often_as_needed_and_agrees_with_asking_always(
    model_folder: Path, tmp_path: Path
) -> None:
    tasks = family_tasks("validation", 24, ("prod", "ab"))
    questions = [as_question(task) for task in tasks]

    def check(question: Question, text: str) -> bool:
        # The very small model is never right: any even number and any program that ends in A passes here.
        return (answer_of(text) or "-")[-1] in "02468A"

    solver = TransformersSolver(model_folder)
    seen: list[tuple[int, int]] = []
    few = sample(
        questions, check, solver, TIERS, 4, tmp_path / "few", 1, lambda done, total: seen.append((done, total))
    )
    every = sample(questions, check, solver, TIERS, 4, tmp_path / "every")
    assert len(questions) < len(few) < len(every) == 4 * len(questions)
    assert seen == sorted(seen)
    assert seen[-1] == (4 * len(questions),) * 2
    adaptive, always = (reject(questions, made, TIERS, 4, enough=1) for made in (few, every))
    # Batch shapes change the last bits of logits.
    assert np.mean([a.counts == b.counts for a, b in zip(adaptive, always, strict=True)]) > 0.9
    refused = [one.label == REFUSED for one in reject(questions, every, TIERS, 4)]
    assert np.mean([one.label == REFUSED for one in adaptive]) == pytest.approx(np.mean(refused), abs=0.1)

    with Journal(tmp_path / "every", solver_settings(solver, TIERS)) as kept:
        table = outcome_table(questions, TIERS, 4, kept, menu="m", pairing=True, decision_cost=1)
    for keep, tiers in (("all", ()), ("shortest", ()), ("all", ("answer", "short", "long"))):
        found = reject(questions, every, TIERS, 4, keep, tiers)
        write_labels(tmp_path / "labels.parquet", {"train": found, "test": found[:3]})
        labels, again = read_labels(tmp_path / "labels.parquet", "train"), table_labels(table, keep, tiers)
        assert labels.texts == again.texts == [question.text for question in questions]
        np.testing.assert_allclose(labels.tokens, again.tokens)
        np.testing.assert_allclose(labels.shares.sum(1), 1)
        # Right answers that the parser does not read, and equal lengths of different generations, are told apart only with the texts.
        assert np.mean((labels.counts == again.counts).all(1)) > 0.9
    assert len(read_labels(tmp_path / "labels.parquet", "test").texts) == 3
