"""What an endpoint really enforces: every known request field is tried, and the tokens that come back are counted.

Documents and answers with status 200 prove nothing: caps are commonly accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from roi_env.answering.backends import BACKENDS, Enforcement, effort_of, fill, find, merge
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.responses import NothingGenerated, read

PROMPT = "State the final answer to the following arithmetic problem: 17 + 58 - 23 + 46 - 31 + 92 - 64 + 75 - 18 + 29 ="
"""Asks for a thought of some length, whatever the model."""
SLACK = 2
"""Tokens above a cap that its forced end may take."""


class Finding(NamedTuple):
    """One field.

    :param field: what was sent.
    :param enforcement: "hard", "soft", "hint" or "none"; "rejected" where the endpoint refused it; "unclear".
    :param evidence: what was measured.
    """

    field: str
    enforcement: Enforcement | str
    evidence: str


class _Measured(NamedTuple):
    """Trials of one body: status 200, or why there is no answer; tokens in all and of the thought, trial by trial."""

    status: int
    totals: Sequence[float] = ()
    thoughts: Sequence[float] = ()
    message: str = ""

    @property
    def total(self) -> float:
        """Mean tokens in all."""
        return sum(self.totals) / len(self.totals)

    @property
    def thought(self) -> float:
        """Mean tokens of the thought."""
        return sum(self.thoughts) / len(self.thoughts)

    @property
    def most(self) -> float:
        """Tokens of the longest thought."""
        return max(self.thoughts)


_EFFORTS = ("low", "medium", "high")


def _numeric(backend: str, thinking: int) -> dict[str, dict[str, Any]]:
    """Fields that name a number of thinking tokens: the backend's own, then, for chat endpoints, those of others."""
    rows = {backend: BACKENDS[backend].think}
    if BACKENDS[backend].path == "/chat/completions":
        rows |= {row.name: row.think for row in BACKENDS.values() if row.path == "/chat/completions"}
    found = {}
    for row in rows.values():
        values = {"thinking": thinking, "effort": None}
        fields = fill(row, values) or {}
        if _holds(fields, thinking):
            found[_named(fields)] = fields
    return found


def _holds(fields: Any, number: int) -> bool:
    if isinstance(fields, Mapping):
        return any(_holds(value, number) for value in fields.values())
    return fields == number and not isinstance(fields, bool)


def _named(fields: Mapping[str, Any], prefix: str = "") -> str:
    """The fields in words, e.g. ``thinking_token_budget=8``; what merely turns thinking on is left out."""
    parts = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            inside = _named(value, f"{prefix}{key}.")
            parts += [inside] if inside else []
        elif value is not True:
            parts.append(f"{prefix}{key}={value}")
    return ", ".join(parts)


