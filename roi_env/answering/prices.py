"""What a request costs in the unit of its budget: the tokens that it generates, or dollars by the price of its tier.

Dollars are integers of micro-dollars, rounded up. A price of one US dollar per million tokens is one micro-dollar a token.
Prompt tokens cost nothing where tokens are counted, and their price where dollars are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal

from roi_env.answering.base import Reply
from roi_env.sources.units import Unit

_PLACES, _DEAREST = Decimal("1e-6"), Decimal("1e6")
"""Prices have up to six places and are below a million dollars: sums of them are exact in 28 digits."""


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens.

    :raises ValueError: for what is no such price.
    """

    prompt: Decimal
    completion: Decimal

    def __post_init__(self) -> None:
        for name, value in (("prompt", self.prompt), ("completion", self.completion)):
            if not value.is_finite() or not 0 <= value < _DEAREST or value != value.quantize(_PLACES):
                raise ValueError(
                    f"{name}: must be US dollars per million tokens, at least 0, below a million and with at most six "
                    f"places, got {value}"
                )


@dataclass(frozen=True)
class Rates:
    """Costs of tiers in one unit.

    :param prices: by tier; none: costs are the tokens that are generated.
    """

    prices: Mapping[str, Price] = field(default_factory=dict)

    @property
    def unit(self) -> Unit:
        """What costs count."""
        return "micro-usd" if self.prices else "tokens"

    def cost(self, tier: str, generated: int, prompt: int) -> int:
        """Of an answer.

        :param generated: tokens of all its choices.
        :param prompt: tokens of what was asked.
        """
        if not self.prices:
            return generated
        price = self.prices[tier]
        micro = generated * price.completion + prompt * price.prompt
        return int(micro.to_integral_value(ROUND_CEILING))

    def price(self, tier: str) -> float:
        """Of one generated token."""
        return float(self.prices[tier].completion) if self.prices else 1.0

    def affords(self, tier: str, amount: int, prompt: int) -> int | None:
        """Most tokens that may be generated for an amount; None: any number, they are free.

        0 where the prompt alone costs more.
        """
        if not self.prices:
            return max(0, amount)
        price = self.prices[tier]
        left = amount - prompt * price.prompt
        if left < 0:
            return 0
        return None if price.completion == 0 else int(left // price.completion)

    def charge(self, tier: str, reply: Reply, prompt: int) -> int:
        """What a reply cost: by its usage, or more where the endpoint itself says so.

        :param prompt: most tokens of the prompt, where the reply does not tell them.
        """
        if not self.prices:
            return reply.tokens
        told = reply.prompt_tokens
        if told is None:
            asked = reply.attempts > 0 and (reply.error is None or reply.tokens > 0 or reply.lost)
            told = prompt if asked else 0
        said = 0 if reply.usd is None else int((Decimal(str(reply.usd)) * 10**6).to_integral_value(ROUND_CEILING))
        return max(self.cost(tier, reply.tokens, told), said)


TOKENS = Rates()
"""Costs are tokens."""
