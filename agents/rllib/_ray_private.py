"""Everything that we use of Ray and RLlib beyond their public names, in one place: what to read again with a new release."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ray.core.generated.gcs_pb2 import ActorTableData
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch

CHECKED: Final = "2.60"
"""Ray's release that these names were checked on; `pyproject.toml` admits no other."""


def manager_of(group: Any) -> Any:
    """The manager of a group of environment runners: who is healthy, and calls that nobody waits for."""
    return group._worker_manager


def lost(manager: Any, runner: int) -> bool:
    """Whether Ray knows already that a runner is gone."""
    return manager.actors()[runner]._get_local_state() not in (None, ActorTableData.ALIVE)


def calls_under_way(manager: Any, tag: str) -> list[Any]:
    """References of the calls with this tag that nobody has fetched yet."""
    return manager._filter_calls_by_tag(tag)[0]  # type: ignore[no-any-return]


class OwnEvaluation(Algorithm):
    """An algorithm with an evaluation of its own."""

    def evaluate_here(self, env_runner: Any) -> tuple[None, int, int, list[Any]]:
        """Evaluate in this process: ``(None, environment steps, agent steps, [])``; results go into ``self.metrics``."""
        raise NotImplementedError

    def evaluate_remotely(self) -> tuple[None, int, int, list[Any]]:
        """Evaluate with the runners of ``self.eval_env_runner_group``; returns as :meth:`evaluate_here`."""
        raise NotImplementedError

    def _evaluate_on_local_env_runner(self, env_runner: Any) -> tuple[None, int, int, list[Any]]:
        return self.evaluate_here(env_runner)

    def _evaluate_with_fixed_duration(self) -> tuple[None, int, int, list[Any]]:
        return self.evaluate_remotely()


class OwnMinibatches(TorchLearner):
    """A learner that cuts its batches itself and stays on the device that its module is on."""

    def minibatches(self, batch: Any, epochs: int, size: int | None) -> Iterator[MultiAgentBatch]:
        """Cut a batch into the minibatches of all epochs."""
        raise NotImplementedError

    def device_of(self, module: Any) -> Any:
        """The device of a module."""
        raise NotImplementedError

    @property
    def number(self) -> int:
        """Which of the learners this is."""
        return getattr(self, "_learner_index", None) or 0

    @property
    def update_number(self) -> int:
        """How many updates there were before this one."""
        return self._weights_seq_no  # type: ignore[no-any-return]

    def _map_module_to_device(self, module: Any) -> None:
        # RLlib would ask Ray for the device, and start one to ask.
        self._device = self.device_of(module)

    def _create_iterator_if_necessary(
        self, *, training_data: TrainingData, num_epochs: int = 1, minibatch_size: int | None = None, **kwargs: Any
    ) -> Iterator[MultiAgentBatch]:
        return self.minibatches(training_data.batch, num_epochs, minibatch_size)
