"""Peak memory: a table of a million generations (claim: under 1 GB) and the optimum at N = 100, B = 1,000,000 (under 4 GB).

Every line is measured in a fresh process: peak resident memory (``getrusage``; Linux) and how much of it came after the
imports. The table is written here first: 4 families x 4 tiers x 12,500 questions x 5 samples, with question texts of
realistic length and two more columns.

    python benchmarks/bench_memory.py [--check]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Peak memory survives fork and exec: this process must stay small, so each job imports what it needs.

FAMILIES, TIERS, QUESTIONS, SAMPLES = 4, 4, 12_500, 5
NUM_TASKS, BUDGET = 100, 1_000_000


def peak() -> float:
    """Peak resident memory of this process so far, in GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def write(path: str) -> str:
    """Write the table as Parquet, CSV or JSON Lines, 20,000 rows at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(2000)])
    size = rng.integers(20, 120, QUESTIONS)
    texts = np.array([" ".join(rng.choice(words, n)) for n in size], object)
    block = TIERS * SAMPLES
    ability = rng.normal(size=(FAMILIES, TIERS)).cumsum(1)
    difficulty = rng.normal(size=QUESTIONS)

    def rows(family: int, first: int, last: int) -> pa.Table:
        question = np.repeat(np.arange(first, last), block)
        tier = np.tile(np.repeat(np.arange(TIERS), SAMPLES), last - first)
        count = len(question)
        right = rng.random(count) < 1 / (1 + np.exp(difficulty[question] - ability[family, tier]))
        tokens = np.minimum(rng.lognormal(5 + 0.9 * tier + 0.3 * difficulty[question]), 30_000).astype(np.int64) + 1
        return pa.table(
            {
                "dataset": [f"dataset-{q % 5}" for q in question],
                "question_id": [f"dataset-{q % 5}/{q:06d}" for q in question],
                "question": texts[question],
                "answer": [str(q * 7 % 1000) for q in question],
                "menu": np.full(count, f"model-{family}", object),
                "tier": [("none", "low", "medium", "high")[k] for k in tier],
                "tier_order": tier + 1,
                "tokens": tokens,
                "correct": right,
                "sample": np.tile(np.arange(SAMPLES), count // SAMPLES),
                "finish_reason": np.where(tokens < 30_000, "stop", "length").astype(object),
                "seconds": tokens / 50.0,
            }
        )

    step = 20_000 // block
    parts = (
        rows(family, first, min(first + step, QUESTIONS))
        for family in range(FAMILIES)
        for first in range(0, QUESTIONS, step)
    )
    kind = Path(path).suffix
    if kind == ".jsonl":
        import json

        with open(path, "w") as file:
            for part in parts:
                file.writelines(json.dumps(row) + "\n" for row in part.to_pylist())
        return path
    first = next(parts)
    writer = (pa.csv.CSVWriter if kind == ".csv" else pa.parquet.ParquetWriter)(path, first.schema)
    with writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)
    return path


def load(path: str) -> str:
    """Read and check the table, then describe it as ``roi table`` does."""
    from roi_env.sources.outcome_tables import OutcomeTable

    before = peak()
    table = OutcomeTable.read(path)
    read = peak() - before
    found = table.describe()
    return f"{found['rows']:,} rows, {len(found['families'])} families; reading alone +{read:.2f} GB"


def use(path: str) -> str:
    """Read it, select a family, split, learn beliefs, draw and play exams."""
    import gymnasium as gym

    import roi_env  # noqa: F401
    from roi_env.sources.outcome_tables import OutcomeTable
    from roi_env.sources.recorded import recorded_source

    table = OutcomeTable.read(path).select("model-2")
    train = table.split("train")
    source = recorded_source(table, split="test", beliefs_split="train")
    envs = gym.make_vec("ROIReasoning-v0", num_envs=64, vectorization_mode="vector_entry_point", family=source)
    envs.reset(seed=0)
    for _ in range(20):
        envs.step(envs.action_space.sample())
    return (
        f"{table.num_rows:,} rows of one family, {train.num_rows:,} of its train split, {len(source.row_item):,} tasks"
    )


def optimum(path: str) -> str:
    """The optimum as a comparison makes it: action tables of exams of the recorded table, on the automatic grid."""
    import numpy as np

    from roi_env.exams.config import exam_spec
    from roi_env.exams.exam import draw_exams
    from roi_env.measures.references import optimum_tables
    from roi_env.sources.outcome_tables import OutcomeTable
    from roi_env.sources.recorded import recorded_source

    source = recorded_source(OutcomeTable.read(path), menu="model-2")
    batch = draw_exams(exam_spec(source, num_tasks=NUM_TASKS, budget=BUDGET), 0, np.arange(4))
    tables = optimum_tables(batch)
    return f"mean value {tables.value.mean():.2f} of {len(batch)} exams (grid of {tables.grid} tokens)"


JOBS: dict[str, Callable[[str], str]] = {"write": write, "load": load, "use": use, "optimum": optimum}


def measure(job: str, argument: str) -> tuple[str, float, float, float]:
    """What a job says, its peak, the growth since the imports (GB) and its CPU seconds, in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--job", job, argument], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{job} {argument} failed:\n{done.stderr}")
    said, *numbers = done.stdout.rstrip("\n").split("\t")
    top, growth, seconds = map(float, numbers)
    return said, top, growth, seconds


def main() -> None:
    """Print a line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", nargs=2, metavar=("NAME", "ARGUMENT"), help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a claim fails")
    arguments = parser.parse_args()
    if arguments.job:
        name, argument = arguments.job

        before, begin = peak(), time.process_time()
        said = JOBS[name](argument)
        print(said, peak(), peak() - before, time.process_time() - begin, sep="\t")
        return
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for kind in ("parquet", "csv", "jsonl"):
            path = str(Path(folder, f"table.{kind}"))
            measure("write", path)
            print(f"{path}: {Path(path).stat().st_size / 1e6:.0f} MB", flush=True)
            runs += [("load", path, 1.0), *([("use", path, 1.0)] if kind == "parquet" else [])]
        table = str(Path(folder, "table.parquet"))
        for job, argument, claim in [*runs, ("optimum", table, 4.0)]:
            said, top, growth, seconds = measure(job, argument)
            failed |= growth >= claim
            print(
                f"{job} {Path(argument).name}: {said}; +{growth:.2f} GB (claim: under {claim:g}), peak {top:.2f} GB, "
                f"{seconds:.1f} CPU s",
                flush=True,
            )
    sys.exit(arguments.check and failed)


if __name__ == "__main__":
    main()
