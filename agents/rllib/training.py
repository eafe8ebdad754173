"""Training runs: an algorithm's configuration from parameters, in this process or on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from agents.neural import Progress
from agents.rllib.algorithm import ExamSettings, exam_metrics, module_weights, update
from agents.rllib.exam_runner import ExamRunner
from agents.rllib.grpo import GRPOConfig
from agents.rllib.networks import PolicyNetwork
from agents.rllib.ppo import ExamPPOConfig
from agents.rllib.registration import spec_of
from agents.rllib.rollouts import concatenate
from roi_env.exam import ExamSpec


def make_config(name: str, spec: ExamSpec, *, seed: int, exam_seed: int, params: dict[str, Any]) -> ExamSettings:
    """The configuration of a named algorithm.

    :param name: "ppo" or "grpo".
    :param spec: kind of exam.
    :param seed: of weights, actions and minibatches.
    :param exam_seed: identity's seed of the training exams.
    :param params: the agent's parameters (:class:`agents.rllib.agent.PPOAgent` and its siblings), all of them.
    """
    config: ExamSettings
    if name == "ppo":
        config = ExamPPOConfig().training(
            lambda_=params["lambda_"], clip_param=params["clip"], vf_loss_coeff=params["vf"]
        )
    elif name == "grpo":
        config = (
            GRPOConfig()
            .exams(group_size=params["group"], shared_outcomes=params["shared_outcomes"])
            .training(
                advantage=params["advantage"],
                baseline=params["baseline"],
                ratio=params["ratio"],
                aggregation=params["aggregation"],
                clip_param=params["clip"],
                kl=params["kl"],
                kl_coeff=params["kl_coeff"],
            )
        )
    else:
        raise ValueError(f"algorithm must be 'ppo' or 'grpo', got {name!r}")
    config.exams(spec, seed=exam_seed, per_iteration=params["exams"], per_minibatch=params["minibatch"])
    config.network(hidden=(params["width"],) * params["layers"], memory=params["memory"])
    config.debugging(seed=seed, log_level="ERROR")
    config.training(lr=[[0, params["lr"]], [params["steps"], 0.0]], num_epochs=params["epochs"])
    config.entropy_coeff = params["entropy"]
    return config


def train_here(config: ExamSettings, steps: int) -> Iterator[tuple[PolicyNetwork, Progress]]:
    """Train in this process without a Ray cluster: RLlib's learner, our runner, the iterations of
    :class:`agents.rllib.algorithm.ExamAlgorithm`.

    :param steps: environment steps to reach.
    :returns: after each iteration the network (to be read, not kept) and the progress.
    """
    config.validate()
    spec = spec_of(config.env_config)
    begun = time.process_time()
    runner = ExamRunner(config=config, worker_index=0)
    learners = config.build_learner_group(rl_module_spec=config.get_multi_rl_module_spec(spaces=runner.get_spaces()))
    per_iteration = config.num_epochs * (config.exams_per_iteration // config.exams_per_minibatch)
    taken = updates = next_exam = 0
    aside = 0.0
    while taken < steps:
        runner.module.set_state(module_weights(learners))
        rollout = concatenate([runner.sample(job=job) for job in config.jobs(next_exam)])
        next_exam += config.exams_per_iteration // config.group_size
        taken += rollout.steps
        update(config, learners, rollout, taken)
        updates += per_iteration
        runner.module.set_state(module_weights(learners))
        paused = time.process_time()
        score = exam_metrics(spec, rollout)["score_mean"]
        yield runner.module.network, Progress(taken, steps, updates, paused - begun - aside, score)
        aside += time.process_time() - paused
