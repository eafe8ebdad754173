"""Books of a budget for an event loop, which never waits for the database: one thread does its work.

Statements of a file in this machine (SQLite) take microseconds, less than it takes to hand them to a thread: they are
executed at once, the thread is for the disk, and for a file that another process holds just now. Otherwise, what comes
while the thread is at work is done together afterwards: one transaction, one fsync (group commit). How the budget stood
after the last one is known here, and what was handed in since counts already.

A database that is away or does not answer is asked again: settlements wait for it for as long as it takes (their
reservations stand there, so that nothing is lost by a process that ends meanwhile). All others hear of it at once
(:class:`roi_env.answering.ledger.BooksAway`).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from roi_env.answering.books import DatabaseLedger, Standing
from roi_env.answering.ledger import BooksAway, Entry, JournalError, NoRoom, Settings, unsent_facts

_Result = TypeVar("_Result")

PATIENCE = 10.0
"""Seconds that an answer which has ended waits for its settlement to be written."""
_PAUSE = 0.5
"""Seconds between two tries."""
_SOON = 0.1
"""Seconds within which a larger reservation of a running answer is on the disk: a part of those for which it was asked ahead
(:attr:`roi_env.answering.streams.Pace.REACTION`), so that what an answer has taken is always reserved there."""
_NEWS = 0.01
"""Seconds for which what the database told is news; what is reserved upon it is checked there again."""
_TURN = 0.0005
"""Most seconds that this thread waits for the other one to begin with the disk."""


class _NotOnDisk(BooksAway):
    """It is in the database, and the disk failed."""


@dataclass(eq=False)
class _Task:
    """Something to be done in the database; several are one transaction.

    :param do: on the books.
    :param waits: for a database that is away.
    :param on_disk: whether it must be on the disk before it counts.
    :param soon: whether it must be there within :data:`_SOON` seconds, or at once where the disk failed.
    :param quick: whether it is a few statements of a row each.
    :param charged: by how much it changes what is charged.
    :param reserved: and reserved.
    """

    books: DatabaseLedger
    do: Callable[[DatabaseLedger], Any] | None
    waits: bool = False
    on_disk: bool = False
    soon: bool = False
    quick: bool = True
    charged: int = 0
    reserved: int = 0
    done: Future[Any] = field(default_factory=Future)


@dataclass
class _Entered(Entry):
    """A request that was handed in.

    :param at_once: whether it was tried at once.
    :param done: when it is on the disk; its number is known by then.
    """

    at_once: bool = False
    done: Future[None] = field(default_factory=Future, compare=False, repr=False)


class _Desk:
    """The thread, what it has to do, and what is known of the budget.

    :param say: told once that the database is away, and once that it is back.
    :ivar standing: of the budget, with what was handed in.
    """

    def __init__(self, books: DatabaseLedger, say: Callable[[str], None]) -> None:
        self.books, self._say = books, say
        self.away: str | None = None
        self.closing = False
        self._known, self._known_at = books.standing(), time.monotonic()
        self.standing = self._known
        self._todo: list[_Task] = []
        self._working = False
        self._written = self._synced = 0
        self._due = self._failed = self._syncing = False
        self._charged = self._reserved = 0  # handed in, and not known
        self._lock, self._using = threading.Lock(), threading.RLock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clerk")

    def say(self, text: str) -> None:
        """Tell it to whoever hears it: the work goes on where nobody does, his disk is full, or his pipe has no end."""
        with contextlib.suppress(Exception, SystemExit):
            self._say(text)

    @property
    def brings_news(self) -> bool:
        """Whether the thread uses a database that is there, or it was looked at just now."""
        with self._lock:
            return self.away is None and (self._working or time.monotonic() - self._known_at < _NEWS)

    def hand_in(self, task: _Task) -> bool:
        """Take a task; they are done in their order.

        :returns: whether it was done, or refused, at once; the disk may still be to come.
        """
        with self._lock:
            self._count(task.charged, task.reserved)
            at_once = task.quick and self.books.database.is_near and not self._working
        if at_once and self._at_once(task):
            return True
        with self._lock:
            self._todo.append(task)
            if self._working:  # it will see to it
                return False
            self._working = True
        self._thread.submit(self._work)
        return False

    def _count(self, charged: int, reserved: int) -> None:
        self._charged += charged
        self._reserved += reserved
        limit, known, held = self._known
        self.standing = Standing(limit, known + self._charged, held + self._reserved)

    def _at_once(self, task: _Task) -> bool:
        """Do a task here; false where somebody else uses the database just now."""
        if not self._using.acquire(blocking=False):
            return False
        try:
            self.books.database.wait_for_others(False)
            (result,), known = self._once([task])
        except Exception:  # the thread tries again, and says what is wrong
            return False
        finally:
            self._using.release()
        self._end([task], known)
        written = (task.on_disk or task.soon) and not isinstance(result, NoRoom)
        self._written += written
        if written and (task.on_disk or self._failed):
            begun, idle, self._syncing = threading.Lock(), not self._syncing, True
            begun.acquire()
            self._thread.submit(self._sync, self._written, task, result, begun)
            if idle:  # Python runs one thread at a time: it would begin only when there is nothing more to do here
                begun.acquire(timeout=_TURN)
            return True
        if written and not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(_SOON, self._sync_due)
        _tell(task, result)
        return True

    def _sync_due(self) -> None:
        self._due = False
        if not self.closing and self._synced < self._written:
            self._syncing = True
            self._thread.submit(self._sync, self._written)

    def _sync(
        self, number: int, task: _Task | None = None, result: Any = None, begun: threading.Lock | None = None
    ) -> None:
        """Tell a task when what was written before it is on the disk; what was written meanwhile shares one fsync.

        :param begun: released as it begins.
        """
        now = self._written
        if begun is not None:
            begun.release()
        if self._synced < number:
            if (failed := self._to_disk()) is None:
                self._synced = now
            result = failed or result
        self._syncing = False
        if task is not None:
            _tell(task, result)

    def _to_disk(self) -> _NotOnDisk | None:
        """Bring everything to the disk; gives why that failed."""
        try:
            self.books.database.sync()
        except OSError as error:
            self._failed = True
            self.say(f"the disk failed: {error}")
            return _NotOnDisk("the database of the budgets cannot be written")
        self._failed = False
        return None

    def close(self) -> None:
        """Do what is to be done, once more if the database is away."""
        self.closing = True
        self._thread.shutdown()
        self.books.close()

    def _work(self) -> None:
        batch: list[_Task] = []
        while True:
            with self._lock:
                batch += self._todo
                self._todo.clear()
                self._working = bool(batch)
            if not batch:
                return
            with self._using:
                self.books.database.wait_for_others(True)
                batch = self._do(batch)

    def _do(self, batch: list[_Task]) -> list[_Task]:
        """Do what can be done; gives what is left, where the database is away."""
        try:
            results, known = self._transact(batch)
        except Exception as error:
            if isinstance(error, (JournalError, OSError, *self.books.database.away)):
                return self._wait(batch, error)
            if len(batch) > 1:  # the others are not to blame
                return [left for task in batch for left in self._do([task])]
            if batch[0].waits:  # others hear of it
                self.say(
                    f"the books failed, what is reserved stays so until this process ends ({type(error).__name__}: {error})"
                )
            self._end(batch)
            batch[0].done.set_exception(error)
            return []
        self._end(batch, known)
        of_disk = [task for task in batch if task.on_disk or task.soon]
        failed = self._to_disk() if of_disk else None
        for task, result in zip(batch, results, strict=True):
            _tell(task, failed if failed and task in of_disk and not isinstance(result, NoRoom) else result)
        return []

    def _transact(self, batch: Sequence[_Task]) -> tuple[list[Any], Standing]:
        base = self.books.database
        try:
            return self._once(batch)
        except base.away:
            if not base.lost:
                raise
            return self._once(batch)  # by another connection: the server may be there again

    def _once(self, batch: Sequence[_Task]) -> tuple[list[Any], Standing]:
        if all(task.do is None for task in batch):
            return [None] * len(batch), self.books.standing()
        results: list[Any] = []
        with self.books.database.transaction():
            for task in batch:
                try:
                    results.append(task.do and task.do(task.books))
                except NoRoom as error:
                    results.append(error)
            return results, self.books.standing()

    def _wait(self, batch: list[_Task], error: Exception) -> list[_Task]:
        """Tell those who wait no longer for a database that is away; gives the others, after a pause."""
        if self.away is None:
            self.say(f"the database of the budgets is away, settlements wait for it: {error}")
        self.away = str(error)
        over = [task for task in batch if self.closing or not task.waits]
        self._end(over)
        for task in over:
            task.done.set_exception(BooksAway("the database of the budgets does not answer"))
        left = [task for task in batch if task not in over]
        if left:
            time.sleep(_PAUSE)
        return left

    def _end(self, tasks: Sequence[_Task], known: Standing | None = None) -> None:
        with self._lock:
            if known is not None:
                self._known, self._known_at = known, time.monotonic()
            self._count(-sum(task.charged for task in tasks), -sum(task.reserved for task in tasks))
        if known is not None and self.away is not None:
            self.away = None
            self.say("the database of the budgets is back")


async def _result(done: Future[_Result]) -> _Result:
    """What a task gives; whoever stops waiting for it stops nothing."""
    if not done.done():
        loop = asyncio.get_running_loop()
        told = loop.create_future()

        def tell(done: Future[_Result]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(wake)

        def wake() -> None:
            if not told.done():
                told.set_result(None)

        # asyncio.wrap_future in asyncio.shield takes two turns of the loop more, which is long where many streams pass.
        done.add_done_callback(tell)
        await told
    return done.result()


def _tell(task: _Task, result: Any) -> None:
    if isinstance(result, NoRoom | _NotOnDisk):
        task.done.set_exception(result)
    else:
        task.done.set_result(result)


class Clerk:
    """The books of a budget in a database, as :class:`roi_env.answering.ledger.Books` for an event loop.

    :param books: used by nobody else from now on.
    :param say: told when the database is away, and when it is back.
    """

    shared = True
    """Whether others may reserve and settle too."""
    notes: Sequence[dict[str, Any]] = ()
    """None: decisions are charged like requests."""

    def __init__(self, books: DatabaseLedger, say: Callable[[str], None] = lambda text: None) -> None:
        self.books, self._desk = books, _Desk(books, say)
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._settled: Future[Any] | None = None

    def under(self, settings: Settings) -> Clerk:
        """The same budget, for requests under other settings."""
        other = copy.copy(self)
        other.books = self.books.under(settings)
        return other

    @property
    def limit(self) -> int:
        """See :class:`roi_env.answering.books.Standing`."""
        return self._desk.standing.limit

    @property
    def charged(self) -> int:
        """See :class:`roi_env.answering.books.Standing`."""
        return self._desk.standing.charged

    @property
    def reserved(self) -> int:
        """See :class:`roi_env.answering.books.Standing`."""
        return self._desk.standing.reserved

    @property
    def brings_news(self) -> bool:
        """Whether what others did is known, or about to be, without a :meth:`refresh`."""
        return self._desk.brings_news

    @property
    def away(self) -> str | None:
        """Why the database cannot be used; None: it can, as far as is known."""
        return self._desk.away

    def _hand_in(self, do: Callable[[DatabaseLedger], Any] | None, **how: Any) -> Future[Any]:
        task = _Task(self.books, do, **how)
        self._desk.hand_in(task)
        return task.done

    async def ask(self, do: Callable[[DatabaseLedger], _Result] | None, **how: Any) -> _Result:
        """What a function gives that the thread calls with the books, in a transaction.

        :raises BooksAway: where the database is away.
        """
        return await _result(self._hand_in(do, **how))

    async def look(self, read: Callable[[DatabaseLedger], _Result]) -> _Result:
        """What a function gives that reads the books, one after the other; see
        :meth:`roi_env.answering.books.DatabaseLedger.looking`.

        :raises BooksAway: where the database is away.
        """

        def work() -> _Result:
            try:
                with self.books.looking() as books:
                    return read(books)
            except Exception as error:
                if isinstance(error, (JournalError, *self.books.database.away)):
                    raise BooksAway("the database of the budgets does not answer") from None
                raise

        if self.away is not None:
            raise BooksAway("the database of the budgets does not answer")
        return await asyncio.get_running_loop().run_in_executor(self._looking, work)

    async def refresh(self) -> None:
        """Learn what other processes did."""
        await self.ask(None)

    def enter(self, key: Sequence[Any], tokens: int) -> Entry:
        """Hand in a reservation for a request: it counts from now on, and the request may be sent after :meth:`secure`."""
        entry = _Entered(-1, tuple(key), tokens, settings=self.books.settings)

        def do(books: DatabaseLedger) -> None:
            entry.number = books.enter(key, tokens).number

        task = _Task(self.books, do, on_disk=True, reserved=tokens)
        entry.done, entry.at_once = task.done, self._desk.hand_in(task)
        return entry

    async def secure(self, entry: Entry) -> None:
        """Wait until a reservation is on the disk. What interrupts that gives it back, and a disk that fails.

        :raises NoRoom: where the budget had not so many tokens left; then nothing is reserved.
        """
        assert isinstance(entry, _Entered)

        def give_back(done: Future[None]) -> None:
            if done.exception() is None or isinstance(done.exception(), _NotOnDisk):
                self.settle(entry, 0, unsent_facts(entry))

        try:
            await _result(entry.done)
        except (asyncio.CancelledError, _NotOnDisk):
            entry.done.add_done_callback(give_back)
            raise

    def entered(self, entry: Entry) -> bool:
        """Whether a reservation is in the database already, and :meth:`secure` would wait for the disk alone."""
        assert isinstance(entry, _Entered)
        return entry.at_once and entry.number >= 0

    async def on_disk(self, entry: Entry) -> None:
        """:meth:`secure`, for one that is entered: what interrupts this gives nothing back.

        :raises BooksAway: where the disk failed.
        """
        assert isinstance(entry, _Entered)
        await _result(entry.done)

    async def resize(self, entry: Entry, tokens: int) -> None:
        """Give a request that is not settled another reservation; a larger one is on the disk soon.

        :raises NoRoom: see :meth:`roi_env.answering.books.DatabaseLedger.resize`.
        """
        # At once or not at all: the endpoint goes on while this waits.
        more = max(0, tokens - entry.reserved)
        await self.ask(lambda books: books.resize(replace(entry), tokens), soon=more > 0, reserved=more)
        entry.reserved = tokens

    async def skip(self, key: Sequence[Any], tokens: int) -> None:
        """Charge a decision to skip a question.

        :raises NoRoom: see :meth:`secure`.
        """
        await self.ask(lambda books: books.skip(key, tokens), reserved=tokens)

    def settle(self, entry: Entry, tokens: int, facts: Mapping[str, Any]) -> None:
        """Hand in what a request cost, once."""
        if entry.charged is not None:
            raise ValueError(f"request {entry.number} was settled already")

        def do(books: DatabaseLedger) -> int:
            books.settle(copied := replace(entry, charged=None), tokens, facts)
            return copied.charged or 0

        def told(done: Future[int]) -> None:
            if done.exception() is None:
                entry.charged = done.result()

        entry.charged, entry.facts = tokens, facts
        self._settled = self._hand_in(do, waits=True, charged=tokens, reserved=-entry.reserved)
        self._settled.add_done_callback(told)

    async def written(self) -> None:
        """Wait until what was handed in is in the database, or for :data:`PATIENCE` seconds: then its reservation is."""
        if self._settled is not None and not self._settled.done():
            await asyncio.wait([asyncio.wrap_future(self._settled)], timeout=PATIENCE)

    async def reap(self) -> None:
        """Charge what other processes had in flight when they died."""
        await self.ask(lambda books: books.database.reap())

    async def fold(self, before: float) -> None:
        """Forget a few requests that ended before a time; see :meth:`roi_env.answering.books.DatabaseLedger.fold`."""
        await self.ask(lambda books: books.fold(before), quick=False)

    def close(self) -> None:
        """Do what was handed in, and close the database."""
        self._looking.shutdown(wait=False, cancel_futures=True)
        self._desk.close()
