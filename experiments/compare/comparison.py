"""Run a comparison: every agent takes the same exams; results are Parquet files that the report reads.

A *setting* is a kind of exam (family x budget x order). A *job* is one agent with one training seed in one setting, or a
setting's reference values. Jobs are independent: they run in any order and in any number of processes with the same
result, each is stored by one atomic rename, and a resumed run computes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import roi_env
from agents.base import (
    Agent,
    RegisteredAgent,
    agent_text,
    find_agent,
    is_saved,
    make_agent,
    parse_agent,
    public_problem,
)
from agents.playing import TrainingExams, evaluate, rollout
from experiments.config import PLANNERS, CompareConfig, ConfigError, FamilyConfig, as_dict
from experiments.training.training_run import (
    Curve,
    curve_table,
    load_trained,
    save_trained,
    train_stepwise,
    validation_exams,
)
from experiments.training.tuning import Tuning, read_tuning
from experiments.training.workers import worker_pool
from roi_env.exact.evaluation import BINS, CALIBRATION
from roi_env.exams.config import EXAM_FORMAT, ExamConfig, ExamSpec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.files import replacing
from roi_env.measures.references import references
from roi_env.sources.outcome_tables import OutcomeTable

CONFIG = "compare.yaml"
"""A run folder's configuration."""
OPTIMUM = "optimum"
_REFERENCES = "references"
SEED = "{seed}"
"""In an agent's text: stands for each of the training seeds, e.g. of models that were trained beforehand."""
TIER = "{tier}"
"""In an agent's text: stands for the number of every tier of the setting, 1 (cheapest) to K."""


@dataclass(frozen=True)
class Setting:
    """One kind of exam of a comparison."""

    number: int
    name: str
    family: FamilyConfig
    budget: int | float | str
    order: str

    @property
    def exam(self) -> ExamConfig:
        """The kind of exam as people describe it."""
        return self.family.exam(self.budget, self.order)

    @property
    def label(self) -> str:
        """Short description for tables."""
        budget = f"t={self.budget:g}" if isinstance(self.budget, float) else f"B={self.budget}"
        return f"{self.name} {budget}" + ("" if self.order == "random" else f" {self.order}")


@dataclass(frozen=True)
class Job:
    """One agent (or the references) with one training seed in one setting.

    :param agent: its name in tables.
    :param text: what :func:`agents.base.make_agent` is given: the name with tuned parameters and matched steps.
    """

    setting: Setting
    agent: str
    text: str
    seed: int


def expand(config: CompareConfig) -> list[Setting]:
    """The settings of a comparison, in the order of the configuration.

    :raises ConfigError: where it has none, or two of one name.
    """
    if not config.families:
        raise ConfigError("families must not be empty: name at least one, e.g. families=[{family: signal}]")
    settings: list[Setting] = []
    for family in config.families:
        for order in family.orders or config.orders:
            for budget in family.budgets or config.budgets:
                settings.append(Setting(len(settings), family.label, family, budget, order))
    labels = [setting.label for setting in settings]
    if duplicates := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(f"settings must differ, but {sorted(duplicates)} occur twice: give the families names")
    return settings


def setting_spec(setting: Setting, split: str = "test") -> ExamSpec:
    """The exams of a setting; ``split`` matters for recorded tables only.

    :raises ConfigError: for arguments that do not fit.
    """
    exam = setting.exam
    try:
        return exam.resolve() if setting.family.outcomes is None else _recorded_spec(exam.replace(split=split))
    except ValueError as error:
        raise ConfigError(f"{setting.label}: {error}") from error


@lru_cache(maxsize=8)
def _recorded_spec(exam: ExamConfig) -> ExamSpec:
    """Cached: every job of a setting needs it, and building it reads the whole table."""
    return exam.resolve()


def training_spec(setting: Setting, spec: ExamSpec) -> ExamSpec:
    """Kind of the training exams: the same family for synthetic sources, the train split for recorded ones.

    :raises ConfigError: where the train split lacks a group of the evaluated one.
    """
    if setting.family.outcomes is None:
        return spec
    train = setting_spec(setting, "train")
    if train.source.group_names != spec.source.group_names:
        raise ConfigError(
            f"{setting.label}: the train split has groups {list(train.source.group_names)}, the test split "
            f"{list(spec.source.group_names)}; group by a coarser column (group_by)"
        )
    return train.replace(budget=spec.budget, num_tasks=min(spec.num_tasks, len(train.source.row_item)))


