"""A real server for tests: `transformers serve` with the small model of this project."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

MODEL = Path(__file__).parents[1] / "agents" / "llm" / "models" / "tinylm"


@contextmanager
def transformers_serve() -> Iterator[str]:
    """Serve the small model on a free port; gives the base address.

    ``ROI_TINYLM_ENDPOINT`` names one that runs already (to try tests again and again).
    """
    if "ROI_TINYLM_ENDPOINT" in os.environ:
        yield os.environ["ROI_TINYLM_ENDPOINT"]
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "transformers", "serve", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(verify=False) as client:
            while True:
                assert process.poll() is None, "transformers serve ended"
                try:
                    if client.get(f"{url}/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.3)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(20)
