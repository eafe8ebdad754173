"""Waiting for endpoints: never longer than patience, said, and free where nothing was sent."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from roi_env.answering.backends import BACKENDS
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier, is_unsent
from roi_env.answering.http import HTTPSolver, _Failed, retry_after
from roi_env.answering.ledger import Ledger
from roi_env.answering.recording import LiveRecording, record_live
from tests.upstream import Upstream, serving

NOW = ThinkingTier("now", 0, 10)
QUESTION = Question("d", "1", "six times seven?", "42")
ASK = Ask(QUESTION, NOW, 10)


async def solving(url: str, count: int, **options: Any) -> tuple[list[Reply], HTTPSolver]:
    solver = HTTPSolver(f"{url}/v1", "stub", "vllm", **{"first_wait": 0.01, "deadline": 30.0, **options})
    try:
        return list(await asyncio.gather(*(solver.answer(ASK) for _ in range(count)))), solver
    finally:
        await solver.close()


def test_an_hour_is_nobodys_wait() -> None:
    upstream = Upstream(["429-after"], retry_after="3600")
    said: list[str] = []
    with serving(upstream.app()) as url:
        replies, _ = asyncio.run(solving(url, 20, concurrency=1, say=said.append))
    assert len(upstream.seen) == 1
    assert sum(reply.attempts for reply in replies) == 1, "nobody is asked behind the book's back"
    for reply in replies:
        assert reply.error is not None
        assert "429" in reply.error
        assert reply.retry_in is not None
        assert 3500 < reply.retry_in <= 3600
        assert (reply.tokens, reply.lost, reply.counted) == (0, False, "nothing")
    assert said == [], "who does not wait says so in the reply"


def test_a_rest_within_patience_is_waited_for_and_said() -> None:
    upstream = Upstream(["429-after"], retry_after="1.2")
    said: list[str] = []
    with serving(upstream.app()) as url:
        replies, _ = asyncio.run(solving(url, 6, concurrency=2, say=said.append))
    assert [reply.error for reply in replies] == [None] * 6
    assert len(said) == 1
    assert said[0].startswith("waiting 1 s for the endpoint: HTTP 429")


def test_many_short_waits_end_too() -> None:
    upstream = Upstream(["429-after"] * 99, retry_after="0.3")
    with serving(upstream.app()) as url:
        replies, _ = asyncio.run(solving(url, 3, patience=1.0, retries=1000))
    assert all(reply.retry_in == 0.3 for reply in replies)
    assert len(upstream.seen) <= 3 * 5


def test_a_wrong_header_closes_an_endpoint_for_an_hour_at_most() -> None:
    solver = HTTPSolver("http://h/v1", "m")
    for asked in (1e10, 7200.0):
        assert solver._pause(1, _Failed("no", retry=True, wait=asked)) == 3600
        assert 3599 < solver.closed_for <= 3600
    assert solver._pause(5000, _Failed("no", retry=True)) <= 60, "any number of tries has a pause"
    asyncio.run(solver.close())


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("0", 0, 0), ("-5", 0, 0), ("-inf", 0, 0), ("2.5", 2.5, 2.5), (" 7 ", 7, 7), ("1e3", 1000, 1000),
        ("inf", 1e9, 1e12), ("9" * 400, 1e9, 1e12), ("1e999", 1e9, 1e12),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1e9, 1e12),
    ],
)  # fmt: skip
def test_what_endpoints_ask_for_is_a_finite_number_of_seconds(text: str, least: float, most: float) -> None:
    found = retry_after({"retry-after": text})
    assert found is not None
    assert least <= found <= most


@pytest.mark.parametrize(("hours", "least", "most"), [(2, 7000, 7200), (-2, 0, 0)])
def test_endpoints_may_ask_for_a_date(hours: int, least: float, most: float) -> None:
    date = datetime.now(UTC) + timedelta(hours=hours)
    for text in (format_datetime(date, usegmt=True), date.strftime("%a %b %d %H:%M:%S %Y")):
        found = retry_after({"retry-after": text})
        assert found is not None
        assert least <= found <= most


@pytest.mark.parametrize("text", ["nan", "soon", "", "Mon, 99 Foo 2020 00:00:00 GMT", "5, 6", "0x10", "\u0000"])
def test_what_cannot_be_read_asks_for_nothing(text: str) -> None:
    assert retry_after({"retry-after": text}) is None


def test_what_is_cancelled_before_it_is_sent_says_so() -> None:
    async def run(url: str) -> list[BaseException]:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm", first_wait=0.01, concurrency=1)
        errors = []
        try:
            for delay in (0.3, 0.3):
                first = asyncio.create_task(solver.answer(ASK))
                second = asyncio.create_task(solver.answer(ASK))  # waits for the only slot
                await asyncio.sleep(delay)
                for task in (second, first):
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError) as caught:
                        await task
                    errors.append(caught.value)
        finally:
            await solver.close()
        return errors

    sending = Upstream(latency=20.0)
    with serving(sending.app()) as url:
        assert [is_unsent(error) for error in asyncio.run(run(url))] == [True, False] * 2
    waiting = Upstream(["429-after"] * 9, retry_after="20")
    with serving(waiting.app()) as url:
        assert [is_unsent(error) for error in asyncio.run(run(url))] == [True, True] * 2
    assert len(waiting.seen) == 1


def test_a_recording_stops_where_its_endpoint_wants_rest_and_goes_on_later(tmp_path: Path) -> None:
    asked = [Question("d", f"q{n}", f"question {n}", "42") for n in range(12)]
    path = tmp_path / "j.jsonl"

    async def run(url: str, patience: float) -> Any:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm", first_wait=0.01, patience=patience)
        try:
            return await record_live(asked, [NOW], 1, solver, ledger, concurrency=4)
        finally:
            await solver.close()

    upstream = Upstream([*["ok"] * 5, "429-after"], retry_after="900")
    with serving(upstream.app()) as url:
        ledger = Ledger(path, {})
        end = asyncio.run(run(url, 60.0))
        ledger.close()
        assert end.held is not None
        assert "429" in end.held
        assert 5 <= end.done < end.total
        assert (end.errors, end.unknown) == (0, 0), "a rest is no permanent error"
        ledger = Ledger(path, {})
        end = asyncio.run(run(url, 60.0))
        ledger.close()
        assert (end.done, end.errors, end.held) == (12, 0, None)
    assert len(upstream.seen) == 13
    assert ledger.charged == upstream.generated
    assert not LiveRecording(ledger).errors()


def test_a_recording_that_is_stopped_while_it_waits_charges_nothing_for_it(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    upstream = Upstream(["429-after"] * 3, retry_after="30")

    async def run(url: str) -> None:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm", first_wait=0.01)
        task = asyncio.create_task(record_live([QUESTION], [NOW], 3, solver, ledger, concurrency=3))
        end = time.monotonic() + 20
        while not upstream.seen and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        await solver.close()

    with serving(upstream.app()) as url:
        ledger = Ledger(path, {})
        asyncio.run(run(url))
        ledger.close()
    again = Ledger(path, {})
    again.close()
    assert (again.charged, again.unknown, len(again.entries)) == (0, [], 3)


def test_which_backends_stop_is_said() -> None:
    assert {name for name, backend in BACKENDS.items() if backend.stops} == {"vllm", "sglang", "llama.cpp"}
