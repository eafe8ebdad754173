"""Measures: identities, and intervals that cover what they claim to cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from roi_env.measures import metrics

finite = st.floats(0.01, 1e6)


@given(finite, finite, finite, finite)
def test_regrets_add_up_to_the_gap(score: float, optimum: float, informed: float, oracle: float) -> None:
    parts = metrics.regrets(score, optimum, informed, oracle)
    assert sum(parts) == pytest.approx(oracle - score, abs=1e-6)
    assert metrics.gap_ratio(score, oracle) == pytest.approx(sum(parts) / oracle, abs=1e-6 / oracle)


@given(finite, st.floats(0.1, 10))
def test_ratios_have_no_unit(score: float, scale: float) -> None:
    assert metrics.normalised(score, score) == 1
    assert metrics.normalised(scale * score, score) == pytest.approx(scale)
    assert metrics.paper_regret(score, scale * score) == pytest.approx(1 - 1 / scale)


def test_ratios_of_nothing_are_nan_not_an_error() -> None:
    assert np.isnan(metrics.normalised(0.0, 0.0))
    np.testing.assert_array_equal(metrics.normalised(np.array([1.0, 1.0]), np.array([0.0, 2.0])), [np.nan, 0.5])
    assert isinstance(metrics.gap_ratio(1.0, 2.0), float)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 4]))
def test_weights_mean_one_and_repeat(num_exams: int, resamples: int, seed: int, tasks: int) -> None:
    questions = np.random.default_rng(seed).integers(0, 25, (num_exams, tasks)) if tasks else None
    first, second = (
        metrics.bootstrap_weights(num_exams, resamples, np.random.default_rng(seed), questions) for _ in range(2)
    )
    assert first.shape == (resamples, num_exams)
    if metrics.no_interval(num_exams, questions) is None:
        np.testing.assert_allclose(first.mean(axis=1), 1)
    else:
        assert np.isnan(first).all()
    np.testing.assert_array_equal(first, second)


def test_weights_do_not_depend_on_how_questions_are_named() -> None:
    questions = np.random.default_rng(0).integers(0, 9, (20, 3))
    a, b = (metrics.bootstrap_weights(20, 5, np.random.default_rng(1), q) for q in (questions, 1000 * questions + 7))
    np.testing.assert_array_equal(a, b)


def test_weights_reject_wrong_shapes() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least one exam"):
        metrics.bootstrap_weights(0, 5, rng)
    with pytest.raises(ValueError, match="questions must have shape"):
        metrics.bootstrap_weights(3, 5, rng, np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="exams in values"):
        metrics.resampled_means(np.zeros(4), np.ones((5, 3)))
    with pytest.raises(ValueError, match="seed weights"):
        metrics.resampled_means(np.zeros((2, 3)), np.ones((5, 3)), np.ones((5, 3)))
    with pytest.raises(ValueError, match="same ones"):
        metrics.probability_of_improvement(np.zeros(3), np.zeros(4))


@pytest.mark.parametrize(
    ("pool", "tasks", "exams", "noise"),
    [(90, 3, 300, 0.0), (90, 5, 120, 1.0), (90, 1, 200, 0.5), (30, 10, 100, 1.0), (20, 10, 60, 2.0), (12, 3, 100, 1.0)],
)
def test_two_level_intervals_cover_and_exam_intervals_do_not(pool: int, tasks: int, exams: int, noise: float) -> None:
    """Question effects are shared by exams: the truth is the mean over *all* questions, not over this table's."""
    rng, truth, trials = np.random.default_rng(5), 10.0, 300
    covered = {"naive": 0, "two-level": 0}
    estimates, spread = [], []
    for _ in range(trials):
        effect = rng.normal(size=pool)
        questions = rng.permuted(np.tile(np.arange(pool), (exams, 1)), axis=1)[:, :tasks]
        scores = truth + effect[questions].sum(1) + noise * rng.normal(size=exams)
        for name, of in (("naive", None), ("two-level", questions)):
            replicates = metrics.resampled_means(scores, metrics.bootstrap_weights(exams, 300, rng, of))
            found = metrics.interval(scores.mean(), replicates)
            covered[name] += found.low <= truth <= found.high
        estimates.append(scores.mean())
        spread.append(replicates.std())
    # 3 standard errors of a coverage of .95 over 300 trials are .04.
    assert 0.91 < covered["two-level"] / trials < 0.99
    assert covered["naive"] / trials < 0.82
    assert 0.85 < np.sqrt(np.mean(np.square(spread))) / np.std(estimates) < 1.6