def validation_spec(setting: Setting, spec: ExamSpec) -> ExamSpec:
    """Kind of the validation exams: the same family for synthetic sources, the validation split for recorded ones."""
    if setting.family.outcomes is None:
        return spec
    found = setting_spec(setting, "validation")
    return found.replace(budget=spec.budget, num_tasks=min(spec.num_tasks, len(found.source.row_item)))


def _entry(text: str) -> RegisteredAgent:
    """The registered agent of an agent's text."""
    entry = find_agent(parse_agent(text)[0])
    assert entry is not None, "parse_agent knows it"
    return entry


def make_for(name: str, setting: Setting, spec: ExamSpec) -> Agent:
    """Make an agent; the optimum alone is told the evaluated source's own laws."""
    try:
        privileged = not is_saved(name) and _entry(name).privileged
        return make_agent(name, public_problem(spec), **({"laws": spec.source.published} if privileged else {}))
    except ValueError as error:
        raise ConfigError(f"{setting.label}: {error}") from error


def build_agent(text: str, setting: Setting, spec: ExamSpec, seed: int) -> Agent:
    """Make an agent for a setting and train it if it learns."""
    agent = make_for(text, setting, spec)
    if learns(text, agent):
        agent.train(TrainingExams(training_spec(setting, spec), seed), seed)
    return agent


def learns(text: str, agent: Agent) -> bool:
    """Whether training would change the agent; one that was loaded from a file is not trained again."""
    return not is_saved(text) and type(agent).train is not Agent.train


def plan(config: CompareConfig, settings: list[Setting]) -> list[Job]:
    """All jobs of a comparison.

    :raises ConfigError: for an unknown agent, or one that a setting cannot have.
    """
    tuning = read_tuning(Path(config.tuned)) if config.tuned else None
    jobs = []
    for setting in settings:
        jobs.append(Job(setting, _REFERENCES, _REFERENCES, 0))
        spec = setting_spec(setting)
        names = [
            name.replace(TIER, str(tier))
            for name in (*config.agents, *setting.family.agents, OPTIMUM)
            for tier in range(1, spec.num_tiers + 1 if TIER in name else 2)
            # Nobody asked for the optimum twice: where the published laws are the true ones, it is Bellman's policy.
            if not (name == "bellman" and config.agents == PLANNERS and _published_is_true(spec))
        ]
        for name in dict.fromkeys(names):
            text = _matched(name, config.steps, tuning)
            agent = make_for(text.replace(SEED, str(config.training_seeds[0])), setting, spec)
            several = learns(text, agent) or SEED in text
            seeds = config.training_seeds if several else [0]
            jobs += [Job(setting, name, text.replace(SEED, str(seed)), seed) for seed in seeds]
    return jobs


def _published_is_true(spec: ExamSpec) -> bool:
    return spec.beliefs == "published" and spec.source.synthetic and spec.source.num_latent == 1


