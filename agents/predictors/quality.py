"""How good predictions are on questions that nobody fitted them to, beside the data set's means."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents.predictors.records import Records

Floats = npt.NDArray[np.float64]
BINS = 10


class Quality(NamedTuple):
    """By tier, (K,) each; questions weigh the same. nan where it has no meaning (AUC: all right, or all wrong).

    :param log_loss: nats an answer.
    :param brier: mean squared error of the probability, an answer.
    :param calibration: expected calibration error, ten bins of equal width.
    :param auc: chance that a right answer was given a higher probability than a wrong one.
    :param cost: mean absolute error of a question's expected tokens, relative to the tier's mean.
    """

    log_loss: Floats
    brier: Floats
    calibration: Floats
    auc: Floats
    cost: Floats


def quality(found: Records, success: Floats, tokens: Floats) -> Quality:
    """Judge (Q, K) probabilities of right answers and expected tokens."""
    share = _shares(found)
    p = np.clip(success, 1e-3, 1 - 1e-3)
    columns = []
    for k in range(len(found.tiers)):
        seen = found.count[:, k] > 0
        right, mine = share[seen, k], p[seen, k]
        if not seen.any():
            columns.append([float("nan")] * 5)
            continue
        spent = np.bincount(found.question[found.tier == k], found.tokens[found.tier == k], len(found))
        actual = spent[seen] / found.count[seen, k]
        predicted, happened, mass = reliability(right, success[seen, k])
        used = mass > 0
        columns.append(
            [
                float(-(right * np.log(mine) + (1 - right) * np.log1p(-mine)).mean()),
                float((right * (1 - mine) ** 2 + (1 - right) * mine**2).mean()),
                float((mass[used] * np.abs(predicted[used] - happened[used])).sum() / mass.sum()),
                _auc(mine, right),
                float(np.abs(tokens[seen, k] - actual).mean() / actual.mean()),
            ]
        )
    return Quality(*np.array(columns).T)


def _shares(found: Records) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(found.count > 0, found.right / found.count, np.nan)


def reliability(right: Floats, predicted: Floats) -> tuple[Floats, Floats, Floats]:
    """(BINS,) mean prediction, share of right answers, and questions of every bin of predictions."""
    place = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    mass = np.bincount(place, minlength=BINS).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(place, predicted, BINS) / mass, np.bincount(place, right, BINS) / mass, mass


def _auc(predicted: Floats, right: Floats) -> float:
    """Mann-Whitney statistic with every question's answers as fractions of one; ties count a half."""
    _, rank = np.unique(predicted, return_inverse=True)
    hits, misses = np.bincount(rank, right), np.bincount(rank, 1 - right)
    if hits.sum() <= 0 or misses.sum() <= 0:
        return float("nan")
    below = np.cumsum(misses) - misses
    return float((hits * (below + misses / 2)).sum() / (hits.sum() * misses.sum()))


def column_means(train: Records, asked: Records, column: str) -> tuple[Floats, Floats]:
    """(Q, K) success and expected tokens by the train questions of a question's value: what needs no predictor.

    Means are shrunk to all train questions' with the weight of one question; a value that they have not gets theirs.
    """
    share = np.nan_to_num(_shares(train))
    total = np.zeros(train.count.shape)
    np.add.at(total, (train.question, train.tier), train.tokens)
    spent = total / np.maximum(train.count, 1)
    seen = train.count > 0
    success, tokens = (values.sum(0) / np.maximum(seen.sum(0), 1) for values in (share, spent))
    found = np.empty((2, len(asked), len(train.tiers)))
    found[0], found[1] = success, tokens
    if column in train.columns and column in asked.columns:
        here, there = np.array(train.columns[column]), np.array(asked.columns[column])
        for value in np.unique(there):
            mine = here == value
            count = seen[mine].sum(0) + 1.0
            found[0][there == value] = (share[mine].sum(0) + success) / count
            found[1][there == value] = (spent[mine].sum(0) + tokens) / count
    return found[0], found[1]
