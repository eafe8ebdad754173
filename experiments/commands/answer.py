"""`roi answer`: a user's questions under one hard budget, any agent deciding what each may cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from experiments.commands import endpoints
from experiments.commands.record import OPEN_ANSWER_TOKENS, OPEN_TIERS
from experiments.config import ConfigError
from experiments.options import Imports, option_groups, own_agents
from experiments.terminal import console, progress_bar

if TYPE_CHECKING:
    from agents.live.answer import BudgetController, Result
    from roi_env.answering.base import LiveSolver, ThinkingTier

TIERS = ("direct=0+512", "low=1024+512@low", "high=8192+512@high")
ANSWER_TOKENS = 512


@option_groups
def answer(
    questions: Annotated[str, typer.Argument(help="Questions: a file or any source of `roi record --questions`")],
    budget: Annotated[
        str, typer.Option(help="Tokens for all of them (50000), or a fraction (0.3) of always the dearest")
    ],
    *,
    endpoint: endpoints.Endpoint = None,
    model: Annotated[
        str | None, typer.Option(help="The endpoint's model (default: its only one), or a local model directory")
    ] = None,
    backend: endpoints.BackendName = "generic",
    agent: Annotated[
        str,
        typer.Option(
            help="Who decides: a name of `roi agents`, perhaps with parameters, or a trained .npz; or FILE.py:CLASS",
            callback=own_agents,
        ),
    ] = "online-lp",
    imports: Imports = None,
    tier: endpoints.Tiers = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option(
            help="Answer tokens of tiers that name none; default: 512, of a local model in the dialect instruct 32",
            min=1,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for answers.jsonl, audit.json and the ledger")] = Path(
        "runs/answers"
    ),
    table: Annotated[Path | None, typer.Option(help="Recorded outcomes that beliefs come from (`roi record`)")] = None,
    menu: Annotated[str | None, typer.Option(help="Menu of the table")] = None,
    group_by: Annotated[str, typer.Option(help="Column that groups the table's questions and these")] = "dataset",
    window: Annotated[int, typer.Option(help="Questions in flight; 1 is exactly the exam", min=1)] = 1,
    decision_cost: Annotated[int, typer.Option(help="Tokens that every decision costs", min=0)] = 0,
    grader: Annotated[
        str | None, typer.Option(help="Judge answers while they come, and learn from it (needs reference answers)")
    ] = None,
    fit_answer: Annotated[
        bool, typer.Option("--fit-answer", help="Shorten the last thought so that an answer still fits")
    ] = False,
    column: endpoints.Columns = None,
    limit: endpoints.Limit = None,
    seed: Annotated[int, typer.Option(help="Of draws from the agent's probabilities", min=0)] = 0,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; default: the endpoint's own", min=0)] = None,
    speech: endpoints.Speech,
    wording: endpoints.Wording,
    connection: endpoints.Connection,
    patience: endpoints.Patience = 1800.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the folder's ledger")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be asked")] = False,
) -> None:
    """Answer questions under a hard token budget; Ctrl-C leaves what there is, --resume goes on.

    Every line of the file has its row in answers.jsonl, with its number, also where lines are equal. With --resume the
    budget and the tiers may be other ones than before; what was charged stays charged.
    """
    from agents.live.answer import BudgetController
    from roi_env.answering.ledger import JournalError
    from roi_env.exams.config import parse_budget

    asked = endpoints.load_questions(questions, column, limit, answers=grader is not None, distinct=False)
    if endpoint is not None:
        speech.refuse()
    endpoints.parse_tiers(tier or TIERS, 1)  # what is written wrongly is said before anything is read
    spoken = endpoints.local_dialect(model, speech.dialect) if endpoint is None and model is not None else None
    whole = spoken is not None and spoken.whole_caps
    tiers = endpoints.parse_tiers(
        tier or (OPEN_TIERS if whole else TIERS),
        answer_tokens or (OPEN_ANSWER_TOKENS if whole else ANSWER_TOKENS),
        spoken,
    )
    try:
        amount = parse_budget(budget)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if isinstance(amount, str):
        raise ConfigError(f"--budget {budget}: live budgets are tokens, e.g. 20000")
    ledger = out / "ledger.jsonl"
    if ledger.exists() and not resume:
        raise ConfigError(f"{ledger} exists: --resume goes on there, or choose another --out")
    if resume and not ledger.exists():
        raise ConfigError(f"--resume: there is no ledger {ledger}")
    pool: Any = None
    try:
        controller = BudgetController(
            agent,
            _Absent(),
            amount,
            tiers=tiers,
            window=window,
            table=None if table is None else str(table),
            menu=menu,
            group_by=group_by,
            decision_cost=decision_cost,
            ledger=ledger,
            check=(lambda question, text: bool(pool(question, text))) if grader else None,
            seed=seed,
        )
        spec = controller.spec(asked)
        console.print(
            f"{len(asked):,} questions, {spec.budget:,} tokens, tiers {', '.join(t.name for t in tiers)}, agent {agent}",
            highlight=False,
        )
        if dry_run:
            return
        controller.solver = _solver(
            endpoint,
            model,
            backend,
            tiers,
            connection,
            local=asdict(speech) | asdict(wording),
            prompt=wording.prompt or "{question}",
            system=wording.system,
            temperature=temperature,
            patience=patience,
            concurrency=window,
            fit_answer=fit_answer,
            say=endpoints.report,
        )
        if grader:
            from roi_env.answering.grading import GradingPool

            pool = GradingPool(grader)
        out.mkdir(parents=True, exist_ok=True)
        interrupted = False
        try:
            asyncio.run(_run(controller, asked))
        except KeyboardInterrupt:
            interrupted = True
    except (JournalError, ValueError) as error:
        raise ConfigError(str(error)) from error
    finally:
        if pool is not None:
            pool.close()
    result = controller.result
    if result is not None:
        result.write(out)
        _show(result, out)
    if interrupted:
        console.print(
            "Stopped; the same command with --resume goes on."
            if ledger.exists()
            else "Stopped before anything was asked."
        )
        raise typer.Exit(130)
    assert result is not None
    if result.held:
        endpoints.report(f"Stopped: {result.held}. A question may wait {patience:,.0f} s (--patience).")
        console.print("The same command with --resume goes on.")
        raise typer.Exit(1)


class _Absent:
    """Stands where no endpoint was asked for yet."""

    name = "none"

    async def answer(self, ask: Any) -> Any:
        raise ConfigError("no endpoint")

    async def close(self) -> None:
        return None


def _solver(
    endpoint: str | None,
    model: str | None,
    backend: str,
    tiers: Sequence[ThinkingTier],
    connection: endpoints.Connection,
    *,
    local: dict[str, Any],
    **options: Any,
) -> LiveSolver:
    """The endpoint, or the model in this process, which has ``local`` options of its own."""
    if endpoint is None:
        if model is None:
            raise ConfigError("give --endpoint URL, or --model DIRECTORY for a model in this process")
        from roi_env.answering.local import LocalLive, TransformersSolver

        temperature = options["temperature"]
        try:
            sampled = 0.7 if temperature is None else temperature
            solver = TransformersSolver(model, temperature=sampled, **local)
            solver.check(tiers)
            return LocalLive(solver)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model {model!r}: {error}") from error
    if model is None:
        model = endpoints.only_model(endpoint, backend, connection)
    return endpoints.http_solver(endpoint, model, backend, connection, **options)


async def _run(controller: BudgetController, asked: Any) -> None:
    try:
        with progress_bar() as bar:
            shown = bar.add_task("answering", total=len(asked))

            def watch(result: Result) -> None:
                while result.messages:
                    endpoints.report(result.messages.pop(0))
                left = max(0, result.budget - result.charged)
                bar.update(shown, completed=len(result.rows), description=f"{left:,} of {result.budget:,} tokens left")

            await controller.answer(asked, watch)
    finally:
        await controller.solver.close()


def _show(result: Result, out: Path) -> None:
    audit = result.audit()
    shown = Table(title="what the budget went to")
    for name in ("tier", "questions", "tokens"):
        shown.add_column(name, justify="left" if name == "tier" else "right")
    for tier in dict.fromkeys(row.tier for row in result.rows):
        rows = [row for row in result.rows if row.tier == tier]
        shown.add_row(tier or "none", f"{len(rows):,}", f"{sum(row.charged for row in rows):,}")
    console.print(shown)
    states = ", ".join(f"{count:,} {status}" for status, count in audit["by_status"].items())
    console.print(f"{states} of {audit['questions']:,} questions", highlight=False)
    right = f"; {audit['right']:,} of {audit['judged']:,} judged are right" if audit["judged"] else ""
    lost = f", {audit['lost']:,} of them for what cannot be read in a damaged ledger" if audit["lost"] else ""
    over = f", {audit['overshoot']:,} of them beyond the endpoint's caps" if audit["overshoot"] else ""
    console.print(
        f"{audit['charged']:,} of {audit['budget']:,} tokens charged{over}{lost}{right}. Answers and audit: [bold]{out}[/bold]",
        highlight=False,
    )
