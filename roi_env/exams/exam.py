"""Exams as arrays: drawing the named exams of a specification.

``(source, seed, exam_id)`` fixes the tasks of an exam, ``replicate`` redraws outcomes only. Order, budget, preview,
beliefs and reward change neither, so one exam can be compared across all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env.exams import random
from roi_env.exams.config import ExamSpec
from roi_env.sources.source import SourceTables


def new_slots(size: int, num_tasks: int) -> npt.NDArray[np.int32]:
    """(size, num_tasks) int32 slots in the order of drawing."""
    return np.tile(np.arange(num_tasks, dtype=np.int32), (size, 1))


@njit(cache=True)
def _draw_independent(key: np.uint64, size: np.uint64, rows: npt.NDArray[np.int32], exam: int) -> None:
    """Fill ``rows[exam]`` with independent draws below ``size``; a function of its own, so that it is vectorised."""
    for n in range(rows.shape[1]):
        rows[exam, n] = random.below(random.draw(key, np.uint64(n)), size)


@njit(cache=True)
def draw_tasks(
    seed: np.uint64,
    exam_ids: npt.NDArray[np.int64],
    count: int,
    order: int,
    replacement: bool,
    tables: SourceTables,
    rows: npt.NDArray[np.int32],
    slots: npt.NDArray[np.int32],
    keys: npt.NDArray[np.int64],
) -> None:
    """Fill ``rows[e]`` and ``slots[e]`` (N,) int32 with the tasks of exam ``exam_ids[e]`` in presentation order, e < count.

    ``slots`` comes from :func:`new_slots`: it holds the order of drawing and is written only where that changes. A slot
    is part of a task's identity, whatever the order of presentation. ``keys`` (N,) int64 is room to sort in.
    """
    if replacement and len(tables.strata) == 2 and order == 0:
        # Exchangeable draws: the order of drawing is a random order already.
        size = np.uint64(tables.strata[1])
        for e in range(count):
            key = random.exam_key(seed, exam_ids[e])
            _draw_independent(random.draw(key, random.TASKS), size, rows, e)
        return
    for e in range(count):
        _draw_in_order(seed, e, exam_ids[e], order, replacement, tables, rows, slots, keys)


@njit(cache=True)
def _draw_in_order(
    seed: np.uint64,
    exam: int,
    exam_id: np.int64,
    order: int,
    replacement: bool,
    tables: SourceTables,
    rows: npt.NDArray[np.int32],
    slots: npt.NDArray[np.int32],
    keys: npt.NDArray[np.int64],
) -> None:
    num_tasks = rows.shape[1]
    num_strata = len(tables.strata) - 1
    key = random.exam_key(seed, exam_id)
    task_key = random.draw(key, random.TASKS)
    order_key = random.draw(key, random.ORDER)
    for n in range(num_tasks):
        stratum = n % num_strata
        first = tables.strata[stratum]
        size = tables.strata[stratum + 1] - first
        number = random.draw(task_key, np.uint64(n))
        if replacement:
            row = first + np.int64(random.below(number, np.uint64(size)))
        else:
            # Uniform over the rows of the stratum not taken yet: take the r-th free one. ``keys`` holds the taken
            # rows in ascending order, strata being contiguous.
            taken = n // num_strata
            row = first + np.int64(random.below(number, np.uint64(size - taken)))
            place = 0
            for i in range(n):
                if keys[i] < first:
                    place += 1
                elif keys[i] < first + size and keys[i] <= row:
                    row += 1
                    place += 1
            for i in range(n, place, -1):
                keys[i] = keys[i - 1]
            keys[place] = row
        rows[exam, n] = row
        slots[exam, n] = n
    if order == 0 and num_strata == 1:
        return
    for n in range(num_tasks):
        row = rows[exam, n]
        if order == 0:
            rank = np.int64(random.draw(order_key, np.uint64(n)) >> np.uint64(1))
        elif order == 1:
            rank = np.int64(tables.group_key[tables.rows[row, 1]])
        elif order == 2:
            rank = -np.int64(tables.group_key[tables.rows[row, 1]])
        else:
            rank = np.int64(tables.row_given[row])
        i = n
        while i > 0 and keys[i - 1] > rank:
            keys[i] = keys[i - 1]
            rows[exam, i] = rows[exam, i - 1]
            slots[exam, i] = slots[exam, i - 1]
            i -= 1
        keys[i] = rank
        rows[exam, i] = row
        slots[exam, i] = n


@njit(cache=True, inline="always")
def draw_latent(seed: np.uint64, exam_id: np.int64, num_latent: int) -> np.int64:
    """Exam-level latent state, uniform on ``0..num_latent-1``."""
    number = random.draw(random.draw(random.exam_key(seed, exam_id), random.LATENT), np.uint64(0))
    return np.int64(random.below(number, np.uint64(num_latent)))


@njit(cache=True, inline="always")
def outcome_number(key: np.uint64, slot: np.uint64, tier: np.uint64, num_tiers: np.uint64, common: bool) -> np.uint64:
    """The random number behind the outcome of ``tier`` (0-based) for the task in ``slot``."""
    return random.draw(key, slot * num_tiers + (np.uint64(0) if common else tier))


@njit(cache=True, inline="always")
def place_outcome(number: np.uint64, cell: np.uint64, cells: npt.NDArray[np.int32]) -> np.uint64:
    """Where ``tables.outcomes`` holds that outcome, given the high half of its number.

    ``cell`` = law * K + tier. A tier that is not offered costs ``NOT_OFFERED`` tokens: choosing it overspends.
    """
    return np.uint64(cells[cell, np.uint64(0)]) + random.scaled(number, np.uint64(cells[cell, np.uint64(1)]))


@njit(cache=True)
def _draw_batch(
    seed: np.uint64,
    exam_ids: npt.NDArray[np.int64],
    num_tasks: int,
    order: int,
    replacement: bool,
    num_latent: int,
    tables: SourceTables,
    slots: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    size = len(exam_ids)
    rows = np.empty((size, num_tasks), np.int32)
    latent = np.empty(size, np.int32)
    draw_tasks(seed, exam_ids, size, order, replacement, tables, rows, slots, np.empty(num_tasks, np.int64))
    for e in range(size):
        latent[e] = draw_latent(seed, exam_ids[e], num_latent)
    return rows, latent


@njit(cache=True)
def _draw_outcomes(
    seed: np.uint64,
    exam_ids: npt.NDArray[np.int64],
    replicates: npt.NDArray[np.int64],
    slots: npt.NDArray[np.int32],
    laws: npt.NDArray[np.int64],
    num_tiers: int,
    common: bool,
    tables: SourceTables,
) -> npt.NDArray[np.uint32]:
    size, num_tasks = slots.shape
    packed = np.empty((size, num_tasks, num_tiers), np.uint32)
    for e in range(size):
        key = random.outcome_key(seed, exam_ids[e], replicates[e])
        for n in range(num_tasks):
            for k in range(np.uint64(num_tiers)):
                cell = np.uint64(laws[e, n] * num_tiers) + k
                number = outcome_number(key, np.uint64(slots[e, n]), k, np.uint64(num_tiers), common)
                packed[e, n, k] = tables.outcomes[place_outcome(number >> np.uint64(32), cell, tables.cells)]
    return packed


@dataclass(frozen=True)
class ExamBatch:
    """E drawn exams of N tasks, in presentation order.

    :param spec: the specification they were drawn from.
    :param seed: identity's seed.
    :param exam_ids: (E,) int64.
    :param replicates: (E,) int64.
    :param rows: (E, N) int32 task rows of the source (hidden).
    :param slots: (E, N) int32 order of drawing (identity of a task inside its exam).
    :param latent: (E,) int32 exam-level latent state (hidden).
    """

    spec: ExamSpec
    seed: int
    exam_ids: npt.NDArray[np.int64]
    replicates: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    latent: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.exam_ids)

    @property
    def items(self) -> npt.NDArray[np.int32]:
        """(E, N) int32 hidden items (difficulty classes or questions)."""
        return self.spec.source.row_item[self.rows]

    @cached_property
    def groups(self) -> npt.NDArray[np.int32]:
        """(E, N) int32 published groups."""
        return self.spec.source.row_group[self.rows]

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """(E, N) float64 reward weights."""
        return self.spec.source.group_weight[self.groups]

    @property
    def law_index(self) -> npt.NDArray[np.int64]:
        """(E, N) int64 index into ``source.laws``: the laws nature draws from."""
        return self.items.astype(np.int64) + self.latent[:, None].astype(np.int64) * self.spec.source.num_items

    def take(self, index: npt.NDArray[Any] | slice) -> ExamBatch:
        """The chosen exams, as a batch."""
        return dataclasses.replace(
            self,
            exam_ids=self.exam_ids[index],
            replicates=self.replicates[index],
            rows=self.rows[index],
            slots=self.slots[index],
            latent=self.latent[index],
        )

    def repeated(self, times: int) -> ExamBatch:
        """Every exam ``times`` times in a row, as replicates r, r + 1, .. of its own replicate r."""
        many = self.take(np.repeat(np.arange(len(self)), times))
        return dataclasses.replace(many, replicates=many.replicates + np.tile(np.arange(times), len(self)))

    def packed_outcomes(self, replicates: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.uint32]:
        """Potential outcomes (E, N, K) uint32: 2 x tokens (decision cost excluded), plus 1 where correct.

        :param replicates: (E,) int64, instead of the batch's own.
        """
        source = self.spec.source
        return _draw_outcomes(
            np.uint64(self.seed),
            self.exam_ids,
            self.replicates if replicates is None else np.asarray(replicates, np.int64),
            self.slots,
            self.law_index,
            source.num_tiers,
            source.coupling == "common",
            source.tables,
        )

    def outcomes(
        self, replicates: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """:meth:`packed_outcomes` apart: ``(tokens (E, N, K) int32, correct (E, N, K) bool)``."""
        packed = self.packed_outcomes(replicates)
        return (packed >> np.uint32(1)).astype(np.int32), (packed & np.uint32(1)).astype(bool)


LARGEST_SEED = 2**64 - 1


def check_seed(seed: int) -> int:
    """Return ``seed`` if it is an integer in ``[0, 2**64)``.

    :raises ValueError: otherwise.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    return int(seed)


