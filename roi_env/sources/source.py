"""Finite integer sources: the laws that exams are drawn from.

A :class:`Source` holds two finite tables of integers.

* *Task rows*: every row is equally likely and names a hidden *item* (a difficulty class, or one question) and a
  published *group* (what an agent may see: a signal value, a dataset, a weight).
* *Outcomes*: for every (item, tier) a list of equally likely ``(tokens, correct)`` pairs.

Synthetic families build these tables once (``generators``); a recorded table is the same thing made of real
generations (``outcomes``). Sampling is a gather and the planners' laws are the same table counted, so what is sampled
and what is solved agree exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from roi_env.sources.units import Unit

NOT_OFFERED = np.iinfo(np.int32).max
"""Minimum cost (tokens) published for a tier that a task does not offer."""

Coupling = Literal["independent", "common"]


@dataclass(frozen=True)
class Tier:
    """One way to think about a task. ``level_edge``: most tokens that still count as this tier's announced level;
    ``cap``: tokens at which generation of this tier is cut when caps are enforced (None: no cap known)."""

    name: str
    level_edge: int
    cap: int | None = None


@dataclass(frozen=True)
class Laws:
    """Laws of the cost and correctness of one attempt: L laws x K tiers, compressed sparse rows.

    Cell ``(l, k)`` owns entries ``indptr[l * K + k] : indptr[l * K + k + 1]`` of the three arrays: ``cost`` (tokens,
    int32, strictly increasing inside a cell), ``prob`` = P(cost) and ``success`` = P(cost and correct) (float64).
    ``prob`` sums to one in every offered cell; an empty cell is a tier that is not offered.
    """

    indptr: npt.NDArray[np.int64]
    cost: npt.NDArray[np.int32]
    prob: npt.NDArray[np.float64]
    success: npt.NDArray[np.float64]
    num_tiers: int

    @property
    def num_laws(self) -> int:
        """Number of laws L."""
        return (len(self.indptr) - 1) // self.num_tiers

    def _reduce(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = np.concatenate([[0.0], np.cumsum(values)])
        return (total[self.indptr[1:]] - total[self.indptr[:-1]]).reshape(self.num_laws, self.num_tiers)

    @cached_property
    def offered(self) -> npt.NDArray[np.bool_]:
        """(L, K) bool: whether the tier is offered."""
        return (np.diff(self.indptr) > 0).reshape(self.num_laws, self.num_tiers)

    @cached_property
    def success_probability(self) -> npt.NDArray[np.float64]:
        """(L, K) probability of a correct answer; 0 where not offered."""
        return self._reduce(self.success)

    @cached_property
    def expected_cost(self) -> npt.NDArray[np.float64]:
        """(L, K) expected tokens; 0 where not offered."""
        return self._reduce(self.prob * self.cost)

    @cached_property
    def min_cost(self) -> npt.NDArray[np.int32]:
        """(L, K) int32 smallest possible tokens; ``NOT_OFFERED`` where not offered."""
        minimum = np.full(self.num_laws * self.num_tiers, NOT_OFFERED, np.int32)
        filled = np.diff(self.indptr) > 0
        minimum[filled] = self.cost[self.indptr[:-1][filled]]
        return minimum.reshape(self.num_laws, self.num_tiers)

    def cell(
        self, law: int, tier: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """``(cost, prob, success)`` of one law and tier (0-based)."""
        start, stop = self.indptr[law * self.num_tiers + tier : law * self.num_tiers + tier + 2]
        return self.cost[start:stop], self.prob[start:stop], self.success[start:stop]

    def mixture(self, members: Sequence[npt.NDArray[np.int64]], weights: Sequence[npt.NDArray[np.float64]]) -> Laws:
        """Laws that are mixtures of these: new law ``g`` mixes laws ``members[g]`` with ``weights[g]`` (sum to one).

        A tier is offered by a mixture only where all its members offer it.
        """
        cells = []
        for laws, shares in zip(members, weights, strict=True):
            for tier in range(self.num_tiers):
                if not self.offered[laws, tier].all():
                    cells.append((np.empty(0, np.int32), np.empty(0), np.empty(0)))
                    continue
                start, stop = (self.indptr[laws * self.num_tiers + tier + more] for more in (0, 1))
                at, share = spans(start, stop - start), np.repeat(shares, stop - start)
                cells.append(_merge(self.cost[at], share * self.prob[at], share * self.success[at]))
        return laws_from_cells(cells, self.num_tiers)


def spans(start: npt.NDArray[np.integer], size: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Numbers ``start .. start + size - 1`` of every span, one after the other."""
    ends = np.cumsum(size, dtype=np.int64)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start.astype(np.int64) - ends + size, size)


