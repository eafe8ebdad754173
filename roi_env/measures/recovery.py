"""What a predictor of laws is worth: the share of the information that it recovers, and what there is to recover.

    information recovered = (reachable with it - reachable without) / (informed - reachable without)

All three are scored on the same exams of test questions under each question's own samples. *Reachable* is planned on train
questions alone (:attr:`roi_env.measures.references.References.reachable`), so that no policy is scored on a question that it was
planned on. *Informed* knows every question's law. Laws made of a question's few samples and scored on the same samples flatter
it (with one sample it is the oracle); :func:`informed_apart` keeps the two apart.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from roi_env.exact.evaluation import MAX_STATES, Decide, Probs, evaluate_markov
from roi_env.exact.policy_tables import auto_grid
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch
from roi_env.measures import metrics
from roi_env.measures.item_response import fit_item_response
from roi_env.measures.metrics import Interval
from roi_env.measures.references import informed_tables, optimum_tables, reachable_values
from roi_env.sources.source import Laws, Source, laws_from_cells, published_laws

Floats = npt.NDArray[np.float64]
Method = Literal["halves", "item response"]

_STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
"""Samples that the group's law may be worth beside a question's own."""
_COSTS = 8
"""Support points of a modelled cost law, for right and for wrong answers."""


class Informed(NamedTuple):
    """(E,) value of knowing every question's law, and how it was estimated."""

    value: Floats
    method: Method


def informed_apart(batch: ExamBatch, max_states: int = MAX_STATES) -> Informed:
    """The informed value of a recorded source, from samples that it is not scored on.

    *halves*: planned on laws of one half of every question's samples, shrunk towards the train law of its group (as strongly
    as predicts the other half best), scored on the other half; both ways, averaged. Half of the samples know less than the law
    itself, so this errs on the low side. *item response*, where a cell has one sample only: what knowing every question's
    ease is worth in the model of :mod:`roi_env.measures.item_response`, fitted to these questions, added to what train laws
    reach.

    :raises ValueError: for a source that is not recorded.
    """
    source = batch.spec.source
    if source.synthetic:
        raise ValueError(f"source {source.name!r} is synthetic: its informed value is exact")
    if int(source.outcome_count[source.outcome_count > 0].min()) < 2:
        return Informed(_by_item_response(batch, max_states), "item response")
    halves = [_half(source, which) for which in (0, 1)]
    strength = _best_strength(source, halves)
    values = [
        _score(batch, _shrunk(source, halves[which], strength), halves[1 - which], max_states) for which in (0, 1)
    ]
    return Informed(np.asarray(np.mean(values, axis=0)), "halves")


def _half(source: Source, which: int) -> Source:
    """The source with every other outcome of its cells."""
    parts = [
        source.outcomes[first : first + size][which::2]
        for first, size in zip(source.outcome_start, source.outcome_count, strict=True)
    ]
    count = np.array([len(part) for part in parts], np.int32)
    start = (np.cumsum(count) - count).astype(np.int32)
    return dataclasses.replace(source, outcome_start=start, outcome_count=count, outcomes=np.concatenate(parts))


def _group_of_item(source: Source) -> npt.NDArray[np.int64]:
    group = np.zeros(source.num_items, np.int64)
    group[source.row_item] = source.row_group
    return group


def _samples(source: Source) -> Floats:
    """(M, K) outcomes of every item and tier."""
    return source.outcome_count.reshape(source.num_items, source.num_tiers).astype(np.float64)


def _best_strength(source: Source, halves: list[Source]) -> float:
    """Samples that the group's law is worth: with them each half predicts the other's right answers best."""
    prior = source.beliefs.success_probability[_group_of_item(source)]

    def log_likelihood(strength: float) -> float:
        total = 0.0
        for one, other in (halves, halves[::-1]):
            count = _samples(one)
            p = (count * one.laws.success_probability + strength * prior) / (count + strength)
            p = np.clip(p, 1e-3, 1 - 1e-3)
            right = _samples(other) * other.laws.success_probability
            total += float((right * np.log(p) + (_samples(other) - right) * np.log1p(-p)).sum())
        return total

    return max(_STRENGTHS, key=log_likelihood)


def _shrunk(source: Source, half: Source, strength: float) -> Laws:
    """(M,) laws of a half's samples, mixed with the train law of the item's group."""
    own, group = half.laws, source.beliefs
    together = Laws(
        np.concatenate([own.indptr, group.indptr[1:] + own.indptr[-1]]),
        np.concatenate([own.cost, group.cost]),
        np.concatenate([own.prob, group.prob]),
        np.concatenate([own.success, group.success]),
        own.num_tiers,
    )
    count = _samples(half)
    mean = count.sum(1) / np.maximum((count > 0).sum(1), 1)
    share = mean / (mean + strength)
    members = np.stack([np.arange(source.num_items), source.num_items + _group_of_item(source)], 1)
    return together.mixture(list(members), list(np.stack([share, 1 - share], 1)))


def _grid(spec: ExamSpec, laws: Laws) -> int:
    return auto_grid(spec.budget, laws, spec.num_tasks, spec.decision_cost)


def _score(batch: ExamBatch, laws: Laws, judge: Source, max_states: int) -> Floats:
    """(E,) score of the best policy for the items' ``laws`` under the judge's own outcomes, exact at the planning grid."""
    judged = dataclasses.replace(batch, spec=dataclasses.replace(batch.spec, source=judge))
    grid = _grid(batch.spec, laws)
    actions = np.eye(batch.spec.num_tiers + 1)

    def policy(some: ExamBatch) -> Decide:
        tables = informed_tables(some, grid, laws, "up")

        def decide(position: int, exam: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]) -> Probs:
            return actions[tables.lookup(position, exam, remaining)]

        return decide

    return evaluate_markov(policy, judged, law="true", max_states=max_states).score


