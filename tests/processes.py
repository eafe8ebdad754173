"""Processes that tests start."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx


@contextmanager
def child(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is gone, and whose pipes are closed, once the block is left, however that happens.

    :param options: of :class:`subprocess.Popen`.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_it_answers(process: subprocess.Popen[Any], address: str) -> None:
    """Wait until a server answers at an address; one that ends before fails the test."""
    while True:
        assert process.poll() is None, "the server ended"
        try:
            httpx.get(address)
            return
        except httpx.HTTPError:
            time.sleep(0.05)
