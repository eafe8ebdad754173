"""A planner that starts from beliefs and corrects them with every answer of the exam it is taking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.base import Agent, DecisionView, ExamsView, Feedback, Problem, Probs, State
from agents.parameters import Positive
from agents.planners.bandits import plan_task
from agents.planners.menu import Floats


@dataclass(frozen=True)
class Seen:
    """Sums over the attempts of every exam so far; (E, G, K) each.

    :param count: attempts.
    :param ratio: tokens / believed tokens.
    :param judged: attempts whose correctness was shown.
    :param right: right ones among them.
    """

    count: Floats
    ratio: Floats
    judged: Floats
    right: Floats


class OnlineLP(Agent):
    """Re-solve the fluid LP on beliefs that are updated inside the exam: what live exams start with.

    The believed mean cost c_gk of group g at tier k is multiplied by a factor that is estimated in two levels, first for
    the tier, then for its group:

        f_k = (s + sum of tokens / c over tier k) / (s + attempts at k),  f_gk = (s f_k + sum in g) / (s + attempts in g)

    (the posterior mean of a scale with s pseudo-attempts at the prior). Success, where answers are judged, likewise is a
    Beta posterior of s pseudo-attempts around the tier's own posterior. With s = infinity it is a re-solving LP.

    The law of one exam is learned in that exam alone: nothing is carried to the next.

    :param strength: s, pseudo-attempts that the published beliefs are worth.
    :raises ValueError: where the problem publishes no beliefs, or s <= 0.
    """

    name: ClassVar[str] = "online-lp"
    markov: ClassVar[bool] = False

    def __init__(self, problem: Problem, strength: Positive = 4.0) -> None:
        super().__init__(problem)
        if strength <= 0:
            raise ValueError(f"strength must be > 0, got {strength}")
        self.strength = strength
        laws = problem.require_beliefs(self.name)
        self._cost: Floats = np.maximum(laws.expected_cost, 1.0)
        self._success: Floats = laws.success_probability

    def start(self, exams: ExamsView) -> State:
        """Nothing seen yet."""
        zero = np.zeros((len(exams), self.problem.num_groups, self.problem.num_tiers))
        return Seen(zero, zero, zero, zero)

    def believed(self, seen: Seen, exam: int) -> tuple[Floats, Floats]:
        """(success, mean tokens) by group and tier, (G, K) each, after what was seen in the exam."""
        s = self.strength
        count, ratio, judged, right = (a[exam] for a in (seen.count, seen.ratio, seen.judged, seen.right))
        factor = (s + ratio.sum(0)) / (s + count.sum(0))
        cost = self._cost * (s * factor + ratio) / (s + count)
        surprise = (right - judged * self._success).sum(0) / (s + judged.sum(0))
        prior = np.clip(self._success + surprise, 0.0, 1.0)
        success = (s * prior + right) / (s + judged)
        return success, cost

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """The current task's part of the linear relaxation over the remaining tasks."""
        problem = self.problem
        probs = np.empty((len(view), problem.num_tiers + 1))
        groups = view.groups.astype(np.int64)
        for d in range(len(view)):
            success, cost = self.believed(state, int(view.exam[d]))
            one = slice(d, d + 1)
            probs[one] = plan_task(
                view.exam[one],
                view.position[one],
                view.remaining[one],
                view.mask[one],
                view.group[one],
                groups[one],
                problem.group_probability.mean(0),
                success,
                cost,
                problem.group_weight,
                problem.min_cost <= problem.budget,
                problem.decision_cost,
                problem.num_tasks,
            )
        return probs, state

    def observe(self, feedback: Feedback, state: State) -> State:
        """Count attempts that were not cut at the budget."""
        done: npt.NDArray[np.bool_] = (feedback.action > 0) & ~feedback.overspent
        if not done.any():
            return state
        view = feedback.view
        cell = view.exam[done], view.group[done], feedback.action[done] - 1
        tokens = np.maximum(feedback.tokens[done] - self.problem.decision_cost, 0)
        count, ratio, judged, right = (a.copy() for a in (state.count, state.ratio, state.judged, state.right))
        np.add.at(count, cell, 1.0)
        np.add.at(ratio, cell, tokens / self._cost[cell[1:]])
        if feedback.correct is not None:
            np.add.at(judged, cell, 1.0)
            np.add.at(right, cell, feedback.correct[done].astype(np.float64))
        return Seen(count, ratio, judged, right)

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return {"strength": self.strength}
