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
    import aiohttp

    from roi_env.answering.connections import find_access, open_session, reason

    # What follows the host may be a secret.
    shown = f"{told['budget']}: the warning did not reach the webhook at {urlsplit(address).hostname}"
    try:
        async with (
            open_session(find_access(address), aiohttp.ClientTimeout(total=_SECONDS)) as session,
            session.post(address, json=dict(told), allow_redirects=False) as response,
        ):
            if not 200 <= response.status < 300:
                say(f"{shown}: HTTP {response.status}")
    except (aiohttp.ClientError, TimeoutError) as error:
        say(f"{shown}: {reason(error)}")
    except ValueError as error:
        say(f"{shown}: {type(error).__name__}")
