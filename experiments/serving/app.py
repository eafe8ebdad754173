"""The application of `roi serve`: budgets, who may use them, and a request's way from a client to the endpoint and back."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from experiments.commands import endpoints
from experiments.serving import overview
from experiments.serving.amounts import Plan, digest
from experiments.serving.attend import Busy, Gone, Queue, attend
from experiments.serving.chat import Chat, Refused, chunks, completion, json_text, read_object, refuse_unpriced
from experiments.serving.guard import BODY_SECONDS, LOOPBACK, bearer, check_origin, fits, no_key, read_json, shown
from experiments.serving.messages import MessagesWire
from experiments.serving.metrics import Metrics, Visit
from experiments.serving.responses import ResponsesWire
from experiments.serving.webhooks import tell
from experiments.serving.wires import ChatWire, TextWire
from roi_env.answering.books import DatabaseLedger
from roi_env.answering.prices import TOKENS, Rates
from roi_env.sources.units import SHORT_UNITS, UNIT_NAMES, cost_text, cost_with_unit

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from agents.live.session import Row, Session
    from agents.live.steps import Ticket
    from roi_env.answering.backends import Backend
    from roi_env.answering.base import Ask, Reply, ThinkingTier
    from roi_env.answering.http import ByTier, HTTPSolver
    from roi_env.envs.live import KnownGroups

Wire = ChatWire | MessagesWire | ResponsesWire

LENGTHS = (120, 400)
"""Characters up to which a conversation is short, middle; questions to come are not known, so thirds cannot be taken."""
MOST_PLANNED = 2**30 - 1
"""Of a budget, that agents plan with; larger ones are kept all the same."""
_LOOK = 0.05
"""Seconds after which a full window is looked at again."""
RELEARNED = 1000
"""Newest requests of a budget that agents learn from after a restart."""
KEEP_ALIVE = 15.0
"""Seconds without a chunk after which a stream says that it lives."""
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
WIRES: Mapping[str, Callable[[], Wire]] = {
    "/chat/completions": ChatWire,
    "/completions": TextWire,
    "/responses": ResponsesWire,
    "/messages": MessagesWire,
}
"""Addresses under ``/v1`` that ask questions."""


@dataclass
class Budget:
    """One named budget.

    :param sessions: by menu: each admits and settles, all in one ledger.
    :param window: questions of all sessions in flight.
    :param lock: questions are admitted one after the other.
    :param asked: questions so far.
    :param queue: who waits to be admitted.
    :param plan: as it was configured.
    :param known: a predictor's groups by menu; of others: by length.
    """

    name: str
    sessions: dict[str, Session]
    window: int
    lock: asyncio.Lock
    asked: int
    queue: Queue
    plan: Plan
    known: Mapping[str, KnownGroups] = field(default_factory=dict)

    @property
    def session(self) -> Session:
        """The first menu's; what is left and charged is the same in all."""
        return next(iter(self.sessions.values()))

    @property
    def menus(self) -> list[str]:
        """What its key may ask, as clients name models."""
        return [menu for menu in self.sessions if not self.plan.models or menu in self.plan.models]

    @property
    def in_flight(self) -> int:
        """Requests at endpoints."""
        return sum(session.in_flight for session in self.sessions.values())

    def menu_of(self, model: Any) -> str:
        """The menu that a client's ``model`` names; its first one where it names none.

        :raises Refused: 404, where the key may not ask it, or there is none.
        """
        if model is None or not isinstance(model, str):  # what is no text is refused with the rest of the request
            return self.menus[0]
        if model not in self.menus:
            there = ", ".join(map(repr, self.menus))
            message = f"The model {model!r} does not exist or this key may not use it; there is {there}"
            raise Refused(404, "model_not_found", message, "model")
        return model

    def close(self) -> None:
        """Close its ledgers."""
        for session in self.sessions.values():
            session.ledger.close()

    def text(self, cost: int) -> str:
        """A cost as a header tells it."""
        return str(cost) if self.plan.unit == "tokens" else f"{cost / 10**6:.6f}"

    def shown(self, cost: int) -> int | float:
        """A cost as answers tell it: tokens, or dollars."""
        return cost if self.plan.unit == "tokens" else cost / 10**6

    def renewed(self, plan: Plan) -> Budget:
        """The same budget under another plan; requests in flight are settled as ever.

        :raises ValueError: where its books cannot be changed.
        """
        if plan != self.plan:
            books = self.session.ledger
            assert isinstance(books, DatabaseLedger)
            if unknown := [menu for menu in plan.models if menu not in self.sessions]:
                raise ValueError(
                    f"budgets.{plan.name}.models: there is no menu {unknown[0]!r}, but {', '.join(self.sessions)}"
                )
            books.replan(plan.amount, plan.period, plan.carry_over, plan.unit)
            self.plan = plan
        return self

    @property
    def warning(self) -> str | None:
        """What a client should know of it."""
        share, left = self.plan.warn_at, self.session.remaining
        if share is None or self.session.budget - left < share * self.session.budget:
            return None
        return f"{cost_text(left, self.plan.unit)} of {cost_with_unit(self.session.budget, self.plan.unit)} are left"

    def state(self) -> dict[str, Any]:
        """How it stands, in tokens or dollars."""
        unit, session = SHORT_UNITS[self.plan.unit], self.session
        return {
            "budget": self.name,
            "unit": unit,
            unit: self.shown(session.budget),
            "charged": self.shown(session.charged),
            "reserved": self.shown(session.ledger.reserved),
            "remaining": self.shown(session.remaining),
            "asked": self.asked,
        }


