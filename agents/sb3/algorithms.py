"""PPO, A2C, DQN and MaskablePPO of Stable-Baselines3 as agents.

All train on the native vector environment with gamma = 1 (exams are finite). Only MaskablePPO sees the masks in
training; for the others an illegal action is an action like any other: it overspends, earns nothing and ends the exam, from
which they learn to avoid it. When they act, all four choose among legal actions: probabilities are renormalised over
them, and DQN takes the legal action of highest value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.dqn.policies import DQNPolicy

from agents.base import Practice, Problem
from agents.neural import NeuralAgent, Report, kind_of
from agents.parameters import Count, Natural, NonNegative, Positive, Range, Share
from agents.sb3.training import learn, own_randomness
from agents.sb3.vec_env import NativeVecEnv
from roi_env.envs.vector import ROIReasoningVectorEnv
from roi_env.exams.config import ExamSpec


def reward_scale(problem: Problem) -> float:
    """1 / sqrt(N E[w^2]), w the weight of a published task: makes exams of all families alike for a value network.

    A score is a sum of N answers worth 0 or w: however they turn out, its standard deviation is about sqrt(N E[w^2]) / 2 at
    most. So scaled, returns differ by half a unit between exams whatever the number of tasks and the weights (heavy has
    weights up to 8); learning rates, clipping of gradients and DQN's Huber loss then mean the same everywhere. A
    constant: unlike a running normalisation it leaves the objective and the exact values as they are.
    """
    squared = float((problem.group_probability * problem.group_weight**2).sum(1).mean())
    return float((problem.num_tasks * squared) ** -0.5)


def training_env(spec: ExamSpec, num_envs: int, problem: Problem) -> NativeVecEnv:
    """The environment that agents train in; rewards scaled by :func:`reward_scale`."""
    return NativeVecEnv(ROIReasoningVectorEnv(num_envs, autoreset_mode="SAME_STEP", family=spec), reward_scale(problem))


SB3_NAMES = {
    "epochs": "n_epochs",
    "clip": "clip_range",
    "entropy": "ent_coef",
    "vf": "vf_coef",
    "lambda_": "gae_lambda",
}
"""What SB3 calls the parameters that have the same name in every agent of this project."""


@dataclass(frozen=True, kw_only=True)
class SB3Settings:
    """Parameters that the four have in common; all others are arguments of the SB3 algorithm.

    :param steps: environment steps (decisions) of training.
    :param num_envs: environments stepped together.
    :param width: units of a hidden layer.
    :param layers: hidden layers of rectified linear units; actor and critic share none.
    :param lr: of the optimiser (Adam; A2C: RMSprop), falling linearly to zero at the last step.
    """

    steps: Count = 300_000
    num_envs: Count
    width: Count = 128
    layers: Count = 2
    lr: Positive


class SB3Agent(NeuralAgent):
    """What the four have in common."""

    algorithm: ClassVar[Callable[..., BaseAlgorithm]]
    policy_class: ClassVar[type[BasePolicy]]
    earlier_params: ClassVar[dict[str, str]] = {sb3: name for name, sb3 in SB3_NAMES.items()} | {
        "learning_rate": "lr",
        "depth": "layers",
    }
    training_only = ("mlp_extractor.value_net.", "value_net.", "q_net_target.")

    def __init__(self, problem: Problem, settings: Any = None) -> None:
        super().__init__(problem, settings)
        with own_randomness():
            torch.manual_seed(0)  # untrained agents are all alike
            self.policy: BasePolicy = self.policy_class(
                gym.spaces.Box(-np.inf, np.inf, (problem.observation_size,), np.float32),
                gym.spaces.Discrete(problem.num_tiers + 1),
                lambda _: self.settings.lr,
                **self._policy_arguments(),
            )

    def _policy_arguments(self) -> dict[str, Any]:
        return {"net_arch": [self.settings.width] * self.settings.layers, "activation_fn": torch.nn.ReLU}

    def network(self) -> torch.nn.Module:
        """SB3's policy: actor and critic, or value network and its target."""
        return self.policy

    def preferences(self, observations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The policy's probabilities, renormalised over the legal actions."""
        assert isinstance(self.policy, ActorCriticPolicy | MaskableActorCriticPolicy)
        distribution = self.policy.get_distribution(observations)
        assert isinstance(distribution, CategoricalDistribution | MaskableCategoricalDistribution)
        logits = distribution.distribution.logits
        return torch.softmax(logits.masked_fill(~mask, -torch.inf), 1)

    def train(
        self, practice: Practice, seed: int, report: Report | None = None, checkpoint: str | Path | None = None
    ) -> None:
        """Train on exams ``0, 1, ...`` of ``practice.seed``; the same seed gives the same weights, bit for bit.

        :param seed: of initial weights, exploration and minibatches.
        :param report: called between updates, about 50 times, and at the end.
        :param checkpoint: file to save to with every report, and to continue from where it exists. A continued run begins
            new exams where it was stopped, so its weights are not those of an uninterrupted run.
        :raises ValueError: for a checkpoint of another run.
        """
        env = training_env(practice.spec, self.settings.num_envs, self.problem)
        own = {field.name for field in fields(SB3Settings)} | {"greedy"}
        hyper = {SB3_NAMES.get(name, name): value for name, value in self.params().items() if name not in own}
        header = {
            "agent": self.name,
            # A run may be made longer.
            "params": {name: value for name, value in self.params().items() if name not in ("steps", "greedy")},
            "seed": seed,
            "exams": practice.seed,
            "kind": kind_of(practice.spec),
        }
        with own_randomness():
            model = self.algorithm(
                self.policy_class,
                env,
                learning_rate=LinearSchedule(self.settings.lr, 0.0, 1.0),
                gamma=1.0,
                policy_kwargs=self._policy_arguments(),
                device="cpu",
                seed=seed % 2**32,
                **hyper,
            )
            self.policy = model.policy
            learn(model, env, practice.seed, self.settings.steps, report, checkpoint, header)
        env.close()


@dataclass(frozen=True, kw_only=True)
class SB3PPOSettings(SB3Settings):
    """Parameters of :class:`SB3PPO` and :class:`SB3MaskablePPO`.

    :param greedy: see :class:`agents.neural.NeuralAgent`.
    :param n_steps: steps of every environment between updates.
    :param batch_size: of minibatches; must divide ``n_steps * num_envs``.
    :param epochs: passes over a rollout.
    :param lambda_: of generalised advantage estimation.
    :param clip: of the probability ratio.
    :param entropy: weight of the entropy bonus.
    :param vf: weight of the value loss.
    :param max_grad_norm: gradients are cut to this norm.
    """

    num_envs: Count = 256
    lr: Positive = 3e-3
    greedy: bool = True
    n_steps: Count = 20
    batch_size: Annotated[int, Range(2)] = 1280
    epochs: Count = 10
    lambda_: Share = 0.7
    clip: Positive = 0.2
    entropy: NonNegative = 0.01
    vf: NonNegative = 0.5
    max_grad_norm: Positive = 0.5

    def __post_init__(self) -> None:
        if (rollout := self.n_steps * self.num_envs) % self.batch_size:
            raise ValueError(f"batch_size must divide n_steps * num_envs = {rollout}, got {self.batch_size}")


class SB3PPO(SB3Agent):
    """Proximal policy optimisation (Schulman et al. 2017).

    The right action is often better than the next by a few hundredths of an answer, against returns that differ by whole
    answers: hence many environments, large minibatches and a short horizon of advantages.
    """

    settings: SB3PPOSettings = SB3PPOSettings()
    name: ClassVar[str] = "sb3-ppo"
    algorithm: ClassVar[Callable[..., BaseAlgorithm]] = sb3.PPO
    policy_class: ClassVar[type[BasePolicy]] = ActorCriticPolicy
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-3, 2e-3, 3e-3, 5e-3),
        "entropy": (0.003, 0.01, 0.03),
        "lambda_": (0.3, 0.5, 0.7, 0.95),
        "epochs": (5, 10),
    }


