"""What endpoints call things: one row of data a backend, no code.

``body`` is the request; strings that begin with ``$`` are replaced by values (see :func:`fill`) and fields whose value
is None are left out. ``think`` is merged in for tiers that think, ``direct`` for tiers that answer at once. ``text``,
``reasoning``, ``finish``, ``output`` (added up: everything generated, thought included) and ``split`` (the thought's
share) are paths into the response, see :func:`find`.

Sources: the servers' own code and documents, vLLM 0.32 and transformers serve 5.24 also run (`shared/reference`,
ecosystem.md section 4, lm.md section 7). What an endpoint really enforces is what ``roi probe`` finds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Enforcement = Literal["hard", "soft", "hint", "none"]
"""What a thinking cap is to the endpoint: cut at the token; cut by the model, roughly; advice; not known at all."""

EFFORTS = ((0, "none"), (1024, "low"), (4096, "medium"), (16384, "high"))
"""Thinking tokens up to which an effort stands, for endpoints without numbers (estimates; vendors' ladders disagree)."""


@dataclass(frozen=True)
class Backend:
    """How to talk to one kind of endpoint; see the module's text."""

    name: str
    path: str
    body: Mapping[str, Any]
    think: Mapping[str, Any]
    direct: Mapping[str, Any]
    text: tuple[str, ...]
    output: tuple[str, ...]
    prompt: tuple[str, ...]
    finish: tuple[str, ...]
    claims: Enforcement
    """What its documents say of the thinking cap."""
    reasoning: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    usd: tuple[str, ...] = ()
    key_env: str = "OPENAI_API_KEY"
    key_header: tuple[str, str] = ("authorization", "Bearer $key")
    headers: Mapping[str, str] = field(default_factory=dict)
    least_thinking: int = 0
    """Smallest cap that the endpoint takes; tiers that think are raised to it."""
    efforts: tuple[tuple[int, str], ...] = EFFORTS


_CHAT_BODY = {
    "model": "$model",
    "messages": "$messages",
    "max_completion_tokens": "$cap",
    "temperature": "$temperature",
    "seed": "$seed",
}
_CHAT = {
    "path": "/chat/completions",
    "body": _CHAT_BODY,
    "text": ("choices.0.message.content",),
    "reasoning": ("choices.0.message.reasoning", "choices.0.message.reasoning_content"),
    "finish": ("choices.0.finish_reason",),
    "output": ("usage.completion_tokens",),
    "prompt": ("usage.prompt_tokens",),
    "split": ("usage.completion_tokens_details.reasoning_tokens", "usage.reasoning_tokens"),
}
_OLD_CAP = {**{key: value for key, value in _CHAT_BODY.items() if key != "max_completion_tokens"}, "max_tokens": "$cap"}
_ANTHROPIC = {
    "path": "/messages",
    "body": {
        "model": "$model",
        "system": "$system",
        "messages": "$turns",
        "max_tokens": "$cap",
        "temperature": "$temperature",
    },
    "direct": {"thinking": {"type": "disabled"}},
    "text": ("content.*.text",),
    "reasoning": ("content.*.thinking",),
    "finish": ("stop_reason",),
    "output": ("usage.output_tokens",),
    "prompt": ("usage.input_tokens",),
    "split": ("usage.output_tokens_details.thinking_tokens",),
    "key_env": "ANTHROPIC_API_KEY",
    "key_header": ("x-api-key", "$key"),
    "headers": {"anthropic-version": "2023-06-01"},
}
_GEMINI = {
    "path": "/models/$model:generateContent",
    "body": {
        "contents": "$contents",
        "systemInstruction": "$instruction",
        "generationConfig": {"maxOutputTokens": "$cap", "temperature": "$temperature", "seed": "$seed"},
    },
    "text": ("candidates.0.content.parts.*[!thought].text",),
    "reasoning": ("candidates.0.content.parts.*[thought].text",),
    "finish": ("candidates.0.finishReason",),
    "output": ("usageMetadata.candidatesTokenCount", "usageMetadata.thoughtsTokenCount"),
    "prompt": ("usageMetadata.promptTokenCount",),
    "split": ("usageMetadata.thoughtsTokenCount",),
    "key_env": "GEMINI_API_KEY",
    "key_header": ("x-goog-api-key", "$key"),
}


def _row(name: str, base: Mapping[str, Any], claims: Enforcement, **more: Any) -> Backend:
    return Backend(name=name, claims=claims, **{**base, **more})


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        _row(
            "vllm",
            _CHAT,
            "hard",
            think={"thinking_token_budget": "$thinking", "chat_template_kwargs": {"enable_thinking": True}},
            direct={"thinking_token_budget": 0, "chat_template_kwargs": {"enable_thinking": False}},
            key_env="VLLM_API_KEY",
        ),
        _row(
            "sglang",
            _CHAT,
            "hard",
            think={
                "custom_params": {"thinking_budget": "$thinking"},
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
            },
            direct={"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
            key_env="SGLANG_API_KEY",
        ),
        _row(
            "transformers",
            _CHAT,
            "none",
            think={"chat_template_kwargs": {"enable_thinking": True}},
            direct={"chat_template_kwargs": {"enable_thinking": False}},
            key_env="TRANSFORMERS_API_KEY",
        ),
        _row("openai", _CHAT, "hint", think={"reasoning_effort": "$effort"}, direct={"reasoning_effort": "$effort"}),
        _row(
            "openai-responses",
            _CHAT,
            "hint",
            path="/responses",
            body={
                "model": "$model",
                "input": "$messages",
                "max_output_tokens": "$cap",
                "temperature": "$temperature",
                "store": False,
            },
            think={"reasoning": {"effort": "$effort"}},
            direct={"reasoning": {"effort": "$effort"}},
            text=("output.*.content.*.text",),
            reasoning=("output.*.summary.*.text",),
            finish=("incomplete_details.reason", "status"),
            output=("usage.output_tokens",),
            prompt=("usage.input_tokens",),
            split=("usage.output_tokens_details.reasoning_tokens",),
        ),
        _row(
            "anthropic",
            _ANTHROPIC,
            "soft",
            think={"thinking": {"type": "enabled", "budget_tokens": "$thinking"}},
            least_thinking=1024,
        ),
        _row(
            "anthropic-adaptive",
            _ANTHROPIC,
            "hint",
            think={"thinking": {"type": "adaptive"}, "output_config": {"effort": "$effort"}},
        ),
        _row(
            "gemini",
            _GEMINI,
            "soft",
            think={"generationConfig": {"thinkingConfig": {"thinkingBudget": "$thinking"}}},
            direct={"generationConfig": {"thinkingConfig": {"thinkingBudget": 0}}},
        ),
        _row(
            "gemini-level",
            _GEMINI,
            "hint",
            think={"generationConfig": {"thinkingConfig": {"thinkingLevel": "$effort"}}},
            direct={"generationConfig": {"thinkingConfig": {"thinkingLevel": "MINIMAL"}}},
            efforts=((0, "MINIMAL"), (1024, "LOW"), (8192, "MEDIUM"), (24576, "HIGH")),
        ),
        _row(
            "dashscope",
            _CHAT,
            "soft",
            body=_OLD_CAP,
            think={"enable_thinking": True, "thinking_budget": "$thinking"},
            direct={"enable_thinking": False},
            key_env="DASHSCOPE_API_KEY",
        ),
        _row(
            "deepseek",
            _CHAT,
            "hint",
            body=_OLD_CAP,
            think={"thinking": {"type": "enabled"}, "reasoning_effort": "$effort"},
            direct={"thinking": {"type": "disabled"}},
            key_env="DEEPSEEK_API_KEY",
            efforts=((0, "none"), (1024, "low"), (16384, "high")),
        ),
        _row(
            "openrouter",
            _CHAT,
            "hint",
            body={**_OLD_CAP, "usage": {"include": True}},
            think={"reasoning": {"max_tokens": "$thinking"}},
            direct={"reasoning": {"effort": "none"}},
            usd=("usage.cost",),
            key_env="OPENROUTER_API_KEY",
        ),
        _row(
            "llama.cpp",
            _CHAT,
            "hard",
            body=_OLD_CAP,
            think={"thinking_budget_tokens": "$thinking", "chat_template_kwargs": {"enable_thinking": True}},
            direct={"thinking_budget_tokens": 0, "chat_template_kwargs": {"enable_thinking": False}},
            key_env="LLAMA_API_KEY",
        ),
        _row("generic", _CHAT, "none", body=_OLD_CAP, think={}, direct={}),
    )
}
"""All backends by name."""

