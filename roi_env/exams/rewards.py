"""The rewards of the problem: pure functions of one decision and its outcome.

``score`` is the objective and what evaluation reports; the others shape training.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from numba import njit

SCORE: Final = 0
RATIONAL: Final = 1
REFUSAL_BONUS: Final = 2
OVERSPEND_PENALTY: Final = 3
COST_SHAPED: Final = 4

_KINDS = {
    "score": SCORE,
    "rational": RATIONAL,
    "refusal_bonus": REFUSAL_BONUS,
    "overspend_penalty": OVERSPEND_PENALTY,
    "cost_shaped": COST_SHAPED,
}


@dataclass(frozen=True)
class Reward:
    """A named reward; ``coefficient`` is rho or lambda where the reward has one."""

    name: str
    coefficient: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _KINDS:
            raise ValueError(f"reward must be one of {sorted(_KINDS)}, got {self.name!r}")
        if not 0 <= self.coefficient < float("inf"):
            raise ValueError(f"reward {self.name}: coefficient must be finite and >= 0, got {self.coefficient}")

    @property
    def kind(self) -> int:
        """Number of the reward for compiled code."""
        return _KINDS[self.name]

    def __str__(self) -> str:
        return f"{self.name}({self.coefficient:g})" if self.kind >= REFUSAL_BONUS else self.name


def parse_reward(text: str | Reward) -> Reward:
    """Read ``"score"``, ``"rational"``, ``"refusal_bonus(0.1)"``, ``"overspend_penalty(1)"`` or ``"cost_shaped(0.5)"``.

    :raises ValueError: for another name, a missing or a superfluous coefficient.
    """
    if isinstance(text, Reward):
        return text
    match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"reward must read like 'score' or 'cost_shaped(0.5)', got {text!r}")
    name, inner = match.groups()
    needs = _KINDS.get(name, SCORE) >= REFUSAL_BONUS
    if needs != bool(inner):
        raise ValueError(
            f"reward {name!r} needs a coefficient, as in '{name}(0.1)'" if needs else f"reward {name!r} takes none"
        )
    try:
        return Reward(name, float(inner) if inner else 0.0)
    except ValueError as error:
        raise ValueError(f"reward {text!r}: {error}") from None


def reward_of(
    kind: int,
    coefficient: float,
    action: int,
    right: bool,
    overspent: bool,
    level: int,
    weight: float,
    paid: int,
    budget: int,
    solvable: bool,
) -> float:
    """Return the reward of one decision.

    :param kind: number of the reward.
    :param coefficient: rho or lambda.
    :param action: 0 = skip, k = tier k.
    :param right: correct within the budget.
    :param overspent: the attempt was cut at the budget.
    :param level: level of the tokens the attempt would take (0-based; ``K``: beyond all edges).
    :param weight: task weight.
    :param paid: tokens paid.
    :param budget: the exam's budget in tokens.
    :param solvable: some tier of this task would have been right within the remaining budget.
    """
    score = weight if right else 0.0
    if kind == RATIONAL:
        return score if level == action - 1 else 0.0
    if kind == REFUSAL_BONUS:
        return score + (coefficient if action == 0 and not solvable else 0.0)
    if kind == OVERSPEND_PENALTY:
        return score - (coefficient if overspent else 0.0)
    if kind == COST_SHAPED:
        return score - coefficient * paid / budget
    return score


compiled_reward_of = njit(cache=True, inline="always")(reward_of)
