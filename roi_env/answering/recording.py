"""Recording: questions x tiers x samples, kept in a journal, then made into an outcome table.

Two ways. A model in this process answers a (question, sample) at all tiers from one thought (:func:`record`, one line of
the :class:`Journal` each). An endpoint answers every (question, tier, sample) by itself (:func:`record_live`): its
requests stand in a :class:`~roi_env.answering.ledger.Ledger` before they are sent. There, answers are graded afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from roi_env.answering.backends import BACKENDS
from roi_env.answering.base import (
    REASONING,
    Ask,
    Checker,
    Generation,
    LiveSolver,
    Question,
    Reply,
    Request,
    Solver,
    ThinkingTier,
    is_unsent,
    unsent_reply,
)
from roi_env.answering.ledger import JournalError, Ledger, LineFile, Refuse, reply_facts, reply_of, same_settings
from roi_env.sources.outcome_tables import OutcomeTable

if TYPE_CHECKING:
    from roi_env.answering.forcing import ForcingSolver


class Journal:
    """An append-only file of finished work.

    What a damaged line held is done again; ``messages`` says so.

    :param path: created where absent.
    :param settings: what the results depend on; a journal with other settings is refused.
    :param refuse: which other settings are, see :class:`roi_env.answering.ledger.LineFile`.
    :raises JournalError: for other settings, or a journal that another process writes.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: dict[str, Any], *, refuse: Refuse = same_settings
    ) -> None:
        self._lines = LineFile(path, settings, refuse=refuse)
        self.path, self.messages = self._lines.path, self._lines.messages
        self.done: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        self.marks: dict[tuple[str, str, int], tuple[str | None, str | None]] = {}
        """Digests of the text that was asked and of what judged its answers; None: an earlier version does not say."""
        kept = []
        for record in self._lines.records:
            try:
                self._keep(record)
                kept.append(record)
            except (KeyError, TypeError):
                continue
        damaged = len(self._lines.records) - len(kept) + len(self._lines.unreadable) + bool(self._lines.torn)
        if damaged:
            self._lines.repair(kept, f"{damaged:,} of its lines cannot be read; what they held is done again")

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add finished work; it is on the disk when this returns."""
        records = list(records)
        self._lines.append(records)
        for record in records:
            self._keep(record)

    def _keep(self, record: Mapping[str, Any]) -> None:
        key = record["dataset"], record["question_id"], record["sample"]
        self.done[key], self.marks[key] = record["tiers"], (record.get("asked"), record.get("judged"))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def record(
    questions: Sequence[Question],
    tiers: Sequence[ThinkingTier],
    samples: int,
    solver: Solver,
    check: Checker,
    journal: Journal,
    *,
    batch: int = 512,
    watch: Callable[[int, int], None] = lambda done, total: None,
    judge: str = "",
) -> int:
    """Let the solver answer what the journal lacks.

    What is finished is written at once. Answers that another judge, or another reference, judged before are judged again.

    :param batch: (question, sample) pairs that the solver is given together.
    :param watch: called with pairs done and in all, at the start and after every write.
    :param judge: names what ``check`` judges by.
    :returns: how many pairs were judged again.
    :raises JournalError: where a question was answered with another text.
    """
    again = _judge_again(questions, samples, check, journal, judge)
    wanted = [
        (question, sample)
        for question in questions
        for sample in range(samples)
        if (question.dataset, question.question_id, sample) not in journal.done
    ]
    total = len(questions) * samples
    done = total - len(wanted)
    watch(done, total)
    for start in range(0, len(wanted), batch):
        pairs = wanted[start : start + batch]
        requests = [Request(question, tier, sample) for question, sample in pairs for tier in tiers]
        for ready in solver.finished(requests):
            made = dict(ready)
            finished = sorted({number // len(tiers) for number in made})
            journal.append(
                _line(
                    question,
                    sample,
                    [_outcome(question, made[pair * len(tiers) + tier], check) for tier in range(len(tiers))],
                    judge,
                )
                for pair, (question, sample) in ((pair, pairs[pair]) for pair in finished)
            )
            done += len(finished)
            watch(done, total)
    return again


def _line(question: Question, sample: int, outcomes: list[dict[str, Any]], judge: str) -> dict[str, Any]:
    """A line of a journal."""
    asked, judged = _marks(question, judge)
    names = {"dataset": question.dataset, "question_id": question.question_id, "sample": sample}
    return {**names, "asked": asked, "judged": judged, "tiers": outcomes}


def _marks(question: Question, judge: str) -> tuple[str, str]:
    """Digests of what is asked, and of what judges its answers."""
    by = json.dumps([judge, question.answer, dict(question.extra)], sort_keys=True, default=str)
    asked, judged = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (question.text, by))
    return asked, judged


def _judge_again(questions: Sequence[Question], samples: int, check: Checker, journal: Journal, judge: str) -> int:
    """Bring the grades of a journal up to date; see :func:`record`."""
    lines = []
    for question in questions:
        asked, judged = _marks(question, judge)
        for sample in range(samples):
            key = (question.dataset, question.question_id, sample)
            before, by = journal.marks.get(key, (None, None))
            if before not in (None, asked):
                raise JournalError(
                    f"{journal.path}: question {question.question_id!r} of {question.dataset!r} was answered with another text "
                    "than it has now: give it another id, or choose another journal"
                )
            if by not in (None, judged):
                outcomes = [{**one, "correct": check(question, one["text"])} for one in journal.done[key]]
                lines.append(_line(question, sample, outcomes, judge))
    if lines:
        journal.append(lines)
    return len(lines)


def _outcome(question: Question, made: Generation, check: Checker) -> dict[str, Any]:
    kept = {"text": made.text, "tokens": made.tokens, "cut": made.cut, "correct": check(question, made.text)}
    return kept if made.reasoning is None else {**kept, "reasoning": made.reasoning}


def outcome_table(
    questions: Sequence[Question],
    tiers: Sequence[ThinkingTier],
    samples: int,
    journal: Journal,
    *,
    menu: str,
    pairing: bool,
    decision_cost: int,
) -> OutcomeTable:
    """The table of a complete journal; texts of generations stay in the journal.

    :param menu: name of the model.
    :raises JournalError: where work is missing.
    """
    rows = []
    for question in questions:
        for sample in range(samples):
            outcomes = journal.done.get((question.dataset, question.question_id, sample))
            if outcomes is None:
                raise JournalError(f"{journal.path}: question {question.question_id!r}, sample {sample} is missing")
            for order, (tier, outcome) in enumerate(zip(tiers, outcomes, strict=True), 1):
                made = {"tokens": outcome["tokens"], "correct": outcome["correct"]}
                rows.append(_row(question, menu, tier, order, sample, made))
    return _table(rows, str(journal.path), tiers, menu, pairing, decision_cost)


def _row(
    question: Question, menu: str, tier: ThinkingTier, order: int, sample: int, made: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "dataset": question.dataset,
        "question_id": question.question_id,
        "question": question.text,
        "answer": question.answer,
        "menu": menu,
        "tier": tier.name,
        "tier_order": order,
        "sample": sample,
        **made,
        **question.extra,
    }


def _table(
    rows: Sequence[Mapping[str, Any]],
    path: str,
    tiers: Sequence[ThinkingTier],
    menu: str,
    pairing: bool,
    decision_cost: int,
    more: Mapping[str, str] = {},
) -> OutcomeTable:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    edges = json.dumps({menu: {tier.name: tier.most_tokens for tier in tiers}})
    metadata = {
        "level_edges": edges,
        "tier_caps": edges,
        "decision_cost": str(decision_cost),
        "pairing": str(pairing).lower(),
        **more,
    }
    return OutcomeTable.from_arrow(pa.table(columns).replace_schema_metadata(metadata), path)


# ---------------------------------------------------------------------------------------------------------------------
# Endpoints


@dataclass(frozen=True)
class Limits:
    """Where a recording stops. Prices are US dollars a million tokens.

    :param tokens: most tokens charged in all, reservations included; None: no limit.
    :param usd: most dollars, reservations included; None: no limit.
    :param usd_output: price of generated tokens.
    :param usd_prompt: price of prompt tokens.
    """

    tokens: int | None = None
    usd: float | None = None
    usd_output: float = 0.0
    usd_prompt: float = 0.0

    def price(self, tokens: int, prompt: int) -> float:
        """Dollars."""
        return (tokens * self.usd_output + prompt * self.usd_prompt) / 1e6


@dataclass(frozen=True)
class RecordingProgress:
    """How far a recording is.

    :param done: outcomes and permanent errors.
    :param total: of the recording.
    :param errors: permanent errors among ``done``.
    :param unknown: requests whose outcome is unknown; they stay charged.
    :param tokens: charged.
    :param usd: charged.
    :param stopped: the limit that ended the recording early.
    :param gone: how the endpoint could not be reached any more, which ended the recording early.
    :param held: what the endpoint said as it asked to wait longer than allowed, which ended the recording early.
    """

    done: int
    total: int
    errors: int
    unknown: int
    tokens: int
    usd: float
    stopped: str | None = None
    gone: str | None = None
    held: str | None = None


class LiveRecording:
    """What a ledger of a recording holds.

    :param ledger: its settings name the tiers (``tiers``: name, thinking, answer, effort), its notes are the questions.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.reasonings: dict[tuple[str, str, int], Reply] = {}
        """By data set, question and sample, where all tiers of a sample come from one reasoning."""
        for entry in ledger.entries:
            if entry.key[2] == REASONING and entry.facts is not None and "error" not in entry.facts:
                self.reasonings[entry.key[0], entry.key[1], entry.key[3]] = reply_of(entry.facts)
        self.questions: dict[tuple[str, str], Question] = {}
        self.without_seeds: tuple[int, str] | None = None
        """(Number of the first request without a seed, why); None: as the settings say."""
        for note in ledger.notes:
            if isinstance(fields := note.get("question"), dict):
                self.questions[fields["dataset"], fields["question_id"]] = Question(**fields)
            elif "no_seeds" in note and self.without_seeds is None:
                self.without_seeds = note["no_seeds"]["from"], note["no_seeds"]["why"]

    def take_in(self, questions: Sequence[Question]) -> int:
        """Take the questions as they are now: answers are judged by the newest reference.

        :returns: how many have another reference, or other columns, than before.
        :raises JournalError: where one was answered with another text.
        """
        answered = {key[:2] for key in self.outcomes()} | {key[:2] for key in self.reasonings}
        changed = 0
        for question in questions:
            before = self.questions.get(name := _name(question))
            if before is None or before == question:
                continue
            if before.text != question.text and name in answered:
                path = self.ledger.file.path if self.ledger.file else "<memory>"
                raise JournalError(
                    f"{path}: question {question.question_id!r} of {question.dataset!r} was answered as {before.text!r:.60} and "
                    f"is {question.text!r:.60} now: give it another id, or choose another journal"
                )
            changed += 1
            self.note(question)
        return changed

    def note(self, question: Question) -> None:
        """Keep a question; the newest of a name counts."""
        self.questions[_name(question)] = question
        self.ledger.note({"question": {**question.__dict__, "extra": dict(question.extra)}})

    def stop_seeds(self, why: str) -> None:
        """Note that requests have no seed from now on."""
        if self.without_seeds is None:
            self.without_seeds = len(self.ledger.entries), why
            self.ledger.note({"no_seeds": {"from": len(self.ledger.entries), "why": why}})

    def seeds(self) -> dict[str, Any]:
        """Of a table's metadata: the seed, how many answers came of requests with and without it, and why without."""
        settings = self.ledger.file.settings if self.ledger.file else {}
        seed, why = settings.get("seed"), None if self.without_seeds is None else self.without_seeds[1]
        backend = BACKENDS.get(settings.get("backend", ""))
        if seed is not None and backend is not None and "$seed" not in str(backend.body):
            seed, why = None, f"{backend.name} takes no seeds"
        end = 0 if seed is None else len(self.ledger.entries) if self.without_seeds is None else self.without_seeds[0]
        answers = self.outcomes()
        seeded = {entry.key for entry in self.ledger.entries[:end] if entry.facts and "error" not in entry.facts}
        count = len(answers.keys() & seeded)
        return {"seed": seed, "with": count, "without": len(answers) - count, "why": why}

    def replies(self) -> Iterator[tuple[tuple[str, str, str, int], Reply]]:
        """(dataset, question id, tier, sample) and reply of every settled request, in the order of asking."""
        for entry in self.ledger.entries:
            if entry.facts is not None:
                reply = reply_of(entry.facts)
                if reply.error is None and reply.finish != "refused" and not (reply.tokens or reply.full_text.strip()):
                    # Journals begun before responses were read so strictly hold failures as answers.
                    reply = replace(reply, finish="error", error="no text and 0 tokens: a failed answer")
                yield entry.key, reply  # type: ignore[misc]

    def outcomes(self) -> dict[tuple[str, str, str, int], Reply]:
        """The answers that came.

        Where some show that the prompt opens the think block, a cut answer that does not end it is an unfinished thought.
        """
        outcomes = {key: reply for key, reply in self.replies() if reply.error is None and key[2] != REASONING}
        opened = any(reply.opened for reply in outcomes.values()) and not self.reasonings
        if opened and self.ledger.file is not None:
            tiers = [ThinkingTier(*fields) for fields in self.ledger.file.settings.get("tiers", [])]
            think = {tier.name for tier in tiers if tier.thinking}
            for key, reply in outcomes.items():
                if key[2] in think and reply.finish == "length" and reply.text and not reply.reasoning:
                    told = "; ".join(filter(None, (reply.note, "an unfinished thought is no answer")))
                    outcomes[key] = replace(reply, text="", reasoning=reply.text, note=told)
        return outcomes

    def errors(self) -> dict[tuple[str, str, str, int], Reply]:
        """Permanent errors that no later request made good."""
        outcomes = self.outcomes()
        return {
            key: reply
            for key, reply in self.replies()
            if reply.error is not None and not reply.lost and reply.retry_in is None
            if key not in outcomes and key[2] != REASONING
        }


