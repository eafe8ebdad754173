"""Outcome tables: round trips, splits, descriptions, and an error that says where for every malformed file."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roi_env.sources.outcome_tables import (
    COLUMNS,
    MAX_TOKENS,
    SPLITS,
    TEXT_COLUMNS,
    OutcomeTable,
    OutcomeTableError,
    split_of,
)
from roi_env.sources.packaged import TINYLM

DATA = Path(os.environ.get("ROI_DATA", "")) / "outcomes"
REAL = sorted(DATA.glob("*.parquet")) if os.environ.get("ROI_DATA") else []

Row = dict[str, Any]


def row(name: str = "q0", /, tier: str = "low", sample: int = 0, **changes: Any) -> Row:
    order = {"low": 1, "mid": 2, "high": 3}.get(tier, 1)
    return {
        "dataset": "math",
        "question_id": name,
        "question": f"What is {name}?",
        "answer": "NA",
        "menu": "model",
        "tier": tier,
        "tier_order": order,
        "tokens": 10 * order + sample,
        "correct": sample % 2 == 0,
        "sample": sample,
    } | changes


def rows(questions: int = 4, tiers: tuple[str, ...] = ("low", "high"), samples: int = 2) -> list[Row]:
    return [row(f"q{q}", tier, s) for q in range(questions) for tier in tiers for s in range(samples)]


def save(path: Path, content: list[Row] | pa.Table) -> Path:
    """Write as a stranger's tool would, without this package."""
    table = content if isinstance(content, pa.Table) else pa.Table.from_pylist(content)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa_csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in table.to_pylist()))
    return path


def plain(table: OutcomeTable) -> list[Row]:
    return [dict(r) for r in table.rows.to_pylist()]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
NAME = TEXT.filter(bool)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    names = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    keys = draw(
        st.lists(
            st.tuples(NAME, NAME, st.sampled_from(["a", "b"]), st.sampled_from(names), st.integers(0, 2**40)),
            min_size=1,
            max_size=12,
            unique=True,
        )
    )
    return [
        {
            "dataset": dataset,
            "question_id": question,
            "question": draw(TEXT) + draw(st.sampled_from(["", "\n", ' "x", y'])),
            "answer": draw(st.sampled_from(["", "NA", "null", "1.5", "2024-01-01"])),
            "menu": menu,
            "tier": tier,
            "tier_order": names.index(tier) + 1,
            "tokens": draw(st.integers(0, MAX_TOKENS)),
            "correct": draw(st.booleans()),
            "sample": sample,
        }
        for dataset, question, menu, tier, sample in keys
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@given(content=tables())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reads_every_format_and_writes_parquet(tmp_path: Path, suffix: str, content: list[Row]) -> None:
    table = OutcomeTable.read(save(tmp_path / f"t{suffix}", content))
    assert plain(table) == content
    table = dataclasses.replace(
        table, pairing=True, decision_cost=3, level_edges={"a": {"x": 5}}, tier_caps={"b": {"y": 7}}
    )
    table.write(tmp_path / "out.parquet")
    again = OutcomeTable.read(tmp_path / "out.parquet")
    assert plain(again) == content
    for name in ("pairing", "decision_cost", "level_edges", "tier_caps"):
        assert getattr(again, name) == getattr(table, name)
    assert pq.read_schema(tmp_path / "out.parquet").field("tier").type == pa.string()
    assert {p.name for p in tmp_path.iterdir()} == {f"t{suffix}", "out.parquet"}, "temporary file left behind"


def test_extra_columns_and_foreign_metadata_are_kept(tmp_path: Path) -> None:
    content = [r | {"topic": f"t{k}", "rate": k / 2} for k, r in enumerate(rows())]
    arrow = pa.Table.from_pylist(content).replace_schema_metadata({"origin": "lab"})
    table = OutcomeTable.read(save(tmp_path / "t.parquet", arrow))
    table.write(tmp_path / "u.parquet")
    table = OutcomeTable.read(tmp_path / "u.parquet")
    assert plain(table) == content
    assert table.rows.schema.metadata[b"origin"] == b"lab"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(rows()))
    path = tmp_path / "t.parquet"
    table.write(path)
    before = path.read_bytes()

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        table.write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutcomeTableError, match="suffix"):
        table.write(tmp_path / "t.csv")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.large_string())])
