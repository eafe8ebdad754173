"""Budgets in a database: nothing is charged twice, nothing completed is lost, whatever is killed and whoever else spends."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from roi_env.answering import database
from roi_env.answering.books import DatabaseLedger
from roi_env.answering.clerk import Clerk
from roi_env.answering.database import Database, Period
from roi_env.answering.ledger import BooksAway, Entry, JournalError, Ledger, NoRoom
from tests.processes import child
from tests.roi_env.answering.booking import reserve

FACTS = {"text": "what was answered", "reasoning": "hm", "tokens": 7, "finish": "stop", "counted": "server", "cap": 10}


def books(path: Path, tokens: int = 100, name: str = "a", **options: Any) -> DatabaseLedger:
    return DatabaseLedger(path / "b.db", name, tokens, {"tiers": []}, **options)


def consistent(path: Path, name: str = "a") -> tuple[int, int]:
    """(charged ever, reserved) of a budget, whose sums must be those of its requests."""
    with closing(sqlite3.connect(path / "b.db")) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        sums = base.execute(
            "SELECT coalesce(sum(charged), 0), coalesce(sum(reserved) FILTER (WHERE charged IS NULL), 0) FROM requests "
            "WHERE budget = ?",
            (name,),
        ).fetchone()
        assert base.execute("SELECT spent, reserved FROM budgets WHERE name = ?", (name,)).fetchone() == sums
        return int(sums[0]), int(sums[1])


def test_a_budget_is_reserved_settled_and_goes_on(tmp_path: Path) -> None:
    ledger = books(tmp_path)
    entry = ledger.enter((0, "q", 1, 100), 60)
    ledger.database.sync()
    with pytest.raises(NoRoom):
        ledger.enter((1, "q", 1, 40), 41)
    assert (ledger.charged, ledger.reserved, ledger.limit) == (0, 60, 100)
    ledger.settle(entry, 7, FACTS)
    with pytest.raises(ValueError, match="already"):
        ledger.settle(entry, 7, FACTS)
    ledger.skip((1, "q", 0, 93), 2)
    assert (ledger.charged, ledger.reserved, ledger.asked) == (9, 0, 2)
    ledger.close()
    again = books(tmp_path, 50)
    assert (again.charged, again.limit, again.asked, len(again.entries)) == (9, 50, 2, 1)
    assert again.entries[0].key == (0, "q", 1, 100)
    again.close()
    assert consistent(tmp_path) == (9, 0)
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"what was answered" not in written
    kept = books(tmp_path, answers=True)
    kept.settle(kept.enter((2, "q", 1, 41), 10), 7, FACTS)
    assert (kept.entries[-1].facts or {})["text"] == "what was answered"
    kept.close()


def test_a_second_opening_does_not_let_others_think_that_nobody_is_there(tmp_path: Path) -> None:
    ledger = books(tmp_path)
    second = books(tmp_path, name="b")
    code = "import sys; from pathlib import Path; from roi_env.answering.database import Database; Database(Path(sys.argv[1])).close()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.db")], check=True)  # the last one removes the log
    third = books(tmp_path, name="c")
    for one in (ledger, second, third):
        one.settle(one.enter((0, "q", 1, 100), 10), 7, FACTS)
        assert one.charged == 7
        one.close()
    for name in "abc":
        assert consistent(tmp_path, name) == (7, 0)


def test_what_a_dead_process_had_in_flight_is_charged_and_a_living_ones_is_not(tmp_path: Path) -> None:
    living = books(tmp_path)
    living.enter((0, "q", 1, 100), 10)
    code = (
        "import os, sys; from pathlib import Path; from roi_env.answering.books import DatabaseLedger\n"
        "DatabaseLedger(Path(sys.argv[1]), 'a', 100, {'tiers': []}).enter((1, 'q', 1, 90), 30); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.db")], check=False)
    assert (living.charged, living.reserved) == (0, 40)
    living.database.reap()
    assert (living.charged, living.reserved) == (30, 10)
    assert [entry.reserved for entry in living.unknown] == [30]
    other = books(tmp_path)
    assert other.reserved == 10
    other.close()
    living.close()


SPENDER = """
import random, sys
from pathlib import Path
from roi_env.answering.books import DatabaseLedger
from roi_env.answering.ledger import NoRoom
ledger = DatabaseLedger(Path(sys.argv[1]), "a", int(sys.argv[2]), {"tiers": []})
rng, held = random.Random(int(sys.argv[3])), []
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        held.append(ledger.enter((0, "q", 1, 0), rng.randrange(1, 30)))
    except NoRoom:
        if not held:
            break
    if held and (len(held) > 4 or rng.random() < 0.5):
        entry = held.pop(rng.randrange(len(held)))
        ledger.settle(entry, rng.randrange(entry.reserved + 1) or 1, {"tokens": 1})
        print(entry.number, entry.charged, flush=True)
