"""Programs of others against a real `roi serve`: Node with OpenAI's client, curl, lm-evaluation-harness, Inspect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from asked import ANSWER, ASKED, COST, TOOLS, Proxy
from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool

NODE = Path(sys.prefix) / "node"


def run(*command: str | Path, cwd: Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OPENAI_API_KEY": "unused", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def test_openai_for_node(served: Proxy) -> None:
    with served.charges(5 * COST), served.refuses(most=2):
        done = run("node", Path(__file__).parent / "client.mjs", served.address, NODE / "node_modules", cwd=NODE)
    told = json.loads(done.stdout)
    assert told["whole"] == told["stream"] == told["responses"] == told["after_tool"] == ANSWER
    assert told["usage"] == told["stream_usage"] == COST
    assert told["call"] == {"name": "ask", "arguments": {"question": "6 * 7"}}
    for error in (told["spent"], told["spent_stream"]):
        assert (error["status"], error["code"]) == (429, "budget_exhausted")
        assert "is spent" in error["message"]


def test_curl(served: Proxy, tmp_path: Path) -> None:
    def curl(budget: str, **fields: Any) -> tuple[int, dict[str, str], str]:
        body, head = json.dumps({"messages": ASKED, **fields}), tmp_path / "head"
        command = ["curl", "--silent", "--no-buffer", "--dump-header", str(head), "--write-out", "\n%{http_code}"]
        command += [
            f"{served.address}/{budget}/v1/chat/completions",
            "-H",
            "content-type: application/json",
            "-d",
            body,
        ]
        text, _, status = run(*command, cwd=tmp_path).stdout.rpartition("\n")
        lines = [line.split(": ", 1) for line in head.read_text().splitlines() if ": " in line]
        return int(status), {name.lower(): value for name, value in lines}, text

    with served.charges(3 * COST):
        status, headers, text = curl("a")
        told = json.loads(text)
        assert (status, told["choices"][0]["message"]["content"]) == (200, ANSWER)
        assert headers["x-roi-charged"] == str(told["usage"]["completion_tokens"]) == str(COST)
        status, headers, text = curl("a", stream=True)
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        assert (status, headers["content-type"].split(";")[0], events[-1]) == (200, "text/event-stream", "[DONE]")
        assert json.loads(events[-2])["usage"]["completion_tokens"] == COST
        _, _, text = curl("a", tools=TOOLS)
        assert json.loads(text)["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "ask"
    for stream in (False, True):
        with served.refuses():
            status, headers, text = curl("spent", stream=stream)
        assert (status, headers["x-roi-remaining"], headers["x-should-retry"]) == (429, "0", "false")
        assert json.loads(text)["error"]["code"] == "budget_exhausted"


def lm_eval(folder: Path, address: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Its own command on three questions."""
    rows = [{"question": f"what is {n}?", "answer": "42"} for n in range(3)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "sums", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["END"], "max_gen_toks": 60},
        "filter_list": [{"name": "number", "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "sums.yaml").write_text(json.dumps(task))
    told = {"model": "stub", "base_url": f"{address}/v1/chat/completions", "tokenizer_backend": "None", **options}
    command = [Path(sys.executable).parent / "lm_eval", "--model", "local-chat-completions", "--apply_chat_template"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in told.items()), "--tasks", "sums"]
    command += ["--include_path", folder, "--output_path", folder / "out", "--log_samples"]
    return run(*command, cwd=folder, code=None)


def test_lm_evaluation_harness(served: Proxy, tmp_path: Path) -> None:
    for number, more in enumerate(({}, {"num_concurrent": 3})):
        folder = tmp_path / str(number)
        folder.mkdir()
        with served.charges(3 * COST):
            done = lm_eval(folder, f"{served.address}/a", **more)
        assert done.returncode == 0, done.stdout + done.stderr
        (results,) = (folder / "out").rglob("results_*.json")
        assert json.loads(results.read_text())["results"]["sums"]["exact_match,number"] == 1.0
        # It asks three times by itself, whatever the error.
        with served.refuses(most=9):
            done = lm_eval(folder, f"{served.address}/spent", **more)
        assert done.returncode != 0
        assert "is spent" in done.stdout + done.stderr


def inspect(folder: Path, address: str, solver: Any = None) -> EvalLog:
    samples = [Sample(f"what is {number}?", target="42", id=f"q{number}") for number in range(3)]
    task = Task(MemoryDataset(samples), name="sums", solver=solver or generate(), scorer=includes())
    options: dict[str, Any] = {"model_base_url": f"{address}/v1", "model_args": {"api_key": "unused"}}
    (log,) = evaluate(task, model="openai-api/roi/stub", log_dir=str(folder), display="none", **options)
    return log


@tool
def ask() -> Tool:
    async def execute(question: str) -> str:
        """Ask somebody.

        Args:
            question: What to ask.
        """
        return "42"

    return execute


def test_inspect(served: Proxy, served_402: Proxy, tmp_path: Path) -> None:
    """It repeats a 429 for ever, and nothing else that says a budget is spent."""
    with served.charges(3 * COST):
        log = inspect(tmp_path, f"{served.address}/a")
    assert log.status == "success"
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert log.stats.model_usage["openai-api/roi/stub"].output_tokens == 3 * COST
    called = inspect(tmp_path, f"{served.address}/a", [use_tools(ask()), generate()])
    roles = [message.role for message in (called.samples or [])[0].messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    with served_402.refuses(most=3):
        log = inspect(tmp_path, f"{served_402.address}/spent")
    assert log.status == "error"
    assert log.error is not None
    assert "is spent" in log.error.message
