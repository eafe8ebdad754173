"""``roi table FILE``: what an outcome table holds, and what to know before exams are made of it."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape

from experiments.config import ConfigError
from experiments.runs import check_file
from experiments.terminal import Table
from roi_env.files import replacing
from roi_env.sources.outcome_tables import DEFAULT_FRACTIONS, SPLITS, OutcomeTable, OutcomeTableError
from roi_env.sources.units import COST_NAMES, UNIT_NAMES, Unit, cost_text, cost_with_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MENUS_SHOWN = 6
"""Most menus in one picture."""
_TASKS = 10
"""Of an exam, unless --num-tasks says otherwise."""
_MEANS = {"tokens": "tokens", "micro-usd": "mean USD"}
_UNITS = {"tokens": "tokens", "micro-usd": "USD"}
_NAME, _BORDER = 12, 3
"""Least characters of a column of names, which go on in a next line, and those between two columns."""


def describe_table(
    path: str | os.PathLike[str],
    console: Console | None = None,
    menu: str | None = None,
    picture: Path | None = None,
) -> None:
    """Print what was inferred, menus, tiers, tokens, accuracy, questions, splits and problems of a table.

    :param console: where to print (default: standard output).
    :param menu: this one alone.
    :param picture: file of a picture of right answers against cost, by data set (.png or .svg).
    :raises OutcomeTableError: for a malformed file, naming file, column and first offending row.
    :raises ConfigError: for another kind of picture, or one of too many menus.
    """
    if picture is not None:
        if picture.suffix not in (".png", ".svg"):
            raise ConfigError(f"--picture {picture}: pictures are written as .png or .svg")
        check_file("--picture", picture)
    table = OutcomeTable.read(path)
    table = table if menu is None else table.select(menu)
    console = console or Console(emoji=False)
    print_table(table, console)
    if picture is not None:
        if len(table.menus) > MENUS_SHOWN:
            raise ConfigError(
                f"--picture shows {MENUS_SHOWN} menus at most, {path} has {len(table.menus)}: choose one with --menu"
            )
        from experiments.report.figures import style

        with style(), replacing(picture) as temporary:
            draw_curves(table).savefig(temporary, format=picture.suffix[1:], dpi=110)
        console.print(f"Written: [bold]{escape(str(picture))}[/]", highlight=False, soft_wrap=True)


class Point(NamedTuple):
    """A tier on the questions of a data set, every question counting once: mean cost, share of right answers and its standard error."""

    tier: str
    questions: int
    cost: float
    right: float
    error: float


def curves(table: OutcomeTable) -> dict[str, list[Point]]:
    """Points of a table of one menu by data set, cheapest tier first."""
    of_row, first_row = table.distinct_questions()
    dataset, datasets = table.codes("dataset")
    tier, tiers = table.codes("tier")
    found = {}
    for d, name in enumerate(datasets):
        points = []
        for level in table.tier_names(table.menus[0]):
            here = (dataset == d) & (tier == tiers.index(level))
            count = np.bincount(of_row[here], minlength=len(first_row))
            asked = count > 0
            if asked.any():
                cost, right = (
                    np.bincount(of_row[here], table.numbers(column)[here], len(first_row))[asked] / count[asked]
                    for column in ("tokens", "correct")
                )
                error = float(right.std(ddof=1) / np.sqrt(len(right))) if len(right) > 1 else float("nan")
                points.append(Point(level, int(asked.sum()), float(cost.mean()), float(right.mean()), error))
        found[str(name)] = points
    return found


def draw_curves(table: OutcomeTable) -> Figure:
    """Right answers against cost, a panel a menu, a line a data set; bars are 95 % over questions."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    from experiments.report.figures import MARKERS, OKABE_ITO

    columns = min(len(table.menus), 3)
    rows = -(-len(table.menus) // columns)
    figure = Figure(figsize=(4.4 * columns + 2.2, 3.6 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in panels[len(table.menus) :]:
        axes.set_axis_off()
    known = {name: number for number, name in enumerate(map(str, table.codes("dataset")[1]))}
    named: dict[str, Any] = {}
    for axes, menu in zip(panels, table.menus, strict=False):
        for dataset, points in curves(table.select(menu)).items():
            color, marker = known[dataset] % len(OKABE_ITO), known[dataset] // len(OKABE_ITO) + known[dataset]
            named[f"{dataset}, {points[0].questions:,} questions"] = axes.errorbar(
                [point.cost for point in points],
                [point.right for point in points],
                [1.96 * point.error for point in points],
                color=OKABE_ITO[color],
                marker=MARKERS[marker % len(MARKERS)],
                capsize=2,
            )
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else range(1, 10)))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        tiers = ", ".join(table.tier_names(menu))
        axes.set_xlabel(textwrap.fill(f"mean {COST_NAMES[table.unit]} of {tiers}", 56))
        axes.set_title(menu)
    figure.legend(named.values(), named, loc="outside right upper", fontsize=8)
    panels[0].set_ylabel("right answers")
    return figure


def print_table(table: OutcomeTable, console: Console) -> None:
    """Print what a table holds."""
    unit = table.unit
    found = table.describe()

    console.print(
        f"[bold]{escape(found['path'])}[/]: {found['rows']:,} generations, {found['questions']:,} questions, "
        f"{len(found['menus'])} menu{'s' * (len(found['menus']) != 1)}; costs in {UNIT_NAMES[unit]}, decision cost {cost_with_unit(found['decision_cost'], unit)}, samples "
        f"{'paired' if found['pairing'] else 'not paired'} across tiers",
        highlight=False,
        soft_wrap=True,
    )

    for note in found["notes"]:
        console.print(f"[yellow]Inferred:[/] {escape(note)}", highlight=False, soft_wrap=True)

    datasets = Table("dataset", title="Questions")
    datasets.add_column("questions", justify="right")
    for name, questions in found["datasets"].items():
        datasets.add_row(escape(name), f"{questions:,}")
    console.print(datasets)

    splits = Table("split", title="Splits by question")
    splits.add_column("share", justify="right")
    splits.add_column("questions", justify="right")
    for split, share in zip(SPLITS, DEFAULT_FRACTIONS, strict=True):
        splits.add_row(split, f"{share:.0%}", f"{found['splits'][split]:,}")
    console.print(splits)

    _print_tiers(found["menus"], unit, console)
    if len(found["datasets"]) > 1 and len(table.menus) <= MENUS_SHOWN:
        for menu in table.menus:
            _print_curves(menu, curves(table.select(menu)), unit, console)

    _print_problems(found["problems"], console)
    for name in table.menus if len(table.menus) <= MENUS_SHOWN else ():
        if reason := obstacle(table, name):
            text = f"{name}: {reason.removeprefix(f'{table.path}: ')}"
            console.print(f"[yellow]Not to be compared yet:[/] {escape(text)}", highlight=False, soft_wrap=True)


NONE_RIGHT = "no generation is right, so that all agents score 0: is this the right column, or the right grader?"


def obstacle(table: OutcomeTable, menu: str, tasks: int | None = None) -> str:
    """Why no exams of ``tasks`` tasks (default: as many as exams have) can be made of a menu; "" where they can."""
    from roi_env.sources.recorded import recorded_source

    if len(table.tier_names(menu)) < 2:
        return "one tier alone; import a log of another model or effort on the same questions too"
    if not table.select(menu).numbers("correct").any():
        return NONE_RIGHT
    for split in ("test", "validation"):
        try:
            questions = len(recorded_source(table, menu=menu, split=split).row_item)  # type: ignore[arg-type]
        except OutcomeTableError as error:
            return str(error)
        if questions < (tasks or _TASKS):
            return (
                f"{questions} questions in split {split!r}, fewer than the {tasks or _TASKS} tasks of an exam; import more, or compare with "
                f"--num-tasks {questions}"
            )
    return ""


def _print_problems(found: list[dict[str, str]], console: Console) -> None:
    if not found:
        console.print("No problems found.")
        return
    problems = Table("menu", "problem", "what was found", title="Problems: exams can be made, but mind these")
    for problem in found:
        problems.add_row(
            escape(problem["menu"] or "(all)"), problem["kind"].replace("_", " "), escape(problem["message"])
        )
    console.print(problems)


def _print_tiers(menus: list[dict[str, Any]], unit: Unit, console: Console) -> None:
    """Print costs and right answers of all tiers; what a narrow terminal has no room for is left out, and named: numbers stay whole."""
    rows = [(menu["menu"] if k == 0 else "", tier) for menu in menus for k, tier in enumerate(menu["tiers"])]
    samples = [(tier["samples_min"], tier["samples_max"]) for _, tier in rows]
    numbers = {
        "questions": [f"{tier['questions']:,}" for _, tier in rows],
        "samples": [f"{low}" if low == high else f"{low}-{high}" for low, high in samples],
        _MEANS[unit]: [_number(tier["tokens_mean"], unit) for _, tier in rows],
        "p50": [_number(tier["tokens_p50"], unit) for _, tier in rows],
        "p90": [_number(tier["tokens_p90"], unit) for _, tier in rows],
        "correct": [f"{tier['accuracy']:.3f}" for _, tier in rows],
    }
    # The name of the only menu stands above its tiers.
    names = ["menu", "tier"] if len(menus) > 1 else ["tier"]
    room = console.width - 1 - sum(_NAME + _BORDER for _ in names)
    left_out = []
    for column in ("p50", "samples", "p90", "questions"):
        if sum(max(map(len, (name, *cells))) + _BORDER for name, cells in numbers.items()) > room:
            del numbers[column]
            left_out.append(column)
    whose = f"{escape(menus[0]['menu'])}: tiers" if len(menus) == 1 else "Tiers"
    shown = Table(
        *names,
        title=f"{whose}, cheapest first ({COST_NAMES[unit]} and accuracy over generations)",
        caption=f"No room for {', '.join(left_out)}" if left_out else None,
    )
    for column in numbers:
        shown.add_column(column, justify="right", no_wrap=True)
    for number, (menu, tier) in enumerate(rows):
        last = number + 1 == len(rows) or bool(rows[number + 1][0])
        labels = [menu, tier["tier"]] if len(menus) > 1 else [tier["tier"]]
        shown.add_row(*map(escape, labels), *(cells[number] for cells in numbers.values()), end_section=last)
    console.print(shown)


def _number(cost: float, unit: Unit) -> str:
    """A cost below a header that names its unit."""
    return cost_text(cost, unit).removesuffix(" USD")


def _print_curves(menu: str, found: dict[str, list[Point]], unit: Unit, console: Console) -> None:
    """Print right answers by data set: as many tiers side by side as the terminal has room for, so that numbers stay whole."""
    names = list(dict.fromkeys(point.tier for points in found.values() for point in points))
    room = console.width - 1 - _NAME - _BORDER

    def cells(between: str, end: str) -> dict[tuple[str, str], str]:
        return {
            (dataset, point.tier): f"{point.right:.3f}{between}{_number(point.cost, unit)}{end}"
            for dataset, points in found.items()
            for point in points
        }

    def widest(texts: dict[tuple[str, str], str]) -> int:
        return max(len(line) for text in texts.values() for line in text.split("\n")) + _BORDER

    shown = cells(" (", ")")
    if widest(shown) * len(names) > room:
        shown = cells("\n", "")
    most = max(1, room // widest(shown))
    for first in range(0, len(names), most):
        mine = Table(
            "dataset",
            title=f"{escape(menu)} by data set: right (mean {_UNITS[unit]}), every question counting once",
        )
        for name in names[first : first + most]:
            mine.add_column(escape(name), justify="right", min_width=widest(shown) - _BORDER)
        for dataset in found:
            mine.add_row(escape(dataset), *(shown.get((dataset, name), "") for name in names[first : first + most]))
        console.print(mine)
