"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(*arguments: str, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ROI_IMPORT": ""}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_family(tmp_path: Path) -> None:
    scores = [float(line.split()[1]) for line in run(str(EXAMPLES / "own_family.py"), cwd=tmp_path).splitlines()]
    assert scores[0] == max(scores), "the optimum comes first"


def test_own_table(tmp_path: Path) -> None:
    run(str(EXAMPLES / "own_table.py"), "mine.jsonl", cwd=tmp_path)
    shown = run("-m", "experiments.cli", "table", "mine.jsonl", cwd=tmp_path)
    assert "1,200 generations, 150 questions" in shown


def test_watching_two_agents_makes_small_pictures(tmp_path: Path) -> None:
    run(str(EXAMPLES / "watch_two_agents.py"), "exam.gif", "--still", "exam.png", cwd=tmp_path)
    assert 10_000 < (tmp_path / "exam.gif").stat().st_size < 1_000_000
    assert (tmp_path / "exam.png").stat().st_size > 5_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", 4)
    previous, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), str(ROOT)
    try:
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    finally:
        if previous is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = previous
    texts = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    assert any("of the optimum" in text for text in texts)
