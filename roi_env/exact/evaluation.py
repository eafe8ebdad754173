"""What a policy is worth on drawn exams: expectations by an exact forward pass, and how they are summarised.

Exact and sampled evaluation (:mod:`roi_env.measures.episodes`) return the same :class:`Evaluation`, which says which of the two
it is. Every number is a function of (policy, exams, seed) alone: never of how exams were chunked into batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch
from roi_env.sources.source import Laws, Source

Law = Literal["published", "true"]

Probs: TypeAlias = npt.NDArray[np.float64]
"""(D, K + 1) action probabilities; rows sum to one."""
Decide: TypeAlias = Callable[[int, npt.NDArray[np.int64], npt.NDArray[np.int64]], Probs]
"""(position, rows of the exams (D,), tokens left (D,)) -> action probabilities."""
Policy: TypeAlias = Callable[[ExamBatch], Decide]
"""A Markov policy: prepare for a batch of exams. Probabilities may depend on what an exam shows, on the position and on
the tokens left, alone. An action that is not legal overspends, as the rules say."""

BINS: Final = 10
"""Bins of difficulty (published key) and of the remaining budget in :attr:`Evaluation.choices`."""
SPEND_BINS: Final = 101
"""Bins of :attr:`Evaluation.spend`: whole percents of the budget; the last one is the whole budget."""
CALIBRATION: Final = (
    "decisions",
    "believed_success",
    "believed_tokens",
    "correct",
    "tokens",
    "overspent",
    "level_match",
)
"""Columns of :attr:`Evaluation.calibration`, sums per exam by action."""
MAX_STATES: Final = 20_000_000
"""Default limit on the states that an exact evaluation may ask a policy about."""

_CHUNK_STATES = 1 << 22
_BLOCK = 1 << 16


class TooManyStates(RuntimeError):
    """Exact evaluation would ask the policy about more states than allowed; evaluate by sampling instead."""


@dataclass(frozen=True)
class Evaluation:
    """What an agent does on E exams of N tasks: expectations (``mode="exact"``) or means over replicates.

    :param mode: "exact" or "sampled".
    :param law: laws of the outcomes: "published" (given what is shown) or "true" (each task's own).
    :param replicates: episodes an exam (0: exact).
    :param states: states the policy was asked about (0: sampled).
    :param value: (E, N) expected score of every task.
    :param correct: (E, N) probability of a right answer.
    :param reached: (E, N) probability that the task is reached.
    :param skipped: (E, N) probability that it is reached and skipped.
    :param tokens: (E, N) expected tokens paid, decision cost included.
    :param overspent: (E, N) probability that the exam is cut here.
    :param noise: (E,) standard error of the exam's score (0: exact; nan: one replicate).
    :param choices: (BINS, BINS, K + 1) mean decisions per exam by difficulty bin (equal shares of the population in the
        order of the published key), remaining budget (tenths) and action.
    :param calibration: (K + 1, len(CALIBRATION)) mean sums per exam by action; beliefs are nan without beliefs.
    :param spend: (SPEND_BINS,) distribution of the tokens spent by an exam's end.
    """

    mode: Literal["exact", "sampled"]
    law: Law
    replicates: int
    states: int
    value: npt.NDArray[np.float64]
    correct: npt.NDArray[np.float64]
    reached: npt.NDArray[np.float64]
    skipped: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    overspent: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]
    choices: npt.NDArray[np.float64]
    calibration: npt.NDArray[np.float64]
    spend: npt.NDArray[np.float64]

    @property
    def score(self) -> npt.NDArray[np.float64]:
        """(E,) expected score."""
        return np.asarray(self.value.sum(1))

    @property
    def spent(self) -> npt.NDArray[np.float64]:
        """(E,) expected tokens spent."""
        return np.asarray(self.tokens.sum(1))


def default_law(spec: ExamSpec) -> Law:
    """The law exact evaluation uses: given what is shown for synthetic sources (less noise, and no policy can exceed
    the optimum), the questions' own samples for recorded ones (so that questions can be resampled)."""
    return "published" if spec.source.synthetic else "true"


def difficulty_bins(source: Source) -> npt.NDArray[np.int64]:
    """(G,) bin 0..BINS-1 of every group: equal shares of the population in the order of the published key."""
    share = source.group_probability.mean(0)
    keys, inverse = np.unique(source.group_key, return_inverse=True)
    mass = np.bincount(inverse, share, minlength=len(keys))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    bins: npt.NDArray[np.int64] = np.minimum((middle * BINS).astype(np.int64), BINS - 1)[inverse]
    return bins


def believed(spec: ExamSpec) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(G, K + 1) believed success probability and tokens (decision cost included) of every action; nan if unknown."""
    source = spec.source
    shape = (source.num_groups, spec.num_tiers + 1)
    if spec.beliefs == "none":
        return np.full(shape, np.nan), np.full(shape, np.nan)
    zero = np.zeros((source.num_groups, 1))
    success = np.concatenate([zero, source.beliefs.success_probability], 1)
    cost = np.concatenate([zero, source.beliefs.expected_cost], 1) + spec.decision_cost
    return success, cost


def check_distribution(probs: Probs, shape: tuple[int, int], who: str = "the policy") -> Probs:
    """Return ``probs`` as float64 if they are distributions over actions.

    :raises ValueError: naming ``who`` returned them.
    """
    probs = np.asarray(probs, np.float64)
    if probs.shape != shape:
        raise ValueError(f"{who} returned probabilities of shape {probs.shape}, expected {shape}")
    if len(probs) and not (probs.min() >= 0 and np.abs(probs.sum(1) - 1.0).max() <= 1e-5):
        raise ValueError(
            f"{who} returned probabilities that are negative or not numbers, or rows that do not sum to one"
        )
    return probs


class _Prefixes(NamedTuple):
    """Laws with running sums inside every cell: entry j sums its cell up to and including j."""

    indptr: npt.NDArray[np.int64]
    cost: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    """Costs in grid units."""
    prob: npt.NDArray[np.float64]
    total_prob: npt.NDArray[np.float64]
    total_success: npt.NDArray[np.float64]
    total_cost: npt.NDArray[np.float64]


@njit(cache=True)
def _prefixes(
    indptr: npt.NDArray[np.int64],
    cost: npt.NDArray[np.int64],
    prob: npt.NDArray[np.float64],
    success: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    total_prob, total_success, total_cost = np.empty(len(cost)), np.empty(len(cost)), np.empty(len(cost))
    for cell in range(len(indptr) - 1):
        p, s, c = 0.0, 0.0, 0.0
        for j in range(indptr[cell], indptr[cell + 1]):
            p += prob[j]
            s += success[j]
            c += prob[j] * cost[j]
            total_prob[j], total_success[j], total_cost[j] = p, s, c
    return total_prob, total_success, total_cost


def _with_prefixes(laws: Laws, grid: int) -> _Prefixes:
    cost = laws.cost.astype(np.int64)
    return _Prefixes(laws.indptr, cost, cost // grid, laws.prob, *_prefixes(laws.indptr, cost, laws.prob, laws.success))


@njit(cache=True, inline="always")
def _count_up_to(cost: npt.NDArray[np.int64], first: int, stop: int, limit: int) -> int:
    """How many of the ascending ``cost[first:stop]`` are at most ``limit``."""
    low, high = first, stop
    while low < high:
        middle = (low + high) >> 1
        if cost[middle] <= limit:
            low = middle + 1
        else:
            high = middle
    return low - first


@njit(cache=True)
def _propagate(
    mass: npt.NDArray[np.float64],
    exam: npt.NDArray[np.int64],
    remaining: npt.NDArray[np.int64],
    probs: npt.NDArray[np.float64],
    law: npt.NDArray[np.int64],
    weight: npt.NDArray[np.float64],
    difficulty: npt.NDArray[np.int64],
    believed_success: npt.NDArray[np.float64],
    believed_cost: npt.NDArray[np.float64],
    laws: _Prefixes,
    edges: npt.NDArray[np.int64],
    position: int,
    num_tasks: int,
    budget: int,
    grid: int,
    decision_cost: int,
    following: npt.NDArray[np.float64],
    stats: npt.NDArray[np.float64],
    choices: npt.NDArray[np.float64],
    calibration: npt.NDArray[np.float64],
    spend: npt.NDArray[np.float64],
) -> None:
    """Move probability mass across one task.

    ``mass``, ``following``: (U, L, W) probability of having spent w ``grid`` before, after the task, under latent state l;
    ``law`` (U, L): the task's law; ``stats`` (U, 6, N): see :func:`evaluate_markov`. A mass is (exam, latent) share, so
    that sums over latent states are expectations. Sums run in ascending order of the remaining budget, exam by exam.

    The rule of :func:`roi_env.exams.rules.transition` in sums: the costs that fit are the first ``fits`` of a cell, their
    totals are running sums, and only the probability of what remains needs a loop. A test holds the two together.
    """
    num_tiers = len(edges)
    last = position + 1 == num_tasks
    for d in range(len(exam)):
        e, b = exam[d], remaining[d]
        tenth = min(b * 10 // budget, 9)
        room = b - decision_cost
        before, skipped = (budget - b) // grid, (budget - room) // grid
        for latent in range(mass.shape[1]):
            here = mass[e, latent, before]
            if here == 0.0:
                continue
            stats[e, 2, position] += here
            for action in range(num_tiers + 1):
                p = here * probs[d, action]
                if p == 0.0:
                    continue
                choices[e, difficulty[e], tenth, action] += p
                calibration[e, action, 0] += p
                calibration[e, action, 1] += p * believed_success[e, action]
                calibration[e, action, 2] += p * believed_cost[e, action]
                gone = 0.0
                paid = 0.0
                if action == 0:
                    stats[e, 3, position] += p
                    if room < 0:
                        gone = p
                    else:
                        paid = p * decision_cost
                        if last or room == 0:
                            spend[e, (budget - room) * 100 // budget] += p
                        else:
                            following[e, latent, skipped] += p
                else:
                    cell = law[e, latent] * num_tiers + action - 1
                    first, stop = laws.indptr[cell], laws.indptr[cell + 1]
                    fits = _count_up_to(laws.cost, first, stop, room)
                    gone = p
                    if fits > 0:
                        end = first + fits
                        gone = p * (1.0 - laws.total_prob[end - 1]) if end < stop else 0.0
                        paid = p * (laws.total_cost[end - 1] + decision_cost * laws.total_prob[end - 1])
                        right = p * laws.total_success[end - 1]
                        stats[e, 0, position] += right * weight[e]
                        stats[e, 1, position] += right
                        calibration[e, action, 3] += right
                        low = 0 if action == 1 else _count_up_to(laws.cost, first, end, edges[action - 2])
                        high = _count_up_to(laws.cost, first, end, edges[action - 1])
                        if high > low:
                            below = laws.total_prob[first + low - 1] if low > 0 else 0.0
                            calibration[e, action, 6] += p * (laws.total_prob[first + high - 1] - below)
                        if last:
                            for j in range(first, end):
                                spend[e, (budget - room + laws.cost[j]) * 100 // budget] += p * laws.prob[j]
                        else:
                            if laws.cost[end - 1] == room:
                                end -= 1
                                spend[e, 100] += p * laws.prob[end]
                            for j in range(np.uint64(first), np.uint64(end)):
                                following[e, latent, np.uint64(skipped + laws.steps[j])] += p * laws.prob[j]
                if gone > 0.0:
                    stats[e, 5, position] += gone
                    calibration[e, action, 5] += gone
                    spend[e, 100] += gone
                    paid += gone * b
                stats[e, 4, position] += paid
                calibration[e, action, 4] += paid


def _law_rows(batch: ExamBatch, law: Law) -> tuple[Laws, npt.NDArray[np.int64]]:
    """The laws and the (E, L, N) law of every task under every latent state that evaluation averages over."""
    source = batch.spec.source
    if law == "published":
        states = np.arange(source.num_latent, dtype=np.int64)[:, None] * source.num_groups
        return source.published, batch.groups[:, None, :].astype(np.int64) + states
    return source.laws, batch.law_index[:, None, :]


def _reach(laws: Laws, rows: npt.NDArray[np.int64], spec: ExamSpec) -> npt.NDArray[np.int64]:
    """(U, N) the most that can be spent after each task: what is never spent of a large budget takes no room and no time.

    :param rows: (U, L, N) laws of the tasks.
    """
    last = np.zeros(len(laws.indptr) - 1, np.int64)
    offered = np.diff(laws.indptr) > 0
    last[offered] = laws.cost[laws.indptr[1:][offered] - 1]
    dearest = last.reshape(laws.num_laws, laws.num_tiers).max(1) + spec.decision_cost
    return np.minimum(np.cumsum(dearest[rows].max(1), 1), spec.budget)


def evaluate_markov(
    policy: Policy, batch: ExamBatch, *, law: Law | None = None, max_states: int = MAX_STATES
) -> Evaluation:
    """Expectations of a Markov policy, by carrying probability forward through every reachable (task, tokens left).

    Exams that look alike and have the same laws are evaluated once. Under the published law an exam-level latent state
    is averaged over (equally likely states), under the true law it is the exam's own.

    :param law: "published" or "true"; default :func:`default_law`.
    :param max_states: most (exam, position, remaining) states to ask the policy about.
    :raises TooManyStates: above ``max_states``.
    :raises ValueError: for probabilities of wrong shape, sign or sum.
    """
    law = law or default_law(batch.spec)
    spec, source = batch.spec, batch.spec.source
    num_tasks, budget, num_actions = spec.num_tasks, spec.budget, spec.num_tiers + 1
    laws, rows = _law_rows(batch, law)
    identity = np.concatenate([batch.groups, rows.reshape(len(batch), -1)], 1)
    _, first, inverse = np.unique(identity, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.ravel()
    unique, rows, latents = len(first), rows[first], rows.shape[1]
    bins, (success, cost) = difficulty_bins(source), believed(spec)
    grid = int(np.gcd.reduce(laws.cost, initial=spec.decision_cost)) or 1
    sums, reach = _with_prefixes(laws, grid), _reach(laws, rows, spec) // grid
    stats = np.zeros((unique, 6, num_tasks))
    choices = np.zeros((unique, BINS, BINS, num_actions))
    calibration = np.zeros((unique, num_actions, len(CALIBRATION)))
    spend = np.zeros((unique, SPEND_BINS))
    per_chunk = max(1, _CHUNK_STATES // (latents * (int(reach.max()) + 1)))
    states = 0
    # One exam first: where all of them would ask too much, that shows before any time is spent on the rest.
    starts = [0, *range(1, unique, per_chunk)]
    for start, end in zip(starts, [*starts[1:], unique], strict=True):
        part = slice(start, end)
        some = batch.take(first[part])
        groups = some.groups
        decide = policy(some)
        mass = np.full((len(some), latents, 1), 1.0 / latents)
        for n in range(num_tasks):
            exam, left = (axis.astype(np.int64) for axis in np.nonzero(np.asarray(mass.any(1))[:, ::-1]))
            remaining = budget - grid * (mass.shape[2] - 1 - left)
            states += len(exam)
            if states > (max_states if start else 2 * max_states / unique):
                raise TooManyStates(
                    f"{unique} exams would need more than {max_states} states (found at task {n + 1} of {num_tasks} of exam "
                    f"{end}); raise max_states or evaluate by sampling"
                )
            following = np.zeros((len(some), latents, int(reach[part, n].max()) + 1))
            for block in range(0, len(exam), _BLOCK):
                e, b = exam[block : block + _BLOCK], remaining[block : block + _BLOCK]
                probs = check_distribution(decide(n, e, b), (len(e), num_actions))
                _propagate(
                    mass,
                    e,
                    b,
                    probs,
                    rows[part, :, n],
                    source.group_weight[groups[:, n]],
                    bins[groups[:, n]],
                    success[groups[:, n]],
                    cost[groups[:, n]],
                    sums,
                    source.level_edges,
                    n,
                    num_tasks,
                    budget,
                    grid,
                    spec.decision_cost,
                    following,
                    stats[part],
                    choices[part],
                    calibration[part],
                    spend[part],
                )
            mass = following
    share = np.bincount(inverse, minlength=unique) / len(batch)
    value, correct, reached, skipped, tokens, overspent = stats[inverse].transpose(1, 0, 2)
    return Evaluation(
        mode="exact",
        law=law,
        replicates=0,
        states=states,
        value=value,
        correct=correct,
        reached=reached,
        skipped=skipped,
        tokens=tokens,
        overspent=overspent,
        noise=np.zeros(len(batch)),
        choices=_average(share, choices),
        calibration=_average(share, calibration),
        spend=_average(share, spend),
    )


def _average(share: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weighted sum over the first axis, in a fixed order (no BLAS: its order depends on the machine)."""
    return np.asarray(np.einsum("e,e...->...", share, values, optimize=False))
