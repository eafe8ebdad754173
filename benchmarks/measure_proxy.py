"""What `roi serve` adds to streams, beside a direct connection and beside the LiteLLM proxy, on one stub endpoint.

Stub and clients share this process, each proxy has one of its own. The paths are asked in turn, again and again: direct,
`roi serve`, LiteLLM. A figure is what a path adds to the direct connection's median.

    python benchmarks/measure_proxy.py [--streams 100] [--tokens 100] [--rounds 3] [--litellm VENV/bin/litellm] [--out FILE]

LiteLLM lives in an environment of its own: pip install 'litellm[proxy]'.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.upstream import Upstream, serving

PACE = 0.05
"""Seconds a token."""
SERVE = "import sys; from experiments.cli import main; sys.argv = ['roi', 'serve', *sys.argv[1:]]; main()"
Times = list[tuple[float, float]]
"""(seconds to the first chunk, seconds to the end) of streams."""


async def one(client: httpx.AsyncClient, address: str) -> tuple[float, float]:
    """Times of a stream."""
    body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": True, "max_tokens": 4096}
    begun, first = time.perf_counter(), 0.0
    async with client.stream("POST", f"{address}/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for _ in response.aiter_raw():
            first = first or time.perf_counter() - begun
    return first, time.perf_counter() - begun


async def ask(address: str, streams: int) -> Times:
    """Times of so many streams, which arrive over a second."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits, verify=False) as client:
        asked = []
        for _ in range(streams):
            asked.append(asyncio.create_task(one(client, address)))
            await asyncio.sleep(1 / streams)
        return list(await asyncio.gather(*asked))


@contextmanager
def running(command: list[str], address: str) -> Iterator[int]:
    """A proxy, once it answers: its process's number."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                assert process.poll() is None, f"{command[0]} ended by itself"
                try:
                    httpx.get(f"{address}/models")
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def roi_command(upstream: str, port: int, streams: int, folder: Path) -> list[str]:
    """`roi serve` with one budget and one tier."""
    at = ["--upstream", upstream, "--model", "stub", "--state", str(folder), "--port", str(port)]
    sizes = ["--window", str(streams), "--queue", str(streams)]
    return [
        sys.executable,
        "-c",
        SERVE,
        "--budget",
        "a=1e9",
        *at,
        *sizes,
        "--agent",
        "fixed-1",
        "--tier",
        "long=0+4096",
    ]


def litellm_command(program: str, upstream: str, port: int, folder: Path) -> list[str]:
    """LiteLLM's proxy as its documentation starts it, one worker, without a database."""
    told = {"model": "openai/stub", "api_base": upstream, "api_key": "none"}
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": "stub", "litellm_params": told}]}))
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def peak_megabytes(process: int) -> float:
    """Most memory that a process has had."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def summary(times: Times, direct: Times) -> dict[str, float]:
    """Milliseconds: medians and 95 % of a path, and what its medians add to the direct connection's."""
    found: dict[str, float] = {}
    for place, name in enumerate(("first", "whole")):
        mine = [one[place] * 1000 for one in times]
        found[f"{name}_median"] = statistics.median(mine)
        found[f"{name}_p95"] = statistics.quantiles(mine, n=20)[-1]
        found[f"{name}_added"] = statistics.median(mine) - statistics.median([one[place] * 1000 for one in direct])
    return {key: round(value, 2) for key, value in found.items()}


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--litellm", help="LiteLLM's program; left out: no such row")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    told = parser.parse_args()
    upstream = Upstream(pace=PACE, thinks=0, answer=lambda prompt: " ".join(["word"] * told.tokens))
    with ExitStack() as stack:
        url = stack.enter_context(serving(upstream.app()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths, processes = {"direct": f"{url}/v1"}, {}
        port = free_port()
        paths["roi serve"] = f"http://127.0.0.1:{port}/a/v1"
        command = roi_command(f"{url}/v1", port, told.streams, folder)
        processes["roi serve"] = stack.enter_context(running(command, paths["roi serve"]))
        if told.litellm:
            port = free_port()
            paths["LiteLLM"] = f"http://127.0.0.1:{port}/v1"
            command = litellm_command(told.litellm, f"{url}/v1", port, folder)
            processes["LiteLLM"] = stack.enter_context(running(command, paths["LiteLLM"]))
        times: dict[str, Times] = {name: [] for name in paths}
        for address in paths.values():
            asyncio.run(ask(address, 4))  # connections, caches
        for _ in range(told.rounds):
            for name, address in paths.items():
                times[name] += asyncio.run(ask(address, told.streams))
        memory = {name: round(peak_megabytes(process), 1) for name, process in processes.items()}
    rows: dict[str, Any] = {name: summary(times[name], times["direct"]) for name in paths}
    for name, megabytes in memory.items():
        rows[name]["peak_mb"] = megabytes
    print(
        f"{told.streams} streams at once by each path in turn, {told.rounds} rounds, {told.tokens} tokens each, {1 / PACE:g} tokens a "
        f"second; load {os.getloadavg()[0]:.1f}"
    )
    print("| path | first token, ms (95 %) | added | whole, ms (95 %) | added | peak MB |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        first, whole = (f"{row[f'{part}_median']:,.1f} ({row[f'{part}_p95']:,.1f})" for part in ("first", "whole"))
        added = [f"{row[f'{part}_added']:+,.1f}" for part in ("first", "whole")]
        print(f"| {name} | {first} | {added[0]} | {whole} | {added[1]} | {row.get('peak_mb', '')} |")
    if told.out:
        settings = {"streams": told.streams, "tokens": told.tokens, "rounds": told.rounds, "tokens_a_second": 1 / PACE}
        told.out.write_text(json.dumps(settings | {"load": os.getloadavg()[0], "paths": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
