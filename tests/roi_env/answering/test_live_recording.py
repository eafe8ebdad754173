"""Recording an endpoint: a thousand faults and a kill lose nothing and charge nothing twice."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from roi_env.answering.base import Question, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.ledger import JournalError, Ledger
from roi_env.answering.recording import Limits, LiveRecording, RecordingProgress, live_table, record_live
from roi_env.sources.outcome_tables import OutcomeTable
from tests.processes import child
from tests.roi_env.answering.booking import reserve
from tests.upstream import FAULTS, NOTHING_GENERATED, Upstream, schedule, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 30, 10)]
SETTINGS = {"model": "stub"}


def questions(count: int) -> list[Question]:
    return [Question("sums", f"q{n}", f"question {n}", str(n), {"kind": n % 3}) for n in range(count)]


def record(
    upstream: Upstream, path: Path, asked: list[Question], samples: int, **options: Any
) -> tuple[Ledger, RecordingProgress]:
    count = options.pop("count", lambda text: len(text.split()))
    system = options.pop("system", None)
    deadline = options.pop("deadline", 2.0)

    async def run(url: str) -> RecordingProgress:
        solver = HTTPSolver(
            f"{url}/v1", "stub", "vllm", first_wait=0.001, deadline=deadline, retries=20, concurrency=32, count=count,
            system=system,
        )  # fmt: skip
        try:
            return await record_live(asked, TIERS, samples, solver, ledger, concurrency=32, **options)
        finally:
            await solver.close()

    ledger = Ledger(path, SETTINGS)
    try:
        with serving(upstream.app()) as url:
            return ledger, asyncio.run(run(url))
    finally:
        ledger.close()


def test_a_recording_and_its_table(tmp_path: Path) -> None:
    upstream = Upstream(answer=lambda prompt: f"answer {prompt.split()[-1]}")
    ledger, end = record(upstream, tmp_path / "j.jsonl", questions(5), 2)
    assert (end.done, end.total, end.errors, end.unknown, end.stopped) == (20, 20, 0, 0, None)
    assert end.tokens == ledger.charged == upstream.generated
    ledger = Ledger(tmp_path / "j.jsonl", SETTINGS)
    ledger.close()
    again = LiveRecording(ledger)
    assert len(again.outcomes()) == 20
    correct = {key: reply.text == f"answer {key[1][1:]}" for key, reply in again.outcomes().items()}
    table = live_table(again, TIERS, correct, menu="stub", decision_cost=2)
    assert (table.num_rows, table.decision_cost, table.pairing) == (20, 2, False)
    assert all(row["correct"] for row in table.rows.to_pylist())
    assert {row["reasoning_tokens"] for row in table.rows.to_pylist() if row["tier"] == "long"} == {20}
    table.write(tmp_path / "t.parquet")
    assert OutcomeTable.read(tmp_path / "t.parquet").rows.num_rows == 20
    with pytest.raises(JournalError, match="other settings"):
        Ledger(tmp_path / "j.jsonl", {"model": "other"})


# A request that its deadline cancels while it connects leaves its socket to the garbage collector (httpx, anyio): seen on
# busy machines only.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_thousand_faults(tmp_path: Path) -> None:
    # A drip and a silence take a deadline each: there are few of them, the other kinds are quick.
    slow = ["drip", "silence"] * 2
    quick = tuple(fault for fault in FAULTS if fault not in ("drip", "silence"))
    faults = [*slow, *schedule(7, 1990, quick, share=0.8)]
    assert sum(fault != "ok" for fault in faults) >= 1000
    upstream = Upstream(faults, drip_seconds=8.0)
    asked = questions(100)
    ledger, end = record(upstream, tmp_path / "j.jsonl", asked, 4, deadline=2.0)
    injected = sum(seen.fault != "ok" for seen in upstream.seen)
    assert injected >= 500, "too few requests for the faults"
    runs = 1
    while end.done - end.errors < end.total or injected < 1000:
        # Errors are asked again, and further samples, until a thousand faults have happened.
        runs += 1
        ledger, end = record(upstream, tmp_path / "j.jsonl", asked, 4 + runs // 2, deadline=2.0, retry_errors=True)
        injected = sum(seen.fault != "ok" for seen in upstream.seen)
        assert runs < 12
    assert injected >= 1000
    recording = LiveRecording(ledger)
    samples = 4 + runs // 2
    assert set(recording.outcomes()) >= {
        ("sums", q.question_id, tier.name, s) for q in asked for tier in TIERS for s in range(samples)
    }, "nothing is lost"
    answered = Counter(key for key, reply in recording.replies() if reply.error is None)
    assert set(answered.values()) == {1}, "nothing is recorded twice"
    requests = sum(reply.attempts for _, reply in recording.replies())
    # On a busy machine a deadline may pass before a request arrives.
    lost = sum(reply.lost for _, reply in recording.replies())
    assert 0 <= requests - len(upstream.seen) <= lost, "every request is in the book"
    assert all(entry.charged is not None for entry in ledger.entries)
    assert ledger.charged == sum(reply.tokens for _, reply in recording.replies()) == end.tokens
    # Every token that was generated is paid for; above it are reservations of what nobody can know.
    assert upstream.generated <= ledger.charged
    assert all(seen.generated == 0 for seen in upstream.seen if seen.fault in NOTHING_GENERATED)
    sure = sum(reply.tokens for _, reply in recording.replies() if reply.counted == "server")
    assert sure <= upstream.generated
    gc.collect()  # within this test's filter of warnings


def test_permanent_errors_are_errors_and_can_be_asked_again(tmp_path: Path) -> None:
    upstream = Upstream(["422"] * 3)
    ledger, end = record(upstream, tmp_path / "j.jsonl", questions(4), 1)
    assert (end.done, end.errors) == (8, 3)
    assert len(LiveRecording(ledger).outcomes()) == 5
    correct = dict.fromkeys(LiveRecording(ledger).outcomes(), True)
    assert live_table(LiveRecording(ledger), TIERS, correct, menu="m", decision_cost=0).num_rows == 5
    before = len(upstream.seen)
    _, end = record(upstream, tmp_path / "j.jsonl", questions(4), 1)
    assert len(upstream.seen) == before, "an error is a result"
    _, end = record(upstream, tmp_path / "j.jsonl", questions(4), 1, retry_errors=True)
    assert (end.done, end.errors, len(upstream.seen)) == (8, 0, before + 3)


def test_limits_hold_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    upstream = Upstream()
    _, end = record(upstream, tmp_path / "j.jsonl", questions(20), 1, limits=Limits(tokens=300))
    assert end.stopped == "300 tokens"
    assert 0 < end.done < end.total
    assert upstream.generated == end.tokens <= 300
    _, end = record(upstream, tmp_path / "j.jsonl", questions(20), 1)
    assert end.done == end.total
    assert len(upstream.seen) == 40
    _, end = record(Upstream(), tmp_path / "u.jsonl", questions(20), 1, limits=Limits(usd=0.001, usd_output=10.0))
    assert end.stopped == "0.001 USD"
    assert 0 < end.usd <= 0.001


def test_a_limit_in_dollars_holds_for_what_is_sent_beside_the_question(tmp_path: Path) -> None:
    limits = Limits(usd=0.01, usd_prompt=1.0)  # ten thousand tokens of prompts
    upstream = Upstream()
    _, end = record(upstream, tmp_path / "j.jsonl", questions(9), 1, limits=limits, system="x " * 2500)
    assert end.stopped == "0.01 USD"
    assert len(upstream.seen) == 1, "nobody knows that its 5,000 bytes are not 5,000 tokens"
    # What became of a prompt whose answer was lost nobody knows: it counts at its most, also in the next run.
    lost, kept = Upstream(["reset"] * 9), tmp_path / "l.jsonl"
    _, end = record(lost, kept, questions(1), 1, limits=limits, system="x " * 2500, lost_retries=0)
    assert 0.005 < end.usd <= 0.01
    _, end = record(lost, kept, questions(1), 1, limits=limits, system="x " * 2500, lost_retries=0)
    assert (end.stopped, len(lost.seen)) == ("0.01 USD", 1)
    assert end.usd > 0.005


def test_progress_counts_what_this_run_wants(tmp_path: Path) -> None:
    upstream = Upstream(["422"])
    record(upstream, tmp_path / "j.jsonl", questions(5), 2)
    _, end = record(upstream, tmp_path / "j.jsonl", questions(7)[4:], 1)
    assert (end.done, end.total, end.errors) == (6, 6, 0)


def test_a_question_whose_text_changed_is_refused_and_a_corrected_reference_counts(tmp_path: Path) -> None:
    upstream = Upstream()
    record(upstream, tmp_path / "j.jsonl", questions(2), 1)
    corrected = [replace(question, answer="42") for question in questions(2)]
    record(upstream, tmp_path / "j.jsonl", corrected, 1)
    assert len(upstream.seen) == 4
    again = LiveRecording(Ledger(tmp_path / "j.jsonl"))
    assert list(again.questions.values()) == corrected
    other = [replace(question, text="another?") for question in corrected]
    with pytest.raises(JournalError, match="question 'q0' of 'sums' was answered as 'question 0' and is 'another"):
        record(upstream, tmp_path / "j.jsonl", other, 2)
    assert len(upstream.seen) == 4
    # What nobody answered may be worded anew.
    record(Upstream(["422"] * 4), tmp_path / "e.jsonl", questions(2), 1)
    _, end = record(upstream, tmp_path / "e.jsonl", other, 1, retry_errors=True)
    assert (end.done, end.errors) == (4, 0)
    assert upstream.seen[-1].prompt == "another?"


def test_an_endpoint_that_refuses_the_key_ends_a_recording_and_burns_no_question(tmp_path: Path) -> None:
    refusing = Starlette(
        routes=[
            Route(
                "/{path:path}", lambda request: JSONResponse({"error": {"message": "bad key"}}, 401), methods=["POST"]
            )
        ]
    )

    class Refusing(Upstream):
        def app(self) -> Starlette:
            return refusing

    _, end = record(Refusing(), tmp_path / "j.jsonl", questions(60), 1)
    assert (end.done, end.errors) == (0, 0)
    assert end.gone == 'HTTP 401: {"error":{"message":"bad key"}}'
    upstream = Upstream()
    _, end = record(upstream, tmp_path / "j.jsonl", questions(60), 1)
    assert (end.done, end.tokens) == (120, upstream.generated)


def test_a_lost_request_is_asked_again_and_charged_each_time(tmp_path: Path) -> None:
    upstream = Upstream(["reset", "truncated"])
    ledger, end = record(upstream, tmp_path / "j.jsonl", questions(1), 1)
    assert (end.done, end.unknown, end.errors) == (2, 2, 0)
    assert len(ledger.entries) == len(upstream.seen) == 4
    gone, end = record(Upstream(["reset"] * 9), tmp_path / "g.jsonl", questions(1), 1, lost_retries=1)
    assert (end.done, end.unknown) == (0, 4)
    assert gone.charged == 2 * (10 + 41)


def test_an_entry_is_settled_once(tmp_path: Path) -> None:
    async def run() -> None:
        entry = await reserve(ledger, ("a",), 9)
        assert (ledger.charged, ledger.reserved) == (0, 9)
        ledger.settle(entry, 4, {})
        with pytest.raises(ValueError, match="settled already"):
            ledger.settle(entry, 4, {})

    ledger = Ledger(tmp_path / "j.jsonl", {})
    asyncio.run(run())
    ledger.close()


KILLED = """
import sys
from experiments.cli import main
sys.argv = ["roi", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_and_nothing_asked_twice(tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text(
        "".join(json.dumps({"id": f"q{n}", "question": f"number {n}", "answer": "42"}) + "\n" for n in range(60))
    )
    out, journal = tmp_path / "t.parquet", tmp_path / "t.journal.jsonl"
    upstream = Upstream(latency=0.05)
    with serving(upstream.app()) as url:
        command = [
            *(sys.executable, "-c", KILLED, "record", "stub", "--endpoint", f"{url}/v1", "--backend", "vllm"),
            *(
                "--questions",
                str(source),
                "--samples",
                "2",
                "--tier",
                "now=0",
                "--tier",
                "long=30",
                "--answer-tokens",
                "10",
            ),
            *("--concurrency", "4", "--out", str(out), "--grader", "number"),
        ]
        environment = {**os.environ, "COLUMNS": "200"}
        kills = 0
        for wanted in (20, 60, 100):
            with child(command, env=environment, stdout=subprocess.DEVNULL) as process:
                while process.poll() is None and not (
                    journal.exists() and journal.read_bytes().count(b"charge") >= wanted
                ):
                    time.sleep(0.01)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
        assert kills == 3
        done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    assert "were in flight when an earlier run ended" in done.stdout
    table = OutcomeTable.read(out)
    assert table.num_rows == 240
    assert all(row["correct"] for row in table.rows.to_pylist())
    ledger = Ledger(journal)
    assert 0 < len(ledger.unknown) <= 4 * kills
    assert len(upstream.seen) <= len(ledger.entries) == 240 + len(ledger.unknown)
    answered = Counter(key for key, _ in LiveRecording(ledger).replies())
    assert set(answered.values()) == {1}
    assert upstream.generated <= ledger.charged
    ledger.close()


def test_a_cancelled_reservation_keeps_its_place(tmp_path: Path) -> None:
    """Records lie in their order even where the wait for the disk is cancelled; what was never sent costs nothing."""
    path = tmp_path / "ledger.jsonl"

    async def run() -> None:
        ledger = Ledger(path, SETTINGS)
        for number in range(50):
            task = asyncio.create_task(reserve(ledger, (number,), 10))
            await asyncio.sleep(0)  # it has begun to wait
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        ledger.close()

    asyncio.run(run())
    again = Ledger(path, SETTINGS)
    assert [entry.charged for entry in again.entries] == [0] * 50
    assert again.charged == 0
    assert again.messages == []
    again.close()
