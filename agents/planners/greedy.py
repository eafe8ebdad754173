"""The paper's Greedy Knapsack."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.base import DecisionView, ExamsView, Problem, Probs, State, one_hot
from agents.parameters import Share
from agents.planners.menu import Planner, offered_tiers, position_law


class GreedyKnapsack(Planner):
    """Greedy Knapsack of ROI-Reasoning (arXiv 2601.03822): sort predicted level centroids, keep while the sum fits B.

    Predicted level of a task = what a solver without a budget needs: the cheapest tier (by number) with believed
    success of at least 1/2, else the most successful tier; refused where even the best tier's success is below
    ``refuse_below``. Centroid of level k = middle of its token interval, (edge[k-1] + edge[k]) / 2 with edge[-1] = 0:
    128, 384, 768 for the paper's edges 256, 512, 1024. Tasks are sorted by centroid (ties: earlier task first) and
    kept while the sum, plus the decision costs of all N tasks, is at most B. The plan is made once; kept tasks are
    played at their level in exam order where that is legal, all others are skipped.

    Blind: nothing to sort, so a task is kept where its centroid plus the expected centroids of those that would come
    before it in the sorted list (smaller anywhere, equal at earlier positions; population of every position) fit B.

    :param refuse_below: success probability below which a task is refused (Level-K, skip).
    """

    name: ClassVar[str] = "greedy-knapsack"

    def __init__(self, problem: Problem, refuse_below: Share = 0.1) -> None:
        super().__init__(problem)
        self.refuse_below = float(refuse_below)
        # Rounded: sums of probabilities must compare with the bounds as the exact numbers do.
        believed = np.round(problem.require_beliefs(self.name).success_probability, 12)
        success = np.where(offered_tiers(problem), believed, -1.0)
        enough = success >= 0.5
        tier = np.where(enough.any(1), enough.argmax(1), success.argmax(1))
        refused = (success.max(1) < self.refuse_below) | (success.max(1) < 0)
        self.action: npt.NDArray[np.int64] = np.where(refused, 0, tier + 1)
        """(G,) action of a kept task."""
        edges = np.concatenate([[0], problem.level_edges])
        self.centroid2: npt.NDArray[np.int64] = np.where(refused, 0, edges[tier] + edges[tier + 1])
        """(G,) twice the centroid: an integer."""

    def _keep_blind(self) -> npt.NDArray[np.bool_]:
        """(N, G) whether a task of group g at position n is kept."""
        problem, law = self.problem, position_law(self.problem)
        room = 2 * (problem.budget - problem.num_tasks * problem.decision_cost)
        keep = np.zeros(law.shape, bool)
        for g, own in enumerate(self.centroid2):
            smaller = np.cumsum(law * np.where(self.centroid2 < own, self.centroid2, 0), 1)[:, -1]
            equal = np.cumsum(law * np.where(self.centroid2 == own, self.centroid2, 0), 1)[:, -1]
            for n in range(problem.num_tasks):
                others = np.cumsum(np.concatenate([[0.0], np.delete(smaller, n), equal[:n]]))[-1]
                keep[n, g] = own > 0 and own + others <= room
        return keep

    def start(self, exams: ExamsView) -> State:
        """The plan: (E, N) whether a task is kept (preview), or (N, G) (blind)."""
        problem = self.problem
        if not problem.preview:
            return self._keep_blind()
        room = 2 * (problem.budget - problem.num_tasks * problem.decision_cost)
        own = self.centroid2[exams.groups]
        by_size = np.argsort(own, axis=1, kind="stable")
        fits = np.cumsum(np.take_along_axis(own, by_size, 1), 1) <= room
        keep = np.empty_like(fits)
        np.put_along_axis(keep, by_size, fits, 1)
        return keep & (own > 0)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Play kept tasks at their predicted level."""
        keep = state[
            view.exam if self.problem.preview else view.position, view.position if self.problem.preview else view.group
        ]
        action = np.where(keep, self.action[view.group], 0)
        legal = view.mask[np.arange(len(view)), action]
        return one_hot(np.where(legal, action, 0), view.problem.num_tiers + 1), state

    def params(self) -> dict[str, Any]:
        """The refusal bound."""
        return {"refuse_below": self.refuse_below}
