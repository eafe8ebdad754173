r"""Reasoning in the open at an endpoint: cut at a tier's cap, and an answer forced from it by a second request.

An endpoint speaks the dialect ``instruct`` (:mod:`roi_env.answering.dialect`) as a model in this process does. A first request
generates the reasoning, up to the tier's cap less what is kept for the answer. Where that cut it, a second one goes on with the
cut text and the text that forces an answer. Where the backend has fields for it (``continues``), and the chat template writes such
a text where an answer begins, both are chat completions; else both are text completions, whose prompt is rendered here by the tokenizer's chat template.

**What it costs.** Generated tokens of both requests, as the endpoint counts them, and the tokens of the forced text, as if the
model had written it: so a cap is the same here and in this process, though the endpoint reads the forced text as part of a
prompt. Prompts of both requests are told as prompt tokens: the second reads the first's prompt, its reasoning and the forced
text again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from roi_env.answering.backends import BACKENDS, Backend
from roi_env.answering.base import REASONING, Ask, Message, Reply, ThinkingTier, mark_unsent
from roi_env.answering.dialect import INSTRUCT, Dialect, DialectError, chat_text, ids_after
from roi_env.answering.http import EndpointError, HTTPSolver

_TAKES = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("repetition_penalty", "user"),
)
"""Fields of a request that leave its answer one text."""


def forcing_backend(backend: str | Backend, dialect: Dialect) -> Backend:
    """A backend as an answer is forced from it: one text, whole; nothing is said of thoughts but to the chat template.

    :raises EndpointError: where it cannot go on with a text.
    """
    if isinstance(backend, str) and backend not in BACKENDS:
        raise EndpointError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    row = BACKENDS[backend] if isinstance(backend, str) else backend
    if row.continues is None and not row.raw:
        able = ", ".join(name for name, one in BACKENDS.items() if one.continues is not None or one.raw)
        raise EndpointError(
            f"{row.name} is not known to go on with a text, so no answer can be forced from a cut reasoning: leave --dialect "
            f"out (the endpoint cuts thoughts by itself, as its --backend says), or serve the model by one of {able}"
        )
    takes = {name: path for name, path in row.takes.items() if name in _TAKES}
    # vLLM refuses its cap of the thought where it has no reasoning parser.
    told = {"chat_template_kwargs": dict(dialect.variables)} if "chat_template_kwargs" in row.takes else {}
    return replace(row, chat=False, streams=None, counts=False, takes=takes, direct=told)


class ForcingSolver(HTTPSolver):
    """An endpoint whose model reasons in the open; see the module's text.

    :param url: as in :class:`~roi_env.answering.http.HTTPSolver`, like ``model``, ``backend`` and further options.
    :param tokenizer: of the model: counts the forced text, cuts reasonings, renders prompts.
    :param dialect: how the model speaks; its prompt is what a question is asked with.
    :raises EndpointError: where the endpoint cannot go on with a text.
    """

    paired = True

    def __init__(
        self,
        url: str,
        model: str,
        backend: str | Backend = "generic",
        *,
        tokenizer: Any,
        dialect: Dialect = INSTRUCT,
        **options: Any,
    ) -> None:
        super().__init__(url, model, forcing_backend(backend, dialect), prompt=dialect.prompt, **options)
        self.tokenizer, self.dialect = tokenizer, dialect
        self.forced = len(ids_after(tokenizer, dialect.force))
        """Tokens of the text that forces an answer."""
        self._chats = self.backend.continues is not None and (self._goes_on() or not self.backend.raw)

    def _goes_on(self) -> bool:
        """Whether the chat template writes the beginning of an answer where the answer would begin: Llama 3's takes line breaks
        off it, Qwen3's leaves out the empty think block that its prompt ends with."""
        if not self.tokenizer.chat_template:
            return False
        asked = [{"role": "user", "content": "?"}]
        begun = [*asked, {"role": "assistant", "content": self.dialect.force}]
        try:
            there = chat_text(self.tokenizer, begun, goes_on=True, **self.dialect.variables)
            return there == self.dialect.rendered(self.tokenizer, asked) + self.dialect.force
        except DialectError:  # it does not write it so
            return False

    def check(self, tiers: Sequence[ThinkingTier]) -> None:
        """Refuse tiers that leave no token to answer.

        :raises EndpointError: naming the first of them.
        """
        try:
            self.dialect.check(tiers, self.forced)
        except ValueError as error:
            raise EndpointError(str(error)) from None

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on."""
        return {**super().settings, "dialect": self.dialect.name, "force": self.dialect.force}

    def most_prompt(self, ask: Ask) -> int:
        """Most tokens of the prompts of both requests."""
        once, reads = super().most_prompt(ask), self.dialect.reasoning(ask.tier)
        # A text that is tokenized again may have other tokens than were generated.
        again = once + 2 * reads + len(self.dialect.force.encode())
        return again + (once if reads else 0)

    async def answer(self, ask: Ask) -> Reply:
        """Answer within the cap, by two requests where the reasoning must be cut."""
        if ask.prompt is not None or ask.choices > 1:
            what = "several answers" if ask.choices > 1 else "a bare prompt"
            return _error(f"{what}: the dialect {self.dialect.name} takes conversations, and gives one answer to each")
        room = ask.cap - ask.tier.answer if self.fit_answer else ask.cap
        most = max(0, min(self.dialect.reasoning(ask.tier), room))
        reasoning = await self.reason(ask, most) if most else None
        if reasoning is None:
            return await self.force(ask, "", 0)
        if not self.is_cut(reasoning, most):
            return reasoning
        try:
            reply = await self.force(ask, reasoning.full_text, reasoning.tokens)
        except asyncio.CancelledError as error:
            mark_unsent(error, False)  # the first was sent
            raise
        prompts = (reasoning.prompt_tokens, reply.prompt_tokens)
        told = [one for one in prompts if one is not None]
        costs = [one for one in (reasoning.usd, reply.usd) if one is not None]
        gone = reply.retry_in is not None  # what the reasoning cost is not to be had again
        return replace(
            reply,
            counted=reply.counted if reasoning.counted == "server" else reasoning.counted,
            attempts=reasoning.attempts + reply.attempts,
            seconds=reasoning.seconds + reply.seconds,
            prompt_tokens=sum(told) if told else None,
            usd=sum(costs) if costs else None,
            note="; ".join(filter(None, (reasoning.note, reply.note))) or None,
            retry_in=None,
            unreachable=reply.unreachable or gone,
        )

    async def reason(self, ask: Ask, most: int) -> Reply:
        """The reasoning, of at most so many tokens, whatever the tier. A thought that the endpoint shows apart is an error."""
        reply = await self._send_text(ask, most, "")
        if reply.error is None and reply.reasoning and self.is_cut(reply, most):
            said = (
                f"the endpoint shows a thought apart from its text, which the dialect {self.dialect.name} cannot go on with: "
                "leave --dialect out, or serve the model without a reasoning parser"
            )
            return replace(reply, error=said, finish="error", text="", reasoning=None)
        return reply

    def is_cut(self, reasoning: Reply, most: int) -> bool:
        """Whether a reasoning goes beyond so many tokens, so that an answer must be forced from its beginning."""
        cut = reasoning.tokens > most or (reasoning.tokens == most and reasoning.finish == "length")
        return reasoning.error is None and reasoning.finish != "refused" and cut

    def head(self, reasoning: Reply, most: int) -> str:
        """The first so many tokens of a reasoning, as text."""
        ids = ids_after(self.tokenizer, reasoning.full_text)[:most]
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    async def force(self, ask: Ask, text: str, tokens: int) -> Reply:
        """Force an answer: the reply of a whole tier.

        :param text: the reasoning, as far as it goes; empty: at once.
        :param tokens: that it cost.
        """
        begun = text.rstrip("\ufffd") + self.dialect.force  # half a character can be sent to nobody
        paid = tokens + self.forced
        room = min(ask.cap - paid, ask.tier.answer - self.forced)
        if room < 1:
            spent = max(tokens, min(ask.cap, paid))
            return Reply(text, None, spent, None, "length", "server" if tokens else "tokenizer", attempts=0)
        reply = await self._send_text(ask, room, begun)
        if reply.error is not None:
            return replace(reply, tokens=tokens + reply.tokens)
        return replace(reply, text=begun + reply.full_text, reasoning=None, tokens=paid + reply.tokens)

    async def _send_text(self, ask: Ask, cap: int, begun: str) -> Reply:
        """One request: an answer that begins with a text."""
        tier = ThinkingTier(ask.tier.name if begun else REASONING, 0, cap)
        ask = ask._replace(tier=tier, cap=cap, meter=None, sink=None)
        messages = self._messages(ask)
        if self._chats:
            turns = (*messages, Message("assistant", begun)) if begun else messages
            return await super().answer(ask._replace(messages=turns, continues=bool(begun)))
        said = [] if self.system is None else [{"role": "system", "content": self.system}]
        said += [{"role": message.role, "content": message.text} for message in messages]
        try:
            prompt = self._bare(self.dialect.rendered(self.tokenizer, said) + begun)
        except ValueError as error:
            return _error(str(error))
        return await super().answer(ask._replace(prompt=prompt))

    def _bare(self, prompt: str) -> str:
        """A rendered prompt without the beginning that every tokenizer of the endpoint adds by itself."""
        first = self.tokenizer.bos_token
        twice = first and prompt.startswith(first) and self._ids(first) != self.tokenizer(first).input_ids
        return prompt.removeprefix(first) if twice else prompt

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _error(message: str) -> Reply:
    return Reply("", None, 0, None, "error", "nothing", message, attempts=0)
