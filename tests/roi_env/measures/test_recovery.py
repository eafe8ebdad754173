"""Item response, the informed value from samples apart, and the share that a predictor recovers."""

from __future__ import annotations

import numpy as np
import pytest

from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures import metrics
from roi_env.measures.item_response import ItemResponse, fit_item_response
from roi_env.measures.recovery import informed_apart, recovered


def counts(slope: list[float], intercept: list[float], samples: int, size: int = 2000) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    ease = rng.normal(size=size)
    chance = 1 / (1 + np.exp(-(ease[:, None] * np.array(slope) + np.array(intercept))))
    count = np.full(chance.shape, float(samples))
    return rng.binomial(samples, chance).astype(float), count, ease, chance


@pytest.mark.parametrize("slope", [[1.5, 1.0, 2.0], [1.5, 0.3, 1.5], [1.5, -1.0, 1.5]])
def test_curves_are_found_also_falling_ones(slope: list[float]) -> None:
    right, count, _, _ = counts(slope, [-1.0, 0.0, 1.5], 5)
    model = fit_item_response(right, count)
    np.testing.assert_allclose(model.slope, slope, atol=0.25)
    np.testing.assert_allclose(model.intercept, [-1.0, 0.0, 1.5], atol=0.25)


def test_few_samples_are_denoised_and_missing_tiers_say_nothing() -> None:
    right, count, ease, chance = counts([1.5, 1.5, 1.5], [-1.0, 0.0, 1.0], 1)
    model = fit_item_response(right, count)
    raw = np.abs(right / count - chance).mean()
    assert np.abs(model.success(right, count) - chance).mean() < 0.6 * raw
    none = np.zeros_like(count)
    np.testing.assert_allclose(model.ease(none, none), 0, atol=1e-9)
    part = count.copy()
    part[:, 1] = 0
    again = fit_item_response(np.where(part > 0, right, 0), part)
    assert np.corrcoef(again.ease(np.where(part > 0, right, 0), part), ease)[0, 1] > 0.5


def test_a_tier_that_is_always_right_has_a_finite_curve() -> None:
    model = fit_item_response(np.full((50, 2), 4.0), np.full((50, 2), 4.0))
    assert np.isfinite([*model.slope, *model.intercept]).all()
    assert (model.success(np.full((1, 2), 4.0), np.full((1, 2), 4.0)) > 0.95).all()


def test_counts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="right <= count"):
        fit_item_response([[2.0]], [[1.0]])


def test_posterior_is_bayes() -> None:
    model = ItemResponse(np.array([1.0]), np.array([0.0]))
    from roi_env.measures.item_response import NODES

    weight = np.exp(-(NODES**2) / 2) / (1 + np.exp(-NODES))
    np.testing.assert_allclose(model.posterior(np.ones((1, 1)), np.ones((1, 1)))[0], weight / weight.sum(), atol=1e-12)


def test_synthetic_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="synthetic"):
        informed_apart(draw_exams(exam_spec("signal", num_tasks=3), 0, np.arange(2)))


def test_shares_are_paired_and_open_where_nothing_is_to_recover() -> None:
    rng = np.random.default_rng(0)
    questions = np.sort(np.stack([rng.permutation(200)[:5] for _ in range(100)]), 1)
    ease = rng.normal(size=200)[questions].sum(1)
    without = 5 + ease
    found = recovered(without + 0.3, without, without + 1.0, without + 1.5, questions)
    assert found.share.value == pytest.approx(0.3)  # what is common to all of them cancels
    assert found.gain.value == pytest.approx(0.3 / without.mean())
    assert found.gain.high - found.gain.low < 0.1
    noise = rng.normal(size=100)
    assert np.isnan(recovered(without + 0.3, without, without + noise - noise.mean(), without, questions).share.low)
    assert np.isnan(recovered(without, without, without - 1.0, without, questions).share.value)


def test_shares_of_little_information_have_fiellers_interval() -> None:
    """Its ends are the ratios at which the contrast of the two gains is just seen to differ from 0."""
    rng = np.random.default_rng(1)
    questions = np.stack([rng.permutation(200)[:5] for _ in range(200)])
    without = 5 + rng.normal(size=200)[questions].sum(1)
    noise = rng.normal(size=(2, 200))[:, questions].sum(2) / 5
    gain, information = 0.3 + noise[0], 0.4 + noise.mean(0)
    found = recovered(without + gain, without, without + information, without, questions, seed=3)
    weights = metrics.bootstrap_weights(200, 2000, np.random.default_rng([3, 20]), questions)
    for end in (found.share.low, found.share.high):
        contrast = gain - end * information
        stretch = metrics.QuestionDesign(questions).stretch(contrast)
        at = metrics.interval(contrast.mean(), metrics.resampled_means(contrast, weights), stretch=stretch)
        assert abs(contrast.mean()) == pytest.approx((at.high - at.low) / 2, rel=0.08)
    assert found.share.low < found.share.value < found.share.high


@pytest.mark.parametrize("information", [1.0, 0.25])
def test_shares_are_covered_where_there_is_much_and_given_seldom_where_there_is_little(information: float) -> None:
    rng, trials, given, missed = np.random.default_rng(5), 300, 0, 0
    for trial in range(trials):
        questions = rng.permuted(np.tile(np.arange(100), (100, 1)), axis=1)[:, :5]
        of_question = rng.normal(size=(3, 100))[:, questions].sum(2)
        known = information + 0.3 * of_question[0] + 0.3 * rng.normal(size=100)
        gain = 0.6 * information + 0.2 * of_question[0] + 0.1 * of_question[1] + 0.2 * rng.normal(size=100)
        without = 5 + of_question[2]
        share = recovered(without + gain, without, without + known, without, questions, 300, trial).share
        given += bool(np.isfinite(share.low))
        missed += bool(share.low > 0.6 or share.high < 0.6)
    assert missed / trials < 0.083  # three standard errors above .05
    assert given == trials if information == 1 else 0.1 < given / trials < 0.8
