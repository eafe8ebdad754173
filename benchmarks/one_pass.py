"""The paper's inference: a model takes exams of three problems in one pass, at its own words, and is cut at the budget.

    python benchmarks/one_pass.py FOLDER --table TABLE --journal one-pass.jsonl --out benchmarks/results/math/one-pass.json

Exams are those of the environment's family ``paper``: one problem each of GSM8K, MATH-500 and AIME, test questions. A cell is an order
of the problems and a prompt (:data:`agents.llm.prompts.STRATEGIES`). A transcript at the largest budget serves the smaller ones:
there it is cut earlier (its prompt names the largest). Transcripts are kept in the journal, row by row: the same command goes
on, and more exams continue it. A cell of which the results file has more exams than the journal (of another machine, say) stays there
as it is. The journal has texts made from AIME: keep it out of repositories.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import agents  # noqa: F401 - registers the family
from agents.base import exams_view, public_problem
from agents.llm.decisions.policy import load_model, load_tokenizer, question_texts
from agents.llm.decisions.tag_logits import PADDING
from agents.llm.mcft.training import write_json
from agents.llm.one_pass.transcripts import Reader, exam_ids, generate, turn_ends
from agents.one_pass import mark
from agents.playing import action_numbers
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.measures.metrics import bootstrap_weights, interval, resampled_means

CELLS = (
    ("random", "base"),
    ("random", "plan-and-solve"),
    ("random", "least-to-most"),
    ("easy_first", "base"),
    ("hard_first", "base"),
)
"""Order and prompt, the most wanted first."""
TIERS = ("256", "512", "1024")
BUDGETS = (512, 1024)
EXAM_SEED = 20261129


class Key(NamedTuple):
    """A transcript."""

    order: str
    strategy: str
    exam: int


def drawn(table: Path, order: str, count: int) -> ExamBatch:
    """The first exams of an order: the same problems in every order."""
    spec = exam_spec("paper", table=table, tiers=TIERS, order=order, budget=BUDGETS[-1])
    return draw_exams(spec, EXAM_SEED, np.arange(count))


def read(journal: Path, settings: dict[str, Any]) -> dict[Key, list[int]]:
    """Token ids of the transcripts that are there; a line that was cut is written again.

    :raises SystemExit: where the journal belongs to other settings.
    """
    if not journal.exists():
        journal.write_text(json.dumps(settings) + "\n")
    text = journal.read_text()
    if not text.endswith("\n"):
        with journal.open("a") as file:
            file.write("\n")
    first, *lines = text.splitlines()
    if json.loads(first) != settings:
        raise SystemExit(f"{journal} has transcripts of {first}, wanted {json.dumps(settings)}: choose another journal")
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[Key(row["order"], row["strategy"], row["exam"])] = row["ids"]
    return found


def write(given: argparse.Namespace, done: dict[Key, list[int]]) -> None:
    """Let the model write what is missing, cell by cell; a batch is kept when it is whole."""
    tokenizer, model = load_tokenizer(given.model), load_model(given.model, given.dtype)
    texts = {}
    for order in dict.fromkeys(order for order, _ in CELLS):
        batch = drawn(given.table, order, given.exams)
        texts[order] = question_texts(exams_view(batch, public_problem(batch.spec)), "one pass")
    cells: list[tuple[str, str]] = given.cell or list(CELLS)
    every = [Key(*cell, exam) for cell in cells for exam in range(given.exams)]
    missing = [key for key in every if key not in done]
    for first in range(0, len(missing), given.batch):
        some = missing[first : first + given.batch]
        prompts = [exam_ids(tokenizer, texts[key.order][key.exam], BUDGETS[-1], key.strategy) for key in some]
        exams = np.array([key.exam for key in some])
        numbers = action_numbers(np.uint64(EXAM_SEED), exams, np.zeros_like(exams), BUDGETS[-1])
        begun = time.perf_counter()
        made = generate(
            model,
            prompts,
            np.arange(len(some)),
            numbers,
            stops=turn_ends(model, tokenizer),
            temperature=given.temperature,
            batch=given.batch,
        )
        spent, total = time.perf_counter() - begun, int(made.length.sum())
        with given.journal.open("a") as file:
            for key, ids in zip(some, made.ids, strict=True):
                done[key] = ids[ids != PADDING].tolist()
                file.write(json.dumps({**key._asdict(), "ids": done[key]}) + "\n")
        left = (len(missing) - first - len(some)) * spent / len(some) / 60
        print(
            f"{len(done):,} of {len(every):,} transcripts, {total / spent:.0f} tokens a second, {left:.0f} minutes left",
            flush=True,
        )


def _under(batch: ExamBatch, budget: int) -> ExamBatch:
    return dataclasses.replace(batch, spec=batch.spec.replace(budget=budget))


def scored(given: argparse.Namespace, done: dict[Key, list[int]]) -> list[dict[str, Any]]:
    """What every cell scores at every budget, over the exams that are there."""
    reader, rows = Reader(load_tokenizer(given.model)), []
    for order, strategy in CELLS:
        exams = [e for e in range(given.exams) if Key(order, strategy, e) in done]
        if len(exams) < 2:
            continue
        whole = drawn(given.table, order, given.exams).take(np.array(exams))
        datasets = np.array(whole.spec.source.group_names)[whole.groups]
        for budget in BUDGETS:
            ids = np.full((len(exams), budget), PADDING, np.int32)
            for at, e in enumerate(exams):
                written = done[Key(order, strategy, e)][:budget]
                ids[at, : len(written)] = written
            papers = reader.papers(ids, whole.items.shape[1])
            records = mark(papers, _under(whole, budget), given.grader, np.arange(len(exams)))
            score = records.value.sum(1)
            weights = bootstrap_weights(len(exams), 4000, np.random.default_rng(0), whole.items)
            most = float(whole.items.shape[1])
            value = interval(float(score.mean()), resampled_means(score, weights), bounds=(0.0, most))
            rows.append(
                {
                    "order": order,
                    "prompt": strategy,
                    "budget": budget,
                    "exams": len(exams),
                    "score": round(value.value, 4),
                    "interval": [round(end, 4) if np.isfinite(end) else None for end in value[1:]],
                    "tokens": round(float(records.tokens.sum(1).mean()), 1),
                    "boxes": round(float(np.mean([sum(a is not None for a in row) for row in papers.answers])), 3),
                    "refusals": round(float((papers.reached & (papers.action == 0)).sum(1).mean()), 3),
                    "cut": round(float(papers.cut.any(1).mean()), 3),
                    "right_by_dataset": {
                        str(name): round(float(records.value[datasets == name].mean()), 4)
                        for name in np.unique(datasets)
                    },
                    "reached_by_dataset": {
                        str(name): round(float(papers.reached[datasets == name].mean()), 4)
                        for name in np.unique(datasets)
                    },
                }
            )
    return rows


def merged(out: Path, settings: dict[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells beside those of an earlier results file; of one that both have, that with more exams.

    :raises SystemExit: where the file is of other settings.
    """
    found = {}
    if out.exists():
        before = json.loads(out.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{out} has results of {before['settings']}, wanted {settings}: choose another file")
        found = {(one["order"], one["prompt"], one["budget"]): one for one in before["cells"]}
    for one in cells:
        key = one["order"], one["prompt"], one["budget"]
        if key not in found or found[key]["exams"] <= one["exams"]:
            found[key] = one
    order = [(*cell, budget) for cell in CELLS for budget in BUDGETS]
    return [found[key] for key in order if key in found]


def _cell(text: str) -> tuple[str, str]:
    found = next((cell for cell in CELLS if ",".join(cell) == text), None)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected one of {' '.join(map(','.join, CELLS))}")
    return found


def main() -> None:
    """Write, mark, and put the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder or id")
    parser.add_argument("--table", type=Path, required=True, help="recorded outcomes with all texts")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--exams", type=int, default=60)
    parser.add_argument("--cell", type=_cell, action="append", help="order,prompt to write (repeatable); default: all")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--grader", default="math")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--marks-only", action="store_true", help="mark what the journal has, write nothing more")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = {
        "model": Path(given.model).name,
        "table": given.table.name,
        "budget": BUDGETS[-1],
        "temperature": given.temperature,
        "dtype": given.dtype,
        "exam_seed": EXAM_SEED,
    }
    done = read(given.journal, settings)
    if not given.marks_only:
        write(given, done)
    settings |= {"grader": given.grader}
    write_json(given.out, {"settings": settings, "cells": merged(given.out, settings, scored(given, done))})
    print(f"{len(done)} transcripts: {given.out}")


if __name__ == "__main__":
    main()
