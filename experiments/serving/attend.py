"""Clients of the proxy who wait: how many, for how long, and what happens when they leave.

A client who left while its question waited costs nothing: the question is dropped before anything is reserved. One who
left while its answer was being made stops the endpoint by closing the connection, where that stops it (and always where
the answer streams), and costs its reservation; elsewhere the answer is awaited and costs what it costs, but what failed is not asked again for nobody.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from experiments.commands.endpoints import report
from roi_env.answering.ledger import BooksAway

if TYPE_CHECKING:
    from starlette.requests import Request

    from agents.live.session import Row
    from agents.live.steps import Ticket
    from roi_env.answering.base import Reply
    from roi_env.answering.http import ByTier, HTTPSolver

_Result = TypeVar("_Result")


class Busy(Exception):
    """Not now: nothing was asked and nothing is charged.

    :param seconds: after which asking again makes sense.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.retry_after = str(max(1, math.ceil(seconds)))


class Gone(Exception):
    """The client has left."""


@dataclass
class Queue:
    """Those who wait to be admitted to one budget.

    :param places: most that wait.
    :param patience: most seconds that one waits, for its turn or for an endpoint that asks to wait.
    :param waiting: how many wait.
    :param seconds: that the newest answer took.
    """

    places: int = 64
    patience: float = 60.0
    waiting: int = 0
    seconds: float = 1.0

    async def admit(self, solver: HTTPSolver | ByTier, admit: Callable[[], Awaitable[_Result]]) -> _Result:
        """Wait for admission.

        :raises Busy: where too many wait already, one's time is over, or the endpoint asks to wait longer than anyone may.
        """
        if (wait := solver.closed_for) > self.patience:
            raise Busy(f"the endpoint asks to wait {wait:,.0f} s more", wait)
        if self.waiting >= self.places:
            raise Busy(f"{self.waiting:,} requests wait already, the most that may", self.seconds)
        self.waiting += 1
        try:
            async with asyncio.timeout(self.patience):
                return await admit()
        except TimeoutError:
            raise Busy(f"no place came free within {self.patience:g} s", self.seconds) from None
        finally:
            self.waiting -= 1


async def attend(
    request: Request,
    queue: Queue,
    solver: HTTPSolver | ByTier,
    admit: Callable[[], Awaitable[Ticket | None]],
    finish: Callable[[Ticket, Callable[[], bool]], Awaitable[tuple[Row, Reply | None]]],
    *,
    stops: Callable[[], bool],
) -> tuple[Row, Reply | None] | None:
    """Admit a question and let it be answered, for as long as somebody wants to know.

    :param request: whose body has been read.
    :param finish: called with a function that tells whether the client still waits.
    :param stops: asked when the client left: whether the endpoint is to be stopped, and can be, by closing the connection.
    :returns: None where the budget is gone.
    :raises Busy: see :meth:`Queue.admit`; also where the endpoint took nothing and asks to wait.
    :raises Gone: where the client left; the question is settled or dropped by then.
    """
    task, admitted, gone, stopped = asyncio.current_task(), False, False, False
    assert task is not None

    async def watch() -> None:
        nonlocal gone, stopped
        await _leaves(request)
        gone = True
        if not admitted or stops():
            stopped = task.cancel()

    async def work() -> tuple[Row, Reply | None] | None:
        nonlocal admitted
        ticket = await queue.admit(solver, admit)
        if ticket is None:
            return None
        admitted = True
        row, reply = await finish(ticket, lambda: not gone)
        if reply is not None and reply.retry_in is not None:
            if reply.attempts and reply.retry_in:  # others only hear of it
                report(f"the endpoint asks to wait {reply.retry_in:,.0f} s: {reply.error}")
            # Whatever it asks for, it is tried again after an hour at the latest.
            raise Busy(reply.error or "the endpoint takes nothing", min(reply.retry_in, solver.closed_for))
        queue.seconds = row.seconds
        return row, reply

    watching = asyncio.create_task(watch())
    try:
        outcome = await work()
    except (Busy, BooksAway):
        if gone:
            raise Gone from None
        raise
    except asyncio.CancelledError:
        if stopped and task.cancelling() == 1:  # and the server does not end
            raise Gone from None
        raise
    finally:
        watching.cancel()
        if stopped:
            task.uncancel()
    if gone:
        raise Gone
    return outcome


async def _leaves(request: Request) -> None:
    """Wait until the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
