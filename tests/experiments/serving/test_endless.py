"""Endpoints whose answers never end: they eat no memory, their clients hear of it, and they cost what may have been generated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from experiments.serving.app import application
from experiments.serving.budget import make_budget
from roi_env.answering import connections, http, streams
from roi_env.answering.base import ThinkingTier
from roi_env.answering.http import EndpointError, HTTPSolver
from tests.experiments.serving.test_budgets import until
from tests.upstream import kept, serving

CHUNK = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "one"}}]}
PIECES = {
    "a line": b"data: " + b"x" * 9994,
    "an event": b"data: [\n" * 1250,
    "comments": (b": " + b"x" * 97 + b"\n") * 100,
    "a body": b" " * 10_000,
    "an error": b" " * 10_000,
}


class Endless:
    """Answers with one piece after the other, after the first chunk of a stream.

    :ivar sent: bytes.
    :ivar ended: answers that were closed.
    """

    def __init__(self, piece: str) -> None:
        self.piece, self.sent, self.ended = piece, 0, 0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/{path:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request: Request) -> Response:
        streams_ = self.piece in ("a line", "an event", "comments")
        kind = "text/event-stream" if streams_ else "application/json"
        return StreamingResponse(self.pieces(streams_), 500 if self.piece == "an error" else 200, media_type=kind)

    async def pieces(self, streams_: bool) -> AsyncIterator[bytes]:
        try:
            if streams_:
                yield b"data: %b\n\n" % json.dumps(CHUNK).encode()
            while self.sent < 50_000_000:
                self.sent += len(PIECES[self.piece])
                yield PIECES[self.piece]
                await asyncio.sleep(0)
        finally:
            self.ended += 1


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_never_ends_is_an_error_and_costs_its_reservation(
    piece: str, stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (connections, http):
        monkeypatch.setattr(module, "MOST_ANSWER", 3_000_000)
    monkeypatch.setattr(streams, "MOST_EVENT", 100_000)
    endpoint = Endless(piece)
    with serving(endpoint.app()) as url:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm", first_wait=0.001)
        budget = make_budget("a", 600, solver, [ThinkingTier("t", 0, 50)], "fixed-1", 50, 4, tmp_path)
        with serving(application([budget])) as address:
            body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": stream}
            answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
        until(lambda: endpoint.ended == 1)
    begun = stream and piece in ("a line", "an event", "comments")
    assert answer.status_code == (200 if begun else 502)
    told = json.loads(answer.text.split("data: ")[-1]) if begun else answer.json()
    what, most = (
        ("an event of the stream", "100,000") if piece in ("a line", "an event") else ("the answer", "3,000,000")
    )
    assert told["error"]["message"] == f"{what} has more than {most} bytes, the most that is read"
    assert kept(tmp_path) == (50, 0)
    assert endpoint.sent < 20_000_000, "it was stopped"


def test_a_list_of_models_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_ANSWER", 3_000_000)

    async def run(url: str) -> None:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm")
        try:
            with pytest.raises(EndpointError, match="the answer has more than 3,000,000 bytes"):
                await solver.models()
            assert await solver.raw({}) == (
                0,
                {"error": "the answer has more than 3,000,000 bytes, the most that is read"},
            )
        finally:
            await solver.close()

    with serving(Endless("a body").app()) as url:
        asyncio.run(run(url))


def test_a_large_answer_is_read(tmp_path: Path) -> None:
    text = "x" * 7_000_000
    whole = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 20, "total_tokens": 21}

    async def answer(request: Request) -> Response:
        body = await request.json()
        if not body.get("stream"):
            return Response(json.dumps({"choices": [whole], "usage": usage}), media_type="application/json")
        chunk = {"choices": [{"index": 0, "delta": whole["message"], "finish_reason": "stop"}], "usage": usage}
        return Response(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    with serving(app) as url:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm")
        budget = make_budget("a", 600, solver, [ThinkingTier("t", 0, 50)], "fixed-1", 50, 4, tmp_path)
        with serving(application([budget])) as address:
            for more in ({"logprobs": True}, {}):
                body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], **more}
                answer_ = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
                assert answer_["choices"][0]["message"]["content"] == text
    assert kept(tmp_path) == (40, 0)
