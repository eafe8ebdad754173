"""Anything tabular, by naming columns; and files that nobody should trust."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from roi_env.sources.importing import files
from roi_env.sources.importing.files import LogError
from roi_env.sources.importing.generations import NO_SAMPLES
from roi_env.sources.outcome_tables import OutcomeTable
from tests.roi_env.sources.importing.test_formats import column, lines, load

ROWS: list[dict[str, Any]] = [
    {
        "id": n,
        "q": f"What is {n} times 3?",
        "model": model,
        "usage": {"completion_tokens": 10 * n + 5},
        "ok": model == "big",
    }
    for n in range(6)
    for model in ("small", "big")
]
COLUMNS = {"question": "q", "question_id": "id", "tier": "model", "tokens": "usage.completion_tokens", "correct": "ok"}
FLAT = COLUMNS | {"tokens": "tok"}


def csv(path: Path, separator: str, encoding: str = "utf-8") -> Path:
    text = separator.join(["id", "q", "model", "tok", "ok"]) + "\n"
    for row in ROWS:
        fields = [
            str(row["id"]),
            f'"{row["q"]}{separator} ""so""\n"',
            row["model"],
            str(row["usage"]["completion_tokens"]),
            str(row["ok"]),
        ]
        text += separator.join(fields) + "\n"
    path.write_text(text, encoding)
    return path


def check(table: Any) -> None:
    assert column(table, "question_id") == [str(row["id"]) for row in ROWS]
    assert column(table, "tokens") == [row["usage"]["completion_tokens"] for row in ROWS]
    assert column(table, "correct") == [row["ok"] for row in ROWS]
    assert column(table, "tier") == [row["model"] for row in ROWS]
    assert table.menus == ("small + big",)


def test_the_same_rows_in_every_kind_of_file(tmp_path: Path) -> None:
    check(load(lines(tmp_path / "a.jsonl", ROWS), columns=COLUMNS)[0])
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    check(load(tmp_path / "a.json", columns=COLUMNS)[0])
    (tmp_path / "b.json").write_text(json.dumps(ROWS))  # on one line
    check(load(tmp_path / "b.json", columns=COLUMNS)[0])
    (tmp_path / "named.txt.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    check(load(tmp_path / "named.txt.gz", columns=COLUMNS)[0])
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.bin")
    check(load(tmp_path / "a.bin", columns=COLUMNS)[0])


@pytest.mark.parametrize("orient", ["columns", "list", "split", "index", "records"])
@pytest.mark.parametrize("indent", [None, 1])
def test_tables_as_pandas_writes_them(tmp_path: Path, orient: str, indent: int | None) -> None:
    flat = [
        {
            "id": row["id"],
            "q": row["q"],
            "model": row["model"],
            "tok": row["usage"]["completion_tokens"],
            "ok": row["ok"],
        }
        for row in ROWS
    ]
    numbers = [str(number) for number in range(len(flat))]
    forms: dict[str, Any] = {
        "columns": {name: dict(zip(numbers, (row[name] for row in flat), strict=True)) for name in flat[0]},
        "list": {name: [row[name] for row in flat] for name in flat[0]},
        "split": {
            "columns": list(flat[0]),
            "index": list(range(len(flat))),
            "data": [list(row.values()) for row in flat],
        },
        "index": dict(zip(numbers, flat, strict=True)),
        "records": flat,
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(forms[orient], indent=indent))
    table, _ = load(path, columns=FLAT)
    check(table)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", ":", "\x01", "#", "\xa7"])
def test_any_separator(tmp_path: Path, separator: str) -> None:
    check(load(csv(tmp_path / "a.csv", separator), columns=FLAT)[0])
    check(load(csv(tmp_path / "b.csv", separator, "utf-16"), columns=FLAT)[0])


def test_lists_are_samples_and_lists_of_objects_too(tmp_path: Path) -> None:
    rows = [{"p": f"P {n}", "runs": [{"t": "abcd", "s": 1}, {"t": "abcde", "s": 0}]} for n in range(2)]
    path = lines(tmp_path / "a.jsonl", rows)
    table, report = load(path, columns={"question": "p", "correct": "runs.s", "tier": "{file}"}, text="runs.t")
    assert column(table, "correct") == [True, False, True, False]
    assert column(table, "tokens") == [1, 2, 1, 2]
    assert column(table, "sample") == [0, 1, 0, 1]
    assert column(table, "tier") == ["a"] * 4
    assert set(column(table, "counted")) == {"estimate"}
    assert "estimated" in report.warnings[0]
    assert column(
        load(path, columns={"question": "p", "correct": "runs.1.s", "tier": "x", "text": "runs.1.t"})[0], "tokens"
    ) == [2, 2]
    rows[1]["runs"][0].pop("t")
    with pytest.raises(LogError, match="line 2: lists of samples have different lengths"):
        load(
            lines(path, [rows[0], {"p": "P", "s": [1], "t": ["a", "b"]}]),
            columns={"question": "p", "correct": "s", "text": "t", "tier": "x"},
        )


def test_lists_that_a_csv_holds_are_samples_in_both_spellings(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('sep=;\nq;t;ok;out\nA;m;[true, false];"[\'x\', \'yyyyy\']"\nB;m;[True, False];"[""zz"", """"]"\n')
    table, _ = load(path, columns={"question": "q", "tier": "t", "correct": "ok"}, text="out")
    assert column(table, "correct") == [True, False, True, False]
    assert column(table, "tokens") == [1, 2, 1, 0]
    path.write_text('q,t,ok,out\nA,m,1,"  abc   "\n')
    assert column(load(path, columns={"question": "q", "tier": "t", "correct": "ok"}, text="out")[0], "tokens") == [2]
    path.write_text('q,t,tokens,ok\nA,m,"[print(1)]",1\n')
    with pytest.raises(LogError, match=r"row 1, column 'tokens': '\[print"):
        load(path, columns={"question": "q", "tier": "t", "correct": "ok"})


def test_rows_inside_a_document_are_named_by_a_star(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"model": "m", "runs": [{"q": f"Q {n}", "tokens": n, "passed": True} for n in range(3)]})
    )
    with pytest.raises(LogError, match=r"--column 'correct=runs\.\*\.passed' --column 'tokens=runs\.\*\.tokens'"):
        load(path)
    columns = {"question": "runs.*.q", "tier": "model", "tokens": "runs.*.tokens", "correct": "runs.*.passed"}
    assert column(load(path, columns=columns)[0], "tokens") == [0, 1, 2]


def test_parts_of_objects_are_tiers(tmp_path: Path) -> None:
    rows = [{"p": f"P {n}", "by": {"low": {"n": 3, "ok": False}, "high": {"n": 30, "ok": True}}} for n in range(2)]
    columns = {"question": "p", "tier": "{*}", "tokens": "by.*.n", "correct": "by.*.ok", "dataset": "'mine'"}
    table, _ = load(lines(tmp_path / "a.jsonl", rows), columns=columns)
    assert table.tier_names("low + high") == ("low", "high")
    assert column(table, "tokens") == [3, 30, 3, 30]
    assert set(column(table, "dataset")) == {"mine"}


def test_tokens_by_a_tokenizer(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"q": "Q", "out": "one two three", "ok": True}])
    columns = {"question": "q", "correct": "ok", "tier": "x"}
    table, _ = load(path, columns=columns, text="out", tokenizer=lambda text: len(text.split()))
    assert column(table, "tokens") == [3]
    assert column(table, "counted") == ["tokenizer"]


