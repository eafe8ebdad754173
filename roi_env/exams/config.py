"""What kind of exam: :class:`ExamConfig` as people write it, :class:`ExamSpec` as everything else reads it."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from roi_env.exams.arrivals import Arrivals, arrivals, order_key
from roi_env.exams.rewards import Reward, parse_reward
from roi_env.sources.packaged import PACKAGED, PAPER_TIERS, packaged_table
from roi_env.sources.source import NOT_OFFERED, Coupling, Source
from roi_env.sources.synthetic import FAMILIES, find_family
from roi_env.sources.units import UNIT_NAMES, Unit, cost_with_unit, read_cost

if TYPE_CHECKING:
    from roi_env.sources.outcome_tables import OutcomeTable, Split

Order = Literal["random", "easy_first", "hard_first", "given"]
Beliefs = Literal["published", "none"]
Feedback = Literal["cost", "cost+correct"]
Enforcement = Literal["budget", "tier_caps"]

ORDERS: tuple[Order, ...] = get_args(Order)
BUDGET_PRESETS = {"tight": 0.15, "medium": 0.3, "ample": 0.6}
"""Named budgets: fractions of the number of tasks times the mean cost of the top tier."""
EXAM_FORMAT = 1
"""Raised when the same description and seed name other exams than before: results of before are then not comparable. Where
exams are made of a table, packaged or not, what tells results apart is the table's content."""

_ORDER_CODE = {"random": 0, "easy_first": 1, "hard_first": 2, "given": 3}


@dataclass(frozen=True)
class ExamSpec:
    """Everything that defines a kind of exam; see :class:`ExamConfig` for the meaning of the fields.

    ``budget`` is in the source's unit. Build it with :meth:`ExamConfig.resolve` or :func:`exam_spec`, which validate.
    """

    source: Source
    num_tasks: int
    budget: int
    order: Order = "random"
    preview: bool = True
    beliefs: Beliefs = "published"
    reward: Reward = Reward("score")  # noqa: RUF009 - a frozen constant
    feedback: Feedback = "cost"
    decision_cost: int = 0

    @property
    def num_tiers(self) -> int:
        """Number of tiers K."""
        return self.source.num_tiers

    @cached_property
    def min_cost(self) -> npt.NDArray[np.int64]:
        """(G, K) int64: tier k of group g is legal while this many tokens (decision cost included) remain.

        The published minimum with beliefs, one token without; ``NOT_OFFERED`` where the tier is not offered.
        """
        source = self.source
        offered = source.published.offered[: source.num_groups]
        known = source.beliefs.min_cost if self.beliefs == "published" else np.ones_like(source.beliefs.min_cost)
        return np.where(
            offered & (known < NOT_OFFERED),
            np.minimum(known.astype(np.int64) + self.decision_cost, NOT_OFFERED),
            NOT_OFFERED,
        )

    @cached_property
    def arrivals(self) -> Arrivals:
        """The law of the sequence of groups: what is known of later tasks where they are not shown."""
        source = self.source
        key = order_key(self.order, source.group_key, source.given_key)
        return arrivals(self.num_tasks, source.group_probability, key)

    @property
    def order_code(self) -> int:
        """Order as a number for compiled code."""
        return _ORDER_CODE[self.order]

    def replace(self, **changes: Any) -> ExamSpec:
        """A copy with other fields, validated again; ``budget`` and ``reward`` are read as by :class:`ExamConfig`."""
        spec = _validated(dataclasses.replace(self, **changes))
        if "budget" in changes:
            spec = dataclasses.replace(spec, budget=_resolve_budget(changes["budget"], spec.source, spec.num_tasks))
        return spec


class MissingArgument(gym.error.MissingArgument, ValueError):
    """Exams were described without something that they cannot do without; the message names it."""


