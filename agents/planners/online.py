"""A planner that starts from beliefs, or from next to none, and corrects them with every answer of the exam it is taking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import HIDDEN, Agent, DecisionView, ExamsView, Feedback, Problem, Probs, State
from agents.parameters import NonNegative, Positive
from agents.planners.bandits import hull_increments
from agents.planners.menu import Floats

_COST = 0.25
"""Pseudo-attempts that a guessed mean cost is worth: one answer tells more than a cap."""
_GROUP = 20.0
"""Pseudo-attempts that a tier's mean is worth for each of its groups, where beliefs are guesses."""
_RIGHT = 8.0
"""Pseudo-attempts that the guess of a tier's success is worth, where answers are judged."""
_CHEAPEST = 0.5
"""Guessed success of the cheapest tier."""
_SCALING = 0.15
"""Guessed errors fall with (tokens)^-_SCALING from tier to tier: by a tenth when tokens double."""


@dataclass(frozen=True)
class Seen:
    """Sums over the attempts of every exam so far; (E, G, K) each.

    :param count: attempts.
    :param ratio: tokens / believed tokens.
    :param failed: attempts that gave no answer at all.
    :param judged: attempts that gave one whose correctness was shown.
    :param right: right ones among them.
    """

    count: Floats
    ratio: Floats
    failed: Floats
    judged: Floats
    right: Floats


