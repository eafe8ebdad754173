"""Costs in micro-dollars: exact, rounded up, never more than what was reserved for them."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roi_env.answering.base import Ask, Message, Question, Reply, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.prices import TOKENS, Price, Rates

DOLLARS = st.integers(0, 10**9).map(lambda micro: Decimal(micro) / 10**6) | st.sampled_from(
    [Decimal("0.1"), Decimal("0.000001"), Decimal("999999.999999"), Decimal(0)]
)
COUNTS = st.integers(0, 2**31 - 1)


@given(DOLLARS, DOLLARS, COUNTS, COUNTS)
def test_costs_are_exact_and_rounded_up(prompt: Decimal, completion: Decimal, read: int, generated: int) -> None:
    rates = Rates({"t": Price(prompt, completion)})
    assert rates.cost("t", generated, read) == math.ceil(Fraction(completion) * generated + Fraction(prompt) * read)


@given(DOLLARS, DOLLARS, COUNTS, st.integers(0, 2**40))
def test_what_an_amount_affords_is_the_most_that_fits(
    prompt: Decimal, completion: Decimal, read: int, amount: int
) -> None:
    rates = Rates({"t": Price(prompt, completion)})
    tokens = rates.affords("t", amount, read)
    if tokens is None:
        assert completion == 0
        assert rates.cost("t", 2**31, read) <= amount
    elif tokens:
        assert rates.cost("t", tokens, read) <= amount < rates.cost("t", tokens + 1, read)
    else:
        assert rates.cost("t", 1, read) > amount


@pytest.mark.parametrize("text", ["-1", "1000000", "0.0000001", "NaN", "Infinity"])
def test_what_is_no_price_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="prompt: must be US dollars per million tokens"):
        Price(Decimal(text), Decimal(1))


def test_an_endpoint_is_taken_at_its_word_and_what_it_does_not_say_costs_the_most() -> None:
    rates = Rates({"t": Price(Decimal(2), Decimal(10))})

    def cost(tokens: int, **told: object) -> int:
        return rates.charge("t", Reply("", None, tokens, None, "stop", "server", **told), 100)  # type: ignore[arg-type]

    assert cost(7, prompt_tokens=5) == 80
    assert cost(7, prompt_tokens=500) == 1070, "more than its bound: it is charged"
    assert cost(7) == 270, "the prompt was not told"
    assert cost(7, prompt_tokens=5, usd=0.00012301) == 124, "it says that it cost more"
    assert cost(7, prompt_tokens=5, usd=0.00001) == 80
    assert cost(0, error="HTTP 400") == 0
    assert cost(0, error="blocked", prompt_tokens=5) == 10, "the prompt was read"
    assert cost(9, error="no answer came", lost=True) == 290
    assert cost(0, attempts=0) == 0, "nothing was sent"
    assert TOKENS.charge("t", Reply("", None, 7, None, "stop", "server", prompt_tokens=5), 100) == 7


@given(st.lists(st.text(), min_size=1, max_size=4), st.sampled_from(["vllm", "openai", "anthropic", "gemini"]))
def test_a_prompt_is_bounded_by_its_bytes(texts: list[str], backend: str) -> None:
    solver = HTTPSolver("http://127.0.0.1:9/v1", "m", backend, system="be brief")
    messages = tuple(Message("user", text.encode("utf-8", "replace").decode()) for text in texts)
    ask = Ask(Question("d", "q", "?", ""), ThinkingTier("t", 0, 10), 10, messages=messages)
    # A token is at least a byte; templates write about five tokens around a message.
    assert solver.most_prompt(ask) >= sum(len(one.text.encode()) + 5 for one in messages) + len("be brief") + 200


def test_an_image_counts_as_one_whatever_its_bytes() -> None:
    solver = HTTPSolver("http://127.0.0.1:9/v1", "m", "vllm")

    def most(url: str) -> int:
        parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
        message = Message("user", "what?", whole={"role": "user", "content": parts})
        return solver.most_prompt(Ask(Question("d", "q", "?", ""), ThinkingTier("t", 0, 10), 10, messages=(message,)))

    assert most("https://host/picture.png") == most("data:image/png;base64," + "A" * 10**6)
    assert 50_000 < most("x") < 51_000
