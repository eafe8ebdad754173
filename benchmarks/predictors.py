"""What predictors recover on recorded tables: the tables of docs/results/predictors.md.

    ROI_DATA=... python benchmarks/predictors.py              # writes benchmarks/results/predictors
    ROI_DATA=... python benchmarks/predictors.py --only tinylm

Without ROI_DATA the packaged recording alone is measured. Everything is fitted on train questions, chosen on validation
questions and scored on test questions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from agents.predictors.exams import Case, fit_predictor
from agents.predictors.predictor import PredictorError
from experiments.predicting import BUDGETS, judge, percent, recovery_of, verdict
from roi_env.measures.metrics import Interval
from roi_env.measures.recovery import Recovered
from roi_env.sources.importing.generations import Options
from roi_env.sources.importing.tables import import_logs
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable
from roi_env.sources.packaged import tinylm_table

RESULTS = Path(__file__).parent / "results" / "predictors"
EXAMS = 200
QUESTIONS = (50, 100, 200, 500)
SAMPLES = (1, 2, 4, 8)


def cases() -> dict[str, tuple[Case, tuple[str, ...]]]:
    """Tables by name, with the predictors to try."""
    plain = ("surface", "text", "neighbours")
    own = ("given:difficulty", "embedding:tinylm", "hidden:tinylm", "levels:tinylm-mcft")
    found: dict[str, tuple[Case, tuple[str, ...]]] = {
        "tinylm": (Case(tinylm_table(), {"menu": "tinylm"}), (*plain, *own))
    }
    if data := os.environ.get("ROI_DATA"):
        jhu = OutcomeTable.read(Path(data) / "outcomes" / "jhu_concise_cot.parquet")
        for menu in ("gpt-4", "gpt-35-turbo"):
            found[f"jhu {menu}"] = (Case(jhu, {"menu": menu}), (*plain, "given:topic"))
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
    for one, quality, found, taken in zip(made, judged, rows, seconds, strict=True):
        result.append(
            {
                "predictor": one.name,
                "log_loss": float(np.nanmean(quality.found.log_loss)),
                "milliseconds": list(quality.milliseconds),
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


def shortened(case: Case, questions: int | None, samples: int | None) -> Case:
    """A case with fewer train questions, and fewer samples of train and validation questions."""
    table = case.table.select(case.arguments["menu"])
    _, first = table.distinct_questions()
    of_row = table.distinct_questions().of_row
    split = table.split_codes()[first]
    keep = np.ones(len(first), np.bool_)
    if questions is not None:
        train = np.flatnonzero(split == SPLITS.index("train"))
        keep[np.random.default_rng(0).permutation(train)[questions:]] = False
    rows = keep[of_row]
    if samples is not None:
        tier = table.codes("tier")[0]
        cell = of_row * (tier.max() + 1) + tier
        order = np.lexsort((table.generations(), cell))
        start = np.flatnonzero(np.diff(cell[order], prepend=-1))
        place = np.empty(len(cell), np.int64)
        place[order] = np.arange(len(cell)) - np.repeat(start, np.diff(np.append(start, len(cell))))
        rows &= (place < samples) | (split[of_row] == SPLITS.index("test"))
    return case._replace(table=dataclasses.replace(table, rows=table.rows.filter(pa.array(rows))))


def curve(case: Case) -> list[dict[str, Any]]:
    """The text predictor from fewer questions and fewer samples, and what recording them took."""
    found = case.records()
    train = int((found.split == SPLITS.index("train")).sum())
    most = int(found.count.max())
    plans: list[tuple[int | None, int | None]] = [(n, None) for n in QUESTIONS if n < train] + [(None, None)]
    plans += [(None, s) for s in SAMPLES if s < most]
    plans += [(n, s) for n in QUESTIONS if n < train for s in SAMPLES[:2] if s < most]
    result = []
    for questions, samples in plans:
        some = shortened(case, questions, samples)
        record: dict[str, Any] = {"questions": questions or train, "samples": samples or most}
        learned = some.records()
        mine = learned.take(learned.split != SPLITS.index("test"))
        record["tokens"] = int(mine.tokens.sum())
        try:
            predictor = fit_predictor("text", some)
        except PredictorError as error:
            result.append(record | {"reason": str(error)})
            continue
        rows = recovery_of(some, [predictor], exams=EXAMS)[0]
        # Against what all train questions reach without a predictor: the same for all plans.
        result.append(
            record
            | {
                "gain": [list(row.found.gain) for row in rows],
                "recovered": [list(row.found.share) for row in rows],
                "groups": predictor.facts["groups"],
                "reached": [row.score for row in rows],
            }
        )
    return result


def transfer(one: Case, other: Case) -> list[dict[str, Any]]:
    """The text predictor of one model's table on the other's questions (beliefs are the other's own)."""
    made = [fit_predictor("text", case) for case in (other, one)]
    rows = recovery_of(other, made, exams=EXAMS)
    names = (f"fitted on {other.arguments['menu']} itself", f"fitted on {one.arguments['menu']}")
    return [
        {"on": other.arguments["menu"], "predictor": name, "recovered": [list(row.found.share) for row in found]}
        | {"gain": [list(row.found.gain) for row in found]}
        for name, found in zip(names, rows, strict=True)
    ]


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
            speed = "; ".join(f"{value:.2f}" for value in row["milliseconds"])
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
            "| train questions | samples a cell | tokens recorded | score at t=.15 | .3 | .6 | recovered at t=.15 | .3 | .6 |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for row in rows:
            head = f"| {row['questions']} | {row['samples']} | {row['tokens']:,} | "
            if "reason" in row:
                lines.append(f"{head}{row['reason']} | | | | | |")
                continue
            score = " | ".join(f"{value:.2f}" for value in row["reached"])
            lines.append(f"{head}{score} | {' | '.join(percent(_interval(found)) for found in row['recovered'])} |")
        lines.append("")
    if document["transfer"]:
        lines += ["### Transfer", "", "| on | predictor | recovered at t=.15 | .3 | .6 |", "|---|---|---|---|---|"]
        for row in document["transfer"]:
            shares = " | ".join(percent(_interval(found)) for found in row["recovered"])
            lines.append(f"| {row['on']} | {row['predictor']} | {shares} |")
        lines.append("")
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="name of one table; the file keeps what it has of others")
    parser.add_argument(
        "--no-curves", action="store_true", help="no learning curves and no transfer (minutes instead of an hour)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = {name: one for name, one in cases().items() if options.only in (None, name)}
    document: dict[str, Any] = {"budgets": list(BUDGETS), "exams": EXAMS, "tables": {}, "curves": {}, "transfer": []}
    options.out.mkdir(parents=True, exist_ok=True)
    if (before := options.out / "predictors.json").exists():
        document = json.loads(before.read_text(encoding="utf-8"))
    for name, (case, names) in found.items():
        document["tables"][name] = measure(case, names)
        print(name, "measured", flush=True)
        _write(options.out, document)
        if not options.no_curves and case.records().count.max() > 1:
            document["curves"][name] = curve(case)
            _write(options.out, document)
    if (
        not options.no_curves
        and len(models := [case for name, (case, _) in found.items() if name.startswith("jhu")]) == 2
    ):
        document["transfer"] = transfer(*models) + transfer(*models[::-1])
        _write(options.out, document)


def _write(folder: Path, document: dict[str, Any]) -> None:
    plain = _plain(document)
    (folder / "predictors.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    (folder / "tables.md").write_text(text(plain), encoding="utf-8")


if __name__ == "__main__":
    main()
