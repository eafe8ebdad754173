"""The packaged recording of a real model, made of one table a set of questions.

    python benchmarks/math_table.py gsm8k.parquet math-500.parquet aime-2024.parquet --without-text aime-2024 --out roi_env/sources/packaged/math.parquet

Tables are those of ``roi record``, of one model with the same tiers and samples. ``--without-text`` leaves questions and answers
of a set out, whose text may not be passed on: what is left is the id, tokens, and whether it was right.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError

_SHARED = ("level_edges", "tier_caps", "decision_cost", "pairing", "unit")


def joined(tables: Sequence[OutcomeTable], without_text: Sequence[str] = ()) -> OutcomeTable:
    """One table of several, in their order; columns that one has not are empty in its rows.

    :raises OutcomeTableError: where tables are of different models, tiers or settings, have questions in common, or none has a
        data set that is to lose its text.
    """
    first = tables[0]
    for table in tables[1:]:
        for name in _SHARED:
            if getattr(table, name) != getattr(first, name):
                found = f"{getattr(table, name)}, but {first.path} has {getattr(first, name)}"
                raise OutcomeTableError(
                    table.path, f"{name} is {found}: join recordings of one model at the same tiers"
                )
    rows = pa.concat_tables([table.rows for table in tables], promote_options="permissive").combine_chunks()
    datasets = rows["dataset"].to_pylist()
    if unknown := set(without_text) - set(datasets):
        raise OutcomeTableError(first.path, f"no data set {sorted(unknown)[0]!r}; there are {sorted(set(datasets))}")
    for name in ("question", "answer"):
        kept = [
            "" if dataset in without_text else text
            for dataset, text in zip(datasets, rows[name].to_pylist(), strict=True)
        ]
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(kept, pa.string()))
    made = OutcomeTable.from_arrow(rows.replace_schema_metadata(), " + ".join(table.path for table in tables))
    return dataclasses.replace(made, **{name: getattr(first, name) for name in _SHARED})


def main() -> None:
    """Join the tables that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--without-text", action="append", default=[], metavar="DATASET")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    table = joined([OutcomeTable.read(path) for path in given.tables], given.without_text)
    table.write(given.out)
    print(f"{table.num_rows:,} generations, {len(table.questions().first_row)} questions: {given.out}")


if __name__ == "__main__":
    main()
