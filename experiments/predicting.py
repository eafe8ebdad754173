"""What predictors recover on a table's test questions: what stands behind `roi compare` and the table of `roi predict fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.predictors.exams import COLUMN, Case, grouped_table
from agents.predictors.predictor import Predictor
from agents.predictors.quality import Quality, column_means, quality
from agents.predictors.records import Records
from roi_env.exact.policy_tables import auto_grid
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.metrics import Interval
from roi_env.measures.recovery import Method, Recovered, informed_apart, recovered
from roi_env.measures.references import informed_values, reachable_values
from roi_env.sources.outcome_tables import SPLITS


def percent(found: Interval) -> str:
    """An interval in percent; the value alone where it has no ends."""
    if not math.isfinite(found.value):
        return "-"
    if not math.isfinite(found.low):
        return f"{100 * found.value:+.1f} %"
    return f"{100 * found.value:+.1f} % [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def verdict(found: Recovered) -> str:
    """The information recovered, and in words where it is none."""
    if not math.isfinite(found.information.low):
        return f"{percent(found.share)}: no interval"
    if not found.information.low > 0:
        return "nothing to recover is seen"
    return percent(found.share) + ("" if found.share.low > 0 else ": nothing recovered is seen")


BUDGETS = (0.15, 0.3, 0.6)


class Row(NamedTuple):
    """What a predictor recovers at one budget.

    :param score: mean score of the train laws' optimum with its groups.
    """

    budget: float
    method: Method
    found: Recovered
    score: float


def recovery_of(
    case: Case, predictors: Sequence[Predictor], budgets: Sequence[float] = BUDGETS, exams: int = 200, seed: int = 0
) -> list[list[Row]]:
    """Rows by predictor and budget, on the same exams of test questions."""
    source = case.source("test")
    sources = [case._replace(table=grouped_table(case, one)).source("test", COLUMN) for one in predictors]
    found: list[list[Row]] = [[] for _ in predictors]
    for budget in budgets:
        tasks = min(10, len(source.row_item))
        batch = draw_exams(
            exam_spec(source, num_tasks=tasks, budget=budget, decision_cost=case.table.decision_cost),
            seed,
            np.arange(exams),
        )
        without, informed = reachable_values(batch), informed_apart(batch)
        spec = batch.spec
        grid = auto_grid(spec.budget, source.laws, tasks, spec.decision_cost)
        raw = informed_values(batch, grid)
        for rows, grouped in zip(found, sources, strict=True):
            spec = exam_spec(grouped, num_tasks=tasks, decision_cost=case.table.decision_cost)
            spec = spec.replace(budget=batch.spec.budget)
            with_it = reachable_values(draw_exams(spec, seed, np.arange(exams)))
            share = recovered(with_it, without, informed.value, raw, batch.items, seed=seed)
            rows.append(Row(budget, informed.method, share, float(with_it.mean())))
    return found


class Judged(NamedTuple):
    """A predictor on test questions.

    :param milliseconds: a question in batches of 64, and alone; nan for the data set's means.
    """

    name: str
    found: Quality
    milliseconds: tuple[float, float]


def judge(case: Case, predictors: Sequence[Predictor]) -> list[Judged]:
    """Predictors on test questions, beside the means of the published column."""
    found = case.records()
    test, train = (found.take(found.split == SPLITS.index(split)) for split in ("test", "train"))
    nothing = (float("nan"), float("nan"))
    result = [Judged(f"mean by {case.group_by}", quality(test, *column_means(train, test, case.group_by)), nothing)]
    for one in predictors:
        scores = one.scores(test.texts, test.columns)
        judged = quality(test, one.heads.probability(scores), one.heads.expected_cost(scores))
        result.append(Judged(one.name, judged, (speed(one, test, 64), speed(one, test, 1))))
    return result


def speed(predictor: Predictor, asked: Records, batch: int, calls: int = 20) -> float:
    """Milliseconds a question, the median over calls of ``batch`` questions."""
    times = []
    for call in range(calls):
        chosen = [(call * batch + at) % len(asked) for at in range(batch)]
        texts = [asked.texts[at] for at in chosen]
        columns: dict[str, Any] = {name: [values[at] for at in chosen] for name, values in asked.columns.items()}
        start = time.perf_counter()
        predictor.group(texts, columns)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000 / batch
