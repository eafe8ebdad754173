"""Connections to endpoints: reused, proxied, certified, cut; what is asked once is asked once."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from roi_env.answering.base import Ask, Question, Reply, ThinkingTier, is_unsent
from roi_env.answering.connections import Response, reason
from roi_env.answering.http import EndpointError, HTTPSolver
from roi_env.answering.ledger import BooksAway

QUESTION, TIER, CAP = Question("d", "1", "six times seven?", "42"), ThinkingTier("now", 0, 40), 40
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
KEY = "k3y-abcdef-0123456789"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("SOME_KEY", KEY)


def whole(text: str = "42", *fields: str, status: str = "200 OK", body: bytes | None = None) -> bytes:
    choices = [{"message": {"content": text}, "finish_reason": "stop"}]
    content = json.dumps({"choices": choices, "usage": USAGE}).encode() if body is None else body
    head = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + content


def chunk(event: str) -> bytes:
    data = f"data: {event}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def piece(text: str | None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return chunk(json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}))


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
REST = piece("2") + piece(None, "stop", usage=USAGE) + chunk("[DONE]")


class Endpoint:
    """Answers every request of every connection by a function, in threads of its own."""

    def __init__(self, answer: Callable[[socket.socket, bytes], None], context: ssl.SSLContext | None = None) -> None:
        self.answer, self.context = answer, context
        self.requests: list[bytes] = []
        self.connections = 0
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=300)
        self.port = self.listening.getsockname()[1]
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}/v1"

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.connections += 1
                threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            used = self.context.wrap_socket(connection, server_side=True) if self.context else connection
            with used:
                while request := receive(used):
                    self.requests.append(request)
                    self.answer(used, request)


def receive(connection: socket.socket) -> bytes:
    """One request; empty where the connection has ended."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := connection.recv(1 << 16)):
            return b""
        data += part
    head = data.split(b"\r\n\r\n")[0].lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
    while len(data) < len(head) + 4 + length:
        data += connection.recv(1 << 16)
    return data


@contextmanager
def endpoint(
    answer: Callable[[socket.socket, bytes], None], context: ssl.SSLContext | None = None
) -> Iterator[Endpoint]:
    made = Endpoint(answer, context)
    threading.Thread(target=made.accept, daemon=True).start()
    try:
        yield made
    finally:
        made.listening.shutdown(socket.SHUT_RDWR)
        made.listening.close()


def says(response: bytes) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, request: connection.sendall(response)


async def nothing(text: str, data: Mapping[str, Any]) -> None:
    pass


def ask(
    url: str, asks: int = 1, pause: float = 0.0, question: Question = QUESTION, sink: Any = None, **options: Any
) -> list[Reply]:
    """Replies to questions one after the other; in the pauses the event loop stands still."""

    async def run() -> list[Reply]:
        solver = HTTPSolver(url, "m", **{"first_wait": 0.01, "retries": 1, "deadline": 20.0, **options})
        replies = []
        try:
            for one in range(asks):
                if one:
                    time.sleep(pause)
                replies.append(await solver.answer(Ask(question, TIER, CAP, sink=sink)))
        finally:
            await solver.close()
        return replies

    return asyncio.run(run())


def test_an_idle_connection_that_was_closed_is_not_used_again() -> None:
    def answer_once(connection: socket.socket, request: bytes) -> None:
        connection.sendall(whole())
        connection.close()

    with endpoint(answer_once) as server:
        replies = ask(server.url, 3, pause=0.2)
    assert [(reply.text, reply.attempts, reply.lost) for reply in replies] == [("42", 1, False)] * 3
    assert (len(server.requests), server.connections) == (3, 3)


