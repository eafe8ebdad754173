"""The self-contained HTML report of a run: one file, no network, readable on a phone and on a desk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import chain, starmap
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
from markupsafe import Markup

from experiments.report import figures
from experiments.report.analysis import (
    EFFORT,
    OPTIMUM,
    REACHABLE,
    SKIP,
    Comparison,
    RunError,
    SettingResult,
    analyse,
    coincidence,
    focus_of,
    missing,
    summarise,
)
from experiments.templating import templates
from experiments.terminal import counted
from experiments.training.workers import worker_pool
from roi_env.files import replacing
from roi_env.measures.metrics import Interval
from roi_env.sources.units import COST_NAMES, cost_with_unit

__all__ = ["RunError", "analyse", "headline", "summarise", "write_report"]


def write_report(run: Path, resamples: int | None = None, workers: int = 1) -> Path:
    """Write ``report.html``, ``summary.parquet`` and ``summary.json`` into a run folder.

    Args:
        run: folder that ``roi compare`` wrote (files: see ``experiments.report.analysis.analyse``).
        resamples: bootstrap replicates; None for the default.
        workers: processes that draw.

    Returns:
        Path of the report; an older one is replaced in one step.

    Raises:
        RunError: the folder is incomplete.
    """
    comparison = analyse(run) if resamples is None else analyse(run, resamples)
    rows: list[dict[str, Any]] = summarise(run, comparison).to_pylist()
    environment = templates()
    environment.filters.update(number=_number)
    glyphs = figures.Glyphs()

    def inline(picture: Picture) -> Markup:
        # The markup is matplotlib's own; agent names inside it were drawn as outlines, and the description is escaped.
        return Markup(figures.to_svg(picture.drawing, picture.prefix, picture.text, glyphs))

    families = _families(comparison, rows, workers)
    for family in families:
        family["pictures"] = [(title, text, inline(picture)) for title, text, picture in family["pictures"]]
    with figures.style():
        legend = Picture("legend", figures.draw(figures.legend(figures.looks(comparison))), "Legend of all pictures")
    page = environment.get_template("report.html.j2").render(
        summary=headline(comparison),
        families=families,
        legend=inline(legend),
        config=json.dumps(comparison.config, indent=2, default=str),
        made=comparison.config,
        comparison=comparison,
        glyphs=Markup(glyphs.definitions()),
    )
    with replacing(run / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    return run / "report.html"


def headline(comparison: Comparison) -> list[str]:
    """The plain-words summary, computed from the data: what was compared, and what came out.

    Returns:
        Sentences, most important first.
    """
    settings = comparison.settings
    counts = sorted({len(s.exams) for s in settings})
    exams = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    contestants = [a for a in comparison.agents if a != OPTIMUM]
    names = ", ".join(dict.fromkeys(str(s.row["family"]) for s in settings))
    recorded = any(s.questions is not None for s in settings)
    sentences = [
        f"{counted(len(contestants), 'agent')} took the same exams in {counted(len(settings), 'setting')} ({names}), "
        f"{exams} paired exams each. Intervals are 95 % bootstrap intervals over "
        f"{'questions and exams' if recorded else 'exams'}, paired between agents.",
        *(f"No interval for {s.row['label']}: {s.no_interval}." for s in settings if s.no_interval),
    ]
    focus = focus_of(max(comparison.families, key=len))
    ranking = [a for a in focus.ranking() if a not in (OPTIMUM, SKIP)]
    if not ranking:
        return sentences
    best, where = ranking[0], f"In {focus.row['family']} at B = {cost_with_unit(focus.budget, focus.unit)}"
    found = []
    if REACHABLE in focus.references:
        share = focus.share(best, REACHABLE)
        found.append(f"scores {_interval_percent(share)} of what the optimum of the train laws reaches (agent bellman)")
    if focus.is_bracket:
        low, high = focus.normalised(best, upper=True), focus.normalised(best)
        found.append(
            f"scores between {_percent(low.value)} and {_percent(high.value)} of the optimum (known only as a bracket)"
        )
    elif (same := coincidence(focus, best)) is not None:
        found.append(same)
    else:
        of = " of these questions" if focus.questions is not None else ""
        found.append(f"scores {_interval_percent(focus.normalised(best))} of the optimum{of}")
    seeds = len(focus.entries[best].values["score"])
    rests = f"; its interval rests on {counted(seeds, 'training seed')}" if seeds > 1 and not focus.no_interval else ""
    sentences.append(f"{where} the best agent, {best}, {' and '.join(found)}{rests}.")
    if focus.optimism is not None and (best_known := focus.reference(OPTIMUM)) > 0:
        sentences.append(
            "The optimum of these questions is planned on the questions that are scored, and by that an estimated "
            f"{_percent(focus.optimism / best_known)} too high; the optimum of the train laws has "
            f"{_percent(focus.reference(REACHABLE) / best_known)} of its score."
        )
    gate = comparison.gate
    if gate in focus.entries and gate is not None and gate != best:
        ahead = focus.advantage(best, gate)
        stands = f"the gate ({gate}, {_percent(focus.normalised(gate).value)}): {_points(ahead.value)}"
        if focus.no_interval:
            sentences.append(f"Against {stands} percentage points, on these questions.")
        elif not math.isfinite(ahead.low):
            sentences.append(f"In every exam it scores what the gate does ({gate}).")
        else:
            verdict = "ahead of" if ahead.low > 0 else "not distinguishable from"
            sentences.append(
                f"It is {verdict} {stands} [{_points(ahead.low)}, {_points(ahead.high)}] percentage points."
            )
    elif gate == best:
        sentences.append("That is the gate itself: no agent beats the best dual-price rule.")
    worst = ranking[-1]
    if worst not in (best, gate):
        sentences.append(f"The weakest, {worst}, reaches {_percent(focus.normalised(worst).value)}.")
    optimum, informed, oracle = (focus.reference(n) for n in (OPTIMUM, "informed", "oracle"))
    if optimum > 0:
        sentences.append(
            f"Knowing every task's true difficulty would be worth {_percent(informed / optimum - 1)} of the optimum, "
            f"and only luck separates that from the oracle (another {_percent((oracle - informed) / optimum)})."
        )
    sentences += [f"On test questions, {one.sentence}." for one in focus.predictions]
    return sentences


class Picture(NamedTuple):
    """A picture of the page.

    :param prefix: its identifiers'.
    :param drawing: itself.
    :param text: what a reader who cannot see it should know.
    """

    prefix: str
    drawing: figures.Drawing
    text: str


def _families(comparison: Comparison, rows: list[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """:func:`_family` of each, in their order."""
    given = [(comparison, i, family, rows) for i, family in enumerate(comparison.families)]
    workers = min(workers, len(given))
    if workers < 2:
        return list(starmap(_family, given))
    with worker_pool(workers) as pool:
        return list(pool.map(_family, *zip(*given, strict=True)))


class _Group(NamedTuple):
    """Settings that differ only by budget, and who is shown: all agents that can be told apart, and a few of them."""

    name: str
    comparison: Comparison
    family: Sequence[SettingResult]
    focus: SettingResult
    look: dict[str, figures.Look]
    shown: list[str]
    few: list[str]

    def picture(self, kind: str, figure: matplotlib.figure.Figure | None, text: str) -> Picture | None:
        """A figure as a picture of this group, where there is one."""
        return None if figure is None else Picture(f"{self.name}-{kind}", figures.draw(figure), text)


@figures.style()
def _family(
    comparison: Comparison, index: int, family: Sequence[SettingResult], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Everything the template needs for one group of settings that differ only by budget."""
    focus, row = focus_of(family), family[0].row
    look = figures.looks(comparison)
    shown = [a for a in focus.ranking() if look[a].shown]
    coloured = [a for a in shown if look[a].color != figures.DARK]
    fixed = [a for a in shown if look[a].color == figures.DARK]
    # The best for reference, the best rules that differ from it, and one fixed rule: enough to explain the difference,
    # few enough to read.
    others = [a for a in coloured if a != OPTIMUM and not _same_scores(focus, a, OPTIMUM)]
    few = list(dict.fromkeys([a for a in (OPTIMUM,) if a in coloured] + others[:3] + others[-1:] + fixed[:1]))
    group = _Group(f"f{index}", comparison, family, focus, look, shown, few)
    return {
        "id": group.name,
        "title": f"{row['family']}, {counted(row['num_tasks'], 'task')}"
        + ("" if row["order"] == "random" else f", {str(row['order']).replace('_', ' ')}"),
        "notes": [
            f"order: {row['order']}",
            "whole exam visible" if row["preview"] else "later tasks hidden",
            f"beliefs: {row['beliefs']}",
            f"coupling: {row['coupling']}",
            "synthetic" if row["synthetic"] else "recorded outcomes",
            f"tiers: {', '.join(figures.action_names(focus)[1:])}",
        ],
        "settings": [_setting(s, rows) | {"missing": missing(comparison, s.id)} for s in family],
        "focus": focus.budget_label,
        "bracket": any(s.is_bracket for s in family),
        "pictures": [
            found for found in chain(_scores(group), _behaviour(group), _exam_by_exam(group)) if found[2] is not None
        ],
    }


