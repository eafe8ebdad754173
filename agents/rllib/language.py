"""A language model in the place of the policy network: what it sees, and the RLlib module around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from agents.base import AgentError, DecisionView, ExamsView
from agents.llm.decisions.policy import ExamPrompts, LMPolicy, load_tokenizer
from agents.llm.decisions.tag_logits import Ids, PromptEncoder, joined
from agents.llm.prompts import ample_states
from agents.rllib.losses import masked_log_softmax
from agents.rllib.modules import ANCHORS, ExamModule
from agents.rllib.rollouts import Observer
from roi_env.exams.config import ExamSpec


def source_texts(spec: ExamSpec) -> tuple[str, ...]:
    """The questions of a kind of exam.

    :raises AgentError: where they have no texts, or one of them has none.
    """
    if not spec.source.texts:
        raise AgentError(
            f"{spec.source.name} has no question texts: a language model trains on recorded outcomes that have them "
            "(--family tinylm, or --table FILE)"
        )
    if blank := sum(not text for text in spec.source.texts):
        raise AgentError(
            f"{blank} questions of {spec.source.name} have no text, and a language model learns from texts: choose other --dataset, "
            "or give a --table with all texts"
        )
    return spec.source.texts


class PromptObserver(Observer):
    """Encoded decision prompts (:mod:`agents.llm.decisions.tag_logits`) of one width.

    :param model: whose tokenizer encodes them.
    :param spec: kind of exam.
    :param bits: see :func:`agents.llm.decisions.tag_logits.bucketed`.
    :raises ValueError: where its questions have no texts.
    """

    def __init__(self, model: str, spec: ExamSpec, bits: int) -> None:
        tokenizer = load_tokenizer(model)
        self._encoder = PromptEncoder(tokenizer, bits, spec.num_tiers + 1)
        texts = source_texts(spec)
        self.anchors = self._encoder.states(*np.array(ample_states(int(spec.source.level_edges.max()))).T)
        self.widths = (
            self._encoder.questions(texts).shape[1],
            max(self._encoder.state_width(spec.budget, spec.num_tasks), self.anchors.shape[1]),
        )
        self.space = gym.spaces.Box(-1, len(tokenizer) - 1, (sum(self.widths),), np.int32)

    def start(self, exams: ExamsView) -> None:
        """See :meth:`Observer.start`."""
        self._prompts = ExamPrompts(self._encoder, exams)

    def __call__(self, view: DecisionView) -> Ids:
        """(D, sum of widths) int32."""
        return self._prompts.of(view, self.widths)


@dataclass(frozen=True)
class LanguageSettings:
    """Which language model learns, and how; see :class:`agents.llm.decisions.policy.LMPolicy`."""

    model: str
    bits: int = 0
    lora: int = 0
    layers: int = 0
    dtype: str = "float32"
    recompute: bool = False
    temperature: float = 1.0
    threads: int = 1

    def observer(self, spec: ExamSpec) -> PromptObserver:
        """What the model sees."""
        return PromptObserver(self.model, spec, self.bits)

    def module_spec(self, spec: ExamSpec, *, critic: bool, seed: int, anchored: bool) -> RLModuleSpec:
        """The module to build; ``anchored``: with anchors in training, see :class:`LMExamModule`."""
        observer = self.observer(spec)
        policy = self.policy_config(observer.widths[0], critic, seed)
        config = {"policy": policy, "anchors": observer.anchors if anchored else None}
        return RLModuleSpec(module_class=LMExamModule, model_config=config)

    def policy_config(self, question_width: int, critic: bool, seed: int) -> dict[str, Any]:
        """Arguments of :class:`agents.llm.decisions.policy.LMPolicy`."""
        names = ("model", "lora", "layers", "dtype", "recompute", "temperature", "threads")
        own = {name: getattr(self, name) for name in names}
        return own | {"question_width": question_width, "critic": critic, "seed": seed}


Announced = dict[bytes, torch.Tensor]
"""(actions,) log-probabilities of a policy that does not learn, by prompt."""


class LMExamModule(ExamModule):
    """An :class:`LMPolicy` over ``{"observations", "action_mask"}``; its state is what is trained (LoRA's weights alone
    with LoRA: every process builds the same model from the same files).

    In training it also says what it thinks of every question of the batch at an *anchor*, a state in which nothing is
    scarce (:func:`agents.llm.prompts.ample_states`, in turn): kept as it was, self-assessment outlives what exams teach.
    """

    def setup(self) -> None:
        """Load the model."""
        self.network = LMPolicy(actions=int(self.action_space.n), **self.model_config["policy"])

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if self.model_config["anchors"] is None:
            return super()._forward_train(batch, **kwargs)
        prompts, width = batch[Columns.OBS]["observations"].cpu().numpy(), self.network.question_width
        anchors = self._anchor_prompts(prompts)
        logits, values = self.network.heads(np.concatenate([prompts, anchors]), width)
        mask = batch[Columns.OBS]["action_mask"] > 0.5
        out = {
            Columns.ACTION_DIST_INPUTS: masked_log_softmax(logits[: len(prompts)] / self.network.temperature, mask),
            ANCHORS: logits[len(prompts) :].log_softmax(1),
        }
        if values is not None:
            out[Columns.EMBEDDINGS] = values[: len(prompts)]
        return out

    def _anchor_prompts(self, prompts: Ids) -> Ids:
        """(Q, width) the batch's questions, each once, at one of the anchors."""
        width, anchors = self.network.question_width, self.model_config["anchors"]
        questions = np.unique(prompts[:, :width], axis=0)
        return joined(questions, anchors[np.arange(len(questions)) % len(anchors)], (width, prompts.shape[1] - width))

    def anchors(self, batch: dict[str, Any], known: Announced) -> torch.Tensor:
        """(Q, actions) log-probabilities at the anchors alone, as :meth:`forward_train` gives them.

        :param known: what is known already; what was not is added. Each prompt is read by itself: what it gives does not
            depend on the others.
        """
        prompts = self._anchor_prompts(batch[Columns.OBS]["observations"].cpu().numpy())
        for prompt in prompts:
            if prompt.tobytes() not in known:
                logits, _ = self.network.heads(prompt[None], self.network.question_width)
                known[prompt.tobytes()] = logits[0].log_softmax(0)
        return torch.stack([known[prompt.tobytes()] for prompt in prompts])

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See :meth:`RLModule.get_state`."""
        return self.network.weights()  # type: ignore[no-any-return]

    def set_state(self, state: dict[str, Any]) -> None:
        """See :meth:`RLModule.set_state`."""
        self.network.set_weights(state)

    def frozen(self, weights: dict[str, Any]) -> Any:
        """See :meth:`ExamModule.frozen`; with LoRA this very model with its adapters off (new ones change nothing)."""
        return _Adapterless(self) if self.network.lora else super().frozen(weights)


class _Adapterless:
    """The reference policy of a module with LoRA."""

    def __init__(self, module: LMExamModule) -> None:
        self._module = module

    def forward_train(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As the module did before any update."""
        with self._module.network.without_adapters():
            outputs: dict[str, Any] = self._module.forward_train(batch)
        return outputs

    def anchors(self, batch: dict[str, Any], known: Announced) -> torch.Tensor:
        """See :meth:`LMExamModule.anchors`."""
        with self._module.network.without_adapters():
            return self._module.anchors(batch, known)

    def get_state(self) -> dict[str, Any]:
        """Nothing: the files of the model are its state."""
        return {}
