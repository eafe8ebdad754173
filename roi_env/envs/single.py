"""The single environment: ``gym.make("ROIReasoning-v0")``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from roi_env.envs.base import ExamEnv
from roi_env.exams.config import Beliefs, Enforcement, ExamSpec, Feedback, Order, exam_spec
from roi_env.exams.rewards import Reward
from roi_env.exams.rules import transition
from roi_env.sources.outcome_tables import OutcomeTable, Split
from roi_env.sources.source import Coupling, Source


class ROIReasoningEnv(ExamEnv):
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
    beliefs="published", reward="score", feedback="cost", coupling=None, tiers=None, decision_cost=None,
    enforcement="budget", table=None, render_mode=None)`

    * `family`: a name (known, signal, heavy, cap, latent, paper-synthetic, recorded, tinylm, math, paper), a `roi_env.sources.source.Source`, or a complete
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
    * `decision_cost`: tokens every action costs, skip included (default: the table's, else 0).
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
    | `ROIReasoning-Math-v0` | recorded outcomes of Qwen2.5-Coder-0.5B-Instruct on GSM8K, MATH-500 and AIME 2024, five tiers; the group is the data set | `family="math"` |
    | `ROIReasoning-Paper-v0` | the paper's exams: one task each of GSM8K, MATH and AIME, recorded from Qwen2.5-Coder-1.5B-Instruct; its three levels and refusal | `family="paper"`, `num_tasks=3`, `budget=1024`, `order="easy_first"` |

    All show the preview and publish beliefs by default.

    ## References
    Zhao, Qi and Sun, "ROI-Reasoning", arXiv 2601.03822. Dean, Goemans and Vondrak, "Approximating the Stochastic
    Knapsack Problem", Math. Oper. Res. 33(4), 2008.

    ## Version History
    * v0: initial version.
    """

    def __init__(
        self,
        family: str | Source | ExamSpec = "signal",
        *,
        num_tasks: int | None = None,
        budget: int | float | str = 0.3,
        order: Order = "random",
        preview: bool = True,
        beliefs: Beliefs = "published",
        reward: str | Reward = "score",
        feedback: Feedback = "cost",
        coupling: Coupling | None = None,
        tiers: Sequence[str] | None = None,
        decision_cost: int | None = None,
        enforcement: Enforcement = "budget",
        table: str | os.PathLike[str] | OutcomeTable | None = None,
        menu: str | None = None,
        datasets: Sequence[str] | None = None,
        split: Split | None = None,
        group_by: str | None = None,
        missing: Literal["drop", "mask"] | None = None,
        render_mode: str | None = None,
    ) -> None:
        """See the class docstring.

        :raises ValueError: for arguments out of range.
        """
        spec = exam_spec(
            family,
            num_tasks=num_tasks,
            budget=budget,
            order=order,
            preview=preview,
            beliefs=beliefs,
            reward=reward,
            feedback=feedback,
            coupling=coupling,
            tiers=tiers,
            decision_cost=decision_cost,
            enforcement=enforcement,
            table=table,
            menu=menu,
            datasets=datasets,
            split=split,
            group_by=group_by,
            missing=missing,
        )
        super().__init__(spec, render_mode)

    def _draw(self, exam_ids: npt.NDArray[np.int64]) -> None:
        """Draw exams with the outcomes of all their actions: (E, N, K + 1) costs in tokens, and whether they are right."""
        super()._draw(exam_ids)
        tokens, correct = self._exams.outcomes()
        skip_first = ((0, 0), (0, 0), (1, 0))  # action 0: no tokens, nothing right
        self._cost = np.pad(tokens.astype(np.int64), skip_first) + self.exam_spec.decision_cost
        self._correct = np.pad(correct, skip_first)

    def step(self, action: np.int64 | int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one action in ``0..K``.

        :raises ValueError: for an action that is no integer in ``0..K``.
        :raises gymnasium.error.ResetNeeded: before a reset or after the end of an exam.
        """
        choice = self._number_of(action)
        outcome = self._exam, self._position, choice
        cost, correct = self._cost.item(outcome), self._correct.item(outcome)
        paid, right, overspent, terminated = transition(cost, correct, self._remaining, self._position, self._num_tasks)
        reward = self._reward(choice, cost, paid, right, overspent)
        info = self._move_on(choice, paid, right, overspent, terminated)
        return self._observe(), reward, terminated, False, info

    def _solvable(self) -> bool:
        right, cost = self._correct[self._exam, self._position], self._cost[self._exam, self._position]
        return bool((right & (cost <= self._remaining)).any())
