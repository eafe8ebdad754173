"""Outcome tables as data sets: a folder in the layout of the Hugging Face hub, written here and read by ``OutcomeTable.read``."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow as pa

from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError
from roi_env.sources.table_files import COLUMNS
from roi_env.sources.units import UNIT_NAMES, cost_with_unit

ROWS_A_SHARD = 500_000
_MEANING = {
    "dataset": "where the question comes from",
    "question_id": "with `dataset` it names a question",
    "question": "its text; may be empty",
    "answer": "reference answer; may be empty",
    "menu": "menu (model, prompt) inside which tiers are compared",
    "tier": "the way to think: model, effort or prompt",
    "tier_order": "1 is the cheapest tier of its menu",
    "correct": "whether the generation was right",
    "sample": "number of the generation inside its question and tier",
    "counted": "who counted the tokens: log, tokenizer or estimate",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def publish_table(
    table: OutcomeTable, folder: str | os.PathLike[str], *, name: str, licence: str, rows_a_shard: int = ROWS_A_SHARD
) -> list[Path]:
    """Write ``data/train-*.parquet`` and ``README.md`` into a new folder.

    :param name: of the data set, ``owner/name`` or ``name``.
    :param licence: of the data, as the hub spells it (``apache-2.0``, ``mit``, ``cc-by-4.0``, ``other``).
    :returns: the files written.
    :raises OutcomeTableError: where the folder has files, or a name or licence cannot be one.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutcomeTableError(str(target), "exists and is not empty: choose a new folder")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name, re.ASCII):
        raise OutcomeTableError(str(target), f"the name {name!r} must read owner/name or name: letters, digits, . _ -")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise OutcomeTableError(
            str(target),
            f"the licence {licence!r} must be spelled as on the hub: apache-2.0, mit, cc-by-4.0, ..., other",
        )
    (target / "data").mkdir(parents=True, exist_ok=True)
    count = -(-table.num_rows // rows_a_shard)
    written = []
    for number in range(count):
        path = target / "data" / f"train-{number:05d}-of-{count:05d}.parquet"
        table.shard(number * rows_a_shard, rows_a_shard).write(path)
        written.append(path)
    readme = target / "README.md"
    readme.write_text(_card(table, name, licence), encoding="utf-8")
    return [*written, readme]


def _card(table: OutcomeTable, name: str, licence: str) -> str:
    found = table.describe()
    size = next((text for limit, text in _SIZES if table.num_rows < limit), "n>10M")
    schema = "\n".join(
        f"| `{item.name}` | {_type(item.type)} | {_meaning(item.name, table)} |" for item in table.rows.schema
    )
    tiers = "\n".join(
        f"| {_cell(menu['menu'])} | {_cell(tier['tier'])} | {tier['questions']:,} | {tier['rows']:,} | "
        f"{cost_with_unit(tier['tokens_mean'], table.unit)} | {tier['accuracy']:.3f} |"
        for menu in found["menus"]
        for tier in menu["tiers"]
    )
    notes = "".join(f"- {_cell(note)}\n" for note in (p["message"] for p in found["problems"]))
    return f"""---
license: {licence}
pretty_name: {name.rpartition("/")[2]}
tags:
- llm-evaluation
- reasoning
- outcome-table
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# {name}

Recorded generations of language models: which question, which tier (model or effort), what it cost, right or wrong.
{found["rows"]:,} generations of {found["questions"]:,} questions; costs are {UNIT_NAMES[table.unit]}.

    roi compare --table hf:{name}                      # planners and the optimum on its test questions
    datasets.load_dataset("{name}")                    # the rows
    roi_env.sources.outcome_tables.OutcomeTable.read("hf:{name}")

All rows are in the split `train` of the hub; train, validation and test questions follow from a hash of each question.

## Tiers

| menu | tier | questions | generations | mean cost | correct |
|---|---|---|---|---|---|
{tiers}

## Columns

| column | type | what |
|---|---|---|
{schema}
{
        f'''
## Mind

{notes}'''
        if notes
        else ""
    }"""


def _type(kind: pa.DataType) -> str:
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _meaning(column: str, table: OutcomeTable) -> str:
    if column == "tokens":
        what = "generated tokens, the thought included, the prompt not"
        return what if table.unit == "tokens" else "cost in micro-dollars (millionths of a US dollar)"
    return _MEANING.get(column, "another column" if column not in COLUMNS else "")
