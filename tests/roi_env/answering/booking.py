"""How tests reserve, and in which books of a server's database; processes that they start import little else."""

from __future__ import annotations

from typing import Any

from roi_env.answering.books import DatabaseLedger
from roi_env.answering.ledger import Books, Entry


def ledger(url: str, tokens: int = 1000, name: str = "a", **options: Any) -> DatabaseLedger:
    """A budget in a server's database."""
    return DatabaseLedger(url, name, tokens, {"tiers": [["one", 0, 10, None]]}, **options)


def key(number: int) -> tuple[Any, ...]:
    """What a request is named by."""
    return (number, f"q{number}", 1, 100)


async def reserve(books: Books, key: tuple[Any, ...], tokens: int) -> Entry:
    """Reserve tokens for a request, which may be sent when this returns."""
    entry = books.enter(key, tokens)
    await books.secure(entry)
    return entry
