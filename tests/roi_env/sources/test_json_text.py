"""JSON that tells one thing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roi_env.answering.questions import QuestionError, read_questions
from roi_env.sources.importing.files import LogError, LogFile
from roi_env.sources.json_text import TwiceError, read_json
from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 1}', '{"a": NaN, "a": NaN}', '{"a": {"b": [1]}, "a": {"b": [1]}}', '[{"a": 1}, {"a": 2}]', "3"],
)
def test_the_same_said_twice_is_said_once(text: str) -> None:
    assert json.dumps(read_json(text)) == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"c": true, "t": 3, "c": false}', "one object has the key 'c' twice, as true and as false"),
        ('{"c": true, "c": 1}', "one object has the key 'c' twice, as true and as 1"),
        ('[{}, {"x": {"y": [{"c": "a", "c": "b"}]}}]', "one object (at 1.x.y.0) has the key 'c' twice"),
    ],
)
def test_a_key_with_two_values_is_refused(text: str, said: str) -> None:
    with pytest.raises(TwiceError) as caught:
        read_json(text)
    assert said in str(caught.value)


def test_every_reader_of_strangers_files_names_line_and_key(tmp_path: Path) -> None:
    whole = '{"dataset": "d", "question_id": "1", "question": "What?", "answer": "2", "menu": "m", "tier": "t", "tokens": 3, "correct": true'
    path = tmp_path / "a.jsonl"
    path.write_text(f'{whole}}}\n{whole}, "correct": false}}\n')
    with pytest.raises(LogError, match=r"line 2: one object has the key 'correct' twice, as true and as false"):
        list(LogFile(path).records())
    with pytest.raises(OutcomeTableError, match=r"row 1 .*one object has the key 'correct' twice"):
        OutcomeTable.read(path)
    (tmp_path / "q.jsonl").write_text(f'{whole}, "answer": "3"}}\n')
    with pytest.raises(QuestionError, match=r"line 1: one object has the key 'answer' twice"):
        read_questions(str(tmp_path / "q.jsonl"))
