"""Real servers for tests: of the small model of this project (`transformers serve`, vLLM by `make vllm`), and of exams (OpenEnv).

``python -m tests.servers`` serves it by vLLM on port 8000 until it is interrupted.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx

from tests.processes import child

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "agents" / "llm" / "models" / "tinylm"

VLLM = Path(os.environ.get("ROI_VLLM_VENV", ROOT / ".venv-vllm"))
"""The virtual environment that `make vllm` sets up, or another one."""


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    with httpx.Client(verify=False) as client:
        while True:
            assert process.poll() is None, "the server ended"
            try:
                if client.get(f"{url}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _served(process: AbstractContextManager[subprocess.Popen[bytes]], port: int) -> Iterator[str]:
    """A server's address from its first answer on; it ends with the block."""
    url = f"http://127.0.0.1:{port}"
    with process as server:
        try:
            _wait(server, url)
            yield url
        finally:
            server.terminate()
            server.wait(30)


def start_vllm(
    port: int, model: str | Path = MODEL, parser: bool = True
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """vLLM for the time of a block; the model's name is ``tiny``.

    :param parser: with hard thinking budgets, and thoughts apart from the text.
    """
    think = '{"reasoning_start_str":"<think>","reasoning_end_str":"</think>"}'
    command = [str(VLLM / "bin" / "vllm"), "serve", str(model), "--served-model-name", "tiny", "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--enforce-eager", "--generation-config", "vllm"]
    command += ["--reasoning-parser", "qwen3", "--reasoning-config", think] if parser else []
    command += ["--host", "127.0.0.1", "--port", str(port)]
    settings = {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",  # 5 s: busy clients meet connections that are just being closed
        "HF_HUB_OFFLINE": "1",
    }
    return child(command, env={**os.environ, **settings})


@contextmanager
def vllm_serve(model: str | Path = MODEL, parser: bool = True) -> Iterator[str]:
    """Serve a model by vLLM on a free port; gives the base address.

    ``ROI_VLLM_ENDPOINT`` names one that serves the small model already.
    """
    if parser and os.environ.get("ROI_VLLM_ENDPOINT"):
        yield os.environ["ROI_VLLM_ENDPOINT"]
        return
    port = _free_port()
    with _served(start_vllm(port, model, parser), port) as url:
        yield f"{url}/v1"


@contextmanager
def transformers_serve() -> Iterator[str]:
    """Serve the small model on a free port; gives the base address.

    ``ROI_TINYLM_ENDPOINT`` names one that runs already (to try tests again and again), ``ROI_PYTHON`` the interpreter of the
    environment that holds transformers where that is another one.
    """
    if "ROI_TINYLM_ENDPOINT" in os.environ:
        yield os.environ["ROI_TINYLM_ENDPOINT"]
        return
    port = _free_port()
    python = os.environ.get("ROI_PYTHON", sys.executable)
    command = [str(Path(python).parent / "transformers"), "serve", str(MODEL), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = child(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with _served(process, port) as url:
        yield f"{url}/v1"


@contextmanager
def exam_serve(*options: str) -> Iterator[str]:
    """Serve the exams of the example for OpenEnv on a free port; gives the address."""
    port, folder = _free_port(), ROOT / "examples" / "integrations" / "openenv_exam"
    command = [sys.executable, "-m", "server.app", "--port", str(port), *options]
    process = child(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    with _served(process, port) as url:
        yield url


if __name__ == "__main__":
    with start_vllm(8000) as server:
        try:
            sys.exit(server.wait())
        except KeyboardInterrupt:
            server.wait()
