"""Worker processes end with the command that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.workers import worker_pool


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
        "from tests.experiments.test_workers import *\nimport sys\nworker_pool(1).submit(beat, sys.argv[1]).result()"
    )
    command = subprocess.Popen([sys.executable, "-c", program, str(file)], cwd=Path(__file__).parents[2])
    assert until(file.exists)
    command.kill()
    command.wait()

    def silent() -> bool:
        before = file.stat().st_mtime_ns
        time.sleep(1)
        return file.stat().st_mtime_ns == before

    assert until(silent)


def test_workers_are_other_processes() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
