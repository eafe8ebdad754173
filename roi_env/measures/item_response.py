"""Item response: a difficulty per question and a curve per tier, fitted to counts of right answers.

    P(right | question q, tier k) = sigmoid(slope_k * ease_q + intercept_k),   ease ~ N(0, 1)

The two-parameter logistic model, fitted by marginal maximum likelihood (R. D. Bock, M. Aitkin, "Marginal maximum likelihood
estimation of item parameters: application of an EM algorithm", Psychometrika 46, 1981). Questions lend strength to one another
and tiers too, so that few samples of a cell are denoised. A slope may be negative: curves are monotone only where data are.

>>> import numpy as np
>>> count = np.full((200, 2), 4.0)
>>> ease = np.random.default_rng(0).normal(size=200)
>>> chance = 1 / (1 + np.exp(-(2 * ease[:, None] + np.array([-1.0, 1.0]))))
>>> right = np.random.default_rng(1).binomial(4, chance).astype(float)
>>> model = fit_item_response(right, count)
>>> bool(np.corrcoef(model.ease(right, count), ease)[0, 1] > 0.8)
True
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NODES: Floats = np.linspace(-4.0, 4.0, 33)
"""Quadrature nodes of the ease."""
_PRIOR: Floats = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
_ROUNDS = 60
# Weak priors, worth less than one question: without them a tier that is always right has no finite curve.
_SLOPE, _SLOPE_PRECISION, _INTERCEPT_PRECISION = 1.0, 0.5, 0.05


@dataclass(frozen=True)
class ItemResponse:
    """A fitted model.

    :param slope: (K,) by tier, per standard deviation of ease.
    :param intercept: (K,) log odds of a question of mean ease.
    """

    slope: Floats
    intercept: Floats

    @property
    def curves(self) -> Floats:
        """(33, K) probability of a right answer at every node of the ease."""
        return _sigmoid(NODES[:, None] * self.slope + self.intercept)

    def posterior(self, right: Floats, count: Floats) -> Floats:
        """(Q, 33) probability of every node given (Q, K) right answers out of (Q, K) answers; 0 answers say nothing."""
        p = np.clip(self.curves, 1e-9, 1 - 1e-9)
        score = right @ np.log(p).T + (count - right) @ np.log1p(-p).T + np.log(_PRIOR)
        score = np.exp(score - score.max(1, keepdims=True))
        return np.asarray(score / score.sum(1, keepdims=True))

    def ease(self, right: Floats, count: Floats) -> Floats:
        """(Q,) posterior mean of the ease."""
        return np.asarray(self.posterior(right, count) @ NODES)

    def success(self, right: Floats, count: Floats) -> Floats:
        """(Q, K) posterior mean of the probability of a right answer."""
        return np.asarray(self.posterior(right, count) @ self.curves)


def fit_item_response(right: npt.ArrayLike, count: npt.ArrayLike) -> ItemResponse:
    """Fit the curves of K tiers to Q questions.

    :param right: (Q, K) right answers.
    :param count: (Q, K) answers; 0 where a tier was not recorded.
    :raises ValueError: for shapes that differ, or more right answers than answers.
    """
    hits, answers = np.asarray(right, np.float64), np.asarray(count, np.float64)
    if hits.shape != answers.shape or hits.ndim != 2 or (hits > answers).any() or (hits < 0).any():
        raise ValueError("right and count must be (Q, K) arrays with 0 <= right <= count")
    mean = (hits.sum(0) + 0.5) / (answers.sum(0) + 1.0)
    model = ItemResponse(np.full(hits.shape[1], _SLOPE), np.log(mean / (1 - mean)))
    for _ in range(_ROUNDS):
        at_node = model.posterior(hits, answers).T
        model = _steps(model, at_node @ hits, at_node @ answers)
    return model


def _steps(model: ItemResponse, right: Floats, count: Floats) -> ItemResponse:
    """Two Newton steps of every tier's penalised logistic regression on the nodes: (33, K) expected counts."""
    slope, intercept = model.slope, model.intercept
    for _ in range(2):
        p = _sigmoid(NODES[:, None] * slope + intercept)
        residual, weight = right - count * p, count * p * (1 - p)
        g1 = (NODES[:, None] * residual).sum(0) - _SLOPE_PRECISION * (slope - _SLOPE)
        g0 = residual.sum(0) - _INTERCEPT_PRECISION * intercept
        h11 = (NODES[:, None] ** 2 * weight).sum(0) + _SLOPE_PRECISION
        h10, h00 = (NODES[:, None] * weight).sum(0), weight.sum(0) + _INTERCEPT_PRECISION
        determinant = h11 * h00 - h10**2
        # Short steps: a Newton step from far away may overshoot.
        slope = slope + np.clip((h00 * g1 - h10 * g0) / determinant, -1.0, 1.0)
        intercept = intercept + np.clip((h11 * g0 - h10 * g1) / determinant, -1.0, 1.0)
    return ItemResponse(slope, intercept)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -40, 40))))
