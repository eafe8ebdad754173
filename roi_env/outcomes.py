"""Recorded outcomes of real models: reading, checking, splitting and describing tables of generations.

One row is one recorded generation; ``COLUMNS`` names the columns every table has, other columns are kept. Tables come
from Parquet, CSV or JSON Lines, and leave as Parquet. ``roi_env.recorded`` makes exams of them.

Optional file metadata (Parquet schema metadata, UTF-8 text):

* ``level_edges``: JSON ``{family: {tier: tokens}}``, most tokens that still count as the tier's announced level;
* ``tier_caps``: JSON ``{family: {tier: tokens}}``, tokens at which generation of the tier was cut;
* ``decision_cost``: tokens every action costs, skip included (default 0);
* ``pairing``: ``true`` where sample ``s`` of all tiers comes from one thought (default ``false``).
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TEXT_COLUMNS = ("dataset", "question_id", "question", "answer", "family", "tier")
COLUMNS = (*TEXT_COLUMNS, "tier_order", "tokens", "correct", "sample")
MAX_TOKENS = 2**31 - 2
"""Largest recordable token count: an outcome is packed with its correctness into 32 bits."""

Split = Literal["train", "validation", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.5, 0.2, 0.3)
"""Expected shares of the questions in train, validation and test."""

_JSONL_BLOCK = 2**25
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
# Column: (stored type, smallest value, largest value, what to write there).
_INTEGERS = {
    "tier_order": (pa.int32(), 1, 2**31 - 1, "an integer >= 1 (1 = cheapest tier of its family)"),
    "tokens": (pa.int32(), 0, MAX_TOKENS, f"generated tokens, an integer from 0 to {MAX_TOKENS}"),
    "correct": (pa.bool_(), 0, 1, "true or false (or 1 or 0)"),
    "sample": (pa.int64(), 0, 2**63 - 1, "an integer >= 0 that numbers the generations of one question and tier"),
}


class OutcomeTableError(ValueError):
    """A table cannot be used as asked.

    :ivar path: the file, or the name given to a table in memory.
    :ivar column: the column at fault, if one is.
    :ivar row: 0-based data row (header lines and blank lines not counted) of the first offence, if one row is at fault.
    """

    def __init__(self, path: str, message: str, column: str | None = None, row: int | None = None) -> None:
        self.path, self.column, self.row = path, column, row
        where = path
        if column is not None:
            where += f": column {column!r}"
        if row is not None:
            where += f", row {row} (0-based data row)"
        super().__init__(f"{where}: {message}")


class Questions(NamedTuple):
    """Questions of a table in order of first appearance; a question is a (dataset, question_id) pair.

    ``of_row``: (rows,) int64 question of every row; ``first_row``: (Q,) int64 first row of every question.
    """

    of_row: npt.NDArray[np.int64]
    first_row: npt.NDArray[np.int64]


@dataclass(frozen=True)
class OutcomeTable:
    """A checked table of recorded generations. Make one with :meth:`read` or :meth:`from_arrow`.

    :param rows: the table; text columns of ``COLUMNS`` are ``dictionary<int32, string>``, ``tier_order`` and ``tokens``
        int32, ``correct`` bool, ``sample`` int64; other columns as they came.
    :param path: where it came from; names the table in errors and reports.
    :param level_edges: family -> tier -> most tokens that still count as the tier's announced level.
    :param tier_caps: family -> tier -> tokens at which generation was cut.
    :param decision_cost: tokens every action costs, skip included.
    :param pairing: whether sample ``s`` of all tiers of a question comes from one thought.
    """

    rows: pa.Table
    path: str
    level_edges: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tier_caps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    decision_cost: int = 0
    pairing: bool = False

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OutcomeTable:
        """Read and check a ``.parquet``, ``.csv`` or ``.jsonl`` file.

        CSV columns outside ``COLUMNS`` are read as text; CSV and JSON Lines carry no metadata (``dataclasses.replace``
        sets it).

        :raises OutcomeTableError: naming file, column and first offending row.
        """
        path = Path(path)
        reader = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}.get(path.suffix.lower())
        name = str(path)
        if reader is None:
            raise OutcomeTableError(
                name, f"unknown file type {path.suffix!r}: give a .parquet, .csv or .jsonl file (or rename it)"
            )
        if not path.is_file():
            raise OutcomeTableError(name, "is a folder, not a file" if path.is_dir() else "file not found")
        if path.stat().st_size == 0:
            raise OutcomeTableError(name, "the file has 0 bytes: record or copy it again")
        return cls.from_arrow(reader(path), name)

    @classmethod
    def from_arrow(cls, rows: pa.Table, path: str = "<memory>") -> OutcomeTable:
        """Check an Arrow table (its schema metadata included) and bring it into the form of ``rows``.

        :raises OutcomeTableError: naming ``path``, column and first offending row.
        """
        missing = [name for name in COLUMNS if name not in rows.column_names]
        if missing:
            raise OutcomeTableError(
                path, f"missing; the file has {rows.column_names}. Every table needs {list(COLUMNS)}", missing[0]
            )
        repeated = [name for name in rows.column_names if rows.column_names.count(name) > 1]
        if repeated:
            raise OutcomeTableError(path, "appears more than once; keep one", repeated[0])
        if rows.num_rows == 0:
            raise OutcomeTableError(path, "the table has no rows: record at least one generation")
        columns = {
            name: _text(rows[name], name, path) if name in TEXT_COLUMNS else _integers(rows[name], name, path)
            for name in COLUMNS
        }
        extra = {name: rows[name] for name in rows.column_names if name not in COLUMNS}
        metadata = rows.schema.metadata or {}
        table = cls(
            rows=pa.table(columns | extra).replace_schema_metadata(metadata),
            path=path,
            level_edges=_token_map(metadata, "level_edges", path),
            tier_caps=_token_map(metadata, "tier_caps", path),
            decision_cost=_decision_cost(metadata, path),
            pairing=_pairing(metadata, path),
        )
        table._check_tier_order()
        table._check_duplicates()
        table._check_level_edges()
        return table

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file with its metadata; the file appears whole or not at all.

        Columns are stored as plain Parquet types (text, not categories), so that any reader understands them.

        :raises OutcomeTableError: for a suffix other than ``.parquet``.
        """
        path = Path(path)
        if path.suffix.lower() != ".parquet":
            raise OutcomeTableError(str(path), "tables are written as Parquet: use the suffix .parquet")
        metadata = dict(self.rows.schema.metadata or {}) | {
            b"level_edges": json.dumps(self.level_edges).encode(),
            b"tier_caps": json.dumps(self.tier_caps).encode(),
            b"decision_cost": str(self.decision_cost).encode(),
            b"pairing": str(self.pairing).lower().encode(),
        }
        # Written by pandas, it describes the types of the file that was read, not of this one.
        metadata.pop(b"pandas", None)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            rows = self.rows.replace_schema_metadata()
            with pq.ParquetWriter(temporary, rows.schema, compression="zstd", store_schema=False) as writer:
                writer.write_table(rows)
                writer.add_key_value_metadata(metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def num_rows(self) -> int:
        """Number of recorded generations."""
        return int(self.rows.num_rows)

    @property
    def families(self) -> tuple[str, ...]:
        """Families in order of first appearance."""
        return tuple(pc.unique(self.rows["family"]).to_pylist())

    def codes(self, column: str) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """``(codes, values)`` of any column: row ``r`` holds ``values[codes[r]]``; every value has a row."""
        array = self.rows[column]
        if not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode()
        array = array.unify_dictionaries().combine_chunks()
        if array.null_count or array.dictionary.null_count:
            row = int(np.argmax(pc.is_null(array.dictionary_decode()).to_numpy(zero_copy_only=False)))
            question = self.rows["question_id"][row].as_py()
            raise OutcomeTableError(self.path, f"no value for question {question!r}; every row needs one here", column)
        codes, values = array.indices.to_numpy().astype(np.int64), array.dictionary
        used = np.bincount(codes, minlength=len(values)) > 0
        if not used.all():
            # A selection of rows keeps the dictionary of the whole table.
            codes, values = (np.cumsum(used) - 1)[codes], values.filter(pa.array(used))
        return codes, values.to_pylist()

    def numbers(self, column: str) -> npt.NDArray[Any]:
        """(rows,) values of ``tier_order``, ``tokens``, ``correct`` or ``sample``."""
        values: npt.NDArray[Any] = self.rows[column].to_numpy()
        return values

    def tier_names(self, family: str) -> tuple[str, ...]:
        """Tiers of a family, cheapest first.

        :raises OutcomeTableError: for an unknown family.
        """
        self._check_family(family)
        rows = self.rows.filter(pc.equal(self.rows["family"], family))
        tier, values = replace(self, rows=rows).codes("tier")
        order = dict(zip(tier.tolist(), rows["tier_order"].to_pylist(), strict=True))
        return tuple(str(values[code]) for code in sorted(order, key=lambda code: order[code]))

    def select(
        self,
        family: str | None = None,
        tiers: Sequence[str] | str | None = None,
        datasets: Sequence[str] | str | None = None,
    ) -> OutcomeTable:
        """The rows of one family (may be left out where there is only one), of the named tiers and datasets (default: all).

        :raises OutcomeTableError: where the family is unknown or not named but needed, or a tier or dataset has no rows.
        """
        if family is None:
            if len(self.families) > 1:
                raise OutcomeTableError(
                    self.path,
                    f"{len(self.families)} families, whose tiers cannot be compared; choose one with family=...: "
                    f"{list(self.families)}",
                    "family",
                    int(np.argmax(self.codes("family")[0] != self.codes("family")[0][0])),
                )
            family = self.families[0]
        self._check_family(family)
        keep = pc.equal(self.rows["family"], family)
        kept = self.rows.filter(keep)
        for column, chosen in (("tier", tiers), ("dataset", datasets)):
            if chosen is None:
                continue
            names = [chosen] if isinstance(chosen, str) else list(chosen)
            values = kept[column].cast(pa.string())
            known = self.tier_names(family) if column == "tier" else tuple(sorted(values.unique().to_pylist()))
            if not names or len(set(names)) != len(names):
                raise OutcomeTableError(
                    self.path, f"{column}s must be distinct names out of {list(known)}, got {names!r}"
                )
            if absent := [name for name in names if name not in known]:
                raise OutcomeTableError(
                    self.path, f"no rows for {column} {absent[0]!r} of family {family!r}; it has {list(known)}", column
                )
            kept = kept.filter(pc.is_in(values, pa.array(names, pa.string())))
        return replace(self, rows=kept)

    def without(self, other: OutcomeTable) -> OutcomeTable:
        """The rows of questions (dataset and question_id) that another table does not have.

        :raises OutcomeTableError: where it has all of them.
        """
        theirs = set(zip(other.rows["dataset"].to_pylist(), other.rows["question_id"].to_pylist(), strict=True))
        mine = zip(self.rows["dataset"].to_pylist(), self.rows["question_id"].to_pylist(), strict=True)
        keep = [question not in theirs for question in mine]
        if not any(keep):
            raise OutcomeTableError(self.path, f"all of its questions are in {other.path} as well")
        return replace(self, rows=self.rows.filter(pa.array(keep)))

    def split(self, name: Split, fractions: Sequence[float] = DEFAULT_FRACTIONS) -> OutcomeTable:
        """The rows of the questions of one split (``"all"``: this table).

        A question's split depends on its ``question_id`` and ``fractions`` alone: a hash of the id, read as a number in
        [0, 1), falls into the train, validation or test share. It is the same in every table, family, row order and
        process; split sizes therefore vary around their shares.

        :param fractions: shares of train, validation and test, >= 0, summing to 1.
        :raises OutcomeTableError: for an unknown name, bad fractions, or a split without questions.
        """
        if name == "all":
            return self
        keep = self.in_split(name, fractions)
        if not keep.any():
            raise OutcomeTableError(
                self.path,
                f"no question falls into split {name!r} (shares {tuple(fractions)}, {len(self.questions().first_row)} "
                "questions); choose other fractions or split='all'",
                "question_id",
            )
        return replace(self, rows=self.rows.filter(pa.array(keep)))

    def in_split(self, name: Split, fractions: Sequence[float] = DEFAULT_FRACTIONS) -> npt.NDArray[np.bool_]:
        """(rows,) bool: rows whose question is in the split; see :meth:`split`."""
        if name == "all":
            return np.ones(self.num_rows, bool)
        if name not in SPLITS:
            raise OutcomeTableError(self.path, f"split must be one of {[*SPLITS, 'all']}, got {name!r}")
        return np.asarray(self.split_codes(fractions) == SPLITS.index(name))

    def split_codes(self, fractions: Sequence[float] = DEFAULT_FRACTIONS) -> npt.NDArray[np.int8]:
        """(rows,) int8: 0 train, 1 validation, 2 test; see :meth:`split`."""
        try:
            edges = _split_edges(fractions)
        except ValueError as error:
            raise OutcomeTableError(self.path, str(error)) from None
        code, ids = self.codes("question_id")
        return np.array([_split_code(question, edges) for question in ids], np.int8)[code]

    def questions(self) -> Questions:
        """Questions in order of first appearance."""
        dataset, _ = self.codes("dataset")
        question, ids = self.codes("question_id")
        return Questions(*by_first_appearance(dataset * len(ids) + question))

    def constant_per_question(self, column: str) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """``(codes, values)`` of a column that is the same in all rows of a question: question ``q`` has
        ``values[codes[q]]``.

        :raises OutcomeTableError: where the column is missing, has nulls or varies inside a question.
        """
        if column not in self.rows.column_names:
            raise OutcomeTableError(self.path, f"missing; the table has {self.rows.column_names}", column)
        of_row, first_row = self.questions()
        codes, values = self.codes(column)
        per_question = codes[first_row]
        differs = codes != per_question[of_row]
        if differs.any():
            row = int(differs.argmax())
            raise OutcomeTableError(
                self.path,
                f"must be the same in all rows of a question, but question {self.rows['question_id'][row].as_py()!r} "
                f"has {values[per_question[of_row[row]]]!r} and {values[codes[row]]!r}; choose another column or give "
                "different questions different ids",
                column,
            )
        return per_question, values

    def describe(self) -> dict[str, Any]:
        """What the table holds, as plain data (dicts, lists, str, int, float, bool).

        Keys: ``path, rows, questions, pairing, decision_cost, datasets`` (name -> questions), ``splits`` (name ->
        questions, default shares), ``families`` and ``problems``.

        * A family: ``family, questions, complete_questions`` (questions with all tiers), ``splits, tiers``.
        * A tier: ``tier, tier_order, rows, questions, samples_min, samples_max, tokens_mean, tokens_p50, tokens_p90,
          accuracy``; means and percentiles over generations.
        * A problem: ``family, kind, message``. Kinds: ``missing_tiers``, ``unequal_samples``, ``tier_order`` (a later
          tier costs less), ``trap`` (dearer and less often correct), ``non_monotone`` (questions where the last tier is
          right less often than the first), ``zero_tokens``. Tiers are compared on the questions that have both, every
          question counting once.
        """
        families, problems = [], []
        for name in self.families:
            entry, found = self.select(name)._describe_family(name)
            families.append(entry)
            problems.extend(found)
        first_row = self.questions().first_row
        dataset, names = self.codes("dataset")
        counts = np.bincount(dataset[first_row], minlength=len(names))
        return {
            "path": self.path,
            "rows": self.num_rows,
            "questions": len(first_row),
            "pairing": self.pairing,
            "decision_cost": self.decision_cost,
            "datasets": {name: int(count) for name, count in zip(names, counts, strict=True) if count},
            "splits": self._split_sizes(first_row),
            "families": families,
            "problems": problems,
        }

    def _describe_family(self, family: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
        of_row, first_row = self.questions()
        names = self.tier_names(family)
        code, values = self.codes("tier")
        tier, shape = np.array([names.index(value) for value in values])[code], (len(first_row), len(names))
        tokens, correct, order = self.numbers("tokens"), self.numbers("correct"), self.numbers("tier_order")
        cell = of_row * len(names) + tier
        count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        mean_tokens = np.bincount(cell, tokens, minlength=count.size).reshape(shape) / np.maximum(count, 1)
        accuracy = np.bincount(cell, correct, minlength=count.size).reshape(shape) / np.maximum(count, 1)
        offered = count > 0

        tiers = []
        for k, name in enumerate(names):
            mine = tokens[tier == k]
            p50, p90 = np.quantile(mine, [0.5, 0.9])
            tiers.append(
                {
                    "tier": name,
                    "tier_order": int(order[np.argmax(tier == k)]),
                    "rows": len(mine),
                    "questions": int(offered[:, k].sum()),
                    "samples_min": int(count[offered[:, k], k].min()),
                    "samples_max": int(count[:, k].max()),
                    "tokens_mean": float(mine.mean()),
                    "tokens_p50": float(p50),
                    "tokens_p90": float(p90),
                    "accuracy": float(correct[tier == k].mean()),
                }
            )

        problems: list[dict[str, str]] = []

        def report(kind: str, message: str) -> None:
            problems.append({"family": family, "kind": kind, "message": message})

        complete = offered.all(1)
        if not complete.all():
            report("missing_tiers", f"{(~complete).sum()} of {shape[0]} questions lack a tier")
        for entry in tiers:
            if entry["samples_min"] != entry["samples_max"]:
                report(
                    "unequal_samples",
                    f"{entry['tier']}: {entry['samples_min']} to {entry['samples_max']} samples a question",
                )
        for low in range(len(names)):
            for high in range(low + 1, len(names)):
                both = offered[:, low] & offered[:, high]
                if not both.any():
                    continue
                cost = mean_tokens[both][:, [low, high]].mean(0)
                right = accuracy[both][:, [low, high]].mean(0)
                if cost[1] < cost[0]:
                    report(
                        "tier_order",
                        f"{names[high]} comes after {names[low]} but costs less ({cost[1]:.0f} against {cost[0]:.0f} "
                        "tokens)",
                    )
                dear, cheap = (1, 0) if cost[1] >= cost[0] else (0, 1)
                if right[dear] < right[cheap]:
                    pair = (names[low], names[high])
                    report(
                        "trap",
                        f"{pair[dear]} is dearer and worse than {pair[cheap]} ({cost[dear]:.0f} against "
                        f"{cost[cheap]:.0f} tokens, {right[dear]:.3f} against {right[cheap]:.3f} correct)",
                    )
        ends = offered[:, 0] & offered[:, -1]
        worse = int((accuracy[ends, -1] < accuracy[ends, 0]).sum())
        if worse:
            report("non_monotone", f"{worse} of {ends.sum()} questions: {names[-1]} right less often than {names[0]}")
        zero = int((tokens == 0).sum())
        if zero:
            report("zero_tokens", f"{zero} generations of 0 tokens; exams charge 1 token for them")
        return {
            "family": family,
            "questions": shape[0],
            "complete_questions": int(complete.sum()),
            "splits": self._split_sizes(first_row),
            "tiers": tiers,
        }, problems

    def _split_sizes(self, first_row: npt.NDArray[np.int64]) -> dict[str, int]:
        counts = np.bincount(self.split_codes()[first_row], minlength=len(SPLITS))
        return {name: int(count) for name, count in zip(SPLITS, counts, strict=True)}

    def _check_family(self, family: str) -> None:
        if family not in self.families:
            raise OutcomeTableError(
                self.path, f"no rows for family {family!r}; there are {list(self.families)}", "family"
            )

    def _check_tier_order(self) -> None:
        family, families = self.codes("family")
        tier, tiers = self.codes("tier")
        order = self.numbers("tier_order").astype(np.int64)
        # One tier, one order, and one order, one tier: both inside a family.
        for key, value in ((family * len(tiers) + tier, order), (family * 2**31 + order, tier)):
            _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
            differs = value != value[first][inverse]
            if differs.any():
                row = int(differs.argmax())
                before = int(first[inverse[row]])
                raise OutcomeTableError(
                    self.path,
                    f"tier {tiers[tier[row]]!r} has order {order[row]}, but row {before} gives tier "
                    f"{tiers[tier[before]]!r} order {order[before]} in the same family {families[family[row]]!r}; "
                    "give every tier of a family one order of its own",
                    "tier_order",
                    row,
                )

    def _check_duplicates(self) -> None:
        key = self.questions().of_row
        # Compressed after every column: the product of all their sizes may not fit 64 bits.
        for codes in (self.codes("family")[0], self.codes("tier")[0], self.numbers("sample")):
            _, small = np.unique(codes, return_inverse=True)
            _, key = np.unique(key * (small.max() + 1) + small, return_inverse=True)
        order = np.argsort(key, kind="stable")
        again = order[1:][key[order][1:] == key[order][:-1]]
        if len(again):
            row = int(again.min())
            before = int(np.argmax(key == key[row]))
            what = {name: self.rows[name][row].as_py() for name in ("family", "question_id", "tier", "sample")}
            raise OutcomeTableError(
                self.path, f"{what} is already in row {before}; number every generation differently", "sample", row
            )

    def _check_level_edges(self) -> None:
        for family in set(self.level_edges) & set(self.families):
            edges = [self.level_edges[family].get(tier) for tier in self.tier_names(family)]
            known = [edge for edge in edges if edge is not None]
            if any(b <= a for a, b in pairwise(known)):
                raise OutcomeTableError(
                    self.path, f"metadata 'level_edges' of family {family!r} must grow with tier_order, got {edges}"
                )


def by_first_appearance(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``(codes, first)``: codes 0, 1, ... for the distinct keys as they appear, and where each appears first."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[inverse], first[order].astype(np.int64)


def split_of(question_id: str, fractions: Sequence[float] = DEFAULT_FRACTIONS) -> Split:
    """The split that a question falls into in every table; see :meth:`OutcomeTable.split`.

    :raises ValueError: for fractions that are not three shares.
    """
    return SPLITS[_split_code(question_id, _split_edges(fractions))]


def _split_edges(fractions: Sequence[float]) -> npt.NDArray[np.int64]:
    shares = np.asarray(fractions, float)
    if shares.shape != (3,) or not (shares >= 0).all() or not math.isclose(shares.sum(), 1.0, abs_tol=1e-9):
        raise ValueError(f"fractions must be three shares (train, validation, test) that sum to 1, got {fractions}")
    return np.round(np.cumsum(shares)[:2] * 2**32).astype(np.int64)


def _split_code(question_id: str, edges: npt.NDArray[np.int64]) -> int:
    hashed = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:4], "big")
    return int(np.searchsorted(edges, hashed, side="right"))


def _first(mask: npt.NDArray[np.bool_]) -> int | None:
    return int(mask.argmax()) if mask.any() else None


def _wrong(path: str, column: str, row: int, expected: str, got: object) -> NoReturn:
    raise OutcomeTableError(path, f"expected {expected}, got {got}; correct the value or drop the row", column, row)


def _reject_nulls(column: pa.ChunkedArray, name: str, path: str, expected: str) -> None:
    if column.null_count:
        row = _first(pc.is_null(column).to_numpy())
        assert row is not None
        _wrong(path, name, row, expected, "no value (null)")


def _text(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """A text column as ``dictionary<int32, string>`` with one dictionary of distinct values."""
    expected = "text" if name in ("question", "answer") else "text that is not empty"
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        _wrong(path, name, 0, expected, "no value (null)")
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise OutcomeTableError(path, f"expected {expected}, got the type {kind}; store the column as text", name, 0)
    if pa.types.is_string_view(kind):
        column = column.cast(pa.large_string())
    _reject_nulls(column, name, path, expected)
    array = column.dictionary_encode().unify_dictionaries().combine_chunks()
    if array.dictionary.null_count or len(pc.unique(array.dictionary)) < len(array.dictionary):
        decoded = array.dictionary_decode()
        _reject_nulls(pa.chunked_array([decoded]), name, path, expected)
        array = decoded.dictionary_encode()
    if expected != "text":
        empty = pc.index(array.dictionary, pa.scalar("", array.dictionary.type)).as_py()
        row = _first(array.indices.to_numpy() == empty) if empty >= 0 else None
        if row is not None:
            _wrong(path, name, row, expected, "an empty text")
    array = pa.DictionaryArray.from_arrays(array.indices.cast(pa.int32()), array.dictionary.cast(pa.string()))
    return pa.chunked_array([array], _DICTIONARY)


def _integers(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """A column of ``_INTEGERS`` as its stored type; whole floating-point numbers count as integers."""
    stored, low, high, expected = _INTEGERS[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):
        _wrong(path, name, 0, expected, "no value (null)")
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or (name == "correct" and pa.types.is_boolean(column.type))
    ):
        raise OutcomeTableError(path, f"expected {expected}, got the type {column.type}; convert the column", name, 0)
    _reject_nulls(column, name, path, expected)
    values = column.to_numpy()
    if pa.types.is_floating(column.type):
        row = _first(~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) > 2**53))
    else:
        row = None
    bad = _first((values < low) | (values > high)) if values.dtype != bool else None
    if row is not None or bad is not None:
        row = min(r for r in (row, bad) if r is not None)
        _wrong(path, name, row, expected, values[row])
    return pa.chunked_array([pa.array(values.astype(stored.to_pandas_dtype()), stored)])


