"""Fresh questions of GSM8K under one hard budget, 40 % of what always-dearest costs: who gets most right?

``roi answer`` with the tiers of a packaged recording, at an endpoint that serves its model: by a planner with the table's beliefs, by one
that goes by levels which a language model announces (``--levels``, at the three tiers of its levels), by the default agent without data, and
first come, first served (the dearest tier until the budget is gone). The questions are those of the test set after the ones that were
recorded. Started again it goes on where it was.

    vllm serve FOLDER --served-model-name qwen --dtype bfloat16 --max-model-len 2048 --port 8000
    PYTHONPATH=. python benchmarks/live_gsm8k.py gsm8k_test.jsonl --endpoint http://127.0.0.1:8000/v1 --model qwen --tokenizer FOLDER \\
        --table math --folder runs/live-gsm8k --out benchmarks/results/math/live-gsm8k.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import binomtest

from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import PACKAGED, PAPER_TIERS

SKIPPED = 350
"""Questions at the beginning of the test set that were recorded."""
TIERS = {"at-once": "0", "128": "128", "256": "256", "512": "512", "1024": "1024"}


class Row(NamedTuple):
    """An agent: its folder, its name for ``roi answer``, whether it is given the table's beliefs, and the tiers that it may take."""

    folder: str
    agent: str
    informed: bool = False
    tiers: Sequence[str] = tuple(TIERS)


ROWS = {
    "re-solving LP, the table's beliefs": Row("resolve", "resolve", True),
    "LP look-ahead, the table's beliefs": Row("lp-lookahead", "lp-lookahead", True),
    "re-solving LP on a model's levels": Row(
        "levels", "predicted-levels(planner='resolve',model='{levels}',dtype='bfloat16')", True, PAPER_TIERS
    ),
    "the default, no data": Row("online-lp", "online-lp"),
    "first come, first served": Row("fixed-5", "fixed-5"),
}


def budget_of(table: Path, questions: int, share: float) -> int:
    """Tokens: a share of what the dearest tier costs on the recorded questions."""
    rows = OutcomeTable.read(table).rows.to_pylist()
    dearest = [row["tokens"] for row in rows if row["dataset"] == "gsm8k" and row["tier"] == "1024"]
    return round(share * questions * sum(dearest) / len(dearest))


def answering(name: str, given: argparse.Namespace, questions: Path, budget: int) -> subprocess.Popen[bytes]:
    """One agent at work."""
    row = ROWS[name]
    out = given.folder / row.folder
    beliefs = ["--table", str(PACKAGED[given.table]), "--predictor", "none"] if row.informed else []
    command = [sys.executable, "-m", "experiments", "answer", str(questions), "--budget", str(budget)]
    command += [
        "--endpoint",
        given.endpoint,
        "--backend",
        "vllm",
        "--model",
        given.model,
        "--tokenizer",
        given.tokenizer,
    ]
    command += ["--dialect", "instruct", *(word for tier in row.tiers for word in ("--tier", f"{tier}={TIERS[tier]}"))]
    command += [
        "--temperature",
        "0.7",
        "--grader",
        "number",
        "--window",
        str(given.window),
        "--deadline",
        "3600",
        "--agent",
        row.agent.format(levels=given.levels),
        *beliefs,
    ]
    command += ["--out", str(out), *(["--resume"] if (out / "ledger.jsonl").exists() else [])]
    return subprocess.Popen(command)


def result(name: str, folder: Path) -> dict[str, Any]:
    """Right answers and tokens of one agent."""
    out = folder / ROWS[name].folder
    audit = json.loads((out / "audit.json").read_text())
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    low, high = binomtest(audit["right"], audit["questions"]).proportion_ci(method="wilson")
    tiers = {tier: [row for row in rows if row["tier"] == tier] for tier in TIERS}
    return {
        "agent": name,
        "right": audit["right"],
        "interval": [round(audit["questions"] * end, 1) for end in (low, high)],
        "charged": audit["charged"],
        "budget": audit["budget"],
        "within": audit["within"],
        "by_status": audit["by_status"],
        "by_tier": {
            tier: {
                "asked": len(of),
                "right": sum(bool(row["correct"]) for row in of),
                "tokens": sum(row["charged"] for row in of),
            }
            for tier, of in tiers.items()
        },
    }


def main() -> None:
    """Let all of them answer at once, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="GSM8K's test set, JSONL")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of the ledgers and answers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", choices=PACKAGED, default="math", help="the packaged recording of the model")
    parser.add_argument("--levels", help="model whose levels a planner goes by; left out: no such row")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--agent", action="append", choices=ROWS, help="only this row; repeatable")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    questions = given.folder / "gsm8k.jsonl"
    lines = given.questions.read_text().splitlines(keepends=True)[SKIPPED : SKIPPED + given.count]
    questions.write_text("".join(lines))
    budget = budget_of(PACKAGED[given.table], given.count, given.share)
    asked = given.agent or [name for name, row in ROWS.items() if given.levels or "{levels}" not in row.agent]
    working = {name: answering(name, given, questions, budget) for name in asked}
    failed = [name for name, process in working.items() if process.wait()]
    if failed:
        sys.exit(f"stopped: {', '.join(failed)}; the same command goes on")
    done = [name for name, row in ROWS.items() if (given.folder / row.folder / "audit.json").exists()]
    found = [result(name, given.folder) for name in done]
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(given.out.read_text())


if __name__ == "__main__":
    main()
