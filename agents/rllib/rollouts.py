"""Taking training exams in batches: what a runner does with a network, without Ray.

Every result is a function of (network, specification, seeds, exam ids, replicates, rows of a forward pass): never of who
ran it or of what ran beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from agents.base import Agent, DecisionView, ExamsView, Problem, Probs, one_hot, public_problem
from agents.playing import action_numbers, pick_actions, rollout
from agents.rllib.losses import masked_log_softmax
from agents.rllib.networks import on_threads
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import draw_exams


@dataclass(frozen=True)
class Job:
    """Exams to take: E of them, in one batch.

    :param number: the job's place among those of its iteration.
    :param exam_ids: (E,) int64.
    :param replicates: (E,) int64, which name the outcomes.
    :param members: (E,) int64, which with the exam ids name the actions' random numbers.
    :param budget: tokens; None: as the kind of exam says.
    """

    number: int
    exam_ids: npt.NDArray[np.int64]
    replicates: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]
    budget: int | None = None

    def __len__(self) -> int:
        return len(self.exam_ids)


@dataclass(frozen=True)
class Rollout:
    """E exams taken, T decisions in all: exam by exam, each from its first decision to its last.

    :param exam_ids: (E,) int64.
    :param replicates: (E,) int64.
    :param length: (E,) int64 decisions, at least 1; they sum to T.
    :param observations: (T, size) float32, or what another observer gives.
    :param mask: (T, K + 1) bool legal actions.
    :param actions: (T,) int64.
    :param logits: (T, K + 1) float32 log-probabilities when the actions were drawn; a large negative number where masked.
    :param logp: (T,) float32 those of the actions.
    :param values: (T,) float32 the critic's values (0 without one), in units of scaled reward.
    :param rewards: (T,) float64 the specification's own reward.
    :param scores: (T,) float64 score earned.
    :param tokens: (T,) int64 paid.
    :param overspent: (T,) bool.
    """

    exam_ids: npt.NDArray[np.int64]
    replicates: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    observations: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    actions: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    logp: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    overspent: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.exam_ids)

    @property
    def steps(self) -> int:
        """Number of decisions T."""
        return len(self.actions)

    @property
    def sequence(self) -> npt.NDArray[np.int64]:
        """(T,) int64 row of every decision's exam."""
        return np.repeat(np.arange(len(self)), self.length)

    def reached(self, num_tasks: int) -> npt.NDArray[np.bool_]:
        """(E, N) bool: decisions taken."""
        return np.arange(num_tasks) < self.length[:, None]

    def by_exam(self, values: npt.NDArray[Any], num_tasks: int) -> npt.NDArray[Any]:
        """(E, N) ``values`` (T,) by exam and position, 0 where not reached."""
        out = np.zeros((len(self), num_tasks), values.dtype)
        out[self.reached(num_tasks)] = values
        return out


AnyRollout = TypeVar("AnyRollout", bound=Any)


def concatenate(parts: Sequence[AnyRollout]) -> AnyRollout:
    """One rollout (a dataclass of arrays) of several, in their order."""
    kind = type(parts[0])
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})  # type: ignore[no-any-return]