@dataclass(frozen=True)
class Served:
    """What one agent chooses from; ``name`` is what clients ask for as ``model``.

    :param rates: what its tiers cost.
    :param models: who answers each tier, where they are several.
    """

    name: str
    tiers: Sequence[ThinkingTier]
    rates: Rates = TOKENS
    models: Sequence[str] = ()


def make_budget(
    name: str,
    amount: int | Plan,
    solver: HTTPSolver | ByTier,
    tiers: Sequence[ThinkingTier] | Sequence[Served],
    agent: str,
    expected: int,
    window: int,
    state: Path,
    queue: Queue | None = None,
    database: str | None = None,
    known: KnownGroups | None = None,
) -> Budget:
    """A budget with its ledger; an earlier one of the same name goes on, with another amount and other tiers too.

    :param amount: tokens of it, or all that is known of it.
    :param tiers: of the solver's one model, or several menus.
    :param expected: questions that the agent plans for; later ones count as the last.
    :param known: a predictor's groups, in place of groups by length, of the menus whose tiers it predicts.
    :raises ValueError: for agents or groups that do not fit, or a ledger that another process uses or that counts another unit.
    """
    from agents.live.session import check_live

    check_live(agent, learns=False)
    plan = amount if isinstance(amount, Plan) else Plan(name, amount)
    menus = [one for one in tiers if isinstance(one, Served)]
    menus = menus or [Served(solver.name, [one for one in tiers if not isinstance(one, Served)])]
    if unknown := [menu for menu in plan.models if menu not in {one.name for one in menus}]:
        there = ", ".join(one.name for one in menus)
        raise ValueError(f"budgets.{name}.models: there is no menu {unknown[0]!r}, but {there}")
    known_by_menu = {
        one.name: known for one in menus if known is not None and [tier.name for tier in one.tiers] == [*known.tiers]
    }
    if known is not None and not known_by_menu:
        there = "; ".join(f"{one.name}: {', '.join(tier.name for tier in one.tiers)}" for one in menus)
        raise ValueError(f"the predictor's tiers are {', '.join(known.tiers)}, the live ones {there}: name them alike")
    state.mkdir(parents=True, exist_ok=True)
    sessions: dict[str, Session] = {}
    try:
        for menu in menus:
            own = known_by_menu.get(menu.name)
            sessions[menu.name] = _session(plan, menu, solver, agent, expected, window, state, database, own)
    except ValueError:
        for made in sessions.values():
            made.ledger.close()
        raise
    first = next(iter(sessions.values())).ledger
    assert isinstance(first, DatabaseLedger)
    return Budget(name, sessions, window, asyncio.Lock(), first.asked, queue or Queue(), plan, known_by_menu)