async def record_live(
    questions: Sequence[Question],
    tiers: Sequence[ThinkingTier],
    samples: int,
    solver: LiveSolver,
    ledger: Ledger,
    *,
    concurrency: int = 16,
    limits: Limits = Limits(),
    lost_retries: int = 2,
    retry_errors: bool = False,
    watch: Callable[[RecordingProgress], None] = lambda progress: None,
    gone: Callable[[], str | None] = lambda: None,
) -> RecordingProgress:
    """Let an endpoint answer what the ledger lacks.

    :param solver: one that forces answers writes one reasoning for all tiers of a (question, sample), which stands in the ledger
        as a request of its own; what a tier is charged is then what its own request cost.
    :param concurrency: questions worked on at a time.
    :param lost_retries: how often a request of unknown fate is asked again; each is charged.
    :param retry_errors: ask again what ended in a permanent error.
    :param watch: called after every reply.
    :param gone: called after every reply; why to stop, None: go on.
    :returns: the end; ``stopped`` names the limit where one was reached, ``gone`` says that the endpoint is gone, ``held``
        that it asks to wait too long: what could not be asked is no permanent error and stays to be asked.
    :raises JournalError: see :meth:`LiveRecording.take_in`.
    """
    asked = {
        (*_name(question), tier.name, sample) for question in questions for tier in tiers for sample in range(samples)
    }
    run = _Requests(ledger, limits, lost_retries, asked, tiers, solver, watch, gone)
    run.recording.take_in(questions)
    finished = run.finished if retry_errors else run.finished | run.errors
    wanted = [
        (question, sample, [tier for tier in tiers if (*_name(question), tier.name, sample) not in finished])
        for question in questions
        for sample in range(samples)
    ]

    async def apart(question: Question, tier: ThinkingTier, sample: int) -> None:
        ask = Ask(question, tier, tier.most_tokens, sample)
        await run.ask(ask, tier.most_tokens, lambda: solver.answer(ask))

    async def together(question: Question, sample: int, missing: Sequence[ThinkingTier]) -> None:
        await _record_pair(run, cast("ForcingSolver", solver), question, sample, missing, tiers)

    work: Iterator[Callable[[], Awaitable[None]]]
    if getattr(solver, "paired", False):
        work = (partial(together, question, sample, missing) for question, sample, missing in wanted if missing)
    else:
        work = (partial(apart, question, tier, sample) for question, sample, missing in wanted for tier in missing)

    async def worker() -> None:
        for one in work:
            if run.ended:
                return
            await one()

    watch(run.progress())
    workers = [asyncio.create_task(worker()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for one in workers:  # else they would go on asking
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise
    return run.progress()


def _name(question: Question) -> tuple[str, str]:
    return question.dataset, question.question_id


async def _record_pair(
    run: _Requests,
    solver: ForcingSolver,
    question: Question,
    sample: int,
    missing: Sequence[ThinkingTier],
    tiers: Sequence[ThinkingTier],
) -> None:
    """The tiers of a (question, sample) that are missing, from one reasoning."""
    caps = {tier.name: solver.dialect.reasoning(tier) for tier in tiers}
    reasoning = run.recording.reasonings.get((*_name(question), sample))
    if reasoning is None and any(caps[tier.name] for tier in missing):
        most = max(caps.values())
        ask = Ask(question, ThinkingTier(REASONING, most, 1), most, sample)
        reasoning = await run.ask(ask, most, lambda: solver.reason(ask, most))
        if reasoning is None or (reasoning.error is not None and not run.is_permanent(reasoning)):
            return
    for tier in missing:
        cap, text = caps[tier.name], ""
        ask = Ask(question, tier, tier.most_tokens, sample)
        if cap and reasoning is not None and not solver.is_cut(reasoning, cap):
            await run.ask(ask, 0, partial(_given, replace(reasoning, prompt_tokens=0, usd=None)), reasoning.tokens)
            continue
        if cap and reasoning is not None:
            text = solver.head(reasoning, cap)
        await run.ask(ask, tier.answer, partial(solver.force, ask, text, cap), cap, read=text)


async def _given(reply: Reply) -> Reply:
    return reply


class _Requests:
    """Requests of a recording: entered in its ledger, sent, settled; and where it stops.

    :param asked: keys of the outcomes that are wanted in all; the ledger may hold others.
    """

    def __init__(
        self,
        ledger: Ledger,
        limits: Limits,
        lost_retries: int,
        asked: Set[tuple[Any, ...]],
        tiers: Sequence[ThinkingTier],
        solver: LiveSolver,
        watch: Callable[[RecordingProgress], None],
        gone: Callable[[], str | None],
    ) -> None:
        self.ledger, self.limits, self.asked = ledger, limits, asked
        self._tiers = {tier.name: tier for tier in tiers}
        self._most_prompt: Callable[[Ask], int] = getattr(solver, "most_prompt", _bytes)
        self._lost_retries, self._watch, self._gone = lost_retries, watch, gone
        self.recording = LiveRecording(ledger)
        self.finished = set(self.recording.outcomes())
        self.errors = {key for key, reply in self.recording.errors().items() if not reply.unreachable} & asked
        self._done = len((self.finished | self.errors) & asked)
        self._unknown = len(ledger.unknown) + sum(reply.lost for _, reply in self.recording.replies())
        self._usd = sum(limits.price(entry.reserved, self._bound(entry.key)) for entry in ledger.unknown)
        self._usd += sum(
            _usd(entry.charged or 0, reply_of(entry.facts), limits, partial(self._bound, entry.key))
            for entry in ledger.entries
            if entry.facts is not None
        )
        self._usd_reserved = 0.0
        self._stopped: str | None = None
        self._absent: str | None = None
        self._held: str | None = None
        self._reached = 0  # requests that came to the endpoint

    def progress(self) -> RecordingProgress:
        """How far it is."""
        counts = (self._done, len(self.asked), len(self.errors), self._unknown)
        return RecordingProgress(*counts, self.ledger.charged, self._usd, self._stopped, self._absent, self._held)

    def _prompt(self, ask: Ask, read: str = "") -> int:
        """Most tokens of a request's prompt, where dollars are counted: none is shorter than a byte.

        :param read: what it reads beside the question.
        """
        return self._most_prompt(ask) + len(read.encode()) if self.limits.usd_prompt else 0

    def _bound(self, key: tuple[Any, ...]) -> int:
        """The same of a request of the ledger."""
        question = self.recording.questions.get(key[:2])
        tier = self._tiers.get(key[2]) or max(self._tiers.values(), key=lambda tier: tier.most_tokens)
        return 0 if question is None else self._prompt(Ask(question, tier, tier.most_tokens, key[3]))

    @property
    def ended(self) -> bool:
        """Whether nothing more may be sent."""
        return bool(self._stopped or self._absent or self._held)

    @staticmethod
    def is_permanent(reply: Reply) -> bool:
        """Whether a reply is an error that asking again does not mend."""
        return reply.error is not None and reply.retry_in is None and not reply.lost and not reply.unreachable

    async def ask(
        self, ask: Ask, most: int, send: Callable[[], Awaitable[Reply]], shared: int = 0, *, read: str = ""
    ) -> Reply | None:
        """One request, again where its fate is unknown; the last reply. None: there was no room for it.

        :param most: tokens that it may be charged.
        :param shared: of the reply's tokens, those that another request was charged for.
        :param read: what it reads beside the question.
        """
        question, ledger, limits, reply = ask.question, self.ledger, self.limits, None
        key = (*_name(question), ask.tier.name, ask.sample)
        for _ in range(1 + self._lost_retries):
            most_usd = limits.price(most, self._prompt(ask, read)) if most else 0.0
            if limits.tokens is not None and ledger.charged + ledger.reserved + most > limits.tokens:
                self._stopped = f"{limits.tokens:,} tokens"
            if limits.usd is not None and self._usd + self._usd_reserved + most_usd > limits.usd:
                self._stopped = f"{limits.usd:g} USD"
            if self.ended:
                return reply
            self._usd_reserved += most_usd
            if _name(question) not in self.recording.questions:
                self.recording.note(question)
            entry, before, sent = ledger.enter(key, most), self._reached, False
            try:
                await ledger.on_disk()
                sent = True
                reply = await send()
            except asyncio.CancelledError as error:
                if not sent or is_unsent(error):
                    ledger.settle(entry, 0, reply_facts(unsent_reply()))
                raise
            charge = max(0, reply.tokens - shared)
            ledger.settle(entry, charge, reply_facts(reply))
            self._usd_reserved -= most_usd
            self._usd += _usd(charge, reply, limits, partial(self._prompt, ask, read))
            self._settled(key, reply, before)
            self._watch(self.progress())
            if not reply.lost:
                break
        return reply

    def _settled(self, key: tuple[str, str, str, int], reply: Reply, before: int) -> None:
        """Take in what a request said.

        :param before: requests that had come to the endpoint when it was sent.
        """
        self._unknown += reply.lost
        if key[2] == REASONING:
            if reply.error is None:
                self.recording.reasonings[key[0], key[1], key[3]] = reply
        elif reply.error is None:
            self._done += key not in self.finished and key not in self.errors
            self.finished.add(key)
            self.errors.discard(key)
        elif self.is_permanent(reply):
            self._done += key not in self.finished and key not in self.errors
            self.errors.add(key)
        if reply.retry_in is not None:
            self._held = self._held or reply.error
        if reply.unreachable and self._reached == before:
            self._absent = self._absent or reply.error  # not this question's fault: none came through meanwhile
        self._absent = self._absent or self._gone()
        self._reached += not reply.unreachable


def _bytes(ask: Ask) -> int:
    """Most tokens of a prompt, for a solver that does not say: a byte is at least one, and a chat template begins with some."""
    return len(ask.question.text.encode()) + 256


def _usd(tokens: int, reply: Reply, limits: Limits, bound: Callable[[], int]) -> float:
    """What a reply cost.

    :param bound: most tokens of the prompt, asked where it was read and the reply does not tell them.
    """
    if reply.usd is not None:
        return reply.usd
    told = reply.prompt_tokens
    if told is None:
        read = reply.attempts > 0 and (reply.error is None or reply.tokens > 0 or reply.lost)
        told = bound() if read else 0
    return limits.price(tokens, told)


def live_table(
    recording: LiveRecording,
    tiers: Sequence[ThinkingTier],
    correct: Mapping[tuple[str, str, str, int], bool],
    *,
    menu: str,
    decision_cost: int,
) -> OutcomeTable:
    """The table of all answers that came; errors and unknown outcomes have no row, so that counts may be unequal.

    Columns besides the usual: ``reasoning_tokens`` (null: unknown), ``finish``, ``counted``, ``note`` (what contradicts
    in the endpoint's answer; null: nothing). Metadata: ``seeds``, see :meth:`LiveRecording.seeds`.

    :param correct: grade of every outcome.
    :raises JournalError: where there is no outcome.
    """
    order = {tier.name: number for number, tier in enumerate(tiers, 1)}
    by_name = {tier.name: tier for tier in tiers}
    places = {key: number for number, key in enumerate(recording.questions)}
    rows = []
    for key, reply in sorted(
        recording.outcomes().items(), key=lambda item: (places[item[0][:2]], item[0][3], order[item[0][2]])
    ):
        made = {
            "tokens": reply.tokens,
            "correct": correct[key],
            "reasoning_tokens": reply.reasoning_tokens,
            "finish": reply.finish,
            "counted": reply.counted,
            "note": reply.note,
        }
        question = recording.questions[key[:2]]
        rows.append(_row(question, menu, by_name[key[2]], order[key[2]], key[3], made))
    path = str(recording.ledger.file.path) if recording.ledger.file else "<memory>"
    if not rows:
        raise JournalError(f"{path}: no answer came; nothing can be tabulated")
    paired = bool(recording.reasonings)
    return _table(rows, path, tiers, menu, paired, decision_cost, {"seeds": json.dumps(recording.seeds())})
