"""The paper's pipeline by the commands that a user gives, on any model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from typer.testing import CliRunner

from benchmarks.math_table import joined
from experiments.cli import app
from roi_env.exams.config import exam_spec
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import math_table
from tests.commands import undrawn

MODEL_NAME = "recorded"


def roi(*arguments: str) -> str:
    """Output of a command; one that fails is an error."""
    done = CliRunner().invoke(app, list(arguments))
    if done.exit_code:
        raise AssertionError(f"roi {' '.join(arguments)}: {done.output}") from done.exception
    return str(done.output)


def question_files(folder: Path, questions: int) -> list[Path]:
    """Questions of the packaged recording, a file a set, in the form that people have them in; of each split some."""
    found = []
    table = math_table()
    for dataset in ("gsm8k", "math-500"):
        rows = [row for row in table.rows.to_pylist() if row["dataset"] == dataset]
        kept = {row["question_id"]: row for row in rows}
        file = folder / f"{dataset}.jsonl"
        file.write_text(
            "".join(
                json.dumps({"question": row["question"], "answer": row["answer"]}) + "\n"
                for row in [*kept.values()][:questions]
            )
        )
        found.append(file)
    return found


def whole_path(model: str, folder: Path, tiers: Sequence[int], questions: int) -> None:
    """Record, join, describe, compare, fine-tune, let the fine-tuned model learn from exams, compare all.

    :param tiers: caps, cheapest first, three.
    :param questions: of each data set.
    """
    options = [word for cap in tiers for word in ("--tier", f"{cap}={cap}+12")]
    parts = []
    for file in question_files(folder, questions):
        parts.append(folder / f"{file.stem}.parquet")
        roi(
            "record",
            model,
            "--name",
            MODEL_NAME,
            "--questions",
            str(file),
            "--grader",
            "math",
            "--samples",
            "2",
            "--threads",
            "1",
            *options,
            "--out",
            str(parts[-1]),
        )
    table = joined([OutcomeTable.read(part) for part in parts])
    whole = folder / "whole.parquet"
    table.write(whole)
    assert table.pairing
    assert table.num_rows == 2 * 3 * 2 * questions
    caps = table.tier_caps[MODEL_NAME]  # in a think block those of the answer and the block's end come on top
    assert all(cap >= least for cap, least in zip(caps.values(), tiers, strict=True))
    assert all(row["tokens"] <= caps[row["tier"]] for row in table.rows.to_pylist())
    assert "by data set" in roi("table", str(whole), "--picture", str(folder / "curves.png"))

    tuned = folder / "tuned"
    said = roi(
        "mcft",
        model,
        "--table",
        str(whole),
        "--threads",
        "1",
        "--out",
        str(tuned),
        "single_epochs=1",
        "exam_epochs=1",
        "exams=4",
        "lora=4",
        "layers=1",
        f"budget=[{tiers[0]},{tiers[-1]}]",
    )
    assert "untaught" in said
    report = json.loads((tuned / "self-knowledge.json").read_text())
    assert report["questions"] == len(set(table.split("test").rows["question_id"].to_pylist()))
    assert {"tags", "surface", "untaught", "frozen", "tags_interval"} <= report.keys()
    losses = json.loads((tuned / "mcft.json").read_text())["validation"]
    assert min(losses["single problems"]) <= losses["single problems"][0]

    learned = folder / "learned"
    exams = ("--family", "paper", "--table", str(whole), "--num-tasks", "2", "--budget", str(2 * tiers[1]))
    settings = (
        "lora=2",
        "layers=1",
        "dtype=bfloat16",
        "budgets=[0.5,1]",
        "anchor=1",
        "exams=16",
        "minibatch=16",
        "group=4",
        "bits=3",
    )
    parameters = [word for setting in settings for word in ("--param", setting)]
    roi(
        "train", "grpo", "--policy", "llm", "--model", str(tuned), *exams, *parameters, "--reward", "rational", "--steps", "40",
        "--out", str(learned),
    )  # fmt: skip

    run = folder / "run"
    spec = exam_spec("paper", table=whole, num_tasks=2, budget=2 * tiers[1])
    assert spec.source.num_strata == 2
    with undrawn():
        roi(
            "compare", *exams, "--workers", "1", "--out", str(run), "exams=4", "replicates=4", "--predictor", "none",
            "--agent", "resolve", "--agent", f"llm(model='{tuned}')", "--agent", f"llm(model='{model}',dtype='bfloat16',bits=3)",
            "--agent", f"predicted-levels(planner='greedy-knapsack',model='{tuned}')", "--agent", f"{learned}/agent.npz",
        )  # fmt: skip
    scores = pq.read_table(run / "scores.parquet").to_pydict()
    assert {"resolve", "optimum"} <= set(scores["agent"])
    assert len([name for name in set(scores["agent"]) if name.startswith("llm(")]) == 2
    assert len(set(scores["agent"])) == 6
    assert np.isfinite(scores["score"]).all()
