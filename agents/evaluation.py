"""Where agents meet exams: sampled episodes, exact evaluation, practice.

Exact and sampled evaluation return the same :class:`Evaluation`, which says which of the two it is. Every number here
is a function of (agent, exams, seed) alone: never of how exams were chunked into batches.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import (
    Agent,
    Attempts,
    DecisionView,
    ExamsView,
    Feedback,
    Problem,
    Probs,
    exams_view,
    public_problem,
)
from roi_env import random
from roi_env.dynamics import advance
from roi_env.exam import ExamBatch, ExamSpec, draw_exams
from roi_env.rewards import SCORE, Reward, compiled_reward_of
from roi_env.source import Laws

Law = Literal["published", "true"]

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
"""Default limit on the states that an exact evaluation may ask an agent about."""

_CHUNK_STATES = 1 << 22
_CHUNK_EPISODES = 1 << 16
_BLOCK = 1 << 16


def _sum(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(values.sum(1))


class TooManyStates(RuntimeError):
    """Exact evaluation would ask the agent about more states than allowed; evaluate by sampling instead."""


@dataclass(frozen=True)
class Records:
    """Episodes: D = exams x replicates rows, exam-major; N tasks. Zero (False) where a task was not reached.

    :param exam: (D,) int64 row of the exam in the batch.
    :param replicate: (D,) int64.
    :param action: (D, N) int64, 0 = skip.
    :param tokens: (D, N) int64 paid, decision cost included.
    :param correct: (D, N) bool, right within the budget.
    :param overspent: (D, N) bool, cut at the budget.
    :param remaining: (D, N) int64 tokens left before the decision.
    :param reached: (D, N) bool.
    :param value: (D, N) float64 score earned.
    :param reward: (D, N) float64 the specification's own reward.
    :param level_match: (D, N) bool: an attempt within the budget whose tokens lie in the announced level.
    """

    exam: npt.NDArray[np.int64]
    replicate: npt.NDArray[np.int64]
    action: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]
    overspent: npt.NDArray[np.bool_]
    remaining: npt.NDArray[np.int64]
    reached: npt.NDArray[np.bool_]
    value: npt.NDArray[np.float64]
    reward: npt.NDArray[np.float64]
    level_match: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.exam)

    @property
    def score(self) -> npt.NDArray[np.float64]:
        """(D,) score of every episode."""
        return _sum(self.value)


@dataclass(frozen=True)
class Evaluation:
    """What an agent does on E exams of N tasks: expectations (``mode="exact"``) or means over replicates.

    :param mode: "exact" or "sampled".
    :param law: laws of the outcomes: "published" (given what is shown) or "true" (each task's own).
    :param replicates: episodes an exam (0: exact).
    :param states: states the agent was asked about (0: sampled).
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
        return _sum(self.value)

    @property
    def spent(self) -> npt.NDArray[np.float64]:
        """(E,) expected tokens spent."""
        return _sum(self.tokens)

    @property
    def truncation(self) -> npt.NDArray[np.float64]:
        """(E,) probability that an attempt is cut at the budget."""
        return _sum(self.overspent)

    @property
    def skip_fraction(self) -> npt.NDArray[np.float64]:
        """(E,) expected share of the N tasks that are skipped by choice."""
        return np.asarray(self.skipped.mean(1))

    @property
    def reached_fraction(self) -> npt.NDArray[np.float64]:
        """(E,) expected share of the N tasks that are reached."""
        return np.asarray(self.reached.mean(1))


def default_law(spec: ExamSpec) -> Law:
    """The law exact evaluation uses: given what is shown for synthetic sources (less noise, and no agent can exceed
    the optimum), the questions' own samples for recorded ones (so that questions can be resampled)."""
    return "published" if spec.source.synthetic else "true"


def difficulty_bins(problem: Problem) -> npt.NDArray[np.int64]:
    """(G,) bin 0..BINS-1 of every group: equal shares of the population in the order of the published key."""
    share = problem.group_probability.mean(0)
    keys, inverse = np.unique(problem.group_key, return_inverse=True)
    mass = np.bincount(inverse, share, minlength=len(keys))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    bins: npt.NDArray[np.int64] = np.minimum((middle * BINS).astype(np.int64), BINS - 1)[inverse]
    return bins


# ---------------------------------------------------------------------------------------------------------------------
# Sampled episodes


@njit(cache=True)
def _action_numbers(
    seed: np.uint64, exam_ids: npt.NDArray[np.int64], replicates: npt.NDArray[np.int64], num_tasks: int
) -> npt.NDArray[np.float64]:
    """(D, N) uniform numbers in [0, 1) that pick actions."""
    out = np.empty((len(exam_ids), num_tasks))
    for d in range(len(exam_ids)):
        key = random.draw(random.draw(random.exam_key(seed, exam_ids[d]), random.ACTIONS), np.uint64(replicates[d]))
        for n in range(num_tasks):
            out[d, n] = float(random.draw(key, np.uint64(n)) >> np.uint64(11)) * 2.0**-53
    return out


@njit(cache=True)
def pick_actions(probs: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(D,) int64 actions: the first with positive probability whose cumulative probability exceeds ``uniform`` (D,)."""
    actions = np.zeros(len(probs), np.int64)
    for d in range(len(probs)):
        total = 0.0
        for a in range(probs.shape[1]):
            if probs[d, a] > 0:
                total += probs[d, a]
                actions[d] = a  # rounding may leave the total below ``uniform``: then the last possible action
                if uniform[d] < total:
                    break
    return actions


def check_probs(agent: Agent, probs: Probs, view: DecisionView) -> Probs:
    """Return ``probs`` if they are what the interface asks for.

    :raises ValueError: naming the agent, where shape, sum, sign or mask is violated.
    """
    probs = np.asarray(probs, np.float64)
    shape = (len(view), view.problem.num_tiers + 1)
    name = getattr(agent, "name", type(agent).__name__)
    if probs.shape != shape:
        raise ValueError(f"agent {name!r} returned probabilities of shape {probs.shape}, expected {shape}")
    if not (probs >= 0).all() or not np.allclose(probs.sum(1), 1.0, atol=1e-6):
        raise ValueError(f"agent {name!r} returned negative probabilities or rows that do not sum to one")
    if (probs[~view.mask] > 0).any():
        raise ValueError(f"agent {name!r} gives probability to a masked action")
    return probs


@njit(cache=True)
def _rewards(
    kind: int,
    coefficient: float,
    action: npt.NDArray[np.int64],
    right: npt.NDArray[np.bool_],
    overspent: npt.NDArray[np.bool_],
    weight: npt.NDArray[np.float64],
    paid: npt.NDArray[np.int64],
    remaining: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.int32],
    correct: npt.NDArray[np.bool_],
    edges: npt.NDArray[np.int64],
    budget: int,
    decision_cost: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Score, named reward and level match of D decisions at one position; ``tokens`` and ``correct`` are (D, K)."""
    size, num_tiers = tokens.shape
    value, reward, match = np.empty(size), np.empty(size), np.zeros(size, np.bool_)
    for d in range(size):
        solvable = False
        for k in range(num_tiers):
            solvable |= correct[d, k] and np.int64(tokens[d, k]) + decision_cost <= remaining[d]
        level = 0
        if action[d] > 0:
            while level < num_tiers and tokens[d, action[d] - 1] > edges[level]:
                level += 1
            match[d] = level == action[d] - 1 and not overspent[d]
        value[d] = compiled_reward_of(
            SCORE, 0.0, action[d], right[d], overspent[d], level, weight[d], paid[d], budget, solvable
        )
        reward[d] = compiled_reward_of(
            kind, coefficient, action[d], right[d], overspent[d], level, weight[d], paid[d], budget, solvable
        )
    return value, reward, match


def _play(
    agent: Agent,
    problem: Problem,
    groups: npt.NDArray[np.int32],
    row: npt.NDArray[np.int64],
    batch: ExamBatch,
    uniform: npt.NDArray[np.float64],
    state: Any,
    reward: Reward,
    reveal_correct: bool,
) -> tuple[Records, Any]:
    """Let ``agent`` take the D exams of ``batch``; decision d belongs to row ``row[d]`` of ``groups``."""
    size, num_tasks = batch.rows.shape
    tokens, correct = batch.outcomes()
    weights = batch.weights
    integers = {name: np.zeros((size, num_tasks), np.int64) for name in ("action", "tokens", "remaining")}
    flags = {name: np.zeros((size, num_tasks), np.bool_) for name in ("correct", "overspent", "reached", "level_match")}
    floats = {name: np.zeros((size, num_tasks)) for name in ("value", "reward")}
    remaining = np.full(size, problem.budget, np.int64)
    last_action, last_tokens = np.zeros(size, np.int64), np.zeros(size, np.int64)
    last_correct = np.zeros(size, np.bool_)
    alive = np.arange(size)
    for n in range(num_tasks):
        if not len(alive):
            break
        view = DecisionView(
            problem,
            row[alive],
            np.full(len(alive), n, np.int64),
            remaining[alive],
            last_action[alive],
            last_tokens[alive],
            last_correct[alive],
            groups,
        )
        probs, state = agent.act(view, state)
        action = pick_actions(check_probs(agent, probs, view), uniform[alive, n])
        tried = action > 0
        tier = np.maximum(action - 1, 0)
        cost = np.where(tried, tokens[alive, n, tier].astype(np.int64), 0) + problem.decision_cost
        would = tried & correct[alive, n, tier]
        paid, right, overspent, done = advance(cost, would, view.remaining, n, num_tasks)
        value, shaped, match = _rewards(
            reward.kind,
            reward.coefficient,
            action,
            right,
            overspent,
            weights[alive, n],
            paid,
            view.remaining,
            tokens[alive, n],
            correct[alive, n],
            problem.level_edges,
            problem.budget,
            problem.decision_cost,
        )
        integers["action"][alive, n], integers["tokens"][alive, n] = action, paid
        integers["remaining"][alive, n] = view.remaining
        flags["correct"][alive, n], flags["overspent"][alive, n] = right, overspent
        flags["reached"][alive, n], flags["level_match"][alive, n] = True, match
        floats["value"][alive, n], floats["reward"][alive, n] = value, shaped
        state = agent.observe(Feedback(view, action, paid, right if reveal_correct else None, overspent), state)
        remaining[alive] -= paid
        last_action[alive], last_tokens[alive] = action, paid
        if problem.feedback == "cost+correct":
            last_correct[alive] = right
        alive = alive[~done]
    records = Records(
        exam=row,
        replicate=batch.replicates,
        action=integers["action"],
        tokens=integers["tokens"],
        correct=flags["correct"],
        overspent=flags["overspent"],
        remaining=integers["remaining"],
        reached=flags["reached"],
        value=floats["value"],
        reward=floats["reward"],
        level_match=flags["level_match"],
    )
    return records, state


@njit(cache=True)
def _redraw(
    seed: np.uint64,
    exam_ids: npt.NDArray[np.int64],
    replicates: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int32],
    start: npt.NDArray[np.int64],
    members: npt.NDArray[np.int64],
    num_latent: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    rows, latent = np.empty(groups.shape, np.int32), np.empty(len(groups), np.int32)
    for d in range(len(groups)):
        key = random.draw(random.outcome_key(seed, exam_ids[d], replicates[d]), ~np.uint64(0))
        latent[d] = random.below(random.draw(key, np.uint64(0)), np.int64(num_latent))
        for n in range(groups.shape[1]):
            g = groups[d, n]
            number = random.draw(key, np.uint64(n + 1))
            rows[d, n] = members[start[g] + random.below(number, start[g + 1] - start[g])]
    return rows, latent


def redraw_hidden(batch: ExamBatch) -> ExamBatch:
    """The same exams to the eye (same groups), with hidden rows and latent state drawn anew given what is shown.

    Named by (seed, exam id, replicate). Outcomes of the result over replicates follow the published law.
    """
    source = batch.spec.source
    members = np.argsort(source.row_group, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(source.row_group, minlength=source.num_groups))])
    rows, latent = _redraw(
        np.uint64(batch.seed), batch.exam_ids, batch.replicates, batch.groups, start, members, source.num_latent
    )
    return dataclasses.replace(batch, rows=rows, latent=latent)


