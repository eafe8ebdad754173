"""A family of tasks of one's own: three kinds of question, two tiers, one of them with a hidden trap.

python examples/own_family.py                                                       # what planners make of it
roi compare --import examples/own_family.py --family riddles --budget 0.3          # the whole comparison
"""

from __future__ import annotations

import numpy as np

from agents import make_agent, public_problem
from agents.playing import evaluate
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.sources.build import Group, make_source
from roi_env.sources.source import Source
from roi_env.sources.synthetic import register_family

GROUPS = [Group("easy", share=3), Group("hard", share=2), Group("bonus", share=1, weight=3.0)]
# group, hidden kind, tier, tokens, right, how many of ten
OUTCOMES = [
    ("easy", "", "short", 20, True, 9), ("easy", "", "short", 30, False, 1), ("easy", "", "long", 60, True, 10),
    ("hard", "fair", "short", 40, True, 3), ("hard", "fair", "short", 40, False, 7), ("hard", "fair", "long", 200, True, 8),
    ("hard", "fair", "long", 300, False, 2), ("hard", "trap", "short", 40, False, 10), ("hard", "trap", "long", 400, False, 10),
    ("bonus", "", "short", 50, False, 10), ("bonus", "", "long", 150, True, 6), ("bonus", "", "long", 250, False, 4),
]  # fmt: skip


def riddles(num_tasks: int) -> Source:
    """Ten riddles: an agent sees easy, hard or bonus, never the trap."""
    columns = ("group", "item", "tier", "tokens", "correct", "count")
    rows = [dict(zip(columns, row, strict=True)) for row in OUTCOMES]
    return make_source("riddles", ("short", "long"), GROUPS, rows)


register_family("riddles", riddles)

if __name__ == "__main__":
    spec = exam_spec("riddles", budget=0.3)
    exams = draw_exams(spec, seed=0, exam_ids=np.arange(200))
    for name in ("bellman", "lp-lookahead", "resolve", "fixed-2"):
        print(f"{name:14s} {evaluate(make_agent(name, public_problem(spec)), exams).score.mean():.3f}")
