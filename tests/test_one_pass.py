"""Exams taken in one pass by a real model: the benchmark's way from a table to its figures, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("transformers", reason="needs the extra [llm]")

from benchmarks import one_pass
from roi_env.sources.outcome_tables import OutcomeTable
from tests.tiny_models import tiny_model

TIERS = {"256": 256, "512": 512, "1024": 1024}


def table(folder: Path) -> Path:
    """Three data sets, every question right from another tier on."""
    rows = [
        {
            "dataset": name, "question_id": f"{name}{q}", "question": f"{name} {q} + 1 =", "answer": str(q + 1), "menu": "m", "tier": tier,
            "tier_order": k, "tokens": min(cap, 200 * least), "correct": k >= least, "sample": sample,
        }
        for least, name in enumerate(("sums", "roots", "proofs"), 1) for q in range(24) for sample in range(2)
        for k, (tier, cap) in enumerate(TIERS.items(), 1)
    ]  # fmt: skip
    made = OutcomeTable.from_arrow(pa.Table.from_pylist(rows), "made.parquet")
    dataclasses.replace(made, level_edges={"m": TIERS}, pairing=True).write(folder / "made.parquet")
    return folder / "made.parquet"


def test_all_cells_are_written_marked_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(one_pass, "BUDGETS", (12, 24))
    model, journal, out = tiny_model(tmp_path / "model"), tmp_path / "journal.jsonl", tmp_path / "out.json"
    given = [str(model), "--table", str(table(tmp_path)), "--journal", str(journal), "--out", str(out), "--dtype", "float32", "--threads", "1"]  # fmt: skip

    def run(*more: str) -> dict[tuple[str, str, int], dict[str, Any]]:
        monkeypatch.setattr("sys.argv", ["one_pass.py", *given, *more])
        one_pass.main()
        return {(row["order"], row["prompt"], row["budget"]): row for row in json.loads(out.read_text())["cells"]}

    few = run("--exams", "2", "--batch", "4")
    assert set(few) == {(*cell, budget) for cell in one_pass.CELLS for budget in (12, 24)}
    for (order, prompt, budget), row in few.items():
        assert row["exams"] == 2
        assert 0 < row["tokens"] <= budget
        assert sum(row["reached_by_dataset"].values()) >= 1
        assert set(row["right_by_dataset"]) == {"sums", "roots", "proofs"}
        # One text serves both budgets.
        assert few[order, prompt, 12]["tokens"] <= row["tokens"]
    written = journal.read_text()
    assert len(written.splitlines()) == 1 + 2 * len(one_pass.CELLS)
    # The last line was cut: it is written again, to the same; nothing else is.
    cut = written[:-10]
    journal.write_text(cut)
    assert run("--exams", "2", "--batch", "4") == few
    assert journal.read_text().splitlines()[-1] == written.splitlines()[-1]
    assert len(journal.read_text().splitlines()) == 2 + 2 * len(one_pass.CELLS)
    # More exams go on with them, and what is there can be marked alone.
    more = run("--exams", "3")
    assert {row["exams"] for row in more.values()} == {3}
    # A results file with more exams, of another machine say, keeps its cells.
    assert run("--exams", "2", "--marks-only") == more
    out.unlink()
    capsys.readouterr()
    assert run("--exams", "2", "--marks-only") == few
    assert "tokens a second" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="choose another journal"):
        run("--temperature", "0")
