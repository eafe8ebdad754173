"""Files as people have them: each is read rightly, with a note of what was inferred, or refused with what to do."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError
from tests.roi_env.sources.test_outcomes import Row, plain, row, rows

EIGHT = rows(2)


def changed(at: int | None = None, **values: Any) -> list[Row]:
    """Eight rows with other values in all rows or one: a value, or a function of the row's number."""
    return [
        r | {name: v(k) if callable(v) else v for name, v in values.items() if at in (None, k)}
        for k, r in enumerate(EIGHT)
    ]


def without(*names: str) -> list[Row]:
    return [{name: value for name, value in r.items() if name not in names} for r in EIGHT]


def jsonl(content: list[Row]) -> str:
    return "".join(json.dumps(r) + "\n" for r in content)


def write_csv(path: Path, content: list[Row], *, header: Callable[[str], str] = str, **options: Any) -> Path:
    encoding = options.pop("encoding", "utf-8")
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, **options)
        writer.writerow([header(name) for name in content[0]])
        writer.writerows([list(r.values()) for r in content])
    return path


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([1, "a", None, 2.5, True, [1], {"a": 1}, "b"], ["1", "a", None, "2.5", "true", "[1]", '{"a": 1}', "b"]),
        ([{"a": 1}, {"a": "x"}] * 4, ['{"a": 1}', '{"a": "x"}'] * 4),
        (["2024-01-01", 7] * 4, ["2024-01-01", "7"] * 4),
    ],
)
def test_other_columns_may_mix_types(tmp_path: Path, values: list[Any], read: list[Any]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(jsonl(changed(note=lambda k: values[k])))
    table = OutcomeTable.read(path)
    assert plain(table) == changed(note=lambda k: read[k])
    assert table.notes == ("columns of mixed types, kept as text: note",)
    table.write(tmp_path / "t.parquet")
    assert plain(OutcomeTable.read(tmp_path / "t.parquet")) == plain(table)


def test_texts_that_look_like_dates_stay_texts(tmp_path: Path) -> None:
    content = changed(day="2024-01-01", time="2024-01-01 10:00:00")
    (tmp_path / "t.jsonl").write_text(jsonl(content))
    assert plain(OutcomeTable.read(tmp_path / "t.jsonl")) == content


def test_a_column_that_mixes_types_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roi_env.sources.table_files._JSONL_BLOCK", 1000)
    content = [r | {"note": 1 if k < 20 else "late"} for k, r in enumerate(rows(30))]
    (tmp_path / "t.jsonl").write_text(jsonl(content))
    read = plain(OutcomeTable.read(tmp_path / "t.jsonl"))
    assert read == [r | {"note": str(r["note"])} for r in content]


def test_nested_columns_are_kept_and_cannot_group(tmp_path: Path) -> None:
    content = changed(run=lambda k: {"host": "a", "steps": [k]}, mixed=lambda k: k if k % 2 else "even")
    (tmp_path / "t.jsonl").write_text(jsonl(content))
    table = OutcomeTable.read(tmp_path / "t.jsonl")
    assert [r["run"] for r in plain(table)] == [r["run"] for r in content]
    with pytest.raises(OutcomeTableError, match=r"column 'run': holds struct<.*choose a column of texts or numbers"):
        table.constant_per_question("run")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("column", "values", "read"),
    [
        ("question_id", [1] * 4 + [2] * 4, ["1"] * 4 + ["2"] * 4),
        ("question_id", [1.0] * 4 + [2.5] * 4, ["1"] * 4 + ["2.5"] * 4),
        ("answer", [36] * 4 + [-7] * 4, ["36"] * 4 + ["-7"] * 4),
        ("answer", [0.25] * 4 + [36.0] * 4, ["0.25"] * 4 + ["36"] * 4),
        ("dataset", [2024] * 8, ["2024"] * 8),
        ("tier", [1024, 1024, 16384, 16384] * 2, ["1024", "1024", "16384", "16384"] * 2),
    ],
)
def test_numbers_are_ids_and_answers(tmp_path: Path, suffix: str, column: str, values: Any, read: Any) -> None:
    path = tmp_path / f"t{suffix}"
    content = changed(**{column: lambda k: values[k]})
    if suffix == ".jsonl":
        path.write_text(jsonl(content))
    else:
        pq.write_table(pa.Table.from_pylist(content), path)
    table = OutcomeTable.read(path)
    assert plain(table) == changed(**{column: lambda k: read[k]})
    assert table.notes == (f"column {column!r}: numbers are read as text",)


