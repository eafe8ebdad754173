"""What endpoints call things: one row of data a backend, no code.

``body`` is the request; strings that begin with ``$`` are replaced by values (see :func:`fill`) and fields whose value
is None are left out. ``think`` is merged in for tiers that think, ``direct`` for tiers that answer at once. The fields
from ``answer`` to ``usd`` are paths into the response, see :func:`find`; :mod:`roi_env.answering.responses` reads them.

``takes`` are the fields of a chat completion that a single request may set (:attr:`roi_env.answering.base.Ask.fields`), and
where they stand in this backend's request. What is not there is not known to be honoured.

Sources: the servers' own code and documents, vLLM 0.32 and transformers serve 5.24 were also
run. What an endpoint really enforces is what ``roi probe`` finds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from roi_env.answering.base import Finish

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
    answer: str
    """What every answer has, even one without a text; cut and refused ones may lack it."""
    text: tuple[str, ...]
    """Text, or parts of text, thought and refusal."""
    output: tuple[str, ...]
    """Tokens generated, added up, thought included."""
    prompt: tuple[str, ...]
    finish: tuple[str, ...]
    claims: Enforcement
    """What its documents say of the thinking cap."""
    reasoning: tuple[str, ...] = ()
    """Fields that each show the thought, or parts of it."""
    refusal: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    """Why the prompt was refused, so that nothing was generated."""
    other: tuple[str, ...] = ()
    """What comes instead of a text: calls of tools."""
    split: tuple[str, ...] = ()
    """The thought's share of the tokens."""
    total: tuple[str, ...] = ()
    """Tokens of the prompt and everything generated."""
    unspoken: tuple[str, ...] = ()
    """Tokens in the total that are neither the prompt's nor generated."""
    least: tuple[str, ...] = ()
    """Other counts of what was generated."""
    listed: tuple[str, ...] = ()
    """Lists with an entry for every token that is shown."""
    usd: tuple[str, ...] = ()
    model: tuple[str, ...] = ("model",)
    takes: Mapping[str, str] = field(default_factory=dict)
    continues: Mapping[str, Any] | None = None
    """Fields of a request that goes on with its last message, the beginning of the answer; None: it knows none."""
    raw: bool = False
    """Whether its text completions take any prompt, a rendered conversation too."""
    chat: bool = False
    """Whether it speaks chat completions: conversations are passed on as they are, tools, images and names with them."""
    streams: Mapping[str, Any] | None = None
    """Further fields of a request whose answer shall come in chunks, in the form of chat completions; None: it cannot."""
    counts: bool = False
    """Whether ``streams`` asks for the tokens so far with every chunk. Where they come, reservations follow them."""
    summarises: bool = False
    """Whether what it shows of the thought is a summary."""
    echoes_prompt: bool = False
    """Whether an answer whose thought never ended repeats the prompt as its text."""
    key_env: str = "OPENAI_API_KEY"
    key_header: tuple[str, str] = ("authorization", "Bearer $key")
    headers: Mapping[str, str] = field(default_factory=dict)
    least_thinking: int = 0
    """Smallest cap that the endpoint takes; tiers that think are raised to it."""
    efforts: tuple[tuple[int, str], ...] = EFFORTS
    stops: bool = False
    """Whether it stops generating a whole answer when a client closes its connection. Hosted endpoints do not say so and
    charge the whole answer; transformers serve stops streams only."""

    @property
    def of_texts(self) -> Backend:
        """The same endpoint's text completions, which are asked with a prompt instead of a conversation."""
        kept = {key: value for key, value in self.body.items() if key not in ("messages", "max_completion_tokens")}
        return replace(
            self,
            path="/completions",
            body={**kept, "prompt": "$prompt", "max_tokens": "$cap"},
            think={},
            direct={},
            answer="choices.0",
            text=("choices.0.text",),
            reasoning=(),
            refusal=(),
            other=(),
            listed=(),
            takes={name: name for name in (*self.takes, "suffix", "echo") if name not in _OF_CHATS},
        )


def _alike(*names: str) -> dict[str, str]:
    """Fields that keep their names."""
    return {name: name for name in names}


