"""Exams from recorded outcomes: an outcome table as a finite :class:`~roi_env.sources.source.Source`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from roi_env.sources.outcome_tables import (
    DEFAULT_FRACTIONS,
    OutcomeTable,
    OutcomeTableError,
    Split,
    by_first_appearance,
)
from roi_env.sources.source import Coupling, Laws, Source, Tier, laws_from_cells

LEVEL_QUANTILE = 0.9
"""Share of a tier's generations that its level holds, where the table names no level edges."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_EMPTY = (np.empty(0, np.int32), np.empty(0), np.empty(0))


def recorded_source(
    table: OutcomeTable | str | os.PathLike[str],
    *,
    menu: str | None = None,
    tiers: Sequence[str] | str | None = None,
    datasets: Sequence[str] | str | None = None,
    split: Split = "test",
    group_by: str = "dataset",
    missing: Literal["drop", "mask"] = "drop",
    coupling: Coupling | None = None,
    beliefs_split: Split = "train",
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    stratify: bool = False,
) -> Source:
    """Make exams of the questions of one split of a recorded table.

    Every question of ``split`` is one task row and one item; its outcomes at a tier are its recorded generations, all
    equally likely, ordered by ``sample``. Nothing is imputed. Generations of 0 tokens (an empty answer) cost 1 token,
    the least an attempt can cost. A question is a text: ``(dataset, question_id)`` pairs with equal texts
    (:func:`roi_env.sources.texts.normalised`) are one question that has the generations of all of them and, else, the values of the
    first. So no question is twice in an exam, or both in training and in test. What was inferred in reading the table, and
    what varies inside questions, is logged as a warning.

    * Groups (what an agent sees) are the values of ``group_by``, in order of first appearance in the file, divided
      further by which tiers are offered where ``missing="mask"`` leaves several patterns. ``group_features`` (G, F):
      one float32 indicator a value, then one a tier (offered or not) where there are several patterns.
    * ``published``: pooled law of the evaluated questions given the group, every question with equal weight and its
      own generations with equal weight. ``beliefs``: the same for the questions of ``beliefs_split``, given the
      value of ``group_by``; for a tier, the questions of that value that offer it.
    * ``group_key``: rank of the ``group_by`` value by the success in ``beliefs_split`` of the dearest tier recorded
      there (0: most often right); equals share a rank.
    * ``unit`` is the table's: costs and budgets count the same.
    * Level edges come from the table's metadata, else edge ``k`` is the 90 % quantile (an observed value, all
      generations of ``beliefs_split`` pooled) of tier ``k``'s tokens, raised where needed to exceed edge ``k - 1``.
    * ``row_given``: order of first appearance in the file.

    :param table: a table, or the path of one.
    :param menu: may be left out where the table has one.
    :param tiers: names to offer (default: all of the menu), in any order; cheapest first in the source.
    :param datasets: values of ``dataset`` to take questions from (default: all).
    :param split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``: the questions exams are made of.
    :param group_by: a column that is constant per ``(dataset, question_id)`` pair.
    :param missing: questions without generations for one of ``tiers``: ``"drop"`` leaves them out (of beliefs too),
        ``"mask"`` offers the tiers they have.
    :param coupling: ``"common"`` needs the metadata ``pairing`` and, for every question, the same ``sample`` numbers at
        all its tiers. Default: common where the table says ``pairing``, else independent.
    :param beliefs_split: the questions that beliefs, difficulty ranks and level edges are learned on.
    :param fractions: shares of train, validation and test (see :meth:`OutcomeTable.split`).
    :param stratify: one stratum a ``group_by`` value, in order of first appearance: task ``n`` of an exam comes from
        value ``n`` modulo their number.
    :raises OutcomeTableError: where the table cannot serve; the message says what to choose instead.
    """
    table = table if isinstance(table, OutcomeTable) else OutcomeTable.read(table)
    if missing not in ("drop", "mask"):
        raise OutcomeTableError(table.path, f"missing must be 'drop' or 'mask', got {missing!r}")
    table = table.select(menu, tiers, datasets)
    menu = table.menus[0]
    names = table.tier_names(menu)
    cells = _cells(table, names)
    offered = cells.counts > 0
    usable = np.asarray(offered.all(1) if missing == "drop" else offered.any(1))
    evaluated = _questions_of(table, cells, names, usable, "split", split, fractions)
    learned = _questions_of(table, cells, names, usable, "beliefs_split", beliefs_split, fractions)

    groups = _group(table, evaluated, offered, group_by, stratify)
    _log(table, group_by)
    beliefs, difficulty = _learn(table, cells, names, groups, learned, beliefs_split, group_by)
    features, feature_names, group_names = _published(groups, group_by, names)
    items = groups.items
    rows = cells.rows_of(items)
    outcome_count = cells.counts[items].ravel()
    first_row = table.distinct_questions().first_row[items]
    question_ids = _texts(table, "question_id", first_row)
    paired = table.pairing and _is_paired(table, cells, items, rows, question_ids, coupling)
    source = Source(
        name=f"{Path(table.path).stem}:{menu}:{split}",
        tiers=_tiers(table, menu, names, cells, learned),
        row_item=np.arange(len(items), dtype=np.int32),
        row_group=groups.of_item.astype(np.int32),
        row_given=np.argsort(np.argsort(items)).astype(np.int32),
        strata=np.searchsorted(groups.value_of_item, np.arange(len(groups.values) + 1)).astype(np.int32)
        if stratify
        else np.array([0, len(items)], np.int32),
        replacement=False,
        outcome_start=(np.cumsum(outcome_count) - outcome_count).astype(np.int32),
        outcome_count=outcome_count.astype(np.int32),
        outcomes=(cells.tokens[rows] << 1 | cells.correct[rows]).astype(np.uint32),
        num_latent=1,
        coupling="independent",
        group_features=features,
        feature_names=tuple(feature_names),
        group_weight=np.ones(len(groups.value)),
        group_key=difficulty[groups.value].astype(np.int32),
        group_names=tuple(group_names),
        published=_pooled_laws(cells, items, groups.of_item, len(groups.value)),
        beliefs=beliefs,
        paired=paired,
        synthetic=False,
        question_ids=question_ids,
        texts=_texts(table, "question", first_row),
        answers=_texts(table, "answer", first_row) if table.has_one_answer()[items].all() else (),
        unit=table.unit,
    )
    return source.with_coupling(coupling or ("common" if paired else "independent"))


