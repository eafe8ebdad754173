"""Warnings to the addresses that a configuration file names; no other is ever asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

_SECONDS = 10.0
WAITS = (1.0, 5.0, 25.0, 125.0, 600.0)
"""Seconds after which a warning that failed is sent again, one after the other."""


def is_address(text: Any) -> bool:
    """Whether a text is an address that a warning may be sent to."""
    if not isinstance(text, str):
        return False
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None


async def tell(address: str, told: Mapping[str, Any], say: Callable[[str], None], ending: asyncio.Event) -> None:
    """Send a warning as JSON, again after :data:`WAITS` where it may have been lost on the way; giving up is said.

    :param ending: the process ends: it is tried once more, at once.
    """
    for tries, wait in enumerate((*WAITS, 0.0), 1):
        try:
            failed, again = await _send(address, told)
        except asyncio.CancelledError:
            say(_given_up(address, told, tries, "no answer came before the proxy ended"))
            raise
        if failed is None:
            return
        if not again or ending.is_set() or tries > len(WAITS):
            break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await ending.wait()
    say(_given_up(address, told, tries, str(failed)))


def _given_up(address: str, told: Mapping[str, Any], tries: int, why: str) -> str:
    # What follows the host may be a secret.
    host, count = urlsplit(address).hostname, "" if tries == 1 else f" after {tries} tries"
    return f"{told['budget']}: the warning did not reach the webhook at {host}, and is given up{count}: {why}"


async def _send(address: str, told: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Send it once; a redirection is not followed.

    :returns: what failed, None: nothing; and whether it makes sense to try again.
    """
    import aiohttp

    from roi_env.answering.connections import find_access, open_session, reason

    try:
        async with (
            open_session(find_access(address), aiohttp.ClientTimeout(total=_SECONDS)) as session,
            session.post(address, json=dict(told), allow_redirects=False) as response,
        ):
            status = response.status
            return (None if 200 <= status < 300 else f"HTTP {status}"), status >= 500 or status in (408, 425, 429)
    except (aiohttp.ClientError, TimeoutError) as error:
        return reason(error), not isinstance(error, aiohttp.InvalidURL)
    except ValueError as error:
        return type(error).__name__, False
