"""Tables whose questions tell what they take, or do not."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from agents.predictors.predictor import fit_scores, load_predictor
from agents.predictors.records import records
from roi_env.sources.outcome_tables import OutcomeTable

TIERS = ("low", "mid", "high")
WORDS = np.array(
    [
        "angle",
        "boat",
        "cake",
        "drum",
        "edge",
        "farm",
        "gold",
        "hill",
        "iron",
        "jade",
        "kite",
        "lamp",
        "moon",
        "nest",
        "oven",
        "pear",
    ]
)


def told(
    questions: int = 300, samples: int = 4, *, says: bool = True, seed: int = 0, path: str = "<memory>"
) -> OutcomeTable:
    """A third of the questions is easy, a third needs thought, a third is hopeless; a word says which, or does not.

    Two data sets with the same mixture: the column tells nothing.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(questions):
        kind = int(rng.integers(3))
        chance = ((0.95, 0.95, 0.95), (0.05, 0.5, 0.95), (0.02, 0.02, 0.05))[kind]
        mean = np.array([4.0, 12.0, 30.0]) * (0.7, 1.0, 1.4)[kind]
        word = ("simple", "puzzling", "impossible")[kind if says else int(rng.integers(3))]
        filler = " ".join(rng.choice(WORDS, 24))
        for k, tier in enumerate(TIERS):
            for sample in range(samples):
                rows.append(
                    {
                        "dataset": f"set{number % 2}",
                        "question_id": f"q{number}",
                        "question": f"A {word} question of {filler} with number {number}?",
                        "answer": "1",
                        "menu": "model",
                        "tier": tier,
                        "tier_order": k + 1,
                        "tokens": int(1 + rng.poisson(mean[k])),
                        "correct": bool(rng.random() < chance[k]),
                        "sample": sample,
                        "kind": str(kind),
                    }
                )
    return OutcomeTable.from_arrow(pa.Table.from_pylist(rows), path)


def written(table: OutcomeTable, folder: Path) -> Path:
    """The table as a file."""
    path = folder / "told.parquet"
    table.write(path)
    return path


def check_file(name: str, path: Path) -> None:
    """A predictor's file holds it, and is no pickle."""
    made = fit_scores(name, records(told(60, 2)))
    made.save(path)
    again = load_predictor(path)
    new = ["A simple question of moon and hill?", "impossible", "", "Ünïcode \\frac{1}{2} 12,345"]
    columns = {"dataset": ["set0", "set1", "elsewhere", "set0"], "kind": ["0", "2", "9", "1"]}
    np.testing.assert_allclose(made.scores(new, columns), again.scores(new, columns), atol=1e-6)
    assert again.facts == made.facts
    with zipfile.ZipFile(path) as file:
        for part in file.namelist():
            assert b"'descr': '|O'" not in file.read(part)[:200]  # an array of objects would be pickled
