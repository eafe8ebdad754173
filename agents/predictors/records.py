"""A recorded table by question, and which of its questions are nearly the same text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError
from roi_env.sources.texts import normalised
from roi_env.sources.units import Unit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SHINGLE = 5
"""Words of a shingle."""
NEAR = 0.8
"""Jaccard similarity of shingles from which on two natural texts are near duplicates."""


@dataclass(frozen=True)
class Records:
    """Outcomes of one menu by question; Q questions, K tiers.

    :param menu: whose.
    :param tiers: K names, cheapest first.
    :param texts: Q.
    :param columns: by name the Q values of other columns that are the same in all rows of a question.
    :param right: (Q, K) right answers.
    :param count: (Q, K) answers.
    :param question: (R,) question of every generation, like ``tier``, ``tokens`` and ``correct``.
    :param split: (Q,) 0 train, 1 validation, 2 test.
    :param unit: what ``tokens`` count.
    """

    menu: str
    tiers: tuple[str, ...]
    texts: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    right: Floats
    count: Floats
    question: Ints
    tier: Ints
    tokens: Floats
    correct: npt.NDArray[np.bool_]
    split: Ints
    unit: Unit = "tokens"

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def log_tokens(self) -> Floats:
        """(Q, K) mean log tokens of every cell; nan where there is none."""
        total = np.zeros(self.count.shape)
        np.add.at(total, (self.question, self.tier), np.log(self.tokens))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.count > 0, total / self.count, np.nan)

    def take(self, chosen: npt.NDArray[np.bool_], samples: int | None = None) -> Records:
        """The chosen questions, with at most the first ``samples`` generations of every cell."""
        number = np.cumsum(chosen) - 1
        rows = chosen[self.question]
        if samples is not None:
            # Generations of a cell stand together, in the order of their samples.
            cell = self.question * len(self.tiers) + self.tier
            start = np.flatnonzero(np.diff(cell, prepend=-1))
            rows &= np.arange(len(cell)) - np.repeat(start, np.diff(np.append(start, len(cell)))) < samples
        question, tier, correct = number[self.question[rows]], self.tier[rows], self.correct[rows]
        shape = (int(chosen.sum()), len(self.tiers))
        cell = question * shape[1] + tier
        return dataclasses.replace(
            self,
            texts=tuple(text for text, kept in zip(self.texts, chosen, strict=True) if kept),
            columns={
                name: tuple(value for value, kept in zip(values, chosen, strict=True) if kept)
                for name, values in self.columns.items()
            },
            right=np.bincount(cell, correct, shape[0] * shape[1]).reshape(shape).astype(np.float64),
            count=np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64),
            question=question,
            tier=tier,
            tokens=self.tokens[rows],
            correct=correct,
            split=self.split[chosen],
        )


def records(table: OutcomeTable, menu: str | None = None, tiers: Sequence[str] | None = None) -> Records:
    """Count a table by question.

    :raises OutcomeTableError: for an unknown menu or tier, or a table without texts.
    """
    table = table.select(menu, tiers)
    names = table.tier_names(table.menus[0])
    of_row, first_row = table.distinct_questions()
    texts = tuple(table.rows["question"].take(first_row).to_pylist())
    if not any(normalised(text) for text in texts):
        raise OutcomeTableError(
            table.path, "no question has a text, and a predictor reads texts: fill this column", "question"
        )
    code, values = table.codes("tier")
    tier = np.array([names.index(value) for value in values])[code]
    order = np.lexsort((table.generations(), tier, of_row))
    question, tier = of_row[order], tier[order]
    correct = table.numbers("correct")[order].astype(np.bool_)
    shape = (len(texts), len(names))
    cell = question * shape[1] + tier
    return Records(
        table.menus[0],
        names,
        texts,
        _columns(table),
        np.bincount(cell, correct, shape[0] * shape[1]).reshape(shape).astype(np.float64),
        np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64),
        question,
        tier,
        np.maximum(table.numbers("tokens")[order], 1).astype(np.float64),
        correct,
        table.split_codes()[first_row].astype(np.int64),
        table.unit,
    )


_NOT_KNOWN_BEFORE = frozenset(
    {"question_id", "question", "answer", "menu", "tier", "tier_order", "tokens", "correct", "sample"}
)
"""Columns of every table that are no property of a question, or its name."""


def _columns(table: OutcomeTable) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in table.rows.column_names:
        if name in _NOT_KNOWN_BEFORE:
            continue
        try:
            codes, values = _filled(table, name).constant_per_question(name)
        except (OutcomeTableError, pa.ArrowNotImplementedError):
            continue  # a property of generations, or no text or number
        found[name] = tuple(str(values[code]) for code in codes)
    return found


def _filled(table: OutcomeTable, name: str) -> OutcomeTable:
    """The table with a column in which nothing is empty: questions of another data set may lack it (MATH's level)."""
    column = table.rows[name]
    if not column.null_count:
        return table
    filled = pc.fill_null(column.cast(pa.string()), "")
    return dataclasses.replace(table, rows=table.rows.set_column(table.rows.column_names.index(name), name, filled))


def with_column(table: OutcomeTable, name: str, values: Sequence[str]) -> OutcomeTable:
    """The table with a text column, the same in all rows of a question: (Q,) values by distinct question."""
    labels = list(dict.fromkeys(values))
    place = {label: number for number, label in enumerate(labels)}
    codes = np.array([place[value] for value in values], np.int32)[table.distinct_questions().of_row]
    column = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(labels, pa.string()))
    rows = table.rows.drop_columns([name]) if name in table.rows.column_names else table.rows
    return dataclasses.replace(table, rows=rows.append_column(name, pa.chunked_array([column])))


