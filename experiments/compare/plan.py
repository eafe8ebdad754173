"""What a comparison computes: its settings, and the jobs in each.

A *setting* is a kind of exam (family x budget x order). A *job* is one agent (or the reference values) with one training
seed in one setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agents.base import (
    Agent,
    RegisteredAgent,
    agent_text,
    find_agent,
    is_saved,
    make_agent,
    parse_agent,
    public_problem,
)
from agents.playing import TrainingExams
from experiments.config import PLANNERS, CompareConfig, ConfigError, FamilyConfig
from experiments.training.tuning import Tuning, read_tuning
from roi_env.exams.config import ExamConfig, ExamSpec
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import TINYLM

OPTIMUM = "optimum"

REFERENCES = "references"

PREDICTOR = "predictor "
"""Before a predictor's name: the job that measures what it recovers."""

SEED = "{seed}"
"""In an agent's text: stands for each of the training seeds, e.g. of models that were trained beforehand."""

TIER = "{tier}"
"""In an agent's text: stands for the number of every tier of the setting, 1 (cheapest) to K."""


@dataclass(frozen=True)
class Setting:
    """One kind of exam of a comparison."""

    number: int
    name: str
    family: FamilyConfig
    budget: int | float | str
    order: str

    @property
    def exam(self) -> ExamConfig:
        """The kind of exam as people describe it."""
        return self.family.exam(self.budget, self.order)

    @property
    def label(self) -> str:
        """Short description for tables."""
        budget = f"t={self.budget:g}" if isinstance(self.budget, float) else f"B={self.budget}"
        return f"{self.name} {budget}" + ("" if self.order == "random" else f" {self.order}")


@dataclass(frozen=True)
class Job:
    """One agent (or the references, or a predictor) with one training seed in one setting.

    :param agent: its name in tables.
    :param text: what :func:`agents.base.make_agent` is given: the name with tuned parameters and matched steps.
    """

    setting: Setting
    agent: str
    text: str
    seed: int

    @property
    def is_agents(self) -> bool:
        """Whether an agent takes the exams."""
        return self.agent != REFERENCES and not self.agent.startswith(PREDICTOR)


def expand(config: CompareConfig) -> list[Setting]:
    """The settings of a comparison, in the order of the configuration.

    :raises ConfigError: where it has none, or two of one name.
    """
    if not config.families:
        raise ConfigError("families must not be empty: name at least one, e.g. families=[{family: signal}]")
    settings: list[Setting] = []
    for family in config.families:
        for order in family.orders or config.orders:
            for budget in family.budgets or config.budgets:
                settings.append(Setting(len(settings), family.label, family, budget, order))
    labels = [setting.label for setting in settings]
    if duplicates := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(f"settings must differ, but {sorted(duplicates)} occur twice: give the families names")
    return settings


def setting_spec(setting: Setting, split: str = "test") -> ExamSpec:
    """The exams of a setting; ``split`` matters for recorded tables only.

    :raises ConfigError: for arguments that do not fit.
    """
    exam, predictor = setting.exam, setting.family.predictor
    try:
        if setting.family.outcomes is not None:
            return _recorded_spec(exam.replace(split=split), predictor)
        if predictor is not None:
            raise ValueError(f"predictor {predictor!r} reads texts: it needs recorded outcomes")
        return exam.resolve()
    except ValueError as error:
        raise ConfigError(f"{setting.label}: {error}") from error


@lru_cache(maxsize=8)
def _recorded_spec(exam: ExamConfig, predictor: str | None) -> ExamSpec:
    """Cached: every job of a setting needs it, and building it reads the whole table."""
    if predictor is None:
        return exam.resolve()
    from agents.predictors.exams import COLUMN
    from agents.predictors.predictor import PredictorError

    if exam.family == "paper":
        raise PredictorError("exams of family 'paper' have a task of every group, so other groups make other exams")
    arguments = tuple((name, getattr(exam, name)) for name in ("menu", "tiers", "datasets", "missing"))
    table = _predicted_table(str(exam.table or TINYLM), predictor, arguments, exam.group_by or "dataset")
    return exam.replace(family="recorded", table=table, group_by=COLUMN).resolve()


@lru_cache(maxsize=8)
def _predicted_table(table: str, predictor: str, arguments: tuple[tuple[str, Any], ...], group_by: str) -> OutcomeTable:
    """A table with a predictor's groups as a column. Cached: budgets, orders and splits share it.

    :param arguments: of :class:`agents.predictors.exams.Case`.
    """
    from agents.predictors.exams import Case, grouped_table, predictor_of

    given = {name: value for name, value in arguments if value is not None}
    case = Case(OutcomeTable.read(table), given, group_by)
    return grouped_table(case, predictor_of(predictor, case))


