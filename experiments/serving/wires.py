"""The protocols in which clients ask: each is read as a chat completion, and answers are written in its own form.

A wire serves one request. Whole answers are written by ``whole``; of a stream ``chunk`` writes what comes, ``end`` what
follows the last chunk, with the usage and what was charged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from experiments.serving.chat import Chat, Refused, json_text, parse_chat, parse_texts
from roi_env.answering.backends import Backend


def event(data: Any, name: str | None = None) -> str:
    """A server-sent event."""
    return f"data: {json_text(data)}\n\n" if name is None else f"event: {name}\ndata: {json_text(data)}\n\n"


class ChatWire:
    """Chat completions."""

    def __init__(self) -> None:
        self.usage = False
        self._held: dict[str, Any] | None = None
        self._head: dict[str, Any] = {}
        self._ended = set[Any]()

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
        choices = chunk.get("choices")
        if not self._head:
            self._head = {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
        if not choices:  # the usage, which will be ours
            return ""
        sent = "" if self._held is None else event(self._held)
        self._held = None
        clean = text is not None and _plain(text)
        if "usage" in chunk:
            chunk = {name: value for name, value in chunk.items() if name != "usage"}
            text = json.dumps(chunk) if clean else None
        if any(isinstance(one, dict) and one.get("finish_reason") for one in choices):
            self._held = dict(chunk)
            self._ended |= {
                one.get("index", 0) for one in choices if isinstance(one, dict) and one.get("finish_reason")
            }
            return sent
        if clean:
            return f"{sent}data: {text}\n\n"
        return sent + event(chunk)

    def end(self, answer: Mapping[str, Any]) -> str:
        """Events that end a stream.

        :param answer: the whole.
        """
        head = self._head or {name: value for name, value in answer.items() if name not in ("choices", "usage")}
        held = self._held
        if held is None:  # it was cut
            held = {**head, "choices": [_end(one) for one in answer["choices"] if one["index"] not in self._ended]}
        if not self.usage:
            return event({**held, "usage": answer["usage"]}) + "data: [DONE]\n\n"
        return event(held) + event({**head, "choices": [], "usage": answer["usage"]}) + "data: [DONE]\n\n"

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
