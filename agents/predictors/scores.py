"""From features to a question's scores: ease, gain and length, three numbers that all tiers share.

* *ease*: of the item-response model of right answers (:mod:`roi_env.measures.item_response`);
* *gain*: how much more often than the curves say the dearer half of the tiers is right than the cheaper half;
* *length*: mean log tokens against the tier's mean.

Each is predicted by itself, as strongly as cross-validation on train questions says; where nothing predicts it, the
prediction is the mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.predictors.features import Arrays
from agents.predictors.records import Records
from roi_env.measures.item_response import fit_item_response

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SCORES = ("ease", "gain", "length")
FOLDS = 5


def targets(found: Records) -> Floats:
    """(Q, 3) what is known of :data:`SCORES` from outcomes, in standard units of these questions (0 where all are alike)."""
    model = fit_item_response(found.right, found.count)
    ease = model.ease(found.right, found.count)
    tiers = found.count.shape[1]
    seen = found.count > 0
    # A cell of n samples counts n / (n + 2): what little is known is drawn to the curve.
    rest = (found.right - found.count * model.success(found.right, found.count)) / (found.count + 2)
    side = np.where(np.arange(tiers) >= tiers / 2, 1.0, -1.0) if tiers > 1 else np.zeros(1)
    gain = (rest * side).sum(1)
    log_tokens = found.log_tokens
    mean = np.nansum(log_tokens, 0) / np.maximum(seen.sum(0), 1)
    length = np.where(seen, log_tokens - mean, 0.0).sum(1) / np.maximum(seen.sum(1), 1)
    stacked = np.stack([ease, gain, length], 1)
    spread = stacked.std(0)
    return np.asarray(np.where(spread > 1e-9, (stacked - stacked.mean(0)) / np.maximum(spread, 1e-9), 0.0))


def folds_of(cluster: Ints, seed: int = 0) -> Ints:
    """(n,) fold of every question; clusters of near duplicates stay together, folds are about equally large."""
    rng = np.random.default_rng(seed)
    names, size = np.unique(cluster, return_counts=True)
    order = rng.permutation(len(names))
    place = np.empty(len(names), np.int64)
    place[order] = (np.cumsum(size[order]) - size[order]) * FOLDS // size.sum()
    return place[np.searchsorted(names, cluster)]


class Scorer(ABC):
    """Features to scores (n, 3)."""

    kind: ClassVar[str]

    @abstractmethod
    def fit(self, features: Any, target: Floats, fold: Ints) -> Floats:
        """Fit on all rows; returns (n, 3) predictions of every row by the folds that it is not in."""

    @abstractmethod
    def predict(self, features: Any) -> Floats:
        """(n, 3)."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """What :meth:`restore` needs."""

    @abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Take in what :meth:`arrays` gave."""


_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def _best(out_of_fold: list[Floats], target: Floats) -> tuple[list[int], Floats]:
    """Which of several predictions (each (n, 3)) has the least squared error, by score; -1: the mean has (zero)."""
    errors = np.stack([((one - target) ** 2).mean(0) for one in out_of_fold])
    chosen, kept = [], np.zeros_like(target)
    for score in range(target.shape[1]):
        best = int(errors[:, score].argmin())
        if errors[best, score] < (target[:, score] ** 2).mean():
            chosen.append(best)
            kept[:, score] = out_of_fold[best][:, score]
        else:
            chosen.append(-1)
    return chosen, kept


