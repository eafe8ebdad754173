"""One exam, decision by decision: an agent at the single environment, for people who look on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from agents.base import Agent, DecisionView, Feedback, exams_view, public_problem
from agents.playing import check_probs, pick_actions
from roi_env.envs.single import ROIReasoningEnv
from roi_env.exams.exam import draw_exams

Chooser = Callable[[DecisionView], int]
"""A view of one decision -> the action."""


def take_exam(env: ROIReasoningEnv, who: Agent | Chooser, seed: int = 0, exam_id: int = 0) -> Iterator[dict[str, Any]]:
    """Let an agent (or a person) take one exam; yields the environment's ``info`` after every decision.

    :param env: unwrapped; ``env.render()`` between two steps shows the exam so far.
    :param who: an agent that decides task by task, or a function that chooses an action.
    :param seed: identity's seed; actions are drawn from the agent's probabilities with numbers of (seed, exam, position).
    """
    spec = env.exam_spec
    problem, batch = public_problem(spec), draw_exams(spec, seed, [exam_id])
    env.reset(seed=seed, options={"exam_ids": exam_id})
    state = who.start(exams_view(batch, problem)) if isinstance(who, Agent) else None
    told = spec.feedback == "cost+correct"
    zero = np.zeros(1, np.int64)
    last = (zero, zero, np.zeros(1, bool))
    position, remaining, terminated = 0, spec.budget, False
    while not terminated:
        view = DecisionView(problem, zero, np.array([position]), np.array([remaining]), *last, batch.groups)
        if isinstance(who, Agent):
            probs, state = who.act(view, state)
            probs = check_probs(who, probs, view)
            action = int(pick_actions(probs, np.random.default_rng([seed, exam_id, position]).random(1))[0])
        else:
            action = who(view)
        _, _, terminated, _, info = env.step(action)
        paid, right = np.array([info["tokens"]]), np.array([info["correct"]])
        last = (np.array([action]), paid, right if told else np.zeros(1, bool))
        if isinstance(who, Agent):
            overspent = np.array([info["overspent"]])
            state = who.observe(Feedback(view, last[0], paid, right if told else None, overspent), state)
        position += 1
        remaining -= info["tokens"]
        yield info
