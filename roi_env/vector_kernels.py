"""The compiled step of the vector environment.

One step is a few short passes over blocks of environments, each over flat arrays with one entry per environment and
none with a branch on what an environment does: short loops keep many cache misses in flight and most of them become
vector instructions. Whether an exam ends cannot be predicted, and a wrong guess costs more than the work saved. What
happens to few environments (closing an exam, beginning the next one) is done afterwards for a list of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env import random
from roi_env.dynamics import compiled_transition
from roi_env.exam import ExamSpec, draw_latent, draw_tasks, outcome_number, place_outcome
from roi_env.observation import ObservationTables, fill_features, padded_features, write_observation
from roi_env.rewards import REFUSAL_BONUS, compiled_reward_of
from roi_env.simd import at_most, prefetch
from roi_env.source import NOT_OFFERED, SourceTables

# Compiled indexing wants unsigned numbers: signed ones cost a test for Python's negative indexing each.
_ITEM, _GROUP, _ONE = np.uint64(0), np.uint64(1), np.uint64(1)

_BLOCK = 1024
"""Environments that one pass handles: what it touches is still in the processor's cache for the next pass."""


class Rules(NamedTuple):
    """Constants of one kind of exam."""

    budget: int
    num_tasks: int
    num_tiers: int
    decision_cost: int
    order: int
    replacement: bool
    num_latent: int
    num_items: int
    common: bool
    permuted: bool
    """Whether presentation changes the order of drawing."""
    reward_kind: int
    coefficient: float
    actions: tuple[int, ...]
    """K + 1 entries: a size that the compiler knows."""
    min_cost: npt.NDArray[np.int32]
    """(G + 1, K + 1): an action is legal while this many tokens remain. Group G is what follows the last task."""
    weight: npt.NDArray[np.float64]
    """(G + 1,)"""
    level_edges: npt.NDArray[np.int64]


def rules_of(spec: ExamSpec) -> Rules:
    """The constants of ``spec``."""
    source = spec.source
    min_cost = np.full((source.num_groups + 1, spec.num_tiers + 1), NOT_OFFERED, np.int32)
    min_cost[:, 0] = 0
    min_cost[:-1, 1:] = spec.min_cost
    return Rules(
        spec.budget,
        spec.num_tasks,
        spec.num_tiers,
        spec.decision_cost,
        spec.order_code,
        source.replacement,
        source.num_latent,
        source.num_items,
        source.coupling == "common",
        not (source.replacement and source.num_strata == 1 and spec.order == "random"),
        spec.reward.kind,
        spec.reward.coefficient,
        (0,) * (spec.num_tiers + 1),
        min_cost,
        np.append(source.group_weight, 0.0),
        source.level_edges,
    )


class State(NamedTuple):
    """State of n environments: arrays (n,) unless said otherwise."""

    exam_id: npt.NDArray[np.int64]
    replicate: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]
    """Outcome key of the exam."""
    first_item: npt.NDArray[np.int32]
    """Latent state x number of items: a task's law is this plus its item."""
    started: npt.NDArray[np.float64]
    position: npt.NDArray[np.int32]
    remaining: npt.NDArray[np.int32]
    reward: npt.NDArray[np.float64]
    """Return so far, where it is not the score."""
    score: npt.NDArray[np.float64]
    finished: npt.NDArray[np.bool_]
    """NEXT_STEP: an exam has ended and the rest describes the next one already, which the coming step shows."""
    cell: npt.NDArray[np.int32]
    """Of the task to decide on: law x K. This and the next two are written with its observation."""
    slot: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float64]
    place: npt.NDArray[np.uint64]
    """Of the action under way: place of its outcome."""
    tasks: npt.NDArray[np.int32]
    """(n, N + 1, 2) item and published group of every task in order of presentation, then those of the end."""
    slots: npt.NDArray[np.int32]
    """(n, N) order of drawing; (0, N) where presentation never changes it."""
    padded: npt.NDArray[np.float32]
    """Features in presentation order, then zeros: observations are windows of it."""