def test_missing_names_are_proposed(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"prompt": "Q", "model": "m", "usage": {"output_tokens": 3}, "reward": 1}])
    with pytest.raises(LogError) as caught:
        load(path)
    for option in ("question=prompt", "tier=model", "tokens=usage.output_tokens", "correct=reward"):
        assert f"--column {option}" in str(caught.value)
    named = {"question": "prompt", "tier": "model", "correct": "reward"}
    with pytest.raises(LogError, match=r"did you mean --column tokens=usage\.output_tokens"):
        load(path, columns=named | {"tokens": "output_tokns"})
    assert column(load(path, columns=named | {"tokens": "usage.output_tokens"})[0], "tokens") == [3]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (
            {
                "item_id": 3,
                "chosen_model": "m",
                "judge_score": 2,
                "main_score": 1,
                "prompt_tokens": 9,
                "gen_completion_tokens": 3,
            },
            ("question_id=item_id", "tier=chosen_model", "correct=main_score", "tokens=gen_completion_tokens"),
        ),
        (  # objects are no scores
            {"input": "Q", "sample_score": {"score": {"value": {"acc": 1.0}, "prediction": "so"}}},
            (
                "question=input",
                "tier={file}",
                "correct=sample_score.score.value.acc",
                "text=sample_score.score.prediction",
            ),
        ),
        (
            {"prompt": "Q", "m 1.5": True, "m 1.5_response": "a", "n": 0, "n_response": "b"},
            ("'correct=*'", "'text=*_response'", "'tier={*}'"),
        ),
        (  # of one model alone it would be no table of all
            {
                "prompt": "Q",
                "m_correct": 1,
                "m_tokens": 3,
                "m_output_tokens": 2,
                "n_correct": 0,
                "n_tokens": 4,
                "n_output_tokens": 3,
            },
            ("'correct=*_correct'", "'tokens=*_output_tokens'", "'tier={*}'"),
        ),
        (
            {"prompt": "Q", "correct_m": 1, "tokens_m": 3, "correct_n": 0, "tokens_n": 4},
            ("'correct=correct_*'", "'tokens=tokens_*'"),
        ),
        ({"Input": "Q", "Score": 1, "Model": "m", "In Tokens": 9, "Out Tokens": 3}, ("'tokens=Out Tokens'",)),
        ({"Input": "Q", "Score": 1, "Model": "m", "Cost (USD)": "$0.1"}, ("'cost=Cost (USD)'",)),
        (
            {"prompt": "Q", "m|performance": 1, "m|total_cost": 0.1, "n|performance": 0, "n|total_cost": 0.2},
            ("'correct=*|performance'", "'cost=*|total_cost'", "'tier={*}'"),
        ),
    ],
)
def test_names_that_end_in_usual_ones_are_proposed(
    tmp_path: Path, row: dict[str, Any], options: tuple[str, ...]
) -> None:
    with pytest.raises(LogError) as caught:
        load(lines(tmp_path / "a.jsonl", [row]))
    for option in options:
        assert f"--column {option}" in str(caught.value)


def samples_of(number: int, **more: Any) -> dict[str, Any]:
    return {"task_id": f"T/{number}", "solution": "x" * 40, "base_status": "pass" if number % 2 else "fail", **more}


@pytest.mark.parametrize(
    ("document", "options", "right"),
    [
        (  # of code: every task has a list of samples
            {"date": "now", "eval": {f"T/{n}": [samples_of(n), samples_of(n)] for n in range(4)}},
            {
                "correct": "eval.*.base_status",
                "text": "eval.*.solution",
                "question_id": "eval.*.task_id",
                "tier": "{file}",
            },
            [False, False, True, True] * 2,
        ),
        (  # details by number, and a word between them
            {
                "accuracy": 50,
                "details": {"type": "GEN"}
                | {str(n): {"prompt": f"Q{n}", "origin_prediction": "abcd", "correct": n > 5} for n in range(12)},
            },
            {
                "correct": "details.*.correct",
                "text": "details.*.origin_prediction",
                "question": "details.*.prompt",
                "tier": "{file}",
            },
            [n > 5 for n in range(12)],
        ),
        (  # lists side by side
            [
                {
                    "problem": f"P{n}",
                    "model": "m",
                    "correct": [True, False],
                    "costs": [{"output_tokens": 5}, {"output_tokens": 9}],
                }
                for n in range(2)
            ],
            {"tokens": "costs.output_tokens", "question": "problem"},
            [True, False, True, False],
        ),
        (  # of code: the question's text is not what was generated
            [
                {
                    "question_id": f"q{n}",
                    "question_content": f"Write {n}",
                    "output_list": ["long" * 9, "short"],
                    "graded_list": [True, False],
                    "pass@1": 0.5,
                }
                for n in range(2)
            ],
            {"correct": "graded_list", "text": "output_list"},
            [True, False, True, False],
        ),
        (  # few details by number, and a word between them
            {
                "details": {"type": "GEN"}
                | {str(n): {"prompt": f"Q{n}", "origin_prediction": "abcd", "correct": n > 1} for n in range(3)},
            },
            {"correct": "details.*.correct", "text": "details.*.origin_prediction", "question": "details.*.prompt"},
            [False, False, True],
        ),
        (  # names that begin words by capitals; what a judge did is neither answer nor cost
            {
                "testCases": [
                    {
                        "input": f"What is {n}?",
                        "expectedOutput": "so",
                        "actualOutput": "so it is",
                        "success": n > 0,
                        "evaluationCost": 0.1,
                        "metricsData": [{"score": 0.9, "evaluationModel": "judge"}],
                    }
                    for n in range(2)
                ]
            },
            {
                "correct": "testCases.*.success",
                "text": "testCases.*.actualOutput",
                "question": "testCases.*.input",
                "tier": "{file}",
            },
            [False, True],
        ),
        (  # a count in an object that is called as ours is
            [
                {"question": f"Q{n}", "tier": "m", "correct": {"em": n}, "tokens": {"prompt": 9, "completion": 3 + n}}
                for n in range(2)
            ],
            {"correct": "correct.em", "tokens": "tokens.completion"},
            [False, True],
        ),
        (  # ids of tokens are no counts of them
            [
                {
                    "doc": {"query": f"Q{n}"},
                    "metrics": {"extractive_match": 1.0},
                    "model_response": {"text": ["so"], "output_tokens": [[3, 4]]},
                }
                for n in range(2)
            ],
            {
                "correct": "metrics.extractive_match",
                "text": "model_response.text",
                "question": "doc.query",
                "tier": "{file}",
            },
            [True, True],
        ),
    ],
)
def test_what_is_proposed_for_usual_logs_imports_them(
    tmp_path: Path, document: Any, options: dict[str, str], right: list[bool]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    with pytest.raises(LogError) as caught:
        load(path)
    for ours, theirs in options.items():
        assert f"{ours}={theirs}" in str(caught.value)
    table, _ = load(path, columns=options | ({"tier": "m"} if "tier" not in options else {}))
    assert column(table, "correct") == right


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("spelt", [json.dumps, repr])
def test_objects_that_texts_hold_are_found_in_both_spellings(tmp_path: Path, spelt: Any, kind: str) -> None:
    usage = [spelt({"input": 9, "output": 3 + n, "note": None}) for n in range(2)]
    table = pa.table({"input": ["Q 0", "Q 1"], "model": ["m", "m"], "usageDetails": usage, "score": ["0", "1"]})
    {"csv": pa_csv.write_csv, "parquet": pq.write_table}[kind](table, tmp_path / f"a.{kind}")
    columns = {"correct": "score", "tokens": "usageDetails.output", "question": "input", "tier": "model"}
    with pytest.raises(LogError) as caught:
        load(tmp_path)
    assert str(caught.value).endswith(" ".join(f"--column {ours}={theirs}" for ours, theirs in columns.items()))
    assert column(load(tmp_path, columns=columns)[0], "tokens") == [3, 4]


def test_judgements_that_may_be_meant_are_named(tmp_path: Path) -> None:
    rows = {"question": "Q", "tier": "m", "tokens": 3}
    for scores, told in (
        ({"Factuality": 0.6, "Form": 1}, "scores.Factuality, scores.Form"),
        ([{"name": "accuracy", "value": 1}], "scores.0.value"),
    ):
        path = lines(tmp_path / "a.jsonl", [rows | {"scores": scores}])
        with pytest.raises(LogError, match=f"Whether an answer was right may stand in {told}"):
            load(path)
    assert column(load(path, columns={"correct": "scores.0.value"})[0], "correct") == [True]


def test_calls_that_failed_are_told(tmp_path: Path) -> None:
    rows = [ROW | {"question": asked(n), "correct": n > 0, "error": None if n else "429: slow down"} for n in range(3)]
    [said] = load(lines(tmp_path / "a.jsonl", rows))[1].warnings
    assert "1 generations have an error beside them (e.g. '429: slow down') and count as answers" in said
    assert not load(lines(tmp_path / "a.jsonl", [row | {"error": "None"} for row in rows]))[1].warnings


def test_scales_and_prompts_that_may_be_meant_otherwise_are_told(tmp_path: Path) -> None:
    rows = [ROW | {"question": asked(n), "correct": score} for n, score in enumerate((0, 1, 85, 100))]
    path = lines(tmp_path / "a.jsonl", rows)
    assert "scores go up to 100, and --correct-at 0.9" in load(path, correct_at=0.9)[1].warnings[0]
    assert not load(path, correct_at=90)[1].warnings
    path = lines(tmp_path / "a.jsonl", [ROW | {"prompt_tokens": 9, "tokens": 12}])
    assert "'tokens' stands beside a count of the prompt's tokens" in load(path)[1].warnings[0]
    assert not load(path, columns={"tokens": "tokens"})[1].warnings


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for model in ("a", "b"):
        (tmp_path / model).mkdir()
        lines(tmp_path / model / "out.jsonl", [{"prompt": f"Q for {model}", "tokens": 3, "correct": True}])
    with pytest.raises(LogError, match=r"--column tier=\{folder\}"):
        load(tmp_path)
    assert set(column(load(tmp_path, columns={"tier": "{folder}", "question": "prompt"})[0], "tier")) == {"a", "b"}


def test_columns_of_models_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("prompt,m-1.5,n,m-1.5|total_cost,n|total_cost\nA,True,0.0,0.1,0.002\nB,False,1.0,0.2,0.003\n")
    columns = {"question": "prompt", "correct": "*", "cost": "*|total_cost", "tier": "{*}"}
    table, report = load(path, columns=columns)
    assert column(table, "tier") == ["m-1.5", "n"] * 2
    assert column(table, "correct") == [True, False, False, True]
    assert column(table, "tokens") == [100_000, 2000, 200_000, 3000]
    assert not [note for note in report.notes if "not taken" in note]
    with pytest.raises(LogError, match=r"row 1: '\*' stands for no name"):
        load(path, columns=columns | {"correct": "*_ok"})


def test_a_model_without_all_columns_is_told(tmp_path: Path) -> None:
    row = {"question": "Q", "m_correct": 1, "m_tokens": 3, "n_correct": 0}
    columns = {"correct": "*_correct", "tokens": "*_tokens", "tier": "{*}"}
    table, report = load(lines(tmp_path / "a.jsonl", [row]), columns=columns)
    assert column(table, "tier") == ["m"]
    assert report.warnings == ["a.jsonl: 'n' is left out: it has not all of *_correct, *_tokens"]


def test_stars_of_two_lists_and_stars_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"q": "Q", "by": {"m": {"ok": 1, "n": 3}}, "texts": {"m": {"t": "x"}}}])
    columns = {"question": "q", "tier": "{*}", "correct": "by.*.ok"}
    with pytest.raises(LogError, match="of one object or list, not of several"):
        load(path, columns=columns, text="texts.*.t")
    with pytest.raises(LogError, match=r"no column 'by\.\*\.tokens' for tokens"):
        load(path, columns=columns | {"tokens": "by.*.tokens"})


