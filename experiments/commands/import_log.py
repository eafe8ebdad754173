"""``roi import LOG...``: evaluation logs of other tools become an outcome table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from experiments.config import ConfigError
from experiments.runs import check_file
from experiments.terminal import console
from roi_env.sources.units import UNITS

EXAMPLES = (
    "roi import logs/*.eval --out mine.parquet",
    "roi import samples.csv --out mine.parquet --column question=prompt --column correct=reward --correct-at .9 "
    "--column tokens=usage.completion_tokens --column tier={file}",
)


def import_log(
    log: Annotated[
        list[Path],
        typer.Argument(
            help="Inspect logs (.eval, JSON), lm-evaluation-harness samples, lighteval details, HELM runs, reasoning-gym results, Qwen2.5-Math harness, journals, "
            "or tables (JSONL, JSON, CSV, Parquet); or folders of them"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Outcome table to write (.parquet)")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="ours=theirs: dataset, question_id, question, answer, menu, tier, tier_order, tokens, cost (US dollars), "
            "correct, sample or text is their column or path (usage.completion_tokens, arms.*.cost, *_response), a text with {file}, "
            "{folder}, {path}, or a constant in quotes; repeatable"
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Their column of the generated text, to count its tokens")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder or tokenizer.json of the model's tokenizer; for texts without counts")
    ] = None,
    filter: Annotated[
        str | None, typer.Option(help="Filter, scorer or metric that decides, where a log has several")
    ] = None,
    correct_at: Annotated[float | None, typer.Option(help="Smallest score that counts as right")] = None,
    unit: Annotated[str | None, typer.Option(help="Of costs: tokens, or micro-usd (the log's US dollars)")] = None,
    grader: Annotated[
        str | None,
        typer.Option(
            help="Judges the journal of an endpoint's recording, which holds no judgement (see `roi regrade`)"
        ),
    ] = None,
) -> None:
    """Make an outcome table of evaluation logs; their format is found from their content."""
    from experiments.commands.table import print_table
    from roi_env.sources.importing.files import LogError
    from roi_env.sources.importing.generations import Options
    from roi_env.sources.importing.tables import import_logs
    from roi_env.sources.outcome_tables import OutcomeTable

    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: outcome tables are written as .parquet")
    check_file("--out", out)
    if unit is not None and unit not in UNITS:
        raise ConfigError(f"--unit {unit!r}: choose one of {', '.join(UNITS)}")
    if correct_at is not None and not correct_at > float("-inf"):
        raise ConfigError(f"--correct-at {correct_at}: give a number")
    options = Options(
        columns=_columns(column or []),
        text=text,
        filter=filter,
        correct_at=correct_at,
        unit=unit,
        tokenizer=_tokenizer(tokenizer) if tokenizer is not None else None,
    )
    if (journal := _endpoints_journal(log)) is not None:
        from experiments.commands.record import regrade

        console.print("Format: [bold]journal of roi record, an endpoint's[/] (1 file)", highlight=False)
        if grader is None:
            raise ConfigError(
                f"{journal}: its answers are not judged: name who judges them, e.g. --grader math (or number, exact)"
            )
        if options != Options():
            raise ConfigError(f"{journal}: of a journal of roi record only --grader can be chosen")
        regrade(journal, out, grader, 10.0)
        print_table(OutcomeTable.read(out), console)
        return
    if grader is not None:
        raise ConfigError(
            "--grader belongs to the journal of an endpoint's recording, imported alone: other logs have judgements"
        )
    try:
        table, kinds, report = import_logs(log, options, str(out))
    except LogError as error:
        raise ConfigError(str(error)) from error
    for kind, files in kinds.items():
        console.print(f"Format: [bold]{kind}[/] ({files} file{'s' * (files > 1)})", highlight=False, soft_wrap=True)
    for reason, count in report.dropped.items():
        console.print(f"Left out: {count:,} generations: {escape(reason)}", highlight=False, soft_wrap=True)
    for note in (*report.notes, *table.notes):
        console.print(f"[yellow]Inferred:[/] {escape(note)}", highlight=False, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"[bold red]WARNING:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    table.write(out)
    print_table(type(table).read(out), console)
    console.print(f"Written: [bold]{escape(str(out))}[/]", highlight=False, soft_wrap=True)


def _endpoints_journal(log: list[Path]) -> Path | None:
    """The one log, where it is the journal of an endpoint's recording."""
    from roi_env.sources.importing import journals
    from roi_env.sources.importing.files import LogError, LogFile

    if len(log) != 1 or not log[0].is_file():
        return None
    try:
        file = LogFile(log[0])
        first = file.first() if file.kind == "lines" else None
    except LogError:
        return None  # said where logs are read
    return log[0] if journals.matches(file, first) and journals.is_endpoints(first) else None


def _columns(texts: list[str]) -> dict[str, str]:
    """The options ``ours=theirs``.

    :raises ConfigError: for other texts, unknown columns, and columns given twice.
    """
    from roi_env.sources.importing.tabular import OURS

    found: dict[str, str] = {}
    for text in texts:
        ours, equals, theirs = text.partition("=")
        ours, theirs = ours.strip(), theirs.strip()
        if not equals or not theirs:
            raise ConfigError(f"--column {text!r} must read ours=theirs, e.g. tokens=usage.completion_tokens")
        if ours not in OURS:
            raise ConfigError(f"--column {text!r}: there is no column {ours!r}; ours are {', '.join(OURS)}")
        if ours in found:
            raise ConfigError(f"--column {ours}: given twice ({found[ours]!r} and {theirs!r}); keep one")
        found[ours] = theirs
    return found


def _tokenizer(path: Path) -> Callable[[str], int]:
    """Tokens of a text under a tokenizer's file; nothing of a model's own code is run.

    :raises ConfigError: where there is none.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"--tokenizer {path}: there is no {file.name} there; give the folder of a model that has one")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError('--tokenizer needs: pip install "roi-reasoning[llm]"') from error
    try:
        loaded = Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no error class of its own
        raise ConfigError(f"--tokenizer {file}: cannot be read ({error})") from error
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
