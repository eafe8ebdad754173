"""What RLlib would corrupt in silence is an error here."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from agents.base import public_problem
from agents.rllib.modules import ExamModule
from agents.rllib.networks import observation_statistics
from agents.rllib.registration import ENV, create, register, spec_of
from roi_env.envs.single import ROIReasoningEnv
from roi_env.exams.config import exam_spec

SPEC = exam_spec("heavy", num_tasks=4, budget=0.15)


def stock_runner(**env_config: object) -> SingleAgentEnvRunner:
    register()
    centre, spread = observation_statistics(public_problem(SPEC))
    model = {"hidden": (8,), "memory": 0, "critic": True, "seed": 0, "centre": centre, "spread": spread}
    config = (
        PPOConfig()
        .environment(ENV, env_config={"spec": SPEC, **env_config})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=3, gym_env_vectorize_mode="vector_entry_point")
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ExamModule, model_config=model))
        .debugging(seed=4)
    )
    return SingleAgentEnvRunner(config=config, worker_index=0)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_the_stock_runner_takes_whole_exams_in_vector_mode() -> None:
    runner = stock_runner()
    episodes = [e for _ in range(3) for e in runner.sample(num_timesteps=40) if e.is_done]
    assert runner.get_spaces()[DEFAULT_MODULE_ID][1].n == 4
    env = ROIReasoningEnv(family=SPEC)
    found = 0
    env.reset(seed=4)
    starts = {env.reset(seed=4, options={"exam_ids": i})[0].tobytes(): i for i in range(60)}
    for episode in episodes:
        observations = episode.get_observations()
        if observations["observations"][0].tobytes() not in starts:  # cut from an earlier sample
            continue
        found += 1
        observation, _ = env.reset(seed=4, options={"exam_ids": starts[observations["observations"][0].tobytes()]})
        for t, action in enumerate(episode.get_actions()):
            assert np.array_equal(observation, observations["observations"][t])
            observation, reward, terminated, _, _ = env.step(action)
            assert reward == episode.get_rewards()[t]
            assert terminated == (t == len(episode) - 1)
        assert len(episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)) == len(episode)
    assert found > 5


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_replayed_exams_are_refused_unless_wanted() -> None:
    runner = stock_runner()
    runner.sample(num_episodes=3)
    with pytest.raises(RuntimeError, match="same exams would be taken again"):
        runner.sample(num_episodes=3)
    runner = stock_runner(replay=True)
    first, second = (runner.sample(num_episodes=3)[0].get_observations()["observations"] for _ in range(2))
    assert np.array_equal(first[0], second[0])


def test_named_exams_may_come_again() -> None:
    env = create({"spec": SPEC, "num_envs": 2})
    for _ in range(2):
        env.reset(seed=1, options={"exam_ids": np.array([5, 6])})


def test_same_step_is_refused() -> None:
    with pytest.raises(ValueError, match="NEXT_STEP"):
        create({"spec": SPEC, "num_envs": 2, "autoreset_mode": AutoresetMode.SAME_STEP})


def test_several_runners_without_vector_mode_are_refused() -> None:
    config = {"spec": SPEC}
    with pytest.raises(ValueError, match="same exams"):
        create(EnvContext(config, worker_index=1, num_workers=2))
    create(EnvContext(config, worker_index=1, num_workers=1))


@pytest.mark.parametrize("config", [{}, {"spec": "signal"}])
def test_a_specification_is_needed(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="ExamSpec"):
        spec_of(config)
