"""Questions come from files, datasets in the hub's layout and generators, and say what is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

pytest.importorskip("datasets", reason="needs the extra [live]")

from roi_env.answering.questions import PRESETS, QuestionError, preset_grader, read_questions

ROWS = [{"problem": f"{n} + 1?", "answer": str(n + 1), "level": n % 3} for n in range(7)]


@pytest.fixture(params=["jsonl", "json", "csv", "parquet"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"sums.{request.param}"
    table = pa.Table.from_pylist(ROWS)
    if request.param == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    elif request.param == "json":
        path.write_text(json.dumps(ROWS))
    elif request.param == "csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def test_files_of_every_kind(file: Path) -> None:
    found = read_questions(str(file), {"level": "level"}, limit=5)
    assert [(q.text, q.answer) for q in found] == [(row["problem"], row["answer"]) for row in ROWS[:5]]
    assert {q.dataset for q in found} == {"sums"}
    assert [q.extra for q in found] == [{"level": str(n % 3)} for n in range(5)]
    assert [q.question_id for q in found] == [q.question_id for q in read_questions(str(file))][:5]


def test_mappings_options_and_repeated_rows(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    row = {"Body": "Two ducks.", "Question": "Legs?", "n": 4, "options": ["A)2", "B)4"]}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n\n")
    (found,) = read_questions(str(path), {"text": "{Body} {Question}", "answer": "n"})
    assert found.text == "Two ducks. Legs?\nA)2\nB)4"
    assert found.answer == "4"
    (bare,) = read_questions(str(path), {"text": "Question"}, answers=False)
    assert bare.answer == ""


@pytest.mark.parametrize("name", ["question", "answer", "id", "options"])
def test_halves_of_characters_are_refused_by_row(name: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    row = {"question": "a", "answer": "1", "id": "x", "options": ["b"]}
    half = {**row, name: ["\ud83d"] if name == "options" else "\ud83d"}
    path.write_text(f"{json.dumps({**row, 'id': 'y'})}\n{json.dumps(half)}\n")
    with pytest.raises(QuestionError, match=f"row 2: '{name}' has half"):
        read_questions(str(path))


@pytest.mark.parametrize("name", ["question", "answer", "id"])
@pytest.mark.parametrize("value", [[{"role": "user", "content": "a"}], {"a": 1}, b"a"])
def test_what_is_no_text_is_refused_by_row(name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"question": ["a"], "answer": ["1"], "id": ["x"]} | {name: [value]}), path)
    with pytest.raises(QuestionError, match=rf"row 1: '{name}' is no text but .*--column"):
        read_questions(str(path))
    if name == "answer":
        assert read_questions(str(path), answers=False)[0].answer == "", "nobody needs it"


def test_options_that_cannot_be_shown_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Which?", "options": {"A": "x", "B": "y"}, "answer": "A"}\n')
    with pytest.raises(QuestionError, match="row 1: the options must be a list of texts"):
        read_questions(str(path))


def test_a_missing_answer_is_none_however_the_table_says_so(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    for missing in (None, float("nan")):
        pq.write_table(pa.table({"question": ["a", "b"], "answer": [1.5, missing]}), path)
        with pytest.raises(QuestionError, match="row 2: 'answer' is empty"):
            read_questions(str(path))


def test_long_texts_and_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(f'question,answer\n"{"x" * 200_000}",1\n')
    assert len(read_questions(str(path))[0].text) == 200_000
    path.write_bytes("question,answer\na,1\ncafé,1\n".encode("latin-1"))
    with pytest.raises(QuestionError, match="line 3 is not UTF-8: save the file as UTF-8"):
        read_questions(str(path))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"body": "x", "answer": "1"}\n')
    with pytest.raises(QuestionError, match="which column is the text"):
        read_questions(str(path))
    with pytest.raises(QuestionError, match="has no 'boddy'"):
        read_questions(str(path), {"text": "{boddy}"})
    path.write_text('{"id": 1, "question": "a", "answer": "1"}\n{"id": 1, "question": "b", "answer": "1"}\n')
    with pytest.raises(QuestionError, match="names two questions"):
        read_questions(str(path))
    path.write_text('{"question": "a", "answer": "1"}\n\n{"question": " ", "answer": "1"}\n')
    with pytest.raises(QuestionError, match=r"row 3: the question is empty.*--column text=COLUMN"):
        read_questions(str(path))
    path.write_text("{")
    for source in (str(path), str(tmp_path / "none.jsonl"), "rg:no_such", f"hf:{tmp_path / 'none'}", "rg:gcd?oddity=3"):
        with pytest.raises(QuestionError):
            read_questions(source)


def test_a_dataset_in_the_hubs_layout_is_read_by_the_real_loader(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    (folder / "main").mkdir(parents=True)
    rows = [{"question": f"How many? {n}", "answer": f"So it is\n#### {n},000"} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "main" / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test-*\n---\n# GSM8K\n"
    )
    found = read_questions(f"gsm8k={folder}")
    assert [(q.text, q.answer, q.dataset) for q in found[:2]] == [
        ("How many? 0", "0,000", "gsm8k"),
        ("How many? 1", "1,000", "gsm8k"),
    ]
    assert [q.text for q in read_questions(f"hf:{folder}:main:test", limit=2)] == ["How many? 0", "How many? 1"]
    with pytest.raises(QuestionError, match="dataset"):
        read_questions(f"hf:{folder}:main:train")


def test_questions_of_a_recorded_table() -> None:
    from roi_env.sources.packaged import TINYLM, tinylm_table

    found = read_questions(f"table:{TINYLM}?split=test&sample=40&seed=1")
    assert len({question.question_id for question in found}) == 40
    assert len({question.dataset for question in found}) > 4
    assert all(question.extra["kind"].startswith(question.dataset) for question in found)  # type: ignore[union-attr]
    recorded = set(tinylm_table().split("test").rows["question_id"].to_pylist())
    assert {question.question_id for question in found} <= recorded
    assert found == read_questions(f"table:{TINYLM}?split=test&sample=40&seed=1")
    for bad in ("none.parquet", f"{TINYLM}?split=some", f"{TINYLM}?size=3"):
        with pytest.raises(QuestionError):
            read_questions(f"table:{bad}")


def test_questions_that_a_table_has_no_text_of_are_left_out() -> None:
    from roi_env.sources.packaged import PACKAGED

    told: list[str] = []
    source = f"table:{PACKAGED['paper']}?sample=400"
    found = read_questions(source, say=told.append)
    assert len(found) == 400
    assert {one.dataset for one in found} == {"gsm8k", "math-500"}
    assert told == [f"{source}: 30 questions have no text there and are left out"]


def test_a_recorded_text_is_asked_once_and_needs_one_answer(tmp_path: Path) -> None:
    rows = [
        {"dataset": "d", "question_id": f"{text}{copy}", "question": f"Which is {text}?" + " " * copy, "answer": "AB"[copy],
         "menu": "m", "tier": "low", "tokens": 5, "correct": True, "topic": text}
        for text in "xyz" for copy in range(2)
    ]  # fmt: skip
    path = tmp_path / "t.jsonl"

    def save() -> str:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"table:{path}"

    found = read_questions(save())
    assert [(q.question_id, q.text, q.answer, q.extra) for q in found] == [
        (f"{text}0", f"Which is {text}?", "A", {"topic": text}) for text in "xyz"
    ]
    rows += [row | {"dataset": "e", "question": f"Is it {k}?"} for k, row in enumerate(rows[:2])]
    found = read_questions(save())
    assert [(q.dataset, q.question_id) for q in found][3:] == [("e", "x0"), ("e", "x1")], "an id is its dataset's"
    rows[-2:] = [row | {"answer": "D"} for row in rows[:2]]
    with pytest.raises(
        QuestionError, match=r"1 questions have several answers to one text \(e.g. 'x0'\).*no letter can grade"
    ):
        read_questions(save())
    assert len(read_questions(save(), answers=False)) == 3


def test_presets_and_their_graders() -> None:
    assert preset_grader("math-500=somewhere") == "math"
    assert preset_grader("rg:gcd?size=3") == "reasoning-gym"
    assert preset_grader("my.jsonl") is None
    assert set(PRESETS) == {"gsm8k", "math-500", "aime-2024", "aime-2025"}


@pytest.mark.skipif("ROI_DATA" not in os.environ, reason="needs ROI_DATA")
def test_real_question_files() -> None:
    folder = Path(os.environ["ROI_DATA"]) / "questions"
    gsm = read_questions(str(folder / "gsm8k_test.jsonl"))
    assert len(gsm) == 1319
    assert gsm[0].answer == "18"
    assert len(read_questions(str(folder / "math500.jsonl"))) == 500
    svamp = read_questions(str(folder / "svamp.json"), {"text": "{Body} {Question}"})
    assert len(svamp) == 1000
    aqua = read_questions(str(folder / "aqua_test.jsonl"), {"answer": "correct"})
    assert aqua[0].text.splitlines()[1].startswith("A)")
