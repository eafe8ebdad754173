"""Several models behind one address, under budgets of dollars: menus, units, and what is never overspent."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from experiments.cli import app
from experiments.commands import endpoints
from experiments.config import ConfigError
from experiments.serving.amounts import Plan, read_plans
from experiments.serving.app import application
from experiments.serving.budget import Served, make_budget
from experiments.serving.menus import menu_solver, read_menus
from roi_env.answering.base import ThinkingTier
from roi_env.answering.ledger import JournalError
from roi_env.answering.prices import Price
from tests.commands import roi
from tests.upstream import Upstream, serving

TIERS = """
tiers:
  - {{name: quick, endpoint: {small}/v1, backend: vllm, model: little, cap: 40, price: {{prompt: 0.05, completion: 0.4}}}}
  - {{name: large, endpoint: {large}/v1, model: big, cap: 40, price: {{prompt: 1.25, completion: 10}}}}
  - {{name: deep, endpoint: {large}/v1, backend: vllm, model: big, cap: 121, thinking: 100,
     price: {{prompt: 1.25, completion: 10}}}}
menus: {{auto: [quick, large, deep], little: [quick], big: [large, deep]}}
"""


class Meters:
    """An endpoint that answers as many tokens as it likes and adds up what they cost; it may not say.

    :param tells: share of answers with usage.
    """

    def __init__(self, price: tuple[str, str], seed: int, tells: float = 0.8) -> None:
        self.prompt, self.completion = (Fraction(Decimal(one)) for one in price)
        self.rng, self.tells, self.cost, self.asked = np.random.default_rng(seed), tells, Fraction(0), 0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked += 1
        cap = body.get("max_completion_tokens") or body["max_tokens"]
        text = "".join(message["content"] for message in body["messages"])
        kind, made = self.rng.random(), int(self.rng.integers(1, cap + 1))
        read = int(self.rng.integers(1, len(text.encode()) + 5))
        if kind < 0.1:
            return JSONResponse({"error": {"message": "no"}}, 400)
        self.cost += read * self.prompt + made * self.completion
        if kind < 0.2:
            return JSONResponse({"error": {"message": "bad gateway"}}, 502)
        told = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        usage = {"usage": told} if self.rng.random() < self.tells else {}
        finish = "length" if made == cap else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": "42"}, "finish_reason": finish}
        return JSONResponse({"model": body["model"], "choices": [choice], **usage})


@contextmanager
def proxy(
    small: Any, large: Any, folder: Path, budgets: str, *, agent: str = "online-lp", window: int = 8
) -> Iterator[str]:
    """A proxy of two endpoints, as `roi serve --config` makes it."""
    with serving(small.app()) as one, serving(large.app()) as two:
        config = folder / "serve.yaml"
        config.write_text(TIERS.format(small=one, large=two) + f"budgets: {budgets}\n")
        menus = read_menus(config)
        solver = menu_solver(menus, endpoints.Connection(retries=0), concurrency=64)
        served = [Served(menu.name, menu.tiers, menu.rates, menu.models) for menu in menus]
        made = [
            make_budget(plan.name, plan, solver, served, agent, 50, window, folder / "state")
            for plan in read_plans(config)
        ]
        with serving(application(made)) as address:
            yield address


def ask(address: str, name: str = "a", key: str = "none", text: str = "6 * 7?", **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{address}/{name}/v1/chat/completions", json=body, headers=headers, timeout=60, verify=False)


def told(address: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{address}/budgets", headers={"authorization": "Bearer none"}).json()["budgets"][
        number
    ]
    return found


def test_the_clients_model_chooses_a_menu_and_the_budget_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_B", "key-of-b")
    small, large = Upstream(thinks=0), Upstream(thinks=30)
    budgets = "{a: 0.01usd, b: {amount: $5, key_env: KEY_B, models: [little, auto]}}"
    with proxy(small, large, tmp_path, budgets, agent="fixed-1") as address:

        def models(name: str, key: str) -> list[str]:
            answer = httpx.get(f"{address}/{name}/v1/models", headers={"authorization": f"Bearer {key}"}).json()
            return [model["id"] for model in answer["data"]]

        assert models("a", "none") == ["auto", "little", "big"]
        assert models("b", "key-of-b") == ["auto", "little"]
        answers = [ask(address, model=name) for name in ("little", "big", "auto")] + [ask(address)]
        assert [answer.headers["x-roi-tier"] for answer in answers] == ["quick", "large", "quick", "quick"]
        assert (len(small.seen), len(large.seen)) == (3, 1)
        assert [seen.body["model"] for seen in small.seen + large.seen] == ["little"] * 3 + ["big"]
        # 9 tokens of prompt and 4 of answer; the other model: 9 and 34.
        assert [answer.headers["x-roi-charged"] for answer in answers] == [
            "0.000003",
            "0.000352",
            "0.000003",
            "0.000003",
        ]
        assert {answer.headers["x-roi-unit"] for answer in answers} == {"usd"}
        usage = answers[1].json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 34, 43)
        assert usage["roi"] == {
            "budget": "a", "unit": "usd", "tier": "large", "charged": 0.000352, "remaining": 0.009645, "counted": "server",
            "overshoot": 0.0,
        }  # fmt: skip
        assert told(address) == {
            "budget": "a", "unit": "usd", "usd": 0.01, "charged": 0.000361, "reserved": 0.0, "remaining": 0.009639, "asked": 4,
        }  # fmt: skip
        metrics = httpx.get(f"{address}/metrics").text
        assert 'roi_charged_usd_total{budget="a"} 0.000361\n' in metrics
        assert "_tokens" not in metrics
        for key, name, model in (("none", "a", "gpt-9"), ("key-of-b", "b", "big"), ("key-of-b", "b", "gpt-9")):
            refused = ask(address, name, key, model=model)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
            assert refused.json()["error"]["param"] == "model"
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.get(f"{address}/{name}/v1/models/{model}", headers=headers).status_code == 404
        assert ask(address, "b", "key-of-b", model="little").status_code == 200
        pieces = ask(address, model="big", stream=True, stream_options={"include_usage": True}).text.split("\n\n")
        assert json.loads(pieces[-3].removeprefix("data: "))["usage"]["roi"]["charged"] == 0.000352
    with closing(sqlite3.connect(tmp_path / "state" / "budgets.db")) as base:
        assert base.execute("SELECT name, charged, unit FROM budgets ORDER BY name").fetchall() == [
            ("a", 713, "micro-usd"), ("b", 3, "micro-usd"),
        ]  # fmt: skip
    shown = roi("budgets", "top-up", "b", "2.50usd", "--state", str(tmp_path / "state"))
    assert "b: 7.5000 USD of 7.5000 USD left" in shown
    shown = roi("budgets", "list", "--state", str(tmp_path / "state"))
    assert "0.000713" in shown
    assert "USD" in shown
    with pytest.raises(
        ConfigError, match=r"the budget 'b' is US dollars .*, the amount tokens: write one like 2.50usd"
    ):
        roi("budgets", "set", "b", "50k", "--state", str(tmp_path / "state"))


@pytest.mark.parametrize(("clients", "agent"), [(1, "random"), (8, "online-lp"), (64, "random")])
def test_dollars_are_never_overspent(clients: int, agent: str, tmp_path: Path) -> None:
    small, large = Meters(("0.05", "0.4"), clients), Meters(("1.25", "10"), clients + 1)
    rng, micro = np.random.default_rng(clients), 8_000
    requests = [(str(rng.choice(["auto", "little", "big"])), "why? " * int(rng.integers(1, 40))) for _ in range(64)]
    with proxy(small, large, tmp_path, f"{{a: {micro} micro-usd}}", agent=agent, window=clients) as address:
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda one: ask(address, model=one[0], text=one[1]), requests))
        state = told(address)
    charged = round(10**6 * state["charged"])
    assert small.cost + large.cost <= charged <= micro, "what was spent is charged, and is within the budget"
    assert state["reserved"] == 0
    assert {answer.status_code for answer in answers} <= {200, 400, 429, 502}
    assert small.asked
    assert large.asked
    single = sum(round(10**6 * float(answer.headers.get("x-roi-charged", 0))) for answer in answers)
    assert single == charged, "answers tell what was charged"


@pytest.mark.parametrize("clients", [1, 64])
def test_streams_stay_within_dollars(clients: int, tmp_path: Path) -> None:
    faults = ["no-usage" if n % 5 == 0 else "truncated" if n % 7 == 0 else "ok" for n in range(100)]
    words = "the answer is " + "very " * 15 + "long"
    small, large = (Upstream(faults, thinks=0, answer=lambda prompt: words, pace=0.001) for _ in range(2))
    rng, micro = np.random.default_rng(clients), 4_000
    asked = [str(rng.choice(["auto", "little", "big"])) for _ in range(64)]
    with proxy(small, large, tmp_path, f"{{a: {micro} micro-usd}}", agent="random", window=clients) as address:
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda model: ask(address, model=model, stream=True), asked))
        state = told(address)
    charged = round(10**6 * state["charged"])
    truth = sum(9 * Fraction(5, 100) + one.generated * Fraction(4, 10) for one in small.seen)
    truth += sum(9 * Fraction(125, 100) + one.generated * 10 for one in large.seen)
    assert truth <= charged <= micro, "what was spent is charged, and is within the budget"
    assert state["reserved"] == 0
    assert {answer.status_code for answer in answers} >= {200}
    assert len(large.seen) > 1


def test_one_request_costs_no_more_than_it_may(tmp_path: Path) -> None:
    small, large = Upstream(thinks=0), Upstream(thinks=30)
    budgets = "{a: {amount: 1usd, most_per_request: 0.0007usd, warn_at: 0.0003}}"
    with proxy(small, large, tmp_path, budgets, agent="fixed-3") as address:
        first = ask(address, model="auto")
        # Some 400 bytes of prompt may cost 500 of the 700 micro-dollars; the rest is 20 tokens.
        assert first.headers["x-roi-tier"] == "deep"
        assert 10 < large.seen[-1].cap < 30
        assert float(first.headers["x-roi-charged"]) < 0.0007
        assert ask(address, model="auto", text="?" * 900).headers["x-roi-tier"] == "quick", (
            "only that model can read it"
        )
        refused = ask(address, model="big", text="?" * 900)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_too_dear")
        assert "0.0007000 USD" in refused.json()["error"]["message"]
        assert first.headers.get("x-roi-warning") is None
        ask(address, model="big")
        assert "USD of 1.0000 USD are left" in ask(address, model="big").headers["x-roi-warning"]


def test_a_budget_too_small_for_the_prompt_is_spent(tmp_path: Path) -> None:
    small, large = Upstream(), Upstream()
    with proxy(small, large, tmp_path, "{a: 20 micro-usd}", agent="fixed-1") as address:
        refused = ask(address, model="big")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exhausted")
        assert "0.0000200 USD is spent" in refused.json()["error"]["message"]
        assert refused.headers["x-roi-remaining"] == "0.000020"
        assert not large.seen


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages.0.content.0",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages.0.content.0"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": [{"type": "browser_search"}]}, "tools.0"),
        ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages.0.audio"),
    ],
)
def test_what_has_no_price_is_refused_in_dollars(fields: dict[str, Any], param: str, tmp_path: Path) -> None:
    large = Upstream()
    with serving(large.app()) as url:
        config = tmp_path / "serve.yaml"
        config.write_text(
            f"tiers: [{{name: t, endpoint: {url}/v1, model: m, cap: 50, price: {{prompt: 1, completion: 2}}}}]\n"
            "budgets: {a: 5usd}\n"
        )
        menus = read_menus(config)
        solver = menu_solver(menus, endpoints.Connection())
        served = [Served(menu.name, menu.tiers, menu.rates, menu.models) for menu in menus]
        budget = make_budget("a", read_plans(config)[0], solver, served, "fixed-1", 5, 1, tmp_path)
        with serving(application([budget])) as address:
            body = {"messages": [{"role": "user", "content": "?"}], **fields}
            refused = httpx.post(f"{address}/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
            image = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "https://host/a.png"}}]
            answer = ask(address, messages=[{"role": "user", "content": image}])
            assert answer.status_code == 200
            assert len(large.seen) == 1


GOOD = "{name: t, endpoint: http://h/v1, model: m, cap: 50, price: {prompt: 1, completion: 2}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiers: {a: 5}", "tiers: must be a list"),
        ("tiers: []", "tiers: must be a list"),
        ("tiers: [5]", "tiers.0: must be a tier"),
        ("menus: {a: [t]}", "menus: needs tiers"),
        ("teirs: []", "not `teirs:`"),
        ("tiers: [{endpoint: u, model: m, cap: 5}]", "tiers.0.name: is missing"),
        ("tiers: [{name: t, model: m, cap: 5}]", "tiers.0.endpoint: is missing"),
        ("tiers: [{name: t, endpoint: u, cap: 5}]", "tiers.0.model: is missing"),
        ("tiers: [{name: t, endpoint: u, model: m}]", "tiers.0.cap: must be a whole number of tokens"),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 1.5}]", "tiers.0.cap"),
        ("tiers: [{name: t, endpoint: u, model: m, cap: true}]", "tiers.0.cap"),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 1073741824}]", "tiers.0.cap"),
        (
            "tiers: [{name: t, endpoint: u, model: m, cap: 50, thinking: 49}]",
            "tiers.0.cap: 50 tokens in all leave none",
        ),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 50, thinking: -1}]", "tiers.0.thinking"),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 50, effort: high}]", "tiers.0.effort: is of a thought"),
        ("tiers: [{name: t, endpoint: u, model: 5, cap: 50}]", "tiers.0.model: must be a text, got 5"),
        ("tiers: [{name: a b, endpoint: u, model: m, cap: 50}]", "tiers.0.name"),
        (
            "tiers: [{name: t, endpoint: u, backend: gpt, model: m, cap: 50}]",
            "tiers.0.backend: there is no 'gpt', but vllm",
        ),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 50, prize: 1}]", "tiers.0.prize: there is no such field"),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 50, price: 3}]", "tiers.0.price: must read"),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 50, price: {prompt: 1}}]", "tiers.0.price: must read"),
        (
            "tiers: [{name: t, endpoint: u, model: m, cap: 9, price: {prompt: -1, completion: 1}}]",
            "tiers.0.price.prompt",
        ),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 9, price: {prompt: 1, completion: x}}]", "price.completion"),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 9, price: {prompt: 1, completion: .nan}}]", "price.completion"),
        ("tiers: [{name: t, endpoint: u, model: m, cap: 9, price: {prompt: 1, completion: true}}]", "price.completion"),
        (f"tiers: [{GOOD}, {GOOD}]", "tiers.1.name: 't' is named twice"),
        (f"tiers: [{GOOD}, {{name: u, endpoint: u, model: m, cap: 50}}]", "tier 'u' has no price, 't' has one"),
        (f"tiers: [{GOOD}]\nmenus: {{a: [x]}}", "menus.a: there is no tier 'x', but t"),
        (f"tiers: [{GOOD}]\nmenus: {{a: [t, t]}}", "menus.a: must be a list of different tiers"),
        (f"tiers: [{GOOD}]\nmenus: {{a: []}}", "menus.a: must be a list of different tiers"),
        (f"tiers: [{GOOD}]\nmenus: {{a b: [t]}}", "menus.a b: a name has"),
        (f"tiers: [{GOOD}]\nmenus: []", "menus: must hold"),
        (f"tiers: [{GOOD}]\nmenus: {{a: [[t]]}}", r"menus.a: there is no tier \['t'\], but t"),
        (f"tiers: [{GOOD}]\nmenus: {{no: [t]}}", "line 2: YAML reads no as true or false"),
        (f"tiers: [{GOOD}]\nmenus: {{1.0: [t], '1.0': [t]}}", "menus: '1.0' is named twice"),
        ("tiers: [{name: skip, endpoint: u, model: m, cap: 50}]", "tiers.0.name: 'skip' is what becomes"),
    ],
)
def test_a_file_of_tiers_that_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tiers.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_menus(path)
    assert "tiers.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (f"tiers: [{GOOD}]\nbudgets: {{a: 50k}}", (), "the tiers have prices, and the budget 'a' is tokens"),
        ("budgets: {a: 2usd}", ("--upstream", "http://h/v1", "--model", "m"), "'a' is US dollars .* have no prices"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: 2usd, b: 50k}}", (), "'a' is US dollars .*, 'b' is tokens"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: {{amount: 2usd, most_per_request: 50}}}}", (), "most_per_request: is tokens"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: {{tokens: 2usd}}}}", (), "tokens: '2usd' is money: write amount"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: {{amount: 2usd, tokens: 5}}}}", (), "not tokens too"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: 0.0000001usd}}", (), "no whole number of micro-dollars"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: 0usd}}", (), "must be a positive"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: 2eur}}", (), "budgets.a.amount: '2eur'"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: {{amount: 2usd, models: [x]}}}}", (), "budgets.a.models: there is no menu 'x', but auto"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: {{amount: 2usd, models: auto}}}}", (), "budgets.a.models: must be a list"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: 2usd}}", ("--upstream", "http://h/v1"), "--upstream: .*say this for every tier"),
        (f"tiers: [{GOOD}]\nbudgets: {{a: 2usd}}", ("--tier", "now=0+5"), "--tier: "),
        (f"tiers: [{GOOD}]\nbudgets: {{a: 2usd}}", ("--model", "m"), "--model: "),
        (f"tiers: [{GOOD}]", (), "give the budgets"),
        (f"tiers: [{GOOD}]", ("--budget", "a=50k"), "the tiers have prices, and the budget 'a' is tokens"),
        ("budgets: {a: 50k}", (), "give the endpoint: --upstream URL, or `tiers:`"),
    ],
)  # fmt: skip
def test_a_proxy_that_cannot_be_is_named(text: str, arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    options = ["serve", "--config", str(path), "--state", str(tmp_path / "state"), "--port", "0", *arguments]
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, options, catch_exceptions=False)


def test_prices_and_caps_are_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "tiers.yaml"
    path.write_text(
        "small: &small {endpoint: http://h/v1/, model: m, price: {prompt: 0.1, completion: '0.30'}}\n"
        "tiers: [{<<: *small, name: a, cap: 50}, {<<: *small, name: b, cap: 151, thinking: 100, effort: low}]\n"
    )
    with pytest.raises(ConfigError, match="not `small:`"):
        read_menus(path)
    path.write_text(
        "tiers:\n- &small {name: a, cap: 50, endpoint: http://h/v1/, model: m, price: {prompt: 0.1, completion: '0.30'}}\n"
        "- {<<: *small, name: b, cap: 151, thinking: 100, effort: low}\n"
    )
    (menu,) = read_menus(path)
    assert menu.name == "auto"
    assert menu.tiers == [ThinkingTier("a", 0, 50), ThinkingTier("b", 100, 50, "low")]
    assert menu.rates.prices == dict.fromkeys("ab", Price(Decimal("0.1"), Decimal("0.3")))
    assert [seat.endpoint for seat in menu.seats] == ["http://h/v1"] * 2
    assert not menu.dearer_first()
    turned = replace(menu, seats=menu.seats[::-1])
    assert "tier 'a' stands behind 'b', and its whole cap costs less" in turned.dearer_first()[0]


def test_the_example_serves_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_A", "key-of-a")
    monkeypatch.setenv("TEAM_B", "key-of-b")
    monkeypatch.setenv("LARGE_KEY", "key-of-large")
    text = (Path(__file__).parents[3] / "examples" / "several_models.yaml").read_text()
    with serving(Upstream(thinks=0).app()) as small, serving(Upstream(thinks=9).app()) as large:
        config = tmp_path / "several_models.yaml"
        config.write_text(text.replace("http://127.0.0.1:8000", small).replace("http://127.0.0.1:8001", large))
        menus = read_menus(config)
        assert [menu.name for menu in menus] == ["auto", "small"]
        assert not [note for menu in menus for note in menu.dearer_first()]
        solver = menu_solver(menus, endpoints.Connection())
        served = [Served(menu.name, menu.tiers, menu.rates, menu.models) for menu in menus]
        budgets = [
            make_budget(plan.name, plan, solver, served, "online-lp", 20, 8, tmp_path) for plan in read_plans(config)
        ]
        with serving(application(budgets)) as address:
            assert ask(address, "team-a", "key-of-a", model="auto").headers["x-roi-unit"] == "usd"
            assert ask(address, "team-b", "key-of-b").headers["x-roi-tier"] == "quick"
            assert ask(address, "team-b", "key-of-b", model="auto").status_code == 404
        questions = tmp_path / "questions.jsonl"
        questions.write_text('{"question": "6 * 7?"}\n{"question": "1 + 1?"}\n')
        out = tmp_path / "answers"
        shown = roi("answer", str(questions), "--budget", "2.50usd", "--tiers", f"{config}:auto", "--out", str(out))
    assert "2 questions, 2.5000 USD, tiers quick, large, large-deep" in shown
    assert "of 2.5000 USD charged" in shown
    assert "tokens" not in shown
    audit = json.loads((out / "audit.json").read_text())
    assert (audit["unit"], audit["budget"], audit["by_status"]) == ("micro-usd", 2_500_000, {"answered": 2})
    for arguments, message in (
        (("--budget", "50000", "--tiers", f"{config}:auto"), "the tiers have prices, and --budget 50000 is tokens"),
        (("--budget", "2.50usd"), r"--budget 2\.50usd is US dollars .*, and the tiers have no prices"),
        (("--budget", "1usd", "--tiers", str(config)), "several menus: choose one of auto, small"),
        (("--budget", "1usd", "--tiers", f"{config}:big"), "no menu 'big': choose one of auto, small"),
        (
            ("--budget", "1usd", "--tiers", f"{config}:auto", "--endpoint", "http://h/v1"),
            "--endpoint: the tiers of --tiers",
        ),
        (("--budget", "1usd", "--tiers", f"{config}:auto", "--decision-cost", "1"), "--decision-cost counts tokens"),
        (("--budget", "2000usd", "--tiers", f"{config}:auto"), "must stay below 2"),
        (("--budget", "1usd", "--tiers", str(tmp_path / "none.yaml")), "none.yaml"),
    ):
        with pytest.raises(ConfigError, match=message):
            roi("answer", str(questions), "--out", str(tmp_path / "other"), *arguments)


def test_a_ledger_of_one_unit_takes_no_other(tmp_path: Path) -> None:
    from roi_env.answering.books import DatabaseLedger
    from roi_env.answering.http import HTTPSolver

    solver = HTTPSolver("http://h/v1", "m")
    tiers = [ThinkingTier("t", 0, 5)]
    make_budget("a", 50, solver, tiers, "fixed-1", 5, 1, tmp_path).close()
    with pytest.raises(
        JournalError, match="the budget 'a' counts tokens, not micro-usd: give one in micro-usd another name"
    ):
        DatabaseLedger(tmp_path / "budgets.db", "a", 50, {}, unit="micro-usd")
    with pytest.raises(ValueError, match=r"the budget 'b' is US dollars .*, the tiers of 'm' cost tokens"):
        make_budget("b", Plan("b", 50, unit="micro-usd"), solver, tiers, "fixed-1", 5, 1, tmp_path)


def test_a_database_of_version_1_is_of_tokens(tmp_path: Path) -> None:
    from roi_env.answering import database
    from roi_env.answering.http import HTTPSolver

    path = tmp_path / "budgets.db"
    with closing(sqlite3.connect(path)) as base:
        for statement in database._SCHEMA.split(";"):
            base.execute(statement)
        base.execute("INSERT INTO budgets VALUES ('a', 500, 0, 77, 0, 77, 'once', 0, '', NULL)")
        base.execute("PRAGMA user_version = 1")
        base.commit()
    budget = make_budget("a", 600, HTTPSolver("http://h/v1", "m"), [ThinkingTier("t", 0, 5)], "fixed-1", 5, 1, tmp_path)
    assert (budget.session.budget, budget.session.charged) == (600, 77)
    budget.close()
    with closing(database.Database(path)) as base:
        assert base.states()[0]["unit"] == "tokens"


def test_several_models_share_a_budget_of_tokens(tmp_path: Path) -> None:
    with serving(Upstream(thinks=0).app()) as small, serving(Upstream(thinks=0).app()) as large:
        config = tmp_path / "serve.yaml"
        config.write_text(
            f"tiers:\n- {{name: s, endpoint: {small}/v1, model: m, cap: 20}}\n- {{name: l, endpoint: {large}/v1, model: m, cap: 30}}\n"
            "menus: {both: [s, l], one: [l]}\nbudgets: {a: 100}\n"
        )
        menus = read_menus(config)
        solver = menu_solver(menus, endpoints.Connection())
        served = [Served(menu.name, menu.tiers, menu.rates, menu.models) for menu in menus]
        budget = make_budget("a", read_plans(config)[0], solver, served, "fixed-1", 5, 1, tmp_path)
        assert budget.sessions["both"].problem.one_request == (0, 0), "two models are not one request cut at two caps"
        with serving(application([budget])) as address:
            assert [ask(address, model=name).headers["x-roi-tier"] for name in ("both", "one")] == ["s", "l"]
            assert ask(address).headers["x-roi-remaining"] == "88"