def _scores(group: _Group) -> Iterator[tuple[str, str, Picture | None]]:
    """Titles, texts and pictures: what agents score."""
    yield (
        "Score against budget",
        "Left: mean score; the references bound it. Right: the same as a share of the optimum, zoomed in "
        "on the better agents. Bands are 95 % intervals, small dots single training seeds."
        + (" Dashed: the optimum of the train laws." if REACHABLE in group.family[0].references else ""),
        group.picture("curves", figures.curves(group.family, group.look), "Score against budget")
        if len(group.family) > 1
        else None,
    )
    yield (
        "Share of the optimum",
        "Mean score over mean optimum on the same exams, with its interval; small dots are training seeds. No "
        "line: the agent coincides with the optimum, or the exams allow no interval.",
        group.picture("forest", figures.forest(group.focus, group.look), "Share of the optimum")
        if len(group.family) == 1
        else None,
    )
    yield (
        "Where the rest went: luck, information, policy",
        "From each agent's score up to the oracle. Only the policy part (and, by reading more than the "
        "published features, the information part) can be earned.",
        group.picture("regret", figures.regret_split(group.family), "Regret split"),
    )
    what = COST_NAMES[group.focus.unit]
    yield (
        f"Score against {what}",
        "Upper left is better. The stepped line is the Pareto front of the agents; the dotted line is the "
        "budget, the thin black one the optimum. Agents below 60 % of the optimum are left out.",
        group.picture("pareto", figures.pareto(group.family, group.look), f"Pareto front of score against {what}"),
    )


