"""The comparison runner and the `roi` command, on comparisons small enough to run whole."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from agents.base import AGENTS, make_agent, named_agent, public_problem
from agents.playing import rollout
from experiments.cli import app, main
from experiments.compare.jobs import run_jobs
from experiments.compare.plan import expand, make_for, plan, setting_spec
from experiments.compare.store import (
    assemble,
    content_hash,
    exam_identity,
    job_file,
    missing_jobs,
    to_train,
    training_identity,
)
from experiments.config import CompareConfig, ConfigError, FamilyConfig, at_budgets, load_config
from experiments.report.analysis import summarise
from roi_env.exams.exam import draw_exams
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.published import publish_table


def small() -> CompareConfig:
    return CompareConfig(
        families=[FamilyConfig(family="signal", num_tasks=3), FamilyConfig(family="heavy", num_tasks=3)],
        budgets=[0.3],
        agents=["random", "fixed-2", "roi", "plugin-bellman"],
        exams=8,
        training_seeds=[0, 1],
        replicates=5,
    )


def finish(config: CompareConfig, run: Path, workers: int = 1) -> dict[str, list[dict]]:
    settings = expand(config)
    jobs = plan(config, settings)
    run.mkdir(exist_ok=True)
    list(run_jobs(config, missing_jobs(config, jobs, run), run, workers))
    assemble(config, settings, jobs, run)
    return {file.stem: pq.read_table(file).to_pylist() for file in sorted(run.glob("*.parquet"))}


def test_no_agent_beats_the_optimum_exam_by_exam(tmp_path: Path) -> None:
    tables = finish(small(), tmp_path / "run")
    optimum = {(row["setting"], row["exam"]): row for row in tables["references"]}
    assert len(optimum) == 16
    for row in tables["scores"]:
        assert row["evaluation"] == "exact"
        assert row["score"] <= optimum[row["setting"], row["exam"]]["optimum"] + 1e-9
    seeds = {(row["agent"], row["seed"]) for row in tables["scores"]}
    assert {("roi", 1), ("plugin-bellman", 1)} <= seeds
    assert ("random", 1) not in seeds


def test_level_accuracy_is_that_of_sampled_exams(tmp_path: Path) -> None:
    config = dataclasses.replace(small(), agents=["fixed-2"], training_seeds=[0])
    finish(config, tmp_path / "run")
    found = {(row["setting"], row["agent"]): row for row in summarise(tmp_path / "run").to_pylist()}
    for setting in expand(config):
        spec = setting_spec(setting)
        batch = draw_exams(spec, config.exam_seed, np.arange(config.exams))
        records = rollout(make_agent("fixed-2", public_problem(spec)), batch, replicates=400, law="published")
        expected = records.level_match[records.action > 0].mean()
        assert 0.1 < expected < 0.9
        assert found[setting.number, "fixed-2"]["level_accuracy"] == pytest.approx(expected, abs=0.03)


def test_results_depend_on_neither_processes_nor_interruptions(tmp_path: Path) -> None:
    config = small()
    whole = finish(config, tmp_path / "whole")
    halves = tmp_path / "halves"
    halves.mkdir()
    jobs = plan(config, expand(config))
    list(run_jobs(config, jobs[::2], halves, 1))
    assert len(missing_jobs(config, jobs, halves)) == len(jobs) - len(jobs[::2])
    assert repr(finish(config, halves, workers=2)) == repr(whole)  # repr: nan is not equal to itself


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_an_agent_names_it(workers: int, tmp_path: Path) -> None:
    (tmp_path / f"broken{workers}.py").write_text("""
from agents.base import Agent


class Broken(Agent):
    def act(self, view, state):
        raise KeyError("no such thing")
""")
    broken = named_agent(f"{tmp_path}/broken{workers}.py:Broken")
    config = dataclasses.replace(small(), agents=[broken], training_seeds=[0])
    jobs = [job for job in plan(config, expand(config)) if job.agent == broken][:2]
    with pytest.raises(KeyError, match="no such thing") as caught:
        list(run_jobs(config, jobs, tmp_path, workers))
    assert f"broken{workers}:Broken in" in "".join(caught.value.__notes__)


def test_a_worker_that_is_lost_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "lost.py").write_text("""
import os

from agents.base import Agent


class Lost(Agent):
    def act(self, view, state):
        os.kill(os.getpid(), 9)
