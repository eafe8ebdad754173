"""From a run folder to numbers: what ``roi compare`` wrote, summarised with paired intervals.

:func:`analyse` reads the Parquet files of a run into a :class:`Comparison`; :func:`summarise` writes them down as
``summary.parquet`` and ``summary.json``. The report (``experiments.report.html``) draws the same object.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.predicting import percent, verdict
from roi_env.files import replacing
from roi_env.measures import metrics
from roi_env.measures.metrics import Floats, Interval
from roi_env.measures.recovery import Recovered, recovered
from roi_env.sources.units import Unit, cost_text

RESAMPLES = 2000
OPTIONAL = (
    "positions",
    "choices",
    "tier_calibration",
    "tasks",
    "trajectory",
    "learning",
    "missing",
    "predictors",
)
"""Files of a run folder that it may lack."""
QUANTITIES = ("score", "tokens", "truncated", "skipped", "reached")
REFERENCES = ("optimum", "informed", "oracle")
OPTIMUM = "optimum"
REACHABLE = "reachable"
"""The optimum of the train laws: what a user can reach on recorded sources (runs of earlier versions lack it)."""
GATE = ("resolve", "population-bid-price")
"""An agent is worth reporting when it beats the better of these two; parameters in parentheses may follow."""
FIXED = re.compile(r"^fixed", re.IGNORECASE)
SKIP = "skip"  # scores 0 by definition: in the tables, but neither highlighted nor news

Columns = dict[str, npt.NDArray[Any]]


class RunError(ValueError):
    """A run folder does not hold what it should; the message names the file."""


@dataclass(frozen=True)
class AgentResult:
    """One agent in one setting.

    ``values[name]`` is (S, E), per training seed and exam, for each name in ``QUANTITIES``; ``replicates[name]`` is
    (R,), its mean under each bootstrap replicate; ``seed_weights`` is (R, S), None for one seed.
    """

    agent: str
    evaluation: str
    values: dict[str, Floats]
    replicates: dict[str, Floats]
    seed_weights: Floats | None

    def mean(self, name: str) -> float:
        """Mean of a quantity over seeds and exams."""
        return float(self.values[name].mean())


@dataclass(frozen=True)
class Prediction:
    """What a predictor recovers in one setting, on test questions, cross-fitted.

    :param informed: how the informed value that it is held against was estimated.
    :param reason: why there is nothing to say; "" where there is.
    """

    predictor: str
    informed: str
    reason: str
    found: Recovered | None

    @property
    def sentence(self) -> str:
        """In words."""
        if self.found is None:
            return f"predictor {self.predictor}: {self.reason}"
        one = self.found
        return (
            f"predictor {self.predictor}: information recovered {verdict(one)}; {percent(one.gain)} in score. To recover: "
            f"{percent(one.information)} of what train laws reach (informed, by {self.informed}; raw, on the samples that it "
            f"knows, {percent(one.raw)})"
        )

    def record(self) -> dict[str, Any]:
        """As plain data."""
        head = {"predictor": self.predictor, "informed": self.informed, "reason": self.reason}
        found = {} if self.found is None else {name: one._asdict() for name, one in self.found._asdict().items()}
        return head | {"sentence": self.sentence} | found


@dataclass(frozen=True)
class SettingResult:
    """One task family at one budget: the exams, the reference values and every agent that took them.

    ``references[name]`` is (E,) and ``reference_replicates[name]`` (R,), for ``REFERENCES``, ``optimum_upper`` and, on
    recorded sources, ``REACHABLE``; ``optimism`` estimates by how much the mean of ``optimum`` is too high for having been
    planned on the questions that are scored (None: not recorded);
    ``reference_noise[name]`` is the standard error of the mean of a reference that was sampled (0: exact, or not
    recorded), part of its interval already.
    ``questions`` is (E, N) for recorded sources, else None.
    """

    row: dict[str, Any]
    exams: npt.NDArray[np.int64]
    questions: npt.NDArray[np.int64] | None
    references: dict[str, Floats]
    reference_replicates: dict[str, Floats]
    reference_noise: dict[str, float]
    optimism: float | None = None
    predictions: list[Prediction] = field(default_factory=list)
    entries: dict[str, AgentResult] = field(default_factory=dict)

    @property
    def id(self) -> int:
        """The setting's number in the run folder."""
        return int(self.row["setting"])

    @property
    def budget(self) -> int:
        """Budget B in the setting's unit."""
        return int(self.row["budget"])

    @property
    def unit(self) -> Unit:
        """What costs count; runs of before units count tokens."""
        return self.row.get("unit") or "tokens"

    @property
    def budget_text(self) -> str:
        """The budget as people read it."""
        return f"{self.budget:,}" if self.unit == "tokens" else cost_text(self.budget, self.unit)

    @property
    def budget_label(self) -> str:
        """The budget in words: tokens or dollars, and the fraction of what the top tier would cost where it is known."""
        fraction = self.row.get("budget_fraction")
        known = fraction is not None and math.isfinite(fraction)
        return f"B = {self.budget_text}" + (f" ({fraction:.3g} of all-top-tier)" if known else "")

    @cached_property
    def no_interval(self) -> str | None:
        """Why the setting's exams allow no interval, in words; then all ends of its intervals are NaN."""
        return metrics.no_interval(len(self.exams), self.questions)

    @property
    def is_bracket(self) -> bool:
        """True when the optimum is known only between two ends (latent)."""
        return bool(self.upper > self.reference(OPTIMUM) * (1 + 1e-6))

    @property
    def upper(self) -> float:
        """Mean upper end of the optimum; the optimum itself unless it is a bracket."""
        return float(self.references["optimum_upper"].mean())

    def reference(self, name: str) -> float:
        """Mean of a reference value over exams."""
        return float(self.references[name].mean())

    @cached_property
    def _design(self) -> metrics.QuestionDesign | None:
        return None if self.questions is None or self.no_interval else metrics.QuestionDesign(self.questions)

    def _interval(
        self, value: float, replicates: Floats, *parts: Floats, bounds: tuple[float, float] | None = None
    ) -> Interval:
        """Interval of a statistic whose influence, per seed and exam, is the sum of ``parts`` ((S, E) each)."""
        stretch = 1.0
        if self._design is not None and math.isfinite(value):
            seeds = sum(float(part.mean(1).var(ddof=1)) / len(part) for part in parts if len(part) > 1)
            stretch = self._design.stretch(np.sum([part.mean(0) for part in parts], axis=0), seeds)
        return metrics.interval(value, replicates, stretch=stretch, bounds=bounds)

    def _one(self, name: str) -> Floats:
        return self.references[name][None]

    def reference_interval(self, name: str) -> Interval:
        """Mean of a reference value with its interval."""
        return self._interval(self.reference(name), self.reference_replicates[name], self._one(name))

    def interval(self, agent: str, name: str) -> Interval:
        """Mean of one of an agent's ``QUANTITIES`` with its interval."""
        entry = self.entries[agent]
        return self._interval(entry.mean(name), entry.replicates[name], entry.values[name])

    def coincides(self, agent: str, name: str = OPTIMUM) -> bool:
        """Whether an agent scores what a reference does in every exam: a ratio of the two then says nothing of others."""
        scores, best = self.entries[agent].values["score"], self._one(name)
        return bool((np.abs(scores - best) <= metrics.SAME_SCORE * np.maximum(np.abs(best), 1.0)).all())

    def _within(self, agent: str, name: str) -> bool:
        """Whether a reference bounds an agent's score exam by exam (synthetic sources, evaluated exactly)."""
        best = self._one(name)
        over = self.entries[agent].values["score"] - best
        return self.questions is None and bool((over <= metrics.SAME_SCORE * np.maximum(np.abs(best), 1.0)).all())

    def normalised(self, agent: str, upper: bool = False) -> Interval:
        """Optimum-normalised score of an agent; against the bracket's upper end on request."""
        return self.share(agent, "optimum_upper" if upper else OPTIMUM)

    def share(self, agent: str, name: str) -> Interval:
        """Mean score of an agent over the mean of a reference."""
        entry, best = self.entries[agent], self.reference(name)
        value = metrics.normalised(entry.mean("score"), best)
        return self._interval(
            value,
            metrics.normalised(entry.replicates["score"], self.reference_replicates[name]),
            (entry.values["score"] - value * self._one(name)) / (best or 1.0),
            bounds=(0.0, 1.0) if self._within(agent, name) else None,
        )

    def missed(self, agent: str, name: str) -> Interval:
        """What an agent misses of a reference: the reference's mean minus its mean score."""
        entry, best = self.entries[agent], self.reference(name)
        return self._interval(
            best - entry.mean("score"),
            self.reference_replicates[name] - entry.replicates["score"],
            self._one(name) - entry.values["score"],
            bounds=(0.0, best) if self._within(agent, name) else None,
        )

    def difference(self, one: str, other: str) -> Interval:
        """Difference of two references' means, the one minus the other."""
        return self._interval(
            self.reference(one) - self.reference(other),
            self.reference_replicates[one] - self.reference_replicates[other],
            self._one(one) - self._one(other),
        )

    def gap_ratio(self, agent: str) -> Interval:
        """:func:`roi_env.measures.metrics.gap_ratio` of an agent."""
        entry, oracle = self.entries[agent], self.reference("oracle")
        value = metrics.gap_ratio(entry.mean("score"), oracle)
        return self._interval(
            value,
            metrics.gap_ratio(entry.replicates["score"], self.reference_replicates["oracle"]),
            ((1 - value) * self._one("oracle") - entry.values["score"]) / (oracle or 1.0),
        )

    def advantage(self, agent: str, other: str) -> Interval:
        """Paired difference of two optimum-normalised scores, agent minus other."""
        a, b, best = self.entries[agent], self.entries[other], self.reference(OPTIMUM)
        value = metrics.normalised(a.mean("score") - b.mean("score"), best)
        return self._interval(
            value,
            metrics.normalised(a.replicates["score"] - b.replicates["score"], self.reference_replicates[OPTIMUM]),
            (a.values["score"] - value * self._one(OPTIMUM)) / (best or 1.0),
            -b.values["score"] / (best or 1.0),
        )

    def paper_regret(self, agent: str, easy: SettingResult) -> Interval:
        """:func:`roi_env.measures.metrics.paper_regret` of an agent; ``easy`` has the same exams easiest first."""
        entry, first = self.entries[agent], easy.entries[agent]
        value, best = metrics.paper_regret(entry.mean("score"), first.mean("score")), first.mean("score") or 1.0
        return self._interval(
            value,
            metrics.paper_regret(entry.replicates["score"], first.replicates["score"]),
            ((1 - value) * first.values["score"] - entry.values["score"]) / best,
        )

    def ranking(self) -> list[str]:
        """Agents, best mean score first."""
        return sorted(self.entries, key=lambda name: -self.entries[name].mean("score"))


