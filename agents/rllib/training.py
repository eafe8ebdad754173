"""Training runs: a configuration from an agent's parameters; in this process, or on a Ray cluster with the same result."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray.exceptions import RayError
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_METRICS_LOGGER
from ray.rllib.core.learner.learner_group import LearnerGroup

from agents.cluster import connected
from agents.neural import CheckpointError, Progress, check_header, kind_of
from agents.rllib.algorithm import ExamAlgorithm, ExamSettings, act_as_learners, module_weights, update
from agents.rllib.exam_runner import Weights
from agents.rllib.grpo import GRPOConfig
from agents.rllib.ppo import ExamPPOConfig
from agents.rllib.registration import spec_of
from agents.rllib.rollouts import concatenate
from roi_env.exams.config import ExamSpec
from roi_env.files import replacing

if TYPE_CHECKING:
    from agents.rllib.language import LanguageSettings

logger = logging.getLogger(__name__)
# RLlib warns of its own defaults and of what it calls itself: nothing that a user could act on. Errors are still told.
for _name in ("ray.rllib", "ray._common.deprecation"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def configure(name: str, spec: ExamSpec, p: dict[str, Any], *, seed: int, exam_seed: int) -> ExamSettings:
    """The configuration of an agent's training.

    :param name: the agent's :meth:`~agents.rllib.agent.RLlibAgent.key`.
    :param spec: kind of exam.
    :param p: all parameters of the agent.
    :param seed: of weights, actions and minibatches.
    :param exam_seed: identity's seed of the training exams.
    """
    config = _bare(name)
    if isinstance(config, GRPOConfig):
        names = ("advantage", "baseline", "ratio", "aggregation", "kl", "kl_coeff", "clip_high")
        config.training(**{name: p[name] for name in names if name in p})
        config.exams(shared_outcomes=p.get("shared_outcomes"))
    else:
        config.training(lambda_=p["lambda_"], vf_loss_coeff=p["vf"])
    config.exams(
        spec,
        seed=exam_seed,
        training_seed=seed,
        per_iteration=p["exams"],
        per_minibatch=p["minibatch"],
        group_size=p.get("group"),
    )
    if "model" in p:
        config.anchor_coeff = p.get("anchor", 0.0)
        config.exams(budgets=_budgets(spec, p["budgets"]))
        config.language_model(_language(name, p))
    else:
        config.network(hidden=(p["width"],) * p["layers"], memory=p["memory"])
    config.training(
        lr=[[0, p["lr"]], [p["steps"], 0.0]],
        num_epochs=p["epochs"],
        clip_param=p["clip"],
        entropy_coeff=[[0, p["entropy"]], [p["steps"], 0.0]],
    )
    config.agent = (name, p)
    return config


def _bare(name: str) -> ExamPPOConfig | GRPOConfig:
    if name == "rarl":
        from agents.rllib.single_pass import SinglePassConfig

        return SinglePassConfig()
    return ExamPPOConfig() if name.endswith("ppo") else GRPOConfig()


def _language(name: str, p: dict[str, Any]) -> LanguageSettings:
    from agents.rllib.language import LanguageSettings
    from agents.rllib.single_pass import SinglePassSettings

    kind = SinglePassSettings if name == "rarl" else LanguageSettings
    return kind(**{key: value for key, value in p.items() if key in kind.__dataclass_fields__})


def _budgets(spec: ExamSpec, factors: Sequence[float]) -> list[int]:
    """Multiples of an exam's budget, in tokens."""
    return [spec.replace(budget=max(1, round(factor * spec.budget))).budget for factor in factors]


class LocalRun:
    """The iterations of :class:`ExamAlgorithm` without it: RLlib's learner and our runner in this process, no Ray."""

    def __init__(self, config: ExamSettings) -> None:
        config.validate()
        self.config = config
        self.runner: Any = config.env_runner_cls(config=config, worker_index=0)
        self.learner_group: LearnerGroup = config.build_learner_group(
            rl_module_spec=config.get_multi_rl_module_spec(spaces=self.runner.get_spaces())
        )
        act_as_learners(self.runner, self.learner_group)
        self.next_exam = self.steps = 0
        self.score = float("nan")
        self.remote_cpu_seconds = 0.0

    def train(self) -> None:
        """One iteration."""
        self.learn(self.sample())

    def sample(self) -> Any:
        """The next iteration's exams, taken by the present policy."""
        act_as_learners(self.runner, self.learner_group)
        return concatenate([self.runner.sample(job=job) for job in self.config.jobs(self.next_exam)])

    def learn(self, rollout: Any) -> None:
        """Learn from what :meth:`sample` gave; the next iteration has other exams."""
        self.next_exam += self.config.exams_per_iteration // self.config.group_size
        self.steps += rollout.steps
        self.score = self.config.exam_metrics(rollout)["score_mean"]
        update(self.config, self.learner_group, rollout, self.steps)


