"""Live exams: what the machinery costs beside the model.

* the controller's own time per question, with and without its ledger on the disk (aim: under 2 ms);
* the proxy against direct calls of the same local upstream;
* 1,000 requests at once against a local upstream;
* the local solver against `generate` one by one, and, with ``--vllm URL``, against a vLLM server on the same cores.

``python benchmarks/bench_live.py [--vllm http://127.0.0.1:8000/v1]``
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agents.controller import BudgetController
from experiments.serve import application, make_budget
from roi_env.solvers.base import Ask, Question, Reply, ThinkingTier
from roi_env.solvers.http import HTTPSolver
from tests.servers import MODEL
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
        with serving(application([budget], solver, None)) as address:
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


def generation(vllm: str | None, questions: int = 64) -> None:
    """Tokens a second of the ways to generate."""
    import torch

    from roi_env.solvers.base import Request
    from roi_env.solvers.local import TransformersSolver
    from roi_env.solvers.questions import read_questions

    torch.set_num_threads(1)
    asked = read_questions(f"rg:chain_sum?size={questions}&min_terms=2&max_terms=10&min_digits=1&max_digits=2")
    tier = ThinkingTier("long", 160, 24)
    solver = TransformersSolver(MODEL)
    solver.generate([Request(asked[0], tier, 0)])
    begun = time.perf_counter()
    made = solver.generate([Request(question, tier, 0) for question in asked])
    batched = sum(one.tokens for one in made) / (time.perf_counter() - begun)
    few = asked[:16]
    begun, tokens = time.perf_counter(), 0
    for question in few:
        ids = torch.tensor([solver.prompt(question.text)])
        with torch.inference_mode():
            out = solver.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tier.most_tokens)
        tokens += out.shape[1] - ids.shape[1]
    single = tokens / (time.perf_counter() - begun)
    print(f"local solver, {questions} in a batch: {batched:.0f} tokens/s; generate one by one: {single:.0f} tokens/s")
    for flight in (1, 16, questions) if vllm else ():

        async def run(flight: int = flight) -> list[Reply]:
            client = HTTPSolver(str(vllm), "tiny", "vllm", concurrency=flight)
            try:
                return list(await asyncio.gather(*(client.answer(Ask(q, tier, tier.most_tokens)) for q in asked)))
            finally:
                await client.close()

        asyncio.run(run())
        begun = time.perf_counter()
        replies = asyncio.run(run())
        rate = sum(reply.tokens for reply in replies) / (time.perf_counter() - begun)
        print(f"vLLM, {flight} in flight: {rate:.0f} tokens/s")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", help="base address of a vLLM server of the small model, served as 'tiny'")
    arguments = parser.parse_args()
    controller()
    proxy()
    crowd()
    generation(arguments.vllm)


if __name__ == "__main__":
    main()
