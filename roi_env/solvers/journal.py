"""Append-only files: what is in them survives a kill at any moment.

:class:`LineFile` is the file, :class:`Ledger` the double entry on it: a request is entered with its reservation before
it is sent and settled with what it cost. A reservation that was never settled (the process was killed in between) stays
charged in full and unknown.

A reservation is on the disk (fsync) before its request is sent. A settlement is handed to the operating system at once,
which keeps it when the process is killed, and is on the disk with the next reservation or when the ledger is closed. So
a power failure can lose the newest answers, and then charges their reservations: never less than they cost.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roi_env.solvers.base import Reply


class JournalError(ValueError):
    """A journal that cannot be continued."""


class LineFile:
    """JSON Lines: a first line with the settings, then records; a line torn by a crash is dropped on opening.

    :param path: created where absent.
    :param settings: what the records depend on; a file with other settings is refused. None: those of the file.
    :raises JournalError: for other settings, a damaged line before the last, or an absent file without settings.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any] | None) -> None:
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise TypeError("not an object")
                self.records.append(record)
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
                raise JournalError(f"{self.path}: line {number} is damaged ({error}); delete it to go on") from None
        if settings is None and not lines:
            raise JournalError(f"{self.path}: no such journal, or it is empty")
        self.settings = self.records.pop(0) if lines else json.loads(json.dumps(settings))
        if settings is not None and self.settings != json.loads(json.dumps(settings)):
            raise JournalError(
                f"{self.path} was begun with other settings: {self.settings} instead of {dict(settings)}; "
                "choose another journal, or the same settings"
            )
        self._file = self.path.open("ab")
        # What follows the last whole line was being written when the process died.
        self._file.truncate(len(whole))
        if not lines:
            self.append([self.settings])

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record; it outlives this process when this returns, and is on the disk after the next :meth:`sync`."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """All records are on the disk when this returns."""
        os.fsync(self._file.fileno())

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records; they and all before them are on the disk when this returns."""
        self._file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self._file.flush()
        self.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass
class Entry:
    """One request.

    :param number: its place in the ledger.
    :param key: what it was for.
    :param reserved: most tokens that it may cost.
    :param charged: what it cost; None: not settled.
    :param facts: what else was written when it was settled.
    """

    number: int
    key: tuple[Any, ...]
    reserved: int
    charged: int | None = None
    facts: Mapping[str, Any] | None = None


class Ledger:
    """Reservations, on the disk before they count, and settlements.

    :param path: of the file; None: kept in memory alone.
    :param settings: see :class:`LineFile`.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any] | None = None) -> None:
        self.entries: list[Entry] = []
        self.notes: list[dict[str, Any]] = []
        """Records of other kinds, in their order."""
        self.file = LineFile(path, settings) if path is not None else None
        self._written = self._synced = 0  # records
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        for line, record in enumerate(self.file.records if self.file else (), 2):
            try:
                if "reserve" in record:
                    if record["n"] != len(self.entries):
                        raise ValueError(f"request {record['n']} where {len(self.entries)} should follow")
                    self.entries.append(Entry(record["n"], tuple(record["key"]), int(record["reserve"])))
                elif "charge" in record:
                    entry = self.entries[record["n"]]
                    if entry.charged is not None:
                        raise ValueError(f"request {record['n']} is settled twice")
                    entry.charged, entry.facts = int(record["charge"]), record["facts"]
                else:
                    self.notes.append(record)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                self.close()
                raise JournalError(f"{path}: line {line} does not fit ({error})") from None
        self.unknown = [entry for entry in self.entries if entry.charged is None]
        """Requests in flight when an earlier process died; charged at their reservation for good."""
        self.charged = sum(entry.charged or 0 for entry in self.entries) + sum(e.reserved for e in self.unknown)
        """Tokens charged so far."""
        self.reserved = 0
        """Tokens reserved by requests in flight."""

    async def reserve(self, key: tuple[Any, ...], tokens: int) -> Entry:
        """Enter a request; it is on the disk when this returns, and may be sent."""
        entry = Entry(len(self.entries), key, tokens)
        self.entries.append(entry)
        self.reserved += tokens
        # Written at once, so that records lie in their order whatever is cancelled; one thread syncs, and what was written
        # meanwhile shares one fsync.
        self._write({"n": entry.number, "reserve": tokens, "key": key})
        if self.file is not None:
            await asyncio.shield(asyncio.wrap_future(self._thread.submit(self._sync, self._written)))
        return entry

    def settle(self, entry: Entry, tokens: int, facts: Mapping[str, Any]) -> None:
        """Enter what a request cost, once; a kill does not lose it when this returns."""
        if entry.charged is not None:
            raise ValueError(f"request {entry.number} was settled already")
        entry.charged, entry.facts = tokens, facts
        self.reserved -= entry.reserved
        self.charged += tokens
        self._write({"n": entry.number, "charge": tokens, "facts": facts})

    def note(self, record: Mapping[str, Any]) -> None:
        """Keep a record of another kind; a kill does not lose it when this returns."""
        self.notes.append(dict(record))
        self._write(record)

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        self._thread.submit(self._sync, self._written).result()
        self._thread.shutdown()
        if self.file:
            self.file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(record)
            self._written += 1

    def _sync(self, number: int) -> None:
        """Bring the first ``number`` records, and all that were written by now, to the disk."""
        if self.file is not None and self._synced < number:
            now = self._written
            self.file.sync()
            self._synced = now


def reply_facts(reply: Reply) -> dict[str, Any]:
    """A reply as JSON values; what is empty is left out."""
    return {n: value for n, value in reply.__dict__.items() if value is not None and value is not False and value != ""}


def reply_of(facts: Mapping[str, Any]) -> Reply:
    """The reply that :func:`reply_facts` wrote."""
    empty: dict[str, Any] = {"text": "", "reasoning": None, "reasoning_tokens": None}
    return Reply(**{**empty, **facts})