@dataclass(frozen=True)
class Comparison:
    """A run folder in memory, with every bootstrap replicate that its intervals need.

    ``tables`` holds the optional files (positions, choices, tier_calibration, trajectory, learning, missing) as columns.
    """

    config: dict[str, Any]
    settings: list[SettingResult]
    tables: dict[str, Columns]
    seed: int
    resamples: int

    @cached_property
    def agents(self) -> list[str]:
        """All agents, best mean optimum-normalised score first; the optimum leads."""

        def standing(agent: str) -> float:
            taken = [s.normalised(agent).value for s in self.settings if agent in s.entries]
            finite = [v for v in taken if math.isfinite(v)]
            return float(np.mean(finite)) if finite else -math.inf

        names = {name for s in self.settings for name in s.entries}
        return sorted(names, key=lambda name: (name != OPTIMUM, -standing(name), name))

    @cached_property
    def gate(self) -> str | None:
        """The better of the re-solving LP and the population bid price; None when neither took part."""
        return next((name for name in self.agents if name.partition("(")[0] in GATE), None)

    @cached_property
    def families(self) -> list[list[SettingResult]]:
        """Settings that differ only by budget, smallest budget first."""
        groups: dict[str, list[SettingResult]] = {}
        for setting in self.settings:
            groups.setdefault(_family(setting.row), []).append(setting)
        return [sorted(group, key=lambda s: s.budget) for group in groups.values()]

    def weights(self, setting: SettingResult) -> Floats:
        """(R, E) exam weights of a setting: the ones that all its replicates were computed from."""
        return _weights(setting.exams, setting.questions, self.resamples, self.seed)

    def easy_first(self, setting: SettingResult) -> SettingResult | None:
        """The same exams at the same budget, easiest task first; None if the run has no such setting."""
        if setting.row["order"] == "easy_first":
            return None
        for other in self.settings:
            same = all(other.row.get(k) == v for k, v in setting.row.items() if k not in ("setting", "label", "order"))
            if same and other.row["order"] == "easy_first" and np.array_equal(other.exams, setting.exams):
                return other
        return None

    def table(self, name: str, setting: int, agent: str | None = None) -> Columns | None:
        """Rows of an optional file for a setting (and agent); None when there are none."""
        columns = self.tables.get(name)
        if columns is None:
            return None
        keep = columns["setting"] == setting
        if agent is not None:
            keep &= columns["agent"] == agent
        return {k: v[keep] for k, v in columns.items()} if keep.any() else None


