"""The native batched environment: arrays in, arrays out, one compiled kernel per step.

``gym.make_vec("ROIReasoning-v0", num_envs=4096, vectorization_mode="vector_entry_point")``
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numba import njit

from roi_env import random
from roi_env.dynamics import compiled_transition
from roi_env.env import resolve_spec
from roi_env.exam import check_seed, draw_latent, draw_tasks, exam_numbers, place_outcome
from roi_env.observation import (
    ObservationTables,
    fill_features,
    observation_layout,
    observation_tables,
    padded_features,
    write_observation,
)
from roi_env.rendering import RENDER_FPS, Decision, Scene, render_ansi, render_rgb
from roi_env.rewards import REFUSAL_BONUS, compiled_reward_of
from roi_env.source import SourceTables

# Columns of ``SourceTables.rows`` and of ``_State.tasks``, and one, as the unsigned numbers that compiled indexing wants.
_ITEM, _GROUP, _ONE = np.uint64(0), np.uint64(1), np.uint64(1)

_BLOCK = 256
"""Environments that one pass handles: what it touches is still in the processor's cache for the next pass."""

_ENVIRONMENT = np.dtype(
    [
        ("key", np.uint64),  # outcome key of the running exam
        ("exam_id", np.int64),
        ("replicate", np.int64),
        ("started", np.float64),
        ("total_reward", np.float64),
        ("total_score", np.float64),
        ("first_item", np.int32),  # latent state x number of items: a task's law is this plus its item
        ("remaining", np.int32),
        ("position", np.int32),
        ("finished", np.bool_),  # NEXT_STEP: the coming step resets
    ],
    align=True,
)
"""One environment between steps: one cache line of 64 bytes."""


class _Rules(NamedTuple):
    """Constants of one kind of exam, for the kernels."""

    budget: int
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
    level_edges: npt.NDArray[np.int64]


class _State(NamedTuple):
    """State of n environments."""

    environments: npt.NDArray[np.void]
    """(n,) records of ``_ENVIRONMENT``."""
    tasks: npt.NDArray[np.int32]
    """(n, N, 2) item and published group of every task, in order of presentation."""
    slots: npt.NDArray[np.int32]
    """(n, N) order of drawing; (0, N) where presentation never changes it."""
    padded: npt.NDArray[np.float32]
    """Features in presentation order, then zeros: observations are windows of it."""


class _Scratch(NamedTuple):
    """What passes over one block of environments hand on."""

    place: npt.NDArray[np.uint64]
    """Place of the outcome of the action under way."""
    outcome: npt.NDArray[np.uint32]
    """That outcome, packed."""
    weight: npt.NDArray[np.float64]
    """Weight of the task under way."""
    ended: npt.NDArray[np.int64]
    """Environments whose exam ended."""
    fresh: npt.NDArray[np.int64]
    """Environments that begin an exam."""
    exam_id: npt.NDArray[np.int64]
    """Their exams."""
    rows: npt.NDArray[np.int32]
    """(block, N) task rows of those exams."""
    slots: npt.NDArray[np.int32]


class _Outputs(NamedTuple):
    """What a step writes."""

    observations: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    action_mask: npt.NDArray[np.int8]
    tokens: npt.NDArray[np.int32]
    correct: npt.NDArray[np.bool_]
    overspent: npt.NDArray[np.bool_]


class _Final(NamedTuple):
    """Totals of the exams that ended in a step, and under SAME_STEP their last observation and mask."""

    reward: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    length: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    seconds: npt.NDArray[np.float64]
    observations: npt.NDArray[np.float32]
    action_mask: npt.NDArray[np.int8]


@njit(cache=True)
def _new_scratch(num_tasks: int) -> _Scratch:
    slots = np.empty((_BLOCK, num_tasks), np.int32)
    for n in range(num_tasks):
        slots[:, n] = n
    return _Scratch(
        np.empty(_BLOCK, np.uint64),
        np.empty(_BLOCK, np.uint32),
        np.empty(_BLOCK),
        np.empty(_BLOCK, np.int64),
        np.empty(_BLOCK, np.int64),
        np.empty(_BLOCK, np.int64),
        np.empty((_BLOCK, num_tasks), np.int32),
        slots,
    )