def _behaviour(group: _Group) -> Iterator[tuple[str, str, Picture | None]]:
    """Titles, texts and pictures: what agents do, and how they came to it."""
    learned = figures.learning_setting(group.comparison, group.family, group.focus)
    yield (
        f"Tier choice by difficulty and remaining budget, {group.focus.budget_label}",
        "Chance of each action where the agent got to, by difficulty (up) and budget left (right); blank "
        "cells are (almost) never visited.",
        group.picture(
            "tiers", figures.tier_choice(group.comparison, group.focus, group.few), "Heat maps of tier choice"
        ),
    )
    yield (
        f"One exam, {group.focus.budget_label}",
        f"{'Tokens' if group.focus.unit == 'tokens' else 'Dollars'} left before each task; a bar is what the task used. The potential outcomes are the same "
        "for every agent.",
        group.picture("exam", figures.trajectories(group.comparison, group.focus, group.few), "Budget trajectories"),
    )
    yield (
        f"Learning in the environment, {learned.budget_label}",
        "Score on validation exams while training. Line: mean over training seeds; band: lowest to highest "
        "seed. Agents take the same environment steps; updates and CPU time are theirs.",
        group.picture("learning", figures.learning(group.comparison, learned), "Learning curves"),
    )


def _exam_by_exam(group: _Group) -> Iterator[tuple[str, str, Picture | None]]:
    """Titles, texts and pictures: agents side by side on the same exams, tiers and tasks."""
    yield (
        f"Performance profile, {group.focus.budget_label}",
        "Share of exams on which an agent reaches a share τ of that exam's optimum; higher is better."
        + (
            " Sampled agents scatter around their mean, so their curves are flatter."
            if any(e.evaluation != "exact" for e in group.focus.entries.values())
            else ""
        ),
        group.picture("profile", figures.profile(group.comparison, group.focus, group.look), "Performance profile"),
    )
    yield (
        f"Probability of improvement, {group.focus.budget_label}",
        "Chance that the row's agent scores more than the column's on the same exam, ties counting one "
        "half. Bold: the 95 % interval excludes 0.5. It says how often, not by how much.",
        group.picture(
            "wins", figures.improvement(group.comparison, group.focus, group.shown), "Probability of improvement"
        ),
    )
    yield (
        f"Calibration of tier choice, {group.focus.budget_label}",
        "What agents believed of the attempts they chose, and what became of them; larger marks are "
        "dearer tiers. Below the diagonal: over-confident (left), cheaper than believed (right).",
        group.picture(
            "calibration", figures.calibration(group.comparison, group.focus, group.look), "Calibration of tier choice"
        ),
    )
    yield (
        f"By place in the exam, {group.focus.budget_label}",
        "Agents that spend early do not reach the last tasks.",
        group.picture(
            "places", figures.positions(group.comparison, group.focus, group.look), "Reached, skipped, right by place"
        ),
    )


