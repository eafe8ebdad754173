"""Random small sources: few tasks, few tokens, so that plain Python can enumerate everything."""

from __future__ import annotations

from typing import Any

import numpy as np

from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.sources.source import Source, Tier, laws_from_outcomes, published_laws


def tiny_source(seed: int, num_latent: int = 1) -> Source:
    rng = np.random.default_rng(seed)
    items, groups, tiers = 4, int(rng.integers(1, 4)), int(rng.integers(1, 4))
    row_item = np.tile(np.arange(items), 2).astype(np.int32)
    row_group = np.concatenate([np.arange(groups), rng.integers(groups, size=len(row_item) - groups)]).astype(np.int32)
    counts = rng.integers(1, 4, size=(num_latent, items, tiers))
    if num_latent == 1:
        counts[rng.random(counts.shape) < 0.1] = 0
    counts = counts.ravel().astype(np.int32)
    start = (np.cumsum(counts) - counts).astype(np.int32)
    tokens = rng.integers(1, 7, size=counts.sum())
    outcomes = (tokens << 1 | rng.integers(2, size=len(tokens))).astype(np.uint32)
    laws = laws_from_outcomes(start, counts, outcomes, tiers)
    published = published_laws(laws, row_item, row_group, groups, num_latent)
    states = np.arange(num_latent) * groups
    beliefs = published
    if num_latent > 1:
        beliefs = published.mixture([states + g for g in range(groups)], [np.full(num_latent, 1 / num_latent)] * groups)
    return Source(
        name="tiny",
        tiers=tuple(Tier(f"t{k}", 2 * k + 2) for k in range(tiers)),
        row_item=row_item,
        row_group=row_group,
        row_given=np.zeros(len(row_item), np.int32),
        strata=np.array([0, len(row_item)], np.int32),
        replacement=True,
        outcome_start=start,
        outcome_count=counts,
        outcomes=outcomes,
        num_latent=num_latent,
        coupling="independent",
        group_features=np.arange(groups, dtype=np.float32)[:, None],
        feature_names=("signal",),
        group_weight=rng.integers(1, 4, size=groups).astype(float),
        group_key=np.arange(groups, dtype=np.int32),
        group_names=tuple(map(str, range(groups))),
        published=published,
        beliefs=beliefs,
        paired=False,
        synthetic=True,
    )


def tiny_spec(seed: int, num_latent: int = 1, **changes: Any) -> ExamSpec:
    rng = np.random.default_rng(seed + 10_000)
    arguments: dict[str, Any] = {
        "num_tasks": int(rng.integers(1, 4)),
        "budget": int(rng.integers(2, 13)),
        "decision_cost": int(rng.integers(0, 2)),
        "preview": bool(rng.integers(2)),
    }
    return exam_spec(tiny_source(seed, num_latent), **{**arguments, **changes})
