"""How well tags tell what a question will take: accuracy, refusals, calibration, cost, beside what its look tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.llm.mcft.rejection import Labels
from agents.llm.mcft.surface import surface_classifier, surface_features
from agents.llm.prompts import NUM_LEVELS, REFUSED
from roi_env.measures.metrics import Interval, calibration_error, interval

Floats = npt.NDArray[np.float64]
BINS = 10


def tag_probabilities(
    model: Any, tokenizer: Any, texts: list[str], remaining: int, tasks_left: int, num_levels: int = NUM_LEVELS
) -> Floats:
    """(Q, num_levels) probabilities of the levels 0, 1, .. as the next token of a decision prompt, tags alone; the last refuses."""
    import torch

    from agents.llm.decisions.tag_logits import PromptEncoder, action_tags, tag_logits

    prompts = PromptEncoder(tokenizer, levels=num_levels).prompts(texts, remaining, tasks_left)
    skip, *solve = action_tags(tokenizer, num_levels)
    with torch.inference_mode():
        logits = tag_logits(model, *prompts, [*solve, skip])
    return np.asarray(logits.double().softmax(1).cpu().numpy())


class SurfaceLevels:
    """The control: a gradient-boosting classifier that sees family, length and digits of the same training questions.

    Every question weighs 1, divided over its labels; ``train`` as the model was trained on.
    """

    def __init__(self, train: Labels, seed: int = 0) -> None:
        self._known = sorted(set(train.dataset.tolist()))
        features = surface_features(train.dataset, train.texts, self._known)
        question, level = train.counts.nonzero()
        self._levels = np.unique(level)
        self._tree = surface_classifier(seed)
        if len(self._levels) > 1:
            self._tree.fit(features[question], level, train.shares[question, level])

    def probabilities(self, labels: Labels) -> Floats:
        """(Q, NUM_LEVELS)."""
        found = np.zeros((len(labels.texts), NUM_LEVELS))
        if len(self._levels) == 1:
            found[:, self._levels] = 1
        else:
            features = surface_features(labels.dataset, labels.texts, self._known)
            found[:, self._levels] = self._tree.predict_proba(features)
        return found


def dataset_shares(train: Labels, labels: Labels) -> Floats:
    """(Q, NUM_LEVELS) what a question's data set alone tells: shares of the levels among its training questions, and one more
    question that may be anything."""
    same = (labels.dataset[:, None] == train.dataset).astype(float)
    return np.asarray((same @ train.shares + 1 / NUM_LEVELS) / (same.sum(1, keepdims=True) + 1))


STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Inverse strengths of the penalty that are tried."""


class LinearLevels:
    """A control: logistic regression on some features of a question; the penalty is the best of several on validation questions.

    Every question weighs 1, divided over its labels.

    :param features: (Q, F) of the training questions; ``held_out``: of the validation questions.
    """

    def __init__(self, train: Labels, features: Floats, validation: Labels, held_out: Floats) -> None:
        from sklearn.linear_model import LogisticRegression

        self._mean, self._scale = features.mean(0), features.std(0) + 1e-6
        question, level = train.counts.nonzero()
        self._levels = np.unique(level)
        if len(self._levels) == 1:
            return
        tried = [LogisticRegression(C=strength, max_iter=2000) for strength in STRENGTHS]
        for one in tried:
            one.fit(self._scaled(features)[question], level, train.shares[question, level])
        self._fitted = min(tried, key=lambda one: float(nats(self._of(one, held_out), validation).mean()))

    def _scaled(self, features: Floats) -> Floats:
        return (features - self._mean) / self._scale

    def _of(self, fitted: Any, features: Floats) -> Floats:
        found = np.zeros((len(features), NUM_LEVELS))
        found[:, self._levels] = fitted.predict_proba(self._scaled(features))
        return found

    def probabilities(self, features: Floats) -> Floats:
        """(Q, NUM_LEVELS) of (Q, F) features."""
        if len(self._levels) == 1:
            return np.tile(np.eye(NUM_LEVELS)[self._levels[0]], (len(features), 1))
        return self._of(self._fitted, features)


def level_costs(train: Labels) -> Floats:
    """(NUM_LEVELS,) mean tokens of thinking freely at questions of each level: what a tag says about cost."""
    weights = train.shares
    mean = train.tokens.mean()
    return (train.tokens @ weights + mean) / (weights.sum(0) + 1)


def nats(probabilities: Floats, labels: Labels) -> Floats:
    """(Q,) nats a label."""
    return -(labels.shares * np.log(np.clip(probabilities, 1e-3, 1))).sum(1)


def right(probabilities: Floats, labels: Labels) -> Floats:
    """(Q,) whether the likeliest level is the question's."""
    return (probabilities.argmax(1) == labels.level).astype(float)


def cost_errors(probabilities: Floats, labels: Labels, costs: Floats) -> Floats:
    """(Q,) tokens between expected and real cost of thinking freely."""
    return np.abs(probabilities @ costs - labels.tokens)


