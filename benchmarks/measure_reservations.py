"""What reservations cost: how much of a budget they hold, whom they keep waiting, and how many answers are right in the end.

Questions of recorded tables, behind what `roi answer` knows without one (see ``online_replay.py``), are answered by an
endpoint in simulated time that generates the recorded numbers of tokens, so many a second. Everything else is the real
code: sessions, ledgers, agents. "worst case": the endpoint does not tell what answers have taken; "steps": it does.

* peak: sum of the largest reservation of every request / sum of the charges.
* integral: tokens that were reserved by requests in flight, over time / tokens that these had taken so far, over time.
* false waits: waits for room (not for a place in the window) of questions that would have fitted, as all final charges show.
* false refusals: questions refused for a spent budget that would have fitted into what was left in the end.

``ROI_DATA=... python benchmarks/measure_reservations.py [--tasks 200] [--table NAME] [--out FILE]``
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from online_replay import TABLES, unknown

from agents.base import public_problem
from agents.live.session import Session, make_live
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.ledger import Entry, Ledger
from roi_env.exams.config import exam_spec
from roi_env.sources.source import Source

_Result = TypeVar("_Result")

REPLAYED = {"TinyLM": (20, 2, 10), "exams, maths alone, GPT-4": (20, 2, 4), "AIME, gpt-5.2": (100, 50, 1)}
"""By table: tokens that a stream generates in a second, those of a chunk, and orders of the questions."""
AGENTS = ("online-lp", "fixed-3")
WINDOWS = (1, 8, 64)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
"""Budgets, as shares of all questions at the dearest tier."""


class SimulatedTime(asyncio.SelectorEventLoop):
    """An event loop that does not wait: where nothing is to be done now, it is at once as late as the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None) -> Any:
            assert timeout is not None, "everybody waits for ever"
            self.now += timeout
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        """Seconds."""
        return self.now


