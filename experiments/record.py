"""`roi record`: a model answers questions at every tier; the outcomes become a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.config import ConfigError
from experiments.terminal import console, progress_bar

if TYPE_CHECKING:
    from agents.llm.tasks import Task

DECISION_COST = 1
"""Tokens of a level tag."""
ANSWER_TOKENS = 24
_TIERS = ("answer=0", "short=48", "long=160")


def record(
    model: Annotated[str, typer.Argument(help="Hugging Face model directory (or id, where a hub is reachable)")],
    out: Annotated[Path, typer.Option(help="Outcome table to write (.parquet)")],
    questions: Annotated[
        int, typer.Option(help="Questions of every family and difficulty (of hidden difficulty: twice as many)", min=4)
    ] = 60,
    samples: Annotated[int, typer.Option(help="Samples of every question", min=1)] = 8,
    tier: Annotated[
        list[str] | None, typer.Option(help="NAME=THINKING TOKENS, cheapest first; repeatable; 0: answer at once")
    ] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only these kinds of tasks; repeatable")] = None,
    temperature: Annotated[float, typer.Option(help="Of sampling", min=0)] = 0.7,
    name: Annotated[str | None, typer.Option(help="Of the model in the table; default: its folder's")] = None,
    seed: Annotated[int, typer.Option(help="Of the samples", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="Rows generated together", min=1)] = 256,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch", min=1)] = 2,
    device: Annotated[str, typer.Option(help="Of PyTorch")] = "cpu",
    journal: Annotated[
        Path | None, typer.Option(help="Finished work (with texts); goes on there. Default: beside the table")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be recorded")] = False,
) -> None:
    """Let a model answer questions at every tier, one thought shared by the tiers of a sample; write the outcome table."""
    from agents.llm.prompts import answer_of
    from agents.llm.tasks import FAMILIES, as_question
    from roi_env.solvers.base import ThinkingTier

    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: outcome tables are written as .parquet")
    tiers = []
    for text in tier or _TIERS:
        match = re.fullmatch(r"([\w-]+)=(\d+)", text)
        if match is None:
            raise ConfigError(f"--tier {text!r} must read NAME=TOKENS, e.g. short=48")
        tiers.append(ThinkingTier(match[1], int(match[2]), ANSWER_TOKENS))
    caps = [entry.thinking for entry in tiers]
    if caps != sorted(set(caps)) or len({entry.name for entry in tiers}) < len(tiers):
        raise ConfigError("tiers must have different names and growing caps")
    if unknown := set(family or ()) - set(FAMILIES):
        raise ConfigError(f"unknown kind of tasks {sorted(unknown)[0]!r}; there are {list(FAMILIES)}")
    asked = exam_tasks(questions, family or list(FAMILIES))
    by_id = {task.question_id: task for task in asked}
    wanted = [as_question(task) for task in asked]
    total = len(wanted) * samples
    console.print(f"{len(wanted):,} questions x {samples} samples x {len(tiers)} tiers", highlight=False)
    if dry_run:
        return

    import torch

    from roi_env.solvers.local import TransformersSolver
    from roi_env.solvers.recording import Journal, JournalError, outcome_table
    from roi_env.solvers.recording import record as run

    torch.set_num_threads(threads)
    try:
        solver = TransformersSolver(model, name=name, temperature=temperature, batch=batch, seed=seed, device=device)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model!r}: {error}") from error
    settings = {
        "model": solver.name,
        "weights": solver.fingerprint,
        "temperature": temperature,
        "seed": seed,
        "tiers": [[entry.name, entry.thinking, entry.answer] for entry in tiers],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    file = journal or out.with_suffix(".journal.jsonl")
    try:
        with Journal(file, settings) as kept:
            with progress_bar() as bar:
                shown = bar.add_task("recording", total=total)
                run(
                    wanted,
                    tiers,
                    samples,
                    solver,
                    lambda question, text: by_id[question.question_id].check(answer_of(text)),
                    kept,
                    batch=2 * batch,
                    watch=lambda done, _: bar.update(shown, completed=done),
                )
            table = outcome_table(
                wanted, tiers, samples, kept, family=solver.name, pairing=solver.paired, decision_cost=DECISION_COST
            )
    except JournalError as error:
        raise ConfigError(str(error)) from error
    except KeyboardInterrupt:
        console.print(f"\nStopped. Finished work is in {file}; the same command goes on.")
        raise typer.Exit(130) from None
    table.write(out)
    console.print(f"{table.num_rows:,} generations: [bold]{out}[/bold] ({out.stat().st_size / 1e6:.1f} MB)")


def exam_tasks(questions: int, families: list[str]) -> list[Task]:
    """Tasks of the splits in the table's shares; hidden difficulty counts twice."""
    from agents.llm.tasks import FAMILIES, distinct_tasks
    from roi_env.outcomes import DEFAULT_FRACTIONS, SPLITS

    return [
        task
        for name in families
        for difficulty in FAMILIES[name].difficulties
        for split, share in zip(SPLITS, DEFAULT_FRACTIONS, strict=True)
        for task in distinct_tasks(
            name,
            difficulty,
            split,  # type: ignore[arg-type]
            round((1 + FAMILIES[name].hidden) * questions * share),
        )
    ]
