"""The named layout of the flat observation, and the one function that writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env.exams.config import ExamSpec
from roi_env.exams.simd import copy_row


@dataclass(frozen=True)
class Part:
    """One named part of the flat observation: ``observation[start:stop]`` in ``[low, high]``."""

    name: str
    start: int
    stop: int
    low: float
    high: float
    meaning: str

    @property
    def slice(self) -> slice:
        """The part's place in the observation."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class ObservationLayout:
    """Where every named part of the flat float32 observation lies."""

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Length of the observation."""
        return self.parts[-1].stop

    def __getitem__(self, name: str) -> slice:
        for part in self.parts:
            if part.name == name:
                return part.slice
        raise KeyError(f"no part {name!r}; parts are {[part.name for part in self.parts]}")

    def __contains__(self, name: object) -> bool:
        return any(part.name == name for part in self.parts)

    def space(self) -> gym.spaces.Box:
        """The observation space."""
        low, high = np.empty(self.size, np.float32), np.empty(self.size, np.float32)
        for part in self.parts:
            low[part.slice], high[part.slice] = part.low, part.high
        return gym.spaces.Box(low, high, dtype=np.float32)


class ObservationTables(NamedTuple):
    """What compiled code needs to write an observation."""

    beliefs: npt.NDArray[np.float32]
    """(G + 1, 2K) success probabilities, expected costs / budget; 0 columns without beliefs. Group G is what follows the
    last task: zeros."""
    features: npt.NDArray[np.float32]
    """(G, F) published features."""
    num_tiers: int
    """K."""
    shows_feedback: bool
    """Whether the previous decision is part of the observation."""
    shown: int
    """Numbers that the features of the tasks shown take: N x F with preview, else F."""


def observation_layout(spec: ExamSpec) -> ObservationLayout:
    """Layout of the observation of one kind of exam.

    Parts in order: ``remaining`` (fraction of the budget), ``position`` (fraction of the exam behind), with
    ``feedback="cost+correct"`` the ``last_action`` / K, ``last_tokens`` / budget and ``last_correct`` of the previous
    decision, with published beliefs the current task's ``success`` probability and expected ``cost`` / budget for every
    tier, and ``tasks``: the features of the current task, with preview followed by those of all later ones (zeros past
    the end).
    """
    source, parts, at = spec.source, [], 0

    def add(name: str, width: int, low: float, high: float, meaning: str) -> None:
        nonlocal at
        parts.append(Part(name, at, at + width, low, high, meaning))
        at += width

    add("remaining", 1, 0.0, 1.0, "remaining budget / budget")
    add("position", 1, 0.0, 1.0, "tasks behind / tasks of the exam")
    if spec.feedback == "cost+correct":
        add("last_action", 1, 0.0, 1.0, "previous action / number of tiers")
        add("last_tokens", 1, 0.0, 1.0, "tokens paid by the previous action / budget")
        add("last_correct", 1, 0.0, 1.0, "1 if the previous answer was right")
    tables = observation_tables(spec)
    if spec.beliefs == "published":
        k = source.num_tiers
        add("success", k, 0.0, 1.0, "believed probability of a right answer, by tier")
        add("cost", k, 0.0, max(1.0, float(tables.beliefs[:, k:].max())), "believed mean tokens / budget, by tier")
    low, high = min(0.0, float(source.group_features.min())), max(1.0, float(source.group_features.max()))
    shown = "of the current and all later tasks" if spec.preview else "of the current task"
    names = ", ".join(source.feature_names)
    add("tasks", tables.shown, low, high, f"features ({names}) {shown}")
    return ObservationLayout(tuple(parts))


def observation_tables(spec: ExamSpec) -> ObservationTables:
    """Arrays from which observations of this kind of exam are written."""
    source = spec.source
    if spec.beliefs == "published":
        laws = source.beliefs
        beliefs = np.concatenate([laws.success_probability, laws.expected_cost / spec.budget], 1).astype(np.float32)
    else:
        beliefs = np.empty((source.num_groups, 0), np.float32)
    window = spec.num_tasks if spec.preview else 1
    return ObservationTables(
        np.concatenate([beliefs, np.zeros((1, beliefs.shape[1]), np.float32)]),
        np.array(source.group_features, np.float32, order="C"),
        source.num_tiers,
        spec.feedback == "cost+correct",
        window * source.group_features.shape[1],
    )


def padded_features(num_envs: int, spec: ExamSpec) -> npt.NDArray[np.float32]:
    """(num_envs, F * (N + tasks shown)) float32 zeros: room for :func:`fill_features`."""
    shown = spec.num_tasks if spec.preview else 1
    return np.zeros((num_envs, spec.source.group_features.shape[1] * (spec.num_tasks + shown)), np.float32)


@njit(cache=True, inline="always")
def fill_features(
    padded: npt.NDArray[np.float32], row: np.uint64, group: np.uint64, position: np.uint64, tables: ObservationTables
) -> None:
    """Put the features of the task at ``position`` into its place in ``padded[row]``."""
    width = np.uint64(tables.features.shape[1])
    copy_row(padded, row, position * width, tables.features, group, np.uint64(0), width)


@njit(cache=True, inline="always", error_model="numpy")
def write_observation(
    out: npt.NDArray[np.float32],
    row: np.uint64,
    padded: npt.NDArray[np.float32],
    exam: np.uint64,
    group: np.uint64,
    position: np.uint64,
    num_tasks: np.uint64,
    remaining: int,
    budget: int,
    last_action: int,
    last_tokens: int,
    last_correct: bool,
    tables: ObservationTables,
) -> None:
    """Write the observation before task ``position`` (N: the terminal one) into ``out[row]``, float32.

    ``padded[exam]`` holds the exam's features followed by zeros; ``group`` is the task's group (at the end G). Rows
    are indexed, not sliced (a view costs a reference count), and with unsigned numbers (signed ones cost a test for
    Python's negative indexing).
    """
    out[row, np.uint64(0)] = remaining * (1.0 / budget)  # the division leaves the caller's loop
    out[row, np.uint64(1)] = position * (1.0 / num_tasks)
    at = np.uint64(2)
    if tables.shows_feedback:
        out[row, np.uint64(2)] = last_action / tables.num_tiers
        out[row, np.uint64(3)] = last_tokens * (1.0 / budget)
        out[row, np.uint64(4)] = last_correct
        at = np.uint64(5)
    believed, width = np.uint64(tables.beliefs.shape[1]), np.uint64(tables.features.shape[1])
    copy_row(out, row, at, tables.beliefs, group, np.uint64(0), believed)
    copy_row(out, row, at + believed, padded, exam, position * width, np.uint64(tables.shown))


@njit(cache=True)
def observe(
    groups: npt.NDArray[np.int32],
    padded: npt.NDArray[np.float32],
    exam: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    remaining: npt.NDArray[np.int64],
    budget: int,
    last_action: npt.NDArray[np.int64],
    last_tokens: npt.NDArray[np.int64],
    last_correct: npt.NDArray[np.bool_],
    tables: ObservationTables,
    size: int,
) -> npt.NDArray[np.float32]:
    """(D, size) float32 observations of D decisions: ``exam`` indexes ``groups`` (E, N), the rest is per decision.

    ``padded`` is (E, ...) from :func:`padded_features`; it is filled here.
    """
    num_exams, num_tasks = groups.shape
    for e in range(np.uint64(num_exams)):
        for n in range(np.uint64(num_tasks)):
            fill_features(padded, e, np.uint64(groups[e, n]), n, tables)
    out = np.empty((len(exam), size), np.float32)
    for d in range(np.uint64(len(exam))):
        group = np.uint64(groups[exam[d], position[d]] if position[d] < num_tasks else len(tables.beliefs) - 1)
        write_observation(
            out,
            d,
            padded,
            np.uint64(exam[d]),
            group,
            np.uint64(position[d]),
            np.uint64(num_tasks),
            remaining[d],
            budget,
            last_action[d],
            last_tokens[d],
            last_correct[d],
            tables,
        )
    return out


def observations_of(groups: npt.NDArray[np.int32], spec: ExamSpec) -> npt.NDArray[np.float32]:
    """(E, N + 1, size) float32: what exams of these groups (E, N) show at every position, the terminal one included.

    All but what depends on decisions: ``remaining`` and the previous decision are 0.
    """
    exams, positions = len(groups), groups.shape[1] + 1
    nothing = np.zeros(exams * positions, np.int64)
    rows = observe(
        groups,
        padded_features(exams, spec),
        np.repeat(np.arange(exams), positions),
        np.tile(np.arange(positions), exams),
        nothing,
        spec.budget,
        nothing,
        nothing,
        nothing.astype(np.bool_),
        observation_tables(spec),
        observation_layout(spec).size,
    )
    return rows.reshape(exams, positions, -1)
