"""What outlives a proxy: what its agent has learned, and that a warning was sent."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from experiments.config import ConfigError
from experiments.serving import desk, webhooks
from experiments.serving.amounts import Plan, read_plans
from experiments.serving.app import application
from experiments.serving.budget import Budget, make_budget
from roi_env.answering.base import ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.envs.live import KnownGroups, default_laws
from tests.experiments.serving.test_budgets import until
from tests.upstream import Upstream, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]


@contextmanager
def proxy(
    state: Path, plan: Plan, agent: str = "online-lp", known: KnownGroups | None = None
) -> Iterator[tuple[str, Budget]]:
    upstream = Upstream(answer=lambda prompt: "the answer is 42" if "easy" in prompt else "well " * 30)
    with serving(upstream.app()) as url:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm", first_wait=0.001, deadline=20.0)
        budget = make_budget(plan.name, plan, solver, TIERS, agent, 50, 4, state, known=known)
        with serving(application([budget])) as address:
            yield f"{address}/{plan.name}/v1/chat/completions", budget


def ask(address: str, text: str) -> int:
    body = {"model": "stub", "messages": [{"role": "user", "content": text}]}
    with httpx.Client(verify=False, timeout=30) as client:
        return client.post(address, json=body).status_code


def test_what_an_agent_learned_is_known_after_a_restart(tmp_path: Path) -> None:
    plan = Plan("a", 5000)
    with proxy(tmp_path, plan) as (address, budget):
        fresh = budget.session._state
        for number in range(12):
            assert ask(address, ("easy" if number % 3 else "hard " * 40) + "?") == 200
        learned = budget.session._state
    with proxy(tmp_path, plan) as (_, again):
        relearned = again.session._state
        assert again.asked == 12
    assert any(not np.array_equal(getattr(fresh, name), getattr(learned, name)) for name in vars(learned))
    for name in vars(learned):
        np.testing.assert_allclose(getattr(relearned, name), getattr(learned, name), err_msg=name)


def test_other_tiers_after_a_restart_are_not_taught_by_the_old_ones(tmp_path: Path) -> None:
    with proxy(tmp_path, Plan("a", 5000)) as (address, _):
        ask(address, "easy")
    old, TIERS[:] = list(TIERS), [ThinkingTier("other", 0, 20), ThinkingTier("more", 50, 20)]
    try:
        with proxy(tmp_path, Plan("a", 5000)) as (address, budget):
            assert not budget.session._state.count.any()
            assert ask(address, "easy") == 200
    finally:
        TIERS[:] = old


@pytest.mark.parametrize("agent", ["online-lp", "fixed-1", "remaining-share"])
def test_groups_of_a_predictor_that_came_or_went_are_not_taken_for_others(agent: str, tmp_path: Path) -> None:
    def groups(count: int, name: str) -> KnownGroups:
        laws = default_laws(TIERS, np.linspace(0, 1, count).tolist())
        names, key, share = tuple(f"{name}{n}" for n in range(count)), np.arange(count), np.full(count, 1 / count)
        last = lambda texts, columns: np.full(len(texts), count - 1)  # noqa: E731
        return KnownGroups(tuple(tier.name for tier in TIERS), names, laws, key.astype(np.int32), share, last)

    for known in (groups(8, "a"), None, groups(2, "b"), groups(8, "c")):
        with proxy(tmp_path, Plan("a", 5000), agent, known) as (address, budget):
            fresh = budget.session._state
            assert ask(address, "easy") == 200
            if agent == "online-lp":
                assert not fresh.count.any()
    with proxy(tmp_path, Plan("a", 5000), agent, groups(8, "a")) as (_, budget):
        assert agent != "online-lp" or budget.session._state.count.any(), "the same ones teach"
        assert budget.asked == 4


@contextmanager
def hook(*statuses: int) -> Iterator[tuple[str, list[Any]]]:
    """An address that takes warnings, with one status after the other; the last one repeats."""
    told: list[Any] = []

    async def take(request: Request) -> Response:
        told.append(await request.json())
        status = statuses[min(len(told), len(statuses)) - 1]
        return RedirectResponse("/elsewhere", 307) if status == 307 else Response(status_code=status)

    app = Starlette(routes=[Route("/{path:path}", take, methods=["POST"])])
    with serving(app) as address:
        yield f"{address}/hook", told


@pytest.mark.parametrize("status", [200, 404, 307])
def test_a_warning_is_sent_once_to_the_configured_address_alone(status: int, tmp_path: Path) -> None:
    with hook(status) as (address, told):
        plan = Plan("a", 100, warn_at=0.5, webhook=address)
        with proxy(tmp_path, plan, "fixed-2") as (there, _):
            assert ask(there, "easy") == 200
            assert told == [], "24 of 100"
            for _ in range(2):
                assert ask(there, "easy") == 200
        with proxy(tmp_path, plan, "fixed-2") as (there, budget):
            assert ask(there, "easy") == 200
            budget.clerk.books.database.change("a", 100, add=True)
            assert ask(there, "easy") == 200
    assert [(one["budget"], one["tokens"]) for one in told] == [("a", 100), ("a", 200)]
    assert told[0]["charged"] == 72
    assert set(told[0]) == {"budget", "unit", "tokens", "charged", "reserved", "remaining", "asked", "warn_at"}
    assert "easy" not in json.dumps(told)


@pytest.mark.parametrize(
    "webhook", ["ftp://x/y", "not an address", "http://user:secret@host/x", 7, "file:///etc/passwd", "http://"]
)
def test_other_addresses_are_refused(webhook: Any, tmp_path: Path) -> None:
    path = tmp_path / "budgets.yaml"
    path.write_text(f"budgets:\n  a: {{amount: 5k, warn_at: 0.5, webhook: {json.dumps(webhook)}}}\n")
    with pytest.raises(ConfigError, match=r"budgets\.a\.webhook"):
        read_plans(path)


def test_a_webhook_needs_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "budgets.yaml"
    path.write_text("budgets:\n  a: {amount: 5k, webhook: 'https://example.com/x'}\n")
    with pytest.raises(ConfigError, match="needs warn_at"):
        read_plans(path)
    path.write_text("budgets:\n  a: {amount: 5k, warn_at: 0.5, webhook: 'https://example.com/x'}\n")
    assert read_plans(path)[0].webhook == "https://example.com/x"


def test_an_address_that_is_not_there_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.serving.webhooks import tell

    said: list[str] = []
    monkeypatch.setattr(webhooks, "WAITS", (0.0, 0.01))
    asyncio.run(tell("http://127.0.0.1:1/secret-path", {"budget": "a"}, said.append, asyncio.Event()))
    (line,) = said
    assert "a: the warning did not reach the webhook at 127.0.0.1, and is given up after 3 tries: " in line
    assert "secret-path" not in line


@pytest.mark.parametrize(
    ("statuses", "sent", "said"),
    [((500, 429, 503, 204), 4, ""), ((502,), 4, "given up after 4 tries: HTTP 502"), ((403,), 1, "given up: HTTP 403")],
)
def test_a_warning_that_was_lost_on_the_way_is_sent_again_a_few_times(
    statuses: tuple[int, ...],
    sent: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(webhooks, "WAITS", (0.0, 0.01, 0.02))
    with hook(*statuses) as (address, told):
        plan = Plan("a", 100, warn_at=0.2, webhook=address)
        with proxy(tmp_path, plan, "fixed-2") as (there, _):
            for _ in range(2):
                assert ask(there, "easy") == 200
            until(lambda: len(told) == sent)
    assert [one["charged"] for one in told] == [24] * sent, "and not anew with the next answer"
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("the warning did not reach") == bool(said)
    assert said in printed


def test_a_proxy_that_ends_tries_once_more_and_waits_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webhooks, "WAITS", (3600.0,) * 5)
    with hook(500) as (address, told):
        plan = Plan("a", 100, warn_at=0.2, webhook=address)
        with proxy(tmp_path, plan, "fixed-2") as (there, _):
            assert ask(there, "easy") == 200
            until(lambda: told)
    assert len(told) == 2
    assert "given up after 2 tries: HTTP 500" in " ".join(capsys.readouterr().out.split())


def test_a_proxy_that_ends_waits_for_no_webhook_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(desk, "_LAST", 0.1)
    monkeypatch.setattr(webhooks, "_SECONDS", 3600.0)
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        plan = Plan("a", 100, warn_at=0.2, webhook=f"http://127.0.0.1:{hangs.getsockname()[1]}/hook")
        with proxy(tmp_path, plan, "fixed-2") as (there, _):
            assert ask(there, "easy") == 200
            asked, _ = hangs.accept()
    asked.close()
    assert "is given up: no answer came before the proxy ended" in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.glob("*.lock"))
