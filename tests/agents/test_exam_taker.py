"""Exams in one pass: what is marked is what the rules of the environment make of the same answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import agents  # noqa: F401 - registers
from agents.base import DecisionView, ExamsView, make_agent, public_problem
from agents.one_pass import ExamTaker, Papers, mark
from agents.playing import action_numbers, evaluate, evaluate_sampled, rollout
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.measures.episodes import Records
from roi_env.sources.outcome_tables import OutcomeTable
from tests.agents.llm.exams import spec_of, three_tier_spec, worded_table


def papers_of(records: Records) -> Papers:
    """What somebody hands in who announces, writes and answers what these episodes say."""
    answers = tuple(
        tuple("1" if right else "2" if action else None for right, action in zip(*row, strict=True))
        for row in zip(records.correct, records.action, strict=True)
    )
    return Papers(records.action, records.tokens, records.reached, records.reached, records.overspent, answers)


def episodes(spec: ExamSpec, agent: str, replicates: int = 3) -> tuple[ExamBatch, Records]:
    exams = draw_exams(spec, 5, np.arange(40))
    records = rollout(make_agent(agent, public_problem(spec)), exams, replicates=replicates)
    repeated = exams.take(records.exam)
    return dataclasses.replace(repeated, replicates=records.replicate), records


@pytest.mark.parametrize("reward", ["score", "rational", "overspend_penalty(0.5)", "cost_shaped(0.3)"])
@pytest.mark.parametrize("agent", ["random", "fixed-3", "resolve"])
def test_papers_are_marked_by_the_environments_rules(agent: str, reward: str) -> None:
    spec = three_tier_spec(reward=reward, budget=40)
    batch, expected = episodes(spec, agent)
    found = mark(papers_of(expected), batch, "exact", expected.exam)
    assert expected.overspent.any() or agent != "random"
    assert expected.correct.any()
    for field in dataclasses.fields(Records):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        assert ours.dtype == theirs.dtype


def test_what_was_cut_earns_nothing_and_an_unannounced_answer_matches_no_level() -> None:
    spec = three_tier_spec(reward="rational")
    batch, records = episodes(spec, "fixed-1", replicates=1)
    papers = papers_of(records)
    assert mark(papers, batch, "exact", records.exam).correct.any()
    for change in ({"cut": np.ones_like(papers.cut)}, {"answers": tuple((None,) * 4 for _ in papers.answers)}):
        assert not mark(dataclasses.replace(papers, **change), batch, "exact", records.exam).value.any()
    silent = mark(dataclasses.replace(papers, announced=np.zeros_like(papers.cut)), batch, "exact", records.exam)
    assert silent.value.any()
    assert not silent.reward.any()
    assert not silent.level_match.any()


def test_graders_judge_each_answer_by_its_own_question() -> None:
    spec = three_tier_spec()
    batch, records = episodes(spec, "fixed-1", replicates=1)
    papers = dataclasses.replace(
        papers_of(records), answers=tuple(("1", " 1. ", "1.0", "one") for _ in range(len(batch)))
    )
    whole = dataclasses.replace(papers, reached=np.ones_like(papers.cut), cut=np.zeros_like(papers.cut))
    exact = mark(whole, batch, "exact", records.exam).correct
    np.testing.assert_array_equal(exact, np.tile([True, True, False, False], (len(batch), 1)))
    number = mark(whole, batch, "number", records.exam).correct
    np.testing.assert_array_equal(number, np.tile([True, True, True, False], (len(batch), 1)))


def test_what_single_passes_cannot_have_is_refused() -> None:
    batch, records = episodes(three_tier_spec(reward="refusal_bonus(0.1)"), "fixed-1", replicates=1)
    with pytest.raises(ValueError, match="other tiers"):
        mark(papers_of(records), batch, "exact", records.exam)
    batch, records = episodes(exam_spec("signal"), "fixed-1", replicates=1)
    with pytest.raises(ValueError, match="no reference answers"):
        mark(papers_of(records), batch, "exact", records.exam)
    table = worded_table(tiers=("answer", "short", "long"))
    letters = pa.array(["AB"[k % 2] for k in range(table.num_rows)])
    shuffled = table.rows.set_column(table.rows.column_names.index("answer"), "answer", letters)
    batch, records = episodes(spec_of(OutcomeTable.from_arrow(shuffled)), "fixed-1", replicates=1)
    with pytest.raises(ValueError, match="options were shuffled for every generation, no letter can grade"):
        mark(papers_of(records), batch, "exact", records.exam)


class Guesser(ExamTaker):
    """Answers "1" with the chance of a half, one token a problem."""

    name = "guesser"
    replicates = 8

    def take(self, exams: ExamsView, numbers: npt.NDArray[np.float64]) -> Papers:
        shape = (len(exams), exams.problem.num_tasks)
        right = numbers[:, : shape[1]] < 0.5
        ones, yes = np.ones(shape, np.int64), np.ones(shape, bool)
        answers = tuple(tuple("1" if one else "2" for one in row) for row in right)
        return Papers(ones, ones, yes, yes, ~yes, answers)


def test_an_evaluation_takes_every_exam_as_often_as_it_may_with_numbers_of_its_own() -> None:
    spec = three_tier_spec()
    batch, taker = draw_exams(spec, 1, np.arange(30)), Guesser(public_problem(spec))
    found = evaluate(taker, batch, replicates=100, seed=3)
    assert (found.mode, found.law, found.replicates) == ("sampled", "true", 8)
    assert 0.4 < found.score.mean() / 4 < 0.6
    np.testing.assert_array_equal(found.tokens, np.ones((30, 4)))
    numbers = np.stack(
        [
            action_numbers(np.uint64(3), batch.exam_ids, np.full(30, replicate), spec.budget)[:, :4]
            for replicate in range(8)
        ]
    )
    np.testing.assert_allclose(found.correct, (numbers < 0.5).mean(0))
    alone = evaluate_sampled(taker, batch.take(slice(7, 8)), replicates=8, seed=3)
    np.testing.assert_array_equal(alone.correct[0], found.correct[7])


def test_whoever_takes_exams_in_one_pass_takes_no_decisions() -> None:
    spec = three_tier_spec()
    batch, problem = draw_exams(spec, 0, np.arange(2)), public_problem(spec)
    zeros = np.zeros(2, np.int64)
    view = DecisionView(problem, np.arange(2), zeros, zeros + 60, zeros, zeros, zeros.astype(bool), batch.groups)
    with pytest.raises(ValueError, match="one pass"):
        Guesser(problem).act(view, None)
    with pytest.raises(ValueError, match="no other law"):
        rollout(Guesser(problem), batch, law="published")
