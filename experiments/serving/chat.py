"""Chat completions as `roi serve` reads and writes them: nothing that is asked vanishes, nothing paid fails to be written.

What a request asks is either honoured (its cap, streaming, and the fields that the backend takes) or refused by name.
What is written is made JSON that every reader takes, whatever the endpoint said.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from roi_env.answering.base import Message
from roi_env.answering.responses import encodable

if TYPE_CHECKING:
    from agents.live.controller import Row
    from roi_env.answering.base import Reply

_DEPTH = 64
"""Objects and lists inside one another that a request may have; schemas of answers need about twenty."""
_ROLES = ("system", "developer", "user", "assistant")
_THOUGHTS = ("reasoning_content", "reasoning")
"""An assistant's earlier thoughts: every template leaves them out of the conversation, and so do we."""


class Refused(Exception):
    """A request that is answered by an error.

    :param status: of HTTP.
    :param code: for programs.
    :param param: the field that is to blame.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})


@dataclass(frozen=True)
class Chat:
    """What a chat completion asks.

    :param limit: most tokens to generate, thought included; None: as many as the tier and the budget allow.
    :param fields: what the endpoint is asked beside, see :attr:`roi_env.answering.base.Ask.fields`.
    :param stream: whether the answer is to come as events.
    :param usage: whether an event tells the usage.
    """

    messages: tuple[Message, ...]
    limit: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    usage: bool = False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(least: float = -math.inf, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _integer(least: int, most: float = 2**63 - 1) -> Callable[[Any], bool]:
    return lambda value: _whole(value) and least <= value <= most


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _stops(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is(str), "a text"),
    "max_tokens": (_integer(1, math.inf), "an integer of at least 1"),
    "max_completion_tokens": (_integer(1, math.inf), "an integer of at least 1"),
    "stream": (_is(bool), "true or false"),
    "stream_options": (_is(dict), "an object"),
    "n": (_whole, "an integer"),
    "temperature": (_number(0), "a number of at least 0"),
    "top_p": (_number(0, 1), "a number from 0 to 1"),
    "min_p": (_number(0, 1), "a number from 0 to 1"),
    "top_k": (_integer(-1), "an integer"),
    "seed": (_integer(-(2**63)), "an integer of 64 bits"),
    "stop": (_stops, "a text or a list of texts, none of them empty"),
    "presence_penalty": (_number(), "a number"),
    "frequency_penalty": (_number(), "a number"),
    "repetition_penalty": (_number(0), "a number of at least 0"),
    "logit_bias": (
        lambda value: isinstance(value, dict) and all(map(_number(), value.values())),
        "an object of numbers",
    ),
    "logprobs": (_is(bool), "true or false"),
    "top_logprobs": (_integer(0), "an integer of at least 0"),
    "response_format": (
        lambda value: isinstance(value, dict) and isinstance(value.get("type"), str),
        "an object with a type",
    ),
    "user": (_is(str), "a text"),
    "metadata": (
        lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
        "an object of texts",
    ),
    "store": (_is(bool), "true or false"),
    "service_tier": (_is(str), "a text"),
    "verbosity": (_is(str), "a text"),
    "safety_identifier": (_is(str), "a text"),
    "prompt_cache_key": (_is(str), "a text"),
    "modalities": (_is(list), "a list"),
    "tools": (_is(list), "a list"),
    "functions": (_is(list), "a list"),
}
"""Fields whose kind is known: a check, and what it expects."""

_LIMITS = ("max_tokens", "max_completion_tokens")
_OURS = ("messages", "model", "stream", "stream_options", *_LIMITS)
"""Fields that this proxy itself answers for."""

_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "stop": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "store": (False,),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "service_tier": ("auto",),
    "tool_choice": ("none",),
    "function_call": ("none",),
}
"""Values that ask for what happens anyway."""

_WHY: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "tool_calls", "tool_call_id",
        ),
        "tools are not supported under a budget",
    ),
    **dict.fromkeys(
        (
            "reasoning_effort", "reasoning", "thinking", "thinking_budget", "thinking_token_budget", "enable_thinking",
            "chat_template_kwargs",
        ),
        "how much is thought about a question is what the budget's agent decides",
    ),
    "n": "it must be 1: every answer is decided by itself",
    **dict.fromkeys(("modalities", "audio"), "answers are texts"),
    "prediction": "rejected predictions would cost tokens that nobody reserved",
}  # fmt: skip


def parse_chat(data: bytes, *, model: str, takes: Collection[str], named: bool) -> Chat:
    """What the body of a request asks.

    :param model: the endpoint's.
    :param takes: further fields that the endpoint honours.
    :param named: whether it takes names of participants.
    :raises Refused: 400, naming the field, for all that is no chat completion or cannot be honoured.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid_request", f"the body is not JSON: {_short(error)}") from None
    if not isinstance(body, dict):
        raise Refused(400, "invalid_request", "the body must be a JSON object")
    for name, value in body.items():
        _check_json(name, "the name of a field")
        _check_json(value, name)
    asked = {name: value for name, value in body.items() if value is not None}
    for name, value in asked.items():
        if name in _FIELDS and not _FIELDS[name][0](value):
            raise _bad(name, f"must be {_FIELDS[name][1]}, got {_got(value)}")
    if asked.get("model", model) != model:
        raise Refused(400, "model_not_found", f"model: there is {model!r} alone, not {_got(asked['model'])}", "model")
    fields = {}
    for name, value in asked.items():
        if name in _OURS:
            continue
        if name in takes and value not in ([], {}):
            fields[name] = value
        elif value not in _NOTHING.get(name, ()):
            raise _unsupported(name, _WHY.get(name, "it is not known to be honoured by this proxy's endpoint"))
    if "top_logprobs" in fields and not fields.get("logprobs"):
        raise _bad("top_logprobs", "needs logprobs to be true")
    stream = asked.get("stream", False)
    return Chat(
        _messages(asked.get("messages"), named),
        min((asked[name] for name in _LIMITS if name in asked), default=None),
        fields,
        stream,
        _wants_usage(asked.get("stream_options"), stream),
    )


