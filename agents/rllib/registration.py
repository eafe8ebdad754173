"""The environment under RLlib: its name, and errors where RLlib would silently train on wrong data.

RLlib's own runner works with it in vector mode::

    register()
    config.environment(ENV, env_config={"spec": spec}).env_runners(gym_env_vectorize_mode="vector_entry_point")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from ray.tune.registry import register_env

from roi_env.envs.single import ROIReasoningEnv
from roi_env.envs.vector import ROIReasoningVectorEnv
from roi_env.envs.wrappers import ActionMaskObservation, VectorActionMaskObservation
from roi_env.exams.config import ExamSpec

ENV: Final = "roi-exams"
"""Name under which :func:`create` is registered."""


def register() -> None:
    """Register the environment with Ray; the creator travels to remote workers by itself."""
    register_env(ENV, create)


def spec_of(env_config: Mapping[str, Any]) -> ExamSpec:
    """The exams' specification in an ``env_config``.

    :raises ValueError: where it is missing.
    """
    spec = env_config.get("spec")
    if not isinstance(spec, ExamSpec):
        raise ValueError(
            f"env_config must be {{'spec': ExamSpec}} (see roi_env.exams.config.exam_spec), got spec={type(spec).__name__}"
        )
    return spec


def create(context: Mapping[str, Any]) -> gym.Env[Any, Any] | VectorEnv:
    """RLlib's environment creator: the native vector environment in vector mode, else one environment.

    ``context``: ``spec`` an :class:`ExamSpec`; ``replay`` (default False) allows the same exams again and again (a
    fixed evaluation set); ``autoreset_mode`` (default NEXT_STEP).

    :raises ValueError: for SAME_STEP, or several runners without vector mode.
    """
    spec = spec_of(context)
    if "num_envs" in context:
        mode = context.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        env = ROIReasoningVectorEnv(num_envs=context["num_envs"], family=spec, autoreset_mode=mode)
        return FreshExams(VectorActionMaskObservation(check_autoreset(env)), replay=context.get("replay", False))
    if getattr(context, "num_workers", 0) > 1:
        raise ValueError(
            "RLlib seeds environment i of runner w with seed + w + i, so that several runners would take the same "
            "exams: use env_runners(gym_env_vectorize_mode='vector_entry_point')"
        )
    return ActionMaskObservation(ROIReasoningEnv(family=spec))


def check_autoreset(env: VectorEnv) -> VectorEnv:
    """Return ``env`` if RLlib can sample from it.

    :raises ValueError: unless its autoreset mode is NEXT_STEP. RLlib takes any other one without a word and loses the
        first transition of every exam.
    """
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.NEXT_STEP:
        raise ValueError(f"RLlib needs autoreset_mode=NEXT_STEP, this vector environment has {mode}")
    return env


class FreshExams(VectorWrapper):
    """Refuses to begin the same exams twice.

    With ``debugging(seed=...)`` and ``batch_mode="complete_episodes"`` (or ``sample(num_episodes=...)``) RLlib resets
    with the same seed at every sample: training would see the same few exams for ever.

    :param replay: allow it.
    """

    def __init__(self, env: VectorEnv, *, replay: bool = False) -> None:
        super().__init__(env)
        self._replay = replay
        self._begun: set[int] = set()

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See :meth:`gymnasium.vector.VectorEnv.reset`.

        :raises RuntimeError: for a seed that was used before, unless exams are named by ``options``.
        """
        named = options is not None and "exam_ids" in options
        if seed is not None and not named and not self._replay:
            if seed in self._begun:
                raise RuntimeError(
                    f"this environment was reset with seed {seed} before: the same exams would be taken again. Sample "
                    "by time steps (batch_mode='truncate_episodes'), or say env_config={'replay': True} for a fixed "
                    "evaluation set"
                )
            self._begun.add(seed)
        return self.env.reset(seed=seed, options=options)
