"""Who may ask `roi serve`, and how much may come: keys, origins, sizes and times of requests."""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from experiments.serving.chat import Refused

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_BYTES = 8 * 2**20
"""Bytes of one request: a conversation of some two million tokens."""
MOST_HEAD = 2**16
"""Bytes of a request before its body."""
BODY_SECONDS = 30.0
"""Within which the head of a request, and then its body, must have come."""
_OFFER = re.compile(rb"(?<=\r\n)u(?=pgrade:[ \t]*h2c[ \t]*\r\n)", re.IGNORECASE)
"""The first letter of a header that offers HTTP/2."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""This machine's own names for itself."""


def no_key(message: str) -> Refused:
    """A request without the key that it needs."""
    return Refused(401, "invalid_api_key", message, headers={"www-authenticate": "Bearer"})


def bearer(request: Request) -> bytes | None:
    """The key that a request shows, as OpenAI's clients do or as Anthropic's."""
    if "authorization" not in request.headers and "x-api-key" in request.headers:
        return request.headers["x-api-key"].strip().encode("latin-1")
    scheme, _, given = request.headers.get("authorization", "").strip().partition(" ")
    return given.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def shown(request: Request) -> bytes | None:
    """The key that a request shows to see a page: as :func:`bearer`, or as a browser's password."""
    scheme, _, given = request.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() != "basic":
        return bearer(request)
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def fits(given: bytes | None, key: str | None) -> bool:
    """Whether what was shown is the key (of the environment, in whatever bytes); where there is none, anything is."""
    return key is None or (given is not None and hmac.compare_digest(given, os.fsencode(key)))


def check_origin(request: Request, hosts: Collection[str] | None) -> None:
    """Refuse what a web page of another origin lets its reader's browser send.

    :param hosts: see :func:`experiments.serving.app.application`.
    :raises Refused: 403.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    named = re.fullmatch(r"\[([0-9a-f:.]+)\](:\d*)?|([^\[\]:@/]+)(:\d*)?", host.lower())
    if hosts is not None and (named is None or (named[1] or named[3]) not in hosts):
        raise Refused(403, "foreign_host", f"this proxy is not {host!r}: its names are {', '.join(sorted(hosts))}")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Refused(403, "foreign_origin", f"web pages of {origin!r} may not use this proxy")


async def read_json(request: Request, seconds: float) -> bytes:
    """The body of a request that says it is JSON.

    :param seconds: within which it must have come.
    :raises Refused: 415 and 400 for other content, and for a compressed one, 413 for more than :data:`MOST_BYTES`, 408 for a body that came too
        slowly.
    """
    from starlette.requests import ClientDisconnect

    kind = request.headers.get("content-type")
    if kind is None:
        raise Refused(400, "invalid_request", "content-type: must be application/json, there is none")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "unsupported_media_type", f"content-type: must be application/json, got {kind!r}")
    packed = request.headers.get("content-encoding", "identity")
    if packed.strip().lower() != "identity":
        raise Refused(415, "unsupported_media_type", f"content-encoding: send the body as it is, not {packed!r}")
    close = {"connection": "close"}
    large = Refused(413, "request_too_large", f"a request may have at most {MOST_BYTES:,} bytes", headers=close)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MOST_BYTES and request.headers.get("expect"):
        raise large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= MOST_BYTES:
                    body += part
                else:  # read to its end, and forgotten: a client that is still sending reads no answer
                    body.clear()
    except TimeoutError:
        if size <= MOST_BYTES:
            message = f"the request did not come within {seconds:g} s"
            raise Refused(408, "request_timeout", message, headers={**close, "x-should-retry": "false"}) from None
    except ClientDisconnect:
        raise Refused(400, "invalid_request", "the client left") from None
    if size > MOST_BYTES:
        raise large
    return bytes(body)


def patient_protocol(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with limits on what it waits for without one: the head of a request.

    :param seconds: within which a connection must have sent it.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Patient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _timer: asyncio.TimerHandle | None = None
        _came = 0  # bytes of a head that has not ended

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            # Java's client offers HTTP/2 with every request, and the parser takes what follows the head for it. No JSON has
            # such a line, and no length changes.
            super().data_received(_OFFER.sub(b"x", data) if self._waiting() else data)
            self._came = self._came + len(data) if self._waiting() else 0
            if self._came > MOST_HEAD and not self.transport.is_closing():
                if self.cycle is not None and self.cycle.more_body:  # the rest of a request that is answered
                    self.transport.close()
                else:
                    self.send_400_response(f"The head of a request may have at most {MOST_HEAD:,} bytes.")
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()

        def _waiting(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _watch(self) -> None:
            if not self._waiting():
                self._stop()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self._end)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _end(self) -> None:
            self._timer = None
            if self._waiting():
                self.transport.close()

    return Patient
