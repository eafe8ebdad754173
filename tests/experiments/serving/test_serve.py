"""The proxy with the `openai` client: answers, budgets, refusals, restarts, credentials."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")
pytest.importorskip("openai", reason="needs the extra [dev]")

import openai
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typer.testing import CliRunner

from experiments.cli import app
from experiments.commands.serve import parse_budgets, parse_keys
from experiments.config import ConfigError
from experiments.serving.amounts import Plan
from experiments.serving.app import application
from experiments.serving.budget import make_budget
from experiments.serving.guard import patient_protocol
from roi_env.answering.base import ThinkingTier
from roi_env.answering.http import HTTPSolver
from tests.processes import child, wait_until_it_answers
from tests.upstream import FAULTS, Upstream, kept, schedule, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]


@contextmanager
def proxy(
    upstream: Upstream | Says,
    state: Path,
    budgets: dict[str, int],
    *,
    token: str | None = None,
    agent: str = "fixed-2",
    window: int = 4,
    expected: int = 50,
    backend: str = "vllm",
    tiers: Sequence[ThinkingTier] = TIERS,
    retries: int = 20,
    **options: Any,
) -> Iterator[str]:
    with serving(upstream.app()) as url:
        solver = HTTPSolver(
            f"{url}/v1",
            "stub",
            backend,
            first_wait=0.001,
            deadline=2.0,
            retries=retries,
            count=lambda text: len(text.split()),
        )
        made = [
            make_budget(name, tokens, solver, tiers, agent, expected, window, state) for name, tokens in budgets.items()
        ]
        with serving(application(made, token, **options)) as address:
            yield address


def client(address: str, key: str = "unused", **options: Any) -> Any:
    return openai.OpenAI(base_url=address, api_key=key, timeout=30, **options)


def ask(caller: Any, text: str = "six times seven?", **options: Any) -> Any:
    return caller.chat.completions.create(model="stub", messages=[{"role": "user", "content": text}], **options)


def post(address: str, content: str | bytes, path: str = "/a/v1", **headers: str) -> httpx.Response:
    """A request byte by byte."""
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(f"{address}{path}/chat/completions", content=content, headers=sent, timeout=30)


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which must have the API's form."""
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["message"]
    return error


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "stub", "messages": [{"role": "user", "content": "six times seven?"}], **fields}


def status(address: str, key: str = "none") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{address}/budgets", headers={"authorization": f"Bearer {key}"}).json()[
        "budgets"
    ]
    return found


def test_a_client_changes_nothing_but_its_address(tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 300, "b": 100}) as address:
        caller = client(f"{address}/a/v1")
        assert [model.id for model in caller.models.list()] == ["stub"]
        raw = caller.chat.completions.with_raw_response.create(
            model="stub", messages=[{"role": "system", "content": "brief"}, {"role": "user", "content": "?"}]
        )
        answer = raw.parse()
        assert answer.choices[0].message.content == "the answer is 42"
        assert answer.usage.completion_tokens == 24
        assert answer.usage.completion_tokens_details.reasoning_tokens == 20
        assert answer.usage.model_extra["roi"]["remaining"] == 276
        headers = {name: value for name, value in raw.headers.items() if name.startswith("x-roi-")}
        told = {"x-roi-tier": "long", "x-roi-charged": "24", "x-roi-remaining": "276", "x-roi-unit": "tokens"}
        assert headers == {"x-roi-budget": "a", **told}
        assert status(address)[1]["remaining"] == 100, "budgets are apart"
        ask(client(f"{address}/v1"))
        assert status(address)[0]["charged"] == 48, "/v1 is the first budget"
        pieces = list(ask(client(f"{address}/b/v1"), stream=True, stream_options={"include_usage": True}))
        assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == "the answer is 42"
        assert pieces[-1].usage.completion_tokens == 24


def test_a_spent_budget_is_one_clear_error(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 60}) as address:
        caller = client(f"{address}/a/v1", max_retries=5)
        answered = [ask(caller) for _ in range(3)]
        assert [answer.usage.completion_tokens for answer in answered] == [24, 24, 12]
        assert answered[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.RateLimitError, match="is spent") as caught:
            ask(caller)
        assert caught.value.code == "budget_exhausted"
        assert caught.value.response.headers["x-roi-remaining"] == "0"
        assert len(upstream.seen) == 3
        assert status(address)[0] == {
            "budget": "a", "unit": "tokens", "tokens": 60, "charged": 60, "reserved": 0, "remaining": 0, "asked": 3,
        }  # fmt: skip


def test_what_the_agent_skips_is_a_refusal_that_costs_nothing(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 60}, agent="skip") as address:
        answer = ask(client(f"{address}/a/v1"))
        assert answer.choices[0].message.content is None
        assert "skipped" in answer.choices[0].message.refusal
        assert answer.usage.completion_tokens == 0
        assert not upstream.seen