@njit(cache=True)
def _begin(
    count: np.uint64,
    ahead: int,
    seed: np.uint64,
    now: float,
    rules: _Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: _State,
    scratch: _Scratch,
) -> None:
    """Start the exam ``ahead`` of the last one in the first ``count`` environments in ``scratch.fresh``."""
    num_tasks = np.uint64(state.tasks.shape[1])
    for j in range(count):
        scratch.exam_id[j] = state.environments[np.uint64(scratch.fresh[j])].exam_id + ahead
    draw_tasks(seed, scratch.exam_id, count, rules.order, rules.replacement, tables, scratch.rows, scratch.slots)
    for j in range(count):
        i = np.uint64(scratch.fresh[j])
        environment = state.environments[i]
        exam_id = scratch.exam_id[j]
        environment.exam_id = exam_id
        for n in range(num_tasks):
            row = np.uint64(scratch.rows[j, n])
            group = tables.rows[row, _GROUP]
            state.tasks[i, n, _ITEM] = tables.rows[row, _ITEM]
            state.tasks[i, n, _GROUP] = group
            fill_features(state.padded, i, np.uint64(group), n, observation)
        if rules.permuted:
            for n in range(num_tasks):
                state.slots[i, n] = scratch.slots[j, n]
        if rules.num_latent > 1:
            environment.first_item = draw_latent(seed, exam_id, rules.num_latent) * rules.num_items
        environment.key = random.outcome_key(seed, exam_id, environment.replicate)
        environment.position = 0
        environment.remaining = rules.budget
        environment.finished = False
        environment.total_reward = 0.0
        environment.total_score = 0.0
        environment.started = now


@njit(cache=True, inline="always")
def _show(
    i: np.uint64,
    last_action: int,
    last_tokens: int,
    last_correct: bool,
    rules: _Rules,
    observation: ObservationTables,
    state: _State,
    observations: npt.NDArray[np.float32],
    action_mask: npt.NDArray[np.int8],
) -> None:
    """Write environment ``i``'s observation and mask; past the last task only skip is legal."""
    num_tasks = np.uint64(state.tasks.shape[1])
    position, remaining = np.uint64(state.environments[i].position), state.environments[i].remaining
    group = np.uint64(state.tasks[i, min(position, num_tasks - _ONE), _GROUP])
    write_observation(
        observations,
        i,
        state.padded,
        i,
        group,
        position,
        num_tasks,
        remaining,
        rules.budget,
        last_action,
        last_tokens,
        last_correct,
        observation,
    )
    limit = remaining if position < num_tasks else np.int32(-1)
    action_mask[i, np.uint64(0)] = 1
    for k in range(np.uint64(len(observation.tiers))):
        action_mask[i, k + _ONE] = rules.min_cost[group, k] <= limit


@njit(cache=True)
def _reset_all(
    seed: np.uint64,
    now: float,
    rules: _Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: _State,
    out: _Outputs,
) -> None:
    num_envs, num_tasks = state.tasks.shape[:2]
    scratch = _new_scratch(num_tasks)
    for first in range(0, num_envs, _BLOCK):
        size = np.uint64(min(_BLOCK, num_envs - first))
        for j in range(size):
            scratch.fresh[j] = first + j
        _begin(size, 0, seed, now, rules, tables, observation, state, scratch)
    for i in range(np.uint64(num_envs)):
        _show(i, 0, 0, False, rules, observation, state, out.observations, out.action_mask)


@njit(cache=True)
def _draw_chosen(
    first: np.uint64,
    size: np.uint64,
    actions: npt.NDArray[np.int64],
    rules: _Rules,
    tables: SourceTables,
    num_tiers: int,
    state: _State,
    scratch: _Scratch,
) -> None:
    """Gather the outcome of every chosen action of one block (0 for skip).

    Apart from the rules and without branches, first all places and then all outcomes, so that the processor keeps many
    of its cache misses in flight. Indices are unsigned here and in ``_show``: signed ones cost a test for Python's
    negative indexing each.
    """
    last = np.uint64(state.tasks.shape[1] - 1)
    for j in range(size):
        i = first + j
        tier = np.uint64(max(actions[i] - 1, 0))
        position = min(np.uint64(state.environments[i].position), last)
        slot = np.uint64(state.slots[i, position]) if rules.permuted else position
        law = np.uint64(state.environments[i].first_item) + np.uint64(state.tasks[i, position, _ITEM])
        scratch.place[j] = place_outcome(
            state.environments[i].key,
            slot,
            tier,
            np.uint64(num_tiers),
            law * np.uint64(num_tiers) + tier,
            rules.common,
            tables.cells,
        )
        scratch.weight[j] = tables.group_weight[np.uint64(state.tasks[i, position, _GROUP])]
    for j in range(size):
        scratch.outcome[j] = tables.outcomes[scratch.place[j]]


