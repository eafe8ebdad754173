"""One token budget over a whole Inspect run: half of what thinking about every sample costs, spent by an agent or first come, first served.

transformers serve agents/llm/models/tinylm --port 8000    # the packaged small model, from the repository's root
python examples/integrations/inspect_run.py http://127.0.0.1:8000/v1 agents/llm/models/tinylm
"""

import sys

import pyarrow.compute as pc
from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import pattern
from inspect_ai.solver import generate

from agents.integrations.inspect import EvalBudget
from roi_env.answering.base import ThinkingTier
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import TINYLM

endpoint, model = sys.argv[1:3]
recorded = OutcomeTable.read(TINYLM)
table = OutcomeTable.from_arrow(recorded.rows.filter(pc.field("tier") != "short"))  # the endpoint knows two tiers
tiers = [ThinkingTier("answer", 0, 24), ThinkingTier("long", 160, 24)]
ways = {tier.name: {"extra_body": {"chat_template_kwargs": {"enable_thinking": tier.thinking > 0}}} for tier in tiers}
asked = {row["question_id"]: row for row in recorded.split("test").rows.to_pylist()}
rows = sorted(asked.values(), key=lambda row: row["question_id"].rpartition("-")[2])[:100]
samples = [Sample(r["question"], None, r["answer"], r["question_id"], {"dataset": r["dataset"]}) for r in rows]
scorer = pattern(r"<answer>\s*(.*?)\s*</answer>")
client = {"model_base_url": endpoint, "model_args": {"api_key": "-", "max_retries": 0}, "display": "none"}

limit = 10**9  # first without a limit, to see what that costs
for agent in ("fixed-2", "fixed-2", "lp-lookahead", "online-lp"):
    task = Task(MemoryDataset(samples), solver=generate(), scorer=scorer, name="tinylm")
    budget = EvalBudget(task, limit, tiers=tiers, settings=ways, agent=agent, table=table)
    (log,) = evaluate(task, model=f"openai-api/local/{model}", **client)
    charged, score = budget.audit()["charged"], log.results.scores[0].metrics["accuracy"].value
    print(f"{agent:12s} accuracy {score:.2f}, {charged} of {limit} tokens, {budget.audit()['by_status']}", flush=True)
    limit = charged // 2 if limit == 10**9 else limit
