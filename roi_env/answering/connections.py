"""Connections to endpoints, by aiohttp: what the environment says of proxies and certificates, and why one failed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import math
import os
import selectors
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from roi_env.answering.streams import TooLarge

_KEPT = 2.0
"""Seconds that an idle connection is kept. Shorter than servers keep it (uvicorn: 5 s): one that closes as it is used
again loses a request of which nobody knows what became."""
_SPARE = 0.002
"""Seconds after a request when a spare connection is made: what the request itself needs is done first."""
_LONGEST = 100_000
"""Bytes of a header that are read."""
_FIELDS = 5000
"""Fields of a header that are read."""
MOST_ANSWER = 64 * 2**20
"""Bytes of an answer that are read."""

NOT_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
)
"""What is raised before anything of a request was sent to the endpoint."""


class Access(NamedTuple):
    """How an address is reached.

    :ivar proxy: that stands before it; None: none.
    :ivar certificates: that are trusted; None: none are needed.
    """

    proxy: URL | None
    certificates: ssl.SSLContext | None


def find_access(address: str) -> Access:
    """How the environment says that an address is reached.

    ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` name proxies, ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``
    certificates (default: certifi's).

    :raises ValueError: where the address, or what the environment names, cannot be used.
    """
    target = URL(address)
    host = target.raw_host or ""
    host.encode("idna")  # what no resolver takes is found out before anything is asked
    with contextlib.suppress(OSError):
        if (meant := socket.inet_ntoa(socket.inet_aton(host))) != host:
            raise ValueError(f"{host} must be written {meant}")
    proxy = _proxy(target)
    if "https" not in (target.scheme, proxy and proxy.scheme):
        return Access(proxy, None)  # loading certificates takes longer than a local answer
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        if folder and not file:
            trusted = ssl.create_default_context(capath=folder)
        else:
            trusted = ssl.create_default_context(cafile=file or certifi.where())
    except OSError as error:
        named = f"SSL_CERT_FILE={file}" if file else f"SSL_CERT_DIR={folder}"
        raise ValueError(f"{named}: no certificates can be read there ({error})") from None
    trusted.set_alpn_protocols(["http/1.1"])
    return Access(proxy, trusted)


def _proxy(address: URL) -> URL | None:
    told, host = getproxies(), address.host or ""
    named = told.get(address.scheme) or told.get("all")
    if not named or "*" in (name.strip() for name in told.get("no", "").split(",")):
        return None
    if proxy_bypass(host) or proxy_bypass(f"{host}:{address.port}"):
        return None
    try:
        proxy = URL(named if "://" in named else f"http://{named}")
    except ValueError:
        proxy = URL()
    if proxy.scheme not in ("http", "https") or not proxy.host:  # it may hold a password
        raise ValueError("the environment names a proxy for it, whose address must read like http://127.0.0.1:3128")
    return proxy


class _Protocol(ResponseHandler):
    """Tells who reads an answer that its chunks are malformed: aiohttp closes the connection and lets him wait.

    :ivar answered: whether it has brought an answer.
    """

    answered = False

    def set_exception(self, exc: BaseException, *cause: Any, **more: Any) -> None:
        super().set_exception(exc, *cause, **more)
        if isinstance(exc, HttpProcessingError) and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError(exc.message))


class _Connector(aiohttp.TCPConnector):
    """Uses no idle connection again that has ended or on which something came, and has a spare one while requests are many.

    aiohttp knows only what its event loop has read, and gives the next request whatever came for an answer.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        protocol: type[ResponseHandler] = _Protocol
        self._factory = functools.partial(protocol, loop=self._loop)
        self._asked = -math.inf
        self._serves_many = False
        self._spare: asyncio.Task[None] | None = None

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        """See aiohttp. Where requests come soon after others that are at work the next one's connection is made before it."""
        made = await super().connect(req, traces, timeout)
        soon, self._asked = self._loop.time() - self._asked < _KEPT, self._loop.time()
        wanted = self._serves_many and soon and len(self._acquired) > 1 and not req.proxy
        if wanted and (self._spare is None or self._spare.done()):
            self._spare = self._loop.create_task(self._make_spare(req, timeout))
        return made

    async def _make_spare(self, request: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout) -> None:
        await asyncio.sleep(_SPARE)
        if not self._conns.get(request.connection_key):  # one that idles must not seem to be new
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                (await super().connect(request, [], timeout)).release()

    def _release(self, key: Any, protocol: ResponseHandler, **how: Any) -> None:
        """See aiohttp. An endpoint that serves one connection after the other would wait for what comes on a spare one."""
        super()._release(key, protocol, **how)
        if not self._serves_many and isinstance(protocol, _Protocol) and protocol._parser is not None:
            protocol.answered = True
            others = {one for one, _ in self._conns.get(key, ())} | self._acquired
            self._serves_many = any(
                getattr(one, "answered", False) and not _unread(one) for one in others if one is not protocol
            )

    async def close(self, **how: Any) -> None:
        """See aiohttp."""
        if self._spare is not None:
            self._spare.cancel()
        await super().close(**how)

    async def _get(self, *key: Any) -> Any:
        while (found := await super()._get(*key)) is not None and _spoiled(found):
            found.close()
        return found


def _spoiled(connection: aiohttp.connector.Connection) -> bool:
    return connection.protocol is None or connection.protocol.should_close or _unread(connection.protocol)


def _unread(protocol: ResponseHandler) -> bool:
    """Whether something came on a connection, or it has ended."""
    if protocol.transport is None:
        return True
    # select() takes no large descriptors; there is nothing else on Windows.
    with getattr(selectors, "PollSelector", selectors.SelectSelector)() as unread:
        unread.register(protocol.transport.get_extra_info("socket").fileno(), selectors.EVENT_READ)
        return bool(unread.select(0))


class Body(aiohttp.BytesIOPayload):
    """What is sent, head and all, only once it may be: the connection is made meanwhile.

    :param held: awaited before.
    :ivar sent: whether something may have been sent.
    :ivar failed: what ``held`` raised; nothing is sent then.
    """

    def __init__(self, content: bytes, held: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(io.BytesIO(content))
        self._held = held
        self.sent = False
        self.failed: Exception | None = None

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """See aiohttp, which keeps the head until this writes."""
        if self._held is not None:
            try:
                await self._held()
            except Exception as error:
                self.failed = error
                raise
        self.sent = True
        await super().write_with_length(writer, content_length)


def open_session(
    access: Access, timeout: aiohttp.ClientTimeout, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    """A session without cookies whose number of connections has no limit; made in the event loop that uses it."""
    connector = _Connector(
        limit=0, keepalive_timeout=_KEPT, ssl=access.certificates or True, resolver=aiohttp.ThreadedResolver()
    )
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        timeout=timeout,
        proxy=access.proxy,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=_LONGEST,
        max_field_size=_LONGEST,
        max_headers=_FIELDS,
    )


def reason(error: aiohttp.ClientError | TimeoutError) -> str:
    """Why a request failed, in words that hold nothing of what was sent or came: part of a key would not be known as one."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"to the proxy: {error.os_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return str(error.os_error) or type(error.os_error).__name__
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "none was made in time"
    if isinstance(error, aiohttp.InvalidURL):
        return "the address cannot be used"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered HTTP {error.status}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the endpoint closed it before its answer began"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off, or cannot be decoded"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the answer cannot be read ({error.message.partition(':')[0]})"
    if isinstance(error, TimeoutError):
        return "no answer came in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


class Response(NamedTuple):
    """A response that was read to its end."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    charset: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it is no error."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The content, by the charset that it names; UTF-8 where it names none or that is none."""
        try:
            return self.content.decode(self.charset or "utf-8", "replace")
        except (LookupError, ValueError):
            return self.content.decode("utf-8", "replace")


async def read(response: aiohttp.ClientResponse, most: int | None = None) -> Response:
    """A response, read to its end.

    :param most: see :func:`parts`.
    :raises TooLarge: see :func:`parts`.
    """
    content = bytearray()
    async for part in parts(response, most):
        content += part
    return Response(response.status, response.headers, bytes(content), response.charset)


async def parts(response: aiohttp.ClientResponse, most: int | None = None) -> AsyncIterator[bytes]:
    """What comes, as it comes: of a connection that is lost too, whose last parts may not have been taken before that.

    :param most: bytes that are read; None: :data:`MOST_ANSWER`.
    :raises TooLarge: where more come.
    """
    size, most = 0, most or MOST_ANSWER
    try:
        async for part in response.content.iter_any():
            if (size := size + len(part)) > most:
                break
            yield part
    except aiohttp.ClientError:
        for part in response.content._buffer:  # reading raises as soon as it is lost, whatever came before
            yield part
        raise
    if size > most:
        raise TooLarge("the answer", most)