def test_what_comes_on_an_idle_connection_is_no_answer() -> None:
    def answer_too_often(connection: socket.socket, request: bytes) -> None:
        mine = len(server.requests)
        connection.sendall(whole(f"answer {mine}"))
        time.sleep(0.1)
        connection.sendall(whole("nobody's"))

    async def run() -> list[str | None]:
        solver = HTTPSolver(server.url, "m")
        texts = []
        for pause in (0.0, 0.3, 0.3):
            await asyncio.sleep(pause)  # the event loop reads what came
            texts.append((await solver.answer(Ask(QUESTION, TIER, CAP))).text)
        await solver.close()
        return texts

    with endpoint(answer_too_often) as server:
        assert asyncio.run(run()) == ["answer 1", "answer 2", "answer 3"]


def test_a_request_whose_connection_is_lost_is_not_sent_again() -> None:
    def leave(connection: socket.socket, request: bytes) -> None:
        if len(server.requests) == 1:
            connection.sendall(whole())
        else:
            connection.close()

    with endpoint(leave) as server:
        replies = ask(server.url, 2, retries=3)
    assert (replies[1].lost, replies[1].tokens, replies[1].attempts) == (True, CAP, 1)
    assert replies[1].error == "connection lost: the endpoint closed it before its answer began"
    assert (len(server.requests), server.connections) == (2, 1), "on the same connection, and never again"


def test_no_redirect_is_followed_and_no_cookie_is_kept() -> None:
    with endpoint(says(whole("", "location: /v1/other", "set-cookie: a=b", status="307 Moved"))) as server:
        replies = ask(server.url, 2)
        with pytest.raises(EndpointError, match="HTTP 307"):
            asyncio.run(listed(server.url))
    assert [(reply.error, reply.lost) for reply in replies] == [
        ("HTTP 307: redirects are not followed, give the address that it names: /v1/other", False)
    ] * 2
    assert len(server.requests) == 3
    assert not any(b"cookie:" in request.lower() for request in server.requests)


async def listed(url: str, **options: Any) -> list[str]:
    solver = HTTPSolver(url, "m", **options)
    try:
        return await solver.models()
    finally:
        await solver.close()


def test_compressed_answers_and_errors_are_read() -> None:
    content = gzip.compress(whole("x" * 500_000).split(b"\r\n\r\n")[1])
    with endpoint(says(whole("", "content-encoding: gzip", body=content))) as server:
        assert ask(server.url)[0].text == "x" * 500_000
    content = gzip.compress(b'{"error": {"message": "never heard of it"}}')
    with endpoint(says(whole("", "content-encoding: gzip", status="404 Not Found", body=content))) as server:
        assert "never heard of it" in str(ask(server.url)[0].error)


@pytest.mark.parametrize(
    "response",
    [
        whole("", f"x-echo: {KEY} \0"),
        whole("", f"x-echo: {KEY}{'y' * 200_000}"),
        f"SSH-2.0 {KEY}\r\n\r\n".encode(),
        f"HTTP/1.1 {KEY} \r\n\r\n".encode(),
        whole("", f"content-type: text/{KEY}", body=b"?"),
        STREAM + KEY.encode() + b"\r\n",
        whole("", f"content-type: text/{KEY}", status=f"400 {KEY}", body=KEY.encode()),
    ],
)
@pytest.mark.parametrize("cut", [0, 1, 9])
def test_no_message_holds_any_of_the_key(response: bytes, cut: int) -> None:
    at = response.index(KEY.encode()) + cut

    def in_two(connection: socket.socket, request: bytes) -> None:
        connection.sendall(response[:at])
        time.sleep(0.05)  # a message about what came last would hold the end of the key alone
        connection.sendall(response[at:])
        connection.close()

    with endpoint(in_two) as server:
        reply = ask(server.url, key_env="SOME_KEY", sink=nothing)[0]
        with pytest.raises(EndpointError) as models:
            asyncio.run(listed(server.url, key_env="SOME_KEY"))
    assert f"Bearer {KEY}".encode() in server.requests[0]
    assert reply.error
    assert "123456789" not in f"{reply}{models.value}"
    assert KEY[:6] not in f"{reply}{models.value}"


