"""PPO and GRPO trained through RLlib, behind the agents' interface. Acting needs PyTorch alone, training needs Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

try:
    import torch

    from agents.neural import CHUNK, NeuralAgent, Report
    from agents.rllib.advantages import Advantage
    from agents.rllib.checks import KL, Baseline, check_comparison, check_portions
    from agents.rllib.losses import Aggregation, Ratio, masked_log_softmax
    from agents.rllib.networks import PolicyNetwork
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"RLlib's agents need more packages ({error}): pip install 'roi-reasoning[rllib]'"
    ) from error

from agents.base import DecisionView, ExamsView, Practice, Problem, Probs, State, one_hot
from agents.parameters import Count, Natural, NonNegative, Positive, Share


class RLlibAgent(NeuralAgent):
    """What PPO and GRPO share: the network, acting, training."""

    distributed = True
    training_only = ("critic.",)
    algorithm: ClassVar[Literal["ppo", "grpo"]]
    language: ClassVar[bool] = False
    """Whether a language model is the policy."""
    has_critic: ClassVar[bool]

    def __init__(self, problem: Problem, settings: Any = None) -> None:
        super().__init__(problem, settings)
        p = self.params()
        check_portions(
            p["exams"],
            p["minibatch"],
            p.get("group", 1),
            whole_groups=self.language,
            names=("exams", "minibatch", "group"),
        )
        if "advantage" in p:
            check_comparison(p["advantage"], p.get("baseline", "group"), p["ratio"], p["group"])
        # Whether there is memory is a parameter: with it actions depend on more than (exam, position, remaining).
        self.markov = p.get("memory", 0) == 0  # type: ignore[misc]
        self._network: Any = self.make_network()

    def make_network(self) -> torch.nn.Module:
        """An untrained network."""
        return PolicyNetwork(
            self.problem.observation_size,
            self.problem.num_tiers + 1,
            (self.settings.width,) * self.settings.layers,
            critic=self.has_critic,
            memory=self.settings.memory,
        )

    @classmethod
    def key(cls) -> str:
        """Name for :func:`agents.rllib.named.make_config`."""
        return f"llm-{cls.algorithm}" if cls.language else cls.algorithm

    def network(self) -> torch.nn.Module:
        """See :meth:`NeuralAgent.network`."""
        return self._network  # type: ignore[no-any-return]

    def preferences(self, observations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See :meth:`NeuralAgent.preferences`; of agents without memory."""
        logits, _, _ = self._network(observations, observations[:, :0])
        return masked_log_softmax(logits, mask).exp()

    def start(self, exams: ExamsView) -> State:
        """See :meth:`Agent.start`: the memory of every exam."""
        return None if self.markov else self._network.start(len(exams))

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """See :meth:`Agent.act`."""
        if self.markov:
            return super().act(view, state)
        probs = np.empty((len(view), view.mask.shape[1]))
        after = state.clone()
        observations, mask = torch.from_numpy(view.observations), torch.from_numpy(view.mask)
        exam = torch.from_numpy(view.exam)
        rows, before = torch.zeros(CHUNK, observations.shape[1]), self._network.start(CHUNK)
        legal = torch.ones(CHUNK, mask.shape[1], dtype=torch.bool)
        with torch.no_grad():
            for first in range(0, len(view), CHUNK):
                part = slice(first, first + CHUNK)
                count = len(exam[part])
                rows[:count], legal[:count], before[:count] = observations[part], mask[part], state[exam[part]]
                logits, _, following = self._network(rows, before)
                after[exam[part]] = following[:count]
                probs[part] = masked_log_softmax(logits, legal)[:count].double().exp().numpy()
        if self.greedy:
            return one_hot(np.where(view.mask, probs, -1.0).argmax(1), probs.shape[1]), after
        probs = np.where(view.mask, probs, 0.0)
        return probs / probs.sum(1, keepdims=True), after

    def take_over(self, weights: dict[str, npt.NDArray[Any]]) -> None:
        """Take the weights of an RLlib module."""
        prefix = "network."
        self.restore({name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)})

    def check(self, practice: Practice, seed: int, **where: Any) -> None:
        """See :meth:`NeuralAgent.check`."""
        self._config(practice, seed).learners(num_learners=where.get("learners", 0)).validate()

    def _config(self, practice: Practice, seed: int) -> Any:
        with _ray_installed():
            from agents.rllib.training import configure

        return configure(self.key(), practice.spec, self.params(), seed=seed, exam_seed=practice.seed)

    def train(
        self,
        practice: Practice,
        seed: int,
        report: Report | None = None,
        checkpoint: str | Path | None = None,
        *,
        runners: int = 0,
        learners: int = 0,
        address: str | None = None,
    ) -> None:
        """See :meth:`NeuralAgent.train`. Where it trains changes nothing in the result (see
        :func:`agents.rllib.training.train_rllib`; several learners: but for the last bits of sums).

        :param report: called after every iteration.
        :param checkpoint: file; a continued run gives the weights of one that was never interrupted, bit for bit.
        :param runners: remote processes that take exams; 0: this one does.
        :param learners: remote processes that learn; 0: this one does.
        :param address: of a running Ray cluster.
        """
        config = self._config(practice, seed)
        from agents.rllib.training import train_rllib

        where: dict[str, Any] = {"runners": runners, "learners": learners, "address": address}
        for weights, progress in train_rllib(config, self.settings.steps, checkpoint=checkpoint, **where):
            self.take_over(weights)
            if report is not None:
                report(progress)


