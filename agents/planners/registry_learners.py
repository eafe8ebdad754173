"""Registers the dynamic programmes, hindsight optimisation and the planners that learn laws."""

from __future__ import annotations

from agents.base import register

_HERE = "agents.planners"

register("bellman", f"{_HERE}.dynamic_programming:Bellman", "dynamic programme on the published beliefs")
register(
    "optimum",
    f"{_HERE}.dynamic_programming:optimum",
    "the best policy for the evaluated source's own published laws",
    privileged=True,
)
register(
    "plugin-bellman",
    f"{_HERE}.dynamic_programming:PluginBellman",
    "dynamic programme on laws counted from logged attempts (default 540)",
)
register(
    "hindsight-optimisation",
    f"{_HERE}.hindsight_optimisation:HindsightOptimisation",
    "one-step expectation, then the expected clairvoyant value over 64 scenarios",
)
register(
    "bwk-ucb",
    f"{_HERE}.bandits:BanditWithKnapsacks",
    "bandit with knapsacks, optimistic estimates; learns by playing 500 training exams",
    kind="ucb",
)
register(
    "bwk-thompson",
    f"{_HERE}.bandits:BanditWithKnapsacks",
    "bandit with knapsacks, sampled estimates; learns by playing 500 training exams",
    kind="thompson",
)
register(
    "belief-bellman",
    f"{_HERE}.belief:BeliefBellman",
    "dynamic programme over (remaining budget, belief about the exam-level latent state)",
)