def test_question_information_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    for pool, tasks, exams in ((12, 3, 9), (10, 10, 5), (30, 10, 40), (200, 2, 7)):
        questions = rng.permuted(np.tile(np.arange(pool), (exams, 1)), axis=1)[:, :tasks]
        incidence = np.zeros((exams, pool))
        np.put_along_axis(incidence, questions, 1, axis=1)
        count = incidence.sum(0)
        gram = incidence.T @ incidence - np.outer(count, count) / exams
        assert metrics.question_information(questions) == pytest.approx((gram**2).sum() / (count**2).sum(), abs=1e-12)


def test_exams_that_share_nearly_all_questions_allow_no_interval() -> None:
    rng = np.random.default_rng(0)
    for pool, allowed in ((10, False), (11, False), (12, False), (20, True), (30, True)):
        questions = rng.permuted(np.tile(np.arange(pool), (40, 1)), axis=1)[:, :10]
        reason = metrics.no_interval(40, questions)
        weights = metrics.bootstrap_weights(40, 50, rng, questions)
        found = metrics.interval(1.0, metrics.resampled_means(rng.normal(size=40), weights))
        assert np.isnan([found.low, found.high]).all() == (not allowed)
        if allowed:
            assert reason is None
        else:
            assert reason is not None
            assert f"40 exams of 10 tasks share nearly all of their {pool} questions" in reason
    one = metrics.bootstrap_weights(1, 5, rng)
    assert np.isnan(metrics.interval(2.0, metrics.resampled_means([2.0], one)).low)
    assert metrics.no_interval(1) is not None
    assert metrics.no_interval(2) is None


def test_exams_without_common_questions_give_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(3)
    scores, questions = rng.normal(size=100), np.arange(1000).reshape(100, 10)
    two, plain = (
        metrics.resampled_means(scores, metrics.bootstrap_weights(100, 4000, rng, q)).std() for q in (questions, None)
    )
    assert two == pytest.approx(plain, rel=0.06)


@pytest.mark.parametrize("exams", [8, 80])
def test_plain_intervals_cover(exams: int) -> None:
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(400):
        scores = rng.uniform(size=exams)
        replicates = metrics.resampled_means(scores, metrics.bootstrap_weights(exams, 300, rng))
        found = metrics.interval(scores.mean(), replicates)
        covered += found.low <= 0.5 <= found.high
    assert 0.915 < covered / 400 < 0.985


def test_pairing_makes_differences_sharper_than_scores() -> None:
    rng = np.random.default_rng(1)
    easy = rng.normal(10, 3, 200)
    a, b = easy + rng.normal(0.5, 0.1, 200), easy
    weights = metrics.bootstrap_weights(200, 500, rng)
    ra, rb = metrics.resampled_means(a, weights), metrics.resampled_means(b, weights)
    assert (ra - rb).std() < ra.std() / 10
    np.testing.assert_allclose(ra - rb, metrics.resampled_means(a - b, weights))


def test_quantities_stack() -> None:
    rng = np.random.default_rng(6)
    values, weights = rng.normal(size=(3, 2, 10)), metrics.bootstrap_weights(10, 7, rng)
    seeds = metrics.seed_weights(2, 7, rng)
    for levels in (None, seeds):
        stacked = metrics.resampled_means(values, weights, levels)
        np.testing.assert_allclose(stacked.T, [metrics.resampled_means(v, weights, levels) for v in values])
    slow = [[np.mean((w + s[:, None] - 1) * v) for v in values] for w, s in zip(weights, seeds, strict=True)]
    np.testing.assert_allclose(metrics.resampled_means(values, weights, seeds), slow)