def test_ids_of_mixed_types(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(jsonl(changed(question_id=lambda k: 1 if k < 4 else "b")))
    assert OutcomeTable.read(tmp_path / "t.jsonl").codes("question_id")[1] == ["1", "b"]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("question_id", None, "no value"),
        ("question_id", float("nan"), "NaN"),
        ("answer", True, "got true"),
        ("answer", ["a"], r'got \["a"\]'),
        ("question", 7, "expected text, got 7"),
        ("question", "\ud800", "half a surrogate pair"),
        ("note", "\ud800", "half a surrogate pair"),
        ("tokens", "thirty", "got 'thirty'"),
        ("tokens", "NaN", "got 'NaN'"),
        ("tokens", [30], r"got \[30\]"),
        ("correct", "partly", "got 'partly'"),
        ("answer", None, 'text \\("" where there is none\\), got no value'),
        ("tokens", 10**30, "got 1"),
        ("tokens", -1, "got -1"),
    ],
)
def test_what_no_value_can_be(tmp_path: Path, column: str, value: Any, said: str) -> None:
    # The extra column makes sure that even what Arrow reads by itself is read row by row.
    content = changed(3, **{"note": 1, column: value})
    (tmp_path / "t.jsonl").write_text(jsonl([{"note": "a"} | r for r in content]))
    with pytest.raises(OutcomeTableError, match=said) as caught:
        OutcomeTable.read(tmp_path / "t.jsonl")
    assert (caught.value.column, caught.value.row) == (column, 3)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", "categories.parquet"])
def test_texts_are_the_numbers_and_truth_values_they_are(tmp_path: Path, suffix: str) -> None:
    content = changed(
        tier_order=lambda k: str(EIGHT[k]["tier_order"]),
        tokens=lambda k: f" {EIGHT[k]['tokens']}.0",
        correct=lambda k: "Yes" if EIGHT[k]["correct"] else "no",
        sample=lambda k: str(EIGHT[k]["sample"]),
    )
    path = tmp_path / f"t{suffix}"
    if suffix == ".jsonl":
        path.write_text(jsonl(content))
    else:
        arrow = pa.Table.from_pylist(content)
        if suffix == "categories.parquet":
            arrow = pa.table(
                {
                    name: column.dictionary_encode()
                    for name, column in zip(arrow.column_names, arrow.columns, strict=True)
                }
            )
        pq.write_table(arrow, path)
    table = OutcomeTable.read(path)
    assert plain(table) == EIGHT
    kinds = {"tier_order": "numbers", "tokens": "numbers", "correct": "true and false", "sample": "numbers"}
    assert table.notes == tuple(f"column {name!r}: texts are read as {kind}" for name, kind in kinds.items())


def test_numbers_and_texts_of_numbers_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    texts = changed(tokens=lambda k: str(EIGHT[k]["tokens"]), correct=lambda k: "y" if EIGHT[k]["correct"] else "n")
    path.write_text(jsonl([texts[k] if k % 2 else one for k, one in enumerate(EIGHT)]))
    assert plain(OutcomeTable.read(path)) == EIGHT


def test_true_and_1_and_whole_floats_stand_side_by_side(tmp_path: Path) -> None:
    content = changed(correct=lambda k: k % 2 if k < 4 else bool(k % 2), tokens=lambda k: 30 if k % 2 else 30.0)
    (tmp_path / "t.jsonl").write_text(jsonl(content))
    assert plain(OutcomeTable.read(tmp_path / "t.jsonl")) == changed(correct=lambda k: bool(k % 2), tokens=30)


