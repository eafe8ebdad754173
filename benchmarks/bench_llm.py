"""Language models at work, each claim against the plain way in the same run, in CPU seconds of one thread.

* tier decisions: packed prompts (agents.llm.decisions.tag_logits) against one forward pass a prompt;
* generation: the local solver's batches with KV cache against one `generate` a question;
* training: where an iteration of GRPO with a language model spends its time.

    PYTHONPATH=. python benchmarks/bench_llm.py
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from agents.llm.decisions.policy import load_model, load_tokenizer
from agents.llm.decisions.tag_logits import PromptEncoder, action_tags, joined, tag_logits
from agents.llm.prompts import state_line
from agents.llm.small_model.tokenizer import ASSISTANT, END, USER
from roi_env.answering.base import Question, Request, ThinkingTier
from roi_env.answering.local import TransformersSolver
from roi_env.exams.config import exam_spec
from roi_env.sources.packaged import tinylm_table

MODEL = "agents/llm/models/tinylm"
DECISIONS, NAIVE = 2048, 256
GENERATIONS, ONE_BY_ONE = 256, 24
TIER = ThinkingTier("long", 160, 24)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Of one thread."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def questions(count: int) -> list[str]:
    """Different ones, of every kind."""
    texts = list(dict.fromkeys(tinylm_table().split("test").rows["question"].to_pylist()))
    return [texts[i] for i in np.random.default_rng(0).choice(len(texts), count, replace=False)]


def decisions() -> None:
    """As in a rollout: 64 exams' questions, each in states that its budget leads to."""
    model, tokenizer = load_model(MODEL), load_tokenizer(MODEL)
    tags, encoder, texts = action_tags(tokenizer, 4), PromptEncoder(tokenizer), questions(64)
    rng = np.random.default_rng(0)
    which, remaining, tasks_left = (rng.integers(low, high, DECISIONS) for low, high in ((0, 64), (1, 150), (1, 9)))

    def packed() -> torch.Tensor:
        asked, states = encoder.questions(texts), encoder.states(remaining, tasks_left)
        prompts = joined(asked[which], states, (asked.shape[1], states.shape[1]))
        return tag_logits(model, prompts, asked.shape[1], tags)

    def naive() -> torch.Tensor:
        rows = []
        for q, left, tasks in zip(which[:NAIVE], remaining, tasks_left, strict=False):
            text = USER + texts[q] + state_line(int(left), int(tasks)) + END + ASSISTANT
            rows.append(model(tokenizer(text, return_tensors="pt").input_ids, logits_to_keep=1).logits[0, -1, tags])
        return torch.stack(rows)

    with torch.inference_mode():
        difference = float((packed()[:NAIVE] - naive()).abs().max())
        fast, slow = DECISIONS / cpu_seconds(packed), NAIVE / cpu_seconds(naive)
    print(
        f"tier decisions per CPU second: {fast:,.0f} packed, {slow:,.0f} one by one: {fast / slow:.1f}x "
        f"(largest difference of a logit {difference:.0e})"
    )


def generation() -> None:
    """Whole answers at the dearest tier, temperature 0.7."""
    solver = TransformersSolver(MODEL)
    texts = questions(GENERATIONS)
    requests = [Request(Question("bench", str(i), text, ""), TIER, 0) for i, text in enumerate(texts)]

    def batched() -> int:
        return sum(generation.tokens for generation in solver.generate(requests))

    def one_by_one(texts: list[str]) -> int:
        made = 0
        for text in texts:
            ids = torch.tensor([solver.prompt(text)])
            out = solver.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TIER.most_tokens,
                do_sample=True,
                temperature=0.7,
            )
            made += out.shape[1] - ids.shape[1]
        return made

    fast, slow = [0.0, 0.0], [0.0, 0.0]  # tokens, CPU seconds
    with torch.inference_mode():
        solver.generate(requests[:8])
        for start in range(0, ONE_BY_ONE, 8):  # in turns: what else the machine does slows both
            for total, work in ((fast, batched), (slow, partial(one_by_one, texts[start : start + 8]))):
                begun = time.process_time()
                total[0] += work()
                total[1] += time.process_time() - begun
    rates = fast[0] / fast[1], slow[0] / slow[1]
    print(
        f"generated tokens per CPU second: {rates[0]:,.0f} batched, {rates[1]:,.0f} one by one: {rates[0] / rates[1]:.1f}x"
    )


def training() -> None:
    """GRPO's iterations, all weights learning: rollout, advantages and batches, update; the share of forward passes."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    from agents.rllib.named import make_config
    from agents.rllib.training import LocalRun

    spec = exam_spec("tinylm", num_tasks=8, group_by="kind", budget=0.3, split="train")
    for label, changes in {"": {}, ", LoRA 8": {"lora": 8}, ", prompts not bucketed": {"bits": 0}}.items():
        run = LocalRun(make_config("llm-grpo", spec, seed=0, exam_seed=0, params={"model": MODEL, **changes}))
        forward, passed = 0.0, 0
        original = run.runner.module.network.heads  # the learner's too

        def timed(prompts: Any, width: int, original: Any = original) -> Any:
            nonlocal forward, passed
            begun = time.process_time()
            out = original(prompts, width)
            forward += time.process_time() - begun
            passed += int((prompts >= 0).sum())
            return out

        run.runner.module.network.heads = timed
        run.train()  # the first one warms up
        forward, passed, spent, steps = 0.0, 0, {"rollout": 0.0, "advantages": 0.0, "update": 0.0}, 0
        for _ in range(2):
            begun = time.process_time()
            rollout = run.sample()
            spent["rollout"] += time.process_time() - begun
            seconds = cpu_seconds(partial(run.config.batches, rollout))
            spent["advantages"] += seconds
            steps += rollout.steps
            both = cpu_seconds(partial(run.learn, rollout))
            spent["update"] += both - seconds
        total = sum(spent.values())
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in spent.items())
        print(
            f"GRPO{label}: {steps / total:,.0f} decisions per CPU second in training; {shares}; forward passes "
            f"{forward / total:.0%} of it, {passed / forward:,.0f} prompt tokens answered per CPU second of them"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    decisions()
    generation()
    training()
