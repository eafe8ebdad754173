"""LangChain: one hard token budget over all model calls of an agent, or of several agents together.

A call's worst case is reserved before it is sent, with what is left as its cap; afterwards it is charged what it cost. What
was generated is thought, answer and calls of tools; prompts are not charged.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage

from roi_env.answering.backends import UNKNOWN
from roi_env.answering.base import Counted, Reply
from roi_env.answering.ledger import Entry, Ledger, reply_facts

_POLL = 0.02
"""Seconds between two looks whether others have settled."""


class BudgetSpent(Exception):
    """The budget is gone.

    :param audit: see :meth:`BudgetMiddleware.audit`.
    :param messages: the conversation so far.
    """

    def __init__(self, audit: dict[str, Any], messages: Iterable[AnyMessage]) -> None:
        super().__init__(f"the budget is spent: {audit['charged']:,} of {audit['budget']:,} tokens")
        self.audit, self.messages = audit, list(messages)


class BudgetMiddleware(AgentMiddleware):
    """Middleware for ``create_agent(..., middleware=[..., BudgetMiddleware(20_000)])``: the last, so that what others ask
    again is counted again. One instance in several agents, threads or tasks is one budget.

    Calls that do not pass through the agent's model node (a tool's own model, a summary) are not seen here; put the budget
    in front of the endpoint for these (`roi serve`).

    :param budget: generated tokens of all calls.
    :param most_per_call: the cap of a call that names none; a smaller one is kept.
    :param ledger: file of the reservations and charges, which a later process goes on with; None: in memory.
    :param at_end: "stop": the agent ends with what it has and a last message that says so; "error": :class:`BudgetSpent`.
    :param cap_setting: how the model calls its cap on generated tokens.
    :raises ValueError: for a budget or a cap below 1; JournalError where the ledger is in use, or of another budget.
    """

    def __init__(
        self,
        budget: int,
        *,
        most_per_call: int = 4096,
        ledger: str | Path | None = None,
        at_end: Literal["stop", "error"] = "stop",
        cap_setting: str = "max_tokens",
    ) -> None:
        super().__init__()
        for name, value in (("budget", budget), ("most_per_call", most_per_call)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of tokens of at least 1, got {value!r}")
        if at_end not in ("stop", "error"):
            raise ValueError(f"at_end must be 'stop' or 'error', got {at_end!r}")
        self.budget, self.most_per_call, self.at_end, self.cap_setting = budget, most_per_call, at_end, cap_setting
        self.ledger = Ledger(ledger, {"kind": "langchain", "budget": budget})
        self._lock = RLock()

    @property
    def remaining(self) -> int:
        """Tokens neither charged nor reserved."""
        return max(0, self.budget - self.ledger.charged - self.ledger.reserved)

    def audit(self) -> dict[str, Any]:
        """Sums. ``overshoot``: generated beyond the caps that were given; ``within``: charged <= budget + overshoot."""
        with self._lock:
            entries = [entry for entry in self.ledger.entries if entry.charged is not None]
            over = sum(max(0, entry.charged - entry.reserved) for entry in entries if entry.charged is not None)
            by_count: dict[str, int] = {}
            for entry in entries:
                counted = str((entry.facts or {}).get("counted"))
                by_count[counted] = by_count.get(counted, 0) + (entry.charged or 0)
            return {
                "budget": self.budget,
                "charged": self.ledger.charged,
                "reserved": self.ledger.reserved,
                "remaining": self.remaining,
                "overshoot": over,
                "within": self.ledger.charged <= self.budget + over,
                "calls": len(self.ledger.entries),
                "tokens_by_count": by_count,
                "unknown": len(self.ledger.unknown),
            }

    def close(self) -> None:
        """Bring the ledger to the disk and release it."""
        self.ledger.close()

    def wrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> Any:
        """Reserve, call under the cap, settle."""
        self._check(request)
        while (entry := self._enter(request)) == "wait":
            time.sleep(_POLL)
        if entry is None:
            return self._end(request)
        try:
            self.ledger.flush()
            response = handler(self._capped(request, entry))
        except BaseException as error:
            self._failed(entry, error)
            raise
        self._settle(entry, response)
        return response

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> Any:
        """Reserve, call under the cap, settle."""
        self._check(request)
        while (entry := self._enter(request)) == "wait":
            await asyncio.sleep(_POLL)
        if entry is None:
            return self._end(request)
        try:
            await self.ledger.on_disk()
            response = await handler(self._capped(request, entry))
        except BaseException as error:
            self._failed(entry, error)
            raise
        self._settle(entry, response)
        return response

    def _check(self, request: ModelRequest) -> None:
        retries = getattr(request.model, "max_retries", 0)
        if retries != 0:
            kind = type(request.model).__name__
            raise ValueError(
                f"{kind} repeats failed requests by itself (max_retries={retries}), and what each of them generated is told "
                f"to nobody: make it {kind}(max_retries=0) and repeat with ModelRetryMiddleware before this one"
            )

    def _asked(self, request: ModelRequest, name: str) -> Any:
        return request.model_settings.get(name, getattr(request.model, name, None))

    def _enter(self, request: ModelRequest) -> Entry | Literal["wait"] | None:
        """A reservation; None: the budget is gone. What is left is enough for less than the cap only when nobody else can
        give back any of it."""
        choices = self._asked(request, "n") or 1
        cap = min(self._asked(request, self.cap_setting) or self.most_per_call, self.most_per_call)
        with self._lock:
            if cap * choices > self.remaining and self.ledger.reserved:
                return "wait"
            room = min(cap, self.remaining // choices) * choices
            return self.ledger.enter(("call", len(self.ledger.entries), choices), room) if room else None

    def _capped(self, request: ModelRequest, entry: Entry) -> ModelRequest:
        cap = {self.cap_setting: entry.reserved // entry.key[2]}
        return request.override(model_settings={**request.model_settings, **cap})

    def _end(self, request: ModelRequest) -> AIMessage:
        spent = BudgetSpent(self.audit(), request.messages)
        if self.at_end == "error":
            raise spent
        return AIMessage(f"Stopped: {spent}.", response_metadata={"finish_reason": "budget", "roi": spent.audit})

    def _settle(self, entry: Entry, response: Any) -> None:
        messages: list[BaseMessage] = [response] if isinstance(response, BaseMessage) else response.result
        answers = [message for message in messages if isinstance(message, AIMessage)]
        told = [message.usage_metadata for message in answers if message.usage_metadata]
        tokens = entry.reserved  # an answer that does not say what it cost cost all of it
        counted: Counted = "reserved"
        if told and len(told) == len(answers):
            tokens, counted = sum(int(usage["output_tokens"]) for usage in told), "server"
        thought = [usage.get("output_token_details", {}).get("reasoning") for usage in told]
        length = any(message.response_metadata.get("finish_reason") == "length" for message in answers)
        text = "\n".join(message.text or json.dumps(message.tool_calls) for message in answers)
        known = None if None in thought or not thought else sum(int(one) for one in thought if one is not None)
        self._write(entry, Reply(text, None, tokens, known, "length" if length else "stop", counted))

    def _failed(self, entry: Entry, error: BaseException) -> None:
        """Charge a call that raised: nothing where the endpoint refused it, else all that it may have generated."""
        status = getattr(error, "status_code", None)
        free = isinstance(status, int) and status >= 400 and status not in UNKNOWN
        tokens = 0 if free else entry.reserved
        counted: Counted = "nothing" if free else "reserved"
        what = f"{type(error).__name__}: {error}"
        self._write(entry, Reply("", None, tokens, None, "error", counted, what, lost=not free))

    def _write(self, entry: Entry, reply: Reply) -> None:
        with self._lock:
            self.ledger.settle(entry, reply.tokens, {**reply_facts(reply), "cap": entry.reserved})