_SAMPLING = _alike("temperature", "top_p", "seed", "stop")
_TOOLS = _alike("tools", "tool_choice", "parallel_tool_calls")
_OPENAI = {
    **_SAMPLING,
    **_TOOLS,
    **_alike(
        "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "user"
    ),
}
_HOSTED = _alike(
    *(
        "metadata",
        "service_tier",
        "store",
        "verbosity",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ),
    *("modalities", "audio", "web_search_options", "functions", "function_call", "n"),
)
_OPEN_MODELS = {**_OPENAI, **_alike("top_k", "min_p", "repetition_penalty")}
_SERVERS = _alike(
    *("n", "chat_template_kwargs", "min_tokens", "stop_token_ids", "skip_special_tokens", "ignore_eos"),
    *("spaces_between_special_tokens", "include_stop_str_in_output", "continue_final_message", "add_generation_prompt"),
)
_VLLM = _alike(
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "bad_words"),
    *("allowed_token_ids", "truncate_prompt_tokens", "mm_processor_kwargs", "priority", "cache_salt", "documents"),
    *("add_special_tokens", "return_token_ids", "return_tokens_as_token_ids", "include_reasoning", "length_penalty"),
)
_SGLANG = _alike("regex", "ebnf", "json_schema", "no_stop_trim", "separate_reasoning", "lora_path")
_OF_CHATS = frozenset(
    (
        *_TOOLS,
        *("top_logprobs", "functions", "function_call", "modalities", "audio", "web_search_options", "verbosity"),
        *("chat_template_kwargs", "continue_final_message", "add_generation_prompt", "include_reasoning", "documents"),
        *("mm_processor_kwargs", "separate_reasoning", "metadata", "store", "safety_identifier"),
    )
)
"""Fields that text completions lack."""
_USAGE = {"stream_options": {"include_usage": True}}
_COUNTING: Mapping[str, Any] = {
    "streams": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "counts": True,
}
_CONTINUES = {"continue_final_message": True, "add_generation_prompt": False}
_CHAT_BODY = {
    "model": "$model",
    "messages": "$messages",
    "max_completion_tokens": "$cap",
    "temperature": "$temperature",
    "seed": "$seed",
}
_CHAT: Mapping[str, Any] = {
    "path": "/chat/completions",
    "body": _CHAT_BODY,
    "answer": "choices.0.message",
    "text": ("choices.0.message.content",),
    "reasoning": tuple(
        f"choices.0.message.{name}" for name in ("reasoning", "reasoning_content", "thinking", "reasoning_details")
    ),
    "refusal": ("choices.0.message.refusal",),
    "other": ("choices.0.message.tool_calls", "choices.0.message.function_call"),
    "finish": ("choices.0.finish_reason",),
    "output": ("usage.completion_tokens",),
    "prompt": ("usage.prompt_tokens", "usage.input_tokens"),
    "split": (
        *("usage.completion_tokens_details.reasoning_tokens", "usage.output_tokens_details.reasoning_tokens"),
        "usage.reasoning_tokens",
    ),
    "takes": _OPENAI,
    "chat": True,
    "streams": _USAGE,
    "total": ("usage.total_tokens",),
    "least": ("usage.output_tokens",),
    "listed": ("choices.0.logprobs.content", "choices.0.token_ids"),
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
    "answer": "content",
    "text": ("content",),
    "summarises": True,
    "finish": ("stop_reason",),
    "output": ("usage.output_tokens",),
    "prompt": ("usage.input_tokens",),
    "split": ("usage.output_tokens_details.thinking_tokens",),
    "takes": {
        **_alike("temperature", "top_p", "top_k"),
        "stop": "stop_sequences",
        "user": "metadata.user_id",
    },
    "total": ("usage.total_tokens",),
    "unspoken": ("usage.cache_creation_input_tokens", "usage.cache_read_input_tokens"),
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
    "answer": "candidates.0",
    "text": ("candidates.0.content.parts.*[!thought]",),
    "reasoning": ("candidates.0.content.parts.*[thought]",),
    "summarises": True,
    "blocked": ("promptFeedback.blockReason",),
    "finish": ("candidates.0.finishReason",),
    "output": ("usageMetadata.candidatesTokenCount", "usageMetadata.thoughtsTokenCount"),
    "prompt": ("usageMetadata.promptTokenCount",),
    "split": ("usageMetadata.thoughtsTokenCount",),
    "model": ("modelVersion",),
    "takes": {
        "temperature": "generationConfig.temperature",
        "top_p": "generationConfig.topP",
        "top_k": "generationConfig.topK",
        "seed": "generationConfig.seed",
        "stop": "generationConfig.stopSequences",
        "presence_penalty": "generationConfig.presencePenalty",
        "frequency_penalty": "generationConfig.frequencyPenalty",
    },
    "total": ("usageMetadata.totalTokenCount",),
    "unspoken": ("usageMetadata.toolUsePromptTokenCount",),
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
            {**_CHAT, **_COUNTING},
            "hard",
            think={"thinking_token_budget": "$thinking", "chat_template_kwargs": {"enable_thinking": True}},
            direct={"thinking_token_budget": 0, "chat_template_kwargs": {"enable_thinking": False}},
            takes={**_OPEN_MODELS, **_SERVERS, **_VLLM},
            continues=_CONTINUES,
            raw=True,
            key_env="VLLM_API_KEY",
            stops=True,
        ),
        _row(
            "sglang",
            {**_CHAT, **_COUNTING},
            "hard",
            think={
                "custom_params": {"thinking_budget": "$thinking"},
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
            },
            direct={"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
            takes={**_OPEN_MODELS, **_SERVERS, **_SGLANG},
            continues=_CONTINUES,
            raw=True,
            key_env="SGLANG_API_KEY",
            stops=True,
        ),
        _row(
            "transformers",
            _CHAT,
            "none",
            think={"chat_template_kwargs": {"enable_thinking": True}},
            direct={"chat_template_kwargs": {"enable_thinking": False}},
            takes={**_SAMPLING, **_alike("logit_bias", "tools", "chat_template_kwargs")},
            streams={},  # the usage comes by itself, and stream_options are refused
            raw=True,
            key_env="TRANSFORMERS_API_KEY",
            echoes_prompt=True,
        ),
        _row(
            "openai",
            _CHAT,
            "hint",
            think={"reasoning_effort": "$effort"},
            direct={"reasoning_effort": "$effort"},
            takes={**_OPENAI, **_HOSTED},
        ),
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
            answer="output.0",
            text=("output",),
            reasoning=(),
            refusal=(),
            other=(),
            finish=("incomplete_details.reason", "status"),
            output=("usage.output_tokens",),
            prompt=("usage.input_tokens",),
            split=("usage.output_tokens_details.reasoning_tokens",),
            takes={
                **_alike(
                    "temperature", "top_p", "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"
                ),
                "verbosity": "text.verbosity",
            },
            chat=False,
            streams=None,
            least=(),
            listed=("output.*.content.*.logprobs",),
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
            takes={
                **_SAMPLING,
                **_TOOLS,
                **_alike("presence_penalty", "logprobs", "top_logprobs", "response_format", "top_k"),
            },
            key_env="DASHSCOPE_API_KEY",
        ),
        _row(
            "deepseek",
            _CHAT,
            "hint",
            body=_OLD_CAP,
            think={"thinking": {"type": "enabled"}, "reasoning_effort": "$effort"},
            direct={"thinking": {"type": "disabled"}},
            takes={name: name for name in _OPENAI if name not in ("seed", "logit_bias", "user", "parallel_tool_calls")},
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
            finish=("choices.0.finish_reason", "choices.0.native_finish_reason"),
            usd=("usage.cost",),
            takes=_OPEN_MODELS,
            key_env="OPENROUTER_API_KEY",
        ),
        _row(
            "llama.cpp",
            _CHAT,
            "hard",
            body=_OLD_CAP,
            think={"thinking_budget_tokens": "$thinking", "chat_template_kwargs": {"enable_thinking": True}},
            direct={"thinking_budget_tokens": 0, "chat_template_kwargs": {"enable_thinking": False}},
            takes={
                **{name: name for name in _OPEN_MODELS if name not in ("repetition_penalty", "user")},
                **_alike("chat_template_kwargs", "grammar", "json_schema", "ignore_eos", "cache_prompt"),
            },
            least=(*_CHAT["least"], "timings.predicted_n"),
            streams={**_USAGE, "timings_per_token": True},
            counts=True,
            raw=True,
            key_env="LLAMA_API_KEY",
            stops=True,
        ),
        _row(
            "generic",
            {**_CHAT, **_COUNTING},
            "none",
            body=_OLD_CAP,
            think={},
            direct={},
            takes={**_OPENAI, **_HOSTED},
            raw=True,
        ),
    )
}
"""All backends by name."""