def _merge(
    cost: npt.NDArray[np.int32], prob: npt.NDArray[np.float64], success: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    unique, inverse = np.unique(cost, return_inverse=True)
    together = np.bincount(inverse, prob).astype(np.float64)
    return unique.astype(np.int32), together, np.bincount(inverse, success).astype(np.float64)


def laws_from_cells(
    cells: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.float64]]], num_tiers: int
) -> Laws:
    """Pack per-(law, tier) ``(cost, prob, success)`` arrays, law-major, into :class:`Laws`."""
    indptr = np.concatenate([[0], np.cumsum([len(c[0]) for c in cells])]).astype(np.int64)
    cost, prob, success = (np.concatenate([c[j] for c in cells]) if cells else np.empty(0) for j in range(3))
    return Laws(indptr, cost.astype(np.int32), prob.astype(np.float64), success.astype(np.float64), num_tiers)


class SourceTables(NamedTuple):
    """The arrays that compiled code reads; pairs that are read together lie together."""

    rows: npt.NDArray[np.int32]
    """(R, 2) hidden item and published group of every task row."""
    row_given: npt.NDArray[np.int32]
    group_key: npt.NDArray[np.int32]
    group_weight: npt.NDArray[np.float64]
    strata: npt.NDArray[np.int32]
    cells: npt.NDArray[np.int32]
    """(L * M * K, 2) first outcome and number of outcomes."""
    outcomes: npt.NDArray[np.uint32]
    """The outcomes, then one that costs ``NOT_OFFERED``: where the cells of tiers that are not offered point."""


