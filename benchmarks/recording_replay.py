"""Would a recording that chooses what to measure teach more for the same tokens? A replay on recorded tables.

    ROI_DATA=... python benchmarks/recording_replay.py            # writes benchmarks/results/predictors/replay.json and replay.md

Every plan spends the same tokens on train questions; validation questions are recorded uniformly and cost the same in all plans.
What a text predictor recovers on test questions is compared, between plans of the same tokens and the same draw.

* ``uniform questions``: random questions, one sample of every tier.
* ``chosen questions``: half of the tokens so; then a predictor of these chooses the others at random with probabilities in
  proportion to sqrt(sum of p (1 - p) / expected tokens) (Neyman's allocation: few hopeless, few trivial, few dear ones).
  Laws of groups are weighted by the inverse of the probability with which a question came in.
* ``uniform samples``: so many samples of every cell of the same questions.
* ``chosen samples``: one sample of every cell; then a predictor of these gives the other tokens to cells in proportion to
  sqrt(p (1 - p) / expected tokens). Its predictions are out of fold: how often a cell is sampled does not depend on what came
  out there, so its mean stays unbiased.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from predictors import RESULTS, recorded_as, share_of

from agents.predictors.exams import COLUMN, Case, fit_predictor, grouped_table
from agents.predictors.predictor import Predictor, fit_scores
from agents.predictors.quality import quality
from agents.predictors.records import Records
from experiments.predicting import Known, known_of
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import reachable_values
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable
from roi_env.sources.packaged import tinylm_table
from roi_env.sources.source import Source

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EXAMS = 200
QUESTIONS, REPEATED, SAMPLES = (100, 300), 150, (3,)
"""Train questions of the uniform plans whose tokens others spend; those that are sampled several times, and how often."""
LEAST = 0.1
"""Probability with which any question is chosen, of the most likely one's."""


