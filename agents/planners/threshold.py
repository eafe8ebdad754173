"""Rules with a fixed bar: return on investment, and the online knapsack's threshold."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.base import DecisionView, Practice, Problem, Probs, State, one_hot
from agents.parameters import Count
from agents.planners.lp import bid
from agents.planners.menu import Floats, Planner, population


class ROI(Planner):
    """Plays the legal tier of largest value among those whose return, value / expected tokens, reaches a threshold.

    Value = weight x success probability; expected tokens include the decision cost. Ties go to the first tier; skip
    where none qualifies. Density as the price of admission is the greedy rule of Dantzig, "Discrete-Variable Extremum
    Problems", Operations Research 5, 1957, with a threshold in place of sorting. Without a given threshold, training tries 0 and ``GRID`` quantiles of the population's
    returns on ``exams`` training exams and keeps the best score; ties keep the lower threshold. Before training it is
    0.

    :param threshold: value per token; None: tuned in training.
    :param exams: training exams.
    """

    name: ClassVar[str] = "roi"
    GRID: ClassVar[int] = 24

    def __init__(self, problem: Problem, threshold: float | None = None, exams: Count = 12) -> None:
        super().__init__(problem)
        self.given = threshold
        self.exams = exams
        self.threshold = 0.0 if threshold is None else float(threshold)
        cost = self.menu.cost + self.menu.decision_cost
        self.returns: Floats = np.where(self.menu.value > 0, self.menu.value / np.where(cost > 0, cost, 1.0), 0.0)
        """(G, K) value per token."""

    def train(self, practice: Practice, seed: int) -> None:
        """Choose the threshold on training exams."""
        if self.given is not None:
            return
        mass = np.repeat(population(self.problem)[:, None], self.problem.num_tiers, 1)
        mass = np.where(self.returns > 0, mass, 0.0).ravel()
        levels = [i / (self.GRID - 1) for i in range(self.GRID)]
        grid = sorted({0.0, *(quantile(self.returns.ravel(), mass, level) for level in levels)})
        scores = []
        for self.threshold in grid:
            scores.append(practice.score(self, self.exams))
        self.threshold = grid[int(np.argmax(scores))]

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Play the best tier above the threshold."""
        fits = view.mask[:, 1:] & (self.returns[view.group] >= self.threshold)
        value = np.where(fits, self.menu.value[view.group], 0.0)
        action = np.where(value.max(1) > 0, value.argmax(1) + 1, 0)
        return one_hot(action, view.problem.num_tiers + 1), state

    def params(self) -> dict[str, Any]:
        """The given threshold and the number of training exams."""
        return {"threshold": self.given, "exams": self.exams}

    def learned(self) -> dict[str, npt.NDArray[Any]]:
        """The threshold in use."""
        return {"threshold": np.array(self.threshold)}

    def restore(self, learned: dict[str, npt.NDArray[Any]]) -> None:
        """Put the threshold back."""
        self.threshold = float(learned["threshold"])


def quantile(values: Floats, mass: Floats, level: float) -> float:
    """Smallest value whose cumulative mass reaches ``level`` of the total; 0 of nothing."""
    order = np.argsort(values, kind="stable")
    order = order[mass[order] > 0]
    if not len(order):
        return 0.0
    below = np.cumsum(mass[order])
    return float(values[order[min(int(np.searchsorted(below, level * below[-1])), len(order) - 1)]])


class ZCL(Planner):
    """Online multiple-choice knapsack threshold of Zhou, Chakrabarty and Lukose (WINE 2008, LNCS 5385).

    With a share z = 1 - remaining / B spent, an increment of the efficient frontier is taken if its efficiency is at
    least Psi(z) = (U e / L) ** z * L / e, that is: the action maximises value - Psi(z) x tokens. L and U are the 5 %
    and 95 % quantiles of the population's incremental efficiencies. Competitive against any order of arrival, for
    items that are small beside the budget; here it insures against an adversary who is not there.

    The last bits of exp and log are the machine's. No decision hangs on them: a test moves the price by far more, as
    checksums show that no rounded number of the synthetic families does.
    """

    name: ClassVar[str] = "zcl"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        mass = population(problem)[self.menu.inc_group]
        self.lower = quantile(self.menu.inc_efficiency, mass, 0.05)
        self.upper = quantile(self.menu.inc_efficiency, mass, 0.95)
        self._growth = 1.0 + math.log(self.upper / self.lower) if self.lower > 0 else 0.0

    def price(self, remaining: npt.NDArray[np.int64]) -> Floats:
        """(D,) Psi at the remaining budgets (D,)."""
        spent = (self.problem.budget - remaining) / self.problem.budget
        return np.asarray(np.exp(spent * self._growth) * (self.lower / math.e))

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Take every increment above the threshold."""
        return one_hot(bid(self.menu, view, self.price(view.remaining)), view.problem.num_tiers + 1), state