def _metadata_text(metadata: Mapping[bytes, bytes], key: str, path: str) -> str | None:
    value = metadata.get(key.encode())
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError as error:
        raise OutcomeTableError(path, f"metadata {key!r} is not UTF-8 text") from error


def _token_map(metadata: Mapping[bytes, bytes], key: str, path: str) -> dict[str, dict[str, int]]:
    text = _metadata_text(metadata, key, path)
    try:
        value = {} if text is None else json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict) or not all(
        isinstance(tiers, dict) and all(type(edge) is int and 1 <= edge <= MAX_TOKENS for edge in tiers.values())
        for tiers in value.values()
    ):
        raise OutcomeTableError(path, f"metadata {key!r} must be JSON {{family: {{tier: tokens >= 1}}}}, got {text!r}")
    return value


def _decision_cost(metadata: Mapping[bytes, bytes], path: str) -> int:
    text = _metadata_text(metadata, "decision_cost", path) or "0"
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_TOKENS:
        raise OutcomeTableError(path, f"metadata 'decision_cost' must be an integer >= 0 (tokens), got {text!r}")
    return int(text)


def _pairing(metadata: Mapping[bytes, bytes], path: str) -> bool:
    text = (_metadata_text(metadata, "pairing", path) or "false").lower()
    if text not in ("true", "false"):
        raise OutcomeTableError(path, f"metadata 'pairing' must be 'true' or 'false', got {text!r}")
    return text == "true"


