"""What commands print is whole, however narrow the terminal is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments import terminal
from experiments.terminal import Table, progress_bar


@pytest.mark.parametrize("width", [1, 12, 20, 40])
def test_tables_cut_nothing(width: int) -> None:
    shown = Table("agent", title="x")
    shown.add_column("left", justify="right")
    shown.add_row("own_agent:Careful(margin=2.0)", "1,019,976")
    out = io.StringIO()
    Console(file=out, width=width).print(shown)
    assert "…" not in out.getvalue()
    if width >= 12:
        cells = [[cell.strip() for cell in line.split("│")] for line in out.getvalue().splitlines() if "│" in line]
        assert "".join(row[1] for row in cells) == "own_agent:Careful(margin=2.0)"
        assert "".join(row[2] for row in cells) == "1,019,976"


def test_a_log_has_its_bars_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, width=80))
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
    with progress_bar() as bar:
        task = bar.add_task("reading", total=123456)
        for _ in range(3):
            bar.advance(task)
        bar.update(task, completed=77777)
    lines = out.getvalue().splitlines()
    assert [line.split()[-4] for line in lines[:4]] == [f"{done}/123456" for done in (1, 2, 3, 77777)]
    assert "…" not in out.getvalue()
    monkeypatch.setattr(terminal, "LOG_SECONDS", 3600.0)
    with progress_bar() as bar:
        bar.advance(bar.add_task("quick", total=2))
    assert out.getvalue().count("quick") == 1  # at its end, as ever
