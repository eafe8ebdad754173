"""GRPO over the tokens of whole exams: a trajectory is the transcript that a language model writes in one pass.

The algorithm is :mod:`agents.rllib.grpo`'s. What differs is what an action is: a token of the transcript instead of a level per
task. The runner generates, reads and marks transcripts; a row of a training batch is an exam (its prompt, then what was
written); rewards come per problem, and every token gets the advantage of the problem that it is charged to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
)

from agents.base import exams_view, public_problem
from agents.llm.decisions.policy import load_tokenizer
from agents.llm.decisions.tag_logits import PADDING, Ids
from agents.llm.one_pass.exam_taker import exam_texts
from agents.llm.one_pass.transcripts import Reader, exam_ids, generate, turn_ends, written_logp
from agents.one_pass import mark
from agents.playing import action_numbers
from agents.rllib.advantages import advantages
from agents.rllib.exam_runner import ExamRunner, Weights
from agents.rllib.grpo import GRPOConfig
from agents.rllib.language import LanguageSettings, LMExamModule, source_texts
from agents.rllib.learners import TranscriptGRPOLearner
from agents.rllib.modules import SEQUENCE, WRITTEN
from agents.rllib.networks import on_threads
from agents.rllib.registration import spec_of
from agents.rllib.rollouts import Job, Observer, task_reward_scale
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import draw_exams


@dataclass(frozen=True)
class TranscriptRollout:
    """E exams written; N problems, transcripts of at most B tokens.

    :param exam_ids: (E,) int64.
    :param rows: (E, prompt width + B) int32 prompt and transcript, each padded with :data:`agents.llm.decisions.tag_logits.PADDING`.
    :param logp: (E, B) float32 log-probabilities of the tokens when they were drawn.
    :param problem: (E, B) int64 problem that a token is charged to; -1: no token.
    :param rewards: (E, N) float64 the specification's own reward.
    :param scores: (E, N) float64 score earned.
    :param tokens: (E, N) int64.
    :param actions: (E, N) int64 announced.
    :param reached: (E, N) bool.
    :param overspent: (E, N) bool.
    :param level_match: (E, N) bool.
    :param malformed: (E, N) bool: reached, neither cut nor refused, and without an answer in the required form.
    """

    exam_ids: npt.NDArray[np.int64]
    rows: Ids
    logp: npt.NDArray[np.float32]
    problem: npt.NDArray[np.int64]
    rewards: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    actions: npt.NDArray[np.int64]
    reached: npt.NDArray[np.bool_]
    overspent: npt.NDArray[np.bool_]
    level_match: npt.NDArray[np.bool_]
    malformed: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.exam_ids)

    @property
    def steps(self) -> int:
        """Tokens written: the actions of this kind of training."""
        return int(self.tokens.sum())


class TranscriptObserver(Observer):
    """Exam prompts as token ids of one width.

    :param model: whose tokenizer encodes them.
    :param spec: kind of exam with the largest budget.
    :raises ValueError: where its questions have no texts.
    """

    def __init__(self, model: str, spec: ExamSpec) -> None:
        self.tokenizer = load_tokenizer(model)
        texts = source_texts(spec)
        encoded = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        longest = texts[int(np.argmax([len(ids) for ids in encoded]))]
        # Where texts meet, a tokenizer may cut them otherwise: some room for that.
        self.width = len(exam_ids(self.tokenizer, [longest] * spec.num_tasks, spec.budget)) + 4 * spec.num_tasks
        self.budget = spec.budget
        self.space = gym.spaces.Box(PADDING, len(self.tokenizer) - 1, (self.width + self.budget,), np.int32)


@dataclass(frozen=True)
class SinglePassSettings(LanguageSettings):
    """Which language model learns to take exams in one pass, and who grades its answers."""

    grader: str = "exact"

    def observer(self, spec: ExamSpec) -> TranscriptObserver:  # type: ignore[override]
        """See the class."""
        return TranscriptObserver(self.model, spec)

    def module_spec(self, spec: ExamSpec, *, critic: bool, seed: int, anchored: bool) -> RLModuleSpec:
        """The module to build."""
        policy = self.policy_config(self.observer(spec).width, critic, seed)
        return RLModuleSpec(module_class=TranscriptModule, model_config={"policy": policy})


class TranscriptModule(LMExamModule):
    """An :class:`agents.llm.decisions.policy.LMPolicy` that writes transcripts: its outputs are log-probability and entropy of every
    written token of the rows ``{"observations"}``, (G,) each."""

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        network = self.network
        logp, entropy = written_logp(
            network.causal,
            batch[Columns.OBS]["observations"].cpu().numpy(),
            network.question_width,
            temperature=network.temperature,
            recompute=network.recompute,
        )
        return {Columns.ACTION_LOGP: logp, ENTROPY_KEY: entropy}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward_train(batch, **kwargs)


class TranscriptRunner(ExamRunner):
    """Lets the module's model write exams, batched with a KV cache; every group's prompt is read once a batch."""

    def sample(self, *, job: Job, weights: Weights | None = None, **kwargs: Any) -> TranscriptRollout:  # type: ignore[override]
        """See :meth:`ExamRunner.sample`."""
        if weights is not None:
            self.module.set_state(weights)
        spec = self.spec if job.budget is None else self.spec.replace(budget=job.budget)
        batch = draw_exams(spec, self.config.exam_seed, job.exam_ids, job.members)
        texts = exam_texts(exams_view(batch, public_problem(spec)), "rarl")
        tokenizer, network = self.observer.tokenizer, self.module.network
        _, first, place = np.unique(job.exam_ids, return_index=True, return_inverse=True)
        prompts = [exam_ids(tokenizer, texts[at], spec.budget) for at in first]
        numbers = action_numbers(np.uint64(self.config.training_seed), job.exam_ids, job.members, spec.budget)
        stops = turn_ends(network.causal, tokenizer)
        with on_threads(network.threads):
            written = generate(
                network.causal,
                prompts,
                place,
                numbers,
                stops=stops,
                temperature=network.temperature if self.config.explore else 0.0,
                batch=self.config.exams_per_job,
            )
        reader = Reader(tokenizer, stops)
        papers = reader.papers(written.ids, spec.num_tasks)
        records = mark(papers, batch, self.config.language.grader, np.arange(len(job)))
        answered = np.array([[answer is not None for answer in row] for row in papers.answers])
        return TranscriptRollout(
            exam_ids=job.exam_ids,
            rows=self._rows([prompts[at] for at in place], written.ids),
            logp=_padded(written.logp, self.observer.budget, 0.0),
            problem=_padded(reader.problem_of(written.ids, spec.num_tasks), self.observer.budget, -1),
            rewards=records.reward,
            scores=records.value,
            tokens=records.tokens,
            actions=records.action,
            reached=records.reached,
            overspent=records.overspent,
            level_match=records.level_match,
            malformed=records.reached & (records.action > 0) & ~records.overspent & ~answered,
        )

    def _rows(self, prompts: list[list[int]], written: Ids) -> Ids:
        width = self.observer.width
        rows = np.full((len(prompts), width + self.observer.budget), PADDING, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            if len(prompt) > width:
                raise ValueError(f"an exam's prompt of {len(prompt)} tokens does not fit in {width}")
            row[: len(prompt)] = prompt
        rows[:, width : width + written.shape[1]] = written
        return rows


def _padded(values: npt.NDArray[Any], width: int, fill: float) -> npt.NDArray[Any]:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)


class SinglePassConfig(GRPOConfig):
    """GRPO's settings for transcripts. ``longest`` (of the aggregation ``constant``, Dr. GRPO's) is the largest budget."""

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class=algo_class)
        self.env_runner_cls = TranscriptRunner
        self.kl = "k3"

    @property
    def longest(self) -> int:
        """Tokens of the longest transcript."""
        return self.widest.budget

    def get_default_learner_class(self) -> type[TranscriptGRPOLearner]:
        """See :meth:`AlgorithmConfig.get_default_learner_class`."""
        return TranscriptGRPOLearner

    def validate(self) -> None:
        """See :meth:`AlgorithmConfig.validate`."""
        super().validate()
        if not isinstance(self.language, SinglePassSettings):
            raise ValueError("transcripts need a language model: language_model(SinglePassSettings(...))")
        if self.baseline != "group" or self.kl != "k3" or self.anchor_coeff:
            raise ValueError(
                "transcripts are compared with their group (baseline 'group'), the divergence of their tokens is "
                "estimated (kl 'k3'), and there is no anchor"
            )

    def exam_metrics(self, rollout: TranscriptRollout) -> dict[str, float]:  # type: ignore[override]
        """Means over the exams of one iteration."""
        returns, tried = rollout.rewards.sum(1), rollout.reached & (rollout.actions > 0)
        return {
            EPISODE_RETURN_MEAN: float(returns.mean()),
            EPISODE_RETURN_MIN: float(returns.min()),
            EPISODE_RETURN_MAX: float(returns.max()),
            EPISODE_LEN_MEAN: float(rollout.tokens.sum(1).mean()),
            EPISODE_LEN_MIN: float(rollout.tokens.sum(1).min()),
            EPISODE_LEN_MAX: float(rollout.tokens.sum(1).max()),
            "score_mean": float(rollout.scores.sum(1).mean()),
            "reached_mean": float(rollout.reached.mean()),
            "truncation_mean": float(rollout.overspent.any(1).mean()),
            "skip_mean": float((rollout.actions == 0)[rollout.reached].mean()),
            "malformed_mean": float(rollout.malformed[rollout.reached].mean()),
            "level_match_mean": float(rollout.level_match.sum() / max(1, tried.sum())),
        }

    def columns(self, rollout: TranscriptRollout) -> dict[str, npt.NDArray[Any]]:  # type: ignore[override]
        """(E, B) advantages of tokens: those of the problems they are charged to."""
        rewards = rollout.rewards * task_reward_scale(spec_of(self.env_config))
        by_problem = advantages(self.advantage, rewards, rollout.reached, rollout.exam_ids)
        written = rollout.problem >= 0
        values = np.where(written, np.take_along_axis(by_problem, np.maximum(rollout.problem, 0), 1), 0.0)
        if self.standardise:
            values /= max(float(np.sqrt((values[written] ** 2).mean())), 1e-4)
        return {Postprocessing.ADVANTAGES: values.astype(np.float32)}

    def batches(self, rollout: TranscriptRollout) -> list[MultiAgentBatch]:  # type: ignore[override]
        """Training batches, one a learner: whole groups, equally many exams, a row each."""
        columns = {Columns.ACTION_LOGP: rollout.logp, WRITTEN: rollout.problem >= 0, **self.columns(rollout)}
        size = len(rollout) // max(1, self.num_learners)
        batches = []
        for first in range(0, len(rollout), size):
            rows = slice(first, first + size)
            part = {name: values[rows] for name, values in columns.items()}
            obs = {"observations": rollout.rows[rows]}
            batch = SampleBatch({Columns.OBS: obs, SEQUENCE: np.arange(size), **part})
            batches.append(MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=size))
        return batches