_STOP = (
    *("stop", "end_turn", "stop_sequence", "completed", "complete", "eos", "eos_token"),
    *("tool_calls", "function_call", "tool_use"),
)
_LENGTH = ("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded")
_REFUSED = (
    *("content_filter", "content_filtered", "refusal", "refused", "safety", "recitation", "blocklist", "language"),
    *("prohibited_content", "spii", "image_safety", "model_armor", "guardrail_intervened", "sensitive"),
)
_FAILED = (
    *("error", "failed", "cancelled", "canceled", "abort", "aborted", "timeout", "network_error", "other"),
    *("insufficient_system_resource", "queued", "in_progress", "pause_turn", "malformed_function_call"),
    *("malformed_response", "unexpected_tool_call", "too_many_tool_calls", "finish_reason_unspecified"),
)
FINISHES: Mapping[str, Finish] = {
    **dict.fromkeys(_STOP, "stop"),
    **dict.fromkeys(_LENGTH, "length"),
    **dict.fromkeys(_REFUSED, "refused"),
    **dict.fromkeys(_FAILED, "error"),
}
"""What endpoints say (in lower case) -> :data:`roi_env.answering.base.Finish`."""

FREE = frozenset({425, 429, 500, 503, 529})
"""Statuses after which nothing was generated and asking again may help."""
CLOSED = frozenset({301, 302, 303, 307, 308, 401, 402, 404, 405})
"""Statuses that are no question's fault: the address, the model's name, the key or the account is wrong."""
UNKNOWN = frozenset({408, 502, 504, 520, 521, 522, 523, 524})
"""Statuses of gateways and time limits: the model behind may have generated."""
ERRORS: tuple[tuple[str, int], ...] = (
    ("insufficient|billing|credit|arrear", 402),
    ("rate.?(limit|quota)|throttl|too.?many.?requests|resource.?exhausted|quota", 429),
    ("overload", 529),
    ("unavailable", 503),
    ("timeout|deadline", 504),
    ("too.?large|too.?long|context.?length", 413),
    ("api.?key|auth", 401),
    ("permission|denied|forbidden", 403),
    ("not.?found", 404),
    ("invalid|bad.?request|precondition|unsupported", 400),
    ("internal|server.?error|api.?error", 500),
)
"""Patterns in the code, status or type of an error in the body of a response (in lower case; the first counts) -> the
HTTP status that it stands for."""

