"""Learners: minibatches of whole exams, PPO's loss (RLlib's own) and GRPO's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.schedules.scheduler import Scheduler

from agents.base import AgentError
from agents.rllib import losses
from agents.rllib._ray_private import OwnMinibatches
from agents.rllib.modules import ANCHORS, SEQUENCE, WRITTEN
from agents.rllib.networks import on_threads

REFERENCE = "reference"
"""Key of the frozen reference policy in a learner's state."""


def minibatch_order(seed: int, update: int, epoch: int, learner: int, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(size,) order of a learner's exams in one epoch: a function of its name, so that a restored run continues."""
    return np.random.default_rng((seed, update, epoch, learner)).permutation(size)


class WholeExams(OwnMinibatches):
    """Cuts batches into minibatches of whole exams, equally many on every learner.

    RLlib's own iterator shuffles single decisions: ratios and averages over an exam would be wrong, and learners whose
    exams differ in length would take different numbers of steps and wait for one another for ever.
    """

    def build(self) -> None:
        """See :meth:`Learner.build`."""
        super().build()
        self._reference: Any = None

    def device_of(self, module: Any) -> torch.device:
        """A language model is on the GPU of its process already, where there is one."""
        return next(module[DEFAULT_MODULE_ID].parameters()).device

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """See :meth:`Learner.before_gradient_based_update`; the policy at the first update is the reference."""
        super().before_gradient_based_update(timesteps=timesteps)
        if max(self.config.kl_coeff, self.config.anchor_coeff) > 0 and self._reference is None:
            self._freeze(self.module[DEFAULT_MODULE_ID].unwrapped().get_state())

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`Learner.update`; on the network's own number of threads."""
        with on_threads(self.module[DEFAULT_MODULE_ID].unwrapped().network.threads):
            return super().update(*args, **kwargs)

    def apply_gradients(self, gradients_dict: dict[Any, torch.Tensor]) -> None:
        """See :meth:`Learner.apply_gradients`. RLlib takes what is not a number for zero and goes on with what is left.

        :raises AgentError: where a gradient is not a number.
        """
        if not all(
            bool(torch.isfinite(gradient).all()) for gradient in gradients_dict.values() if gradient is not None
        ):
            raise AgentError(
                f"training diverged in iteration {self.update_number + 1}: its gradients are not numbers (nan or inf). Choose a smaller lr "
                "(--param lr=0.0001, say) and another folder; a checkpoint in this one is of the iteration before"
            )
        super().apply_gradients(gradients_dict)

    def get_parameters(self, module: Any) -> list[Any]:
        """See :meth:`Learner.get_parameters`; those that learn."""
        return [parameter for parameter in super().get_parameters(module) if parameter.requires_grad]

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """See :meth:`Learner.get_state`."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._reference is not None and self._check_component(REFERENCE, components, not_components):
            state[REFERENCE] = self._reference.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """See :meth:`Learner.set_state`; on a copy.

        Arrays from Ray's object store are the same memory for all learners of a node, and the optimiser would keep them
        as its own and write into them.
        """
        super().set_state(copy.deepcopy(state))
        if REFERENCE in state:
            self._freeze(state[REFERENCE])

    def _freeze(self, weights: dict[str, Any]) -> None:
        self._reference = self.module[DEFAULT_MODULE_ID].unwrapped().frozen(weights)
        self._announced: dict[bytes, torch.Tensor] = {}  # by the reference: it never changes

    def _anchor_loss(self, batch: dict[str, Any], fwd_out: dict[str, Any]) -> torch.Tensor | float:
        """KL(reference || policy) at the anchors of the batch's questions (:class:`agents.rllib.language.LMExamModule`),
        weighted."""
        if self.config.anchor_coeff == 0:
            return 0.0
        with torch.no_grad():
            reference = self._reference.anchors(batch, self._announced)
        legal = torch.ones_like(reference, dtype=torch.bool)
        divergence = losses.kl_exact(reference, fwd_out[ANCHORS], legal).mean()
        self.metrics.log_value((DEFAULT_MODULE_ID, "anchor_kl"), divergence.detach(), window=1)
        return self.config.anchor_coeff * divergence  # type: ignore[no-any-return]

    def minibatches(self, batch: Any, epochs: int, size: int | None) -> Iterator[MultiAgentBatch]:
        """See :meth:`OwnMinibatches.minibatches`."""
        if isinstance(batch, MultiAgentBatch):
            batch = batch.policy_batches[DEFAULT_MODULE_ID]
        columns = {name: _tensors(values, self.device) for name, values in batch.items()}
        sequence = batch[SEQUENCE]
        length = np.bincount(sequence)
        first = np.cumsum(length) - length
        size = size or len(length)
        for epoch in range(epochs):
            together = self.config.group_size if self.config.whole_groups else 1
            groups = len(length) // together
            order = minibatch_order(self.config.training_seed, self.update_number, epoch, self.number, groups)
            order = (order[:, None] * together + np.arange(together)).ravel()
            for start in range(0, len(order), size):
                exams = order[start : start + size]
                count = length[exams]
                within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
                rows = torch.from_numpy(np.repeat(first[exams], count) + within).to(self.device)
                part = {name: _take(values, rows) for name, values in columns.items()}
                part[SEQUENCE] = torch.from_numpy(np.repeat(np.arange(len(exams)), count)).to(self.device)
                yield MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(part)}, env_steps=len(rows))

    def _share(self, count: int) -> float:
        """This learner's ``count`` relative to the learners' mean.

        Gradients are averaged over learners: a loss that is a mean over ``count`` things, times this, is averaged to
        the mean over all learners' things.
        """
        if self.config.num_learners < 2:
            return 1.0
        total = torch.tensor(float(count), device=self.device)
        torch.distributed.all_reduce(total)
        return float(count * self.config.num_learners / total)


def _tensors(values: Any, device: Any) -> Any:
    if isinstance(values, dict):
        return {name: _tensors(value, device) for name, value in values.items()}
    return torch.from_numpy(np.require(values, requirements="W")).to(device)


def _take(values: Any, rows: torch.Tensor) -> Any:
    if isinstance(values, dict):
        return {name: _take(value, rows) for name, value in values.items()}
    return values[rows]


class ExamPPOLearner(WholeExams, PPOTorchLearner):
    """RLlib's PPO loss on whole exams."""

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """See :meth:`Learner.before_gradient_based_update`."""
        super().before_gradient_based_update(timesteps=timesteps)
        # RLlib does so after an update only: a restored run would begin with the schedule's first value.
        scheduler = self.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID]
        scheduler.update(timestep=timesteps[NUM_ENV_STEPS_SAMPLED_LIFETIME])

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """See :meth:`PPOTorchLearner.compute_loss_for_module`."""
        loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        return loss * self._share(len(batch[Columns.ACTIONS])) + self._anchor_loss(batch, fwd_out)


