"""Budgets in a real PostgreSQL server, which the tests start for themselves: one budget, several proxies, spent once."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg", reason="needs the extra [postgres]")

import httpx
import psycopg

from experiments.serving.app import application
from experiments.serving.budget import Budget, make_budget
from roi_env.answering import books as bookkeeping
from roi_env.answering import database, postgres
from roi_env.answering.base import ThinkingTier
from roi_env.answering.books import DatabaseLedger, open_database
from roi_env.answering.clerk import Clerk
from roi_env.answering.http import HTTPSolver
from roi_env.answering.ledger import BooksAway, Entry, JournalError, NoRoom
from tests.processes import child
from tests.roi_env.answering.booking import key, ledger, reserve
from tests.upstream import Upstream, serving


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


class Server:
    """A server of an unprivileged user in a folder of its own, on a socket there.

    :ivar url: of its first database.
    """

    def __init__(self, programs: Path, folder: str) -> None:
        self.folder, self.url = folder, f"postgresql:///postgres?host={folder}&user=roi"
        self.programs, self.how = programs, dict[str, Any](stdout=subprocess.DEVNULL, cwd=folder)
        if os.getuid() == 0:  # it refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self.how |= {"user": "nobody", "group": nobody.pw_gid, "extra_groups": []}
        command = [programs / "initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "roi"]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, **self.how)
        self.start()

    def start(self) -> None:
        """Start it; it answers when this returns."""
        command = [
            self.programs / "postgres",
            "-D",
            f"{self.folder}/data",
            "-k",
            self.folder,
            "-c",
            "listen_addresses=",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **self.how)
        for _ in range(600):
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.stop()
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        """End it at once, as a crash does."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that the tests of this module share."""
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's programs: Debian's postgresql")
    with tempfile.TemporaryDirectory() as folder:
        started = Server(programs, folder)
        yield started
        started.stop()


@pytest.fixture
def url(server: Server) -> str:
    """A database of its own."""
    name = f"test_{time.monotonic_ns()}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url.replace("///postgres", f"///{name}")


def test_a_request_is_reserved_resized_settled_and_told(url: str) -> None:
    books = ledger(url)
    entry = books.enter(key(0), 100)
    books.resize(entry, 300)
    assert (books.reserved, books.charged, books.limit) == (300, 0, 1000)
    with pytest.raises(NoRoom):
        books.resize(entry, 1001)
    with pytest.raises(NoRoom):
        books.enter(key(1), 701)
    books.settle(entry, 120, {"text": "secret", "tokens": 120, "finish": "stop"})
    books.skip(key(2), 3)
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
    before = datetime.now(UTC) - timedelta(days=3)
    base.run("UPDATE budgets SET current = :then", then=f"{before:%Y-%m-%d}")
    assert (books.limit, books.charged) == (340, 0), "two days in which nobody looked, and this one"
    with pytest.raises(JournalError, match="has no budget 'b'; there are a"):
        base.change("b", 1, add=True)
    (state,) = base.states()
    assert (state["budget"], state["spent"], state["unit"]) == ("a", 110, "tokens")
    base.close()
    books.close()


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://roi:hunter2@127.0.0.1:1/none",
        "postgresql://roi:a@hunter2/b:c#d?e=%@127.0.0.1:1/none",
        "postgresql://roi:a%@hunter2@127.0.0.1:1/none",
        "postgresql://roi:hunter2@[::1/none",
        "postgresql://roi:hunter2/x@127.0.0.1:1/none",
        "postgresql://127.0.0.1:1/none?user=roi&password=hunter2&sslpassword=hunter2",
    ],
)
def test_a_password_is_in_no_message(address: str) -> None:
    with pytest.raises(JournalError) as caught:
        open_database(address)
    assert "hunter2" not in str(caught.value)
    assert "***" in str(caught.value)


def test_an_address_that_cannot_be_read_says_how_to_write_it() -> None:
    with pytest.raises(JournalError, match=r"127\.0\.0\.1/none: this address cannot be read; .* @ is written %40"):
        open_database("postgresql://roi:50%@127.0.0.1/none")


