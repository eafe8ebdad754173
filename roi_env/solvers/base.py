"""The protocol of a solver: questions, tiers as thinking caps, requests and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class Question:
    """What is asked.

    :param dataset: its collection; with ``question_id`` it names the question.
    :param question_id: name inside the collection.
    :param text: the question as the solver gets it.
    :param answer: reference answer.
    :param extra: further columns of a table.
    """

    dataset: str
    question_id: str
    text: str
    answer: str
    extra: Mapping[str, int | str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ThinkingTier:
    """A reasoning tier with budget forcing: thinking is cut after ``thinking`` tokens and an answer is forced.

    :param name: of the tier.
    :param thinking: tokens of the think block, its end included where the model writes it; 0: answer at once.
    :param answer: most tokens after the think block.
    """

    name: str
    thinking: int
    answer: int

    def __post_init__(self) -> None:
        if self.thinking < 0 or self.answer < 1:
            raise ValueError(f"tier {self.name!r} needs thinking >= 0 and answer >= 1 tokens")

    @property
    def most_tokens(self) -> int:
        """Most tokens that a generation can cost: a cut think block costs its cap and the forced end."""
        return self.thinking + self.answer + (self.thinking > 0)


class Request(NamedTuple):
    """One generation: ``sample`` numbers repetitions, the same number may share its thought between tiers."""

    question: Question
    tier: ThinkingTier
    sample: int


class Generation(NamedTuple):
    """One answer.

    ``text``: all that follows the opened think block, a forced end of it included; ``tokens``: cost, reasoning and forced
    end included, prompt excluded; ``cut``: whether thinking was cut at the tier's cap.
    """

    text: str
    tokens: int
    cut: bool


class Solver(Protocol):
    """Generates answers. ``paired``: whether requests of equal question and sample share one thought."""

    name: str
    paired: bool

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One generation for each request, in their order."""
        ...


class Checker(Protocol):
    """Judges a generation."""

    def __call__(self, question: Question, text: str) -> bool:
        """Whether the text answers the question; text that cannot be read is wrong, never an error."""
        ...
