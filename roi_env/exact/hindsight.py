"""The clairvoyant oracle: the best score when every potential outcome is known in advance.

A multiple-choice knapsack: per task at most one tier, total cost at most the budget. Order does not matter, and an
attempt that overspends never helps. Solved exactly, by the cheapest method that fits the rewards of the batch:

* all positive rewards equal: only the cheapest right tier of a task matters; sort those costs, take the longest prefix
  that fits (exchange argument);
* one positive reward per task, small integers after scaling: the same collapse, then the 0/1 knapsack by profits;
* otherwise: list of undominated (cost, reward) states (Nemhauser and Ullmann, 1969) with a Lagrangian bound that drops
  states which cannot beat the incumbent.

With a decision cost ``d`` every decision costs ``d`` more, skips included, and stopping after the last solved task is
free: a set whose last position is ``l`` (0-based) costs ``d * (l + 1)`` more. All states after task ``l`` are therefore
compared with the budget ``B - d * (l + 1)``; that the set may end earlier does no harm, since it then costs less.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

_MAX_PROFIT = 4096
"""Largest sum of scaled weights for which the knapsack by profits is used."""
_SCALES = (1.0, 2.0, 4.0, 8.0, 10.0, 16.0, 100.0)

NEVER = np.iinfo(np.int64).max // 4
"""A cost above every budget that can still be added to without overflow: no tier is right."""


@njit(cache=True)
def _survey(rewards):  # type: ignore[no-untyped-def]
    """``(valid, lowest positive, highest, one positive reward per task)`` of all rewards."""
    exams, tasks, tiers = rewards.shape
    low, high = np.inf, 0.0
    valid, single = True, True
    for e in range(np.uint64(exams)):
        for i in range(np.uint64(tasks)):
            first = 0.0
            for k in range(np.uint64(tiers)):
                r = rewards[e, i, k]
                valid &= (r >= 0.0) & (r < np.inf)
                if r > 0.0:
                    single &= (first == 0.0) | (r == first)
                    first = r
                    low, high = min(low, r), max(high, r)
    return valid, low, high, single


@njit(cache=True)
def _cheapest(costs, rewards, e, i, budget):  # type: ignore[no-untyped-def]
    """Cost and 0-based tier (-1: none) of the cheapest right tier of a task; the cost is above the budget if there is none."""
    best, tier = budget + 1, -1
    for k in range(np.uint64(costs.shape[2])):
        c = np.int64(costs[e, i, k])
        if rewards[e, i, k] > 0.0 and c < best:
            best, tier = c, np.int64(k)  # type: ignore[assignment]
    return best, tier


@njit(cache=True)
def _prefix(costs, rewards, budget, unit, out):  # type: ignore[no-untyped-def]
    """Unit rewards, no decision cost: longest prefix of the sorted cheapest right costs that fits."""
    exams, tasks, _ = costs.shape
    cheap = np.empty(tasks, np.int64)
    for e in range(np.uint64(exams)):
        count, total = 0, np.int64(0)
        for i in range(np.uint64(tasks)):
            c, k = _cheapest(costs, rewards, e, i, budget)
            if k >= 0:
                cheap[np.uint64(count)] = c
                count += 1
                total += c
        if total > budget:
            if count <= 24:
                for a in range(1, count):
                    c = cheap[np.uint64(a)]
                    b = a
                    while b > 0 and cheap[np.uint64(b - 1)] > c:
                        cheap[np.uint64(b)] = cheap[np.uint64(b - 1)]
                        b -= 1
                    cheap[np.uint64(b)] = c
            else:
                cheap[:count].sort()
            while total > budget:
                count -= 1
                total -= cheap[np.uint64(count)]
        out[e] = unit * count


@njit(cache=True)
def _profits(costs, rewards, budget, decision_cost, scale, most, out):  # type: ignore[no-untyped-def]
    """One positive reward per task, integer after scaling: least cost of every profit."""
    exams, tasks, _tiers = costs.shape
    least = np.empty(most + 1, np.int64)
    for e in range(np.uint64(exams)):
        least[0] = 0
        top, best = 0, 0
        room = budget
        for i in range(np.uint64(tasks)):
            room -= decision_cost
            if room < 0:
                break
            c, k = _cheapest(costs, rewards, e, i, budget)
            if k < 0 or c > room:
                continue
            profit = np.int64(np.rint(rewards[e, i, np.uint64(k)] * scale))
            for p in range(top + 1, top + profit + 1):
                least[np.uint64(p)] = NEVER
            top += profit  # type: ignore[assignment]
            for p in range(top, profit - 1, -1):
                total = least[np.uint64(p - profit)] + c
                if total < least[np.uint64(p)]:
                    least[np.uint64(p)] = total
            p = top
            while p > best and least[np.uint64(p)] > room:
                p -= 1
            best = max(best, p)
            if decision_cost == 0:
                # Profits that do not fit now never will: costs only grow.
                while least[np.uint64(top)] > budget:
                    top -= 1
        out[e] = best / scale


@njit(cache=True)
def _slack(costs, rewards, e, i, budget, price):  # type: ignore[no-untyped-def]
    """``max(0, max_k reward - price * cost)`` of a task, and the cost and reward where it is reached."""
    best, c_best, r_best = 0.0, np.int64(0), 0.0
    for k in range(np.uint64(costs.shape[2])):
        c = np.int64(costs[e, i, k])
        r = rewards[e, i, k]
        if r > 0.0 and c <= budget and r - price * c > best:
            best, c_best, r_best = r - price * c, c, r
    return best, c_best, r_best


@njit(cache=True)
def _price(costs, rewards, e, budget):  # type: ignore[no-untyped-def]
    """A price of a token, >= 0. Any bounds the rest of an exam: reward <= price * tokens left + sum of slacks. The best
    solves the dual; it is a breakpoint search on a convex function, and a rough answer only loosens the bound.
    """
    _, tasks, tiers = costs.shape
    low, high = 0.0, 0.0
    for i in range(np.uint64(tasks)):
        for k in range(np.uint64(tiers)):
            c = np.int64(costs[e, i, k])
            if c <= budget and rewards[e, i, k] > 0.0:
                high = max(high, rewards[e, i, k] / max(c, 1))
    price = 0.0
    for step in range(24):
        spent = np.int64(0)
        for i in range(np.uint64(tasks)):
            spent += _slack(costs, rewards, e, i, budget, price)[1]
        if spent > budget:
            low = price
        elif step == 0:
            return 0.0
        else:
            high = price
        price = 0.5 * (low + high)
    return high


@njit(cache=True)
def _incumbent(costs, rewards, e, budget, decision_cost, price):  # type: ignore[no-untyped-def]
    """Reward of a good choice: the one at that price, then whatever still fits, in order."""
    _, tasks, tiers = costs.shape
    best, left = 0.0, budget
    for i in range(np.uint64(tasks)):
        c, r = _slack(costs, rewards, e, i, budget, price)[1:]
        if r > 0.0 and c <= left - decision_cost * (np.int64(i) + 1):
            best += r
            left -= c
    if decision_cost == 0:
        for i in range(np.uint64(tasks)):
            c, r = _slack(costs, rewards, e, i, budget, price)[1:]
            if r == 0.0:
                for k in range(np.uint64(tiers)):
                    ck = np.int64(costs[e, i, k])
                    if ck <= left and rewards[e, i, k] > r:
                        c, r = ck, rewards[e, i, k]
                if r > 0.0:
                    best += r
                    left -= c
    return best


@njit(cache=True)
def _extend(  # type: ignore[no-untyped-def]
    costs, rewards, e, i, room, cost, reward, size, new_cost, new_reward, head, rest, price, margin, incumbent
):
    """Merge the list of ``size`` states and its copies shifted by every tier of task i, by cost; keep states whose reward
    is a new maximum and which, with at most ``rest + price * tokens left`` more, can beat the incumbent.

    Returns the number of new states and the last reward.
    """
    tiers = costs.shape[2]
    keep, made = 0, 0
    last = -1.0
    head[:] = 0  # of every tier: the state that it is added to next
    for k in range(np.uint64(tiers)):
        if rewards[e, i, k] <= 0.0 or np.int64(costs[e, i, k]) > room:
            head[k] = size
    while True:
        pick = -1
        c = cost[np.uint64(keep)] if keep < size else NEVER
        r = reward[np.uint64(keep)] if keep < size else -1.0
        for k in range(np.uint64(tiers)):
            h = head[k]
            if h < size:
                ck = cost[np.uint64(h)] + np.int64(costs[e, i, k])
                rk = reward[np.uint64(h)] + rewards[e, i, k]
                if ck < c or (ck == c and rk > r):
                    c, r, pick = ck, rk, np.int64(k)  # type: ignore[assignment]
        if c > room:
            return made, last
        if pick < 0:
            keep += 1
        else:
            head[np.uint64(pick)] += 1
        if r <= last or r + rest + price * (room - c) + margin < incumbent:
            continue
        last = r
        new_cost[np.uint64(made)], new_reward[np.uint64(made)] = c, r
        made += 1


@njit(cache=True)
def _states(costs, rewards, budget, decision_cost, out):  # type: ignore[no-untyped-def]
    """Any rewards: list of undominated states, both cost and reward strictly increasing."""
    exams, tasks, tiers = costs.shape
    cost, reward = np.empty(256, np.int64), np.empty(256)
    new_cost, new_reward = np.empty(256, np.int64), np.empty(256)
    bound = np.empty(tasks + 1)
    head = np.empty(tiers, np.int64)
    for e in range(np.uint64(exams)):
        price = _price(costs, rewards, e, budget)
        bound[tasks] = 0.0
        for i in range(tasks - 1, -1, -1):
            bound[np.uint64(i)] = bound[np.uint64(i + 1)] + _slack(costs, rewards, e, np.uint64(i), budget, price)[0]
        incumbent = _incumbent(costs, rewards, e, budget, decision_cost, price)
        # Only differences above rounding may drop a state.
        margin = 1e-9 * (bound[0] + price * budget)
        size, found = 1, 0.0
        cost[0], reward[0] = 0, 0.0
        for i in range(np.uint64(tasks)):
            room = budget - decision_cost * (np.int64(i) + 1)
            if room < 0:
                break
            need = size * (tiers + 1)
            if need > len(new_cost):
                new_cost, new_reward = np.empty(2 * need, np.int64), np.empty(2 * need)
            rest = bound[i + np.uint64(1)]
            made, last = _extend(
                costs,
                rewards,
                e,
                i,
                room,
                cost,
                reward,
                size,
                new_cost,
                new_reward,
                head,
                rest,
                price,
                margin,
                incumbent,
            )
            if last > found:
                found = last
                incumbent = max(incumbent, found)
            cost, new_cost = new_cost, cost
            reward, new_reward = new_reward, reward
            size = made
            if size == 0:
                break
        out[e] = found


def _check(
    costs: npt.ArrayLike, rewards: npt.ArrayLike, budget: int, decision_cost: int
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.float64]]:
    cost = np.asarray(costs)
    if not np.issubdtype(cost.dtype, np.integer):
        raise ValueError(f"costs must be integers, got {cost.dtype}")
    if cost.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        cost = cost.astype(np.int64)
    reward = np.ascontiguousarray(rewards, np.float64)
    if cost.ndim != 3 or reward.shape != cost.shape:
        raise ValueError(f"costs and rewards must have one shape (E, N, K), got {cost.shape} and {reward.shape}")
    if cost.size and cost.min() < 0:
        raise ValueError(f"costs must not be negative, got {cost.min()}")
    if budget < 0 or decision_cost < 0:
        raise ValueError(f"budget and decision_cost must not be negative, got {budget} and {decision_cost}")
    return np.ascontiguousarray(cost), reward


def hindsight(
    costs: npt.ArrayLike, rewards: npt.ArrayLike, budget: int, *, decision_cost: int = 0
) -> npt.NDArray[np.float64]:
    """Best total reward of each exam when all potential outcomes are known.

    :param costs: (E, N, K) integer tokens of every tier of every task; a cost above the budget is never chosen.
    :param rewards: (E, N, K) reward of the tier, 0 if it is wrong, never negative.
    :param budget: tokens.
    :param decision_cost: tokens every decision costs on top, skips before the last solved task included.
    :returns: (E,) float64.
    :raises ValueError: for arguments of wrong shape, type or sign.
    """
    cost, reward = _check(costs, rewards, budget, decision_cost)
    # Above every cost in int64 nothing changes any more, and sums stay far from overflow.
    budget, decision_cost = min(int(budget), 2**60), min(int(decision_cost), 2**40)
    out = np.zeros(len(cost))
    valid, low, high, single = _survey(reward)
    if not valid:
        raise ValueError("rewards must be finite and not negative")
    if high == 0.0:
        return out
    if low == high and decision_cost == 0:
        _prefix(cost, reward, budget, high, out)
        return out
    if single:
        weight = reward.max(2)
        for scale in (*_SCALES, 1.0 / low):
            most = float(weight.sum(1).max()) * scale
            if most <= _MAX_PROFIT and np.array_equal(np.rint(weight * scale) / scale, weight):
                _profits(cost, reward, budget, decision_cost, scale, round(most), out)
                return out
    _states(cost, reward, budget, decision_cost, out)
    return out


@njit(cache=True)
def _frontier(
    cheapest: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    decision_cost: int,
    budget: int,
    cost: npt.NDArray[np.int64],
    profit: npt.NDArray[np.float64],
) -> int:
    """Pareto list (tokens, score) of one exam whose outcomes are known; returns its length.

    With outcomes known only the cheapest correct tier of a task matters (a dearer one earns the same): a 0/1 knapsack
    solved by the list of Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation", Management
    Science 15(9), 1969. Every task before the last one attempted also costs the decision cost.

    :param cheapest: (n,) tokens of the cheapest correct tier, decision cost excluded; ``NEVER``: none.
    :param cost: (2, size) int64 scratch; row 0 is the result, ascending. ``profit`` (2, size) likewise.
    """
    length: int = 1
    cost[0, 0], profit[0, 0] = 0, 0.0
    for n in range(len(cheapest) - 1, -1, -1):
        take = cheapest[n] + decision_cost
        # Merge the list shifted by a skip (dropping nothing to do: state 0) with the list shifted by the attempt.
        i, j, out = 0, 0, 0
        best = -1.0
        while i < length or j < length:
            skip_cost = cost[0, i] + (decision_cost if i > 0 else 0) if i < length else NEVER
            take_cost = cost[0, j] + take if j < length and cheapest[n] < NEVER else NEVER
            if skip_cost >= NEVER and take_cost >= NEVER:
                break
            if skip_cost <= take_cost:
                c, p = skip_cost, profit[0, i]
                i += 1
            else:
                c, p = take_cost, profit[0, j] + weights[n]
                j += 1
            if c > budget:
                break
            if p > best:
                if out > 0 and cost[1, out - 1] == c:
                    out -= 1
                cost[1, out], profit[1, out] = c, p
                out += 1
                best = p
        length = out
        for m in range(length):
            cost[0, m], profit[0, m] = cost[1, m], profit[1, m]
    return int(length)


def _frontier_size(weights: npt.NDArray[np.float64], budget: int) -> int:
    """Most entries of a Pareto list of tasks with ``weights`` (n,)."""
    most = min(2 ** min(len(weights), 62), budget + 1)
    if (weights == np.rint(weights)).all():
        most = min(most, int(weights.sum()) + 1)
    return most + 1


@njit(cache=True)
def _mean_curve(
    cheapest: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    decision_cost: int,
    budget: int,
    grid: int,
    size: int,
) -> npt.NDArray[np.float64]:
    """(budget // grid + 1,) mean over scenarios of the hindsight value; ``cheapest`` and ``weights`` are (M, n)."""
    scenarios = len(cheapest)
    curve = np.zeros(budget // grid + 1)
    cost, profit = np.empty((2, size), np.int64), np.empty((2, size))
    for s in range(scenarios):
        length = _frontier(cheapest[s], weights[s], decision_cost, budget, cost, profit)
        for m in range(1, length):
            at = -(-cost[0, m] // grid)
            if at < len(curve):
                curve[at] += profit[0, m] - profit[0, m - 1]
    total = 0.0
    for b in range(len(curve)):
        total += curve[b]
        curve[b] = total / scenarios
    return curve


def hindsight_curve(
    cheapest: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    budget: int,
    *,
    decision_cost: int = 0,
    grid: int = 1,
) -> npt.NDArray[np.float64]:
    """(budget // grid + 1,) mean over scenarios of the best total reward at every budget ``0, grid, 2 grid, ...``.

    :param cheapest: (M, n) tokens of the cheapest right tier of every task in every scenario; ``NEVER``: none is right.
    :param weights: (M, n) rewards of the tasks.
    :param budget: tokens.
    :param decision_cost: as in :func:`hindsight`.
    :param grid: tokens per step.
    :raises ValueError: for arguments of wrong shape, type or sign.
    """
    if cheapest.dtype != np.int64 or cheapest.ndim != 2 or (cheapest.size and cheapest.min() < 0):
        raise ValueError(f"cheapest must be (M, n) int64 >= 0, got {cheapest.dtype} of shape {cheapest.shape}")
    if weights.shape != cheapest.shape or not (weights >= 0).all():
        raise ValueError(f"weights must be >= 0 and of shape {cheapest.shape}, got shape {weights.shape}")
    if budget < 0 or decision_cost < 0 or grid < 1:
        raise ValueError(f"budget {budget} and decision_cost {decision_cost} must be >= 0, grid {grid} >= 1")
    size = max((_frontier_size(row, budget) for row in np.unique(weights, axis=0)), default=2)
    return _mean_curve(cheapest, weights, decision_cost, budget, grid, size)
