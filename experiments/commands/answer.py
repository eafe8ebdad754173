"""`roi answer`: a user's questions under one hard budget, any agent deciding what each may cost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands import endpoints
from experiments.config import ConfigError
from experiments.options import Imports, option_groups, own_agents
from experiments.serving.menus import Menu, check_unit, menu_solver, read_menus
from experiments.terminal import Table, console, progress_bar
from roi_env.answering.prices import TOKENS
from roi_env.exams.config import parse_budget
from roi_env.sources.units import COST_NAMES, Unit, cost_text, cost_with_unit

if TYPE_CHECKING:
    from agents.live.answer import BudgetController, Result
    from roi_env.answering.base import LiveSolver, Question, ThinkingTier
    from roi_env.answering.dialect import Dialect
    from roi_env.envs.live import KnownGroups
    from roi_env.sources.outcome_tables import OutcomeTable

TIERS = ("direct=0+512", "low=1024+512@low", "high=8192+512@high")
ANSWER_TOKENS = 512


@dataclass(frozen=True)
class Beliefs:
    """What is believed of the questions before they are asked."""

    table: Annotated[Path | None, typer.Option(help="Recorded outcomes that beliefs come from (`roi record`)")] = None
    menu: Annotated[str | None, typer.Option(help="Menu of the table")] = None
    group_by: Annotated[str, typer.Option(help="Column that groups the table's questions and these")] = "dataset"
    predictor: Annotated[
        str | None,
        typer.Option(
            help="Beliefs from texts: a file of `roi predict fit`, or with --table a kind to fit on it; default with --table: text "
            "where that helped on validation questions; none: never"
        ),
    ] = None

    def rows(self, tiers: Sequence[ThinkingTier]) -> OutcomeTable | None:
        """The table's rows at the tiers that are offered; all, where these do not fit, which is said later."""
        from roi_env.sources.outcome_tables import OutcomeTable

        if self.table is None:
            return None
        table, names = OutcomeTable.read(str(self.table)), [tier.name for tier in tiers]
        if self.menu is None and len(table.menus) > 1:
            return table
        there = table.tier_names(self.menu or table.menus[0])
        return table.select(self.menu, names) if set(names) < set(there) else table

    def named(self, table: OutcomeTable | None, asked: Sequence[Question]) -> KnownGroups | None:
        """Groups of the predictor that was named; None: none was.

        :param table: see :meth:`rows`.

        :raises ConfigError: for what is none, a file beside a table, or a kind to fit without one.
        """
        from agents.predictors.predictor import SUFFIX, is_file
        from experiments.predicting import fitted_groups, groups_of_file

        if self.predictor in (None, "none"):
            return None
        if is_file(self.predictor) and table is not None:
            raise ConfigError(
                f"--predictor {self.predictor} brings the beliefs of the table that it was fitted on: leave --table out, or "
                "name a kind to fit on the table"
            )
        if is_file(self.predictor):
            return groups_of_file(self.predictor, asked)
        if table is None:
            raise ConfigError(
                f"--predictor {self.predictor}: a kind is fitted on recorded outcomes: give --table FILE, or a predictor's "
                f"file ({SUFFIX})"
            )
        return fitted_groups(self.predictor, table, self.menu, self.group_by, asked)

    def by_default(self, agent: str, table: OutcomeTable | None, asked: Sequence[Question]) -> KnownGroups | None:
        """Groups of a text predictor of the table, where it helps and the agent does not know the table's own."""
        from agents.base import is_saved
        from agents.live.session import learns_from_table
        from experiments.predicting import fitted_groups

        if self.predictor is not None or table is None or is_saved(agent) or learns_from_table(agent):
            return None
        return fitted_groups(None, table, self.menu, self.group_by, asked)


