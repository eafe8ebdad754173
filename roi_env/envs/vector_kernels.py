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

from roi_env.exams import random
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import draw_latent, draw_tasks, new_slots, outcome_number, place_outcome
from roi_env.exams.observation import ObservationTables, fill_features, padded_features, write_observation
from roi_env.exams.rewards import REFUSAL_BONUS, compiled_reward_of
from roi_env.exams.rules import compiled_transition
from roi_env.exams.simd import at_most, prefetch
from roi_env.sources.source import NOT_OFFERED, SourceTables

# Compiled indexing wants unsigned numbers: signed ones cost a test for Python's negative indexing each.
_ITEM, _GROUP = np.uint64(0), np.uint64(1)
_HALF = np.uint64(32)

_BLOCK = 512
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
        min_cost,
        np.append(source.group_weight, 0.0),
        np.array(source.level_edges, np.int64),
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
        tasks=tasks,
        slots=np.zeros((n if rules_of(spec).permuted else 0, spec.num_tasks), np.int32),
        padded=padded_features(n, spec),
    )


class Scratch(NamedTuple):
    """What passes over one block of environments hand on: arrays (block,) unless said otherwise."""

    number: npt.NDArray[np.uint32]
    """Random number of the action under way."""
    chosen: npt.NDArray[np.int32]
    """Its cell."""
    place: npt.NDArray[np.uint32]
    """(2, block) place of its outcome: of this block and of the next one."""
    outcome: npt.NDArray[np.uint32]
    """That outcome, packed."""
    group: npt.NDArray[np.int32]
    """Group of the task to decide on."""
    listed: npt.NDArray[np.int64]
    """Environments whose exam ended."""
    exam_id: npt.NDArray[np.int64]
    """The exams that they begin."""
    rows: npt.NDArray[np.int32]
    """(block, N) task rows of those exams."""
    slots: npt.NDArray[np.int32]
    """(block, N) order of drawing."""
    keys: npt.NDArray[np.int64]
    """(N,) room to sort in."""


def new_scratch(spec: ExamSpec) -> Scratch:
    """Room for one block; kernels cannot allocate."""
    return Scratch(
        number=np.zeros(_BLOCK, np.uint32),
        chosen=np.zeros(_BLOCK, np.int32),
        place=np.zeros((2, _BLOCK), np.uint32),
        outcome=np.zeros(_BLOCK, np.uint32),
        group=np.zeros(_BLOCK, np.int32),
        listed=np.zeros(_BLOCK, np.int64),
        exam_id=np.zeros(_BLOCK, np.int64),
        rows=np.zeros((_BLOCK, spec.num_tasks), np.int32),
        slots=new_slots(_BLOCK, spec.num_tasks),
        keys=np.zeros(spec.num_tasks, np.int64),
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
    ahead: int,
    seed: np.uint64,
    now: float,
    rules: Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: State,
    scratch: Scratch,
) -> None:
    """Put the exam ``ahead`` of the last one into the first ``count`` environments listed."""
    num_tasks = np.uint64(rules.num_tasks)
    for j in range(count):
        scratch.exam_id[j] = state.exam_id[np.uint64(scratch.listed[j])] + ahead
    draw_tasks(
        seed, scratch.exam_id, count, rules.order, rules.replacement, tables, scratch.rows, scratch.slots, scratch.keys
    )
    for j in range(count):
        i = np.uint64(scratch.listed[j])
        for n in range(num_tasks):
            row = np.uint64(scratch.rows[j, n])
            group = tables.rows[row, _GROUP]
            state.tasks[i, n, _ITEM] = tables.rows[row, _ITEM]
            state.tasks[i, n, _GROUP] = group
            fill_features(state.padded, i, np.uint64(group), n, observation)
        if rules.permuted:
            for n in range(num_tasks):
                state.slots[i, n] = scratch.slots[j, n]
    for j in range(count):
        i = np.uint64(scratch.listed[j])
        exam_id = scratch.exam_id[j]
        if rules.num_latent > 1:
            state.first_item[i] = draw_latent(seed, exam_id, rules.num_latent) * rules.num_items
        state.exam_id[i] = exam_id
        state.key[i] = random.outcome_key(seed, exam_id, state.replicate[i])
        state.position[i] = 0
        state.remaining[i] = rules.budget
        state.reward[i] = 0.0
        state.score[i] = 0.0
        state.started[i] = now


