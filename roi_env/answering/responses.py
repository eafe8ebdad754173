"""What a response says: its text, its thought, why it ended, and what must be charged for it.

Charged is never less than any part of the response implies, and a thought that is shown in several places counts once.
A response without an answer is an error, not an answer of 0 tokens. Fields that contradict one another are told in the
reply's note.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from roi_env.answering.backends import ERRORS, FINISHES, FREE, UNKNOWN, Backend, find
from roi_env.answering.base import Ask, Counted, Finish, Reply
from roi_env.answering.streams import MOST_TOKENS, exceeds

_DEAREST = 1e6
"""Dollars that no answer costs."""
_THOUGHT = re.compile(r"(redacted_)?(thinking|thought|reasoning|summary)")
_FIELDS_OF_THOUGHT = ("thinking", "reasoning", "reasoning_content", "content", "text")
"""Where a part that is a thought holds it."""
_URGENT: tuple[Finish, ...] = ("error", "refused", "length", "stop")
"""Where an endpoint gives several reasons, the first of these counts."""


class NothingGenerated(Exception):
    """The response is an error that says that nothing was generated, and asking again may help."""


@dataclass
class _Parts:
    """What the parts of a response hold."""

    answer: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    hidden: bool = False
    """Whether there is a thought that is not shown, or in summary alone."""

    def take(self, value: Any, thinks: bool = False) -> None:
        """Sort a text, a part or a list of parts."""
        if isinstance(value, str):
            (self.thought if thinks else self.answer).append(encodable(value))
        elif isinstance(value, list):
            for entry in value:
                self.take(entry, thinks)
        elif isinstance(value, dict):
            kind = str(value.get("type") or "").lower()
            thinks = thinks or _THOUGHT.match(kind) is not None or value.get("thought") is True
            names = _FIELDS_OF_THOUGHT if thinks else ("text", "content", "value")
            inside = next((value[name] for name in names if value.get(name)), None)
            if value.get("refusal"):
                self.refusal.append(encodable(str(value["refusal"])))
            elif inside is not None:
                self.hidden |= kind.endswith(("summary", "summary_text"))
                self.take(inside, thinks)
            elif thinks:
                self.hidden = True
                self.take(value.get("summary"), thinks)
            elif not any(name in value for name in names):
                self.other.append(kind or next(iter(value), "an empty part"))
        elif value is not None:
            self.other.append(type(value).__name__)


@dataclass
class _Usage:
    """What the counts of a response imply.

    :param tokens: generated; None: unknown.
    :param split: of them for the thought; None: unknown, or contradicted.
    :param thought: tokens that the thought took by any count.
    :param floor: the most that a single count shows, where ``tokens`` is unknown.
    """

    tokens: int | None
    split: int | None
    thought: int
    floor: int
    prompt: int | None
    usd: float | None


@dataclass
class _Shown:
    """What a response shows.

    :param raw: the text as it came.
    :param block: a think block at its beginning.
    :param text: what follows it.
    :param thoughts: every thought once.
    :param other: kinds of parts that are no text.
    :param summary: whether the thought is hidden or summarised.
    """

    raw: str
    block: str | None
    text: str
    thoughts: list[str]
    refusal: str
    other: list[str]
    summary: bool

    @property
    def reasoning(self) -> str | None:
        """The thought."""
        return "\n".join(self.thoughts) or None

    @property
    def opened(self) -> bool:
        """Whether the prompt opened the block."""
        return self.block is not None and not self.raw.lstrip().startswith("<think>")

    @property
    def nothing(self) -> bool:
        """Whether there is no text of any kind."""
        return not (self.text.strip() or self.thoughts or self.refusal)


def read(
    backend: Backend,
    ask: Ask,
    data: Any,
    *,
    asked: str,
    count: Callable[[str], int] | None = None,
    told: int = 0,
    pieces: int = 0,
) -> Reply:
    """The reply that a response with status 200 is.

    :param asked: the text that was asked last.
    :param count: text -> tokens.
    :param told: the most tokens that its chunks told, where it is a stream.
    :param pieces: chunks that held something.
    :raises NothingGenerated: see there.
    """
    notes: list[str] = []
    shown = _show(backend, data, notes)
    reason, finish = _finish(backend, data)
    if backend.echoes_prompt and shown.thoughts and is_echo(shown.text, asked, cut=finish == "length"):
        shown.raw = shown.text = ""
    usage = _usage(backend, data, shown, notes)
    tokens = usage.tokens
    if tokens == 0 and not shown.nothing:
        tokens = None
        notes.append("its usage says 0 tokens beside a text")
    # A text that repeats its prompt cannot be counted.
    echoes = bool(ask.fields.get("echo"))
    mine = 0 if count is None or shown.nothing or echoes else _seen(shown, usage.thought, count)
    offered = bool(ask.fields.get("tools") or ask.fields.get("functions"))
    countable = ask.choices == 1 and not shown.other  # only the first answer's text is looked at

    error, status = _error(backend, data)
    if error is None and finish == "error":
        error = f"it ended with {reason!r}"
    blocked = any(find(data, path) for path in backend.blocked)
    if error is None and (shown.refusal or blocked):
        finish = "refused"
        if shown.refusal:
            notes.append(f"refusal: {shown.refusal}")
        elif tokens is None and not _holder(backend, data):
            tokens = 0
    elif error is None and not _holder(backend, data) and (finish not in ("length", "refused") or tokens is None):
        error = "the answer cannot be read: it has none of the expected fields"
    elif error is None and finish is None:
        at_cap = tokens is not None and tokens >= ask.most
        if shown.text.strip() or (offered and shown.other) or (at_cap and reason is None):
            finish = "length" if at_cap or reason == "incomplete" else "stop"
            notes.append(f"unknown finish reason {reason!r}" if reason else "no finish reason")
        else:
            error = f"no text, and it ended with {reason!r}" if reason else "no text, and no reason why it ended"
    if error is None and finish != "refused" and not shown.text.strip():
        if shown.other and not offered:
            error = f"no text but {', '.join(shown.other)}"
        elif tokens == 0 and not shown.other:
            error = "no text, and its usage says that nothing was generated"

    lost = False
    if error is not None:
        if shown.nothing and not tokens:
            if not usage.floor and (status in FREE or (status in UNKNOWN and tokens == 0)):
                raise NothingGenerated(error)
            if tokens is None and status is not None and status < 500 and status not in UNKNOWN:
                tokens = usage.floor
        lost = tokens is None
    counted: Counted = "server"
    if tokens is None:
        whole = not shown.summary if shown.thoughts or shown.summary else ask.tier.thinking == 0
        if not lost and mine and countable and (whole or usage.thought) and finish != "length":
            # The end of the turn is generated too, where the cap left room for it.
            tokens, counted = max(mine, min(mine + 1, ask.cap)), "tokenizer"
        else:
            tokens = max(ask.most, mine, usage.floor, told)
            counted = "reserved" if lost or tokens == ask.most else "tokenizer" if tokens == mine else "server"
    elif exceeds(shows := max(mine, 0 if echoes else pieces), max(tokens, told)):
        notes.append(f"its usage is smaller than the text ({tokens} tokens instead of {shows})")
        tokens, counted = shows, "tokenizer"
    elif told > tokens:
        notes.append(f"its usage is smaller than its stream told ({tokens} tokens instead of {told})")
        tokens = told
    if tokens == 0:
        counted = "nothing"
    note = "; ".join(notes) or None
    reply = Reply(
        "", None, tokens, None, "error", counted, error, lost, prompt_tokens=usage.prompt, usd=usage.usd, note=note
    )
    if error is not None:
        return reply
    assert finish is not None
    return replace(
        reply,
        text=shown.text,
        reasoning=shown.reasoning,
        reasoning_tokens=usage.split,
        finish=finish,
        opened=shown.opened,
    )


def in_parts(content: Any) -> tuple[str, str]:
    """(text, thought) of a content that is no text: a list of parts, or one."""
    said = _Parts()
    said.take(content)
    return "".join(said.answer), "".join(said.thought)


def encodable(text: str) -> str:
    """The text without halves of characters: JSON can hold them, but no tokenizer, terminal or table."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def generated(backend: Backend, body: bytes) -> int:
    """Tokens that the body of a failed request says were generated; 0 where it does not say."""
    try:
        data = json.loads(body)
        usage = _usage(backend, data, _show(backend, data, []), [])
    except (ValueError, RecursionError):
        return 0
    return usage.tokens or usage.floor


