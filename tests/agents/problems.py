"""Small random problems for tests of agents."""

from __future__ import annotations

import numpy as np

from roi_env.exams.config import ORDERS, ExamSpec, exam_spec
from roi_env.sources.source import Source, Tier, laws_from_outcomes, published_laws


def random_source(rng: np.random.Generator, max_tiers: int = 4) -> Source:
    """Up to 4 groups of 1-2 items, up to 4 outcomes of 1-12 tokens a cell; tiers may be missing for whole groups."""
    num_tiers = int(rng.integers(1, max_tiers + 1))
    num_groups = int(rng.integers(1, 5))
    num_strata = int(rng.integers(1, 3))
    item_group = np.sort(np.concatenate([np.arange(num_groups), rng.integers(num_groups, size=num_groups)]))
    num_items = len(item_group)
    rows = np.sort(rng.integers(num_items, size=num_strata * 8).reshape(num_strata, 8), 1).ravel()
    rows[:num_items] = np.arange(num_items)  # every item occurs
    missing = rng.random((num_groups, num_tiers)) < 0.2
    count = np.where(missing[item_group].ravel(), 0, rng.integers(1, 5, num_items * num_tiers)).astype(np.int32)
    start = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32)
    tier = np.repeat(np.arange(num_items * num_tiers) % num_tiers, count)
    tokens = rng.integers(1, 5 + 8 * (tier + 1) // num_tiers)
    correct = rng.random(len(tokens)) < 0.2 + 0.6 * (tier + 1) / num_tiers
    outcomes = (tokens << 1 | correct).astype(np.uint32)
    row_item = rows.astype(np.int32)
    row_group = item_group[row_item].astype(np.int32)
    laws = laws_from_outcomes(start, count, outcomes, num_tiers)
    published = published_laws(laws, row_item, row_group, num_groups, 1)
    # Distinct keys; ties only without strata, where tasks are exchangeable.
    key = rng.permutation(num_groups) if num_strata > 1 else rng.integers(num_groups, size=num_groups)
    edges = np.cumsum(rng.integers(1, 7, num_tiers))
    return Source(
        name="random",
        tiers=tuple(Tier(f"t{k}", int(edge)) for k, edge in enumerate(edges)),
        row_item=row_item,
        row_group=row_group,
        row_given=np.zeros(len(row_item), np.int32),
        strata=np.arange(0, len(row_item) + 1, 8).astype(np.int32),
        replacement=True,
        outcome_start=start,
        outcome_count=count,
        outcomes=outcomes,
        num_latent=1,
        coupling="independent",
        group_features=rng.random((num_groups, 1)).astype(np.float32),
        feature_names=("signal",),
        group_weight=rng.choice([1.0, 0.3 + 3 * rng.random()], num_groups),
        group_key=key.astype(np.int32),
        group_names=tuple(map(str, range(num_groups))),
        published=published,
        beliefs=published,
        paired=False,
        synthetic=True,
    )


def random_spec(rng: np.random.Generator, *, max_tasks: int = 5, max_tiers: int = 4, **fields: object) -> ExamSpec:
    """A small random kind of exam; ``fields`` override drawn ones."""
    num_tasks = int(rng.integers(1, max_tasks + 1))
    drawn = {
        "num_tasks": num_tasks,
        "budget": int(rng.integers(1, 8 * num_tasks + 2)),
        "order": ORDERS[int(rng.integers(len(ORDERS)))],
        "preview": bool(rng.integers(2)),
        "decision_cost": int(rng.choice([0, 0, 1, 2])),
    }
    return exam_spec(random_source(rng, max_tiers), **{**drawn, **fields})  # type: ignore[arg-type]
