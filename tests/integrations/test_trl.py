"""TRL's trainer on exams: the packaged small model is taught the form of calls and takes one step of GRPO."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs an environment of make test-integrations")

from agents.base import DecisionView, exams_view, public_problem
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.integrations.text_exam import TextExam
from roi_env.integrations.trl import ExamTools, exam_rows, exam_tools, example_conversations
from tests.servers import exam_serve

ROOT = Path(__file__).parents[2]
EXAMS: dict[str, Any] = {"family": "signal", "num_tasks": 3, "budget": 0.3, "preview": False}


def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the example's model."""
    monkeypatch.chdir(ROOT)
    found = importlib.util.spec_from_file_location("trl_model", ROOT / "examples" / "integrations" / "trl_model.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_conversations_are_read_back_as_their_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TRL parses out of a rendered answer is the call that was rendered; every call is one token."""
    from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response, supports_tool_calling

    _, tokenizer = example(monkeypatch).base_model()
    assert supports_tool_calling(tokenizer)
    assert is_chat_template_prefix_preserving(tokenizer)
    for made in example_conversations(TextExam(seed=2, **EXAMS), 10):
        turns = made["messages"]
        for place, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = tokenizer.apply_chat_template(turns[:place], add_generation_prompt=True, return_dict=False)
            after = tokenizer.apply_chat_template(turns[: place + 1], return_dict=False)
            assert after[: len(before)] == before
            said = after[len(before) :]
            assert len(said) == (4 if turn["tool_calls"] else 1)
            assert parse_response(tokenizer, said, prefix=before).get("tool_calls", []) == turn["tool_calls"]


def take(tools: ExamTools, level: int) -> list[str]:
    """All of an exam at one level."""
    told: list[str] = []
    while not told or "over" not in told[-1]:
        told.append(tools.attempt(level=level))
    return told


def test_a_group_has_its_rows_exam_in_common() -> None:
    group: list[ExamTools] = [exam_tools(seed=1, **EXAMS)() for _ in range(4)]
    for row in exam_rows(5, start=3):
        assert len({tools.reset(**row) for tools in group}) == 1
        played = [take(tools, 1 + place % 2) for place, tools in enumerate(group)]
        assert played[0] == played[2]
        assert played[1] == played[3]
        assert group[0].get_reward() == group[2].get_reward()


def run(script: str, *arguments: str) -> dict[str, float]:
    """What an example logs of its one step of GRPO."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, f"examples/integrations/{script}", *arguments, "1"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (step,) = [line for line in done.stdout.splitlines() if "rewards/ExamTools/mean" in line]
    logged = (part.split(": ") for part in step.split(", "))
    return {name.strip("'{ "): float(value.strip("'} ")) for name, value in logged}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The folder of the trained models, and what the step logged."""
    folder = tmp_path_factory.mktemp("trl")
    return folder, run("trl_train.py", str(folder))


def check(logged: dict[str, float]) -> None:
    """Calls are made and read, and exams are scored."""
    assert logged["tools/call_frequency"] > 1
    assert logged["tools/failure_frequency"] < 0.3, "some calls come after an exam that ended early"
    assert 0 < logged["rewards/ExamTools/mean"] < 3


@pytest.mark.slow
def test_rollouts_take_the_exams_of_an_openenv_server(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    pytest.importorskip("openenv")
    with exam_serve("--num-tasks", "3", "--sessions", "16") as url:
        check(run("trl_openenv.py", url, str(trained[0] / "sft"), str(tmp_path)))
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_the_trainer_plays_exams_and_the_agent_decides_as_the_model(
    trained: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, logged = trained
    module = example(monkeypatch)
    check(logged)

    spec = exam_spec(**EXAMS)
    agent = module.Trained(public_problem(spec), str(folder / "sft"))
    drawn = draw_exams(spec, 0, np.arange(3), 0)
    state = agent.start(exams_view(drawn, agent.problem))
    exam = TextExam(0, **EXAMS)
    prompts = [f"<|user|>{exam.begin(number)}<|end|>" for number in range(3)]
    nothing = np.zeros(3, np.int64)
    view = DecisionView(
        agent.problem, np.arange(3), nothing, np.full(3, spec.budget), nothing, nothing, nothing > 0, drawn.groups
    )
    assert [f"{agent._told(view, row, state)}<|end|>" for row in range(3)] == prompts
    probs, _ = agent.act(view, state)
    np.testing.assert_allclose(probs.sum(1), 1)
    assert (probs[view.mask] > 0).all()
    assert (probs[~view.mask] == 0).all()
