"""Language models that learn to take exams by PPO and GRPO through RLlib: the same algorithms, another policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from agents.base import AgentError, DecisionView, ExamsView, Practice, Problem, Probs, State, exams_of, exams_view
from agents.llm.decisions.agent import answer
from agents.llm.decisions.policy import ExamPrompts, LMPolicy, load_tokenizer, question_texts, weights_digest
from agents.llm.decisions.tag_logits import Ids, PromptEncoder
from agents.llm.one_pass.exam_taker import write_exams
from agents.made_for import write_made_for
from agents.one_pass import ExamTaker, Papers, check_markable
from agents.parameters import Count, Natural, NonNegative, Positive, Share
from agents.rllib.advantages import Advantage
from agents.rllib.agent import RLlibAgent
from agents.rllib.checks import KL, Baseline
from agents.rllib.losses import Aggregation, Ratio
from roi_env.answering.grading import load_grader
from roi_env.exams.exam import draw_exams

_BASE = "base"
"""Name, in an agent's file, of :func:`agents.llm.decisions.policy.weights_digest` of the model that LoRA was put on."""


@dataclass(frozen=True, kw_only=True)
class LMSettings:
    """Parameters that both share.

    :param model: to begin with, see :func:`agents.llm.decisions.policy.model_source`.
    :param bits: see :func:`agents.llm.decisions.tag_logits.bucketed`.
    :param lora: rank of LoRA; 0: all weights learn.
    :param layers: number of last layers that learn (with LoRA); those below read a question, and a state of it, once; 0: all. A
        continued run then equals an uninterrupted one but for the last bits.
    :param dtype: of the model's weights: "float32" or "bfloat16".
    :param recompute: less memory in training, see :func:`agents.llm.decisions.tag_logits.last_hidden`.
    :param threads: of the CPU in training, of every process that takes exams or learns; the same whatever the machine has, since
        the last bits of what is learned depend on it.
    :param temperature: see :class:`agents.llm.decisions.policy.LMPolicy`.
    :param budgets: of training exams, in turn, as multiples of the kind's own; empty: that alone. One model can then
        serve several budgets: its prompt says what is left.
    :param anchor: coefficient of the divergence from the model to begin with in a state where nothing is scarce, see
        :class:`agents.rllib.language.LMExamModule`; keeps self-assessment calibrated.
    :param group: how often every exam is taken: its questions are read once for all of them.

    The others as in :class:`agents.rllib.agent.PPOSettings`.
    """

    model: str = "tinylm-mcft"
    bits: Natural = 4
    lora: Natural = 0
    layers: Natural = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    threads: Count = 1
    temperature: Positive = 2.0
    budgets: Sequence[Positive] = (0.5, 1.0, 2.0)
    anchor: NonNegative = 0.0
    steps: Count = 50_000
    exams: Count = 192
    minibatch: Count = 48
    epochs: Count = 2
    lr: Positive = 1e-3
    entropy: NonNegative = 0.05
    clip: Positive = 0.2
    group: Count = 8


