"""The fluid relaxation of the rest of an exam, for every remaining budget at once.

Replace random costs by their means and let a task be attempted in part: what remains is the LP relaxation of a
multiple-choice knapsack, solved by taking increments of the efficient frontiers, best efficiency first, until the
budget is gone (Sinha and Zoltners, Operations Research 27, 1979; Kellerer, Pferschy, Pisinger, Knapsack Problems,
Springer 2004). Value and price as functions of the budget are therefore one sorted list with running sums: a
:class:`Plan` holds the list of every exam, a kernel walks it once for all decisions at the same (exam, position) that
follow each other. Nothing is kept between calls, so answers do not depend on how decisions are batched.

The price at budget x is the right derivative of the LP value: the efficiency of the increment that the next token would
buy; 0 where the budget pays for everything. Of tasks with the same increment the earliest buys first, and an increment
bought in part is rounded to the nearest: bought where half of it or more is (``up``). Decision costs are set aside
first: x = remaining - decision cost x tasks left, at least 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import DecisionView, ExamsView
from agents.planners.menu import TIE, Floats, Menu, position_law


class Plan(NamedTuple):
    """What a fluid LP needs of a batch of exams.

    :param preview: whether later tasks are known.
    :param rank: (E, L) increments of the exam's tasks, best first (preview).
    :param task: (E, L) the task each belongs to.
    :param later: (N + 1, G) expected number of tasks of every group at positions n and beyond (blind).
    """

    preview: bool
    rank: npt.NDArray[np.int64]
    task: npt.NDArray[np.int64]
    later: Floats


def make_plan(exams: ExamsView, menu: Menu) -> Plan:
    """Sort the increments of every exam, or count the population of the positions to come."""
    problem = exams.problem
    num_tasks, num_groups = problem.num_tasks, problem.num_groups
    if not problem.preview:
        later = np.zeros((num_tasks + 1, num_groups))
        law = position_law(problem)
        for n in reversed(range(num_tasks)):
            later[n] = later[n + 1] + law[n]
        return Plan(False, np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), later)
    rank = menu.rank[exams.groups].reshape(len(exams), -1)
    order = np.argsort(rank, axis=1, kind="stable")
    return Plan(True, np.take_along_axis(rank, order, 1), order // problem.num_tiers, np.zeros((1, 1)))


@njit(cache=True)
def fill_curve(
    menu: Menu,
    plan: Plan,
    exam: int,
    first: int,
    group: int,
    tokens: Floats,
    gain: Floats,
    slope: Floats,
    which: npt.NDArray[np.int64],
) -> int:
    """Write the LP of tasks ``first`` .. N-1 as running sums and return the number of increments J.

    ``tokens[j]``, ``gain[j]``: cost and value of the first j increments (j = 0..J); ``slope[j]``,
    ``which[j]``: efficiency of increment j and its number in the menu (``slope[J]`` = 0). ``group``: in blind mode, a
    known task to include besides the tasks from ``first`` on (-1: none).
    """
    count = 0
    tokens[0] = gain[0] = 0.0
    size = len(menu.inc_group)
    for i in range(plan.rank.shape[1] if plan.preview else size):
        if plan.preview:
            r = plan.rank[exam, i]
            if r == size:
                break
            if plan.task[exam, i] < first:
                continue
            mass = 1.0
        else:
            r = i
            mass = plan.later[first, menu.inc_group[r]]
            if menu.inc_group[r] == group:
                mass += 1.0
            if mass == 0.0:
                continue
        slope[count] = menu.inc_efficiency[r]
        which[count] = r
        tokens[count + 1] = tokens[count] + mass * menu.inc_cost[r]
        gain[count + 1] = gain[count] + mass * menu.inc_gain[r]
        count += 1
    slope[count] = 0.0
    return count


@njit(cache=True)
def increments_within(tokens: Floats, count: int, budget: float) -> int:
    """Number of increments that the budget pays in full."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        if tokens[middle] <= budget:
            low = middle
        else:
            high = middle - 1
    return low


