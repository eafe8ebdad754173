"""A table of recorded outcomes of one's own, from whatever was logged.

    python examples/own_table.py runs/mine.jsonl && roi table runs/mine.jsonl && roi compare --table runs/mine.jsonl

Here the log is made up: 150 questions of two kinds, a model at two efforts, four samples each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random


def main(out: Path) -> None:
    """Write one JSON object a generation."""
    rng = Random(0)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as file:
        for number in range(150):
            hard = number % 2 == 0
            for effort, tokens, right in (("low", 80, 0.3 if hard else 0.8), ("high", 600, 0.7 if hard else 0.9)):
                for sample in range(4):
                    row = {
                        "dataset": "hard" if hard else "easy",
                        "question_id": f"q{number}",
                        "question": f"Question number {number}?",
                        "answer": str(number),
                        "menu": "my-model",
                        "tier": effort,
                        "tier_order": 1 if effort == "low" else 2,
                        "tokens": max(1, round(rng.lognormvariate(0, 0.4) * tokens)),
                        "correct": rng.random() < right,
                        "sample": sample,
                    }
                    file.write(json.dumps(row) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mine.jsonl"))
