"""The terminal of commands: one console, progress bars of one look."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.table import Table as RichTable

from experiments.training.workers import STOPPED, ends_promptly

console = Console(emoji=False)  # names such as "table:m:test" are text
LOG_SECONDS = 60.0
"""How often bars are written where nothing can be drawn anew."""


@contextmanager
def heard_or_not() -> Iterator[None]:
    """What is printed in this is lost where nobody reads it any more, or its disk is full: the work goes on."""
    with suppress(OSError, SystemExit):  # of rich, whose reader is gone
        yield


class Table(RichTable):
    """A table that wraps what its columns are too narrow for; rich cuts it, digits of numbers included."""

    def add_column(self, header: RenderableType = "", *rest: Any, **options: Any) -> None:
        """As rich's."""
        super().add_column(header, *rest, **{"overflow": "fold", **options})


def stacked(text: str) -> str:
    """A value with what stands in brackets below it: side by side, several columns of them are too wide for 80 characters."""
    return text.replace(" [", "\n[").replace(" (", "\n(")


class _Bars(Progress):
    """Bars; in a log, which cannot draw them anew, they are written again every minute that something is done."""

    _written = 0.0

    def start(self) -> None:
        """As rich's."""
        self._written = self.get_time()
        super().start()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As rich's."""
        super().update(task_id, **changes)
        self._write()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As rich's."""
        super().advance(task_id, advance)
        self._write()

    def _write(self) -> None:
        if not self.console.is_terminal and self.get_time() - self._written > LOG_SECONDS:
            self._written = self.get_time()
            self.console.print(self.make_tasks_table(self.tasks))


def counted(number: int, noun: str) -> str:
    """A number of things, in words: "1 exam", "2 exams"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def progress_bar() -> Progress:
    """A bar with a description, how much of how much is done and the time left."""
    return _Bars(
        TextColumn("{task.description:<36.36s}"),
        BarColumn(),
        # The bar alone gives way in a narrow terminal.
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("left"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
    )


def interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt is behind an error: compiled code that is interrupted while it begins raises a SystemError,
    one a layer, each with the former as its cause."""
    while isinstance(error, SystemError):
        error = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt)


@contextmanager
def interruptible(stopped: Callable[[], str]) -> Iterator[None]:
    """Work that Ctrl-C and SIGTERM end within seconds.

    :param stopped: what to say then: what is kept, how to go on.
    """
    try:
        with ends_promptly():
            yield
    except (KeyboardInterrupt, SystemError) as error:
        if not interrupted(error):
            raise
        console.print(f"\nStopped. {stopped()}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(STOPPED) from None


def end_like_an_interrupt() -> None:
    """Let SIGTERM, which schedulers and service managers send, end this process as Ctrl-C does: with what there is."""
    ours = os.getpid()

    def ended(number: int, frame: FrameType | None) -> None:
        if os.getpid() == ours:
            signal.raise_signal(signal.SIGINT)
        else:  # a forked worker ends at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, ended)
    # A shell's script ignores it for what it starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
