"""What a table of recorded outcomes holds, and what in it deserves a second look (printed by `roi table`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from roi_env.sources.keys import differing
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable
from roi_env.sources.table_files import some
from roi_env.sources.texts import normalised
from roi_env.sources.thoughts import hidden_thoughts
from roi_env.sources.units import cost_text

__all__ = ["describe"]

Problems = Iterator[tuple[str, str]]
"""Pairs ``(kind, message)``."""


def describe(table: OutcomeTable) -> dict[str, Any]:
    """What the table holds, as plain data (dicts, lists, str, int, float, bool).

    Keys: ``path, rows, questions, pairing, unit, decision_cost, datasets`` (name -> questions), ``splits`` (name ->
    questions, default shares), ``menus``, ``problems`` and ``notes``.

    * A menu: ``menu, questions, complete_questions`` (questions with all tiers), ``splits, tiers``.
    * A tier: ``tier, tier_order, rows, questions, samples_min, samples_max, tokens_mean, tokens_p50, tokens_p90,
      accuracy``; means and percentiles over generations.
    * A problem: ``menu, kind, message``. Kinds: ``missing_tiers``, ``unequal_samples``, ``tier_order`` (a later
      tier costs less), ``trap`` (dearer and less often correct), ``non_monotone`` (questions where the last tier is
      right less often than the first), ``zero_tokens``, ``several_judgements`` (of one generation?),
      ``hidden_thought`` (tokens that cannot hold what was generated). Tiers are compared on the questions that have
      both, every question counting once. Of the whole table (``menu`` is ``""``): ``equal_texts`` (of several
      ids), ``tier_texts`` (other texts at other tiers of one id), ``several_texts`` and ``several_answers`` (that
      differ between generations), ``similar_names`` (of datasets, menus or tiers).
    """
    menus = []
    problems = [{"menu": "", "kind": kind, "message": message} for kind, message in _text_problems(table)]
    for name in table.menus:
        menu = _Menu(table.select(name), name)
        tiers = menu.tiers()
        menus.append(
            {
                "menu": name,
                "questions": len(menu.count),
                "complete_questions": int(menu.offered.all(1).sum()),
                "splits": _split_sizes(menu.table),
                "tiers": tiers,
            }
        )
        found = (*menu.holes(tiers), *menu.comparisons(), *menu.doubtful_rows())
        problems += [{"menu": name, "kind": kind, "message": message} for kind, message in found]
    first_row = table.distinct_questions().first_row
    dataset, names = table.codes("dataset")
    counts = np.bincount(dataset[first_row], minlength=len(names))
    return {
        "path": table.path,
        "rows": table.num_rows,
        "questions": len(first_row),
        "pairing": table.pairing,
        "unit": table.unit,
        "decision_cost": table.decision_cost,
        "datasets": {name: int(count) for name, count in zip(names, counts, strict=True) if count},
        "splits": _split_sizes(table),
        "menus": menus,
        "problems": problems,
        "notes": list(table.notes),
    }


def _split_sizes(table: OutcomeTable) -> dict[str, int]:
    codes = table.split_codes()[table.distinct_questions().first_row]
    return {name: int(count) for name, count in zip(SPLITS, np.bincount(codes, minlength=len(SPLITS)), strict=True)}


def _text_problems(table: OutcomeTable) -> Problems:
    """Problems of the whole table: questions that are not what their ids say."""
    for column in ("dataset", "menu", "tier"):
        like: dict[str, list[str]] = {}
        for value in table.codes(column)[1]:
            like.setdefault(normalised(value), []).append(value)
        for values in like.values():
            if len(values) > 1:
                yield "similar_names", f"column {column!r} has {some(values)}: if they are one, write them alike"
    pairs = table.questions()
    names = table.pair_names(pairs)
    if table.same_text:
        under: dict[str, list[str]] = {}
        for (dataset, question), text in table.same_text.items():
            under.setdefault(text, []).append(f"{dataset}: {question}")
        example = max(under.values(), key=len)
        yield (
            "equal_texts",
            f"{len(under)} texts stand under {len(table.same_text)} ids (e.g. {some(example)}): each text is one "
            "question, in one split, with the generations of all its ids; if they are different questions, complete "
            "their texts or empty them",
        )
    # Of single ids: what several ids of one text differ in is said above.
    code, texts = table.codes("question")
    plain = np.unique([normalised(text) for text in texts], return_inverse=True)[1][code]
    inside, across = (np.unique(pairs.of_row[differing(key, plain)]) for key in (table.cells(), pairs.of_row))
    if len(by_tier := np.setdiff1d(across, inside)):
        said = some([names[at][1] for at in by_tier])
        yield (
            "tier_texts",
            f"{len(by_tier)} ids have another text at another tier or menu ({said}): if these are different questions, "
            "give them different ids; if it is the prompt that differs, write the bare question",
        )
    if len(inside):
        said = some([names[at][1] for at in inside])
        yield (
            "several_texts",
            f"{len(inside)} ids have several texts at one tier ({said}): shuffled options? Agents that read see the first",
        )
    if (several := table.varies("answer")).any():
        ids = table.rows["question_id"].take(table.distinct_questions().first_row[several]).to_pylist()
        yield (
            "several_answers",
            f"{several.sum()} questions have several answers ({some(ids)}): shuffled options? The answer belongs to "
            "the generation; texts with options cannot be graded again from one letter",
        )


class _Menu:
    """One menu of a table by question and tier: (questions, tiers) arrays ``count`` of generations, ``mean_cost``,
    ``accuracy`` and ``offered`` (bool)."""

    def __init__(self, table: OutcomeTable, name: str) -> None:
        self.table, self.names = table, table.tier_names(name)
        of_row, first_row = table.distinct_questions()
        code, values = table.codes("tier")
        self.tier: npt.NDArray[np.int64] = np.array([self.names.index(value) for value in values])[code]
        self.tokens, self.correct = table.numbers("tokens"), table.numbers("correct")
        self.cell = of_row * len(self.names) + self.tier
        shape = len(first_row), len(self.names)
        self.count, tokens, correct = (
            np.bincount(self.cell, weights, minlength=shape[0] * shape[1]).reshape(shape)
            for weights in (None, self.tokens, self.correct)
        )
        self.offered = self.count > 0
        self.mean_cost, self.accuracy = (total / np.maximum(self.count, 1) for total in (tokens, correct))

    def tiers(self) -> list[dict[str, Any]]:
        """See :func:`describe`."""
        order, found = self.table.numbers("tier_order"), []
        for k, name in enumerate(self.names):
            mine, count = self.tokens[self.tier == k], self.count[self.offered[:, k], k]
            p50, p90 = np.quantile(mine, [0.5, 0.9])
            found.append(
                {
                    "tier": name,
                    "tier_order": int(order[np.argmax(self.tier == k)]),
                    "rows": len(mine),
                    "questions": len(count),
                    "samples_min": int(count.min()),
                    "samples_max": int(count.max()),
                    "tokens_mean": float(mine.mean()),
                    "tokens_p50": float(p50),
                    "tokens_p90": float(p90),
                    "accuracy": float(self.correct[self.tier == k].mean()),
                }
            )
        return found

    def holes(self, tiers: list[dict[str, Any]]) -> Problems:
        """Questions without a tier, and tiers with more samples of one question than of another."""
        if missing := int((~self.offered.all(1)).sum()):
            yield "missing_tiers", f"{missing} of {len(self.offered)} questions lack a tier"
        for tier in tiers:
            low, high = tier["samples_min"], tier["samples_max"]
            if low != high:
                yield "unequal_samples", f"{tier['tier']}: {low} to {high} samples a question"

    def comparisons(self) -> Problems:
        """Pairs of tiers of which the later one costs less, or the dearer one is less often right."""
        names, unit = self.names, self.table.unit
        suffix = " tokens" if unit == "tokens" else ""
        for low in range(len(names)):
            for high in range(low + 1, len(names)):
                both = self.offered[:, low] & self.offered[:, high]
                if not both.any():
                    continue
                cost = self.mean_cost[both][:, [low, high]].mean(0)
                right = self.accuracy[both][:, [low, high]].mean(0)
                text = [cost_text(value, unit) for value in cost]
                if cost[1] < cost[0]:
                    yield (
                        "tier_order",
                        f"{names[high]} comes after {names[low]} but costs less ({text[1]} against {text[0]}{suffix})",
                    )
                dear, cheap = (1, 0) if cost[1] >= cost[0] else (0, 1)
                if right[dear] < right[cheap]:
                    pair = (names[low], names[high])
                    yield (
                        "trap",
                        f"{pair[dear]} is dearer and worse than {pair[cheap]} ({text[dear]} against {text[cheap]}{suffix}, "
                        f"{right[dear]:.3f} against {right[cheap]:.3f} correct)",
                    )
        ends = self.offered[:, 0] & self.offered[:, -1]
        if worse := int((self.accuracy[ends, -1] < self.accuracy[ends, 0]).sum()):
            yield "non_monotone", f"{worse} of {ends.sum()} questions: {names[-1]} right less often than {names[0]}"

    def doubtful_rows(self) -> Problems:
        """Generations that cost nothing, are judged several times, or hide what they cost."""
        if zero := int((self.tokens == 0).sum()):
            yield "zero_tokens", f"{zero} generations of 0 tokens; exams charge 1 token for them"
        for name, differs in self.table.judged(self.cell, named=False):
            if several := len(np.unique(self.cell[differs])):
                yield (
                    "several_judgements",
                    f"column {name!r} has several values in {several} of {len(np.unique(self.cell))} questions and tiers: if they "
                    "are judgements or filters of one generation, each is counted as a generation; keep one",
                )
        if self.table.unit == "tokens":
            for message in hidden_thoughts(self.table.rows, self.tier, self.names):
                yield "hidden_thought", message