def analyse(run: Path, resamples: int = RESAMPLES) -> Comparison:
    """Read a run folder and compute every bootstrap replicate.

    Args:
        run: folder with ``config.json``, ``settings.parquet``, ``references.parquet``, ``scores.parquet`` and, where
            the runner wrote them, those of :data:`OPTIONAL`.
        resamples: R, bootstrap replicates.

    Raises:
        RunError: a file is missing, unreadable, or an agent did not take all exams of a setting.
    """
    config = _config(run)
    rows = _read(run, "settings").to_pylist()
    references = _columns(_read(run, "references"))
    scores = _columns(_read(run, "scores"))
    tables = {name: _columns(_read(run, name)) for name in OPTIONAL if (run / f"{name}.parquet").exists()}
    tasks, predictors = tables.pop("tasks", None), tables.pop("predictors", None)
    seed = int(config.get("exam_seed") or 0)
    settings, cache = [], _WeightCache(resamples, seed)
    for row in rows:
        own = references["setting"] == row["setting"]
        if not own.any():
            raise RunError(f"{run / 'references.parquet'}: no rows for setting {row['setting']}")
        order = np.argsort(references["exam"][own])
        exams = references["exam"][own][order].astype(np.int64)
        values = {name: references[name][own][order].astype(np.float64) for name in REFERENCES}
        upper = references.get("optimum_upper")
        values["optimum_upper"] = values[OPTIMUM] if upper is None else upper[own][order].astype(np.float64)
        noise = dict.fromkeys((*REFERENCES, "optimum_upper"), 0.0)
        for name in REFERENCES:
            if f"{name}_noise" in references:
                each = references[f"{name}_noise"][own]
                noise[name] = float(np.sqrt((each**2).sum()) / len(each))
        optimism = None
        if not row["synthetic"] and REACHABLE in references and np.isfinite(references[REACHABLE][own]).all():
            values[REACHABLE] = references[REACHABLE][own][order].astype(np.float64)
            # The best policy for a sample cannot be worth less on it than the truly best one: below 0 is noise.
            optimism = max(0.0, float(references["optimism"][own].mean()))
        questions = None if row["synthetic"] or tasks is None else _questions(tasks, row["setting"], exams)
        weights = cache.get(exams, questions)
        setting = SettingResult(
            row,
            exams,
            questions,
            values,
            {k: metrics.resampled_means(v, weights) for k, v in values.items()},
            noise,
            optimism,
            _predictions(predictors, row["setting"], values, questions, resamples, seed),
        )
        own = scores["setting"] == row["setting"]
        of_setting = {k: v[own] for k, v in scores.items()}
        for agent in dict.fromkeys(of_setting["agent"].tolist()):
            setting.entries[agent] = _entry(agent, of_setting, setting, weights, seed)
        settings.append(setting)
    if not settings:
        raise RunError(f"{run / 'settings.parquet'}: no settings")
    return Comparison(config, settings, tables, seed, resamples)


