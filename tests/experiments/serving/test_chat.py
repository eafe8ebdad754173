"""What a chat completion asks: honoured, or refused by name; and what is written can be read by every client."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from experiments.serving.chat import Chat, Refused, json_text, parse_chat, parse_texts, read_object
from roi_env.answering.backends import BACKENDS, Backend, find
from roi_env.answering.base import Ask, Message, Question, ThinkingTier

pytest.importorskip("aiohttp", reason="needs the extra [live]")
from roi_env.answering.http import EndpointError, HTTPSolver

TAKES = frozenset(BACKENDS["vllm"].takes)
USER = {"role": "user", "content": "six times seven?"}
ASKED = Message("user", USER["content"], whole=USER)
PLAIN = replace(BACKENDS["anthropic"], takes=BACKENDS["vllm"].takes)
"""A backend that has no place for anything but texts."""
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
VALUES: dict[str, Any] = {
    "temperature": 0, "top_p": 0.5, "seed": 7, "stop": ["END"], "presence_penalty": 0.5, "frequency_penalty": -0.5,
    "logit_bias": {"5": -100}, "logprobs": True, "top_logprobs": 2, "response_format": {"type": "json_object"},
    "user": "me", "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "metadata": {"team": "a"}, "service_tier": "flex",
    "store": True, "verbosity": "low", "safety_identifier": "x", "prompt_cache_key": "y", "n": 2,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "auto",
    "parallel_tool_calls": False, "functions": [{"name": "f"}], "function_call": {"name": "f"},
    "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"},
    "chat_template_kwargs": {"add_vision_id": True},
}  # fmt: skip
"""A value of every field whose kind is checked, of those that some backend takes."""


def value_of(name: str) -> Any:
    return VALUES.get(name, "x")


def parse(fields: dict[str, Any] | str | bytes, backend: Backend = BACKENDS["vllm"]) -> Chat:
    text = json.dumps({"messages": [USER], **fields}) if isinstance(fields, dict) else fields
    return parse_chat(read_object(text.encode() if isinstance(text, str) else text), backend)


def refused(*given: Any, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(*given, **options)
    assert caught.value.status == 400
    return caught.value


def test_what_is_taken_is_kept_as_it_is() -> None:
    assert set(VALUES) <= {name for backend in BACKENDS.values() for name in backend.takes}
    fields = {name: value_of(name) for name in TAKES}
    chat = parse({**fields, "model": "stub", "max_tokens": 9, "max_completion_tokens": 7, "stream": True})
    assert chat == Chat((ASKED,), 7, fields, stream=True, choices=2)
    assert parse({"stream": True, "stream_options": {"include_usage": True}}).usage


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(
            ({name: value}, name)
            for name, values in {
                "model": [5, ["stub"]],
                "max_tokens": [0, -1, 1.5, 30.0, "1", True, [], {}],
                "max_completion_tokens": [0, "9"],
                "stream": ["true", 1, 0],
                "stream_options": ["x", 5, {"include_usage": True}, []],
                "n": [0, 129, "1", 1.0, True],
                "best_of": [2],
                "use_beam_search": [True],
                "temperature": ["a", -1, True, [1]],
                "top_p": [2, "x", False],
                "min_p": [7],
                "top_k": [1.5, "5"],
                "seed": [1.5, "a", 2**64, True],
                "stop": [5, "", [""], [1], {}, ["a", None]],
                "presence_penalty": ["a", True],
                "frequency_penalty": [[]],
                "logit_bias": [[], [1], {"5": "a"}, {"5": True}, "x"],
                "logprobs": ["yes", 1],
                "top_logprobs": [-1, "a", 5],
                "response_format": ["json", {}, {"type": 5}, []],
                "user": [5, {}],
                "tools": ["x", {}],
                "functions": [[{}], 1],
                "tool_choice": [5],
                "function_call": ["auto"],
                "parallel_tool_calls": ["yes"],
                "chat_template_kwargs": ["x"],
                "modalities": [["audio"], "text"],
                "audio": [{"voice": "x"}, {}],
                "prediction": [{"type": "content"}],
                "web_search_options": [{}],
                "metadata": [{"a": "b"}, {"a": 1}, []],
                "store": [True, "x", 0],
                "service_tier": ["flex", 5],
                "a field of its own": [0, False, "", [], {}],
                "choices": [1],
            }.items()
            for value in values
        ),
        *(
            ({"messages": messages}, param)
            for messages, param in (
                (None, "messages"),
                ([], "messages"),
                ({}, "messages"),
                ("x", "messages"),
                ([5], "messages.0"),
                ([USER, None], "messages.1"),
                ([{}], "messages.0.role"),
                ([{"role": "user"}], "messages.0.content"),
                ([{"role": "assistant", "content": None}], "messages.0.content"),
                ([{"role": ["user"], "content": "x"}], "messages.0.role"),
                ([{"role": "User", "content": "x"}], "messages.0.role"),
                ([{"role": "assistant", "refusal": 5}], "messages.0.refusal"),
                ([{"role": "user", "content": None, "tool_calls": [CALL]}], "messages.0.content"),
                *(
                    ([{"role": "user", "content": content}], param)
                    for content, param in (
                        (5, "messages.0.content"),
                        (True, "messages.0.content"),
                        ({"a": 1}, "messages.0.content"),
                        ([], "messages.0.content"),
                        (["a"], "messages.0.content.0"),
                        ([None], "messages.0.content.0"),
                        ([{"type": "text", "text": "x"}, {"text": "x"}], "messages.0.content.1"),
                        ([{"type": ["text"], "text": "x"}], "messages.0.content.0"),
                    )
                ),
            )
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value,
)
def test_what_cannot_be_honoured_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(fields)
    assert error.param == param
    assert str(error).startswith(param)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, {"role": "tool", "content": "x", "tool_call_id": "1"}], "messages.1.role"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages.0.role"),
        ([{"role": "assistant", "content": "x", "tool_calls": [CALL]}, USER], "messages.0.tool_calls"),
        ([{"role": "assistant", "content": None, "audio": {"id": "1"}}, USER], "messages.0.audio"),
        ([{**USER, "refusal": "no"}], "messages.0.refusal"),
        ([{**USER, "role": "assistant", "refusal": "no"}], "messages.0.refusal"),
        ([{**USER, "name": 5}], "messages.0.name"),
        ([{**USER, "name": "ann"}], "messages.0.name"),
        ([{**USER, "cache_control": {"type": "ephemeral"}}], "messages.0.cache_control"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}], "messages.0.content.0"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"a": 1}}]}],
            "messages.0.content.0.cache_control",
        ),
    ],
)
def test_an_endpoint_of_texts_alone_is_asked_for_nothing_else(messages: list[Any], param: str) -> None:
    error = refused({"messages": messages}, PLAIN)
    assert error.param == param
    assert str(error).startswith(param)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "tool", "content": [{"type": "text", "text": "42"}], "tool_call_id": "1"},
        {"role": "function", "name": "f", "content": "42"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "audio": {"id": "1"}},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "?"}],
        },
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}], "name": "ann"},
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "42", "reasoning_content": "hm", "annotations": []},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "assistant", "reasoning_content": "hm"},
        {"role": "developer", "content": "be brief"},
    ],
    ids=lambda message: json.dumps(message)[:60],
)
def test_a_conversation_is_passed_on_as_it_is(message: dict[str, Any]) -> None:
    chat = parse({"messages": [USER, message]})
    solver = HTTPSolver("http://127.0.0.1:9/v1", "stub", "vllm")
    ask = Ask(Question("d", "1", "?", ""), ThinkingTier("now", 0, 9), 9, messages=chat.messages, fields=chat.fields)
    assert solver.body(ask)["messages"] == [USER, message]


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "high"},
        {"thinking": {"type": "enabled", "budget_tokens": 9999}},
        {"thinking_token_budget": 10**6},
        {"reasoning": {"effort": "low"}, "enable_thinking": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_how_much_is_thought_is_the_tiers_and_that_is_said(fields: dict[str, Any]) -> None:
    chat = parse(fields)
    assert chat == Chat((ASKED,), replaced=tuple(fields))


def test_of_an_object_that_a_tier_is_part_of_the_rest_stays() -> None:
    given = {"enable_thinking": True, "add_vision_id": True}
    solver = HTTPSolver("http://127.0.0.1:9/v1", "stub", "vllm")
    ask = Ask(Question("d", "1", "?", ""), ThinkingTier("now", 0, 9), 9, fields={"chat_template_kwargs": given})
    assert solver.body(ask)["chat_template_kwargs"] == {"enable_thinking": False, "add_vision_id": True}


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": [[1, 2], [3]], "n": 3}, 6),
        ({"prompt": [5, 6]}, 1),
    ],
)
def test_a_text_completion_asks_for_as_many_texts_as_it_says(fields: dict[str, Any], choices: int) -> None:
    chat = parse_texts({**fields, "logprobs": 5, "echo": True, "max_tokens": 9}, BACKENDS["vllm"])
    assert chat.choices == choices
    sent = {name: value for name, value in fields.items() if name == "n"}
    assert chat.fields == {**sent, "logprobs": 5, "echo": True}
    solver = HTTPSolver("http://127.0.0.1:9/v1", "stub", "vllm")
    body = solver.body(
        Ask(Question("d", "1", "?", ""), ThinkingTier("now", 0, 9), 9, prompt=chat.prompt, fields=chat.fields)
    )
    assert body == {"model": "stub", "max_tokens": 9, **fields, "logprobs": 5, "echo": True}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [""] * 129}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt.1"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "tools": [CALL]}, "tools"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
    ],
)
def test_a_text_completion_that_cannot_be_asked_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_texts(fields, BACKENDS["vllm"])
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "tools": [], "functions": [], "tool_choice": "none", "store": False, "modalities": ["text"]},
        dict.fromkeys(
            ("n", "tools", "stop", "logprobs", "stream", "stream_options", "max_tokens", "model", "anything")
        ),
        {"stop": [], "logit_bias": {}, "metadata": {}, "service_tier": "auto"},
    ],
)
def test_what_asks_for_nothing_is_no_error(fields: dict[str, Any]) -> None:
    assert parse(fields, replace(BACKENDS["vllm"], takes={})) == Chat((ASKED,))


def test_a_conversation_goes_on_with_what_was_answered() -> None:
    history = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "42", "reasoning_content": "hm", "tool_calls": None, "annotations": []},
        {"role": "assistant", "content": None, "refusal": "skipped"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    assert parse({"messages": history}, PLAIN).messages == (
        Message("developer", "be brief"),
        Message("user", ""),
        Message("assistant", "42"),
        Message("assistant", "skipped"),
        Message("assistant", "no"),
    )
    assert [message.whole for message in parse({"messages": history}).messages] == [
        *history[:3],
        None,  # a skipped question; few endpoints know messages that are nothing but a refusal
        history[4],
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b"null", b'"x"', b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert "body" in str(refused(body))


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"model": NaN, "messages": []}', "model"),
        ('{"temperature": 1e999, "messages": []}', "temperature"),
        ('{"temperature": -Infinity, "messages": []}', "temperature"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages"),
        ('{"messages": [{"role": "user", "content": "x", "name": "\\udc00\\ud800"}]}', "messages"),
        ('{"logit_bias": {"\\ud800": 1}, "messages": []}', "logit_bias"),
        ('{"max_tokens": 5, "messages": [], "max_tokens": 4000}', "max_tokens"),
        ('{"messages": [{"role": "user", "content": "a", "content": "a"}]}', "content"),
        ('{"response_format": {"type": "x", "y": ' + "[" * 100 + "]" * 100 + '}, "messages": []}', "response_format"),
    ],
)
def test_what_no_endpoint_could_be_sent_is_named(text: str, param: str) -> None:
    assert refused(text).param == param


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_field_that_a_backend_takes_stands_in_its_request(backend: str) -> None:
    row = BACKENDS[backend]
    extra = {"metadata": {"of": "ours"}, "generationConfig": {"topK": 1}, "top_p": 0.9}
    solver = HTTPSolver("http://127.0.0.1:9/v1", "stub", row, temperature=0.7, seed=3, extra=extra)
    question, tier = Question("d", "1", "?", "4"), ThinkingTier("long", 2000, 10)
    plain = solver.body(Ask(question, tier, 2011))
    for name, path in row.takes.items():
        value = value_of(name)
        body = solver.body(Ask(question, tier, 2011, fields={name: value}))
        assert find(body, path) == [value if name != "chat_template_kwargs" else {**value, **plain[name]}], name
        kept = {key: plain[key] for key in plain if key != path.split(".")[0]}
        assert {key: body.get(key) for key in kept} == kept, f"{name} changes nothing else"
    if "stop" in row.takes:
        stops = solver.body(Ask(question, tier, 2011, fields={"stop": "END"}))
        assert find(stops, row.takes["stop"]) == (["END"] if row.takes["stop"] == "stop" else [["END"]])
    assert solver.body(Ask(question, tier, 2011)) == plain, "no request changes the next"
    for name in {*VALUES, "max_tokens"} - set(row.takes):
        with pytest.raises(EndpointError, match=name):
            solver.body(Ask(question, tier, 2011, fields={name: 1}))
    named = Ask(question, tier, 2011, messages=(Message("user", "?", "ann"),))
    if row.chat:
        assert solver.body(named)["messages"] == [{"role": "user", "content": "?", "name": "ann"}]
    else:
        with pytest.raises(EndpointError, match="no name"):
            solver.body(named)
        with pytest.raises(EndpointError, match="nothing else"):
            solver.body(Ask(question, tier, 2011, messages=(Message("tool", "42", whole={"role": "tool"}),)))


def test_whatever_an_endpoint_says_can_be_written() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    text = json_text(
        {"a": "\ud800 \udc00\U0001f9ee", "b": [math.nan, math.inf, 1.5], "c": deep, "\udfff": "é\u2028\x00"}
    )
    assert text.isascii()
    assert "\n" not in text
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["a"] == "\ufffd \ufffd\U0001f9ee"
    assert read["b"] == [None, None, 1.5]
    assert read["\ufffd"] == "é\u2028\x00"
    json.dumps(read, ensure_ascii=False).encode()
