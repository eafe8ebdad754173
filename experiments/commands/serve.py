"""`roi serve`: an OpenAI-compatible proxy that keeps budgets. A user's client points at it and changes nothing else.

Every chat completion is one question of a budget: the agent decides its tier (or refuses it), the worst case is reserved,
the answer is settled. Budgets have names, ``/NAME/v1`` is the address of one, ``/v1`` that of the first. Their ledgers make
charges survive a restart and a kill. Clients' credentials are never passed on: the upstream's key comes from the
environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import numpy as np
import typer

from experiments.commands import endpoints
from experiments.commands.answer import TIERS
from experiments.config import ConfigError
from experiments.options import Imports, own_agents
from experiments.serving.attend import Busy, Gone, Queue, attend
from experiments.serving.chat import Chat, Refused, completion, events, json_text, parse_chat
from experiments.serving.guard import (
    BODY_SECONDS,
    LOOPBACK,
    bearer,
    check_origin,
    fits,
    no_key,
    patient_protocol,
    read_json,
)
from experiments.terminal import console

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from agents.live.controller import Row, Session, Ticket
    from roi_env.answering.base import LiveSolver, Reply, ThinkingTier
    from roi_env.answering.http import HTTPSolver

LENGTHS = (120, 400)
"""Characters up to which a conversation is short, middle; questions to come are not known, so thirds cannot be taken."""


@dataclass
class Budget:
    """One named budget.

    :param session: admits and settles.
    :param lock: questions are admitted one after the other.
    :param asked: questions so far.
    :param queue: who waits to be admitted.
    """

    name: str
    session: Session
    lock: asyncio.Lock
    asked: int
    queue: Queue


def make_budget(
    name: str,
    tokens: int,
    solver: LiveSolver,
    tiers: Sequence[ThinkingTier],
    agent: str,
    expected: int,
    window: int,
    state: Path,
    queue: Queue | None = None,
) -> Budget:
    """A budget with its ledger; an earlier one of the same name goes on, with other tokens and tiers too.

    :param expected: questions that the agent plans for; later ones count as the last.
    :raises ValueError: for agents that do not fit, or a ledger that another process uses.
    """
    from agents.base import HIDDEN, public_problem
    from agents.live.controller import Session, check_live, make_live
    from roi_env.answering.base import Question
    from roi_env.answering.ledger import Ledger
    from roi_env.envs.live import live_source
    from roi_env.exams.config import exam_spec

    check_live(agent, learns=False)
    # Thirds by length stand for the questions to come.
    asked = [Question("proxy", str(n), "x" * (1 + n % 3), "") for n in range(3 * expected)]
    spec = exam_spec(live_source(asked, tiers), num_tasks=expected, budget=tokens, preview=False)
    decides = make_live(agent, public_problem(spec))
    state.mkdir(parents=True, exist_ok=True)
    settings = {"budget": tokens, "tiers": [list(tier.__dict__.values()) for tier in tiers]}
    # What was charged is charged, whatever the budget and the tiers are now.
    ledger = Ledger(state / f"{name}.jsonl", settings, refuse=lambda old, new, records: None)
    for text in ledger.messages:
        endpoints.report(text)
    try:
        session = Session(decides, solver, tiers, [HIDDEN] * expected, ledger=ledger, window=window)
    except ValueError:
        ledger.close()
        raise
    return Budget(name, session, asyncio.Lock(), len(ledger.entries) + len(ledger.notes), queue or Queue())


def application(
    budgets: Sequence[Budget],
    solver: HTTPSolver,
    token: str | None = None,
    *,
    keys: Mapping[str, str] | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    spent_status: int = 429,
    body_seconds: float = BODY_SECONDS,
) -> Starlette:
    """The ASGI application.

    :param token: the key of budgets that have none of their own; None: they need none.
    :param keys: keys by budget.
    :param hosts: names under which clients may reach it; None: any. Without keys, names are what keeps web pages out that
        a browser of this machine shows.
    :param spent_status: of HTTP, where a budget is spent.
    :param body_seconds: within which a request must have come.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route

    by_name = {budget.name: budget for budget in budgets}
    key_of = {name: (keys or {}).get(name, token) for name in by_name}

    def open_to(request: Request) -> list[Budget]:
        """The budgets that a request's key opens, where it may come here at all."""
        check_origin(request, hosts)
        given = bearer(request)
        found = [budget for budget in budgets if fits(given, key_of[budget.name])]
        if not found:
            raise no_key("this proxy needs its key as the API key")
        return found

    def budget_of(request: Request) -> Budget:
        name = request.path_params.get("name") or budgets[0].name
        allowed = open_to(request)
        if name not in by_name:
            names = ", ".join(budget.name for budget in allowed)
            raise Refused(404, "unknown_budget", f"no budget {name!r}; there are {names}")
        if by_name[name] not in allowed:
            raise no_key(f"this key does not open the budget {name!r}")
        return by_name[name]

    def state(budget: Budget) -> dict[str, Any]:
        ledger = budget.session.ledger
        return {
            "budget": budget.name,
            "tokens": budget.session.budget,
            "charged": budget.session.charged,
            "reserved": ledger.reserved,
            "remaining": budget.session.remaining,
            "asked": budget.asked,
        }

    async def completions(request: Request) -> Response:
        budget = budget_of(request)
        chat = parse_chat(
            await read_json(request, body_seconds),
            model=solver.name,
            takes=solver.takes,
            named=solver.backend.named,
        )
        try:
            outcome = await attend(
                request,
                budget.queue,
                solver,
                lambda: _admit(budget, chat),
                lambda ticket, wanted: budget.session.finish(ticket, chat.messages, chat.fields, wanted),
            )
        except Busy as busy:
            wait = {"x-roi-budget": quote(budget.name), "retry-after": busy.retry_after}
            raise Refused(503, "busy", str(busy), headers=wait) from None
        except Gone:
            return Response(status_code=499)  # nobody reads it
        if outcome is None:
            raise spent(budget)
        row, reply = outcome
        headers = {
            "x-roi-budget": quote(budget.name),
            "x-roi-tier": quote(row.tier or "skip"),
            "x-roi-charged": str(row.charged),
            "x-roi-remaining": str(budget.session.remaining),
        }
        if reply is not None and reply.error is not None:
            if reply.attempts == 0 and chat.limit != row.reserved:
                raise spent(budget, reply.error)
            raise not_answered(row, reply, headers)
        answer = completion(row, reply, budget.session.remaining, budget.name, solver.name)
        if not chat.stream:
            return _json(answer, headers=headers)
        return Response(events(answer, chat.usage), media_type="text/event-stream", headers=headers)

    def spent(budget: Budget, why: str = "") -> Refused:
        left = str(budget.session.remaining)
        headers = {"x-roi-budget": quote(budget.name), "x-roi-remaining": left, "x-should-retry": "false"}
        message = f"the budget {budget.name!r} of {budget.session.budget:,} tokens is spent"
        return Refused(spent_status, "budget_exhausted", f"{message}: {why}" if why else message, headers=headers)

    async def models(request: Request) -> Response:
        budget_of(request)
        return _json({"object": "list", "data": [{"id": solver.name, "object": "model", "owned_by": "roi"}]})

    async def status(request: Request) -> Response:
        return _json({"budgets": [state(budget) for budget in open_to(request)]})

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return _error(error)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}"
        return _error(Refused(error.status_code, "invalid_request", what, headers=error.headers))

    async def failed(request: Request, error: Exception) -> Response:
        return _error(Refused(500, "internal_error", f"this proxy failed ({type(error).__name__}); its log says how"))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await solver.close()
        for budget in budgets:
            budget.session.ledger.close()

    routes = [
        Route(f"{prefix}/v1{path}", endpoint, methods=[method])
        for prefix in ("", "/{name}")
        for path, endpoint, method in (("/chat/completions", completions, "POST"), ("/models", models, "GET"))
    ]
    return Starlette(
        routes=[*routes, Route("/budgets", status)],
        lifespan=lifespan,
        exception_handlers={Refused: refused, HTTPException: unknown, Exception: failed},
    )


