"""How one request is answered: read, admitted, asked of the endpoint, settled, told."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from experiments.commands import endpoints
from experiments.serving.attend import Busy, Gone, attend
from experiments.serving.budget import LENGTHS, Budget
from experiments.serving.chat import Chat, Refused, chunks, completion, json_text, read_object, refuse_unpriced
from experiments.serving.messages import MessagesWire
from experiments.serving.metrics import Metrics, Visit
from experiments.serving.responses import ResponsesWire
from experiments.serving.webhooks import tell
from experiments.serving.wires import ChatWire
from roi_env.answering.database import period_end
from roi_env.answering.ledger import BooksAway
from roi_env.sources.units import SHORT_UNITS, cost_with_unit

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Send

    from agents.live.session import Row
    from agents.live.steps import Ticket
    from roi_env.answering.backends import Backend
    from roi_env.answering.base import Ask, Reply


Wire = ChatWire | MessagesWire | ResponsesWire
KEEP_ALIVE = 15.0
"""Seconds without a chunk after which a stream says that it lives."""
_LAST = 4.0
"""Seconds in which warnings are sent before the process ends: who ends it may kill it after ten."""
_LOOK = 0.05
"""Seconds after which a full window is looked at again."""
_OF_TEXTS = frozenset(
    (
        *(
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "seed",
            "stop",
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
        ),
        *("repetition_penalty", "response_format", "user", "chat_template_kwargs"),
    )
)
"""Fields of requests whose answers are nothing but texts."""


class EventStream:
    """A response of events, written as they come from the endpoint; an endpoint that is faster than its client waits.

    It begins with the first chunk, so that what fails before that has a status of its own.

    :param send: of ASGI.
    :param headers: as they are when it begins.
    """

    def __init__(self, send: Send, wire: Wire, headers: dict[str, str], visit: Visit) -> None:
        self._send, self._wire, self._headers, self._visit = send, wire, headers, visit
        self._last = asyncio.get_running_loop().time()
        self._timer: asyncio.TimerHandle
        self._saying: asyncio.Task[None] | None = None
        self.begun = False

    async def take(self, text: str, chunk: Mapping[str, Any]) -> None:
        """A :data:`roi_env.answering.base.Sink`."""
        await self._write(self._wire.chunk(text, chunk))

    async def end(self, text: str) -> None:
        """The last events."""
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": False})
        await asyncio.sleep(0)  # now it is written: what is left to do comes after that

    @contextlib.contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Say that it lives after every :data:`KEEP_ALIVE` seconds without a chunk, once a tier is chosen."""
        self._look()
        try:
            yield
        finally:
            self._timer.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if (wait := self._last + KEEP_ALIVE - loop.time()) <= 0:
            wait = KEEP_ALIVE
            self._last = loop.time()
            if "x-roi-tier" in self._headers and (self._saying is None or self._saying.done()):
                self._saying = asyncio.create_task(self._say_alive())
        self._timer = loop.call_later(wait, self._look)

    async def _say_alive(self) -> None:
        if not self._timer.cancelled():  # else the answer has come before this
            await self._write(": still at work\n\n")

    async def _write(self, text: str) -> None:
        self._last = asyncio.get_running_loop().time()
        if not self.begun:
            self.begun, self._visit.first = True, self._visit.seconds
            told = {**self._headers, **_OF_STREAMS}
            headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if text:
            await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})


_OF_STREAMS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


@dataclass(frozen=True)
class Chats:
    """A request as every tier's endpoint is asked it.

    :param menu: that it names.
    :param by_tier: what is asked.
    :param backends: by tier.
    """

    menu: str
    by_tier: Mapping[str, Chat]
    backends: Mapping[str, Backend]

    @property
    def any(self) -> Chat:
        """What is the same for all."""
        return next(iter(self.by_tier.values()))

    @property
    def backend(self) -> Backend:
        """Of :attr:`any`."""
        return next(iter(self.backends.values()))

    def of(self, tier: str) -> Chat:
        """What a tier is asked; a skipped question: any."""
        return self.by_tier.get(tier, self.any)

    def prepare(self, ask: Ask) -> Ask:
        """The request of a tier."""
        chat = self.by_tier[ask.tier.name]
        return ask._replace(messages=chat.messages or None, prompt=chat.prompt, fields=chat.fields)