def _unreadable(path: Path, kind: str, error: Exception, row: int | None = None) -> OutcomeTableError:
    return OutcomeTableError(
        str(path), f"cannot be read as {kind} (truncated, damaged or of another kind?): {error}", row=row
    )


def _read_parquet(path: Path) -> pa.Table:
    try:
        schema = pq.read_schema(path)
        # Repeated texts stay dictionary codes from file to memory: a million copies of a question cost one.
        plain = [item.name for item in schema if pa.types.is_string(item.type) or pa.types.is_large_string(item.type)]
        texts = [name for name in TEXT_COLUMNS if plain.count(name) == 1]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Parquet", error) from error


def _read_csv(path: Path) -> pa.Table:
    from pyarrow import csv as arrow_csv

    bad_row: list[int | None] = []

    def on_invalid(row: Any) -> str:
        # Arrow counts the header as row 1.
        bad_row.append(None if row.number is None else row.number - 2)
        return "error"

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = next(csv.reader(file), [])
        parse = arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_invalid)
        # Everything as text: Arrow would guess a type from the first block and say no row when a later one differs.
        types = {name: _DICTIONARY if name in TEXT_COLUMNS else pa.string() for name in names}
        convert = arrow_csv.ConvertOptions(column_types=types)
        try:
            table = arrow_csv.read_csv(path, parse_options=parse, convert_options=convert)
        except pa.ArrowInvalid:
            if not bad_row:
                raise
            # Only the serial reader knows row numbers.
            bad_row.clear()
            serial = arrow_csv.ReadOptions(use_threads=False)
            table = arrow_csv.read_csv(path, read_options=serial, parse_options=parse, convert_options=convert)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, "CSV", error, bad_row[0] if bad_row else None) from error
    for name in _INTEGERS:
        if name in table.column_names and table.num_rows:
            index = table.column_names.index(name)
            table = table.set_column(index, name, _numbers_from_text(table[name], name, str(path)))
    return table


