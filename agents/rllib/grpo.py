"""GRPO as an RLlib algorithm: groups of replicates of one exam, compared with one another instead of with a critic."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from ray.rllib.evaluation.postprocessing import Postprocessing

from agents.rllib.advantages import ADVANTAGES, Advantage, advantages
from agents.rllib.algorithm import ExamAlgorithm, ExamSettings
from agents.rllib.checks import BASELINES, KL, KLS, Baseline, check_comparison
from agents.rllib.learners import GRPOTorchLearner
from agents.rllib.losses import AGGREGATIONS, RATIOS, Aggregation, Ratio
from agents.rllib.registration import spec_of
from agents.rllib.rollouts import Rollout, task_reward_scale
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import optimum_tables, oracle_values


class GRPOConfig(ExamSettings):
    """GRPO's settings; see :meth:`grpo` for what they mean."""

    critic = False

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class=algo_class or GRPO)
        self.group_size = 8
        self.advantage: Advantage = "rtg"
        self.baseline: Baseline = "group"
        self.ratio: Ratio = "token"
        self.aggregation: Aggregation = "token"
        self.standardise = True
        self.clip_param = 0.2
        self.clip_high = 0.0
        self.kl: KL = "exact"
        self.kl_coeff = 0.0

    def training(
        self,
        *,
        advantage: Advantage | None = None,
        baseline: Baseline | None = None,
        ratio: Ratio | None = None,
        aggregation: Aggregation | None = None,
        standardise: bool | None = None,
        clip_param: float | None = None,
        clip_high: float | None = None,
        kl: KL | None = None,
        kl_coeff: float | None = None,
        entropy_coeff: float | list[list[float]] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Set what is given.

        :param advantage: see :func:`agents.rllib.advantages.advantages`.
        :param baseline: what returns are compared with: the group's mean, or the exam's own exact value (score): the
            best policy's ("optimum") or the clairvoyant's of the same outcomes ("oracle"), less the iteration's mean
            shortfall from it.
        :param ratio: importance ratio of a decision or of its exam (GSPO).
        :param aggregation: see :func:`agents.rllib.losses.aggregate`.
        :param standardise: divide all advantages of an iteration by their common root mean square.
        :param clip_param: clipping range of the ratio; ``clip_high`` its upper side (0: the same).
        :param kl: estimate of the divergence from the reference.
        :param kl_coeff: its coefficient; 0: no reference.
        :param entropy_coeff: coefficient of the entropy bonus, or its schedule (RLlib's [[step, value], ...]).
        :param kwargs: see :meth:`AlgorithmConfig.training`.
        """
        super().training(**kwargs)
        given = {
            "advantage": advantage,
            "baseline": baseline,
            "ratio": ratio,
            "aggregation": aggregation,
            "standardise": standardise,
            "clip_param": clip_param,
            "clip_high": clip_high,
            "kl": kl,
            "kl_coeff": kl_coeff,
            "entropy_coeff": entropy_coeff,
        }
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)
        return self

    def get_default_learner_class(self) -> type[GRPOTorchLearner]:
        """See :meth:`AlgorithmConfig.get_default_learner_class`."""
        return GRPOTorchLearner

    def validate(self) -> None:
        """See :meth:`AlgorithmConfig.validate`."""
        super().validate()
        for name, allowed in {
            "advantage": ADVANTAGES,
            "baseline": BASELINES,
            "ratio": RATIOS,
            "aggregation": AGGREGATIONS,
            "kl": KLS,
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        check_comparison(self.advantage, self.baseline, self.ratio, self.group_size)
        spec = spec_of(self.env_config)
        if self.baseline != "group" and spec.reward.name != "score":
            raise ValueError(f"baseline {self.baseline!r} is a score, the reward is {spec.reward}")
        if self.baseline != "group" and self.budgets:
            raise ValueError(f"baseline {self.baseline!r} is known for one budget: leave budgets out")
        if self.baseline == "optimum" and spec.source.num_latent > 1:
            raise ValueError("the optimum of a latent family is not known exactly: use baseline 'group' or 'oracle'")

    def columns(self, rollout: Rollout) -> dict[str, npt.NDArray[Any]]:
        """Advantages."""
        spec = spec_of(self.env_config)
        reached, scale = rollout.reached(spec.num_tasks), task_reward_scale(spec)
        rewards = rollout.by_exam(rollout.rewards, spec.num_tasks) * scale
        known = None
        if self.baseline != "group":
            value = scale * exam_values(self.baseline, spec, self.exam_seed, rollout)
            # Nobody reaches it: what is missing on average is not an exam's fault.
            known = value + (rewards.sum(1) - value).mean()
        values = advantages(self.advantage, rewards, reached, rollout.exam_ids, known)[reached]
        if self.standardise:
            values = values / max(float(np.sqrt((values**2).mean())), 1e-4)
        return {Postprocessing.ADVANTAGES: values.astype(np.float32)}


def exam_values(
    baseline: Literal["optimum", "oracle"], spec: ExamSpec, exam_seed: int, rollout: Rollout
) -> npt.NDArray[np.float64]:
    """(E,) exact value of every exam taken: the clairvoyant's score, or what the best policy expects."""
    if baseline == "oracle":
        return oracle_values(draw_exams(spec, exam_seed, rollout.exam_ids, rollout.replicates))
    ids, inverse = np.unique(rollout.exam_ids, return_inverse=True)
    return optimum_tables(draw_exams(spec, exam_seed, ids)).value[inverse]


class GRPO(ExamAlgorithm):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) and its families."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        """See :meth:`Algorithm.get_default_config`."""
        return GRPOConfig()
