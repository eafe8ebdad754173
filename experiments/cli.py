"""The `roi` command."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

try:
    import numpy as np
    import typer
    from rich.console import Console
    from rich.markup import escape

    import agents.base
except ImportError as error:
    # `agents` is also what the package openai-agents installs: tell that clash from a missing extra.
    import agents

    where = getattr(agents, "__file__", None) or "an unknown place"
    if error.name and error.name.startswith("agents"):
        sys.exit(
            f"roi: the package `agents` that Python finds ({where}) is not ROI-Reasoning's: another distribution "
            "(openai-agents?) installs a package of the same name. Install ROI-Reasoning in an environment of its own."
        )
    sys.exit(f'roi: {error}; install the command line with: pip install "roi-reasoning[report]"')
except KeyboardInterrupt:
    sys.exit(130)

from agents.base import AGENTS, AgentError
from experiments.commands import answer, budgets, import_log, llm, mcft, predict, probe, record, serve
from experiments.commands.parameters import read_parameters
from experiments.config import CompareConfig, ConfigError, FamilyConfig, as_dict, at_budgets, load_config
from experiments.options import (
    BUDGET_HELP,
    COMPARE,
    DATA,
    LIVE,
    MODELS,
    PREDICTORS,
    TRAIN,
    ChosenExam,
    Imports,
    absolute,
    absolute_predictor,
    check_family,
    exam_options,
    family_names,
    helped,
    own_agents,
    read_budget,
    refuse_choices,
)
from experiments.runs import check_file, check_folder, check_same
from experiments.terminal import (
    Table,
    console,
    counted,
    end_like_an_interrupt,
    interrupted,
    interruptible,
    progress_bar,
)
from experiments.training.workers import STOPPED, WorkerLost
from roi_env.exams.exam import LARGEST_NUMBER, LARGEST_SEED
from roi_env.files import replacing
from roi_env.sources.units import COST_NAMES, cost_text

if TYPE_CHECKING:
    from experiments.commands.train import TrainConfig
    from experiments.compare.plan import Job

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Budget-aware reasoning: compare agents on exams with one token budget, play one, describe recorded outcomes.",
)
_Item = TypeVar("_Item")
GroupBy = Annotated[str | None, typer.Option(help="With --table: column whose values agents see; default: the dataset")]
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "compare.yaml"


@app.command(
    **helped(
        COMPARE,
        "roi compare",
        "roi compare --family heavy --budget 0.15 --agent mine.py:MyAgent --agent lp-lookahead exams=50",
        "roi compare --table outcomes.parquet --menu gpt-4",
    )
)
def compare(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Dotted overrides of the configuration, e.g. exams=50 training_seeds=[0]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; default: the published comparison")] = None,
    family: Annotated[
        list[str] | None, typer.Option(help=f"Only these families ({', '.join(family_names())}); repeatable")
    ] = None,
    budget: Annotated[list[str] | None, typer.Option(help=f"{BUDGET_HELP}; repeatable")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="Only these settings, as --dry-run names them, * for anything, e.g. 'heavy*'; repeatable"),
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="Only these agents: of `roi agents`, or FILE.py:CLASS; repeatable", callback=own_agents),
    ] = None,
    imports: Imports = None,
    table: Annotated[
        Path | None, typer.Option(help="Recorded outcomes (Parquet, CSV, JSONL, a folder, hf:NAME) instead of families")
    ] = None,
    menu: Annotated[
        list[str] | None, typer.Option(help="Menus of the table; default: the three richest; repeatable")
    ] = None,
    group_by: GroupBy = None,
    predictor: Annotated[
        list[str] | None,
        typer.Option(
            help=f"With --table: what each recovers, and all agents given its groups ({PREDICTORS}, or a file of `roi predict "
            "fit`); default: what text recovers; none: nothing; repeatable"
        ),
    ] = None,
    num_tasks: Annotated[int | None, typer.Option(help="Tasks of an exam, in every family", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/compare-<time>")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder with its own configuration")] = None,
    exam_seed: Annotated[int | None, typer.Option(help="Seed of the reported exams", min=0, max=LARGEST_SEED)] = None,
    workers: Annotated[int, typer.Option(help="Processes; results do not depend on it", min=1)] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, run nothing")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="With --resume: report on what is done; the rest is shown as missing")
    ] = False,
) -> None:
    """Let agents take the same exams and write a report: score against budget, regrets, choices, statistics."""
    from experiments.compare.plan import expand, plan
    from experiments.compare.store import CONFIG, missing_jobs, to_train
    from experiments.compare.store import assemble as assemble_run

    if resume is not None:
        refuse_choices(context, "imports", "workers", "dry_run", "report_only")
    if report_only and resume is None:
        raise ConfigError("--report-only needs --resume RUN: the run folder to report on")
    if resume is not None and not (resume / CONFIG).exists():
        raise ConfigError(f"{resume}: not a run folder of `roi compare` (it has no {CONFIG})")
    run = resume or out or Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S}"
    if resume is not None:
        resolved = load_config(resume / CONFIG, [])
    else:
        resolved = _resolve(
            config, overrides or [], family, budget, agent, table, menu, group_by, predictor, num_tasks, exam_seed
        )
        if setting:
            resolved.families = _only(resolved, setting)
    if resume is None and check_folder(run, CONFIG):
        found = as_dict(load_config(run / CONFIG, []))
        check_same(run, found, as_dict(resolved), f"roi compare --resume {run}")
    with interruptible(lambda: _kept(run / CONFIG, f"roi compare --resume {run}")):
        settings = expand(resolved)
        jobs = plan(resolved, settings)
        todo = missing_jobs(resolved, jobs, run)
        agents_shown = dict.fromkeys(job.agent for job in jobs if job.is_agents)
        console.print(
            f"[bold]{counted(len(settings), 'setting')}[/bold], {counted(len(agents_shown), 'agent')}, "
            f"{counted(resolved.exams, 'exam')} each, paired; {counted(len(jobs), 'job')}, "
            f"{len(jobs) - len(todo):,} done already; run folder {run}"
        )
        if training := len(to_train(resolved, todo, run)):
            console.print(f"{training} of them train their agent in the environment first")
        if dry_run:
            for one in settings:
                names = dict.fromkeys(c.agent for c in jobs if c.setting == one and c.is_agents)
                console.print(f"  {escape(one.label)}: {', '.join(names)}")
            return
        if not report_only:
            _compute(resolved, todo, run, workers)
        assemble_run(resolved, settings, jobs, run)
        from experiments.report.html import write_report

        with console.status("writing the report"):
            report = write_report(run, workers=workers)
    _print_summary(run)
    console.print(f"Report: [bold]{report}[/bold]")


def _compute(resolved: CompareConfig, todo: list[Job], run: Path, workers: int) -> None:
    """Run the jobs with a progress bar."""
    from omegaconf import OmegaConf

    from experiments.compare.jobs import run_jobs
    from experiments.compare.store import CONFIG

    run.mkdir(parents=True, exist_ok=True)
    with replacing(run / CONFIG) as path:
        OmegaConf.save(OmegaConf.structured(resolved), path)
    _follow(run_jobs(resolved, todo, run, workers), len(todo), lambda job: f"{job.setting.label} {job.agent}")


def _follow(done: Iterator[_Item], total: int, describe: Callable[[_Item], str]) -> None:
    """Show a progress bar while items are done."""
    # Closed at once after an exception: what still works for it ends then.
    with progress_bar() as progress, contextlib.closing(done):  # type: ignore[type-var]
        task = progress.add_task("starting", total=total)
        for item in done:
            progress.update(task, advance=1, description=escape(describe(item)))


def _kept(mark: Path, go_on: str) -> str:
    """What to say of an interrupted run."""
    return f"What was done is kept; go on with:  {go_on}" if mark.exists() else "Nothing was begun."


def _resolve(
    config: Path | None,
    overrides: list[str],
    families: list[str] | None,
    budgets: list[str] | None,
    names: list[str] | None,
    table: Path | None,
    menus: list[str] | None,
    group_by: str | None,
    predictors: list[str] | None,
    num_tasks: int | None,
    exam_seed: int | None,
) -> CompareConfig:
    """The configuration that the options describe; options narrow or replace what the file says."""
    base = CompareConfig()
    if menus and table is None:
        raise ConfigError("--menu belongs to a table: give --table FILE too")
    if group_by and table is None:
        raise ConfigError("--group-by belongs to a table: give --table FILE too")
    if predictors and table is None:
        raise ConfigError("--predictor belongs to a table: give --table FILE too")
    if table is not None:
        if families and families != ["paper"]:
            raise ConfigError(
                "--family and --table exclude each other (but for --family paper: the paper's exams of the table)"
            )
        base.families = _table_menus(table, menus, num_tasks)
        for one in base.families:
            one.group_by = group_by
            one.family = "paper" if families else one.family
        predictors = [] if predictors == ["none"] else predictors
        base.predictors = _default_predictors(table) if predictors is None else predictors
        base.families += [
            dataclasses.replace(one, predictor=name) for name in predictors or () for one in base.families
        ]
        families = None
        path = config
    else:
        path = config or DEFAULT_CONFIG
    resolved = load_config(path, overrides, base)
    if families:
        known = {name: [one for one in resolved.families if one.family == name] for name in map(check_family, families)}
        resolved.families = [one for name, found in known.items() for one in found or [FamilyConfig(family=name)]]
    if budgets:
        resolved.budgets = list(dict.fromkeys(map(read_budget, budgets)))
        resolved.families = at_budgets(resolved.families, resolved.budgets)
    if names:
        resolved.agents = names
        for chosen in resolved.families:
            chosen.agents = []
    for chosen in resolved.families if num_tasks is not None else ():
        chosen.num_tasks = num_tasks
    if exam_seed is not None:
        resolved.exam_seed = exam_seed
    # The run folder keeps this, and may be gone on with from elsewhere.
    for chosen in resolved.families:
        chosen.table = absolute(chosen.table)
        chosen.predictor = chosen.predictor and absolute_predictor(chosen.predictor)
    resolved.predictors = [absolute_predictor(one) for one in resolved.predictors]
    resolved.tuned = absolute(resolved.tuned)
    resolved.trained = [str(Path(folder).absolute()) for folder in resolved.trained]
    if absent := [folder for folder in resolved.trained if not Path(folder).is_dir()]:
        raise ConfigError(f"trained: there is no folder {absent[0]}: its agents would be trained again")
    return resolved


def _default_predictors(table: Path) -> list[str]:
    """What a text predictor recovers is said without being asked, where the table has texts."""
    from agents.predictors.predictor import PredictorError, check_sklearn
    from roi_env.sources.outcome_tables import OutcomeTable
    from roi_env.sources.texts import normalised

    if not any(map(normalised, OutcomeTable.read(table).codes("question")[1])):
        return []
    try:
        check_sklearn()
    except PredictorError as error:
        console.print(f"What texts tell is not measured: {error}", highlight=False, markup=False)
        return []
    return ["text"]


def _only(config: CompareConfig, patterns: list[str]) -> list[FamilyConfig]:
    """The families of a configuration cut down to the settings whose labels match."""
    from experiments.compare.plan import expand

    settings = expand(config)
    labels = [setting.label for setting in settings]
    if unknown := [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(label, pattern) for label in labels)]:
        raise ConfigError(f"no setting matches {unknown}; there are {labels}")
    return [
        dataclasses.replace(setting.family, budgets=[setting.budget], orders=[setting.order])
        for setting in settings
        if any(fnmatch.fnmatchcase(setting.label, pattern) for pattern in patterns)
    ]


def _table_menus(path: Path, menus: list[str] | None, tasks: int | None) -> list[FamilyConfig]:
    """The exams of every menu; without a choice of the three with most tiers, then most rows, of which exams can be made."""
    from experiments.commands.endpoints import report
    from experiments.commands.table import NONE_RIGHT, obstacle
    from roi_env.sources.outcome_tables import OutcomeTable

    read = OutcomeTable.read(path)
    tiers = {name: len(read.tier_names(name)) for name in read.menus}
    menu_of_row, names = read.codes("menu")
    rows = dict(zip(names, np.bincount(menu_of_row), strict=True))
    ranked = sorted(tiers, key=lambda name: (-tiers[name], -rows[name], name))
    useful = [name for name in ranked if tiers[name] > 1]
    if menus is None:
        able = useful if len(useful) == 1 else (name for name in useful if not obstacle(read, name, tasks))
        menus = list(islice(able, 3)) or ranked[:1]
        if left := [name for name in useful if name not in menus]:
            console.print(f"Comparing on {', '.join(menus)}; also in the table (--menu): {', '.join(left)}")
    if unknown := [name for name in menus if name not in tiers]:
        raise ConfigError(f"{path}: no menu {unknown}; it has {', '.join(ranked)}")
    for name in menus:
        if not read.select(name).numbers("correct").any():
            report(f"{path}: menu {name!r}: {NONE_RIGHT}")
    return [FamilyConfig(family="recorded", table=str(path), menu=name) for name in menus]


def _print_summary(run: Path) -> None:
    """The best agents of every setting, as the report ranks them."""
    import pyarrow.parquet as pq

    from experiments.report.analysis import interval_text

    rows = pq.read_table(run / "summary.parquet").to_pylist()
    recorded = any(row["of_reachable"] is not None for row in rows)
    shown = Table(title="share of the optimum, 95 % intervals (best five agents a setting)")
    columns = ["setting", "agent", "score", *(["of the train laws' optimum"] if recorded else []), "of the optimum"]
    for column in (*columns, "evaluation"):
        justify = "left" if column in ("setting", "agent", "evaluation") else "right"
        shown.add_column(column, justify=justify)
    by_setting: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["agent"] != "optimum":
            by_setting.setdefault(row["setting"], []).append(row)
    for group in by_setting.values():
        for row in sorted(group, key=lambda row: -row["score"])[:5]:
            shares = [interval_text(row, "of_reachable")] if recorded else []
            shares.append(interval_text(row, "normalised"))
            if row["worst_seed"] is not None:
                shares[-1] += f"; worst of {row['seeds']} seeds {row['worst_seed']:.3f}"
            texts = (escape(row["agent"]), f"{row['score']:.2f}", *map(escape, shares), row["evaluation"])
            shown.add_row(escape(row["label"]), *texts)
        shown.add_section()
    console.print(shown)
    document = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    for setting in document["settings"]:
        if setting["optimism"] is not None and setting["optimum"]["value"]:
            part = 100 * setting["optimism"] / setting["optimum"]["value"]
            console.print(
                f"{escape(setting['label'])}: the optimum is planned on the questions that are scored, by an estimated "
                f"{part:.1f} % too high; the train laws' optimum (agent bellman) is what a user can reach.",
                highlight=False,
            )
    if any(setting["predictions"] for setting in document["settings"]):
        from experiments.predicting import print_predictions

        print_predictions(document["settings"])
    for label, reason in dict.fromkeys((row["label"], row["no_interval"]) for row in rows if row["no_interval"]):
        console.print(f"[yellow]No intervals for {escape(label)}[/]: {escape(reason)}.", highlight=False)


@app.command(
    **helped(
        COMPARE,
        "roi play --family heavy --budget 0.15",
        "roi play --agent lp-lookahead --family tinylm --exam 3",
    )
)
@exam_options
def play(
    exam: ChosenExam,
    agent: Annotated[
        str, typer.Option(help="Who takes the exam: of `roi agents`, FILE.py:CLASS, or `me`", callback=own_agents)
    ] = "me",
    imports: Imports = None,
    exam_seed: Annotated[int, typer.Option(help="Seed of the exams", min=0, max=LARGEST_SEED)] = 0,
    exam_id: Annotated[int, typer.Option("--exam", help="Which exam of the seed", min=0, max=LARGEST_NUMBER)] = 0,
) -> None:
    """Take one exam in the terminal: watch an agent, or choose yourself."""
    from experiments.commands.play import play_exam

    play_exam(console, exam, agent, exam_seed, exam_id)


@app.command(
    **helped(
        TRAIN,
        "roi train ppo --family heavy --budget 0.15 --out runs/mine   then   roi compare --agent runs/mine/agent.npz",
        "roi train grpo --family heavy --param advantage=rtg --runners 2",
        "roi train grpo --policy llm --model tinylm-mcft",
        "roi train --resume runs/mine",
    )
)
@exam_options
def train(
    context: typer.Context,
    exam: ChosenExam,
    agent: Annotated[
        str | None,
        typer.Argument(help="ppo and grpo (RLlib), or any agent that learns in the environment: sb3-ppo, ..."),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Of ppo and grpo: mlp (reads numbers) or llm (reads the questions)")
    ] = "mlp",
    mode: Annotated[
        str,
        typer.Option(
            help="With --policy llm: decisions (a level before every task), or single-pass (GRPO over the tokens of exams "
            "written in one pass)"
        ),
    ] = "decisions",
    model: Annotated[
        str | None, typer.Option(help="With --policy llm: model to begin with, a folder, a bundled name or a hub id")
    ] = None,
    reward: Annotated[
        str,
        typer.Option(help="Of training: score, rational, refusal_bonus(0.1), overspend_penalty(1), cost_shaped(0.5)"),
    ] = "score",
    steps: Annotated[int | None, typer.Option(help="Environment steps; default: the agent's own", min=1)] = None,
    param: Annotated[
        list[str] | None, typer.Option(help="Hyper-parameter of the agent, name=value; repeatable")
    ] = None,
    training_seed: Annotated[
        int, typer.Option(help="Training seed: exams, initial weights, exploration", min=0, max=LARGEST_SEED)
    ] = 0,
    runners: Annotated[
        int, typer.Option(help="Remote env runners (RLlib); the result does not depend on it", min=0)
    ] = 0,
    learners: Annotated[int, typer.Option(help="Remote learners (RLlib); 0: in this process", min=0)] = 0,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join, e.g. auto; default: this machine")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/train-<time>")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder's own configuration")] = None,
) -> None:
    """Train an agent in the environment; it is measured against the exact optimum on validation exams on the way."""
    from experiments.commands.train import ALIASES, TrainConfig, read_config

    if resume is not None:
        refuse_choices(context, "runners", "learners", "address")
        config, run = read_config(resume), resume
    else:
        if agent is None:
            raise ConfigError("name an agent, e.g. `roi train ppo --family heavy`, or --resume RUN")
        given = read_parameters(param or [], {"steps": steps, "model": model})
        if policy not in ("mlp", "llm"):
            raise ConfigError(f"--policy must be mlp or llm, got {policy!r}")
        if policy == "llm" and agent not in ALIASES:
            raise ConfigError(f"--policy llm belongs to {' and '.join(ALIASES)}, got {agent!r}")
        if mode not in ("decisions", "single-pass"):
            raise ConfigError(f"--mode must be decisions or single-pass, got {mode!r}")
        if mode == "single-pass" and (policy, agent) != ("llm", "grpo"):
            raise ConfigError("--mode single-pass belongs to grpo with --policy llm")
        if model is not None and policy != "llm":
            raise ConfigError("--model belongs to --policy llm")
        family = exam.family
        if policy == "llm" and not exam.said:
            family = dataclasses.replace(family, family="tinylm")
        config = TrainConfig(
            agent=agent if policy != "llm" else "rarl" if mode == "single-pass" else f"llm-{agent}",
            params=given,
            family=family,
            budget=exam.budget,
            order=exam.order,
            reward=reward,
            training_seed=training_seed,
        )
        run = out or Path("runs") / f"train-{datetime.now():%Y%m%d-%H%M%S}"
    _train(config, run, {"runners": runners, "learners": learners, "address": address})


def _train(config: TrainConfig, run: Path, resources: dict[str, Any]) -> None:
    """Train in a run folder, show how far it is, and say what came of it."""
    from experiments.commands.train import CONFIG, check_run, make_learner, train_run

    with interruptible(lambda: _kept(run / CONFIG, f"roi train --resume {run}")):
        check_run(config, run)
        learner = make_learner(config)
        if not learner.distributed:
            if any(resources.values()):
                raise ConfigError(
                    f"agent {config.agent!r} trains in this process: --runners, --learners, --address are RLlib's"
                )
            resources = {}
        console.print(f"{config.agent} on {config.setting.label}, seed {config.training_seed}; run folder {run}")
        with progress_bar() as bar:
            task = bar.add_task("starting", total=None)

            def watch(progress: Any, curve: Any) -> None:
                shown = f"score {progress.score:.2f}"
                if curve:
                    shown += f", validation {curve[-1].normalised:.3f} of the optimum"
                bar.update(task, completed=progress.steps, total=progress.total_steps, description=shown)

            _, curve = train_run(config, run, watch, **resources)
    last = curve[-1]
    console.print(
        f"{last.normalised:.4f} of the optimum on validation exams after {last.steps:,} steps, {last.updates:,} updates, "
        f"{last.cpu_seconds:.0f} CPU s\nAgent: [bold]{run / 'agent.npz'}[/bold]"
    )


@app.command(
    **helped(
        TRAIN,
        "roi rollouts lp-lookahead --family heavy --exams 1000000 --out runs/heavy",
        "roi rollouts runs/mine/agent.npz --address auto --exams 10000000 --out runs/big   (again: goes on where it stopped)",
    )
)
@exam_options
def rollouts(
    exam: ChosenExam,
    agent: Annotated[
        str, typer.Argument(help="An agent of `roi agents`, FILE.py:CLASS, or a saved one (.npz)", callback=own_agents)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of Parquet parts; where it has some, only missing ones are computed")
    ],
    imports: Imports = None,
    exams: Annotated[int, typer.Option(help="Number of exams", min=1)] = 100_000,
    replicates: Annotated[int, typer.Option(help="Outcome draws of every exam", min=1)] = 1,
    first_exam: Annotated[
        int,
        typer.Option(
            help="Id of the first exam: several commands can share the work, each with a folder",
            min=0,
            max=LARGEST_NUMBER,
        ),
    ] = 0,
    exam_seed: Annotated[int, typer.Option(help="Seed of the exams", min=0, max=LARGEST_SEED)] = 0,
    training_seed: Annotated[int, typer.Option(help="Training seed of agents that learn", min=0, max=LARGEST_SEED)] = 0,
    decisions: Annotated[bool, typer.Option("--decisions", help="One row a decision instead of one an exam")] = False,
    workers: Annotated[int, typer.Option(help="Processes on this machine; 1: this one, without Ray", min=1)] = 2,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use instead, e.g. auto")] = None,
) -> None:
    """Let one agent take any number of exams, on this machine or a Ray cluster; the output does not depend on which."""
    from experiments.commands.rollouts import (
        MANIFEST,
        RolloutConfig,
        open_run,
        prepare,
        run_here,
        run_on_ray,
        summarise_run,
    )
    from experiments.compare.plan import setting_spec

    config = RolloutConfig(
        agent=agent,
        family=exam.family,
        budget=exam.budget,
        order=exam.order,
        exams=exams,
        replicates=replicates,
        exam_seed=exam_seed,
        training_seed=training_seed,
        first_exam=first_exam,
        rows="decisions" if decisions else "exams",
    )
    with interruptible(lambda: _kept(out / MANIFEST, "the same command")):
        parts = open_run(config, out)
        console.print(
            f"{exams:,} exams x {replicates}: {config.parts} parts, {config.parts - len(parts)} done already; folder {out}"
        )
        if parts:
            player = prepare(config)
            if workers == 1 and address is None:
                done = run_here(config, player, parts, out)
            else:
                done = run_on_ray(config, player, parts, out, workers=workers, address=address)
            _follow(done, len(parts), lambda part: f"part {part}")
    if not decisions:
        found, unit = summarise_run(config, out), setting_spec(config.setting).source.unit
        console.print(
            f"score {found.score:.4f} +- {found.score_error:.4f} (standard error over {found.exams:,} exams), "
            f"{COST_NAMES[unit]} {f'{found.tokens:.1f}' if unit == 'tokens' else cost_text(found.tokens, unit)}, "
            f"overspent {100 * found.truncated:.1f} %"
        )


@app.command(
    **helped(
        TRAIN,
        "roi tune --agent sb3-ppo --agent rllib-grpo --trials 8 --out tuned.json",
        "roi compare --agent sb3-ppo --agent rllib-grpo tuned=tuned.json steps=300000",
    )
)
def tune(
    agent: Annotated[list[str], typer.Option(help="Agents that learn in the environment; repeatable")],
    out: Annotated[Path, typer.Option(help="File to write (JSON); other agents already in it stay in it")],
    trials: Annotated[int, typer.Option(help="Trials of every agent; the first is its defaults", min=1)] = 8,
    steps: Annotated[int, typer.Option(help="Environment steps of every trial", min=1)] = 100_000,
    setting: Annotated[
        list[str] | None, typer.Option(help="Tuning settings, family:budget; repeatable; default signal:0.3 heavy:0.15")
    ] = None,
    run: Annotated[Path, typer.Option(help="Folder of finished trials: an interrupted search goes on there")] = Path(
        "runs/tune"
    ),
    workers: Annotated[int, typer.Option(help="Processes; results do not depend on it", min=1)] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, run nothing")] = False,
) -> None:
    """Tune agents that learn in the environment: random search, the same number of trials for all, on exams never reported."""
    from experiments.training.tuning import check_tuning, run_tasks, search_tasks, write_tuning

    settings = []
    for text in setting or ["signal:0.3", "heavy:0.15"]:
        family, _, budget = text.partition(":")
        if not budget:
            raise ConfigError(f"setting {text!r} must read family:budget, e.g. signal:0.3")
        check_family(family)
        memory: dict[str, Any] = {"feedback": "cost+correct"} if family == "latent" else {}
        settings.append({"family": family, "budget": read_budget(budget)} | memory)
    tasks = search_tasks(agent, settings, trials, steps)
    check_folder(run, None)
    check_file("--out", out)
    check_tuning(tasks, run, out)
    console.print(
        f"{len(agent)} agents x {trials} trials x {len(settings)} settings x {steps:,} steps: {len(tasks)} runs; "
        f"folder {run}"
    )
    if dry_run:
        for task in tasks:
            console.print(f"  {task.file}: {task.params}", highlight=False)
        return
    with interruptible(lambda: _kept(run, "the same command")):
        _follow(run_tasks(tasks, run, workers), len(tasks), lambda task: f"{task.agent} trial {task.trial}")
        chosen = write_tuning(tasks, run, out)
    for name, entry in chosen.items():
        console.print(f"{name}: {entry['score']:.4f} of the optimum with {entry['params'] or 'its defaults'}")
    console.print(f"Written: [bold]{out}[/bold]")


@app.command(
    **helped(
        COMPARE,
        "roi publish runs/rl results/rl",
        "roi publish results/rl   (its tables anew)",
    )
)
def publish(
    run: Annotated[Path, typer.Argument(help="Run folder of `roi compare`, or a folder that was published already")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder to write to; left out: write the tables of a published folder anew")
    ] = None,
) -> None:
    """Write a run's numbers (Parquet, JSON) and main pictures (PNG) as small files, for a repository or a paper."""
    from experiments.report.publish import publish as write
    from experiments.report.publish import rewrite_tables

    if out is not None:
        check_folder(out, None)
    for path in rewrite_tables(run) if out is None else write(run, out):
        console.print(f"{path}  {path.stat().st_size / 1024:,.0f} kB", highlight=False)