def new_state(num_envs: int, spec: ExamSpec) -> State:
    """State before the first reset."""
    n = num_envs
    tasks = np.zeros((n, spec.num_tasks + 1, 2), np.int32)
    tasks[:, -1, 1] = spec.source.num_groups
    return State(
        exam_id=np.zeros(n, np.int64),
        replicate=np.zeros(n, np.int64),
        key=np.zeros(n, np.uint64),
        first_item=np.zeros(n, np.int32),
        started=np.zeros(n),
        position=np.zeros(n, np.int32),
        remaining=np.zeros(n, np.int32),
        reward=np.zeros(n),
        score=np.zeros(n),
        finished=np.zeros(n, np.bool_),
        cell=np.zeros(n, np.int32),
        slot=np.zeros(n, np.int32),
        weight=np.zeros(n),
        place=np.zeros(n, np.uint64),
        tasks=tasks,
        slots=np.zeros((n if rules_of(spec).permuted else 0, spec.num_tasks), np.int32),
        padded=padded_features(n, spec),
    )


class Outputs(NamedTuple):
    """What a step writes."""

    observations: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    action_mask: npt.NDArray[np.int8]
    tokens: npt.NDArray[np.int32]
    correct: npt.NDArray[np.bool_]
    overspent: npt.NDArray[np.bool_]


class Final(NamedTuple):
    """Totals of the exams that ended in a step, and under SAME_STEP their last observation and mask."""

    reward: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    length: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    seconds: npt.NDArray[np.float64]
    observations: npt.NDArray[np.float32]
    action_mask: npt.NDArray[np.int8]


@njit(cache=True, inline="always")
def _begin(
    count: np.uint64,
    fresh: npt.NDArray[np.int64],
    ahead: int,
    seed: np.uint64,
    now: float,
    rules: Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: State,
) -> None:
    """Put the exam ``ahead`` of the last one into the first ``count`` environments of ``fresh``."""
    num_tasks = np.uint64(rules.num_tasks)
    ids = np.empty(count, np.int64)
    rows = np.empty((count, num_tasks), np.int32)
    slots = np.empty((np.int64(count) if rules.permuted else 0, rules.num_tasks), np.int32)
    for j in range(np.uint64(len(slots))):
        for n in range(num_tasks):
            slots[j, n] = n
    for j in range(count):
        ids[j] = state.exam_id[np.uint64(fresh[j])] + ahead
    draw_tasks(seed, ids, count, rules.order, rules.replacement, tables, rows, slots)
    for j in range(count):
        i = np.uint64(fresh[j])
        for n in range(num_tasks):
            row = np.uint64(rows[j, n])
            group = tables.rows[row, _GROUP]
            state.tasks[i, n, _ITEM] = tables.rows[row, _ITEM]
            state.tasks[i, n, _GROUP] = group
            fill_features(state.padded, i, np.uint64(group), n, observation)
        if rules.permuted:
            for n in range(num_tasks):
                state.slots[i, n] = slots[j, n]
    for j in range(count):
        i = np.uint64(fresh[j])
        if rules.num_latent > 1:
            state.first_item[i] = draw_latent(seed, ids[j], rules.num_latent) * rules.num_items
        state.exam_id[i] = ids[j]
        state.key[i] = random.outcome_key(seed, ids[j], state.replicate[i])
        state.position[i] = 0
        state.remaining[i] = rules.budget
        state.reward[i] = 0.0
        state.score[i] = 0.0
        state.started[i] = now


@njit(cache=True, inline="always")
def _show(
    i: np.uint64,
    last_action: int,
    last_tokens: int,
    last_correct: bool,
    rules: Rules,
    observation: ObservationTables,
    state: State,
    observations: npt.NDArray[np.float32],
    action_mask: npt.NDArray[np.int8],
) -> None:
    """Write environment ``i``'s observation and mask, and what the next step needs of the task to decide on."""
    position, remaining = np.uint64(state.position[i]), state.remaining[i]
    group = np.uint64(state.tasks[i, position, _GROUP])
    state.cell[i] = (state.first_item[i] + state.tasks[i, position, _ITEM]) * rules.num_tiers
    state.slot[i] = position
    state.weight[i] = rules.weight[group]
    write_observation(
        observations,
        i,
        state.padded,
        i,
        group,
        position,
        np.uint64(rules.num_tasks),
        remaining,
        rules.budget,
        last_action,
        last_tokens,
        last_correct,
        observation,
    )
    at_most(action_mask, i, rules.min_cost, group, remaining, rules.actions)