def simulate(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run in simulated time."""
    with asyncio.Runner(loop_factory=SimulatedTime) as runner:
        return runner.run(work)


@dataclass
class Recorded:
    """A solver that generates what was recorded.

    :param outcomes: (tokens, right) by question and tier.
    :param rate: tokens a second.
    :param chunk: tokens that come at once.
    :param lead: tokens that come before a stream is stopped; None: it does not tell what answers have taken.
    """

    outcomes: dict[tuple[str, str], tuple[int, bool]]
    rate: int
    chunk: int
    lead: int | None
    name: str = "recorded"
    generated: dict[str, int] = field(default_factory=dict)
    """By question; also what came after it was stopped."""

    async def answer(self, ask: Ask) -> Reply:
        """A text that states an answer where it ends by itself."""
        name = ask.question.question_id
        end = min(self.outcomes[name, ask.tier.name][0], ask.cap)
        tokens = 0
        while tokens < end:
            came = min(self.chunk, end - tokens)
            await asyncio.sleep(came / self.rate)
            tokens += came
            self.generated[name] = tokens
            if self.lead is not None and ask.meter is not None and not await ask.meter(tokens, self.lead):
                self.generated[name] = min(end, tokens + self.lead)
                return Reply("cut", None, tokens, None, "length", "server")
        if end < self.outcomes[name, ask.tier.name][0]:
            return Reply("cut", None, tokens, None, "length", "server")
        return Reply("#### 1", None, tokens, None, "stop", "server")

    async def close(self) -> None:
        """Nothing."""


class Books(Ledger):
    """A ledger that measures."""

    def __init__(self, taken: dict[str, int]) -> None:
        super().__init__(None)
        self.peak: dict[int, int] = {}
        self.taken = taken
        self.held = self.used = 0.0
        """Integrals over time."""
        self._last = 0.0

    def watch(self, now: float) -> None:
        """Add what has passed since."""
        open_ = [entry for entry in self.entries[-1000:] if entry.charged is None]
        self.held += (now - self._last) * sum(entry.reserved for entry in open_)
        self.used += (now - self._last) * sum(self.taken.get(entry.key[1], 0) for entry in open_)
        self._last = now

    def enter(self, key: tuple[Any, ...], tokens: int) -> Entry:
        """As ever."""
        entry = super().enter(key, tokens)
        self.peak[entry.number] = tokens
        return entry

    async def resize(self, entry: Entry, tokens: int) -> None:
        """As ever."""
        await super().resize(entry, tokens)
        self.peak[entry.number] = max(self.peak[entry.number], tokens)


class Watched(Session):
    """A session that tells who waits for room, and beside what."""

    def watched(self, solver: Recorded) -> Watched:
        """Begin to."""
        self.waits: dict[int, list[tuple[float, float]]] = {}
        self.position = 0
        self.recorded = solver
        return self

    async def _change(self) -> None:
        begun = asyncio.get_running_loop().time()
        flights = sum(
            min(self.recorded.outcomes[ticket.question.question_id, self.tiers[ticket.action - 1].name][0], ticket.cap)
            for ticket in self.flights
        )
        beside = self.charged + flights
        await super()._change()
        self.waits.setdefault(self.position, []).append((beside, asyncio.get_running_loop().time() - begun))


async def play(source: Source, tiers: Sequence[ThinkingTier], budget: int, tasks: int, seed: int, agent: str, window: int,
               rate: int, chunk: int, steps: bool) -> dict[str, float]:  # fmt: skip
    """One list of questions."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(source.num_items, tasks, replace=source.num_items < tasks)
    drawn = source.outcomes[
        source.outcome_start.reshape(-1, len(tiers))[rows]
        + rng.integers(0, source.outcome_count.reshape(-1, len(tiers))[rows])
    ]
    questions = [Question("replayed", str(n), "", "") for n in range(tasks)]
    outcomes = {
        (str(n), tier.name): (int(drawn[n, k]) >> 1, bool(drawn[n, k] & 1))
        for n in range(tasks)
        for k, tier in enumerate(tiers)
    }
    solver = Recorded(outcomes, rate, chunk, rate // 4 if steps else None)
    books = Books(solver.generated)
    problem = public_problem(exam_spec(source, num_tasks=tasks, budget=budget, order="given"))
    groups = [int(source.row_group[row]) for row in rows]
    session = Watched(make_live(agent, problem), solver, tiers, groups, ledger=books, window=window)
    session.watched(solver)
    loop = asyncio.get_running_loop()
    right, refused, cut = 0, list[int](), 0
    running = set[asyncio.Task[None]]()

    async def clock() -> None:
        while True:
            await asyncio.sleep(1.0)
            books.watch(loop.time())

    async def finish(ticket: Any) -> None:
        nonlocal right, cut
        row, _ = await session.finish(ticket)
        cut += row.status == "cut"
        right += row.status == "answered" and outcomes[row.question_id, str(row.tier)][1]

    watching = asyncio.create_task(clock())
    for position, question in enumerate(questions):
        session.position = position
        ticket = await session.admit(position, question)
        if ticket is None:
            refused.append(position)
        else:
            task = asyncio.create_task(finish(ticket))
            running.add(task)
            task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    watching.cancel()
    books.close()
    generated = sum(solver.generated.values())
    final = {entry.key[0]: entry.charged or 0 for entry in books.entries}
    waits = [(position, *wait) for position, some in session.waits.items() for wait in some]
    fitted = {p for p, beside, _ in waits if p in final and beside + final[p] <= budget}
    left = budget - session.charged
    cheapest = [min(outcomes[str(p), tier.name][0] for tier in tiers) for p in refused]
    return {
        "right": right,
        "peak": sum(books.peak.values()) / max(1, session.charged),
        "integral": books.held / max(1.0, books.used),
        "waits": len({p for p, _, _ in waits}),
        "false waits": len(fitted),
        "false waits, seconds": sum(seconds for p, _, seconds in waits if p in fitted),
        "refused": len(refused),
        "false refusals": sum(tokens <= left for tokens in cheapest),
        "cut": cut,
        "charged": session.charged / budget,
        "overspent": max(0, session.charged - budget, generated - budget),
        "seconds": loop.time(),
    }


def tiers_of(source: Source) -> list[ThinkingTier]:
    """As live questions have them."""
    return [ThinkingTier(tier.name, 0, tier.cap or tier.level_edge, tier.name) for tier in source.tiers]


def measured(name: str, tasks: int) -> Iterator[dict[str, Any]]:
    """A row for every agent, budget, window and policy: means over the orders."""
    (table,) = (table for table in TABLES if table.name == name)
    source, dearest = unknown(table, "test", tasks)
    rate, chunk, orders = REPLAYED[name]
    for agent, share, window, steps in itertools.product(AGENTS, SHARES, WINDOWS, (False, True)):
        budget = round(share * tasks * dearest)
        runs = [
            simulate(play(source, tiers_of(source), budget, tasks, seed, agent, window, rate, chunk, steps))
            for seed in range(orders)
        ]
        row = {name: round(float(np.mean([run[name] for run in runs])), 3) for name in runs[0]}
        row["overspent"] = max(run["overspent"] for run in runs)
        policy = "steps" if steps else "worst case"
        yield {"table": table.name, "agent": agent, "budget": share, "window": window, "policy": policy, **row}


def main() -> None:
    """Measure, print a line a row, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--table", action="append", choices=list(REPLAYED))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.table or REPLAYED:
        for row in measured(name, arguments.tasks):
            rows.append(json.dumps(row))
            print(rows[-1], flush=True)
    if arguments.out is not None:
        arguments.out.write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
