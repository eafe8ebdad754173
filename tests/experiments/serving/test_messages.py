"""Anthropic's messages through the proxy: what they mean for the endpoint, and how its answers are told, whole and in events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from tests.experiments.serving.test_streams import Chunks, piece, proxy, used
from tests.upstream import Upstream

ASKED: list[Any] = [{"role": "user", "content": "six times seven?"}]
SCHEMA = {"type": "object", "properties": {"question": {"type": "string"}}}


def post(address: str, **fields: Any) -> httpx.Response:
    asked = {"model": "stub", "max_tokens": 60, "messages": ASKED, **fields}
    return httpx.post(f"{address}/a/v1/messages", json=asked, timeout=30)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; each names its type twice."""
    events = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def replay(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream tells, read as the API documents it: one block after the other, each begun and ended."""
    first, *blocks, told, last = events
    assert [first["type"], told["type"], last["type"]] == ["message_start", "message_delta", "message_stop"]
    message: dict[str, Any] = first["message"]
    assert message["content"] == []
    texts: list[str] = []
    open_ = False
    for one in blocks:
        if one["type"] == "content_block_start":
            assert not open_
            assert one["index"] == len(texts)
            message["content"].append(one["content_block"])
            texts.append("")
            open_ = True
            continue
        assert open_
        assert one["index"] == len(texts) - 1
        if one["type"] == "content_block_stop":
            open_ = False
            block = message["content"][-1]
            if block["type"] == "tool_use":
                assert block["input"] == {}
                block["input"] = json.loads(texts[-1] or "{}")
            else:
                assert block[block["type"]] == ""
                block[block["type"]] = texts[-1]
            continue
        assert one["type"] == "content_block_delta"
        kind = message["content"][-1]["type"]
        names = {
            "thinking": ("thinking_delta", "thinking"),
            "text": ("text_delta", "text"),
            "tool_use": ("input_json_delta", "partial_json"),
        }
        assert one["delta"]["type"] == names[kind][0]
        texts[-1] += one["delta"][names[kind][1]]
    assert not open_
    return {**message, **told["delta"], "usage": {**message["usage"], **told["usage"]}}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}


def said(finish: str = "stop", more: dict[str, Any] | None = None, **message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": None, **message}, "finish_reason": finish, **(more or {})}


TEXT = {"type": "text", "text": "it is 42"}
THOUGHT = {"type": "thinking", "thinking": "hm hm", "signature": ""}
ANSWERS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], tuple[str, str | None]]] = {
    "text": (said(content="it is 42"), [TEXT], ("end_turn", None)),
    "thought": (said(content="it is 42", reasoning="hm hm"), [THOUGHT, TEXT], ("end_turn", None)),
    "cut": (said("length", content="it is 42"), [TEXT], ("max_tokens", None)),
    "cut in thought": (said("length", reasoning="hm hm"), [THOUGHT], ("max_tokens", None)),
    "stopped": (said("stop", {"stop_reason": "END"}, content="it is 42"), [TEXT], ("stop_sequence", "END")),
    "ended by a token": (said("stop", {"stop_reason": 151645}, content="it is 42"), [TEXT], ("end_turn", None)),
    "filtered": (said("content_filter", content="it is 42"), [TEXT], ("refusal", None)),
    "refused": (said(refusal="not that"), [{"type": "text", "text": "not that"}], ("refusal", None)),
    "calls": (
        said("tool_calls", content="it is 42", tool_calls=[call("ask", '{"question": "?"}'), call("now", "{}")]),
        [
            TEXT,
            {"type": "tool_use", "id": "call_ask", "name": "ask", "input": {"question": "?"}},
            {"type": "tool_use", "id": "call_now", "name": "now", "input": {}},
        ],
        ("tool_use", None),
    ),
    "a call without arguments": (
        said("tool_calls", tool_calls=[call("now", "")]),
        [{"type": "tool_use", "id": "call_now", "name": "now", "input": {}}],
        ("tool_use", None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["vllm", "openai"])
def test_whole_and_streamed_answers_are_one_and_their_usage_is_the_charge(backend: str, tmp_path: Path) -> None:
    upstream = Upstream()
    tools = [{"name": "ask", "input_schema": SCHEMA}]
    with proxy(upstream, tmp_path, 10_000, backend) as (address, budget):
        for name, (told, content, stop) in ANSWERS.items():
            upstream.told = told
            asked = {"stop_sequences": ["END"], **({"tools": tools} if "call" in name else {})}
            before = budget.session.charged
            whole = post(address, **asked).json()
            between = budget.session.charged
            streamed = replay(events_of(post(address, stream=True, **asked)))
            for answer, charged in ((whole, between - before), (streamed, budget.session.charged - between)):
                assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "stub"), name
                assert answer["content"] == content, name
                assert (answer["stop_reason"], answer["stop_sequence"]) == stop, name
                assert answer["usage"]["output_tokens"] == answer["usage"]["roi"]["charged"] == charged > 0, name
                assert answer["usage"]["input_tokens"] == 9, name
            assert streamed["usage"]["roi"]["remaining"] == budget.session.remaining


def begun(name: str, arguments: Any, **place: int) -> dict[str, Any]:
    """A chunk that begins a call."""
    return piece(tool_calls=[{**place, **call(name, arguments)}])


def more(arguments: str, **place: int) -> dict[str, Any]:
    """A chunk that goes on with one."""
    return piece(tool_calls=[{**place, "function": {"arguments": arguments}}])


CALLS: dict[str, list[dict[str, Any]]] = {
    "without places": [begun("ask", '{"n"'), more(": 1}"), begun("now", '{"n": 2}')],
    "without places, at once": [piece(tool_calls=[call("ask", '{"n": 1}'), call("now", '{"n": 2}')])],
    "all at one place": [begun("ask", '{"n": 1}', index=0), begun("now", '{"n"', index=0), more(": 2}", index=0)],
    "by turns": [
        begun("ask", "", index=0),
        begun("now", "", index=1),
        *(more(text, index=place) for text in ('{"n"', ": ") for place in (0, 1)),
        more("1}", index=0),
        more("2}", index=1),
    ],
    "named in every piece": [
        begun("ask", '{"n": ', index=0),
        begun("ask", "1}", index=0),
        begun("now", '{"n": 2}', index=1),
    ],
    "as objects": [begun("ask", {"n": 1}, index=0), begun("now", {"n": 2}, index=1)],
}
"""Two calls as endpoints stream them."""


@pytest.mark.parametrize("kind", CALLS)
def test_calls_that_come_in_pieces_stay_apart(kind: str, tmp_path: Path) -> None:
    with proxy(Chunks(*CALLS[kind], piece("tool_calls"), used(9)), tmp_path) as (address, _):
        tools = [{"name": name, "input_schema": SCHEMA} for name in ("ask", "now")]
        told = replay(events_of(post(address, stream=True, tools=tools)))
        assert told["content"] == [
            {"type": "tool_use", "id": f"call_{name}", "name": name, "input": {"n": n}}
            for name, n in (("ask", 1), ("now", 2))
        ]
        assert told["stop_reason"] == "tool_use"


def test_arguments_that_are_no_object_are_told_all_the_same(tmp_path: Path) -> None:
    for text, read in (("not JSON", {"arguments": "not JSON"}), ("[1]", {"arguments": [1]})):
        upstream = Upstream(told=said("tool_calls", tool_calls=[call("ask", text)]))
        with proxy(upstream, tmp_path / text[0]) as (address, _):
            asked = {"tools": [{"name": "ask", "input_schema": SCHEMA}]}
            assert post(address, **asked).json()["content"][0]["input"] == read
            events = events_of(post(address, stream=True, **asked))
            assert (
                "".join(one["delta"]["partial_json"] for one in events if "partial_json" in one.get("delta", {}))
                == text
            )


def test_a_conversation_reaches_the_endpoint_with_its_tools_and_images(tmp_path: Path) -> None:
    upstream = Upstream()
    data = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    use = {"type": "tool_use", "id": "c1", "name": "ask", "input": {"question": "?"}}
    results = [
        {
            "type": "tool_result",
            "tool_use_id": "c1",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"type": "tool_result", "tool_use_id": "c2", "content": "too late", "is_error": True},
        {"type": "tool_result", "tool_use_id": "c3"},
    ]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image", "source": data}]},
        {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "I ask"}, use, {**use, "id": "c2", "input": {}}]},
        {"role": "user", "content": [*results, {"type": "text", "text": "go on"}]},
        {"role": "assistant", "content": [THOUGHT]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}]},
    ]  # fmt: skip
    with proxy(upstream, tmp_path) as (address, _):
        answer = post(
            address, messages=messages, system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]
        )
        assert answer.status_code == 200, answer.text
    calls = [call("ask", '{"question": "?"}') | {"id": "c1"}, call("ask", "{}") | {"id": "c2"}]
    png = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert upstream.seen[0].body["messages"] == [
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, png]},
        {"role": "assistant", "content": "I ask", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "a\nb"},
        {"role": "tool", "tool_call_id": "c2", "content": "error: too late"},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "user", "content": "go on"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
    ]


def test_an_answer_can_be_sent_back_as_it_came(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, 10_000) as (address, _):
        for name, (told, content, _) in ANSWERS.items():
            upstream.told = told
            results = [
                {"type": "tool_result", "tool_use_id": block["id"], "content": "42"}
                for block in content
                if block["type"] == "tool_use"
            ]
            asked = {"tools": [{"name": "ask", "input_schema": SCHEMA}]} if "call" in name else {}
            answer = post(address, **asked)
            assert answer.status_code == 200, answer.text
            history = [*ASKED, {"role": "assistant", "content": answer.json()["content"]}]
            history.append({"role": "user", "content": results or "and then?"})
            assert post(address, messages=history, **asked).status_code == 200, name
            roles = [message["role"] for message in upstream.seen[-1].body["messages"]]
            assert roles == ["user", "assistant", *(["tool"] * len(results) or ["user"])], name


def test_fields_reach_the_endpoint_under_its_own_names(tmp_path: Path) -> None:
    upstream = Upstream()
    tool = {"name": "ask", "description": "asks", "input_schema": SCHEMA, "strict": True}
    asked: dict[str, Any] = {
        "system": "be brief", "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["END"], "tools": [tool],
        "metadata": {"user_id": "me"}, "service_tier": "auto", "container": None,
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }  # fmt: skip
    choices: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    with proxy(upstream, tmp_path, 10_000) as (address, _):
        told = post(address, **asked)
        assert told.status_code == 200, told.text
        assert set(told.headers["x-roi-replaced"].split(",")) == {"reasoning_effort", "thinking"}
        body = upstream.seen[-1].body
        for theirs, ours in choices.items():
            assert post(address, tools=[tool], tool_choice={"type": theirs}).status_code == 200
            assert upstream.seen[-1].body["tool_choice"] == ours
        chosen = {"type": "tool", "name": "ask", "disable_parallel_tool_use": True}
        post(address, tools=[tool], tool_choice=chosen)
        last = upstream.seen[-1].body
        post(address, output_format={"type": "json_schema", "schema": SCHEMA})
        assert upstream.seen[-1].body["response_format"] == body["response_format"]
    function = {"name": "ask", "description": "asks", "parameters": SCHEMA, "strict": True}
    assert (last["tool_choice"], last["parallel_tool_calls"]) == (
        {"type": "function", "function": {"name": "ask"}},
        False,
    )
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert [body[name] for name in ("temperature", "top_p", "top_k", "stop", "user")] == [0.5, 0.9, 5, ["END"], "me"]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert not {"service_tier", "thinking", "reasoning_effort", "container", "output_config"} & set(body)


def user(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hello"]}, "messages.0.role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"system": [{"type": "image"}]}, "system"),
    ({"system": 7}, "system"),
    (user({"type": "text"}), "messages.0.content.0"),
    (user({"type": "document", "source": {}}), "messages.0.content.0"),
    (user({"type": "tool_use", "id": "c", "name": "n", "input": {}}), "messages.0.content.0"),
    (user({"type": "tool_result", "tool_use_id": "c"}, role="assistant"), "messages.0.content.0"),
    (user({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages.0.content.0.source"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
    ({"tools": {"name": "ask"}}, "tools"),
    ({"tool_choice": {"type": "best"}}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"metadata": {"user_id": "me", "team": "us"}}, "metadata"),
    ({"output_format": {"type": "xml"}}, "output_format"),
    ({"output_config": {"pace": 1}}, "output_config"),
    ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
    ({"context_management": {"edits": [1]}}, "context_management"),
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
                assert (told.json()["type"], error["type"]) == ("error", "invalid_request_error")
                assert error["param"] == param, fields
                assert param.split(".")[0] in error["message"], fields
        assert not upstream.seen
        assert budget.session.charged == 0


def test_errors_have_the_form_of_the_api(tmp_path: Path) -> None:
    upstream = Upstream(["422", "503", "503", "503"])
    with proxy(upstream, tmp_path, 30) as (address, budget):
        counted = httpx.post(f"{address}/a/v1/messages/count_tokens", json={"model": "stub", "messages": ASKED})
        cases = [(counted, 404, "not_found_error"), (post(address), 422, "invalid_request_error")]
        cases.append((post(address, stream=True), 503, "api_error"))
        assert budget.session.charged == 0
        assert post(address).json()["stop_reason"] == "end_turn"
        assert replay(events_of(post(address, stream=True)))["stop_reason"] == "max_tokens"
        cases += [(post(address, stream=stream), 429, "rate_limit_error") for stream in (False, True)]
        for told, status, kind in cases:
            assert (told.status_code, told.json()["type"], told.json()["error"]["type"]) == (status, "error", kind)
            assert told.json()["error"]["message"]
        assert told.json()["error"]["code"] == "budget_exhausted"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_agent_skips_is_a_refusal_that_costs_nothing(stream: bool, tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, agent="skip") as (address, budget):
        told = post(address, stream=stream)
        message = replay(events_of(told)) if stream else told.json()
        assert message["stop_reason"] == "refusal"
        assert message["content"][0]["text"].startswith("skipped")
        assert message["usage"]["output_tokens"] == budget.session.charged == len(upstream.seen) == 0


def test_a_stream_that_breaks_off_ends_with_an_error(tmp_path: Path) -> None:
    with proxy(Upstream(["truncated"]), tmp_path) as (address, budget):
        *begun, last = events_of(post(address, stream=True))
        assert begun[0]["type"] == "message_start"
        assert (last["type"], last["error"]["type"]) == ("error", "api_error")
        assert "message_stop" not in [one["type"] for one in begun]
        assert budget.session.charged == 51
