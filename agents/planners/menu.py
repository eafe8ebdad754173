"""What every planner reads: believed values and costs per group, efficient frontiers, and the population."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents.base import Agent, Problem
from roi_env.exams.arrivals import order_key
from roi_env.sources.source import NOT_OFFERED, Laws

Floats = npt.NDArray[np.float64]

TIE = 1e-12
"""Values closer than this are equal: rounding errors must not decide between actions."""


class Menu(NamedTuple):
    """Beliefs as arrays for compiled code; G groups, K tiers, R increments of all efficient frontiers together.

    The efficient frontier of a group is the upper concave hull of skip (0, 0) and its tiers' (expected tokens, weight x
    success probability): the choices that a fluid LP mixes (Sinha and Zoltners, The multiple-choice knapsack problem,
    Operations Research 27, 1979). Increments are sorted by efficiency (value / tokens), best first; ties by group.

    :param value: (G, K) weight x success probability; 0 where not offered.
    :param cost: (G, K) expected tokens, decision cost excluded; 0 where not offered.
    :param weight: (G,).
    :param rank: (G, K) number in the sorted list of the group's j-th increment; R beyond its last.
    :param inc_group: (R,) group of an increment.
    :param inc_gain: (R,) value it adds.
    :param inc_cost: (R,) expected tokens it adds.
    :param inc_efficiency: (R,) their ratio.
    :param indptr: (G * K + 1,) cell boundaries of the four arrays below (see :class:`roi_env.sources.source.Laws`).
    :param support: tokens, ascending inside a cell.
    :param prob: P(tokens).
    :param success: P(tokens and correct).
    :param below: (entries, 3) running sums inside the cell of prob, success and prob x tokens.
    :param decision_cost: tokens added to every action.
    """

    value: Floats
    cost: Floats
    weight: Floats
    rank: npt.NDArray[np.int64]
    inc_group: npt.NDArray[np.int64]
    inc_gain: Floats
    inc_cost: Floats
    inc_efficiency: Floats
    indptr: npt.NDArray[np.int64]
    support: npt.NDArray[np.int64]
    prob: Floats
    success: Floats
    below: Floats
    decision_cost: int


def frontier(cost: Floats, value: Floats) -> list[int]:
    """Indices of the efficient frontier, ascending: the upper concave hull of (0, 0) and the given points.

    Gains and bends within rounding (relative ``TIE``) do not count: they would add increments that are noise.
    """
    hull: list[int] = []
    for k in sorted(range(len(cost)), key=lambda j: (cost[j], -value[j])):
        if value[k] <= (value[hull[-1]] * (1.0 + TIE) if hull else 0.0):
            continue
        while hull:
            c0, v0 = (cost[hull[-2]], value[hull[-2]]) if len(hull) > 1 else (0.0, 0.0)
            if (value[hull[-1]] - v0) * (cost[k] - c0) > (value[k] - v0) * (cost[hull[-1]] - c0) * (1.0 + TIE):
                break
            hull.pop()
        hull.append(k)
    return hull


def offered_tiers(problem: Problem) -> npt.NDArray[np.bool_]:
    """(G, K) bool: tiers that can ever be legal."""
    return problem.min_cost < NOT_OFFERED


def make_menu(problem: Problem, laws: Laws) -> Menu:
    """Beliefs of a problem as arrays."""
    num_groups, num_tiers = problem.num_groups, problem.num_tiers
    offered = offered_tiers(problem)
    below = np.stack([laws.prob, laws.success, laws.prob * laws.cost], 1)
    last = np.zeros((num_groups * num_tiers, 3))
    for cell, (first, stop) in enumerate(zip(laws.indptr[:-1], laws.indptr[1:], strict=True)):
        if first < stop:  # sums inside the cell: equal cells have equal sums wherever they are
            below[first:stop] = np.cumsum(below[first:stop], 0)
            last[cell] = below[stop - 1]
    total = last.reshape(num_groups, num_tiers, 3)
    value = np.where(offered, total[..., 1] * problem.group_weight[:, None], 0.0)
    cost = np.where(offered, total[..., 2], 0.0)
    group, level, gain, tokens = [], [], [], []
    for g in range(num_groups):
        tiers = np.flatnonzero(offered[g])
        before = (0.0, 0.0)
        for j, k in enumerate(tiers[frontier(cost[g, tiers], value[g, tiers])]):
            point = (float(cost[g, k]), float(value[g, k]))
            group.append(g)
            level.append(j)
            gain.append(point[1] - before[1])
            tokens.append(point[0] - before[0])
            before = point
    inc_gain, inc_cost = np.array(gain, np.float64), np.array(tokens, np.float64)
    order = np.lexsort((np.array(level), np.array(group), -inc_gain / inc_cost)) if group else np.empty(0, np.int64)
    inc_group, inc_level = np.array(group, np.int64)[order], np.array(level, np.int64)[order]
    inc_gain, inc_cost = inc_gain[order], inc_cost[order]
    rank = np.full((num_groups, num_tiers), len(order), np.int64)
    rank[inc_group, inc_level] = np.arange(len(order))
    return Menu(
        value,
        cost,
        problem.group_weight.astype(np.float64),
        rank,
        inc_group,
        inc_gain,
        inc_cost,
        inc_gain / inc_cost,
        laws.indptr.astype(np.int64),
        laws.cost.astype(np.int64),
        laws.prob,
        laws.success,
        below,
        problem.decision_cost,
    )


def population(problem: Problem) -> Floats:
    """(G,) how often a group occurs among the N tasks of an exam."""
    total = np.zeros(problem.num_groups)
    for n in range(problem.num_tasks):
        total += problem.group_probability[n % len(problem.group_probability)]
    return total / problem.num_tasks


def position_law(problem: Problem) -> Floats:
    """(N, G) how often a group occurs at every position: what a blind planner expects of later tasks.

    ``random`` order: the population everywhere. Other orders: order statistics of the published key that they sort by:
    P(key at position n <= x) = P(more than n tasks have a key <= x), a Poisson binomial law; tasks of one key share
    their groups as the population does. Where all keys are equal a position is a slot.
    """
    num_tasks = problem.num_tasks
    slots = problem.group_probability[np.arange(num_tasks) % len(problem.group_probability)]
    key = order_key(problem.order, problem.group_key, problem.given_key)
    mean = population(problem)
    if key is None:
        return np.tile(mean, (num_tasks, 1))
    if (key == key[0]).all():
        return slots.copy()
    law = np.zeros((num_tasks, problem.num_groups))
    before = np.zeros(num_tasks)
    for x in np.unique(key):
        members = np.flatnonzero(key == x)
        count = np.zeros(num_tasks + 1)
        count[0] = 1.0
        for slot in slots:
            share = min(float(np.cumsum(slot[key <= x])[-1]), 1.0)
            count[1:] = count[1:] * (1.0 - share) + count[:-1] * share
            count[0] *= 1.0 - share
        reached = 1.0 - np.cumsum(count)[:-1]
        mass = float(np.cumsum(mean[members])[-1])
        if mass > 0:
            law[:, members] = np.maximum(reached - before, 0.0)[:, None] * (mean[members] / mass)
        before = reached
    return law


class Planner(Agent):
    """An agent that plans with the published beliefs."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.menu = make_menu(problem, problem.require_beliefs(getattr(self, "name", type(self).__name__)))