def test_concurrent_clients_and_faults_stay_within_the_budget_and_restarts_remember(tmp_path: Path) -> None:
    quick = tuple(fault for fault in FAULTS if fault not in ("drip", "silence", "overshoot"))
    upstream = Upstream(schedule(0, 120, quick, share=0.4), latency=0.005)

    def one(address: str) -> str:
        try:
            ask(client(f"{address}/a/v1", max_retries=0))
            return "answered"
        except openai.APIStatusError as error:
            return str(error.code)

    with proxy(upstream, tmp_path, {"a": 1500}) as address:
        with ThreadPoolExecutor(12) as pool:
            outcomes = list(pool.map(one, [address] * 70))
        (before,) = status(address)
    assert set(outcomes) == {"answered", "upstream_error", "budget_exhausted"}
    assert before["remaining"] == before["reserved"] == 0
    assert upstream.generated <= before["charged"] <= 1500
    assert kept(tmp_path) == (before["charged"], 0)
    with proxy(Upstream(), tmp_path, {"a": 1500}) as address:
        assert status(address) == [before]
        assert one(address) == "budget_exhausted"
    with proxy(Upstream(), tmp_path, {"a": 9999}) as address:
        (more,) = status(address)
        assert (more["charged"], more["remaining"]) == (before["charged"], 9999 - before["charged"])
        assert one(address) == "answered"


def test_credentials_stay_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "upstream-key")
    upstream = Upstream(["ok", "422"])
    with proxy(upstream, tmp_path, {"a": 600}, token="proxy-token") as address:
        for key in ("wrong", "upstream-key"):
            with pytest.raises(openai.AuthenticationError):
                ask(client(f"{address}/a/v1", key))
        assert httpx.get(f"{address}/budgets").status_code == 401
        assert not upstream.seen
        ask(client(f"{address}/a/v1", "proxy-token"))
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client(f"{address}/a/v1", "proxy-token"))
        assert caught.value.status_code == 422
        assert len(upstream.seen) == 2, "a client does not ask again by itself"
    assert [seen.headers["authorization"] for seen in upstream.seen] == ["Bearer upstream-key"] * 2
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"six times" not in written
    assert b"answer is" not in written, "answers are kept only where that is asked for"
    assert b"proxy-token" not in written
    assert b"upstream-key" not in written + str(caught.value).encode()


def test_requests_that_cannot_be_budgeted_are_refused(tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 600}) as address:
        caller = client(f"{address}/a/v1", max_retries=0)
        for options in (
            {"n": 500},
            {"prediction": {"type": "content", "content": "42"}},
            {"extra_body": {"best_of": 2}},
        ):
            with pytest.raises(openai.BadRequestError):
                ask(caller, **options)
        with pytest.raises(openai.NotFoundError, match="no budget"):
            ask(client(f"{address}/c/v1"))
        assert post(address, "{").status_code == 400
        assert status(address)[0]["charged"] == 0


def test_what_a_client_asks_reaches_the_endpoint(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "temperature": 0, "top_p": 0.5, "seed": 7, "stop": "END", "presence_penalty": 0, "logit_bias": {"5": -100},
        "logprobs": True, "top_logprobs": 2, "response_format": {"type": "json_object"}, "user": "me",
    }  # fmt: skip
    says = Says(said(logprobs={"content": [{"token": "42", "logprob": -0.5}]}, model="stub-2026-01-01"))
    with proxy(says, tmp_path, {"a": 600}) as address:
        caller = client(f"{address}/a/v1")
        answer = ask(caller, **asked, extra_body={"top_k": 5})
        assert says.seen[0] == {**says.seen[0], **asked, "top_k": 5, "model": "stub"}
        assert answer.model == "stub-2026-01-01"
        assert answer.choices[0].logprobs.content[0].logprob == -0.5
        pieces = list(ask(caller, logprobs=True, stream=True))
        assert pieces[0].choices[0].logprobs.content[0].token == "42"
        assert {piece.model for piece in pieces} == {"stub-2026-01-01"}
        ask(caller)
        assert set(says.seen[2]).isdisjoint(asked), "one request's fields are not the next one's"


@pytest.mark.parametrize(
    ("asked", "cap"),
    [
        ({"max_tokens": 1}, 1),
        ({"max_completion_tokens": 30}, 30),
        ({"max_tokens": 40, "max_completion_tokens": 12}, 12),
        ({"max_tokens": 10**30}, 51),
        ({}, 51),
    ],
)
def test_the_cap_is_the_smallest_of_tier_budget_and_request(asked: dict[str, int], cap: int, tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 100, "b": 9}, expected=5) as address:
        answer = ask(client(f"{address}/a/v1"), **asked)
        ask(client(f"{address}/b/v1"), **asked)
        assert [seen.cap for seen in upstream.seen] == [cap, min(cap, 9)]
        assert answer.usage.completion_tokens == min(cap, 24)
        assert answer.choices[0].finish_reason == ("length" if cap < 24 else "stop")
        assert status(address)[0]["remaining"] == 100 - min(cap, 24)


