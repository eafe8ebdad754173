"""An agent of one's own: `roi compare --agent examples/own_agent.py:Careful --agent 'examples/own_agent.py:Careful(margin=2.0)'`.

Among the tiers whose believed cost, times a margin, fits an equal share of what is left, it takes the one that is most
likely right; where none fits, it skips.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.base import Agent, DecisionView, Problem, Probs, State, one_hot


class Careful(Agent):
    """Never pays more than an equal share of what is left, with a margin."""

    def __init__(self, problem: Problem, margin: float = 1.0) -> None:
        super().__init__(problem)
        self.margin = margin
        self.beliefs = problem.require_beliefs("Careful")

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Decide: ``view`` holds D decisions, the answer is (D, K + 1) probabilities."""
        tasks_left = self.problem.num_tasks - view.position
        share = view.remaining / tasks_left
        cost = self.beliefs.expected_cost[view.group]  # (D, K) tokens
        success = self.beliefs.success_probability[view.group]  # (D, K)
        fits = view.mask[:, 1:] & (self.margin * cost <= share[:, None])
        best = np.where(fits, success, -1.0).argmax(1)
        action = np.where(fits.any(1), best + 1, 0)
        return one_hot(action, cost.shape[1] + 1), state

    def params(self) -> dict[str, Any]:
        """What a saved agent is made of again."""
        return {"margin": self.margin}
