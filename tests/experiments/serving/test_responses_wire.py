"""OpenAI's responses through the proxy: what they mean for the endpoint, and how its answers are told, whole and in events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")
pytest.importorskip("openai", reason="needs the extra [dev]")

import openai
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.experiments.serving.test_messages import CALLS, SCHEMA, call, said
from tests.experiments.serving.test_streams import Chunks, client, piece, proxy, used
from tests.upstream import Upstream

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "ask", "description": "asks", "parameters": SCHEMA, "strict": True}
PARTS = {
    "response.output_text": ("output_text", "text"),
    "response.refusal": ("refusal", "refusal"),
    "response.reasoning_text": ("reasoning_text", "text"),
}


def post(address: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{address}/a/v1/responses", json={"model": "stub", "input": "?", **fields}, timeout=30)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream: numbered, each as the official client's types have it and named by its type."""
    events = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        EVENT.validate_python(events[-1])
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    return events


def replay(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that a stream tells: every item is added, told in pieces and done, before the next one."""
    first, second, *between, last = events
    assert [first["type"], second["type"]] == ["response.created", "response.in_progress"]
    assert first["response"]["status"] == second["response"]["status"] == "in_progress"
    assert first["response"]["output"] == []
    items: list[dict[str, Any]] = []
    pieces, open_ = "", False
    for one in between:
        kind, _, stage = one["type"].rpartition(".")
        if one["type"] == "response.output_item.added":
            assert not open_
            assert one["output_index"] == len(items)
            items.append(one["item"])
            pieces, open_ = "", True
            continue
        assert open_
        assert one["output_index"] == len(items) - 1
        if one["type"] == "response.output_item.done":
            assert one["item"]["id"] == items[-1]["id"]
            assert one["item"]["status"] == "completed"
            items[-1], open_ = one["item"], False
            continue
        assert one["item_id"] == items[-1]["id"]
        if stage == "delta":
            pieces += one["delta"]
        elif kind == "response.function_call_arguments":
            assert one["arguments"] == pieces or (one["arguments"], pieces) == ("{}", "")
        elif kind in PARTS:
            assert one[PARTS[kind][1]] == pieces
        else:
            assert kind == "response.content_part"
    assert not open_
    assert last["response"]["output"] == items
    assert last["type"] == f"response.{last['response']['status']}"
    return dict(last["response"])


def told_of(response: Mapping[str, Any]) -> list[Any]:
    """The items of a response without their ids."""
    found: list[Any] = []
    for item in response["output"]:
        if item["type"] == "function_call":
            found.append((item["call_id"], item["name"], item["arguments"]))
        else:
            (part,) = item["content"]
            found.append((item["type"], part["type"], part["refusal" if part["type"] == "refusal" else "text"]))
    return found


TEXT, THOUGHT = ("message", "output_text", "it is 42"), ("reasoning", "reasoning_text", "hm hm")
ANSWERS: dict[str, tuple[dict[str, Any], list[Any], str | None]] = {
    "text": (said(content="it is 42"), [TEXT], None),
    "thought": (said(content="it is 42", reasoning="hm hm"), [THOUGHT, TEXT], None),
    "cut": (said("length", content="it is 42"), [TEXT], "max_output_tokens"),
    "cut in thought": (said("length", reasoning="hm hm"), [THOUGHT], "max_output_tokens"),
    "filtered": (said("content_filter", content="it is 42"), [TEXT], "content_filter"),
    "refused": (said(refusal="not that"), [("message", "refusal", "not that")], None),
    "calls": (
        said("tool_calls", content="it is 42", tool_calls=[call("ask", '{"question": "?"}'), call("now", "{}")]),
        [TEXT, ("call_ask", "ask", '{"question": "?"}'), ("call_now", "now", "{}")],
        None,
    ),
    "a call without arguments": (said("tool_calls", tool_calls=[call("now", "")]), [("call_now", "now", "{}")], None),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["vllm", "openai"])
def test_whole_and_streamed_answers_are_one_and_their_usage_is_the_charge(backend: str, tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, 10_000, backend) as (address, budget):
        for name, (told, items, why) in ANSWERS.items():
            upstream.told = told
            asked: dict[str, Any] = {"tools": [TOOL]} if "call" in name else {}
            before = budget.session.charged
            whole = post(address, **asked).json()
            between = budget.session.charged
            streamed = replay(events_of(post(address, stream=True, **asked)))
            for answer, charged in ((whole, between - before), (streamed, budget.session.charged - between)):
                Response.model_validate(answer)
                assert told_of(answer) == items, name
                assert answer["status"] == ("incomplete" if why else "completed"), name
                assert answer["incomplete_details"] == ({"reason": why} if why else None), name
                usage = answer["usage"]
                assert usage["output_tokens"] == usage["roi"]["charged"] == charged > 0, name
                assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] == 9 + charged, name
                assert usage["output_tokens_details"]["reasoning_tokens"] <= charged
                assert len({item["id"] for item in answer["output"]}) == len(items)
            assert streamed["usage"]["roi"]["remaining"] == budget.session.remaining


@pytest.mark.parametrize("kind", CALLS)
def test_calls_that_come_in_pieces_stay_apart(kind: str, tmp_path: Path) -> None:
    with proxy(Chunks(*CALLS[kind], piece("tool_calls"), used(9)), tmp_path) as (address, _):
        told = told_of(replay(events_of(post(address, stream=True, tools=[TOOL]))))
        assert [(named, name, json.loads(arguments)) for named, name, arguments in told] == [
            ("call_ask", "ask", {"n": 1}), ("call_now", "now", {"n": 2}),
        ]  # fmt: skip


def test_an_answer_can_be_sent_back_as_it_came(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, 10_000) as (address, _):
        for name, (told, items, _) in ANSWERS.items():
            upstream.told = told
            asked: dict[str, Any] = {"tools": [TOOL]} if "call" in name else {}
            output = post(address, **asked).json()["output"]
            calls = [item["call_id"] for item in output if item["type"] == "function_call"]
            results = [{"type": "function_call_output", "call_id": one, "output": "42"} for one in calls]
            history = [{"role": "user", "content": "?"}, *output, *(results or [{"role": "user", "content": "so?"}])]
            again = post(address, input=history, **asked)
            assert again.status_code == 200, (name, again.text)
            messages = upstream.seen[-1].body["messages"]
            answered = ["assistant"] * (items != [THOUGHT])
            assert [one["role"] for one in messages] == ["user", *answered, *(["tool"] * len(calls) or ["user"])], name
            assert [one["id"] for one in messages[1].get("tool_calls", ())] == calls


def test_logprobs_are_asked_for_and_told(tmp_path: Path) -> None:
    content = [{"token": "it", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    upstream = Upstream(told=said("stop", {"logprobs": {"content": content}}, content="it"))
    with proxy(upstream, tmp_path, backend="openai") as (address, _):
        whole = post(address, top_logprobs=1).json()
        assert upstream.seen[0].body["logprobs"] is True
        assert whole["output"][0]["content"][0]["logprobs"] == content


def test_a_conversation_reaches_the_endpoint_with_its_tools_and_images(tmp_path: Path) -> None:
    upstream = Upstream()
    parts = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "AAAA"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    given = [
        {"role": "user", "content": parts},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I "}, {"type": "output_text", "text": "ask"}]},
        {"type": "function_call", "call_id": "c1", "name": "ask", "arguments": '{"question": "?"}'},
        {"type": "function_call", "call_id": "c2", "name": "ask", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "a"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "b"}]},
        {"type": "function_call", "call_id": "c3", "name": "ask", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c3", "output": ""},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "not that"}]},
        {"role": "user", "content": "go on"},
    ]  # fmt: skip
    with proxy(upstream, tmp_path) as (address, _):
        answer = post(address, input=given, instructions="be brief")
        assert answer.status_code == 200, answer.text
    calls = [call("ask", '{"question": "?"}') | {"id": "c1"}, call("ask", "{}") | {"id": "c2"}]
    assert upstream.seen[0].body["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "AAAA"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            ],
        },
        {"role": "assistant", "content": "I ask", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "a"},
        {"role": "tool", "tool_call_id": "c2", "content": "b"},
        {"role": "assistant", "content": None, "tool_calls": [call("ask", "{}") | {"id": "c3"}]},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "assistant", "content": "not that"},
        {"role": "user", "content": "go on"},
    ]


def test_fields_reach_the_endpoint_under_its_own_names(tmp_path: Path) -> None:
    upstream = Upstream()
    form = {"type": "json_schema", "name": "sum", "schema": SCHEMA, "strict": True}
    asked: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "user": "me", "max_output_tokens": 55, "tools": [TOOL], "tool_choice": "required",
        "parallel_tool_calls": False, "reasoning": {"effort": "low"}, "text": {"format": form, "verbosity": "low"},
        "store": False, "background": False, "truncation": "disabled", "include": [], "metadata": {"run": "1"},
    }  # fmt: skip
    with proxy(upstream, tmp_path, 10_000, "openai") as (address, _):
        told = post(address, **asked)
        assert told.status_code == 200, told.text
        body, answer = upstream.seen[-1].body, told.json()
        assert told.headers["x-roi-replaced"] == "reasoning_effort"
        for name in (
            "temperature",
            "top_p",
            "max_output_tokens",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "metadata",
        ):
            assert answer[name] == asked[name], f"{name}: responses repeat what was asked"
        assert answer["store"] is False
        post(address, tools=[TOOL], tool_choice={"type": "function", "name": "ask"})
        assert upstream.seen[-1].body["tool_choice"] == {"type": "function", "function": {"name": "ask"}}
        post(address, text={"format": {"type": "json_object"}})
        assert upstream.seen[-1].body["response_format"] == {"type": "json_object"}
        post(address, text={"format": {"type": "text"}})
        assert "response_format" not in upstream.seen[-1].body
    assert body["tools"] == [{"type": "function", "function": {name: TOOL[name] for name in TOOL if name != "type"}}]
    assert [body[name] for name in ("temperature", "top_p", "user", "tool_choice", "verbosity")] == [
        0.5,
        0.9,
        "me",
        "required",
        "low",
    ]
    assert body["parallel_tool_calls"] is False
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True},
    }
    assert upstream.seen[0].cap <= 55
    assert not {"text", "reasoning", "truncation", "include", "background", "max_output_tokens"} & set(body)


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [fields]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 7}, "input"),
    ({"input": ["hello"]}, "input.0"),
    (item(role="user", content=None), "input.0.content"),
    (item(role="user", content=[]), "input.0.content"),
    (item(role="user", content=["x"]), "input.0.content.0"),
    (item(role="user", content=[{"type": "input_image", "file_id": "f"}]), "input.0.content.0"),
    (item(role="user", content=[{"type": "input_file", "file_id": "f"}]), "input.0.content.0"),
    (item(type="web_search_call", id="w"), "input.0"),
    (item(type="item_reference", id="w"), "input.0"),
    ({"instructions": 7}, "instructions"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": True}, "max_output_tokens"),
    ({"text": "json"}, "text"),
    ({"text": {"format": "json"}}, "text.format"),
    ({"text": {"colour": "red"}}, "text"),
    ({"tools": "ask"}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools.0"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"metadata": {"run": 1}}, "metadata"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"store": True}, "store"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["reasoning.encrypted_content"]}, "include"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"temperature": "warm"}, "temperature"),
]  # fmt: skip


def test_what_cannot_be_honoured_is_refused_by_name_and_costs_nothing(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path) as (address, budget):
        for stream in (False, True):
            for fields, param in REFUSED:
                told = post(address, stream=stream, **fields)
                assert told.status_code == 400, fields
                error = told.json()["error"]
                assert error["code"] in ("invalid_request", "unsupported"), fields
                assert error["param"] == param, fields
                assert param in error["message"], fields
        assert not upstream.seen
        assert budget.session.charged == 0


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_agent_skips_is_a_refusal_that_costs_nothing(stream: bool, tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, agent="skip") as (address, budget):
        told = post(address, stream=stream)
        ((kind, part, text),) = told_of(response := replay(events_of(told)) if stream else told.json())
        assert (kind, part) == ("message", "refusal")
        assert text.startswith("skipped")
        assert response["usage"]["output_tokens"] == budget.session.charged == len(upstream.seen) == 0


def test_errors_are_those_of_the_official_client(tmp_path: Path) -> None:
    with proxy(Upstream(["422", "ok", "ok", "truncated"]), tmp_path, 30) as (address, budget):
        ask = client(address).responses.create
        with pytest.raises(openai.UnprocessableEntityError):
            ask(model="stub", input="?")
        assert ask(model="stub", input="?").status == "completed"
        assert list(ask(model="stub", input="?", stream=True))[-1].type == "response.incomplete"
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                ask(model="stub", input="?", stream=stream)
            assert caught.value.code == "budget_exhausted"
        assert budget.session.charged == 30


def test_a_stream_that_breaks_off_ends_with_an_error(tmp_path: Path) -> None:
    with proxy(Upstream(["truncated"]), tmp_path) as (address, budget):
        *begun, last = events_of(post(address, stream=True))
        assert begun[0]["type"] == "response.created"
        assert (last["type"], last["param"]) == ("error", None)
        assert last["message"]
        assert not {"response.completed", "response.incomplete"} & {one["type"] for one in begun}
        assert budget.session.charged == 51
