"""Budgets in a PostgreSQL database, for proxies on several machines: one budget, spent once.

Everything is as in :mod:`roi_env.answering.database` but for what is the database's own: a commit is on its disk when it
returns, and a process lives as long as its connection, which holds an advisory lock. One that lost its connection connects
again under another name: what it had in flight may then be charged in full by others; only what it takes beyond that is
charged besides.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from roi_env.answering.database import VERSION, Database
from roi_env.answering.ledger import JournalError

_SCHEMA_LOCK = 7_264_001
"""Advisory lock of whoever makes the tables."""


class Postgres(Database):
    """Budgets of a PostgreSQL database.

    :param url: ``postgresql://USER@HOST/NAME``; the password may also come from ``PGPASSWORD`` or the password file of libpq.
    :raises JournalError: where it cannot be reached or used.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise JournalError(f'{error}; PostgreSQL needs: pip install "roi-reasoning[postgres]"') from None
        self.errors = (psycopg.Error,)
        self.path = re.sub("//([^:@/]*):[^@/]*@", r"//\1:***@", url)
        self._url, self._owns = url, False
        self._connect()
        try:
            self._prepare()
        except psycopg.Error as error:
            self.connection.close()
            raise JournalError(f"{self.path}: it cannot be used as a database of budgets ({error})") from None

    def _connect(self) -> None:
        import psycopg

        self.owner = uuid.uuid4().hex
        try:
            self.connection = psycopg.connect(self._url, autocommit=True, connect_timeout=10)
        except psycopg.Error as error:
            raise JournalError(f"{self.path}: there is no connection ({str(error).strip()})") from None
        if self._owns:
            self._owns = False
            self.own()

    def _version(self) -> int:
        self.connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        self.connection.execute("CREATE TABLE IF NOT EXISTS roi_version (version BIGINT NOT NULL)")
        found = self.one("SELECT max(version) FROM roi_version")[0]
        return 0 if found is None else int(found)

    def _set_version(self) -> None:
        self.connection.execute("DELETE FROM roi_version")
        self.connection.execute("INSERT INTO roi_version VALUES (%s)", (VERSION,))

    @staticmethod
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

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Rows that a transaction changes are its own until it ends."""
        if self.connection.closed:
            self._connect()
        with self.connection.transaction():
            yield

    def one(self, statement: str, **values: Any) -> Any:
        """The first row; None: there is none."""
        if self.connection.closed:
            self._connect()
        return super().one(statement, **values)

    def all(self, statement: str, **values: Any) -> list[Any]:
        """All rows."""
        if self.connection.closed:
            self._connect()
        return super().all(statement, **values)

    @staticmethod
    def _number(owner: str) -> int:
        """The advisory lock of a process."""
        return int(owner[:15], 16)

    def own(self) -> None:
        """Say that this process lives, for as long as its connection."""
        if not self._owns:
            self.connection.execute("SELECT pg_advisory_lock(%s)", (self._number(self.owner),))
            self._owns = True

    @contextmanager
    def _dead(self, owner: str) -> Iterator[bool]:
        number = (self._number(owner),)
        (free,) = self.connection.execute("SELECT pg_try_advisory_lock(%s)", number).fetchone()
        try:
            yield free
        finally:
            if free:
                self.connection.execute("SELECT pg_advisory_unlock(%s)", number)

    def keep_log(self) -> None:
        """Nothing: commits are on the disk."""

    def sync(self) -> None:
        """Nothing: commits are on the disk."""

    def close(self) -> None:
        """Close the connection, and so release what shows that this process lives."""
        self.connection.close()