def test_alike_parts_of_a_large_object_are_one_kind(tmp_path: Path) -> None:
    parts = {f"task-{number}": {"prompt": f"Q{number}", "resolved": True, "tokens": number} for number in range(3000)}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": "m", "instances": parts}))
    with pytest.raises(LogError, match=r"It has model, instances, instances\.\*, instances\.\*\.prompt") as caught:
        load(path)
    assert len(str(caught.value)) < 1000
    assert "'correct=instances.*.resolved'" in str(caught.value)


def test_references_that_differ_may_be_what_models_wrote(tmp_path: Path) -> None:
    rows = [row | {"answer": f"{row['model']} says so"} for row in ROWS]
    _, report = load(lines(tmp_path / "a.jsonl", rows), columns=COLUMNS)
    assert [text for text in report.warnings if "several reference answers" in text]
    rows = [row | {"answer": str(row["id"] * 3)} for row in ROWS]
    assert not load(lines(tmp_path / "a.jsonl", rows), columns=COLUMNS)[1].warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"usage": {"completion_tokens": "many"}}, "line 3, tokens: expected generated tokens"),
        ({"usage": {"completion_tokens": -1}}, "line 3, tokens"),
        ({"usage": {"completion_tokens": 1.5}}, "line 3, tokens"),
        ({"usage": {"completion_tokens": True}}, "line 3, tokens"),
        ({"usage": {"completion_tokens": 10**12}}, "line 3, tokens"),
        ({"ok": "perhaps"}, "line 3: expected a score"),
        ({"ok": {"a": 1}}, "line 3: expected a score"),
        ({"ok": 7}, "line 3: score 7 is not between 0 and 1"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [*ROWS[:2], ROWS[2] | change, *ROWS[3:]]
    with pytest.raises(LogError, match=message):
        load(lines(tmp_path / "a.jsonl", rows), columns=COLUMNS)


def test_rows_without_a_score_are_counted(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"ok": None}, ROWS[1] | {"ok": float("nan")}, *ROWS[2:]]
    table, report = load(lines(tmp_path / "a.jsonl", rows), columns=COLUMNS)
    assert table.num_rows == len(ROWS) - 2
    assert report.dropped == {"no score": 2}


def test_scores_between_need_a_line_or_full_marks(tmp_path: Path) -> None:
    rows = [row | {"ok": score} for row, score in zip(ROWS, (0, 0.5, 0.9, 1), strict=False)]
    path = lines(tmp_path / "a.jsonl", rows)
    table, report = load(path, columns=COLUMNS)
    assert column(table, "correct") == [False, False, False, True]
    assert "only 1 counts as right" in report.warnings[0]
    assert column(load(path, columns=COLUMNS, correct_at=0.5)[0], "correct") == [False, True, True, True]