def _holder(backend: Backend, data: Any) -> bool:
    """Whether the response has what holds an answer."""
    kinds = (dict, list, str) if backend.answer in backend.text else (dict, list)
    return any(isinstance(value, kinds) for value in find(data, backend.answer))


def _show(backend: Backend, data: Any, notes: list[str]) -> _Shown:
    """What the response shows; ``notes`` gets what contradicts."""
    said = _Parts()
    for path in backend.text:
        for value in find(data, path):
            said.take(value)
    places = ["".join(said.thought)]  # the thought, by the place that shows it
    for path in backend.reasoning:
        there = _Parts()
        for value in find(data, path):
            there.take(value, thinks=True)
        places.append("".join(there.thought))
        said.hidden |= there.hidden
    said.refusal += [encodable(str(value)) for path in backend.refusal for value in find(data, path) if value]
    said.other += [path.rpartition(".")[2] for path in backend.other if any(find(data, path))]
    raw, other = "".join(said.answer), list(dict.fromkeys(said.other))
    block, text = _split(raw)
    thoughts = _once([*places, block or ""])
    if len(thoughts) > 1:
        notes.append("its fields show different thoughts, all of them count")
    if other and text.strip():
        notes.append(f"parts that are no text were left out ({', '.join(other)})")
    summary = said.hidden or (backend.summarises and bool(thoughts))
    return _Shown(raw, block, text, thoughts, "".join(said.refusal), other, summary)


