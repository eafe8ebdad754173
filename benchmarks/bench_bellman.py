"""The Bellman optimum against the same recursion in plain NumPy (claim: 4x; B = 32,000, 64 support points, K = 3)."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from roi_env.exact.bellman import solve
from roi_env.sources.source import Laws, laws_from_cells


def random_laws(count: int, most: int, seed: int = 0) -> Laws:
    """``count`` laws x 3 tiers of 64 costs each."""
    rng = np.random.default_rng(seed)
    cells = []
    for cell in range(count * 3):
        scale = most * (0.1, 0.33, 1.0)[cell % 3]
        cost = np.sort(rng.choice(np.arange(1, max(int(scale), 65)), 64, replace=False)).astype(np.int32)
        prob = rng.dirichlet(np.ones(64))
        cells.append((cost, prob, prob * rng.random(64)))
    return laws_from_cells(cells, 3)


def plain(laws: Laws, budget: int) -> float:
    """One axpy a support point."""
    value = np.zeros(budget + 1)
    for n in reversed(range(laws.num_laws)):
        best = value.copy()
        for k in range(laws.num_tiers):
            total = np.zeros(budget + 1)
            for cost, prob, success in zip(*laws.cell(n, k), strict=True):
                if cost <= budget:
                    total[cost:] += prob * value[: budget + 1 - cost] + success
            np.maximum(best, total, out=best)
        value = best
    return float(value[budget])


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a claim fails")
    arguments = parser.parse_args()
    budget, failed = 32_000, False
    for tasks in (10, 100):
        laws = random_laws(tasks, budget * 3 // tasks)
        index, weights = np.arange(tasks)[None], np.ones((1, tasks))
        ours: dict[type, list[float]] = {np.float64: [], np.float32: []}
        theirs: list[float] = []
        for dtype in ours:
            solve(laws, index, weights, 100, dtype=dtype)
        for _ in range(arguments.repeats):
            begin = time.process_time()
            expected = plain(laws, budget)
            theirs.append(time.process_time() - begin)
            for dtype, seconds in ours.items():
                begin = time.process_time()
                value = solve(laws, index, weights, budget, dtype=dtype).value[0]
                seconds.append(time.process_time() - begin)
                assert abs(value / expected - 1) < 1e-5
        numpy = float(np.median(theirs))
        for dtype, seconds in ours.items():
            mine = float(np.median(seconds))
            failed |= numpy / mine < 4
            print(
                f"N = {tasks}, {dtype.__name__}: {mine * 1e3:.1f} ms, plain NumPy {numpy * 1e3:.1f} ms: "
                f"{numpy / mine:.1f}x (claim 4x)"
            )
    sys.exit(arguments.check and failed)


if __name__ == "__main__":
    main()
