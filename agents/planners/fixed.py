"""Rules that know nothing: random, skip, one fixed tier. Baselines by convention, without a source of their own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agents.base import Agent, DecisionView, Problem, Probs, State, one_hot


class Random(Agent):
    """Uniform over the legal actions, skip included."""

    name: ClassVar[str] = "random"
    relies_on: ClassVar[tuple[str, ...]] = ()

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Equal probability for every legal action."""
        return view.mask / view.mask.sum(1, keepdims=True), state


class Skip(Agent):
    """Never attempts anything: the floor of every table, and what refusing everything is worth."""

    name: ClassVar[str] = "skip"
    relies_on: ClassVar[tuple[str, ...]] = ()

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Skip."""
        return one_hot(np.zeros(len(view), np.int64), view.problem.num_tiers + 1), state


class Fixed(Agent):
    """Always the same tier, while it is legal; else skip.

    :param tier: number from 1 (cheapest), a tier's name, or "top". A number beyond the problem's tiers means the top
        one.
    """

    name: ClassVar[str] = "fixed"
    relies_on: ClassVar[tuple[str, ...]] = ()

    def __init__(self, problem: Problem, tier: int | str = "top") -> None:
        super().__init__(problem)
        names = problem.tier_names
        if isinstance(tier, str):
            if tier != "top" and tier not in names:
                raise ValueError(f"tier must be a number from 1, 'top' or one of {list(names)}, got {tier!r}")
            self.action = len(names) if tier == "top" else names.index(tier) + 1
        elif isinstance(tier, bool) or tier < 1:
            raise ValueError(f"tier must be a number from 1, 'top' or one of {list(names)}, got {tier!r}")
        else:
            self.action = min(tier, len(names))
        self.tier = tier

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Play the tier where it is legal."""
        return one_hot(np.where(view.mask[:, self.action], self.action, 0), view.problem.num_tiers + 1), state

    def params(self) -> dict[str, Any]:
        """The tier."""
        return {"tier": self.tier}