def zipped(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "one_list"),
    [
        ("t.jsonl", json.dumps(EIGHT), True),
        ("t.json", json.dumps(EIGHT, indent=1), True),
        ("t.json", jsonl(EIGHT), False),
        ("t.jsonl", "\ufeff" + jsonl(EIGHT), False),
        ("t.json", "\ufeff\n" + json.dumps(EIGHT), True),
        ("t.jsonl", jsonl(EIGHT).replace("\n", "\r\n\r\n"), False),
        ("t.jsonl.gz", zipped(jsonl(EIGHT)), False),
        ("t.JSON.GZ", zipped(json.dumps(EIGHT)), True),
        ("t.jsonl.gz", zipped(jsonl([r | {"question_id": int(r["question_id"][1:])} for r in EIGHT])), False),
    ],
)
def test_json_in_other_clothes(tmp_path: Path, name: str, content: str | bytes, one_list: bool) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = OutcomeTable.read(path)
    assert [r | {"question_id": r["question_id"].removeprefix("q")} for r in plain(table)] == [
        r | {"question_id": r["question_id"][1:]} for r in EIGHT
    ]
    assert any("one JSON list" in note for note in table.notes) == one_list


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", b"[]", "no rows"),
        ("t.jsonl", b"[[1]]", "row 0.*one JSON object"),
        ("t.jsonl", jsonl(EIGHT[:2]).encode() + b"[1]\n", "row 2.*one JSON object"),
        ("t.json", json.dumps({"rows": EIGHT}).encode(), r"missing; the file has \['rows'\]"),
        ("t.json", json.dumps({"rows": EIGHT}, indent=1).encode(), "one JSON object a line, or one list"),
        ("t.jsonl", jsonl(EIGHT[:2]).encode() + b"{bad\n", "row 2.*one JSON object a line"),
        ("t.jsonl", b'{"dataset": ' + b"[" * 100_000, "row 0.*cannot be read"),
        ("t.jsonl", jsonl(EIGHT).encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("t.jsonl", json.dumps(EIGHT[0] | {"question": "é"}, ensure_ascii=False).encode("latin-1"), "save it as UTF-8"),
        ("t.jsonl", zipped(jsonl(EIGHT)), r"gzip; add \.gz to its name"),
        ("t.jsonl.gz", jsonl(EIGHT).encode(), "Not a gzipped file"),
        ("t.jsonl.gz", zipped(jsonl(EIGHT))[:60], "cannot be read"),
        ("t.jsonl.gz", zipped(""), "no rows"),
        ("t.parquet.gz", zipped(""), "unknown file type"),
        ("t.gz", zipped(jsonl(EIGHT)), "unknown file type"),
    ],
)
def test_json_that_is_no_table(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OutcomeTableError, match=said) as caught:
        OutcomeTable.read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


# --- CSV -------------------------------------------------------------------------------------------------------------


def title(name: str) -> str:
    return f" {name.replace('_', ' ').title()} "


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ({"delimiter": ";"}, ["separated by semicolons"]),
        ({"delimiter": "\t"}, ["separated by tabs"]),
        ({"delimiter": "|"}, ["separated by bars"]),
        ({"encoding": "utf-8-sig"}, []),
        ({"header": str.upper}, ["'QUESTION_ID' as question_id"]),
        ({"header": title}, ["' Question Id ' as question_id"]),
        (
            {"delimiter": ";", "encoding": "utf-8-sig", "header": title, "quoting": csv.QUOTE_ALL},
            ["separated by semicolons", "' Tokens ' as tokens"],
        ),
        ({"lineterminator": "\n"}, []),
    ],
)
def test_csv_in_other_clothes(tmp_path: Path, options: dict[str, Any], notes: list[str]) -> None:
    content = changed(question='a, b; c\t|\nd "e"')
    path = write_csv(tmp_path / "t.csv", content, **options)
    table = OutcomeTable.read(path)
    assert plain(table) == content
    assert len(table.notes) == len(notes)
    for note, part in zip(table.notes, notes, strict=True):
        assert part in note
    for other in (tmp_path / "t.tsv", tmp_path / "u.csv.gz"):
        other.write_bytes(gzip.compress(path.read_bytes()) if other.suffix == ".gz" else path.read_bytes())
        assert plain(OutcomeTable.read(other)) == content


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_headers_are_read_by_their_meaning_where_it_is_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"

    def save(content: list[Row]) -> Path:
        if suffix == ".csv":
            return write_csv(path, content)
        if suffix == ".jsonl":
            path.write_text(jsonl(content))
        else:
            pq.write_table(pa.Table.from_pylist(content), path)
        return path

    content = [
        {("Tier Order" if name == "tier_order" else name.title()): value for name, value in r.items()} for r in EIGHT
    ]
    assert plain(OutcomeTable.read(save(content))) == EIGHT
    # The exact name is meant, whatever else is there.
    table = OutcomeTable.read(save([r | {"Tokens": "many", "Question": "x"} for r in EIGHT]))
    assert plain(table) == [r | {"Tokens": "many", "Question": "x"} for r in EIGHT]
    mixed = OutcomeTable.read(
        save([r | {"Tokens": "many", "answer": str(k) if suffix == ".parquet" else k} for k, r in enumerate(EIGHT)])
    )
    assert mixed.rows["Tokens"].to_pylist() == ["many"] * 8
    with pytest.raises(
        OutcomeTableError, match=r"could be any of the columns \['Tokens', 'TOKENS'\]; keep one"
    ) as caught:
        OutcomeTable.read(save([r | {"Tokens": 1, "TOKENS": 1} for r in without("tokens")]))
    assert caught.value.column == "tokens"


