"""What predictors are worth: what stands behind `roi compare`, the table of `roi predict fit` and the default of `roi answer`."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.markup import escape

from agents.predictors.exams import COLUMN, Case, fit_predictor, grouped_table
from agents.predictors.features import Columns
from agents.predictors.predictor import SUFFIX, Predictor, PredictorError, is_file, load_predictor
from agents.predictors.quality import Quality, column_means, quality
from agents.predictors.records import Records
from experiments.commands.endpoints import report
from experiments.config import ConfigError
from experiments.terminal import Table, console, stacked
from roi_env.answering.base import Question
from roi_env.envs.live import KnownGroups, shared_columns
from roi_env.exact.policy_tables import auto_grid
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.measures.metrics import Interval
from roi_env.measures.recovery import Informed, Method, Recovered, informed_apart, recovered
from roi_env.measures.references import informed_values, reachable_values
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable, OutcomeTableError

Floats = npt.NDArray[np.float64]


def percent(found: Interval) -> str:
    """An interval in percent; the value alone where it has no ends."""
    if not math.isfinite(found.value):
        return "-"
    if not math.isfinite(found.low):
        return f"{100 * found.value:+.1f} %"
    return f"{100 * found.value:+.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def verdict(found: Recovered) -> str:
    """The information recovered, and in words where it is none."""
    if found.information.low <= 0:
        return "nothing to recover is seen"
    if not math.isfinite(found.share.low):
        return f"{percent(found.share)}: no interval"
    if found.share.low > 0:
        return percent(found.share)
    # A share of next to nothing is a large number that says nothing.
    said = "" if found.share.high - found.share.low > 2 else f"{percent(found.share)}: "
    return f"{said}nothing recovered is seen"


def print_recovery(
    first: tuple[str, str], rows: Sequence[tuple[str, str, Recovered | str]], methods: Collection[str]
) -> None:
    """The table of what predictors recover.

    :param first: what the first two parts of a row are; rows of the same first part stand below it.
    :param rows: these parts, and what was found, or why nothing was.
    :param methods: how informed values were estimated.
    """
    shown = Table(title="Information recovered on test questions (95 % intervals, cross-fitted)")
    for name in (", ".join(first), "recovered", "gain in score", "to recover", "the same, raw"):
        shown.add_column(name, justify="left" if not shown.columns else "right")
    above = None
    for one, other, found in rows:
        if above != one:
            shown.add_section()
            shown.add_row(escape(one))
        told = ("not measured",) if isinstance(found, str) else (verdict(found), *map(percent, found[1:]))
        shown.add_row(f"  {escape(other)}", *(escape(stacked(text).replace(": ", ":\n")) for text in told))
        above = one
    console.print(shown)
    for one, other, found in rows:
        if isinstance(found, str):
            console.print(f"{one}, {other}: {found}", highlight=False, markup=False, soft_wrap=True)
    if methods:
        console.print(
            f"To recover: informed (laws and scores from different samples: {', '.join(sorted(methods))}) less what train "
            "laws reach; raw: laws of the very samples that are scored, which flatter.",
            highlight=False,
            soft_wrap=True,
        )


def print_predictions(settings: Sequence[dict[str, Any]]) -> None:
    """:func:`print_recovery` of the settings of a comparison's ``summary.json``."""

    def found(one: dict[str, Any]) -> Recovered | str:
        def interval(name: str) -> Interval:
            return Interval(*(math.nan if (end := one[name][part]) is None else end for part in Interval._fields))

        return one["reason"] or Recovered(*map(interval, Recovered._fields))

    told = [(setting["label"], one) for setting in settings for one in setting["predictions"]]
    methods = {one["informed"] for _, one in told if not one["reason"]}
    print_recovery(("setting", "predictor"), [(label, one["predictor"], found(one)) for label, one in told], methods)


BUDGETS = (0.15, 0.3, 0.6)


class Row(NamedTuple):
    """What a predictor recovers at one budget.

    :param score: mean score of the train laws' optimum with its groups.
    """

    budget: float
    method: Method
    found: Recovered
    score: float


class Known(NamedTuple):
    """Exams of test questions at one budget, and what predictors are held against there.

    :param without: (E,) score of the train laws' optimum given the published column.
    :param raw: (E,) informed value on the very samples that it knows.
    """

    budget: float
    batch: ExamBatch
    without: Floats
    informed: Informed
    raw: Floats


def known_of(case: Case, budgets: Sequence[float] = BUDGETS, exams: int = 200, seed: int = 0) -> list[Known]:
    """What there is to recover on a case's test questions, by budget."""
    source = case.source("test")
    tasks = min(10, len(source.row_item))
    found = []
    for budget in budgets:
        spec = exam_spec(source, num_tasks=tasks, budget=budget, decision_cost=case.table.decision_cost)
        batch = draw_exams(spec, seed, np.arange(exams))
        grid = auto_grid(batch.spec.budget, source.laws, tasks, spec.decision_cost)
        found.append(Known(budget, batch, reachable_values(batch), informed_apart(batch), informed_values(batch, grid)))
    return found


