"""Bandits with knapsacks: planners that must learn success probabilities and costs from their own attempts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import Agent, DecisionView, ExamsView, Feedback, Practice, Problem, Probs, State
from agents.made_for import QUESTIONS
from agents.parameters import Count, Natural, NonNegative
from agents.planners.dynamic_programming import key_buckets
from roi_env.exams import random


@njit(cache=True)
def hull_increments(gain: npt.NDArray[np.float64], cost: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Increments ``(efficiency, task, tier before or -1, tier after)`` of every task's concave hull, best first.

    A tier with gain <= 0 is left out. Efficiency falls along a hull, so a sorted list keeps each task's order: bought in that
    order while tokens last, the increments solve the linear multiple-choice knapsack.
    """
    tasks, num_tiers = gain.shape
    out = np.empty((tasks * num_tiers, 4))
    count = 0
    for t in range(tasks):
        before, g0, c0 = -1, 0.0, 0.0
        while True:
            best, pick = 0.0, -1
            for k in range(num_tiers):
                if gain[t, k] > g0 and (before < 0 or cost[t, k] > c0):
                    slope = (gain[t, k] - g0) / max(cost[t, k] - c0, 1e-12)
                    # On a tie the longer step: fewer pieces, same hull.
                    if slope > best or (slope == best and pick >= 0 and gain[t, k] > gain[t, pick]):
                        best, pick = slope, k
            if pick < 0:
                break
            out[count, 0], out[count, 1], out[count, 2], out[count, 3] = best, t, before, pick
            count += 1
            before, g0, c0 = pick, gain[t, pick], cost[t, pick]
    out = out[:count]
    return out[np.argsort(-out[:, 0], kind="mergesort")]


@njit(cache=True)
def plan_task(
    exam: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    remaining: npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
    group: npt.NDArray[np.int32],
    later: npt.NDArray[np.int64],
    share: npt.NDArray[np.float64],
    success: npt.NDArray[np.float64],
    cost: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
    offered: npt.NDArray[np.bool_],
    decision_cost: int,
    num_tasks: int,
) -> npt.NDArray[np.float64]:
    """(D, K + 1) probabilities of the current task in the linear relaxation over the remaining tasks.

    ``later`` (D, N): groups of all tasks (preview), or -1 where hidden: then ``share`` (G,) of the population stands
    for each later task. ``success``, ``cost`` (G, K) estimates; the relaxation is solved again only where (exam,
    position, legal tiers) change, views being sorted.
    """
    size, num_tiers = len(exam), success.shape[1]
    out = np.zeros((size, num_tiers + 1))
    gain = np.zeros((1, num_tiers))
    price = np.zeros((1, num_tiers))
    increments = np.zeros((0, 4))
    many = np.ones(1)
    for d in range(size):
        same = d > 0 and exam[d] == exam[d - 1] and position[d] == position[d - 1]
        for k in range(num_tiers + 1):
            same = same and mask[d, k] == mask[d - 1, k]
        if not same:
            left = num_tasks - 1 - position[d]
            shown = left == 0 or later[d, position[d] + 1] >= 0
            tasks = 1 + (left if shown else len(share))
            gain, price, many = np.zeros((tasks, num_tiers)), np.zeros((tasks, num_tiers)), np.ones(tasks)
            for t in range(tasks):
                if t == 0:
                    g = np.int64(group[d])
                elif shown:
                    g = later[d, position[d] + t]
                else:
                    g = np.int64(t - 1)
                    many[t] = share[g] * left
                for k in range(num_tiers):
                    allowed = mask[d, k + 1] if t == 0 else offered[g, k]
                    price[t, k] = cost[g, k]
                    gain[t, k] = weight[g] * success[g, k] if allowed else 0.0
            increments = hull_increments(gain, price)
        # Every task still to come costs the decision cost, skipped or not.
        capacity = float(remaining[d] - decision_cost * (num_tasks - position[d]))
        choice, fraction, previous = -1, 1.0, -1
        for m in range(len(increments)):
            t, before, after = int(increments[m, 1]), int(increments[m, 2]), int(increments[m, 3])
            step = many[t] * (price[t, after] - (price[t, before] if before >= 0 else 0.0))
            part = 1.0 if step <= capacity else max(capacity, 0.0) / step
            if t == 0 and part > 0.0:
                choice, fraction, previous = after, part, before
            capacity -= step
            if part < 1.0:
                break
        if choice < 0:
            out[d, 0] = 1.0
        else:
            out[d, choice + 1] = fraction
            out[d, previous + 1] += 1.0 - fraction
    return out


