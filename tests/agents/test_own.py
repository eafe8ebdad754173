"""Agents, policies and families that people bring themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.base import (
    AGENTS,
    Agent,
    AgentError,
    DecisionView,
    Probs,
    State,
    load_agent,
    make_agent,
    named_agent,
    public_problem,
    save_agent,
)
from agents.foreign import from_policy
from agents.playing import evaluate, rollout
from agents.watching import take_exam
from roi_env.envs.single import ROIReasoningEnv
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEC = exam_spec("signal", num_tasks=4)
PROBLEM = public_problem(SPEC)
OWN = f"{EXAMPLES / 'own_agent.py'}:Careful"


def roi(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments", *arguments]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


@pytest.fixture(autouse=True)
def files_that_workers_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported here is told to processes that start later; not to those of other tests."""
    monkeypatch.setenv("ROI_IMPORT", "")


def test_an_agent_of_a_file_is_an_agent_like_any_other(tmp_path: Path) -> None:
    agent = make_agent(f"{OWN}(margin=2.0)", PROBLEM)
    assert agent.name == "own_agent:Careful"
    assert agent.params() == {"margin": 2.0}
    assert named_agent(OWN) == "own_agent:Careful"
    batch = draw_exams(SPEC, 0, np.arange(20))
    score = evaluate(agent, batch).score
    save_agent(agent, tmp_path / "mine.npz")
    np.testing.assert_array_equal(evaluate(load_agent(tmp_path / "mine.npz", PROBLEM), batch).score, score)
    assert evaluate(make_agent("own_agent:Careful", PROBLEM), batch).score.mean() > score.mean() > 0


def test_an_own_agents_parameters_may_be_a_dataclass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    (tmp_path / "shared_settings.py").write_text(f"""{begin}
from agents.parameters import Positive

@dataclass(frozen=True)
class Shared:
    shares: tuple[Positive, ...] = (0.5, 1.0)
    margin: Positive = 1.0
""")
    (tmp_path / "many_parameters.py").write_text(f"""{begin}
from agents.planners.fixed import Skip
from shared_settings import Shared

@dataclass(frozen=True)
class Settings(Shared):
    tier: int = 1

class Many(Skip):
    settings = Settings()

    def __init__(self, problem, settings):
        super().__init__(problem)
        self.settings = settings
""")
    monkeypatch.syspath_prepend(tmp_path)
    agent = make_agent(f"{tmp_path / 'many_parameters.py'}:Many(tier=2)", PROBLEM)
    assert list(agent.params().items()) == [("shares", [0.5, 1.0]), ("margin", 1.0), ("tier", 2)]
    save_agent(agent, tmp_path / "many.npz")
    assert load_agent(tmp_path / "many.npz", PROBLEM).params() == agent.params()
    assert make_agent("many_parameters:Many", PROBLEM, margin=2).params()["tier"] == 1
    for given, message in (
        ({"margin": 0}, "margin must be a finite number above 0, got 0"),
        ({"tier": 1.5}, "tier must be an integer, got 1.5"),
        ({"colour": 1}, "has no parameter colour; it takes margin, shares, tier"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("many_parameters:Many", PROBLEM, **given)


def test_constructors_may_be_written_in_any_style(tmp_path: Path) -> None:
    """Without annotations, with bare ones, and with types that only a type checker imports."""
    (tmp_path / "styles.py").write_text("""from __future__ import annotations
from typing import TYPE_CHECKING, Any, Protocol, Sequence
from agents.planners.fixed import Skip
if TYPE_CHECKING:
    from agents.base import Problem

class Shaped(Protocol):
    shape: int

class Bare(Skip):
    def __init__(self, problem, x=1, y: Any = 2, z: Sequence = (), p: Shaped | None = None):
        super().__init__(problem)
        self.given = (x, y, z, p)

class Typed(Skip):
    def __init__(self, problem: Problem, x: int = 1):
        super().__init__(problem)
        self.given = x
""")
    file = tmp_path / "styles.py"
    assert make_agent(f"{file}:Bare(x=2, y=[1], z=[3, 'a'], p='s')", PROBLEM).given == (2, [1], [3, "a"], "s")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="z must be a list, got 4"):
        make_agent(f"{file}:Bare(z=4)", PROBLEM)
    assert make_agent(f"{file}:Typed(x=3)", PROBLEM).given == 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no parameter colour; it takes x"):
        make_agent(f"{file}:Typed(colour=3)", PROBLEM)


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (np.zeros((1, 4)), "do not sum to one"),
        (np.full((1, 4), np.nan), "do not sum to one"),
        (np.ones((1, 2)), r"expected \(1, 4\)"),
        (np.ones(1, int), r"expected \(1, 4\)"),
        (None, "shape"),
    ],
)
def test_whoever_watches_is_told_of_what_is_no_distribution(probs: Any, message: str) -> None:
    class Wrong(Agent):
        def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
            return probs, state

    env = ROIReasoningEnv("signal", num_tasks=2)
    with pytest.raises(AgentError, match=message):
        list(take_exam(env, Wrong(public_problem(env.exam_spec))))