@pytest.mark.parametrize(
    ("column", "text", "read"),
    [
        ("tokens", "30.0", 30),
        ("tokens", " 30 ", 30),
        ("correct", "1.0", True),
        ("correct", "0.0", False),
        *[("correct", text, True) for text in ("TRUE", "yes", " Y", "T", "1")],
        *[("correct", text, False) for text in (" false", "No", "n", "f", "0 ")],
        ("question_id", "1.0", "1.0"),
    ],
)
def test_csv_values(tmp_path: Path, column: str, text: str, read: Any) -> None:
    table = OutcomeTable.read(write_csv(tmp_path / "t.csv", changed(**{column: text, "sample": lambda k: k})))
    assert {r[column] for r in plain(table)} == {read}


@pytest.mark.parametrize(
    ("column", "text", "said"),
    [
        ("tokens", "30,0", "without separators"),
        ("tokens", "1,234", "without separators"),
        ("tokens", "1 234", "without separators"),
        ("tokens", "-5", "got -5"),
        ("tokens", "inf", "'inf'"),
        ("correct", "2", "true or false"),
        ("correct", "0.5", "got '0.5'; correct"),
        ("correct", "right", "true or false"),
        ("tier_order", "", "an integer >= 1"),
        ("sample", "", "an integer >= 0"),
    ],
)
def test_csv_values_that_are_refused(tmp_path: Path, column: str, text: str, said: str) -> None:
    path = write_csv(tmp_path / "t.csv", changed(5, **{column: text}), delimiter=";")
    with pytest.raises(OutcomeTableError, match=said) as caught:
        OutcomeTable.read(path)
    assert (caught.value.path, caught.value.column, caught.value.row) == (str(path), column, 5)


def test_blank_lines_around_a_csv(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", EIGHT)
    path.write_text(f"\n\r\n{path.read_text()}\n\n")
    assert plain(OutcomeTable.read(path)) == EIGHT


def test_csv_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("1,2,3\n4,5,6\n")
    with pytest.raises(OutcomeTableError, match=r"missing; the file has \['1', '2', '3'\]"):
        OutcomeTable.read(path)
    write_csv(path, changed(question="é"), encoding="latin-1")
    with pytest.raises(OutcomeTableError, match="not UTF-8: save it as UTF-8"):
        OutcomeTable.read(path)
    write_csv(
        path, [r | {"question": "é" if k == 3999 else "e" * 300} for k, r in enumerate(rows(1000))], encoding="latin-1"
    )
    with pytest.raises(OutcomeTableError, match="not UTF-8: save it as UTF-8"):
        OutcomeTable.read(path)
    write_csv(path, EIGHT, encoding="utf-16")
    with pytest.raises(OutcomeTableError, match="UTF-16; save it as UTF-8"):
        OutcomeTable.read(path)


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "values", "read"),
    [
        ("tokens", pa.array([Decimal("30.00")] * 8), 30),
        ("tokens", pa.array([30] * 8, pa.uint64()), 30),
        ("tokens", pa.array(np.full(8, 30, np.float16)), 30),
        ("tokens", pa.array([30] * 8).dictionary_encode(), 30),
        ("correct", pa.array([1] * 8, pa.int8()), True),
        ("correct", pa.array([0.0] * 8), False),
        ("question_id", pa.array([7] * 8).dictionary_encode(), "7"),
        ("answer", pa.array([Decimal("30.50")] * 8), "30.5"),
        ("question", pa.array(["x"] * 8, pa.large_string()).dictionary_encode(), "x"),
    ],
)
def test_parquet_types(tmp_path: Path, column: str, values: pa.Array, read: Any) -> None:
    arrow = pa.Table.from_pylist(changed(sample=lambda k: k))
    pq.write_table(arrow.set_column(arrow.column_names.index(column), column, values), tmp_path / "t.parquet")
    assert {r[column] for r in plain(OutcomeTable.read(tmp_path / "t.parquet"))} == {read}


