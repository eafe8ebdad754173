"""The Bellman tables that commands make against the same recursion in plain NumPy (claim: 4x; 64 support points, K = 3, the
largest budget that is solved exactly)."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from roi_env.exact.policy_tables import MAX_GRID_POINTS, Tables, compile_laws, preview_tables
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


def tables(laws: Laws, budget: int) -> Tables:
    """Value and actions by position and tokens left, as for `optimum` and `bellman`."""
    cells = compile_laws(laws, laws.min_cost.astype(np.int64))
    return preview_tables(np.arange(laws.num_laws)[None], np.ones(laws.num_laws), cells, budget, grid=1)


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
    budget, failed = MAX_GRID_POINTS, False
    for tasks in (10, 100):
        laws = random_laws(tasks, budget * 3 // tasks)
        tables(laws, 100)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(arguments.repeats):
            begin = time.process_time()
            expected = plain(laws, budget)
            theirs.append(time.process_time() - begin)
            begin = time.process_time()
            value = tables(laws, budget).value[0]
            ours.append(time.process_time() - begin)
            assert abs(value / expected - 1) < 1e-12
        numpy, mine = float(np.median(theirs)), float(np.median(ours))
        failed |= numpy / mine < 4
        print(
            f"N = {tasks}, B = {budget:,}: {mine * 1e3:.1f} ms with the actions, plain NumPy {numpy * 1e3:.1f} ms without: "
            f"{numpy / mine:.1f}x (claim 4x)"
        )
    sys.exit(arguments.check and failed)


if __name__ == "__main__":
    main()
