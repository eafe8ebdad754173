"""Options that several commands share: the kind of exam, and agents and families that people bring themselves."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from agents.base import is_saved, named_agent, use_file
from experiments.config import ConfigError, FamilyConfig
from roi_env.exams.config import BUDGET_PRESETS, ORDERS, Beliefs, Enforcement, Feedback, parse_budget
from roi_env.sources.packaged import PACKAGED
from roi_env.sources.synthetic import FAMILIES, find_family
from roi_env.sources.table_files import HUB

COMPARE, TRAIN, LIVE, DATA, MODELS = "Compare", "Train", "Live", "Data", "Language models"
"""Groups of commands, in the order of a user's ways."""


def helped(group: str, *examples: str) -> dict[str, Any]:
    """What `roi --help` and a command's own help say: its group, and examples at the end."""
    return {"rich_help_panel": group, "epilog": "\n\n".join(("Examples:", *examples))}


_Text = TypeVar("_Text", str, list[str], None)


def _import(files: list[Path] | None) -> list[Path] | None:
    for file in files or ():
        try:
            use_file(file)
        except ValueError as error:
            raise ConfigError(f"--import {error}") from error
    return files


Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        help="Python file with agents (FILE:CLASS) or families of your own; repeatable",
        callback=_import,
        is_eager=True,
    ),
]


def own_agents(texts: _Text) -> _Text:
    """Import the files that agents are named by: ``own.py:Mine`` becomes ``own:Mine``.

    :raises ConfigError: where a file cannot be imported, or has no such agent.
    """
    try:
        if isinstance(texts, str):
            return named_agent(texts)
        return None if texts is None else [named_agent(text) for text in texts]
    except ValueError as error:
        raise ConfigError(str(error)) from error