def check_options(options: Any) -> None:
    """Check the names of the options of an environment's reset.

    :raises ValueError: for anything else than a dictionary of known ones.
    """
    if not isinstance(options, Mapping) or set(options) - {"exam_ids", "replicates"}:
        raise ValueError(f"reset options are a dictionary of 'exam_ids' and 'replicates', got {options!r:.200}")


LARGEST_NUMBER = 2**62 - 1
"""Largest exam id and replicate that an environment begins with: those that follow must be 64-bit integers too."""


def exam_numbers(name: str, values: Any, size: int, largest: int = LARGEST_NUMBER) -> npt.NDArray[np.int64]:
    """Validate exam ids or replicates: ``size`` integers in ``0..largest`` (a scalar is repeated).

    :raises ValueError: naming the argument.
    """
    array = as_integers(values)
    if array is None or array.ndim > 1 or (array.size and (array.min() < 0 or array.max() > largest)):
        raise ValueError(
            f"{name} must be integers in [0, 2**{(largest + 1).bit_length() - 1}), one or of shape ({size},), "
            f"got {values!r}"
        )
    if array.ndim == 1 and len(array) != size:
        raise ValueError(f"{name} must have one entry for each of the {size} environments, got {len(array)}")
    return np.array(np.broadcast_to(array, (size,)), np.int64)


