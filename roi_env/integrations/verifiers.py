"""verifiers v1: exams of real questions as a taskset and an environment, under a budget of generated tokens.

A task is an exam: its questions are put one by one in one conversation, each with what is left. Before every turn what is
left of the budget becomes the call's cap; after it ``trace.num_output_tokens`` says what the answer cost. An answer that is
cut by the budget earns nothing, and the exam ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import verifiers.v1 as vf
from pydantic import Field

from roi_env.answering.base import Question
from roi_env.answering.grading import load_grader
from roi_env.sources.outcome_tables import OutcomeTable, Split
from roi_env.sources.packaged import TINYLM

__all__ = ["ROIExamEnv", "ROIExamTaskset"]

_LEVEL = re.compile(r"<predicted_level>Level-([0-9]+)</predicted_level>")
INSTRUCTIONS = (
    "You take an exam of {tasks} questions under one budget of {budget} tokens for all your answers. Begin each answer with "
    "<predicted_level>Level-k</predicted_level>, k from 0 (a short thought) to {most} (a long one), then think and answer; "
    "or write <predicted_level>Level-{refuse}</predicted_level> alone to skip the question. What you write beyond the budget "
    "earns nothing."
)


class ROIExamConfig(vf.TasksetConfig):
    """Which exams there are."""

    table: str = str(TINYLM)
    """Recorded outcomes with the columns question and answer; their split's questions are asked."""
    split: Split = "test"
    num_exams: int = Field(20, ge=1)
    num_tasks: int = Field(5, ge=1)
    budget: int = Field(300, ge=1)
    """Generated tokens of a whole exam."""
    seed: int = Field(0, ge=0)
    grader: str = "exact"
    """A name of roi_env.answering.grading, or module:function."""
    instructions: str = INSTRUCTIONS
    """The system prompt; empty: none."""
    asking: str = "{question}\nTokens left: {remaining}. Tasks left: {left}."
    """How a question is put."""


class ROIExamData(vf.TaskData):
    """One exam: its questions in their order, the budget, and what its levels mean.

    :param level_edges: most tokens of each level but the last, with which an answer still has the level that it announces.
    """

    questions: list[str]
    answers: list[str]
    datasets: list[str]
    budget: int
    level_edges: list[int]
    grader: str
    asking: str


class ROIExamTask(vf.Task[ROIExamData, vf.State, vf.TaskConfig]):
    """An exam."""


class ROIExamTaskset(vf.Taskset[ROIExamTask, ROIExamConfig]):
    """Exams whose questions are drawn without repetition within an exam."""

    def load(self) -> Iterator[ROIExamTask]:
        """Build the exams.

        :raises ValueError: where the table has no questions, answers or level edges, or too few questions.
        """
        config = self.config
        load_grader(config.grader)  # what there is not is said now
        try:
            config.asking.format(question="", remaining=0, left=0)
            config.instructions.format(tasks=0, budget=0, most=0, refuse=0)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"asking, instructions: there is no {error} to put in") from error
        table = OutcomeTable.read(config.table)
        if absent := {"question", "answer"} - set(table.rows.column_names):
            raise ValueError(f"{config.table} has no column {sorted(absent)[0]!r}: record it with its questions' texts")
        rows = {row["question_id"]: row for row in table.split(config.split).rows.to_pylist()}
        if len(rows) < config.num_tasks:
            raise ValueError(
                f"{config.table} has {len(rows)} questions in its split {config.split}, an exam takes more"
            )
        names, edges = sorted(rows), _edges(table)
        for number in range(config.num_exams):
            rng = np.random.default_rng((config.seed, number))
            drawn = [rows[names[one]] for one in rng.choice(len(names), config.num_tasks, replace=False)]
            told = config.instructions.format(
                tasks=config.num_tasks, budget=config.budget, most=len(edges), refuse=len(edges) + 1
            )
            data = ROIExamData(
                name=f"exam-{config.seed}-{number}", prompt=None, system_prompt=told or None, level_edges=edges,
                questions=[str(row["question"]) for row in drawn], answers=[str(row["answer"]) for row in drawn],
                datasets=[str(row["dataset"]) for row in drawn], budget=config.budget, grader=config.grader, asking=config.asking,
            )  # fmt: skip
            yield ROIExamTask(data, config.task)