def _matched(name: str, steps: int | None, tuning: Tuning | None) -> str:
    """The agent's text with tuned parameters and matched steps, where it learns in the environment.

    :raises ConfigError: where tuned parameters are asked for and the agent has none.
    """
    if is_saved(name):
        return name
    try:
        registered, inline = parse_agent(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not _entry(registered).stepwise:
        return name
    params: dict[str, Any] = {}
    if tuning is not None:
        if registered not in tuning.params:
            raise ConfigError(
                f"agent {name!r} was not tuned in {tuning.path} (it has {sorted(tuning.params)}): a comparison with "
                "unequal tuning is not run; tune it with `roi tune` or leave `tuned` out"
            )
        params |= tuning.params[registered]
    if steps is not None:
        params["steps"] = steps
    return agent_text(registered, params | inline)


def _key(config: CompareConfig, job: Job) -> str:
    """Name of a job's file: a hash of everything its numbers depend on."""
    identity = [
        roi_env.__version__,
        _exam_identity(job.setting),
        job.text,
        _agent_content(job.text),
        job.seed,
        config.exams,
        config.exam_seed,
        config.replicates,
        config.max_states,
    ]
    return f"{_digest(identity)[:24]}.npz"


def _agent_content(text: str) -> str | None:
    """Hash of the file or model that an agent's text names; None where it names none."""
    if is_saved(text):
        return _content(text)
    if text == _REFERENCES:
        return None
    if (model := (_entry(text).params | parse_agent(text)[1]).get("model")) is None:
        return None
    from agents.llm.decisions.policy import model_source

    weights = sorted(Path(model_source(model)).glob("*.safetensors"))
    return hashlib.sha256("".join(map(_content, map(str, weights))).encode()).hexdigest()


def _exam_identity(setting: Setting) -> dict[str, Any]:
    """Everything that the exams of a setting depend on, as JSON values; what is at its default goes without saying."""
    exam: dict[str, Any] = {"format": EXAM_FORMAT, **setting.exam.differing()}
    exam["budget"] = setting.budget
    if setting.family.outcomes is not None:
        exam["table"] = _content(setting.family.outcomes)
        if texts := _same_text(setting.family.outcomes):
            # Splits follow it; where no text is repeated they follow the file alone.
            exam["same_text"] = texts
    return exam


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=64)
def _content(file: str) -> str:
    """Hash of a file's bytes: it may move, its content is what counts."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@lru_cache(maxsize=64)
def _same_text(file: str) -> str | None:
    """Hash of which questions of a table are the same; None where all are different."""
    same = sorted(OutcomeTable.read(file).same_text.items())
    return hashlib.sha256(json.dumps(same).encode()).hexdigest() if same else None


_Tables = dict[str, dict[str, Any]]
"""Columns by table; every job contributes rows to several."""


def _trained(config: CompareConfig, job: Job, spec: ExamSpec, store: Path) -> tuple[Agent, Curve]:
    """The job's agent, trained: from one of the stores of trained agents where it is there, else by training it now."""
    agent = make_for(job.text, job.setting, spec)
    if not agent.stepwise or is_saved(job.text):
        return build_agent(job.text, job.setting, spec, job.seed), []
    if (path := _stored(config, job, agent, store)) is not None:
        return load_trained(path, agent)
    practice = TrainingExams(training_spec(job.setting, spec), job.seed)
    validation = validation_exams(validation_spec(job.setting, spec), job.seed)
    curve = train_stepwise(agent, practice, job.seed, validation)
    save_trained(agent, curve, store / _training_file(job, agent))
    return agent, curve


def _stored(config: CompareConfig, job: Job, agent: Agent, store: Path) -> Path | None:
    """Where the trained agent of a job lies; None where it is in none of the stores."""
    places = (folder / _training_file(job, agent) for folder in (store, *map(Path, config.trained)))
    return next((path for path in places if path.exists()), None)


def to_train(config: CompareConfig, jobs: list[Job], run: Path) -> list[Job]:
    """Those of the jobs whose agent must first be trained in the environment: minutes instead of seconds each."""
    found = []
    for job in jobs:
        # By its class first: a comparison has hundreds of jobs and few agents that learn in the environment.
        if job.agent != _REFERENCES and not is_saved(job.text) and _entry(job.text).stepwise:
            agent = make_for(job.text, job.setting, setting_spec(job.setting))
            if _stored(config, job, agent, _store(run)) is None:
                found.append(job)
    return found


def _store(run: Path) -> Path:
    return run / "agents"


def training_identity(job: Job, agent: Agent) -> dict[str, Any]:
    """Everything that the training of a job's agent depends on, and nothing else, as JSON values."""
    return {
        "exam": _exam_identity(job.setting),
        "agent": agent.name,
        "params": agent.params(),
        "training_seed": job.seed,
    }


def _training_file(job: Job, agent: Agent) -> str:
    """Name of a trained agent's file: readable, and told apart by a hash of :func:`training_identity`."""
    label = f"{job.setting.label} {agent.name} seed{job.seed}".lower().replace("=", "")
    said = re.sub(r"[^a-z0-9.]+", "-", label).strip("-")
    return f"{said[:80]}-{_digest(training_identity(job, agent))[:8]}.npz"