""")
    command = [
        sys.executable,
        "-m",
        "experiments",
        "compare",
        "--family",
        "signal",
        "--num-tasks",
        "2",
        "--budget",
        "0.3",
    ]
    command += ["--agent", "lost.py:Lost", "--workers", "2", "--out", "run", "exams=2"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("roi: a worker process was ended"), ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_default_comparison_finds_its_trained_agents(tmp_path: Path) -> None:
    """`make compare` takes minutes because nothing is trained in it: every learner's weights lie in the repository."""
    folder = Path(__file__).parents[3] / "experiments"
    config = load_config(folder / "configs/compare.yaml", [])
    jobs = plan(config, expand(config))
    trained = {path.stem for path in (folder / "trained").glob("*.npz")}
    learners = [job for job in jobs if job.agent.startswith(("rllib-", "sb3-"))]
    assert len(learners) == len(trained) > 0
    assert to_train(config, jobs, tmp_path) == []
    manifest = json.loads((folder / "trained/manifest.json").read_text())
    described = [
        {"setting": job.setting.label}
        | training_identity(job, make_for(job.text, job.setting, setting_spec(job.setting)))
        for job in learners
    ]
    assert sorted(manifest.values(), key=json.dumps) == sorted(json.loads(json.dumps(described)), key=json.dumps)
    assert {Path(name).stem for name in manifest} == trained
    longer = dataclasses.replace(config, steps=500_001)
    again = plan(longer, expand(longer))
    assert [job.agent for job in to_train(longer, again, tmp_path)] == [job.agent for job in learners]


def tiered_table(path: Path, tiers: int, copies: int = 1) -> Path:
    """40 texts, each under ``copies`` ids."""
    rows = [
        {"dataset": "d", "question_id": f"{text}-{copy}", "question": f"number {text}", "answer": "ABD"[(text + k + s) % 3],
         "menu": "m", "tier": f"t{k}", "tokens": 4 * 3**k + s, "correct": (text * 7 + s) % tiers <= k}
        for text in range(40) for copy in range(copies) for k in range(tiers) for s in range(2)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("tiers", [1, 2, 5])
def test_the_default_comparison_has_a_fixed_agent_for_every_tier(tmp_path: Path, tiers: int) -> None:
    """The table's answers differ between generations, its tiers have no order and its samples no numbers: it is read."""
    path = tiered_table(tmp_path / "t.jsonl", tiers)
    variant = FamilyConfig(family="recorded", table=str(path), menu="m", num_tasks=3)
    config = CompareConfig(families=[variant], budgets=[0.3], exams=3, training_seeds=[0])
    fixed = [job.agent for job in plan(config, expand(config)) if job.agent.startswith("fixed")]
    assert fixed == [f"fixed-{tier}" for tier in range(1, tiers + 1)]
    config.agents = ["fixed-{tier}", "fixed-1", "plugin-bellman(attempts=20)"]
    rows = finish(config, tmp_path / "run")["scores"]
    assert {row["agent"] for row in rows} == {*fixed, "plugin-bellman(attempts=20)", "optimum"}


def test_jobs_depend_on_which_questions_are_one(tmp_path: Path) -> None:
    """Where texts repeat, splits follow them: what was trained on another split is not taken for it."""
    alone, copied = (tiered_table(tmp_path / f"{copies}.jsonl", 2, copies) for copies in (1, 2))
    names = {}
    for path in (alone, copied):
        variant = FamilyConfig(family="recorded", table=str(path), menu="m", num_tasks=3)
        config = CompareConfig(families=[variant], budgets=[0.3], agents=["random"])
        names[path] = exam_identity(expand(config)[0])
        train, test = (setting_spec(expand(config)[0], split).source for split in ("train", "test"))
        assert not set(train.texts) & set(test.texts)
    assert "same_text" not in names[alone]
    assert "same_text" in names[copied]


def test_another_question_is_another_job(tmp_path: Path) -> None:
    config = small()
    finish(config, tmp_path)
    config.exams = 9
    jobs = plan(config, expand(config))
    assert missing_jobs(config, jobs, tmp_path) == jobs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["exams=0"], "exams"),
        (["training_seeds=[]"], "training_seeds must not be empty"),
        (["training_seeds=[0,1,0]"], r"training_seeds must differ, got \[0, 1, 0\]"),
        (["exams=many"], "exams"),
        (["budgts=[0.3]"], "budgts"),
        (["agents=[]"], "agents"),
        (["exams"], "name=value"),
        (["families=[{family: signal}]", "families.1.num_tasks=3"], "families"),
        (["families=[{family: signal}]", "families.0.colour=red"], "colour"),
    ],
)
def test_configuration_errors_name_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