class SB3MaskablePPO(SB3PPO):
    """PPO that never sees an illegal action (Huang and Ontañón 2022): masked in training as well."""

    name: ClassVar[str] = "sb3-maskable-ppo"
    algorithm = MaskablePPO
    policy_class = MaskableActorCriticPolicy


@dataclass(frozen=True, kw_only=True)
class SB3A2CSettings(SB3Settings):
    """Parameters of :class:`SB3A2C`; those not named in :class:`SB3Settings` as in :class:`SB3PPOSettings`."""

    num_envs: Count = 64
    lr: Positive = 2e-3
    greedy: bool = True
    n_steps: Count = 5
    lambda_: Share = 0.8
    entropy: NonNegative = 0.01
    vf: NonNegative = 0.5
    max_grad_norm: Positive = 0.5


class SB3A2C(SB3Agent):
    """Advantage actor-critic (Mnih et al. 2016), one update per rollout, with RMSprop."""

    settings: SB3A2CSettings = SB3A2CSettings()
    name: ClassVar[str] = "sb3-a2c"
    algorithm = sb3.A2C
    policy_class = ActorCriticPolicy
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (5e-4, 1e-3, 2e-3, 4e-3),
        "entropy": (0.003, 0.01, 0.03),
        "lambda_": (0.5, 0.8, 0.95),
        "n_steps": (2, 5, 10),
        "num_envs": (16, 32, 64),
    }


@dataclass(frozen=True, kw_only=True)
class SB3DQNSettings(SB3Settings):
    """Parameters of :class:`SB3DQN`.

    :param batch_size: of updates.
    :param buffer_size: transitions remembered.
    :param learning_starts: steps of random actions before the first update.
    :param train_freq: steps of every environment between updates.
    :param gradient_steps: updates then.
    :param target_update_interval: environment steps between copies of the network to its target.
    :param exploration_fraction: share of training in which the probability of a random action falls to its final value.
    :param exploration_final_eps: that value.
    :param max_grad_norm: gradients are cut to this norm.
    """

    num_envs: Count = 16
    width: Count = 64
    lr: Positive = 1e-3
    batch_size: Count = 256
    buffer_size: Count = 100_000
    learning_starts: Natural = 5_000
    train_freq: Count = 2
    gradient_steps: Count = 1
    target_update_interval: Count = 1_000
    exploration_fraction: Annotated[float, Range(0, 1, above=True)] = 0.3
    exploration_final_eps: Share = 0.05
    max_grad_norm: Positive = 10.0


class SB3DQN(SB3Agent):
    """Deep Q-learning (Mnih et al. 2015); always greedy.

    Its target takes the maximum over all actions, illegal ones included: their values are learned too (near zero).
    """

    settings: SB3DQNSettings = SB3DQNSettings()
    name: ClassVar[str] = "sb3-dqn"
    algorithm = sb3.DQN
    policy_class = DQNPolicy
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (3e-4, 1e-3, 2e-3),
        "train_freq": (1, 2, 4),
        "target_update_interval": (500, 1_000, 4_000),
        "exploration_fraction": (0.2, 0.4, 0.6),
        "exploration_final_eps": (0.02, 0.05, 0.1),
    }

    def preferences(self, observations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Action values."""
        assert isinstance(self.policy, DQNPolicy)
        return self.policy.q_net(observations)
