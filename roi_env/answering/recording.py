"""Recording: questions x tiers x samples, kept in a journal, then made into an outcome table.

Two ways. A model in this process answers a (question, sample) at all tiers from one thought (:func:`record`, one line of
the :class:`Journal` each). An endpoint answers every (question, tier, sample) by itself (:func:`record_live`): its
requests stand in a :class:`~roi_env.answering.ledger.Ledger` before they are sent. There, answers are graded afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from roi_env.answering.backends import BACKENDS
from roi_env.answering.base import (
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
from roi_env.answering.ledger import JournalError, Ledger, LineFile, reply_facts, reply_of
from roi_env.sources.outcome_tables import OutcomeTable


class Journal:
    """An append-only file of finished work.

    What a damaged line held is done again; ``messages`` says so.

    :param path: created where absent.
    :param settings: what the results depend on; a journal with other settings is refused.
    :raises JournalError: for other settings, or a journal that another process writes.
    """

    def __init__(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        self._lines = LineFile(path, settings)
        self.path, self.messages = self._lines.path, self._lines.messages
        self.done: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        kept = []
        for record in self._lines.records:
            try:
                self.done[record["dataset"], record["question_id"], record["sample"]] = record["tiers"]
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
            self.done[record["dataset"], record["question_id"], record["sample"]] = record["tiers"]

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
) -> None:
    """Let the solver answer what the journal lacks.

    :param batch: (question, sample) pairs between two writes.
    :param watch: called with pairs done and in all, at the start and after every write.
    """
    wanted = [
        (question, sample)
        for question in questions
        for sample in range(samples)
        if (question.dataset, question.question_id, sample) not in journal.done
    ]
    total = len(questions) * samples
    watch(total - len(wanted), total)
    for start in range(0, len(wanted), batch):
        pairs = wanted[start : start + batch]
        made = iter(solver.generate([Request(question, tier, sample) for question, sample in pairs for tier in tiers]))
        journal.append(
            {
                "dataset": question.dataset,
                "question_id": question.question_id,
                "sample": sample,
                "tiers": [_outcome(question, next(made), check) for _ in tiers],
            }
            for question, sample in pairs
        )
        watch(total - len(wanted) + min(start + batch, len(wanted)), total)


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
        self.questions: dict[tuple[str, str], Question] = {}
        self.without_seeds: tuple[int, str] | None = None
        """(Number of the first request without a seed, why); None: as the settings say."""
        for note in ledger.notes:
            if isinstance(fields := note.get("question"), dict):
                self.questions[fields["dataset"], fields["question_id"]] = Question(**fields)
            elif "no_seeds" in note and self.without_seeds is None:
                self.without_seeds = note["no_seeds"]["from"], note["no_seeds"]["why"]

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
        outcomes = {key: reply for key, reply in self.replies() if reply.error is None}
        if any(reply.opened for reply in outcomes.values()) and self.ledger.file is not None:
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
            if reply.error is not None and not reply.lost and reply.retry_in is None and key not in outcomes
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

    :param concurrency: questions worked on at a time.
    :param lost_retries: how often a request of unknown fate is asked again; each is charged.
    :param retry_errors: ask again what ended in a permanent error.
    :param watch: called after every reply.
    :param gone: called after every reply; why to stop, None: go on.
    :returns: the end; ``stopped`` names the limit where one was reached, ``gone`` says that the endpoint is gone, ``held``
        that it asks to wait too long: what could not be asked is no permanent error and stays to be asked.
    """
    recording = LiveRecording(ledger)
    finished = set(recording.outcomes())
    errors = {key for key, reply in recording.errors().items() if not reply.unreachable}
    if not retry_errors:
        finished |= errors
    wanted = iter(
        [
            (question, tier, sample)
            for question in questions
            for sample in range(samples)
            for tier in tiers
            if (question.dataset, question.question_id, tier.name, sample) not in finished
        ]
    )
    total = len(questions) * len(tiers) * samples
    unknown = len(ledger.unknown) + sum(reply.lost for _, reply in recording.replies())
    usd = sum(limits.price(entry.reserved, 0) for entry in ledger.unknown)
    usd += sum(_usd(reply, limits) for _, reply in recording.replies())
    usd_reserved = 0.0
    stopped: str | None = None
    absent: str | None = None
    held: str | None = None
    reached = 0  # requests that came to the endpoint

    def progress() -> RecordingProgress:
        done = len(finished) + len(errors - finished)
        return RecordingProgress(done, total, len(errors), unknown, ledger.charged, usd, stopped, absent, held)

    async def work() -> None:
        nonlocal stopped, absent, held, reached, unknown, usd, usd_reserved
        for question, tier, sample in wanted:
            key = (question.dataset, question.question_id, tier.name, sample)
            for _ in range(1 + lost_retries):
                # A byte is at least a token: the most that the prompt can cost.
                most_usd = limits.price(tier.most_tokens, len(question.text.encode()) + 64)
                if limits.tokens is not None and ledger.charged + ledger.reserved + tier.most_tokens > limits.tokens:
                    stopped = f"{limits.tokens:,} tokens"
                if limits.usd is not None and usd + usd_reserved + most_usd > limits.usd:
                    stopped = f"{limits.usd:g} USD"
                if stopped or absent or held:
                    return
                usd_reserved += most_usd
                if (question.dataset, question.question_id) not in recording.questions:
                    recording.questions[question.dataset, question.question_id] = question
                    ledger.note({"question": {**question.__dict__, "extra": dict(question.extra)}})
                entry, before, sent = ledger.enter(key, tier.most_tokens), reached, False
                try:
                    await ledger.on_disk()
                    sent = True
                    reply = await solver.answer(Ask(question, tier, tier.most_tokens, sample))
                except asyncio.CancelledError as error:
                    if not sent or is_unsent(error):
                        ledger.settle(entry, 0, reply_facts(unsent_reply()))
                    raise
                ledger.settle(entry, reply.tokens, reply_facts(reply))
                usd_reserved -= most_usd
                usd += _usd(reply, limits)
                unknown += reply.lost
                if reply.error is None:
                    finished.add(key)
                    errors.discard(key)
                elif reply.retry_in is not None:
                    held = held or reply.error
                elif not reply.lost and not reply.unreachable:
                    errors.add(key)
                if reply.unreachable and reached == before:
                    absent = absent or reply.error  # not this question's fault: none came through meanwhile
                absent = absent or gone()
                reached += not reply.unreachable
                watch(progress())
                if not reply.lost:
                    break

    watch(progress())
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return progress()


def _usd(reply: Reply, limits: Limits) -> float:
    return limits.price(reply.tokens, reply.prompt_tokens or 0) if reply.usd is None else reply.usd


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
    return _table(rows, path, tiers, menu, False, decision_cost, {"seeds": json.dumps(recording.seeds())})