def test_a_role_that_may_not_make_tables_uses_those_that_are_there(url: str) -> None:
    role = f"worker_{time.monotonic_ns()}"
    worker = url.replace("user=roi", f"user={role}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        with pytest.raises(JournalError, match="permission denied"):
            ledger(worker)
        ledger(url).close()
        connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        connection.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
    books = ledger(worker)
    books.settle(books.enter(key(0), 100), 30, {})
    assert books.charged == 30
    books.close()


def test_a_stricter_default_of_the_database_fails_nobody(url: str) -> None:
    name = url.split("///")[1].split("?")[0]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    first, second = ledger(url), ledger(url)
    with first.database.transaction():
        assert first.charged == 0
        second.settle(second.enter(key(0), 100), 30, {})
        first.enter(key(1), 50)
    assert (first.charged, second.reserved) == (30, 50)
    first.close()
    second.close()


def test_a_server_that_hangs_is_held_lost_and_nothing_is_charged_twice(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = ledger(url)
    entry = books.enter(key(0), 100)
    monkeypatch.setattr(postgres, "_SILENT", 1.0)
    (hangs,) = books.database.one("SELECT pg_backend_pid()")
    os.kill(hangs, signal.SIGSTOP)
    try:
        with pytest.raises(JournalError, match="said nothing for 1 s"):
            books.enter(key(1), 50)
        assert books.database.lost
        books.settle(entry, 30, {})
    finally:
        os.kill(hangs, signal.SIGCONT)
    other = ledger(url)
    assert (other.charged, other.reserved) == (30, 0)
    for one in (books, other):
        one.close()


_SPENDER = """
import sys
from roi_env.answering.ledger import NoRoom
from tests.roi_env.answering.booking import key, ledger
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
    with ExitStack() as stack:
        running = [stack.enter_context(child(command, stdout=subprocess.PIPE, text=True)) for _ in range(4)]
        most = [int(process.communicate(timeout=300)[0]) for process in running]
    books = ledger(url)
    assert max(most) <= 1000
    assert books.reserved == 0
    assert 900 < books.charged == sum(entry.charged or 0 for entry in books.entries) <= 1000
    books.close()


def test_processes_that_start_at_once_make_the_tables_once(url: str) -> None:
    with psycopg.connect(url) as holder, ThreadPoolExecutor(4) as pool:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (postgres._SCHEMA_LOCK,))
        started = [pool.submit(ledger, url) for _ in range(4)]
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while holder.execute(waiting).fetchone() != (4,):  # each has seen a database without tables
            assert not any(one.done() for one in started)
            time.sleep(0.01)
        holder.commit()
        for books in started:
            books.result().close()


def test_proxies_that_forget_old_requests_at_once_forget_each_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeping, "_FOLDED", 20)
    monkeypatch.setattr(bookkeeping, "NEWEST", 5)
    several = [ledger(url, 10_000) for _ in range(3)]
    books, flying = several[0], several[1].enter(key(0), 50)
    with books.database.transaction():
        for _ in range(300):
            books.settle(books.enter(key(1), 10), 3, {"tokens": 3})
    books.database.run("UPDATE requests SET ended = id WHERE ended IS NOT NULL")
    before = books.database.states()

    def fold(one: DatabaseLedger) -> None:
        while one.fold(1e9):
            one.settle(one.enter(key(2), 10), 0, {})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(fold, several))
    made = books.database.one("SELECT count(*) FROM requests WHERE ended > 1e9")[0]
    assert books.asked == 301 + made
    assert (books.newest(1000)[-1]["key"], len(books.newest(1000))) == (list(key(0)), 1 + max(made, 5))
    assert books.database.states() == before
    several[1].settle(flying, 7, {})
    assert (books.charged, books.reserved) == (907, 0)
    for one in several:
        one.close()


def test_a_role_that_may_delete_nothing_says_so_once_and_serves(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    role = f"worker_{time.monotonic_ns()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        ledger(url).close()
        connection.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}")
        connection.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
    with proxy(url.replace("user=roi", f"user={role}"), tmp_path, Upstream(thinks=0)) as (address, budget):
        for _ in range(3):
            asyncio.run(budget.fold())
        assert httpx.post(f"{address}/chat/completions", json=body()).status_code == 200
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("a: old requests are kept, they cannot be deleted (permission denied for table requests)") == 1
    assert "stays so until" not in said


def test_tables_that_take_long_to_bring_to_a_version_are_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "SECONDS", 1)
    monkeypatch.setattr(postgres, "_SILENT", 1.5)
    monkeypatch.setattr(database, "_CHANGES", (*database._CHANGES, "SELECT pg_sleep(3)"))
    for module in (database, postgres):
        monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    with ThreadPoolExecutor(2) as pool:
        for started in [pool.submit(ledger, url) for _ in range(2)]:
            books = started.result()
            assert books.database.one("SHOW statement_timeout") == ("1s",)
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
from tests.roi_env.answering.booking import key, ledger
books = ledger(sys.argv[1])
entry = books.enter(key(1), 100)
books.resize(entry, 160)
print("reserved", flush=True)
time.sleep(600)
"""


def test_a_process_that_is_killed_is_charged_once_and_one_that_lives_is_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "GRACE", 0.2)
    books = ledger(url)
    mine = books.enter(key(0), 50)
    with child([sys.executable, "-c", _VICTIM, url], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline().strip() == "reserved"
        books.database.reap()
        assert (books.reserved, books.charged) == (210, 0), "it lives"
    end = time.monotonic() + 60
    while books.charged == 0 and time.monotonic() < end:  # the server hears of the closed connection
        books.database.reap()
        time.sleep(0.05)
    others = [ledger(url) for _ in range(3)]
    for other in others:
        other.database.reap()
    assert (books.reserved, books.charged) == (50, 160)
    books.settle(mine, 20, {})
    assert books.charged == 180
    for one in (*others, books):
        one.close()


def cut_off(other: DatabaseLedger) -> None:
    """End all connections to the database but one."""
    other.database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid() AND "
                       "datname = current_database()")  # fmt: skip


def test_a_server_that_restarts_has_nobody_charged_for_what_others_have_in_flight(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = ledger(url), ledger(url), ledger(url)
    entries = [books.enter(key(number), 100) for number, books in enumerate((first, second, third))]
    server.stop()
    server.start()
    for books in (first, second):
        with pytest.raises(psycopg.OperationalError):
            assert books.charged == 0
    fresh = ledger(url)
    for books in (first, fresh):
        books.database.reap()
        assert (books.charged, books.reserved) == (0, 300), "who is back first does not know who will be"
    second.settle(entries[1], 7, {})
    first.settle(entries[0], 9, {})
    assert (fresh.charged, fresh.reserved) == (16, 100)
    monkeypatch.setattr(postgres, "GRACE", 0.0)  # the third has not come back in time
    fresh.database.reap()
    assert (fresh.charged, fresh.reserved) == (116, 0)
    for books in (first, second, third, fresh):
        books.close()


def test_a_lost_connection_is_made_again_and_nothing_is_charged_twice(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "GRACE", 0.0)
    books, other = ledger(url), ledger(url)
    entry = books.enter(key(0), 100)
    cut_off(other)
    with pytest.raises(psycopg.OperationalError):
        assert books.charged == 0
    other.database.reap()
    assert other.charged == 100
    books.settle(entry, 30, {})  # too late: it was charged
    assert (books.charged, books.reserved) == (100, 0)
    second = books.enter(key(1), 10)
    other.database.reap()
    assert other.reserved == 10, "it lives again"
    books.settle(second, 5, {})
    assert books.charged == 105
    books.close()
    other.close()


def test_who_connects_again_takes_along_what_it_has_in_flight_and_gives_back_what_it_never_heard_of(url: str) -> None:
    books, other = ledger(url), ledger(url)
    entry = books.enter(key(0), 100)
    books.enter(key(1), 40)
    books.database.in_flight -= {entry.number + 1}  # as where the connection broke before the answer came
    cut_off(other)
    with pytest.raises(psycopg.OperationalError):
        assert books.charged == 0
    books.resize(entry, 150)
    other.database.reap()
    assert (other.charged, other.reserved) == (0, 150)
    books.settle(entry, 120, {})
    assert (other.charged, other.reserved) == (120, 0)
    books.close()
    other.close()


def test_a_clerk_does_what_comes_together_in_one_transaction_and_again_after_a_break(url: str) -> None:
    clerk, other = Clerk(ledger(url)), ledger(url)

    async def play() -> None:
        entries = await asyncio.gather(*(reserve(clerk, key(n), 100) for n in range(12)), return_exceptions=True)
        taken = [one for one in entries if isinstance(one, Entry)]
        assert len(taken) == 10
        assert all(isinstance(one, NoRoom) for one in entries if not isinstance(one, Entry))
        cut_off(other)
        await asyncio.gather(*(clerk.resize(one, 50 + n) for n, one in enumerate(taken)))
        assert clerk.reserved == other.reserved == 545
        asked = asyncio.create_task(reserve(clerk, key(20), 300))
        await asyncio.sleep(0)
        asked.cancel()  # whoever asks has left
        for one in taken:
            clerk.settle(one, 7, {})
        assert clerk.charged == 70, "it counts before it is written"
        await asyncio.gather(asked, return_exceptions=True)
        await clerk.written()
        await clerk.refresh()
        assert (clerk.charged, clerk.reserved) == (70, 0) == (other.charged, other.reserved)

    asyncio.run(play())
    commits = other.database.one("SELECT count(DISTINCT xmin::text) FROM requests")[0]
    assert commits < 11, "what came together was written together"
    clerk.close()
    other.close()


class Relay:
    """Passes on between clients and a server; cuts one off as it commits.

    :ivar cuts: "now": the server has the COMMIT, and its client hears nothing of it; "later": it gets it once another
        connection has begun to reserve; None: none is cut.
    """

    def __init__(self, server: str, folder: Path) -> None:
        self.server, self.cuts = f"{server}/.s.PGSQL.5432", ""
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / ".s.PGSQL.5432"))
        self.listener.listen()
        self.held: tuple[socket.socket, bytes] | None = None
        self.cut = 0
        self.made = [self.listener]
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def close(self) -> None:
        for made in self.made:
            with suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for made in self.made:
            made.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, server = self.listener.accept()[0], socket.socket(socket.AF_UNIX)
                self.made += [client, server]
                server.connect(self.server)
                for way in (self._ask, self._answer):
                    self.threads.append(threading.Thread(target=way, args=(client, server), daemon=True))
                    self.threads[-1].start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if b"COMMIT" in data and self.cuts:
                    self.cut, how, self.cuts = self.cut + 1, self.cuts, ""
                    client.shutdown(socket.SHUT_RDWR)
                    if how == "now":
                        server.sendall(data)
                        server.shutdown(socket.SHUT_WR)
                    else:
                        self.held = server, data
                    return
                server.sendall(data)
                if self.held is not None and b"SET reserved = reserved +" in data:
                    time.sleep(0.2)  # it waits for who is about to commit
                    late, commit = self.held
                    late.sendall(commit)
                    late.shutdown(socket.SHUT_WR)
                    self.held = None
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("cuts", ["now", "later"])
def test_a_reservation_whose_connection_is_lost_as_it_commits_is_made_once(
    server: Server, url: str, cuts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "GRACE", 1.0)
    with tempfile.TemporaryDirectory() as folder:
        relay = Relay(server.folder, Path(folder))
        clerk, other = Clerk(ledger(url.replace(server.folder, folder))), ledger(url)

        async def play() -> None:
            first = await reserve(clerk, key(0), 300)
            relay.cuts = cuts
            second = await reserve(clerk, key(1), 100)
            assert (relay.cut, relay.held) == (1, None)
            await clerk.reap()
            assert (other.charged, other.reserved) == (0, 400)
            await clerk.resize(second, 150)
            clerk.settle(first, 20, {})
            clerk.settle(second, 110, {})
            await clerk.written()
            end = time.monotonic() + 2
            while time.monotonic() < end:
                other.database.reap()
                await clerk.reap()
                await asyncio.sleep(0.1)

        asyncio.run(play())
        assert (other.charged, other.reserved) == (130, 0)
        assert sorted(entry.charged or 0 for entry in other.entries) == [0, 20, 110]
        clerk.close()
        other.close()
        relay.close()


