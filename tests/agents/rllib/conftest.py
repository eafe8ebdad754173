"""One Ray for the tests of a module, started only if one of them asks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

pytest.importorskip("ray", reason="needs the extra [rllib]")

import ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray with room for a driver, two runners and two learners."""
    ray.init(
        "local",
        num_cpus=6,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=80 << 20,
    )
    yield
    ray.shutdown()
