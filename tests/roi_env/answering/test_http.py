"""The HTTP solver against an endpoint that misbehaves: what is charged, what is repeated, what becomes an error."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from roi_env.answering.backends import BACKENDS, fill, find
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.http import EndpointError, HTTPSolver, retry_after
from tests.upstream import UNICODE, Upstream, serving

NOW, LONG = ThinkingTier("now", 0, 10), ThinkingTier("long", 50, 10)
QUESTION = Question("d", "1", "six times seven?", "42")


def ask(upstream: Upstream, asks: Sequence[Ask], **options: Any) -> list[Reply]:
    async def run(url: str) -> list[Reply]:
        backend = options.pop("backend", "vllm")
        solver = HTTPSolver(f"{url}/v1", "stub", backend, **{"first_wait": 0.01, "deadline": 30.0, **options})
        try:
            return list(await asyncio.gather(*(solver.answer(one) for one in asks)))
        finally:
            await solver.close()

    with serving(upstream.app()) as url:
        return asyncio.run(run(url))


def told(status: int, body: object, backend: str, cap: int) -> Reply:
    """The reply where every request is answered so."""
    app = Starlette(routes=[Route("/{path:path}", lambda request: JSONResponse(body, status), methods=["POST"])])

    async def run(url: str) -> Reply:
        solver = HTTPSolver(f"{url}/v1", "m", backend, first_wait=0.01)
        try:
            return await solver.answer(Ask(QUESTION, LONG, cap))
        finally:
            await solver.close()

    with serving(app) as url:
        return asyncio.run(run(url))


def one(
    fault: str, tier: ThinkingTier = LONG, cap: int = 61, then: Sequence[str] = (), **options: Any
) -> tuple[Reply, Upstream]:
    upstream = Upstream([fault, *then], drip_seconds=5.0)
    return ask(upstream, [Ask(QUESTION, tier, cap)], **options)[0], upstream


def test_an_answer_its_tokens_and_its_split() -> None:
    reply, upstream = one("ok")
    assert (reply.text, reply.tokens, reply.reasoning_tokens, reply.finish) == ("the answer is 42", 24, 20, "stop")
    assert reply.counted == "server"
    assert reply.full_text == "hm " * 19 + "hm</think>the answer is 42"
    assert upstream.seen[0].body["thinking_token_budget"] == 50
    assert upstream.seen[0].body["max_completion_tokens"] == 61
    direct, upstream = one("ok", NOW, 10)
    assert (direct.tokens, direct.reasoning) == (4, None)
    assert upstream.seen[0].body["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("fault", ["429", "429-after", "500", "503"])
def test_what_generated_nothing_is_repeated_for_free(fault: str) -> None:
    reply, upstream = one(fault, then=[fault])
    assert (reply.error, reply.tokens, reply.attempts) == (None, 24, 3)
    assert len(upstream.seen) == 3
    given_up, upstream = one(fault, then=[fault] * 9, retries=2)
    assert (given_up.tokens, given_up.lost, given_up.counted, len(upstream.seen)) == (0, False, "nothing", 3)
    assert given_up.error is not None
    assert fault[:3] in given_up.error


@pytest.mark.parametrize("fault", ["502", "drip", "silence", "reset", "truncated", "html", "nested", "error-200"])
def test_what_may_have_generated_is_charged_at_its_reservation(fault: str) -> None:
    # Only these two reach a deadline; on a busy machine it may pass before the request arrives.
    slow = fault in ("drip", "silence")
    reply, upstream = one(fault, deadline=1.0 if slow else 30.0)
    assert (reply.tokens, reply.lost, reply.counted, reply.finish) == (61, True, "reserved", "error")
    assert reply.error
    assert len(upstream.seen) <= 1 if slow else len(upstream.seen) == 1, "asking again is the caller's choice"
    assert upstream.generated <= reply.tokens


def test_a_permanent_error_is_an_error_and_not_an_answer() -> None:
    reply, upstream = one("422")
    assert reply.error == 'HTTP 422: {"error":{"message":"fault 422"}}'
    assert (reply.tokens, reply.lost, len(upstream.seen)) == (0, False, 1)


def test_no_connection_costs_nothing() -> None:
    async def run() -> Reply:
        solver = HTTPSolver("http://127.0.0.1:9", "stub", retries=1, first_wait=0.01)
        try:
            return await solver.answer(Ask(QUESTION, LONG, 61))
        finally:
            await solver.close()

    reply = asyncio.run(run())
    assert (reply.tokens, reply.lost, reply.attempts) == (0, False, 2)
    assert reply.error is not None
    assert reply.error.startswith("no connection")


def test_a_connection_that_is_not_made_before_a_short_deadline_costs_nothing() -> None:
    async def run(address: str) -> Reply:
        solver = HTTPSolver(address, "stub", deadline=0.5, retries=0)
        try:
            return await solver.answer(Ask(QUESTION, LONG, 61))
        finally:
            await solver.close()

    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # what it does not accept fills its queue: the next ones are not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        reply = asyncio.run(run(f"http://127.0.0.1:{listening.getsockname()[1]}/v1"))
    assert (reply.tokens, reply.lost, reply.unreachable) == (0, False, True)
    assert reply.error == "no connection: none was made in time"


def test_missing_and_lying_usage() -> None:
    def count(text: str) -> int:
        return len(text.split())

    assert one("no-usage")[0].tokens == 61, "nobody knows: the reservation"
    assert one("no-usage")[0].counted == "reserved"
    counted, upstream = one("no-usage", count=count)
    assert (counted.tokens, counted.counted) == (25, "tokenizer")
    assert upstream.generated <= counted.tokens
    assert one("lie-low")[0].tokens == 1, "a plausible lie cannot be seen without a tokenizer"
    assert one("lie-low", count=count)[0].tokens == 24
    overshoot, upstream = one("overshoot")
    assert overshoot.tokens == upstream.generated == 68
    assert overshoot.error is None


def test_errors_inside_answers_are_taken_by_their_kind() -> None:
    whole = {
        "choices": [{"message": {"content": "42"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
    busy = {"error": {"code": 429, "message": "slow down"}}
    reply = ask(upstream := Upstream(script=[busy, busy, whole]), [Ask(QUESTION, LONG, 61)])[0]
    assert (reply.text, reply.tokens, reply.attempts, len(upstream.seen)) == ("42", 3, 3, 3)
    reply = ask(upstream := Upstream(script=[busy]), [Ask(QUESTION, LONG, 61)], retries=2)[0]
    assert (reply.error, reply.tokens, reply.lost, len(upstream.seen)) == ("slow down", 0, False, 3)
    failed = {**whole, "choices": [{"message": {"content": ""}, "finish_reason": "error"}]}
    reply = ask(upstream := Upstream(script=[failed]), [Ask(QUESTION, LONG, 61)])[0]
    assert (reply.error, reply.tokens, reply.lost) == ("it ended with 'error'", 3, False)
    assert len(upstream.seen) == 1, "what it cost is charged, and whoever asks decides"


def test_a_failed_request_that_says_what_it_generated_is_charged() -> None:
    body = {"error": {"message": "no"}, "usage": {"prompt_tokens": 9, "total_tokens": 42}}
    for status in (500, 502, 400):  # otherwise: free, lost, and an error that costs nothing
        reply = told(status, body, "generic", 61)
        assert (reply.tokens, reply.lost, reply.counted, reply.attempts) == (33, False, "server", 1)
        assert reply.error is not None


def test_errors_and_notes_hold_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret-key")
    for message in ({"content": None, "refusal": "not with s3cret-key"}, {"content": ""}):
        data = {"choices": [{"message": message, "finish_reason": "s3cret-key"}], "usage": {"completion_tokens": 3}}
        reply = ask(Upstream(script=[data]), [Ask(QUESTION, LONG, 61)], key_env="SOME_KEY")[0]
        assert "***" in f"{reply.error} {reply.note}"
        assert "s3cret" not in str(reply)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("spell", [lambda c: f"\\u{ord(c):04x}", lambda c: "\\/" if c == "/" else c])
def test_a_key_is_known_however_json_spells_it(
    spell: Callable[[str], str], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "s3cret/key+of=ours"
    monkeypatch.setenv("SOME_KEY", key)
    at = "delta" if stream else "message"
    data = {
        "choices": [{"index": 0, at: {"content": "it is KEY"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 3},
    }
    text = json.dumps(data).replace("KEY", "".join(map(spell, key)))
    kind = "text/event-stream" if stream else "application/json"
    body = f"data: {text}\n\ndata: [DONE]\n\n" if stream else text
    shown = []

    async def sink(raw: str, chunk: object) -> None:
        shown.append(f"{raw}{chunk}")

    async def run(url: str) -> Reply:
        solver = HTTPSolver(f"{url}/v1", "m", key_env="SOME_KEY")
        try:
            return await solver.answer(Ask(QUESTION, LONG, 61, sink=sink if stream else None))
        finally:
            await solver.close()

    route = Route("/{path:path}", lambda request: Response(body, media_type=kind), methods=["POST"])
    with serving(Starlette(routes=[route])) as url:
        reply = asyncio.run(run(url))
    assert reply.text == "it is ***"
    assert "s3cret" not in f"{reply}{json.loads(json.dumps(shown))}"
    assert "u0073" not in str(shown)


@pytest.mark.parametrize("asked_to", [False, True])
def test_endpoints_that_only_stream(asked_to: bool) -> None:
    """One that refuses to answer whole, and one that streams whatever it is asked."""
    bodies = []

    async def answer(request: Request) -> Response:
        bodies.append(await request.json())
        if asked_to and not bodies[-1].get("stream"):
            return JSONResponse({"error": {"message": "This model only supports stream mode"}}, 400)
        pieces = [{"delta": {"content": f"{word} "}, "finish_reason": None} for word in ("the", "answer", "42")]
        chunks = [{"choices": [piece]} for piece in [*pieces, {"delta": {}, "finish_reason": "stop"}]]
        chunks.append({"choices": [], "usage": {"completion_tokens": 4}})
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        return Response(f"{events}data: [DONE]\n\n", media_type="text/event-stream")

    async def run(url: str) -> list[Reply]:
        solver = HTTPSolver(f"{url}/v1", "m")
        try:
            return [await solver.answer(Ask(QUESTION, LONG, 61)) for _ in range(3)]
        finally:
            await solver.close()

    with serving(Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])) as url:
        replies = asyncio.run(run(url))
    assert [(one.text, one.tokens, one.counted, one.error) for one in replies] == [
        ("the answer 42 ", 4, "server", None)
    ] * 3
    assert len(bodies) == 3 + asked_to, "it is found out once"


@pytest.mark.parametrize("key", ["k", "none", "token"])
def test_a_short_key_changes_no_answer(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    data = {
        "choices": [{"message": {"content": f"ask for {key}"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 3},
    }
    reply = ask(Upstream(script=[data]), [Ask(QUESTION, LONG, 61)], key_env="SOME_KEY")[0]
    assert (reply.text, reply.tokens, reply.counted) == (f"ask for {key}", 3, "server")
    refused = ask(
        Upstream(script=[{"error": {"message": f"ask for {key}"}}]), [Ask(QUESTION, LONG, 61)], key_env="SOME_KEY"
    )
    assert refused[0].error == f"ask for {key}"


def test_empty_content_is_a_paid_answer() -> None:
    reply, _ = one("empty")
    assert (reply.text, reply.finish, reply.error, reply.tokens) == ("", "length", None, 24)
    cut, _ = one("ok", cap=5)
    assert (cut.text, cut.finish, cut.tokens) == ("", "length", 5)


def test_any_text_and_any_content_type() -> None:
    assert one("unicode")[0].text == UNICODE
    assert one("wrong-type")[0].text == "the answer is 42"


def test_back_pressure_and_retry_after() -> None:
    upstream = Upstream(latency=0.02)
    ask(upstream, [Ask(QUESTION, NOW, 10)] * 30, concurrency=4)
    assert upstream.most_in_flight <= 4
    held = Upstream(["429-after"], retry_after="1")
    replies = ask(held, [Ask(QUESTION, NOW, 10)] * 2, concurrency=1)
    assert all(reply.error is None for reply in replies)
    assert replies[0].seconds >= 1
    late = Upstream(["429-after"], retry_after="3600")
    assert ask(late, [Ask(QUESTION, NOW, 10)], patience=5.0)[0].error


def test_retry_after_reads_numbers_and_dates() -> None:
    assert retry_after({}) is None
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2110 07:28:00 GMT"}) > 1e9  # type: ignore[operator]


def test_a_key_that_is_missing_or_none_is_named_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(EndpointError, match="SOME_KEY, which should hold the endpoint's key, is empty"):
        HTTPSolver("http://h/v1", "m", key_env="SOME_KEY")
    for key in ("two\nlines", "clé"):
        monkeypatch.setenv("SOME_KEY", key)
        with pytest.raises(EndpointError, match="SOME_KEY holds no key"):
            HTTPSolver("http://h/v1", "m", key_env="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", " s3cret-key\n")  # as it is read from a file
    reply, upstream = one("ok", key_env="SOME_KEY")
    assert (reply.error, upstream.seen[0].headers["authorization"]) == (None, "Bearer s3cret-key")


def test_keys_come_from_the_environment_and_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret-key")
    reply, upstream = one("422", key_env="SOME_KEY")
    assert upstream.seen[0].headers["authorization"] == "Bearer s3cret-key"
    solver = HTTPSolver("http://h/v1", "m", key_env="SOME_KEY")
    assert "s3cret" not in repr(solver) + json.dumps(solver.settings) + str(reply)
    assert solver._clean("invalid key s3cret-key!") == "invalid key ***!"
    monkeypatch.setenv("SOME_KEY", "proj-0123456789abcdef")
    longer = HTTPSolver("http://h/v1", "m", key_env="SOME_KEY")
    for shown in (
        "proj-0123456789abcdef",
        "proj-0123***cdef",
        "proj-0...",
        "sk-another-0123456789",
        "Bearer abcdef.ghi",
    ):
        assert "0" not in longer._clean(f"invalid key {shown}, really"), shown
        assert longer._clean(f"invalid key {shown} really").endswith(" really")
    asyncio.run(solver.close())
    for url in ("http://user:pw@h/v1", "http://h/v1?key=x", "ftp://h", "h:80"):
        with pytest.raises(EndpointError):
            HTTPSolver(url, "m")
    with pytest.raises(EndpointError, match="unknown backend"):
        HTTPSolver("http://h", "m", "grok")
    nested = {"generationConfig": {"candidateCount": 2}}
    for extra in ({"max_tokens": 9999}, {"max_completion_tokens": 9}, {"n": 2}, {"stream": True}, nested):
        with pytest.raises(EndpointError, match="must not set"):
            HTTPSolver("http://h", "m", extra=extra)


def body(backend: str, tier: ThinkingTier, cap: int, **options: Any) -> dict[str, Any]:
    solver = HTTPSolver("http://h/v1", "m", backend, **options)
    return solver.body(Ask(QUESTION, tier, cap))


def test_request_fields_of_every_backend() -> None:
    big = ThinkingTier("big", 2000, 100)
    assert set(BACKENDS) >= {"vllm", "sglang", "transformers", "openai", "anthropic", "gemini", "llama.cpp", "generic"}
    for name, backend in BACKENDS.items():
        for tier, cap in ((big, 2101), (NOW, 10)):
            sent = body(name, tier, cap, system="be brief", temperature=0.5, seed=3)
            text = json.dumps(sent)
            assert "$" not in text, (name, text)
            assert str(cap) in text, name
            assert QUESTION.text in text
            assert "be brief" in text
            assert backend.name == name
    assert body("vllm", big, 2101)["thinking_token_budget"] == 2000
    assert body("sglang", big, 2101)["custom_params"] == {"thinking_budget": 2000}
    assert body("openai", big, 2101)["reasoning_effort"] == "medium"
    assert body("openai", ThinkingTier("x", 2000, 9, "xhigh"), 99)["reasoning_effort"] == "xhigh"
    assert body("openai-responses", NOW, 10)["reasoning"] == {"effort": "none"}
    assert body("anthropic", LONG, 5000)["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert body("anthropic", NOW, 10)["thinking"] == {"type": "disabled"}
    assert body("gemini", big, 2101)["generationConfig"] == {
        "maxOutputTokens": 2101,
        "thinkingConfig": {"thinkingBudget": 2000},
    }
    level = ThinkingTier("x", 9000, 9, "low")
    assert body("gemini-level", level, 99)["generationConfig"]["thinkingConfig"] == {"thinkingLevel": "LOW"}
    assert body("dashscope", big, 2101)["thinking_budget"] == 2000
    assert body("openrouter", NOW, 10)["reasoning"] == {"effort": "none"}
    assert body("generic", big, 50, extra={"top_k": 1})["top_k"] == 1
    with pytest.raises(EndpointError, match="needs more than 1024"):
        body("anthropic", LONG, 500)


def test_no_two_requests_for_one_question_share_their_random_numbers() -> None:
    seeds = {}
    for seed, number, sample, tier in itertools.product(range(4), range(5), range(8), (NOW, LONG)):
        solver = HTTPSolver("http://h/v1", "m", seed=seed)
        asked = Ask(Question("d", str(number), "six times seven?", "42"), tier, 61, sample)
        sent = solver.body(asked)["seed"]
        assert 0 <= sent < 2**31, "what every endpoint takes"
        assert solver.body(asked._replace(cap=9))["seed"] == sent, "the same generation, whatever is left of a budget"
        seeds[seed, number, sample, tier] = sent
    assert len(set(seeds.values())) == len(seeds)
    for name, backend in BACKENDS.items():
        sent_by = HTTPSolver("http://h/v1", "m", name, seed=0)
        assert ("seed" in json.dumps(sent_by.body(Ask(QUESTION, LONG, 2000)))) == sent_by.sends_seeds, name
        assert sent_by.sends_seeds == (backend.path not in ("/messages", "/responses")), name
        assert "seed" not in json.dumps(HTTPSolver("http://h/v1", "m", name).body(Ask(QUESTION, LONG, 2000)))


def test_only_the_total_is_clamped_unless_the_answer_shall_fit() -> None:
    assert body("vllm", LONG, 30)["thinking_token_budget"] == 50
    assert body("vllm", LONG, 30)["max_completion_tokens"] == 30
    assert body("vllm", LONG, 30, fit_answer=True)["thinking_token_budget"] == 19
    assert body("vllm", LONG, 5, fit_answer=True)["thinking_token_budget"] == 0


RESPONSES: dict[str, Any] = {
    "openai-responses": {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {
                "type": "message",
                "content": [{"type": "output_text", "text": "4"}, {"type": "output_text", "text": "2"}],
            },
        ],
        "usage": {"input_tokens": 3, "output_tokens": 30, "output_tokens_details": {"reasoning_tokens": 20}},
    },
    "anthropic": {
        "stop_reason": "max_tokens",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "42"}],
        "usage": {"input_tokens": 3, "output_tokens": 30, "output_tokens_details": {"thinking_tokens": 20}},
    },
    "gemini": {
        "candidates": [
            {"content": {"parts": [{"text": "hm", "thought": True}, {"text": "42"}]}, "finishReason": "MAX_TOKENS"}
        ],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 10, "thoughtsTokenCount": 20},
    },
    "sglang": {
        "choices": [{"message": {"content": "42", "reasoning_content": "hm"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 30, "reasoning_tokens": 20},
    },
}


@pytest.mark.parametrize("name", RESPONSES)
def test_responses_are_read_and_charged_inclusively(name: str) -> None:
    reply = told(200, RESPONSES[name], name, 2000)
    assert (reply.text, reply.reasoning, reply.tokens, reply.reasoning_tokens) == ("42", "hm", 30, 20)
    assert (reply.finish, reply.prompt_tokens) == ("length", 3)


def test_a_split_that_contradicts_itself_is_unknown() -> None:
    for split, expected in ((0, None), (30, None), (True, None), (5, 5)):
        data = {
            "choices": [{"message": {"content": "42", "reasoning": "hm"}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": split}},
        }
        solver = HTTPSolver("http://h/v1", "m", "vllm")
        assert solver._read(Ask(QUESTION, LONG, 61), data).reasoning_tokens == expected


def test_paths_and_templates() -> None:
    data = {"a": [{"b": 1}, {"b": None}, {"c": 2, "t": True}]}
    assert find(data, "a.*.b") == [1]
    assert find(data, "a.*[t].c") == [2]
    assert find(data, "a.*[!t].c") == []
    assert find(data, "a.7.b") == find(data, "x.y") == find(3, "a") == []
    assert fill({"x": "$a", "y": {"z": "$b"}, "w": {}}, {"a": 1, "b": None}) == {"x": 1, "w": {}}
