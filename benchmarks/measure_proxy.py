"""What `roi serve` adds to streams: its first token and its end, beside a direct connection to the same stub endpoint.

Stub and clients share this process, the proxy has one of its own. Both paths are asked at once, half of the streams each.

    python benchmarks/measure_proxy.py [STREAMS] [TOKENS]
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.upstream import Upstream, serving

PACE = 0.05
"""Seconds a token."""


async def one(client: httpx.AsyncClient, address: str) -> tuple[float, float]:
    """(seconds to the first chunk, seconds to the end) of a stream."""
    body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": True, "max_tokens": 4096}
    begun, first = time.perf_counter(), 0.0
    async with client.stream("POST", f"{address}/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for _ in response.aiter_raw():
            first = first or time.perf_counter() - begun
    return first, time.perf_counter() - begun


async def ask(addresses: list[str], streams: int) -> list[list[tuple[float, float]]]:
    """Times by address."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits, verify=False) as client:
        asked = []
        for number in range(streams):  # arrivals spread over a second
            asked.append(asyncio.create_task(one(client, addresses[number % len(addresses)])))
            await asyncio.sleep(1 / streams)
        done = await asyncio.gather(*asked)
    return [list(done[place :: len(addresses)]) for place in range(len(addresses))]


def main() -> None:
    """Measure, and print one table."""
    streams, tokens = (int(text) for text in (*sys.argv[1:], "100", "100")[:2])
    upstream = Upstream(pace=PACE, thinks=0, answer=lambda prompt: " ".join(["word"] * tokens))
    code = "import sys; from experiments.cli import main; sys.argv = ['roi', *sys.argv[1:]]; main()"
    with serving(upstream.app()) as url, tempfile.TemporaryDirectory() as state:
        command = [
            sys.executable,
            "-c",
            code,
            "serve",
            "--budget",
            "a=1e9",
            "--upstream",
            f"{url}/v1",
            "--model",
            "stub",
        ]
        command += ["--agent", "fixed-1", "--tier", "long=0+4096", "--window", str(streams), "--queue", str(streams)]
        with subprocess.Popen(
            [*command, "--state", state, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            address = process.stdout.readline().split("base address ")[1].strip()
            while True:
                try:
                    httpx.get(f"{address}/models")
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            asyncio.run(ask([address, f"{url}/v1"], 4))
            through, direct = asyncio.run(ask([address, f"{url}/v1"], 2 * streams))
            process.terminate()
    print(f"{streams} streams by each path at once, {tokens} tokens each, {1 / PACE:g} tokens a second")
    print("| path | median first token, ms | 95 % | median whole, ms | 95 % |\n|---|---|---|---|---|")
    for name, times in (("direct", direct), ("roi serve", through)):
        row = [
            value
            for place in (0, 1)
            for value in (
                statistics.median(one[place] for one in times) * 1000,
                statistics.quantiles([one[place] for one in times], n=20)[-1] * 1000,
            )
        ]
        print(f"| {name} | {' | '.join(f'{value:,.1f}' for value in row)} |")


if __name__ == "__main__":
    main()