class Desk:
    """Answers questions, and counts them.

    :param spent_status: of HTTP, where a budget is spent.
    """

    def __init__(self, spent_status: int) -> None:
        self.spent_status, self.metrics = spent_status, Metrics()
        self._telling: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()

    async def close(self) -> None:
        """Send the warnings that are due, for :data:`_LAST` seconds."""
        self._ending.set()
        if self._telling:
            _, late = await asyncio.wait(self._telling, timeout=_LAST)
            for one in late:
                one.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def answer(
        self, request: Request, send: Send, budget: Budget, wire: Wire, body: bytes, visit: Visit
    ) -> Response | None:
        """The response to a request; None: it was sent, as a stream.

        :raises Refused: where it cannot be answered.
        """
        from starlette.responses import Response

        asked = read_object(body)
        menu = budget.menu_of(asked.get("model"))
        backends = {tier.name: budget.solver.for_tier(tier.name).backend for tier in budget.sessions[menu].tiers}
        read = {one.name: wire.read(asked, one) for one in backends.values()}
        chats = Chats(menu, {tier: read[backend.name] for tier, backend in backends.items()}, backends)
        chat = chats.any
        if budget.plan.unit != "tokens":
            for one in read.values():
                refuse_unpriced(one)
        visit.stream = chat.stream
        headers = {"x-roi-budget": quote(budget.name), "x-roi-unit": SHORT_UNITS[budget.plan.unit]}
        if chat.replaced:
            headers["x-roi-replaced"] = ",".join(chat.replaced)
        stream = EventStream(send, wire, headers, visit) if chat.stream else None
        try:
            with contextlib.nullcontext() if stream is None else stream.kept_alive():
                answer = await self._ask(request, budget, chats, headers, visit, stream)
            last = wire.end(answer) if stream is not None and stream.begun else ""
        except Gone:
            visit.status = 499
            return None if stream is not None and stream.begun else Response(status_code=499)  # nobody reads it
        except Exception as error:
            if stream is None or not stream.begun:
                raise
            refused = error if isinstance(error, Refused) else internal_error(error)
            await stream.end(wire.failed(refused))
            if refused is error:
                return None
            raise
        if stream is None:
            return json_response(wire.whole(answer), headers=headers)
        if stream.begun:
            await stream.end(last)
            return None
        text = "".join(wire.chunk(None, chunk) for chunk in chunks(answer)) + wire.end(answer)
        return Response(text, headers=headers, media_type="text/event-stream")

    async def _ask(
        self,
        request: Request,
        budget: Budget,
        chats: Chats,
        headers: dict[str, str],
        visit: Visit,
        stream: EventStream | None,
    ) -> dict[str, Any]:
        """The whole answer, as a completion.

        :param headers: gets what is known.
        :raises Refused: where there is none.
        :raises Gone: where the client has left.
        """
        session, priced = budget.sessions[chats.menu], budget.plan.unit != "tokens"
        # An answer that is text alone is the same whether it comes whole or in chunks, which tell what it has taken.
        grows = stream is not None or chats.any.fields.keys() <= _OF_TEXTS

        async def admit() -> Ticket | None:
            ticket = await _admit(budget, chats, grows)
            own = ticket.entry.reserved if ticket is not None and ticket.entry is not None else 0
            if (warning := budget.warning(own)) is not None:
                headers["x-roi-warning"] = warning
            if ticket is not None:
                visit.tier = session.tiers[ticket.action - 1].name if ticket.action else "skip"
                headers["x-roi-tier"] = quote(visit.tier)
            return ticket

        def stops() -> bool:
            backend = chats.backends.get(visit.tier or "", chats.backend)
            asked = visit.tier in session.problem.tier_names  # and not skipped
            streams = stream is not None or (grows and asked and budget.solver.for_tier(str(visit.tier)).counts)
            return backend.stops or (streams and backend.streams is not None)

        async def finish(ticket: Ticket, wanted: Callable[[], bool]) -> tuple[Row, Reply | None]:
            async def on_disk() -> None:
                if ticket.entry is not None:
                    await budget.clerk.on_disk(ticket.entry)

            def prepare(ask: Ask) -> Ask:
                sink = None if stream is None else stream.take
                return chats.prepare(ask)._replace(wanted=wanted, sink=sink, held=on_disk)

            try:
                row, reply = await session.finish(ticket, prepare)
            except BaseException:  # what stopped it has settled it
                entry = ticket.entry
                if entry is not None and entry.facts is not None and entry.charged is not None:
                    visit.charged = entry.facts.get("tokens", 0) if priced else entry.charged
                    visit.usd = entry.charged / 10**6 if priced else None
                self._warn(budget)
                raise
            visit.charged = row.tokens if priced else row.charged
            self._warn(budget)
            if reply is not None:
                visit.prompt, visit.usd = reply.prompt_tokens, row.charged / 10**6 if priced else reply.usd
            return row, reply

        try:
            outcome = await attend(request, budget.queue, budget.solver, admit, finish, stops=stops)
            if outcome is None:
                raise self._spent(budget)
            row, reply = outcome
            headers |= {"x-roi-charged": budget.text(row.charged), "x-roi-remaining": budget.text(session.remaining)}
            if (warning := budget.warning()) is not None:
                headers["x-roi-warning"] = warning
            if reply is not None and reply.error is not None:
                if reply.attempts == 0 and not _limited(chats, row, priced):
                    raise self._spent(budget, reply.error)
                raise not_answered(row, reply, headers)
            if reply is not None and reply.attempts == 0:
                raise self._too_dear(budget, row, chats.any)
            unit, tier = SHORT_UNITS[budget.plan.unit], row.tier or ""
            told: dict[str, Any] = {"budget": budget.name, "unit": unit, "tier": row.tier or "skip"}
            told |= {
                "charged": budget.shown(row.charged),
                "remaining": budget.shown(session.remaining),
                "counted": row.counted,
            }
            told |= {"overshoot": budget.shown(row.overshoot)}
            return completion(row, reply, told, chats.of(tier), chats.backends.get(tier, chats.backend), chats.menu)
        except Busy as busy:
            wait = {"x-roi-budget": quote(budget.name), "retry-after": busy.retry_after}
            raise _coded(visit, Refused(503, "busy", str(busy), headers=wait)) from None
        except BooksAway:
            raise _coded(visit, books_away(charged=bool(visit.charged or visit.usd))) from None
        except asyncio.CancelledError:  # the server ends
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            raise _coded(visit, _ended(charged=bool(visit.charged or visit.usd))) from None
        except Refused as refused:
            raise _coded(visit, refused) from None

    def _warn(self, budget: Budget) -> None:
        """Tell the budget's webhook, once, where its soft limit is reached."""
        plan, session = budget.plan, budget.session
        if plan.webhook is None or plan.warn_at is None or session.charged < plan.warn_at * session.budget:
            return
        telling = asyncio.create_task(_tell(budget, plan.webhook, plan.warn_at, self._ending))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def _too_dear(self, budget: Budget, row: Row, chat: Chat) -> Refused:
        """The error of a request for which nothing could be generated."""
        unit, most = budget.plan.unit, budget.plan.most_per_request
        if unit != "tokens" and most is not None and row.reserved >= most:
            message = f"what is asked may cost more than {cost_with_unit(most, unit)}, the most that one request may"
            return Refused(400, "request_too_dear", message, headers={"x-should-retry": "false"})
        answers = f"{chat.choices} answers need" if chat.choices > 1 else "an answer needs"
        return self._spent(budget, f"{answers} more than {cost_with_unit(budget.session.remaining, unit)}")

    def _spent(self, budget: Budget, why: str = "") -> Refused:
        left = budget.text(budget.session.remaining)
        headers = {"x-roi-budget": quote(budget.name), "x-roi-remaining": left, "x-should-retry": "false"}
        headers["x-roi-unit"] = SHORT_UNITS[budget.plan.unit]
        message = f"the budget {budget.name!r} of {cost_with_unit(budget.session.budget, budget.plan.unit)} is spent"
        if (end := period_end(budget.plan.period)) is not None:
            message += f" until {end:%Y-%m-%d %H:%M} UTC"
        return Refused(self.spent_status, "budget_exhausted", f"{message}: {why}" if why else message, headers=headers)


