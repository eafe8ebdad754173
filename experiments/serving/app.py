"""The application of `roi serve`: budgets, who may use them, and a request's way from a client to the endpoint and back."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import signal
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.serving import overview
from experiments.serving.amounts import digest
from experiments.serving.budget import Budget
from experiments.serving.chat import Refused
from experiments.serving.desk import Desk, Wire, books_away, internal_error, json_response
from experiments.serving.guard import BODY_SECONDS, LOOPBACK, bearer, check_origin, fits, no_key, read_json, shown
from experiments.serving.messages import MessagesWire
from experiments.serving.metrics import Visit, log
from experiments.serving.responses import ResponsesWire
from experiments.serving.wires import ChatWire, TextWire
from roi_env.answering.ledger import BooksAway

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from roi_env.answering.http import ByTier, HTTPSolver


WIRES: Mapping[str, Callable[[], Wire]] = {
    "/chat/completions": ChatWire,
    "/completions": TextWire,
    "/responses": ResponsesWire,
    "/messages": MessagesWire,
}
"""Addresses under ``/v1`` that ask questions."""


@dataclass
class _Proxy:
    """What answers at the addresses; parameters as in :func:`application`."""

    budgets: Sequence[Budget]
    desk: Desk
    token: str | None
    keys: Mapping[str, str]
    admin: str | None
    hosts: Collection[str] | None
    body_seconds: float

    def _opens(self, given: bytes | None, budget: Budget) -> bool:
        if budget.plan.key is not None:
            return given is not None and hmac.compare_digest(digest(given), budget.plan.key)
        return fits(given, self.keys.get(budget.name, self.token))

    def _open_to(self, request: Request) -> list[Budget]:
        """The budgets that a request's key opens, where it may come here at all."""
        check_origin(request, self.hosts)
        given = bearer(request)
        found = [budget for budget in self.budgets if self._opens(given, budget)]
        if not found:
            raise no_key("this proxy needs its key as the API key")
        return found

    def _budget_of(self, request: Request) -> Budget:
        name = request.path_params.get("name") or self.budgets[0].name
        allowed = self._open_to(request)
        by_name = {budget.name: budget for budget in self.budgets}
        if name not in by_name:
            names = ", ".join(budget.name for budget in allowed)
            raise Refused(404, "unknown_budget", f"no budget {name!r}; there are {names}")
        if by_name[name] not in allowed:
            raise no_key(f"this key does not open the budget {name!r}")
        return by_name[name]

    async def question(self, request: Request, send: Send) -> Response | None:
        """Answer a question.

        :returns: None where the answer was sent.
        """
        budget = self._budget_of(request)
        path = _path(request)
        visit = request.scope["visit"] = Visit(budget.name, path)
        try:
            body = await read_json(request, self.body_seconds)
            return await self.desk.answer(request, send, budget, WIRES[path](), body, visit)
        except Refused as refused:
            visit.status, visit.code = refused.status, refused.code
            raise
        except asyncio.CancelledError:  # the server ends
            visit.status = 499
            raise
        except Exception:
            visit.status, visit.code = 500, "internal_error"
            raise
        finally:
            self.desk.metrics.ended(visit)

    async def models(self, request: Request) -> Response:
        """The models that a budget may ask."""
        told = [_model(menu) for menu in self._budget_of(request).menus]
        return json_response({"object": "list", "data": told, "has_more": False})

    async def model(self, request: Request) -> Response:
        """One of them."""
        return json_response(_model(self._budget_of(request).menu_of(request.path_params["model"])))

    async def status(self, request: Request) -> Response:
        """How budgets stand."""
        budgets = self._open_to(request)
        # Other processes are asked too.
        counts = await asyncio.gather(*(budget.clerk.look(lambda books: books.asked) for budget in budgets))
        told = [{**budget.state(), "asked": asked} for budget, asked in zip(budgets, counts, strict=True)]
        return json_response({"budgets": told})

    async def health(self, request: Request) -> Response:
        """Whether this process, the endpoint and the database of the budgets take requests."""
        waits = {one.url: round(one.closed_for) for solver in _solvers(self.budgets) for one in solver.each}
        closed = [f"{url} asks to wait {wait} s" for url, wait in waits.items() if wait]
        database = "away" if any(budget.clerk.away for budget in self.budgets) else "open"
        told = {"status": "ok", "endpoint": "; ".join(closed) if closed else "open", "database": database}
        return json_response(told)

    async def page(self, request: Request) -> Response:
        """Budgets as people see them."""
        from starlette.responses import HTMLResponse, PlainTextResponse

        check_origin(request, self.hosts)
        given = shown(request)
        if self.admin is None:  # this machine's own addresses need no key
            is_admin = self.hosts is not None and given is None
        else:
            is_admin = fits(given, self.admin)
        seen = [one for one in self.budgets if is_admin or (given and self._opens(given, one))]
        if not seen:
            refused = no_key("this page needs the key of --admin-key-env, or of a budget, as the password")
            ask = {"www-authenticate": 'Basic realm="budgets", charset="UTF-8"'}
            return PlainTextResponse(str(refused), refused.status, ask)
        text, headers = await overview.page(seen)
        return HTMLResponse(text, headers=headers)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        from starlette.responses import PlainTextResponse

        check_origin(request, self.hosts)
        if (self.admin is None and self.hosts is None) or not fits(shown(request), self.admin):
            raise no_key("this page needs the key of --admin-key-env")
        # Where their database is away: as they stood last.
        await asyncio.gather(*(budget.clerk.refresh() for budget in self.budgets), return_exceptions=True)
        told = (
            {
                **budget.state(),
                "in_flight": budget.in_flight,
                "waiting": budget.queue.waiting,
                "database_up": int(budget.clerk.away is None),
            }
            for budget in self.budgets
        )
        return PlainTextResponse(self.desk.metrics.text(told), media_type="text/plain; version=0.0.4")