ledger.close()
"""


@contextmanager
def spender(path: Path, tokens: int, seed: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SPENDER, str(path / "b.db"), str(tokens), str(seed)]
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_share_a_budget_spend_it_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        spenders = [stack.enter_context(spender(tmp_path, 4000, seed)) for seed in range(3)]
        for one in spenders:
            begin(one)
        told = [one.communicate()[0].split() for one in spenders]
    assert all(one.returncode == 0 for one in spenders)
    charged, reserved = consistent(tmp_path)
    assert charged == sum(int(number) for lines in told for number in lines[1::2])
    assert reserved == 0
    assert 3900 < charged <= 4000
    assert sum(1 for lines in told if lines) > 1, "several had a share"


def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    told: dict[int, int] = {}
    kills = 6  # benchmarks/kill_proxy.py kills the proxy a hundred times
    for seed in range(kills):
        with spender(tmp_path, 10**9, seed) as process:
            begin(process)
            time.sleep(rng.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            lines = process.communicate()[0].rpartition("\n")[0].split()
        for number, charge in zip(map(int, lines[::2]), map(int, lines[1::2]), strict=True):
            assert number not in told
            told[number] = charge
    ledger = books(tmp_path, 10**9)
    found = {entry.number: entry for entry in ledger.entries}
    assert told
    for number, charge in told.items():
        assert found[number].charged == charge, "what was completed is charged as it cost"
    assert all(entry.charged == entry.reserved for number, entry in found.items() if entry.facts is None)
    ledger.close()
    assert consistent(tmp_path)[1] == 0


def test_a_journal_of_an_earlier_version_is_read_in_once(tmp_path: Path) -> None:
    journal = tmp_path / "a.jsonl"
    old = Ledger(journal, {"budget": 100, "tiers": [["now", 0, 10, None]]})
    old.settle(asyncio.run(reserve(old, (0, "request-0", 1, 100), 10)), 7, FACTS)
    old.note({"skipped": (1, "request-1", 0, 93), "decision": 1})
    asyncio.run(reserve(old, (2, "request-2", 1, 92), 20))
    old.close()
    before = journal.read_bytes()
    for _ in range(2):
        ledger = books(tmp_path, journal=journal)
        assert (ledger.charged, ledger.reserved, ledger.asked) == (28, 0, 3)
        assert [entry.key[1] for entry in ledger.entries] == ["request-0", "request-2"]
        ledger.close()
    assert consistent(tmp_path) == (28, 0)
    assert journal.read_bytes().startswith(before), "nothing recorded is lost"


def set_clock(monkeypatch: pytest.MonkeyPatch, now: Callable[[], datetime]) -> None:
    """The database's clock says what a function says."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return now()

    monkeypatch.setattr(database, "datetime", Clock)


