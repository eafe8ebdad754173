"""What a comparison keeps: a file a job, named by everything its numbers depend on, and the tables that the report reads.

A run that goes on computes only the jobs whose files are missing.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import roi_env
from agents.base import Agent, is_saved, parse_agent
from experiments.compare.plan import PREDICTOR, REFERENCES, Job, Setting, make_for, registered_agent, setting_spec
from experiments.config import CompareConfig, ConfigError, as_dict
from roi_env.exams.config import EXAM_FORMAT
from roi_env.files import replacing
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.table_files import files_of

CONFIG = "compare.yaml"
"""A run folder's configuration."""

Tables = dict[str, dict[str, Any]]
"""Columns by table; every job contributes rows to several."""


def job_file(config: CompareConfig, job: Job) -> str:
    """Name of a job's file: a hash of everything its numbers depend on."""
    identity = [
        roi_env.__version__,
        exam_identity(job.setting),
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
        return content_hash(text.removeprefix(PREDICTOR))
    if text == REFERENCES or text.startswith(PREDICTOR):
        return None
    if (model := (registered_agent(text).params | parse_agent(text)[1]).get("model")) is None:
        return None
    from agents.llm.decisions.policy import model_source

    weights = sorted(Path(model_source(model)).glob("*.safetensors"))
    return hashlib.sha256("".join(map(content_hash, map(str, weights))).encode()).hexdigest()


def exam_identity(setting: Setting) -> dict[str, Any]:
    """Everything that the exams of a setting depend on, as JSON values; what is at its default goes without saying."""
    exam: dict[str, Any] = {"format": EXAM_FORMAT, **setting.exam.differing()}
    exam["budget"] = setting.budget
    if setting.family.outcomes is not None:
        exam["table"] = _hash_of_all(files_of(Path(setting.family.outcomes)))
        if texts := _same_text(setting.family.outcomes):
            # Splits follow it; where no text is repeated they follow the file alone.
            exam["same_text"] = texts
    if (predictor := setting.family.predictor) is not None:
        exam["predictor"] = content_hash(predictor) if is_saved(predictor) else predictor
    return exam


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=64)
def content_hash(file: str) -> str:
    """Hash of a file's bytes: it may move, its content is what counts."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _hash_of_all(files: Sequence[Path]) -> str:
    """Hash of one file, or of several in their order."""
    found = [content_hash(str(file)) for file in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


@lru_cache(maxsize=64)
def _same_text(file: str) -> str | None:
    """Hash of which questions of a table are the same; None where all are different."""
    same = sorted(OutcomeTable.read(file).same_text.items())
    return hashlib.sha256(json.dumps(same).encode()).hexdigest() if same else None


def training_identity(job: Job, agent: Agent) -> dict[str, Any]:
    """Everything that the training of a job's agent depends on, and nothing else, as JSON values."""
    return {
        "exam": exam_identity(job.setting),
        "agent": agent.name,
        "params": agent.params(),
        "training_seed": job.seed,
    }


def training_file(job: Job, agent: Agent) -> str:
    """Name of a trained agent's file: readable, and told apart by a hash of :func:`training_identity`."""
    label = f"{job.setting.label} {agent.name} seed{job.seed}".lower().replace("=", "")
    said = re.sub(r"[^a-z0-9.]+", "-", label).strip("-")
    return f"{said[:80]}-{_digest(training_identity(job, agent))[:8]}.npz"


def agents_folder(run: Path) -> Path:
    """Where a run keeps the agents that it trained."""
    return run / "agents"


def stored_agent(config: CompareConfig, job: Job, agent: Agent, store: Path) -> Path | None:
    """Where the trained agent of a job lies; None where it is in none of the stores."""
    places = (folder / training_file(job, agent) for folder in (store, *map(Path, config.trained)))
    return next((path for path in places if path.exists()), None)


def to_train(config: CompareConfig, jobs: list[Job], run: Path) -> list[Job]:
    """Those of the jobs whose agent must first be trained in the environment: minutes instead of seconds each."""
    found = []
    for job in jobs:
        # By its class first: a comparison has hundreds of jobs and few agents that learn in the environment.
        if job.is_agents and not is_saved(job.text) and registered_agent(job.text).stepwise:
            agent = make_for(job.text, job.setting, setting_spec(job.setting))
            if stored_agent(config, job, agent, agents_folder(run)) is None:
                found.append(job)
    return found


def missing_jobs(config: CompareConfig, jobs: list[Job], run: Path) -> list[Job]:
    """The jobs that a run folder does not hold yet."""
    return [job for job in jobs if not (run / "jobs" / job_file(config, job)).exists()]


def write_job(path: Path, tables: Tables) -> None:
    """Columns as arrays named ``table/column``; no pickle."""
    arrays = {
        f"{table}/{column}": np.asarray(values)
        for table, columns in tables.items()
        for column, values in columns.items()
    }
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def read_job(path: Path) -> Tables:
    """What :func:`write_job` wrote; single values are Python's again.

    :raises ConfigError: where the file is damaged.
    """
    tables: Tables = {}
    try:
        with np.load(path) as stored:
            for name in stored.files:
                table, _, column = name.partition("/")
                values = stored[name]
                tables.setdefault(table, {})[column] = values if values.ndim else values.item()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: a damaged job ({error}); delete it and run the comparison on") from error
    return tables


def assemble(config: CompareConfig, settings: list[Setting], jobs: list[Job], run: Path) -> None:
    """Put the stored jobs together into the run folder's Parquet files and its configuration.

    An agent enters a setting with all its training seeds or not at all: where jobs are not computed yet, the table
    ``missing`` says so.

    :raises ConfigError: where no setting has its reference values yet.
    """
    undone = {(job.setting.number, job.agent, job.seed) for job in missing_jobs(config, jobs, run)}
    left_out = {(setting, agent) for setting, agent, _ in undone}
    unmeasured = {number for number, agent in left_out if agent == REFERENCES}
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
        stored = read_job(run / "jobs" / job_file(config, job))
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
