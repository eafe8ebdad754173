"""Worker processes end with the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from experiments.training.workers import STOPPED, ends_promptly, worker_pool
from tests.processes import child


def beat(file: str) -> None:
    """Write the time until somebody ends this process."""
    while True:
        Path(file).write_text(str(time.monotonic()))
        time.sleep(0.05)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something becomes true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_workers_of_a_killed_command_do_not_go_on(tmp_path: Path) -> None:
    file = tmp_path / "beat"
    program = (
        "from tests.experiments.training.test_workers import *\nimport sys\n"
        "with worker_pool(1) as pool:\n    pool.submit(beat, sys.argv[1]).result()"
    )
    with child([sys.executable, "-c", program, str(file)], cwd=Path(__file__).parents[3]):
        assert until(file.exists)

    def silent() -> bool:
        before = file.stat().st_mtime_ns
        time.sleep(1)
        return file.stat().st_mtime_ns == before

    assert until(silent)


def test_workers_are_other_processes() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()


def test_workers_of_a_block_that_an_exception_leaves_do_not_go_on(tmp_path: Path) -> None:
    file = tmp_path / "beat"
    seen: list[Any] = []

    def interrupted() -> None:
        with worker_pool(2) as pool:
            seen[:] = list(pool._processes.values()), pool.submit(beat, str(file))
            assert until(file.exists)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    processes, work = seen
    assert len(processes) == 2
    assert until(lambda: not any(process.is_alive() for process in processes))
    assert isinstance(work.exception(), BrokenProcessPool)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_does_not_hear_a_signal_ends_nevertheless(number: signal.Signals) -> None:
    """As inside a callback of C, where Python drops what a handler raises."""
    program = """
import signal, time
from experiments.terminal import end_like_an_interrupt
from experiments.training.workers import ends_promptly
end_like_an_interrupt()
signal.signal(signal.SIGINT, lambda *_: None)  # what it raises is lost
with ends_promptly():
    print("begun", flush=True)
    while True:
        time.sleep(0.1)
"""
    options: dict[str, Any] = {"cwd": Path(__file__).parents[3], "stdout": subprocess.PIPE, "text": True}
    with child([sys.executable, "-c", program], **options) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "begun\n"
        command.send_signal(number)
        assert command.wait(60) == STOPPED


def test_a_block_without_signals_leaves_nothing_behind() -> None:
    threads = threading.active_count()
    with ends_promptly():
        assert threading.active_count() == threads + 1
    assert until(lambda: threading.active_count() == threads)
    assert signal.set_wakeup_fd(-1) == -1
