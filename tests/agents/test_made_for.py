"""Agents that take other exams than those they were made for: nothing refuses it, and a line says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.base import Agent, AgentError, Problem, load_agent, make_agent, public_problem, save_agent
from agents.made_for import OtherExams
from agents.playing import TrainingExams, evaluate, rollout
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams

SPEC = exam_spec("signal", num_tasks=4, budget=100, preview=False)
OTHERS = {
    "budget": ("signal", {"budget": 60}, "4 tasks of 'signal' under 60 tokens here: other budget"),
    "length": ("signal", {"num_tasks": 3}, "3 tasks of 'signal' under 100 tokens here: other length"),
    "questions": ("cap", {}, "4 tasks of 'cap' under 100 tokens here: other questions"),
}


def other(what: str) -> Any:
    family, changed, _ = OTHERS[what]
    return exam_spec(family, **{"num_tasks": 4, "budget": 100, "preview": False, **changed})


def learned(name: str, problem: Problem, **params: Any) -> Agent:
    agent = make_agent(name, problem, **params)
    if name in ("roi", "plugin-bellman"):
        agent.train(TrainingExams(SPEC, 0), 0)
    return agent


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("name", ["sb3-a2c", "rllib-grpo", "roi"])
def test_a_saved_agent_says_what_it_was_made_for(name: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "agent.npz"
    save_agent(learned(name, public_problem(SPEC)), file)
    with pytest.warns(OtherExams) as said:
        load_agent(file, public_problem(other(what)))
    start = f"{file} ({name}) was made for exams of 4 tasks of 'signal' under 100 tokens, and takes "
    assert [str(one.message) for one in said] == [start + OTHERS[what][2]]


def test_nothing_is_said_where_it_takes_what_it_was_made_for(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, specs in {
            "sb3-a2c": [SPEC],
            "plugin-bellman": [SPEC, other("budget"), other("length")],  # it learned laws, and plans anew
            "lp-lookahead": [SPEC, *map(other, OTHERS)],  # nothing was learned
        }.items():
            save_agent(learned(name, public_problem(SPEC)), tmp_path / name)
            for spec in specs:
                evaluate(load_agent(tmp_path / name, public_problem(spec)), draw_exams(spec, 0, np.arange(2)))
    with pytest.warns(OtherExams, match="other questions"):
        load_agent(tmp_path / "plugin-bellman", public_problem(other("questions")))


def test_files_of_before_say_nothing(tmp_path: Path) -> None:
    save_agent(make_agent("sb3-a2c", public_problem(SPEC)), tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as data:
        arrays = dict(data)
    header = json.loads(str(arrays["header"]))
    del header["made_for"]
    np.savez(tmp_path / "old.npz", **arrays | {"header": np.array(json.dumps(header))})
    load_agent(tmp_path / "old.npz", public_problem(other("budget")))


def test_a_model_trained_at_several_budgets_is_made_for_all_between(tmp_path: Path) -> None:
    def problem(budget: int) -> Problem:
        return public_problem(exam_spec("tinylm", num_tasks=4, budget=budget))

    save_agent(make_agent("llm-grpo", problem(200), budgets=(0.5, 1.0, 2.0)), tmp_path / "agent.npz")
    for budget in (100, 250, 400):
        load_agent(tmp_path / "agent.npz", problem(budget))
    with pytest.warns(
        OtherExams, match="under 100 tokens to 400 tokens, and takes .* under 401 tokens here: other budget"
    ):
        load_agent(tmp_path / "agent.npz", problem(401))


def test_a_model_directory_says_what_it_was_trained_on(tmp_path: Path) -> None:
    def problem(budget: int) -> Problem:
        return public_problem(exam_spec("tinylm", num_tasks=4, budget=budget))

    make_agent("llm-grpo", problem(200), budgets=(0.5, 1.0, 2.0)).export(tmp_path)  # type: ignore[attr-defined]
    name = f"llm(model={str(tmp_path / 'model')!r})"
    for budget in (100, 400):
        make_agent(name, problem(budget))
    with pytest.warns(OtherExams, match=r"model '.*model' was made for exams of 4 tasks .* other budget"):
        make_agent(name, problem(401))


@pytest.mark.parametrize("name", ["llm", "predicted-levels", "exam-taker", "llm-grpo"])
def test_more_tiers_than_a_language_model_has_levels_are_refused(name: str) -> None:
    with pytest.raises(AgentError, match=r"3 levels .* 5 tiers: choose 3 of them \(--tier NAME"):
        make_agent(name, public_problem(exam_spec("math", num_tasks=3)))


def test_fewer_tiers_than_a_model_was_taught_are_told_of() -> None:
    with pytest.warns(
        OtherExams, match=r"'tinylm-mcft' was taught 3 levels .* 2 tier.*its Level-2 is read as the refusal"
    ):
        make_agent("llm", public_problem(exam_spec("tinylm", num_tasks=3, tiers=("short", "long"))))


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("take", [evaluate, rollout])
def test_an_agent_made_for_other_exams_says_so_where_it_takes_these(take: Any, what: str) -> None:
    exams = draw_exams(other(what), 0, np.arange(2))
    with pytest.warns(OtherExams, match=f"agent 'sb3-a2c' was made for .*{OTHERS[what][2]}"):
        take(make_agent("sb3-a2c", public_problem(SPEC)), exams)


@pytest.mark.parametrize("what", ["budget", "length"])
@pytest.mark.parametrize("name", ["bellman", "lp-lookahead", "plugin-bellman", "bwk-ucb", "remaining-share", "fixed-2"])
@pytest.mark.parametrize("preview", [True, False])
def test_planners_plan_for_the_exams_that_they_take(name: str, what: str, preview: bool) -> None:
    spec = other(what).replace(preview=preview)
    params = {"training_exams": 5} if name == "bwk-ucb" else {}
    made = [learned(name, public_problem(one.replace(preview=preview)), **params) for one in (SPEC, spec)]
    scores = [evaluate(agent, draw_exams(spec, 0, np.arange(5))).score for agent in made]
    np.testing.assert_array_equal(*scores)


def test_a_command_says_it_in_one_line(tmp_path: Path) -> None:
    save_agent(learned("roi", public_problem(SPEC)), tmp_path / "agent.npz")
    (tmp_path / "mine.yaml").write_text(
        "{families: [{family: signal, num_tasks: 3, preview: false}], budgets: [60], agents: [agent.npz], exams: 2}"
    )
    command = [
        sys.executable,
        "-m",
        "experiments",
        "compare",
        "--config",
        "mine.yaml",
        "--workers",
        "2",
        "--out",
        "run",
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "roi: agent.npz (roi) was made for exams of 4 tasks of 'signal' under 100 tokens, and takes 3 tasks of 'signal' "
        "under 60 tokens here: other length, budget"
    ]
