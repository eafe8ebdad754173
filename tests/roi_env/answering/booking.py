"""How tests reserve."""

from __future__ import annotations

from typing import Any

from roi_env.answering.ledger import Books, Entry


async def reserve(books: Books, key: tuple[Any, ...], tokens: int) -> Entry:
    """Reserve tokens for a request, which may be sent when this returns."""
    entry = books.enter(key, tokens)
    await books.secure(entry)
    return entry
