"""`roi probe`: what an endpoint really enforces."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.markup import escape

from experiments.commands import endpoints
from experiments.config import ConfigError
from experiments.options import option_groups
from experiments.terminal import Table, console


@option_groups
def probe(
    endpoint: Annotated[str, typer.Argument(help="Base address, e.g. http://127.0.0.1:8000/v1")],
    *,
    model: Annotated[str | None, typer.Option(help="The endpoint's model; default: its only one")] = None,
    backend: endpoints.BackendName = "generic",
    thinking: Annotated[int, typer.Option(help="Thinking cap to try, tokens", min=1)] = 8,
    cap: Annotated[int, typer.Option(help="Total cap of every request, tokens", min=2)] = 512,
    trials: Annotated[int, typer.Option(help="Requests a field", min=1)] = 3,
    prompt: Annotated[str | None, typer.Option(help="Question that makes the model think for long")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; default: the endpoint's own", min=0)] = None,
    connection: endpoints.Connection,
) -> None:
    """Try every known field that shall limit thinking, count what comes back: hard, soft, hint, none, unclear or rejected."""
    from roi_env.answering.probe import PROMPT
    from roi_env.answering.probe import probe as run

    name = model or endpoints.only_model(endpoint, backend, connection)
    solver = endpoints.http_solver(endpoint, name, backend, connection, temperature=temperature)

    async def ask() -> list[tuple[str, str, str]]:
        try:
            found = await run(solver, prompt=prompt or PROMPT, thinking=thinking, cap=cap, trials=trials)
            return [tuple(finding) for finding in found]  # type: ignore[misc]
        finally:
            await solver.close()

    with console.status("asking"):
        findings = asyncio.run(ask())
    shown = Table(title=f"{escape(name)} at {escape(endpoint)}")
    for column in ("field", "enforcement", "measured"):
        shown.add_column(column)
    for finding in findings:
        shown.add_row(*(escape(str(part)) for part in finding))
    console.print(shown)
    if findings[0][1] == "rejected":
        raise ConfigError(f"{endpoint}: {findings[0][2]}")
