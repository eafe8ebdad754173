"""Prompts, tags and the strict parser: the only place that knows what a completion looks like.

A completion is ``thought </think> <answer> answer </answer>``; the prompt has opened the think block already. The parser
fails closed: whatever is not exactly that has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
END = "<|end|>"
"""Ends every turn."""
NUM_LEVELS = 4
"""Level-0, 1, 2 announce tiers, Level-3 the refusal."""
LEVEL_TAGS = tuple(f"<predicted_level>Level-{level}</predicted_level>" for level in range(NUM_LEVELS))
"""One token each in the small model's vocabulary."""
REFUSAL = r"\boxed{NA}"
"""The answer that goes with Level-3."""

_MARKER = re.compile(r"</?think>|</?answer>|</?predicted_level>|<\|\w*\|>")
_COMPLETION = re.compile(rf"(.*?){END_THINK}\s*{ANSWER}([^\n]*?){END_ANSWER}\s*(?:{re.escape(END)})?\s*", re.DOTALL)


def decision_prompt(question: str, remaining: int, tasks_left: int) -> str:
    """What a model is told before it announces a level: the question, then tokens and tasks left (this one included).

    The question comes first: its keys and values are computed once and serve every state in which it is asked.
    """
    return question + state_line(remaining, tasks_left)


def state_line(remaining: int, tasks_left: int) -> str:
    """What follows the question in :func:`decision_prompt`."""
    return f"\nTokens left: {remaining}. Tasks left: {tasks_left}."


AMPLE = (384, 1)
"""(tokens left, tasks left) where nothing is scarce: the level that a model announces there is what it thinks of a question.
Calibration is measured there, and kept there while exams teach what to do in scarcity."""


def exam_prompt(questions: Sequence[str], budget: int) -> str:
    """A whole exam in one prompt."""
    lines = [f"Tokens left: {budget}. Tasks left: {len(questions)}."]
    return "\n".join([*lines, *(f"Problem {number}: {text}" for number, text in enumerate(questions, 1))])


class Completion(NamedTuple):
    """What a completion says."""

    thought: str
    answer: str


def render(completion: Completion) -> str:
    """The text of a completion, without the end-of-turn token."""
    return f"{completion.thought}{END_THINK}{ANSWER}{completion.answer}{END_ANSWER}"


def parse(text: str) -> Completion | None:
    """Read a completion; None unless it has one closed think block and then one one-line answer, and nothing else.

    A think block opened in the text itself (servers repeat the prompt's) is allowed at its very start.
    """
    match = _COMPLETION.fullmatch(text.removeprefix(THINK))
    if match is None or any(_MARKER.search(part) for part in match.groups()):
        return None
    return Completion(match[1], match[2].strip())


def parse_level(text: str) -> int | None:
    """The announced level; None unless the text is exactly one tag."""
    return LEVEL_TAGS.index(text) if text in LEVEL_TAGS else None


def answer_of(text: str) -> str | None:
    """The answer of a completion, None where :func:`parse` finds none."""
    completion = parse(text)
    return None if completion is None else completion.answer
