"""Ray clusters of several nodes on one machine, for tests that lose some of them."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_reset

STORE = 80 << 20
"""Bytes of a node's object store: near the least that Ray accepts."""

ASKED = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
"""How often Ray asks whether a node lives: five times in vain, and it is lost. By default every 3 s."""


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A head and one more node, one CPU each. Nobody is connected to it, and ``ray.init()`` elsewhere does not find it."""
    # Sockets lie in this folder, and their paths must be short.
    folder, before = tempfile.mkdtemp(prefix="roi-", dir="/tmp"), os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = folder
    quiet = {"include_dashboard": False, "object_store_memory": STORE, "num_cpus": 1, "_system_config": ASKED}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=quiet)
        try:
            add_node(cluster)
            # Starting the head leaves this process half connected.
            _internal_kv_reset()
            yield cluster
        finally:
            cluster.shutdown()
    finally:
        del os.environ["RAY_TMPDIR"]
        if before is not None:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def add_node(cluster: Cluster) -> Any:
    """One more node of one CPU."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE)


@contextmanager
def driving(cluster: Cluster) -> Iterator[None]:
    """This process as a driver on the head."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def processes(node: Any, name: str) -> list[int]:
    """Ids of the workers of a node that are busy with an actor or a task of this name."""
    import psutil  # Ray brings it

    (raylet,) = node.all_processes["raylet"]
    found = []
    for child in psutil.Process(raylet.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, IndexError):
            if child.cmdline()[0].startswith(f"ray::{name}"):
                found.append(child.pid)
    return found


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of ``what``.

    :raises TimeoutError: where there is none in time.
    """
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.02)
    return found
