"""Policies that were trained elsewhere, as agents: anything that maps observations and masks to actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from agents.base import Agent, DecisionView, Probs, State, one_hot

Policy = Callable[[npt.NDArray[np.float32], npt.NDArray[np.bool_]], Any]
"""(D, size) observations of the environment and (D, K + 1) legal actions -> (D,) actions or (D, K + 1) probabilities."""


def from_policy(policy: Policy, *, illegal: Literal["error", "skip"] = "error") -> type[Agent]:
    """An agent class around a policy, for ``roi compare --agent FILE.py:NAME``.

    :param policy: gets (D, size) float32 observations and the (D, K + 1) bool mask of legal actions; returns (D,) integer
        actions, or (D, K + 1) non-negative weights that are masked and normalised here. It must not remember anything
        between calls: decisions of many exams come in one batch.
    :param illegal: what an illegal action becomes: an error, or a skip. (In the environment it would overspend.)
    """

    class PolicyAgent(Agent):
        """A policy that was trained elsewhere."""

        def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
            given = np.asarray(policy(view.observations, view.mask))
            if given.shape == view.mask.shape:
                return _distribution(given, view.mask), state
            return one_hot(_legal(given, view, illegal), view.mask.shape[1]), state

    PolicyAgent.__module__ = policy.__module__  # an agent of the file that defines the policy
    return PolicyAgent


def _distribution(weights: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> Probs:
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("the policy's probabilities must be finite and >= 0")
    legal = np.where(mask, weights, 0.0).astype(np.float64)
    total = legal.sum(1, keepdims=True)
    # All its weight on illegal actions: skip, the action that always is legal.
    return np.where(
        total > 0, legal / np.where(total > 0, total, 1.0), one_hot(np.zeros(len(mask), int), mask.shape[1])
    )


def _legal(actions: npt.NDArray[Any], view: DecisionView, illegal: str) -> npt.NDArray[np.int64]:
    size, num_actions = view.mask.shape
    if actions.shape != (size,) or actions.dtype.kind not in "iu":
        raise ValueError(
            f"the policy must return {size} integer actions or ({size}, {num_actions}) probabilities, got "
            f"{actions.dtype} of shape {actions.shape}"
        )
    if ((actions < 0) | (actions >= num_actions)).any():
        raise ValueError(f"the policy's actions must lie in 0..{num_actions - 1}, got {actions.min()}..{actions.max()}")
    allowed = view.mask[np.arange(size), actions]
    if illegal == "error" and not allowed.all():
        first = int(np.argmin(allowed))
        raise ValueError(
            f"the policy chose action {actions[first]} with {view.remaining[first]} tokens left, where legal actions are "
            f"{np.flatnonzero(view.mask[first]).tolist()}: use the mask in the policy, or from_policy(..., illegal='skip')"
        )
    return np.where(allowed, actions, 0).astype(np.int64)
