"""A LangChain agent with a tool under one hard token budget.

python examples/integrations/langchain_agent.py http://127.0.0.1:8000/v1 MODEL --budget 200
"""

import argparse
import json

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from roi_env.integrations.langchain import BudgetMiddleware


@tool
def ask(question: str) -> str:
    """Compute a product such as 6 * 7."""
    left, right = question.split("*")
    return str(int(left) * int(right))


parser = argparse.ArgumentParser()
parser.add_argument("endpoint")
parser.add_argument("model")
parser.add_argument("--budget", type=int, default=200)
arguments = parser.parse_args()

# Retries inside the client are told to nobody: they are made by middleware before the budget's.
model = ChatOpenAI(model=arguments.model, base_url=arguments.endpoint, api_key="unused", max_retries=0)
budget = BudgetMiddleware(arguments.budget, most_per_call=64)
agent = create_agent(model, tools=[ask], middleware=[budget])
for number in range(6):  # one budget over all runs of the agent
    messages = agent.invoke({"messages": [("user", f"what is {number} times seven?")]})["messages"]
    print(f"{number}: {messages[-1].text!r} after {len(messages)} messages, {budget.remaining} tokens left")
print(json.dumps(budget.audit()))
