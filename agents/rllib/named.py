"""RLlib's algorithms by the names of the agents that they train, for users of RLlib itself."""

from __future__ import annotations

from typing import Any, Final

from agents.base import AGENTS, make_agent, public_problem
from agents.parameters import as_params, checked
from agents.rllib.agent import RLlibAgent
from agents.rllib.algorithm import ExamAlgorithm, ExamSettings, module_weights
from agents.rllib.registration import spec_of
from agents.rllib.training import configure
from roi_env.exams.config import ExamSpec

_AGENTS: Final = {
    "ppo": "rllib-ppo",
    "grpo": "rllib-grpo",
    "llm-ppo": "llm-ppo",
    "llm-grpo": "llm-grpo",
    "rarl": "rarl",
}
"""The agents' names by those of the algorithms."""


def make_config(
    name: str, spec: ExamSpec, *, seed: int, exam_seed: int, params: dict[str, Any] | None = None
) -> ExamSettings:
    """The configuration of a named algorithm.

    :param name: "ppo", "grpo", "llm-ppo" or "llm-grpo" (a language model is the policy), or "rarl" (the same over the tokens of
        exams that it takes in one pass).
    :param spec: kind of exam.
    :param seed: of weights, actions and minibatches.
    :param exam_seed: identity's seed of the training exams.
    :param params: settings of the agent (:mod:`agents.rllib.agent`, :mod:`agents.llm.reinforcement`) other than the defaults.
    :raises ValueError: for an unknown name or parameter, or a value out of its range.
    """
    if name not in _AGENTS:
        raise ValueError(f"algorithm must be one of {sorted(_AGENTS)}, got {name!r}")
    settings = AGENTS[_AGENTS[name]].settings
    assert settings is not None, "RLlib's agents have settings"
    p = as_params(settings(**checked(settings, params or {}, name)))
    return configure(name, spec, p, seed=seed, exam_seed=exam_seed)


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
    agent = make_agent(_AGENTS[name], public_problem(spec_of(algorithm.config.env_config)), **params)
    assert isinstance(agent, RLlibAgent)
    agent.take_over(module_weights(algorithm.learner_group))
    return agent