def _session(
    plan: Plan,
    menu: Served,
    solver: HTTPSolver | ByTier,
    agent: str,
    expected: int,
    window: int,
    state: Path,
    database: str | None,
    known: KnownGroups | None,
) -> Session:
    from agents.base import HIDDEN, public_problem
    from agents.live.session import Session, make_live, prompt_bound
    from roi_env.answering.base import Question
    from roi_env.envs.live import live_source
    from roi_env.exams.config import exam_spec

    if menu.rates.unit != plan.unit:
        raise ValueError(
            f"the budget {plan.name!r} is {UNIT_NAMES[plan.unit]}, the tiers of {menu.name!r} cost {UNIT_NAMES[menu.rates.unit]}"
        )
    options: dict[str, Any] = {"rates": menu.rates, "models": menu.models, "prompt": prompt_bound(solver, menu.rates)}
    if known is None:
        # Thirds by length stand for the questions to come.
        asked = [Question("proxy", str(n), "x" * (1 + n % 3), "") for n in range(3 * expected)]
    else:
        known.group(["?"], {})  # a column that it needs no request has: said now, not at the first request
        # Groups come as often as among the questions that the predictor was fitted on.
        count = np.maximum(1, np.rint(known.share * max(3 * expected, 20 * len(known.names)))).astype(np.int64)
        to_come = np.repeat(np.arange(len(count)), count)
        asked = [Question("proxy", str(n), "", "") for n in range(len(to_come))]
        options["known"] = replace(known, group=lambda texts, columns: to_come)
    source = live_source(asked, menu.tiers, **options)
    planned = min(plan.amount, MOST_PLANNED)
    text = f"{planned} {plan.unit}"
    spec = exam_spec(source, num_tasks=expected, budget=text, preview=False)
    decides = make_live(agent, public_problem(spec))
    # What was charged is charged, whatever the budget and the tiers are now.
    ledger = DatabaseLedger(
        database or state / "budgets.db",
        plan.name,
        plan.amount,
        {"tiers": [list(tier.__dict__.values()) for tier in menu.tiers]},
        period=plan.period,
        carry=plan.carry_over,
        journal=state / f"{plan.name}.jsonl",
        unit=plan.unit,
    )
    for message in ledger.messages:
        endpoints.report(message)
    try:
        session = Session(
            decides, solver, menu.tiers, [HIDDEN] * expected, ledger=ledger, window=window, rates=menu.rates
        )
        session.relearn(ledger.newest_entries(RELEARNED))
        return session
    except ValueError:
        ledger.close()
        raise


