"""Chat completions as `roi serve` reads and writes them: nothing that is asked vanishes, nothing paid fails to be written.

What a request asks is honoured (its cap, streaming, the fields that the backend takes), replaced by the tier's where it
says how much shall be thought (and the answer says so), or refused by name. Where the backend speaks chat completions,
conversations, tools and answers are passed on as they are. What is written is made JSON that every reader takes, whatever
the endpoint said. Other protocols (:mod:`experiments.serving.wires`) are translated to this one and back.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from roi_env.answering.base import IMAGES, Message
from roi_env.answering.responses import encodable, in_parts

if TYPE_CHECKING:
    from agents.live.session import Row
    from roi_env.answering.backends import Backend
    from roi_env.answering.base import Reply

_DEPTH = 64
"""Objects and lists inside one another that a request may have; schemas of answers need about twenty."""
_ROLES = ("system", "developer", "user", "assistant")
_TOOL_ROLES = ("tool", "function")
_MOST_CHOICES = 128
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

    :param limit: most tokens of one answer, thought included; None: as many as the tier and the budget allow.
    :param fields: what the endpoint is asked beside, see :attr:`roi_env.answering.base.Ask.fields`.
    :param stream: whether the answer is to come as events.
    :param usage: whether an event of its own tells the usage.
    :param prompt: of a text completion, which has no messages.
    :param choices: answers that are asked for.
    :param replaced: fields that the tier decides.
    """

    messages: tuple[Message, ...]
    limit: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    usage: bool = False
    prompt: str | Sequence[Any] | None = None
    choices: int = 1
    replaced: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What was asked last."""
        if self.messages:
            return self.messages[-1].text
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt or ()
        return next((one for one in prompts if isinstance(one, str)), "")


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
    "n": (_integer(1, _MOST_CHOICES), f"an integer from 1 to {_MOST_CHOICES}"),
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
    "tool_choice": (_is(str, dict), "a text or an object"),
    "function_call": (_is(str, dict), "a text or an object"),
    "parallel_tool_calls": (_is(bool), "true or false"),
    "audio": (_is(dict), "an object"),
    "chat_template_kwargs": (_is(dict), "an object"),
    "suffix": (_is(str), "a text"),
    "echo": (_is(bool), "true or false"),
}
"""Fields whose kind is known: a check, and what it expects."""

_LIMITS = ("max_tokens", "max_completion_tokens")
_OURS = ("messages", "prompt", "model", "stream", "stream_options", *_LIMITS)
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
    "best_of": (1,),
    "use_beam_search": (False,),
    "echo": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "service_tier": ("auto",),
    "tool_choice": ("none",),
    "function_call": ("none",),
}
"""Values that ask for what happens anyway."""

_TIERS = frozenset(
    (
        "reasoning_effort", "reasoning", "thinking", "thinking_budget", "thinking_token_budget",
        "thinking_budget_tokens", "enable_thinking",
    )
)  # fmt: skip
"""Fields that say how much is thought about a question: what the budget's agent decides."""