def run_job(config: CompareConfig, job: Job, store: Path) -> _Tables:
    """Compute one job: columns for the tables of the run folder.

    :param store: folder where trained agents are kept and looked for first.
    """
    spec = setting_spec(job.setting)
    batch = draw_exams(spec, config.exam_seed, np.arange(config.exams))
    if job.agent == _REFERENCES:
        return _reference_tables(config, job.setting.number, batch)
    agent, curve = _trained(config, job, spec, store)
    result = evaluate(agent, batch, max_states=config.max_states, replicates=config.replicates, seed=config.exam_seed)
    exams, tasks = result.value.shape
    head = {"setting": job.setting.number, "agent": job.agent, "seed": job.seed}
    skipped = result.skipped.sum(1) / np.maximum(result.reached.sum(1), 1e-12)
    tables: _Tables = {
        "scores": head
        | {
            "exam": np.arange(exams),
            "evaluation": result.mode,
            "score": result.score,
            "tokens": result.tokens.sum(1),
            "truncated": result.overspent.sum(1),
            "skipped": skipped,
            "reached": result.reached.mean(1),
        },
        "positions": head
        | {
            "position": np.arange(tasks),
            "reached": result.reached.mean(0),
            "correct": result.correct.mean(0),
            "value": result.value.mean(0),
            "skip": result.skipped.mean(0),
        },
    }
    difficulty, remaining, action = (axis.ravel() for axis in np.indices(result.choices.shape))
    tables["choices"] = head | {
        "difficulty_bin": difficulty,
        "remaining_bin": remaining,
        "action": action,
        "mass": result.choices.ravel(),
        "difficulty_label": np.array([f"{10 * d}-{10 * d + 10} %" for d in range(BINS)])[difficulty],
    }
    sums = dict(zip(CALIBRATION, result.calibration[1:].T, strict=True))
    count = np.where(sums["decisions"] > 0, sums["decisions"], np.nan)
    tables["tier_calibration"] = head | {
        "action": np.arange(1, spec.num_tiers + 1),
        "expected_success": sums["believed_success"] / count,
        "actual_success": sums["correct"] / count,
        "expected_tokens": sums["believed_tokens"] / count,
        "actual_tokens": sums["tokens"] / count,
        "level_accuracy": sums["level_match"] / count,
        "mass": sums["decisions"],
    }
    if job.seed == 0:
        tables["trajectory"] = _trajectory(agent, batch, config.exam_seed, job)
    if curve:
        columns = curve_table(curve)
        tables["learning"] = head | {name: columns[name].to_numpy() for name in columns.column_names}
    return tables


def _trajectory(agent: Agent, batch: ExamBatch, seed: int, job: Job) -> dict[str, Any]:
    """The first exam as it went, outcome by outcome."""
    records = rollout(agent, batch.take(slice(0, 1)), replicates=1, seed=seed)
    reached = records.reached[0]
    return {
        "setting": job.setting.number,
        "agent": job.agent,
        "exam": 0,
        "position": np.flatnonzero(reached),
        "action": records.action[0, reached],
        "tokens": records.tokens[0, reached],
        "correct": records.correct[0, reached],
        "overspent": records.overspent[0, reached],
        "remaining_before": records.remaining[0, reached],
        "remaining_after": records.remaining[0, reached] - records.tokens[0, reached],
    }


def _reference_tables(config: CompareConfig, setting: int, batch: ExamBatch) -> _Tables:
    values = references(batch, replicates=config.replicates, max_states=config.max_states)
    exams, tasks = batch.rows.shape
    return {
        "references": {
            "setting": setting,
            "exam": np.arange(exams),
            "oracle": values.oracle,
            "informed": values.informed,
            "optimum": values.optimum,
            "optimum_upper": values.optimum_upper,
            "oracle_noise": values.oracle_noise,
            "informed_noise": values.informed_noise,
            "optimum_noise": values.optimum_noise,
            "reachable": values.reachable,
            "optimism": values.optimism,
        },
        "tasks": {
            "setting": setting,
            "exam": np.repeat(np.arange(exams), tasks),
            "position": np.tile(np.arange(tasks), exams),
            "question": batch.items.ravel(),
            "group": batch.groups.ravel(),
            "weight": batch.weights.ravel(),
        },
    }


def _settings_table(config: CompareConfig, settings: list[Setting]) -> pa.Table:
    rows = []
    for setting in settings:
        spec = setting_spec(setting)
        fraction = spec.budget / (spec.num_tasks * spec.source.mean_top_cost)
        rows.append(
            {
                "setting": setting.number,
                "family": setting.name,
                "label": setting.label,
                "num_tasks": spec.num_tasks,
                "budget": spec.budget,
                "unit": spec.source.unit,
                "budget_fraction": float(setting.budget) if isinstance(setting.budget, float) else fraction,
                "order": spec.order,
                "preview": spec.preview,
                "beliefs": spec.beliefs,
                "coupling": spec.source.coupling,
                "synthetic": spec.source.synthetic,
                "num_tiers": spec.num_tiers,
                "tier_names": [tier.name for tier in spec.source.tiers],
                "exams": config.exams,
            }
        )
    return pa.Table.from_pylist(rows)


def _arrow(columns: dict[str, Any]) -> pa.Table:
    """Columns of one job, scalars repeated to the length of its arrays."""
    length = max(len(value) for value in columns.values() if isinstance(value, np.ndarray))
    return pa.table(
        {
            name: pa.array(value) if isinstance(value, np.ndarray) else pa.repeat(pa.scalar(value), length)
            for name, value in columns.items()
        }
    )