@njit(cache=True)
def _shaped_reward(
    i: np.uint64,
    action: int,
    weight: float,
    right: bool,
    overspent: bool,
    cost: int,
    paid: int,
    rules: _Rules,
    tables: SourceTables,
    state: _State,
) -> float:
    """Reward other than the score, before the state of environment ``i`` moves on."""
    environment = state.environments[i]
    position = np.uint64(environment.position)
    law = np.uint64(environment.first_item) + np.uint64(state.tasks[i, position, _ITEM])
    num_tiers = np.uint64(rules.num_tiers)
    solvable = False
    if rules.reward_kind == REFUSAL_BONUS and action == 0:
        slot = np.uint64(state.slots[i, position]) if rules.permuted else position
        for k in range(num_tiers):
            place = place_outcome(environment.key, slot, k, num_tiers, law * num_tiers + k, rules.common, tables.cells)
            packed = tables.outcomes[place]
            fits = np.int64(packed >> np.uint32(1)) + rules.decision_cost <= environment.remaining
            solvable = solvable or (fits and (packed & np.uint32(1)) != 0)
    return compiled_reward_of(
        rules.reward_kind,
        rules.coefficient,
        action,
        right,
        overspent,
        np.searchsorted(rules.level_edges, cost - rules.decision_cost),
        weight,
        paid,
        rules.budget,
        solvable,
    )


@njit(cache=True)
def _settle(
    first: np.uint64,
    size: np.uint64,
    actions: npt.NDArray[np.int64],
    rules: _Rules,
    tables: SourceTables,
    state: _State,
    scratch: _Scratch,
    out: _Outputs,
) -> tuple[np.uint64, np.uint64]:
    """Apply the rules to one block; returns how many of its exams ended and how many were finished before.

    Which ones: ``scratch.ended`` and ``scratch.fresh``. Without branches on what the environments do: whether an exam
    ends cannot be predicted, and a wrong guess costs more than the work for a finished one.
    """
    num_tasks = state.tasks.shape[1]
    ended = finished = np.uint64(0)
    for j in range(size):
        i = first + j
        environment = state.environments[i]
        running = not environment.finished
        packed = scratch.outcome[j] if (actions[i] > 0) & running else np.uint32(0)
        position, remaining = np.int64(environment.position), np.int64(environment.remaining)
        cost = (np.int64(packed >> np.uint32(1)) + rules.decision_cost) * running
        correct = (packed & np.uint32(1)) != 0
        paid, right, overspent, terminated = compiled_transition(cost, correct, remaining, position, num_tasks)
        score = scratch.weight[j] * right
        reward = score
        if rules.reward_kind != 0:
            if running:
                reward = _shaped_reward(
                    i, actions[i], scratch.weight[j], right, overspent, cost, paid, rules, tables, state
                )
            environment.total_score += score
        terminated = terminated & running
        environment.total_reward += reward
        environment.position = position + 1
        environment.remaining = remaining - paid
        environment.finished = terminated
        out.rewards[i] = reward
        out.terminated[i] = terminated
        out.tokens[i] = paid
        out.correct[i] = right
        out.overspent[i] = overspent
        scratch.ended[ended] = i
        ended += np.uint64(terminated)
        scratch.fresh[finished] = i
        finished += np.uint64(not running)
    return ended, finished


@njit(cache=True)
def _close(
    ended: np.uint64,
    now: float,
    rules: _Rules,
    state: _State,
    scratch: _Scratch,
    final: _Final,
) -> None:
    """Write the totals of the exams that ended."""
    for j in range(ended):
        i = np.uint64(scratch.ended[j])
        environment = state.environments[i]
        final.reward[i] = environment.total_reward
        final.score[i] = environment.total_score if rules.reward_kind != 0 else environment.total_reward
        final.length[i] = environment.position
        final.tokens[i] = rules.budget - environment.remaining
        final.seconds[i] = now - environment.started


