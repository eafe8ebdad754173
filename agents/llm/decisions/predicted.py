"""Planners that know nothing of a task but what a language model says it will take."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from agents.base import Agent, DecisionView, ExamsView, Problem, Probs, State, make_agent
from agents.llm.decisions.agent import asked
from agents.llm.decisions.policy import check_model, load_tokenizer, question_texts
from agents.llm.decisions.tag_logits import PromptEncoder
from agents.llm.prompts import ample
from agents.rllib.networks import on_threads
from roi_env.sources.source import Laws, laws_from_cells

PLANNERS: Final = (
    "greedy-knapsack",
    "resolve",
    "resolve-guarded",
    "lp-lookahead",
    "bid-price",
    "remaining-share",
    "uniform-share",
)
"""Planners that need no population beside the tasks they are shown."""

_SHARES = 1 << 16
"""Probabilities are rounded to multiples of 1 / _SHARES: the model's last bits must not decide between actions."""


class _Planned(NamedTuple):
    """A planner on the exams' predicted laws: group g' is a question (with its published group)."""

    planner: Agent
    state: State
    groups: npt.NDArray[np.int32]


class PredictedLevels(Agent):
    """A planner whose beliefs are a language model's own level predictions: the paper's planners on predicted costs.

    A question whose level is l (what solving it takes, l < K) is solved by every tier from l on, at the cost of the level's
    centroid, the middle of its token interval (:class:`agents.planners.greedy.GreedyKnapsack`); cheaper tiers are cut at
    their edge and fail; a refused question (l = K) fails at every tier's edge. The law of a tier mixes these by the
    model's probabilities of the levels, asked once a question where nothing is scarce (:func:`agents.llm.prompts.ample`).
    Published beliefs are not used.

    :param planner: one of :data:`PLANNERS`.
    :param model: see :func:`agents.llm.decisions.policy.model_source`.
    :param dtype: see :class:`agents.llm.decisions.agent.LMAgent`.
    """

    name: ClassVar[str] = "predicted-levels"

    def __init__(
        self,
        problem: Problem,
        *,
        planner: str = "resolve",
        model: str = "tinylm-mcft",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(problem)
        if planner not in PLANNERS:
            raise ValueError(f"planner must be one of {PLANNERS}, got {planner!r}")
        check_model(self, model)
        self.planner, self.model, self.dtype = planner, model, dtype

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return {"planner": self.planner, "model": self.model, "dtype": self.dtype}

    def start(self, exams: ExamsView) -> State:
        """Ask the model about every question and plan.

        :raises ValueError: where the exams show no texts, or the model has no level tags.
        """
        problem = exams.problem
        texts = [text for row in question_texts(exams, self.name) for text in row]
        asked = list(zip(texts, exams.groups.ravel().tolist(), strict=True))
        # Sorted: planners break ties by the number of a group, which must not depend on the other exams of a batch.
        pairs = {pair: number for number, pair in enumerate(sorted(set(asked)))}
        group = np.array([group for _, group in pairs], np.int64)
        laws = predicted_laws(self.probabilities([text for text, _ in pairs]), problem.level_edges)
        predicted = dataclasses.replace(
            problem,
            group_features=problem.group_features[group],
            group_weight=problem.group_weight[group],
            group_key=problem.group_key[group],
            given_key=problem.given_key[group],
            group_probability=np.full((1, len(group)), 1 / len(group)),
            min_cost=problem.min_cost[group],
            beliefs=laws,
            latent_beliefs=None,
            num_latent=1,
        )
        groups = np.array([pairs[pair] for pair in asked], np.int32).reshape(exams.groups.shape)
        planner = make_agent(self.planner, predicted)
        return _Planned(planner, planner.start(ExamsView(predicted, groups, exams.texts)), groups)

    def probabilities(self, texts: list[str]) -> npt.NDArray[np.float64]:
        """(Q, K + 1) probabilities of the levels 0 .. K where nothing is scarce, K the refusal."""
        actions = self.problem.num_tiers + 1
        encoder = PromptEncoder(load_tokenizer(self.model), levels=actions)
        prompts = encoder.prompts(texts, *ample(int(self.problem.level_edges.max())))
        with torch.inference_mode(), on_threads(1):
            logits = asked(self.model, self.dtype, *prompts, actions)
        # Action 0 skips, which is the last level.
        return np.roll(logits.double().softmax(1).cpu().numpy(), -1, 1)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Let the planner decide."""
        planned: _Planned = state
        seen = dataclasses.replace(view, problem=planned.planner.problem, _all_groups=planned.groups)
        probs, after = planned.planner.act(seen, planned.state)
        return probs, planned._replace(state=after)


def predicted_laws(probabilities: npt.NDArray[np.float64], level_edges: npt.NDArray[np.int64]) -> Laws:
    """Laws of every tier given (Q, K + 1) level probabilities; see :class:`PredictedLevels`.

    :param level_edges: (K,) tokens.
    """
    num_tiers = len(level_edges)
    edges = np.concatenate([[0], level_edges])
    centroid = (edges[:-1] + edges[1:] + 1) // 2
    shares = np.rint(probabilities * _SHARES)
    shares /= shares.sum(1, keepdims=True)
    cells = []
    for share in shares:
        for tier in range(num_tiers):
            cost = np.append(centroid[: tier + 1], level_edges[tier])
            prob = np.append(share[: tier + 1], share[tier + 1 :].sum())
            right = np.append(share[: tier + 1], 0.0)
            tokens, place = np.unique(cost[prob > 0], return_inverse=True)  # a centroid may lie on the edge
            merged = [np.bincount(place, values[prob > 0]).astype(np.float64) for values in (prob, right)]
            cells.append((tokens.astype(np.int32), merged[0], merged[1]))
    return laws_from_cells(cells, num_tiers)
