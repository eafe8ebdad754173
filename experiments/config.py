"""Configuration of a comparison: a dataclass, a YAML file, dotted overrides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from roi_env.data import TINYLM
from roi_env.generators import FAMILIES

VARIANTS = (*FAMILIES, "tinylm")
"""Kinds of exams by name alone: synthetic families, and the small language model's recorded outcomes."""

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
class VariantConfig:
    """One kind of exam; budgets and orders are crossed with it. Fields left at None keep the variant's own default."""

    source: str = MISSING
    """Family name (known, signal, heavy, cap, latent, paper), "recorded", or "tinylm" (the package's own recorded outcomes)."""
    name: str | None = None
    """Name in tables; default: the source, or the table's name and family."""
    num_tasks: int | None = None
    table: str | None = None
    """Outcome table (Parquet, CSV or JSONL)."""
    family: str | None = None
    datasets: list[str] | None = None
    """Values of the table's column ``dataset`` to take questions from."""
    tiers: list[str] | None = None
    group_by: str | None = None
    missing: str | None = None
    budgets: list[Any] | None = None
    """Instead of the comparison's budgets."""
    orders: list[str] | None = None
    preview: bool = True
    beliefs: str = "published"
    feedback: str | None = None
    coupling: str | None = None
    enforcement: str = "budget"
    decision_cost: int | None = None
    agents: list[str] = field(default_factory=list)
    """Agents for this variant alone, beside the comparison's."""

    @property
    def outcomes(self) -> str | None:
        """Path of the outcome table whose splits the exams are made of; None for synthetic sources."""
        return str(TINYLM) if self.source == "tinylm" else self.table


@dataclass
class CompareConfig:
    """A comparison: agents x variants x budgets x orders, on the same exams."""

    variants: list[VariantConfig] = field(default_factory=list)
    budgets: list[Any] = field(default_factory=lambda: [0.15, 0.3, 0.6])
    """Floats are fractions of N x mean top-tier cost, integers are tokens."""
    orders: list[str] = field(default_factory=lambda: ["random"])
    agents: list[str] = field(default_factory=lambda: list(PLANNERS))
    exams: int = 200
    """Reported exams of every setting, ids 0 .. exams - 1."""
    seed: int = 0
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
    trained: list[str] = field(default_factory=list)
    """Folders of trained agents: a cell found there is loaded instead of trained again."""


def load_config(path: Path | None, overrides: list[str], base: CompareConfig | None = None) -> CompareConfig:
    """Merge the defaults, a YAML file and dotted overrides such as ``exams=50 variants.0.source=heavy``.

    :raises ConfigError: naming the file or override that does not fit.
    """
    merged: Any = OmegaConf.structured(base or CompareConfig())
    try:
        if path is not None:
            merged = OmegaConf.merge(merged, _beside(path, OmegaConf.load(path)))
        for override in overrides:
            name, given, text = override.partition("=")
            if not given:
                raise ConfigError(f"override {override!r} must read name=value, e.g. exams=50")
            # One by one: merging a dotted list would take the number of a variant for a key.
            OmegaConf.update(merged, name, OmegaConf.from_dotlist([f"value={text}"]).value)
        config: CompareConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError, IndexError, TypeError) as error:
        where = f"{path}: " if path is not None else ""
        raise ConfigError(f"{where}{' '.join(str(error).split())}") from error
    for name in ("exams", "replicates", "max_states"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("budgets", "orders", "agents", "training_seeds"):
        if not getattr(config, name):
            raise ConfigError(f"{name} must not be empty")
    return config


def _beside(path: Path, loaded: Any) -> Any:
    """Files that a configuration names by relative paths lie relative to itself, wherever it is used from."""

    def absolute(name: Any) -> Any:
        return str(path.parent.resolve() / name) if isinstance(name, str) else name

    if loaded.get("tuned"):
        loaded.tuned = absolute(loaded.tuned)
    if loaded.get("trained"):
        loaded.trained = [absolute(folder) for folder in loaded.trained]
    for variant in loaded.get("variants") or []:
        if variant.get("table"):
            variant.table = absolute(variant.table)
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