FILE = "families: [{family: signal}]\nexams: 7\n"


@pytest.mark.parametrize(
    ("text", "overrides", "to_blame", "message"),
    [
        (FILE, ["exams=many"], "override 'exams=many'", "many"),
        (FILE, ["exam_seed=1", "exams=0"], "override 'exams=0'", "at least 1"),
        (FILE, ["exams=0", "exam_seed=1"], "override 'exams=0'", "at least 1"),
        (FILE, ["exam=3"], "override 'exam=3'", "exam"),
        (FILE, ["exam_seed"], "override 'exam_seed'", "name=value"),
        (FILE, ["families.4.family=cap"], "override 'families.4.family=cap'", ""),
        (FILE, ["families.0.colour=red"], "override 'families.0.colour=red'", "colour"),
        (FILE, ["families=[{name: mine}]"], "override 'families=[{name: mine}]'", "family"),
        (FILE, ["budgets=[plenty]"], "override 'budgets=[plenty]'", "plenty"),
        (FILE, ["families.0.budgets=[30%]"], "override 'families.0.budgets=[30%]'", "30%"),
        (FILE, ["exam_seed=-1"], "override 'exam_seed=-1'", "seed"),
        (FILE, ["training_seeds=[0,true]"], "override 'training_seeds=", "true"),
        (FILE, ["agents=[", "exam_seed=1"], "override 'agents=['", ""),
        ("families: [{name: mine}]", ["exams=3"], "FILE", "family"),
        ("exams: 0", ["exam_seed=1"], "FILE", "at least 1"),
        ("exams: 0", ["exams=-1"], "override 'exams=-1'", "-1"),
        ("exam: 3", ["exams=3"], "FILE", "exam"),
        ("budgets: [tight, plenty]", [], "FILE", "plenty"),
        ("exams: [", ["exams=3"], "FILE", ""),
        ("- exams", [], "FILE", "list"),
        ("families: {a: b}", [], "FILE", "container"),
        ("families: [a]", [], "FILE", ""),
        ("exams: \udcff", [], "FILE", ""),
        (None, ["exams=3"], "FILE", "no such configuration file"),
    ],
)
def test_configuration_errors_name_their_source(
    tmp_path: Path, text: str | None, overrides: list[str], to_blame: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as refused:
        load_config(path, overrides)
    told = str(refused.value)
    assert told.startswith(str(path) if to_blame == "FILE" else to_blame), told
    assert message in told
    assert to_blame == "FILE" or str(path) not in told


def test_what_a_file_leaves_open_overrides_may_fill_in(tmp_path: Path) -> None:
    (tmp_path / "half.yaml").write_text("families: [{name: mine}]\nbudgets: [tight, '512', 0.6]\n")
    config = load_config(tmp_path / "half.yaml", ["families.0.family=cap", "families.0.budgets=[ample]"])
    assert (config.families[0].family, config.families[0].budgets) == ("cap", [0.6])
    assert config.budgets == [0.15, 512, 0.6]


def test_budgets_and_numbers_of_the_command_line_are_those_of_the_environments() -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["play", "--agent", "random", *arguments])

    plays = [run("--budget", text) for text in ("tight", "0.15", " .15")]
    assert {play.exit_code for play in plays} == {0}
    assert len({play.output for play in plays}) == 1
    with pytest.warns(UserWarning, match=r"write 1\.0"):
        assert run("--budget", "1").exit_code == 0
    for text in ("plenty", "30%", "²", "true", "", "1_000x"):
        assert isinstance(run("--budget", text).exception, ConfigError)
    for text in ("0", "0.0", "nan", "inf", "-1", "11.0", str(2**31)):
        refused = run("--budget", text).exception
        assert isinstance(refused, ConfigError), text
        assert "budget" in str(refused)
    assert run("--exam", str(2**62 - 1)).exit_code == 0
    assert run("--exam-seed", str(2**64 - 1)).exit_code == 0
    for option, text in (
        ("exam", str(2**62)),
        ("exam", "-1"),
        ("exam", "1.5"),
        ("exam-seed", str(2**64)),
        ("exam-seed", "-1"),
    ):
        refused = run(f"--{option}", text)
        assert refused.exit_code == 2
        assert f"--{option}" in refused.output


