"""Recording: every (question, sample) at all tiers, kept in a journal, then made into an outcome table.

The journal is a JSON Lines file that is only ever appended to: a first line with the settings, then one line a (question,
sample). It is flushed to the disk after every batch; a line torn by a crash is dropped when the journal is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from roi_env.outcomes import OutcomeTable
from roi_env.solvers.base import Checker, Generation, Question, Request, Solver, ThinkingTier


class JournalError(ValueError):
    """A journal that cannot be continued."""


class Journal:
    """An append-only file of finished work.

    :param path: created where absent.
    :param settings: what the results depend on; a journal with other settings is refused.
    :raises JournalError: for other settings, or a damaged line before the last.
    """

    def __init__(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        self.path = Path(path)
        settings = json.loads(json.dumps(settings))
        self.done: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                if number:
                    self.done[record["dataset"], record["question_id"], record["sample"]] = record["tiers"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise JournalError(f"{self.path}: line {number + 1} is damaged ({error}); delete it to go on") from None
            if number == 0 and record != settings:
                raise JournalError(
                    f"{self.path} was begun with other settings: {record} instead of {settings}; "
                    "choose another journal, or the same settings"
                )
        self._file = self.path.open("ab")
        # What follows the last whole line was being written when the process died.
        self._file.truncate(len(whole))
        if not lines:
            self._write([settings])

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add finished work; it is on the disk when this returns."""
        records = list(records)
        self._write(records)
        for record in records:
            self.done[record["dataset"], record["question_id"], record["sample"]] = record["tiers"]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self._file.flush()
        os.fsync(self._file.fileno())


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
    return {"text": made.text, "tokens": made.tokens, "cut": made.cut, "correct": check(question, made.text)}


def outcome_table(
    questions: Sequence[Question],
    tiers: Sequence[ThinkingTier],
    samples: int,
    journal: Journal,
    *,
    family: str,
    pairing: bool,
    decision_cost: int,
) -> OutcomeTable:
    """The table of a complete journal; texts of generations stay in the journal.

    :param family: name of the model.
    :raises JournalError: where work is missing.
    """
    rows: dict[str, list[Any]] = {}
    for question in questions:
        for sample in range(samples):
            outcomes = journal.done.get((question.dataset, question.question_id, sample))
            if outcomes is None:
                raise JournalError(f"{journal.path}: question {question.question_id!r}, sample {sample} is missing")
            for order, (tier, outcome) in enumerate(zip(tiers, outcomes, strict=True), 1):
                row: dict[str, Any] = {
                    "dataset": question.dataset,
                    "question_id": question.question_id,
                    "question": question.text,
                    "answer": question.answer,
                    "family": family,
                    "tier": tier.name,
                    "tier_order": order,
                    "tokens": outcome["tokens"],
                    "correct": outcome["correct"],
                    "sample": sample,
                    **question.extra,
                }
                for name, value in row.items():
                    rows.setdefault(name, []).append(value)
    edges = json.dumps({family: {tier.name: tier.most_tokens for tier in tiers}})
    metadata = {
        "level_edges": edges,
        "tier_caps": edges,
        "decision_cost": str(decision_cost),
        "pairing": str(pairing).lower(),
    }
    return OutcomeTable.from_arrow(pa.table(rows).replace_schema_metadata(metadata), str(journal.path))
