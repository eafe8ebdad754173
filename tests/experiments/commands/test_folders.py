"""A folder that holds another run is refused before anything in it is touched; parameters are refused by their names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.config import ConfigError
from experiments.training.tuning import read_tuning
from roi_env.sources.packaged import TINYLM
from tests.commands import roi, undrawn

SMALL = ["--num-tasks", "3", "--budget", "0.3"]
COMPARE = ["compare", "--workers", "1", *SMALL, "--family", "signal", "exams=4", "--agent", "fixed-1"]
TRAIN = ["train", "sb3-a2c", "--num-tasks", "3", "--steps", "64", "--param", "num_envs=8", "--param", "width=8"]
ROLLOUTS = ["rollouts", "fixed-1", "--exams", "50", "--workers", "1", *SMALL]
TUNE = ["tune", "--agent", "sb3-a2c", "--trials", "1", "--steps", "64", "--setting", "signal:0.3", "--workers", "1"]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def squeezed(*arguments: str) -> str:
    return " ".join(roi(*arguments).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every command, made once."""
    made = tmp_path_factory.mktemp("runs")
    with undrawn():
        roi(*COMPARE, "--out", str(made / "compare"))
    roi(*TRAIN, "--out", str(made / "train"))
    roi(*ROLLOUTS, "--out", str(made / "rollouts"))
    roi(*TUNE, "--run", str(made / "trials"), "--out", str(made / "tuned.json"))
    for name, mark in (("pipeline", "pipeline.json"), ("pretrain", "recipe.json"), ("mcft", "mcft.json")):
        (made / name).mkdir()
        (made / name / mark).write_text("[]" if name == "pipeline" else '{"recipe": {}, "model": ""}')
    (made / "model").mkdir()
    (made / "model" / "model.safetensors").write_text("weights")
    (made / "file").write_text("text")
    return made


@pytest.mark.parametrize("folder", ["compare", "train", "rollouts", "pipeline", "pretrain", "mcft", "model", "file"])
@pytest.mark.parametrize(
    "command",
    [
        ["compare", *COMPARE[1:-2], "--agent", "fixed-2", "--out"],
        [*TRAIN, "--training-seed", "1", "--out"],
        ["rollouts", "fixed-2", *ROLLOUTS[2:], "--out"],
        ["publish", "compare"],
        ["llm", "pipeline", "--seed", "3", "--out"],
        ["llm", "pretrain", "--out"],
        ["mcft", "tinylm", "--out"],
        [*TUNE, "--out", "other.json", "--run"],
    ],
)
def test_another_runs_folder_is_refused_untouched(command: list[str], folder: str, runs: Path, tmp_path: Path) -> None:
    if command[0] in ("llm", "mcft"):
        pytest.importorskip("transformers", reason="needs the extra [llm]")
    if folder == "pipeline" and "pipeline" in command:
        pytest.skip("nothing was done there yet")
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    before = contents(copy)
    command = [
        str(copy / word) if word in ("compare", "other.json") and word != command[0] else word for word in command
    ]
    with pytest.raises((ConfigError, SystemExit), match=r"choose another|delete"):
        roi(*command, str(copy / folder))
    assert contents(copy) == before


@pytest.mark.usefixtures("undrawn")
def test_the_same_command_goes_on(runs: Path) -> None:
    assert "3 jobs, 3 done already" in squeezed(*COMPARE, "--out", str(runs / "compare"))
    longer = [*TRAIN[: TRAIN.index("--steps") + 1], "128", *TRAIN[TRAIN.index("--steps") + 2 :]]
    assert "after 160 steps, 4 updates" in squeezed(*longer, "--out", str(runs / "train"))
    assert "1 done already" in roi(*ROLLOUTS, "--out", str(runs / "rollouts"))
    roi(*TUNE, "--run", str(runs / "trials"), "--out", str(runs / "tuned.json"))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (["--budget", "0.6"], "budget"),
        (["--order", "easy_first"], "order"),
        (["--family", "heavy"], "family.family"),
        (["--reward", "rational"], "reward"),
        (["--param", "lr=0.5"], "params.lr"),
    ],
)
def test_a_training_of_other_exams_is_not_gone_on_with(change: list[str], differs: str, runs: Path) -> None:
    before = contents(runs / "train")
    with pytest.raises(ConfigError, match=rf"differ in \['{differs}'\]: choose another"):
        roi(*TRAIN, *change, "--out", str(runs / "train"))
    assert contents(runs / "train") == before