@njit(cache=True)
def _step(
    actions: npt.NDArray[np.int64],
    seed: np.uint64,
    now: float,
    same_step: bool,
    rules: _Rules,
    tables: SourceTables,
    observation: ObservationTables,
    state: _State,
    out: _Outputs,
    final: _Final,
) -> int:
    """Step every environment once; returns how many exams ended, or -1 (nothing done) for an action out of range."""
    num_envs, num_tasks = state.tasks.shape[:2]
    num_tiers = len(observation.tiers)
    valid = True
    for action in actions:
        valid &= (action >= 0) & (action <= num_tiers)
    if not valid:
        return -1
    scratch = _new_scratch(num_tasks)
    ended = np.uint64(0)
    for start in range(0, num_envs, _BLOCK):
        first, size = np.uint64(start), np.uint64(min(_BLOCK, num_envs - start))
        _draw_chosen(first, size, actions, rules, tables, num_tiers, state, scratch)
        ended_here, fresh = _settle(first, size, actions, rules, tables, state, scratch, out)
        _close(ended_here, now, rules, state, scratch, final)
        ended += ended_here
        if same_step:
            fresh = ended_here
            for j in range(fresh):
                began = np.uint64(scratch.ended[j])
                scratch.fresh[j] = began
                _show(
                    began,
                    actions[began],
                    out.tokens[began],
                    out.correct[began],
                    rules,
                    observation,
                    state,
                    final.observations,
                    final.action_mask,
                )
        _begin(fresh, num_envs, seed, now, rules, tables, observation, state, scratch)
        for j in range(size):
            i = first + j
            new = state.environments[i].position == 0
            _show(
                i,
                np.int64(0) if new else actions[i],
                np.int32(0) if new else out.tokens[i],
                not new and out.correct[i],
                rules,
                observation,
                state,
                out.observations,
                out.action_mask,
            )
    return np.int64(ended)  # type: ignore[return-value]


@njit(cache=True)
def _sample(mask: npt.NDArray[np.int8], key: np.uint64, counter: np.uint64, out: npt.NDArray[np.int64]) -> None:
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