_WHY: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "tool_calls", "tool_call_id",
        ),
        "tools cannot be passed on to this proxy's endpoint",
    ),
    "n": "this proxy's endpoint gives one answer to a request",
    "best_of": "the answers that are thrown away would cost tokens that nobody reserved",
    "use_beam_search": "the beams that are thrown away would cost tokens that nobody reserved",
    **dict.fromkeys(("modalities", "audio"), "this proxy's endpoint answers in text"),
    "prediction": "rejected predictions would cost tokens that nobody reserved",
}  # fmt: skip


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object that the body of a request is.

    :raises Refused: 400, for all others.
    """
    try:
        body = json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid_request", f"the body is not JSON: {_short(error)}") from None
    if not isinstance(body, dict):
        raise Refused(400, "invalid_request", "the body must be a JSON object")
    for name, value in body.items():
        _check_json(name, "the name of a field")
        _check_json(value, name)
    return body


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one with two fields of a name would lose one of them."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(400, "invalid_request", f"{_short(twice)} stands twice in one object", twice)
    return made


def parse_chat(body: Mapping[str, Any], backend: Backend) -> Chat:
    """What a chat completion asks; which menu its ``model`` names is its caller's to know.

    :param backend: the endpoint's kind: what it takes.
    :raises Refused: 400, naming the field, for all that is no chat completion or cannot be honoured.
    """
    chat = _parse(body, backend, _FIELDS)
    return replace(chat, messages=_messages(body.get("messages"), backend))


def refuse_unpriced(chat: Chat) -> None:
    """Refuse what a budget in dollars cannot bound: it costs more than its tokens' price says.

    :raises Refused: 400, naming the field.
    """
    for name, harmless in _UNPRICED.items():
        if chat.fields.get(name, harmless[0]) not in harmless:
            raise _unsupported(name, "what it costs is not in the tier's price")
    for number, tool in enumerate(chat.fields.get("tools", ())):
        if isinstance(tool, dict) and tool.get("type", "function") not in ("function", "custom"):
            raise _unsupported(
                f"tools.{number}", f"what a tool of type {_short(tool['type'])} costs is not in the tier's price"
            )
    for number, message in enumerate(chat.messages):
        if (message.whole or {}).get("audio"):
            raise _unsupported(f"messages.{number}.audio", "what an earlier answer in sound costs is not known before")
        content = (message.whole or {}).get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] not in ("text", "refusal", *IMAGES):
                raise _unsupported(
                    f"messages.{number}.content.{place}",
                    f"what a part of type {_short(part['type'])} costs is not known before",
                )


_UNPRICED: Mapping[str, tuple[Any, ...]] = {
    "web_search_options": (None,),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "service_tier": (None, "auto", "default", "standard", "standard_only", "flex"),
}
"""Fields of a request that are charged beside or above the price of tokens, and values that are not."""


def parse_texts(body: Mapping[str, Any], backend: Backend) -> Chat:
    """What a text completion asks: a prompt, or several.

    :raises Refused: see :func:`parse_chat`; also where the endpoint has conversations alone.
    """
    if not backend.chat:
        raise Refused(404, "unsupported", "text completions: this proxy's endpoint has none, ask /chat/completions")
    prompt = body.get("prompt")
    tokens = isinstance(prompt, list) and bool(prompt) and all(map(_integer(0), prompt))
    prompts = [prompt] if tokens or isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts:
        raise _bad("prompt", f"must be a text, a list of token ids, or a list of these, got {_got(prompt)}")
    for place, one in enumerate(prompts):
        if not (isinstance(one, str) or (isinstance(one, list) and one and all(map(_integer(0), one)))):
            raise _bad(f"prompt.{place}", f"must be a text or a list of token ids, got {_got(one)}")
    chat = _parse(body, backend.of_texts, {**_FIELDS, "logprobs": (_integer(0), "an integer of at least 0")})
    choices = chat.choices * len(prompts)
    if choices > _MOST_CHOICES:
        raise _bad("prompt", f"and n may ask for at most {_MOST_CHOICES} texts, got {choices}")
    return replace(chat, prompt=prompt, choices=choices)


def _parse(body: Mapping[str, Any], backend: Backend, known: Mapping[str, tuple[Callable[[Any], bool], str]]) -> Chat:
    """All but the conversation."""
    asked = {name: value for name, value in body.items() if value is not None}
    for name, value in asked.items():
        if name in known and not known[name][0](value):
            raise _bad(name, f"must be {known[name][1]}, got {_got(value)}")
    fields, replaced = {}, []
    for name, value in asked.items():
        if name in _OURS:
            continue
        if name in _TIERS:
            replaced.append(name)
        elif name in backend.takes and value not in ([], {}):
            fields[name] = value
        elif value not in _NOTHING.get(name, ()):
            raise _unsupported(name, _WHY.get(name, "it is not known to be honoured by this proxy's endpoint"))
    if known is _FIELDS and "top_logprobs" in fields and not fields.get("logprobs"):
        raise _bad("top_logprobs", "needs logprobs to be true")
    stream = asked.get("stream", False)
    return Chat(
        (),
        min((asked[name] for name in _LIMITS if name in asked), default=None),
        fields,
        stream,
        _wants_usage(asked.get("stream_options"), stream),
        choices=asked.get("n", 1),
        replaced=tuple(replaced),
    )


def _messages(entries: Any, backend: Backend) -> tuple[Message, ...]:
    if not isinstance(entries, list) or not entries:
        raise _bad("messages", "must be a list of at least one message")
    read = _whole_message if backend.chat else _message
    return tuple(read(entry, f"messages.{place}") for place, entry in enumerate(entries))


def _whole_message(entry: Any, place: str) -> Message:
    """A message that is passed on as it is: only what no endpoint takes is refused here."""
    if not isinstance(entry, dict):
        raise _bad(place, f"must be an object, got {_got(entry)}")
    role, content = entry.get("role"), entry.get("content")
    if role not in (*_ROLES, *_TOOL_ROLES):
        raise _bad(f"{place}.role", f"must be one of {', '.join((*_ROLES, *_TOOL_ROLES))}, got {_got(role)}")
    refusal = entry.get("refusal")
    if refusal is not None and not isinstance(refusal, str):
        raise _bad(f"{place}.refusal", f"must be a text, got {_got(refusal)}")
    calls = any(entry.get(name) for name in ("tool_calls", "function_call", "audio"))
    said = calls or any(entry.get(name) for name in _THOUGHTS)  # an answer may be cut in its thought
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise _bad(f"{place}.content.{number}", f"must be an object with a type, got {_got(part)}")
    elif content is None and role == "assistant" and refusal is not None and not calls:
        return Message(role, refusal)  # ours, where a question was skipped; few endpoints know such messages
    elif not isinstance(content, str) and not (content is None and said and role == "assistant"):
        raise _bad(f"{place}.content", f"must be a text or a list of parts, got {_got(content)}")
    if content == []:
        raise _bad(f"{place}.content", "must have a part")
    parts: list[dict[str, Any]] = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts]
    text = "".join(text for text in texts if isinstance(text, str))
    return Message(role, text, whole=entry)


def _message(entry: Any, place: str) -> Message:
    """A message of which a role and a text are all that the endpoint takes."""
    if not isinstance(entry, dict):
        raise _bad(place, f"must be an object, got {_got(entry)}")
    asked = {name: value for name, value in entry.items() if value is not None and value not in ([], {})}
    role, content = entry.get("role"), entry.get("content")
    if role in _TOOL_ROLES:
        raise _unsupported(f"{place}.role", _WHY["tools"])
    if role not in _ROLES:
        raise _bad(f"{place}.role", f"must be one of {', '.join(_ROLES)}, got {_got(role)}")
    known = ("role", "content", "name", *(("refusal", *_THOUGHTS) if role == "assistant" else ()))
    for other, value in asked.items():
        if other not in known:
            raise _unsupported(f"{place}.{other}", _WHY.get(other, "it cannot be passed on"))
        if other not in ("role", "content") and not isinstance(value, str):
            raise _bad(f"{place}.{other}", f"must be a text, got {_got(value)}")
    if "name" in asked:
        raise _unsupported(f"{place}.name", "this proxy's endpoint takes none")
    refusal = asked.get("refusal")
    if refusal is None:
        return Message(role, _text(content, f"{place}.content"))
    if content:
        raise _bad(f"{place}.refusal", "cannot stand beside a content")
    return Message(role, refusal)


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


def completion(
    row: Row, reply: Reply | None, told: Mapping[str, Any], chat: Chat, backend: Backend, model: str
) -> dict[str, Any]:
    """An answer as a chat completion (a text completion, where the request was one); its ``usage`` tells the charge.

    Where the endpoint speaks chat completions its answer is passed on as it is.

    :param reply: None where the agent skipped the question.
    :param told: of the budget, in its usage.
    :param model: named where the endpoint names none.
    """
    finish = "length" if row.finish == "length" else "content_filter" if row.finish == "refused" else "stop"
    choices, kept = _choices(reply, chat) if backend.chat and reply is not None else ([], {})
    if backend.echoes_prompt and choices and row.answer == "":
        choices = []  # what it shows as the answer is the prompt
    if not choices:
        message: dict[str, Any] = {"role": "assistant", "content": row.answer if reply is not None else None}
        if reply is None:
            message["refusal"] = SKIPPED
        elif row.finish == "refused" and not row.answer:
            message |= {"content": None, "refusal": reply.note or "the endpoint refused to answer"}
        elif reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if chat.prompt is not None:
            choices = [{"index": 0, "text": message["content"] or "", "finish_reason": finish, "logprobs": None}]
        else:
            choices = [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}]
    model = (reply.model if reply is not None else None) or model
    return {
        **kept,
        "id": f"roi-{time.time_ns():x}",
        "object": "chat.completion" if chat.prompt is None else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": _usage(row, reply, told, chat.replaced),
    }


SKIPPED = "skipped: the budget is better spent on other questions"
"""What a refused question is told."""


def _choices(reply: Reply, chat: Chat) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The choices of an endpoint's answer, and what stands beside them; none where one is not as clients read it."""
    whole = reply.whole if isinstance(reply.whole, dict) else {}
    given = whole.get("choices")
    choices = []
    for number, choice in enumerate(given if isinstance(given, list) else ()):
        if not isinstance(choice, dict):
            return [], {}
        made = {"index": number, "finish_reason": None, **choice}
        made["logprobs"] = choice.get("logprobs") if isinstance(choice.get("logprobs"), dict) else None
        if chat.prompt is not None:
            if not isinstance(choice.get("text"), str):
                return [], {}
        else:
            message = choice.get("message")
            if not isinstance(message, dict):
                return [], {}
            if not isinstance(message.get("content"), str | None):
                message = {**message, **as_texts(message["content"])}
            said = message.get("content") or message.get("refusal")
            if number == 0 and reply.finish == "refused" and not (said and isinstance(said, str)):
                return [], {}
            made["message"] = {"role": "assistant", "content": None, **message}
        if not (isinstance(made["finish_reason"], str) and made["finish_reason"]):
            made["finish_reason"] = "length" if reply.finish == "length" else "stop"
        choices.append(made)
    return choices, {name: value for name, value in whole.items() if name in _KEPT and value is not None}


