"""PPO on the exam runner: RLlib's loss, our sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ray.rllib.algorithms.ppo.ppo import PPOConfig
from ray.rllib.evaluation.postprocessing import Postprocessing

from agents.rllib import settings
from agents.rllib.algorithm import ExamAlgorithm, ExamSettings
from agents.rllib.learners import ExamPPOLearner
from agents.rllib.registration import spec_of
from agents.rllib.rollouts import Rollout, generalised_advantages, task_reward_scale


class ExamPPOConfig(ExamSettings, PPOConfig):
    """PPO's settings. Advantages are estimated on the driver and standardised over the iteration."""

    critic = True
    honoured = settings.HONOURED | settings.PPO

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class=algo_class or ExamPPO)
        self.lambda_ = 0.95
        self.use_kl_loss = False
        self.kl_coeff = 0.0
        self.clip_param = 0.2
        self.vf_loss_coeff = 0.5
        self.vf_clip_param = 1e4

    def get_default_learner_class(self) -> type[ExamPPOLearner]:
        """See :meth:`AlgorithmConfig.get_default_learner_class`."""
        return ExamPPOLearner

    def columns(self, rollout: Rollout) -> dict[str, npt.NDArray[Any]]:
        """Advantages and value targets."""
        spec = spec_of(self.env_config)
        reached = rollout.reached(spec.num_tasks)
        values = rollout.by_exam(rollout.values, spec.num_tasks)
        rewards = rollout.by_exam(rollout.rewards, spec.num_tasks) * task_reward_scale(spec)
        estimates = generalised_advantages(rewards, values, reached, self.lambda_)[reached]
        apart = (estimates - estimates.mean()) / max(estimates.std(), 1e-4)
        return {
            Postprocessing.ADVANTAGES: apart.astype(np.float32),
            Postprocessing.VALUE_TARGETS: (estimates + rollout.values).astype(np.float32),
        }


class ExamPPO(ExamAlgorithm):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347)."""

    @classmethod
    def get_default_config(cls) -> ExamPPOConfig:
        """See :meth:`Algorithm.get_default_config`."""
        return ExamPPOConfig()