@dataclass(frozen=True)
class Source:
    """A finite source of tasks.

    :param name: shown in reports.
    :param tiers: K tiers, cheapest first; tier ``k`` (0-based) is action ``k + 1``.
    :param row_item: (R,) int32 hidden item of every task row; rows of a stratum are equally likely.
    :param row_group: (R,) int32 published group of every task row.
    :param row_given: (R,) int32 rank >= 0 of the row for ``order="given"``; ties keep the order of drawing.
    :param strata: (S + 1,) int32 row offsets: the task drawn at slot ``n`` comes from stratum ``n % S``.
    :param replacement: whether rows may repeat inside an exam (synthetic) or not (questions).
    :param outcome_start: (L * M * K,) int32 first outcome of every (latent, item, tier), item count M.
    :param outcome_count: (L * M * K,) int32 number of equally likely outcomes; 0: tier not offered.
    :param outcomes: uint32, ``tokens << 1 | correct``.
    :param num_latent: L equally likely exam-level latent states (1: none); they shift the outcome laws only.
    :param coupling: ``"common"``: one draw per task picks the outcome of every tier (one thought, cut at different
        lengths); ``"independent"``: one draw per tier.
    :param group_features: (G, F) float32, what an observation shows of a task.
    :param feature_names: F names.
    :param group_weight: (G,) float64 reward weight of a task.
    :param group_key: (G,) int32 published rank for easy_first (ascending) and hard_first (descending).
    :param group_names: G names for reports.
    :param published: laws given the group, law ``latent * G + group``: exact for this source.
    :param beliefs: G laws an agent with ``beliefs="published"`` is told; differs from ``published`` where they were
        learned on a train split.
    :param guessed: whether ``beliefs`` are mere guesses that nobody has measured: an agent that learns starts wide.
    :param one_request: K caps of tiers that are one request cut at different lengths, 0 for other tiers; empty: there are none.
        An answer of t tokens would then have been cut by every smaller cap.
    :param paired: whether common coupling has a meaning for these outcomes.
    :param question_ids: item -> question id (recorded sources).
    :param texts: item -> question text (recorded sources).
    :param answers: item -> reference answer (recorded sources); no agent sees it. Empty where a question has several: they
        belong to its generations, whose options were shuffled.
    :param unit: what all costs count: tokens, or micro-dollars.
    """

    name: str
    tiers: tuple[Tier, ...]
    row_item: npt.NDArray[np.int32]
    row_group: npt.NDArray[np.int32]
    row_given: npt.NDArray[np.int32]
    strata: npt.NDArray[np.int32]
    replacement: bool
    outcome_start: npt.NDArray[np.int32]
    outcome_count: npt.NDArray[np.int32]
    outcomes: npt.NDArray[np.uint32]
    num_latent: int
    coupling: Coupling
    group_features: npt.NDArray[np.float32]
    feature_names: tuple[str, ...]
    group_weight: npt.NDArray[np.float64]
    group_key: npt.NDArray[np.int32]
    group_names: tuple[str, ...]
    published: Laws
    beliefs: Laws
    paired: bool
    synthetic: bool
    question_ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    guessed: bool = False
    one_request: tuple[int, ...] = ()
    unit: Unit = "tokens"

    @property
    def num_tiers(self) -> int:
        """Number of tiers K (skip excluded)."""
        return len(self.tiers)

    @property
    def num_items(self) -> int:
        """Number of hidden items M."""
        return len(self.outcome_count) // (self.num_latent * self.num_tiers)

    @property
    def num_groups(self) -> int:
        """Number of published groups G."""
        return len(self.group_weight)

    @property
    def num_strata(self) -> int:
        """Number of strata S."""
        return len(self.strata) - 1

    @cached_property
    def level_edges(self) -> npt.NDArray[np.int64]:
        """(K,) int64 upper token edges of the announced levels."""
        return np.array([tier.level_edge for tier in self.tiers], np.int64)

    @cached_property
    def tables(self) -> SourceTables:
        """The arrays for compiled code: copies, for an array that cannot be written to (from Ray's store) is of another
        type, and every type is compiled apart.
        """
        offered = self.outcome_count > 0
        start = np.where(offered, self.outcome_start, len(self.outcomes))
        count = np.where(offered, self.outcome_count, 1)
        never = np.array([np.uint32(NOT_OFFERED) << np.uint32(1)])
        return SourceTables(
            np.stack([self.row_item, self.row_group], 1).astype(np.int32),
            np.array(self.row_given, np.int32),
            np.array(self.group_key, np.int32),
            np.array(self.group_weight, np.float64),
            np.array(self.strata, np.int32),
            np.stack([start, count], 1).astype(np.int32),
            np.concatenate([self.outcomes, never]).astype(np.uint32),
        )

    @cached_property
    def laws(self) -> Laws:
        """True laws, law ``latent * M + item``: what nature draws from."""
        return laws_from_outcomes(self.outcome_start, self.outcome_count, self.outcomes, self.num_tiers)

    @cached_property
    def row_probability(self) -> npt.NDArray[np.float64]:
        """(R,) probability that a task drawn for a uniformly chosen stratum is this row."""
        sizes = np.diff(self.strata)
        return np.repeat(1.0 / (sizes * self.num_strata), sizes)

    @cached_property
    def group_probability(self) -> npt.NDArray[np.float64]:
        """(S, G) probability of every group in every stratum."""
        return np.stack(
            [
                np.bincount(self.row_group[a:b], minlength=self.num_groups) / (b - a)
                for a, b in zip(self.strata[:-1], self.strata[1:], strict=True)
            ]
        )

    @cached_property
    def given_key(self) -> npt.NDArray[np.int32]:
        """(G,) published rank of the groups under ``order="given"``: groups whose ranges of ``row_given`` overlap are
        one block. Where a row lies inside its block is not published."""
        first = np.full(self.num_groups, np.iinfo(np.int64).max)
        last = np.full(self.num_groups, -1, np.int64)
        np.minimum.at(first, self.row_group, self.row_given)
        np.maximum.at(last, self.row_group, self.row_given)
        key, block, end = np.zeros(self.num_groups, np.int32), -1, -1
        for group in np.argsort(first, kind="stable"):
            if first[group] > end:
                block += 1
            end = max(end, int(last[group]))
            key[group] = block
        return key

    @cached_property
    def mean_top_cost(self) -> float:
        """Mean tokens of the dearest tier over the source: the unit of fractional budgets."""
        rows = np.bincount(self.row_group, self.row_probability, minlength=self.num_groups)
        cost = self.published.expected_cost.reshape(self.num_latent, self.num_groups, self.num_tiers).mean(0)
        offered = self.published.offered[: self.num_groups]
        top = np.where(offered[:, -1], cost[:, -1], cost.max(1))
        return float(rows @ top)

    def with_coupling(self, coupling: Coupling) -> Source:
        """The same source under another coupling between tiers.

        :raises ValueError: for common coupling where outcomes are not paired across tiers.
        """
        if coupling not in ("independent", "common"):
            raise ValueError(f"coupling must be 'independent' or 'common', got {coupling!r}")
        if coupling == "common" and not self.paired:
            raise ValueError(
                f"source {self.name!r}: common coupling needs outcomes that belong to one thought across tiers; "
                "for a recorded table set the file metadata key 'pairing' to true, else use coupling='independent'"
            )
        return dataclasses.replace(self, coupling=coupling)

    def with_tiers(self, names: Sequence[str]) -> Source:
        """The same source with only the named tiers, in the source's own order.

        :raises ValueError: for an unknown or repeated name, or none.
        """
        known = [tier.name for tier in self.tiers]
        if not names or len(set(names)) != len(names) or not set(names) <= set(known):
            raise ValueError(f"tiers must be distinct names out of {known}, got {list(names)}")
        keep = np.array([k for k, name in enumerate(known) if name in set(names)])
        cells = self.num_latent * self.num_items
        return dataclasses.replace(
            self,
            tiers=tuple(self.tiers[k] for k in keep),
            outcome_start=np.ascontiguousarray(self.outcome_start.reshape(cells, -1)[:, keep]).ravel(),
            outcome_count=np.ascontiguousarray(self.outcome_count.reshape(cells, -1)[:, keep]).ravel(),
            published=_select_tiers(self.published, keep),
            beliefs=_select_tiers(self.beliefs, keep),
        )

    def with_caps_enforced(self) -> Source:
        """The same source where an attempt is cut at its tier's cap: it costs the cap and earns nothing.

        :raises ValueError: where no tier has a cap.
        """
        caps = [tier.cap for tier in self.tiers]
        if all(cap is None for cap in caps):
            raise ValueError(f"source {self.name!r}: no tier has a cap to enforce; use enforcement='budget'")
        limit = np.array([np.iinfo(np.int32).max if cap is None else cap for cap in caps], np.int64)
        outcomes, start = [], np.zeros_like(self.outcome_start)
        offset = 0
        for cell, (first, count) in enumerate(zip(self.outcome_start, self.outcome_count, strict=True)):
            part = self.outcomes[first : first + count].astype(np.int64)
            cap = limit[cell % self.num_tiers]
            tokens, correct = part >> 1, part & 1
            outcomes.append(np.minimum(tokens, cap) << 1 | np.where(tokens > cap, 0, correct))
            start[cell] = offset
            offset += int(count)
        return dataclasses.replace(
            self,
            outcomes=np.concatenate(outcomes).astype(np.uint32),
            outcome_start=start,
            published=_cap_laws(self.published, limit),
            beliefs=_cap_laws(self.beliefs, limit),
        )