def test_overrides_reach_into_families() -> None:
    config = load_config(
        None, ["families=[{family: signal}, {family: cap}]", "families.1.num_tasks=4", "budgets=[0.3]"]
    )
    assert [(v.family, v.num_tasks) for v in config.families] == [("signal", None), ("cap", 4)]
    assert config.budgets == [0.3]


def test_families_and_budgets_of_the_command_line_choose_among_all_entries_of_a_family() -> None:
    """The published comparison has two entries of `heavy`, and of `signal`, at different budgets with different agents."""

    def planned(*arguments: str) -> list[str]:
        done = CliRunner().invoke(app, ["compare", *arguments, "--dry-run"], terminal_width=400)
        assert done.exit_code == 0, done.output
        return [line.split(":")[0].strip() for line in done.output.splitlines() if line.startswith("  ")]

    one = ("--agent", "fixed-1")
    assert planned("--family", "heavy", *one) == ["heavy t=0.15", "heavy t=0.3", "heavy t=0.6"]
    everywhere = planned("--budget", "0.5", "--budget", ".5", *one)
    assert len(everywhere) == len(set(everywhere))
    assert {"heavy t=0.5", "signal t=0.5", "paper t=0.5 hard_first"} <= set(everywhere)

    families = [
        FamilyConfig(family="signal", budgets=[0.15, 0.6]),
        FamilyConfig(family="signal", budgets=[0.3], agents=["sb3-ppo"]),
        FamilyConfig(family="signal", num_tasks=4, agents=["sb3-a2c"]),
    ]
    chosen = at_budgets(families, [0.3, 0.2])
    assert [(one.budgets, one.num_tasks, one.agents) for one in chosen] == [
        ([0.3], None, ["sb3-ppo"]),
        ([0.2], None, []),
        ([0.3], 4, ["sb3-a2c"]),
        ([0.2], 4, ["sb3-a2c"]),
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_small_table_on_the_command_line(tmp_path: Path) -> None:
    """A table whose names look like emoji codes, shorter exams, and a budget at which nothing can be won."""
    lines = ["dataset,question_id,question,answer,family,tier,tier_order,tokens,correct,sample"]
    lines += [f"d,q{q},?,a,m,{t},{k + 1},{10 * k + 10},true,0" for q in range(20) for k, t in enumerate(("lo", "hi"))]
    (tmp_path / "good.csv").write_text("\n".join(lines) + "\n")
    arguments = ["compare", "--table", str(tmp_path / "good.csv"), "--agent", "random", "--workers", "1"]
    arguments += ["--out", str(tmp_path / "run"), "exams=6", "replicates=2", "--budget", "0.1", "--budget", "0.6"]
    refused = CliRunner().invoke(app, arguments)
    assert "'good:m:test'" in str(refused.exception)
    done = CliRunner().invoke(app, [*arguments, "--num-tasks", "3"])
    assert done.exit_code == 0, done.output
    assert "good: m" in done.output
    assert "nan" not in done.output


@pytest.mark.usefixtures("undrawn")
def test_a_published_folder_on_the_command_line(tmp_path: Path) -> None:
    """What tells exams of a folder apart is the content of all of its shards."""
    table = OutcomeTable.read(tiered_table(tmp_path / "t.jsonl", 2))
    publish_table(table, tmp_path / "set", name="me/set", licence="mit", rows_a_shard=100)
    arguments = [
        "compare",
        "--table",
        str(tmp_path / "set"),
        "--agent",
        "fixed-1",
        "--workers",
        "1",
        "--num-tasks",
        "3",
    ]
    arguments += ["--budget", "0.6", "exams=6", "replicates=2"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    hashes = set()
    for length in (table.num_rows, table.num_rows - 1):
        folder = tmp_path / str(length)
        publish_table(table.shard(0, length), folder, name="me/set", licence="mit", rows_a_shard=100)
        variant = FamilyConfig(family="recorded", table=str(folder), menu="m", num_tasks=3)
        [setting] = expand(CompareConfig(families=[variant], budgets=[0.6]))
        hashes.add(exam_identity(setting)["table"])
    assert len(hashes) == 2


def test_plans_name_unknown_agents_and_repeated_settings() -> None:
    config = small()
    config.agents = ["oracle-of-delphi"]
    with pytest.raises(ConfigError, match="oracle-of-delphi"):
        plan(config, expand(config))
    config.families = [FamilyConfig(family="signal")] * 2
    with pytest.raises(ConfigError, match="twice"):
        expand(config)
    config.families = []
    with pytest.raises(ConfigError, match="families"):
        expand(config)


def test_compare_and_resume_on_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["compare", "--family", "known", "--budget", "0.3", "--agent", "fixed-1", "--agent", "resolve"]
    arguments += ["--out", str(run), "--workers", "1", "exams=6", "replicates=3"]
    planned = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert not run.exists()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert (run / "report.html").exists()
    again = CliRunner().invoke(app, ["compare", "--resume", str(run), "--workers", "1"])
    assert again.exit_code == 0, again.output
    for given, named in (
        (["exams=7"], "overrides"),
        (["--exam-seed", "0", "--budget", "0.3"], "--budget, --exam-seed"),
    ):
        refused = CliRunner().invoke(app, ["compare", "--resume", str(run), "--workers", "1", *given]).exception
        assert isinstance(refused, ConfigError)
        assert str(refused).endswith(f"leave out {named}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--agent", "llm"), "reads questions, and these exams show none"),
        (("--family", "tinylm", "--agent", "llm(model='/no/such')"), "no model '/no/such'"),
        (("--family", "tinylm", "--agent", "llm(model='../no/such/folder')"), "no model '../no/such/folder'"),
    ],
)
def test_what_an_agent_cannot_take_is_one_line(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="needs the extra [llm]")
    monkeypatch.setattr("sys.argv", ["roi", "play", *arguments])
    monkeypatch.setattr("experiments.cli.end_like_an_interrupt", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "run")
    monkeypatch.setattr("sys.argv", ["roi", "rollouts", "fixed-1", "--exams", "3", "--workers", "1", "--out", out])
    monkeypatch.setattr("experiments.cli.end_like_an_interrupt", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"roi: {out}: Not a directory" in capsys.readouterr().err


def test_a_terminal_without_the_signs_shows_the_rest() -> None:
    command = [sys.executable, "-m", "experiments", "play", "--agent", "fixed-1", "--num-tasks", "2"]
    shown = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    assert b"exam over" in shown.stdout


def test_agents_and_play() -> None:
    listed = CliRunner().invoke(app, ["agents"]).output
    assert all(name[:12] in listed for name in AGENTS)
    assert "fixed-4 .." in listed
    assert "and so on to fixed-K" in listed
    watched = CliRunner().invoke(app, ["play", "--agent", "lp-lookahead", "--num-tasks", "4"])
    assert watched.exit_code == 0, watched.output
    assert "exam over" in watched.output
    person = CliRunner().invoke(app, ["play", "--num-tasks", "2"], input="1\n0\n")
    assert "exam over" in person.output


def test_expected_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text("dataset,question_id\na,b\n")
    for arguments, named in (
        (["table", str(broken)], "broken.csv"),
        (["play", "--agent", "nobody"], "nobody"),
        (["play", "--family", "tinylm", "--agent", "exam-taker"], "task by task"),
        (["play", "--agent", ":m:"], ":m:"),
    ):
        monkeypatch.setattr("sys.argv", ["roi", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert named in capsys.readouterr().err


def test_the_seed_in_an_agents_text_stands_for_the_training_seeds() -> None:
    config = CompareConfig(
        families=[FamilyConfig(family="tinylm")],
        budgets=[0.3],
        agents=["llm(model='nowhere-{seed}')", "resolve"],
        training_seeds=[3, 7],
    )
    jobs = [job for job in plan(config, expand(config)) if job.agent.startswith("llm")]
    assert [(job.seed, job.text) for job in jobs] == [(3, "llm(model='nowhere-3')"), (7, "llm(model='nowhere-7')")]
    assert {job.agent for job in jobs} == {"llm(model='nowhere-{seed}')"}


def test_results_belong_to_a_models_weights(tmp_path: Path) -> None:
    config = CompareConfig(
        families=[FamilyConfig(family="tinylm")], budgets=[0.3], agents=[f"llm(model={str(tmp_path)!r})"]
    )
    names = []
    for weights in (b"one", b"other"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        content_hash.cache_clear()
        job = next(job for job in plan(config, expand(config)) if job.agent.startswith("llm"))
        names.append(job_file(config, job))
    assert names[0] != names[1]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "experiments/configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_published_configurations_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROI_DATA", "nowhere")
    settings = expand(load_config(path, []))
    assert len({setting.label for setting in settings}) == len(settings) > 1 or path.stem == "single-pass"