def as_texts(content: Any) -> dict[str, Any]:
    """A message's content in parts, as the texts that clients read."""
    text, thought = in_parts(content)
    return {"content": text or None, **({"reasoning_content": thought} if thought else {})}


_KEPT = ("system_fingerprint", "service_tier", "citations", "provider", "prompt_logprobs", "search_results", "timings")
"""What is passed on of an answer beside its choices."""


def _usage(row: Row, reply: Reply | None, budget: Mapping[str, Any], replaced: Sequence[str]) -> dict[str, Any]:
    """The usage that a client is told: what was charged."""
    whole = reply.whole if reply is not None and isinstance(reply.whole, dict) else {}
    told: dict[str, Any] = whole["usage"] if isinstance(whole.get("usage"), dict) else {}
    usage: dict[str, Any] = {
        "prompt_tokens": (reply.prompt_tokens if reply else None) or 0,
        "completion_tokens": row.charged if budget["unit"] == "tokens" else row.tokens,
    }
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    details = told.get("completion_tokens_details")
    if row.reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": row.reasoning_tokens}
        if isinstance(details, dict):
            usage["completion_tokens_details"] = {**details, "reasoning_tokens": row.reasoning_tokens}
    if isinstance(told.get("prompt_tokens_details"), dict):
        usage["prompt_tokens_details"] = told["prompt_tokens_details"]
    usage["roi"] = dict(budget)
    if replaced:
        usage["roi"]["replaced"] = list(replaced)
    return usage


def chunks(answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A whole answer as chunks of a stream: for endpoints that do not stream, and skipped questions."""
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    if head["object"] == "chat.completion":
        head["object"] = "chat.completion.chunk"
    for choice in answer["choices"]:
        first = {**choice, "finish_reason": None}
        last = {"index": choice["index"], "finish_reason": choice["finish_reason"], "logprobs": None}
        if "text" in choice:
            last["text"] = ""
        else:
            delta = dict(first.pop("message"))
            if isinstance(calls := delta.get("tool_calls"), list):
                delta["tool_calls"] = [
                    {"index": number, **call} for number, call in enumerate(calls) if isinstance(call, dict)
                ]
            first["delta"], last["delta"] = delta, {}
        yield {**head, "choices": [first]}
        yield {**head, "choices": [last]}


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