def recovered_by(case: Case, predictor: Predictor, known: Sequence[Known], seed: int = 0) -> list[Row]:
    """What a predictor recovers of the known; beliefs of its groups are the case's, whose test questions are the known's."""
    source = case._replace(table=grouped_table(case, predictor)).source("test", COLUMN)
    rows = []
    for one in known:
        spec = exam_spec(source, num_tasks=one.batch.spec.num_tasks, decision_cost=case.table.decision_cost)
        exams = np.arange(len(one.batch))
        with_it = reachable_values(draw_exams(spec.replace(budget=one.batch.spec.budget), seed, exams))
        share = recovered(with_it, one.without, one.informed.value, one.raw, one.batch.items, seed=seed)
        rows.append(Row(one.budget, one.informed.method, share, float(with_it.mean())))
    return rows


def recovery_of(
    case: Case, predictors: Sequence[Predictor], budgets: Sequence[float] = BUDGETS, exams: int = 200, seed: int = 0
) -> list[list[Row]]:
    """Rows by predictor and budget, on the same exams of test questions."""
    known = known_of(case, budgets, exams, seed)
    return [recovered_by(case, one, known, seed) for one in predictors]


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


_SECONDS = 5.0


def speed(predictor: Predictor, asked: Records, batch: int, calls: int = 20) -> float:
    """Milliseconds a question, the median over calls of ``batch`` questions; after some seconds no more are made."""
    times: list[float] = []
    while len(times) < calls and sum(times) < _SECONDS:
        chosen = [(len(times) * batch + at) % len(asked) for at in range(batch)]
        # New texts: what a language model has read is not read again.
        texts = [f"{asked.texts[at]} {batch}.{len(times)}.{at}" for at in chosen]
        columns: dict[str, Any] = {name: [values[at] for at in chosen] for name, values in asked.columns.items()}
        start = time.perf_counter()
        predictor.group(texts, columns)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000 / batch


def helps(predictor: Predictor) -> str:
    """Whether it was seen to help on validation questions, in words."""
    gain = percent(Interval(*predictor.facts["validation_gain"]))
    verdict = "it helped" if predictor.facts["helps"] else "it was not seen to help"
    return f"on validation questions {verdict} ({gain} of the score without it, 99 % interval)"


def groups_of_file(file: str, asked: Sequence[Question] = ()) -> KnownGroups:
    """Beliefs of live questions by a predictor's file; whose they are is said.

    :param asked: the questions, where they are known.
    :raises ConfigError: where the file is none, or has no groups.
    """
    try:
        if not is_file(file):
            raise PredictorError(
                f"{file}: name a predictor's file ({SUFFIX}); `roi predict fit TABLE --out FILE` makes one"
            )
        made = load_predictor(file)
        found = _groups_for(made, asked)
    except PredictorError as error:
        raise ConfigError(f"--predictor {error}") from error
    whose = f"{Path(file).name}, the predictor {made.name} of {made.menu}"
    console.print(f"Beliefs by {whose}: {helps(made)}.", highlight=False, markup=False, soft_wrap=True)
    return found


def fitted_groups(
    predictor: str | None, table: OutcomeTable, menu: str | None, group_by: str, asked: Sequence[Question]
) -> KnownGroups | None:
    """Beliefs of live questions by a predictor fitted on a table; what was found is said.

    :param predictor: its name; None: ``text``, where it was seen to help on validation questions.
    :raises ConfigError: where a named one cannot be fitted.
    """
    name = predictor or "text"
    try:
        with console.status(f"fitting the predictor {name} on {table.path}"):
            made = fit_predictor(name, Case(table, {"menu": menu}, group_by))
        found = _groups_for(made, asked)
    except (PredictorError, OutcomeTableError) as error:
        if predictor is not None:
            raise ConfigError(f"--predictor {predictor}: {error}") from error
        console.print(f"Beliefs by {group_by}; no predictor: {error}", highlight=False, markup=False)
        return None
    used = predictor is not None or made.facts["helps"]
    hint = "; --predictor none leaves it out" if predictor is None and used else ""
    whose = f"the predictor {name} of the table" if used else f"{group_by}, not by a text predictor"
    console.print(f"Beliefs by {whose}: {helps(made)}{hint}.", highlight=False, markup=False, soft_wrap=True)
    return found if used else None


def _groups_for(made: Predictor, asked: Sequence[Question]) -> KnownGroups:
    """Its groups; values of its columns that it never saw are said."""
    found = made.known_groups()
    say_unknown(made, shared_columns(asked))
    return found


def say_unknown(predictor: Predictor, columns: Columns) -> None:
    """Say which values of its columns a predictor never saw."""
    if unknown := predictor.unknown(columns):
        named = ", ".join(unknown[:3]) + (" ..." if unknown[3:] else "")
        report(
            f"The predictor {predictor.name} was fitted on no questions with {named}: of these the texts alone are read"
        )
