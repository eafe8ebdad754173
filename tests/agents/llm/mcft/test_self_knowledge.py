"""What tags tell: figures as by hand, and what the committed model knows beyond the look of questions."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")
pytest.importorskip("sklearn", reason="needs the extra [llm]")

from agents.llm.decisions.policy import MODELS, load_model, load_tokenizer
from agents.llm.mcft import self_knowledge as sk
from agents.llm.mcft.rejection import Labels, read_labels, table_labels
from agents.llm.mcft.training import LABELS
from agents.llm.prompts import REFUSED
from roi_env.sources.packaged import tinylm_table


def labels(*levels: int) -> Labels:
    counts = np.eye(4)[list(levels)] * 8
    return Labels(
        np.array(["sums"] * len(levels)),
        [f"{n} + 1 =" for n in range(len(levels))],
        counts,
        np.arange(len(levels)) * 10.0,
    )


def test_figures_as_by_hand() -> None:
    truth = labels(0, 1, 2, 3, 3)
    believed = np.array(
        [[0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1]]
    )
    found = sk.measure(believed, truth, np.array([0.0, 10, 20, 30]))
    assert found.accuracy == 2 / 5
    assert found.within_one == 4 / 5
    assert (found.precision, found.recall) == (1 / 2, 1 / 2)
    assert found.nats == pytest.approx(-np.log([0.7, 0.1, 0.1, 0.7, 0.1]).mean())
    assert found.ece == pytest.approx(0.7 - 2 / 5)
    # Refusals are believed with .1 (three times, once so) and with .7 (twice, once so).
    assert found.refusal_ece == pytest.approx((3 * (1 / 3 - 0.1) + 2 * (0.7 - 1 / 2)) / 5)
    assert found.auc == pytest.approx((1 + 1 + 0.5 + 0.5 + 0.5 + 0) / 6)
    assert found.cost_error == pytest.approx(np.abs([6 - 0, 6 - 10, 24 - 20, 24 - 30, 6 - 40]).mean())
    perfect = sk.measure(truth.shares, truth, np.zeros(4))
    assert (perfect.accuracy, perfect.nats, perfect.ece, perfect.auc) == (1, 0, 0, 1)


def test_shares_of_a_data_set_are_those_of_its_training_questions() -> None:
    train, asked = labels(0, 0, REFUSED, 1), labels(0, 1, 2)
    train = train._replace(dataset=np.array(["a", "a", "a", "b"]))
    asked = asked._replace(dataset=np.array(["a", "b", "c"]))
    expected = [[2.25 / 4, 0.25 / 4, 0.25 / 4, 1.25 / 4], [0.125, 0.625, 0.125, 0.125], [0.25] * 4]
    np.testing.assert_allclose(sk.dataset_shares(train, asked), expected)


def test_logistic_regression_finds_what_features_tell_and_no_more() -> None:
    rng = np.random.default_rng(0)
    parts = [labels(*rng.choice([0, 2, REFUSED], count, p=[0.2, 0.3, 0.5])) for count in (120, 60, 200)]
    telling = [np.eye(4)[part.level] + 0.1 * rng.standard_normal((len(part.texts), 4)) for part in parts]
    noise = [rng.standard_normal((len(part.texts), 300)) for part in parts]
    found = sk.LinearLevels(parts[0], telling[0], parts[1], telling[1]).probabilities(telling[2])
    np.testing.assert_allclose(found.sum(1), 1)
    assert sk.right(found, parts[2]).mean() > 0.98
    # 300 columns of noise could tell 120 questions apart: validation questions choose the penalty that leaves the shares.
    found = sk.LinearLevels(parts[0], noise[0], parts[1], noise[1]).probabilities(noise[2])
    shares = np.tile(parts[0].shares.mean(0), (200, 1))
    assert sk.nats(found, parts[2]).mean() < sk.nats(shares, parts[2]).mean() + 0.1
    assert found[:, 1].tolist() == [0] * 200, "a level that no training question has"
    one = labels(1, 1, 1)
    features = np.eye(3)
    np.testing.assert_array_equal(
        sk.LinearLevels(one, features, one, features).probabilities(features), np.eye(4)[[1] * 3]
    )


def test_never_refusing_has_no_precision() -> None:
    found = sk.measure(np.eye(4)[[0, 0]], labels(0, REFUSED), np.zeros(4))
    assert np.isnan(found.precision)
    assert found.recall == 0


def test_reliability_bins() -> None:
    found = sk.reliability(np.array([0.0, 0.05, 0.51, 1.0]), np.array([0.0, 1.0, 0.5, 1.0]))
    np.testing.assert_allclose(found.probability, [0.025, 0.51, 1])
    np.testing.assert_allclose(found.frequency, [0.5, 0.5, 1])
    np.testing.assert_allclose(found.questions, [2, 1, 1])


def test_the_interval_of_a_difference_is_that_of_its_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, 400)
    found = sk.difference(values, sk.question_weights(400))
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], [values.mean() - half, values.mean() + half], atol=0.015)


@pytest.mark.parametrize("levels", [(0, 3), (2, 2)])
def test_the_surface_predictor_learns_what_length_tells(levels: tuple[int, int]) -> None:
    count = 200
    texts = [("1 + 1 =" if n % 2 else "1 + 1 + 1 + 1 + 1 =") for n in range(count)]
    truth = Labels(np.array(["sums"] * count), texts, np.eye(4)[[levels[n % 2] for n in range(count)]], np.ones(count))
    found = sk.SurfaceLevels(truth).probabilities(truth)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found.argmax(1) == truth.level).all()
    assert sk.against(truth.shares, found, truth, {"sums": np.ones(count, bool)})[0].nats_gain.value < 0.1


def test_the_committed_model_knows_more_than_the_look_of_hidden_difficulties() -> None:
    truth = table_labels(tinylm_table().select().split("test"))
    train = read_labels(MODELS / "tinylm-mcft" / LABELS, "train")
    assert not set(train.texts) & set(truth.texts)
    hidden = np.isin(truth.dataset, ["gcd", "factor", "ab"])
    tags = sk.tag_probabilities(load_model("tinylm-mcft"), load_tokenizer("tinylm-mcft"), truth.texts, 420, 1)
    surface = sk.SurfaceLevels(train).probabilities(truth)
    (found,) = sk.against(tags, surface, truth, {"hidden": hidden})
    assert found.questions > 400
    assert found.accuracy_gain.low > 0
    assert sk.right(tags, truth).mean() > 0.76
