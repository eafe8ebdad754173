"""LangChain's own agents under one budget, against an endpoint that knows what it truly generated."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain", reason="needs an environment of make test-integrations")
langchain_openai = pytest.importorskip("langchain_openai", reason="needs an environment of make test-integrations")

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.tools import tool

from roi_env.answering.ledger import JournalError
from roi_env.integrations.langchain import BudgetMiddleware, BudgetSpent
from tests.upstream import Upstream, serving

ROOT = Path(__file__).parents[2]
ASKED: Any = {"messages": [("user", "six times seven?")]}


@tool
def ask(question: str) -> str:
    """Compute a product such as 6 * 7."""
    left, right = question.split("*")
    return str(int(left) * int(right))


@contextmanager
def agent_at(upstream: Upstream, *middleware: Any, **options: Any) -> Iterator[Any]:
    with serving(upstream.app()) as url:
        options = {"max_retries": 0, "timeout": 20, **options}
        model = langchain_openai.ChatOpenAI(model="stub", base_url=f"{url}/v1", api_key="unused", **options)
        yield create_agent(model, tools=[ask], middleware=list(middleware))


@pytest.mark.parametrize("budget", [1, 19, 24, 47, 48, 100, 237])
def test_the_books_are_exact_and_the_end_keeps_what_there_is(budget: int) -> None:
    upstream, middleware = Upstream(), BudgetMiddleware(budget, most_per_call=64)
    with agent_at(upstream, middleware) as agent:
        runs = [agent.invoke(ASKED)["messages"] for _ in range(6)]
    audit = middleware.audit()
    assert audit["charged"] == upstream.generated == budget, "six runs cost 288 without a budget"
    assert (audit["within"], audit["reserved"], audit["remaining"]) == (True, 0, 0)
    assert all(seen.cap <= 64 for seen in upstream.seen)
    whole = budget // 48
    assert [messages[-1].text for messages in runs[:whole]] == ["the answer is 42"] * whole
    assert runs[-1][0].text == "six times seven?"
    assert f"{budget} of {budget} tokens" in runs[-1][-1].text
    assert runs[-1][-1].response_metadata["roi"] == audit


def test_the_end_may_be_an_error_that_holds_the_conversation() -> None:
    upstream, middleware = Upstream(), BudgetMiddleware(24, at_end="error")
    with agent_at(upstream, middleware) as agent, pytest.raises(BudgetSpent, match="24 of 24 tokens") as caught:
        agent.invoke(ASKED)
    assert [message.type for message in caught.value.messages] == ["human", "ai", "tool"]
    assert (caught.value.messages[-1].text, upstream.generated) == ("42", 24)


def test_many_at_once_share_it() -> None:
    """Threads, then tasks: nothing is spent twice, and nobody is turned away while others may give back."""
    upstream, middleware = Upstream(latency=0.02), BudgetMiddleware(1000, most_per_call=400)
    with agent_at(upstream, middleware) as agent:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: agent.invoke(ASKED), range(10)))
        assert (upstream.generated, upstream.most_in_flight) == (480, 2)

        async def tasks() -> list[Any]:
            return await asyncio.gather(*(agent.ainvoke(ASKED) for _ in range(10)))

        asyncio.run(tasks())
    assert middleware.audit()["charged"] == upstream.generated == 960


def test_failures_cost_what_they_may_have_cost() -> None:
    faults = ["429", "503", "422", "502", "reset", "truncated", "no-usage", "ok"]
    upstream, middleware = Upstream(faults=faults), BudgetMiddleware(2000, most_per_call=100)
    retry = ModelRetryMiddleware(max_retries=6, initial_delay=0, backoff_factor=0, jitter=False)
    with agent_at(upstream, retry, middleware) as agent:
        assert agent.invoke(ASKED)["messages"][-1].text == "the answer is 42"
    entries = middleware.ledger.entries
    assert [entry.charged for entry in entries] == [0, 0, 0, 100, 100, 100, 100, 24]
    assert sum(entry.charged or 0 for entry in entries) >= upstream.generated
    assert middleware.audit()["tokens_by_count"] == {"nothing": 0, "reserved": 400, "server": 24}


def test_generation_beyond_a_cap_is_charged_and_shown() -> None:
    upstream, middleware = Upstream(faults=["overshoot"]), BudgetMiddleware(40, most_per_call=64)
    with agent_at(upstream, middleware) as agent:
        agent.invoke(ASKED)
    audit = middleware.audit()
    assert (audit["charged"], audit["overshoot"], audit["within"]) == (upstream.generated, 7, True)


@pytest.mark.parametrize("usage", [True, False])
def test_streams_are_charged(usage: bool) -> None:
    upstream, middleware = Upstream(), BudgetMiddleware(2000, most_per_call=100)
    with agent_at(upstream, middleware, stream_usage=usage) as agent:
        list(agent.stream(ASKED, stream_mode="messages"))
    assert middleware.audit()["charged"] == (upstream.generated if usage else 200)


def test_a_model_keeps_its_own_smaller_cap_and_its_answers() -> None:
    upstream, middleware = Upstream(), BudgetMiddleware(1000)
    with agent_at(upstream, middleware, max_tokens=30, n=2) as agent:
        agent.invoke(ASKED)
    assert [seen.cap for seen in upstream.seen] == [30, 30]
    assert middleware.audit()["charged"] == upstream.generated == 96


def test_a_ledger_goes_on(tmp_path: Path) -> None:
    upstream = Upstream()
    for _ in range(2):
        middleware = BudgetMiddleware(60, ledger=tmp_path / "ledger.jsonl")
        with agent_at(upstream, middleware) as agent:
            agent.invoke(ASKED)
        with pytest.raises(JournalError, match="in use"):
            BudgetMiddleware(60, ledger=tmp_path / "ledger.jsonl")
        middleware.close()
    assert middleware.audit()["charged"] == upstream.generated == 60
    with pytest.raises(JournalError, match="budget was 60, is now 70"):
        BudgetMiddleware(70, ledger=tmp_path / "ledger.jsonl")


def test_hidden_retries_and_nonsense_are_refused() -> None:
    with (
        agent_at(Upstream(), BudgetMiddleware(60), max_retries=2) as agent,
        pytest.raises(ValueError, match="max_retries=0"),
    ):
        agent.invoke(ASKED)
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="whole number"):
            BudgetMiddleware(bad)


def test_the_example() -> None:
    upstream = Upstream()
    with serving(upstream.app()) as url:
        command = [sys.executable, "examples/integrations/langchain_agent.py", f"{url}/v1", "stub", "--budget", "200"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    audit = json.loads(done.stdout.splitlines()[-1])
    assert audit["charged"] == upstream.generated == 200
