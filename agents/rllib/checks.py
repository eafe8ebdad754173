"""What settings of training must agree in: checked where an agent is made (without Ray) and where training begins."""

from __future__ import annotations

from typing import Final, Literal, get_args

from agents.rllib.advantages import Advantage
from agents.rllib.losses import Ratio

Baseline = Literal["group", "optimum", "oracle"]
BASELINES: Final[tuple[Baseline, ...]] = get_args(Baseline)
KL = Literal["exact", "k3"]
KLS: Final[tuple[KL, ...]] = get_args(KL)


def check_portions(
    per_iteration: int,
    per_minibatch: int,
    group_size: int,
    *,
    learners: int = 1,
    whole_groups: bool = False,
    names: tuple[str, str, str] = ("per_iteration", "per_minibatch", "group_size"),
) -> None:
    """Check that exams can be dealt out evenly.

    :param per_iteration: exams of an iteration.
    :param per_minibatch: exams of a gradient step, all learners together.
    :param group_size: exams of a group.
    :param learners: processes that learn.
    :param whole_groups: whether a group must stay together in a minibatch.
    :param names: what the first three are called where they were given.
    :raises ValueError: naming what does not divide what.
    """
    iteration, minibatch, group = names
    for name, value in zip(names, (per_iteration, per_minibatch, group_size), strict=True):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if per_iteration % (group_size * learners):
        raise ValueError(
            f"{iteration} {per_iteration} must be whole groups of {group_size} exams ({group}), equally many for each of "
            f"{learners} learner(s)"
        )
    if per_minibatch % learners or per_iteration % per_minibatch:
        raise ValueError(
            f"{iteration} {per_iteration} must be a multiple of {minibatch} {per_minibatch}, and that of the number of "
            f"learners {learners}"
        )
    if whole_groups and per_minibatch % (group_size * learners):
        raise ValueError(
            f"{minibatch} {per_minibatch} must be whole groups of {group_size} exams ({group}) on each of {learners} "
            "learner(s)"
        )


def check_comparison(advantage: Advantage, baseline: Baseline, ratio: Ratio, group_size: int) -> None:
    """Check what GRPO compares with what.

    :raises ValueError: for what does not go together.
    """
    if ratio == "sequence" and advantage == "rtg":
        raise ValueError("a sequence ratio belongs to one advantage an exam: use advantage 'grpo', 'dr' or 'rloo'")
    if baseline == "group" and group_size < 2:
        raise ValueError("exams are compared with their group's mean: a group must be at least 2 of them")
