"""One training run as a folder: configuration, checkpoint to continue from, TensorBoard events, the agent and its curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING, OmegaConf

from agents.base import make_agent, public_problem
from agents.playing import TrainingExams
from experiments.compare.plan import Setting, setting_spec, training_spec, validation_spec
from experiments.config import ConfigError, FamilyConfig, blamed, read_settings
from experiments.runs import check_folder, check_same
from experiments.training.training_run import (
    Curve,
    read_curve,
    save_trained,
    train_stepwise,
    validation_exams,
    write_curve,
)
from roi_env.exams.exam import check_seed
from roi_env.exams.rewards import parse_reward
from roi_env.files import replacing

if TYPE_CHECKING:
    from agents.neural import NeuralAgent, Progress

ALIASES = {"ppo": "rllib-ppo", "grpo": "rllib-grpo"}
"""Short names of `roi train`."""
CONFIG = "train.yaml"


@dataclass
class TrainConfig:
    """What a training run learns on; everything that its result depends on."""

    agent: str = MISSING
    """Registered name of an agent that learns in the environment."""
    params: dict[str, Any] = field(default_factory=dict)
    """Its constructor parameters."""
    family: FamilyConfig = field(default_factory=FamilyConfig)
    budget: int | float | str = 0.3
    order: str = "random"
    reward: str = "score"
    """What training exams pay, see :func:`roi_env.exams.rewards.parse_reward`; validation reports the score."""
    training_seed: int = 0
    """Training seed: names training exams, initial weights, exploration."""

    @property
    def setting(self) -> Setting:
        """The kind of exam, as a comparison knows it."""
        return Setting(0, self.family.label, self.family, self.budget, self.order)


def read_config(run: Path) -> TrainConfig:
    """The configuration of a run folder.

    :raises ConfigError: where the folder is not one of `roi train`.
    """
    if not (run / CONFIG).exists():
        raise ConfigError(f"{run}: not a run folder of `roi train` (it has no {CONFIG})")
    with blamed(str(run / CONFIG)):
        loaded = OmegaConf.merge(OmegaConf.structured(TrainConfig), read_settings(run / CONFIG))
        config: TrainConfig = OmegaConf.to_object(loaded)  # type: ignore[assignment]
        check_seed(config.training_seed)
    return config


def make_learner(config: TrainConfig) -> NeuralAgent:
    """The agent of a run, untrained.

    :raises ConfigError: for an unknown agent, one that does not learn in the environment, or parameters it does not have.
    """
    spec = setting_spec(config.setting)
    name = ALIASES.get(config.agent, config.agent)
    try:
        agent = make_agent(name, public_problem(spec), **config.params)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    if not agent.stepwise:
        raise ConfigError(
            f"agent {name!r} does not learn in the environment: `roi compare` trains it where it takes part; "
            f"`roi train` takes e.g. {', '.join(ALIASES)}, sb3-ppo"
        )
    return agent  # type: ignore[return-value]


def check_run(config: TrainConfig, run: Path) -> None:
    """See that a folder is free, or holds this very run; nothing is written.

    :raises ConfigError: where it is another command's or another run's.
    """
    if check_folder(run, CONFIG):
        check_same(run, _identity(read_config(run)), _identity(config), f"roi train --resume {run}")


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What a run's folder may hold of one run only; a run may be made longer."""
    identity = asdict(config)
    identity["params"] = {name: value for name, value in config.params.items() if name not in ("steps", "greedy")}
    if config.family.table is not None:
        identity["family"]["table"] = str(Path(config.family.table).absolute())
    return identity


def train_run(
    config: TrainConfig, run: Path, watch: Callable[[Progress, Curve], None], **resources: Any
) -> tuple[NeuralAgent, Curve]:
    """Train in a folder; where the folder has a checkpoint, go on from it.

    Writes ``train.yaml``, ``checkpoint``, ``tensorboard/``, ``agent.parquet`` (the learning curve) and, at the end, ``agent.npz``
    (a language model also as a directory, ``model``).

    :param watch: called at every report.
    :param resources: where to train, for agents that take it (RLlib's: runners, learners, address of a Ray cluster).
    :raises ConfigError: see :func:`check_run` and :func:`make_learner`; for settings of training that do not fit, and for a
        checkpoint that is none of this run's.
    """
    from tensorboardX import SummaryWriter

    from agents.neural import CheckpointError

    check_run(config, run)

    setting = config.setting
    spec = setting_spec(setting)
    agent = make_learner(config)
    try:
        paid = training_spec(setting, spec).replace(reward=parse_reward(config.reward))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    practice = TrainingExams(paid, config.training_seed)
    try:
        agent.check(practice, config.training_seed, **resources)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    validation = validation_exams(validation_spec(setting, spec), config.training_seed)
    run.mkdir(parents=True, exist_ok=True)
    with replacing(run / CONFIG) as path:
        OmegaConf.save(OmegaConf.structured(config), path)
    checkpoint, points = run / "checkpoint", run / "agent.parquet"
    before = read_curve(points) if checkpoint.exists() and points.exists() else []
    with SummaryWriter(str(run / "tensorboard")) as board:

        def report(progress: Progress, curve: Curve) -> None:
            if np.isfinite(progress.score):
                board.add_scalar("training/score", progress.score, progress.steps)
            board.add_scalar("training/updates", progress.updates, progress.steps)
            board.add_scalar("training/cpu_seconds", progress.cpu_seconds, progress.steps)
            if curve and curve[-1].steps == progress.steps:
                board.add_scalar("validation/of_the_optimum", curve[-1].normalised, progress.steps)
                write_curve(curve, points)
            watch(progress, curve)

        try:
            curve = train_stepwise(
                agent,
                practice,
                config.training_seed,
                validation,
                before=before,
                watch=report,
                checkpoint=checkpoint,
                **resources,
            )
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
    save_trained(agent, curve, run / "agent.npz")
    agent.export(run)
    return agent, curve
