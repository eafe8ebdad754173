"""The synthetic families: what they publish is what they are, and options change no exam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.sources import synthetic as generators
from roi_env.sources.source import Source
from roi_env.sources.synthetic import FAMILIES
from tests.roi_env.sources.checksums import checksum


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


# Changing one of these changes every exam of the family: past results are then no longer comparable.
CHECKSUMS = {
    ("cap", 3): "8d5ce3262cc25292760b731b1e7d42df87e15f668752fc746369c9629e638ae6",
    ("cap", 10): "8d5ce3262cc25292760b731b1e7d42df87e15f668752fc746369c9629e638ae6",
    ("cap", 50): "f0392132ebd8aa8995e6202bb8b0c4e45321add9a203bce88cc591f6a9be2cfa",
    ("heavy", 3): "1ac354682fe9281141e5a40d8bc5d7a4ced2143caaeed5089818ee05ec101d64",
    ("heavy", 10): "1ac354682fe9281141e5a40d8bc5d7a4ced2143caaeed5089818ee05ec101d64",
    ("heavy", 50): "98b9dea2341fd8c2ff6c7cf32021de35c90170211a2b4b9c8ad368443938a6d2",
    ("known", 3): "9611bdbacc7acf6cb7575673802752be54ed9c8df76b0210bd41ac783eb3d201",
    ("known", 10): "9611bdbacc7acf6cb7575673802752be54ed9c8df76b0210bd41ac783eb3d201",
    ("known", 50): "896df881f31c11d6f17c4838b8a296acef722590a7c7af81bc911174adc9ef61",
    ("latent", 3): "381b7702dd167f9e3b531a1e7164bb652cd8f058034dc92f195d07764c73c35e",
    ("latent", 10): "381b7702dd167f9e3b531a1e7164bb652cd8f058034dc92f195d07764c73c35e",
    ("latent", 50): "2b353698e9a96937f86e0b9a62846892231ae521dfaf60fe09f0c24e0f765cee",
    ("paper-synthetic", 3): "e4437e994a63a1255f00a0736c283f1dcffc3752c0ab279633617058ff6a1943",
    ("paper-synthetic", 10): "e4437e994a63a1255f00a0736c283f1dcffc3752c0ab279633617058ff6a1943",
    ("paper-synthetic", 50): "e4437e994a63a1255f00a0736c283f1dcffc3752c0ab279633617058ff6a1943",
    ("signal", 3): "e215465db5b59cedeee94d95c0b340af7d63bf1ffc320191908a01bf059e6fd1",
    ("signal", 10): "e215465db5b59cedeee94d95c0b340af7d63bf1ffc320191908a01bf059e6fd1",
    ("signal", 50): "7b1c095794b5d1778c695ec886d942b037676f2dd4af723e239c7f9f53ed92b2",
}


@pytest.mark.parametrize(("family", "num_tasks"), sorted(CHECKSUMS))
def test_checksums(family: str, num_tasks: int) -> None:
    assert checksum(FAMILIES[family](num_tasks)) == CHECKSUMS[family, num_tasks]


class NextDoor:
    """NumPy whose exp, sin and arcsin end one representable number away at random, as another machine's might."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def nudge(self, values: np.ndarray) -> np.ndarray:
        return np.nextafter(values, self.rng.choice([-np.inf, np.inf], np.shape(values)))

    def exp(self, values: np.ndarray) -> np.ndarray:
        return self.nudge(np.exp(values))

    def sin(self, values: np.ndarray) -> np.ndarray:
        return self.nudge(np.sin(values))

    def arcsin(self, values: np.ndarray) -> np.ndarray:
        return self.nudge(np.arcsin(values))


@pytest.mark.parametrize("num_tasks", [10, 50])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tables_do_not_depend_on_the_last_bit_of_the_mathematical_library(
    family: str, num_tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = NextDoor(num_tasks)
    quantiles = machine.nudge(generators._normal_quantiles(generators.SLOTS))
    uniform, normal = generators._hammersley()
    nudged = quantiles[np.argsort(np.argsort(normal))]
    monkeypatch.setattr(generators, "np", machine)
    monkeypatch.setattr(generators, "_hammersley", lambda: (uniform, nudged))
    built = getattr(generators, family.replace("-", "_"))(num_tasks)
    assert built is not FAMILIES[family](num_tasks)
    assert checksum(built) == CHECKSUMS[family, num_tasks]


@pytest.mark.parametrize(("num_tasks", "mean"), [(3, 100), (10, 100), (50, 40)])
@pytest.mark.parametrize("family", ["known", "signal", "heavy", "cap", "latent"])
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