@pytest.mark.parametrize("charset", ["hex", "idna", "undefined", "punycode", "rot13", "\\", "", '"latin-1"', "utf-16"])
def test_an_error_in_any_charset_is_told(charset: str) -> None:
    response = whole("", f"content-type: text/plain; charset={charset}", status="400 Bad", body=b"caf\xe9 \xff\xfe")
    with endpoint(says(response)) as server:
        reply = ask(server.url)[0]
    assert str(reply.error).startswith("HTTP 400: ")
    assert reply.failure is not None
    assert reply.failure.message
    assert Response(400, {}, b"caf\xe9", "latin-1").text == "café"


def test_large_requests_and_large_events_pass() -> None:
    question = Question("d", "1", "?" * 3_000_000, "42")
    with endpoint(says(STREAM + piece("x" * 2_000_000) + REST + b"0\r\n\r\n")) as server:
        reply = ask(server.url, question=question, sink=nothing)[0]
    assert reply.text == "x" * 2_000_000 + "2"
    assert len(server.requests[0]) > 3_000_000


def test_no_limit_of_connections_but_the_solvers_own() -> None:
    together = threading.Barrier(150)

    def answer(connection: socket.socket, request: bytes) -> None:
        together.wait(30)
        connection.sendall(whole())

    async def run() -> list[Reply]:
        solver = HTTPSolver(server.url, "m", concurrency=150)
        try:
            return list(await asyncio.gather(*(solver.answer(Ask(QUESTION, TIER, CAP)) for _ in range(150))))
        finally:
            await solver.close()

    with endpoint(answer) as server:
        assert {reply.text for reply in asyncio.run(run())} == {"42"}


def test_a_finished_stream_gives_its_connection_back() -> None:
    with endpoint(says(STREAM + piece("4") + REST + b"0\r\n\r\n")) as server:
        assert [reply.text for reply in ask(server.url, 5, sink=nothing)] == ["42"] * 5
    assert (len(server.requests), server.connections) == (5, 1)


def test_who_leaves_a_stream_ends_it_at_the_endpoint() -> None:
    ended = threading.Event()

    def go_on(connection: socket.socket, request: bytes) -> None:
        connection.sendall(STREAM)
        try:
            for _ in range(1000):
                connection.sendall(piece("more"))
                time.sleep(0.01)
        except OSError:
            ended.set()

    async def run() -> None:
        solver, came = HTTPSolver(server.url, "m"), asyncio.Event()

        async def sink(text: str, data: Mapping[str, Any]) -> None:
            came.set()

        asked = asyncio.create_task(solver.answer(Ask(QUESTION, TIER, CAP, sink=sink)))
        await came.wait()
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked
        assert await asyncio.to_thread(ended.wait, 10), "before the solver is closed"
        await solver.close()

    with endpoint(go_on) as server:
        asyncio.run(run())


def test_what_came_before_a_connection_broke_is_passed_on_however_slowly_it_is_taken() -> None:
    read = threading.Event()

    def stop_after_the_end(connection: socket.socket, request: bytes) -> None:
        connection.sendall(STREAM + piece("4"))
        read.wait(10)
        connection.sendall(REST)  # not the last chunk of the transfer
        connection.close()

    async def slowly(text: str, data: Mapping[str, Any]) -> None:
        read.set()
        await asyncio.sleep(0.2)  # the rest comes, and the connection ends

    with endpoint(stop_after_the_end) as server:
        reply = ask(server.url, sink=slowly)[0]
    assert (reply.error, reply.text, reply.tokens) == (None, "42", 2)


