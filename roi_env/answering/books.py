"""One budget of a database, with the double entry of :mod:`roi_env.answering.ledger`."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

from roi_env.answering.database import Database, Period, other_unit, period_now
from roi_env.answering.ledger import Entry, JournalError, Ledger, NoRoom, Settings
from roi_env.answering.postgres import Postgres
from roi_env.sources.units import Unit, cost_with_unit

_TEXTS = ("text", "reasoning", "note")
"""Facts that hold what was answered."""
NEWEST = 1000
"""Requests of a budget that are kept however old they are: what agents learn from after a restart. SQLite would give the
number of a newest request that is gone, and may yet be settled, to the next one."""
_FOLDED = 1000
"""Most requests that are folded at once: a few milliseconds of work."""


def open_database(where: Path | str) -> Database:
    """Open a database of budgets.

    :param where: a file, or the address of a PostgreSQL database (``postgresql://...``).
    :raises JournalError: where it cannot be used.
    """
    if isinstance(where, Path):
        return Database(where)
    if not where.startswith(("postgresql://", "postgres://")):
        raise JournalError(
            "the address of the database must be one of PostgreSQL, postgresql://USER@HOST/NAME, and does not begin so; without "
            "an address it is a file in the folder --state"
        )
    return Postgres(where)


class Standing(NamedTuple):
    """How a budget stands.

    :param limit: tokens of the present period, top-ups included.
    :param charged: in the present period, decisions included.
    :param reserved: by requests in flight, of all processes.
    """

    limit: int
    charged: int
    reserved: int


class DatabaseLedger:
    """One budget of a database, as :class:`roi_env.answering.ledger.Ledger` keeps it in a file.

    Every method waits for the database; :class:`roi_env.answering.clerk.Clerk` does not let an event loop wait.

    :param where: of the database, see :func:`open_database`; every ledger opens it for itself.
    :param name: of the budget; made where absent, otherwise it goes on with these tokens and settings.
    :param tokens: of every period (of whatever unit); top-ups come on top.
    :param journal: of an earlier version, read in once.
    :param answers: whether what was answered is kept.
    :param unit: what it counts; a budget of that name that counts another one is refused.
    """

    def __init__(
        self,
        where: Path | str,
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
        self.database = base = open_database(where)
        try:
            base.own()
            base.reap()
            self._settings = self._settings_id()
            if (other := self.replan(tokens, period, carry, unit)) is not None:
                self.messages.append(other)
            if (
                journal is not None
                and journal.exists()
                and base.one("SELECT journal FROM budgets WHERE name = :name", name=name)[0] is None
            ):
                if unit != "tokens":
                    raise JournalError(f"{journal} is of tokens: " + other_unit(name, "tokens", unit))
                self._read_in(journal)
            if ahead := base.ahead(name):
                self.messages.append(ahead)
            base.keep_log()
        except BaseException as error:
            base.close()
            if isinstance(error, base.errors):
                raise JournalError(f"{base.path}: it cannot be used ({error})") from None
            raise

    def _settings_id(self) -> int:
        text = json.dumps(self.settings, sort_keys=True)
        with self.database.transaction():
            self.database.run("INSERT INTO settings (text) VALUES (:text) ON CONFLICT (text) DO NOTHING", text=text)
            return int(self.database.one("SELECT id FROM settings WHERE text = :text", text=text)[0])

    def under(self, settings: Settings) -> DatabaseLedger:
        """The same budget, by the same connection, for requests under other settings."""
        other = copy.copy(self)
        other.settings, other.messages = settings, []
        other._settings = other._settings_id()
        return other

    @contextmanager
    def looking(self) -> Iterator[DatabaseLedger]:
        """The same budget by a connection of its own, to read in another thread: nobody waits for it, however long it takes."""
        other = copy.copy(self)
        other.database = self.database.again()
        try:
            yield other
        finally:
            other.database.close()

    def replan(self, tokens: int, period: Period, carry: bool, unit: Unit = "tokens") -> str | None:
        """Give the budget another amount, another period; what was charged stays charged.

        :returns: what a user should know of one that had others: somebody has set them, or another proxy has other ones.
        :raises JournalError: for another unit.
        """
        with self.database.transaction():
            found = self.database.one("SELECT unit, tokens, period FROM budgets WHERE name = :name", name=self.name)
            if found is not None and found[0] != unit:
                raise JournalError(other_unit(self.name, found[0], unit))
            self.database.run(
                "INSERT INTO budgets (name, tokens, period, carry, current, unit) "
                "VALUES (:name, :tokens, :period, :carry, :now, :unit) ON CONFLICT (name) DO UPDATE SET tokens = excluded.tokens, carry = excluded.carry, "
                "period = excluded.period, current = CASE WHEN budgets.period = excluded.period THEN budgets.current "
                "ELSE excluded.current END",
                name=self.name,
                tokens=tokens,
                period=period,
                carry=int(carry),
                now=period_now(period),
                unit=unit,
            )
        if found is None or tuple(found[1:]) == (tokens, period):
            return None
        was, now = (f"{cost_with_unit(one, unit)} ({span})" for one, span in ((found[1], found[2]), (tokens, period)))
        return f"the budget {self.name!r} had {was}; it has {now} from now on, for all who share it"

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
                self.database.run(
                    "UPDATE budgets SET charged = charged + :paid, spent = spent + :paid, journal = :journal "
                    "WHERE name = :name",
                    paid=paid,
                    journal=journal.name,
                    name=self.name,
                )
            self.messages += [
                *old.messages,
                f"{journal} was read into {self.database.path}: {paid:,} tokens are charged",
            ]
        finally:
            old.close()

    def _insert(self, key: Sequence[Any], reserved: int, charged: int | None, facts: Mapping[str, Any] | None) -> int:
        now = time.time()
        (number,) = self.database.one(
            "INSERT INTO requests (budget, key, reserved, charged, facts, settings, owner, began, ended) "
            "VALUES (:budget, :key, :reserved, :charged, :facts, :settings, :owner, :began, :ended) RETURNING id",
            budget=self.name,
            key=json.dumps(key),
            reserved=reserved,
            charged=charged,
            facts=self._kept(facts),
            settings=self._settings,
            owner=self.database.owner,
            began=now,
            ended=None if charged is None else now,
        )
        return int(number)

    def _kept(self, facts: Mapping[str, Any] | None) -> str | None:
        if facts is None:
            return None
        return json.dumps(facts if self.answers else {name: facts[name] for name in facts if name not in _TEXTS})

    def standing(self) -> Standing:
        """How the budget stands now."""
        row = self._row()
        if period_now(row[3]) > row[4]:
            self.database.roll(self.name)
            row = self._row()
        return Standing(*map(int, row[:3]))

    def _row(self) -> Any:
        return self.database.one(
            "SELECT tokens + added, charged, reserved, period, current FROM budgets WHERE name = :name", name=self.name
        )

    @property
    def limit(self) -> int:
        """See :class:`Standing`."""
        return self.standing().limit

    @property
    def charged(self) -> int:
        """See :class:`Standing`."""
        return self.standing().charged

    @property
    def reserved(self) -> int:
        """See :class:`Standing`."""
        return self.standing().reserved

    @property
    def asked(self) -> int:
        """Questions decided so far."""
        (count,) = self.database.one(
            "SELECT folded + (SELECT count(*) FROM requests WHERE budget = :name) FROM budgets WHERE name = :name",
            name=self.name,
        )
        return int(count)

    def fold(self, before: float) -> int:
        """Forget some of the requests that ended before a time, but for the newest :data:`NEWEST`; what they cost stays charged.

        :param before: seconds of Unix time.
        :returns: how many; 0: all such requests are forgotten.
        """
        with self.database.transaction():
            gone = self.database.run(
                "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE budget = :name AND ended < :before AND id <= "
                "(SELECT id FROM requests WHERE budget = :name ORDER BY id DESC LIMIT 1 OFFSET :newest) "
                "ORDER BY ended LIMIT :most)",
                name=self.name,
                before=before,
                newest=NEWEST,
                most=_FOLDED,
            )
            if gone:
                self.database.run(
                    "UPDATE budgets SET folded = folded + :gone WHERE name = :name", gone=gone, name=self.name
                )
        return gone

    @property
    def entries(self) -> list[Entry]:
        """All requests that were sent, or may have been."""
        return self.newest_entries(2**62)

    def newest_entries(self, count: int) -> list[Entry]:
        """So many of the newest requests that were sent, or may have been; the oldest first."""
        rows = self.database.all(
            "SELECT r.id, r.key, r.reserved, r.charged, r.facts, s.text FROM requests r JOIN settings s ON s.id = r.settings "
            "WHERE r.budget = :name ORDER BY r.id DESC LIMIT :count",
            name=self.name,
            count=count,
        )
        return [
            Entry(number, tuple(json.loads(key)), reserved, charged, facts and json.loads(facts), json.loads(settings))
            for number, key, reserved, charged, facts, settings in reversed(rows)
            if facts is None or '"skipped"' not in facts
        ]

    def newest(self, count: int) -> list[dict[str, Any]]:
        """The newest decisions, the last one first: key, reserved, charged, facts, settings, began and ended."""
        names = ("key", "facts", "settings", "reserved", "charged", "began", "ended")
        rows = self.database.all(
            "SELECT r.key, r.facts, s.text, r.reserved, r.charged, r.began, r.ended FROM requests r JOIN settings s "
            "ON s.id = r.settings WHERE r.budget = :name ORDER BY r.id DESC LIMIT :count",
            name=self.name,
            count=count,
        )
        texts = [[text and json.loads(text) for text in row[:3]] for row in rows]
        return [dict(zip(names, (*text, *row[3:]), strict=True)) for text, row in zip(texts, rows, strict=True)]

    def first(self, since: float) -> float | None:
        """Seconds of Unix time when the first decision since then ended; None: there is none."""
        found = self.database.one(
            "SELECT min(ended) FROM requests WHERE budget = :name AND ended >= :since", name=self.name, since=since
        )[0]
        return None if found is None else float(found)

    def charged_by(self, seconds: int, since: float) -> dict[int, int]:
        """Tokens charged since then in every span of so many seconds, by Unix time over its length."""
        rows = self.database.all(
            "SELECT CAST(ended AS BIGINT) / :seconds AS span, CAST(sum(charged) AS BIGINT) FROM requests "
            "WHERE budget = :name AND ended >= :since GROUP BY span",
            name=self.name,
            seconds=seconds,
            since=since,
        )
        return {int(span): int(charged) for span, charged in rows}

    def warns(self, share: float) -> bool:
        """Whether so much of the budget is charged, said once for every period and amount, to one process of all."""
        with self.database.transaction():
            return bool(
                self.database.run(
                    "UPDATE budgets SET warned = current || '/' || (tokens + added) WHERE name = :name AND "
                    "charged >= :share * (tokens + added) AND warned != current || '/' || (tokens + added)",
                    name=self.name,
                    share=share,
                )
            )

    @property
    def unknown(self) -> list[Entry]:
        """Requests that were in flight when their process died."""
        return [entry for entry in self.entries if entry.charged is not None and entry.facts is None]

    def enter(self, key: Sequence[Any], tokens: int) -> Entry:
        """Reserve tokens for a request, which may not be sent before :meth:`roi_env.answering.database.Database.sync`.

        :raises NoRoom: where the budget has not so many left.
        """
        self.database.roll(self.name)
        with self.database.transaction():
            self._take(tokens)
            number = self._insert(key, tokens, None, None)
            self.database.in_flight |= {number}
        return Entry(number, tuple(key), tokens, settings=self.settings)

    def resize(self, entry: Entry, tokens: int) -> None:
        """Give a request that is not settled another reservation.

        :raises NoRoom: where the budget has not so many left, or others held this process dead and settled the request; then
            nothing is changed.
        """
        statement = "UPDATE requests SET reserved = :tokens WHERE id = :id AND charged IS NULL"
        with self.database.transaction():
            found = self.database.one("SELECT reserved FROM requests WHERE id = :id", id=entry.number)
            if not self.database.run(statement, tokens=tokens, id=entry.number):
                raise NoRoom
            try:
                self._take(tokens - found[0])
            except NoRoom:
                self.database.run(statement, tokens=found[0], id=entry.number)
                raise
        entry.reserved = tokens

    def _take(self, tokens: int) -> None:
        """Reserve so many more of the budget, or less than none."""
        taken = self.database.run(
            "UPDATE budgets SET reserved = reserved + :tokens WHERE name = :name AND "
            "(:tokens <= 0 OR charged + reserved + :tokens <= tokens + added)",
            tokens=tokens,
            name=self.name,
        )
        if not taken:
            raise NoRoom

    def settle(self, entry: Entry, tokens: int, facts: Mapping[str, Any]) -> None:
        """Enter what a request cost, once; a kill does not lose it when this returns."""
        if entry.charged is not None:
            raise ValueError(f"request {entry.number} was settled already")
        with self.database.transaction():
            done = self.database.run(
                "UPDATE requests SET charged = :tokens, facts = :facts, ended = :now WHERE id = :id AND charged IS NULL",
                tokens=tokens,
                facts=self._kept(facts),
                now=time.time(),
                id=entry.number,
            )
            if done:
                self.database.run(
                    "UPDATE budgets SET charged = charged + :tokens, spent = spent + :tokens, "
                    "reserved = reserved - (SELECT reserved FROM requests WHERE id = :id) WHERE name = :name",
                    tokens=tokens,
                    id=entry.number,
                    name=self.name,
                )
                charged = tokens
            else:
                charged = self._add(entry, tokens, facts)
            self.database.in_flight -= {entry.number}
        entry.charged, entry.facts = charged, facts

    def _add(self, entry: Entry, tokens: int, facts: Mapping[str, Any]) -> int:
        """Charge what a request took beyond what others charged, who held this process dead; gives both."""
        found = self.database.one("SELECT charged FROM requests WHERE id = :id", id=entry.number)
        was = entry.reserved if found is None else found[0]  # folded: who held it dead charged its reservation
        more = max(0, tokens - was)
        self.database.run(
            "UPDATE requests SET charged = charged + :more, facts = :facts WHERE id = :id",
            more=more,
            facts=self._kept(facts),
            id=entry.number,
        )
        self.database.run(
            "UPDATE budgets SET charged = charged + :more, spent = spent + :more WHERE name = :name",
            more=more,
            name=self.name,
        )
        return int(was + more)

    def skip(self, key: Sequence[Any], tokens: int) -> None:
        """Charge a decision to skip a question.

        :raises NoRoom: see :meth:`enter`.
        """
        with self.database.transaction():
            self.settle(self.enter(key, tokens), tokens, {"skipped": True})

    def close(self) -> None:
        """Bring everything to the disk and close the database."""
        self.database.sync()
        self.database.close()