def run(
    training: LocalRun | ExamAlgorithm, steps: int, checkpoint: str | Path | None
) -> Iterator[tuple[Weights, Progress]]:
    """Iterations of a training until it has taken ``steps`` environment steps.

    :param checkpoint: file that is written after every iteration, and continued from where it exists: then the result
        is, bit for bit, that of a run that was never interrupted. An interruption at any moment (Ctrl-C) leaves a
        valid file.
    :returns: after each iteration the weights and the progress; once, where the checkpoint is of a finished run.
    :raises CheckpointError: for a checkpoint of another run, or a file that is none.
    """
    config, path = training.config, None if checkpoint is None else Path(checkpoint)
    assert config.agent is not None, "configure() names the agent"
    name, params = config.agent
    header = {
        "algorithm": name,
        # A run may be made longer.
        "params": {key: value for key, value in params.items() if key not in ("steps", "greedy")},
        "seed": config.training_seed,
        "exams": config.exam_seed,
        "kind": kind_of(spec_of(config.env_config)),
    }
    if "model" in params:
        from agents.llm.decisions.policy import weights_digest

        header["weights"] = weights_digest(params["model"])
    updates, spent = 0, 0.0
    if path is not None and path.exists():
        state = _read(path, header)
        training.learner_group.set_state({COMPONENT_LEARNER: state["learner"]})
        training.next_exam, training.steps = state["next_exam"], state["steps"]
        updates, spent = state["updates"], state["cpu_seconds"]
        if training.steps >= steps:  # nothing is left to do: its weights are the result
            yield (
                module_weights(training.learner_group),
                Progress(training.steps, steps, updates, spent, training.score),
            )
    while training.steps < steps:
        begun, remote = time.process_time(), training.remote_cpu_seconds
        training.train()
        updates += config.num_epochs * (config.exams_per_iteration // config.exams_per_minibatch)
        weights = module_weights(training.learner_group)
        spent += time.process_time() - begun + training.remote_cpu_seconds - remote
        if path is not None:
            learner = training.learner_group.get_state(not_components=COMPONENT_METRICS_LOGGER)[COMPONENT_LEARNER]
            learner.pop(COMPONENT_METRICS_LOGGER, None)
            counts = {"next_exam": training.next_exam, "steps": training.steps, "updates": updates}
            _write(path, {"header": header, "learner": learner, "cpu_seconds": spent, **counts})
        yield weights, Progress(training.steps, steps, updates, spent, training.score)


def _write(path: Path, state: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(_map(state, np.ndarray, torch.from_numpy), file)


def _read(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    try:
        state: dict[str, Any] = _map(torch.load(path, weights_only=True), torch.Tensor, torch.Tensor.numpy)
        found = state["header"]
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of an RLlib agent ({str(error) or type(error).__name__}); delete it to begin anew"
        ) from error
    check_header(path, found, header)
    return state


def _map(value: Any, kind: type, convert: Any) -> Any:
    """``value`` with every ``kind`` inside it converted; NumPy's scalars become Python's."""
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _map(entry, kind, convert) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(entry, kind, convert) for entry in value)
    return value


def train_rllib(
    config: ExamSettings,
    steps: int,
    *,
    checkpoint: str | Path | None = None,
    runners: int = 0,
    learners: int = 0,
    address: str | None = None,
) -> Iterator[tuple[Weights, Progress]]:
    """Train; see :func:`run`. Without runners, learners and address no Ray is started.

    Runners may die at any time (:class:`ExamAlgorithm`). A learner that dies takes a part of the state with it: then
    training is built anew and goes on from the checkpoint, and gives what it would have given. Two such losses within one
    iteration, or one without a checkpoint, are raised.

    :param runners: remote processes that take exams. The result does not depend on their number.
    :param learners: remote processes that learn; each has its share of every minibatch. Sums over several learners
        differ from one learner's in their last bits.
    :param address: of a running Ray cluster.
    :raises RayError: see above.
    """
    if not runners and not learners and address is None:
        yield from run(LocalRun(config), steps, checkpoint)
        return
    with connected(address, cpus=1 + runners + learners):
        config.processes(runners, learners)
        while True:
            algorithm, iterations = config.build_algo(), 0
            try:
                for result in run(algorithm, steps, checkpoint):
                    iterations += 1
                    yield result
                return
            except RayError as error:
                if checkpoint is None or not iterations:
                    raise
                logger.warning("a learner was lost, going on from %s: %s", checkpoint, error)
            finally:
                algorithm.stop()