def _messages(entries: Any, named: bool) -> tuple[Message, ...]:
    if not isinstance(entries, list) or not entries:
        raise _bad("messages", "must be a list of at least one message")
    return tuple(_message(entry, f"messages.{place}", named) for place, entry in enumerate(entries))


def _message(entry: Any, place: str, named: bool) -> Message:
    if not isinstance(entry, dict):
        raise _bad(place, f"must be an object, got {_got(entry)}")
    asked = {name: value for name, value in entry.items() if value is not None and value not in ([], {})}
    role, content = entry.get("role"), entry.get("content")
    if role in ("tool", "function"):
        raise _unsupported(f"{place}.role", _WHY["tools"])
    if role not in _ROLES:
        raise _bad(f"{place}.role", f"must be one of {', '.join(_ROLES)}, got {_got(role)}")
    known = ("role", "content", "name", *(("refusal", *_THOUGHTS) if role == "assistant" else ()))
    for other, value in asked.items():
        if other not in known:
            raise _unsupported(f"{place}.{other}", _WHY.get(other, "it cannot be passed on"))
        if other not in ("role", "content") and not isinstance(value, str):
            raise _bad(f"{place}.{other}", f"must be a text, got {_got(value)}")
    name, refusal = asked.get("name"), asked.get("refusal")
    if name is not None and not named:
        raise _unsupported(f"{place}.name", "this proxy's endpoint takes none")
    if refusal is None:
        return Message(role, _text(content, f"{place}.content"), name)
    if content:
        raise _bad(f"{place}.refusal", "cannot stand beside a content")
    return Message(role, refusal, name)


