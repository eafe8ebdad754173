"""Anthropic's messages, translated to chat completions and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.serving.chat import Chat, Refused, parse_chat
from experiments.serving.wires import Call, Calls, calls_of, delta_of, event, text_of
from roi_env.answering.backends import Backend
from roi_env.answering.streams import choices_of

_SAME = ("model", "temperature", "top_p", "top_k", "stream", "service_tier")
_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
_STOPS = {"length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use", "content_filter": "refusal"}


def _bad(place: str, what: str) -> Refused:
    return Refused(400, "invalid_request", f"{place}: {what}", place)


class MessagesWire:
    """See the module."""

    def __init__(self) -> None:
        self._stops: list[str] = []
        self._index = -1
        self._open: tuple[str, Any] | None = None
        self._begun = False
        self._calls = Calls()

    def read(self, body: Mapping[str, Any], backend: Backend) -> Chat:
        """What the request asks.

        :raises Refused: 400, naming the field.
        """
        if not isinstance(body.get("max_tokens"), int):
            raise _bad("max_tokens", "must be an integer of at least 1")
        asked: dict[str, Any] = {"max_tokens": body["max_tokens"]}
        messages = _system(body.get("system"))
        entries = body.get("messages")
        if not isinstance(entries, list):
            raise _bad("messages", "must be a list of at least one message")
        for place, entry in enumerate(entries):
            messages += _turn(entry, f"messages.{place}")
        asked["messages"] = messages
        for name, value in body.items():
            if name in _SAME:
                asked[name] = value
            elif name == "stop_sequences":
                asked["stop"] = value
            elif name == "thinking":
                asked["thinking"] = value
            elif name == "output_config" and isinstance(value, dict) and set(value) <= {"effort", "format"}:
                asked |= {"reasoning_effort": value.get("effort"), **_format(value.get("format"))}
            elif name == "output_format":
                asked |= _format(value)
            elif name == "tools" and value:
                asked["tools"] = _tools(value)
            elif name == "tool_choice" and value is not None:
                asked |= _choice(value)
            elif name == "metadata" and isinstance(value, dict):
                if set(value) - {"user_id"}:
                    raise _bad("metadata", "only user_id is known")
                asked["user"] = value.get("user_id")
            elif name not in ("max_tokens", "messages", "system") and value not in (None, [], {}):
                raise Refused(400, "unsupported", f"{name}: it cannot be passed on; take it out", name)
        if asked.get("service_tier") in ("auto", "standard_only"):  # a word of that API alone
            del asked["service_tier"]
        chat = parse_chat(asked, backend)
        stops = asked.get("stop") or []
        self._stops = [stops] if isinstance(stops, str) else stops
        return chat

    def whole(self, answer: dict[str, Any]) -> Any:
        """The answer to a request that does not stream."""
        choice = answer["choices"][0]
        message = choice["message"]
        content: list[dict[str, Any]] = []
        if thought := _thought(message):
            content.append({"type": "thinking", "thinking": thought, "signature": ""})
        if text := message.get("content") or message.get("refusal"):
            content.append({"type": "text", "text": text_of(text)})
        for call in calls_of(message):
            content.append(
                {"type": "tool_use", "id": str(call.id), "name": call.name, "input": _arguments(call.arguments)}
            )
        return {
            "id": answer["id"],
            "type": "message",
            "role": "assistant",
            "model": answer["model"],
            "content": content,
            **self._ended(choice),
            "usage": _usage(answer["usage"]),
        }

    def _ended(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        matched = choice.get("stop_reason")  # vLLM's
        if isinstance(matched, str) and matched in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": matched}
        reason = "refusal" if (choice.get("message") or {}).get("refusal") else "end_turn"
        return {"stop_reason": _STOPS.get(choice.get("finish_reason") or "", reason), "stop_sequence": None}

    def chunk(self, text: str | None, chunk: Mapping[str, Any]) -> str:
        """Events for a chunk."""
        sent = ""
        if not self._begun:
            self._begun = True
            message: dict[str, Any] = {
                "id": text_of(chunk.get("id") or "roi"),
                "type": "message",
                "role": "assistant",
                "model": chunk.get("model"),
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0},
            }
            sent += event({"type": "message_start", "message": message}, "message_start")
        for _, choice in choices_of(chunk):
            delta = delta_of(choice)
            if thought := _thought(delta):
                sent += self._piece(("thinking", None), {"type": "thinking_delta", "thinking": thought})
            if piece := delta.get("content") or delta.get("refusal"):
                sent += self._piece(("text", None), {"type": "text_delta", "text": text_of(piece)})
            sent += self._told(self._calls.take(delta))
        return sent

    def _told(self, calls: Iterable[tuple[int, Call, str]]) -> str:
        return "".join(
            self._piece(
                ("tool_use", number),
                {"type": "input_json_delta", "partial_json": piece},
                {"id": str(call.id), "name": call.name, "input": {}},
            )
            for number, call, piece in calls
        )

    def _piece(self, block: tuple[str, Any], delta: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> str:
        sent = ""
        if self._open != block:
            sent += self._close()
            self._index += 1
            self._open = block
            empty = {"thinking": {"thinking": "", "signature": ""}, "text": {"text": ""}}.get(block[0], more or {})
            start = {"type": "content_block_start", "index": self._index, "content_block": {"type": block[0], **empty}}
            sent += event(start, "content_block_start")
        return sent + event(
            {"type": "content_block_delta", "index": self._index, "delta": delta}, "content_block_delta"
        )

    def _close(self) -> str:
        if self._open is None:
            return ""
        self._open = None
        return event({"type": "content_block_stop", "index": self._index}, "content_block_stop")

    def end(self, answer: Mapping[str, Any]) -> str:
        """Events that end a stream."""
        sent = "" if self._begun else self.chunk(None, {"id": answer["id"], "model": answer["model"]})
        sent += self._told(self._calls.rest()) + self._close()
        told = {"type": "message_delta", "delta": self._ended(answer["choices"][0]), "usage": _usage(answer["usage"])}
        return sent + event(told, "message_delta") + event({"type": "message_stop"}, "message_stop")

    def failed(self, refused: Refused) -> str:
        """Events that end a stream that failed."""
        return event(self.error(refused), "error")

    @staticmethod
    def error(refused: Refused) -> Any:
        """An error."""
        kind = _ERRORS.get(refused.status, "invalid_request_error" if refused.status < 500 else "api_error")
        return {
            "type": "error",
            "error": {"type": kind, "message": str(refused), "code": refused.code, "param": refused.param},
        }


def _thought(message: Mapping[str, Any]) -> str | None:
    found = message.get("reasoning_content") or message.get("reasoning")
    return found if isinstance(found, str) else None


def _arguments(text: Any) -> Any:
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {"arguments": text} if text else {}
    return found if isinstance(found, dict) else {"arguments": found}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"], "roi": usage["roi"]}


def _system(system: Any) -> list[dict[str, Any]]:
    if system in (None, "", []):
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    return [{"role": "system", "content": "\n".join(_text(part, "system") for part in _blocks(system, "system"))}]


def _blocks(content: Any, place: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise _bad(place, "must be a text or a list of blocks")
    return content


def _text(block: Mapping[str, Any], place: str) -> str:
    if block.get("type") != "text" or not isinstance(block.get("text"), str):
        raise _bad(place, f"{json.dumps(block.get('type'))} cannot stand here: only text can")
    return str(block["text"])


def _turn(entry: Any, place: str) -> list[dict[str, Any]]:
    """The messages that one turn is: results of tools are messages of their own."""
    if not isinstance(entry, dict) or entry.get("role") not in ("user", "assistant", "system"):
        raise _bad(f"{place}.role", "must be user or assistant")
    blocks = _blocks(entry.get("content"), f"{place}.content")
    if not blocks and entry["role"] != "assistant":  # an answer may have been nothing but thought
        raise _bad(f"{place}.content", "must have a block")
    if isinstance(entry.get("content"), str):
        return [{"role": entry["role"], "content": entry["content"]}]
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        where, kind = f"{place}.content.{number}", block.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": _text(block, where)})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image(block.get("source"), where)}})
        elif kind in ("thinking", "redacted_thinking"):
            continue  # earlier thoughts are no part of a conversation
        elif kind == "tool_use" and entry["role"] == "assistant":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result" and entry["role"] == "user":
            inside = _blocks(block.get("content") or "", where)
            told = "\n".join(_text(one, where) for one in inside)
            told = f"error: {told}" if block.get("is_error") else told
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": told})
        else:
            raise Refused(400, "unsupported", f"{where}: a block of type {kind!r} cannot be passed on", where)
    turn: dict[str, Any] = {"role": entry["role"]}
    if all(part["type"] == "text" for part in parts):
        turn["content"] = None if calls and not parts else "".join(part["text"] for part in parts)
    else:
        turn["content"] = parts
    if calls:
        turn["tool_calls"] = calls
    return [*results, *([turn] if parts or calls or not results else [])]


def _image(source: Any, place: str) -> str:
    if isinstance(source, dict) and source.get("type") == "url":
        return str(source.get("url"))
    if isinstance(source, dict) and source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    raise _bad(f"{place}.source", "must be an address (url) or base64")


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise _bad("tools", "must be a list")
    made = []
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type", "custom") != "custom" or "input_schema" not in tool:
            raise Refused(
                400, "unsupported", f"tools.{number}: only tools of the client's own can be passed on", "tools"
            )
        function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
        if tool.get("description"):
            function["description"] = tool["description"]
        if tool.get("strict") is not None:
            function["strict"] = tool["strict"]
        made.append({"type": "function", "function": function})
    return made


def _choice(choice: Any) -> dict[str, Any]:
    kind = choice.get("type") if isinstance(choice, dict) else None
    chosen: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    if kind == "tool":
        made: dict[str, Any] = {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
    elif kind in chosen:
        made = {"tool_choice": chosen[kind]}
    else:
        raise _bad("tool_choice", "must have the type auto, any, tool or none")
    if choice.get("disable_parallel_tool_use"):
        made["parallel_tool_calls"] = False
    return made


def _format(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or value.get("type") != "json_schema":
        raise _bad("output_format", "must have the type json_schema")
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": value.get("schema"), "strict": True},
        }
    }
