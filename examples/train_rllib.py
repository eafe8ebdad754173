"""RLlib on the environment: its own PPO with our masked network, then what it learned beside the exact optimum.

python examples/train_rllib.py --iterations 30

`ExamPPOConfig` and `GRPOConfig` (agents.rllib) are the same with a runner of our own that takes whole exams at once; the
command `roi train grpo` is them.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from agents import make_agent, public_problem
from agents.foreign import from_policy
from agents.playing import evaluate
from agents.rllib.modules import ExamModule
from agents.rllib.networks import observation_statistics
from agents.rllib.registration import ENV, register
from roi_env import draw_exams, exam_spec

SPEC = exam_spec("signal", budget=0.3)


def config() -> PPOConfig:
    """RLlib's settings; `register` gives the environment a name that Ray's workers know as well."""
    register()
    centre, spread = observation_statistics(public_problem(SPEC))
    network = {"hidden": (64, 64), "memory": 0, "critic": True, "seed": 0, "centre": centre, "spread": spread}
    settings = PPOConfig().environment(ENV, env_config={"spec": SPEC})
    settings.env_runners(num_env_runners=0, num_envs_per_env_runner=64, gym_env_vectorize_mode="vector_entry_point")
    settings.rl_module(rl_module_spec=RLModuleSpec(module_class=ExamModule, model_config=network))
    settings.training(train_batch_size_per_learner=4096, minibatch_size=1024, num_epochs=4, lr=1e-3, gamma=1.0)
    return settings.training(entropy_coeff=0.003, use_kl_loss=False, grad_clip=1.0)


def share_of_the_optimum(module: RLModule) -> float:
    """What the module's most probable actions score on 200 exams of a seed of their own, exactly."""

    def policy(observations: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        batch = {"observations": torch.from_numpy(observations), "action_mask": torch.from_numpy(mask)}
        with torch.no_grad():
            out = module.forward_inference({Columns.OBS: batch})
        return out[Columns.ACTION_DIST_INPUTS].argmax(1).numpy()

    exams, problem = draw_exams(SPEC, seed=1, exam_ids=np.arange(200)), public_problem(SPEC)
    learned, best = from_policy(policy)(problem), make_agent("bellman", problem)
    return float(evaluate(learned, exams).score.mean() / evaluate(best, exams).score.mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=30)
    algorithm = config().build_algo()
    for _ in range(parser.parse_args().iterations):
        result = algorithm.train()
        print(f"return {result['env_runners']['episode_return_mean']:.2f} an exam in training")
    print(f"{share_of_the_optimum(algorithm.get_module()):.3f} of the optimum")
    algorithm.stop()
