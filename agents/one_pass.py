"""Whoever takes a whole exam in one pass, and how its papers become the records of decision after decision.

An :class:`agents.base.Agent` is asked before every task; an :class:`ExamTaker` sees the exam and its budget once and writes
everything at a stretch (the inference of arXiv 2601.03822). Comparisons consume records, so both stand in one table.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agents.base import Agent, AgentError, DecisionView, ExamsView, Probs, State
from roi_env.answering.base import Question
from roi_env.answering.grading import GradingPool, load_grader
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch
from roi_env.exams.rewards import REFUSAL_BONUS, Reward, reward_of
from roi_env.measures.episodes import Records

IN_PROCESS: Final = ("exact", "number", "choice")
"""Graders whose time is bounded whatever they read; others run in workers that can be killed."""


@dataclass(frozen=True)
class Papers:
    """What D sittings handed in, N tasks each; zero (False, None) where a task was not reached.

    :param action: (D, N) int64 announced: 0 = refusal, k = tier k. Where nothing was announced: the dearest tier.
    :param tokens: (D, N) int64 written on the task; a sitting's sum is everything it wrote, at most the budget.
    :param reached: (D, N) bool: something was written on the task.
    :param announced: (D, N) bool: it begins with an announcement.
    :param cut: (D, N) bool: the budget ended before the task was finished.
    :param answers: D times N answers; None: refused, or not in the required form.
    """

    action: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    reached: npt.NDArray[np.bool_]
    announced: npt.NDArray[np.bool_]
    cut: npt.NDArray[np.bool_]
    answers: tuple[tuple[str | None, ...], ...]

    def __len__(self) -> int:
        return len(self.action)


class ExamTaker(Agent):
    """Takes whole exams in one pass. It has no single decisions: :meth:`act` refuses.

    :attr:`replicates` bounds how often an evaluation lets it take every exam, since it writes anew each time;
    :attr:`grader` names the judge of its answers (:mod:`roi_env.answering.grading`).
    """

    markov = False
    replicates: int = 1
    grader: str = "exact"

    @abstractmethod
    def take(self, exams: ExamsView, numbers: npt.NDArray[np.float64]) -> Papers:
        """Take E exams, once each.

        :param numbers: (E, budget) uniform numbers that pick what is written, token by token.
        """

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """An agent that takes exams in one pass makes no single decisions.

        :raises ValueError: always.
        """
        raise ValueError(
            f"agent {self.name!r} takes whole exams in one pass, it cannot be asked for single decisions: compare it with "
            "`roi compare`, or choose a model that decides task by task (llm)"
        )


def check_markable(spec: ExamSpec) -> None:
    """Check that exams written in one pass can be marked.

    :raises AgentError: where the source has no reference answers, or the reward needs outcomes that nobody generated.
    """
    if not spec.source.answers:
        raise AgentError(
            f"source {spec.source.name!r} has no reference answers: single-pass exams need recorded outcomes with questions "
            "and answers (--family tinylm, or --table FILE), one answer a question: where options were shuffled for every "
            "generation, no letter can grade a text"
        )
    if spec.reward.kind == REFUSAL_BONUS:
        raise AgentError(
            f"reward {spec.reward} asks what other tiers would have given: nobody wrote that in a single pass"
        )


def mark(papers: Papers, batch: ExamBatch, grader: str, exam: npt.NDArray[np.int64]) -> Records:
    """Grade papers by the reference answers, and write them down as episodes.

    A right answer earns its weight; what was cut at the budget earns nothing. The level spent is that of the tokens written
    on a task less the decision cost (the announcement), by the source's level edges.

    :param batch: D exams, one a paper.
    :param grader: see :mod:`roi_env.answering.grading`.
    :param exam: (D,) row of each paper's exam, for the records.
    :raises AgentError: see :func:`check_markable`.
    """
    spec = batch.spec
    check_markable(spec)
    right = _graded(papers.answers, batch, grader) & papers.reached & ~papers.cut
    level = np.searchsorted(spec.source.level_edges, papers.tokens - spec.decision_cost)
    attempt = papers.reached & (papers.action > 0)
    match = attempt & papers.announced & ~papers.cut & (level == papers.action - 1)
    value = np.where(right, batch.weights, 0.0)
    # Without an announcement no level was matched: a level that no action has.
    reward = _rewards(spec.reward, papers, right, np.where(papers.announced, level, -2), batch)
    return Records(
        exam=exam,
        replicate=batch.replicates,
        action=papers.action,
        tokens=papers.tokens,
        correct=right,
        overspent=papers.cut,
        remaining=np.where(papers.reached, spec.budget - papers.tokens.cumsum(1) + papers.tokens, 0),
        reached=papers.reached,
        value=value,
        reward=np.where(papers.reached, reward, 0.0),
        level_match=match,
    )


def _rewards(
    reward: Reward, papers: Papers, right: npt.NDArray[np.bool_], level: npt.NDArray[np.int64], batch: ExamBatch
) -> npt.NDArray[np.float64]:
    columns = (papers.action, right, papers.cut, level, batch.weights, papers.tokens)
    flat = zip(*(column.ravel().tolist() for column in columns), strict=True)
    budget = batch.spec.budget
    earned = [
        reward_of(reward.kind, reward.coefficient, action, good, cut, at, weight, paid, budget, False)
        for action, good, cut, at, weight, paid in flat
    ]
    return np.reshape(earned, right.shape)


def _graded(answers: Sequence[Sequence[str | None]], batch: ExamBatch, grader: str) -> npt.NDArray[np.bool_]:
    """(D, N) which answers are right; every different answer to a question is judged once."""
    source = batch.spec.source
    given = {
        (int(item), answer)
        for row, items in zip(answers, batch.items, strict=True)
        for answer, item in zip(row, items, strict=True)
        if answer is not None
    }
    asked = [
        (
            Question("", source.question_ids[item], source.texts[item], source.answers[item]),
            f"<answer>{answer}</answer>",
        )
        for item, answer in given
    ]
    if grader in IN_PROCESS:
        judge = load_grader(grader)
        grades = [bool(judge(*pair)) for pair in asked]
    else:
        with GradingPool(grader) as pool:
            grades = [grade.correct for grade in pool.grade(asked)]
    right = {pair for pair, good in zip(given, grades, strict=True) if good}
    return np.array(
        [
            [(int(item), answer) in right for answer, item in zip(row, items, strict=True)]
            for row, items in zip(answers, batch.items, strict=True)
        ]
    )


def concatenate(parts: Sequence[Papers]) -> Papers:
    """One stack of several."""
    arrays = [field.name for field in dataclasses.fields(Papers) if field.name != "answers"]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return Papers(**joined, answers=tuple(row for part in parts for row in part.answers))
