"""The law of the sequence of published groups, for exams that do not show later tasks.

Slots are independent draws, slot ``n`` from the law of its stratum ``n % S``; the order of presentation is a random
permutation, or a sort by a published key with ties in the order of slots. What is still to come depends on what was
seen through a *state*: the posterior law of a hidden state that makes the sequence a Markov chain.

* Random order: how many tasks of each stratum are left.
* Sorted, every key in one stratum: the current key ``x``, how many tasks ``t`` were seen with it, and how many tasks of
  each stratum had a key of ``x`` or later. By the exchangeability of a stratum's slots its ``m`` such tasks are
  independent given that, so the number of them at ``x`` is binomial: the next task has key ``x`` again with probability
  P(K > t) / P(K >= t), K ~ Bin(m, P(key = x | key >= x)); otherwise all that is left lies beyond ``x``.
* Sorted, keys shared by strata: which slots are left, because tied tasks come in the order of slots.

Histories with equal posteriors are one state. Draws without replacement are treated as independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import comb
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

MAX_STATES = 50_000
"""Most hidden states in all posteriors of unequal strata; above it strata are mixed (:attr:`Arrivals.exact`)."""

_DIGITS = 13
"""Posteriors that agree to as many decimals are one state."""

Hidden: TypeAlias = Any
"""A hidden state: a number or a tuple of numbers, nested or not."""
Next: TypeAlias = Iterable[tuple[int, Hidden, float]]
"""Possible next tasks: (group, hidden state after it, probability)."""
Posterior: TypeAlias = tuple[tuple[Hidden, float], ...]


class Mixture(NamedTuple):
    """Laws over nodes by state, compressed sparse rows: state ``s`` owns entries ``start[s] : start[s + 1]``."""

    start: npt.NDArray[np.int64]
    node: npt.NDArray[np.int64]
    prob: npt.NDArray[np.float64]


@njit(cache=True)
def _mix(
    start: npt.NDArray[np.int64],
    node: npt.NDArray[np.int64],
    prob: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    out: npt.NDArray[np.float64],
) -> None:
    for s in range(len(start) - 1):
        for j in range(start[s], start[s + 1]):
            p, row = prob[j], node[j]
            for b in range(values.shape[1]):
                out[s, b] += p * values[row, b]


@dataclass(frozen=True)
class Arrivals:
    """Law of the sequence of published groups.

    A *node* at position n is a group together with the state after it: everything that matters of a history.

    :param groups: N arrays (nodes,) int64: the node's group.
    :param states: N arrays (nodes,) int64: the state after the node's task.
    :param laws: N laws of the node at position n by state after task n - 1 (``laws[0]`` has one state).
    :param exact: False where strata had to be mixed to bound the number of states.
    """

    num_groups: int
    groups: tuple[npt.NDArray[np.int64], ...]
    states: tuple[npt.NDArray[np.int64], ...]
    laws: tuple[Mixture, ...]
    exact: bool = True

    def expect(self, position: int, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(states, ...) expectation of ``values`` (nodes at ``position``, ...) by state after task ``position - 1``."""
        law = self.laws[position]
        flat = np.ascontiguousarray(values, np.float64).reshape(len(values), -1)
        out = np.zeros((len(law.start) - 1, flat.shape[1]))
        _mix(*law, flat, out)
        return out.reshape(len(out), *values.shape[1:])

    @cached_property
    def _steps(self) -> tuple[npt.NDArray[np.int32], ...]:
        """N tables (states, groups) of the next node; -1: impossible."""
        steps = []
        for law, groups in zip(self.laws, self.groups, strict=True):
            table = np.full((len(law.start) - 1, self.num_groups), -1, np.int32)
            table[np.repeat(np.arange(len(table)), np.diff(law.start)), groups[law.node]] = law.node
            steps.append(table)
        return tuple(steps)

    def walk(self, history: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """(D,) node reached by seeing the groups ``history`` (D, n + 1); -1 for a history of probability 0."""
        state = np.zeros(len(history), np.int64)
        node = np.full(len(history), -1, np.int64)
        for n in range(history.shape[1]):
            node = np.where(state >= 0, self._steps[n][state, history[:, n]], -1)
            state = np.where(node >= 0, self.states[n][node], -1)
        return node


class _TooManyStates(Exception):
    pass


def _collect(
    num_tasks: int, num_groups: int, first: Next, step: Callable[[Hidden], Next], max_states: int | None
) -> Arrivals:
    """Filter the hidden chain: one state for every distinct posterior."""
    groups, states, laws = [], [], []
    reached: list[Posterior] = [()]
    total = 0
    for n in range(num_tasks):
        number: dict[Posterior, int] = {}
        fresh: list[Posterior] = []
        node_number: dict[tuple[int, int], int] = {}
        start, node, prob = [0], [], []
        for posterior in reached:
            joint: dict[int, dict[Hidden, float]] = {}
            for hidden, share in posterior if n else (((), 1.0),):
                for group, after, p in step(hidden) if n else first:
                    mass = joint.setdefault(group, {})
                    mass[after] = mass.get(after, 0.0) + share * p
            for group in sorted(joint):
                mass = joint[group]
                whole = sum(mass.values())
                if whole <= 0.0:
                    continue
                # Sorted, so that equal posteriors are equal tuples.
                exactly = tuple((h, mass[h] / whole) for h in sorted(mass))
                name = tuple((h, round(p, _DIGITS)) for h, p in exactly)
                if name not in number:
                    number[name] = len(fresh)
                    fresh.append(exactly)
                    total += len(exactly)
                    if max_states is not None and total > max_states:
                        raise _TooManyStates
                node.append(node_number.setdefault((group, number[name]), len(node_number)))
                prob.append(whole)
            start.append(len(node))
        pairs = np.array(list(node_number), np.int64).reshape(-1, 2)
        groups.append(pairs[:, 0])
        states.append(pairs[:, 1])
        laws.append(Mixture(np.array(start, np.int64), np.array(node, np.int64), np.array(prob)))
        reached = fresh
    return Arrivals(num_groups, tuple(groups), tuple(states), tuple(laws))


def _shuffled(probability: npt.NDArray[np.float64], count: tuple[int, ...]) -> tuple[Next, Callable[[Hidden], Next]]:
    """Random order: the hidden state is the number of tasks left by stratum."""
    members = [[(int(g), float(row[g])) for g in np.flatnonzero(row)] for row in probability]

    def step(left: Hidden) -> Next:
        for s, many in enumerate(left):
            if many:
                after = (*left[:s], many - 1, *left[s + 1 :])
                for group, p in members[s]:
                    yield group, after, many / sum(left) * p

    return list(step(count)), step


class _Ranked:
    """Strata and groups by rank of the sort key."""

    def __init__(self, probability: npt.NDArray[np.float64], key: npt.NDArray[np.integer]) -> None:
        rank = np.unique(key, return_inverse=True)[1].ravel()
        self.size = int(rank.max()) + 1
        strata = len(probability)
        mass = np.stack([np.bincount(rank, row, minlength=self.size) for row in probability])
        tail = np.cumsum(mass[:, ::-1], 1)[:, ::-1]
        self.hazard = np.where(mass > 0, mass / np.where(tail > 0, tail, 1.0), 0.0).tolist()
        """P(key = x | key >= x) by stratum and rank; exactly 1 at a stratum's last key."""
        self.members = [
            [
                [(int(g), float(probability[s, g] / mass[s, x])) for g in np.flatnonzero((rank == x) & (probability[s] > 0))]
                for x in range(self.size)
            ]
            for s in range(strata)
        ]  # fmt: skip
        self.active = [[s for s in range(strata) if mass[s, x] > 0] for x in range(self.size)]


def _some_or_none(hazard: float, count: int) -> tuple[float, float]:
    """1 - (1 - hazard)^count, without cancellation, and (1 - hazard)^count."""
    total, none = 0.0, 1.0
    for _ in range(count):
        total += none
        none *= 1.0 - hazard
    return hazard * total, none


def _sorted_owned(ranked: _Ranked, count: tuple[int, ...]) -> tuple[Next, Callable[[Hidden], Next]]:
    """Sorted, every key in at most one stratum: the hidden state is (counts before the run, rank, length of the run)."""
    owner = [active[0] if active else 0 for active in ranked.active]

    def rise(left: tuple[int, ...], rank: int, share: float) -> Next:
        for y in range(rank, ranked.size):
            s = owner[y]
            hazard = ranked.hazard[s][y]
            if left[s] == 0 or hazard == 0.0:
                continue
            some, none = _some_or_none(hazard, left[s])
            for group, p in ranked.members[s][y]:
                yield group, (left, y, 1), share * some * p
            share *= none
            if share == 0.0:
                return

    def step(hidden: Hidden) -> Next:
        left, x, ties = hidden
        s = owner[x]
        hazard, many = ranked.hazard[s][x], left[s]
        law = [comb(many, k) * hazard**k * (1.0 - hazard) ** (many - k) for k in range(ties, many + 1)]
        more = sum(law[1:])
        whole = law[0] + more
        if more > 0.0:
            for group, p in ranked.members[s][x]:
                yield group, (left, x, ties + 1), more / whole * p
        if law[0] > 0.0:
            yield from rise((*left[:s], many - ties, *left[s + 1 :]), x + 1, law[0] / whole)

    return list(rise(count, 0, 1.0)), step


def _sorted_shared(ranked: _Ranked, slots: list[int]) -> tuple[Next, Callable[[Hidden], Next]]:
    """Sorted, keys shared by strata: the hidden state is (set of slots left, slot of the last task, rank).

    The sequence is a scan over ranks and, inside a rank, over slots: a slot not passed yet stops the scan with its
    hazard.
    """

    def scan(left: int, slot: int, rank: int) -> Next:
        share = 1.0
        for y in range(rank, ranked.size):
            for i in range(slot + 1 if y == rank else 0, len(slots)):
                if left >> i & 1:
                    hazard = ranked.hazard[slots[i]][y]
                    if hazard > 0.0:
                        for group, p in ranked.members[slots[i]][y]:
                            yield group, (left & ~(1 << i), i, y), share * hazard * p
                        share *= 1.0 - hazard
                        if share == 0.0:
                            return

    return list(scan((1 << len(slots)) - 1, -1, 0)), lambda hidden: scan(*hidden)


def arrivals(
    num_tasks: int,
    group_probability: npt.NDArray[np.float64],
    key: npt.NDArray[np.integer] | None = None,
    *,
    max_states: int = MAX_STATES,
) -> Arrivals:
    """Law of the sequence of groups of N tasks.

    :param group_probability: (S, G) law of the group of a task of every stratum; slot ``n`` is of stratum ``n % S``.
    :param key: (G,) published key that the tasks are sorted by, ascending, ties in the order of slots; None: random
        order.
    :param max_states: most hidden states to keep, over all posteriors; where unequal strata need more (many tasks, and
        groups or keys that strata share) every slot is drawn from the mean of the strata instead.
    """
    num_groups = group_probability.shape[1]
    used = group_probability[: min(num_tasks, len(group_probability))]
    # Strata of one law are one stratum.
    laws, kind = np.unique(used, axis=0, return_inverse=True)
    slots = kind.ravel()[np.arange(num_tasks) % len(used)].tolist()
    if len(laws) > 1:
        try:
            return _collect(num_tasks, num_groups, *_chain(laws, slots, key), max_states)
        except _TooManyStates:
            laws = np.bincount(slots, minlength=len(laws))[None, :] / num_tasks @ laws
            mixed = _collect(num_tasks, num_groups, *_chain(laws, [0] * num_tasks, key), None)
            return replace(mixed, exact=False)
    return _collect(num_tasks, num_groups, *_chain(laws, slots, key), None)


def _chain(
    laws: npt.NDArray[np.float64], slots: list[int], key: npt.NDArray[np.integer] | None
) -> tuple[Next, Callable[[Hidden], Next]]:
    """First tasks and steps of the hidden chain; ``laws`` by stratum, ``slots`` the stratum of every slot."""
    count = tuple(slots.count(s) for s in range(len(laws)))
    if key is None:
        return _shuffled(laws, count)
    ranked = _Ranked(laws, key)
    if all(len(active) <= 1 for active in ranked.active):
        return _sorted_owned(ranked, count)
    return _sorted_shared(ranked, slots)


def order_key(
    order: str, group_key: npt.NDArray[np.integer], given_key: npt.NDArray[np.integer]
) -> npt.NDArray[np.integer] | None:
    """(G,) the key that an order sorts by, ascending; None for random order."""
    if order == "random":
        return None
    if order == "given":
        return given_key
    return group_key if order == "easy_first" else -group_key