@pytest.mark.parametrize(
    ("carry", "charge", "left"), [(False, 30, 100), (True, 30, 170), (False, 120, 80), (True, 120, 80)]
)
def test_a_new_period_begins_anew(
    carry: bool, charge: int, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)

    set_clock(monkeypatch, lambda: now)
    ledger = books(tmp_path, period="day", carry=carry)
    waiting = ledger.enter((1, "q", 1, 0), 1)
    ledger.settle(ledger.enter((0, "q", 1, 100), 40), charge, FACTS)
    ledger.settle(waiting, 0, FACTS)
    assert ledger.limit - ledger.charged == 100 - charge
    now = datetime(2026, 2, 1, 0, 0, tzinfo=UTC)
    assert ledger.limit - ledger.charged == left
    assert consistent(tmp_path) == (charge, 0), "what was charged ever stays"
    ledger.close()


@pytest.mark.parametrize(("carry", "charge", "left"), [(False, 30, 100), (True, 30, 370), (False, 320, 80), (True, 320, 80), (True, 120, 280), (False, 120, 100)])  # fmt: skip
@pytest.mark.parametrize(
    ("period", "later"), [("hour", (2026, 2, 1, 2)), ("day", (2026, 2, 3, 0)), ("month", (2026, 4, 30, 23))]
)
def test_periods_count_whether_or_not_somebody_looks(
    period: Period,
    later: tuple[int, ...],
    carry: bool,
    charge: int,
    left: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)
    set_clock(monkeypatch, lambda: now)
    ledgers = [books(tmp_path, name=name, period=period, carry=carry) for name in ("seen", "unseen")]
    for ledger in ledgers:
        ledger.settle(ledger.enter((0, "q", 1, 100), 40), charge, FACTS)
    while now < (end := datetime(*later, tzinfo=UTC)):
        now = min(end, now + timedelta(hours=1))
        assert ledgers[0].limit > 0
    assert [ledger.limit - ledger.charged for ledger in ledgers] == [left, left]
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize(
    ("period", "now", "end"),
    [
        ("hour", (2026, 12, 31, 23, 59), (2027, 1, 1)),
        ("day", (2028, 2, 28), (2028, 2, 29)),
        ("month", (2026, 1, 31, 5), (2026, 2, 1)),
        ("month", (2026, 12, 1), (2027, 1, 1)),
    ],
)
def test_when_a_period_ends(
    period: str, now: tuple[int, ...], end: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, lambda: datetime(*now, tzinfo=UTC))
    assert database.period_end(period) == datetime(*end, tzinfo=UTC)
    assert database.period_end("once") is None


def test_a_clock_that_is_put_back_begins_no_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = before = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)
    after = datetime(2026, 2, 1, 0, 0, tzinfo=UTC)

    set_clock(monkeypatch, lambda: now)
    ledger = books(tmp_path, period="month")
    for moment in (after, before, after, before, after):  # as two machines whose clocks differ would ask
        now = moment
        ledger.settle(ledger.enter((0, "q", 1, 100), 20), 20, FACTS)
    assert ledger.limit - ledger.charged == 0
    ledger.close()
    now = before
    again = books(tmp_path, period="month")
    assert again.messages == [
        "the budget 'a' stands in the month 2026-02, and by this machine's clock it is 2026-01: it begins anew after 2026-02"
    ]
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert again.limit - again.charged == 100
    again.close()


@pytest.mark.parametrize("took", [5, 30, 60])
def test_what_a_process_takes_after_others_held_it_dead_is_charged(took: int, tmp_path: Path) -> None:
    ledger, other = books(tmp_path), books(tmp_path)
    entry = ledger.enter((0, "q", 1, 100), 20)
    (tmp_path / f"b.db.{ledger.database.owner}.lock").unlink()  # as where a folder is cleaned, or a connection was lost
    other.database.reap()
    assert (ledger.charged, ledger.reserved) == (20, 0)
    with pytest.raises(NoRoom):  # its stream is stopped
        ledger.resize(entry, 40)
    assert (entry.reserved, ledger.reserved) == (20, 0)
    ledger.settle(entry, took, FACTS)
    assert ledger.charged == entry.charged == max(20, took)
    assert consistent(tmp_path) == (max(20, took), 0)
    ledger.close()
    other.close()