class Linear(Scorer):
    """Ridge regression, one penalty a score."""

    kind = "linear"

    def fit(self, features: Any, target: Floats, fold: Ints) -> Floats:
        """See the base class."""
        from sklearn.linear_model import Ridge

        def ridge(penalty: float, rows: npt.NDArray[np.bool_]) -> Any:
            return Ridge(penalty, solver="auto", tol=1e-4).fit(features[rows], target[rows])

        found = []
        for penalty in _PENALTIES:
            out = np.zeros_like(target)
            for number in np.unique(fold):
                out[fold == number] = ridge(penalty, fold != number).predict(features[fold == number])
            found.append(out)
        chosen, kept = _best(found, target)
        self._coefficients = np.zeros((features.shape[1], target.shape[1]))
        self._intercept = np.zeros(target.shape[1])
        everything = np.ones(len(target), np.bool_)
        for score, best in enumerate(chosen):
            if best >= 0:
                fitted = ridge(_PENALTIES[best], everything)
                self._coefficients[:, score] = fitted.coef_[score]
                self._intercept[score] = fitted.intercept_[score]
        return kept

    def predict(self, features: Any) -> Floats:
        """(n, 3)."""
        return np.asarray(features @ self._coefficients + self._intercept)

    def arrays(self) -> Arrays:
        """Coefficients and intercepts."""
        return {"coefficients": self._coefficients, "intercept": self._intercept}

    def restore(self, arrays: Arrays) -> None:
        """Coefficients and intercepts."""
        self._coefficients, self._intercept = arrays["coefficients"], arrays["intercept"]


class Trees(Scorer):
    """Gradient-boosted trees of depth three, as many as cross-validation says."""

    kind = "trees"
    _MOST, _STEP, _RATE = 120, 10, 0.06

    def fit(self, features: Any, target: Floats, fold: Ints) -> Floats:
        """See the base class."""
        from sklearn.ensemble import GradientBoostingRegressor

        def boosted(rows: npt.NDArray[np.bool_], score: int) -> Any:
            return GradientBoostingRegressor(
                n_estimators=self._MOST,
                learning_rate=self._RATE,
                max_depth=3,
                min_samples_leaf=10,
                subsample=0.7,
                random_state=0,
            ).fit(features[rows], target[rows, score])

        stages = range(self._STEP, self._MOST + 1, self._STEP)
        found = [np.zeros_like(target) for _ in stages]
        for number in np.unique(fold):
            inside = fold == number
            for score in range(target.shape[1]):
                staged = list(boosted(~inside, score).staged_predict(features[inside]))
                for out, trees in zip(found, stages, strict=True):
                    out[inside, score] = staged[trees - 1]
        chosen, kept = _best(found, target)
        nodes: list[Floats] = []
        self._start: list[list[int]] = []
        self._mean = np.zeros(target.shape[1])
        size = 0
        for score, best in enumerate(chosen):
            starts: list[int] = []
            if best >= 0:
                fitted = boosted(np.ones(len(target), np.bool_), score)
                self._mean[score] = float(fitted.init_.constant_.item())
                for one in fitted.estimators_[: stages[best], 0]:
                    tree = one.tree_
                    leaf = tree.children_left < 0
                    block = np.stack(
                        [
                            np.where(leaf, -1, tree.feature),
                            # Features are compared as float32, as the trees were grown.
                            tree.threshold,
                            np.where(leaf, 0, tree.children_left + size),
                            np.where(leaf, 0, tree.children_right + size),
                            self._RATE * tree.value[:, 0, 0],
                        ],
                        1,
                    )
                    starts.append(size)
                    nodes.append(block)
                    size += len(block)
            self._start.append(starts)
        self._nodes = np.concatenate(nodes) if nodes else np.zeros((0, 5))
        return kept

    def predict(self, features: Any) -> Floats:
        """(n, 3)."""
        rows = np.asarray(features, np.float32)
        found = np.tile(self._mean, (len(rows), 1))
        which, threshold, left, right, value = self._nodes.T
        feature = which.astype(np.int64)
        for score, starts in enumerate(self._start):
            if not starts:
                continue
            at = np.tile(np.array(starts), (len(rows), 1))
            while (inner := feature[at] >= 0).any():
                seen = np.take_along_axis(rows, np.maximum(feature[at], 0), 1)
                following = np.where(seen <= threshold[at], left[at], right[at]).astype(np.int64)
                at = np.where(inner, following, at)
            found[:, score] += value[at].sum(1)
        return found

    def arrays(self) -> Arrays:
        """All nodes (feature, threshold, left, right, value), and where the trees of each score begin."""
        return {
            "nodes": self._nodes,
            "mean": self._mean,
            "starts": np.array([start for starts in self._start for start in starts], np.int64),
            "trees": np.array([len(starts) for starts in self._start], np.int64),
        }

    def restore(self, arrays: Arrays) -> None:
        """Nodes and where trees begin."""
        self._nodes, self._mean = arrays["nodes"], arrays["mean"]
        ends = np.cumsum(arrays["trees"])
        self._start = [part.tolist() for part in np.split(arrays["starts"], ends[:-1])]


