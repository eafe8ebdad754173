"""Agents that look their actions up in tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from agents.base import Agent, DecisionView, ExamsView, Probs, State, one_hot
from roi_env.exact.policy_tables import Tables


def by_position(
    view: DecisionView,
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int32] | None]]:
    """(position, decisions there (D',), groups they have seen (D', position + 1), None where all are shown)."""
    for n in np.unique(view.position):
        at = np.flatnonzero(view.position == n)
        yield int(n), at, None if view.problem.preview else view.groups[at, : n + 1]


class TableAgent(Agent):
    """An agent that looks its actions up in :class:`roi_env.exact.policy_tables.Tables` made in :meth:`start`."""

    def tables(self, exams: ExamsView) -> Tables:
        """Solve a batch of exams."""
        raise NotImplementedError

    def start(self, exams: ExamsView) -> State:
        """Solve the batch."""
        return self.tables(exams)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Look the actions up."""
        action = np.zeros(len(view), np.int64)
        for n, at, seen in by_position(view):
            action[at] = state.lookup(n, view.exam[at], view.remaining[at], seen)
        return one_hot(action, view.problem.num_tiers + 1), state