def test_decimal_commas_of_costs(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q;m;c;ok\nA;x;0,0021;1\nB;x;0,5;0\n")
    columns = {"question": "q", "tier": "m", "cost": "c", "correct": "ok"}
    table, _ = load(path, columns=columns)
    assert table.unit == "micro-usd"
    assert column(table, "tokens") == [2100, 500_000]
    with pytest.raises(LogError, match="no generation has tokens"):
        load(path, columns=columns, unit="tokens")


def test_names_of_files_keep_their_points_and_ids_that_collide_are_told(tmp_path: Path) -> None:
    lines(tmp_path / "m2.5-3B.v1.jsonl", ROWS[::2])
    lines(tmp_path / "m2.5-7B.v1.jsonl", [row | {"q": f"Other {row['id']}"} for row in ROWS[1::2]])
    table, report = load(tmp_path, columns=COLUMNS | {"tier": "{file}"})
    assert set(column(table, "tier")) == {"m2.5-3B.v1", "m2.5-7B.v1"}
    assert "6 ids have other texts in other files" in report.warnings[0]
    _, report = load(tmp_path, columns=COLUMNS | {"tier": "{file}", "dataset": "{file}"})
    assert not report.warnings


def test_the_same_bytes_twice_are_one_log(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        lines(tmp_path / name, ROWS)
    table, report = load(tmp_path, columns=COLUMNS)
    assert table.num_rows == len(ROWS)
    assert "same bytes" in report.warnings[0]


# ---------------------------------------------------------------------------------------------------------------------
# Files that nobody should trust


class Trap:
    def __reduce__(self) -> Any:
        return (Path("trapped").touch, ())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b" \n\n ", "white space alone"),
        (pickle.dumps(Trap()), "a Python pickle"),
        (gzip.compress(pickle.dumps(Trap()), mtime=0), "a Python pickle"),
        (b"\x00\x01" * 50, "bytes that no text has"),
        (b"[" * 100_000, "too deep in each other"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "more than 200 deep"),
        (b"[1, 2, 3]", "no objects"),
        (b'{"a": 1}\n[2]\n', "line 2 is no object"),
        (b'{"tokens": ' + b"9" * 5000 + b"}", "cannot be read"),
        (json.dumps(ROWS).encode()[:-20], "cannot be read as JSON"),
        ("\n".join(map(json.dumps, ROWS)).encode()[:-20], "JSON Lines, line 12"),
        (gzip.compress("\n".join(map(json.dumps, ROWS * 99)).encode())[:-20], "cannot be read as gzip"),
        (b"PK\x03\x04" + b"x" * 100, "cannot be read as zip"),
        (b"PAR1" + b"x" * 100, "cannot be read as Parquet"),
        (b"a,b\n1,2,3\n", "row 1 has 3 fields, the header 2"),
        ("a,b\n\xe9,2\n".encode("latin-1"), "not UTF-8"),
        ('{"a": "\xe9"}\n'.encode("latin-1"), "line 1 is not UTF-8"),
        ('{"a": 1}'.encode("utf-32"), "UTF-32"),
        (b'{\n"a": 1\n}\n{\n"a": 2\n}', "several JSON values, one after another"),
        (b"a,a\n1,2\n", "column 'a' more than once"),
    ],
)
def test_damaged_and_hostile_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.log").write_bytes(data)
    with pytest.raises(LogError, match=message) as caught:
        load(tmp_path / "a.log")
    assert "a.log" in str(caught.value)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("codec", ["bz2", "zstd", "gzip", "xz"])
def test_packed_files_are_unpacked_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    import bz2
    import lzma

    def packed(data: bytes) -> bytes:
        ours = {"xz": lzma.compress, "bz2": bz2.compress, "gzip": gzip.compress}
        return ours[codec](data) if codec in ours else pa.compress(data, codec=codec, asbytes=True)  # type: ignore[no-any-return]

    text = "\n".join(map(json.dumps, ROWS * 999)).encode()
    path = tmp_path / "m1.jsonl.zst"
    path.write_bytes(packed(text))
    table, _ = load(path, columns=COLUMNS | {"tier": "{file}"})
    assert table.num_rows == len(ROWS) * 999
    assert set(column(table, "tier")) == {"m1"}
    path.write_bytes(packed(text)[: len(packed(text)) // 2])
    with pytest.raises(LogError, match="truncated or damaged"):
        load(path, columns=COLUMNS)
    monkeypatch.setattr(files, "MAX_FILE", 20_000)
    path.write_bytes(packed(text))
    with pytest.raises(LogError, match="more than is read"):
        load(path, columns=COLUMNS)


def test_other_files_of_a_folder_are_left_out_and_told(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "weights.bin").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "empty.json").touch()
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "pointer.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "settings").write_text("a: 1\nb: 2: 3\n")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    for name in ("b", "c"):
        (tmp_path / f"{name}_metrics.json").write_text(json.dumps({"acc": 0.5, "n": 3 if name == "b" else 4}))
    table, report = load(tmp_path, columns=COLUMNS)
    assert table.num_rows == len(ROWS)
    said = "\n".join(report.warnings)
    for words in ("a Python pickle", "0 bytes", "Git LFS", "settings: row 1 has", "b_metrics.json"):
        assert words in said
    assert any("1 links" in note and "1 .md" in note for note in report.notes)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(LogError):
        load(tmp_path, columns=COLUMNS)


def test_the_file_that_lacks_least_speaks_for_a_folder_of_none(tmp_path: Path) -> None:
    (tmp_path / "a_summary.csv").write_text("group,share\nx,0.5\n")
    lines(tmp_path / "b.jsonl", [{"prompt": "Q", "tokens": 3, "correct": True, "model": "m"}])
    with pytest.raises(
        LogError, match=r"b\.jsonl: no column says which question.*--column question=prompt.*1 more files"
    ):
        load(tmp_path)


def test_sizes_are_bounded_whatever_a_file_says_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_DOCUMENT", 10_000)
    monkeypatch.setattr(files, "MAX_FILE", 50_000)
    monkeypatch.setattr(files, "MAX_LINE", 20_000)
    bomb = tmp_path / "bomb.eval"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", '{"eval": {}}')
        archive.writestr("samples/1_epoch_1.json", '{"input": "' + "a" * 10**6 + '"}')
    with pytest.raises(LogError, match="more than is read"):
        load(bomb)
    for data in (b'{"a": "' + b"x" * 30_000, b'{"a": 1}\n' * 10_000, b"[" + b"1," * 20_000):
        (tmp_path / "a.gz").write_bytes(gzip.compress(data))
        with pytest.raises(LogError, match="more than is read"):
            load(tmp_path / "a.gz", columns=COLUMNS)


def test_names_inside_a_zip_are_never_paths_and_names_of_tiers_never_steer_a_terminal(tmp_path: Path) -> None:
    from tests.roi_env.sources.importing.test_formats import log, sample

    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "a.eval", "w") as archive:
        archive.writestr("header.json", json.dumps(log([], model="m\x1b]0;x\x07")))
        archive.writestr("../escaped", "x")
        archive.writestr("samples/../../1_epoch_1.json", json.dumps(sample(1)))
    table, _ = load(inside)
    assert column(table, "tier") == ["m\ufffd]0;x\ufffd"]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_half_surrogates_become_replacement_marks(tmp_path: Path) -> None:
    table, _ = load(lines(tmp_path / "a.jsonl", [ROWS[0] | {"q": "x \ud800 y"}]), columns=COLUMNS)
    assert column(table, "question") == ["x ? y"]


# ---------------------------------------------------------------------------------------------------------------------
# Our own tables


def own_table(path: Path, unit: str = "tokens", cap: int = 30, **more: str) -> Path:
    made = [
        {
            "dataset": "d",
            "question_id": f"{path.stem}-{number}",
            "question": f"{path.stem}: what is {number} + 2?",
            "answer": str(number + 2),
            "menu": "m",
            "tier": tier,
            "tier_order": order,
            "tokens": 10 * order + number,
            "correct": order == 2,
            "sample": 1 - sample,
            "counted": "estimate" if number else "log",
            "topic": "sums",
        }
        for number in range(3)
        for sample in range(2)
        for order, tier in enumerate(("low", "high"), 1)
    ]
    terms = {
        "level_edges": json.dumps({"m": {"low": 15, "high": 25}}),
        "tier_caps": json.dumps({"m": {"low": 20, "high": cap}}),
        "decision_cost": "2",
        "pairing": "true",
        "unit": unit,
    }
    OutcomeTable.from_arrow(pa.Table.from_pylist(made).replace_schema_metadata(terms | more), "made").write(path)
    return path


@pytest.mark.parametrize("unit", ["tokens", "micro-usd"])
def test_our_own_table_keeps_its_unit_edges_caps_costs_and_pairing(tmp_path: Path, unit: str) -> None:
    path = own_table(tmp_path / "a.parquet", unit)
    table, report = load(path)
    before = OutcomeTable.read(path)
    for name in ("level_edges", "tier_caps", "decision_cost", "pairing", "unit"):
        assert getattr(table, name) == getattr(before, name), name
    for name in ("tokens", "sample", "tier_order", *(["counted"] if unit == "tokens" else [])):
        assert table.rows[name].to_pylist() == before.rows[name].to_pylist(), name
    assert "columns that are not taken: topic" in report.notes


