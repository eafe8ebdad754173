"""Rollouts: what a single process would record, in parts that any process may compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from agents.base import make_agent, public_problem
from agents.playing import evaluate, rollout
from experiments.cli import app
from experiments.commands.rollouts import RolloutConfig, open_run, part_file, prepare, run_here, summarise_run
from experiments.compare.plan import setting_spec
from experiments.config import ConfigError, FamilyConfig
from roi_env.exams.exam import draw_exams

VARIANT = FamilyConfig(family="heavy", num_tasks=3)
# 16 exams a part: four parts, the last one short.
CONFIG = RolloutConfig("resolve", VARIANT, 0.3, exams=50, replicates=4, part_episodes=64)


def finish(config: RolloutConfig, folder: Path) -> dict[str, bytes]:
    parts = open_run(config, folder)
    assert list(run_here(config, prepare(config), parts, folder)) == parts
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.parquet"))}


def test_parts_are_what_one_call_records(tmp_path: Path) -> None:
    files = finish(CONFIG, tmp_path)
    assert len(files) == CONFIG.parts == 4
    spec = setting_spec(CONFIG.setting)
    records = rollout(
        make_agent("resolve", public_problem(spec)), draw_exams(spec, 0, np.arange(50)), replicates=4, seed=0
    )
    rows = [row for part in range(4) for row in pq.read_table(part_file(tmp_path, part)).to_pylist()]
    assert [(row["exam"], row["replicate"]) for row in rows] == [(e, r) for e in range(50) for r in range(4)]
    assert [row["score"] for row in rows] == records.score.tolist()
    assert [row["tokens"] for row in rows] == records.tokens.sum(1).tolist()
    summary = summarise_run(CONFIG, tmp_path)
    assert summary.score == pytest.approx(records.score.mean())
    assert (summary.exams, summary.episodes) == (50, 200)


def test_an_interrupted_run_computes_what_is_missing_with_the_same_bytes(tmp_path: Path) -> None:
    whole = finish(CONFIG, tmp_path / "whole")
    folder = tmp_path / "half"
    player = prepare(CONFIG)
    started = run_here(CONFIG, player, open_run(CONFIG, folder), folder)
    next(started)
    started.close()
    with pytest.raises(ConfigError, match="3 parts are missing, the first is part-000001"):
        summarise_run(CONFIG, folder)
    assert open_run(CONFIG, folder) == [1, 2, 3]
    assert finish(CONFIG, folder) == whole
    part_file(folder, 2).unlink()
    assert open_run(CONFIG, folder) == [2]
    assert finish(CONFIG, folder) == whole


def test_a_folder_keeps_to_one_configuration(tmp_path: Path) -> None:
    finish(CONFIG, tmp_path)
    with pytest.raises(ConfigError, match=r"differ in \['agent', 'exam_seed'\]"):
        open_run(replace(CONFIG, agent="random", exam_seed=1), tmp_path)


def test_decisions_add_up_to_exams(tmp_path: Path) -> None:
    finish(CONFIG, tmp_path / "exams")
    finish(replace(CONFIG, rows="decisions"), tmp_path / "decisions")
    exams = {
        (row["exam"], row["replicate"]): row
        for part in range(4)
        for row in pq.read_table(part_file(tmp_path / "exams", part)).to_pylist()
    }
    sums: dict[tuple[int, int], dict[str, float]] = {}
    for part in range(4):
        for row in pq.read_table(part_file(tmp_path / "decisions", part)).to_pylist():
            total = sums.setdefault((row["exam"], row["replicate"]), {"tokens": 0, "score": 0.0, "decisions": 0})
            assert row["remaining"] >= row["tokens"]
            assert row["remaining"] == setting_spec(CONFIG.setting).budget - total["tokens"]
            total["tokens"] += row["tokens"]
            total["score"] += row["value"]
            total["decisions"] += 1
    assert sums.keys() == exams.keys()
    assert all(sums[key][name] == exams[key][name] for key in exams for name in ("tokens", "score", "decisions"))


@pytest.mark.parametrize("agent", ["plugin-bellman(attempts=60)", "optimum"])
def test_agents_that_learn_or_are_told_the_laws_travel(agent: str, tmp_path: Path) -> None:
    config = replace(CONFIG, agent=agent, replicates=16)
    finish(config, tmp_path)
    found = summarise_run(config, tmp_path)
    travelled = prepare(config).agent()
    exact = evaluate(travelled, draw_exams(setting_spec(config.setting), 0, np.arange(50)), law="true")
    assert exact.mode == "exact"
    noise = np.sqrt((exact.score.var() + 10.0) / found.episodes)  # weights up to 8: outcomes vary by about three
    assert found.score == pytest.approx(float(exact.score.mean()), abs=5 * noise)


def test_command_resumes(tmp_path: Path) -> None:
    command = ["rollouts", "random", "--exams", "30000", "--num-tasks", "3", "--workers", "1", "--out", str(tmp_path)]
    first = CliRunner().invoke(app, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "2 parts, 2 done already" in again.output
    assert first.output.splitlines()[-1] == again.output.splitlines()[-1]
