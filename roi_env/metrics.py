"""Measures of a comparison: four values, three regrets, and paired bootstrap intervals around all of them.

Data in, numbers out (the style of bsuite): every function takes arrays indexed by exam and returns numbers or arrays.
Nothing here knows an environment, an agent or a file.

How an interval is made. :func:`bootstrap_weights` draws R sets of weights over the E exams *once*; every mean is then
recomputed under each of the R sets (:func:`resampled_means`), every derived quantity is computed from those means, and
:func:`interval` reads off percentiles. Because all agents and all references share the weights, every interval is
paired: what is common to two agents (an easy exam, an easy question) cancels in their difference or ratio.

Ratios are ratios of means, never means of per-exam ratios: an exam whose optimum is near zero would otherwise count
without bound. For the same reason there is no interquartile mean here: it answers outlying *tasks with incomparable
scales* (Agarwal et al. 2021), and exams of one setting have one scale.

Sources: R. Agarwal, M. Schwarzer, P. S. Castro, A. Courville, M. G. Bellemare, "Deep Reinforcement Learning at the Edge
of the Statistical Precipice", NeurIPS 2021 (performance profiles, probability of improvement); A. B. Owen, "The
pigeonhole bootstrap", Ann. Appl. Stat. 1 (2007), and A. B. Owen, D. Eckles, "Bootstrapping data arrays of arbitrary
order", Ann. Appl. Stat. 6 (2012) (resampling several crossed factors); W. Hoeffding, "A class of statistics with
asymptotically normal distribution", Ann. Math. Stat. 19 (1948) (the projection onto single questions).
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Value = TypeVar("Value", float, Floats)
"""A number, or an array of bootstrap replicates of it."""

SAME_SCORE = 1e-9
"""Two scores closer than this (relative to the larger) are a tie: exact evaluations of one policy may differ in the
last bits."""


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval (same unit as the estimate)."""

    value: float
    low: float
    high: float


class Regrets(NamedTuple):
    """``oracle - score`` in three parts that add up to it (score units; floats or arrays of replicates).

    ``luck`` = oracle - informed: what only knowing the outcomes would bring; no agent can earn it.
    ``information`` = informed - optimum: what knowing each task's true law would bring; it is earned by reading more
    than the published features. ``policy`` = optimum - score: lost by deciding badly on what is published; negative
    when an agent reads more than that.
    """

    luck: float | Floats
    information: float | Floats
    policy: float | Floats


def normalised(score: Value, optimum: Value) -> Value:
    """Optimum-normalised score: 1 is the best policy on the published features.

    Args:
        score: mean score (weighted correct answers per exam), or its replicates.
        optimum: mean optimum on the same exams under the same weights.

    Returns:
        ``score / optimum``; NaN where the optimum is zero (nothing could be won).
    """
    return _ratio(score, optimum)


def gap_ratio(score: Value, oracle: Value) -> Value:
    """GapRatio = (oracle - score) / oracle: the share of the clairvoyant score that was missed. NaN if oracle is 0."""
    return _ratio(oracle - score, oracle)


def paper_regret(score: Value, easy_first: Value) -> Value:
    """The regret of arXiv 2601.03822: (score_easy_first - score) / score_easy_first.

    Args:
        score: mean score of an agent with the tasks in some order.
        easy_first: mean score of the *same agent* on the *same tasks* and budget, easiest first.

    Returns:
        Share of the easy-first score lost to the order; NaN if the easy-first score is 0.
    """
    return _ratio(easy_first - score, easy_first)


def regrets(score: Value, optimum: Value, informed: Value, oracle: Value) -> Regrets:
    """Split ``oracle - score`` into luck, information and policy (see :class:`Regrets`)."""
    return Regrets(luck=oracle - informed, information=informed - optimum, policy=optimum - score)


