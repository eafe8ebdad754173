"""Dynamic programming on mean costs."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import DecisionView, ExamsView, Problem, Probs, State, one_hot
from agents.planners.menu import TIE, Floats, Menu, Planner, offered_tiers, position_law

TABLE_BYTES = 1 << 29
"""Action tables of a batch up to this size are kept; above it they are built again for every run of decisions."""

LARGEST_TABLE = 1 << 32
"""Bytes of the values of one exam."""


class _Tables(NamedTuple):
    """The plans of a batch of exams.

    :param actions: (E, N, B + 1) with preview; empty where that is too large, and in blind mode.
    :param values: (N + 1, B + 1) in blind mode.
    :param groups: (E, N).
    :param law: (N, G) population of every position in blind mode, else (0, G).
    """

    actions: npt.NDArray[np.int8]
    values: Floats
    groups: npt.NDArray[np.int32]
    law: Floats


@njit(cache=True)
def _best(menu: Menu, tokens: npt.NDArray[np.int64], group: int, budget: int, rest: Floats) -> tuple[float, int]:
    """Value and tier + 1 (0: skip) of the best certain purchase at ``budget``; ties go to the cheaper action."""
    b = budget - menu.decision_cost
    best, action = (rest[b] if b >= 0 else 0.0), 0
    for k in range(tokens.shape[1]):
        if tokens[group, k] <= b:
            value = menu.value[group, k] + rest[b - tokens[group, k]]
            if value > best + TIE * (1.0 + best):
                best, action = value, k + 1
    return best, action


@njit(cache=True)
def _fill(
    menu: Menu,
    tokens: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int32],
    law: Floats,
    first: int,
    values: Floats,
) -> None:
    """Fill ``values`` (N + 1, B + 1) for positions ``first`` .. N; ``law`` has no rows with preview."""
    values[-1] = 0.0
    for n in range(len(values) - 2, first - 1, -1):
        for b in range(values.shape[1]):
            if len(law) == 0:
                values[n, b] = _best(menu, tokens, groups[n], b, values[n + 1])[0]
            else:
                total = 0.0
                for g in range(law.shape[1]):
                    if law[n, g] > 0:
                        total += law[n, g] * _best(menu, tokens, g, b, values[n + 1])[0]
                values[n, b] = total


@njit(cache=True)
def _fill_actions(
    menu: Menu, tokens: npt.NDArray[np.int64], groups: npt.NDArray[np.int32], actions: npt.NDArray[np.int8]
) -> None:
    size = actions.shape[2]
    rest, here = np.empty(size), np.empty(size)
    for e in range(len(actions)):
        rest[:] = 0.0
        for n in range(actions.shape[1] - 1, -1, -1):
            for b in range(size):
                here[b], action = _best(menu, tokens, groups[e, n], b, rest)
                actions[e, n, b] = action
            rest, here = here, rest


@njit(cache=True)
def _act(
    menu: Menu,
    tokens: npt.NDArray[np.int64],
    tables: _Tables,
    exam: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    group: npt.NDArray[np.int32],
    remaining: npt.NDArray[np.int64],
    num_tasks: int,
    budget: int,
) -> npt.NDArray[np.int64]:
    action = np.zeros(len(exam), np.int64)
    blind, kept = len(tables.law) > 0, len(tables.actions) > 0
    scratch = np.empty((0, 0)) if blind or kept else np.empty((num_tasks + 1, budget + 1))
    for d in range(len(exam)):
        n = position[d]
        if kept:
            action[d] = tables.actions[exam[d], n, remaining[d]]
            continue
        if not blind and (d == 0 or exam[d] != exam[d - 1] or n != position[d - 1]):
            _fill(menu, tokens, tables.groups[exam[d]], tables.law, n + 1, scratch)
        rest = tables.values[n + 1] if blind else scratch[n + 1]
        action[d] = _best(menu, tokens, int(group[d]), remaining[d], rest)[1]
    return action


class MeanCostDP(Planner):
    """Dynamic programming that takes every cost for its mean, rounded half up to an integer.

    V_n(b) = max(V_{n+1}(b), max_k: c_k <= b of weight x success + V_{n+1}(b - c_k)), decision cost paid by all: the
    0/1 multiple-choice knapsack (Dudzinski and Walukiewicz, EJOR 28, 1987) behind ``resolve``'s relaxation, re-solved
    at every task. An attempt whose mean does not fit is never made. Blind: expectation over the population of every
    position.
    """

    name: ClassVar[str] = "ce-dp"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        mean = np.maximum(np.floor(self.menu.cost + 0.5 + 1e-9), 1.0).astype(np.int64)
        # A tier is never legal below its smallest cost, so a mean at least that large keeps every choice legal.
        self.tokens: npt.NDArray[np.int64] = np.where(
            offered_tiers(problem), np.maximum(mean, problem.min_cost - problem.decision_cost), 1 << 60
        )
        """(G, K) certain cost of a tier."""
        dearest = int(self.tokens.max(where=self.tokens < 1 << 60, initial=0))
        self.most = min(problem.budget, problem.num_tasks * (dearest + problem.decision_cost))
        """What can be spent by these costs: with more, nothing changes."""

    def start(self, exams: ExamsView) -> State:
        """Action tables (preview, where they fit) or the value table that all exams share (blind).

        :raises ValueError: where the table of one exam is too large.
        """
        problem = exams.problem
        length = self.most + 1
        if (problem.num_tasks + 1) * length * 8 > LARGEST_TABLE:
            raise ValueError(
                f"agent 'ce-dp' needs a value for each of {length:,} {problem.unit} at each of {problem.num_tasks} tasks: too many, "
                "choose lp-lookahead"
            )
        shape = (len(exams), problem.num_tasks, length)
        actions, values = np.zeros((0, *shape[1:]), np.int8), np.zeros((0, length))
        law = np.zeros((0, problem.num_groups))
        if not problem.preview:
            law, values = position_law(problem), np.empty((problem.num_tasks + 1, length))
            _fill(self.menu, self.tokens, exams.groups[0], law, 0, values)
        elif shape[0] * shape[1] * shape[2] <= TABLE_BYTES:
            actions = np.empty(shape, np.int8)
            _fill_actions(self.menu, self.tokens, exams.groups, actions)
        return _Tables(actions, values, exams.groups, law)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Play the first purchase of the best plan."""
        action: Any = _act(
            self.menu,
            self.tokens,
            state,
            view.exam,
            view.position,
            view.group,
            np.minimum(view.remaining, self.most),
            view.problem.num_tasks,
            self.most,
        )
        return one_hot(action, view.problem.num_tiers + 1), state