@pytest.mark.parametrize(
    ("column", "values", "at", "said"),
    [
        ("tokens", pa.array([Decimal("30.50")] * 8), 0, "30.5"),
        ("correct", pa.array([1.0] * 7 + [float("nan")]), 7, "nan"),
        ("question_id", pa.array([1.0] * 4 + [float("nan")] * 4), 4, "nan"),
        ("question_id", pa.array([1] * 4 + [None] * 4), 4, "no value"),
        ("question_id", pa.array([1] * 8, pa.date32()), 0, "store the column as text"),
        ("question", pa.array([b"x"] * 8), 0, "store the column as text"),
    ],
)
def test_parquet_types_that_are_refused(tmp_path: Path, column: str, values: pa.Array, at: int, said: str) -> None:
    arrow = pa.Table.from_pylist(EIGHT)
    pq.write_table(arrow.set_column(arrow.column_names.index(column), column, values), tmp_path / "t.parquet")
    with pytest.raises(OutcomeTableError, match=said) as caught:
        OutcomeTable.read(tmp_path / "t.parquet")
    assert (caught.value.column, caught.value.row) == (column, at)


def test_a_column_that_parquet_cannot_hold_is_named(tmp_path: Path) -> None:
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(EIGHT).append_column("note", pa.array([{}] * 8)))
    with pytest.raises(OutcomeTableError, match=r"'note'.*make the column text or drop it"):
        table.write(tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


# --- Columns that follow from others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("blank", [False, True])
def test_tier_order_and_sample_follow(tmp_path: Path, suffix: str, blank: bool) -> None:
    path = tmp_path / f"t{suffix}"
    content = rows(3, ("high", "low"), 3)
    content += [row("q0", "odd", tokens=5, menu="other"), row("q0", "even", tokens=5, menu="other")]
    bare = [
        r | {"tier_order": None, "sample": None}
        if blank
        else {k: r[k] for k in list(r) if k not in ("tier_order", "sample")}
        for r in content
    ]
    if suffix == ".csv":
        write_csv(path, bare)
    elif suffix == ".jsonl":
        path.write_text(jsonl(bare))
    else:
        pq.write_table(pa.Table.from_pylist(bare), path)
    table = OutcomeTable.read(path)
    # Equal means: as they come. "high" has order 3 in the rows it was made of.
    order = {"low": 1, "high": 2, "odd": 1, "even": 2}
    assert plain(table) == [r | {"tier_order": order[r["tier"]]} for r in content]
    assert table.tier_names("model") == ("low", "high")
    assert "model: low (11) < high (31); other: odd (5) < even (5)" in table.notes[0]
    assert "no sample" in table.notes[1]
    table.write(tmp_path / "u.parquet")
    assert OutcomeTable.read(tmp_path / "u.parquet").notes == ()


def test_samples_follow_the_rows_of_a_question_and_tier_wherever_they_stand() -> None:
    content = [row(question, tier) for _ in range(3) for question in ("a", "b") for tier in ("low", "high")]
    bare = [{name: r[name] for name in r if name != "sample"} | {"seed": k} for k, r in enumerate(content)]
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(bare))
    assert table.numbers("sample").tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert "equal another" not in table.notes[0]
    copies = OutcomeTable.from_arrow(pa.Table.from_pylist([*bare, bare[3], bare[3]]))
    assert "2 rows equal another one in every column" in copies.notes[0]
    paired = pa.Table.from_pylist(bare).replace_schema_metadata({"pairing": "true"})
    with pytest.raises(OutcomeTableError, match=r"'sample'.*'pairing'.*add them or leave"):
        OutcomeTable.from_arrow(paired)