app.command(
    **helped(
        LIVE,
        "roi answer questions.jsonl --endpoint http://127.0.0.1:8000/v1 --model tiny --budget 20000 --out runs/answers",
        "roi answer gsm8k --endpoint URL --model NAME --budget 50000 --tier short=256 --tier long=1024 --out runs/gsm8k",
    )
)(answer.answer)
app.command(
    **helped(
        LIVE,
        "roi serve --upstream http://127.0.0.1:8000/v1 --model tiny --budget team=20000 --port 8100",
        "roi serve --upstream URL --budget a=50000 --budget b=20000 --key a=KEY_A --key b=KEY_B --tier short=256 --tier long=1024",
    )
)(serve.serve)
app.command(
    **helped(
        LIVE,
        "roi probe http://127.0.0.1:8000/v1 --backend vllm",
        "roi probe URL --model NAME --backend openai --key-env OPENAI_API_KEY",
    )
)(probe.probe)


app.add_typer(budgets.app, name="budgets", rich_help_panel=LIVE)


@app.command(
    "publish-table",
    **helped(
        DATA,
        "roi publish-table mine.parquet published --name me/mine --licence cc-by-4.0",
        "roi compare --table published",
    ),
)
def publish_table(
    table: Annotated[Path, typer.Argument(help="Outcome table: Parquet, CSV or JSONL")],
    folder: Annotated[Path, typer.Argument(help="Folder to write: a data set in the layout of the Hugging Face hub")],
    name: Annotated[str, typer.Option(help="Of the data set: owner/name")],
    licence: Annotated[str, typer.Option(help="Of the data, as the hub spells it: apache-2.0, mit, cc-by-4.0, other")],
) -> None:
    """Write a table as a data set: Parquet shards, a README with licence, schema and the line that loads it."""
    from roi_env.sources.outcome_tables import OutcomeTable
    from roi_env.sources.published import publish_table as write

    for path in write(OutcomeTable.read(table), folder, name=name, licence=licence):
        console.print(f"{path}  {path.stat().st_size / 1024:,.0f} kB", highlight=False)
    console.print(f"Read it: roi compare --table {folder}", highlight=False)


