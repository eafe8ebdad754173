"""`roi serve`: an OpenAI-compatible proxy that keeps budgets. A user's client points at it and changes nothing else.

Every chat completion is one question of a budget: the agent decides its tier (or refuses it), the worst case is reserved,
the answer is settled. Budgets have names, ``/NAME/v1`` is the address of one, ``/v1`` that of the first. Their ledgers make
charges survive a restart and a kill. Clients' credentials are never passed on: the upstream's key comes from the
environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from experiments import endpoints
from experiments.answer import TIERS
from experiments.attend import Busy, Gone, Queue, attend
from experiments.config import ConfigError
from experiments.terminal import console

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from agents.controller import Row, Session
    from roi_env.solvers.base import LiveSolver, Reply, ThinkingTier
    from roi_env.solvers.http import HTTPSolver

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
    from agents.base import make_agent, public_problem
    from agents.controller import Session, hidden_groups
    from roi_env.exam import exam_spec
    from roi_env.live import live_source
    from roi_env.solvers.base import Question
    from roi_env.solvers.journal import Ledger

    # Thirds by length stand for the questions to come.
    asked = [Question("proxy", str(n), "x" * (1 + n % 3), "") for n in range(3 * expected)]
    spec = exam_spec(live_source(asked, tiers), num_tasks=expected, budget=tokens, preview=False)
    state.mkdir(parents=True, exist_ok=True)
    decides = make_agent(agent, public_problem(spec))
    settings = {"budget": tokens, "tiers": [list(tier.__dict__.values()) for tier in tiers]}
    # What was charged is charged, whatever the budget and the tiers are now.
    ledger = Ledger(state / f"{name}.jsonl", settings, refuse=lambda old, new, records: None)
    for text in ledger.messages:
        endpoints.report(text)
    session = Session(decides, solver, tiers, hidden_groups(expected), ledger=ledger, window=window)
    return Budget(name, session, asyncio.Lock(), len(ledger.entries) + len(ledger.notes), queue or Queue())


def application(budgets: Sequence[Budget], solver: HTTPSolver, token: str | None) -> Starlette:
    """The ASGI application.

    :param token: that clients must send as their key; None: none.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    by_name = {budget.name: budget for budget in budgets}

    def allowed(request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return token is None or hmac.compare_digest(given.encode(), token.encode())

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
        if not allowed(request):
            return _error(401, "invalid_api_key", "this proxy needs its token as the API key")
        name = request.path_params.get("name") or budgets[0].name
        budget = by_name.get(name)
        if budget is None:
            return _error(404, "unknown_budget", f"no budget {name!r}; there are {', '.join(by_name)}")
        try:
            body = await request.json()
            messages = tuple((str(entry["role"]), _text(entry["content"])) for entry in body["messages"])
            if not messages:
                raise ValueError("messages is empty")
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, "invalid_request", f"not a chat completion: {error!r}")
        for field in ("tools", "functions"):
            if body.get(field):
                return _error(400, "unsupported", f"{field} are not supported under a budget")
        if body.get("n") not in (None, 1):
            return _error(400, "unsupported", "n must be 1: every answer is decided by itself")
        headers = {"x-roi-budget": name}
        try:
            outcome = await attend(
                request,
                budget.queue,
                solver,
                lambda: _admit(budget, messages),
                lambda ticket: budget.session.finish(ticket, messages),
            )
        except Busy as busy:
            return _error(503, "busy", str(busy), {**headers, "retry-after": busy.retry_after})
        except Gone:
            return Response(status_code=499)  # nobody reads it
        if outcome is None:
            spent = {**headers, "x-roi-remaining": "0", "x-should-retry": "false"}
            return _error(
                429, "budget_exhausted", f"the budget {name!r} of {budget.session.budget:,} tokens is spent", spent
            )
        row, reply = outcome
        headers |= {
            "x-roi-tier": row.tier or "skip",
            "x-roi-charged": str(row.charged),
            "x-roi-remaining": str(budget.session.remaining),
        }
        if reply is not None and reply.error is not None:
            # What it may have cost is charged: asking again is a new question, so no client may do that by itself.
            return _error(502, "upstream_error", reply.error, {**headers, "x-should-retry": "false"})
        answer = _completion(body, row, reply, budget.session.remaining, name)
        if not body.get("stream"):
            return JSONResponse(answer, headers=headers)
        return StreamingResponse(_stream(answer, body), media_type="text/event-stream", headers=headers)

    async def models(request: Request) -> Response:
        if not allowed(request):
            return _error(401, "invalid_api_key", "this proxy needs its token as the API key")
        return JSONResponse({"object": "list", "data": [{"id": solver.name, "object": "model", "owned_by": "roi"}]})

    async def status(request: Request) -> Response:
        if not allowed(request):
            return _error(401, "invalid_api_key", "this proxy needs its token as the API key")
        return JSONResponse({"budgets": [state(budget) for budget in budgets]})

    def _error(status_code: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
        error = {"message": message, "type": code, "code": code, "param": None}
        return JSONResponse({"error": error}, status_code, headers)

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
    return Starlette(routes=[*routes, Route("/budgets", status)], lifespan=lifespan)


async def _admit(budget: Budget, messages: tuple[tuple[str, str], ...]) -> Any:
    from roi_env.solvers.base import Question

    async with budget.lock:
        position = min(budget.asked, budget.session.problem.num_tasks - 1)
        text = messages[-1][1]
        group = int(np.searchsorted(LENGTHS, len(text)))
        question = Question("proxy", f"request-{budget.asked}", text, "")
        ticket = await budget.session.admit(position, question, group)
        budget.asked += ticket is not None
        return ticket


def _text(content: Any) -> str:
    """A message's text; parts of other kinds are refused."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        return "".join(part["text"] for part in content)
    raise ValueError("only text is supported")


def _completion(body: dict[str, Any], row: Row, reply: Reply | None, remaining: int, budget: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": row.answer if reply is not None else None}
    if reply is None:
        message["refusal"] = "skipped: the budget is better spent on other questions"
    elif reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    usage: dict[str, Any] = {
        "prompt_tokens": (reply.prompt_tokens if reply else None) or 0,
        "completion_tokens": row.charged,
    }
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    if row.reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": row.reasoning_tokens}
    usage["roi"] = {
        "budget": budget,
        "tier": row.tier or "skip",
        "charged": row.charged,
        "remaining": remaining,
        "counted": row.counted,
        "overshoot": row.overshoot,
    }
    finish = "length" if row.finish == "length" else "content_filter" if row.finish == "refused" else "stop"
    return {
        "id": f"roi-{time.time_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.get("model") or "",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": usage,
    }


async def _stream(answer: dict[str, Any], body: dict[str, Any]) -> AsyncIterator[str]:
    """The whole answer as one chunk: what a token costs is known at its end only."""
    choice = answer["choices"][0]
    chunk = {**answer, "object": "chat.completion.chunk"}
    usage = chunk.pop("usage")
    first = {"index": 0, "delta": choice["message"], "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    for choices in ([first], [last]):
        yield f"data: {json.dumps({**chunk, 'choices': choices})}\n\n"
    if (body.get("stream_options") or {}).get("include_usage"):
        yield f"data: {json.dumps({**chunk, 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


def serve(
    budget: Annotated[list[str], typer.Option(help="NAME=TOKENS, or TOKENS for one named default; repeatable")],
    upstream: Annotated[str, typer.Option(help="Base address of the endpoint, e.g. http://127.0.0.1:8000/v1")],
    model: Annotated[str | None, typer.Option(help="The endpoint's model; default: its only one")] = None,
    backend: endpoints.BackendName = "generic",
    agent: Annotated[
        str, typer.Option(help="Who decides: a planner of `roi agents` that needs no training")
    ] = "online-lp",
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
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with the token that clients must send as API key")
    ] = None,
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
    token = os.environ.get(token_env) if token_env else None
    if token_env and not token:
        raise ConfigError(f"--token-env {token_env}: this environment variable is empty")
    if host not in ("127.0.0.1", "localhost", "::1") and token is None:
        raise ConfigError(f"--host {host} is reachable by others: give --token-env VARIABLE with a token for clients")
    tiers = endpoints.parse_tiers(tier or TIERS, answer_tokens)
    named = parse_budgets(budget)
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
    try:
        budgets = [
            make_budget(key, tokens, solver, tiers, agent, expected, window, state, Queue(queue, patience))
            for key, tokens in named.items()
        ]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for one in budgets:
        console.print(
            f"{one.name}: {one.session.remaining:,} of {one.session.budget:,} tokens left, base address "
            f"http://{host}:{port}/{one.name}/v1",
            highlight=False,
        )
    uvicorn.run(application(budgets, solver, token), host=host, port=port, log_level="warning")


def parse_budgets(texts: Sequence[str]) -> dict[str, int]:
    """Budgets as the options write them.

    :raises ConfigError: for what cannot be read.
    """
    named: dict[str, int] = {}
    for text in texts:
        name, _, tokens = text.rpartition("=")
        name = name or "default"
        if (
            not tokens.isdigit()
            or int(tokens) < 1
            or not name.replace("-", "").replace("_", "").isalnum()
            or name == "v1"
        ):
            raise ConfigError(f"--budget {text!r} must read TOKENS or NAME=TOKENS, e.g. team-a=50000")
        if name in named:
            raise ConfigError(f"--budget: {name!r} is named twice")
        named[name] = int(tokens)
    return named
