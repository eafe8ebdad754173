"""Long commands end within seconds of Ctrl-C or SIGTERM, with all their processes, and keep what was done."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.terminal import interrupted
from experiments.training.workers import STOPPED
from tests.commands import roi
from tests.processes import child

ROOT = Path(__file__).parents[3]
FOR_EVER = "steps=1000000000"
SMALL = ["--num-tasks", "3", "--param", "exams=64", "--param", "minibatch=16", "--param", "width=8"]
COMPARE = ["compare", "--workers", "2", "--num-tasks", "3", "exams=5", "--agent", "fixed-1", "--agent"]
COMPARE += [f"sb3-a2c({FOR_EVER})", "--family", "signal", "--budget", "0.3", "--budget", "0.6", "--out"]


def until(condition: Callable[[], object], command: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def of_session(leader: int) -> Iterator[int]:
    """Processes of a session that are not dead."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state not in "ZX":
            yield int(status.parent.name)


def interrupt(arguments: list[str], ready: Callable[[], object], number: signal.Signals, whole_group: bool) -> str:
    """Start a command in a session of its own, tell it to stop when it is ready; its output once all of it is gone."""
    options = {"cwd": ROOT, "env": os.environ | {"COLUMNS": "200"}, "text": True, "start_new_session": True}
    started = child(
        [sys.executable, "-m", "experiments", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )
    with started as command:
        try:
            until(ready, command)
            (os.killpg if whole_group else os.kill)(command.pid, number)
            output: str = command.communicate(timeout=60)[0]
            end = time.monotonic() + 20
            while left := list(of_session(command.pid)):
                assert time.monotonic() < end, left
                time.sleep(0.1)
            assert command.returncode == STOPPED, output
            assert "Traceback" not in output, output
            return output
        finally:
            for process in of_session(command.pid):
                os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_compare_keeps_the_jobs_that_are_done(tmp_path: Path) -> None:
    run = tmp_path / "run"
    output = interrupt([*COMPARE, str(run)], lambda: any(run.glob("jobs/*")), signal.SIGINT, True)
    assert f"roi compare --resume {run}" in output
    done = [file for file in run.glob("jobs/*") if not file.name.startswith(".")]
    assert done
    for file in done:
        with np.load(file) as job:
            assert job.files
    assert f"{len(done)} done already" in " ".join(roi("compare", "--resume", str(run), "--dry-run").split())


@pytest.mark.slow
def test_compare_ends_while_its_workers_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupt([*COMPARE, str(run)], lambda: (run / "jobs").exists(), signal.SIGINT, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "ready"),
    [
        (["train", "sb3-a2c", "--param", FOR_EVER, "--out"], "run/tensorboard/*"),
        (["train", "ppo", *SMALL, "--param", FOR_EVER, "--runners", "1", "--out"], "run/checkpoint"),
        (["rollouts", "hindsight-optimisation(scenarios=4096)", "--exams", "100000", "--out"], "run/rollouts.json"),
        (["rollouts", "lp-lookahead", "--exams", "100000000", "--workers", "1", "--out"], "run/part-*"),
        (["tune", "--agent", "sb3-a2c", "--steps", "1000000000", "--out", "tuned.json", "--run"], "run"),
    ],
)
def test_other_long_commands(arguments: list[str], ready: str, tmp_path: Path) -> None:
    """By SIGTERM, which becomes the interrupt that Ctrl-C is."""
    run = tmp_path / "run"
    arguments = [str(tmp_path / text) if text == "tuned.json" else text for text in arguments]
    output = interrupt([*arguments, str(run)], lambda: any(tmp_path.glob(ready)), signal.SIGTERM, False)
    assert re.search("go on with:  (roi train --resume|the same command)", output)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_interrupts_behind_compiled_code(layers: int) -> None:
    def error(cause: type[BaseException]) -> BaseException:
        found: BaseException = cause()
        for _ in range(layers):
            outer = SystemError("returned a result with an exception set")
            outer.__cause__ = found
            found = outer
        return found

    assert interrupted(error(KeyboardInterrupt))
    assert not interrupted(error(ValueError))
    assert not interrupted(error(SystemError))
