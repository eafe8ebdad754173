"""RLlib's algorithms by the names of the agents that they train, for users of RLlib itself."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Final

from agents.base import public_problem
from agents.rllib.agent import RLlibAgent
from agents.rllib.algorithm import ExamAlgorithm, ExamSettings, module_weights
from agents.rllib.registration import spec_of
from agents.rllib.training import configure
from roi_env.exams.config import ExamSpec

_AGENTS: Final[dict[str, str]] = {
    "ppo": "agents.rllib.agent:RLlibPPO",
    "grpo": "agents.rllib.agent:RLlibGRPO",
    "llm-ppo": "agents.llm.reinforcement:LMPPOAgent",
    "llm-grpo": "agents.llm.reinforcement:LMGRPOAgent",
    "rarl": "agents.llm.reinforcement:RARLAgent",
}


def _agent_class(name: str) -> type[RLlibAgent]:
    """Imported where used: a language model's needs more packages."""
    module, _, found = _AGENTS[name].partition(":")
    return getattr(importlib.import_module(module), found)  # type: ignore[no-any-return]


def make_config(
    name: str, spec: ExamSpec, *, seed: int, exam_seed: int, params: dict[str, Any] | None = None
) -> ExamSettings:
    """The configuration of a named algorithm.

    :param name: "ppo", "grpo", "llm-ppo" or "llm-grpo" (a language model is the policy), or "rarl" (the same over the tokens of
        exams that it takes in one pass).
    :param spec: kind of exam.
    :param seed: of weights, actions and minibatches.
    :param exam_seed: identity's seed of the training exams.
    :param params: parameters of the agent (:mod:`agents.rllib.agent`, :mod:`agents.llm.reinforcement`) other than the defaults.
    :raises ValueError: for an unknown name or parameter.
    """
    if name not in _AGENTS:
        raise ValueError(f"algorithm must be one of {sorted(_AGENTS)}, got {name!r}")
    signature = inspect.signature(_agent_class(name).__init__).parameters.values()
    p = {entry.name: entry.default for entry in signature if entry.kind is entry.KEYWORD_ONLY}
    if unknown := (params or {}).keys() - p:
        raise ValueError(f"{name} has no parameter {sorted(unknown)}; it takes {sorted(p)}")
    return configure(name, spec, p | (params or {}), seed=seed, exam_seed=exam_seed)


def build_algorithm(
    name: str,
    spec: ExamSpec,
    *,
    seed: int,
    exam_seed: int,
    params: dict[str, Any] | None = None,
    runners: int = 0,
    learners: int = 0,
) -> ExamAlgorithm:
    """An RLlib algorithm, ready for ``train()``; Ray is started if it is not running.

    :param runners: remote processes that take exams; 0: the driver takes them.
    :param learners: remote processes that learn; 0: the driver learns.
    """
    config = make_config(name, spec, seed=seed, exam_seed=exam_seed, params=params)
    return config.processes(runners, learners).build_algo()  # type: ignore[no-any-return]


def agent_of(algorithm: ExamAlgorithm) -> RLlibAgent:
    """What an algorithm has learned so far, as an agent."""
    name, params = algorithm.config.agent
    agent = _agent_class(name)(public_problem(spec_of(algorithm.config.env_config)), **params)
    agent.name = f"rllib-{name}" if name in ("ppo", "grpo") else name  # type: ignore[misc]
    agent.take_over(module_weights(algorithm.learner_group))
    return agent