@dataclass
class _Questions:
    """The application at :data:`WIRES`: streams need ASGI's ``send``, which Starlette gives no function."""

    proxy: _Proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import Request

        response = await self.proxy.question(Request(scope, receive, send), send)
        if response is not None:
            await response(scope, receive, send)


def application(
    budgets: Sequence[Budget],
    token: str | None = None,
    *,
    keys: Mapping[str, str] | None = None,
    admin: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    spent_status: int = 429,
    body_seconds: float = BODY_SECONDS,
    left: Collection[Budget] = (),
    reload: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> Starlette:
    """The ASGI application.

    :param budgets: may change while it runs.
    :param left: budgets that were among them and may still be at work; closed with them.
    :param reload: changes both; called at SIGHUP.
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
    from starlette.routing import Route

    desk = Desk(spent_status)
    proxy = _Proxy(budgets, desk, token, keys or {}, admin, hosts, body_seconds)

    def answered(request: Request, refused: Refused) -> Response:
        if "visit" not in request.scope:  # what reached no budget; its address may hold what was meant to be a key
            name, path, under = request.path_params.get("name"), request.url.path, _path(request)
            known = path if path in pages else under if under in (*WIRES, "/models") else ""
            reached = name if name in {budget.name for budget in budgets} else ""
            log(Visit(reached, known, status=refused.status, code=refused.code))
        return _error(request, refused)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return answered(request, error)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}"
        return answered(request, Refused(error.status_code, "invalid_request", what, headers=error.headers))

    async def away(request: Request, error: Exception) -> Response:
        return answered(request, books_away(charged=False))

    async def failed(request: Request, error: Exception) -> Response:
        return answered(request, internal_error(error))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        running: set[asyncio.Task[None]] = set()

        def again() -> None:
            assert reload is not None
            running.add(task := asyncio.create_task(reload()))
            task.add_done_callback(running.discard)

        if reload is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, again)
        tending = asyncio.create_task(_tend(budgets))
        yield
        tending.cancel()
        await desk.close()
        await asyncio.gather(*running, return_exceptions=True)
        for solver in _solvers([*budgets, *left]):
            await solver.close()
        closed = [*budgets, *left]
        with ThreadPoolExecutor(len(closed)) as threads:  # each may wait for a database that hangs
            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(threads, one.close) for one in closed))

    questions: Callable[..., Any] = _Questions(proxy)
    routes = [
        Route(f"{prefix}/v1{path}{slash}", endpoint, methods=[method])
        for prefix in ("/{name}", "")
        for path, slashes, endpoint, method in (
            # Many clients follow no redirection from one to the other.
            *((path, ("", "/"), questions, "POST") for path in WIRES),
            ("/models", ("", "/"), proxy.models, "GET"),
            ("/models/{model:path}", ("",), proxy.model, "GET"),
        )
        for slash in slashes
    ]
    pages = {"/": proxy.page, "/budgets": proxy.status, "/health": proxy.health, "/metrics": proxy.metrics}
    app = Starlette(
        routes=[*routes, *(Route(path, endpoint) for path, endpoint in pages.items())],
        lifespan=lifespan,
        exception_handlers={Refused: refused, BooksAway: away, HTTPException: unknown, Exception: failed},
    )
    app.router.redirect_slashes = False
    return app


_TEND = 3.0
"""Seconds between two looks after the books."""


async def _tend(budgets: Sequence[Budget]) -> None:
    """Charge what other processes had in flight when they died, show that this one lives, also while nothing is asked, and
    forget what was settled long ago."""
    while True:
        await asyncio.sleep(_TEND)
        await asyncio.gather(*(budget.clerk.reap() for budget in budgets), return_exceptions=True)
        await asyncio.gather(*(budget.fold() for budget in budgets))


def _solvers(budgets: Sequence[Budget]) -> list[HTTPSolver | ByTier]:
    """Who answers, each once."""
    return list(dict.fromkeys(budget.solver for budget in budgets))


def _path(request: Request) -> str:
    """The address under ``/v1``."""
    return "/" + request.scope["path"].partition("/v1/")[2].removesuffix("/")


def _model(name: str) -> dict[str, Any]:
    """A model, as both OpenAI's and Anthropic's clients read it."""
    told = {"id": name, "object": "model", "created": 0, "owned_by": "roi"}
    return {**told, "type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}


def _error(request: Request, refused: Refused) -> Response:
    """An error, in the form of the API that was asked."""
    wire = WIRES.get("/" + "/".join(_path(request).split("/")[1:2]), ChatWire)()
    return json_response(wire.error(refused), refused.status, refused.headers)