@njit(cache=True, inline="always")
def _show_block(
    first: np.uint64,
    size: np.uint64,
    actions: npt.NDArray[np.int64],
    rules: Rules,
    observation: ObservationTables,
    state: State,
    out: Outputs,
) -> None:
    for j in range(size):
        i = first + j
        if len(observation.memory) > 0:
            new = state.position[i] == 0
            action = np.int64(0) if new else actions[i]
            tokens = np.int32(0) if new else out.tokens[i]
            correct = not new and out.correct[i]
        else:
            action, tokens, correct = np.int64(0), np.int32(0), False
        _show(i, action, tokens, correct, rules, observation, state, out.observations, out.action_mask)
    if rules.permuted:
        last = np.uint64(rules.num_tasks - 1)
        for j in range(size):
            i = first + j
            state.slot[i] = state.slots[i, min(np.uint64(state.position[i]), last)]


@njit(cache=True)
def reset_all(
    seed: np.uint64,
    now: float,
    rules: Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: State,
    out: Outputs,
) -> None:
    """Begin the exams that ``state`` names."""
    num_envs = len(state.position)
    for start in range(0, num_envs, _BLOCK):
        first, size = np.uint64(start), np.uint64(min(_BLOCK, num_envs - start))
        fresh = np.arange(start, start + np.int64(size))
        _begin(size, fresh, 0, seed, now, rules, tables, observation, state)
        _show_block(first, size, fresh, rules, observation, state, out)
    state.finished[:] = False


@njit(cache=True, inline="always")
def _choose(
    first: np.uint64,
    size: np.uint64,
    actions: npt.NDArray[np.int64],
    rules: Rules,
    tables: SourceTables,
    num_tiers: np.uint64,
    state: State,
) -> None:
    """Find the place of every chosen action's outcome (for skip any) and ask for it.

    Called one block ahead: while the outcomes come, the block before is finished.
    """
    for j in range(size):
        i = first + j
        tier = np.uint64(max(actions[i] - 1, 0))
        state.place[i] = outcome_number(state.key[i], np.uint64(state.slot[i]), tier, num_tiers, rules.common)
    for j in range(size):
        i = first + j
        cell = np.uint64(state.cell[i]) + np.uint64(max(actions[i] - 1, 0))
        place = place_outcome(state.place[i], cell, tables.cells)
        state.place[i] = place
        prefetch(tables.outcomes, place)


@njit(cache=True, inline="always")
def _settle(
    first: np.uint64,
    size: np.uint64,
    actions: npt.NDArray[np.int64],
    outcome: npt.NDArray[np.uint32],
    now: float,
    rules: Rules,
    state: State,
    out: Outputs,
) -> None:
    """Apply the rules to one block; a finished environment only begins."""
    for j in range(size):
        i = first + j
        running = not state.finished[i]
        packed = outcome[j] if (actions[i] > 0) & running else np.uint32(0)
        position, remaining = np.int64(state.position[i]), np.int64(state.remaining[i])
        cost = (np.int64(packed >> np.uint32(1)) + rules.decision_cost) * running
        correct = (packed & np.uint32(1)) != 0
        paid, right, overspent, terminated = compiled_transition(cost, correct, remaining, position, rules.num_tasks)
        terminated = terminated & running
        score = state.weight[i] * right
        state.score[i] += score
        state.position[i] = position + running
        state.remaining[i] = remaining - paid
        state.finished[i] = terminated
        state.started[i] = state.started[i] if running else now
        out.rewards[i] = score
        out.terminated[i] = terminated
        out.tokens[i] = paid
        out.correct[i] = right
        out.overspent[i] = overspent


@njit(cache=True, inline="always")
def _shape(
    first: np.uint64,
    size: np.uint64,
    actions: npt.NDArray[np.int64],
    outcome: npt.NDArray[np.uint32],
    rules: Rules,
    tables: SourceTables,
    state: State,
    out: Outputs,
) -> None:
    """Replace the score by another reward, after :func:`_settle`."""
    num_tiers = np.uint64(rules.num_tiers)
    for j in range(size):
        i = first + j
        if state.position[i] == 0:
            continue
        remaining = state.remaining[i] + out.tokens[i]
        solvable = False
        if rules.reward_kind == REFUSAL_BONUS and actions[i] == 0:
            for k in range(num_tiers):
                cell = np.uint64(state.cell[i]) + k
                number = outcome_number(state.key[i], np.uint64(state.slot[i]), k, num_tiers, rules.common)
                place = place_outcome(number, cell, tables.cells)
                packed = tables.outcomes[place]
                fits = np.int64(packed >> np.uint32(1)) + rules.decision_cost <= remaining
                solvable = solvable or (fits and (packed & np.uint32(1)) != 0)
        tokens = np.int64(outcome[j] >> np.uint32(1)) if actions[i] > 0 else np.int64(0)
        reward = compiled_reward_of(
            rules.reward_kind,
            rules.coefficient,
            actions[i],
            out.correct[i],
            out.overspent[i],
            np.searchsorted(rules.level_edges, tokens),
            state.weight[i],
            out.tokens[i],
            rules.budget,
            solvable,
        )
        out.rewards[i] = reward
        state.reward[i] += reward