def refuse_choices(context: typer.Context, *where: str) -> None:
    """Refuse whatever was given beside ``--resume``, but for options that say where and how the work is done.

    :param where: names of those.
    :raises ConfigError: naming the others.
    """
    given = [
        one.opts[0]
        for one in context.command.params
        if one.name not in ("resume", *where)
        and getattr(context.get_parameter_source(str(one.name)), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise ConfigError(f"--resume takes the configuration of its run folder: leave out {', '.join(given)}")


def family_names() -> tuple[str, ...]:
    """Task families by name, and those of packaged outcomes."""
    return (*FAMILIES, *PACKAGED)


def check_family(name: str) -> str:
    """Return the name of a task family.

    :raises ConfigError: for an unknown one.
    """
    if name not in PACKAGED and find_family(name) is None:
        raise ConfigError(f"unknown family {name!r}; there are {', '.join(family_names())}")
    return name


@dataclass(frozen=True)
class ChosenExam:
    """The kind of exam that a command was given.

    :param said: whether the command line named a family or a table.
    """

    family: FamilyConfig
    budget: int | float | str
    order: str
    said: bool


def read_budget(text: str) -> int | float | str:
    """A budget of the command line.

    :raises ConfigError: for anything but tokens, a fraction or a preset's name.
    """
    try:
        return parse_budget(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def absolute(path: Path | str | None) -> str | None:
    """Where a path leads from anywhere; a data set of the hub has its name."""
    if path is None or str(path).startswith(HUB):
        return None if path is None else str(path)
    return str(Path(path).absolute())


def absolute_predictor(name: str) -> str:
    """A predictor whose file is found from anywhere; kinds to fit are named as they are."""
    return str(Path(name).absolute()) if is_saved(name) else name


PREDICTORS = "text, surface, neighbours, given:COLUMN, embedding:MODEL, hidden:MODEL, levels:MODEL"
BUDGET_HELP = (
    f"Fraction of N x mean top-tier cost (0.3), tokens (512, 50k), dollars (2.50usd, of a table that costs them), or "
    f"{', '.join(BUDGET_PRESETS)}"
)


def _one_of(values: Any) -> str:
    return ", ".join(values)


EXAM_OPTIONS: dict[str, tuple[Any, Any]] = {
    "family": (
        Annotated[str | None, typer.Option(help=f"Task family: {_one_of(family_names())}; default: signal")],
        None,
    ),
    "table": (Annotated[Path | None, typer.Option(help="Recorded outcomes (Parquet, CSV, JSONL) instead")], None),
    "menu": (Annotated[str | None, typer.Option(help="Which of the table's menus of comparable tiers")], None),
    "datasets": (
        Annotated[list[str] | None, typer.Option("--dataset", help="Only the table's questions of it; repeatable")],
        None,
    ),
    "group_by": (Annotated[str | None, typer.Option(help="Column of the table that is published")], None),
    "predictor": (
        Annotated[
            str | None,
            typer.Option(
                help=f"Publish the groups of this predictor of texts ({PREDICTORS}, or a file of `roi predict fit`)"
            ),
        ],
        None,
    ),
    "missing": (
        Annotated[str | None, typer.Option(help="Questions without generations at a tier: drop, mask")],
        None,
    ),
    "tiers": (Annotated[list[str] | None, typer.Option("--tier", help="Offer only this tier; repeatable")], None),
    "num_tasks": (Annotated[int | None, typer.Option(help="Tasks of an exam", min=1)], None),
    "budget": (Annotated[str, typer.Option(help=BUDGET_HELP)], "0.3"),
    "order": (Annotated[str, typer.Option(help=_one_of(ORDERS))], "random"),
    "preview": (Annotated[bool, typer.Option(help="Show later tasks")], True),
    "beliefs": (Annotated[str, typer.Option(help=f"{_one_of(get_args(Beliefs))} (laws must be learned)")], "published"),
    "feedback": (Annotated[str | None, typer.Option(help=_one_of(get_args(Feedback)))], None),
    "coupling": (Annotated[str | None, typer.Option(help="Between tiers: independent, common")], None),
    "enforcement": (Annotated[str, typer.Option(help=_one_of(get_args(Enforcement)))], "budget"),
    "decision_cost": (Annotated[int | None, typer.Option(help="Tokens that every action costs besides", min=0)], None),
}
"""The fields of an exam's description as options, with their defaults."""


_Options = dict[str, tuple[Any, Any]]
"""Options by name: each with its annotation and its default."""


def _expanded(
    command: Callable[..., None], groups: dict[str, tuple[_Options, Callable[..., Any]]]
) -> Callable[..., None]:
    """Replace parameters of a command by options, from which their values are made."""

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        made = {name: make(**{one: values.pop(one) for one in options}) for name, (options, make) in groups.items()}
        command(**values, **made)

    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        own: _Options = {name: (hints[name], parameter.default)}
        parameters += [
            inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for one, (hint, default) in groups.get(name, (own, None))[0].items()
        ]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    del with_options.__wrapped__  # type: ignore[attr-defined]  # Sphinx reads defaults there, and finds too few
    return with_options


def exam_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with a parameter ``exam: ChosenExam`` the options that describe an exam."""
    return _expanded(command, {"exam": (EXAM_OPTIONS, _chosen_exam)})


def _chosen_exam(*, table: Path | None, family: str | None, budget: str, order: str, **chosen: Any) -> ChosenExam:
    if table is not None and family is not None and family != "paper":
        raise ConfigError("--family and --table exclude each other")
    named = family or ("signal" if table is None else "recorded")
    chosen["predictor"] = chosen["predictor"] and absolute_predictor(chosen["predictor"])
    said = family is not None or table is not None
    return ChosenExam(FamilyConfig(family=named, table=absolute(table), **chosen), read_budget(budget), order, said)


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of its parameters that are dataclasses as options: groups that belong together."""
    groups: dict[str, tuple[_Options, Callable[..., Any]]] = {}
    for name, kind in get_type_hints(command).items():
        if isinstance(kind, type) and is_dataclass(kind):
            hints = get_type_hints(kind, include_extras=True)
            groups[name] = ({field.name: (hints[field.name], field.default) for field in fields(kind)}, kind)
    return _expanded(command, groups)
