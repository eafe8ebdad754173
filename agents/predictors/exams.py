"""Predicted laws as exams: a few groups of them are a column of the table, and its exams are recorded exams like any others.

Groups are clusters of predicted laws, made on train questions; how many there are is chosen on validation questions by what the
train laws' optimum scores there. Beliefs of a group are what its train questions really did. Scores of train questions are
out-of-fold, so that they fall into groups as new questions do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.predictors.predictor import (
    Groups,
    Predictor,
    PredictorError,
    fit_scores,
    is_file,
    load_predictor,
    nearest_centre,
)
from agents.predictors.records import Records, records, with_column
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.measures import metrics
from roi_env.measures.metrics import Interval
from roi_env.measures.references import reachable_values
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable, Split
from roi_env.sources.recorded import recorded_source

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

COLUMN = "predicted"
"""Name of the column of groups."""
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of groups that are tried."""
BUDGETS = (0.15, 0.3, 0.6)
"""At which they are tried, as fractions of always the dearest tier."""
_MEMBERS = 12
"""Train questions that a group must have on average."""
_EXAMS = 60
_POINTS = 2048
"""Points of the budget grid in the choice of their number."""
_LEVEL = 0.99
"""Of the interval whose lower end says that a predictor helped on validation questions: the number of groups was chosen on them."""


class Case(NamedTuple):
    """Exams of a table that a predictor is tried on.

    :param table: with all its menus.
    :param arguments: of :func:`roi_env.sources.recorded.recorded_source`: ``menu``, ``tiers``, ``datasets``, ``missing``.
    :param group_by: the published column that it is compared with.
    """

    table: OutcomeTable
    arguments: Mapping[str, Any]
    group_by: str = "dataset"

    def records(self) -> Records:
        """Its questions."""
        chosen = {name: self.arguments.get(name) for name in ("menu", "tiers", "datasets")}
        return records(self.table.select(**chosen))

    def source(self, split: Split, group_by: str | None = None) -> Any:
        """The recorded source of a split."""
        return recorded_source(self.table, **self.arguments, split=split, group_by=group_by or self.group_by)


def predictor_of(name: str, case: Case, say: Callable[[str], None] = lambda text: None) -> Predictor:
    """Load a predictor's file, or fit one by name.

    :raises PredictorError: where it cannot be, or the file is of another menu, of other tiers or another unit, or was fitted
        on questions that the case keeps for tests.
    """
    if is_file(name):
        predictor = load_predictor(name)
        _check_case(predictor, case, name)
        return predictor
    return fit_predictor(name, case, say)


def _check_case(predictor: Predictor, case: Case, file: str) -> None:
    found = case.records()
    for what, own, there in (
        ("menu", predictor.menu, found.menu),
        ("tiers", list(predictor.tiers), list(found.tiers)),
        ("unit", predictor.unit, found.unit),
    ):
        if own != there:
            raise PredictorError(f"{file} was fitted on the {what} {own}, these exams have {there}: fit one on them")
    test = found.take(found.split == SPLITS.index("test"))
    if known := predictor.knows(test.texts):
        raise PredictorError(
            f"{file} was fitted on {known} of the {len(test)} test questions: what it recovers there would flatter it; fit it "
            "on this table"
        )


def fit_predictor(name: str, case: Case, say: Callable[[str], None] = lambda text: None) -> Predictor:
    """Fit a predictor and choose its groups.

    :param say: told what is being done.
    :raises PredictorError: see :func:`agents.predictors.predictor.fit_scores`; also without validation questions.
    """
    found = case.records()
    say(f"reading {len(found):,} questions")
    predictor = fit_scores(name, found, (case.group_by,))
    train, validation = (found.split == SPLITS.index(split) for split in ("train", "validation"))
    if not validation.any():
        raise PredictorError(
            f"{case.table.path}: no question is in the validation split, which chooses the number of groups"
        )
    scores = predictor.scores(found.texts, found.columns)
    vectors = predictor.heads.vector(scores)
    plain = _exams(case, "validation")
    without = _reached(plain)
    tried: dict[int, tuple[Floats, Floats, Ints]] = {}
    for size in SIZES:
        if size * _MEMBERS > train.sum():
            break
        say(f"trying {size} groups on validation questions")
        centres = _centres(vectors[train], size)
        labels = nearest_centre(vectors, centres, _everywhere(vectors, centres, found))
        grouped = case._replace(table=_labelled(case, found, labels))
        tried[size] = (_reached(_exams(grouped, "validation", COLUMN, plain)), centres, labels)
    if not tried:
        raise PredictorError(
            f"{case.table.path}: {train.sum()} train questions are too few for groups; record at least {SIZES[0] * _MEMBERS}"
        )
    size = max(tried, key=lambda one: float(tried[one][0].mean()))
    reached, centres, labels = tried[size]
    # Groups that not all splits have are not published.
    labelled = case._replace(table=_labelled(case, found, labels), arguments=dict(case.arguments) | {"missing": "drop"})
    source = labelled.source("train", COLUMN)
    used = [int(name) for name in source.group_names]
    names = tuple(f"predicted {rank + 1} of {len(used)}" for rank in np.argsort(np.argsort(used)).tolist())
    predictor.groups = Groups(centres[used], source.beliefs, names, source.group_key, source.group_probability.mean(0))
    gain = _gain(plain, reached, without)
    predictor.facts |= {
        "groups": len(used),
        "group_by": case.group_by,
        "tried": {str(one): float(values.mean() - without.mean()) for one, (values, _, _) in tried.items()},
        "validation_gain": list(gain),
        "helps": bool(gain.low > 0),
    }
    return predictor