@contextmanager
def proxy(url: str, folder: Path, upstream: Upstream, tokens: int = 10_000) -> Iterator[tuple[str, Budget]]:
    with serving(upstream.app()) as endpoint:
        solver = HTTPSolver(f"{endpoint}/v1", "stub", "vllm", deadline=60.0)
        tiers = [ThinkingTier("only", 0, 400)]
        budget = make_budget("a", tokens, solver, tiers, "fixed-1", 50, 8, folder, database=url)
        with serving(application([budget])) as address:
            yield f"{address}/a/v1", budget


def body(stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": stream, **more}


def test_streams_go_on_while_another_holds_the_budget(url: str, tmp_path: Path) -> None:
    upstream = Upstream(pace=0.05, thinks=0, counts=False, answer=lambda prompt: " ".join(["word"] * 60))
    holder = psycopg.connect(url)
    with (
        proxy(url, tmp_path, upstream) as (address, budget),
        httpx.Client(verify=False, timeout=60) as client,
        ThreadPoolExecutor(1) as threads,
        client.stream("POST", f"{address}/chat/completions", json=body(stream=True)) as response,
    ):
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        next(lines)
        holder.execute("SELECT * FROM budgets WHERE name = 'a' FOR UPDATE")
        waits = threads.submit(httpx.post, f"{address}/chat/completions", json=body(max_tokens=3), timeout=60)
        came = [next(lines) for _ in range(50)]
        assert len(came) == 50
        assert not waits.done(), "what needs the budget waits"
        assert httpx.get(f"{address.removesuffix('/a/v1')}/health").status_code == 200
        holder.rollback()
        assert waits.result().json()["usage"]["roi"]["charged"] == 3
        last = [json.loads(line[6:]) for line in lines][-1]
        assert last["usage"]["roi"]["charged"] == 60
        assert budget.session.charged == 63
    holder.close()


def test_a_server_that_dies_gives_errors_and_nothing_is_lost_when_it_is_back(
    server: Server, url: str, tmp_path: Path
) -> None:
    upstream = Upstream(latency=1.0, thinks=0)
    with proxy(url, tmp_path, upstream) as (address, budget), ThreadPoolExecutor(1) as threads:
        ask = partial(httpx.post, f"{address}/chat/completions", json=body(), timeout=60)
        assert ask().status_code == 200
        answered = threads.submit(ask)
        while len(upstream.seen) < 2:
            time.sleep(0.01)
        server.stop()
        try:
            refused = ask()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "budget_unavailable")
            assert "nothing is charged" in refused.json()["error"]["message"]
            assert refused.headers["retry-after"].isdecimal()
            told = httpx.post(f"{address}/messages", json=body(max_tokens=9))
            assert (told.status_code, told.json()["type"], told.json()["error"]["type"]) == (503, "error", "api_error")
            streamed = httpx.post(f"{address}/chat/completions", json=body(stream=True))
            assert (streamed.status_code, streamed.json()["error"]["code"]) == (503, "budget_unavailable")
            root = address.removesuffix("/a/v1")
            assert httpx.get(f"{root}/health").json()["database"] == "away"
            assert httpx.get(f"{root}/budgets").status_code == 503
            assert 'roi_database_up{budget="a"} 0' in httpx.get(f"{root}/metrics").text
            assert len(upstream.seen) == 2, "nothing is asked that was not reserved"
        finally:
            server.start()
        assert answered.result().json()["usage"]["roi"]["charged"] == 4, "what was made is delivered"
        assert ask().status_code == 200
        assert httpx.get(f"{root}/health").json()["database"] == "open"
        assert (budget.clerk.charged, budget.clerk.reserved) == (12, 0)
    books = ledger(url)
    assert (books.charged, books.reserved) == (12, 0)
    assert sorted(one.charged or 0 for one in books.entries) == [4, 4, 4]
    books.close()