def calibration_error(
    expected: npt.ArrayLike, actual: npt.ArrayLike, mass: npt.ArrayLike, relative: bool = False
) -> float:
    """Calibration error of tier choice: the mass-weighted mean of abs(expected - actual) over cells.

    The expected calibration error (Naeini, Cooper, Hauskrecht, AAAI 2015) with chosen tiers as bins: what an agent
    believed of the attempts it chose against what became of them. Over-confidence here is the winner's curse of
    choosing by belief.

    Args:
        expected: believed success probability (or tokens) per cell.
        actual: realised frequency (or mean tokens) per cell.
        mass: expected number of choices per cell; cells without mass are ignored.
        relative: divide by the mass-weighted mean of ``actual`` (for tokens).

    Returns:
        The error; NaN when no cell has mass.
    """
    e, a, m = (np.asarray(x, dtype=np.float64) for x in (expected, actual, mass))
    if not e.shape == a.shape == m.shape:
        raise ValueError(f"expected, actual and mass must have one shape, got {e.shape}, {a.shape}, {m.shape}")
    used = m > 0
    if not used.any():
        return float("nan")
    error = float(np.average(np.abs(e[used] - a[used]), weights=m[used]))
    return _ratio(error, float(np.average(a[used], weights=m[used]))) if relative else error


def bootstrap_weights(
    num_exams: int, resamples: int, rng: np.random.Generator, questions: npt.ArrayLike | None = None
) -> Floats:
    r"""Weights of exams in each bootstrap replicate.

    Without ``questions`` (synthetic sources: exams are independent draws) weights are multinomial counts: E exams
    drawn with replacement (Efron 1979).

    With ``questions`` (recorded sources) exams share questions, so they are not independent: another table of
    questions would shift all exams at once, and an interval over exams alone is too narrow however many exams are
    run. A question's effect on the mean is, to first order, Hoeffding's projection: write the score of exam e as
    :math:`S_e = \mu + \sum_{q \in e} h(q) + \varepsilon_e`. With Q questions, N per exam, E exams,

    .. math:: \operatorname{Var}(\bar S) = \sigma_h^2 \sum_q c_q^2 / E^2 + \sigma_\varepsilon^2 / E
              \approx N^2 \sigma_h^2 / Q + \operatorname{Var}(S_e) / E,

    where :math:`c_q` counts the exams that contain q. The linearised pigeonhole bootstrap gives exam e the weight
    :math:`w_e = 1 + \alpha \sum_{q \in e} (m_q - 1)`, with m multinomial multiplicities of the questions. The
    variance of the weighted mean is then :math:`\alpha^2 \sum_q (\sum_{e \ni q} (S_e - \bar S))^2 / E^2`, whose
    expectation is :math:`\alpha^2 (\sigma_h^2 \|G\|_F^2 + \sigma_\varepsilon^2 N E) / E^2` to first order, where
    :math:`G = X^T X - c c^T / E` and X is the incidence of questions in exams. Hence

    .. math:: \alpha^2 = \sum_q c_q^2 / \|G\|_F^2 \quad (\approx (E + Q/N) / (E + Q) \text{ in balanced designs})

    makes the variance exact when scores are sums of question effects, and conservative otherwise (the factor on
    :math:`\sigma_\varepsilon^2 / E` is :math:`\alpha^2 N \ge 1`). Its limits are the right ones: resampling questions
    when every question is in many exams, resampling exams when exams share none. Multiplying by an exam-level
    multiplicity as well (:math:`\alpha = 1`, :math:`n_e w_e`) would count :math:`\operatorname{Var}(S_e)/E` a further
    1 + N times, and doubles intervals at N = 10, E = 2Q.

    Replicates are centred to mean weight 1 rather than divided by their total: the two agree to first order, and a
    total of signed weights may come near zero in small designs. Weights may be negative; they are meant for means.

    Args:
        num_exams: E >= 1.
        resamples: R >= 1, number of replicates.
        rng: source of randomness; equal states give equal weights.
        questions: (E, N) identifiers of the questions in each exam; None for independent exams.

    Returns:
        (R, E) weights; every row has mean 1.
    """
    if num_exams < 1 or resamples < 1:
        raise ValueError(f"need at least one exam and one resample, got {num_exams} and {resamples}")
    if questions is None:
        return _multinomial(num_exams, resamples, rng)
    ids = np.asarray(questions)
    if ids.ndim != 2 or len(ids) != num_exams:
        raise ValueError(f"questions must have shape ({num_exams}, tasks per exam), got {ids.shape}")
    unique, codes = np.unique(ids, return_inverse=True)
    codes = codes.reshape(ids.shape)
    count = np.bincount(codes.ravel(), minlength=len(unique)).astype(np.float64)
    # ||G||^2 = ||X'X||^2 - 2 |Xc|^2 / E + (c'c)^2 / E^2, and X'X holds the co-occurrence counts of question pairs.
    pairs = codes[:, :, None].astype(np.int64) * len(unique) + codes[:, None, :]
    together = np.unique(pairs.ravel(), return_counts=True)[1].astype(np.float64)
    own = float(count @ count)
    frobenius = float(together @ together) - 2 * float((count[codes].sum(1) ** 2).sum()) / num_exams
    frobenius += own**2 / num_exams**2
    # The clip: with a handful of exams G may vanish (one exam, or all exams alike), and alpha must not explode.
    alpha = np.sqrt(own / frobenius) if frobenius > own else 1.0
    excess = _multinomial(len(unique), resamples, rng) - 1.0
    weights = np.zeros((resamples, num_exams))
    for column in codes.T:  # one gather a task keeps memory at two (R, E) arrays, not (R, E, N)
        weights += excess[:, column]
    weights -= weights.mean(axis=1, keepdims=True)
    weights *= alpha
    weights += 1.0
    return weights