def test_an_order_that_contradicts_itself_may_be_left_out() -> None:
    content = changed(3, tier_order=2)
    with pytest.raises(OutcomeTableError, match="or leave the column out"):
        OutcomeTable.from_arrow(pa.Table.from_pylist(content))
    table = OutcomeTable.from_arrow(pa.Table.from_pylist(content).drop_columns("tier_order"))
    assert table.tier_names("model") == ("low", "high")


def test_judgements_are_no_samples() -> None:
    """Two filters of every generation, as evaluation harnesses log them, without numbers: not two generations."""
    bare = [r | {"filter": name} for r in without("sample") for name in ("strict-match", "flexible-extract")]
    with pytest.raises(OutcomeTableError, match=r"column 'filter' has several values.*keep one of them") as caught:
        OutcomeTable.from_arrow(pa.Table.from_pylist(bare))
    assert (caught.value.column, caught.value.row) == ("sample", 1)
    one = [r for r in bare if r["filter"] == "strict-match"]
    assert OutcomeTable.from_arrow(pa.Table.from_pylist(one)).numbers("sample").tolist() == [r["sample"] for r in EIGHT]
    # Numbered, they are read as generations, and reported.
    numbered = OutcomeTable.from_arrow(pa.Table.from_pylist([r | {"sample": k} for k, r in enumerate(bare)]))
    (problem,) = (p for p in numbered.describe()["problems"] if p["kind"] == "several_judgements")
    assert "'filter' has several values in 4 of 4 questions and tiers" in problem["message"]
    # A judge without a name is none of the less.
    nameless = [r | {"filter": None if r["filter"] == "strict-match" else r["filter"]} for r in bare]
    with pytest.raises(OutcomeTableError, match="column 'filter' has several values"):
        OutcomeTable.from_arrow(pa.Table.from_pylist(nameless))


def test_a_column_is_a_judge_by_its_rows_too() -> None:
    def judges(content: list[Row]) -> list[str]:
        found = OutcomeTable.from_arrow(pa.Table.from_pylist(content)).describe()["problems"]
        return [problem["message"].split()[1] for problem in found if problem["kind"] == "several_judgements"]

    bare = [
        r | {"mode": name, "tokens": 30 + k} for k, r in enumerate(without("sample")) for name in ("strict", "flex")
    ]
    assert judges(bare) == ["'mode'"]
    assert judges([r | {"tokens": 30 + k} for k, r in enumerate(bare)]) == [], "other tokens: other generations"
    assert judges([r | {"mode": "one"} for r in bare]) == []


def test_a_long_value_is_cut_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({name: [r[name] for r in rows(500)] for name in EIGHT[0]}))
    with pytest.raises(OutcomeTableError, match=r"\.\.\.; correct") as caught:
        OutcomeTable.read(path)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("again", "said", "differ"),
    [
        ({}, "equal in every column: if one is a copy, drop it", ""),
        (
            {"correct": False, "filter": "strict"},
            "judgements or filters of one generation, keep one",
            "'correct', 'filter'",
        ),
        ({"tokens": 99}, "if they are different generations, number every generation differently", "'tokens'"),
    ],
)
def test_a_doubled_key_is_a_copy_a_filter_or_a_generation(again: Row, said: str, differ: str) -> None:
    content = [*EIGHT, EIGHT[2] | again, EIGHT[2] | again]
    with pytest.raises(OutcomeTableError, match=said) as caught:
        OutcomeTable.from_arrow(
            pa.Table.from_pylist([{"filter": "flexible"} | r if "filter" in again else r for r in content])
        )
    assert (caught.value.column, caught.value.row) == ("sample", 8)
    assert "already in row 2 (2 such rows)" in str(caught.value)
    assert differ in str(caught.value)


def test_a_path_that_is_not_there_is_said_before_its_kind(tmp_path: Path) -> None:
    with pytest.raises(OutcomeTableError, match="none: file not found"):
        OutcomeTable.read(tmp_path / "none")


def test_nameless_columns_are_nothing(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "t.csv", [{"": n, **r, " ": "", "  ": ""} for n, r in enumerate(EIGHT)], header=str.strip
    )
    assert plain(OutcomeTable.read(path)) == EIGHT


def test_a_long_number_is_an_id(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(jsonl(changed(0, question_id=10**400)))
    assert OutcomeTable.read(tmp_path / "t.jsonl").rows["question_id"][0].as_py() == str(10**400)
