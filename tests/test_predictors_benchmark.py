"""Parts of benchmarks/predictors.py whose answers are known."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("sklearn", reason="needs the extra [predict]")

from agents.predictors.exams import Case
from tests.agents.predictors.tables import told


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "predictors.py"))


def case(seed: int, first: int, last: int) -> Case:
    """Questions of a table by number; of one seed they are the same, in another order."""
    table = told(120, 4, seed=seed)
    chosen = [row for row in table.rows.to_pylist()[::-1] if first <= int(row["question_id"][1:]) < last]
    return Case(dataclasses.replace(table, rows=pa.Table.from_pylist(chosen, table.rows.schema)), {"menu": "model"})


def test_what_two_tables_have_in_common_and_how_alike_it_is(benchmark: dict[str, Any]) -> None:
    in_common, eases, correlation = (benchmark[name] for name in ("in_common", "eases", "correlation"))
    one, other = case(0, 0, 100), case(0, 20, 120)
    names, mine = eases(in_common(one, other))
    their_names, theirs = eases(in_common(other, one))
    assert sorted(names) == sorted(their_names)
    assert len(names) == 80
    # The same answers to the same questions: nothing but the noise of halves, which is taken out.
    order = [their_names.index(name) for name in names]
    value, low, high = correlation(mine, theirs[:, order], 200)
    assert low < value < high
    assert value > 0.95
    # Questions of another draw have nothing in common but their names.
    _, unlike = eases(in_common(case(1, 0, 120), in_common(one, other)))
    _, low, high = correlation(mine, unlike, 200)
    assert low < 0 < high