async def _tell(budget: Budget, webhook: str, share: float, ending: asyncio.Event) -> None:
    """Tell a webhook that a soft limit is reached, unless that was told."""
    with contextlib.suppress(BooksAway):  # the next answer tries again
        if await budget.clerk.ask(lambda books: books.warns(share)):
            await tell(webhook, {**budget.state(), "warn_at": share}, endpoints.report, ending)


def _limited(chats: Chats, row: Row, priced: bool) -> bool:
    """Whether it was the client's own cap that left no room for a tier."""
    return chats.any.limit is not None and (priced or chats.any.limit == row.reserved)


def _coded(visit: Visit, refused: Refused) -> Refused:
    visit.code = refused.code
    return refused


async def _admit(budget: Budget, chats: Chats, grows: bool) -> Ticket | None:
    while True:
        async with budget.lock:
            ticket = await _decide(budget, chats, grows)
        if ticket is None or ticket.entry is None or budget.clerk.entered(ticket.entry):
            return ticket  # it is on the disk before it is sent: the connection is made meanwhile
        # The next is decided meanwhile: on a busy machine each would wait for the database and some turns of the event loop.
        if await budget.sessions[chats.menu].secured(ticket):
            return ticket


async def _decide(budget: Budget, chats: Chats, grows: bool) -> Ticket | None:
    from roi_env.answering.base import Question

    chat, session, most = chats.any, budget.sessions[chats.menu], budget.plan.most_per_request
    limit = chat.limit
    if most is not None and budget.plan.unit == "tokens":  # of one answer
        limit, most = most if limit is None else min(limit, most), None
    while budget.in_flight >= budget.window and len(budget.sessions) > 1:
        await asyncio.sleep(_LOOK)  # a session waits for its own alone
    position = min(budget.asked, session.problem.num_tasks - 1)
    question = Question("proxy", f"request-{budget.asked}", chat.text, "")
    if (known := budget.known.get(chats.menu)) is None:
        group = bisect_left(LENGTHS, len(chat.text))
    else:  # a language model may take its time
        group = int((await asyncio.to_thread(known.group, [chat.text], {}))[0])
    ticket = await session.decide(position, question, group, limit, chat.choices, most, chats.prepare, grows)
    budget.asked += ticket is not None
    return ticket