def _seen(shown: _Shown, thought: int, count: Callable[[str], int]) -> int:
    """Tokens that what is shown must have taken; a summary is not what was generated.

    :param thought: tokens of the thought by any count.
    """
    outside = 0 if shown.summary else sum(count(text) for text in shown.thoughts if text != shown.block)
    inside = count(shown.block) if shown.block in shown.thoughts else 0
    # The block as it came has its marks; its parts may have more tokens than the whole.
    text = max(count(shown.raw), inside + count(shown.text)) if inside else count(shown.text)
    return text + count(shown.refusal) + max(outside, thought - inside)


def _split(text: str) -> tuple[str | None, str]:
    """A think block that begins the text (its opening may be the prompt's), and what follows it; one that never ends is
    all there is."""
    head, closed, rest = text.partition("</think>")
    opened = head.lstrip().startswith("<think>")
    if opened or (closed and "<think>" not in head):
        return head.lstrip().removeprefix("<think>"), rest
    return None, text


def _once(thoughts: Sequence[str]) -> list[str]:
    """Thoughts without those that another one holds; spaces do not matter."""
    bare = ["".join(thought.split()) for thought in thoughts]
    return [
        thought
        for place, thought in enumerate(thoughts)
        if bare[place]
        and not any(
            bare[place] in other and (bare[place] != other or before < place)
            for before, other in enumerate(bare)
            if before != place
        )
    ]


def is_echo(text: str, asked: str, *, cut: bool) -> bool:
    """Whether the text is the prompt: with the roles that a chat template writes around it or, in a cut answer, bare."""
    if not asked.strip():
        return False
    before, found, after = text.partition(asked)
    roles = "user" in before and re.search("assistant|model", after) is not None
    return bool(found) and (roles or (cut and not before.strip() and not after.strip()))


