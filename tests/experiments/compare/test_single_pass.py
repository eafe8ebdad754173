"""Exams in one pass on the command line: in one table with agents that decide, and trained by `roi train`."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="needs the extra [llm]")
pytest.importorskip("ray", reason="needs the extra [rllib]")

from experiments.cli import app
from experiments.compare.jobs import run_jobs
from experiments.compare.plan import expand, plan
from experiments.compare.store import assemble, missing_jobs
from experiments.config import CompareConfig, ConfigError, FamilyConfig


def test_both_kinds_of_agents_stand_in_one_table(tmp_path: Path) -> None:
    config = CompareConfig(
        families=[FamilyConfig(family="tinylm", num_tasks=2)],
        budgets=[0.3],
        agents=["tinylm-mcft", "exam-taker(model='tinylm-mcft',replicates=2)", "exam-plan-and-solve(replicates=1)"],
        exams=4,
        replicates=3,
    )
    jobs = plan(config, expand(config))
    list(run_jobs(config, missing_jobs(config, jobs, tmp_path), tmp_path, 1))
    assemble(config, expand(config), jobs, tmp_path)
    tables = {file.stem: pq.read_table(file).to_pylist() for file in tmp_path.glob("*.parquet")}
    budget = tables["settings"][0]["budget"]
    modes = {row["agent"]: row["evaluation"] for row in tables["scores"]}
    assert modes.pop("tinylm-mcft") == modes.pop("optimum") == "exact"
    assert set(modes.values()) == {"sampled"}
    assert all(0 < row["tokens"] <= budget for row in tables["scores"] if row["agent"] in modes)
    drawn = [row for row in tables["trajectory"] if row["agent"] in modes and row["exam"] == 0]
    assert {row["agent"] for row in drawn} == set(modes)
    assert all(row["remaining_after"] == row["remaining_before"] - row["tokens"] for row in drawn)
    # Live text has a seed: the same comparison again finds every job, another seed none.
    assert not missing_jobs(config, jobs, tmp_path)


def test_training_is_one_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # agents are called by their paths, which figures have little room for
    arguments = ["train", "grpo", "--policy", "llm", "--mode", "single-pass", "--num-tasks", "2", "--budget", "20"]
    for setting in ("exams=8", "minibatch=8", "group=4", "replicates=1", "epochs=1"):
        arguments += ["--param", setting]
    done = CliRunner().invoke(app, [*arguments, "--steps", "100", "--out", "run"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    again = CliRunner().invoke(app, ["train", "--resume", "run"])
    assert again.exit_code == 0, (again.output, again.exception)
    compared = ["compare", "--family", "tinylm", "--num-tasks", "2", "--budget", "20", "--workers", "1"]
    compared += ["--agent", "run/agent.npz", "--out", "compared", "exams=2"]
    shown = CliRunner().invoke(app, compared)
    assert shown.exit_code == 0, (shown.output, shown.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo", "--policy", "llm", "--mode", "single-pass"], "belongs to grpo"),
        (["grpo", "--mode", "single-pass"], "belongs to grpo"),
        (["grpo", "--policy", "llm", "--mode", "twice"], "decisions or single-pass"),
    ],
)
def test_modes_that_there_are_not_are_refused(arguments: list[str], message: str) -> None:
    refused = CliRunner().invoke(app, ["train", *arguments])
    assert isinstance(refused.exception, ConfigError)
    assert message in str(refused.exception)
