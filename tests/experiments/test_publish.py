"""What is published of a run: the same numbers, readable pictures, no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pyarrow.parquet as pq
from typer.testing import CliRunner

from experiments.cli import app
from experiments.publish import without_folders


def test_a_run_is_published(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = ["compare", "--variant", "signal", "--out", str(run), "--workers", "1", "exams=3", "replicates=2"]
    arguments += ["training_seeds=[0]", "--agent", "resolve", "--agent", "sb3-a2c", "steps=400"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(app, ["publish", str(run), str(out)], catch_exceptions=False).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "learning.parquet",
        "signal-improvement.png",
        "signal-learning.png",
        "signal-score.png",
        "summary.json",
        "summary.parquet",
    ]
    assert pq.read_table(out / "summary.parquet").equals(pq.read_table(run / "summary.parquet"))
    assert str(tmp_path) not in (out / "summary.json").read_text()
    rows = json.loads((out / "summary.json").read_text())["results"]
    assert rows == pq.read_table(run / "summary.parquet").to_pylist()
    for picture in out.glob("*.png"):
        pixels = matplotlib.image.imread(picture)
        assert pixels.shape[1] > 300
        assert pixels[..., :3].std() > 0.05  # not blank


def test_folders_are_cut_off() -> None:
    config = {"tuned": "/somewhere/tuned.json", "variants": [{"table": "/data/a.parquet", "budgets": [0.3]}], "n": None}
    assert without_folders(config) == {
        "tuned": "tuned.json",
        "variants": [{"table": "a.parquet", "budgets": [0.3]}],
        "n": None,
    }
