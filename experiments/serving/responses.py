"""OpenAI's responses, translated to chat completions and back. Nothing is stored: a conversation comes whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from experiments.serving.chat import Chat, Refused, parse_chat
from experiments.serving.wires import Call, Calls, calls_of, delta_of, event, text_of
from roi_env.answering.backends import Backend
from roi_env.answering.streams import choices_of

_SAME = (
    *("model", "temperature", "top_p", "stream", "parallel_tool_calls", "user", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "top_logprobs"),
)
_NOTHING: Mapping[str, tuple[Any, ...]] = {"truncation": ("disabled",), "store": (False,), "background": (False,)}
"""Values that ask for what happens anyway."""
_WHY = {
    "previous_response_id": "nothing is stored here: send the whole conversation as input",
    "conversation": "nothing is stored here: send the whole conversation as input",
    "store": "nothing is stored here",
    "background": "nothing is stored here",
    "include": "there is no such thing here",
}


def _bad(place: str, what: str) -> Refused:
    return Refused(400, "invalid_request", f"{place} {what}", place)


def _unsupported(place: str, why: str) -> Refused:
    return Refused(400, "unsupported", f"{place}: {why}; take it out", place)


class ResponsesWire:
    """See the module."""

    def __init__(self) -> None:
        self._asked: Mapping[str, Any] = {}
        self._number = -1
        self._items: list[dict[str, Any]] = []
        self._open: tuple[str, Any] | None = None
        self._id = f"resp_{time.time_ns():x}"
        self._model: Any = None
        self._begun = False
        self._calls = Calls()

    def read(self, body: Mapping[str, Any], backend: Backend) -> Chat:
        """What the request asks.

        :raises Refused: 400, naming the field.
        """
        self._asked = body
        asked: dict[str, Any] = {}
        messages: list[dict[str, Any]] = []
        for name, value in body.items():
            if value is None or value in ([], {}) or name in ("input", "stream_options"):
                continue
            if name in _SAME:
                asked[name] = value
            elif name == "instructions":
                if not isinstance(value, str):
                    raise _bad(name, "must be a text")
                messages.insert(0, {"role": "system", "content": value})
            elif name == "max_output_tokens":
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise _bad(name, "must be an integer of at least 1")
                asked["max_completion_tokens"] = value
            elif name == "reasoning":
                asked["reasoning_effort"] = value  # the tier's to decide
            elif name == "text":
                asked |= _text_options(value)
            elif name == "tools":
                asked["tools"] = _tools(value)
            elif name == "tool_choice":
                asked["tool_choice"] = _choice(value)
            elif name == "metadata":
                if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
                    raise _bad(name, "must be an object of texts")
                if name in backend.takes:  # it stands in the response in any case
                    asked[name] = value
            elif value not in _NOTHING.get(name, ()):
                raise _unsupported(name, _WHY.get(name, "it cannot be passed on"))
        if "top_logprobs" in asked:
            asked["logprobs"] = True
        asked["messages"] = messages + _input(body.get("input"))
        return parse_chat(asked, backend)

    def whole(self, answer: dict[str, Any]) -> Any:
        """The answer to a request that does not stream."""
        message = answer["choices"][0]["message"]
        items: list[dict[str, Any]] = []
        if thought := _thought(message):
            items.append({**self._item("reasoning", 0), "content": [{"type": "reasoning_text", "text": thought}]})
        if text := message.get("content"):
            logprobs = _logprobs(answer["choices"][0])
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
            items.append({**self._item("message", len(items)), "content": [part]})
        elif refusal := message.get("refusal"):
            items.append(
                {**self._item("message", len(items)), "content": [{"type": "refusal", "refusal": text_of(refusal)}]}
            )
        for call in calls_of(message):
            told = {"call_id": str(call.id), "name": call.name, "arguments": call.arguments or "{}"}
            items.append({**self._item("function_call", len(items)), **told})
        return self._response(answer, [{**item, "status": "completed"} for item in items])

    def _item(self, kind: str, number: int) -> dict[str, Any]:
        prefix = {"message": "msg", "function_call": "fc", "reasoning": "rs"}[kind]
        item: dict[str, Any] = {"id": f"{prefix}_{self._id[5:]}_{number}", "type": kind}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": []}
        return item

    def _response(self, answer: Mapping[str, Any], items: list[dict[str, Any]]) -> dict[str, Any]:
        """The response; without choices in ``answer`` it is in progress."""
        choices, usage = answer.get("choices"), answer.get("usage")
        reason = str(choices[0].get("finish_reason")) if choices else ""
        why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reason)
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress" if choices is None else "incomplete" if why else "completed",
            "error": None,
            "incomplete_details": {"reason": why} if why else None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "metadata": asked.get("metadata") or {},
            "model": answer.get("model"),
            "output": items,
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.get("temperature"),
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "top_p": asked.get("top_p"),
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def chunk(self, text: str | None, chunk: Mapping[str, Any]) -> str:
        """Events for a chunk."""
        sent = ""
        self._model = chunk.get("model") or self._model
        if not self._begun:
            self._begun = True
            response = self._response({"model": self._model}, [])
            sent += self._event("response.created", response=response)
            sent += self._event("response.in_progress", response=response)
        for _, choice in choices_of(chunk):
            delta = delta_of(choice)
            if thought := _thought(delta):
                sent += self._piece("reasoning", None, thought)
            if piece := delta.get("content"):
                sent += self._piece("message", "output_text", text_of(piece), _logprobs(choice))
            if piece := delta.get("refusal"):
                sent += self._piece("message", "refusal", text_of(piece))
            for number, call, piece in self._calls.take(delta):
                sent += self._call(number, call, piece)
        return sent

    def _begin(self, opened: tuple[str, Any], more: Mapping[str, Any]) -> str:
        sent = self._close()
        self._open = opened
        item = {**self._item(opened[0], len(self._items)), "status": "in_progress", **more}
        self._items.append(item)
        sent += self._event("response.output_item.added", output_index=len(self._items) - 1, item=dict(item))
        return sent

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _piece(self, kind: str, part: str | None, text: str, logprobs: Any = ()) -> str:
        sent = ""
        if self._open != (kind, part):
            sent += self._begin((kind, part), {"content": []})
            made: dict[str, Any] = {"type": part or "reasoning_text", "refusal" if part == "refusal" else "text": ""}
            if part == "output_text":
                made |= {"annotations": [], "logprobs": []}
            self._items[-1]["content"] = [made]
            if part is not None:
                sent += self._event("response.content_part.added", **self._at(), content_index=0, part=dict(made))
        held = self._items[-1]["content"][0]
        if part == "refusal":
            held["refusal"] += text
        else:
            held["text"] += text
        fields: dict[str, Any] = {**self._at(), "content_index": 0, "delta": text}
        if part == "output_text":
            held["logprobs"] += logprobs
            fields["logprobs"] = list(logprobs)
        name = {"output_text": "output_text", "refusal": "refusal", None: "reasoning_text"}[part]
        return sent + self._event(f"response.{name}.delta", **fields)

    def _call(self, number: int, call: Call, piece: str) -> str:
        opened, sent = ("function_call", number), ""
        if self._open != opened:
            sent += self._begin(opened, {"call_id": str(call.id), "name": call.name, "arguments": ""})
        if piece:
            self._items[-1]["arguments"] += piece
            sent += self._event("response.function_call_arguments.delta", **self._at(), delta=piece)
        return sent

    def _close(self) -> str:
        if self._open is None:
            return ""
        (kind, part), item, sent = self._open, self._items[-1], ""
        self._open = None
        item["status"] = "completed"
        at = self._at()
        if kind == "function_call":
            item["arguments"] = item["arguments"] or "{}"
            sent += self._event(
                "response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"]
            )
        else:
            held = item["content"][0]
            if part == "output_text":
                told = {"text": held["text"], "logprobs": held["logprobs"]}
                sent += self._event("response.output_text.done", **at, content_index=0, **told)
            elif part == "refusal":
                sent += self._event("response.refusal.done", **at, content_index=0, refusal=held["refusal"])
            else:
                sent += self._event("response.reasoning_text.done", **at, content_index=0, text=held["text"])
            if part is not None:
                sent += self._event("response.content_part.done", **at, content_index=0, part=held)
        return sent + self._event("response.output_item.done", output_index=at["output_index"], item=item)

    def end(self, answer: Mapping[str, Any]) -> str:
        """Events that end a stream."""
        sent = "" if self._begun else self.chunk(None, {"model": answer["model"]})
        for number, call, piece in self._calls.rest():
            sent += self._call(number, call, piece)
        sent += self._close()
        response = self._response(answer, self._items)
        return sent + self._event(f"response.{response['status']}", response=response)

    def failed(self, refused: Refused) -> str:
        """Events that end a stream that failed."""
        return self._event("error", message=str(refused), code=refused.code, param=refused.param)

    @staticmethod
    def error(refused: Refused) -> Any:
        """An error."""
        return {"error": {"message": str(refused), "type": refused.code, "code": refused.code, "param": refused.param}}


def _logprobs(choice: Mapping[str, Any]) -> list[Any]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else []


def _thought(message: Mapping[str, Any]) -> str | None:
    found = message.get("reasoning_content") or message.get("reasoning")
    return found if isinstance(found, str) else None


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    details = usage.get("completion_tokens_details") or {}
    before = usage.get("prompt_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {name: before.get(name) or 0 for name in ("cached_tokens", "cache_write_tokens")},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens") or 0},
        "total_tokens": usage["total_tokens"],
        "roi": usage["roi"],
    }


def _input(given: Any) -> list[dict[str, Any]]:
    """The messages that an input is."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise _bad("input", "must be a text or a list of at least one item")
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        place = f"input.{number}"
        if not isinstance(item, dict):
            raise _bad(place, "must be an object")
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _content(item.get("content"), place)})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            last = messages[-1] if messages else {}
            if last.get("role") == "assistant":  # what was said and called is one turn
                last.setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            output = _content(item.get("output"), place)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        elif kind != "reasoning":  # earlier thoughts are no part of a conversation
            raise _unsupported(place, f"an item of type {kind!r} cannot be passed on")
    return messages