def _select_tiers(laws: Laws, keep: npt.NDArray[np.int64]) -> Laws:
    return laws_from_cells([laws.cell(law, int(k)) for law in range(laws.num_laws) for k in keep], len(keep))


def _cap_laws(laws: Laws, limit: npt.NDArray[np.int64]) -> Laws:
    cells = []
    for law in range(laws.num_laws):
        for tier in range(laws.num_tiers):
            cost, prob, success = laws.cell(law, tier)
            cells.append(
                _merge(np.minimum(cost, limit[tier]).astype(np.int32), prob, np.where(cost > limit[tier], 0.0, success))
            )
    return laws_from_cells(cells, laws.num_tiers)


def laws_from_outcomes(
    start: npt.NDArray[np.int32], count: npt.NDArray[np.int32], outcomes: npt.NDArray[np.uint32], num_tiers: int
) -> Laws:
    """Count equally likely packed outcomes into :class:`Laws` (one cell per start/count entry)."""
    at = spans(start, count)
    cell = np.repeat(np.arange(len(count)), count)
    cost, right = (outcomes[at] >> 1).astype(np.int64), outcomes[at] & 1
    # One key a cell and cost, in their order.
    width = int(cost.max(initial=0)) + 1
    keys, inverse = np.unique(cell * width + cost, return_inverse=True)
    share = (1.0 / np.maximum(count, 1))[cell]
    indptr = np.searchsorted(keys, np.arange(len(count) + 1) * width).astype(np.int64)
    prob, success = (np.bincount(inverse, one, len(keys)).astype(np.float64) for one in (share, share * right))
    return Laws(indptr, (keys % width).astype(np.int32), prob, success, num_tiers)


def published_laws(
    laws: Laws, row_item: npt.NDArray[np.int32], row_group: npt.NDArray[np.int32], num_groups: int, num_latent: int
) -> Laws:
    """Mixture laws given the published group, law ``latent * G + group``: exact, rows being equally likely."""
    num_items = laws.num_laws // num_latent
    members, weights = [], []
    for latent in range(num_latent):
        for group in range(num_groups):
            items, counts = np.unique(row_item[row_group == group], return_counts=True)
            members.append(items.astype(np.int64) + latent * num_items)
            weights.append(counts / counts.sum())
    return laws.mixture(members, weights)
