"""RLlib with our runner against RLlib as it is (claims: sampling 4x faster; PPO to 99 % of the optimum in 90 s, 2x faster).

Stock: RLlib's runner on the native vector environment, its PPO, the same module and hyper-parameters. Sampling is timed by
the clock (it happens in several processes, with the peer in turns); training in CPU time of the one process.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig

from agents.base import public_problem
from agents.playing import TrainingExams, evaluate_exact
from agents.rllib.agent import RLlibPPO
from agents.rllib.algorithm import module_weights
from agents.rllib.named import build_algorithm, make_config
from agents.rllib.registration import ENV, register
from agents.rllib.rollouts import concatenate
from agents.rllib.training import LocalRun
from roi_env.exams.config import exam_spec
from roi_env.measures.references import references

SPEC = exam_spec("signal")
TARGET = 0.99


def stock(runners: int, params: dict[str, Any]) -> Any:
    """RLlib's own PPO with the same network and hyper-parameters; batches of as many decisions as exams usually have."""
    ours = make_config("ppo", SPEC, seed=0, exam_seed=0, params=params)
    module = ours.get_default_rl_module_spec()
    register()
    return (
        PPOConfig()
        .environment(ENV, env_config={"spec": SPEC})
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=64, gym_env_vectorize_mode="vector_entry_point")
        .training(
            train_batch_size_per_learner=ours.exams_per_iteration * 10,
            minibatch_size=ours.exams_per_minibatch * 10,
            num_epochs=ours.num_epochs,
            lr=ours.lr,
            gamma=1.0,
            lambda_=ours.lambda_,
            entropy_coeff=ours.entropy_coeff,
            use_kl_loss=False,
            clip_param=ours.clip_param,
            vf_loss_coeff=ours.vf_loss_coeff,
            vf_clip_param=1e4,
            grad_clip=ours.grad_clip,
        )
        .rl_module(rl_module_spec=module)
        .debugging(log_level="ERROR")
        .build_algo()
    )


def sampling(runners: int, repeats: int) -> tuple[float, float]:
    """Median decisions per second of (our runner, RLlib's), in turns."""
    ours = build_algorithm("ppo", SPEC, seed=0, exam_seed=0, runners=runners)
    theirs = stock(runners, {})
    steps = ours.config.exams_per_iteration * 10
    rates: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):  # the first one compiles
        begun = time.perf_counter()
        taken = concatenate(ours._take(ours.config.jobs(repeat * 1024))).steps
        rates[0].append(taken / (time.perf_counter() - begun))
        begun = time.perf_counter()
        parts = theirs.env_runner_group.foreach_env_runner(
            lambda runner: sum(map(len, runner.sample(num_timesteps=steps // max(1, runners)))),
            local_env_runner=runners == 0,
        )
        rates[1].append(sum(parts) / (time.perf_counter() - begun))
    ours.stop()
    theirs.stop()
    return float(np.median(rates[0][1:])), float(np.median(rates[1][1:]))


def until_target(step: Callable[[], None], weights: Callable[[], Any], most: float) -> tuple[float, float, float]:
    """(CPU seconds, seconds, share of the optimum) when the target is reached, or after ``most`` CPU seconds."""
    problem = public_problem(SPEC)
    validation = TrainingExams(SPEC, 0).batch(64, 10**9)
    optimum = references(validation, law="published", replicates=1, informed_draws=1).optimum.mean()
    agent = RLlibPPO(problem)
    cpu = wall = share = 0.0
    while share < TARGET and cpu < most:
        begun, clock = time.process_time(), time.perf_counter()
        step()
        cpu, wall = cpu + time.process_time() - begun, wall + time.perf_counter() - clock
        agent.take_over(weights())
        share = float(evaluate_exact(agent, validation, law="published").score.mean() / optimum)
    return cpu, wall, share


def main() -> None:
    """Print the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runners", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--most", type=float, default=300.0, help="CPU seconds after which a training is given up")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a claim fails")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    ray.init(num_cpus=2 * arguments.runners + 2, include_dashboard=False, log_to_driver=False)
    mine, theirs = sampling(arguments.runners, arguments.repeats)
    print(
        f"sampling, {arguments.runners} runners (stock: 64 environments each): {mine:,.0f} decisions/s, stock "
        f"{theirs:,.0f}: {mine / theirs:.1f}x (claim: 4x)",
        flush=True,
    )
    failed = mine < 4 * theirs
    params = {"steps": 600_000}
    for seed in range(arguments.seeds):
        run = LocalRun(make_config("ppo", SPEC, seed=seed, exam_seed=1, params=params))
        cpu, wall, share = until_target(run.train, lambda run=run: module_weights(run.learner_group), arguments.most)
        algorithm = stock(0, params)
        peer_cpu, peer_wall, peer_share = until_target(
            algorithm.train, lambda peer=algorithm: module_weights(peer.learner_group), arguments.most
        )
        algorithm.stop()
        print(
            f"PPO to {TARGET:.0%} of the optimum, seed {seed}: {cpu:.1f} CPU s, {wall:.1f} s ({share:.4f} after "
            f"{run.steps:,} decisions); stock {peer_cpu:.1f} CPU s, {peer_wall:.1f} s ({peer_share:.4f}): "
            f"{peer_cpu / cpu:.1f}x (claims: under 90 s, 2x)",
            flush=True,
        )
        failed |= share < TARGET or wall > 90 or peer_cpu < 2 * cpu
    ray.shutdown()
    sys.exit(arguments.check and failed)


if __name__ == "__main__":
    main()
