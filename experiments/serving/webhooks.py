"""Warnings to the addresses that a configuration file names; no other is ever asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

_SECONDS = 10.0


def is_address(text: Any) -> bool:
    """Whether a text is an address that a warning may be sent to."""
    if not isinstance(text, str):
        return False
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None


async def tell(address: str, told: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Send a warning as JSON, once; a redirection is not followed, and a failure is said."""
    import httpx

    shown = f"webhook at {urlsplit(address).hostname}"  # what follows may be a secret
    try:
        async with httpx.AsyncClient(timeout=_SECONDS, follow_redirects=False) as client:
            response = await client.post(address, json=dict(told))
        if not response.is_success:
            say(f"{shown}: HTTP {response.status_code}")
    except httpx.HTTPError as error:
        say(f"{shown}: {type(error).__name__}")
