"""Our network as an RLlib module: masked, with or without a critic, with or without memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from agents.rllib.losses import masked_log_softmax
from agents.rllib.networks import PolicyNetwork

SEQUENCE = "sequence"
"""Column that numbers the exam of every decision in a batch of whole exams."""

WRITTEN = "written"
"""Column that says which places of a transcript's row hold a token, in batches whose rows are exams."""

ANCHORS = "anchors"
"""Output of a language model in training: log-probabilities at its anchor, a row a question."""


class ExamModule(TorchRLModule, ValueFunctionAPI):
    """A :class:`PolicyNetwork` over ``{"observations", "action_mask"}``.

    ``model_config``: ``hidden``, ``critic``, ``memory``, ``seed``, ``centre``, ``spread`` as in :class:`PolicyNetwork`. It reads the batch and
    never changes it. Without memory it also works with RLlib's own runner and connectors; with memory it needs batches
    of whole exams (column ``sequence``), which the exam runner gives.
    """

    network: Any

    def setup(self) -> None:
        """Build the network."""
        config = self.model_config
        self.network = PolicyNetwork(
            self.observation_space["observations"].shape[0],
            int(self.action_space.n),
            config["hidden"],
            critic=config["critic"],
            memory=config["memory"],
            seed=config["seed"],
            centre=config["centre"],
            spread=config["spread"],
        )

    def frozen(self, weights: dict[str, Any]) -> ExamModule:
        """A copy with other weights that does not learn."""
        other = copy.deepcopy(self)
        other.set_state(weights)
        other.requires_grad_(False)
        return other

    def _heads(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        observations = batch[Columns.OBS]["observations"]
        if not self.network.memory:
            logits, values, _ = self.network(observations, observations[:, :0])
        elif SEQUENCE in batch:
            logits, values = self.network.whole(observations, batch[SEQUENCE])
        else:
            raise ValueError("a module with memory learns from whole exams: use the exam runner (ExamRunner)")
        return masked_log_softmax(logits, batch[Columns.OBS]["action_mask"] > 0.5), values

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self._heads(batch)[0]}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        logits, values = self._heads(batch)
        out = {Columns.ACTION_DIST_INPUTS: logits}
        if values is not None:
            # PPO's loss hands the embeddings on to compute_values. Values computed inside this pass keep every
            # parameter in sight of DistributedDataParallel.
            out[Columns.EMBEDDINGS] = values
        return out

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """(T,) values.

        :raises ValueError: without a critic.
        """
        values = self._heads(batch)[1] if embeddings is None else embeddings
        if values is None:
            raise ValueError("this module was built without a critic")
        return values  # type: ignore[no-any-return]