class Neighbours(Scorer):
    """Mean of the k train questions that are nearest by cosine, as many as cross-validation says."""

    kind = "neighbours"
    _COUNTS = (3, 5, 10, 20, 40, 80)

    def fit(self, features: Any, target: Floats, fold: Ints) -> Floats:
        """See the base class."""
        from scipy.sparse import csr_matrix

        self._features, self._target = csr_matrix(features), target
        found = [np.zeros_like(target) for _ in self._COUNTS]
        for number in np.unique(fold):
            inside = fold == number
            near = self._nearest(self._features[inside], self._features[~inside])
            known = target[~inside]
            for out, count in zip(found, self._COUNTS, strict=True):
                out[inside] = self._mean(near, known, min(count, near.shape[1]))
        chosen, kept = _best(found, target)
        self._count = np.array([self._COUNTS[best] if best >= 0 else 0 for best in chosen])
        return kept

    def _nearest(self, rows: Any, known: Any) -> Ints:
        """(n, 80) numbers of the nearest known rows, nearest first; ties by number."""
        most = min(max(self._COUNTS), known.shape[0])
        parts = []
        for start in range(0, rows.shape[0], 512):
            likeness = (rows[start : start + 512] @ known.T).toarray()
            parts.append(np.argsort(-likeness, axis=1, kind="stable")[:, :most])
        return np.concatenate(parts)

    @staticmethod
    def _mean(near: Ints, known: Floats, count: int) -> Floats:
        return np.asarray(known[near[:, :count]].mean(1))

    def predict(self, features: Any) -> Floats:
        """(n, 3)."""
        from scipy.sparse import csr_matrix

        near = self._nearest(csr_matrix(features), self._features)
        found = np.zeros((near.shape[0], len(self._count)))
        for score, count in enumerate(self._count):
            if count:
                found[:, score] = self._mean(near, self._target, min(int(count), near.shape[1]))[:, score]
        return found

    def arrays(self) -> Arrays:
        """Features (sparse), targets and counts."""
        matrix = self._features
        return {
            "data": matrix.data,
            "indices": matrix.indices,
            "indptr": matrix.indptr,
            "shape": np.array(matrix.shape),
            "target": self._target,
            "count": self._count,
        }

    def restore(self, arrays: Arrays) -> None:
        """Features, targets and counts."""
        from scipy.sparse import csr_matrix

        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        self._features = csr_matrix(parts, tuple(arrays["shape"].tolist()))
        self._target, self._count = arrays["target"], arrays["count"]


class Boosted(Scorer):
    """Ridge regression on everything, then trees on what it leaves over, which read the last columns alone (not the words).

    :param read: how many.
    """

    kind = "boosted"

    def __init__(self, read: int = 0) -> None:
        self._linear, self._trees, self._read = Linear(), Trees(), read

    def fit(self, features: Any, target: Floats, fold: Ints) -> Floats:
        """See the base class."""
        by_words = self._linear.fit(features, target, fold)
        return np.asarray(by_words + self._trees.fit(self._look(features), target - by_words, fold))

    def _look(self, features: Any) -> Floats:
        return np.asarray(features[:, features.shape[1] - self._read :].toarray())

    def predict(self, features: Any) -> Floats:
        """(n, 3)."""
        return np.asarray(self._linear.predict(features) + self._trees.predict(self._look(features)))

    def arrays(self) -> Arrays:
        """Both."""
        return {
            "read": np.array(self._read),
            **{f"linear.{name}": array for name, array in self._linear.arrays().items()},
            **{f"trees.{name}": array for name, array in self._trees.arrays().items()},
        }

    def restore(self, arrays: Arrays) -> None:
        """Both."""
        self._read = int(arrays["read"])
        for prefix, part in (("linear.", self._linear), ("trees.", self._trees)):
            part.restore({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})


SCORERS: dict[str, type[Scorer]] = {one.kind: one for one in (Linear, Trees, Neighbours, Boosted)}
"""By the name in files."""