def test_a_solver_that_is_used_in_one_event_loop_after_another() -> None:
    with endpoint(says(whole())) as server:
        solver = HTTPSolver(server.url, "m")
        asyncio.run(solver.close())
        for _ in range(2):

            async def run() -> Reply:
                reply = await solver.answer(Ask(QUESTION, TIER, CAP))
                await solver.close()
                return reply

            assert asyncio.run(run()).text == "42"
        with asyncio.Runner() as first, asyncio.Runner() as second:
            assert first.run(solver.answer(Ask(QUESTION, TIER, CAP))).text == "42"
            with pytest.raises(RuntimeError, match="one event loop at a time"):
                second.run(solver.answer(Ask(QUESTION, TIER, CAP)))
            first.run(solver.close())
            assert second.run(solver.answer(Ask(QUESTION, TIER, CAP))).text == "42"
            second.run(solver.close())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_solver_that_was_not_closed_in_a_loop_that_ended() -> None:
    with endpoint(says(whole())) as server:
        solver = HTTPSolver(server.url, "m")
        assert asyncio.run(solver.answer(Ask(QUESTION, TIER, CAP))).text == "42"
        assert asyncio.run(solver.answer(Ask(QUESTION, TIER, CAP))).text == "42"
        asyncio.run(solver.close())
        gc.collect()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://a..b/v1", "idna"),
        (f"http://{'a' * 70}.com/v1", "idna"),
        ("http://127.1:9/v1", "must be written 127.0.0.1"),
        ("http://h:99999/v1", "[Pp]ort"),
        ("http://h:x/v1", "port"),
    ],
)
def test_addresses_that_nothing_resolves_are_refused(address: str, why: str) -> None:
    with pytest.raises(EndpointError, match=why):
        HTTPSolver(address, "m")


def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(says(whole("by the proxy"))) as proxy, endpoint(says(whole("directly"))) as server:
        address = f"127.0.0.1:{proxy.port}"
        for name, value in (
            ("HTTP_PROXY", f"http://{address}"),
            ("ALL_PROXY", f"http://{address}"),
            ("http_proxy", address),
        ):
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                assert ask(server.url)[0].text == "by the proxy"
                for direct in ("127.0.0.1", f"127.0.0.1:{server.port}", "*", "a.com, *", "a.com, 127.0.0.1"):
                    patch.setenv("NO_PROXY", direct)
                    assert ask(server.url)[0].text == "directly"
                patch.setenv("NO_PROXY", "a.com,10.0.0.1,")
                assert ask(server.url)[0].text == "by the proxy"
        assert proxy.requests[0].startswith(f"POST {server.url}/chat/completions HTTP/1.1\r\n".encode())
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
        assert ask(server.url)[0].text == "directly"
        monkeypatch.setenv("HTTP_PROXY", f"http://me:s3cret@{address}")
        assert ask(server.url)[0].text == "by the proxy"
        assert b"proxy-authorization: basic bWU6czNjcmV0".lower() in proxy.requests[-1].lower()
    reply = ask(server.url)[0]
    assert str(reply.error).startswith("no connection: to the proxy: ")
    assert (reply.lost, reply.unreachable, reply.attempts) == (False, True, 2)
    assert "s3cret" not in str(reply)
    for wrong in ("socks5://me:s3cret@h:1", "http://me:s3cret@h:x", "http://"):
        monkeypatch.setenv("HTTP_PROXY", wrong)
        with pytest.raises(EndpointError, match="names a proxy for it") as refused:
            HTTPSolver("http://h", "m")
        assert "s3cret" not in str(refused.value)


