"""Reservations that follow their answers: nothing is ever overspent, little is held, and few wait in vain."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base import DecisionView, public_problem
from agents.live.answer import BudgetController
from agents.live.session import Session, make_live
from agents.live.steps import Flights, Lengths, Ticket
from roi_env.answering import streams
from roi_env.answering.backends import BACKENDS
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.books import DatabaseLedger
from roi_env.answering.clerk import Clerk
from roi_env.answering.http import HTTPSolver
from roi_env.answering.ledger import Books, Entry, Ledger
from roi_env.answering.prices import Price, Rates
from roi_env.answering.streams import Counter, Pace
from roi_env.envs.live import live_source
from roi_env.exams.config import exam_spec
from tests.upstream import Upstream, serving

TIERS = (ThinkingTier("short", 0, 40), ThinkingTier("long", 100, 200))


class Pouring:
    """Generates so many tokens for each question, in bursts of up to ``burst``, and goes on for ``lead`` after it is stopped.

    :param fails: questions that fail, and how.
    """

    name = "pouring"

    def __init__(
        self, lengths: list[int], burst: int, lead: int | None, fails: dict[int, str], rng: random.Random
    ) -> None:
        self.lengths, self.burst, self.lead, self.fails, self.rng = lengths, burst, lead, fails, rng
        self.generated = 0

    async def answer(self, ask: Ask) -> Reply:
        number = int(ask.question.question_id)
        end, tokens, kind = min(self.lengths[number], ask.cap), 0, self.fails.get(number)
        while tokens < end:
            await asyncio.sleep(0)
            came = min(self.rng.randint(1, self.burst), end - tokens)
            tokens += came
            self.generated += came
            if kind is not None and self.rng.random() < 0.2:
                if kind == "raises":
                    raise RuntimeError("broken")
                if kind == "cancelled":
                    raise asyncio.CancelledError
                return Reply("", None, ask.most, None, "error", "reserved", "lost", lost=True)
            if ask.meter is not None and not await ask.meter(tokens, ask.most if self.lead is None else self.lead):
                self.generated += min(self.lead or 0, end - tokens)
                return Reply("", None, tokens, None, "length", "server")
        return Reply("#### 1", None, tokens, None, "stop" if end == self.lengths[number] else "length", "server")

    async def close(self) -> None:
        return None


class Unread(Pouring):
    """Its client does not read, and leaves; the endpoint goes on until then."""

    async def answer(self, ask: Ask) -> Reply:
        assert ask.meter is not None
        assert ask.sink is not None
        assert await ask.meter(20, 10)
        await ask.sink("", {})
        raise AssertionError


async def play(books: Books, solver: Any, budget: int, tasks: int, window: int, agent: str) -> list[Any]:
    """All questions, as `roi answer` asks them; the reservations and charges fit the budget at every moment."""
    questions = [Question("q", str(n), "x", "") for n in range(tasks)]
    problem = public_problem(exam_spec(live_source(questions, TIERS), num_tasks=tasks, budget=budget))
    session = Session(make_live(agent, problem), solver, TIERS, [0] * tasks, ledger=books, window=window)
    held: list[int] = []

    async def finish(ticket: Any) -> Any:
        row, _ = await session.finish(ticket)
        return row

    async def watch() -> None:
        while True:
            held.append(books.reserved + session.charged)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    running = []
    for position, question in enumerate(questions):
        async with asyncio.timeout(60):
            ticket = await session.admit(position, question)
        if ticket is not None:
            running.append(asyncio.create_task(finish(ticket)))
    rows = await asyncio.gather(*running, return_exceptions=True)
    watching.cancel()
    assert max(held) <= budget
    assert books.reserved == 0
    assert session.in_flight == 0
    return rows


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    budget=st.integers(1, 3000),
    window=st.sampled_from([1, 3, 8, 64]),
    burst=st.integers(1, 3),
    lead=st.one_of(st.none(), st.integers(0, 30)),
    agent=st.sampled_from(["fixed-1", "fixed-2", "online-lp", "remaining-share"]),
)
def test_nothing_is_overspent_by_what_is_charged_nor_by_what_is_generated(
    seed: int, budget: int, window: int, burst: int, lead: int | None, agent: str
) -> None:
    rng = random.Random(seed)
    tasks = rng.randint(1, 30)
    lengths = [int(min(400, rng.lognormvariate(3, 1.2))) + 1 for _ in range(tasks)]
    fails = {n: rng.choice(("raises", "cancelled", "lost")) for n in range(tasks) if rng.random() < 0.2}
    solver, books = Pouring(lengths, burst, lead, fails, rng), Ledger(None)
    asyncio.run(play(books, solver, budget, tasks, window, agent))
    assert books.charged <= budget
    # A chunk larger than all before comes before it can be refused.
    assert solver.generated <= books.charged + tasks * (burst - 1)


class Priced(Pouring):
    """Every prompt has 30 tokens of at most 50."""

    def most_prompt(self, ask: Ask) -> int:
        return 50

    async def answer(self, ask: Ask) -> Reply:
        reply = await super().answer(ask)
        return reply if reply.lost else dataclasses.replace(reply, prompt_tokens=30)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    budget=st.integers(1, 20_000),
    window=st.sampled_from([1, 8, 64]),
    lead=st.one_of(st.none(), st.integers(0, 30)),
    agent=st.sampled_from(["fixed-2", "online-lp"]),
)
def test_dollars_that_follow_answers_are_never_overspent(
    seed: int, budget: int, window: int, lead: int | None, agent: str
) -> None:
    rng = random.Random(seed)
    lengths = [int(min(400, rng.lognormvariate(3, 1.2))) + 1 for _ in range(25)]
    price = Price(Decimal("1.25"), Decimal("7.5"))
    solver = Priced(lengths, 1, lead, {n: "lost" for n in range(25) if rng.random() < 0.1}, rng)
    rates = Rates({tier.name: price for tier in TIERS})
    controller = BudgetController(agent, solver, f"{budget} micro-usd", tiers=TIERS, window=window, rates=rates)
    result = controller.run([Question("q", str(n), "x", "") for n in range(25)])
    begun = sum(row.status not in ("skipped", "not reached") and row.tokens > 0 for row in result.rows)
    assert result.charged <= budget
    assert result.overshoot == 0
    assert Decimal(solver.generated) * price.completion + 30 * begun * price.prompt <= result.charged


def test_a_database_and_a_journal_keep_the_same_books(tmp_path: Path) -> None:
    kept = []
    for name in ("database", "journal"):
        rng = random.Random(7)
        lengths = [int(min(400, rng.lognormvariate(3, 1.2))) + 1 for _ in range(30)]
        solver = Pouring(lengths, 1, 5, {}, rng)
        books: Any = (
            Clerk(DatabaseLedger(tmp_path / "budgets.db", "a", 900, {}))
            if name == "database"
            else Ledger(tmp_path / "ledger.jsonl", {})
        )
        asyncio.run(play(books, solver, 900, 30, 8, "fixed-2"))
        entries = books.books.entries if isinstance(books, Clerk) else books.entries
        kept.append([(entry.key[0], entry.reserved, entry.charged) for entry in entries])
        books.close()
    assert kept[0] == kept[1]
    again = Ledger(tmp_path / "ledger.jsonl", {})
    assert [(entry.key[0], entry.reserved, entry.charged) for entry in again.entries] == kept[1]
    assert again.messages == []
    again.close()


def test_a_killed_process_is_charged_what_it_had_reserved_last(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", {})
    first, second = ledger.enter((0, "a", 1, 9), 10), ledger.enter((1, "b", 1, 9), 10)
    asyncio.run(ledger.resize(first, 70))
    asyncio.run(ledger.resize(second, 4))
    ledger.close()  # writes nothing
    again = Ledger(tmp_path / "ledger.jsonl", {})
    assert again.charged == 74
    again.close()


def test_what_an_endpoint_generates_for_a_client_that_does_not_read_is_charged(tmp_path: Path) -> None:
    async def unread(text: str, chunk: Any) -> None:
        await asyncio.Event().wait()

    async def run(books: Clerk) -> None:
        question = Question("q", "0", "x", "")
        problem = public_problem(exam_spec(live_source([question], TIERS), num_tasks=1, budget=1000))
        solver = Unread([], 1, 10, {}, random.Random(0))
        session = Session(make_live("fixed-2", problem), solver, TIERS, [0], ledger=books)
        ticket = await session.admit(0, question)
        assert ticket is not None
        answer = asyncio.create_task(session.finish(ticket, lambda ask: ask._replace(sink=unread)))
        await asyncio.sleep(1.1)
        assert ticket.entry is not None
        assert ticket.entry.reserved < 20 + 5 * 10
        answer.cancel()
        await asyncio.wait([answer])
        assert 20 + 5 * 10 <= books.charged <= TIERS[1].most_tokens

    books = Clerk(DatabaseLedger(tmp_path / "b.db", "a", 1000, {}))
    try:
        asyncio.run(run(books))
    finally:
        books.close()


def test_reservations_hold_little_more_than_answers_cost() -> None:
    rng = random.Random(3)
    lengths = [int(min(300, rng.lognormvariate(4, 0.8))) + 1 for _ in range(200)]
    held: dict[str, float] = {}
    for name, lead in (("steps", 5), ("worst case", None)):
        books = Ledger(None)
        peak: dict[int, int] = {}
        resize = books.resize

        async def resized(entry: Any, tokens: int, resize: Any = resize, peak: Any = peak) -> None:
            await resize(entry, tokens)
            peak[entry.number] = max(peak.get(entry.number, 0), tokens)

        books.resize = resized  # type: ignore[method-assign]
        asyncio.run(play(books, Pouring(lengths, 1, lead, {}, rng), 12_000, 200, 64, "fixed-2"))
        held[name] = sum(max(peak.get(e.number, 0), e.reserved) for e in books.entries) / books.charged
    assert held["steps"] <= 1.3 < 2 < held["worst case"]


def test_what_answers_should_take_is_what_they_take() -> None:
    """Against the empirical law, where nothing is censored; those in flight make it longer."""
    rng = np.random.default_rng(0)
    ended = np.minimum(rng.geometric(0.02, 400), 300).astype(np.float64)
    law = Lengths(ended, np.zeros(0), 300)
    all_ = np.append(ended, 300.0)  # the one that takes the most
    for taken in (0.0, 10.0, 100.0):
        mean, variance = law.given(np.array([taken]))
        rest = all_[all_ > taken]
        assert mean[0] == pytest.approx(rest.mean())
        assert variance[0] == pytest.approx(rest.var(), rel=1e-6)
    short = np.array([5.0])
    alone, beside = (Lengths(short, np.full(n, 50.0), 300).given(np.zeros(1))[0][0] for n in (0, 20))
    assert alone < beside
    assert Lengths(np.zeros(0), np.zeros(0), 300).given(np.zeros(1))[0][0] == 300


@given(
    st.lists(
        st.tuples(
            *(st.integers(1, 2), st.integers(1, 3), st.integers(1, 300), st.floats(0.1, 9), st.integers(0, 50)),
            *(st.floats(0, 1), st.floats(0, 1)),
        ),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.tuples(st.integers(1, 2), st.integers(1, 300)), max_size=20),
)
def test_sums_over_those_in_flight_are_what_they_should_be(
    asked: list[tuple[int, int, int, float, int, float, float]], ended: list[tuple[int, int]]
) -> None:
    most, decision_cost, paid = (60, 300), 3, {1: [0], 2: [0]}
    flights, tickets = Flights(most, decision_cost), []
    for action, tokens in ended:
        flights.learn(action, min(tokens, most[action - 1]), tokens)
        paid[action].append(tokens)
    for number, (action, choices, cap, price, fixed, held, taken) in enumerate(asked[1:]):
        cap = min(cap, most[action - 1])
        worst = round(choices * cap * price) + fixed + decision_cost
        ticket = Ticket(
            *(0, Question("q", "1", "?", ""), action, cast(DecisionView, None), cap),
            entry=Entry(number, (), round(held * worst)),
            choices=choices,
            price=price,
            fixed=fixed,
            believed=7.5 * held,
        )
        flights.begin(ticket)
        flights.took(ticket, round(taken * cap))
        tickets.append(ticket)
    action, choices, cap, price, fixed, *_ = asked[0]
    new = (action, choices, min(cap, most[action - 1]), price, fixed)
    assert flights.need(*new) <= flights.most_need(*new) * (1 + 1e-9)
    while tickets:
        means = [one.choices * (one.believed + sum(paid[one.action])) / len(paid[one.action]) for one in tickets]
        assert flights.expected() == pytest.approx(sum(means) + decision_cost * len(tickets))
        flights.end(tickets.pop())
    assert (flights.expected(), len(flights)) == (0, 0)
    assert flights.most_need(*new) == Flights(most, decision_cost).most_need(*new)


async def answered(controller: BudgetController, solver: HTTPSolver, questions: Sequence[Question]) -> Any:
    """All of them; the connections are closed."""
    try:
        return await controller.answer(questions)
    finally:
        await solver.close()


@pytest.mark.parametrize("backend", ["generic", "vllm"])
def test_over_http_answers_grow_where_the_stream_counts(backend: str, tmp_path: Path) -> None:
    """The reservations of `roi answer`; a stream that cannot grow is closed."""
    upstream = Upstream(pace=0.01, thinks=0, answer=lambda prompt: " ".join(["word"] * int(prompt)))
    questions = [Question("q", str(n), str(40 if n % 4 else 120), "") for n in range(24)]
    with serving(upstream.app()) as url:
        solver = HTTPSolver(f"{url}/v1", "stub", backend, concurrency=8)
        controller = BudgetController(
            "fixed-1", solver, 900, tiers=[ThinkingTier("long", 0, 400)], window=8, ledger=tmp_path / "ledger.jsonl"
        )
        result = asyncio.run(answered(controller, solver, questions))
    assert solver.lead is not None
    assert all(seen.body["stream"] for seen in upstream.seen)
    assert upstream.generated <= result.charged <= 900
    later = [row for row in result.rows[12:] if row.status == "answered"]
    assert later
    assert sum(row.reserved for row in later) <= 1.6 * sum(row.charged for row in later)


@pytest.mark.parametrize("counts", [True, False])
def test_an_endpoint_that_never_counts_is_reserved_at_its_worst(counts: bool, tmp_path: Path) -> None:
    upstream = Upstream(pace=0.01, thinks=0, answer=lambda prompt: " ".join(["word"] * 60), counts=counts)
    questions = [Question("q", str(n), "?", "") for n in range(4)]
    with serving(upstream.app()) as url:
        solver = HTTPSolver(f"{url}/v1", "stub")
        controller = BudgetController("fixed-1", solver, 5000, tiers=[ThinkingTier("long", 0, 400)], window=1)
        result = asyncio.run(answered(controller, solver, questions))
    assert result.charged == 240
    reserved = [row.reserved for row in result.rows]
    if counts:
        assert max(reserved) < 130
    else:
        assert reserved == [400] * 4
        assert [seen.body.get("stream", False) for seen in upstream.seen] == [True, *[False] * 3]


def test_an_endpoint_that_refuses_to_count_is_asked_without(tmp_path: Path) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    upstream, refused = Upstream(thinks=0), 0

    async def strict(request: Request) -> Response:
        nonlocal refused
        if "continuous_usage_stats" in (await request.json()).get("stream_options", {}):
            refused += 1
            return JSONResponse({"error": {"message": "stream_options.continuous_usage_stats: unknown"}}, 400)
        return await upstream._chat(request)

    questions = [Question("q", str(n), "?", "") for n in range(3)]
    with serving(Starlette(routes=[Route("/v1/chat/completions", strict, methods=["POST"])])) as url:
        solver = HTTPSolver(f"{url}/v1", "stub")
        controller = BudgetController("fixed-1", solver, 500, tiers=[ThinkingTier("long", 0, 40)])
        result = asyncio.run(answered(controller, solver, questions))
    assert refused == 1
    assert [row.status for row in result.rows] == ["answered"] * 3
    assert result.charged == upstream.generated


class Clock:
    """The time that streams are measured by."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def streamed(pace: Pace, clock: Clock, *blocks: tuple[int, float]) -> None:
    """A stream of a token every 10 ms, which is not read for some seconds after so many tokens: then they come at once."""
    counter, tokens, due = Counter(BACKENDS["vllm"], pace), 0, clock.now
    unread = dict(blocks)
    for tokens in range(1, 400):
        due += 0.01
        clock.now = max(clock.now, due)
        chunk = {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"completion_tokens": tokens}}
        counter.add(chunk, tokens, True)
        clock.now += unread.get(tokens, 0.0)
        counter.resume()


def test_a_client_that_does_not_read_does_not_make_its_endpoint_seem_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "time", clock := Clock())
    pace = Pace(None)
    streamed(pace, clock, (50, 2.0), (300, 0.3))
    assert 24 <= (pace.lead or 0) <= 26


def test_what_an_endpoint_sent_once_is_forgotten_and_what_it_sends_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "time", clock := Clock())
    pace = Pace(None)
    streamed(pace, clock)
    usual = pace.lead or 0
    pace.came(500, True)
    for _ in range(3):
        assert pace.lead == 500
        clock.now += 0.6 * Pace.MEMORY
        streamed(pace, clock)
    clock.now += 0.6 * Pace.MEMORY
    streamed(pace, clock)
    assert pace.lead == usual
    clock.now += 10 * Pace.MEMORY
    assert pace.lead == usual, "an endpoint that rests is as fast as before"
    streamed(pace, clock)
    assert pace.lead == usual