def test_a_link_to_a_database_is_the_database(tmp_path: Path) -> None:
    ledger = books(tmp_path)
    ledger.enter((0, "q", 1, 100), 20)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.db").symlink_to(tmp_path / "b.db")
    other = books(tmp_path / "elsewhere")
    assert (other.charged, other.reserved) == (0, 20), "the other lives"
    other.settle(other.enter((1, "q", 1, 80), 80), 7, FACTS)
    assert ledger.charged == 7
    other.close()
    ledger.close()


@pytest.mark.parametrize("carry", [False, True])
def test_the_largest_budget_outlives_all_periods(carry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most = datetime(2026, 1, 1, tzinfo=UTC), 10**18 - 1
    set_clock(monkeypatch, lambda: now)
    ledger = books(tmp_path, tokens=most, period="hour", carry=carry)
    for later in (timedelta(hours=30), *[timedelta(hours=1)] * 10, timedelta(days=4000)):
        now += later
        ledger.settle(ledger.enter((0, "q", 1, 100), 40), 30, FACTS)
        assert most <= ledger.limit <= database.MOST + most
        assert carry == (ledger.limit > most)
        assert ledger.charged == 30
    with closing(Database(tmp_path / "b.db")) as other:
        other.change("a", database.MOST - ledger.limit, add=True)
        with pytest.raises(JournalError, match="cannot have"):
            other.change("a", 1, add=True)
        assert other.states()[0]["spent"] == 12 * 30
    ledger.close()


def test_budgets_change_while_others_use_them(tmp_path: Path) -> None:
    ledger = books(tmp_path)
    with closing(Database(tmp_path / "b.db")) as other:
        other.change("a", 50, add=True)
        assert ledger.limit == 150
        other.change("a", 10, add=False)
        assert ledger.limit == 60
        with pytest.raises(JournalError, match="no budget 'b'; there are a"):
            other.change("b", 1, add=True)
        with pytest.raises(JournalError, match="cannot have"):
            other.change("a", -61, add=True)
        assert other.states()[0]["added"] == 50
    ledger.close()


def test_a_database_that_another_holds_can_be_read(tmp_path: Path) -> None:
    books(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "b.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with closing(Database(tmp_path / "b.db")) as other:
            assert [one["budget"] for one in other.states()] == ["a"]


def test_who_gives_a_budget_another_amount_by_starting_hears_of_it(tmp_path: Path) -> None:
    first = books(tmp_path, 50_000)
    assert first.messages == []
    with closing(Database(tmp_path / "b.db")) as other:
        other.change("a", 300_000, add=False)
    second = books(tmp_path, 50_000, period="day")
    (said,) = second.messages
    assert "'a' had 300,000 tokens (once); it has 50,000 tokens (day) from now on" in said
    again = books(tmp_path, 50_000, period="day")
    assert again.messages == []
    for one in (first, second, again):
        one.close()


@pytest.mark.parametrize("content", [b"not a database" * 100, b'{"budget": 5}\n'])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.db").write_bytes(content)
    with pytest.raises(JournalError, match=r"b\.db"):
        books(tmp_path)
    assert (tmp_path / "b.db").read_bytes() == content


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    books(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "b.db")) as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match="newer version"):
        books(tmp_path)


