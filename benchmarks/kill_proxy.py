"""kill -9 at random moments: what a proxy that dies loses, and what it charges.

Every round starts a proxy (as a process of its own) on the same database, lets clients ask it, half of them for streams, and
kills it at a random moment. In the end, whatever the moments were:

* every answer that a client has whole is charged, once, at what it was told;
* no more is charged than the budget, and no less than the endpoint has generated;
* nothing stays reserved.

    python benchmarks/kill_proxy.py [ROUNDS] [SEED] [postgresql://...]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.serving.app import application
from experiments.serving.budget import make_budget
from roi_env.answering.base import ThinkingTier
from roi_env.answering.books import DatabaseLedger
from roi_env.answering.http import HTTPSolver
from roi_env.answering.postgres import GRACE
from tests.upstream import Upstream, serving

TIERS = [ThinkingTier("now", 0, 20), ThinkingTier("long", 60, 20)]
BUDGET = 40_000
CLIENTS = 6
LONGEST = 2.0
"""Seconds that a proxy lives at most."""


def serve(upstream: str, state: Path, database: str | None, told: Connection) -> None:
    """One proxy, until it is killed."""
    solver = HTTPSolver(f"{upstream}/v1", "stub", "vllm", concurrency=CLIENTS)
    budget = make_budget("a", BUDGET, solver, TIERS, "fixed-2", 50, CLIENTS, state, database=database)
    config = uvicorn.Config(application([budget]), host="127.0.0.1", port=0, log_level="critical")
    listening = config.bind_socket()
    told.send(listening.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listening])


async def client(address: str, stream: bool, charged: list[int]) -> None:
    """Ask until there is nobody any more; keep what whole answers were said to cost."""
    body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": stream}
    async with httpx.AsyncClient(timeout=30, verify=False) as caller:
        while True:
            try:
                response = await caller.post(f"{address}/a/v1/chat/completions", json=body)
            except httpx.HTTPError:
                return
            if response.status_code == 429:  # the budget is spent
                return
            if response.status_code != 200:
                continue
            text = response.text
            if stream:
                events = [one.removeprefix("data: ") for one in text.split("\n\n")]
                if "[DONE]" not in events:
                    return
                text = events[events.index("[DONE]") - 1]
            charged.append(int(json.loads(text)["usage"]["roi"]["charged"]))


async def round_(address: str, process: Any, seconds: float, charged: list[int]) -> None:
    """Ask, and kill."""
    asking = [asyncio.create_task(client(address, number % 2 == 0, charged)) for number in range(CLIENTS)]
    await asyncio.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.gather(*asking)


def main() -> None:
    """Kill, count, and compare."""
    rounds, seed = (int(text) for text in (sys.argv[1:3] + ["100", "0"][len(sys.argv[1:3]) :]))
    database = sys.argv[3] if len(sys.argv) > 3 else None
    rng = random.Random(seed)
    forks = multiprocessing.get_context("fork")
    upstream = Upstream(pace=0.005, thinks=25, answer=lambda prompt: " ".join(["word"] * rng.randint(1, 40)))
    charged: list[int] = []
    with tempfile.TemporaryDirectory() as folder, serving(upstream.app()) as url:
        state = Path(folder)
        for _ in range(rounds):
            here, there = forks.Pipe()
            process = forks.Process(target=serve, args=(url, state, database, there), daemon=True)
            process.start()
            address = f"http://127.0.0.1:{here.recv()}"
            asyncio.run(round_(address, process, rng.uniform(0.0, LONGEST), charged))
            process.join()
        books = DatabaseLedger(database or state / "budgets.db", "a", BUDGET, {})
        if database is not None:  # those that were killed might yet have connected again
            time.sleep(GRACE)
            books.database.reap()
        entries, left = books.entries, (books.reserved, books.charged)
        books.close()
    reserved, spent = left
    settled = Counter(entry.charged or 0 for entry in entries if entry.facts is not None)
    missing = Counter(charged) - settled
    killed = sum(entry.facts is None for entry in entries)
    print(
        f"{rounds} kills, seed {seed}: {len(charged)} whole answers, {killed} requests in flight when they were killed, "
        f"{spent:,} of {BUDGET:,} tokens charged, {upstream.generated:,} generated, {reserved} reserved"
    )
    assert not missing, f"whole answers that are not charged: {missing}"
    assert reserved == 0, "reserved tokens stay"
    assert spent == sum(entry.charged or 0 for entry in entries), "charged twice, or lost"
    assert upstream.generated <= spent <= BUDGET, "less charged than generated, or more than there is"


if __name__ == "__main__":
    main()
