"""Compute a comparison's jobs: every agent takes the same exams.

Jobs are independent: they run in any order and in any number of processes with the same result, and each is stored by one
atomic rename.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from agents.base import Agent, is_saved
from agents.playing import TrainingExams, evaluate, rollout
from experiments.compare.plan import (
    PREDICTOR,
    REFERENCES,
    Job,
    build_agent,
    make_for,
    setting_spec,
    training_spec,
    validation_spec,
)
from experiments.compare.store import Tables, agents_folder, job_file, stored_agent, training_file, write_job
from experiments.config import CompareConfig, ConfigError
from experiments.training.training_run import (
    Curve,
    curve_table,
    load_trained,
    save_trained,
    train_stepwise,
    validation_exams,
)
from experiments.training.workers import worker_pool
from roi_env.exact.evaluation import BINS, CALIBRATION
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.files import replacing
from roi_env.measures.references import reachable_values, references
from roi_env.sources.outcome_tables import OutcomeTableError


def _trained(config: CompareConfig, job: Job, spec: ExamSpec, store: Path) -> tuple[Agent, Curve]:
    """The job's agent, trained: from one of the stores of trained agents where it is there, else by training it now."""
    agent = make_for(job.text, job.setting, spec)
    if not agent.stepwise or is_saved(job.text):
        return build_agent(job.text, job.setting, spec, job.seed), []
    if (path := stored_agent(config, job, agent, store)) is not None:
        return load_trained(path, agent)
    practice = TrainingExams(training_spec(job.setting, spec), job.seed)
    validation = validation_exams(validation_spec(job.setting, spec), job.seed)
    curve = train_stepwise(agent, practice, job.seed, validation)
    save_trained(agent, curve, store / training_file(job, agent))
    return agent, curve


def run_job(config: CompareConfig, job: Job, store: Path) -> Tables:
    """Compute one job: columns for the tables of the run folder.

    :param store: folder where trained agents are kept and looked for first.
    """
    spec = setting_spec(job.setting)
    batch = draw_exams(spec, config.exam_seed, np.arange(config.exams))
    if job.agent == REFERENCES:
        return _reference_tables(config, job.setting.number, batch)
    if not job.is_agents:
        return _predictor_tables(config, job, batch)
    agent, curve = _trained(config, job, spec, store)
    result = evaluate(agent, batch, max_states=config.max_states, replicates=config.replicates, seed=config.exam_seed)
    exams, tasks = result.value.shape
    head = {"setting": job.setting.number, "agent": job.agent, "seed": job.seed}
    skipped = result.skipped.sum(1) / np.maximum(result.reached.sum(1), 1e-12)
    tables: Tables = {
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


def _reference_tables(config: CompareConfig, setting: int, batch: ExamBatch) -> Tables:
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


def _predictor_tables(config: CompareConfig, job: Job, batch: ExamBatch) -> Tables:
    """What the train laws' optimum scores on the same exams given the predictor's groups, and what there is to recover."""
    from agents.predictors.predictor import PredictorError
    from roi_env.measures.recovery import informed_apart

    family = dataclasses.replace(job.setting.family, predictor=job.agent.removeprefix(PREDICTOR))
    columns: dict[str, Any] = {"setting": job.setting.number, "agent": job.agent, "exam": np.arange(len(batch))}
    try:
        # The same budget: a fraction would be taken of other groups' means, and round otherwise.
        spec = setting_spec(dataclasses.replace(job.setting, family=family)).replace(budget=batch.spec.budget)
    except ConfigError as error:
        if not isinstance(error.__cause__, PredictorError | OutcomeTableError):
            raise
        nothing = np.full(len(batch), np.nan)
        return {
            "predictors": columns
            | {"reachable": nothing, "informed": nothing, "method": "none", "reason": str(error.__cause__)}
        }
    informed = informed_apart(batch, config.max_states)
    reachable = reachable_values(
        draw_exams(spec, config.exam_seed, np.arange(config.exams)),
        max_states=config.max_states,
        replicates=config.replicates,
    )
    return {
        "predictors": columns
        | {"reachable": reachable, "informed": informed.value, "method": informed.method, "reason": ""}
    }


def _run_and_store(config: CompareConfig, job: Job, path: Path) -> None:
    try:
        tables = run_job(config, job, agents_folder(path.parent.parent))
    except Exception as error:
        error.add_note(f"This ended the job of {job.agent} in {job.setting.label}, training seed {job.seed}.")
        raise
    with replacing(path) as temporary:
        write_job(temporary, tables)


def run_jobs(config: CompareConfig, jobs: list[Job], run: Path, workers: int) -> Iterator[Job]:
    """Compute and store jobs, yielding each as it is done; an interrupted run keeps what was done."""
    folder = run / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    workers = min(workers, len(jobs))
    if workers < 2:
        for job in jobs:
            _run_and_store(config, job, folder / job_file(config, job))
            yield job
        return
    # One thread each: networks are small, and threads of several workers would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with worker_pool(workers) as pool:
        futures: dict[Future[None], Job] = {
            pool.submit(_run_and_store, config, job, folder / job_file(config, job)): job for job in jobs
        }
        for future in as_completed(futures):
            future.result()
            yield futures[future]