class LMLearner(RLlibAgent):
    """What PPO and GRPO of a language model share."""

    language = True

    def make_network(self) -> torch.nn.Module:
        """The model as it begins."""
        names = ("lora", "layers", "dtype", "recompute", "temperature")
        options = {name: getattr(self.settings, name) for name in names}
        # What LoRA learns is nothing without the weights that it was learned on.
        self._base = weights_digest(self.settings.model) if self.settings.lora else None
        return LMPolicy(self.settings.model, self.problem.num_tiers + 1, critic=False, **options)

    def preferences(self, observations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """A language model reads questions, which :meth:`act` gives it.

        :raises TypeError: always.
        """
        raise TypeError("a language model does not read flat observations")

    def start(self, exams: ExamsView) -> State:
        """Encode the questions.

        :raises ValueError: where the exams show no texts.
        """
        levels = len(exams.problem.tier_names) + 1
        encoder = PromptEncoder(load_tokenizer(self.settings.model), self.settings.bits, levels)
        return ExamPrompts(encoder, exams, self.name)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Ask the model."""

        def logits(prompts: Ids, question_width: int) -> torch.Tensor:
            return self._network.heads(prompts, question_width)[0]  # type: ignore[no-any-return]

        return answer(logits, state, view, greedy=self.greedy, temperature=self.settings.temperature), state

    def budgets(self) -> tuple[int, int]:
        """See :meth:`agents.base.Agent.budgets`."""
        own = self.problem.budget
        trained = [max(1, round(factor * own)) for factor in self.settings.budgets] or [own]
        return min(trained), max(trained)

    def check(self, practice: Practice, seed: int, **where: Any) -> None:
        """See :meth:`NeuralAgent.check`; the exams must have questions that the model can be shown."""
        super().check(practice, seed, **where)
        question_texts(exams_view(draw_exams(practice.spec, practice.seed, [0]), self.problem), self.name)
        self._config(practice, seed).observer()

    def learned(self) -> dict[str, npt.NDArray[Any]]:
        """The weights that were trained, and of which model's they are a change."""
        base = {} if self._base is None else {_BASE: np.array(self._base)}
        return base | self._network.weights()

    def restore(self, learned: dict[str, npt.NDArray[Any]]) -> None:
        """See :meth:`NeuralAgent.restore`; a critic's weights are left out.

        :raises AgentError: where the model has other weights now than those that LoRA was trained on.
        """
        if _BASE in learned and self._base not in (None, str(learned[_BASE])):
            raise AgentError(
                f"agent {self.name!r} was trained by LoRA on other weights than the model {self.settings.model!r} has now "
                f"({learned[_BASE]}, not {self._base}): put that model back, or name the one that training wrote, "
                "\"llm(model='RUN/model')\""
            )
        left_out = ("critic.", _BASE)
        self._network.set_weights({name: value for name, value in learned.items() if not name.startswith(left_out)})

    def take_over(self, weights: dict[str, npt.NDArray[Any]]) -> None:
        """Take the weights of an RLlib module."""
        self.restore(weights)

    def export(self, folder: Path) -> None:
        """Write ``model``, a Hugging Face directory, which the agent ``llm`` and every server can read."""
        self._network.save(folder / "model", self.settings.model)
        write_made_for(folder / "model", exams_of(self.problem, self.budgets()))


@dataclass(frozen=True, kw_only=True)
class LMPPOSettings(LMSettings):
    """Parameters of :class:`LMPPOAgent`: those of :class:`LMSettings` and :class:`agents.rllib.agent.PPOSettings`. A group
    meets other outcomes every time."""

    lambda_: Share = 0.8
    vf: NonNegative = 0.1
    greedy: bool = True


class LMPPOAgent(LMLearner):
    """PPO of a language model."""

    settings: LMPPOSettings = LMPPOSettings()
    algorithm = "ppo"
    has_critic = True


@dataclass(frozen=True, kw_only=True)
class LMGRPOSettings(LMSettings):
    """Parameters of :class:`LMGRPOAgent`: those of :class:`LMSettings` and :class:`agents.rllib.agent.GRPOSettings`.

    :param kl_coeff: of the divergence from the model to begin with.
    """

    shared_outcomes: bool = False
    advantage: Advantage = "rtg"
    baseline: Baseline = "group"
    ratio: Ratio = "token"
    aggregation: Aggregation = "token"
    kl: KL = "exact"
    kl_coeff: NonNegative = 0.0
    greedy: bool = True


class LMGRPOAgent(LMLearner):
    """GRPO of a language model."""

    settings: LMGRPOSettings = LMGRPOSettings()
    algorithm = "grpo"
    has_critic = False


@dataclass(frozen=True, kw_only=True)
class RARLSettings:
    """Parameters of :class:`RARLAgent`.

    :param steps: **tokens** to train for; the last iteration is finished.
    :param clip_high: upper clipping range (0: the same as ``clip``).
    :param advantage: see :func:`agents.rllib.advantages.advantages`: "dr" as in the paper, or "rtg" (a token is credited with
        its own and later problems alone: less noise), "grpo", "rloo".
    :param kl_coeff: of the divergence from the model to begin with, estimated at the tokens written.
    :param temperature: of the tokens in training.
    :param grader: who judges answers, see :mod:`roi_env.answering.grading`.
    :param sampling: temperature of the tokens when it takes exams; ``replicates`` as in
        :class:`agents.llm.one_pass.exam_taker.LMExamTaker`.

    The others as in :class:`LMSettings` and :class:`agents.rllib.agent.GRPOSettings`.
    """

    model: str = "tinylm-mcft"
    budgets: Sequence[Positive] = ()
    steps: Count = 400_000
    exams: Count = 192
    minibatch: Count = 48
    epochs: Count = 2
    group: Count = 8
    lr: Positive = 3e-4
    entropy: NonNegative = 0.0
    clip: Positive = 0.2
    clip_high: NonNegative = 0.28
    advantage: Advantage = "rtg"
    ratio: Ratio = "token"
    aggregation: Aggregation = "constant"
    kl_coeff: NonNegative = 0.0
    temperature: Positive = 1.0
    lora: Natural = 0
    layers: Natural = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    threads: Count = 1
    grader: str = "exact"
    sampling: NonNegative = 0.7
    replicates: Count = 4


class RARLAgent(ExamTaker, LMLearner):
    """Rational RL of single-pass exams (arXiv 2601.03822): GRPO over the tokens of transcripts, see
    :mod:`agents.rllib.single_pass`. The training exams' own reward counts: "rational" (right, and the level announced is that of
    the tokens spent), "score", or another that needs no outcomes of other tiers (`roi train --reward`).
    """

    settings: RARLSettings = RARLSettings()
    name = "rarl"
    algorithm = "grpo"
    has_critic = False

    def __init__(self, problem: Problem, settings: RARLSettings | None = None) -> None:
        super().__init__(problem, settings)
        self.greedy = self.settings.sampling == 0
        self.markov = False  # type: ignore[misc]
        self.replicates = 1 if self.greedy else self.settings.replicates
        self.grader = self.settings.grader
        load_grader(self.grader)  # refuses others

    @classmethod
    def key(cls) -> str:
        """See :meth:`RLlibAgent.key`."""
        return "rarl"

    def check(self, practice: Practice, seed: int, **where: Any) -> None:
        """See :meth:`NeuralAgent.check`; what is written must be marked as well."""
        check_markable(practice.spec)
        super().check(practice, seed, **where)

    def take(self, exams: ExamsView, numbers: npt.NDArray[np.float64]) -> Papers:
        """See :meth:`ExamTaker.take`."""
        tokenizer = load_tokenizer(self.settings.model)
        sampling = self.settings.sampling
        return write_exams(self._network.causal, tokenizer, exams, numbers, name=self.name, temperature=sampling)