class Network(Protocol):
    """What takes exams: :class:`agents.rllib.networks.PolicyNetwork`, or a language model."""

    threads: int
    """Of the CPU that it computes on in training."""

    def start(self, size: int) -> torch.Tensor:
        """State before an exam's first decision."""

    def __call__(
        self, observations: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Logits, values or None, and the state after one decision of every exam."""


class Observer:
    """What a network sees of decisions: the flat observation. Others see other things (:mod:`agents.rllib.language`)."""

    def start(self, exams: ExamsView) -> None:
        """Prepare for a batch of exams."""

    def __call__(self, view: DecisionView) -> npt.NDArray[Any]:
        """(D, size)."""
        return view.observations


class _Recorder(Agent):
    """Plays actions drawn from a network's distribution and keeps what the learner needs of every decision.

    :param numbers: (E, N) uniform numbers that pick the actions; None: the most probable one is played (ties: the first).
    """

    name = "recorder"

    def __init__(
        self,
        problem: Problem,
        network: Network,
        observer: Observer,
        rows: int,
        numbers: npt.NDArray[np.float64] | None,
    ) -> None:
        super().__init__(problem)
        self.network = network
        self.observer = observer
        self.numbers = numbers
        self.rows = rows
        self.records: list[tuple[npt.NDArray[Any], ...]] = []

    def start(self, exams: ExamsView) -> torch.Tensor:
        if len(exams) > self.rows:
            raise ValueError(f"a job of {len(exams)} exams does not fit in forward passes of {self.rows} rows")
        self.observer.start(exams)
        return self.network.start(self.rows)

    def act(self, view: DecisionView, state: torch.Tensor) -> tuple[Probs, torch.Tensor]:
        # Exams keep their rows to the end. Those of finished ones see what the first exam sees: a language model reads
        # equal prompts once, and prompts that share nothing with the others would cost it a second reading of all.
        observations, mask = self.observer(view), view.mask
        seen = torch.from_numpy(observations)
        rows = seen[:1].repeat(self.rows, 1)
        legal = torch.ones(self.rows, mask.shape[1], dtype=torch.bool)
        place = torch.from_numpy(view.exam)
        rows[place] = seen
        legal[place] = torch.from_numpy(mask)
        logits, values, state = self.network(rows, state)
        logp = masked_log_softmax(logits.cpu(), legal)[place].numpy()
        valued = np.zeros(len(view), np.float32) if values is None else values.cpu()[place].numpy()
        self.records.append((view.exam, observations, mask, logp, valued))
        probs = np.where(mask, np.exp(logp.astype(np.float64)), 0.0)
        if self.numbers is None:
            actions = np.where(mask, probs, -1.0).argmax(1)
        else:
            actions = pick_actions(probs / probs.sum(1, keepdims=True), self.numbers[view.exam, view.position])
        return one_hot(actions, mask.shape[1]), state


def take_exams(
    network: Network,
    spec: ExamSpec,
    job: Job,
    *,
    exam_seed: int,
    action_seed: int,
    rows: int,
    observer: Observer | None = None,
    greedy: bool = False,
) -> Rollout:
    """Let a network take a job's exams, once each, actions drawn from its distribution.

    Actions are drawn with numbers named by (``action_seed``, exam id, member, position).

    :param rows: rows of every forward pass, at least the job's number of exams.
    :param observer: what the network sees; default: the flat observation.
    :param greedy: play the most probable action instead.
    """
    numbers = None if greedy else action_numbers(np.uint64(action_seed), job.exam_ids, job.members, spec.num_tasks)
    recorder = _Recorder(public_problem(spec), network, observer or Observer(), rows, numbers)
    batch = draw_exams(spec, exam_seed, job.exam_ids, job.replicates)
    with torch.no_grad(), on_threads(network.threads):
        records = rollout(recorder, batch, chunk=len(job))
    reached = records.reached
    # Recorded position by position; wanted exam by exam.
    exam = np.concatenate([record[0] for record in recorder.records])
    order = np.argsort(exam, kind="stable")
    observations, mask, logp, values = (
        np.concatenate([record[i] for record in recorder.records])[order] for i in range(1, 5)
    )
    actions = records.action[reached]
    return Rollout(
        exam_ids=job.exam_ids,
        replicates=job.replicates,
        length=reached.sum(1),
        observations=observations,
        mask=mask,
        actions=actions,
        logits=logp,
        logp=logp[np.arange(len(actions)), actions],
        values=values,
        rewards=records.reward[reached],
        scores=records.value[reached],
        tokens=records.tokens[reached],
        overspent=records.overspent[reached],
    )


def generalised_advantages(
    rewards: npt.NDArray[np.floating],
    values: npt.NDArray[np.floating],
    reached: npt.NDArray[np.bool_],
    lambda_: float,
) -> npt.NDArray[np.float64]:
    """Generalised advantage estimates, undiscounted (Schulman et al. 2016, arXiv 1506.02438, eq. 16 with gamma = 1).

    Exams end: the value after their last decision is 0.

    :param rewards: (E, N).
    :param values: (E, N) the critic's values.
    :param reached: (E, N) bool.
    :param lambda_: in [0, 1]; 1 compares the whole return-to-go with the value.
    :returns: (E, N) float64, 0 where not reached.
    """
    size, num_tasks = rewards.shape
    known = np.where(reached, values, 0.0).astype(np.float64)
    out = np.zeros((size, num_tasks))
    following, ahead = np.zeros(size), np.zeros(size)
    for n in reversed(range(num_tasks)):
        ahead = np.where(reached[:, n], rewards[:, n] + following - known[:, n] + lambda_ * ahead, 0.0)
        following = known[:, n]
        out[:, n] = ahead
    return out


def task_reward_scale(spec: ExamSpec) -> float:
    """Factor that makes the mean weight of a task 1: hyper-parameters then mean the same whatever the weights are."""
    weights = spec.source.group_weight[spec.source.row_group]
    return float(1.0 / weights.mean())
