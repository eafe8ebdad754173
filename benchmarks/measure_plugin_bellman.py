"""How good `plugin-bellman` is by the size of its log, and how much that varies between logs.

Share of the optimum on signal exams (exact evaluation, beliefs unknown), over many independent logs of training exams:
mean with its standard error, standard deviation between logs, median.

    python benchmarks/measure_plugin_bellman.py [--logs 60] [--exams 40] [--family signal] [--num-tasks 10]
"""

from __future__ import annotations

import argparse

import numpy as np

from agents.base import public_problem
from agents.planners.dynamic_programming import PluginBellman
from agents.playing import TrainingExams, evaluate_exact
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import optimum_tables


def main() -> None:
    """Print a line a budget and size of log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=int, default=60, help="independent logs")
    parser.add_argument("--exams", type=int, default=40, help="reported exams")
    parser.add_argument("--family", default="signal")
    parser.add_argument("--num-tasks", type=int, default=10)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.15, 0.3, 0.6])
    parser.add_argument("--attempts", type=int, nargs="+", default=[54, 180, 540, 1800, 5400])
    arguments = parser.parse_args()
    for budget in arguments.budgets:
        spec = exam_spec(arguments.family, num_tasks=arguments.num_tasks, budget=budget, beliefs="none")
        problem, batch = public_problem(spec), draw_exams(spec, 0, np.arange(arguments.exams))
        best = optimum_tables(batch).value.mean()
        for attempts in arguments.attempts:
            shares = []
            for seed in range(arguments.logs):
                agent = PluginBellman(problem, attempts=attempts)
                agent.train(TrainingExams(spec, seed), seed)
                shares.append(evaluate_exact(agent, batch).score.mean() / best)
            spread = np.std(shares, ddof=1)
            print(
                f"{arguments.family} N={arguments.num_tasks} t={budget:g}, {attempts} attempts: mean "
                f"{np.mean(shares):.4f} +- {spread / len(shares) ** 0.5:.4f}, between logs {spread:.4f}, median "
                f"{np.median(shares):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
