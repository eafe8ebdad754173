"""Recorded outcomes of real models: reading, checking, splitting and describing tables of generations.

One row is one recorded generation; ``COLUMNS`` names the columns every table has, other columns are kept. Tables come
from Parquet, CSV or JSON Lines (``roi_env.sources.table_files``), and leave as Parquet. ``roi_env.sources.recorded`` makes exams of them.

What a file leaves out or writes otherwise is inferred where there is one way to, and said in ``OutcomeTable.notes``:
``tier_order`` is the order of mean tokens, ``sample`` numbers rows as they come, numbers become ids and answers. Texts that
are equal once normalised (:func:`roi_env.sources.texts.normalised`) are one question, whatever their ids.

Optional file metadata (Parquet schema metadata, UTF-8 text):

* ``level_edges``: JSON ``{menu: {tier: tokens}}``, most tokens that still count as the tier's announced level;
* ``tier_caps``: JSON ``{menu: {tier: tokens}}``, tokens at which generation of the tier was cut;
* ``decision_cost``: tokens every action costs, skip included (default 0);
* ``unit``: what costs (the column ``tokens``, level edges, caps and the decision cost) count: ``tokens`` (default) or ``micro-usd``,
  millionths of a US dollar;
* ``pairing``: ``true`` where sample ``s`` of all tiers comes from one thought (default ``false``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from roi_env.files import replacing
from roi_env.sources.table_files import (
    COLUMNS,
    MAX_TOKENS,
    NO_ROWS,
    TEXT_COLUMNS,
    OutcomeTableError,
    integer_column,
    is_empty,
    is_folder,
    is_text,
    own_name,
    read_file,
    read_folder,
    some,
    text_column,
    with_own_names,
)
from roi_env.sources.texts import normalised
from roi_env.sources.thoughts import hidden_thoughts
from roi_env.sources.units import COST_NAMES, UNITS, Unit, cost_text

__all__ = [
    "COLUMNS",
    "DEFAULT_FRACTIONS",
    "MAX_TOKENS",
    "SPLITS",
    "TEXT_COLUMNS",
    "OutcomeTable",
    "OutcomeTableError",
    "Questions",
    "Split",
    "by_first_appearance",
    "split_of",
]

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.5, 0.2, 0.3)
"""Expected shares of the questions in train, validation and test."""
_DERIVED = ("tier_order", "sample")
"""Columns that follow from the others."""
_MANY = 10
"""Generations that are hardly all right, or all wrong, by chance."""
_MANY_TIERS = 100
"""Of a menu, more than which are rather ids or texts: comparing all of them takes minutes."""
JUDGES = ("filter", "filters", "filter_name", "metric", "scorer", "grader", "judge", "extractor")
"""Columns that name who judged: several values may be several judgements of one generation."""


class Questions(NamedTuple):
    """Questions of a table in order of first appearance.

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
    :param level_edges: menu -> tier -> most tokens that still count as the tier's announced level.
    :param tier_caps: menu -> tier -> tokens at which generation was cut.
    :param decision_cost: tokens every action costs, skip included.
    :param pairing: whether sample ``s`` of all tiers of a question comes from one thought.
    :param unit: what all costs count.
    :param notes: what was inferred in reading, one sentence each.
    :param same_text: (dataset, question_id) -> normalised text, of those that share a text with another pair (or are linked
        by a chain of such pairs). It stays that of the whole table in selections, and so do splits.
    """

    rows: pa.Table
    path: str
    level_edges: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tier_caps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    decision_cost: int = 0
    pairing: bool = False
    unit: Unit = "tokens"
    notes: tuple[str, ...] = ()
    same_text: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OutcomeTable:
        """Read and check a ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` file; text may be gzipped (``.gz``). A folder
        is a data set in the layout of the Hugging Face hub (``data/*.parquet``), and ``hf:NAME`` one of the hub's.

        CSV columns outside ``COLUMNS`` are read as text; CSV and JSON Lines carry no metadata (``dataclasses.replace``
        sets it).

        :raises OutcomeTableError: naming file, column and first offending row.
        """
        path = Path(path)
        rows, notes = read_folder(path) if is_folder(path) else read_file(path)
        return cls.from_arrow(rows, str(path), notes)

    @classmethod
    def from_arrow(cls, rows: pa.Table, path: str = "<memory>", notes: Sequence[str] = ()) -> OutcomeTable:
        """Check an Arrow table (its schema metadata included) and bring it into the form of ``rows``.

        :param notes: what its reader inferred.
        :raises OutcomeTableError: naming ``path``, column and first offending row.
        """
        metadata = rows.schema.metadata or {}
        rows, renamed = with_own_names(rows, path)
        said = [*notes, *renamed]
        # An empty column is one that the file has not.
        derived = [
            name
            for name in _DERIVED
            if name not in rows.column_names or (rows.column_names.count(name) == 1 and is_empty(rows[name]))
        ]
        missing = [name for name in COLUMNS if name not in rows.column_names and name not in derived]
        if missing:
            raise OutcomeTableError(
                path,
                f"missing; the file has {rows.column_names}. Every table needs {list(COLUMNS)} (tier_order and sample "
                "follow from the others where they are left out); `roi import` makes whole tables of others",
                missing[0],
            )
        repeated = [name for name in rows.column_names if rows.column_names.count(name) > 1]
        if repeated:
            raise OutcomeTableError(path, "appears more than once; keep one", repeated[0])
        if rows.num_rows == 0:
            raise OutcomeTableError(path, NO_ROWS)
        columns: dict[str, pa.ChunkedArray] = {}
        for name in COLUMNS:
            if name in derived:
                columns[name] = pa.chunked_array([pa.nulls(rows.num_rows)])
            elif name in TEXT_COLUMNS:
                columns[name], numbers = text_column(rows[name], name, path)
                if numbers:
                    said.append(f"column {name!r}: numbers are read as text")
            else:
                columns[name] = integer_column(rows[name], name, path)
                if is_text(rows[name].type):
                    kind = "true and false" if name == "correct" else "numbers"
                    said.append(f"column {name!r}: texts are read as {kind}")
        extra = {name: rows[name] for name in rows.column_names if name not in COLUMNS}
        table = cls(
            rows=pa.table(columns | extra).replace_schema_metadata(metadata),
            path=path,
            level_edges=_token_map(metadata, "level_edges", path),
            tier_caps=_token_map(metadata, "tier_caps", path),
            decision_cost=_decision_cost(metadata, path),
            pairing=_pairing(metadata, path),
            unit=_unit(metadata, path),
        )
        if "tier_order" in derived:
            table, note = table._with_tier_order()
            said.append(note)
        else:
            table._check_tier_order()
        if "sample" in derived:
            table, note = table._with_samples()
            said.append(note)
        else:
            table._check_duplicates()
        table._check_level_edges()
        return replace(table, notes=tuple(said), same_text=table._same_text())

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file with its metadata; the file appears whole or not at all.

        Columns are stored as plain Parquet types (text, not categories), so that any reader understands them.

        :raises OutcomeTableError: for a suffix other than ``.parquet``, or another column that Parquet cannot hold.
        """
        path = Path(path)
        if path.suffix.lower() != ".parquet":
            raise OutcomeTableError(str(path), "tables are written as Parquet: use the suffix .parquet")
        metadata = dict(self.rows.schema.metadata or {}) | {
            b"level_edges": json.dumps(self.level_edges).encode(),
            b"tier_caps": json.dumps(self.tier_caps).encode(),
            b"decision_cost": str(self.decision_cost).encode(),
            b"pairing": str(self.pairing).lower().encode(),
            b"unit": self.unit.encode(),
        }
        # Written by pandas, it describes the types of the file that was read, not of this one.
        metadata.pop(b"pandas", None)
        rows = self.rows.replace_schema_metadata()
        try:
            with (
                replacing(path) as temporary,
                pq.ParquetWriter(temporary, rows.schema, compression="zstd", store_schema=False) as writer,
            ):
                writer.write_table(rows)
                writer.add_key_value_metadata(metadata)
        except pa.ArrowNotImplementedError as error:
            raise OutcomeTableError(str(path), f"{error}; make the column text or drop it") from error

    def shard(self, start: int, length: int) -> OutcomeTable:
        """Some of the rows, in their order; metadata is that of the whole."""
        return replace(self, rows=self.rows.slice(start, length))

    @property
    def num_rows(self) -> int:
        """Number of recorded generations."""
        return int(self.rows.num_rows)

    @property
    def menus(self) -> tuple[str, ...]:
        """Menus in order of first appearance."""
        return tuple(pc.unique(self.rows["menu"]).to_pylist())

    def codes(self, column: str) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """``(codes, values)`` of any column: row ``r`` holds ``values[codes[r]]``; every value has a row."""
        array = self.rows[column]
        if not pa.types.is_dictionary(array.type):
            try:
                array = array.dictionary_encode()
            except pa.ArrowNotImplementedError:
                kind = f"holds {array.type}; choose a column of texts or numbers"
                raise OutcomeTableError(self.path, kind, column) from None
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

    def tier_names(self, menu: str) -> tuple[str, ...]:
        """Tiers of a menu, cheapest first.

        :raises OutcomeTableError: for an unknown menu.
        """
        self._check_menu(menu)
        rows = self.rows.filter(pc.equal(self.rows["menu"], menu))
        tier, values = replace(self, rows=rows).codes("tier")
        order = dict(zip(tier.tolist(), rows["tier_order"].to_pylist(), strict=True))
        return tuple(str(values[code]) for code in sorted(order, key=lambda code: order[code]))

    def select(
        self,
        menu: str | None = None,
        tiers: Sequence[str] | str | None = None,
        datasets: Sequence[str] | str | None = None,
    ) -> OutcomeTable:
        """The rows of one menu (may be left out where there is only one), of the named tiers and datasets (default: all).

        :raises OutcomeTableError: where the menu is unknown or not named but needed, or a tier or dataset has no rows.
        """
        if menu is None:
            if len(self.menus) > 1:
                raise OutcomeTableError(
                    self.path,
                    f"{len(self.menus)} menus, whose tiers cannot be compared; choose one with menu=...: "
                    f"{list(self.menus)}",
                    "menu",
                    int(np.argmax(self.codes("menu")[0] != self.codes("menu")[0][0])),
                )
            menu = self.menus[0]
        self._check_menu(menu)
        keep = pc.equal(self.rows["menu"], menu)
        kept = self.rows.filter(keep)
        for column, chosen in (("tier", tiers), ("dataset", datasets)):
            if chosen is None:
                continue
            names = [chosen] if isinstance(chosen, str) else list(chosen)
            values = kept[column].cast(pa.string())
            known = self.tier_names(menu) if column == "tier" else tuple(sorted(values.unique().to_pylist()))
            if not names or len(set(names)) != len(names):
                raise OutcomeTableError(
                    self.path, f"{column}s must be distinct names out of {list(known)}, got {names!r}"
                )
            if absent := [name for name in names if name not in known]:
                raise OutcomeTableError(
                    self.path, f"no rows for {column} {absent[0]!r} of menu {menu!r}; it has {list(known)}", column
                )
            kept = kept.filter(pc.is_in(values, pa.array(names, pa.string())))
        return replace(self, rows=kept)

    def without(self, other: OutcomeTable) -> OutcomeTable:
        """The rows of questions that another table does not have: neither their dataset and id, nor their text.

        :raises OutcomeTableError: where it has all of them.
        """
        theirs = set(zip(other.rows["dataset"].to_pylist(), other.rows["question_id"].to_pylist(), strict=True))
        texts = {normalised(text) for text in other.codes("question")[1]} - {""}
        code, values = self.codes("question")
        known = np.array([normalised(text) in texts for text in values])[code]
        mine = zip(self.rows["dataset"].to_pylist(), self.rows["question_id"].to_pylist(), strict=True)
        keep = [question not in theirs and not seen for question, seen in zip(mine, known.tolist(), strict=True)]
        if not any(keep):
            raise OutcomeTableError(self.path, f"all of its questions are in {other.path} as well")
        return replace(self, rows=self.rows.filter(pa.array(keep)))

    def split(self, name: Split, fractions: Sequence[float] = DEFAULT_FRACTIONS) -> OutcomeTable:
        """The rows of the questions of one split (``"all"``: this table).

        A hash, read as a number in [0, 1), falls into the train, validation or test share; split sizes therefore vary
        around their shares. It is the hash of the ``question_id``, and, where several ids stand for one text
        (``same_text``), of that text. A question's split is thus the same in every menu, selection and row order and
        in every process, and the same in every table that has its text once; no text is in two splits of a table.

        :param fractions: shares of train, validation and test, >= 0, summing to 1.
        :raises OutcomeTableError: for an unknown name, bad fractions, or a split without questions.
        """
        if name == "all":
            return self
        keep = self.in_split(name, fractions)
        if not keep.any():
            raise OutcomeTableError(
                self.path,
                f"no question falls into split {name!r} (shares {tuple(fractions)}, {len(self.distinct_questions().first_row)} "
                f"different questions under {len(self.questions().first_row)} ids); choose other fractions or split='all', or "
                "empty the column question where it does not hold the question's text",
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
        codes = np.array([_split_code(question, edges) for question in ids], np.int8)[code]
        if renamed := self._texts_of_several_ids():
            pairs = self.questions()
            texts = [renamed.get(name) for name in self._pair_names(pairs)]
            of_text = np.array([-1 if text is None else _split_code(text, edges) for text in texts], np.int8)
            codes = np.where(of_text[pairs.of_row] < 0, codes, of_text[pairs.of_row])
        return codes

    def distinct_questions(self) -> Questions:
        """Questions in order of first appearance, those of one text being one question: what exams are made of."""
        pairs = self.questions()
        if not self.same_text:
            return pairs
        # The number of the first pair of the same text.
        first: dict[object, int] = {}
        same = [
            first.setdefault(self.same_text.get(name, name), number)
            for number, name in enumerate(self._pair_names(pairs))
        ]
        return Questions(*by_first_appearance(np.array(same, np.int64)[pairs.of_row]))

    def questions(self) -> Questions:
        """Questions as they are named, (dataset, question_id) pairs, in order of first appearance."""
        dataset, _ = self.codes("dataset")
        question, ids = self.codes("question_id")
        return Questions(*by_first_appearance(dataset * len(ids) + question))

    def _pair_names(self, pairs: Questions) -> list[tuple[str, str]]:
        columns = [self.rows[name].take(pairs.first_row).to_pylist() for name in ("dataset", "question_id")]
        return list(zip(*columns, strict=True))

    def _same_text(self) -> dict[tuple[str, str], str]:
        """See ``same_text``."""
        code, texts = self.codes("question")
        plain = [normalised(text) for text in texts]
        number = {text: at for at, text in enumerate(dict.fromkeys(plain))}
        of_text = np.array([number[text] if text else -1 for text in plain])[code]
        pairs = self.questions()
        size = len(number)
        links = np.unique((pairs.of_row * size + of_text)[of_text >= 0])
        if len(links) == len(np.unique(links % size)):
            return {}
        # Pairs that share a text, and those that share one with these: a chain has one name, its first text's.
        parent: dict[int, int] = {}

        def root(node: int) -> int:
            while parent.setdefault(node, node) != node:
                parent[node] = node = parent[parent[node]]
            return node

        for link in links.tolist():
            one, other = root(link % size), root(size + link // size)
            parent[max(one, other)] = min(one, other)
        members: dict[int, list[int]] = {}
        for node in sorted(parent):
            members.setdefault(root(node), []).append(node)
        names, known = self._pair_names(pairs), list(number)
        found: dict[tuple[str, str], str] = {}
        for chain in members.values():
            own = [names[node - size] for node in chain if node >= size]
            if len(own) > 1:
                found |= dict.fromkeys(own, min(known[node] for node in chain if node < size))
        return found

    def _texts_of_several_ids(self) -> dict[tuple[str, str], str]:
        """Of ``same_text``, the pairs whose text has several ids: not those of one id in several datasets."""
        ids: dict[str, set[str]] = {}
        for (_, question), text in self.same_text.items():
            ids.setdefault(text, set()).add(question)
        return {pair: text for pair, text in self.same_text.items() if len(ids[text]) > 1}

    def constant_per_question(self, column: str) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """``(codes, values)`` of a column that is the same in all rows of a (dataset, question_id) pair: distinct question
        ``q`` has ``values[codes[q]]``, that of its first pair.

        :raises OutcomeTableError: where the column is missing, has nulls or varies inside a pair.
        """
        if column not in self.rows.column_names:
            raise OutcomeTableError(self.path, f"missing; the table has {self.rows.column_names}", column)
        of_row, first_row = self.questions()
        codes, values = self.codes(column)
        differs = codes != codes[first_row][of_row]
        if differs.any():
            row = int(differs.argmax())
            raise OutcomeTableError(
                self.path,
                f"must be the same in all rows of a question, but question {self.rows['question_id'][row].as_py()!r} "
                f"has {values[codes[first_row[of_row[row]]]]!r} and {values[codes[row]]!r}; choose another column or give "
                "different questions different ids",
                column,
            )
        return codes[self.distinct_questions().first_row], values

    def log_notes(self) -> None:
        """Log what was inferred in reading as warnings, once a process."""
        for note in self.notes:
            self.log(note)

    def log(self, text: str) -> None:
        """Log a warning about the table, once a process."""
        _log_once(self.path, text)

    def generations(self) -> npt.NDArray[np.int64]:
        """(rows,) numbers that tell a question's generations at a tier apart, in the order of its ids and of ``sample``;
        equal numbers of two tiers are one sample of one id."""
        sample = self.numbers("sample")
        if not self.same_text:
            return sample
        _, small = np.unique(sample, return_inverse=True)
        return np.asarray(self.questions().of_row * (small.max() + 1) + small)

    def varies(self, column: str) -> npt.NDArray[np.bool_]:
        """(Q,) bool: distinct questions that have several values of a column; texts of questions are compared normalised."""
        of_row = self.distinct_questions().of_row
        codes, values = self.codes(column)
        out = np.zeros(len(self.distinct_questions().first_row), bool)
        out[of_row[self._spread(of_row, codes)]] = True
        if column == "question" and out.any():
            rows = np.flatnonzero(out[of_row])
            used, place = np.unique(codes[rows], return_inverse=True)
            same = np.unique([normalised(values[code]) for code in used], return_inverse=True)[1][place]
            out[:] = False
            out[of_row[rows[self._spread(of_row[rows], same)]]] = True
        return out

    def has_one_answer(self) -> npt.NDArray[np.bool_]:
        """(Q,) bool: distinct questions whose first text has one answer in all of its rows. Others cannot be judged by a reference
        answer: it belongs to a generation, whose options were shuffled."""
        questions = self.distinct_questions()
        text, _ = self.codes("question")
        answer, _ = self.codes("answer")
        first = questions.first_row[questions.of_row]
        out = np.ones(len(questions.first_row), bool)
        out[questions.of_row[(text == text[first]) & (answer != answer[first])]] = False
        return out

    def describe(self) -> dict[str, Any]:
        """What the table holds, as plain data (dicts, lists, str, int, float, bool).

        Keys: ``path, rows, questions, pairing, unit, decision_cost, datasets`` (name -> questions), ``splits`` (name ->
        questions, default shares), ``menus``, ``problems`` and ``notes``.

        * A menu: ``menu, questions, complete_questions`` (questions with all tiers), ``splits, tiers``.
        * A tier: ``tier, tier_order, rows, questions, samples_min, samples_max, tokens_mean, tokens_p50, tokens_p90,
          accuracy``; means and percentiles over generations.
        * A problem: ``menu, kind, message``. Kinds: ``missing_tiers``, ``unequal_samples``, ``tier_order`` (a later
          tier costs less), ``trap`` (dearer and less often correct), ``non_monotone`` (questions where the last tier is
          right less often than the first), ``one_verdict`` (all right, or all wrong), ``many_tiers`` (over 100: not compared), ``zero_tokens``,
          ``several_judgements`` (of one generation?),
          ``hidden_thought`` (tokens that cannot hold what was generated). Tiers are compared on the questions that have
          both, every question counting once. Of the whole table (``menu`` is ``""``): ``equal_texts`` (of several
          ids), ``tier_texts`` (other texts at other tiers of one id), ``several_texts`` and ``several_answers`` (that
          differ between generations), ``similar_names`` (of datasets, menus or tiers).
        """
        menus, problems = [], self._describe_texts()
        for name in self.menus:
            entry, found = self.select(name)._describe_menu(name)
            menus.append(entry)
            problems.extend(found)
        first_row = self.distinct_questions().first_row
        dataset, names = self.codes("dataset")
        counts = np.bincount(dataset[first_row], minlength=len(names))
        return {
            "path": self.path,
            "rows": self.num_rows,
            "questions": len(first_row),
            "pairing": self.pairing,
            "unit": self.unit,
            "decision_cost": self.decision_cost,
            "datasets": {name: int(count) for name, count in zip(names, counts, strict=True) if count},
            "splits": self._split_sizes(first_row),
            "menus": menus,
            "problems": problems,
            "notes": list(self.notes),
        }

    def _describe_texts(self) -> list[dict[str, str]]:
        """Problems of the whole table: questions that are not what their ids say."""
        problems = []

        def report(kind: str, message: str) -> None:
            problems.append({"menu": "", "kind": kind, "message": message})

        for column in ("dataset", "menu", "tier"):
            like: dict[str, list[str]] = {}
            for value in self.codes(column)[1]:
                like.setdefault(normalised(value), []).append(value)
            for values in like.values():
                if len(values) > 1:
                    report("similar_names", f"column {column!r} has {some(values)}: if they are one, write them alike")
        pairs = self.questions()
        names = self._pair_names(pairs)
        if self.same_text:
            under: dict[str, list[str]] = {}
            for (dataset, question), text in self.same_text.items():
                under.setdefault(text, []).append(f"{dataset}: {question}")
            example = max(under.values(), key=len)
            report(
                "equal_texts",
                f"{len(under)} texts stand under {len(self.same_text)} ids (e.g. {some(example)}): each text is one "
                "question, in one split, with the generations of all its ids; if they are different questions, complete "
                "their texts or empty them",
            )
        # Of single ids: what several ids of one text differ in is said above.
        code, texts = self.codes("question")
        forms: dict[str, int] = {}  # no array of texts: each would take as much as the longest
        plain = np.array([forms.setdefault(normalised(text), len(forms)) for text in texts])[code]
        inside, across = (np.unique(pairs.of_row[self._spread(key, plain)]) for key in (self._cells(), pairs.of_row))
        if len(by_tier := np.setdiff1d(across, inside)):
            said = some([names[at][1] for at in by_tier])
            report(
                "tier_texts",
                f"{len(by_tier)} ids have another text at another tier or menu ({said}): if these are different questions, "
                "give them different ids; if it is the prompt that differs, write the bare question",
            )
        if len(inside):
            said = some([names[at][1] for at in inside])
            report(
                "several_texts",
                f"{len(inside)} ids have several texts at one tier ({said}): shuffled options? Agents that read see "
                "the first",
            )
        if (several := self.varies("answer")).any():
            ids = self.rows["question_id"].take(self.distinct_questions().first_row[several]).to_pylist()
            report(
                "several_answers",
                f"{several.sum()} questions have several answers ({some(ids)}): shuffled options? The answer belongs to "
                "the generation; texts with options cannot be graded again from one letter",
            )
        return problems

    @staticmethod
    def _spread(key: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(rows,) rows whose value differs from that of the first row with their key."""
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        return np.asarray(values != values[first][inverse])

    def _describe_menu(self, menu: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
        of_row, first_row = self.distinct_questions()
        names = self.tier_names(menu)
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
            problems.append({"menu": menu, "kind": kind, "message": message})

        complete = offered.all(1)
        if not complete.all():
            report("missing_tiers", f"{(~complete).sum()} of {shape[0]} questions lack a tier")
        for entry in tiers:
            if entry["samples_min"] != entry["samples_max"]:
                report(
                    "unequal_samples",
                    f"{entry['tier']}: {entry['samples_min']} to {entry['samples_max']} samples a question",
                )
        suffix = " tokens" if self.unit == "tokens" else ""
        compared = len(names) if len(names) <= _MANY_TIERS else 0
        if not compared:
            report("many_tiers", f"{len(names):,} tiers, which are not compared: is this the right column?")
        for low in range(compared):
            for high in range(low + 1, compared):
                both = offered[:, low] & offered[:, high]
                if not both.any():
                    continue
                cost = mean_tokens[both][:, [low, high]].mean(0)
                right = accuracy[both][:, [low, high]].mean(0)
                if cost[1] < cost[0]:
                    report(
                        "tier_order",
                        f"{names[high]} comes after {names[low]} but costs less ({cost_text(cost[1], self.unit)} against "
                        f"{cost_text(cost[0], self.unit)}{suffix})",
                    )
                dear, cheap = (1, 0) if cost[1] >= cost[0] else (0, 1)
                if right[dear] < right[cheap]:
                    pair = (names[low], names[high])
                    report(
                        "trap",
                        f"{pair[dear]} is dearer and worse than {pair[cheap]} ({cost_text(cost[dear], self.unit)} against "
                        f"{cost_text(cost[cheap], self.unit)}{suffix}, {right[dear]:.3f} against {right[cheap]:.3f} correct)",
                    )
        ends = offered[:, 0] & offered[:, -1]
        worse = int((accuracy[ends, -1] < accuracy[ends, 0]).sum())
        if worse:
            report("non_monotone", f"{worse} of {ends.sum()} questions: {names[-1]} right less often than {names[0]}")
        if len(correct) >= _MANY and len(verdicts := np.unique(correct)) == 1:
            report(
                "one_verdict",
                f"all {len(correct):,} generations are {'right' if verdicts[0] else 'wrong'}: is this the right column?",
            )
        zero = int((tokens == 0).sum())
        if zero:
            report("zero_tokens", f"{zero} generations of 0 tokens; exams charge 1 token for them")
        for name, differs in self._judged(cell, named=False):
            if several := len(np.unique(cell[differs])):
                report(
                    "several_judgements",
                    f"column {name!r} has several values in {several} of {len(np.unique(cell))} questions and tiers: if they are "
                    "judgements or filters of one generation, each is counted as a generation; keep one",
                )
        if self.unit == "tokens":
            for message in hidden_thoughts(self.rows, tier, names):
                report("hidden_thought", message)
        return {
            "menu": menu,
            "questions": shape[0],
            "complete_questions": int(complete.sum()),
            "splits": self._split_sizes(first_row),
            "tiers": tiers,
        }, problems

    def _split_sizes(self, first_row: npt.NDArray[np.int64]) -> dict[str, int]:
        counts = np.bincount(self.split_codes()[first_row], minlength=len(SPLITS))
        return {name: int(count) for name, count in zip(SPLITS, counts, strict=True)}

    def _check_menu(self, menu: str) -> None:
        if menu not in self.menus:
            raise OutcomeTableError(self.path, f"no rows for menu {menu!r}; there are {list(self.menus)}", "menu")

    def _check_tier_order(self) -> None:
        menu, menus = self.codes("menu")
        tier, tiers = self.codes("tier")
        order = self.numbers("tier_order").astype(np.int64)
        # One tier, one order, and one order, one tier: both inside a menu.
        for key, value in ((menu * len(tiers) + tier, order), (menu * 2**31 + order, tier)):
            differs = self._spread(key, value)
            if differs.any():
                row = int(differs.argmax())
                before = int(np.argmax(key == key[row]))
                raise OutcomeTableError(
                    self.path,
                    f"tier {tiers[tier[row]]!r} has order {order[row]}, but row {before} gives tier "
                    f"{tiers[tier[before]]!r} order {order[before]} in the same menu {menus[menu[row]]!r}; "
                    "give every tier of a menu one order of its own, or leave the column out: it is then that of mean "
                    "tokens",
                    "tier_order",
                    row,
                )

    def _cells(self) -> npt.NDArray[np.int64]:
        """(rows,) number of every row's (dataset, question_id, menu, tier)."""
        return self._keys(self.questions().of_row, self.codes("menu")[0], self.codes("tier")[0])

    @staticmethod
    def _keys(key: npt.NDArray[np.int64], *columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # Compressed after every column: the product of all their sizes may not fit 64 bits.
        for codes in columns:
            _, small = np.unique(codes, return_inverse=True)
            _, key = np.unique(key * (small.max() + 1) + small, return_inverse=True)
        return key

    def _with_tier_order(self) -> tuple[OutcomeTable, str]:
        """The table with the order of mean tokens as ``tier_order``, and the sentence that says so."""
        menu, menus = self.codes("menu")
        tier, tiers = self.codes("tier")
        key = self._keys(menu, tier)
        _, first = np.unique(key, return_index=True)
        mean = np.bincount(key, self.numbers("tokens")) / np.bincount(key)
        order, said = np.empty(len(first), np.int32), []
        for number, name in enumerate(menus):
            mine = np.flatnonzero(menu[first] == number)
            mine = mine[np.lexsort((first[mine], mean[mine]))]
            order[mine] = np.arange(1, len(mine) + 1)
            said.append(
                f"{name}: " + " < ".join(f"{tiers[tier[first[at]]]} ({cost_text(mean[at], self.unit)})" for at in mine)
            )
        more = f"; and {len(said) - 3} more menus" if len(said) > 3 else ""
        note = f"no tier_order: tiers stand in the order of their mean {COST_NAMES[self.unit]} ({'; '.join(said[:3])}{more})"
        return replace(self, rows=self._with("tier_order", order[key])), note

    def _with_samples(self) -> tuple[OutcomeTable, str]:
        """The table with rows of a question and tier numbered as they come, and the sentence that says so."""
        if self.pairing:
            raise OutcomeTableError(
                self.path,
                "missing, but the metadata says 'pairing': only the numbers tell which generations of two tiers come from "
                "one thought; add them or leave 'pairing' out",
                "sample",
            )
        cell = self._cells()
        for name, differs in self._judged(cell):
            if differs.any():
                row = int(differs.argmax())
                raise OutcomeTableError(
                    self.path,
                    f"missing, and column {name!r} has several values in the rows of one question and tier: if they are "
                    "judgements or filters of one generation, keep one of them; else number the generations",
                    "sample",
                    row,
                )
        order = np.argsort(cell, kind="stable")
        start = np.flatnonzero(np.diff(cell[order], prepend=-1))
        sample = np.empty(len(cell), np.int64)
        sample[order] = np.arange(len(cell)) - np.repeat(start, np.diff(np.append(start, len(cell))))
        note = "no sample: generations of a question and tier are numbered in the order of their rows"
        everything = self._keys(cell, *self._plain_columns().values())
        if copies := len(cell) - len(np.unique(everything)):
            note += (
                f"; {copies:,} rows equal another one in every column: where they are copies (or filters of one generation) "
                "drop them, each counts as a generation"
            )
        return replace(self, rows=self._with("sample", sample)), note

    def _judged(self, cell: npt.NDArray[np.int64], *, named: bool = True) -> list[tuple[str, npt.NDArray[np.bool_]]]:
        """``(column, (rows,) bool)`` of columns that tell judges apart: rows with another one than the first of their cell.

        :param named: only columns that are named so; else also those whose every value comes with the tokens of another
            one of its cell: the generation is the same.
        """
        found = []
        tokens = self._keys(cell, self.numbers("tokens"))
        for name, codes in self._plain_columns().items():
            if name in COLUMNS:
                continue
            same = not named and bool(np.isin(tokens, tokens[self._spread(tokens, codes)]).all())
            if same or own_name(name) in JUDGES:
                found.append((name, self._spread(cell, codes)))
        return found

    def _plain_columns(self) -> dict[str, npt.NDArray[np.int64]]:
        """(rows,) codes of every column that can be told equal, -1 where it has no value."""
        found = {}
        for name in self.rows.column_names:
            column = self.rows[name]
            if not pa.types.is_nested(column.type) and not pa.types.is_null(column.type):
                encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
                indices = encoded.unify_dictionaries().combine_chunks().indices
                found[name] = pc.fill_null(indices, -1).to_numpy().astype(np.int64)
        return found

    def _with(self, name: str, values: npt.NDArray[Any]) -> pa.Table:
        return self.rows.set_column(self.rows.column_names.index(name), name, pa.chunked_array([values]))

    def _check_duplicates(self) -> None:
        key = self._keys(self._cells(), self.numbers("sample"))
        order = np.argsort(key, kind="stable")
        again = order[1:][key[order][1:] == key[order][:-1]]
        if len(again):
            row = int(again.min())
            before = int(np.argmax(key == key[row]))
            what = {name: self.rows[name][row].as_py() for name in ("menu", "question_id", "tier", "sample")}
            pair = [self.rows.slice(at, 1).to_pylist()[0] for at in (before, row)]
            differ = [name for name in self.rows.column_names if repr(pair[0][name]) != repr(pair[1][name])]
            if not differ:
                advice = (
                    "the two rows are equal in every column: if one is a copy, drop it (numbering it would count one "
                    "generation twice); if it is another generation, give it a number of its own"
                )
            else:
                advice = (
                    f"the two rows differ in {some(differ)}: if they are several judgements or filters of one generation, "
                    "keep one of them (numbering them would count it twice); if they are different generations, number "
                    "every generation differently, or leave the column sample out"
                )
            raise OutcomeTableError(
                self.path, f"{what} is already in row {before} ({len(again):,} such rows): {advice}", "sample", row
            )

    def _check_level_edges(self) -> None:
        for menu in set(self.level_edges) & set(self.menus):
            edges = [self.level_edges[menu].get(tier) for tier in self.tier_names(menu)]
            known = [edge for edge in edges if edge is not None]
            if any(b <= a for a, b in pairwise(known)):
                raise OutcomeTableError(
                    self.path, f"metadata 'level_edges' of menu {menu!r} must grow with tier_order, got {edges}"
                )


@cache
def _log_once(path: str, text: str) -> None:
    logger.warning("%s: %s", path, text)


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
        raise OutcomeTableError(path, f"metadata {key!r} must be JSON {{menu: {{tier: tokens >= 1}}}}, got {text!r}")
    return value


def _decision_cost(metadata: Mapping[bytes, bytes], path: str) -> int:
    text = _metadata_text(metadata, "decision_cost", path) or "0"
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_TOKENS:
        raise OutcomeTableError(path, f"metadata 'decision_cost' must be an integer >= 0 (tokens), got {text!r}")
    return int(text)


def _unit(metadata: Mapping[bytes, bytes], path: str) -> Unit:
    text = _metadata_text(metadata, "unit", path) or "tokens"
    if text not in UNITS:
        raise OutcomeTableError(path, f"metadata 'unit' must be one of {list(UNITS)}, got {text!r}")
    return text


def _pairing(metadata: Mapping[bytes, bytes], path: str) -> bool:
    text = (_metadata_text(metadata, "pairing", path) or "false").lower()
    if text not in ("true", "false"):
        raise OutcomeTableError(path, f"metadata 'pairing' must be 'true' or 'false', got {text!r}")
    return text == "true"
