"""The single environment: ``gym.make("ROIReasoning-v0")``."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from roi_env.envs.rendering import RENDER_FPS, Decision, Scene, render_ansi, render_rgb
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import as_integers, check_options, check_seed, draw_exams, exam_numbers
from roi_env.exams.observation import observation_layout, observation_tables, observe, padded_features
from roi_env.exams.rewards import SCORE, reward_of
from roi_env.exams.rules import transition
from roi_env.sources.source import NOT_OFFERED


def integer_action(action: Any, num_actions: int) -> int:
    """The number that one action is: an integer of Python or NumPy, or an array of one integer without dimensions.

    :raises ValueError: for anything else, 1.0, True and "1" too.
    """
    if type(action) is np.int64:  # what spaces sample and vector environments hand on
        return int(action)
    number = None if isinstance(action, (list, tuple)) else as_integers(action)
    if number is None or number.ndim > 0:
        raise ValueError(f"action must be an integer in 0..{num_actions - 1}, got {type(action).__name__} {action!r}")
    return int(number)


class ROIReasoningEnv(gym.Env[npt.NDArray[np.float32], np.int64]):
    r"""A batch of problems, one token budget: before each problem, skip it or choose how long to think.

    ## Description
    An *exam* is N tasks in a fixed order and a budget of B tokens for all of them: the Ordered Stochastic
    Multiple-Choice Knapsack Problem of ROI-Reasoning (arXiv 2601.03822). Task i offers K reasoning *tiers*. An attempt at
    tier k costs a random number of tokens and is right or wrong at random; neither is known when the choice is made and
    no decision is revisited. The objective is the expected sum of the weights of right answers ("score").

    ## Action Space
    `Discrete(K + 1)`. With the default family K = 3:

    | Num | Action | Announces |
    |-----|--------|-----------|
    | 0   | skip: costs `decision_cost` (0), earns nothing | Level-K, the refusal |
    | k   | attempt at tier k, cheapest first | Level-(k-1) |

    `info["action_mask"]` (int8) and `action_masks()` (bool) tell the legal actions: tier k is legal while its published
    minimum cost (1 token without beliefs) fits the remaining budget and the task offers it. Skip is always legal. An illegal action
    does not raise: it plays by the rules and usually overspends.

    ## Observation Space
    `Box(float32)` of named parts; `env.unwrapped.observation_layout["success"]` is the slice of a part. Sizes for the
    defaults (N = 10, K = 3, one feature a task):

    | Part | Size | Min | Max | Meaning |
    |------|------|-----|-----|---------|
    | `remaining` | 1 | 0 | 1 | remaining tokens / B |
    | `position` | 1 | 0 | 1 | tasks behind / N |
    | `last_action`, `last_tokens`, `last_correct` | 0 (1 each with `feedback="cost+correct"`) | 0 | 1 | previous action / K, tokens paid / B, whether it was right |
    | `success` | K (0 with `beliefs="none"`) | 0 | 1 | probability of a right answer at every tier given the task's published features |
    | `cost` | K (0 with `beliefs="none"`) | 0 | depends | expected tokens / B of every tier given them |
    | `tasks` | N x F with preview, else F | depends | depends | published features of the current and all later tasks (zeros past the end) |

    Published features: `signal` (synthetic families), `weight` / 8 (heavy), one column a group (recorded, paper).
    Nothing observed, masked or returned in a non-final `info` depends on an outcome that has not been realised.

    ## Rewards
    `reward="score"`: the task's weight for a right answer within the budget, else 0. For training also `"rational"` (the
    paper's: right *and* the announced level is the level of the tokens spent), `"refusal_bonus(rho)"`,
    `"overspend_penalty(lam)"` and `"cost_shaped(lam)"`; see `roi_env.exams.rewards`. `info["score"]` of the final step is
    always the score.

    ## Starting State
    All tokens, the first task. `reset(seed=s)` sets the identity's seed: the j-th exam since is `(source, s, exam_id=j)`.
    `reset(options={"exam_ids": 7, "replicates": 2})` chooses one; `replicates` redraws outcomes, not tasks. Order, budget, preview, beliefs
    and reward change neither tasks nor outcomes.

    ## Episode End
    Always `terminated`, never `truncated`: after the last task, or when the budget is gone. An attempt that would cost
    more than what remains is cut: the remainder is spent, the answer earns nothing and the exam ends. A cost equal to
    the remainder is allowed.

    ## Information
    `action_mask`; after a step also `tokens` (paid), `correct` and `overspent` of the action just taken; on the final
    step `score` and `spent` of the exam.

    ## Arguments
    `gym.make("ROIReasoning-v0", family="signal", num_tasks=10, budget=0.3, order="random", preview=True,
    beliefs="published", reward="score", feedback="cost", coupling=None, tiers=None, decision_cost=0,
    enforcement="budget", table=None, render_mode=None)`

    * `family`: a name (known, signal, heavy, cap, latent, paper, recorded, tinylm), a `roi_env.sources.source.Source`, or a complete
      `roi_env.exams.config.ExamSpec` (then nothing else but `render_mode`).
    * `table`, `menu`, `datasets`, `split`, `group_by`, `missing`: recorded outcomes, see `roi_env.sources.recorded.recorded_source`.
    * `num_tasks`: N.
    * `budget`: int = tokens; float = fraction of N x the mean cost of the top tier; "tight" .15, "medium" .3, "ample" .6.
      `1` is one token and causes a warning, `1.0` is the whole cost of always thinking longest.
    * `order`: random, easy_first, hard_first (by a published key), given.
    * `preview`: show the features of later tasks.
    * `beliefs`: "published" or "none" (laws unknown: agents must learn them).
    * `reward`: see Rewards.
    * `feedback`: "cost" or "cost+correct" (also shows whether the last answer was right).
    * `coupling`: "independent" or "common" draws across tiers (default: the source's).
    * `tiers`: names of the tiers to offer.
    * `decision_cost`: tokens every action costs, skip included.
    * `enforcement`: "budget", or "tier_caps" to cut every attempt at its tier's cap as well.
    * `render_mode`: None, "ansi", "rgb_array" or "human".

    ## Registered ids
    | id | structure | defaults that differ |
    |----|-----------|----------------------|
    | `ROIReasoning-v0` | noisy signals, tasks independent given them | |
    | `ROIReasoning-Known-v0` | the difficulty is visible | `family="known"` |
    | `ROIReasoning-Heavy-v0` | heavy-tailed costs, visible weights 1, 2, 4, 8 | `family="heavy"` |
    | `ROIReasoning-Cap-v0` | tiers cut one latent thought, common coupling | `family="cap"` |
    | `ROIReasoning-Latent-v0` | an exam-level ability that signals do not show | `family="latent"`, `feedback="cost+correct"` |
    | `ROIReasoning-Recorded-v0` | an outcome table of real models | needs `table` |
    | `ROIReasoning-TinyLM-v0` | recorded outcomes of the small language model of this project; the group is the kind and visible size of a task | `family="tinylm"`, `num_tasks=8`, `group_by="kind"`, `decision_cost=1` |
    | `ROIReasoning-Paper-v0` | one task each of GSM8K, MATH and AIME, levels and refusal | `family="paper"`, `num_tasks=3`, `budget=1024`, `order="easy_first"` |

    All show the preview and publish beliefs by default.

    ## References
    Zhao, Qi and Sun, "ROI-Reasoning", arXiv 2601.03822. Dean, Goemans and Vondrak, "Approximating the Stochastic
    Knapsack Problem", Math. Oper. Res. 33(4), 2008.

    ## Version History
    * v0: initial version.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": RENDER_FPS}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, family: Any = "signal", *, render_mode: str | None = None, **kwargs: Any) -> None:
        """See the class docstring.

        :raises ValueError: for arguments out of range.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}")
        spec = exam_spec(family, **kwargs)
        self.exam_spec = spec
        self.render_mode = render_mode
        self.observation_layout = observation_layout(spec)
        self.observation_space = self.observation_layout.space()
        self.action_space = gym.spaces.Discrete(spec.num_tiers + 1)
        # Up to thirty attributes Python finds them by place, beyond by name: what only a few exams need lies elsewhere.
        self._num_tasks, self._num_actions, self._budget = spec.num_tasks, spec.num_tiers + 1, spec.budget
        self._per_token = 1.0 / spec.budget
        self._row_size = self.observation_layout.size
        self._shows_feedback = spec.feedback == "cost+correct"
        self._plain_score = spec.reward.kind == SCORE
        self._weights: list[float] = spec.source.group_weight.tolist()
        self._legal = _legal_actions(spec)
        self._exams = _Exams(spec)
        self._groups: list[int] = []
        self._position = 0
        self._remaining = 0
        self._score = 0.0
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
        exams = self._exams
        if seed is not None or exams.seed is None:
            if seed is not None:
                seed = check_seed(seed)
            super().reset(seed=seed)
            exams.go_to(0, 0, int(self.np_random.integers(2**63)) if seed is None else seed)
        if options:
            check_options(options)
            exam_id, replicate = exams.following, exams.replicate
            if "exam_ids" in options:
                exam_id, replicate = int(exam_numbers("exam_ids", options["exam_ids"], 1)[0]), 0
            if "replicates" in options:
                replicate = int(exam_numbers("replicates", options["replicates"], 1)[0])
            exams.go_to(exam_id, replicate)
        self._begin()
        self._position = 0
        self._remaining = self._budget
        self._score = 0.0
        if self.render_mode is not None:
            self._scene = Scene(self.exam_spec, tuple(self._groups[:-1]), ())
        return next(self._rows), {"action_mask": next(self._mask().copies)}

    def _begin(self) -> None:
        self._groups, self._costs, self._correct, self._cells, rows = self._exams.take()
        self._rows = iter(rows)  # an iterator cuts rows faster than indices do

    def step(self, action: np.int64 | int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one action in ``0..K``.

        :raises ValueError: for an action that is no integer in ``0..K``.
        :raises gymnasium.error.ResetNeeded: before a reset or after the end of an exam.
        """
        remaining = self._remaining
        if remaining == 0:
            raise gym.error.ResetNeeded("the exam is over (or has not begun): call reset() before step()")
        position = self._position
        choice = action if type(action) is int else integer_action(action, self._num_actions)
        if not 0 <= choice < self._num_actions:
            raise ValueError(f"action must lie in 0..{self._num_actions - 1}, got {action!r}")
        at = position * self._num_actions + choice
        cost, correct = self._costs[at], self._correct[at]
        paid, right, overspent, terminated = transition(cost, correct, remaining, position, self._num_tasks)
        reward = 0.0
        if right:
            reward = self._weights[self._groups[position]]
            self._score += reward
        if not self._plain_score:
            reward = self._shaped_reward(choice, right, overspent, cost, paid)
        self._position = position = position + 1
        remaining -= paid
        # Every row is handed out once and written once: no copy is needed.
        observation = next(self._rows)
        first = position * self._row_size
        self._cells[first] = remaining * self._per_token
        if self._shows_feedback:
            self._cells[first + 2] = choice / (self._num_actions - 1)
            self._cells[first + 3] = paid * self._per_token
            self._cells[first + 4] = right
        unhindered, mask, thresholds, masks = self._legal[self._groups[position]]
        if remaining < unhindered:
            mask = masks[bisect_right(thresholds, remaining)]
        info = {"action_mask": next(mask.copies), "tokens": paid, "correct": right, "overspent": overspent}
        if terminated:
            self._remaining = 0
            info["score"] = self._score
            info["spent"] = self._budget - remaining
        else:
            self._remaining = remaining
        if self._scene is not None:
            self._scene = self._scene.after(Decision(choice, paid, right, overspent))
        return observation, reward, terminated, False, info

    def _shaped_reward(self, action: int, right: bool, overspent: bool, cost: int, paid: int) -> float:
        spec, position, remaining = self.exam_spec, self._position, self._remaining
        tiers = range(position * self._num_actions + 1, (position + 1) * self._num_actions)
        return float(
            reward_of(
                spec.reward.kind,
                spec.reward.coefficient,
                action,
                right,
                overspent,
                bisect_left(spec.source.level_edges, cost - spec.decision_cost),
                self._weights[self._groups[position]],
                paid,
                self._budget,
                any(self._costs[at] <= remaining and self._correct[at] for at in tiers),
            )
        )

    def _mask(self) -> _Mask:
        _, _, thresholds, masks = self._legal[self._groups[self._position]]
        return masks[bisect_right(thresholds, self._remaining)]

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """(K + 1,) bool: legal actions now (sb3-contrib's protocol)."""
        if not self._groups:
            raise gym.error.ResetNeeded("call reset() before action_masks()")
        return self._mask().legal.astype(bool)

    def __getstate__(self) -> dict[str, Any]:
        views = ("_costs", "_correct", "_cells", "_rows")
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._groups:
            # The name of the exam under way says all of it.
            self._exams.go_to(self._exams.following - 1, self._exams.replicate)
            self._begin()
            for _ in range(self._position + 1):
                next(self._rows)

    def render(self) -> Any:
        """The exam so far: text (``ansi``) or a (360, 720, 3) uint8 frame (``rgb_array``)."""
        if self.render_mode is None:
            gym.logger.warn("render() called without a render_mode; pass render_mode='ansi' or 'rgb_array' to gym.make")
            return None
        if self._scene is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        return render_ansi(self._scene) if self.render_mode == "ansi" else render_rgb(self._scene)


_Exam = tuple[list[int], Any, Any, Any, npt.NDArray[np.float32]]
"""Of one exam: groups of its tasks, then of its end; cost and correctness of every action, task by task, as plain
memory; observations as plain memory and as rows. Plain memory reads and writes single numbers faster than NumPy."""


class _Exams:
    """The coming exams of one seed and replicate.

    They are drawn in blocks: one compiled call per block costs less than one per exam. A block doubles up to 256 exams,
    so that a caller who chooses every exam does not pay for those never taken.
    """

    def __init__(self, spec: ExamSpec) -> None:
        self.seed: int | None = None
        self.following = 0
        """Identity of the exam taken next."""
        self.replicate = 0
        self._spec = spec
        self._tables = observation_tables(spec)
        self._row_size = observation_layout(spec).size
        self._size = 1
        self._block: Iterator[_Exam] = iter(())

    def go_to(self, exam_id: int, replicate: int, seed: int | None = None) -> None:
        """Take ``exam_id`` next and its successors after it."""
        self.following, self.replicate = exam_id, replicate
        self.seed = self.seed if seed is None else seed
        self._size, self._block = 1, iter(())

    def take(self) -> _Exam:
        """The next exam."""
        exam = next(self._block, None)
        if exam is None:
            self._block = self._draw()
            exam = next(self._block)
        self.following += 1
        return exam

    def _draw(self) -> Iterator[_Exam]:
        """A block of exams: tasks, outcomes and observations with the budget left out."""
        assert self.seed is not None
        spec, size, steps = self._spec, self._size, self._spec.num_tasks + 1
        self._size = min(256, 2 * size)
        batch = draw_exams(spec, self.seed, np.arange(self.following, self.following + size), self.replicate)
        position = np.tile(np.arange(steps), size)
        nothing = np.zeros(len(position), np.int64)
        rows = observe(
            batch.groups,
            padded_features(size, spec),
            np.repeat(np.arange(size), steps),
            position,
            np.where(position == 0, spec.budget, 0),
            spec.budget,
            nothing,
            nothing,
            nothing.astype(np.bool_),
            self._tables,
            self._row_size,
        )
        end = np.full((size, 1), spec.source.num_groups, np.int32)
        groups = np.concatenate([batch.groups, end], 1).tolist()
        packed = np.zeros((size, spec.num_tasks, spec.num_tiers + 1), np.int64)
        packed[:, :, 1:] = batch.packed_outcomes()
        costs, correct = (packed >> 1) + spec.decision_cost, (packed & 1) == 1
        actions, cells = costs[0].size, rows.size // size
        all_costs, all_correct, all_cells = (array.reshape(-1).data for array in (costs, correct, rows))
        for e, (own, row) in enumerate(zip(groups, rows.reshape(size, steps, -1), strict=True)):
            of_exam = slice(e * actions, (e + 1) * actions)
            yield own, all_costs[of_exam], all_correct[of_exam], all_cells[e * cells : (e + 1) * cells], row

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_size": 1, "_block": iter(())}


class _Mask:
    """A mask that gives every caller an array of its own: rows of blocks cost a third of an allocation each."""

    def __init__(self, legal: tuple[int, ...]) -> None:
        self.legal = np.array(legal, np.int8)
        blocks = map(np.tile, repeat(self.legal), repeat((1024, 1)))
        self.copies: Iterator[npt.NDArray[np.int8]] = chain.from_iterable(blocks)

    def __reduce__(self) -> tuple[type[_Mask], tuple[tuple[int, ...]]]:
        return _Mask, (tuple(self.legal.tolist()),)


_Legal = tuple[int, _Mask, list[int], list[_Mask]]
"""Legal actions of one group: tokens from which on they are all that will ever be, the mask then; the numbers of tokens
where they change, in ascending order, and the masks below, between and from them on."""


def _legal_actions(spec: ExamSpec) -> list[_Legal]:
    """Legal actions of every group, then at the end of an exam, where only skip is legal."""
    known: dict[tuple[int, ...], _Mask] = {}

    def mask(min_cost: list[int], remaining: int) -> _Mask:
        legal = (1, *(int(cost <= remaining) for cost in min_cost))
        return known.setdefault(legal, _Mask(legal))

    groups = []
    for costs in [*spec.min_cost.tolist(), [NOT_OFFERED] * spec.num_tiers]:
        thresholds = sorted(set(costs) - {NOT_OFFERED})
        masks = [mask(costs, limit) for limit in (-1, *thresholds)]
        groups.append((max(thresholds, default=0), masks[-1], thresholds, masks))
    return groups
