"""What PPO and GRPO on exams share: settings, the driver's ownership of exam ids, and one training iteration.

One iteration is: name the next exams, have them taken (here or by remote runners), compute advantages from all of them,
hand whole exams to the learners.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from agents.base import public_problem
from agents.parameters import Count, Natural, checked
from agents.rllib import settings
from agents.rllib._ray_private import OwnEvaluation, calls_under_way, lost, manager_of
from agents.rllib.checks import check_portions
from agents.rllib.exam_runner import ExamRunner, Weights, job_list
from agents.rllib.modules import SEQUENCE, ExamModule
from agents.rllib.networks import observation_statistics
from agents.rllib.registration import ENV, register, spec_of
from agents.rllib.rollouts import Job, Observer, Rollout, concatenate
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import check_seed
from roi_env.exams.observation import observation_layout

if TYPE_CHECKING:
    from agents.rllib.language import LanguageSettings

logger = logging.getLogger(__name__)

_ANSWERS = "answers"
"""Tag of the jobs under way at remote runners."""

_PINGS = "pings"
"""Tag of the questions to runners that are not in service whether they are there."""

_PATIENCE_S = 0.2
"""Seconds that the driver waits for an answer before it looks after its runners."""

_PROBE_EVERY_S = 0.5
"""Seconds between such questions within an iteration."""


class ExamSettings(AlgorithmConfig):
    """Settings that PPO and GRPO on exams share, and better defaults for RLlib's own.

    Those of RLlib's that have an effect are listed in :mod:`agents.rllib.settings`; any other one that is changed is refused by its
    name. ``evaluation(...)`` works as in RLlib: an evaluation takes exams 0, 1, ... of a seed of its own, the same every time and
    with any number of evaluation runners; ``evaluation_config`` may say ``explore``, ``exam_seed``, ``budgets``, ``exams_per_job``,
    resources of runners, or another kind of exam with the same observation (``env_config={"spec": spec}``).

    RLlib's own ``debugging(seed=...)`` must stay None: it differs between workers and reseeds global generators.
    """

    critic: ClassVar[bool]
    """Whether the module learns values."""
    honoured: ClassVar[frozenset[str]] = settings.HONOURED
    """RLlib's settings that have an effect; others are refused where they are changed."""

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class=algo_class)
        self.exam_seed = 0
        self.training_seed = 0
        self.agent: tuple[str, dict[str, Any]] | None = None
        """Name and parameters of the agent that these settings train."""
        self.exams_per_iteration = 1024
        self.exams_per_minibatch = 128
        self.exams_per_job = 256
        self.group_size = 1
        self.shared_outcomes = False
        self.budgets: tuple[int, ...] = ()
        self.anchor_coeff = 0.0
        self.hidden: tuple[int, ...] = (64, 64)
        self.memory = 0
        self.language: LanguageSettings | None = None
        self.whole_groups = False
        self.env_runner_cls = ExamRunner
        self.num_env_runners = 0
        self.gamma = 1.0
        self.num_epochs = 4
        self.lr = 1e-3
        self.grad_clip = 1.0
        # Portions are ours (exams): a value of RLlib's own, even its default, is then one that somebody gave.
        self.minibatch_size = None
        self.train_batch_size = 0
        self.shuffle_batch_per_epoch = True
        self.entropy_coeff = 0.003
        # A runner is stateless between jobs: there is nothing to gather from runners or to send to all of them.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self._dont_auto_sync_env_runner_states = True
        # Failures: RLlib's defaults wait minutes (up to half an hour for a lost runner).
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 1.0
        self.sample_timeout_s = 30.0
        # Training begins with the first runner; the others join as they find a CPU.
        self.validate_env_runners_after_construction = False
        self.give_up_s = 600.0

    def exams(
        self,
        spec: ExamSpec | None = None,
        *,
        seed: int | None = None,
        training_seed: int | None = None,
        per_iteration: Count | None = None,
        per_minibatch: Count | None = None,
        per_job: Count | None = None,
        group_size: Count | None = None,
        shared_outcomes: bool | None = None,
        budgets: Sequence[Count] | None = None,
    ) -> Self:
        """Which exams are taken, and in what portions.

        :param spec: the kind of exam.
        :param seed: identity's seed of the training exams.
        :param training_seed: of weights, actions and minibatches.
        :param per_iteration: exams taken in one iteration, replicates counted.
        :param per_minibatch: exams of one gradient step, all learners together.
        :param per_job: most exams that a runner takes at once: the rows of its forward passes. Part of what a result
            depends on (in its last bits), unlike the number of runners.
        :param group_size: how often every exam is taken.
        :param shared_outcomes: whether all takings of an exam meet the same potential outcomes and differ in their
            actions alone (common random numbers: what a member earns more than another is then not luck), instead of
            being replicates.
        :param budgets: tokens; exam i has budget i modulo their number. None or empty: all have the kind's own.
        """
        if spec is not None:
            register()
            self.environment(ENV, env_config={"spec": spec})
        for name, value in {
            "exam_seed": seed,
            "training_seed": training_seed,
            "exams_per_iteration": per_iteration,
            "exams_per_minibatch": per_minibatch,
            "exams_per_job": per_job,
            "group_size": group_size,
            "shared_outcomes": shared_outcomes,
            "budgets": None if budgets is None else tuple(budgets),
        }.items():
            if value is not None:
                setattr(self, name, value)
        return self

    def network(self, *, hidden: Sequence[Count] | None = None, memory: Natural | None = None) -> Self:
        """Size of the network, as in :class:`agents.rllib.networks.PolicyNetwork`."""
        if hidden is not None:
            self.hidden = tuple(hidden)
        if memory is not None:
            self.memory = memory
        return self

    def language_model(self, settings: LanguageSettings) -> Self:
        """Let a language model read the questions, instead of a network the flat observation; on the GPU where its process
        has one."""
        self.language = settings
        # Equal prompts are read once: members of a group belong in one minibatch.
        self.whole_groups = True
        return self

    def processes(self, runners: int, learners: int) -> Self:
        """Remote processes; each learner of a language model has a GPU where the cluster has any.

        :param runners: that take exams; 0: the driver takes them.
        :param learners: that learn; 0: the driver learns.
        :raises ValueError: for more learners than GPUs.
        """
        gpus = int(ray.cluster_resources().get("GPU", 0)) if learners and self.language is not None else 0
        if 0 < gpus < learners:
            raise ValueError(
                f"{learners} learners of a language model need a GPU each and the cluster has {gpus}: choose at most that many"
            )
        self.env_runners(num_env_runners=runners)
        return self.learners(num_learners=learners, num_gpus_per_learner=int(gpus > 0))  # type: ignore[no-any-return]

    def observer(self) -> Observer:
        """What the policy sees of decisions."""
        if self.language is None:
            return Observer()
        return self.language.observer(self.widest)

    @property
    def widest(self) -> ExamSpec:
        """The kind of exam with the largest of the budgets."""
        spec = spec_of(self.env_config)
        return spec.replace(budget=max(spec.budget, *self.budgets)) if self.budgets else spec

    def module_space(self, flat: gym.spaces.Dict) -> gym.spaces.Dict:
        """The module's observation space, where the environment's own is ``flat``."""
        if self.language is None:
            return flat
        return gym.spaces.Dict({**flat, "observations": self.language.observer(self.widest).space})

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Our masked network, or the language model."""
        if self.language is not None:
            return self.language.module_spec(
                self.widest, critic=self.critic, seed=self.training_seed, anchored=self.anchor_coeff > 0
            )
        centre, spread = observation_statistics(public_problem(spec_of(self.env_config)))
        config = {"hidden": self.hidden, "memory": self.memory, "critic": self.critic, "seed": self.training_seed}
        return RLModuleSpec(module_class=ExamModule, model_config={**config, "centre": centre, "spread": spread})

    def validate(self) -> None:
        """See :meth:`AlgorithmConfig.validate`.

        :raises ValueError: for settings that do not fit one another, and for any of RLlib's that would have no effect.
        """
        if self.seed is not None:
            raise ValueError(
                "debugging(seed=...) differs between workers and reseeds global random numbers: leave it None and use "
                "exams(seed=..., training_seed=...)"
            )
        if not self.in_evaluation:
            self._refuse_ignored()
        super().validate()
        check_seed(self.exam_seed)
        check_seed(self.training_seed)
        self._check_numbers()
        check_portions(
            self.exams_per_iteration,
            self.exams_per_minibatch,
            self.group_size,
            learners=max(1, self.num_learners),
            whole_groups=self.whole_groups,
        )

    def _check_numbers(self) -> None:
        # Here, not where they are given: until now they may be Ray Tune's choices.
        name = type(self).__name__
        portions = {
            "per_iteration": self.exams_per_iteration,
            "per_minibatch": self.exams_per_minibatch,
            "per_job": self.exams_per_job,
            "group_size": self.group_size,
            "shared_outcomes": self.shared_outcomes,
            "budgets": self.budgets,
        }
        checked(self.exams, portions, name)
        checked(self.network, {"hidden": self.hidden, "memory": self.memory}, name)
        if not isinstance(self.num_epochs, int) or self.num_epochs < 1:
            raise ValueError(f"{name}: num_epochs must be an integer of at least 1, got {self.num_epochs!r}")

    def _refuse_ignored(self) -> None:
        fresh = type(self)()
        rllibs = next(kind for kind in type(self).__mro__ if kind.__module__.startswith("ray."))
        settings.refuse_ignored(self, fresh, self.honoured | (vars(fresh).keys() - vars(rllibs()).keys()))
        if self.env is None:
            raise ValueError(f"{type(self).__name__} needs a kind of exam: exams(exam_spec(...))")
        if self.env != ENV:
            raise ValueError(
                f"{type(self).__name__} trains on exams alone, got environment {self.env!r}: use exams(spec)"
            )
        for name, base in {"env_runner_cls": fresh.env_runner_cls, "learner_class": fresh.learner_class}.items():
            if not issubclass(getattr(self, name), base):
                raise ValueError(f"{name} must be a subclass of {base.__name__}, got {getattr(self, name)!r}")
        if self.learner_config_dict and self.learner_class is fresh.learner_class:
            raise ValueError(f"learner_config_dict={self.learner_config_dict!r} is read by learners of your own alone")
        if self.language is None and (self.num_gpus_per_learner or self.num_gpus_per_env_runner):
            raise ValueError(
                "num_gpus_per_learner and num_gpus_per_env_runner are for language models: networks compute on the CPU"
            )
        if self.env_runner_cls is fresh.env_runner_cls:  # another one may read more
            _check_env_config(self.env_config)
        overrides = self.evaluation_config if isinstance(self.evaluation_config, Mapping) else {}
        if forced := sorted(_FORCED & set(overrides)):
            raise ValueError(
                f"evaluation_config {forced} is overwritten by RLlib: use evaluation(evaluation_num_env_runners=..., "
                "evaluation_duration=..., evaluation_duration_unit=...)"
            )
        if self.language is not None and "env_config" in overrides:
            raise ValueError("evaluation_config: a language model is evaluated on the kind of exam that it learns from")
        own, examined = vars(self), self.get_evaluation_config_object()
        changed = [
            (name, value, name in own)
            for name, value in vars(examined).items()
            if name not in _EVALUATION and (name not in own or not settings.equal(name, value, own[name]))
        ]
        settings.complain(examined, changed)
        if self.env_runner_cls is fresh.env_runner_cls:
            _check_env_config(examined.env_config)
        self._check_examined(spec_of(examined.env_config))
        if self.evaluation_duration == "auto":
            raise ValueError(
                "evaluation_duration='auto' needs a training beside it: give a number of exams or decisions"
            )

    def _check_examined(self, spec: ExamSpec) -> None:
        """Evaluation may be on another kind of exam if the policy can read it."""
        both = spec, spec_of(self.env_config)
        sizes = [(observation_layout(one).size, one.num_tiers, one.num_tasks) for one in both]
        if sizes[0] != sizes[1]:
            raise ValueError(
                "evaluation_config: exams of evaluation must have the observation, tiers and tasks of training: (size, "
                f"tiers, tasks) {sizes[0]} against {sizes[1]}"
            )

    def get_evaluation_config_object(self) -> Any:
        """See :meth:`AlgorithmConfig.get_evaluation_config_object`; exams of evaluation are none of training's."""
        examined = super().get_evaluation_config_object()
        if examined is not None and examined.exam_seed == self.exam_seed:
            examined.exam_seed = evaluation_seed(self.exam_seed)
        return examined

    def jobs(self, next_exam: int) -> list[Job]:
        """The jobs of an iteration whose first exam is ``next_exam``."""
        groups = self.exams_per_iteration // self.group_size
        exam_ids = np.repeat(np.arange(next_exam, next_exam + groups), self.group_size)
        members = np.tile(np.arange(self.group_size), groups)
        return self._jobs(exam_ids, np.zeros_like(members) if self.shared_outcomes else members, members)

    def examination(self, first: int, count: int) -> list[Job]:
        """The jobs of an evaluation: exams ``first .. first + count - 1``, each taken once."""
        exam_ids = np.arange(first, first + count)
        return self._jobs(exam_ids, np.zeros_like(exam_ids), np.zeros_like(exam_ids))

    def _jobs(
        self, exam_ids: npt.NDArray[np.int64], replicates: npt.NDArray[np.int64], members: npt.NDArray[np.int64]
    ) -> list[Job]:
        if not self.budgets:
            return job_list(exam_ids, replicates, members, self.exams_per_job)
        jobs: list[Job] = []
        for number, budget in enumerate(self.budgets):
            here = exam_ids % len(self.budgets) == number
            part = exam_ids[here], replicates[here], members[here]
            jobs += job_list(*part, self.exams_per_job, budget, len(jobs))
        return jobs

    @property
    def longest(self) -> int:
        """Most actions of an exam: its decisions."""
        return spec_of(self.env_config).num_tasks

    def exam_metrics(self, rollout: Rollout) -> dict[str, float]:
        """Means over the exams of one iteration."""
        return exam_metrics(spec_of(self.env_config), rollout)

    def columns(self, rollout: Rollout) -> dict[str, npt.NDArray[Any]]:
        """The algorithm's own columns of the training batch, (T,) each."""
        raise NotImplementedError

    def batches(self, rollout: Rollout) -> list[MultiAgentBatch]:
        """Training batches, one a learner: whole groups, equally many exams."""
        columns: dict[str, Any] = {
            "observations": rollout.observations,
            "action_mask": rollout.mask.astype(np.float32),
            Columns.ACTIONS: rollout.actions,
            Columns.ACTION_LOGP: rollout.logp,
            Columns.ACTION_DIST_INPUTS: rollout.logits,
            **self.columns(rollout),
        }
        learners = max(1, self.num_learners)
        ends = np.concatenate([[0], np.cumsum(rollout.length)])
        size = len(rollout) // learners
        batches = []
        for first in range(0, len(rollout), size):
            rows = slice(ends[first], ends[first + size])
            part = {name: values[rows] for name, values in columns.items()}
            obs = {name: part.pop(name) for name in ("observations", "action_mask")}
            sequence = np.repeat(np.arange(size), rollout.length[first : first + size])
            batch = SampleBatch({Columns.OBS: obs, SEQUENCE: sequence, **part})
            batches.append(MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(sequence)))
        return batches