@app.command(
    "table",
    **helped(
        DATA,
        "roi table outcomes.parquet",
        "roi table outcomes.parquet --picture curves.png",
    ),
)
def describe(
    file: Annotated[Path, typer.Argument(help="Outcome table: Parquet, CSV or JSONL")],
    menu: Annotated[str | None, typer.Option(help="This menu alone")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write right answers against cost, by data set, as a picture (.png, .svg)")
    ] = None,
) -> None:
    """Describe a table of recorded outcomes: menus, tiers, tokens, accuracy, questions, problems found."""
    from experiments.commands.table import describe_table

    describe_table(file, console, menu, picture)


@app.command(
    "agents",
    **helped(
        COMPARE,
        "roi agents",
        "roi compare --agent 'roi(threshold=0.01)' --agent 'fixed-{tier}'",
    ),
)
def list_agents() -> None:
    """List the agents that `roi compare` and `roi play` know by name."""
    shown = Table(title="agents")
    shown.add_column("name", no_wrap=True)
    shown.add_column("what it does")
    for name, entry in AGENTS.items():
        shown.add_row(name, escape(entry.summary))
        if name == "fixed-3":
            shown.add_row("fixed-4 ..", "the fourth tier, and so on to fixed-K")
    console.print(shown)
    console.print("Parameters go in parentheses:  roi compare --agent 'roi(threshold=0.01)'")
    console.print("In a comparison {tier} stands for every tier of a setting:  roi compare --agent 'fixed-{tier}'")