@contextmanager
def _ray_installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("agents", "roi_env")):
            raise
        raise ModuleNotFoundError(
            f"training through RLlib needs more packages ({error}): pip install 'roi-reasoning[rllib]'"
        ) from error


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Parameters of :class:`RLlibPPO`.

    :param steps: environment steps (decisions) to train for; the last iteration is finished.
    :param exams: exams of one iteration, replicates counted.
    :param minibatch: exams of one gradient step.
    :param epochs: passes over an iteration's exams.
    :param lr: learning rate, falling linearly to zero over ``steps``.
    :param entropy: coefficient of the entropy bonus, falling linearly to zero over ``steps``: early decisions are first
        judged by what a wide range of later ones makes of them, in the end by what the greedy policy will do.
    :param clip: clipping range of the importance ratio.
    :param lambda_: of the generalised advantage estimates.
    :param vf: coefficient of the value loss.
    :param width: units of every hidden layer.
    :param layers: hidden layers.
    :param memory: units of a GRU that reads the exam so far; 0: none.
    :param greedy: as in :class:`agents.neural.NeuralAgent`.
    """

    steps: Count = 1_200_000
    exams: Count = 1024
    minibatch: Count = 256
    epochs: Count = 4
    lr: Positive = 3e-3
    entropy: NonNegative = 0.3
    clip: Positive = 0.2
    lambda_: Share = 0.8
    vf: NonNegative = 0.5
    width: Count = 128
    layers: Count = 2
    memory: Natural = 0
    greedy: bool = True


class RLlibPPO(RLlibAgent):
    """PPO with RLlib's loss."""

    settings: PPOSettings = PPOSettings()
    algorithm = "ppo"
    has_critic = True
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-3, 2e-3, 3e-3, 5e-3),
        "entropy": (0.03, 0.1, 0.3, 0.5),
        "lambda_": (0.3, 0.5, 0.8, 0.95),
        "epochs": (2, 4, 8),
        "minibatch": (64, 128, 256),
    }


@dataclass(frozen=True, kw_only=True)
class GRPOSettings:
    """Parameters of :class:`RLlibGRPO`; see :meth:`agents.rllib.grpo.GRPOConfig.training`.

    :param group: how often every exam is taken.
    :param shared_outcomes: whether a group meets the same potential outcomes, see
        :meth:`agents.rllib.algorithm.ExamSettings.exams`.
    :param advantage: "rtg", "grpo", "dr" or "rloo".
    :param baseline: "group", "optimum" or "oracle".
    :param ratio: "token" or "sequence" (GSPO).
    :param aggregation: "token", "sequence" or "constant".
    :param kl: "exact" or "k3".
    :param kl_coeff: of the divergence from the initial policy; 0: none.

    The others as in :class:`PPOSettings`.
    """

    steps: Count = 2_400_000
    exams: Count = 2048
    minibatch: Count = 256
    epochs: Count = 4
    lr: Positive = 3e-3
    entropy: NonNegative = 0.2
    clip: Positive = 0.2
    group: Count = 8
    shared_outcomes: bool = False
    advantage: Advantage = "rtg"
    baseline: Baseline = "group"
    ratio: Ratio = "token"
    aggregation: Aggregation = "token"
    kl: KL = "exact"
    kl_coeff: NonNegative = 0.0
    width: Count = 128
    layers: Count = 2
    memory: Natural = 0
    greedy: bool = True


class RLlibGRPO(RLlibAgent):
    """GRPO and its variants."""

    settings: GRPOSettings = GRPOSettings()
    algorithm = "grpo"
    has_critic = False
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-3, 2e-3, 3e-3, 5e-3),
        "entropy": (0.03, 0.1, 0.2, 0.3),
        "group": (4, 8, 16, 32),
        "epochs": (2, 4, 8),
        "minibatch": (128, 256, 512),
    }