async def _admit(budget: Budget, chat: Chat) -> Ticket | None:
    from roi_env.answering.base import Question

    async with budget.lock:
        position = min(budget.asked, budget.session.problem.num_tasks - 1)
        text = chat.messages[-1].text
        group = int(np.searchsorted(LENGTHS, len(text)))
        question = Question("proxy", f"request-{budget.asked}", text, "")
        ticket = await budget.session.admit(position, question, group, chat.limit)
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


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import Response

    return Response(json_text(content), status, headers, "application/json")


def _error(refused: Refused) -> Response:
    error = {"message": str(refused), "type": refused.code, "code": refused.code, "param": refused.param}
    return _json({"error": error}, refused.status, refused.headers)


def serve(
    budget: Annotated[list[str], typer.Option(help="NAME=TOKENS, or TOKENS for one named default; repeatable")],
    upstream: Annotated[str, typer.Option(help="Base address of the endpoint, e.g. http://127.0.0.1:8000/v1")],
    model: Annotated[str | None, typer.Option(help="The endpoint's model; default: its only one")] = None,
    backend: endpoints.BackendName = "generic",
    agent: Annotated[
        str,
        typer.Option(
            help="Who decides: a planner of `roi agents` that needs no training; or FILE.py:CLASS", callback=own_agents
        ),
    ] = "online-lp",
    imports: Imports = None,
    tier: endpoints.Tiers = None,
    answer_tokens: Annotated[int, typer.Option(help="Answer tokens of tiers that name none", min=1)] = 512,
    expected: Annotated[
        int, typer.Option(help="Questions to plan for in every budget; later ones count as the last", min=1)
    ] = 100,
    window: Annotated[int, typer.Option(help="Questions of a budget in flight", min=1)] = 8,
    state: Annotated[Path, typer.Option(help="Folder of the budgets' ledgers: a restart goes on there")] = Path(
        "runs/serve"
    ),
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own need --token-env")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one", min=0, max=65535)] = 8700,
    key: Annotated[
        list[str] | None,
        typer.Option(help="NAME=ENV: environment variable with the key that opens this budget alone; repeatable"),
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key of all budgets that have none of their own")
    ] = None,
    spent_status: Annotated[
        int, typer.Option(help="HTTP status of a spent budget: 429, or 402, 403 for clients that retry 429 for ever")
    ] = 429,
    key_env: endpoints.KeyEnv = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; default: the endpoint's own", min=0)] = None,
    body: endpoints.Body = None,
    tokenizer: endpoints.Tokenizer = None,
    deadline: endpoints.Deadline = 600.0,
    retries: endpoints.Retries = 6,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds that a request may wait for its turn, and for an endpoint that refuses it for now; then it is "
            "answered 503 with Retry-After",
            min=1,
        ),
    ] = 60.0,
    queue: Annotated[
        int, typer.Option(help="Requests of a budget that may wait for their turn; others are answered 503", min=1)
    ] = 64,
) -> None:
    """Serve chat completions under token budgets: clients use http://HOST:PORT/NAME/v1 as their base address."""
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(f'{error}; the proxy needs: pip install "roi-reasoning[live]"') from None
    if spent_status not in (402, 403, 429):
        raise ConfigError(f"--spent-status must be 402, 403 or 429, got {spent_status}")
    tiers = endpoints.parse_tiers(tier or TIERS, answer_tokens)
    named = parse_budgets(budget)
    token = _secret("--token-env", token_env) if token_env else None
    keys = parse_keys(key or (), named)
    if host not in LOOPBACK and token is None and (bare := [name for name in named if name not in keys]):
        raise ConfigError(
            f"--host {host} is reachable by others: give --key {bare[0]}=VARIABLE with a key of this budget, or "
            "--token-env VARIABLE with one for all"
        )
    name = model or endpoints.only_model(upstream, backend, key_env)
    solver = endpoints.http_solver(
        upstream,
        name,
        backend,
        key_env=key_env,
        temperature=temperature,
        body=body,
        tokenizer=tokenizer,
        deadline=deadline,
        retries=retries,
        patience=patience,
        concurrency=window * len(named),
        say=endpoints.report,
    )
    budgets: list[Budget] = []
    try:
        for one, tokens in named.items():
            waiting = Queue(queue, patience)
            budgets.append(make_budget(one, tokens, solver, tiers, agent, expected, window, state, waiting))
    except (ValueError, OSError) as error:
        for made in budgets:
            made.session.ledger.close()
        raise ConfigError(str(error)) from error
    for made in budgets:
        console.print(
            f"{made.name}: {made.session.remaining:,} of {made.session.budget:,} tokens left, base address "
            f"http://{host}:{port}/{made.name}/v1",
            highlight=False,
        )
    app = application(
        budgets, solver, token, keys=keys, hosts=LOOPBACK if host in LOOPBACK else None, spent_status=spent_status
    )
    uvicorn.run(app, host=host, port=port, log_level="warning", http=patient_protocol(BODY_SECONDS))


