"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(*arguments: str, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ROI_IMPORT": ""}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_family(tmp_path: Path) -> None:
    scores = [float(line.split()[1]) for line in run(str(EXAMPLES / "own_family.py"), cwd=tmp_path).splitlines()]
    assert scores[0] == max(scores), "the optimum comes first"


def test_own_table(tmp_path: Path) -> None:
    run(str(EXAMPLES / "own_table.py"), "mine.jsonl", cwd=tmp_path)
    shown = run("-m", "experiments", "table", "mine.jsonl", cwd=tmp_path)
    assert "1,200 generations, 150 questions" in shown


def test_watching_two_agents_makes_small_pictures(tmp_path: Path) -> None:
    run(str(EXAMPLES / "watch_two_agents.py"), "exam.gif", "--still", "exam.png", cwd=tmp_path)
    assert 10_000 < (tmp_path / "exam.gif").stat().st_size < 1_000_000
    assert (tmp_path / "exam.png").stat().st_size > 5_000


def test_a_live_budget_holds(tmp_path: Path) -> None:
    """More questions than the budget can pay; what was charged is what the endpoint generated."""
    pytest.importorskip("uvicorn", reason="needs the extra [live]")
    from tests.upstream import Upstream, serving

    upstream = Upstream(answer=lambda prompt: f"I think it is {sum(map(int, re.findall(r'[0-9]+', prompt)))}")
    with serving(upstream.app()) as url:
        arguments = (f"{url}/v1", "stub", "--backend", "vllm", "--budget", "60")
        last = run(str(EXAMPLES / "live_budget.py"), *arguments, cwd=tmp_path).splitlines()[-1]
    right, charged, budget = map(int, re.findall(r"\d+", last))
    assert (charged, budget) == (upstream.generated, 60)
    assert last.endswith("kept within: True")
    assert 0 < right <= len(upstream.seen) < 30


@pytest.mark.slow
def test_rllibs_ppo_learns_something(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra [rllib]")
    *_, last = run(str(EXAMPLES / "train_rllib.py"), "--iterations", "1", cwd=tmp_path).splitlines()
    assert 0.0 < float(last.split()[0]) <= 1.0


def test_weights_of_cleanrls_ppo_are_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that ends with CleanRL's `agent` is run as it stands, with its arguments; the saved weights act."""
    torch = pytest.importorskip("torch", reason="needs the extra [sb3]")
    size, actions = 9, 4
    (tmp_path / "script.py").write_text(
        "import sys, torch\n"
        "torch.manual_seed(int(sys.argv[1]))\n"
        "def layers(out):\n"
        f"    return torch.nn.Sequential(torch.nn.Linear({size}, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64),\n"
        "                               torch.nn.Tanh(), torch.nn.Linear(64, out))\n"
        f"agent = torch.nn.ModuleDict({{'critic': layers(1), 'actor': layers({actions})}})\n"
        "torch.save(agent['actor'], 'actor.pt')\n"
    )
    run(str(EXAMPLES / "cleanrl_ppo.py"), "script.py", "3", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    found = importlib.util.spec_from_file_location("cleanrl_ppo", EXAMPLES / "cleanrl_ppo.py")
    assert found is not None
    assert found.loader is not None
    example = importlib.util.module_from_spec(found)
    found.loader.exec_module(example)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(200, size)).astype(np.float32)
    mask = rng.random((200, actions)) < 0.7
    mask[:, 0] = True
    actor = torch.load("actor.pt", weights_only=False)
    with torch.no_grad():
        logits = actor(torch.from_numpy(observations)).numpy()
    expected = [max(np.flatnonzero(legal), key=lambda a: row[a]) for row, legal in zip(logits, mask, strict=True)]
    assert example.policy(observations, mask).tolist() == expected


@pytest.mark.slow
def test_cleanrls_own_script(tmp_path: Path) -> None:
    """The real one, where ROI_CLEANRL names it (and tyro and tensorboard are installed)."""
    if "ROI_CLEANRL" not in os.environ:
        pytest.skip("ROI_CLEANRL does not name CleanRL's ppo.py")
    arguments = ("--env-id", "roi_env:ROIReasoning-v0", "--no-cuda", "--total-timesteps", "2048")
    run(str(EXAMPLES / "cleanrl_ppo.py"), os.environ["ROI_CLEANRL"], *arguments, cwd=tmp_path)
    options = ("compare", "--family", "signal", "--budget", "0.3", "--workers", "1", "--out", "run", "exams=5")
    run("-m", "experiments", *options, "--agent", f"{EXAMPLES / 'cleanrl_ppo.py'}:Mine", cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", 4)
    previous, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), str(ROOT)
    try:
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    finally:
        if previous is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = previous
    texts = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    assert any("of the optimum" in text for text in texts)