_STEP = re.compile(r"\*\[(!?)(\w+)\]")


def find(data: Any, path: str) -> list[Any]:
    """All values at a path: names and positions joined by dots; ``*`` is every element, ``*[x]`` (``*[!x]``) those with
    a true (without a true) field x. Absent and null values are left out."""
    found = [data]
    for step, chosen in _steps(path):
        following: list[Any] = []
        for value in found:
            if isinstance(value, dict):
                if step in value:
                    following.append(value[step])
            elif isinstance(value, list):
                if step == "*" or chosen:
                    for entry in value:
                        has = chosen is not None and isinstance(entry, dict) and bool(entry.get(chosen[2]))
                        if chosen is None or has != bool(chosen[1]):
                            following.append(entry)
                elif step.isdigit():
                    following += value[int(step) : int(step) + 1]
        found = [value for value in following if value is not None]
        if not found:
            break
    return found


@cache
def _steps(path: str) -> list[tuple[str, re.Match[str] | None]]:
    return [(step, _STEP.fullmatch(step)) for step in path.split(".")]


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


def put(body: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``body`` with the value at a path of names joined by dots."""
    name, _, rest = path.partition(".")
    return {**body, name: put(body.get(name) or {}, rest, value) if rest else value}


def effort_of(backend: Backend, thinking: int, named: str | None) -> str:
    """The effort that stands for a number of thinking tokens, unless one is named; spelt as the backend spells it."""
    if named is not None:
        return next((name for _, name in backend.efforts if name.casefold() == named.casefold()), named)
    return next((name for most, name in backend.efforts if thinking <= most), backend.efforts[-1][1])