def test_text_of_every_arrow_type(kind: pa.DataType) -> None:
    arrow = pa.Table.from_pylist(rows())
    for name in TEXT_COLUMNS:
        index = arrow.column_names.index(name)
        column = arrow[name].dictionary_encode() if pa.types.is_dictionary(kind) else arrow[name]
        arrow = arrow.set_column(index, name, column.cast(kind))
    table = OutcomeTable.from_arrow(pa.concat_tables([arrow.slice(0, 5), arrow.slice(5)]))
    assert plain(table) == rows()
    assert table.rows["tier"].type == pa.dictionary(pa.int32(), pa.string())


def test_dictionaries_with_repeated_or_null_values() -> None:
    arrow = pa.Table.from_pylist(rows(1, ("low",), 2))
    index = arrow.column_names.index("tier")
    twice = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["low", "low"]))
    assert OutcomeTable.from_arrow(arrow.set_column(index, "tier", twice)).tier_names("model") == ("low",)
    null = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["low", None]))
    with pytest.raises(OutcomeTableError, match="null") as caught:
        OutcomeTable.from_arrow(arrow.set_column(index, "tier", null))
    assert (caught.value.column, caught.value.row) == ("tier", 1)


def test_numbers_may_be_whole_floats_and_correct_may_be_0_or_1(tmp_path: Path) -> None:
    content = [r | {"tokens": float(r["tokens"]), "correct": int(r["correct"])} for r in rows()]
    for suffix in (".parquet", ".csv", ".jsonl"):
        assert plain(OutcomeTable.read(save(tmp_path / f"t{suffix}", content))) == rows()
    save(tmp_path / "t.csv", [r | {"correct": str(r["correct"]).upper()} for r in rows()])
    assert plain(OutcomeTable.read(tmp_path / "t.csv")) == rows()


# --- Malformed files -------------------------------------------------------------------------------------------------


def bad(at: int, **changes: Any) -> list[Row]:
    content = rows()
    content[at] |= changes
    return content


MALFORMED: dict[str, tuple[list[Row], str, int, str]] = {
    "negative tokens": (bad(3, tokens=-1), "tokens", 3, "-1"),
    "fractional tokens": (bad(3, tokens=1.5), "tokens", 3, "1.5"),
    "NaN tokens": (bad(5, tokens=float("nan")), "tokens", 5, "nan"),
    "infinite tokens": (bad(5, tokens=float("inf")), "tokens", 5, "inf"),
    "too many tokens": (bad(2, tokens=2**31), "tokens", 2, "2147483648"),
    "null tokens": (bad(2, tokens=None), "tokens", 2, ""),
    "null correct": (bad(6, correct=None), "correct", 6, ""),
    "zero tier_order": (bad(1, tier_order=0), "tier_order", 1, "0"),
    "negative sample": (bad(1, sample=-2), "sample", 1, "-2"),
    "empty question_id": (bad(4, question_id=""), "question_id", 4, "empty"),
    "empty tier": (bad(4, tier=""), "tier", 4, "empty"),
    "duplicate": ([*rows(), row("q1", "low", 1, tokens=99)], "sample", 16, "row 5"),
    "two orders of a tier": (bad(7, tier_order=2), "tier_order", 7, "order 2"),
    "two tiers of an order": ([*rows(), row("q9", "mid", 0, tier_order=1)], "tier_order", 16, "'low'"),
}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_values_name_file_column_and_row(tmp_path: Path, suffix: str, case: str) -> None:
    content, column, where, said = MALFORMED[case]
    arrow = pa.Table.from_pylist(content)
    for name in ("tokens", "correct") if "null" not in case else ():
        # from_pylist takes the type of the first row.
        values = [r[name] for r in content]
        arrow = arrow.set_column(arrow.column_names.index(name), name, pa.array(values))
    path = save(tmp_path / f"t{suffix}", arrow)
    with pytest.raises(OutcomeTableError) as caught:
        OutcomeTable.read(path)
    error = caught.value
    assert (error.path, error.column, error.row) == (str(path), column, where)
    assert str(error).startswith(f"{path}: column '{column}', row {where} (0-based data row): ")
    assert said in str(error).lower()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("column", [name for name in COLUMNS if name not in ("tier_order", "sample")])
