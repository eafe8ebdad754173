"""Configuration of a comparison: a dataclass, a YAML file, dotted overrides."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from agents.base import is_saved
from roi_env.exams.config import OWN_DEFAULTS, ExamConfig, parse_budget
from roi_env.exams.exam import check_seed
from roi_env.sources.packaged import PACKAGED
from roi_env.sources.table_files import HUB

_Settings = TypeVar("_Settings")
PLANNERS = [
    "random",
    "fixed-{tier}",
    "uniform-share",
    "remaining-share",
    "roi",
    "zcl",
    "greedy-knapsack",
    "bid-price",
    "population-bid-price",
    "dual-descent",
    "resolve",
    "resolve-few",
    "resolve-guarded",
    "ce-dp",
    "lp-lookahead",
    "hindsight-optimisation",
    "bwk-ucb",
    "bwk-thompson",
    "plugin-bellman",
    "bellman",
]
"""Agents of a comparison unless named otherwise; ``optimum`` always stands beside them. ``{tier}`` stands for the number of
every tier of a setting: ``fixed-1`` to ``fixed-K``."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, what was expected and what to do."""


@dataclass
class FamilyConfig:
    """A task family; budgets and orders are crossed with it. Fields left at None keep the family's own default.

    The fields of :class:`roi_env.exams.config.ExamConfig`, as a file says them.
    """

    family: str = MISSING
    """Family name (known, signal, heavy, cap, latent, paper-synthetic), "recorded", or one of the package's own recorded outcomes
    (tinylm, math, and paper, which may have a table)."""
    name: str | None = None
    """Name in tables; default: the family, or the table's name and menu."""
    num_tasks: int | None = None
    table: str | None = None
    """Outcome table (Parquet, CSV or JSONL)."""
    menu: str | None = None
    datasets: list[str] | None = None
    """Values of the table's column ``dataset`` to take questions from."""
    tiers: list[str] | None = None
    group_by: str | None = None
    missing: str | None = None
    budgets: list[int | float | str] | None = None
    """Instead of the comparison's budgets."""
    orders: list[str] | None = None
    preview: bool = True
    beliefs: str = "published"
    feedback: str | None = None
    coupling: str | None = None
    enforcement: str = "budget"
    decision_cost: int | None = None
    agents: list[str] = field(default_factory=list)
    """Agents for this family alone, beside the comparison's."""
    predictor: str | None = None
    """Of recorded outcomes: what is published are the groups of this predictor (a kind of `roi predict fit`, or its file)."""

    @property
    def outcomes(self) -> str | None:
        """Path of the outcome table whose splits the exams are made of; None for synthetic sources."""
        return self.table or (str(PACKAGED[self.family]) if self.family in PACKAGED else None)

    @property
    def label(self) -> str:
        """Name in tables."""
        if self.name:
            return self.name
        stem = self.family if self.table is None else Path(self.table).name.split(".")[0]
        label = f"{stem}: {self.menu}" if self.table is not None and self.menu else stem
        if self.predictor is None:
            return label
        return f"{label} ({Path(self.predictor).name if is_saved(self.predictor) else self.predictor})"

    def exam(self, budget: int | float | str, order: str) -> ExamConfig:
        """The kind of exam at one budget, in one order; what is left at None is the family's own default."""
        own = OWN_DEFAULTS.get(self.family, ExamConfig(self.family))
        names = {one.name for one in fields(ExamConfig)}
        said = {one.name: getattr(self, one.name) for one in fields(self) if one.name in names}
        # Tuples: specifications of recorded outcomes are kept by their description.
        said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
        chosen = {name: value for name, value in said.items() if value is not None}
        return own.replace(**chosen | {"budget": budget, "order": order})