@pytest.mark.parametrize("take", [evaluate, rollout])
def test_an_agent_made_for_other_exams_is_refused(take: Any) -> None:
    agent = make_agent("bellman", public_problem(exam_spec("signal", num_tasks=2)))
    exams = draw_exams(exam_spec("heavy", num_tasks=2), seed=0, exam_ids=np.arange(2))
    with pytest.raises(AgentError, match=r"'bellman' was made for other exams \(groups: "):
        take(agent, exams)


def test_a_saved_agent_never_imports_its_code(tmp_path: Path) -> None:
    save_agent(make_agent(OWN, PROBLEM), tmp_path / "mine.npz")
    entry = AGENTS.pop("own_agent:Careful")
    try:
        with pytest.raises(ValueError, match=r"never imports code by itself.*--import own_agent.py"):
            load_agent(tmp_path / "mine.npz", PROBLEM)
    finally:
        AGENTS["own_agent:Careful"] = entry


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{EXAMPLES / 'own_agent.py'}:Careless", "has no agent 'Careless'; it has .*Careful"),
        ("nowhere.py:Mine", "nowhere.py: file not found"),
        ("nowhere.at.all:Mine", "cannot be imported"),
        ("numpy:ndarray", "is no agent"),
        ("resolv", "did you mean resolve"),
        (f"{OWN}(margin='x')", "margin"),
    ],
)
def test_what_is_no_agent_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(text, PROBLEM)


def test_a_file_that_breaks_says_so_and_may_be_mended(tmp_path: Path) -> None:
    file = tmp_path / "broken_agent.py"
    file.write_text("1 / 0\n")
    with pytest.raises(ValueError, match=r"broken_agent.py cannot be imported: ZeroDivisionError"):
        named_agent(f"{file}:Mine")
    file.write_text("from agents.planners.fixed import Skip\n\nclass Mine(Skip):\n    '''Mine.'''\n")
    assert named_agent(f"{file}:Mine") == "broken_agent:Mine"
    other = tmp_path / "other" / "broken_agent.py"
    other.parent.mkdir()
    other.write_text(file.read_text())
    with pytest.raises(ValueError, match="have one name"):
        named_agent(f"{other}:Mine")


def test_comparisons_take_own_agents_and_families_from_any_folder(tmp_path: Path) -> None:
    own = ["compare", "--import", str(EXAMPLES / "own_family.py"), "--family", "riddles", "--budget", "0.3"]
    chosen = ["--agent", f"{OWN}(margin=1.5)", "exams=3", "--workers", "2", "--out", "run"]
    done = roi(*own, *chosen, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "own_agent" in done.stdout
    assert (tmp_path / "run" / "report.html").exists()
    refused = roi("compare", "--family", "riddles", "exams=3", cwd=tmp_path)
    assert refused.returncode == 2
    assert "unknown family 'riddles'" in refused.stderr


def test_policies_from_elsewhere_play_what_they_say() -> None:
    batch = draw_exams(SPEC, 1, np.arange(30))

    def second(observations: np.ndarray, mask: np.ndarray) -> np.ndarray:
        assert observations.shape == (len(mask), PROBLEM.observation_size)
        return np.where(mask[:, 2], 2, 0)

    expected = evaluate(make_agent("fixed-2", PROBLEM), batch).score
    np.testing.assert_array_equal(evaluate(named(from_policy(second)), batch).score, expected)
    uniform = named(from_policy(lambda observations, mask: np.ones(mask.shape)))
    np.testing.assert_allclose(
        evaluate(uniform, batch).score, evaluate(make_agent("random", PROBLEM), batch).score, rtol=1e-12
    )
    top = from_policy(lambda observations, mask: np.full(len(mask), PROBLEM.num_tiers))
    with pytest.raises(ValueError, match="where legal actions are"):
        evaluate(named(top), batch)
    skipping = from_policy(lambda observations, mask: np.full(len(mask), PROBLEM.num_tiers), illegal="skip")
    np.testing.assert_array_equal(
        evaluate(named(skipping), batch).score, evaluate(make_agent("fixed-3", PROBLEM), batch).score
    )
    for wrong in (lambda o, m: np.zeros(len(m)), lambda o, m: np.full(len(m), 9), lambda o, m: -np.ones(m.shape)):
        with pytest.raises(ValueError, match="policy"):
            evaluate(named(from_policy(wrong)), batch)


def named(agent_class: type) -> object:
    agent = agent_class(PROBLEM)
    agent.name = "policy"
    return agent


def test_watching_is_taking_the_exam() -> None:
    env = ROIReasoningEnv(SPEC, render_mode="ansi")
    planner = make_agent("lp-lookahead", PROBLEM)
    infos = list(take_exam(env, planner, seed=3, exam_id=7))
    batch = draw_exams(SPEC, 3, [7])
    assert infos[-1]["score"] == rollout(planner, batch).value.sum()
    assert sum(info["tokens"] for info in infos) == infos[-1]["spent"]
    skipped = list(take_exam(env, lambda view: 0, seed=3, exam_id=7))
    assert len(skipped) == 4
    assert skipped[-1]["score"] == 0
