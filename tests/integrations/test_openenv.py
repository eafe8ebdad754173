"""A real OpenEnv server and its clients, and OpenEnv's own validation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("openenv", reason="needs an environment of make test-integrations")

import roi_env  # noqa: F401 - registers the ids
from roi_env.integrations.openenv import Exam, ExamAction, ExamEnv, ExamEnvironment, application
from roi_env.integrations.text_exam import TextExam
from roi_env.integrations.trl import ExamTools, exam_rows
from tests.servers import exam_serve

PACKAGE = Path(__file__).parents[2] / "examples" / "integrations" / "openenv_exam"
SETTINGS: dict[str, Any] = {"family": "signal", "num_tasks": 10, "budget": 0.3, "preview": False}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with exam_serve() as url:
        yield url


def test_two_sessions_side_by_side_are_the_gymnasium_environment(server: str) -> None:
    """Interleaved on purpose: every step of one lies between two of the other."""
    exams, envs = (
        [Exam(server, seed=3), Exam(server, seed=4)],
        [gym.make("ROIReasoning-v0", **SETTINGS) for _ in (0, 1)],
    )
    for number in (0, 5, 2):
        for place, (exam, env) in enumerate(zip(exams, envs, strict=True)):
            exam.begin(number)
            env.reset(seed=3 + place, options={"exam_ids": number})
        over = [False, False]
        while not all(over):
            for place, (exam, env) in enumerate(zip(exams, envs, strict=True)):
                if over[place]:
                    continue
                action = place + 1
                said = exam.attempt(action)
                _, _, over[place], _, info = env.step(action)
                assert exam.done == over[place]
                assert f"{info['tokens']} tokens" in said
                if over[place]:
                    assert (exam.score, exam.budget - exam.remaining) == (info["score"], info["spent"])
    assert exams[0].client.state().exam_id == exams[1].client.state().exam_id == 2
    for exam in exams:
        exam.close()


def test_more_sessions_than_threads(server: str) -> None:
    def take(level: int) -> list[float]:
        exam, scores = Exam(server), []
        for number in range(4):
            exam.begin(number)
            while not exam.done:
                exam.attempt(level) if level else exam.skip()
            scores.append(exam.score)
        exam.close()
        return scores

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(take, [1, 2, 3, 0, 1, 2]))
    assert got[0] == got[4]
    assert got[1] == got[5]
    assert got[3] == [0.0] * 4


def test_observations_over_the_wire(server: str) -> None:
    with ExamEnv(base_url=server).sync() as env:
        first = env.reset(seed=0, exam_id=7)
        local = TextExam(0, **SETTINGS)
        assert first.observation.text == local.begin(7)
        assert (first.done, first.reward, first.observation.legal) == (False, None, local.legal)
        after = env.step(ExamAction(level=2))
        assert after.observation.text == local.attempt(2)
        assert after.reward == local.score == after.observation.score
        assert env.state().spent == local.spent
        with pytest.raises(Exception, match="level"):
            env.step(ExamAction(level=9))
        with pytest.raises(ValueError, match="greater than or equal to 0"):
            ExamAction(level=-1)
        second = env.reset()
        assert env.state().exam_id == 8
        assert second.observation.text == local.begin(8)


def test_tools_of_trl_through_the_server(server: str) -> None:
    remote, local = ExamTools(Exam(server, seed=1)), ExamTools(TextExam(1, **SETTINGS))
    for row in exam_rows(3):
        assert remote.reset(**row) == local.reset(**row)
        for _ in range(4):
            assert remote.attempt(1) == local.attempt(1)
            assert remote.skip() == local.skip()
        assert remote.get_reward() == local.get_reward()


def test_the_next_exam_follows() -> None:
    env = ExamEnvironment(**SETTINGS)
    numbers = []
    for reset in ({}, {}, {"exam_id": 9}, {}, {"seed": 5}, {}, {"seed": 5}):
        env.reset(**reset)
        numbers.append((env._exam.seed, env.state.exam_id))
    assert numbers == [(0, 0), (0, 1), (0, 9), (0, 10), (5, 0), (5, 1), (5, 2)]


@pytest.mark.parametrize("exam_id", [-1, 2**70, 1.5, "x"])
def test_an_exam_that_there_is_not_is_refused(exam_id: Any) -> None:
    with pytest.raises(ValueError, match="exam_ids must be integers"):
        ExamEnvironment(**SETTINGS).reset(exam_id=exam_id)


def test_settings_are_checked_before_anything_is_served() -> None:
    with pytest.raises(ValueError, match="budget"):
        application(budget=-1)


def validate(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "openenv"), "validate", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout[done.stdout.index("{") :])


def test_openenvs_own_validation(server: str) -> None:
    code, report = validate(str(PACKAGE), "--level", "static")
    assert code == 0, report
    assert {result["status"] for result in report["results"]} == {"pass"}
    code, report = validate("--url", server)
    assert code == 0, report
    assert report["passed"], report


def test_the_example(server: str) -> None:
    script = PACKAGE.parent / "openenv_client.py"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parents[2])}
    done = subprocess.run([sys.executable, str(script), server], capture_output=True, text=True, check=True, env=env)
    hard, sparing = (float(line.split("score ")[1].split(",")[0]) for line in done.stdout.splitlines())
    assert sparing > hard, "thinking hard about everything spends the budget on the first tasks"
