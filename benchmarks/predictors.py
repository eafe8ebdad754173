"""What predictors recover on recorded tables: the tables of docs/results/predictors.md.

    ROI_DATA=... python benchmarks/predictors.py              # writes benchmarks/results/predictors
    ROI_DATA=... python benchmarks/predictors.py --only tinylm --parts curves
    python benchmarks/predictors.py --parts tables --only "math 1.5B, by the model" --table part.parquet --kept runs/mcft

The last reads nothing anew: its predictors are of what `roi mcft` kept of the table's questions. Without ROI_DATA the packaged
recordings alone are measured. Everything is fitted on train questions, chosen on validation questions and scored on test
questions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agents.predictors.exams import Case, fit_predictor
from agents.predictors.predictor import PredictorError
from agents.predictors.quality import quality
from agents.predictors.records import Records, with_column
from experiments.predicting import BUDGETS, Known, Row, judge, known_of, percent, recovered_by, recovery_of, verdict
from roi_env.measures.item_response import fit_item_response
from roi_env.measures.metrics import Interval
from roi_env.measures.recovery import Recovered
from roi_env.sources.importing.generations import Options
from roi_env.sources.importing.tables import import_logs
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable, OutcomeTableError
from roi_env.sources.packaged import math_table, packaged_table, tinylm_table

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESULTS = Path(__file__).parent / "results" / "predictors"
EXAMS = 200
QUESTIONS = (50, 100, 200, 500)
SAMPLES = (1, 2, 4, 8)
DRAWS, MANY = 2, 200
"""Draws of the questions of a learning curve, up to so many; of more one."""
TAUGHT = "-mcft"
"""Behind a model's name: after `roi mcft`."""
PARTS = ("tables", "curves", "transfer", "speed")
SAME_QUESTIONS = (("jhu gpt-4", "jhu gpt-35-turbo"), ("math 1.5B", "math"))
"""Tables of two models with questions in common."""


def cases() -> dict[str, tuple[Case, tuple[str, ...]]]:
    """Tables by name, with the predictors to try."""
    plain = ("surface", "text", "neighbours")
    own = ("given:difficulty", "embedding:tinylm", "hidden:tinylm", "levels:tinylm-mcft")
    found: dict[str, tuple[Case, tuple[str, ...]]] = {
        "tinylm": (Case(tinylm_table(), {"menu": "tinylm"}), (*plain, *own)),
        "math": (Case(math_table(), {"menu": math_table().menus[0]}), (*plain, "given:level")),
        "math 1.5B": (
            Case(packaged_table("paper"), {"menu": packaged_table("paper").menus[0]}),
            (*plain, "given:level"),
        ),
    }
    if data := os.environ.get("ROI_DATA"):
        jhu = OutcomeTable.read(Path(data) / "outcomes" / "jhu_concise_cot.parquet")
        for menu in ("gpt-4", "gpt-35-turbo"):
            found[f"jhu {menu}"] = (Case(jhu, {"menu": menu}), (*plain, "given:topic"))
        maths = {"menu": "gpt-4", "datasets": ("aqua-rat", "sat-math")}
        found["jhu gpt-4, mathematics"] = (Case(jhu, maths), (*plain, "given:topic"))
        # An answer is right where its reward is .9 or more.
        log, _, _ = import_logs(
            [Path(data) / "logs" / "paretobandit" / "test_k4.jsonl"], Options(correct_at=0.9), "log"
        )
        found["ParetoBandit"] = (Case(log, {}), plain)
    return found