def test_our_own_tables_join_where_they_agree(tmp_path: Path) -> None:
    one, two = own_table(tmp_path / "a.parquet"), own_table(tmp_path / "b.parquet")
    table, report = load(one, two)
    assert table.tier_caps == {"m": {"low": 20, "high": 30}}
    assert table.decision_cost == 2
    assert not table.pairing
    assert any("several files do not share thoughts" in text for text in report.warnings)
    with pytest.raises(LogError, match=r"tier_caps of tier 'high' of menu 'm' is 31 in it and 30 in another file"):
        load(one, own_table(tmp_path / "c.parquet", cap=31))
    with pytest.raises(LogError, match="a decision costs 3 in it and 2 in"):
        load(one, own_table(tmp_path / "e.parquet", decision_cost="3"))
    renamed, report = load(one, columns={"menu": "'other'"})
    assert renamed.level_edges == {}
    assert sum("are left out" in text for text in report.warnings) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Nothing silently lost


ROW = {"question": "q", "tier": "a", "tokens": 1, "correct": True}


def test_empty_lines_inside_quotes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question;tier;tokens;correct\n"one\n\ntwo";a;1;1\n\n;;;\n"x;y";a;2;0,0\n')
    table, report = load(path)
    assert column(table, "question") == ["one\n\ntwo", "x;y"]
    assert not report.dropped
    path.write_text('question,tier,tokens,correct\nq,a,1,1\n"torn,a,1,1\n')
    with pytest.raises(LogError, match="cannot be read as CSV after row 1"):
        load(path)


def test_parquet_of_bytes_and_decimals(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    marks = [Decimal("1.0"), Decimal("0.0")]
    pq.write_table(pa.table({"question": [b"q", b"r"], "tier": [b"a", b"a"], "tokens": marks, "correct": marks}), path)
    table, _ = load(path)
    assert column(table, "question") == ["q", "r"]
    assert column(table, "correct") == [True, False]


def test_questions_without_samples_are_counted(tmp_path: Path) -> None:
    empty = {"tokens": [], "correct": []}
    _, report = load(lines(tmp_path / "a.jsonl", [ROW, ROW | empty]))
    assert report.dropped == {NO_SAMPLES: 1}
    _, report = load(lines(tmp_path / "b.jsonl", [{"idx": n, "code": n * ["t"], "score": n * [True]} for n in (1, 0)]))
    assert report.dropped == {NO_SAMPLES: 1}


@pytest.mark.parametrize("cost", [{"tokens": 9}, {"cost": 0.5}, {"text": "It is 3."}])
def test_one_cost_of_several_samples_is_refused(tmp_path: Path, cost: dict[str, Any]) -> None:
    made = {"question": "q", "tier": "a", "correct": [True, False]} | cost
    with pytest.raises(
        LogError, match=f"line 1: 'correct' is a list of 2 samples, but '{next(iter(cost))}' is one value"
    ):
        load(lines(tmp_path / "a.jsonl", [made]))
    assert load(lines(tmp_path / "b.jsonl", [made | {"tokens": [1, 2]}]))[0].num_rows == 2


def test_tokens_with_a_point_of_thousands_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"line 1, tokens: .* thousands or a fraction, got '1\.000'"):
        load(lines(tmp_path / "a.jsonl", [ROW | {"tokens": "1.000"}]))
    assert column(load(lines(tmp_path / "b.jsonl", [ROW | {"tokens": "12.0"}]))[0], "tokens") == [12]


def test_rows_without_a_tier_and_ids_of_two_texts_are_told(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl", [ROW | {"question_id": 1}, ROW | {"question_id": 1, "question": "r", "tier": None}]
    )
    warnings = load(path)[1].warnings
    assert any("1 ids have other texts in other rows" in text for text in warnings)
    assert any("1 generations have no tier" in text for text in warnings)


def test_several_logs_in_one_file_are_refused(tmp_path: Path) -> None:
    run = {"eval": {"task": "t", "model": "m"}, "status": "success", "samples": []}
    results = {"name": "d", "results": [{"question": "q", "completions": [{"score": 1, "full_model_response": "a"}]}]}
    for document in (run, results):
        with pytest.raises(LogError, match="line 2 is a second log"):
            load(lines(tmp_path / "a.jsonl", [document, document]))


def test_units_do_not_mix_in_silence(tmp_path: Path) -> None:
    dollars, tokens = own_table(tmp_path / "a.parquet", "micro-usd"), own_table(tmp_path / "b.parquet")
    with pytest.raises(LogError, match=r"a\.parquet: counts US dollars, and .*b\.parquet counts tokens"):
        load(dollars, tokens)
    table, report = load(dollars, tokens, unit="micro-usd")
    assert table.unit == "micro-usd"
    assert report.dropped == {"no cost": 12}


def test_messages_are_no_text(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [ROW | {"question": [{"role": "user", "content": "What is 1 + 1?"}]}])
    with pytest.raises(LogError, match=r"line 1, column 'question': .* a list of objects or lists; name a part"):
        load(path)
    assert column(load(path, columns={"question": "question.0.content"})[0], "question") == ["What is 1 + 1?"]


# ---------------------------------------------------------------------------------------------------------------------
# Files of one folder that spell otherwise


def spelt(path: Path, model: str, **rest: Any) -> Path:
    """Rows of a model in which ``rest`` spells (a function of the number) what is not the same in all files."""
    made = [
        {"model": model, **{name: value(number) for name, value in rest.items()}, "total_tokens": 999}
        for number in range(4)
    ]
    return lines(path, made)


def asked(number: int) -> str:
    return f"What is {number} plus 1?"


def right(number: int) -> bool:
    return number % 2 == 0


def three_spellings(folder: Path) -> None:
    spelt(folder / "a.jsonl", "a", question=asked, correct=right, completion_tokens=lambda n: n + 10)
    spelt(folder / "b.jsonl", "b", question=asked, correct=right, output_tokens=lambda n: str(n + 20))
    usage = lambda n: {"prompt_tokens": 7, "completion_tokens": n + 30}  # noqa: E731
    spelt(folder / "c.jsonl", "c", question=asked, correct=right, usage=usage)


@pytest.mark.parametrize("tokens", [None, "completion_tokens", "output_tokens", "usage.completion_tokens"])
def test_every_file_may_spell_its_tokens_as_it_likes(tmp_path: Path, tokens: str | None) -> None:
    three_spellings(tmp_path)
    table, report = load(tmp_path, columns={"tier": "model"} | ({"tokens": tokens} if tokens else {}))
    cost = {model: [first + n for n in range(4)] for model, first in (("a", 10), ("b", 20), ("c", 30))}
    found = dict.fromkeys(cost)
    for model in cost:
        found[model] = [
            n for n, tier in zip(column(table, "tokens"), column(table, "tier"), strict=True) if tier == model
        ]
    assert found == cost
    assert set(column(table, "counted")) == {"log"}
    others = {"a": "completion_tokens", "b": "output_tokens", "c": "usage.completion_tokens"}
    for file, path in others.items():
        if path != tokens:
            assert [note for note in report.notes if note.startswith(f"{file}.jsonl: tokens is {path!r}")], report.notes


def test_every_column_may_be_spelt_otherwise_in_another_file(tmp_path: Path) -> None:
    three_spellings(tmp_path)
    spelt(tmp_path / "d.jsonl", "d", prompt=asked, reward=lambda n: float(right(n)), tokens_out=lambda n: n + 40)
    spelt(tmp_path / "e.jsonl", "e", problem=asked, is_correct=right, num_tokens=lambda n: n + 50)
    with pytest.raises(LogError) as caught:
        load(tmp_path / "d.jsonl", tmp_path / "e.jsonl")
    proposed = {"correct": "reward", "tokens": "tokens_out", "question": "prompt", "tier": "model"}
    assert " ".join(f"--column {ours}={theirs}" for ours, theirs in proposed.items()) in str(caught.value)
    table, report = load(tmp_path, columns=proposed)
    assert not report.warnings
    assert table.num_rows == 20
    assert len(set(column(table, "question"))) == 4
    assert column(table, "tokens") == [first + n for first in range(10, 60, 10) for n in range(4)]
    assert column(table, "correct") == [right(n) for n in range(4)] * 5
    assert column(table, "tier") == [model for model in "abcde" for _ in range(4)]