class Replay:
    """A table that is recorded again and again.

    :param case: as it was recorded in full.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.found = case, case.records()
        self.known: list[Known] = known_of(case, exams=EXAMS)
        self.train = self.found.split == SPLITS.index("train")
        shape = self.found.count.shape
        total = np.zeros(shape)
        np.add.at(total, (self.found.question, self.found.tier), self.found.tokens)
        self.cost = total / np.maximum(self.found.count, 1)
        """(Q, K) mean tokens of a sample: what a plan is charged."""

    def base(self, share: float, seed: int, samples: int = 1) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """(Q, K) samples of a uniform plan, and the (Q,) train questions in it; test questions have all."""
        chosen = share_of(self.found, "train", share, seed)
        count = np.where(self.found.split == SPLITS.index("test"), int(self.found.count.max()), 0)
        count[chosen | share_of(self.found, "validation", share, seed)] = samples
        return np.repeat(count[:, None], self.cost.shape[1], 1), chosen

    def spent(self, samples: Ints) -> float:
        """Tokens of train questions."""
        return float((np.minimum(samples, self.found.count) * self.cost)[self.train].sum())

    def laws(self, samples: Ints) -> tuple[Floats, Floats]:
        """(Q, K) success and tokens as a predictor of these recordings foresees them."""
        made = fit_scores("text", recorded_as(self.case, samples).records())
        scores = made.scores(self.found.texts, self.found.columns)
        return made.heads.probability(scores), made.heads.expected_cost(scores)

    def chosen_questions(self, share: float, seed: int) -> tuple[Ints, Floats]:
        """Samples, and the (Q,) weight of every train question."""
        uniform, _ = self.base(share, seed)
        first, begun = self.base(share / 2, seed)
        success, tokens = self.laws(first)
        worth = np.sqrt((success * (1 - success)).sum(1) / tokens.sum(1))
        worth = np.maximum(worth, LEAST * worth[self.train].max())
        open_ = self.train & ~begun
        rest = self.spent(uniform) - self.spent(first)
        # The factor at which the open questions are expected to cost the rest.
        low, high = 0.0, 1.0 / worth[open_].min()
        for _ in range(60):
            factor = (low + high) / 2
            if (np.minimum(factor * worth, 1) * tokens.sum(1))[open_].sum() < rest:
                low = factor
            else:
                high = factor
        chance = np.minimum(factor * worth, 1.0)
        rng = np.random.default_rng([seed, 7])
        took = open_ & (rng.random(len(chance)) < chance)
        samples = uniform.copy()
        samples[self.train] = 0
        samples[begun | took] = 1
        part = begun.sum() / self.train.sum()
        return samples, 1.0 / (part + (1 - part) * chance)

    def chosen_samples(self, share: float, seed: int, mean: int) -> Ints:
        """Samples that cost what ``mean`` of every cell do."""
        uniform, chosen = self.base(share, seed, mean)
        first, _ = self.base(share, seed)
        success, tokens = self.laws(first)
        worth = np.sqrt(success * (1 - success) / tokens)
        budget = self.spent(uniform)
        low, high = 0.0, 1e6
        for _ in range(80):
            factor = (low + high) / 2
            wish = np.clip(factor * worth, 1, self.found.count.max())
            low, high = (factor, high) if (wish * tokens)[chosen].sum() < budget else (low, factor)
        rng = np.random.default_rng([seed, 8])
        samples = uniform.copy()
        samples[chosen] = np.floor(wish + rng.random(wish.shape)).astype(np.int64)[chosen]
        return samples

    def worth(self, samples: Ints, weight: Floats | None = None) -> dict[str, Any]:
        """What a text predictor of these recordings is worth on test questions."""
        some = recorded_as(self.case, samples)
        predictor = fit_predictor("text", some)
        source = _weighted(some, predictor, self.found, weight)
        share = []
        for one in self.known:
            spec = exam_spec(source, num_tasks=one.batch.spec.num_tasks, decision_cost=some.table.decision_cost)
            exams = draw_exams(spec.replace(budget=one.batch.spec.budget), 0, np.arange(len(one.batch)))
            without = one.without.mean()
            share.append(float((reachable_values(exams).mean() - without) / (one.informed.value.mean() - without)))
        test = self.found.take(self.found.split == SPLITS.index("test"))
        scores = predictor.scores(test.texts, test.columns)
        judged = quality(test, predictor.heads.probability(scores), predictor.heads.expected_cost(scores))
        return {"tokens": self.spent(samples), "share": share, "log_loss": float(np.nanmean(judged.log_loss))}


def _weighted(some: Case, predictor: Predictor, found: Records, weight: Floats | None) -> Source:
    """The test source with beliefs in which train questions have weights."""
    labelled = some._replace(table=grouped_table(some, predictor))
    test = labelled.source("test", COLUMN)
    if weight is None:
        return test  # type: ignore[no-any-return]
    train = labelled.source("train", COLUMN)
    place = {text: at for at, text in enumerate(found.texts)}
    mine = weight[[place[text] for text in train.texts]]
    group = np.array(train.group_names)[train.row_group]
    members = [np.flatnonzero(group == name) for name in test.group_names]
    beliefs = train.laws.mixture(members, [mine[one] / mine[one].sum() for one in members])
    return dataclasses.replace(test, beliefs=beliefs)


def replay(case: Case, draws: int) -> list[dict[str, Any]]:
    """All plans of a table, by draw."""
    made = Replay(case)
    many = int(made.train.sum())
    result = []
    for seed in range(draws):
        for questions in (n for n in QUESTIONS if 1.2 * n < many):
            share = questions / many
            plain, (chosen, weight) = made.base(share, seed)[0], made.chosen_questions(share, seed)
            for plan, record in (
                ("uniform questions", made.worth(plain)),
                ("chosen questions", made.worth(chosen, weight)),
            ):
                result.append({"plan": plan, "size": f"{questions} questions", "draw": seed} | record)
                print(result[-1], flush=True)
        share = REPEATED / many
        for mean in SAMPLES:
            for plan, samples in (
                ("uniform samples", made.base(share, seed, mean)[0]),
                ("chosen samples", made.chosen_samples(share, seed, mean)),
            ):
                size = f"{mean} samples of {REPEATED} questions"
                result.append({"plan": plan, "size": size, "draw": seed} | made.worth(samples))
                print(result[-1], flush=True)
    return result


def text(document: dict[str, list[dict[str, Any]]]) -> str:
    """The document as Markdown."""
    lines = []
    for name, rows in document.items():
        lines += [
            f"### {name}",
            "",
            "| tokens of | draws | uniform: tokens, recovered (mean of t=.15, .3, .6), log-loss | chosen | recovered: chosen - uniform | log-loss: chosen - uniform |",
            "|---|---|---|---|---|---|",
        ]
        for size in dict.fromkeys(row["size"] for row in rows):
            mine = [row for row in rows if row["size"] == size]
            pair = [[row for row in mine if row["plan"].startswith(kind)] for kind in ("uniform", "chosen")]
            cells = [f"{np.mean([r['tokens'] for r in p]):,.0f}, {_mean(p):.2f}, {_loss(p):.3f}" for p in pair]
            differences = [
                np.array([value(one) for one in pair[1]]) - np.array([value(one) for one in pair[0]])
                for value in (lambda row: float(np.mean(row["share"])), lambda row: float(row["log_loss"]))
            ]
            shown = [f"{d.mean():+.3f} ± {d.std(ddof=1) / np.sqrt(len(d)):.3f}" for d in differences]
            lines.append(f"| {size} | {len(pair[0])} | {' | '.join(cells)} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def _mean(rows: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([row["share"] for row in rows]))


def _loss(rows: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([row["log_loss"] for row in rows]))


def main() -> None:
    """Replay and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="name of one table; the file keeps what it has of others")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    # Samples of tiers go their own ways, so that tiers cannot be coupled.
    cases = {"tinylm": Case(tinylm_table(), {"menu": "tinylm", "coupling": "independent"})}
    if data := os.environ.get("ROI_DATA"):
        jhu = OutcomeTable.read(Path(data) / "outcomes" / "jhu_concise_cot.parquet")
        cases["jhu gpt-35-turbo"] = Case(jhu, {"menu": "gpt-35-turbo"})
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "replay.json"
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, case in cases.items():
        if options.only in (None, name):
            document[name] = replay(case, options.draws)
            file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            (options.out / "replay.md").write_text(text(document), encoding="utf-8")


if __name__ == "__main__":
    main()
