"""`roi budgets`: how the budgets of `roi serve` stand, and changes to them while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.config import ConfigError
from experiments.options import LIVE, helped
from experiments.serving.amounts import parse_amount
from experiments.terminal import Table, console
from roi_env.sources.units import cost_text, cost_with_unit

if TYPE_CHECKING:
    from roi_env.answering.database import Database

app = typer.Typer(
    no_args_is_help=True, help="Budgets of `roi serve`: show them, top them up, change them while it runs."
)
State = Annotated[Path, typer.Option(help="The proxy's folder (`roi serve --state`)")]
Address = Annotated[
    str | None, typer.Option("--database", envvar="ROI_DATABASE", help="The proxy's database (`roi serve --database`)")
]


@contextmanager
def _opened(state: Path, address: str | None) -> Iterator[Database]:
    from roi_env.answering.books import open_database
    from roi_env.answering.ledger import JournalError

    path = state / "budgets.db"
    if not address and not path.exists():
        raise ConfigError(f"{path}: there is no such database; --state must be the folder of a `roi serve`")
    try:
        base = open_database(address or path)
        try:
            yield base
        except base.errors as error:  # locked by another, or away
            raise ConfigError(f"{base.path}: it cannot be used ({error})") from error
        finally:
            base.close()
    except JournalError as error:
        raise ConfigError(str(error)) from error


@app.command("list", **helped(LIVE, "roi budgets list", "roi budgets list --state runs/serve"))
def list_(state: State = Path("runs/serve"), database: Address = None) -> None:
    """Show every budget."""
    with _opened(state, database) as base:
        shown = Table(box=None, collapse_padding=True)  # nine columns in eighty characters
        for column in ("budget", "period", "unit", "amount", "added", "charged", "reserved", "left", "charged ever"):
            shown.add_column(column, justify="left" if column in ("budget", "period", "unit") else "right")
        for one in base.states():
            left = max(0, one["tokens"] + one["added"] - one["charged"] - one["reserved"])
            numbers = (one["tokens"], one["added"], one["charged"], one["reserved"], left, one["spent"])
            tokens = one["unit"] == "tokens"
            cells = (f"{number:,}" if tokens else f"{number / 10**6:,.6f}" for number in numbers)
            shown.add_row(one["budget"], one["period"], "tokens" if tokens else "USD", *cells)
        console.print(shown)


@app.command(
    "top-up", **helped(LIVE, "roi budgets top-up team-a 50k", "roi budgets top-up team-a 1e6 --state runs/serve")
)
def top_up(
    name: Annotated[str, typer.Argument(help="The budget")],
    amount: Annotated[
        str, typer.Argument(help="What to add for the present period: tokens (50000, 50k, 1e6) or dollars (2.50usd)")
    ],
    state: State = Path("runs/serve"),
    database: Address = None,
) -> None:
    """Add tokens or dollars to a budget; a proxy that runs knows it with its next request."""
    _change(name, amount, _opened(state, database), add=True)


@app.command("set", **helped(LIVE, "roi budgets set team-a 200k", "roi budgets set team-a 50000 --state runs/serve"))
def set_(
    name: Annotated[str, typer.Argument(help="The budget")],
    amount: Annotated[str, typer.Argument(help="Of every period: tokens (50000, 50k, 1e6) or dollars (2.50usd)")],
    state: State = Path("runs/serve"),
    database: Address = None,
) -> None:
    """Give a budget another amount, until a `roi serve` starts with its own; what was charged stays charged."""
    _change(name, amount, _opened(state, database), add=False)


def _change(name: str, text: str, opened: AbstractContextManager[Database], *, add: bool) -> None:
    amount, unit = parse_amount(text, "AMOUNT")
    with opened as database:
        database.change(name, amount, add=add, unit=unit)
        (one,) = (found for found in database.states() if found["budget"] == name)
    whole = one["tokens"] + one["added"]
    left = max(0, whole - one["charged"] - one["reserved"])
    console.print(f"{name}: {cost_text(left, unit)} of {cost_with_unit(whole, unit)} left", highlight=False)
