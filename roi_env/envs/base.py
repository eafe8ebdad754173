"""What environments of one exam at a time share: which exam comes next, what it shows, legal actions, pictures."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from roi_env.envs.rendering import RENDER_FPS, Decision, Scene, render_ansi, render_rgb
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch, as_integers, check_options, check_seed, draw_exams, exam_numbers
from roi_env.exams.observation import observation_layout, observations_of
from roi_env.exams.rewards import SCORE, reward_of
from roi_env.sources.source import NOT_OFFERED

_BLOCK = 256
"""Most exams that are drawn at a time."""


class ExamEnv(gym.Env[npt.NDArray[np.float32], np.int64]):
    """An exam under way; what an attempt costs and whether it is right is up to ``step`` of the subclass."""

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": RENDER_FPS}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, spec: ExamSpec, render_mode: str | None) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}")
        self.exam_spec = spec
        self.render_mode = render_mode
        self.observation_layout = observation_layout(spec)
        self.observation_space = self.observation_layout.space()
        self.action_space = gym.spaces.Discrete(spec.num_tiers + 1)
        # Of every group, then of the end: tokens from which on more actions are legal, and the mask from each on.
        least = [[0, *costs] for costs in [*spec.min_cost.tolist(), [NOT_OFFERED] * spec.num_tiers]]
        self._thresholds = [sorted(set(costs)) for costs in least]
        self._masks = [
            [np.array([cost <= tokens for cost in costs], np.int8) for tokens in sorted(set(costs))] for costs in least
        ]
        self._group_weight: list[float] = spec.source.group_weight.tolist()
        self._num_tasks, self._num_tiers, self._per_token = spec.num_tasks, spec.num_tiers, 1.0 / spec.budget
        self._plain_score = spec.reward.kind == SCORE
        self._shows_feedback = spec.feedback == "cost+correct"
        self._seed: int | None = None
        self._groups: list[int] = []  # of the tasks, then of the end
        self._over = True
        self._scene: Scene | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start the next exam.

        :param seed: identity's seed in ``[0, 2**64)``; exams count from 0 again. Without one the next exam follows (or,
            never seeded, a seed is drawn from entropy).
        :param options: ``exam_ids`` and ``replicates``: one integer in ``[0, 2**62)`` each.
        :raises ValueError: for a bad seed or option.
        """
        if seed is not None or self._seed is None:
            if seed is not None:
                seed = check_seed(seed)
            super().reset(seed=seed)
            self._seed = int(self.np_random.integers(2**63)) if seed is None else seed
            self._go_to(0, 0)
        if options:
            check_options(options)
            exam_id, replicate = self._exam_id, self._replicate
            if "exam_ids" in options:
                exam_id, replicate = int(exam_numbers("exam_ids", options["exam_ids"], 1)[0]), 0
            if "replicates" in options:
                replicate = int(exam_numbers("replicates", options["replicates"], 1)[0])
            self._go_to(exam_id, replicate)
        self._begin()
        self._position, self._remaining, self._score = 0, self.exam_spec.budget, 0.0
        self._last = (0, 0, False)
        self._over = False
        if self.render_mode is not None:
            self._scene = Scene(self.exam_spec, tuple(self._groups[:-1]), ())
        return self._observe(), {"action_mask": self._mask()}

    def _go_to(self, exam_id: int, replicate: int) -> None:
        """Take this exam next, and its successors after it."""
        self._exam_id, self._replicate = exam_id, replicate
        self._exam = self._drawn = 0

    def _begin(self) -> None:
        """Take the next exam.

        A compiled call costs more than an exam, so they are drawn in blocks, which double as long as exams follow each
        other: who names every exam does not pay for those never taken.
        """
        self._exam += 1  # among those drawn
        if self._exam >= self._drawn:
            size = min(max(1, 2 * self._drawn), _BLOCK)
            self._drawn = 0  # should drawing be interrupted
            self._draw(np.arange(self._exam_id, self._exam_id + size))
            self._exam, self._drawn = 0, size
        self._exam_id += 1
        self._groups = [*self._exams.groups[self._exam].tolist(), self.exam_spec.source.num_groups]

    def _draw(self, exam_ids: npt.NDArray[np.int64]) -> None:
        """Draw exams."""
        assert self._seed is not None
        self._exams: ExamBatch = draw_exams(self.exam_spec, self._seed, exam_ids, self._replicate)
        self._shown = observations_of(self._exams.groups, self.exam_spec)

    def _number_of(self, action: Any) -> int:
        """The number that an action is: an integer of Python or NumPy, or an array of one integer without dimensions.

        :raises ValueError: for anything else (1.0, True and "1" too) and out of range.
        :raises gymnasium.error.ResetNeeded: where no action can be taken.
        """
        if self._over:
            raise gym.error.ResetNeeded("the exam is over (or has not begun): call reset() before step()")
        if type(action) is not int and type(action) is not np.int64:
            number = None if isinstance(action, (list, tuple)) else as_integers(action)
            if number is None or number.ndim > 0:
                raise ValueError(
                    f"action must be an integer in 0..{self._num_tiers}, got {type(action).__name__} {action!r}"
                )
        if not 0 <= action <= self._num_tiers:
            raise ValueError(f"action must lie in 0..{self._num_tiers}, got {action!r}")
        return int(action)

    def _reward(self, choice: int, cost: int, paid: int, right: bool, overspent: bool) -> float:
        """The reward of a decision on the task under way; ``cost`` as asked for, ``paid`` as cut at the budget."""
        if self._plain_score:
            return self._weight if right else 0.0
        spec, reward = self.exam_spec, self.exam_spec.reward
        level = int(np.searchsorted(spec.source.level_edges, cost - spec.decision_cost))
        return float(
            reward_of(
                reward.kind, reward.coefficient, choice, right, overspent, level, self._weight, paid, spec.budget,
                self._solvable(),
            )
        )  # fmt: skip

    def _solvable(self) -> bool:
        """Whether some attempt at the task under way would be right within the remaining budget, where that is known."""
        return False

    @property
    def _weight(self) -> float:
        """What a right answer to the task under way is worth."""
        return self._group_weight[self._groups[self._position]]

    def _move_on(self, choice: int, paid: int, right: bool, overspent: bool, terminated: bool) -> dict[str, Any]:
        """Go to the next task, or to the end, and return what is told of the decision."""
        if right:
            self._score += self._weight
        self._position += 1
        self._remaining -= paid
        self._last = (choice, paid, right)
        self._over = terminated
        if self._scene is not None:
            self._scene = self._scene.after(Decision(choice, paid, right, overspent))
        info = {"action_mask": self._mask(), "tokens": paid, "correct": right, "overspent": overspent}
        if terminated:
            info |= {"score": self._score, "spent": self.exam_spec.budget - self._remaining}
        return info

    def _observe(self) -> npt.NDArray[np.float32]:
        """What is shown now: only the budget and the last decision depend on what was done."""
        observation = self._shown[self._exam, self._position].copy()
        observation[0] = self._remaining * self._per_token
        if self._shows_feedback:
            action, tokens, correct = self._last
            observation[2:5] = action / self._num_tiers, tokens * self._per_token, correct
        return observation

    def _mask(self) -> npt.NDArray[np.int8]:
        group = self._groups[self._position]
        return self._masks[group][bisect_right(self._thresholds[group], self._remaining) - 1].copy()

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """(K + 1,) bool: legal actions now (sb3-contrib's protocol)."""
        if not self._groups:
            raise gym.error.ResetNeeded("call reset() before action_masks()")
        return self._mask().astype(bool)

    def render(self) -> Any:
        """The exam so far: text (``ansi``) or a (360, 720, 3) uint8 frame (``rgb_array``)."""
        if self.render_mode is None:
            gym.logger.warn("render() called without a render_mode; pass render_mode='ansi' or 'rgb_array' to gym.make")
            return None
        if self._scene is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        return render_ansi(self._scene) if self.render_mode == "ansi" else render_rgb(self._scene)