def not_answered(row: Row, reply: Reply, headers: Mapping[str, str]) -> Refused:
    """The error of a question that was admitted: the endpoint's own status and words, where it told some.

    What it may have cost is charged: asking again is a new question, so a client may do that by itself only where nothing
    was generated.
    """
    from roi_env.answering.base import Failure

    if reply.attempts == 0:  # not sent: the client's cap leaves no room for the tier at this endpoint
        message = f"max_tokens: {reply.error}"
        return Refused(400, "unsupported", message, "max_tokens", {**headers, "x-should-retry": "false"})
    failure = reply.failure or Failure(None, reply.error or "no answer came")
    told = failure.status if failure.status is not None and 400 <= failure.status <= 599 else 502
    if reply.lost and told not in (502, 504):
        told = 502  # clients repeat a 408 by themselves
    again = failure.again and not row.charged
    headers = {**headers, "x-should-retry": "true" if again else "false"}
    if told in (401, 407):  # the client's own was right
        return Refused(
            502, "upstream_key", f"the endpoint refused this proxy's key: {failure.message}", headers=headers
        )
    return Refused(told, failure.code or "upstream_error", failure.message, failure.param, headers)


def books_away(*, charged: bool) -> Refused:
    """What a client is told where the database of the budgets is away.

    :param charged: whether its question was admitted.
    """
    what = "the answer was stopped and costs its reservation" if charged else "nothing was asked and nothing is charged"
    headers = {"retry-after": "2", "x-should-retry": "false" if charged else "true"}
    return Refused(503, "budget_unavailable", f"the database of the budgets does not answer: {what}", headers=headers)


def _ended(*, charged: bool) -> Refused:
    """What a client is told whose question ends with the proxy."""
    what = "the answer was stopped and costs its reservation" if charged else "nothing was asked and nothing is charged"
    return Refused(
        503, "proxy_ended", f"this proxy was ended: {what}", headers={"x-should-retry": "false" if charged else "true"}
    )


def internal_error(error: Exception) -> Refused:
    """What a client is told of a fault of the proxy itself."""
    return Refused(500, "internal_error", f"this proxy failed ({type(error).__name__}); its log says how")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response of JSON."""
    from starlette.responses import Response

    return Response(json_text(content), status, headers, "application/json")
