"""Budgets as a team has them: a file, read again while the proxy runs; top-ups; periods; keys that are kept as hashes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from typer.testing import CliRunner

from experiments.cli import app
from experiments.commands.serve import Access, _Budgets
from experiments.config import ConfigError
from experiments.serving import app as serving_app
from experiments.serving.amounts import Plan, digest, keeping, parse_amount, read_file, read_plans
from experiments.serving.app import application
from experiments.serving.budget import Budget, make_budget
from roi_env.answering import books as bookkeeping
from roi_env.answering import database
from roi_env.answering.base import ThinkingTier
from roi_env.answering.books import DatabaseLedger
from roi_env.answering.http import HTTPSolver
from tests.processes import child, wait_until_it_answers
from tests.upstream import Upstream, serving

BODY = {"model": "stub", "messages": [{"role": "user", "content": "six times seven?"}]}


@contextmanager
def running(config: Path, upstream: str, state: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A proxy of one endpoint in a process of its own; gives its address."""
    options = ["--upstream", f"{upstream}/v1", "--model", "stub", "--backend", "vllm", "--agent", "fixed-2"]
    options += ["--tier", "now=0+10", "--tier", "long=40+10"]
    with started("--config", str(config), "--state", str(state), *options) as found:
        yield found


@contextmanager
def started(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A proxy in a process of its own; gives its address."""
    code = "import sys; from experiments.cli import main; sys.argv = ['roi', *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", *options]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        address = "/".join(says(process, "base address").split("base address ")[1].split("/")[:3])
        wait_until_it_answers(process, f"{address}/health")
        yield address, process
        process.terminate()
        process.wait(60)


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def says(process: subprocess.Popen[str], text: str) -> str:
    """Wait for a line with this text."""
    assert process.stdout is not None
    line = process.stdout.readline()
    while text not in line:
        assert line, "the proxy ended"
        line = process.stdout.readline()
    return line


def test_a_file_of_budgets_is_kept_and_read_again(tmp_path: Path) -> None:
    config, state = tmp_path / "budgets.yaml", tmp_path / "state"
    secret = hashlib.sha256(b"key-of-a").hexdigest()
    config.write_text(
        f"budgets:\n  a: {{tokens: 0.06k, key_sha256: {secret}, warn_at: 0.5, most_per_request: 22}}\n  b: 1e3\n"
    )

    def ask(name: str, key: str = "none") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{address}/{name}/v1/chat/completions", json=BODY, headers=headers, timeout=30)

    with serving(Upstream().app()) as upstream, running(config, upstream, state) as (address, process):
        assert ask("a").status_code == 401
        first, second = ask("a", "key-of-a"), ask("a", "key-of-a")
        assert first.json()["usage"]["completion_tokens"] == 22, "no answer takes more than one may"
        assert ("x-roi-warning" in first.headers, "x-roi-warning" in second.headers) == (False, True)
        assert ask("a", "key-of-a").json()["usage"]["completion_tokens"] == 16
        assert ask("a", "key-of-a").status_code == 429
        told = CliRunner().invoke(
            app, ["budgets", "top-up", "a", "0.1k", "--state", str(state)], catch_exceptions=False
        )
        assert "a: 100 of 160 tokens left" in told.output
        assert ask("a", "key-of-a").status_code == 200, "it is known at once"
        with pytest.raises(ConfigError, match="no budget 'z'; there are a, b"):
            CliRunner().invoke(app, ["budgets", "set", "z", "5", "--state", str(state)], catch_exceptions=False)
        assert ask("b").headers["x-roi-remaining"] == "976"

        config.write_text("budgets:\n  b: {tokens: 30, period: month}\n  c: 50k\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: ask("c").status_code == 200)
        assert ask("a", "key-of-a").status_code == 404
        assert ask("b").headers["x-roi-remaining"] == "0", "what was charged stays charged"
        assert re.search(r"is spent until 20\d\d-\d\d-01 00:00 UTC", ask("b").json()["error"]["message"])
        config.write_text("budgets:\n  c: a lot\n")
        process.send_signal(signal.SIGHUP)
        says(process, "stay as they were")
        assert ask("c").status_code == 200
    shown = CliRunner().invoke(app, ["budgets", "list", "--state", str(state)], catch_exceptions=False).output
    assert "month" in shown
    assert b"key-of-a" not in b"".join(path.read_bytes() for path in state.iterdir())


def opened(config: Path) -> _Budgets:
    """The budgets of a file, with their books beside it and an endpoint that is not there."""
    solver, tiers = HTTPSolver("http://127.0.0.1:9/v1", "m"), [ThinkingTier("t", 0, 10)]
    return _Budgets(
        read_plans(config),
        [],
        lambda menus, plans: lambda plan: make_budget(plan.name, plan, solver, tiers, "fixed-1", 5, 1, config.parent),
    )


@pytest.mark.parametrize("second", ["b: {tokens: 30, models: [nope]}", "b: a lot", "b: 5usd"])
@pytest.mark.parametrize("first", ["budgets:\n  a: 70", "", "# nothing"])
def test_budgets_that_cannot_all_be_read_again_stay_as_they_were(
    first: str, second: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "budgets.yaml"
    config.write_text("budgets: {a: 50, b: 50}")
    budgets = opened(config)
    config.write_text(f"{first}\n  {second}\n" if first.startswith("b") else first)
    asyncio.run(budgets.reload(config, Access(), ()))
    assert "stay as they were" in " ".join(capsys.readouterr().out.split())
    assert [(one.session.budget, one.plan.amount) for one in budgets.open] == [(50, 50), (50, 50)]
    config.write_text("budgets:\n  a: 70\n  b: 80\n")
    asyncio.run(budgets.reload(config, Access(), ()))
    assert [(one.session.budget, one.plan.amount) for one in budgets.open] == [(70, 70), (80, 80)]
    for made in budgets.open:
        made.close()


def test_an_amount_that_was_set_stays_until_the_file_names_another(tmp_path: Path) -> None:
    config = tmp_path / "budgets.yaml"
    config.write_text("budgets: {a: 50}")
    budgets = opened(config)

    def after(text: str) -> int:
        config.write_text(f"budgets: {{a: {text}}}")

        async def reloaded() -> int:
            await budgets.reload(config, Access(), ())
            await budgets.open[0].clerk.refresh()
            return budgets.open[0].session.budget

        return asyncio.run(reloaded())

    CliRunner().invoke(app, ["budgets", "set", "a", "5", "--state", str(tmp_path)], catch_exceptions=False)
    assert after("{amount: 50, warn_at: 0.5}") == 5
    assert budgets.open[0].plan.warn_at == 0.5
    assert after("{amount: 60, warn_at: 0.5}") == 60
    budgets.open[0].close()


def test_commands_make_no_database_and_name_one_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SECONDS", 0.1)
    path = tmp_path / "budgets.db"
    for command in (["list"], ["set", "a", "5"]):
        with pytest.raises(ConfigError, match="no such database"):
            budgets(*command, "--state", str(tmp_path), "--database", "")
        assert not path.exists()
    DatabaseLedger(path, "a", 50, {}).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert "50" in budgets("list", "--state", str(tmp_path))
        with pytest.raises(ConfigError, match=r"budgets\.db: it cannot be used \(database is locked\)"):
            budgets("top-up", "a", "5", "--state", str(tmp_path))


def budgets(*arguments: str) -> str:
    """What `roi budgets` prints."""
    return CliRunner().invoke(app, ["budgets", *arguments], catch_exceptions=False).output


def test_two_proxies_share_a_budget(tmp_path: Path) -> None:
    config, state = tmp_path / "budgets.yaml", tmp_path / "state"
    config.write_text("budgets: {a: 500}\n")
    upstream = Upstream(latency=0.02)
    with (
        serving(upstream.app()) as url,
        running(config, url, state) as (first, _),
        running(config, url, state) as (second, process),
        httpx.Client(timeout=30) as client,
    ):
        statuses = [
            client.post(f"{address}/v1/chat/completions", json=BODY).status_code for address in [first, second] * 15
        ]
        assert set(statuses) == {200, 429}
        assert upstream.generated == 500
        for address in (first, second):
            told = client.get(f"{address}/budgets").json()["budgets"][0]
            assert (told["charged"], told["asked"]) == (500, statuses.count(200))
            assert f'<b>{statuses.count(200)}</b><span class="dim">requests ever</span>' in client.get(address).text
        assert process.poll() is None


@pytest.mark.parametrize(
    ("text", "tokens"), [("50000", 50000), ("50k", 50000), ("1.5m", 1500000), ("1e6", 10**6), (7, 7), ("2G", 2 * 10**9)]
)
def test_amounts(text: Any, tokens: int) -> None:
    assert parse_amount(text, "x") == (tokens, "tokens")


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "1.5", "50kk", "1.5555k", "٣", "1e99", True, None, "k", "nan", "1_000"]
)
def test_what_is_no_amount_is_named(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"x: .* tokens"):
        parse_amount(text, "x")


def test_a_file_may_say_all_of_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "budgets.yaml"
    path.write_text(
        "budgets:\n  a: {tokens: 50k, period: day, carry_over: true, key_env: A_KEY, most_per_request: 4k, warn_at: 0.8}\n  b: 7\n"
    )
    monkeypatch.setenv("A_KEY", "secret")
    assert read_plans(path) == [Plan("a", 50000, "day", True, digest(b"secret"), 4000, 0.8), Plan("b", 7)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold"),
        ("budgets: {}", "there is none"),
        ("budgets: {1.0: 5, '1.0': 6}", "budgets: '1.0' is named twice"),
        ("budgets:\n  a: 5\n  no: 6", "line 3: YAML reads no as true or false: write the name in quotes, 'no'"),
        ("budgets: {on: 5, yes: 6}", "line 1: YAML reads on as true or false"),
        ("budgets: {équipe: 5}", "budgets.équipe: a name has up to 64 letters .a to z"),
        ("budget: {a: 5}", "must hold"),
        ("budgets: [a]", "must hold"),
        ("budgets: {a: [", "budgets.yaml"),
        ("budgets: {a: -5}", "budgets.a.amount"),
        ("budgets: {a: {}}", "budgets.a: give amount"),
        ("budgets: {a: {tokens: 5, perod: day}}", "budgets.a.perod: there is no such field"),
        (
            "budgets: {a: {tokens: 5, period: week}}",
            "budgets.a.period: must be one of once, hour, day, month, got 'week'",
        ),
        ("budgets: {a: {tokens: 5, carry_over: maybe}}", "budgets.a.carry_over"),
        ("budgets: {a: {tokens: 5, carry_over: true}}", "budgets.a.carry_over: needs a period"),
        ("budgets: {b: 7,\n a: 050000}", "line 2: YAML reads 050000 as another number"),
        ("budgets: {a: {amount: 1:30}}", "line 1: YAML reads 1:30 as another number"),
        ("budgets: {a: 5}\ntiers: [{cap: 0x10}]", "line 2: YAML reads 0x10 as another number"),
        ("budgets: {a: {tokens: 5, warn_at: 80}}", "budgets.a.warn_at"),
        ("budgets: {a: {tokens: 5, key_env: NO_SUCH_VARIABLE}}", "budgets.a.key_env: .* is empty"),
        ("budgets: {a: {tokens: 5, key_sha256: abc}}", "budgets.a.key_sha256"),
        ("budgets: {a: {tokens: 5, key_sha256: abc, key_env: PATH}}", "cannot both"),
        ("budgets: {v1: 5}", "budgets.v1"),
        ("budgets: {a/b: 5}", "budgets.a/b"),
        ("budgets: {a: {tokens: 5, most_per_request: 0}}", "budgets.a.most_per_request"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "budgets.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_plans(path)
    assert "budgets.yaml" in str(caught.value)


def test_a_budget_has_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("budgets: {a: {amount: 50, key_env: KEY}, b: 50}\n")
    monkeypatch.setenv("KEY", "secret")
    command = ["serve", "--config", str(config), "--key", "b=KEY", "--key", "a=KEY"]
    with pytest.raises(ConfigError, match=r"--key a=\.\.\.: the file gives this budget a key"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_all_parts_of_a_file_are_of_one_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, solver, opened, files = tmp_path / "serve.yaml", HTTPSolver("http://127.0.0.1:9/v1", "m"), [], io.open
    config.write_text("budgets: {a: 50}\n")
    tiers = [ThinkingTier("t", 0, 10)]

    def counting(file: Any, *args: Any, **options: Any) -> Any:
        opened.append(str(file))
        return files(file, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(io, "open", counting)
        with pytest.raises(ConfigError, match="no budget 'z'"):
            CliRunner().invoke(app, ["serve", "--config", str(config), "--key", "z=Z"], catch_exceptions=False)
        assert opened.count(str(config)) == 1
    plans = read_plans(config)
    budgets = _Budgets(
        plans, [], lambda menus, plans: lambda plan: make_budget("a", plan, solver, tiers, "fixed-1", 5, 1, tmp_path)
    )
    config.write_text("budgets: {a: 70}\n")
    opened.clear()
    with monkeypatch.context() as patched:
        patched.setattr(io, "open", counting)
        asyncio.run(budgets.reload(config, Access(), ()))
        assert opened.count(str(config)) == 1
    assert budgets.open[0].session.budget == 70
    budgets.open[0].close()


def test_of_two_readings_of_a_file_the_second_one_stays(tmp_path: Path) -> None:
    config, solver, tiers = tmp_path / "b.yaml", HTTPSolver("http://127.0.0.1:9/v1", "m"), [ThinkingTier("t", 0, 10)]
    config.write_text("budgets: {a: 50}\n")

    def make(plan: Plan) -> Budget:
        time.sleep(0.3 if plan.name == "new" else 0)
        return make_budget(plan.name, plan, solver, tiers, "fixed-1", 5, 1, tmp_path)

    budgets = _Budgets(read_plans(config), [], lambda menus, plans: make)

    async def run() -> None:
        config.write_text("budgets: {a: 60, new: 5}\n")
        first = asyncio.create_task(budgets.reload(config, Access(), ()))
        await asyncio.sleep(0.05)
        config.write_text("budgets: {a: 70}\n")
        await asyncio.gather(first, budgets.reload(config, Access(), ()))

    asyncio.run(run())
    assert [(one.name, one.session.budget) for one in budgets.open] == [("a", 70)]
    for made in (*budgets.open, *budgets.left):
        made.close()


def test_old_requests_are_forgotten_while_the_proxy_runs_and_as_long_as_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeping, "NEWEST", 2)
    monkeypatch.setattr(serving_app, "_TEND", 0.02)
    config, upstream = tmp_path / "serve.yaml", Upstream(thinks=0)
    with serving(upstream.app()) as url:
        config.write_text("budgets: {a: {amount: 500, period: month}}\nkeep: 40d\n")
        solver, tiers = HTTPSolver(f"{url}/v1", "stub", "vllm"), [ThinkingTier("t", 0, 10)]
        plans = keeping(read_plans(config), config, read_file(config))
        budgets = _Budgets(
            plans,
            [],
            lambda menus, plans: lambda plan: make_budget("a", plan, solver, tiers, "fixed-1", 5, 4, tmp_path),
        )

        def ages(days: int) -> None:
            with closing(sqlite3.connect(tmp_path / "budgets.db")) as base, base:
                base.execute("UPDATE requests SET ended = ?", [time.time() - days * 86400])

        def kept() -> int:
            with closing(sqlite3.connect(tmp_path / "budgets.db")) as base:
                return int(base.execute("SELECT count(*) FROM requests").fetchone()[0])

        with (
            serving(application(budgets.open)) as address,
            httpx.Client(timeout=30) as client,
        ):

            def told() -> tuple[int, int, str]:
                state = client.get(f"{address}/budgets").json()["budgets"][0]
                return state["asked"], state["charged"], client.get(f"{address}/metrics").text.partition("roi_req")[0]

            def ask() -> None:
                assert client.post(f"{address}/v1/chat/completions", json=BODY).status_code == 200

            for _ in range(6):
                ask()
            before = told()
            assert before[:2] == (6, 24)
            ages(39)
            time.sleep(0.3)
            assert kept() == 6
            ages(41)
            until(lambda: kept() == 2)
            assert told() == before
            assert '<b>6</b><span class="dim">requests ever</span>' in client.get(address).text
            ages(35)
            ask()
            config.write_text("budgets: {a: {amount: 500, period: month}}\nkeep: 30d\n")
            asyncio.run(budgets.reload(config, Access(), ()))
            assert budgets.open[0].plan.keep == 30
            until(lambda: kept() == 2)
            ask()
            assert told()[:2] == (8, 32)
    again = make_budget("a", budgets.plans[0], solver, tiers, "fixed-1", 5, 4, tmp_path)
    assert (again.asked, again.session.charged) == (8, 32)
    again.close()


@pytest.mark.parametrize("keep", ["90", "0d", "forever", "-5d", "1.5d", "null", "[90d]", "100000d"])
def test_for_how_long_requests_are_kept_is_a_number_of_days(keep: str, tmp_path: Path) -> None:
    path = tmp_path / "budgets.yaml"
    path.write_text(f"budgets: {{a: 5}}\nkeep: {keep}\n")
    with pytest.raises(ConfigError, match=r"budgets\.yaml: keep: must be a number of days .*: 90d; got"):
        CliRunner().invoke(app, ["serve", "--config", str(path)], catch_exceptions=False)


@pytest.mark.parametrize("arguments", [(), ("--budget", "5", "--config", "budgets.yaml")])
def test_budgets_are_given_in_one_way(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("budgets.yaml").write_text("budgets: {a: 5}")
    with pytest.raises(ConfigError, match="--config FILE"):
        CliRunner().invoke(app, ["serve", "--upstream", "http://127.0.0.1:9/v1", *arguments], catch_exceptions=False)
