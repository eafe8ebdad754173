"""Shares of the optimum of a run of ``benchmarks/pattern.yaml`` beside an independent earlier measurement.

The earlier figures are those of an independent measurement with other code (``base_sig.15``: a continuous generator, 240 / 120 / 40
exams for N = 3 / 10 / 50, standard error of a share up to .010 / .004 / .0022). A difference counts where the earlier
figure lies outside our 95 % interval widened by twice that error; it is marked with *.

    python benchmarks/pattern_table.py runs/pattern
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

LENGTHS, BUDGETS = (3, 10, 50), (0.15, 0.3, 0.6)
NOISE = {3: 0.010, 10: 0.004, 50: 0.0022}
# Rows: N = 3 at t = .15, .3, .6, then N = 10, then N = 50; names of ours on the left.
EARLIER = {
    "random": (0.443, 0.538, 0.600, 0.448, 0.583, 0.593, 0.393, 0.601, 0.584),
    "fixed-1": (0.685, 0.505, 0.408, 0.620, 0.474, 0.376, 0.581, 0.455, 0.360),
    "fixed-2": (0.711, 0.923, 0.912, 0.630, 0.895, 0.834, 0.555, 0.880, 0.797),
    "fixed-3": (0.220, 0.456, 0.798, 0.307, 0.480, 0.755, 0.277, 0.441, 0.712),
    "remaining-share": (0.733, 0.898, 0.942, 0.734, 0.915, 0.921, 0.719, 0.919, 0.900),
    "roi": (0.715, 0.724, 0.864, 0.779, 0.788, 0.900, 0.794, 0.835, 0.928),
    "zcl": (0.261, 0.593, 0.865, 0.550, 0.773, 0.856, 0.676, 0.791, 0.829),
    "bid-price": (0.882, 0.917, 0.940, 0.947, 0.951, 0.954, 0.973, 0.968, 0.965),
    "dual-descent": (0.900, 0.882, 0.933, 0.950, 0.925, 0.972, 0.983, 0.977, 0.987),
    "population-bid-price": (0.946, 0.980, 0.976, 0.973, 0.970, 0.989, 0.990, 0.994, 0.993),
    "resolve": (0.948, 0.905, 0.951, 0.978, 0.963, 0.984, 0.994, 0.991, 0.995),
    "resolve-guarded": (0.874, 0.968, 0.959, 0.954, 0.967, 0.980, 0.989, 0.990, 0.995),
    "ce-dp": (0.924, 0.934, 0.958, 0.969, 0.961, 0.980, 0.991, 0.990, 0.994),
    "hindsight-optimisation": (0.988, 0.996, 0.994, 0.988, 0.996, 0.981, 0.992, 0.994, 0.963),
    "lp-lookahead": (0.996, 0.996, 0.994, 0.997, 0.998, 0.997, 0.999, 0.999, 0.999),
}


def main() -> None:
    """Print a Markdown table and how well the orders agree."""
    rows = {
        (r["variant"], r["label"], r["agent"]): r
        for r in pq.read_table(Path(sys.argv[1]) / "summary.parquet").to_pylist()
    }
    cells = [(n, t) for n in LENGTHS for t in BUDGETS]
    print("| agent | " + " | ".join(f"N={n} t={t:g}" for n, t in cells) + " |")
    print("|---" * (len(cells) + 1) + "|")
    ours = np.zeros((len(EARLIER), len(cells)))
    for i, (agent, earlier) in enumerate(EARLIER.items()):
        shown = []
        for j, (n, t) in enumerate(cells):
            row = rows[f"signal-{n}", f"signal-{n} t={t:g}", agent]
            ours[i, j] = row["normalised"]
            slack = 2 * NOISE[n]
            low, high = row["normalised_low"] or row["normalised"], row["normalised_high"] or row["normalised"]
            far = not low - slack <= earlier[j] <= high + slack
            shown.append(f"{row['normalised']:.3f} ({earlier[j]:.3f}){'*' if far else ''}")
        print(f"| {agent} | " + " | ".join(shown) + " |")
    theirs = np.array(list(EARLIER.values()))
    print("\nRank correlation of the agents (Spearman) and largest difference:")
    for j, (n, t) in enumerate(cells):
        a, b = (np.argsort(np.argsort(x[:, j])) for x in (ours, theirs))
        print(f"N={n} t={t:g}: {np.corrcoef(a, b)[0, 1]:.3f}, {np.abs(ours - theirs)[:, j].max():.3f}")


if __name__ == "__main__":
    main()