@dataclass
class CompareConfig:
    """A comparison: agents x families x budgets x orders, on the same exams."""

    families: list[FamilyConfig] = field(default_factory=list)
    budgets: list[int | float | str] = field(default_factory=lambda: [0.15, 0.3, 0.6])
    """Floats are fractions of N x mean top-tier cost, integers are tokens; or tight, medium, ample."""
    orders: list[str] = field(default_factory=lambda: ["random"])
    agents: list[str] = field(default_factory=lambda: list(PLANNERS))
    exams: int = 200
    """Reported exams of every setting, ids 0 .. exams - 1."""
    exam_seed: int = 0
    """Identity's seed of the reported exams."""
    training_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Agents that learn are trained once per seed, on exams disjoint from the reported ones."""
    replicates: int = 100
    """Outcome draws per exam: for the oracle, and for agents that can only be sampled."""
    max_states: int = 4_000_000
    """Exact evaluation above this many states gives way to sampling (marked in the table)."""
    steps: int | None = None
    """Environment steps of agents that learn in the environment, all the same; None keeps their own."""
    tuned: str | None = None
    """File written by `roi tune`: hyper-parameters of agents that learn in the environment. Their names must all be in it."""
    predictors: list[str] = field(default_factory=list)
    """Predictors (kinds of `roi predict fit`, or its files) whose worth on the recorded outcomes is measured."""
    trained: list[str] = field(default_factory=list)
    """Folders of trained agents: a job found there is loaded instead of trained again."""


def at_budgets(families: list[FamilyConfig], budgets: list[int | float | str]) -> list[FamilyConfig]:
    """The families at these budgets instead of their own.

    Where a file has several entries of a family, at different budgets with different agents, each budget is taken from
    the entry that names it, else from the one with the fewest agents.
    """
    entries: dict[str, list[FamilyConfig]] = {}
    for one in families:
        entries.setdefault(repr(replace(one, budgets=None, agents=[])), []).append(one)
    chosen = [
        (min(same, key=lambda one: (budget not in (one.budgets or ()), len(one.agents))), budget)
        for same in entries.values()
        for budget in budgets
    ]
    return [replace(one, budgets=[budget]) for one, budget in chosen]


def load_config(path: Path | None, overrides: list[str], base: CompareConfig | None = None) -> CompareConfig:
    """Merge the defaults, a YAML file and dotted overrides such as ``exams=50 families.0.family=heavy``.

    :raises ConfigError: naming the file or override that does not fit.
    """
    merged: Any = OmegaConf.structured(base or CompareConfig())
    steps: list[tuple[str, Any]] = [("the defaults", merged)]
    if path is not None:
        with blamed(str(path)):
            merged = OmegaConf.merge(merged, read_settings(path))
        steps.append((str(path), merged))
    for override in overrides:
        where = f"override {override!r}"
        merged = copy.deepcopy(merged)
        with blamed(where):
            name, given, text = override.partition("=")
            if not given:
                raise ValueError("must read name=value, e.g. exams=50")
            # One by one: merging a dotted list would take the number of a family for a key.
            OmegaConf.update(merged, name, OmegaConf.from_dotlist([f"value={text}"]).value)
        steps.append((where, merged))
    refusal = _refusal(merged)
    if refusal is None:
        return _checked(merged)
    # To blame is what brought in the value that is refused: the first step since which it is refused in these words.
    to_blame, _ = steps.pop()
    while steps and _refusal(steps[-1][1]) == refusal:
        to_blame, _ = steps.pop()
    raise ConfigError(f"{to_blame}: {refusal}")


_REFUSALS = (OmegaConfBaseException, YAMLError, OSError, ValueError, IndexError, TypeError, AttributeError)
"""What OmegaConf and the reading of a file raise for a configuration that does not fit."""


@contextmanager
def blamed(where: str) -> Iterator[None]:
    """Name the file or override that does not fit.

    :raises ConfigError: for what :data:`_REFUSALS` has.
    """
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such configuration file") from None
    except _REFUSALS as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error


def read_settings(path: Path) -> DictConfig:
    """Read a file of settings.

    :raises ValueError: where it holds something else.
    """
    loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise ValueError("must hold settings (name: value), not a list")
    return _beside(path, loaded)


def _refusal(merged: Any) -> str | None:
    """Why a merged configuration is refused; None: it is not."""
    try:
        _checked(merged)
    except _REFUSALS as error:
        return " ".join(str(error).split())
    return None


def _checked(merged: Any) -> CompareConfig:
    config: CompareConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    for name in ("exams", "replicates", "max_states"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("budgets", "orders", "agents", "training_seeds"):
        if not getattr(config, name):
            raise ValueError(f"{name} must not be empty")
    for seed in (config.exam_seed, *config.training_seeds):
        check_seed(seed)
    if len(set(config.training_seeds)) < len(config.training_seeds):
        raise ValueError(f"training_seeds must differ, got {config.training_seeds}")
    config.budgets = _parsed(config.budgets)
    for family in config.families:
        family.budgets = None if family.budgets is None else _parsed(family.budgets)
    return config


def _parsed(budgets: list[int | float | str]) -> list[int | float | str]:
    return [parse_budget(budget) if isinstance(budget, str) else budget for budget in budgets]


def _beside(path: Path, loaded: DictConfig) -> DictConfig:
    """Files that a configuration names by relative paths lie relative to itself, wherever it is used from."""

    def absolute(name: Any) -> Any:
        relative = isinstance(name, str) and not name.startswith(HUB)
        return str(path.parent.resolve() / name) if relative else name

    if loaded.get("tuned"):
        loaded.tuned = absolute(loaded.tuned)
    if loaded.get("trained"):
        loaded.trained = [absolute(folder) for folder in loaded.trained]
    if loaded.get("predictors"):
        loaded.predictors = [absolute(name) if is_saved(name) else name for name in loaded.predictors]
    for family in loaded.get("families") or []:
        if isinstance(family, DictConfig) and family.get("table"):
            family.table = absolute(family.table)
        if isinstance(family, DictConfig) and is_saved(family.get("predictor") or ""):
            family.predictor = absolute(family.predictor)
    return loaded


def as_dict(config: CompareConfig) -> dict[str, Any]:
    """Plain data, for JSON."""
    return OmegaConf.to_container(OmegaConf.structured(config))  # type: ignore[return-value]


def overridden(base: _Settings, overrides: list[str]) -> _Settings:
    """A copy of a flat settings object (a dataclass) with overrides such as ``tokens=1000 families=[sum1,prod]``.

    :raises ConfigError: naming the override that does not fit, or what the settings themselves refuse.
    """
    merged: Any = OmegaConf.structured(base)
    OmegaConf.set_readonly(merged, False)  # what a frozen dataclass is
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r} must read name=value")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([override]))
        except OmegaConfBaseException as error:
            raise ConfigError(f"override {override!r}: {' '.join(str(error).split())}") from error
    try:
        settings: _Settings = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return settings
