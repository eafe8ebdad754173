"""Budgets in an SQLite database: what is in it survives a kill at any moment, and several processes may share it.

The double entry is that of :mod:`roi_env.answering.ledger`: a request is entered with its reservation before it is sent,
and settled with what it cost. A reservation is taken in one transaction that fails where the budget has no room for it, so
that two processes cannot spend the same tokens. One whose process has died is charged in full.

A reservation is on the disk (fsync of the write-ahead log) before its request is sent. A settlement is handed to the
operating system at once and is on the disk with the next reservation, so a power failure can lose the newest settlements,
and then charges their reservations.

Answers are not kept, unless they are asked for. Keys of clients never come here.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from roi_env.answering.ledger import Entry, JournalError, Ledger, NoRoom, Settings
from roi_env.sources.units import Unit, cost_with_unit

Period = Literal["once", "hour", "day", "month"]
"""After which a budget begins anew, by the clock of UTC; once: never."""
_FORMS: Mapping[str, str] = {"once": "", "hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
_VERSION = 2
_UNIT = "ALTER TABLE budgets ADD COLUMN unit TEXT NOT NULL DEFAULT 'tokens'"
"""Version 2: budgets of version 1 are tokens. What is called tokens is of the unit."""
_TEXTS = ("text", "reasoning", "note")
"""Facts that hold what was answered."""
_SCHEMA = """
CREATE TABLE budgets (
    name TEXT PRIMARY KEY,
    tokens INTEGER NOT NULL,              -- of every period
    added INTEGER NOT NULL DEFAULT 0,     -- top-ups, and what was carried over, of this period
    charged INTEGER NOT NULL DEFAULT 0,   -- in this period
    reserved INTEGER NOT NULL DEFAULT 0,
    spent INTEGER NOT NULL DEFAULT 0,     -- charged ever
    period TEXT NOT NULL,
    carry INTEGER NOT NULL,
    current TEXT NOT NULL,                -- the period that it is
    journal TEXT                          -- which was read in
) STRICT;
CREATE TABLE settings (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    budget TEXT NOT NULL REFERENCES budgets (name),
    key TEXT NOT NULL,                    -- what it was for, as JSON
    reserved INTEGER NOT NULL,
    charged INTEGER,                      -- NULL: in flight
    facts TEXT,                           -- NULL: nobody knows what became of it
    settings INTEGER NOT NULL REFERENCES settings (id),
    owner TEXT NOT NULL,                  -- the process
    began REAL NOT NULL,                  -- seconds of Unix time
    ended REAL
) STRICT;
CREATE INDEX in_flight ON requests (owner) WHERE charged IS NULL;
CREATE INDEX of_budget ON requests (budget, id);
"""


class Database:
    """A file of budgets, opened by this process.

    :param path: made where absent, for its owner alone.
    :raises JournalError: where it is no such file, of a newer version, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = uuid.uuid4().hex
        self._lock: Any = None
        # With its rights before anything is in it. One that is there is not opened: to close it would release the locks
        # that SQLite holds on it for this process.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            # One thread at a time uses it; servers make it in another one than they serve in.
            self.connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = NORMAL")
            self.connection.execute("PRAGMA foreign_keys = ON")
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{path}: it cannot be used as a database of budgets ({error})") from None

    def _prepare(self) -> None:
        with self.transaction():
            (version,) = self.one("PRAGMA user_version")
            if version > _VERSION:
                raise JournalError(f"{self.path} was written by a newer version ({version}, this one knows {_VERSION})")
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self.connection.execute(statement)
            if version < _VERSION:
                self.connection.execute(_UNIT)
                self.connection.execute(f"PRAGMA user_version = {_VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; others wait."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def one(self, statement: str, *values: Any) -> Any:
        """The first row; None: there is none."""
        return self.connection.execute(statement, values).fetchone()

    def all(self, statement: str, *values: Any) -> list[Any]:
        """All rows."""
        return self.connection.execute(statement, values).fetchall()

    def _place(self, owner: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{owner}.lock")

    def own(self) -> None:
        """Say that this process lives: what it reserves is its own until it ends."""
        if self._lock is None:
            self._lock = self._place(self.owner).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def reap(self) -> None:
        """Charge the reservations of processes that have died, in full."""
        for (owner,) in self.all(
            "SELECT DISTINCT owner FROM requests WHERE charged IS NULL AND owner != ?", self.owner
        ):
            place = self._place(owner)
            try:
                lock = place.open("r+b")
            except FileNotFoundError:
                self._bury(owner)
                continue
            with lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # it lives
                self._bury(owner)
                place.unlink(missing_ok=True)

    def _bury(self, owner: str) -> None:
        with self.transaction():
            for number, budget, reserved in self.all(
                "SELECT id, budget, reserved FROM requests WHERE charged IS NULL AND owner = ?", owner
            ):
                self.connection.execute(
                    "UPDATE requests SET charged = reserved, ended = ? WHERE id = ?", (time.time(), number)
                )
                self.connection.execute(
                    "UPDATE budgets SET charged = charged + ?1, spent = spent + ?1, reserved = reserved - ?1 WHERE name = ?2",
                    (reserved, budget),
                )

    def states(self) -> list[dict[str, Any]]:
        """How every budget stands, by name."""
        for (name,) in self.all("SELECT name FROM budgets"):
            self.roll(name)
        names = ("budget", "tokens", "added", "charged", "reserved", "spent", "period", "unit")
        rows = self.all("SELECT name, tokens, added, charged, reserved, spent, period, unit FROM budgets ORDER BY name")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def change(self, name: str, amount: int, *, add: bool, unit: Unit = "tokens") -> None:
        """Add to a budget for its present period (also less than nothing), or give it another amount for good.

        :raises JournalError: where there is no such budget, it counts another unit, or nothing would be left of it.
        """
        self.roll(name)
        with self.transaction():
            found = self.one("SELECT tokens, added, unit FROM budgets WHERE name = ?", name)
            if found is None:
                names = ", ".join(row[0] for row in self.all("SELECT name FROM budgets ORDER BY name")) or "none"
                raise JournalError(f"{self.path} has no budget {name!r}; there are {names}")
            if found[2] != unit:
                raise JournalError(_other_unit(name, found[2], unit))
            if (found[0] + found[1] + amount if add else amount) < 0:
                has, more = (cost_with_unit(one, unit) for one in (found[0] + found[1], amount))
                raise JournalError(f"the budget {name!r} has {has}: it cannot have {more} more")
            column = "added = added + ?" if add else "tokens = ?"
            self.connection.execute(f"UPDATE budgets SET {column} WHERE name = ?", (amount, name))

    def roll(self, name: str) -> None:
        """Begin a new period where it is time; what was overspent is a debt of the new one."""
        found = self.one("SELECT period, current FROM budgets WHERE name = ?", name)
        if found is None or (now := _now(found[0])) == found[1]:
            return
        with self.transaction():
            self.connection.execute(
                "UPDATE budgets SET current = ?1, added = CASE WHEN carry THEN max(0, tokens + added - charged) ELSE 0 END, "
                "charged = max(0, charged - tokens - added) WHERE name = ?2 AND current != ?1",
                (now, name),
            )

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        if self._lock is not None:
            self._place(self.owner).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


class DatabaseLedger:
    """One budget of a database, as :class:`roi_env.answering.ledger.Ledger` keeps it in a file.

    :param path: of the database; every ledger opens it for itself.
    :param name: of the budget; made where absent, otherwise it goes on with these tokens and settings.
    :param tokens: of every period (of whatever unit); top-ups come on top.
    :param journal: of an earlier version, read in once.
    :param answers: whether what was answered is kept.
    :param unit: what it counts; a budget of that name that counts another one is refused.
    """

    shared = True
    """Whether others may reserve and settle too."""

    def __init__(
        self,
        path: Path,
        name: str,
        tokens: int,
        settings: Settings,
        *,
        period: Period = "once",
        carry: bool = False,
        journal: Path | None = None,
        answers: bool = False,
        unit: Unit = "tokens",
    ) -> None:
        if period not in get_args(Period):
            raise JournalError(
                f"the period of budget {name!r} must be one of {', '.join(get_args(Period))}, got {period!r}"
            )
        self.name, self.settings, self.answers = name, settings, answers
        self.messages: list[str] = []
        self.lost = 0
        self.database = base = Database(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        try:
            base.own()
            base.reap()
            text = json.dumps(settings, sort_keys=True)
            with base.transaction():
                base.connection.execute("INSERT OR IGNORE INTO settings (text) VALUES (?)", (text,))
                (self._settings,) = base.one("SELECT id FROM settings WHERE text = ?", text)
            self.replan(tokens, period, carry, unit)
            if (
                journal is not None
                and journal.exists()
                and base.one("SELECT journal FROM budgets WHERE name = ?", name)[0] is None
            ):
                if unit != "tokens":
                    raise JournalError(f"{journal} is of tokens: " + _other_unit(name, "tokens", unit))
                self._read_in(journal)
            self._log = os.open(f"{path}-wal", os.O_RDONLY)
            folder = os.open(path.parent, os.O_RDONLY)  # that the files exist must survive a power failure too
            os.fsync(folder)
            os.close(folder)
        except BaseException as error:
            self._thread.shutdown()
            base.close()
            if isinstance(error, sqlite3.Error):
                raise JournalError(f"{path}: it cannot be used ({error})") from None
            raise

    def replan(self, tokens: int, period: Period, carry: bool, unit: Unit = "tokens") -> None:
        """Give the budget another amount, another period; what was charged stays charged.

        :raises JournalError: for another unit.
        """
        with self.database.transaction():
            found = self.database.one("SELECT unit FROM budgets WHERE name = ?", self.name)
            if found is not None and found[0] != unit:
                raise JournalError(_other_unit(self.name, found[0], unit))
            self.database.connection.execute(
                "INSERT INTO budgets (name, tokens, period, carry, current, unit) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO "
                "UPDATE SET tokens = excluded.tokens, carry = excluded.carry, period = excluded.period, "
                "current = CASE WHEN period = excluded.period THEN current ELSE excluded.current END",
                (self.name, tokens, period, carry, _now(period), unit),
            )

    def _read_in(self, journal: Path) -> None:
        """Take over a journal, whole or not at all; the file stays as it is."""
        old = Ledger(journal, self.settings, refuse=lambda old, new, records: None)
        try:
            with self.database.transaction():
                for entry in old.entries:
                    charged = entry.reserved if entry.charged is None else entry.charged
                    self._insert(entry.key, entry.reserved, charged, entry.facts)
                for note in old.notes:
                    if "skipped" in note:
                        self._insert(note["skipped"], 0, note["decision"], {"skipped": True})
                if old.lost:
                    self._insert(["lost in a damaged journal"], old.lost, old.lost, None)
                paid = old.charged + sum(note["decision"] for note in old.notes if "skipped" in note)
                self.database.connection.execute(
                    "UPDATE budgets SET charged = charged + ?1, spent = spent + ?1, journal = ?2 WHERE name = ?3",
                    (paid, journal.name, self.name),
                )
            self.messages += [
                *old.messages,
                f"{journal} was read into {self.database.path}: {paid:,} tokens are charged",
            ]
        finally:
            old.close()

    def _insert(self, key: Sequence[Any], reserved: int, charged: int | None, facts: Mapping[str, Any] | None) -> int:
        now = time.time()
        cursor = self.database.connection.execute(
            "INSERT INTO requests (budget, key, reserved, charged, facts, settings, owner, began, ended) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(
                    self.name,
                    json.dumps(key),
                    reserved,
                    charged,
                    self._kept(facts),
                    self._settings,
                    self.database.owner,
                    now,
                ),
                None if charged is None else now,
            ),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _kept(self, facts: Mapping[str, Any] | None) -> str | None:
        if facts is None:
            return None
        return json.dumps(facts if self.answers else {name: facts[name] for name in facts if name not in _TEXTS})

    def _column(self, name: str) -> int:
        self.database.roll(self.name)
        return int(self.database.one(f"SELECT {name} FROM budgets WHERE name = ?", self.name)[0])

    @property
    def limit(self) -> int:
        """Tokens of the present period, top-ups included."""
        return self._column("tokens + added")

    @property
    def charged(self) -> int:
        """Tokens charged in the present period, decisions included."""
        return self._column("charged")

    @property
    def reserved(self) -> int:
        """Tokens reserved by requests in flight, of all processes."""
        return self._column("reserved")

    @property
    def asked(self) -> int:
        """Questions decided so far."""
        return int(self.database.one("SELECT count(*) FROM requests WHERE budget = ?", self.name)[0])

    @property
    def entries(self) -> list[Entry]:
        """All requests that were sent, or may have been."""
        rows = self.database.all(
            "SELECT r.id, r.key, r.reserved, r.charged, r.facts, s.text FROM requests r JOIN settings s ON s.id = r.settings "
            "WHERE r.budget = ? ORDER BY r.id",
            self.name,
        )
        return [
            Entry(number, tuple(json.loads(key)), reserved, charged, facts and json.loads(facts), json.loads(settings))
            for number, key, reserved, charged, facts, settings in rows
            if facts is None or '"skipped"' not in facts
        ]

    @property
    def unknown(self) -> list[Entry]:
        """Requests that were in flight when their process died."""
        return [entry for entry in self.entries if entry.charged is not None and entry.facts is None]

    @property
    def notes(self) -> list[dict[str, Any]]:
        """None: decisions are charged like requests."""
        return []

    def enter(self, key: tuple[Any, ...], tokens: int) -> Entry:
        """Reserve tokens for a request, which may not be sent before :meth:`on_disk`.

        :raises NoRoom: where the budget has not so many left.
        """
        self.database.roll(self.name)
        with self.database.transaction():
            taken = self.database.connection.execute(
                "UPDATE budgets SET reserved = reserved + ?1 WHERE name = ?2 AND charged + reserved + ?1 <= tokens + added",
                (tokens, self.name),
            )
            if not taken.rowcount:
                raise NoRoom
            number = self._insert(key, tokens, None, None)
        return Entry(number, key, tokens, settings=self.settings)

    async def on_disk(self) -> None:
        """Wait until all reservations are on the disk."""
        await asyncio.shield(asyncio.wrap_future(self._thread.submit(os.fsync, self._log)))

    def settle(self, entry: Entry, tokens: int, facts: Mapping[str, Any]) -> None:
        """Enter what a request cost, once; a kill does not lose it when this returns."""
        if entry.charged is not None:
            raise ValueError(f"request {entry.number} was settled already")
        entry.charged, entry.facts = tokens, facts
        with self.database.transaction():
            done = self.database.connection.execute(
                "UPDATE requests SET charged = ?, facts = ?, ended = ? WHERE id = ? AND charged IS NULL",
                (tokens, self._kept(facts), time.time(), entry.number),
            )
            if done.rowcount:
                self.database.connection.execute(
                    "UPDATE budgets SET charged = charged + ?1, spent = spent + ?1, reserved = reserved - ?2 WHERE name = ?3",
                    (tokens, entry.reserved, self.name),
                )

    def note(self, record: Mapping[str, Any]) -> None:
        """Charge a decision to skip a question."""
        with self.database.transaction():
            self._insert(record["skipped"], 0, record["decision"], {"skipped": True})
            self.database.connection.execute(
                "UPDATE budgets SET charged = charged + ?1, spent = spent + ?1 WHERE name = ?2",
                (record["decision"], self.name),
            )

    def reap(self) -> None:
        """Charge what other processes had in flight when they died."""
        self.database.reap()

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        self._thread.submit(os.fsync, self._log).result()
        self._thread.shutdown()
        os.close(self._log)
        self.database.close()


def _other_unit(name: str, was: str, now: str) -> str:
    return f"the budget {name!r} counts {was}, not {now}: give one in {now} another name"


def _now(period: str) -> str:
    """The present period's name."""
    return datetime.now(UTC).strftime(_FORMS[period])
