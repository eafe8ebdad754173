"""A language model that takes exams: it reads each question with what is left and announces a level."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np

try:
    import torch

    from agents.llm.decisions.lower_layers import LowerLayers
    from agents.llm.decisions.policy import ExamPrompts, check_model, load_frozen, load_tokenizer
    from agents.llm.decisions.tag_logits import Ids, PromptEncoder, action_tags, tag_head
    from agents.rllib.networks import on_threads
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"language models need more packages ({error}): pip install 'roi-reasoning[llm]'"
    ) from error

from agents.base import Agent, DecisionView, ExamsView, Problem, Probs, State, one_hot
from agents.parameters import Natural

_PROMPTS = 4096
"""Prompts encoded at once: memory only."""


@lru_cache(maxsize=2)
def loaded(model: str, dtype: str = "float32") -> Any:
    """Models that are only read, the last two kept: comparisons ask the same model again and again."""
    return load_frozen(model, dtype)


@lru_cache(maxsize=2)
def _reader(model: str, dtype: str, num_actions: int) -> LowerLayers:
    shared = PromptEncoder(load_tokenizer(model), levels=num_actions).shared
    return LowerLayers(loaded(model, dtype), None, shared)


def asked(model: str, dtype: str, prompts: Ids, question_width: int, num_actions: int) -> torch.Tensor:
    """(D, num_actions) logits of a model as it is for encoded prompts (D, width). What was asked before is not computed again."""
    hidden = _reader(model, dtype, num_actions).last_hidden(prompts, question_width)
    return tag_head(loaded(model, dtype), hidden, action_tags(load_tokenizer(model), num_actions))


def answer(
    logits: Callable[[Ids, int], torch.Tensor],
    prompts: ExamPrompts,
    view: DecisionView,
    *,
    greedy: bool,
    temperature: float = 1.0,
) -> Probs:
    """(D, K + 1) action probabilities.

    :param logits: of encoded prompts (B, width), whose first part has a width, over the actions (B, K + 1).
    :param greedy: the most probable legal action (ties: the first); else the distribution over the legal ones.
    """
    mask = view.mask
    distinct, inverse = np.unique(prompts.of(view), axis=0, return_inverse=True)
    with torch.inference_mode(), on_threads(1):
        known = torch.cat(
            [
                logits(distinct[first : first + _PROMPTS], prompts.question_width)
                for first in range(0, len(distinct), _PROMPTS)
            ]
        )
    legal = np.where(mask, known.double().cpu().numpy()[inverse.ravel()], -np.inf)
    if greedy:
        return one_hot(legal.argmax(1), mask.shape[1])
    weight = np.exp((legal - legal.max(1, keepdims=True)) / temperature)
    return weight / weight.sum(1, keepdims=True)


class LMAgent(Agent):
    """A model directory (or hub id) as it is; nothing is trained here.

    :param model: see :func:`agents.llm.decisions.policy.model_source`; its vocabulary has the level tags.
    :param greedy: announce the most probable legal level (ties: the first action); else play the distribution itself.
    :param temperature: of the distribution.
    :param bits: see :func:`agents.llm.decisions.tag_logits.bucketed`.
    :param dtype: of the model's weights; a large model is read faster in "bfloat16".
    """

    name = "llm"

    def __init__(
        self,
        problem: Problem,
        *,
        model: str = "tinylm-mcft",
        greedy: bool = True,
        temperature: float = 1.0,
        bits: Natural = 0,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(problem)
        check_model(self, model)
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}: for its limit 0 say greedy=True")
        self._params: dict[str, Any] = {
            "model": model,
            "greedy": greedy,
            "temperature": temperature,
            "bits": bits,
            "dtype": dtype,
        }

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return dict(self._params)

    def start(self, exams: ExamsView) -> State:
        """Encode the questions.

        :raises ValueError: where the exams show no texts, or the model has no level tags.
        """
        levels = len(exams.problem.tier_names) + 1
        encoder = PromptEncoder(load_tokenizer(self._params["model"]), self._params["bits"], levels)
        return ExamPrompts(encoder, exams, self.name)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Ask the model. Answers do not depend on what else is asked, but for the last bits of probabilities."""
        model, dtype = self._params["model"], self._params["dtype"]

        def logits(prompts: Ids, question_width: int) -> torch.Tensor:
            return asked(model, dtype, prompts, question_width, view.mask.shape[1])

        how = {name: self._params[name] for name in ("greedy", "temperature")}
        return answer(logits, state, view, **how), state
