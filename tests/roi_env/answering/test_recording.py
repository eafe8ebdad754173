"""The journal survives crashes, recording goes on where it stopped, and the table says what the journal says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from roi_env.answering.base import Generation, Question, Request, ThinkingTier
from roi_env.answering.ledger import JournalError
from roi_env.answering.recording import Journal, outcome_table, record
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.recorded import recorded_source

TIERS = (ThinkingTier("low", 0, 3), ThinkingTier("high", 9, 3))
QUESTIONS = [Question("sums", f"q{n}", f"{n} + {n} =", str(2 * n), {"difficulty": n % 2}) for n in range(40)]
SETTINGS = {"model": "counter", "tiers": ["low", "high"]}


class Counter:
    """A real solver of these sums, the last first: right at "high", and at "low" for small numbers; may break down.

    :param calls: samples of a question before it does.
    """

    name = "counter"
    paired = True

    def __init__(self, calls: int = 1000) -> None:
        self.calls, self.asked = calls, 0

    def finished(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Generation]]]:
        for pair in reversed(range(len(requests) // len(TIERS))):
            if self.calls == 0:
                raise ConnectionError("gone")
            self.calls -= 1
            places = range(pair * len(TIERS), (pair + 1) * len(TIERS))
            self.asked += len(places)
            yield [(place, self.answer(requests[place])) for place in reversed(places)]

    def answer(self, request: Request) -> Generation:
        number = int(request.question.text.split()[0])
        knows = request.tier.thinking > 0 or number < 10
        return Generation(str(2 * number if knows else -1), 1 + request.sample + request.tier.thinking, False)


def check(question: Question, text: str) -> bool:
    return text == question.answer


def test_an_interrupted_recording_ends_in_the_same_table(tmp_path: Path) -> None:
    tables = []
    for name, calls in (("whole", [1000]), ("broken", [1, 29, 0, 1000])):
        asked = 0
        for allowed in calls:
            journal = Journal(tmp_path / f"{name}.jsonl", SETTINGS)
            solver = Counter(allowed)
            try:
                record(QUESTIONS, TIERS, 3, solver, check, journal, batch=16)
            except ConnectionError:
                assert allowed < 1000
            asked += solver.asked
            journal.close()
        assert asked == len(QUESTIONS) * 3 * len(TIERS), "nothing is asked twice"
        journal = Journal(tmp_path / f"{name}.jsonl", SETTINGS)
        made = outcome_table(QUESTIONS, TIERS, 3, journal, menu="counter", pairing=True, decision_cost=1)
        made.write(tmp_path / f"{name}.parquet")
        tables.append(OutcomeTable.read(tmp_path / f"{name}.parquet"))
        journal.close()
    assert tables[0].rows.equals(tables[1].rows)


def test_the_table_says_what_was_recorded(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", SETTINGS)
    seen: list[tuple[int, int]] = []
    record(QUESTIONS, TIERS, 2, Counter(), check, journal, batch=32, watch=lambda *at: seen.append(at))
    assert seen == [(done, 80) for done in range(81)]
    table = outcome_table(QUESTIONS, TIERS, 2, journal, menu="counter", pairing=True, decision_cost=1)
    assert table.num_rows == 160
    assert table.pairing
    assert table.decision_cost == 1
    assert table.level_edges == table.tier_caps == {"counter": {"low": 3, "high": 13}}
    for row in table.rows.to_pylist():
        number = int(row["question_id"][1:])
        assert row["correct"] == (row["tier"] == "high" or number < 10)
        assert row["tokens"] == 1 + row["sample"] + (9 if row["tier"] == "high" else 0)
        assert row["difficulty"] == number % 2
    source = recorded_source(table, group_by="difficulty")
    assert source.coupling == "common"
    journal.close()


@pytest.mark.parametrize("torn", [2, 7, 40])
def test_a_torn_last_line_is_dropped_and_recorded_again(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, SETTINGS)
    record(QUESTIONS, TIERS, 1, Counter(), check, journal, batch=8)
    whole = journal.done
    journal.close()
    path.write_bytes(path.read_bytes()[:-torn])
    journal = Journal(path, SETTINGS)
    assert len(journal.done) == len(whole) - 1
    solver = Counter()
    record(QUESTIONS, TIERS, 1, solver, check, journal)
    assert solver.asked == len(TIERS)
    assert journal.done == whole
    journal.close()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, SETTINGS)
    record(QUESTIONS, TIERS, 1, Counter(), check, journal)
    journal.close()
    with pytest.raises(JournalError, match=r"other settings: temperature was absent, is now 1\.0"):
        Journal(path, {**SETTINGS, "temperature": 1.0})
    assert list(tmp_path.iterdir()) == [path], "a refusal changes nothing and leaves no lock"


@pytest.mark.parametrize("damage", [b"{not json}\n", b"\0" * 90 + b"\n", b'{"dataset": 3}\n', b"[1]\n", b"\xff\xfe\n"])
def test_what_a_damaged_line_held_is_recorded_again(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, SETTINGS)
    record(QUESTIONS, TIERS, 1, Counter(), check, journal)
    whole = journal.done
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:3], damage, *lines[4:]])
    path.write_bytes(damaged)
    journal = Journal(path, SETTINGS)
    assert "1 of its lines cannot be read" in journal.messages[0]
    assert (tmp_path / "j.jsonl.damaged-1").read_bytes() == damaged
    solver = Counter()
    record(QUESTIONS, TIERS, 1, solver, check, journal)
    assert (solver.asked, journal.done) == (len(TIERS), whole)
    journal.close()
    journal = Journal(path, SETTINGS)
    assert (journal.done, journal.messages) == (whole, [])
    journal.close()


def test_a_last_line_without_its_end_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, SETTINGS)
    record(QUESTIONS[:3], TIERS, 1, Counter(), check, journal)
    journal.close()
    path.write_bytes(path.read_bytes().rstrip())
    journal = Journal(path, SETTINGS)
    assert (len(journal.done), journal.messages) == (3, [])
    record(QUESTIONS[:5], TIERS, 1, Counter(), check, journal)
    journal.close()
    journal = Journal(path, SETTINGS)
    assert (len(journal.done), journal.messages) == (5, [])
    journal.close()


def test_a_table_needs_a_complete_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", SETTINGS)
    record(QUESTIONS[:-1], TIERS, 1, Counter(), check, journal)
    with pytest.raises(JournalError, match="'q39', sample 0 is missing"):
        outcome_table(QUESTIONS, TIERS, 1, journal, menu="counter", pairing=True, decision_cost=1)
    journal.close()


def test_tiers_have_sensible_caps() -> None:
    for thinking, answer in ((-1, 3), (4, 0)):
        with pytest.raises(ValueError, match="needs thinking"):
            ThinkingTier("x", thinking, answer)
    assert ThinkingTier("x", 0, 3).most_tokens == 3
    assert ThinkingTier("x", 4, 3).most_tokens == 8


def test_a_question_whose_text_changed_is_refused_and_a_corrected_reference_judges_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", SETTINGS)
    assert record(QUESTIONS, TIERS, 2, Counter(), check, journal, judge="exact") == 0
    corrected = [replace(QUESTIONS[0], answer="-1"), *QUESTIONS[1:]]
    solver = Counter()
    assert record(corrected, TIERS, 2, solver, check, journal, judge="exact") == 2
    assert solver.asked == 0
    journal.close()
    journal = Journal(tmp_path / "j.jsonl", SETTINGS)
    table = outcome_table(corrected, TIERS, 2, journal, menu="counter", pairing=True, decision_cost=1)
    assert {row["correct"] for row in table.rows.to_pylist() if row["question_id"] == "q0"} == {False}
    assert record(corrected, TIERS, 2, solver, check, journal, judge="number") == 80, "another grader judges all"
    with pytest.raises(JournalError, match="question 'q1' of 'sums' was answered with another text"):
        record([replace(QUESTIONS[1], text="2 + 2 =")], TIERS, 2, solver, check, journal)
    journal.close()