def seed_weights(num_seeds: int, resamples: int, rng: np.random.Generator) -> Floats:
    """Multinomial weights of training seeds: the level above exams.

    With S seeds the percentile bootstrap understates the seed variance by the factor (S - 1)/S: three seeds give
    intervals that are honest about exams and optimistic about training.

    Args:
        num_seeds: S >= 1.
        resamples: R, number of replicates.
        rng: source of randomness. Give every agent its own: their training runs are independent.

    Returns:
        (R, S) weights; every row has mean 1.
    """
    if num_seeds < 1 or resamples < 1:
        raise ValueError(f"need at least one seed and one resample, got {num_seeds} and {resamples}")
    return _multinomial(num_seeds, resamples, rng)


def resampled_means(values: npt.ArrayLike, weights: Floats, seeds: Floats | None = None) -> Floats:
    """Mean of a per-exam quantity under every replicate.

    Args:
        values: (E,) per exam, (S, E) per training seed and exam, or (Q, S, E) for Q quantities in one pass over the
            weights (several times faster than Q calls).
        weights: (R, E) from :func:`bootstrap_weights`.
        seeds: (R, S) from :func:`seed_weights`; None weighs seeds equally.

    Returns:
        (R,) means, or (R, Q). Seeds and exams are crossed (each seed takes every exam), so the weight of a cell is
        the product.
    """
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.shape[-1] != weights.shape[1]:
        raise ValueError(f"{array.shape[-1]} exams in values, {weights.shape[1]} in weights")
    per_seed = weights @ array.reshape(-1, array.shape[-1]).T / weights.shape[1]
    per_seed = per_seed.reshape(len(weights), *array.shape[:-1])
    if seeds is None:
        return np.asarray(per_seed.mean(axis=-1), dtype=np.float64)
    if seeds.shape != (len(weights), array.shape[-2]):
        raise ValueError(f"seed weights must have shape {(len(weights), array.shape[-2])}, got {seeds.shape}")
    return np.asarray(np.einsum("r...s,rs->r...", per_seed, seeds) / array.shape[-2], dtype=np.float64)