def _everywhere(vectors: Floats, centres: Floats, found: Records) -> npt.NDArray[np.bool_]:
    """(G,) groups that questions of every split fall into: others would have no beliefs, or nobody to hold them of."""
    near = nearest_centre(vectors, centres)
    allowed = np.ones(len(centres), np.bool_)
    for split in np.unique(found.split):
        allowed &= np.bincount(near[found.split == split], minlength=len(centres)) > 0
    if not allowed.any():
        allowed[:] = np.bincount(near[found.split == 0], minlength=len(centres)) > 0
    return allowed


def _centres(vectors: Floats, size: int) -> Floats:
    """(size, 2 K) centres of clusters, from seldom to often right at the dearest tier."""
    from sklearn.cluster import KMeans

    distinct = len(np.unique(vectors, axis=0))
    centres = KMeans(min(size, distinct), n_init=5, random_state=0).fit(vectors).cluster_centers_
    return np.asarray(centres[np.argsort(centres[:, centres.shape[1] // 2 - 1], kind="stable")])


def _labelled(case: Case, found: Records, labels: Ints) -> OutcomeTable:
    """The case's rows with the groups' numbers as :data:`COLUMN`."""
    chosen = {name: case.arguments.get(name) for name in ("menu", "tiers", "datasets")}
    return with_column(case.table.select(**chosen), COLUMN, [str(label) for label in labels.tolist()])


def grouped_table(case: Case, predictor: Predictor) -> OutcomeTable:
    """The table's menu with the predictor's groups as the column ``predicted``: ``group_by="predicted"`` publishes them.

    Groups that not all splits of this table have give their questions to the nearest group that they have.

    :raises PredictorError: where the predictor has no groups, or needs a column that is not there.
    :raises OutcomeTableError: where the table has no texts.
    """
    found = case.records()
    scores = predictor.scores(found.texts, found.columns)
    near = predictor.nearest(scores)
    allowed = np.ones(0, np.bool_)
    if predictor.groups is not None:
        allowed = _everywhere(predictor.heads.vector(scores), predictor.groups.centres, found)
    near = predictor.nearest(scores, allowed)
    return _labelled(case, found, near)


def _exams(case: Case, split: Split, group_by: str | None = None, like: Sequence[ExamBatch] = ()) -> list[ExamBatch]:
    """Exams of a split at :data:`BUDGETS`; with the budgets of others, which publish other groups."""
    source = case.source(split, group_by)
    tasks = min(10, len(source.row_item))
    budgets: Sequence[float | int] = [batch.spec.budget for batch in like] or BUDGETS
    try:
        spec = exam_spec(source, num_tasks=tasks, decision_cost=case.table.decision_cost)
    except ValueError as error:
        raise PredictorError(f"{case.table.path}: no exams of {tasks} tasks can be made: {error}") from error
    return [draw_exams(spec.replace(budget=budget), 0, np.arange(_EXAMS)) for budget in budgets]


def _reached(exams: Sequence[ExamBatch]) -> Floats:
    """(T, E) what the train laws' optimum scores."""
    return np.stack(
        [
            reachable_values(batch, grid=max(1, -(-batch.spec.budget // _POINTS)), max_states=4_000_000)
            for batch in exams
        ]
    )


def _gain(exams: Sequence[ExamBatch], reached: Floats, without: Floats) -> Interval:
    """Mean gain over the budgets as a share of what is reached without, with its interval."""
    base = float(without.mean())
    if base == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    gain = (reached - without).mean(0) / base
    questions = np.sort(exams[0].items, axis=1)
    weights = metrics.bootstrap_weights(len(gain), 2000, np.random.default_rng(20), questions)
    if metrics.no_interval(len(gain), questions) is not None:
        return Interval(float(gain.mean()), float("nan"), float("nan"))
    stretch = metrics.QuestionDesign(questions).stretch(gain)
    return metrics.interval(float(gain.mean()), weights @ gain / len(gain), _LEVEL, stretch=stretch)