def test_missing_column(tmp_path: Path, suffix: str, column: str) -> None:
    path = save(tmp_path / f"t{suffix}", pa.Table.from_pylist(rows()).drop_columns(column))
    with pytest.raises(OutcomeTableError, match=f"column '{column}': missing"):
        OutcomeTable.read(path)


WRONG_TYPES = {
    **dict.fromkeys(TEXT_COLUMNS, pa.array([[7]] * 16)),
    "question": pa.array([7] * 16),
    "tier_order": pa.array(["one"] * 16),
    "tokens": pa.array([True] * 16),
    "correct": pa.array(["maybe"] * 16),
    "sample": pa.array([True] * 16),
}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("column", COLUMNS)
def test_wrong_type(tmp_path: Path, suffix: str, column: str) -> None:
    arrow = pa.Table.from_pylist(rows())
    arrow = arrow.set_column(arrow.column_names.index(column), column, WRONG_TYPES[column])
    path = save(tmp_path / f"t{suffix}", arrow)
    with pytest.raises(OutcomeTableError, match="expected") as caught:
        OutcomeTable.read(path)
    assert (caught.value.path, caught.value.column, caught.value.row) == (str(path), column, 0)


@pytest.mark.parametrize("column", [name for name in COLUMNS if name not in ("tier_order", "sample")])
def test_columns_of_nulls(tmp_path: Path, column: str) -> None:
    arrow = pa.Table.from_pylist(rows())
    arrow = arrow.set_column(arrow.column_names.index(column), column, pa.nulls(16))
    for suffix in (".parquet", ".jsonl"):
        with pytest.raises(OutcomeTableError, match="null") as caught:
            OutcomeTable.read(save(tmp_path / f"t{suffix}", arrow))
        assert (caught.value.column, caught.value.row) == (column, 0)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("tokens", "many"),
        ("tokens", ""),
        ("tokens", "NaN"),
        ("correct", "maybe"),
        ("sample", "x"),
        ("tier_order", "1e3"),
    ],
)
def test_csv_text_where_a_number_belongs(tmp_path: Path, column: str, text: str) -> None:
    content = [{k: str(v) for k, v in r.items()} for r in rows()]
    content[9][column] = text
    with pytest.raises(OutcomeTableError, match="expected") as caught:
        OutcomeTable.read(save(tmp_path / "t.csv", content))
    assert (caught.value.column, caught.value.row) == (column, 9)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("tokens", "many"),
        ("tokens", True),
        ("correct", "maybe"),
        ("correct", 2),
        ("tier", [3]),
        ("correct", float("nan")),
    ],
)
def test_jsonl_values_of_mixed_types(tmp_path: Path, column: str, text: Any) -> None:
    lines = [json.dumps(r) for r in rows()]
    lines[9] = json.dumps(rows()[9] | {column: text})
    (tmp_path / "t.jsonl").write_text("\n\n".join(lines))
    with pytest.raises(OutcomeTableError, match="expected") as caught:
        OutcomeTable.read(tmp_path / "t.jsonl")
    assert (caught.value.column, caught.value.row) == (column, 9)


