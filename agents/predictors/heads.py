"""From a question's scores to calibrated laws of every tier: a curve of success and a law of costs per tier.

Curves are logistic regressions on *out-of-fold* scores (and on validation questions' scores), so that they are calibrated: scores
that say little get flat curves, and the law is then the data set's. Slopes have any sign and any order: tiers are monotone only
where data are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.predictors.records import Records

Floats = npt.NDArray[np.float64]

SUPPORT = 8
"""Equally likely costs of a right answer, and as many of a wrong one."""
_SLOPE_PRECISION = 2.0
"""Of a slope's prior around 0, in questions (per squared unit)."""


@dataclass(frozen=True)
class Heads:
    """Curves of K tiers over S scores.

    Beside the scores curves read indicators of published values, so that a data set whose tiers behave unlike the others'
    has curves of its own height.

    :param success: (K, 1 + S) log odds: intercept, slopes.
    :param cost: (K, 1 + S) mean log tokens: intercept, slopes.
    :param spread: (K, 2, SUPPORT) log tokens above that mean, at equally likely quantiles: of wrong, of right answers.
    """

    success: Floats
    cost: Floats
    spread: Floats

    def probability(self, scores: Floats) -> Floats:
        """(n, K) probability of a right answer given (n, S) scores."""
        return _sigmoid(scores @ self.success[:, 1:].T + self.success[:, 0])

    def costs(self, scores: Floats) -> Floats:
        """(n, K, 2, SUPPORT) tokens >= 1: equally likely costs of a wrong and of a right answer."""
        mean = scores @ self.cost[:, 1:].T + self.cost[:, 0]
        return np.maximum(1.0, np.rint(np.exp(mean[:, :, None, None] + self.spread)))

    def expected_cost(self, scores: Floats) -> Floats:
        """(n, K) expected tokens."""
        p, costs = self.probability(scores), self.costs(scores).mean(3)
        return np.asarray((1 - p) * costs[:, :, 0] + p * costs[:, :, 1])

    def vector(self, scores: Floats) -> Floats:
        """(n, 2 K) what laws are compared by: success relative to its mean, and log expected tokens.

        A tier's worth is success per token, so relative differences of the two weigh the same.
        """
        p = self.probability(scores)
        mean = _sigmoid(self.success[:, 0])
        return np.concatenate([p / np.maximum(mean, 0.05), np.log(self.expected_cost(scores))], 1)


def fit_heads(found: Records, scores: Floats) -> Heads:
    """Fit the curves to questions and their out-of-fold (or held-out) scores."""
    design = np.concatenate([np.ones((len(scores), 1)), scores], 1)
    tiers = len(found.tiers)
    success = np.stack([_logistic(design, found.right[:, k], found.count[:, k]) for k in range(tiers)])
    cost, spread = np.zeros((tiers, design.shape[1])), np.zeros((tiers, 2, SUPPORT))
    log_tokens = found.log_tokens
    levels = (np.arange(SUPPORT) + 0.5) / SUPPORT
    for k in range(tiers):
        seen = found.count[:, k] > 0
        if not seen.any():
            continue
        x, y = design[seen], log_tokens[seen, k]
        penalty = np.diag([0.0] + [_SLOPE_PRECISION] * scores.shape[1])
        cost[k] = np.linalg.solve(x.T @ x + penalty, x.T @ y)
        rows = found.tier == k
        rest = np.log(found.tokens[rows]) - design[found.question[rows]] @ cost[k]
        for right in (0, 1):
            mine = rest[found.correct[rows] == bool(right)]
            # Of few answers the quantiles say little: then those of all answers of the tier.
            spread[k, right] = np.quantile(mine if len(mine) >= 2 * SUPPORT else rest, levels)
    return Heads(success, cost, spread)


def _logistic(design: Floats, right: Floats, count: Floats) -> Floats:
    """Penalised logistic regression by Newton's method; every question weighs 1, whatever its samples."""
    weight = (count > 0).astype(float)
    share = np.where(count > 0, right / np.maximum(count, 1), 0.0)
    total = weight.sum()
    mean = (float(weight @ share) + 0.5) / (total + 1)
    beta = np.zeros(design.shape[1])
    beta[0] = np.log(mean / (1 - mean))
    precision = np.array([0.1] + [_SLOPE_PRECISION] * (design.shape[1] - 1))
    centre = np.zeros_like(beta)
    centre[0] = beta[0]
    for _ in range(50):
        p = _sigmoid(design @ beta)
        slope = design.T @ (weight * (share - p)) - precision * (beta - centre)
        bend = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(precision)
        step = np.linalg.solve(bend, slope)
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return beta


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -40, 40))))
