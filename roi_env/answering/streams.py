"""Answers that come in chunks: server-sent events, and the whole answer that chunks of a chat completion make."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

from roi_env.answering.backends import Backend, find

_NAMES = frozenset({"id", "type", "role", "name", "object", "format"})
"""Texts that a later chunk replaces; all others grow."""

MOST_TOKENS = 2**31 - 1
"""Tokens above which a count is none: tables store no larger ones."""
MOST_EVENT = 8 * 2**20
"""Bytes of one event; a longer one is none."""
_LINE = 50
"""Bytes that a line takes beside its own."""
_TOLERANCE = 8
"""Tokens by which a text that is tokenized again, or cut into pieces, may exceed what was generated."""


class TooLarge(ValueError):
    """More comes than any answer has.

    :param what: it is.
    :param most: bytes that are read of it.
    """

    def __init__(self, what: str, most: int) -> None:
        super().__init__(f"{what} has more than {most:,} bytes, the most that is read")


async def events(parts: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """The data of every event, in their order; comments and other fields are left out.

    Lines end with LF, CR or both. Some endpoints leave out the empty line after an event: JSON that is whole ends with the
    next line of data, and ``[DONE]`` at once.

    :raises UnicodeDecodeError: where they are no UTF-8.
    :raises TooLarge: for one of more than :data:`MOST_EVENT` bytes.
    """
    rest, data, carriage = bytearray(), list[bytes](), False
    async for part in parts:
        new = part.removeprefix(b"\n") if carriage else part  # CR ended the line, LF belongs to it
        if not new:
            carriage = carriage and not part
            continue
        rest += new
        carriage = new.endswith(b"\r")
        lines = bytes(rest).splitlines() if b"\n" in new or b"\r" in new else []
        if lines:
            rest = bytearray() if new.endswith((b"\r", b"\n")) else bytearray(lines.pop())
        for line in lines:
            if line.startswith(b"data:"):
                piece = line[5:].removeprefix(b" ")
                done = piece.strip() == b"[DONE]"
                if data and (done or _is_object(data)):
                    yield b"\n".join(data).decode()
                    data = []
                data.append(piece)
                if not done:
                    continue
            elif line or not data:
                continue
            yield b"\n".join(data).decode()
            data = []
        if len(rest) + sum(_LINE + len(line) for line in data) > MOST_EVENT:
            raise TooLarge("an event of the stream", MOST_EVENT)
    if rest.startswith(b"data:"):
        if data and _is_object(data):
            yield b"\n".join(data).decode()
            data = []
        data.append(bytes(rest[5:].strip()))
    if data:
        yield b"\n".join(data).decode()


def _is_object(lines: Sequence[bytes]) -> bool:
    """Whether they are a JSON object, and no piece of one."""
    if not lines[-1].rstrip().endswith(b"}"):
        return False
    try:
        return isinstance(json.loads(b"\n".join(lines)), dict)
    except (ValueError, RecursionError):
        return False


def choices_of(answer: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The choices of an answer, or of a chunk of one, and the index of each; what is no choice is left out."""
    found = answer.get("choices")
    choices: list[tuple[int, Mapping[str, Any]]] = []
    for number, choice in enumerate(found if isinstance(found, list) else ()):
        if isinstance(choice, dict):
            index = choice.get("index", number)
            choices.append((index if isinstance(index, int) else number, choice))
    return choices


class Whole:
    """Puts the chunks of a chat completion, or a text completion, together."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.pieces = 0
        """Chunks with something generated, in all choices: at least so many tokens."""

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take in the next chunk; what is none of a chunk is kept for whoever reads the whole."""
        for index, choice in choices_of(chunk):
            self._take(self._choices.setdefault(index, {}), choice)
        self._fields |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        if "choices" not in chunk and not self.error and _is_error(chunk):
            self._fields["error"] = dict(chunk)

    def _take(self, mine: dict[str, Any], choice: Mapping[str, Any]) -> None:
        for name, value in choice.items():
            if name in ("delta", "message", "logprobs"):
                if not isinstance(value, dict):
                    continue
                at = "logprobs" if name == "logprobs" else "message"
                _grow(mine.setdefault(at, {}), value)
                self.pieces += at == "message" and any(
                    text for key, text in value.items() if key not in ("role", "index")
                )
            elif name == "text":
                if isinstance(value, str):
                    mine["text"] = mine.get("text", "") + value
                    self.pieces += bool(value)
            elif value is not None:
                mine[name] = value

    @property
    def ended(self) -> bool:
        """Whether every answer that began has said why it ended."""
        return bool(self._choices) and all(one.get("finish_reason") for one in self._choices.values())

    @property
    def error(self) -> Any:
        """What went wrong after it had begun, as it was told."""
        return self._fields.get("error")

    @property
    def usage(self) -> Any:
        """The newest usage that was told."""
        return self._fields.get("usage")

    def cut(self, tokens: int) -> None:
        """End it here, after so many tokens."""
        for one in self._choices.values():
            one["finish_reason"] = one.get("finish_reason") or "length"
        self._fields["usage"] = {**(self.usage if isinstance(self.usage, dict) else {}), "completion_tokens": tokens}
        self._fields["usage"].pop("total_tokens", None)

    def answer(self) -> dict[str, Any]:
        """The answer as it would have come whole."""
        made = dict(self._fields)
        if self._choices:
            made["choices"] = [_finished(index, one) for index, one in sorted(self._choices.items())]
        if isinstance(kind := made.get("object"), str):
            made["object"] = kind.removesuffix(".chunk")
        return made


