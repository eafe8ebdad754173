"""Budgets in a PostgreSQL database, for proxies on several machines: one budget, spent once.

Everything is as in :mod:`roi_env.answering.database` but for what is the database's own: a commit is on its disk when it
returns, and a process lives as long as its connection, which holds an advisory lock, and :data:`GRACE` seconds longer. One
that lost its connection (or all, where the server restarts) connects again under another name and takes what it has in
flight with it. What others have charged in full meanwhile stays charged; only what it takes beyond that is charged besides.
A reservation of which nobody knows whether it was made before the connection broke was never sent, and is given back: also
one that the server makes later, when it comes to what it had been sent on the connection that was lost.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from roi_env.answering.database import SECONDS, VERSION, Database
from roi_env.answering.ledger import JournalError

GRACE = 15.0
"""Seconds that a process may take to connect again before others hold it dead."""
_SCHEMA_LOCK = 7_264_001
"""Advisory lock of whoever makes the tables."""
_SILENT = SECONDS + 2.0
"""Seconds after which a server that says nothing, not even that a statement took too long, is held lost."""
_PATIENCE: dict[str, Any] = {
    "connect_timeout": SECONDS,
    "keepalives_idle": SECONDS,
    "tcp_user_timeout": 1000 * SECONDS,
}


def shown(url: str) -> str:
    """An address without the passwords in it, whatever they hold."""
    return re.sub("([?&][^=&]*password=)[^&]*", r"\1***", re.sub("//([^:@/]*):.*@", r"//\1:***@", url))


@cache
def _patient_connection() -> Any:
    """psycopg's connection, which does not wait for ever: a server that hangs keeps it open and ends no statement."""
    import psycopg

    def within(waiting: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
        end = time.monotonic() + seconds
        try:
            wanted = next(waiting)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    raise JournalError(f"the server has said nothing for {seconds:g} s")
                wanted = waiting.send(ready)
        except StopIteration as done:
            return done.value

    class Patient(psycopg.Connection):  # type: ignore[misc]
        for_ever = False

        def wait(self, gen: Generator[Any, Any, Any], *how: Any, **options: Any) -> Any:
            try:
                return super().wait(gen if self.for_ever else within(gen, _SILENT), *how, **options)
            except JournalError:
                self.close()
                raise

    return Patient


class Postgres(Database):
    """Budgets of a PostgreSQL database.

    :param url: ``postgresql://USER@HOST/NAME``; the password may also come from ``PGPASSWORD`` or the password file of libpq.
    :raises JournalError: where it cannot be reached or used.
    """

    is_near = False

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise JournalError(f'{error}; PostgreSQL needs: pip install "roi-reasoning[postgres]"') from None
        self.errors = (psycopg.Error,)
        self.away = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
        self.path = shown(url)
        self._url, self.owner, self._owns = url, uuid.uuid4().hex, False
        self._earlier: list[str] = []
        """Names of this process whose connections are lost, and may still be at work on the server."""
        self._gone: dict[str, float] = {}
        """Processes without a connection, and when they were first seen so: none comes back under its name."""
        self._connect()
        try:
            self._prepare()
        except psycopg.Error as error:
            self.connection.close()
            raise JournalError(f"{self.path}: it cannot be used as a database of budgets ({error})") from None

    def again(self) -> Database:
        """See :meth:`roi_env.answering.database.Database.again`."""
        return Postgres(self._url)

    def _prepare(self) -> None:
        """See :meth:`roi_env.answering.database.Database._prepare`; an index over many requests takes its time."""
        if self._version() != VERSION:
            self.connection.execute("SET statement_timeout = 0")
            self.connection.for_ever = True
            super()._prepare()
            self.connection.for_ever = False
            self._limit()

    def _limit(self) -> None:
        self.connection.execute(f"SET statement_timeout = {1000 * SECONDS}")

    def _connect(self) -> None:
        import psycopg

        try:
            self.connection = _patient_connection().connect(self._url, autocommit=True, **_PATIENCE)
            # Whatever the database's own default is: under stricter levels one of two who spend at once would fail.
            self.connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED")
            self._limit()
        except psycopg.ProgrammingError:  # its text may hold a part of the password
            raise JournalError(
                f"{self.path}: this address cannot be read; it is postgresql://USER@HOST/NAME, and in its parts @ is written %40, "
                "/ %2F, : %3A, % %25"
            ) from None
        except psycopg.Error as error:
            raise JournalError(f"{self.path}: there is no connection ({str(error).strip()})") from None

    def _version(self) -> int:
        if self._inside:  # one makes the tables at a time
            self.connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        # to_regclass() would answer from what this connection remembers: no table, though another has just made it.
        if (
            self.one(
                "SELECT 1 FROM pg_tables WHERE tablename = 'roi_version' AND schemaname = ANY (current_schemas(false))"
            )
            is None
        ):
            return 0
        found = self.one("SELECT max(version) FROM roi_version")[0]
        return 0 if found is None else int(found)

    def _set_version(self) -> None:
        self.connection.execute("CREATE TABLE IF NOT EXISTS roi_version (version BIGINT NOT NULL)")
        self.connection.execute("DELETE FROM roi_version")
        self.connection.execute("INSERT INTO roi_version VALUES (%s)", (VERSION,))

    @staticmethod
    @cache
    def _spoken(statement: str) -> str:
        for ours, theirs in (
            (r"\bid INTEGER PRIMARY KEY", "id BIGSERIAL PRIMARY KEY"),
            (r"\bINTEGER\b", "BIGINT"),
            (r"\bREAL\b", "DOUBLE PRECISION"),
            (r"\) STRICT", ")"),
            (r"(?<!:):(\w+)", r"%(\1)s"),
        ):
            statement = re.sub(ours, theirs, statement)
        return statement

    @property
    def lost(self) -> bool:
        """Whether the connection is lost; the next statement makes another one."""
        return bool(self.connection.closed)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._reconnect()
        with self.connection.transaction():
            yield

    def one(self, statement: str, **values: Any) -> Any:
        """The first row; None: there is none."""
        if not self._inside:
            self._reconnect()
        return super().one(statement, **values)

    def all(self, statement: str, **values: Any) -> list[Any]:
        """All rows."""
        if not self._inside:
            self._reconnect()
        return super().all(statement, **values)

    def _reconnect(self) -> None:
        """Connect again where the connection is lost, under another name: the server may hold the old one's lock for a while."""
        if not self.lost:
            return
        self._connect()
        if self._owns:
            name = uuid.uuid4().hex
            self._hold(name)
            self._take_over(self.owner, name)
            self._earlier.append(self.owner)
            self.owner = name

    def _take_over(self, earlier: str, name: str) -> int:
        """Bring what this process has in flight under another name of it, and give back what it was never told of.

        :returns: how many requests stood under the earlier name.
        """
        with self.connection.transaction():
            found = self.all(
                "SELECT id, budget, reserved FROM requests WHERE charged IS NULL AND owner = :owner", owner=earlier
            )
            for number, budget, reserved in found:
                sent = number in self.in_flight
                done = self.run(
                    "UPDATE requests SET owner = :name, charged = :charged, ended = :ended "
                    "WHERE id = :id AND charged IS NULL",
                    name=name,
                    charged=None if sent else 0,
                    ended=None if sent else time.time(),
                    id=number,
                )
                if done and not sent:
                    self.run("UPDATE budgets SET reserved = reserved - :tokens WHERE name = :budget",
                             tokens=reserved, budget=budget)  # fmt: skip
        return len(found)

    def reap(self) -> None:
        """See :meth:`roi_env.answering.database.Database.reap`; what connections that were lost have made since is given back."""
        if not self._inside:
            self._reconnect()
        for earlier in list(self._earlier):
            with self._free(earlier) as ended:
                if self._take_over(earlier, self.owner) == 0 and ended:  # a transaction around this may yet fail
                    self._earlier.remove(earlier)
        super().reap()

    def own(self) -> None:
        """Say that this process lives, for as long as its connection."""
        if not self._owns:
            self._hold(self.owner)
            self._owns = True

    def _hold(self, name: str) -> None:
        self.connection.execute("SELECT pg_advisory_lock(%s)", (self._number(name),))

    @staticmethod
    def _number(owner: str) -> int:
        """The advisory lock of a process."""
        return int(owner[:15], 16)

    @contextmanager
    def _free(self, owner: str) -> Iterator[bool]:
        """Whether nobody holds a name, on the server's side of a connection either; nobody takes it meanwhile."""
        number = (self._number(owner),)
        (free,) = self.connection.execute("SELECT pg_try_advisory_lock(%s)", number).fetchone()
        try:
            yield free
        finally:
            if free:
                self.connection.execute("SELECT pg_advisory_unlock(%s)", number)

    @contextmanager
    def _dead(self, owner: str) -> Iterator[bool]:
        with self._free(owner) as free:
            now = time.monotonic()
            yield free and now - self._gone.setdefault(owner, now) >= GRACE

    def keep_log(self) -> None:
        """Nothing: commits are on the disk."""

    def sync(self) -> None:
        """Nothing: commits are on the disk."""

    def close(self) -> None:
        """Close the connection, and so release what shows that this process lives."""
        self.connection.close()
