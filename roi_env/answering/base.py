"""The protocols of solvers: questions, tiers as thinking caps, requests and what comes back.

Two protocols. :class:`Solver` generates in batches and shares one thought between tiers: a model in this process, for
recording. :class:`LiveSolver` answers one question under one token cap, many at a time: an endpoint, or a local model
behind :class:`roi_env.answering.local.LocalLive`. What went wrong is a value of the reply, never an exception: whoever
keeps a budget must settle every request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

Finish = Literal["stop", "length", "refused", "error"]
"""Why a reply ended: by itself, at a cap, refused by the endpoint's filter, or it did not come about."""

Counted = Literal["server", "tokenizer", "reserved", "nothing"]
"""Where the tokens of a reply come from: the endpoint's usage (the largest number that its fields imply); our count of
the text, where usage is missing or smaller than the text; the reservation, where neither is known; nothing was
generated."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    :param dataset: its collection; with ``question_id`` it names the question.
    :param question_id: name inside the collection.
    :param text: the question as the solver gets it.
    :param answer: reference answer.
    :param extra: further columns of a table.
    :param line: where it stands in its file or source, from 1; 0: it has none.
    """

    dataset: str
    question_id: str
    text: str
    answer: str
    extra: Mapping[str, int | str] = field(default_factory=dict, hash=False)
    line: int = field(default=0, compare=False)


SKIP = "skip"
"""What becomes of a question that is not asked, where tiers are told by name: no tier is called so."""

REASONING = "(reasoning)"
"""What a reasoning that serves all tiers is called among them; no tier is called so."""


@dataclass(frozen=True)
class ThinkingTier:
    """A reasoning tier with budget forcing: thinking is cut after ``thinking`` tokens and an answer is forced.

    :param name: of the tier.
    :param thinking: tokens of the think block, its end included where the model writes it; 0: answer at once.
    :param answer: most tokens after the think block.
    :param effort: for endpoints that know efforts instead of numbers; None: by the backend's ladder.
    """

    name: str
    thinking: int
    answer: int
    effort: str | None = None

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
    end included, prompt excluded; ``cut``: whether thinking was cut at the tier's cap; ``reasoning``: a thought in which
    the model ended its turn, which is no answer (``text`` is empty then), else None.
    """

    text: str
    tokens: int
    cut: bool
    reasoning: str | None = None


class Solver(Protocol):
    """Generates answers. ``paired``: whether requests of equal question and sample share one thought."""

    name: str
    paired: bool

    def finished(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Generation]]]:
        """Generations and the numbers of their requests, as they are finished: all of a question's sample together."""
        ...


class Message(NamedTuple):
    """One turn of a conversation.

    :param text: of it, also where it is more than a text.
    :param name: tells participants of one role apart.
    :param whole: the turn as a chat completion writes it (calls of tools, images, ...), for backends that speak these; it
        is passed on as it is. None: role, text and name are all.
    """

    role: str
    text: str
    name: str | None = None
    whole: Mapping[str, Any] | None = None


IMAGES = ("image_url", "input_image", "image")
"""Kinds of parts of a message that are images."""
Sink = Callable[[str, Mapping[str, Any]], Awaitable[None]]
"""Takes one chunk of an answer as it comes: its text as the endpoint sent it, and the same as JSON."""


Meter = Callable[[int, int], Awaitable[bool]]
"""Told how many tokens an answer has taken, and how many more may come before the endpoint can be stopped; says whether it
may go on."""


class Ask(NamedTuple):
    """One live request.

    :param cap: most tokens of one answer, thought included.
    :param messages: a conversation to continue instead of the question's text.
    :param prompt: texts (or tokens) to be completed as they are, without roles, instead of the question's text: what a
        text completion calls ``prompt``.
    :param choices: answers to be generated, each under its own cap.
    :param sink: takes the chunks while they come, where the endpoint streams; None: the answer is wanted whole.
    :param fields: fields of a chat completion, by their names there, that this request sets beside its cap (``stop``,
        ``seed``, ...); they replace the solver's own.
    :param wanted: whether somebody still waits for the answer; where nobody does, nothing more is sent.
    :param meter: asked while the answer comes, where the endpoint's stream counts; None: all of the cap is reserved.
    :param continues: whether the last message is the beginning of the answer, to be gone on with.
    :param held: awaited before anything is sent, while the connection is made; what it raises is raised, and marked unsent.
    """

    question: Question
    tier: ThinkingTier
    cap: int
    sample: int = 0
    messages: tuple[Message, ...] | None = None
    fields: Mapping[str, Any] = {}
    wanted: Callable[[], bool] = lambda: True
    prompt: str | Sequence[Any] | None = None
    choices: int = 1
    sink: Sink | None = None
    meter: Meter | None = None
    continues: bool = False
    held: Callable[[], Awaitable[None]] | None = None

    @property
    def most(self) -> int:
        """Most tokens that may be generated in all: the reservation."""
        return self.cap * self.choices