def _write_job(path: Path, tables: _Tables) -> None:
    """Columns as arrays named ``table/column``; no pickle."""
    arrays = {
        f"{table}/{column}": np.asarray(values)
        for table, columns in tables.items()
        for column, values in columns.items()
    }
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def _read_job(path: Path) -> _Tables:
    """What :func:`_write_job` wrote; single values are Python's again.

    :raises ConfigError: where the file is damaged.
    """
    tables: _Tables = {}
    try:
        with np.load(path) as stored:
            for name in stored.files:
                table, _, column = name.partition("/")
                values = stored[name]
                tables.setdefault(table, {})[column] = values if values.ndim else values.item()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: a damaged job ({error}); delete it and run the comparison on") from error
    return tables


def _run_and_store(config: CompareConfig, job: Job, path: Path) -> None:
    tables = run_job(config, job, _store(path.parent.parent))
    with replacing(path) as temporary:
        _write_job(temporary, tables)


def missing_jobs(config: CompareConfig, jobs: list[Job], run: Path) -> list[Job]:
    """The jobs that a run folder does not hold yet."""
    return [job for job in jobs if not (run / "jobs" / _key(config, job)).exists()]


def run_jobs(config: CompareConfig, jobs: list[Job], run: Path, workers: int) -> Iterator[Job]:
    """Compute and store jobs, yielding each as it is done; an interrupted run keeps what was done."""
    folder = run / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    workers = min(workers, len(jobs))
    if workers < 2:
        for job in jobs:
            _run_and_store(config, job, folder / _key(config, job))
            yield job
        return
    # One thread each: networks are small, and threads of several workers would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with worker_pool(workers) as pool:
        futures: dict[Future[None], Job] = {
            pool.submit(_run_and_store, config, job, folder / _key(config, job)): job for job in jobs
        }
        for future in as_completed(futures):
            future.result()
            yield futures[future]


def assemble(config: CompareConfig, settings: list[Setting], jobs: list[Job], run: Path) -> None:
    """Put the stored jobs together into the run folder's Parquet files and its configuration.

    An agent enters a setting with all its training seeds or not at all: where jobs are not computed yet, the table
    ``missing`` says so.

    :raises ConfigError: where no setting has its reference values yet.
    """
    undone = {(job.setting.number, job.agent, job.seed) for job in missing_jobs(config, jobs, run)}
    left_out = {(setting, agent) for setting, agent, _ in undone}
    unmeasured = {number for number, agent in left_out if agent == _REFERENCES}
    settings = [setting for setting in settings if setting.number not in unmeasured]
    if not settings:
        raise ConfigError(f"{run}: no setting has its reference values yet; run the comparison on")
    parts: dict[str, list[pa.Table]] = {}
    missing: dict[tuple[int, str], list[int]] = {}
    for job in jobs:
        setting, agent = job.setting.number, job.agent
        if setting in unmeasured:
            continue
        if (setting, agent) in left_out:
            missing.setdefault((setting, agent), []).append((setting, agent, job.seed) not in undone)
            continue
        stored = _read_job(run / "jobs" / _key(config, job))
        for name, columns in stored.items():
            # A stored job may come from a run whose settings were numbered otherwise, or under another agent's name.
            own = {"setting": setting} | ({"agent": agent} if "agent" in columns else {})
            parts.setdefault(name, []).append(_arrow(columns | own))
    schema = pa.schema([("setting", pa.int64()), ("agent", pa.string()), ("done", pa.int64()), ("seeds", pa.int64())])
    rows = [
        {"setting": setting, "agent": agent, "done": sum(done), "seeds": len(done)}
        for (setting, agent), done in missing.items()
    ]
    parts["missing"] = [pa.Table.from_pylist(rows, schema=schema)]
    for name, tables in parts.items():
        # An earlier version's jobs may lack a column.
        table = pa.concat_tables(tables, promote_options="default")
        with replacing(run / f"{name}.parquet") as path:
            pq.write_table(table, path)
    settings_table = _settings_table(config, settings)
    with replacing(run / "settings.parquet") as path:
        pq.write_table(settings_table, path)
    record = as_dict(config) | {
        "version": roi_env.__version__,
        "git": _git_revision(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with replacing(run / "config.json") as path:
        path.write_text(json.dumps(record, indent=2))


def _git_revision() -> str | None:
    """Commit of the installed source, with a mark for local changes; None outside a checkout."""
    here = Path(__file__).parents[1]
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.stdout.strip()
