"""Where questions come from: files with a column mapping, Hugging Face datasets, reasoning-gym's generators.

A source is one text (:func:`read_questions`):

* ``questions.jsonl`` (also ``.json``, ``.csv``, ``.parquet``);
* ``hf:NAME[:CONFIG[:SPLIT]]``: a dataset of the hub, or a local folder in the hub's layout;
* ``gsm8k``, ``math-500``, ``aime-2024`` or ``aime-2025``, perhaps ``gsm8k=FOLDER``: presets of the above;
* ``table:FILE[?split=test&sample=100&seed=0]``: questions of a recorded outcome table, each text once, with its extra
  columns; a random sample of them;
* ``rg:GENERATOR[?size=100&seed=0&name=value...]``: a generator of reasoning-gym with its configuration.

A mapping says which column is what: ``{"text": "problem"}``, or with several columns in one text ``{"text": "{Body}
{Question}"}``. What it leaves out is guessed from usual names.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from roi_env.answering.base import Question
from roi_env.sources.json_text import TwiceError, read_json

FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("question", "problem", "prompt", "text", "Question", "Problem"),
    "answer": ("answer", "final_answer", "solution", "target", "correct", "Answer"),
    "id": ("id", "question_id", "unique_id", "ID"),
}
"""Usual names of columns, tried in turn."""


_NO_TEXTS = (list, tuple, dict, bytes)
"""What stands in a column of texts by mistake: a conversation, several answers, text that was never decoded."""


class QuestionError(ValueError):
    """Questions cannot be read as asked."""


@dataclass(frozen=True)
class Preset:
    """A known dataset: hub id, configuration, split, columns, and its grader."""

    hub: str
    config: str | None
    split: str
    grader: str
    columns: Mapping[str, str] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    "gsm8k": Preset("openai/gsm8k", "main", "test", "number"),
    "math-500": Preset("HuggingFaceH4/MATH-500", None, "test", "math", {"text": "problem", "answer": "answer"}),
    "aime-2024": Preset("HuggingFaceH4/aime_2024", None, "train", "number", {"text": "problem", "answer": "answer"}),
    "aime-2025": Preset("math-ai/aime25", None, "test", "number", {"text": "problem", "answer": "answer"}),
}
"""Presets by name."""


def read_questions(
    source: str,
    columns: Mapping[str, str] | None = None,
    *,
    dataset: str | None = None,
    limit: int | None = None,
    answers: bool = True,
    distinct: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[Question]:
    """Read questions; see the module's text for what ``source`` may be.

    :param columns: our name (``text``, ``answer``, ``id``, ``options``, others become extra columns) -> theirs.
    :param dataset: their collection in tables; default: the file's or generator's name.
    :param limit: the first so many.
    :param answers: whether each needs a reference answer.
    :param distinct: rows of the same text and id are one question, and different texts need different ids. Off: every row
        is a question, whatever it repeats.
    :param say: told of rows that repeat others.
    :raises QuestionError: naming the source and what is missing.
    """
    name, _, rest = source.partition("=")
    rows: Iterable[tuple[int, Any]]
    if name in PRESETS:
        preset = PRESETS[name]
        rows = enumerate(_hub(rest or preset.hub, preset.config, preset.split), 1)
        columns = {**preset.columns, **(columns or {})}
        dataset = dataset or name
    elif source.startswith("hf:"):
        parts = source[3:].split(":")
        read = _hub(parts[0], parts[1] or None if len(parts) > 1 else None, parts[2] if len(parts) > 2 else "test")
        rows = enumerate(read, 1)
        dataset = dataset or Path(parts[0]).name
    elif source.startswith("rg:"):
        return _listed(source, _generated(source, limit), limit, distinct, say)
    elif source.startswith("table:"):
        return _listed(source, _recorded(source, answers, say), limit, distinct, say)
    else:
        rows = _file(Path(source))
        dataset = dataset or Path(source).stem
    made = (_question(source, line, row, columns or {}, dataset, answers) for line, row in rows)
    return _listed(source, made, limit, distinct, say)


def _listed(
    source: str, questions: Iterable[Question], limit: int | None, distinct: bool, say: Callable[[str], None]
) -> list[Question]:
    """The first so many questions; see :func:`read_questions`."""
    found: list[Question] = []
    first: dict[tuple[str, str], Question] = {}
    repeats: list[Question] = []
    for place, question in enumerate(questions, 1):
        if not question.line:
            question = replace(question, line=place)
        if not question.text.strip():
            raise QuestionError(
                f"{source}: row {question.line}: the question is empty: take the row out, or say where its text is (--column text=COLUMN)"
            )
        earlier = first.setdefault((question.dataset, question.question_id), question)
        if earlier is not question:
            if distinct and earlier.text != question.text:
                raise QuestionError(
                    f"{source}: row {question.line}: id {question.question_id!r} names two questions (row {earlier.line} "
                    "has another text): give each its own, or another id column with --column id=COLUMN"
                )
            repeats.append(question)
        if earlier is question or not distinct:
            found.append(question)
        if limit is not None and len(found) >= limit:
            break
    if not found:
        raise QuestionError(f"{source}: no questions")
    if repeats:
        shown = ", ".join(str(one.line) for one in repeats[:5]) + (", ..." if len(repeats) > 5 else "")
        what = "they are one question each" if distinct else "every row is answered by itself"
        say(f"{source}: {len(repeats):,} rows have the id of an earlier one (rows {shown}): {what}")
    return found


def preset_grader(source: str) -> str | None:
    """The grader that belongs to a source, where one does."""
    if source.startswith("rg:"):
        return "reasoning-gym"
    preset = PRESETS.get(source.partition("=")[0])
    return preset.grader if preset else None


def _question(
    source: str, line: int, row: Mapping[str, Any], columns: Mapping[str, str], dataset: str, answers: bool
) -> Question:
    if not isinstance(row, Mapping):
        raise QuestionError(f'{source}: row {line} must be an object such as {{"question": "..."}}, not {row!r:.60}')

    def whole(name: str, text: str) -> str:
        """The text, which must be one that endpoints, tables and terminals can hold."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise QuestionError(f"{source}: row {line}: {name!r} has half a surrogate pair in {text!r:.80}") from None
        return text

    def value(name: str) -> str | None:
        theirs = columns.get(name)
        if theirs is None:
            theirs = next((usual for usual in FIELDS.get(name, ()) if not _is_missing(row.get(usual))), None)
        if theirs is None:
            return None
        wanted = [part for _, part, _, _ in Formatter().parse(theirs) if part] or [theirs]
        if absent := [part for part in wanted if _is_missing(row.get(part))]:
            raise QuestionError(f"{source}: row {line} has no {absent[0]!r}; it has {sorted(map(str, row))}")
        if name in FIELDS and (odd := [part for part in wanted if isinstance(row[part], _NO_TEXTS)]):
            raise QuestionError(
                f"{source}: row {line}: {odd[0]!r} is no text but {reprlib.repr(row[odd[0]])}: write it as one, or say where the "
                f"{name} is (--column {name}=COLUMN)"
            )
        return whole(theirs, theirs.format(**row) if "{" in theirs else str(row[theirs]))

    text, answer = value("text"), value("answer") if answers or "answer" in columns else _written(row)
    if text is None or (answers and answer is None):
        lacking = "text" if text is None else "answer"
        if empty := [usual for usual in FIELDS[lacking] if usual in row]:
            raise QuestionError(f"{source}: row {line}: {empty[0]!r} is empty: fill it in, or take the row out")
        raise QuestionError(
            f"{source}: row {line}: which column is the {lacking}? It has {sorted(map(str, row))}; say so with "
            f"{lacking}=COLUMN"
        )
    if isinstance(options := row.get(columns.get("options", "options")), Mapping):
        raise QuestionError(
            f"{source}: row {line}: the options must be a list of texts as they shall be read (A) ..., B) ...), not {options!r:.60}"
        )
    if isinstance(options, list):
        text = whole("options", "\n".join([text, *map(str, options)]))
    answer = (answer or "").rpartition("####")[2].strip()  # GSM8K's worked answers end in "#### 18"
    named = value("id")
    if named is None:
        named = hashlib.sha256(text.encode()).hexdigest()[:16]
    extra = {name: value(name) or "" for name in columns if name not in ("text", "answer", "id", "options")}
    return Question(dataset, named, text, answer, extra, line)


