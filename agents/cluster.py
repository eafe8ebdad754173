"""A Ray cluster for as long as it is needed: training and rollouts share it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """A Ray cluster: the one in use, else that at ``address``, else one started here and stopped again.

    :param address: of a running cluster ("auto": this machine's), or None.
    :param cpus: of a cluster started here.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    # "local": without it Ray would join, and refuse these settings, where somebody runs a cluster on this machine.
    here = {"num_cpus": cpus, "include_dashboard": False}
    told_to_stop = signal.getsignal(signal.SIGTERM)
    ray.init(address or "local", log_to_driver=False, logging_level="error", **({} if address else here))
    if callable(told_to_stop) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, told_to_stop)  # Ray's own ends the process with a crash report
    try:
        yield
    finally:
        ray.shutdown()
