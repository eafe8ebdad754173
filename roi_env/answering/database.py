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

import fcntl
import glob
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from roi_env.answering.ledger import JournalError
from roi_env.sources.units import UNIT_NAMES, Unit, cost_with_unit

Period = Literal["once", "hour", "day", "month"]
"""After which a budget begins anew, by the clock of UTC; once: never."""
_FORMS: Mapping[str, str] = {"once": "", "hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
_LONGEST: Mapping[str, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1), "month": timedelta(days=31)}
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
_CHANGES = (
    "ALTER TABLE budgets ADD COLUMN unit TEXT NOT NULL DEFAULT 'tokens'",  # what is called tokens is of the unit
    "ALTER TABLE budgets ADD COLUMN warned TEXT NOT NULL DEFAULT ''",  # for which period and amount
    "ALTER TABLE budgets ADD COLUMN folded INTEGER NOT NULL DEFAULT 0",  # requests that are kept no longer
    "UPDATE requests SET ended = began WHERE charged IS NOT NULL AND ended IS NULL",
    "CREATE INDEX by_end ON requests (budget, ended, charged) WHERE ended IS NOT NULL",
)
"""From version 1 to each later one."""
VERSION = 1 + len(_CHANGES)


MOST = 2**62
"""Of a budget, with all that is added: sums of it stay below the largest integer that databases hold."""
_YOUNG = 60.0
"""Seconds for which a file is left alone that nobody locks."""
SECONDS = 10
"""That a connection, or a statement, may take: whoever waits for more is told that the database is away."""