async def probe(
    solver: HTTPSolver, *, prompt: str = PROMPT, thinking: int = 8, cap: int = 512, trials: int = 3
) -> list[Finding]:
    """Try the fields that an endpoint may know.

    :param prompt: must make the model think for much longer than ``thinking`` tokens.
    :param thinking: cap to try.
    :param cap: total cap of every request.
    :param trials: requests a field.
    """
    backend = solver.backend
    base = merge(fill(backend.body, _values(solver, prompt, cap)), solver.extra)
    if "chat_template_kwargs" in backend.think:
        base["chat_template_kwargs"] = backend.think["chat_template_kwargs"]

    async def measure(fields: Mapping[str, Any]) -> _Measured:
        body, totals, thoughts = merge(base, fields), [], []
        for _ in range(trials):
            status, data = await solver.raw(body)
            if status != 200:
                message = " ".join(map(str, find(data, "error.message") or find(data, "detail") or [data]))
                return _Measured(status, message=f"HTTP {status}: {message[:120]}" if status else message[:120])
            try:
                reply = read(
                    backend, Ask(Question("probe", "probe", "", ""), ThinkingTier("t", 1, 1), 0), data, asked=prompt
                )
                error = reply.error or ("it refused the prompt" if reply.finish == "refused" else None)
                if error is None and reply.counted != "server":
                    error = "nothing can be measured: the answer does not say its tokens (usage)"
            except NothingGenerated as failure:
                error = str(failure)
            if error is not None:
                return _Measured(0, message=error[:120])
            total, thought = _count(reply)
            totals.append(total)
            thoughts.append(thought)
        return _Measured(200, totals, thoughts)

    found = []
    plain = await measure({})
    if plain.status != 200:
        return [Finding("(none)", "rejected", plain.message)]
    found.append(
        Finding(
            "(none)", "none", f"{plain.total:.0f} tokens, {plain.thought:.0f} of them thought: what is compared with"
        )
    )
    # Total cap: half of what it would generate.
    half = max(1, int(plain.total // 2))
    cut = await measure(fill(backend.body, _values(solver, prompt, half)))
    if cut.status != 200:
        found.append(Finding(f"total cap={half}", "rejected", cut.message))
    else:
        kind = "hard" if cut.total <= half else "none"
        found.append(Finding(f"total cap={half}", kind, f"{cut.total:.0f} tokens instead of {plain.total:.0f}"))
    # Numbers of thinking tokens.
    for name, fields in _numeric(backend.name, thinking).items():
        found.append(_judge(name, await measure(fields), plain, thinking))
    # Efforts.
    if backend.path == "/chat/completions" or "$effort" in str(backend.think):
        by_effort = {}
        for effort in _EFFORTS:
            fields = (
                fill(backend.think, {"effort": effort_of(backend, 0, effort), "thinking": None})
                if "$effort" in str(backend.think)
                else {"reasoning_effort": effort}
            )
            by_effort[effort] = await measure(fields)
        found.append(_judge_efforts(by_effort))
    # No thought at all.
    off = await measure(fill(backend.direct, {"effort": "none", "thinking": 0}) or {})
    if backend.direct:
        name = _named(fill(backend.direct, {"effort": "none", "thinking": 0}) or {}) or "no thought"
        found.append(_judge(name, off, plain, 0))
    return found


def _values(solver: HTTPSolver, prompt: str, cap: int) -> dict[str, Any]:
    turn = [{"role": "user", "content": prompt}]
    return {
        "model": solver.model,
        "messages": turn,
        "turns": turn,
        "system": None,
        "contents": [{"role": "user", "parts": [{"text": prompt}]}],
        "instruction": None,
        "cap": cap,
        "temperature": solver.temperature,
        "seed": None,
    }


def _count(reply: Reply) -> tuple[float, float]:
    """Tokens in all, and of the thought: the endpoint's split, else by the share of the text."""
    if reply.reasoning_tokens is not None:
        return reply.tokens, reply.reasoning_tokens
    thought = len(reply.reasoning or "")
    return reply.tokens, reply.tokens * thought / max(thought + len(reply.text), 1)


_OVERLAP = "trials overlap, so this may be chance: more of them would tell"


def _apart(fewer: Sequence[float], more: Sequence[float]) -> bool:
    """Whether every trial of one is shorter than every trial of the other: of 3 and 3 alike, one time in twenty."""
    return max(fewer) < min(more)


def _judge(name: str, got: _Measured, plain: _Measured, thinking: int) -> Finding:
    if got.status != 200:
        return Finding(name, "rejected", got.message)
    evidence = f"{got.thought:.0f} tokens of thought (most {got.most:.0f}) instead of {plain.thought:.0f}"
    if plain.thought <= max(2 * thinking, SLACK):
        return Finding(name, "unclear", f"{evidence}: the model thinks too little to tell, choose a harder prompt")
    if got.most <= thinking + SLACK:
        return Finding(name, "hard", evidence)
    if got.thought > 0.7 * plain.thought:
        return Finding(name, "none", evidence)
    if not _apart(got.thoughts, plain.thoughts):
        return Finding(name, "unclear", f"{evidence}: {_OVERLAP}")
    return Finding(name, "soft" if got.thought <= max(2 * thinking, 0.4 * plain.thought) else "hint", evidence)


def _judge_efforts(by_effort: Mapping[str, _Measured]) -> Finding:
    refused = {name: got for name, got in by_effort.items() if got.status != 200}
    name = "effort low/medium/high"
    if refused:
        first = next(iter(refused))
        return Finding(name, "rejected", f"{first}: {refused[first].message}")
    low, medium, high = (by_effort[effort] for effort in _EFFORTS)
    evidence = f"{low.total:.0f} / {medium.total:.0f} / {high.total:.0f} tokens"
    if not low.total <= medium.total <= high.total or low.total >= 0.7 * high.total:
        return Finding(name, "none", evidence)
    if not _apart(low.totals, high.totals):
        return Finding(name, "unclear", f"{evidence}: {_OVERLAP}")
    return Finding(name, "hint", evidence)