def _content(content: Any, place: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise _bad(f"{place}.content", "must be a text or a list of parts")
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        where, kind = f"{place}.content.{number}", part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "refusal":
            parts.append({"type": "text", "text": str(part.get("refusal"))})
        elif kind == "input_image" and isinstance(part.get("image_url"), str):
            image = {"url": part["image_url"], **({"detail": part["detail"]} if part.get("detail") else {})}
            parts.append({"type": "image_url", "image_url": image})
        elif kind == "input_file" and part.get("file_data"):
            file = {name: part[name] for name in ("filename", "file_data") if part.get(name)}
            parts.append({"type": "file", "file": file})
        elif kind == "input_audio":
            parts.append({"type": "input_audio", "input_audio": part.get("input_audio")})
        else:
            raise _unsupported(where, f"a part of type {kind!r} cannot be passed on")
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _text_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) - {"format", "verbosity"}:
        raise _bad("text", "must be an object with a format and a verbosity")
    made: dict[str, Any] = {} if value.get("verbosity") is None else {"verbosity": value["verbosity"]}
    how = value.get("format")
    if how is None or how == {"type": "text"}:
        return made
    if not isinstance(how, dict) or not isinstance(how.get("type"), str):
        raise _bad("text.format", "must be an object with a type")
    if how["type"] == "json_schema":
        schema = {name: inner for name, inner in how.items() if name != "type" and inner is not None}
        return {**made, "response_format": {"type": "json_schema", "json_schema": schema}}
    return {**made, "response_format": how}


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise _bad("tools", "must be a list")
    made = []
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise _unsupported(f"tools.{number}", "only functions can be passed on")
        function = {name: inner for name, inner in tool.items() if name != "type" and inner is not None}
        made.append({"type": "function", "function": function})
    return made


def _choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    raise _unsupported("tool_choice", "only a function, or auto, none or required, can be passed on")