@njit(cache=True, inline="always")
def _show(
    i: np.uint64,
    group: np.uint64,
    last_action: int,
    last_tokens: int,
    last_correct: bool,
    rules: Rules,
    observation: ObservationTables,
    state: State,
    observations: npt.NDArray[np.float32],
    action_mask: npt.NDArray[np.int8],
) -> None:
    """Write environment ``i``'s observation and mask; ``group`` is that of the task to decide on."""
    remaining = state.remaining[i]
    write_observation(
        observations,
        i,
        state.padded,
        i,
        group,
        np.uint64(state.position[i]),
        np.uint64(rules.num_tasks),
        remaining,
        rules.budget,
        last_action,
        last_tokens,
        last_correct,
        observation,
    )
    at_most(action_mask, i, rules.min_cost, group, remaining, np.uint64(rules.num_tiers + 1))


@njit(cache=True, inline="always")
def _show_block(
    first: np.uint64,
    size: np.uint64,
    actions: npt.NDArray[np.int64],
    rules: Rules,
    observation: ObservationTables,
    state: State,
    scratch: Scratch,
    out: Outputs,
) -> None:
    """Write observations and masks of one block, and what the next step needs of the tasks to decide on."""
    last = np.uint64(rules.num_tasks - 1)
    for j in range(size):
        i = first + j
        position = np.uint64(state.position[i])
        group = state.tasks[i, position, _GROUP]
        scratch.group[j] = group
        state.cell[i] = (state.first_item[i] + state.tasks[i, position, _ITEM]) * rules.num_tiers
        state.weight[i] = rules.weight[np.uint64(group)]
    if rules.permuted:
        for j in range(size):
            i = first + j
            state.slot[i] = state.slots[i, min(np.uint64(state.position[i]), last)]
    if observation.shows_feedback:
        for j in range(size):
            i = first + j
            group = np.uint64(scratch.group[j])
            new = state.position[i] == 0
            action = np.int64(0) if new else actions[i]
            tokens = np.int32(0) if new else out.tokens[i]
            correct = not new and out.correct[i]
            _show(i, group, action, tokens, correct, rules, observation, state, out.observations, out.action_mask)
    else:
        for j in range(size):
            i = first + j
            group = np.uint64(scratch.group[j])
            _show(i, group, 0, 0, False, rules, observation, state, out.observations, out.action_mask)


@njit(cache=True, _nrt=False)
def reset_all(
    seed: np.uint64,
    now: float,
    rules: Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: State,
    scratch: Scratch,
    out: Outputs,
    actions: npt.NDArray[np.int64],
) -> None:
    """Begin the exams that ``state`` names; ``actions`` (n,) is any array."""
    num_envs = len(state.position)
    for start in range(0, num_envs, _BLOCK):
        first, size = np.uint64(start), np.uint64(min(_BLOCK, num_envs - start))
        for j in range(size):
            scratch.listed[j] = first + j
        _begin(size, 0, seed, now, rules, tables, observation, state, scratch)
        _show_block(first, size, actions, rules, observation, state, scratch, out)
    for i in range(np.uint64(num_envs)):
        state.finished[i] = False


