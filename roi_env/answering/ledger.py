"""Append-only files: what is in them survives a kill at any moment.

:class:`LineFile` is the file, :class:`Ledger` the double entry on it: a request is entered with its reservation before
it is sent and settled with what it cost. A reservation that was never settled (the process was killed in between) stays
charged in full and unknown.

A reservation is on the disk (fsync) before its request is sent. A settlement is handed to the operating system at once,
which keeps it when the process is killed, and is on the disk with the next reservation or when the ledger is closed. So
a power failure can lose the newest answers, and then charges their reservations: never less than they cost.

One process writes at a time: who opens a file to write holds a lock on ``NAME.lock`` beside it, which ends with the
process however that ends. A damaged file is repaired when it is opened to write: what can be read is kept, what cannot is
charged at its worst, and the damaged file stays beside it as ``NAME.damaged-1``.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from roi_env.answering.base import Reply, ThinkingTier, unsent_reply
from roi_env.files import replacing

Settings = Mapping[str, Any]
Refuse = Callable[[Settings, Settings, Sequence[Mapping[str, Any]]], str | None]
"""(settings of the file, settings asked for, records, those of settings too) -> why the file cannot go on with them; None: it can."""


class JournalError(ValueError):
    """A journal that cannot be continued."""


def differences(old: Settings, new: Settings) -> str:
    """What differs between two settings, in words; empty where nothing does."""

    def short(settings: Settings, name: str) -> str:
        text = json.dumps(settings[name]) if name in settings else "absent"
        return text if len(text) <= 80 else f"{text[:77]}..."

    names = [name for name in {**old, **new} if old.get(name) != new.get(name) or (name in old) != (name in new)]
    return "; ".join(f"{name} was {short(old, name)}, is now {short(new, name)}" for name in names)


def same_settings(old: Settings, new: Settings, records: Sequence[Mapping[str, Any]]) -> str | None:
    """The strictest rule: whatever differs is refused."""
    return differences(old, new) or None


class NoRoom(Exception):
    """A budget has not so many tokens left: another process took them."""


class BooksAway(Exception):
    """The database of the budgets cannot be reached, or does not answer."""


class Books(Protocol):
    """What keeps the reservations and settlements of one budget."""

    @property
    def charged(self) -> int:
        """Tokens charged."""
        ...

    @property
    def reserved(self) -> int:
        """Tokens reserved by requests in flight."""
        ...

    @property
    def notes(self) -> Sequence[dict[str, Any]]:
        """Records of other kinds that are not part of ``charged``."""
        ...

    @property
    def limit(self) -> int | None:
        """Tokens of the budget, where the books know them."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other processes may reserve and settle too."""
        ...

    @property
    def brings_news(self) -> bool:
        """Whether what other processes did is known or about to be, or there are none."""
        ...

    async def refresh(self) -> None:
        """Learn what other processes did; this and the following may raise :class:`BooksAway`."""
        ...

    def enter(self, key: tuple[Any, ...], tokens: int) -> Entry:
        """Enter a request: it counts from now on, and may be sent after :meth:`secure`."""
        ...

    async def secure(self, entry: Entry) -> None:
        """Wait until a request that was entered is on the disk; raises :class:`NoRoom` where another process took the tokens.

        What interrupts it gives the reservation back.
        """
        ...

    async def resize(self, entry: Entry, tokens: int) -> None:
        """Give a request that is not settled another reservation; raises :class:`NoRoom` where the budget lacks it."""
        ...

    async def skip(self, key: tuple[Any, ...], tokens: int) -> None:
        """Keep a decision to skip; raises :class:`NoRoom` as above."""
        ...

    def settle(self, entry: Entry, tokens: int, facts: Mapping[str, Any]) -> None:
        """Hand in what a request cost."""
        ...

    async def written(self) -> None:
        """Wait until a kill loses nothing of what was handed in."""
        ...

    async def reap(self) -> None:
        """Charge what other processes had in flight when they died."""
        ...

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        ...


