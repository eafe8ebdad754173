"""Live exams: what the machinery costs beside the model.

* the controller's own time per question, with and without its ledger on the disk (aim: under 2 ms);
* the proxy against direct calls of the same local upstream;
* 1,000 requests at once against a local upstream;
* the local solver against `generate` one by one, and, with ``--vllm``, against vLLM on the same cores (it is started here,
  from the environment that ``make vllm`` sets up; its processes' CPU seconds are counted).

``python benchmarks/bench_live.py [--vllm] [--only generation]``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from agents.live.answer import BudgetController
from experiments.serving.app import application
from experiments.serving.budget import make_budget
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.questions import read_questions
from roi_env.sources.packaged import TINYLM
from tests.servers import MODEL, vllm_serve
from tests.upstream import Upstream, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]


class Instant:
    """Answers at once: what is left is the controller."""

    name = "instant"

    async def answer(self, ask: Ask) -> Reply:
        """Eight tokens."""
        return Reply("42", None, min(ask.cap, 8), None, "stop", "server")

    async def close(self) -> None:
        """Nothing to close."""
        return None


def controller() -> None:
    """The controller beside an instant solver."""
    questions = [Question("d", str(n), "x" * (20 + n % 90), "") for n in range(500)]
    for agent in ("online-lp", "lp-lookahead", "resolve"):
        for kept in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "ledger.jsonl" if kept else None
                BudgetController(agent, Instant(), 8000, tiers=TIERS).run(questions[:20])  # compile
                begun, cpu = time.perf_counter(), time.process_time()
                result = BudgetController(agent, Instant(), 8000, tiers=TIERS, ledger=path).run(questions)
                each = 1000 * (time.perf_counter() - begun) / len(result.rows)
                cpu = 1000 * (time.process_time() - cpu) / len(result.rows)
            where = "on disk (an fsync)" if kept else "in memory"
            print(f"controller, {agent}, ledger {where}: {each:.2f} ms a question, {cpu:.2f} ms of CPU")


def proxy(requests: int = 200) -> None:
    """The proxy beside direct calls, turn by turn."""
    import httpx

    with serving(Upstream().app()) as url, tempfile.TemporaryDirectory() as folder:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm")
        budget = make_budget("a", 10**8, solver, TIERS, "online-lp", 100, 8, Path(folder))
        with serving(application([budget])) as address:
            body = {"messages": [{"role": "user", "content": "?"}], "max_completion_tokens": 50}
            times: dict[str, list[float]] = {"direct": [], "proxy": []}
            with httpx.Client(verify=False) as client:
                for number in range(requests + 20):
                    for name, target in (("direct", f"{url}/v1"), ("proxy", f"{address}/a/v1")):
                        begun = time.perf_counter()
                        client.post(f"{target}/chat/completions", json=body).raise_for_status()
                        if number >= 20:
                            times[name].append(1000 * (time.perf_counter() - begun))
    direct, through = (statistics.median(times[name]) for name in ("direct", "proxy"))
    print(f"proxy: median {through:.1f} ms, direct {direct:.1f} ms: {through - direct:.1f} ms more")


def crowd(requests: int = 1000) -> None:
    """All requests at once."""
    upstream = Upstream(latency=0.05)

    async def run(url: str) -> list[Reply]:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm", concurrency=requests)
        asks = [Ask(Question("d", str(n), "?", ""), TIERS[1], 50) for n in range(requests)]
        try:
            return list(await asyncio.gather(*(solver.answer(ask) for ask in asks)))
        finally:
            await solver.close()

    with serving(upstream.app()) as url:
        begun = time.perf_counter()
        replies = asyncio.run(run(url))
        took = time.perf_counter() - begun
    failed = sum(reply.error is not None for reply in replies)
    print(
        f"{requests} requests at once: {took:.1f} s, {requests / took:.0f} a second, {failed} failed, "
        f"{upstream.most_in_flight} in flight at most"
    )


def generation(vllm: bool, questions: int = 256, rounds: int = 2) -> None:
    """Tokens of the ways to generate, by the clock and per CPU second, turn by turn."""
    import torch

    from roi_env.answering.base import Request
    from roi_env.answering.local import TransformersSolver

    torch.set_num_threads(1)
    asked = read_questions(f"table:{TINYLM}?split=test&sample={questions}&seed=1")
    tier = ThinkingTier("long", 160, 24)
    solver = TransformersSolver(MODEL, batch=questions)
    here = psutil.Process()

    def batched() -> int:
        return sum(one.tokens for one in solver.generate([Request(question, tier, 0) for question in asked]))

    def one_by_one() -> int:
        tokens = 0
        for question in asked[:16]:
            ids = torch.tensor([solver.prompt(question.text)])
            with torch.inference_mode():
                out = solver.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tier.most_tokens,
                    do_sample=True,
                    temperature=0.7,
                )
            tokens += out.shape[1] - ids.shape[1]
        return tokens

    def served(url: str, flight: int) -> int:
        async def run() -> list[Reply]:
            client = HTTPSolver(url, "tiny", "vllm", temperature=0.7, concurrency=flight)
            few = asked[: 2 * flight]
            try:
                return list(await asyncio.gather(*(client.answer(Ask(q, tier, tier.most_tokens)) for q in few)))
            finally:
                await client.close()

        replies = asyncio.run(run())
        assert all(reply.error is None for reply in replies)
        return sum(reply.tokens for reply in replies)

    with contextlib.ExitStack() as stack:
        ways: dict[str, Callable[[], int]] = {
            f"local solver, batch of {questions}": batched,
            "generate one by one": one_by_one,
        }
        processes = [here]
        if vllm:
            url = stack.enter_context(vllm_serve())
            processes += here.children(recursive=True)
            for flight in (16, 64, questions):
                ways[f"vLLM, {flight} in flight"] = functools.partial(served, url, flight)
        found: dict[str, list[tuple[int, float, float]]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, work in ways.items():
                begun, cpu = time.perf_counter(), _cpu_seconds(processes)
                tokens = work()
                if number:  # the first round warms up
                    found[way].append((tokens, time.perf_counter() - begun, _cpu_seconds(processes) - cpu))
    for way, turns in found.items():
        tokens, seconds, cpu = (sum(column) for column in zip(*turns, strict=True))
        print(f"{way}: {tokens / seconds:,.0f} tokens/s, {tokens / cpu:,.0f} tokens per CPU second")


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    """Of the processes, this one and a server's."""
    times = [process.cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", action="store_true", help="measure vLLM too")
    parser.add_argument("--only", choices=("controller", "proxy", "crowd", "generation"), help="one part alone")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "controller": controller,
        "proxy": proxy,
        "crowd": crowd,
        "generation": functools.partial(generation, arguments.vllm),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            part()


if __name__ == "__main__":
    main()