def training_spec(setting: Setting, spec: ExamSpec) -> ExamSpec:
    """Kind of the training exams: the same family for synthetic sources, the train split for recorded ones.

    :raises ConfigError: where the train split lacks a group of the evaluated one.
    """
    if setting.family.outcomes is None:
        return spec
    train = setting_spec(setting, "train")
    if train.source.group_names != spec.source.group_names:
        raise ConfigError(
            f"{setting.label}: the train split has groups {list(train.source.group_names)}, the test split "
            f"{list(spec.source.group_names)}; group by a coarser column (group_by)"
        )
    return train.replace(budget=spec.budget, num_tasks=min(spec.num_tasks, len(train.source.row_item)))


def validation_spec(setting: Setting, spec: ExamSpec) -> ExamSpec:
    """Kind of the validation exams: the same family for synthetic sources, the validation split for recorded ones."""
    if setting.family.outcomes is None:
        return spec
    found = setting_spec(setting, "validation")
    return found.replace(budget=spec.budget, num_tasks=min(spec.num_tasks, len(found.source.row_item)))


def registered_agent(text: str) -> RegisteredAgent:
    """The registered agent of an agent's text."""
    entry = find_agent(parse_agent(text)[0])
    assert entry is not None, "parse_agent knows it"
    return entry


def make_for(name: str, setting: Setting, spec: ExamSpec) -> Agent:
    """Make an agent; the optimum alone is told the evaluated source's own laws."""
    try:
        privileged = not is_saved(name) and registered_agent(name).privileged
        return make_agent(name, public_problem(spec), **({"laws": spec.source.published} if privileged else {}))
    except ValueError as error:
        raise ConfigError(f"{setting.label}: {error}") from error


def build_agent(text: str, setting: Setting, spec: ExamSpec, seed: int) -> Agent:
    """Make an agent for a setting and train it if it learns."""
    agent = make_for(text, setting, spec)
    if learns(text, agent):
        agent.train(TrainingExams(training_spec(setting, spec), seed), seed)
    return agent


def learns(text: str, agent: Agent) -> bool:
    """Whether training would change the agent; one that was loaded from a file is not trained again."""
    return not is_saved(text) and type(agent).train is not Agent.train


def plan(config: CompareConfig, settings: list[Setting]) -> list[Job]:
    """All jobs of a comparison.

    :raises ConfigError: for an unknown agent, or one that a setting cannot have.
    """
    tuning = read_tuning(Path(config.tuned)) if config.tuned else None
    jobs = []
    for setting in settings:
        jobs.append(Job(setting, REFERENCES, REFERENCES, 0))
        if setting.family.outcomes is not None and setting.family.predictor is None:
            jobs += [Job(setting, PREDICTOR + name, PREDICTOR + name, 0) for name in config.predictors]
        spec = setting_spec(setting)
        names = [
            name.replace(TIER, str(tier))
            for name in (*config.agents, *setting.family.agents, OPTIMUM)
            for tier in range(1, spec.num_tiers + 1 if TIER in name else 2)
            # Nobody asked for the optimum twice: where the published laws are the true ones, it is Bellman's policy.
            if not (name == "bellman" and config.agents == PLANNERS and _published_is_true(spec))
        ]
        for name in dict.fromkeys(names):
            text = _matched(name, config.steps, tuning)
            agent = make_for(text.replace(SEED, str(config.training_seeds[0])), setting, spec)
            several = learns(text, agent) or SEED in text
            seeds = config.training_seeds if several else [0]
            jobs += [Job(setting, name, text.replace(SEED, str(seed)), seed) for seed in seeds]
    return jobs


def _published_is_true(spec: ExamSpec) -> bool:
    return spec.beliefs == "published" and spec.source.synthetic and spec.source.num_latent == 1


def _matched(name: str, steps: int | None, tuning: Tuning | None) -> str:
    """The agent's text with tuned parameters and matched steps, where it learns in the environment.

    :raises ConfigError: where tuned parameters are asked for and the agent has none.
    """
    if is_saved(name):
        return name
    try:
        registered, inline = parse_agent(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not registered_agent(registered).stepwise:
        return name
    params: dict[str, Any] = {}
    if tuning is not None:
        if registered not in tuning.params:
            raise ConfigError(
                f"agent {name!r} was not tuned in {tuning.path} (it has {sorted(tuning.params)}): a comparison with "
                "unequal tuning is not run; tune it with `roi tune` or leave `tuned` out"
            )
        params |= tuning.params[registered]
    if steps is not None:
        params["steps"] = steps
    return agent_text(registered, params | inline)