@njit(cache=True)
def curve_size(menu: Menu, plan: Plan) -> int:
    """Room that :func:`fill_curve` needs."""
    return (plan.rank.shape[1] if plan.preview else len(menu.inc_group)) + 2


@njit(cache=True)
def price_kernel(
    menu: Menu,
    plan: Plan,
    exam: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    group: npt.NDArray[np.int32],
    remaining: npt.NDArray[np.int64],
    ahead: npt.NDArray[np.int64],
    num_tasks: int,
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Price of a token in the LP of the current and all later tasks at the remaining budget, and how it rounds.

    :param ahead: (D,) tasks of the same group that may buy before the current one.
    :returns: ``(price (D,), up (D,))``; up: at equal efficiency the current task buys half of its increment or more.
    """
    room = curve_size(menu, plan)
    tokens, gain, slope, which = np.empty(room), np.empty(room), np.empty(room), np.empty(room, np.int64)
    price, up = np.empty(len(exam)), np.zeros(len(exam), np.bool_)
    count = 0
    for d in range(len(exam)):
        n = position[d]
        if d == 0 or exam[d] != exam[d - 1] or n != position[d - 1]:
            first = n if plan.preview else n + 1
            count = fill_curve(menu, plan, exam[d], first, int(group[d]), tokens, gain, slope, which)
        budget = float(max(remaining[d] - menu.decision_cost * (num_tasks - n), 0))
        j = increments_within(tokens, count, budget)
        price[d] = slope[j]
        # All increments of this efficiency, and the current task's among them (a frontier bends: it has at most one).
        first = j
        while first > 0 and slope[first - 1] <= slope[j] * (1.0 + TIE):
            first -= 1
        for i in range(first, count):
            if slope[i] < slope[j] * (1.0 - TIE):
                break
            if menu.inc_group[which[i]] == group[d]:
                unit = menu.inc_cost[which[i]]
                up[d] = 2.0 * (budget - tokens[first] - ahead[d] * unit) >= unit * (1.0 - TIE)
                break
    return price, up


@njit(cache=True)
def guarded(menu: Menu, cell: int, budget: int) -> tuple[float, float]:
    """What an attempt gives before the cut: ``(P(correct and tokens <= budget), E min(tokens, budget))``."""
    first, stop = menu.indptr[cell], menu.indptr[cell + 1]
    low, high = first, stop
    while low < high:
        middle = (low + high) // 2
        if menu.support[middle] <= budget:
            low = middle + 1
        else:
            high = middle
    if low == first:
        return 0.0, float(budget)
    beyond = menu.below[stop - 1, 0] - menu.below[low - 1, 0] if low < stop else 0.0
    return menu.below[low - 1, 1], menu.below[low - 1, 2] + beyond * budget


@njit(cache=True)
def bid_kernel(
    menu: Menu,
    group: npt.NDArray[np.int32],
    remaining: npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
    price: Floats,
    up: npt.NDArray[np.bool_],
    guard: bool,
) -> npt.NDArray[np.int64]:
    """(D,) legal action with the largest value - price x tokens (skip: 0); ties go to the largest value where ``up``,
    else to the smallest.

    ``guard``: value and tokens as the remaining budget cuts them, instead of plain expectations.
    """
    num_tiers = menu.value.shape[1]
    action = np.zeros(len(group), np.int64)
    for d in range(len(group)):
        g = group[d]
        best, best_value = 0.0, 0.0
        for k in range(num_tiers):
            if not mask[d, k + 1]:
                continue
            value, cost = menu.value[g, k], menu.cost[g, k]
            if guard:
                success, cost = guarded(menu, g * num_tiers + k, remaining[d] - menu.decision_cost)
                value = menu.weight[g] * success
            surplus = value - price[d] * cost
            tie = TIE * (1.0 + value)
            other = value > best_value if up[d] else value < best_value
            if surplus > best + tie or (surplus > best - tie and other):
                best, best_value = surplus, value
                action[d] = k + 1
    return action


@njit(cache=True)
def lookahead_kernel(
    menu: Menu,
    plan: Plan,
    exam: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    group: npt.NDArray[np.int32],
    remaining: npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
    num_tasks: int,
) -> npt.NDArray[np.int64]:
    """(D,) legal action with the largest expected value of this attempt plus LP value of the rest."""
    room = curve_size(menu, plan)
    tokens, gain, slope, which = np.empty(room), np.empty(room), np.empty(room), np.empty(room, np.int64)
    num_tiers = menu.value.shape[1]
    action = np.zeros(len(exam), np.int64)
    rest = np.empty(0)
    stop = 0
    while stop < len(exam):
        begin, most, fewest = stop, 0, remaining[stop]
        while stop < len(exam) and exam[stop] == exam[begin] and position[stop] == position[begin]:
            most, fewest = max(most, remaining[stop]), min(fewest, remaining[stop])
            stop += 1
        n, g = position[begin], group[begin]
        count = fill_curve(menu, plan, exam[begin], n + 1, -1, tokens, gain, slope, which)
        dearest = 0
        for i in range(menu.indptr[g * num_tiers], menu.indptr[(g + 1) * num_tiers]):
            dearest = max(dearest, menu.support[i])
        low = max(fewest - menu.decision_cost - dearest, 0)  # less than that is not left by any attempt
        if len(rest) <= most - low:
            rest = np.empty(most - low + 1)
        j = 0
        for b in range(low, most + 1):
            budget = float(max(b - menu.decision_cost * (num_tasks - n - 1), 0))
            while j < count and tokens[j + 1] <= budget:
                j += 1
            rest[b - low] = gain[j] + (budget - tokens[j]) * slope[j]
        for d in range(begin, stop):
            b = remaining[d] - menu.decision_cost
            best = rest[b - low] if b >= 0 else 0.0
            for k in range(num_tiers):
                if not mask[d, k + 1]:
                    continue
                right, after = 0.0, 0.0
                for i in range(menu.indptr[g * num_tiers + k], menu.indptr[g * num_tiers + k + 1]):
                    left = b - menu.support[i]
                    if left < 0:
                        break
                    right += menu.success[i]
                    after += menu.prob[i] * rest[left - low]
                value = menu.weight[g] * right + after
                if value > best + TIE * (1.0 + best):
                    best = value
                    action[d] = k + 1
    return action


def prices(menu: Menu, plan: Plan, view: DecisionView) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """LP prices and rounding of a batch of decisions; see :func:`price_kernel`."""
    ahead = np.zeros(len(view), np.int64)
    result: tuple[Floats, npt.NDArray[np.bool_]] = price_kernel(
        menu, plan, view.exam, view.position, view.group, view.remaining, ahead, view.problem.num_tasks
    )
    return result


def bid(
    menu: Menu, view: DecisionView, price: Floats, *, up: npt.NDArray[np.bool_] | None = None, guard: bool = False
) -> npt.NDArray[np.int64]:
    """(D,) actions of the bid-price rule; see :func:`bid_kernel`. Without ``up`` ties go to the smallest value."""
    up = np.zeros(len(view), np.bool_) if up is None else up
    actions: npt.NDArray[np.int64] = bid_kernel(menu, view.group, view.remaining, view.mask, price, up, guard)
    return actions


class PopulationCurve:
    """Price of the LP of one average task (the population's mixture of groups) as a function of its budget."""

    def __init__(self, menu: Menu, share: Floats) -> None:
        mass = share[menu.inc_group]
        used = mass > 0
        self.tokens: Floats = np.cumsum((mass * menu.inc_cost)[used])
        self.slope: Floats = np.append(menu.inc_efficiency[used], 0.0)

    def __call__(self, budget: npt.ArrayLike) -> Floats:
        """Price where a task may cost ``budget`` tokens (below 0: as at 0)."""
        return self.slope[np.searchsorted(self.tokens, np.maximum(budget, 0.0), side="right")]
