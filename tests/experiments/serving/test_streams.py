"""Streams through the proxy, with the real client over real sockets: tokens as they come, cut and charged as they must be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")
pytest.importorskip("openai", reason="needs the extra [dev]")

import openai
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from experiments.serving import desk
from experiments.serving.app import application
from experiments.serving.attend import Queue
from experiments.serving.budget import Budget, make_budget
from experiments.serving.metrics import Metrics, Visit
from experiments.serving.wires import ChatWire
from roi_env.answering.base import ThinkingTier
from roi_env.answering.http import HTTPSolver
from tests.upstream import Upstream, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]
TOOLS: Any = [{"type": "function", "function": {"name": "ask", "parameters": {"type": "object", "properties": {}}}}]


@contextlib.contextmanager
def proxy(
    upstream: Any, state: Path, tokens: int = 600, backend: str = "vllm", agent: str = "fixed-2", **options: Any
) -> Iterator[tuple[str, Budget]]:
    with serving(upstream.app()) as url:
        solver = HTTPSolver(f"{url}/v1", "stub", backend, first_wait=0.001, deadline=20.0, retries=2)
        budget = make_budget("a", tokens, solver, TIERS, agent, 50, 4, state, Queue(patience=20.0))
        with serving(application([budget], **options)) as address:
            yield address, budget


def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/a/v1", api_key="x", timeout=30, max_retries=0)


def stream(address: str, **options: Any) -> Any:
    asked = {"model": "stub", "messages": [{"role": "user", "content": "six times seven?"}], **options}
    return client(address).chat.completions.create(stream=True, **asked)


def text_of(pieces: Sequence[Any]) -> str:
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def settled(budget: Budget) -> None:
    end = time.monotonic() + 20
    while budget.session.in_flight or budget.clerk.reserved:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_tokens_come_while_the_endpoint_still_generates(tmp_path: Path) -> None:
    upstream = Upstream(pace=0.02)
    with proxy(upstream, tmp_path) as (address, budget):
        pieces, known = [], []
        for piece in stream(address, stream_options={"include_usage": True}):
            pieces.append(piece)
            known.append(upstream.seen[0].generated)
        assert known[0] < 5, "the first chunk came before the last token was made"
        assert sorted(known) == known
        assert len(set(known)) > 10
        assert text_of(pieces) == "the answer is 42"
        assert (
            "".join(getattr(p.choices[0].delta, "reasoning", None) or "" for p in pieces if p.choices)
            == "hm" + " hm" * 19
        )
        assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == "stop"
        assert pieces[-1].choices == []
        assert pieces[-1].usage.completion_tokens == upstream.generated == budget.session.charged == 24
        assert pieces[-1].usage.roi["remaining"] == 576
        assert upstream.seen[0].body["stream_options"]["include_usage"]


def test_without_a_wish_for_usage_the_last_chunk_tells_the_charge(tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path) as (address, _):
        *pieces, last = stream(address)
        assert all(piece.choices and piece.usage is None for piece in pieces)
        assert last.choices[0].finish_reason == "stop"
        assert last.usage.roi == {
            "budget": "a", "unit": "tokens", "tier": "long", "charged": 24, "remaining": 576, "counted": "server", "overshoot": 0,
        }  # fmt: skip


def test_calls_of_tools_come_in_pieces_and_several_answers_apart(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path) as (address, budget):
        with client(address).chat.completions.stream(
            model="stub", messages=[{"role": "user", "content": "?"}], tools=TOOLS, n=2
        ) as events:
            final = events.until_done().get_final_completion()
        assert [choice.finish_reason for choice in final.choices] == ["tool_calls"] * 2
        for choice in final.choices:
            (call,) = choice.message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("ask", {"question": "6 * 7"})
        assert budget.clerk.books.entries[0].reserved == 2 * 51
        assert budget.session.charged == upstream.generated == 48
        assert (upstream.seen[0].body["n"], upstream.seen[0].cap) == (2, 51)


def test_a_stream_is_cut_where_the_budget_ends(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, 30) as (address, budget):
        assert text_of(list(stream(address))) == "the answer is 42"
        pieces = list(stream(address))
        assert pieces[-1].choices[0].finish_reason == "length"
        assert pieces[-1].usage.roi["remaining"] == 0
        assert budget.session.charged == 30
        with pytest.raises(openai.RateLimitError) as caught:
            stream(address)
        assert caught.value.code == "budget_exhausted"


class Endless:
    """An endpoint that knows no caps: of two answers it ends one and goes on with the other."""

    def __init__(self) -> None:
        self.sent = 0

    def app(self) -> Starlette:
        async def words() -> Any:
            for index, finish in ((1, None), (1, "stop")):
                choice = {"index": index, "delta": {"content": "no "}, "finish_reason": finish}
                yield f"data: {json.dumps({'id': 'x', 'model': 'stub', 'choices': [choice]})}\n\n"
            while True:
                await asyncio.sleep(0.001)
                self.sent += 1
                choice = {"index": 0, "delta": {"content": "more "}, "finish_reason": None}
                yield f"data: {json.dumps({'id': 'x', 'model': 'stub', 'choices': [choice]})}\n\n"

        async def chat(request: Request) -> StreamingResponse:
            return StreamingResponse(words(), media_type="text/event-stream")

        return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


class Chunks:
    """An endpoint whose answers are these chunks."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks

    def app(self) -> Starlette:
        async def events() -> Any:
            for chunk in self.chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        async def chat(request: Request) -> StreamingResponse:
            return StreamingResponse(events(), media_type="text/event-stream")

        return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def piece(finish: Any = None, index: Any = 0, **delta: Any) -> dict[str, Any]:
    """A chunk."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "model": "stub", "choices": [choice]}


def used(tokens: int) -> dict[str, Any]:
    """The chunk with the usage."""
    return {"id": "x", "model": "stub", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}}


@pytest.mark.parametrize("usage", [False, True])
def test_an_answer_that_is_cut_as_another_one_has_ended_ends_too(usage: bool, tmp_path: Path) -> None:
    begun = [piece(index=1, content="no"), *[piece(content="more")] * 101, piece("stop")]
    with proxy(Chunks(*begun, *[piece(index=1, content="no")] * 50, piece("stop", 1)), tmp_path) as (address, budget):
        pieces = list(stream(address, n=2, **({"stream_options": {"include_usage": True}} if usage else {})))
        ends = [(one.index, one.finish_reason) for p in pieces for one in p.choices if one.finish_reason]
        assert ends == [(0, "stop"), (1, "length")]
        assert [p.usage for p in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].usage.roi["charged"] == budget.session.charged == 103


def test_the_last_chunk_is_of_the_answer_also_where_the_first_one_is_of_the_prompt(tmp_path: Path) -> None:
    asked = {"id": "", "object": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    with proxy(Chunks(asked, piece(content="42"), piece("stop"), used(1)), tmp_path) as (address, _):
        last = list(stream(address, stream_options={"include_usage": True}))[-1]
        assert (last.id, last.object, last.model, last.choices) == ("x", "chat.completion.chunk", "stub", [])


@pytest.mark.parametrize("usage", [False, True])
def test_a_chunk_without_a_choice_is_for_those_who_ask_for_usage(usage: bool, tmp_path: Path) -> None:
    last = piece(role="assistant", content="") | {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}  # OpenRouter's
    with proxy(Chunks(piece(content="42"), piece("stop", content=""), last), tmp_path, backend="openrouter") as (
        address,
        _,
    ):
        pieces = list(stream(address, **({"stream_options": {"include_usage": True}} if usage else {})))
        assert [one.finish_reason for p in pieces for one in p.choices if one.finish_reason] == ["stop"]
        assert [len(p.choices) for p in pieces] == [1] * (len(pieces) - usage) + [0] * usage
        assert pieces[-1].usage.roi["charged"] == 1


@pytest.mark.parametrize(
    "told",
    [
        {"object": "error", "message": "engine dead", "type": "InternalServerError", "code": 500},
        {"detail": "engine dead"},
        {"type": "error", "message": "engine dead"},
        {"error": {"message": "engine dead"}},
    ],
)
def test_an_error_in_the_midst_of_a_stream_ends_no_answer(told: dict[str, Any], tmp_path: Path) -> None:
    with proxy(Chunks(piece(content="half an"), told), tmp_path) as (address, budget):
        with pytest.raises(openai.APIError, match="engine dead"):
            list(stream(address))
        settled(budget)
        assert budget.session.charged == 51, "nobody knows what was generated"


_ODD: list[dict[str, Any]] = [
    {"choices": [{"index": [1], "delta": {"content": ""}, "finish_reason": None}], "usage": {"completion_tokens": 1}},
    {"choices": {"0": {"delta": {"content": "x"}}}, "usage": {"completion_tokens": 1}},
    {"choices": 5},
    piece(index="0", content=""),
    {"choices": [None, "x"]},
    piece(tool_calls=5),
    piece(tool_calls=[None, 5, {"index": [0], "function": "f"}]),
    piece(tool_calls=[{"index": 0, "id": 5, "function": {"name": 5, "arguments": {"x": 1}}}]),
    {"choices": [{"index": 0, "delta": "x", "message": 5, "logprobs": [1]}]},
    {"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": "x"}]},
    {"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": {"content": 5}}]},
]


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
def test_odd_chunks_end_no_stream(path: str, tmp_path: Path) -> None:
    for number, odd in enumerate(_ODD):
        upstream = Chunks(odd, piece(content="42"), piece("stop"), used(2))
        with proxy(upstream, tmp_path / str(number)) as (address, budget):
            asked: dict[str, Any] = {"model": "stub", "stream": True}
            asked |= {"input": "?"} if path == "responses" else {"messages": [{"role": "user", "content": "?"}]}
            asked |= {"max_tokens": 40} if path == "messages" else {}
            response = httpx.post(f"{address}/a/v1/{path}", json=asked, timeout=30)
            assert response.text.count("internal_error") == 0, (odd, response.text)
            last = [line for line in response.text.split("\n") if line.startswith("data: ")][-1]
            assert "42" in response.text
            assert any(end in last for end in ("[DONE]", "response.completed", "message_stop")), (odd, last)
            assert budget.session.charged == 2, odd


@pytest.mark.parametrize("backend", ["vllm", "generic"])
def test_an_endpoint_that_goes_beyond_its_cap_is_cut(backend: str, tmp_path: Path) -> None:
    upstream = Endless()
    with proxy(upstream, tmp_path, backend=backend) as (address, budget):
        pieces = list(stream(address, stream_options={"include_usage": True}, n=2))
        assert text_of(pieces) == "no no " + "more " * 100
        ends = [(p.choices[0].index, p.choices[0].finish_reason) for p in pieces if p.choices]
        assert [end for end in ends if end[1]] == [(1, "stop"), (0, "length")]
        assert pieces[-1].usage.roi["overshoot"] == 1
        assert budget.session.charged == 103
        settled(budget)
        end, before = time.monotonic() + 10, -1
        while upstream.sent != before:  # what was on its way may still come
            assert time.monotonic() < end, "it was not stopped"
            before = upstream.sent
            time.sleep(0.3)


@pytest.mark.parametrize("backend", ["vllm", "openai"])
def test_a_client_that_leaves_ends_the_generation(backend: str, tmp_path: Path) -> None:
    upstream = Upstream(pace=0.05)
    with proxy(upstream, tmp_path, backend=backend) as (address, budget):
        answer = stream(address)
        next(iter(answer))
        answer.response.close()
        settled(budget)
        end = time.monotonic() + 10
        while not upstream.left:
            assert time.monotonic() < end, "the endpoint went on"
            time.sleep(0.01)
        assert upstream.left[0].generated < 20
        assert budget.session.charged == 51, "nobody knows what was generated: the reservation"
        while 'status="499"' not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < end, "it is not counted as one that left"
            time.sleep(0.01)
        assert text_of(list(stream(address))) == "the answer is 42"


@pytest.mark.parametrize(("fault", "charged"), [("truncated", 51), ("reset", 51), ("no-usage", 51)])
def test_a_stream_that_breaks_off_is_no_answer_and_costs_its_reservation(
    fault: str, charged: int, tmp_path: Path
) -> None:
    with proxy(Upstream([fault]), tmp_path) as (address, budget):
        if fault == "no-usage":
            assert text_of(list(stream(address))) == "the answer is 42"
        else:
            with pytest.raises(openai.APIError, match=r"broke off|connection lost"):
                list(stream(address))
        assert budget.session.charged == charged


def test_what_fails_before_the_first_chunk_has_its_status_and_is_repeated_where_that_is_free(tmp_path: Path) -> None:
    upstream = Upstream(["503", "ok", "422"])
    with proxy(upstream, tmp_path) as (address, budget):
        assert text_of(list(stream(address))) == "the answer is 42"
        with pytest.raises(openai.UnprocessableEntityError):
            stream(address)
        assert budget.session.charged == 24


def test_a_silent_stream_says_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "KEEP_ALIVE", 0.05)
    with proxy(Upstream(latency=0.4), tmp_path) as (address, _):
        body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": True}
        told = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
        assert told.text.startswith(": still at work\n\n")
        assert told.text.endswith("data: [DONE]\n\n")
        assert text_of(list(stream(address))) == "the answer is 42", "clients do not see it"


@pytest.mark.parametrize("name", ["chunk", "end"])
def test_a_fault_of_the_proxy_is_told_in_a_stream_that_has_begun(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, begun = ChatWire.chunk, []

    def faulty(wire: ChatWire, *given: Any) -> str:
        begun.append(given)
        if name == "chunk" and len(begun) < 3:
            return chunk(wire, *given)
        raise KeyError("fault")

    caplog.set_level("INFO", "roi.access")
    with proxy(Upstream(), tmp_path) as (address, budget):
        monkeypatch.setattr(ChatWire, name, faulty)
        body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": True}
        told = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
        error = json.loads(told.text.split("data: ")[-1])["error"]
        assert (told.status_code, error["code"]) == (200, "internal_error")
        settled(budget)
        assert 24 <= budget.session.charged <= 51
    lines = [json.loads(record.message) for record in caplog.records if record.name == "roi.access"]
    assert [(line["status"], line["tokens"]) for line in lines] == [(500, budget.session.charged)]


def test_a_stream_that_ends_as_it_is_to_say_that_it_lives_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "KEEP_ALIVE", 0.0)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        events = desk.EventStream(send, ChatWire(), {"x-roi-tier": "now"}, Visit("a", "/chat/completions"))
        with events.kept_alive():
            pass
        await events.end("data: [DONE]\n\n")
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert [message["more_body"] for message in sent] == [False], "a server takes nothing after the end"


@pytest.mark.parametrize("path", ["responses", "messages", "completions"])
def test_other_protocols_end_with_the_charge(path: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "responses": {"input": "?"},
        "messages": {"messages": [{"role": "user", "content": "?"}], "max_tokens": 60},
        "completions": {"prompt": "?"},
    }[path]
    with proxy(Upstream(), tmp_path) as (address, budget):
        told = httpx.post(f"{address}/a/v1/{path}", json={"model": "stub", "stream": True, **asked}, timeout=30)
        assert told.headers["content-type"].startswith("text/event-stream")
        whole = httpx.post(f"{address}/a/v1/{path}", json={"model": "stub", **asked}, timeout=30).json()
        assert whole["usage"]["roi"]["remaining"] == 600 - budget.session.charged
        roi = json.dumps({**whole["usage"]["roi"], "remaining": 600 - budget.session.charged // 2})
        assert f'"roi": {roi}' in told.text
        for word in ("answer", "42"):
            assert word in told.text


def test_metrics_and_the_log_tell_requests_without_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "roi.access")
    with proxy(Upstream(), tmp_path, 60, admin="admin-key") as (address, _):
        list(stream(address))
        list(stream(address))
        list(stream(address))
        with pytest.raises(openai.RateLimitError):
            stream(address)
        assert httpx.get(f"{address}/metrics").status_code == 401
        told = httpx.get(f"{address}/metrics", headers={"authorization": "Bearer admin-key"}).text
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
    for line in (
        'roi_charged_tokens_total{budget="a"} 60',
        'roi_remaining_tokens{budget="a"} 0',
        'roi_reserved_tokens{budget="a"} 0',
        'roi_requests_total{budget="a",path="/chat/completions",status="200"} 3',
        'roi_requests_total{budget="a",path="/chat/completions",status="429"} 1',
        'roi_refusals_total{budget="a",code="budget_exhausted"} 1',
        'roi_tier_choices_total{budget="a",tier="long"} 3',
        'roi_first_chunk_seconds_count{budget="a"} 3',
    ):
        assert line in told.splitlines()
    lines = [json.loads(record.message) for record in caplog.records if record.name == "roi.access"]
    assert [(line["status"], line["tier"], line["tokens"]) for line in lines] == [
        (200, "long", 24), (200, "long", 24), (200, "long", 12), (429, None, 0), (401, None, 0),
    ]  # fmt: skip
    assert not any("seven" in record.message or "answer" in record.message for record in caplog.records)


def test_counts_of_metrics_are_exact_however_many_there_are() -> None:
    counted = Metrics()
    counted._requests["a", "/chat/completions", 200] = 1_234_567
    told = counted.text([])
    assert 'roi_requests_total{budget="a",path="/chat/completions",status="200"} 1234567\n' in told


def test_the_log_tells_what_reached_no_budget_too_and_no_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "roi.access")
    key = {"authorization": "Bearer a-secret-key"}
    with proxy(Upstream(), tmp_path, 60, token="the-key") as (address, _):
        for path in ("a/v1/chat/completions", "z/v1/chat/completions", "a-secret-key/v1/messages", "v1/a-secret-key"):
            assert httpx.post(f"{address}/{path}", json={}, headers=key).status_code in (401, 404)
        assert httpx.get(f"{address}/budgets?key=a-secret-key", headers=key).status_code == 401
        known = {"authorization": "Bearer the-key"}
        assert httpx.get(f"{address}/a-secret-key/v1/models", headers=known).status_code == 404
        assert httpx.get(f"{address}/a/v1/models", headers=known).status_code == 200
    lines = [json.loads(record.message) for record in caplog.records if record.name == "roi.access"]
    assert [(line["budget"], line["path"], line["status"], line["code"]) for line in lines] == [
        ("a", "/chat/completions", 401, "invalid_api_key"),
        (None, "/chat/completions", 401, "invalid_api_key"),
        (None, "/messages", 401, "invalid_api_key"),
        (None, None, 404, "invalid_request"),
        (None, "/budgets", 401, "invalid_api_key"),
        (None, "/models", 404, "unknown_budget"),
    ]
    assert not any("secret" in record.message or "the-key" in record.message for record in caplog.records)


def test_a_stream_that_is_cut_off_is_logged_once_it_is_known_what_it_cost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "roi.access")
    asked = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": True}
    path, headers = "/a/v1/chat/completions", [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}

    async def run(url: str) -> int:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm")
        budget = make_budget("a", 600, solver, TIERS, "fixed-2", 50, 4, tmp_path)
        came = iter([{"type": "http.request", "body": json.dumps(asked).encode()}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(came, None) or await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        task = asyncio.create_task(application([budget])({**scope, "headers": headers}, receive, send))
        while len(sent) < 2:
            await asyncio.sleep(0.01)
        task.cancel()  # the server ends
        await asyncio.wait([task])
        charged = budget.session.charged
        await solver.close()
        budget.close()
        return charged

    with serving(Upstream(pace=1).app()) as url:
        charged = asyncio.run(run(url))
    (line,) = [json.loads(record.message) for record in caplog.records if record.name == "roi.access"]
    assert (line["status"], line["code"], line["tokens"]) == (200, "proxy_ended", charged)
    assert charged > 0


class EchoesPrompt:
    """Streams as transformers serve 5.24 does: the prompt comes before exactly ``max_tokens`` tokens, what follows the first
    question as if it were thought."""

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> StreamingResponse:
        body = await request.json()
        prompt = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in body["messages"]) + "<|assistant|>"
        cap = body.get("max_completion_tokens") or body["max_tokens"]
        words, usage = ["6"] * cap, {"prompt_tokens": 13, "completion_tokens": cap}
        head, _, tail = prompt.partition("<|assistant|>")
        echoed = [{"content": f"{head}<|assistant|>"}, *([{"reasoning_content": f"{tail}<think>"}] if tail else [])]
        deltas = [{"role": "assistant"}, *echoed, *({"reasoning_content": word} for word in words), {}]

        async def lines() -> Any:
            for place, delta in enumerate(deltas):
                last = place == len(deltas) - 1
                choice = {"index": 0, "delta": delta, "finish_reason": "length" if last else None}
                yield f"data: {json.dumps({'choices': [choice]} | ({'usage': usage} if last else {}))}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")


@pytest.mark.parametrize("cap", [1, 7, 51])
def test_a_prompt_that_the_endpoint_repeats_is_neither_charged_nor_shown(cap: int, tmp_path: Path) -> None:
    with proxy(EchoesPrompt(), tmp_path, backend="transformers") as (address, budget):
        first = {"role": "user", "content": "six times seven?"}
        history = [first, {"role": "assistant", "content": "42"}, {"role": "user", "content": "seven times seven?"}]
        for number, messages in enumerate(([first], history), 1):
            pieces = list(stream(address, max_tokens=cap, messages=messages))
            assert (pieces[-1].usage.completion_tokens, pieces[-1].usage.prompt_tokens) == (cap, 13)
            assert pieces[-1].usage.roi["charged"] == cap
            assert budget.session.charged == number * cap
            assert pieces[-1].usage.roi["overshoot"] == 0
            assert text_of(pieces) == ""
            assert (
                sum(piece.choices[0].delta.reasoning_content == "6" for piece in pieces[1:-1] if piece.choices) == cap
            )
