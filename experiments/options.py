"""Options that several commands share: agents and families that people bring themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from agents.base import named_agent, use_file
from experiments.config import ConfigError
from roi_env.sources.synthetic import FAMILIES, find_family

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


def variants() -> tuple[str, ...]:
    """Kinds of exams by name alone: families, and the small language model's recorded outcomes."""
    return (*FAMILIES, "tinylm")


def check_variant(name: str) -> str:
    """Return the name of a kind of exam.

    :raises ConfigError: for an unknown one.
    """
    if name != "tinylm" and find_family(name) is None:
        raise ConfigError(f"unknown kind of exam {name!r}; there are {', '.join(variants())}")
    return name