@dataclass(frozen=True)
class Failure:
    """An error as an endpoint told it, without credentials.

    :param status: of HTTP; None: no answer came.
    :param message: in the endpoint's own words.
    :param code: its name of the error.
    :param param: the field of the request that it blames.
    :param again: whether nothing was generated and asking again may help.
    """

    status: int | None
    message: str
    code: str | None = None
    param: str | None = None
    again: bool = False


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    :param text: what follows the thought.
    :param reasoning: the thought, where the endpoint shows it.
    :param tokens: to charge: thought and answer, prompt excluded. More than the cap where the endpoint overshot it.
    :param reasoning_tokens: of them for the thought; None where unknown.
    :param finish: why it ended.
    :param counted: where ``tokens`` comes from.
    :param error: what went wrong, without credentials; None where an answer came.
    :param lost: whether it is unknown what the endpoint generated (then ``tokens`` is the reservation).
    :param attempts: requests sent, free retries included.
    :param prompt_tokens: tokens of the prompt, where known; charged by budgets in dollars alone.
    :param seconds: from the first request to the end.
    :param usd: what the endpoint says it cost.
    :param note: what contradicts in the endpoint's answer, and the text of a refusal; None: nothing.
    :param opened: whether the prompt opened the think block that the text ends.
    :param unreachable: whether the endpoint was not there (no connection, or it broke down), or takes nothing of ours (its
        address, our key or our account is wrong): the question stays to be asked.
    :param retry_in: nothing was generated, and asking again may help after so many seconds: the endpoint asked to wait
        longer than allowed, or the request was stopped before it was sent. None: otherwise.
    :param failure: the error in detail, where an endpoint told one; kept in no journal, like the following.
    :param model: as the endpoint calls who answered.
    :param whole: the response as it came; chunks of a stream are put together.
    """

    text: str
    reasoning: str | None
    tokens: int
    reasoning_tokens: int | None
    finish: Finish
    counted: Counted
    error: str | None = None
    lost: bool = False
    attempts: int = 1
    prompt_tokens: int | None = None
    seconds: float = 0.0
    usd: float | None = None
    note: str | None = None
    opened: bool = False
    unreachable: bool = False
    retry_in: float | None = None
    failure: Failure | None = None
    model: str | None = None
    whole: Any = None

    @property
    def untaken(self) -> bool:
        """Whether the endpoint took nothing, as it was not there or asked to wait: the question stays to be asked."""
        return self.retry_in is not None or (self.unreachable and not self.lost and self.tokens == 0)

    @property
    def full_text(self) -> str:
        """Thought and answer."""
        return self.text if not self.reasoning else f"{self.reasoning}</think>{self.text}"


class LiveSolver(Protocol):
    """Answers single questions, many at a time.

    One whose answers tell what they have taken while they come (:attr:`Ask.meter`) may have ``lead: int | None``, the tokens
    that one may take before it can be stopped; None: not known yet.
    """

    name: str

    async def answer(self, ask: Ask) -> Reply:
        """Answer within the cap; waits while too many requests are in flight. Errors are values of the reply.

        A cancellation is passed on; where nothing had been sent it is marked by :func:`mark_unsent`.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...


def mark_unsent(error: BaseException, unsent: bool = True) -> None:
    """Say of what interrupts a request whether nothing was sent, so that nothing was generated."""
    error.unsent = unsent  # type: ignore[attr-defined]


def is_unsent(error: BaseException) -> bool:
    """Whether what interrupted a request came before anything was sent."""
    return getattr(error, "unsent", False)


def unsent_reply() -> Reply:
    """The reply of a request that was stopped before it was sent."""
    return Reply("", None, 0, None, "error", "nothing", "stopped before it was sent", attempts=0, retry_in=0.0)


class Checker(Protocol):
    """Judges a generation."""

    def __call__(self, question: Question, text: str) -> bool:
        """Whether the text answers the question; text that cannot be read is wrong, never an error."""
        ...
