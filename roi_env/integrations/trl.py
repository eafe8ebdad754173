"""TRL: exams for ``GRPOTrainer(environment_factory=...)``: the model calls the tools ``attempt(level)`` and ``skip()``.

Tools see no token counts, so the model chooses levels and the outcomes come from tables. A group of rollouts has its row's
exam in common, with the same outcomes: its rewards differ by the decisions alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from roi_env.integrations.text_exam import TextExam


class Taken(Protocol):
    """What takes decisions: an exam here, or at an OpenEnv server (:class:`roi_env.integrations.openenv.Exam`)."""

    @property
    def score(self) -> float:
        """Right answers so far, weighted."""
        ...

    def begin(self, exam_id: int, replicate: int = 0) -> str:
        """Start an exam and tell it."""
        ...

    def attempt(self, level: int) -> str:
        """Think about the task under way."""
        ...

    def skip(self) -> str:
        """Leave it out."""
        ...


class ExamTools:
    """One rollout's exam; its reward is the score.

    :param exam: what is taken.
    """

    def __init__(self, exam: Taken) -> None:
        self._exam = exam

    def reset(self, exam_id: int, replicate: int = 0, **_: Any) -> str:
        """Begin the exam of a row; what it tells is added to the row's prompt.

        :param exam_id: column of the data set.
        :param replicate: column; redraws the outcomes.
        """
        return self._exam.begin(int(exam_id), int(replicate))

    def attempt(self, level: int) -> str:
        """Think about the task under way at a level.

        Args:
            level: 1 for the cheapest, dearer ones are right more often.

        Returns:
            What it cost, and the next task.
        """
        return self._exam.attempt(level)

    def skip(self) -> str:
        """Leave the task under way out, which costs nothing.

        Returns:
            The next task.
        """
        return self._exam.skip()

    def get_reward(self) -> float:
        """The score so far."""
        return self._exam.score


def exam_tools(seed: int = 0, **settings: Any) -> Callable[[], ExamTools]:
    """An ``environment_factory``.

    :param seed: names the exams together with their numbers.
    :param settings: of :class:`roi_env.envs.single.ROIReasoningEnv`.
    :raises ValueError: for settings out of range, now.
    """
    TextExam(seed, **settings)
    return lambda: ExamTools(TextExam(seed, **settings))


def exam_rows(count: int, start: int = 0, prompt: str = "") -> list[dict[str, Any]]:
    """Rows of a data set: exams ``start .. start + count - 1``.

    :param prompt: what comes before an exam's own words.
    """
    return [{"prompt": [{"role": "user", "content": prompt}], "exam_id": start + number} for number in range(count)]


def example_conversations(exam: TextExam, count: int, start: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Exams taken with legal decisions at random, as conversations: they teach a model the form of the calls alone.

    :param start: the first exam's number.
    """
    rng, made = np.random.default_rng(seed), []
    for number in range(start, start + count):
        turns: list[dict[str, Any]] = [{"role": "user", "content": exam.begin(number)}]
        while not exam.done:
            action = int(rng.choice(np.flatnonzero(exam.legal)))
            name, arguments = ("attempt", {"level": action}) if action else ("skip", {})
            call = {"type": "function", "function": {"name": name, "arguments": arguments}}
            turns.append({"role": "assistant", "content": "", "tool_calls": [call]})
            turns.append({"role": "tool", "name": name, "content": exam.attempt(action) if action else exam.skip()})
        turns.append({"role": "assistant", "content": "", "tool_calls": []})
        made.append({"messages": turns})
    return made