app.command("import", **helped(DATA, *import_log.EXAMPLES))(import_log.import_log)
app.command(
    **helped(
        DATA,
        "roi record tinylm --out mine.parquet",
        "roi record NAME --endpoint URL --backend vllm --questions gsm8k --samples 8 --out mine.parquet",
    )
)(record.record)
app.command(
    **helped(
        DATA,
        "roi regrade mine.journal.jsonl --grader math --out regraded.parquet",
        "roi regrade mine.journal.jsonl --grader mygrader:judge --out regraded.parquet",
    )
)(record.regrade)
app.add_typer(predict.app, name="predict", rich_help_panel=DATA)
app.command(
    **helped(
        MODELS,
        "roi mcft tinylm --out runs/mcft   (again: goes on where it stopped)",
        "roi mcft Qwen/Qwen2.5-1.5B-Instruct --table mine.parquet --tier 256 --tier 512 --tier 1024 --out runs/qwen",
    )
)(mcft.mcft)
app.add_typer(llm.app, name="llm", rich_help_panel=MODELS)


def _warn_in_a_line() -> None:
    """What our own code warns of is a line on stderr, once; other warnings keep their place and form."""
    others, said = warnings.showwarning, set[str]()
    ours = tuple(str(Path(__file__).parents[1] / name) + os.sep for name in ("agents", "experiments", "roi_env"))

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if not issubclass(category, UserWarning) or not filename.startswith(ours):
            others(message, category, filename, *rest)
        elif (text := str(message)) not in said:
            said.add(text)
            Console(stderr=True, emoji=False).print(f"roi: {escape(text)}", highlight=False, soft_wrap=True)

    warnings.showwarning = show  # type: ignore[assignment]


def main() -> None:
    """Entry point: expected errors are one line on stderr and exit code 2, others keep their trace; Ctrl-C and SIGTERM: 130."""
    end_like_an_interrupt()
    _warn_in_a_line()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # signs that a terminal's encoding has not
    try:
        app()
    except SystemError as error:
        if not interrupted(error):
            raise
        sys.exit(STOPPED)
    except (ValueError, OSError, WorkerLost) as error:
        from experiments.report.analysis import RunError
        from roi_env.sources.outcome_tables import OutcomeTableError

        text = str(error)
        if (
            isinstance(error, OSError) and error.filename is not None
        ):  # no place to write: a full disk, a read-only folder
            text = f"{error.filename}: {error.strerror}"
        elif not isinstance(error, (ConfigError, RunError, OutcomeTableError, AgentError, WorkerLost)):
            raise
        Console(stderr=True, emoji=False).print(f"roi: {escape(text)}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
