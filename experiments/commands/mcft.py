"""`roi mcft`: a model learns to announce the level of a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.config import ConfigError, overridden
from experiments.runs import check_folder
from experiments.terminal import console, interruptible, progress_bar


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
    seed: Annotated[int, typer.Option(help="Of examples and training", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch", min=1)] = 2,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the recipe and count questions, train nothing")
    ] = False,
) -> None:
    """Meta-cognitive fine-tuning: from its own right and wrong samples a model learns to announce levels and to refuse."""
    import torch
    from transformers.utils import logging

    from agents.llm.mcft.rejection import family_tasks
    from agents.llm.mcft.training import MCFTRecipe
    from agents.llm.mcft.training import mcft as fine_tune
    from agents.llm.prompts import answer_of
    from agents.llm.small_model.tasks import as_question
    from roi_env.answering.ledger import JournalError

    recipe = overridden(MCFTRecipe(seed=seed), overrides or [])
    train = family_tasks("train", recipe.questions, recipe.families)
    validation = family_tasks("validation", recipe.validation, recipe.families)
    console.print(
        f"{recipe}\n{len(train):,} training and {len(validation):,} validation questions x {recipe.samples} samples; folder {out}",
        highlight=False,
    )
    check_folder(out, "mcft.json")
    if dry_run:
        return
    torch.set_num_threads(threads)
    # Its own bars, and a warning at every load of tied embeddings.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
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
        raise ConfigError(str(error)) from error
    for stage, losses in done.validation.items():
        console.print(f"{stage}: nats a tag on validation questions {' '.join(f'{loss:.3f}' for loss in losses)}")
    for name, before, after in zip(recipe.tiers, done.before, done.after, strict=True):
        console.print(f"accuracy without tags at {name}: {before:.3f} before, {after:.3f} after")
    spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in done.cpu_seconds.items())
    console.print(f"CPU s: {spent}\nModel: [bold]{out}[/bold]")