def test_a_cap_below_what_the_endpoint_needs_is_named(tmp_path: Path) -> None:
    tiers = [ThinkingTier("now", 0, 10), ThinkingTier("long", 2000, 10)]
    with proxy(Upstream(), tmp_path, {"a": 9000}, backend="anthropic", tiers=tiers) as address:
        answer = post(address, json.dumps(body(max_tokens=100)))
        assert answer.status_code == 400
        assert refusal(answer)["param"] == "max_tokens"
        assert status(address)[0]["charged"] == 0
    with proxy(Upstream(), tmp_path / "less", {"a": 900}, backend="anthropic", tiers=tiers) as address:
        answer = post(address, json.dumps(body()))
        assert answer.status_code == 429
        assert refusal(answer)["code"] == "budget_exhausted"
        assert answer.headers["x-roi-remaining"] == "900"


def test_what_cannot_be_honoured_costs_nothing(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 600}, backend="anthropic") as address:
        for name, value in {"model": "other", "seed": 5, "logprobs": True, "tools": [{}], "n": 2, "x": 1}.items():
            answer = post(address, json.dumps(body(**{name: value})))
            assert answer.status_code == (404 if name == "model" else 400)
            assert refusal(answer)["param"] == name
        assert not upstream.seen
        assert status(address)[0]["asked"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "[" * 200_000, '{"model": NaN}', json.dumps({"messages": [{"role": "user", "content": ["a"]}]}),
        '{"messages": [{"role": "user", "content": "\\ud800"}]}', json.dumps(body(stream=True, stream_options="x")),
        json.dumps(body(messages=[5])), json.dumps(body(max_tokens="1")), json.dumps(body(**{"\ud800": 1})),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_malformed_bodies_are_named(text: str, tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 600}) as address:
        answer = post(address, text)
        assert answer.status_code == 400
        refusal(answer)
        assert not upstream.seen
        assert status(address)[0]["asked"] == 0


@dataclass
class Says:
    """An endpoint that answers every request with the same bytes."""

    content: bytes | str
    status: int = 200
    seen: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        async def chat(request: Request) -> Response:
            self.seen.append(await request.json())
            return Response(self.content, self.status, {"content-type": "application/json"})

        return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def said(
    text: Any = "42", finish: str = "stop", usage: str = '{"completion_tokens": 9, "prompt_tokens": 1}', **more: Any
) -> str:
    """A chat completion; ``usage`` is written as it is."""
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": more.pop("logprobs", None)}
    return json.dumps({"choices": [choice], **more})[:-1] + f', "usage": {usage}}}'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (said("a\ud800b"), "a\ufffdb"),
        (said([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "42"}]), "42"),
        (said("42").replace('"42"', "[" * 300 + '"42"' + "]" * 300), "42"),
        (said("\u2028\x00\U0001f9ee"), "\u2028\x00\U0001f9ee"),
        (said(usage='{"completion_tokens": 9, "cost": NaN, "prompt_tokens": Infinity}'), "42"),
        (said(usage='{"completion_tokens": 9, "prompt_tokens": 1e999}'), "42"),
        (said(logprobs={"content": [{"token": "\ud800", "logprob": float("-inf")}]}), "42"),
        (said(logprobs=[5]), "42"),
        (said(model=["x"]), "42"),
        (said(model="\udc00"), "42"),
        (said(message={"reasoning": "\udfff"}), "42"),
        (said(extra="nested").replace('"nested"', "[" * 500 + "]" * 500), "42"),
    ],
)  # fmt: skip
def test_a_paid_answer_is_given_whatever_is_in_it(content: str, text: str, stream: bool, tmp_path: Path) -> None:
    with proxy(Says(content), tmp_path, {"a": 600}) as address:
        caller = client(f"{address}/a/v1", max_retries=0)
        if stream:
            pieces = list(ask(caller, stream=True))
            assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
        else:
            assert ask(caller).choices[0].message.content == text
        assert status(address)[0]["charged"] == 9


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000, "NaN", "5", "null", "{}", '{"choices": 5}', b"\xff\xfe\x00", "",
        said("42").replace('"42"', "[" * 5000),
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_an_error_in_the_form_of_the_api(content: str, tmp_path: Path) -> None:
    with proxy(Says(content), tmp_path, {"a": 600}) as address:
        answer = post(address, json.dumps(body()))
        assert answer.status_code == 502
        assert refusal(answer)["code"] == "upstream_error"
        assert answer.headers["x-should-retry"] == "false"
        assert status(address)[0]["charged"] == int(answer.headers["x-roi-charged"]) == 51


def test_names_of_tiers_cannot_break_an_answer(tmp_path: Path) -> None:
    tiers = [ThinkingTier("kurz\u2713", 0, 10), ThinkingTier("lang", 40, 10)]
    with proxy(Upstream(), tmp_path, {"a": 600}, tiers=tiers, agent="fixed-1") as address:
        answer = post(address, json.dumps(body()))
        assert answer.json()["usage"]["roi"]["tier"] == "kurz\u2713"
        assert answer.headers["x-roi-tier"] == "kurz%E2%9C%93"