def _predictions(
    predictors: Columns | None,
    setting: int,
    values: dict[str, Floats],
    questions: npt.NDArray[np.int64] | None,
    resamples: int,
    seed: int,
) -> list[Prediction]:
    """What predictors recover in a setting, from the rows of ``predictors.parquet``."""
    if predictors is None or questions is None or REACHABLE not in values:
        return []
    result = []
    own = predictors["setting"] == setting
    for agent in dict.fromkeys(predictors["agent"][own].tolist()):
        rows = np.flatnonzero(own & (predictors["agent"] == agent))
        rows = rows[np.argsort(predictors["exam"][rows])]
        column = {name: array[rows] for name, array in predictors.items()}
        reason, found = str(column["reason"][0]), None
        if not reason:
            scores = (column["reachable"], values[REACHABLE], column["informed"], values["informed"])
            found = recovered(*scores, questions, resamples, seed)
        result.append(Prediction(agent.partition(" ")[2], str(column["method"][0]), reason, found))
    return result


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat record per (setting, agent): estimates, and interval ends in columns ``*_low`` and ``*_high``.

    ``normalised_vs_upper`` and ``policy_vs_upper`` use the upper end of the optimum's bracket; ``of_reachable`` is the
    share of what the optimum of the train laws scores (recorded sources); ``ahead_of_gate`` is the paired difference of
    optimum-normalised scores; ``paper_regret`` exists where the run has the same exams easiest first; ``seed_shares``
    holds the optimum-normalised score of every training seed, ``worst_seed`` the least of them (several seeds only).
    ``no_interval`` says why a setting has no intervals, ``coincides`` why a row's share of the optimum has none. Undefined
    numbers, and the ends of intervals without width, are None.
    """
    result = []
    for setting in comparison.settings:
        easy = comparison.easy_first(setting)
        for agent in setting.ranking():
            entry = setting.entries[agent]
            intervals = {name: setting.interval(agent, name) for name in QUANTITIES}
            intervals["spend"] = Interval(*(x / setting.budget for x in intervals["tokens"]))
            intervals["normalised"] = setting.normalised(agent)
            intervals["normalised_vs_upper"] = setting.normalised(agent, upper=True)
            if REACHABLE in setting.references:
                intervals["of_reachable"] = setting.share(agent, REACHABLE)
            intervals["luck"] = setting.difference("oracle", "informed")
            intervals["information"] = setting.difference("informed", OPTIMUM)
            intervals["policy"] = setting.missed(agent, OPTIMUM)
            intervals["policy_vs_upper"] = setting.missed(agent, "optimum_upper")
            intervals["gap_ratio"] = setting.gap_ratio(agent)
            if comparison.gate in setting.entries and comparison.gate is not None:
                intervals["ahead_of_gate"] = setting.advantage(agent, comparison.gate)
            if easy is not None and agent in easy.entries:
                intervals["paper_regret"] = setting.paper_regret(agent, easy)
            shares = seed_shares(setting, agent)
            record: dict[str, Any] = {
                "setting": setting.id,
                "family": setting.row["family"],
                "label": setting.row["label"],
                "budget": setting.budget,
                "agent": agent,
                "evaluation": entry.evaluation,
                "exams": len(setting.exams),
                "no_interval": setting.no_interval,
                "coincides": coincidence(setting, agent),
                "seeds": len(entry.values["score"]),
                "seed_shares": None if shares is None else shares.tolist(),
                "worst_seed": None if shares is None else float(shares.min()),
                "between_seeds": None if shares is None else float(shares.std(ddof=1)),
                "calibration_error": calibration(comparison, setting.id, agent),
                "level_accuracy": level_accuracy(comparison, setting.id, agent),
                **training_effort(comparison, setting.id, agent),
            }
            for name in (*MEASURES, "of_reachable", "ahead_of_gate", "paper_regret"):
                found = intervals.get(name)
                for suffix, x in zip(("", "_low", "_high"), found or (None,) * 3, strict=True):
                    record[name + suffix] = None if x is None or not math.isfinite(x) else float(x)
            result.append(record)
    return result


def seed_shares(setting: SettingResult, agent: str) -> Floats | None:
    """(S,) optimum-normalised score of every training seed; None for one seed, and where nothing can be won."""
    scores = setting.entries[agent].values["score"].mean(1)
    best = setting.reference(OPTIMUM)
    return None if len(scores) < 2 or best == 0 else np.asarray(scores / best)


def coincidence(setting: SettingResult, agent: str) -> str | None:
    """What to say of an agent that does what the optimum does in every exam, instead of an interval without width.

    None for the optimum itself (its share is 1 by definition) and for all others.
    """
    if agent == OPTIMUM or not setting.coincides(agent):
        return None
    return coincidence_text(setting.questions is not None)


def coincidence_text(recorded: bool) -> str:
    """The words of :func:`coincidence`."""
    return f"coincides with the optimum of these {'questions' if recorded else 'exams'}"


EFFORT = ("steps", "updates", "cpu_seconds", "wall_seconds")
MEASURES = (
    *QUANTITIES,
    "spend",
    "normalised",
    "normalised_vs_upper",
    "luck",
    "information",
    "policy",
    "policy_vs_upper",
    "gap_ratio",
)


def calibration(comparison: Comparison, setting: int, agent: str) -> float | None:
    """Calibration error of an agent's tier choice (believed against actual success); None where not recorded."""
    rows = comparison.table("tier_calibration", setting, agent)
    if rows is None:
        return None
    error = metrics.calibration_error(rows["expected_success"], rows["actual_success"], rows["mass"])
    return error if math.isfinite(error) else None


