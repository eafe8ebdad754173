"""Prices and tiers that change while the proxy runs: a user announces them in the file, and SIGHUP."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from experiments.commands import endpoints, serve
from experiments.commands.serve import Access, _Budgets
from experiments.serving.amounts import Plan, read_plans
from experiments.serving.app import application
from experiments.serving.budget import Budget, Served, make_budget
from experiments.serving.menus import Menu, menu_solver, read_menus
from tests.experiments.serving.test_budgets import says, started, until
from tests.experiments.serving.test_menus import ask
from tests.upstream import Upstream, serving

TIER = "{{name: {name}, endpoint: {url}/v1, backend: vllm, model: m, cap: 40, price: {{prompt: {prompt}, completion: {completion}}}}}"
"""Every answer has 4 tokens, every prompt 9."""


def written(config: Path, url: str, more: str = "", **prices: tuple[Any, Any]) -> None:
    """A file whose menu ``auto`` has a tier a price."""
    tiers = [TIER.format(name=name, url=url, prompt=a, completion=b) for name, (a, b) in prices.items()]
    config.write_text("tiers:\n" + "".join(f"- {tier}\n" for tier in tiers) + more)


def test_prices_and_tiers_are_read_again_and_what_was_charged_stays(tmp_path: Path) -> None:
    """Budgets of options, tiers of a file."""
    config, upstream = tmp_path / "tiers.yaml", Upstream(thinks=0)
    with serving(upstream.app()) as url:
        written(config, url, quick=(1, 10))
        options = ("--config", str(config), "--budget", "a=0.01usd", "--state", str(tmp_path), "--agent", "fixed-1")
        with started(*options) as (address, process):

            def again() -> None:
                process.send_signal(signal.SIGHUP)
                says(process, "was read again")

            assert ask(address).headers["x-roi-charged"] == "0.000049"
            upstream.latency = 1.0
            with ThreadPoolExecutor(1) as pool:
                flying = pool.submit(ask, address)
                until(lambda: len(upstream.seen) == 2)
                written(config, url, quick=(2, 20))
                again()
                assert flying.result().headers["x-roi-charged"] == "0.000049", (
                    "what was sent is charged as it was reserved"
                )
            upstream.latency = 0.0
            dearer = ask(address)
            assert (dearer.headers["x-roi-charged"], dearer.headers["x-roi-remaining"]) == ("0.000098", "0.009804")
            written(config, url, cheap=(0, 1), quick=(2, 20), more="menus: {auto: [cheap, quick], best: [quick]}\n")
            again()
            first, best = ask(address), ask(address, model="best")
            assert (first.headers["x-roi-tier"], first.headers["x-roi-charged"]) == ("cheap", "0.000004")
            assert (best.headers["x-roi-tier"], best.headers["x-roi-remaining"]) == ("quick", "0.009702")
            for wrong in (
                "tiers: []\n",
                config.read_text().replace("price: {prompt: 2, completion: 20}", "price: free"),
            ):
                config.write_text(wrong)
                process.send_signal(signal.SIGHUP)
                assert str(config) in says(process, "stay as they were")
            assert ask(address).headers["x-roi-remaining"] == "0.009698"
            written(config, url, quick=(2, 100000))
            again()
            dear = ask(address)
            assert (dear.headers["x-roi-charged"], dear.headers["x-roi-remaining"]) == ("0.000000", "0.009698")


def test_what_was_learned_counts_at_the_new_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, upstream = tmp_path / "serve.yaml", Upstream(thinks=0)

    def maker(menus: Sequence[Menu], plans: Sequence[Plan]) -> Callable[[Plan], Budget]:
        solver = menu_solver(menus, endpoints.Connection(), concurrency=8)
        served = [Served(menu.name, menu.tiers, menu.rates, menu.models) for menu in menus]
        return lambda plan: make_budget(plan.name, plan, solver, served, "online-lp", 50, 8, tmp_path / "state")

    more = "menus: {auto: [a, b], a: [a], b: [b]}\nbudgets: {team: 1usd}\n"
    with serving(upstream.app()) as url:
        written(config, url, more, a=(1, 10), b=(1, 100))
        budgets = _Budgets(read_plans(config), read_menus(config), maker)
        served, loops = application(budgets.open, left=budgets.left), []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            loops.append(asyncio.get_running_loop())
            await served(scope, receive, send)

        def again() -> None:
            asyncio.run_coroutine_threadsafe(budgets.reload(config, Access(), ()), loops[0]).result(30)

        with serving(app) as address:
            for model in ("a", "b", "auto") * 4:
                assert ask(address, "team", model=model).status_code == 200
            before = httpx.get(f"{address}/budgets").json()["budgets"][0]
            (old,) = budgets.open
            written(config, url, more, a=(1, 1000), b=(1, 100))
            again()
            (new,) = budgets.open
            assert httpx.get(f"{address}/budgets").json()["budgets"][0] == before
            paid = new.sessions["auto"].flights._paid
            assert (
                len(paid[0]) + len(paid[1])
                == len(old.sessions["auto"].flights._paid[0]) + len(old.sessions["auto"].flights._paid[1]) + 8
            ), "a menu learns from the same tiers of others when it begins anew"
            assert set(paid[0]) == {9 + 4000}
            assert set(paid[1]) == {9 + 400}
            tiers = [ask(address, "team").headers["x-roi-tier"] for _ in range(20)]
            assert tiers == ["b"] * 20, "the same answers at a tenth of the price"
            assert list(budgets.left) == [old]
            monkeypatch.setattr(serve, "_LEFT", -1.0)
            again()
            assert not budgets.left
            with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                _ = old.clerk.books.charged
            assert ask(address, "team").status_code == 200
