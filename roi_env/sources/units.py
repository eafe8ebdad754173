"""Units of cost: tokens, or millionths of a US dollar. Costs are integers of one of them, and a budget is of the same."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

Unit = Literal["tokens", "micro-usd"]
UNITS: tuple[Unit, ...] = ("tokens", "micro-usd")
COST_NAMES = {"tokens": "tokens", "micro-usd": "cost"}
"""What a cost is called in sentences."""
UNIT_NAMES = {"tokens": "tokens", "micro-usd": "US dollars (stored as micro-dollars)"}
SHORT_UNITS = {"tokens": "tokens", "micro-usd": "usd"}
"""What headers, metrics and JSON of the proxy name, which tell dollars."""
_MONEY = re.compile(
    r"\s*(?:\$\s*(?P<sign>[0-9.]+)|(?P<number>[0-9.]+)\s*(?P<unit>micro-?usd|usd|\$))\s*", re.IGNORECASE | re.ASCII
)
_COUNT = re.compile(
    r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?:(?P<scale>[kmg])\s*(?:tokens?)?|tokens?)\s*", re.IGNORECASE | re.ASCII
)
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def cost_text(cost: float, unit: Unit) -> str:
    """A cost as people read it: tokens with separators, dollars to the micro-dollar where they are few."""
    if unit == "tokens":
        return f"{cost:,.0f}"
    if cost == 0:
        return "0 USD"
    usd = cost / 1e6
    return f"{usd:,.2f} USD" if usd >= 100 else f"{usd:.4f} USD" if usd >= 0.01 else f"{usd:.7f} USD"


def cost_with_unit(cost: float, unit: Unit) -> str:
    """:func:`cost_text` with the unit behind it also where it is tokens."""
    return cost_text(cost, unit) + (" tokens" if unit == "tokens" else "")


def read_cost(text: str) -> tuple[int, Unit] | None:
    """A cost that names its unit or scale: ``2.50usd``, ``$2.50``, ``300 micro-usd``, ``512 tokens``, ``50k``; None for other texts.

    :raises ValueError: for parts of a token or of a micro-dollar, and for what is no number.
    """
    if match := _COUNT.fullmatch(text):
        tokens = Decimal(match["number"]) * _SCALES[(match["scale"] or "").lower()]
        if tokens != int(tokens):
            raise ValueError(f"{text!r} is no whole number of tokens")
        return int(tokens), "tokens"
    if not (match := _MONEY.fullmatch(text)):
        return None
    number = match["sign"] or match["number"]
    if number.count(".") > 1 or number == ".":
        raise ValueError(f"{text!r} is no amount of money: write 2.50usd")
    micro = Decimal(number) * (1 if "micro" in (match["unit"] or "").lower() else 1_000_000)
    if micro != int(micro):
        raise ValueError(f"{text!r} is no whole number of micro-dollars (millionths of a US dollar)")
    return int(micro), "micro-usd"