@dataclass(frozen=True)
class Answerer:
    """Options of who answers, and at which tiers."""

    endpoint: endpoints.Endpoint = None
    model: Annotated[
        str | None,
        typer.Option(
            help="The endpoint's model (default: its only one), or a model in this process: a directory, or one of the package's (tinylm)"
        ),
    ] = None
    backend: endpoints.BackendName = "generic"
    tier: endpoints.Tiers = None
    tiers_file: Annotated[
        Path | None,
        typer.Option(
            "--tiers", help="YAML file of tiers over several models, with prices; FILE:MENU where it has several menus"
        ),
    ] = None
    answer_tokens: Annotated[
        int | None,
        typer.Option(
            help="Answer tokens of tiers that name none; default: 512, in the dialect instruct 32",
            min=1,
        ),
    ] = None

    def dialect(self, speech: endpoints.Speech, connection: endpoints.Connection, prompt: str | None) -> Dialect | None:
        """How the model speaks; None: an endpoint cuts thoughts itself.

        :raises ConfigError: for options that do not belong together.
        """
        if self.endpoint is None and self.tiers_file is None:
            return None if self.model is None else endpoints.local_dialect(self.model, speech.dialect)
        spoken = speech.at_endpoint(connection, prompt)
        if spoken is not None and self.tiers_file is not None:
            raise ConfigError(f"--dialect {spoken.name}: a file of tiers says it itself, as `dialect: {spoken.name}`")
        return spoken

    def tiers(self, spoken: Dialect | None, connection: endpoints.Connection) -> tuple[Menu | None, list[ThinkingTier]]:
        """The tiers, and the menu of a file that says who answers each; None: the options say it.

        :raises ConfigError: for what cannot be read, and options that do not belong together.
        """
        if self.tiers_file is not None:
            said: dict[str, Any] = {"endpoint": self.endpoint, "model": self.model, "tier": self.tier}
            said |= {
                "answer_tokens": self.answer_tokens,
                "backend": None if self.backend == "generic" else self.backend,
            }
            endpoints.refuse_beside_tiers(connection, "the tiers of --tiers", **said)
            menu = _menu(self.tiers_file)
            return menu, list(menu.tiers)
        endpoints.parse_tiers(self.tier or TIERS, 1)  # what is written wrongly is said before anything is read
        return None, endpoints.chosen_tiers(self.tier, self.answer_tokens, spoken, TIERS, ANSWER_TOKENS)

    def solver(
        self,
        tiers: Sequence[ThinkingTier],
        connection: endpoints.Connection,
        spoken: Dialect | None,
        local: dict[str, Any],
        http: dict[str, Any],
    ) -> LiveSolver:
        """The endpoint, or the model in this process.

        :param local: options of a model in this process.
        :param http: options of an endpoint.
        """
        if self.endpoint is None:
            if self.backend != "generic":
                raise ConfigError("--backend belongs to --endpoint: a model in this process has none")
            if self.model is None:
                raise ConfigError("give --endpoint URL, or --model DIRECTORY for a model in this process")
            from agents.llm.decisions.policy import model_source
            from roi_env.answering.local import LocalLive, TransformersSolver

            temperature = http["temperature"]
            try:
                sampled = 0.7 if temperature is None else temperature
                solver = TransformersSolver(model_source(self.model), temperature=sampled, **local)
                solver.check(tiers)
            except (OSError, ValueError) as error:
                raise ConfigError(f"model {self.model!r}: {error}") from error
            if solver.warning is not None:
                endpoints.report(solver.warning)
            return LocalLive(solver)
        model = self.model or endpoints.only_model(self.endpoint, self.backend, connection)
        return endpoints.http_solver(self.endpoint, model, self.backend, connection, spoken, tiers, **http)