class Measured(NamedTuple):
    """Figures of one predictor on Q questions.

    ``accuracy``, ``within_one``: the likeliest level against the question's most frequent one; ``precision``, ``recall``: of
    refusals; ``nats``: a label; ``ece``: of the likeliest level, a label; ``refusal_ece``: of the refusal; ``auc``: of
    the refusal's probability, refused questions against others; ``cost_error``: mean absolute tokens.
    """

    accuracy: float
    within_one: float
    precision: float
    recall: float
    nats: float
    ece: float
    refusal_ece: float
    auc: float
    cost_error: float


class Reliability(NamedTuple):
    """Of bins of equal width: mean probability, frequency and number of questions; empty bins are left out."""

    probability: Floats
    frequency: Floats
    questions: Floats


def reliability(probability: Floats, frequency: Floats) -> Reliability:
    """Bin (Q,) probabilities and what came of them (shares of labels)."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS).astype(float)
    used = count > 0
    believed, came = (np.bincount(place, values, BINS)[used] / count[used] for values in (probability, frequency))
    return Reliability(believed, came, count[used])


def confidence(probabilities: Floats, labels: Labels) -> Reliability:
    """Reliability of the likeliest level."""
    chosen = probabilities.argmax(1)[:, None]
    return reliability(
        np.take_along_axis(probabilities, chosen, 1)[:, 0], np.take_along_axis(labels.shares, chosen, 1)[:, 0]
    )


def measure(probabilities: Floats, labels: Labels, costs: Floats) -> Measured:
    """All figures."""
    from sklearn.metrics import roc_auc_score

    chosen, level = probabilities.argmax(1), labels.level
    both = ((chosen == REFUSED) & (level == REFUSED)).sum()
    refused, refusable = (chosen == REFUSED).sum(), (level == REFUSED).sum()
    refusals = reliability(probabilities[:, REFUSED], labels.shares[:, REFUSED])
    likeliest = confidence(probabilities, labels)
    return Measured(
        float((chosen == level).mean()),
        float((np.abs(chosen - level) <= 1).mean()),
        float(both / refused) if refused else float("nan"),
        float(both / refusable) if refusable else float("nan"),
        float(nats(probabilities, labels).mean()),
        calibration_error(likeliest.probability, likeliest.frequency, likeliest.questions),
        calibration_error(refusals.probability, refusals.frequency, refusals.questions),
        float(roc_auc_score(level == REFUSED, probabilities[:, REFUSED]))
        if 0 < refusable < len(level)
        else float("nan"),
        float(cost_errors(probabilities, labels, costs).mean()),
    )


def measured_intervals(
    probabilities: Floats, labels: Labels, costs: Floats, resamples: int = 500, seed: int = 0
) -> dict[str, Interval]:
    """95 % intervals of all figures, questions resampled; replicates in which a figure does not exist are left out."""
    rng = np.random.default_rng(seed)
    count = len(labels.texts)
    draws = [rng.integers(0, count, count) for _ in range(resamples)]
    values = np.array([measure(probabilities[draw], labels.take(draw), costs) for draw in draws])
    whole = measure(probabilities, labels, costs)
    return {name: interval(value, column) for name, value, column in zip(whole._fields, whole, values.T, strict=True)}


def difference(values: Floats, weights: Floats) -> Interval:
    """Mean of (Q,) paired differences with a 95 % interval over questions ((resamples, Q) bootstrap weights)."""
    return interval(float(values.mean()), weights @ values)


def question_weights(questions: int, resamples: int = 4000, seed: int = 0) -> Floats:
    """(resamples, Q) shares of each question in a bootstrap resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(questions, np.full(questions, 1 / questions), resamples) / questions


class Against(NamedTuple):
    """What tags know beyond the look, on one kind of tasks: differences are gains, above 0 where tags are better."""

    task: str
    questions: int
    accuracy: float
    surface_accuracy: float
    accuracy_gain: Interval
    nats: float
    surface_nats: float
    nats_gain: Interval


def against(
    probabilities: Floats, surface: Floats, labels: Labels, groups: dict[str, npt.NDArray[np.bool_]]
) -> list[Against]:
    """Compare with the surface predictor on groups of questions (name -> (Q,) bool)."""
    scores: list[Callable[[Floats, Labels], Floats]] = [right, nats]
    found = []
    for name, here in groups.items():
        weights = question_weights(int(here.sum()))
        (hit, look_hit), (loss, look_loss) = (
            (score(probabilities, labels)[here], score(surface, labels)[here]) for score in scores
        )
        found.append(
            Against(
                name,
                int(here.sum()),
                float(hit.mean()),
                float(look_hit.mean()),
                difference(hit - look_hit, weights),
                float(loss.mean()),
                float(look_loss.mean()),
                difference(look_loss - loss, weights),
            )
        )
    return found