def _numbers_from_text(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column)
    if name == "correct":
        text = pc.utf8_lower(text)
        good = pc.is_in(text, pa.array(["true", "false", "1", "0"]))
    else:
        good = pc.match_substring_regex(text, r"^-?[0-9]{1,18}(\.0*)?$")
    row = _first(~good.to_numpy())
    if row is not None:
        _wrong(path, name, row, _INTEGERS[name][3], repr(column[row].as_py()))
    if name == "correct":
        return pc.is_in(text, pa.array(["true", "1"]))
    return pc.replace_substring_regex(text, r"\.0*$", "").cast(pa.int64())


def _read_jsonl(path: Path) -> pa.Table:
    from pyarrow import json as arrow_json

    # Declared, since Arrow would turn ids that look like dates into dates.
    schema = pa.schema([(name, pa.string()) for name in TEXT_COLUMNS])
    parse = arrow_json.ParseOptions(explicit_schema=schema)
    blocks = []
    try:
        # In blocks, so that only one is ever held as plain text: the JSON reader knows no dictionaries.
        with path.open("rb") as file:
            while lines := file.readlines(_JSONL_BLOCK):
                text = b"".join(lines)
                if text.isspace():
                    continue
                block = arrow_json.read_json(pa.BufferReader(text), parse_options=parse)
                for name in TEXT_COLUMNS:
                    index = block.column_names.index(name)
                    block = block.set_column(index, name, block[name].dictionary_encode())
                blocks.append(block)
        if not blocks:
            raise OutcomeTableError(str(path), "the table has no rows: record at least one generation")
        table = pa.concat_tables(blocks, promote_options="permissive")
    except (pa.ArrowException, OSError) as error:
        raise _jsonl_error(path, error) from error
    # A declared column that no line has comes back as nulls; tell "missing" from "null".
    empty = {name for name in TEXT_COLUMNS if table[name].null_count == table.num_rows}
    return table.drop_columns(sorted(empty - json.loads(next(_lines(path))).keys()))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from (line for line in file if not line.isspace())


def _fits(name: str, value: object) -> bool:
    if name in TEXT_COLUMNS:
        return isinstance(value, str)
    if isinstance(value, bool):
        return name == "correct"
    return isinstance(value, int | float) and math.isfinite(value) and (name != "correct" or value in (0, 1))


def _jsonl_error(path: Path, error: Exception) -> OutcomeTableError:
    """Find what Arrow stumbled over; Arrow's own row numbers restart in every block."""
    row = 0
    try:
        for row, line in enumerate(_lines(path)):
            record = json.loads(line)
            if not isinstance(record, dict):
                raise OutcomeTableError(str(path), "every line must be one JSON object", row=row)
            for name in COLUMNS:
                if name in record and not _fits(name, record[name]):
                    expected = _INTEGERS[name][3] if name in _INTEGERS else "text"
                    _wrong(str(path), name, row, expected, json.dumps(record[name]))
    except json.JSONDecodeError as bad:
        return _unreadable(path, "JSON Lines", bad, row)
    except UnicodeDecodeError as bad:
        return _unreadable(path, "JSON Lines", bad)
    return _unreadable(path, "JSON Lines", error)