@option_groups
def answer(
    questions: Annotated[str, typer.Argument(help="Questions: a file or any source of `roi record --questions`")],
    budget: Annotated[
        str,
        typer.Option(
            help="Tokens for all of them (50000), dollars (2.50usd) where tiers have prices, or a fraction (0.3) of always the "
            "dearest"
        ),
    ],
    *,
    answerer: Answerer,
    agent: Annotated[
        str,
        typer.Option(
            help="Who decides: a name of `roi agents`, perhaps with parameters, or a trained .npz; or FILE.py:CLASS",
            callback=own_agents,
        ),
    ] = "online-lp",
    imports: Imports = None,
    out: Annotated[Path, typer.Option(help="Folder for answers.jsonl, audit.json and the ledger")] = Path(
        "runs/answers"
    ),
    beliefs: Beliefs,
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
    """Answer questions under a hard budget of tokens or dollars; Ctrl-C leaves what there is, --resume goes on.

    Every line of the file has its row in answers.jsonl, with its number, also where lines are equal. With --resume the
    budget and the tiers may be other ones than before, but not a tier's model or prompt; what was charged stays charged.
    """
    from agents.live.answer import BudgetController
    from roi_env.answering.ledger import JournalError

    asked = endpoints.load_questions(questions, column, limit, answers=grader is not None, distinct=False)
    spoken = answerer.dialect(speech, connection, wording.prompt)
    menu_asked, tiers = answerer.tiers(spoken, connection)
    amount = _amount(budget, menu_asked, decision_cost)
    ledger = _ledger(out, resume)
    judge: endpoints.Judge | None = None
    http: dict[str, Any] = {
        "prompt": wording.prompt,
        "system": wording.system,
        "temperature": temperature,
        "patience": patience,
        "concurrency": window,
        "fit_answer": fit_answer,
        "say": endpoints.report,
    }
    try:
        table = beliefs.rows(tiers)
        controller = BudgetController(
            agent,
            _Absent() if menu_asked is None else menu_solver([menu_asked], connection, **http),
            amount,
            tiers=tiers,
            window=window,
            table=table,
            menu=beliefs.menu,
            group_by=beliefs.group_by,
            known=beliefs.named(table, asked),
            decision_cost=decision_cost,
            ledger=ledger,
            check=(lambda question, text: judge is not None and judge(question, text)) if grader else None,
            seed=seed,
            rates=TOKENS if menu_asked is None else menu_asked.rates,
            models=() if menu_asked is None else menu_asked.models,
        )
        spec = controller.spec(asked)
        if (known := beliefs.by_default(agent, table, asked)) is not None:
            controller.known = known
            spec = controller.spec(asked)
        console.print(
            f"{len(asked):,} questions, {cost_with_unit(spec.budget, spec.source.unit)}, tiers "
            f"{', '.join(t.name for t in tiers)}, agent {agent}",
            highlight=False,
        )
        if dry_run:
            return
        if menu_asked is None:
            local = asdict(speech) | asdict(wording)
            controller.solver = answerer.solver(tiers, connection, spoken, local, http)
        if grader:
            judge = endpoints.Judge(grader)
        out.mkdir(parents=True, exist_ok=True)
        interrupted = False
        try:
            asyncio.run(_run(controller, asked))
        except KeyboardInterrupt:
            interrupted = True
    except (JournalError, ValueError) as error:
        raise ConfigError(str(error)) from error
    finally:
        if judge is not None:
            judge.close()
    _end(controller.result, out, ledger, interrupted, patience)


def _ledger(out: Path, resume: bool) -> Path:
    """Where charges are kept.

    :raises ConfigError: where there is one already and this is not to go on, or the reverse.
    """
    ledger = out / "ledger.jsonl"
    if ledger.exists() and not resume:
        raise ConfigError(f"{ledger} exists: --resume goes on there, or choose another --out")
    if resume and not ledger.exists():
        raise ConfigError(f"--resume: there is no ledger {ledger}")
    return ledger


def _end(result: Result | None, out: Path, ledger: Path, interrupted: bool, patience: float) -> None:
    """Write and show what there is, and say how to go on."""
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
        waits = "" if result.refused else f". A question may wait {patience:,.0f} s (--patience, --retries)"
        endpoints.report(f"Stopped: {result.held}{waits}.")
        console.print("The same command with --resume goes on.")
    came = any(row.status in ("answered", "cut") and row.attempts for row in result.rows)
    if result.held or (not came and any(row.status in ("error", "unknown") for row in result.rows)):
        raise typer.Exit(1)


def _menu(path: Path) -> Menu:
    """The menu of a file of tiers, ``FILE`` or ``FILE:MENU``."""
    name = None
    if not path.exists() and ":" in path.name:
        head, _, name = str(path).rpartition(":")
        path = Path(head)
    menus = {menu.name: menu for menu in read_menus(path)}
    if not menus:
        raise ConfigError(f"{path}: tiers: is missing")
    if (name is None and len(menus) > 1) or (name is not None and name not in menus):
        there = f"no menu {name!r}" if name is not None else "several menus"
        raise ConfigError(
            f"--tiers {path}: there is {there}: choose one of {', '.join(menus)} as {path}:{next(iter(menus))}"
        )
    menu = menus[name or next(iter(menus))]
    for note in menu.dearer_first():
        endpoints.report(note)
    return menu


def _amount(text: str, menu: Menu | None, decision_cost: int) -> int | float | str:
    """The budget, checked against what the tiers cost."""
    try:
        amount = parse_budget(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(amount, float):
        unit: Unit = "tokens" if isinstance(amount, int) else "micro-usd"
        check_unit(unit, [] if menu is None else [menu], f"--budget {text}", "--tier" if menu is None else "--tiers")
    if menu is not None and menu.rates.prices and decision_cost:
        raise ConfigError("--decision-cost counts tokens, and the tiers cost dollars: leave it out")
    return amount


class _Absent:
    """Stands where no endpoint was asked for yet."""

    name = "none"

    async def answer(self, ask: Any) -> Any:
        raise ConfigError("no endpoint")

    async def close(self) -> None:
        return None


async def _run(controller: BudgetController, asked: Any) -> None:
    try:
        with progress_bar() as bar:
            shown = bar.add_task("answering", total=len(asked))

            def watch(result: Result) -> None:
                while result.messages:
                    endpoints.report(result.messages.pop(0))
                left = cost_text(max(0, result.budget - result.charged), result.unit)
                whole = cost_with_unit(result.budget, result.unit)
                bar.update(shown, completed=len(result.rows), description=f"{left} of {whole} left")

            await controller.answer(asked, watch)
    finally:
        await controller.solver.close()


def _show(result: Result, out: Path) -> None:
    audit = result.audit()
    shown = Table(title="what the budget went to")
    for name in ("tier", "questions", COST_NAMES[result.unit]):
        shown.add_column(name, justify="left" if name == "tier" else "right")
    for tier in dict.fromkeys(row.tier for row in result.rows):
        rows = [row for row in result.rows if row.tier == tier]
        shown.add_row(tier or "none", f"{len(rows):,}", cost_text(sum(row.charged for row in rows), result.unit))
    console.print(shown)
    states = ", ".join(f"{count:,} {status}" for status, count in audit["by_status"].items())
    silent = sum(row.status == "answered" and not row.answer.strip() for row in result.rows)
    empty = f" ({silent:,} of the answers without a text)" if silent else ""
    console.print(f"{states} of {audit['questions']:,} questions{empty}", highlight=False)
    for error, count in Counter(row.error for row in result.rows if row.error).most_common(3):
        endpoints.report(f"{count:,} x {error}")
    right = f"; {audit['right']:,} of {audit['judged']:,} judged are right" if audit["judged"] else ""
    charged, whole, lost, over = (
        cost_text(audit[name], result.unit) for name in ("charged", "budget", "lost", "overshoot")
    )
    lost = f", {lost} of them for what cannot be read in a damaged ledger" if audit["lost"] else ""
    over = f", {over} of them beyond the endpoint's caps" if audit["overshoot"] else ""
    counted = " tokens" if result.unit == "tokens" else ""
    console.print(
        f"{charged} of {whole}{counted} charged{over}{lost}{right}. Answers and audit: [bold]{out}[/bold]",
        highlight=False,
    )
