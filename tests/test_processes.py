"""What tests start ends with them."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.processes import child


def test_a_child_of_a_test_that_fails_is_gone_and_its_pipe_closed() -> None:
    started: list[subprocess.Popen[Any]] = []

    def failing() -> None:
        command = [sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(600)"]
        with child(command, stdout=subprocess.PIPE) as process:
            started.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == b"something else"

    with pytest.raises(AssertionError):
        failing()
    (process,) = started
    assert process.returncode == -signal.SIGKILL
    assert process.stdout is not None
    assert process.stdout.closed