def test_no_password_of_a_netrc_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with endpoint(says(whole())) as server:
        assert ask(server.url)[0].text == ask(server.url, key_env="SOME_KEY")[0].text == "42"
    assert b"authorization" not in server.requests[0].lower()
    assert f"Bearer {KEY}".encode() in server.requests[1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 with its key, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = tmp_path_factory.mktemp("certificate") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(made), "-out", f"{made}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    with made.open("a") as file:
        file.write(Path(f"{made}.crt").read_text())
    return made


def test_certificates_of_the_environment(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with endpoint(says(whole()), context) as server:
        reply = ask(server.url)[0]
        assert (reply.lost, reply.unreachable, reply.attempts) == (False, True, 2)
        assert "CERTIFICATE_VERIFY_FAILED" in str(reply.error)
        with monkeypatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
            assert [reply.text for reply in ask(server.url, 2)] == ["42"] * 2
            assert server.connections == 3, "two that were refused, and one for both questions"
            plain = server.url.replace("https", "http")
            assert ask(plain)[0].lost, "no TLS where there is some"
        with monkeypatch.context() as patch:
            (tmp_path / "certificates").mkdir()
            name = subprocess.run(
                ["openssl", "x509", "-hash", "-noout", "-in", f"{certificate}.crt"],
                check=True,
                capture_output=True,
                text=True,
            )
            shutil.copy(f"{certificate}.crt", tmp_path / "certificates" / f"{name.stdout.strip()}.0")
            patch.setenv("SSL_CERT_DIR", str(tmp_path / "certificates"))
            assert ask(server.url)[0].text == "42"
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(EndpointError, match=r"SSL_CERT_FILE=/nowhere\.pem: no certificates can be read"):
        HTTPSolver("https://h", "m")
    HTTPSolver("http://h", "m")
    with endpoint(says(b"no TLS\r\n\r\n")) as server:
        monkeypatch.delenv("SSL_CERT_FILE")
        reply = ask(server.url.replace("http", "https"), retries=0, deadline=1.0)[0]
    assert (reply.lost, reply.unreachable) == (False, True)


@pytest.mark.parametrize("refused", [False, True])
def test_a_proxy_before_tls_sees_no_key(certificate: Path, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def tunnel(connection: socket.socket, request: bytes) -> None:
        if refused:
            connection.sendall(b"HTTP/1.1 407 Who are you?\r\ncontent-length: 0\r\n\r\n")
            return
        connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        with context.wrap_socket(connection, server_side=True) as made:
            seen.append(receive(made))
            made.sendall(whole())

    seen: list[bytes] = []
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    with endpoint(tunnel) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@127.0.0.1:{proxy.port}")
        reply = ask("https://127.0.0.1:9/v1", key_env="SOME_KEY", retries=0)[0]
    assert proxy.requests[0].startswith(b"CONNECT 127.0.0.1:9 HTTP/1.1\r\n")
    assert KEY.encode() not in proxy.requests[0]
    if refused:
        assert (reply.error, reply.lost, reply.unreachable) == (
            "no connection: the proxy answered HTTP 407",
            False,
            True,
        )
    else:
        assert reply.text == "42"
        assert KEY.encode() in seen[0]
        assert b"s3cret" not in seen[0]
        assert b"proxy-authorization" not in seen[0].lower()


def test_errors_without_words_are_named() -> None:
    assert reason(aiohttp.ClientConnectionError()) == "ClientConnectionError"
    assert reason(aiohttp.ClientOSError(104, os.strerror(104))) == os.strerror(104)
    assert reason(aiohttp.ClientPayloadError(KEY)) == "the answer broke off, or cannot be decoded"


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("how", ["released", "refused", "cancelled"])
def test_nothing_is_sent_before_it_may_be_while_the_connection_is_made(how: str, reused: bool) -> None:
    came: list[bytes] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while data := await reader.read(2**16):
            came.append(data)
            writer.write(whole())
        writer.close()

    async def run() -> tuple[Reply | BaseException, int]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        solver = HTTPSolver(f"http://127.0.0.1:{port}/v1", "m")
        if reused:
            await solver.answer(Ask(QUESTION, TIER, CAP))
        before, gate = len(came), asyncio.Event()

        async def held() -> None:
            await gate.wait()
            if how == "refused":
                raise BooksAway("gone")

        task = asyncio.create_task(solver.answer(Ask(QUESTION, TIER, CAP, held=held)))
        await asyncio.sleep(0.1)
        assert (connections, len(came)) == (1, before)
        if how == "cancelled":
            task.cancel()
        gate.set()
        ended: Reply | BaseException
        try:
            ended = await task
        except (BooksAway, asyncio.CancelledError) as error:
            ended = error
        await asyncio.sleep(0.1)
        await solver.close()
        server.close()
        return ended, len(came) - before

    ended, sent = asyncio.run(run())
    if how == "released":
        assert isinstance(ended, Reply)
        assert (ended.text, ended.tokens, sent) == ("42", 2, 1)
    else:
        assert isinstance(ended, BooksAway if how == "refused" else asyncio.CancelledError)
        assert is_unsent(ended)
        assert sent == 0


@pytest.mark.parametrize("beside", [False, True])
def test_where_others_are_at_work_the_next_connection_is_made_before_its_request(beside: bool) -> None:
    begun: list[bytes] = []  # of each connection, what it was asked first

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = len(begun)
        begun.append(b"")
        while data := await reader.read(2**16):
            begun[place] = begun[place] or data
            await asyncio.sleep(0.3 if beside else 0)
            writer.write(whole())
        writer.close()

    async def run() -> list[Reply]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        solver = HTTPSolver(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "m")
        await asyncio.gather(*(solver.answer(Ask(QUESTION, TIER, CAP)) for _ in range(2)))  # it serves many at a time
        await asyncio.sleep(2.5)  # and they idle no more
        begun.clear()
        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(solver.answer(Ask(QUESTION, TIER, CAP))))
            await asyncio.sleep(0.03)
            # One that is asked, and one that waits for the next request, unless it is the first.
            asked = number + 1 if beside else 1
            assert [bool(one) for one in begun] == [True] * asked + [False] * (beside and number > 0)
        replies = await asyncio.gather(*tasks)
        await solver.close()
        await asyncio.sleep(0.01)
        server.close()
        return replies

    assert [reply.text for reply in asyncio.run(run())] == ["42"] * 4


def test_an_endpoint_that_serves_one_connection_at_a_time_is_shown_no_spare_one() -> None:
    begun, turn = 0, asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        begun += 1
        async with turn:
            while await reader.read(2**16):
                await asyncio.sleep(0.05)
                writer.write(whole())
        writer.close()

    async def run() -> list[Reply]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        solver = HTTPSolver(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "m")
        replies = await asyncio.gather(*(solver.answer(Ask(QUESTION, TIER, CAP)) for _ in range(3)))
        await solver.close()
        await asyncio.sleep(0.01)
        server.close()
        return replies

    assert [reply.text for reply in asyncio.run(run())] == ["42"] * 3
    assert begun == 3


@pytest.mark.parametrize("how", ["closed", "deadline", "refused"])
def test_an_endpoint_that_was_sent_nothing_is_asked_again_once_it_may_be(how: str) -> None:
    came: list[bytes] = []
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not gate.is_set() and how != "deadline":
            writer.close()
            asyncio.get_running_loop().call_later(0.2, gate.set)
        while data := await reader.read(2**16):
            came.append(data)
            writer.write(whole())
        writer.close()

    async def held() -> None:
        await gate.wait()
        if how == "refused":
            raise BooksAway("gone")

    async def run() -> Reply:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        solver = HTTPSolver(f"http://127.0.0.1:{port}/v1", "m", deadline=0.5, retries=1, first_wait=0.01)
        if how == "deadline":
            asyncio.get_running_loop().call_later(1.5, gate.set)
        try:
            return await solver.answer(Ask(QUESTION, TIER, CAP, held=held))
        finally:
            await solver.close()
            await asyncio.sleep(0.01)
            server.close()

    if how == "refused":
        with pytest.raises(BooksAway) as caught:
            asyncio.run(run())
        assert is_unsent(caught.value)
        assert came == []
        return
    reply = asyncio.run(run())
    assert (reply.text, reply.tokens, reply.lost, len(came)) == ("42", 2, False, 1)
