"""What commands print is whole, however narrow the terminal is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments.terminal import Table


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
