"""`roi llm`: making the small language model and describing what it can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments.commands.pipeline import pipeline
from experiments.commands.self_knowledge import mcft_report
from experiments.config import ConfigError, overridden
from experiments.options import MODELS, helped
from experiments.runs import check_folder
from experiments.terminal import Table, console, interruptible, progress_bar

app = typer.Typer(no_args_is_help=True, help="The small language model: make it, describe what it can do.")


@app.command(
    **helped(
        MODELS,
        "roi llm pretrain --out runs/tinylm   (again: goes on where it stopped)",
        "roi llm pretrain --out runs/larger hidden=256 layers=6 feed_forward=768 tokens=50000000",
    )
)
def pretrain(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the recipe, e.g. tokens=1000000 families=[sum1,prod]")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Model directory; where it holds an unfinished training, that goes on")
    ] = Path("runs/tinylm"),
    seed: Annotated[int, typer.Option(help="Of weights and data", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch", min=1)] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the recipe, train nothing")] = False,
) -> None:
    """Train the small language model from nothing and save it as a Hugging Face model directory."""
    import torch

    from agents.llm.small_model.pretraining import PretrainingRecipe, Training
    from agents.llm.small_model.pretraining import pretrain as train

    recipe = overridden(PretrainingRecipe(seed=seed), overrides or [])
    console.print(f"{recipe}\nFolder {out}", highlight=False)
    check_folder(out, "recipe.json")
    if dry_run:
        return
    torch.set_num_threads(threads)
    try:
        with interruptible(lambda: f"Whole chunks are kept; the same command goes on in {out}."), progress_bar() as bar:
            task = bar.add_task("starting", total=recipe.tokens)

            def watch(progress: Training) -> None:
                shown = f"{progress.updates:,} updates, loss {progress.loss:.3f}"
                bar.update(task, completed=progress.tokens, description=shown)

            done = train(recipe, out, watch)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in done.validation.items())
    console.print(
        f"{done.updates:,} updates, {done.tokens:,} tokens, {done.cpu_seconds:.0f} CPU s; validation loss (nats a token): "
        f"{losses}\nModel: [bold]{out}[/bold]"
    )


app.command(
    **helped(
        MODELS,
        "roi llm pipeline --out runs/pipeline   (45 minutes on two cores)",
        "roi llm pipeline --out runs/quick --pretrain tokens=1000000 --record --samples --record 4",
    )
)(pipeline)
app.command(
    "mcft-report",
    **helped(
        MODELS,
        "roi llm mcft-report tinylm-mcft --table roi_env/sources/packaged/tinylm.parquet --out runs/self-knowledge",
        "roi llm mcft-report runs/mcft --table mine.parquet --out runs/mine",
    ),
)(mcft_report)


@app.command(**helped(MODELS, "roi llm report runs/tinylm.parquet --split test", "roi llm report mine.parquet"))
def report(
    table: Annotated[Path, typer.Argument(help="Outcome table written by `roi record`")],
    split: Annotated[str, typer.Option(help="train, validation, test or all")] = "test",
) -> None:
    """Describe recorded outcomes by kind of task: accuracy and tokens of every tier, items out of reach, what the look tells."""
    from agents.llm.mcft.surface import rulers, successes
    from roi_env.sources.outcome_tables import SPLITS, OutcomeTable

    if split not in (*SPLITS, "all"):
        raise ConfigError(f"--split must be one of {[*SPLITS, 'all']}, got {split!r}")
    whole = OutcomeTable.read(table).select()
    whole.log_notes()
    if "difficulty" not in whole.rows.column_names:
        raise ConfigError(f"{table}: `roi llm report` needs the column 'difficulty' that `roi record` writes")
    tiers = whole.tier_names(whole.menus[0])
    shown = Table(title=f"{whole.menus[0]}, {split} questions")
    for name in ("task", "difficulty", "questions"):
        shown.add_column(name, justify="left" if name == "task" else "right")
    for tier in tiers:
        shown.add_column(f"right\n{tier}", justify="right")
    for tier in tiers:
        shown.add_column(f"tokens\n{tier}", justify="right")
    shown.add_column("sd within\na question", justify="right")
    shown.add_column("out of\nreach", justify="right")
    for row in structure(successes(whole.split(split))):  # type: ignore[arg-type]
        shown.add_row(
            row["task"],
            str(row["difficulty"]),
            str(row["questions"]),
            *(f"{value:.2f}" for value in row["right"]),
            *(f"{mean:.0f} ± {spread:.0f}" for mean, spread in zip(row["tokens"], row["spread"], strict=True)),
            f"{row['within']:.0f}",
            f"{row['out_of_reach']:.2f}",
        )
    console.print(shown)
    if split != "test":
        return
    looks = Table(
        title="Nats an answer on test questions: what the look predicts, and what a question's own other samples predict"
    )
    for name in ("task", "questions", "surface predictor", "family and difficulty", "own samples", "room ± 1.96 se"):
        looks.add_column(name, justify="left" if name == "task" else "right")
    for ruler in rulers(successes(whole.split("train")), successes(whole.split("test"))):
        looks.add_row(
            ruler.family,
            str(ruler.questions),
            f"{ruler.surface:.3f}",
            f"{ruler.visible:.3f}",
            f"{ruler.own:.3f}",
            f"{ruler.gain:.3f} ± {1.96 * ruler.gain_error:.3f}",
        )
    console.print(looks)


def structure(found: Any) -> list[dict[str, Any]]:
    """Accuracy and cost by family and visible difficulty, in order of appearance and difficulty.

    ``tokens`` and ``spread`` (K,): mean and standard deviation over all generations of a tier; ``within``: mean standard
    deviation inside a question at the top tier; ``out_of_reach``: share of questions that no sample of any tier solved.
    """
    rows = []
    for name in dict.fromkeys(found.dataset.tolist()):
        for difficulty in sorted(set(found.difficulty[found.dataset == name].tolist())):
            here = (found.dataset == name) & (found.difficulty == difficulty)
            right, count = found.right[here].sum(2), found.answers[here].sum(2)
            mean = found.tokens[here].mean(0)
            rows.append(
                {
                    "task": name,
                    "difficulty": difficulty,
                    "questions": int(here.sum()),
                    "right": (right.sum(0) / count.sum(0)).tolist(),
                    "tokens": mean.tolist(),
                    "spread": np.sqrt((found.spread[here] ** 2 + (found.tokens[here] - mean) ** 2).mean(0)).tolist(),
                    "within": float(found.spread[here][:, -1].mean()),
                    "out_of_reach": float((right.sum(1) == 0).mean()),
                }
            )
    return rows