def measure(case: Case, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One record a predictor, and one for the means of the published column."""
    made, seconds = [], []
    for name in names:
        start = time.perf_counter()
        made.append(fit_predictor(name, case))
        seconds.append(time.perf_counter() - start)
    rows = recovery_of(case, made, exams=EXAMS)
    first, *judged = judge(case, made)
    result: list[dict[str, Any]] = [{"predictor": first.name, "log_loss": float(np.nanmean(first.found.log_loss))}]
    for one, one_judged, found, taken in zip(made, judged, rows, seconds, strict=True):
        result.append(
            {
                "predictor": one.name,
                "log_loss": float(np.nanmean(one_judged.found.log_loss)),
                "milliseconds": list(one_judged.milliseconds),
                "seconds_to_fit": taken,
                "groups": one.facts["groups"],
                "validation_gain": one.facts["validation_gain"],
                "helps": one.facts["helps"],
                "recovered": [
                    {"budget": row.budget, "informed": row.method}
                    | {n: list(v) for n, v in row.found._asdict().items()}
                    for row in found
                ],
            }
        )
    return result


def use_kept(folder: Path) -> tuple[str, ...]:
    """Let language models "read" what `roi mcft` kept; the predictors to try. They can read no other text, so how long reading
    takes is not measured."""
    from agents.llm.mcft.recorded import announced
    from agents.predictors import language

    found = announced(folder)
    if found is None:
        raise PredictorError(f"{folder} holds nothing that `roi mcft` kept")
    other = next(iter(found.values()))

    def tags(model: str, texts: Sequence[str]) -> Floats:
        kept = [found.get(text, other) for text in texts]
        taught = model.endswith(TAUGHT)
        return np.log(np.maximum([one.taught if taught else one.untaught for one in kept], 1e-6))

    def states(model: str, texts: Sequence[str], how: str) -> Floats:
        return np.array([found.get(text, other).state for text in texts], np.float64)

    language.level_states, language.text_states = tags, states  # type: ignore[assignment]
    model = json.loads((folder / "mcft.json").read_text())["model"]
    return f"hidden:{model}", f"levels:{model}", f"levels:{model}{TAUGHT}"


def generation_numbers(table: OutcomeTable) -> tuple[Ints, Ints, Ints]:
    """(rows,) each: question, tier, and which generation of that cell a row is, from 0."""
    of_row, _ = table.distinct_questions()
    code, values = table.codes("tier")
    names = table.tier_names(table.menus[0])
    tier = np.array([names.index(value) for value in values])[code]
    cell = of_row * len(names) + tier
    order = np.lexsort((table.generations(), cell))
    start = np.flatnonzero(np.diff(cell[order], prepend=-1))
    number = np.empty(len(cell), np.int64)
    number[order] = np.arange(len(cell)) - np.repeat(start, np.diff(np.append(start, len(cell))))
    return of_row, tier, number


def recorded_as(case: Case, samples: Ints) -> Case:
    """A case as if of every question and tier only the first ``samples`` (Q, K) generations had been recorded."""
    table = case.table.select(**{name: case.arguments.get(name) for name in ("menu", "tiers", "datasets")})
    question, tier, number = generation_numbers(table)
    rows = table.rows.filter(pa.array(number < samples[question, tier]))
    return case._replace(table=dataclasses.replace(table, rows=rows))


def share_of(found: Records, split: str, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """(Q,) a random share of a split's questions, of every data set; a larger share holds a smaller one of the same seed."""
    mine = np.flatnonzero(found.split == SPLITS.index(split))
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    place = np.empty(len(mine))
    for dataset in sorted(set(found.columns["dataset"])):
        inside = np.array([found.columns["dataset"][at] == dataset for at in mine])
        place[inside] = (rng.permutation(inside.sum()) + rng.random()) / max(inside.sum(), 1)
    chosen = np.zeros(len(found), np.bool_)
    chosen[mine[np.argsort(place)[: round(share * len(mine))]]] = True
    return chosen


class Tried(NamedTuple):
    """What a text predictor from some of the recordings is worth on all test questions.

    :param tokens: of train and validation questions.
    :param share: of the information, by budget, against what all train questions reach without a predictor.
    """

    tokens: int
    log_loss: float
    reached: list[float]
    share: list[float]


def try_recording(case: Case, some: Case, known: Sequence[Known]) -> Tried:
    """Fit on ``some`` recordings of the case and score on its test questions.

    :raises PredictorError: where there are too few.
    """
    learned = some.records()
    tokens = int(learned.take(learned.split != SPLITS.index("test")).tokens.sum())
    predictor = fit_predictor("text", some)
    rows = recovered_by(some, predictor, known)
    all_of_them = case.records()
    test = all_of_them.take(all_of_them.split == SPLITS.index("test"))
    scores = predictor.scores(test.texts, test.columns)
    found = quality(test, predictor.heads.probability(scores), predictor.heads.expected_cost(scores))
    shares = [
        float((row.score - one.without.mean()) / (one.informed.value.mean() - one.without.mean()))
        for row, one in zip(rows, known, strict=True)
    ]
    return Tried(tokens, float(np.nanmean(found.log_loss)), [row.score for row in rows], shares)


def curve(case: Case, known: Sequence[Known]) -> list[dict[str, Any]]:
    """The text predictor from fewer questions (train and validation in proportion) and fewer samples."""
    found = case.records()
    train = int((found.split == SPLITS.index("train")).sum())
    most = int(found.count.max())
    result = []
    for questions in (*(n for n in QUESTIONS if n < 0.9 * train), train):
        for samples in (s for s in SAMPLES if s <= most):
            draws = []
            for seed in range(DRAWS if questions <= MANY else 1):
                kept = found.split == SPLITS.index("test")
                chosen = [share_of(found, split, questions / train, seed) for split in ("train", "validation")]
                count = np.where(np.logical_or(*chosen), samples, np.where(kept, most, 0))
                try:
                    draws.append(
                        try_recording(case, recorded_as(case, np.repeat(count[:, None], len(found.tiers), 1)), known)
                    )
                except (PredictorError, OutcomeTableError) as error:
                    result.append({"questions": questions, "samples": samples, "reason": str(error)})
                    break
            else:
                result.append(
                    {"questions": questions, "samples": samples, "draws": [one._asdict() for one in draws]}
                    | {name: np.mean([getattr(one, name) for one in draws], 0).tolist() for name in Tried._fields}
                )
            print(questions, samples, result[-1].get("share", result[-1].get("reason")), flush=True)
    return result


def transfer(cases: Mapping[str, Case]) -> list[dict[str, Any]]:
    """The text predictors of all tables on the questions of each (beliefs are the latter's own)."""
    made = {name: fit_predictor("text", case) for name, case in cases.items()}
    result = []
    for on, case in cases.items():
        known = known_of(case, exams=EXAMS)
        found = case.records()
        test = found.take(found.split == SPLITS.index("test"))
        for name, predictor in made.items():
            if predictor.knows([text for text in test.texts if text]):
                raise PredictorError(f"the predictor of {name} was fitted on test questions of {on}")
            result.append({"on": on, "fitted_on": name} | _shares(recovered_by(case, predictor, known)))
    return result


def _shares(rows: Sequence[Row]) -> dict[str, Any]:
    return {"recovered": [list(row.found.share) for row in rows], "gain": [list(row.found.gain) for row in rows]}


def _pairs(table: OutcomeTable) -> list[tuple[str, str]]:
    """Data set and id of every row."""
    return list(zip(*(table.rows[name].to_pylist() for name in ("dataset", "question_id")), strict=True))


def in_common(one: Case, other: Case) -> Case:
    """The questions of a case that another one has too."""
    table = one.table.select(one.arguments["menu"])
    theirs = set(_pairs(other.table.select(other.arguments["menu"])))
    rows = table.rows.filter(pa.array([pair in theirs for pair in _pairs(table)]))
    return one._replace(table=dataclasses.replace(table, rows=rows))


def eases(case: Case) -> tuple[list[tuple[str, str]], Floats]:
    """Names, and (3, Q) ease of every question: from all samples, from every other one, from the rest; by item response."""
    found = case.records()
    table = case.table.select(case.arguments["menu"])
    question, tier, number = generation_numbers(table)
    correct = table.numbers("correct").astype(np.float64)
    result = []
    for rows in (number >= 0, number % 2 == 0, number % 2 == 1):
        cell = question[rows] * len(found.tiers) + tier[rows]
        right, count = (
            np.bincount(cell, weights, found.count.size).reshape(found.count.shape).astype(np.float64)
            for weights in (correct[rows], None)
        )
        result.append(fit_item_response(right, count).ease(right, count))
    names = _pairs(table)
    return [names[row] for row in table.distinct_questions().first_row], np.stack(result)


def correlation(mine: Floats, theirs: Floats, resamples: int = 2000) -> list[float]:
    """Of two models' (3, Q) eases without the noise of their samples, with its 95 % interval over questions."""

    def of(chosen: Ints) -> float:
        found = np.asarray(np.corrcoef(mine[1:, chosen], theirs[1:, chosen]))
        return float(found[:2, 2:].mean() / np.sqrt(max(found[0, 1] * found[2, 3], 1e-9)))

    rng, size = np.random.default_rng(0), mine.shape[1]
    low, high = np.quantile([of(np.asarray(rng.integers(size, size=size))) for _ in range(resamples)], (0.025, 0.975))
    return [of(np.arange(size)), float(low), float(high)]


def whose_difficulty(one: Case, other: Case) -> dict[str, Any]:
    """How much of the ease of one model's questions another model's answers to the same questions tell.

    The correlation of measured eases is divided by what halves of the samples say of their own noise. What it is worth is
    measured with the other model's ease, from all its samples, as a column that is given.
    """
    one, other = in_common(one, other), in_common(other, one)
    (names, mine), (their_names, theirs) = eases(one), eases(other)
    place = {name: at for at, name in enumerate(their_names)}
    theirs = theirs[:, [place[name] for name in names]]
    found = one.records()
    dataset = np.unique(found.columns["dataset"], return_inverse=True)[1]

    def within(values: Floats) -> Floats:
        means = np.stack([np.bincount(dataset, row) for row in values]) / np.bincount(dataset)
        return np.asarray(values - means[:, dataset])

    told = one._replace(table=with_column(one.table, "other", [f"{value:.6f}" for value in theirs[0]]))
    rows = recovery_of(told, [fit_predictor("given:other", told)], exams=EXAMS)[0]
    return {
        "on": one.arguments["menu"],
        "told_by": other.arguments["menu"],
        "questions": len(names),
        "correlation": correlation(mine, theirs),
        "correlation_within_data_sets": correlation(within(mine), within(theirs)),
    } | _shares(rows)


def speed(questions: Path) -> dict[str, Any]:
    """CPU time of the text predictor on 1,000 word problems x 5 tiers x 2 samples with made-up outcomes: the longer, the harder."""
    texts = [json.loads(line)["question"] for line in questions.open(encoding="utf-8")][:1000]
    rng, tiers = np.random.default_rng(0), np.arange(5)
    hard = np.array([len(text) for text in texts]) / 250 + rng.normal(size=len(texts))
    at, tier, sample = (part.ravel() for part in np.indices((len(texts), 5, 2)))
    table = pa.table(
        {
            "dataset": ["problems"] * len(at),
            "question_id": at.astype(str),
            "question": [texts[one] for one in at],
            "answer": [""] * len(at),
            "menu": ["model"] * len(at),
            "tier": np.array([f"tier {one}" for one in tiers])[tier],
            "tier_order": tier + 1,
            "tokens": 1 + rng.poisson(20.0 * 2**tier),
            "correct": rng.random(len(at)) < 1 / (1 + np.exp(hard[at] - tier)),
            "sample": sample,
        }
    )
    case = Case(OutcomeTable.from_arrow(table, "problems"), {})
    began = time.process_time()
    predictor = fit_predictor("text", case)
    fitted = time.process_time()
    for start in range(0, 960, 64):
        predictor.group(texts[start : start + 64])
    batches = time.process_time()
    for one in texts[:200]:
        predictor.group([one])
    alone = time.process_time()
    return {
        "seconds_to_fit": fitted - began,
        "milliseconds_in_64": (batches - fitted) / 960 * 1000,
        "milliseconds_alone": (alone - batches) / 200 * 1000,
    }


def text(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    lines = []
    for name, rows in document["tables"].items():
        lines += [
            f"### {name}",
            "",
            "| predictor | log-loss | recovered at t=.15 | .3 | .6 | helps | groups | ms (64; 1) | fit, s |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for row in rows:
            if "recovered" not in row:
                lines.append(f"| {row['predictor']} | {row['log_loss']:.3f} | 0 | 0 | 0 | | | | |")
                continue
            cells = [_recovered(found) for found in row["recovered"]]
            speed = "; ".join("-" if value is None else f"{value:.2f}" for value in row["milliseconds"])
            lines.append(
                f"| {row['predictor']} | {row['log_loss']:.3f} | {' | '.join(cells)} | {'yes' if row['helps'] else 'no'} | "
                f"{row['groups']} | {speed} | {row['seconds_to_fit']:.1f} |"
            )
        info = next((row for row in rows if "recovered" in row), None)
        if info is not None:
            known = "; ".join(
                f"t={found['budget']:g} {percent(_interval(found['information']))}, raw {percent(_interval(found['raw']))}"
                for found in info["recovered"]
            )
            lines += ["", f"To recover (informed by {info['recovered'][0]['informed']}): {known}.", ""]
    for name, rows in document["curves"].items():
        lines += [
            f"### Learning curve, {name}",
            "",
            "Shares of what there is to recover against what all train questions reach without a predictor; means of draws of "
            "the questions (in brackets the least and the most).",
            "",
            "| train questions | samples a cell | draws | tokens recorded | log-loss | score at t=.15 | .3 | .6 | recovered at t=.15 | .3 | .6 |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            head = f"| {row['questions']} | {row['samples']} |"
            if "reason" in row:
                lines.append(f"{head} {row['reason']} | | | | | | | | |")
                continue
            loss = "-" if row["log_loss"] is None else f"{row['log_loss']:.3f}"
            cells = [f"{len(row['draws'])}", f"{row['tokens']:,.0f}", loss]
            cells += [f"{value:.2f}" for value in row["reached"]]
            for budget, value in enumerate(row["share"]):
                ends = sorted(one["share"][budget] for one in row["draws"])
                cells.append(f"{value:.2f}" + (f" ({ends[0]:.2f}, {ends[-1]:.2f})" if len(ends) > 1 else ""))
            lines.append(f"{head} {' | '.join(cells)} |")
        lines.append("")
    if document["transfer"]:
        lines += ["### Transfer", "", "| on | fitted on | gain in score at t=.15 | .3 | .6 |", "|---|---|---|---|---|"]
        for row in document["transfer"]:
            shares = " | ".join(percent(_interval(found)) for found in row["gain"])
            lines.append(f"| {row['on']} | {row['fitted_on']} | {shares} |")
        lines.append("")
    if document["whose_difficulty"]:
        lines += [
            "### Another model's answers to the same questions",
            "",
            "| on | told by | questions | correlation of eases | within data sets | gain in score at t=.15 | .3 | .6 |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in document["whose_difficulty"]:
            gains = " | ".join(percent(_interval(found)) for found in row["gain"])
            told = " | ".join(
                "{:.2f} [{:.2f}, {:.2f}]".format(*row[name]) for name in ("correlation", "correlation_within_data_sets")
            )
            lines.append(f"| {row['on']} | {row['told_by']} | {row['questions']} | {told} | {gains} |")
        lines.append("")
    if document["speed"]:
        found = document["speed"]
        lines += [
            "### Speed",
            "",
            f"CPU time of `text`, 1,000 word problems x 5 tiers: {found['seconds_to_fit']:.1f} s to fit; "
            f"{found['milliseconds_in_64']:.2f} ms a question in batches of 64, {found['milliseconds_alone']:.2f} ms alone.",
            "",
        ]
    return "\n".join(lines)


def _interval(values: list[float | None]) -> Interval:
    return Interval(*(float("nan") if value is None else value for value in values))


def _recovered(found: dict[str, Any]) -> str:
    return verdict(Recovered(*(_interval(found[name]) for name in Recovered._fields)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="name of one table; the file keeps what it has of others")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--table", type=Path, help="measure this table under the name of --only")
    parser.add_argument("--kept", type=Path, help="folder of `roi mcft`: what its model holds of the table's questions")
    parser.add_argument("--predictor", action="append", help="instead of the table's own; repeatable; others stay")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    every = cases()
    if options.table:
        own = OutcomeTable.read(options.table)
        by_model = use_kept(options.kept) if options.kept else ()
        every[options.only] = (Case(own, {"menu": own.menus[0]}), ("surface", "text", *by_model))
    found = {name: one for name, one in every.items() if options.only in (None, name)}
    document: dict[str, Any] = {"budgets": list(BUDGETS), "exams": EXAMS, "tables": {}, "curves": {}}
    document |= {"transfer": [], "whose_difficulty": [], "speed": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    if (before := options.out / "predictors.json").exists():
        document |= json.loads(before.read_text(encoding="utf-8"))
    for name, (case, names) in found.items():
        if "tables" in options.parts:
            rows = measure(case, tuple(options.predictor or names))
            for row in rows if options.kept else ():
                if ":" in row["predictor"]:
                    row["milliseconds"] = [None, None]
            kept = document["tables"].get(name, []) if options.predictor else []
            measured = {row["predictor"] for row in rows}
            rows = [row for row in kept if row["predictor"] not in measured] + rows
            document["tables"][name] = sorted(rows, key=lambda row: "recovered" in row)  # means first
            _write(options.out, document)
        if "curves" in options.parts and case.records().count.max() > 1:
            document["curves"][name] = curve(case, known_of(case, exams=EXAMS))
            _write(options.out, document)
    if "speed" in options.parts and (data := os.environ.get("ROI_DATA")):
        document["speed"] = speed(Path(data) / "questions" / "gsm8k_test.jsonl")
        _write(options.out, document)
    if "transfer" in options.parts:
        for names in SAME_QUESTIONS:
            if all(name in found for name in names):
                same = {name: found[name][0] for name in names}
                whose = [whose_difficulty(*same.values()), whose_difficulty(*reversed(same.values()))]
                document["whose_difficulty"] = _beside(document["whose_difficulty"], whose)
                document["transfer"] = _beside(document["transfer"], transfer(same))
                _write(options.out, document)


def _beside(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in place of earlier ones on the same tables."""
    measured = {row["on"] for row in rows}
    return [row for row in before if row["on"] not in measured] + rows


def _write(folder: Path, document: dict[str, Any]) -> None:
    plain = _plain(document)
    (folder / "predictors.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    (folder / "tables.md").write_text(text(plain), encoding="utf-8")


if __name__ == "__main__":
    main()