class _Lock:
    """An advisory lock (flock) on a file beside the locked one; the system releases it when the process ends.

    :raises JournalError: naming the process that holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        while True:
            try:
                self._file = self.path.open("a+b", buffering=0)
            except OSError as error:
                raise JournalError(f"{path}: it cannot be locked ({error})") from None
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self._holder()
                self._file.close()
                raise JournalError(
                    f"{path} is in use by {holder}: two at once would spend its budget twice. Wait until that process has "
                    "ended, or end it"
                ) from None
            except OSError as error:
                self._file.close()
                raise JournalError(f"{path}: its file system knows no locks ({error}); choose another place") from None
            # The holder before may have removed the file between our opening and our locking it.
            if self._is_there():
                break
            self._file.close()
        self._file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode())

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        try:
            self._file.seek(0)
            found = json.loads(self._file.read())
            return f"process {found['pid']} on {found['host']} since {found['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return f"another process (it holds {self.path})"

    def release(self) -> None:
        """Let others have it."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()


class LineFile:
    """JSON Lines: a first line with the settings, then records.

    Whoever gives settings writes, and is alone at it. Without settings the file is only read: nothing is locked, made or
    repaired, and another process may be writing it.

    :param path: created where absent, for its owner alone (it holds answers).
    :param settings: what the records depend on. None: read only.
    :param refuse: whether other settings than the file's can go on with it; accepted ones are added to the file.
    :raises JournalError: for settings that cannot go on, a file that another process writes, or an absent one that shall
        be read.
    """

    begun: dict[str, Any]
    """Settings of the first records."""
    settings: dict[str, Any]
    """Those of the newest records, and of what will be added."""
    headless: bool
    """Whether there is no first line with settings."""
    records: list[dict[str, Any]]
    unreadable: list[tuple[int, bytes]]
    """What is no record, each with the number of records before it."""
    torn: bytes
    """What follows the last line's end and is no record: it was being written when the process or the machine died."""

    def __init__(
        self, path: str | os.PathLike[str], settings: Settings | None, *, refuse: Refuse = same_settings
    ) -> None:
        self.path = Path(path)
        self.messages: list[str] = []
        """What a user should know: repairs, settings that changed."""
        self._file: Any = None
        self._lock = None if settings is None else _Lock(self.path)
        try:
            if settings is None and not self.path.exists():
                raise JournalError(f"{self.path}: no such journal")
            self._read(self.path.read_bytes() if self.path.exists() else b"")
            wanted: dict[str, Any] | None = None if settings is None else json.loads(json.dumps(settings))
            if self.headless:
                self.begun = self.settings = wanted or {}
            elif wanted is not None and self.settings != wanted:
                if (reason := refuse(self.settings, wanted, [{"settings": self.begun}, *self.records])) is not None:
                    raise JournalError(
                        f"{self.path} was begun with other settings: {reason}. Give it the same settings to go on there, or "
                        "choose another place; nothing in it was changed"
                    )
                self.messages.append(f"{self.path} goes on with other settings: {differences(self.settings, wanted)}")
                self.settings = wanted
            if settings is not None:
                self._open()
        except BaseException:
            self.close()
            raise

    def _read(self, data: bytes) -> None:
        """Set ``begun``, ``settings``, ``records`` and what could not be read."""
        *lines, rest = data.split(b"\n")
        self.begun, self.headless = {}, True
        self.records, self.unreadable = [], []
        self._size = len(data)
        self._whole = not rest
        if rest and _object(rest) is not None:
            lines, rest = [*lines, rest], b""
        for number, line in enumerate(lines):
            found = _object(line)
            if number == 0 and found is not None and not _is_record(found):
                self.begun, self.headless = found, False
            elif found is not None:
                self.records.append(found)
            elif line.strip():
                self.unreadable.append((len(self.records), line))
        self.torn = rest
        changes = [record["settings"] for record in self.records if isinstance(record.get("settings"), dict)]
        self.settings = changes[-1] if changes else self.begun

    def _open(self) -> None:
        new = self._size == 0
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._file = os.fdopen(handle, "ab", buffering=0)
        if new:
            self.append([self.begun])
        folder = os.open(self.path.parent, os.O_RDONLY)  # that the file exists must survive a power failure too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def repair(self, records: Iterable[Mapping[str, Any]], why: str) -> None:
        """Put these records in the place of a damaged file, whole or not at all; the damaged file stays beside it."""
        number = 1
        while (kept := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        if self._file is None:
            self.messages.append(f"{self.path} is damaged: {why}")
            return
        self.messages.append(f"{self.path} was damaged: {why}. It is repaired; the damaged file is kept as {kept.name}")
        with os.fdopen(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
            copy.write(self.path.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
        with replacing(self.path, mode=0o600) as path, path.open("wb") as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in (self.begun, *records))
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()
        self._file.close()
        self._whole = True
        self._open()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record; it outlives this process when this returns, and is on the disk after the next :meth:`sync`."""
        self._add(json.dumps(record).encode() + b"\n")

    def sync(self) -> None:
        """All records are on the disk when this returns."""
        os.fsync(self._file.fileno())

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records; they and all before them are on the disk when this returns."""
        self._add(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self.sync()

    def _add(self, data: bytes) -> None:
        if self._file is None:
            raise JournalError(f"{self.path} was opened for reading only")
        if not self._whole:  # the last line came without its end
            data, self._whole = b"\n" + data, True
        before = os.fstat(self._file.fileno()).st_size
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:  # a full disk: no half a line stays
            os.ftruncate(self._file.fileno(), before)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self) -> None:
        """Close the file and let other processes write it."""
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            self._lock.release()


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object that a line is, if it is one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_record(found: Mapping[str, Any]) -> bool:
    """Whether a first line holds a record: the settings before it are gone."""
    return any(name in found for name in ("n", "skipped", "question", "question_id", "no_seeds", "lost"))


@dataclass
class Entry:
    """One request.

    :param number: its place in the ledger.
    :param key: what it was for.
    :param reserved: most tokens that it may cost.
    :param charged: what it cost; None: not settled.
    :param facts: what else was written when it was settled.
    :param settings: under which it was entered.
    """

    number: int
    key: tuple[Any, ...]
    reserved: int
    charged: int | None = None
    facts: Mapping[str, Any] | None = None
    settings: Settings = field(default_factory=dict, repr=False)


class Ledger:
    """Reservations, on the disk before they count, and settlements.

    A damaged ledger is taken at its worst: every reservation that can be read counts, every settlement counts, and what
    must have stood where nothing can be read costs the most that a request can. An answer belongs to a question where that
    is certain only; else it stays charged, as of unknown outcome.

    :param path: of the file; None: kept in memory alone.
    :param settings: see :class:`LineFile`.
    :param refuse: see :class:`LineFile`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: Settings | None = None,
        *,
        refuse: Refuse = same_settings,
    ) -> None:
        self.entries: list[Entry] = []
        self.notes: list[dict[str, Any]] = []
        """Records of other kinds, in their order."""
        self.lost = 0
        """Tokens charged for what damage to the file has hidden."""
        self.file = LineFile(path, settings, refuse=refuse) if path is not None else None
        self.settings: Settings = self.file.settings if self.file else settings or {}
        self._written = self._synced = 0  # records
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        if self.file is not None:
            try:
                reading = _Reading(self, self.file)
                if reading.problems:
                    self.file.repair(self._records(), "; ".join(reading.problems))
                elif settings is not None and reading.settings != self.settings:
                    self.file.append([{"settings": self.settings}])
            except BaseException:
                self.close()
                raise
        self.unknown = [entry for entry in self.entries if entry.charged is None]
        """Requests in flight when an earlier process died; charged at their reservation for good."""
        self.charged = (
            sum(entry.charged or 0 for entry in self.entries) + sum(e.reserved for e in self.unknown) + self.lost
        )
        """Tokens charged so far."""
        self.reserved = 0
        """Tokens reserved by requests in flight."""

    @property
    def messages(self) -> list[str]:
        """What a user should know of the file: repairs, settings that changed."""
        return self.file.messages if self.file else []

    @property
    def limit(self) -> int | None:
        """None: a ledger does not know its budget."""
        return None

    @property
    def shared(self) -> bool:
        """False: one process writes at a time."""
        return False

    @property
    def brings_news(self) -> bool:
        """True: there are no other processes."""
        return True

    async def refresh(self) -> None:
        """Nothing: there are no other processes."""

    async def reap(self) -> None:
        """Nothing: there are no other processes."""

    async def written(self) -> None:
        """Nothing: what was written is the system's."""

    def enter(self, key: tuple[Any, ...], tokens: int) -> Entry:
        """Enter a request, which may not be sent before :meth:`secure` or :meth:`on_disk`."""
        # Written at once, so that records lie in their order whatever is cancelled.
        self._write({"n": len(self.entries), "reserve": tokens, "key": key})
        entry = Entry(len(self.entries), key, tokens, settings=self.settings)
        self.entries.append(entry)
        self.reserved += tokens
        return entry

    async def secure(self, entry: Entry) -> None:
        """Wait until a request that was entered is on the disk. What interrupts that gives it back."""
        try:
            await self.on_disk()
        except BaseException:
            self.settle(entry, 0, unsent_facts(entry))
            raise

    async def resize(self, entry: Entry, tokens: int) -> None:
        """Give a request that is not settled another reservation; a larger one is on the disk when this returns."""
        more = tokens - entry.reserved
        self.reserved += more
        entry.reserved = tokens
        self._write({"n": entry.number, "resize": tokens})
        if more > 0:
            await self.on_disk()

    async def skip(self, key: tuple[Any, ...], tokens: int) -> None:
        """Keep a decision to skip."""
        self.note({"skipped": key, "decision": tokens})

    async def on_disk(self) -> None:
        """Wait until all records are on the disk; one thread syncs, and what was written meanwhile shares one fsync."""
        if self.file is not None:
            await asyncio.shield(asyncio.wrap_future(self._thread.submit(self._sync, self._written)))

    def flush(self) -> None:
        """:meth:`on_disk` for code without an event loop."""
        if self.file is not None and self._written > self._synced:
            self._thread.submit(self._sync, self._written).result()

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
        self.flush()
        self._thread.shutdown()
        if self.file:
            self.file.close()

    def _records(self) -> Iterable[dict[str, Any]]:
        """Everything, as a whole ledger would hold it."""
        yield from self.notes
        if self.lost:
            yield {"lost": self.lost}
        assert self.file is not None
        settings: Settings = self.file.begun
        for number, entry in enumerate(self.entries):
            if entry.settings != settings:
                settings = entry.settings
                yield {"settings": settings}
            entry.number = number
            yield {"n": number, "reserve": entry.reserved, "key": entry.key}
            if entry.charged is not None:
                yield {"n": number, "charge": entry.charged, "facts": entry.facts}
        if self.settings != settings:
            yield {"settings": self.settings}

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


_BEGIN = re.compile(r'\{"(?:n|skipped|question|no_seeds|lost|settings)": ')
_RESERVE = re.compile(r'\{"n": ([0-9]{1,15}), "reserve": ([0-9]{1,15})[,}]')
_CHARGE = re.compile(r'\{"n": ([0-9]{1,15}), "charge": ([0-9]{1,15})[,}]')
_Settlement = tuple[int, Mapping[str, Any] | None]
"""Tokens, and the facts where they can be read."""


class _Reading:
    """What the lines of a ledger's file say, whole or not: fills a ledger.

    :ivar problems: what was wrong with them, in words.
    """

    def __init__(self, ledger: Ledger, file: LineFile) -> None:
        self.ledger = ledger
        self.problems: list[str] = []
        self.settings: Settings = file.begun
        self.begun = file.begun
        self.by_number: dict[int, list[Entry]] = {}
        self.settled: dict[int, list[_Settlement]] = {}
        self.most = _most_tokens(ledger.settings)
        self.foreign = self.hidden = 0
        if file.headless and (file.records or file.unreadable):
            self.problems.append("its settings cannot be read")
        places = [*file.unreadable, (-1, b"")]
        at = 0
        for number, record in enumerate(file.records):
            while places[at][0] == number:
                self._piece(places[at][1])
                at += 1
            self._record(record)
        for _, piece in places[at:-1]:
            self._piece(piece)
        if file.unreadable:
            self.problems.append(f"{len(file.unreadable):,} of its lines cannot be read")
        if file.torn:
            self.problems.append(f"its last line is cut off after {len(file.torn):,} bytes")
            self._torn(file.torn)
        if self.foreign:
            self.problems.append(f"{self.foreign:,} of its lines do not belong there")
        self._match()

    def _record(self, record: Mapping[str, Any]) -> None:
        number, tokens = record.get("n"), record.get("reserve", record.get("charge", record.get("resize")))
        if _count(number) and _count(tokens):
            assert isinstance(number, int)
            assert isinstance(tokens, int)
            if "resize" in record:
                for entry in self.by_number.get(number, []):
                    entry.reserved = tokens
            elif "reserve" in record:
                key = record.get("key")
                self._reserved(number, tokens, tuple(key) if isinstance(key, list) else ())
            else:
                facts = record.get("facts")
                self.settled.setdefault(number, []).append((tokens, facts if isinstance(facts, dict) else None))
        elif _count(record.get("lost")):
            self.ledger.lost += record["lost"]
        elif isinstance(record.get("settings"), dict):
            self.settings = record["settings"]
            self.most = max(self.most, _most_tokens(self.settings))
        elif record.keys() == self.begun.keys():  # two processes that begin write two first lines
            self.foreign += 1
        elif not record or "n" in record or ("skipped" in record and not _count(record.get("decision"))):
            self.foreign += 1
            self.hidden += 1
        else:
            self.ledger.notes.append(dict(record))

    def _reserved(self, number: int, tokens: int, key: tuple[Any, ...]) -> None:
        self.ledger.entries.append(Entry(number, key, tokens, settings=self.settings))
        self.by_number.setdefault(number, []).append(self.ledger.entries[-1])
        # Requests are numbered: none is missing before this one unless its number says so. A skipped question may be.
        self.ledger.lost += self.hidden * self.settings.get("decision_cost", 0)
        self.hidden = 0

    def _piece(self, piece: bytes) -> None:
        """Take from an unreadable line what can be read."""
        text = piece.decode("latin-1")  # one character a byte
        at, blind = 0, False
        while (begin := _BEGIN.search(text, at)) is not None:
            blind |= bool(text[at : begin.start()].strip())
            try:
                record, at = json.JSONDecoder().raw_decode(text, begin.start())
                if not text[begin.start() : at].isascii():  # what was written is
                    record = None
            except (ValueError, RecursionError):
                at, record = begin.end(), None
            blind |= record is None
            requests = len(self.ledger.entries)
            if record is None:
                self._part(text[begin.start() :])
            else:
                self._record(record)
            if len(self.ledger.entries) > requests:
                blind = record is None  # what was hidden before a reservation is known by the numbers
        # Where nothing can be read a request may have stood.
        self.hidden += blind or bool(text[at:].strip())

    def _part(self, text: str) -> None:
        """The beginning of a record whose end is gone."""
        if part := _RESERVE.match(text):
            self._reserved(int(part[1]), int(part[2]), ())
        elif part := _CHARGE.match(text):
            self.settled.setdefault(int(part[1]), []).append((int(part[2]), None))
        elif text.startswith('{"skipped"'):
            self.ledger.lost += self.settings.get("decision_cost", 0)

    def _torn(self, piece: bytes) -> None:
        """The last line, whose end was never written: as a reservation its request was never sent."""
        text = piece.decode("latin-1")
        if not text.isprintable():
            if piece.strip(b"\0"):  # zeros are what a file system leaves of what was not on the disk at a power failure
                self._piece(piece)
        elif not _RESERVE.match(text):
            self._part(text)

    def _match(self) -> None:
        """Give settlements to reservations, and charge what has no partner."""
        ledger = self.ledger
        most = max([self.most, *(entry.reserved for entry in ledger.entries)])
        by_number = self.by_number
        numbers = by_number.keys() | self.settled.keys()
        last = max(by_number, default=-1)
        # Settlements after the last reservation belong to requests that are hidden, and say what these cost.
        hidden = max(0, self.hidden - sum(number > last for number in self.settled))
        hidden += max(numbers, default=-1) + 1 - len(numbers)
        if hidden:
            ledger.lost += hidden * most
            self.problems.append(
                f"{hidden:,} {'requests' if hidden > 1 else 'request'} may have stood where nothing can be read: "
                f"{hidden * most:,} tokens are charged, the most that this can have cost"
            )
        twice = alone = 0
        for number in sorted(numbers):
            entries, settled = by_number.get(number, []), self.settled.get(number, [])
            twice += len(entries) > 1 or len(settled) > 1
            alone += not entries
            left: list[int] = []
            for tokens, facts in settled:
                open_ = [entry for entry in entries if entry.charged is None]
                owner = None if facts is None else self._owner(open_, facts)
                if owner is None:
                    left.append(tokens)
                else:
                    owner.charged, owner.facts = tokens, facts
            # All settlements without a known owner count, and the dearest reservations that have none.
            reserved = sorted(entry.reserved for entry in entries if entry.charged is None)
            ledger.lost += max(0, sum(left) + sum(reserved[len(left) :]) - sum(reserved))
        if twice:
            self.problems.append(f"{twice:,} of its requests stand there twice (two processes wrote): both are charged")
        if alone:
            self.problems.append(f"{alone:,} of its settlements are of requests that cannot be read: they are charged")
        if keyless := [entry for entry in ledger.entries if not entry.key]:
            self.problems.append(f"{len(keyless):,} of its requests do not say for what: they are charged")
            ledger.lost += sum(entry.reserved if entry.charged is None else entry.charged for entry in keyless)
            ledger.entries = [entry for entry in ledger.entries if entry.key]
        if not self.problems and any(entry.number != place for place, entry in enumerate(ledger.entries)):
            self.problems.append("its requests do not stand in their order")

    def _owner(self, entries: Sequence[Entry], facts: Mapping[str, Any]) -> Entry | None:
        """The reservation that a settlement belongs to; None where that is not certain."""
        if "cap" in facts and len(entries) > 1:
            cost = self.settings.get("decision_cost", 0)
            entries = [entry for entry in entries if entry.reserved == facts["cap"] + cost] or entries
        # Of two reservations for the same it does not matter which one; the dearer one stays open.
        same = len({json.dumps(entry.key[:3]) for entry in entries}) == 1
        return min(entries, key=lambda entry: entry.reserved) if same else None


def _count(value: Any) -> bool:
    """Whether a value is a number of tokens or a place."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _most_tokens(settings: Settings) -> int:
    """The most that one request can cost by the settings (``most``), or their tiers; 0 where they name none."""
    try:
        if "most" in settings:
            return int(settings["most"])
        return max(ThinkingTier(*fields).most_tokens for fields in settings["tiers"]) + settings.get("decision_cost", 0)
    except (KeyError, TypeError, ValueError):
        return 0


def reply_facts(reply: Reply) -> dict[str, Any]:
    """A reply as JSON values; what is empty, or for the caller alone, is left out."""
    return {
        name: value
        for name, value in reply.__dict__.items()
        if name not in ("failure", "model", "whole") and value is not None and value is not False and value != ""
    }


def unsent_facts(entry: Entry) -> dict[str, Any]:
    """What is written of a request that was never sent."""
    return {**reply_facts(unsent_reply()), "cap": entry.reserved}


def reply_of(facts: Mapping[str, Any]) -> Reply:
    """The reply that :func:`reply_facts` wrote."""
    empty: dict[str, Any] = {"text": "", "reasoning": None, "reasoning_tokens": None}
    return Reply(**{**empty, **facts})