@pytest.mark.parametrize(
    ("status_code", "content", "message"),
    [
        (400, {"error": {"message": "too long", "code": "context_length_exceeded", "param": "messages"}}, "too long"),
        (401, {"error": {"message": "Incorrect API key provided: sk-upstream-0123456789."}},
         "the endpoint refused this proxy's key: Incorrect API key provided: ***."),
        (401, {"error": "Bearer sk-upst****6789 is no key"}, "the endpoint refused this proxy's key: Bearer *** is no key"),
        (403, {"message": "not you"}, "not you"),
        (404, {"detail": "no such model"}, "no such model"),
        (413, "<html>\n too large</html>", "<html> too large</html>"),
        (422, {"detail": [{"loc": ["body", "stop"]}]}, '[{"loc": ["body", "stop"]}]'),
        (400, [{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}], "bad"),
        (404, "", "HTTP 404 without a word"),
        (418, "[" * 200_000, "[" * 4000),
    ],
)  # fmt: skip
def test_an_endpoints_own_refusal_is_passed_on(
    status_code: int, content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-upstream-0123456789")
    says = Says(content if isinstance(content, str) else json.dumps(content), status_code)
    with proxy(says, tmp_path, {"a": 600}) as address:
        answer = post(address, json.dumps(body()))
        assert answer.status_code == (502 if status_code == 401 else status_code), "a 401 is of the client's key"
        error = refusal(answer)
        assert error["message"] == message
        if status_code == 401:
            assert error["code"] == "upstream_key"
        elif isinstance(content, dict) and isinstance(content.get("error"), dict):
            assert error["code"] == content["error"].get("code", "upstream_error")
            assert error["param"] == content["error"].get("param")
        assert answer.headers["x-should-retry"] == "false"
        assert len(says.seen) == 1
        assert status(address)[0]["charged"] == 0
    assert b"0123456789" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status_code", "told", "again", "charged"),
    [
        (429, 429, "true", 0),
        (500, 500, "true", 0),
        (503, 503, "true", 0),
        (529, 529, "true", 0),
        (502, 502, "false", 51),
        (504, 504, "false", 51),
        (408, 502, "false", 51),
        (524, 502, "false", 51),
        (302, 502, "false", 0),
    ],
)
def test_whether_to_ask_again_depends_on_what_it_may_have_cost(
    status_code: int, told: int, again: str, charged: int, tmp_path: Path
) -> None:
    with proxy(Says("", status_code), tmp_path, {"a": 600}, retries=0) as address:
        answer = post(address, json.dumps(body()))
        assert answer.status_code == told
        assert refusal(answer)["code"] == "upstream_error"
        assert answer.headers["x-should-retry"] == again
        assert status(address)[0]["charged"] == charged


def test_what_the_endpoint_refused_is_a_refusal(tmp_path: Path) -> None:
    with proxy(Says(said(None, "content_filter")), tmp_path, {"a": 600}) as address:
        (choice,) = ask(client(f"{address}/a/v1")).choices
        assert choice.message.content is None
        assert choice.message.refusal
        assert choice.finish_reason == "content_filter"


def test_calls_beside_a_content_in_parts_are_told(tmp_path: Path) -> None:
    calls: Any = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "42"}]
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    with proxy(Says(said(parts, "tool_calls", message={"tool_calls": calls})), tmp_path, {"a": 600}) as address:
        (choice,) = ask(client(f"{address}/a/v1"), tools=tools).choices
        assert (choice.message.content, choice.message.reasoning_content) == ("42", "hm")
        assert (choice.message.tool_calls[0].function.name, choice.finish_reason) == ("f", "tool_calls")


@pytest.mark.parametrize("path", ["responses", "messages"])
def test_odd_calls_of_tools_do_not_lose_an_answer(path: str, tmp_path: Path) -> None:
    for odd in (5, [7, {"id": "1", "function": "x"}], [{"function": {"name": None, "arguments": {"x": 1}}}]):
        with proxy(Says(said("42", message={"tool_calls": odd})), tmp_path / repr(odd)[:5], {"a": 600}) as address:
            asked = {"input": "?"} if path == "responses" else {"messages": body()["messages"], "max_tokens": 40}
            answer = httpx.post(f"{address}/a/v1/{path}", json=asked, timeout=30)
            assert answer.status_code == 200
            assert "42" in answer.text


