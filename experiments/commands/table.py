"""``roi table FILE``: what an outcome table holds, and what to know before exams are made of it."""

from __future__ import annotations

import os

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roi_env.sources.outcome_tables import DEFAULT_FRACTIONS, SPLITS, OutcomeTable
from roi_env.sources.units import COST_NAMES, UNIT_NAMES, cost_text, cost_with_unit


def describe_table(path: str | os.PathLike[str], console: Console | None = None) -> None:
    """Print what was inferred, menus, tiers, tokens, accuracy, questions, splits and problems of a table.

    :param console: where to print (default: standard output).
    :raises OutcomeTableError: for a malformed file, naming file, column and first offending row.
    """
    print_table(OutcomeTable.read(path), console or Console(emoji=False))


def print_table(table: OutcomeTable, console: Console) -> None:
    """Print what a table holds."""
    unit = table.unit
    found = table.describe()

    console.print(
        f"[bold]{escape(found['path'])}[/]: {found['rows']:,} generations, {found['questions']:,} questions, "
        f"{len(found['menus'])} menus; costs in {UNIT_NAMES[unit]}, decision cost {cost_with_unit(found['decision_cost'], unit)}, samples "
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

    tiers = Table("menu", "tier", title=f"Tiers, cheapest first ({COST_NAMES[unit]} and accuracy over generations)")
    for column in ("questions", "samples", COST_NAMES[unit], "p50", "p90", "correct"):
        tiers.add_column(column, justify="right")
    for menu in found["menus"]:
        for k, tier in enumerate(menu["tiers"]):
            low, high = tier["samples_min"], tier["samples_max"]
            tiers.add_row(
                "" if k else escape(menu["menu"]),
                escape(tier["tier"]),
                f"{tier['questions']:,}",
                f"{low}" if low == high else f"{low}-{high}",
                cost_text(tier["tokens_mean"], unit),
                cost_text(tier["tokens_p50"], unit),
                cost_text(tier["tokens_p90"], unit),
                f"{tier['accuracy']:.3f}",
                end_section=k == len(menu["tiers"]) - 1,
            )
    console.print(tiers)

    if not found["problems"]:
        console.print("No problems found.")
        return
    problems = Table("menu", "problem", "what was found", title="Problems: exams can be made, but mind these")
    for problem in found["problems"]:
        problems.add_row(
            escape(problem["menu"] or "(all)"), problem["kind"].replace("_", " "), escape(problem["message"])
        )
    console.print(problems)