class _Groups(NamedTuple):
    """The evaluated questions and their groups: values of a column x patterns of offered tiers."""

    items: Ints
    """(M,) places of the questions in the table."""
    value_of_item: Ints
    of_item: Ints
    values: list[Any]
    """Values of the column, in order of first appearance in the file."""
    value: Ints
    """(G,) place in ``values``."""
    offers: npt.NDArray[np.bool_]
    """(G, K) tiers that are offered."""
    patterns: int
    value_of_question: Ints
    """Place in ``values`` of every question of the table, -1: none of them."""


def _group(table: OutcomeTable, evaluated: Bools, offered: Bools, group_by: str, stratify: bool) -> _Groups:
    label_code, labels = table.constant_per_question(group_by)
    items = np.flatnonzero(evaluated)
    item_value, first = _as_in_file(label_code, items)
    value_labels = [labels[code] for code in label_code[first]]
    value_of_label = np.full(len(labels), -1)
    value_of_label[label_code[items]] = item_value
    if stratify:
        order = np.argsort(item_value, kind="stable")
        items, item_value = items[order], item_value[order]
    item_pattern, first = _as_in_file(np.unique(offered, axis=0, return_inverse=True)[1], items)
    patterns = offered[first]
    group_code, item_group = np.unique(item_value * len(patterns) + item_pattern, return_inverse=True)
    group_value, group_pattern = np.divmod(group_code, len(patterns))
    return _Groups(
        items, item_value, item_group, value_labels, group_value, patterns[group_pattern], len(patterns),
        value_of_label[label_code],
    )  # fmt: skip


def _learn(
    table: OutcomeTable,
    cells: _Cells,
    names: Sequence[str],
    groups: _Groups,
    learned: Bools,
    beliefs_split: Split,
    group_by: str,
) -> tuple[Laws, Ints]:
    """Beliefs of every group: the law of its value over the questions of the beliefs split, for the tiers that it offers;
    and the difficulty of every value."""
    num_tiers = len(names)
    pupils = np.flatnonzero(learned & (groups.value_of_question >= 0))
    value_laws = _pooled_laws(cells, pupils, groups.value_of_question[pupils], len(groups.values))
    lacking = np.argwhere(groups.offers & ~value_laws.offered[groups.value])
    if len(lacking):
        group, k = lacking[0]
        raise OutcomeTableError(
            table.path,
            f"beliefs cannot be learned: no question of beliefs_split={beliefs_split!r} with the value "
            f"{groups.values[groups.value[group]]!r} has tier {names[k]!r}; choose beliefs_split='all', other fractions "
            "or another group_by",
            group_by,
        )
    beliefs = laws_from_cells(
        [
            value_laws.cell(int(value), k) if offers[k] else _EMPTY
            for value, offers in zip(groups.value, groups.offers, strict=True)
            for k in range(num_tiers)
        ],
        num_tiers,
    )
    dearest = num_tiers - 1 - np.argmax(value_laws.offered[:, ::-1], axis=1)
    success = value_laws.success_probability[np.arange(len(groups.values)), dearest]
    # Rounded, since equal frequencies added up in another order differ in the last bit.
    return beliefs, np.unique(-np.round(success, 12), return_inverse=True)[1]


