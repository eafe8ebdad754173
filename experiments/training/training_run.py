"""Train one agent on one kind of exam, measure it on validation exams on the way, keep what it learned.

Exams are disjoint three ways: training exams (:class:`agents.playing.TrainingExams`), validation exams (here; curves and
tuning look at these alone) and reported exams. For recorded outcomes the questions are disjoint as well.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from agents.base import Agent, load_agent, make_agent, public_problem, save_agent
from agents.playing import TrainingExams, evaluate
from experiments.config import ConfigError
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.files import replacing

if TYPE_CHECKING:
    from agents.neural import Progress

POINTS: Final = 12
"""Validation points of a learning curve, evenly spaced in environment steps."""
VALIDATION_EXAMS: Final = 50
MAX_STATES: Final = 1_000_000
REPLICATES: Final = 40


@dataclass(frozen=True)
class Point:
    """One point of a learning curve.

    :param steps: environment steps so far.
    :param updates: optimiser steps so far.
    :param cpu_seconds: CPU time of training so far (validation excluded).
    :param wall_seconds: wall-clock time so far (validation excluded).
    :param training_score: mean score of the training exams since the point before (nan: none).
    :param normalised: validation score over the validation exams' optimum.
    """

    steps: int
    updates: int
    cpu_seconds: float
    wall_seconds: float
    training_score: float
    normalised: float


Curve = list[Point]


def validation_seed(seed: int) -> int:
    """Identity's seed of validation exams: a key of its own, by a hash."""
    return int.from_bytes(hashlib.sha256(f"validate {seed}".encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Validation:
    """Validation exams of one kind.

    :param batch: the exams.
    :param optimum: mean score of the optimum over them.
    """

    batch: ExamBatch
    optimum: float

    def normalised(self, agent: Agent) -> float:
        """An agent's mean score over the optimum's; NaN where nothing can be won (a model that is never right)."""
        return _mean_score(agent, self.batch) / self.optimum if self.optimum > 0 else float("nan")


def validation_exams(spec: ExamSpec, seed: int = 0, count: int = VALIDATION_EXAMS) -> Validation:
    """Draw validation exams and solve them.

    :param spec: kind of exam; for recorded outcomes over the validation split.
    :param seed: names the exams.
    """
    batch = draw_exams(spec, validation_seed(seed), np.arange(count))
    best = make_agent("optimum", public_problem(spec), laws=spec.source.published)
    return Validation(batch, _mean_score(best, batch))


def _mean_score(agent: Agent, batch: ExamBatch) -> float:
    return float(evaluate(agent, batch, max_states=MAX_STATES, replicates=REPLICATES).score.mean())


def train_stepwise(
    agent: Agent,
    practice: TrainingExams,
    seed: int,
    validation: Validation | None,
    *,
    points: int = POINTS,
    before: Curve | None = None,
    watch: Callable[[Progress, Curve], None] | None = None,
    **options: Any,
) -> Curve:
    """Train an agent that reports its progress (``agent.stepwise``) and measure its learning curve.

    :param validation: exams of the curve; None measures nothing.
    :param before: the curve so far of a run that is continued from a checkpoint.
    :param watch: called at every report with the progress and the curve so far.
    :param options: further arguments of the agent's ``train`` (a checkpoint, where to train).
    :returns: ``points`` points at most, the last one after the last update.
    """
    from agents.neural import NeuralAgent

    if not isinstance(agent, NeuralAgent):
        raise TypeError(f"agent {agent.name!r} does not train step by step")
    curve: Curve = list(before or [])
    wall = curve[-1].wall_seconds if curve else 0.0
    begin, paused, scores = time.perf_counter(), 0.0, []

    def report(progress: Progress) -> None:
        nonlocal paused
        since = time.perf_counter()
        scores.append(progress.score)
        due = progress.total_steps * (len(curve) + 1) / points
        new = not curve or progress.steps > curve[-1].steps  # a finished run that is resumed has nothing new
        if validation is not None and new and (progress.steps >= due or progress.steps >= progress.total_steps):
            finite = [score for score in scores if np.isfinite(score)]
            curve.append(
                Point(
                    steps=progress.steps,
                    updates=progress.updates,
                    cpu_seconds=progress.cpu_seconds,
                    wall_seconds=wall + since - begin - paused,
                    training_score=float(np.mean(finite)) if finite else float("nan"),
                    normalised=validation.normalised(agent),
                )
            )
            scores.clear()
        if watch is not None:
            watch(progress, curve)
        paused += time.perf_counter() - since

    agent.train(practice, seed, report, **options)
    return curve


def curve_table(curve: Curve) -> pa.Table:
    """A curve as columns."""
    schema = pa.schema(
        [(name, pa.int64() if name in ("steps", "updates") else pa.float64()) for name in Point.__dataclass_fields__]
    )
    return pa.Table.from_pylist([asdict(point) for point in curve], schema=schema)


def write_curve(curve: Curve, path: Path) -> None:
    """Write a curve (Parquet)."""
    with replacing(path) as temporary:
        pq.write_table(curve_table(curve), temporary)


def read_curve(path: Path) -> Curve:
    """Read a curve back.

    :raises ConfigError: where the file is none.
    """
    try:
        return [Point(**row) for row in pq.read_table(path).to_pylist()]
    except (pa.ArrowException, TypeError) as error:
        raise ConfigError(
            f"{path}: not a learning curve ({error}); delete it, it is drawn anew from here on"
        ) from error


def save_trained(agent: Agent, curve: Curve, path: Path) -> None:
    """Write a trained agent (``path``, a ``.npz``) and, first, its curve beside it (``.parquet``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_curve(curve, path.with_suffix(".parquet"))
    save_agent(agent, path)


def load_trained(path: Path, agent: Agent) -> tuple[Agent, Curve]:
    """Read back what :func:`save_trained` wrote for an agent of the same kind.

    :raises ValueError: where the file is not a saved agent or belongs to another problem.
    """
    return load_agent(path, agent.problem), read_curve(path.with_suffix(".parquet"))