def test_a_spelling_that_may_be_several_columns_is_asked_for(tmp_path: Path) -> None:
    spelt(tmp_path / "a.jsonl", "a", question=asked, correct=right, generated=lambda n: n)
    spelt(
        tmp_path / "b.jsonl", "b", question=asked, correct=right, output_tokens=lambda n: n, tokens_out=lambda n: n + 1
    )
    _, report = load(tmp_path, columns={"tier": "model", "tokens": "generated"})
    said = "b.jsonl: no column 'generated' for tokens, which a.jsonl has: which of output_tokens, tokens_out is it?"
    assert any(said in text for text in report.warnings)
    spelt(tmp_path / "b.jsonl", "b", question=asked, correct=right, output_tokens=lambda n: n, tokens_out=lambda n: n)
    assert load(tmp_path, columns={"tier": "model", "tokens": "generated"})[0].num_rows == 8
    # A column of another file is no constant.
    spelt(tmp_path / "b.jsonl", "b", question=asked, correct=right, output_tokens=lambda n: n)
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    lines(tmp_path / "b.jsonl", [{name: row[name] for name in row if name != "model"} for row in rows])
    _, report = load(tmp_path, columns={"tier": "model", "tokens": "generated"})
    assert any("b.jsonl: no column 'model' for tier, which a.jsonl has" in text for text in report.warnings)


def test_ids_of_tokens_are_no_count(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [ROW | {"tokens": None, "text": "abcd", "output_tokens": [5, 6, 7]}])
    row = {name: value for name, value in ROW.items() if name != "tokens"} | {"text": "abcdefgh"}
    path = lines(tmp_path / "a.jsonl", [row | {"output_tokens": [5, 6, 7]}])
    assert column(load(path)[0], "counted") == ["estimate"]
    table, _ = load(lines(tmp_path / "b.jsonl", [row | {"output_tokens": 7}]))
    assert (column(table, "counted"), column(table, "tokens")) == (["log"], [7])


def test_thoughts_that_are_counted_apart_are_added(tmp_path: Path) -> None:
    def rows(model: str, *counts: tuple[int, int]) -> list[dict[str, Any]]:
        return [
            {
                "question": asked(n),
                "correct": True,
                "tier": model,
                "usage": {"output_tokens": out, "details": {"reasoning_tokens": thought}},
            }
            for n, (out, thought) in enumerate(counts)
        ]

    path = lines(tmp_path / "a.jsonl", [*rows("apart", (5, 90), (50, 10)), *rows("inside", (95, 90), (60, 10))])
    table, report = load(path)
    assert column(table, "tokens") == [95, 60, 95, 60]
    assert any("tokens of 2 generations do not hold the thought's" in text for text in report.warnings)


@pytest.mark.parametrize(("total", "paid"), [(360, 250), (310, 200)])
def test_the_total_tells_whether_thoughts_are_counted_apart(tmp_path: Path, total: int, paid: int) -> None:
    usage = {
        "candidates_token_count": 200,
        "thoughts_token_count": 50,
        "prompt_token_count": 110,
        "total_token_count": total,
    }
    row = {"question": "Q", "model": "m", "correct": 1}
    path = lines(tmp_path / "a.jsonl", [row | {"usage": usage}] * 2)
    table, _ = load(path, columns={"tier": "model", "tokens": "usage.candidates_token_count"})
    assert column(table, "tokens") == [paid] * 2
    names = ",".join([*row, *usage])
    values = ",".join(map(str, [*row.values(), *usage.values()]))
    (tmp_path / "a.csv").write_text(f"{names}\n{values}\n")
    table, _ = load(tmp_path / "a.csv", columns={"tier": "model", "tokens": "candidates_token_count"})
    assert column(table, "tokens") == [paid]


def test_dollars_beside_tokens_are_taken_and_told(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "tokens"} | {"cost": 0.5, "output_tokens": 7}
    path = lines(tmp_path / "a.jsonl", [row])
    table, report = load(path)
    assert (table.unit, column(table, "tokens")) == ("micro-usd", [500_000])
    assert "a.jsonl: 'cost' is what answers cost; --unit tokens takes 'output_tokens'" in report.notes
    table, _ = load(path, unit="tokens")
    assert (table.unit, column(table, "tokens")) == ("tokens", [7])


def test_all_tokens_beside_those_generated_are_told(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [ROW | {"tokens": 1000, "completion_tokens": 12}])
    assert "(e.g. 1000 and 12)" in load(path)[1].warnings[0]
    table, report = load(path, columns={"tokens": "completion_tokens"})
    assert (column(table, "tokens"), report.warnings) == ([12], [])


# ---------------------------------------------------------------------------------------------------------------------
# Rows that are no samples


def test_rows_of_several_judges_are_one_generation(tmp_path: Path) -> None:
    rows = [
        ROW | {"question": asked(n), "metric": metric, "correct": metric == "em"}
        for n in range(3)
        for metric in ("em", "f1")
    ]
    path = lines(tmp_path / "a.jsonl", rows)
    table, report = load(path)
    assert column(table, "correct") == [True] * 3
    assert report.dropped == {"other judge of the same generation (f1)": 3}
    assert report.warnings == ["several judges judge one generation (em, f1): em is taken; --filter takes another"]
    assert column(load(path, filter="f1")[0], "correct") == [False] * 3
    with pytest.raises(LogError, match=r"no judge 'x'; there are \['em', 'f1'\]"):
        load(path, filter="x")
    with pytest.raises(LogError, match="it has no column that names judges"):
        load(lines(tmp_path / "b.jsonl", [ROW]), filter="x")
    # Other questions may have other judges.
    table, report = load(lines(path, [row for n, row in enumerate(rows) if n % 3]))
    assert table.num_rows == 3
    assert column(load(lines(path, rows[:1] + rows[3:4]))[0], "correct") == [True, False]


def test_rows_that_differ_in_more_than_the_sample_are_told(tmp_path: Path) -> None:
    rows = [ROW | {"question": asked(n), "step": step, "seed": step} for n in range(3) for step in (10, 20)]
    path = lines(tmp_path / "a.jsonl", rows)
    assert "(e.g. step 10; step 20)" in load(path)[1].warnings[0]
    table, report = load(path, columns={"tier": "{tier} {step}"})
    assert set(column(table, "tier")) == {"a 10", "a 20"}
    assert not report.warnings
    assert not load(lines(path, rows[::2]))[1].warnings


def test_rows_of_several_runs_are_told(tmp_path: Path) -> None:
    rows = [{"question": "Q", "correct": 1, "tokens": 3, "eval_id": run} for run in ("a", "b")]
    _, report = load(lines(tmp_path / "a.jsonl", rows), columns={"tier": "'m'"})
    assert any("differ in more than the sample (e.g. eval_id a; eval_id b" in text for text in report.warnings)


def test_files_of_one_name_that_become_one_tier_are_told(tmp_path: Path) -> None:
    for model in ("m", "n"):
        (tmp_path / model).mkdir()
        lines(
            tmp_path / model / "out.jsonl", [ROW | {"question": asked(n), "tokens": len(model) + n} for n in range(2)]
        )
        lines(tmp_path / model / f"{model}.jsonl", [{"note": model}])
    lines(tmp_path / "m" / "out.jsonl", [ROW | {"tokens": 7}])
    _, report = load(tmp_path, columns={"tier": "{file}"})
    assert any("several files are called 'out'" in text for text in report.warnings)
    table, report = load(tmp_path, columns={"tier": "{folder}"})
    assert set(column(table, "tier")) == {"m", "n"}
    assert not any("several files are called" in text for text in report.warnings)


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]