def _published(
    groups: _Groups, group_by: str, names: Sequence[str]
) -> tuple[npt.NDArray[np.float32], list[str], list[str]]:
    """Features of every group, their names, and the groups' names."""
    features = np.eye(len(groups.values), dtype=np.float32)[groups.value]
    feature_names = [f"{group_by}={label}" for label in groups.values]
    group_names = [str(groups.values[value]) for value in groups.value]
    if groups.patterns > 1:
        features = np.concatenate([features, groups.offers.astype(np.float32)], axis=1)
        feature_names += [f"offered={name}" for name in names]
        group_names = [
            f"{name} [{', '.join(compress(names, offers))}]"
            for name, offers in zip(group_names, groups.offers, strict=True)
        ]
    return features, feature_names, group_names


def _is_paired(
    table: OutcomeTable, cells: _Cells, items: Ints, rows: Ints, question_ids: Sequence[str], coupling: Coupling | None
) -> bool:
    """Whether every question has the same sample numbers at all its tiers, which all but independent coupling needs."""
    odd = _first_unpaired(cells.counts[items], cells.sample[rows])
    if odd is not None and coupling != "independent":
        raise OutcomeTableError(
            table.path,
            "common coupling needs the same sample numbers at all tiers of a question, which "
            f"{question_ids[odd]!r} has not; choose coupling='independent' or record the missing samples",
            "sample",
        )
    return odd is None


def _as_in_file(codes: Ints, items: Ints) -> tuple[Ints, Ints]:
    """``(values, first)`` of the questions ``items``: 0, 1, ... in the order in which their codes appear in the file, the
    same order in every split; and a question of the file for each."""
    rank, first = by_first_appearance(codes)
    used, values = np.unique(rank[items], return_inverse=True)
    return values, first[used]


class _Cells(NamedTuple):
    """Generations sorted by (question, tier, id, sample), and how many every (question, tier) has."""

    question: Ints
    tier: Ints
    tokens: Ints
    correct: npt.NDArray[np.bool_]
    sample: Ints
    """Number of the (id, sample): generations of ids with equal texts stay apart."""
    counts: Ints  # (Q, K)

    def rows_of(self, questions: Ints) -> Ints:
        """Generations of these questions, in their order."""
        per_question = self.counts.sum(1)
        start, size = (np.cumsum(per_question) - per_question)[questions], per_question[questions]
        return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())


def _cells(table: OutcomeTable, names: Sequence[str]) -> _Cells:
    question, first_row = table.distinct_questions()
    code, values = table.codes("tier")
    tier = np.array([list(names).index(value) for value in values])[code]
    sample = table.generations()
    order = np.lexsort((sample, tier, question))
    count = np.bincount(question * len(names) + tier, minlength=len(first_row) * len(names))
    return _Cells(
        question[order],
        tier[order],
        np.maximum(table.numbers("tokens")[order].astype(np.int64), 1),
        table.numbers("correct")[order],
        sample[order],
        count.reshape(len(first_row), len(names)),
    )


def _questions_of(
    table: OutcomeTable,
    cells: _Cells,
    names: Sequence[str],
    usable: npt.NDArray[np.bool_],
    argument: str,
    split: Split,
    fractions: Sequence[float],
) -> npt.NDArray[np.bool_]:
    """(Q,) usable questions of a split; an error where there are none, or none for a tier."""
    chosen = usable & table.in_split(split, fractions)[table.distinct_questions().first_row]
    if not chosen.any():
        ids = len(table.questions().first_row)
        named = f" under {ids} ids with equal texts" if ids > len(usable) else ""
        raise OutcomeTableError(
            table.path,
            f"{argument}={split!r} has no question that can serve (of {len(usable)} questions{named}, {usable.sum()} have the "
            f"tiers {list(names)}); choose {argument}='all', other fractions, fewer tiers or missing='mask'",
        )
    bare = np.flatnonzero((cells.counts[chosen] == 0).all(0))
    if len(bare):
        raise OutcomeTableError(
            table.path,
            f"no rows for tier {names[bare[0]]!r} in {argument}={split!r}; leave it out of tiers or choose another "
            f"{argument}",
            "tier",
        )
    return chosen


