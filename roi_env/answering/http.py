"""Answers by an HTTP endpoint: any row of :data:`roi_env.answering.backends.BACKENDS`.

What a failed request may have cost decides what happens to it. Where the endpoint certainly generated nothing (no
connection, 429, 500, 503, other errors of the client's side) it is repeated for free, or given up as an error that
costs nothing. Where that is unknown (connection lost or deadline passed after sending, a gateway's 502 or 504, an answer
that cannot be read) the reply is *lost*: charged at its reservation, and whether to ask again, under a new reservation,
is the caller's choice.

What a response with status 200 says is read by :mod:`roi_env.answering.responses`; one that comes in chunks is passed on
while it comes, and read when it is whole.

An endpoint that asks to wait (``Retry-After``) is left alone until then by all requests. No question waits longer than
``patience``: where the endpoint asks for more the reply comes at once, and says in ``retry_in`` when to ask again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from roi_env.answering import responses
from roi_env.answering.backends import BACKENDS, CLOSED, FREE, UNKNOWN, Backend, effort_of, fill, find, merge, put
from roi_env.answering.base import (
    IMAGES,
    Ask,
    Counted,
    Failure,
    Message,
    Question,
    Reply,
    Sink,
    ThinkingTier,
    mark_unsent,
    unsent_reply,
)
from roi_env.answering.connections import (
    MOST_ANSWER,
    NOT_SENT,
    Body,
    Response,
    find_access,
    open_session,
    parts,
    read,
    reason,
)
from roi_env.answering.streams import Counter, Pace, TooLarge, Whole, events

_MESSAGE = 300
"""Characters of an endpoint's error that are kept."""
_TOLD = 4000
"""Characters of it that are passed on to who asked."""
_HELD = (
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "stream"),
    *("generationConfig.maxOutputTokens", "generationConfig.candidateCount"),
)
"""Fields on which the guarantee of a budget rests."""
IMAGE = 50_000
"""Tokens that an image is reserved at: more than any vendor is known to count."""
_CONTENT, _THOUGHT = "choices.0.delta.content", "choices.0.delta.reasoning_content"
TEMPLATE = 256
"""Tokens that a chat template may begin with by itself: a system message of its own, a date."""
_SHORTEST_SECRET = 8
"""Characters of a key; a shorter one is a placeholder."""
_SECRET = re.compile(r"(?i)\b(bearer\s+|sk-)[\w*.~+/=-]{6,}")
_A_TOKEN = 4096
"""Bytes that a token may take: with twenty log-probabilities, in a chunk of its own, some 2,000."""
_END = 1.0
"""Seconds within which a stream should end that has said it is done."""
_OF_SEEDS = "does not use offset"
"""What vLLM for the CPU says as it dies of a seed."""
_COUNTS = "continuous_usage_stats"
_DEAD = (_OF_SEEDS, "EngineCore", "EngineDead")
"""What a server says whose engine is dead."""
_ROUNDS = 3
"""Requests with a seed, one after the other, that are cut off before the seed is held to be the cause."""
_LONGEST_ASKED = 1e10
"""Seconds that count as for ever."""
_LONGEST_REST = 3600.0
"""Seconds after which an endpoint is asked again whatever it said: a wrong header must not close it for a year."""


class EndpointError(ValueError):
    """An endpoint cannot be used as described."""


class _Failed(Exception):
    """One request failed.

    :param retry: whether nothing was generated and asking again may help.
    :param lost: whether something may have been generated.
    :param tokens: that were generated for sure.
    :param wait: seconds the endpoint asks to wait.
    :param unreachable: whether there was no connection.
    :param broke: whether the endpoint broke down over the request, or broke it off.
    :param failure: what the endpoint told; default: the message.
    """

    def __init__(
        self,
        message: str,
        *,
        retry: bool = False,
        lost: bool = False,
        tokens: int = 0,
        wait: float | None = None,
        unreachable: bool = False,
        broke: bool = False,
        failure: Failure | None = None,
    ) -> None:
        super().__init__(message)
        self.retry, self.lost, self.tokens, self.wait = retry, lost, tokens, wait
        self.unreachable, self.broke = unreachable, broke
        again = retry and not lost and not tokens
        self.failure = failure or Failure(None, message, again=again)


