"""Budgets in a real PostgreSQL server, which the tests start for themselves: one budget, several proxies, spent once."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg", reason="needs the extra [postgres]")

import psycopg

from roi_env.answering.books import DatabaseLedger, open_database
from roi_env.answering.ledger import JournalError, NoRoom


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of an unprivileged user in a folder of its own, on a socket there: the address of its first database."""
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's programs: Debian's postgresql")
    as_user: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        user = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:  # it refuses to run as root
            user = "nobody"
            as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
            os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        data = f"{folder}/data"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder}
        subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "roi"], check=True, **quiet, **as_user)
        command = [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="]
        with subprocess.Popen(command, **{**quiet, "stderr": subprocess.DEVNULL}, **as_user) as process:
            url = f"postgresql:///postgres?host={folder}&user=roi"
            try:
                for _ in range(600):
                    assert process.poll() is None, "the server ended"
                    try:
                        psycopg.connect(url).close()
                        break
                    except psycopg.OperationalError:
                        time.sleep(0.1)
                yield url
            finally:
                process.send_signal(signal.SIGINT)


@pytest.fixture
def url(server: str) -> str:
    """A database of its own."""
    name = f"test_{time.monotonic_ns()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("///postgres", f"///{name}")


def ledger(url: str, tokens: int = 1000, name: str = "a", **options: Any) -> DatabaseLedger:
    return DatabaseLedger(url, name, tokens, {"tiers": [["one", 0, 10, None]]}, **options)


def key(number: int) -> tuple[Any, ...]:
    return (number, f"q{number}", 1, 100)


def test_a_request_is_reserved_resized_settled_and_told(url: str) -> None:
    books = ledger(url)
    entry = books.enter(key(0), 100)
    books.resize(entry, 300)
    asyncio.run(books.on_disk())
    assert (books.reserved, books.charged, books.limit) == (300, 0, 1000)
    with pytest.raises(NoRoom):
        books.resize(entry, 1001)
    with pytest.raises(NoRoom):
        books.enter(key(1), 701)
    books.settle(entry, 120, {"text": "secret", "tokens": 120, "finish": "stop"})
    books.note({"skipped": key(2), "decision": 3})
    assert (books.reserved, books.charged, books.asked) == (0, 123, 2)
    (kept,) = books.entries
    assert (kept.charged, kept.facts) == (120, {"tokens": 120, "finish": "stop"})
    assert [one["charged"] for one in books.newest(5)] == [3, 120]
    assert sum(books.charged_by(60, 0.0).values()) == 123
    assert books.first(0.0) is not None
    assert books.warns(0.1)
    assert not books.warns(0.1)
    books.close()
    again = ledger(url)
    assert again.charged == 123
    again.close()


def test_top_ups_periods_and_unknown_budgets(url: str) -> None:
    books = ledger(url, 100, period="day", carry=True)
    base = open_database(url)
    base.change("a", 50, add=True)
    assert books.limit == 150
    entry = books.enter(key(0), 150)
    books.settle(entry, 110, {})
    base.run("UPDATE budgets SET current = '2000-01-01'")
    assert (books.limit, books.charged) == (140, 0)
    with pytest.raises(JournalError, match="has no budget 'b'; there are a"):
        base.change("b", 1, add=True)
    (state,) = base.states()
    assert (state["budget"], state["spent"], state["unit"]) == ("a", 110, "tokens")
    base.close()
    books.close()


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(JournalError) as caught:
        open_database("postgresql://roi:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in str(caught.value)
    assert "roi:***@" in str(caught.value)


_SPENDER = """
import sys
from tests.roi_env.answering.test_postgres import NoRoom, key, ledger
books, most = ledger(sys.argv[1]), 0
for place in range(40):
    try:
        entry = books.enter(key(place), 90)
    except NoRoom:
        continue
    tokens = 15
    try:
        books.resize(entry, 140)
        tokens = 30
    except NoRoom:
        pass
    most = max(most, books.database.one("SELECT charged + reserved FROM budgets WHERE name = 'a'")[0])
    books.settle(entry, tokens, {})
books.close()
print(most)
"""


def test_processes_at_once_never_reserve_more_than_there_is(url: str) -> None:
    command = [sys.executable, "-c", _SPENDER, url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    most = [int(process.communicate(timeout=300)[0]) for process in running]
    books = ledger(url)
    assert max(most) <= 1000
    assert books.reserved == 0
    assert 900 < books.charged == sum(entry.charged or 0 for entry in books.entries) <= 1000
    books.close()


def test_the_commands_take_an_address(url: str) -> None:
    from typer.testing import CliRunner

    from experiments.cli import app

    ledger(url, 50_000).close()
    for command in (["top-up", "a", "5k"], ["list"]):
        result = CliRunner().invoke(app, ["budgets", *command, "--database", url], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
    assert "55,000" in result.output
    result = CliRunner().invoke(app, ["budgets", "list"], env={"ROI_DATABASE": "postgresql://x:hunter2@127.0.0.1:1/x"})
    assert result.exit_code != 0
    assert "hunter2" not in result.output


_VICTIM = """
import sys, time
from tests.roi_env.answering.test_postgres import key, ledger
books = ledger(sys.argv[1])
entry = books.enter(key(1), 100)
books.resize(entry, 160)
print("reserved", flush=True)
time.sleep(600)
"""


def test_a_process_that_is_killed_is_charged_once_and_one_that_lives_is_not(url: str) -> None:
    books = ledger(url)
    mine = books.enter(key(0), 50)
    with subprocess.Popen([sys.executable, "-c", _VICTIM, url], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline().strip() == "reserved"
        books.reap()
        assert (books.reserved, books.charged) == (210, 0), "it lives"
        victim.kill()
    end = time.monotonic() + 60
    while books.charged == 0 and time.monotonic() < end:  # the server hears of the closed connection
        books.reap()
        time.sleep(0.05)
    others = [ledger(url) for _ in range(3)]
    for other in others:
        other.reap()
    assert (books.reserved, books.charged) == (50, 160)
    books.settle(mine, 20, {})
    assert books.charged == 180
    for one in (*others, books):
        one.close()


def test_a_lost_connection_is_made_again_and_nothing_is_charged_twice(url: str) -> None:
    books, other = ledger(url), ledger(url)
    entry = books.enter(key(0), 100)
    other.database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid() AND "
                       "datname = current_database()")  # fmt: skip
    with pytest.raises(psycopg.OperationalError):
        assert books.charged == 0
    other.reap()
    assert other.charged == 100
    books.settle(entry, 30, {})  # too late: it was charged
    assert (books.charged, books.reserved) == (100, 0)
    second = books.enter(key(1), 10)
    other.reap()
    assert other.reserved == 10, "it lives again"
    books.settle(second, 5, {})
    assert books.charged == 105
    books.close()
    other.close()
