"""Exams made of a small table with question texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.sources.outcome_tables import OutcomeTable

_SIZES = {"easy": (2, 3, 3), "hard": (12, 30, 40)}


def worded_table(questions: int = 40, samples: int = 4, tiers: tuple[str, ...] = ("answer", "long")) -> OutcomeTable:
    """Short questions are solved by the cheapest tier, long ones by the dearer ones alone."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(questions):
        kind = ("easy", "hard")[number % 2]
        digits = rng.integers(10, 99 if kind == "hard" else 11, 2)
        text = f"Solve the following multiplication: {digits[0]} * {digits[1]}." if kind == "hard" else f"{number} = A#"
        for order, tier in enumerate(tiers):
            for sample in range(samples):
                rows.append(
                    {
                        "dataset": "small",
                        "question_id": f"q{number}",
                        "question": text + " " * (number // 20),
                        "answer": "1",
                        "menu": "small",
                        "tier": tier,
                        "tier_order": order + 1,
                        "tokens": _SIZES[kind][order] + sample,
                        "correct": kind == "easy" or (order > 0 and sample > 0),
                        "sample": sample,
                        "kind": kind,
                    }
                )
    return OutcomeTable.from_arrow(pa.Table.from_pylist(rows))


def worded_spec(**changes: Any) -> ExamSpec:
    """Exams of :func:`worded_table`; 2 tiers."""
    return spec_of(worded_table(), **changes)


def three_tier_spec(**changes: Any) -> ExamSpec:
    """The same with 3 tiers: exams that can be written in one pass, all answers "1"."""
    return spec_of(worded_table(tiers=("answer", "short", "long")), **changes)


def spec_of(table: OutcomeTable, **changes: Any) -> ExamSpec:
    """Exams of a table."""
    arguments: dict[str, Any] = {"num_tasks": 4, "budget": 60, "split": "train", "group_by": "kind", "decision_cost": 1}
    return exam_spec("recorded", table=table, **(arguments | changes))
