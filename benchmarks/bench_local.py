"""The local solver on a real model beside plain `generate`, in generated tokens per CPU second (of all threads together).

* one tier, as `generate` knows no others: batched by the solver; `generate` question by question, and in one padded batch;
* five tiers of one reasoning: tokens that are kept, beside what writing each tier by itself would take.

All at one dtype, temperature and number of threads; prompts are counted as time, not as tokens. The ways take turns, as what
else the machine does slows all of them.

    PYTHONPATH=. python benchmarks/bench_local.py FOLDER [--questions 16] [--samples 2] [--cap 192] [--threads 1] [--dtype auto]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from roi_env.answering.base import Question, Request
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


def measured(work: Callable[[], int]) -> tuple[int, float]:
    """Tokens and CPU seconds."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--cap", type=int, default=192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
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

    prompts = [solver.prompt(request.question.text) for request in requests]
    ways: dict[str, Callable[[], int]] = {
        "the solver, one tier": batched,
        "generate, one batch": lambda: generate(prompts),
        "generate, one by one": lambda: sum(generate([prompt]) for prompt in prompts[:ONE_BY_ONE]),
    }
    solver.generate(requests[:2])
    found = {name: measured(work) for name, work in ways.items()}
    base = found["generate, one by one"]
    print(
        f"{chosen.model}, {solver.model.dtype}, {chosen.threads} threads, {len(requests)} texts of at most {chosen.cap} tokens"
    )
    for name, (tokens, seconds) in found.items():
        rate = tokens / seconds
        print(f"{name}: {rate:.1f} tokens per CPU second ({rate * base[1] / base[0]:.1f}x one by one)")
    begun = time.process_time()
    made = solver.generate([Request(r.question, each, r.sample) for r in requests for each in ladder])
    seconds = time.process_time() - begun
    kept = sum(one.tokens for one in made)
    print(f"the solver, five tiers of one reasoning: {kept / seconds:.1f} tokens of the table per CPU second")


if __name__ == "__main__":
    main()