def test_jsonl_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roi_env.sources.table_files._JSONL_BLOCK", 1000)
    content = [r | {"note": None if k < 9 else "late"} for k, r in enumerate(rows(30))]
    path = save(tmp_path / "t.jsonl", content)
    assert plain(OutcomeTable.read(path)) == content
    content[100] |= {"tokens": "many"}
    path.write_text("".join(json.dumps(r) + "\n" for r in content))
    with pytest.raises(OutcomeTableError) as caught:
        OutcomeTable.read(path)
    assert (caught.value.column, caught.value.row) == ("tokens", 100)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_files_that_are_no_tables(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    with pytest.raises(OutcomeTableError, match="file not found"):
        OutcomeTable.read(path)
    path.mkdir()
    with pytest.raises(OutcomeTableError, match="is a folder"):
        OutcomeTable.read(path)
    path.rmdir()
    path.touch()
    with pytest.raises(OutcomeTableError, match="0 bytes"):
        OutcomeTable.read(path)
    path.write_bytes(b"\xff\xfe\x00garbage\n\x81\x82")
    with pytest.raises(OutcomeTableError, match=r"cannot be read as|missing"):
        OutcomeTable.read(path)
    whole = save(path, rows()).read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(OutcomeTableError) as caught:
        OutcomeTable.read(path)
    assert str(path) in str(caught.value)
    if suffix != ".parquet":
        assert caught.value.row is not None
        complete = whole[: len(whole) * 2 // 3].count(b"\n")
        assert caught.value.row == complete - (suffix == ".csv")


def test_csv_line_with_too_few_fields(tmp_path: Path) -> None:
    lines = save(tmp_path / "t.csv", bad(2, question="two\nlines")).read_text().splitlines()
    lines[10] = "math,q2"
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(OutcomeTableError, match="cannot be read as CSV") as caught:
        OutcomeTable.read(tmp_path / "t.csv")
    # Line 10 is row 8: the header and the line break inside a question come before.
    assert caught.value.row == 8


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_empty_table(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"t{suffix}", pa.Table.from_pylist(rows()).slice(0, 0))
    if suffix == ".jsonl":
        path.write_text("\n\n")
    with pytest.raises(OutcomeTableError, match="no rows"):
        OutcomeTable.read(path)


def test_unknown_suffix_and_repeated_column(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(OutcomeTableError, match=r"'\.xlsx'.*\.parquet"):
        OutcomeTable.read(tmp_path / "t.xlsx")
    arrow = pa.Table.from_pylist(rows())
    for suffix in (".parquet", ".csv"):
        path = save(tmp_path / f"t{suffix}", arrow.append_column("tier", arrow["tier"]))
        with pytest.raises(OutcomeTableError, match="more than once"):
            OutcomeTable.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("level_edges", "[1]"),
        ("level_edges", "not json"),
        ("level_edges", '{"model": {"low": 0}}'),
        ("level_edges", '{"model": {"low": 9, "high": 9}}'),
        ("tier_caps", '{"model": {"low": 1.5}}'),
        ("decision_cost", "-1"),
        ("decision_cost", "one"),
        ("pairing", "maybe"),
        ("pairing", b"\xff"),
    ],
)
def test_malformed_metadata(key: str, value: Any) -> None:
    arrow = pa.Table.from_pylist(rows()).replace_schema_metadata({key: value})
    with pytest.raises(OutcomeTableError, match=f"metadata '{key}'"):
        OutcomeTable.from_arrow(arrow)


# --- Selection, splits, description ----------------------------------------------------------------------------------


def two_families() -> OutcomeTable:
    other = [row(f"q{q}", "low", menu="other") for q in range(3)]
    return OutcomeTable.from_arrow(pa.Table.from_pylist(rows() + other))


def test_select() -> None:
    table = two_families()
    assert table.menus == ("model", "other")
    assert table.select("other").num_rows == 3
    assert table.tier_names("model") == ("low", "high")
    assert table.select("model", ["high"]).tier_names("model") == ("high",)
    assert table.select("model", "high").num_rows == 8
    with pytest.raises(OutcomeTableError, match=r"row 16 .*2 menus.*menu=.*\['model', 'other'\]"):
        table.select()
    with pytest.raises(OutcomeTableError, match=r"no rows for menu 'x'; there are \['model', 'other'\]"):
        table.select("x")
    with pytest.raises(OutcomeTableError, match=r"no rows for tier 'high' of menu 'other'; it has \['low'\]"):
        table.select("other", ["low", "high"])
    for tiers in ([], ["low", "low"]):
        with pytest.raises(OutcomeTableError, match="distinct names"):
            table.select("model", tiers)


def test_select_datasets() -> None:
    other = [row(f"r{q}", tier) | {"dataset": "other"} for q in range(3) for tier in ("low", "high")]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(rows() + other))
    assert table.select(datasets="other").rows["question_id"].unique().to_pylist() == ["r0", "r1", "r2"]
    mine = table.rows["dataset"][0].as_py()
    assert table.select(datasets=[mine, "other"]).num_rows == table.num_rows
    assert table.select(tiers="low", datasets="other").num_rows == 3
    with pytest.raises(OutcomeTableError, match=r"no rows for dataset 'x' of menu 'model'"):
        table.select(datasets=["x"])
    with pytest.raises(OutcomeTableError, match="distinct names"):
        table.select(datasets=[])