@dataclass(frozen=True)
class Estimates:
    """What a bandit knows: counts by (bucket, tier) and the estimates it plays.

    :param count: (buckets, K) attempts; ``right``: right answers; ``tokens``: sum of tokens; ``square``: of squares.
    :param success: (buckets, K) success probability to play with.
    :param cost: (buckets, K) tokens to play with, decision cost excluded.
    """

    count: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    success: npt.NDArray[np.float64]
    cost: npt.NDArray[np.float64]

    def means(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Success with one right and one wrong answer added, mean tokens and their standard deviation; an untried cell
        takes its tier's mean over buckets (1 token where the tier was never tried)."""
        success = (self.right + 1) / (self.count + 2)
        tried = np.maximum(self.count, 1)
        pooled = self.tokens.sum(0) / np.maximum(self.count.sum(0), 1)
        cost = np.where(self.count > 0, self.tokens / tried, np.maximum(pooled, 1.0))
        spread = np.sqrt(np.maximum(self.square / tried - cost * cost, 0.0))
        return success, np.maximum(cost, 1.0), np.where(self.count > 1, spread, cost)


class BanditWithKnapsacks(Agent):
    """Learn laws by playing training exams, re-solving a linear relaxation on optimistic or sampled estimates.

    Badanidiyuru, Kleinberg and Slivkins, "Bandits with Knapsacks", FOCS 2013 (optimism); Ferreira, Simchi-Levi and
    Wang, "Online network revenue management using Thompson sampling", Operations Research 66(6), 2018 (sampled
    estimates and a linear programme). An arm is a tier; its law may depend on the bucket of the task's published key.
    Before every training exam estimates are made from all attempts so far; at every decision

        max sum_i sum_k w_i p_{b(i)k} x_ik   subject to   sum c_{b(i)k} x_ik <= remaining,  sum_k x_ik <= 1,  x >= 0

    over the remaining tasks gives the current task's probabilities x. Blind, the population stands for later tasks.

    * "ucb": p = min(1, mean + sqrt(width L p(1-p)/n) + width L/n), c = mean - sqrt(width L/n) sd, L = log2 of the
      attempts.
    * "thompson": normal approximations of the posteriors of p and of the mean cost (a sum of twelve uniform numbers:
      the same bits on every machine).

    An attempt cut at the budget is counted as the practice shows it: wrong, with the tokens paid. In practice the agent
    is told whether its own answers were right, whatever the exams' feedback is; when it is evaluated it plays the mean
    estimates, without exploration.

    :param kind: "ucb" or "thompson".
    :param training_exams: exams to practise on, one after the other.
    :param buckets: most buckets of the published key.
    :param width: scale of the optimistic bonus.
    """

    name: ClassVar[str] = "bwk"
    relies_on: ClassVar[tuple[str, ...]] = (QUESTIONS,)

    def __init__(
        self,
        problem: Problem,
        kind: Literal["ucb", "thompson"] = "ucb",
        training_exams: Natural = 500,
        buckets: Count = 6,
        width: NonNegative = 0.1,
    ) -> None:
        super().__init__(problem)
        if kind not in ("ucb", "thompson") or training_exams < 0 or buckets < 1 or width < 0:
            raise ValueError(
                f"kind must be 'ucb' or 'thompson', training_exams and width >= 0, buckets >= 1; got {kind!r}, "
                f"{training_exams}, {width}, {buckets}"
            )
        self.kind, self.training_exams, self.buckets, self.width = kind, training_exams, buckets, width
        self._bucket = key_buckets(problem, buckets)
        self._estimates = self.played(self._nothing())

    def _nothing(self) -> Estimates:
        zero = np.zeros((int(self._bucket.max()) + 1, self.problem.num_tiers))
        return Estimates(zero, zero, zero, zero, zero, zero)

    def played(self, known: Estimates) -> Estimates:
        """The mean estimates: what is played without exploration."""
        success, cost, _ = known.means()
        return dataclasses.replace(known, success=success, cost=cost)

    def explored(self, known: Estimates, seed: int, exam: int) -> Estimates:
        """Optimistic or sampled estimates for one training exam."""
        success, cost, spread = known.means()
        number = np.maximum(known.count, 1)
        if self.kind == "thompson":
            noise = normal_numbers(seed, exam, 2 * success.size).reshape(2, *success.shape)
            success = success + np.sqrt(success * (1 - success) / (known.count + 3)) * noise[0]
            cost = cost + spread / np.sqrt(number) * noise[1]
        else:
            scale = self.width * int(known.count.sum() + 2).bit_length()
            success = success + np.sqrt(scale * success * (1 - success) / number) + scale / number
            cost = np.where(known.count > 0, cost - np.sqrt(scale / number) * spread, 1.0)
            success = np.where(known.count > 0, success, 1.0)
        return dataclasses.replace(known, success=np.clip(success, 0.0, 1.0), cost=np.maximum(cost, 1.0))

    def train(self, practice: Practice, seed: int) -> None:
        """Play ``training_exams`` training exams in turn."""
        known = self._nothing()
        for exam in range(self.training_exams):
            known = practice.play(self, 1, exam, self.explored(known, seed, exam))
        self._estimates = self.played(known)

    def start(self, exams: ExamsView) -> State:
        """The learned estimates."""
        return self._estimates

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Current task's part of the linear relaxation."""
        problem, estimates = view.problem, state
        probs = plan_task(
            view.exam,
            view.position,
            view.remaining,
            view.mask,
            view.group,
            view.groups.astype(np.int64),
            problem.group_probability.mean(0),
            estimates.success[self._bucket],
            estimates.cost[self._bucket],
            problem.group_weight,
            problem.min_cost <= problem.budget,
            problem.decision_cost,
            problem.num_tasks,
        )
        return probs, state

    def observe(self, feedback: Feedback, state: State) -> State:
        """Count attempts, where the answers are revealed."""
        if feedback.correct is None:
            return state
        tried = feedback.action > 0
        cell = self._bucket[feedback.view.group[tried]], feedback.action[tried] - 1
        tokens = (feedback.tokens[tried] - self.problem.decision_cost).astype(np.float64)
        count, right, total, square = (a.copy() for a in (state.count, state.right, state.tokens, state.square))
        np.add.at(count, cell, 1.0)
        np.add.at(right, cell, feedback.correct[tried].astype(np.float64))
        np.add.at(total, cell, tokens)
        np.add.at(square, cell, tokens * tokens)
        return dataclasses.replace(state, count=count, right=right, tokens=total, square=square)

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return {
            "kind": self.kind,
            "training_exams": self.training_exams,
            "buckets": self.buckets,
            "width": self.width,
        }

    def learned(self) -> dict[str, npt.NDArray[Any]]:
        """Counts."""
        known = self._estimates
        return {"count": known.count, "right": known.right, "tokens": known.tokens, "square": known.square}

    def restore(self, learned: dict[str, npt.NDArray[Any]]) -> None:
        """Put the counts back."""
        self._estimates = self.played(dataclasses.replace(self._estimates, **learned))


@njit(cache=True)
def normal_numbers(seed: int, stream: int, count: int) -> npt.NDArray[np.float64]:
    """(count,) approximately standard normal numbers named by (seed, stream): twelve uniforms minus six."""
    out = np.empty(count)
    key = random.draw(random.exam_key(np.uint64(seed), np.int64(stream)), random.ACTIONS)
    for i in range(count):
        total = 0.0
        for j in range(12):
            total += float(random.draw(key, np.uint64(12 * i + j)) >> np.uint64(11)) * 2.0**-53
        out[i] = total - 6.0
    return out