@pytest.mark.parametrize("text", [None, ""])
def test_calls_of_tools_are_no_empty_answer(text: str | None, tmp_path: Path) -> None:
    calls = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    with proxy(Says(said(text, "tool_calls", message=calls)), tmp_path, {"a": 600}) as address:
        answer = post(address, json.dumps(body()))
        assert answer.status_code == 502
        assert "tool" in refusal(answer)["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert status(address)[0]["charged"] == 9


def test_a_budgets_key_opens_that_budget_alone(tmp_path: Path) -> None:
    keys = {"a": "key-of-a", "b": "key-of-b"}
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 600, "b": 600, "c": 600}, token="key-of-c", keys=keys) as address:
        for name, key in {**keys, "c": "key-of-c"}.items():
            ask(client(f"{address}/{name}/v1", key))
            assert [one["budget"] for one in status(address, key)] == [name], "others are not even shown"
            for other in {"a", "b", "c"} - {name}:
                for path in ("models", "chat/completions"):
                    method = httpx.get if path == "models" else httpx.post
                    answer = method(f"{address}/{other}/v1/{path}", headers={"authorization": f"Bearer {key}"})
                    assert answer.status_code == 401
                    assert refusal(answer)["code"] == "invalid_api_key"
        assert len(upstream.seen) == 3
        known = httpx.get(f"{address}/z/v1/models", headers={"authorization": "Bearer key-of-b"})
        assert known.status_code == 404
        assert refusal(known)["message"] == "no budget 'z'; there are b"
        assert httpx.get(f"{address}/z/v1/models").status_code == 401
        for given in ("bearer key-of-a", "BEARER  key-of-a", "Bearer key-of-a"):
            assert post(address, json.dumps(body()), authorization=given).status_code == 200
        for given in (
            "",
            "key-of-a",
            "Basic key-of-a",
            "Bearer",
            "Bearer key-of",
            "Bearer KEY-OF-A",
            "Bearer key-of-b",
        ):
            answer = post(address, json.dumps(body()), authorization=given)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:80"},
        {"host": "evil.example@localhost"},
        {"host": ""},
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "multipart/form-data; boundary=application/json"},
        {"content_type": ""},
    ],
    ids=lambda headers: "-".join(next(iter(headers.items()))),
)
def test_web_pages_of_others_spend_nothing(headers: dict[str, str], tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 600}) as address:
        answer = post(address, json.dumps(body()), **headers)
        assert answer.status_code in (400, 403, 415)
        refusal(answer)
        assert "access-control-allow-origin" not in answer.headers
        bare = httpx.Request("POST", f"{address}/a/v1/chat/completions", content=json.dumps(body()))
        assert "content-type" not in bare.headers
        with httpx.Client() as sender:
            assert sender.send(bare).status_code == 400
        assert not upstream.seen
        port = address.rpartition(":")[2]
        for allowed in ({"host": f"LocalHost:{port}"}, {"host": "[::1]"}, {"origin": address}):
            assert post(address, json.dumps(body()), **allowed).status_code == 200
        assert post(address, json.dumps(body()), content_type="Application/JSON; charset=utf-8").status_code == 200


def test_a_ledger_is_its_owners_alone(tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 600}) as address:
        ask(client(f"{address}/a/v1"))
        assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("budgets.db*") if path.suffix != ".lock")


def chunks(total: int) -> Iterator[bytes]:
    for _ in range(0, total, 1000):
        yield b" " * 1000


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_that_is_too_large_is_refused_while_it_comes(
    declared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.serving.guard.MOST_BYTES", 5000)
    with proxy(Upstream(), tmp_path, {"a": 600}) as address:
        headers = {"content-type": "application/json"}
        content: Any = b" " * 300_000 if declared else chunks(300_000)
        answer = httpx.post(f"{address}/a/v1/chat/completions", content=content, headers=headers)
        assert answer.status_code == 413
        assert refusal(answer)["code"] == "request_too_large"
        assert ask(client(f"{address}/a/v1"), "x" * 4000).usage.completion_tokens == 24


HEAD = "POST /a/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (HEAD + "content-length: 100\r\n\r\n", b"HTTP/1.1 408"),
        (HEAD + 'content-length: 100\r\n\r\n{"messages": ', b"HTTP/1.1 408"),
        (HEAD + "transfer-encoding: chunked\r\n\r\n2\r\n{}", b"HTTP/1.1 408"),
        (HEAD + "content-length: 99999999\r\nexpect: 100-continue\r\n\r\n", b"HTTP/1.1 413"),
        (HEAD + "content-length: -5\r\n\r\n", b"HTTP/1.1 400"),
        (HEAD, b""),
        ("", b""),
    ],
)
def test_a_request_that_does_not_end_is_ended(sent: str, told: bytes, tmp_path: Path) -> None:
    solver = HTTPSolver("http://127.0.0.1:9/v1", "stub", "vllm")
    budget = make_budget("a", 600, solver, TIERS, "fixed-2", 50, 4, tmp_path)
    app = application([budget], body_seconds=0.3)
    with serving(app, http=patient_protocol(0.3)) as address, contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        for one in waiting:
            one.settimeout(60)
            one.sendall(sent.encode())
        for one in waiting:
            received = b""
            while piece := one.recv(4096):
                received += piece
            assert received.startswith(told)
            assert bool(received) == bool(told)
        assert status(address)[0]["asked"] == 0


@pytest.mark.parametrize("piece", [b"x: " + b"y" * 1000 + b"\r\n", b"y" * 1000])
def test_a_head_without_end_is_refused(piece: bytes, tmp_path: Path) -> None:
    budget = make_budget("a", 600, HTTPSolver("http://127.0.0.1:9/v1", "stub"), TIERS, "fixed-2", 50, 4, tmp_path)
    with serving(application([budget]), http=patient_protocol(60.0)) as address:
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=60) as one:
            received = b""
            with contextlib.suppress(ConnectionError):
                one.sendall(HEAD.encode() + b"x: ")
                for _ in range(1000):
                    one.sendall(piece)
            with contextlib.suppress(ConnectionError):
                while part := one.recv(4096):
                    received += part
        assert not received or received.startswith(b"HTTP/1.1 400")
        assert httpx.get(f"{address}/v1/models", headers={"x": "y" * 30_000}).status_code == 200