FINISHES: Mapping[str, str] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "completed", "eos"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(
        ("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content"), "refused"
    ),
}
"""What endpoints say (in lower case) -> :data:`roi_env.solvers.base.Finish`."""

_STEP = re.compile(r"\*\[(!?)(\w+)\]")


def find(data: Any, path: str) -> list[Any]:
    """All values at a path: names and positions joined by dots; ``*`` is every element, ``*[x]`` (``*[!x]``) those with
    a true (without a true) field x. Absent and null values are left out."""
    found = [data]
    for step in path.split("."):
        following: list[Any] = []
        for value in found:
            chosen = _STEP.fullmatch(step)
            if isinstance(value, list) and (step == "*" or chosen):
                for entry in value:
                    has = chosen is not None and isinstance(entry, dict) and bool(entry.get(chosen[2]))
                    if chosen is None or has != bool(chosen[1]):
                        following.append(entry)
            elif isinstance(value, list) and step.isdigit():
                following += value[int(step) : int(step) + 1]
            elif isinstance(value, dict) and step in value:
                following.append(value[step])
        found = [value for value in following if value is not None]
    return found


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """The template with ``$name`` replaced; fields (and whole objects) that become None are left out."""
    if isinstance(template, str) and template.startswith("$"):
        return values[template[1:]]
    if isinstance(template, Mapping):
        filled = {key: fill(value, values) for key, value in template.items()}
        return {key: value for key, value in filled.items() if value is not None} or (None if template else {})
    return template


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """``first`` with ``second`` laid over it, objects inside merged likewise."""
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def effort_of(backend: Backend, thinking: int, named: str | None) -> str:
    """The effort that stands for a number of thinking tokens, unless one is named; spelt as the backend spells it."""
    if named is not None:
        return next((name for _, name in backend.efforts if name.casefold() == named.casefold()), named)
    return next((name for most, name in backend.efforts if thinking <= most), backend.efforts[-1][1])
