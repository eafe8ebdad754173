"""The local solver on a real model beside plain `generate` and vLLM: generated tokens by the clock, and per CPU second (of all threads
and processes together).

* one tier, as `generate` knows no others: batched by the solver; `generate` question by question, and in one padded batch;
* the same texts, 64 in flight, at an endpoint on these cores (``--endpoint``), whose processes' CPU seconds are counted (``--pid``);
* five tiers of one reasoning: tokens that are kept, beside what writing each tier by itself would take.

All at one dtype, temperature and number of threads; prompts are counted as time, not as tokens. The ways take turns, as what
else the machine does slows all of them.

    vllm serve FOLDER --served-model-name m --dtype bfloat16 --max-model-len 1024 --max-num-seqs 64 --generation-config vllm --port 8000
    PYTHONPATH=. python benchmarks/bench_local.py FOLDER --threads 2 --endpoint http://127.0.0.1:8000/v1 --served m --pid "$(pgrep -o vllm)"
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable

import psutil
import torch

from roi_env.answering.base import Ask, Question, Reply, Request, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.local import TransformersSolver

ONE_BY_ONE = 4
"""Questions that `generate` answers singly."""


def questions(count: int) -> list[Question]:
    """Word problems of some length, all different."""
    return [
        Question(
            "bench",
            str(i),
            f"A farm has {i + 3} cows and {2 * i + 5} hens. Each cow gives {i + 7} litres of milk a day, each hen lays 5 eggs "
            f"a week. Milk is sold for ${i % 3 + 1} a litre and eggs for {20 + i} cents each. What does the farm earn in a week?",
            "",
        )
        for i in range(count)
    ]


def measured(work: Callable[[], int], processes: list[psutil.Process]) -> tuple[int, float, float]:
    """Tokens, seconds by the clock, and CPU seconds of the processes."""

    def spent() -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in processes))

    clock, cpu = time.perf_counter(), spent()
    return work(), time.perf_counter() - clock, spent() - cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--cap", type=int, default=192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--endpoint", help="an endpoint that serves the model on these cores")
    parser.add_argument("--served", default="m", help="its name there")
    parser.add_argument("--pid", type=int, help="the endpoint's process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    solver = TransformersSolver(chosen.model, dtype=chosen.dtype)
    asked = questions(chosen.questions)
    tier = solver.dialect.tier("one", chosen.cap, 32)
    requests = [Request(question, tier, sample) for question in asked for sample in range(chosen.samples)]
    caps = [chosen.cap * share // 8 for share in (3, 4, 6, 8)]
    ladder = [solver.dialect.tier(str(cap), cap, 32) for cap in (0, *caps)]

    def batched() -> int:
        return sum(made.tokens for made in solver.generate(requests))

    def generate(prompts: list[list[int]]) -> int:
        width = max(map(len, prompts))
        ids, mask = torch.zeros((2, len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        out = solver.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=chosen.cap,
            do_sample=True,
            temperature=solver.temperature,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=solver._stops,
            pad_token_id=solver._stops[0],
        )[:, width:]
        ends = torch.isin(out, torch.tensor(solver._stops)).int()
        return int(torch.where(ends.any(1), ends.argmax(1) + 1, out.shape[1]).sum())

    async def served() -> list[Reply]:
        client = HTTPSolver(
            chosen.endpoint, chosen.served, temperature=solver.temperature, concurrency=64, deadline=3600.0
        )
        whole, asked = ThinkingTier("one", 0, chosen.cap), solver.dialect.asked
        try:
            texts = [Question("bench", r.question.question_id, asked(r.question.text), "") for r in requests]
            return list(await asyncio.gather(*(client.answer(Ask(q, whole, chosen.cap)) for q in texts)))
        finally:
            await client.close()

    def away() -> int:
        replies = asyncio.run(served())
        assert all(reply.error is None for reply in replies), next(r.error for r in replies if r.error)
        return sum(reply.tokens for reply in replies)

    prompts = [solver.prompt(request.question.text) for request in requests]
    ways: dict[str, Callable[[], int]] = {
        "the solver, one tier": batched,
        "generate, one batch": lambda: generate(prompts),
        "generate, one by one": lambda: sum(generate([prompt]) for prompt in prompts[:ONE_BY_ONE]),
    }
    if chosen.endpoint:
        ways["the endpoint, 64 in flight"] = away
    processes = [psutil.Process()]
    if chosen.pid:
        server = psutil.Process(chosen.pid)
        processes += [server, *server.children(recursive=True)]
    solver.generate(requests[:2])
    found = {name: measured(work, processes) for name, work in ways.items()}
    base = found["generate, one by one"]
    print(
        f"{chosen.model}, {solver.model.dtype}, {chosen.threads} threads, {len(requests)} texts of at most {chosen.cap} tokens, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    for name, (tokens, clock, cpu) in found.items():
        by_clock, by_cpu = tokens / clock * base[1] / base[0], tokens / cpu * base[2] / base[0]
        print(
            f"{name}: {tokens / clock:.1f} tokens a second ({by_clock:.1f}x one by one), {tokens / cpu:.1f} per CPU second "
            f"({by_cpu:.1f}x)"
        )
    begun = time.process_time()
    made = solver.generate([Request(r.question, each, r.sample) for r in requests for each in ladder])
    seconds = time.process_time() - begun
    kept = sum(one.tokens for one in made)
    print(f"the solver, five tiers of one reasoning: {kept / seconds:.1f} tokens of the table per CPU second")


if __name__ == "__main__":
    main()
