"""The thread that keeps the books goes on, whatever becomes of those who hear or look at it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from roi_env.answering.books import DatabaseLedger
from roi_env.answering.clerk import Clerk
from roi_env.answering.ledger import BooksAway


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), SystemExit(1)])
def test_books_that_nobody_hears_of_come_back(fault: BaseException, tmp_path: Path) -> None:
    """What is printed fails where its disk is full; rich leaves where its reader has gone."""

    def say(text: str) -> None:
        told.append(text)
        raise fault

    async def run() -> None:
        gone = True

        def do(books: DatabaseLedger) -> int:
            if gone:
                raise sqlite3.OperationalError("away")
            return books.charged

        with pytest.raises(BooksAway):
            await asyncio.wait_for(clerk.ask(do), 5)
        gone = False
        assert await asyncio.wait_for(clerk.ask(do), 5) == 0

    told: list[str] = []
    clerk = Clerk(DatabaseLedger(tmp_path / "budgets.db", "a", 100, {}), say)
    try:
        asyncio.run(run())
    finally:
        clerk.close()
    assert [text.split(",")[0] for text in told] == [
        "the database of the budgets is away",
        "the database of the budgets is back",
    ]


def test_many_who_look_at_once_leave_threads_to_others(tmp_path: Path) -> None:
    async def run() -> None:
        looking = [asyncio.create_task(clerk.look(lambda books: seen.wait(20) and books.asked)) for _ in range(50)]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(asyncio.to_thread(seen.set), 5)
        assert await asyncio.gather(*looking) == [0] * 50

    seen = threading.Event()
    clerk = Clerk(DatabaseLedger(tmp_path / "budgets.db", "a", 100, {}))
    try:
        asyncio.run(run())
    finally:
        seen.set()
        clerk.close()
