"""Language models on a GPU, by the clock: beside the same machine's CPU, and at the size of Qwen2.5-1.5B.

* the bundled model: tier decisions, generation and iterations of GRPO on either device (`make test-cuda`: whether they agree);
* a model of Qwen2.5-1.5B's shape with random weights (nothing is downloaded: times and memory do not depend on their values)
  on questions of about 300 tokens: tier decisions, generation, iterations of GRPO with LoRA of rank 16 in bfloat16, peak memory.

    PYTHONPATH=. python benchmarks/bench_gpu.py
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_llm import MODEL, TIER, questions

from agents.llm.decisions import tag_logits as decisions
from agents.llm.decisions.policy import load_model, load_tokenizer, own_device
from agents.llm.decisions.tag_logits import PromptEncoder, action_tags, joined, tag_logits
from roi_env.answering.base import Question, Request
from roi_env.answering.local import TransformersSolver
from roi_env.exams.config import exam_spec
from roi_env.sources.packaged import tinylm_table

ITERATIONS = 2
LONG = 6
"""Questions in one, which makes about 300 tokens."""
CUDA = torch.cuda.is_available()


def seconds(work: Callable[[], Any]) -> float:
    """By the clock, of the second of two runs."""
    for _ in range(2):
        begun = time.perf_counter()
        work()
        if CUDA:
            torch.cuda.synchronize()
        spent = time.perf_counter() - begun
    return spent


def passes_of(tokens: int) -> Any:
    """Inside, a forward pass reads at most so many tokens."""
    return patch.object(decisions, "pass_tokens", lambda model: tokens)


def prompts(model: str, texts: list[str], count: int) -> tuple[Any, int]:
    """Encoded prompts of ``count`` decisions, and the width of their first part."""
    encoder, rng = PromptEncoder(load_tokenizer(model)), np.random.default_rng(0)
    which, remaining, left = (rng.integers(low, high, count) for low, high in ((0, len(texts)), (1, 1024), (1, 9)))
    asked, states = encoder.questions(texts), encoder.states(remaining, left)
    return joined(asked[which], states, (asked.shape[1], states.shape[1])), asked.shape[1]


def decide(model: str, dtype: str, texts: list[str], count: int, chunks: tuple[int, ...]) -> dict[str, Any]:
    """Tier decisions a second for several sizes of a forward pass."""
    causal, tags = load_model(model, dtype), action_tags(load_tokenizer(model), 4)
    encoded, width = prompts(model, texts, count)
    rates = {}
    with torch.inference_mode():
        for chunk in chunks:
            with passes_of(chunk):
                spent = seconds(lambda: tag_logits(causal, encoded, width, tags))
            rates[f"{chunk} tokens a pass"] = round(count / spent, 1)
    return {"decisions_per_second": rates, "mean_prompt_tokens": int((encoded >= 0).sum(1).mean())}


def write(model: str, texts: list[str], batch: int) -> dict[str, Any]:
    """Whole answers at the dearest tier: generated tokens a second."""
    solver = TransformersSolver(model, batch=batch, device=own_device())
    requests = [Request(Question("bench", str(i), text, ""), TIER, 0) for i, text in enumerate(texts)]
    made = 0

    def work() -> None:
        nonlocal made
        made = sum(generation.tokens for generation in solver.generate(requests))

    spent = seconds(work)
    return {"batch": batch, "tokens_per_second": round(made / spent, 1)}


def train(params: dict[str, Any], spec: Any) -> dict[str, Any]:
    """Iterations of GRPO after a first one: decisions a second, seconds of rollout and update, memory."""
    from agents.rllib.named import make_config
    from agents.rllib.training import LocalRun

    run = LocalRun(make_config("llm-grpo", spec, seed=0, exam_seed=0, params=params))
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    run.train()
    spent, steps = {"rollout": 0.0, "update": 0.0}, 0
    for _ in range(ITERATIONS):
        begun = time.perf_counter()
        rollout = run.sample()
        middle = time.perf_counter()
        steps += rollout.steps
        run.learn(rollout)
        spent["rollout"] += middle - begun
        spent["update"] += time.perf_counter() - middle
    return {
        "decisions_per_second": round(steps / sum(spent.values()), 1),
        "seconds_an_iteration": {name: round(value / ITERATIONS, 2) for name, value in spent.items()},
        "decisions_an_iteration": steps // ITERATIONS,
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if CUDA else None,
        "parameter_device": str(next(run.runner.module.parameters()).device),
    }


def small() -> dict[str, Any]:
    """The bundled model on this process's device."""
    spec = exam_spec("tinylm", num_tasks=8, group_by="kind", budget=0.3, split="train")
    texts = questions(512)
    sizes = (192, 1536) if CUDA else (192,)
    return {
        "decide": decide(MODEL, "float32", texts, 8192, (2048, 8192, 32768, 131072) if CUDA else (2048,)),
        "write": [write(MODEL, texts * repeat, 256 * repeat) for repeat in ((1, 8) if CUDA else (1,))],
        "train": {
            f"{size} exams": train({"model": MODEL, "exams": size, "minibatch": size // 4}, spec) for size in sizes
        },
    }


def large(folder: Path) -> dict[str, Any]:
    """A model of Qwen2.5-1.5B's shape."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    tokenizer = load_tokenizer("tinylm-mcft")
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = tinylm_table().rows
    column = rows.column_names.index("question")
    long = [" ".join([text] * LONG) for text in rows["question"].to_pylist()]
    table = folder / "long.parquet"
    pq.write_table(rows.set_column(column, "question", pa.array(long)), table)
    spec = exam_spec("recorded", table=table, num_tasks=3, group_by="kind", budget=0.3, split="train")
    texts = [" ".join([text] * LONG) for text in questions(64)]
    model = str(folder)
    settings = {"model": model, "lora": 16, "dtype": "bfloat16"}
    out: dict[str, Any] = {
        "decide": decide(model, "bfloat16", texts, 1024, (2048, 8192, 32768)),
        "write": write(model, texts * 4, 256),
        "train": {},
    }
    for chunk, recompute in ((8192, True), (8192, False), (2048, True)):
        label = f"{chunk} tokens a pass{', computed twice' if recompute else ''}"
        with passes_of(chunk):
            out["train"][label] = train({**settings, "recompute": recompute}, spec)
        print(label, out["train"][label], file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    return out


def part(name: str, cuda: bool) -> Any:
    """One part in a process of its own, with or without the GPU."""
    environment = os.environ | ({} if cuda else {"CUDA_VISIBLE_DEVICES": ""})
    command = [sys.executable, __file__, "--part", name]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Everything, as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("small", "large"), help="only this, in this process")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    if asked.part == "small":
        print(json.dumps(small()))
        return
    if not CUDA:
        print("no GPU here: nothing to measure (benchmarks/bench_llm.py needs none)")
        return
    if asked.part == "large":
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(large(Path(folder))))
        return
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cores": os.cpu_count()}
    for name, run in {
        "gpu_small": partial(part, "small", True),
        "gpu_large": partial(part, "large", True),
        "cpu_small": partial(part, "small", False),
    }.items():
        found[name] = run()
        print(name, json.dumps(found[name]), flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
