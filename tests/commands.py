"""The `roi` command as tests run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.terminal import console


def roi(*arguments: str, code: int = 0) -> str:
    """Run a command that must exit with ``code``; its output, in lines of up to 220 characters."""
    with pytest.MonkeyPatch.context() as patch:
        # Tests read tables: no line may be wrapped, whatever COLUMNS was when the console was made.
        patch.setattr(console, "_width", 220)
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@contextmanager
def undrawn() -> Iterator[None]:
    """Reports with empty pictures: to draw them is most of a small comparison's time, and tests of reports look at pictures."""
    from matplotlib.figure import Figure

    from experiments.report import figures

    blank = figures.draw(Figure())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda figure: blank)
        yield
