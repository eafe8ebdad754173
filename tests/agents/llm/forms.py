"""What is written where, in its simplest form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from agents.llm.prompts import Segment, Tagged, render_tagged, state_line


def decision_prompt(question: str, remaining: int, tasks_left: int) -> str:
    """What a model reads before it announces a level."""
    return question + state_line(remaining, tasks_left)


def render_exam(parts: Sequence[Tagged]) -> str:
    """The transcript of an exam, without the end-of-turn token: nothing between two problems, as every token costs."""
    return "".join(map(render_tagged, parts))


def segments(ids: Sequence[int], tags: Sequence[int], problems: int) -> list[Segment]:
    """Tokens of each problem where every tag is one token."""
    starts = [place for place, token in enumerate(ids) if token in set(tags)][:problems]
    edges = [0, *starts[1:], len(ids)] if starts else [0, len(ids)]
    edges += [len(ids)] * (problems + 1 - len(edges))
    return [Segment(start, stop) for start, stop in pairwise(edges)]
