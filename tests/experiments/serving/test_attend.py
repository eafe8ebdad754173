"""Clients of the proxy who wait or leave, over real sockets: nobody pays for the dead, nobody waits without end."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from starlette.requests import Request
from starlette.responses import Response

from agents.live.session import Row
from experiments.serving.app import application
from experiments.serving.attend import Busy, Gone, Queue, attend
from experiments.serving.budget import Budget, make_budget
from roi_env.answering.base import ThinkingTier
from roi_env.answering.database import Database
from roi_env.answering.http import HTTPSolver
from roi_env.answering.ledger import BooksAway
from tests.upstream import FAULTS, Upstream, kept, schedule, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]
MOST = TIERS[1].most_tokens


@dataclass
class Attentive(Upstream):
    """Stops when its client has gone, as vLLM does; takes ``seconds`` for an answer unless ``quick``."""

    seconds: float = 0.0
    stopped: list[str] = field(default_factory=list)

    async def _answer(self, request: Request) -> Response:
        await request.body()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            if await request.is_disconnected():
                self.stopped.append(str(request.url))
                return Response(status_code=499)
            await asyncio.sleep(0.01)
        return await super()._answer(request)


@contextmanager
def proxy(
    upstream: Upstream, state: Path, names: tuple[str, ...] = ("a",), tokens: int = 5000, **options: Any
) -> Iterator[tuple[str, list[Budget], HTTPSolver]]:
    queue = {"places": 64, "patience": 60.0, **options.pop("queue", {})}
    window, backend = options.pop("window", 2), options.pop("backend", "vllm")
    with serving(upstream.app()) as url:
        solver = HTTPSolver(f"{url}/v1", "stub", backend, first_wait=0.01, deadline=20.0, **options)
        budgets = [
            make_budget(name, tokens, solver, TIERS, "fixed-2", 200, window, state, queue=Queue(**queue))
            for name in names
        ]
        with serving(application(budgets, None)) as address:
            yield address, budgets, solver


def ask(address: str, *waits: float, budgets: str = "a", **fields: Any) -> list[httpx.Response | None]:
    """One question at once for every number of seconds that a client waits; None where it closed its connection."""
    body = {"model": "stub", "messages": [{"role": "user", "content": "six times seven?"}], **fields}

    async def one(client: httpx.AsyncClient, name: str, until: float) -> httpx.Response | None:
        async with client:
            try:
                async with asyncio.timeout_at(until):
                    return await client.post(f"{address}/{name}/v1/chat/completions", json=body)
            except TimeoutError:
                return None

    async def all_() -> list[httpx.Response | None]:
        clients = [httpx.AsyncClient(verify=False, timeout=None) for _ in waits]
        begun = asyncio.get_running_loop().time()
        named = zip(clients, itertools.cycle(budgets), waits, strict=False)
        return list(await asyncio.gather(*(one(client, name, begun + seconds) for client, name, seconds in named)))

    return asyncio.run(all_())


def answered(address: str, count: int, budgets: str = "a") -> list[httpx.Response]:
    """Responses to ``count`` patient clients."""
    return [response for response in ask(address, *[60.0] * count, budgets=budgets) if response is not None]


def settled(budget: Budget, seconds: float = 20.0) -> None:
    """Wait until nothing is in flight; then nothing may be left of what was."""
    end = time.monotonic() + seconds
    while budget.session.in_flight or budget.queue.waiting or budget.clerk.reserved:
        assert time.monotonic() < end, (budget.session.in_flight, budget.queue.waiting)
        time.sleep(0.01)
    entries = asyncio.run(budget.clerk.ask(lambda books: books.entries))
    assert all(entry.charged is not None for entry in entries)
    assert budget.session.charged == sum(entry.charged or 0 for entry in entries)


def test_forty_clients_that_left_cost_what_was_in_flight_and_a_live_one_is_next(tmp_path: Path) -> None:
    upstream = Attentive(seconds=4.0)
    with proxy(upstream, tmp_path) as (address, (budget,), _):
        *dead, live = ask(address, *[2.0] * 40, 60.0)
        settled(budget)
        assert dead == [None] * 40
        assert live is not None
        assert live.status_code == 200
        assert len(upstream.stopped) >= 2, "what was being made is stopped"
        assert len(upstream.seen) == 1
        assert budget.asked <= 20, "those who waited are not asked for"
        charged = budget.session.charged
        # A client that left while its reservation was written was not sent to the endpoint, and costs nothing.
        cut, rest = divmod(charged - 24, MOST)
        assert rest == 0
        assert len(upstream.stopped) <= cut <= budget.asked - 1
    assert kept(tmp_path) == (charged, 0)


def test_an_endpoint_that_does_not_stop_is_awaited_and_paid_as_it_costs(tmp_path: Path) -> None:
    upstream = Upstream(latency=0.8)
    with proxy(upstream, tmp_path, backend="openai", window=2) as (address, (budget,), _):
        assert ask(address, *[0.4] * 8) == [None] * 8
        settled(budget)
        assert 1 <= len(upstream.seen) <= 4
        assert budget.session.charged == upstream.generated == 24 * len(upstream.seen)


def test_a_full_queue_says_so_at_once_and_charges_nothing(tmp_path: Path) -> None:
    upstream = Upstream(latency=0.5)
    with proxy(upstream, tmp_path, window=1, queue={"places": 3}) as (address, (budget,), _):
        answers = answered(address, 10)
        settled(budget)
        codes = [answer.status_code for answer in answers]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert codes.count(200) + len(refused) == 10
        assert codes.count(200) >= 3
        assert refused
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert "wait already" in refused[0].json()["error"]["message"]
        assert budget.session.charged == 24 * codes.count(200)


def test_nobody_waits_longer_for_a_turn_than_allowed(tmp_path: Path) -> None:
    upstream = Upstream(latency=2.0)
    with proxy(upstream, tmp_path, window=1, queue={"patience": 0.3}) as (address, (budget,), _):
        answers = answered(address, 3)
        settled(budget)
        assert sorted(answer.status_code for answer in answers) == [200, 503, 503]
        assert budget.session.charged == 24
        assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 503} <= {"1", "2", "3"}


def test_a_slow_disk_has_nobody_wait_for_the_reservations_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = Database.sync

    def slow(base: Database) -> None:
        time.sleep(0.25)
        sync(base)

    with proxy(Upstream(), tmp_path, window=40, queue={"patience": 4.0}) as (address, (budget,), _):
        monkeypatch.setattr(Database, "sync", slow)
        assert [answer.status_code for answer in answered(address, 40)] == [200] * 40, "one after the other: 10 s"
        settled(budget)
        assert budget.session.charged == 40 * 24


def failing(base: Database) -> None:
    """A disk that is full, in place of :meth:`Database.sync`."""
    raise OSError("no space left on device")


def one_answer(address: str, stream: bool) -> httpx.Response:
    """The response to one question."""
    body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": stream}
    return httpx.post(f"{address}/a/v1/chat/completions", json=body, timeout=30)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_disk_refuses_is_not_asked_and_costs_nothing(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path) as (address, (budget,), _):
        monkeypatch.setattr(Database, "sync", failing)
        told = one_answer(address, stream)
        assert told.status_code == 503
        assert told.json()["error"]["code"] == "budget_unavailable"
        assert "nothing is charged" in told.json()["error"]["message"]
        monkeypatch.undo()
        settled(budget)
        assert (upstream.seen, budget.session.charged) == ([], 0)
        assert [answer.status_code for answer in answered(address, 1)] == [200]


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_disk_refuses_after_others_held_the_database_is_given_back(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path) as (address, (budget,), _):
        monkeypatch.setattr(Database, "sync", failing)
        other = sqlite3.connect(tmp_path / "budgets.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
        release.start()
        told = one_answer(address, stream)
        release.join()
        other.close()
        assert (told.status_code, told.json()["error"]["code"]) == (503, "budget_unavailable")
        monkeypatch.undo()
        settled(budget)
        assert (upstream.seen, budget.session.charged) == ([], 0)
    assert kept(tmp_path) == (0, 0)


@pytest.mark.parametrize("asked", ["3600", "1e400", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_an_endpoint_that_asks_for_an_hour_or_more_freezes_nobody(tmp_path: Path, asked: str) -> None:
    upstream = Upstream(["429-after"], retry_after=asked)
    with proxy(upstream, tmp_path, ("a", "b"), patience=5.0) as (address, budgets, solver):
        (first,) = answered(address, 1)
        assert first.status_code == 503
        assert first.headers["retry-after"] == "3600"
        assert "x-should-retry" not in first.headers
        for other in answered(address, 6, "ab"):
            assert other.status_code == 503
            assert 3500 < int(other.headers["retry-after"]) <= 3600
        assert len(upstream.seen) == 1
        assert [budget.session.charged for budget in budgets] == [0, 0]
        assert [budget.session.remaining for budget in budgets] == [5000, 5000]
        solver._open_at = time.monotonic()  # the hour is over
        assert [later.status_code for later in answered(address, 2, "ab")] == [200, 200]


def test_a_short_rest_is_waited_for(tmp_path: Path) -> None:
    upstream = Upstream(["429-after"], retry_after="1")
    with proxy(upstream, tmp_path) as (address, (budget,), _):
        assert [answer.status_code for answer in answered(address, 4)] == [200] * 4
        assert budget.session.charged == 4 * 24


@pytest.mark.parametrize("backend", ["vllm", "generic"])
def test_whoever_leaves_whenever_nothing_leaks(tmp_path: Path, backend: str) -> None:
    quick = tuple(fault for fault in FAULTS if fault not in ("drip", "silence", "overshoot", "429-after"))
    upstream = Attentive(schedule(3, 400, quick, share=0.3), seconds=0.05)
    rng = random.Random(0)
    waits = [rng.choice([0.02, 0.06, 0.12, 0.3, 20.0]) for _ in range(80)]
    with proxy(upstream, tmp_path, window=3, backend=backend, retries=3) as (address, (budget,), _):
        ask(address, *waits)
        settled(budget)
        assert upstream.generated <= budget.session.charged <= 5000
        before = budget.session.charged
        upstream._faults, upstream.seconds = iter(()), 0.0
        assert [answer.status_code for answer in answered(address, 4)] == [200] * 4
        settled(budget)
        assert budget.session.charged == before + 4 * 24
    assert kept(tmp_path) == (before + 4 * 24, 0)


@pytest.mark.parametrize("backend", ["generic", "vllm"])
def test_what_failed_is_not_asked_again_for_a_client_that_left(tmp_path: Path, backend: str) -> None:
    upstream = Upstream(faults=["429-after"], retry_after="2")
    with proxy(upstream, tmp_path, backend=backend) as (address, (budget,), _):
        assert ask(address, 0.8) == [None]
        settled(budget)
        assert len(upstream.seen) == 1, "the answer of a second request would be nobody's"
        assert budget.session.charged == 0
        assert answered(address, 1)[0].status_code == 200, "the next is asked as ever"
        assert budget.session.charged == upstream.generated


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_tells_what_whoever_left_has_cost(
    tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "roi.access")
    with proxy(Upstream(latency=1.0, pace=0.1), tmp_path) as (address, (budget,), _):
        assert ask(address, 0.4, stream=stream) == [None]
        settled(budget)
    # The line is written after the charge: it is there when the proxy has ended.
    lines = [json.loads(record.message) for record in caplog.records if record.name == "roi.access"]
    assert [(line["status"], line["tokens"]) for line in lines] == [(499, budget.session.charged)]
    assert budget.session.charged == MOST


@pytest.mark.parametrize("error", [None, Busy("not now", 1.0), BooksAway("away")])
def test_whoever_leaves_as_the_answer_comes_has_left(error: Exception | None) -> None:
    async def run() -> None:
        ended = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await ended.wait()
            return {"type": "http.disconnect"}

        async def admit() -> Any:
            return object()

        async def finish(ticket: Any, wanted: Any) -> Any:
            ended.set()
            await ended.wait()
            await asyncio.sleep(0)
            if error is not None:
                raise error
            return Row(0, "q", "now", "answered"), None

        request, solver = Request({"type": "http"}, receive), HTTPSolver("http://127.0.0.1:9/v1", "stub")
        with pytest.raises(Gone):
            await attend(request, Queue(), solver, admit, finish, stops=lambda: False)

    asyncio.run(run())