def parse_budgets(texts: Sequence[str]) -> dict[str, int]:
    """Budgets as the options write them.

    :raises ConfigError: for what cannot be read.
    """
    named: dict[str, int] = {}
    for text in texts:
        name, named_so, tokens = text.rpartition("=")
        name = name if named_so else "default"
        if (
            not re.fullmatch("[A-Za-z0-9_-]{1,64}", name)
            or name == "v1"
            or not re.fullmatch("0*[1-9][0-9]{0,17}", tokens)
        ):
            raise ConfigError(
                f"--budget {text!r} must read TOKENS or NAME=TOKENS, e.g. team-a=50000: a positive whole number, and a name "
                "of letters, digits, - and _ (but v1)"
            )
        if name in named:
            raise ConfigError(f"--budget: {name!r} is named twice")
        named[name] = int(tokens)
    return named


def parse_keys(texts: Sequence[str], budgets: Collection[str]) -> dict[str, str]:
    """Keys by budget, as the options write them.

    :param budgets: their names.
    :raises ConfigError: for what cannot be read.
    """
    keys: dict[str, str] = {}
    for text in texts:
        name, given, variable = text.partition("=")
        if not given or not variable:
            raise ConfigError(f"--key {text!r} must read NAME=ENV, e.g. team-a=TEAM_A_KEY")
        if name not in budgets:
            raise ConfigError(f"--key {text!r}: there is no budget {name!r}, but {', '.join(budgets)}")
        if name in keys:
            raise ConfigError(f"--key: {name!r} is named twice")
        keys[name] = _secret(f"--key {name}", variable)
    return keys


def _secret(option: str, variable: str) -> str:
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise ConfigError(f"{option} {variable}: this environment variable is empty")
    return secret
