"""The native vector environment as a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from roi_env.envs.vector import ROIReasoningVectorEnv


class NativeVecEnv(VecEnv):
    """A :class:`~roi_env.envs.vector.ROIReasoningVectorEnv` for SB3: what ``DummyVecEnv`` of single environments returns,
    without its loop over them.

    Infos are those of the single environment (``action_mask``, ``tokens``, ``correct``, ``overspent``; at the end of an
    exam ``score`` and ``spent``) with what SB3 adds (``TimeLimit.truncated``, always False; ``terminal_observation``)
    and what its ``Monitor`` adds (``episode``: ``r`` return, ``l`` length, ``t`` seconds since this object was made): a
    ``VecMonitor`` around it would write the same once more. Every call returns new dictionaries.

    Differences from ``DummyVecEnv``: ``seed(s)`` gives every sub-environment the identity's seed ``s`` (they take
    different exams of it; SB3's ``s + i`` would be ``num_envs`` identities); attributes belong to all sub-environments
    together; only ``action_masks`` and ``render`` can be called through ``env_method``.

    :param env: autoresets by SAME_STEP, returns copies (``copy=True``, its default).
    :param reward_scale: factor of the rewards that ``step`` returns (not of ``episode``'s ``r``).
    :raises ValueError: for another autoreset mode.
    """

    def __init__(self, env: ROIReasoningVectorEnv, reward_scale: float = 1.0) -> None:
        mode = env.metadata["autoreset_mode"]
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"SB3 needs an environment that resets in the step that ends an exam, this one has autoreset_mode={mode}: "
                "make it with ROIReasoningVectorEnv(num_envs, autoreset_mode='SAME_STEP', ...)"
            )
        self.env = env
        self.reward_scale = reward_scale
        self._methods: dict[str, Callable[[], Any]] = {
            "action_masks": env.action_masks,
            "render": self._frames,
        }
        self._seed: int | None = None
        self._actions: npt.NDArray[np.int64] | None = None
        self._start = time.time()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> npt.NDArray[np.float32]:
        """Start an exam everywhere, with the seed and options given since the last reset; (num_envs, size) float32.

        :raises ValueError: for options that only some sub-environments have, or that the environment refuses.
        """
        names = set(self._options[0])
        if any(set(options) != names for options in self._options):
            raise ValueError("all sub-environments must get the same reset options: one native environment runs them")
        options = {name: np.array([options[name] for options in self._options]) for name in names}
        observations, infos = self.env.reset(seed=self._seed, options=options)
        self._seed = None
        self._reset_seeds()
        self._reset_options()
        self._actions = None
        self.reset_infos = [{"action_mask": mask} for mask in infos["action_mask"]]
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Take note of the actions, (num_envs,) integers."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step.

        :returns: observations (num_envs, size) float32, rewards (num_envs,) float32, dones (num_envs,) bool, infos.
        :raises RuntimeError: without a ``step_async`` before.
        """
        if self._actions is None:
            raise RuntimeError("step_wait() without actions: call step_async(actions) first")
        observations, rewards, dones, _, infos = self.env.step(self._actions)
        self._actions = None
        rows: list[dict[str, Any]] = [
            {
                "action_mask": mask,
                "tokens": tokens,
                "correct": correct,
                "overspent": overspent,
                "TimeLimit.truncated": False,
            }
            for mask, tokens, correct, overspent in zip(
                infos["action_mask"],
                infos["tokens"].tolist(),
                infos["correct"].tolist(),
                infos["overspent"].tolist(),
                strict=True,
            )
        ]
        if "final_info" in infos:
            episode, masks, last = self.env.episodes, infos["final_info"]["action_mask"], infos["final_obs"]
            now = round(time.time() - self._start, 6)
            for i in np.flatnonzero(dones).tolist():
                row = rows[i]
                row["action_mask"] = masks[i]
                row["score"] = float(infos["score"][i])
                row["spent"] = int(infos["spent"][i])
                row["terminal_observation"] = last[i]
                row["episode"] = {"r": float(episode["r"][i]), "l": int(episode["l"][i]), "t": now}
        return observations, (rewards * self.reward_scale).astype(np.float32), dones, rows

    def close(self) -> None:
        """Close the native environment."""
        self.env.close()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Set the identity's seed of the exams from the next reset on.

        :param seed: None draws one from NumPy's global generator, as SB3 does.
        :returns: the seed, once for every sub-environment.
        """
        if seed is None:
            seed = int(np.random.randint(0, np.iinfo(np.uint32).max, dtype=np.uint32))  # noqa: NPY002 - SB3's rule
        self._seed = seed
        self._seeds = [seed] * self.num_envs
        return self._seeds

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute, once for every sub-environment asked for; spaces are those of one sub-environment.

        :raises AttributeError: where a sub-environment has no such attribute or method.
        """
        chosen = self._chosen(indices)
        if attr_name in self._methods:
            return [partial(self._call, attr_name, i) for i in chosen]
        if attr_name in ("observation_space", "action_space"):
            attr_name = f"single_{attr_name}"
        value = getattr(self.env, attr_name)
        if callable(value):
            raise AttributeError(f"{attr_name!r} is a method of the whole batch, not of a sub-environment")
        return [value] * len(chosen)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the native environment.

        :raises ValueError: for some sub-environments only: they share their attributes.
        """
        if set(self._chosen(indices)) != set(range(self.num_envs)):
            raise ValueError(f"attribute {attr_name!r} belongs to all sub-environments: set it without indices")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call ``action_masks`` ((K + 1,) bool each) or ``render``.

        :raises AttributeError: for another method.
        """
        if method_name not in self._methods:
            raise AttributeError(
                f"sub-environments of one native environment have the methods {sorted(self._methods)}, not {method_name!r}"
            )
        if method_args or method_kwargs:
            raise TypeError(f"{method_name}() takes no arguments")
        values = self._methods[method_name]()
        return list(values) if indices is None else [values[i] for i in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether sub-environments do what a wrapper does: True for ``Monitor``, whose records are in the infos."""
        return [issubclass(Monitor, wrapper_class)] * len(self._chosen(indices))

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """One (H, W, 3) frame a sub-environment; None each unless ``render_mode`` is "rgb_array"."""
        return list(self._frames()) if self.render_mode == "rgb_array" else [None] * self.num_envs

    def _frames(self) -> Sequence[Any]:
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else frames

    def _call(self, method_name: str, i: int) -> Any:
        return self._methods[method_name]()[i]

    def _chosen(self, indices: VecEnvIndices) -> list[int]:
        return list(self._get_indices(indices))
