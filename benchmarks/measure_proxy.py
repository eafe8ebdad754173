"""What `roi serve` adds to streams, beside a direct connection and beside the LiteLLM proxy, on one stub endpoint.

Stub and clients share this process and its event loop, each proxy has one of its own. The paths are asked in turn, again
and again: direct, `roi serve`, LiteLLM. A figure is what a path adds to the direct connection's median.

    python benchmarks/measure_proxy.py [--streams 100] [--tokens 100] [--rounds 3] [--pace .05] [--over 1]
        [--litellm VENV/bin/litellm] [--out FILE]

LiteLLM lives in an environment of its own: pip install 'litellm[proxy]'.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

SERVE = "import sys; from experiments.cli import main; sys.argv = ['roi', 'serve', *sys.argv[1:]]; main()"
Times = list[tuple[float, float]]
"""(seconds to the first chunk, seconds to the end) of streams."""


class Stub(asyncio.Protocol):
    """An endpoint that writes the same chunks to everybody, as light as can be.

    :param chunks: the first one comes at once, each of the others ``pace`` seconds after the one before, the last one with it.
    """

    def __init__(self, chunks: Sequence[bytes], pace: float) -> None:
        self.chunks, self.pace, self.came = chunks, pace, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request that is whole."""
        self.came += data
        head, _, body = self.came.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if length is not None and len(body) >= int(length[1]):
            self.came = b""
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self._next(0, asyncio.get_running_loop().time())

    def _next(self, place: int, due: float) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(self.chunks[place]), self.chunks[place]))
            if place + 1 < len(self.chunks):
                asyncio.get_running_loop().call_at(due + self.pace, self._next, place + 1, due + self.pace)
            else:
                self.transport.write(b"0\r\n\r\n")


def chunks(tokens: int) -> list[bytes]:
    """A stream that counts its tokens, one in each chunk."""
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "stub"}

    def event(delta: dict[str, str], finish: str | None, number: int) -> bytes:
        usage = {"completion_tokens": number, "prompt_tokens": 9, "total_tokens": 9 + number}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: %b\n\n" % json.dumps({**head, "choices": [choice], "usage": usage}).encode()

    made = [event({"role": "assistant", "content": ""}, None, 0)]
    made += [event({"content": " word"}, None, number) for number in range(1, tokens + 1)]
    made[-1] += event({}, "stop", tokens) + b"data: [DONE]\n\n"
    return made


async def one(address: str) -> tuple[float, float]:
    """Times of a stream.

    :raises RuntimeError: where it did not end as it should.
    """
    parts = urlsplit(address)
    body = {"model": "stub", "messages": [{"role": "user", "content": "?"}], "stream": True, "max_tokens": 4096}
    text, begun, first, status, end = json.dumps(body).encode(), time.perf_counter(), 0.0, b"", b""
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(text)}\r\n\r\n".encode() + text)
    while b"\r\n0\r\n\r\n" not in end and (part := await reader.read(2**16)):
        if not first and b"data:" in part:
            first = time.perf_counter() - begun
        status = status or part.partition(b"\r\n")[0]
        end = (end + part)[-500:]
    writer.close()
    if b"[DONE]" not in end:
        code = re.search(rb'"code": *"(\w+)"', end)
        said = status.partition(b" ")[2].decode() or "no answer"
        raise RuntimeError(f"{said}, {code[1].decode()}" if code else f"{said}, broke off after {len(end)} bytes")
    return first, time.perf_counter() - begun


async def ask(address: str, streams: int, over: float = 1.0) -> tuple[Times, Counter[str]]:
    """Times of so many streams, which arrive over so many seconds, and how many failed, by what they said."""
    asked = []
    for _ in range(streams):
        asked.append(asyncio.create_task(one(address)))
        await asyncio.sleep(over / streams)
    ended = await asyncio.gather(*asked, return_exceptions=True)
    failed = (f"{type(end).__name__}: {end}" for end in ended if isinstance(end, BaseException))
    return [end for end in ended if not isinstance(end, BaseException)], Counter(failed)


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


def cpu_seconds(process: int) -> float:
    """CPU time that a process has used, its threads included."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


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
    parser.add_argument("--pace", type=float, default=0.05, help="seconds a token")
    parser.add_argument("--over", type=float, default=1.0, help="seconds over which the streams of a round arrive")
    parser.add_argument("--litellm", help="LiteLLM's program; left out: no such row")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    asyncio.run(measure(parser.parse_args()))


async def measure(told: argparse.Namespace) -> None:
    """Measure, and print one table."""
    loop = asyncio.get_running_loop()
    made = chunks(told.tokens)
    stub = await loop.create_server(lambda: Stub(made, told.pace), "127.0.0.1", backlog=4096)
    url = f"http://127.0.0.1:{stub.sockets[0].getsockname()[1]}"
    with ExitStack() as stack:
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
        failed: dict[str, Counter[str]] = {name: Counter() for name in paths}
        worked = dict.fromkeys(paths, 0.0)
        for address in paths.values():
            await ask(address, 4)  # connections, caches
        for _ in range(told.rounds):
            for name, address in paths.items():
                begun = cpu_seconds(processes.get(name, os.getpid()))
                ended, lost = await ask(address, told.streams, told.over)
                worked[name] += cpu_seconds(processes.get(name, os.getpid())) - begun
                times[name] += ended
                failed[name] += lost
        memory = {name: round(peak_megabytes(process), 1) for name, process in processes.items()}
    rows: dict[str, Any] = {name: summary(times[name], times["direct"]) for name in paths}
    for name, row in rows.items():
        row["failed"], row["failures"] = failed[name].total(), dict(failed[name])
        row["cpu"] = round(1000 * worked[name] / (told.streams * told.rounds), 2)
    for name, megabytes in memory.items():
        rows[name]["peak_mb"] = megabytes
    print(
        f"{told.streams} streams at once by each path in turn, {told.rounds} rounds, {told.tokens} tokens each, {1 / told.pace:g} tokens a "
        f"second; load {os.getloadavg()[0]:.1f}"
    )
    print(
        "| path | first token, ms (95 %) | added | whole, ms (95 %) | added | CPU, ms a stream | peak MB | failed |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        first, whole = (f"{row[f'{part}_median']:,.1f} ({row[f'{part}_p95']:,.1f})" for part in ("first", "whole"))
        added = [f"{row[f'{part}_added']:+,.1f}" for part in ("first", "whole")]
        why = ", ".join(f"{count} x {what}" for what, count in row["failures"].items())
        print(
            f"| {name} | {first} | {added[0]} | {whole} | {added[1]} | {row['cpu']:.1f} | {row.get('peak_mb', '')} | {why or 0} |"
        )
    if told.out:
        settings = {
            "streams": told.streams,
            "tokens": told.tokens,
            "rounds": told.rounds,
            "tokens_a_second": 1 / told.pace,
            "arrive_over": told.over,
        }
        told.out.write_text(json.dumps(settings | {"load": os.getloadavg()[0], "paths": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
