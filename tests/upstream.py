"""A local endpoint that misbehaves on purpose: in front of a real one, or answering by itself.

It keeps the truth (what every request made it generate) beside what it says, so that tests can compare the two. By
itself it "generates" words: one word is one token.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

UNICODE = "réponse \u202e42\u202c 🧮 \u0000 \ud83d\udc69\u200d💻 ٤٢ \\boxed{42}\n".encode(
    "utf-16", "surrogatepass"
).decode("utf-16")
FAULTS = (
    "429", "429-after", "500", "503", "502", "drip", "silence", "reset", "truncated", "no-usage", "lie-low", "overshoot",
    "empty", "html", "wrong-type", "unicode", "error-200", "422", "nested",
)  # fmt: skip
NOTHING_GENERATED = {"429", "429-after", "500", "503", "422"}


@dataclass
class Seen:
    """One request: what was asked and what it truly cost."""

    fault: str
    body: dict[str, Any]
    headers: dict[str, str]
    generated: int = 0
    said: int | None = None

    @property
    def cap(self) -> int:
        for name in ("max_completion_tokens", "max_tokens"):
            if name in self.body:
                return int(self.body[name])
        raise AssertionError(f"a request without a cap: {self.body}")

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][-1]["content"])


@dataclass
class Upstream:
    """See the module's text.

    :param faults: one for every request in turn, "ok" for none; after their end "ok".
    :param real: base address of a real endpoint to forward to.
    :param answer: prompt -> answer's text (without ``real``).
    :param enforces: whether ``thinking_token_budget`` is obeyed.
    :param script: responses of one request after the other, instead of answers; the last one repeats.
    :param version: at ``/version``, as vLLM says it.
    """

    faults: Iterable[str] = ()
    real: str | None = None
    answer: Callable[[str], str] = lambda prompt: "the answer is 42"
    thinks: int = 20
    enforces: bool = True
    retry_after: str = "0"
    drip_seconds: float = 30.0
    latency: float = 0.0
    script: Sequence[Any] = ()
    version: str | None = None
    seen: list[Seen] = field(default_factory=list)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._faults: Iterator[str] = iter(self.faults)
        self._in_flight = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", lambda request: JSONResponse({"data": [{"id": "stub"}]})),
                *([Route("/version", lambda request: JSONResponse({"version": self.version}))] if self.version else []),
            ]
        )

    async def _chat(self, request: Request) -> Response:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return await self._answer(request)
        finally:
            self._in_flight -= 1

    async def _answer(self, request: Request) -> Response:
        seen = Seen(next(self._faults, "ok"), await request.json(), dict(request.headers))
        self.seen.append(seen)
        fault = seen.fault
        if self.script:
            return Response(json.dumps(self.script[min(len(self.seen), len(self.script)) - 1]))
        if self.latency:
            await asyncio.sleep(self.latency)
        if fault in ("429", "429-after"):
            headers = {"retry-after": self.retry_after} if fault == "429-after" else {}
            return JSONResponse({"error": {"message": "slow down"}}, 429, headers)
        if fault in ("500", "503", "422"):
            return JSONResponse({"error": {"message": f"fault {fault}"}}, int(fault))
        data = await self._forward(request) if self.real else self._generate(seen)
        seen.generated = data["usage"]["completion_tokens"]
        seen.said = seen.generated
        if fault == "502":
            return JSONResponse({"error": {"message": "bad gateway"}}, 502)
        if fault == "error-200":
            return JSONResponse({"error": {"message": "provider returned an error"}})
        if fault == "html":
            return Response("<html><body>login</body></html>", media_type="text/html")
        if fault == "nested":
            return Response("[" * 200_000, media_type="application/json")
        if fault == "no-usage":
            del data["usage"]
            seen.said = None
        if fault == "lie-low":
            data["usage"] = {"completion_tokens": 1, "prompt_tokens": 1, "total_tokens": 2}
            seen.said = 1
        if fault == "unicode":
            data["choices"][0]["message"]["content"] = UNICODE
        if fault == "empty":
            data["choices"][0]["message"]["content"] = None
            data["choices"][0]["finish_reason"] = "length"
        text = json.dumps(data)
        if fault == "truncated":
            return Response(text[: len(text) // 2], media_type="application/json")
        if fault == "wrong-type":
            return Response(text, media_type="text/plain")
        if fault == "drip":
            return StreamingResponse(self._drip(text), media_type="application/json")
        if fault == "silence":
            await asyncio.sleep(self.drip_seconds)
        if fault == "reset":
            return Reset(text, media_type="application/json")
        return Response(text, media_type="application/json")

    async def _forward(self, request: Request) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(timeout=60, verify=False) as client:
            response = await client.post(f"{self.real}/chat/completions", content=await request.body(), headers=headers)
        assert response.status_code == 200, response.text
        data: dict[str, Any] = response.json()
        return data

    def _generate(self, seen: Seen) -> dict[str, Any]:
        thinks = self.thinks
        if seen.body.get("chat_template_kwargs", {}).get("enable_thinking") is False:
            thinks = 0
        elif self.enforces and "thinking_token_budget" in seen.body:
            thinks = min(thinks, seen.body["thinking_token_budget"])
        answer = self.answer(seen.prompt).split(" ")
        cap = seen.cap + 7 if seen.fault == "overshoot" else seen.cap
        if seen.fault == "overshoot":
            answer += ["more"] * (cap - thinks - len(answer))
        thought, words = min(thinks, cap), max(0, min(len(answer), cap - thinks))
        total = thought + words
        message = {"role": "assistant", "content": " ".join(answer[:words]) or None}
        usage: dict[str, Any] = {"completion_tokens": total, "prompt_tokens": 9, "total_tokens": 9 + total}
        if thought:
            message["reasoning"] = " ".join(["hm"] * thought)
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        cut = words < len(answer)
        return {
            "id": "x",
            "choices": [{"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}],
            "usage": usage,
        }

    async def _drip(self, text: str) -> Any:
        for byte in text:
            yield byte.encode()
            await asyncio.sleep(self.drip_seconds / len(text))

    @property
    def generated(self) -> int:
        """Tokens truly generated."""
        return sum(seen.generated for seen in self.seen)


class Reset(Response):
    """Promises a whole body and breaks off after a third of it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 3], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def schedule(seed: int, length: int, faults: tuple[str, ...] = FAULTS, share: float = 0.5) -> list[str]:
    """Faults for ``length`` requests; every kind occurs where there is room for it."""
    rng = random.Random(seed)
    drawn = [rng.choice(faults) if rng.random() < share else "ok" for _ in range(length)]
    drawn[: len(faults)] = faults
    rng.shuffle(drawn)
    return drawn


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serve an ASGI application on a free local port; gives its address.

    :param options: of uvicorn.
    """
    options |= {"log_level": "critical", "lifespan": "on", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