def sent(address: str, *pieces: bytes) -> bytes:
    """What comes for pieces of a request, until the connection is closed or nothing comes."""
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=2) as one:
        received = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            for piece in pieces:
                one.sendall(piece)
                time.sleep(0.02)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := one.recv(4096):
                received += part
    return received


@pytest.mark.parametrize("what", ["key", "type", "budget", "address"])
def test_a_request_that_is_refused_by_its_head_gets_one_answer(what: str, tmp_path: Path) -> None:
    budget = make_budget("a", 600, HTTPSolver("http://127.0.0.1:9/v1", "stub"), TIERS, "fixed-2", 50, 4, tmp_path)
    with serving(application([budget], "key"), http=patient_protocol(60.0)) as address:
        head = HEAD.replace("json", "xml") if what == "type" else HEAD
        head = head.replace("/a/v1" if what == "budget" else "completions", "/z/v1") if what[0] in "ba" else head
        head += f"authorization: Bearer {'no' if what == 'key' else 'key'}\r\ncontent-length: 500000\r\n\r\n"
        answer = sent(address, head.encode(), *[b"x" * 50_000] * 10)
        status = {"key": b"401", "type": b"415", "budget": b"404", "address": b"404"}[what]
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.count(b"HTTP/1.1") == 1


def test_an_offer_of_http_2_is_declined_and_the_request_answered(tmp_path: Path) -> None:
    budget = make_budget("a", 600, HTTPSolver("http://127.0.0.1:9/v1", "stub"), TIERS, "fixed-2", 50, 4, tmp_path)
    with serving(application([budget]), http=patient_protocol(60.0)) as address:
        offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
        text = json.dumps({"messages": [{"role": "user", "content": "\r\nUpgrade: h2c\r\n"}], "n": 0})
        request = f"{HEAD}{offer}content-length: {len(text)}\r\n\r\n".encode()
        answer = sent(address, request + text.encode() + request, text.encode())
        assert answer.count(b"HTTP/1.1 400") == answer.count(b"n must be an integer") == 2


def test_a_connection_may_be_kept_between_requests(tmp_path: Path) -> None:
    solver = HTTPSolver("http://127.0.0.1:9/v1", "stub", "vllm")
    budget = make_budget("a", 600, solver, TIERS, "fixed-2", 50, 4, tmp_path)
    with serving(application([budget]), http=patient_protocol(0.3)) as address, httpx.Client() as caller:
        kept = set()
        for _ in range(3):
            response = caller.get(f"{address}/budgets")
            assert response.status_code == 200
            kept.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(kept) == 1
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=60) as one:
            whole = b"GET /budgets HTTP/1.1\r\nhost: localhost\r\n\r\n"
            one.sendall(whole)
            received = b""
            while b"budgets" not in received:
                received += one.recv(4096)
            one.sendall(whole[:10])
            while piece := one.recv(4096):
                received += piece
        assert received.count(b"HTTP/1.1 200") == 1, "the second never came"


@pytest.mark.parametrize(
    ("spent_status", "error"),
    [(402, openai.APIStatusError), (403, openai.PermissionDeniedError), (429, openai.RateLimitError)],
)
def test_the_status_of_a_spent_budget_can_be_chosen(spent_status: int, error: type[Exception], tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 24}, spent_status=spent_status) as address:
        caller = client(f"{address}/a/v1")
        ask(caller)
        with pytest.raises(error) as caught:
            ask(caller)
        assert caught.value.status_code == spent_status
        assert caught.value.code == "budget_exhausted"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"agent": "exam-taker", "params": {}}, "takes whole exams"),
        ({"agent": "rarl", "params": {}}, "takes whole exams"),
        ({"agent": "gone", "params": {}}, "nobody registered"),
        ({"params": {}}, "not a saved agent"),
        ([], "not a saved agent"),
    ],
)
def test_saved_agents_that_cannot_decide_are_refused(header: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "agent.npz", header=np.array(json.dumps(header)))
    with pytest.raises(ValueError, match=message):
        make_budget("a", 600, HTTPSolver("http://h", "m"), TIERS, str(tmp_path / "agent.npz"), 50, 4, tmp_path)


def test_unknown_addresses_are_errors_in_the_form_of_the_api(tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 600}) as address:
        for method, path, code in (
            ("POST", "/v1/embeddings", 404), ("POST", "/a/v1/audio/speech", 404), ("POST", "/", 405), ("GET", "/a/v1/chat/completions", 405), ("DELETE", "/budgets", 405),
            ("GET", "/%F0%9F%98%80/v1/models", 404), ("OPTIONS", "/v1/chat/completions", 405),
        ):  # fmt: skip
            answer = httpx.request(method, address + path)
            assert answer.status_code == code
            refusal(answer)


