"""Measures of a comparison: four values, three regrets, and paired bootstrap intervals around all of them.

Data in, numbers out (the style of bsuite): every function takes arrays indexed by exam and returns numbers or arrays.
Nothing here knows an environment, an agent or a file.

How an interval is made. :func:`bootstrap_weights` draws R sets of weights over the E exams *once*; every mean is then
recomputed under each of the R sets (:func:`resampled_means`), every derived quantity is computed from those means, and
:func:`interval` reads off percentiles. Because all agents and all references share the weights, every interval is
paired: what is common to two agents (an easy exam, an easy question) cancels in their difference or ratio.

Small samples. A plain bootstrap over n units understates the variance by (n - 1) / n and has the tails of a normal
distribution where Student's t is due: over three training seeds a "95 %" interval covers 74 %. So every level's
deviations are divided by an independent sqrt(chi^2_{n-1} / (n - 1)): over seeds alone the interval then is Student's
(:func:`seed_weights`), and where levels add up it is the Behrens-Fisher interval of their sum, which errs on the wide
side. Where nothing can be said (one exam; exams that share nearly all their questions) weights are NaN, and so are
the ends of intervals: :func:`no_interval` says why.

Ratios are ratios of means, never means of per-exam ratios: an exam whose optimum is near zero would otherwise count
without bound. For the same reason there is no interquartile mean here: it answers outlying *tasks with incomparable
scales* (Agarwal et al. 2021), and exams of one setting have one scale.

Sources: R. Agarwal, M. Schwarzer, P. S. Castro, A. Courville, M. G. Bellemare, "Deep Reinforcement Learning at the Edge
of the Statistical Precipice", NeurIPS 2021 (performance profiles, probability of improvement); A. B. Owen, "The
pigeonhole bootstrap", Ann. Appl. Stat. 1 (2007), and A. B. Owen, D. Eckles, "Bootstrapping data arrays of arbitrary
order", Ann. Appl. Stat. 6 (2012) (resampling several crossed factors); W. Hoeffding, "A class of statistics with
asymptotically normal distribution", Ann. Math. Stat. 19 (1948) (the projection onto single questions); T. C. Hesterberg,
"What Teachers Should Know About the Bootstrap", Am. Stat. 69 (2015), section 4 (why percentile intervals of few units
are too narrow, and the factors (n - 1) / n and t / z); R. A. Fisher, "The comparison of samples with possibly unequal
variances", Ann. Eugenics 9 (1939) (the distribution of a sum of scaled t variables).
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

LEAST_INFORMATION = 0.1
"""Least :func:`question_information` of exams that still allow an interval (weights are then stretched 3.2-fold)."""


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


def question_information(questions: npt.ArrayLike) -> float:
    r"""How much exams tell of the spread between questions, :math:`\|G\|_F^2 / \sum_q c_q^2` of
    :func:`bootstrap_weights`.

    Args:
        questions: (E, N) identifiers of the questions in each exam.

    Returns:
        0 when all exams have the same questions; about (1 - N / Q)^2 for many exams of N out of Q questions; above 1
        for few exams with few questions in common.
    """
    ids = np.asarray(questions)
    unique, codes = np.unique(ids, return_inverse=True)
    codes = codes.reshape(ids.shape)
    count = np.bincount(codes.ravel(), minlength=len(unique)).astype(np.float64)
    # ||G||^2 = ||X'X||^2 - 2 |Xc|^2 / E + (c'c)^2 / E^2, and X'X holds the co-occurrence counts of question pairs.
    pairs = codes[:, :, None].astype(np.int64) * len(unique) + codes[:, None, :]
    together = np.unique(pairs.ravel(), return_counts=True)[1].astype(np.float64)
    own = float(count @ count)
    frobenius = float(together @ together) - 2 * float((count[codes].sum(1) ** 2).sum()) / len(ids)
    return max(frobenius + own**2 / len(ids) ** 2, 0.0) / own


class QuestionDesign:
    r"""Which exams share which questions, and how much of a statistic's spread is the questions'.

    The weights of :func:`bootstrap_weights` count what is not a sum of question effects
    (:math:`\sigma_\varepsilon^2`) :math:`\alpha^2 N` times: they are exact for scores, where questions dominate, and
    several times too wide for the difference or ratio of two agents, where question effects cancel. The two variances are
    estimated here by the method of moments: with y the centred per-exam values, :math:`T_1 = |X^T y|^2` and
    :math:`T_2 = |y|^2` have the expectations

    .. math:: \sigma_h^2 \|G\|_F^2 + \sigma_\varepsilon^2 \operatorname{tr} G, \qquad
              \sigma_h^2 \operatorname{tr} G + \sigma_\varepsilon^2 (E - 1)

    (Henderson's method; S. R. Searle, G. Casella, C. E. McCulloch, "Variance Components", 1992). The variance of the mean
    is then :math:`\sigma_h^2 \sum_q c_q^2 / E^2 + \sigma_\varepsilon^2 / E`, divided by 1 - N / Q: effects of questions
    that fill so large a part of an exam are not sums, and their estimate is noisy.

    :param questions: (E, N) identifiers of the questions in each exam.
    """

    def __init__(self, questions: npt.ArrayLike) -> None:
        ids = np.asarray(questions)
        unique, codes = np.unique(ids, return_inverse=True)
        self._codes = codes.ravel()
        count = np.bincount(codes.ravel()).astype(np.float64)
        self._exams, self._unique = len(ids), len(unique)
        self._own = float(count @ count)
        self._frobenius = question_information(ids) * self._own
        self._trace = ids.size - self._own / len(ids)
        self._tasks = ids.size // len(ids)
        self._part = self._tasks / len(unique)

    def stretch(self, values: npt.ArrayLike, other: float = 0.0) -> float:
        """Factor by which deviations of replicates are to be multiplied: below 1 where question effects cancel.

        Args:
            values: (E,) what each exam adds to the statistic (its influence; any centre).
            other: variance that the replicates hold besides (training seeds), in the statistic's unit.
        """
        exams = self._exams
        y = np.asarray(values, dtype=np.float64)
        y = y - y.mean()
        by_question = np.bincount(self._codes, np.repeat(y, self._tasks), self._unique)
        shared = float(by_question @ by_question)
        total = float(y @ y)
        determinant = self._frobenius * (exams - 1) - self._trace**2
        wide = self._own * shared / (self._frobenius * exams**2) if self._frobenius > 0 else 0.0
        # Exams without common questions: the two are not told apart, and the weights are right as they are.
        if wide <= 0 or determinant <= 1e-9 * self._frobenius * (exams - 1):
            return 1.0
        effect = (shared * (exams - 1) - total * self._trace) / determinant
        noise = (self._frobenius * total - self._trace * shared) / determinant
        if noise <= 0:
            effect, noise = shared / self._frobenius, 0.0
        elif effect <= 0:
            effect, noise = 0.0, total / (exams - 1)
        fair = (effect * self._own / exams**2 + noise / exams) / (1 - min(self._part, 0.9))
        return float(np.sqrt((fair + other) / (wide + other)))


def no_interval(num_exams: int, questions: npt.ArrayLike | None = None) -> str | None:
    """Why these exams allow no interval, in words; None where they do.

    Args:
        num_exams: E.
        questions: (E, N) as for :func:`bootstrap_weights`.
    """
    if num_exams < 2:
        return "one exam says nothing of the spread between exams"
    if questions is None or question_information(questions) >= LEAST_INFORMATION:
        return None
    ids = np.asarray(questions)
    return (
        f"its {num_exams} exams of {ids.shape[1]} tasks share nearly all of their {len(np.unique(ids))} questions, so "
        "they say nothing of what other questions would give"
    )


def bootstrap_weights(
    num_exams: int, resamples: int, rng: np.random.Generator, questions: npt.ArrayLike | None = None
) -> Floats:
    r"""Weights of exams in each bootstrap replicate.

    Without ``questions`` (synthetic sources: exams are independent draws) weights are multinomial counts, E exams
    drawn with replacement (Efron 1979), their deviations from 1 stretched by :math:`\sqrt{E / (E - 1)}`.

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

    .. math:: \alpha^2 = \sum_q c_q^2 / \|G\|_F^2 \quad (\approx E / (E (1 - N / Q)^2 + Q) \text{ in balanced designs})

    makes the variance exact when scores are sums of question effects, and conservative otherwise (the factor on
    :math:`\sigma_\varepsilon^2 / E` is :math:`\alpha^2 N \ge 1`). Its limits are the right ones: resampling exams when
    they share no questions, resampling questions when every question is in many exams, and stretched by
    1 / (1 - N / Q) where exams hold so large a part N / Q of the questions that they differ little from one another.
    Below ``LEAST_INFORMATION`` that is no longer an estimate: weights are NaN. Multiplying by an exam-level
    multiplicity as well (:math:`\alpha = 1`, :math:`n_e w_e`) would count :math:`\operatorname{Var}(S_e)/E` a further
    1 + N times, and doubles intervals at N = 10, E = 2Q.

    In both cases a replicate's deviations are divided by :math:`\sqrt{\chi^2_\nu / \nu}` (Student's tails; see the head
    of this module), :math:`\nu` = E - 1, with ``questions`` min(E, Q) - 1.

    Replicates are centred to mean weight 1 rather than divided by their total: the two agree to first order, and a
    total of signed weights may come near zero in small designs. Weights may be negative; they are meant for means.

    Args:
        num_exams: E >= 1.
        resamples: R >= 1, number of replicates.
        rng: source of randomness; equal states give equal weights.
        questions: (E, N) identifiers of the questions in each exam; None for independent exams.

    Returns:
        (R, E) weights; every row has mean 1. All NaN where :func:`no_interval` says so.
    """
    if num_exams < 1 or resamples < 1:
        raise ValueError(f"need at least one exam and one resample, got {num_exams} and {resamples}")
    ids = None if questions is None else np.asarray(questions)
    if ids is not None and (ids.ndim != 2 or len(ids) != num_exams):
        raise ValueError(f"questions must have shape ({num_exams}, tasks per exam), got {ids.shape}")
    if no_interval(num_exams, ids) is not None:
        return np.full((resamples, num_exams), np.nan)
    if ids is None:
        units, weights = num_exams, _multinomial(num_exams, resamples, rng) - 1.0
        weights *= np.sqrt(num_exams / (num_exams - 1))
    else:
        unique, codes = np.unique(ids, return_inverse=True)
        units = min(num_exams, len(unique))
        excess = _multinomial(len(unique), resamples, rng) - 1.0
        weights = np.zeros((resamples, num_exams))
        for column in codes.reshape(ids.shape).T:  # one gather a task keeps memory at two (R, E) arrays, not (R, E, N)
            weights += excess[:, column]
        weights -= weights.mean(axis=1, keepdims=True)
        weights /= np.sqrt(question_information(ids))
    weights *= np.sqrt((units - 1) / rng.chisquare(units - 1, (resamples, 1)))
    weights += 1.0
    return weights


def seed_weights(num_seeds: int, resamples: int, rng: np.random.Generator) -> Floats:
    r"""Weights of training seeds: the level above exams.

    Three to five seeds are too few to resample: counts take ten values for three seeds, understate the variance by
    (S - 1) / S and have no tail. With g normal and :math:`\chi^2` on S - 1 degrees of freedom, independent,
    :math:`w_s = 1 + \sqrt{S / \chi^2} (g_s - \bar g)` gives the weighted mean of x the deviation
    :math:`(s / \sqrt{S}) t_{S-1}` with s the sample standard deviation: given x, :math:`\sum_s (g_s - \bar g) x_s` is
    normal with variance :math:`(S - 1) s^2`. Its percentiles are Student's interval.

    Args:
        num_seeds: S >= 2.
        resamples: R, number of replicates.
        rng: source of randomness. Give every agent its own: their training runs are independent.

    Returns:
        (R, S) weights, some negative; every row has mean 1.
    """
    if num_seeds < 2 or resamples < 1:
        raise ValueError(f"need at least two seeds and one resample, got {num_seeds} and {resamples}")
    weights = rng.standard_normal((resamples, num_seeds))
    weights -= weights.mean(axis=1, keepdims=True)
    weights *= np.sqrt(num_seeds / rng.chisquare(num_seeds - 1, (resamples, 1)))
    weights += 1.0
    return weights


def resampled_means(values: npt.ArrayLike, weights: Floats, seeds: Floats | None = None) -> Floats:
    """Mean of a per-exam quantity under every replicate.

    Args:
        values: (E,) per exam, (S, E) per training seed and exam, or (Q, S, E) for Q quantities in one pass over the
            weights (several times faster than Q calls).
        weights: (R, E) from :func:`bootstrap_weights`.
        seeds: (R, S) from :func:`seed_weights`; None weighs seeds equally.

    Returns:
        (R,) means, or (R, Q). Seeds and exams are crossed (each seed takes every exam), and their deviations add up:
        with weights w of exams and v of seeds, the weight of a cell is w + v - 1. (The product w v of the pigeonhole
        bootstrap would count what seeds and exams have only together three times instead of twice: Owen 2007.)
    """
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.shape[-1] != weights.shape[1]:
        raise ValueError(f"{array.shape[-1]} exams in values, {weights.shape[1]} in weights")
    means = weights @ array.mean(axis=-2).T / weights.shape[1]
    if seeds is None:
        return np.asarray(means, dtype=np.float64)
    if seeds.shape != (len(weights), array.shape[-2]):
        raise ValueError(f"seed weights must have shape {(len(weights), array.shape[-2])}, got {seeds.shape}")
    return np.asarray(means + (seeds - 1.0) @ array.mean(axis=-1).T / array.shape[-2], dtype=np.float64)


def interval(
    value: float,
    replicates: Floats,
    level: float = 0.95,
    *,
    stretch: float = 1.0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Percentile interval (Efron 1979) around an estimate, of replicates whose weights allow for small samples.

    Args:
        value: the estimate on the unweighted data.
        replicates: (R,) the same statistic under every replicate; NaN replicates are ignored.
        level: coverage aimed at.
        stretch: factor on the replicates' deviations from ``value``, see :class:`QuestionDesign`.
        bounds: ends that the statistic cannot leave. Where ``value`` lies between them the interval is made on the logit
            scale and stays inside: close to an end means of a skewed quantity (what is missing from the optimum) have
            symmetric spread on that scale, and three times as many intervals would lie too high as too low without it.

    Returns:
        The interval; NaN ends when no replicate is finite, and where it would have no width: what did not vary in the
        sample says nothing of how it varies.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return Interval(value, float("nan"), float("nan"))
    low, high = stretch * (np.quantile(finite, [(1 - level) / 2, (1 + level) / 2]) - value)
    if high - low <= SAME_SCORE * max(1.0, abs(value)):
        return Interval(float(value), float("nan"), float("nan"))
    if bounds is not None and bounds[0] < value < bounds[1]:
        least, most = bounds
        odds = (value - least) / (most - value)
        slope = (most - least) / ((value - least) * (most - value))
        low, high = (odds * np.exp(np.clip(slope * d, -700.0, 700.0)) for d in (low, high))
        low, high = (least + (most - least) * x / (1 + x) for x in (low, high))
        return Interval(float(value), float(low), float(high))
    return Interval(float(value), float(value + low), float(value + high))


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
    # Deviations of exams and of either agent's seeds add up, as in resampled_means.
    means = weights @ wins.mean(axis=(0, 1)) / weights.shape[1]
    if seeds_a is not None:
        means += (seeds_a - 1.0) @ wins.mean(axis=(1, 2)) / len(wins)
    if seeds_b is not None:
        means += (seeds_b - 1.0) @ wins.mean(axis=(0, 2)) / wins.shape[1]
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
