"""A proxy that is told to end: once, and again by somebody who does not want to wait."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

import uvicorn

from experiments.serving.app import application
from experiments.serving.budget import Budget, make_budget
from experiments.serving.ending import make_server
from roi_env.answering.base import ThinkingTier
from roi_env.answering.http import HTTPSolver
from tests.experiments.serving.test_budgets import says, until
from tests.processes import child
from tests.upstream import Upstream, kept, serving

_PROXY = "import sys; from experiments.cli import main; sys.argv = ['roi', *sys.argv[1:]]; main()"


def ask(address: str, stream: bool) -> httpx.Response:
    body: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": stream}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)


@contextmanager
def proxy(upstream: str, state: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A proxy in a process of its own, whose errors are among what it prints; gives its address."""
    command = [sys.executable, "-c", _PROXY, "serve", "--port", "0", "--budget", "a=5k", "--upstream", f"{upstream}/v1"]
    command += ["--model", "stub", "--backend", "vllm", "--agent", "fixed-1", "--state", str(state), *options]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        address = "/".join(says(process, "base address").split("base address ")[1].split("/")[:3])
        until(lambda: answers(address))
        yield address, process


def answers(address: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{address}/health").status_code == 200
    return False


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_a_second_signal_ends_it_with_a_line_and_what_runs_is_charged_and_told(
    first: str, second: str, tmp_path: Path
) -> None:
    upstream = Upstream(pace=0.05, thinks=0, answer=lambda prompt: " ".join(["word"] * 900))
    with (
        serving(upstream.app()) as url,
        ThreadPoolExecutor(4) as pool,
        proxy(url, tmp_path, "--tier", "t=0+1000", "--window", "2") as (address, process),
    ):
        streamed, whole = (pool.submit(ask, address, stream) for stream in (True, False))
        until(lambda: len(upstream.seen) == 2 and all(one.generated for one in upstream.seen))
        waits = pool.submit(ask, address, False)
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:  # its request is still to come
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            slow.sendall(f"{head}content-length: 99\r\n\r\n{{".encode())
            time.sleep(0.5)
            process.send_signal(signal.Signals[first])
            time.sleep(0.5)
            process.send_signal(signal.Signals[second])
            said = process.communicate(timeout=60)[0]
        assert process.returncode == 130
        assert "Traceback" not in said
        waiting, cut, *log = said.splitlines()
        assert waiting == "Requests that run are ended first, 4 of them; a second signal cuts them off"
        assert cut == "4 requests were cut off: what was asked of an endpoint costs its reservation"
        assert all(line.startswith('{"time"') for line in log), said
        assert (streamed.result().status_code, whole.result().status_code) == (200, 503)
        for text in (streamed.result().text.split("data: ")[-1], whole.result().text):
            assert '"proxy_ended"' in text
            assert "costs its reservation" in text
        assert (waits.result().status_code, "nothing is charged" in waits.result().text) == (503, True)
        assert upstream.generated <= kept(tmp_path)[0] <= 2000
        assert kept(tmp_path)[1] == 0


def test_one_signal_lets_requests_end(tmp_path: Path) -> None:
    upstream = Upstream(pace=0.01, thinks=0, answer=lambda prompt: " ".join(["word"] * 60))
    with (
        serving(upstream.app()) as url,
        ThreadPoolExecutor(1) as pool,
        proxy(url, tmp_path, "--tier", "t=0+99") as (address, process),
    ):
        asked = pool.submit(ask, address, True)
        until(lambda: upstream.generated)
        process.send_signal(signal.SIGTERM)
        assert asked.result().text.endswith("[DONE]\n\n")
        process.communicate(timeout=60)
        assert kept(tmp_path) == (60, 0)


def test_budgets_whose_database_hangs_are_closed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_them = threading.Barrier(3, timeout=10)
    close = Budget.close

    def hanging(budget: Budget) -> None:
        all_of_them.wait()
        close(budget)

    monkeypatch.setattr(Budget, "close", hanging)
    tiers, solver = [ThinkingTier("t", 0, 10)], HTTPSolver("http://127.0.0.1:1/v1", "stub", "vllm")
    budgets = [make_budget(name, 100, solver, tiers, "fixed-1", 5, 1, tmp_path) for name in "abc"]
    with serving(application(budgets)):
        pass
    assert not list(tmp_path.glob("*.lock"))


def test_a_second_signal_does_not_wait_for_connections_as_asyncio_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since Python 3.12 `asyncio.Server.wait_closed` waits for connections, too."""

    async def wait_closed(server: Any) -> None:
        while server._active_count:
            await asyncio.sleep(0.01)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for what in ("startup", "shutdown"):
                await receive()
                told.append(what)
                await send({"type": f"lifespan.{what}.complete"})
            return
        told.append("asked")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cut off")
            raise

    async def run() -> None:
        options = uvicorn.Config(app, port=0, loop="asyncio", log_level="critical")
        server, listening = make_server(options), options.bind_socket()
        runs = asyncio.create_task(server._serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        _, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        while "asked" not in told:
            await asyncio.sleep(0.01)
        for _ in range(2):
            server.handle_exit(signal.SIGTERM, None)
            await asyncio.sleep(0.3)
        await asyncio.wait_for(runs, 10)
        writer.close()

    told: list[str] = []
    monkeypatch.setattr(asyncio.base_events.Server, "wait_closed", wait_closed)
    asyncio.run(run())
    assert told == ["startup", "asked", "cut off", "shutdown"]
