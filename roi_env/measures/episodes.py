"""Sampled episodes of a policy, with or without a memory, on drawn exams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env.exact.evaluation import BINS, SPEND_BINS, Evaluation, Law, believed, difficulty_bins
from roi_env.exams import random
from roi_env.exams.exam import ExamBatch
from roi_env.exams.rewards import SCORE, Reward, compiled_reward_of
from roi_env.exams.rules import advance

_CHUNK_EPISODES = 1 << 16


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
        return np.asarray(self.value.sum(1))


class Outcome(NamedTuple):
    """What came of D decisions at one position."""

    episode: npt.NDArray[np.int64]
    """(D,) row of the episode."""
    position: int
    action: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    """(D,) paid, decision cost included."""
    correct: npt.NDArray[np.bool_]
    overspent: npt.NDArray[np.bool_]


class Player(NamedTuple):
    """Who takes a batch of episodes; what it remembers is its own."""

    decide: Callable[[int, npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.int64]]
    """(position, rows of the episodes (D,), tokens left (D,)) -> actions (D,)."""
    learn: Callable[[Outcome], None]
    """Called after every position."""


Enter: TypeAlias = Callable[[ExamBatch, ExamBatch, npt.NDArray[np.int64]], Player]
"""(E exams, D episodes of them, exam of every episode (D,)) -> the player of these episodes."""


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


def play(player: Player, batch: ExamBatch, reward: Reward, exam: npt.NDArray[np.int64]) -> Records:
    """Let ``player`` take the D episodes of ``batch``, with the batch's own potential outcomes.

    :param exam: (D,) the exam every episode belongs to, for the records.
    """
    spec, source = batch.spec, batch.spec.source
    size, num_tasks = batch.rows.shape
    tokens, correct = batch.outcomes()
    weights = batch.weights
    integers = {name: np.zeros((size, num_tasks), np.int64) for name in ("action", "tokens", "remaining")}
    flags = {name: np.zeros((size, num_tasks), np.bool_) for name in ("correct", "overspent", "reached", "level_match")}
    floats = {name: np.zeros((size, num_tasks)) for name in ("value", "reward")}
    remaining = np.full(size, spec.budget, np.int64)
    alive = np.arange(size)
    for n in range(num_tasks):
        if not len(alive):
            break
        left = remaining[alive]
        action = player.decide(n, alive, left)
        tried = action > 0
        tier = np.maximum(action - 1, 0)
        cost = np.where(tried, tokens[alive, n, tier].astype(np.int64), 0) + spec.decision_cost
        would = tried & correct[alive, n, tier]
        paid, right, overspent, done = advance(cost, would, left, n, num_tasks)
        value, shaped, match = _rewards(
            reward.kind,
            reward.coefficient,
            action,
            right,
            overspent,
            weights[alive, n],
            paid,
            left,
            tokens[alive, n],
            correct[alive, n],
            source.level_edges,
            spec.budget,
            spec.decision_cost,
        )
        integers["action"][alive, n], integers["tokens"][alive, n] = action, paid
        integers["remaining"][alive, n] = left
        flags["correct"][alive, n], flags["overspent"][alive, n] = right, overspent
        flags["reached"][alive, n], flags["level_match"][alive, n] = True, match
        floats["value"][alive, n], floats["reward"][alive, n] = value, shaped
        player.learn(Outcome(alive, n, action, paid, right, overspent))
        remaining[alive] -= paid
        alive = alive[~done]
    return Records(
        exam=exam,
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
        block = random.draw(random.outcome_key(seed, exam_ids[d], replicates[d] // num_latent), ~np.uint64(0))
        shift = random.below(random.draw(block, np.uint64(0)), np.int64(num_latent))
        latent[d] = (shift + replicates[d]) % num_latent
        key = random.draw(random.outcome_key(seed, exam_ids[d], replicates[d]), ~np.uint64(0))
        for n in range(groups.shape[1]):
            g = groups[d, n]
            number = random.draw(key, np.uint64(n + 1))
            rows[d, n] = members[start[g] + random.below(number, start[g + 1] - start[g])]
    return rows, latent


def redraw_hidden(batch: ExamBatch) -> ExamBatch:
    """The same exams to the eye (same groups), with hidden rows and latent state drawn anew given what is shown.

    Named by (seed, exam id, replicate). Outcomes of the result over replicates follow the published law. Each latent
    state occurs once in every block of ``num_latent`` replicates (0 and 1, 2 and 3, ...): most of the variance of a
    score is the state's.
    """
    source = batch.spec.source
    members = np.argsort(source.row_group, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(source.row_group, minlength=source.num_groups))])
    rows, latent = _redraw(
        np.uint64(batch.seed), batch.exam_ids, batch.replicates, batch.groups, start, members, source.num_latent
    )
    return dataclasses.replace(batch, rows=rows, latent=latent)


def sample(
    enter: Enter, batch: ExamBatch, *, replicates: int = 1, law: Law = "true", chunk: int | None = None
) -> Records:
    """Take every exam ``replicates`` times.

    Outcomes are the batch's potential outcomes, replicate ``batch.replicates + r``: the same for every player.

    :param law: "true": the exams' own tasks, as in the environment; "published": hidden tasks and latent state are
        drawn anew in every replicate (:func:`redraw_hidden`).
    :param chunk: most episodes a batch (memory only; the records do not depend on it).
    """
    per_chunk = max(1, (chunk or _CHUNK_EPISODES) // replicates)
    parts = []
    for first in range(0, len(batch), per_chunk):
        some = batch.take(slice(first, first + per_chunk))
        row = np.repeat(np.arange(len(some)), replicates)
        episodes = some.repeated(replicates)
        if law == "published":
            episodes = redraw_hidden(episodes)
        parts.append(play(enter(some, episodes, row), episodes, batch.spec.reward, row + first))
    names = [field.name for field in dataclasses.fields(Records)]
    return Records(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def standard_error(values: npt.NDArray[np.float64], num_latent: int) -> npt.NDArray[np.float64]:
    """(E,) standard error of the mean over replicates 0 .. R-1 of ``values`` (E, R); nan for one replicate.

    The replicates of one block share a stratified draw (:func:`redraw_hidden`): blocks are independent, they are not.
    """
    size, replicates = values.shape
    if replicates % num_latent == 0 and replicates > num_latent:
        values = values.reshape(size, -1, num_latent).mean(2)
    if values.shape[1] < 2:
        return np.full(size, np.nan)
    return np.asarray(values.std(1, ddof=1) / np.sqrt(values.shape[1]))


def summarise(records: Records, batch: ExamBatch, law: Law = "true") -> Evaluation:
    """Means of sampled episodes, exam by exam; ``law`` is the one they were sampled under."""
    spec = batch.spec
    size, num_tasks, num_actions = len(batch), spec.num_tasks, spec.num_tiers + 1
    counts = np.bincount(records.exam, minlength=size)
    replicates = int(counts[0])
    if not (counts == replicates).all() or (np.diff(records.exam) < 0).any():
        raise ValueError("records must hold equally many episodes of every exam, exam by exam")

    def mean(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(values.reshape(size, replicates, num_tasks).mean(1))

    reached, action = records.reached, records.action
    group = batch.groups[records.exam]
    bins = difficulty_bins(spec.source)[group]
    tenth = np.minimum(records.remaining * BINS // spec.budget, BINS - 1)
    cell = ((bins * BINS + tenth) * num_actions + action)[reached]
    choices = np.bincount(cell, minlength=BINS * BINS * num_actions).reshape(BINS, BINS, num_actions)
    success, cost = believed(spec)
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
    spend = np.bincount(spent * (SPEND_BINS - 1) // spec.budget, minlength=SPEND_BINS)
    score = records.score.reshape(size, replicates)
    noise = standard_error(score, spec.source.num_latent if law == "published" else 1)
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