@njit(cache=True, inline="always")
def _choose(
    start: int,
    num_envs: int,
    actions: npt.NDArray[np.int64],
    rules: Rules,
    tables: SourceTables,
    num_tiers: np.uint64,
    state: State,
    scratch: Scratch,
) -> None:
    """Find the places of the chosen actions' outcomes (for skip any) in the block at ``start`` and ask for them.

    Called one block ahead: while the outcomes come, the block before is finished.
    """
    turn = np.uint64(start // _BLOCK % 2)
    first, size = np.uint64(start), np.uint64(max(0, min(_BLOCK, num_envs - start)))
    for j in range(size):
        i = first + j
        tier = np.uint64(max(actions[i] - 1, 0))
        slot = np.uint64(state.slot[i] if rules.permuted else state.position[i])
        number = outcome_number(state.key[i], slot, tier, num_tiers, rules.common)
        scratch.number[j] = number >> _HALF
        scratch.chosen[j] = np.uint64(state.cell[i]) + tier
    for j in range(size):
        place = place_outcome(np.uint64(scratch.number[j]), np.uint64(scratch.chosen[j]), tables.cells)
        scratch.place[turn, j] = place
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
            # The slot of the task just decided on.
            slot = np.uint64(state.slot[i] if rules.permuted else state.position[i] - 1)
            for k in range(num_tiers):
                cell = np.uint64(state.cell[i]) + k
                number = outcome_number(state.key[i], slot, k, num_tiers, rules.common)
                place = place_outcome(number >> _HALF, cell, tables.cells)
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
    now: float,
    rules: Rules,
    state: State,
    scratch: Scratch,
    final: Final,
) -> None:
    """Write the totals of the exams that ended, zeros for the others: never stale memory."""
    for j in range(size):
        final.score[first + j] = 0.0
    for j in range(size):
        final.reward[first + j] = 0.0
    for j in range(size):
        final.length[first + j] = 0
    for j in range(size):
        final.tokens[first + j] = 0
    for j in range(size):
        final.seconds[first + j] = 0.0
    for j in range(count):
        i = np.uint64(scratch.listed[j])
        final.score[i] = state.score[i]
        final.reward[i] = state.reward[i] if rules.reward_kind != 0 else state.score[i]
        final.length[i] = state.position[i]
        final.tokens[i] = rules.budget - state.remaining[i]
        final.seconds[i] = now - state.started[i]


@njit(cache=True, inline="always")
def _show_last(
    first: np.uint64,
    size: np.uint64,
    count: np.uint64,
    actions: npt.NDArray[np.int64],
    rules: Rules,
    observation: ObservationTables,
    state: State,
    scratch: Scratch,
    out: Outputs,
    final: Final,
) -> None:
    """Write the last observations and masks of the exams that ended, zeros for the others."""
    for j in range(size):
        for k in range(np.uint64(final.observations.shape[1])):
            final.observations[first + j, k] = 0.0
        for k in range(np.uint64(final.action_mask.shape[1])):
            final.action_mask[first + j, k] = 0
    for j in range(count):
        i = np.uint64(scratch.listed[j])
        group = np.uint64(state.tasks[i, np.uint64(state.position[i]), _GROUP])
        _show(
            i,
            group,
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


# Without Numba's counting of references: every pass would count those of all fifty arrays.
@njit(cache=True, _nrt=False)
def step_all(
    actions: npt.NDArray[np.int64],
    seed: np.uint64,
    now: float,
    same_step: bool,
    rules: Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: State,
    scratch: Scratch,
    out: Outputs,
    final: Final,
) -> int:
    """Step every environment once; returns how many exams ended, or -1 (nothing done) for an action out of range."""
    num_envs, num_tiers = len(actions), np.uint64(rules.num_tiers)
    largest = np.uint64(0)
    for i in range(np.uint64(num_envs)):
        largest = max(largest, np.uint64(actions[i]))  # of a negative one: huge
    if largest > num_tiers:
        return -1
    total = np.uint64(0)
    _choose(0, num_envs, actions, rules, tables, num_tiers, state, scratch)
    for start in range(0, num_envs, _BLOCK):
        first, size = np.uint64(start), np.uint64(min(_BLOCK, num_envs - start))
        _choose(start + _BLOCK, num_envs, actions, rules, tables, num_tiers, state, scratch)
        turn = np.uint64(start // _BLOCK % 2)
        for j in range(size):
            scratch.outcome[j] = tables.outcomes[np.uint64(scratch.place[turn, j])]
        _settle(first, size, actions, scratch.outcome, now, rules, state, out)
        if rules.reward_kind != 0:
            _shape(first, size, actions, scratch.outcome, rules, tables, state, out)
        count = np.uint64(0)
        for j in range(size):
            scratch.listed[count] = first + j
            count += np.uint64(out.terminated[first + j])
        total += count
        _close(first, size, count, now, rules, state, scratch, final)
        # Under NEXT_STEP the end is shown and the next exam put behind it already; its first observation comes next.
        if same_step:
            _show_last(first, size, count, actions, rules, observation, state, scratch, out, final)
            _begin(count, num_envs, seed, now, rules, tables, observation, state, scratch)
        _show_block(first, size, actions, rules, observation, state, scratch, out)
        if not same_step:
            _begin(count, num_envs, seed, now, rules, tables, observation, state, scratch)
    return np.int64(total)  # type: ignore[return-value]