def test_seeds_alone_give_students_interval() -> None:
    x = np.array([0.3, 0.9, 0.5])
    for count, values in ((3, x), (5, np.arange(5.0)), (2, x[:2])):
        weights = metrics.seed_weights(count, 200_000, np.random.default_rng(count))
        np.testing.assert_allclose(weights.mean(1), 1)
        found = metrics.interval(values.mean(), weights @ values / count)
        half = student.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
        assert found.low == pytest.approx(values.mean() - half, rel=0.04, abs=0.03 * half)
        assert found.high == pytest.approx(values.mean() + half, rel=0.04, abs=0.03 * half)
    with pytest.raises(ValueError, match="at least two seeds"):
        metrics.seed_weights(1, 5, np.random.default_rng(0))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seed", "of_exam", "of_both", "most"), [(1.0, 0.2, 0.2, 0.98), (1.0, 3.0, 1.0, 0.99), (0.1, 2.0, 0.5, 1.0)]
)
def test_intervals_over_few_seeds_and_exams_cover(
    seeds: int, of_seed: float, of_exam: float, of_both: float, most: float
) -> None:
    """Standard deviations between seeds, between exams (60) and of their interaction; Behrens-Fisher intervals err on
    the wide side where both levels count."""
    rng, trials, exams = np.random.default_rng(2), 400, 60
    covered = {"exams": 0, "exams and seeds": 0}
    for _ in range(trials):
        scores = 5 + of_seed * rng.normal(size=(seeds, 1)) + of_exam * rng.normal(size=exams)
        scores += of_both * rng.normal(size=(seeds, exams))
        weights = metrics.bootstrap_weights(exams, 400, rng)
        for name, level in (("exams", None), ("exams and seeds", metrics.seed_weights(seeds, 400, rng))):
            found = metrics.interval(scores.mean(), metrics.resampled_means(scores, weights, level))
            covered[name] += found.low <= 5 <= found.high
    # 3 standard errors of a coverage of .95 over 400 trials are .033.
    assert 0.917 < covered["exams and seeds"] / trials <= most
    if of_seed > of_exam:
        assert covered["exams"] / trials < 0.3


def test_an_interval_without_width_is_none() -> None:
    for value, replicates in ((1.0, np.ones(50)), (0.3, 0.3 + 1e-16 * np.arange(50)), (0.0, np.zeros(5))):
        found = metrics.interval(value, replicates)
        assert found.value == value
        assert np.isnan([found.low, found.high]).all()
    assert metrics.interval(1.0, np.array([0.999, 1.0, 1.001])).low < 1


@given(st.floats(0.001, 0.999), st.floats(1e-6, 0.5), st.integers(0, 99))
def test_bounded_intervals_stay_inside_and_agree_where_they_are_narrow(value: float, spread: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=200)
    wide = metrics.interval(value, value + spread * noise, bounds=(0.0, 1.0))
    assert 0 <= wide.low < value < wide.high <= 1
    narrow = value + 1e-6 * value * (1 - value) * noise
    plain, bounded = metrics.interval(value, narrow), metrics.interval(value, narrow, bounds=(0.0, 1.0))
    np.testing.assert_allclose(np.array(bounded) - value, np.array(plain) - value, rtol=1e-4, atol=1e-12)
    scaled = metrics.interval(5 + 3 * value, 5 + 3 * (value + spread * noise), bounds=(5.0, 8.0))
    np.testing.assert_allclose((np.array(scaled) - 5) / 3, wide, rtol=1e-6, atol=1e-9)


def test_variance_components_equal_their_definition() -> None:
    """Against the two moment equations solved with the matrices themselves."""
    rng = np.random.default_rng(1)
    for pool, tasks, exams in ((30, 3, 60), (40, 10, 25), (100, 2, 80)):
        questions = rng.permuted(np.tile(np.arange(pool), (exams, 1)), axis=1)[:, :tasks]
        effect = rng.normal(size=pool)
        values = effect[questions].sum(1) + rng.normal(size=exams)
        unique, codes = np.unique(questions, return_inverse=True)
        incidence = np.zeros((exams, len(unique)))
        np.put_along_axis(incidence, codes.reshape(questions.shape), 1, axis=1)
        centre = np.eye(exams) - 1 / exams
        kernel, y = centre @ incidence @ incidence.T @ centre, values - values.mean()
        moments = [[np.trace(kernel @ kernel), np.trace(kernel)], [np.trace(kernel), exams - 1]]
        of_question, of_exam = np.linalg.solve(moments, [y @ kernel @ y, y @ y])
        assert min(of_question, of_exam) > 0
        own = (incidence.sum(0) ** 2).sum()
        fair = (of_question * own / exams**2 + of_exam / exams) / (1 - tasks / len(unique))
        wide = own / np.trace(kernel @ kernel) * (y @ kernel @ y) / exams**2
        found = metrics.QuestionDesign(questions)
        assert found.stretch(values) == pytest.approx(np.sqrt(fair / wide))
        assert found.stretch(7 - 3 * values) == pytest.approx(np.sqrt(fair / wide))
        assert found.stretch(values, 2.0) == pytest.approx(np.sqrt((fair + 2) / (wide + 2)))
    apart = metrics.QuestionDesign(np.arange(60).reshape(20, 3))
    assert apart.stretch(rng.normal(size=20)) == 1
    assert metrics.QuestionDesign(questions).stretch(np.ones(80)) == 1