UNFIT = {
    "sb3-ppo": "learns from recorded outcomes",
    "rllib-ppo": "learns from recorded outcomes",
    "bwk-ucb": "learns from recorded outcomes",
    "plugin-bellman": "learns from recorded outcomes",
    "roi(threshold=0.5)": "learns from recorded outcomes",
    "rarl": "takes whole exams",
    "exam-taker": "takes whole exams",
    "exam-base": "takes whole exams",
    "optimum": "nobody knows",
    "online-pl": "unknown agent",
    "online-lp(strenght=4)": "no parameter",
    "online-lp(strength='a')": "strength",
    "fixed(tier='none')": "tier must be",
    "belief-bellman": "latent",
    "nowhere.npz": "not a saved agent",
}
"""Agents that cannot decide live questions -> what is said of them."""


@pytest.mark.parametrize(("agent", "message"), UNFIT.items())
def test_agents_that_cannot_decide_are_refused_by_both_commands(agent: str, message: str, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question_id": "1", "text": "1 + 1", "answer": "2"}\n')
    state, out = tmp_path / "state", tmp_path / "out"
    endpoint = ("http://127.0.0.1:9/v1", "--model", "m", "--tier", "now=0+10", "--tier", "long=40+10", "--agent", agent)
    for arguments in (
        ("serve", "--budget", "50", "--host", "240.0.0.1", "--state", str(state), "--token-env", "PATH", "--upstream", *endpoint),
        ("answer", str(questions), "--budget", "50", "--out", str(out), "--endpoint", *endpoint),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert not (out / "ledger.jsonl").exists(), "nothing was begun"


def test_a_key_may_hold_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = b"k\xff\xc3\xa9"
    monkeypatch.setenv("ODD_KEY", os.fsdecode(odd))
    with proxy(Upstream(), tmp_path, {"a": 600}, keys=parse_keys(["a=ODD_KEY"], ["a"])) as address:
        for shown, status in ((odd, 200), (odd[:-1], 401), ("kÿé".encode(), 401)):
            assert (
                httpx.get(f"{address}/v1/models", headers={"authorization": b"Bearer " + shown}).status_code == status
            )


def test_every_tier_has_an_agent_that_always_plays_it(tmp_path: Path) -> None:
    tiers = [ThinkingTier(f"t{number}", 10 * number, 10) for number in range(5)]
    with proxy(Upstream(), tmp_path, {"a": 600}, tiers=tiers, agent="fixed-4") as address:
        assert ask(client(f"{address}/v1")).usage.roi["tier"] == "t3"


def test_few_tokens_of_a_budget_are_no_fraction(tmp_path: Path) -> None:
    # A warning would be an error here.
    with proxy(Upstream(), tmp_path, {"a": 1, "b": 5}) as address:
        told = httpx.get(f"{address}/budgets").json()["budgets"]
        assert [budget["remaining"] for budget in told] == [1, 5]
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"text": "1 + 1"}\n' * 12)
    told = CliRunner().invoke(app, ["answer", str(questions), "--budget", "5", "--dry-run"], catch_exceptions=False)
    assert "5 tokens" in told.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "5", "--host", "0.0.0.0"), "--token-env"),
        (("--budget", "5", "--token-env", "NO_SUCH_VARIABLE"), "is empty"),
        (("--budget", "x=y"), "must read TOKENS"),
        (("--budget", "a=5", "--budget", "a=6"), "named twice"),
        (("--budget", "v1=5"), "must read TOKENS"),
        *(
            (("--budget", text), "must read TOKENS")
            for text in ("z=²", "٣", "a=0", "a=-1", "=5", "ä=5", "a/b=5", "a=1.5", "a=")
        ),
        (("--budget", "a=2usd"), "the budget 'a' is US dollars .*, and the tiers have no prices"),
        (("--budget", "a=2usd", "--budget", "b=5"), "'a' is US dollars .*, 'b' is tokens"),
        (("--budget", "a=5", "--key", "b=PATH"), "no budget 'b'"),
        (("--budget", "a=5", "--key", "a"), "must read NAME=ENV"),
        (("--budget", "a=5", "--key", "a=NO_SUCH_VARIABLE"), "is empty"),
        (("--budget", "a=5", "--key", "a=PATH", "--key", "a=HOME"), "named twice"),
        (("--budget", "a=5", "--budget", "b=5", "--key", "a=PATH", "--host", "0.0.0.0"), "--key b="),
        (("--budget", "5", "--spent-status", "500"), "402, 403 or 429"),
        (("--budget", "5", "--state", "/dev/null"), "/dev/null"),
        (("--budget", "5", "--tier", "big=99999999999"), "below 2"),
        (("--budget", "5", "--tier", "now=0+3000000000"), "below 2"),
        (("--budget", "5", "--tier", "now=0+0"), "'now=0.0': .*answer >= 1"),
        *(
            (("--budget", "5", "--tier", text), "must read NAME=TOKENS")
            for text in ("now=٣", "a=-1", "a=" + "9" * 5000)
        ),
    ],
)
def test_wrong_options_are_named(arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(
            app, ["serve", "--upstream", "http://127.0.0.1:9/v1", "--model", "m", *arguments], catch_exceptions=False
        )
    assert parse_budgets(["50", "b=7", "c=50k", "d=1e6"]) == [
        Plan("default", 50), Plan("b", 7), Plan("c", 50000), Plan("d", 10**6)
    ]  # fmt: skip
    monkeypatch.setenv("KEY_OF_B", " secret\n")
    assert parse_keys(["b=KEY_OF_B"], ["default", "b"]) == {"b": "secret"}


@contextmanager
def started(
    upstream: str, port: int, state: Path, *options: str, files: int = 1024
) -> Iterator[subprocess.Popen[bytes]]:
    """`roi serve` as a process of its own, once it answers.

    :param files: that it may have open, unless it asks for more.
    """
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, 4096))\n"
        "from experiments.cli import main; sys.argv = ['roi', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", code, "serve", "--upstream", f"{upstream}/v1", "--model", "stub", *options]
    command += ["--backend", "vllm", "--tier", "now=0+10", "--tier", "long=40+10", "--agent", "fixed-2"]
    command += ["--state", str(state), "--port", str(port)]
    with child(command, stdout=subprocess.DEVNULL) as process:
        wait_until_it_answers(process, f"http://127.0.0.1:{port}/budgets")
        yield process
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_a_killed_proxy_charges_what_was_in_flight(tmp_path: Path) -> None:
    upstream, port = Upstream(["ok"], latency=0.0), free_port()
    address = f"http://127.0.0.1:{port}"
    with serving(upstream.app()) as url:
        with started(url, port, tmp_path, "--budget", "a=500") as process:
            ask(client(f"{address}/a/v1"))
            upstream.latency = 20.0

            def fail() -> None:
                with pytest.raises(openai.APIError):
                    ask(client(f"{address}/a/v1", max_retries=0))

            lost = threading.Thread(target=fail)
            lost.start()
            while len(upstream.seen) < 2:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            lost.join()
        upstream.latency = 0.0
        with started(url, port, tmp_path, "--budget", "a=500"):
            (found,) = status(address)
    assert found["charged"] == 24 + 51, "the request in flight stays charged at its reservation"
    assert found["remaining"] == 500 - 75