@dataclass(frozen=True)
class ExamConfig:
    """A kind of exam as people describe it: the arguments of the environments, of every command and of its files.

    :param family: task family (``sources.synthetic.FAMILIES``), "tinylm" or "math" (packaged tables), "paper" (the paper's exams, of
        a packaged table or of ``table``), "recorded" (needs ``table``) or a :class:`~roi_env.sources.source.Source`.
    :param num_tasks: N; default 10 (``paper``: 3), at most the number of questions of a recorded source.
    :param budget: an ``int`` is tokens (of a source that costs dollars: refused), ``"2.50usd"`` dollars; a ``float`` is a fraction of N times the mean cost of the top tier; or a
        preset name ("tight" .15, "medium" .3, "ample" .6), or either number as text. Fewer tokens than tasks, and than a
        twentieth of the whole cost, cause a warning (not for live questions): a fraction was probably meant.
    :param order: "random", "easy_first" / "hard_first" (by the published key, never by hidden difficulty) or "given"
        (the table's own order; for synthetic families the order of drawing).
    :param preview: whether the features of later tasks are shown.
    :param beliefs: "published" shows success probability and expected cost of every tier; "none" does not.
    :param reward: see :func:`roi_env.exams.rewards.parse_reward`.
    :param feedback: "cost": the remaining budget alone tells; "cost+correct" also shows whether the answer was right.
    :param coupling: override of the source's coupling between tiers.
    :param tiers: names of the tiers to offer (default: all; of the packaged table ``paper`` offers the paper's three).
    :param decision_cost: tokens added to every action, skip included; default 0, or what the table says.
    :param enforcement: "budget": only the exam's budget cuts; "tier_caps": every tier is also cut at its own cap.
    :param table: recorded outcomes: an outcome table or its path.
    :param menu: which of the table's menus of comparable tiers; may be left out where it has one.
    :param datasets: values of the table's column ``dataset`` to take questions from (default: all).
    :param split: the table's questions that exams are made of (default: "test").
    :param group_by: the table's column that is published (default: "dataset").
    :param missing: questions without generations at one of the tiers: "drop" (default) or "mask".
    """

    family: str | Source = "signal"
    num_tasks: int | None = None
    budget: int | float | str = 0.3
    order: Order = "random"
    preview: bool = True
    beliefs: Beliefs = "published"
    reward: str | Reward = "score"
    feedback: Feedback = "cost"
    coupling: Coupling | None = None
    tiers: Sequence[str] | None = None
    decision_cost: int | None = None
    enforcement: Enforcement = "budget"
    table: str | os.PathLike[str] | OutcomeTable | None = None
    menu: str | None = None
    datasets: Sequence[str] | None = None
    split: Split | None = None
    group_by: str | None = None
    missing: Literal["drop", "mask"] | None = None

    def replace(self, **changes: Any) -> ExamConfig:
        """A copy with other fields."""
        return dataclasses.replace(self, **changes)

    def differing(self) -> dict[str, Any]:
        """The fields that are not at their defaults."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        # Types first: sources and tables hold arrays, which compare element by element.
        return {
            name: value
            for name, value in values.items()
            if type(value) is not type(defaults[name]) or value != defaults[name]
        }

    def resolve(self) -> ExamSpec:
        """Read the table, build the source, count the budget in tokens, check everything.

        :raises MissingArgument: (a ValueError) without a table where one is needed, or without the menu of a table of several.
        :raises ValueError: naming the field, what was expected and what to do.
        """
        table = self._table()
        paper = isinstance(self.family, str) and self.family == "paper"
        num_tasks = _count("num_tasks", (3 if paper else 10) if self.num_tasks is None else self.num_tasks, 1)
        _one_of("enforcement", self.enforcement, get_args(Enforcement))
        tiers = PAPER_TIERS if paper and self.table is None and self.tiers is None else self._tier_names()
        if table is not None:
            from roi_env.sources.recorded import recorded_source

            # The table is cut to the tiers before it is split and counted, so that dropped questions are counted for them.
            source = recorded_source(table, tiers=tiers, stratify=paper, **self._of_table())
        else:
            source = self.family if isinstance(self.family, Source) else self._build_family(num_tasks)
            source = source if tiers is None else source.with_tiers(tiers)
        if self.enforcement == "tier_caps":
            source = source.with_caps_enforced()
        if self.coupling is not None:
            source = source.with_coupling(self.coupling)
        _check_unit(self.budget, source)
        default_cost = 0 if table is None else table.decision_cost
        return _validated(
            ExamSpec(
                source=source,
                num_tasks=num_tasks,
                budget=_resolve_budget(self.budget, source, num_tasks),
                order=self.order,
                preview=self.preview,
                beliefs=self.beliefs,
                reward=parse_reward(self.reward),
                feedback=self.feedback,
                decision_cost=default_cost if self.decision_cost is None else self.decision_cost,
            )
        )

    def _of_table(self) -> dict[str, Any]:
        names = ("menu", "datasets", "split", "group_by", "missing")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _tier_names(self) -> Sequence[str] | None:
        if isinstance(self.tiers, str):
            return [self.tiers]
        if self.tiers is not None and not isinstance(self.tiers, Sequence):
            raise ValueError(f"tiers must be a list of names, got {self.tiers!r}")
        return self.tiers

    def _table(self) -> OutcomeTable | None:
        if isinstance(self.family, str) and self.family in PACKAGED:
            if self.table is None:
                return packaged_table(self.family)
            if self.family != "paper":
                raise ValueError(
                    f"family={self.family!r} brings its own table: leave table out, or choose family='recorded'"
                )
        if self.table is None:
            if self.family == "recorded":
                raise MissingArgument(
                    "family='recorded' (ROIReasoning-Recorded-v0) needs table=PATH (an outcome table: Parquet, CSV or "
                    "JSONL) or an OutcomeTable"
                )
            if given := sorted(self._of_table()):
                raise MissingArgument(f"{given} belong to recorded outcomes: give table=PATH too")
            return None
        from roi_env.sources.outcome_tables import OutcomeTable

        if not isinstance(self.table, (str, os.PathLike, OutcomeTable)):
            raise ValueError(f"table must be the path of an outcome table or an OutcomeTable, got {self.table!r}")
        table = self.table if isinstance(self.table, OutcomeTable) else OutcomeTable.read(self.table)
        if self.menu is None and len(table.menus) > 1:
            raise MissingArgument(
                f"{table.path} holds {len(table.menus)} menus, whose tiers cannot be compared; give menu= one of "
                f"{list(table.menus)}"
            )
        return table

    def _build_family(self, num_tasks: int) -> Source:
        if not isinstance(self.family, str):
            raise ValueError(f"family must be a family's name or a Source, got {type(self.family).__name__}")
        build = find_family(self.family)
        if build is None:
            raise ValueError(
                f"family must be one of {[*FAMILIES, *PACKAGED]}, 'recorded' with a table, or a Source; got {self.family!r}"
            )
        return build(num_tasks)


OWN_DEFAULTS = {
    "known": ExamConfig("known"),
    "heavy": ExamConfig("heavy"),
    "cap": ExamConfig("cap"),
    "latent": ExamConfig("latent", feedback="cost+correct"),
    "recorded": ExamConfig("recorded"),
    "tinylm": ExamConfig("tinylm", num_tasks=8, group_by="kind"),
    "math": ExamConfig("math"),
    "paper": ExamConfig("paper", num_tasks=3, budget=1024, order="easy_first"),
}
"""What the registered environment of a family has by default (``ROIReasoning-Latent-v0`` of "latent"); commands too."""


def exam_spec(family: str | Source | ExamSpec = "signal", **settings: Any) -> ExamSpec:
    """``ExamConfig(family, ...).resolve()``; a resolved :class:`ExamSpec` is taken as it is.

    :param settings: the fields of :class:`ExamConfig`.
    :raises ValueError: as :meth:`ExamConfig.resolve`, and for anything that would change a resolved specification.
    """
    if not isinstance(family, ExamSpec):
        return ExamConfig(family, **settings).resolve()
    if given := sorted(ExamConfig(**settings).differing()):
        raise ValueError(f"an ExamSpec is complete, {given} would change it: use spec.replace(...) instead")
    return family


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def parse_budget(text: str) -> int | float | str:
    """Read a budget as the command line and the environments take it: ``"512"`` tokens, ``"0.3"`` or a preset's name, or an
    amount with its unit: ``"2.50usd"``, ``"$2.50"``, ``"300 micro-usd"``, ``"512 tokens"``, ``"50k"``.

    :returns: tokens (int) or a fraction (float), whose range :func:`exam_spec` checks; money stays text, which
        :func:`exam_spec` reads where costs are money.
    :raises ValueError: for any other text.
    """
    text = text.strip()
    try:
        amount = read_cost(text)
    except ValueError as error:
        raise ValueError(f"budget {text!r}: {error}") from None
    if amount is not None:
        return amount[0] if amount[1] == "tokens" else text
    if text in BUDGET_PRESETS:
        return BUDGET_PRESETS[text]
    try:
        text.encode("ascii")  # Python reads digits of other scripts too
        try:
            return int(text)
        except ValueError:
            return float(text)
    except ValueError:
        hint = " (a percentage is written as a fraction: 30% is 0.3)" if text.endswith("%") else ""
        raise ValueError(
            f"budget {text!r} is neither tokens (512, 50k) nor dollars (2.50usd) nor a fraction (0.3) nor one of "
            f"{list(BUDGET_PRESETS)}{hint}"
        ) from None


_LARGEST_FRACTION = 10


def _resolve_budget(budget: Any, source: Source, num_tasks: int) -> int:
    unit = num_tasks * source.mean_top_cost
    if isinstance(budget, np.ndarray) and budget.ndim == 0:
        budget = budget[()]
    if isinstance(budget, str):
        budget = parse_budget(budget)
    name = UNIT_NAMES[source.unit]
    if isinstance(budget, str):
        amount = read_cost(budget)
        assert amount is not None  # what parse_budget leaves as text
        if amount[1] != source.unit:
            raise ValueError(
                f"budget {budget!r} is money, but the costs of {source.name!r} are {name}: give 512 or a fraction"
            )
        if amount[0] < 1:
            raise ValueError(f"budget {budget!r} is less than a micro-dollar")
        return _fits(amount[0], source.unit)
    if isinstance(budget, (float, np.floating)):
        if not math.isfinite(budget) or not 0 < budget <= _LARGEST_FRACTION:
            raise ValueError(
                f"budget {float(budget)}: a float is a fraction in (0, {_LARGEST_FRACTION}] of num_tasks x mean "
                f"top-tier cost ({cost_with_unit(unit, source.unit)} here); pass an int for tokens, '2.50usd' for dollars"
            )
        return _fits(max(1, round(float(budget) * unit)), source.unit)
    if isinstance(budget, (bool, np.bool_)) or not isinstance(budget, (int, np.integer)) or budget < 1:
        raise ValueError(
            f"budget must be an integer >= 1 (tokens), a float in (0, {_LARGEST_FRACTION}] (a fraction) or one of "
            f"{list(BUDGET_PRESETS)}, or money as text ('2.50usd'), got {budget!r}"
        )
    tokens = _fits(int(budget), source.unit)
    # A source without outcomes is live questions: who spends real tokens gives tokens.
    if source.outcomes.size and tokens < max(2, min(num_tasks, _LARGEST_FRACTION)) and tokens < 0.05 * unit:
        warnings.warn(
            f"budget={tokens} means {tokens} {'token' if tokens == 1 else 'tokens'} for {num_tasks} {'task' if num_tasks == 1 else 'tasks'}; if a fraction "
            f"was meant, write {float(tokens)}: {round(tokens * unit)} tokens here",
            stacklevel=4,
        )
    return tokens


def _fits(cost: int, unit: Unit) -> int:
    if cost > np.iinfo(np.int32).max // 2:
        raise ValueError(f"budget must stay below 2**30 {unit}, got {cost}: take fewer tasks or a smaller fraction")
    return cost


def _check_unit(budget: int | float | str, source: Source) -> None:
    """Money is never given as a bare number.

    :raises ValueError: where it is.
    """
    if source.unit != "tokens" and not isinstance(budget, (str, float, np.floating)):
        raise ValueError(
            f"budget {budget!r} has no unit, and the costs of {source.name!r} are {UNIT_NAMES[source.unit]}: write '2.50usd' or "
            f"'{budget} micro-usd', or give a fraction"
        )
    if source.unit != "tokens" and isinstance(budget, str) and isinstance(parse_budget(budget), int):
        raise ValueError(
            f"budget {budget!r} is tokens, but the costs of {source.name!r} are {UNIT_NAMES[source.unit]}: write 2.50usd, or a "
            "fraction (0.3)"
        )


def _validated(spec: ExamSpec) -> ExamSpec:
    _one_of("order", spec.order, ORDERS)
    _one_of("beliefs", spec.beliefs, get_args(Beliefs))
    _one_of("feedback", spec.feedback, get_args(Feedback))
    if not isinstance(spec.preview, (bool, np.bool_)):
        raise ValueError(f"preview must be True or False, got {spec.preview!r}")
    spec = dataclasses.replace(
        spec,
        num_tasks=_count("num_tasks", spec.num_tasks, 1),
        decision_cost=_count("decision_cost", spec.decision_cost, 0),
        reward=parse_reward(spec.reward),
    )
    source = spec.source
    if not source.replacement:
        smallest = int(np.diff(source.strata).min())
        most = smallest * source.num_strata
        if spec.num_tasks > most:
            raise ValueError(
                f"num_tasks {spec.num_tasks} exceeds the {most} distinct questions that source {source.name!r} can give "
                "(no question occurs twice in an exam): lower num_tasks or use a larger split"
            )
    return spec