def level_accuracy(comparison: Comparison, setting: int, agent: str) -> float | None:
    """Share of an agent's attempts that took as many tokens as the announced level says; None where not recorded.

    A tier announces its level (design: action k announces Level-(k-1)); attempts that the budget cuts do not count as right.
    """
    rows = comparison.table("tier_calibration", setting, agent)
    if rows is None or "level_accuracy" not in rows or not (used := rows["mass"] > 0).any():
        return None
    share = float(np.average(rows["level_accuracy"][used], weights=rows["mass"][used]))
    return share if math.isfinite(share) else None


def training_effort(comparison: Comparison, setting: int, agent: str) -> dict[str, float | None]:
    """Environment steps, optimiser steps, CPU seconds and seconds by the clock of an agent's training, means over its seeds;
    None where it did not learn in the environment."""
    rows = comparison.table("learning", setting, agent)
    if rows is None:
        return dict.fromkeys(EFFORT)
    last = [np.flatnonzero(rows["seed"] == seed)[-1] for seed in np.unique(rows["seed"])]
    return {name: float(rows[name][last].mean()) for name in EFFORT}


def focus_of(family: Sequence[SettingResult]) -> SettingResult:
    """The budget whose details are drawn: the middle one, where tiers compete hardest."""
    return family[len(family) // 2]


def missing(comparison: Comparison, setting: int) -> list[str]:
    """Agents left out of a setting because training seeds are not done yet, in words."""
    rows = comparison.table("missing", setting)
    if rows is None:
        return []
    return [
        f"{agent} ({done} of {seeds} seeds)"
        for agent, done, seeds in zip(rows["agent"], rows["done"], rows["seeds"], strict=True)
    ]


def summarise(run: Path, comparison: Comparison | None = None) -> pa.Table:
    """Write ``summary.parquet`` and ``summary.json`` into a run folder and return the table.

    Args:
        run: the run folder.
        comparison: an analysis already made of it.

    Returns:
        One row per (setting, agent), columns as in :func:`records`.

    Raises:
        RunError: the folder is incomplete (see :func:`analyse`).
    """
    comparison = analyse(run) if comparison is None else comparison
    rows = records(comparison)
    kinds = dict.fromkeys(("family", "label", "agent", "evaluation", "no_interval", "coincides"), pa.string())
    kinds |= dict.fromkeys(("setting", "budget", "exams", "seeds"), pa.int64()) | {
        "seed_shares": pa.list_(pa.float64())
    }
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in (rows[0] if rows else ())])
    table = pa.Table.from_pylist(rows, schema=schema)
    with replacing(run / "summary.parquet") as path:
        pq.write_table(table, path)
    document = {
        "config": comparison.config,
        "resamples": comparison.resamples,
        "settings": [
            s.row
            | {"no_interval": s.no_interval, "optimism": s.optimism}
            | {"predictions": [one.record() for one in s.predictions]}
            | {
                name: s.reference_interval(name)._asdict() | {"sampling_error": s.reference_noise.get(name, 0.0)}
                for name in s.references
            }
            for s in comparison.settings
        ],
        "results": rows,
    }
    with replacing(run / "summary.json") as path:
        path.write_text(json.dumps(_plain(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return table


class _WeightCache:
    """Weights of the last set of exams: settings that share exams (budgets, orders) share weights."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples, self.seed = resamples, seed
        self.key: tuple[bytes, bytes | None] | None = None
        self.weights: Floats = np.empty((0, 0))

    def get(self, exams: npt.NDArray[np.int64], questions: npt.NDArray[np.int64] | None) -> Floats:
        key = (exams.tobytes(), None if questions is None else questions.tobytes())
        if key != self.key:
            self.weights = _weights(exams, questions, self.resamples, self.seed)
            self.key = key
        return self.weights


def _weights(
    exams: npt.NDArray[np.int64], questions: npt.NDArray[np.int64] | None, resamples: int, seed: int
) -> Floats:
    return metrics.bootstrap_weights(len(exams), resamples, np.random.default_rng([seed, len(exams)]), questions)


def _questions(tasks: Columns, setting: int, exams: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(E, N) questions per exam, sorted inside an exam so that orders of the same exams get the same weights."""
    own = tasks["setting"] == setting
    exam, question = tasks["exam"][own], tasks["question"][own]
    order = np.lexsort((question, exam))
    found, counts = np.unique(exam, return_counts=True)
    if not np.array_equal(found, exams) or len(set(counts.tolist())) != 1:
        raise RunError(f"tasks.parquet: setting {setting} needs every exam of references.parquet, all of one length")
    return np.asarray(question[order], dtype=np.int64).reshape(len(exams), -1)


def _entry(agent: str, scores: Columns, setting: SettingResult, weights: Floats, seed: int) -> AgentResult:
    own = scores["agent"] == agent
    seeds, row = np.unique(scores["seed"][own], return_inverse=True)
    column = np.searchsorted(setting.exams, scores["exam"][own])
    complete = len(row) == len(seeds) * len(setting.exams) and column.max(initial=0) < len(setting.exams)
    if not complete or not np.array_equal(setting.exams[column], scores["exam"][own]):
        raise RunError(
            f"scores.parquet: agent {agent!r} in setting {setting.id} must have one row per seed and exam"
            f" ({len(seeds)} seeds x {len(setting.exams)} exams), found {len(row)}"
        )
    values = {}
    for name in QUANTITIES:
        matrix = np.full((len(seeds), len(setting.exams)), np.nan)
        matrix[row, column] = scores[name][own]
        if np.isnan(matrix).any():
            raise RunError(f"scores.parquet: {name} of agent {agent!r} in setting {setting.id} has missing values")
        values[name] = matrix
    # Named streams: an agent's seed weights do not depend on who else was compared.
    rng = np.random.default_rng([seed, zlib.crc32(agent.encode())])
    levels = metrics.seed_weights(len(seeds), len(weights), rng) if len(seeds) > 1 else None
    means = metrics.resampled_means(np.stack(list(values.values())), weights, levels)
    replicates = dict(zip(values, means.T, strict=True))
    kinds = set(scores["evaluation"][own].tolist())
    return AgentResult(agent, kinds.pop() if len(kinds) == 1 else "mixed", values, replicates, levels)


def _family(row: dict[str, Any]) -> str:
    keys = ("family", "num_tasks", "order", "preview", "beliefs", "coupling", "synthetic", "tier_names")
    return json.dumps([row.get(k) for k in keys], default=str)


def _config(run: Path) -> dict[str, Any]:
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{run / 'config.json'}: {error}") from error
    if not isinstance(config, dict):
        raise RunError(f"{run / 'config.json'}: expected an object")
    return config


def _read(run: Path, name: str) -> pa.Table:
    path = run / f"{name}.parquet"
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: {error}") from error


def _columns(table: pa.Table) -> Columns:
    def plain(column: pa.ChunkedArray) -> npt.NDArray[Any]:
        kind = column.type
        return np.asarray((column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column).to_numpy())

    return {name: plain(table[name]) for name in table.column_names}


def _plain(value: Any) -> Any:
    """JSON has no NaN: undefined numbers become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | bool | str | None) else str(value)


def interval_text(row: dict[str, Any], name: str) -> str:
    """A measure of a record (:func:`records`) with its interval, to three digits; where it has none, why if it is known.

    Undefined where nothing can be won; without an interval where exams allow none. Records of earlier versions have
    intervals without width instead of ``coincides``.
    """
    value, low, high = (row.get(name + suffix) for suffix in ("", "_low", "_high"))
    if value is None:
        return "-"
    if low is not None and high is not None and high - low > metrics.SAME_SCORE:
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    reason = row.get("coincides") if name == "normalised" else None
    if name == "of_reachable" and low is None and row["no_interval"] is None:
        reason = "the same in every exam"
    if reason is None and name == "normalised" and low is not None and value == 1 and row["agent"] != OPTIMUM:
        reason = coincidence_text(False)
    return f"{value:.3f}" + (f", {reason}" if reason else "")


def highlights(comparison: Comparison, limit: int = 6) -> tuple[list[str], list[str]]:
    """Which agents get a colour, and which fixed rules a dark grey; everyone else is drawn as background.

    The optimum always; then the best three, the gate, the configured ``highlight`` list, the reference planner (LP
    look-ahead), the best language model, and the next best until ``limit``. Fixed rules (at most four) are drawn apart: they anchor the scale.

    Returns:
        Coloured agents (optimum first), fixed rules; both best first.
    """
    ranked = [a for a in comparison.agents if a not in (OPTIMUM, SKIP) and not FIXED.search(a)]
    wanted: Sequence[str | None] = [
        *ranked[:3],
        comparison.gate,
        *(comparison.config.get("highlight") or ()),
        next((a for a in ranked if re.search(r"look.?ahead|lp.?look", a, re.IGNORECASE)), None),
        next((a for a in ranked if re.search(r"llm|lm-", a, re.IGNORECASE)), None),
        next((a for a in ranked if re.search(r"greedy", a, re.IGNORECASE)), None),
        *ranked,
    ]
    chosen = set([a for a in dict.fromkeys(wanted) if a in ranked][:limit])
    fixed = [a for a in comparison.agents if FIXED.search(a)][:4]
    return [a for a in comparison.agents if a == OPTIMUM or a in chosen], fixed