_FORCED: Final = frozenset(
    {"in_evaluation", "evaluation_config", "num_env_runners", "batch_mode", "rollout_fragment_length"}
)
"""Settings of an evaluation that RLlib itself sets, whatever evaluation_config says."""

_EVALUATION: Final = settings.RUNNER | _FORCED | {"env_config", "explore", "exam_seed", "exams_per_job", "budgets"}
"""Settings in which an evaluation may differ from training."""


def evaluation_seed(seed: int) -> int:
    """Identity's seed of the exams of RLlib's evaluation: a key of its own, by a hash."""
    return int.from_bytes(hashlib.sha256(f"evaluate {seed}".encode()).digest()[:8], "little")


def _check_env_config(env_config: Mapping[str, Any]) -> None:
    if unknown := sorted(set(env_config) - {"spec"}):
        raise ValueError(
            f"env_config {unknown} has no effect here: put it into the kind of exam, exams(exam_spec(...))"
        )
    spec_of(env_config)


def exam_metrics(spec: ExamSpec, rollout: Rollout) -> dict[str, float]:
    """Means over the exams of one iteration."""
    by_exam = {
        name: rollout.by_exam(getattr(rollout, name), spec.num_tasks)
        for name in ("rewards", "scores", "tokens", "overspent", "actions")
    }
    returns = by_exam["rewards"].sum(1)
    return {
        EPISODE_RETURN_MEAN: float(returns.mean()),
        EPISODE_RETURN_MIN: float(returns.min()),
        EPISODE_RETURN_MAX: float(returns.max()),
        EPISODE_LEN_MEAN: float(rollout.length.mean()),
        EPISODE_LEN_MIN: float(rollout.length.min()),
        EPISODE_LEN_MAX: float(rollout.length.max()),
        "score_mean": float(by_exam["scores"].sum(1).mean()),
        "spent_mean": float(by_exam["tokens"].sum(1).mean() / spec.budget),
        "truncation_mean": float(by_exam["overspent"].any(1).mean()),
        "skip_mean": float((rollout.actions == 0).mean()),
    }


