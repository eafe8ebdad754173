"""The protocols in which clients ask: each is read as a chat completion, and answers are written in its own form.

A wire serves one request. Whole answers are written by ``whole``; of a stream ``chunk`` writes what comes, ``end`` what
follows the last chunk, with the usage and what was charged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.serving.chat import Chat, Refused, as_texts, json_text, parse_chat, parse_texts
from roi_env.answering.backends import Backend
from roi_env.answering.streams import choices_of


def event(data: Any, name: str | None = None) -> str:
    """A server-sent event."""
    return f"data: {json_text(data)}\n\n" if name is None else f"event: {name}\ndata: {json_text(data)}\n\n"


class ChatWire:
    """Chat completions."""

    def __init__(self) -> None:
        self.usage = False
        self._held: dict[str, Any] | None = None
        self._head: dict[str, Any] = {}
        self._ended = set[int]()

    def read(self, body: Mapping[str, Any], backend: Backend) -> Chat:
        """What the request asks.

        :raises Refused: 400, naming the field.
        """
        chat = parse_chat(body, backend)
        self.usage = chat.usage
        return chat

    def whole(self, answer: dict[str, Any]) -> Any:
        """The answer to a request that does not stream."""
        return answer

    def chunk(self, text: str | None, chunk: Mapping[str, Any]) -> str:
        """Events for a chunk.

        :param text: as the endpoint sent it; None: it sent none.
        """
        if not chunk.get("choices"):  # the usage, which will be ours
            return ""
        if not self._head:
            self._head = {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
        sent = "" if self._held is None else event(self._held)
        self._held = None
        clean = text is not None and _plain(text)
        if "usage" in chunk:
            chunk = {name: value for name, value in chunk.items() if name != "usage"}
            text = json.dumps(chunk) if clean else None
        if ended := {index for index, one in choices_of(chunk) if one.get("finish_reason")}:
            self._held = dict(chunk)
            self._ended |= ended
            return sent
        if clean:
            return f"{sent}data: {text}\n\n"
        return sent + event(chunk)

    def end(self, answer: Mapping[str, Any]) -> str:
        """Events that end a stream.

        :param answer: the whole.
        """
        head = self._head or {name: value for name, value in answer.items() if name not in ("choices", "usage")}
        held, sent = self._held, ""
        cut = [_end(one) for one in answer["choices"] if one["index"] not in self._ended]
        if held is None or cut:
            sent = "" if held is None else event(held)
            # Of an answer that something follows the end of (OpenRouter's usage) none is left: only who asks for usage
            # gets a chunk without a choice.
            last = [{**_end(answer["choices"][0]), "finish_reason": None}]
            held = {**head, "choices": cut or last}
        if not self.usage:
            return sent + event({**held, "usage": answer["usage"]}) + "data: [DONE]\n\n"
        return sent + event(held) + event({**head, "choices": [], "usage": answer["usage"]}) + "data: [DONE]\n\n"

    def failed(self, refused: Refused) -> str:
        """Events that end a stream that failed."""
        return event(self.error(refused))

    @staticmethod
    def error(refused: Refused) -> Any:
        """An error."""
        return {"error": {"message": str(refused), "type": refused.code, "code": refused.code, "param": refused.param}}


class TextWire(ChatWire):
    """Text completions: a prompt instead of a conversation."""

    def read(self, body: Mapping[str, Any], backend: Backend) -> Chat:
        """What the request asks.

        :raises Refused: 400, naming the field.
        """
        chat = parse_texts(body, backend)
        self.usage = chat.usage
        return chat


def _end(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What says of a choice that it has ended."""
    piece: dict[str, Any] = {"text": ""} if "text" in choice else {"delta": {}}
    return {"index": choice["index"], **piece, "finish_reason": choice["finish_reason"], "logprobs": None}


def _plain(text: str) -> bool:
    """Whether an endpoint's chunk can be sent on as it is: on one line, without what JSON cannot hold, not too deep."""
    return (
        "\n" not in text
        and "\\ud" not in text
        and "\\uD" not in text
        and "NaN" not in text
        and "Infinity" not in text
        and text.count("[") + text.count("{") <= 64
    )


def text_of(value: Any) -> str:
    """A value as a text: what is none as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def delta_of(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a choice of a chunk adds to its message, in texts."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return {}
    return delta if isinstance(delta.get("content"), str | None) else {**delta, **as_texts(delta["content"])}


@dataclass
class Call:
    """A call of a tool, or a piece of one.

    :param place: among the calls of its message; None: it does not say.
    :param arguments: JSON, or the next piece of it.
    """

    place: str | None
    id: str | None
    name: str | None
    arguments: str


def calls_of(message: Mapping[str, Any]) -> list[Call]:
    """The calls of a message, or the pieces of calls of a delta; what is none is left out."""
    found = message.get("tool_calls")
    return [_call(call) for call in found if isinstance(call, dict)] if isinstance(found, list) else []


def _call(call: Mapping[str, Any]) -> Call:
    given = call.get("function")
    function: dict[str, Any] = given if isinstance(given, dict) else {}
    place, named, name, arguments = (
        None if value is None else text_of(value)
        for value in (call.get("index"), call.get("id"), function.get("name"), function.get("arguments"))
    )
    return Call(place, named, name, arguments or "")


class Calls:
    """Calls that come in pieces, as other protocols have them: one after the other.

    A piece is of the call at its place, the newest where it names none. One with another id and a name begins a call
    whatever its place: some endpoints count none, or give all the same one.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._told: list[int] = []  # characters of the arguments of those that have begun

    def take(self, delta: Mapping[str, Any]) -> Iterator[tuple[int, Call, str]]:
        """What may be told after one more delta: number of a call, the call so far, next piece of its arguments."""
        for piece in calls_of(delta):
            mine = next((one for one in reversed(self._calls) if piece.place in (None, one.place)), None)
            if mine is None or (piece.name and (piece.id != mine.id if piece.id else piece.place is None)):
                self._calls.append(piece)
            else:
                mine.arguments += piece.arguments
        return self._due(end=False)

    def rest(self) -> Iterator[tuple[int, Call, str]]:
        """What is left at the end."""
        return self._due(end=True)

    def _due(self, *, end: bool) -> Iterator[tuple[int, Call, str]]:
        for number, call in enumerate(self._calls):
            if number >= len(self._told) - 1:
                begins = number == len(self._told)
                if begins:
                    self._told.append(0)
                piece = call.arguments[self._told[number] :]
                self._told[number] = len(call.arguments)
                if begins or piece:
                    yield number, call, piece
                if not end and number + 1 < len(self._calls) and not _is_json(call.arguments):
                    return  # more of it may come


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
