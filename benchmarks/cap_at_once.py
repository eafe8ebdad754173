"""What a cap of dollars is worth when many ask at once: `roi serve` beside the LiteLLM proxy, on one stub endpoint.

Every answer costs $.00525 (9 tokens of prompt at $50 per million, 24 generated ones at $200), the cap is $.10. Questions come all at
once, then ten more one by one. LiteLLM runs without a database, so its cap is that of a provider; it wants an environment of its own.

    python benchmarks/cap_at_once.py [--questions 64] [--litellm VENV/bin/litellm] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from measure_proxy import SERVE, free_port, running

from tests.upstream import Upstream, serving

CAP, PROMPT, COMPLETION = 0.1, 50, 200
"""Dollars; dollars per million tokens."""


async def ask(address: str, model: str, questions: int, at_once: bool) -> dict[str, Any]:
    """So many questions: how many had which status, and the dollars of those that were answered."""
    body = {"model": model, "max_tokens": 61, "messages": [{"role": "user", "content": "six times seven?"}]}
    key = {"authorization": f"Bearer {os.environ['LITELLM_MASTER_KEY']}"}
    async with httpx.AsyncClient(timeout=120, verify=False, limits=httpx.Limits(max_connections=None)) as client:
        asked = (client.post(f"{address}/chat/completions", json=body, headers=key) for _ in range(questions))
        answers = await asyncio.gather(*asked) if at_once else [await one for one in asked]
    paid = [answer.json()["usage"] for answer in answers if answer.status_code == 200]
    dollars = sum(PROMPT * one["prompt_tokens"] + COMPLETION * one["completion_tokens"] for one in paid) / 10**6
    return {"statuses": dict(Counter(answer.status_code for answer in answers)), "dollars": round(dollars, 6)}


def commands(url: str, folder: Path, questions: int, litellm: str | None) -> dict[str, tuple[list[str], str, str]]:
    """By proxy: how it is started, its address, and the model that clients name."""
    price = {"prompt": PROMPT, "completion": COMPLETION}
    tier = {"name": "t", "endpoint": url, "backend": "vllm", "model": "stub", "cap": 61, "thinking": 40, "price": price}
    (folder / "roi.json").write_text(json.dumps({"tiers": [tier], "budgets": {"a": f"{CAP}usd"}}))  # JSON is YAML
    port = free_port()
    options = [
        "--config",
        f"{folder}/roi.json",
        "--state",
        str(folder),
        "--port",
        str(port),
        "--window",
        str(questions),
    ]
    made = {"roi serve": ([sys.executable, "-c", SERVE, *options], f"http://127.0.0.1:{port}/a/v1", "auto")}
    if litellm:
        costs = {"input_cost_per_token": PROMPT / 10**6, "output_cost_per_token": COMPLETION / 10**6}
        told = {"model": "openai/stub", "api_base": url, "api_key": "none", **costs}
        caps = {"provider_budget_config": {"openai": {"budget_limit": CAP, "time_period": "1d"}}}
        models = [{"model_name": "stub", "litellm_params": told}]
        (folder / "litellm.json").write_text(json.dumps({"model_list": models, "router_settings": caps}))
        port = free_port()
        at = ["--config", f"{folder}/litellm.json", "--host", "127.0.0.1", "--port", str(port)]
        made["LiteLLM"] = ([litellm, *at], f"http://127.0.0.1:{port}/v1", "stub")
    return made


def main() -> None:
    """Ask each proxy, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--litellm", help="LiteLLM's program; left out: no such row")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    told = parser.parse_args()
    os.environ["LITELLM_MASTER_KEY"] = f"sk-{secrets.token_hex(24)}"
    rows: dict[str, Any] = {}
    with serving(Upstream(latency=0.2).app()) as url, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, (command, address, model) in commands(f"{url}/v1", folder, told.questions, told.litellm).items():
            stack.enter_context(running(command, address))
            rows[name] = {"at once": asyncio.run(ask(address, model, told.questions, at_once=True))}
            rows[name]["afterwards, one by one"] = asyncio.run(ask(address, model, 10, at_once=False))
            print(f"{name}: {rows[name]}")
    if told.out:
        told.out.write_text(json.dumps({"questions": told.questions, "cap": CAP, "proxies": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
