"""Our commands against a real vLLM with hard thinking budgets (`make test-vllm`; outside CI)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")


from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.questions import read_questions
from roi_env.sources.outcome_tables import OutcomeTable
from tests import commands
from tests.servers import MODEL, vllm_serve
from tests.upstream import Upstream, schedule, serving

pytestmark = pytest.mark.skipif("ROI_VLLM" not in os.environ, reason="needs vLLM: make test-vllm")
TIERS = ["--tier", "answer=0+24", "--tier", "short=16+24", "--tier", "long=160+24"]
SUMS = "rg:chain_sum?size=12&min_terms=4&max_terms=6&min_digits=1&max_digits=1"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with vllm_serve() as url:
        yield url


def roi(*arguments: str) -> str:
    output = commands.roi(*arguments)
    print(output)
    return output


def ask(server: str, asks: list[Ask]) -> list[Reply]:
    async def run() -> list[Reply]:
        solver = HTTPSolver(server, "tiny", "vllm", temperature=0.7, seed=0)
        try:
            return list(await asyncio.gather(*(solver.answer(one) for one in asks)))
        finally:
            await solver.close()

    return asyncio.run(run())


def test_probe_finds_hard_budgets_and_useless_efforts(server: str) -> None:
    output = roi("probe", server, "--backend", "vllm", "--trials", "2")
    kinds = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in output.splitlines() if "│" in line}
    assert kinds["thinking_token_budget=8"] == "hard"
    assert kinds["custom_params.thinking_budget=8"] == "none", "an unknown field is accepted and ignored"
    assert kinds["effort low/medium/high"] == "none"
    assert next(kind for field, kind in kinds.items() if "enable_thinking=False" in field) == "hard"
    assert next(kind for field, kind in kinds.items() if field.startswith("total cap")) == "hard"


def test_tiers_are_enforced_to_the_token_and_the_split_is_exact(server: str) -> None:
    questions = read_questions(SUMS)
    for thinking in (4, 8, 16):
        tier = ThinkingTier("t", thinking, 24)
        for reply in ask(server, [Ask(question, tier, tier.most_tokens) for question in questions]):
            assert reply.error is None
            assert reply.counted == "server"
            assert reply.reasoning_tokens is not None
            assert reply.reasoning_tokens <= thinking
            assert reply.reasoning_tokens < reply.tokens <= tier.most_tokens
        assert reply.reasoning_tokens == thinking, "sums of four terms need more"
    direct = ThinkingTier("now", 0, 24)
    for reply in ask(server, [Ask(question, direct, 24) for question in questions]):
        assert not reply.reasoning
        assert reply.tokens < 24
    for reply in ask(server, [Ask(question, ThinkingTier("t", 160, 24), 5) for question in questions]):
        assert (reply.tokens, reply.text, reply.finish) == (5, "", "length")


def test_record_answer_and_the_proxy(server: str, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    upstream = Upstream(schedule(1, 40, ("429", "500", "reset", "truncated")), real=server)
    with serving(upstream.app()) as url:
        record = ["record", "tiny", "--endpoint", f"{url}/v1", "--backend", "vllm", "--out", str(out), *TIERS]
        output = roi(*record, "--questions", SUMS, "--samples", "4")
    assert "144 of 144 done, 0 permanent errors" in output
    rows = OutcomeTable.read(out).rows.to_pylist()
    right = {tier: sum(row["correct"] for row in rows if row["tier"] == tier) for tier in ("answer", "short", "long")}
    assert right["long"] > right["answer"], "thinking helps"
    assert all(row["reasoning_tokens"] <= 16 for row in rows if row["tier"] == "short")
    answer = ["answer", SUMS, "--budget", "250", "--endpoint", server, "--model", "tiny", "--backend", "vllm", *TIERS]
    roi(*answer, "--out", str(tmp_path / "a"), "--grader", "reasoning-gym", "--window", "4")
    audit = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert audit["within"]
    assert audit["overshoot"] == 0
    assert 150 < audit["charged"] <= 250
    assert audit["tokens_by_count"].keys() == {"server"}


def test_a_forced_answer_costs_and_says_the_same_here_and_there(tmp_path: Path) -> None:
    """At temperature 0; of ``ROI_MODEL`` where it names one, a model that reasons in the open."""
    model = os.environ.get("ROI_MODEL", str(MODEL))
    options = ["--questions", SUMS, "--limit", "6", "--samples", "1", "--grader", "reasoning-gym", "--temperature", "0"]
    options += ["--dialect", "instruct", "--tier", "now=0+32", "--tier", "cut=36+32", "--tier", "whole=96+32"]
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    with vllm_serve(model, parser=False) as url:
        at = ["--endpoint", url, "--backend", "vllm", "--tokenizer", model]
        roi("record", "tiny", *options, *at, "--no-seeds", "--out", str(there))
    roi("record", model, *options, "--dtype", "float32", "--out", str(here))
    kept = ("question_id", "tier", "sample", "tokens", "correct")
    found = [
        [tuple(row[name] for name in kept) for row in OutcomeTable.read(path).rows.to_pylist()]
        for path in (here, there)
    ]
    assert OutcomeTable.read(there).pairing
    # Sums in another order decide between tokens that are nearly as likely.
    assert sum(a == b for a, b in zip(*found, strict=True)) >= len(found[0]) - 1


def test_the_openai_client_through_the_proxy(server: str, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="needs the extra [dev]")
    from experiments.serving.app import application
    from experiments.serving.budget import make_budget

    tiers = [ThinkingTier("answer", 0, 24), ThinkingTier("short", 16, 24)]
    solver = HTTPSolver(server, "tiny", "vllm", temperature=0.7)
    budget = make_budget("a", 200, solver, tiers, "fixed-2", 20, 4, tmp_path)
    with serving(application([budget], None)) as address:
        client = openai.OpenAI(base_url=f"{address}/a/v1", api_key="unused", timeout=60)
        charged = 0

        def one(question: Question) -> None:
            nonlocal charged
            messages = [{"role": "user", "content": question.text}]
            answer = client.chat.completions.create(model="tiny", messages=messages)
            assert answer.usage.completion_tokens_details.reasoning_tokens <= 16
            charged += answer.usage.completion_tokens

        questions = iter(read_questions(SUMS) * 3)
        while charged < 200:
            one(next(questions))
        with pytest.raises(openai.RateLimitError, match="is spent"):
            one(next(questions))
    assert charged == 200