def rollout(
    agent: Agent,
    batch: ExamBatch,
    *,
    replicates: int = 1,
    seed: int = 0,
    law: Law = "true",
    chunk: int | None = None,
) -> Records:
    """Let an agent take every exam ``replicates`` times.

    Outcomes are the batch's potential outcomes (the same for every agent), replicate ``batch.replicates + r``; actions
    are drawn from the agent's probabilities with numbers named by (seed, exam id, replicate, position).

    :param law: "true": the exams' own tasks, as in the environment; "published": hidden tasks and latent state are
        drawn anew in every replicate (:func:`redraw_hidden`), the same for every agent.

    :param chunk: most episodes a batch (memory only; the records do not depend on it).
    :raises ValueError: where the agent's probabilities break the interface.
    """
    problem = public_problem(batch.spec)
    per_chunk = max(1, (chunk or _CHUNK_EPISODES) // replicates)
    parts = []
    for first in range(0, len(batch), per_chunk):
        some = batch.take(slice(first, first + per_chunk))
        row = np.repeat(np.arange(len(some)), replicates)
        episodes = some.take(row)
        number = episodes.replicates + np.tile(np.arange(replicates), len(some))
        episodes = dataclasses.replace(episodes, replicates=number)
        if law == "published":
            episodes = redraw_hidden(episodes)
        # A memory belongs to an episode: agents with state see every episode as an exam of its own.
        seen, place = (some, row) if agent.markov else (episodes, np.arange(len(episodes)))
        uniform = _action_numbers(np.uint64(seed), episodes.exam_ids, number, batch.spec.num_tasks)
        state = agent.start(exams_view(seen, problem))
        records, _ = _play(
            agent,
            problem,
            seen.groups,
            place,
            episodes,
            uniform,
            state,
            batch.spec.reward,
            problem.feedback == "cost+correct",
        )
        parts.append(dataclasses.replace(records, exam=row + first))
    names = [field.name for field in dataclasses.fields(Records)]
    return Records(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def summarise(records: Records, batch: ExamBatch, law: Law = "true") -> Evaluation:
    """Means of sampled episodes, exam by exam; ``law`` is the one they were sampled under."""
    problem = public_problem(batch.spec)
    size, num_tasks, num_actions = len(batch), problem.num_tasks, problem.num_tiers + 1
    counts = np.bincount(records.exam, minlength=size)
    replicates = int(counts[0])
    if not (counts == replicates).all() or (np.diff(records.exam) < 0).any():
        raise ValueError("records must hold equally many episodes of every exam, exam by exam")

    def mean(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(values.reshape(size, replicates, num_tasks).mean(1))

    reached, action = records.reached, records.action
    group = batch.groups[records.exam]
    bins = difficulty_bins(problem)[group]
    tenth = np.minimum(records.remaining * BINS // problem.budget, BINS - 1)
    cell = ((bins * BINS + tenth) * num_actions + action)[reached]
    choices = np.bincount(cell, minlength=BINS * BINS * num_actions).reshape(BINS, BINS, num_actions)
    success, cost = _believed(problem)
    columns = [
        np.ones_like(records.value),
        success[group, action],
        cost[group, action],
        records.correct,
        records.tokens,
        records.overspent,
        records.level_match,
    ]
    sums = [np.bincount(action[reached], column[reached], minlength=num_actions) for column in columns]
    spent = records.tokens.sum(1)
    spend = np.bincount(spent * (SPEND_BINS - 1) // problem.budget, minlength=SPEND_BINS)
    score = records.score.reshape(size, replicates)
    noise = score.std(1, ddof=1) / np.sqrt(replicates) if replicates > 1 else np.full(size, np.nan)
    return Evaluation(
        mode="sampled",
        law=law,
        replicates=replicates,
        states=0,
        value=mean(records.value),
        correct=mean(records.correct),
        reached=mean(reached),
        skipped=mean(reached & (action == 0)),
        tokens=mean(records.tokens),
        overspent=mean(records.overspent),
        noise=noise,
        choices=choices / len(records),
        calibration=np.stack(sums, 1) / len(records),
        spend=spend / len(records),
    )


def evaluate_sampled(
    agent: Agent, batch: ExamBatch, *, law: Law | None = None, replicates: int = 100, seed: int = 0
) -> Evaluation:
    """Evaluate by sampled episodes; ``law`` as in :func:`rollout`, default :func:`default_law`."""
    law = law or default_law(batch.spec)
    return summarise(rollout(agent, batch, replicates=replicates, seed=seed, law=law), batch, law)


def _believed(problem: Problem) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(G, K + 1) believed success probability and tokens (decision cost included) of every action; nan if unknown."""
    shape = (problem.num_groups, problem.num_tiers + 1)
    if problem.beliefs is None:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    zero = np.zeros((problem.num_groups, 1))
    success = np.concatenate([zero, problem.beliefs.success_probability], 1)
    cost = np.concatenate([zero, problem.beliefs.expected_cost], 1) + problem.decision_cost
    return success, cost


# ---------------------------------------------------------------------------------------------------------------------
# Exact evaluation


class _Prefixes(NamedTuple):
    """Laws with running sums inside every cell: entry j sums its cell up to and including j."""

    indptr: npt.NDArray[np.int64]
    cost: npt.NDArray[np.int64]
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


def _with_prefixes(laws: Laws) -> _Prefixes:
    cost = laws.cost.astype(np.int64)
    return _Prefixes(laws.indptr, cost, laws.prob, *_prefixes(laws.indptr, cost, laws.prob, laws.success))


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
    decision_cost: int,
    following: npt.NDArray[np.float64],
    stats: npt.NDArray[np.float64],
    choices: npt.NDArray[np.float64],
    calibration: npt.NDArray[np.float64],
    spend: npt.NDArray[np.float64],
) -> None:
    """Move probability mass across one task.

    ``mass``, ``following``: (U, L, B + 1) probability of having b tokens before, after the task, under latent state l;
    ``law`` (U, L): the task's law; ``stats`` (U, 6, N): see :func:`evaluate_exact`. A mass is (exam, latent) share, so
    that sums over latent states are expectations. Sums run in ascending order of the remaining budget, exam by exam.

    The rule of :func:`roi_env.dynamics.transition` in sums: the costs that fit are the first ``fits`` of a cell, their
    totals are running sums, and only the probability of what remains needs a loop. A test holds the two together.
    """
    num_tiers = len(edges)
    last = position + 1 == num_tasks
    for d in range(len(exam)):
        e, b = exam[d], remaining[d]
        tenth = min(b * 10 // budget, 9)
        room = b - decision_cost
        for latent in range(mass.shape[1]):
            here = mass[e, latent, b]
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
                            following[e, latent, room] += p
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
                                following[e, latent, np.uint64(room - laws.cost[j])] += p * laws.prob[j]
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


def evaluate_exact(
    agent: Agent, batch: ExamBatch, *, law: Law | None = None, max_states: int = MAX_STATES
) -> Evaluation:
    """Expectations of a Markov agent, by carrying probability forward through every reachable (task, remaining budget).

    Exams that look alike and have the same laws are evaluated once. Under the published law an exam-level latent state
    is averaged over (equally likely states), under the true law it is the exam's own.

    :param law: "published" or "true"; default :func:`default_law`.
    :param max_states: most (exam, position, remaining) states to ask the agent about.
    :raises TooManyStates: above ``max_states``.
    :raises ValueError: for an agent with memory, or probabilities that break the interface.
    """
    if not agent.markov:
        raise ValueError(f"agent {agent.name!r} has a memory: use evaluate_sampled")
    law = law or default_law(batch.spec)
    problem = public_problem(batch.spec)
    num_tasks, budget, num_actions = problem.num_tasks, problem.budget, problem.num_tiers + 1
    laws, rows = _law_rows(batch, law)
    identity = np.concatenate([batch.groups, rows.reshape(len(batch), -1)], 1)
    _, first, inverse = np.unique(identity, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.ravel()
    unique, rows, latents = len(first), rows[first], rows.shape[1]
    bins, (success, cost) = difficulty_bins(problem), _believed(problem)
    sums = _with_prefixes(laws)
    stats = np.zeros((unique, 6, num_tasks))
    choices = np.zeros((unique, BINS, BINS, num_actions))
    calibration = np.zeros((unique, num_actions, len(CALIBRATION)))
    spend = np.zeros((unique, SPEND_BINS))
    per_chunk = max(1, _CHUNK_STATES // (latents * (budget + 1)))
    states = 0
    # One exam first: where all of them would ask too much, that shows before any time is spent on the rest.
    starts = [0, *range(1, unique, per_chunk)]
    for start, end in zip(starts, [*starts[1:], unique], strict=True):
        part = slice(start, end)
        some = batch.take(first[part])
        groups = some.groups
        state = agent.start(exams_view(some, problem))
        mass = np.zeros((len(some), latents, budget + 1))
        mass[:, :, budget] = 1.0 / latents
        for n in range(num_tasks):
            exam, remaining = (axis.astype(np.int64) for axis in np.nonzero(mass.any(1)))
            states += len(exam)
            if states > (max_states if start else 2 * max_states / unique):
                raise TooManyStates(
                    f"agent {agent.name!r}: {unique} exams would need more than {max_states} states (found at task {n + 1} of "
                    f"{num_tasks} of exam {end}); raise max_states or use evaluate_sampled"
                )
            following = np.zeros_like(mass)
            for block in range(0, len(exam), _BLOCK):
                e, b = exam[block : block + _BLOCK], remaining[block : block + _BLOCK]
                none = np.zeros(len(e), np.int64)
                view = DecisionView(problem, e, np.full_like(e, n), b, none, none, none.astype(bool), groups)
                probs = check_probs(agent, agent.act(view, state)[0], view)
                _propagate(
                    mass,
                    e,
                    b,
                    probs,
                    rows[part, :, n],
                    problem.group_weight[groups[:, n]],
                    bins[groups[:, n]],
                    success[groups[:, n]],
                    cost[groups[:, n]],
                    sums,
                    problem.level_edges,
                    n,
                    num_tasks,
                    budget,
                    problem.decision_cost,
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


def evaluate(
    agent: Agent,
    batch: ExamBatch,
    *,
    law: Law | None = None,
    max_states: int = MAX_STATES,
    replicates: int = 100,
    seed: int = 0,
) -> Evaluation:
    """Evaluate exactly where the agent allows it within ``max_states``, else by sampling; the result says which."""
    if agent.markov:
        try:
            return evaluate_exact(agent, batch, law=law, max_states=max_states)
        except TooManyStates:
            pass
    return evaluate_sampled(agent, batch, law=law, replicates=replicates, seed=seed)


# ---------------------------------------------------------------------------------------------------------------------
# Practice


def practice_seed(seed: int) -> int:
    """Seed of the training exams that belong to reported exams of ``seed``: another key, by a hash."""
    return int.from_bytes(hashlib.sha256(f"train {seed}".encode()).digest()[:8], "little")


class TrainingExams:
    """Training exams of one kind (:class:`agents.base.Practice`), under another key than the reported ones.

    For recorded sources pass a specification over the train split: then questions are disjoint as well.

    :param spec: kind of exam.
    :param seed: seed of the reported exams (or of the training run).
    :param max_states: limit of exact scoring; above it scores are sampled.
    :param replicates: episodes an exam when sampled.
    """

    def __init__(self, spec: ExamSpec, seed: int, *, max_states: int = MAX_STATES, replicates: int = 8) -> None:
        self.spec = spec
        self.seed = practice_seed(seed)
        self.max_states = max_states
        self.replicates = replicates
        self._problem = public_problem(spec)

    @property
    def problem(self) -> Problem:
        """The kind of exam."""
        return self._problem

    def batch(self, count: int, start: int = 0) -> ExamBatch:
        """Training exams ``start .. start + count - 1`` with everything hidden in them."""
        return draw_exams(self.spec, self.seed, np.arange(start, start + count))

    def exams(self, count: int, start: int = 0) -> ExamsView:
        """The public part of training exams ``start .. start + count - 1``."""
        return exams_view(self.batch(count, start), self._problem)

    def attempts(self, count: int) -> Attempts:
        """``count`` logged attempts, one a task: tasks in the order of the training exams, an offered tier at random.

        :raises ValueError: where the source offers no tier at all.
        """
        num_tasks = self.spec.num_tasks
        batch = self.batch(-(-count // num_tasks))
        tokens, correct = batch.outcomes()
        uniform = _action_numbers(np.uint64(self.seed), batch.exam_ids, batch.replicates, num_tasks).ravel()
        group = batch.groups.ravel()
        offered = self._problem.min_cost[group] < np.iinfo(np.int32).max
        kept = np.flatnonzero(offered.any(1))[:count]
        if not len(kept):
            raise ValueError("no task of these training exams offers a tier")
        share = offered[kept] / offered[kept].sum(1, keepdims=True)
        tier = pick_actions(share, uniform[kept])
        shape = (len(group), -1)
        return Attempts(
            group[kept],
            tier,
            tokens.reshape(shape)[kept, tier].astype(np.int64),
            correct.reshape(shape)[kept, tier],
        )

    def score(self, agent: Agent, count: int, start: int = 0) -> float:
        """Mean score over training exams: exact under the published laws where the problem publishes beliefs and the
        agent has no memory, else sampled (an agent without beliefs must learn from what happens)."""
        batch = self.batch(count, start)
        if agent.markov and self._problem.beliefs is not None:
            evaluation = evaluate(
                agent,
                batch,
                law="published",
                max_states=self.max_states,
                replicates=self.replicates,
                seed=self.seed,
            )
        else:
            evaluation = evaluate_sampled(agent, batch, replicates=self.replicates, seed=self.seed)
        return float(evaluation.score.mean())

    def play(self, agent: Agent, count: int, start: int, state: Any) -> Any:
        """Let an agent take training exams as one batch, from ``state``; returns its state afterwards.

        In practice the agent is told whether its own answers were right, whatever the exams' feedback is: unknown laws
        could not be learned otherwise.
        """
        batch = self.batch(count, start)
        uniform = _action_numbers(np.uint64(self.seed), batch.exam_ids, batch.replicates, self.spec.num_tasks)
        row = np.arange(len(batch))
        return _play(agent, self._problem, batch.groups, row, batch, uniform, state, self.spec.reward, True)[1]
