"""What ``roi table FILE`` prints."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from experiments.commands.table import curves, describe_table, draw_curves
from experiments.config import ConfigError
from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError

DATA = Path(os.environ.get("ROI_DATA", "")) / "outcomes"
REAL = sorted(DATA.glob("*.parquet")) if os.environ.get("ROI_DATA") else []


def printed(path: Path) -> str:
    out = io.StringIO()
    describe_table(path, Console(file=out, width=200))
    return out.getvalue()


def save(path: Path, cells: list[tuple[str, str, int, bool]]) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "dataset": "set[0]",
            "question_id": question,
            "question": "",
            "answer": "",
            "menu": "model",
            "tier": tier,
            "tier_order": 1 + (tier == "slow"),
            "tokens": tokens,
            "correct": correct,
            "sample": sample,
        }
        for sample, (question, tier, tokens, correct) in enumerate(cells)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_prints_families_tiers_questions_splits_and_problems(tmp_path: Path) -> None:
    cells = [("q0", "fast", 10, True), ("q0", "slow", 1000, False), ("q1", "fast", 30, True)]
    text = printed(save(tmp_path / "t.parquet", cells))
    assert "3 generations, 2 questions, 1 menu;" in text
    for part in ("set[0]", "model", "fast", "slow", "train", "validation", "test", "50%", "1,000", "0.000"):
        assert part in text
    assert "1 of 2 questions lack a tier" in text
    assert "slow is dearer and worse than fast (1,000 against 10 tokens, 0.000 against 1.000 correct)" in text


def test_a_clean_table_has_no_problems(tmp_path: Path) -> None:
    assert "No problems found." in printed(save(tmp_path / "t.parquet", [("q0", "fast", 1, False)]))


@pytest.mark.parametrize(("right", "told"), [(True, "right"), (False, "wrong")])
def test_one_verdict_on_all_and_what_keeps_exams_from_being_made_are_told(
    tmp_path: Path, right: bool, told: str
) -> None:
    text = printed(save(tmp_path / "t.parquet", [(f"q{n}", "fast", 1, right) for n in range(12)]))
    assert f"all 12 generations are {told}: is this the right column?" in text
    assert "Not to be compared yet: model: one tier alone" in text
    text = printed(save(tmp_path / "t.parquet", [(f"q{n}", "fast", 1, n > 0) for n in range(12)]))
    assert "is this the right column?" not in text


def test_so_many_tiers_that_they_are_texts_are_told_and_not_compared(tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", [("q0", f"t{n:03}", n + 1, n == 0) for n in range(101)])
    pq.write_table(pq.read_table(path).drop_columns(["tier_order"]), path)
    text = printed(path)
    assert "101 tiers, which are not compared: is this the right column?" in text
    assert "dearer and worse" not in text


def test_says_what_was_inferred_and_which_texts_are_one(tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", [("q0", "fast", 10, True), ("q1", "fast", 12, True), ("q0", "slow", 99, True)])
    table = pq.read_table(path).drop_columns(["tier_order", "question"])
    pq.write_table(table.append_column("question", pa.array(["One [1]?", "one  [1]?", "One [1]?"])), path)
    text = printed(path)
    assert (
        "Inferred: no tier_order: tiers stand in the order of their mean tokens (model: fast (11) < slow (99))" in text
    )
    assert "3 generations, 1 questions" in text
    assert "1 texts stand under 2 ids (e.g. 'set[0]: q0', 'set[0]: q1')" in text
    assert "(all)" in text
    assert "No problems found." not in text


def test_malformed_files_raise(tmp_path: Path) -> None:
    with pytest.raises(OutcomeTableError, match="row 1"):
        printed(save(tmp_path / "t.parquet", [("q0", "fast", 1, False), ("q0", "slow", -1, False)]))


@pytest.mark.skipif(not REAL, reason="set ROI_DATA to the folder that holds outcomes/*.parquet")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_tables(path: Path) -> None:
    text = printed(path)
    for menu in OutcomeTable.read(path).menus:
        assert menu in text
    if "game24" in path.stem:
        assert "gpt-4:cot is dearer and worse than gpt-4:io" in text


def test_curves_count_every_question_once(tmp_path: Path) -> None:
    cells = [("q0", "fast", 10, True), ("q0", "fast", 30, False), ("q1", "fast", 40, True), ("q0", "slow", 100, True)]
    path = save(tmp_path / "t.parquet", cells)
    table = OutcomeTable.read(path)
    (points,) = curves(table).values()
    assert [(point.tier, point.questions, point.cost, point.right) for point in points] == [
        ("fast", 2, 30, 0.75),
        ("slow", 1, 100, 1),
    ]
    assert points[0].error == pytest.approx(0.25)  # of .5 and 1
    # One data set: the tiers' own table says it all.
    assert "by data set" not in printed(path)


def test_a_picture_has_a_panel_a_menu_and_a_line_a_data_set(tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", [("q0", "fast", 10, True), ("q1", "slow", 100, True)])
    rows = OutcomeTable.read(path).rows.to_pylist()
    more = [row | {"dataset": "other"} for row in rows] + [row | {"menu": "second"} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows + more), path)
    table = OutcomeTable.read(path)
    figure = draw_curves(table)
    assert [len(axes.containers) for axes in figure.axes] == [2, 1]
    assert [axes.get_title() for axes in figure.axes] == ["model", "second"]
    assert "model by data set" in printed(path)
    for name, head in (("c.png", b"\x89PNG"), ("c.svg", b"<?xml")):
        describe_table(path, Console(file=io.StringIO()), picture=tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)
    describe_table(path, Console(file=io.StringIO()), menu="second", picture=tmp_path / "c.png")
    with pytest.raises(ConfigError, match=r"c\.jpg: pictures are written as"):
        describe_table(path, Console(file=io.StringIO()), picture=tmp_path / "c.jpg")
    with pytest.raises(ConfigError, match=r"there is no folder .*none"):
        describe_table(path, Console(file=io.StringIO()), picture=tmp_path / "none" / "c.png")
    many = [row | {"menu": f"m{n}"} for n in range(7) for row in rows]
    pq.write_table(pa.Table.from_pylist(many), path)
    with pytest.raises(ConfigError, match="has 7: choose one with --menu"):
        describe_table(path, Console(file=io.StringIO()), picture=tmp_path / "c.png")


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("menus", [1, 2])
def test_numbers_stay_whole_in_a_narrow_terminal(tmp_path: Path, width: int, menus: int) -> None:
    tiers = {
        "a-maker/a-small-model-2512": 28,
        "a-maker/another-model": 1469,
        "third/model": 25_200,
        "fourth": 123_456_789,
    }
    rows = [
        {
            "dataset": dataset, "question_id": f"{n}", "question": "", "answer": "", "menu": f"menu {menu}", "tier": tier, "tokens": cost,
            "correct": True,
        }
        for menu in range(menus)
        for dataset in ("one", "another-data-set")
        for n in range(1200)
        for tier, cost in tiers.items()
    ]  # fmt: skip
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"unit": "micro-usd"}), path)
    out = io.StringIO()
    describe_table(path, Console(file=out, width=width))
    text = out.getvalue()
    assert "mean USD" in text
    assert "USD │" not in text
    for number in ("0.0000280", "0.0014690", "0.0252", "123.46", "1.000"):
        assert text.count(number) >= 2 * menus
    assert ("No room for" in text) is (width < 120)
