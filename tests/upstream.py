"""A local endpoint that misbehaves on purpose: in front of a real one, or answering by itself.

It keeps the truth (what every request made it generate) beside what it says, so that tests can compare the two. By
itself it "generates" words: one word is one token. ``python -m tests.upstream`` serves it as a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
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
    read: int = 0
    """Tokens of its prompt."""

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
    counts: bool = True
    """Whether chunks tell the tokens so far where they are asked to, as vLLM's do."""
    retry_after: str = "0"
    drip_seconds: float = 30.0
    latency: float = 0.0
    script: Sequence[Any] = ()
    told: Mapping[str, Any] = field(default_factory=dict)
    """Parts of every choice that are told instead of the generated ones."""
    version: str | None = None
    pace: float = 0.0
    """Seconds that a token takes where the answer streams."""
    seen: list[Seen] = field(default_factory=list)
    left: list[Seen] = field(default_factory=list)
    """Streams that were closed before their end; nothing more was generated for them."""
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._faults: Iterator[str] = iter(self.faults)
        self._in_flight = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._texts, methods=["POST"]),
                Route(
                    "/seen",
                    lambda request: JSONResponse([{**one.body, "generated": one.generated} for one in self.seen]),
                ),
                Route("/left", lambda request: JSONResponse([one.generated for one in self.left])),
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
        if seen.body.get("stream") and not self.real:
            return StreamingResponse(self._stream(seen), media_type="text/event-stream")
        data = await self._forward(request) if self.real else self._generate(seen)
        seen.generated, seen.read = data["usage"]["completion_tokens"], data["usage"]["prompt_tokens"]
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
        message: dict[str, Any] = {"role": "assistant", "content": " ".join(answer[:words]) or None}
        number = seen.body.get("n", 1)
        usage: dict[str, Any] = {"completion_tokens": number * total, "prompt_tokens": 9}
        usage["total_tokens"] = 9 + number * total
        if thought:
            message["reasoning"] = " ".join(["hm"] * thought)
            usage["completion_tokens_details"] = {"reasoning_tokens": number * thought}
        finish = "length" if words < len(answer) else "stop"
        if finish == "stop" and seen.body.get("tools") and seen.body["messages"][-1]["role"] != "tool":
            function = {
                "name": seen.body["tools"][0]["function"]["name"],
                "arguments": json.dumps({"question": "6 * 7"}),
            }
            message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
            finish = "tool_calls"
        if finish == "stop" and seen.body.get("response_format", {}).get("type", "text") != "text":
            message["content"] = json.dumps({"answer": 42})
        choice = {"message": message, "finish_reason": finish, **self.told}
        choices = [{"index": index, **choice} for index in range(number)]
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": choices,
            "usage": usage,
        }

    async def _stream(self, seen: Seen) -> AsyncIterator[str]:
        """The same answer word by word; what was sent was generated, and nothing is when the client has left."""
        data = self._generate(seen)
        usage, head = data.pop("usage"), {**data, "object": "chat.completion.chunk"}
        seen.said = usage["completion_tokens"]

        counts = self.counts and seen.fault != "no-usage"
        counts = counts and seen.body.get("stream_options", {}).get("continuous_usage_stats")
        sent = [0] * len(data["choices"])

        def chunk(index: int, delta: dict[str, Any], **end: Any) -> str:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **end}
            so_far = {"completion_tokens": sent[index], "prompt_tokens": 9, "total_tokens": 9 + sent[index]}
            return f"data: {json.dumps({**head, 'choices': [choice]} | ({'usage': so_far} if counts else {}))}\n\n"

        try:
            for choice in data["choices"]:
                message, index = choice["message"], choice["index"]
                yield chunk(index, {"role": "assistant", "content": ""})
                for name in ("reasoning", "content", "refusal"):
                    words = (message.get(name) or "").split(" ") if message.get(name) else []
                    for place, word in enumerate(words):
                        if self.pace:
                            await asyncio.sleep(self.pace)
                        seen.generated += 1
                        sent[index] += 1
                        if seen.fault == "reset" and seen.generated * 3 > usage["completion_tokens"]:
                            raise ConnectionResetError
                        yield chunk(index, {name: word if place == 0 else f" {word}"})
                for number, call in enumerate(message.get("tool_calls") or ()):
                    function = call["function"]
                    yield chunk(
                        index, {"tool_calls": [{"index": number, **call, "function": {**function, "arguments": ""}}]}
                    )
                    for piece in (function["arguments"][:5], function["arguments"][5:]):
                        yield chunk(index, {"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
                if seen.fault == "truncated":
                    return
                yield chunk(
                    index, {}, **{name: value for name, value in choice.items() if name not in ("index", "message")}
                )
            seen.generated = seen.said
            if seen.body.get("stream_options", {}).get("include_usage") and seen.fault != "no-usage":
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        except (GeneratorExit, asyncio.CancelledError):
            self.left.append(seen)
            raise

    async def _texts(self, request: Request) -> Response:
        seen = Seen("ok", await request.json(), dict(request.headers))
        self.seen.append(seen)
        prompts = seen.body["prompt"] if isinstance(seen.body["prompt"], list) else [seen.body["prompt"]]
        words = [self.answer(str(prompt)).split(" ")[: seen.cap] for prompt in prompts] * seen.body.get("n", 1)
        seen.generated = sum(map(len, words))
        finish = ["length" if len(one) == seen.cap else "stop" for one in words]
        head = {"id": "x", "object": "text_completion", "created": 1, "model": "stub"}
        usage = {"prompt_tokens": 9, "completion_tokens": seen.generated, "total_tokens": 9 + seen.generated}
        texts = [" ".join(one) for one in words]
        choices = [
            {"index": i, "text": t, "logprobs": None, "finish_reason": f}
            for i, (t, f) in enumerate(zip(texts, finish, strict=True))
        ]
        if not seen.body.get("stream"):
            return JSONResponse({**head, "choices": choices, "usage": usage})

        async def stream() -> AsyncIterator[str]:
            for choice in choices:
                for word in str(choice["text"]).split(" "):
                    piece = {**choice, "text": f"{word} ", "finish_reason": None}
                    yield f"data: {json.dumps({**head, 'choices': [piece]})}\n\n"
                yield f"data: {json.dumps({**head, 'choices': [{**choice, 'text': ''}]})}\n\n"
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

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


def kept(state: Path) -> tuple[int, int]:
    """(tokens charged, requests not settled) in a proxy's database."""
    with closing(sqlite3.connect(state / "budgets.db")) as base:
        charged, open_ = base.execute("SELECT sum(charged), sum(charged IS NULL) FROM requests").fetchone()
        assert base.execute("SELECT sum(spent), sum(reserved) FROM budgets").fetchone() == (charged, 0)
        return charged, open_


def schedule(seed: int, length: int, faults: tuple[str, ...] = FAULTS, share: float = 0.5) -> list[str]:
    """Faults for ``length`` requests; every kind occurs where there is room for it."""
    rng = random.Random(seed)
    drawn = [rng.choice(faults) if rng.random() < share else "ok" for _ in range(length)]
    drawn[: len(faults)] = faults
    rng.shuffle(drawn)
    return drawn


class Server(uvicorn.Server):
    """One that ends as soon as it is told to and nobody is connected; uvicorn looks after either ten times a second."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: Any = None) -> None:
        state = self.server_state
        for listener in self.servers:
            listener.close()
        for connection in list(state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while state.connections or state.tasks:
                    await asyncio.sleep(0.01)
        for task in state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serve an ASGI application on a free local port; gives its address.

    :param options: of uvicorn.
    """
    options |= {"log_level": "critical", "lifespan": "on", "timeout_graceful_shutdown": 1}
    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, **options))
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


if __name__ == "__main__":
    import os
    import sys

    with serving(Upstream(pace=float(os.environ.get("PACE", "0"))).app()) as address:
        print(address, flush=True)
        sys.stdin.read()
