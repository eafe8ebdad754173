"""The synthetic families: what they publish is what they are, and options change no exam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from roi_env.exam import draw_exams, exam_spec
from roi_env.generators import FAMILIES
from roi_env.source import Source


def exact_mixture(source: Source, latent: int, group: int, tier: int) -> dict[int, list[float]]:
    """cost -> [probability, probability of that cost and right], counted from the integer tables alone."""
    law: dict[int, list[float]] = {}
    rows = np.flatnonzero(source.row_group == group)
    sizes = np.diff(source.strata)
    row_chance = 1.0 / np.repeat(sizes, sizes)[rows]
    for item, chance in zip(source.row_item[rows], row_chance / row_chance.sum(), strict=True):
        cell = (latent * source.num_items + int(item)) * source.num_tiers + tier
        first, count = int(source.outcome_start[cell]), int(source.outcome_count[cell])
        for packed in source.outcomes[first : first + count].tolist():
            entry = law.setdefault(packed >> 1, [0.0, 0.0])
            entry[0] += chance / count
            entry[1] += chance / count * (packed & 1)
    return law


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_published_laws_are_the_exact_mixture_of_the_hidden_ones(family: str) -> None:
    source = FAMILIES[family](3)
    rng = np.random.default_rng(0)
    for _ in range(4):
        latent, group = int(rng.integers(source.num_latent)), int(rng.integers(source.num_groups))
        tier = int(rng.integers(source.num_tiers))
        cell = (latent * source.num_groups + group) * source.num_tiers + tier
        points = slice(int(source.published.indptr[cell]), int(source.published.indptr[cell + 1]))
        law = exact_mixture(source, latent, group, tier)
        assert source.published.cost[points].tolist() == sorted(law)
        expected = np.array([law[cost] for cost in sorted(law)])
        np.testing.assert_allclose(source.published.prob[points], expected[:, 0], atol=1e-12)
        np.testing.assert_allclose(source.published.success[points], expected[:, 1], atol=1e-12)


@pytest.mark.parametrize(("num_tasks", "mean"), [(3, 100), (10, 100), (50, 40)])
@pytest.mark.parametrize("family", ["known", "signal", "heavy", "cap"])
def test_mean_cost_of_the_top_tier(family: str, num_tasks: int, mean: int) -> None:
    assert FAMILIES[family](num_tasks).mean_top_cost == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sampled_outcomes_follow_the_published_law(family: str) -> None:
    spec = exam_spec(family)
    batch = draw_exams(spec, 5, np.arange(20_000))
    tokens, correct = batch.outcomes()
    groups, tier = batch.groups, spec.num_tiers - 1
    group = int(np.bincount(groups.ravel()).argmax())
    chosen = (groups == group) & (batch.latent[:, None] == 0)
    law = exact_mixture(spec.source, 0, group, tier)
    costs = np.array(sorted(law))
    expected = np.array([law[cost][0] for cost in costs])
    edges = np.searchsorted(np.cumsum(expected), np.linspace(0, 1, 11)[1:-1])  # about ten bins of equal chance
    bins = np.searchsorted(edges, np.searchsorted(costs, tokens[..., tier][chosen]), side="right")
    weight = np.bincount(np.searchsorted(edges, np.arange(len(costs)), side="right"), expected, 10)
    seen = np.bincount(bins, minlength=10)
    assert stats.chisquare(seen[weight > 0], weight[weight > 0] * seen.sum()).pvalue > 1e-4
    right = sum(entry[1] for entry in law.values())
    assert stats.binomtest(int(correct[..., tier][chosen].sum()), int(chosen.sum()), right).pvalue > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "easy_first"},
        {"order": "hard_first"},
        {"budget": 57},
        {"preview": False},
        {"beliefs": "none"},
        {"reward": "rational"},
        {"feedback": "cost+correct"},
        {"decision_cost": 2},
    ],
)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_options_change_neither_tasks_nor_outcomes(family: str, changes: dict[str, Any]) -> None:
    def by_slot(**options: Any) -> tuple[np.ndarray, ...]:
        batch = draw_exams(exam_spec(family, **options), 3, np.arange(40), 1)
        tokens, correct = batch.outcomes()
        back = np.argsort(batch.slots, axis=1)
        return (
            np.take_along_axis(batch.rows, back, 1),
            np.take_along_axis(tokens, back[:, :, None], 1),
            np.take_along_axis(correct, back[:, :, None], 1),
            batch.latent,
        )

    for plain, changed in zip(by_slot(), by_slot(**changes), strict=True):
        np.testing.assert_array_equal(plain, changed)