class ROIReasoningVectorEnv(gym.vector.VectorEnv):
    """``num_envs`` exams at a time; the batched form of :class:`roi_env.env.ROIReasoningEnv`.

    Episodes are bit-identical to the single environment's: sub-environment ``i`` takes exams ``i, i + num_envs, ...`` of
    the identity seed given to ``reset``.

    :param num_envs: number of sub-environments.
    :param autoreset_mode: ``AutoresetMode.NEXT_STEP`` (default; RLlib needs it) or ``SAME_STEP`` (SB3 needs it), or its
        name. Under NEXT_STEP the step after an end ignores its action, returns reward 0 and the first observation of
        the next exam.
    :param copy: True returns new arrays from every step; False reuses two sets of buffers in turn, so that what a step
        returned stays valid during the next step only.
    :param render_mode: None, "ansi" or "rgb_array" (a tuple of ``num_envs`` frames).
    :param kwargs: the arguments of the single environment.

    Infos: ``action_mask`` (n, K+1) int8, ``tokens`` (n,) int32 paid, ``correct`` and ``overspent`` (n,) bool of the
    action just taken; when exams end, ``episode`` with ``r`` (return), ``l`` (length), ``t`` (seconds), ``score`` and
    ``tokens`` where ``_episode`` is True (what ``RecordEpisodeStatistics`` would add: do not add it on top). Under
    SAME_STEP also ``final_obs`` and ``final_info`` with ``_final_obs`` and ``_final_info``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer >= 1, got {num_envs!r}")
        mode = autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else _autoreset_mode(autoreset_mode)
        if mode == AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode must be NEXT_STEP or SAME_STEP: this environment always resets by itself")
        if render_mode not in (None, "ansi", "rgb_array"):
            raise ValueError(f"render_mode must be None, 'ansi' or 'rgb_array', got {render_mode!r}")
        self.spec_of_exam = resolve_spec(**kwargs)
        spec = self.spec_of_exam
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.metadata = {
            "render_modes": ["ansi", "rgb_array"],
            "render_fps": RENDER_FPS,
            "autoreset_mode": mode,
        }
        self.observation_layout = observation_layout(spec)
        self.single_observation_space = self.observation_layout.space()
        self.single_action_space = gym.spaces.Discrete(spec.num_tiers + 1)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        source = spec.source
        self._same_step = mode == AutoresetMode.SAME_STEP
        self._tables = source.tables
        self._observation_tables = observation_tables(spec)
        self._rules = _Rules(
            spec.budget,
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
            spec.min_cost.astype(np.int32),
            source.level_edges,
        )
        n, tasks = self.num_envs, spec.num_tasks
        permuted = self._rules.permuted
        self._state = _State(
            np.zeros(n, _ENVIRONMENT),
            np.zeros((n, tasks, 2), np.int32),
            np.zeros((n if permuted else 0, tasks), np.int32),
            padded_features(n, spec),
        )
        self._copy = copy
        self._buffers = [self._new_buffers(), self._new_buffers()] if not copy else []
        self._turn = 0
        self._seed: int | None = None
        self._mask = np.ones((n, spec.num_tiers + 1), np.int8)
        self._scenes: list[Scene] = []

    def _new_buffers(self) -> tuple[_Outputs, _Final]:
        n, size, actions = self.num_envs, self.observation_layout.size, self.spec_of_exam.num_tiers + 1
        out = _Outputs(
            np.empty((n, size), np.float32),
            np.empty(n, np.float64),
            np.empty(n, np.bool_),
            np.empty((n, actions), np.int8),
            np.empty(n, np.int32),
            np.empty(n, np.bool_),
            np.empty(n, np.bool_),
        )
        # The kernel writes final rows only where exams ended: start from zeros, never from stale memory.
        last = (n, size) if self._same_step else (0, size)
        final = _Final(
            np.zeros(n),
            np.zeros(n),
            np.zeros(n, np.int32),
            np.zeros(n, np.int32),
            np.zeros(n),
            np.zeros(last, np.float32),
            np.zeros((last[0], actions), np.int8),
        )
        return out, final

    def _next_buffers(self) -> tuple[_Outputs, _Final]:
        if self._copy:
            return self._new_buffers()
        self._turn ^= 1
        return self._buffers[self._turn]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an exam in every sub-environment.

        :param seed: identity's seed, the same for all sub-environments; exams count from 0 again. Without a seed the
            next exams follow (or, never seeded, a seed is drawn from entropy).
        :param options: ``exam_ids`` and ``replicates``, one non-negative integer or (num_envs,) each; later exams of
            sub-environment ``i`` are ``exam_ids[i] + j * num_envs`` in the same replicate.
        :raises ValueError: for a bad seed or option.
        """
        if seed is not None:
            check_seed(seed)
        super().reset(seed=seed)
        options = _checked_options(options)
        fresh = seed is not None or self._seed is None
        if seed is not None:
            self._seed = int(seed)
        elif self._seed is None:
            self._seed = int(self.np_random.integers(2**63))
        state = self._state.environments
        if "exam_ids" in options:
            state["exam_id"][:] = exam_numbers("exam_ids", options["exam_ids"], self.num_envs)
        elif fresh:
            state["exam_id"][:] = np.arange(self.num_envs)
        else:
            state["exam_id"][:] += self.num_envs
        if "replicates" in options:
            state["replicate"][:] = exam_numbers("replicates", options["replicates"], self.num_envs)
        elif fresh or "exam_ids" in options:
            state["replicate"][:] = 0
        out, _ = self._next_buffers()
        _reset_all(
            np.uint64(self._seed),
            time.perf_counter(),
            self._rules,
            self._tables,
            self._observation_tables,
            self._state,
            out,
        )
        self._mask = out.action_mask
        if self.render_mode is not None:
            self._scenes = [self._scene(groups) for groups in self._groups()]
        out.tokens[:] = 0
        out.correct[:] = False
        out.overspent[:] = False
        return out.observations, self._infos(out)

    def step(
        self, actions: Any
    ) -> tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.float64],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        dict[str, Any],
    ]:
        """Take one action in every sub-environment: ``actions`` (num_envs,) integers in ``0..K``.

        :raises ValueError: for a wrong shape, dtype or value.
        :raises gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._seed is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(f"actions must be {self.num_envs} integers, got {actions.dtype} of shape {actions.shape}")
        actions = actions.astype(np.int64, copy=False)
        before = (self._groups(), self._state.environments["finished"].copy()) if self.render_mode is not None else None
        out, final = self._next_buffers()
        ended = _step(
            actions,
            np.uint64(self._seed),
            time.perf_counter(),
            self._same_step,
            self._rules,
            self._tables,
            self._observation_tables,
            self._state,
            out,
            final,
        )
        if ended < 0:
            raise ValueError(
                f"actions must lie in 0..{self.spec_of_exam.num_tiers}, got {actions.min()}..{actions.max()}"
            )
        self._mask = out.action_mask
        infos = self._infos(out)
        if ended:
            infos["episode"] = {
                "r": final.reward,
                "l": final.length,
                "t": final.seconds,
                "score": final.score,
                "tokens": final.tokens,
            }
            done = out.terminated.copy()
            infos["_episode"] = done
            if self._same_step:
                infos["final_obs"] = final.observations
                infos["_final_obs"] = done
                infos["final_info"] = {
                    "action_mask": final.action_mask,
                    "tokens": out.tokens,
                    "correct": out.correct,
                    "overspent": out.overspent,
                    "episode": infos["episode"],
                    "_episode": done,
                }
                infos["_final_info"] = done
        if before is not None:
            self._record(actions, out, *before)
        return out.observations, out.rewards, out.terminated, np.zeros(self.num_envs, np.bool_), infos

    def _infos(self, out: _Outputs) -> dict[str, Any]:
        return {
            "action_mask": out.action_mask,
            "tokens": out.tokens,
            "correct": out.correct,
            "overspent": out.overspent,
        }

    @property
    def exam_ids(self) -> npt.NDArray[np.int64]:
        """(num_envs,) int64: the exams under way (a copy). ``exam_ids + num_envs`` are the next ones."""
        return self._state.environments["exam_id"].copy()

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """(num_envs, K + 1) bool: legal actions now (sb3-contrib's protocol)."""
        return self._mask.astype(bool)

    def sample_actions(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """(num_envs,) int64 actions, uniform over the legal ones."""
        actions = np.empty(self.num_envs, np.int64)
        key = rng.integers(2**63, dtype=np.uint64)
        _sample(self._mask, key, np.uint64(0), actions)
        return actions

    def _groups(self) -> npt.NDArray[np.int32]:
        """(num_envs, N) int32 published groups of the exams under way."""
        return self._state.tasks[:, :, 1].copy()

    def _scene(self, groups: npt.NDArray[np.int32]) -> Scene:
        return Scene(self.spec_of_exam, tuple(groups.tolist()), ())

    def _record(
        self,
        actions: npt.NDArray[np.int64],
        out: _Outputs,
        groups: npt.NDArray[np.int32],
        finished: npt.NDArray[np.bool_],
    ) -> None:
        """Add the step to every picture. A finished exam stays on screen until the next one's first frame."""
        for i in range(self.num_envs):
            if finished[i]:
                self._scenes[i] = self._scene(self._groups()[i])
                continue
            scene = self._scene(groups[i]) if self._scenes[i].ended else self._scenes[i]
            decision = Decision(int(actions[i]), int(out.tokens[i]), bool(out.correct[i]), bool(out.overspent[i]))
            self._scenes[i] = scene.after(decision)

    def render(self) -> tuple[Any, ...] | None:
        """One frame (``ansi``: text, ``rgb_array``: uint8 HxWx3) a sub-environment."""
        if self.render_mode is None:
            gym.logger.warn("render() called without a render_mode; pass render_mode='ansi' or 'rgb_array' to make_vec")
            return None
        draw = render_ansi if self.render_mode == "ansi" else render_rgb
        return tuple(draw(scene) for scene in self._scenes)


def _autoreset_mode(name: str) -> AutoresetMode:
    try:
        return AutoresetMode[name.upper()]
    except (KeyError, AttributeError):
        modes = [mode.name for mode in AutoresetMode]
        raise ValueError(f"autoreset_mode must be one of {modes}, got {name!r}") from None


def _checked_options(options: dict[str, Any] | None) -> dict[str, Any]:
    options = dict(options or {})
    if unknown := set(options) - {"exam_ids", "replicates"}:
        raise ValueError(f"reset options are 'exam_ids' and 'replicates', got {sorted(unknown)}")
    return options
