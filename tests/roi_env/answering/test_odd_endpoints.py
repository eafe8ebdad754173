"""What becomes of answers whose bytes come in odd ways: framed, packed, split, broken off."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.http import HTTPSolver

QUESTION, TIER, CAP = Question("d", "1", "six times seven?", "42"), ThinkingTier("now", 0, 4000), 4000
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
RESET, CLOSE, HALF_CLOSE, STAY = "reset", "close", "half close", "stay"


def event(content: str | None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "x", "choices": [choice], **more}, ensure_ascii=False).encode()


EVENTS = [event("vier ä€😀"), event(" zwei"), event(None, "stop", usage=USAGE), b"data: [DONE]\n\n"]
STREAM, TEXT = b"".join(EVENTS), "vier ä€😀 zwei"
MIXED = b"".join(one.replace(b"\n", end) for one, end in zip(EVENTS, (b"\r\n", b"\r", b"\n", b"\r"), strict=True))
OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"transfer-encoding: chunked"


def head(*fields: bytes, kind: bytes = b"text/event-stream", status: bytes = OK) -> bytes:
    return status + b"".join(b"%b\r\n" % one for one in (b"content-type: " + kind, *fields)) + b"\r\n"


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def packed(data: bytes, name: bytes, size: int = 7) -> bytes:
    return head(CHUNKED, b"content-encoding: " + name) + chunked(*cut(data, size))


BARE = zlib.compressobj(wbits=-15)
WHOLE: Mapping[str, Sequence[Any]] = {
    "chunk by chunk": [head(CHUNKED) + chunked(*EVENTS)],
    "byte by byte": cut(head(CHUNKED) + chunked(*EVENTS), 1),
    "every byte a chunk": [head(CHUNKED) + chunked(*cut(STREAM, 1))],
    "CRLF, every byte a chunk": [head(CHUNKED) + chunked(*cut(STREAM.replace(b"\n", b"\r\n"), 1))],
    "CR": [head(CHUNKED) + chunked(*(one.replace(b"\n", b"\r") for one in EVENTS))],
    "CR, every byte a chunk": [head(CHUNKED) + chunked(*cut(STREAM.replace(b"\n", b"\r"), 1))],
    "ends of lines in turn": [head(CHUNKED) + chunked(*cut(MIXED, 1))],
    "no empty lines": [head(CHUNKED) + chunked(*cut(STREAM.replace(b"\n\n", b"\n"), 9), end=b""), STAY],
    "no empty lines, no [DONE]": [head(CHUNKED) + chunked(b"".join(EVENTS[:3]).replace(b"\n\n", b"\n").rstrip())],
    "no empty lines, CRLF": [head(CHUNKED) + chunked(*cut(STREAM.replace(b"\n\n", b"\r\n"), 1))],
    "an object in several lines": [head(CHUNKED) + chunked(STREAM.replace(b', "', b',\ndata: "'))],
    "no line ends it": [head(CHUNKED) + chunked(STREAM.rstrip())],
    "without [DONE]": [head(CHUNKED) + chunked(*EVENTS[:3])],
    "comments and other fields": [head(CHUNKED) + chunked(b": hi\n\n:\n", b"event: a\nid: 1\nretry: 5\n" + STREAM)],
    "gzip": [packed(gzip.compress(STREAM), b"gzip")],
    "deflate": [packed(zlib.compress(STREAM), b"deflate")],
    "deflate without a head": [packed(BARE.compress(STREAM) + BARE.flush(), b"deflate")],
    "trailers": [head(CHUNKED) + chunked(*EVENTS, end=b"0\r\nx-sum: 1\r\n\r\n")],
    "100 and 103 before it": [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n" + head(CHUNKED), chunked(*EVENTS)],
    "HTTP/1.0": [head(status=b"HTTP/1.0 200 OK\r\n") + STREAM, CLOSE],
    "until it closes": [head() + STREAM, CLOSE],
    "with a length": [head(b"content-length: %d" % len(STREAM)) + STREAM],
    "a head of 60 KB": [head(CHUNKED, *(b"x-%d: %b" % (one, b"y" * 20_000) for one in range(3))) + chunked(*EVENTS)],
    "200 fields": [head(CHUNKED, *(b"x-%d: y" % one for one in range(200))) + chunked(*EVENTS)],
    "a type in capitals": [head(CHUNKED, kind=b"Text/Event-Stream; Charset=UTF-8") + chunked(*EVENTS)],
    "reset after [DONE]": [head(CHUNKED) + chunked(*EVENTS, end=b""), 0.1, RESET],
    "closed after [DONE]": [head(CHUNKED) + chunked(*EVENTS, end=b""), CLOSE],
    "half closed after [DONE]": [head(CHUNKED) + chunked(*EVENTS, end=b""), HALF_CLOSE],
    "open after [DONE]": [head(CHUNKED) + chunked(*EVENTS, end=b""), STAY],
    "more after [DONE]": [head(CHUNKED) + chunked(*EVENTS, event("more"), b"data: \xff\n\n")],
}  # fmt: skip
BROKEN: Mapping[str, tuple[Sequence[Any], str]] = {
    "closed between chunks": ([head(CHUNKED) + chunked(*EVENTS[:2], end=b""), CLOSE], "connection lost"),
    "half closed": ([head(CHUNKED) + chunked(*EVENTS[:2], end=b""), HALF_CLOSE], "connection lost"),
    "reset inside a chunk": ([head(CHUNKED) + chunked(EVENTS[0], end=b"fff\r\ndata"), 0.1, RESET], "connection lost"),
    "ended without an end": ([head(CHUNKED) + chunked(*EVENTS[:2])], "broke off"),
    "shorter than its length": ([head(b"content-length: 9999") + STREAM[:90], CLOSE], "connection lost"),
    "no chunk, after a while": ([head(CHUNKED) + chunked(*EVENTS[:2], end=b""), 0.1, b"zz\r\n", STAY], "connection lost"),
    "no end of a chunk, after a while": ([head(CHUNKED), 0.1, b"3\r\nabcdef", STAY], "connection lost"),
    "a line of 200 KB": ([head(CHUNKED, b"x: " + b"y" * 200_000) + chunked(*EVENTS)], "connection lost"),
    "no HTTP, and no end of it": ([b"\x15\x03\x01", STAY], "connection lost"),
    "no chunk": ([head(CHUNKED) + b"zz\r\n" + STREAM], "connection lost"),
    "packed otherwise than it says": ([packed(STREAM, b"gzip")], "connection lost"),
    "closed at once": ([CLOSE], "connection lost"),
    "reset in the head": ([OK + b"content-ty", 0.1, RESET], "connection lost"),
    "no head": ([b"SSH-2.0-x\r\n", CLOSE], "connection lost"),
    "another protocol": ([b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", CLOSE], "connection lost"),
    "two lengths": ([head(b"content-length: 5", b"content-length: 6") + STREAM, CLOSE], "connection lost"),
    "not UTF-8": ([head(CHUNKED) + chunked(b'data: {"choices": "\xff"}\n\n')], "UTF-8"),
    "no content": ([b"HTTP/1.1 204 No Content\r\n\r\n"], "not JSON"),
    "a head that stays away": ([OK, STAY], "no answer within"),
    "silence": ([head(CHUNKED) + chunked(EVENTS[0], end=b""), STAY], "no answer within"),
}  # fmt: skip


def told(*steps: Any) -> Reply:
    """The reply to a request whose response is written so."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"}]")
            for step in steps:
                if step == RESET:
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                elif step == HALF_CLOSE:
                    writer.write_eof()
                elif step == STAY:
                    await reader.read()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                elif step != CLOSE:
                    writer.write(step)
                    await writer.drain()
            if CLOSE not in steps:
                await reader.read()
        except OSError:
            pass
        finally:
            writer.close()

    async def taken(text: str, chunk: Mapping[str, Any]) -> None:
        pass

    async def run() -> Reply:
        async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            solver = HTTPSolver(url, "m", deadline=2.0 if STAY in steps else 30.0)
            try:
                return await solver.answer(Ask(QUESTION, TIER, CAP, sink=taken))
            finally:
                await solver.close()

    return asyncio.run(run())


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_is_the_same_however_it_comes(name: str) -> None:
    reply = told(*WHOLE[name])
    assert (reply.error, reply.text, reply.tokens, reply.counted) == (None, TEXT, 2, "server")
    assert (reply.finish, reply.prompt_tokens, reply.attempts) == ("stop", 3, 1)


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_breaks_off_is_lost_and_costs_its_reservation(name: str) -> None:
    steps, why = BROKEN[name]
    reply = told(*steps)
    assert why in str(reply.error)
    assert (reply.lost, reply.tokens, reply.counted, reply.attempts) == (True, CAP, "reserved", 1)
