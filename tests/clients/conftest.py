"""A real `roi serve`, a process of its own, in front of an endpoint in another.

``ROI_PYTHON`` is the interpreter of the environment that holds this project; clients live in others, without it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asked import Proxy

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("ROI_PYTHON", "")
collect_ignore_glob = [] if PYTHON else ["test_*.py"]
"""`make test-clients` runs these tests; other runs do not have the clients."""


@pytest.fixture(scope="session")
def upstream() -> Iterator[str]:
    command = [PYTHON, "-m", "tests.upstream"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PACE": "0.01"}
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextmanager
def serve(upstream: str, *options: str) -> Iterator[Proxy]:
    """A proxy with the budgets ``a``, which is large, ``small``, of 30 tokens, and ``spent``, of which nothing is left."""
    code = "import sys; from experiments.cli import main; sys.argv = ['roi', *sys.argv[1:]]; main()"
    with tempfile.TemporaryDirectory() as state:
        command = [PYTHON, "-c", code, "serve", "--upstream", f"{upstream}/v1", "--model", "stub", "--backend", "vllm"]
        command += ["--budget", "a=1000000", "--budget", "small=30", "--budget", "spent=1", "--state", state]
        command += ["--port", "0", "--agent", "fixed-2", "--tier", "now=0+10", "--tier", "long=40+10", *options]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                while "http://" not in line:
                    assert line, "the proxy ended"
                    line = process.stdout.readline()
                made = Proxy(line.split("base address ")[1].split("/a/v1")[0].strip())
                while True:
                    try:
                        urllib.request.urlopen(f"{made.address}/health")
                        break
                    except OSError:
                        assert process.poll() is None, "the proxy ended"
                        time.sleep(0.1)
                made.ask("spent")
                yield made
            finally:
                process.terminate()


@pytest.fixture(scope="session")
def served(upstream: str) -> Iterator[Proxy]:
    with serve(upstream) as made:
        yield made


@pytest.fixture(scope="session")
def served_402(upstream: str) -> Iterator[Proxy]:
    """For clients that repeat a 429 for ever."""
    with serve(upstream, "--spent-status", "402") as made:
        yield made


@pytest.fixture
def proxy(served: Proxy) -> str:
    """Its address."""
    return served.address
