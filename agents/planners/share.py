"""Rules that divide the budget by the number of tasks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agents.base import DecisionView, Probs, State, one_hot
from agents.made_for import QUESTIONS
from agents.planners.menu import TIE, Planner


class UniformShare(Planner):
    """Every task may cost B / N: the tier with the largest value whose expected cost fits, else skip.

    Folklore (an equal ration a task); no other source.

    Expected costs include the decision cost. Ties go to the first tier.
    """

    name: ClassVar[str] = "uniform-share"
    relies_on: ClassVar[tuple[str, ...]] = (QUESTIONS,)
    adaptive: ClassVar[bool] = False

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Play the best tier within the share."""
        problem, cost = view.problem, self.menu.cost[view.group] + self.menu.decision_cost
        total: npt.NDArray[np.int64] | int = view.remaining if self.adaptive else problem.budget
        tasks = problem.num_tasks - view.position if self.adaptive else np.full(len(view), problem.num_tasks)
        share = np.broadcast_to(total, len(view)) / tasks
        fits = view.mask[:, 1:] & (cost <= share[:, None] * (1.0 + TIE))
        value = np.where(fits, self.menu.value[view.group], 0.0)
        action = np.where(value.max(1) > 0, value.argmax(1) + 1, 0)
        return one_hot(action, problem.num_tiers + 1), state


class RemainingShare(UniformShare):
    """Like uniform share with what is left: every task may cost remaining / (tasks left, this one included).

    Folklore too: the rule that nobody needs to tune.
    """

    name: ClassVar[str] = "remaining-share"
    adaptive: ClassVar[bool] = True
