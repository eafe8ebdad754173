"""The proxy's tiers of models that reason in the open: clients see one answer, and the budget holds over both requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="needs the extra [dev]")
pytest.importorskip("uvicorn", reason="needs the extra [live]")

import openai

from experiments.commands import endpoints
from experiments.config import ConfigError
from experiments.serving.app import application
from experiments.serving.budget import Served, make_budget
from experiments.serving.menus import menu_solver, read_menus
from roi_env.answering.dialect import INSTRUCT
from roi_env.answering.forcing import ForcingSolver
from tests.roi_env.answering.test_forcing import ANSWER, FORCED, TIERS, TOKENIZER, speaks
from tests.servers import MODEL
from tests.upstream import Upstream, serving

SAID = "hm hm hm hm hm hm" + INSTRUCT.force + "42} and so on until"


@contextmanager
def proxy(upstream: Upstream, budget: int, folder: Path, backend: str = "vllm") -> Iterator[str]:
    with serving(upstream.app()) as url:
        solver = ForcingSolver(f"{url}/v1", "stub", backend, tokenizer=TOKENIZER, first_wait=0.01)
        made = make_budget("a", budget, solver, TIERS, "fixed-2", 20, 4, folder)
        with serving(application([made])) as address:
            yield f"{address}/a/v1"


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key="unused", max_retries=0, timeout=30)


@pytest.mark.parametrize("backend", ["vllm", "generic"])
def test_a_client_sees_one_answer(backend: str, tmp_path: Path) -> None:
    upstream = Upstream(answer=speaks(100), thinks=0)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with proxy(upstream, 10_000, tmp_path, backend) as address:
        caller = client(address)
        whole = caller.chat.completions.create(model="stub", messages=turns, temperature=0.5)  # type: ignore[arg-type]
        assert whole.choices[0].message.content == SAID
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage.completion_tokens == TIERS[1].most_tokens == upstream.generated + FORCED
        stream = caller.chat.completions.create(model="stub", messages=turns, stream=True)  # type: ignore[arg-type]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == SAID
        for more in ({"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"logprobs": True}):
            with pytest.raises(openai.BadRequestError, match=next(iter(more))):
                caller.chat.completions.create(model="stub", messages=turns, **more)  # type: ignore[call-overload]
        with pytest.raises(openai.NotFoundError, match="ask /chat/completions"):
            caller.completions.create(model="stub", prompt="x")
    asked = [seen.body for seen in upstream.seen]
    if backend == "vllm":
        assert asked[0]["messages"] == turns
        assert asked[1]["messages"][:3] == turns
    assert all(body["temperature"] == 0.5 for body in asked[:2])


def test_the_budget_holds_over_both_requests(tmp_path: Path) -> None:
    upstream, budget = Upstream(answer=speaks(100), thinks=0), 3 * TIERS[1].most_tokens + 2
    charged = []

    def spend(address: str) -> None:
        while sum(charged) <= budget:
            asked = client(address).chat.completions.create(model="stub", messages=[{"role": "user", "content": "x"}])
            charged.append(asked.usage.completion_tokens)

    with proxy(upstream, budget, tmp_path) as address, pytest.raises(openai.APIStatusError, match=r"spent|needs more"):
        spend(address)
    assert upstream.generated <= budget
    assert sum(charged) >= 3 * TIERS[1].most_tokens


def test_a_file_of_tiers_says_how_models_speak(tmp_path: Path) -> None:
    config, upstream = tmp_path / "serve.yaml", Upstream(answer=speaks(10**4, "a"), thinks=0)
    with serving(upstream.app()) as url:
        begun = f"endpoint: {url}/v1, model: m, backend: vllm, dialect: instruct, tokenizer: {MODEL}"
        config.write_text(
            f"tiers:\n- {{name: now, cap: 32, {begun}}}\n- {{name: open, cap: 256, {begun}}}\n"
            f"- {{name: few, cap: 300, answer: 20, force: ' So ', {begun}}}\n- {{name: plain, cap: 400, endpoint: {url}/v1, model: m}}\n"
        )
        (menu,) = read_menus(config)
        assert [tier.most_tokens for tier in menu.tiers] == [32, 256, 300, 400]
        assert [INSTRUCT.reasoning(tier) for tier in menu.tiers[:3]] == [0, 224, 280]
        solver = menu_solver([menu], endpoints.Connection())
        served = [Served(menu.name, menu.tiers, menu.rates, menu.models)]
        budget = make_budget("a", 10**4, solver, served, "fixed-2", 20, 4, tmp_path)
        with serving(application([budget])) as address:
            asked = client(f"{address}/a/v1").chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "x"}]
            )
    assert asked.choices[0].message.content.startswith("a a a")
    assert [seen.cap for seen in upstream.seen] == [224, 32 - solver.for_tier("open").forced]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("cap: 256, dialect: instruct", r"tiers\.0\.dialect: .*needs --tokenizer"),
        ("cap: 256, dialect: chatty", r"tiers\.0\.dialect: unknown dialect 'chatty'"),
        (f"cap: 256, thinking: 9, dialect: instruct, tokenizer: {MODEL}", r"tiers\.0\.thinking: is of a thought"),
        (f"cap: 33, dialect: instruct, tokenizer: {MODEL}", r"tiers\.0\.cap: its 33 tokens .* give at least 34"),
        (f"cap: x, dialect: instruct, tokenizer: {MODEL}", r"tiers\.0\.cap: must be a whole number"),
        ("cap: 256, answer: 32", r"tiers\.0\.answer: .*dialect: instruct"),
        ("cap: 256, force: x", r"tiers\.0\.dialect: --force at an endpoint needs"),
    ],
)
def test_what_does_not_belong_together_is_named(fields: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(f"tiers:\n- {{name: a, endpoint: http://h/v1, model: m, {fields}}}\n")
    with pytest.raises(ConfigError, match=message):
        read_menus(config)


def test_tiers_that_leave_no_answer_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    more = f"dialect: instruct, tokenizer: {MODEL}, answer: {ANSWER - FORCED}"
    config.write_text(f"tiers:\n- {{name: a, endpoint: http://h/v1, model: m, backend: vllm, cap: 90, {more}}}\n")
    with pytest.raises(ConfigError, match="tier 'a' keeps 5 tokens for the forced text"):
        menu_solver(read_menus(config), endpoints.Connection())
