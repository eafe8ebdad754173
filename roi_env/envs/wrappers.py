"""The action mask inside the observation: the protocol of RLlib's masked modules."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

_Dict = dict[str, npt.NDArray[np.float32]]


def _dict_space(env: Any, observation: gym.Space, actions: gym.Space) -> gym.spaces.Dict:
    if not isinstance(observation, gym.spaces.Box) or not isinstance(actions, gym.spaces.Discrete):
        raise ValueError(f"{env} must have a Box observation and a Discrete action space, like ROIReasoning's")
    mask = gym.spaces.Box(0.0, 1.0, (int(actions.n),), np.float32)
    return gym.spaces.Dict({"observations": observation, "action_mask": mask})


class ActionMaskObservation(
    gym.Wrapper[_Dict, np.int64, npt.NDArray[np.float32], np.int64], gym.utils.RecordConstructorArgs
):
    """Turn the flat observation into ``{"observations": float32, "action_mask": float32 of 0 and 1}``."""

    def __init__(self, env: gym.Env[npt.NDArray[np.float32], np.int64]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = _dict_space(env, env.observation_space, env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[_Dict, dict[str, Any]]:
        """See :meth:`gymnasium.Env.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return _with_mask(observation, info), info

    def step(self, action: np.int64) -> tuple[_Dict, Any, bool, bool, dict[str, Any]]:
        """See :meth:`gymnasium.Env.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return _with_mask(observation, info), reward, terminated, truncated, info


class VectorActionMaskObservation(VectorWrapper, gym.utils.RecordConstructorArgs):
    """The same for the native vector environment, in either autoreset mode.

    Its ``spec`` is that of the environment inside: Gymnasium's ``make_vec`` knows no wrappers.
    """

    def __init__(self, env: VectorEnv) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.single_observation_space = _dict_space(env, env.single_observation_space, env.single_action_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See :meth:`gymnasium.vector.VectorEnv.reset`."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return _with_mask(observations, infos), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See :meth:`gymnasium.vector.VectorEnv.step`."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            infos["final_obs"] = _with_mask(infos["final_obs"], infos["final_info"])
        return _with_mask(observations, infos), rewards, terminated, truncated, infos


def _with_mask(observation: npt.NDArray[np.float32], info: dict[str, Any]) -> _Dict:
    return {"observations": observation, "action_mask": info["action_mask"].astype(np.float32)}