class _Deaths:
    """Whether the endpoint dies of requests with a seed: it says so, is gone after it broke down over one, or (vLLM, which
    something may start again at once) cuts off one after the other with no answer between.

    :param vllm: whether it is vLLM.
    """

    def __init__(self, vllm: bool) -> None:
        self.vllm = vllm
        self.died: str | None = None
        """How it broke down; None: it did not."""
        self._last: str | None = None
        self._rounds, self._at = 0, 0.0

    def answered(self) -> None:
        """It lives."""
        self._last, self._rounds = None, 0

    def broke(self, failed: _Failed, sent: float) -> None:
        """It broke down over a request with a seed, sent at that time."""
        self._last = str(failed)
        if failed.lost and sent >= self._at:  # what was in flight together was cut off together
            self._rounds, self._at = self._rounds + 1, time.perf_counter()
        if (self.vllm and self._rounds >= _ROUNDS) or _OF_SEEDS in self._last:
            self.died = self._last

    def gone(self) -> None:
        """It is not there any more."""
        self.died = self.died or self._last


class _Closed(_Failed):
    """Nothing was sent: the endpoint asks to wait longer than a question may."""


class HTTPSolver:
    """An endpoint as a :class:`roi_env.answering.base.LiveSolver`.

    :param url: base address, e.g. ``http://127.0.0.1:8000/v1``.
    :param model: as the endpoint calls it.
    :param backend: a name of :data:`~roi_env.answering.backends.BACKENDS`, or a row of one's own.
    :param name: in tables and reports; default: the model.
    :param key_env: environment variable that holds the key; default: the backend's, or no key where that is not set.
    :param prompt: what is asked; ``{question}`` stands for the text.
    :param system: system message.
    :param temperature: of sampling; None: the endpoint's own.
    :param seed: of the samples: every (question, sample, tier) sends a number of its own (:func:`request_seed`), where
        the backend has such a field.
    :param extra: further fields of every request, merged in last.
    :param concurrency: most requests in flight.
    :param deadline: seconds of one request, from sending to its last byte.
    :param retries: most free repetitions of one request.
    :param patience: most seconds one question may wait for the endpoint, repetitions included; waiting for a free slot
        (``concurrency``) does not count.
    :param fit_answer: shorten the thought where the cap leaves no room for the tier's answer after it. Off: only the
        total is clamped, as in the exam.
    :param count: text -> tokens; where usage is absent it counts instead of charging the reservation.
    :param say: told why requests wait, once for every wait of a second or more.
    :raises EndpointError: for an unknown backend, an address that is none, or a key that is missing or none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        backend: str | Backend = "generic",
        *,
        name: str | None = None,
        key_env: str | None = None,
        prompt: str = "{question}",
        system: str | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        extra: Mapping[str, Any] | None = None,
        concurrency: int = 16,
        deadline: float = 600.0,
        retries: int = 6,
        patience: float = 1800.0,
        first_wait: float = 0.5,
        fit_answer: bool = False,
        count: Callable[[str], int] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if isinstance(backend, str) and backend not in BACKENDS:
            raise EndpointError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise EndpointError(f"endpoint {url!r} must read like http://127.0.0.1:8000/v1")
        if split.username or split.password or split.query:
            raise EndpointError(
                "an endpoint's address must not hold credentials or a query: keys come from the environment"
            )
        if held := [path for path in _HELD if find(extra or {}, path)]:
            raise EndpointError(
                f"further request fields must not set {held[0]}: every request is one answer, whole and under its own cap"
            )
        if concurrency < 1 or retries < 0:
            raise EndpointError(f"concurrency must be >= 1 and retries >= 0, got {concurrency} and {retries}")
        self.backend = BACKENDS[backend] if isinstance(backend, str) else backend
        self.url, self.model, self.name = url.rstrip("/"), model, name or model
        self.prompt, self.system, self.temperature, self.seed = prompt, system, temperature, seed
        self.extra, self.fit_answer, self.count = dict(extra or {}), fit_answer, count
        self.deadline, self.retries, self.patience, self.first_wait = deadline, retries, patience, first_wait
        self.say = say
        named = key_env or self.backend.key_env
        self._key = os.environ.get(named, "").strip() or None
        if self._key is None and key_env:
            raise EndpointError(f"the environment variable {key_env}, which should hold the endpoint's key, is empty")
        if self._key is not None and not (self._key.isascii() and self._key.isprintable()):
            raise EndpointError(
                f"the environment variable {named} holds no key: it has characters that no header of a request may have"
            )
        # Struck out of what the endpoint says. A shorter one ("none", "test") is no secret, and part of ordinary words.
        self._secret = self._key if self._key and len(self._key) >= _SHORTEST_SECRET else None
        self._spelled = json.dumps(self._secret)[1:-1]
        headers = {**self.backend.headers, "content-type": "application/json"}
        if self._key:
            header, value = self.backend.key_header
            headers[header] = value.replace("$key", self._key)
        self._slots = asyncio.Semaphore(concurrency)
        self._open_at = 0.0  # no request is sent before: the endpoint asked to wait
        self._reason = ""  # why it did
        self._said_until = 0.0
        try:
            self._access = find_access(self.url)
        except ValueError as error:
            raise EndpointError(f"endpoint {url!r}: {error}") from None
        self._headers = headers
        # The deadline is of the whole request: another one of every read would cost much and end nothing earlier. Of a
        # short one connecting has a half, so that it is known that nothing was sent.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=min(deadline / 2, 10.0))
        self._client: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pace = Pace(None if self.backend.counts else False)
        self._streams_alone = False  # it refuses answers that are wanted whole
        self._deaths = _Deaths(self.backend.name == "vllm")

    def __repr__(self) -> str:
        return f"HTTPSolver({self.url!r}, {self.model!r}, {self.backend.name!r})"

    @property
    def lead(self) -> int | None:
        """Tokens that a stream may generate before it can be stopped; None: unknown, or streams do not tell."""
        return self._pace.lead

    @property
    def counts(self) -> bool:
        """Whether answers are made as streams that tell, or may tell, what they have taken."""
        return self._pace.counts is not False

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on (JSON values; no credentials)."""
        return {
            "url": self.url,
            "model": self.model,
            "backend": self.backend.name,
            "prompt": self.prompt,
            "system": self.system,
            "temperature": self.temperature,
            "seed": self.seed,
            "extra": self.extra,
        }

    @property
    def sends_seeds(self) -> bool:
        """Whether requests hold a seed."""
        return self.seed is not None and "$seed" in str(self.backend.body)

    @property
    def died_of_seeds(self) -> str | None:
        """How the endpoint broke down over requests with a seed; None: it did not."""
        return self._deaths.died

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _session(self) -> aiohttp.ClientSession:
        """The session of the running event loop, made at its first use.

        :raises RuntimeError: where the solver is in use in another loop.
        """
        loop = asyncio.get_running_loop()
        if self._client is not None and self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    "a solver is used in one event loop at a time: close() it before it is used in another"
                )
            await self.close()
        if self._client is None:
            self._client, self._loop = open_session(self._access, self._timeout, self._headers), loop
        return self._client

    async def _get(self, address: str, seconds: float) -> Response:
        session = await self._session()
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with session.get(address, timeout=timeout, allow_redirects=False) as response:
            return await read(response)

    async def _post(self, body: Body, backend: Backend) -> aiohttp.ClientResponse:
        """The response to a request as soon as its header came; whoever asks closes it."""
        session = await self._session()
        # Never asked again by itself: aiohttp repeats only what is idempotent.
        return await session.post(self._address(backend), data=body, allow_redirects=False)

    def check(self, tiers: Sequence[ThinkingTier]) -> None:
        """Refuse tiers at which it cannot answer; this one takes all."""

    def for_tier(self, tier: str) -> HTTPSolver:
        """Who answers a tier: this one all."""
        return self

    @property
    def each(self) -> list[HTTPSolver]:
        """This one."""
        return [self]

    async def models(self) -> list[str]:
        """Names of the models that the endpoint lists.

        :raises EndpointError: where it does not say.
        """
        try:
            response = await self._get(f"{self.url}/models", min(self.deadline, 30.0))
            data = json.loads(response.content) if response.ok else None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EndpointError(f"{self.url}/models: {self._clean(reason(error))}") from None
        except (ValueError, RecursionError) as error:
            raise EndpointError(f"{self.url}/models: {self._clean(str(error))}") from None
        if not response.ok:
            raise EndpointError(f"{self.url}/models: HTTP {response.status}: {self._said(response)}")
        return [str(name) for name in find(data, "data.*.id") or find(data, "models.*.name")]

    async def version(self) -> str | None:
        """The version that vLLM names; None where the endpoint says none."""
        try:
            response = await self._get(f"{self.url.removesuffix('/v1')}/version", 10.0)
            found = find(json.loads(response.content), "version") if response.ok else []
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError):
            return None
        return str(found[0]) if found else None

    def body(self, ask: Ask) -> dict[str, Any]:
        """The request, as it is sent.

        :raises EndpointError: where the tier needs more than the cap at this endpoint, or the backend has no place for
            something that is asked.
        """
        backend, tier = self._backend(ask), ask.tier
        thinking = max(tier.thinking, backend.least_thinking) if tier.thinking else 0
        if self.fit_answer and thinking:
            thinking = max(backend.least_thinking, min(thinking, ask.cap - tier.answer - 1))
        if backend.least_thinking and thinking >= ask.cap:
            raise EndpointError(
                f"tier {tier.name!r} needs more than {thinking} tokens on {backend.name}, {ask.cap} are left"
            )
        if unknown := [name for name in ask.fields if name not in backend.takes]:
            raise EndpointError(f"{unknown[0]} cannot be asked of {backend.name}")
        messages = self._messages(ask)
        if self.system is not None:
            messages = (Message("system", self.system), *messages)
        if not backend.chat and any(message.name is not None or message.whole is not None for message in messages):
            raise EndpointError(f"messages can have a role and a text on {backend.name}, no name and nothing else")
        turns = [(message.role, message.text) for message in messages if message.role not in ("system", "developer")]
        system = "\n".join(one.text for one in messages if one.role in ("system", "developer")) or None
        values = {
            "model": self.model,
            "messages": [
                {"role": role, "content": text} | ({} if name is None else {"name": name}) if whole is None else whole
                for role, text, name, whole in messages
            ],
            "prompt": ask.prompt,
            "turns": [{"role": role, "content": text} for role, text in turns],
            "system": system,
            "contents": [
                {"role": "model" if role == "assistant" else role, "parts": [{"text": text}]} for role, text in turns
            ],
            "instruction": {"parts": [{"text": system}]} if system else None,
            "cap": ask.cap,
            "thinking": max(thinking, 0),
            "effort": effort_of(backend, tier.thinking, tier.effort),
            "temperature": self.temperature,
            "seed": None if self.seed is None else request_seed(self.seed, ask.question, ask.tier.name, ask.sample),
        }
        how = backend.think if tier.thinking > 0 and thinking > 0 else backend.direct
        body = merge(fill(backend.body, values), fill(how, values) or {})
        body = merge(body, self.extra)
        if ask.continues:
            if backend.continues is None:
                raise EndpointError(f"{backend.name} is not known to go on with a text that it began")
            body = merge(body, backend.continues)
        for name, value in ask.fields.items():
            path = backend.takes[name]
            if isinstance(value, Mapping) and find(how, name):  # of an object that the tier is part of, its part stays
                value = merge(value, body[name])
            # Other spellings of `stop` are lists alone.
            body = put(body, path, [value] if name == "stop" != path and isinstance(value, str) else value)
        return body

    def most_prompt(self, ask: Ask) -> int:
        """Most tokens that the prompt of a request can have: no token is shorter than a byte.

        The whole request counts, whose names and signs are more than what chat templates write around a message.
        """
        images = 0

        def text_of(message: Message) -> Message:
            nonlocal images
            content = message.whole["content"] if message.whole is not None and "content" in message.whole else None
            if not isinstance(content, list):
                return message
            texts = [part for part in content if part.get("type") not in IMAGES]
            images += len(content) - len(texts)
            return message._replace(whole={**(message.whole or {}), "content": texts})

        asked = ask if ask.messages is None else ask._replace(messages=tuple(map(text_of, ask.messages)))
        try:
            size = len(json.dumps(self.body(asked), ensure_ascii=False).encode("utf-8", "surrogatepass"))
        except EndpointError:
            return 0  # it will not be sent
        return size + TEMPLATE + images * IMAGE

    async def answer(self, ask: Ask) -> Reply:
        """Answer within the cap; see the module's text for what errors cost."""
        begun = time.perf_counter()
        waits_since: float | None = None
        attempts, sent = 0, begun
        sending: Body | None = None
        backend, relayed = self._backend(ask), False
        try:
            body = self.body(ask)
        except EndpointError as error:
            return _error(str(error), attempts=0)
        # Chunks that do not count may have been found out since this was reserved: all of it is now, or it is stopped in time.
        streams = ask.sink is not None or (ask.meter is not None and (self.counts or not await ask.meter(0, ask.most)))
        if streams or self._streams_alone:
            body = self._streaming(body, backend)

        async def relay(text: str, chunk: Mapping[str, Any]) -> None:
            nonlocal relayed
            if ask.sink is not None:
                relayed = True
                await ask.sink(text, chunk)

        try:
            while True:
                try:
                    async with self._slots:
                        waits_since = waits_since or time.monotonic()
                        await self._wait_for_endpoint(waits_since + self.patience)
                        if not ask.wanted():
                            reply = unsent_reply()
                            break
                        attempts, sent = attempts + 1, time.perf_counter()
                        counter = Counter(backend, self._pace)
                        if attempts > 1:
                            await _released(ask)
                        sending = Body(json.dumps(body).encode(), ask.held)
                        data = await self._send(body, sending, ask, relay, counter)
                    reply = self._told(backend, self._read(ask, data, counter.told, counter.pieces), data)
                    self._deaths.answered()
                    break
                except _Closed as closed:
                    reply = _error(str(closed), retry_in=closed.wait)
                    break
                except _Failed as failed:
                    assert waits_since is not None
                    sending = None
                    if failed.failure.status in (400, 422) and _COUNTS in str(failed) and _COUNTS in str(body):
                        self._pace.counts, body["stream_options"] = False, {"include_usage": True}
                        continue  # it does not know the field: it will not tell what streams have taken
                    asked = body if body.get("stream") else self._streaming(body, backend)
                    if failed.failure.status in (400, 422) and "stream" in str(failed).lower() and asked is not body:
                        self._streams_alone, body = True, asked
                        continue
                    wait = self._pause(attempts, failed)
                    if failed.broke and self.sends_seeds:
                        self._deaths.broke(failed, sent)
                    if failed.lost:
                        reply = _error(
                            str(failed), tokens=max(ask.most, counter.told), lost=True, failure=failed.failure
                        )
                        break
                    if (
                        not failed.retry
                        or relayed  # who reads it has seen its beginning
                        or attempts > self.retries
                        or time.monotonic() + wait > waits_since + self.patience
                        or (failed.broke and self.died_of_seeds)
                    ):
                        gone = failed.unreachable or (failed.broke and any(name in str(failed) for name in _DEAD))
                        if gone:
                            self._deaths.gone()
                        free = failed.retry and not failed.tokens
                        reply = _error(
                            str(failed),
                            tokens=failed.tokens,
                            unreachable=gone or (failed.failure.status in CLOSED and not failed.tokens),
                            retry_in=failed.wait if free else None,
                            failure=failed.failure,
                        )
                        break
                    self._say(wait, str(failed))
                    await asyncio.sleep(wait)
        except asyncio.CancelledError as error:
            if sending is None or not sending.sent:
                mark_unsent(error)
            raise
        return replace(reply, attempts=attempts, seconds=time.perf_counter() - begun)

    async def raw(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        """(status, response) of one request as it is, once: for probes. Status 0: no answer came."""
        try:
            async with (
                asyncio.timeout(self.deadline),
                await self._post(Body(json.dumps(body).encode()), self.backend) as answer,
            ):
                response = await read(answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            return 0, {"error": self._clean(reason(error))}
        except TooLarge as error:
            return 0, {"error": str(error)}
        try:
            return response.status, json.loads(response.content)
        except (ValueError, RecursionError):
            return response.status, {"error": self._clean(response.text)}

    def _streaming(self, body: dict[str, Any], backend: Backend) -> dict[str, Any]:
        """The request for an answer in chunks; as it is where the backend has none."""
        if backend.streams is None:
            return body
        body = {**body, "stream": True, **backend.streams}
        if self._pace.counts is False and _COUNTS in str(backend.streams):
            body["stream_options"] = {"include_usage": True}
        return body

    def _backend(self, ask: Ask) -> Backend:
        return self.backend if ask.prompt is None else self.backend.of_texts

    def _address(self, backend: Backend) -> str:
        return self.url + backend.path.replace("$model", self.model)

    @property
    def closed_for(self) -> float:
        """Seconds for which the endpoint asked to be left alone, 0 where it takes requests."""
        return max(0.0, self._open_at - time.monotonic())

    def _pause(self, attempts: int, failed: _Failed) -> float:
        """Seconds until the next try: doubling with jitter, at least what the endpoint asked for."""
        # Jitter keeps clients from coming back all at once; nothing that is recorded depends on it.
        wait: float = min(60.0, self.first_wait * 2.0 ** min(attempts - 1, 20)) * (0.5 + random.random() / 2)
        if failed.wait is not None:
            rest = min(failed.wait, _LONGEST_REST)
            wait = max(wait, rest)
            if (open_at := time.monotonic() + rest) > self._open_at:
                self._open_at, self._reason = open_at, str(failed)
        return wait

    async def _wait_for_endpoint(self, latest: float) -> None:
        """Wait until the endpoint takes requests.

        :param latest: of the monotonic clock.
        :raises _Closed: at once where that is later.
        """
        while (wait := self.closed_for) > 0:
            if self._open_at > latest:
                raise _Closed(f"the endpoint asks to wait {wait:,.0f} s more ({self._reason})", wait=wait)
            self._say(wait, self._reason)
            await asyncio.sleep(wait)

    def _say(self, wait: float, reason: str) -> None:
        now = time.monotonic()
        if wait >= 1 and now + wait > self._said_until + 1:
            self._said_until = now + wait
            self.say(f"waiting {wait:,.0f} s for the endpoint: {reason}")

    async def _send(self, body: Mapping[str, Any], sending: Body, ask: Ask, relay: Sink, counter: Counter) -> Any:
        """The response as JSON; that of a stream put together, after its chunks were relayed."""
        backend = self._backend(ask)
        try:
            async with asyncio.timeout(self.deadline), await self._post(sending, backend) as answer:
                if answer.status < 200:
                    raise _Failed("connection lost: the endpoint speaks another protocol", lost=True, broke=True)
                good = 200 <= answer.status < 300
                if good and answer.headers.get("content-type", "").lower().startswith("text/event-stream"):
                    return await self._relay(answer, ask, relay, counter)  # some stream without being asked to
                response = await read(answer, _most_bytes(ask))
                if good and body.get("stream"):
                    self._pace.counts = False
        except NOT_SENT as error:
            raise _Failed(self._clean(f"no connection: {reason(error)}"), retry=True, unreachable=True) from None
        except aiohttp.ClientError as error:
            if sending.failed is not None:
                mark_unsent(sending.failed)
                raise sending.failed from None
            if not sending.sent:  # it idled for too long, while the reservation was written
                raise _Failed(self._clean(f"no connection: {reason(error)}"), retry=True) from None
            raise _Failed(self._clean(f"connection lost: {reason(error)}"), lost=True, broke=True) from None
        except TimeoutError:
            if not sending.sent:
                raise _Failed(f"nothing could be sent within {self.deadline:g} s", retry=True) from None
            raise _Failed(f"no answer within {self.deadline:g} s", lost=True) from None
        except UnicodeDecodeError:
            raise _Failed("the stream is not UTF-8", lost=True) from None
        except TooLarge as error:
            raise _Failed(str(error), lost=True) from None
        status = response.status
        if not response.ok:
            failure = self._failure(response)
            paid = responses.generated(backend, response.content)
            raise _Failed(
                f"HTTP {status}: {self._said(response)}",
                retry=status in FREE and not paid,
                lost=status in UNKNOWN and not paid,
                tokens=paid,
                wait=retry_after(response.headers),
                broke=status == 500,
                failure=failure,
            )
        try:
            data = json.loads(response.content)
            if self._secret and self._spelled in (spelled := json.dumps(data)):
                data = json.loads(spelled.replace(self._spelled, "***"))
            return data
        except (ValueError, RecursionError):
            kind = self._clean(response.headers.get("content-type", "no content type"))
            raise _Failed(f"the answer is not JSON ({kind}, {len(response.content)} bytes)", lost=True) from None

    async def _relay(self, response: aiohttp.ClientResponse, ask: Ask, relay: Sink, counter: Counter) -> Any:
        """Pass a stream on, chunk by chunk; one that goes beyond its cap is cut."""
        whole, done, first = Whole(), False, self._backend(ask).echoes_prompt
        came = parts(response, _most_bytes(ask))
        async for text in events(came):
            text = self._without_key(text)
            if text.strip() == "[DONE]":
                done = True
                break
            try:
                chunk = json.loads(text)
            except (ValueError, RecursionError):
                raise _Failed(f"an event of the stream is not JSON ({self._clean(text, 80)})", lost=True) from None
            if not isinstance(chunk, dict):
                raise _Failed(f"an event of the stream is no object ({self._clean(text, 80)})", lost=True)
            if first and (shown := "".join(map(str, find(chunk, _CONTENT) + find(chunk, _THOUGHT)))):
                # A long history comes in two pieces, the second one as if it were thought.
                first = any(responses.is_echo(shown, message.text, cut=False) for message in self._messages(ask))
                if first:
                    continue  # nobody generated it
            before = whole.pieces
            whole.add(chunk)
            if whole.error:
                break
            tokens = counter.add(chunk, whole.pieces, whole.pieces > before)
            # Of several answers some endpoints tell the sum with each.
            if whole.pieces > ask.most or (tokens > ask.most and ask.choices == 1 and not whole.ended):
                whole.cut(tokens)
                break
            await relay(text, chunk)
            if ask.meter is not None and not whole.ended:
                lead = self._pace.lead
                if not await ask.meter(tokens, ask.most if lead is None else lead):
                    whole.cut(tokens)
                    break
            counter.resume()
        if done:
            # The answer is whole, whatever becomes of a connection that is read to its end so that it can be used again.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, TooLarge):
                async with asyncio.timeout(_END):
                    async for _ in came:
                        pass
        data = whole.answer()
        if not (done or whole.ended or data.get("error")):
            raise _Failed("the stream broke off before its end", lost=True)
        return data

    def _read(self, ask: Ask, data: Any, told: int = 0, pieces: int = 0) -> Reply:
        """The reply that a response is; raises where it is free to ask again."""
        try:
            asked = self._messages(ask)[-1].text
            reply = responses.read(
                self._backend(ask), ask, data, asked=asked, count=self.count, told=told, pieces=pieces
            )
        except responses.NothingGenerated as failure:
            raise _Failed(self._clean(str(failure)), retry=True) from None
        except RecursionError:
            raise _Failed("the answer cannot be read: its parts lie too deep inside one another", lost=True) from None
        error, note = (None if text is None else self._clean(text) for text in (reply.error, reply.note))
        return replace(reply, error=error, note=note)

    def _told(self, backend: Backend, reply: Reply, data: Any) -> Reply:
        """A reply with what only its caller wants to know."""
        model = next((v for path in backend.model for v in find(data, path) if isinstance(v, str)), None)
        return replace(reply, model=model, whole=data)

    def _failure(self, response: Response) -> Failure:
        """What an endpoint's error says, in whichever form: OpenAI's, a plain message, FastAPI's ``detail``, a text."""
        status = response.status
        try:
            data = json.loads(response.content)
        except (ValueError, RecursionError):
            data = None
        data = data[0] if isinstance(data, list) and data else data
        found: Any = data.get("error", data) if isinstance(data, dict) else data
        told = found if isinstance(found, dict) else {"message": found}
        message = told.get("message") or told.get("detail") or response.text
        if not isinstance(message, str):
            message = json.dumps(message)
        code = next((told[name] for name in ("code", "status") if isinstance(told.get(name), str)), None)
        param = told["param"] if isinstance(told.get("param"), str) else None
        return Failure(
            status,
            self._clean(message, _TOLD) or f"HTTP {status} without a word",
            code and self._clean(code),
            param and self._clean(param),
            status in FREE,
        )

    def _said(self, response: Response) -> str:
        """What an error says, in a line."""
        if 300 <= response.status < 400 and (elsewhere := response.headers.get("location")):
            return f"redirects are not followed, give the address that it names: {self._clean(elsewhere)}"
        return self._clean(response.text)

    def _messages(self, ask: Ask) -> tuple[Message, ...]:
        """What is asked, without the system message."""
        return ask.messages or (Message("user", self.prompt.replace("{question}", ask.question.text)),)

    def _without_key(self, text: str) -> str:
        """An event as it is passed on: an endpoint that repeats what it was sent must not give our key away, however JSON
        spells it."""
        if not self._secret:
            return text
        text = text.replace(self._secret, "***")
        if "\\" in text:
            with contextlib.suppress(ValueError, RecursionError):
                if self._spelled in (spelled := json.dumps(json.loads(text))):
                    return spelled.replace(self._spelled, "***")
        return text

    def _clean(self, text: str, most: int = _MESSAGE) -> str:
        """An endpoint's words on one line, cut, without keys, not even the beginning of ours."""
        if self._secret:
            text = text.replace(self._secret, "***")
            if len(self._secret) >= 12:
                text = re.sub(re.escape(self._secret[:6]) + r"\S*", "***", text)
        return responses.encodable(" ".join(_SECRET.sub("***", text).split())[:most])


class ByTier:
    """Several endpoints as one :class:`roi_env.answering.base.LiveSolver`: every tier is asked of its own.

    :param solvers: by tier; one may answer several.
    """

    def __init__(self, solvers: Mapping[str, HTTPSolver]) -> None:
        self.solvers = dict(solvers)
        self.name = ", ".join(dict.fromkeys(solver.name for solver in self.each))

    async def answer(self, ask: Ask) -> Reply:
        """See :meth:`HTTPSolver.answer`."""
        return await self.for_tier(ask.tier.name).answer(ask)

    def for_tier(self, tier: str) -> HTTPSolver:
        """Who answers a tier."""
        return self.solvers[tier]

    @property
    def each(self) -> list[HTTPSolver]:
        """All of them, once."""
        return list(dict.fromkeys(self.solvers.values()))

    def most_prompt(self, ask: Ask) -> int:
        """See :meth:`HTTPSolver.most_prompt`."""
        return self.for_tier(ask.tier.name).most_prompt(ask)

    @property
    def closed_for(self) -> float:
        """Seconds for which all of them ask to be left alone."""
        return min(solver.closed_for for solver in self.each)

    async def close(self) -> None:
        """Close all connections."""
        for solver in self.each:
            await solver.close()


def _most_bytes(ask: Ask) -> int:
    """Bytes of its answer that are read."""
    return max(MOST_ANSWER, _A_TOKEN * ask.most)


async def _released(ask: Ask) -> None:
    """Wait until a request may be sent: one that is repeated makes no connection before, which was lost meanwhile."""
    if ask.held is not None:
        try:
            await ask.held()
        except Exception as error:
            mark_unsent(error)
            raise


def _error(
    message: str,
    *,
    tokens: int = 0,
    lost: bool = False,
    attempts: int = 1,
    unreachable: bool = False,
    failure: Failure | None = None,
    retry_in: float | None = None,
) -> Reply:
    counted: Counted = "reserved" if lost else "server" if tokens else "nothing"
    return Reply(
        "",
        None,
        tokens,
        None,
        "error",
        counted,
        message,
        lost,
        attempts,
        unreachable=unreachable,
        retry_in=retry_in,
        failure=failure,
    )


def request_seed(seed: int, question: Question, tier: str, sample: int) -> int:
    """The seed of one request, below 2^31: what all endpoints take.

    As in a local model's samples it depends on all that names the generation, so that no two samples of a question share
    their random numbers, under this seed or another. The tier is part of it: every tier is a request of its own.
    """
    name = "\0".join([str(seed), question.dataset, question.question_id, str(sample), tier])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") >> 1


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, 0 or more and finite, that a ``Retry-After`` header asks for: a number, or a date. None without a readable one."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
            # Without a zone (the old form of C's asctime) it is UTC.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), _LONGEST_ASKED)