class GRPOTorchLearner(WholeExams):
    """Clipped surrogate on given advantages, entropy bonus, KL to a frozen reference (the policy at the first update)."""

    def build(self) -> None:
        """See :meth:`Learner.build`."""
        super().build()
        self._entropy_coeff = Scheduler(fixed_value_or_schedule=self.config.entropy_coeff, framework="torch")

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """See :meth:`Learner.before_gradient_based_update`."""
        super().before_gradient_based_update(timesteps=timesteps)
        self._entropy_coeff.update(timestep=timesteps[NUM_ENV_STEPS_SAMPLED_LIFETIME])

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """See :meth:`Learner.compute_loss_for_module`."""
        taken = self._taken(batch, fwd_out)
        log_ratio = losses.log_ratio(taken.logp, taken.old_logp, taken.sequence, config.ratio)
        surrogate = losses.clipped_surrogate(
            log_ratio, taken.advantages, config.clip_param, config.clip_high or config.clip_param
        )
        total = surrogate - self._entropy_coeff.get_current_value() * taken.entropy
        metrics = {
            POLICY_LOSS_KEY: surrogate.mean(),
            ENTROPY_KEY: taken.entropy.mean(),
            "mean_ratio_distance": (log_ratio.exp() - 1).abs().mean(),
        }
        if config.kl_coeff > 0:
            with torch.no_grad():
                reference = self._reference.forward_train(batch)
            divergence = self._divergence(batch, fwd_out, reference)
            total = total + config.kl_coeff * divergence
            metrics["mean_reference_kl"] = divergence.mean()
        self.metrics.log_dict({name: value.detach() for name, value in metrics.items()}, key=module_id, window=1)
        loss = losses.aggregate(total, taken.sequence, config.aggregation, config.longest)
        # Learners have equally many exams, not equally many decisions.
        loss = loss * self._share(len(taken.logp)) if config.aggregation == "token" else loss
        return loss + self._anchor_loss(batch, fwd_out)

    def _taken(self, batch: dict[str, Any], fwd_out: dict[str, Any]) -> Taken:
        """What the loss is of: the batch's decisions."""
        logits, mask = fwd_out[Columns.ACTION_DIST_INPUTS], batch[Columns.OBS]["action_mask"] > 0.5
        return Taken(
            _of(logits, batch[Columns.ACTIONS]),
            batch[Columns.ACTION_LOGP],
            batch[Postprocessing.ADVANTAGES],
            batch[SEQUENCE],
            losses.entropy(logits, mask),
        )

    def _divergence(
        self, batch: dict[str, Any], fwd_out: dict[str, Any], reference_out: dict[str, Any]
    ) -> torch.Tensor:
        """(T,) divergence from the reference at every decision."""
        logits, reference = fwd_out[Columns.ACTION_DIST_INPUTS], reference_out[Columns.ACTION_DIST_INPUTS]
        if self.config.kl == "exact":
            return losses.kl_exact(logits, reference, batch[Columns.OBS]["action_mask"] > 0.5)
        actions = batch[Columns.ACTIONS]
        return losses.kl_k3(_of(logits, actions), _of(reference, actions))


class Taken(NamedTuple):
    """T actions of whole exams (decisions, or tokens of transcripts), (T,) each; ``sequence`` numbers their exams."""

    logp: torch.Tensor
    old_logp: torch.Tensor
    advantages: torch.Tensor
    sequence: torch.Tensor
    entropy: torch.Tensor


class TranscriptGRPOLearner(GRPOTorchLearner):
    """GRPO's loss over the tokens of transcripts: a row of the batch is an exam, the prompt is no part of the loss."""

    def _taken(self, batch: dict[str, Any], fwd_out: dict[str, Any]) -> Taken:
        written = batch[WRITTEN]
        return Taken(
            fwd_out[Columns.ACTION_LOGP],
            batch[Columns.ACTION_LOGP][written],
            batch[Postprocessing.ADVANTAGES][written],
            written.nonzero()[:, 0],
            fwd_out[ENTROPY_KEY],
        )

    def _divergence(
        self, batch: dict[str, Any], fwd_out: dict[str, Any], reference_out: dict[str, Any]
    ) -> torch.Tensor:
        return losses.kl_k3(fwd_out[Columns.ACTION_LOGP], reference_out[Columns.ACTION_LOGP])


def _of(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """(T,) entries of ``logits`` (T, A), log-probabilities already, at ``actions`` (T,)."""
    return logits.gather(1, actions[:, None]).squeeze(1)
