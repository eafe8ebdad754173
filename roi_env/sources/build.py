"""A :class:`~roi_env.sources.source.Source` of one's own from plain lists or a data frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from roi_env.sources.source import Coupling, Source, Tier, laws_from_outcomes, published_laws

_MOST_TOKENS = 2**30


@dataclass(frozen=True)
class Group:
    """What is published about tasks that look alike.

    :param name: shown in reports.
    :param share: how often such a task comes, relative to other groups (an integer >= 1).
    :param weight: reward of a right answer, > 0.
    :param features: what an observation shows of the task; the same names in every group. Default: one column a group.
    """

    name: str
    share: int = 1
    weight: float = 1.0
    features: Mapping[str, float] = field(default_factory=dict)


def make_source(
    name: str,
    tiers: Sequence[str | Tier],
    groups: Sequence[Group | str],
    outcomes: Iterable[Mapping[str, Any]] | Any,
    *,
    paired: bool = False,
    coupling: Coupling = "independent",
) -> Source:
    """Build a source from outcomes.

    A row of ``outcomes`` is one outcome of a group's tasks at one tier: ``group`` and ``tier`` (names), ``tokens`` (integer >= 1),
    ``correct`` (bool), and optionally ``count`` (how many equally likely outcomes the row stands for, default 1) and ``item``. Items are hidden
    kinds of task inside a group, equally likely: an agent cannot tell them apart. A tier without rows is not offered.

    :param name: shown in reports.
    :param tiers: K names, cheapest first, or :class:`~roi_env.sources.source.Tier` objects. The announced level of a named tier ends at its
        largest outcome.
    :param groups: in their published order (easy first); names alone stand for :class:`Group` with its defaults.
    :param outcomes: rows as mappings, or a data frame with these columns.
    :param paired: whether the i-th outcomes of an item's tiers come from one thought, so that ``coupling="common"`` has a meaning.
    :raises ValueError: naming the row and the field, what was expected and what was found.
    """
    kinds = [Group(group) if isinstance(group, str) else group for group in groups]
    names = [group.name for group in kinds]
    tier_names = [tier if isinstance(tier, str) else tier.name for tier in tiers]
    for what, given in (("groups", names), ("tiers", tier_names)):
        if not given or len(set(given)) != len(given):
            raise ValueError(f"{what} must be distinct names, at least one, got {given}")
    for group in kinds:
        if isinstance(group.share, bool) or not isinstance(group.share, int) or group.share < 1:
            raise ValueError(f"group {group.name!r}: share must be an integer >= 1, got {group.share!r}")
        if not np.isfinite(group.weight) or group.weight <= 0:
            raise ValueError(f"group {group.name!r}: weight must be a number > 0, got {group.weight!r}")
        if list(group.features) != list(kinds[0].features):
            raise ValueError(
                f"group {group.name!r} has features {list(group.features)}, {names[0]!r} {list(kinds[0].features)}"
            )
    rows = outcomes.to_dict("records") if hasattr(outcomes, "to_dict") else list(outcomes)
    cells: dict[tuple[int, str], list[list[int]]] = {}
    for number, row in enumerate(rows):
        at, tier, packed, count = _outcome(number, row, names, tier_names)
        cell = cells.setdefault((at, str(row.get("item", ""))), [[] for _ in tier_names])
        cell[tier] += [packed] * count
    if missing := [names[g] for g in range(len(names)) if not any(at == g for at, _ in cells)]:
        raise ValueError(f"groups {missing} have no outcomes")
    items = sorted(cells)  # by group: the rows of a group lie together
    lists = [cells[item][k] for item in items for k in range(len(tier_names))]
    packed_all = np.array([one for part in lists for one in part], np.uint32)
    counts = np.array([len(part) for part in lists], np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    if paired and any(len({len(part) for part in cells[item] if part}) > 1 for item in items):
        raise ValueError("paired outcomes: every offered tier of an item must have equally many")
    row_item, row_group = _task_rows(items, kinds)
    laws = laws_from_outcomes(starts, counts, packed_all, len(tier_names))
    published = published_laws(laws, row_item, row_group, len(kinds), 1)
    features = kinds[0].features or {f"is {group}": 0.0 for group in names}
    shown = [list(group.features.values()) for group in kinds] if kinds[0].features else np.eye(len(kinds)).tolist()
    edges = [
        int(max((one >> 1 for part in lists[k :: len(tier_names)] for one in part), default=1))
        for k in range(len(tier_names))
    ]
    return Source(
        name=name,
        tiers=tuple(
            Tier(tier, edge) if isinstance(tier, str) else tier for tier, edge in zip(tiers, edges, strict=True)
        ),
        row_item=row_item,
        row_group=row_group,
        row_given=np.zeros(len(row_item), np.int32),
        strata=np.array([0, len(row_item)], np.int32),
        replacement=True,
        outcome_start=starts,
        outcome_count=counts,
        outcomes=packed_all,
        num_latent=1,
        coupling="independent",
        group_features=np.array(shown, np.float32),
        feature_names=tuple(features),
        group_weight=np.array([group.weight for group in kinds]),
        group_key=np.arange(len(kinds), dtype=np.int32),
        group_names=tuple(names),
        published=published,
        beliefs=published,
        paired=paired,
        synthetic=True,
    ).with_coupling(coupling)


def _outcome(number: int, row: Mapping[str, Any], groups: list[str], tiers: list[str]) -> tuple[int, int, int, int]:
    """(group, tier, packed outcome, count) of a row."""
    if missing := [field for field in ("group", "tier", "tokens", "correct") if field not in row]:
        raise ValueError(f"outcomes, row {number}: {missing} are missing; it has {list(row)}")
    for field_, known in (("group", groups), ("tier", tiers)):
        if row[field_] not in known:
            raise ValueError(f"outcomes, row {number}: {field_} must be one of {known}, got {row[field_]!r}")
    tokens, count, correct = row["tokens"], row.get("count", 1), row["correct"]
    for field_, value, most in (("tokens", tokens, _MOST_TOKENS), ("count", count, 2**20)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))
        if not whole or not 1 <= value <= most:
            raise ValueError(f"outcomes, row {number}: {field_} must be an integer in 1..{most}, got {value!r}")
    if correct not in (0, 1):
        raise ValueError(f"outcomes, row {number}: correct must be True or False, got {correct!r}")
    return groups.index(row["group"]), tiers.index(row["tier"]), int(tokens) << 1 | int(correct), int(count)


def _task_rows(items: list[tuple[int, str]], groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """(R,) int32 hidden item and published group of equally likely task rows: groups by their shares, items of one equally likely."""
    sizes = np.bincount([group for group, _ in items])
    common = int(np.lcm.reduce(sizes))
    repeats = [groups[group].share * common // int(sizes[group]) for group, _ in items]
    rows = np.repeat(np.arange(len(items), dtype=np.int32), np.array(repeats) // np.gcd.reduce(repeats))
    return rows, np.array([items[row][0] for row in rows], np.int32)