def _is_error(event: Mapping[str, Any]) -> bool:
    """Whether an event that is no chunk says that something went wrong, in one of the forms without an ``error``."""
    said = any(event.get(name) for name in ("message", "detail", "error_code"))
    return said or "error" in (event.get("object"), event.get("type"))


class Pace:
    """How fast an endpoint's streams come, as they tell themselves: what may come before one that is cut has ended.

    :ivar counts: whether chunks tell the tokens so far; None: not known yet.
    """

    REACTION = 0.25
    """Seconds that this may take."""
    MEMORY = 300.0
    """Seconds after which the most that came is forgotten, unless it came again, at twice the time at the latest."""

    def __init__(self, counts: bool | None) -> None:
        self.counts = counts
        self._most = self._most_before = 0
        self._since, self._known = time.monotonic(), False

    @property
    def lead(self) -> int | None:
        """Most tokens that came within :data:`REACTION` seconds; None: they are not told, or no stream lasted so long yet."""
        return max(self._most, self._most_before) if self.counts and self._known else None

    def came(self, tokens: int, whole_window: bool) -> None:
        """So many came within the time, or before a stream ended earlier."""
        if (now := time.monotonic()) - self._since > Pace.MEMORY:
            self._most, self._most_before, self._since = 0, self._most, now
        self._most, self._known = max(self._most, tokens), self._known or whole_window


def exceeds(shown: int, tokens: int) -> bool:
    """Whether what an answer shows took more tokens than a count says; texts that are cut otherwise may have a few more."""
    return shown > 1.1 * tokens + _TOLERANCE


class Counter:
    """The tokens of one stream, as its chunks tell them; a count that falls, or is less than what came, is a wrong one.

    :param pace: of the endpoint; learns.
    :ivar told: the most tokens that chunks told.
    :ivar pieces: chunks that held something.
    """

    def __init__(self, backend: Backend, pace: Pace) -> None:
        self._paths, self._pace = (*backend.output, *backend.least), pace
        self._told: dict[Any, int] = {}
        self.told = self.pieces = 0
        self._since, self._before = 0.0, 0
        self._came = self._late = -math.inf

    def add(self, chunk: Mapping[str, Any], pieces: int, generated: bool) -> int:
        """Tokens so far, after one more chunk.

        :param pieces: chunks that held something, with this one.
        :param generated: whether this one does.
        """
        found = [n for path in self._paths for n in find(chunk, path)]
        counts = [n for n in found if isinstance(n, int) and not isinstance(n, bool) and n <= MOST_TOKENS]
        if counts and chunk.get("choices"):  # each of several answers tells its own
            index = next((index for index, _ in choices_of(chunk)), None)
            self._told[index] = max(*counts, self._told.get(index, 0))
        self.told, self.pieces = sum(self._told.values()), pieces
        if generated:
            fits = bool(counts) and self.told > 0 and not exceeds(pieces, self.told)
            self._pace.counts = fits and self._pace.counts is not False
        tokens = max(pieces, self.told)
        now = time.monotonic()
        self._came = now
        if not self._since or now < self._late:  # what came while it was not read says nothing of how fast it comes
            self._since, self._before = now, tokens
        last = now - self._since >= Pace.REACTION
        self._pace.came(tokens - self._before, last)
        if last:
            self._since, self._before = now, tokens
        return tokens

    def resume(self) -> None:
        """The stream is read again: the chunk before was passed on."""
        if (now := time.monotonic()) - self._came >= Pace.REACTION:  # its client, or the books, took their time
            self._late = now + Pace.REACTION


def _finished(index: int, choice: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"logprobs": None, "finish_reason": None, **choice, "index": index}
    if "text" not in made:
        message = {"role": "assistant", "content": None, **made.pop("message", {})}
        if isinstance(calls := message.get("tool_calls"), list):
            message["tool_calls"] = [
                {key: value for key, value in call.items() if key != "index"} if isinstance(call, dict) else call
                for call in calls
            ]
        made["message"] = message
    return made


def _grow(old: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Lay a piece over what came before: texts and lists grow, entries of lists with an index each by itself."""
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, str) and isinstance(before, str) and name not in _NAMES:
            old[name] = before + value
        elif isinstance(value, dict):
            if not isinstance(before, dict):
                old[name] = before = {}
            _grow(before, value)
        elif isinstance(value, list):
            if not isinstance(before, list):
                old[name] = before = []
            for entry in value:
                index = entry.get("index") if isinstance(entry, dict) else None
                mine = None
                if index is not None:
                    mine = next((one for one in before if isinstance(one, dict) and one.get("index") == index), None)
                if mine is None:
                    fresh: Any = entry
                    if isinstance(entry, dict):
                        fresh = {}
                        _grow(fresh, entry)
                    before.append(fresh)
                else:
                    _grow(mine, entry)
        elif value is not None or name not in old:
            old[name] = value