@pytest.mark.parametrize(
    ("row", "proposed", "never"),
    [
        (  # of an evaluation with assertions: counts of tokens are no prompts
            {
                "provider": {"id": "openai:m", "label": ""},
                "prompt": {"raw": "What is 1 + 1?", "label": "{{q}}"},
                "response": {"output": "2", "tokenUsage": {"total": 9, "prompt": 7, "completion": 2}},
                "score": 1,
                "success": True,
            },
            {
                "correct": "score",
                "tokens": "response.tokenUsage.completion",
                "question": "prompt.raw",
                "tier": "provider.id",
            },
            (),
        ),
        (  # of a proxy: that a call succeeded says nothing of the answer
            {
                "request_id": "r",
                "api_key": "k",
                "model": "m",
                "status": "success",
                "completion_tokens": 9,
                "prompt_tokens": 5,
            },
            {"tokens": "completion_tokens", "tier": "model"},
            ("correct=", "question=", "question_id=", "api_key"),
        ),
        (  # of a trainer: the form is not the answer, and the last turn is
            {
                "prompt": TURNS,
                "completion": [{"role": "assistant", "content": "It is 2."}],
                "format_reward": 1.0,
                "accuracy_reward": 0.0,
            },
            {
                "correct": "accuracy_reward",
                "text": "completion.-1.content",
                "question": "prompt.-1.content",
                "tier": "{file}",
            },
            ("format_reward=",),
        ),
        (  # of tracing: the level of a message is no tier, the total no count of what was generated
            {
                "input": "What is 1 + 1?",
                "level": "DEFAULT",
                "model": "m",
                "scores": {"accuracy": 1},
                "metrics": {"tokens": 9, "completion_tokens": 2},
            },
            {"correct": "scores.accuracy", "tokens": "metrics.completion_tokens", "question": "input", "tier": "model"},
            (),
        ),
    ],
)
def test_what_is_proposed_has_the_right_kind_of_value(
    tmp_path: Path, row: dict[str, Any], proposed: dict[str, str], never: tuple[str, ...]
) -> None:
    path = lines(tmp_path / "a.jsonl", [row, row])
    with pytest.raises(LogError) as caught:
        load(path)
    options = " ".join(f"--column {ours}={theirs}" for ours, theirs in proposed.items())
    said = str(caught.value)
    assert said.endswith(f"perhaps: {options}")
    assert not [text for text in never if text in said.partition("perhaps: ")[2]]
    if "correct" in proposed:
        assert column(load(path, columns=proposed)[0], "question")[0] == "What is 1 + 1?"
    else:
        assert "Nothing in it reads like correct or question, without which there is no table" in said


def test_models_as_keys_are_tiers(tmp_path: Path) -> None:
    def rows(model: str) -> list[dict[str, Any]]:
        return [{"prompt": asked(n), "passed": right(n), "output_tokens": len(model) + n} for n in range(3)]

    by_list = {model: rows(model) for model in ("m", "mm")}
    by_id = {model: {f"q{n}": row for n, row in enumerate(rows(model))} for model in by_list}
    for name, document, star in (("list", by_list, "*"), ("id", by_id, "*.*")):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document))
        mapping = {
            "correct": f"{star}.passed",
            "tokens": f"{star}.output_tokens",
            "question": f"{star}.prompt",
            "tier": "{*}",
        }
        with pytest.raises(LogError) as caught:
            load(path)
        assert str(caught.value).endswith(" ".join(f"--column '{ours}={theirs}'" for ours, theirs in mapping.items()))
        table, _ = load(path, columns=mapping)
        found = sorted(zip(*(column(table, one) for one in ("tier", "tokens", "correct")), strict=True))
        assert found == [(model, len(model) + n, right(n)) for model in ("m", "mm") for n in range(3)]


def test_a_model_at_several_efforts_is_several_tiers(tmp_path: Path) -> None:
    made = [
        {"question": asked(n), "correct": True, "tokens": n + 1, "model": model, "reasoning_effort": effort}
        for n in range(2)
        for model in ("a", "b")
        for effort in ("low", "high")
    ]
    path = lines(tmp_path / "a.jsonl", made)
    with pytest.raises(LogError, match=r"--column 'tier=\{model\} \{reasoning_effort\}'"):
        load(path)
    assert "(e.g. reasoning_effort low; reasoning_effort high)" in load(path, columns={"tier": "model"})[1].warnings[0]


def test_one_run_written_in_two_forms_is_told(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [ROW | {"question": asked(n)} for n in range(3)])
    text = "".join(f"{asked(n)},a,1,True\n" for n in reversed(range(3)))
    (tmp_path / "a.csv").write_text(f"question,tier,tokens,correct\n{text}")
    assert any("holds the same generations as" in text for text in load(tmp_path)[1].warnings)
    (tmp_path / "a.csv").write_text(f"question,tier,tokens,correct\n{text.replace('True', 'False')}")
    assert not load(tmp_path)[1].warnings


def test_what_stands_beside_a_list_of_generations_is_that_of_all_of_them(tmp_path: Path) -> None:
    records = [{"prompt": f"Q{n}", "score": n, "completion_tokens": 5 + n, "cost": 0.001 * n} for n in range(2)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"score": 1.0, "cost": 0.3, "model_name": "m", "records": records}))
    with pytest.raises(LogError) as caught:
        load(path)
    proposed = {
        "correct": "records.*.score",
        "tokens": "records.*.completion_tokens",
        "question": "records.*.prompt",
        "tier": "model_name",
    }
    said = str(caught.value)
    for ours, theirs in proposed.items():
        assert f"{ours}={theirs}" in said
    table, _ = load(path, columns=proposed)
    assert (column(table, "tokens"), column(table, "correct")) == ([5, 6], [False, True])
    for name in ("cost", "correct"):
        with pytest.raises(LogError, match=rf"\({name}\) is one value, and there are 2 generations in 'records'"):
            load(path, columns=proposed | {name: {"correct": "score"}.get(name, name)})


@pytest.mark.parametrize(
    ("beside", "correct"), [({"ttft": 0.1, "latency": 1.0}, False), ({"status_code": 200}, False), ({"steps": 3}, True)]
)
def test_that_a_request_succeeded_is_no_judgement(tmp_path: Path, beside: dict[str, Any], correct: bool) -> None:
    path = lines(
        tmp_path / "a.jsonl", [{"prompt": "Q", "model": "m", "success": True, "output_tokens": 3, **beside}] * 2
    )
    with pytest.raises(LogError) as caught:
        load(path)
    assert ("--column correct=success" in str(caught.value)) is correct


def test_lists_of_judgements_are_proposed_and_their_counts_are_not(tmp_path: Path) -> None:
    row = {
        "problem": "P",
        "generations": ["long", "short"],
        "correctness_by_rule": [True, False],
        "correctness_count": 1,
    }
    with pytest.raises(LogError, match=r"--column correct=correctness_by_rule --column text=generations"):
        load(lines(tmp_path / "a.jsonl", [row] * 2))


