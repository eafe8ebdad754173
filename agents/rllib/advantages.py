"""Group-relative advantages, in NumPy: what the driver computes from whole groups before a learner sees them.

A *group* is several replicates of one exam: the same tasks, outcomes and actions drawn anew. All arrays have one row an
exam taken and one column a decision; decisions that were not reached count nowhere.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

Advantage = Literal["grpo", "dr", "rloo", "rtg"]
ADVANTAGES: Final[tuple[Advantage, ...]] = get_args(Advantage)

EPSILON: Final = 1e-4
"""Added to a group's standard deviation (same unit as the rewards)."""


def returns_to_go(rewards: npt.NDArray[np.floating], reached: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Undiscounted sum of the rewards from each decision on.

    :param rewards: (E, N).
    :param reached: (E, N) bool; rewards elsewhere are ignored.
    :returns: (E, N) float64.
    """
    kept = np.where(reached, rewards, 0.0).astype(np.float64)
    return np.ascontiguousarray(kept[:, ::-1].cumsum(1)[:, ::-1])


def advantages(
    kind: Advantage,
    rewards: npt.NDArray[np.floating],
    reached: npt.NDArray[np.bool_],
    group: npt.NDArray[np.integer],
    baseline: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.float64]:
    """Advantage of every decision.

    With R the exam's return, mean and standard deviation over its group of size G:

    * ``grpo``: (R - mean) / (std + epsilon), std with divisor G (Shao et al. 2024, arXiv 2402.03300);
    * ``dr``: R - mean, which does not weigh groups by how certain they are (Liu et al. 2025, arXiv 2503.20783);
    * ``rloo``: R - mean of the other members (Ahmadian et al. 2024, arXiv 2402.14740), that is ``dr`` x G / (G - 1);
    * ``rtg``: return-to-go of the decision - mean of the other members' returns-to-go at the same task: rewards earned
      before a decision cannot depend on it and are left out. A member whose exam is over has return-to-go 0.

    ``baseline`` (a known value of each exam, e.g. its exact optimum or oracle value) replaces the group's mean: R (or
    for ``rtg`` the return-to-go of the whole exam's start) is compared with it. For ``rtg`` the value that remains at a
    later task is the baseline minus what the group earned before it on average.

    :param kind: one of :data:`ADVANTAGES`.
    :param rewards: (E, N).
    :param reached: (E, N) bool.
    :param group: (E,) integers naming each row's group; groups may differ in size.
    :param baseline: (E,) or None.
    :returns: (E, N) float64, 0 where not reached.
    :raises ValueError: for an unknown kind, shapes that do not fit, rewards that are not finite, or a group of one
        member without a baseline (it has nothing to be compared with).
    """
    if kind not in ADVANTAGES:
        raise ValueError(f"advantage must be one of {list(ADVANTAGES)}, got {kind!r}")
    if rewards.shape != reached.shape or rewards.ndim != 2 or group.shape != rewards.shape[:1]:
        raise ValueError(
            f"rewards and reached must be (E, N) and group (E,), got {rewards.shape}, {reached.shape}, {group.shape}"
        )
    if baseline is not None and baseline.shape != group.shape:
        raise ValueError(f"baseline must be (E,) = {group.shape}, got {baseline.shape}")
    if not np.isfinite(rewards[reached]).all() or (baseline is not None and not np.isfinite(baseline).all()):
        raise ValueError("rewards and baseline must be finite")
    names, inverse = np.unique(group, return_inverse=True)
    size = np.bincount(inverse)[inverse]
    if baseline is None and size.min(initial=2) < 2:
        alone = names[np.bincount(inverse) < 2]
        raise ValueError(f"every group needs at least two members, these have one: {alone[:5].tolist()}")

    def group_sum(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = np.zeros((len(names), *values.shape[1:]))
        np.add.at(total, inverse, values)
        return total[inverse]

    to_go = returns_to_go(rewards, reached)
    whole = to_go[:, 0]
    if kind == "rtg":
        if baseline is None:
            others = (group_sum(to_go) - to_go) / (size - 1)[:, None]
        else:
            earned = group_sum(whole[:, None] - to_go) / size[:, None]
            others = baseline[:, None] - earned
        value = to_go - others
    else:
        centre = group_sum(whole) / size if baseline is None else baseline
        apart = whole - centre
        if kind == "rloo" and baseline is None:
            apart = apart * size / (size - 1)
        elif kind == "grpo":
            mean = group_sum(whole) / size
            apart = apart / (np.sqrt(group_sum((whole - mean) ** 2) / size) + EPSILON)
        value = np.broadcast_to(apart[:, None], to_go.shape)
    return np.where(reached, value, 0.0)