@pytest.mark.slow
def test_as_many_may_connect_as_the_window_and_the_queue_hold(tmp_path: Path) -> None:
    upstream, port = Upstream(latency=1.0), free_port()

    async def all_() -> list[str]:
        async with httpx.AsyncClient(verify=False, timeout=None, limits=httpx.Limits(max_connections=None)) as caller:
            asked = [caller.post(f"http://127.0.0.1:{port}/a/v1/chat/completions", json=body()) for _ in range(40)]
            return [answer.text for answer in await asyncio.gather(*asked) if answer.status_code != 200]

    sizes = ["--budget", "a=50k", "--window", "30", "--queue", "40", "--patience", "600"]
    with serving(upstream.app()) as url, started(url, port, tmp_path, *sizes, files=32):
        assert asyncio.run(all_()) == []
        assert upstream.most_in_flight > 20


def test_addresses_with_a_slash_at_their_end_are_the_same_ones(tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 1000}) as address, httpx.Client(verify=False, timeout=30) as caller:
        asked: dict[str, Any] = {
            "/chat/completions": body(), "/completions": {"prompt": "?"}, "/responses": {"input": "?"},
            "/messages": body(max_tokens=9),
        }  # fmt: skip
        for path, fields in asked.items():
            answers = [caller.post(f"{address}/a/v1{path}{slash}", json=fields) for slash in ("", "/")]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert answers[0].json().keys() == answers[1].json().keys()
            wrong = [caller.post(f"{address}/a/v1{path}{slash}", json=[]).json() for slash in ("", "/")]
            assert wrong[0] == wrong[1]
        assert caller.get(f"{address}/v1/models/").json() == caller.get(f"{address}/v1/models").json()
        assert refusal(caller.get(f"{address}/a/v1/nothing/"))["message"].endswith("Not Found")


@pytest.mark.parametrize("packed", ["gzip", "br", "deflate, gzip", "x"])
def test_a_compressed_body_is_refused_by_its_name(packed: str, tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 1000}) as address:
        refused = post(address, gzip.compress(json.dumps(body()).encode()), content_encoding=packed)
        assert (refused.status_code, refusal(refused)["code"]) == (415, "unsupported_media_type")
        assert repr(packed) in refusal(refused)["message"]
        assert post(address, json.dumps(body()), content_encoding="identity").status_code == 200
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("backend", ["vllm", "generic", "openai"])
def test_what_asks_for_nothing_but_what_happens_anyway_is_no_reason_to_refuse(backend: str, tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 1000}, backend=backend) as address:
        fields = {"prompt": "?", "best_of": 1, "use_beam_search": False, "echo": False, "suffix": None, "n": 1}
        assert httpx.post(f"{address}/a/v1/completions", json=fields, timeout=30).status_code == 200
        for name, value in (("best_of", 2), ("use_beam_search", True)):
            refused = httpx.post(f"{address}/a/v1/completions", json={**fields, name: value}, timeout=30)
            assert (refused.status_code, refusal(refused)["param"]) == (400, name)