class Database:
    """Budgets in a place that this process has opened: an SQLite file; see :mod:`roi_env.answering.postgres` for others.

    Statements have named parameters (``:name``) and mean the same to SQLite and PostgreSQL.

    :param path: made where absent, for its owner alone.
    :raises JournalError: where it is no such file, of a newer version, or damaged.
    """

    errors: tuple[type[Exception], ...] = (sqlite3.Error,)
    """What statements may raise."""
    away: tuple[type[Exception], ...] = (sqlite3.OperationalError,)
    """Those of them for which the database is to blame, not the statement."""
    is_near = True
    """Whether a statement takes no longer than a thread takes to begin."""
    in_flight: frozenset[int] = frozenset()
    """Requests that this process has entered and not settled."""
    _inside = False
    _waits = True

    def __init__(self, path: Path) -> None:
        # A link's own folder would show no locks to those who open the file itself.
        self.path: Path | str = (path := path.resolve() if path.is_symlink() else path)
        self.owner = uuid.uuid4().hex
        self._lock: Any = None
        self._log: int | None = None
        # With its rights before anything is in it. One that is there is not opened: to close it would release the locks
        # that SQLite holds on it for this process.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            # One thread at a time uses it; servers make it in another one than they serve in.
            self.connection: Any = sqlite3.connect(path, timeout=SECONDS, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                self.connection.execute(f"PRAGMA {pragma}")
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{path}: it cannot be used as a database of budgets ({error})") from None

    def _prepare(self) -> None:
        """Make the tables, or bring them to this version; where they are of it nothing is written, and nobody waited for."""
        if self._version() == VERSION:
            return
        with self.transaction():
            version = self._version()
            if version > VERSION:
                raise JournalError(f"{self.path} was written by a newer version ({version}, this one knows {VERSION})")
            statements = [] if version else [one for one in _SCHEMA.split(";") if one.strip()]
            for statement in (*statements, *_CHANGES[max(version, 1) - 1 :]):
                self.connection.execute(self._spoken(statement))
            self._set_version()

    def _version(self) -> int:
        return int(self.one("PRAGMA user_version")[0])

    def _set_version(self) -> None:
        self.connection.execute(f"PRAGMA user_version = {VERSION}")

    @staticmethod
    def _spoken(statement: str) -> str:
        """A statement as this database reads it."""
        return statement

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; others wait. One inside another is part of it."""
        if self._inside:
            yield
            return
        self._inside, before = True, self.in_flight
        try:
            with self._transaction():
                yield
        except BaseException:
            self.in_flight = before
            raise
        finally:
            self._inside = False

    def again(self) -> Database:
        """The same place, opened once more."""
        return Database(Path(self.path))

    def wait_for_others(self, wait: bool) -> None:
        """Whether statements wait where another process holds the database, or fail at once; at first they wait."""
        if wait != self._waits:
            self.connection.execute(f"PRAGMA busy_timeout = {1000 * SECONDS if wait else 0}")
            self._waits = wait

    @property
    def lost(self) -> bool:
        """Whether the connection is lost; the next statement makes another one."""
        return False

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def run(self, statement: str, **values: Any) -> int:
        """Execute; gives the number of rows that it changed."""
        return int(self.connection.execute(self._spoken(statement), values).rowcount)

    def one(self, statement: str, **values: Any) -> Any:
        """The first row; None: there is none."""
        return self.connection.execute(self._spoken(statement), values).fetchone()

    def all(self, statement: str, **values: Any) -> list[Any]:
        """All rows."""
        return list(self.connection.execute(self._spoken(statement), values).fetchall())

    def _place(self, owner: str) -> Path:
        path = Path(self.path)
        return path.with_name(f"{path.name}.{owner}.lock")

    def own(self) -> None:
        """Say that this process lives: what it reserves is its own until it ends."""
        if self._lock is None:
            self._forget_others()
            self._lock = self._place(self.owner).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _forget_others(self) -> None:
        """Delete the files of processes that were killed with nothing in flight: :meth:`reap` does not come to these."""
        name = Path(self.path).name
        for place in Path(self.path).parent.glob(f"{glob.escape(name)}.*.lock"):
            with suppress(FileNotFoundError):
                if time.time() - place.stat().st_mtime < _YOUNG:  # its process may be about to lock it
                    continue
                with self._dead(place.name.removeprefix(f"{name}.").removesuffix(".lock")):
                    pass

    def reap(self) -> None:
        """Charge the reservations of processes that have died, in full."""
        owners = self.all("SELECT DISTINCT owner FROM requests WHERE charged IS NULL AND owner != :me", me=self.owner)
        for (owner,) in owners:
            with self._dead(owner) as dead:
                if dead:
                    self._bury(owner)

    @contextmanager
    def _dead(self, owner: str) -> Iterator[bool]:
        """Whether a process has died; nobody else says so meanwhile."""
        place = self._place(owner)
        try:
            lock = place.open("r+b")
        except FileNotFoundError:
            yield True
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
            place.unlink(missing_ok=True)

    def _bury(self, owner: str) -> None:
        with self.transaction():
            for number, budget, reserved in self.all(
                "SELECT id, budget, reserved FROM requests WHERE charged IS NULL AND owner = :owner", owner=owner
            ):
                done = self.run(
                    "UPDATE requests SET charged = reserved, ended = :now "
                    "WHERE id = :id AND owner = :owner AND charged IS NULL",
                    now=time.time(),
                    id=number,
                    owner=owner,
                )
                if done:
                    self.run(
                        "UPDATE budgets SET charged = charged + :tokens, spent = spent + :tokens, "
                        "reserved = reserved - :tokens WHERE name = :name",
                        tokens=reserved,
                        name=budget,
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
            found = self.one("SELECT tokens, added, unit FROM budgets WHERE name = :name", name=name)
            if found is None:
                names = ", ".join(row[0] for row in self.all("SELECT name FROM budgets ORDER BY name")) or "none"
                raise JournalError(f"{self.path} has no budget {name!r}; there are {names}")
            if found[2] != unit:
                like = "50k" if found[2] == "tokens" else "2.50usd"
                raise JournalError(
                    f"the budget {name!r} is {UNIT_NAMES[found[2]]}, the amount {UNIT_NAMES[unit]}: write one like {like}"
                )
            has, more = (cost_with_unit(one, unit) for one in (found[0] + found[1], amount))
            if not 0 <= (found[0] + found[1] + amount if add else amount) <= MOST:
                raise JournalError(f"the budget {name!r} has {has}: it cannot have {more} more")
            column = "added = added + :amount" if add else "tokens = :amount"
            self.run(f"UPDATE budgets SET {column} WHERE name = :name", amount=amount, name=name)

    def roll(self, name: str) -> None:
        """Begin a new period where it is time; what was overspent is a debt of the new one.

        Periods in which nobody looked were periods all the same: each pays of a debt, or is carried over, up to :data:`MOST`.
        A clock that was put back, or another machine's that is slower, begins none: what was charged would be forgotten.
        """
        found = self.one("SELECT period, current, tokens, added FROM budgets WHERE name = :name", name=name)
        if found is None or (now := period_now(found[0])) <= found[1]:
            return
        # What is carried over has an end: numbers that no database holds would close the budget for good.
        periods = min(_number(found[0], now) - _number(*found[:2]), max(0, MOST - found[3]) // max(found[2], 1))
        with self.transaction():
            self.run(
                "UPDATE budgets SET current = :now, "
                "added = CASE WHEN carry != 0 AND tokens * :periods + added > charged "
                "THEN tokens * :periods + added - charged ELSE 0 END, "
                "charged = CASE WHEN charged > tokens * :periods + added THEN charged - tokens * :periods - added ELSE 0 END "
                "WHERE name = :name AND current = :current",
                now=now,
                periods=periods,
                current=found[1],
                name=name,
            )

    def ahead(self, name: str) -> str | None:
        """What a user should know of a budget whose period lies in the future by this machine's clock."""
        period, current = self.one("SELECT period, current FROM budgets WHERE name = :name", name=name)
        if (now := period_now(period)) >= current:
            return None
        return (
            f"the budget {name!r} stands in the {period} {current}, and by this machine's clock it is {now}: it begins anew "
            f"after {current}"
        )

    def keep_log(self) -> None:
        """Be ready for :meth:`sync`."""
        self._log = os.open(f"{self.path}-wal", os.O_RDONLY)
        folder = os.open(Path(self.path).parent, os.O_RDONLY)  # that the files exist must survive a power failure too
        os.fsync(folder)
        os.close(folder)

    def sync(self) -> None:
        """Everything is on the disk when this returns."""
        assert self._log is not None
        os.fsync(self._log)

    def close(self) -> None:
        """Close it."""
        if self._log is not None:
            os.close(self._log)
        self.connection.close()
        if self._lock is not None:
            self._place(self.owner).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def other_unit(name: str, was: str, now: str) -> str:
    """Why a budget cannot count this."""
    return f"the budget {name!r} counts {was}, not {now}: give one in {now} another name"


def period_now(period: str) -> str:
    """The present period's name."""
    form = _FORMS[period]
    return datetime.now(UTC).strftime(form) if form else ""


def period_end(period: str) -> datetime | None:
    """When the present period ends; None: never."""
    if not (form := _FORMS[period]):
        return None
    begun = datetime.strptime(datetime.now(UTC).strftime(form), form).replace(tzinfo=UTC)
    return (begun + _LONGEST[period]).replace(day=1) if period == "month" else begun + _LONGEST[period]


def _number(period: str, name: str) -> int:
    """A place of a period among all of its kind."""
    begun = datetime.strptime(name, _FORMS[period])
    if period == "month":
        return 12 * begun.year + begun.month
    return (begun - datetime.min) // _LONGEST[period]
