"""The native batched environment: arrays in, arrays out, one compiled kernel per step.

``gym.make_vec("ROIReasoning-v0", num_envs=4096, vectorization_mode="vector_entry_point")``
"""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numba import typeof

from roi_env.envs.rendering import RENDER_FPS, Decision, Scene, render_ansi, render_rgb
from roi_env.envs.vector_kernels import Final, Outputs, new_scratch, new_state, reset_all, rules_of, step_all
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import as_integers, check_options, check_seed, exam_numbers
from roi_env.exams.observation import observation_layout, observation_tables


class ROIReasoningVectorEnv(gym.vector.VectorEnv):
    """``num_envs`` exams at a time; the batched form of :class:`roi_env.envs.single.ROIReasoningEnv`.

    Episodes are bit-identical to the single environment's: sub-environment ``i`` takes exams ``i, i + num_envs, ...`` of
    the identity seed given to ``reset``.

    :param num_envs: number of sub-environments.
    :param autoreset_mode: ``AutoresetMode.NEXT_STEP`` (default; RLlib needs it) or ``SAME_STEP`` (SB3 needs it), or its
        name. Under NEXT_STEP the step after an end ignores its action, returns reward 0 and the first observation of
        the next exam.
    :param copy: True returns new arrays from every step; False reuses two sets of buffers in turn, so that what a step
        returned stays valid during the next step only.
    :param render_mode: None, "ansi" or "rgb_array" (a tuple of ``num_envs`` frames).
    :param kwargs: the arguments of the single environment.

    Infos have the keys of the single environment, each with Gymnasium's mask ``_key`` (n,) bool of the sub-environments
    that have it: ``action_mask`` (n, K+1) int8; after a step ``tokens`` (n,) int32 paid, ``correct`` and ``overspent``
    (n,) bool of the action just taken (not of one that NEXT_STEP ignored); when exams end, ``score`` (n,) float64 and
    ``spent`` (n,) int32 tokens of them. Masks may be shared and read-only. Under SAME_STEP also ``final_obs`` and
    ``final_info``: the last observation and info of the exams that ended, while ``action_mask`` is that of the next exam.
    :attr:`episodes` has their totals.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer >= 1, got {num_envs!r}")
        mode = autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else _autoreset_mode(autoreset_mode)
        if mode == AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode must be NEXT_STEP or SAME_STEP: this environment always resets by itself")
        if render_mode not in (None, "ansi", "rgb_array"):
            raise ValueError(f"render_mode must be None, 'ansi' or 'rgb_array', got {render_mode!r}")
        self.exam_spec = exam_spec(**kwargs)
        spec = self.exam_spec
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.metadata = {
            "render_modes": ["ansi", "rgb_array"],
            "render_fps": RENDER_FPS,
            "autoreset_mode": mode,
        }
        self.observation_layout = observation_layout(spec)
        self.single_observation_space = self.observation_layout.space()
        self.single_action_space = gym.spaces.Discrete(spec.num_tiers + 1)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._same_step = mode == AutoresetMode.SAME_STEP
        self._tables = spec.source.tables
        self._observation_tables = observation_tables(spec)
        self._rules = rules_of(spec)
        self._state = new_state(self.num_envs, spec)
        self._scratch = new_scratch(spec)
        self._copy = copy
        self._buffers = [self._new_buffers(), self._new_buffers()] if not copy else []
        self._turn = 0
        self._step: Callable[..., int] | None = None
        self._seed: int | None = None
        self._mask = np.ones((self.num_envs, spec.num_tiers + 1), np.int8)
        self._final = _zeros(self._new_buffers()[1])
        self._scenes: list[Scene] = []
        self._everywhere = np.ones(self.num_envs, np.bool_)  # the mask of what all have, handed out again and again
        self._everywhere.flags.writeable = False

    def _new_buffers(self) -> tuple[Outputs, Final]:
        n, size, actions = self.num_envs, self.observation_layout.size, self.exam_spec.num_tiers + 1
        out = Outputs(
            np.empty((n, size), np.float32),
            np.empty(n, np.float64),
            np.empty(n, np.bool_),
            np.empty((n, actions), np.int8),
            np.empty(n, np.int32),
            np.empty(n, np.bool_),
            np.empty(n, np.bool_),
        )
        last = (n, size) if self._same_step else (0, size)
        final = Final(
            np.empty(n, np.float64),
            np.empty(n, np.float64),
            np.empty(n, np.int32),
            np.empty(n, np.int32),
            np.empty(n, np.float64),
            np.empty(last, np.float32),
            np.empty((last[0], actions), np.int8),
        )
        return out, final

    def _next_buffers(self) -> tuple[Outputs, Final]:
        if self._copy:
            return self._new_buffers()
        self._turn ^= 1
        return self._buffers[self._turn]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an exam in every sub-environment.

        :param seed: identity's seed, the same for all sub-environments; exams count from 0 again. Without a seed the
            next exams follow (or, never seeded, a seed is drawn from entropy).
        :param options: ``exam_ids`` and ``replicates``, integers in ``[0, 2**62)``, one or (num_envs,) each; later exams of
            sub-environment ``i`` are ``exam_ids[i] + j * num_envs`` in the same replicate.
        :raises ValueError: for a bad seed or option.
        """
        if seed is not None:
            seed = check_seed(seed)
        super().reset(seed=seed)
        options = options or {}
        check_options(options)
        fresh = seed is not None or self._seed is None
        if seed is not None:
            self._seed = seed
        elif self._seed is None:
            self._seed = int(self.np_random.integers(2**63))
        state = self._state
        if "exam_ids" in options:
            state.exam_id[:] = exam_numbers("exam_ids", options["exam_ids"], self.num_envs)
        elif fresh:
            state.exam_id[:] = np.arange(self.num_envs)
        else:
            state.exam_id[:] = self.exam_ids + self.num_envs
        if "replicates" in options:
            state.replicate[:] = exam_numbers("replicates", options["replicates"], self.num_envs)
        elif fresh or "exam_ids" in options:
            state.replicate[:] = 0
        out, _ = self._next_buffers()
        reset_all(
            np.uint64(self._seed),
            time.perf_counter(),
            self._rules,
            self._tables,
            self._observation_tables,
            self._state,
            self._scratch,
            out,
            np.zeros(self.num_envs, np.int64),
        )
        self._mask = out.action_mask
        if self.render_mode is not None:
            self._scenes = [self._scene(groups) for groups in self._groups()]
        self._final = _zeros(self._final)
        return out.observations, {"action_mask": out.action_mask, "_action_mask": self._everywhere}

    def step(
        self, actions: Any
    ) -> tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.float64],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        dict[str, Any],
    ]:
        """Take one action in every sub-environment: ``actions`` (num_envs,) integers in ``0..K``.

        :raises ValueError: for a wrong shape, dtype or value.
        :raises gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._seed is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        given = as_integers(actions)
        if given is None or given.shape != (self.num_envs,):
            raise ValueError(
                f"actions must be {self.num_envs} integers in 0..{self.exam_spec.num_tiers}, got {_described(actions)}"
            )
        # One type, which the kernel was compiled for.
        actions = given if given.dtype == np.int64 and given.flags.carray else np.array(given, np.int64, order="C")
        acted = ~self._state.finished  # a finished one only begins its next exam
        before = (self._groups(), self._state.finished.copy()) if self.render_mode is not None else None
        out, final = self._next_buffers()
        arguments = (
            actions,
            np.uint64(self._seed),
            time.perf_counter(),
            self._same_step,
            self._rules,
            self._tables,
            self._observation_tables,
            self._state,
            self._scratch,
            out,
            final,
        )
        if self._step is None:
            # The kernel for these types, once and for all: looking it up by the types of fifty arrays takes Numba as
            # long as stepping 500 environments.
            self._step = step_all.compile(tuple(typeof(argument) for argument in arguments))
        ended = self._step(*arguments)
        if ended < 0:
            raise ValueError(f"actions must lie in 0..{self.exam_spec.num_tiers}, got {given.min()}..{given.max()}")
        self._mask, self._final = out.action_mask, final
        infos = {
            "action_mask": out.action_mask,
            "tokens": out.tokens,
            "correct": out.correct,
            "overspent": out.overspent,
            "_action_mask": self._everywhere,
            "_tokens": acted,
            "_correct": acted,
            "_overspent": acted,
        }
        if ended:
            done = out.terminated.copy()
            totals = {"score": final.score, "spent": final.tokens, "_score": done, "_spent": done}
            infos |= totals
            if self._same_step:
                infos["final_obs"] = final.observations
                infos["_final_obs"] = done
                infos["final_info"] = {
                    "action_mask": final.action_mask,
                    "tokens": out.tokens,
                    "correct": out.correct,
                    "overspent": out.overspent,
                    "_action_mask": done,
                    "_tokens": done,
                    "_correct": done,
                    "_overspent": done,
                    **totals,
                }
                infos["_final_info"] = done
        if before is not None:
            self._record(actions, out, *before)
        return out.observations, out.rewards, out.terminated, np.zeros(self.num_envs, np.bool_), infos

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_step": None}  # compiled code stays in its process

    @property
    def episodes(self) -> dict[str, npt.NDArray[Any]]:
        """Totals of the exams that the last step ended, (num_envs,) each, zeros elsewhere: ``r`` return, ``l`` steps,
        ``t`` seconds. Exact in both modes; Gymnasium's ``RecordEpisodeStatistics`` leaves out the first step of an
        episode that begins within a step (SAME_STEP).
        """
        return {"r": self._final.reward, "l": self._final.length, "t": self._final.seconds}

    @property
    def exam_ids(self) -> npt.NDArray[np.int64]:
        """(num_envs,) int64: the exams under way, or just ended (a copy). ``exam_ids + num_envs`` are the next ones."""
        # Of a finished environment the state is that of the next exam already.
        return self._state.exam_id - self.num_envs * self._state.finished

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """(num_envs, K + 1) bool: legal actions now (sb3-contrib's protocol)."""
        return self._mask.astype(bool)

    def _groups(self) -> npt.NDArray[np.int32]:
        """(num_envs, N) int32 published groups of the exams under way."""
        return self._state.tasks[:, :-1, 1].copy()

    def _scene(self, groups: npt.NDArray[np.int32]) -> Scene:
        return Scene(self.exam_spec, tuple(groups.tolist()), ())

    def _record(
        self,
        actions: npt.NDArray[np.int64],
        out: Outputs,
        groups: npt.NDArray[np.int32],
        finished: npt.NDArray[np.bool_],
    ) -> None:
        """Add the step to every picture. A finished exam stays on screen until the next one's first frame."""
        for i in range(self.num_envs):
            if finished[i]:
                self._scenes[i] = self._scene(self._groups()[i])
                continue
            scene = self._scene(groups[i]) if self._scenes[i].ended else self._scenes[i]
            decision = Decision(int(actions[i]), int(out.tokens[i]), bool(out.correct[i]), bool(out.overspent[i]))
            self._scenes[i] = scene.after(decision)

    def render(self) -> tuple[Any, ...] | None:
        """One frame (``ansi``: text, ``rgb_array``: uint8 HxWx3) a sub-environment."""
        if self.render_mode is None:
            gym.logger.warn("render() called without a render_mode; pass render_mode='ansi' or 'rgb_array' to make_vec")
            return None
        draw = render_ansi if self.render_mode == "ansi" else render_rgb
        return tuple(draw(scene) for scene in self._scenes)


def _zeros(final: Final) -> Final:
    return Final._make(np.zeros_like(array) for array in final)


def _described(actions: Any) -> str:
    if isinstance(actions, np.ndarray):
        return f"an array of {actions.dtype} of shape {actions.shape}"
    return f"{type(actions).__name__} {reprlib.repr(actions)}"


def _autoreset_mode(name: str) -> AutoresetMode:
    try:
        return AutoresetMode[name.upper()]
    except (KeyError, AttributeError):
        modes = [mode.name for mode in AutoresetMode]
        raise ValueError(f"autoreset_mode must be one of {modes}, got {name!r}") from None