def interval(value: float, replicates: Floats, level: float = 0.95) -> Interval:
    """Percentile interval (Efron 1979) around an estimate.

    Args:
        value: the estimate on the unweighted data.
        replicates: (R,) the same statistic under every replicate; NaN replicates are ignored.
        level: coverage aimed at.

    Returns:
        The interval; NaN ends when no replicate is finite.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def exam_ratios(scores: npt.ArrayLike, optimum: npt.ArrayLike) -> Floats:
    """Per-exam optimum-normalised scores, for profiles only.

    Args:
        scores: (..., E) score per exam.
        optimum: (E,) optimum per exam. Where it is zero nothing could be won and the ratio is 1.

    Returns:
        (..., E) ratios.
    """
    s, best = np.asarray(scores, dtype=np.float64), np.asarray(optimum, dtype=np.float64)
    return np.divide(s, best, out=np.ones(np.broadcast_shapes(s.shape, best.shape)), where=best > 0)


def performance_profile(ratios: npt.ArrayLike, thresholds: npt.ArrayLike, weights: Floats | None = None) -> Floats:
    """Performance profile: share of exams (and seeds) whose ratio reaches each threshold.

    The score distribution of Agarwal et al. 2021 (after Dolan and More 2002), with exams in place of runs.

    Args:
        ratios: (E,) or (S, E) from :func:`exam_ratios`.
        thresholds: (T,) values of tau.
        weights: (R, E); None gives the unweighted profile.

    Returns:
        (T,) shares, or (R, T) with weights; in [0, 1], not increasing in tau when unweighted.
    """
    r = np.atleast_2d(np.asarray(ratios, dtype=np.float64))
    tau = np.asarray(thresholds, dtype=np.float64)
    # The tolerance keeps the optimum's own profile at 1 up to tau = 1.
    reached = (r[:, :, None] >= tau - SAME_SCORE).mean(axis=0)
    if weights is None:
        return np.asarray(reached.mean(axis=0), dtype=np.float64)
    # Signed weights may leave the unit interval by a hair.
    return np.asarray(np.clip(weights @ reached / len(reached), 0.0, 1.0), dtype=np.float64)


def probability_of_improvement(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    weights: Floats | None = None,
    seeds_a: Floats | None = None,
    seeds_b: Floats | None = None,
) -> Floats:
    """P(A > B): chance that A scores more than B on the same exam, ties counting one half.

    Agarwal et al. 2021 define it as the mean over tasks of the Mann-Whitney statistic over pairs of runs,
    ``mean_m mean_{i,j} (1[x_im > y_jm] + 1[x_im = y_jm] / 2)``. Here a task is an exam and a run is a training seed:
    A and B are compared on the same exam (paired), every seed of A against every seed of B.
    P(A > B) + P(B > A) = 1. It says how often, not by how much.

    Args:
        a: (E,) or (S_a, E) scores.
        b: (E,) or (S_b, E) scores on the same exams.
        weights: (R, E) exam weights; None gives the estimate itself.
        seeds_a: (R, S_a) seed weights of A; None weighs seeds equally.
        seeds_b: (R, S_b) seed weights of B.

    Returns:
        () estimate, or (R,) replicates with weights.
    """
    x, y = (np.atleast_2d(np.asarray(v, dtype=np.float64)) for v in (a, b))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"A took {x.shape[1]} exams and B {y.shape[1]}: they must be the same ones")
    difference = x[:, None, :] - y[None, :, :]
    tolerance = SAME_SCORE * np.maximum(np.abs(x[:, None, :]), np.abs(y[None, :, :]))
    wins = (np.sign(np.where(np.abs(difference) <= tolerance, 0.0, difference)) + 1) / 2
    if weights is None:
        return np.asarray(wins.mean())
    per_pair = np.einsum("re,ije->rij", weights, wins, optimize=True) / weights.shape[1]
    va = np.ones(per_pair.shape[:2]) if seeds_a is None else seeds_a
    vb = np.ones((len(per_pair), per_pair.shape[2])) if seeds_b is None else seeds_b
    means = np.einsum("rij,ri,rj->r", per_pair, va, vb) / (per_pair.shape[1] * per_pair.shape[2])
    return np.asarray(np.clip(means, 0.0, 1.0), dtype=np.float64)


def _ratio(numerator: Value, denominator: Value) -> Value:
    """Division with NaN for 0 in the denominator; floats stay floats."""
    n, d = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    result = np.divide(n, d, out=np.full(np.broadcast_shapes(n.shape, d.shape), np.nan), where=d != 0)
    return result if result.ndim else float(result)  # type: ignore[return-value]


def _multinomial(categories: int, resamples: int, rng: np.random.Generator) -> Floats:
    """(R, n) counts of n uniform draws over n categories: several times faster than ``rng.multinomial`` for large n."""
    draws = rng.integers(0, categories, size=(resamples, categories))
    draws += np.arange(resamples)[:, None] * categories
    counts = np.bincount(draws.ravel(), minlength=resamples * categories)
    return counts.reshape(resamples, categories).astype(np.float64)
