"""Commands and environment against a real server (`transformers serve`), with a faulty upstream in front of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")
pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")

import gymnasium as gym

import roi_env  # noqa: F401 - registers the ids
from agents.made_for import OtherExams
from experiments.config import ConfigError
from roi_env.answering.base import Question, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.ledger import Ledger
from roi_env.answering.questions import read_questions
from roi_env.answering.recording import LiveRecording
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.recorded import recorded_source
from tests.commands import roi
from tests.servers import MODEL, transformers_serve
from tests.upstream import Upstream, schedule, serving

pytestmark = pytest.mark.slow
TIERS = ["--tier", "answer=0+24", "--tier", "long=160+24"]
SUMS = "rg:chain_sum?size=12&min_terms=2&max_terms=4&min_digits=1&max_digits=1"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with transformers_serve() as url:
        yield url


def test_probe_finds_what_is_known_of_this_server(server: str) -> None:
    output = roi("probe", server, "--backend", "transformers", "--trials", "2", "--temperature", "0")
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in output.splitlines() if "│" in line}
    assert lines["thinking_token_budget=8"] == "rejected"
    assert lines["chat_template_kwargs.enable_thinking=False"] == "hard"
    assert lines["effort low/medium/high"] == "none"
    assert next(kind for field, kind in lines.items() if field.startswith("total cap")) == "hard"


def test_record_through_faults_and_regrade(server: str, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    quick = ("429", "429-after", "500", "reset", "truncated", "wrong-type", "no-usage", "empty")
    upstream = Upstream(schedule(1, 30, quick), real=server)
    with serving(upstream.app()) as url:
        arguments = ["record", str(MODEL), "--endpoint", f"{url}/v1", "--backend", "transformers", "--out", str(out)]
        arguments += [
            "--questions",
            SUMS,
            "--limit",
            "6",
            "--samples",
            "2",
            "--name",
            "tiny",
            "--tokenizer",
            str(MODEL),
            *TIERS,
        ]
        output = roi(*arguments, "--max-tokens-total", "400")
        assert "Stopped at the limit of 400 tokens" in output
        with pytest.raises(ConfigError, match="other settings"):
            roi(*arguments, "--temperature", "0.1")
        output = roi(*arguments, "--resume")
        assert "24 of 24 done, 0 permanent errors" in output
        asked = len(upstream.seen)
        roi(*arguments)
        assert len(upstream.seen) == asked
    table = OutcomeTable.read(out)
    assert table.num_rows == 24
    assert table.menus == ("tiny",)
    right = [row["correct"] for row in table.rows.to_pylist() if row["tier"] == "long"]
    assert sum(right) >= 6, "the model can do short sums"
    assert recorded_source(table, split="all", beliefs_split="all").num_tiers == 2
    assert roi("table", str(out))
    again = tmp_path / "exact.parquet"
    roi("regrade", str(tmp_path / "t.journal.jsonl"), "--out", str(again), "--grader", "exact")
    assert OutcomeTable.read(again).numbers("correct").tolist() == table.numbers("correct").tolist()
    roi("regrade", str(tmp_path / "t.journal.jsonl"), "--out", str(again), "--grader", "choice")
    assert not OutcomeTable.read(again).numbers("correct").any()


def test_a_forced_answer_costs_and_says_the_same_here_and_there(server: str, tmp_path: Path) -> None:
    """At temperature 0 a recording over an endpoint is that of the model in this process, token by token."""
    options = ["--questions", SUMS, "--limit", "4", "--samples", "1", "--grader", "number", "--temperature", "0"]
    options += ["--dialect", "instruct", "--prompt", "{question}", "--answer-tokens", "14"]
    options += ["--tier", "now=0", "--tier", "cut=17", "--tier", "whole=40"]
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    patient = ["--grade-seconds", "100"]
    roi("record", str(MODEL), *options, *patient, "--dtype", "float32", "--threads", "1", "--out", str(here))
    there_too = ["--endpoint", server, "--backend", "transformers", "--tokenizer", str(MODEL)]
    roi("record", str(MODEL), *options, *patient, *there_too, "--out", str(there))
    tables = [OutcomeTable.read(path) for path in (here, there)]
    assert tables[0].pairing
    assert tables[1].pairing
    assert list(tables[0].level_edges.values()) == list(tables[1].level_edges.values())
    kept = ("question_id", "tier", "sample", "tokens", "correct")
    found = [[tuple(row[name] for name in kept) for row in table.rows.to_pylist()] for table in tables]
    assert found[0] == found[1]
    lines = [json.loads(line) for line in here.with_suffix(".journal.jsonl").read_text().splitlines()[1:]]
    texts = [outcome["text"] for line in lines for outcome in line["tiers"]]
    assert any(outcome["cut"] for line in lines for outcome in line["tiers"])
    replies = LiveRecording(Ledger(there.with_suffix(".journal.jsonl"))).outcomes()
    assert [replies[key].text for key in sorted(replies, key=lambda key: (key[1], key[2]))] == [
        text for _, text in sorted(zip(((row[0], row[1]) for row in found[0]), texts, strict=True))
    ]
    answer = [
        "answer",
        SUMS,
        "--limit",
        "6",
        "--budget",
        "100",
        "--agent",
        "fixed-2",
        *there_too[:4],
        "--model",
        str(MODEL),
    ]
    answer += ["--tokenizer", str(MODEL), *options[-12:], "--temperature", "0", "--grader", "number"]
    roi(*answer, "--out", str(tmp_path / "answers"))
    audit = json.loads((tmp_path / "answers" / "audit.json").read_text())
    assert audit["within"]
    assert (audit["charged"], audit["overshoot"]) == (100, 0)


def test_answer_through_faults(server: str, tmp_path: Path) -> None:
    upstream = Upstream(schedule(3, 12, ("429", "500", "reset", "empty")), real=server)
    with serving(upstream.app()) as url:
        arguments = ["answer", SUMS, "--budget", "300", "--endpoint", f"{url}/v1", "--backend", "transformers"]
        arguments += ["--model", str(MODEL), "--out", str(tmp_path / "a"), "--grader", "reasoning-gym", *TIERS]
        output = roi(*arguments, "--window", "3")
    audit = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert upstream.generated <= audit["charged"] <= 300
    assert audit["within"]
    assert audit["right"] >= 2
    assert "tokens charged" in output
    rows = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    with pytest.raises(ConfigError, match="--resume goes on"):
        roi(*arguments)


@pytest.mark.parametrize("agent", ["online-lp", "llm"])
def test_answer_with_the_model_in_this_process(agent: str, tmp_path: Path) -> None:
    asked = ["answer", SUMS, "--budget", "300", "--model", str(MODEL), "--out", str(tmp_path / "a"), "--window", "4"]
    # Two tiers are fewer than the model was taught.
    with pytest.warns(OtherExams) if agent == "llm" else nullcontext():
        roi(*asked, *TIERS, "--agent", agent)
    audit = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert 0 < audit["charged"] <= 300
    assert audit["by_status"]["answered"] > 3


def test_the_live_environment(server: str) -> None:
    tiers = [ThinkingTier("answer", 0, 24), ThinkingTier("long", 160, 24)]
    solver = HTTPSolver(server, str(MODEL), "transformers", temperature=0.7)
    env = gym.make(
        "ROIReasoning-Live-v0",
        questions=read_questions(SUMS),
        tiers=tiers,
        solver=solver,
        grader="reasoning-gym",
        num_tasks=6,
        budget=200,
    )
    _, info = env.reset(seed=0)
    terminated, paid = False, 0
    while not terminated:
        _, _, terminated, _, info = env.step(2 if info["action_mask"][2] else 0)
        paid += info["tokens"]
        assert info["overshoot"] == 0
    assert info["spent"] == paid <= 200
    assert info["score"] >= 2
    env.close()


def test_the_openai_client_through_the_proxy(server: str, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="needs the extra [dev]")
    from experiments.serving.app import application
    from experiments.serving.budget import make_budget

    tiers = [ThinkingTier("answer", 0, 24), ThinkingTier("long", 160, 24)]
    solver = HTTPSolver(server, str(MODEL), "transformers", temperature=0.7)
    budget = make_budget("a", 100, solver, tiers, "fixed-2", 20, 4, tmp_path)
    with serving(application([budget], None)) as address:
        client = openai.OpenAI(base_url=f"{address}/a/v1", api_key="unused", timeout=60)
        charged, answers = [], 0

        def ask(question: Question) -> None:
            nonlocal answers
            messages = [{"role": "user", "content": question.text}]
            answer = client.chat.completions.create(model=str(MODEL), messages=messages)
            charged.append(answer.usage.completion_tokens)
            answers += f"<answer>{question.answer}<" in (answer.choices[0].message.content or "")

        questions = itertools.cycle(read_questions(SUMS))
        while sum(charged) < 100:
            ask(next(questions))
        with pytest.raises(openai.RateLimitError, match="is spent"):
            ask(next(questions))
    assert sum(charged) == 100
    assert answers >= 2