def update(config: ExamSettings, learner_group: LearnerGroup, rollout: Rollout, steps: int) -> list[Any]:
    """Let the learners learn from one iteration's exams; ``steps`` counts all decisions so far. Returns their metrics."""
    batches = config.batches(rollout)
    data = TrainingData(batches=batches) if learner_group.is_remote else TrainingData(batch=batches[0])
    return learner_group.update(  # type: ignore[no-any-return]
        training_data=data,
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps},
        num_epochs=config.num_epochs,
        minibatch_size=config.exams_per_minibatch // len(batches),
    )


def module_weights(learner_group: LearnerGroup) -> Weights:
    """The learners' present policy."""
    state = learner_group.get_state(components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True)
    return state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]  # type: ignore[no-any-return]


def act_as_learners(runner: ExamRunner, learner_group: LearnerGroup) -> None:
    """Let a runner of this process act as the learners would now.

    A language model that learns here acts itself: it is in memory once, on the GPU where it learns. Small networks act on the
    CPU, with a copy of the weights.
    """
    if runner.config.language is None or not learner_group.is_local:
        runner.module.set_state(module_weights(learner_group))
        return
    [learner] = [result.get() for result in learner_group.foreach_learner(lambda learner: learner)]
    runner.module = learner.module[DEFAULT_MODULE_ID].unwrapped()