def test_an_event_loop_goes_on_while_another_process_holds_the_database(tmp_path: Path) -> None:
    said: list[str] = []
    clerk = Clerk(books(tmp_path), said.append)
    with closing(sqlite3.connect(tmp_path / "b.db", isolation_level=None)) as other:

        async def play() -> None:
            first = await reserve(clerk, (0, "q", 1, 100), 10)
            other.execute("BEGIN IMMEDIATE")
            asked = asyncio.create_task(reserve(clerk, (1, "q", 1, 90), 20))
            await asyncio.sleep(0)
            clerk.settle(first, 7, FACTS)
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert not asked.done()
            assert (clerk.charged, clerk.reserved) == (7, 20), "what was handed in counts"
            other.execute("COMMIT")
            entry = await asked
            await clerk.written()
            clerk.settle(entry, 5, FACTS)
            await clerk.written()

        asyncio.run(play())
    assert (clerk.charged, clerk.reserved, said) == (12, 0, [])
    clerk.close()
    assert consistent(tmp_path) == (12, 0)


@pytest.mark.parametrize("address", ["budgets.db", "mysql://x@y/z", "host=/tmp password=hunter2"])
def test_an_address_of_another_database_is_named(address: str) -> None:
    with pytest.raises(JournalError, match="must be one of PostgreSQL, postgresql://USER@HOST/NAME, and") as caught:
        DatabaseLedger(address, "a", 5, {})
    assert "hunter2" not in str(caught.value)


def test_a_larger_reservation_waits_for_no_disk_and_is_there_soon_unless_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[float] = []
    failing = threading.Event()
    sync = Database.sync

    def watched(base: Database) -> None:
        time.sleep(0.05)
        if failing.is_set():
            raise OSError("no space left on device")
        sync(base)
        synced.append(time.monotonic())

    async def run() -> None:
        clerk = Clerk(books(tmp_path, 1000))
        entry = clerk.enter((0, "q", 1, 100), 10)
        await clerk.secure(entry)
        monkeypatch.setattr(Database, "sync", watched)
        for tokens in range(20, 120, 10):
            await clerk.resize(entry, tokens)
        assert (clerk.reserved, synced) == (110, []), "ten of them, none waited for the disk"
        await asyncio.sleep(1)
        assert len(synced) == 1, "all share one fsync"
        await clerk.resize(entry, 50)
        await asyncio.sleep(0.5)
        assert len(synced) == 1, "what is given back needs none"
        failing.set()
        await clerk.resize(entry, 60)
        await asyncio.sleep(0.5)
        with pytest.raises(BooksAway):
            await clerk.resize(entry, 70)
        failing.clear()
        await clerk.resize(entry, 80)
        assert len(synced) == 2, "it waits, until the disk is there again"
        await clerk.resize(entry, 90)
        assert len(synced) == 2
        clerk.settle(entry, 7, FACTS)
        await clerk.written()
        clerk.close()
        await asyncio.sleep(0.3)

    asyncio.run(run())
    assert consistent(tmp_path) == (7, 0)


def test_nobody_waits_for_who_looks_at_the_books(tmp_path: Path) -> None:
    async def work() -> None:
        clerk = Clerk(books(tmp_path, 1000))
        looking, seen = threading.Event(), threading.Event()

        def read(found: DatabaseLedger) -> tuple[int, list[Entry]]:
            before = found.standing().charged
            looking.set()
            assert seen.wait(60)
            return before, found.entries

        look = asyncio.create_task(clerk.look(read))
        await asyncio.to_thread(looking.wait, 60)
        entry = await reserve(clerk, (0, "q", 1, 100), 10)
        clerk.settle(entry, 7, FACTS)
        await clerk.written()
        assert clerk.charged == 7
        seen.set()
        before, (one,) = await look
        assert (before, one.charged) == (0, 7)
        clerk.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_files_of_processes_that_were_killed_while_idle_are_deleted_by_the_next(tmp_path: Path) -> None:
    lives = books(tmp_path)
    earlier = [tmp_path / f"b.db.{name}.lock" for name in ("killed", "just-begun")]
    for place in (*earlier, lives.database._place(lives.database.owner)):
        place.touch()
        os.utime(place, (1, time.time() if place == earlier[1] else 1))
    books(tmp_path, name="b").close()
    assert {*tmp_path.glob("*.lock")} == {earlier[1], lives.database._place(lives.database.owner)}
    lives.close()
