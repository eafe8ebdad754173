"""What clients ask, and what is seen of it at the endpoint and at the proxy."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ASKED: list[Any] = [{"role": "user", "content": "six times seven?"}]
SCHEMA = {"type": "object", "properties": {"question": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "ask", "parameters": SCHEMA}}]
ANSWER = "the answer is 42"
COST = 24
"""Of an answer: twenty tokens of thought and four words."""


class Proxy:
    """A running proxy."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, budget: str) -> None:
        """One question, whose answer nobody reads."""
        body = json.dumps({"messages": ASKED}).encode()
        address = f"{self.address}/{budget}/v1/chat/completions"
        request = urllib.request.Request(address, body, {"content-type": "application/json"})
        urllib.request.urlopen(request).read()

    def charged(self, budget: str = "a") -> int:
        """Tokens charged to a budget so far."""
        with urllib.request.urlopen(f"{self.address}/budgets") as response:
            budgets = json.load(response)["budgets"]
        return next(int(one["charged"]) for one in budgets if one["budget"] == budget)

    def refused(self) -> int:
        """Requests that were refused so far because their budget was spent."""
        with urllib.request.urlopen(f"{self.address}/metrics") as response:
            lines = re.findall(r"roi_refusals_total{.*budget_exhausted.*} (\d+)", response.read().decode())
        return sum(map(int, lines))

    @contextmanager
    def refuses(self, most: int = 1) -> Iterator[None]:
        """Within this a client is refused, and asks at most so many times."""
        before = self.refused()
        yield
        assert 1 <= self.refused() - before <= most

    @contextmanager
    def charges(self, tokens: int) -> Iterator[None]:
        """Within this so much is charged."""
        before = self.charged()
        yield
        assert self.charged() - before == tokens


def seen(upstream: str) -> dict[str, Any]:
    """What the endpoint was asked last."""
    with urllib.request.urlopen(f"{upstream}/seen") as response:
        last: dict[str, Any] = json.load(response)[-1]
    return last