@given(ids=st.lists(NAME, min_size=1, max_size=30, unique=True), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_splits_are_disjoint_complete_and_independent_of_order(ids: list[str], seed: int) -> None:
    content = [row(question, "low", s, dataset=d) for question in ids for s in range(2) for d in ("math", "code")]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    found = {}
    for name in SPLITS:
        member = table.in_split(name)
        found[name] = {q for q, m in zip(table.rows["question_id"].to_pylist(), member, strict=True) if m}
        if found[name]:
            assert set(table.split(name).rows["question_id"].to_pylist()) == found[name]
        else:
            with pytest.raises(OutcomeTableError, match="no question falls into split"):
                table.split(name)
    assert sum(len(part) for part in found.values()) == len(ids), "a question is in one split, in all datasets"
    assert set().union(*found.values()) == set(ids)
    assert table.split("all") is table
    np.random.default_rng(seed).shuffle(content)
    again = OutcomeTable.from_arrow(pa.Table.from_pylist(content[: max(1, len(content) // 2)]))
    for question, code in zip(again.rows["question_id"].to_pylist(), again.split_codes(), strict=True):
        assert question in found[SPLITS[code]]


def test_split_is_the_same_everywhere() -> None:
    content = [row(f"q{q}") for q in range(2000)]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    codes = table.split_codes()
    assert codes[:16].tolist() == GOLDEN_SPLIT, "the hash changed: published splits would change with it"
    assert np.abs(np.bincount(codes) / 2000 - [0.5, 0.2, 0.3]).max() < 0.03
    assert (table.split_codes((1, 0, 0)) == 0).all()
    assert (table.split_codes((0, 0, 1)) == 2).all()
    for fractions in [(0.5, 0.5), (0.5, 0.5, 0.5), (1.5, -0.5, 0)]:
        with pytest.raises(OutcomeTableError, match="three shares"):
            table.split("train", fractions)
    with pytest.raises(OutcomeTableError, match="split must be one of"):
        table.split("dev")  # type: ignore[arg-type]


def test_without_leaves_the_others_questions_out() -> None:
    """A question is dataset and id, or a text: the same id elsewhere is another question, the same text is not."""
    table = OutcomeTable.from_arrow(pa.Table.from_pylist([row(f"q{q}", sample=s) for q in range(5) for s in range(2)]))
    there = [
        row("q1"),
        row("q3", "high"),
        row("q0", dataset="elsewhere", question="What is it?"),
        row("z", dataset="elsewhere", question=" what is  Q4 ?"),
    ]
    other = OutcomeTable.from_arrow(pa.Table.from_pylist(there))
    assert table.without(other).rows["question_id"].to_pylist() == ["q0", "q0", "q2", "q2"]
    with pytest.raises(OutcomeTableError, match="all of its questions are in"):
        other.without(other)
    blank = [row("a", question=""), row("b", question="N/A")]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(blank))
    other = OutcomeTable.from_arrow(pa.Table.from_pylist(blank[1:]))
    assert table.without(other).rows["question_id"].to_pylist() == ["a"], "no text is no equal text"


GOLDEN_SPLIT = [0, 2, 2, 0, 0, 0, 0, 0, 2, 0, 2, 2, 1, 0, 0, 0]


def test_questions_are_dataset_and_id() -> None:
    content = [row("1", dataset="b"), row("0", dataset="a"), row("1", dataset="a"), row("1", sample=1, dataset="b")]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    assert table.questions().of_row.tolist() == [0, 1, 2, 0]
    assert table.questions().first_row.tolist() == [0, 1, 2]
    # The same text in two datasets: one question.
    assert table.distinct_questions().of_row.tolist() == [0, 1, 0, 0]
    assert table.distinct_questions().first_row.tolist() == [0, 1]


def test_constant_per_question() -> None:
    content = [
        r | {"topic": r["question_id"] + "!", "run": k, "hole": None if k == 3 else "x"} for k, r in enumerate(rows())
    ]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    codes, values = table.constant_per_question("topic")
    assert [values[code] for code in codes] == ["q0!", "q1!", "q2!", "q3!"]
    with pytest.raises(OutcomeTableError, match=r"column 'run': must be the same in all rows of a question.*'q0'"):
        table.constant_per_question("run")
    with pytest.raises(OutcomeTableError, match="column 'nope': missing"):
        table.constant_per_question("nope")
    with pytest.raises(OutcomeTableError, match="column 'hole': no value for question 'q0'"):
        table.constant_per_question("hole")


def test_one_long_text_costs_its_own_length_to_describe() -> None:
    import tracemalloc

    content = rows(questions=2000, samples=1)
    content[0]["question"] = content[1]["question"] = "x" * 20_000  # as wide as this, all texts would be 160 MB
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    tracemalloc.start()
    table.describe()
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


def test_describe_is_plain_data_and_finds_problems() -> None:
    content = [
        row("q0", "low", 0, tokens=0, correct=True),
        row("q0", "low", 1, tokens=20, correct=True),
        row("q0", "high", 0, tokens=100, correct=False),
        row("q1", "low", 0, tokens=10, correct=False),
        row("q1", "high", 0, tokens=200, correct=False),
        row("q2", "low", 0, tokens=10, correct=True, dataset="code"),
        row("q0", "low", 0, menu="other", tokens=50),
        row("q0", "high", 0, menu="other", tokens=40),
    ]
    found = OutcomeTable.from_arrow(pa.Table.from_pylist(content)).describe()
    assert json.loads(json.dumps(found)) == found
    assert (found["rows"], found["questions"], found["datasets"]) == (8, 3, {"math": 2, "code": 1})
    assert sum(found["splits"].values()) == 3
    model, other = found["menus"]
    assert (model["menu"], model["questions"], model["complete_questions"]) == ("model", 3, 2)
    low = model["tiers"][0]
    assert (low["tier"], low["rows"], low["questions"], low["samples_min"], low["samples_max"]) == ("low", 4, 3, 1, 2)
    assert (low["tokens_mean"], low["tokens_p50"], low["accuracy"]) == (10.0, 10.0, 0.75)
    kinds = {(p["menu"], p["kind"]) for p in found["problems"]}
    assert kinds == {
        ("model", "missing_tiers"),
        ("model", "unequal_samples"),
        ("model", "trap"),
        ("model", "non_monotone"),
        ("model", "zero_tokens"),
        ("other", "tier_order"),
    }
    assert other["questions"] == 1


def test_importing_the_environment_imports_no_pyarrow() -> None:
    code = "import sys, roi_env; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


@pytest.mark.skipif(not REAL, reason="set ROI_DATA to the folder that holds outcomes/*.parquet")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_tables_load_describe_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    table = OutcomeTable.read(path)
    found = table.describe()
    assert found["rows"] == table.num_rows == sum(t["rows"] for f in found["menus"] for t in f["tiers"])
    assert [f["menu"] for f in found["menus"]] == list(table.menus)
    table.write(tmp_path / path.name)
    assert OutcomeTable.read(tmp_path / path.name).describe() == found | {"path": str(tmp_path / path.name)}


# --- Equal texts -----------------------------------------------------------------------------------------------------


def written(question: int, copy: int) -> str:
    """One text in four spellings."""
    text = f"What is ${question} + 1$ in the café?"
    spellings = (text, f"  {text.upper()}\n", text.replace("é", "e\u0301"), text.replace(" + ", r"\,+\; "))
    return spellings[copy % 4]


def copied(texts: int = 40, copies: int = 3, **changes: Any) -> list[Row]:
    """Every text under several ids."""
    return [
        row(f"{question}/{copy}", tier, sample, question=written(question, copy)) | changes
        for question in range(texts)
        for copy in range(copies)
        for tier in ("low", "high")
        for sample in range(2)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_text_is_in_one_split_whatever_its_ids(seed: int) -> None:
    content = copied(copies=4)
    np.random.default_rng(seed).shuffle(content)
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    of_text: dict[str, set[int]] = {}
    for question, code in zip(table.rows["question_id"].to_pylist(), table.split_codes(), strict=True):
        of_text.setdefault(question.partition("/")[0], set()).add(int(code))
    assert len(of_text) == 40
    assert all(len(codes) == 1 for codes in of_text.values())
    assert {next(iter(codes)) for codes in of_text.values()} == {0, 1, 2}
    assert len(table.distinct_questions().first_row) == 40
    found = table.describe()
    assert found["questions"] == sum(found["splits"].values()) == 40
    (problem,) = (problem for problem in found["problems"] if problem["kind"] == "equal_texts")
    assert "40 texts stand under 160 ids" in problem["message"]
    # A selection keeps the whole table's split.
    part = table.select("model", "low")
    part = dataclasses.replace(part, rows=part.rows.slice(0, 50))
    assert (part.split_codes() == table.select("model", "low").split_codes()[:50]).all()


def test_a_text_that_is_no_questions_is_said_to_be_none() -> None:
    content = [row(f"q{q}", question="see the source") for q in range(40)]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    empty = {name for name in SPLITS if not table.in_split(name).any()}
    assert len(empty) == 2
    for name in empty:
        with pytest.raises(OutcomeTableError, match=r"1 different questions under 40 ids.*empty the column question"):
            table.split(name)


@pytest.mark.parametrize("where", ["dataset", "menu"])
def test_a_text_is_in_one_split_in_all_datasets_and_families(where: str) -> None:
    content = copied(copies=1) + [r | {where: "other", "question_id": f"x{r['question_id']}"} for r in copied(copies=1)]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    codes = table.split_codes()
    assert (codes[: len(codes) // 2] == codes[len(codes) // 2 :]).all()
    if where == "menu":
        parts = [table.select(name) for name in ("model", "other")]
        assert (parts[0].split_codes() == parts[1].split_codes()).all()
    assert len(table.distinct_questions().first_row) == 40


def test_texts_that_share_an_id_are_chained() -> None:
    """a and b share a text, b and c another one: all are in one split."""
    content = [
        row("a", question="one"),
        row("b", question="one"),
        row("b", "high", question="two"),
        row("c", "high", question="Two"),
        row("d", question="three"),
    ]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    assert table.distinct_questions().of_row.tolist() == [0, 0, 0, 0, 1]
    assert set(table.same_text.values()) == {"one"}
    assert len(set(table.split_codes()[:4].tolist())) == 1


@given(ids=st.lists(NAME, min_size=2, max_size=30, unique=True))
@settings(max_examples=30, deadline=None)
def test_where_texts_are_unique_the_id_alone_splits(ids: list[str]) -> None:
    content = [row(name, sample=s, question=f"number {k}") for k, name in enumerate(ids) for s in range(2)]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    assert table.same_text == {}
    assert table.split_codes().tolist() == [SPLITS.index(split_of(r["question_id"])) for r in content]
    # So it is where there are no texts, and where one id stands in several datasets.
    for bare in ([r | {"question": "N/A"} for r in content], content + [r | {"dataset": "copy"} for r in content]):
        table = OutcomeTable.from_arrow(pa.Table.from_pylist(bare))
        assert table.split_codes().tolist() == [SPLITS.index(split_of(r["question_id"])) for r in bare]


@pytest.mark.parametrize("path", [TINYLM, *REAL], ids=lambda path: path.stem)
def test_published_tables_split_by_id_alone(path: Path) -> None:
    """Their texts are unique: nothing that was trained on a split of them is orphaned."""
    table = OutcomeTable.read(path)
    assert (table.same_text, table.notes) == ({}, ())
    codes, ids = table.codes("question_id")
    assert (table.split_codes() == np.array([SPLITS.index(split_of(name)) for name in ids])[codes]).all()


def kinds(content: list[Row]) -> dict[str, str]:
    found = OutcomeTable.from_arrow(pa.Table.from_pylist(content)).describe()
    return {problem["kind"]: problem["message"] for problem in found["problems"]}


def test_texts_and_answers_that_differ_inside_an_id_are_reported() -> None:
    assert not {"tier_texts", "several_texts", "several_answers", "equal_texts"} & set(kinds(rows()))
    between = [r | {"question": f"{r['question']} {r['tier'] if r['question_id'] == 'q1' else ''}"} for r in rows()]
    assert "1 ids have another text at another tier or menu ('q1')" in kinds(between)["tier_texts"]
    assert "several_texts" not in kinds(between)
    shuffled = [r | {"question": f"{r['question']} {r['sample']}", "answer": "AB"[r["sample"]]} for r in rows()]
    found = kinds(shuffled)
    assert "4 ids have several texts" in found["several_texts"]
    assert "4 questions have several answers" in found["several_answers"]
    assert "cannot be graded again from one letter" in found["several_answers"]
    assert "tier_texts" not in found
    spelled = [r | {"question": r["question"].upper() if r["sample"] else r["question"]} for r in rows()]
    assert not {"tier_texts", "several_texts"} & set(kinds(spelled))


def test_names_that_differ_in_spelling_are_reported() -> None:
    content = [r | {"tier": "low " if r["tier"] == "high" else r["tier"]} for r in rows()]
    assert "column 'tier' has 'low', 'low '" in kinds(content)["similar_names"]
    assert "similar_names" not in kinds(rows())


def thinking(tokens: int, **columns: Any) -> list[Row]:
    return [r | {"tokens": tokens} | columns for r in rows()]


LONG = "First I add the two numbers, then I check the sum again. " * 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([r | {"menu": "deepseek-reasoner"} for r in thinking(12)], "12 tokens (median): too few for a thought"),
        ([r | {"tier": f"{r['tier']} reasoning"} for r in thinking(12)], "too few for a thought"),
        ([r | {"menu": "o3-mini"} for r in thinking(12)], "too few for a thought"),
        (thinking(12, text=LONG), "fewer tokens than their recorded text has words (row 0 of the menu: 12 tokens, 240 words)"),
        (thinking(12, reasoning=LONG, text="36"), "12 tokens, 241 words"),
        (thinking(200, Reasoning=LONG[:600], Text=LONG[:900].upper()), "fewer tokens than their recorded text has words"),
        (thinking(50, reasoning_tokens=400), "16 generations have fewer tokens than 'reasoning_tokens'"),
        ([r | {"reasoning_tokens": "" if r["sample"] else "400"} for r in thinking(50)], "8 generations have fewer tokens"),
        ([r | {"menu": "qwq-32b"} for r in thinking(300, response=LONG)], "the thought is hidden and not counted"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_hold_the_thought_are_reported(content: list[Row], said: str) -> None:
    assert said in kinds(content)["hidden_thought"]


@pytest.mark.parametrize(
    "content",
    [
        rows(),
        [r | {"menu": "gpt-4o"} for r in thinking(12)],
        [r | {"menu": "qwen3", "tier": f"{r['tier']} non-thinking"} for r in thinking(12)],
        [r | {"menu": "deepseek-reasoner"} for r in thinking(1200)],
        [r | {"menu": "deepseek-reasoner"} for r in thinking(1200, text="36", reasoning=LONG)],
        [r | {"menu": "deepseek-reasoner"} for r in thinking(1200, response=LONG)],
        [r | {"menu": "qwq-32b"} for r in thinking(300, text=f"<think>{LONG}</think>36")],
        thinking(300, text=LONG, reasoning=LONG),
        thinking(300, text=None, reasoning_tokens=-1),
        thinking(50, prompt=LONG, reasoning_tokens=None),
        thinking(50, text=[LONG]),
        thinking(50, reasoning_tokens="many"),
    ],
)
def test_tokens_that_can_hold_the_thought_are_not(content: list[Row]) -> None:
    assert "hidden_thought" not in kinds(content)
