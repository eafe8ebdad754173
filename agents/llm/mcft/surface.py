"""The surface predictor: what a question's look alone says about the outcomes of a model.

A control for self-knowledge: a model that knows itself must predict its outcomes better than a gradient-boosting
classifier that sees the family, the length and the digits of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from roi_env.sources.outcome_tables import OutcomeTable

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

Floats = npt.NDArray[np.float64]


class Successes(NamedTuple):
    """A table by question, samples in two halves (even and odd numbers).

    :param dataset: (Q,) str, the kind of task.
    :param difficulty: (Q,) int64, the visible one.
    :param texts: (Q,) str.
    :param right: (Q, K, 2) right answers in each half.
    :param answers: (Q, K, 2) answers in each half.
    :param tokens: (Q, K) mean cost.
    :param spread: (Q, K) standard deviation of the cost inside the question.
    """

    dataset: npt.NDArray[np.str_]
    difficulty: npt.NDArray[np.int64]
    texts: list[str]
    right: Floats
    answers: Floats
    tokens: Floats
    spread: Floats


def successes(table: OutcomeTable) -> Successes:
    """Count the outcomes of a table of one family with the column ``difficulty``."""
    of_row, first_row = table.questions()
    names = table.tier_names(table.menus[0])
    code, values = table.codes("tier")
    tier = np.array([names.index(value) for value in values])[code]
    half = table.numbers("sample") % 2
    shape = (len(first_row), len(names), 2)
    cell = (of_row * shape[1] + tier) * 2 + half
    right: Floats = np.bincount(cell, table.numbers("correct"), np.prod(shape)).astype(float).reshape(shape)
    answers: Floats = np.bincount(cell, minlength=np.prod(shape)).astype(float).reshape(shape)
    tokens = table.numbers("tokens").astype(float)
    both = answers.sum(2)
    mean = np.bincount(cell // 2, tokens, both.size).reshape(both.shape) / both
    square = np.bincount(cell // 2, tokens**2, both.size).reshape(both.shape) / both
    rows = table.rows
    pick = first_row.tolist()
    return Successes(
        np.array(rows["dataset"].take(pick).to_pylist()),
        np.array(rows["difficulty"].take(pick).to_pylist(), np.int64),
        rows["question"].take(pick).to_pylist(),
        right,
        answers,
        mean,
        np.sqrt(np.maximum(square - mean**2, 0)),
    )


def surface_features(dataset: Sequence[str] | npt.NDArray[np.str_], texts: Sequence[str], known: list[str]) -> Floats:
    """(Q, 6): number of the family in ``known`` (-1: unknown), characters, words, digits, numbers, longest number."""
    rows = []
    for name, text in zip(dataset, texts, strict=True):
        numbers = re.findall(r"\d+", text)
        digits = sum(map(len, numbers))
        family = known.index(name) if name in known else -1
        rows.append((family, len(text), len(text.split()), digits, len(numbers), max(map(len, numbers), default=0)))
    return np.array(rows, float)


def surface_classifier(seed: int) -> HistGradientBoostingClassifier:
    """The classifier of all surface predictors, for the columns of :func:`surface_features`."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_leaf_nodes=15,
        learning_rate=0.05,
        max_iter=150,
        min_samples_leaf=20,
        l2_regularization=1.0,
        categorical_features=[0],
        random_state=seed,
    )


class SurfacePredictor:
    """Probability of a right answer at every tier from a question's look."""

    def __init__(self, train: Successes, seed: int = 0) -> None:
        self._known = sorted(set(train.dataset.tolist()))
        features = surface_features(train.dataset, train.texts, self._known)
        right, count = train.right.sum(2), train.answers.sum(2)
        self._tiers: list[HistGradientBoostingClassifier | float] = []
        for k in range(right.shape[1]):
            # One row for the right answers of a question, one for the wrong ones, weighted by how many they are.
            weights = np.concatenate([right[:, k], count[:, k] - right[:, k]])
            labels = np.repeat([1, 0], len(features))
            used = weights > 0
            if len(set(labels[used])) == 1:
                self._tiers.append(float(labels[used][0]))
                continue
            tree = surface_classifier(seed)
            self._tiers.append(tree.fit(np.tile(features, (2, 1))[used], labels[used], weights[used]))

    def success(self, dataset: Sequence[str] | npt.NDArray[np.str_], texts: Sequence[str]) -> Floats:
        """(Q, K) probabilities."""
        features = surface_features(dataset, texts, self._known)
        return np.stack(
            [
                np.full(len(features), tier) if isinstance(tier, float) else tier.predict_proba(features)[:, 1]
                for tier in self._tiers
            ],
            axis=1,
        )


def log_loss(predicted: Floats, right: Floats, count: Floats) -> Floats:
    """Mean nats an answer of every question and tier: predictions (Q, K), right answers and answers (Q, K)."""
    p = np.clip(predicted, 1e-3, 1 - 1e-3)
    return -(right * np.log(p) + (count - right) * np.log(1 - p)) / count


class Ruler(NamedTuple):
    """Mean nats an answer on test questions (odd samples, all tiers), and its standard error over questions.

    ``surface``: the surface predictor; ``visible``: the law of the question's family and difficulty in the train split;
    ``own``: the question's own even samples, shrunk to the surface prediction with the weight of two samples. What lies between
    surface and own is there for self-knowledge to find.
    """

    family: str
    questions: int
    surface: float
    visible: float
    own: float
    gain: float
    gain_error: float


def rulers(train: Successes, test: Successes, seed: int = 0) -> list[Ruler]:
    """One ruler a kind of task."""
    surface = SurfacePredictor(train, seed).success(test.dataset, test.texts)
    visible = np.empty_like(surface)
    for q, (name, difficulty) in enumerate(zip(test.dataset, test.difficulty, strict=True)):
        like = (train.dataset == name) & (train.difficulty == difficulty)
        if not like.any():
            like = train.dataset == name
        visible[q] = (train.right[like].sum((0, 2)) + 0.5) / (train.answers[like].sum((0, 2)) + 1)
    own = (test.right[..., 0] + 2 * surface) / (test.answers[..., 0] + 2)
    losses = [log_loss(p, test.right[..., 1], test.answers[..., 1]).mean(1) for p in (surface, visible, own)]
    found = []
    for name in dict.fromkeys(test.dataset.tolist()):
        here = test.dataset == name
        look, law, self_knowledge = (loss[here] for loss in losses)
        gain = look - self_knowledge
        error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float("nan")
        found.append(
            Ruler(
                name,
                len(gain),
                float(look.mean()),
                float(law.mean()),
                float(self_knowledge.mean()),
                float(gain.mean()),
                error,
            )
        )
    return found