def test_values_of_mixed_types_and_words_for_none(tmp_path: Path) -> None:
    said: list[tuple[Any, bool | None]] = [
        (True, True), ("False", False), (1, True), (0.0, False), (float("nan"), None), (None, None), ("NaN", None), ("N/A", None),
        ("<NA>", None), ("\\N", None), ("", None), (" yes ", True), ("1.0", True), ("0", False), ("C", True),
    ]  # fmt: skip
    counts = [5, "6", 7.0, "8.0"]
    rows = [
        {"question": f"Q{n}", "model": "m", "correct": value, "tokens": counts[n % 4]}
        for n, (value, _) in enumerate(said)
    ] + [{"question": "R", "model": "m", "correct": True, "tokens": value} for value in ("NaN", "null", "N/A", "-")]
    expected = [(right, int(float(counts[n % 4]))) for n, (_, right) in enumerate(said) if right is not None]
    path = lines(tmp_path / "a.jsonl", rows)
    text = "\n".join(f"{row['question']}\t{row['model']}\t{row['correct']}\t{row['tokens']}" for row in rows)
    (tmp_path / "a.tsv").write_text(f"question\tmodel\tcorrect\ttokens\n{text}\n")
    for one in (path, tmp_path / "a.tsv"):
        table, report = load(one, columns={"tier": "model"})
        assert list(zip(column(table, "correct"), column(table, "tokens"), strict=True)) == expected
        assert report.dropped == {"no score": 7, "no tokens and no text": 4}


def test_folders_named_after_a_time_or_by_chance_name_no_tier(tmp_path: Path) -> None:
    for folder in ("m/2025-01-01T00-00-00.1234", "n/20250101_101010", "o/4f1a2b3c", "p/2025-01-01"):
        (tmp_path / folder).mkdir(parents=True)
        lines(tmp_path / folder / "a.jsonl", [{"question": "Q", "correct": 1, "tokens": len(folder)}])
    assert set(column(load(tmp_path, columns={"tier": "{folder}"})[0], "tier")) == {"m", "n", "o", "p"}


def test_a_spreadsheet_is_told_from_a_log(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    with pytest.raises(LogError, match=r"is a spreadsheet: save its sheet as CSV"):
        load(tmp_path / "a.xlsx")


def test_the_wanted_unit_is_proposed(tmp_path: Path) -> None:
    usage = {"tokenUsage": {"total": 30, "prompt": 20, "completion": 10}}
    result = {"prompt": {"raw": "Q?"}, "response": usage, "score": 1, "cost": 0.1, "provider": {"id": "m"}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"results": {"results": [result, result]}}))
    tokens, cost = "tokens=results.results.*.response.tokenUsage.completion", "cost=results.results.*.cost"
    for unit, proposed in ((None, tokens), ("tokens", tokens), ("micro-usd", cost)):
        with pytest.raises(LogError) as caught:
            load(path, unit=unit)
        assert [one in str(caught.value) for one in (tokens, cost)] == [one == proposed for one in (tokens, cost)]


@pytest.mark.parametrize(
    ("row", "proposed", "never"),
    [
        ({"llm_selected": "m", "provider": "p"}, "tier=llm_selected", "tier=provider"),
        ({"failure_mode": "unset", "log_level": "info"}, "tier={file}", "_mode"),
        ({"thinking_mode": "on"}, "tier=thinking_mode", ""),
        ({"em/v1/score": 1, "toxicity/v1/score": 0}, "correct=em/v1/score", "toxicity/v1/score --"),
        ({"accuracy": 1.0, "accuracy_count": 8}, "correct=accuracy", ""),
        ({"prompt_messages": TURNS}, "question=prompt_messages.-1.content", ""),
        (
            {"total_output_tokens": 9, "total_input_tokens": 100},
            "tokens=total_output_tokens",
            "tokens=total_input_tokens",
        ),
    ],
)
def test_what_ends_in_a_usual_name_may_mean_another(
    tmp_path: Path, row: dict[str, Any], proposed: str, never: str
) -> None:
    with pytest.raises(LogError) as caught:
        load(lines(tmp_path / "a.jsonl", [row, row]))
    said = str(caught.value).partition("perhaps: ")[2] + " --"
    assert f"--column {proposed} --" in said
    assert not never or never not in said


def test_counts_of_each_generation_are_proposed_before_those_of_a_row(tmp_path: Path) -> None:
    parts = [{"prompt": "Q?", "score": 1, "output_tokens": 5}]
    with pytest.raises(LogError, match=r"--column 'tokens=parts\.\*\.output_tokens'"):
        load(lines(tmp_path / "a.jsonl", [{"parts": parts, "output_tokens": 10, "n": n} for n in range(2)]))


def test_lists_of_scores_that_a_csv_holds_are_proposed_and_prompts_in_brackets_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "prompt;scores;completion_tokens\n['What is 1?'];[1.0, 0.0];[7, 8]\n['What is 2?'];[0, 0];[9, 9]\n"
    )
    with pytest.raises(LogError) as caught:
        load(tmp_path / "a.csv")
    assert "--column correct=scores --column tokens=completion_tokens --column question=prompt" in str(caught.value)


@pytest.mark.parametrize("value", ["1e999999", 10**400])
@pytest.mark.parametrize("name", ["tokens", "correct", "cost", "tier_order"])
def test_numbers_of_too_many_digits_are_refused_by_row(tmp_path: Path, name: str, value: Any) -> None:
    rows = [{"question": f"What is {n} + 1?", "tier": "t", "tokens": 9, "correct": 1, "cost": 1} for n in range(3)]
    unit = "micro-usd" if name == "cost" else "tokens"
    with pytest.raises(LogError, match=r"line 3.* expected"):
        load(lines(tmp_path / "a.jsonl", [*rows[:2], rows[2] | {name: value}]), unit=unit)


def test_an_order_of_tiers_is_told_by_its_file_and_row_or_left_out_of_all_rows(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {n} + 1?", "tier": tier, "tokens": 9, "correct": 1, "tier_order": order}
        for n in range(2)
        for order, tier in ((2, "a"), (1, "b"))
    ]
    assert column(load(lines(tmp_path / "a.jsonl", rows))[0], "tier_order") == [2, 1] * 2
    table, report = load(lines(tmp_path / "a.jsonl", [*rows[:3], rows[3] | {"tier_order": float("nan")}]))
    assert set(column(table, "tier_order")) == {1, 2}
    assert "tier_order is missing in 1 rows, so it is left out of all" in report.notes
    with pytest.raises(LogError, match=r"a\.jsonl: line 4, tier_order: expected an integer >= 1.*got 'low'"):
        load(lines(tmp_path / "a.jsonl", [*rows[:3], rows[3] | {"tier_order": "low"}]))


def test_of_columns_of_one_meaning_the_one_to_the_letter_is_taken_and_others_are_asked_for(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "tier": "t", "Tokens": 5, "TOKENS": 7, "correct": 1} for n in range(2)]
    path = tmp_path / "a.jsonl"
    with pytest.raises(LogError, match="any of the columns Tokens, TOKENS for tokens: name one, --column tokens="):
        load(lines(path, rows))
    assert column(load(path, columns={"tokens": "TOKENS"})[0], "tokens") == [7, 7]
    assert column(load(lines(path, [row | {"tokens": 9} for row in rows]))[0], "tokens") == [9, 9]


def test_a_column_twice_is_refused_and_nameless_ones_are_nothing(tmp_path: Path) -> None:
    values = {"question": ["a?", "b?"], "tier": ["t", "t"], "tokens": [5, 6], "correct": [True, False]}
    twice = pa.table([*map(pa.array, values.values()), pa.array([0, 0])], names=[*values, "tokens"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet: has the column 'tokens' more than once: keep one"):
        load(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(",question,tier,tokens,correct,,\n0,a?,t,5,yes,,\n1,b?,t,6,no,,\n")
    assert column(load(tmp_path / "a.csv")[0], "tokens") == [5, 6]


def test_an_id_that_is_no_number_is_none(tmp_path: Path) -> None:
    rows = [{"question_id": float("nan"), "question": q, "tier": "t", "tokens": 5, "correct": 1} for q in ("a?", "b?")]
    assert len(set(column(load(lines(tmp_path / "a.jsonl", rows))[0], "question_id"))) == 2


def test_times_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    values = {"question": ["a?"], "tier": ["t"], "tokens": [5], "correct": [True]}
    pq.write_table(pa.table(values | {"at": pa.array([2**60], pa.timestamp("us"))}), tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"value behind row 0 cannot be read.*write times as text, or leave"):
        load(tmp_path / "a.parquet")
