"""What is published of a run: the same numbers, readable pictures, no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.report.publish import without_folders
from tests.commands import undrawn


def test_a_run_is_published(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = ["compare", "--family", "signal", "--budget", "0.3", "--out", str(run), "--workers", "1", "exams=3"]
    arguments += ["replicates=2", "training_seeds=[0]", "--agent", "resolve", "--agent", "sb3-a2c", "steps=400"]
    with undrawn():
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(app, ["publish", str(run), str(out)], catch_exceptions=False).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "learning.parquet",
        "signal-improvement.png",
        "signal-learning.png",
        "signal-score.png",
        "summary.json",
        "summary.parquet",
        "tables.md",
    ]
    table = (out / "tables.md").read_text()
    assert "## signal" in table
    assert "| agent | t=0.3 | seeds | updates | CPU s |" in table
    for row in pq.read_table(out / "summary.parquet").to_pylist():
        interval = "" if row["agent"] == "optimum" else f" [{row['normalised_low']:.3f}, {row['normalised_high']:.3f}]"
        assert f"| {row['agent']} | {row['normalised']:.3f}{interval} | 1 |" in table
    assert pq.read_table(out / "summary.parquet").equals(pq.read_table(run / "summary.parquet"))
    assert str(tmp_path) not in (out / "summary.json").read_text()
    rows = json.loads((out / "summary.json").read_text())["results"]
    assert rows == pq.read_table(run / "summary.parquet").to_pylist()
    for picture in out.glob("*.png"):
        pixels = matplotlib.image.imread(picture)
        assert pixels.shape[1] > 300
        assert pixels[..., :3].std() > 0.05  # not blank


def test_folders_are_cut_off() -> None:
    config = {"tuned": "/somewhere/tuned.json", "families": [{"table": "/data/a.parquet", "budgets": [0.3]}], "n": None}
    assert without_folders(config) == {
        "tuned": "tuned.json",
        "families": [{"table": "a.parquet", "budgets": [0.3]}],
        "n": None,
    }


def _run(folder: Path, *arguments: str) -> None:
    common = ["compare", "--workers", "1", "--out", str(folder), "--agent", "resolve", "replicates=2"]
    assert CliRunner().invoke(app, [*common, *arguments], catch_exceptions=False).exit_code == 0


@pytest.mark.usefixtures("undrawn")
def test_parts_make_one_table(tmp_path: Path) -> None:
    """Settings measured in two runs, on two machines say, are published as those of one run that measured both."""
    both, parts = tmp_path / "both", tmp_path / "parts"
    _run(tmp_path / "whole", "--family", "signal", "--budget", "0.15", "--budget", "0.3", "exams=3")
    _run(tmp_path / "a", "--family", "signal", "--budget", "0.15", "exams=3")
    _run(tmp_path / "b", "--family", "signal", "--setting", "signal t=0.3", "exams=3")
    for run, out in (("whole", both), ("a", parts), ("b", parts), ("b", parts)):  # the second time changes nothing
        assert (
            CliRunner().invoke(app, ["publish", str(tmp_path / run), str(out)], catch_exceptions=False).exit_code == 0
        )

    def rows(out: Path) -> list[dict[str, object]]:
        found = pq.read_table(out / "summary.parquet").to_pylist()
        assert json.loads((out / "summary.json").read_text())["results"] == found
        return sorted(({**row, "setting": 0} for row in found), key=lambda row: (row["label"], row["agent"]))

    assert rows(both) == rows(parts)
    document = json.loads((parts / "summary.json").read_text())
    assert sorted((row["setting"], row["label"]) for row in document["settings"]) == [
        (0, "signal t=0.3"),
        (1, "signal t=0.15"),
    ]
    assert (parts / "signal-t03-score.png").exists()

    _run(tmp_path / "other", "--family", "signal", "--budget", "0.6", "exams=4")
    refused = CliRunner().invoke(app, ["publish", str(tmp_path / "other"), str(parts)])
    assert "exams=3" in str(refused.exception)
    assert rows(both) == rows(parts)


@pytest.mark.usefixtures("undrawn")
def test_folders_of_earlier_versions_are_read_and_rewritten(tmp_path: Path) -> None:
    """Their summaries lack columns and hold intervals without width: tables say what those are, new parts join them."""
    out = tmp_path / "out"
    agents = ["--agent", "bellman", "exams=3", "--family", "signal"]
    _run(tmp_path / "a", "--budget", "0.15", *agents)
    _run(tmp_path / "b", "--budget", "0.3", *agents)
    assert CliRunner().invoke(app, ["publish", str(tmp_path / "a"), str(out)], catch_exceptions=False).exit_code == 0
    new = ("coincides", "seed_shares", "worst_seed", "of_reachable", "of_reachable_low", "of_reachable_high")
    summary = pq.read_table(out / "summary.parquet").drop_columns(list(new))
    rows = summary.to_pylist()
    for row in rows:
        if row["agent"] in ("bellman", "optimum"):
            row |= {"normalised_low": 1.0, "normalised_high": 1.0}
    summary = pa.Table.from_pylist(rows, schema=summary.schema)
    pq.write_table(summary, out / "summary.parquet")
    document = json.loads((out / "summary.json").read_text()) | {"results": rows}
    (out / "summary.json").write_text(json.dumps(document))

    def lines(agent: str) -> list[str]:
        return [line for line in (out / "tables.md").read_text().splitlines() if line.startswith(f"| {agent} |")]

    assert CliRunner().invoke(app, ["publish", str(out)], catch_exceptions=False).exit_code == 0
    assert lines("bellman") == ["| bellman | 1.000, coincides with the optimum of these exams | 1 |  |  |"]
    assert lines("optimum") == ["| optimum | 1.000 | 1 |  |  |"]
    assert pq.read_table(out / "summary.parquet").equals(summary)  # numbers stay
    assert CliRunner().invoke(app, ["publish", str(tmp_path / "b"), str(out)], catch_exceptions=False).exit_code == 0
    both = "1.000, coincides with the optimum of these exams"
    assert lines("bellman") == [f"| bellman | {both} | {both} | 1 |  |  |"]

    refused = CliRunner().invoke(app, ["publish", str(tmp_path / "a")])
    assert "is a run folder: say where to publish it" in str(refused.exception)
    assert "no published folder" in str(CliRunner().invoke(app, ["publish", str(tmp_path / "none")]).exception)


@pytest.mark.usefixtures("undrawn")
def test_recorded_exams_are_compared_with_what_a_user_can_reach(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = ["compare", "--family", "tinylm", "--budget", "0.3", "--workers", "1", "--out", str(run), "exams=6"]
    arguments += ["--agent", "bellman", "--agent", "fixed-1", "replicates=2"]
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0
    assert "too high" in found.output
    assert "agent bellman) is what a user can reach" in " ".join(found.output.split())
    rows = {row["agent"]: row for row in pq.read_table(run / "summary.parquet").to_pylist()}
    (setting,) = json.loads((run / "summary.json").read_text())["settings"]
    assert setting["reachable"]["value"] == rows["bellman"]["score"]
    assert setting["optimism"] > 0
    for row in rows.values():
        assert row["of_reachable"] == row["score"] / rows["bellman"]["score"]
    assert rows["bellman"]["of_reachable_low"] is None  # the same in every exam: no interval
    assert rows["fixed-1"]["of_reachable_low"] < rows["fixed-1"]["of_reachable"] < rows["fixed-1"]["of_reachable_high"]
    assert CliRunner().invoke(app, ["publish", str(run), str(out)], catch_exceptions=False).exit_code == 0
    table = (out / "tables.md").read_text()
    assert "## tinylm: share of the train laws' optimum" in table
    assert "| bellman | 1.000, the same in every exam |" in table
