"""Joining recordings of one model: what is kept, what is left out, what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.math_table import joined
from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError


def recording(dataset: str, tiers: tuple[str, ...] = ("low", "high"), **settings: Any) -> OutcomeTable:
    rows = [
        {
            "dataset": dataset, "question_id": f"{dataset}-{q}", "question": f"{dataset} {q}?", "answer": "1", "menu": "m", "tier": tier,
            "tier_order": k, "tokens": 9 * k, "correct": k > 1, "sample": s,
        }
        for q in range(3) for s in range(2) for k, tier in enumerate(tiers, 1)
    ]  # fmt: skip
    caps = {"m": {tier: 10 * k for k, tier in enumerate(tiers, 1)}}
    settings = {"pairing": True, "level_edges": caps, "tier_caps": caps, "decision_cost": 1} | settings
    return dataclasses.replace(OutcomeTable.from_arrow(pa.Table.from_pylist(rows), f"{dataset}.parquet"), **settings)


def test_rows_settings_and_own_columns_are_kept_and_texts_left_out_where_asked(tmp_path: Path) -> None:
    one, other = recording("sums"), recording("proofs")
    other = dataclasses.replace(other, rows=other.rows.append_column("level", pa.array(["3"] * other.num_rows)))
    made = joined([one, other], ["proofs"])
    made.write(tmp_path / "joined.parquet")
    again = OutcomeTable.read(tmp_path / "joined.parquet")
    rows = again.rows.to_pylist()
    texts = {"question": "", "answer": ""}
    assert rows == [row | {"level": None} for row in one.rows.to_pylist()] + [
        row | texts for row in other.rows.to_pylist()
    ]
    assert (again.pairing, again.decision_cost, again.unit) == (True, 1, "tokens")
    assert again.level_edges == again.tier_caps == one.tier_caps
    assert "proofs 1" not in (tmp_path / "joined.parquet").read_bytes().decode("latin1")


@pytest.mark.parametrize(
    ("other", "without", "message"),
    [
        (recording("b", ("low", "top")), [], r"b\.parquet.*level_edges is"),
        (recording("b", pairing=False), [], "pairing is False"),
        (recording("b", decision_cost=0), [], "decision_cost is 0"),
        (recording("b"), ["aime"], r"no data set 'aime'; there are \['a', 'b'\]"),
        (recording("a"), [], "already in row"),
    ],
)
def test_what_does_not_belong_together_is_refused(other: OutcomeTable, without: list[str], message: str) -> None:
    with pytest.raises(OutcomeTableError, match=message):
        joined([recording("a"), other], without)
