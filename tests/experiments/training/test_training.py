"""Agents that learn in the environment inside comparisons: stores of trained agents, matched steps, tuning, missing jobs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from agents.base import load_agent, make_agent, parse_agent, public_problem, save_agent
from agents.neural import Progress
from agents.playing import TrainingExams, evaluate, practice_seed
from experiments.cli import app
from experiments.commands.train import TrainConfig, read_config, train_run
from experiments.compare.jobs import run_jobs
from experiments.compare.plan import expand, plan, setting_spec
from experiments.compare.store import assemble, missing_jobs
from experiments.config import CompareConfig, ConfigError, FamilyConfig
from experiments.training.training_run import Curve, read_curve, train_stepwise, validation_exams, validation_seed
from experiments.training.tuning import SEED, read_tuning
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from tests.commands import roi

AGENT = "sb3-a2c(num_envs=8,width=8)"


def config(**changes: object) -> CompareConfig:
    values: dict = {
        "families": [FamilyConfig(family="signal", num_tasks=3)],
        "budgets": [0.3],
        "agents": ["fixed-2", AGENT],
        "exams": 5,
        "training_seeds": [0, 1],
        "replicates": 3,
        "steps": 400,
    }
    return CompareConfig(**(values | changes))


def compute(chosen: CompareConfig, run: Path, keep: slice = slice(None)) -> None:
    jobs = plan(chosen, expand(chosen))
    list(run_jobs(chosen, missing_jobs(chosen, jobs, run)[keep], run, 1))
    assemble(chosen, expand(chosen), jobs, run)


def test_training_validation_reported_and_tuning_exams_have_keys_of_their_own() -> None:
    keys = [f(s) for f in (lambda s: s, practice_seed, validation_seed) for s in (0, 1, SEED)]
    assert len(set(keys)) == len(keys)


def test_a_stored_agent_is_loaded_and_gives_the_same_scores(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    compute(config(), first)
    stored = sorted((first / "agents").glob("*.npz"))
    assert len(stored) == 2
    # Other exams, another folder: trained agents are found in the first run's store and not trained again.
    compute(config(exams=7, trained=[str(first / "agents")]), second)
    assert not (second / "agents").exists()
    before, after = (pq.read_table(run / "scores.parquet").to_pylist() for run in (first, second))
    score = {(row["agent"], row["seed"], row["exam"]): row["score"] for row in after}
    assert all(row["score"] == score[row["agent"], row["seed"], row["exam"]] for row in before)
    curves = [pq.read_table(run / "learning.parquet").to_pylist() for run in (first, second)]
    assert curves[0] == curves[1]
    assert max(row["steps"] for row in curves[0]) >= 400
    # Other steps are another training.
    compute(config(steps=480, trained=[str(first / "agents")]), second)
    assert len(list((second / "agents").glob("*.npz"))) == 2


def test_agents_without_all_their_seeds_are_missing_never_numbers(tmp_path: Path) -> None:
    compute(config(training_seeds=[0, 1, 2]), tmp_path, keep=slice(0, 4))  # references, fixed-2, two of three seeds
    assert {row["agent"] for row in pq.read_table(tmp_path / "scores.parquet").to_pylist()} == {"fixed-2"}
    missing = {row["agent"]: row for row in pq.read_table(tmp_path / "missing.parquet").to_pylist()}
    assert (missing[AGENT]["done"], missing[AGENT]["seeds"]) == (2, 3)
    assert (missing["optimum"]["done"], missing["optimum"]["seeds"]) == (0, 1)


def test_report_only_needs_reference_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference values"):
        compute(config(), tmp_path, keep=slice(0, 0))


def test_a_saved_agent_takes_part_by_its_path(tmp_path: Path) -> None:
    spec = exam_spec("signal", num_tasks=3, budget=0.3)
    agent = make_agent("sb3-a2c", public_problem(spec), steps=400, num_envs=8, width=8)
    agent.train(TrainingExams(spec, 0), 0)
    path = tmp_path / "mine.npz"
    save_agent(agent, path)
    compute(config(agents=[str(path)]), tmp_path / "run")
    rows = [r for r in pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist() if r["agent"] == str(path)]
    assert [row["score"] for row in rows] == evaluate(agent, draw_exams(spec, 0, np.arange(5))).score.tolist()
    assert {row["seed"] for row in rows} == {0}
    # Saved for another number of tiers or tasks: an error that says so, not a number.
    with pytest.raises(ConfigError, match="do not fit"):
        plan(
            config(agents=[str(path)], families=[FamilyConfig(family="signal", num_tasks=4)]),
            expand(config(families=[FamilyConfig(family="signal", num_tasks=4)])),
        )


def test_learning_curves_measure_the_agent_under_training() -> None:
    spec = exam_spec("signal", num_tasks=3, budget=0.3)
    agent = make_agent("sb3-a2c", public_problem(spec), steps=600, num_envs=8, width=8)
    validation = validation_exams(spec, 0, 20)
    curve = train_stepwise(agent, TrainingExams(spec, 0), 0, validation, points=4)
    assert len(curve) == 4
    assert [p.steps for p in curve] == sorted({p.steps for p in curve})
    assert [p.updates for p in curve] == sorted({p.updates for p in curve})
    assert curve[-1].normalised == validation.normalised(agent)
    assert all(0 <= p.normalised <= 1 + 1e-9 for p in curve)


def test_a_stopped_training_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    config_ = TrainConfig(
        agent="sb3-a2c",
        params={"steps": 4000, "num_envs": 8, "width": 8},
        family=FamilyConfig(family="signal", num_tasks=3),
    )
    seen: list[int] = []

    def stop_halfway(progress: Progress, curve: Curve) -> None:
        seen.append(progress.steps)
        if progress.steps >= 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(config_, tmp_path, stop_halfway)
    assert not (tmp_path / "agent.npz").exists()
    half = read_curve(tmp_path / "agent.parquet")
    assert read_config(tmp_path) == config_
    agent, curve = train_run(read_config(tmp_path), tmp_path, lambda progress, curve: seen.append(progress.steps))
    assert seen == sorted(set(seen))  # nothing was trained twice
    assert curve[: len(half)] == half
    assert curve[-1].steps >= 4000
    loaded = load_agent(tmp_path / "agent.npz", agent.problem)
    batch = draw_exams(setting_spec(config_.setting), 5, np.arange(4))
    assert evaluate(loaded, batch).score.tolist() == evaluate(agent, batch).score.tolist()


@pytest.mark.parametrize("agent", ["sb3-a2c", "rllib-ppo", "rllib-grpo"])
def test_a_finished_training_run_that_is_resumed_stays_as_it_is(agent: str, tmp_path: Path) -> None:
    config_ = TrainConfig(agent=agent, params={"steps": 400}, family=FamilyConfig(family="signal", num_tasks=3))
    train_run(config_, tmp_path, lambda progress, curve: None)
    files = {name: (tmp_path / name).read_bytes() for name in ("agent.npz", "agent.parquet")}
    train_run(read_config(tmp_path), tmp_path, lambda progress, curve: None)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


def test_train_command_and_its_refusals(tmp_path: Path) -> None:
    command = ["train", "sb3-a2c", "--num-tasks", "3", "--steps", "400", "--param", "num_envs=8", "--out"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "run")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "of the optimum on validation exams after 4" in " ".join(result.output.split())
    for arguments, message in (
        (["train", "random"], "does not learn in the environment"),
        (["train", "sb3-a2c", "--param", "colour=1"], "no parameter"),
        (["train", "sb3-a2c", "--param", "problem=1"], "no parameter problem"),
        (["train", "sb3-a2c", "--param", "text=1"], "no parameter text"),
        (["train", "sb3-a2c", "--menu", "gpt-4"], r"\['menu'\] belong to recorded outcomes"),
        (["train", "sb3-a2c", "--group-by", "kind"], r"\['group_by'\] belong to recorded outcomes"),
        (["train", "sb3-a2c", "--param", "width"], "must read name=value"),
        (["train", "sb3-a2c", "--runners", "2"], "RLlib"),
        (["train", "sb3-a2c", "--reward", "gold"], "reward must be one of"),
        (["train", "--resume", str(tmp_path)], "not a run folder"),
        (["train"], "name an agent"),
    ):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_run_that_goes_on_takes_no_other_choices(tmp_path: Path) -> None:
    """They would be passed over in silence: the run folder's own configuration counts."""
    run = str(tmp_path / "run")
    roi("train", "sb3-a2c", "--num-tasks", "3", "--steps", "400", "--param", "num_envs=8", "--out", run)
    for given, named in (
        (["--family", "heavy", "--budget", "0.15"], "--family, --budget"),
        (["--steps", "800"], "--steps"),
        (["--no-preview", "--tier", "low"], "--tier, --preview"),
        (["--reward", "score", "--training-seed", "0", "--out", run], "--reward, --training-seed, --out"),
        (["sb3-ppo"], "agent"),
    ):
        with pytest.raises(ConfigError, match=f"its run folder: leave out {named}$"):
            roi("train", "--resume", run, *given)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.yaml", b"- a list", "train.yaml: must hold settings"),
        ("train.yaml", b"a: [", "train.yaml: "),
        ("train.yaml", b"\xff", "train.yaml: .*decode"),
        (
            "train.yaml",
            b"{agent: sb3-a2c, family: {family: signal}, training_seed: -1}",
            r"train.yaml: seed must be an integer in \[0, ",
        ),
        ("agent.parquet", b"cut", "agent.parquet: not a learning curve .*; delete it"),
        ("checkpoint", b"", "checkpoint: not a checkpoint of an SB3 agent .EOFError.; delete it"),
    ],
)
def test_a_damaged_run_folder_is_refused_by_its_file(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    config = TrainConfig("sb3-a2c", {"steps": 400}, FamilyConfig("signal", num_tasks=3))
    train_run(config, tmp_path, lambda progress, curve: None)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        roi("train", "--resume", str(tmp_path))


@pytest.mark.parametrize("agent", ["sb3-a2c", "rllib-grpo"])
@pytest.mark.parametrize(
    "changed",
    [{"budget": 0.6}, {"reward": "rational"}, {"family": FamilyConfig("cap", num_tasks=3)}, {"order": "easy_first"}],
)
def test_a_run_whose_configuration_was_changed_does_not_go_on(
    agent: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    config = TrainConfig(agent, {"steps": 400}, FamilyConfig("signal", num_tasks=3))
    train_run(config, tmp_path, lambda progress, curve: None)
    (tmp_path / "train.yaml").unlink()
    with pytest.raises(ConfigError, match=r"a checkpoint of another run \(kind differ\)"):
        train_run(replace(config, **changed), tmp_path, lambda progress, curve: None)


def test_a_finished_run_that_goes_on_has_no_score_to_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig("sb3-a2c", {"steps": 400}, FamilyConfig("signal", num_tasks=3))
    for _ in range(2):
        train_run(config, tmp_path, lambda progress, curve: None)
    assert "NaN" not in caplog.text  # TensorBoard's writer would say so


def test_training_pays_the_named_reward_and_reports_the_score(tmp_path: Path) -> None:
    """Where tokens cost more than answers are worth, an agent learns to skip; its score is then 0 of the optimum's."""
    found = {}
    for reward in ("score", "cost_shaped(10)"):
        config = TrainConfig(
            "sb3-a2c", {"steps": 3000, "num_envs": 8}, FamilyConfig("signal", num_tasks=3), reward=reward
        )
        _, curve = train_run(config, tmp_path / reward, lambda progress, curve: None)
        found[reward] = curve[-1].normalised
    assert found["score"] > 0.7
    assert found["cost_shaped(10)"] < 0.05


def test_tuning_gives_every_agent_the_same_trials_and_resumes(tmp_path: Path) -> None:
    out, run = tmp_path / "tuned.json", tmp_path / "trials"
    command = ["tune", "--agent", "sb3-a2c", "--out", str(out), "--trials", "2", "--steps", "400"]
    command += ["--setting", "signal:0.3", "--run", str(run), "--workers", "1"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    files = {file: file.stat().st_mtime_ns for file in run.iterdir()}
    assert len(files) == 2
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in run.iterdir()} == files
    tuning = read_tuning(out)
    assert tuning.trials == 2
    record = json.loads(out.read_text())["agents"]["sb3-a2c"]
    best = max(record["trials"], key=lambda trial: trial["scores"][0])
    assert tuning.params["sb3-a2c"] == best["params"]
    # Another agent's search adds to the file.
    other = ["sb3-dqn" if word == "sb3-a2c" else word for word in command]
    assert CliRunner().invoke(app, other, catch_exceptions=False).exit_code == 0
    agents = json.loads(out.read_text())["agents"]
    assert agents["sb3-a2c"] == record
    assert agents["sb3-dqn"]["settings"] == record["settings"]
    # A comparison uses them, and refuses agents that were not tuned.
    jobs = plan(config(agents=["sb3-a2c"], tuned=str(out)), expand(config()))
    text = next(job.text for job in jobs if job.agent == "sb3-a2c")
    assert parse_agent(text)[1] == tuning.params["sb3-a2c"] | {"steps": 400}
    with pytest.raises(ConfigError, match="not tuned"):
        plan(config(agents=["sb3-ppo"], tuned=str(out)), expand(config()))


def test_unequal_tuning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    equal = {"params": {}, "trials": [1, 2], "settings": [{}], "steps": 10}
    for unequal in ({"trials": [1]}, {"settings": [{}, {}]}, {"steps": 20}):
        path.write_text(json.dumps({"agents": {"a": equal, "b": equal | unequal}}))
        with pytest.raises(ConfigError, match="different budgets"):
            read_tuning(path)
    path.write_text(json.dumps({"agents": {"a": equal, "b": {"params": {}, "trials": [1]}}}))
    with pytest.raises(ConfigError, match="not a tuning file"):
        read_tuning(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not a tuning file"):
        read_tuning(path)
