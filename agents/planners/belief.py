"""Planning with a belief about the exam-level latent state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.base import Agent, DecisionView, ExamsView, Feedback, Problem, Probs, State, one_hot
from agents.parameters import Natural, Range
from agents.planners.tables import by_position
from roi_env.exact.belief import POINTS, BeliefTables, belief_model, belief_tables, observe_attempts
from roi_env.sources.source import Laws


@dataclass(frozen=True)
class BeliefState:
    """Beliefs (E,) in latent state 1 and the tables of a batch of exams."""

    belief: npt.NDArray[np.float64]
    tables: BeliefTables


class BeliefBellman(Agent):
    """The dynamic programme over (task, remaining budget, belief) for exams with a two-valued latent state.

    The belief moves by Bayes' rule with what the feedback shows: a two-state POMDP (Kaelbling, Littman
    and Cassandra, Artificial Intelligence 101, 1998) on a grid of beliefs (Lovejoy, Operations Research 39, 1991); see
    :mod:`roi_env.exact.belief`.

    :param points: grid points of the belief.
    :param grid: tokens per step of the budget grid; 0 chooses 1 up to 1024 tokens of budget.
    :param laws: laws by (latent state, group) instead of the published beliefs (then it cannot be saved).
    :raises ValueError: where the problem has no two-valued latent state or publishes no beliefs about it.
    """

    name: ClassVar[str] = "belief-bellman"
    markov: ClassVar[bool] = False

    def __init__(
        self, problem: Problem, points: Annotated[int, Range(2)] = POINTS, grid: Natural = 0, laws: Laws | None = None
    ) -> None:
        super().__init__(problem)
        given = problem.latent_beliefs if laws is None else laws
        if given is None or problem.num_latent != 2:
            raise ValueError(
                "agent 'belief-bellman' needs published beliefs about a two-valued exam-level latent state (source "
                f"'latent', beliefs='published'); this problem has {problem.num_latent} latent state(s)"
            )
        self.points, self._grid, self._given = points, grid, laws
        self.model = belief_model(
            given,
            problem.group_weight,
            problem.min_cost,
            problem.budget,
            problem.decision_cost,
            sees_correct=problem.feedback == "cost+correct",
            points=points,
            grid=grid,
        )

    def start(self, exams: ExamsView) -> State:
        """Solve the batch; equal suffixes of exams are solved once."""
        tables = belief_tables(self.model, exams.groups if self.problem.preview else self.problem.arrivals)
        return BeliefState(np.full(len(exams), 0.5), tables)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Action of the nearest grid point of the belief."""
        action = np.zeros(len(view), np.int64)
        for n, at, seen in by_position(view):
            exam = view.exam[at]
            action[at] = state.tables.lookup(n, exam, view.remaining[at], state.belief[exam], seen)
        return one_hot(action, self.problem.num_tiers + 1), state

    def observe(self, feedback: Feedback, state: State) -> State:
        """Bayes' rule on finished attempts (after one that was cut the exam is over)."""
        done = (feedback.action > 0) & ~feedback.overspent
        exam = feedback.view.exam[done]
        belief = state.belief.copy()
        belief[exam] = observe_attempts(
            self.model,
            belief[exam],
            feedback.view.group[done],
            feedback.action[done],
            feedback.tokens[done],
            None if feedback.correct is None else feedback.correct[done],
        )
        return replace(state, belief=belief)

    def params(self) -> dict[str, Any]:
        """Constructor parameters.

        :raises ValueError: with laws that are not the published beliefs.
        """
        if self._given is not None:
            raise ValueError("'optimum' holds the evaluated source's own laws and cannot be saved; make it again")
        return {"points": self.points, "grid": self._grid}