def settled(budget: Budget) -> None:
    """Wait until nothing is in flight, and known to be."""
    end = time.monotonic() + 60
    while budget.clerk.reserved or budget.session.in_flight:
        assert time.monotonic() < end
        with suppress(BooksAway):
            asyncio.run(budget.clerk.refresh())
        time.sleep(0.05)


def test_an_answer_that_needs_more_of_a_budget_whose_database_is_away_is_stopped_with_words(
    server: Server, url: str, tmp_path: Path
) -> None:
    upstream = Upstream(pace=0.02, thinks=0, answer=lambda prompt: " ".join(["word"] * 300))
    with proxy(url, tmp_path, upstream) as (address, budget), httpx.Client(verify=False, timeout=60) as client:
        client.post(f"{address}/chat/completions", json=body())  # how fast the endpoint is
        with client.stream("POST", f"{address}/chat/completions", json=body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.stop()
            try:
                *words, failed = (json.loads(line[6:]) for line in lines if line.startswith("data: "))
            finally:
                server.start()
        assert failed["error"]["code"] == "budget_unavailable"
        assert "costs its reservation" in failed["error"]["message"]
        settled(budget)
        assert 300 + len(words) <= budget.clerk.charged < 600


def test_what_an_endpoint_generates_while_the_database_does_not_answer_is_charged(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "SECONDS", 2)
    upstream = Upstream(pace=0.01, thinks=0, answer=lambda prompt: " ".join(["word"] * 390))
    holder = psycopg.connect(url)
    with proxy(url, tmp_path, upstream) as (address, budget), httpx.Client(verify=False, timeout=60) as client:
        client.post(f"{address}/chat/completions", json=body())  # how fast the endpoint is
        with client.stream("POST", f"{address}/chat/completions", json=body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            holder.execute("SELECT * FROM budgets WHERE name = 'a' FOR UPDATE")
            failed = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
        assert failed["error"]["code"] == "budget_unavailable"
        holder.rollback()
        settled(budget)
        assert upstream.generated <= budget.clerk.charged <= 790
    holder.close()
