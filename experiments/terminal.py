"""The terminal of commands: one console, progress bars of one look."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(emoji=False)  # names such as "table:m:test" are text


def progress_bar() -> Progress:
    """A bar with a description, how much of how much is done and the time left."""
    return Progress(
        TextColumn("{task.description:<44.44s}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
