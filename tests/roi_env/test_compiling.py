"""Where compiled functions are kept, and when they are made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_READ_ONLY = """
import os, tempfile
temporary = tempfile.TemporaryFile
def refused(*args, dir=None, **options):
    if dir and "roi-compiled-" not in dir:
        raise OSError(30, "Read-only file system", dir)
    return temporary(*args, dir=dir, **options)
tempfile.TemporaryFile = refused  # by which Numba finds out where it may write
import agents
folder = os.environ["NUMBA_CACHE_DIR"]
assert os.path.isdir(folder)
print(folder)
"""


def test_a_folder_that_may_not_be_written_is_imported_from_all_the_same() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    ran = subprocess.run([sys.executable, "-c", _READ_ONLY], env=environment, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert "name a folder that may be written by NUMBA_CACHE_DIR" in ran.stderr
    assert not Path(ran.stdout.strip()).exists(), "it ends with its process"


_FIRST = """
import sys
from pathlib import Path
import httpx
from experiments.serving.app import application
from experiments.serving.budget import make_budget
from roi_env.answering.base import ThinkingTier
from roi_env.answering.http import HTTPSolver
from tests.upstream import Upstream, serving

cache, state = map(Path, sys.argv[1:])
with serving(Upstream().app()) as endpoint:
    solver = HTTPSolver(f"{endpoint}/v1", "stub", "vllm")
    tiers = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]
    budget = make_budget("a", 1000, solver, tiers, "online-lp", 50, 8, state)
    compiled = set(cache.rglob("*.nbc"))
    with serving(application([budget])) as address:
        asked = {"messages": [{"role": "user", "content": "?"}]}
        assert httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=120).status_code == 200
    assert compiled, "nothing was compiled"
    assert set(cache.rglob("*.nbc")) == compiled, "the first client waited for a compiler"
"""


@pytest.mark.slow
def test_the_first_client_of_a_proxy_waits_for_no_compiler(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra [live]")
    cache = tmp_path / "cache"
    cache.mkdir()
    command = [sys.executable, "-c", _FIRST, str(cache), str(tmp_path)]
    ran = subprocess.run(command, env={**os.environ, "NUMBA_CACHE_DIR": str(cache)}, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 0, ran.stderr