def _is_missing(value: Any) -> bool:
    """Whether a field holds nothing: null, or the NaN that tables hold in its place."""
    return value is None or (isinstance(value, float) and value != value)


def _written(row: Mapping[str, Any]) -> str | None:
    """A reference answer that nobody asked for, where the row has one that is a text."""
    values = (row.get(usual) for usual in FIELDS["answer"])
    found = next((value for value in values if not _is_missing(value)), None)
    return None if found is None or isinstance(found, _NO_TEXTS) else str(found)


def _file(path: Path) -> Iterable[tuple[int, Any]]:
    """Rows, each with its line (JSONL and CSV: where it ends) or its place among the rows, from 1."""
    if not path.is_file():
        raise QuestionError(f"{path}: no such file (sources also are hf:..., rg:... and {', '.join(PRESETS)})")
    kind = path.suffix.lower()
    try:
        if kind == ".jsonl":
            return _lines(path)
        if kind == ".json":
            rows = read_json(_text(path))
            if not isinstance(rows, list):
                raise QuestionError(f"{path}: a .json file must be a list of objects; one object a line is .jsonl")
            return list(enumerate(rows, 1))
        if kind == ".csv":
            text = _text(path)
            csv.field_size_limit(max(csv.field_size_limit(), len(text)))
            reader = csv.DictReader(io.StringIO(text, newline=""))
            return [(reader.line_num, row) for row in reader]
        if kind == ".parquet":
            import pyarrow.parquet as pq

            return list(enumerate(pq.read_table(path).to_pylist(), 1))
    except QuestionError:
        raise
    except (ValueError, OSError, RecursionError, csv.Error) as error:
        raise QuestionError(f"{path}: {error}") from None
    raise QuestionError(f"{path}: questions come as .jsonl, .json, .csv or .parquet")


