"""`roi mcft`: a model learns to announce the level of a question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.config import ConfigError, overridden
from experiments.runs import check_folder
from experiments.terminal import console, interruptible, progress_bar

if TYPE_CHECKING:
    from roi_env.sources.outcome_tables import OutcomeTable, Split


def mcft(
    model: Annotated[
        str,
        typer.Argument(
            help="Hugging Face model directory (or id, where a hub is reachable), or one that comes with the package: tinylm"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Model directory; where it holds unfinished work, that goes on")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Overrides of the recipe, e.g. samples=4 keep=shortest lora=16; --dry-run shows all of it"),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Recorded outcomes of this model (`roi record`): labels come from their train questions, any model can be taught, "
            "nothing is generated; a report on their test questions follows"
        ),
    ] = None,
    menu: Annotated[str | None, typer.Option(help="Which of the table's menus")] = None,
    tiers: Annotated[
        list[str] | None, typer.Option("--tier", help="Tiers of the table that the levels announce, three; repeatable")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of examples and training", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch", min=1)] = 2,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the recipe and count questions, train nothing")
    ] = False,
) -> None:
    """Meta-cognitive fine-tuning: from its own right and wrong samples a model learns to announce levels and to refuse."""
    import torch
    from transformers.utils import logging

    check_folder(out, "mcft.json")
    torch.set_num_threads(threads)
    # Its own bars, and a warning at every load of tied embeddings.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if table is not None:
        _on_table(model, out, overrides or [], table, menu, tiers, seed, threads, dry_run)
    elif menu is not None or tiers is not None:
        raise ConfigError("--menu and --tier belong to --table")
    else:
        _on_tasks(model, out, overrides or [], seed, dry_run)


def _on_tasks(model: str, out: Path, overrides: list[str], seed: int, dry_run: bool) -> None:
    """The small model's tasks, which it answers itself."""
    from agents.llm.mcft.rejection import family_tasks
    from agents.llm.mcft.training import MCFTRecipe
    from agents.llm.mcft.training import mcft as fine_tune
    from agents.llm.prompts import answer_of
    from agents.llm.small_model.tasks import as_question
    from roi_env.answering.ledger import JournalError

    recipe = overridden(MCFTRecipe(seed=seed), overrides)
    train = family_tasks("train", recipe.questions, recipe.families)
    validation = family_tasks("validation", recipe.validation, recipe.families)
    console.print(
        f"{recipe}\n{len(train):,} training and {len(validation):,} validation questions x {recipe.samples} samples; folder {out}",
        highlight=False,
    )
    if dry_run:
        return
    by_id = {task.question_id: task for task in (*train, *validation)}
    try:
        with interruptible(lambda: f"Finished work is kept; the same command goes on in {out}."), progress_bar() as bar:
            task = bar.add_task("starting", total=None)
            done = fine_tune(
                model,
                recipe,
                out,
                [as_question(one) for one in train],
                [as_question(one) for one in validation],
                lambda question, text: by_id[question.question_id].check(answer_of(text)),
                lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
            )
    except (JournalError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # told with the file: a full disk, a read-only folder
        raise ConfigError(str(error)) from error
    for stage, losses in done.validation.items():
        console.print(f"{stage}: nats a tag on validation questions {' '.join(f'{loss:.3f}' for loss in losses)}")
    for name, before, after in zip(recipe.tiers, done.before, done.after, strict=True):
        console.print(f"accuracy without tags at {name}: {before:.3f} before, {after:.3f} after")
    spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in done.cpu_seconds.items())
    console.print(f"CPU s: {spent}\nModel: [bold]{out}[/bold]")


def _on_table(
    model: str,
    out: Path,
    overrides: list[str],
    file: Path,
    menu: str | None,
    tiers: list[str] | None,
    seed: int,
    threads: int,
    dry_run: bool,
) -> None:
    """A recorded table's questions, and its samples."""
    from agents.llm.mcft.recorded import TableRecipe, fine_tune
    from experiments.commands.self_knowledge import mcft_report
    from roi_env.sources.outcome_tables import OutcomeTable

    recipe = overridden(TableRecipe(seed=seed), overrides)
    try:
        table = OutcomeTable.read(file).select(menu, tiers)
        table.log_notes()
        train, validation = (_labelled(table, recipe, split) for split in ("train", "validation"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    menu = table.menus[0]
    console.print(
        f"{recipe}\n{len(train):,} training and {len(validation):,} validation questions of {file}, tiers "
        f"{', '.join(table.tier_names(menu))}; folder {out}",
        highlight=False,
    )
    if dry_run:
        return
    told = {"table": file.name, "menu": menu, "table_tiers": list(table.tier_names(menu)), "rows": table.num_rows}
    try:
        with interruptible(lambda: f"Whole epochs are kept; the same command goes on in {out}."), progress_bar() as bar:
            task = bar.add_task("starting", total=None)
            losses = fine_tune(
                model,
                recipe,
                out,
                told,
                train,
                validation,
                lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
                lambda text: console.print(text, highlight=False),
                _labelled(table, recipe, "test"),
            )
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # told with the file: a full disk, a read-only folder
        raise ConfigError(str(error)) from error
    for stage, nats in losses.items():
        console.print(f"{stage}: nats a label on validation questions {' '.join(f'{loss:.3f}' for loss in nats)}")
    console.print(f"Model: [bold]{out}[/bold]")
    mcft_report(str(out), file, untaught=model, out=out, threads=threads)


def _labelled(table: OutcomeTable, recipe: Any, split: Split) -> list[Any]:
    """Labelled questions of a split; those without a text cannot be read, and that is said."""
    from agents.llm.mcft.rejection import table_samples

    found = table_samples(table.split(split), recipe.keep, recipe.sampled)
    with_text = [one for one in found if one.question.text]
    if absent := len(found) - len(with_text):
        console.print(f"[yellow]Left out:[/] {absent} {split} questions of {table.path} have no text", highlight=False)
    return with_text