def _number(value: Any) -> float | None:
    """A finite number, perhaps written as a text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _counts(data: Any, paths: Sequence[str], notes: list[str]) -> list[int]:
    """The counts of tokens at some paths; what is none is left out, with a note."""
    found = []
    for path in paths:
        for value in find(data, path):
            number = _number(value)
            if number is None or not 0 <= number <= MOST_TOKENS:
                notes.append(f"{path.rpartition('.')[2]} is no count of tokens ({str(value)[:20]})")
            else:
                found.append(math.ceil(number))
    return found


def _usage(backend: Backend, data: Any, shown: _Shown, notes: list[str]) -> _Usage:
    """What the counts imply; ``notes`` gets what contradicts."""
    problems = len(notes)
    parts = _counts(data, backend.output, notes)
    tokens = sum(parts) if parts and len(notes) == problems else None
    prompt = max(_counts(data, backend.prompt, notes), default=None)
    splits = _counts(data, backend.split, notes)
    thought = max(splits, default=0)
    split = thought if splits else None
    if tokens is not None and thought and shown.text.strip() and not any(_counts(data, backend.output[:1], [])):
        notes.append("the usage counts the thought alone, beside a text")
        tokens = None
    least = _counts(data, backend.least, notes)
    if tokens is None:
        tokens = max(least, default=None)
    total = max(_counts(data, backend.total, notes), default=None)
    lengths = [len(value) for path in backend.listed for value in find(data, path) if isinstance(value, list)]
    listed = max(lengths, default=0)

    if total is not None and prompt is not None:
        rest = total - prompt - sum(_counts(data, backend.unspoken, notes))
        if len(parts) > 1 and tokens is not None and thought <= parts[0] == rest < tokens:
            tokens = rest
            notes.append("the thought is part of both counts of the usage, and counts once")
        elif rest < 0 or (tokens is not None and rest < tokens):
            notes.append(f"total tokens are fewer than prompt and answer ({total} in all, {prompt} of the prompt)")
        if rest >= 0:
            least.append(rest)
    if tokens is not None and thought > tokens:
        notes.append(f"the usage leaves the thought out of the answer ({tokens} tokens, {thought} of thought)")
        tokens += thought
    more = max(least, default=None)
    if tokens is None:
        tokens = more if more is None else max(more, thought)
    elif more is not None and more > tokens:
        notes.append(f"the usage says fewer tokens than its total ({tokens} instead of {more})")
        tokens = more
    if tokens is not None and listed > tokens:
        notes.append(f"the usage says fewer tokens than are listed ({tokens} instead of {listed})")
        tokens = listed
    if shown.text.strip() and split is not None and tokens is not None and split >= tokens > 0:
        notes.append(f"the usage leaves no tokens for the text ({split} of {tokens} are thought)")
        split = None
    if shown.thoughts and split == 0:
        notes.append("the usage says 0 tokens of thought beside a thought")
        split = None
    price = next((value for path in backend.usd for value in find(data, path)), None)
    usd = _number(price)
    if price is not None and (usd is None or not 0 <= usd < _DEAREST):
        notes.append(f"{str(price)[:20]} is no price")
        usd = None
    if prompt is not None:
        prompt += sum(_counts(data, backend.unspoken, []))  # of a cache, or of tools' results: it is read and charged
    return _Usage(tokens, split, thought, max(thought, sum(parts), listed), prompt, usd)


def _finish(backend: Backend, data: Any) -> tuple[str | None, Finish | None]:
    """Why it ended, in the endpoint's words and in ours; None: it does not say, or the word is not known."""
    reasons = [str(value) for path in backend.finish for value in find(data, path) if value != ""]
    known = [(reason, FINISHES[reason.lower()]) for reason in reasons if reason.lower() in FINISHES]
    if known:
        return min(known, key=lambda pair: _URGENT.index(pair[1]))
    return (reasons[0] if reasons else None), None


def _error(backend: Backend, data: Any) -> tuple[str | None, int | None]:
    """Message and status of an error in the response."""
    found = [*find(data, "error"), *find(data, "choices.0.error")]
    if not _holder(backend, data) and not any(find(data, path) for path in backend.blocked) and isinstance(data, dict):
        found.append(data)  # the error itself is what came
    for error in found:
        fields = error if isinstance(error, dict) else {"message": error if error not in (False, 0) else None}
        if not any(fields.values()):
            continue
        message = next((fields[name] for name in ("message", "detail", "msg") if fields.get(name)), None)
        words = [fields[name] for name in ("code", "status", "type") if fields.get(name)]
        status = next((known for word in words if (known := _status(word)) is not None), None)
        if error is not data or message or status is not None:
            return str(message or ", ".join(map(str, words)) or "an error without a message"), status
    return None, None


def _status(word: Any) -> int | None:
    number = _number(word)
    if number is not None:
        return int(number) if 400 <= number < 600 else None
    return next((status for pattern, status in ERRORS if re.search(pattern, str(word).lower())), None)
