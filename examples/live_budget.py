"""A hard budget for real questions at an OpenAI-compatible endpoint.

    python examples/live_budget.py http://127.0.0.1:8000/v1 MODEL --budget 2000 --backend vllm

No endpoint at hand? The packaged small model, from the repository's root in another terminal:

    transformers serve agents/llm/models/tinylm --port 8000
    python examples/live_budget.py http://127.0.0.1:8000/v1 agents/llm/models/tinylm --budget 2000 --backend transformers

From the command line the same is `roi answer QUESTIONS --budget 2000 --endpoint URL`.
"""

from __future__ import annotations

import argparse

from agents.live.answer import BudgetController
from roi_env.answering.base import Question, ThinkingTier
from roi_env.answering.grading import number
from roi_env.answering.http import HTTPSolver

# dataset, id, text, answer: what is asked, and what is right where that is known
QUESTIONS = [Question("sums", f"sum-{n}", f"What is {n} + {2 * n}?", str(3 * n)) for n in range(2, 32)]
# Most tokens of thought, then of the answer. Only some endpoints obey the first; the sum is always a cap.
TIERS = [ThinkingTier("answer", 0, 24), ThinkingTier("think", 160, 24)]


def main() -> None:
    """Answer the questions and print where the tokens went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "endpoint", help="base address, ends in /v1; a key comes from the environment, see `roi answer`"
    )
    parser.add_argument("model", help="as the endpoint calls it")
    parser.add_argument("--budget", type=int, default=2000, help="tokens for all questions together")
    parser.add_argument("--backend", default="generic", help="kind of endpoint, see `roi answer --help`")
    parser.add_argument("--agent", default="online-lp", help="who chooses the tiers")
    arguments = parser.parse_args()
    solver = HTTPSolver(arguments.endpoint, arguments.model, arguments.backend)
    controller = BudgetController(arguments.agent, solver, arguments.budget, tiers=TIERS, check=number)
    result = controller.run(QUESTIONS)
    for row in result.rows:
        print(
            f"{row.question_id:8s} {row.tier or '-':8s} {row.status:12s} {row.charged:5d} tokens, {row.remaining:5d} left"
        )
    audit = result.audit()
    print(f"{audit['right']} right, {audit['charged']} of {audit['budget']} tokens, kept within: {audit['within']}")


if __name__ == "__main__":
    main()