@njit(cache=True, inline="always")
def _close(
    first: np.uint64,
    size: np.uint64,
    count: np.uint64,
    ended: npt.NDArray[np.int64],
    now: float,
    rules: Rules,
    state: State,
    final: Final,
) -> None:
    """Write the totals of the exams that ended, zeros for the others: never stale memory."""
    last = first + size
    final.score[first:last] = 0.0
    final.reward[first:last] = 0.0
    final.length[first:last] = 0
    final.tokens[first:last] = 0
    final.seconds[first:last] = 0.0
    for j in range(count):
        i = np.uint64(ended[j])
        final.score[i] = state.score[i]
        final.reward[i] = state.reward[i] if rules.reward_kind != 0 else state.score[i]
        final.length[i] = state.position[i]
        final.tokens[i] = rules.budget - state.remaining[i]
        final.seconds[i] = now - state.started[i]


@njit(cache=True)
def step_all(
    actions: npt.NDArray[np.int64],
    seed: np.uint64,
    now: float,
    same_step: bool,
    rules: Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: State,
    out: Outputs,
    final: Final,
) -> int:
    """Step every environment once; returns how many exams ended, or -1 (nothing done) for an action out of range."""
    num_envs = len(actions)
    num_tiers = len(observation.tiers)
    valid = True
    for action in actions:
        valid &= (action >= 0) & (action <= num_tiers)
    if not valid:
        return -1
    outcome, ended = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.int64)
    total = np.uint64(0)
    _choose(np.uint64(0), np.uint64(min(_BLOCK, num_envs)), actions, rules, tables, np.uint64(num_tiers), state)
    for start in range(0, num_envs, _BLOCK):
        first, size = np.uint64(start), np.uint64(min(_BLOCK, num_envs - start))
        if start + _BLOCK < num_envs:
            following = np.uint64(min(_BLOCK, num_envs - start - _BLOCK))
            _choose(np.uint64(start + _BLOCK), following, actions, rules, tables, np.uint64(num_tiers), state)
        for j in range(size):
            outcome[j] = tables.outcomes[state.place[first + j]]
        _settle(first, size, actions, outcome, now, rules, state, out)
        if rules.reward_kind != 0:
            _shape(first, size, actions, outcome, rules, tables, state, out)
        count = np.uint64(0)
        for j in range(size):
            ended[count] = first + j
            count += np.uint64(out.terminated[first + j])
        total += count
        _close(first, size, count, ended, now, rules, state, final)
        if same_step:
            final.observations[first : first + size] = 0.0
            final.action_mask[first : first + size] = 0
            for j in range(count):
                i = np.uint64(ended[j])
                _show(
                    i,
                    actions[i],
                    out.tokens[i],
                    out.correct[i],
                    rules,
                    observation,
                    state,
                    final.observations,
                    final.action_mask,
                )
                state.finished[i] = False
        else:
            _show_block(first, size, actions, rules, observation, state, out)
        _begin(count, ended, num_envs, seed, now, rules, tables, observation, state)
        if same_step:
            _show_block(first, size, actions, rules, observation, state, out)
    return np.int64(total)  # type: ignore[return-value]


@njit(cache=True)
def sample(mask: npt.NDArray[np.int8], key: np.uint64, counter: np.uint64, out: npt.NDArray[np.int64]) -> None:
    """Fill ``out`` with actions uniform over the legal ones of ``mask`` (n, K + 1)."""
    size, num_actions = mask.shape
    for i in range(size):
        legal = 0
        for a in range(num_actions):
            legal += mask[i, a] != 0
        number = random.draw(key, counter + np.uint64(i))
        left = np.int64(random.below(number, np.uint64(legal)))
        for a in range(num_actions):
            if mask[i, a] != 0:
                if left == 0:
                    out[i] = a
                left -= 1