def _edges(table: OutcomeTable) -> list[int]:
    """Upper ends of all levels but the last: the table's, or each tier's mean cost."""
    menu = table.menus[0]
    if named := table.level_edges.get(menu):
        return [int(named[tier]) for tier in table.tier_names(menu)[:-1]]
    tokens, (codes, tiers) = table.numbers("tokens"), table.codes("tier")
    means = {name: float(tokens[codes == code].mean()) for code, name in enumerate(tiers)}
    return [round(means[tier]) for tier in table.tier_names(menu)[:-1]]


class ROIExamEnvConfig(vf.EnvConfig):
    """Who takes the exams."""

    player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime=vf.SubprocessConfig())


class ROIExamEnv(vf.Env[ROIExamEnvConfig]):
    """Puts the questions and keeps the budget. Rewards: ``score``, the share of right answers, and, with weight 0,
    ``rational``, the share of right answers with the announced level; metrics: ``spent``, ``overspent``, ``asked``."""

    async def run(self, task: Any, agents: Any) -> None:
        """One exam."""
        data, player = task.data, agents.player
        own = player.ctx.sampling.max_tokens
        exam = _Books(data)
        async with player.interaction(task) as interaction:
            for number, question in enumerate(data.questions):
                left = len(data.questions) - number
                player.ctx.sampling.max_tokens = min(own or exam.remaining, exam.remaining)
                put = data.asking.format(question=question, remaining=exam.remaining, left=left)
                segment = await interaction.turn(put)
                if segment.terminated:
                    break
                await exam.take(number, segment.last_reply or "", interaction.trace.num_output_tokens)
                if exam.remaining <= 0:
                    break
        trace = interaction.trace
        trace.record_reward("score", sum(exam.right) / len(data.questions), 1.0)
        trace.record_reward("rational", sum(exam.rational) / len(data.questions), 0.0)
        trace.record_metrics({"spent": exam.spent, "overspent": exam.overspent, "asked": len(exam.right)})
        trace.info["exam"] = {"costs": exam.costs, "right": exam.right, "rational": exam.rational}


class _Books:
    """What an exam's answers cost and earned; tokens."""

    def __init__(self, data: ROIExamData) -> None:
        self.data = data
        self.costs: list[int] = []
        self.right: list[bool] = []
        self.rational: list[bool] = []
        self.overspent = False

    @property
    def spent(self) -> int:
        return sum(self.costs)

    @property
    def remaining(self) -> int:
        return self.data.budget - self.spent

    async def take(self, number: int, text: str, generated: int) -> None:
        """An answer came; ``generated``: tokens of the conversation so far."""
        before, data = self.remaining, self.data
        self.costs.append(generated - self.spent)
        announced = _LEVEL.search(text)
        refused = announced is not None and int(announced[1]) > len(data.level_edges)
        question = Question(
            data.datasets[number], f"{data.name}-{number}", data.questions[number], data.answers[number]
        )
        told = _LEVEL.sub("", text)
        grade: Callable[[Question, str], bool | float] = load_grader(data.grader)
        right = not refused and await asyncio.to_thread(grade, question, told) >= 1
        # A cost equal to what was left is allowed, unless it is a cap that cut the answer: then there is none to be right.
        self.overspent = self.costs[-1] > before
        self.right.append(right and not self.overspent)
        level = _level(data.level_edges, self.costs[-1])
        self.rational.append(self.right[-1] and announced is not None and int(announced[1]) == level)


def _level(edges: Sequence[int], tokens: int) -> int:
    """The level of a cost: 0 up to the first edge."""
    return int(np.searchsorted(np.asarray(edges), tokens))
