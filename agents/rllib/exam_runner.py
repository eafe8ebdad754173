"""One batched runner for PPO and GRPO: it takes the exams that it is told to take, each exactly once."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from agents.rllib.modules import ExamModule
from agents.rllib.registration import create, spec_of
from agents.rllib.rollouts import Job, Rollout, take_exams

Weights = dict[str, npt.NDArray[Any]]
"""A module's state by name."""


@dataclass(frozen=True)
class Answer:
    """What became of a job: a rollout or an error.

    :param token: names the iteration that asked.
    :param number: the job's number in it.
    :param cpu_seconds: that it took.
    """

    token: str
    number: int
    rollout: Rollout | None
    error: Exception | None
    cpu_seconds: float


class ExamRunner(EnvRunner, Checkpointable):
    """Takes exams as arrays (:func:`agents.rllib.rollouts.take_exams`) and returns arrays.

    It holds no place in a sequence of exams: the driver sends every job with its exams and the weights to take them
    with, so that a runner that was restarted a moment ago gives the same answer as any other. RLlib's connectors and
    its callbacks on single steps are bypassed.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.spec = spec_of(self.config.env_config)
        self.module: ExamModule
        self.observer = self.config.observer()
        self.make_env()
        self.make_module()

    def make_env(self) -> None:
        """Make an environment of width 1: it gives the spaces."""
        self.env: Any = create({**self.config.env_config, "num_envs": 1})

    def make_module(self) -> None:
        """Build the module; the weights come with every job."""
        spec = self.config.get_multi_rl_module_spec(spaces=self.get_spaces())
        self.module = spec.build()[DEFAULT_MODULE_ID]

    def assert_healthy(self) -> None:
        """See :meth:`EnvRunner.assert_healthy`."""
        assert self.module is not None

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """See :meth:`EnvRunner.get_spaces`."""
        single = (self.env.single_observation_space, self.env.single_action_space)
        return {
            INPUT_ENV_SPACES: (self.env.observation_space, self.env.action_space),
            INPUT_ENV_SINGLE_SPACES: single,
            DEFAULT_MODULE_ID: (self.config.module_space(single[0]), single[1]),
        }

    def sample(self, *, job: Job, weights: Weights | None = None, **kwargs: Any) -> Rollout:
        """Take a job's exams.

        :param weights: the module's state to use; None keeps the present one.
        """
        if weights is not None:
            self.module.set_state(weights)
        return take_exams(
            self.module.network,
            self.spec if job.budget is None else self.spec.replace(budget=job.budget),
            job,
            exam_seed=self.config.exam_seed,
            action_seed=self.config.training_seed,
            rows=self.config.exams_per_job,
            greedy=not self.config.explore,
            observer=self.observer,
        )

    def answer(self, *, job: Job, weights: Weights, token: str) -> Answer:
        """:meth:`sample` for a driver far away: errors come back as values.

        RLlib restarts a runner that raises; a job with a mistake in it would be tried again for ever.
        """
        begun = time.process_time()
        try:
            rollout, problem = self.sample(job=job, weights=weights), None
        except Exception as error:
            rollout, problem = None, error
        return Answer(token, job.number, rollout, problem, time.process_time() - begun)

    def get_metrics(self) -> Any:
        """Nothing: the driver has every rollout and computes the metrics."""
        return self.metrics.reduce()

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See :meth:`Checkpointable.get_state`."""
        state: dict[str, Any] = {}
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(**kwargs)
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """See :meth:`Checkpointable.set_state`."""
        if COMPONENT_RL_MODULE in state:
            weights = state[COMPONENT_RL_MODULE]
            self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """See :meth:`Checkpointable.get_ctor_args_and_kwargs`."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """See :meth:`Checkpointable.get_checkpointable_components`."""
        return [(COMPONENT_RL_MODULE, self.module)]

    def stop(self) -> None:
        """Close the environment."""
        self.env.close()


def job_list(
    exam_ids: npt.NDArray[np.int64],
    replicates: npt.NDArray[np.int64],
    members: npt.NDArray[np.int64],
    size: int,
    budget: int | None = None,
    first: int = 0,
) -> list[Job]:
    """Cut exams into jobs of at most ``size``, numbered from ``first``."""
    starts = range(0, len(exam_ids), size)
    parts = [(exam_ids[i : i + size], replicates[i : i + size], members[i : i + size]) for i in starts]
    return [Job(number, *part, budget) for number, part in enumerate(parts, first)]
