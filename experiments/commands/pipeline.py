"""`roi llm pipeline`: the paper's whole road as the commands that a person would type, one after the other."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from experiments.config import ConfigError
from experiments.runs import check_folder
from experiments.terminal import console
from experiments.training.workers import GRACE_S, STOPPED
from roi_env.files import replacing

RECORD = "pipeline.json"
More = list[str] | None


@dataclass(frozen=True)
class Stage:
    """One command; ``arguments`` of ``roi``."""

    name: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """As it is typed."""
        return shlex.join(["roi", *self.arguments])


def stages(out: Path, seed: int, threads: int, more: dict[str, Sequence[str]]) -> list[Stage]:
    """The stages in their order.

    :param out: folder of everything that is made.
    :param seed: of all of them.
    :param threads: of PyTorch, and processes of the comparison.
    :param more: further arguments by stage.
    """
    base, table, mcft, grpo = (str(out / name) for name in ("base", "outcomes.parquet", "mcft", "grpo"))
    cores = ["--threads", str(threads)]
    exams = ["--table", table, "--num-tasks", "8", "--group-by", "kind"]
    agents = ["lp-lookahead", "resolve", f"predicted-levels(planner='greedy-knapsack',model={mcft!r})"]
    agents += [f"llm(model={model!r},bits=4)" for model in (base, mcft, f"{grpo}/model")]
    chosen = [text for agent in agents for text in ("--agent", agent)]
    made = {
        "pretrain": ["llm", "pretrain", "--out", base, "--seed", str(seed), *cores],
        "record": ["record", base, "--out", table, "--seed", str(seed), *cores],
        "mcft": ["mcft", base, "--out", mcft, "--seed", str(seed), *cores],
        "train": [
            "train",
            "grpo",
            "--policy",
            "llm",
            "--model",
            mcft,
            *exams,
            "--training-seed",
            str(seed),
            "--out",
            grpo,
        ],
        "compare": ["compare", *exams, *chosen, "--workers", str(threads), "--out", str(out / "compare")],
    }
    # An anchored start, sure of itself, needs more decisions than the 50,000 that are enough otherwise.
    made["train"] += ["--param", "anchor=2", "--param", "budgets=[0.5,1,0.5,1,2]", "--steps", "150000"]
    made["compare"] += ["budgets=[0.15,0.3]", "orders=[easy_first,random,hard_first]", "exams=100"]
    return [Stage(name, (*arguments, *more.get(name, ()))) for name, arguments in made.items()]


def _run(command: Sequence[str]) -> int:
    """Exit code of a command; it is told to stop where this process is."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # A terminal's Ctrl-C has reached it too: told again at once it could not end in its own way.
            for tell, seconds in ((process.poll, 0.5), (process.terminate, GRACE_S), (process.kill, None)):
                tell()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                    break
            return STOPPED


def pipeline(
    out: Annotated[Path, typer.Option(help="Folder of everything that is made; again: goes on where it stopped")],
    seed: Annotated[int, typer.Option(help="Of every stage", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch, processes of the comparison", min=1)] = 2,
    pretrain: Annotated[More, typer.Option(help="Further argument of `roi llm pretrain`; repeatable")] = None,
    record: Annotated[More, typer.Option(help="Further argument of `roi record`; repeatable")] = None,
    mcft: Annotated[More, typer.Option(help="Further argument of `roi mcft`; repeatable")] = None,
    train: Annotated[More, typer.Option(help="Further argument of `roi train`; repeatable")] = None,
    compare: Annotated[More, typer.Option(help="Further argument of `roi compare`; repeatable")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the commands, run nothing")] = False,
) -> None:
    """From nothing to the paper's table: pre-train a model, record what it can do, MCFT, GRPO, compare."""
    more = {"pretrain": pretrain, "record": record, "mcft": mcft, "train": train, "compare": compare}
    planned = stages(out, seed, threads, {name: given or () for name, given in more.items()})
    file = out / RECORD
    check_folder(out, RECORD)
    done: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    for stage, before in zip(planned, done, strict=False):
        if before["command"] != stage.command:
            raise ConfigError(
                f"{out}: the stage {stage.name} was made by\n  {before['command']}\nand now it is\n  {stage.command}\n"
                "choose another folder, or delete this one"
            )
    for number, stage in enumerate(planned):
        finished = f" ({done[number]['seconds']:.0f} s, done)" if number < len(done) else ""
        console.print(f"[bold]{stage.name}[/]{finished}  {escape(stage.command)}", highlight=False)
        if dry_run or finished:
            continue
        since = time.perf_counter()
        arguments = stage.arguments
        if stage.name == "train" and (out / "grpo" / "checkpoint").exists():
            arguments = ("train", "--resume", str(out / "grpo"))
        # A process of its own each: what one stage holds in memory is gone before the next.
        code = _run([sys.executable, "-m", "experiments", *arguments])
        if code:
            console.print(f"\nStopped in the stage {stage.name}; finished work is kept, the same command goes on.")
            raise typer.Exit(code)
        done.append({"stage": stage.name, "command": stage.command, "seconds": time.perf_counter() - since})
        with replacing(file) as path:
            path.write_text(json.dumps(done, indent=1) + "\n")
    if not dry_run:
        console.print(
            f"{sum(stage['seconds'] for stage in done) / 60:.0f} minutes in all. Report: [bold]{out / 'compare'}[/]"
        )
