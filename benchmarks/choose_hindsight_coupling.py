"""How the default coupling of ``hindsight-optimisation`` was chosen: both, on training exams only.

Prints the share of the optimum (exact evaluation, mean over scenario seeds) of each coupling on exams that belong to
:class:`agents.playing.TrainingExams` and so never to a reported comparison.

    python benchmarks/choose_hindsight_coupling.py [--exams 60] [--seeds 3]
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from agents.base import make_agent, public_problem
from agents.playing import TrainingExams, evaluate_exact
from roi_env.exams.config import exam_spec


def main() -> None:
    """Print a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exams", type=int, default=60, help="training exams a setting")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the scenarios")
    arguments = parser.parse_args()
    for family, num_tasks, budget in itertools.product(("signal", "heavy", "cap"), (3, 10), (0.15, 0.3, 0.6)):
        spec = exam_spec(family, num_tasks=num_tasks, budget=budget)
        problem, batch = public_problem(spec), TrainingExams(spec, 0).batch(arguments.exams)
        best = evaluate_exact(make_agent("optimum", problem, laws=spec.source.published), batch).score.mean()
        shares = {}
        for coupling in ("independent", "common"):
            agents = (
                make_agent("hindsight-optimisation", problem, coupling=coupling, seed=seed)
                for seed in range(arguments.seeds)
            )
            shares[coupling] = np.mean([evaluate_exact(agent, batch).score.mean() for agent in agents]) / best
        print(f"{family:8s} N={num_tasks:<3d} t={budget:<5g}", *(f"{k} {v:.4f}" for k, v in shares.items()), flush=True)


if __name__ == "__main__":
    main()