def _pooled_laws(cells: _Cells, questions: Ints, group: Ints, num_groups: int) -> Laws:
    """Laws given the group of each question: questions weigh the same, and so do a question's own generations."""
    num_tiers = cells.counts.shape[1]
    count = cells.counts[questions]
    law = group[:, None] * num_tiers + np.arange(num_tiers)
    askers = np.bincount(law.ravel(), (count > 0).ravel(), minlength=num_groups * num_tiers)
    with np.errstate(divide="ignore"):
        share = np.where(count > 0, 1.0 / (count * askers[law]), 0.0)

    rows = cells.rows_of(questions)
    local = np.repeat(np.arange(len(questions)), count.sum(1))
    tier, tokens, weight = cells.tier[rows], cells.tokens[rows], share[local, cells.tier[rows]]
    key = law[local, tier]
    order = np.lexsort((tokens, key))
    key, tokens, weight = key[order], tokens[order], weight[order]
    starts = np.flatnonzero((np.diff(key, prepend=-1) != 0) | (np.diff(tokens, prepend=0) != 0))
    return Laws(
        indptr=np.searchsorted(key[starts], np.arange(num_groups * num_tiers + 1)).astype(np.int64),
        cost=tokens[starts].astype(np.int32),
        prob=np.add.reduceat(weight, starts),
        success=np.add.reduceat(weight * cells.correct[rows][order], starts),
        num_tiers=num_tiers,
    )


def _first_unpaired(count: Ints, sample: npt.NDArray[np.int64]) -> int | None:
    """First question whose offered tiers do not share their sample numbers (``sample`` sorted as in ``_Cells``)."""
    most = count.max(1)
    uneven = ((count > 0) & (count != most[:, None])).any(1)
    even = np.flatnonzero(~uneven)
    start = (np.cumsum(count) - count.ravel()).reshape(count.shape)
    size = np.where(count[even] > 0, most[even, None], 0).ravel()
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    reference = start[even, np.argmax(count[even] > 0, axis=1)]
    mine = np.repeat(start[even].ravel(), size) + within
    first = np.repeat(np.repeat(reference, count.shape[1]), size) + within
    question = np.repeat(np.repeat(even, count.shape[1]), size)
    uneven[question[sample[mine] != sample[first]]] = True
    return int(uneven.argmax()) if uneven.any() else None


def _tiers(
    table: OutcomeTable, menu: str, names: Sequence[str], cells: _Cells, learned: npt.NDArray[np.bool_]
) -> tuple[Tier, ...]:
    caps, recorded = table.tier_caps.get(menu, {}), table.level_edges.get(menu)
    if recorded is not None:
        absent = [name for name in names if name not in recorded]
        if absent:
            raise OutcomeTableError(table.path, f"metadata 'level_edges' of menu {menu!r} lacks tier {absent[0]!r}")
        return tuple(Tier(name, recorded[name], caps.get(name)) for name in names)
    tiers, edge = [], 0
    rows = learned[cells.question]
    for k, name in enumerate(names):
        quantile = np.quantile(cells.tokens[rows & (cells.tier == k)], LEVEL_QUANTILE, method="inverted_cdf")
        edge = max(int(quantile), edge + 1)
        tiers.append(Tier(name, edge, caps.get(name)))
    return tuple(tiers)


def _texts(table: OutcomeTable, column: str, rows: Ints) -> tuple[str, ...]:
    return tuple(table.rows[column].take(rows).to_pylist())


def _log(table: OutcomeTable, group_by: str) -> None:
    """Say what was inferred, and what one question has several of."""
    table.log_notes()
    if shared := len(set(table.same_text.values())):
        table.log(f"{shared} texts stand under several ids or datasets: each is one question")
    meanings = {
        "question": "agents that read see the first (options shuffled, or different questions? see `roi table`)",
        "answer": "each belongs to its generation, texts of these questions cannot be graded again by one",
        group_by: "they count under the first",
    }
    for column, meaning in meanings.items():
        if count := int(table.varies(column).sum()):
            table.log(f"{count} questions have several values of {column!r}: {meaning}")
