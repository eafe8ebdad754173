"""verifiers' own evaluation command on our exams, against an endpoint that knows what it truly generated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers", reason="needs an environment of make test-integrations")

from roi_env.integrations.verifiers import ROIExamConfig, ROIExamTaskset
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import TINYLM
from tests.upstream import Upstream, serving

ROOT = Path(__file__).parents[2]
ANSWERS = {row["question"]: row["answer"] for row in OutcomeTable.read(TINYLM).split("test").rows.to_pylist()}


def answer(level: int | None = 0, right: bool = True) -> Any:
    """What the endpoint says: twenty tokens of thought, then two or three words."""

    def say(prompt: str) -> str:
        question = prompt.split("\nTokens left")[0]
        tag = "" if level is None else f"<predicted_level>Level-{level}</predicted_level> "
        return f"{tag}<answer>{ANSWERS[question] if right else 'no'}</answer>"

    return say


def evaluate(upstream: Upstream, out: Path, *options: str) -> list[dict[str, Any]]:
    """Traces of `vf-eval roi-exam`."""
    with serving(upstream.app()) as url:
        command = [str(Path(sys.executable).parent / "vf-eval"), "roi-exam", "--model", "stub", "-r", "1"]
        command += ["--client.base-url", f"{url}/v1", "--client.api-key-var", "ANY_KEY", "--no-push", "--no-rich"]
        command += ["--output-dir", str(out), *options]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "examples" / "integrations" / "roi_exam")])
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, "PYTHONPATH": paths, "PATH": path, "ANY_KEY": "-"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd=out.parent)
        assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.rglob("traces.jsonl")
    episodes = [json.loads(line) for line in file.read_text().splitlines()]
    return [trace for episode in episodes for trace in episode.get("traces", [episode])]


def score(trace: dict[str, Any], name: str) -> float:
    return float(trace["rewards"][name]["score"])


def test_the_evaluation_command_keeps_budgets_and_rewards(tmp_path: Path) -> None:
    upstream = Upstream(answer=answer(), thinks=20)
    traces = evaluate(
        upstream, tmp_path / "out", "-n", "3", "--env.taskset.num-tasks", "4", "--env.taskset.budget", "60"
    )
    assert len(traces) == 3
    assert sum(trace["num_output_tokens"] for trace in traces) == upstream.generated
    for trace in traces:
        costs, right = trace["info"]["exam"]["costs"], trace["info"]["exam"]["right"]
        assert sum(costs) == trace["num_output_tokens"] == trace["metrics"]["spent"] <= 60
        assert right == [True] * sum(cost >= 22 for cost in costs) + [False] * sum(cost < 22 for cost in costs)
        assert score(trace, "score") == sum(right) / 4
        assert trace["metrics"]["overspent"] == 0
    caps = sorted(seen.cap for seen in upstream.seen)
    assert caps[-3:] == [60, 60, 60], "the first question may cost all of it"
    said = [int(re.findall(r"Tokens left: (\d+)", seen.prompt)[-1]) for seen in upstream.seen]
    assert said == [seen.cap for seen in upstream.seen], "what is told is the cap"


@pytest.mark.parametrize(("thinks", "level", "rational"), [(2, 0, 1.0), (2, 1, 0.0), (40, 1, 1.0), (40, None, 0.0)])
def test_rational_is_right_and_announced(thinks: int, level: int | None, rational: float, tmp_path: Path) -> None:
    """The level that an answer has is that of what it cost: 4 or 42 tokens."""
    upstream = Upstream(answer=answer(level), thinks=thinks)
    options = ("-n", "1", "--env.taskset.num-tasks", "2", "--env.taskset.budget", "500")
    (trace,) = evaluate(upstream, tmp_path / "out", *options)
    assert (score(trace, "score"), score(trace, "rational")) == (1.0, rational)


def test_refusals_and_wrong_answers_earn_nothing(tmp_path: Path) -> None:
    for number, (level, right) in enumerate([(3, True), (1, False)]):
        upstream = Upstream(answer=answer(level, right), thinks=0)
        options = ("-n", "1", "--env.taskset.num-tasks", "3", "--env.taskset.budget", "100")
        (trace,) = evaluate(upstream, tmp_path / str(number), *options)
        assert score(trace, "score") == score(trace, "rational") == 0.0
        assert trace["metrics"]["asked"] == 3


def test_exams_are_named_by_their_numbers() -> None:
    def load(**fields: Any) -> list[Any]:
        return [task.data for task in ROIExamTaskset(ROIExamConfig(id="roi-exam", **fields))]

    many, few = load(num_exams=6), load(num_exams=3)
    assert [exam.questions for exam in many[:3]] == [exam.questions for exam in few]
    assert len({exam.name for exam in many}) == 6
    assert all(len(set(exam.questions)) == 5 for exam in many)
    assert load(seed=1)[0].questions != many[0].questions
    assert many[0].level_edges == sorted(many[0].level_edges)
    for fields, message in (
        ({"table": "none.parquet"}, "none.parquet"),
        ({"num_tasks": 10**6}, "questions"),
        ({"grader": "x"}, "unknown grader"),
    ):
        with pytest.raises(Exception, match=message):
            load(**fields)