def _log(metrics: MetricsLogger, key: tuple[str, ...], rollout: Rollout, means: dict[str, float]) -> None:
    """Log what a rollout's exams were under RLlib's usual names."""
    for name, value in means.items():
        metrics.log_value((*key, name), value, window=1)
    steps = rollout.steps
    counts: list[tuple[str, str, tuple[str, ...], int]] = [
        (NUM_ENV_STEPS_SAMPLED, NUM_ENV_STEPS_SAMPLED_LIFETIME, (), steps),
        (NUM_AGENT_STEPS_SAMPLED, NUM_AGENT_STEPS_SAMPLED_LIFETIME, (DEFAULT_AGENT_ID,), steps),
        (NUM_MODULE_STEPS_SAMPLED, NUM_MODULE_STEPS_SAMPLED_LIFETIME, (DEFAULT_MODULE_ID,), steps),
        (NUM_EPISODES, NUM_EPISODES_LIFETIME, (), len(rollout)),
    ]
    for name, lifetime, of, count in counts:
        metrics.log_value((*key, name, *of), count, reduce="sum")
        metrics.log_value((*key, lifetime, *of), count, reduce="lifetime_sum")


class ExamAlgorithm(OwnEvaluation):
    """RLlib algorithm whose driver owns the exam ids: every exam is taken exactly once, whatever happens to runners."""

    config: Any

    def setup(self, config: Any) -> None:
        """See :meth:`Algorithm.setup`."""
        self.next_exam = self.steps = 0
        self.score = float("nan")
        self.remote_cpu_seconds = 0.0
        self._examiner: Any = None
        super().setup(config)
        manager = manager_of(self.env_runner_group)
        for runner in manager.actor_ids():
            manager.set_actor_state(runner, healthy=False)  # until it answers
        self.restore_env_runners(self.env_runner_group)

    def cleanup(self) -> None:
        """See :meth:`Algorithm.cleanup`. RLlib would wait for ever for a runner that no node has room for."""
        for group in filter(None, (self.env_runner_group, self.eval_env_runner_group)):
            manager = manager_of(group)
            for runner in set(manager.actor_ids()) - set(manager.healthy_actor_ids()):
                ray.kill(manager.remove_actor(runner))
        super().cleanup()

    def training_step(self) -> None:
        """One iteration; see :meth:`Algorithm.training_step`."""
        config = self.config
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            jobs = config.jobs(self.next_exam)
            rollout = concatenate(self._take(jobs))
        # Only now: an iteration that was interrupted is repeated, not skipped.
        self.next_exam += config.exams_per_iteration // config.group_size
        self.steps += rollout.steps
        metrics = config.exam_metrics(rollout)
        self.score = metrics["score_mean"]
        _log(self.metrics, (ENV_RUNNER_RESULTS,), rollout, metrics)
        self.metrics.log_value((ENV_RUNNER_RESULTS, "exams_completed_lifetime"), len(rollout), reduce="lifetime_sum")
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            before = self._learner_seconds()
            results = update(config, self.learner_group, rollout, self.steps)
            self.remote_cpu_seconds += self._learner_seconds() - before
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        if self.env_runner is not None:  # what RLlib evaluates and exports
            act_as_learners(self.env_runner, self.learner_group)

    def evaluate_here(self, env_runner: Any) -> tuple[None, int, int, list[Any]]:
        """See :meth:`OwnEvaluation.evaluate_here`."""
        if self.eval_env_runner_group is not None:
            examiner = env_runner
        else:  # evaluate() without evaluation_interval: RLlib would use the training's runner
            if self._examiner is None:
                self._examiner = self.config.env_runner_cls(config=self.evaluation_config, worker_index=0)
            examiner = self._examiner
        act_as_learners(examiner, self.learner_group)
        return self._examine(lambda jobs: [examiner.sample(job=job) for job in jobs])

    def evaluate_remotely(self) -> tuple[None, int, int, list[Any]]:
        """See :meth:`OwnEvaluation.evaluate_remotely`."""
        weights, group = module_weights(self.learner_group), self.eval_env_runner_group
        return self._examine(
            lambda jobs: self._take_remotely(jobs, weights, group, self.config.evaluation_sample_timeout_s)
        )

    def _examine(self, take: Callable[[Sequence[Job]], list[Rollout]]) -> tuple[None, int, int, list[Any]]:
        """Evaluate on exams 0, 1, ... of the evaluation's seed: the same in every evaluation, whoever takes them."""
        config, duration = self.config, self.config.evaluation_duration
        parts: list[Rollout] = []
        exams = steps = 0
        by_steps = config.evaluation_duration_unit == "timesteps"
        while (left := duration - (steps if by_steps else exams)) > 0:
            # Never more exams than it takes if each has the greatest length: too many steps by less than one exam.
            more = -(-left // self.evaluation_config.longest) if by_steps else left
            found = take(self.evaluation_config.examination(exams, more))
            parts += found
            exams, steps = exams + more, steps + sum(part.steps for part in found)
        rollout = concatenate(parts)
        found = MetricsLogger(root=False)
        _log(found, (), rollout, self.evaluation_config.exam_metrics(rollout))
        self.metrics.aggregate([found.reduce()], key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
        return None, rollout.steps, rollout.steps, []

    def _learner_seconds(self) -> float:
        """CPU time of remote learners.

        :raises RayError: where one of them is lost. RLlib would let the others learn from their share of the exams.
        """
        if self.learner_group.is_local:
            return 0.0
        results = list(self.learner_group.foreach_learner(lambda _: time.process_time()))
        for result in results:
            if not result.ok:
                raise result.get()
        return float(sum(result.get() for result in results))

    def _count(self, name: str, exams: int) -> None:
        self.metrics.log_value((ENV_RUNNER_RESULTS, f"exams_{name}_lifetime"), exams, reduce="lifetime_sum")

    def _take(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Have all jobs done, in their order, here or by the remote runners."""
        self._count("requested", sum(map(len, jobs)))
        self._count("reissued", 0)
        if self.env_runner_group.num_remote_env_runners() > 0:
            weights = module_weights(self.learner_group)
            return self._take_remotely(jobs, weights, self.env_runner_group, self.config.sample_timeout_s)
        act_as_learners(self.env_runner, self.learner_group)
        return [self.env_runner.sample(job=job) for job in jobs]

    def _take_remotely(self, jobs: Sequence[Job], weights: Weights, group: Any, patience_s: float) -> list[Rollout]:
        """Hand jobs to idle healthy runners; what a lost or silent runner had is handed out again.

        The first answer to a job counts; a later one is dropped, so that no exam is counted twice.

        :param group: the runners.
        :param patience_s: seconds without an answer after which a job is handed out again.
        """
        config, training = self.config, group is self.env_runner_group
        manager = manager_of(group)
        reference = ray.put(weights)
        token = reference.hex()
        waiting: deque[int] = deque(range(len(jobs)))
        under_way: dict[int, tuple[int, float]] = {}
        done: dict[int, Rollout] = {}
        heard = probed = time.monotonic()
        while len(done) < len(jobs):
            for runner in under_way:
                # An answer that went down with its node is missed by Ray only after many seconds.
                if lost(manager, runner):
                    manager.set_actor_state(runner, healthy=False)
            healthy, now = set(manager.healthy_actor_ids()), time.monotonic()
            for runner, (number, since) in list(under_way.items()):
                if runner not in healthy or now - since > patience_s:
                    del under_way[runner]
                    if number not in done:
                        waiting.append(number)
                        if training:
                            self._count("reissued", len(jobs[number]))
            for runner in sorted(healthy - under_way.keys()):
                if not waiting:
                    break
                sent = group.foreach_env_runner_async(
                    "answer",
                    tag=_ANSWERS,
                    kwargs={"job": jobs[waiting[0]], "weights": reference, "token": token},
                    remote_worker_ids=[runner],
                )
                if sent:  # else it still works on a job that was given up
                    under_way[runner] = (waiting.popleft(), now)
            # RLlib itself would wait until all are ready or the time is up, and runners with it.
            if calls := calls_under_way(manager, _ANSWERS):
                ray.wait(calls, num_returns=1, timeout=_PATIENCE_S)
            else:
                time.sleep(0.05)
            for runner, answer in group.fetch_ready_async_reqs(tags=_ANSWERS):
                heard = now
                under_way.pop(runner, None)
                if answer.token != token or answer.number in done:
                    continue
                if answer.error is not None:
                    raise answer.error
                done[answer.number] = answer.rollout
                if training:
                    self.remote_cpu_seconds += answer.cpu_seconds
            if len(healthy) < group.num_remote_env_runners() and now - probed > _PROBE_EVERY_S:
                probed = now
                self.restore_env_runners(group)
            if now - heard > config.give_up_s:
                raise RuntimeError(
                    f"no runner has answered for {config.give_up_s:g} s ({len(done)} of {len(jobs)} jobs are done)"
                )
        return [done[number] for number in range(len(jobs))]

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Take runners that answer into service; see :meth:`Algorithm.restore_env_runners`.

        Nothing waits for an answer: a runner may be without a CPU for hours. There is no state to restore: weights come
        with every job.
        """
        manager = manager_of(env_runner_group)
        if absent := sorted(set(manager.actor_ids()) - set(manager.healthy_actor_ids())):
            manager.foreach_actor_async("ping", tag=_PINGS, healthy_only=False, remote_actor_ids=absent)
        back = [result.actor_id for result in manager.fetch_ready_async_reqs(tags=_PINGS) if result.ok]
        for runner in back:
            manager.set_actor_state(runner, healthy=True)
        return back

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """See :meth:`Algorithm.get_state`; with the place in the sequence of exams."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        return {**state, "next_exam": self.next_exam, "steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """See :meth:`Algorithm.set_state`."""
        super().set_state(state)
        self.next_exam = state.get("next_exam", self.next_exam)
        self.steps = state.get("steps", self.steps)
