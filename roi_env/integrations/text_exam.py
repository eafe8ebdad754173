"""An exam as a conversation: what adapters for language models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roi_env.envs.single import ROIReasoningEnv
from roi_env.sources.source import Laws


class TextExam:
    """One exam at a time, told in words and taken by ``attempt(level)`` and ``skip()``; outcomes come from the family's tables.

    :param seed: identity's seed: with ``begin``'s numbers it names an exam, the same everywhere (also in `roi compare`).
    :param settings: of :class:`roi_env.envs.single.ROIReasoningEnv`.
    """

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        self.env = ROIReasoningEnv(**settings)
        self.seed, self.spec = seed, self.env.exam_spec
        self.levels = [tier.name for tier in self.spec.source.tiers]
        self.env.reset(seed=seed)  # a bad seed is said now
        self.done, self.score, self.spent, self.rational = True, 0.0, 0, 0.0
        self.position, self.legal = 0, [True]

    @property
    def budget(self) -> int:
        """Tokens for the whole exam."""
        return self.spec.budget

    @property
    def remaining(self) -> int:
        """Tokens left."""
        return self.budget - self.spent

    def begin(self, exam_id: int, replicate: int = 0) -> str:
        """Start an exam and tell it.

        :raises ValueError: for a number out of range.
        """
        _, info = self.env.reset(seed=self.seed, options={"exam_ids": exam_id, "replicates": replicate})
        self.done, self.score, self.spent, self.position, self.rational = False, 0.0, 0, 0, 0.0
        self.legal = [bool(one) for one in info["action_mask"]]
        return f"{exam_text(self.spec.num_tasks, self.budget, self.levels)}\n{self._task()}"

    def attempt(self, level: int) -> str:
        """Think about the task at a level (1 is the cheapest); tells the outcome and the next task.

        :raises ValueError: for a level that there is not, or an exam that is over.
        """
        if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= len(self.levels):
            raise ValueError(f"level must be a whole number from 1 to {len(self.levels)}, got {level!r}")
        return self._act(level)

    def skip(self) -> str:
        """Leave the task out; tells the next one.

        :raises ValueError: for an exam that is over.
        """
        return self._act(0)

    def _act(self, action: int) -> str:
        if self.done:
            raise ValueError("the exam is over")
        _, reward, self.done, _, info = self.env.step(action)
        self.spent += int(info["tokens"])
        self.score += reward
        self.position += 1
        self.legal = [bool(one) for one in info["action_mask"]]
        right = bool(info["correct"]) if self.spec.feedback == "cost+correct" else None
        told = outcome_text(action, int(info["tokens"]), bool(info["overspent"]), right)
        return f"{told} The exam is over." if self.done else f"{told}\n{self._task()}"

    def _task(self) -> str:
        group, source = self.env._groups[self.position], self.spec.source
        laws = source.beliefs if self.spec.beliefs == "published" else None
        return task_text(
            self.position, self.spec.num_tasks, self.remaining, group, laws, float(source.group_weight[group])
        )


def exam_text(num_tasks: int, budget: int, levels: Sequence[str]) -> str:
    """What is told of an exam at its beginning."""
    named = ", ".join(f"{number}={name}" for number, name in enumerate(levels, 1))
    return f"{num_tasks} tasks, {budget} tokens. Levels: {named}; or skip."


def outcome_text(action: int, tokens: int, overspent: bool, right: bool | None) -> str:
    """What is told of a decision.

    :param right: None: it is not told whether the answer was right.
    """
    told = f"{tokens} tokens" if action else "Skipped"
    if overspent:
        return f"{told}, the budget is gone."
    if action and right is not None:
        told += ", right" if right else ", wrong"
    return f"{told}."


def task_text(position: int, num_tasks: int, remaining: int, group: int, laws: Laws | None, weight: float = 1.0) -> str:
    """What is published of the task under way: by level, the chance of a right answer and the mean cost.

    :param laws: what is believed of the groups; None: nothing is published.
    """
    head = f"Task {position + 1}/{num_tasks}, {remaining} left"
    if weight != 1:
        head += f", worth {weight:g}"
    if laws is None:
        return f"{head}."
    chances, costs = laws.success_probability[group], laws.expected_cost[group]
    return (
        f"{head}. "
        + "; ".join(f"{k}: {p:.0%} {c:.0f}" for k, (p, c) in enumerate(zip(chances, costs, strict=True), 1))
        + "."
    )