def _by_item_response(batch: ExamBatch, max_states: int) -> Floats:
    """(E,) what train laws reach, plus what the ease of every question is worth in the fitted model."""
    source = batch.spec.source
    count = _samples(source)
    right = np.rint(count * source.laws.success_probability)
    success = fit_item_response(right, count).success(right, count)
    group = _group_of_item(source)
    shape = [_cost_shapes(source.beliefs, law) for law in range(source.num_groups)]
    cells = []
    for item in range(source.num_items):
        for tier in range(source.num_tiers):
            if not count[item, tier]:
                cells.append((np.empty(0, np.int32), np.empty(0), np.empty(0)))
                continue
            p = float(success[item, tier])
            costs, of_right, of_wrong = shape[group[item]][tier]
            prob = p * of_right + (1 - p) * of_wrong
            cells.append((costs[prob > 0], prob[prob > 0], (p * of_right)[prob > 0]))
    laws = laws_from_cells(cells, source.num_tiers)
    grid = _grid(batch.spec, laws)
    known = informed_tables(batch, grid, laws).value
    pooled = published_laws(laws, source.row_item, source.row_group, source.num_groups, 1)
    worth = known - optimum_tables(batch, grid, laws=pooled).value
    # Known is of the exam's own questions, the other value of any questions of these groups: easier ones than usual look
    # like information. How much easier they are is known and 0 on average, so its part is taken out by regression.
    easier = (laws.success_probability[batch.law_index] - pooled.success_probability[batch.groups]).sum(1)
    design = np.concatenate([np.ones((len(batch), 1)), easier], 1)
    worth -= easier @ np.linalg.lstsq(design, worth)[0][1:]
    return np.asarray(reachable_values(batch, max_states=max_states) + worth)


def _cost_shapes(laws: Laws, law: int) -> list[tuple[npt.NDArray[np.int32], Floats, Floats]]:
    """By tier: support, P(cost | right), P(cost | wrong); the law of all answers where one of the two did not occur."""
    found = []
    for tier in range(laws.num_tiers):
        cost, prob, success = laws.cell(law, tier)
        parts = [part if part.sum() > 1e-12 else prob for part in (success, np.maximum(prob - success, 0))]
        found.append((cost, parts[0] / parts[0].sum(), parts[1] / parts[1].sum()))
    return found


class Recovered(NamedTuple):
    """What a predictor recovers in one setting.

    :param share: of the information, with Fieller's interval; NaN ends where the information is not clearly above 0.
    :param gain: reachable with it minus without, as a share of the latter.
    :param information: informed (samples kept apart) minus reachable without, as a share of the latter.
    :param raw: the same with ``informed`` on the very samples that it knows.
    """

    share: Interval
    gain: Interval
    information: Interval
    raw: Interval


def recovered(
    with_it: Floats,
    without: Floats,
    informed: Floats,
    raw: Floats,
    questions: npt.NDArray[np.integer],
    resamples: int = 2000,
    seed: int = 0,
) -> Recovered:
    """The information recovered on E exams, with 95 % intervals over questions and exams, paired.

    Predictor, train laws and budget are taken as they are: the intervals ask what other test questions would give.

    :param with_it: (E,) score of the train laws' optimum given the predictor's groups.
    :param without: (E,) the same given the published columns.
    :param informed: (E,) of :func:`informed_apart`.
    :param raw: (E,) of :class:`roi_env.measures.references.References`.
    :param questions: (E, N) identifiers of the questions.
    """
    weights = metrics.bootstrap_weights(len(without), resamples, np.random.default_rng([seed, 20]), questions)
    design = None if metrics.no_interval(len(without), questions) else metrics.QuestionDesign(questions)

    def mean(values: Floats) -> Interval:
        stretch = 1.0 if design is None else design.stretch(values)
        return metrics.interval(float(values.mean()), metrics.resampled_means(values, weights), stretch=stretch)

    def relative(values: Floats) -> Interval:
        """Mean as a share of the mean without, linearised."""
        base = float(without.mean())
        if base == 0:
            return Interval(float("nan"), float("nan"), float("nan"))
        value = float(values.mean()) / base
        found = mean((values - value * without) / base)
        return Interval(value, value + found.low - found.value, value + found.high - found.value)

    gain, information = with_it - without, informed - without
    share = _fieller(mean(gain), mean(information), mean(gain - information))
    return Recovered(share, relative(gain), relative(information), relative(raw - without))


def _fieller(top: Interval, bottom: Interval, difference: Interval) -> Interval:
    """Ratio of two means, with Fieller's interval: the values r at which top - r bottom is not seen to differ from 0. It has ends
    only where the lower mean is seen to be above 0, and reaches far up where it is barely so (E. C. Fieller, "Some problems in
    interval estimation", J. R. Stat. Soc. B 16, 1954).

    :param difference: of the two; it says how much they have in common.
    """
    value = top.value / bottom.value if bottom.value > 0 else float("nan")
    of_top, of_bottom, of_both = (
        (one.high - one.low) / 2 if np.isfinite(one.low) else 0.0 for one in (top, bottom, difference)
    )
    common = (of_top**2 + of_bottom**2 - of_both**2) / 2
    clear = bottom.value**2 - of_bottom**2
    middle = top.value * bottom.value - common
    root = np.sqrt(max(middle**2 - (top.value**2 - of_top**2) * clear, 0.0))
    if not (bottom.value > of_bottom and root > metrics.SAME_SCORE * clear):
        return Interval(value, float("nan"), float("nan"))
    return Interval(value, float((middle - root) / clear), float((middle + root) / clear))