@pytest.mark.parametrize(("pool", "tasks", "exams"), [(30, 3, 60), (30, 5, 60), (100, 10, 60)])
def test_differences_in_which_question_effects_cancel_are_covered_as_often_as_claimed(
    pool: int, tasks: int, exams: int
) -> None:
    rng, trials = np.random.default_rng(6), 400
    covered = np.zeros(3)
    for _ in range(trials):
        effect = rng.normal(size=pool)
        questions = rng.permuted(np.tile(np.arange(pool), (exams, 1)), axis=1)[:, :tasks]
        one = 10 + effect[questions].sum(1) + rng.normal(size=exams)
        apart = 0.5 + 0.3 * rng.normal(size=exams)
        weights, design = metrics.bootstrap_weights(exams, 400, rng, questions), metrics.QuestionDesign(questions)
        for k, (values, truth, stretch) in enumerate(
            ((one, 10, design.stretch(one)), (apart, 0.5, design.stretch(apart)), (apart, 0.5, 1.0))
        ):
            replicates = metrics.resampled_means(values, weights)
            found = metrics.interval(values.mean(), replicates, stretch=stretch)
            covered[k] += found.low <= truth <= found.high
    # 3 standard errors of a coverage of .95 over 400 trials are .033.
    assert (covered[:2] / trials > 0.917).all()
    assert (covered[:2] / trials < 0.983).all()
    assert covered[2] / trials > 0.985  # what the weights alone claim


def test_interval_ignores_undefined_replicates() -> None:
    found = metrics.interval(1.0, np.array([np.nan, 0.0, 1.0, 2.0]))
    assert found.low == pytest.approx(0.05)
    assert found.high == pytest.approx(1.95)
    assert np.isnan(metrics.interval(1.0, np.array([np.nan])).low)
    with pytest.raises(ValueError, match="level"):
        metrics.interval(1.0, np.zeros(3), level=95)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(0, 1000))
def test_probability_of_improvement_is_antisymmetric(seeds_a: int, seeds_b: int, exams: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, (seeds_a, exams)), rng.integers(0, 4, (seeds_b, exams))
    p = metrics.probability_of_improvement
    assert p(a, b) + p(b, a) == pytest.approx(1)
    assert p(a, a) == pytest.approx(0.5)
    slow = np.mean([[(x > y) + (x == y) / 2 for x in a[:, e] for y in b[:, e]] for e in range(exams)])
    assert p(a, b) == pytest.approx(slow)


def test_probability_of_improvement_treats_rounding_as_a_tie() -> None:
    assert metrics.probability_of_improvement([0.1 + 0.2, 1.0], [0.3, 2.0]) == 0.25


def test_probability_of_improvement_replicates_agree_with_unit_weights() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 4, (2, 9)), rng.integers(0, 4, (3, 9))
    w, u, v = 1 + rng.normal(size=(5, 9)), 1 + rng.normal(size=(5, 2)), 1 + rng.normal(size=(5, 3))
    wins = (np.sign(a[:, None] - b[None]) + 1) / 2
    slow = [np.mean((w[r] + u[r][:, None, None] + v[r][None, :, None] - 2) * wins) for r in range(5)]
    np.testing.assert_allclose(metrics.probability_of_improvement(a, b, w, u, v), np.clip(slow, 0, 1))
    replicates = metrics.probability_of_improvement(a, b, np.ones((5, 9)), np.ones((5, 2)), np.ones((5, 3)))
    np.testing.assert_allclose(replicates, metrics.probability_of_improvement(a, b))


def test_performance_profile() -> None:
    ratios = metrics.exam_ratios([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]], [2.0, 4.0, 0.0])
    np.testing.assert_array_equal(ratios, [[0.5, 0.5, 1], [1, 1, 1]])
    tau = np.array([0.0, 0.5, 0.75, 1.0, 1.1])
    profile = metrics.performance_profile(ratios, tau)
    np.testing.assert_allclose(profile, [1, 1, 4 / 6, 4 / 6, 0])
    np.testing.assert_allclose(metrics.performance_profile(ratios, tau, np.ones((4, 3))), np.tile(profile, (4, 1)))


def test_calibration_error() -> None:
    assert metrics.calibration_error([0.9, 0.5, 0.1], [0.7, 0.5, 1.0], [1, 3, 0]) == pytest.approx(0.05)
    assert metrics.calibration_error([110, 50], [100, 50], [1, 1], relative=True) == pytest.approx(5 / 75)
    assert np.isnan(metrics.calibration_error([1.0], [0.0], [0.0]))
    with pytest.raises(ValueError, match="one shape"):
        metrics.calibration_error([1.0], [0.0, 1.0], [1.0])