class OnlineLP(Agent):
    """Re-solve the fluid LP on beliefs that are updated inside the exam: what live exams start with.

    Before every question the linear relaxation over all questions to come (which contains every fixed tier and every
    mixture of tiers) is solved at what is left of the budget, and the question's tier is drawn from its group's part of the
    solution: the online knapsack whose laws are learned on the way (Badanidiyuru, Kleinberg and Slivkins, "Bandits with
    Knapsacks", FOCS 2013), re-solved as by Jasin and Kumar (Mathematics of Operations Research 37, 2012).

    **Where beliefs were measured** (a recorded table), the believed mean cost c_gk of group g at tier k is multiplied by a
    factor that is estimated in two levels, first for the tier, then for its group:

        f_k = (s + sum of tokens / c over tier k) / (s + attempts at k),  f_gk = (s f_k + sum in g) / (s + attempts in g)

    (the posterior mean of a scale with s pseudo-attempts at the prior). Success, where answers are judged, likewise is a
    Beta posterior of s pseudo-attempts around the tier's own posterior; it never exceeds the share of attempts that gave an
    answer at all. With s = infinity it is a re-solving LP.

    **Where they are guesses** (live questions without a table), all groups start alike, and a tier's mean
    cost is what its answers cost, a guess from its cap counting for a quarter of an answer. Success is the share of answers
    that come at all times that of right ones among these; the first needs no grader, since an answer that was cut before it
    stated anything is a failure, and starts at 1 with the weight of one attempt. The second starts at .5 for the cheapest tier
    and for each dearer one at 1 - (1 - that of the tier below) (ratio of their mean costs)^.15, a guess that is worth eight
    judged answers: without a grader every question gets a cheap try before the rest of the budget buys dearer ones where
    they gain most by the token, and with one a tier that nobody tried is believed a little better than the one below. Groups
    depart from their tier's means as their own answers come in, which count against twenty. Where tiers are one request
    cut at several caps, an answer also tells what it would have come to at every smaller cap. A group that the relaxation
    skips in part is attempted first and skipped last, since what it costs is known better then.

    The law of one exam is learned in that exam alone: nothing is carried to the next.

    **Where laws drift** (a price or a model changes within the exam), ``memory`` makes answers fade: every answer of the exam
    multiplies the weight of all before it by exp(-1 / memory). What is no longer tried falls back to the beliefs that the exam
    began with, and is tried again where these are good.

    :param strength: s, pseudo-attempts that measured beliefs are worth; guesses have weights of their own.
    :param memory: answers after which one weighs 1/e of what it did; 0: none fades.
    :raises ValueError: where the problem publishes no beliefs, s <= 0 or memory < 0.
    """

    name: ClassVar[str] = "online-lp"
    markov: ClassVar[bool] = False

    def __init__(self, problem: Problem, strength: Positive = 4.0, memory: NonNegative = 0.0) -> None:
        super().__init__(problem)
        if strength <= 0 or memory < 0:
            raise ValueError(f"strength must be > 0 and memory >= 0, got {strength} and {memory}")
        self.strength, self.memory = strength, memory
        laws = problem.require_beliefs(self.name)
        cost = np.maximum(laws.expected_cost, 1.0)
        self._cost: Floats = np.broadcast_to(cost.mean(0), cost.shape) if problem.guessed else cost
        self._success: Floats = laws.success_probability

    def start(self, exams: ExamsView) -> State:
        """Nothing seen yet."""
        zero = np.zeros((len(exams), self.problem.num_groups, self.problem.num_tiers))
        return Seen(zero, zero, zero, zero, zero)

    def believed(self, seen: Seen, exam: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """(success, mean tokens) by group and tier, (D, G, K) each, after what was seen in the exams ``exam`` (D,)."""
        parts = (a[exam] for a in (seen.count, seen.ratio, seen.failed, seen.judged, seen.right))
        return self._guesses(*parts) if self.problem.guessed else self._corrected(*parts)

    def _corrected(
        self, count: Floats, ratio: Floats, failed: Floats, judged: Floats, right: Floats
    ) -> tuple[Floats, Floats]:
        """Measured beliefs after what was seen."""
        s = self.strength
        factor = _posterior(s, 1.0, ratio.sum(1), count.sum(1))[:, None]
        cost = self._cost * _posterior(s, factor, ratio, count)
        if self.problem.feedback == "cost":
            success = np.broadcast_to(self._success, cost.shape)
        else:  # a failure is judged like any other answer
            judged = judged + failed
            surprise = (right - judged * self._success).sum(1) / (s + judged.sum(1))
            success = _posterior(s, np.clip(self._success + surprise[:, None], 0.0, 1.0), right, judged)
        answered = _posterior(s, 1.0, (count - failed).sum(1), count.sum(1))[:, None]
        return np.minimum(success, _posterior(s, answered, count - failed, count)), cost

    def _guesses(
        self, count: Floats, ratio: Floats, failed: Floats, judged: Floats, right: Floats
    ) -> tuple[Floats, Floats]:
        """What is known where nothing was measured before."""
        factor = _posterior(_COST, 1.0, ratio.sum(1), count.sum(1))[:, None]
        cost = self._cost * _posterior(_GROUP, factor, ratio, count)
        answered = _posterior(1.0, 1.0, (count - failed).sum(1), count.sum(1))[:, None]
        tokens = self._cost[0] * factor[:, 0]
        correct = np.empty_like(tokens)
        for k in range(tokens.shape[1]):
            prior: Any = _CHEAPEST
            if k:
                prior = 1 - (1 - correct[:, k - 1]) * np.minimum(tokens[:, k - 1] / tokens[:, k], 1.0) ** _SCALING
            correct[:, k] = _posterior(_RIGHT, prior, right[..., k].sum(1), judged[..., k].sum(1))
        success = _posterior(_GROUP, answered, count - failed, count)
        return success * _posterior(_GROUP, correct[:, None], right, judged), cost

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """The group's part of the linear relaxation over the questions to come."""
        problem = self.problem
        success, cost = self.believed(state, view.exam)
        left = problem.num_tasks - view.position
        probs = _plan(
            view.group.astype(np.int64),
            view.remaining,
            self._to_come(view, left),
            success * problem.group_weight[:, None],
            cost,
            problem.min_cost,
            view.remaining - problem.decision_cost * left.astype(np.float64),
            problem.guessed,
        )
        return probs, state

    def _to_come(self, view: DecisionView, left: npt.NDArray[np.int64]) -> Floats:
        """(D, G) questions of every group, the current one included; what is not shown counts as the population."""
        groups, (size, num_groups) = view.groups, (len(view), self.problem.num_groups)
        row, place = np.nonzero((groups != HIDDEN) & (np.arange(groups.shape[1]) >= view.position[:, None]))
        cell = row * num_groups + groups[row, place]
        shown = np.bincount(cell, minlength=size * num_groups).reshape(size, num_groups).astype(np.float64)
        return shown + (left - shown.sum(1))[:, None] * self.problem.group_probability.mean(0)

    def observe(self, feedback: Feedback, state: State) -> State:
        """Count attempts that were not cut at the budget."""
        done: npt.NDArray[np.bool_] = (feedback.action > 0) & ~feedback.overspent
        if not done.any():
            return state
        view = feedback.view
        cell = view.exam[done], view.group[done], feedback.action[done] - 1
        tokens = np.maximum(feedback.tokens[done] - self.problem.decision_cost, 0)
        seen = Seen(*(a.copy() for a in (state.count, state.ratio, state.failed, state.judged, state.right)))
        if self.memory:
            for sums in (seen.count, seen.ratio, seen.failed, seen.judged, seen.right):
                sums[view.exam[done]] *= math.exp(-1 / self.memory)
        failed = np.zeros(len(tokens), np.bool_) if feedback.failed is None else feedback.failed[done]
        right = None if feedback.correct is None else feedback.correct[done]
        self._count(seen, cell, tokens, failed, right)
        caps = np.array(self.problem.one_request)
        for k in np.flatnonzero(caps):
            # What the same request would have come to at a smaller cap: cut there, or the same answer. (Of larger caps only
            # short answers would be known: a biased sample.)
            known, cut = caps[cell[2]] > caps[k], tokens > caps[k]
            smaller = cell[0][known], cell[1][known], np.full(known.sum(), k)
            told = None if right is None else (right & ~cut)[known]
            self._count(seen, smaller, np.minimum(tokens, caps[k])[known], (failed | cut)[known], told)
        return seen

    def _count(
        self,
        seen: Seen,
        cell: tuple[npt.NDArray[np.integer], ...],
        tokens: npt.NDArray[np.int64],
        failed: npt.NDArray[np.bool_],
        right: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Add attempts at (exam, group, tier)."""
        np.add.at(seen.count, cell, 1.0)
        np.add.at(seen.ratio, cell, tokens / self._cost[cell[1:]])
        np.add.at(seen.failed, cell, failed.astype(np.float64))
        if right is not None:
            np.add.at(seen.judged, cell, 1.0 - failed)
            np.add.at(seen.right, cell, right.astype(np.float64))

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return {"strength": self.strength, "memory": self.memory}


def _posterior(weight: float, prior: Any, total: Floats, count: Floats) -> Floats:
    """Mean of ``count`` values that sum to ``total`` and of ``weight`` pseudo-values at the prior."""
    return np.asarray((weight * prior + total) / (weight + count))


@njit(cache=True)
def _plan(
    group: npt.NDArray[np.int64],
    remaining: npt.NDArray[np.int64],
    many: Floats,
    gain: Floats,
    cost: Floats,
    min_cost: npt.NDArray[np.int64],
    capacity: Floats,
    eager: bool,
) -> Floats:
    """(D, K + 1) probabilities of the tiers of ``group`` (D,) in the relaxation: ``many`` (D, G) questions of every group,
    each worth ``gain`` (D, G, K) at ``cost`` (D, G, K) tokens, within ``capacity`` (D,). ``eager``: what the relaxation
    skips in part is skipped last.
    """
    size, _, num_tiers = gain.shape
    out = np.zeros((size, num_tiers + 1))
    for d in range(size):
        offered = np.where(min_cost <= remaining[d], gain[d], 0.0)
        increments = hull_increments(offered, cost[d])
        left, choice, before, share = capacity[d], -1, -1, 1.0
        for m in range(len(increments)):
            g, previous, k = int(increments[m, 1]), int(increments[m, 2]), int(increments[m, 3])
            if many[d, g] == 0.0:
                continue
            step = many[d, g] * (cost[d, g, k] - (cost[d, g, previous] if previous >= 0 else 0.0))
            part = 1.0 if step <= left else max(left, 0.0) / step
            if g == group[d] and part > 0.0:
                choice, before, share = k, previous, part
            left -= step
            if part < 1.0:
                break
        if eager and choice >= 0 and before < 0:
            share = 1.0
        out[d, choice + 1] += share
        if share < 1.0:
            out[d, before + 1] += 1.0 - share
    return out
