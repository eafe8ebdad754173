"""exp and log from additions, multiplications and divisions only: the same bits on every machine."""

from __future__ import annotations

from typing import Any


def exp(x: Any) -> Any:
    """``e ** x`` of a float or an array, for x between -500 and 500, with relative error below 1e-12."""
    r = x / 4096.0
    y = 0.0  # e ** r - 1: keeps its digits
    for k in range(8, 0, -1):
        y = r / k * (1.0 + y)
    for _ in range(12):
        y = y * (2.0 + y)  # (1 + y) ** 2 - 1
    return 1.0 + y


def log(x: float) -> float:
    """Natural logarithm of a positive float: Newton's method on :func:`exp`."""
    if not x > 0:
        raise ValueError(f"log needs a positive number, got {x!r}")
    shift = 0
    while x > 2.0:
        x, shift = x / 2.0, shift + 1
    while x < 0.5:
        x, shift = x * 2.0, shift - 1
    y, two = x - 1.0, 0.6931471805599453
    for _ in range(8):
        y += x * float(exp(-y)) - 1.0
    return y + shift * two