@pytest.mark.parametrize("change", [["--exam-seed", "7"], ["exams=5"], ["--budget", "0.6"], ["replicates=3"]])
def test_a_comparison_of_other_exams_is_not_gone_on_with(change: list[str], runs: Path) -> None:
    before = contents(runs / "compare")
    with pytest.raises(ConfigError, match=r"holds another run, they differ in .*roi compare --resume"):
        roi(*COMPARE, *change, "--out", str(runs / "compare"))
    assert contents(runs / "compare") == before


def test_tuning_is_refused_before_it_trains(runs: Path, tmp_path: Path) -> None:
    out = runs / "tuned.json"
    before = out.read_bytes()
    other = [*TUNE[: TUNE.index("--steps") + 1], "128", *TUNE[TUNE.index("--steps") + 2 :]]
    for command, message in (
        (other, "holds sb3-a2c tuned on"),
        (["sb3-dqn" if word == "sb3-a2c" else word for word in other], "unequal tuning"),
    ):
        with pytest.raises(ConfigError, match=message):
            roi(*command, "--run", str(tmp_path / "trials"), "--out", str(out))
    assert out.read_bytes() == before
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="not a tuning file"):
        roi(*TUNE, "--run", str(tmp_path / "trials"), "--out", str(foreign))
    assert foreign.read_text() == '{"a": 1}'
    assert not (tmp_path / "trials").exists()
    assert read_tuning(out).trials == 1
    # A run of the same name with other parameters is none of this search.
    (file,) = (runs / "trials").iterdir()
    shutil.copytree(runs / "trials", tmp_path / "trials")
    record = json.loads(file.read_text())
    (tmp_path / "trials" / file.name).write_text(json.dumps(record | {"params": {"steps": 64, "width": 3}}))
    with pytest.raises(ConfigError, match="differs in params"):
        roi(*TUNE, "--run", str(tmp_path / "trials"), "--out", str(tmp_path / "new.json"))


def test_a_table_of_something_else_is_not_recorded_over(tmp_path: Path) -> None:
    out = tmp_path / "table.parquet"
    out.write_text("a table")
    with pytest.raises(ConfigError, match="choose another --out"):
        roi("record", "tinylm", "--out", str(out))
    assert [file.name for file in tmp_path.iterdir()] == ["table.parquet"]
    assert out.read_text() == "a table"


