"""Exact evaluation of a cheap planner against 1,000 sampled episodes of it (claim: faster, and without noise)."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from agents.base import make_agent, public_problem
from agents.playing import evaluate_exact, evaluate_sampled
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams


def main() -> None:
    """Print the ratio for one exam of N = 10, B = 300."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the claim fails")
    arguments = parser.parse_args()
    spec = exam_spec("signal", num_tasks=10, budget=300)
    agent = make_agent("bid-price", public_problem(spec))
    exact, sampled = [], []
    for exam in range(arguments.repeats + 1):  # the first one compiles
        batch = draw_exams(spec, 0, [exam])
        begin = time.process_time()
        value = evaluate_exact(agent, batch)
        exact.append(time.process_time() - begin)
        begin = time.process_time()
        estimate = evaluate_sampled(agent, batch, replicates=1000)
        sampled.append(time.process_time() - begin)
        assert abs(value.score[0] - estimate.score[0]) < 6 * estimate.noise[0]
    mine, theirs = float(np.median(exact[1:])), float(np.median(sampled[1:]))
    print(
        f"bid-price, N = 10, B = 300: exact {mine * 1e3:.2f} ms, 1,000 sampled episodes {theirs * 1e3:.2f} ms "
        f"(standard error {estimate.noise[0]:.3f}): {theirs / mine:.1f}x (claim: above 1x)"
    )
    sys.exit(arguments.check and theirs <= mine)


if __name__ == "__main__":
    main()