def _text(content: Any, place: str) -> str:
    """A message's text; parts of other kinds are refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise _bad(place, f"must be a text or a list of parts that are texts, got {_got(content)}")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            raise _bad(f"{place}.{number}", 'must be {"type": "text", "text": ...}: only text is supported')
        if not isinstance(part.get(kind), str):
            raise _bad(f"{place}.{number}.{kind}", f"must be a text, got {_got(part.get(kind))}")
        if more := [name for name, value in part.items() if name not in ("type", kind) and value not in (None, [], {})]:
            raise _unsupported(f"{place}.{number}.{more[0]}", "it cannot be passed on")
        texts.append(part[kind])
    return "".join(texts)


def _wants_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise _bad("stream_options", "needs stream to be true")
    for name, value in options.items():
        if value is not None and not isinstance(value, bool):
            raise _bad(f"stream_options.{name}", f"must be true or false, got {_got(value)}")
        if value and name != "include_usage":
            raise _unsupported(f"stream_options.{name}", "streams have no such thing here")
    return bool(options.get("include_usage"))


def _check_json(value: Any, place: str, depth: int = 0) -> None:
    """Refuse what Python reads, but no JSON holds (or no endpoint): it would fail when it is sent."""
    if depth > _DEPTH:
        raise _bad(place, f"has more than {_DEPTH} objects or lists inside one another")
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise _bad(place, "holds half of a surrogate pair, which is no character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _bad(place, "must be a finite number")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_json(name, place, depth + 1)
            _check_json(inner, place, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_json(inner, place, depth + 1)


def _bad(place: str, what: str) -> Refused:
    return Refused(400, "invalid_request", f"{_short(place)} {what}", place)


def _unsupported(place: str, why: str) -> Refused:
    return Refused(400, "unsupported", f"{_short(place)}: {why}; take it out", place)


def _got(value: Any) -> str:
    """A value that a client sent, as JSON, short enough for a message."""
    return _short(json.dumps(value))


def _short(text: object) -> str:
    """A text, short enough for a message."""
    shown = str(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def completion(row: Row, reply: Reply | None, remaining: int, budget: str, model: str) -> dict[str, Any]:
    """An answer as a chat completion; its ``usage`` tells the charge.

    :param reply: None where the agent skipped the question.
    :param model: named where the endpoint names none.
    """
    message: dict[str, Any] = {"role": "assistant", "content": row.answer if reply is not None else None}
    if reply is None:
        message["refusal"] = "skipped: the budget is better spent on other questions"
    elif row.finish == "refused" and not row.answer:
        message |= {"content": None, "refusal": reply.note or "the endpoint refused to answer"}
    elif reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    usage: dict[str, Any] = {
        "prompt_tokens": (reply.prompt_tokens if reply else None) or 0,
        "completion_tokens": row.charged,
    }
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    if row.reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": row.reasoning_tokens}
    usage["roi"] = {
        "budget": budget,
        "tier": row.tier or "skip",
        "charged": row.charged,
        "remaining": remaining,
        "counted": row.counted,
        "overshoot": row.overshoot,
    }
    finish = "length" if row.finish == "length" else "content_filter" if row.finish == "refused" else "stop"
    logprobs = reply.logprobs if reply is not None and isinstance(reply.logprobs, dict) else None
    return {
        "id": f"roi-{time.time_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": (reply.model if reply is not None else None) or model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}],
        "usage": usage,
    }


def events(answer: Mapping[str, Any], usage: bool) -> str:
    """The whole answer as one chunk of a stream: what a token costs is known at its end only.

    :param usage: whether an event tells it.
    """
    choice = answer["choices"][0]
    chunk = {**answer, "object": "chat.completion.chunk"}
    told = chunk.pop("usage")
    first = {"index": 0, "delta": choice["message"], "finish_reason": None, "logprobs": choice["logprobs"]}
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"], "logprobs": None}
    chunks = [{**chunk, "choices": [first]}, {**chunk, "choices": [last]}]
    if usage:
        chunks.append({**chunk, "choices": [], "usage": told})
    return "".join(f"data: {json_text(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"


def json_text(value: Any) -> str:
    """JSON (in ASCII) of anything that an endpoint may have said; see :func:`_plain`. Never fails."""
    return json.dumps(_plain(value))


def _plain(value: Any, depth: int = 0) -> Any:
    """A value without what JSON cannot hold: halves of surrogate pairs become U+FFFD, NaN and what lies too deep null."""
    if isinstance(value, str):
        return encodable(value)
    if (isinstance(value, float) and not math.isfinite(value)) or depth > _DEPTH:
        return None
    if isinstance(value, dict):
        return {_plain(name): _plain(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, depth + 1) for inner in value]
    return value