def test_a_misspelt_agent_claims_no_folder(tmp_path: Path) -> None:
    for command in (["rollouts", "nobody"], ["train", "nobody"], ["train", "sb3-a2c", "--param", "width=0"]):
        with pytest.raises(ConfigError):
            roi(*command, "--out", str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_run_goes_on_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    table = tmp_path / "table.parquet"
    shutil.copy(TINYLM, table)
    monkeypatch.chdir(tmp_path)
    arguments = ["--workers", "1", "--num-tasks", "3", "--budget", "0.3", "exams=4", "--agent", "fixed-1"]
    arguments += ["--predictor", "none"]
    roi("compare", "--table", table.name, *arguments, "--out", "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "done already" in roi("compare", "--resume", "../run")


@pytest.mark.parametrize(
    ("agent", "parameter", "expected"),
    [
        ("sb3-ppo", "lr=abc", "lr must be a finite number above 0, got 'abc'"),
        ("sb3-ppo", "lr=nan", "lr must be a finite number above 0"),
        ("sb3-ppo", "lr=.inf", "lr must be a finite number above 0"),
        ("sb3-ppo", "lr=-0.1", "lr must be a finite number above 0, got -0.1"),
        ("sb3-ppo", "lr=0", "lr must be a finite number above 0, got 0"),
        ("sb3-ppo", "lr=true", "lr must be a finite number above 0, got True"),
        ("sb3-ppo", "lr=[0.1,0.2]", "lr must be a finite number above 0, got"),
        ("sb3-ppo", "lr={a: 1}", "lr must be a finite number above 0, got"),
        ("sb3-ppo", "lr=", "lr must be a finite number above 0, got"),
        ("sb3-ppo", "lambda_=1.5", "lambda_ must be a finite number from 0 to 1, got 1.5"),
        ("sb3-ppo", "entropy=-1", "entropy must be a finite number of at least 0"),
        ("sb3-ppo", "batch_size=1", "batch_size must be an integer of at least 2"),
        ("sb3-ppo", "batch_size=7", "batch_size must divide"),
        ("sb3-ppo", "num_envs=true", "num_envs must be an integer of at least 1, got True"),
        ("sb3-ppo", "num_envs=2.5", "num_envs must be an integer of at least 1, got 2.5"),
        ("sb3-ppo", "greedy=1", "greedy must be true or false, got 1"),
        ("sb3-ppo", "gamma=0.9", "has no parameter gamma; it takes"),
        ("sb3-ppo", "a.b=1", "has no parameter a.b"),
        ("sb3-ppo", "width=${x}", "--param 'width=\\$"),
        ("sb3-ppo", "width=[1,", "--param 'width=\\[1,'.*cannot be read"),
        ("sb3-ppo", "=1", "must read name=value"),
        ("sb3-dqn", "exploration_fraction=0", "exploration_fraction must be a finite number above 0 to 1"),
        ("ppo", "lr=abc", "lr must be a finite number above 0, got 'abc'"),
        ("ppo", "steps=-5", "steps must be an integer of at least 1, got -5"),
        ("ppo", "minibatch=100", "exams 1024 must be a multiple of minibatch 100"),
        ("grpo", "advantage=best", "advantage must be one of"),
        ("grpo", "group=1", "at least 2"),
        ("grpo", "group=7", "exams 2048 must be whole groups of 7 exams"),
        ("grpo", "ratio=sequence", "sequence ratio"),
        ("grpo", "shared_outcomes=maybe", "shared_outcomes must be true or false"),
    ],
)
def test_parameters_are_refused_by_name(agent: str, parameter: str, expected: str, tmp_path: Path) -> None:
    if not agent.startswith("sb3"):
        pytest.importorskip("ray", reason="needs the extra [rllib]")
    with pytest.raises(ConfigError, match=expected):
        roi("train", agent, "--param", parameter, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("sb3-ppo(lr=abc)", "lr must be a finite number above 0, got abc"),
        ("sb3-ppo(lr=nan)", "lr must be a finite number above 0, got nan"),
        ("sb3-ppo(lr=-float('inf'))", "lr must be a finite number above 0, got -float"),
        ("sb3-ppo(lr=1e999)", "lr must be a finite number above 0, got inf"),
        ("roi(threshold='a')", "threshold must be a finite number or none, got 'a'"),
        ("roi(exams=True)", "exams must be an integer of at least 1, got True"),
        ("roi(exams=[3])", "exams must be an integer"),
        ("roi(threshold=1,threshold=2)", "threshold is given twice"),
        ("roi(1)", "must read like name=1.5"),
        ("roi(threshold=)", "must read like name=1.5"),
        ("roi(" + "(" * 500 + "1" + ")" * 500 + ")", "must read like name=1.5"),
        ("roi(colour=1)", "has no parameter colour"),
        ("random(seed=1)", "has no parameter seed; it takes none"),
        ("greedy-knapsack(refuse_below=2)", "refuse_below must be a finite number from 0 to 1"),
        ("hindsight-optimisation(scenarios=0)", "scenarios must be an integer of at least 1"),
        ("dual-descent(eta='x')", "eta must be a finite number of at least 0"),
        ("bwk-ucb(kind='other')", "kind must be one of"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "play", "rollouts"])
def test_agents_parameters_are_refused_by_name(command: str, agent: str, expected: str, tmp_path: Path) -> None:
    arguments = {
        "compare": [*COMPARE[:-2], "--agent", agent, "--out", str(tmp_path / "run")],
        "play": ["play", "--agent", agent],
        "rollouts": ["rollouts", agent, "--out", str(tmp_path / "run")],
    }[command]
    with pytest.raises(ConfigError, match=expected):
        roi(*arguments)
    assert not (tmp_path / "run").exists()


def test_a_parameter_that_is_given_twice_is_refused() -> None:
    for more in (["--param", "steps=3"], ["--param", "lr=1", "--param", "lr=2"]):
        with pytest.raises(ConfigError, match="given twice"):
            roi("train", "ppo", "--steps", "5", *more)


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    arguments = ["--param", "num_envs=8", "--param", "steps=6.4e1", "--param", "width=8", "--num-tasks", "3"]
    assert "after 80 steps" in squeezed("train", "sb3-a2c", *arguments, "--out", str(tmp_path / "run"))
