"""Requests that were settled long ago are forgotten; what they cost, and all else, is not."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from roi_env.answering import books as bookkeeping
from roi_env.answering import database
from roi_env.answering.books import DatabaseLedger
from roi_env.answering.clerk import Clerk
from tests.processes import child

LONG_AGO = 1_000_000.0


def ledger(path: Path, name: str = "a", **options: Any) -> DatabaseLedger:
    return DatabaseLedger(path / "b.db", name, 10**9, {"tiers": []}, **options)


def age(books: DatabaseLedger, count: int) -> None:
    """Let the first requests of a budget have ended long ago, one after the other."""
    books.database.run(
        "UPDATE requests SET ended = :then + id WHERE budget = :name AND ended IS NOT NULL AND id IN "
        "(SELECT id FROM requests WHERE budget = :name ORDER BY id LIMIT :count)",
        then=LONG_AGO,
        name=books.name,
        count=count,
    )


def asked(books: DatabaseLedger, *charges: int) -> None:
    with books.database.transaction():
        for charge in charges:
            books.settle(books.enter((0, "q", 1, 100), 10), charge, {"tokens": charge})


def test_what_ended_long_ago_is_forgotten_and_sums_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeping, "NEWEST", 3)
    monkeypatch.setattr(bookkeeping, "_FOLDED", 4)
    books, other = ledger(tmp_path, period="month", carry=True), ledger(tmp_path, "b")
    flying = books.enter((0, "q", 1, 100), 50)
    asked(books, *range(10))
    asked(other, *range(10))
    age(books, 8)
    age(other, 10)
    before = books.standing(), books.database.states()
    gone = [books.fold(LONG_AGO + 1000) for _ in range(3)]
    assert gone == [4, 3, 0], "the first of the eight is in flight"
    assert [entry.charged for entry in books.entries] == [None, 7, 8, 9]
    assert [entry.charged for entry in other.entries] == [*range(10)], "another budget's stay"
    assert (books.standing(), books.database.states()) == before
    assert books.asked == 11
    books.settle(flying, 30, {"tokens": 30})
    assert (books.charged, books.reserved) == (75, 0)
    age(other, 10)
    assert [other.fold(LONG_AGO + 1000) for _ in range(3)] == [4, 3, 0]
    assert [entry.charged for entry in other.newest_entries(3)] == [7, 8, 9], "agents learn from the newest"
    assert other.asked == 10
    for one in (books, other):
        one.close()


def test_who_settles_what_was_charged_and_forgotten_meanwhile_pays_what_is_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeping, "NEWEST", 1)
    books, other = ledger(tmp_path), ledger(tmp_path)
    entries = [books.enter((n, "q", 1, 100), 20) for n in range(2)]
    (tmp_path / f"b.db.{books.database.owner}.lock").unlink()  # as where a connection was lost
    other.database.reap()
    asked(other, 0)
    assert other.fold(time.time() + 1) == 2
    for entry, took in zip(entries, (5, 25), strict=True):
        books.settle(entry, took, {"tokens": took})
    assert (books.charged, books.reserved, books.asked) == (20 + 25, 0, 3)
    for one in (books, other):
        one.close()


def test_the_file_does_not_grow_where_as_much_is_forgotten_as_comes(tmp_path: Path) -> None:
    books, pages = ledger(tmp_path), []
    for _ in range(6):
        asked(books, *[7] * 2000)
        age(books, 10**6)
        while books.fold(LONG_AGO + 10**6):
            pass
        pages.append(books.database.one("PRAGMA page_count")[0])
    assert pages[-1] <= pages[1] * 1.05
    assert (books.asked, len(books.entries), books.charged) == (12_000, bookkeeping.NEWEST, 7 * 12_000)
    books.close()


_FOLDER = """
import sys
from pathlib import Path
from roi_env.answering import books
books._FOLDED = 7
ledger = books.DatabaseLedger(Path(sys.argv[1]), "a", 10**9, {"tiers": []})
print("ready", flush=True)
while ledger.fold(1e9):
    ledger.settle(ledger.enter((0, "q", 1, 0), 5), 3, {"tokens": 3})
"""


def test_processes_that_forget_at_once_and_are_killed_lose_nothing(tmp_path: Path) -> None:
    rng, books = random.Random(0), ledger(tmp_path)
    asked(books, *[2] * 4000)
    age(books, 4000)
    for _ in range(4):
        command = [sys.executable, "-c", _FOLDER, str(tmp_path / "b.db")]
        with ExitStack() as stack:
            for _ in range(2):
                process = stack.enter_context(child(command, stdout=subprocess.PIPE, text=True))
                assert process.stdout is not None
                process.stdout.readline()
            time.sleep(rng.random() * 0.2)
    books.database.reap()
    left = len(books.entries)
    assert left < 4000
    with closing(sqlite3.connect(tmp_path / "b.db")) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (made,) = base.execute("SELECT count(*) FROM requests WHERE ended > 1e9").fetchone()
        (folded,) = base.execute("SELECT folded FROM budgets").fetchone()
        later = base.execute("SELECT sum(charged) FROM requests WHERE ended > 1e9").fetchone()[0]
    assert folded + left == books.asked == 4000 + made, "each was forgotten once"
    assert (books.charged, books.reserved) == (8000 + later, 0)
    books.close()


def test_a_clerk_forgets_while_requests_are_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeping, "NEWEST", 2)
    books = ledger(tmp_path)
    asked(books, *range(10))
    age(books, 10)
    clerk = Clerk(books)

    async def play() -> None:
        entry = clerk.enter((0, "q", 1, 100), 50)
        await asyncio.gather(clerk.fold(LONG_AGO + 100), clerk.secure(entry))
        assert (clerk.charged, clerk.reserved) == (45, 50)
        clerk.settle(entry, 7, {"tokens": 7})
        await clerk.written()

    asyncio.run(play())
    assert (books.charged, books.reserved, books.asked, len(books.entries)) == (52, 0, 11, 2)
    clerk.close()


def test_a_database_of_the_version_before_is_brought_to_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(database, "_CHANGES", database._CHANGES[:2])
        before.setattr(database, "VERSION", 3)
        base = database.Database(tmp_path / "b.db")
    base.run("INSERT INTO settings (text) VALUES ('{\"tiers\": []}')")
    base.run(
        "INSERT INTO budgets (name, tokens, charged, spent, period, carry, current) VALUES ('a', 9, 4, 4, 'once', 0, '')"
    )
    for charged, ended in ((4, None), (0, None), (None, None)):
        base.run(
            "INSERT INTO requests (budget, key, reserved, charged, settings, owner, began, ended) "
            "VALUES ('a', '[0]', 4, :charged, 1, 'x', 5.0, :ended)",
            charged=charged,
            ended=ended,
        )
    base.close()
    monkeypatch.setattr(bookkeeping, "NEWEST", 1)
    books = DatabaseLedger(tmp_path / "b.db", "a", 9, {"tiers": []})
    assert books.asked == 3
    assert books.fold(6.0) == 2
    assert (books.asked, books.charged, len(books.entries)) == (3, 8, 1), "what was in flight is charged in full"
    books.close()
