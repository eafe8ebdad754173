"""Streams whose counts jump, fall, are missing, are none, or go beyond the cap: what was told for sure is charged, and more
than was reserved is shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agents.base import public_problem
from agents.live.session import Row, Session, make_live
from agents.live.steps import STEP
from roi_env.answering.base import Question, Reply, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.ledger import Ledger
from roi_env.envs.live import live_source
from roi_env.exams.config import exam_spec
from tests.upstream import serving

TIER = ThinkingTier("a", 0, 1000)
Step = tuple[int, Any]
"""(words of a chunk, what it tells as its tokens)"""


class Liar:
    """Streams a script; ``ends`` whether it says that it has ended, ``last`` the usage at its end."""

    def __init__(self) -> None:
        self.script: list[Step] = []
        self.ends, self.last = True, None
        self.address = ""

    async def chat(self, request: Request) -> Response:
        if not (await request.json()).get("stream"):
            choice = {"index": 0, "message": {"content": "w"}, "finish_reason": "stop"}
            return JSONResponse({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": self.last}})

        def chunk(words: int, told: Any, finish: str | None = None) -> str:
            choice = {"index": 0, "delta": {"content": "w " * words} if words else {}, "finish_reason": finish}
            usage = {} if told is None else {"usage": {"prompt_tokens": 9, "completion_tokens": told}}
            return f"data: {json.dumps({'choices': [choice], **usage})}\n\n"

        async def chunks() -> AsyncIterator[str]:
            for words, told in self.script:
                yield chunk(words, told)
            if self.ends:
                yield chunk(0, None, "stop")
                usage = {} if self.last is None else {"usage": {"prompt_tokens": 9, "completion_tokens": self.last}}
                yield f"data: {json.dumps({'choices': [], **usage})}\n\ndata: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self.chat, methods=["POST"])])


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    made = Liar()
    with serving(made.app()) as address:
        made.address = f"{address}/v1"
        yield made


async def ask(liar: Liar, budget: int, lead: int | None) -> tuple[Row, Reply, Ledger]:
    """One question; ``lead`` as earlier streams of the endpoint showed it."""
    solver, books = HTTPSolver(liar.address, "m", "vllm", retries=0), Ledger(None)
    if lead is not None:
        solver._pace.counts = True
        solver._pace.came(lead, True)
    question = Question("q", "0", "x", "")
    problem = public_problem(exam_spec(live_source([question], (TIER,)), num_tasks=1, budget=budget))
    session = Session(make_live("fixed-1", problem), solver, (TIER,), [0], ledger=books)
    ticket = await session.admit(0, question)
    assert ticket is not None
    row, reply = await session.finish(ticket)
    await solver.close()
    assert reply is not None
    return row, reply, books


told = st.one_of(st.none(), st.integers(-5, 2000), st.sampled_from([0, 10**30, "7", 2.5, True]))


@settings(deadline=None, max_examples=60)
@given(
    script=st.lists(st.tuples(st.integers(0, 3), told), min_size=1, max_size=30),
    ends=st.booleans(),
    last=told,
    budget=st.integers(1, 3000),
    lead=st.one_of(st.none(), st.integers(0, 30)),
)
def test_what_was_told_is_charged_and_what_was_not_reserved_is_shown(
    liar: Liar, script: list[Step], ends: bool, last: Any, budget: int, lead: int | None
) -> None:
    liar.script, liar.ends, liar.last = script, ends, last
    row, reply, books = asyncio.run(ask(liar, budget, lead))
    assert books.reserved == 0
    assert books.charged == row.charged <= budget + row.overshoot
    assert row.overshoot == max(0, row.charged - row.reserved)
    if row.status == "cut":  # later chunks may not have been read
        return
    counts, most = [0], min(1000, budget)
    for _, tokens in script:
        if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens <= 2**31 - 1:
            counts.append(tokens)
            if tokens > most:
                break
    if row.charged or ends:
        assert row.charged >= max(counts), reply


@pytest.mark.parametrize(
    ("script", "ends", "last", "charged"),
    [
        ([(1, 1), (1, 900)], True, 2, 900),  # the last usage is below what was told before
        ([(1, 1), (1, 900), (1, 3), (1, 4)], False, None, 1000),  # counts fall, and it breaks off
        ([(1, 1), (9, 5000), (1, 6000)], True, 6000, 5000),  # beyond its cap in large chunks: it is cut
        ([(1, None)] * 100, True, 1, 100),  # a hundred pieces are no single token
        ([(1, 0), (1, 0)], True, 0, 1000),  # no count at all
        ([(1, 1), (1, 2)], True, 2, 2),  # a truthful one
    ],
)
@pytest.mark.parametrize("lead", [None, 3])
def test_wrong_counts_cost_at_least_what_is_known(
    liar: Liar, script: list[Step], ends: bool, last: Any, charged: int, lead: int | None
) -> None:
    liar.script, liar.ends, liar.last = script, ends, last
    row, reply, _ = asyncio.run(ask(liar, 20_000, lead))
    assert row.charged == charged
    assert row.overshoot == max(0, charged - row.reserved)
    if ends and charged < 1000 and charged != last:
        assert "its usage is smaller" in (reply.note or "")


@pytest.mark.parametrize(("other", "charged"), [(0, 700), (900, 3 + STEP)])
def test_an_answer_that_turns_out_not_to_count_is_reserved_before_it_is_asked(
    liar: Liar, other: int, charged: int
) -> None:
    """Other streams showed it between the reservation and the request.

    :param other: what other requests hold of 1000.
    """
    liar.script, liar.ends, liar.last = [(1, None)] * 700, True, 700

    async def run() -> None:
        solver, books = HTTPSolver(liar.address, "m", "vllm", retries=0), Ledger(None)
        solver._pace.counts = True
        solver._pace.came(3, True)
        question = Question("q", "0", "x", "")
        problem = public_problem(exam_spec(live_source([question], (TIER,)), num_tasks=1, budget=1000))
        session = Session(make_live("fixed-1", problem), solver, (TIER,), [0], ledger=books)
        ticket = await session.admit(0, question)
        assert ticket is not None
        assert books.reserved == 3 + STEP
        held = books.enter((1, "q", 1, 0), other)
        solver._pace.counts = False
        row, _ = await session.finish(ticket)
        assert (row.charged, row.overshoot) == (charged, 0)
        books.settle(held, other, {})
        assert books.charged <= 1000
        await solver.close()

    asyncio.run(run())
