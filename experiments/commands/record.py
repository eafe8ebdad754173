"""`roi record`: a model answers questions at every tier; the outcomes become a table. `roi regrade`: judge them anew."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape

from experiments.commands import endpoints
from experiments.config import ConfigError
from experiments.options import option_groups
from experiments.terminal import console, counted, progress_bar

if TYPE_CHECKING:
    from agents.llm.small_model.tasks import Task
    from roi_env.answering.base import Question, ThinkingTier
    from roi_env.answering.dialect import Dialect
    from roi_env.answering.http import HTTPSolver
    from roi_env.answering.recording import LiveRecording, RecordingProgress

DECISION_COST = 1
"""Tokens of a level tag."""
ANSWER_TOKENS = 24
TASKS = "tasks"
PAIRS = 512
"""(question, sample) pairs that a model is given together, if it does not take more: many, as the last of them write alone."""
SEEDS_KILL = "0.32"
"""Version of vLLM that was seen to die of seeded requests (built for the CPU)."""
_TIERS = ("answer=0", "short=48", "long=160")
Grader = Annotated[
    str | None,
    typer.Option(
        help="exact, number, choice, math, reasoning-gym, or module:function of your own; default: the source's, else exact"
    ),
]
GradeSeconds = Annotated[float, typer.Option(help="Time limit of grading one answer; beyond it is wrong", min=0.1)]


@dataclass(frozen=True)
class Asked:
    """Options of what is asked, and of who judges the answers."""

    questions: endpoints.Questions = None
    column: endpoints.Columns = None
    limit: endpoints.Limit = None
    questions_each: Annotated[
        int,
        typer.Option(
            help="Without --questions: questions of every family and difficulty of the small model's tasks (of hidden "
            "difficulty: twice as many)",
            min=4,
        ),
    ] = 60
    family: Annotated[list[str] | None, typer.Option(help="Only these kinds of tasks; repeatable")] = None
    split: Annotated[
        str, typer.Option(help="Without --questions: only questions of this split: train, validation, test; or all")
    ] = "all"
    grader: Grader = None
    grade_seconds: GradeSeconds = 10.0

    @property
    def judge(self) -> str:
        """The grader."""
        return self.grader or ("reasoning-gym" if self.questions is None else endpoints.grader_of(self.questions, None))

    def tasks(self) -> list[Task]:
        """The small model's tasks.

        :raises ConfigError: for a kind or a split that there is not.
        """
        from agents.llm.small_model.tasks import FAMILIES
        from roi_env.sources.outcome_tables import SPLITS

        if unknown := set(self.family or ()) - set(FAMILIES):
            raise ConfigError(f"unknown kind of tasks {sorted(unknown)[0]!r}; there are {list(FAMILIES)}")
        if self.split not in (*SPLITS, "all"):
            raise ConfigError(f"--split must be one of {[*SPLITS, 'all']}, got {self.split!r}")
        splits = SPLITS if self.split == "all" else (self.split,)
        return exam_tasks(self.questions_each, self.family or list(FAMILIES), splits)


@dataclass(frozen=True)
class Local(endpoints.Speech):
    """Options of a model in this process."""

    batch: Annotated[
        int | None,
        typer.Option(help="Rows generated together (local model); default: 256, in the dialect instruct 64", min=1),
    ] = None
    threads: Annotated[int, typer.Option(help="Threads of PyTorch (local model)", min=1)] = 2
    device: Annotated[str, typer.Option(help="Of PyTorch (local model)")] = "cpu"


@dataclass(frozen=True)
class Remote:
    """Options of a recording at an endpoint."""

    concurrency: endpoints.Concurrency = 16
    patience: endpoints.Patience = 1800.0
    max_tokens_total: Annotated[int | None, typer.Option(help="Stop before more are charged (endpoint)", min=1)] = None
    max_usd: Annotated[float | None, typer.Option(help="Stop before more is charged (endpoint)", min=0)] = None
    usd_output: Annotated[float, typer.Option(help="US dollars a million generated tokens", min=0)] = 0.0
    usd_prompt: Annotated[float, typer.Option(help="US dollars a million prompt tokens", min=0)] = 0.0
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again what ended in a permanent error (endpoint)")
    ] = False
    no_seeds: Annotated[
        bool,
        typer.Option("--no-seeds", help="Send no seeds (endpoint): some servers die of them; the table says so"),
    ] = False


class _Job(NamedTuple):
    """What is recorded, where.

    :param tasks: the small model's, which judge themselves; empty where a grader judges.
    :param journal: finished work.
    :param cost: tokens of a decision.
    """

    questions: Sequence[Question]
    tasks: Sequence[Task]
    tiers: Sequence[ThinkingTier]
    samples: int
    journal: Path
    out: Path
    cost: int
    judge: str
    grade_seconds: float


@option_groups
def record(
    model: Annotated[
        str,
        typer.Argument(
            help="Hugging Face model directory (or id, where a hub is reachable), or the package's tinylm; an endpoint's model name"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Outcome table to write (.parquet)")],
    *,
    endpoint: endpoints.Endpoint = None,
    backend: endpoints.BackendName = "generic",
    asked: Asked,
    samples: Annotated[int, typer.Option(help="Samples of every question", min=1)] = 8,
    tier: endpoints.Tiers = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option(help="Answer tokens of tiers that name none; default: 24, in the dialect instruct 32", min=1),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of sampling", min=0)] = 0.7,
    name: Annotated[str | None, typer.Option(help="Of the model in the table; default: its folder's")] = None,
    seed: Annotated[int, typer.Option(help="Of the samples", min=0)] = 0,
    decision_cost: Annotated[
        int | None, typer.Option(help="Tokens of every action; default: 1 for the small model's tasks, else 0", min=0)
    ] = None,
    wording: endpoints.Wording,
    local: Local,
    connection: endpoints.Connection,
    remote: Remote,
    journal: Annotated[
        Path | None, typer.Option(help="Finished work (with texts); goes on there. Default: beside the table")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the journal, and only that: it must exist already")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be recorded")] = False,
) -> None:
    """Let a model answer questions at every tier and write the outcome table.

    A model in this process shares one thought between the tiers of a sample; an endpoint is asked for every tier.
    """
    endpoints.parse_tiers(tier or _TIERS, 1)  # what is written wrongly is said before anything is read
    file = _journal(out, journal, resume)
    tasks = asked.tasks() if asked.questions is None else []
    if endpoint is None:
        if backend != "generic":
            raise ConfigError("--backend belongs to --endpoint: a model in this process has none")
        if remote.no_seeds:
            raise ConfigError("--no-seeds belongs to --endpoint: a model in this process draws its own random numbers")
        spoken: Dialect | None = endpoints.local_dialect(model, local.dialect)
    else:
        spoken = local.at_endpoint(connection, wording.prompt)
    whole = spoken is not None and spoken.whole_caps
    if asked.questions is not None:
        questions = endpoints.load_questions(asked.questions, asked.column, asked.limit)
    else:  # the small model's own form is not that of others
        from agents.llm.small_model.tasks import as_question

        questions = [as_question(task) if endpoint is None and not whole else gradable_question(task) for task in tasks]
    job = _Job(
        questions,
        [] if whole or asked.grader is not None else tasks,
        endpoints.chosen_tiers(tier, answer_tokens, spoken, _TIERS, ANSWER_TOKENS),
        samples,
        file,
        out,
        (DECISION_COST if asked.questions is None else 0) if decision_cost is None else decision_cost,
        asked.judge,
        asked.grade_seconds,
    )
    console.print(f"{len(questions):,} questions x {samples} samples x {len(job.tiers)} tiers", highlight=False)
    if dry_run:
        most = len(questions) * samples * sum(entry.most_tokens for entry in job.tiers)
        console.print(f"at most {most:,} generated tokens, {most * remote.usd_output / 1e6:,.2f} USD", highlight=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if endpoint is None:
        settings = asdict(local) | asdict(wording) | {"name": name, "temperature": temperature, "seed": seed}
        _record_here(job, model, settings)
        return
    solver = endpoints.http_solver(
        endpoint,
        model,
        backend,
        connection,
        spoken,
        job.tiers,
        name=name,
        prompt=wording.prompt,
        system=wording.system,
        temperature=temperature,
        seed=seed,
        concurrency=remote.concurrency,
        patience=remote.patience,
        say=endpoints.report,
    )
    _record_there(job, solver, remote)


def _journal(out: Path, journal: Path | None, resume: bool) -> Path:
    """Where finished work is kept.

    :raises ConfigError: where the table or the journal is not what it must be.
    """
    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: outcome tables are written as .parquet")
    file = journal or out.with_suffix(".journal.jsonl")
    if resume and not file.exists():
        raise ConfigError(f"--resume: there is no journal {file}")
    if out.exists() and not file.exists():
        raise ConfigError(
            f"{out} is a table of something else (there is no journal {file} beside it): choose another --out"
        )
    return file


def _record_there(job: _Job, solver: HTTPSolver, remote: Remote) -> None:
    """Record a model at an endpoint, as far as it goes, and say how that ended."""
    from roi_env.answering.forcing import ForcingSolver
    from roi_env.answering.ledger import JournalError, Ledger
    from roi_env.answering.recording import Limits, LiveRecording, record_live

    settings = {**solver.settings, "menu": solver.name, "tiers": [list(entry.__dict__.values()) for entry in job.tiers]}
    try:
        if isinstance(solver, ForcingSolver):
            settings["reasoning"] = max(map(solver.dialect.reasoning, job.tiers))
        ledger = Ledger(job.journal, {**settings, "decision_cost": job.cost}, refuse=_other_generations)
    except JournalError as error:
        raise ConfigError(str(error)) from error
    for text in ledger.messages:
        endpoints.report(text)
    if ledger.unknown:
        console.print(
            f"[yellow]{len(ledger.unknown)} requests were in flight when an earlier run ended: their "
            f"{sum(entry.reserved for entry in ledger.unknown):,} reserved tokens stay charged[/]"
        )
    recording = LiveRecording(ledger)
    try:
        if changed := recording.take_in(job.questions):
            endpoints.report(
                f"{job.journal}: {counted(changed, 'question')} with another reference answer, or other columns, than before: "
                "their answers are judged by the newest"
            )
    except JournalError as error:
        ledger.close()
        raise ConfigError(str(error)) from error
    if remote.no_seeds:
        recording.stop_seeds("--no-seeds")
    if recording.without_seeds is not None:
        first, why = recording.without_seeds
        solver.seed = None
        console.print(f"[yellow]No seeds are sent, since request {first:,}:[/] {escape(why)}", highlight=False)

    async def run() -> RecordingProgress:
        try:
            with progress_bar() as bar:
                shown = bar.add_task("recording", total=len(job.questions) * len(job.tiers) * job.samples)
                version = await solver.version() if solver.backend.name == "vllm" and solver.sends_seeds else None
                if version is not None and version.startswith(SEEDS_KILL):
                    bar.console.print(
                        f"[yellow]vLLM {escape(version)} built for the CPU dies of seeds where a long prompt is read in "
                        'chunks ("CPU Generator does not use offset"): --no-seeds sends none[/]',
                        highlight=False,
                    )

                def watch(at: RecordingProgress) -> None:
                    money = f", {at.usd:,.2f} USD" if at.usd else ""
                    bar.update(shown, completed=at.done, description=f"{at.tokens:,} tokens{money}, {at.errors} errors")

                return await record_live(
                    job.questions,
                    job.tiers,
                    job.samples,
                    solver,
                    ledger,
                    concurrency=remote.concurrency,
                    limits=Limits(remote.max_tokens_total, remote.max_usd, remote.usd_output, remote.usd_prompt),
                    retry_errors=remote.retry_errors,
                    watch=watch,
                    gone=lambda: solver.died_of_seeds,
                )
        finally:
            await solver.close()

    try:
        end = asyncio.run(run())
    except KeyboardInterrupt:
        console.print(f"\nStopped. Finished work is in {job.journal}; the same command goes on.")
        raise typer.Exit(130) from None
    finally:
        if solver.died_of_seeds:
            recording.stop_seeds(f"the endpoint died of them ({solver.died_of_seeds})")
        ledger.close()
    _tell_end(end, solver, remote.patience)
    recording = LiveRecording(ledger)
    _tell_troubles(recording, end.errors)
    try:
        _tabulate(recording, job.tiers, job.judge, job.grade_seconds, job.out, solver.name, job.cost)
    except JournalError as error:
        raise ConfigError(str(error)) from error
    if end.gone or end.held:
        raise typer.Exit(1)


def _tell_end(end: RecordingProgress, solver: HTTPSolver, patience: float) -> None:
    """How far a recording came, and why not further."""
    console.print(
        f"{end.done:,} of {end.total:,} done, {end.errors:,} permanent errors, {end.unknown:,} of unknown outcome; "
        f"{end.tokens:,} tokens charged" + (f", {end.usd:,.4f} USD" if end.usd else ""),
        highlight=False,
    )
    if end.gone:
        console.print(f"[yellow]Stopped: the endpoint takes nothing:[/] {escape(end.gone)}", highlight=False)
        if solver.died_of_seeds:
            console.print(
                f"[yellow]It broke down over requests with a seed:[/] {escape(solver.died_of_seeds)}\nvLLM for the CPU "
                'dies of them where a long prompt is read in chunks ("CPU Generator does not use offset"). Start it again: '
                "the same command goes on without seeds, and the table says so.",
                highlight=False,
            )
        else:
            console.print("The same command goes on when it does.")
    if end.stopped:
        console.print(f"[yellow]Stopped at the limit of {end.stopped}; the same command with a higher one goes on.[/]")
    if end.held:
        endpoints.report(f"Stopped: {end.held}. A question may wait {patience:,.0f} s (--patience).")
        console.print("The same command goes on.")


def _tell_troubles(recording: LiveRecording, errors: int) -> None:
    """The most frequent errors, and notes on answers."""
    for text, count in _most_frequent([reply.error or "" for reply in recording.errors().values()]):
        console.print(f"[yellow]{count} x[/] {escape(text)}", highlight=False)
    if errors:
        console.print("Permanent errors have no row in the table; --retry-errors asks them again.")
    # Numbers in parentheses and texts of refusals differ between answers.
    noted = [
        re.sub(r" \(.*?\)|(?<=refusal): .*", "", reply.note) for reply in recording.outcomes().values() if reply.note
    ]
    for text, count in _most_frequent(noted):
        console.print(f"[yellow]{count} answers:[/] {escape(text)} (column note)", highlight=False)


def _other_generations(
    old: Mapping[str, Any], new: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> str | None:
    """Where the endpoint is, and what the table says of it, may change; nothing that answers depend on."""
    from roi_env.answering.ledger import differences

    free = {"url", "menu", "family", "decision_cost"}  # family: the menu of earlier journals
    before, now = ({name: value for name, value in each.items() if name not in free} for each in (old, new))
    tiers = [list(tier) for tier in before.get("tiers", [])]
    if tiers and all(tier in now.get("tiers", []) for tier in tiers):
        before["tiers"] = now["tiers"]  # further ones
    return differences(before, now) or None


def regrade(
    journal: Annotated[Path, typer.Argument(help="Journal of `roi record --endpoint` (.journal.jsonl)")],
    out: Annotated[Path, typer.Option(help="Outcome table to write (.parquet)")],
    grader: Annotated[
        str, typer.Option(help="exact, number, choice, math, reasoning-gym, or module:function of your own")
    ],
    grade_seconds: GradeSeconds = 10.0,
) -> None:
    """Judge recorded answers again and write their table; nothing is generated."""
    from roi_env.answering.base import ThinkingTier
    from roi_env.answering.ledger import JournalError, Ledger
    from roi_env.answering.recording import LiveRecording

    if not journal.exists():
        raise ConfigError(f"{journal}: no such journal")
    try:
        ledger = Ledger(journal)
        settings = ledger.settings
        for text in ledger.messages:
            endpoints.report(text)
        menu = settings.get("menu", settings.get("family"))  # earlier journals
        if "tiers" not in settings or menu is None:
            raise ConfigError(f"{journal}: not the journal of an endpoint's recording")
        tiers = [ThinkingTier(*fields) for fields in settings["tiers"]]
        ledger.close()
        recording = LiveRecording(ledger)
        _tabulate(recording, tiers, grader, grade_seconds, out, menu, settings["decision_cost"])
    except JournalError as error:
        raise ConfigError(str(error)) from error


def _tabulate(
    recording: LiveRecording,
    tiers: Sequence[ThinkingTier],
    grader: str,
    seconds: float,
    out: Path,
    menu: str,
    decision_cost: int,
) -> None:
    """Grade what was recorded and write its table."""
    from roi_env.answering.grading import GradingError, GradingPool
    from roi_env.answering.recording import live_table

    outcomes = recording.outcomes()
    try:
        with GradingPool(grader, seconds=seconds) as pool, progress_bar() as bar:
            shown = bar.add_task(f"grading ({grader})", total=len(outcomes))
            grades = pool.grade(
                [(recording.questions[key[:2]], reply.full_text) for key, reply in outcomes.items()],
                watch=lambda done: bar.update(shown, completed=done),
            )
    except GradingError as error:
        raise ConfigError(str(error)) from error
    for text, count in _most_frequent([grade.problem for grade in grades if grade.problem]):
        console.print(f"[yellow]{count} answers not judged, counted wrong:[/] {escape(text)}", highlight=False)
    correct = {key: grade.correct for key, grade in zip(outcomes, grades, strict=True)}
    table = live_table(recording, tiers, correct, menu=menu, decision_cost=decision_cost)
    table.write(out)
    right = sum(correct.values())
    console.print(
        f"{table.num_rows:,} generations, {right:,} right: [bold]{out}[/bold] (roi table {out} describes them)",
        highlight=False,
    )


def _most_frequent(texts: Sequence[str], most: int = 5) -> list[tuple[str, int]]:
    from collections import Counter

    return Counter(texts).most_common(most)


def _record_here(job: _Job, model: str, settings: dict[str, Any]) -> None:
    """Record a model in this process."""
    import torch

    from agents.llm.decisions.policy import model_source
    from agents.llm.mcft.rejection import other_generations, solver_settings
    from agents.llm.prompts import answer_of
    from roi_env.answering.grading import GradingError
    from roi_env.answering.ledger import JournalError
    from roi_env.answering.local import TransformersSolver
    from roi_env.answering.recording import Journal, outcome_table
    from roi_env.answering.recording import record as run

    torch.set_num_threads(settings.pop("threads"))
    checks = {task.question_id: task for task in job.tasks}
    try:
        solver = TransformersSolver(model_source(model), **settings)
        solver.check(job.tiers, job.questions)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model!r}: {error}") from error
    if solver.warning is not None:
        endpoints.report(solver.warning)
    pool = None
    try:
        if not checks:
            pool = endpoints.Judge(job.judge, job.grade_seconds)

        def check(question: Question, text: str) -> bool:
            if pool is not None:
                return pool(question, text)
            return checks[question.question_id].check(answer_of(text))

        with Journal(job.journal, solver_settings(solver, job.tiers), refuse=other_generations) as kept:
            for text in kept.messages:
                endpoints.report(text)
            with progress_bar() as bar:
                shown = bar.add_task("recording", total=len(job.questions) * job.samples)
                again = run(
                    job.questions,
                    job.tiers,
                    job.samples,
                    solver,
                    check,
                    kept,
                    batch=max(PAIRS, 2 * solver.batch),
                    watch=lambda done, _: bar.update(shown, completed=done),
                    judge="tasks" if pool is None else job.judge,
                )
            if again:
                endpoints.report(
                    f"{job.journal}: {counted(again, 'sample')} judged by another grader or reference before, and now again"
                )
            table = outcome_table(
                job.questions,
                job.tiers,
                job.samples,
                kept,
                menu=solver.name,
                pairing=solver.paired,
                decision_cost=job.cost,
            )
    except (JournalError, GradingError) as error:
        raise ConfigError(str(error)) from error
    except KeyboardInterrupt:
        console.print(f"\nStopped. Finished work is in {job.journal}; the same command goes on.")
        raise typer.Exit(130) from None
    finally:
        if pool is not None:
            pool.close()
    table.write(job.out)
    right = int(table.numbers("correct").sum())
    console.print(
        f"{table.num_rows:,} generations, {right:,} right: [bold]{job.out}[/bold] ({job.out.stat().st_size / 1e6:.1f} MB)"
    )


def exam_tasks(questions: int, families: list[str], splits: Sequence[str]) -> list[Task]:
    """Tasks of the splits in the table's shares, as if all splits were asked for; hidden difficulty counts twice."""
    from agents.llm.small_model.tasks import FAMILIES, distinct_tasks
    from roi_env.sources.outcome_tables import DEFAULT_FRACTIONS, SPLITS

    return [
        task
        for name in families
        for difficulty in FAMILIES[name].difficulties
        for split, share in zip(SPLITS, DEFAULT_FRACTIONS, strict=True)
        if split in splits
        for task in distinct_tasks(
            name,
            difficulty,
            split,  # type: ignore[arg-type]
            round((1 + FAMILIES[name].hidden) * questions * share),
        )
    ]


def gradable_question(task: Task) -> Question:
    """The task with what reasoning-gym's scorer needs, so that its answers can be graded apart from the task."""
    from dataclasses import replace

    from agents.llm.small_model.tasks import FAMILIES, as_question
    from roi_env.answering.questions import generated_question

    bare = as_question(task)
    made = generated_question(task.family, FAMILIES[task.family].dataset, task.question, task.entry)
    return replace(bare, extra={**bare.extra, **made.extra})