_DIGITS = re.compile(r"\d+")


def is_generated(texts: Sequence[str]) -> bool:
    """Whether texts look made from templates: half of them are another one but for numbers, or have fewer than ten words."""
    shapes = [_DIGITS.sub("0", normalised(text)) for text in texts]
    count = dict.fromkeys(shapes, 0)
    for shape in shapes:
        count[shape] += 1
    alike = sum(count[shape] > 1 or len(text.split()) < 10 for shape, text in zip(shapes, texts, strict=True))
    return bool(2 * alike >= len(texts))


def near_duplicates(texts: Sequence[str]) -> Ints:
    """(n,) number of every text's cluster: texts of five-word shingles with a Jaccard similarity of .8 or more, and chains
    of such texts, are one cluster. Of generated texts (:func:`is_generated`) equal ones alone. Questions without a text are
    nobody's duplicates."""
    plain = [normalised(text) for text in texts]
    first: dict[object, int] = {}
    same = np.array([first.setdefault(text or number, number) for number, text in enumerate(plain)], np.int64)
    if is_generated(texts):
        return same
    from scipy.sparse import coo_matrix, csr_matrix
    from scipy.sparse.csgraph import connected_components

    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for number, text in enumerate(plain):
        words = text.split()
        shingles = {" ".join(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)}
        for shingle in shingles:
            rows.append(number)
            columns.append(vocabulary.setdefault(shingle, len(vocabulary)))
    if not rows:
        return same
    holds = csr_matrix((np.ones(len(rows)), (rows, columns)), (len(texts), len(vocabulary)))
    size = np.asarray(holds.sum(1)).ravel()
    one, other = _candidates(holds, size)
    near = []
    for start in range(0, len(one), 1 << 18):
        a, b = one[start : start + (1 << 18)], other[start : start + (1 << 18)]
        common = np.asarray(holds[a].multiply(holds[b]).sum(1)).ravel()
        near.append(common >= NEAR * (size[a] + size[b] - common))
    kept = np.concatenate(near) if near else np.zeros(0, np.bool_)
    links = coo_matrix(
        (
            np.ones(int(kept.sum()) + len(texts)),
            (np.append(one[kept], np.arange(len(texts))), np.append(other[kept], same)),
        ),
        (len(texts), len(texts)),
    )
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _candidates(holds: Any, size: Floats) -> tuple[Ints, Ints]:
    """Pairs of texts that can be near, each once: every near pair that shares a shingle which not nearly everybody has.

    Near texts share one of the first ``size - NEAR size + 1`` shingles of each, in any order that all texts have in common (prefix
    filtering: S. Chaudhuri, V. Ganti, R. Kaushik, "A primitive operator for similarity joins in data cleaning", ICDE 2006): from the
    rarest on, few texts have those.

    :param holds: (n, shingles) sparse 0 and 1.
    :param size: (n,) shingles of every text.
    """
    from scipy.sparse import csr_matrix

    holders = np.asarray(holds.sum(0)).ravel().astype(np.int64)
    text, shingle = holds.nonzero()
    order = np.lexsort((shingle, holders[shingle], text))
    text, shingle = text[order], shingle[order]
    place = np.arange(len(text)) - np.searchsorted(text, text)
    first = size - np.ceil(NEAR * size - 1e-9) + 1
    # What nearly everybody has (a prompt's frame) links all pairs and tells none apart.
    rare = (place < first[text]) & (holders[shingle] <= max(50, len(size) // 20))
    telling = csr_matrix((np.ones(int(rare.sum())), (text[rare], shingle[rare])), holds.shape)
    together = (telling @ telling.T).tocoo()
    upper = together.row < together.col
    return together.row[upper], together.col[upper]


def apart(found: Records) -> npt.NDArray[np.bool_]:
    """(Q,) questions that are no near duplicate of one in a later split: what train, validation and test may learn from,
    choose by and be scored on."""
    cluster = near_duplicates(found.texts)
    last = np.zeros(len(found), np.int64)
    np.maximum.at(last, cluster, found.split)
    return np.asarray(found.split == last[cluster])