def _lines(path: Path) -> list[tuple[int, Any]]:
    rows = []
    for number, line in enumerate(_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        # Files that were joined have a byte order mark in their middle too.
        if text := line.strip().strip("\ufeff").strip():
            try:
                rows.append((number, read_json(text)))
            except TwiceError as error:
                raise QuestionError(f"{path}: line {number}: {error}") from None
            except (ValueError, RecursionError) as error:
                raise QuestionError(f"{path}: line {number} is not JSON ({error})") from None
    return rows


def _text(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 where its byte order mark says so."""
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise QuestionError(f"{path}: line {line} is not {error.encoding.upper()}: save the file as UTF-8") from None


def _hub(name: str, config: str | None, split: str) -> Iterable[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise QuestionError('Hugging Face datasets need: pip install "roi-reasoning[live]"') from None
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(name, config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise QuestionError(f"dataset {name!r}: {' '.join(str(error).split())[:300]}") from None
    return rows


def _recorded(source: str, answers: bool, say: Callable[[str], None]) -> list[Question]:
    from roi_env.sources.outcome_tables import COLUMNS, OutcomeTable, OutcomeTableError

    name, _, query = source.removeprefix("table:").partition("?")
    options = {"split": "all", "sample": "", "seed": "0", **dict(parse_qsl(query))}
    if unknown := set(options) - {"split", "sample", "seed"}:
        raise QuestionError(f"{source}: options are split, sample and seed, not {sorted(unknown)[0]}")
    try:
        table = OutcomeTable.read(name).split(options["split"])  # type: ignore[arg-type]
        size, seed = int(options["sample"] or 0), int(options["seed"])
    except (OutcomeTableError, ValueError) as error:
        raise QuestionError(f"{source}: {error}") from None
    table.log_notes()
    rows, alone = table.rows.take(table.distinct_questions().first_row), table.has_one_answer()
    written = np.array([bool(text.strip()) for text in rows["question"].to_pylist()])
    if absent := int((~written).sum()):
        say(f"{source}: {absent:,} questions have no text there and are left out")
    rows, alone = rows.filter(written), alone[written]
    if answers and not alone.all():
        named = rows["question_id"][int(alone.argmin())].as_py()
        raise QuestionError(
            f"{source}: {(~alone).sum()} questions have several answers to one text (e.g. {named!r}): options were shuffled for "
            "every generation, and no letter can grade a new text; ask questions that spell their options out, or a table whose "
            "column question has them in the order of the answer"
        )
    extras = []
    for column in rows.column_names:
        if column not in COLUMNS:
            try:
                table.constant_per_question(column)
            except OutcomeTableError:
                continue  # it describes a generation, not a question
            extras.append(column)
    found = [
        Question(
            row["dataset"], row["question_id"], row["question"], row["answer"], {name: row[name] for name in extras}
        )
        for row in rows.to_pylist()
    ]
    if size:
        chosen = np.random.default_rng(seed).permutation(len(found))[:size]
        found = [found[at] for at in chosen]
    return found


def _generated(source: str, limit: int | None) -> list[Question]:
    try:
        import reasoning_gym
    except ImportError:
        raise QuestionError('reasoning-gym needs: pip install "roi-reasoning[llm]"') from None
    name, _, query = source[3:].partition("?")
    options: dict[str, Any] = {"size": limit or 100, "seed": 0}
    for key, text in parse_qsl(query):
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    if limit is not None:
        options["size"] = min(limit, options["size"])
    try:
        entries = reasoning_gym.create_dataset(name, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise QuestionError(f"{source}: {error}") from None
    return [generated_question(name, name, entry["question"], entry) for entry in entries]


def generated_question(
    dataset: str, generator: str, text: str, entry: Mapping[str, Any], **extra: int | str
) -> Question:
    """A question of one of reasoning-gym's generators, with what its scorer needs to judge an answer."""
    named = hashlib.sha256(text.encode()).hexdigest()[:16]
    kept = {"generator": generator, "entry": json.dumps(entry, default=str)}
    return Question(dataset, named, text, str(entry["answer"]), {**extra, **kept})