class Relay:
    """Chunks on their way from the endpoint to a client; an endpoint that is faster than its client waits.

    :param most: chunks that may lie here.
    """

    def __init__(self, most: int = 256) -> None:
        self._chunks: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._most, self._closed = most, False
        self._news, self._room = asyncio.Event(), asyncio.Event()

    async def take(self, text: str, chunk: Mapping[str, Any]) -> None:
        """A :data:`roi_env.answering.base.Sink`."""
        if not self._closed:
            self._chunks.append((text, chunk))
            self._news.set()
            if len(self._chunks) >= self._most:
                self._room.clear()
                await self._room.wait()

    def end(self) -> None:
        """No more will come."""
        self._news.set()

    async def begins(self, may_begin: Callable[[], bool]) -> bool:
        """Wait for the first chunk, or the end.

        :param may_begin: whether the stream may begin without one, after :data:`KEEP_ALIVE` seconds.
        :returns: whether there is a stream: False where the end came first.
        """
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    await self._news.wait()
                return bool(self._chunks)
            except TimeoutError:
                if may_begin():
                    return True

    async def events(self, task: asyncio.Task[dict[str, Any]], wire: Wire) -> AsyncIterator[str]:
        """What a client reads.

        :param task: gives the whole answer.
        """
        try:
            while True:
                try:
                    async with asyncio.timeout(KEEP_ALIVE):
                        await self._news.wait()
                except TimeoutError:
                    yield ": still at work\n\n"
                    continue
                self._news.clear()
                came = [wire.chunk(text, chunk) for text, chunk in self._chunks]
                self._chunks.clear()
                self._room.set()
                if sent := "".join(came):
                    yield sent
                if task.done() and not self._chunks:
                    break
            try:
                answer = task.result()
            except Refused as refused:
                yield wire.failed(refused)
            except Gone:
                return
            except Exception as error:
                yield wire.failed(_failure(error))
                raise
            else:
                yield wire.end(answer)
        finally:
            self._closed = True
            self._chunks.clear()
            self._room.set()


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

    :param solver: who answers.
    :param spent_status: of HTTP, where a budget is spent.
    """

    def __init__(self, solver: HTTPSolver | ByTier, spent_status: int) -> None:
        self.solver, self.spent_status, self.metrics = solver, spent_status, Metrics()
        self._running: set[asyncio.Task[dict[str, Any]]] = set()
        self._telling: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End what still runs for clients that have left; warnings are sent first."""
        await asyncio.gather(*self._telling)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def answer(self, request: Request, budget: Budget, wire: Wire, body: bytes, visit: Visit) -> Response:
        """The response to a request.

        :raises Refused: where it cannot be answered.
        """
        from starlette.responses import Response, StreamingResponse

        asked = read_object(body)
        menu = budget.menu_of(asked.get("model"))
        backends = {tier.name: self.solver.for_tier(tier.name).backend for tier in budget.sessions[menu].tiers}
        read = {one.name: wire.read(asked, one) for one in backends.values()}
        chats = Chats(menu, {tier: read[backend.name] for tier, backend in backends.items()}, backends)
        chat = chats.any
        if budget.plan.unit != "tokens":
            for one in read.values():
                refuse_unpriced(one)
        visit.stream = chat.stream
        headers = {"x-roi-budget": quote(budget.name), "x-roi-unit": SHORT_UNITS[budget.plan.unit]}
        if budget.warning is not None:
            headers["x-roi-warning"] = budget.warning
        if chat.replaced:
            headers["x-roi-replaced"] = ",".join(chat.replaced)
        if not chat.stream:
            try:
                answer = await self._ask(request, budget, chats, headers, visit, None)
            except Gone:
                visit.status = 499
                return Response(status_code=499)  # nobody reads it
            return _json(wire.whole(answer), headers=headers)
        relay = Relay()
        task = asyncio.create_task(self._ask(request, budget, chats, headers, visit, relay))
        self._running.add(task)

        def done(task: asyncio.Task[dict[str, Any]]) -> None:
            self._running.discard(task)
            if not task.cancelled():
                task.exception()  # whoever reads the stream hears of it
            relay.end()

        task.add_done_callback(done)
        try:
            begun = await relay.begins(lambda: "x-roi-tier" in headers)
        except BaseException:  # the server ends
            task.cancel()
            raise
        if not begun:
            try:
                answer = task.result()
            except Gone:
                visit.status = 499
                return Response(status_code=499)
            text = "".join(wire.chunk(None, chunk) for chunk in chunks(answer)) + wire.end(answer)
            return Response(text, headers=headers, media_type="text/event-stream")
        visit.first = visit.seconds
        return StreamingResponse(
            self._watched(relay.events(task, wire), visit),
            media_type="text/event-stream",
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def _watched(self, events: AsyncIterator[str], visit: Visit) -> AsyncIterator[str]:
        """A stream whose end is counted."""
        try:
            async with contextlib.aclosing(events):  # type: ignore[type-var]
                async for text in events:
                    yield text
        except BaseException:
            visit.status = 499
            raise
        finally:
            self.metrics.ended(visit)

    async def _ask(
        self, request: Request, budget: Budget, chats: Chats, headers: dict[str, str], visit: Visit, relay: Relay | None
    ) -> dict[str, Any]:
        """The whole answer, as a completion.

        :param headers: gets what is known.
        :raises Refused: where there is none.
        :raises Gone: where the client has left.
        """
        session, priced = budget.sessions[chats.menu], budget.plan.unit != "tokens"
        # An answer that is text alone is the same whether it comes whole or in chunks, which tell what it has taken.
        grows = relay is not None or chats.any.fields.keys() <= _OF_TEXTS

        async def admit() -> Ticket | None:
            ticket = await _admit(budget, chats, grows)
            if ticket is not None:
                visit.tier = session.tiers[ticket.action - 1].name if ticket.action else "skip"
                headers["x-roi-tier"] = quote(visit.tier)
            return ticket

        def stops() -> bool:
            backend = chats.backends.get(visit.tier or "", chats.backend)
            asked = visit.tier in session.problem.tier_names  # and not skipped
            streams = relay is not None or (grows and asked and self.solver.for_tier(str(visit.tier)).counts)
            return backend.stops or (streams and backend.streams is not None)

        async def finish(ticket: Ticket, wanted: Callable[[], bool]) -> tuple[Row, Reply | None]:
            def prepare(ask: Ask) -> Ask:
                return chats.prepare(ask)._replace(wanted=wanted, sink=None if relay is None else relay.take)

            row, reply = await session.finish(ticket, prepare)
            visit.charged = row.tokens if priced else row.charged
            self._warn(budget)
            if reply is not None:
                visit.prompt, visit.usd = reply.prompt_tokens, row.charged / 10**6 if priced else reply.usd
            return row, reply

        try:
            outcome = await attend(request, budget.queue, self.solver, admit, finish, stops=stops)
            if outcome is None:
                raise self._spent(budget)
            row, reply = outcome
            headers |= {"x-roi-charged": budget.text(row.charged), "x-roi-remaining": budget.text(session.remaining)}
            if budget.warning is not None:
                headers["x-roi-warning"] = budget.warning
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
        except Refused as refused:
            raise _coded(visit, refused) from None

    def _warn(self, budget: Budget) -> None:
        """Tell the budget's webhook, once, where its soft limit is reached."""
        plan, session, ledger = budget.plan, budget.session, budget.session.ledger
        if plan.webhook is None or plan.warn_at is None or session.charged < plan.warn_at * session.budget:
            return
        if isinstance(ledger, DatabaseLedger) and ledger.warns(plan.warn_at):
            telling = asyncio.create_task(
                tell(plan.webhook, {**budget.state(), "warn_at": plan.warn_at}, endpoints.report)
            )
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
        return Refused(self.spent_status, "budget_exhausted", f"{message}: {why}" if why else message, headers=headers)


def _limited(chats: Chats, row: Row, priced: bool) -> bool:
    """Whether it was the client's own cap that left no room for a tier."""
    return chats.any.limit is not None and (priced or chats.any.limit == row.reserved)


def _coded(visit: Visit, refused: Refused) -> Refused:
    visit.code = refused.code
    return refused


def application(
    budgets: Sequence[Budget],
    solver: HTTPSolver | ByTier,
    token: str | None = None,
    *,
    keys: Mapping[str, str] | None = None,
    admin: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    spent_status: int = 429,
    body_seconds: float = BODY_SECONDS,
    reload: Callable[[], None] | None = None,
) -> Starlette:
    """The ASGI application.

    :param budgets: may change while it runs.
    :param reload: changes them; called at SIGHUP.

    :param token: the key of budgets that have none of their own; None: they need none.
    :param keys: keys by budget.
    :param admin: the key of ``/metrics`` and of all budgets at ``/``; None: they are open on this machine's own addresses,
        and closed on others.
    :param hosts: names under which clients may reach it; None: any. Without keys, names are what keeps web pages out that
        a browser of this machine shows.
    :param spent_status: of HTTP, where a budget is spent.
    :param body_seconds: within which a request must have come.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    desk = Desk(solver, spent_status)

    def opens(given: bytes | None, budget: Budget) -> bool:
        if budget.plan.key is not None:
            return given is not None and hmac.compare_digest(digest(given), budget.plan.key)
        return fits(given, (keys or {}).get(budget.name, token))

    def open_to(request: Request) -> list[Budget]:
        """The budgets that a request's key opens, where it may come here at all."""
        check_origin(request, hosts)
        given = bearer(request)
        found = [budget for budget in budgets if opens(given, budget)]
        if not found:
            raise no_key("this proxy needs its key as the API key")
        return found

    def budget_of(request: Request) -> Budget:
        name = request.path_params.get("name") or budgets[0].name
        allowed = open_to(request)
        by_name = {budget.name: budget for budget in budgets}
        if name not in by_name:
            names = ", ".join(budget.name for budget in allowed)
            raise Refused(404, "unknown_budget", f"no budget {name!r}; there are {names}")
        if by_name[name] not in allowed:
            raise no_key(f"this key does not open the budget {name!r}")
        return by_name[name]

    async def question(request: Request) -> Response:
        budget = budget_of(request)
        path = _path(request)
        visit = Visit(budget.name, path)
        try:
            body = await read_json(request, body_seconds)
            response = await desk.answer(request, budget, WIRES[path](), body, visit)
        except Refused as refused:
            visit.status, visit.code = refused.status, refused.code
            desk.metrics.ended(visit)
            raise
        except Exception:
            visit.status, visit.code = 500, "internal_error"
            desk.metrics.ended(visit)
            raise
        if not isinstance(response, StreamingResponse):
            desk.metrics.ended(visit)
        return response

    async def models(request: Request) -> Response:
        told = [_model(menu) for menu in budget_of(request).menus]
        return _json({"object": "list", "data": told, "has_more": False})

    async def model(request: Request) -> Response:
        return _json(_model(budget_of(request).menu_of(request.path_params["model"])))

    async def status(request: Request) -> Response:
        return _json({"budgets": [budget.state() for budget in open_to(request)]})

    async def health(request: Request) -> Response:
        waits = {one.url: round(one.closed_for) for one in solver.each}
        closed = [f"{url} asks to wait {wait} s" for url, wait in waits.items() if wait]
        return _json({"status": "ok", "endpoint": "; ".join(closed) if closed else "open"})

    def is_admin(given: bytes | None) -> bool:
        if admin is None:  # this machine's own addresses need no key
            return hosts is not None and given is None
        return fits(given, admin)

    async def page(request: Request) -> Response:
        check_origin(request, hosts)
        given = shown(request)
        seen = list(budgets) if is_admin(given) else [one for one in budgets if given and opens(given, one)]
        if not seen:
            refused = no_key("this page needs the key of --admin-key-env, or of a budget, as the password")
            ask = {"www-authenticate": 'Basic realm="budgets", charset="UTF-8"'}
            return PlainTextResponse(str(refused), refused.status, ask)
        text, headers = overview.page([(one.plan, one.session, one.asked) for one in seen])
        return HTMLResponse(text, headers=headers)

    async def metrics(request: Request) -> Response:
        check_origin(request, hosts)
        if (admin is None and hosts is None) or not fits(shown(request), admin):
            raise no_key("this page needs the key of --admin-key-env")
        told = (
            {**budget.state(), "in_flight": budget.in_flight, "waiting": budget.queue.waiting} for budget in budgets
        )
        return PlainTextResponse(desk.metrics.text(told), media_type="text/plain; version=0.0.4")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return _error(request, error)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}"
        return _error(request, Refused(error.status_code, "invalid_request", what, headers=error.headers))

    async def failed(request: Request, error: Exception) -> Response:
        return _error(request, _failure(error))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if reload is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        yield
        await desk.close()
        await solver.close()
        for budget in budgets:
            budget.close()

    routes = [
        Route(f"{prefix}/v1{path}", endpoint, methods=[method])
        for prefix in ("", "/{name}")
        for path, endpoint, method in (
            *((path, question, "POST") for path in WIRES),
            ("/models", models, "GET"),
            ("/models/{model:path}", model, "GET"),
        )
    ]
    return Starlette(
        routes=[
            *routes,
            Route("/", page),
            Route("/budgets", status),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        lifespan=lifespan,
        exception_handlers={Refused: refused, HTTPException: unknown, Exception: failed},
    )


async def _admit(budget: Budget, chats: Chats, grows: bool) -> Ticket | None:
    from roi_env.answering.base import Question

    chat, session, most = chats.any, budget.sessions[chats.menu], budget.plan.most_per_request
    limit = chat.limit
    if most is not None and budget.plan.unit == "tokens":  # of one answer
        limit, most = most if limit is None else min(limit, most), None
    async with budget.lock:
        while budget.in_flight >= budget.window and len(budget.sessions) > 1:
            await asyncio.sleep(_LOOK)  # a session waits for its own alone
        position = min(budget.asked, session.problem.num_tasks - 1)
        question = Question("proxy", f"request-{budget.asked}", chat.text, "")
        if (known := budget.known.get(chats.menu)) is None:
            group = int(np.searchsorted(LENGTHS, len(chat.text)))
        else:  # a language model may take its time
            group = int((await asyncio.to_thread(known.group, [chat.text], {}))[0])
        ticket = await session.admit(position, question, group, limit, chat.choices, most, chats.prepare, grows)
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
    return Refused(told, failure.code or "upstream_error", failure.message, failure.param, headers)


def _path(request: Request) -> str:
    """The address under ``/v1``."""
    return "/" + request.url.path.partition("/v1/")[2]


def _model(name: str) -> dict[str, Any]:
    """A model, as both OpenAI's and Anthropic's clients read it."""
    told = {"id": name, "object": "model", "created": 0, "owned_by": "roi"}
    return {**told, "type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}


def _failure(error: Exception) -> Refused:
    return Refused(500, "internal_error", f"this proxy failed ({type(error).__name__}); its log says how")


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import Response

    return Response(json_text(content), status, headers, "application/json")


def _error(request: Request, refused: Refused) -> Response:
    """An error, in the form of the API that was asked."""
    wire = WIRES.get("/" + "/".join(_path(request).split("/")[1:2]), ChatWire)()
    return _json(wire.error(refused), refused.status, refused.headers)