def _setting(setting: SettingResult, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [r for r in rows if r["setting"] == setting.id]
    optional = ("of_reachable", "ahead_of_gate", "paper_regret", "calibration_error", "level_accuracy", *EFFORT)
    references = [
        (name, setting.reference_interval(name), setting.reference_noise[name])
        for name in (OPTIMUM, "informed", "oracle")
    ]
    if REACHABLE in setting.references:
        references.insert(1, ("optimum of the train laws", setting.reference_interval(REACHABLE), 0.0))
    if setting.is_bracket:
        references.insert(1, ("upper end of the optimum", setting.reference_interval("optimum_upper"), 0.0))
    return {
        "label": setting.row["label"],
        "budget": setting.budget_label,
        "exams": len(setting.exams),
        "no_interval": setting.no_interval,
        "recorded": setting.questions is not None,
        "optimism": setting.optimism,
        "predictions": [one.sentence for one in setting.predictions],
        "references": references,
        "bracket": setting.is_bracket,
        "rows": own,
        "columns": {name for name in optional if any(r[name] is not None for r in own)},
        "several_seeds": any(r["between_seeds"] is not None for r in own),
    }


def _same_scores(setting: SettingResult, agent: str, other: str) -> bool:
    """Whether two agents score the same on every exam: then their pictures are the same too."""
    if other not in setting.entries:
        return False
    a, b = (setting.entries[name].values["score"].mean(0) for name in (agent, other))
    return bool(np.allclose(a, b, rtol=1e-9))


def _number(value: float | None, digits: int = 2, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    # Rounding first and adding zero keeps the last bits of an exact tie from showing as minus nought.
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}".replace("-", "−")


def _percent(value: float) -> str:
    return _number(100 * value, 1) + " %"


def _points(value: float) -> str:
    return _number(100 * value, 1, sign="+")


def _interval_percent(found: Interval) -> str:
    if not math.isfinite(found.low):
        return f"{_percent(found.value)} (no interval)"
    return f"{_percent(found.value)} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
