"""`roi predict`: fit a predictor of laws on a recorded table, and ask one about a question."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from experiments.config import ConfigError
from experiments.options import DATA, PREDICTORS, helped
from experiments.predicting import helps, print_recovery, say_unknown
from experiments.runs import check_file
from experiments.terminal import Table, console
from roi_env.files import replacing
from roi_env.sources.units import COST_NAMES, cost_text

if TYPE_CHECKING:
    from agents.predictors.exams import Case
    from agents.predictors.predictor import Predictor
    from experiments.predicting import Judged, Row

app = typer.Typer(
    no_args_is_help=True, help="Predict what a question will cost and whether it will be right, from its text."
)


@app.command(
    **helped(
        DATA,
        "roi predict fit outcomes.parquet --menu gpt-4 --out gpt-4.npz",
        "roi predict fit outcomes.parquet --predictor given:level --out level.npz",
    )
)
def fit(
    table: Annotated[Path, typer.Argument(help="Recorded outcomes with question texts")],
    out: Annotated[Path, typer.Option(help="File to write (.npz); beside it a report (.json) and a picture (.png)")],
    predictor: Annotated[str, typer.Option(help=f"One of {PREDICTORS}")] = "text",
    menu: Annotated[str | None, typer.Option(help="Menu of the table; may be left out where it has one")] = None,
    group_by: Annotated[
        str, typer.Option(help="Column that agents see anyway: the predictor reads it too")
    ] = "dataset",
    tier: Annotated[
        list[str] | None, typer.Option(help="Only this tier, for exams that offer some alone; repeatable")
    ] = None,
) -> None:
    """Fit on train questions, calibrate and choose groups on validation questions, report on test questions."""
    from agents.predictors.exams import Case, fit_predictor
    from agents.predictors.predictor import SUFFIX, PredictorError, is_file
    from experiments.predicting import judge, recovery_of
    from roi_env.sources.outcome_tables import OutcomeTable

    if out.suffix != SUFFIX:
        raise ConfigError(f"--out {out}: a predictor's file ends in {SUFFIX}")
    check_file("--out", out)
    _check_beside(out, table)
    if is_file(predictor):
        raise ConfigError(f"--predictor {predictor}: name a kind to fit, not a file: {PREDICTORS}")
    read = OutcomeTable.read(table)
    case = Case(read.select(menu, tier), {}, group_by)
    try:
        with console.status(f"{table}: {predictor}") as shown:
            made = fit_predictor(predictor, case, lambda text: shown.update(f"{table}: {predictor}: {escape(text)}"))
            made.save(out)
            beside = [made]
            if predictor != "surface":
                shown.update(f"{table}: surface, for comparison")
                beside.append(fit_predictor("surface", case))
            judged = judge(case, beside)
            rows = recovery_of(case, beside)
    except PredictorError as error:
        raise ConfigError(str(error)) from error
    _show_fit(made, judged, [(one.name, found) for one, found in zip(beside, rows, strict=True)])
    report = out.with_suffix(".json")
    with replacing(report) as path:
        path.write_text(
            json.dumps(_report(made, judged, beside, rows), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
    picture = out.with_suffix(".png")
    _draw(made, case, picture)
    console.print(f"Written: [bold]{out}[/bold], {report}, {picture}", highlight=False)


@app.command(
    **helped(
        DATA,
        "roi predict show gpt-4.npz 'What is 17 x 23?'",
        "roi predict show gpt-4.npz 'What is 17 x 23?' --column dataset=aqua-rat",
    )
)
def show(
    file: Annotated[Path, typer.Argument(help="File of `roi predict fit`")],
    question: Annotated[list[str], typer.Argument(help="Texts of questions")],
    column: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a column that it reads, e.g. dataset=aqua; repeatable")
    ] = None,
) -> None:
    """What a predictor says of questions: chance and cost of every tier, and the group that is published."""
    from agents.predictors.predictor import PredictorError, load_predictor

    if broken := [text for text in question if any("\ud800" <= letter <= "\udfff" for letter in text)]:
        raise ConfigError(f"the question {broken[0]!r:.80} has bytes that are no UTF-8 text")
    given = {}
    for text in column or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--column {text!r} must read NAME=VALUE, e.g. dataset=aqua")
        if name in given:
            raise ConfigError(f"--column {name}: is given twice")
        given[name] = [value] * len(question)
    try:
        made = load_predictor(file)
        if unread := sorted(given.keys() - set(made.reads)):
            raise ConfigError(f"--column {unread[0]}: {file} reads no such column; it reads {made.reads}")
        scores = made.scores(question, given)
        groups = made.nearest(scores)
        say_unknown(made, given)
    except PredictorError as error:
        raise ConfigError(str(error)) from error
    assert made.groups is not None
    chance, expected, costs = made.heads.probability(scores), made.heads.expected_cost(scores), made.heads.costs(scores)
    console.print(
        f"{file}: predictor {made.name} of {made.menu}, {made.facts['train_questions']:,} train questions; "
        f"{helps(made)}",
        highlight=False,
        soft_wrap=True,
    )
    for number, text in enumerate(question):
        group = int(groups[number])
        laws = made.groups.laws
        title = "".join(letter if letter.isprintable() else " " for letter in text[:60]).strip() or "(no text)"
        title += "..." if len(text) > 60 else ""
        shown = Table(title=f"{escape(title)}  ({made.groups.names[group]})")
        cost = COST_NAMES[made.unit]
        for name in ("tier", "right", cost, "10 to 90 %", "right in its group", f"{cost} in its group"):
            shown.add_column(name, justify="left" if name == "tier" else "right")
        for k, tier in enumerate(made.tiers):
            few, many = _quantiles(costs[number, k], float(chance[number, k]))
            shown.add_row(
                escape(tier),
                f"{chance[number, k]:.3f}",
                cost_text(expected[number, k], made.unit),
                f"{cost_text(few, made.unit)} to {cost_text(many, made.unit)}",
                f"{laws.success_probability[group, k]:.3f}",
                cost_text(laws.expected_cost[group, k], made.unit),
            )
        console.print(shown)


def _check_beside(out: Path, table: Path) -> None:
    """Report and picture overwrite those of an earlier fit and nothing else.

    :raises ConfigError: where their names are those of other files.
    """
    for path in (out.with_suffix(".json"), out.with_suffix(".png")):
        if path.exists() and (not out.exists() or (table.exists() and path.samefile(table))):
            raise ConfigError(
                f"--out {out}: {path} would be overwritten, and is of no earlier fit: choose another name, or move it away"
            )


def _quantiles(costs: Any, chance: float) -> tuple[float, float]:
    """10 and 90 % quantiles of (2, n) equally likely costs of wrong and right answers."""
    import numpy as np

    flat = costs.ravel()
    weight = np.repeat([1 - chance, chance], costs.shape[1]) / costs.shape[1]
    order = np.argsort(flat)
    total = np.cumsum(weight[order])
    low, high = (float(flat[order][np.searchsorted(total, level - 1e-12)]) for level in (0.1, 0.9))
    return low, high


def _show_fit(made: Predictor, judged: list[Judged], rows: list[tuple[str, list[Row]]]) -> None:
    facts = made.facts
    console.print(
        f"Predictor [bold]{escape(made.name)}[/] of {escape(made.menu)}: {facts['train_questions']:,} train questions "
        f"({facts['left_out']} near duplicates of others left out), {facts['validation_questions']:,} validation questions, "
        f"{facts['groups']} groups; {helps(made)}.",
        highlight=False,
        soft_wrap=True,
    )
    shown = Table(title="Test questions: predictions by tier")
    for name in ("predictor", "tier", "log-loss", "Brier", "ECE", "AUC", "cost error", "ms a question (64; 1)"):
        shown.add_column(name, justify="left" if name in ("predictor", "tier") else "right")
    for one in judged:
        many, single = one.milliseconds
        for k, tier in enumerate(made.tiers):
            values = [values[k] for values in one.found]
            texts = [f"{value:.3f}" if math.isfinite(value) else "-" for value in values[:4]]
            speed = f"{many:.2f}; {single:.2f}" if k == 0 and math.isfinite(many) else ""
            shown.add_row(escape(one.name) if k == 0 else "", escape(tier), *texts, f"{100 * values[4]:.0f} %", speed)
        shown.add_section()
    console.print(shown)
    flat = [(name, f"{row.budget:g}", row.found) for name, found in rows for row in found]
    print_recovery(("predictor", "budget"), flat, {row.method for _, found in rows for row in found})


def _report(made: Predictor, judged: list[Judged], beside: list[Predictor], rows: list[list[Row]]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    document = {
        "predictor": made.name,
        "menu": made.menu,
        "tiers": list(made.tiers),
        "facts": made.facts,
        "quality": [
            {
                "predictor": one.name,
                "milliseconds_in_64": one.milliseconds[0],
                "milliseconds_alone": one.milliseconds[1],
                **{name: values.tolist() for name, values in one.found._asdict().items()},
            }
            for one in judged
        ],
        "recovered": [
            {"predictor": one.name, "budget": row.budget, "informed": row.method}
            | {name: list(found) for name, found in row.found._asdict().items()}
            for one, found_rows in zip(beside, rows, strict=True)
            for row in found_rows
        ],
    }
    found: dict[str, Any] = plain(document)
    return found


def _draw(made: Predictor, case: Case, path: Path) -> None:
    """Reliability of every tier on test questions."""
    import matplotlib.figure
    import numpy as np

    from agents.predictors.quality import reliability
    from roi_env.sources.outcome_tables import SPLITS

    found = case.records()
    test = found.take(found.split == SPLITS.index("test"))
    success = made.success(test.texts, test.columns)
    figure = matplotlib.figure.Figure(figsize=(3.2 * len(made.tiers), 3.2), layout="constrained")
    axes = figure.subplots(1, len(made.tiers), squeeze=False, sharey=True)[0]
    for k, (axis, tier) in enumerate(zip(axes, made.tiers, strict=True)):
        seen = test.count[:, k] > 0
        predicted, happened, mass = reliability(test.right[seen, k] / test.count[seen, k], success[seen, k])
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axis.scatter(predicted, happened, s=10 + 200 * mass / max(float(np.nansum(mass)), 1), color="#1b6ca8")
        axis.set(title=tier, xlim=(0, 1), ylim=(0, 1), xlabel="predicted", ylabel="right" if k == 0 else "")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})
