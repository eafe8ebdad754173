"""What `roi --help` and the commands' own help promise."""

from __future__ import annotations

import shlex

import click
import pytest
import typer

from experiments.cli import app

GROUP = typer.main.get_command(app)


def commands() -> dict[str, click.Command]:
    """Every command by its words, e.g. ``llm report``."""
    found = {}
    for name, command in GROUP.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            found |= {f"{name} {inner}": one for inner, one in command.commands.items()}
        else:
            found[name] = command
    return found


def test_groups_come_in_the_order_of_a_users_ways() -> None:
    panels = [command.rich_help_panel for command in GROUP.commands.values()]  # type: ignore[attr-defined]
    assert list(dict.fromkeys(panels)) == ["Compare", "Train", "Live", "Data", "Language models"]


@pytest.mark.parametrize("name", commands())
def test_help_ends_with_examples_whose_options_exist(name: str) -> None:
    title, *examples = (commands()[name].epilog or "").split("\n\n")
    assert title == "Examples:"
    assert len(examples) >= 2
    for line in (part for example in examples for part in example.split("   then   ")):
        program, *words = shlex.split(line.split("   (")[0])
        assert program == "roi", line
        command = next(c for known, c in commands().items() if f"{' '.join(words)} ".startswith(f"{known} "))
        taken = {option for parameter in command.params for option in parameter.opts}
        if name != "llm pipeline":  # hands options on to its stages
            assert {word for word in words if word.startswith("--")} <= taken | {"--help"}, line
