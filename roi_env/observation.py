"""The named layout of the flat observation, and the one function that writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from numba import njit

from roi_env.exam import ExamSpec


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
    """(G, 2K) success probabilities, expected costs / budget; (G, 0) without beliefs."""
    features: npt.NDArray[np.float32]
    """(G, F) published features."""
    window: int
    """Tasks shown: N with preview, 1 without."""
    memory: int
    """Numbers of feedback shown: 3 or 0."""
    num_tiers: int


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
    add("tasks", tables.window * source.group_features.shape[1], low, high, f"features ({names}) {shown}")
    return ObservationLayout(tuple(parts))


def observation_tables(spec: ExamSpec) -> ObservationTables:
    """Arrays from which observations of this kind of exam are written."""
    source = spec.source
    if spec.beliefs == "published":
        laws = source.beliefs
        beliefs = np.concatenate([laws.success_probability, laws.expected_cost / spec.budget], 1).astype(np.float32)
    else:
        beliefs = np.empty((source.num_groups, 0), np.float32)
    return ObservationTables(
        np.ascontiguousarray(beliefs),
        np.ascontiguousarray(source.group_features),
        spec.num_tasks if spec.preview else 1,
        3 if spec.feedback == "cost+correct" else 0,
        source.num_tiers,
    )


@njit(cache=True)
def write_observation(
    out: npt.NDArray[np.float32],
    groups: npt.NDArray[np.int32],
    position: int,
    remaining: int,
    budget: int,
    last_action: int,
    last_tokens: int,
    last_correct: bool,
    tables: ObservationTables,
) -> None:
    """Write the observation before task ``position`` (``len(groups)``: the terminal one) into ``out`` (D,) float32."""
    num_tasks = len(groups)
    out[0] = remaining / budget
    out[1] = position / num_tasks
    at = 2
    if tables.memory:
        out[2] = last_action / tables.num_tiers
        out[3] = last_tokens / budget
        out[4] = last_correct
        at = 5
    width = tables.beliefs.shape[1]
    if position < num_tasks:
        for j in range(width):
            out[at + j] = tables.beliefs[groups[position], j]
    else:
        for j in range(width):
            out[at + j] = 0.0
    at += width
    shown = min(tables.window, num_tasks - position)
    count = tables.features.shape[1]
    for n in range(shown):
        for j in range(count):
            out[at] = tables.features[groups[position + n], j]
            at += 1
    out[at:] = 0.0


@njit(cache=True)
def observe(
    groups: npt.NDArray[np.int32],
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
    """(D, size) float32 observations of D decisions: ``exam`` indexes ``groups`` (E, N), the rest is per decision."""
    out = np.empty((len(exam), size), np.float32)
    for d in range(len(exam)):
        write_observation(
            out[d],
            groups[exam[d]],
            position[d],
            remaining[d],
            budget,
            last_action[d],
            last_tokens[d],
            last_correct[d],
            tables,
        )
    return out