def as_integers(values: Any) -> npt.NDArray[np.integer[Any]] | None:
    """``values`` as an array of integers; None if they are anything else: truth values, text and 1.0 are not."""
    if isinstance(values, (list, tuple)) and any(isinstance(value, (bool, np.bool_)) for value in values):
        return None  # NumPy would make integers of them beside others
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        return None
    return array if array.dtype.kind in "iu" else None


def draw_exams(spec: ExamSpec, seed: int, exam_ids: Any, replicates: Any = 0) -> ExamBatch:
    """Draw the named exams.

    :param spec: kind of exam.
    :param seed: identity's seed, in ``[0, 2**64)``.
    :param exam_ids: (E,) integers in ``[0, 2**63)``.
    :param replicates: (E,) integers in ``[0, 2**63)``, or one for all.
    :raises ValueError: for a bad seed, id or replicate.
    """
    most = 2**63 - 1
    ids = exam_numbers("exam_ids", exam_ids, np.size(exam_ids), most)
    replicates = exam_numbers("replicates", replicates, len(ids), most)
    seed = check_seed(seed)
    slots = new_slots(len(ids), spec.num_tasks)
    rows, latent = _draw_batch(
        np.uint64(seed),
        ids,
        spec.num_tasks,
        spec.order_code,
        spec.source.replacement,
        spec.source.num_latent,
        spec.source.tables,
        slots,
    )
    return ExamBatch(spec, seed, ids, replicates, rows, slots, latent)
