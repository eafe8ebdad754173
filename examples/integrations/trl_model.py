"""The packaged small model with tokens for calls of tools, and an agent for `roi compare` that decides by it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agents.base import Agent, DecisionView, ExamsView, Feedback, Probs
from roi_env.integrations.text_exam import exam_text, outcome_text, task_text

BASE = "agents/llm/models/tinylm"
CALLS = [json.dumps({"name": "skip", "arguments": {}})]
CALLS += [json.dumps({"name": "attempt", "arguments": {"level": level}}) for level in (1, 2, 3)]
TEMPLATE = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}<|assistant|>{% generation %}"
    "{%- for c in m.tool_calls or [] -%}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "</tool_call>{%- endfor -%}{{ m.content or '' }}<|end|>{% endgeneration %}"
    "{%- else -%}<|user|>{{ m.content }}<|end|>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}


def base_model() -> tuple[Any, Any]:
    """(model, tokenizer): the lower half of the packaged model; every call is one token, so that exploring is choosing calls."""
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", *CALLS], special_tokens=False)
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE
    config = AutoConfig.from_pretrained(BASE)
    config.num_hidden_layers, config.layer_types = 2, config.layer_types[:2]
    model = AutoModelForCausalLM.from_pretrained(BASE, config=config, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


class Trained(Agent):
    """Decides by a model that was trained with TRL, in the conversation that it was trained on.

    :param path: folder of the model.
    """

    name = "trl"
    markov = False  # the conversation holds all earlier decisions

    def __init__(self, problem: Any, path: str) -> None:
        super().__init__(problem)
        self.path = path
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.calls = self.tokenizer.convert_tokens_to_ids(CALLS)

    def params(self) -> dict[str, Any]:
        """Its parameters."""
        return {"path": self.path}

    def start(self, exams: ExamsView) -> list[str]:
        """The conversations begin."""
        problem = self.problem
        return [f"<|user|>{exam_text(problem.num_tasks, problem.budget, problem.tier_names)}\n"] * len(exams)

    @torch.no_grad()
    def act(self, view: DecisionView, state: list[str]) -> tuple[Probs, list[str]]:
        """Chances of the calls."""
        probs = np.zeros((len(view), len(CALLS)))
        for begin in range(0, len(view), 64):
            rows = range(begin, min(begin + 64, len(view)))
            texts = [f"{self._told(view, row, state)}<|end|><|assistant|><tool_call>" for row in rows]
            asked = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            logits = self.model(**asked, logits_to_keep=1).logits[:, -1, self.calls]
            probs[begin : begin + 64] = logits.double().softmax(-1).numpy()
        probs *= view.mask
        return probs / probs.sum(1, keepdims=True), state

    def observe(self, feedback: Feedback, state: list[str]) -> list[str]:
        """Conversations go on with what was told."""
        state, view = list(state), feedback.view
        for row, action in enumerate(feedback.action.tolist()):
            told = outcome_text(action, int(feedback.tokens[row]), bool(feedback.overspent[row]), None)
            call = f"<|end|><|assistant|><tool_call>{CALLS[action]}</tool_call><|end|><|user|>"
            state[view.exam[row]] = f"{self._told(view, row, state)}{call}{told}\n"
        return state

    def _told(self, view: DecisionView, row: int, state: list[str]) -> str:
        told = task_text(
            int(view.position[row]),
            self.problem.num_tasks,
            int(view.remaining[row]),
            int(view.group[row]),
            self.problem.beliefs,
        )
        return state[view.exam[row]] + told
