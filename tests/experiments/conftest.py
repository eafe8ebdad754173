"""Comparisons whose pictures nobody looks at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.commands import undrawn as without_pictures


@pytest.fixture
def undrawn() -> Iterator[None]:
    """See :func:`tests.commands.undrawn`."""
    with without_pictures():
        yield
