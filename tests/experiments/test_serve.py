"""The proxy with the `openai` client: answers, budgets, refusals, restarts, credentials."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")
pytest.importorskip("openai", reason="needs the extra [dev]")

import openai
from typer.testing import CliRunner

from experiments.cli import app
from experiments.config import ConfigError
from experiments.serve import application, make_budget, parse_budgets
from roi_env.solvers.base import ThinkingTier
from roi_env.solvers.http import HTTPSolver
from roi_env.solvers.journal import Ledger
from tests.upstream import FAULTS, Upstream, schedule, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]


@contextmanager
def proxy(
    upstream: Upstream,
    state: Path,
    budgets: dict[str, int],
    *,
    token: str | None = None,
    agent: str = "fixed-2",
    window: int = 4,
    expected: int = 50,
) -> Iterator[str]:
    with serving(upstream.app()) as url:
        solver = HTTPSolver(
            f"{url}/v1",
            "stub",
            "vllm",
            first_wait=0.001,
            deadline=2.0,
            retries=20,
            count=lambda text: len(text.split()),
        )
        made = [
            make_budget(name, tokens, solver, TIERS, agent, expected, window, state) for name, tokens in budgets.items()
        ]
        with serving(application(made, solver, token)) as address:
            yield address


def client(address: str, key: str = "unused", **options: Any) -> Any:
    return openai.OpenAI(base_url=address, api_key=key, timeout=30, **options)


def ask(caller: Any, text: str = "six times seven?", **options: Any) -> Any:
    return caller.chat.completions.create(model="stub", messages=[{"role": "user", "content": text}], **options)


def status(address: str, key: str = "none") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{address}/budgets", headers={"authorization": f"Bearer {key}"}).json()[
        "budgets"
    ]
    return found


def test_a_client_changes_nothing_but_its_address(tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 300, "b": 100}) as address:
        caller = client(f"{address}/a/v1")
        assert [model.id for model in caller.models.list()] == ["stub"]
        raw = caller.chat.completions.with_raw_response.create(
            model="stub", messages=[{"role": "system", "content": "brief"}, {"role": "user", "content": "?"}]
        )
        answer = raw.parse()
        assert answer.choices[0].message.content == "the answer is 42"
        assert answer.usage.completion_tokens == 24
        assert answer.usage.completion_tokens_details.reasoning_tokens == 20
        assert answer.usage.model_extra["roi"]["remaining"] == 276
        headers = {name: value for name, value in raw.headers.items() if name.startswith("x-roi-")}
        assert headers == {"x-roi-budget": "a", "x-roi-tier": "long", "x-roi-charged": "24", "x-roi-remaining": "276"}
        assert status(address)[1]["remaining"] == 100, "budgets are apart"
        ask(client(f"{address}/v1"))
        assert status(address)[0]["charged"] == 48, "/v1 is the first budget"
        pieces = list(ask(client(f"{address}/b/v1"), stream=True, stream_options={"include_usage": True}))
        assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == "the answer is 42"
        assert pieces[-1].usage.completion_tokens == 24


def test_a_spent_budget_is_one_clear_error(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 60}) as address:
        caller = client(f"{address}/a/v1", max_retries=5)
        answered = [ask(caller) for _ in range(3)]
        assert [answer.usage.completion_tokens for answer in answered] == [24, 24, 12]
        assert answered[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.RateLimitError, match="is spent") as caught:
            ask(caller)
        assert caught.value.code == "budget_exhausted"
        assert caught.value.response.headers["x-roi-remaining"] == "0"
        assert len(upstream.seen) == 3
        assert status(address)[0] == {
            "budget": "a", "tokens": 60, "charged": 60, "reserved": 0, "remaining": 0, "asked": 3,
        }  # fmt: skip


def test_what_the_agent_skips_is_a_refusal_that_costs_nothing(tmp_path: Path) -> None:
    upstream = Upstream()
    with proxy(upstream, tmp_path, {"a": 60}, agent="skip") as address:
        answer = ask(client(f"{address}/a/v1"))
        assert answer.choices[0].message.content is None
        assert "skipped" in answer.choices[0].message.refusal
        assert answer.usage.completion_tokens == 0
        assert not upstream.seen


def test_concurrent_clients_and_faults_stay_within_the_budget_and_restarts_remember(tmp_path: Path) -> None:
    quick = tuple(fault for fault in FAULTS if fault not in ("drip", "silence", "overshoot"))
    upstream = Upstream(schedule(0, 120, quick, share=0.4), latency=0.005)

    def one(address: str) -> str:
        try:
            ask(client(f"{address}/a/v1", max_retries=0))
            return "answered"
        except openai.APIStatusError as error:
            return str(error.code)

    with proxy(upstream, tmp_path, {"a": 1500}) as address:
        with ThreadPoolExecutor(12) as pool:
            outcomes = list(pool.map(one, [address] * 70))
        (before,) = status(address)
    assert set(outcomes) == {"answered", "upstream_error", "budget_exhausted"}
    assert before["remaining"] == before["reserved"] == 0
    assert upstream.generated <= before["charged"] <= 1500
    ledger = Ledger(tmp_path / "a.jsonl")
    assert not ledger.unknown
    assert ledger.charged == before["charged"]
    ledger.close()
    with proxy(Upstream(), tmp_path, {"a": 1500}) as address:
        assert status(address) == [before]
        assert one(address) == "budget_exhausted"
    with proxy(Upstream(), tmp_path, {"a": 9999}) as address:
        (more,) = status(address)
        assert (more["charged"], more["remaining"]) == (before["charged"], 9999 - before["charged"])
        assert one(address) == "answered"


def test_credentials_stay_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "upstream-key")
    upstream = Upstream(["ok", "422"])
    with proxy(upstream, tmp_path, {"a": 600}, token="proxy-token") as address:
        for key in ("wrong", "upstream-key"):
            with pytest.raises(openai.AuthenticationError):
                ask(client(f"{address}/a/v1", key))
        assert httpx.get(f"{address}/budgets").status_code == 401
        assert not upstream.seen
        ask(client(f"{address}/a/v1", "proxy-token"))
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client(f"{address}/a/v1", "proxy-token"))
        assert caught.value.status_code == 502
        assert len(upstream.seen) == 2, "a client does not ask again by itself"
    assert [seen.headers["authorization"] for seen in upstream.seen] == ["Bearer upstream-key"] * 2
    kept = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "token" not in kept.replace("tokens", "").replace("reasoning_tokens", "").replace("tokenizer", "")
    assert "upstream-key" not in kept + str(caught.value)


def test_requests_that_cannot_be_budgeted_are_refused(tmp_path: Path) -> None:
    with proxy(Upstream(), tmp_path, {"a": 600}) as address:
        caller = client(f"{address}/a/v1", max_retries=0)
        for options in ({"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
            with pytest.raises(openai.BadRequestError):
                ask(caller, **options)
        with pytest.raises(openai.NotFoundError, match="no budget"):
            ask(client(f"{address}/c/v1"))
        assert httpx.post(f"{address}/a/v1/chat/completions", content="{").status_code == 400
        image = [{"type": "image_url", "image_url": {"url": "data:"}}]
        with pytest.raises(openai.BadRequestError):
            caller.chat.completions.create(model="stub", messages=[{"role": "user", "content": image}])
        assert status(address)[0]["charged"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "5", "--host", "0.0.0.0"), "--token-env"),
        (("--budget", "5", "--token-env", "NO_SUCH_VARIABLE"), "is empty"),
        (("--budget", "x=y"), "must read TOKENS"),
        (("--budget", "a=5", "--budget", "a=6"), "named twice"),
        (("--budget", "v1=5"), "must read TOKENS"),
    ],
)
def test_wrong_options_are_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(
            app, ["serve", "--upstream", "http://127.0.0.1:9/v1", "--model", "m", *arguments], catch_exceptions=False
        )
    assert parse_budgets(["50", "b=7"]) == {"default": 50, "b": 7}


@pytest.mark.slow
def test_a_killed_proxy_charges_what_was_in_flight(tmp_path: Path) -> None:
    upstream = Upstream(["ok"], latency=0.0)
    with serving(upstream.app()) as url, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        code = "import sys; from experiments.cli import main; sys.argv = ['roi', *sys.argv[1:]]; main()"
        command = [
            sys.executable,
            "-c",
            code,
            "serve",
            "--budget",
            "a=500",
            "--upstream",
            f"{url}/v1",
            "--model",
            "stub",
        ]
        command += ["--backend", "vllm", "--tier", "now=0+10", "--tier", "long=40+10", "--agent", "fixed-2"]
        command += ["--state", str(tmp_path), "--port", str(port)]
        address = f"http://127.0.0.1:{port}"

        def start() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ))
            while True:
                assert process.poll() is None, "the proxy ended"
                try:
                    httpx.get(f"{address}/budgets")
                    return process
                except httpx.HTTPError:
                    time.sleep(0.1)

        process = start()
        ask(client(f"{address}/a/v1"))
        upstream.latency = 20.0

        def fail() -> None:
            with pytest.raises(openai.APIError):
                ask(client(f"{address}/a/v1", max_retries=0))

        lost = threading.Thread(target=fail)
        lost.start()
        while len(upstream.seen) < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lost.join()
        upstream.latency = 0.0
        process = start()
        (found,) = status(address)
        process.terminate()
        process.wait()
    assert found["charged"] == 24 + 51, "the request in flight stays charged at its reservation"
    assert found["remaining"] == 500 - 75
